//! What can be told of a behaviour. Everybody asks these, and nobody which behaviour it is.

use std::time::Duration;

use super::Flapper;
use crate::protocol::api::ConversationKind;

/// A behaviour of simulated users.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The name in a scenario, in kebab case.
    pub name: &'static str,
    /// What it does, in a sentence: its row in docs/scenarios.md.
    pub about: &'static str,
    /// Where it sends messages.
    pub talks: Talks,
    /// Whether it stays connected.
    pub attendance: Attendance,
    /// How it reads what comes.
    pub reading: Reading,
}

/// Where a user sends messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talks {
    /// Nowhere: it only reads.
    Nowhere,
    /// In one-to-one conversations.
    Direct,
    /// In groups.
    Groups,
    /// In every conversation.
    Everywhere,
}

impl Talks {
    /// Whether it sends in conversations of a kind.
    #[must_use]
    pub const fn talks_in(self, kind: ConversationKind) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Direct => matches!(kind, ConversationKind::Direct),
            Self::Groups => matches!(kind, ConversationKind::Group),
            Self::Everywhere => true,
        }
    }

    /// Whether it sends at all.
    #[must_use]
    pub const fn is_anywhere(self) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Direct | Self::Groups | Self::Everywhere => true,
        }
    }

    /// Whether a population that has one-to-one conversations or groups, or both, has a place for it to send in.
    #[must_use]
    pub const fn has_place(self, has_direct: bool, has_groups: bool) -> bool {
        (has_direct && self.talks_in(ConversationKind::Direct))
            || (has_groups && self.talks_in(ConversationKind::Group))
    }

    /// What to say of a population that has no place for a behaviour that talks in one kind only.
    pub(in crate::loadgen) const fn lacks(self, has_direct: bool, has_groups: bool) -> Option<&'static str> {
        match self {
            Self::Direct if !has_direct => {
                Some("one-to-one talkers need conversations: set population.direct_per_user above 0")
            }
            Self::Groups if !has_groups => {
                Some("group talkers need groups: give population.groups an entry with a count above 0")
            }
            Self::Nowhere | Self::Direct | Self::Groups | Self::Everywhere => None,
        }
    }
}

/// Whether a user stays connected.
#[derive(Debug, Clone, Copy)]
pub enum Attendance {
    /// Connects once, and stays to the end.
    Stays,
    /// Is online, away, and online again. Each time is drawn around one of the scenario's.
    ComesAndGoes {
        /// Time online, about.
        online: fn(&Flapper) -> Duration,
        /// Time away, about.
        away: fn(&Flapper) -> Duration,
        /// How its connection ends.
        leave: Leave,
    },
}

impl Attendance {
    /// How long it is online, or away, about; `None` where that has no end.
    #[must_use]
    pub fn stay(&self, is_online: bool, times: &Flapper) -> Option<Duration> {
        match self {
            Self::Stays => None,
            Self::ComesAndGoes { online, away, .. } => Some(if is_online { online(times) } else { away(times) }),
        }
    }

    /// How its connection ends when it goes.
    #[must_use]
    pub const fn leave(&self) -> Leave {
        match self {
            Self::Stays => Leave::Close,
            Self::ComesAndGoes { leave, .. } => *leave,
        }
    }
}

/// How a connection ends when its user goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It is closed.
    Close,
    /// Nothing more is read or written, and the socket stays open.
    Vanish,
}

/// How a user reads what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At once.
    Prompt,
    /// With pauses of the scenario's `read_pause`. Its deliveries have a latency path of their own, and what it is told of
    /// presence is not judged by time.
    Paused,
}

impl Reading {
    /// Whether it makes pauses.
    #[must_use]
    pub const fn is_slow(self) -> bool {
        match self {
            Self::Prompt => false,
            Self::Paused => true,
        }
    }
}
