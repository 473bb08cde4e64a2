//! Signals that stop what runs: ctrl-c, SIGTERM, and SIGHUP when the terminal or the session goes away.

use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::run::Error;
use crate::runtime::Tasks;

/// The signals that stop this process.
pub struct Signals {
    asked: Vec<Signal>,
    /// Listened to as the first of all only: a terminal that goes away says so more than once, and that is no second request.
    hangup: Option<Signal>,
}

impl Signals {
    /// Opens each of them. A hangup that whoever started this process has it ignore (`nohup`) stays ignored.
    ///
    /// # Errors
    /// When the system refuses one.
    pub fn open() -> Result<Self, Error> {
        let open = |kind| signal(kind).map_err(Error::environment);
        let hangup = if is_ignored(SignalKind::hangup()) { None } else { Some(open(SignalKind::hangup())?) };
        Ok(Self { asked: vec![open(SignalKind::interrupt())?, open(SignalKind::terminate())?], hangup })
    }

    /// Waits for the next one; returns whether somebody asked for the stop, rather than that the terminal has gone.
    pub async fn next(&mut self) -> bool {
        let was_asked = std::future::poll_fn(|context| {
            if self.asked.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
                return Poll::Ready(true);
            }
            let has_hung_up = self.hangup.as_mut().is_some_and(|signal| signal.poll_recv(context).is_ready());
            if has_hung_up { Poll::Ready(false) } else { Poll::Pending }
        })
        .await;
        self.hangup = None;
        was_asked
    }
}

/// Whether this process was started with a signal ignored. Asked before a handler of ours replaces that.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}

/// The first signal interrupts the run; each one after it calls `end`, which ends the process. A hangup is never the second
/// one: whoever shows the run may have stopped it already, since the terminal has gone.
///
/// # Errors
/// When the system refuses a signal.
pub fn watch(interrupt: &Tasks, end: impl Fn() + Send + 'static) -> Result<(), Error> {
    let mut signals = Signals::open()?;
    let interrupt = interrupt.clone();
    Tasks::new().spawn("load.signals", async move {
        loop {
            let was_asked = signals.next().await;
            if was_asked && interrupt.is_stopped() {
                end();
            }
            interrupt.stop();
        }
    });
    Ok(())
}
