//! Ids, order and cursors: repeated, exchanged, running backwards, promised too early or never.

use std::collections::BTreeSet;
use std::sync::Mutex;

use chatctl::protocol::{ConversationId, MessageFrame, MessageId, ServerFrame};

use super::message_of;
use crate::mode::Want::{Is, Least, Number, Within};
use crate::mode::{Expect, Mode};
use crate::proxy::http::{Answer, Call};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{LIES, Lie, Proxy};
use crate::scenarios;

/// Held while a message's number is decided: its copies go to several devices at once, and all are told what the first of them got.
static DECIDING: Mutex<()> = Mutex::new(());

/// Time after an ACK after which a message was surely first sent behind it.
const SURELY_US: u64 = 100_000;

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "lie::shown_under_a_second_id",
        lie: Lie {
            server: |p, _, frame| {
                let again = message_of(&frame).filter(|m| is_direct(p, m) && p.one_in("again", 10)).map(|message| {
                    p.lied();
                    MessageFrame { id: message.id.next(), ..message.clone() }
                });
                let again = again.map(|again| Out::frame(&ServerFrame::Message(again)));
                Out::pass(frame).into_iter().chain(again).collect()
            },
            ..Lie::NONE
        },
        // The next message has that id. Another device of the user may see it, too.
        expect: Expect::violated(&[("duplicated", Least(1))]).also(&["id_reuse", "lost"]),
        ..Mode::LIE
    },
    // No sync ever reaches that id: the message waits above a hole to the end, and nobody is shown it.
    Mode {
        name: "lie::pushed_again_far_above",
        lie: Lie {
            server: |p, _, frame| {
                let again = message_of(&frame).filter(|m| is_direct(p, m) && p.one_in("again", 10)).map(|message| {
                    p.lied();
                    MessageFrame { id: MessageId(message.id.0 + 1_000_000), ..message.clone() }
                });
                let again = again.map(|again| Out::frame(&ServerFrame::Message(again)));
                Out::pass(frame).into_iter().chain(again).collect()
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("duplicated", Is("lies"))]),
        ..Mode::LIE
    },
    // Everything comes as it should, and then another message once more, under an id that was shown long ago.
    Mode {
        name: "lie::pushed_again_below",
        lie: Lie { server: push_again_below, ..Lie::NONE },
        expect: Expect::violated(&[("id_reuse+duplicated", Is("lies"))]).also(&["id_reuse", "duplicated"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::stored_under_two_ids",
        lie: Lie {
            answer: |p, call, answer| {
                audit_rows(p, call, answer, |rows| {
                    let Some(last) = rows.last().cloned() else { return false };
                    rows.push(MessageFrame { id: last.id.next(), ..last });
                    true
                });
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("duplicated", Is("conversations_changed"))]).also(&["id_reuse", "lost"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::row_twice_in_audit",
        lie: Lie {
            answer: |p, call, answer| {
                audit_rows(p, call, answer, |rows| {
                    let Some(last) = rows.last().cloned() else { return false };
                    rows.push(last);
                    true
                });
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("duplicated", Is("conversations_changed"))]).also(&["id_reuse", "out_of_order"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::ids_swapped_for_one_device",
        lie: Lie { server: swap, ..Lie::NONE },
        expect: Expect::violated(&[("id_reuse+duplicated", Within("lies", "plenty"))]).also(&[
            "id_reuse",
            "duplicated",
            "lost",
        ]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::id_given_twice",
        lie: Lie {
            server: |p, _, frame| give_twice(p, frame),
            request: |p, call| renumber(p, call),
            answer: |p, call, answer| p.numbers.answer(call, answer),
            ..Lie::NONE
        },
        // Views that have two messages of one id can't be compared row by row.
        expect: Expect::violated(&[("id_reuse", Within("lies", "plenty"))]).also(&[
            "lost",
            "duplicated",
            "out_of_order",
            "altered",
        ]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::id_goes_back",
        lie: Lie {
            server: |p, _, frame| go_back(p, frame),
            request: |p, call| renumber(p, call),
            answer: |p, call, answer| p.numbers.answer(call, answer),
            ..Lie::NONE
        },
        // Who had explained the hole drops what comes into it.
        expect: Expect::violated(&[("id_went_back", Is("lies"))]).also(&["lost"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::audit_out_of_order",
        lie: Lie {
            answer: |p, call, answer| {
                audit_rows(p, call, answer, |rows| {
                    let [.., a, b] = rows.as_mut_slice() else { return false };
                    std::mem::swap(a, b);
                    true
                });
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("out_of_order", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::device_page_out_of_order",
        lie: Lie {
            server: |p, _, frame| {
                if message_of(&frame).is_some() && p.one_in("gap", 12) { Vec::new() } else { Out::pass(frame) }
            },
            answer: |p, call, answer| {
                if call.device_page().is_some() {
                    answer.edit_page(|page| {
                        if page.messages.len() > 1 {
                            p.lied();
                            page.messages.reverse();
                        }
                    });
                }
            },
            ..Lie::NONE
        },
        expect: Expect::failed("protocol_errors", &[("protocol_errors", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::page_with_rows_of_another_conversation",
        lie: Lie {
            server: |p, _, frame| {
                if message_of(&frame).is_some() && p.one_in("gap", 12) { Vec::new() } else { Out::pass(frame) }
            },
            answer: mix_in,
            ..Lie::NONE
        },
        expect: Expect::violated(&[("leaked", Is("lies"))]).also(&["id_reuse", "altered"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::stable_too_high",
        scenario: scenarios::READERS,
        lie: Lie { server: starve, answer: promise_too_much, finish: count_skipped, ..Lie::NONE },
        expect: Expect::violated(&[("lost", Within("skipped_surely", "skipped"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::stable_never_rises",
        lie: Lie {
            server: |p, _, frame| {
                leave_a_hole(p, &frame);
                Out::pass(p.numbers.frame(frame))
            },
            request: |p, call| renumber(p, call),
            answer: |p, call, answer| {
                p.numbers.answer(call, answer);
                if call.page().is_some() {
                    answer.edit_page(|page| page.stable = page.stable.min(MessageId(HOLE_AT - 1)));
                }
            },
            finish: count_stuck,
            ..Lie::NONE
        },
        expect: Expect::failed("undrained", &[("undrained", Is("stuck")), ("lost", Number(0))]),
        takes_s: 50,
        ..Mode::LIE
    },
    Mode {
        name: "lie::has_more_for_ever",
        lie: Lie {
            answer: |p, call, answer| {
                if call.page().is_some() {
                    p.lied();
                    answer.edit_page(|page| page.has_more = true);
                }
            },
            ..Lie::NONE
        },
        expect: Expect::failed("unaudited", &[("unaudited", Is("conversations"))]),
        takes_s: 20,
        ..Mode::LIE
    },
    // Whatever page is asked for, the first one comes: nobody gets to the end.
    Mode {
        name: "lie::the_first_page_for_ever",
        lie: Lie {
            request: |p, call| {
                if call.audit_page().is_some() {
                    p.lied();
                    call.ask_after(0);
                }
                crate::proxy::http::Reply::Pass
            },
            answer: |_, call, answer| {
                if call.audit_page().is_some() {
                    answer.edit_page(|page| page.has_more = true);
                }
            },
            ..Lie::NONE
        },
        expect: Expect::failed("unaudited", &[("unaudited", Is("conversations"))])
            .extra(|p, _| super::answers::within_budget(p, "messages", 250)),
        takes_s: 40,
        ..Mode::LIE
    },
    Mode {
        name: "lie::inbox_has_more_for_ever",
        lie: Lie {
            answer: |p, _, answer| {
                answer.edit_inbox(|inbox| {
                    p.lied();
                    inbox.has_more = true;
                });
            },
            ..Lie::NONE
        },
        expect: Expect::failed("", &[("protocol_errors+undrained", Least(1))])
            .extra(|p, _| super::answers::within_budget(p, "inbox", 120)),
        takes_s: 160,
        ..Mode::LIE
    },
    Mode {
        name: "lie::inbox_has_more_behind_rising_ids",
        lie: Lie {
            answer: |p, _, answer| {
                answer.edit_inbox(|inbox| {
                    p.lied();
                    inbox.has_more = true;
                    inbox.after_conversation_id = Some(ConversationId((1 << 32) + p.tally.get(LIES)));
                });
            },
            ..Lie::NONE
        },
        expect: Expect::failed("undrained", &[("undrained", Is("clients")), ("protocol_errors", Least(1))])
            .extra(|p, _| super::answers::within_budget(p, "inbox", 200)),
        takes_s: 60,
        ..Mode::LIE
    },
];

/// Changes the rows that are read in the audit, alike for everybody; each page counts as one lie.
fn audit_rows(p: &Proxy, call: &Call, answer: &mut Answer, change: fn(&mut Vec<MessageFrame>) -> bool) {
    if call.audit_page().is_none_or(|(query, _)| query.after > 0) {
        return;
    }
    answer.edit_page(|page| {
        let conversation = page.messages.first().map(|row| row.conversation);
        if !change(&mut page.messages) {
            return;
        }
        p.lied();
        if conversation.is_some_and(|conversation| p.first(conversation)) {
            p.tally.add("conversations_changed", 1);
        }
    });
}

fn is_direct(p: &Proxy, message: &MessageFrame) -> bool {
    p.facts().rooms().get(&message.conversation).is_some_and(|room| room.members.len() == 2)
}

/// Half of the messages that a device is shown after the first of a conversation come again under the id of that one.
fn push_again_below(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    let Some(message) = message_of(&frame).filter(|message| is_direct(p, message)).cloned() else {
        return Out::pass(frame);
    };
    let key = format!("first {} {}", s.who.user, message.conversation);
    let mut outs = Out::pass(frame);
    match p.take_held(&key) {
        Some(first) => {
            if first.id < message.id && p.one_in("again", 2) {
                p.lied();
                outs.extend(Out::pass(ServerFrame::Message(MessageFrame { id: first.id, ..message })));
            }
            p.hold(key, first);
        }
        None => p.hold(key, message),
    }
    outs
}

fn renumber(p: &Proxy, call: &mut Call) -> crate::proxy::http::Reply {
    p.numbers.request(call);
    crate::proxy::http::Reply::Pass
}

/// Holds a message back until the next one of its conversation, and exchanges their ids. Once for each user.
fn swap(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    p.tally.set("plenty", 10_000);
    let Some(message) = message_of(&frame).cloned() else { return Out::pass(frame) };
    let user = s.who.user;
    let key = format!("{user} {}", message.conversation);
    if let Some(held) = p.take_held(&key) {
        if held.id.next() != message.id {
            return [held, message].into_iter().flat_map(|m| Out::pass(ServerFrame::Message(m))).collect();
        }
        p.lied();
        let (first, second) =
            (MessageFrame { id: held.id, ..message.clone() }, MessageFrame { id: message.id, ..held });
        return [first, second].into_iter().flat_map(|m| Out::pass(ServerFrame::Message(m))).collect();
    }
    if p.first(format!("swap {user}")) {
        p.hold(key, message);
        return Vec::new();
    }
    Out::pass(frame)
}

/// The fifth id of a conversation is shown as the fourth, and all later ones as one less.
fn give_twice(p: &Proxy, frame: ServerFrame) -> Vec<Out> {
    const FIFTH: u64 = 5;
    p.tally.set("plenty", 10_000);
    if let Some((conversation, id)) = id_of(&frame) {
        if p.first(format!("shift {conversation}")) {
            p.numbers.shift(conversation, FIFTH, -1);
        }
        if id.0 == FIFTH && p.first(format!("twice {conversation}")) {
            p.lied();
        }
    }
    Out::pass(p.numbers.frame(frame))
}

fn id_of(frame: &ServerFrame) -> Option<(ConversationId, MessageId)> {
    match frame {
        ServerFrame::Message(message) => Some((message.conversation, message.id)),
        ServerFrame::Ack(ack) => Some((ack.conversation, ack.id)),
        _ => None,
    }
}

/// The third message of a conversation gets the fourth number; some later one, first sent when that was acknowledged long
/// ago, gets the third.
fn go_back(p: &Proxy, frame: ServerFrame) -> Vec<Out> {
    const THIRD: u64 = 3;
    let (uuid, conversation, id) = match &frame {
        ServerFrame::Message(message) => (message.uuid, message.conversation, message.id.0),
        ServerFrame::Ack(ack) => (ack.uuid, ack.conversation, ack.id.0),
        _ => return Out::pass(frame),
    };
    let _deciding = DECIDING.lock().expect("no panic while held");
    if p.first(format!("shift {conversation}")) {
        p.numbers.shift(conversation, THIRD, 1);
    }
    if id > THIRD && !p.numbers.has(conversation, id) {
        let facts = p.facts();
        let third = facts.acked_in(conversation).find(|(_, id)| id.0 == THIRD);
        let acked_us = third.and_then(|(uuid, _)| facts.acked_us(uuid));
        let sent_us = facts.sent(uuid).map(|sent| sent.first_us);
        drop(facts);
        let is_after = acked_us.zip(sent_us).is_some_and(|(acked, sent)| sent > acked + SURELY_US);
        // Both the frame and the ACK of a message are asked about; the first of them decides.
        let is_asked_first = p.first(format!("asked {uuid}"));
        if is_after && is_asked_first && p.first(format!("back {conversation}")) {
            p.numbers.set(conversation, id, THIRD);
            p.lied();
        }
    }
    Out::pass(p.numbers.frame(frame))
}

/// Puts a row of a conversation that the user is not in behind a page.
fn mix_in(p: &Proxy, call: &Call, answer: &mut Answer) {
    let Some((query, user)) = call.device_page() else { return };
    // What is put in comes from pages of others.
    let foreign = p.take_held(&format!("foreign {user}"));
    answer.edit_page(|page| {
        if let Some(row) = page.messages.last() {
            let facts = p.facts();
            let others = facts.devices().iter().map(|who| who.user);
            let strangers: Vec<_> = others.filter(|other| !facts.is_member(query.conversation, *other)).collect();
            drop(facts);
            for stranger in strangers {
                p.hold(format!("foreign {stranger}"), row.clone());
            }
        }
        if let Some(foreign) = foreign.filter(|row| !p.is_member(row.conversation, user)) {
            p.lied();
            let at = page.messages.partition_point(|row| row.id < foreign.id);
            page.messages.insert(at, foreign);
        }
    });
}

/// How much more than is true a lying `stable` promises.
const TOO_MUCH: u64 = 20;

/// Some readers lack a message, see the one behind it, and hear no more until they have asked for the page.
fn starve(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    let Some(message) = message_of(&frame) else { return Out::pass(frame) };
    let key = format!("{} {}", s.who.user, message.conversation);
    if !s.who.user.0.is_multiple_of(3) || p.has(format!("promised {key}")) {
        return Out::pass(frame);
    }
    if p.first(format!("starves {key}")) {
        return Vec::new();
    }
    if p.first(format!("hints {key}")) { Out::pass(frame) } else { Vec::new() }
}

/// `stable` promises that ids which are still to come will never exist.
fn promise_too_much(p: &Proxy, call: &Call, answer: &mut Answer) {
    let Some((query, user)) = call.device_page() else { return };
    let key = format!("{user} {}", query.conversation);
    answer.edit_page(|page| {
        if p.has(format!("hints {key}")) && !page.messages.is_empty() && p.first(format!("promised {key}")) {
            p.lied();
            let upto = page.messages.last().map_or(0, |row| row.id.0);
            page.stable = MessageId(upto + TOO_MUCH);
            p.note_promise(query.conversation, user, upto, upto + TOO_MUCH);
        }
    });
}

/// What was sent into promised ids never reaches the reader; own messages may count as there.
fn count_skipped(p: &Proxy) {
    let (mut surely, mut all) = (0, 0);
    for (conversation, user, after, upto) in p.promises() {
        let facts = p.facts();
        for (uuid, _) in facts.acked_in(conversation).filter(|(_, id)| id.0 > after && id.0 <= upto) {
            all += 1;
            surely += u64::from(facts.sent(uuid).is_some_and(|sent| sent.by.user != user));
        }
    }
    p.tally.set("skipped_surely", surely);
    p.tally.set("skipped", all);
}

/// The number that nothing is stored under in [`leave_a_hole`].
const HOLE_AT: u64 = 3;

/// Ids from the third on are shown as one more.
fn leave_a_hole(p: &Proxy, frame: &ServerFrame) {
    if let Some((conversation, id)) = id_of(frame) {
        if p.first(format!("shift {conversation}")) {
            p.numbers.shift(conversation, HOLE_AT, 1);
        }
        if id.0 >= HOLE_AT && p.first(format!("hole {conversation}")) {
            p.lied();
        }
    }
}

/// Devices of conversations that go on behind the hole.
fn count_stuck(p: &Proxy) {
    let facts = p.facts();
    let goes_on = |c: &ConversationId| facts.acked_in(*c).any(|(_, id)| id.0 >= HOLE_AT);
    let rooms = facts.rooms().iter().filter(|(conversation, _)| goes_on(conversation));
    let users: BTreeSet<_> = rooms.flat_map(|(_, room)| room.members.iter().copied()).collect();
    let stuck = facts.devices().iter().filter(|who| users.contains(&who.user)).count();
    drop(facts);
    p.tally.set("stuck", stuck as u64);
}
