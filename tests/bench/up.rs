//! `chatctl up` as a process of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A stack with embedded engines in another process, which is ended with this.
pub(crate) struct Up {
    child: Child,
    /// What was printed of each server, by its name.
    addresses: BTreeMap<String, String>,
    /// Kept open, so that what is printed at the end does not fail.
    output: Option<BufReader<ChildStdout>>,
}

impl Up {
    /// Starts a stack, with its log in a file; it serves when this returns.
    pub(crate) fn start(args: &[&str], log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatctl"));
        command.arg("up").args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.stderr(File::create(log).expect("writes")).spawn().expect("starts");
        let mut up = Self { child, addresses: BTreeMap::new(), output: None };
        let mut output = BufReader::new(up.child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            if output.read_line(&mut line).expect("text") == 0 {
                // Waited for, so that its log is whole.
                let _ = up.child.wait();
                panic!("it ended: {}", std::fs::read_to_string(log).unwrap_or_default());
            }
            if let Some((name, address)) = line.trim_end().split_once(' ') {
                up.addresses.insert(name.to_owned(), address.trim().to_owned());
            }
        }
        up.output = Some(output);
        up
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What was printed of a server.
    pub(crate) fn address(&self, server: &str) -> &str {
        self.addresses.get(server).unwrap_or_else(|| panic!("{server} is none of {:?}", self.addresses))
    }

    /// Stops it as ctrl-c does; its exit code.
    pub(crate) fn interrupt(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("signals");
        let code = self.child.wait().expect("ends").code();
        drop(self.output.take());
        code
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
