//! Results of finished runs, read for a comparison.

use std::io;
use std::path::{Path, PathBuf};

use crate::loadgen::result::RunResult;
use crate::report;
use crate::run::Error;

/// What was found where the results of several runs are.
#[derive(Debug, Default)]
pub struct FoundRuns {
    /// Results, in the order of their names.
    pub results: Vec<RunResult>,
    /// Runs that left files and no result, and entries that can't be read: one text each, with its path.
    pub without_result: Vec<String>,
}

/// The results of a file, of a run's folder, or of all runs in a folder.
///
/// # Errors
/// Names the file that is missing, or is no result.
pub fn read_all(path: &Path) -> Result<FoundRuns, Error> {
    if !path.is_dir() || path.join(report::RESULT_FILE).exists() {
        return Ok(FoundRuns { results: vec![read(path)?], without_result: Vec::new() });
    }
    let failed = |e: io::Error| Error::usage(e).at(path.display());
    let entries = std::fs::read_dir(path).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    let mut found = FoundRuns::default();
    let without = |path: &Path| format!("{}: a run without a {}", path.display(), report::RESULT_FILE);
    for path in &paths {
        match kind(path) {
            Ok(Kind::Result) => found.results.push(read(path)?),
            Ok(Kind::CutShort) => found.without_result.push(without(path)),
            Ok(Kind::Other) => {}
            Err(error) => found.without_result.push(format!("{}: {error}", path.display())),
        }
    }
    if found.results.is_empty() && found.without_result.is_empty() {
        // Perhaps it is itself the folder of a run.
        if matches!(kind(path), Ok(Kind::CutShort)) {
            found.without_result.push(without(path));
            return Ok(found);
        }
        return Err(Error::usage("there is no result of chatctl load in it").at(path.display()));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<RunResult, Error> {
    report::read(path).map_err(Error::usage)
}

/// What an entry of a folder of runs is.
enum Kind {
    /// A result, or the folder of one.
    Result,
    /// The folder of a run that left files and no result.
    CutShort,
    /// Something else.
    Other,
}

fn kind(path: &Path) -> io::Result<Kind> {
    if !std::fs::metadata(path)?.is_dir() {
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        return Ok(if is_json { Kind::Result } else { Kind::Other });
    }
    let names = std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    if names.iter().any(|name| name == report::RESULT_FILE) {
        return Ok(Kind::Result);
    }
    let is_of_run = |name: &Path| {
        name == Path::new(report::series::FILE)
            || name == Path::new("stack")
            || name.extension().is_some_and(|extension| extension == "hlog")
    };
    Ok(if names.iter().any(|name| is_of_run(Path::new(name))) { Kind::CutShort } else { Kind::Other })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::result::SCHEMA_VERSION;
    use crate::report::json;

    #[test]
    fn runs_that_left_no_result_are_named() {
        let home = tempfile::tempdir().expect("a folder");
        let at = |name: &str| {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("a folder");
            path
        };
        let result = RunResult { schema: SCHEMA_VERSION, ..RunResult::default() };
        std::fs::write(at("run-1/result.json"), json::render(&result)).expect("writes");
        std::fs::write(at("run-2/series.jsonl"), "").expect("writes");
        std::fs::create_dir_all(at("run-3/stack")).expect("a folder");
        std::fs::write(at("run-4/ack.hlog"), "").expect("writes");
        std::fs::write(at("notes/todo.txt"), "").expect("writes");
        std::fs::write(at("notes.txt"), "").expect("writes");
        std::os::unix::fs::symlink("/nowhere", at("run-5")).expect("links");
        let found = read_all(home.path()).expect("reads");
        assert_eq!(found.results.len(), 1);
        let named =
            |n: usize| found.without_result[n].starts_with(&at(&format!("run-{}", n + 2)).display().to_string());
        assert!(found.without_result.len() == 4 && (0..4).all(named), "{:?}", found.without_result);
        assert_eq!(read_all(&home.path().join("run-1")).expect("reads").results.len(), 1);
        let cut_short = read_all(&home.path().join("run-2")).expect("a run, and no result");
        assert!(cut_short.results.is_empty() && cut_short.without_result.len() == 1, "{cut_short:?}");
        assert!(read_all(&home.path().join("notes")).is_err_and(|e| e.to_string().contains("no result")));
    }
}
