//! The baseline of `chatctl check`: a folder that holds a build, and what its runs showed.
//!
//! ```text
//! DIR/baseline.json   what the baseline is, and which folder it lies in; replaced by a rename
//! DIR/build-1/        chatctl, runs/
//! DIR/making/         a baseline that is being made; of no meaning to anybody else
//! DIR/last/           the runs of the last check
//! ```
//! A baseline counts from the moment that `baseline.json` names it. Whatever ends the program before leaves the old one as it was.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::Failure;

const FILE: &str = "baseline.json";
const PROGRAM: &str = "chatctl";
const RUNS: &str = "runs";
const MAKING: &str = "making";
const BUILD: &str = "build-";

/// What a baseline is, beside the runs in its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    /// The scenario's name.
    pub(crate) scenario: String,
    /// Hash of its content: another one is not comparable.
    pub(crate) scenario_hash: String,
    /// Hash of its file: the same file is the same scenario, also for a build that knows more fields.
    #[serde(default)]
    pub(crate) file_hash: String,
    /// Version of the build that made it.
    pub(crate) version: String,
    /// Runs.
    pub(crate) runs: u32,
    /// Folder of program and runs, below the baseline's own; those of older versions lie in the latter itself.
    #[serde(default)]
    pub(crate) folder: String,
}

impl About {
    /// Whether the baseline is of a scenario with this hash of its content, and this one of its file.
    pub(crate) fn is_of(&self, scenario_hash: &str, file_hash: &str) -> bool {
        self.scenario_hash == scenario_hash || (!self.file_hash.is_empty() && self.file_hash == file_hash)
    }
}

/// A baseline's folder, which no other `check` uses at the same time.
pub(crate) struct Folder {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// A baseline that is there.
pub(crate) struct Baseline {
    pub(crate) about: About,
    /// Folder with a folder per run.
    pub(crate) runs: PathBuf,
    /// The build; `None` where the file is gone.
    pub(crate) program: Option<PathBuf>,
}

/// Whether there is a baseline in a folder, which need not be there.
pub(crate) fn is_in(path: &Path) -> bool {
    path.join(FILE).exists()
}

impl Folder {
    /// Makes the folder if need be, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::environment(format!("--baseline {}: {e}", path.display()));
        fs::create_dir_all(path).map_err(failed)?;
        let lock = File::create(path.join(".lock")).map_err(failed)?;
        lock.try_lock().map_err(|_| {
            Failure::environment(format!("--baseline {}: another chatctl check uses it now", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The baseline in it, if there is one.
    pub(crate) fn read(&self) -> Result<Option<Baseline>, Failure> {
        let file = self.path.join(FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::environment(format!("{}: {e}", file.display()))),
        };
        let about: About = serde_json::from_str(&text)
            .map_err(|e| Failure::usage(format!("{}: not a baseline: {e}", file.display())))?;
        let is_below =
            about.folder.is_empty() || (about.folder.starts_with(BUILD) && !about.folder.contains(['/', '\\']));
        if !is_below {
            return Err(Failure::usage(format!("{}: folder {:?} is none of a baseline", file.display(), about.folder)));
        }
        let folder = self.path.join(&about.folder);
        let program = folder.join(PROGRAM);
        Ok(Some(Baseline { about, runs: folder.join(RUNS), program: program.exists().then_some(program) }))
    }

    /// The folder for the runs of this check; what was there of the last one is gone.
    pub(crate) fn last(&self) -> Result<PathBuf, Failure> {
        fresh(&self.path.join("last"))
    }

    /// Begins to make a baseline, beside the one that is there.
    pub(crate) fn begin(&self) -> Result<Making<'_>, Failure> {
        let path = fresh(&self.path.join(MAKING))?;
        Ok(Making { folder: self, path, is_kept: false })
    }

    /// Removes what no baseline names: of older ones, and of those whose making was cut short.
    fn clean(&self, kept: &str) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(BUILD) && name != kept {
                // What can't be removed is in nobody's way.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        // Where older versions had them.
        let _ = fs::remove_dir_all(self.path.join(RUNS));
        let _ = fs::remove_file(self.path.join(PROGRAM));
    }
}

/// An empty folder.
fn fresh(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |e: io::Error| Failure::environment(format!("{}: {e}", path.display()));
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => fs::create_dir_all(path).map_err(failed)?,
    }
    Ok(path.to_owned())
}

/// A baseline that is being made. Dropped before it is kept, it is gone.
pub(crate) struct Making<'a> {
    folder: &'a Folder,
    path: PathBuf,
    is_kept: bool,
}

impl Making<'_> {
    /// Folder for its runs.
    pub(crate) fn runs(&self) -> PathBuf {
        self.path.join(RUNS)
    }

    /// Makes it the baseline, with this program.
    pub(crate) fn keep(mut self, program: &Path, mut about: About) -> Result<(), Failure> {
        let named = |e: io::Error| Failure::environment(format!("--baseline {}: {e}", self.folder.path.display()));
        let home = &self.folder.path;
        let free = (1_u32..100).find(|n| !home.join(format!("{BUILD}{n}")).exists());
        about.folder = format!("{BUILD}{}", free.unwrap_or(0));
        let text = serde_json::to_string_pretty(&about).map_err(Failure::environment)?;
        let keep = || -> io::Result<()> {
            fs::copy(program, self.path.join(PROGRAM))?;
            sync(&self.path)?;
            fs::rename(&self.path, home.join(&about.folder))?;
            let new = home.join(format!("{FILE}.new"));
            fs::write(&new, text)?;
            sync(&new)?;
            // From here on it is the baseline.
            fs::rename(&new, home.join(FILE))?;
            File::open(home)?.sync_all()
        };
        keep().map_err(named)?;
        self.is_kept = true;
        self.folder.clean(&about.folder);
        Ok(())
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            // It is removed by the next that is made, too.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Has everything in a folder written to the disk.
fn sync(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            sync(&entry?.path())?;
        }
    }
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(version: &str) -> About {
        let text = || String::new();
        About {
            scenario: text(),
            scenario_hash: text(),
            file_hash: text(),
            version: version.to_owned(),
            runs: 1,
            folder: text(),
        }
    }

    fn make(folder: &Folder, program: &Path, version: &str) -> Result<(), Failure> {
        let making = folder.begin()?;
        fs::create_dir_all(making.runs().join("base-001")).expect("a folder");
        fs::write(making.runs().join("base-001/result.json"), version).expect("writes");
        making.keep(program, about(version))
    }

    #[test]
    fn a_baseline_whose_making_is_cut_short_leaves_the_old_one() {
        let home = tempfile::tempdir().expect("a folder");
        let program = home.path().join("program");
        fs::write(&program, "a program").expect("writes");
        let path = home.path().join("baseline");
        assert!(!is_in(&path));
        let folder = Folder::open(&path).expect("opens");
        assert!(folder.read().expect("reads").is_none());
        make(&folder, &program, "1").expect("made");
        let version = |folder: &Folder| {
            let there = folder.read().expect("reads").expect("is there");
            let run = fs::read_to_string(there.runs.join("base-001/result.json")).expect("its runs are there");
            assert!(there.program.is_some() && run == there.about.version, "{run}");
            run
        };
        assert_eq!(version(&folder), "1");
        // Ended in the middle, with and without the time to clean up.
        drop(folder.begin().expect("begins"));
        assert_eq!(version(&folder), "1");
        std::mem::forget(folder.begin().expect("begins"));
        assert_eq!(version(&folder), "1");
        // Ended between the two renames.
        fs::create_dir_all(path.join("build-2/runs")).expect("a folder");
        assert_eq!(version(&folder), "1");
        // It can't be finished: the program is not there.
        assert!(make(&folder, Path::new("/nowhere/chatctl"), "2").is_err());
        assert_eq!(version(&folder), "1");
        make(&folder, &program, "3").expect("made");
        assert_eq!(version(&folder), "3");
        let builds = fs::read_dir(&path).expect("reads").flatten();
        let builds = builds.filter(|e| e.file_name().to_string_lossy().starts_with(BUILD)).count();
        assert_eq!(builds, 1, "the old ones are gone");
        assert!(Folder::open(&path).is_err_and(|e| e.message.contains("another chatctl check")), "it is locked");
    }

    #[test]
    fn the_same_file_is_the_same_scenario() {
        let mut about = About { scenario_hash: "a".to_owned(), ..about("1") };
        assert!(about.is_of("a", "f") && !about.is_of("b", "f") && !about.is_of("b", ""));
        about.file_hash = "f".to_owned();
        assert!(about.is_of("b", "f") && !about.is_of("b", "g"));
    }

    #[test]
    fn baselines_of_older_versions_are_read_and_odd_ones_refused() {
        let home = tempfile::tempdir().expect("a folder");
        let file = home.path().join(FILE);
        let write = |more: &str| {
            let text =
                format!("{{\"scenario\": \"t\", \"scenario_hash\": \"x\", \"version\": \"1\", \"runs\": 2{more}}}");
            fs::write(&file, text).expect("writes");
        };
        let folder = Folder::open(home.path()).expect("opens");
        write("");
        assert_eq!(folder.read().expect("reads").map(|b| b.runs), Some(home.path().join("runs")));
        for odd in [", \"folder\": \"../x\"", ", \"folder\": \"build-1/../..\"", ", \"colour\": 1"] {
            write(odd);
            assert!(folder.read().is_err_and(|e| e.code == crate::exit::USAGE), "{odd}");
        }
    }
}
