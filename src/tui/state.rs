//! What the screen shows and what keys change.

use std::collections::VecDeque;

use crate::telemetry::{LatencyPath, LiveSnapshot, RunPhase};

/// Intervals that charts show.
const HISTORY: usize = 600;

/// The panels, in the order of their digits.
pub(super) const PANELS: [&str; 5] = ["Latency", "Servers", "Queues", "Errors", "Generator"];

/// One interval's points for the charts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Point {
    pub(super) at_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Everything on the screen.
pub(super) struct State {
    pub(super) snapshot: LiveSnapshot,
    /// The newest snapshot, while the shown one is frozen.
    newest: LiveSnapshot,
    pub(super) points: VecDeque<Point>,
    pub(super) panel: usize,
    pub(super) is_frozen: bool,
    pub(super) shows_help: bool,
    pub(super) use_colour: bool,
}

impl State {
    pub(super) fn new(use_colour: bool) -> Self {
        Self {
            snapshot: LiveSnapshot::default(),
            newest: LiveSnapshot::default(),
            points: VecDeque::new(),
            panel: 0,
            is_frozen: false,
            shows_help: false,
            use_colour,
        }
    }

    /// Takes the next snapshot.
    pub(super) fn take(&mut self, snapshot: LiveSnapshot) {
        if let Some(delivery) = snapshot.interval.get(LatencyPath::Delivery).filter(|s| s.count > 0) {
            if self.points.len() == HISTORY {
                self.points.pop_front();
            }
            self.points.push_back(Point {
                at_s: snapshot.elapsed_s,
                p50_ms: delivery.p50_us as f64 / 1e3,
                p99_ms: delivery.p99_us as f64 / 1e3,
            });
        }
        self.newest = snapshot;
        if !self.is_frozen {
            self.snapshot = self.newest.clone();
        }
    }

    pub(super) fn is_run_over(&self) -> bool {
        self.newest.phase == RunPhase::Done
    }

    pub(super) fn toggle_freeze(&mut self) {
        self.is_frozen = !self.is_frozen;
        self.snapshot = self.newest.clone();
    }

    pub(super) const fn toggle_help(&mut self) {
        self.shows_help = !self.shows_help;
    }

    pub(super) const fn close_help(&mut self) {
        self.shows_help = false;
    }

    pub(super) const fn next_panel(&mut self) {
        self.panel = (self.panel + 1) % PANELS.len();
    }

    pub(super) const fn previous_panel(&mut self) {
        self.panel = (self.panel + PANELS.len() - 1) % PANELS.len();
    }

    pub(super) const fn go_to(&mut self, panel: usize) {
        self.panel = panel;
    }
}
