//! How `compare` and `check` report a comparison: text, files, exit code.

use std::path::PathBuf;

use chatctl::report;
use chatctl::report::compare::{self, Answer, Comparison, Limits, Rules};
use chatctl::run::writable;

use crate::exit::{self, Failure};
use crate::output::{errln, outln};

/// How the outcome is reported.
#[derive(clap::Args)]
pub(crate) struct Reporting {
    /// Largest rise of a figure that is allowed, such as p50=5: p50, p95 and p99 of latencies, cpu; repeatable
    /// [default: p50=5 p95=10 p99=20 cpu=5]
    #[arg(long, value_name = "FIGURE=PERCENT", value_parser = limit)]
    limit: Vec<(String, f64)>,
    /// File for `JUnit` XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// File for Markdown, such as for a pull request
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// File for JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn limit(text: &str) -> Result<(String, f64), String> {
    let valid =
        || format!("{text:?}: write it as p50=5; valid are {} with 0.1 to 1000 percent", Limits::NAMES.join(", "));
    let (name, percent) = text.split_once('=').ok_or_else(valid)?;
    let percent: f64 = percent.trim_end_matches('%').trim().parse().map_err(|_| valid())?;
    let is_valid = Limits::NAMES.contains(&name) && (0.1..=1_000.0).contains(&percent);
    is_valid.then(|| (name.to_owned(), percent)).ok_or_else(valid)
}

impl Reporting {
    pub(crate) fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        for (name, percent) in &self.limit {
            if let Some(limit) = rules.limits.get_mut(name) {
                *limit = percent / 100.0;
            }
        }
        rules
    }

    /// Finds out before the runs whether the files can be written.
    pub(crate) fn probe(&self) -> Result<(), Failure> {
        let files = [("--junit", &self.junit), ("--markdown", &self.markdown), ("--json", &self.json)];
        let mut probed = files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)));
        let Err(error) = probed.try_for_each(|(flag, path)| writable::probe_file(flag, path)) else { return Ok(()) };
        let failure = Failure::from(error);
        // The others must not keep what an earlier command wrote into them. The one that can't be written is named already.
        let _ = self.write(&Comparison::not_run("", failure.message.clone(), self.rules()));
        Err(failure)
    }

    /// Writes the files.
    pub(crate) fn write(&self, comparison: &Comparison) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(comparison).map_err(Failure::environment)? + "\n";
        let forms = [
            (&self.junit, compare::junit(comparison)),
            (&self.markdown, compare::markdown(comparison)),
            (&self.json, json),
        ];
        // One that can't be written does not keep the others from it.
        let write = |(path, text): (&Option<PathBuf>, String)| {
            let path = path.as_deref()?;
            report::write_whole(path, text.as_bytes()).err().map(|e| format!("{}: {e}", path.display()))
        };
        let problems: Vec<String> = forms.into_iter().filter_map(write).collect();
        if problems.is_empty() { Ok(()) } else { Err(Failure::environment(problems.join("\n"))) }
    }

    /// Writes the files for a command that ends before it has anything to compare.
    pub(crate) fn refuse(&self, scenario: &str, failure: Failure) -> Failure {
        match self.write(&Comparison::not_run(scenario, failure.message.clone(), self.rules())) {
            Ok(()) => failure,
            Err(unwritten) => {
                Failure { message: format!("{}\n{}", failure.message, unwritten.message), code: failure.code }
            }
        }
    }

    /// Prints the comparison and writes its files. Returns the exit code.
    pub(crate) fn report(&self, comparison: &Comparison) -> Result<u8, Failure> {
        outln!("\n{}", compare::text(comparison).trim_end());
        let code = code(comparison.answer);
        // A file that can't be written does not hide what was found.
        match self.write(comparison) {
            Err(failure) if code != exit::PASS => {
                errln!("chatctl: {}", failure.message);
                Ok(code)
            }
            written => written.map(|()| code),
        }
    }
}

/// The exit code of an answer.
const fn code(answer: Answer) -> u8 {
    match answer {
        Answer::Same | Answer::NotWorse | Answer::Better | Answer::SlightlyWorse | Answer::BaselineMade => exit::PASS,
        Answer::NotEnoughData => exit::NOT_ENOUGH_DATA,
        Answer::Worse => exit::WORSE,
        Answer::UnsoundBaseline | Answer::Invalid => exit::INVALID,
        Answer::NotRun => exit::ENVIRONMENT,
        Answer::Failed => exit::THRESHOLD,
        Answer::Violated => exit::LEDGER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_and_without_a_percent_sign() {
        assert_eq!((limit("p50=5"), limit("cpu=7.5 %")), (Ok(("p50".to_owned(), 5.0)), Ok(("cpu".to_owned(), 7.5))));
        for wrong in ["p50", "p98=5", "p50=-1", "p50=much", "p50=nan", "=5"] {
            assert!(limit(wrong).is_err_and(|why| why.contains("p50, p95, p99, cpu")), "{wrong}");
        }
    }

    #[test]
    fn no_answer_but_a_good_one_is_a_pass() {
        assert_eq!(code(Answer::SlightlyWorse), exit::PASS);
        let reds = [Answer::NotEnoughData, Answer::Worse, Answer::UnsoundBaseline, Answer::Invalid, Answer::NotRun];
        assert!(reds.into_iter().chain([Answer::Failed, Answer::Violated]).all(|answer| code(answer) != exit::PASS));
    }
}
