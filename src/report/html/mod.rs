//! `report.html`: a finished run as one page without network, script or any other file.

mod chart;

use std::fmt::Write;

use self::chart::{Axis, Chart, HeatMap, Line};
use super::{escape, human_bytes, human_count, human_us, human_value, series};
use crate::loadgen::RunResult;
use crate::loadgen::result::Verdict;
use crate::telemetry::live::{HEAT_STEPS, HEAT_STEPS_PER_DECADE, HEAT_US_MIN};
use crate::telemetry::{Latency, LatencyPath, LiveSnapshot, PathName, RunPhase};

/// The style sheet; the page's colours follow the reader's light or dark preference.
const STYLE: &str = include_str!("page.css");

/// Violations that are listed with their ids.
const VIOLATIONS_MAX: usize = 50;

/// The page of a run. `series` may be empty: what needs it is left out.
#[must_use]
pub fn render(result: &RunResult, series: &[LiveSnapshot]) -> String {
    let marks: Vec<(f64, String)> =
        result.faults.iter().map(|fault| (fault.at_s, format!("{} at {:.1} s", fault.what, fault.at_s))).collect();
    let mut page = String::with_capacity(256 * 1024);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{} · {}</title><style>{STYLE}</style></head><body>\n",
        escape(&result.scenario),
        result.verdict.word()
    );
    head(&mut page, result);
    tiles(&mut page, result);
    over_time(&mut page, series, &marks);
    latency(&mut page, result);
    thresholds(&mut page, result);
    ledger(&mut page, result);
    faults(&mut page, result);
    generator(&mut page, result);
    processes(&mut page, result);
    environment(&mut page, result);
    page.push_str("</body></html>\n");
    page
}

fn head(page: &mut String, r: &RunResult) {
    let class = match r.verdict {
        Verdict::Pass => "pass",
        Verdict::ThresholdFailed | Verdict::LedgerViolated => "fail",
        Verdict::Invalid | Verdict::Interrupted => "invalid",
    };
    let _ = writeln!(
        page,
        "<header><h1>{}</h1><span class=\"verdict {class}\">{}</span></header>\
         <p class=\"sub\">seed {}, {:.1} s of load against {}, began {}</p>",
        escape(&r.scenario),
        r.verdict.word(),
        r.seed,
        r.duration_s,
        escape(&r.target),
        utc(r.started_at_ms)
    );
    let paragraph = |text: &String| format!("<p>{}</p>", escape(text));
    let warning = |text: &String| format!("<p>warning: {}</p>", escape(text));
    let texts: String = r.reasons.iter().map(paragraph).chain(r.warnings.iter().map(warning)).collect();
    if !texts.is_empty() {
        let _ = writeln!(page, "<div class=\"reasons\">{texts}</div>");
    }
}

/// A moment in words, such as `2026-03-01 12:30:05 UTC`.
fn utc(unix_ms: u64) -> String {
    // The end of the year 9999: later times have no such form.
    if unix_ms > 253_402_300_799_999 {
        return "at an unknown time".to_owned();
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_ms / 1_000);
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', " UTC")
}

fn tiles(page: &mut String, r: &RunResult) {
    let c = &r.counts;
    let violations: u64 = c.violations().values().sum();
    let p99 = |path: LatencyPath| {
        r.latency.get(path).filter(|s| s.count > 0).map_or("–".to_owned(), |s| human_us(s.p99_us))
    };
    let per_second = |n: u64| human_count((n as f64 / r.duration_s.max(1e-3)).round() as u64);
    let tiles = [
        (if violations == 0 { "good" } else { "bad" }, human_count(violations), "broken guarantees"),
        ("", p99(LatencyPath::Delivery), "delivery p99"),
        ("", p99(LatencyPath::Ack), "ack p99"),
        ("", human_count(c.acked), "messages acknowledged"),
        ("", human_count(c.delivered), "deliveries"),
        ("", per_second(c.delivered), "deliveries per second"),
        ("", human_count(c.clients - c.never_connected.min(c.clients)), "devices connected"),
        (if c.reconnects == 0 { "" } else { "warn" }, human_count(c.reconnects), "reconnects"),
    ];
    page.push_str("<div class=\"tiles\">");
    for (class, figure, what) in tiles {
        let _ = write!(page, "<div class=\"tile {class}\"><b>{figure}</b><span>{what}</span></div>");
    }
    page.push_str("</div>\n");
}

fn over_time(page: &mut String, series: &[LiveSnapshot], marks: &[(f64, String)]) {
    let shown: Vec<&LiveSnapshot> = series.iter().filter(|s| s.elapsed_s > 0.0 && s.phase != RunPhase::Done).collect();
    if shown.len() < 2 {
        return;
    }
    let x = Axis { min: 0.0, max: shown[shown.len() - 1].elapsed_s, is_log: false };
    let x_ticks: Vec<(f64, String)> = x.ticks().into_iter().map(|s| (s, format!("{s:.0} s"))).collect();
    let line = |name: &str, value: &dyn Fn(&LiveSnapshot) -> Option<f64>| Line {
        name: name.to_owned(),
        points: shown.iter().filter_map(|s| Some((s.elapsed_s, value(s)?))).collect(),
    };
    let delivery = |pick: fn(&crate::telemetry::LatencySummary) -> u64| {
        move |s: &LiveSnapshot| s.interval.get(LatencyPath::Delivery).filter(|d| d.count > 0).map(|d| pick(d) as f64)
    };
    let chart = |title: &str, note: &str, y: fn(&[Line]) -> Axis, y_text: fn(f64) -> String, lines: Vec<Line>| {
        let lines: Vec<Line> = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
        Chart { title, note, x, y: y(&lines), x_ticks: x_ticks.clone(), y_text, lines, marks }.render()
    };
    page.push_str("<h2>Over time</h2>\n<div class=\"charts\">\n");
    // A run that only holds connections has nothing to show of messages.
    let has_talk = shown.iter().any(|s| s.totals.intended > 0.0);
    if has_talk {
        page.push_str(&chart(
            "Delivery latency",
            "from the time at which each message was due to each device, per second; logarithmic",
            |lines| Axis::decades(values(lines)),
            micros,
            vec![
                line("p50", &delivery(|s| s.p50_us)),
                line("p90", &delivery(|s| s.p90_us)),
                line("p99", &delivery(|s| s.p99_us)),
                line("max", &delivery(|s| s.max_us)),
            ],
        ));
        page.push_str(&heat_map(&shown, x, &x_ticks, marks));
        page.push_str(&chart(
            "Messages per second",
            "logarithmic: one message to a group is many deliveries",
            |lines| Axis::decades(values(lines)),
            count,
            vec![
                line("due", &|s| Some(s.rates.intended)),
                line("acknowledged", &|s| Some(s.rates.acked)),
                line("delivered", &|s| Some(s.rates.delivered)),
            ],
        ));
    }
    page.push_str(&connections(&shown, &line, &chart));
    if has_talk {
        page.push_str(&chart(
            "Queue lag and delivery p99",
            "age of the oldest record that no server has read, and what people waited; logarithmic",
            |lines| Axis::decades(values(lines)),
            micros,
            vec![
                line("oldest unread record", &|s| Some(series::lag_s(s) * 1e6)),
                line("delivery p99", &delivery(|s| s.p99_us)),
            ],
        ));
    }
    // Everybody leaving at the end is no load: how late that is says nothing of the run.
    let late = |s: &LiveSnapshot| (s.elapsed_s <= s.planned_s).then_some(s.generator_lag_us_p99 as f64);
    let late_p50 = |s: &LiveSnapshot| (s.elapsed_s <= s.planned_s).then_some(s.generator_lag_us_p50 as f64);
    page.push_str(&chart(
        "Generator",
        "how late the generator itself was, 99th percentile per second: where it is late, nothing else can be trusted",
        |lines| Axis::from_zero(values(lines)),
        micros,
        vec![line("late p99", &late), line("late p50", &late_p50)],
    ));
    page.push_str(&chart(
        "Processor time",
        "of the generator, and of everybody else on its machine",
        |lines| Axis::from_zero(values(lines)),
        |v| format!("{v:.2} cores"),
        vec![
            line("generator", &|s| Some(s.generator_cores)),
            line("other programs", &|s| s.machine?.foreign_cores),
            line("other machines of the host", &|s| Some(s.machine?.steal_cores).filter(|cores| *cores > 0.0)),
        ],
    ));
    page.push_str("</div>\n");
}

type Render<'a> = dyn Fn(&str, &str, fn(&[Line]) -> Axis, fn(f64) -> String, Vec<Line>) -> String + 'a;
type Pick<'a> = dyn Fn(&str, &dyn Fn(&LiveSnapshot) -> Option<f64>) -> Line + 'a;

/// Connections by chat server; where there are many, the lowest, the middle and the highest.
fn connections(shown: &[&LiveSnapshot], line: &Pick<'_>, chart: &Render<'_>) -> String {
    /// Servers with a line of their own.
    const SERVERS_MAX: usize = 6;
    let mut names: Vec<&String> = shown
        .iter()
        .flat_map(|s| s.servers.iter().filter(|(_, server)| server.role == "chat").map(|(name, _)| name))
        .collect();
    names.sort_unstable();
    names.dedup();
    let of = |s: &LiveSnapshot, name: &str| s.servers.get(name).map(|server| server.connections as f64);
    let sorted = |s: &LiveSnapshot| {
        let mut all: Vec<f64> = names.iter().filter_map(|name| of(s, name)).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let lines = if names.len() <= SERVERS_MAX {
        names.iter().map(|name| line(name, &|s| of(s, name))).collect()
    } else {
        vec![
            line("fewest", &|s| sorted(s).first().copied()),
            line("median", &|s| sorted(s).get(names.len() / 2).copied()),
            line("most", &|s| sorted(s).last().copied()),
            line("all servers", &|s| Some(sorted(s).iter().sum())),
        ]
    };
    let note = format!("{} chat servers", names.len());
    chart("Connections per server", &note, |lines| Axis::from_zero(values(lines)), count, lines)
}

fn heat_map(shown: &[&LiveSnapshot], x: Axis, x_ticks: &[(f64, String)], marks: &[(f64, String)]) -> String {
    let rows = shown.iter().map(|s| s.heat.len()).max().unwrap_or(0).max(7).min(HEAT_STEPS as usize + 1);
    let upper = |row: usize| HEAT_US_MIN as f64 * 10_f64.powf(row as f64 / f64::from(HEAT_STEPS_PER_DECADE));
    let map = HeatMap {
        title: "Deliveries by latency",
        note: "the darker, the more; by logarithm, so that a single slow one is seen",
        x,
        x_ticks: x_ticks.to_vec(),
        rows: (0..rows).map(|row| micros(upper(row))).collect(),
        columns: shown.iter().map(|s| (s.elapsed_s, s.heat.as_slice())).collect(),
        marks,
    };
    map.render()
}

fn values(lines: &[Line]) -> impl Iterator<Item = f64> + Clone + '_ {
    lines.iter().flat_map(|line| line.points.iter().map(|point| point.1))
}

fn micros(us: f64) -> String {
    human_us(us.round() as u64).replace(".0 ", " ").replace(".00 ", " ")
}

fn seconds(s: f64) -> String {
    format!("{s:.2} s")
}

fn count(n: f64) -> String {
    if n >= 1e6 { format!("{:.1} M", n / 1e6) } else { human_count(n.round() as u64) }
}

/// Percentiles that the spectrum goes through, as 1/(1-p).
fn spectrum(latency: &Latency) -> Vec<(f64, f64)> {
    let total = latency.count() as f64;
    let steps = (total.log10() * 10.0).ceil() as i32;
    // Not past the largest sample: what would be there was not measured.
    let at = |step| 10_f64.powf(f64::from(step) / 10.0).min(total);
    (0..=steps).map(|step| (at(step), latency.percentile_us(100.0 - 100.0 / at(step)).max(1) as f64)).collect()
}

fn latency(page: &mut String, r: &RunResult) {
    page.push_str("<h2>Latency from due time, without warm-up</h2>\n<div class=\"scroll\"><table class=\"latency\"><tr><th>path</th>");
    page.push_str(
        "<th>samples</th><th>p50</th><th>p75</th><th>p90</th><th>p95</th><th>p99</th><th>p99.9</th><th>max</th></tr>",
    );
    for path in LatencyPath::ALL {
        let Some(s) = r.latency.get(path).filter(|s| s.count > 0) else { continue };
        let _ = write!(page, "<tr><td>{}</td><td>{}</td>", path.as_str(), human_count(s.count));
        for us in [s.p50_us, s.p75_us, s.p90_us, s.p95_us, s.p99_us, s.p999_us, s.max_us] {
            let _ = write!(page, "<td>{}</td>", human_us(us));
        }
        page.push_str("</tr>");
    }
    page.push_str(
        "</table></div>\n<p class=\"narrow\">Samples, p75, p90, p95 and p99.9 are shown in a wider window.</p>\n",
    );
    let lines: Vec<Line> = LatencyPath::ALL
        .into_iter()
        .filter(|path| {
            !matches!(path, LatencyPath::DeliveryAfterReconnect | LatencyPath::PresenceOffline | LatencyPath::Recovery)
        })
        .filter_map(|path| Some((path.as_str(), r.histograms.get(path).filter(|h| h.count() > 0)?)))
        .map(|(name, histogram)| Line { name: name.to_owned(), points: spectrum(histogram) })
        .collect();
    if lines.is_empty() {
        return;
    }
    let x = Axis::decades(lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)));
    let word = |x: f64| if x < 2.0 { "0 %".to_owned() } else { format!("{} %", 100.0 - 100.0 / x) };
    let x_ticks = x.ticks().into_iter().map(|tick| (tick, word(tick))).collect();
    let y = Axis::decades(values(&lines));
    let note = "how slow the slowest were: the further right, the rarer; both axes logarithmic";
    let chart = Chart { title: "Percentile spectrum", note, x, y, x_ticks, y_text: micros, lines, marks: &[] };
    let _ = writeln!(page, "<div class=\"charts\" style=\"margin-top:16px\">{}</div>", chart.render());
}

fn thresholds(page: &mut String, r: &RunResult) {
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

fn ledger(page: &mut String, r: &RunResult) {
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
        "</div>\n<p class=\"sub\">{} conversations were read back in full and held against what was acknowledged and shown; \
         {} were not. {} repeats on the wire were dropped by clients, {} gaps closed by sync, {} sends left without an \
         answer.</p>\n",
        human_count(c.audited),
        human_count(c.unaudited),
        human_count(c.repeated_on_wire),
        human_count(c.gaps_synced),
        human_count(c.unresolved)
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

fn faults(page: &mut String, r: &RunResult) {
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

fn generator(page: &mut String, r: &RunResult) {
    let g = &r.generator;
    let _ = write!(
        page,
        "<h2>Generator</h2>\n<p class=\"sub\">late p50 {}, p99 {}, max {} over {} actions; {:.2} s of processor time, {:.1} µs per \
         frame and beat; {} resident{}</p>\n",
        human_us(g.lag.p50_us),
        human_us(g.lag.p99_us),
        human_us(g.lag.max_us),
        human_count(g.lag.count),
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
            "<p class=\"sub\">Memory of each of {} connections: server {}, client {}, kernel {}.</p>",
            human_count(m.connections),
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

fn processes(page: &mut String, r: &RunResult) {
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

fn environment(page: &mut String, r: &RunResult) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::result::{Check, FaultRecord};
    use crate::telemetry::live::{ServerSnapshot, heat_of};
    use crate::telemetry::{LatencySummary, PhaseKind};

    fn run() -> (RunResult, Vec<LiveSnapshot>) {
        let mut delivery = Latency::default();
        (1..=10_000).for_each(|n| delivery.record_us(n * 10));
        let mut result = RunResult {
            scenario: "<b>&\"tiny\"".to_owned(),
            verdict: Verdict::LedgerViolated,
            violations: vec!["lost: c1 id 7 never reached a device of u2".to_owned()],
            ..RunResult::default()
        };
        (result.counts.lost, result.counts.presence_leaked) = (1, 4);
        result.checks.push(Check {
            name: "reached".to_owned(),
            expected: 200,
            seen: 199,
            wrong: 1,
            note: "3 devices could not sync at the end".to_owned(),
        });
        result.latency.insert(LatencyPath::Delivery, delivery.summary());
        result.histograms.insert(LatencyPath::Delivery, delivery.clone());
        result.faults.push(FaultRecord { what: "kill chat-2".to_owned(), at_s: 3.0, ..FaultRecord::default() });
        let series = (1..=8).map(|n| {
            let mut s = LiveSnapshot { elapsed_s: f64::from(n), planned_s: 8.0, ..Default::default() };
            s.phase = RunPhase::Load(PhaseKind::Steady);
            s.totals.intended = f64::from(n);
            let latency = LatencySummary { count: 5, p50_us: 900, p99_us: 4_200, max_us: 9_000, ..Default::default() };
            s.interval.insert(LatencyPath::Delivery, latency);
            s.heat = heat_of(&delivery);
            for name in ["chat-1", "chat-2"] {
                let server = ServerSnapshot { role: "chat".to_owned(), connections: 170, ..Default::default() };
                s.servers.insert(name.to_owned(), server);
            }
            s
        });
        (result, series.collect())
    }

    #[test]
    fn a_page_shows_verdict_ids_faults_and_charts_and_loads_nothing() {
        let (result, series) = run();
        let page = render(&result, &series);
        for wanted in [
            "FAIL (ledger)",
            "c1 id 7",
            "kill chat-2",
            "Percentile spectrum",
            "chat-2",
            "Queue lag and",
            "class=\"heat\"",
            "<b>1</b><span>lost</span>",
            "<b>4</b><span>presence leaked</span>",
            "<td>reached</td><td>200</td><td>199</td><td class=\"no\">1</td><td>3 devices could not sync at the end</td>",
        ] {
            assert!(page.contains(wanted), "lacks {wanted}");
        }
        assert!(page.contains("&lt;b&gt;&amp;&quot;tiny&quot;") && !page.contains("<b>&\"tiny"));
        for foreign in ["http://", "https://", "<script", "@import", "url("] {
            assert!(!page.contains(foreign), "loads {foreign}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "a figure is not a number");
    }

    #[test]
    fn a_run_that_only_holds_connections_has_no_charts_of_messages_and_true_costs() {
        let (mut result, mut series) = run();
        result.counts.beats = 1_000_000;
        result.generator.cpu_s = 7.0;
        for snapshot in &mut series {
            (snapshot.totals.intended, snapshot.generator_lag_us_p99) = (0.0, 2_000);
        }
        // While everybody leaves.
        series.last_mut().expect("there are some").planned_s = 7.0;
        series.last_mut().expect("there are some").generator_lag_us_p99 = 19_000_000;
        let page = render(&result, &series);
        for unwanted in ["Delivery latency", "Messages per second", "Queue lag and", "class=\"heat\"", "20 s"] {
            assert!(!page.contains(unwanted), "has {unwanted}");
        }
        assert!(page.contains("Connections per server") && page.contains("7.0 µs per frame and beat"), "{page}");
    }

    #[test]
    fn a_run_without_a_series_or_any_sample_still_has_a_page() {
        let page = render(&RunResult::default(), &[]);
        assert!(page.contains("PASS") && page.ends_with("</html>\n"));
    }

    #[test]
    fn the_spectrum_ends_at_the_largest_sample() {
        let (result, _) = run();
        let points = spectrum(&result.histograms[LatencyPath::Delivery]);
        assert!((points[0].0 - 1.0).abs() < 1e-9);
        let (rarest, slowest) = points[points.len() - 1];
        assert!((rarest - 10_000.0).abs() < 1e-6);
        assert!((slowest - 100_000.0).abs() < 200.0, "{slowest}");
    }
}
