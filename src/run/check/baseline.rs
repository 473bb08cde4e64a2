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

use crate::run::Error;

const FILE: &str = "baseline.json";
const PROGRAM: &str = "chatctl";
const RUNS: &str = "runs";
const MAKING: &str = "making";
const BUILD: &str = "build-";

/// What a baseline is, beside the runs in its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    /// The scenario's name.
    pub(super) scenario: String,
    /// Hash of its content: another one is not comparable.
    pub(super) scenario_hash: String,
    /// Hash of its file: the same file is the same scenario, also for a build that knows more fields.
    #[serde(default)]
    pub(super) file_hash: String,
    /// Version of the build that made it.
    pub(super) version: String,
    /// Runs.
    pub(super) runs: u32,
    /// Folder of program and runs, below the baseline's own; those of older versions lie in the latter itself.
    #[serde(default)]
    pub(super) folder: String,
}

impl About {
    /// Whether the baseline is of a scenario with this hash of its content, and this one of its file.
    pub(super) fn is_of(&self, scenario_hash: &str, file_hash: &str) -> bool {
        self.scenario_hash == scenario_hash || (!self.file_hash.is_empty() && self.file_hash == file_hash)
    }
}

/// A baseline's folder, which no other `check` uses at the same time.
pub(super) struct Folder {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// A baseline that is there.
pub(super) struct Baseline {
    pub(super) about: About,
    /// Folder with a folder per run.
    pub(super) runs: PathBuf,
    /// The build; `None` where the file is gone.
    pub(super) program: Option<PathBuf>,
}

/// Whether there is a baseline in a folder, which need not be there.
pub(super) fn is_in(path: &Path) -> bool {
    path.join(FILE).exists()
}

impl Folder {
    /// Makes the folder if need be, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let place = || format!("--baseline {}", path.display());
        let failed = |e: io::Error| Error::environment(e).at(place());
        fs::create_dir_all(path).map_err(failed)?;
        let lock = File::create(path.join(".lock")).map_err(failed)?;
        lock.try_lock().map_err(|_| Error::environment("another chatctl check uses it now").at(place()))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The baseline in it, if there is one.
    pub(super) fn read(&self) -> Result<Option<Baseline>, Error> {
        let file = self.path.join(FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::environment(e).at(file.display())),
        };
        let about: About =
            serde_json::from_str(&text).map_err(|e| Error::usage(format!("not a baseline: {e}")).at(file.display()))?;
        let is_below =
            about.folder.is_empty() || (about.folder.starts_with(BUILD) && !about.folder.contains(['/', '\\']));
        if !is_below {
            return Err(Error::usage(format!("folder {:?} is none of a baseline", about.folder)).at(file.display()));
        }
        let folder = self.path.join(&about.folder);
        let program = folder.join(PROGRAM);
        Ok(Some(Baseline { about, runs: folder.join(RUNS), program: program.exists().then_some(program) }))
    }

    /// The folder for the runs of this check; what was there of the last one is gone.
    pub(super) fn last(&self) -> Result<PathBuf, Error> {
        fresh(&self.path.join("last"))
    }

    /// Begins to make a baseline, beside the one that is there.
    pub(super) fn begin(&self) -> Result<Making<'_>, Error> {
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
fn fresh(path: &Path) -> Result<PathBuf, Error> {
    let failed = |e: io::Error| Error::environment(e).at(path.display());
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => fs::create_dir_all(path).map_err(failed)?,
    }
    Ok(path.to_owned())
}

/// A baseline that is being made. Dropped before it is kept, it is gone.
pub(super) struct Making<'a> {
    folder: &'a Folder,
    path: PathBuf,
    is_kept: bool,
}

impl Making<'_> {
    /// Folder for its runs.
    pub(super) fn runs(&self) -> PathBuf {
        self.path.join(RUNS)
    }

    /// Makes it the baseline, with this program.
    pub(super) fn keep(mut self, program: &Path, mut about: About) -> Result<(), Error> {
        let named = |e: io::Error| Error::environment(e).at(format!("--baseline {}", self.folder.path.display()));
        let home = &self.folder.path;
        let free = (1_u32..100).find(|n| !home.join(format!("{BUILD}{n}")).exists());
        about.folder = format!("{BUILD}{}", free.unwrap_or(0));
        let text = serde_json::to_string_pretty(&about).map_err(Error::environment)?;
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
    use crate::run::ErrorKind;

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

    fn make(folder: &Folder, program: &Path, version: &str) -> Result<(), Error> {
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
        assert!(Folder::open(&path).is_err_and(|e| e.to_string().contains("another chatctl check")), "it is locked");
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
            assert!(folder.read().is_err_and(|e| e.kind == ErrorKind::Usage), "{odd}");
        }
    }
}
