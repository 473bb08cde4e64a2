//! Users placed on chat servers as the API places them, at the size of a plan. Loads are known exactly and at once
//! here; API servers know those of a registry's view, and what they placed themselves since.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::Demand;
use crate::protocol::ServerName;
use crate::server::cluster::placement::{NameHash, has_room, load_max};

/// Users that the placement is simulated with at most.
const SIMULATED_USERS_MAX: u64 = 2_000_000;

/// Groups that the number of records is simulated with.
const GROUPS: u64 = 2_000;

/// Servers of a partition's order that are worked out before anybody is placed; hardly anybody goes further.
const ORDER_AHEAD: usize = 16;

/// What the placement does at the size of the plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Placed {
    /// Users of the simulation; each stands for `users_each` of the plan.
    pub simulated_users: u64,
    /// Connections of the plan for each of them.
    pub users_each: f64,
    /// How they are spread.
    #[serde(flatten)]
    pub spread: Spread,
    /// Records in the log for one message to a group.
    pub records_per_group_message: f64,
}

/// How users are spread over servers and partitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Connections of the fullest server over the mean.
    pub fullest: f64,
    /// Partitions that a server reads: mean and most. Their share of all partitions is that of the records.
    pub partitions_per_server: (f64, u64),
    /// Servers that read a partition: mean and most.
    pub servers_per_partition: (f64, u64),
}

/// The rendezvous orders of all partitions, as far as they are worked out.
struct Orders {
    names: Vec<NameHash>,
    ahead: Vec<Vec<u32>>,
}

impl Orders {
    fn new(names: &[ServerName], partitions: u32) -> Self {
        let names: Vec<NameHash> = names.iter().map(NameHash::of).collect();
        let ahead = (0..partitions).map(|partition| {
            let weight = |server: &u32| std::cmp::Reverse(names[*server as usize].weight(u64::from(partition)));
            let mut order: Vec<u32> = (0..names.len() as u32).collect();
            if order.len() > ORDER_AHEAD {
                order.select_nth_unstable_by_key(ORDER_AHEAD, weight);
                order.truncate(ORDER_AHEAD);
            }
            order.sort_unstable_by_key(weight);
            order
        });
        let ahead = ahead.collect();
        Self { names, ahead }
    }

    /// The first of a partition's order that is fit.
    fn first(&self, partition: u32, is_fit: impl Fn(u32) -> bool) -> Option<u32> {
        let ahead = self.ahead[partition as usize].iter().copied().find(|server| is_fit(*server));
        let weight = |server: &u32| self.names[*server as usize].weight(u64::from(partition));
        ahead.or_else(|| (0..self.names.len() as u32).filter(|server| is_fit(*server)).max_by_key(weight))
    }
}

/// Servers with the users who were placed on them.
struct Servers {
    orders: Orders,
    loads: Vec<u64>,
    is_open: Vec<bool>,
    open: u64,
    /// Users on open servers.
    total: u64,
    /// Partition and server of each user.
    users: Vec<(u32, u32)>,
}

impl Servers {
    fn new(names: &[ServerName], partitions: u32) -> Self {
        Self {
            orders: Orders::new(names, partitions),
            loads: vec![0; names.len()],
            is_open: vec![true; names.len()],
            open: names.len() as u64,
            total: 0,
            users: Vec::new(),
        }
    }

    /// The server that a user of a partition is sent to.
    fn choose(&self, partition: u32) -> u32 {
        let most = load_max(self.total, self.open);
        let is_fit = |server: u32| self.is_open[server as usize] && has_room(self.loads[server as usize], most);
        self.orders.first(partition, is_fit).expect("the least-loaded has room")
    }

    fn seat(&mut self, partition: u32, server: u32) {
        self.loads[server as usize] += 1;
        self.total += 1;
        self.users.push((partition, server));
    }

    fn spread(&self) -> Spread {
        let (servers, partitions) = (self.loads.len(), self.orders.ahead.len());
        let mut are_read = vec![0_u64; (servers * partitions).div_ceil(64)];
        let (mut of_server, mut of_partition) = (vec![0_u64; servers], vec![0_u64; partitions]);
        for (partition, server) in &self.users {
            let bit = *partition as usize * servers + *server as usize;
            if are_read[bit / 64] & (1 << (bit % 64)) == 0 {
                are_read[bit / 64] |= 1 << (bit % 64);
                of_server[*server as usize] += 1;
                of_partition[*partition as usize] += 1;
            }
        }
        let most = |counts: &[u64]| counts.iter().copied().max().unwrap_or(0);
        let pairs = of_server.iter().sum::<u64>() as f64;
        Spread {
            fullest: most(&self.loads) as f64 * self.open as f64 / self.total as f64,
            partitions_per_server: (pairs / self.open as f64, most(&of_server)),
            servers_per_partition: (pairs / partitions as f64, most(&of_partition)),
        }
    }
}

fn names(servers: u64) -> Vec<ServerName> {
    (1..=servers).map(|n| format!("chat-{n}").parse().expect("a valid name")).collect()
}

/// Places the users of a demand, and finds out how many records a message to a group makes.
pub(super) fn place(demand: &Demand, servers: u64, partitions: u64) -> Placed {
    let users = (demand.connections as u64).clamp(1, SIMULATED_USERS_MAX);
    let mut rng = StdRng::seed_from_u64(1);
    let mut placed = Servers::new(&names(servers), partitions as u32);
    for _ in 0..users {
        let partition = rng.random_range(0..partitions) as u32;
        placed.seat(partition, placed.choose(partition));
    }
    // Members lie in random partitions: as many records as there are different ones.
    let mut records = 0;
    for _ in 0..GROUPS {
        let members = (0..demand.group_members).map(|_| rng.random_range(0..partitions));
        records += members.collect::<BTreeSet<_>>().len();
    }
    Placed {
        simulated_users: users,
        users_each: demand.connections / users as f64,
        spread: placed.spread(),
        records_per_group_message: records as f64 / GROUPS as f64,
    }
}

#[cfg(test)]
#[path = "simulation_tests.rs"]
mod tests;
