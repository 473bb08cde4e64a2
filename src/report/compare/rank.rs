//! How far one group of runs lies from another, by ranks: an estimate, an interval, and the chance of it where nothing changed.
//!
//! The unit is a run, never a message: messages of one run share its good and bad moments, and a test that takes them for
//! independent raises an alarm on every second pair of runs of the same program. Ranks, since one run in a bad second is far off
//! and must not count for all. Test and interval are two readings of the same numbers, so they never contradict each other.
//! Source: Hodges and Lehmann, "Estimates of location based on rank tests", 1963; Hollander, Wolfe and Chicken,
//! "Nonparametric Statistical Methods", 2014, sections 3.1 to 3.3 and 4.1 to 4.3.

/// Differences up to which the distribution of Mann and Whitney's U is counted out; past it, it is normal to four digits.
const EXACT_DIFFERENCES_MAX: usize = 20_000;

/// Where a group lies against another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shift {
    /// Hodges and Lehmann's estimate: the middle of all averages (pairs) or differences (groups).
    pub(super) estimate: f64,
    /// Interval whose ends each are passed with the probability that was asked for; `None` where the runs are too few for one.
    pub(super) interval: Option<(f64, f64)>,
    /// Chance of a rise like this, or a clearer one, where nothing changed.
    pub(super) chance_of_rise: f64,
    /// The same of a fall.
    pub(super) chance_of_fall: f64,
    /// The smallest chance that so many runs can give.
    pub(super) smallest_chance: f64,
}

/// Of pairs, by Wilcoxon's signed ranks; `None` without any. `tail` is the probability past each end of the interval.
pub(super) fn paired(differences: &[f64], tail: f64) -> Option<Shift> {
    let mut averages = Vec::with_capacity(differences.len() * (differences.len() + 1) / 2);
    for (n, a) in differences.iter().enumerate() {
        averages.extend(differences[n..].iter().map(|b| f64::midpoint(*a, *b)));
    }
    shift(averages, &signed_ranks(differences.len()), tail)
}

/// Of two groups, by Mann and Whitney's test.
pub(super) fn unpaired(base: &[f64], new: &[f64], tail: f64) -> Option<Shift> {
    let differences: Vec<f64> = new.iter().flat_map(|n| base.iter().map(move |b| n - b)).collect();
    shift(differences, &mann_whitney(base.len(), new.len()), tail)
}

/// From all averages or differences and the probabilities that so many of them lie above 0.
fn shift(mut values: Vec<f64>, probabilities: &[f64], tail: f64) -> Option<Shift> {
    /// Below it two runs are the same to the last digit.
    const EQUAL: f64 = 1e-12;
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    // Those that are 0 count for neither side.
    let at_least = |n: usize| probabilities[n.min(probabilities.len() - 1)..].iter().sum::<f64>().min(1.0);
    let above = values.iter().filter(|v| **v > EQUAL).count();
    let below = values.iter().filter(|v| **v < -EQUAL).count();
    let mut so_far = 0.0;
    let outside = probabilities.iter().take_while(|p| {
        so_far += *p;
        so_far <= tail
    });
    let outside = outside.count().min(last / 2 + 1);
    Some(Shift {
        estimate: f64::midpoint(values[last / 2], values[values.len() / 2]),
        interval: (outside > 0).then(|| (values[outside - 1], values[last + 1 - outside])),
        chance_of_rise: at_least(above),
        chance_of_fall: at_least(below),
        smallest_chance: probabilities.last().copied().unwrap_or(1.0),
    })
}

/// Probability of each sum of the positive ranks of `n` differences that are as often above 0 as below.
fn signed_ranks(n: usize) -> Vec<f64> {
    let mut probabilities = vec![0.0; n * (n + 1) / 2 + 1];
    probabilities[0] = 1.0;
    let mut top = 0;
    for rank in 1..=n {
        top += rank;
        for sum in (0..=top).rev() {
            let with = if sum >= rank { probabilities[sum - rank] } else { 0.0 };
            probabilities[sum] = f64::midpoint(probabilities[sum], with);
        }
    }
    probabilities
}

/// Probability of each number of pairs of two groups in which the second is above the first.
fn mann_whitney(a: usize, b: usize) -> Vec<f64> {
    let pairs = a * b;
    if pairs > EXACT_DIFFERENCES_MAX {
        let middle = pairs as f64 / 2.0;
        let variance = pairs as f64 * (a + b + 1) as f64 / 12.0;
        let density = |u: usize| (-(u as f64 - middle).powi(2) / (2.0 * variance)).exp();
        return normalized((0..=pairs).map(density).collect());
    }
    // The numbers are the coefficients of a Gaussian binomial: the product of (1 - x^(a + k)) / (1 - x^k) over k up to b.
    let mut counts = vec![0.0; pairs + 1];
    counts[0] = 1.0;
    for k in 1..=b {
        for u in (a + k..=pairs).rev() {
            counts[u] -= counts[u - a - k];
        }
        for u in k..=pairs {
            counts[u] += counts[u - k];
        }
    }
    normalized(counts)
}

fn normalized(mut weights: Vec<f64>) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w = (*w / sum).max(0.0));
    weights
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::report::compare::stats::tests::normal;

    #[test]
    fn distributions_by_hand() {
        assert_eq!(signed_ranks(2), [0.25; 4]);
        assert_eq!(signed_ranks(3), [0.125, 0.125, 0.125, 0.25, 0.125, 0.125, 0.125]);
        let two_and_two = mann_whitney(2, 2);
        let expected = [1.0, 1.0, 2.0, 1.0, 1.0].map(|n| n / 6.0);
        assert!(two_and_two.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{two_and_two:?}");
        // Tables: P(W <= 8) = 0.0244 for 10 pairs, P(U <= 23) = 0.0217 for 10 and 10.
        assert!((signed_ranks(10)[..=8].iter().sum::<f64>() - 0.0244).abs() < 5e-5);
        assert!((mann_whitney(10, 10)[..=23].iter().sum::<f64>() - 0.0216).abs() < 5e-4);
        let exact = mann_whitney(130, 150);
        let normal = mann_whitney(142, 142);
        for distribution in [exact, normal] {
            assert!((distribution.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn the_test_and_the_interval_agree() {
        // Five pairs, all up: the smallest chance, and an interval that begins at the smallest difference.
        let shift = paired(&[0.1, 0.2, 0.3, 0.4, 0.5], 0.05).expect("some");
        assert!(
            (shift.chance_of_rise - 1.0 / 32.0).abs() < 1e-12 && (shift.smallest_chance - 1.0 / 32.0).abs() < 1e-12
        );
        assert_eq!(shift.interval, Some((0.1, 0.5)));
        assert!((shift.estimate - 0.3).abs() < 1e-12);
        assert_eq!(paired(&[0.1, 0.2, 0.3, 0.4], 0.05).expect("some").interval, None, "too few");
        assert_eq!(paired(&[], 0.05), None);
        let apart = unpaired(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], 0.05).expect("some");
        assert!((apart.chance_of_rise - 0.05).abs() < 1e-9 && apart.interval == Some((1.0, 5.0)), "{apart:?}");
        let same = paired(&[0.0; 12], 0.05).expect("some");
        assert!(same.chance_of_rise > 0.99 && same.interval == Some((0.0, 0.0)), "{same:?}");
    }

    #[test]
    fn an_interval_holds_the_truth_at_least_as_often_as_it_says() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut held = [0; 2];
        for _ in 0..2_000 {
            let mut group = |shift: f64| (0..12).map(|_| shift + normal(&mut rng)).collect::<Vec<_>>();
            let (pairs, base, new) = (group(0.3), group(0.0), group(0.3));
            for (n, shift) in [paired(&pairs, 0.05), unpaired(&base, &new, 0.05)].into_iter().enumerate() {
                let (low, high) = shift.and_then(|s| s.interval).expect("enough runs");
                held[n] += usize::from((low..=high).contains(&0.3));
            }
        }
        assert!(held.iter().all(|n| (1_770..=1_860).contains(n)), "{held:?} of 2000 at 90 %");
    }

    #[test]
    fn two_runs_of_twenty_that_are_far_off_do_not_move_the_interval_far() {
        let mut differences: Vec<f64> = (0..20).map(|n| f64::from(n - 10) * 0.002).collect();
        (differences[0], differences[7]) = (1.8, 1.8);
        let (_, high) = paired(&differences, 0.05).and_then(|s| s.interval).expect("enough");
        assert!(high < 0.03, "{high}");
    }
}
