//! The phases of a run, under the names that they have in scenarios, snapshots and results.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a phase of the load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PhaseKind {
    /// Load that is not measured.
    WarmUp,
    /// A rising or falling load.
    Ramp,
    /// A steady load.
    Steady,
    /// The end of the load.
    CoolDown,
}

impl PhaseKind {
    const ALL: [Self; 4] = [Self::WarmUp, Self::Ramp, Self::Steady, Self::CoolDown];

    /// The name in scenarios and results.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WarmUp => "warm-up",
            Self::Ramp => "ramp",
            Self::Steady => "steady",
            Self::CoolDown => "cool-down",
        }
    }
}

/// Where a run is: before its load, in one of the load's phases, or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunPhase {
    /// Accounts and conversations are made.
    #[default]
    Setup,
    /// A phase of the load.
    Load(PhaseKind),
    /// The load is over, and answers are waited for.
    Drain,
    /// Everything is read back.
    Audit,
    /// The verdict is there.
    Done,
    /// In a file of another version: one that this version does not have.
    Unknown,
}

impl RunPhase {
    /// The name in snapshots.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Load(kind) => kind.as_str(),
            Self::Drain => "drain",
            Self::Audit => "audit",
            Self::Done => "done",
            Self::Unknown => "unknown",
        }
    }

    /// The phase with a name; [`RunPhase::Unknown`] where there is none.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        let of_load = PhaseKind::ALL.into_iter().map(Self::Load);
        let all = of_load.chain([Self::Setup, Self::Drain, Self::Audit, Self::Done]);
        all.into_iter().find(|phase| phase.as_str() == name).unwrap_or(Self::Unknown)
    }

    /// Which of the phases after the load it is, from 1; 0 up to the end of the load.
    #[must_use]
    pub const fn closing_step(self) -> u8 {
        match self {
            Self::Setup | Self::Load(_) | Self::Unknown => 0,
            Self::Drain => 1,
            Self::Audit => 2,
            Self::Done => 3,
        }
    }

    /// Whether the load is over.
    #[must_use]
    pub const fn is_closing(self) -> bool {
        self.closing_step() > 0
    }
}

impl fmt::Display for RunPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for RunPhase {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RunPhase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&String::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_reads_back_what_it_writes() {
        let names = ["setup", "warm-up", "ramp", "steady", "cool-down", "drain", "audit", "done"];
        for name in names {
            let phase = RunPhase::parse(name);
            assert_ne!(phase, RunPhase::Unknown, "{name}");
            assert_eq!(serde_json::to_value(phase).expect("a name"), name);
            assert_eq!(serde_json::from_value::<RunPhase>(name.into()).expect("reads"), phase);
        }
        assert_eq!(serde_json::from_value::<RunPhase>("siesta".into()).expect("reads"), RunPhase::Unknown);
    }

    #[test]
    fn the_phases_of_a_load_have_the_same_names_in_scenarios() {
        for kind in PhaseKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("a name"), kind.as_str());
        }
    }
}
