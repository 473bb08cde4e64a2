//! What `cargo test` wants of a test binary: a filter, a list, a line per test, a summary. Runs mostly wait, so several run at a
//! time, the longest first; and there is a table at the end.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::args::{Args, FAILED};
use crate::mode::Mode;
use crate::modes;
use crate::run::{Outcome, Stacks, run};

/// Runs at a time, where `--test-threads` does not say.
const AT_ONCE: usize = 8;

/// One run of a mode.
struct Test {
    name: String,
    mode: &'static Mode,
    seed: u64,
}

fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for mode in modes::all() {
        if mode.seeds == 1 {
            tests.push(Test { name: mode.name.to_owned(), mode, seed: 11 });
        }
        let seeds = (1..=mode.seeds).filter(|_| mode.seeds > 1);
        tests.extend(seeds.map(|seed| Test { name: format!("{}::seed_{seed:02}", mode.name), mode, seed }));
    }
    tests.sort_by_key(|test| std::cmp::Reverse(test.mode.takes_s));
    tests
}

pub(crate) fn run_all(runtime: &Handle) -> ExitCode {
    let args = Args::read();
    let (wanted, others): (Vec<Test>, Vec<Test>) = tests().into_iter().partition(|test| args.wants(&test.name));
    if args.is_list {
        for test in &wanted {
            println!("{}: test", test.name);
        }
        println!("\n{} tests, 0 benchmarks", wanted.len());
        return ExitCode::SUCCESS;
    }
    let started = chatctl::runtime::clock::instant();
    println!("\nrunning {} tests", wanted.len());
    let (count, at_once) = (wanted.len(), args.at_once.unwrap_or(AT_ONCE).max(1));
    let outcomes = outcomes(wanted, at_once, runtime);
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| !outcome.problems.is_empty()).collect();
    if !failed.is_empty() {
        println!("\nfailures:\n");
    }
    for (test, outcome) in &failed {
        println!("---- {} ----", test.name);
        outcome.problems.iter().for_each(|problem| println!("{problem}"));
        println!("the proxy: {}\n{}", outcome.told, outcome.details);
    }
    table(&outcomes);
    let passed = outcomes.len() - failed.len();
    let word = if failed.is_empty() && passed == count { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        count - passed,
        others.len(),
        started.elapsed().as_secs_f64()
    );
    if word == "ok" { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Runs everything, some at a time, with a line for each. Each run has a thread of its own, whose panic is that run's.
fn outcomes(wanted: Vec<Test>, at_once: usize, runtime: &Handle) -> Vec<(Test, Outcome)> {
    let (done, came) = std::sync::mpsc::channel();
    let (waiting, stacks) = (Arc::new(Mutex::new(VecDeque::from(wanted))), Arc::new(Stacks::default()));
    for _ in 0..at_once {
        let (done, waiting, stacks, runtime) =
            (done.clone(), Arc::clone(&waiting), Arc::clone(&stacks), runtime.clone());
        std::thread::spawn(move || {
            while let Some(test) = { waiting.lock().expect("no panic while held").pop_front() } {
                let run = || runtime.block_on(run(test.mode, test.seed, &stacks));
                let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Outcome::panicked());
                if done.send((test, outcome)).is_err() {
                    return;
                }
            }
        });
    }
    drop(done);
    let mut outcomes = Vec::new();
    for (test, outcome) in came {
        let word = if outcome.problems.is_empty() { "ok" } else { "FAILED" };
        println!("test {} ... {word} <{:.1}s>", test.name, outcome.took.as_secs_f64());
        outcome.problems.iter().for_each(|problem| println!("    {problem}"));
        outcomes.push((test, outcome));
    }
    outcomes.sort_by(|a, b| (a.0.mode.name, a.0.seed).cmp(&(b.0.mode.name, b.0.seed)));
    outcomes
}

/// A row per mode: what was expected, what came.
fn table(outcomes: &[(Test, Outcome)]) {
    let mut modes: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for (test, outcome) in outcomes {
        modes.entry(test.mode.name).or_default().push(outcome);
    }
    let width = modes.keys().map(|name| name.len()).max().unwrap_or(0);
    println!("\n{:<width$} | ok    | s    | expected | got", "mode");
    for (name, outcomes) in modes {
        let good = outcomes.iter().filter(|outcome| outcome.problems.is_empty()).count();
        let took = outcomes.iter().map(|outcome| outcome.took).max().unwrap_or(Duration::ZERO);
        // One that failed says more.
        let Some(shown) = outcomes.iter().find(|o| !o.problems.is_empty()).or(outcomes.first()) else { continue };
        let share = if outcomes.len() == 1 {
            if good == 1 { "ok".to_owned() } else { "RED".to_owned() }
        } else {
            format!("{good}/{}", outcomes.len())
        };
        let Outcome { expected, got, .. } = shown;
        println!("{name:<width$} | {share:<5} | {:>4.1} | {expected} | {got}", took.as_secs_f64());
    }
}
