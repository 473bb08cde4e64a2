//! `chatctl compare` and `chatctl check`: two builds held against each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatctl::loadgen::Scenario;
use chatctl::loadgen::result::{RunResult, Verdict};
use chatctl::report;
use chatctl::report::compare::{self, Answer, Comparison, Figure, Rules, Sides};
use chatctl::runtime::Tasks;
use serde::{Deserialize, Serialize};

use crate::child_run::{ChildRun, interrupted};
use crate::exit::{self, Failure};
use crate::output::{self, out, outln};
use crate::runner;

/// How the outcome is told.
#[derive(clap::Args)]
pub(crate) struct Telling {
    /// Smallest change that matters, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    min_effect: f64,
    /// Largest change that may go unseen before the answer is "not enough data", in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 25.0, value_parser = percent)]
    max_unseen: f64,
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

fn percent(text: &str) -> Result<f64, String> {
    let value: f64 =
        text.trim_end_matches('%').trim().parse().map_err(|_| format!("{text:?} is no number of percent"))?;
    (0.1..=1_000.0).contains(&value).then_some(value).ok_or_else(|| "valid are 0.1 to 1000".to_owned())
}

#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// The known build: a result.json, the folder of a run, or a folder of such folders
    base: PathBuf,
    /// The new build: the same
    new: PathBuf,
    #[command(flatten)]
    telling: Telling,
}

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// Scenario file; short ones, such as scenarios/gate.yaml, are best
    scenario: PathBuf,
    /// Folder of the baseline; made from this build where there is none
    #[arg(long, value_name = "DIR")]
    baseline: PathBuf,
    /// Pairs of runs, of the baseline's build and of this one in turn; twice as many where these leave it open
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=200))]
    runs: u32,
    /// API address of a running stack: its runs are held against those of the baseline, not in turn
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    target: Option<String>,
    /// Makes the baseline anew from this build
    #[arg(long)]
    update_baseline: bool,
    #[command(flatten)]
    telling: Telling,
}

impl Telling {
    fn rules(&self) -> Rules {
        Rules { min_effect: self.min_effect / 100.0, max_unseen: self.max_unseen / 100.0, looks: 1 }
    }

    /// Finds out before the runs whether the files can be written.
    fn probe(&self) -> Result<(), Failure> {
        for path in [&self.junit, &self.markdown, &self.json].into_iter().flatten() {
            let is_new = !path.exists();
            let open = std::fs::OpenOptions::new().append(true).create(true).open(path);
            open.map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
            if is_new {
                // An empty file would be read as an answer where there is none in the end.
                std::fs::remove_file(path).map_err(|e| Failure::environment(format!("{}: {e}", path.display())))?;
            }
        }
        Ok(())
    }

    fn tell(&self, comparison: &Comparison) -> Result<u8, Failure> {
        let json = serde_json::to_string_pretty(comparison).map_err(Failure::environment)? + "\n";
        let forms = [
            (&self.junit, compare::junit(comparison)),
            (&self.markdown, compare::markdown(comparison)),
            (&self.json, json),
        ];
        for (path, text) in forms {
            let Some(path) = path else { continue };
            std::fs::write(path, text).map_err(|e| Failure::environment(format!("{}: {e}", path.display())))?;
        }
        outln!("\n{}", compare::text(comparison).trim_end());
        Ok(match comparison.answer {
            Answer::Same | Answer::Better => exit::PASS,
            Answer::Worse => exit::WORSE,
            Answer::NotEnoughData => exit::NOT_ENOUGH_DATA,
        })
    }
}

pub(crate) fn run_compare(args: CompareArgs) -> Result<u8, Failure> {
    args.telling.probe()?;
    let (base, new) = (read_all(&args.base)?, read_all(&args.new)?);
    let sides = Sides { base: &base, new: &new, are_interleaved: false, noise: &[] };
    args.telling.tell(&compare::compare(&sides, args.telling.rules()))
}

/// The results of a file, of a run's folder, or of all runs in a folder.
fn read_all(path: &Path) -> Result<Vec<RunResult>, Failure> {
    if path.is_dir() && !path.join("result.json").exists() {
        let entries = std::fs::read_dir(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
        let mut paths: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|p| p.join("result.json").exists() || p.extension().is_some_and(|e| e == "json"))
            .collect();
        paths.sort();
        if paths.is_empty() {
            return Err(Failure::usage(format!("{}: there is no result of chatctl load in it", path.display())));
        }
        return paths.iter().map(|p| read_one(p)).collect();
    }
    Ok(vec![read_one(path)?])
}

fn read_one(path: &Path) -> Result<RunResult, Failure> {
    let result = report::read(path).map_err(Failure::usage)?;
    if matches!(result.verdict, Verdict::Invalid | Verdict::Interrupted) {
        let word = result.verdict.word();
        return Err(Failure::usage(format!("{}: the run is {word} and says nothing", path.display())));
    }
    Ok(result)
}

/// What a baseline is, beside the runs in its folder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    /// The scenario's name.
    scenario: String,
    /// Hash of its content: another one is not comparable.
    scenario_hash: String,
    /// Version of the build that made it.
    version: String,
    /// Runs.
    runs: u32,
}

/// File names in a baseline's folder.
const BASELINE_FILE: &str = "baseline.json";
const BASELINE_PROGRAM: &str = "chatctl";
const BASELINE_RUNS: &str = "runs";

/// A run that says nothing is repeated this often.
const REPEATS_MAX: u32 = 2;

pub(crate) fn run_check(args: CheckArgs) -> Result<u8, Failure> {
    let scenario = Scenario::read(&args.scenario).map_err(Failure::usage)?;
    args.telling.probe()?;
    let interrupt = Tasks::new();
    let runtime = runner::runtime()?;
    runtime.block_on(async {
        runner::watch_signals(&interrupt)?;
        check(&args, &scenario, &interrupt).await
    })
}

async fn check(args: &CheckArgs, scenario: &Scenario, interrupt: &Tasks) -> Result<u8, Failure> {
    let failed = |path: &Path, e: &dyn std::fmt::Display| Failure::environment(format!("{}: {e}", path.display()));
    let folder = &args.baseline;
    let hash = hash_of(scenario);
    let own = std::env::current_exe().map_err(Failure::environment)?;
    let runs = Runs { scenario: &args.scenario, load: scenario.duration(), target: args.target.as_deref(), interrupt };
    let file = folder.join(BASELINE_FILE);
    let base_program = folder.join(BASELINE_PROGRAM);
    let base_runs = folder.join(BASELINE_RUNS);
    let is_made = if file.exists() && !args.update_baseline {
        let text = std::fs::read_to_string(&file).map_err(|e| failed(&file, &e))?;
        let baseline: Baseline = serde_json::from_str(&text)
            .map_err(|e| Failure::usage(format!("{}: not a baseline: {e}", file.display())))?;
        if baseline.scenario_hash != hash {
            return Err(Failure::usage(format!(
                "{}: it was made with another content of scenario {:?}: make it anew with --update-baseline",
                folder.display(),
                baseline.scenario
            )));
        }
        outln!("baseline   {} runs of version {} in {}", baseline.runs, baseline.version, folder.display());
        false
    } else {
        make_baseline(args, scenario, &hash, &own, &runs).await?;
        true
    };
    let noise = read_all(&base_runs)?;
    let pairs = folder.join("last");
    let _ = std::fs::remove_dir_all(&pairs);
    // The build in the folder, unless it can't run here (another processor, a lost file).
    let has_program = args.target.is_none() && base_program.exists() && !is_made;
    let mut new = Vec::new();
    let comparison = if is_made {
        // The first half of the runs against the second: the same build, so what is seen is noise.
        let half = noise.len() / 2;
        let sides = Sides { base: &noise[..half], new: &noise[half..], are_interleaved: false, noise: &noise };
        let mut comparison = compare::compare(&sides, args.telling.rules());
        comparison.notes.push("the baseline was made: its own runs are compared with each other".to_owned());
        // It is one build: what differs is the noise that was learned.
        comparison.answer = Answer::Same;
        comparison.findings.iter_mut().for_each(|finding| finding.answer = Answer::Same);
        comparison
    } else {
        // Both from fresh copies: a program whose file has lain there for a while is mapped otherwise, and is a few percent
        // faster or slower for it.
        let copies = (pairs.join("chatctl-base"), pairs.join("chatctl-new"));
        std::fs::create_dir_all(&pairs).map_err(|e| failed(&pairs, &e))?;
        if has_program {
            std::fs::copy(&base_program, &copies.0).map_err(|e| failed(&copies.0, &e))?;
        }
        std::fs::copy(&own, &copies.1).map_err(|e| failed(&copies.1, &e))?;
        let programs = (has_program.then_some(copies.0.as_path()), copies.1.as_path());
        let comparison = compare_in_pairs(args, &runs, programs, &pairs, &noise, &mut new).await;
        for copy in [&copies.0, &copies.1] {
            // The first is not there when the baseline has no program.
            let _ = std::fs::remove_file(copy);
        }
        comparison?
    };
    let violated = new.iter().find(|r| r.verdict == Verdict::LedgerViolated);
    let code = args.telling.tell(&comparison)?;
    if let Some(result) = violated {
        outln!("           a run broke a guarantee: {}", result.reasons.join("; "));
        return Ok(exit::LEDGER);
    }
    Ok(code)
}

/// Runs both builds in turn, in pairs, and compares them; twice as many pairs where the first leave it open. Without a program
/// of the baseline the new runs are held against `noise`, the baseline's own. Leaves the new build's runs in `new`.
async fn compare_in_pairs(
    args: &CheckArgs,
    runs: &Runs<'_>,
    (base_program, new_program): (Option<&Path>, &Path),
    folder: &Path,
    noise: &[RunResult],
    new: &mut Vec<RunResult>,
) -> Result<Comparison, Failure> {
    // The first run of a program reads it from the disk.
    if let Some(program) = base_program {
        runs.one(program, &folder.join("first-base"), "warm-up, base").await?;
    }
    runs.one(new_program, &folder.join("first-new"), "warm-up, new").await?;
    let rules = Rules { looks: if base_program.is_some() { 2 } else { 1 }, ..args.telling.rules() };
    let mut base = Vec::new();
    let mut wanted = args.runs;
    loop {
        for n in new.len() as u32 + 1..=wanted {
            // ABBA: what slowly changes on the machine hits both alike.
            for is_base in if n % 2 == 1 { [true, false] } else { [false, true] } {
                let (program, side, name) = match (is_base, base_program) {
                    (true, None) => continue,
                    (true, Some(program)) => (program, &mut base, "base"),
                    (false, _) => (new_program, &mut *new, "new"),
                };
                let label = format!("pair {n}/{wanted}, {name}");
                side.push(runs.one(program, &folder.join(format!("{name}-{n:03}")), &label).await?);
            }
        }
        let are_interleaved = base_program.is_some();
        let known = if are_interleaved { &base } else { noise };
        let mut comparison = compare::compare(&Sides { base: known, new, are_interleaved, noise }, rules);
        if wanted > args.runs {
            comparison.notes.push(format!("the first {} pairs left it open: as many more were run", args.runs));
        } else if are_interleaved && comparison.is_open {
            outln!("open       there may be a rise that matters: {} more pairs", args.runs);
            wanted *= 2;
            continue;
        }
        if !are_interleaved {
            comparison.notes.push("the baseline's runs are from another time: the machine may have changed".to_owned());
        }
        return Ok(comparison);
    }
}

/// Runs this build several times and keeps it, for later checks to run it beside theirs.
async fn make_baseline(
    args: &CheckArgs,
    scenario: &Scenario,
    hash: &str,
    own: &Path,
    runs: &Runs<'_>,
) -> Result<(), Failure> {
    let folder = &args.baseline;
    let failed = |e: std::io::Error| Failure::environment(format!("--baseline {}: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let base_runs = folder.join(BASELINE_RUNS);
    if base_runs.exists() {
        std::fs::remove_dir_all(&base_runs).map_err(failed)?;
    }
    outln!("baseline   made from this build in {}: {} runs to learn its noise", folder.display(), args.runs);
    runs.one(own, &folder.join("last").join("first"), "warm-up").await?;
    for n in 1..=args.runs {
        let label = format!("baseline {n}/{}", args.runs);
        runs.one(own, &base_runs.join(format!("base-{n:03}")), &label).await?;
    }
    // Not in place: a baseline whose program is being replaced must not be run.
    let program = folder.join(format!("{BASELINE_PROGRAM}.new"));
    std::fs::copy(own, &program).map_err(failed)?;
    std::fs::rename(&program, folder.join(BASELINE_PROGRAM)).map_err(failed)?;
    let baseline = Baseline {
        scenario: scenario.name.clone(),
        scenario_hash: hash.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runs: args.runs,
    };
    let text = serde_json::to_string_pretty(&baseline).map_err(Failure::environment)?;
    std::fs::write(folder.join(BASELINE_FILE), text).map_err(failed)
}

/// SHA-256 of what a scenario says.
fn hash_of(scenario: &Scenario) -> String {
    use sha2::{Digest, Sha256};
    let text = serde_json::to_string(scenario).unwrap_or_default();
    let bytes = Sha256::digest(text.as_bytes());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Runs of one scenario by several programs.
struct Runs<'a> {
    scenario: &'a Path,
    /// Planned time of its load.
    load: Duration,
    target: Option<&'a str>,
    interrupt: &'a Tasks,
}

impl Runs<'_> {
    /// One run by a program, repeated where it says nothing.
    async fn one(&self, program: &Path, out: &Path, label: &str) -> Result<RunResult, Failure> {
        let args = self.target.map_or_else(Vec::new, |target| vec!["--target", target]);
        for _ in 0..=REPEATS_MAX {
            out!("{label:<22} ");
            output::interrupt_unread(self.interrupt);
            let run = ChildRun { program, scenario: self.scenario, out, args: &args, load: self.load };
            // The error begins on a line of its own.
            let result = run.run(self.interrupt).await.inspect_err(|_| outln!(""))?;
            let figures = Figure::ALL.into_iter().filter_map(|figure| {
                let us = figure.of(&result)?;
                Some(format!("{} {}", figure.name(), report::human_us(us.round() as u64)))
            });
            outln!("{}  {}", result.verdict.word(), figures.collect::<Vec<_>>().join("  "));
            match result.verdict {
                Verdict::Invalid => {}
                Verdict::Interrupted => return Err(interrupted()),
                _ => return Ok(result),
            }
        }
        let message =
            format!("{label}: INVALID {} times: the machine is too busy, or the scenario too large", REPEATS_MAX + 1);
        Err(Failure { code: exit::INVALID, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_with_another_content_has_another_hash() {
        let read = |rate| {
            let text = format!(
                "{{name: t, population: {{users: 2, direct_per_user: 1}}, behaviors: {{one-to-one: 1}}, \
                 phases: [{{phase: steady, duration: 1s, rate: {rate}}}]}}"
            );
            hash_of(&Scenario::parse(&text, "t").expect("valid"))
        };
        assert_eq!(read(1), read(1));
        assert_ne!(read(1), read(2));
    }

    #[test]
    fn percents_are_read_with_and_without_their_sign() {
        assert_eq!((percent("5"), percent("7.5 %")), (Ok(5.0), Ok(7.5)));
        assert!(percent("-1").is_err() && percent("much").is_err());
    }
}
