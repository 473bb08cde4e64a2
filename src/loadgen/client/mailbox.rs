//! How a device is woken: events for it, and one alarm clock for all devices.
//!
//! A device waits for three things at once: its socket, its mailbox, the clock. A timer of the runtime for each device would
//! cost memory while it waits and time whenever it is set anew, which is after every frame; here a device is one entry in a
//! shared list, and an alarm that rings early costs one look.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::event::{Command, Event};
use crate::runtime::clock;

/// Where a device is reached, and what others may know of it.
#[derive(Default)]
pub(in crate::loadgen) struct Mailbox {
    /// Written by anybody, taken by the device.
    events: Mutex<Vec<Event>>,
    /// Set by whoever wants the device to look; cleared by the device.
    has_news: AtomicBool,
    waker: AtomicWaker,
    /// Whether the scenario wants the device online. Written by the pacing.
    is_planned: AtomicBool,
}

impl Mailbox {
    /// Gives the device a command of the plan.
    pub(in crate::loadgen) fn put(&self, command: Command) {
        self.deliver(Event::Command(command));
    }

    /// Gives the device what a call of its own brought back.
    pub(super) fn deliver(&self, event: Event) {
        self.events.lock().expect("no panic while held").push(event);
        self.wake();
    }

    /// Has the device look at what is due.
    fn wake(&self) {
        self.has_news.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready once after each [`Mailbox::put`] or alarm, perhaps after several at once.
    pub(super) fn poll_news(&self, context: &Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.has_news.swap(false, Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().expect("no panic while held"))
    }

    pub(in crate::loadgen) fn plan(&self, online: bool) {
        self.is_planned.store(online, Ordering::Relaxed);
    }

    pub(in crate::loadgen) fn is_online_by_plan(&self) -> bool {
        self.is_planned.load(Ordering::Relaxed)
    }
}

/// Wakes devices at the times that they asked for.
#[derive(Default)]
pub(in crate::loadgen) struct Alarms {
    /// Clients by the millisecond at whose end they are woken. Written by devices and by [`Alarms::run`].
    due: Mutex<BTreeMap<u64, Vec<u32>>>,
    /// Told when an alarm was set before all others.
    earlier: Notify,
}

impl Alarms {
    /// Wakes a device at `at_us` or up to a millisecond later. Earlier alarms of the device stay.
    pub(super) fn set(&self, client: u32, at_us: u64) {
        let at_ms = at_us.div_ceil(1_000);
        let mut due = self.due.lock().expect("no panic while held");
        let is_first = due.first_key_value().is_none_or(|(first, _)| at_ms < *first);
        due.entry(at_ms).or_default().push(client);
        drop(due);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// Rings until dropped. Inputs: the clock, and alarms before the next.
    pub(in crate::loadgen) async fn run(&self, mailboxes: &[Mailbox]) {
        loop {
            let next_ms = self.due.lock().expect("no panic while held").first_key_value().map(|(first, _)| *first);
            match next_ms {
                None => self.earlier.notified().await,
                Some(at_ms) => tokio::select! {
                    () = self.earlier.notified() => {}
                    () = clock::sleep_until_us(at_ms * 1_000) => self.ring(mailboxes),
                },
            }
        }
    }

    fn ring(&self, mailboxes: &[Mailbox]) {
        let now_ms = clock::now_us() / 1_000;
        let mut due = self.due.lock().expect("no panic while held");
        let later = due.split_off(&(now_ms + 1));
        let ringing = std::mem::replace(&mut *due, later);
        drop(due);
        for client in ringing.into_values().flatten() {
            mailboxes[client as usize].wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_device_is_woken_when_it_asked_to_be() {
        let mailboxes: Vec<Mailbox> = (0..3).map(|_| Mailbox::default()).collect();
        let alarms = Alarms::default();
        let asked: Vec<u64> = [30, 10, 20].map(|ms| clock::now_us() + ms * 1_000).to_vec();
        let woken = |client: usize| {
            let (alarms, mailboxes, at_us) = (&alarms, &mailboxes, asked[client]);
            async move {
                alarms.set(client as u32, at_us);
                std::future::poll_fn(|context| mailboxes[client].poll_news(context)).await;
                (clock::now_us() >= at_us, client)
            }
        };
        let all = futures_util::future::join3(woken(0), woken(1), woken(2));
        tokio::select! {
            all = all => assert_eq!(all, ((true, 0), (true, 1), (true, 2))),
            () = alarms.run(&mailboxes) => unreachable!("it never ends"),
        }
    }
}
