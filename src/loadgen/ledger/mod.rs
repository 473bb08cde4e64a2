//! What was expected against what came.
//!
//! Live, each device's messages are checked as they are shown: repeats, order, membership, body, and that everybody sees the
//! same message under an id. At the end each conversation is read back in full and held against what was acknowledged
//! and what each member's device was shown. Memory is by range, by conversation and by membership change, never by message.

mod audit;
pub(super) mod ranges;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use audit::{AuditedDevice, audit_conversation};

use super::body::Tag;
use super::client::cursor::Seen;
use super::world::World;
use crate::protocol::{MessageId, UserId};

/// Violations that are described in words; all are counted.
const DESCRIBED_MAX: usize = 50;

/// Newest messages of a conversation that are remembered to compare live what different devices see. What a slower device
/// sees differently is found at the end, by the sums of the audit.
const WINDOW: usize = 8;

/// A broken guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Lost,
    Duplicated,
    OutOfOrder,
    IdReuse,
    Leaked,
    Altered,
    PresenceWrong,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Lost,
        Self::Duplicated,
        Self::OutOfOrder,
        Self::IdReuse,
        Self::Leaked,
        Self::Altered,
        Self::PresenceWrong,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::OutOfOrder => "out of order",
            Self::IdReuse => "id reuse",
            Self::Leaked => "leaked",
            Self::Altered => "altered",
            Self::PresenceWrong => "presence wrong",
        }
    }
}

/// A stretch of membership, on the run's clock in µs. `left_us` is when a removal was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stay {
    joined_us: u64,
    left_us: Option<u64>,
}

/// What a conversation's ledger holds; small, for there may be millions.
#[derive(Default)]
struct ConversationLedger {
    /// Memberships that changed during the run, by user index; everybody else is a member throughout or never.
    stays: Option<Box<HashMap<u32, Vec<Stay>>>>,
    /// Made with the first message.
    window: Option<Box<Window>>,
    /// Sum of [`Tag::hash_with`] over acknowledged messages.
    acked_sum: u64,
}

impl ConversationLedger {
    fn stays(&self, user: u32) -> Option<&Vec<Stay>> {
        self.stays.as_ref()?.get(&user)
    }
}

/// The newest messages seen by anybody, oldest overwritten first.
#[derive(Default)]
struct Window {
    entries: [WindowEntry; WINDOW],
    next: usize,
}

/// A message under an id; id 0 stands for none.
#[derive(Default, Clone, Copy)]
struct WindowEntry {
    id: u64,
    client: u32,
    counter: u32,
}

/// The ledger of a run. Written by clients and the engine.
pub(super) struct Ledger {
    conversations: Vec<Mutex<ConversationLedger>>,
    counts: [AtomicU64; Kind::ALL.len()],
    described: Mutex<Vec<String>>,
}

impl Ledger {
    pub(super) fn new(conversations: usize) -> Self {
        Self {
            conversations: (0..conversations).map(|_| Mutex::default()).collect(),
            counts: Default::default(),
            described: Mutex::default(),
        }
    }

    /// Counts a violation and keeps the first ones in words.
    pub(super) fn violation(&self, kind: Kind, describe: impl FnOnce() -> String) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        let mut described = self.described.lock().expect("no panic while held");
        if described.len() < DESCRIBED_MAX {
            described.push(format!("{}: {}", kind.name(), describe()));
        }
    }

    pub(super) fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    pub(super) fn described(&self) -> Vec<String> {
        self.described.lock().expect("no panic while held").clone()
    }

    /// Violations so far, by kind, without zeros.
    pub(super) fn violations(&self) -> std::collections::BTreeMap<String, u64> {
        let kinds = Kind::ALL.into_iter().map(|kind| (kind.name().to_owned(), self.count(kind)));
        kinds.filter(|(_, n)| *n > 0).collect()
    }

    fn conversation(&self, index: u32) -> std::sync::MutexGuard<'_, ConversationLedger> {
        self.conversations[index as usize].lock().expect("no panic while held")
    }

    /// A removal was confirmed.
    pub(super) fn left(&self, conversation: u32, user: u32, now_us: u64) {
        let mut ledger = self.conversation(conversation);
        let stays = ledger
            .stays
            .get_or_insert_default()
            .entry(user)
            .or_insert_with(|| vec![Stay { joined_us: 0, left_us: None }]);
        if let Some(stay) = stays.last_mut() {
            stay.left_us = Some(now_us);
        }
    }

    /// An addition begins: from now on the user may see messages.
    pub(super) fn joins(&self, conversation: u32, user: u32, now_us: u64) {
        let mut ledger = self.conversation(conversation);
        ledger.stays.get_or_insert_default().entry(user).or_default().push(Stay { joined_us: now_us, left_us: None });
    }

    /// Whether a user is a member now, as far as the run knows.
    pub(super) fn is_member(&self, world: &World, conversation: u32, user: u32) -> bool {
        let ledger = self.conversation(conversation);
        match ledger.stays(user) {
            Some(stays) => stays.last().is_some_and(|stay| stay.left_us.is_none()),
            None => world.is_original_member(conversation, user),
        }
    }

    /// The server said that a message is stored under an id.
    pub(super) fn on_ack(&self, tag: &Tag, id: MessageId) {
        let mut ledger = self.conversation(tag.conversation);
        ledger.acked_sum = ledger.acked_sum.wrapping_add(tag.hash_with(id));
        self.compare(&mut ledger, &Seen { id: id.0, tag: *tag, is_live: true }, "acknowledged");
    }

    /// A message is shown to a person. `newest` is the greatest id shown before on this device in this conversation.
    /// Returns whether the person was a member when it was sent; history is for those who come later, too.
    pub(super) fn on_shown(&self, world: &World, user: u32, seen: &Seen, newest: u64, is_first_time: bool) -> bool {
        let place =
            || format!("{} id {} on a device of user {user}", world.conversation_name(seen.tag.conversation), seen.id);
        if !is_first_time {
            self.violation(Kind::Duplicated, place);
        } else if seen.id < newest {
            self.violation(Kind::OutOfOrder, || format!("{} after id {newest}", place()));
        }
        let mut ledger = self.conversation(seen.tag.conversation);
        self.compare(&mut ledger, seen, "shown");
        let sent_us = seen.tag.sent_us;
        // History is for everybody who is a member now: what counts is whether a stay was still on, or not yet confirmed
        // as over, when the message was sent.
        let (may_see, was_there) = if let Some(stays) = ledger.stays(user) {
            let lasted = |stay: &Stay| stay.left_us.is_none_or(|left| sent_us <= left);
            (stays.iter().any(lasted), stays.iter().any(|stay| stay.joined_us <= sent_us && lasted(stay)))
        } else {
            let is_member = world.is_original_member(seen.tag.conversation, user);
            (is_member, is_member)
        };
        drop(ledger);
        if !may_see {
            self.violation(Kind::Leaked, || format!("{}, who was removed before it was sent", place()));
        }
        was_there
    }

    /// A message came whose body is not the one that was sent.
    pub(super) fn on_altered(&self, what: impl FnOnce() -> String) {
        self.violation(Kind::Altered, what);
    }

    /// Compares a message with what others saw under its id, and its uuid with other ids.
    fn compare(&self, ledger: &mut ConversationLedger, seen: &Seen, how: &str) {
        let window = ledger.window.get_or_insert_default();
        let Seen { id, tag, .. } = seen;
        for entry in window.entries.iter().filter(|entry| entry.id > 0) {
            let is_same_message = (entry.client, entry.counter) == (tag.client, tag.counter);
            if entry.id == *id && is_same_message {
                return;
            }
            let other = || Tag { client: entry.client, counter: entry.counter, ..*tag }.uuid();
            if entry.id == *id {
                self.violation(Kind::IdReuse, || format!("id {id} {how} as {} was {} elsewhere", tag.uuid(), other()));
                return;
            }
            if is_same_message {
                self.violation(Kind::Duplicated, || {
                    format!("{} {how} under id {id} was id {} elsewhere", tag.uuid(), entry.id)
                });
                return;
            }
        }
        window.entries[window.next] = WindowEntry { id: *id, client: tag.client, counter: tag.counter };
        window.next = (window.next + 1) % WINDOW;
    }
}

/// A user as the world names one, for violations.
pub(super) fn user_name(world: &World, user: u32) -> UserId {
    world.users[user as usize].id
}
