//! What the settings of this machine allow, held against what a run needs: files, ports, addresses, memory, processes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Serialize;

use super::machine;
use crate::telemetry::human::human_count;

/// Files of a process that are not its connections: engines, HTTP, logs, the runtime.
pub const FILES_RESERVED: u64 = 900;

/// Most connections of one process, whatever its limit of files: past this a single runtime is the bottleneck.
pub const CONNECTIONS_PER_PROCESS_MAX: u64 = 250_000;

/// Memory of the kernel for one end of an idle TCP connection, in bytes: the upper end of what was measured. Source:
/// docs/design.md, section 10.
const KERNEL_BYTES_PER_END: u64 = 5 * 1_024;

/// Memory of a simulated device, in bytes, with few conversations. Source: `cargo bench --bench clients`.
const CLIENT_BYTES: u64 = 2_000;

/// Memory of a chat server for one idle connection, in bytes. Source: `cargo bench --bench connections`.
const SERVER_BYTES: u64 = 2_700;

/// Memory that processes, engines and the rest of the machine need besides, in bytes.
const MEMORY_RESERVED: u64 = 3 << 30;

/// Memory of each process of a large run, in bytes, connections not counted. Source: `chatctl load scenarios/idle-1m.yaml`, where
/// an idle generator takes 7 MiB and a server that holds no connections 12 to 16; twice that is reckoned.
const PROCESS_BYTES: u64 = 30 << 20;

/// Threads of a process, about.
const THREADS_PER_PROCESS: u64 = 24;

/// Share of the ephemeral ports that connections use at most; the rest is for HTTP and everybody else on the machine.
const PORTS_USED_PERCENT: u64 = 70;

/// Bytes that the kernel holds for a connection in the moment when it carries something, read buffers of one page.
const BUSY_BYTES: u64 = 4_096;

/// Pending connections that a storm of clients needs at a listener.
const BACKLOG_WANTED: u64 = 4_096;

/// Processor time for one connection to be made, both ends and the real engines, in seconds. Source: `chatctl load
/// scenarios/idle-1m.yaml`, docs/performance.md.
const CONNECT_CPU_S: f64 = 0.001;

/// The same of the generator alone.
const CONNECT_CPU_S_CLIENT: f64 = 0.000_12;

/// Processor time for one heartbeat, both ends, presence server and Redis, in seconds. Source: the same.
const BEAT_CPU_S: f64 = 0.000_05;

/// The same of the generator alone.
const BEAT_CPU_S_CLIENT: f64 = 0.000_012;

/// Processors that the processes of a large run take for each connection while nothing happens: timers, the log's readers, the
/// registry. Source: what the same run leaves when connects and heartbeats at their costs are taken off.
const IDLE_CORES: f64 = 0.000_000_6;

/// Share of the processors that may be busy before beats are late.
const BUSY_MAX: f64 = 0.9;

/// What is to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// WebSocket connections at the same time.
    pub connections: u64,
    /// Listening sockets that they go to.
    pub servers: u64,
    /// Whether the servers are on this machine too.
    pub has_servers: bool,
    /// Time between two heartbeats of a connection.
    pub heartbeat: Duration,
    /// Time over which all of them connect.
    pub connect_over: Duration,
}

/// How one setting fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It allows what is needed.
    Enough,
    /// It fits, and slows things down or leaves no room.
    Tight,
    /// It does not allow what is needed.
    Short,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Enough => "ok",
            Self::Tight => "tight",
            Self::Short => "SHORT",
        })
    }
}

/// One setting of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What it limits.
    pub what: &'static str,
    /// Its value now, in words.
    pub now: String,
    /// Connections that it allows; `None` where it is not about their number.
    pub allows: Option<u64>,
    /// How it fits.
    pub state: State,
    /// What to do about it; where it is enough, what is done by itself, or nothing.
    pub fix: String,
}

impl Limit {
    /// A setting with what would change it, which is told only where it is not enough.
    #[must_use]
    pub fn with_remedy(what: &'static str, now: String, allows: Option<u64>, state: State, remedy: String) -> Self {
        let fix = if state == State::Enough { String::new() } else { remedy };
        Self { what, now, allows, state, fix }
    }
}

/// The numbers that limits are worked out from. Read from `/proc` by [`Machine::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Files that a process may open (the hard limit).
    pub files_per_process: u64,
    /// Files that all processes may open.
    pub files: u64,
    /// Ports for outgoing connections.
    pub ports: Ports,
    /// Memory for all TCP buffers, in bytes.
    pub tcp_bytes: u64,
    /// Memory that can be had now, in bytes.
    pub memory_bytes: u64,
    /// Pending connections at a listener.
    pub backlog: u64,
    /// Connections that the firewall tracks; `None` where it tracks none.
    pub tracked: Option<u64>,
    /// Threads that there may be.
    pub threads: u64,
    /// Processors.
    pub cores: u64,
}

/// Which ports the system gives to outgoing connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// The first and the last.
    pub ephemeral: (u16, u16),
    /// Those of them, and others, that it keeps for listeners.
    pub reserved: Vec<(u16, u16)>,
}

impl Ports {
    /// Reads this machine's settings.
    #[must_use]
    pub fn read() -> Self {
        let ephemeral = setting("net/ipv4/ip_local_port_range").and_then(|text| {
            let mut ends = text.split_whitespace().filter_map(|end| end.parse().ok());
            Some((ends.next()?, ends.next()?))
        });
        Self {
            ephemeral: ephemeral.unwrap_or((32_768, 60_999)),
            reserved: setting("net/ipv4/ip_local_reserved_ports").map_or(Vec::new(), |text| port_list(&text)),
        }
    }

    fn is_reserved(&self, port: u16) -> bool {
        self.reserved.iter().any(|(a, b)| (*a..=*b).contains(&port))
    }

    /// A port from `from` up to the ephemeral range that is nobody's by configuration, drawn with `chance`.
    #[must_use]
    pub fn listener(&self, from: u16, chance: u16) -> Option<u16> {
        let width = self.ephemeral.0.checked_sub(from).filter(|width| *width > 0)?;
        Some(from + chance % width).filter(|port| !self.is_reserved(*port))
    }

    /// Ports of listeners that outgoing connections may take away: those in the ephemeral range and not reserved.
    #[must_use]
    pub fn endangered(&self, listeners: &[u16]) -> Vec<u16> {
        let (from, to) = self.ephemeral;
        listeners.iter().copied().filter(|port| (from..=to).contains(port) && !self.is_reserved(*port)).collect()
    }
}

/// Whether the firewall tracks connections, found out by making one.
fn is_tracking() -> bool {
    let connect = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").ok()?;
        let stream = std::net::TcpStream::connect(listener.local_addr().ok()?).ok()?;
        Some((listener, stream))
    };
    let open = connect();
    open.is_some() && number("net/netfilter/nf_conntrack_count").is_some_and(|count| count > 0)
}

fn setting(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|text| text.trim().to_owned())
}

fn number(name: &str) -> Option<u64> {
    setting(name)?.split_whitespace().next()?.parse().ok()
}

/// Reads a list of ports such as `7100-7110,9042`.
fn port_list(text: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
    };
    text.split(',').filter_map(range).collect()
}

impl Machine {
    /// Reads this machine's settings. What can't be read is taken as Linux' default.
    #[must_use]
    pub fn read() -> Self {
        let pages = setting("net/ipv4/tcp_mem").and_then(|text| text.split_whitespace().nth(2)?.parse::<u64>().ok());
        let cgroup = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok();
        let threads = [number("kernel/threads-max"), number("kernel/pid_max"), cgroup("pids.max")];
        Self {
            files_per_process: machine::open_files_max(),
            files: number("fs/file-max").unwrap_or(u64::MAX),
            ports: Ports::read(),
            tcp_bytes: pages.map_or(u64::MAX, |pages| pages.saturating_mul(machine::page_bytes())),
            memory_bytes: machine::available_bytes().unwrap_or(u64::MAX),
            backlog: number("net/core/somaxconn").unwrap_or(128),
            tracked: number("net/netfilter/nf_conntrack_max").filter(|_| is_tracking()),
            threads: threads.into_iter().flatten().min().unwrap_or(u64::MAX),
            cores: machine::cores() as u64,
        }
    }

    /// Connections that one process can hold one end of.
    #[must_use]
    pub fn connections_per_process(&self) -> u64 {
        self.files_per_process.saturating_sub(FILES_RESERVED).min(CONNECTIONS_PER_PROCESS_MAX)
    }

    /// Connections from one address to one listening socket.
    #[must_use]
    pub fn connections_per_address(&self) -> u64 {
        let (from, to) = self.ports.ephemeral;
        let inside = |(a, b): &(u16, u16)| {
            let (a, b) = (u64::from((*a).max(from)), u64::from((*b).min(to)));
            (b + 1).saturating_sub(a)
        };
        let reserved: u64 = self.ports.reserved.iter().map(inside).sum();
        (u64::from(to).saturating_sub(u64::from(from)) + 1).saturating_sub(reserved) * PORTS_USED_PERCENT / 100
    }

    /// Generator processes that a number of connections needs.
    #[must_use]
    pub fn workers_for(&self, connections: u64) -> u64 {
        connections.div_ceil(self.connections_per_process().max(1)).max(1)
    }

    /// Connections that memory allows.
    #[must_use]
    pub fn connections_in_memory(&self, has_servers: bool) -> u64 {
        self.memory_bytes.saturating_sub(MEMORY_RESERVED) / self.bytes_per_connection(has_servers)
    }

    fn bytes_per_connection(&self, has_servers: bool) -> u64 {
        let processes = PROCESS_BYTES / self.connections_per_process().max(1);
        let client = CLIENT_BYTES + KERNEL_BYTES_PER_END + processes;
        if has_servers { client + SERVER_BYTES + KERNEL_BYTES_PER_END + processes } else { client }
    }

    /// Everything that limits a number of connections, with what to do about it.
    #[must_use]
    pub fn limits(&self, need: Need) -> Vec<Limit> {
        let ends = if need.has_servers { 2 } else { 1 };
        let processes = self.workers_for(need.connections) * ends;
        let mut limits = vec![self.files_per_process(need), self.all_files(need, ends), self.local_ports(need)];
        limits.push(self.memory(need));
        limits.push(self.buffers(need, ends));
        limits.extend(self.tracking(need));
        let threads = processes * THREADS_PER_PROCESS;
        limits.push(Limit {
            what: "threads",
            now: format!("{} (kernel.pid_max, threads-max, pids.max)", count(self.threads)),
            allows: None,
            state: if threads > self.threads { State::Short } else { State::Enough },
            fix: format!("{} processes need about {}", count(processes), count(threads)),
        });
        let remedy = format!("sysctl -w net.core.somaxconn={BACKLOG_WANTED}: fewer are refused in a reconnect storm");
        let state = if self.backlog < BACKLOG_WANTED { State::Tight } else { State::Enough };
        let now = format!("{} (net.core.somaxconn)", count(self.backlog));
        limits.push(Limit::with_remedy("pending connections", now, None, state, remedy));
        limits.push(self.processors(need));
        limits
    }

    /// Connections whose heartbeats and connecting the processors can bear, by an estimate.
    fn processors(&self, need: Need) -> Limit {
        let (connect, beat) =
            if need.has_servers { (CONNECT_CPU_S, BEAT_CPU_S) } else { (CONNECT_CPU_S_CLIENT, BEAT_CPU_S_CLIENT) };
        let beating = beat / need.heartbeat.as_secs_f64().max(0.1);
        // The last ones connect while nearly all others beat.
        let busiest = connect / need.connect_over.as_secs_f64().max(1.0) + beating + IDLE_CORES;
        let allows = (self.cores as f64 * BUSY_MAX / busiest) as u64;
        let cores = need.connections as f64 * busiest;
        let now = format!("{}; about {cores:.1} are needed for connecting and heartbeats", self.cores);
        // An estimate is no reason to refuse a run: it says INVALID by itself where it was late.
        let state = if need.connections > allows { State::Tight } else { State::Enough };
        let remedy = "fewer users, a longer heartbeat or connect_over (docs/performance.md)".to_owned();
        Limit::with_remedy("processors", now, Some(allows), state, remedy)
    }

    fn files_per_process(&self, need: Need) -> Limit {
        let per_process = self.connections_per_process();
        let workers = self.workers_for(need.connections);
        let fix = if workers > 1 {
            format!("spread over {workers} worker processes; fewer with a higher `ulimit -Hn`")
        } else {
            "one process is enough".to_owned()
        };
        Limit {
            what: "files per process",
            now: format!("{} (ulimit -Hn)", count(self.files_per_process)),
            // Processes add up, so this alone limits nothing.
            allows: None,
            state: if per_process == 0 { State::Short } else { State::Enough },
            fix,
        }
    }

    fn all_files(&self, need: Need, ends: u64) -> Limit {
        let allows = self.files / ends;
        let remedy = format!("sysctl -w fs.file-max={}", need.connections * ends * 2);
        let (now, state) = (format!("{} (fs.file-max)", count(self.files)), fits(need.connections, allows));
        Limit::with_remedy("files of all processes", now, Some(allows), state, remedy)
    }

    fn local_ports(&self, need: Need) -> Limit {
        let per_address = self.connections_per_address() * need.servers.max(1);
        let addresses = need.connections.div_ceil(per_address.max(1)).max(1);
        let (from, to) = self.ports.ephemeral;
        let fix = if need.has_servers {
            format!("source addresses used of 127.0.0.0/8: {}", sources_for(need.connections, self).max(addresses))
        } else if addresses > 1 {
            format!("give {addresses} addresses of this machine with --source-addresses, or widen the range")
        } else {
            "one source address is enough".to_owned()
        };
        let allows = if need.has_servers { None } else { Some(per_address) };
        Limit {
            what: "local ports",
            now: format!("{from}-{to} (net.ipv4.ip_local_port_range)"),
            allows,
            state: allows.map_or(State::Enough, |allows| fits(need.connections, allows)),
            fix,
        }
    }

    fn memory(&self, need: Need) -> Limit {
        let allows = self.connections_in_memory(need.has_servers);
        let each = self.bytes_per_connection(need.has_servers);
        let missing = (need.connections * each + MEMORY_RESERVED).saturating_sub(self.memory_bytes) >> 20;
        let per = format!("{:.1} KiB per connection", each as f64 / 1_024.0);
        Limit {
            what: "memory",
            now: format!("{:.1} GiB available", self.memory_bytes as f64 / (1_u64 << 30) as f64),
            allows: Some(allows),
            state: fits(need.connections, allows),
            fix: if missing > 0 { format!("{per}: {} MiB more, or fewer users", count(missing)) } else { per },
        }
    }

    fn buffers(&self, need: Need, ends: u64) -> Limit {
        let busy = self.tcp_bytes / BUSY_BYTES / ends;
        let wanted = need.connections.saturating_mul(ends * BUSY_BYTES) / machine::page_bytes();
        let now = format!("{} MiB (net.ipv4.tcp_mem)", count(self.tcp_bytes >> 20));
        // Idle connections hold none: this binds only when most carry something at once.
        let state = if busy < need.connections / 4 { State::Tight } else { State::Enough };
        let remedy = format!("sysctl -w net.ipv4.tcp_mem='{} {} {}'", wanted / 2, wanted * 3 / 4, wanted);
        Limit::with_remedy("TCP buffers", now, None, state, remedy)
    }

    fn tracking(&self, need: Need) -> Option<Limit> {
        let allows = self.tracked?;
        let now = format!("{} (net.netfilter.nf_conntrack_max)", count(allows));
        let remedy = format!("sysctl -w net.netfilter.nf_conntrack_max={}", need.connections * 2);
        let state = fits(need.connections, allows);
        Some(Limit::with_remedy("tracked connections", now, Some(allows), state, remedy))
    }
}

fn fits(needed: u64, allowed: u64) -> State {
    if needed > allowed {
        State::Short
    } else if u128::from(needed) * 10 > u128::from(allowed) * 9 {
        State::Tight
    } else {
        State::Enough
    }
}

/// A number, or that there is no limit.
fn count(n: u64) -> String {
    if n == u64::MAX { "unlimited".to_owned() } else { human_count(n) }
}

/// Loopback addresses that a number of connections of one process needs.
#[must_use]
pub fn sources_for(connections: u64, machine: &Machine) -> u64 {
    connections.div_ceil(machine.connections_per_address().max(1)).max(1)
}

/// Some loopback addresses, different for each worker: 127.1.0.1 and onwards.
#[must_use]
pub fn loopback_sources(worker: u64, count: u64) -> Vec<IpAddr> {
    /// First of them: far from 127.0.0.1, where services listen.
    const FIRST: u32 = u32::from_be_bytes([127, 1, 0, 1]);
    let at = |n: u64| IpAddr::V4(Ipv4Addr::from(FIRST + (worker * count + n) as u32));
    (0..count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            files_per_process: 20_000,
            files: 3_000_000,
            ports: Ports { ephemeral: (32_768, 60_999), reserved: vec![] },
            tcp_bytes: 1 << 30,
            memory_bytes: 24 << 30,
            backlog: 4_096,
            tracked: None,
            threads: 100_000,
            cores: 2,
        }
    }

    fn need(connections: u64, servers: u64, has_servers: bool) -> Need {
        let (heartbeat, connect_over) = (Duration::from_secs(30), Duration::from_mins(8));
        Need { connections, servers, has_servers, heartbeat, connect_over }
    }

    fn state(machine: &Machine, connections: u64, what: &str) -> State {
        let limits = machine.limits(need(connections, 60, true));
        limits.into_iter().find(|l| l.what == what).expect("is listed").state
    }

    #[test]
    fn each_limit_is_found_short_where_it_is() {
        let m = machine();
        assert_eq!(m.workers_for(1_000_000), 53);
        assert_eq!(state(&m, 3_000_000, "memory"), State::Short);
        assert_eq!(state(&m, 100_000, "memory"), State::Enough);
        assert_eq!(state(&m, 100_000, "processors"), State::Enough);
        assert_eq!(state(&m, 1_000_000, "processors"), State::Tight);
        assert_eq!(state(&m, 2_000_000, "files of all processes"), State::Short);
        assert_eq!(state(&Machine { threads: 500, ..m.clone() }, 1_000_000, "threads"), State::Short);
        assert_eq!(state(&Machine { tracked: Some(65_536), ..m.clone() }, 70_000, "tracked connections"), State::Short);
        assert_eq!(state(&Machine { backlog: 128, ..m }, 10, "pending connections"), State::Tight);
    }

    #[test]
    fn ports_are_short_only_where_addresses_can_not_be_added() {
        let m = machine();
        let far = m.limits(need(50_000, 1, false));
        let ports = far.iter().find(|l| l.what == "local ports").expect("is listed");
        assert_eq!((ports.state, ports.allows), (State::Short, Some(19_762)));
        assert!(ports.fix.contains("3 addresses") && ports.fix.contains("--source-addresses"), "{}", ports.fix);
        assert_eq!(state(&m, 50_000, "local ports"), State::Enough);
        let ports = Ports { reserved: port_list("40000-49999,7100"), ..m.ports.clone() };
        let reserved = Machine { ports, ..m };
        assert_eq!(reserved.connections_per_address(), 18_232 * 70 / 100);
    }

    #[test]
    fn listeners_in_the_ephemeral_range_are_told_unless_reserved() {
        let ports = Ports { reserved: port_list("40000-40010,20000"), ..machine().ports };
        assert_eq!(ports.endangered(&[7_100, 33_000, 40_005, 61_000]), [33_000]);
        assert_eq!(ports.listener(10_000, 22_768 + 5), Some(10_005));
        assert_eq!(ports.listener(10_000, 10_000), None, "it is reserved");
        assert_eq!(ports.listener(32_768, 7), None, "nothing is left below the ephemeral range");
    }

    #[test]
    fn workers_have_addresses_of_their_own() {
        let (a, b) = (loopback_sources(0, 2), loopback_sources(1, 2));
        assert_eq!(a[0].to_string(), "127.1.0.1");
        assert!(a.iter().all(|address| !b.contains(address) && address.is_loopback()));
    }

    #[test]
    fn this_machine_can_be_read() {
        let m = Machine::read();
        assert!(m.files_per_process > 0 && m.ports.ephemeral.0 < m.ports.ephemeral.1 && m.cores > 0);
    }
}
