use std::process::{Child, Command, Stdio};

use async_trait::async_trait;

use super::*;
use crate::loadgen::result::ProcessUsage;
use crate::protocol::Fault;

fn process_of(pid: u32, parent: u32, started_s: f64, cpu_s: f64, ended_s: f64) -> Other {
    let [cpu, ended_children_cpu] = [cpu_s, ended_s].map(Duration::from_secs_f64);
    Other { pid, parent, started_s, cpu, ended_children_cpu }
}

/// A sample with a process of the run, by its start and what it took so far.
fn sample(at_s: u64, programs_s: f64, process_s: f64, other: Option<(f64, f64)>) -> Sample {
    let time = Duration::from_secs_f64;
    let times =
        CpuTimes { programs: time(programs_s), interrupts: time(0.1), steal: time(at_s as f64 / 10.0), cores: 2 };
    let other = other.map(|(started_s, cpu_s)| process_of(7, 1, started_s, cpu_s, 0.0));
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

#[test]
fn what_has_ended_is_in_the_time_of_whoever_started_it() {
    let old = || process_of(7, 1, 20.0, 1.0, 5.0);
    let foreign = |before: Vec<Other>, now: Vec<Other>| {
        let before = Sample { others: before, ..sample(10, 100.0, 5.0, None) };
        let now = Sample { others: now, ..sample(11, 102.0, 5.0, None) };
        load_between(&before, &now, true).foreign_cores.map(|cores| (cores * 100.0).round() as u64)
    };
    let child = |cpu_s| process_of(8, 7, 30.0, cpu_s, 0.0);
    let heir = |ended_s| process_of(7, 1, 20.0, 1.0, ended_s);
    // 2 s were used in all. One child came and went between the samples, and used all of it.
    assert_eq!(foreign(vec![old()], vec![heir(7.0)]), Some(0));
    // One was there before, and used half a second more before it ended.
    assert_eq!(foreign(vec![old(), child(3.0)], vec![heir(8.5)]), Some(150));
    // It and what it had started ended; both were waited for.
    let grandchild = || process_of(9, 8, 31.0, 2.0, 0.0);
    assert_eq!(foreign(vec![old(), child(3.0), grandchild()], vec![heir(10.5)]), Some(150));
    // Nobody waited for it, and whoever started it is gone, too: what it used last is not known.
    assert_eq!(foreign(vec![old(), child(3.0)], vec![heir(5.0)]), None);
    assert_eq!(foreign(vec![old(), child(3.0)], vec![]), None);
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
    Command::new("sh").args(["-c", command]).stdout(Stdio::piped()).spawn().expect("sh is there")
}

fn end(mut child: Child) {
    process::tell(child.id(), process::Tell::Die).expect("it is ours");
    child.wait().expect("ends");
}

#[tokio::test]
async fn what_takes_the_place_of_a_process_is_known_at_the_next_look() {
    let first = start("exec sleep 60");
    let control = Arc::new(OneProcess(Mutex::new(first.id())));
    let own: Arc<Mutex<Own>> = Arc::default();
    let worker = start("exec sleep 60");
    let more = vec![std::process::id(), worker.id()];
    let mut processes =
        OwnProcesses::of("http://127.0.0.1:1", Some(control.clone()), false, more, Arc::clone(&own)).await;
    let found = || own.lock().expect("free").clone();
    assert_eq!(found(), Own::default());
    processes.look().await;
    assert_eq!(found(), Own { heads: vec![first.id(), std::process::id(), worker.id()], is_complete: true });
    let second = start("exec sleep 60");
    *control.0.lock().expect("no panic") = second.id();
    processes.look().await;
    assert!(!found().heads.contains(&second.id()), "nobody is gone, and it was asked a moment ago");
    end(first);
    end(worker);
    processes.look().await;
    assert_eq!(found().heads, [second.id(), std::process::id()], "the next look finds it");
    end(second);
    processes.look().await;
    assert_eq!(found(), Own { heads: vec![std::process::id()], is_complete: true }, "what is told and gone");
}

#[test]
fn what_a_process_started_is_the_runs_own_and_a_sample_without_a_head_blames_nobody() {
    let mut head = start("sleep 60 & echo started; wait");
    let mut said = [0; 7];
    std::io::Read::read_exact(head.stdout.as_mut().expect("piped"), &mut said).expect("says so");
    let found = others(&[head.id(), head.id()]);
    let child = found.iter().find(|other| other.parent == head.id()).expect("its child").pid;
    assert_eq!(found.iter().map(|other| other.pid).collect::<Vec<_>>(), [std::process::id(), head.id(), child]);
    assert_eq!(found[0].cpu, Duration::ZERO, "its own time is read elsewhere");
    let own = Own { heads: vec![head.id()], is_complete: true };
    let mut sampler = Sampler::default();
    assert_eq!(sampler.sample(&own), None, "the first");
    assert!(sampler.sample(&own).is_some_and(|load| load.foreign_cores.is_some()));
    process::tell(child, process::Tell::Die).expect("it is ours");
    end(head);
    assert!(sampler.sample(&own).is_some_and(|load| load.foreign_cores.is_none()));
}

/// A stack that never says which processes it has.
#[derive(Default)]
struct Silent(tokio::sync::Notify);

#[async_trait]
impl StackControl for Silent {
    async fn check(&self, _fault: &Fault) -> Result<(), String> {
        Ok(())
    }

    async fn do_fault(&self, _fault: &Fault) -> Result<(), String> {
        Ok(())
    }

    async fn usage(&self) -> Vec<ProcessUsage> {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_stack_that_does_not_answer_keeps_nobody_from_reading_the_machine() {
    let (control, own) = (Arc::new(Silent::default()), Arc::<Mutex<Own>>::default());
    let found = Arc::clone(&own);
    let processes = OwnProcesses::of("http://127.0.0.1:1", Some(control.clone()), false, Vec::new(), found).await;
    tokio::select! {
        () = processes.follow() => unreachable!("it looks for as long as the run lasts"),
        () = control.0.notified() => {}
    }
    let own = own.lock().expect("nobody holds it").clone();
    let mut sampler = Sampler::default();
    assert_eq!(sampler.sample(&own), None, "the first");
    assert!(sampler.sample(&own).is_some_and(|load| load.foreign_cores.is_none()), "nothing is known of the stack");
}
