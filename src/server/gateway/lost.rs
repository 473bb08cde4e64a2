//! Chat servers that hang: their tunnels are ended, so that the clients find another one.
//!
//! A server that hangs keeps its sockets open, and its clients wait as long as it hangs. What hangs does not announce itself: it
//! leaves the registry after a few seconds. A server that stays out of it, while others are in, is asked over a peer link; one that
//! does not answer that either is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Gateway;
use crate::backends::registry::{Role, ServerEntry};
use crate::protocol::ServerName;
use crate::runtime::clock;
use crate::server::peer::Call;

/// How often the registry's view is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time out of the registry after which a server is asked. With the life of its entry (4 s) and an unanswered call (2 s) its
/// clients are free within 15 s.
const OUT_MAX: Duration = Duration::from_secs(6);

/// The chat servers that tunnels lead to.
#[derive(Default)]
pub(super) struct Led(Mutex<HashMap<ServerName, Arc<Leads>>>);

/// The tunnels to one start of a server.
pub(super) struct Leads {
    entry: ServerEntry,
    /// Cancelled when the server is lost.
    lost: CancellationToken,
}

impl Leads {
    /// Returns when the server is lost.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Led {
    /// Notes a tunnel to a server, for as long as what is returned is kept.
    pub(super) fn to(&self, entry: &ServerEntry) -> Arc<Leads> {
        let mut servers = self.0.lock().expect("no panic while held");
        let known =
            servers.get(&entry.name).filter(|leads| leads.entry.epoch == entry.epoch && !leads.lost.is_cancelled());
        if let Some(leads) = known {
            return Arc::clone(leads);
        }
        // An older start of it has no tunnels any more: its sockets ended with its process.
        let leads = Arc::new(Leads { entry: entry.clone(), lost: CancellationToken::new() });
        servers.insert(entry.name.clone(), Arc::clone(&leads));
        leads
    }

    /// The servers with tunnels; forgets those without.
    fn in_use(&self) -> Vec<Arc<Leads>> {
        let mut servers = self.0.lock().expect("no panic while held");
        servers.retain(|_, leads| Arc::strong_count(leads) > 1);
        servers.values().cloned().collect()
    }
}

/// Since when servers with tunnels are out of the registry.
#[derive(Default)]
struct Out(HashMap<ServerName, u64>);

impl Out {
    /// Takes a look: the servers with tunnels, and those in the registry. Returns who has been out for too long.
    fn note(&mut self, now_us: u64, led: &[&ServerName], listed: &[&ServerName]) -> Vec<ServerName> {
        self.0.retain(|name, _| led.contains(&name) && !listed.contains(&name));
        // A registry without any chat server says nothing of one of them, and there would be nowhere to go.
        if listed.is_empty() {
            self.0.clear();
            return Vec::new();
        }
        let out = led.iter().filter(|name| !listed.contains(name));
        let since: Vec<(ServerName, u64)> =
            out.map(|name| ((*name).clone(), *self.0.entry((*name).clone()).or_insert(now_us))).collect();
        let is_long = |since: u64| now_us.saturating_sub(since) >= OUT_MAX.as_micros() as u64;
        since.into_iter().filter(|(_, since)| is_long(*since)).map(|(name, _)| name).collect()
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
            let names: Vec<&ServerName> = led.iter().map(|leads| &leads.entry.name).collect();
            let listed: Vec<&ServerName> = listed.iter().map(|entry| &entry.name).collect();
            for name in out.note(clock::now_us(), &names, &listed) {
                let Some(leads) = led.iter().find(|leads| leads.entry.name == name) else { continue };
                // Side by side with the looks to come: an answer may take as long as a call may.
                let (gateway, leads) = (Arc::clone(&self), Arc::clone(leads));
                self.deps.tasks.spawn_until_stopped("gateway.ask_lost", async move {
                    if gateway.peers.call(&leads.entry, &Call::Metrics).await.is_err() && !leads.lost.is_cancelled() {
                        tracing::warn!(server = %leads.entry.name, "a chat server does not answer: its tunnels are ended");
                        leads.lost.cancel();
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn name(text: &str) -> ServerName {
        text.parse().expect("a name")
    }

    #[test]
    fn who_is_out_for_long_while_others_are_in_is_to_be_asked() {
        let (one, two) = (name("chat-1"), name("chat-2"));
        let mut out = Out::default();
        for second in 0..6 {
            assert!(out.note(second * SECOND_US, &[&one, &two], &[&two]).is_empty(), "{second}");
        }
        assert_eq!(out.note(6 * SECOND_US, &[&one, &two], &[&two]), std::slice::from_ref(&one));
        assert!(out.note(7 * SECOND_US, &[&one, &two], &[&one, &two]).is_empty(), "it is back");
        assert!(out.note(8 * SECOND_US, &[&one, &two], &[&two]).is_empty(), "and counted from its next absence on");
    }

    #[test]
    fn an_empty_registry_says_nothing() {
        let one = name("chat-1");
        let mut out = Out::default();
        for second in 0..60 {
            assert!(out.note(second * SECOND_US, &[&one], &[]).is_empty());
        }
        assert!(out.note(60 * SECOND_US, &[&one], &[&name("chat-2")]).is_empty(), "out since now");
    }
}
