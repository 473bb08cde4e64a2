//! Results of finished runs, read for a comparison.

use std::path::{Path, PathBuf};

use crate::loadgen::result::RunResult;
use crate::report;
use crate::run::Error;

/// The results of a file, of a run's folder, or of all runs in a folder.
///
/// # Errors
/// Names the file that is missing, or is no result.
pub fn read_all(path: &Path) -> Result<Vec<RunResult>, Error> {
    let read = |path: &Path| report::read(path).map_err(Error::usage);
    if path.is_dir() && !path.join("result.json").exists() {
        let entries = std::fs::read_dir(path).map_err(|e| Error::usage(e).at(path.display()))?;
        let mut paths: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|p| p.join("result.json").exists() || p.extension().is_some_and(|e| e == "json"))
            .collect();
        paths.sort();
        if paths.is_empty() {
            return Err(Error::usage("there is no result of chatctl load in it").at(path.display()));
        }
        return paths.iter().map(|p| read(p)).collect();
    }
    Ok(vec![read(path)?])
}
