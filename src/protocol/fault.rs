//! What is done to a stack on purpose, in the words of scenarios and of a supervisor's control socket: `kill chat-2`,
//! `pause redis 10s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest that a fault may last.
const LASTS_MAX: Duration = Duration::from_hours(1);

/// Something done to a server or an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A server ends at once, as by `kill -9`. A supervised one is started again.
    Kill(String),
    /// A server's clients leave, then it stops for good.
    Drain(String),
    /// A server's clients leave and it starts again; or an engine stops in good order and starts again.
    Restart(String),
    /// A server or an engine stands still, with its sockets open, and goes on.
    Pause(String, Duration),
    /// A server or an engine ends at once, and starts again after a while.
    Stop(String, Duration),
    /// No byte passes between a server and an engine for a while; their connections stay open.
    Cut {
        /// Who can't reach the engine.
        server: String,
        /// Which engine.
        engine: String,
        /// For how long.
        lasts: Duration,
    },
    /// An engine forgets everything (Redis).
    Flush(String),
    /// An engine ends at once, loses its disk and starts again with an empty one.
    Wipe(String),
    /// An engine ends after a while, and starts again with the data of now (Redis).
    Restore(String, Duration),
    /// An engine has no room for anything new for a while (Redis).
    Fill(String, Duration),
    /// An engine fails over to a copy whose data are older by a while, and back in good order: its process and its clients'
    /// connections live through that (Redis).
    FailBack(String, Duration),
    /// An engine's disk takes nothing for a while (Redis).
    FillDisk(String, Duration),
    /// A server's wall clock is off for a while: it steps, and steps back.
    Skew {
        /// Whose clock.
        server: String,
        /// Ahead of the machine's, or behind where that is negative, in ms.
        by_ms: i64,
        /// For how long.
        lasts: Duration,
    },
}

impl Fault {
    /// Time between its begin and its end; zero for those that are done in a moment.
    #[must_use]
    pub const fn lasts(&self) -> Duration {
        match self {
            Self::Kill(_) | Self::Drain(_) | Self::Restart(_) | Self::Flush(_) | Self::Wipe(_) => Duration::ZERO,
            Self::Pause(_, lasts)
            | Self::Stop(_, lasts)
            | Self::Restore(_, lasts)
            | Self::Fill(_, lasts)
            | Self::FailBack(_, lasts)
            | Self::FillDisk(_, lasts)
            | Self::Cut { lasts, .. }
            | Self::Skew { lasts, .. } => *lasts,
        }
    }

    /// Time from its begin until anything is broken; `None` where nothing ever is, so that nothing is excused by it.
    #[must_use]
    pub const fn breaks_after(&self) -> Option<Duration> {
        match self {
            Self::Skew { .. } => None,
            Self::Restore(_, lasts) | Self::FailBack(_, lasts) => Some(*lasts),
            Self::Kill(_)
            | Self::Drain(_)
            | Self::Restart(_)
            | Self::Pause(..)
            | Self::Stop(..)
            | Self::Cut { .. }
            | Self::Flush(_)
            | Self::Wipe(_)
            | Self::Fill(..)
            | Self::FillDisk(..) => Some(Duration::ZERO),
        }
    }

    /// The server or engine that it is done to.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Kill(what)
            | Self::Drain(what)
            | Self::Restart(what)
            | Self::Pause(what, _)
            | Self::Stop(what, _)
            | Self::Flush(what)
            | Self::Wipe(what)
            | Self::Restore(what, _)
            | Self::Fill(what, _)
            | Self::FailBack(what, _)
            | Self::FillDisk(what, _)
            | Self::Cut { server: what, .. }
            | Self::Skew { server: what, .. } => what,
        }
    }

    /// Whether it must not begin while the other one lasts: the end of either would end both, as they do the same to the same;
    /// or one ends or starts an engine that the other counts on.
    #[must_use]
    pub fn collides_with(&self, other: &Self) -> bool {
        let is_same = match (self, other) {
            (Self::Cut { engine, .. }, Self::Cut { engine: others, .. }) => engine_name(engine) == engine_name(others),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        };
        let in_each_others_way = (self.needs_the_engine() && (other.needs_the_engine() || other.ends_it()))
            || (self.ends_it() && other.needs_the_engine());
        engine_name(self.target()) == engine_name(other.target()) && (is_same || in_each_others_way)
    }

    /// Whether a process is ended or started by it, in a moment.
    const fn ends_it(&self) -> bool {
        matches!(self, Self::Kill(_) | Self::Restart(_))
    }

    /// Whether it decides when a process ends and starts, or what is on its disk then.
    const fn needs_the_engine(&self) -> bool {
        matches!(self, Self::Stop(..) | Self::Wipe(_) | Self::Restore(..) | Self::FailBack(..) | Self::FillDisk(..))
    }
}

/// What an engine is called here, whatever it is called elsewhere.
#[must_use]
pub fn engine_name(name: &str) -> &str {
    if name == "mysql" { "mariadb" } else { name }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |lasts: &Duration| humantime::format_duration(*lasts);
        match self {
            Self::Kill(what) => write!(f, "kill {what}"),
            Self::Drain(what) => write!(f, "drain {what}"),
            Self::Restart(what) => write!(f, "restart {what}"),
            Self::Flush(what) => write!(f, "flush {what}"),
            Self::Pause(what, lasts) => write!(f, "pause {what} {}", time(lasts)),
            Self::Stop(what, lasts) => write!(f, "stop {what} {}", time(lasts)),
            Self::Cut { server, engine, lasts } => write!(f, "cut {server} from {engine} {}", time(lasts)),
            Self::Wipe(what) => write!(f, "wipe {what}"),
            Self::Restore(what, lasts) => write!(f, "restore {what} {}", time(lasts)),
            Self::Fill(what, lasts) => write!(f, "fill {what} {}", time(lasts)),
            Self::FailBack(what, lasts) => write!(f, "fail-back {what} {}", time(lasts)),
            Self::FillDisk(what, lasts) => write!(f, "fill-disk {what} {}", time(lasts)),
            Self::Skew { server, by_ms, lasts } => {
                let (sign, by) = (if *by_ms < 0 { '-' } else { '+' }, Duration::from_millis(by_ms.unsigned_abs()));
                write!(f, "skew {server} {sign}{} {}", time(&by).to_string().replace(' ', ""), time(lasts))
            }
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let lasts = |word: &str| {
            let lasts = humantime::parse_duration(word)
                .map_err(|_| format!("fault {text:?}: {word:?} is no time: write it as 10s or 500ms"))?;
            if lasts.is_zero() || lasts > LASTS_MAX {
                return Err(format!("fault {text:?}: {word:?} is no time between 1ms and 1h"));
            }
            Ok(lasts)
        };
        Ok(match words[..] {
            ["kill", what] => Self::Kill(what.to_owned()),
            ["drain", what] => Self::Drain(what.to_owned()),
            ["restart", what] => Self::Restart(what.to_owned()),
            ["flush", what] => Self::Flush(what.to_owned()),
            ["wipe", what] => Self::Wipe(what.to_owned()),
            ["restore", what, time] => Self::Restore(what.to_owned(), lasts(time)?),
            ["fill", what, time] => Self::Fill(what.to_owned(), lasts(time)?),
            ["fail-back", what, time] => Self::FailBack(what.to_owned(), lasts(time)?),
            ["fill-disk", what, time] => Self::FillDisk(what.to_owned(), lasts(time)?),
            ["skew", server, by, time] => {
                let (sign, by) = match by.strip_prefix('-') {
                    Some(by) => (-1, by),
                    None => (1, by.strip_prefix('+').unwrap_or(by)),
                };
                let by_ms = sign * i64::try_from(lasts(by)?.as_millis()).expect("an hour fits");
                Self::Skew { server: server.to_owned(), by_ms, lasts: lasts(time)? }
            }
            ["pause", what, time] => Self::Pause(what.to_owned(), lasts(time)?),
            ["stop", what, time] => Self::Stop(what.to_owned(), lasts(time)?),
            ["cut", server, "from", engine, time] => {
                Self::Cut { server: server.to_owned(), engine: engine.to_owned(), lasts: lasts(time)? }
            }
            _ => {
                return Err(format!(
                    "unknown fault {text:?}: valid are \"kill chat-2\", \"drain chat-2\", \"restart redis\", \
                     \"pause redis 10s\", \"stop kafka 20s\", \"cut chat-1 from redis 15s\", \"flush redis\", \
                     \"restore redis 15s\", \"fail-back redis 15s\", \"fill redis 10s\", \"fill-disk redis 10s\", \
                     \"wipe kafka\", \"skew chat-1 -60s 20s\""
                ));
            }
        })
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_written_and_others_are_refused_with_the_valid_ones() {
        for text in [
            "kill chat-2",
            "restart cassandra",
            "pause redis 10s",
            "stop kafka 20s",
            "flush redis",
            "wipe kafka",
            "restore redis 15s",
            "fill redis 10s",
            "fail-back redis 15s",
            "fill-disk redis 10s",
        ] {
            assert_eq!(text.parse::<Fault>().expect(text).to_string(), text);
        }
        for saved_first in ["restore redis 15s", "fail-back redis 15s"] {
            let fault: Fault = saved_first.parse().expect("valid");
            assert_eq!(fault.breaks_after(), Some(fault.lasts()), "{saved_first}");
        }
        for (a, b, collide) in [
            ("pause redis 10s", "pause redis 1s", true),
            ("pause redis 10s", "pause kafka 10s", false),
            ("pause redis 10s", "stop redis 10s", false),
            ("skew chat-1 60s 20s", "skew chat-1 -60s 20s", true),
            ("cut chat-1 from redis 5s", "cut chat-1 from redis 9s", true),
            ("cut chat-1 from redis 5s", "cut chat-1 from kafka 5s", false),
            ("pause mysql 5s", "pause mariadb 9s", true),
            ("restore redis 5s", "fail-back redis 5s", true),
            ("fill-disk redis 5s", "restart redis", true),
            ("fill-disk redis 5s", "wipe redis", true),
            ("restore redis 5s", "stop redis 9s", true),
            ("stop redis 5s", "kill redis", true),
            ("restart chat-1", "kill chat-1", false),
            ("fill redis 5s", "kill redis", false),
        ] {
            let [a, b] = [a, b].map(|text| text.parse::<Fault>().expect(text));
            assert_eq!((a.collides_with(&b), b.collides_with(&a)), (collide, collide), "{a}, {b}");
        }
        let cut: Fault = "cut chat-1 from redis 15s".parse().expect("valid");
        assert_eq!((cut.lasts(), cut.target()), (Duration::from_secs(15), "chat-1"));
        for (text, by_ms) in
            [("skew chat-1 -90s 20s", -90_000), ("skew chat-1 +1m 20s", 60_000), ("skew chat-1 1m 20s", 60_000)]
        {
            let skew: Fault = text.parse().expect(text);
            assert!(matches!(skew, Fault::Skew { by_ms: read, .. } if read == by_ms), "{text}");
            assert_eq!(skew.breaks_after(), None);
            assert_eq!(skew.to_string().parse::<Fault>().expect("reads what it writes"), skew);
        }
        for text in [
            "kill",
            "skew chat-1 20s",
            "skew chat-1 --1s 20s",
            "skew chat-1 0s 20s",
            "wipe",
            "restore redis",
            "fill redis",
            "fill-disk redis",
            "fail-back redis",
            "explode chat-1",
            "pause redis",
            "pause redis soon",
            "stop kafka 0s",
            "cut chat-1 redis 1s",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        assert!("pause redis soon".parse::<Fault>().expect_err("no time").contains("\"soon\" is no time: write it as"));
        assert!("explode chat-1".parse::<Fault>().expect_err("unknown").contains("kill chat-2"));
    }
}
