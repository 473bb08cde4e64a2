//! One alarm clock for all devices, and for whatever else of a run waits for a time. A pacing thread rings it.
//!
//! A timer of the runtime for each device would cost memory while it waits and time whenever it is set anew, which is after
//! every frame, and would be late by up to a millisecond. Here a device is one entry of eight bytes in a shared list, and an
//! alarm that rings early costs one look.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::runtime::{Bell, clock};

/// Alarms are in order within a slot of this many µs (as a power of two) only once it has begun.
const SLOT_BITS: u32 = 14;

/// Wakes devices at the times that they asked for.
#[derive(Default)]
pub(in crate::loadgen) struct Alarms {
    due: Mutex<Due>,
    /// Wakes the thread that rings.
    bell: Arc<Bell>,
}

/// Alarms that have not rung. Written by whoever sets one, and by [`Alarms::ring`].
#[derive(Default)]
struct Due {
    /// (µs from the slot's start, client), by slot.
    later: BTreeMap<u64, Vec<(u32, u32)>>,
    /// (when, client): all of slots that have begun.
    soon: BinaryHeap<Reverse<(u64, u32)>>,
    /// Tasks, by when and a number of their own.
    sleepers: BTreeMap<(u64, u64), Waker>,
    sleepers_so_far: u64,
    /// When the thread looks again without a ring of the bell; 0 before it has for the first time.
    looks_at_us: u64,
}

impl Due {
    fn add(&mut self, at_us: u64, client: u32) {
        let slot = at_us >> SLOT_BITS;
        // A slot that was emptied takes alarms again: the thread looks at its start, which has passed.
        self.later.entry(slot).or_default().push(((at_us - (slot << SLOT_BITS)) as u32, client));
    }

    /// Puts the alarms of slots that have begun in order.
    fn begin_slots(&mut self, now_us: u64) {
        while let Some(slot) = self.later.first_entry().filter(|slot| *slot.key() <= now_us >> SLOT_BITS) {
            let (slot, alarms) = slot.remove_entry();
            self.soon
                .extend(alarms.into_iter().map(|(us, client)| Reverse(((slot << SLOT_BITS) + u64::from(us), client))));
        }
    }

    /// When to look next.
    fn next_us(&self) -> Option<u64> {
        let slot = self.later.first_key_value().map(|(slot, _)| slot << SLOT_BITS);
        let soon = self.soon.peek().map(|Reverse((at_us, _))| *at_us);
        let sleeper = self.sleepers.first_key_value().map(|((at_us, _), _)| *at_us);
        [slot, soon, sleeper].into_iter().flatten().min()
    }
}

impl Alarms {
    /// What wakes the thread that calls [`Alarms::ring`].
    pub(in crate::loadgen) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Wakes a device at `at_us`, never before. Earlier alarms of the device stay.
    pub(super) fn set(&self, client: u32, at_us: u64) {
        let mut due = self.due.lock().expect("no panic while held");
        due.add(at_us, client);
        self.look_by(due, at_us);
    }

    /// Waits until `at_us` on the run's clock, as exactly as devices are woken.
    pub(in crate::loadgen) async fn sleep_until_us(&self, at_us: u64) {
        if clock::now_us() >= at_us {
            // A loop over times that have all passed still lets other tasks run.
            return tokio::task::consume_budget().await;
        }
        Sleep { alarms: self, at_us, number: None }.await;
    }

    /// Has the thread look at `at_us` at the latest.
    fn look_by(&self, mut due: std::sync::MutexGuard<'_, Due>, at_us: u64) {
        let is_earlier = at_us < due.looks_at_us;
        if is_earlier {
            // One ring is enough for all that are set until the thread looks.
            due.looks_at_us = at_us;
        }
        drop(due);
        if is_earlier {
            self.bell.ring();
        }
    }

    /// Rings what is due at `now_us`: `wake` is called for each device, in order. Returns when to look again, unless the bell
    /// rings before; that is `otherwise_us` where no alarm is earlier.
    pub(in crate::loadgen) fn ring(
        &self,
        now_us: u64,
        otherwise_us: Option<u64>,
        mut wake: impl FnMut(u32),
    ) -> Option<u64> {
        let mut clients = Vec::new();
        let mut tasks = Vec::new();
        let next_us = {
            let mut due = self.due.lock().expect("no panic while held");
            due.begin_slots(now_us);
            while let Some(Reverse((_, client))) = due.soon.peek().filter(|Reverse((at_us, _))| *at_us <= now_us) {
                clients.push(*client);
                due.soon.pop();
            }
            while let Some(sleeper) = due.sleepers.first_entry().filter(|sleeper| sleeper.key().0 <= now_us) {
                tasks.push(sleeper.remove());
            }
            let next_us = due.next_us().into_iter().chain(otherwise_us).min();
            due.looks_at_us = next_us.unwrap_or(u64::MAX);
            next_us
        };
        clients.into_iter().for_each(&mut wake);
        tasks.into_iter().for_each(Waker::wake);
        next_us
    }
}

/// A task that waits. What it has among the sleepers goes with it.
struct Sleep<'a> {
    alarms: &'a Alarms,
    at_us: u64,
    number: Option<u64>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if clock::now_us() >= self.at_us {
            return Poll::Ready(());
        }
        let mut due = self.alarms.due.lock().expect("no panic while held");
        let number = *self.number.get_or_insert_with(|| {
            due.sleepers_so_far += 1;
            due.sleepers_so_far
        });
        due.sleepers.insert((self.at_us, number), context.waker().clone());
        self.alarms.look_by(due, self.at_us);
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.alarms.due.lock().expect("no panic while held").sleepers.remove(&(self.at_us, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::PacingThread;

    fn rung(alarms: &Alarms, now_us: u64) -> (Vec<u32>, Option<u64>) {
        let mut clients = Vec::new();
        let next_us = alarms.ring(now_us, None, |client| clients.push(client));
        (clients, next_us)
    }

    #[test]
    fn each_device_is_woken_at_its_time_and_not_before() {
        let alarms = Alarms::default();
        let slot = 1 << SLOT_BITS;
        for (client, at_us) in [(0, 3 * slot + 7), (1, slot + 9), (2, slot + 5), (3, slot + 5), (4, 40)] {
            alarms.set(client, at_us);
        }
        assert_eq!(rung(&alarms, 39), (vec![], Some(40)), "a slot that has begun is looked at to the microsecond");
        assert_eq!(rung(&alarms, 40), (vec![4], Some(slot)), "one that has not, at its start");
        assert_eq!(rung(&alarms, slot), (vec![], Some(slot + 5)));
        assert_eq!(rung(&alarms, slot + 8), (vec![2, 3], Some(slot + 9)));
        alarms.set(5, slot + 6);
        assert_eq!(rung(&alarms, slot + 9).0, [5, 1], "one set late rings at once");
        assert_eq!(rung(&alarms, 9 * slot), (vec![0], None));
    }

    #[test]
    fn an_earlier_time_from_elsewhere_is_returned() {
        let alarms = Alarms::default();
        alarms.set(0, 500);
        assert_eq!(alarms.ring(10, Some(70), |_| {}), Some(70));
        assert_eq!(alarms.ring(70, Some(900), |_| {}), Some(500));
        assert_eq!(alarms.ring(500, Some(900), |_| {}), Some(900));
    }

    #[tokio::test]
    async fn tasks_are_woken_by_the_thread_and_leave_nothing_behind() {
        let alarms = Arc::new(Alarms::default());
        let ringing = Arc::clone(&alarms);
        let thread = PacingThread::start("test-alarms", Arc::clone(alarms.bell()), move |now_us| {
            ringing.ring(now_us, None, |_| {})
        });
        let _thread = thread.expect("starts");
        let at_us = [9, 3, 6].map(|ms| clock::now_us() + ms * 1_000);
        let sleep = |at_us: u64| {
            let alarms = &alarms;
            async move {
                alarms.sleep_until_us(at_us).await;
                clock::now_us() >= at_us
            }
        };
        let far = alarms.sleep_until_us(u64::MAX / 2);
        tokio::select! {
            all = futures_util::future::join3(sleep(at_us[0]), sleep(at_us[1]), sleep(at_us[2])) => {
                assert_eq!(all, (true, true, true));
            }
            () = far => unreachable!("it is years away"),
        }
        assert!(alarms.due.lock().expect("no panic").sleepers.is_empty());
    }
}
