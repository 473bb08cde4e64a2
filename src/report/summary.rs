//! The summary at the end of a run, and `summary.txt`.

use std::fmt::Write;

use super::{counted, human_bytes, human_count, human_us};
use crate::loadgen::RunResult;
use crate::loadgen::result::Verdict;
use crate::telemetry::{LatencyPath, Percentile};

/// How it may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Text only.
    Plain,
    /// The verdict in colour.
    Colour,
}

impl Style {
    /// What suits standard output: colour on a terminal, unless `NO_COLOR` is set.
    #[must_use]
    pub fn of_output() -> Self {
        use std::io::IsTerminal;
        let use_colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        if use_colour { Self::Colour } else { Self::Plain }
    }
}

/// The summary as text.
#[must_use]
pub fn render(result: &RunResult, style: Style) -> String {
    let mut out = String::new();
    head(&mut out, result);
    messages(&mut out, result);
    ledger(&mut out, result);
    latencies(&mut out, result);
    faults(&mut out, result);
    generator(&mut out, result);
    foreign_load(&mut out, result);
    memory(&mut out, result);
    workers(&mut out, result);
    processes(&mut out, result);
    thresholds(&mut out, result);
    warnings(&mut out, result);
    verdict(&mut out, result, style);
    out
}

fn head(out: &mut String, r: &RunResult) {
    let _ = writeln!(out, "scenario   {} (seed {}), {:.1} s against {}", r.scenario, r.seed, r.duration_s, r.target);
    let _ = writeln!(out, "machine    {}", r.machine);
}

fn messages(out: &mut String, r: &RunResult) {
    let c = &r.counts;
    let n = human_count;
    let busiest = match r.reconnects_per_s_max {
        most if most > 0.0 => format!(", at most {most:.0} in a second"),
        _ => String::new(),
    };
    let _ = writeln!(
        out,
        "devices    {} of {} connected, {} against the plan, {}{busiest}",
        n(c.clients - c.never_connected.min(c.clients)),
        n(c.clients),
        counted(c.disconnects, "disconnect"),
        counted(c.reconnects, "reconnect")
    );
    let lag = r.generator.lag;
    let due = match lag.known_us(Percentile::P99) {
        Some(us) => format!("99 % of what was due went out within {}", human_us(us)),
        None => format!("all that was due went out within {}", human_us(lag.max_us)),
    };
    let _ = writeln!(out, "heartbeats {} sent; {due}", n(c.beats));
    let _ = writeln!(
        out,
        "messages   {} scheduled, {} due, {} sent{}, {} acknowledged, {} refused{}, {} unresolved",
        n(c.scheduled),
        n(c.intended),
        n(c.sent),
        if c.resent > 0 { format!(" ({} again, after 5 s without an answer)", n(c.resent)) } else { String::new() },
        n(c.acked),
        n(c.refused),
        if c.refused_removed > 0 {
            format!(" (and {} of removed members)", n(c.refused_removed))
        } else {
            String::new()
        },
        n(c.unresolved)
    );
    let pushed = c
        .pushed_percent()
        .map_or_else(String::new, |percent| format!(", {percent:.2} % of those that had to be pushed"));
    let whole = c.pushed_whole_percent().filter(|_| c.pushed_by_head > 0);
    let whole =
        whole.map_or_else(String::new, |percent| format!(" ({percent:.2} % whole, the rest by a head and fetched)"));
    let _ = writeln!(
        out,
        "delivered  {}{pushed}{whole}; {} dropped by clients; {} filled by sync",
        n(c.delivered),
        counted(c.repeated_on_wire, "duplicate"),
        counted(c.gaps_synced, "gap")
    );
    let _ = writeln!(
        out,
        "traffic    {} out, {} in; {} of clients without a socket",
        human_bytes(c.bytes_out),
        human_bytes(c.bytes_in),
        counted(c.poll_requests, "request")
    );
    if c.removals + c.additions + c.changes_failed > 0 {
        let _ = writeln!(
            out,
            "members    {} removed, {} added again, {} given up",
            n(c.removals),
            n(c.additions),
            counted(c.changes_failed, "change")
        );
    }
    if c.retries + c.throttled + c.tokens_renewed > 0 {
        let _ = writeln!(
            out,
            "retries    {} of requests and connects, at most {} of one device; {} asked to come back later; {} renewed",
            counted(c.retries, "repetition"),
            n(c.retries_per_device_max),
            counted(c.throttled, "answer"),
            counted(c.tokens_renewed, "token")
        );
    }
    if !r.errors.is_empty() {
        let errors: Vec<String> = r.errors.iter().map(|(code, n)| format!("{code} {n}")).collect();
        let _ = writeln!(out, "errors     {}", errors.join(", "));
    }
}

/// Violations that the summary describes.
const VIOLATIONS_SHOWN: usize = 10;

/// What was broken, and what was checked, with how much of it.
fn ledger(out: &mut String, r: &RunResult) {
    let violations = r.counts.violations();
    let broken: Vec<String> =
        violations.iter().map(|(kind, n)| format!("{} {}", kind.replace('_', " "), human_count(*n))).collect();
    let c = &r.counts;
    let unknown = [
        (c.unaudited, "conversation", " not read back"),
        (c.unread_views, "view", " of other members not read"),
        (c.unprobed, "read", " of removed members without an answer"),
        (c.undrained, "device", " not synced at the end"),
    ];
    let unknown = unknown.iter().filter(|(n, ..)| *n > 0);
    let unknown: Vec<String> = unknown.map(|(n, what, why)| format!("{}{why}", counted(*n, what))).collect();
    let clean = if unknown.is_empty() {
        "clean".to_owned()
    } else {
        format!("clean as far as it is known: {}", unknown.join(", "))
    };
    let _ = writeln!(out, "ledger     {}", if broken.is_empty() { clean } else { broken.join("  ") });
    for violation in r.violations.iter().take(VIOLATIONS_SHOWN) {
        let _ = writeln!(out, "           {violation}");
    }
    let more = violations.values().sum::<u64>().saturating_sub(r.violations.len().min(VIOLATIONS_SHOWN) as u64);
    if more > 0 {
        let _ = writeln!(out, "           … and {} more; result.json has the first 50", human_count(more));
    }
    let _ = writeln!(
        out,
        "audit      {} read back in full, {} not; {} of other members",
        counted(c.audited, "conversation"),
        human_count(c.unaudited),
        counted(c.read_views, "view")
    );
    if r.checks.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{:<14}{:>12} {:>12} {:>10}", "check", "expected", "seen", "wrong");
    for check in &r.checks {
        let (expected, seen, wrong) = (human_count(check.expected), human_count(check.seen), human_count(check.wrong));
        let line = format!("{:<14}{expected:>12} {seen:>12} {wrong:>10}   {}", check.name, check.note);
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn latencies(out: &mut String, r: &RunResult) {
    let _ = writeln!(
        out,
        "\n{:<25}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "latency from due time", "samples", "p50", "p75", "p90", "p95", "p99", "p99.9", "max"
    );
    for path in LatencyPath::ALL {
        let Some(s) = r.latency.get(path).filter(|s| s.count > 0) else { continue };
        let _ = writeln!(
            out,
            "{:<25}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            path.as_str(),
            human_count(s.count),
            s.shown(Percentile::P50),
            s.shown(Percentile::P75),
            s.shown(Percentile::P90),
            s.shown(Percentile::P95),
            s.shown(Percentile::P99),
            s.shown(Percentile::P999),
            human_us(s.max_us)
        );
    }
}

fn faults(out: &mut String, r: &RunResult) {
    for fault in &r.faults {
        let lost = match fault.recovered_99_s {
            _ if fault.disconnected == 0 => "nobody lost a connection".to_owned(),
            Some(s) => format!(
                "{} cut off, {} came back, 99 % reconnected and caught up after {s:.2} s",
                counted(fault.disconnected, "device"),
                fault.recovered
            ),
            None => format!(
                "{} cut off, {} came back: less than 99 %, so it has not recovered",
                counted(fault.disconnected, "device"),
                fault.recovered
            ),
        };
        let end = match fault.calm_after_s {
            Some(s) => format!("the last {s:.2} s after its end"),
            None if fault.errors + fault.late_acks + fault.late_deliveries > 0 => "none after its end".to_owned(),
            None if fault.disconnected > 0 => "nothing else to recover from".to_owned(),
            None => "nothing to recover from".to_owned(),
        };
        // An engine that is stopped for 10 s is there again once it has started.
        let took = match fault.lasted_s {
            s if s > fault.planned_s + 1.0 => format!(", over after {s:.1} s"),
            _ => String::new(),
        };
        let _ = writeln!(out, "\nfault      {} at {:.1} s{took}: {lost}", fault.what, fault.at_s);
        let _ = writeln!(
            out,
            "           {}, {} and {} over a second late; {end}",
            counted(fault.errors, "error"),
            counted(fault.late_acks, "ACK"),
            counted(fault.late_deliveries, "delivery")
        );
    }
}

fn generator(out: &mut String, r: &RunResult) {
    let g = &r.generator;
    let _ = writeln!(
        out,
        "\ngenerator  late p50 {}, p99 {}, max {} ({}); {:.2} s of processor time, {:.1} µs per frame and beat; {} resident",
        g.lag.shown(Percentile::P50),
        g.lag.shown(Percentile::P99),
        human_us(g.lag.max_us),
        counted(g.lag.count, "sample"),
        g.cpu_s,
        r.generator_us_per_frame(),
        human_bytes(g.resident_bytes)
    );
    if g.stack_cpu_s > 0.0 {
        let _ = writeln!(
            out,
            "stack      {:.2} s of processor time{} (same process as the generator)",
            g.stack_cpu_s,
            match r.counts.delivered {
                0 => String::new(),
                delivered => format!(", {:.1} s per million deliveries", g.stack_cpu_s * 1e6 / delivered as f64),
            }
        );
    }
}

/// What others took of the generator's machine.
fn foreign_load(out: &mut String, r: &RunResult) {
    let g = &r.generator;
    if g.cores == 0.0 {
        return;
    }
    let foreign = match (g.foreign_cores_mean, g.foreign_cores_max) {
        (Some(mean), Some(max)) => format!("other programs used {mean:.2} on average, {max:.2} at most"),
        _ => "what other programs used of them can't be told from the target".to_owned(),
    };
    let _ = writeln!(
        out,
        "machine    {}; {foreign}; other machines of the host took {:.2}, {:.2} at most",
        counted(g.cores.round() as u64, "core"),
        g.steal_cores_mean,
        g.steal_cores_max
    );
}

fn warnings(out: &mut String, r: &RunResult) {
    for (n, warning) in r.warnings.iter().enumerate() {
        let _ = writeln!(out, "{}{warning}", if n == 0 { "\nwarning    " } else { "           " });
    }
}

/// Workers, and servers of a role, that are listed one by one.
const LISTED_MAX: usize = 8;

fn memory(out: &mut String, r: &RunResult) {
    let Some(m) = r.memory else { return };
    let each = |bytes: u64| human_bytes(bytes / m.connections.max(1));
    let _ = writeln!(
        out,
        "memory     {}; each: server {}, client {}, kernel {} (growth since before the first connection, of clients since before their accounts)",
        counted(m.connections, "connection"),
        each(m.server_bytes),
        each(m.client_bytes),
        each(m.kernel_bytes)
    );
}

fn workers(out: &mut String, r: &RunResult) {
    if r.workers.len() > LISTED_MAX && r.workers.iter().all(|w| w.lost.is_none()) {
        let late = r.workers.iter().map(|w| w.lag_us_p99).max().unwrap_or(0);
        let (devices, cpu_s) = r.workers.iter().fold((0, 0.0), |(d, c), w| (d + w.clients, c + w.cpu_s));
        let clock = r.workers.iter().map(|w| w.clock_error_us).max().unwrap_or(0);
        let _ = writeln!(
            out,
            "workers    {}, {}; the latest late p99 {}; {cpu_s:.1} s of processor time; clocks known to {clock} µs",
            r.workers.len(),
            counted(devices, "device"),
            human_us(late)
        );
        return;
    }
    for w in &r.workers {
        let state = w
            .lost
            .clone()
            .unwrap_or_else(|| format!("late p99 {}, {:.1} s of processor time", human_us(w.lag_us_p99), w.cpu_s));
        let _ = writeln!(
            out,
            "worker     {:<22} {:>17}, clock {:+} ± {} µs; {state}",
            w.name,
            counted(w.clients, "device"),
            w.clock_offset_us,
            w.clock_error_us
        );
    }
}

fn processes(out: &mut String, r: &RunResult) {
    if r.processes.is_empty() {
        return;
    }
    let seconds = r.duration_s.max(1e-3);
    // Without deliveries the processors that were used say more.
    let (heading, unit, divisor) = match r.counts.delivered {
        0 => ("of a processor", "%", seconds / 100.0),
        delivered => ("per million deliveries", "s", delivered as f64 / 1e6),
    };
    let _ = writeln!(out, "\n{:<26}{:>10} {heading:>22} {:>10}", "process", "CPU", "memory");
    let row = |out: &mut String, name: &str, cpu_s: f64, bytes: u64| {
        let memory = human_bytes(bytes);
        let _ = writeln!(out, "{name:<26}{cpu_s:>8.2} s {:>20.1} {unit} {memory:>10}", cpu_s / divisor);
    };
    // Where there are many servers of a role, the sum of each role says more than fifty lines.
    let roles: std::collections::BTreeSet<&str> = r.processes.iter().map(|p| p.role.as_str()).collect();
    for role in roles {
        let of_role: Vec<_> = r.processes.iter().filter(|p| p.role == role).collect();
        if role != "engine" && of_role.len() > LISTED_MAX {
            let (cpu_s, bytes) = of_role.iter().fold((0.0, 0), |(s, b), p| (s + p.cpu_s, b + p.resident_bytes));
            row(out, &format!("{role} ({})", counted(of_role.len() as u64, "process")), cpu_s, bytes);
        } else {
            for p in of_role {
                row(out, &p.name, p.cpu_s, p.resident_bytes);
            }
        }
    }
    let (cpu_s, bytes) = r.processes.iter().fold((0.0, 0), |(s, b), p| (s + p.cpu_s, b + p.resident_bytes));
    row(out, "all", cpu_s, bytes);
}

fn thresholds(out: &mut String, r: &RunResult) {
    if r.thresholds.is_empty() {
        return;
    }
    out.push('\n');
    // Of the conditions that every run has, those that failed.
    for outcome in r.thresholds.iter().filter(|outcome| !outcome.is_default || !outcome.passed) {
        let mark = if outcome.passed { "ok  " } else { "FAIL" };
        let _ = writeln!(out, "{mark}       {:<32} {}", outcome.threshold, outcome.measured());
    }
}

fn verdict(out: &mut String, r: &RunResult, style: Style) {
    let word = r.verdict.word();
    let shown = match (style, r.verdict) {
        (Style::Plain, _) => word.to_owned(),
        (Style::Colour, Verdict::Pass) => format!("\x1b[1;32m{word}\x1b[0m"),
        (Style::Colour, Verdict::Invalid | Verdict::Interrupted) => format!("\x1b[1;33m{word}\x1b[0m"),
        (Style::Colour, _) => format!("\x1b[1;31m{word}\x1b[0m"),
    };
    let _ = writeln!(out, "\nverdict    {shown}");
    for reason in &r.reasons {
        let _ = writeln!(out, "           {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::result::Check;
    use crate::telemetry::LatencySummary;

    #[test]
    fn a_summary_has_every_percentile_with_its_samples_and_the_verdict_last() {
        let mut r = RunResult { scenario: "tiny".to_owned(), ..RunResult::default() };
        let ack = LatencySummary { count: 12_345, p50_us: 900, p99_us: 1_500, max_us: 2_000, ..Default::default() };
        r.latency.insert(LatencyPath::Ack, ack);
        r.reasons.push("because".to_owned());
        r.warnings.push("take care".to_owned());
        r.generator.cores = 2.0;
        (r.generator.foreign_cores_mean, r.generator.foreign_cores_max) = (Some(0.25), Some(1.9));
        let text = render(&r, Style::Plain);
        assert!(text.contains("12 345") && text.contains("900 µs") && text.contains("1.5 ms"), "{text}");
        assert!(text.contains("2 cores; other programs used 0.25 on average, 1.90 at most"), "{text}");
        assert!(text.contains("\nwarning    take care\n"), "{text}");
        assert!(text.trim_end().ends_with("PASS\n           because"), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(text.contains("ledger     clean"), "{text}");
    }

    #[test]
    fn one_is_no_plural_and_a_percentile_has_its_samples() {
        let mut r = RunResult::default();
        let six =
            LatencySummary { count: 6, p50_us: 900, p75_us: 910, p999_us: 4_200, max_us: 4_300, ..Default::default() };
        r.latency.insert(LatencyPath::Ack, six);
        r.generator.cores = 1.0;
        (r.counts.disconnects, r.counts.reconnects, r.counts.audited, r.counts.gaps_synced) = (1, 1, 1, 1);
        let text = render(&r, Style::Plain);
        let ack: Vec<&str> = text.lines().find(|line| line.starts_with("ack ")).expect("a row").split("  ").collect();
        let cells: Vec<&str> = ack.into_iter().map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells, ["ack", "6", "900 µs", "910 µs", "-", "-", "-", "-", "4.3 ms"], "{text}");
        for wanted in
            ["1 disconnect against the plan, 1 reconnect", "1 conversation read back", "1 gap filled", "1 core;"]
        {
            assert!(text.contains(wanted), "lacks {wanted}:\n{text}");
        }
    }

    #[test]
    fn a_summary_says_what_was_checked_and_what_could_not_be_judged() {
        let mut r = RunResult::default();
        r.counts.lost = 3;
        r.counts.presence_missed = 1;
        let check = |name: &str, expected, seen, wrong, note: &str| Check {
            name: name.to_owned(),
            expected,
            seen,
            wrong,
            note: note.to_owned(),
        };
        r.checks.push(check("stored", 2_966, 2_963, 3, ""));
        r.checks.push(check("access", 0, 0, 0, "nobody was removed"));
        let text = render(&r, Style::Plain);
        assert!(text.contains("ledger     lost 3  presence missed 1\n           … and 4 more; "), "{text}");
        assert!(text.contains("stored               2 966        2 963          3\n"), "{text}");
        assert!(text.contains("access                   0            0          0   nobody was removed\n"), "{text}");
    }
}
