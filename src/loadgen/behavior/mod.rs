//! What simulated users do: one file per behaviour, which fills in a [`Spec`].
//!
//! A new behaviour is a file here, its `mod` line, and a line in the table below.

mod flapper;
mod group_talker;
mod half_open;
mod lurker;
mod one_to_one;
mod presence_only;
mod slow_reader;
mod spec;

use serde::{Deserialize, Serialize};

pub use self::flapper::Flapper;
pub use self::spec::{Attendance, Leave, Reading, Spec, Talks};

/// Makes the enum, the list of all its values and their specs from one table, so that a line can't be left out.
macro_rules! behaviors {
    ($($name:ident => $module:ident,)+) => {
        /// What a user does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Behavior {
            $(#[doc = concat!("See `behavior/", stringify!($module), ".rs`.")] $name,)+
        }

        impl Behavior {
            /// All behaviours, in the order in which their weights are drawn from.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// What it does.
            #[must_use]
            pub const fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$name => &$module::SPEC,)+
                }
            }
        }
    };
}

// The order decides what a seed draws: new lines go to the end.
behaviors! {
    OneToOne => one_to_one,
    GroupTalker => group_talker,
    Lurker => lurker,
    Flapper => flapper,
    PresenceOnly => presence_only,
    HalfOpen => half_open,
    SlowReader => slow_reader,
}

impl Behavior {
    /// The name in a scenario.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// The names of all behaviours whose spec is of a kind, for messages.
    pub(super) fn names(is_wanted: impl Fn(&Spec) -> bool) -> Vec<&'static str> {
        Self::ALL.iter().map(|behavior| behavior.spec()).filter(|spec| is_wanted(spec)).map(|spec| spec.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::api::ConversationKind::{Direct, Group};

    #[test]
    fn the_name_of_a_spec_is_the_one_in_scenarios() {
        for behavior in Behavior::ALL {
            assert_eq!(serde_json::to_value(behavior).expect("a name"), behavior.name());
        }
    }

    #[test]
    fn the_document_lists_every_behaviour() {
        let doc = include_str!("../../../docs/scenarios.md");
        for spec in Behavior::ALL.iter().map(|behavior| behavior.spec()) {
            let row = format!("| `{}` | {} |", spec.name, spec.about);
            assert!(doc.contains(&row), "docs/scenarios.md lacks the row {row}");
        }
    }

    #[test]
    fn who_talks_does_so_in_the_conversations_of_its_kind() {
        let talkers = |kind| Behavior::names(|spec| spec.talks.talks_in(kind));
        assert_eq!(talkers(Direct), ["one-to-one", "flapper"]);
        assert_eq!(talkers(Group), ["group-talker", "flapper"]);
    }
}
