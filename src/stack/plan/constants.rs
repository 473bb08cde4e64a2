//! What one connection, beat, message and record cost: figures with their sources and errors.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::runtime::files::{self, SETTINGS_BYTES_MAX};

/// A figure with what is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The value, in the unit that the field's name says.
    pub value: f64,
    /// How wrong it may be, as a share: 0.2 is ±20 %.
    pub error: f64,
    /// Where it comes from.
    pub source: String,
}

impl Figure {
    /// A figure.
    #[must_use]
    pub fn new(value: f64, error: f64, source: &str) -> Self {
        Self { value, error, source: source.to_owned() }
    }
}

/// A figure of [`Constants`] with its names.
#[derive(Debug, Clone, Copy)]
pub struct Constant<'a> {
    /// Its field, by which lines of a plan name it.
    pub field: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Unit of its value.
    pub unit: &'static str,
    /// Its value.
    pub figure: &'a Figure,
}

/// Defines the constants: each has a field, what it is, a unit, a value, an error and a source.
macro_rules! constants {
    ($($field:ident: $what:literal, $unit:literal, $value:literal, $error:literal, $source:literal;)*) => {
        /// What one connection, beat, message and record cost. Measured by `chatctl plan --calibrate`, or these.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Constants {
            $(#[doc = $what] pub $field: Figure,)*
        }

        impl Default for Constants {
            fn default() -> Self {
                Self { $($field: Figure::new($value, $error, $source),)* }
            }
        }

        impl Constants {
            /// All of them.
            #[must_use]
            pub fn list(&self) -> Vec<Constant<'_>> {
                vec![$(Constant { field: stringify!($field), what: $what, unit: $unit, figure: &self.$field },)*]
            }
        }
    };
}

constants! {
    server_bytes_per_connection: "server memory per connection", "bytes", 2_480.0, 0.15,
        "docs/performance.md: cargo bench --bench connections";
    kernel_bytes_per_connection: "kernel memory per connection's end", "bytes", 5_000.0, 0.15,
        "docs/performance.md: 10.0 KiB for both ends, chatctl load scenarios/idle-1m.yaml";
    gateway_bytes_per_tunnel: "gateway memory per tunnel, kernel not", "bytes", 2_000.0, 1.0,
        "assumption: not measured; a tunnel that is idle has no buffers";
    beat_us_at_1000: "CPU per heartbeat, 1,000/s a server", "µs", 22.0, 0.3,
        "assumption: of earlier runs on embedded engines, without a command in docs/performance.md";
    beat_us_at_16000: "CPU per heartbeat, 16,000/s a server", "µs", 5.9, 0.3,
        "docs/performance.md: 8,000 users, heartbeat: 500ms against 5s, --workers 1";
    presence_us_per_beat: "presence server's CPU per heartbeat", "µs", 0.53, 0.3,
        "docs/performance.md: 0.8 % of a processor at 15,000/s, 60,000 users, heartbeat: 4s, real engines";
    delivery_us_at_6: "CPU per delivery, 6 frames/s a connection", "µs", 29.0, 0.5,
        "docs/performance.md: chatctl load scenarios/group-fanout.yaml, connects and heartbeats in it";
    delivery_us_at_30: "CPU per delivery, 30 frames/s a connection", "µs", 13.3, 0.3,
        "docs/performance.md: the same with rate: 300";
    delivery_us_at_200: "CPU per delivery, 200 frames/s a connection", "µs", 8.9, 0.3,
        "docs/performance.md: chatctl load scenarios/fanout-saturation.yaml with rate: 400";
    delivery_us_at_600: "CPU per delivery, 600 frames/s a connection", "µs", 1.8, 0.3,
        "docs/performance.md: chatctl capacity scenarios/group-fanout.yaml";
    cpu_s_per_million_messages: "CPU per million one-to-one messages", "s", 180.0, 0.4,
        "chatctl load scenarios/one-to-one.yaml, line stack: 300/s on three servers";
    chat_us_per_connect: "chat server's CPU per connect", "µs", 370.0, 0.3,
        "docs/performance.md: idle-1m.yaml with users: 100000, made and kept for a minute";
    chat_us_per_record: "chat server's CPU per record it fetches", "µs", 2.0, 1.0,
        "assumption: not measured; most records are of other servers' users, and are dropped";
    gateway_us_per_frame: "gateway's CPU per frame", "µs", 34.0, 0.5,
        "docs/performance.md: real engines, quickstart.yaml, 5 frames/s a connection, its HTTP in it";
    gateway_us_per_beat: "gateway's CPU per heartbeat", "µs", 6.0, 1.0,
        "assumption: not measured; as a chat server at 16,000/s, which reads it as well";
    api_us_per_request: "API server's CPU per request", "µs", 150.0, 1.0,
        "assumption: not measured by itself";
    login_ms: "API server's CPU per password", "ms", 20.0, 0.5,
        "assumption: argon2id of 19 MiB and two passes on one core";
    push_us_per_recipient: "push server's CPU per recipient", "µs", 20.0, 1.0,
        "assumption: not measured";
    connects_per_user_day: "connects of a user per day", "", 10.0, 1.0,
        "assumption: a phone that sleeps and changes its network";
    syncs_per_connect: "conversations with news at a connect", "", 2.0, 1.0,
        "assumption; each is a sync";
    offline_share: "recipients who are not connected", "", 0.3, 0.5,
        "assumption: their messages go through the inbox";
    frame_bytes: "frame around a body", "bytes", 210.0, 0.1,
        "docs/protocol.md: a `message` frame without its body";
    row_bytes: "row around a body", "bytes", 120.0, 0.3,
        "assumption: keys, uuid, sender, times and Cassandra's cell headers, before compression";
    kafka_records_per_core: "Kafka writes per core and second", "", 19_500.0, 0.3,
        "measured on two cores before the start of the project: 39,000/s, acknowledged by one broker";
    kafka_fetched_per_core: "Kafka fetched records per core and second", "", 200_000.0, 1.0,
        "assumption: not measured; ten times the writes, since a fetch copies whole batches";
    kafka_record_bytes: "Kafka record around a frame", "bytes", 90.0, 0.3,
        "assumption: record header and the list of recipients";
    presence_record_bytes: "Kafka record of a presence change", "bytes", 80.0, 0.5,
        "assumption";
    cassandra_calls_per_core: "Cassandra reads or writes per core and second", "", 3_000.0, 0.5,
        "assumption: not measured here at a saturated node";
    redis_us_per_beat: "Redis' CPU per heartbeat", "µs", 3.8, 0.2,
        "docs/adr/0018-last-beats.md, and 5.7 % at 15,000/s in docs/performance.md";
    redis_us_per_connect: "Redis' CPU per connect", "µs", 90.0, 0.3,
        "docs/performance.md: idle-1m.yaml with users: 100000";
    redis_us_per_message: "Redis' CPU per message", "µs", 40.0, 0.5,
        "assumption: reserve, commit and progress, 10 to 15 µs a script (docs/adr/0018)";
    redis_us_per_session: "Redis' CPU per session looked up or kept", "µs", 1.0, 1.0,
        "assumption: not measured; 200 of them are one script";
    redis_bytes_per_device: "Redis memory per online device", "bytes", 420.0, 0.3,
        "two hashes and a sorted-set entry of Redis 7";
    redis_bytes_per_message: "Redis memory per message of 24 h", "bytes", 60.0, 0.5,
        "docs/adr/0023: 21 bytes in a busy conversation, 87 at ten messages a day";
    sql_us_per_call: "SQL server's CPU per call", "µs", 63.0, 0.5,
        "docs/performance.md: PostgreSQL 0.19 ms a connect (idle-1m.yaml, users: 100000), by three calls";
    sql_calls_per_connect: "SQL calls per connect", "", 4.0, 0.25,
        "token, friends, and twice a page of conversations of GET /inbox/sync";
    registry_entry_bytes: "entry of a server in the registry", "bytes", 200.0, 0.5,
        "assumption: name, addresses, load, epoch as JSON";
}

impl Constants {
    /// Reads a file that `chatctl plan --calibrate` wrote.
    ///
    /// # Errors
    /// Names the file and what is wrong.
    pub fn read(path: &Path) -> Result<Self, String> {
        let named = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        let text = files::read_text(path, SETTINGS_BYTES_MAX).map_err(|e| named(&e))?;
        let constants: Self = serde_json::from_str(&text)
            .map_err(|e| format!("{}: not constants of chatctl plan: {e}", path.display()))?;
        let is_odd = |f: &Figure| !(f.value > 0.0 && f.value <= 1e15 && f.error >= 0.0 && f.error <= 100.0);
        if let Some(Constant { field, figure, .. }) = constants.list().into_iter().find(|c| is_odd(c.figure)) {
            let problem = format!("{field}: {} ± {}: valid are values above 0 up to 1e15", figure.value, figure.error);
            return Err(named(&problem));
        }
        Ok(constants)
    }

    /// The greatest error of some of them, by their fields.
    #[must_use]
    pub fn error_of(&self, fields: &[&str]) -> f64 {
        let list = self.list();
        list.iter().filter(|c| fields.contains(&c.field)).map(|c| c.figure.error).fold(0.0, f64::max)
    }

    /// Processor time of a chat server for a heartbeat, where it gets so many per second, in µs.
    #[must_use]
    pub fn beat_us(&self, per_server: f64) -> f64 {
        interpolate(&[(1e3, self.beat_us_at_1000.value), (16e3, self.beat_us_at_16000.value)], per_server)
    }

    /// Processor time of a chat server for a delivery, where a connection gets so many frames per second, in µs.
    #[must_use]
    pub fn delivery_us(&self, per_connection: f64) -> f64 {
        let points = [
            (6.0, self.delivery_us_at_6.value),
            (30.0, self.delivery_us_at_30.value),
            (200.0, self.delivery_us_at_200.value),
            (600.0, self.delivery_us_at_600.value),
        ];
        interpolate(&points, per_connection)
    }

    /// Takes over what heartbeats were measured to cost, in µs for each that came to one server when there were `to`
    /// per second and not `from`: both points change by the same factor.
    pub fn set_beats(&mut self, from: f64, to: f64, measured: &Figure) {
        let expected = (to * self.beat_us(to) - from * self.beat_us(from)) / (to - from);
        scale([&mut self.beat_us_at_1000, &mut self.beat_us_at_16000], measured, expected);
    }

    /// Takes over what deliveries were measured to cost, in µs at so many frames per second and connection: all points
    /// change by the same factor.
    pub fn set_deliveries(&mut self, per_connection: f64, measured: &Figure) {
        let expected = self.delivery_us(per_connection);
        let figures = [
            &mut self.delivery_us_at_6,
            &mut self.delivery_us_at_30,
            &mut self.delivery_us_at_200,
            &mut self.delivery_us_at_600,
        ];
        scale(figures, measured, expected);
    }
}

/// Changes figures by the factor between what was measured of them and what they say.
fn scale<const N: usize>(figures: [&mut Figure; N], measured: &Figure, expected: f64) {
    let factor = measured.value / expected;
    if !(factor > 0.0 && factor.is_finite()) {
        return;
    }
    for figure in figures {
        // The shape between the points was not measured again.
        figure.error = figure.error.max(measured.error);
        figure.value = (figure.value * factor * 100.0).round().max(1.0) / 100.0;
        figure.source = format!("{}; times {factor:.2}: {}", figure.source, measured.source);
    }
}

/// The value at some place between points, whose places rise: a power of the place from each point to the next. Before
/// the first and behind the last nothing was measured, so their values stand there.
fn interpolate(points: &[(f64, f64)], at: f64) -> f64 {
    let behind = points.iter().position(|(place, _)| at <= *place);
    match behind {
        None => points.last().map_or(0.0, |(_, value)| *value),
        Some(0) => points[0].1,
        Some(n) => {
            let ((a, low), (b, high)) = (points[n - 1], points[n]);
            low * (high / low).powf((at / a).ln() / (b / a).ln())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_between_two_rates_follow_a_power_and_end_with_the_measurements() {
        let c = Constants::default();
        for (rate, wanted) in [(10.0, 22.0), (1e3, 22.0), (4e3, 11.39), (16e3, 5.9), (1e6, 5.9)] {
            assert!((c.beat_us(rate) - wanted).abs() < 0.01, "{rate}: {}", c.beat_us(rate));
        }
        for (rate, wanted) in [(0.01, 29.0), (30.0, 13.3), (200.0, 8.9), (900.0, 1.8)] {
            assert!((c.delivery_us(rate) - wanted).abs() < 1e-9, "{rate}: {}", c.delivery_us(rate));
        }
    }

    #[test]
    fn a_machine_of_half_the_speed_makes_every_point_twice_as_dear() {
        let (mut c, before) = (Constants::default(), Constants::default());
        let expected = (3e3 * before.beat_us(3e3) - 600.0 * before.beat_us(600.0)) / 2_400.0;
        c.set_beats(600.0, 3e3, &Figure::new(expected * 2.0, 0.5, "here"));
        c.set_deliveries(200.0, &Figure::new(17.8, 0.1, "here"));
        for rate in [500.0, 5e3, 5e4] {
            assert!((c.beat_us(rate) / before.beat_us(rate) - 2.0).abs() < 0.01, "{rate}");
        }
        assert!((c.delivery_us(1.0) - 58.0).abs() < 0.01 && (c.delivery_us(600.0) - 3.6).abs() < 0.01);
        assert!((c.beat_us_at_1000.error - 0.5).abs() < 1e-9 && (c.delivery_us_at_6.error - 0.5).abs() < 1e-9);
        assert!(c.beat_us_at_1000.source.ends_with("times 2.00: here"), "{}", c.beat_us_at_1000.source);
        // What could not be measured changes nothing.
        c.set_deliveries(200.0, &Figure::new(0.0, 0.1, "here"));
        assert!((c.delivery_us(1.0) - 58.0).abs() < 0.01);
    }

    #[test]
    fn constants_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("constants.json");
        std::fs::write(&path, serde_json::to_string(&Constants::default()).expect("plain")).expect("writes");
        assert_eq!(Constants::read(&path), Ok(Constants::default()));
        std::fs::write(&path, "{\"speed\": 3}").expect("writes");
        assert!(Constants::read(&path).expect_err("unknown").contains("speed"));
    }
}
