//! What is to be known of a comparison beside its figures, in sentences.

use crate::loadgen::RunResult;

use super::soundness::Defect;
use super::{Answer, Finding, Rules, Sides, Usable, Weight, judge, stats};
use crate::report::{counted, human_count};

/// Of the runs: what makes the two sides hard to compare.
pub(super) fn of_runs(sides: &Sides<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(other) = sides.new.iter().zip(sides.base).find(|(a, b)| a.machine != b.machine) {
        notes.push(format!("the machines differ: {} and {}", other.1.machine, other.0.machine));
    }
    notes.extend(stacks(sides));
    if sides.base.len().min(sides.new.len()) == 1 {
        let fewest = stats::fewest_runs(sides.are_interleaved, Rules::default().alarm(Weight::Gate));
        notes.push(format!(
            "one run of a side says nothing of the noise between runs: compare {fewest} of each side, or more"
        ));
    }
    let hashes = sides.base.iter().chain(sides.new).filter(|r| r.scenario_hash.is_empty()).count();
    if hashes > 0 && hashes < sides.base.len() + sides.new.len() {
        notes.push(format!(
            "{hashes} of the results do not say what their scenario was: only its name and seed are known"
        ));
    }
    let failed = sides.base.iter().filter(|r| Defect::of(r) == Some(Defect::Failed)).count();
    if failed > 0 {
        notes.push(format!("{failed} of {} of base failed a threshold too", counted(sides.base.len() as u64, "run")));
    }
    notes
}

/// That some runs started a stack of their own and others were aimed at a running one. Results of older versions do not say.
fn stacks(sides: &Sides<'_>) -> Option<String> {
    let kinds = |runs: &[RunResult], own: bool| runs.iter().any(|run| run.has_own_stack == Some(own));
    let words = |runs: &[RunResult]| match (kinds(runs, true), kinds(runs, false)) {
        (true, false) => Some("on a stack of its own"),
        (false, true) => Some("against a running stack (--target)"),
        (true, true) => Some("partly on a stack of its own and partly against a running one (--target)"),
        (false, false) => None,
    };
    let (base, new) = (words(sides.base)?, words(sides.new)?);
    let are_mixed = kinds(sides.base, true) && kinds(sides.base, false);
    (base != new || are_mixed).then(|| {
        format!(
            "the stacks differ: base ran {base}, new {new}; a stack of the run's own has cheap password hashes and the scenario's \
             settings, and its processor time is known"
        )
    })
}

/// Of what is left open: how many runs would settle it, or that no number of them would.
pub(super) fn of_open(findings: &[Finding], usable: &Usable<'_>) -> Option<String> {
    let runs = usable.base.len().min(usable.new.len());
    let is_open = |f: &&Finding| f.counts_as() == Answer::NotEnoughData && f.change.is_some();
    let open: Vec<&Finding> = findings.iter().filter(is_open).collect();
    if open.is_empty() || runs < 2 {
        return None;
    }
    // Of what only one run of a side has nothing is known of the noise: another note says so.
    let is_noise_known = |f: &&&Finding| f.interval.is_some() || f.noise.is_some();
    let is_beyond = |f: &&&Finding| f.runs_needed.is_none() && is_noise_known(f);
    let beyond: Vec<&str> = open.iter().filter(is_beyond).map(|f| f.name.as_str()).collect();
    if !beyond.is_empty() {
        return Some(format!(
            "at this noise not even {} runs of each side settle {}: use a quieter machine, a longer scenario or a wider limit",
            human_count(judge::RUNS_NEEDED_MAX),
            beyond.join(", ")
        ));
    }
    let needed = open.iter().filter_map(|f| f.runs_needed).max()?;
    Some(format!("about {needed} runs of each side would settle what is open, at the noise of these {runs}"))
}
