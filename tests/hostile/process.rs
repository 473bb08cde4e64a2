//! What the system says of the stack's process: memory, and sockets.

use std::collections::HashSet;
use std::fs;

/// A socket of TCP, as the system lists it.
struct Row {
    local: String,
    remote: String,
    is_listening: bool,
}

/// State of a socket that listens, in the system's list.
const LISTENING: &str = "0A";

/// The stack's process.
pub(crate) struct Process(pub(crate) u32);

impl Process {
    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0)).expect("the process runs")
    }

    /// A line of its status, in MiB.
    fn mib(&self, name: &str) -> u64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux");
        let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number");
        kib / 1_024
    }

    /// Memory that it has now.
    pub(crate) fn memory_mib(&self) -> u64 {
        self.mib("VmRSS")
    }

    /// Most memory that it had since [`Process::forget_peak`].
    pub(crate) fn peak_mib(&self) -> u64 {
        self.mib("VmHWM")
    }

    /// Counts its most memory from now on.
    pub(crate) fn forget_peak(&self) {
        // Source: proc(5), `clear_refs`.
        fs::write(format!("/proc/{}/clear_refs", self.0), "5").expect("its owner may");
    }

    /// Numbers of its sockets.
    fn inodes(&self) -> HashSet<String> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.0)).expect("the process runs");
        let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        let inode =
            |link: std::path::PathBuf| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
        links.filter_map(inode).collect()
    }

    /// How many sockets it has.
    pub(crate) fn sockets(&self) -> usize {
        self.inodes().len()
    }

    fn rows(&self) -> Vec<Row> {
        let inodes = self.inodes();
        let text = self.read("net/tcp");
        let row = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_own = fields.len() > 9 && inodes.contains(fields[9]);
            is_own.then(|| Row {
                local: fields[1].to_owned(),
                remote: fields[2].to_owned(),
                is_listening: fields[3] == LISTENING,
            })
        };
        text.lines().skip(1).filter_map(row).collect()
    }

    /// Ports on which it listens.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let port = |row: Row| row.local.split_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        self.rows().into_iter().filter(|row| row.is_listening).filter_map(port).collect()
    }

    /// Its connections with other processes.
    pub(crate) fn outside(&self) -> usize {
        let rows: Vec<Row> = self.rows().into_iter().filter(|row| !row.is_listening).collect();
        let own: HashSet<&str> = rows.iter().map(|row| row.local.as_str()).collect();
        rows.iter().filter(|row| !own.contains(row.remote.as_str())).count()
    }
}
