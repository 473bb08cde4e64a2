//! One simulated device, doing what the protocol asks of a client: a uuid per message and the same one for each retry,
//! contiguous cursors, and a sync where there is a gap.
//!
//! | file | what |
//! |---|---|
//! | `cursor` | what it may show of a conversation: no I/O |
//! | `conversation` | what it has of a conversation |
//! | `device` | its loop: connecting, waiting, leaving |
//! | `talk` | what it sends, and what it does with each frame |
//! | `catch_up` | how it fetches what it missed |
//! | `link` | its WebSocket |
//! | `poll` | the same without a socket: long-poll and poll |
//! | `mailbox` | how it is woken |

mod catch_up;
mod conversation;
pub(super) mod cursor;
mod device;
mod link;
mod mailbox;
mod poll;
mod talk;

use std::sync::Mutex;

pub(super) use device::{Device, DeviceState};
pub(super) use link::Traffic;
pub(super) use mailbox::{Alarms, Command, Mailbox};
pub(super) use poll::Pollers;

use super::api::Api;
use super::history::History;
use super::ledger::Ledger;
use super::recorder::{Recorder, Stats};
use super::scenario::Scenario;
use super::world::World;
use crate::protocol::{DeviceName, ServerName};
use crate::runtime::{Tasks, clock};
use crate::telemetry::Latency;

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
    pub(super) alarms: Alarms,
    /// Names of the servers that devices were welcomed by.
    pub(super) servers: Mutex<Vec<ServerName>>,
    /// What was done to the stack so far, and who suffered from it.
    pub(super) faults: Mutex<Vec<FaultTrack>>,
    /// Notable events, for people.
    pub(super) events: Mutex<Vec<String>>,
    /// Background work of the run and of its devices.
    pub(super) tasks: Tasks,
    /// The devices.
    pub(super) devices: Tasks,
    /// What went over the wire.
    pub(super) traffic: Traffic,
    /// Connections of devices without a socket.
    pub(super) pollers: Pollers,
    /// Addresses that connections come from, in turn; the system chooses where there is none.
    pub(super) sources: Vec<std::net::IpAddr>,
    /// What is left of devices that have ended. Written by devices, read by the engine.
    pub(super) ended: Mutex<Vec<DeviceState>>,
}

/// A fault and the devices that lost their connection by it.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultTrack {
    pub(super) what: String,
    /// On the run's clock.
    pub(super) at_us: u64,
    /// From the start of the load.
    pub(super) at_s: f64,
    /// How long it is meant to last; 0 for what is done in a moment.
    pub(super) planned_us: u64,
    pub(super) disconnected: u64,
    /// Times from the fault until a device was connected and caught up.
    pub(super) recovery: Latency,
    /// On the run's clock; 0 while it lasts.
    pub(super) ended_us: u64,
    pub(super) errors: u64,
    pub(super) late_acks: u64,
    pub(super) late_deliveries: u64,
    /// When the last of these was, on the run's clock.
    pub(super) trouble_us: u64,
    pub(super) error: Option<String>,
}

/// An ACK or a delivery is late past this, where consequences of a fault are counted.
pub(super) const LATE_US: u64 = 1_000_000;

/// A consequence of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Error,
    LateAck,
    LateDelivery,
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

    /// Notes a consequence of the last fault, if there was one.
    fn trouble(&self, trouble: Trouble, now_us: u64) {
        let mut faults = self.faults.lock().expect("no panic while held");
        if let Some(track) = faults.last_mut() {
            match trouble {
                Trouble::Error => track.errors += 1,
                Trouble::LateAck => track.late_acks += 1,
                Trouble::LateDelivery => track.late_deliveries += 1,
            }
            track.trouble_us = now_us;
        }
    }

    /// A device as histories name it: its user's id, and its own name.
    fn device_name(&self, client: u32) -> (String, DeviceName) {
        let user = self.world.clients[client as usize].user;
        (self.world.users[user as usize].id.to_string(), self.world.device_name(client))
    }

    /// The server that a device is connected to.
    fn server_of(&self, client: u32) -> Option<ServerName> {
        let index = self.mailboxes[client as usize].server()?;
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

/// Seconds on the clock that histories use, for an event that happened at `at_us` on the run's clock.
pub(super) fn history_seconds(at_us: u64) -> f64 {
    clock::boot_seconds() - clock::now_us().saturating_sub(at_us) as f64 / 1e6
}
