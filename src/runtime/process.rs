//! Other processes of this machine: what they take, who they started, and signals. Reads `/proc`, so Linux only.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Tasks;
use super::machine::of_ticks;

/// What a process has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time of all its threads, in steps of the kernel's clock tick (10 ms).
    pub cpu: Duration,
    /// The same of its children that have ended, and of theirs.
    pub ended_children_cpu: Duration,
    /// Resident memory in bytes; of pages shared with others its part, where the kernel tells.
    pub resident_bytes: u64,
}

/// What a process has taken so far; `None` when there is no such process. The kernel walks all its memory for that: see
/// [`usage_of_all`].
#[must_use]
pub fn usage(pid: u32) -> Option<Usage> {
    let Stat { cpu, ended_children_cpu, resident_bytes, .. } = stat(pid)?;
    let resident_bytes = proportional_bytes(pid).unwrap_or(resident_bytes);
    Some(Usage { cpu, ended_children_cpu, resident_bytes })
}

/// What some processes have taken so far, read in a thread for work that takes long. Those that are gone are left out.
pub async fn usage_of_all(pids: Vec<u32>) -> BTreeMap<u32, Usage> {
    let read = move || pids.into_iter().filter_map(|pid| Some((pid, usage(pid)?))).collect();
    Tasks::block(read).await.unwrap_or_default()
}

/// Memory in which a page shared by n processes counts as an n-th; `None` where the process is somebody else's.
fn proportional_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().strip_suffix(" kB")?;
    Some(kib.trim().parse::<u64>().ok()? * 1_024)
}

/// Whether a process is there and has not ended; one that only waits for its parent to look has.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.has_ended)
}

/// What the kernel tells of a process in one line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stat {
    /// Who started it, or took its parent's place.
    pub parent: u32,
    /// Whether it has ended and waits for its parent to look.
    pub has_ended: bool,
    /// When it was started, in seconds since the machine was.
    pub started_s: f64,
    /// Processor time of all its threads.
    pub cpu: Duration,
    /// The same of its children that have ended and were waited for, and of theirs.
    pub ended_children_cpu: Duration,
    /// Resident memory in bytes; each page counts in every process that has it.
    pub resident_bytes: u64,
}

/// What the kernel tells of a process; `None` when there is no such process.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name is in brackets and may hold anything. Behind it the fields count from 3. Source: `proc_pid_stat(5)`.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let time = |user, system| Some(of_ticks(field(user)? + field(system)?));
    Some(Stat {
        has_ended: *fields.first()? == "Z",
        parent: field(4)? as u32,
        cpu: time(14, 15)?,
        ended_children_cpu: time(16, 17)?,
        started_s: of_ticks(field(22)?).as_secs_f64(),
        resident_bytes: field(24)? * rustix::param::page_size() as u64,
    })
}

/// A process and everything that it started, the parents first.
#[must_use]
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(pid) = family.get(at).copied() {
        at += 1;
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    family
}

/// What is done to a process from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// End in good order: SIGTERM.
    End,
    /// End now: SIGKILL.
    Die,
    /// Stand still: SIGSTOP.
    Freeze,
    /// Go on: SIGCONT.
    GoOn,
}

/// Sends a signal.
///
/// # Errors
/// When there is no such process, or it belongs to somebody else.
pub fn tell(pid: u32, what: Tell) -> std::io::Result<()> {
    let signal = match what {
        Tell::End => Signal::TERM,
        Tell::Die => Signal::KILL,
        Tell::Freeze => Signal::STOP,
        Tell::GoOn => Signal::CONT,
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// Processes in groups of their own that are waited for.
static APART: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// A process that this one has started in a group of its own, where a terminal's ctrl-c does not reach it. Held as long as it is
/// waited for.
#[derive(Debug)]
pub struct Apart(u32);

impl Apart {
    /// Notes that it was started.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        apart().push(pid);
        Self(pid)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let mut all = apart();
        if let Some(at) = all.iter().position(|pid| *pid == self.0) {
            all.swap_remove(at);
        }
    }
}

/// Tells all of them to end, for a process that ends without waiting for them.
pub fn end_all_apart() {
    for pid in apart().drain(..) {
        // It may have ended in this moment.
        let _ = tell(pid, Tell::End);
    }
}

fn apart() -> std::sync::MutexGuard<'static, Vec<u32>> {
    APART.lock().expect("no panic while held")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let text =
            "12 (a) b (c)) S 7 12 12 0 -1 4194560 100 0 0 0 250 50 30 10 20 0 8 0 1000 4096 3 18446744073709551615";
        let stat = parse_stat(text).expect("of that form");
        assert_eq!((stat.parent, stat.has_ended, stat.started_s), (7, false, 10.0));
        assert_eq!([stat.cpu, stat.ended_children_cpu].map(|time| time.as_millis()), [3_000, 400]);
        assert_eq!(stat.resident_bytes, 3 * rustix::param::page_size() as u64);
        assert!(parse_stat(&text.replace(" S ", " Z ")).is_some_and(|stat| stat.has_ended));
        assert_eq!(parse_stat("12 (sh) S 1 2"), None);
        assert!(super::stat(std::process::id()).is_some() && super::stat(0).is_none());
    }

    #[test]
    fn what_a_child_took_is_its_parents_once_it_has_ended() {
        let busy = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; echo ended; exec sleep 60";
        let mut parent = std::process::Command::new("sh");
        let mut parent = parent.args(["-c", busy]).stdout(std::process::Stdio::piped()).spawn().expect("sh is there");
        let mut said = [0; 5];
        std::io::Read::read_exact(parent.stdout.as_mut().expect("piped"), &mut said).expect("says so");
        let used = usage(parent.id()).expect("it runs");
        tell(parent.id(), Tell::Die).expect("it is ours");
        parent.wait().expect("ends");
        assert!(used.ended_children_cpu > Duration::ZERO && used.cpu < used.ended_children_cpu, "{used:?}");
    }

    #[test]
    fn a_process_is_seen_with_its_children_and_ends_when_told() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is there");
        assert!(family(std::process::id()).contains(&child.id()));
        // Until it has replaced its parent's image it holds no memory.
        while usage(child.id()).is_some_and(|usage| usage.resident_bytes == 0) {
            std::thread::yield_now();
        }
        tell(child.id(), Tell::Die).expect("it is ours");
        assert!(!child.wait().expect("ends").success());
        assert!(is_running(std::process::id()) && !is_running(child.id()));
        assert_eq!(usage(u32::MAX), None);
    }

    #[test]
    fn a_process_of_a_group_of_its_own_is_known_as_long_as_it_is_waited_for() {
        // No process has that number: others of these tests have theirs.
        let is_known = || super::apart().contains(&u32::MAX);
        let apart = Apart::new(u32::MAX);
        assert!(is_known());
        drop(apart);
        assert!(!is_known());
    }
}
