//! The broken guarantees.

/// Declares the kinds with their names.
macro_rules! kinds {
    ($( $(#[$doc:meta])* $kind:ident = $name:literal ),* $(,)?) => {
        /// A broken guarantee.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(in crate::loadgen) enum Kind { $( $(#[$doc])* $kind ),* }

        impl Kind {
            pub(super) const ALL: &'static [Self] = &[$(Self::$kind),*];

            pub(super) const fn name(self) -> &'static str {
                match self { $( Self::$kind => $name ),* }
            }
        }
    };
}

kinds!(
    /// Acknowledged and not stored, or stored and never seen by a member.
    Lost = "lost",
    /// Shown twice, or stored under two ids.
    Duplicated = "duplicated",
    /// Shown after a younger one.
    OutOfOrder = "out of order",
    /// One id for two messages, or another id than the acknowledged one.
    IdReuse = "id reuse",
    /// An id below one that was acknowledged before the message was first sent.
    IdWentBack = "id went back",
    /// Shown to, or readable by, somebody who is no member.
    Leaked = "leaked",
    /// Body, sender, kind, reply or time changed.
    Altered = "altered",
    /// Refused definitely, and stored or shown all the same.
    FalseRefusal = "false refusal",
    /// Taken though the sender was removed before it was first sent, and was not back.
    FalseAcceptance = "false acceptance",
    /// An ACK with another id than before, or for another conversation; an ACK or error for what the device did not send.
    AckWrong = "ack wrong",
    /// A message, receipt or typing notice that no simulated client sent.
    Forged = "forged",
    /// A presence notice that contradicts the beats.
    PresenceWrong = "presence wrong",
    /// A change of presence that a watching friend had to be told and was not.
    PresenceMissed = "presence missed",
    /// Presence of somebody who is no friend.
    PresenceLeaked = "presence leaked",
);
