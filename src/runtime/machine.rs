//! What the machine allows and what this process takes.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one; returns the limit now in force.
#[must_use]
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where the kernel refuses, the old limit stays and is what we report.
    let _ = setrlimit(Resource::Nofile, wanted);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Files that this process may open once its soft limit is raised.
#[must_use]
pub fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Bytes of a page of memory.
#[must_use]
pub fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// Memory that new processes can have without anything being swapped, in bytes: of the machine, or of the control group
/// that this process is in where that is less.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1_024;
    let cgroup =
        |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    let left = cgroup("memory.max").zip(cgroup("memory.current")).map(|(max, current)| max.saturating_sub(current));
    Some(left.map_or(available, |left| left.min(available)))
}

/// Memory of the kernel itself in bytes: its objects (sockets and files among them), stacks and page tables.
#[must_use]
pub fn kernel_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1_024)
    };
    Some(field("Slab:")? + field("KernelStack:")? + field("PageTables:")?)
}

/// Processors that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Resident memory of this process in bytes, without pages of files: the program itself is shared by all processes that run
/// it. `None` where `/proc` does not tell.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: Vec<u64> = statm.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // size, resident, shared (of files), …: source `proc_pid_statm(5)`.
    let [_, resident, of_files, ..] = pages.as_slice() else { return None };
    Some(resident.saturating_sub(*of_files) * rustix::param::page_size() as u64)
}

/// Has the system give this process, and those that it starts, memory in small pages only.
///
/// For one of many processes: each huge page is 2 MiB, of which a small heap uses little (docs/performance.md has figures).
pub fn avoid_huge_pages() {
    // Without it the process takes more memory and works all the same.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Processor time of the whole machine since it started, by what it went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTimes {
    /// Programs, and the kernel on behalf of one.
    pub programs: Duration,
    /// Interrupts, most network traffic among them: on behalf of nobody in particular.
    pub interrupts: Duration,
    /// Other machines of the same host, while something here was ready to run.
    pub steal: Duration,
    /// Processors of the machine.
    pub cores: usize,
}

/// Processor time of this machine; `None` where `/proc` does not tell.
#[must_use]
pub fn cpu_times() -> Option<CpuTimes> {
    parse_cpu_times(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn parse_cpu_times(stat: &str) -> Option<CpuTimes> {
    let all = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = all.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice. Source: `proc_stat(5)`.
    let [user, nice, system, _, _, irq, softirq, steal, ..] = *ticks.as_slice() else { return None };
    Some(CpuTimes {
        programs: of_ticks(user + nice + system),
        interrupts: of_ticks(irq + softirq),
        steal: of_ticks(steal),
        cores: stat.lines().skip(1).take_while(|line| line.starts_with("cpu")).count(),
    })
}

/// Processor time that the kernel tells in ticks of its clock.
pub(super) fn of_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}

/// Time in which something of this machine, or of the control group that this process is in, was ready to run and had no
/// processor; `None` where the kernel does not tell.
#[must_use]
pub fn cpu_pressure() -> Option<Duration> {
    parse_pressure(&std::fs::read_to_string("/proc/pressure/cpu").ok()?)
}

fn parse_pressure(text: &str) -> Option<Duration> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some.split_whitespace().find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

/// Processor time of the whole process.
#[must_use]
pub fn process_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Processor time of all threads of this process whose name starts with one of some prefixes, from `/proc`.
///
/// A stack and a generator that share a process are told apart by their thread names. Threads that ended are not counted.
#[must_use]
pub fn threads_cpu(prefixes: &[&str]) -> Duration {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    tasks
        .flatten()
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        })
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse().ok())
        .map(Duration::from_nanos)
        .sum()
}

/// The processor's name and the kernel's version, for reports.
#[must_use]
pub fn describe() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        text.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1)).map(str::to_owned)
    });
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} x {}, Linux {}", cores(), cpu.as_deref().unwrap_or("unknown processor"), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_times_are_told_apart() {
        let stat = "cpu  100 20 30 4000 50 6 7 800 0 0\ncpu0 50 10 15 2000 25 3 3 400 0 0\ncpu1 50 10 15 2000 25 3 4 400 0 0\nintr 1 2\n";
        let times = parse_cpu_times(stat).expect("of that form");
        assert_eq!(times.cores, 2);
        assert_eq!([times.programs, times.interrupts, times.steal].map(|t| t.as_millis()), [1_500, 130, 8_000]);
        assert_eq!(parse_cpu_times("cpu  1 2 3\n"), None);
    }

    #[test]
    fn pressure_is_the_time_in_which_something_waited() {
        let text =
            "some avg10=1.53 avg60=0.87 avg300=0.73 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(parse_pressure(text), Some(Duration::from_millis(1_500)));
        assert_eq!(parse_pressure("none"), None);
    }
}
