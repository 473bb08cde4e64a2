//! `.hlog`: one histogram in the `HdrHistogram` interval log format (V2, deflated), for its tools. Values are µs.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::loadgen::RunResult;
use crate::telemetry::{Latency, printable};

/// One path's histogram over the whole run, tagged with the path's name.
///
/// # Errors
/// When the histogram can't be serialized.
pub fn render(path: &str, latency: &Latency, result: &RunResult) -> io::Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Debug| io::Error::other(format!("histogram of {path}: {e:?}"));
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("chatctl {} scenario {}", printable(&result.version), printable(&result.scenario)))
        .with_start_time(UNIX_EPOCH.checked_add(Duration::from_millis(result.started_at_ms)).unwrap_or(UNIX_EPOCH))
        .begin_log_with(&mut out, &mut serializer)
        .map_err(|e| failed(&e))?;
    let duration = Duration::try_from_secs_f64(result.duration_s).unwrap_or_default();
    writer.write_histogram(latency.histogram(), Duration::ZERO, duration, Tag::new(path)).map_err(|e| failed(&e))?;
    Ok(out)
}
