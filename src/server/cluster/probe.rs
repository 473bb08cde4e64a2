//! Servers that are gone although the registry still has them. A registry forgets a dead server when its entry's life is over;
//! until then users would be sent there again and again. Who could not reach a server says so, and it is tried from here: a
//! word alone takes nobody's users away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::backends::registry::{ENTRY_TTL, ServerEntry};
use crate::protocol::ServerName;
use crate::runtime::{Tasks, clock};

/// Shortest time between two tries of a server, however many users complain.
const TRY_EVERY: Duration = Duration::from_millis(250);

/// Time in which a live server accepts a connection. A busy one may need longer: then it is passed over until its next try.
const TRY_TIMEOUT: Duration = Duration::from_millis(500);

/// What is known of the servers that somebody complained of.
pub(in crate::server) struct Doubts {
    tasks: Tasks,
    /// By name. Written by complaints and by the tries that they start.
    tried: Mutex<HashMap<ServerName, Tried>>,
}

struct Tried {
    at_us: u64,
    /// The start of the server that was tried: a later one is another server.
    epoch: u64,
    is_gone: bool,
}

impl Doubts {
    /// Without any. Tries are tasks of the group.
    #[must_use]
    pub(in crate::server) fn new(tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { tasks, tried: Mutex::default() })
    }

    /// Somebody could not reach a server: it is tried, unless it was a moment ago.
    pub(in crate::server) fn complain(self: &Arc<Self>, server: &ServerEntry) {
        let now = clock::now_us();
        {
            let mut tried = self.tried.lock().expect("no panic while held");
            // What is older than an entry's life is in the registry by now.
            tried.retain(|_, last| now.saturating_sub(last.at_us) < ENTRY_TTL.as_micros() as u64);
            let last = tried.get(&server.name).filter(|last| last.epoch == server.epoch);
            if last.is_some_and(|last| now.saturating_sub(last.at_us) < TRY_EVERY.as_micros() as u64) {
                return;
            }
            // Passed over or not until the try is over, as before.
            let is_gone = last.is_some_and(|last| last.is_gone);
            tried.insert(server.name.clone(), Tried { at_us: now, epoch: server.epoch, is_gone });
        }
        let (doubts, server) = (Arc::clone(self), server.clone());
        self.tasks.spawn_until_stopped("doubts.try", async move {
            let address = server.peer.unwrap_or(server.address);
            let answer = tokio::time::timeout(TRY_TIMEOUT, TcpStream::connect(address)).await;
            let is_gone = !matches!(answer, Ok(Ok(_)));
            let mut tried = doubts.tried.lock().expect("no panic while held");
            if let Some(last) = tried.get_mut(&server.name).filter(|last| last.epoch == server.epoch) {
                last.is_gone = is_gone;
            }
        });
    }

    /// Whether a server could not be reached in its last try, as long ago as an entry's life at most.
    #[must_use]
    pub(in crate::server) fn is_gone(&self, server: &ServerEntry) -> bool {
        let tried = self.tried.lock().expect("no panic while held");
        tried.get(&server.name).is_some_and(|last| {
            let age_us = clock::now_us().saturating_sub(last.at_us);
            last.is_gone && last.epoch == server.epoch && age_us < ENTRY_TTL.as_micros() as u64
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
        ServerEntry { name, role: Role::Chat, address, peer: None, load: 0, draining: false, epoch }
    }

    async fn becomes(doubts: &Arc<Doubts>, server: &ServerEntry, is_gone: bool) {
        let waits = async {
            while doubts.is_gone(server) != is_gone {
                doubts.complain(server);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waits).await.expect("is found out");
    }

    #[tokio::test]
    async fn a_dead_server_is_found_out_and_one_in_its_place_is_not_blamed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let doubts = Doubts::new(Tasks::new());
        drop(listener);
        assert!(!doubts.is_gone(&server(address, 1)), "nobody complained");
        becomes(&doubts, &server(address, 1), true).await;
        assert!(!doubts.is_gone(&server(address, 2)), "a later start is another server");
        let _listener = TcpListener::bind(address).await.expect("binds again");
        becomes(&doubts, &server(address, 1), false).await;
    }

    #[tokio::test]
    async fn complaints_alone_take_nothing_from_a_live_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let server = server(listener.local_addr().expect("is bound"), 1);
        let doubts = Doubts::new(Tasks::new());
        for _ in 0..1_000 {
            doubts.complain(&server);
        }
        let (_tried, _) = listener.accept().await.expect("is tried");
        let second = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(second.is_err(), "one try for all of them");
        assert!(!doubts.is_gone(&server));
    }
}
