//! The end of a run: one conversation read back in full, held against what was acknowledged and what was shown.

use std::collections::{BTreeMap, HashMap};

use super::ranges::Ranges;
use super::{Kind, Ledger, user_name};
use crate::loadgen::body::Tag;
use crate::loadgen::world::World;
use crate::protocol::MessageFrame;

/// What one device has of the conversation.
pub(in crate::loadgen) struct AuditedDevice<'a> {
    pub(in crate::loadgen) client: u32,
    pub(in crate::loadgen) user: u32,
    /// Ids shown to the person.
    pub(in crate::loadgen) shown: &'a Ranges<u64>,
    /// Sum of [`Tag::hash_with`] over what was shown.
    pub(in crate::loadgen) shown_sum: u64,
    /// Counters of its own messages that were acknowledged.
    pub(in crate::loadgen) acked: &'a Ranges<u32>,
    /// True when the device synced to the end.
    pub(in crate::loadgen) is_drained: bool,
}

/// Audits one conversation. `stored` is everything that a member can read, in the order in which it was returned.
pub(in crate::loadgen) fn audit_conversation(
    ledger: &Ledger,
    world: &World,
    conversation: u32,
    stored: &[MessageFrame],
    devices: &[AuditedDevice<'_>],
) {
    let name = world.conversation_name(conversation);
    let tags = check_rows(ledger, &name, conversation, stored);
    check_acked(ledger, &name, conversation, &tags, devices);
    for device in devices {
        let user = user_name(world, device.user);
        for id in device.shown.iter().filter(|id| !tags.contains_key(id)) {
            ledger.violation(Kind::IdReuse, || format!("{name} id {id} was shown to {user} and is not stored"));
        }
        let mut stored_sum = 0_u64;
        let mut missing = Vec::new();
        for (id, tag) in &tags {
            if device.shown.contains(*id) {
                stored_sum = stored_sum.wrapping_add(tag.hash_with(crate::protocol::MessageId(*id)));
            } else {
                missing.push((id, tag));
            }
        }
        if stored_sum != device.shown_sum {
            ledger.violation(Kind::IdReuse, || {
                format!("{name} showed {user} other messages than are stored under the same ids")
            });
        }
        if device.is_drained && ledger.is_member(world, conversation, device.user) {
            // One whose answer never came may have been stored after this device had synced for the last time.
            for (id, tag) in missing.into_iter().filter(|(_, tag)| is_acked(devices, tag)) {
                let uuid = tag.uuid();
                ledger.violation(Kind::Lost, || format!("{name} id {id} ({uuid}) never reached a device of {user}"));
            }
        }
    }
}

/// Whether the sender of a message got its ACK.
fn is_acked(devices: &[AuditedDevice<'_>], tag: &Tag) -> bool {
    devices.iter().any(|device| device.client == tag.client && device.acked.contains(tag.counter))
}

/// Order, uniqueness and bodies of what is stored. Returns the tags by id.
fn check_rows(ledger: &Ledger, name: &str, conversation: u32, stored: &[MessageFrame]) -> BTreeMap<u64, Tag> {
    let mut tags = BTreeMap::new();
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
        match Tag::of(row).filter(|tag| tag.conversation == conversation) {
            Some(tag) => {
                tags.insert(id, tag);
            }
            None => ledger.violation(Kind::Altered, || format!("{name} id {id} is stored with another body")),
        }
    }
    tags
}

/// Every acknowledged message is stored, under the id that was acknowledged.
fn check_acked(
    ledger: &Ledger,
    name: &str,
    conversation: u32,
    tags: &BTreeMap<u64, Tag>,
    devices: &[AuditedDevice<'_>],
) {
    let acked: HashMap<u32, &Ranges<u32>> = devices.iter().map(|d| (d.client, d.acked)).collect();
    let mut stored: HashMap<u32, Ranges<u32>> = HashMap::new();
    let mut sum = 0_u64;
    for (id, tag) in tags {
        stored.entry(tag.client).or_default().insert(tag.counter);
        if acked.get(&tag.client).is_some_and(|acked| acked.contains(tag.counter)) {
            sum = sum.wrapping_add(tag.hash_with(crate::protocol::MessageId(*id)));
        }
    }
    let mut lost = 0;
    for device in devices {
        let empty = Ranges::default();
        let stored = stored.get(&device.client).unwrap_or(&empty);
        for counter in device.acked.iter().filter(|counter| !stored.contains(*counter)) {
            lost += 1;
            let client = device.client;
            ledger.violation(Kind::Lost, || {
                format!("{name} message {counter} of client {client} was acknowledged and is not stored")
            });
        }
    }
    // A device that could not be waited for has told nothing of its ACKs, which the ledger has counted.
    let is_whole = tags.values().all(|tag| acked.contains_key(&tag.client));
    if is_whole && lost == 0 && sum != ledger.conversation(conversation).acked_sum {
        ledger.violation(Kind::IdReuse, || format!("{name} holds acknowledged messages under other ids"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadgen::client::cursor::Seen;
    use crate::loadgen::ledger::ranges::Whole;
    use crate::loadgen::world::tests::tiny_world;
    use crate::protocol::MessageId;

    fn tag(client: u32, counter: u32) -> Tag {
        Tag { run: 1, conversation: 0, client, counter, intended_us: 10, sent_us: 20 }
    }

    fn row(id: u64, tag: Tag) -> MessageFrame {
        let world = tiny_world();
        MessageFrame {
            conversation: world.conversations[0].id,
            id: MessageId(id),
            uuid: tag.uuid(),
            sender: world.users[0].id,
            kind: "text".to_owned(),
            body: tag.body(100),
            reply_to: None,
            at: 1,
        }
    }

    fn ranges<N: Whole>(numbers: &[N]) -> Ranges<N> {
        let mut out = Ranges::default();
        for n in numbers {
            out.insert(*n);
        }
        out
    }

    /// What a device adds up that was shown message n of client 0 under id n.
    fn sum(shown: &[u64]) -> u64 {
        shown.iter().fold(0, |sum, n| sum.wrapping_add(tag(0, *n as u32).hash_with(MessageId(*n))))
    }

    /// Two messages of client 0, acknowledged under 1 and 2; two devices that were shown `shown`.
    fn audit(stored: &[MessageFrame], shown: [&[u64]; 2]) -> Ledger {
        let world = tiny_world();
        let ledger = Ledger::new(1);
        ledger.on_ack(&tag(0, 1), MessageId(1));
        ledger.on_ack(&tag(0, 2), MessageId(2));
        let (acked, none) = (ranges(&[1, 2]), Ranges::default());
        let (sums, shown) = (shown.map(sum), shown.map(ranges));
        let device = |n: u32, acked| {
            let (shown, shown_sum) = (&shown[n as usize], sums[n as usize]);
            AuditedDevice { client: n, user: n, shown, shown_sum, acked, is_drained: true }
        };
        let devices = [device(0, &acked), device(1, &none)];
        audit_conversation(&ledger, &world, 0, stored, &devices);
        ledger
    }

    #[test]
    fn a_device_that_could_not_be_waited_for_is_no_violation() {
        let (world, ledger) = (tiny_world(), Ledger::new(1));
        ledger.on_ack(&tag(0, 1), MessageId(1));
        let (shown, acked) = (ranges(&[1]), Ranges::default());
        let other =
            AuditedDevice { client: 1, user: 1, shown: &shown, shown_sum: sum(&[1]), acked: &acked, is_drained: true };
        audit_conversation(&ledger, &world, 0, &[row(1, tag(0, 1))], &[other]);
        assert_eq!(kinds(&ledger), [], "{:?}", ledger.described());
    }

    fn kinds(ledger: &Ledger) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| ledger.count(*kind) > 0).collect()
    }

    #[test]
    fn a_sound_conversation_has_no_violation() {
        let ledger = audit(&[row(1, tag(0, 1)), row(2, tag(0, 2))], [&[1, 2], &[1, 2]]);
        assert_eq!(kinds(&ledger), [], "{:?}", ledger.described());
    }

    #[test]
    fn each_breakage_is_seen_and_named() {
        let (one, two) = (row(1, tag(0, 1)), row(2, tag(0, 2)));
        let lost_for_one = audit(&[one.clone(), two.clone()], [&[1, 2], &[1]]);
        assert_eq!(kinds(&lost_for_one), [Kind::Lost]);
        assert!(lost_for_one.described()[0].contains("id 2"), "{:?}", lost_for_one.described());
        assert_eq!(kinds(&audit(std::slice::from_ref(&one), [&[1], &[1]])), [Kind::Lost]);
        assert_eq!(kinds(&audit(&[two.clone(), one.clone()], [&[1, 2], &[1, 2]])), [Kind::OutOfOrder]);
        let unanswered = audit(&[one.clone(), two.clone(), row(3, tag(0, 3))], [&[1, 2, 3], &[1, 2]]);
        assert_eq!(kinds(&unanswered), [], "3 was never acknowledged: {:?}", unanswered.described());
        let twice = audit(&[one.clone(), two.clone(), row(3, tag(0, 2))], [&[1, 2, 3], &[1, 2, 3]]);
        assert!(kinds(&twice).contains(&Kind::Duplicated));
        let swapped = audit(&[row(1, tag(0, 2)), row(2, tag(0, 1))], [&[1, 2], &[1, 2]]);
        assert_eq!(kinds(&swapped), [Kind::IdReuse]);
        let altered = MessageFrame { body: one.body.replace('a', "b"), ..one };
        assert!(kinds(&audit(&[altered, two], [&[1, 2], &[1, 2]])).contains(&Kind::Altered));
    }

    #[test]
    fn one_lost_message_in_ten_million_deliveries_is_found_and_named() {
        const MESSAGES: u64 = 50_000;
        const DEVICES: u32 = 200;
        let world = tiny_world();
        let ledger = Ledger::new(1);
        let stored: Vec<MessageFrame> = (1..=MESSAGES).map(|n| row(n, tag(0, n as u32))).collect();
        let (mut all, mut most, mut acked) = (Ranges::default(), Ranges::default(), Ranges::default());
        let (mut sum, mut sum_of_most) = (0_u64, 0_u64);
        for n in 1..=MESSAGES {
            let hash = tag(0, n as u32).hash_with(MessageId(n));
            ledger.on_ack(&tag(0, n as u32), MessageId(n));
            (sum, _) = (sum.wrapping_add(hash), acked.insert(n as u32));
            all.insert(n);
            if n != 31_415 {
                sum_of_most = sum_of_most.wrapping_add(hash);
                most.insert(n);
            }
        }
        let none = Ranges::default();
        let devices: Vec<AuditedDevice<'_>> = (0..DEVICES)
            .map(|n| {
                let (shown, shown_sum) = if n == 77 { (&most, sum_of_most) } else { (&all, sum) };
                let acked = if n == 0 { &acked } else { &none };
                AuditedDevice { client: n, user: n % 2, shown, shown_sum, acked, is_drained: true }
            })
            .collect();
        audit_conversation(&ledger, &world, 0, &stored, &devices);
        assert_eq!((kinds(&ledger), ledger.count(Kind::Lost)), (vec![Kind::Lost], 1));
        assert!(ledger.described()[0].contains("id 31415 "), "{:?}", ledger.described());
    }

    #[test]
    fn a_device_that_was_shown_another_message_under_an_id_is_found_long_after() {
        let world = tiny_world();
        let ledger = Ledger::new(1);
        let shown = ranges(&[1]);
        let device = |user, counter| {
            let (shown_sum, acked) = (tag(0, counter).hash_with(MessageId(1)), &Ranges::default());
            audit_conversation(
                &ledger,
                &world,
                0,
                &[row(1, tag(0, 1))],
                &[AuditedDevice { client: user, user, shown: &shown, shown_sum, acked, is_drained: false }],
            );
        };
        device(1, 1);
        assert_eq!(kinds(&ledger), [], "{:?}", ledger.described());
        device(1, 2);
        assert_eq!(kinds(&ledger), [Kind::IdReuse]);
    }

    #[test]
    fn live_checks_see_repeats_order_leaks_and_mixed_up_ids() {
        let world = tiny_world();
        let shown = |act: &dyn Fn(&Ledger)| {
            let ledger = Ledger::new(1);
            act(&ledger);
            kinds(&ledger)
        };
        let seen = |id, counter| Seen { id, tag: tag(0, counter), is_live: true };
        assert_eq!(shown(&|l| _ = l.on_shown(&world, 1, &seen(1, 1), 1, false)), [Kind::Duplicated]);
        assert_eq!(shown(&|l| _ = l.on_shown(&world, 1, &seen(1, 1), 2, true)), [Kind::OutOfOrder]);
        assert_eq!(
            shown(&|l| {
                l.on_shown(&world, 0, &seen(1, 1), 0, true);
                l.on_shown(&world, 1, &seen(1, 2), 0, true);
            }),
            [Kind::IdReuse]
        );
        assert_eq!(
            shown(&|l| {
                l.on_shown(&world, 0, &seen(1, 1), 0, true);
                l.on_shown(&world, 1, &seen(2, 1), 0, true);
            }),
            [Kind::Duplicated]
        );
        // Sent at 20, removed at 15: leaked. Removed at 25: fine. Added again: history is theirs.
        assert_eq!(
            shown(&|l| {
                l.left(0, 1, 15);
                l.on_shown(&world, 1, &seen(1, 1), 0, true);
            }),
            [Kind::Leaked]
        );
        assert_eq!(
            shown(&|l| {
                l.left(0, 1, 25);
                l.on_shown(&world, 1, &seen(1, 1), 0, true);
            }),
            []
        );
        assert_eq!(
            shown(&|l| {
                l.left(0, 1, 15);
                l.joins(0, 1, 30);
                assert!(!l.on_shown(&world, 1, &seen(1, 1), 0, true), "not a member when it was sent");
            }),
            []
        );
    }
}
