//! Runs the cases one after the other, each with a line.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use chatctl::runtime::clock;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::args::{Args, FAILED};
use crate::bench::Bench;
use crate::case::{CASES, Case};

/// Longest that a case may take.
const CASE_MAX: Duration = Duration::from_mins(2);

pub(crate) fn run_all(runtime: &Runtime) -> ExitCode {
    let args = Args::read();
    let (wanted, others): (Vec<&Case>, Vec<&Case>) = CASES.iter().partition(|case| args.wants(case.name));
    if args.is_list {
        for case in &wanted {
            println!("{}: test", case.name);
        }
        println!("\n{} tests, 0 benchmarks", wanted.len());
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", wanted.len());
    let started = clock::instant();
    let mut failed = 0;
    if !wanted.is_empty() {
        let bench = runtime.block_on(Bench::start());
        failed = wanted.iter().filter(|case| !runs_well(runtime, &bench, case)).count();
        if let Err(problem) = runtime.block_on(bench.end()) {
            failed = failed.max(1);
            println!("FAILED at the end of all: {problem}");
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        wanted.len() - failed,
        others.len(),
        started.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Runs a case and tells of it; returns whether all is as it must be.
fn runs_well(runtime: &Runtime, bench: &Bench, case: &Case) -> bool {
    let started = clock::instant();
    let run = || runtime.block_on(async { timeout(CASE_MAX, bench.holds(case)).await });
    let problem = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(problem))) => Some(problem),
        Ok(Err(_)) => Some(format!("it took over {} s", CASE_MAX.as_secs())),
        // The panic's own words are on standard error.
        Err(_) => Some("it panicked".to_owned()),
    };
    let word = if problem.is_none() { "ok" } else { "FAILED" };
    let (took, peak) = (started.elapsed().as_secs_f64(), bench.peak_mib());
    println!("test {} ... {word} <{took:.1}s, +{peak} MiB> {}", case.name, case.proves);
    if let Some(problem) = &problem {
        println!("    {problem}");
        // The next one begins with users who are connected.
        runtime.block_on(bench.connect_again());
    }
    problem.is_none()
}
