//! How a device is reached: commands for it, and what wakes it.
//!
//! A device waits for three things at once: its socket, its mailbox, the clock (see `alarms`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::loadgen::api::Error;
use crate::loadgen::recorder::{LagOf, Recorder};
use crate::protocol::api::{InboxEntry, MessagesSync};

/// What a device is told to do, and what its own background calls bring back.
pub(in crate::loadgen) enum Command {
    /// Be connected; it was due at this time (µs).
    Online(u64),
    /// Close the connection and stay away.
    Offline,
    /// Be gone without a word: the socket stays open, and nobody reads or writes it any more.
    Vanish,
    /// Send a message of some size that is due at this time (µs).
    Send { conversation: u32, intended_us: u64, bytes: u32 },
    /// The user is a member of a conversation again, and got to know it as people do.
    Joined(u32),
    /// The inbox was listed.
    Heads(Result<Vec<InboxEntry>, Error>),
    /// A page of a conversation came.
    Page(Box<Page>),
    /// Finish until this time (µs): nothing new is sent, what is pending is answered, everything is synced.
    Finish(u64),
}

impl Command {
    /// What is due at a time, and when (µs).
    const fn due(&self) -> Option<(LagOf, u64)> {
        match self {
            Self::Send { intended_us, .. } => Some((LagOf::Send, *intended_us)),
            Self::Online(due_us) if *due_us > 0 => Some((LagOf::Other, *due_us)),
            _ => None,
        }
    }
}

/// A page of a conversation.
pub(in crate::loadgen) struct Page {
    pub(super) conversation: u32,
    pub(super) after: u64,
    pub(super) started_us: u64,
    /// Start of the call on the boot clock, for the history.
    pub(super) started_s: f64,
    pub(super) result: Result<MessagesSync, Error>,
}

/// Where a device is reached, and what others may know of it.
#[derive(Default)]
pub(in crate::loadgen) struct Mailbox {
    /// Written by anybody, taken by the device.
    commands: Mutex<Vec<Command>>,
    /// Set by whoever wants the device to look; cleared by the device.
    has_news: AtomicBool,
    waker: AtomicWaker,
    /// Index of the device's server plus one; 0 while it is not connected. Written by the device.
    server: AtomicU16,
}

impl Mailbox {
    pub(in crate::loadgen) fn put(&self, command: Command) {
        self.commands.lock().expect("no panic while held").push(command);
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

    /// Takes all commands. The time from when one was due until now is the generator's lag: by how much its machine, and
    /// nothing else, was late. What a server keeps waiting comes after it; so a device takes its commands whatever it waits for.
    pub(super) fn take(&self, client: u32, now_us: u64, recorder: &Recorder) -> Vec<Command> {
        let commands = std::mem::take(&mut *self.commands.lock().expect("no panic while held"));
        for (lag_of, due_us) in commands.iter().filter_map(Command::due) {
            recorder.late_by(client, lag_of, due_us, now_us);
        }
        commands
    }

    pub(super) fn set_server(&self, index: Option<u16>) {
        self.server.store(index.map_or(0, |index| index + 1), Ordering::Relaxed);
    }

    /// Index of the server that the device is connected to.
    pub(super) fn server(&self) -> Option<u16> {
        self.server.load(Ordering::Relaxed).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_of_a_command_ends_when_it_is_taken() {
        let (mailbox, recorder) = (Mailbox::default(), Recorder::new());
        mailbox.put(Command::Send { conversation: 0, intended_us: 1_000, bytes: 80 });
        mailbox.put(Command::Online(0));
        mailbox.put(Command::Online(1_200));
        mailbox.put(Command::Offline);
        assert_eq!(mailbox.take(0, 1_500, &recorder).len(), 4);
        let lag = recorder.lag().summary();
        assert_eq!((lag.count, lag.min_us, lag.max_us), (2, 300, 500), "what is due at once has none");
        assert!(mailbox.take(0, 1_600, &recorder).is_empty());
    }
}
