//! How a run is shown and kept while it goes on: the live screen, lines, the series on the disk.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use chatctl::report;
use chatctl::runtime::Tasks;
use chatctl::telemetry::{LiveSnapshot, RunPhase};
use chatctl::tui;
use tokio::sync::watch;

use crate::output::{self, errln, outln};

/// How a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Ui {
    /// A live screen on a terminal, lines elsewhere and in CI
    Auto,
    /// The live screen
    Tui,
    /// One line per second
    Plain,
    /// Only the summary
    None,
}

/// The screen only where somebody can see it.
pub(crate) fn choose_ui(asked: Ui) -> Ui {
    let is_seen = std::io::stdout().is_terminal() && std::env::var_os("CI").is_none();
    match asked {
        Ui::Auto if is_seen => Ui::Tui,
        Ui::Auto => Ui::Plain,
        other => other,
    }
}

/// Most seconds of a run that are kept in memory; of a longer one every second, every fourth, … is.
const KEPT_MAX: usize = 20_000;

/// The seconds of a run.
pub(crate) struct Recorded {
    pub(crate) series: Vec<LiveSnapshot>,
    /// Why they were not written down to the end.
    pub(crate) problem: Option<String>,
}

/// Keeps every snapshot, and writes it down as it comes where there is a folder. A disk that is full does not end the run.
pub(crate) async fn record(mut shown: watch::Receiver<LiveSnapshot>, out: Option<PathBuf>) -> Recorded {
    let mut problem = None;
    let mut writer = out
        .as_deref()
        .and_then(|out| report::series::Writer::create(out).map_err(|e| problem = Some(e.to_string())).ok());
    let mut series: Vec<LiveSnapshot> = Vec::new();
    let (mut last_s, mut seen, mut stride) = (0.0, 0_usize, 1);
    while shown.changed().await.is_ok() {
        let mut snapshot = shown.borrow_and_update().clone();
        // The setup's many snapshots are for the eye only.
        if snapshot.elapsed_s <= last_s {
            continue;
        }
        last_s = snapshot.elapsed_s;
        snapshot.histograms.clear();
        if let Some(Err(error)) = writer.as_mut().map(|writer| writer.append(&snapshot)) {
            problem = Some(format!("{}: {error}", report::series::FILE));
            writer = None;
        }
        if seen.is_multiple_of(stride) {
            series.push(snapshot);
        }
        seen += 1;
        if series.len() > KEPT_MAX {
            stride *= 2;
            let mut number = 0;
            series.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
    }
    Recorded { series, problem }
}

/// Shows the run beside it. The returned future ends when the display has.
pub(crate) async fn show(ui: Ui, shown: watch::Receiver<LiveSnapshot>, interrupt: Tasks) {
    match ui {
        Ui::Tui => {
            let use_colour = std::env::var_os("NO_COLOR").is_none();
            let screen = tokio::task::spawn_blocking(move || {
                let ended = tui::show(shown, use_colour);
                if !matches!(ended, Ok(tui::Ended::RunOver)) {
                    interrupt.stop();
                }
                ended
            });
            if let Ok(Err(error)) = screen.await {
                errln!("chatctl: the terminal can't be used: {error}; try --ui plain");
            }
        }
        Ui::Plain => print_lines(shown, &interrupt).await,
        Ui::Auto | Ui::None => {}
    }
}

async fn print_lines(mut shown: watch::Receiver<LiveSnapshot>, interrupt: &Tasks) {
    let mut last = String::new();
    while shown.changed().await.is_ok() {
        let line = report::line::render(&shown.borrow_and_update());
        if shown.borrow().phase == RunPhase::Done {
            return;
        }
        if line != last {
            outln!("{line}");
            output::interrupt_unread(interrupt);
            last = line;
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
}
