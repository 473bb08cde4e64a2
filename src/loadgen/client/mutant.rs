//! Faults of the client that tests put back, to see that the model notices them. Nothing of it is left outside tests.

/// A fault that a test can plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::loadgen) enum Mutant {
    /// A gap's sync is noted and never scheduled.
    SyncTimerForgotten,
    /// A silent connection is kept for ever.
    DeadConnectionKept,
    /// A failed call is repeated at once.
    RetryWithoutWait,
    /// What is pending at the end may still be acknowledged, when others have synced for the last time.
    PendingKeptAtFinish,
    /// An answer of an earlier catch-up ends the present one.
    StaleAnswerTaken,
    /// A page that was under way when the inbox was listed counts as caught up.
    HeadForgotten,
    /// A message above a hole is shown at once.
    HoleIgnored,
    /// A retry gets a new uuid.
    RetryUnderNewUuid,
}

#[cfg(test)]
impl Mutant {
    /// All of them.
    pub(in crate::loadgen) const ALL: [Self; 8] = [
        Self::SyncTimerForgotten,
        Self::DeadConnectionKept,
        Self::RetryWithoutWait,
        Self::PendingKeptAtFinish,
        Self::StaleAnswerTaken,
        Self::HeadForgotten,
        Self::HoleIgnored,
        Self::RetryUnderNewUuid,
    ];
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Plants a fault in everything that this thread simulates, or none.
#[cfg(test)]
pub(in crate::loadgen) fn plant(mutant: Option<Mutant>) {
    PLANTED.set(mutant);
}

/// Whether a fault is planted.
#[cfg(test)]
pub(in crate::loadgen) fn is_planted(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}

/// Whether a fault is planted: never, outside tests.
#[cfg(not(test))]
pub(in crate::loadgen) const fn is_planted(_mutant: Mutant) -> bool {
    false
}
