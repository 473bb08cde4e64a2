//! What types can't say of a scenario: limits, and combinations that could not run or would measure nothing.

use std::fmt::Display;
use std::time::Duration;

use super::name::check_name;
use super::places::Places;
use super::threshold::Statistic;
use super::{PhaseKind, Range, Scenario};
use crate::loadgen::behavior::Behavior;
use crate::protocol::limits::PARTITIONS_MAX;

/// Something that keeps a scenario from being run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// What it is about, such as `phases[2].rate`.
    pub(super) path: String,
    /// What is wrong with it, and what would be right.
    pub(super) text: String,
}

/// Longest of all times in a scenario.
const TIME_MAX: Duration = Duration::from_hours(30 * 24);

/// Users, devices and conversations each have numbers of 24 bits in a message's uuid.
const NUMBERS: u64 = 1 << 24;

/// Most memberships and friendships of a run.
const MEMBERSHIPS_MAX: u64 = 1 << 28;

/// Most entries of a list, and largest weight.
const ENTRIES_MAX: usize = 10_000;
const WEIGHT_MAX: u32 = 1_000_000;

/// Most messages per second.
const RATE_MAX: f64 = 1e6;

/// Most servers of a role.
const SERVERS_MAX: usize = 64;

/// Finds everything that is wrong. `places` tells what the text says from what is a default; without it everything is taken as
/// said.
pub(super) fn problems(scenario: &Scenario, places: Option<&Places>) -> Vec<Problem> {
    let mut check = Check { scenario, places, problems: Vec::new() };
    check.identity();
    check.stack();
    check.population();
    check.behaviors();
    check.phases();
    check.times();
    check.churn();
    check.faults();
    // The rest adds and multiplies what was checked.
    if check.problems.is_empty() {
        check.sizes();
        check.talk();
        check.thresholds();
    }
    check.problems
}

struct Check<'a> {
    scenario: &'a Scenario,
    places: Option<&'a Places>,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn add(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), text: text.into() });
    }

    /// A value that has to lie between two others.
    fn between<T: PartialOrd + Display>(&mut self, path: impl Into<String>, value: T, lowest: T, highest: T) {
        if !(lowest <= value && value <= highest) {
            self.add(path, format!("{value}: valid are {lowest} to {highest}"));
        }
    }

    fn time(&mut self, path: impl Into<String>, value: Duration, lowest: Duration, highest: Duration) {
        let shown = humantime::format_duration;
        if !(lowest..=highest).contains(&value) {
            let (value, lowest, highest) = (shown(value), shown(lowest), shown(highest));
            self.add(path, format!("{value}: valid are {lowest} to {highest}"));
        }
    }

    fn range(&mut self, path: impl Into<String>, range: Range, lowest: u32, highest: u32) {
        let Range { min, max } = range;
        if min < lowest || max > highest || min > max {
            self.add(path, format!("min {min}, max {max}: valid are {lowest} <= min <= max <= {highest}"));
        }
    }

    fn entries(&mut self, path: &str, count: usize) {
        if count > ENTRIES_MAX {
            self.add(path, format!("{count} entries: at most {ENTRIES_MAX}"));
        }
    }

    fn identity(&mut self) {
        if let Err(problem) = check_name(&self.scenario.name) {
            self.add("name", problem);
        }
        if self.scenario.description.chars().count() > ENTRIES_MAX {
            self.add("description", format!("at most {ENTRIES_MAX} characters"));
        }
    }

    fn stack(&mut self) {
        let stack = &self.scenario.stack;
        self.between("stack.chat_servers", stack.chat_servers, 1, SERVERS_MAX);
        self.between("stack.presence_servers", stack.presence_servers, 1, SERVERS_MAX);
        self.between("stack.api_servers", stack.api_servers, 1, SERVERS_MAX);
        self.between("stack.gateways", stack.gateways, 0, SERVERS_MAX);
        self.between("stack.partitions", stack.partitions, 1, PARTITIONS_MAX);
    }

    fn population(&mut self) {
        let population = &self.scenario.population;
        self.between("population.users", population.users, 2, NUMBERS as u32 - 1);
        self.range("population.devices_per_user", population.devices_per_user, 1, 8);
        self.range("population.message_bytes", population.message_bytes, 80, 60_000);
        self.entries("population.groups", population.groups.len());
        for (n, groups) in population.groups.iter().enumerate() {
            self.range(format!("population.groups[{n}].members"), groups.members, 2, population.users);
            self.between(format!("population.groups[{n}].count"), groups.count, 0, NUMBERS as u32 - 1);
        }
    }

    fn behaviors(&mut self) {
        let scenario = self.scenario;
        for (behavior, weight) in &scenario.behaviors {
            self.between(format!("behaviors.{}", behavior.name()), *weight, 0, WEIGHT_MAX);
        }
        if scenario.behaviors.values().all(|weight| *weight == 0) {
            self.add("behaviors", "every weight is 0: give at least one behaviour a weight");
        }
        for spec in scenario.specs() {
            if let Some(problem) = spec.talks.lacks(scenario.has_direct(), scenario.has_groups()) {
                self.add(format!("behaviors.{}", spec.name), problem);
            }
        }
    }

    fn phases(&mut self) {
        let phases = &self.scenario.phases;
        if phases.is_empty() {
            self.add("phases", "there is none: add at least {phase: steady, duration: 10s, rate: 10}");
        } else if phases.iter().all(|phase| phase.phase == PhaseKind::WarmUp) {
            self.add("phases", "a warm-up is not measured, and there is nothing else: add {phase: steady, …}");
        }
        self.entries("phases", phases.len());
        for (n, phase) in phases.iter().enumerate() {
            self.time(format!("phases[{n}].duration"), phase.duration, Duration::from_millis(10), TIME_MAX);
            self.between(format!("phases[{n}].rate"), phase.rate, 0.0, RATE_MAX);
            self.between(format!("phases[{n}].rate_to"), phase.rate_to.unwrap_or(0.0), 0.0, RATE_MAX);
        }
        let total = self.scenario.duration();
        if total > TIME_MAX && phases.iter().all(|phase| phase.duration <= TIME_MAX) {
            let (total, most) = (humantime::format_duration(total), humantime::format_duration(TIME_MAX));
            self.add("phases", format!("{total} over all phases: at most {most}"));
        }
    }

    fn times(&mut self) {
        let s = self.scenario;
        let (ms, day) = (Duration::from_millis, Duration::from_hours(24));
        self.time("connect_over", s.connect_over, Duration::ZERO, TIME_MAX);
        self.time("heartbeat", s.heartbeat, ms(100), day);
        if !s.ping_after.is_zero() && !(Duration::from_secs(1)..=day).contains(&s.ping_after) {
            let shown = humantime::format_duration(s.ping_after);
            self.add("ping_after", format!("{shown}: valid are 0s, which is never, and 1s to 1day"));
        }
        self.time("poll_interval", s.poll_interval, ms(50), day);
        self.time("read_pause", s.read_pause, ms(10), day);
        self.time("reconnect.first", s.reconnect.first, ms(1), day);
        self.time("reconnect.max", s.reconnect.max, s.reconnect.first, day);
        self.time("flapper.online", s.flapper.online, ms(100), TIME_MAX);
        self.time("flapper.away", s.flapper.away, ms(100), TIME_MAX);
        self.time("flapper.presence_away", s.flapper.presence_away, ms(100), TIME_MAX);
        self.time("generator_lag_max", s.generator_lag_max, Duration::ZERO, day);
        if s.heartbeat_grid > s.heartbeat / 10 {
            self.add("heartbeat_grid", "at most a tenth of heartbeat");
        }
        if !s.heartbeat_grid.subsec_nanos().is_multiple_of(1_000_000) {
            self.add("heartbeat_grid", "whole milliseconds");
        }
    }

    fn churn(&mut self) {
        let Some(churn) = self.scenario.churn else { return };
        self.time("churn.every", churn.every, Duration::from_millis(10), TIME_MAX);
        self.time("churn.back_after", churn.back_after, Duration::from_millis(10), TIME_MAX);
        let groups = &self.scenario.population.groups;
        if groups.iter().any(|groups| groups.count > 0 && groups.members.max > 2) {
            return;
        }
        let fix = match groups.iter().filter(|groups| groups.count > 0).map(|groups| groups.members.max).max() {
            Some(most) => format!("the largest has {most}; set population.groups[].members above 2"),
            None if groups.is_empty() => "there are none; add population.groups".to_owned(),
            None => "there are none; set population.groups[].count above 0".to_owned(),
        };
        self.add("churn", format!("members come and go in groups of at least 3: {fix}"));
    }

    fn faults(&mut self) {
        let duration = self.scenario.duration();
        self.entries("faults", self.scenario.faults.len());
        for (n, fault) in self.scenario.faults.iter().enumerate() {
            if fault.at.checked_add(fault.action.lasts()).is_none_or(|end| end > duration) {
                let (at, lasts) = (humantime::format_duration(fault.at), humantime::format_duration(duration));
                let what = &fault.action;
                self.add(format!("faults[{n}].at"), format!("{what} at {at} ends after the load, which lasts {lasts}"));
            }
            let others = self.scenario.faults.iter().enumerate().filter(|(m, _)| *m != n);
            let lasting = others.filter(|(m, other)| {
                // Of two that begin together the later one in the list is told of.
                let begins = (other.at, *m) < (fault.at, n);
                begins && other.at.saturating_add(other.action.lasts()) > fault.at
            });
            if let Some((m, other)) = lasting.into_iter().find(|(_, other)| other.action.collides_with(&fault.action)) {
                let problem =
                    format!("{} begins while faults[{m}], {}, lasts: let that end first", fault.action, other.action);
                self.add(format!("faults[{n}].at"), problem);
            }
        }
    }

    /// Everything that is numbered has to fit its numbers.
    fn sizes(&mut self) {
        let population = &self.scenario.population;
        let users = u64::from(population.users);
        let devices = users * u64::from(population.devices_per_user.max);
        if devices >= NUMBERS {
            self.add("population.devices_per_user", format!("{devices} devices in all: at most {}", NUMBERS - 1));
        }
        // Each round of a ring gives every user two partners.
        let pairs = |per_user: u32| users * u64::from(per_user.div_ceil(2));
        for (path, per_user, most) in [
            ("population.friends_per_user", population.friends_per_user, MEMBERSHIPS_MAX / 2),
            ("population.direct_per_user", population.direct_per_user, NUMBERS - 1),
        ] {
            if pairs(per_user) > most {
                self.add(path, format!("{per_user}: that is {} pairs of users, at most {most}", pairs(per_user)));
            }
        }
        let counts = population.groups.iter().map(|groups| u64::from(groups.count));
        let conversations = counts.sum::<u64>().saturating_add(pairs(population.direct_per_user));
        if conversations >= NUMBERS {
            self.add("population.groups", format!("{conversations} conversations in all: at most {}", NUMBERS - 1));
        }
        let members = population.groups.iter().map(|groups| u64::from(groups.count) * u64::from(groups.members.max));
        let memberships = members.fold(0, u64::saturating_add);
        if memberships > MEMBERSHIPS_MAX {
            self.add("population.groups", format!("{memberships} memberships in all: at most {MEMBERSHIPS_MAX}"));
        }
    }

    /// Who is asked to send has to exist, and who sends has to be asked.
    fn talk(&mut self) {
        let scenario = self.scenario;
        let talkers: Vec<&str> = scenario.talkers().map(|spec| spec.name).collect();
        for (n, phase) in scenario.phases.iter().enumerate() {
            let path = format!("phases[{n}].rate");
            let is_said = self.places.is_none_or(|places| places.has(&path));
            let rate = phase.rate.max(phase.rate_to.unwrap_or(0.0));
            if talkers.is_empty() && rate > 0.0 {
                let names = Behavior::names(|spec| spec.talks.is_anywhere());
                let (last, others) = names.split_last().expect("some behaviours send");
                let problem = format!(
                    "{rate} messages per second, and nobody sends: give {} or {last} a weight, and conversations",
                    others.join(", ")
                );
                self.add(path, problem);
            } else if !talkers.is_empty() && !is_said && phase.rate_to.is_none() {
                let problem = format!(
                    "the phase {} has none, and {} would send nothing: set it, to 0 where nobody is to send",
                    phase.phase.as_str(),
                    talkers.join(", ")
                );
                self.add(path, problem);
            }
        }
    }

    /// A threshold on something that can't happen, or not often enough, is never met.
    fn thresholds(&mut self) {
        let scenario = self.scenario;
        self.entries("thresholds", scenario.thresholds.len());
        for (n, threshold) in scenario.thresholds.iter().enumerate() {
            if let Some(problem) = threshold.foregone(!scenario.faults.is_empty()) {
                self.add(format!("thresholds[{n}]"), format!("{:?} {problem}", threshold.to_string()));
                continue;
            }
            let Some((path, statistic)) = threshold.latency() else { continue };
            if statistic == Statistic::Count {
                continue;
            }
            let text = threshold.to_string();
            if let Some(missing) = scenario.missing_for(path) {
                self.add(format!("thresholds[{n}]"), format!("{text:?} has nothing to measure: {missing}"));
                continue;
            }
            let needs = statistic.samples_min();
            let Some(most) = scenario.samples_max(path).filter(|most| *most < needs as f64) else { continue };
            let problem = format!(
                "{text:?} needs {needs} samples, and the measured phases make {most:.0} at most: raise rate or duration"
            );
            self.add(format!("thresholds[{n}]"), problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key, one a line.
    const GOOD: &str = "name: tiny
seed: 7
stack: {chat_servers: 2, presence_servers: 1, api_servers: 1, gateways: 0, partitions: 8}
population:
  users: 10
  devices_per_user: {min: 1, max: 2}
  friends_per_user: 2
  direct_per_user: 2
  message_bytes: {min: 100, max: 200}
  groups:
    - {count: 1, members: {min: 3, max: 5}}
    - {count: 2, members: {min: 2, max: 4}}
behaviors:
  one-to-one: 2
  group-talker: 3
  lurker: 1
connect_over: 1s
heartbeat: 5s
heartbeat_grid: 20ms
poll_interval: 3s
read_pause: 2s
generator_lag_max: 100ms
reconnect:
  first: 500ms
  max: 10s
flapper:
  online: 6s
  away: 4s
  presence_away: 40s
churn:
  every: 2s
  back_after: 3s
phases:
  - {phase: warm-up, duration: 1s, rate: 5}
  - phase: ramp
    duration: 2s
    rate: 5
    rate_to: 10
  - phase: steady
    duration: 5s
    rate: 40
faults:
  - {at: 1s, do: kill chat-1}
  - at: 2s
    do: drain chat-2
thresholds:
  - lost == 0
  - ack_ms.p99 < 50
ping_after: 30s
";

    fn refused(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        Scenario::parse(&GOOD.replacen(from, to, 1), "x").expect_err(to).to_string()
    }

    /// What is changed, and what the error says.
    const REFUSED: &[(&str, &str, &str)] = &[
        ("name: tiny", "name: ../x", "x:1:1: name: \"../x\": it contains '/'"),
        ("name: tiny", "name: \"a\\u001b[2J\"", "x:1:1: name: \"a\\\\u{1b}[2J\": it has control"),
        ("chat_servers: 2", "chat_servers: 0", "x:3:9: stack.chat_servers: 0: valid are 1 to 64"),
        ("chat_servers: 2", "chat_servers: 65", "x:3:9: stack.chat_servers: 65: valid are 1 to 64"),
        ("presence_servers: 1", "presence_servers: 0", "x:3:26: stack.presence_servers: 0: valid are 1 to 64"),
        ("api_servers: 1", "api_servers: 0", "stack.api_servers: 0: valid are 1 to 64"),
        ("gateways: 0", "gateways: 1000", "stack.gateways: 1000: valid are 0 to 64"),
        ("partitions: 8", "partitions: 0", "stack.partitions: 0: valid are 1 to 16384"),
        ("users: 10", "users: 1", "x:5:3: population.users: 1: valid are 2 to 16777215"),
        ("users: 10", "users: 16777216", "x:5:3: population.users: 16777216: valid are 2 to 16777215"),
        ("users: 10", "users: 9000000", "x:6:3: population.devices_per_user: 18000000 devices in all: at most"),
        ("{min: 1, max: 2}", "{min: 0, max: 2}", "x:6:3: population.devices_per_user: min 0, max 2: valid are 1 <="),
        ("{min: 1, max: 2}", "{min: 3, max: 2}", "x:6:3: population.devices_per_user: min 3, max 2"),
        ("{min: 100, max: 200}", "{min: 79, max: 200}", "x:9:3: population.message_bytes: min 79"),
        (
            "friends_per_user: 2",
            "friends_per_user: 4000000000",
            "x:7:3: population.friends_per_user: 4000000000: that is",
        ),
        (
            "direct_per_user: 2",
            "direct_per_user: 4000000",
            "x:8:3: population.direct_per_user: 4000000: that is 20000000",
        ),
        ("count: 2", "count: 4294967295", "x:12:8: population.groups[1].count: 4294967295: valid are 0 to 16777215"),
        ("count: 2", "count: 16777215", "x:10:3: population.groups: 16777226 conversations in all"),
        ("{min: 2, max: 4}", "{min: 2, max: 11}", "x:12:18: population.groups[1].members: min 2, max 11"),
        ("{min: 2, max: 4}", "{min: 1, max: 4}", "x:12:18: population.groups[1].members: min 1, max 4"),
        ("one-to-one: 2", "one-to-one: 4294967295", "x:14:3: behaviors.one-to-one: 4294967295: valid are 0 to 1000000"),
        ("direct_per_user: 2", "direct_per_user: 0", "x:14:3: behaviors.one-to-one: one-to-one talkers need"),
        ("connect_over: 1s", "connect_over: 9999999h", "x:17:1: connect_over: "),
        ("heartbeat: 5s", "heartbeat: 0s", "x:18:1: heartbeat: 0s: valid are 100ms to 1day"),
        ("heartbeat: 5s", "heartbeat: 9999999h", "x:18:1: heartbeat: "),
        ("heartbeat_grid: 20ms", "heartbeat_grid: 1s", "x:19:1: heartbeat_grid: at most a tenth of heartbeat"),
        ("heartbeat_grid: 20ms", "heartbeat_grid: 1500us", "x:19:1: heartbeat_grid: whole milliseconds"),
        ("poll_interval: 3s", "poll_interval: 0s", "x:20:1: poll_interval: 0s: valid are 50ms to 1day"),
        ("read_pause: 2s", "read_pause: 0s", "x:21:1: read_pause: 0s: valid are 10ms to 1day"),
        ("generator_lag_max: 100ms", "generator_lag_max: 99days", "x:22:1: generator_lag_max: "),
        ("first: 500ms", "first: 0s", "x:24:3: reconnect.first: 0s: valid are 1ms to 1day"),
        ("max: 10s", "max: 100ms", "x:25:3: reconnect.max: 100ms: valid are 500ms to 1day"),
        ("max: 10s", "max: 9999999h", "x:25:3: reconnect.max: "),
        ("online: 6s", "online: 0s", "x:27:3: flapper.online: 0s: valid are 100ms to 30days"),
        ("  away: 4s", "  away: 1us", "x:28:3: flapper.away: 1us: valid are 100ms to 30days"),
        ("presence_away: 40s", "presence_away: 0s", "x:29:3: flapper.presence_away: 0s"),
        ("every: 2s", "every: 0s", "x:31:3: churn.every: 0s: valid are 10ms to 30days"),
        ("every: 2s", "every: 1ns", "x:31:3: churn.every: 1ns: valid are 10ms to 30days"),
        ("back_after: 3s", "back_after: 0s", "x:32:3: churn.back_after: 0s: valid are 10ms to 30days"),
        ("duration: 2s", "duration: 0s", "x:36:5: phases[1].duration: 0s: valid are 10ms to 30days"),
        ("duration: 2s", "duration: 9999999h", "x:36:5: phases[1].duration: "),
        ("duration: 2s", "duration: 30days", "x:33:1: phases: 30days 6s over all phases: at most 30days"),
        ("    rate: 5", "    rate: .nan", "x:37:5: phases[1].rate: NaN: valid are 0 to 1000000"),
        ("    rate: 5", "    rate: .inf", "x:37:5: phases[1].rate: inf: valid are 0 to 1000000"),
        ("    rate: 5", "    rate: 1e999", "x:37:11: \"1e999\" stands here, and wanted is a number"),
        ("rate_to: 10", "rate_to: -1", "x:38:5: phases[1].rate_to: -1: valid are 0 to 1000000"),
        ("    rate: 40\n", "", "x:39:5: phases[2].rate: the phase steady has none, and one-to-one, group-talker would"),
        ("at: 2s", "at: 9s", "x:44:5: faults[1].at: drain chat-2 at 9s ends after the load, which lasts 8s"),
        (
            "  - at: 2s\n",
            "  - {at: 1s, do: pause redis 3s}\n  - {at: 3s, do: pause redis 1s}\n  - at: 2s\n",
            "x:45:6: faults[2].at: pause redis 1s begins while faults[1], pause redis 3s, lasts: let that end first",
        ),
        ("at: 2s", "at: 500000000000y", "x:44:5: faults[1].at: "),
        ("ack_ms.p99 < 50", "ack_ms.p999 < 50", "x:48:5: thresholds[1]: \"ack_ms.p999 < 50\" needs 1000 samples"),
        ("ping_after: 30s", "ping_after: 1us", "x:49:1: ping_after: 1us: valid are 0s, which is never, and 1s to 1day"),
        ("ping_after: 30s", "ping_after: 1ns", "x:49:1: ping_after: 1ns: valid are 0s, which is never, and 1s to 1day"),
        ("ping_after: 30s", "ping_after: 18446744073709551615s", "x:49:1: ping_after: "),
        ("ack_ms.p99", "delivery_channel_ms.p50", "has nothing to measure: there is no group of more than 100 members"),
        ("ack_ms.p99", "delivery_slow_reader_ms.p50", "has nothing to measure: nobody is a slow-reader"),
        ("ack_ms.p99 < 50", "ack_ms.p99 < nan", "\"nan\" is not a finite number"),
        ("lost == 0", "lost == 1e999", "\"1e999\" is not a finite number"),
        ("lost == 0", "lost < 0", "x:47:5: thresholds[0]: \"lost < 0\" can't be met: lost is never below 0"),
        ("lost == 0", "lost >= 0", "x:47:5: thresholds[0]: \"lost >= 0\" can't fail: lost is never below 0"),
        ("ack_ms.p99 < 50", "ack_ms.p99 < -1", "thresholds[1]: \"ack_ms.p99 < -1\" can't be met: ack_ms.p99 is never"),
        ("lost == 0", "pushed_percent >= 101", "\"pushed_percent >= 101\" can't be met: pushed_percent lies between 0"),
    ];

    #[test]
    fn what_can_not_run_is_refused_with_line_key_value_and_valid_values() {
        assert_eq!(Scenario::parse(GOOD, "x").map(|_| ()).map_err(|e| e.to_string()), Ok(()));
        let wrong: Vec<String> = REFUSED
            .iter()
            .map(|(from, to, wanted)| (refused(from, to), wanted))
            .filter(|(error, wanted)| !error.contains(*wanted))
            .map(|(error, wanted)| format!("{wanted}\n  but {error}"))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn clients_ping_after_a_time_or_never() {
        for (ping_after, us) in [("0s", None), ("1s", Some(1_000_000)), ("1day", Some(86_400_000_000))] {
            let text = GOOD.replace("ping_after: 30s", &format!("ping_after: {ping_after}"));
            assert_eq!(Scenario::parse(&text, "x").map(|s| s.ping_after_us()).ok(), Some(us), "{ping_after}");
        }
    }

    #[test]
    fn a_scenario_that_was_changed_is_checked_again() {
        let mut scenario = Scenario::parse(GOOD, "x").expect("valid");
        assert_eq!(scenario.problems(), []);
        scenario.population.users = 4;
        let problems = scenario.problems();
        assert!(problems.len() == 1 && problems[0].0 == "population.groups[0].members", "{problems:?}");
    }

    #[test]
    fn who_is_asked_to_send_has_to_exist() {
        let silent = "{name: t, population: {users: 9, groups: [{count: 1, members: {min: 2, max: 2}}]}, \
                      behaviors: {lurker: 1}, phases: [{phase: steady, duration: 1s}]}";
        assert!(Scenario::parse(silent, "x").is_ok(), "nobody is to send, and nobody is asked to");
        let asked = silent.replace("duration: 1s", "duration: 1s, rate: 20");
        let error = Scenario::parse(&asked, "x").expect_err("nobody can").to_string();
        assert!(error.contains("phases[0].rate: 20 messages per second, and nobody sends"), "{error}");
        let flappers = asked.replace("lurker", "flapper");
        assert!(Scenario::parse(&flappers, "x").is_ok());
        let alone = flappers.replace("count: 1", "count: 0");
        assert!(Scenario::parse(&alone, "x").expect_err("no conversation").to_string().contains("nobody sends"));
        let unasked = flappers.replace(", rate: 20", "");
        assert!(Scenario::parse(&unasked, "x").expect_err("no rate").to_string().contains("phases[0].rate: the phase"));
        assert!(Scenario::parse(&unasked.replace("1s", "1s, rate: 0"), "x").is_ok(), "said on purpose");
        let warm = flappers.replace("steady", "warm-up");
        assert!(Scenario::parse(&warm, "x").expect_err("nothing measured").to_string().contains("is not measured"));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = GOOD.replace("every: 2s", "every: 0s").replace("chat_servers: 2", "chat_servers: 0");
        let error = Scenario::parse(&text, "x").expect_err("two problems").to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
    }
}
