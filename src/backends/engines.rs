//! Which engine is behind each port: `embedded`, or an address whose scheme picks it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::without_password;

/// An engine, by its address.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Engine {
    /// In the data folder of this process.
    #[default]
    Embedded,
    /// At an address such as `redis://127.0.0.1:6379/`.
    At(String),
}

impl Engine {
    /// The address, when it is not embedded.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        match self {
            Self::Embedded => None,
            Self::At(address) => Some(address),
        }
    }
}

/// Never shows a password.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::At(address) => f.write_str(&without_password(address)),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            _ if text.contains("://") => Ok(Self::At(text.to_owned())),
            _ => Err(format!("{text:?} is no engine: valid are \"embedded\" and addresses such as redis://HOST:PORT/")),
        }
    }
}

impl Serialize for Engine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Embedded => serializer.serialize_str("embedded"),
            Self::At(address) => serializer.serialize_str(address),
        }
    }
}

impl<'de> Deserialize<'de> for Engine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One engine for each port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engines {
    /// Inboxes, presence updates, channels: `kafka://`.
    pub log: Engine,
    /// Stored conversations: `cassandra://`.
    pub messages: Engine,
    /// Ids and repeats: `redis://`.
    pub sequence: Engine,
    /// Live connections: `redis://`.
    pub sessions: Engine,
    /// Last beats: `redis://`.
    pub presence: Engine,
    /// Live servers: `zookeeper://` or `etcd://`.
    pub registry: Engine,
    /// Users and groups: `postgres://` or `mysql://`.
    pub directory: Engine,
}

impl Engines {
    /// Every port with its engine and the schemes that it takes.
    #[must_use]
    pub const fn all(&self) -> [(&'static str, &Engine, &'static [&'static str]); 7] {
        [
            ("log", &self.log, &["kafka"]),
            ("messages", &self.messages, &["cassandra"]),
            ("sequence", &self.sequence, &["redis"]),
            ("sessions", &self.sessions, &["redis"]),
            ("presence", &self.presence, &["redis"]),
            ("registry", &self.registry, &["zookeeper", "etcd"]),
            ("directory", &self.directory, &["postgres", "postgresql", "mysql", "mariadb"]),
        ]
    }

    /// Checks that each address has a scheme of its port.
    ///
    /// # Errors
    /// Names the setting and its valid values.
    pub fn check(&self) -> Result<(), String> {
        for (port, engine, schemes) in self.all() {
            let Some((scheme, _)) = engine.address().and_then(|address| address.split_once("://")) else { continue };
            if !schemes.contains(&scheme) {
                let valid = schemes.iter().map(|s| format!("{s}://…")).collect::<Vec<_>>().join(", ");
                return Err(format!("engines.{port} is {engine}: valid are embedded, {valid}"));
            }
        }
        Ok(())
    }

    /// True when every port has an engine outside of this process: then servers in other processes can share them.
    #[must_use]
    pub fn are_shared(&self) -> bool {
        self.all().iter().all(|(_, engine, _)| engine.address().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_of_another_port_is_refused_with_the_valid_ones() {
        let engines = Engines { log: "redis://u:secret@h/".parse().expect("an address"), ..Engines::default() };
        let error = engines.check().expect_err("refused");
        assert!(error.contains("engines.log is redis://h/") && error.contains("kafka://"), "{error}");
        assert_eq!(Engines::default().check(), Ok(()));
        assert!("kafka".parse::<Engine>().is_err());
    }
}
