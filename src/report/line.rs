//! One line per interval, for pipes and logs.

use std::fmt::Write;

use super::{human_us, series};
use crate::telemetry::{LatencyPath, LiveSnapshot, Percentile, RunPhase};

/// A snapshot in one line.
#[must_use]
pub fn render(s: &LiveSnapshot) -> String {
    if matches!(s.phase, RunPhase::Setup | RunPhase::Audit) {
        return format!("{:<9} {:>3.0} %  {}", s.phase, s.progress * 100.0, s.progress_text);
    }
    let mut line = format!(
        "{:<9} {:>4.0}/{:.0} s  conns {}/{}  sent {:.0}/s  acked {:.0}/s  delivered {:.0}/s",
        s.phase,
        s.elapsed_s,
        s.planned_s,
        s.connections,
        s.connections_wanted,
        s.rates.intended,
        s.rates.acked,
        s.rates.delivered
    );
    if let Some(delivery) = s.interval.get(LatencyPath::Delivery) {
        let (p50, p99) = (delivery.shown(Percentile::P50), delivery.shown(Percentile::P99));
        let _ = write!(line, "  delivery p50 {p50} p99 {p99}");
    }
    let lag = series::lag_records(s);
    let _ = write!(line, "  lag {lag} rec  gen late p99 {}", human_us(s.generator_lag_us_p99));
    for (kind, n) in &s.violations {
        let _ = write!(line, "  {} {n}", kind.to_uppercase());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::PhaseKind;

    #[test]
    fn a_line_shows_what_matters_and_shouts_violations() {
        let mut s = LiveSnapshot {
            phase: RunPhase::Load(PhaseKind::Steady),
            connections: 5,
            connections_wanted: 6,
            ..Default::default()
        };
        s.violations.insert("lost".to_owned(), 2);
        let line = render(&s);
        assert!(line.contains("conns 5/6") && line.contains("LOST 2"), "{line}");
        let setup = LiveSnapshot { phase: RunPhase::Setup, progress: 0.5, ..Default::default() };
        assert!(render(&setup).contains("50 %"));
    }
}
