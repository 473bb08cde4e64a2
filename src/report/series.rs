//! `series.jsonl`: what a run looked like, second by second, as one [`LiveSnapshot`] per line; and `series.csv` from it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::untrusted;
use crate::telemetry::live::ServerSnapshot;
use crate::telemetry::{LatencyPath, LiveSnapshot};

/// The file's name in the folder of a run.
pub const FILE: &str = "series.jsonl";

/// Most seconds of a run that are kept in memory.
pub const KEPT_MAX: usize = 20_000;

/// Longest line. That of a stack with a hundred servers has some 100 KiB.
const LINE_BYTES_MAX: usize = 4 << 20;

/// A series of limited length: of a longer one every second element is kept, then every fourth, and so on.
pub struct Thinned<T> {
    kept: Vec<T>,
    /// Most elements that are kept.
    most: usize,
    /// Elements so far.
    seen: usize,
    /// One of so many is kept.
    stride: usize,
}

impl<T> Thinned<T> {
    /// An empty one of which at most so many elements are kept.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { kept: Vec::new(), most, seen: 0, stride: 1 }
    }

    /// Appends an element.
    pub fn push(&mut self, element: T) {
        if self.seen.is_multiple_of(self.stride) {
            self.kept.push(element);
        }
        self.seen += 1;
        if self.kept.len() > self.most {
            self.stride *= 2;
            let mut number = 0;
            self.kept.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
    }

    /// What was kept, in order.
    #[must_use]
    pub fn into_kept(self) -> Vec<T> {
        self.kept
    }
}

/// Writes snapshots as they come, so that a run that is cut short leaves what there was.
pub struct Writer {
    out: BufWriter<File>,
    /// Events that stand in earlier lines.
    written_events: Vec<String>,
}

impl Writer {
    /// Makes the file in a folder.
    ///
    /// # Errors
    /// Names the file.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let file = File::create(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(Self { out: BufWriter::new(file), written_events: Vec::new() })
    }

    /// Appends a snapshot; of its events those that are new.
    ///
    /// # Errors
    /// The file system's.
    pub fn append(&mut self, snapshot: &LiveSnapshot) -> io::Result<()> {
        let mut line = snapshot.clone();
        // The list is capped at its front: what the earlier one ended with may have moved.
        let known = self.written_events.iter().rev().take(1).collect::<Vec<_>>();
        let from = known.first().and_then(|last| line.events.iter().rposition(|e| e == *last)).map_or(0, |at| at + 1);
        self.written_events.clone_from(&line.events);
        line.events.drain(..from);
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }
}

/// Reads a run's snapshots, of a long run as many as it kept in memory itself; a last line that was cut short is left out.
///
/// # Errors
/// Names the file, and the line that is not a snapshot.
pub fn read(folder: &Path) -> io::Result<Vec<LiveSnapshot>> {
    let path = folder.join(FILE);
    let named = |text: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}{text}", path.display()));
    let file = File::open(&path).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("{}: {e}; give the folder of a run, as `chatctl load --out` made it", path.display()),
        )
    })?;
    if !file.metadata()?.is_file() {
        return Err(named(": not a file".to_owned()));
    }
    read_lines(BufReader::new(file), KEPT_MAX).map_err(named)
}

/// The snapshots of a file's lines, at most so many. The error is what stands behind the file's name.
fn read_lines(mut file: impl BufRead, kept_max: usize) -> Result<Vec<LiveSnapshot>, String> {
    let mut series = Thinned::new(kept_max);
    let (mut number, mut line) = (0, Vec::new());
    // Of the line before, which may be no snapshot where it is the last one.
    let mut problem = None;
    loop {
        line.clear();
        let read = file.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line);
        if read.map_err(|e| format!(": {e}"))? == 0 {
            return problem.filter(|_| number == 1).map_or_else(|| Ok(series.into_kept()), Err);
        }
        if let Some(problem) = problem {
            return Err(problem);
        }
        number += 1;
        if line.len() > LINE_BYTES_MAX {
            return Err(format!(":{number}: longer than any snapshot of a run"));
        }
        match untrusted::parse(&line) {
            Ok(snapshot) => {
                problem = None;
                series.push(snapshot);
            }
            Err(error) => problem = Some(format!(":{number}: not a snapshot of a run: {error}")),
        }
    }
}

/// Columns of `series.csv`.
const CSV_HEAD: &str = "elapsed_s,phase,connections_wanted,connections,due_per_s,acked_per_s,delivered_per_s,\
    reconnects_per_s,delivery_count,delivery_p50_us,delivery_p75_us,delivery_p90_us,delivery_p95_us,delivery_p99_us,\
    delivery_p999_us,delivery_max_us,ack_p50_us,ack_p99_us,lag_records,lag_s,generator_late_p50_us,generator_late_p99_us,\
    generator_cores,machine_cores,foreign_cores,steal_cores,violations";

/// The series as CSV: one line per second of the load. Times as the names say.
#[must_use]
pub fn csv(series: &[LiveSnapshot]) -> String {
    let mut out = format!("{CSV_HEAD}\n");
    for s in series.iter().filter(|s| s.elapsed_s > 0.0) {
        let delivery = s.interval.get(LatencyPath::Delivery).copied().unwrap_or_default();
        let ack = s.interval.get(LatencyPath::Ack).copied().unwrap_or_default();
        let machine = s.machine.unwrap_or_default();
        let foreign = machine.foreign_cores.map(|cores| format!("{cores:.2}")).unwrap_or_default();
        let lag_records = lag_records(s);
        let _ = writeln!(
            out,
            "{:.3},{},{},{},{:.1},{:.1},{:.1},{:.1},{},{},{},{},{},{},{},{},{},{},{lag_records},{:.3},{},{},{:.2},{:.2},\
             {foreign},{:.2},{}",
            s.elapsed_s,
            s.phase,
            s.connections_wanted,
            s.connections,
            s.rates.intended,
            s.rates.acked,
            s.rates.delivered,
            s.rates.reconnects,
            delivery.count,
            delivery.p50_us,
            delivery.p75_us,
            delivery.p90_us,
            delivery.p95_us,
            delivery.p99_us,
            delivery.p999_us,
            delivery.max_us,
            ack.p50_us,
            ack.p99_us,
            lag_s(s),
            s.generator_lag_us_p50,
            s.generator_lag_us_p99,
            s.generator_cores,
            machine.used_cores,
            machine.steal_cores,
            s.violations.values().sum::<u64>(),
        );
    }
    out
}

/// The servers whose lag is on the way of a message to its recipients. The push server gathers, and is behind by that.
fn on_the_way(snapshot: &LiveSnapshot) -> impl Iterator<Item = &ServerSnapshot> {
    snapshot.servers.values().filter(|server| server.role == "chat")
}

/// Records that chat servers have not read.
#[must_use]
pub fn lag_records(snapshot: &LiveSnapshot) -> u64 {
    on_the_way(snapshot).map(|server| server.lag_records).sum()
}

/// Age of the oldest record that no chat server has read yet, in seconds.
#[must_use]
pub fn lag_s(snapshot: &LiveSnapshot) -> f64 {
    on_the_way(snapshot).map(|server| server.lag_s).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{PhaseKind, RunPhase};

    fn snapshot(elapsed_s: f64, events: &[&str]) -> LiveSnapshot {
        let events = events.iter().map(|&e| e.to_owned()).collect();
        LiveSnapshot { elapsed_s, phase: RunPhase::Load(PhaseKind::Steady), events, ..LiveSnapshot::default() }
    }

    #[test]
    fn a_series_reads_back_with_each_event_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(folder.path()).expect("makes");
        writer.append(&snapshot(1.0, &["a"])).expect("writes");
        writer.append(&snapshot(2.0, &["a", "b"])).expect("writes");
        writer.append(&snapshot(3.0, &["b", "c"])).expect("writes");
        let events = |series: &[LiveSnapshot]| series.iter().map(|s| s.events.join("")).collect::<Vec<_>>();
        let series = read(folder.path()).expect("reads");
        assert_eq!(events(&series), ["a", "b", "c"]);
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).expect("is there");
        std::fs::write(&path, &text[..text.len() - 10]).expect("writes");
        assert_eq!(read(folder.path()).expect("a cut line is left out").len(), 2);
        std::fs::write(&path, "{}\nno\n{}\n").expect("writes");
        assert!(read(folder.path()).expect_err("not a series").to_string().contains("series.jsonl:1"));
        std::fs::write(&path, "no").expect("writes");
        assert!(read(folder.path()).expect_err("nothing else").to_string().contains("series.jsonl:1"));
    }

    #[test]
    fn a_long_series_is_kept_evenly_and_within_its_limit() {
        let mut series = Thinned::new(4);
        for n in 0..20 {
            series.push(n);
            assert!(series.kept.len() <= 4 && series.kept[0] == 0, "{:?}", series.kept);
        }
        assert_eq!(series.into_kept(), [0, 8, 16]);
    }

    #[test]
    fn a_file_of_any_length_takes_no_more_memory_than_its_run_did() {
        let lines = (0..20).map(|n| serde_json::to_string(&snapshot(f64::from(n), &[])).expect("plain data") + "\n");
        let read = read_lines(lines.collect::<String>().as_bytes(), 4).expect("reads");
        assert_eq!(read.iter().map(|s| s.elapsed_s).collect::<Vec<_>>(), [0.0, 8.0, 16.0]);
        let endless = BufReader::new(io::repeat(b' '));
        assert_eq!(read_lines(endless, 4).expect_err("one line"), ":1: longer than any snapshot of a run");
    }

    #[test]
    fn the_lag_is_that_of_chat_servers() {
        let mut snapshot = snapshot(1.0, &[]);
        for (name, role, lag) in [("chat-1", "chat", 3), ("chat-2", "chat", 4), ("push-1", "push", 90)] {
            let server = ServerSnapshot {
                role: role.to_owned(),
                lag_records: lag,
                lag_s: lag as f64,
                ..ServerSnapshot::default()
            };
            snapshot.servers.insert(name.to_owned(), server);
        }
        assert_eq!((lag_records(&snapshot), lag_s(&snapshot)), (7, 4.0));
    }

    #[test]
    fn every_row_of_the_csv_has_all_columns() {
        let text = csv(&[snapshot(0.0, &[]), snapshot(1.0, &[])]);
        let columns: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [27, 27], "{text}");
    }
}
