//! The one error type of all ports. What matters to a caller is whether the thing may have happened.

use std::fmt;
use std::time::Duration;

/// Result of every call to a port.
pub type BackendResult<T> = Result<T, BackendError>;

/// Whether a failed call may have had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It did not happen: retry freely.
    NotApplied,
    /// It may have happened: retry only what can be repeated.
    Unknown,
}

/// What kind of failure, for callers to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The engine is unreachable, or refused because it is busy.
    Unavailable,
    /// No answer within the deadline.
    TimedOut,
    /// The engine answered that the call is wrong: a bug or a misconfiguration.
    Rejected,
    /// What was read back makes no sense.
    Corrupt,
    /// A unique value is taken.
    Conflict,
    /// Another process has what only one can have. The source says all there is to say.
    InUse,
}

/// A failed call to an engine.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {kind}{}", source.as_ref().map(|s| format!(": {s}")).unwrap_or_default())]
pub struct BackendError {
    /// What was tried, such as `messages.append`.
    pub operation: &'static str,
    /// What kind of failure.
    pub kind: ErrorKind,
    /// Whether it may have happened.
    pub effect: Effect,
    /// When to try again, if the engine said so.
    pub retry_after: Option<Duration>,
    /// The engine's own error.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "engine unavailable",
            Self::TimedOut => "no answer in time",
            Self::Rejected => "engine refused the call",
            Self::Corrupt => "stored data can't be read",
            Self::Conflict => "already taken",
            Self::InUse => "in use by another process",
        })
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

impl BackendError {
    /// A failure that surely had no effect.
    pub fn not_applied(operation: &'static str, kind: ErrorKind, source: impl Into<Source>) -> Self {
        Self { operation, kind, effect: Effect::NotApplied, retry_after: None, source: Some(source.into()) }
    }

    /// A failure that may have had its effect.
    pub fn unknown(operation: &'static str, kind: ErrorKind, source: impl Into<Source>) -> Self {
        Self { operation, kind, effect: Effect::Unknown, retry_after: None, source: Some(source.into()) }
    }

    /// The same error of a step behind one that was done: what the steps do together may have happened.
    #[must_use]
    pub fn after_a_write(self) -> Self {
        Self { effect: Effect::Unknown, ..self }
    }

    /// The same error once more, for another who waited for the call: the engine's own error as text.
    #[must_use]
    pub fn repeated(&self) -> Self {
        let source = self.source.as_ref().map(|source| source.to_string().into());
        Self { operation: self.operation, kind: self.kind, effect: self.effect, retry_after: self.retry_after, source }
    }

    /// No answer within the deadline: the thing may have happened.
    #[must_use]
    pub const fn timed_out(operation: &'static str) -> Self {
        Self { operation, kind: ErrorKind::TimedOut, effect: Effect::Unknown, retry_after: None, source: None }
    }
}
