//! Where the generators of a run are, and whether the machine holds it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use chatctl::loadgen::Scenario;
use chatctl::loadgen::scenario::EngineChoice;
use chatctl::report;
use chatctl::runtime::limits::{self, Limit, Machine, Need, State};
use chatctl::runtime::machine;

use crate::doctor;
use crate::exit::Failure;

/// What runs against.
#[derive(clap::Args)]
pub(crate) struct Against {
    /// API address of a running stack; without it a stack is started for the run
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) at: crate::control::At,
    /// Generators: a number of processes of this machine, or the addresses of `chatctl worker --listen` as a:port,b:port; without
    /// it as many processes as the connections need
    #[arg(long, value_name = "N|ADDRESSES")]
    workers: Option<String>,
    /// Addresses of this machine that connections come from, as 10.0.0.5,10.0.0.6 or 10.0.0.5-10.0.0.9; on loopback they are chosen
    #[arg(long, value_name = "LIST", value_parser = parse_addresses)]
    source_addresses: Option<Sources>,
    /// File with the secret shared with workers on other machines
    #[arg(long, value_name = "FILE", env = "CHATCTL_WORKER_SECRET_FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Runs even where a limit of this machine is short
    #[arg(long)]
    force: bool,
}

/// A list of addresses.
#[derive(Debug, Clone)]
pub(crate) struct Sources(Vec<IpAddr>);

/// Most addresses of one list.
const SOURCES_MAX: u32 = 65_536;

fn parse_addresses(text: &str) -> Result<Sources, String> {
    let address = |part: &str| part.trim().parse::<IpAddr>().map_err(|e| format!("{part:?} is no address: {e}"));
    let mut all = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => all.push(address(part)?),
            Some((from, to)) => match (address(from)?, address(to)?) {
                (IpAddr::V4(from), IpAddr::V4(to)) if from <= to && u32::from(to) - u32::from(from) < SOURCES_MAX => {
                    all.extend((u32::from(from)..=u32::from(to)).map(|n| IpAddr::V4(Ipv4Addr::from(n))));
                }
                _ => {
                    return Err(format!(
                        "{part:?}: a range goes from a lower IPv4 address to a higher one, at most 65536"
                    ));
                }
            },
        }
    }
    Ok(Sources(all))
}

/// Who simulates the users.
enum Generators {
    /// This process, or as many processes as the connections need.
    Auto,
    /// Processes of this machine.
    Here(usize),
    /// Workers that listen.
    There(Vec<String>),
}

impl Against {
    fn generators(&self) -> Result<Generators, Failure> {
        let Some(text) = &self.workers else { return Ok(Generators::Auto) };
        if let Ok(count) = text.parse::<usize>() {
            if !(1..=1_000).contains(&count) {
                return Err(Failure::usage(format!("--workers {count}: valid are 1 to 1000, or addresses")));
            }
            return Ok(Generators::Here(count));
        }
        let addresses: Vec<String> = text.split(',').map(|a| a.trim().to_owned()).collect();
        if let Some(wrong) =
            addresses.iter().find(|a| a.rsplit_once(':').is_none_or(|(_, p)| p.parse::<u16>().is_err()))
        {
            return Err(Failure::usage(format!(
                "--workers {wrong:?}: write a number, or addresses as host:port,host:port"
            )));
        }
        Ok(Generators::There(addresses))
    }

    /// Parts that the run is known to be cut into.
    pub(crate) fn parts(&self) -> Result<usize, Failure> {
        let generators = self.generators()?;
        if let (Generators::There(_), Some(Sources(all))) = (&generators, &self.source_addresses) {
            return Err(Failure::usage(format!(
                "--source-addresses with {} addresses: they are for generators of this machine",
                all.len()
            )));
        }
        Ok(match generators {
            Generators::Auto => 1,
            Generators::Here(count) => count,
            Generators::There(addresses) => addresses.len(),
        })
    }

    /// Whether a stack is started for the run.
    pub(crate) fn has_own_stack(&self) -> bool {
        self.target.is_none()
    }
}

/// Connections past which the machine's limits are shown before the run.
const MANY: u64 = 5_000;

/// Share of a chat server's connections that are planned for, since placement spreads them within 10 %.
const PLANNED_PERCENT: u64 = 88;

/// Most chat servers that are planned without being asked for.
const CHAT_SERVERS_MAX: u64 = 400;

/// What a scenario wants of the machine.
fn need(scenario: &Scenario, has_servers: bool) -> Need {
    Need {
        connections: scenario.connections_max(),
        servers: scenario.stack.chat_servers.max(1) as u64,
        has_servers,
        heartbeat: scenario.heartbeat,
        connect_over: scenario.connect_over,
    }
}

/// Lowers users and raises servers to what fits; returns what was changed, in words.
pub(crate) fn scale_to_fit(scenario: &mut Scenario, machine: &Machine, has_own_stack: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let devices_each = u64::from(scenario.population.devices_per_user.max);
    let per_process = machine.connections_per_process();
    let is_embedded = scenario.stack.engines == EngineChoice::Embedded;
    let mut most = machine.connections_in_memory(has_own_stack);
    for allows in machine.limits(need(scenario, has_own_stack)).iter().filter_map(|l| l.allows) {
        most = most.min(allows);
    }
    if has_own_stack && is_embedded {
        // All servers are in one process.
        most = most.min(per_process);
    } else if has_own_stack {
        most = most.min(per_process * PLANNED_PERCENT / 100 * CHAT_SERVERS_MAX);
    }
    // In whole thousands, so that two runs on a machine are the same.
    let most = if most > 10_000 { most / 1_000 * 1_000 } else { most };
    if scenario.connections_max() > most {
        let users = (most / devices_each) as u32;
        notes.push(format!(
            "fits       {} of {} users fit on this machine (`chatctl doctor --connections {} --heartbeat {}s --connect-over {}s` says why)",
            report::human_count(users.into()),
            report::human_count(scenario.population.users.into()),
            scenario.connections_max(),
            scenario.heartbeat.as_secs(),
            scenario.connect_over.as_secs()
        ));
        scenario.population.users = users;
    }
    if has_own_stack && !is_embedded {
        let needed = scenario.connections_max().div_ceil((per_process * PLANNED_PERCENT / 100).max(1)) as usize;
        if needed > scenario.stack.chat_servers {
            notes.push(format!(
                "servers    {needed} chat servers, since one process may hold {per_process} connections"
            ));
            scenario.stack.chat_servers = needed;
        }
    }
    notes
}

/// How the generators of a run are laid out.
pub(crate) struct Plan {
    /// Generators in processes of their own on this machine; 0: in this process.
    pub(crate) processes: usize,
    /// Workers that listen.
    pub(crate) addresses: Vec<String>,
    /// Addresses that each generator's connections come from.
    pub(crate) sources: Vec<Vec<IpAddr>>,
}

/// Holds the run against the machine; says before it begins what can't fit.
pub(crate) fn plan(
    scenario: &Scenario,
    machine: &Machine,
    against: &Against,
    note: impl Fn(&str),
) -> Result<Plan, Failure> {
    let own_stack = against.has_own_stack();
    against.parts()?;
    let is_in_process = own_stack && scenario.stack.engines == EngineChoice::Embedded;
    let devices = scenario.connections_max();
    let files = machine::raise_open_files();
    let (processes, addresses) = match against.generators()? {
        Generators::Here(count) => (count, Vec::new()),
        Generators::There(addresses) => (0, addresses),
        Generators::Auto => {
            // Both ends in this process, where the stack is in it.
            let ends = if is_in_process { 2 } else { 1 };
            let fits = devices * ends + limits::FILES_RESERVED <= files;
            (if fits { 0 } else { machine.workers_for(devices) as usize }, Vec::new())
        }
    };
    let is_elsewhere = !addresses.is_empty();
    let mut limits = if is_elsewhere { Vec::new() } else { machine.limits(need(scenario, own_stack)) };
    limits.extend(own_stack.then(|| server_files(scenario, machine, processes + addresses.len() > 0, files)));
    if devices > MANY && !is_elsewhere {
        note(&doctor::table(&limits, devices));
    }
    let short: Vec<&Limit> = limits.iter().filter(|l| l.state == State::Short).collect();
    if !short.is_empty() && !against.force {
        let rows = short.iter().map(|l| {
            let allows = l.allows.map_or(String::new(), |n| format!(", enough for {}", report::human_count(n)));
            format!("\n  {}: {}{allows}; {}", l.what, l.now, l.fix)
        });
        return Err(Failure::environment(format!(
            "{} connections do not fit on this machine:{}\nlower population.users, change the setting, or run anyway with --force",
            report::human_count(devices),
            rows.collect::<String>()
        )));
    }
    let generators = processes.max(addresses.len()).max(1) as u64;
    let each = devices.div_ceil(generators);
    let sources = match &against.source_addresses {
        Some(Sources(all)) => {
            check_sources(all)?;
            shared_out(all, generators as usize)
        }
        // A stack of this machine is on loopback, where every address is ours.
        None if own_stack && devices > MANY => {
            let count = limits::sources_for(each, machine);
            (0..generators).map(|worker| limits::loopback_sources(worker, count)).collect()
        }
        None => vec![Vec::new(); generators as usize],
    };
    Ok(Plan { processes, addresses, sources })
}

/// Finds out before the run whether all addresses are this machine's.
fn check_sources(all: &[IpAddr]) -> Result<(), Failure> {
    for address in all {
        // Nothing is sent: binding is enough to know.
        std::net::UdpSocket::bind((*address, 0)).map_err(|e| {
            Failure::usage(format!("--source-addresses {address}: {e}; it must be an address of this machine"))
        })?;
    }
    Ok(())
}

/// Each generator's part of the addresses; all of them where there are too few.
fn shared_out(all: &[IpAddr], generators: usize) -> Vec<Vec<IpAddr>> {
    if all.len() < generators {
        return vec![all.to_vec(); generators];
    }
    (0..generators).map(|n| all.iter().skip(n).step_by(generators).copied().collect()).collect()
}

/// Whether the servers of an own stack may open as many files as they get connections.
fn server_files(scenario: &Scenario, machine: &Machine, has_workers: bool, files: u64) -> Limit {
    let devices = scenario.connections_max();
    let per_process = machine.connections_per_process();
    let (allows, fix) = if scenario.stack.engines == EngineChoice::Embedded {
        let both = files.saturating_sub(limits::FILES_RESERVED) / 2;
        let allows = if has_workers { per_process } else { both };
        (
            allows,
            "embedded engines belong to one process: set stack.engines to real, or raise the limit (ulimit -Hn)"
                .to_owned(),
        )
    } else {
        let each = per_process * PLANNED_PERCENT / 100;
        let needed = devices.div_ceil(each.max(1));
        (
            each * scenario.stack.chat_servers as u64,
            format!("set stack.chat_servers to {needed}, or scale_to_fit to true"),
        )
    };
    let state = if devices > allows { State::Short } else { State::Enough };
    let now = format!("{} servers", scenario.stack.chat_servers);
    Limit::with_remedy("files of the chat servers", now, Some(allows), state, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_lists_and_ranges() {
        let parsed = |text| parse_addresses(text).map(|s| s.0.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            parsed("10.0.0.254-10.0.1.1,::1").expect("valid"),
            ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1", "::1"]
        );
        for wrong in ["", "10.0.0", "10.0.0.2-10.0.0.1", "0.0.0.0-255.255.255.255", "::1-::2"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_shared_out_without_overlap_where_there_are_enough() {
        let all = parse_addresses("127.0.0.1-127.0.0.5").expect("valid").0;
        let parts = shared_out(&all, 2);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        assert!(parts[0].iter().all(|a| !parts[1].contains(a)));
        assert_eq!(shared_out(&all[..1], 3), vec![all[..1].to_vec(); 3]);
    }
}
