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

impl Engine {
    /// `redis`, `kafka`, `postgres`, …: what the server at the address is called here, whatever alias its scheme has.
    #[must_use]
    pub fn kind(&self) -> Option<&str> {
        let (scheme, _) = self.address()?.split_once("://")?;
        Some(match scheme {
            "postgresql" => "postgres",
            "mysql" => "mariadb",
            "s3+http" => "s3",
            "redis+sentinel" => "redis",
            scheme => scheme,
        })
    }

    /// Whether the servers at the address only tell where the engine is.
    #[must_use]
    pub fn is_by_sentinels(&self) -> bool {
        self.address().is_some_and(|address| address.starts_with("redis+sentinel:"))
    }

    /// Where an address says `host:port,host:port`: from the scheme or the account up to the path.
    fn hosts_range(&self) -> Option<std::ops::Range<usize>> {
        let address = self.address()?;
        let begin = address.find("://")? + 3;
        // A secret may hold anything, slashes too.
        let begin = address[begin..].rfind('@').map_or(begin, |at| begin + at + 1);
        let end = address[begin..].find(['/', '?']).map_or(address.len(), |at| begin + at);
        Some(begin..end)
    }

    /// The `host:port` of each server of the address.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        let range = self.hosts_range().unwrap_or_default();
        self.address().unwrap_or_default()[range].split(',').map(str::to_owned).collect()
    }

    /// The same engine at another `host:port`.
    #[must_use]
    pub fn with_host(&self, host: &str) -> Self {
        match (self.address(), self.hosts_range()) {
            (Some(address), Some(range)) => {
                let mut address = address.to_owned();
                address.replace_range(range, host);
                Self::At(address)
            }
            _ => self.clone(),
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
    /// Stored conversations: `cassandra://` or `hbase://`.
    pub messages: Engine,
    /// Ids and repeats: `redis://`, or `redis+sentinel://` where sentinels name the master.
    pub sequence: Engine,
    /// Live connections: the same.
    pub sessions: Engine,
    /// Last beats: the same.
    pub presence: Engine,
    /// Live servers: `zookeeper://` or `etcd://`.
    pub registry: Engine,
    /// Users and groups: `postgres://` or `mysql://`.
    pub directory: Engine,
    /// Pictures, films, documents: `s3://`, or `s3+http://` without TLS.
    pub media: Engine,
}

impl Engines {
    /// TCP ports of the engines that are not embedded.
    #[must_use]
    pub fn tcp_ports(&self) -> Vec<u16> {
        let hosts =
            self.all().into_iter().filter(|(_, engine, _)| engine.address().is_some()).flat_map(|e| e.1.hosts());
        let mut ports: Vec<u16> = hosts.filter_map(|host| host.rsplit_once(':')?.1.parse().ok()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Every port with its engine and the schemes that it takes.
    #[must_use]
    pub const fn all(&self) -> [(&'static str, &Engine, &'static [&'static str]); 8] {
        [
            ("log", &self.log, &["kafka"]),
            ("messages", &self.messages, &["cassandra", "hbase"]),
            ("sequence", &self.sequence, &["redis", "redis+sentinel"]),
            ("sessions", &self.sessions, &["redis", "redis+sentinel"]),
            ("presence", &self.presence, &["redis", "redis+sentinel"]),
            ("registry", &self.registry, &["zookeeper", "etcd"]),
            ("directory", &self.directory, &["postgres", "postgresql", "mysql", "mariadb"]),
            ("media", &self.media, &["s3", "s3+http"]),
        ]
    }

    /// Every port's engine, to be changed.
    pub fn all_mut(&mut self) -> [&mut Engine; 8] {
        [
            &mut self.log,
            &mut self.messages,
            &mut self.sequence,
            &mut self.sessions,
            &mut self.presence,
            &mut self.registry,
            &mut self.directory,
            &mut self.media,
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

    /// A port whose engine servers in other processes can't share, if there is one: an embedded one, but for media, whose folder
    /// any process of this machine may use.
    #[must_use]
    pub fn not_shared(&self) -> Option<&'static str> {
        let is_alone = |port: &str, engine: &Engine| engine.address().is_none() && port != "media";
        self.all().into_iter().find(|(port, engine, _)| is_alone(port, engine)).map(|(port, ..)| port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_and_replaced_and_nothing_else() {
        let engine = |text: &str| text.parse::<Engine>().expect("an address");
        let sql = engine("postgres://user:p@ss@db:5432/chat");
        assert_eq!(sql.hosts(), ["db:5432"]);
        assert_eq!(sql.with_host("h:1").address(), Some("postgres://user:p@ss@h:1/chat"));
        let s3 = engine("s3+http://key:se/cr@t@s:9000/bucket");
        assert_eq!((s3.hosts(), s3.kind()), (vec!["s:9000".to_owned()], Some("s3")));
        let kafka = engine("kafka://a:1,b:2");
        assert_eq!((kafka.hosts(), kafka.kind()), (vec!["a:1".to_owned(), "b:2".to_owned()], Some("kafka")));
        assert_eq!(kafka.with_host("h:1").address(), Some("kafka://h:1"));
        let redis = engine("redis+sentinel://u:p@ss@a:1,b:2/chat/0");
        assert_eq!((redis.hosts(), redis.kind()), (vec!["a:1".to_owned(), "b:2".to_owned()], Some("redis")));
        assert_eq!(redis.to_string(), "redis+sentinel://a:1,b:2/chat/0");
        assert!(redis.is_by_sentinels() && !sql.is_by_sentinels());
        assert_eq!(Engine::Embedded.with_host("h:1"), Engine::Embedded);
    }

    #[test]
    fn a_scheme_of_another_port_is_refused_with_the_valid_ones() {
        let engines = Engines { log: "redis://u:secret@h/".parse().expect("an address"), ..Engines::default() };
        let error = engines.check().expect_err("refused");
        assert!(error.contains("engines.log is redis://h/") && error.contains("kafka://"), "{error}");
        assert_eq!(Engines::default().check(), Ok(()));
        assert!("kafka".parse::<Engine>().is_err());
    }
}
