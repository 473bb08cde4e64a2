//! Other processes of this machine: what they take, who they started, and signals. Reads `/proc`, so Linux only.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

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

/// What a process has taken so far; `None` when there is no such process.
#[must_use]
pub fn usage(pid: u32) -> Option<Usage> {
    let fields = stat(pid)?;
    // Behind the name the fields count from 3: utime is 14, stime 15, cutime 16, cstime 17.
    let time = |number: usize| {
        let ticks = fields.get(number - 3)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second()))
    };
    let pages: u64 = fields.get(21)?.parse().ok()?;
    let (cpu, ended_children_cpu) = (time(14)? + time(15)?, time(16)? + time(17)?);
    let resident_bytes = proportional_bytes(pid).unwrap_or(pages * rustix::param::page_size() as u64);
    Some(Usage { cpu, ended_children_cpu, resident_bytes })
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
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z"))
}

/// The fields of `/proc/PID/stat` behind the name, which may hold anything: the state is the first. Source: `proc_pid_stat(5)`.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
