//! The seconds of a run: kept in memory, and written down as they come.

use std::path::PathBuf;

use tokio::sync::watch;

use crate::report::series::{self, Thinned};
use crate::telemetry::LiveSnapshot;

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
    let mut series = Thinned::new(series::KEPT_MAX);
    let mut last_s = 0.0;
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
        series.push(snapshot);
    }
    Recorded { series: series.into_kept(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn snapshots_of_the_setup_are_not_recorded_and_the_rest_is_written_as_it_comes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (live, shown) = watch::channel(LiveSnapshot::default());
        let recorded = record(shown, Some(folder.path().to_owned()));
        let run = async {
            for elapsed_s in [0.0, 0.0, 1.0, 2.0] {
                live.send_replace(LiveSnapshot { elapsed_s, ..LiveSnapshot::default() });
                // A snapshot that is not read before the next one comes is not seen.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
            drop(live);
        };
        let (recorded, ()) = tokio::join!(recorded, run);
        assert_eq!(recorded.series.iter().map(|s| s.elapsed_s).collect::<Vec<_>>(), [1.0, 2.0]);
        assert_eq!(recorded.problem, None);
        assert_eq!(series::read(folder.path()).expect("is written").len(), 2);
    }

    #[tokio::test]
    async fn a_folder_that_can_not_be_written_does_not_end_the_record() {
        let (live, shown) = watch::channel(LiveSnapshot::default());
        live.send_replace(LiveSnapshot { elapsed_s: 1.0, ..LiveSnapshot::default() });
        drop(live);
        let recorded = record(shown, Some(PathBuf::from("/proc/nowhere"))).await;
        assert!(recorded.problem.is_some());
        assert_eq!(recorded.series.len(), 1);
    }
}
