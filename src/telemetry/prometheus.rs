//! Prometheus text exposition format 0.0.4: writing it, and reading back what a stack wrote.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use super::live::LiveSnapshot;
use super::metrics::{Counter, Gauge, Metrics, PARTITION_LAG_MS, PARTITION_LAG_RECORDS, PartitionFigures, Timer};

/// Value of the `Content-Type` header.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// Writes every metric of some servers.
#[must_use]
pub fn render(servers: &[Arc<Metrics>]) -> String {
    let mut out = String::new();
    for &counter in Counter::ALL {
        heading(&mut out, counter.name(), "counter");
        for m in servers {
            sample(&mut out, counter.name(), m.role(), m.server(), m.counted(counter));
        }
    }
    for &gauge in Gauge::ALL {
        heading(&mut out, gauge.name(), "gauge");
        for m in servers {
            sample(&mut out, gauge.name(), m.role(), m.server(), m.gauge(gauge));
        }
    }
    partitions(&mut out, servers);
    for &timer in Timer::ALL {
        heading(&mut out, timer.name(), "summary");
        for m in servers {
            let latency = m.timer(timer);
            let labels = format!("role=\"{}\",server=\"{}\"", m.role(), m.server());
            for q in QUANTILES {
                let seconds = latency.percentile_us(q * 100.0) as f64 / 1e6;
                let _ = writeln!(out, "{}{{{labels},quantile=\"{q}\"}} {seconds}", timer.name());
            }
            let _ = writeln!(out, "{}_count{{{labels}}} {}", timer.name(), latency.count());
        }
    }
    out
}

/// The figures of a generator in Prometheus' text format: counters, connections, latencies since the warm-up as summaries in
/// seconds, lateness, violations by kind.
#[must_use]
pub fn render_load(s: &LiveSnapshot) -> String {
    let mut out = String::new();
    let label = format!("scenario=\"{}\"", s.scenario.replace(['"', '\\', '\n'], "_"));
    let mut one = |name: &str, kind: &str, value: f64| {
        heading(&mut out, &format!("chatctl_load_{name}"), kind);
        let _ = writeln!(out, "chatctl_load_{name}{{{label}}} {value}");
    };
    one("messages_due_total", "counter", s.totals.intended);
    one("messages_acked_total", "counter", s.totals.acked);
    one("deliveries_total", "counter", s.totals.delivered);
    one("reconnects_total", "counter", s.totals.reconnects);
    one("connections", "gauge", s.connections as f64);
    one("connections_wanted", "gauge", s.connections_wanted as f64);
    one("elapsed_seconds", "gauge", s.elapsed_s);
    one("late_p99_seconds", "gauge", s.generator_lag_us_p99 as f64 / 1e6);
    one("resident_bytes", "gauge", s.resident_bytes as f64);
    heading(&mut out, "chatctl_load_latency_seconds", "summary");
    for (path, latency) in &s.overall {
        let quantiles =
            [("0.5", latency.p50_us), ("0.9", latency.p90_us), ("0.99", latency.p99_us), ("0.999", latency.p999_us)];
        for (quantile, us) in quantiles {
            let seconds = us as f64 / 1e6;
            let _ = writeln!(
                out,
                "chatctl_load_latency_seconds{{{label},path=\"{path}\",quantile=\"{quantile}\"}} {seconds}"
            );
        }
        let sum = latency.mean_us * latency.count as f64 / 1e6;
        let _ = writeln!(out, "chatctl_load_latency_seconds_sum{{{label},path=\"{path}\"}} {sum}");
        let _ = writeln!(out, "chatctl_load_latency_seconds_count{{{label},path=\"{path}\"}} {}", latency.count);
    }
    for (name, counts) in [("violations_total", &s.violations), ("errors_total", &s.errors)] {
        heading(&mut out, &format!("chatctl_load_{name}"), "counter");
        for (kind, n) in counts {
            let _ = writeln!(out, "chatctl_load_{name}{{{label},kind=\"{kind}\"}} {n}");
        }
    }
    out
}

fn partitions(out: &mut String, servers: &[Arc<Metrics>]) {
    type Figure = fn(&PartitionFigures) -> u64;
    let figures: [(&str, Figure); 2] =
        [(PARTITION_LAG_RECORDS, |lag| lag.records), (PARTITION_LAG_MS, |lag| lag.age_ms)];
    for (name, figure) in figures {
        heading(out, name, "gauge");
        for m in servers {
            for lag in m.partitions() {
                let (role, server) = (m.role(), m.server());
                let _ = writeln!(
                    out,
                    "{name}{{role=\"{role}\",server=\"{server}\",topic=\"{}\",partition=\"{}\"}} {}",
                    lag.topic,
                    lag.partition,
                    figure(&lag)
                );
            }
        }
    }
}

fn heading(out: &mut String, name: &str, kind: &str) {
    let _ = writeln!(out, "# TYPE {name} {kind}");
}

fn sample(out: &mut String, name: &str, role: &str, server: &str, value: u64) {
    let _ = writeln!(out, "{name}{{role=\"{role}\",server=\"{server}\"}} {value}");
}

/// Puts texts of several servers together. All samples of a metric stand behind its heading, as the format wants it.
#[must_use]
pub fn merge(texts: &[String]) -> String {
    let mut metrics: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for text in texts {
        let mut place = None;
        for line in text.lines() {
            if line.starts_with('#') {
                let next = metrics.len();
                let known = *places.entry(line).or_insert(next);
                if known == next {
                    metrics.push((line, Vec::new()));
                }
                place = Some(known);
            } else if let Some(place) = place {
                metrics[place].1.push(line);
            }
        }
    }
    let lines = metrics.into_iter().flat_map(|(heading, samples)| std::iter::once(heading).chain(samples));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// One server's figures as a scraper sees them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scraped {
    /// `chat`, `api`, …
    pub role: String,
    /// Values by metric name; samples with further labels are left out.
    pub values: BTreeMap<String, f64>,
}

impl Scraped {
    /// The value of a counter, 0 when it is not there.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> f64 {
        self.values.get(counter.name()).copied().unwrap_or(0.0)
    }

    /// The value of a gauge, 0 when it is not there.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> f64 {
        self.values.get(gauge.name()).copied().unwrap_or(0.0)
    }
}

/// Reads exposition text into figures by server. Lines that are no samples of ours are left out.
#[must_use]
pub fn parse(text: &str) -> BTreeMap<String, Scraped> {
    let mut servers: BTreeMap<String, Scraped> = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.split_once("} ") else { continue };
        let (Some(server), Some(role)) = (label(labels, "server"), label(labels, "role")) else { continue };
        if labels.contains("quantile=") || labels.contains("partition=") {
            continue;
        }
        if let Ok(value) = value.trim().parse() {
            let entry = servers.entry(server.to_owned()).or_default();
            role.clone_into(&mut entry.role);
            entry.values.insert(name.to_owned(), value);
        }
    }
    servers
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{LatencyPath, LatencySummary, Registry};

    #[test]
    fn prometheus_gets_each_kind_behind_its_heading() {
        let mut s = LiveSnapshot { scenario: "a\"b".to_owned(), connections: 7, ..LiveSnapshot::default() };
        s.overall
            .insert(LatencyPath::Ack, LatencySummary { count: 3, p99_us: 2_500, mean_us: 1e6, ..Default::default() });
        s.violations.insert("lost".to_owned(), 1);
        let text = render_load(&s);
        for wanted in [
            "chatctl_load_connections{scenario=\"a_b\"} 7",
            "path=\"ack\",quantile=\"0.99\"} 0.0025",
            "chatctl_load_latency_seconds_sum{scenario=\"a_b\",path=\"ack\"} 3",
            "chatctl_load_violations_total{scenario=\"a_b\",kind=\"lost\"} 1",
        ] {
            assert!(text.contains(wanted), "lacks {wanted}:\n{text}");
        }
    }

    #[test]
    fn merged_texts_have_each_heading_once_and_every_server() {
        let one = |server| render(&[Arc::new(Metrics::new("chat", server))]);
        let merged = merge(&[one("chat-1"), one("chat-2")]);
        assert_eq!(parse(&merged).len(), 2);
        assert_eq!(merged.matches("# TYPE chatctl_connections gauge").count(), 1);
    }

    #[test]
    fn a_scrape_reads_back_what_was_rendered() {
        let registry = Registry::default();
        let metrics = registry.register("chat", "chat-1");
        metrics.add(Counter::Deliveries, 7);
        metrics.set(Gauge::Connections, 3);
        metrics.time_us(Timer::Send, 1500);
        metrics.set_partitions(vec![PartitionFigures { topic: "inbox", partition: 3, records: 5, age_ms: 9 }]);
        let wanted =
            "chatctl_log_partition_lag_records{role=\"chat\",server=\"chat-1\",topic=\"inbox\",partition=\"3\"} 5";
        assert!(render(&registry.all()).lines().any(|line| line == wanted));
        let scraped = parse(&render(&registry.all()));
        let chat = &scraped["chat-1"];
        assert_eq!(chat.role, "chat");
        assert!((chat.counter(Counter::Deliveries) - 7.0).abs() < f64::EPSILON);
        assert!((chat.gauge(Gauge::Connections) - 3.0).abs() < f64::EPSILON);
        assert!((chat.values["chatctl_send_seconds_count"] - 1.0).abs() < f64::EPSILON);
    }
}

#[cfg(test)]
mod dashboard_tests {
    use super::*;

    #[test]
    fn dashboards_name_only_metrics_that_exist() {
        let text = include_str!("../../dashboards/stack.json");
        let dashboard: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let known: Vec<&str> = Counter::ALL
            .iter()
            .map(|c| c.name())
            .chain(Gauge::ALL.iter().map(|g| g.name()))
            .chain(Timer::ALL.iter().map(|t| t.name()))
            .chain([PARTITION_LAG_RECORDS, PARTITION_LAG_MS])
            .collect();
        let panels = dashboard["panels"].as_array().expect("panels");
        assert!(!panels.is_empty());
        for target in panels.iter().flat_map(|p| p["targets"].as_array().expect("targets")) {
            let expr = target["expr"].as_str().expect("an expression");
            let names = expr.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| w.starts_with("chatctl_"));
            for name in names {
                assert!(known.contains(&name), "{name} in {expr}");
            }
        }
    }
}
