//! One simulated device, doing what the protocol asks of a client: a uuid per message and the same one for each retry,
//! contiguous cursors, and a sync where there is a gap.
//!
//! | file | what |
//! |---|---|
//! | `cursor` | what it has and may show: no I/O |
//! | `link` | its WebSocket |
//! | `device` | its loop |
//! | `presence` | when users beat and who was told |

pub(super) mod cursor;
mod device;
mod link;
mod presence;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use tokio::sync::Notify;

pub(super) use device::{Device, DeviceState};
pub(super) use presence::UserPresence;

use super::api::{Api, Error};
use super::history::History;
use super::ledger::Ledger;
use super::recorder::{Recorder, Stats};
use super::scenario::Scenario;
use super::world::World;
use crate::protocol::ServerName;
use crate::protocol::api::{InboxEntry, MessagesSync};
use crate::runtime::{Tasks, clock};

/// What all devices of a run share.
pub(super) struct Shared {
    pub(super) run: u32,
    pub(super) scenario: Scenario,
    pub(super) world: World,
    pub(super) api: Api,
    pub(super) recorder: Recorder,
    pub(super) ledger: Ledger,
    pub(super) stats: Stats,
    pub(super) history: Option<History>,
    /// One per device.
    pub(super) mailboxes: Vec<Mailbox>,
    /// One per user.
    pub(super) presence: Vec<UserPresence>,
    /// Names of the servers that devices were welcomed by.
    pub(super) servers: Mutex<Vec<ServerName>>,
    /// Index of each device's server plus one; 0 while it is not connected.
    pub(super) client_servers: Vec<AtomicU16>,
    /// What was done to the stack so far, and who suffered from it.
    pub(super) faults: Mutex<Vec<FaultTrack>>,
    /// Notable events, for people.
    pub(super) events: Mutex<Vec<String>>,
    pub(super) tasks: Tasks,
}

/// A fault and the devices that lost their connection by it.
#[derive(Debug, Clone)]
pub(super) struct FaultTrack {
    pub(super) what: String,
    /// On the run's clock.
    pub(super) at_us: u64,
    /// From the start of the load.
    pub(super) at_s: f64,
    pub(super) disconnected: u64,
    /// Times from the fault until a device was connected and caught up, in µs.
    pub(super) recovered_us: Vec<u64>,
    pub(super) error: Option<String>,
}

/// Events kept for people.
const EVENTS_MAX: usize = 100;

impl Shared {
    /// Notes something that a person who watches wants to know.
    pub(super) fn event(&self, text: String) {
        let mut events = self.events.lock().expect("no panic while held");
        if events.len() == EVENTS_MAX {
            events.remove(0);
        }
        events.push(text);
    }

    /// A device as histories name it: its user's id, and its own name.
    fn device_name(&self, client: u32) -> (String, &str) {
        let spec = &self.world.clients[client as usize];
        (self.world.users[spec.user as usize].id.to_string(), spec.device.as_str())
    }

    /// The server that a device is connected to.
    fn server_of(&self, client: u32) -> Option<ServerName> {
        let index = self.client_servers[client as usize].load(Ordering::Relaxed).checked_sub(1)?;
        self.servers.lock().expect("no panic while held").get(index as usize).cloned()
    }

    /// Index of a server by name.
    fn server_index(&self, name: &ServerName) -> u16 {
        let mut servers = self.servers.lock().expect("no panic while held");
        let index = servers.iter().position(|s| s == name).unwrap_or_else(|| {
            servers.push(name.clone());
            servers.len() - 1
        });
        index as u16
    }

    /// Writes a history event, if there is a history.
    pub(super) fn note(&self, event: &'static str, fields: impl FnOnce() -> serde_json::Value) {
        if let Some(history) = &self.history {
            history.write(event, fields());
        }
    }
}

/// What a device is told to do, and what its own background calls bring back.
pub(super) enum Command {
    /// Be connected; it was due at this time (µs).
    Online(u64),
    /// Close the connection and stay away.
    Offline,
    /// Send a message of some size that is due at this time (µs).
    Send { conversation: u32, intended_us: u64, bytes: u32 },
    /// The inbox was listed.
    Heads(Result<Vec<InboxEntry>, Error>),
    /// A page of a conversation came.
    Page(Page),
    /// Finish until this time (µs): nothing new is sent, what is pending is answered, everything is synced.
    Finish(u64),
}

/// A page of a conversation.
pub(super) struct Page {
    conversation: u32,
    after: u64,
    started_us: u64,
    /// Start of the call on the boot clock, for the history.
    started_s: f64,
    result: Result<MessagesSync, Error>,
}

/// Commands for a device. Written by anybody, taken by the device.
#[derive(Default)]
pub(super) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    news: Notify,
    /// Whether the scenario wants the device online. Written by the pacing.
    is_planned: AtomicBool,
}

impl Mailbox {
    pub(super) fn put(&self, command: Command) {
        self.commands.lock().expect("no panic while held").push(command);
        self.news.notify_one();
    }

    pub(super) fn plan(&self, online: bool) {
        self.is_planned.store(online, Ordering::Relaxed);
    }

    pub(super) fn is_online_by_plan(&self) -> bool {
        self.is_planned.load(Ordering::Relaxed)
    }

    fn take(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands.lock().expect("no panic while held"))
    }
}

/// Seconds on the clock that histories use, for an event that happened at `at_us` on the run's clock.
pub(super) fn history_seconds(at_us: u64) -> f64 {
    clock::boot_seconds() - clock::now_us().saturating_sub(at_us) as f64 / 1e6
}
