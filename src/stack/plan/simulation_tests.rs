//! The simulation against the placement of the API, and the table of docs/scale.md.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::{ORDER_AHEAD, Orders, Servers, Spread, names, place};
use crate::backends::registry::{Role, ServerEntry};
use crate::server::cluster::placement::{LOAD_MAX_PERCENT, Placement, choose};
use crate::stack::plan::tests::demand;

/// A rule of placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The first server of the order unless it is over 10 % above the least-loaded, then that one: as it was.
    HomeOrLeast,
    /// The one of the API.
    BoundedLoads,
}

/// A simulation by one of the rules.
struct Scene {
    servers: Servers,
    rule: Rule,
    /// The open servers by load.
    by_load: BTreeSet<(u64, u32)>,
}

/// What a fail-over did.
struct FailOver {
    /// Users whose server died.
    moved: u64,
    /// Of those: who found a place on the first server of their partition's order that was left.
    at_first: u64,
}

impl Scene {
    fn new(rule: Rule, servers: u64, partitions: u32) -> Self {
        let by_load = (0..servers as u32).map(|server| (0, server)).collect();
        Self { servers: Servers::new(&names(servers), partitions), rule, by_load }
    }

    fn first_open(&self, partition: u32) -> u32 {
        let is_open = |server: u32| self.servers.is_open[server as usize];
        self.servers.orders.first(partition, is_open).expect("one is open")
    }

    fn place(&mut self, partition: u32) -> u32 {
        let server = match self.rule {
            Rule::BoundedLoads => self.servers.choose(partition),
            Rule::HomeOrLeast => {
                let home = self.first_open(partition);
                let (least_load, least) = *self.by_load.first().expect("one is open");
                if self.servers.loads[home as usize] * 10 > least_load * 11 { least } else { home }
            }
        };
        let load = self.servers.loads[server as usize];
        self.by_load.remove(&(load, server));
        self.by_load.insert((load + 1, server));
        self.servers.seat(partition, server);
        server
    }

    fn fill(&mut self, users: u64, rng: &mut StdRng) {
        let partitions = self.servers.orders.ahead.len() as u32;
        for _ in 0..users {
            self.place(rng.random_range(0..partitions));
        }
    }

    /// Some servers die at once; their users come back in any order.
    fn lose(&mut self, dead: u64, rng: &mut StdRng) -> FailOver {
        let mut all: Vec<u32> = (0..self.servers.loads.len() as u32).collect();
        all.shuffle(rng);
        for server in &all[..dead as usize] {
            let load = &mut self.servers.loads[*server as usize];
            self.by_load.remove(&(*load, *server));
            self.servers.total -= *load;
            *load = 0;
            self.servers.is_open[*server as usize] = false;
            self.servers.open -= 1;
        }
        let is_open = &self.servers.is_open;
        let users = std::mem::take(&mut self.servers.users);
        let (stay, mut moved): (Vec<_>, Vec<_>) = users.into_iter().partition(|(_, server)| is_open[*server as usize]);
        self.servers.users = stay;
        moved.shuffle(rng);
        let mut at_first = 0;
        for (partition, _) in &moved {
            let first = self.first_open(*partition);
            at_first += u64::from(self.place(*partition) == first);
        }
        FailOver { moved: moved.len() as u64, at_first }
    }
}

#[test]
fn the_simulation_picks_as_the_api_does() {
    let mut rng = StdRng::seed_from_u64(7);
    for servers in [1_u64, 2, 3, ORDER_AHEAD as u64 + 1, 60] {
        let names = names(servers);
        let mut simulated = Servers::new(&names, 32);
        for _ in 0..40 {
            // From nobody to far apart, so that many a server is full.
            let most = [1, 10, 1_000, 1_000_000][rng.random_range(0..4_usize)];
            simulated.loads = (0..servers).map(|_| rng.random_range(0..most)).collect();
            simulated.is_open = (0..servers).map(|n| n == 0 || rng.random_range(0..4_u32) > 0).collect();
            let entry = |n: usize| ServerEntry {
                name: names[n].clone(),
                role: Role::Chat,
                address: "127.0.0.1:1".parse().expect("valid"),
                peer: None,
                load: simulated.loads[n],
                seats: 0,
                draining: !simulated.is_open[n],
                epoch: 1,
            };
            let entries: Vec<ServerEntry> = (0..servers as usize).map(entry).collect();
            let open = || entries.iter().filter(|s| !s.draining);
            (simulated.open, simulated.total) = (open().count() as u64, open().map(|s| s.load).sum());
            for partition in 0..32 {
                let chosen = choose(Placement::Partition, &entries, partition, |s| s.load).expect("one is open");
                assert_eq!(names[simulated.choose(partition) as usize], chosen.name, "{:?}", simulated.loads);
            }
        }
    }
}

#[test]
fn an_order_ahead_is_the_beginning_of_the_whole_one() {
    let names = names(40);
    let orders = Orders::new(&names, 8);
    for partition in 0..8 {
        let mut left: Vec<u32> = (0..40).collect();
        for ahead in &orders.ahead[partition as usize] {
            let first = orders.first(partition, |server| left.contains(&server));
            assert_eq!(first, Some(*ahead));
            left.retain(|server| server != ahead);
        }
        // And past it, to the last.
        while let Some(next) = orders.first(partition, |server| left.contains(&server)) {
            left.retain(|server| *server != next);
        }
        assert!(left.is_empty());
    }
}

#[test]
fn the_fullest_is_within_the_bound_and_few_servers_read_a_partition() {
    let placed = place(&demand(200_000.0), 20, 256);
    let bound = LOAD_MAX_PERCENT as f64 / 100.0 + 0.01;
    assert!((1.0..bound).contains(&placed.spread.fullest), "{placed:?}");
    assert!((1.0..3.0).contains(&placed.spread.servers_per_partition.0), "{placed:?}");
    // The old rule had half of the servers read a partition.
    let mut old = Scene::new(Rule::HomeOrLeast, 20, 256);
    old.fill(200_000, &mut StdRng::seed_from_u64(1));
    assert!(old.servers.spread().servers_per_partition.0 > 2.0 * placed.spread.servers_per_partition.0);
    // Fifty members in 256 partitions: 256 (1 - (255/256)^50).
    assert!((placed.records_per_group_message - 45.5).abs() < 0.5, "{placed:?}");
}

#[test]
fn after_a_fail_over_nobody_else_has_moved_and_the_bound_holds() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut scene = Scene::new(Rule::BoundedLoads, 50, 512);
    scene.fill(50_000, &mut rng);
    let before = scene.servers.loads.clone();
    let done = scene.lose(5, &mut rng);
    let closed = |n: &usize| !scene.servers.is_open[*n];
    assert_eq!(done.moved, (0..50).filter(closed).map(|n| before[n]).sum::<u64>());
    assert!((0..50).filter(|n| !closed(n)).all(|n| scene.servers.loads[n] >= before[n]));
    assert_eq!((scene.servers.total, scene.servers.open), (50_000, 45));
    assert!(done.at_first * 2 > done.moved && done.at_first <= done.moved, "{} of {}", done.at_first, done.moved);
    let spread = scene.servers.spread();
    assert!(spread.fullest < LOAD_MAX_PERCENT as f64 / 100.0 + 0.01, "{spread:?}");
}

#[test]
#[ignore = "prints the tables of docs/scale.md: cargo test --release --lib plan::simulation::tests::table -- --ignored --nocapture"]
#[expect(clippy::print_stdout, reason = "tables for a document")]
fn table() {
    const USERS: u64 = 5_000_000;
    /// Seconds within which those whose server died are back, and API servers that place them.
    const WITHIN_S: [u64; 3] = [10, 30, 60];
    const API_SERVERS: [u64; 2] = [10, 50];
    let (mut out, mut rates) = (String::new(), String::new());
    for (servers, partitions) in [(100, 256), (100, 1_024), (1_000, 1_024), (1_000, 10_000)] {
        for rule in [Rule::HomeOrLeast, Rule::BoundedLoads] {
            let name = if rule == Rule::HomeOrLeast { "old" } else { "bounded" };
            let mut rng = StdRng::seed_from_u64(1);
            let mut scene = Scene::new(rule, servers, partitions);
            scene.fill(USERS, &mut rng);
            let mut row = |when: &str, s: &Spread, moved: &str| {
                let share = |count: f64| count * 100.0 / f64::from(partitions);
                let (mean, most) = s.partitions_per_server;
                let _ = writeln!(
                    out,
                    "| {servers} / {partitions} | {name} | {when} | {:.2} %, {:.2} % | {mean:.1}, {most} | {:.2}, {} | {:.2} | {moved} |",
                    share(mean),
                    share(most as f64),
                    s.servers_per_partition.0,
                    s.servers_per_partition.1,
                    s.fullest
                );
            };
            row("full", &scene.servers.spread(), "-");
            let done = scene.lose(servers / 10, &mut rng);
            let first = done.at_first as f64 * 100.0 / done.moved as f64;
            row("a tenth died", &scene.servers.spread(), &format!("{}, {first:.0} %", done.moved));
            if rule == Rule::BoundedLoads && partitions == 10_000 {
                for within in WITHIN_S {
                    let each = API_SERVERS.map(|api| (done.moved / within / api).to_string());
                    let _ = writeln!(rates, "| {within} s | {} | {} |", done.moved / within, each.join(" | "));
                }
            }
        }
    }
    println!("{out}\n{rates}");
}
