//! Where the files of runs go, and whether they can be written.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::loadgen::Scenario;
use crate::report;
use crate::run::{Error, writable};

/// Where the files of one run, or of several one after the other, go.
#[derive(Debug, Clone, Default)]
pub struct RunFiles {
    /// Folder of results; of several runs it has a folder for each.
    pub out: Option<PathBuf>,
    /// File of events as lines of JSON; of several runs a folder with a file for each.
    pub history: Option<PathBuf>,
    /// Whether there are several runs.
    pub are_several: bool,
}

impl RunFiles {
    /// Folder for the results of a scenario.
    #[must_use]
    pub fn folder(&self, scenario: &Scenario) -> Option<PathBuf> {
        let folder = self.out.as_ref()?;
        Some(if self.are_several { folder.join(&scenario.name) } else { folder.clone() })
    }

    /// File for the events of a scenario.
    #[must_use]
    pub fn history(&self, scenario: &Scenario) -> Option<PathBuf> {
        let path = self.history.as_ref()?;
        Some(if self.are_several { path.join(format!("{}.jsonl", scenario.name)) } else { path.clone() })
    }

    /// Refuses scenarios whose files would write over each other. Nothing is written.
    ///
    /// # Errors
    /// Names the name that two scenarios have.
    pub fn check_names(&self, scenarios: &[Scenario]) -> Result<(), Error> {
        let mut names = HashSet::new();
        if let Some(twice) = scenarios.iter().find(|scenario| !names.insert(&scenario.name))
            && (self.out.is_some() || self.history.is_some())
        {
            let text = format!("two scenarios are named {:?}: their files would write over each other", twice.name);
            return Err(Error::usage(text));
        }
        Ok(())
    }

    /// Finds out before the load whether its files can be written.
    ///
    /// # Errors
    /// Names the setting and the file that can't be written.
    pub fn probe(&self, scenarios: &[Scenario]) -> Result<(), Error> {
        scenarios.iter().try_for_each(|scenario| self.probe_one(scenario))
    }

    /// Removes what earlier runs left where these write: without it a run that fails would leave their results as its own.
    ///
    /// # Errors
    /// Names the setting and the file that can't be removed.
    pub fn remove_old(&self, scenarios: &[Scenario]) -> Result<(), Error> {
        for scenario in scenarios {
            if let Some(folder) = self.folder(scenario) {
                report::remove_old(&folder).map_err(|e| Error::environment(e).at("--out"))?;
            }
            if let Some(path) = self.history(scenario) {
                let failed = |e| Error::environment(e).at(format!("--history {}", path.display()));
                report::remove_old_file(&path).map_err(failed)?;
                // Each worker of an earlier run had a file of its own.
                for number in 1.. {
                    let path = path.with_extension(format!("{number}.jsonl"));
                    if !path.is_file() {
                        break;
                    }
                    report::remove_old_file(&path).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    fn probe_one(&self, scenario: &Scenario) -> Result<(), Error> {
        if let Some(folder) = self.folder(scenario) {
            writable::probe_folder("--out", &folder)?;
            for file in [report::RESULT_FILE, report::series::FILE] {
                writable::probe_file("--out", &folder.join(file))?;
            }
        }
        let Some(path) = self.history(scenario) else { return Ok(()) };
        if let Some(folder) = path.parent().filter(|_| self.are_several) {
            writable::probe_folder("--history", folder)?;
        }
        writable::probe_file("--history", &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::ErrorKind;

    fn scenario(name: &str) -> Scenario {
        let text = format!(
            "name: {name}\npopulation: {{users: 6, direct_per_user: 2}}\nbehaviors: {{one-to-one: 1}}\n\
             phases: [{{phase: steady, duration: 1s, rate: 20}}]\n"
        );
        Scenario::parse(&text, "test").expect("valid")
    }

    #[test]
    fn several_runs_have_a_folder_and_a_history_each() {
        let home = tempfile::tempdir().expect("a folder");
        let path = |name: &str| Some(home.path().join(name));
        let scenarios = [scenario("a"), scenario("b")];
        let one = RunFiles { out: path("out"), history: path("h"), are_several: false };
        assert_eq!((one.folder(&scenarios[0]), one.history(&scenarios[0])), (path("out"), path("h")));
        let several = RunFiles { are_several: true, ..one };
        assert_eq!((several.folder(&scenarios[1]), several.history(&scenarios[1])), (path("out/b"), path("h/b.jsonl")));
        several.probe(&scenarios).expect("can be written");
        assert_eq!(std::fs::read_dir(home.path().join("h")).expect("is made").count(), 0, "nothing is left behind");
    }

    #[test]
    fn what_earlier_runs_left_is_removed_for_every_scenario() {
        let home = tempfile::tempdir().expect("a folder");
        let files =
            RunFiles { out: Some(home.path().join("out")), history: Some(home.path().join("h")), are_several: true };
        let scenarios = [scenario("a"), scenario("b")];
        files.probe(&scenarios).expect("can be written");
        let old =
            ["out/a/result.json", "out/b/result.json", "out/b/ack.hlog", "h/b.jsonl"].map(|f| home.path().join(f));
        for path in &old {
            std::fs::write(path, "old").expect("writes");
        }
        files.remove_old(&scenarios).expect("removes");
        assert!(old.iter().all(|path| !path.exists()));
    }

    #[test]
    fn two_scenarios_of_one_name_are_refused_where_they_have_files() {
        let scenarios = [scenario("a"), scenario("a")];
        RunFiles::default().check_names(&scenarios).expect("no files");
        let files = RunFiles { history: Some(PathBuf::from("h")), are_several: true, ..RunFiles::default() };
        let refused = files.check_names(&scenarios).expect_err("refused");
        assert!(refused.kind == ErrorKind::Usage && refused.to_string().contains("\"a\""), "{refused}");
    }
}
