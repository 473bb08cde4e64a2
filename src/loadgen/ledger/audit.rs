//! The end of a run: one conversation read back in full, held against what was acknowledged, refused and shown.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::fates::{Claim, ClaimSource};
use super::ranges::Ranges;
use super::{Kind, Ledger, Seen, device as named_device, user_name};
use crate::loadgen::body::{Identity, at_hash};
use crate::loadgen::stats::add;
use crate::loadgen::world::World;
use crate::protocol::{MessageFrame, MessageId};

/// What one device has of the conversation.
pub(in crate::loadgen) struct AuditedDevice<'a> {
    pub(in crate::loadgen) client: u32,
    pub(in crate::loadgen) user: u32,
    /// Ids shown to the person.
    pub(in crate::loadgen) shown: &'a Ranges<u64>,
    /// Sum of [`Identity::hash_with`] over what was shown.
    pub(in crate::loadgen) shown_sum: u64,
    /// Sum of [`at_hash`] over what was shown.
    pub(in crate::loadgen) at_sum: u64,
    /// Counters of its own messages that were acknowledged.
    pub(in crate::loadgen) acked: &'a Ranges<u32>,
    /// Messages that came live and still wait above a hole.
    pub(in crate::loadgen) held: Vec<Seen>,
    /// True when the device synced to the end.
    pub(in crate::loadgen) is_drained: bool,
}

/// A stored message.
struct Row {
    identity: Identity,
    at: u64,
    /// Whether nothing in it was changed.
    is_sound: bool,
}

/// What is stored, by id, without messages that nobody sent.
type Rows = BTreeMap<u64, Row>;

/// One conversation's audit: what it is held against.
struct Audit<'a> {
    ledger: &'a Ledger,
    world: &'a World,
    conversation: u32,
    name: String,
    devices: &'a [AuditedDevice<'a>],
    /// What each client's devices have acknowledged, by client.
    acked: HashMap<u32, &'a Ranges<u32>>,
}

/// Audits one conversation. `stored` is everything that its owner can read, in the order in which it was returned.
pub(in crate::loadgen) fn audit_conversation(
    ledger: &Ledger,
    world: &World,
    conversation: u32,
    stored: &[MessageFrame],
    devices: &[AuditedDevice<'_>],
    now_unix_ms: u64,
) {
    let audit = Audit::new(ledger, world, conversation, devices);
    let rows = audit.check_rows(stored, now_unix_ms);
    audit.check_acked(&rows);
    audit.check_claims(&rows);
    let acked: Vec<u64> =
        rows.iter().filter(|(_, row)| row.is_sound && audit.is_acked(&row.identity)).map(|r| *r.0).collect();
    for device in devices {
        audit.check_device(&rows, &acked, device);
        audit.check_held(&rows, device);
    }
}

/// Compares another member's view of a conversation with its owner's: every view of it is the same.
pub(in crate::loadgen) fn audit_view(
    ledger: &Ledger,
    world: &World,
    conversation: u32,
    owners: &[MessageFrame],
    (user, view): (u32, &[MessageFrame]),
    devices: &[AuditedDevice<'_>],
) {
    let audit = Audit::new(ledger, world, conversation, devices);
    let (name, user) = (&audit.name, user_name(world, user));
    let mut newest = 0;
    for row in view {
        if row.id.0 <= newest {
            let id = row.id;
            ledger.violation(Kind::OutOfOrder, || format!("{name} sync returned {user} id {id} after id {newest}"));
        }
        newest = newest.max(row.id.0);
    }
    let seen: HashMap<u64, &MessageFrame> = view.iter().map(|row| (row.id.0, row)).collect();
    let mut owned = HashSet::new();
    for row in owners {
        owned.insert(row.id.0);
        let id = row.id;
        match seen.get(&id.0) {
            Some(other) if *other == row => {}
            Some(_) => ledger.violation(Kind::Altered, || format!("{name} id {id} reads differently for {user}")),
            None if Identity::of(row.uuid).is_some_and(|identity| audit.is_acked(&identity)) => {
                ledger.violation(Kind::Lost, || format!("{name} id {id} is missing in the history of {user}"));
            }
            None => continue,
        }
        add(&ledger.tallies.view_rows, 1);
    }
    // What the owner does not see is lost, or nobody's.
    for row in view.iter().filter(|row| !owned.contains(&row.id.0)) {
        let _ = ledger.read(world, row, || format!("{name} id {} is in the history of {user}", row.id));
    }
}

impl<'a> Audit<'a> {
    fn new(ledger: &'a Ledger, world: &'a World, conversation: u32, devices: &'a [AuditedDevice<'a>]) -> Self {
        let acked = devices.iter().map(|device| (device.client, device.acked)).collect();
        Self { ledger, world, conversation, name: world.conversation_name(conversation), devices, acked }
    }

    /// Whether the sender of a message got its ACK.
    fn is_acked(&self, identity: &Identity) -> bool {
        let is_here = identity.conversation == self.conversation;
        is_here && self.acked.get(&identity.client).is_some_and(|acked| acked.contains(identity.counter))
    }

    /// Order, uniqueness and every field of what is stored.
    fn check_rows(&self, stored: &[MessageFrame], now_unix_ms: u64) -> Rows {
        let (ledger, name) = (self.ledger, &self.name);
        let mut rows = Rows::new();
        let mut ids_by_uuid = HashMap::new();
        let mut newest = 0;
        for row in stored {
            let id = row.id.0;
            if id < newest {
                ledger.violation(Kind::OutOfOrder, || format!("{name} sync returned id {id} after id {newest}"));
            }
            if id == newest {
                ledger.violation(Kind::IdReuse, || format!("{name} sync returned id {id} twice"));
            }
            newest = newest.max(id);
            if let Some(other) = ids_by_uuid.insert(row.uuid, id) {
                let uuid = row.uuid;
                ledger.violation(Kind::Duplicated, || format!("{name} {uuid} is stored under ids {other} and {id}"));
            }
            let read = ledger.read(self.world, row, || format!("{name} id {id} is stored"));
            let is_in_time = ledger.is_of_run(row.at, now_unix_ms);
            if read.is_some() && !is_in_time {
                ledger.violation(Kind::Altered, || format!("{name} id {id} is stored with the time {}", row.at));
            }
            if let Some(tag) = read.filter(|tag| tag.conversation == self.conversation) {
                let mut known = ledger.conversation(self.conversation);
                ledger.check_acceptance(self.world, &mut known, &tag, "stored");
            }
            let known = || Identity::of(row.uuid).filter(|identity| ledger.was_sent(self.world, *identity));
            let Some(identity) = read.map(|tag| tag.identity()).or_else(known) else { continue };
            if self
                .ledger
                .conversation(self.conversation)
                .live()
                .fates
                .contradicts_refusal(identity.client, identity.counter)
            {
                ledger.violation(Kind::FalseRefusal, || {
                    format!("{name} id {id} ({}) was refused, and is stored", row.uuid)
                });
            }
            let is_sound = read.is_some_and(|tag| tag.conversation == self.conversation) && is_in_time;
            rows.insert(id, Row { identity, at: row.at, is_sound });
        }
        add(&ledger.tallies.rows, stored.len() as u64);
        rows
    }

    /// Every acknowledged message is stored, under the id that was acknowledged.
    fn check_acked(&self, rows: &Rows) {
        let (ledger, name) = (self.ledger, &self.name);
        let mut stored: HashMap<u32, Ranges<u32>> = HashMap::new();
        let mut sum = 0_u64;
        for (id, row) in rows {
            stored.entry(row.identity.client).or_default().insert(row.identity.counter);
            if self.is_acked(&row.identity) {
                sum = sum.wrapping_add(row.identity.hash_with(MessageId(*id)));
            }
        }
        let (mut expected, mut lost) = (0, 0);
        for device in self.devices {
            let empty = Ranges::default();
            let stored = stored.get(&device.client).unwrap_or(&empty);
            expected += device.acked.len();
            for counter in device.acked.iter().filter(|counter| !stored.contains(*counter)) {
                lost += 1;
                let client = device.client;
                ledger.violation(Kind::Lost, || {
                    let device = named_device(self.world, client);
                    format!("{name} message {counter} of {device} was acknowledged and is not stored")
                });
            }
        }
        add(&ledger.tallies.acked, expected);
        add(&ledger.tallies.stored, expected - lost);
        // A device that could not be waited for has told nothing of its ACKs, which the ledger has counted.
        let is_whole = rows.values().all(|row| self.acked.contains_key(&row.identity.client));
        let acked_sum = ledger.conversation(self.conversation).live.as_ref().map_or(0, |live| live.acked_sum);
        if is_whole && lost == 0 && sum != acked_sum {
            ledger.violation(Kind::IdReuse, || format!("{name} holds acknowledged messages under other ids"));
        }
    }

    /// What second ACKs and repeated pushes said is what is stored.
    fn check_claims(&self, rows: &Rows) {
        let claims = match &mut self.ledger.conversation(self.conversation).live {
            Some(live) => live.fates.take_claims(),
            None => return,
        };
        for claim in claims {
            let is_it = |row: &Row| (row.identity.client, row.identity.counter) == (claim.client, claim.counter);
            if !rows.get(&claim.id).is_some_and(is_it) {
                self.refute(&claim, rows.iter().find(|(_, row)| is_it(row)).map(|(id, _)| *id));
            }
        }
    }

    /// A claim is not what is stored: the message is stored under another id, or not at all.
    fn refute(&self, claim: &Claim, stored: Option<u64>) {
        let Claim { client, counter, id, source } = *claim;
        let (how, kind) = match (source, stored) {
            (ClaimSource::Ack, Some(_)) => ("acknowledged", Kind::AckWrong),
            // One that was acknowledged at first is told as lost by that.
            (ClaimSource::Ack, None) if self.acked.get(&client).is_some_and(|acked| acked.contains(counter)) => return,
            (ClaimSource::Ack, None) => ("acknowledged", Kind::Lost),
            (ClaimSource::Push, Some(_)) => ("pushed", Kind::Duplicated),
            (ClaimSource::Push, None) => ("pushed", Kind::IdReuse),
        };
        self.ledger.violation(kind, || {
            let (name, device) = (&self.name, named_device(self.world, client));
            let stored = stored.map_or_else(|| "not stored".to_owned(), |stored| format!("stored as id {stored}"));
            format!("{name} message {counter} of {device} was {how} again as id {id}, and is {stored}")
        });
    }

    /// What came live and was held above a hole is stored as it came: a server pushes nothing that is not stored.
    fn check_held(&self, rows: &Rows, device: &AuditedDevice<'_>) {
        for Seen { id, tag, .. } in &device.held {
            if rows.get(id).is_some_and(|row| row.identity == tag.identity()) {
                continue;
            }
            let place = || format!("{} id {id} came to {}", self.name, user_name(self.world, device.user));
            let stored = rows.iter().find(|(_, row)| row.identity == tag.identity());
            match stored {
                Some((other, _)) => {
                    self.ledger.violation(Kind::Duplicated, || format!("{}, and is stored as id {other}", place()));
                }
                None => self.ledger.violation(Kind::IdReuse, || format!("{} and is not stored", place())),
            }
        }
    }

    /// What a device was shown is what is stored, and nothing is missing.
    fn check_device(&self, rows: &Rows, acked: &[u64], device: &AuditedDevice<'_>) {
        let (ledger, name, user) = (self.ledger, &self.name, user_name(self.world, device.user));
        for id in device.shown.iter().filter(|id| !rows.contains_key(id)) {
            ledger.violation(Kind::IdReuse, || format!("{name} id {id} was shown to {user} and is not stored"));
        }
        let (mut stored_sum, mut at_sum) = (0_u64, 0_u64);
        for (id, row) in rows.iter().filter(|(id, _)| device.shown.contains(**id)) {
            stored_sum = stored_sum.wrapping_add(row.identity.hash_with(MessageId(*id)));
            at_sum = at_sum.wrapping_add(at_hash(*id, row.at));
        }
        if stored_sum != device.shown_sum {
            ledger.violation(Kind::IdReuse, || {
                format!("{name} showed {user} other messages than are stored under the same ids")
            });
        } else if at_sum != device.at_sum {
            ledger.violation(Kind::Altered, || format!("{name} showed {user} other times than are stored"));
        }
        if !device.is_drained || !ledger.is_member(self.world, self.conversation, device.user) {
            return;
        }
        // One whose answer never came may have been stored after this device had synced for the last time.
        let missing: Vec<u64> = acked.iter().copied().filter(|id| !device.shown.contains(*id)).collect();
        add(&ledger.tallies.reach_expected, acked.len() as u64);
        add(&ledger.tallies.reached, (acked.len() - missing.len()) as u64);
        for id in missing {
            let Row { identity, .. } = &rows[&id];
            ledger.violation(Kind::Lost, || {
                let Identity { client, counter, .. } = identity;
                let sender = named_device(self.world, *client);
                format!("{name} id {id} (message {counter} of {sender}) never reached a device of {user}")
            });
        }
    }
}
