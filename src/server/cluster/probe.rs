//! Failure detector: a client's report triggers a probe of a server.
//!
//! The registry removes a dead server when its entry expires; until then users would be placed there again and again. A
//! client that could not reach a server reports it, and the server is probed from here. A report alone never removes a
//! server. See `docs/adr/0019-doubts.md`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::backends::registry::{ENTRY_TTL, ServerEntry};
use crate::protocol::ServerName;
use crate::runtime::{Tasks, clock};

/// Shortest time between two probes of a server, however many clients report it.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// Time in which a live server accepts a connection. A busy one may need longer: then it counts as failed until its
/// next probe.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// The last probes of the servers that clients reported.
pub(in crate::server) struct FailureDetector {
    tasks: Tasks,
    /// By name. Written by reports and by the probes that they trigger.
    probes: Mutex<HashMap<ServerName, Probe>>,
}

struct Probe {
    at_us: u64,
    /// The start of the server that was probed: a later one is another server.
    epoch: u64,
    has_failed: bool,
}

impl FailureDetector {
    /// Without any reports. Probes are tasks of the group.
    #[must_use]
    pub(in crate::server) fn new(tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { tasks, probes: Mutex::default() })
    }

    /// A client could not reach a server: it is probed, unless it was a moment ago.
    pub(in crate::server) fn report(self: &Arc<Self>, server: &ServerEntry) {
        let now = clock::now_us();
        {
            let mut probes = self.probes.lock().expect("no panic while held");
            // What is older than an entry's life is in the registry by now.
            probes.retain(|_, last| now.saturating_sub(last.at_us) < ENTRY_TTL.as_micros() as u64);
            let last = probes.get(&server.name).filter(|last| last.epoch == server.epoch);
            if last.is_some_and(|last| now.saturating_sub(last.at_us) < PROBE_INTERVAL.as_micros() as u64) {
                return;
            }
            // As before until the probe ends.
            let has_failed = last.is_some_and(|last| last.has_failed);
            probes.insert(server.name.clone(), Probe { at_us: now, epoch: server.epoch, has_failed });
        }
        let (detector, server) = (Arc::clone(self), server.clone());
        self.tasks.spawn_until_stopped("cluster.probe", async move {
            let address = server.peer.unwrap_or(server.address);
            let answer = tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await;
            let has_failed = !matches!(answer, Ok(Ok(_)));
            let mut probes = detector.probes.lock().expect("no panic while held");
            if let Some(last) = probes.get_mut(&server.name).filter(|last| last.epoch == server.epoch) {
                last.has_failed = has_failed;
            }
        });
    }

    /// Whether the last probe of a server failed, as long ago as an entry's life at most.
    #[must_use]
    pub(in crate::server) fn has_failed(&self, server: &ServerEntry) -> bool {
        let probes = self.probes.lock().expect("no panic while held");
        probes.get(&server.name).is_some_and(|last| {
            let age_us = clock::now_us().saturating_sub(last.at_us);
            last.has_failed && last.epoch == server.epoch && age_us < ENTRY_TTL.as_micros() as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::backends::registry::Role;

    fn server(address: std::net::SocketAddr, epoch: u64) -> ServerEntry {
        let name = "chat-1".parse().expect("valid");
        ServerEntry { name, role: Role::Chat, address, peer: None, load: 0, seats: 0, draining: false, epoch }
    }

    async fn becomes(detector: &Arc<FailureDetector>, server: &ServerEntry, has_failed: bool) {
        let waits = async {
            while detector.has_failed(server) != has_failed {
                detector.report(server);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waits).await.expect("is found out");
    }

    #[tokio::test]
    async fn a_dead_server_is_detected_and_one_in_its_place_is_not_blamed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let detector = FailureDetector::new(Tasks::new());
        drop(listener);
        assert!(!detector.has_failed(&server(address, 1)), "nobody reported it");
        becomes(&detector, &server(address, 1), true).await;
        assert!(!detector.has_failed(&server(address, 2)), "a later start is another server");
        let _listener = TcpListener::bind(address).await.expect("binds again");
        becomes(&detector, &server(address, 1), false).await;
    }

    #[tokio::test]
    async fn reports_alone_remove_no_live_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let server = server(listener.local_addr().expect("is bound"), 1);
        let detector = FailureDetector::new(Tasks::new());
        for _ in 0..1_000 {
            detector.report(&server);
        }
        let (_probe, _) = listener.accept().await.expect("is probed");
        let second = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(second.is_err(), "one probe for all of them");
        assert!(!detector.has_failed(&server));
    }
}
