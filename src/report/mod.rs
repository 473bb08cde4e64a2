//! The outcome of a run as files and text. One file per format, all from [`RunResult`].

pub mod compare;
pub mod hlog;
pub mod html;
pub mod json;
pub mod line;
pub mod series;
pub mod summary;
mod untrusted;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::loadgen::RunResult;
use crate::loadgen::result::SCHEMA_VERSION;
use crate::loadgen::scenario::check_name;
use crate::runtime::files;
pub use crate::telemetry::human::{counted, human_bytes, human_count, human_us, human_value};
use crate::telemetry::{LatencySummary, LiveSnapshot, printable};

pub use self::untrusted::cleaned;

/// The whole result, in the folder of a run.
pub const RESULT_FILE: &str = "result.json";

/// Files that a run leaves beside those of its latencies, which end in `.hlog`.
const FILES: [&str; 6] = [RESULT_FILE, "summary.txt", "report.html", "latency.csv", "series.csv", series::FILE];

/// Largest file of a result.
const RESULT_BYTES_MAX: u64 = 64 << 20;

/// Reads the result of a run from its folder, or from a file such as `result.json`.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read(path: &Path) -> io::Result<RunResult> {
    let path = if path.is_dir() { path.join(RESULT_FILE) } else { path.to_owned() };
    let named = |kind, error: &dyn std::fmt::Display| io::Error::new(kind, format!("{}: {error}", path.display()));
    let bytes = files::read_bytes(&path, RESULT_BYTES_MAX).map_err(|e| match e.kind() {
        kind @ io::ErrorKind::NotFound => named(kind, &"there is none; `chatctl load --out FOLDER` writes one"),
        kind => named(kind, &e),
    })?;
    let result = untrusted::parse_result(&bytes)
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
/// Names the files that could not be written. The others are.
pub fn write_all(folder: &Path, result: &RunResult, series: &[LiveSnapshot]) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    std::fs::create_dir_all(folder).map_err(|e| named(folder, e))?;
    let mut failed: Option<io::Error> = None;
    let mut write = |name: &str, content: io::Result<Vec<u8>>| {
        let path = folder.join(name);
        let written = content.and_then(|content| write_whole(&path, &content)).map_err(|e| named(&path, e));
        if let Err(error) = written {
            let text = failed.take().map_or_else(|| error.to_string(), |before| format!("{before}; {error}"));
            failed = Some(io::Error::new(error.kind(), text));
        }
    };
    write(RESULT_FILE, Ok(json::render(result).into_bytes()));
    write("summary.txt", Ok(summary::render(result, summary::Style::Plain).into_bytes()));
    write("report.html", Ok(html::render(result, series).into_bytes()));
    write("latency.csv", Ok(csv(result).into_bytes()));
    write("series.csv", Ok(series::csv(series).into_bytes()));
    for (path, histogram) in &result.histograms {
        let rendered =
            check_name(path.as_str()).map_err(io::Error::other).and_then(|()| hlog::render(path, histogram, result));
        let file = format!("{}.hlog", if rendered.is_ok() { path.as_str() } else { "histogram" });
        if rendered.is_ok() && result.intervals.rows().is_empty() && folder.join(&file).exists() {
            continue;
        }
        write(&file, rendered);
    }
    failed.map_or(Ok(()), Err)
}

/// Removes what an earlier run left in a folder, which need not be there: it would be taken for what comes of the next one.
///
/// # Errors
/// Names the file that can't be removed.
pub fn remove_old(folder: &Path) -> io::Result<()> {
    let named = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(|e| named(folder, e))?,
    };
    let is_of_run = |path: &Path| {
        FILES.iter().any(|name| path.file_name().is_some_and(|file| file == *name))
            || path.extension().is_some_and(|extension| extension == "hlog")
    };
    let old = entries.into_iter().map(|entry| entry.path()).filter(|path| is_of_run(path));
    old.into_iter().try_for_each(|path| remove_old_file(&path).map_err(|e| named(&path, e)))
}

/// Removes a file, or the one that a link leads to. What is not there, or is no file, is left alone.
///
/// # Errors
/// The file system's.
pub fn remove_old_file(path: &Path) -> io::Result<()> {
    let path = files::followed(path)?;
    let is_file = std::fs::metadata(&path).is_ok_and(|found| found.is_file());
    if is_file && !files::is_of_system(&path) { std::fs::remove_file(path) } else { Ok(()) }
}

/// Writes a file so that it is there in whole or not at all: half of a result is none. A link is followed. Where its folder takes
/// no file beside it, or its name is too long for that, it is written in place.
///
/// # Errors
/// The file system's.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let path = &files::followed(path)?;
    // A device or a pipe, such as /dev/stdout, can't be replaced; where that is a file, others write into it too.
    if files::is_of_system(path) || std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return OpenOptions::new().append(true).open(path)?.write_all(content);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = match File::create(&part) {
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidFilename) => {
            return std::fs::write(path, content);
        }
        created => created.and_then(|mut file| file.write_all(content)).and_then(|()| std::fs::rename(&part, path)),
    };
    if written.is_err() {
        // It may not be there at all.
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// The latencies of a run as CSV, one line per path; times in µs.
#[must_use]
pub fn csv(result: &RunResult) -> String {
    let mut out = "path,samples,min_us,mean_us,p50_us,p75_us,p90_us,p95_us,p99_us,p999_us,max_us\n".to_owned();
    for (path, s) in &result.latency {
        let LatencySummary { count, min_us, mean_us, p50_us, p75_us, p90_us, p95_us, p99_us, p999_us, max_us } = s;
        let path = csv_field(path.as_str());
        out.push_str(&format!(
            "{path},{count},{min_us},{mean_us:.1},{p50_us},{p75_us},{p90_us},{p95_us},{p99_us},{p999_us},{max_us}\n"
        ));
    }
    out
}

/// Text that stands in a column of CSV.
fn csv_field(text: &str) -> String {
    let text = printable(text);
    let is_plain = text.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c));
    // A program that opens the file takes a text that begins so for a formula.
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.into_owned() };
    if is_plain { text } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// Text that stands in HTML or XML. Characters that XML can't hold are shown by their codes.
fn escape(text: &str) -> String {
    let text = printable(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::LatencyPath;

    #[test]
    fn what_an_earlier_run_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let mut result = RunResult { schema: SCHEMA_VERSION, ..RunResult::default() };
        result.histograms.insert(LatencyPath::Ack, crate::telemetry::Latency::default());
        write_all(folder.path(), &result, &[]).expect("writes");
        std::fs::write(at("notes.txt"), "mine").expect("writes");
        std::fs::write(at("elsewhere"), "old").expect("writes");
        std::fs::remove_file(at(RESULT_FILE)).expect("is there");
        std::os::unix::fs::symlink(at("elsewhere"), at(RESULT_FILE)).expect("links");
        std::os::unix::fs::symlink("/dev/null", at(series::FILE)).expect("links");
        remove_old(folder.path()).expect("removes");
        let left = std::fs::read_dir(folder.path()).expect("is there").flatten().map(|entry| entry.file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["notes.txt", RESULT_FILE, series::FILE], "a link stays, without what it led to");
        assert!(!at("elsewhere").exists());
        write_whole(&at(RESULT_FILE), b"new").expect("writes");
        assert_eq!(std::fs::read_to_string(at("elsewhere")).expect("through the link"), "new");
        remove_old(&at("nowhere")).expect("nothing is there");
    }

    #[test]
    fn a_name_as_long_as_names_may_be_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("n".repeat(250));
        write_whole(&path, b"content").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("is there"), "content");
    }

    #[test]
    fn all_files_are_written_and_the_json_reads_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut result = RunResult { scenario: "tiny".to_owned(), schema: SCHEMA_VERSION, ..RunResult::default() };
        let mut latency = crate::telemetry::Latency::default();
        latency.record_us(1_500);
        result.histograms.insert(LatencyPath::Ack, latency);
        write_all(folder.path(), &result, &[]).expect("writes");
        let back = read(folder.path()).expect("reads back");
        assert_eq!(back.scenario, "tiny");
        assert_eq!(back.histograms[LatencyPath::Ack].count(), 1);
        let of_later = RunResult { schema: SCHEMA_VERSION + 1, ..back };
        std::fs::write(folder.path().join("later.json"), json::render(&of_later)).expect("writes");
        let refused = read(&folder.path().join("later.json")).expect_err("another form");
        assert!(
            refused.to_string().contains("later.json")
                && refused.to_string().ends_with(&format!("schema {}", SCHEMA_VERSION + 1)),
            "{refused}"
        );
        let hlog = std::fs::read_to_string(folder.path().join("ack.hlog")).expect("is there");
        assert!(hlog.contains("Tag=ack") && hlog.contains("HIST"), "{hlog}");
        let csv =
            csv(&RunResult { latency: [(LatencyPath::Ack, LatencySummary::default())].into(), ..RunResult::default() });
        let columns: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [11, 11], "{csv}");
    }
}
