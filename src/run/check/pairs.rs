//! Runs of the baseline's build and of this one in turn, until they answer the question.

use std::path::Path;

use crate::loadgen::result::RunResult;
use crate::report::compare::{self, Comparison, Defect, Problem, Rules, Side, Sides};
use crate::run::check::CheckSettings;
use crate::run::check::runs::Runs;
use crate::run::observer::{Progress, RunLabel};
use crate::run::{Error, ErrorKind};

/// Runs of both builds in turn.
pub(super) struct Pairs<'a> {
    /// How one run is done.
    pub(super) runs: &'a Runs<'a>,
    /// Of the baseline, if it has one, and of this build.
    pub(super) programs: (Option<&'a Path>, &'a Path),
    /// Where the runs go.
    pub(super) folder: &'a Path,
    /// Results of the baseline: its own of before, where it has no program.
    pub(super) base: Vec<RunResult>,
    /// Results of this build.
    pub(super) new: Vec<RunResult>,
    /// The run that ended it.
    pub(super) problem: Option<Problem>,
}

impl Pairs<'_> {
    /// Runs pairs and compares them; twice as many where something is left open.
    pub(super) async fn compare(&mut self, settings: &CheckSettings<'_>) -> Result<Comparison, Error> {
        let are_interleaved = self.programs.0.is_some();
        let most = if are_interleaved {
            settings.runs_max.unwrap_or(settings.runs * 4).max(settings.runs)
        } else {
            settings.runs
        };
        let mut rules = settings.rules;
        let mut wanted = settings.runs;
        self.warm_up().await?;
        loop {
            self.run_up_to(wanted).await?;
            let comparison = self.compared(are_interleaved, rules);
            if !comparison.is_open || self.problem.is_some() || wanted >= most {
                return Ok(comparison);
            }
            let more = (2 * wanted).min(most);
            self.runs.observer.progress(Progress::MorePairs { pairs: wanted, more: more - wanted });
            wanted = more;
            rules = Rules { look: rules.look + 1, ..rules };
        }
    }

    /// The first run of a program reads it from the disk.
    async fn warm_up(&mut self) -> Result<(), Error> {
        let programs = [(Side::Base, self.programs.0), (Side::New, Some(self.programs.1))];
        for (side, program) in programs {
            let Some(program) = program else { continue };
            let out = self.folder.join(format!("first-{}", side.word()));
            let ran = match self.runs.one(program, &out, RunLabel::WarmUp(Some(side))).await {
                // What the warm-up before showed is not forgotten.
                Err(error) if self.problem.is_some() && error.kind == ErrorKind::Interrupted => return Ok(()),
                ran => ran?,
            };
            // A broken guarantee is one in a warm-up too.
            match ran {
                Ok(result) if Defect::of(&result) == Some(Defect::Violated) => {
                    self.problem = Some(problem(side, 0, Defect::Violated, result.reasons));
                }
                // The first run is slower than any other: a threshold that it fails counts for nothing.
                Ok(_) | Err((Defect::Failed, _)) => {}
                Err((defect, why)) => self.problem = Some(problem(side, 0, defect, vec![why])),
            }
        }
        Ok(())
    }

    /// Runs pairs until there are so many, or one run decides everything.
    async fn run_up_to(&mut self, wanted: u32) -> Result<(), Error> {
        for n in self.new.len() as u32 + 1..=wanted {
            // ABBA: what slowly changes on the machine hits both alike.
            for side in if n % 2 == 1 { [Side::Base, Side::New] } else { [Side::New, Side::Base] } {
                if self.problem.is_some() {
                    return Ok(());
                }
                let program = match (side, self.programs.0) {
                    (Side::Base, None) => continue,
                    (Side::Base, Some(program)) => program,
                    (Side::New, _) => self.programs.1,
                };
                self.run_one(side, program, n, wanted).await?;
            }
        }
        Ok(())
    }

    async fn run_one(&mut self, side: Side, program: &Path, n: u32, wanted: u32) -> Result<(), Error> {
        let label = RunLabel::Pair { number: n, pairs: wanted, side };
        let out = self.folder.join(format!("{}-{n:03}", side.word()));
        match self.runs.one(program, &out, label).await? {
            Ok(result) => {
                if Defect::of(&result) == Some(Defect::Violated) {
                    self.runs.observer.progress(Progress::GuaranteeBroken(side));
                    self.problem = Some(problem(side, n as usize, Defect::Violated, result.reasons.clone()));
                }
                if side == Side::Base { self.base.push(result) } else { self.new.push(result) }
            }
            Err((defect, why)) => self.problem = Some(problem(side, n as usize, defect, vec![why])),
        }
        Ok(())
    }

    fn compared(&self, are_interleaved: bool, rules: Rules) -> Comparison {
        // The last pair may be half a one.
        let pairs = self.base.len().min(self.new.len());
        let (base, new) = if are_interleaved {
            // But a run that broke a guarantee is not left out.
            let is_decided = self.problem.as_ref().is_some_and(|p| p.defect == Defect::Violated);
            let of = |runs: usize| if is_decided { runs } else { pairs };
            (&self.base[..of(self.base.len())], &self.new[..of(self.new.len())])
        } else {
            (self.base.as_slice(), self.new.as_slice())
        };
        let mut comparison = compare::compare(&Sides { base, new, are_interleaved }, rules);
        if comparison.scenario.is_empty() {
            comparison.scenario = self.runs.scenario.display().to_string();
        }
        if let Some(problem) = &self.problem {
            // Of a run that has a result it is known from that.
            let is_same = |other: &Problem| (other.side, other.run) == (problem.side, problem.run);
            if !comparison.problems.iter().any(is_same) {
                comparison.add_problem(problem.clone());
            }
        }
        if rules.look > 1 {
            comparison.notes.push(format!("fewer pairs left something open: {pairs} were run"));
        }
        if !are_interleaved {
            comparison.notes.push("the baseline's runs are from another time: the machine may have changed".to_owned());
        }
        comparison
    }
}

pub(super) fn problem(side: Side, run: usize, defect: Defect, reasons: Vec<String>) -> Problem {
    Problem { side, run: Some(run), defect, reasons }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::loadgen::result::Verdict;
    use crate::report::compare::Answer;
    use crate::run::observer::ProgressObserver;
    use crate::runtime::Tasks;

    struct Unseen;

    impl ProgressObserver for Unseen {
        fn progress(&self, _: Progress<'_>) {}
    }

    /// The comparison of two pairs whose second run of the new build ended so.
    fn compared(second: Option<RunResult>, defect: Defect) -> Comparison {
        let interrupt = Tasks::new();
        let program = Path::new("chatctl");
        let (load, target) = (Duration::ZERO, None);
        let runs = Runs { scenario: Path::new("t.yaml"), load, target, interrupt: &interrupt, observer: &Unseen };
        let pairs = Pairs {
            runs: &runs,
            programs: (Some(program), program),
            folder: Path::new("."),
            base: vec![RunResult::default(), RunResult::default()],
            new: [Some(RunResult::default()), second].into_iter().flatten().collect(),
            problem: Some(problem(Side::New, 2, defect, vec!["why".to_owned()])),
        };
        pairs.compared(true, Rules::default())
    }

    #[test]
    fn a_run_that_ended_the_pairs_is_a_problem_once_with_and_without_its_result() {
        let broken = RunResult { verdict: Verdict::LedgerViolated, ..RunResult::default() };
        for (second, defect, answer) in [
            (Some(broken), Defect::Violated, Answer::Violated),
            (None, Defect::Violated, Answer::Violated),
            (None, Defect::Failed, Answer::Failed),
            (None, Defect::NotRun, Answer::NotRun),
        ] {
            let compared = compared(second, defect);
            let problems: Vec<_> = compared.problems.iter().map(|p| (p.side, p.run, p.defect)).collect();
            assert_eq!((compared.answer, problems), (answer, vec![(Side::New, Some(2), defect)]));
        }
    }

    #[tokio::test]
    async fn an_interruption_does_not_hide_what_the_warm_up_before_showed() {
        let interrupt = Tasks::new();
        interrupt.stop();
        let program = Path::new("chatctl");
        let (load, target) = (Duration::ZERO, None);
        let runs = Runs { scenario: Path::new("t.yaml"), load, target, interrupt: &interrupt, observer: &Unseen };
        let pairs = |problem| Pairs {
            runs: &runs,
            programs: (None, program),
            folder: Path::new("."),
            base: Vec::new(),
            new: Vec::new(),
            problem,
        };
        let broken = problem(Side::Base, 0, Defect::Violated, vec!["why".to_owned()]);
        assert!(pairs(Some(broken)).warm_up().await.is_ok());
        let error = pairs(None).warm_up().await.expect_err("interrupted, and nothing is known");
        assert_eq!(error.kind, ErrorKind::Interrupted);
    }
}
