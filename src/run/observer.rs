//! What a run tells the one who started it. The room itself prints nothing.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::loadgen::Scenario;
use crate::loadgen::capacity::Cause;
use crate::loadgen::result::RunResult;
use crate::report::compare::Side;
use crate::run::Error;
use crate::run::capacity::Trial;
use crate::runtime::limits::Limit;
use crate::telemetry::LiveSnapshot;

/// Who is told what happens in a run.
#[async_trait]
pub trait Observer: Send + Sync {
    /// Something was settled before the load begins.
    fn notice(&self, notice: Notice);

    /// Shows the run's snapshots as they come. Ends when there are no more, or when they are shown no longer; the run waits
    /// for it.
    async fn live(&self, snapshots: watch::Receiver<LiveSnapshot>);
}

/// An observer that shows nothing.
pub struct Silent;

#[async_trait]
impl Observer for Silent {
    fn notice(&self, _: Notice) {}

    async fn live(&self, _: watch::Receiver<LiveSnapshot>) {}
}

/// Something that is settled before the load begins.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Fewer users than the scenario asks for fit on this machine.
    UsersLowered {
        /// Users of the scenario.
        asked: u32,
        /// Users that fit.
        fit: u32,
        /// Connections that the scenario asks for.
        connections: u64,
        /// Time between two heartbeats of a connection.
        heartbeat: Duration,
        /// Time over which all of them connect.
        connect_over: Duration,
    },
    /// More chat servers than the scenario asks for, since the connections do not fit into its own.
    ServersRaised {
        /// Chat servers.
        chat_servers: usize,
        /// Connections that one process may hold.
        connections_each: u64,
    },
    /// What the machine allows, before a run with many connections.
    Limits {
        /// Each limit.
        limits: Vec<Limit>,
        /// Connections of the run.
        connections: u64,
    },
    /// A line of the supervisor of a stack of processes.
    Stack(String),
}

/// Who is told how a set of runs goes on.
pub trait ProgressObserver: Sync {
    /// Something happened between the runs.
    fn progress(&self, progress: Progress<'_>);
}

/// What happens in a set of runs.
#[derive(Debug)]
pub enum Progress<'a> {
    /// There is a baseline to compare with.
    BaselineFound {
        /// Its folder.
        folder: &'a Path,
        /// Runs that it was made of.
        runs: u32,
        /// Version of the build that made it.
        version: &'a str,
    },
    /// A baseline is made.
    BaselineBegins {
        /// Its folder.
        folder: &'a Path,
        /// Runs that it will be made of.
        runs: u32,
    },
    /// A run begins.
    RunBegins(RunLabel),
    /// It came to a verdict.
    RunEnds(&'a RunResult),
    /// It could not be done.
    RunFailed(&'a Error),
    /// It could not be done or was interrupted, and no other run is tried.
    RunAborted,
    /// A run of this side broke a guarantee: no more are needed.
    GuaranteeBroken(Side),
    /// The pairs so far leave something open.
    MorePairs {
        /// Pairs so far.
        pairs: u32,
        /// Pairs that follow.
        more: u32,
    },
    /// A trial of a capacity search begins.
    TrialBegins {
        /// The first is 1.
        number: u32,
        /// In messages per second.
        rate: f64,
    },
    /// It came to a verdict. Without a cause it held, or was interrupted.
    TrialEnds(&'a Trial, Option<&'a Cause>),
    /// It could not be done.
    TrialFailed,
    /// A run for constants begins.
    CalibrationBegins(&'a Scenario),
}

/// Which run of a set it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunLabel {
    /// The first of a program, which reads it from the disk; its side, where there are two.
    WarmUp(Option<Side>),
    /// One half of a pair.
    Pair {
        /// The first is 1.
        number: u32,
        /// Pairs that are planned.
        pairs: u32,
        /// Whose build it is.
        side: Side,
    },
    /// One that a baseline is made of.
    Baseline {
        /// The first is 1.
        number: u32,
        /// Runs that are planned.
        runs: u32,
    },
}

impl RunLabel {
    /// Whether it is a run of the base, or for one.
    #[must_use]
    pub const fn is_base(self) -> bool {
        match self {
            Self::Baseline { .. } => true,
            Self::WarmUp(side) => matches!(side, Some(Side::Base)),
            Self::Pair { side, .. } => matches!(side, Side::Base),
        }
    }
}
