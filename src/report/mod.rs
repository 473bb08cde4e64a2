//! The outcome of a run as files and text. One file per format, all from [`RunResult`].

pub mod compare;
pub mod hlog;
pub mod html;
pub mod json;
pub mod line;
pub mod series;
pub mod summary;

use std::io;
use std::path::Path;

use crate::loadgen::RunResult;
use crate::loadgen::result::SCHEMA_VERSION;
pub use crate::telemetry::latency::human_us;
use crate::telemetry::{LatencySummary, LiveSnapshot};

/// Reads the result of a run from its folder, or from a file such as `result.json`.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read(path: &Path) -> io::Result<RunResult> {
    let path = if path.is_dir() { path.join("result.json") } else { path.to_owned() };
    let named = |kind, error: &dyn std::fmt::Display| io::Error::new(kind, format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| named(e.kind(), &e))?;
    let result: RunResult = serde_json::from_str(&text)
        .map_err(|e| named(io::ErrorKind::InvalidData, &format!("not a result of chatctl load: {e}")))?;
    if result.schema != SCHEMA_VERSION {
        let problem = format!("schema {}: this chatctl reads schema {SCHEMA_VERSION}", result.schema);
        return Err(named(io::ErrorKind::InvalidData, &problem));
    }
    Ok(result)
}

/// Writes everything that is made of a run into a folder, which is made if need be: `result.json`, `summary.txt`,
/// `report.html`, `latency.csv`, `series.csv`, and one `.hlog` per path, tagged with it.
///
/// # Errors
/// Names the file.
pub fn write_all(folder: &Path, result: &RunResult, series: &[LiveSnapshot]) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    std::fs::create_dir_all(folder).map_err(|e| named(folder, e))?;
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(|e| named(&path, e))
    };
    write("result.json", json::render(result).as_bytes())?;
    write("summary.txt", summary::render(result, summary::Style::Plain).as_bytes())?;
    write("report.html", html::render(result, series).as_bytes())?;
    write("latency.csv", csv(result).as_bytes())?;
    write("series.csv", series::csv(series).as_bytes())?;
    for (path, histogram) in &result.histograms {
        write(&format!("{path}.hlog"), &hlog::render(path, histogram, result)?)?;
    }
    Ok(())
}

/// The latencies of a run as CSV, one line per path; times in µs.
#[must_use]
pub fn csv(result: &RunResult) -> String {
    let mut out = "path,samples,min_us,mean_us,p50_us,p90_us,p99_us,p999_us,max_us\n".to_owned();
    for (path, s) in &result.latency {
        let LatencySummary { count, min_us, mean_us, p50_us, p90_us, p99_us, p999_us, max_us } = s;
        out.push_str(&format!("{path},{count},{min_us},{mean_us:.1},{p50_us},{p90_us},{p99_us},{p999_us},{max_us}\n"));
    }
    out
}

/// Bytes with a unit that suits them.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// A count with spaces between the thousands.
#[must_use]
pub fn human_count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!(
            [0, 999, 1_500, 250_000, 12_345_678].map(human_us),
            ["0 µs", "999 µs", "1.5 ms", "250 ms", "12.35 s"]
        );
        assert_eq!([5, 2_048, 3 << 20].map(human_bytes), ["5 B", "2.0 KiB", "3.0 MiB"]);
        assert_eq!([7, 1_000, 1_234_567].map(human_count), ["7", "1 000", "1 234 567"]);
    }

    #[test]
    fn all_files_are_written_and_the_json_reads_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut result = RunResult { scenario: "tiny".to_owned(), schema: SCHEMA_VERSION, ..RunResult::default() };
        let mut latency = crate::telemetry::Latency::default();
        latency.record_us(1_500);
        result.histograms.insert("ack".to_owned(), latency);
        write_all(folder.path(), &result, &[]).expect("writes");
        let back = read(folder.path()).expect("reads back");
        assert_eq!(back.scenario, "tiny");
        assert_eq!(back.histograms["ack"].count(), 1);
        let of_later = RunResult { schema: SCHEMA_VERSION + 1, ..back };
        std::fs::write(folder.path().join("later.json"), json::render(&of_later)).expect("writes");
        let refused = read(&folder.path().join("later.json")).expect_err("another form");
        assert!(refused.to_string().contains("later.json: schema 2"), "{refused}");
        let hlog = std::fs::read_to_string(folder.path().join("ack.hlog")).expect("is there");
        assert!(hlog.contains("Tag=ack") && hlog.contains("HIST"), "{hlog}");
    }
}
