//! The live screen: state, keys, and one file per panel. Everything shown comes from [`LiveSnapshot`]s.

mod panels;
mod state;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, enable_raw_mode};
use ratatui::backend::CrosstermBackend;
use ratatui::{DefaultTerminal, Terminal};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::watch;

use self::state::State;
use crate::telemetry::LiveSnapshot;

/// How often the screen looks for keys and news.
const FRAME: Duration = Duration::from_millis(100);

/// How the screen ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The run is over.
    RunOver,
    /// The user wants to stop it.
    Quit,
}

/// Whether there is a terminal to draw on and to read keys from.
///
/// # Errors
/// What is missing, in words.
pub fn can_show() -> Result<(), &'static str> {
    if !io::stdout().is_terminal() {
        return Err("standard output is no terminal");
    }
    keys().map(drop).map_err(|_| "there is no terminal to read keys from")
}

/// Shows snapshots until the run is over or the user quits. Blocks; the terminal is restored in every case.
///
/// # Errors
/// When the terminal can't be used.
pub fn show(mut live: watch::Receiver<LiveSnapshot>, use_colour: bool) -> io::Result<Ended> {
    // Never dropped: the library's drop prints what goes wrong, and panics where nobody reads standard error any more.
    let mut terminal = ManuallyDrop::new(take_terminal()?);
    let result = run(&mut terminal, &mut live, use_colour);
    // A terminal that is gone shows no cursor.
    let _ = terminal.show_cursor();
    restore();
    result
}

/// Puts the terminal into the screen's hands, and back where the program panics.
fn take_terminal() -> io::Result<DefaultTerminal> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
    });
    IS_SHOWN.store(true, Ordering::Release);
    let taken = enable_raw_mode()
        .and_then(|()| execute!(io::stdout(), EnterAlternateScreen))
        .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
    if taken.is_err() {
        restore();
    }
    taken
}

/// Whether the terminal is in the screen's hands.
static IS_SHOWN: AtomicBool = AtomicBool::new(false);

/// Gives the terminal back, if the screen has it: for a process that ends at once. Output that is no terminal is left alone.
pub fn restore() {
    if IS_SHOWN.swap(false, Ordering::AcqRel) {
        // Whatever goes wrong: nothing is left to be done, and nobody may be there to read of it.
        let _ = ratatui::try_restore();
    }
}

fn run(
    terminal: &mut DefaultTerminal,
    live: &mut watch::Receiver<LiveSnapshot>,
    use_colour: bool,
) -> io::Result<Ended> {
    let (mut state, keys) = (State::new(use_colour), keys()?);
    loop {
        // An error means that the run is gone; what it said last is still there.
        let (is_new, is_gone) = live.has_changed().map_or((false, true), |is_new| (is_new, false));
        if is_new {
            state.take(live.borrow_and_update().clone());
        }
        terminal.draw(|frame| panels::draw(frame, &state))?;
        if is_gone || state.is_run_over() {
            return Ok(Ended::RunOver);
        }
        wait_for_input(&keys, FRAME)?;
        while crossterm::event::poll(Duration::ZERO)? {
            if let Event::Key(key) = crossterm::event::read()?
                && key.kind == KeyEventKind::Press
                && on_key(&mut state, key)
            {
                return Ok(Ended::Quit);
            }
        }
    }
}

/// Where keys come from: standard input where it is a terminal, else the terminal of the session, as the library takes them.
fn keys() -> io::Result<File> {
    let stdin = io::stdin();
    if stdin.is_terminal() { Ok(stdin.as_fd().try_clone_to_owned()?.into()) } else { File::open("/dev/tty") }
}

/// Waits until there is something to read, for so long at most.
///
/// The library reads a terminal that is gone for ever, without a pause: it must not be asked then.
///
/// # Errors
/// When the terminal is gone.
fn wait_for_input(keys: impl AsFd, limit: Duration) -> io::Result<()> {
    let mut waited = [PollFd::new(&keys, PollFlags::IN)];
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    match rustix::event::poll(&mut waited, Some(&limit)) {
        // A signal, such as of another size: the screen is drawn anew.
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if waited[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it is gone"));
    }
    Ok(())
}

/// Handles a key; returns true to quit.
fn on_key(state: &mut State, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') => return true,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Char('?') => state.toggle_help(),
        KeyCode::Esc => state.close_help(),
        KeyCode::Char(' ') => state.toggle_freeze(),
        KeyCode::Tab => state.next_panel(),
        KeyCode::BackTab => state.previous_panel(),
        KeyCode::Char(digit @ '1'..='5') => state.go_to(digit as usize - '1' as usize),
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::telemetry::live::ServerSnapshot;
    use crate::telemetry::{LatencyPath, LatencySummary, PhaseKind, RunPhase};

    #[test]
    fn a_terminal_that_is_gone_is_told_and_one_that_is_silent_is_waited_for() {
        use std::io::Write;
        use std::os::unix::net::UnixStream;
        const MOMENT: Duration = Duration::from_millis(20);
        let (keys, mut terminal) = UnixStream::pair().expect("a pair");
        wait_for_input(&keys, MOMENT).expect("nothing came");
        terminal.write_all(b"q").expect("writes");
        wait_for_input(&keys, MOMENT * 1_000).expect("something is there");
        drop(terminal);
        assert_eq!(wait_for_input(&keys, MOMENT).expect_err("gone").kind(), io::ErrorKind::BrokenPipe);
    }

    fn snapshot() -> LiveSnapshot {
        let mut s = LiveSnapshot {
            scenario: "quickstart".to_owned(),
            phase: RunPhase::Load(PhaseKind::Steady),
            elapsed_s: 12.0,
            planned_s: 30.0,
            progress: 0.4,
            connections: 500,
            connections_wanted: 512,
            verdict: "running".to_owned(),
            ..LiveSnapshot::default()
        };
        let latency = LatencySummary { count: 10, p50_us: 900, p99_us: 4_200, max_us: 9_000, ..Default::default() };
        s.interval.insert(LatencyPath::Delivery, latency);
        s.overall.insert(LatencyPath::Delivery, latency);
        let server = ServerSnapshot { role: "chat".to_owned(), connections: 170, lag_records: 3, ..Default::default() };
        s.servers.insert("chat-1".to_owned(), server);
        s.errors.insert("overloaded".to_owned(), 2);
        s
    }

    fn screen(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| panels::draw(frame, state)).expect("draws");
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content().chunks(width.into());
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
    }

    #[test]
    fn every_panel_fits_the_smallest_terminal() {
        let mut state = State::new(false);
        state.take(snapshot());
        for (panel, wanted) in ["delivery", "chat-1", "lag", "overloaded", "late"].iter().enumerate() {
            state.go_to(panel);
            let text = screen(&state, 80, 24);
            assert!(text.contains("quickstart") && text.contains("steady"), "{text}");
            assert!(text.contains(wanted), "panel {} lacks {wanted}:\n{text}", panel + 1);
        }
    }

    #[test]
    fn a_percentile_without_its_samples_is_a_dash() {
        let mut state = State::new(false);
        state.take(snapshot());
        state.go_to(0);
        let text = screen(&state, 120, 30);
        let row = text.lines().find(|line| line.contains("delivery") && line.contains("10 ")).expect("a row");
        assert!(row.contains("900 µs") && row.contains("9.0 ms") && row.matches(" - ").count() >= 3, "{text}");
        assert!(!row.contains("4.2 ms"), "p99 of ten: {text}");
    }

    #[test]
    fn a_tiny_terminal_does_not_break_it() {
        let mut state = State::new(false);
        state.take(snapshot());
        for (width, height) in [(1, 1), (10, 3), (40, 10), (200, 60)] {
            screen(&state, width, height);
        }
    }

    #[test]
    fn keys_freeze_help_and_quit() {
        let mut state = State::new(false);
        state.take(snapshot());
        let mut press = |code| on_key(&mut state, KeyEvent::from(code));
        assert!(!press(KeyCode::Char(' ')));
        assert!(press(KeyCode::Char('q')));
        state.take(LiveSnapshot { phase: RunPhase::Load(PhaseKind::CoolDown), ..snapshot() });
        assert!(screen(&state, 80, 24).contains("FROZEN"));
        assert!(!screen(&state, 80, 24).contains("cool-down"));
        state.toggle_freeze();
        assert!(screen(&state, 80, 24).contains("cool-down"));
        state.toggle_help();
        assert!(screen(&state, 80, 24).contains("freeze"));
    }
}
