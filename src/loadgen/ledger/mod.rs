//! What was expected against what came.
//!
//! Live, each device's messages are checked as they are shown: repeats, order, membership, body, and that everybody sees the
//! same message under an id. At the end each conversation is read back in full, as its members see it, and held against what
//! was acknowledged, refused and shown. Memory is by range, by conversation and by membership change, never by message.
//!
//! | file | what |
//! |---|---|
//! | `kind` | the broken guarantees |
//! | `members` | who was a member when, as far as that is sure |
//! | `fates` | what was sent, refused and acknowledged in a conversation |
//! | `answers` | sends, ACKs and refusals as they come |
//! | `delivery` | what a delivery counts as |
//! | `unpushed` | pushes that are missing so far |
//! | `presence` | beats, and what friends must and must not be told |
//! | `told` | what the judgement of presence found, counted and described |
//! | `audit` | the end: everything stored against everything known |
//! | `checks` | what the verdict rests on, and how much of it |
//! | `ranges` | sets of numbers without holes |

mod answers;
mod audit;
mod checks;
mod delivery;
mod fates;
mod kind;
mod members;
mod presence;
pub(super) mod ranges;
mod told;
mod unpushed;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) use answers::Refusal;
pub(super) use audit::{AuditedDevice, audit_conversation, audit_view};
pub use checks::Tallied;
pub(super) use checks::{Tallies, checks};
pub(super) use delivery::{Delivery, Membership};
pub(super) use kind::Kind;
pub(super) use presence::Presence;
pub(super) use unpushed::{MessageCopy, PUSH_WAIT_US, Unpushed};

use self::fates::{Claim, ClaimSource, Fates};
use self::members::{GONE_US, Stays};
use super::body::{Identity, Tag};
use super::client::cursor::Seen;
use super::stats::add;
use super::world::World;
use crate::protocol::limits::FANOUT_ON_WRITE_MEMBERS_MAX;
use crate::protocol::{ConversationId, MessageFrame, UserId};

/// Violations that are described in words; all are counted.
const DESCRIBED_MAX: usize = 50;

/// Newest messages of a conversation that are remembered to compare live what different devices see. What a slower device
/// sees differently is found at the end, by the sums of the audit.
const WINDOW: usize = 8;

/// How far a server's clock may be from ours, in ms: times that it tells are checked against those of the run with this on both
/// sides.
const CLOCK_TOLERANCE_MS: u64 = 10 * 60 * 1_000;

/// The `kind` of every message that simulated clients send.
pub(super) const MESSAGE_KIND: &str = "text";

/// What a conversation's ledger holds; small, for there may be millions.
#[derive(Default)]
struct ConversationLedger {
    /// Memberships that changed during the run, by user index; everybody else is a member throughout or never.
    stays: Option<Box<HashMap<u32, Stays>>>,
    /// Made with the first message.
    live: Option<Box<Live>>,
}

/// What is known of a conversation that had a message.
#[derive(Default)]
struct Live {
    window: Window,
    /// Sum of [`Tag::hash_with`] over acknowledged messages.
    acked_sum: u64,
    fates: Fates,
}

impl ConversationLedger {
    fn stays(&self, user: u32) -> Option<&Stays> {
        self.stays.as_ref()?.get(&user)
    }

    fn live(&mut self) -> &mut Live {
        self.live.get_or_insert_default()
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

impl Window {
    /// The id under which a message was seen lately.
    fn id_of(&self, client: u32, counter: u32) -> Option<u64> {
        let is_it = |entry: &&WindowEntry| entry.id > 0 && (entry.client, entry.counter) == (client, counter);
        self.entries.iter().find(is_it).map(|entry| entry.id)
    }
}

/// The ledger of a run. Written by clients and the engine.
pub(super) struct Ledger {
    run: u32,
    /// Wall-clock time before the first message, in ms since 1970.
    began_unix_ms: u64,
    conversations: Vec<Mutex<ConversationLedger>>,
    /// Whether any membership was ever changed: then each message's reader is looked at before it is shown.
    has_changes: AtomicBool,
    counts: [AtomicU64; Kind::ALL.len()],
    described: Mutex<Vec<String>>,
    pub(super) tallies: Tallies,
    pub(super) presence: Presence,
    pub(super) unpushed: Unpushed,
}

impl Ledger {
    pub(super) fn new(run: u32, conversations: usize, began_unix_ms: u64) -> Self {
        Self {
            run,
            began_unix_ms,
            conversations: (0..conversations).map(|_| Mutex::default()).collect(),
            has_changes: AtomicBool::new(false),
            counts: Default::default(),
            described: Mutex::default(),
            tallies: Tallies::default(),
            presence: Presence::default(),
            unpushed: Unpushed::default(),
        }
    }

    /// The same with users who have friends.
    pub(super) fn with_presence(self, presence: Presence) -> Self {
        Self { presence, ..self }
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
        let kinds = Kind::ALL.iter().map(|kind| (kind.name().to_owned(), self.count(*kind)));
        kinds.filter(|(_, n)| *n > 0).collect()
    }

    fn conversation(&self, index: u32) -> std::sync::MutexGuard<'_, ConversationLedger> {
        self.conversations[index as usize].lock().expect("no panic while held")
    }

    /// Whether a time that a server told, in ms since 1970, lies between the run's start and now.
    pub(super) const fn is_of_run(&self, at_ms: u64, now_unix_ms: u64) -> bool {
        at_ms.saturating_add(CLOCK_TOLERANCE_MS) >= self.began_unix_ms
            && at_ms <= now_unix_ms.saturating_add(CLOCK_TOLERANCE_MS)
    }

    // ---- membership

    fn change(&self, world: &World, conversation: u32, user: u32, change: impl FnOnce(&mut Stays)) {
        self.has_changes.store(true, Ordering::Release);
        let mut ledger = self.conversation(conversation);
        let stays = ledger.stays.get_or_insert_default().entry(user);
        change(stays.or_insert_with(|| Stays::new(world.is_original_member(conversation, user))));
    }

    /// A call begins that removes a member.
    pub(super) fn leaving(&self, world: &World, conversation: u32, user: u32, now_us: u64) {
        self.change(world, conversation, user, |stays| stays.leaving(now_us));
    }

    /// A removal was confirmed.
    pub(super) fn left(&self, world: &World, conversation: u32, user: u32, now_us: u64) {
        self.change(world, conversation, user, |stays| stays.left(now_us));
    }

    /// A call begins that adds a member: from now on the user may see messages.
    pub(super) fn joining(&self, world: &World, conversation: u32, user: u32, now_us: u64) {
        self.change(world, conversation, user, |stays| stays.joining(now_us));
    }

    /// An addition was confirmed.
    pub(super) fn joined(&self, world: &World, conversation: u32, user: u32, now_us: u64) {
        self.change(world, conversation, user, |stays| stays.joined(now_us));
    }

    fn ask<T>(&self, world: &World, conversation: u32, user: u32, ask: impl FnOnce(&Stays) -> T) -> T {
        let ledger = self.conversation(conversation);
        match ledger.stays(user) {
            Some(stays) => ask(stays),
            None => ask(&Stays::new(world.is_original_member(conversation, user))),
        }
    }

    /// Whether a user surely is a member now.
    pub(super) fn is_member(&self, world: &World, conversation: u32, user: u32) -> bool {
        self.ask(world, conversation, user, Stays::is_sure)
    }

    /// Whether a user surely was removed and is not back.
    pub(super) fn has_left(&self, world: &World, conversation: u32, user: u32) -> bool {
        self.ask(world, conversation, user, Stays::has_left)
    }

    /// Whether a user surely was a member from a time until now.
    pub(super) fn was_settled_since(&self, world: &World, conversation: u32, user: u32, at_us: u64) -> bool {
        self.ask(world, conversation, user, |stays| stays.was_settled_since(at_us))
    }

    /// Members of a conversation who surely were removed and are not back.
    pub(super) fn removed(&self, conversation: u32) -> Vec<u32> {
        let ledger = self.conversation(conversation);
        let stays = ledger.stays.iter().flat_map(|stays| stays.iter());
        stays.filter(|(_, stays)| stays.has_left()).map(|(user, _)| *user).collect()
    }

    /// Whether a conversation may have been large, or not, at some time of the run. Members are removed and come back.
    pub(super) fn may_have_been(&self, world: &World, conversation: u32, is_large: bool) -> bool {
        let most = world.members(conversation).len();
        let changed = self.conversation(conversation).stays.as_ref().map_or(0, |stays| stays.len());
        if is_large {
            most > FANOUT_ON_WRITE_MEMBERS_MAX
        } else {
            most.saturating_sub(changed) <= FANOUT_ON_WRITE_MEMBERS_MAX
        }
    }

    // ---- messages

    /// Reads a message that came, or that is stored: its tag, where it is one that a simulated client sent and nothing in it
    /// was changed. Anything else is a violation, described by `place`.
    pub(super) fn read(&self, world: &World, message: &MessageFrame, place: impl FnOnce() -> String) -> Option<Tag> {
        let tag = Tag::of(message).filter(|tag| self.was_sent(world, tag.identity()));
        let Some(tag) = tag else {
            // A uuid that was sent tells whose message was changed; any other is nobody's.
            let is_known = Identity::of(message.uuid).is_some_and(|identity| self.was_sent(world, identity));
            if is_known {
                self.violation(Kind::Altered, || format!("{} with another body", place()));
            } else {
                self.violation(Kind::Forged, || format!("{} as {}, which nobody sent", place(), message.uuid));
            }
            return None;
        };
        let sender = world.users[world.clients[tag.client as usize].user as usize].id;
        let changed = if world.conversations[tag.conversation as usize].id != message.conversation {
            "in another conversation"
        } else if sender != message.sender {
            "from another sender"
        } else if message.kind != MESSAGE_KIND {
            "with another kind"
        } else if message.reply_to.is_some() {
            "as a reply"
        } else {
            return Some(tag);
        };
        self.violation(Kind::Altered, || format!("{} {changed}", place()));
        None
    }

    /// Whether a simulated client of this run wrote that message.
    fn was_sent(&self, world: &World, identity: Identity) -> bool {
        let Identity { run, conversation, client, counter } = identity;
        let is_here = run == self.run
            && (conversation as usize) < self.conversations.len()
            && (client as usize) < world.clients.len();
        is_here && self.conversation(conversation).live.as_ref().is_some_and(|l| l.fates.was_sent(client, counter))
    }

    /// A message came live to a device of a user. Returns whether it may be shown: not to somebody who was removed before it
    /// was sent and is not back.
    pub(super) fn may_arrive(&self, world: &World, user: u32, seen: &Seen) -> bool {
        if !self.has_changes.load(Ordering::Acquire) {
            return true;
        }
        let may_see =
            self.conversation(seen.tag.conversation).stays(user).is_none_or(|stays| stays.may_see(seen.tag.sent_us));
        if !may_see {
            self.violation(Kind::Leaked, || {
                let (conversation, user) = (world.conversation_name(seen.tag.conversation), user_name(world, user));
                format!("{conversation} id {} came to {user}, who was removed before it was sent", seen.id)
            });
        }
        may_see
    }

    /// A message is shown to a person. `newest` is the greatest id shown before on this device in this conversation.
    /// Returns what is known of the person's membership; history is for those who come later, too.
    pub(super) fn on_shown(
        &self,
        world: &World,
        user: u32,
        seen: &Seen,
        newest: u64,
        is_first_time: bool,
    ) -> Membership {
        let place =
            || format!("{} id {} on a device of user {user}", world.conversation_name(seen.tag.conversation), seen.id);
        if !is_first_time {
            self.violation(Kind::Duplicated, place);
        } else if seen.id < newest {
            self.violation(Kind::OutOfOrder, || format!("{} after id {newest}", place()));
        }
        let mut ledger = self.conversation(seen.tag.conversation);
        let live = ledger.live();
        self.compare(&mut live.window, seen, "shown");
        let was_refused = live.fates.contradicts_refusal(seen.tag.client, seen.tag.counter);
        self.check_acceptance(world, &mut ledger, &seen.tag, "shown");
        let sent_us = seen.tag.sent_us;
        let (may_see, membership) = if let Some(stays) = ledger.stays(user) {
            let (was_member, is_settled) = (stays.was_member(sent_us), stays.was_settled_since(sent_us));
            (stays.may_see(sent_us), Membership { was_member, is_settled })
        } else {
            let is_member = world.is_original_member(seen.tag.conversation, user);
            (is_member, Membership { was_member: is_member, is_settled: is_member })
        };
        drop(ledger);
        if was_refused {
            self.violation(Kind::FalseRefusal, || format!("{} was refused", place()));
        }
        if !may_see {
            self.violation(Kind::Leaked, || format!("{}, who was removed before it was sent", place()));
        }
        membership
    }

    /// A server told a user something of a conversation, beside its messages. Returns the conversation's index where the user
    /// may hear of it. One of other people is leaked by it, and one that nobody made is made up. `said_us`: a time before it was said, on the run's clock.
    pub(super) fn hears_of(
        &self,
        world: &World,
        (user, id): (u32, ConversationId),
        what: &str,
        said_us: u64,
    ) -> Option<u32> {
        let name = user_name(world, user);
        let Some(index) = world.conversation_index(id) else {
            self.violation(Kind::Forged, || format!("{what} of {id}, which nobody made, came to {name}"));
            return None;
        };
        if !world.is_original_member(index, user) && self.conversation(index).stays(user).is_none() {
            self.violation(Kind::Leaked, || format!("{what} of {id} came to {name}, who was never a member"));
            return None;
        }
        // While a server is faulty or cut off, what it had to say waits with it.
        let has_left = self.has_changes.load(Ordering::Acquire)
            && !self.presence.may_have_lost_push(said_us.saturating_sub(GONE_US), said_us)
            && self.conversation(index).stays(user).is_some_and(|stays| stays.has_been_gone(said_us));
        if has_left {
            self.violation(Kind::Leaked, || format!("{what} of {id} came to {name}, who was removed long before"));
        }
        Some(index)
    }

    /// A receipt or a typing notice came: simulated clients send none.
    pub(super) fn on_unsent_notice(&self, world: &World, what: &str, client: u32) {
        self.violation(Kind::Forged, || format!("a {what} that nobody sent came to {}", device(world, client)));
    }

    /// A message was pushed to a device that has its id already. What is remembered of both is compared at once, anything else
    /// with what is stored, at the end.
    pub(super) fn on_repeated(&self, seen: &Seen) {
        let Tag { conversation, client, counter, .. } = seen.tag;
        let mut ledger = self.conversation(conversation);
        let live = ledger.live();
        let claim = Claim { client, counter, id: seen.id, source: ClaimSource::Push };
        if !self.is_known(&live.window, seen, "pushed again") && !live.fates.claim(claim) {
            add(&self.tallies.claims_dropped, 1);
        }
    }

    /// Compares a message with what others saw under its id, and its uuid with other ids. What nobody saw is remembered.
    fn compare(&self, window: &mut Window, seen: &Seen, how: &str) {
        if !self.is_known(window, seen, how) {
            window.entries[window.next] =
                WindowEntry { id: seen.id, client: seen.tag.client, counter: seen.tag.counter };
            window.next = (window.next + 1) % WINDOW;
        }
    }

    /// Whether a message, or its id, is among those that are remembered. Where not both belong together, that is a violation.
    fn is_known(&self, window: &Window, seen: &Seen, how: &str) -> bool {
        let Seen { id, tag, .. } = seen;
        for entry in window.entries.iter().filter(|entry| entry.id > 0) {
            let is_same_message = (entry.client, entry.counter) == (tag.client, tag.counter);
            if entry.id == *id && is_same_message {
                return true;
            }
            let other = || Tag { client: entry.client, counter: entry.counter, ..*tag }.uuid();
            if entry.id == *id {
                self.violation(Kind::IdReuse, || format!("id {id} {how} as {} was {} elsewhere", tag.uuid(), other()));
                return true;
            }
            if is_same_message {
                self.violation(Kind::Duplicated, || {
                    format!("{} {how} under id {id} was id {} elsewhere", tag.uuid(), entry.id)
                });
                return true;
            }
        }
        false
    }
}

/// A user as the world names one, for violations.
pub(super) fn user_name(world: &World, user: u32) -> UserId {
    world.users[user as usize].id
}

/// A device as the API names it, for violations: `u5's device-2`.
pub(super) fn device(world: &World, client: u32) -> String {
    let user = world.clients[client as usize].user;
    format!("{}'s {}", user_name(world, user), world.device_name(client))
}

#[cfg(test)]
mod tests;
