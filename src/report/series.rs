//! `series.jsonl`: what a run looked like, second by second, as one [`LiveSnapshot`] per line; and `series.csv` from it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use super::untrusted;
use crate::telemetry::live::ServerSnapshot;
use crate::telemetry::{LatencyPath, LiveSnapshot};

/// The file's name in the folder of a run.
pub const FILE: &str = "series.jsonl";

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

/// Reads a run's snapshots; a last line that was cut short is left out.
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
    let lines = BufReader::new(file).lines().collect::<io::Result<Vec<_>>>().map_err(|e| named(format!(": {e}")))?;
    let mut snapshots = Vec::with_capacity(lines.len());
    for (number, line) in lines.iter().enumerate() {
        match untrusted::parse(line.as_bytes()) {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(_) if number + 1 == lines.len() && number > 0 => {}
            Err(error) => return Err(named(format!(":{}: not a snapshot of a run: {error}", number + 1))),
        }
    }
    Ok(snapshots)
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
