//! Rates of runs, such as refused messages per message: how far apart two groups are, and the chance of it.
//!
//! The unit is a run, as for latencies: what goes wrong comes in bursts, so two hundred errors of one run are one event.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Most rearrangements that a permutation test goes through one by one; past it they are drawn.
const EXACT_MAX: u64 = 1 << 16;

/// Rearrangements drawn where there are too many.
const DRAWN: u64 = 20_000;

/// Everything random here comes from it: the same runs give the same answer.
const SEED: u64 = 0x5eed;

/// Two groups of runs with one value each.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    pub(super) base: Vec<f64>,
    pub(super) new: Vec<f64>,
    /// Whether the runs with the same index ran side by side.
    pub(super) are_paired: bool,
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The middle of the values; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

/// Standard deviation of single values; `None` for less than two.
pub(super) fn deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let middle = mean(values);
    let sum: f64 = values.iter().map(|v| (v - middle).powi(2)).sum();
    Some((sum / (values.len() - 1) as f64).sqrt())
}

/// The same from the middle of the values, so that one run in a bad minute does not count for all: 1.4826 times the median
/// distance from the median. Source: Rousseeuw and Croux, "Alternatives to the median absolute deviation", 1993.
pub(super) fn robust_deviation(values: &[f64]) -> Option<f64> {
    /// Fewest values of which the middle says more than all.
    const ENOUGH: usize = 5;
    if values.len() < ENOUGH {
        return deviation(values);
    }
    let middle = median(values.to_vec());
    Some(1.4826 * median(values.iter().map(|v| (v - middle).abs()).collect()))
}

/// Student's t that is passed with a probability of 5 %, to 2 % from two degrees of freedom on. Source: fitted to the tables.
pub(super) fn t_95(freedom: usize) -> f64 {
    let freedom = freedom.max(1) as f64;
    1.645 + 1.7 / freedom + 1.0 / freedom.powi(2)
}

impl Groups {
    pub(super) fn differences(&self) -> Vec<f64> {
        self.base.iter().zip(&self.new).map(|(base, new)| new - base).collect()
    }

    /// Each run as a multiple of what another figure was in it, at that figure's usual size. Of logarithms.
    pub(super) fn relative_to(&self, other: &Self) -> Self {
        let usual = mean(&[other.base.as_slice(), &other.new].concat());
        let relative = |own: &[f64], other: &[f64]| own.iter().zip(other).map(|(a, b)| a - b + usual).collect();
        Self {
            base: relative(&self.base, &other.base),
            new: relative(&self.new, &other.new),
            are_paired: self.are_paired,
        }
    }

    /// Standard deviation of the change of the mean; `None` where there are too few runs.
    pub(super) fn change_deviation(&self) -> Option<f64> {
        if self.are_paired {
            return Some(deviation(&self.differences())? / (self.base.len() as f64).sqrt());
        }
        let part = |values: &[f64]| Some(deviation(values)?.powi(2) / values.len() as f64);
        Some((part(&self.base)? + part(&self.new)?).sqrt())
    }

    /// Probability that a change at least as far up as the one seen comes about by chance alone, by rearranging the runs:
    /// swapping the two of a pair, or dealing all runs anew. Source: Good, "Permutation, Parametric and Bootstrap Tests of
    /// Hypotheses", 2005.
    pub(super) fn chance_of_rise(&self) -> f64 {
        if self.are_paired { self.by_swaps() } else { self.by_dealing() }
    }

    /// The same for a change downwards.
    pub(super) fn chance_of_fall(&self) -> f64 {
        let swapped = Self { base: self.new.clone(), new: self.base.clone(), are_paired: self.are_paired };
        swapped.chance_of_rise()
    }

    fn by_swaps(&self) -> f64 {
        let differences = self.differences();
        let seen: f64 = differences.iter().sum();
        let sum = |signs: &mut dyn FnMut(usize) -> bool| -> f64 {
            differences.iter().enumerate().map(|(n, d)| if signs(n) { -d } else { *d }).sum()
        };
        if differences.len() < 17 {
            let all = 1_u64 << differences.len();
            let is_as_far = |swaps: u64| sum(&mut |n| swaps >> n & 1 == 1) >= seen - 1e-12;
            return (0..all).filter(|swaps| is_as_far(*swaps)).count() as f64 / all as f64;
        }
        let mut rng = StdRng::seed_from_u64(SEED);
        let as_far = (0..DRAWN).filter(|_| sum(&mut |_| rng.random()) >= seen - 1e-12).count() as u64;
        (as_far + 1) as f64 / (DRAWN + 1) as f64
    }

    fn by_dealing(&self) -> f64 {
        let mut all = [self.base.as_slice(), self.new.as_slice()].concat();
        let (count, total) = (self.new.len(), all.len());
        let seen: f64 = self.new.iter().sum();
        if total < 20 && choose(total, count) <= EXACT_MAX {
            let hands = (0_u32..1 << total).filter(|hand| hand.count_ones() as usize == count);
            let (mut as_far, mut hands_seen) = (0, 0);
            for hand in hands {
                let sum: f64 = all.iter().enumerate().filter(|(n, _)| hand >> n & 1 == 1).map(|(_, v)| v).sum();
                as_far += u64::from(sum >= seen - 1e-12);
                hands_seen += 1;
            }
            return as_far as f64 / f64::from(hands_seen);
        }
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut as_far = 0;
        for _ in 0..DRAWN {
            for n in 0..count {
                let other = rng.random_range(n..total);
                all.swap(n, other);
            }
            as_far += u64::from(all[..count].iter().sum::<f64>() >= seen - 1e-12);
        }
        (as_far + 1) as f64 / (DRAWN + 1) as f64
    }

    /// The smallest chance that the test could give with so many runs.
    pub(super) fn smallest_chance(&self) -> f64 {
        smallest_chance((self.base.len(), self.new.len()), self.are_paired)
    }

    /// Whether each side has a second run: without one, nothing is known of the noise between runs.
    pub(super) const fn are_repeated(&self) -> bool {
        self.base.len() > 1 && self.new.len() > 1
    }
}

/// The smallest chance that a test gives with so many runs of base and of new.
fn smallest_chance((base, new): (usize, usize), are_paired: bool) -> f64 {
    let smallest = if are_paired { 0.5_f64.powi(base.min(1_000) as i32) } else { 1.0 / choose(base + new, new) as f64 };
    smallest.max(1.0 / (DRAWN + 1) as f64)
}

/// The fewest runs of each side with which a test can give a chance this small.
pub(super) fn fewest_runs(are_paired: bool, chance: f64) -> usize {
    /// Past it no chance is asked for.
    const MOST: usize = 20;
    (1..MOST).find(|runs| smallest_chance((*runs, *runs), are_paired) <= chance).unwrap_or(MOST)
}

/// Ways to choose `k` of `n`, as far as they fit.
fn choose(n: usize, k: usize) -> u64 {
    (0..k.min(n - k.min(n)) as u64).fold(1_u64, |ways, i| ways.saturating_mul(n as u64 - i) / (i + 1))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A value with a normal distribution, by the method of Box and Muller.
    pub(in super::super) fn normal(rng: &mut StdRng) -> f64 {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    fn groups(base: &[f64], new: &[f64], are_paired: bool) -> Groups {
        Groups { base: base.to_vec(), new: new.to_vec(), are_paired }
    }

    #[test]
    fn a_test_by_hand() {
        // Three pairs, all up: one of eight arrangements is as far.
        let paired = groups(&[1.0, 2.0, 3.0], &[1.5, 2.4, 3.3], true);
        assert!((paired.chance_of_rise() - 0.125).abs() < 1e-9);
        assert!((paired.chance_of_fall() - 1.0).abs() < 1e-9);
        // Two and two, the new ones on top: one of six hands.
        let dealt = groups(&[1.0, 2.0], &[3.0, 4.0], false);
        assert!((dealt.chance_of_rise() - 1.0 / 6.0).abs() < 1e-9);
        assert!((dealt.smallest_chance() - 1.0 / 6.0).abs() < 1e-9);
        assert_eq!(choose(20, 5), 15_504);
        assert_eq!([0.05, 0.001].map(|chance| fewest_runs(true, chance)), [5, 10]);
        assert_eq!([0.05, 0.001].map(|chance| fewest_runs(false, chance)), [3, 7]);
    }

    #[test]
    fn drawn_swaps_are_of_every_pair() {
        // A hundred pairs, all up: no draw is as far.
        let all_up = groups(&[0.0; 100], &[1.0; 100], true);
        assert!(all_up.chance_of_rise() < 1e-4);
        assert!(all_up.chance_of_fall() > 0.99);
    }

    #[test]
    fn one_bad_run_is_not_the_noise() {
        let values = [1.0, 1.1, 0.9, 1.05, 0.95, 9.0];
        assert!(deviation(&values).is_some_and(|d| d > 3.0));
        assert!(robust_deviation(&values).is_some_and(|d| (0.05..0.2).contains(&d)));
        assert_eq!(robust_deviation(&[1.0]), None);
    }

    #[test]
    fn t_is_that_of_the_tables() {
        for (freedom, t) in [(2, 2.920), (4, 2.132), (9, 1.833), (19, 1.729), (100, 1.660)] {
            assert!((t_95(freedom) / t - 1.0).abs() < 0.07, "{freedom}: {}", t_95(freedom));
        }
    }
}
