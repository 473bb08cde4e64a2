//! Whether a server can do its work now: every engine that it needs takes a write. Liveness asks nobody, so that an engine's
//! outage never restarts servers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;

use crate::backends::Backends;
use crate::runtime::clock;

/// How long an answer stands: probes of many balancers cost one check.
const FRESH: Duration = Duration::from_millis(500);

/// How long an engine may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub(in crate::server) struct Report {
    status: &'static str,
    /// `ok`, or what is wrong, by port; also of those that this server can do without.
    engines: BTreeMap<&'static str, String>,
}

impl Report {
    pub(in crate::server) fn is_ready(&self) -> bool {
        self.status == "ready"
    }
}

/// The last check of one server.
pub(in crate::server) struct Readiness {
    /// Ports that the server can do without.
    optional: &'static [&'static str],
    /// When it began, on [`clock::now_us`]. Held while a check is under way, so that one answers all who ask.
    last: Mutex<Option<(u64, Report)>>,
}

impl Readiness {
    /// Of a server that can do without some ports.
    pub(in crate::server) fn but_for(optional: &'static [&'static str]) -> Self {
        Self { optional, last: Mutex::const_new(None) }
    }

    /// Checks the engines, unless that was done just now.
    pub(in crate::server) async fn check(&self, backends: &Backends) -> Report {
        let mut last = self.last.lock().await;
        let now = clock::now_us();
        if let Some((began, report)) = &*last
            && now.saturating_sub(*began) < FRESH.as_micros() as u64
        {
            return report.clone();
        }
        let engines = backends.probe(PROBE_TIMEOUT).await;
        let is_well = engines.iter().all(|(port, state)| state == "ok" || self.optional.contains(port));
        let report = Report { status: if is_well { "ready" } else { "not ready" }, engines };
        *last = Some((now, report.clone()));
        report
    }
}
