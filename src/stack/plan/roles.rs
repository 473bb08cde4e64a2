//! The servers of each role.

use super::{Constants, DAY_S, Demand, Line, Part, Rates, Sizing, US, line, whole};
use crate::server::cluster::placement::{LOAD_MAX_PERCENT, LOAD_SLACK};
use crate::server::{api, chat, gateway};

/// Users whose beats a presence server holds at once. Source: `server/presence` refuses beats past two million that
/// wait.
const USERS_PER_PRESENCE_SERVER: f64 = 2e6;

/// Seconds that a request is under way at an API server, for the connections that are open at once. An assumption.
const REQUEST_S: f64 = 0.1;

/// Requests of a connect without its syncs: `GET /placement` and `GET /inbox/sync`.
const REQUESTS_PER_CONNECT: f64 = 2.0;

/// How many chat servers, and why.
pub(super) struct ChatServers {
    pub(super) needed: f64,
    pub(super) why: String,
    constants: &'static [&'static str],
}

impl ChatServers {
    /// By memory, by processors and by connections; the most counts.
    pub(super) fn of(d: &Demand, rates: &Rates, c: &Constants) -> Self {
        let bytes_each = c.server_bytes_per_connection.value + c.kernel_bytes_per_connection.value;
        let by_memory = d.connections * bytes_each / (d.memory_bytes * d.headroom);
        let own_limit = chat::Config::default().connections_max as f64;
        let limit = d.connections_per_server_max.min(own_limit);
        // The fullest must stay below it.
        let mean_max = ((limit - LOAD_SLACK as f64) * 100.0 / LOAD_MAX_PERCENT as f64).max(1.0);
        let by_limit = d.connections / mean_max;
        let mut needed = by_memory.max(by_limit).max(2.0);
        let mut work = 0.0;
        // What a beat costs depends on the beats of one server, so on how many there are.
        for _ in 0..ROUNDS_MAX {
            work = cores(d, rates, c, needed);
            let next = by_memory.max(by_limit).max(work / (d.cores * d.headroom)).ceil().max(2.0);
            if next <= needed {
                break;
            }
            needed = next;
        }
        needed = needed.ceil();
        let by_cpu = work / (d.cores * d.headroom);
        let beats = rates.beats / needed;
        let why = format!(
            "at most {} connections on the fullest (chat.connections_max {}, as many files): \
             {by_limit:.1}; {:.1} KiB each: {by_memory:.1} by memory; {work:.0} cores of work: {by_cpu:.1} by \
             processors, at {} beats/s a server ({:.1} µs each) and {:.1} µs a delivery; {:.0} % of a machine \
             is used",
            whole(limit),
            whole(own_limit),
            bytes_each / 1_024.0,
            whole(beats),
            c.beat_us(beats),
            c.delivery_us(frames(d, rates)),
            d.headroom * 100.0
        );
        let constants: &[&str] = if by_limit >= by_memory.max(by_cpu) {
            &[]
        } else if by_memory > by_cpu {
            &["server_bytes_per_connection", "kernel_bytes_per_connection"]
        } else {
            &CHAT_CPU
        };
        Self { needed, why, constants }
    }
}

/// Rounds until the number of chat servers fits the rate of one.
const ROUNDS_MAX: usize = 50;

/// The constants that the processor time of chat servers is made of.
const CHAT_CPU: [&str; 6] = [
    "beat_us_at_1000",
    "beat_us_at_16000",
    "delivery_us_at_6",
    "delivery_us_at_30",
    "cpu_s_per_million_messages",
    "chat_us_per_connect",
];

/// Frames per second of a connection.
fn frames(d: &Demand, rates: &Rates) -> f64 {
    rates.deliveries / d.connections
}

/// Cores that all chat servers use, without the records that they fetch.
fn cores(d: &Demand, rates: &Rates, c: &Constants, servers: f64) -> f64 {
    let grouped = rates.deliveries - rates.direct;
    (rates.beats * c.beat_us(rates.beats / servers)
        + rates.direct * c.cpu_s_per_million_messages.value
        + grouped * c.delivery_us(frames(d, rates))
        + rates.connects * c.chat_us_per_connect.value)
        / US
}

/// All roles.
pub(super) fn lines(s: &Sizing<'_>, chat: &ChatServers, lines: &mut Vec<Line>) {
    chat_lines(s, chat, lines);
    lines.push(presence(s));
    api_lines(s, lines);
    gateway_lines(s, lines);
    lines.push(push(s));
}

fn chat_lines(s: &Sizing<'_>, chat: &ChatServers, lines: &mut Vec<Line>) {
    let (d, c, spread) = (s.demand, s.c, &s.placed.spread);
    let part = Part::Chat;
    let bytes_each = c.server_bytes_per_connection.value + c.kernel_bytes_per_connection.value;
    lines.push(line(part, "chat servers", (s.chat_servers, "servers"), chat.constants, chat.why.clone()));
    lines.push(line(
        part,
        "connections each",
        (d.connections / s.chat_servers, ""),
        &[],
        format!("the fullest has {:.0} % more: {}", (spread.fullest - 1.0) * 100.0, whole(s.largest())),
    ));
    lines.push(line(
        part,
        "memory for connections",
        (d.connections * bytes_each, "bytes"),
        &["server_bytes_per_connection", "kernel_bytes_per_connection"],
        "of all chat servers: servers and kernel".to_owned(),
    ));
    lines.push(line(
        part,
        "partitions",
        (s.partitions, ""),
        &[],
        "about ten per chat server, a power of two; fixed for the life of the deployment".to_owned(),
    ));
    lines.push(line(
        part,
        "readers per partition",
        (spread.servers_per_partition.0, ""),
        &[],
        format!("chat servers, simulated; at most {}", spread.servers_per_partition.1),
    ));
    let fetched = s.fetched_by_chat() / s.chat_servers;
    lines.push(line(
        part,
        "records fetched by each",
        (fetched, "per second"),
        &["chat_us_per_record", "connects_per_user_day"],
        format!(
            "its partitions of inbox, and all of presence-updates, since nearly every server has friends of users of \
             every partition: {:.2} cores, not in the work above",
            fetched * c.chat_us_per_record.value / US
        ),
    ));
}

fn presence(s: &Sizing<'_>) -> Line {
    let cores = s.rates.beats * s.c.presence_us_per_beat.value / US;
    let (by_cpu, by_users) = (s.machines(cores), s.demand.connections / USERS_PER_PRESENCE_SERVER);
    let needed = by_cpu.max(by_users).ceil().max(1.0) + 1.0;
    let why = format!(
        "{cores:.1} cores: {by_cpu:.1} by processors; at most {} users each: {by_users:.1}; and one that may \
         die",
        whole(USERS_PER_PRESENCE_SERVER)
    );
    line(Part::Presence, "presence servers", (needed, "servers"), &["presence_us_per_beat"], why)
}

fn api_lines(s: &Sizing<'_>, lines: &mut Vec<Line>) {
    let (c, part) = (s.c, Part::Api);
    // A token lives for a day.
    let logins = s.demand.connections / DAY_S * s.demand.peak;
    let connects = s.connects_max();
    let requests = connects * (REQUESTS_PER_CONNECT + c.syncs_per_connect.value);
    let cores = logins * c.login_ms.value / 1e3 + requests * c.api_us_per_request.value / US;
    let by_cpu = s.machines(cores);
    let by_limit = requests * REQUEST_S / api::Config::default().connections_max as f64;
    let needed = by_cpu.max(by_limit).ceil().max(1.0) + 1.0;
    lines.push(line(
        part,
        "API servers",
        (needed, "servers"),
        &["login_ms", "api_us_per_request", "connects_per_user_day", "syncs_per_connect"],
        format!(
            "{cores:.1} cores: {by_cpu:.1} by processors; api.connections_max with requests of {:.0} ms: \
             {by_limit:.1}; and one that may die",
            REQUEST_S * 1e3
        ),
    ));
    let day = "each user once a day, as long as a token lives; who moves has one".to_owned();
    lines.push(line(part, "logins with a password", (logins, "per second"), &[], day));
    lines.push(line(
        part,
        "placements",
        (connects, "per second"),
        &["connects_per_user_day"],
        format!("{}/s each; at the peak, and after the loss of the largest chat server", whole(connects / needed)),
    ));
    lines.push(line(
        part,
        "syncs",
        (connects * c.syncs_per_connect.value, "per second"),
        &["connects_per_user_day", "syncs_per_connect"],
        "of conversations, after each connect; a GET /inbox/sync besides".to_owned(),
    ));
}

fn gateway_lines(s: &Sizing<'_>, lines: &mut Vec<Line>) {
    let (d, c, rates, part) = (s.demand, s.c, &s.rates, Part::Gateway);
    let tunnels_max = gateway::Config::default().tunnels_max as f64;
    // A send and its ACK, and the deliveries.
    let frames = rates.deliveries + 2.0 * rates.messages;
    let cores = (frames * c.gateway_us_per_frame.value + rates.beats * c.gateway_us_per_beat.value) / US;
    let bytes_each = c.gateway_bytes_per_tunnel.value + 2.0 * c.kernel_bytes_per_connection.value;
    let by_cpu = s.machines(cores);
    let by_limit = d.connections / tunnels_max;
    let by_memory = d.connections * bytes_each / (d.memory_bytes * d.headroom);
    let needed = by_cpu.max(by_limit).max(by_memory).ceil().max(1.0) + 1.0;
    lines.push(line(
        part,
        "gateways",
        (needed, "servers"),
        &["gateway_us_per_frame", "gateway_us_per_beat", "gateway_bytes_per_tunnel"],
        format!(
            "processes; gateway.tunnels_max {} (two open files each): {by_limit:.1}; {cores:.0} cores: \
             {by_cpu:.1} by processors; {:.1} KiB each: {by_memory:.1} by memory; and one that may die. None with a \
             balancer of your own",
            whole(tunnels_max),
            bytes_each / 1_024.0
        ),
    ));
    let even = "the gateway with the fewest is taken".to_owned();
    lines.push(line(part, "tunnels each", (d.connections / needed, ""), &[], even));
    lines.push(line(
        part,
        "egress each",
        (rates.deliveries * (d.message_bytes + c.frame_bytes.value) / needed, "bytes/s"),
        &["frame_bytes"],
        "and as much from the chat servers".to_owned(),
    ));
}

fn push(s: &Sizing<'_>) -> Line {
    let recipients = s.rates.deliveries - s.rates.direct + s.rates.direct * s.c.offline_share.value;
    let cores = recipients * s.c.push_us_per_recipient.value / US;
    let needed = s.machines(cores).ceil().max(1.0) + 1.0;
    let why = format!(
        "{cores:.1} cores for {} recipients/s of inbox records, each looked up; one consumer group, so at most a \
         server per partition; and one that may die",
        whole(recipients)
    );
    line(Part::Push, "push servers", (needed.min(s.partitions), "servers"), &["push_us_per_recipient"], why)
}
