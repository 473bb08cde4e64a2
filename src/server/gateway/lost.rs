//! Chat servers that hang: their tunnels are ended, so that the clients find another one.
//!
//! A server that hangs keeps its sockets open, and its clients wait as long as it hangs. What hangs does not announce itself: it
//! leaves the registry after a few seconds. A server that stays out of it, while others are in, is asked over a peer link; one that
//! does not answer that either is lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Gateway;
use crate::backends::registry::{Role, ServerEntry};
use crate::protocol::ServerName;
use crate::runtime::clock;
use crate::server::cluster::peer::Call;

/// How often the registry's view is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time out of the registry after which a server is asked. With the life of its entry (4 s) and two unanswered calls its
/// clients are free within 15 s.
const OUT_MAX: Duration = Duration::from_secs(5);

/// Calls in a row that a server must leave without an answer, and the wait between them.
const ASKED: u32 = 2;
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One start of a server.
type Start = (ServerName, u64);

/// The chat servers that tunnels lead to.
#[derive(Default)]
pub(super) struct Led(Mutex<HashMap<Start, Arc<Leads>>>);

/// The tunnels to one start of a server.
pub(super) struct Leads {
    entry: ServerEntry,
    /// Cancelled when the server is lost.
    lost: CancellationToken,
    /// True while it is asked.
    is_asked: AtomicBool,
}

impl Leads {
    /// Returns when the server is lost.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    fn give_up(&self) {
        if !self.lost.is_cancelled() {
            tracing::warn!(server = %self.entry.name, "a chat server does not answer: its tunnels are ended");
            self.lost.cancel();
        }
    }
}

impl Led {
    /// Notes a tunnel to a server, for as long as what is returned is kept.
    pub(super) fn to(&self, entry: &ServerEntry) -> Arc<Leads> {
        let mut servers = self.0.lock().expect("no panic while held");
        let start = start_of(entry);
        if let Some(leads) = servers.get(&start).filter(|leads| !leads.lost.is_cancelled()) {
            return Arc::clone(leads);
        }
        let (lost, is_asked) = (CancellationToken::new(), AtomicBool::new(false));
        let leads = Arc::new(Leads { entry: entry.clone(), lost, is_asked });
        servers.insert(start, Arc::clone(&leads));
        leads
    }

    /// The servers with tunnels; forgets those without.
    fn in_use(&self) -> Vec<Arc<Leads>> {
        let mut servers = self.0.lock().expect("no panic while held");
        servers.retain(|_, leads| Arc::strong_count(leads) > 1);
        servers.values().cloned().collect()
    }
}

fn start_of(entry: &ServerEntry) -> Start {
    (entry.name.clone(), entry.epoch)
}

/// Since when servers with tunnels are out of the registry.
#[derive(Default)]
struct Out(HashMap<Start, u64>);

impl Out {
    /// Takes a look: the servers with tunnels, and those in the registry. Returns who has been out for too long.
    fn note(&mut self, now_us: u64, led: &[Start], listed: &[Start]) -> Vec<Start> {
        self.0.retain(|start, _| led.contains(start) && !listed.contains(start));
        // A registry without any chat server says nothing of one of them, and there would be nowhere to go.
        if listed.is_empty() {
            self.0.clear();
            return Vec::new();
        }
        let out = led.iter().filter(|start| !listed.contains(start));
        let since: Vec<(Start, u64)> =
            out.map(|start| (start.clone(), *self.0.entry(start.clone()).or_insert(now_us))).collect();
        let is_long = |since: u64| now_us.saturating_sub(since) >= OUT_MAX.as_micros() as u64;
        since.into_iter().filter(|(_, since)| is_long(*since)).map(|(start, _)| start).collect()
    }
}

impl Gateway {
    /// Looks for lost servers. Inputs: the clock.
    pub(super) async fn look_for_lost(self: Arc<Self>) {
        let mut out = Out::default();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let led = self.led.in_use();
            let listed = self.cluster.servers(Role::Chat);
            let starts: Vec<Start> = led.iter().map(|leads| start_of(&leads.entry)).collect();
            let listed: Vec<Start> = listed.iter().map(start_of).collect();
            for start in out.note(clock::now_us(), &starts, &listed) {
                let Some(leads) = led.iter().find(|leads| start_of(&leads.entry) == start) else { continue };
                // A former start whose machine lost its power or its network: nothing tells its sockets.
                if listed.iter().any(|(name, epoch)| *name == start.0 && *epoch > start.1) {
                    leads.give_up();
                } else if !leads.is_asked.swap(true, Ordering::Relaxed) {
                    // Side by side with the looks to come: an answer may take as long as a call may.
                    let (gateway, leads) = (Arc::clone(&self), Arc::clone(leads));
                    self.deps.tasks.spawn_until_stopped("gateway.ask_lost", async move { gateway.ask(&leads).await });
                }
            }
        }
    }

    /// Asks a server that is out of the registry, and gives it up where it leaves two calls without an answer.
    async fn ask(&self, leads: &Leads) {
        for turn in 0..ASKED {
            if turn > 0 {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            if self.peers.call(&leads.entry, &Call::Metrics).await.is_ok() {
                return leads.is_asked.store(false, Ordering::Relaxed);
            }
        }
        leads.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn start(name: &str) -> Start {
        (name.parse().expect("a name"), 1)
    }

    #[test]
    fn who_is_out_for_long_while_others_are_in_is_to_be_asked() {
        let (one, two) = (start("chat-1"), start("chat-2"));
        let both = [one.clone(), two.clone()];
        let mut out = Out::default();
        for second in 0..5 {
            assert!(out.note(second * SECOND_US, &both, &both[1..]).is_empty(), "{second}");
        }
        assert_eq!(out.note(5 * SECOND_US, &both, &both[1..]), both[..1]);
        assert!(out.note(6 * SECOND_US, &both, &both).is_empty(), "it is back");
        assert!(out.note(7 * SECOND_US, &both, &both[1..]).is_empty(), "and counted from its next absence on");
        let again = [(one.0, 2), two];
        assert!(out.note(8 * SECOND_US, &both, &again).is_empty());
        assert_eq!(out.note(13 * SECOND_US, &both, &again), both[..1], "another start of it is another server");
    }

    #[test]
    fn an_empty_registry_says_nothing() {
        let one = [start("chat-1")];
        let mut out = Out::default();
        for second in 0..60 {
            assert!(out.note(second * SECOND_US, &one, &[]).is_empty());
        }
        assert!(out.note(60 * SECOND_US, &one, &[start("chat-2")]).is_empty(), "out since now");
    }
}
