//! When messages are due: an open model, so that a slow server can't slow the load that it is measured with.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Arrivals, Phase};

/// Due times of one phase, in µs from its start, rising.
pub struct Schedule {
    rng: StdRng,
    arrivals: Arrivals,
    duration_us: f64,
    rate_from: f64,
    rate_to: f64,
    /// How many messages are due up to now, as a real number ("cumulative intensity").
    due: f64,
}

impl Schedule {
    /// The schedule of a phase.
    #[must_use]
    pub fn new(phase: &Phase, seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            arrivals: phase.arrivals,
            duration_us: phase.duration.as_micros() as f64,
            rate_from: phase.rate,
            rate_to: phase.rate_to.unwrap_or(phase.rate),
            due: 0.0,
        }
    }

    /// The time at which `due` messages are due: the inverse of the integral of a rate that changes linearly.
    /// The same, begun `place` of a gap (0 to 1) later: so that equal gaps of several parts of a run interlock.
    #[must_use]
    pub fn shifted(mut self, place: f64) -> Self {
        if self.arrivals == Arrivals::Constant {
            self.due -= place;
        }
        self
    }

    fn time_us(&self, due: f64) -> Option<f64> {
        let (a, seconds) = (self.rate_from, self.duration_us / 1e6);
        let slope = (self.rate_to - a) / seconds;
        let t = if slope.abs() < 1e-9 {
            due / a
        } else {
            let under_root = a * a + 2.0 * slope * due;
            if under_root < 0.0 {
                return None;
            }
            (under_root.sqrt() - a) / slope
        };
        (t.is_finite() && t >= 0.0 && t < seconds).then_some(t * 1e6)
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // A Poisson process of any rate is one of rate 1 on the stretched clock of its cumulative intensity.
        self.due += match self.arrivals {
            Arrivals::Constant => 1.0,
            Arrivals::Poisson => -(1.0 - self.rng.random::<f64>()).ln(),
        };
        self.time_us(self.due).map(|t| t as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::loadgen::scenario::PhaseKind;

    fn phase(rate: f64, rate_to: Option<f64>, arrivals: Arrivals) -> Phase {
        Phase { phase: PhaseKind::Steady, duration: Duration::from_secs(10), rate, rate_to, arrivals }
    }

    #[test]
    fn a_constant_rate_has_equal_gaps() {
        let times: Vec<u64> = Schedule::new(&phase(100.0, None, Arrivals::Constant), 1).collect();
        assert_eq!(times.len(), 999);
        assert!(times.windows(2).all(|w| (9_999..=10_001).contains(&(w[1] - w[0]))));
    }

    #[test]
    fn equal_gaps_of_two_parts_interlock() {
        let part = |place| Schedule::new(&phase(100.0, None, Arrivals::Constant), 1).shifted(place);
        let mut all: Vec<u64> = part(0.0).chain(part(0.5)).collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|w| (4_999..=5_001).contains(&(w[1] - w[0]))), "{:?}", &all[..5]);
    }

    #[test]
    fn a_poisson_rate_has_its_mean_and_its_spread() {
        let times: Vec<u64> = Schedule::new(&phase(1_000.0, None, Arrivals::Poisson), 1).collect();
        assert!((9_700..10_300).contains(&times.len()), "{}", times.len());
        let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.05, "{deviation} of {mean}");
    }

    #[test]
    fn a_ramp_has_a_quarter_of_its_messages_in_its_first_half() {
        let times: Vec<u64> = Schedule::new(&phase(0.0, Some(200.0), Arrivals::Constant), 1).collect();
        assert!((998..=1_000).contains(&times.len()), "{}", times.len());
        let first_half = times.iter().filter(|t| **t < 5_000_000).count();
        assert!((249..=251).contains(&first_half), "{first_half}");
    }

    #[test]
    fn a_rate_of_zero_is_silence_and_a_seed_repeats() {
        assert_eq!(Schedule::new(&phase(0.0, None, Arrivals::Poisson), 1).count(), 0);
        let times = |seed| Schedule::new(&phase(50.0, None, Arrivals::Poisson), seed).collect::<Vec<_>>();
        assert_eq!(times(3), times(3));
        assert_ne!(times(3), times(4));
    }
}
