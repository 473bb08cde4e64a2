//! The charts over time.

use super::chart::{Axis, Chart, HeatMap, Line};
use crate::report::{human_count, human_us, series};
use crate::telemetry::live::{HEAT_STEPS, HEAT_STEPS_PER_DECADE, HEAT_US_MIN};
use crate::telemetry::{LatencyPath, LiveSnapshot, RunPhase};

/// The charts over time: what each second showed.
pub(super) fn over_time(page: &mut String, series: &[LiveSnapshot], marks: &[(f64, String)]) {
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

pub(super) fn values(lines: &[Line]) -> impl Iterator<Item = f64> + Clone + '_ {
    lines.iter().flat_map(|line| line.points.iter().map(|point| point.1))
}

pub(super) fn micros(us: f64) -> String {
    human_us(us.round() as u64).replace(".0 ", " ").replace(".00 ", " ")
}

pub(super) fn seconds(s: f64) -> String {
    format!("{s:.2} s")
}

fn count(n: f64) -> String {
    if n >= 1e6 { format!("{:.1} M", n / 1e6) } else { human_count(n.round() as u64) }
}
