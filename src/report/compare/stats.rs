//! Statistics of runs: how large a change is, how sure that is, and how small a change could have been seen.
//!
//! The unit is a run, never a message: messages of one run share its good and bad moments, and a test that takes them for
//! independent raises an alarm on every second pair of runs of the same program. All values are logarithms, so that a
//! change is a factor and a slow run does not outweigh ten fast ones.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Resamples of a bootstrap. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: 1,000 and more for
/// intervals.
const RESAMPLES: usize = 4_000;

/// Most rearrangements that a permutation test goes through one by one; past it they are drawn.
const EXACT_MAX: u64 = 1 << 16;

/// Rearrangements drawn where there are too many.
const DRAWN: u64 = 20_000;

/// Everything random here comes from it: the same runs give the same answer.
const SEED: u64 = 0x5eed;

/// Two groups of runs, as logarithms of one figure.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    pub(super) base: Vec<f64>,
    pub(super) new: Vec<f64>,
    /// Whether the runs with the same index ran side by side.
    pub(super) are_paired: bool,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The middle of at least one value.
fn median(mut values: Vec<f64>) -> f64 {
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

impl Groups {
    fn differences(&self) -> Vec<f64> {
        self.base.iter().zip(&self.new).map(|(base, new)| new - base).collect()
    }

    /// The change from base to new: the mean of logarithms, so a factor's logarithm.
    pub(super) fn change(&self) -> f64 {
        mean(&self.new) - mean(&self.base)
    }

    /// The change of the run in the middle, which a few bad runs do not move.
    pub(super) fn typical_change(&self) -> f64 {
        if self.are_paired { median(self.differences()) } else { median(self.new.clone()) - median(self.base.clone()) }
    }

    /// Each run as a multiple of what another figure was in it, at that figure's usual size.
    pub(super) fn relative_to(&self, other: &Self) -> Self {
        let usual = mean(&[other.base.as_slice(), &other.new].concat());
        let relative = |own: &[f64], other: &[f64]| own.iter().zip(other).map(|(a, b)| a - b + usual).collect();
        Self {
            base: relative(&self.base, &other.base),
            new: relative(&self.new, &other.new),
            are_paired: self.are_paired,
        }
    }

    /// Standard deviation of the change, from these runs alone; `None` where there are too few.
    pub(super) fn change_deviation(&self) -> Option<f64> {
        if self.are_paired {
            return Some(robust_deviation(&self.differences())? / (self.base.len() as f64).sqrt());
        }
        let part = |values: &[f64]| Some(robust_deviation(values)?.powi(2) / values.len() as f64);
        Some((part(&self.base)? + part(&self.new)?).sqrt())
    }

    /// An interval that holds the change with a probability of `level`, by bootstrap.
    pub(super) fn interval(&self, level: f64) -> (f64, f64) {
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut draw = |values: &[f64]| {
            let picked = (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).sum::<f64>();
            picked / values.len().max(1) as f64
        };
        let differences = self.differences();
        let mut changes: Vec<f64> = (0..RESAMPLES)
            .map(|_| if self.are_paired { draw(&differences) } else { draw(&self.new) - draw(&self.base) })
            .collect();
        changes.sort_by(f64::total_cmp);
        let at = |share: f64| changes[((RESAMPLES - 1) as f64 * share).round() as usize];
        (at((1.0 - level) / 2.0), at(f64::midpoint(1.0, level)))
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
        let sum = |swaps: u64| -> f64 {
            differences.iter().enumerate().map(|(n, d)| if swaps >> (n % 64) & 1 == 1 { -d } else { *d }).sum()
        };
        let is_as_far = |swaps: u64| sum(swaps) >= seen - 1e-12;
        if differences.len() < 17 {
            let all = 1_u64 << differences.len();
            return (0..all).filter(|swaps| is_as_far(*swaps)).count() as f64 / all as f64;
        }
        let mut rng = StdRng::seed_from_u64(SEED);
        let as_far = (0..DRAWN).filter(|_| is_as_far(rng.random())).count() as u64;
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
        if self.are_paired {
            0.5_f64.powi(self.base.len() as i32).max(1.0 / (DRAWN + 1) as f64)
        } else {
            (1.0 / choose(self.base.len() + self.new.len(), self.new.len()) as f64).max(1.0 / (DRAWN + 1) as f64)
        }
    }
}

/// Ways to choose `k` of `n`, as far as they fit.
fn choose(n: usize, k: usize) -> u64 {
    (0..k.min(n - k.min(n)) as u64).fold(1_u64, |ways, i| ways.saturating_mul(n as u64 - i) / (i + 1))
}

/// Holm's correction: the chances of several tests, each raised so that all together raise a false alarm no more often than
/// one would. Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
pub(super) fn holm(chances: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let mut corrected = vec![1.0; chances.len()];
    let mut so_far: f64 = 0.0;
    for (place, index) in order.into_iter().enumerate() {
        so_far = so_far.max(chances[index] * (chances.len() - place) as f64).min(1.0);
        corrected[index] = so_far;
    }
    corrected
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
    }

    #[test]
    fn one_bad_run_is_not_the_noise() {
        let values = [1.0, 1.1, 0.9, 1.05, 0.95, 9.0];
        assert!(deviation(&values).is_some_and(|d| d > 3.0));
        assert!(robust_deviation(&values).is_some_and(|d| (0.05..0.2).contains(&d)));
        assert_eq!(robust_deviation(&[1.0]), None);
    }

    #[test]
    fn exact_and_drawn_rearrangements_agree() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut values = |shift: f64, n: usize| (0..n).map(|_| normal(&mut rng) + shift).collect::<Vec<_>>();
        let (base, new) = (values(0.0, 8), values(0.7, 8));
        let exact = groups(&base, &new, false).chance_of_rise();
        let padded = groups(&[base, vec![0.0; 4]].concat(), &[new, vec![0.0; 4]].concat(), false);
        assert!((0.0..0.5).contains(&exact) && (0.0..0.6).contains(&padded.chance_of_rise()), "{exact}");
    }

    #[test]
    fn an_interval_holds_the_truth_about_as_often_as_it_says() {
        let mut rng = StdRng::seed_from_u64(1);
        let held = (0..200)
            .filter(|_| {
                let base: Vec<f64> = (0..12).map(|_| normal(&mut rng)).collect();
                let new: Vec<f64> = base.iter().map(|b| b + 0.3 + 0.1 * normal(&mut rng)).collect();
                let (low, high) = groups(&base, &new, true).interval(0.95);
                (low..=high).contains(&0.3)
            })
            .count();
        assert!((170..=200).contains(&held), "{held} of 200");
    }

    #[test]
    fn holm_raises_each_chance_by_those_behind_it() {
        let corrected = holm(&[0.01, 0.5, 0.02]);
        let expected = [0.03, 0.5, 0.04];
        assert!(corrected.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{corrected:?}");
    }
}
