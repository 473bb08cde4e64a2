//! What a deployment of some size needs: servers, memory, partitions, engines, storage, egress, from figures measured on a
//! machine; and a simulation of the placement at that size.

use std::collections::BTreeSet;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::protocol::ServerName;
use crate::runtime::files::{self, SETTINGS_BYTES_MAX};
use crate::server::cluster::placement::rendezvous;
use crate::telemetry::human::counted;

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

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

/// What one connection, beat, message and record cost. Measured by `chatctl plan --calibrate`, or these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Constants {
    /// Memory of a chat server for each idle connection, in bytes, kernel not counted.
    pub server_bytes_per_connection: Figure,
    /// Memory of the kernel for the server's end of a connection, in bytes.
    pub kernel_bytes_per_connection: Figure,
    /// Processor time of the chat and presence servers for a million heartbeats, in seconds.
    pub cpu_s_per_million_beats: Figure,
    /// Processor time of the stack for a million deliveries in groups of a hundred, in seconds.
    pub cpu_s_per_million_deliveries: Figure,
    /// Processor time of the stack for a million one-to-one messages, in seconds.
    pub cpu_s_per_million_messages: Figure,
    /// Bytes of a frame around a message's body.
    pub frame_bytes: Figure,
    /// Bytes of a stored row around a message's body.
    pub row_bytes: Figure,
    /// Records that a core of a Kafka broker takes per second, acknowledged by all replicas.
    pub kafka_records_per_core: Figure,
    /// Bytes of a record around its frame.
    pub kafka_record_bytes: Figure,
    /// Writes that a core of a Cassandra node takes per second.
    pub cassandra_writes_per_core: Figure,
    /// Memory of Redis for each device that is online (session and presence), in bytes.
    pub redis_bytes_per_device: Figure,
    /// Memory of Redis for each message of the last 24 hours (its uuid), in bytes.
    pub redis_bytes_per_message: Figure,
}

impl Default for Constants {
    fn default() -> Self {
        let measured = |command: &str| format!("measured: {command} (docs/performance.md)");
        let design = "measured on two cores, Linux 6.18, before the start of the project";
        Self {
            server_bytes_per_connection: Figure::new(2_480.0, 0.15, &measured("cargo bench --bench connections")),
            kernel_bytes_per_connection: Figure::new(4_600.0, 0.15, design),
            cpu_s_per_million_beats: Figure::new(4.5, 0.3, design),
            cpu_s_per_million_deliveries: Figure::new(
                8.9,
                0.3,
                &measured("chatctl load scenarios/fanout-saturation.yaml"),
            ),
            cpu_s_per_million_messages: Figure::new(180.0, 0.4, &measured("chatctl load scenarios/one-to-one.yaml")),
            frame_bytes: Figure::new(210.0, 0.1, "docs/protocol.md: a `message` frame without its body"),
            row_bytes: Figure::new(
                120.0,
                0.3,
                "keys, uuid, sender, times and Cassandra's cell headers, before compression",
            ),
            kafka_records_per_core: Figure::new(19_500.0, 0.3, design),
            kafka_record_bytes: Figure::new(90.0, 0.3, "record header and the list of recipients"),
            cassandra_writes_per_core: Figure::new(3_000.0, 0.5, "assumption: not measured here at a saturated node"),
            redis_bytes_per_device: Figure::new(420.0, 0.3, "two hashes and a sorted-set entry of Redis 7"),
            redis_bytes_per_message: Figure::new(
                60.0,
                0.5,
                "docs/adr/0023: 21 bytes in a busy conversation, 87 at ten messages a day",
            ),
        }
    }
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
        if let Some((name, _, figure)) = constants.list().into_iter().find(|(_, _, figure)| is_odd(figure)) {
            let problem = format!("{name}: {} ± {}: valid are values above 0 up to 1e15", figure.value, figure.error);
            return Err(named(&problem));
        }
        Ok(constants)
    }

    /// All of them with their names and units.
    #[must_use]
    pub fn list(&self) -> [(&'static str, &'static str, &Figure); 12] {
        [
            ("server memory per connection", "bytes", &self.server_bytes_per_connection),
            ("kernel memory per connection", "bytes", &self.kernel_bytes_per_connection),
            ("CPU per million heartbeats", "s", &self.cpu_s_per_million_beats),
            ("CPU per million deliveries", "s", &self.cpu_s_per_million_deliveries),
            ("CPU per million one-to-one messages", "s", &self.cpu_s_per_million_messages),
            ("frame around a body", "bytes", &self.frame_bytes),
            ("row around a body", "bytes", &self.row_bytes),
            ("Kafka records per core and second", "", &self.kafka_records_per_core),
            ("Kafka record around a frame", "bytes", &self.kafka_record_bytes),
            ("Cassandra writes per core and second", "", &self.cassandra_writes_per_core),
            ("Redis memory per online device", "bytes", &self.redis_bytes_per_device),
            ("Redis memory per message of 24 h", "bytes", &self.redis_bytes_per_message),
        ]
    }
}

/// The deployment that is asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Demand {
    /// Connections at the same time.
    pub connections: f64,
    /// Messages that each connected user sends per day.
    pub messages_per_user_day: f64,
    /// Bytes of a message's body.
    pub message_bytes: f64,
    /// Share of the messages that go to groups, 0 to 1.
    pub group_share: f64,
    /// Members of a group.
    pub group_members: u32,
    /// Rate at the busiest minute over the mean of the day.
    pub peak: f64,
    /// Seconds between two heartbeats.
    pub heartbeat_s: f64,
    /// Days that messages are kept.
    pub retention_days: f64,
    /// Copies of each message and record.
    pub replication: f64,
    /// Cores of a machine.
    pub cores: f64,
    /// Memory of a machine, in bytes.
    pub memory_bytes: f64,
    /// Share of a machine that is planned for; the rest is for peaks and for machines that fail.
    pub headroom: f64,
    /// Most connections of one chat server, whatever it could hold: so many log in anew when it dies.
    pub connections_per_server_max: f64,
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// What.
    pub what: &'static str,
    /// How many, in `unit`.
    pub value: f64,
    /// `servers`, `bytes`, `per second`, …
    pub unit: &'static str,
    /// How wrong it may be, as a share.
    pub error: f64,
    /// From what it follows.
    pub why: String,
}

/// What the placement does at the size of the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Placed {
    /// Users of the simulation; each stands for `users_each` of the plan.
    pub simulated_users: u64,
    /// Connections of the plan for each of them.
    pub users_each: f64,
    /// Connections of the fullest server over the mean.
    pub fullest: f64,
    /// Partitions that a server reads: mean and most.
    pub partitions_per_server: (f64, u64),
    /// Servers that read a partition: mean and most.
    pub servers_per_partition: (f64, u64),
    /// Records in the log for one message to a group.
    pub records_per_group_message: f64,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What was asked for.
    pub demand: Demand,
    /// What it needs.
    pub lines: Vec<Line>,
    /// Chat servers.
    pub chat_servers: u64,
    /// Partitions of the inbox topic.
    pub partitions: u64,
    /// The simulation.
    pub placed: Placed,
}

/// Most partitions that are planned: each costs a broker a file and two memory maps.
const PARTITIONS_MAX: u64 = 16_384;

/// Partitions that a broker holds well, replicas counted. Source: Kafka's documentation recommends up to 4,000 per broker.
const PARTITIONS_PER_BROKER: f64 = 4_000.0;

/// Users that the placement is simulated with at most.
const SIMULATED_USERS_MAX: u64 = 2_000_000;

/// Groups that the number of records is simulated with.
const GROUPS: u64 = 2_000;

/// Most data of a Cassandra node, in bytes: past it repairs and replacements take days.
const CASSANDRA_NODE_BYTES: f64 = 2e12;

/// Rates that follow from a demand, per second at the peak.
struct Rates {
    messages_day: f64,
    messages: f64,
    /// Recipients of a message in the mean.
    recipients: f64,
    deliveries: f64,
    beats: f64,
    /// Messages to one person.
    direct: f64,
}

fn rates(d: &Demand) -> Rates {
    let messages_day = d.connections * d.messages_per_user_day;
    let messages = messages_day / DAY_S * d.peak;
    let recipients = d.group_share * f64::from(d.group_members.saturating_sub(1)) + (1.0 - d.group_share);
    Rates {
        messages_day,
        messages,
        recipients,
        deliveries: messages * recipients,
        beats: d.connections / d.heartbeat_s,
        direct: messages * (1.0 - d.group_share),
    }
}

/// Most chat servers that are planned: each user's place among them is simulated.
const SERVERS_PLANNED_MAX: f64 = 20_000.0;

/// Works a demand out.
///
/// # Errors
/// When it needs more chat servers than anybody runs.
pub fn plan(demand: &Demand, c: &Constants) -> Result<Plan, String> {
    let rates = rates(demand);
    let (servers, servers_line) = chat_servers(demand, &rates, c);
    if servers.is_nan() || servers > SERVERS_PLANNED_MAX {
        return Err(format!(
            "this needs {servers:.3e} chat servers ({}): at most {SERVERS_PLANNED_MAX} are planned",
            servers_line.why
        ));
    }
    let partitions = (servers * 2.0).max(8.0).log2().ceil().exp2().min(PARTITIONS_MAX as f64);
    let placed = place(demand, servers as u64, partitions as u64);
    let bytes_each = c.server_bytes_per_connection.value + c.kernel_bytes_per_connection.value;
    let fullest = format!("the fullest has {:.0} % more", (placed.fullest - 1.0) * 100.0);
    let peak =
        format!("{:.0} a day and user, {:.1} times the mean at the peak", demand.messages_per_user_day, demand.peak);
    let mut lines = vec![
        line("messages", rates.messages, "per second", 0.0, peak),
        line("deliveries", rates.deliveries, "per second", 0.0, format!("{:.1} recipients each", rates.recipients)),
        line(
            "heartbeats",
            rates.beats,
            "per second",
            0.0,
            format!("one per {:.0} s and connection", demand.heartbeat_s),
        ),
        servers_line,
        line("connections per chat server", demand.connections / servers, "", 0.0, fullest),
        line(
            "memory for connections",
            demand.connections * bytes_each,
            "bytes",
            c.server_bytes_per_connection.error,
            "servers and kernel".to_owned(),
        ),
        line(
            "partitions",
            partitions,
            "",
            0.0,
            "two per chat server, a power of two; fixed for the life of the deployment".to_owned(),
        ),
    ];
    lines.extend(engines(demand, &rates, c, partitions, placed.records_per_group_message));
    let egress = rates.deliveries * (demand.message_bytes + c.frame_bytes.value);
    let why = "deliveries, without TLS and TCP headers".to_owned();
    lines.push(line("egress", egress, "bytes/s", c.frame_bytes.error, why));
    Ok(Plan { demand: demand.clone(), lines, chat_servers: servers as u64, partitions: partitions as u64, placed })
}

const fn line(what: &'static str, value: f64, unit: &'static str, error: f64, why: String) -> Line {
    Line { what, value, unit, error, why }
}

/// Chat servers by memory, by processors and by what may be lost with one; the most counts.
fn chat_servers(d: &Demand, rates: &Rates, c: &Constants) -> (f64, Line) {
    let bytes_each = c.server_bytes_per_connection.value + c.kernel_bytes_per_connection.value;
    let by_memory = d.connections * bytes_each / (d.memory_bytes * d.headroom);
    let grouped = rates.deliveries - rates.direct;
    let work = rates.beats / 1e6 * c.cpu_s_per_million_beats.value
        + rates.direct / 1e6 * c.cpu_s_per_million_messages.value
        + grouped / 1e6 * c.cpu_s_per_million_deliveries.value;
    let by_cpu = work / (d.cores * d.headroom);
    let by_loss = d.connections / d.connections_per_server_max;
    let servers = by_memory.max(by_cpu).max(by_loss).ceil().max(2.0);
    let why = format!(
        "{:.1} KiB per connection: {by_memory:.1} by memory; {work:.0} cores of work: {by_cpu:.1} by processors; at most {:.0} K \
         connections each: {by_loss:.1}; {:.0} % of a machine is used",
        bytes_each / 1_024.0,
        d.connections_per_server_max / 1e3,
        d.headroom * 100.0
    );
    let error = if by_loss >= by_memory.max(by_cpu) {
        0.0
    } else if by_memory > by_cpu {
        c.server_bytes_per_connection.error.max(c.kernel_bytes_per_connection.error)
    } else {
        c.cpu_s_per_million_deliveries.error.max(c.cpu_s_per_million_beats.error)
    };
    (servers, line("chat servers", servers, "servers", error, why))
}

/// What Kafka, Cassandra and Redis need.
fn engines(d: &Demand, rates: &Rates, c: &Constants, partitions: f64, records_each: f64) -> Vec<Line> {
    let records = rates.messages * d.group_share * records_each + rates.direct * OFFLINE_SHARE;
    let record_bytes = d.message_bytes + c.frame_bytes.value + c.kafka_record_bytes.value;
    let brokers = (records * d.replication / c.kafka_records_per_core.value / (d.cores * d.headroom))
        .max(partitions * d.replication / PARTITIONS_PER_BROKER)
        .max(d.replication)
        .ceil();
    let stored = rates.messages_day * d.retention_days * (d.message_bytes + c.row_bytes.value) * d.replication;
    let writes = rates.messages * d.replication;
    let nodes = (writes / c.cassandra_writes_per_core.value / (d.cores * d.headroom))
        .max(stored / CASSANDRA_NODE_BYTES)
        .max(d.replication)
        .ceil();
    let redis = d.connections * c.redis_bytes_per_device.value + rates.messages_day * c.redis_bytes_per_message.value;
    let replicas = counted(d.replication as u64, "replica");
    let of_group = format!("{records_each:.1} per group message: one for each partition that holds members");
    vec![
        line("Kafka records", records, "per second", c.kafka_records_per_core.error, of_group),
        line(
            "Kafka throughput",
            records * record_bytes * d.replication,
            "bytes/s",
            c.kafka_record_bytes.error,
            format!("{record_bytes:.0} bytes, {replicas}"),
        ),
        line(
            "Kafka brokers",
            brokers,
            "servers",
            c.kafka_records_per_core.error,
            "by records, by partitions, and no fewer than replicas".to_owned(),
        ),
        line("Cassandra writes", writes, "per second", 0.0, replicas.clone()),
        line(
            "Cassandra storage",
            stored,
            "bytes",
            c.row_bytes.error,
            format!("{}, {replicas}, before compression", counted(d.retention_days.round() as u64, "day")),
        ),
        line(
            "Cassandra nodes",
            nodes,
            "servers",
            c.cassandra_writes_per_core.error,
            "by writes, and at most 2 TB each".to_owned(),
        ),
        line(
            "Redis memory",
            redis,
            "bytes",
            c.redis_bytes_per_message.error,
            "sessions, presence, and the uuids of 24 hours; replicas not counted".to_owned(),
        ),
    ]
}

/// Share of one-to-one messages whose recipient is not connected, so that they go through the inbox.
const OFFLINE_SHARE: f64 = 0.3;

/// Places users as the API does: on the server that their partition hashes to, unless it is more than 10 % above the least
/// loaded, then there.
fn place(demand: &Demand, servers: u64, partitions: u64) -> Placed {
    let users = (demand.connections as u64).clamp(1, SIMULATED_USERS_MAX);
    let names: Vec<ServerName> = (1..=servers).map(|n| format!("chat-{n}").parse().expect("a valid name")).collect();
    let home_of = |partition: u64| {
        (0..names.len()).max_by_key(|n| rendezvous(&names[*n], partition)).expect("there is a server") as u32
    };
    let homes: Vec<u32> = (0..partitions).map(home_of).collect();
    let mut rng = StdRng::seed_from_u64(1);
    let mut loads = vec![0_u64; names.len()];
    let mut by_load: BTreeSet<(u64, u32)> = (0..names.len() as u32).map(|n| (0, n)).collect();
    let mut readers: BTreeSet<(u32, u32)> = BTreeSet::new();
    for _ in 0..users {
        let partition = rng.random_range(0..partitions) as u32;
        let home = homes[partition as usize];
        let (least_load, least) = *by_load.first().expect("there is a server");
        let chosen = if loads[home as usize] * 10 > least_load * 11 { least } else { home };
        by_load.remove(&(loads[chosen as usize], chosen));
        loads[chosen as usize] += 1;
        by_load.insert((loads[chosen as usize], chosen));
        readers.insert((partition, chosen));
    }
    let count = |pick: &dyn Fn(&(u32, u32)) -> u32, of: u64| {
        let mut counts = vec![0_u64; of as usize];
        for pair in &readers {
            counts[pick(pair) as usize] += 1;
        }
        (readers.len() as f64 / of as f64, counts.into_iter().max().unwrap_or(0))
    };
    // Members lie in random partitions: as many records as there are different ones.
    let mut records = 0;
    for _ in 0..GROUPS {
        let members = (0..demand.group_members).map(|_| rng.random_range(0..partitions));
        records += members.collect::<BTreeSet<_>>().len();
    }
    Placed {
        simulated_users: users,
        users_each: demand.connections / users as f64,
        fullest: loads.iter().copied().max().unwrap_or(0) as f64 * servers as f64 / users as f64,
        partitions_per_server: count(&|pair| pair.1, servers),
        servers_per_partition: count(&|pair| pair.0, partitions),
        records_per_group_message: records as f64 / GROUPS as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(connections: f64) -> Demand {
        Demand {
            connections,
            messages_per_user_day: 40.0,
            message_bytes: 200.0,
            group_share: 0.5,
            group_members: 50,
            peak: 3.0,
            heartbeat_s: 5.0,
            retention_days: 365.0,
            replication: 3.0,
            cores: 16.0,
            memory_bytes: 64e9,
            headroom: 0.5,
            connections_per_server_max: 500_000.0,
        }
    }

    fn value(plan: &Plan, what: &str) -> f64 {
        plan.lines.iter().find(|line| line.what == what).expect("is listed").value
    }

    #[test]
    fn the_arithmetic_of_a_plan_by_hand() {
        let plan = plan(&demand(1e6), &Constants::default()).expect("is planned");
        assert!((value(&plan, "messages") - 1e6 * 40.0 / 86_400.0 * 3.0).abs() < 1e-6);
        // Half to one, half to 49.
        assert!((value(&plan, "deliveries") / value(&plan, "messages") - 25.0).abs() < 1e-9);
        assert!((value(&plan, "heartbeats") - 200_000.0).abs() < 1e-6);
        let stored = 1e6 * 40.0 * 365.0 * (200.0 + 120.0) * 3.0;
        assert!((value(&plan, "Cassandra storage") / stored - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_nobody_runs_is_not_planned() {
        let refused =
            plan(&Demand { memory_bytes: 100.0, ..demand(1e6) }, &Constants::default()).expect_err("too many");
        assert!(refused.contains("chat servers") && refused.contains("by memory"), "{refused}");
        assert!(plan(&Demand { cores: 0.0, ..demand(0.0) }, &Constants::default()).is_ok_and(|p| p.chat_servers == 2));
    }

    #[test]
    fn twice_the_connections_want_about_twice_the_servers() {
        let planned = |connections| plan(&demand(connections), &Constants::default()).expect("is planned");
        let (one, two) = (planned(5e7), planned(1e8));
        let ratio = two.chat_servers as f64 / one.chat_servers as f64;
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn placement_stays_within_its_promise_and_readers_are_few() {
        let placed = place(&demand(200_000.0), 20, 64);
        assert!(placed.fullest < 1.12, "{placed:?}");
        // What does not fit at home goes to the least loaded, whoever that is: half of the servers have somebody of a partition.
        assert!((5.0..12.0).contains(&placed.servers_per_partition.0), "{placed:?}");
        // Fifty members in 64 partitions: 64 (1 - (63/64)^50).
        assert!((placed.records_per_group_message - 34.8).abs() < 0.5, "{placed:?}");
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
