//! One mode, once: stack, proxy, generator, and what is held against what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chatctl::loadgen::{RunOptions, RunResult, Scenario};
use chatctl::runtime::{Tasks, clock};
use chatctl::stack::{Config, Stack};
use chatctl::telemetry::LiveSnapshot;
use tokio::sync::{Mutex, watch};

use crate::mode::{Mode, StackKind};
use crate::proxy::Proxy;

/// Longest that a run may take. One that does not end is interrupted, which is a failure.
const RUN_MAX: Duration = Duration::from_mins(2);

/// Longest that an interrupted run may take to end.
const END_MAX: Duration = Duration::from_secs(30);

/// How a run came out.
pub(crate) struct Outcome {
    pub(crate) expected: String,
    pub(crate) got: String,
    /// What the proxy did.
    pub(crate) told: String,
    /// Empty when it is as it must be.
    pub(crate) problems: Vec<String>,
    /// What the run said, for who looks into a failure.
    pub(crate) details: String,
    pub(crate) took: Duration,
}

impl Outcome {
    fn without_result(problem: String, told: String) -> Self {
        let (expected, got) = ("a verdict".to_owned(), problem.clone());
        let (problems, details) = (vec![problem], String::new());
        Self { expected, got, told, problems, details, took: Duration::ZERO }
    }

    /// Of a run that panicked; the panic's own words are on standard error.
    pub(crate) fn panicked() -> Self {
        Self::without_result("the run panicked".to_owned(), String::new())
    }
}

/// Sound stacks, each started when the first run needs it and shared by all: every run has users and conversations of its own.
#[derive(Default)]
pub(crate) struct Stacks(Mutex<BTreeMap<StackKind, Arc<Stack>>>);

impl Stacks {
    async fn get(&self, kind: StackKind) -> Arc<Stack> {
        let mut stacks = self.0.lock().await;
        if let Some(stack) = stacks.get(&kind) {
            return Arc::clone(stack);
        }
        let stack = Arc::new(Stack::start(config(kind)).await.expect("the stack starts"));
        stacks.insert(kind, Arc::clone(&stack));
        stack
    }
}

/// A small stack whose password hashes cost nothing.
fn config(kind: StackKind) -> Config {
    let mut config =
        Config { chat_servers: 2, partitions: 4, drain_timeout: Duration::from_secs(1), ..Config::default() };
    config.api.password_cost.memory_kib = 64;
    config.api.password_cost.passes = 1;
    config.api.logins_per_second = 100;
    match kind {
        StackKind::Usual => {}
        StackKind::ShortTokens => config.token_lifetime = Duration::from_secs(4),
    }
    config
}

/// Runs a mode with a seed.
pub(crate) async fn run(mode: &Mode, seed: u64, stacks: &Stacks) -> Outcome {
    let started = clock::instant();
    let stack = stacks.get(mode.stack).await;
    let proxy = Proxy::start(&stack.api_url().expect("there is an API"), mode.lie, seed);
    let text = format!("{}seed: {seed}\n", mode.scenario);
    let scenario = Scenario::parse(&text, mode.name).expect("a valid scenario");
    let ended = load(&scenario, &proxy).await;
    (mode.lie.finish)(&proxy);
    proxy.finish();
    let told = proxy.tally.text();
    let mut outcome = match ended {
        Ok((result, is_in_time)) => {
            let (expected, got) = mode.expect.row(&proxy, &result);
            let mut problems = mode.expect.problems(&proxy, &result);
            if !is_in_time {
                problems.push(format!("the run did not end within {RUN_MAX:?}"));
            }
            Outcome { expected, got, told, problems, details: details(&result), took: Duration::ZERO }
        }
        Err(problem) => Outcome::without_result(problem, told),
    };
    proxy.stop().await;
    outcome.took = started.elapsed();
    outcome
}

/// The result, and whether the run ended by itself.
async fn load(scenario: &Scenario, proxy: &Proxy) -> Result<(RunResult, bool), String> {
    let (live, _shown) = watch::channel(LiveSnapshot::default());
    let interrupt = Tasks::new();
    let options = RunOptions {
        target: proxy.url(),
        control: None,
        history: None,
        live,
        interrupt: interrupt.clone(),
        stack_threads: None,
        sources: Vec::new(),
        part: None,
    };
    let running = chatctl::loadgen::run(scenario, options);
    tokio::pin!(running);
    let text = |error: chatctl::loadgen::RunError| format!("no result: {error}");
    if let Ok(result) = tokio::time::timeout(RUN_MAX, &mut running).await {
        return Ok((result.map_err(text)?, true));
    }
    interrupt.stop();
    match tokio::time::timeout(END_MAX, running).await {
        Ok(result) => Ok((result.map_err(text)?, false)),
        Err(_) => Err(format!("the run ended neither within {RUN_MAX:?} nor within {END_MAX:?} of its interruption")),
    }
}

fn details(result: &RunResult) -> String {
    let mut text = format!("reasons: {:?}\nerrors: {:?}\n", result.reasons, result.errors);
    for violation in result.violations.iter().take(8) {
        text.push_str(&format!("violation: {violation}\n"));
    }
    text.push_str(&format!("counts: {}\n", serde_json::to_string(&result.counts).expect("plain data")));
    text
}
