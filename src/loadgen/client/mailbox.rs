//! How a device is reached: events for it, and what wakes it.
//!
//! A device waits for three things at once: its socket, its mailbox, the clock (see `alarms`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use super::event::{Command, Event};

/// Where a device is reached, and what others may know of it.
#[derive(Default)]
pub(in crate::loadgen) struct Mailbox {
    /// Written by anybody, taken by the device.
    events: Mutex<Vec<Event>>,
    /// Set by whoever wants the device to look; cleared by the device.
    has_news: AtomicBool,
    waker: AtomicWaker,
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
    pub(in crate::loadgen) fn wake(&self) {
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
}
