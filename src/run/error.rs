//! Why a run, or a set of runs, has no result.

use std::fmt;
use std::path::Path;

use crate::loadgen::RunError;
use crate::stack::StackError;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A setting or the scenario is wrong: the next run fails the same way.
    Usage,
    /// Something outside is missing or broken: an address, an engine, a folder.
    Environment,
    /// Somebody stopped it.
    Interrupted,
    /// A run whose result others rest on did not pass.
    Inconclusive,
    /// A run whose result others rest on broke a guarantee.
    Violated,
    /// Runs have too few samples for what is asked of them.
    NotEnoughData,
}

/// What is wrong, where, and the fix. Shown as `place: problem; fix`, each note in brackets on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// The setting, the file or the address.
    place: Option<String>,
    /// What is wrong.
    problem: String,
    /// What to do about it.
    fix: Option<String>,
    /// Where to read more.
    notes: Vec<String>,
}

impl Error {
    fn new(kind: ErrorKind, problem: impl ToString) -> Self {
        Self { kind, place: None, problem: problem.to_string(), fix: None, notes: Vec::new() }
    }

    /// A setting or the scenario is wrong.
    pub fn usage(problem: impl ToString) -> Self {
        Self::new(ErrorKind::Usage, problem)
    }

    /// Something outside is missing or broken.
    pub fn environment(problem: impl ToString) -> Self {
        Self::new(ErrorKind::Environment, problem)
    }

    /// Somebody stopped it.
    pub fn interrupted(problem: impl ToString) -> Self {
        Self::new(ErrorKind::Interrupted, problem)
    }

    /// A run whose result others rest on did not pass.
    pub fn inconclusive(problem: impl ToString) -> Self {
        Self::new(ErrorKind::Inconclusive, problem)
    }

    /// A run whose result others rest on broke a guarantee.
    pub fn violated(problem: impl ToString) -> Self {
        Self::new(ErrorKind::Violated, problem)
    }

    /// Runs have too few samples for what is asked of them.
    pub fn not_enough_data(problem: impl ToString) -> Self {
        Self::new(ErrorKind::NotEnoughData, problem)
    }

    /// The same with the setting, the file or the address that it is about.
    #[must_use]
    pub fn at(mut self, place: impl ToString) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn fix(mut self, fix: impl ToString) -> Self {
        self.fix = Some(fix.to_string());
        self
    }

    /// The same with the place of the logs that may say more.
    #[must_use]
    pub fn with_logs(mut self, logs: Option<&Path>) -> Self {
        self.notes.extend(logs.map(|logs| format!("logs of the servers in {}", logs.display())));
        self
    }

    /// A stack on the engines of this machine that did not start: says how they are brought up.
    #[must_use]
    pub fn of_local_engines(error: StackError) -> Self {
        let is_about_engines = matches!(error, StackError::Backend(_));
        let mut error = Self::from(error);
        if is_about_engines {
            let note = "`scripts/engines install` and `scripts/engines start` bring up the engines of this machine";
            error.notes.push(note.to_owned());
        }
        error
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.problem)?;
        if let Some(fix) = &self.fix {
            write!(f, "; {fix}")?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n({note})"))
    }
}

impl std::error::Error for Error {}

impl From<StackError> for Error {
    fn from(error: StackError) -> Self {
        match error {
            StackError::Config(_) => Self::usage(error),
            StackError::Backend(_)
            | StackError::Bind { .. }
            | StackError::Start { .. }
            | StackError::Runtime { .. }
            | StackError::Data { .. }
            | StackError::Occupied(_)
            | StackError::Process { .. }
            | StackError::Relay { .. }
            | StackError::NoSuchServer { .. } => Self::environment(error),
        }
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Usage(problem) => Self::usage(problem),
            RunError::Environment(problem) => Self::environment(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_where_what_and_the_fix() {
        let error = Error::usage("it is no number").at("--workers x").fix("write a number");
        assert_eq!(error.to_string(), "--workers x: it is no number; write a number");
        let error = Error::environment("it ended").with_logs(Some(Path::new("logs")));
        assert_eq!(error.to_string(), "it ended\n(logs of the servers in logs)");
        assert_eq!(Error::interrupted("interrupted").with_logs(None).to_string(), "interrupted");
    }

    #[test]
    fn a_wrong_setting_of_a_stack_is_wrong_usage() {
        let error = Error::of_local_engines(StackError::Config("chat_servers: 0".to_owned()));
        assert_eq!((error.kind, error.to_string().as_str()), (ErrorKind::Usage, "configuration: chat_servers: 0"));
    }
}
