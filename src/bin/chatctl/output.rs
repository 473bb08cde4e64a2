//! Standard output and standard error of the command. Their readers may go away (`chatctl load … | head`): then nothing more
//! is printed, and who runs for a reader's sake asks [`is_read`]. What the system says of errors is printed in words of ours.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;

use chatctl::runtime::{Tasks, plain_os_errors};
use chatctl::telemetry::printable_lines;

/// Why the first write to standard output failed that did.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Prints to standard output, as `print!` does, and flushes.
macro_rules! out {
    ($($text:tt)*) => { $crate::output::print(format_args!($($text)*), false) };
}

/// Prints a line to standard output, as `println!` does.
macro_rules! outln {
    ($($text:tt)*) => { $crate::output::print(format_args!($($text)*), true) };
}

/// Prints a line to standard error, as `eprintln!` does.
macro_rules! errln {
    ($($text:tt)*) => { $crate::output::print_error(format_args!($($text)*)) };
}

pub(crate) use {errln, out, outln};

pub(crate) fn print(text: fmt::Arguments<'_>, is_line: bool) {
    let text = text.to_string();
    let text = plain_os_errors(&text);
    let mut stdout = io::stdout().lock();
    let written = if is_line { writeln!(stdout, "{text}") } else { write!(stdout, "{text}") };
    if let Err(error) = written.and_then(|()| stdout.flush()) {
        // The first says why; the others follow from it.
        let _ = FAILED.set(error);
    }
}

/// What an error says may come from a server or a file: a terminal does not obey it.
pub(crate) fn print_error(text: fmt::Arguments<'_>) {
    let text = text.to_string();
    // There is nowhere left to say that this failed.
    let _ = writeln!(io::stderr().lock(), "{}", printable_lines(&plain_os_errors(&text)));
}

/// Whether standard output could be written so far.
pub(crate) fn is_read() -> bool {
    FAILED.get().is_none()
}

/// Why something was not printed although somebody wants to read it, such as a disk that is full.
pub(crate) fn failure() -> Option<&'static io::Error> {
    FAILED.get().filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
}

/// Interrupts a run that is shown to nobody any more.
pub(crate) fn interrupt_unread(interrupt: &Tasks) {
    if let Some(error) = FAILED.get()
        && !interrupt.is_stopped()
    {
        errln!("chatctl: standard output can't be written any more ({error}): interrupted");
        interrupt.stop();
    }
}
