//! The highest load at which a scenario holds: the trials of a search, and the answer that they give.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::loadgen::Scenario;
use crate::loadgen::capacity::{self, Cause, Found, Outcome, Rules, Search, Steady, Step};
use crate::loadgen::result::{RunResult, Verdict};
use crate::run::observer::{Progress, ProgressObserver};
use crate::run::{Error, ErrorKind, Layout, RunSettings, Silent, runner};
use crate::runtime::{Tasks, machine};

/// How a search is done.
pub struct CapacitySettings<'a> {
    /// The scenario, at whatever rates.
    pub scenario: &'a Scenario,
    /// Thresholds of every trial that the scenario did not have itself.
    pub added_thresholds: Vec<String>,
    /// Where target and generators are.
    pub layout: &'a Layout,
    /// Which rates are tried, and when the search ends.
    pub rules: Rules,
    /// Length of each trial's steady part.
    pub trial: Duration,
    /// Ends the search without an answer.
    pub interrupt: &'a Tasks,
    /// Who is told what happens.
    pub observer: &'a dyn ProgressObserver,
}

/// The answer, for programs. Rates are in messages per second.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// Name of the scenario.
    pub scenario: String,
    /// Thresholds of every trial that the scenario does not have itself.
    pub added_thresholds: Vec<String>,
    /// Highest rate that held; `None` where none did. No answer where `is_local` or `is_cut_short` is true.
    pub messages_per_s: Option<f64>,
    /// Deliveries per second at that rate.
    pub deliveries_per_s: Option<f64>,
    /// Trials at that rate that held.
    pub held: u32,
    /// All trials at that rate.
    pub trials: u32,
    /// Lowest rate that failed.
    pub fails_at: Option<f64>,
    /// Trials at that rate that failed.
    pub failed: u32,
    /// All trials at that rate.
    pub trials_at_fails_at: u32,
    /// The rate at which half of the trials fail is above this with 97.5 %; `None` where the trials do not say.
    pub interval_low: Option<f64>,
    /// It is below this with 97.5 %.
    pub interval_high: Option<f64>,
    /// Whether the search ended by its own rules, and not because it had no more trials.
    pub is_settled: bool,
    /// Deliveries per second and chat server.
    pub deliveries_per_s_and_server: Option<f64>,
    /// Deliveries per second of the stack's processor time.
    pub deliveries_per_cpu_s: Option<f64>,
    /// Whether the search could not go on: then it has no answer.
    pub is_cut_short: bool,
    /// Why it does not go further.
    pub stopped_by: String,
    /// Guarantees that were broken on the way, with their rates.
    pub broken: Vec<String>,
    /// The machine, in words.
    pub machine: String,
    /// Whether the generator or its machine was the limit: then nothing is known of the stack beyond the rate.
    pub is_local: bool,
}

/// One trial.
#[derive(Debug)]
pub struct Trial {
    /// In messages per second.
    pub rate: f64,
    /// Its result.
    pub result: RunResult,
    /// What its steady part shows.
    pub steady: Steady,
}

/// The trials of a search.
#[derive(Default)]
struct Trials {
    /// Those that held.
    held: Vec<Trial>,
    /// Why the others failed, with their rates.
    failed: Vec<(f64, Cause)>,
}

impl Trials {
    /// Why a rate failed: what most of its trials say. Without any, why the lowest that failed did.
    fn cause(&self, rate: Option<f64>) -> Option<&Cause> {
        let lowest = || self.failed.iter().map(|(rate, _)| *rate).min_by(f64::total_cmp);
        let rate = rate.or_else(lowest)?;
        let causes: Vec<&Cause> = self.failed.iter().filter(|(r, _)| (r - rate).abs() < 1e-9).map(|(_, c)| c).collect();
        let local = causes.iter().filter(|cause| cause.is_local()).count();
        let is_local = 2 * local > causes.len();
        causes.into_iter().rev().find(|cause| cause.is_local() == is_local)
    }

    /// Takes the guarantees that a run broke which came to no verdict on its rate.
    fn note_violations(&mut self, rate: f64, result: &RunResult) {
        let violations = result.counts.violations().into_iter().map(|(kind, n)| format!("{kind}: {n}"));
        let violations: Vec<String> = violations.collect();
        if !violations.is_empty() {
            self.failed.push((rate, Cause::Ledger(violations.join(", "))));
        }
    }

    /// Broken guarantees, in words.
    fn broken(&self) -> Vec<String> {
        let broken = self.failed.iter().filter(|(_, cause)| matches!(cause, Cause::Ledger(_)));
        broken.map(|(rate, cause)| format!("at {rate:.1} messages/s: {}", cause.text())).collect()
    }
}

/// Searches for the highest rate that holds.
///
/// # Errors
/// When a trial could not be done or has too few samples for a threshold, or the search was interrupted: unless a guarantee was
/// broken before, which the answer says then.
pub async fn search(settings: &CapacitySettings<'_>) -> Result<Answer, Error> {
    search_by(settings, |rate| run_trial(settings, rate)).await
}

/// The same with trials that are run so.
async fn search_by<F>(settings: &CapacitySettings<'_>, run: impl Fn(f64) -> F) -> Result<Answer, Error>
where
    F: Future<Output = Result<Trial, Error>>,
{
    let mut search = Search::new(settings.rules);
    let mut trials = Trials::default();
    // Whether the trial before could not be done.
    let mut has_failed = false;
    for number in 1.. {
        let rate = match search.next() {
            Step::Try(rate) => rate,
            Step::Found(found) => return Ok(answer(settings, &trials, Some(found), None)),
            Step::HoldsToTheEnd(found) => {
                let why = format!("nothing failed up to --max {}", settings.rules.max);
                return Ok(answer(settings, &trials, Some(found), Some(why)));
            }
            Step::NothingHolds { lowest, is_settled } => {
                let answer = answer(settings, &trials, None, Some(format!("even {lowest:.1} messages/s fail")));
                return Ok(Answer { is_settled, ..answer });
            }
        };
        settings.observer.progress(Progress::TrialBegins { number, rate });
        let judged = match run(rate).await {
            Ok(trial) => judge(settings, rate, trial, &mut trials),
            // An hour of trials is not lost for one that could not be done: what is broken stays so. The first says what is.
            Err(error) if number > 1 && !has_failed && error.kind == ErrorKind::Environment => {
                settings.observer.progress(Progress::RunFailed(&error));
                has_failed = true;
                continue;
            }
            Err(error) => {
                settings.observer.progress(Progress::TrialFailed);
                Err(error)
            }
        };
        match judged {
            Ok(outcome) => search.note(rate, outcome),
            Err(error) => return cut_short(settings, &trials, error),
        }
        has_failed = false;
    }
    unreachable!("the search ends")
}

/// Says what came of a trial.
fn judge(settings: &CapacitySettings<'_>, rate: f64, trial: Trial, trials: &mut Trials) -> Result<Outcome, Error> {
    let observer = settings.observer;
    if trial.result.verdict == Verdict::Interrupted {
        observer.progress(Progress::TrialEnds(&trial, None));
        trials.note_violations(rate, &trial.result);
        return Err(Error::interrupted("interrupted: no answer"));
    }
    if let Some(few) = capacity::lacks_samples(&trial.result, rate, &trial.steady) {
        observer.progress(Progress::TrialEnds(&trial, None));
        let problem = format!("at {rate:.1} messages/s too few samples for a verdict: {few}");
        let lasts = humantime::format_duration(settings.trial);
        return Err(Error::not_enough_data(problem).at(format!("--trial {lasts}")).fix("raise --trial"));
    }
    let cores = capacity::Cores(machine::cores());
    let cause = capacity::cause(&trial.result, rate, cores, &trial.steady);
    observer.progress(Progress::TrialEnds(&trial, cause.as_ref()));
    let outcome = cause.as_ref().map_or(Outcome::Holds, Cause::outcome);
    match cause {
        None => trials.held.push(trial),
        Some(cause) => trials.failed.push((rate, cause)),
    }
    Ok(outcome)
}

/// The end of a search that can't go on: an answer only where a guarantee was broken before.
fn cut_short(settings: &CapacitySettings<'_>, trials: &Trials, error: Error) -> Result<Answer, Error> {
    if trials.broken().is_empty() {
        return Err(error);
    }
    let why = format!("the search was cut short: {error}");
    Ok(Answer { is_cut_short: true, ..answer(settings, trials, None, Some(why)) })
}

async fn run_trial(settings: &CapacitySettings<'_>, rate: f64) -> Result<Trial, Error> {
    let scenario = capacity::trial(settings.scenario, rate, settings.trial);
    let run = RunSettings {
        layout: settings.layout,
        observer: Arc::new(Silent),
        history: None,
        out: None,
        metrics: None,
        interrupt: settings.interrupt,
    };
    // The future of a whole run is large: boxed, it is laid out once.
    let finished = Box::pin(runner::run(&scenario, &run)).await?;
    Ok(Trial { rate, steady: Steady::of(&finished.series), result: finished.result })
}

/// What the trials say together.
fn answer(settings: &CapacitySettings<'_>, trials: &Trials, found: Option<Found>, why: Option<String>) -> Answer {
    let fails_at = found.and_then(|found| (found.fails_at > found.rate).then_some(found.fails_at));
    let cause = if found.is_some() && fails_at.is_none() { None } else { trials.cause(fails_at) };
    let is_local = cause.is_some_and(Cause::is_local);
    let stopped_by = match (&why, cause) {
        (Some(why), Some(cause)) => format!("{why}; {}", cause.text()),
        (Some(why), None) => why.clone(),
        (None, Some(cause)) => cause.text().to_owned(),
        (None, None) => "the number of trials".to_owned(),
    };
    let mut out = Answer {
        scenario: settings.scenario.name.clone(),
        added_thresholds: settings.added_thresholds.clone(),
        messages_per_s: None,
        deliveries_per_s: None,
        held: 0,
        trials: 0,
        fails_at,
        failed: 0,
        trials_at_fails_at: 0,
        interval_low: None,
        interval_high: None,
        is_settled: found.is_none_or(|found| found.is_settled),
        deliveries_per_s_and_server: None,
        deliveries_per_cpu_s: None,
        is_cut_short: false,
        stopped_by,
        broken: trials.broken(),
        machine: machine::describe(),
        is_local,
    };
    if let Some(found) = found {
        fill(&mut out, settings, trials, found);
    }
    out
}

/// Fills in what was found.
fn fill(out: &mut Answer, settings: &CapacitySettings<'_>, trials: &Trials, found: Found) {
    let best: Vec<&Trial> = trials.held.iter().filter(|t| (t.rate - found.rate).abs() < 1e-9).collect();
    let sum = |figure: fn(&Trial) -> f64| best.iter().map(|trial| figure(trial)).sum::<f64>();
    let deliveries = sum(|t| t.steady.deliveries_per_s) / best.len().max(1) as f64;
    let stack_s = sum(|t| t.result.stack_cpu_s());
    let delivered = sum(|t| t.result.counts.delivered as f64);
    let servers = settings.scenario.stack.chat_servers.max(1) as f64;
    let own_stack = settings.layout.has_own_stack();
    (out.held, out.trials) = found.held;
    (out.failed, out.trials_at_fails_at) = found.failed;
    out.interval_low = (found.interval.0 > 0.0).then_some(found.interval.0);
    out.interval_high = found.interval.1.is_finite().then_some(found.interval.1);
    (out.messages_per_s, out.deliveries_per_s) = (Some(found.rate), Some(deliveries));
    out.deliveries_per_s_and_server = own_stack.then_some(deliveries / servers);
    out.deliveries_per_cpu_s = (stack_s > 0.0).then_some(delivered / stack_s);
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const TINY: &str = "\
name: tiny
population: {users: 6, direct_per_user: 2}
behaviors: {one-to-one: 1}
phases: [{phase: steady, duration: 1s, rate: 20}]
";

    /// The answer of trials at these rates that failed for a cause, none of which held.
    fn answer_of(failed: Vec<(f64, Cause)>, found: Option<Found>) -> Answer {
        with_settings(|settings| answer(settings, &Trials { held: Vec::new(), failed }, found, None))
    }

    fn with_settings<T>(of: impl FnOnce(&CapacitySettings<'_>) -> T) -> T {
        struct Unseen;
        impl ProgressObserver for Unseen {
            fn progress(&self, _: Progress<'_>) {}
        }
        let interrupt = Tasks::new();
        let scenario = Scenario::parse(TINY, "tiny").expect("valid");
        let settings = CapacitySettings {
            scenario: &scenario,
            added_thresholds: Vec::new(),
            layout: &Layout::default(),
            rules: Rules { start: 1.0, max: 100.0, precision: 0.05, repeats: 1 },
            trial: Duration::from_secs(2),
            interrupt: &interrupt,
            observer: &Unseen,
        };
        of(&settings)
    }

    #[test]
    fn a_search_that_is_cut_short_does_not_forget_a_broken_guarantee() {
        let ended = |trials: &Trials| with_settings(|s| cut_short(s, trials, Error::interrupted("interrupted")));
        assert!(ended(&Trials::default()).is_err());
        let mut trials = Trials::default();
        trials.note_violations(10.0, &RunResult::default());
        assert!(ended(&trials).is_err(), "nothing was broken");
        let mut interrupted = RunResult { verdict: Verdict::Interrupted, ..RunResult::default() };
        interrupted.counts.lost = 3;
        trials.note_violations(10.0, &interrupted);
        let answer = ended(&trials).expect("an answer");
        assert_eq!(answer.broken, ["at 10.0 messages/s: lost: 3"]);
        assert!(answer.is_cut_short && answer.stopped_by.contains("cut short: interrupted"), "{}", answer.stopped_by);
    }

    /// A search whose trials come out so, by rate and number.
    fn search_of(of: impl Fn(f64, u32) -> Result<Verdict, Error>) -> Result<Answer, Error> {
        let number = std::cell::Cell::new(0);
        let trial = |rate| {
            number.set(number.get() + 1);
            let whole = Some(1.0);
            let steady =
                Steady { due_per_s: Some(rate), acked_share: whole, delivered_share: whole, ..Steady::default() };
            let result = |verdict| RunResult { verdict, ..RunResult::default() };
            std::future::ready(of(rate, number.get()).map(|verdict| Trial { rate, steady, result: result(verdict) }))
        };
        with_settings(|settings| search_by(settings, trial).now_or_never().expect("no trial takes its time"))
    }

    fn verdict_at(rate: f64, failed: Verdict) -> Verdict {
        if rate <= 30.0 { Verdict::Pass } else { failed }
    }

    #[test]
    fn a_trial_that_could_not_be_done_is_done_once_more() {
        let down = || Error::environment("the port is taken");
        let without = search_of(|rate, _| Ok(verdict_at(rate, Verdict::ThresholdFailed))).expect("an answer");
        let is_flaky = |number: u32| number.is_multiple_of(3);
        let of_flaky = |rate, n| if is_flaky(n) { Err(down()) } else { Ok(verdict_at(rate, Verdict::ThresholdFailed)) };
        let answer = search_of(of_flaky).expect("an answer");
        assert_eq!((answer.messages_per_s, answer.trials), (without.messages_per_s, without.trials));
        assert!(without.messages_per_s.is_some_and(|rate| rate > 28.0) && without.is_settled, "{without:?}");
        // What is broken from the beginning is told at once, and what stays broken then.
        let tried = std::cell::Cell::new(0);
        for broken_from in [1, 5] {
            let ended = search_of(|_, n| {
                tried.set(n);
                if n < broken_from { Ok(Verdict::Pass) } else { Err(down()) }
            });
            assert_eq!(ended.expect_err("no answer").kind, ErrorKind::Environment);
            assert_eq!(tried.get(), if broken_from == 1 { 1 } else { broken_from + 1 });
        }
        let interrupted = |_, n| if n < 5 { Ok(Verdict::Pass) } else { Err(Error::interrupted("interrupted")) };
        assert_eq!(search_of(interrupted).expect_err("no answer").kind, ErrorKind::Interrupted);
    }

    #[test]
    fn rates_that_the_generator_can_not_make_are_no_limit_of_the_stack() {
        let answer = search_of(|rate, _| Ok(verdict_at(rate, Verdict::Invalid))).expect("an answer");
        assert!(answer.is_local && answer.messages_per_s.is_some() && answer.interval_high.is_none(), "{answer:?}");
        // One of them among those of the stack.
        let one = |rate, n| Ok(verdict_at(rate, if n == 9 { Verdict::Invalid } else { Verdict::ThresholdFailed }));
        let answer = search_of(one).expect("an answer");
        assert!(!answer.is_local && answer.interval_high.is_some(), "{answer:?}");
    }

    #[test]
    fn the_cause_of_most_failed_trials_stops_the_search() {
        let of_stack = || Cause::Behind("behind".to_owned());
        let of_generator = || Cause::Generator("late".to_owned());
        let answer = answer_of(vec![(10.0, of_generator()), (10.0, of_stack()), (10.0, of_stack())], None);
        assert_eq!((answer.is_local, answer.stopped_by.as_str()), (false, "behind"));
        let answer = answer_of(vec![(10.0, of_generator()), (10.0, of_generator()), (20.0, of_stack())], None);
        assert_eq!((answer.is_local, answer.stopped_by.as_str()), (true, "late"));
        assert_eq!(answer.messages_per_s, None);
        let json = serde_json::to_value(&answer).expect("writes");
        assert_eq!(json["is_local"], true, "programs are told, too, that it is no answer");
    }

    #[test]
    fn broken_guarantees_are_named_with_their_rates() {
        let answer = answer_of(vec![(10.0, Cause::Ledger("lost 1".to_owned()))], None);
        assert_eq!(answer.broken, ["at 10.0 messages/s: lost 1"]);
    }

    #[test]
    fn bounds_that_the_trials_do_not_give_are_absent() {
        let found = Found {
            rate: 10.0,
            held: (3, 4),
            fails_at: 10.0,
            failed: (0, 0),
            interval: (0.0, f64::INFINITY),
            is_settled: false,
        };
        let answer = answer_of(Vec::new(), Some(found));
        assert_eq!((answer.messages_per_s, answer.held, answer.trials), (Some(10.0), 3, 4));
        assert_eq!((answer.interval_low, answer.interval_high, answer.fails_at), (None, None, None));
        assert_eq!(answer.stopped_by, "the number of trials");
    }
}
