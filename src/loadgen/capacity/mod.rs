//! The search for the highest load that holds: which rate to try next, and when to stop. No I/O: the caller runs the trials.
//!
//! A single trial is not believed: on a machine that others use, one in twenty fails at a load that holds. A rate fails when two
//! more of its trials failed than held, and the one that bounds the answer when three more did; the answer itself must hold in
//! several. So the search is a bisection in which each step is a sequential test. Source: Wald, "Sequential tests of statistical
//! hypotheses", 1945; Waeber, Frazier and Henderson, "Bisection search with noisy responses", 2013.

mod trial;

pub use trial::{
    Cause, Cores, DEFAULT_THRESHOLDS, Steady, TRIAL_MIN, add_thresholds, cause, lacks_samples, peak_rate, trial,
};

/// Factor between two steps while everything holds.
const STEP: f64 = 1.6;

/// Most trials of a search. Twelve steps are a factor of 280, six bisections narrow a step to 0.8 %, and each rate that fails
/// takes two trials or three.
pub const TRIALS_MAX: u32 = 80;

/// By how many more failed trials than held ones a rate fails.
const FAILS_BY: u32 = 2;

/// The same of the rate that bounds the answer: a trial in twenty that fails by chance makes this once in 7,000 rates.
const BOUND_FAILS_BY: u32 = 3;

/// Trials of a rate after which the majority counts: it is so close to the limit that it holds as often as not.
const RATE_TRIALS_MAX: u32 = 9;

/// How a search is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// First rate to try, in messages per second.
    pub start: f64,
    /// Rates past this are not tried.
    pub max: f64,
    /// The search ends when the lowest rate that fails is less than this above the highest that holds, as a share.
    pub precision: f64,
    /// By how many more trials the highest rate must hold than it fails.
    pub repeats: u32,
}

/// What a trial said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Ledger and thresholds hold.
    Holds,
    /// They do not.
    Fails,
    /// The generator or its machine was the limit. The rate counts as one that fails, since it can't be tried here, and the
    /// trial says nothing of where the stack's limit is.
    SaysNothing,
    /// A guarantee was broken: no repetition makes that good.
    Breaks,
}

/// How a search stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Try this rate.
    Try(f64),
    /// The answer: the highest rate that holds.
    Found(Found),
    /// Even the lowest rate that makes sense fails.
    NothingHolds {
        /// The lowest rate that was tried.
        lowest: f64,
        /// Whether the search ended by its own rules, and not because it had no more trials.
        is_settled: bool,
    },
    /// Everything holds up to the highest rate that may be tried.
    HoldsToTheEnd(Found),
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Highest rate that holds, in messages per second.
    pub rate: f64,
    /// Trials at `rate` that held, and all of them.
    pub held: (u32, u32),
    /// Lowest rate above it that fails; the same as `rate` where none does.
    pub fails_at: f64,
    /// Trials at `fails_at` that failed, and all of them.
    pub failed: (u32, u32),
    /// Interval that holds, with 95 %, the rate at which half of the trials fail; 0 and infinite where the trials
    /// do not say.
    pub interval: (f64, f64),
    /// Whether the search ended by its own rules, and not because it had no more trials.
    pub is_settled: bool,
}

/// The trials of a rate.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tried {
    rate: f64,
    held: u32,
    failed: u32,
    /// Those of the failed that say nothing of the stack.
    void: u32,
    breaks: bool,
}

impl Tried {
    const fn trials(&self) -> u32 {
        self.held + self.failed
    }

    /// Whether it fails: by so many trials more than held, by a broken guarantee, or by most of many.
    const fn fails_by(&self, margin: u32) -> bool {
        self.breaks
            || self.failed >= self.held + margin
            || (self.trials() >= RATE_TRIALS_MAX && self.failed >= self.held)
    }

    const fn holds(&self) -> bool {
        !self.breaks && self.held > self.failed
    }

    /// Whether it holds in so many trials more than it failed in, or in most of many.
    const fn is_confirmed(&self, repeats: u32) -> bool {
        self.held >= self.failed + repeats || self.trials() >= RATE_TRIALS_MAX + repeats
    }
}

/// A search. Ask [`Search::next`], run the trial, tell [`Search::note`].
#[derive(Debug)]
pub struct Search {
    rules: Rules,
    tried: Vec<Tried>,
    trials: u32,
}

impl Search {
    /// A search that has tried nothing yet.
    #[must_use]
    pub const fn new(rules: Rules) -> Self {
        Self { rules, tried: Vec::new(), trials: 0 }
    }

    /// Takes what came of a trial.
    pub fn note(&mut self, rate: f64, outcome: Outcome) {
        self.trials += 1;
        let at = self.tried.iter().position(|tried| (tried.rate - rate).abs() < 1e-9).unwrap_or_else(|| {
            self.tried.push(Tried { rate, held: 0, failed: 0, void: 0, breaks: false });
            self.tried.len() - 1
        });
        let tried = &mut self.tried[at];
        match outcome {
            Outcome::Holds => tried.held += 1,
            Outcome::Fails => tried.failed += 1,
            Outcome::SaysNothing => (tried.failed, tried.void) = (tried.failed + 1, tried.void + 1),
            Outcome::Breaks => (tried.failed, tried.breaks) = (tried.failed + 1, true),
        }
    }

    /// The lowest rate that fails.
    fn bound(&self) -> Option<Tried> {
        let fails = self.tried.iter().filter(|tried| tried.fails_by(FAILS_BY));
        fails.copied().min_by(|a, b| a.rate.total_cmp(&b.rate))
    }

    /// The highest rate that holds below everything that fails.
    fn best(&self) -> Option<Tried> {
        let bound = self.bound().map_or(f64::INFINITY, |tried| tried.rate);
        let holds = self.tried.iter().filter(|tried| tried.holds() && tried.rate < bound);
        holds.copied().max_by(|a, b| a.rate.total_cmp(&b.rate))
    }

    /// A rate below the bound that neither holds nor fails so far.
    fn undecided(&self) -> Option<f64> {
        let bound = self.bound().map_or(f64::INFINITY, |tried| tried.rate);
        let is_open = |tried: &&Tried| tried.rate < bound && !tried.holds() && !tried.fails_by(FAILS_BY);
        let best = self.best().map_or(0.0, |tried| tried.rate);
        // What lies below a rate that holds is of no matter.
        self.tried.iter().filter(is_open).map(|tried| tried.rate).filter(|rate| *rate > best).max_by(f64::total_cmp)
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self) -> Step {
        let Rules { start, max, precision, repeats } = self.rules;
        let (bound, best) = (self.bound(), self.best());
        if self.trials >= TRIALS_MAX {
            return match best {
                Some(best) => Step::Found(self.found(best, bound, false)),
                None => Step::NothingHolds { lowest: self.lowest(), is_settled: false },
            };
        }
        if self.tried.is_empty() {
            return Step::Try(start.min(max));
        }
        if let Some(rate) = self.undecided() {
            return Step::Try(rate);
        }
        let Some(best) = best else {
            let lowest = bound.map_or(start, |tried| tried.rate);
            let is_low = lowest < start / 200.0;
            return match bound {
                // Before the search leaves it for good.
                Some(bound) if is_low && !bound.fails_by(BOUND_FAILS_BY) => Step::Try(bound.rate),
                _ if is_low => Step::NothingHolds { lowest, is_settled: true },
                _ => Step::Try(lowest / STEP / STEP),
            };
        };
        let is_at_end = bound.is_none() && best.rate >= max;
        match bound {
            Some(bound) if bound.rate > best.rate * (1.0 + precision) => {
                // The middle by factor: a rate is wrong by a share, not by a number.
                Step::Try((best.rate * bound.rate).sqrt())
            }
            None if !is_at_end => Step::Try((best.rate * STEP).min(max)),
            // The lowest rate that fails decides the answer: it is doubted once more.
            Some(bound) if !bound.fails_by(BOUND_FAILS_BY) => Step::Try(bound.rate),
            _ if !best.is_confirmed(repeats) => Step::Try(best.rate),
            _ if is_at_end => Step::HoldsToTheEnd(self.found(best, bound, true)),
            _ => Step::Found(self.found(best, bound, true)),
        }
    }

    fn lowest(&self) -> f64 {
        self.tried.iter().map(|tried| tried.rate).fold(f64::INFINITY, f64::min)
    }

    fn found(&self, best: Tried, bound: Option<Tried>, is_settled: bool) -> Found {
        Found {
            rate: best.rate,
            held: (best.held, best.trials()),
            fails_at: bound.map_or(best.rate, |tried| tried.rate),
            failed: bound.map_or((0, 0), |tried| (tried.failed, tried.trials())),
            interval: self.interval(best, bound),
            is_settled,
        }
    }

    /// The rates between which half of the trials fail, with 95 %: outside of it, what was seen from that rate up to the one
    /// that holds, or down to the one that fails, would come about once in forty times at the most. A rate that is higher never
    /// holds more often.
    fn interval(&self, best: Tried, bound: Option<Tried>) -> (f64, f64) {
        /// Chance past each end.
        const TAIL: f64 = 0.025;
        // Were half of the trials to fail below `rate` already, each trial from there on would hold with a half at the most.
        let held_by_luck = |rate: f64| {
            let (held, all) = self.count(|tried| (rate..=best.rate).contains(&tried.rate));
            at_least(held, all)
        };
        let failed_by_luck = |bound: f64, rate: f64| {
            let (held, all) = self.count(|tried| (bound..=rate).contains(&tried.rate));
            at_least(all - held, all)
        };
        let below = self.rates().filter(|rate| *rate <= best.rate && held_by_luck(*rate) <= TAIL);
        let above = bound.map(|bound| {
            let above = self.rates().filter(|rate| *rate >= bound.rate && failed_by_luck(bound.rate, *rate) <= TAIL);
            above.fold(f64::INFINITY, f64::min)
        });
        (below.fold(0.0, f64::max), above.unwrap_or(f64::INFINITY))
    }

    fn rates(&self) -> impl Iterator<Item = f64> + '_ {
        self.tried.iter().map(|tried| tried.rate)
    }

    /// Trials that held, and all that say something, of some rates.
    fn count(&self, of: impl Fn(&Tried) -> bool) -> (u32, u32) {
        let of = self.tried.iter().filter(|tried| of(tried));
        of.fold((0, 0), |(held, all), tried| (held + tried.held, all + tried.trials() - tried.void))
    }
}

/// Probability of at least `hits` of `all` tosses of a coin.
fn at_least(hits: u32, all: u32) -> f64 {
    let mut ways = 1.0;
    let mut sum = 0.0;
    for k in 0..=all {
        if k >= hits {
            sum += ways;
        }
        ways = ways * f64::from(all - k) / f64::from(k + 1);
    }
    sum * 0.5_f64.powi(all as i32)
}

#[cfg(test)]
mod tests;
