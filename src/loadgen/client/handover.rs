//! How much before its time a message is handed to its device.
//!
//! The pacing thread is exact, but waking the task of a device takes some ten microseconds more. So a message is handed over
//! that much earlier, and the device waits actively for what is left. How much is learned from how late or early devices were.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::runtime::clock;

/// Most that a message is handed over early, and so the longest active wait.
const EARLY_MAX_US: u32 = 100;

/// Who is later than this waited for a processor, and not for being woken: that teaches nothing.
const LATE_MAX_US: u64 = 300;

/// What is learned is kept in sixteenths of a microsecond.
const UNIT: u32 = 16;

/// One message moves it by so many units: up where the device was late, down where it was early. They are in balance where
/// three in ten are early.
const UP: u32 = 3;
const DOWN: u32 = 7;

/// The head start of a run's messages. Written by devices, read by the pacing thread.
#[derive(Debug, Default)]
pub(in crate::loadgen) struct Handover(AtomicU32);

impl Handover {
    /// How much earlier a message is to be handed over, in µs.
    pub(in crate::loadgen) fn head_start_us(&self) -> u64 {
        u64::from(self.0.load(Ordering::Relaxed) / UNIT)
    }

    /// A device has a message at `now_us` that is due at `due_us`: waits for that, if it is not far. Returns the time then.
    pub(super) fn wait_until_due(&self, due_us: u64, now_us: u64) -> u64 {
        if now_us <= due_us.saturating_add(LATE_MAX_US) {
            self.learn(now_us < due_us);
        }
        let mut now_us = now_us;
        if due_us.saturating_sub(now_us) <= u64::from(EARLY_MAX_US) {
            while now_us < due_us {
                std::hint::spin_loop();
                now_us = clock::now_us();
            }
        }
        now_us
    }

    fn learn(&self, was_early: bool) {
        // Devices that write at the same time lose a step, which does not matter.
        let units = self.0.load(Ordering::Relaxed);
        let units = if was_early { units.saturating_sub(DOWN) } else { (units + UP).min(EARLY_MAX_US * UNIT) };
        self.0.store(units, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_start_settles_where_three_in_ten_devices_are_early() {
        let handover = Handover::default();
        // Waking takes 30 to 69 µs, evenly.
        for n in 0..20_000_u64 {
            let takes_us = 30 + n * 7 % 40;
            handover.learn(takes_us < handover.head_start_us());
        }
        assert!((38..=46).contains(&handover.head_start_us()), "{}", handover.head_start_us());
        (0..20_000).for_each(|_| handover.learn(false));
        assert_eq!(handover.head_start_us(), u64::from(EARLY_MAX_US), "it is never long");
    }

    #[test]
    fn a_message_is_never_sent_before_it_is_due() {
        let handover = Handover::default();
        let due_us = clock::now_us() + 80;
        assert!(handover.wait_until_due(due_us, clock::now_us()) >= due_us);
        let late_us = clock::now_us();
        assert_eq!(handover.wait_until_due(due_us, late_us), late_us);
    }
}
