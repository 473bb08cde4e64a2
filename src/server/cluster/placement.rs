//! Which chat server a user is sent to.

use serde::{Deserialize, Serialize};

use crate::backends::registry::ServerEntry;
use crate::protocol::ServerName;

/// Load of a server that is still given users, in percent of the mean: a lower bound moves more users from the first
/// server of their partition's order, a higher one makes the fullest server fuller. Source: Mirrokni, Thorup and
/// Zadimoghaddam, "Consistent hashing with bounded loads", 2016.
pub const LOAD_MAX_PERCENT: u64 = 125;

/// Users above that. A server's load is news to the registry when it differs by more than so many, and where the mean
/// is a few, a quarter of it says nothing.
pub const LOAD_SLACK: u64 = 8;

/// How the API picks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Consistent hashing with bounded loads: the first server in the rendezvous order of the user's inbox partition
    /// that has room, which is at most 1.25 times the mean load and a few, and a seat. So few servers read a partition.
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
    // Each load is asked for once: it may change meanwhile, and the mean is that of the loads that are compared with
    // it.
    let open: Vec<(&ServerEntry, u64)> = servers.iter().filter(|s| !s.draining).map(|s| (s, load(s))).collect();
    let chosen = match placement {
        Placement::LeastLoaded => open.iter().min_by_key(|(server, load)| (*load, &server.name)),
        Placement::Partition => {
            let total = open.iter().fold(0_u64, |sum, (_, load)| sum.saturating_add(*load));
            let most = load_max(total, open.len() as u64);
            // The first in the order of those with room is the one with the highest weight of them.
            let has_seat = |server: &ServerEntry, load| server.seats == 0 || load < server.seats;
            let with_room = open.iter().filter(|(server, load)| has_room(*load, most) && has_seat(server, *load));
            let first = with_room.max_by_key(|(server, _)| rendezvous(&server.name, u64::from(partition)));
            // Where all are full the least-loaded may have had somebody leave.
            first.or_else(|| open.iter().min_by_key(|(server, load)| (*load, &server.name)))
        }
    };
    chosen.map(|(server, _)| *server)
}

/// The load that a server has at most after it got a user, where `servers` have `total` before. The new user counts.
/// The least-loaded server is always below.
#[must_use]
pub const fn load_max(total: u64, servers: u64) -> u64 {
    let all = (total.saturating_add(1) as u128) * LOAD_MAX_PERCENT as u128;
    let each = all.div_ceil(if servers == 0 { 1 } else { servers } as u128 * 100);
    let each = if each > u64::MAX as u128 { u64::MAX } else { each as u64 };
    each.saturating_add(LOAD_SLACK)
}

/// True where a server of this load may get one more user.
#[must_use]
pub const fn has_room(load: u64, most: u64) -> bool {
    load < most
}

/// Weight of a server for a key; the highest wins. FNV-1a over name and key, finished as in `splitmix64`. Source:
/// Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
#[must_use]
pub fn rendezvous(server: &ServerName, key: u64) -> u64 {
    NameHash::of(server).weight(key)
}

/// The part of a weight that the server's name makes: for who asks for the weights of many keys.
#[derive(Debug, Clone, Copy)]
pub struct NameHash(u64);

impl NameHash {
    /// That of a server.
    #[must_use]
    pub fn of(server: &ServerName) -> Self {
        Self(fnv(0xcbf2_9ce4_8422_2325, server.as_str().bytes()))
    }

    /// The server's weight for a key, as [`rendezvous`] has it.
    #[must_use]
    pub fn weight(self, key: u64) -> u64 {
        let hash = fnv(self.0, key.to_be_bytes());
        let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

fn fnv(hash: u64, bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(hash, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
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
            seats: 0,
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

    /// A partition whose order is the one that is asked for, of servers without load.
    fn partition_of_order(names: &[&str]) -> u32 {
        let is_that = |partition: &u32| {
            let mut order: Vec<ServerEntry> = names.iter().map(|name| server(name, 0)).collect();
            order.sort_by_key(|s| std::cmp::Reverse(rendezvous(&s.name, u64::from(*partition))));
            order.iter().map(|s| s.name.as_str()).eq(names.iter().copied())
        };
        (0..1_000).find(is_that).expect("there is one")
    }

    #[test]
    fn a_server_gets_users_up_to_a_quarter_over_the_mean_and_a_few() {
        let partition = partition_of_order(&["chat-2", "chat-3", "chat-1"]);
        let pick = |second: u64| {
            let servers = [server("chat-1", 0), server("chat-2", second), server("chat-3", 1_500)];
            pick(Placement::Partition, &servers, partition).map(str::to_owned)
        };
        // 2,586 users with the new one on three servers: 862 each, a quarter more are 1,078, and eight.
        assert_eq!(pick(1_085).as_deref(), Some("chat-2"));
        // The next of the order is full, too; the least-loaded never is.
        assert_eq!(pick(1_086).as_deref(), Some("chat-1"));
    }

    #[test]
    fn who_finds_the_first_full_goes_to_the_next_of_the_order_not_to_the_least_loaded() {
        let partition = partition_of_order(&["chat-1", "chat-3", "chat-2"]);
        let servers = [server("chat-1", 2_000), server("chat-2", 900), server("chat-3", 1_000)];
        assert_eq!(pick(Placement::Partition, &servers, partition), Some("chat-3"));
        assert_eq!(pick(Placement::LeastLoaded, &servers, partition), Some("chat-2"));
    }

    #[test]
    fn a_full_server_that_drains_makes_no_room_at_others() {
        let partition = partition_of_order(&["chat-1", "chat-2", "chat-3"]);
        let mut servers = [server("chat-1", 200), server("chat-2", 100), server("chat-3", 1_000_000)];
        servers[2].draining = true;
        // The mean is that of the first two.
        assert_eq!(pick(Placement::Partition, &servers, partition), Some("chat-2"));
    }

    #[test]
    fn one_of_the_servers_always_has_room_and_the_first_users_stay_at_home() {
        for loads in [vec![0], vec![7, 7, 7], vec![u64::MAX, u64::MAX], vec![0, 1_000_000, 1_000_000]] {
            let most = load_max(loads.iter().fold(0, |sum: u64, load| sum.saturating_add(*load)), loads.len() as u64);
            let least = loads.iter().min().copied().expect("some");
            assert!(has_room(least, most) || least == u64::MAX, "{loads:?}: {most}");
        }
        assert_eq!(load_max(0, 100), 1 + LOAD_SLACK);
        assert_eq!(load_max(99, 1), 125 + LOAD_SLACK);
    }

    #[test]
    fn a_server_without_a_seat_gets_nobody_while_others_have_one() {
        let mut servers = [server("chat-1", 100), server("chat-2", 70)];
        let home = (0..64).find(|p| pick(Placement::Partition, &servers, *p) == Some("chat-1")).expect("there is one");
        for server in &mut servers {
            server.seats = 100;
        }
        assert_eq!(pick(Placement::Partition, &servers, home), Some("chat-2"));
        servers[1].load = 100;
        assert!(pick(Placement::Partition, &servers, home).is_some(), "somebody may have left meanwhile");
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
