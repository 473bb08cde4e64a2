//! Where the generators of a run are, and whether the machine holds it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::loadgen::scenario::EngineChoice;
use crate::loadgen::{Scenario, Target};
use crate::report;
use crate::run::{Error, Notice};
use crate::runtime::limits::{self, Limit, Machine, Need, State};
use crate::runtime::machine;
use crate::server::cluster::placement::LOAD_MAX_PERCENT;

/// Where a run's target and its generators are.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Address of a running stack; without it a stack is started for the run.
    pub target: Option<Target>,
    /// Folder of a stack that `chatctl up` runs: faults of a scenario reach it there, if it is the target.
    pub stack_folder: PathBuf,
    /// Who simulates the users.
    pub generators: Generators,
    /// Addresses of this machine that connections come from; without them they are chosen where the stack is on loopback.
    pub sources: Option<SourceAddresses>,
    /// File with the secret shared with workers on other machines; without it the user's own.
    pub secret_file: Option<PathBuf>,
    /// Runs even where a limit of this machine is short.
    pub is_forced: bool,
}

impl Layout {
    /// Refuses settings that exclude each other.
    ///
    /// # Errors
    /// Names the setting, or the source address that is not this machine's.
    pub fn check(&self) -> Result<(), Error> {
        match (&self.generators, &self.sources) {
            (Generators::Remote(_), Some(SourceAddresses(all))) => {
                Err(Error::usage("they are for generators of this machine")
                    .at(format!("--source-addresses with {} addresses", all.len())))
            }
            (Generators::Auto | Generators::Local(_), Some(SourceAddresses(all))) => check_sources(all),
            (Generators::Auto | Generators::Local(_) | Generators::Remote(_), None) => Ok(()),
        }
    }

    /// Generators in processes of their own on this machine; 0: in this process, which may open so many files.
    fn processes(&self, scenario: &Scenario, machine: &Machine, files: u64) -> usize {
        match &self.generators {
            Generators::Local(count) => *count,
            Generators::Remote(_) => 0,
            Generators::Auto => {
                let devices = scenario.connections_max();
                // Both ends in this process, where the stack is in it.
                let is_in_process = self.has_own_stack() && scenario.stack.engines == EngineChoice::Embedded;
                let ends = if is_in_process { 2 } else { 1 };
                let fits = devices * ends + limits::FILES_RESERVED <= files;
                if fits { 0 } else { machine.workers_for(devices) as usize }
            }
        }
    }

    /// Parts that a run on this machine is cut into, whose processes may open so many files each.
    pub(super) fn parts(&self, scenario: &Scenario, machine: &Machine, files: u64) -> usize {
        match &self.generators {
            Generators::Auto | Generators::Local(_) => self.processes(scenario, machine, files).max(1),
            Generators::Remote(addresses) => addresses.len(),
        }
    }

    /// Whether a stack is started for the run.
    #[must_use]
    pub fn has_own_stack(&self) -> bool {
        self.target.is_none()
    }
}

/// Who simulates the users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Generators {
    /// This process, or as many processes as the connections need.
    #[default]
    Auto,
    /// A number of processes of this machine.
    Local(usize),
    /// Workers that listen, as `host:port`.
    Remote(Vec<String>),
}

/// Most generators of one machine.
const LOCAL_MAX: usize = 1_000;

impl FromStr for Generators {
    type Err = Error;

    /// Reads a number, or addresses as `host:port,host:port`.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(count) = text.parse::<usize>() {
            if !(1..=LOCAL_MAX).contains(&count) {
                return Err(Error::usage("valid are 1 to 1000, or addresses").at(format!("--workers {count}")));
            }
            return Ok(Self::Local(count));
        }
        let addresses: Vec<String> = text.split(',').map(|a| a.trim().to_owned()).collect();
        let is_address = |a: &str| a.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        match addresses.iter().find(|a| !is_address(a)) {
            None => Ok(Self::Remote(addresses)),
            Some(wrong) => {
                Err(Error::usage("write a number, or addresses as host:port,host:port")
                    .at(format!("--workers {wrong:?}")))
            }
        }
    }
}

/// Addresses that connections come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceAddresses(Vec<IpAddr>);

/// Most addresses of one range.
const RANGE_MAX: u32 = 65_536;

impl FromStr for SourceAddresses {
    type Err = String;

    /// Reads a list of addresses and of ranges, as `10.0.0.5,10.0.1.0-10.0.1.9`.
    fn from_str(text: &str) -> Result<Self, String> {
        let address = |part: &str| part.trim().parse::<IpAddr>().map_err(|e| format!("{part:?} is no address: {e}"));
        let mut all = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => all.push(address(part)?),
                Some((from, to)) => match (address(from)?, address(to)?) {
                    (IpAddr::V4(from), IpAddr::V4(to)) if from <= to && u32::from(to) - u32::from(from) < RANGE_MAX => {
                        all.extend((u32::from(from)..=u32::from(to)).map(|n| IpAddr::V4(Ipv4Addr::from(n))));
                    }
                    (IpAddr::V4(_) | IpAddr::V6(_), _) => {
                        return Err(format!(
                            "{part:?}: a range goes from a lower IPv4 address to a higher one, at most 65536"
                        ));
                    }
                },
            }
        }
        Ok(Self(all))
    }
}

/// Connections past which the machine's limits are shown before the run.
const MANY: u64 = 5_000;

/// Share of a chat server's connections that are planned for: placement gives the fullest a quarter more than the mean, and
/// a few.
const PLANNED_PERCENT: u64 = 10_000 / LOAD_MAX_PERCENT - 1;

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

/// Lowers users and raises servers to what fits; returns what was changed.
fn scale_to_fit(scenario: &mut Scenario, machine: &Machine, has_own_stack: bool) -> Vec<Notice> {
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
        notes.push(Notice::UsersLowered {
            asked: scenario.population.users,
            fit: users,
            connections: scenario.connections_max(),
            heartbeat: scenario.heartbeat,
            connect_over: scenario.connect_over,
        });
        scenario.population.users = users;
    }
    if has_own_stack && !is_embedded {
        let needed = scenario.connections_max().div_ceil((per_process * PLANNED_PERCENT / 100).max(1)) as usize;
        if needed > scenario.stack.chat_servers {
            notes.push(Notice::ServersRaised { chat_servers: needed, connections_each: per_process });
            scenario.stack.chat_servers = needed;
        }
    }
    notes
}

/// Why a scenario can't be run with the users that fit on this machine.
#[derive(Debug)]
pub(super) struct Misfit {
    /// The value that is wrong, such as `population.groups[0].members`.
    pub(super) path: String,
    /// What is wrong with it, and the fix.
    pub(super) problem: String,
}

impl From<Misfit> for Error {
    fn from(misfit: Misfit) -> Self {
        Self::usage(misfit.problem).at(misfit.path)
    }
}

/// The scenario as it is run on this machine: scaled where it asks for that. `notify` is told what was changed.
///
/// # Errors
/// When it can't be run with the users that fit.
pub(super) fn fitted(
    scenario: &Scenario,
    machine: &Machine,
    has_own_stack: bool,
    notify: impl Fn(Notice),
) -> Result<Scenario, Misfit> {
    let mut scenario = scenario.clone();
    if !scenario.scale_to_fit {
        return Ok(scenario);
    }
    scale_to_fit(&mut scenario, machine, has_own_stack).into_iter().for_each(notify);
    let Some((path, problem)) = scenario.problems().into_iter().next() else { return Ok(scenario) };
    let users = scenario.population.users;
    let fix = "lower what needs more of them, or raise the limits of this machine (`chatctl doctor`)";
    Err(Misfit { path, problem: format!("{problem}: {users} users fit on this machine (scale_to_fit); {fix}") })
}

/// How the generators of a run are started and reached.
pub(super) struct GeneratorPlan {
    /// Generators in processes of their own on this machine; 0: in this process.
    pub(super) processes: usize,
    /// Workers that listen.
    pub(super) addresses: Vec<String>,
    /// Addresses that each generator's connections come from.
    pub(super) sources: Vec<Vec<IpAddr>>,
}

/// Compares what the run needs with what the machine has.
///
/// # Errors
/// When a limit of the machine is short and the layout is not forced; it names each limit with its fix. When settings exclude
/// each other, and when a source address is not this machine's.
pub(super) fn plan(
    scenario: &Scenario,
    machine: &Machine,
    layout: &Layout,
    notify: impl Fn(Notice),
) -> Result<GeneratorPlan, Error> {
    let own_stack = layout.has_own_stack();
    layout.check()?;
    let devices = scenario.connections_max();
    let files = machine::raise_open_files();
    let processes = layout.processes(scenario, machine, files);
    let addresses = match &layout.generators {
        Generators::Auto | Generators::Local(_) => Vec::new(),
        Generators::Remote(addresses) => addresses.clone(),
    };
    let is_elsewhere = !addresses.is_empty();
    let mut limits = if is_elsewhere { Vec::new() } else { machine.limits(need(scenario, own_stack)) };
    limits.extend(own_stack.then(|| server_files(scenario, machine, processes + addresses.len() > 0, files)));
    if devices > MANY && !is_elsewhere {
        notify(Notice::Limits { limits: limits.clone(), connections: devices });
    }
    let short: Vec<&Limit> = limits.iter().filter(|l| l.state == State::Short).collect();
    if !short.is_empty() && !layout.is_forced {
        let rows = short.iter().map(|l| {
            let allows = l.allows.map_or(String::new(), |n| format!(", enough for {}", report::human_count(n)));
            format!("\n  {}: {}{allows}; {}", l.what, l.now, l.fix)
        });
        return Err(Error::environment(format!(
            "{} connections do not fit on this machine:{}\nlower population.users, change the setting, or run anyway with --force",
            report::human_count(devices),
            rows.collect::<String>()
        )));
    }
    let generators = processes.max(addresses.len()).max(1) as u64;
    let each = devices.div_ceil(generators);
    let sources = match &layout.sources {
        Some(SourceAddresses(all)) => shared_out(all, generators as usize),
        // A stack of this machine is on loopback, where every address is ours.
        None if own_stack && devices > MANY => {
            let count = limits::sources_for(each, machine);
            (0..generators).map(|worker| limits::loopback_sources(worker, count)).collect()
        }
        None => vec![Vec::new(); generators as usize],
    };
    Ok(GeneratorPlan { processes, addresses, sources })
}

/// Finds out before the run whether all addresses are this machine's.
fn check_sources(all: &[IpAddr]) -> Result<(), Error> {
    for address in all {
        // Nothing is sent: binding is enough to know.
        std::net::UdpSocket::bind((*address, 0)).map_err(|e| {
            Error::usage(e).at(format!("--source-addresses {address}")).fix("it must be an address of this machine")
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
    let now = report::counted(scenario.stack.chat_servers as u64, "server");
    Limit::with_remedy("files of the chat servers", now, Some(allows), state, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_lists_and_ranges() {
        let parsed = |text: &str| {
            text.parse::<SourceAddresses>().map(|s| s.0.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            parsed("10.0.0.254-10.0.1.1,::1").expect("valid"),
            ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1", "::1"]
        );
        for wrong in ["", "10.0.0", "10.0.0.2-10.0.0.1", "0.0.0.0-255.255.255.255", "::1-::2"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_scenario_whose_groups_do_not_fit_any_more_is_refused() {
        let text = "{name: t, scale_to_fit: true, population: {users: 60000, groups: [{count: 1, members: \
                    {min: 50000, max: 50000}}]}, behaviors: {group-talker: 1}, phases: [{phase: steady, duration: 1s, \
                    rate: 20}]}";
        let scenario = Scenario::parse(text, "t").expect("valid");
        let small = Machine {
            files_per_process: 20_900,
            files: u64::MAX,
            memory_bytes: 64 << 30,
            tcp_bytes: u64::MAX,
            tracked: None,
            ..Machine::read()
        };
        let misfit = fitted(&scenario, &small, true, |_| ()).expect_err("the group is larger than the population");
        assert_eq!(misfit.path, "population.groups[0].members");
        assert!(misfit.problem.contains(" users fit on this machine"), "{}", misfit.problem);
        assert_eq!(Error::from(misfit).kind, crate::run::ErrorKind::Usage);
        let unscaled = Scenario { scale_to_fit: false, ..scenario };
        assert!(fitted(&unscaled, &small, true, |_| ()).is_ok_and(|same| same == unscaled), "it is as it was");
    }

    #[test]
    fn generators_are_a_number_or_addresses() {
        let parsed = |text: &str| text.parse::<Generators>().map_err(|e| e.to_string());
        assert_eq!(parsed("4"), Ok(Generators::Local(4)));
        assert_eq!(parsed("a:1, b:2"), Ok(Generators::Remote(vec!["a:1".to_owned(), "b:2".to_owned()])));
        assert_eq!(parsed("0"), Err("--workers 0: valid are 1 to 1000, or addresses".to_owned()));
        assert!(parsed("a:1,b").is_err_and(|e| e.starts_with("--workers \"b\": write a number")));
        let sources = Some("127.0.0.1".parse::<SourceAddresses>().expect("valid"));
        let layout = Layout { generators: Generators::Remote(vec!["a:1".to_owned()]), sources, ..Layout::default() };
        assert!(layout.check().is_err_and(|e| e.to_string().starts_with("--source-addresses with 1 addresses: ")));
    }

    #[test]
    fn an_address_of_another_machine_is_refused_before_the_run() {
        // For documents: nobody has it. Source: RFC 5737.
        let sources = Some("192.0.2.1".parse::<SourceAddresses>().expect("valid"));
        let refused = Layout { sources, ..Layout::default() }.check().expect_err("it is not ours");
        assert_eq!(refused.kind, crate::run::ErrorKind::Usage);
        assert!(refused.to_string().starts_with("--source-addresses 192.0.2.1: "), "{refused}");
        let sources = Some("127.0.0.1".parse::<SourceAddresses>().expect("valid"));
        assert!(Layout { sources, ..Layout::default() }.check().is_ok());
    }

    #[test]
    fn addresses_are_shared_out_without_overlap_where_there_are_enough() {
        let all = "127.0.0.1-127.0.0.5".parse::<SourceAddresses>().expect("valid").0;
        let parts = shared_out(&all, 2);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        assert!(parts[0].iter().all(|a| !parts[1].contains(a)));
        assert_eq!(shared_out(&all[..1], 3), vec![all[..1].to_vec(); 3]);
    }
}
