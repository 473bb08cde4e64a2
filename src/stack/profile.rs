//! Stacks with a name, for `chatctl up --profile NAME` and for scenarios.

use std::path::Path;
use std::str::FromStr;

use super::config::Config;

/// What comes with the repository to start engines on this machine.
const ENGINES_COMMAND: &str = "scripts/engines";

/// A stack with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Every server in one process, on embedded engines.
    #[default]
    Embedded,
    /// Every server a process, on the real engines that `scripts/engines start` brings up.
    Engines,
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "engines" => Ok(Self::Engines),
            _ => Err(format!("unknown profile {text:?}: valid are embedded and engines")),
        }
    }
}

impl Profile {
    /// The stack's settings.
    #[must_use]
    pub fn config(self) -> Config {
        match self {
            Self::Embedded => Config::default(),
            Self::Engines => {
                let text = include_str!("../../docs/engines.yaml");
                let mut config: Config = serde_saphyr::from_str(text).expect("a test parses it");
                config.processes.enabled = true;
                let command = Path::new(ENGINES_COMMAND);
                config.processes.engines_command = command.exists().then(|| command.to_owned());
                config
            }
        }
    }
}
