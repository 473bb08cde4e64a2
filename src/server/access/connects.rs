//! How often a user connects, and how many connections a device has at once.
//!
//! A connect costs a claim of the session and a read of the user's friends and their presence, and a connection that is
//! replaced has its seat until it has ended. Both are bounded for each user, so that no account takes what is for all.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::rate::Buckets;
use crate::protocol::limits::CONNECTIONS_PER_USER_MAX;
use crate::protocol::{DeviceName, UserId};

/// Connects of a user in a second, in the long run.
const PER_SECOND: u32 = 2;

/// How many may come at once: each connection that a user may have comes back when its server does.
const BURST: u32 = CONNECTIONS_PER_USER_MAX as u32;

/// Users whose connects are counted at once.
const USERS_MAX: usize = 100_000;

/// Connections of a device at once: one that is live, those that take its place at the same moment, and those that have not
/// ended yet.
const OF_A_DEVICE_MAX: u8 = 8;

/// When a client should retry whose device has too many: most of them end within that.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// The connects of one server's users.
pub(in crate::server) struct Connects {
    rates: Buckets<UserId>,
    devices: Arc<Devices>,
}

/// How many connections each device has that has any.
#[derive(Default)]
struct Devices {
    /// Of each by its hash: a connection keeps no other copy of its name.
    counts: Mutex<HashMap<u64, u8>>,
    hasher: RandomState,
}

/// One of a device's connections, until it is dropped.
pub(in crate::server) struct OfDevice {
    all: Arc<Devices>,
    device: u64,
}

impl Devices {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, u8>> {
        self.counts.lock().expect("no panic while held")
    }

    fn enter(self: &Arc<Self>, user: UserId, device: &DeviceName) -> Option<OfDevice> {
        let device = self.hasher.hash_one((user, device));
        let mut counts = self.lock();
        let count = counts.entry(device).or_default();
        if *count >= OF_A_DEVICE_MAX {
            return None;
        }
        *count += 1;
        Some(OfDevice { all: Arc::clone(self), device })
    }
}

impl Drop for OfDevice {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        if let Some(count) = counts.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.device);
            }
        }
    }
}

impl Connects {
    /// Nobody's.
    pub(in crate::server) fn new() -> Self {
        Self { rates: Buckets::with_burst(PER_SECOND, BURST, USERS_MAX), devices: Arc::default() }
    }

    /// Counts a connect of a device.
    ///
    /// # Errors
    /// How long to wait, where its user connects too often or the device has too many connections.
    pub(in crate::server) fn take(&self, user: UserId, device: &DeviceName) -> Result<OfDevice, Duration> {
        // First, so that a device that insists takes nothing from the user's others.
        let of_device = self.devices.enter(user, device).ok_or(ENDS_WITHIN)?;
        self.rates.take(user)?;
        Ok(of_device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: UserId = UserId(1);

    fn device(n: usize) -> DeviceName {
        format!("device-{n}").parse().expect("a name")
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_comes_back_with_all_devices_at_once_and_not_again_and_again() {
        let connects = Connects::new();
        // Each connection ends at once.
        let connect = |user, n| connects.take(user, &device(n)).map(drop);
        assert!((0..CONNECTIONS_PER_USER_MAX).all(|n| connect(ALICE, n).is_ok()));
        let wait = connect(ALICE, 0).expect_err("too often");
        assert!(connect(UserId(2), 0).is_ok());
        tokio::time::advance(wait).await;
        assert!(connect(ALICE, 0).is_ok() && connect(ALICE, 0).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_has_a_few_connections_and_those_that_are_ending_count() {
        let connects = Connects::new();
        let mut held: Vec<OfDevice> = std::iter::from_fn(|| connects.take(ALICE, &device(0)).ok()).take(100).collect();
        assert_eq!(held.len(), usize::from(OF_A_DEVICE_MAX));
        assert!(connects.take(ALICE, &device(1)).is_ok() && connects.take(UserId(2), &device(0)).is_ok());
        held.pop();
        assert!(connects.take(ALICE, &device(0)).is_ok());
        held.clear();
        assert!(connects.devices.lock().is_empty());
    }
}
