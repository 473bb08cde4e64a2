//! What a deployment of some size needs: servers of every role, engines, memory, partitions, storage, egress, from
//! figures measured on a machine; and a simulation of the placement at that size.
//!
//! | file | what |
//! |---|---|
//! | `constants` | what a connection, a beat, a message and a record cost |
//! | `roles` | chat, presence, API, push servers and gateways |
//! | `engines` | Kafka, Cassandra, Redis, SQL, the registry |
//! | `simulation` | users placed on chat servers as the API does it |

mod constants;
mod engines;
mod roles;
mod simulation;

use serde::Serialize;

pub use constants::{Constant, Constants, Figure};
pub use simulation::{Placed, Spread};

use crate::protocol::limits::PARTITIONS_MAX;
use crate::telemetry::human::human_count;

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

/// Microseconds of a second.
const US: f64 = 1e6;

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
    /// Most connections of one chat server, whatever it could hold: so many are placed anew when it dies. Past its own
    /// `chat.connections_max` it counts no more.
    pub connections_per_server_max: f64,
    /// Seconds within which the users of the largest chat server are back after it died.
    pub recovery_s: f64,
}

/// What a line of a plan is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What users do.
    Load,
    /// Chat servers.
    Chat,
    /// Presence servers.
    Presence,
    /// API servers.
    Api,
    /// Gateways.
    Gateway,
    /// Push servers.
    Push,
    /// Kafka.
    Kafka,
    /// Cassandra.
    Cassandra,
    /// Redis.
    Redis,
    /// `PostgreSQL`, `MySQL`, `MariaDB`.
    Sql,
    /// `ZooKeeper` or etcd.
    Registry,
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// What it is about.
    pub part: Part,
    /// What.
    pub what: &'static str,
    /// How many, in `unit`.
    pub value: f64,
    /// `servers`, `bytes`, `per second`, …
    pub unit: &'static str,
    /// How wrong it may be, as a share: the greatest error of its constants.
    pub error: f64,
    /// From what it follows.
    pub why: String,
    /// Fields of the constants that it is made of.
    pub constants: Vec<&'static str>,
}

/// A number as people read it, in whole ones.
fn whole(value: f64) -> String {
    human_count(value.round() as u64)
}

/// A line whose error is worked out later.
fn line(
    part: Part,
    what: &'static str,
    (value, unit): (f64, &'static str),
    constants: &[&'static str],
    why: String,
) -> Line {
    Line { part, what, value, unit, error: 0.0, why, constants: constants.to_vec() }
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
    /// Partitions of each topic.
    pub partitions: u64,
    /// The simulation.
    pub placed: Placed,
    /// What this build can't do at that size, and what would help.
    pub notes: Vec<String>,
}

/// Partitions for each chat server, about: fewer make a server read more records of others' users (docs/scale.md).
const PARTITIONS_PER_SERVER: f64 = 10.0;

/// Fewest partitions.
const PARTITIONS_MIN: f64 = 8.0;

/// Most chat servers that are planned: each user's place among them is simulated.
const SERVERS_PLANNED_MAX: f64 = 20_000.0;

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
    /// Connections that come up.
    connects: f64,
}

fn rates(d: &Demand, c: &Constants) -> Rates {
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
        connects: d.connections * c.connects_per_user_day.value / DAY_S * d.peak,
    }
}

/// What is known while the parts of a plan are worked out.
struct Sizing<'a> {
    demand: &'a Demand,
    c: &'a Constants,
    rates: Rates,
    chat_servers: f64,
    partitions: f64,
    placed: Placed,
}

impl Sizing<'_> {
    /// Machines for some cores of work.
    fn machines(&self, cores: f64) -> f64 {
        cores / (self.demand.cores * self.demand.headroom)
    }

    /// Users of the largest chat server.
    fn largest(&self) -> f64 {
        self.demand.connections / self.chat_servers * self.placed.spread.fullest
    }

    /// Connections that come up per second in the worst case: at the peak, and the users of the largest server besides.
    fn connects_max(&self) -> f64 {
        self.rates.connects + self.largest() / self.demand.recovery_s
    }

    /// Records of the topic `inbox` per second.
    fn inbox_records(&self) -> f64 {
        let grouped = (self.rates.messages - self.rates.direct) * self.placed.records_per_group_message;
        grouped + self.rates.direct * self.c.offline_share.value
    }

    /// Records of the topic `presence-updates` per second: each connection comes and goes.
    fn presence_records(&self) -> f64 {
        2.0 * self.rates.connects
    }

    /// Records that all chat servers fetch per second. Nearly every server has friends of users of every partition, so
    /// each reads the whole of `presence-updates`.
    fn fetched_by_chat(&self) -> f64 {
        let inbox = self.inbox_records() * self.placed.spread.servers_per_partition.0;
        inbox + self.presence_records() * self.chat_servers
    }
}

/// Works a demand out.
///
/// # Errors
/// When it needs more chat servers than anybody runs.
pub fn plan(demand: &Demand, c: &Constants) -> Result<Plan, String> {
    let rates = rates(demand, c);
    let chat = roles::ChatServers::of(demand, &rates, c);
    let servers = chat.needed;
    if servers.is_nan() || servers > SERVERS_PLANNED_MAX {
        return Err(format!(
            "this needs {servers:.3e} chat servers ({}): at most {SERVERS_PLANNED_MAX} are planned",
            chat.why
        ));
    }
    let partitions = partitions(servers);
    let placed = simulation::place(demand, servers as u64, partitions as u64);
    let sizing = Sizing { demand, c, rates, chat_servers: servers, partitions, placed };
    let mut lines = load(&sizing);
    let mut notes = Vec::new();
    roles::lines(&sizing, &chat, &mut lines);
    engines::lines(&sizing, &mut lines, &mut notes);
    for line in &mut lines {
        line.error = c.error_of(&line.constants);
    }
    let Sizing { placed, .. } = sizing;
    Ok(Plan {
        demand: demand.clone(),
        lines,
        chat_servers: servers as u64,
        partitions: partitions as u64,
        placed,
        notes,
    })
}

/// The power of two that is nearest to ten for each chat server.
fn partitions(servers: f64) -> f64 {
    let wanted = (servers * PARTITIONS_PER_SERVER).log2().round().exp2();
    wanted.clamp(PARTITIONS_MIN, f64::from(PARTITIONS_MAX))
}

/// What users do.
fn load(s: &Sizing<'_>) -> Vec<Line> {
    let (d, rates) = (s.demand, &s.rates);
    let per_second = |value| (value, "per second");
    let peak = format!("{:.0} a day and user, {:.1} times the mean at the peak", d.messages_per_user_day, d.peak);
    let each = rates.deliveries / d.connections;
    let lost = format!(
        "{:.0} a day and user at the peak; {}/s besides when the largest chat server dies and its {} users \
         are back in {:.0} s",
        s.c.connects_per_user_day.value,
        whole(s.largest() / d.recovery_s),
        whole(s.largest()),
        d.recovery_s
    );
    vec![
        line(Part::Load, "messages", per_second(rates.messages), &[], peak),
        line(
            Part::Load,
            "deliveries",
            per_second(rates.deliveries),
            &[],
            format!("{:.1} recipients each; {each:.3} frames/s for a connection", rates.recipients),
        ),
        line(
            Part::Load,
            "heartbeats",
            per_second(rates.beats),
            &[],
            format!("one per {:.0} s and connection", d.heartbeat_s),
        ),
        line(Part::Load, "connects", per_second(rates.connects), &["connects_per_user_day"], lost),
        line(
            Part::Load,
            "egress",
            (rates.deliveries * (d.message_bytes + s.c.frame_bytes.value), "bytes/s"),
            &["frame_bytes"],
            "deliveries, without TLS and TCP headers".to_owned(),
        ),
    ]
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
