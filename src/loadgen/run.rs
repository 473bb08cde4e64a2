//! What everybody who takes part in a run shares: the devices, the pacing, the engine.
//!
//! [`Run`] is what a device's state machine sees: who is simulated, what is counted, what is judged. It does no I/O and reads
//! no clock. [`Shared`] adds what a run does I/O with.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use super::api::Api;
use super::client::{Alarms, DeviceState, Handover, Mailbox, Pollers, Traffic};
use super::fault_track::{Consequence, FaultTrack};
use super::history::History;
use super::ledger::{Ledger, Presence};
use super::recorder::Recorder;
use super::scenario::Scenario;
use super::stats::{Stats, add, sub};
use super::world::World;
use crate::protocol::{DeviceName, ServerName};
use crate::runtime::{Tasks, clock};

/// Events kept for people.
const EVENTS_MAX: usize = 100;

/// An ACK or a delivery is late past this, where consequences of a fault are counted.
pub(super) const LATE_US: u64 = 1_000_000;

/// Who takes part in a run, what is counted, what is judged. No I/O; no clock is read after it was made.
pub(super) struct Run {
    /// Number of the run, part of every message's tag.
    pub(super) id: u32,
    /// How far the wall clock is ahead of the run's clock, in µs.
    pub(super) unix_offset_us: u64,
    pub(super) scenario: Scenario,
    pub(super) world: World,
    pub(super) recorder: Recorder,
    pub(super) ledger: Ledger,
    pub(super) stats: Stats,
    pub(super) history: Option<History>,
    /// Where each device is connected.
    pub(super) places: Places,
    /// What was done to the stack so far, and its consequences.
    pub(super) faults: Mutex<Vec<FaultTrack>>,
    /// Notable events, for people.
    pub(super) events: Mutex<Vec<String>>,
}

/// A run, with what it does I/O with.
pub(super) struct Shared {
    pub(super) run: Arc<Run>,
    pub(super) api: Api,
    /// One per device.
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) alarms: Alarms,
    /// How much before its time a message is handed to its device.
    pub(super) handover: Handover,
    /// Background work of the run and of its devices.
    pub(super) tasks: Tasks,
    /// The devices.
    pub(super) devices: Tasks,
    /// What went over the wire.
    pub(super) traffic: Traffic,
    /// Connections of devices without a socket.
    pub(super) pollers: Pollers,
    /// Addresses that connections come from, in turn; the system chooses where there is none.
    pub(super) sources: Vec<IpAddr>,
    /// What is left of devices that have ended. Written by devices, read by the engine.
    pub(super) ended: Mutex<Vec<DeviceState>>,
}

impl Deref for Shared {
    type Target = Run;

    fn deref(&self) -> &Run {
        &self.run
    }
}

impl Run {
    /// A run of `world`, with nothing measured yet.
    pub(super) fn new(id: u32, scenario: Scenario, world: World, recorder: Recorder, history: Option<History>) -> Self {
        Self {
            id,
            unix_offset_us: clock::unix_us().wrapping_sub(clock::now_us()),
            recorder,
            ledger: Ledger::new(id, world.conversations.len(), clock::unix_ms())
                .with_presence(Presence::new(&scenario, &world)),
            stats: Stats::default(),
            history,
            places: Places::of(world.clients.len()),
            faults: Mutex::default(),
            events: Mutex::default(),
            scenario,
            world,
        }
    }

    /// Notes something that a person who watches wants to see.
    pub(super) fn event(&self, text: String) {
        let mut events = self.events.lock().expect("no panic while held");
        if events.len() == EVENTS_MAX {
            events.remove(0);
        }
        events.push(text);
    }

    /// Errors so far, by code.
    pub(super) fn errors(&self) -> BTreeMap<String, u64> {
        let refused = Some(self.world.tokens_refused()).filter(|n| *n > 0);
        self.stats.errors().into_iter().chain(refused.map(|n| ("token_refused".to_owned(), n))).collect()
    }

    /// Counts a consequence of the last fault, if there was one and it may still be its doing. `since_us`: when that which came
    /// late was due.
    pub(super) fn consequence(&self, consequence: Consequence, since_us: u64, now_us: u64) {
        let mut faults = self.faults.lock().expect("no panic while held");
        if let Some(track) = faults.last_mut() {
            track.note(consequence, since_us, now_us, self.stats.answers());
        }
    }

    /// Counts a lost connection for the last fault, if it may be its doing; returns which fault that was, and since when the
    /// user waits: since the fault, or since the close where a server that drains closed by plan.
    pub(super) fn disconnected_by_fault(&self, is_planned: bool, now_us: u64) -> Option<(usize, u64)> {
        let mut faults = self.faults.lock().expect("no panic while held");
        let last = faults.len().checked_sub(1)?;
        let track = &mut faults[last];
        if !track.note_disconnect(now_us, self.stats.answers()) {
            return None;
        }
        Some((last, if is_planned { now_us } else { track.at_us }))
    }

    /// Records that a device is back from a fault, whose user waited since a time.
    pub(super) fn recovered_from(&self, (fault, since_us): (usize, u64), now_us: u64) {
        let mut faults = self.faults.lock().expect("no panic while held");
        faults[fault].recovery.record_us(now_us.saturating_sub(since_us));
    }

    /// Of so many pushes that were expected, nothing can be said.
    pub(super) fn excuse_pushes(&self, count: u64) {
        sub(&self.stats.push_expected, count);
        add(&self.stats.push_unknown, count);
    }

    /// A device as histories name it: its user's id, and its own name.
    pub(super) fn device_name(&self, client: u32) -> (String, DeviceName) {
        let user = self.world.clients[client as usize].user;
        (self.world.users[user as usize].id.to_string(), self.world.device_name(client))
    }

    /// Writes a history event, if there is a history.
    pub(super) fn note(&self, event: &'static str, fields: impl FnOnce() -> serde_json::Value) {
        if let Some(history) = &self.history {
            history.write(event, fields());
        }
    }
}

/// The server that each device is connected to. Written by the devices, read by devices that measure a path.
pub(super) struct Places {
    /// Names of the servers that welcomed a device.
    servers: Mutex<Vec<ServerName>>,
    /// Index of each device's server plus one; 0 while it is not connected.
    devices: Vec<AtomicU16>,
}

impl Places {
    fn of(devices: usize) -> Self {
        Self { servers: Mutex::default(), devices: (0..devices).map(|_| AtomicU16::new(0)).collect() }
    }

    /// A device is connected to a server.
    pub(super) fn enter(&self, client: u32, server: &ServerName) {
        let mut servers = self.servers.lock().expect("no panic while held");
        let index = servers.iter().position(|s| s == server).unwrap_or_else(|| {
            servers.push(server.clone());
            servers.len() - 1
        });
        // More servers than fit share the last number: then only the path of a delivery is told wrongly.
        let number = u16::try_from(index + 1).unwrap_or(u16::MAX);
        self.devices[client as usize].store(number, Ordering::Relaxed);
    }

    /// A device is not connected any more.
    pub(super) fn leave(&self, client: u32) {
        self.devices[client as usize].store(0, Ordering::Relaxed);
    }

    /// Whether two devices are connected to the same server, or both to none.
    pub(super) fn are_together(&self, a: u32, b: u32) -> bool {
        let place = |client: u32| self.devices[client as usize].load(Ordering::Relaxed);
        place(a) == place(b)
    }

    /// The server that a device is connected to.
    pub(super) fn server_of(&self, client: u32) -> Option<ServerName> {
        let index = self.devices[client as usize].load(Ordering::Relaxed).checked_sub(1)?;
        self.servers.lock().expect("no panic while held").get(usize::from(index)).cloned()
    }
}

/// Seconds on the clock that histories use, for an event that happened at `at_us` on the run's clock.
pub(super) fn history_seconds(at_us: u64) -> f64 {
    clock::boot_seconds() - clock::now_us().saturating_sub(at_us) as f64 / 1e6
}
