//! What `cargo test` says to a test binary that has a harness of its own.

/// Exit code of a test binary with failures.
pub(crate) const FAILED: u8 = 101;

/// What the command line asks for; flags of the usual test harness that mean nothing here are passed over.
#[derive(Default)]
pub(crate) struct Args {
    filters: Vec<String>,
    skips: Vec<String>,
    is_exact: bool,
    pub(crate) is_list: bool,
    is_ignored_only: bool,
    pub(crate) at_once: Option<usize>,
}

impl Args {
    /// Those of this process.
    pub(crate) fn read() -> Self {
        let mut args = Self::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let (flag, value) = word.split_once('=').map_or((word.as_str(), None), |(f, v)| (f, Some(v.to_owned())));
            let mut value = || value.clone().or_else(|| words.next()).unwrap_or_default();
            match flag {
                "--exact" => args.is_exact = true,
                "--list" => args.is_list = true,
                "--ignored" => args.is_ignored_only = true,
                "--skip" => args.skips.push(value()),
                "--test-threads" => args.at_once = value().parse().ok(),
                "--format" | "--color" | "--logfile" | "--report-time" | "-Z" => _ = value(),
                _ if flag.starts_with('-') => {}
                _ => args.filters.push(word),
            }
        }
        args
    }

    /// Whether a test is to be run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let fits = |filter: &String| if self.is_exact { name == filter } else { name.contains(filter.as_str()) };
        // None of these tests is marked as ignored.
        let is_wanted = self.filters.is_empty() || self.filters.iter().any(fits);
        is_wanted && !self.skips.iter().any(fits) && !self.is_ignored_only
    }
}
