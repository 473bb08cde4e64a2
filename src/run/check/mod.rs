//! A scenario by the baseline's build and by this one, in turn, and what they show.
//!
//! | file | what |
//! |---|---|
//! | `baseline` | the folder of a baseline: its build and what its runs showed |
//! | `pairs` | runs of both builds in turn, until they answer the question |
//! | `runs` | one run in a process of its own, repeated where it says nothing |

mod baseline;
mod pairs;
mod runs;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::baseline::{About, Baseline, Folder};
use self::pairs::{Pairs, problem};
use self::runs::Runs;
use crate::loadgen::Scenario;
use crate::loadgen::result::{RunResult, ScenarioIdentity};
use crate::report::compare::{Comparison, Defect, Rules, Side};
use crate::run::observer::{Progress, ProgressObserver, RunLabel};
use crate::run::{Error, preflight, results};
use crate::runtime::Tasks;

/// How a check is done.
pub struct CheckSettings<'a> {
    /// Where the scenario was read from; each run reads it again.
    pub file: &'a Path,
    /// The scenario.
    pub scenario: &'a Scenario,
    /// Folder of the baseline.
    pub baseline: &'a Path,
    /// Pairs of runs.
    pub runs: u32,
    /// Pairs up to which they are doubled where something is left open; four times `runs` without it.
    pub runs_max: Option<u32>,
    /// API address of a running stack, whose runs are compared with those of the baseline.
    pub target: Option<&'a str>,
    /// Whether a baseline must be there already.
    pub is_baseline_required: bool,
    /// Whether the baseline is made anew, and nothing compared.
    pub is_made_anew: bool,
    /// Limits of the comparison.
    pub rules: Rules,
    /// Ends it between two runs; the one that is under way is waited for.
    pub interrupt: &'a Tasks,
    /// Who is told what happens.
    pub observer: &'a dyn ProgressObserver,
}

/// A check whose baseline is known to fit, and is used by nobody else.
pub struct Check<'a> {
    settings: CheckSettings<'a>,
    folder: Folder,
    /// What there is to compare with; without it a baseline is made.
    there: Option<Baseline>,
    scenario_hash: String,
    file_hash: String,
}

/// Refuses a scenario that can't be run, as far as that is known without its baseline.
///
/// # Errors
/// Names the file and the line, or the target.
pub fn check_scenario(file: &Path, scenario: &Scenario, target: Option<&str>) -> Result<(), Error> {
    preflight::target(target)?;
    preflight::population(file, scenario)
}

impl<'a> Check<'a> {
    /// Opens the folder of the baseline, and reads what is there.
    ///
    /// # Errors
    /// When there is no baseline and one is required, another check uses the folder, or the baseline is of another scenario.
    pub fn open(settings: CheckSettings<'a>) -> Result<Self, Error> {
        let shown = settings.baseline.display();
        if settings.is_baseline_required && !baseline::is_in(settings.baseline) {
            let problem = format!(
                "there is no baseline in {shown}: make one from a build that is known to be good, with `chatctl check {} --baseline \
                 {shown} --update-baseline`, and see to it that this run finds it (cache, path)",
                settings.file.display()
            );
            return Err(Error::environment(problem).at("--require-baseline"));
        }
        let folder = Folder::open(settings.baseline)?;
        let scenario_hash = ScenarioIdentity::of(settings.scenario).hash;
        let file_hash = hash_of(settings.file)?;
        let there = if settings.is_made_anew { None } else { folder.read()? };
        if let Some(other) = there.as_ref().filter(|there| !there.about.is_of(&scenario_hash, &file_hash)) {
            let (made_with, wanted) = (&other.about.scenario, &settings.scenario.name);
            let what = if made_with == wanted { "another content of" } else { "another scenario," };
            let problem = format!("it was made with {what} {made_with:?}: make it anew with --update-baseline");
            return Err(Error::usage(problem).at(shown));
        }
        Ok(Self { settings, folder, there, scenario_hash, file_hash })
    }

    /// Runs this build beside the baseline's and compares them; without a baseline makes one.
    ///
    /// # Errors
    /// When it was interrupted, a file could not be read or written, or runs are refused for their settings. Runs that could not
    /// be done are a part of the comparison.
    pub async fn run(&self) -> Result<Comparison, Error> {
        let settings = &self.settings;
        let runs = Runs {
            scenario: settings.file,
            load: settings.scenario.duration(),
            target: settings.target,
            interrupt: settings.interrupt,
            observer: settings.observer,
        };
        let Some(there) = &self.there else {
            let about = About {
                scenario: settings.scenario.name.clone(),
                scenario_hash: self.scenario_hash.clone(),
                file_hash: self.file_hash.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                runs: settings.runs,
                folder: String::new(),
            };
            return make_baseline(settings, about, &self.folder, &runs).await;
        };
        settings.observer.progress(Progress::BaselineFound {
            folder: settings.baseline,
            runs: there.about.runs,
            version: &there.about.version,
        });
        beside(settings, there, &self.folder.last()?, &runs).await
    }
}

/// SHA-256 of a file, in hexadecimal.
fn hash_of(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|e| Error::usage(e).at(path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat())
}

/// Compares this build with a baseline that is there.
async fn beside(
    settings: &CheckSettings<'_>,
    there: &Baseline,
    folder: &Path,
    runs: &Runs<'_>,
) -> Result<Comparison, Error> {
    let failed = |path: &Path, e: std::io::Error| Error::environment(e).at(path.display());
    let own = std::env::current_exe().map_err(Error::environment)?;
    // The build in the folder, unless it can't run here (another processor, a lost file).
    let base = there.program.as_ref().filter(|_| settings.target.is_none());
    // Both from fresh copies: a program whose file has lain there for a while is mapped otherwise, and is a few percent
    // faster or slower for it.
    let kept = if base.is_some() { Vec::new() } else { kept_runs(settings.baseline, there)? };
    let copies = Copies { base: folder.join("chatctl-base"), new: folder.join("chatctl-new") };
    if let Some(base) = base {
        std::fs::copy(base, &copies.base).map_err(|e| failed(&copies.base, e))?;
    }
    std::fs::copy(&own, &copies.new).map_err(|e| failed(&copies.new, e))?;
    let mut pairs = Pairs {
        runs,
        programs: (base.map(|_| copies.base.as_path()), copies.new.as_path()),
        folder,
        base: kept,
        new: Vec::new(),
        problem: None,
    };
    pairs.compare(settings).await
}

/// Copies of both programs. Dropped, they are gone.
struct Copies {
    base: PathBuf,
    new: PathBuf,
}

impl Drop for Copies {
    fn drop(&mut self) {
        for copy in [&self.base, &self.new] {
            // The first is not there when the baseline has no program.
            let _ = std::fs::remove_file(copy);
        }
    }
}

/// The runs that a baseline was made of.
fn kept_runs(folder: &Path, there: &Baseline) -> Result<Vec<RunResult>, Error> {
    let lost = |why: &dyn std::fmt::Display| {
        Error::environment(format!("its program can't be used, and its runs can't be read: {why}"))
            .at(format!("--baseline {}", folder.display()))
            .fix("make it anew with --update-baseline")
    };
    let found = results::read_all(&there.runs).map_err(|error| lost(&error))?;
    if found.without_result.is_empty() { Ok(found.results) } else { Err(lost(&found.without_result.join("; "))) }
}

/// Runs this build several times and keeps it, for later checks to run it beside theirs. Only if all of its runs pass.
async fn make_baseline(
    settings: &CheckSettings<'_>,
    about: About,
    folder: &Folder,
    runs: &Runs<'_>,
) -> Result<Comparison, Error> {
    let own = std::env::current_exe().map_err(Error::environment)?;
    let making = folder.begin()?;
    settings.observer.progress(Progress::BaselineBegins { folder: settings.baseline, runs: settings.runs });
    let mut results: Vec<RunResult> = Vec::new();
    let mut ended = None;
    for n in 0..=settings.runs {
        let (label, out) = match n {
            0 => (RunLabel::WarmUp(None), folder.last()?.join("first")),
            n => (RunLabel::Baseline { number: n, runs: settings.runs }, making.runs().join(format!("base-{n:03}"))),
        };
        match runs.one(&own, &out, label).await? {
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
            // Slow, as above.
            Err((Defect::Failed, _)) if n == 0 => {}
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
    let mut comparison = Comparison::of_baseline(&results, settings.rules);
    if let Some(problem) = ended {
        comparison.notes.clear();
        comparison.notes.push("no baseline was made: its runs must be sound themselves".to_owned());
        comparison.add_problem(problem);
    }
    if !is_sound && settings.is_made_anew {
        comparison.notes.push("the baseline that was there before, if any, is as it was".to_owned());
    }
    Ok(comparison)
}
