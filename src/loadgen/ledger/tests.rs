//! Each broken guarantee, and that nothing else is found with it.

use super::ranges::{Ranges, Whole};
use super::*;
use crate::loadgen::body::at_hash;
use crate::loadgen::world::tests::tiny_world;
use crate::protocol::frames::AckFrame;
use crate::protocol::{ConversationId, ErrorCode, MessageId};

/// When the run began, and the time of every message, in ms since 1970.
const AT: u64 = 1_800_000_000_000;

fn tag(client: u32, counter: u32) -> Tag {
    Tag { run: 1, conversation: 0, client, counter, intended_us: 10, sent_us: 20 }
}

fn row(id: u64, tag: Tag) -> MessageFrame {
    let world = tiny_world();
    MessageFrame {
        conversation: world.conversations[0].id,
        id: MessageId(id),
        uuid: tag.uuid(),
        sender: world.users[tag.client as usize].id,
        kind: "text".to_owned(),
        body: tag.body(100),
        reply_to: None,
        at: AT,
    }
}

fn ack(id: u64, tag: &Tag) -> AckFrame {
    AckFrame { uuid: tag.uuid(), conversation: ConversationId(1), id: MessageId(id), at: AT }
}

fn ranges<N: Whole>(numbers: &[N]) -> Ranges<N> {
    let mut out = Ranges::default();
    for n in numbers {
        out.insert(*n);
    }
    out
}

fn kinds(ledger: &Ledger) -> Vec<Kind> {
    Kind::ALL.iter().copied().filter(|kind| ledger.count(*kind) > 0).collect()
}

/// A ledger to which client 0 has sent messages 1, 2 and 3, acknowledged as ids 1 and 2.
fn two_acked() -> Ledger {
    let ledger = Ledger::new(1, 1, AT);
    for counter in 1..=3 {
        ledger.on_sent(&tag(0, counter));
    }
    for counter in 1..=2 {
        assert!(ledger.on_ack(&tiny_world(), &tag(0, counter), &ack(counter.into(), &tag(0, counter)), 50));
    }
    ledger
}

/// What a device adds up that was shown message n of client 0 under id n.
fn sums(shown: &[u64]) -> (u64, u64) {
    let of = |n: &u64| (tag(0, *n as u32).hash_with(MessageId(*n)), at_hash(*n, AT));
    shown.iter().map(of).fold((0, 0), |a, b| (a.0.wrapping_add(b.0), a.1.wrapping_add(b.1)))
}

/// Audits what is stored against two devices that were shown `shown`; the messages are client 0's.
fn audit_with(ledger: &Ledger, stored: &[MessageFrame], shown: [&[u64]; 2]) {
    let (acked, none) = (ranges(&[1, 2]), Ranges::default());
    let (sums, shown) = (shown.map(sums), shown.map(ranges));
    let device = |n: u32, acked| {
        let (shown, (shown_sum, at_sum)) = (&shown[n as usize], sums[n as usize]);
        AuditedDevice { client: n, user: n, shown, shown_sum, at_sum, acked, held: vec![], is_drained: true }
    };
    audit_conversation(ledger, &tiny_world(), 0, stored, &[device(0, &acked), device(1, &none)], AT);
}

fn audit(stored: &[MessageFrame], shown: [&[u64]; 2]) -> Ledger {
    let ledger = two_acked();
    audit_with(&ledger, stored, shown);
    ledger
}

// ---- the audit

#[test]
fn a_sound_conversation_has_no_violation() {
    let ledger = audit(&[row(1, tag(0, 1)), row(2, tag(0, 2))], [&[1, 2], &[1, 2]]);
    assert_eq!(kinds(&ledger), [], "{:?}", ledger.described());
    let reached =
        [&ledger.tallies.acked, &ledger.tallies.stored, &ledger.tallies.reach_expected, &ledger.tallies.reached];
    assert_eq!(reached.map(crate::loadgen::stats::get), [2, 2, 4, 4]);
}

#[test]
fn a_device_that_could_not_be_waited_for_is_no_violation() {
    let ledger = two_acked();
    let (shown, none) = (ranges(&[1, 2]), Ranges::default());
    let (shown_sum, at_sum) = sums(&[1, 2]);
    let other = AuditedDevice {
        client: 1,
        user: 1,
        shown: &shown,
        shown_sum,
        at_sum,
        acked: &none,
        held: vec![],
        is_drained: true,
    };
    audit_conversation(&ledger, &tiny_world(), 0, &[row(1, tag(0, 1)), row(2, tag(0, 2))], &[other], AT);
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
    let forged = audit(&[one, two, row(3, tag(0, 9))], [&[1, 2], &[1, 2]]);
    assert_eq!((kinds(&forged), forged.count(Kind::Forged)), (vec![Kind::Forged], 1));
}

#[test]
fn every_field_of_what_is_stored_is_compared() {
    let (one, two) = (row(1, tag(0, 1)), row(2, tag(0, 2)));
    let change = |change: fn(&mut MessageFrame)| {
        let mut changed = two.clone();
        change(&mut changed);
        let ledger = audit(&[one.clone(), changed], [&[1, 2], &[1, 2]]);
        (kinds(&ledger), ledger.count(Kind::Altered))
    };
    for (what, changed) in [
        ("body", change(|m| m.body = m.body.replace('a', "b"))),
        ("sender", change(|m| m.sender = UserId(2))),
        ("kind", change(|m| m.kind = "image".to_owned())),
        ("reply_to", change(|m| m.reply_to = Some(MessageId(1)))),
        ("conversation", change(|m| m.conversation = ConversationId(7))),
    ] {
        assert_eq!(changed, (vec![Kind::Altered], 1), "{what}");
    }
    // The stored time is out of the run, and another than each of the two devices was shown.
    assert_eq!(change(|m| m.at = 0), (vec![Kind::Altered], 3));
    assert_eq!(change(|m| m.at += 1), (vec![Kind::Altered], 2));
}

#[test]
fn every_view_of_a_conversation_is_the_same() {
    let (one, two) = (row(1, tag(0, 1)), row(2, tag(0, 2)));
    let owners = [one.clone(), two.clone()];
    let view = |view: &[MessageFrame]| {
        let ledger = two_acked();
        let (acked, shown) = (ranges(&[1, 2]), Ranges::default());
        let owner = AuditedDevice {
            client: 0,
            user: 0,
            shown: &shown,
            shown_sum: 0,
            at_sum: 0,
            acked: &acked,
            held: vec![],
            is_drained: false,
        };
        audit_view(&ledger, &tiny_world(), 0, &owners, (1, view), &[owner]);
        kinds(&ledger)
    };
    assert_eq!(view(&owners), []);
    assert_eq!(view(std::slice::from_ref(&two)), [Kind::Lost], "a hole in another member's history");
    let other = MessageFrame { at: AT + 1, ..two.clone() };
    assert_eq!(view(&[one.clone(), other]), [Kind::Altered]);
    assert_eq!(view(&[two.clone(), one.clone()]), [Kind::OutOfOrder]);
    assert_eq!(view(&[one, two, row(3, tag(1, 1))]), [Kind::Forged]);
}

#[test]
fn one_lost_message_in_ten_million_deliveries_is_found_and_named() {
    const MESSAGES: u64 = 50_000;
    const DEVICES: u32 = 200;
    let world = tiny_world();
    let ledger = Ledger::new(1, 1, AT);
    let stored: Vec<MessageFrame> = (1..=MESSAGES).map(|n| row(n, tag(0, n as u32))).collect();
    let (mut all, mut most, mut acked) = (Ranges::default(), Ranges::default(), Ranges::default());
    let mut all_sums = (0_u64, 0_u64);
    let mut most_sums = (0_u64, 0_u64);
    for n in 1..=MESSAGES {
        let tag = tag(0, n as u32);
        let (hash, at) = (tag.hash_with(MessageId(n)), at_hash(n, AT));
        ledger.on_sent(&tag);
        ledger.on_ack(&world, &tag, &ack(n, &tag), 50);
        acked.insert(n as u32);
        all_sums = (all_sums.0.wrapping_add(hash), all_sums.1.wrapping_add(at));
        all.insert(n);
        if n != 31_415 {
            most_sums = (most_sums.0.wrapping_add(hash), most_sums.1.wrapping_add(at));
            most.insert(n);
        }
    }
    let none = Ranges::default();
    let devices: Vec<AuditedDevice<'_>> = (0..DEVICES)
        .map(|n| {
            let (shown, (shown_sum, at_sum)) = if n == 77 { (&most, most_sums) } else { (&all, all_sums) };
            let acked = if n == 0 { &acked } else { &none };
            AuditedDevice { client: n, user: n % 2, shown, shown_sum, at_sum, acked, held: vec![], is_drained: true }
        })
        .collect();
    audit_conversation(&ledger, &world, 0, &stored, &devices, AT);
    assert_eq!((kinds(&ledger), ledger.count(Kind::Lost)), (vec![Kind::Lost], 1));
    assert!(ledger.described()[0].contains("id 31415 "), "{:?}", ledger.described());
}

#[test]
fn a_device_that_was_shown_another_message_under_an_id_is_found_long_after() {
    let ledger = two_acked();
    let shown = ranges(&[1]);
    let device = |user, counter| {
        let (shown_sum, acked) = (tag(0, counter).hash_with(MessageId(1)), &Ranges::default());
        let at_sum = at_hash(1, AT);
        let device = AuditedDevice {
            client: user,
            user,
            shown: &shown,
            shown_sum,
            at_sum,
            acked,
            held: vec![],
            is_drained: false,
        };
        audit_conversation(&ledger, &tiny_world(), 0, &[row(1, tag(0, 1))], &[device], AT);
    };
    device(1, 1);
    assert_eq!(kinds(&ledger), [], "{:?}", ledger.described());
    device(1, 2);
    assert_eq!(kinds(&ledger), [Kind::IdReuse]);
}

#[test]
fn what_waits_above_a_hole_at_the_end_is_stored_as_it_came() {
    let stored = [row(1, tag(0, 1)), row(2, tag(0, 2))];
    let held = |id, tag: Tag| {
        let ledger = two_acked();
        let (shown, acked) = (Ranges::default(), ranges(&[1, 2]));
        let device = |client, held, acked| AuditedDevice {
            client,
            user: client,
            shown: &shown,
            shown_sum: 0,
            at_sum: 0,
            acked,
            held,
            is_drained: false,
        };
        let none = Ranges::default();
        let held = vec![Seen { id, tag, at: AT, is_live: true }];
        let devices = [device(0, vec![], &acked), device(1, held, &none)];
        audit_conversation(&ledger, &tiny_world(), 0, &stored, &devices, AT);
        (kinds(&ledger), ledger.described())
    };
    assert_eq!(held(2, tag(0, 2)).0, [], "it was only never shown");
    let (again, described) = held(9_000, tag(0, 2));
    assert_eq!(again, [Kind::Duplicated], "{described:?}");
    assert!(described[0].contains("id 9000") && described[0].contains("id 2"), "{described:?}");
    assert_eq!(held(3, tag(0, 3)).0, [Kind::IdReuse], "pushed, and not stored");
    assert_eq!(held(2, tag(0, 1)).0, [Kind::Duplicated], "under the id of another");
}

// ---- fates

#[test]
fn a_retry_of_who_was_removed_meanwhile_may_be_refused() {
    let (ledger, world) = (two_acked(), tiny_world());
    let refused = |code| {
        let identity = tag(0, 1).identity();
        let before = ledger.count(Kind::FalseRefusal);
        ledger.on_refused_after_ack(&world, identity, code);
        ledger.count(Kind::FalseRefusal) - before
    };
    assert_eq!(refused(ErrorCode::NotAMember), 1, "a member throughout");
    ledger.leaving(&world, 0, 0, 60);
    assert_eq!(refused(ErrorCode::NotAMember), 0, "the removal is under way");
    ledger.left(&world, 0, 0, 70);
    assert_eq!([refused(ErrorCode::NotAMember), refused(ErrorCode::TooLarge)], [0, 1]);
}

fn refusal(code: ErrorCode, has_other_tries: bool) -> Refusal {
    Refusal { code, has_other_tries }
}

#[test]
fn a_second_ack_says_the_same_as_the_first() {
    let world = tiny_world();
    let again = |id: u64| {
        let ledger = two_acked();
        ledger.on_other_ack(&world, 0, &ack(id, &tag(0, 1)));
        kinds(&ledger)
    };
    assert_eq!(again(1), []);
    assert_eq!(again(9), [Kind::AckWrong], "while it is remembered, at once");
    // Later, at the end.
    let later = |id: u64| {
        let ledger = long_ago();
        ledger.on_other_ack(&world, 0, &ack(id, &tag(0, 1)));
        ledger.on_other_ack(&world, 0, &ack(id, &tag(0, 1)));
        assert_eq!(kinds(&ledger), []);
        audit_with(&ledger, &[row(1, tag(0, 1)), row(2, tag(0, 2))], [&[1, 2], &[1, 2]]);
        ledger.count(Kind::AckWrong)
    };
    assert_eq!([1, 9].map(later), [0, 1]);
}

/// The same ledger after so many other messages that those of client 0 are not among the newest.
fn long_ago() -> Ledger {
    let ledger = two_acked();
    for n in 10..10 + WINDOW as u64 {
        ledger.on_sent(&tag(1, n as u32));
        ledger.on_shown(&tiny_world(), 0, &Seen { id: n, tag: tag(1, n as u32), at: AT, is_live: true }, n - 1, true);
    }
    ledger
}

#[test]
fn what_is_pushed_again_is_what_is_stored() {
    let again = |ledger: Ledger, id: u64, counter: u32| {
        ledger.on_repeated(&Seen { id, tag: tag(0, counter), at: AT, is_live: true });
        let at_once = kinds(&ledger);
        audit_with(&ledger, &[row(1, tag(0, 1)), row(2, tag(0, 2))], [&[1, 2], &[1, 2]]);
        (at_once, kinds(&ledger))
    };
    assert_eq!(again(two_acked(), 1, 1), (vec![], vec![]));
    assert_eq!(again(two_acked(), 1, 2).0, [Kind::IdReuse], "while it is remembered, at once");
    for (id, counter, found) in [(1, 1, vec![]), (1, 2, vec![Kind::Duplicated]), (1, 3, vec![Kind::IdReuse])] {
        assert_eq!(again(long_ago(), id, counter), (vec![], found), "message {counter} under id {id}");
    }
}

#[test]
fn an_ack_belongs_to_what_its_device_sent_and_where() {
    let world = tiny_world();
    let other = |client: u32, ack: &AckFrame| {
        let ledger = two_acked();
        ledger.on_other_ack(&world, client, ack);
        kinds(&ledger)
    };
    assert_eq!(other(1, &ack(1, &tag(0, 1))), [Kind::AckWrong], "another device's message");
    assert_eq!(other(0, &ack(4, &tag(0, 4))), [Kind::AckWrong], "nobody's");
    assert_eq!(other(0, &ack(1, &Tag { run: 2, ..tag(0, 1) })), [Kind::AckWrong], "another run's");
    let nil = AckFrame { uuid: uuid::Uuid::nil(), ..ack(1, &tag(0, 1)) };
    assert_eq!(other(0, &nil), [Kind::AckWrong]);
    let elsewhere = AckFrame { conversation: ConversationId(2), ..ack(3, &tag(0, 3)) };
    assert_eq!(other(0, &elsewhere), [Kind::AckWrong]);
    let ledger = two_acked();
    assert!(!ledger.on_ack(&world, &tag(0, 3), &elsewhere, 60), "the message is still without an answer");
    assert_eq!(kinds(&ledger), [Kind::AckWrong]);
}

#[test]
fn ids_never_go_back_against_real_time() {
    let world = tiny_world();
    let third = |sent_us: u64, id: u64| {
        let ledger = two_acked();
        let tag = Tag { sent_us, ..tag(0, 3) };
        ledger.on_ack(&world, &tag, &ack(id, &tag), 100);
        kinds(&ledger)
    };
    // Ids 1 and 2 were acknowledged at 50.
    assert_eq!(third(51, 3), []);
    assert_eq!(third(50, 1), [Kind::IdReuse], "sent before the ACK came: the order is open, the id is not");
    let ledger = two_acked();
    ledger.on_ack(&world, &Tag { sent_us: 60, ..tag(0, 3) }, &ack(9, &tag(0, 3)), 70);
    let late = Tag { sent_us: 71, ..tag(1, 1) };
    ledger.on_ack(&world, &late, &ack(5, &late), 80);
    assert_eq!(kinds(&ledger), [Kind::IdWentBack]);
    let early = Tag { sent_us: 65, ..tag(1, 2) };
    ledger.on_ack(&world, &early, &ack(6, &early), 90);
    assert_eq!(ledger.count(Kind::IdWentBack), 1, "it was on its way when 9 was acknowledged");
}

#[test]
fn what_was_refused_is_neither_shown_nor_stored() {
    let world = tiny_world();
    let shown = |ledger: &Ledger| {
        let seen = Seen { id: 3, tag: tag(0, 3), at: AT, is_live: true };
        ledger.on_shown(&world, 1, &seen, 0, true);
    };
    let definite = refusal(ErrorCode::Forbidden, false);
    let ledger = two_acked();
    assert!(!ledger.on_refused(&world, &tag(0, 3), definite));
    assert_eq!(kinds(&ledger), []);
    shown(&ledger);
    shown(&ledger);
    audit_with(&ledger, &[row(1, tag(0, 1)), row(2, tag(0, 2)), row(3, tag(0, 3))], [&[1, 2, 3], &[1, 2, 3]]);
    assert_eq!((kinds(&ledger), ledger.count(Kind::FalseRefusal)), (vec![Kind::FalseRefusal], 1), "one uuid, one lie");
    let ledger = two_acked();
    shown(&ledger);
    ledger.on_refused(&world, &tag(0, 3), definite);
    assert_eq!(kinds(&ledger), [Kind::FalseRefusal], "shown before the refusal came");
    let ledger = two_acked();
    ledger.on_refused(&world, &tag(0, 3), definite);
    ledger.on_other_ack(&world, 0, &ack(3, &tag(0, 3)));
    assert_eq!(kinds(&ledger), [Kind::FalseRefusal], "acknowledged after all");
    for open in [refusal(ErrorCode::Internal, false), refusal(ErrorCode::Forbidden, true)] {
        let ledger = two_acked();
        ledger.on_refused(&world, &tag(0, 3), open);
        shown(&ledger);
        assert_eq!(kinds(&ledger), [], "it may have been stored: {open:?}");
    }
}

#[test]
fn a_refusal_is_explained_by_a_change_of_membership_only() {
    let world = tiny_world();
    let ledger = two_acked();
    let not_a_member = refusal(ErrorCode::NotAMember, false);
    assert!(!ledger.on_refused(&world, &tag(0, 3), not_a_member), "a member throughout");
    ledger.leaving(&world, 0, 0, 30);
    assert!(ledger.on_refused(&world, &tag(0, 3), not_a_member));
    assert!(!ledger.on_refused(&world, &tag(0, 3), refusal(ErrorCode::TooLarge, false)));
}

// ---- live

#[test]
fn what_nobody_sent_is_forged_and_what_was_changed_is_altered() {
    let world = tiny_world();
    let read = |message: &MessageFrame| {
        let ledger = two_acked();
        assert_eq!(ledger.read(&world, message, String::new).is_none(), !kinds(&ledger).is_empty());
        kinds(&ledger)
    };
    let sound = row(1, tag(0, 1));
    assert_eq!(read(&sound), []);
    assert_eq!(read(&MessageFrame { body: "hello".to_owned(), ..sound.clone() }), [Kind::Altered]);
    assert_eq!(read(&MessageFrame { sender: UserId(2), ..sound.clone() }), [Kind::Altered]);
    assert_eq!(read(&MessageFrame { conversation: ConversationId(3), ..sound.clone() }), [Kind::Altered]);
    let unknown = uuid::Uuid::from_u128(0x1234_5678_0000_4000_8000_0000_0000_0001);
    assert_eq!(read(&MessageFrame { uuid: unknown, ..sound.clone() }), [Kind::Forged]);
    assert_eq!(read(&row(4, tag(0, 4))), [Kind::Forged], "never written");
    assert_eq!(read(&row(4, tag(1, 1))), [Kind::Forged]);
    assert_eq!(read(&row(4, Tag { run: 2, ..tag(0, 1) })), [Kind::Forged]);
    let ledger = two_acked();
    ledger.on_unsent_notice(&tiny_world(), "receipt", 0);
    assert_eq!(kinds(&ledger), [Kind::Forged]);
}

#[test]
fn live_checks_see_repeats_order_leaks_and_mixed_up_ids() {
    let world = tiny_world();
    let shown = |act: &dyn Fn(&Ledger)| {
        let ledger = Ledger::new(1, 1, AT);
        act(&ledger);
        kinds(&ledger)
    };
    let seen = |id, counter| Seen { id, tag: tag(0, counter), at: AT, is_live: true };
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
    let leaked = |left_us: u64, rejoins: bool| {
        shown(&|l| {
            l.left(&world, 0, 1, left_us);
            if rejoins {
                l.joining(&world, 0, 1, 30);
                l.joined(&world, 0, 1, 35);
            }
            let membership = l.on_shown(&world, 1, &seen(1, 1), 0, true);
            assert_eq!(membership.was_member, left_us > 20);
            assert!(!membership.is_settled);
        })
    };
    assert_eq!(leaked(15, false), [Kind::Leaked]);
    assert_eq!(leaked(25, false), []);
    assert_eq!(leaked(15, true), []);
    assert_eq!(shown(&|l| assert!(l.on_shown(&world, 1, &seen(1, 1), 0, true).is_settled)), []);
}
