//! `report.html`: a finished run as one page without network, script or any other file.

mod chart;
mod over_time;
mod tables;

use std::fmt::Write;

use self::chart::{Axis, Chart, Line};
use self::over_time::{micros, over_time, values};
use self::tables::{environment, faults, generator, ledger, processes, thresholds};
use super::{escape, human_count, human_us};
use crate::loadgen::RunResult;
use crate::loadgen::result::Verdict;
use crate::telemetry::latency::TOO_FEW;
use crate::telemetry::{Latency, LatencyPath, LiveSnapshot, Percentile};

/// The style sheet; the page's colours follow the reader's light or dark preference.
const STYLE: &str = include_str!("page.css");

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
    let p99 = |path: LatencyPath| r.latency.get(path).map_or(TOO_FEW.to_owned(), |s| s.shown(Percentile::P99));
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
        for figure in Percentile::ALL.map(|percentile| s.shown(percentile)) {
            let _ = write!(page, "<td>{figure}</td>");
        }
        let _ = write!(page, "<td>{}</td>", human_us(s.max_us));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::result::{Check, FaultRecord};
    use crate::telemetry::live::{ServerSnapshot, heat_of};
    use crate::telemetry::{LatencySummary, PhaseKind, RunPhase};

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
    fn a_percentile_without_its_samples_is_a_dash() {
        let six =
            LatencySummary { count: 6, p50_us: 900, p75_us: 910, p999_us: 4_200, max_us: 4_300, ..Default::default() };
        let mut result = RunResult::default();
        result.latency.insert(LatencyPath::Delivery, six);
        let page = render(&result, &[]);
        let row = "<td>delivery</td><td>6</td><td>900 µs</td><td>910 µs</td><td>-</td><td>-</td><td>-</td><td>-</td><td>4.3 ms</td>";
        assert!(page.contains(row) && page.contains("<b>-</b><span>delivery p99</span>"), "{page}");
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
