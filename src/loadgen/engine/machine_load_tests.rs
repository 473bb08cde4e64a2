use std::process::{Child, Command};
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::loadgen::result::ProcessUsage;
use crate::protocol::Fault;

/// A sample with a process of the run, by its start and what it took so far.
fn sample(at_s: u64, programs_s: f64, process_s: f64, other: Option<(f64, f64)>) -> Sample {
    let time = Duration::from_secs_f64;
    let times =
        CpuTimes { programs: time(programs_s), interrupts: time(0.1), steal: time(at_s as f64 / 10.0), cores: 2 };
    let other = other.map(|(started_s, cpu_s)| Other { pid: 7, started_s, cpu: time(cpu_s) });
    Sample {
        at_us: at_s * 1_000_000,
        boot_s: 500.0 + at_s as f64,
        times,
        process: time(process_s),
        pressure: Some(time(programs_s / 4.0)),
        others: other.into_iter().collect(),
    }
}

#[test]
fn foreign_is_what_programs_used_and_neither_we_nor_the_stack_did() {
    let (before, now) = (sample(10, 100.0, 5.0, Some((20.0, 1.0))), sample(12, 104.0, 5.5, Some((20.0, 1.5))));
    let load = load_between(&before, &now, true);
    assert_eq!((load.cores, load.used_cores, load.steal_cores), (2.0, 2.0, 0.1));
    assert_eq!((load.foreign_cores, load.pressure), (Some(1.5), Some(0.5)));
    assert_eq!(load_between(&before, &now, false).foreign_cores, None, "whose it is can't be said");
}

#[test]
fn a_process_that_comes_counts_from_its_start_and_what_is_not_known_is_not_said() {
    let foreign =
        |before, now| load_between(&sample(10, 100.0, 5.0, before), &sample(11, 102.0, 5.0, now), true).foreign_cores;
    assert_eq!(foreign(None, Some((510.5, 1.5))), Some(0.5), "it was started in this second");
    assert_eq!(foreign(None, Some((400.0, 90.0))), None, "its past is not of this second");
    assert_eq!(foreign(Some((400.0, 90.0)), None), None, "it took something before it ended");
    assert_eq!(foreign(Some((400.0, 90.0)), Some((510.5, 0.1))), None, "another of the same number");
}

/// A stack of one process.
struct OneProcess(Mutex<u32>);

#[async_trait]
impl StackControl for OneProcess {
    async fn check(&self, _fault: &Fault) -> Result<(), String> {
        Ok(())
    }

    async fn do_fault(&self, _fault: &Fault) -> Result<(), String> {
        Ok(())
    }

    async fn usage(&self) -> Vec<ProcessUsage> {
        vec![ProcessUsage { pid: *self.0.lock().expect("no panic"), ..ProcessUsage::default() }]
    }
}

fn start(command: &str) -> Child {
    Command::new("sh").args(["-c", command]).spawn().expect("sh is there")
}

fn end(mut child: Child) {
    process::tell(child.id(), process::Tell::Die).expect("it is ours");
    child.wait().expect("ends");
}

#[tokio::test]
async fn what_a_process_started_is_the_runs_own_and_what_takes_its_place_is_known_at_once() {
    let first = start("sleep 60 & wait");
    let mut family = process::family(first.id());
    for _ in 0..1_000 {
        if family.len() > 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        family = process::family(first.id());
    }
    let started = *family.get(1).expect("it starts another one");
    let control = Arc::new(OneProcess(Mutex::new(first.id())));
    let mut processes = OwnProcesses::of("http://127.0.0.1:1", Some(control.clone()), false).await;
    let own = processes.look(&[std::process::id()]).await.clone();
    assert!(own.is_complete && [first.id(), started, std::process::id()].iter().all(|pid| own.pids.contains(pid)));
    end(first);
    process::tell(started, process::Tell::Die).expect("it is ours");
    let second = start("sleep 60");
    *control.0.lock().expect("no panic") = second.id();
    assert!(processes.look(&[]).await.pids.contains(&second.id()), "the next look finds it");
    end(second);
}
