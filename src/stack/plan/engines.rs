//! The engines: what they are asked for, and what that needs.

use super::{Line, Part, Sizing, US, line, whole};
use crate::backends::directory::CONNECTIONS_MAX;
use crate::backends::sessions::SESSION_TTL;
use crate::server::cluster::{REFRESH_INTERVAL, refresh_interval};
use crate::telemetry::human::counted;

/// Partitions that a broker holds well, replicas counted. Source: Kafka's documentation recommends up to 4,000 per
/// broker.
const PARTITIONS_PER_BROKER: f64 = 4_000.0;

/// Topics of the keyed log.
const TOPICS: f64 = 3.0;

/// Most data of a Cassandra node, in bytes: past it repairs and replacements take days.
const CASSANDRA_NODE_BYTES: f64 = 2e12;

/// Share of one processor that a Redis is planned for: it runs commands on one, and a full one is late for everybody.
const REDIS_PROCESSOR: f64 = 0.7;

/// Members of an ensemble of `ZooKeeper` or etcd: one may die while another is replaced.
const ENSEMBLE: f64 = 5.0;

/// All engines; what this build can't do goes into `notes`.
pub(super) fn lines(s: &Sizing<'_>, lines: &mut Vec<Line>, notes: &mut Vec<String>) {
    kafka(s, lines);
    cassandra(s, lines);
    redis(s, lines, notes);
    let processes = |part: Part| lines.iter().find(|l| l.part == part && l.unit == "servers").map_or(0.0, |l| l.value);
    let with_sql = [Part::Chat, Part::Presence, Part::Api, Part::Push].map(processes).iter().sum::<f64>();
    let all = with_sql + processes(Part::Gateway);
    sql(s, with_sql, lines, notes);
    registry(s, all, lines);
}

fn kafka(s: &Sizing<'_>, lines: &mut Vec<Line>) {
    let (d, c, part) = (s.demand, s.c, Part::Kafka);
    let (inbox, presence) = (s.inbox_records(), s.presence_records());
    let (written, fetched) = (inbox + presence, s.fetched_by_chat() + inbox);
    let inbox_bytes = d.message_bytes + c.frame_bytes.value + c.kafka_record_bytes.value;
    let bytes = inbox * inbox_bytes + presence * c.presence_record_bytes.value;
    let by_writes = s.machines(written * d.replication / c.kafka_records_per_core.value);
    let by_fetches = s.machines(fetched / c.kafka_fetched_per_core.value);
    let by_partitions = TOPICS * s.partitions * d.replication / PARTITIONS_PER_BROKER;
    let brokers = (by_writes + by_fetches).max(by_partitions).max(d.replication).ceil();
    let each = s.placed.records_per_group_message;
    lines.push(line(
        part,
        "records written",
        (written, "per second"),
        &["offline_share", "connects_per_user_day"],
        format!(
            "{each:.1} per group message, one for each partition that holds members; one for each who is not \
             connected; {}/s of presence-updates",
            whole(presence)
        ),
    ));
    lines.push(line(
        part,
        "records fetched",
        (fetched, "per second"),
        &["offline_share", "connects_per_user_day"],
        format!(
            "inbox by {:.1} chat servers and a push server, presence-updates by all {:.0} chat servers: a reader \
             fetches all records of its partitions",
            s.placed.spread.servers_per_partition.0, s.chat_servers
        ),
    ));
    lines.push(line(
        part,
        "bytes written",
        (bytes * d.replication, "bytes/s"),
        &["kafka_record_bytes", "presence_record_bytes", "frame_bytes"],
        format!("{inbox_bytes:.0} bytes a record of inbox, {}", counted(d.replication as u64, "replica")),
    ));
    lines.push(line(
        part,
        "brokers",
        (brokers, "servers"),
        &["kafka_records_per_core", "kafka_fetched_per_core", "connects_per_user_day"],
        format!(
            "{by_writes:.1} by writes and {by_fetches:.1} by fetches; {by_partitions:.1} by partitions ({TOPICS} \
             topics, replicas, {PARTITIONS_PER_BROKER} a broker); no fewer than replicas"
        ),
    ));
}

fn cassandra(s: &Sizing<'_>, lines: &mut Vec<Line>) {
    let (d, c, part) = (s.demand, s.c, Part::Cassandra);
    let stored = s.rates.messages_day * d.retention_days * (d.message_bytes + c.row_bytes.value) * d.replication;
    let writes = s.rates.messages * d.replication;
    // A read asks a quorum.
    let quorum = (d.replication / 2.0).floor() + 1.0;
    let reads = s.connects_max() * c.syncs_per_connect.value * quorum;
    let by_calls = s.machines((writes + reads) / c.cassandra_calls_per_core.value);
    let by_bytes = stored / CASSANDRA_NODE_BYTES;
    let nodes = by_calls.max(by_bytes).max(d.replication).ceil();
    let replicas = counted(d.replication as u64, "replica");
    lines.push(line(part, "writes", (writes, "per second"), &[], format!("of messages, {replicas}")));
    lines.push(line(
        part,
        "reads",
        (reads, "per second"),
        &["connects_per_user_day", "syncs_per_connect"],
        format!("of pages by syncs, {quorum:.0} replicas each; none comes from a cache"),
    ));
    lines.push(line(
        part,
        "storage",
        (stored, "bytes"),
        &["row_bytes"],
        format!("{}, {replicas}, before compression", counted(d.retention_days.round() as u64, "day")),
    ));
    lines.push(line(
        part,
        "nodes",
        (nodes, "servers"),
        &["cassandra_calls_per_core", "row_bytes"],
        format!("{by_calls:.1} by calls; {by_bytes:.1} by 2 TB each; no fewer than replicas"),
    ));
}

fn redis(s: &Sizing<'_>, lines: &mut Vec<Line>, notes: &mut Vec<String>) {
    let (d, c, rates, part) = (s.demand, s.c, &s.rates, Part::Redis);
    let memory = d.connections * c.redis_bytes_per_device.value + rates.messages_day * c.redis_bytes_per_message.value;
    lines.push(line(
        part,
        "memory",
        (memory, "bytes"),
        &["redis_bytes_per_device", "redis_bytes_per_message"],
        "sessions, presence, and the uuids of 24 hours; replicas not counted".to_owned(),
    ));
    let refreshed = d.connections / (SESSION_TTL.as_secs_f64() / 3.0);
    // A direct message looks its recipient up; push does it with every recipient of a record.
    let looked_up = rates.deliveries + rates.direct * c.offline_share.value;
    let ports: [(&str, f64, &[&str], String); 3] = [
        (
            "processor, presence",
            rates.beats * c.redis_us_per_beat.value,
            &["redis_us_per_beat"],
            format!("{} heartbeats/s", whole(rates.beats)),
        ),
        (
            "processor, sessions",
            s.connects_max() * c.redis_us_per_connect.value + (refreshed + looked_up) * c.redis_us_per_session.value,
            &["redis_us_per_connect", "redis_us_per_session", "connects_per_user_day"],
            format!(
                "{}/s kept, {}/s looked up, {} connects/s",
                whole(refreshed),
                whole(looked_up),
                whole(s.connects_max())
            ),
        ),
        (
            "processor, sequence",
            rates.messages * c.redis_us_per_message.value,
            &["redis_us_per_message"],
            format!("{} messages/s", whole(rates.messages)),
        ),
    ];
    for (what, us, constants, why) in ports {
        let cores = us / US;
        if cores > REDIS_PROCESSOR {
            let port = what.trim_start_matches("processor, ");
            notes.push(format!(
                "Redis for {port} takes {cores:.1} processors, and one Redis has one (planned for {REDIS_PROCESSOR}): \
                 a port has one address, so this size needs {:.0} deployments beside each other, or {port} over \
                 several Redis, which this build does not do",
                (cores / REDIS_PROCESSOR).ceil()
            ));
        }
        let why = format!("{why}; of one Redis, which has one; each port may have its own");
        lines.push(line(part, what, (cores, "cores"), constants, why));
    }
}

fn sql(s: &Sizing<'_>, processes: f64, lines: &mut Vec<Line>, notes: &mut Vec<String>) {
    let (d, c, rates, part) = (s.demand, s.c, &s.rates, Part::Sql);
    let servers = s.chat_servers;
    // The sender's server reads the members, and each server that holds one of the recipients.
    let holders = servers * (1.0 - (1.0 - 1.0 / servers).powf(f64::from(d.group_members.saturating_sub(1))));
    let look_ups = rates.direct * 2.0 + (rates.messages - rates.direct) * (1.0 + holders);
    let connects = s.connects_max() * (c.sql_calls_per_connect.value + c.syncs_per_connect.value);
    let logins = d.connections / super::DAY_S * d.peak;
    let calls = look_ups + connects + logins;
    let cores = calls * c.sql_us_per_call.value / US;
    let connections = processes * f64::from(CONNECTIONS_MAX);
    lines.push(line(
        part,
        "calls",
        (calls, "per second"),
        &["sql_calls_per_connect", "syncs_per_connect", "connects_per_user_day"],
        format!(
            "{} members of a conversation, by the sender's server and the {holders:.1} that hold its \
             members (a list is cached for 5 s, which no message finds here); {} by connects and syncs; {} \
             logins",
            whole(look_ups),
            whole(connects),
            whole(logins)
        ),
    ));
    lines.push(line(
        part,
        "processor",
        (cores, "cores"),
        &["sql_us_per_call", "sql_calls_per_connect", "connects_per_user_day"],
        format!("of the one host that takes writes: {:.1} machines of {:.0} cores", s.machines(cores), d.cores),
    ));
    lines.push(line(
        part,
        "connections",
        (connections, ""),
        &[],
        format!("{CONNECTIONS_MAX} at most of each of {processes:.0} chat, presence, API and push servers"),
    ));
    if s.machines(cores) > 1.0 {
        notes.push(format!(
            "the directory takes {cores:.0} cores, most of them look-ups of members, and all calls go to one SQL server: \
             this size needs a larger machine, lists of members that are cached for longer, or several deployments"
        ));
    }
    if connections > SQL_CONNECTIONS {
        notes.push(format!(
            "{} connections to one SQL server: past some {SQL_CONNECTIONS} put a pooler (PgBouncer, ProxySQL) in \
             front of it",
            whole(connections)
        ));
    }
}

/// Connections that one SQL server has without a pooler, about. An assumption: `PostgreSQL` has a process for each.
const SQL_CONNECTIONS: f64 = 1_000.0;

fn registry(s: &Sizing<'_>, servers: f64, lines: &mut Vec<Line>) {
    let every = refresh_interval(servers as usize).as_secs_f64();
    let read = servers * servers / every;
    let bytes = read * s.c.registry_entry_bytes.value;
    let part = Part::Registry;
    lines.push(line(part, "members", (ENSEMBLE, "servers"), &[], "one may die while another is replaced".to_owned()));
    lines.push(line(
        part,
        "entries read",
        (read, "per second"),
        &[],
        format!("each of {servers:.0} servers reads those of all every {every:.1} s: with the square of their number"),
    ));
    lines.push(line(part, "bytes read", (bytes, "bytes/s"), &["registry_entry_bytes"], "of these".to_owned()));
    lines.push(line(
        part,
        "writes",
        (servers / REFRESH_INTERVAL.as_secs_f64(), "per second"),
        &[],
        format!("at most: each server's load where it is news, every {:.1} s", REFRESH_INTERVAL.as_secs_f64()),
    ));
}
