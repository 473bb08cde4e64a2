//! How a run is shown while it goes on: the live screen, lines, or nothing.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chatctl::report::{self, counted, human_count};
use chatctl::run::{Notice, Observer, Silent};
use chatctl::runtime::Tasks;
use chatctl::telemetry::{LiveSnapshot, RunPhase};
use chatctl::tui;
use tokio::sync::watch;

use crate::cli::Ui;
use crate::exit::Failure;
use crate::output::{self, errln, outln};
use crate::table::limits_table;

/// How a run is shown here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Display {
    /// The live screen.
    Screen,
    /// One line per second.
    Lines,
    /// Not at all.
    Nothing,
}

impl Display {
    /// What was asked for; the screen by itself only where somebody can see it.
    ///
    /// # Errors
    /// When the screen was asked for, and there is no terminal to show it on.
    pub(crate) fn choose(asked: Ui) -> Result<Self, Failure> {
        let is_set = |name| std::env::var_os(name).is_some();
        let can_draw = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        let is_seen = std::io::stdout().is_terminal() && can_draw && !is_set("CI");
        Ok(match asked {
            Ui::Auto if is_seen && tui::can_show().is_ok() => Self::Screen,
            Ui::Auto | Ui::Plain => Self::Lines,
            Ui::Tui => {
                let refused = |why| Failure::usage(format!("--ui tui: {why}; use --ui plain, or run it in a terminal"));
                tui::can_show().map_err(refused)?;
                Self::Screen
            }
            Ui::None => Self::Nothing,
        })
    }

    /// Its observer, which interrupts a run that nobody looks at any more.
    pub(crate) fn observer(self, interrupt: &Tasks) -> Arc<dyn Observer> {
        match self {
            Self::Screen => Arc::new(Screen { interrupt: interrupt.clone() }),
            Self::Lines => Arc::new(Lines { interrupt: interrupt.clone() }),
            Self::Nothing => Arc::new(Silent),
        }
    }
}

/// The live screen.
struct Screen {
    interrupt: Tasks,
}

#[async_trait]
impl Observer for Screen {
    /// There is no screen yet, and what is printed would be lost under it.
    fn notice(&self, _: Notice) {}

    async fn live(&self, snapshots: watch::Receiver<LiveSnapshot>) {
        let use_colour = std::env::var_os("NO_COLOR").is_none();
        let interrupt = self.interrupt.clone();
        let screen = Tasks::block(move || {
            let ended = tui::show(snapshots, use_colour);
            if !matches!(ended, Ok(tui::Ended::RunOver)) {
                interrupt.stop();
            }
            ended
        });
        if let Some(Err(error)) = screen.await {
            errln!("chatctl: the terminal can't be used: {error}; try --ui plain");
        }
    }
}

/// Lines on standard output.
struct Lines {
    interrupt: Tasks,
}

#[async_trait]
impl Observer for Lines {
    fn notice(&self, notice: Notice) {
        outln!("{}", text(&notice));
    }

    async fn live(&self, mut snapshots: watch::Receiver<LiveSnapshot>) {
        let mut last = String::new();
        while snapshots.changed().await.is_ok() {
            let line = report::line::render(&snapshots.borrow_and_update());
            if snapshots.borrow().phase == RunPhase::Done {
                return;
            }
            if line != last {
                outln!("{line}");
                output::interrupt_unread(&self.interrupt);
                last = line;
            }
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
    }
}

/// A notice in words.
fn text(notice: &Notice) -> String {
    match notice {
        Notice::UsersLowered { asked, fit, connections, heartbeat, connect_over } => format!(
            "fits       {} of {} fit on this machine (`chatctl doctor --connections {connections} --heartbeat {}s \
             --connect-over {}s` says why)",
            human_count((*fit).into()),
            counted((*asked).into(), "user"),
            heartbeat.as_secs(),
            connect_over.as_secs()
        ),
        Notice::ServersRaised { chat_servers, connections_each } => {
            let servers = counted(*chat_servers as u64, "chat server");
            let each = counted(*connections_each, "connection");
            format!("servers    {servers}, since one process may hold {each}")
        }
        Notice::Limits { limits, connections } => limits_table(limits, *connections),
        Notice::Stack(line) => line.clone(),
    }
}
