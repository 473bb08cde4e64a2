//! Talks, goes away and comes back; and the times of everybody who does.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Attendance, Leave, Reading, Spec, Talks};

pub(super) const SPEC: Spec = Spec {
    name: "flapper",
    about: "sends anywhere, goes away and comes back",
    talks: Talks::Everywhere,
    attendance: Attendance::ComesAndGoes {
        online: |times| times.online,
        away: |times| times.away,
        leave: Leave::Close,
    },
    reading: Reading::Prompt,
};

/// What users do who come and go: online, away, online again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flapper {
    /// Time online, about.
    #[serde(with = "humantime_serde")]
    pub online: Duration,
    /// Time away of a flapper, about.
    #[serde(with = "humantime_serde")]
    pub away: Duration,
    /// Time away of the presence-only: over 35 s, so that friends see them leave.
    #[serde(with = "humantime_serde")]
    pub presence_away: Duration,
}

impl Default for Flapper {
    fn default() -> Self {
        Self { online: Duration::from_secs(6), away: Duration::from_secs(4), presence_away: Duration::from_secs(40) }
    }
}
