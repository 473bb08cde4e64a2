//! `.hlog`: histograms in the `HdrHistogram` interval log format (V2, deflated), for its tools: one line per second. Values
//! are µs.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::loadgen::RunResult;
use crate::telemetry::{Latency, PathName, printable};

/// One path's histograms, tagged with the path's name, by the seconds in which they were recorded; together they are the one
/// of the whole run. Where seconds are not known there is one line.
///
/// # Errors
/// When the histogram can't be serialized.
pub fn render(path: &PathName, latency: &Latency, result: &RunResult) -> io::Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Debug| io::Error::other(format!("histogram of {path}: {e:?}"));
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("chatctl {} scenario {}", printable(&result.version), printable(&result.scenario)))
        .with_start_time(UNIX_EPOCH.checked_add(Duration::from_millis(result.started_at_ms)).unwrap_or(UNIX_EPOCH))
        .begin_log_with(&mut out, &mut serializer)
        .map_err(|e| failed(&e))?;
    let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or_default();
    let rows = result.intervals.rows().iter();
    let rows: Vec<_> = rows.filter_map(|row| Some((row, row.latency(path)?))).collect();
    if rows.is_empty() {
        let duration = seconds(result.duration_s);
        writer
            .write_histogram(latency.histogram(), Duration::ZERO, duration, Tag::new(path.as_str()))
            .map_err(|e| failed(&e))?;
    }
    for (row, latency) in rows {
        let (from, length) = (seconds(row.from_s), seconds(row.to_s - row.from_s));
        writer.write_histogram(latency.histogram(), from, length, Tag::new(path.as_str())).map_err(|e| failed(&e))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{ByPath, LatencyPath};

    #[test]
    fn there_is_a_line_for_each_second_with_samples_and_one_where_seconds_are_not_known() {
        let mut latency = Latency::default();
        latency.record_us(700);
        let mut result = RunResult { duration_s: 3.5, ..RunResult::default() };
        let lines = |result: &RunResult| {
            let text =
                String::from_utf8(render(&LatencyPath::Ack.into(), &latency, result).expect("writes")).expect("text");
            let tagged = text.lines().filter(|line| line.starts_with("Tag=ack,"));
            tagged.map(|line| line.split(',').skip(1).take(2).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(lines(&result), ["0.000 3.500"]);
        let row = ByPath::from([(LatencyPath::Ack, latency.clone())]);
        result.intervals.push(1.0, None, &row);
        result.intervals.push(2.0, None, &ByPath::new());
        result.intervals.push(3.5, None, &row);
        assert_eq!(lines(&result), ["0.000 1.000", "2.000 1.500"]);
    }
}
