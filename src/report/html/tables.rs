//! The tables below the charts: thresholds, ledger, faults, generator, processes, environment.

use std::fmt::Write;

use super::over_time::seconds;
use crate::loadgen::RunResult;
use crate::report::{counted, escape, human_bytes, human_count, human_us, human_value};
use crate::telemetry::{PathName, Percentile};

/// Violations that are listed with their ids.
const VIOLATIONS_MAX: usize = 50;

pub(super) fn thresholds(page: &mut String, r: &RunResult) {
    if r.thresholds.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Thresholds</h2>\n<div class=\"scroll\"><table><tr><th>condition</th><th>measured</th><th></th></tr>",
    );
    for outcome in &r.thresholds {
        let (class, word) = if outcome.passed { ("ok", "holds") } else { ("no", "fails") };
        let value = outcome.value.map_or("nothing".to_owned(), human_value);
        let condition = escape(&outcome.threshold);
        let _ = write!(page, "<tr><td>{condition}</td><td>{value}</td><td class=\"{class}\">{word}</td></tr>");
    }
    page.push_str("</table></div>\n");
}

pub(super) fn ledger(page: &mut String, r: &RunResult) {
    let c = &r.counts;
    page.push_str("<h2>Ledger</h2>\n<div class=\"tiles\">");
    let violations = c.violations();
    if violations.is_empty() {
        page.push_str("<div class=\"tile good\"><b>0</b><span>broken guarantees</span></div>");
    }
    for (kind, n) in violations {
        let (n, kind) = (human_count(n), kind.replace('_', " "));
        let _ = write!(page, "<div class=\"tile bad\"><b>{n}</b><span>{kind}</span></div>");
    }
    let _ = write!(
        page,
        "</div>\n<p class=\"sub\">Read back in full and held against what was acknowledged and shown: {}; not read back: {}. \
         Clients dropped {}, sync filled {}, and {} got no answer.</p>\n",
        counted(c.audited, "conversation"),
        human_count(c.unaudited),
        counted(c.repeated_on_wire, "duplicate"),
        counted(c.gaps_synced, "gap"),
        counted(c.unresolved, "send")
    );
    checks(page, r);
    if !r.violations.is_empty() {
        let items = r.violations.iter().take(VIOLATIONS_MAX).map(|v| format!("<li>{}</li>", escape(v)));
        let _ = writeln!(page, "<div class=\"scroll\"><ul class=\"ids\">{}</ul></div>", items.collect::<String>());
    }
    if !r.errors.is_empty() {
        page.push_str(
            "<h2>Errors that clients got</h2>\n<div class=\"scroll\"><table><tr><th>code</th><th>times</th></tr>",
        );
        for (code, n) in &r.errors {
            let _ = write!(page, "<tr><td>{}</td><td>{}</td></tr>", escape(code), human_count(*n));
        }
        page.push_str("</table></div>\n");
    }
}

/// What the verdict rests on, and how much of it.
fn checks(page: &mut String, r: &RunResult) {
    if r.checks.is_empty() {
        return;
    }
    page.push_str(
        "<div class=\"scroll\"><table><tr><th>check</th><th>expected</th><th>seen</th><th>wrong</th>\
         <th>what could not be judged</th></tr>",
    );
    for check in &r.checks {
        let class = if check.wrong == 0 { "" } else { "no" };
        let [expected, seen, wrong] = [check.expected, check.seen, check.wrong].map(human_count);
        let (name, note) = (escape(&check.name), escape(&check.note));
        let _ = write!(
            page,
            "<tr><td>{name}</td><td>{expected}</td><td>{seen}</td><td class=\"{class}\">{wrong}</td><td>{note}</td></tr>"
        );
    }
    page.push_str("</table></div>\n");
}

pub(super) fn faults(page: &mut String, r: &RunResult) {
    if r.faults.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Faults</h2>\n<div class=\"scroll\"><table><tr><th>what</th><th>at</th><th>lasted</th><th>disconnected</th>\
         <th>back</th><th>99 % back after</th><th>errors</th><th>late ACKs</th><th>calm after its end</th></tr>",
    );
    for f in &r.faults {
        let or_dash = |s: Option<f64>| s.map_or("–".to_owned(), seconds);
        let what = f.error.as_ref().map_or_else(|| f.what.clone(), |error| format!("{}: {error}", f.what));
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&what),
            seconds(f.at_s),
            seconds(f.lasted_s),
            human_count(f.disconnected),
            human_count(f.recovered),
            or_dash(f.recovered_99_s),
            human_count(f.errors),
            human_count(f.late_acks),
            or_dash(f.calm_after_s)
        );
    }
    page.push_str("</table></div>\n");
}

pub(super) fn generator(page: &mut String, r: &RunResult) {
    let g = &r.generator;
    let _ = write!(
        page,
        "<h2>Generator</h2>\n<p class=\"sub\">late p50 {}, p99 {}, max {} over {}; {:.2} s of processor time, {:.1} µs per \
         frame and beat; {} resident{}</p>\n",
        g.lag.shown(Percentile::P50),
        g.lag.shown(Percentile::P99),
        human_us(g.lag.max_us),
        counted(g.lag.count, "action"),
        g.cpu_s,
        r.generator_us_per_frame(),
        human_bytes(g.resident_bytes),
        if g.stack_cpu_s > 0.0 {
            format!("; the stack in the same process took {:.2} s of processor time", g.stack_cpu_s)
        } else {
            String::new()
        }
    );
    if let Some(m) = r.memory {
        let each = |bytes: u64| human_bytes(bytes / m.connections.max(1));
        let _ = writeln!(
            page,
            "<p class=\"sub\">Memory of each of {}: server {}, client {}, kernel {}.</p>",
            counted(m.connections, "connection"),
            each(m.server_bytes),
            each(m.client_bytes),
            each(m.kernel_bytes)
        );
    }
    if r.workers.is_empty() {
        return;
    }
    page.push_str(
        "<div class=\"scroll\"><table><tr><th>worker</th><th>devices</th><th>late p99</th><th>CPU</th><th>memory</th>\
         <th>clock offset</th><th>state</th></tr>",
    );
    for w in &r.workers {
        let state = w.lost.as_deref().map_or("<span class=\"ok\">finished</span>".to_owned(), |why| {
            format!("<span class=\"no\">{}</span>", escape(why))
        });
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.2} s</td><td>{}</td><td>{} ± {} µs</td><td>{state}</td></tr>",
            escape(&w.name),
            human_count(w.clients),
            human_us(w.lag_us_p99),
            w.cpu_s,
            human_bytes(w.resident_bytes),
            w.clock_offset_us,
            w.clock_error_us
        );
    }
    page.push_str("</table></div>\n");
}

pub(super) fn processes(page: &mut String, r: &RunResult) {
    if r.processes.is_empty() {
        return;
    }
    let millions = r.counts.delivered.max(1) as f64 / 1e6;
    page.push_str(
        "<h2>Processes of the stack</h2>\n<div class=\"scroll\"><table><tr><th>process</th><th>role</th><th>CPU</th>\
         <th>CPU per million deliveries</th><th>memory</th></tr>",
    );
    for p in &r.processes {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{:.2} s</td><td>{:.1} s</td><td>{}</td></tr>",
            escape(&p.name),
            escape(&p.role),
            p.cpu_s,
            p.cpu_s / millions,
            human_bytes(p.resident_bytes)
        );
    }
    page.push_str("</table></div>\n");
}

pub(super) fn environment(page: &mut String, r: &RunResult) {
    let _ = write!(page, "<h2>Environment</h2>\n<div class=\"scroll\"><table>");
    let lag = r.histograms.get(PathName::GeneratorLag).map_or("–".to_owned(), |lag| human_count(lag.count()));
    let rows = [
        ("machine of the generator", r.machine.clone()),
        ("chatctl", r.version.clone()),
        ("target", r.target.clone()),
        ("actions timed", lag),
    ];
    for (what, value) in rows {
        let _ = write!(page, "<tr><td>{what}</td><td class=\"long\">{}</td></tr>", escape(&value));
    }
    let _ = write!(
        page,
        "</table></div>\n<footer>chatctl {}. Latency counts from the time at which a message was due, so a server that \
         stalls shows in full.</footer>\n",
        escape(&r.version)
    );
}
