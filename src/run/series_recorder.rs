//! The seconds of a run: kept in memory, and written down as they come.

use std::path::PathBuf;

use tokio::sync::watch;

use crate::report::series;
use crate::telemetry::LiveSnapshot;

/// Most seconds of a run that are kept in memory; of a longer one every second, every fourth, … is.
const KEPT_MAX: usize = 20_000;

/// The seconds of a run.
pub(super) struct Recorded {
    /// One snapshot per second, or per several in a long run.
    pub(super) series: Vec<LiveSnapshot>,
    /// Why they were not written down to the end.
    pub(super) problem: Option<String>,
}

/// Keeps every snapshot, and writes it down as it comes where there is a folder. A disk that is full does not end the run.
pub(super) async fn record(mut shown: watch::Receiver<LiveSnapshot>, out: Option<PathBuf>) -> Recorded {
    let mut problem = None;
    let mut writer =
        out.as_deref().and_then(|out| series::Writer::create(out).map_err(|e| problem = Some(e.to_string())).ok());
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
            problem = Some(format!("{}: {error}", series::FILE));
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
