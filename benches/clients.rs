//! Memory of a simulated user with ten conversations: `cargo bench --bench clients`.
//!
//! Starts itself as a stack (`--stack`) and twice as a generator (`--load USERS URL`) whose users connect and stay. What the
//! second has more than the first, divided by the users that it has more, is what a user costs: device, socket, world and
//! ledger, without what a generator costs anyway.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use chatctl::loadgen::{self, RunOptions, Scenario};
use chatctl::runtime::{Tasks, machine};
use chatctl::server::access::auth::PasswordCost;
use chatctl::stack::{Config, Stack};
use chatctl::telemetry::LiveSnapshot;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FEW: u64 = 2_000;
const MANY: u64 = 10_000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("starts");
    let _ = machine::raise_open_files();
    match args[1..] {
        ["--stack", ..] => runtime.block_on(stack()),
        ["--load", users, url, ..] => {
            // As `chatctl worker` does; with huge pages the answer would come in steps of 2 MiB, 262 bytes of each user.
            machine::avoid_huge_pages();
            runtime.block_on(load(users, url));
        }
        _ => measure(),
    }
}

fn measure() {
    let (mut stack, url) = start(&["--stack"]);
    let resident = |users: u64| {
        let (mut load, answer) = start(&["--load", &users.to_string(), &url]);
        assert!(load.wait().expect("ends").success(), "the load of {users} users failed");
        let bytes: u64 = answer.parse().expect("a number");
        println!("{users:>8} users {:>8.1} MiB resident", bytes as f64 / 1_048_576.0);
        bytes
    };
    let (few, many) = (resident(FEW), resident(MANY));
    println!("{} bytes per simulated user with ten conversations", many.saturating_sub(few) / (MANY - FEW));
    // It ends when its standard input does.
    drop(stack.stdin.take());
    stack.wait().expect("ends");
}

/// Starts this program again; returns the first line that it prints.
fn start(args: &[&str]) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().expect("has a path"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let stdout = child.stdout.take().expect("piped");
    let line = BufReader::new(stdout).lines().next().expect("answers").expect("text");
    (child, line)
}

async fn stack() {
    let mut config = Config::default();
    // Making thousands of accounts is not what is measured.
    config.api.password_cost = PasswordCost { memory_kib: 64, passes: 1 };
    let stack = Stack::start(config).await.expect("starts");
    println!("{}", stack.api_url().expect("has an API"));
    let wait = || std::io::stdin().lines().count();
    Tasks::block(wait).await.expect("reads");
    stack.stop().await;
}

async fn load(users: &str, url: &str) {
    let connect_s = users.parse::<u64>().expect("a number") / 500;
    let text = format!(
        "{{name: memory, population: {{users: {users}, direct_per_user: 10}}, behaviors: {{lurker: 1}}, \
         connect_over: {connect_s}s, phases: [{{phase: steady, duration: {}s}}]}}",
        connect_s + 8
    );
    let scenario = Scenario::parse(&text, "memory").expect("valid");
    let options = RunOptions {
        target: url.to_owned(),
        control: None,
        history: None,
        live: tokio::sync::watch::Sender::new(LiveSnapshot::default()),
        interrupt: Tasks::new(),
        stack_threads: None,
        sources: Vec::new(),
        part: None,
    };
    let result = loadgen::run(&scenario, options).await.expect("runs");
    assert_eq!(result.counts.never_connected, 0, "{:?}", result.reasons);
    println!("{}", result.generator.resident_bytes);
}
