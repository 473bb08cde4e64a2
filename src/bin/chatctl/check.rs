//! `chatctl check`: a scenario by the baseline's build and by this one, in turn.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chatctl::loadgen::Scenario;
use chatctl::loadgen::result::{RunResult, ScenarioIdentity};
use chatctl::report;
use chatctl::report::compare::{self, Comparison, Defect, Problem, Rules, Side, Sides};
use chatctl::runtime::Tasks;
use sha2::{Digest, Sha256};

use crate::baseline::{self, About, Baseline, Folder};
use crate::child_run::{ChildRun, interrupted};
use crate::compare::{Reporting, read_all};
use crate::exit::{self, Failure};
use crate::output::{self, out, outln};
use crate::preflight;
use crate::runner;

#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// Scenario file; short ones, such as scenarios/gate.yaml, are best
    scenario: PathBuf,
    /// Folder of the baseline; made from this build where there is none, and then nothing is compared
    #[arg(long, value_name = "DIR")]
    baseline: PathBuf,
    /// Pairs of runs, of the baseline's build and of this one in turn
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=200))]
    runs: u32,
    /// Pairs up to which they are doubled where something is left open; four times --runs without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=800))]
    runs_max: Option<u32>,
    /// API address of a running stack: its runs are compared with those of the baseline, not in turn
    #[arg(long, value_name = "URL", env = "CHATCTL_TARGET")]
    target: Option<String>,
    /// Fail where there is no baseline, instead of making one (exit 3)
    #[arg(long, conflicts_with = "update_baseline")]
    require_baseline: bool,
    /// Make the baseline anew from this build; nothing is compared
    #[arg(long)]
    update_baseline: bool,
    #[command(flatten)]
    reporting: Reporting,
}

/// A run that says nothing, or can't be done, is repeated this often.
const REPEATS_MAX: u32 = 2;

/// Time before a run that could not be done is repeated.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

pub(crate) fn run(args: CheckArgs) -> Result<u8, Failure> {
    let scenario = Scenario::read(&args.scenario).map_err(Failure::usage)?;
    preflight::target(args.target.as_deref())?;
    preflight::population(&args.scenario, &scenario)?;
    args.reporting.probe()?;
    let interrupt = Tasks::new();
    let runtime = runner::runtime()?;
    runtime.block_on(async {
        runner::watch_signals(&interrupt)?;
        check(&args, &scenario, &interrupt).await
    })
}

async fn check(args: &CheckArgs, scenario: &Scenario, interrupt: &Tasks) -> Result<u8, Failure> {
    let refuse = |failure| args.reporting.refuse(&scenario.name, failure);
    let shown = args.baseline.display();
    if args.require_baseline && !baseline::is_in(&args.baseline) {
        return Err(refuse(Failure::environment(format!(
            "--require-baseline: there is no baseline in {shown}: make one from a build that is known to be good, with \
             `chatctl check {} --baseline {shown} --update-baseline`, and see to it that this run finds it (cache, path)",
            args.scenario.display()
        ))));
    }
    let folder = Folder::open(&args.baseline).map_err(refuse)?;
    let identity = ScenarioIdentity::of(scenario);
    let file_hash = hash_of(&args.scenario)?;
    let runs = Runs { scenario: &args.scenario, load: scenario.duration(), target: args.target.as_deref(), interrupt };
    let there = if args.update_baseline { None } else { folder.read().map_err(refuse)? };
    let Some(there) = there else {
        let about = About {
            scenario: scenario.name.clone(),
            scenario_hash: identity.hash,
            file_hash,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            runs: args.runs,
            folder: String::new(),
        };
        return args.reporting.report(&make_baseline(args, about, &folder, &runs).await?);
    };
    if !there.about.is_of(&identity.hash, &file_hash) {
        return Err(refuse(Failure::usage(format!(
            "{shown}: it was made with another content of scenario {:?}: make it anew with --update-baseline",
            there.about.scenario
        ))));
    }
    outln!("baseline   {} runs of version {} in {shown}", there.about.runs, there.about.version);
    let comparison = beside(args, &there, &folder.last()?, &runs).await?;
    args.reporting.report(&comparison)
}

/// SHA-256 of a file, in hexadecimal.
fn hash_of(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat())
}

/// Compares this build with a baseline that is there.
async fn beside(args: &CheckArgs, there: &Baseline, folder: &Path, runs: &Runs<'_>) -> Result<Comparison, Failure> {
    let failed = |path: &Path, e: std::io::Error| Failure::environment(format!("{}: {e}", path.display()));
    let own = std::env::current_exe().map_err(Failure::environment)?;
    // The build in the folder, unless it can't run here (another processor, a lost file).
    let base = there.program.as_ref().filter(|_| args.target.is_none());
    // Both from fresh copies: a program whose file has lain there for a while is mapped otherwise, and is a few percent
    // faster or slower for it.
    let copies = (folder.join("chatctl-base"), folder.join("chatctl-new"));
    if let Some(base) = base {
        std::fs::copy(base, &copies.0).map_err(|e| failed(&copies.0, e))?;
    }
    std::fs::copy(&own, &copies.1).map_err(|e| failed(&copies.1, e))?;
    let kept = if base.is_some() { Vec::new() } else { read_all(&there.runs)? };
    let mut pairs = Pairs {
        runs,
        programs: (base.map(|_| copies.0.as_path()), copies.1.as_path()),
        folder,
        base: kept,
        new: Vec::new(),
        problem: None,
    };
    let comparison = pairs.compare(args).await;
    for copy in [&copies.0, &copies.1] {
        // The first is not there when the baseline has no program.
        let _ = std::fs::remove_file(copy);
    }
    comparison
}

/// Runs of both builds in turn.
struct Pairs<'a> {
    runs: &'a Runs<'a>,
    /// Of the baseline, if it has one, and of this build.
    programs: (Option<&'a Path>, &'a Path),
    /// Where the runs go.
    folder: &'a Path,
    /// Results of the baseline: its own of before, where it has no program.
    base: Vec<RunResult>,
    new: Vec<RunResult>,
    /// The run that ended it.
    problem: Option<Problem>,
}

impl Pairs<'_> {
    /// Runs pairs and compares them; twice as many where something is left open.
    async fn compare(&mut self, args: &CheckArgs) -> Result<Comparison, Failure> {
        let are_interleaved = self.programs.0.is_some();
        let most = if are_interleaved { args.runs_max.unwrap_or(args.runs * 4).max(args.runs) } else { args.runs };
        let mut rules = args.reporting.rules();
        let mut wanted = args.runs;
        self.warm_up().await?;
        loop {
            self.run_up_to(wanted).await?;
            let comparison = self.compared(are_interleaved, rules);
            if !comparison.is_open || self.problem.is_some() || wanted >= most {
                return Ok(comparison);
            }
            let more = (2 * wanted).min(most);
            outln!("open       {} pairs leave something open: {} more", wanted, more - wanted);
            wanted = more;
            rules = Rules { look: rules.look + 1, ..rules };
        }
    }

    /// The first run of a program reads it from the disk.
    async fn warm_up(&mut self) -> Result<(), Failure> {
        let programs = [(Side::Base, self.programs.0), (Side::New, Some(self.programs.1))];
        for (side, program) in programs {
            let Some(program) = program else { continue };
            let out = self.folder.join(format!("first-{}", side.word()));
            let ran = self.runs.one(program, &out, &format!("warm-up, {}", side.word())).await?;
            // A broken guarantee is one in a warm-up too.
            match ran {
                Ok(result) if Defect::of(&result) == Some(Defect::Violated) => {
                    self.problem = Some(problem(side, 0, Defect::Violated, result.reasons));
                }
                Ok(_) => {}
                Err((defect, why)) => self.problem = Some(problem(side, 0, defect, vec![why])),
            }
        }
        Ok(())
    }

    /// Runs pairs until there are so many, or one run decides everything.
    async fn run_up_to(&mut self, wanted: u32) -> Result<(), Failure> {
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

    async fn run_one(&mut self, side: Side, program: &Path, n: u32, wanted: u32) -> Result<(), Failure> {
        let label = format!("pair {n}/{wanted}, {}", side.word());
        let out = self.folder.join(format!("{}-{n:03}", side.word()));
        match self.runs.one(program, &out, &label).await? {
            Ok(result) => {
                if Defect::of(&result) == Some(Defect::Violated) {
                    outln!("           {} broke a guarantee: more runs would change nothing", side.word());
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
        if let Some(problem) = self.problem.as_ref().filter(|p| p.defect != Defect::Violated || p.run == Some(0)) {
            comparison.add_problem(problem.clone());
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

fn problem(side: Side, run: usize, defect: Defect, reasons: Vec<String>) -> Problem {
    Problem { side, run: Some(run), defect, reasons }
}

/// Runs this build several times and keeps it, for later checks to run it beside theirs. Only if all of its runs pass.
async fn make_baseline(
    args: &CheckArgs,
    about: About,
    folder: &Folder,
    runs: &Runs<'_>,
) -> Result<Comparison, Failure> {
    let own = std::env::current_exe().map_err(Failure::environment)?;
    let making = folder.begin()?;
    outln!("baseline   made from this build in {}: {} runs", args.baseline.display(), args.runs);
    let mut results: Vec<RunResult> = Vec::new();
    let mut ended = None;
    for n in 0..=args.runs {
        let (label, out) = match n {
            0 => ("warm-up".to_owned(), folder.last()?.join("first")),
            n => (format!("baseline {n}/{}", args.runs), making.runs().join(format!("base-{n:03}"))),
        };
        match runs.one(&own, &out, &label).await? {
            Ok(result) => {
                let defect = Defect::of(&result);
                // The first run is slower than any other: only what is no matter of time counts.
                let counts = if n == 0 { defect == Some(Defect::Violated) } else { defect.is_some() };
                if n > 0 || counts {
                    results.push(result);
                }
                if counts {
                    break;
                }
            }
            Err((defect, why)) => {
                ended = Some(problem(Side::New, n as usize, defect, vec![why]));
                break;
            }
        }
    }
    let is_sound = ended.is_none() && results.iter().all(|r| Defect::of(r).is_none());
    if is_sound {
        making.keep(&own, about)?;
    }
    let mut comparison = Comparison::of_baseline(&results, args.reporting.rules());
    if let Some(problem) = ended {
        comparison.notes.clear();
        comparison.notes.push("no baseline was made: its runs must be sound themselves".to_owned());
        comparison.add_problem(problem);
    }
    if !is_sound && args.update_baseline {
        comparison.notes.push("the baseline that was there before, if any, is as it was".to_owned());
    }
    Ok(comparison)
}

/// Runs of one scenario by several programs.
struct Runs<'a> {
    scenario: &'a Path,
    /// Planned time of its load.
    load: Duration,
    target: Option<&'a str>,
    interrupt: &'a Tasks,
}

/// A result, or why there is none that says something.
type Ran = Result<RunResult, (Defect, String)>;

impl Runs<'_> {
    /// One run by a program, repeated where it says nothing or can't be done.
    async fn one(&self, program: &Path, out: &Path, label: &str) -> Result<Ran, Failure> {
        let args = self.target.map_or_else(Vec::new, |target| vec!["--target", target]);
        let mut last = (Defect::NotRun, String::new());
        for attempt in 0..=REPEATS_MAX {
            if attempt > 0 && last.0 == Defect::NotRun {
                tokio::select! {
                    () = tokio::time::sleep(REPEAT_AFTER) => {}
                    () = self.interrupt.stopped() => {}
                }
            }
            out!("{label:<22} ");
            output::interrupt_unread(self.interrupt);
            let run = ChildRun { program, scenario: self.scenario, out, args: &args, load: self.load };
            let result = match run.run(self.interrupt).await {
                Ok(result) => result,
                Err(failure) if failure.code == exit::ENVIRONMENT => {
                    outln!("could not be done: {}", failure.message);
                    last = (Defect::NotRun, failure.message);
                    continue;
                }
                Err(failure) => {
                    // The error begins on a line of its own.
                    outln!("");
                    return Err(failure);
                }
            };
            let figures = compare::headline(&result).into_iter();
            let figures = figures.map(|(name, us)| format!("{name} {}", report::human_us(us.round() as u64)));
            outln!("{}  {}", result.verdict.word(), figures.collect::<Vec<_>>().join("  "));
            match Defect::of(&result) {
                Some(Defect::Invalid) => last = (Defect::Invalid, result.reasons.join("; ")),
                Some(Defect::Interrupted) => return Err(interrupted()),
                _ => return Ok(Ok(result)),
            }
        }
        Ok(Err((last.0, format!("{} times: {}", REPEATS_MAX + 1, last.1))))
    }
}
