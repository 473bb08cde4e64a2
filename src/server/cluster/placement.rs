//! Which chat server a user is sent to.

use serde::{Deserialize, Serialize};

use crate::backends::registry::ServerEntry;
use crate::protocol::ServerName;

/// How the API picks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// The server that the user's inbox partition hashes to, unless it has over 10 % more load than the least-loaded:
    /// so one or two servers read a partition.
    #[default]
    Partition,
    /// The least-loaded, and nothing else.
    LeastLoaded,
}

/// Picks a server for a user of an inbox partition. `load` is the server's load as the caller knows it best.
#[must_use]
pub fn choose(
    placement: Placement,
    servers: &[ServerEntry],
    partition: u32,
    load: impl Fn(&ServerEntry) -> u64,
) -> Option<&ServerEntry> {
    let open = || servers.iter().filter(|s| !s.draining);
    let least = open().min_by_key(|s| (load(s), &s.name))?;
    if placement == Placement::LeastLoaded {
        return Some(least);
    }
    let home = open().max_by_key(|s| rendezvous(&s.name, u64::from(partition)))?;
    // load > least * 1.1, in whole numbers.
    let is_overloaded = load(home) * 10 > load(least) * 11;
    Some(if is_overloaded { least } else { home })
}

/// Weight of a server for a key; the highest wins. FNV-1a over name and key, finished as in `splitmix64`. Source:
/// Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
#[must_use]
pub fn rendezvous(server: &ServerName, key: u64) -> u64 {
    let bytes = server.as_str().bytes().chain(key.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::registry::Role;

    fn server(name: &str, load: u64) -> ServerEntry {
        ServerEntry {
            name: name.parse().expect("valid"),
            role: Role::Chat,
            address: "127.0.0.1:1".parse().expect("valid"),
            peer: None,
            load,
            draining: false,
            epoch: 1,
        }
    }

    fn pick(placement: Placement, servers: &[ServerEntry], partition: u32) -> Option<&str> {
        choose(placement, servers, partition, |s| s.load).map(|s| s.name.as_str())
    }

    #[test]
    fn a_partition_has_a_home_that_does_not_depend_on_the_order() {
        let mut servers = vec![server("chat-1", 100), server("chat-2", 100), server("chat-3", 100)];
        let homes: Vec<_> = (0..64).map(|p| pick(Placement::Partition, &servers, p).map(str::to_owned)).collect();
        servers.reverse();
        let again: Vec<_> = (0..64).map(|p| pick(Placement::Partition, &servers, p).map(str::to_owned)).collect();
        assert_eq!(homes, again);
        for name in ["chat-1", "chat-2", "chat-3"] {
            let share = homes.iter().flatten().filter(|h| *h == name).count();
            assert!((10..35).contains(&share), "{name} has {share} of 64");
        }
    }

    #[test]
    fn a_home_with_over_ten_percent_more_load_is_passed_over() {
        let partition = (0..64)
            .find(|p| pick(Placement::Partition, &[server("chat-1", 0), server("chat-2", 0)], *p) == Some("chat-1"))
            .expect("there is one");
        let pick = |a, b| {
            let servers = [server("chat-1", a), server("chat-2", b)];
            pick(Placement::Partition, &servers, partition).map(str::to_owned)
        };
        assert_eq!(pick(110, 100).as_deref(), Some("chat-1"));
        assert_eq!(pick(111, 100).as_deref(), Some("chat-2"));
    }

    #[test]
    fn a_draining_server_gets_nobody() {
        let mut servers = [server("chat-1", 0), server("chat-2", 1_000)];
        servers[0].draining = true;
        assert_eq!(pick(Placement::LeastLoaded, &servers, 0), Some("chat-2"));
        servers[1].draining = true;
        assert_eq!(pick(Placement::LeastLoaded, &servers, 0), None);
    }
}
