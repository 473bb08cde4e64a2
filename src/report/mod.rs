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
pub use crate::telemetry::human::{human_bytes, human_count, human_us, human_value};
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
        let problem =
            format!("not a result of schema {SCHEMA_VERSION}, which this chatctl reads: schema {}", result.schema);
        return Err(named(io::ErrorKind::InvalidData, &problem));
    }
    Ok(result)
}

/// Writes everything that is made of a run into a folder, which is made if need be: `result.json`, `summary.txt`,
/// `report.html`, `latency.csv`, `series.csv`, and one `.hlog` per path, tagged with it. A result that was read back has no
/// seconds: `.hlog` files that are there are left alone.
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
        let file = format!("{path}.hlog");
        if result.intervals.rows().is_empty() && folder.join(&file).exists() {
            continue;
        }
        write(&file, &hlog::render(path, histogram, result)?)?;
    }
    Ok(())
}

/// The latencies of a run as CSV, one line per path; times in µs.
#[must_use]
pub fn csv(result: &RunResult) -> String {
    let mut out = "path,samples,min_us,mean_us,p50_us,p75_us,p90_us,p95_us,p99_us,p999_us,max_us\n".to_owned();
    for (path, s) in &result.latency {
        let LatencySummary { count, min_us, mean_us, p50_us, p75_us, p90_us, p95_us, p99_us, p999_us, max_us } = s;
        out.push_str(&format!(
            "{path},{count},{min_us},{mean_us:.1},{p50_us},{p75_us},{p90_us},{p95_us},{p99_us},{p999_us},{max_us}\n"
        ));
    }
    out
}

/// Text that stands in HTML or XML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(refused.to_string().contains("later.json") && refused.to_string().ends_with("schema 2"), "{refused}");
        let hlog = std::fs::read_to_string(folder.path().join("ack.hlog")).expect("is there");
        assert!(hlog.contains("Tag=ack") && hlog.contains("HIST"), "{hlog}");
        let csv =
            csv(&RunResult { latency: [("ack".to_owned(), LatencySummary::default())].into(), ..RunResult::default() });
        let columns: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [11, 11], "{csv}");
    }
}
