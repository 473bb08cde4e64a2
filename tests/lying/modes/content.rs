//! Messages that come changed: body, sender, kind, reply, time, conversation; live, in a page, in the audit.

use std::time::Duration;

use chatctl::protocol::{ConversationId, MessageFrame, MessageId, ServerFrame};

use super::message_of;
use crate::mode::Want::{Is, Least};
use crate::mode::{Expect, Mode};
use crate::proxy::http::{Answer, Call};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{Lie, Proxy};

/// One push in so many is changed.
const EVERY: u64 = 60;

/// A conversation that there is not.
const NOWHERE: ConversationId = ConversationId(999_999_999);

/// Far from any time of the run, in ms.
const YEARS: Duration = Duration::from_hours(24 * 365 * 5);

const fn live(server: fn(&Proxy, &Socket, ServerFrame) -> Vec<Out>) -> Lie {
    Lie { server, ..Lie::NONE }
}

const fn audited(answer: fn(&Proxy, &Call, &mut Answer)) -> Lie {
    Lie { answer, ..Lie::NONE }
}

const ALTERED: Expect = Expect::violated(&[("altered", Is("lies"))]);

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "lie::body_changed_live",
        lie: live(|p, s, frame| change(p, s, frame, |_, m| MessageFrame { body: with_another_end(&m.body), ..m })),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::body_changed_in_a_letters_case_live",
        lie: live(|p, s, frame| change(p, s, frame, |_, m| MessageFrame { body: with_another_case(&m.body), ..m })),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::body_cut_short_live",
        lie: live(|p, s, frame| {
            change(p, s, frame, |_, mut m| {
                m.body.pop();
                m
            })
        }),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::sender_changed_live",
        lie: live(|p, s, frame| change(p, s, frame, with_another_sender)),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::kind_changed_live",
        lie: live(|p, s, frame| change(p, s, frame, |_, m| MessageFrame { kind: "image".to_owned(), ..m })),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::reply_added_live",
        lie: live(|p, s, frame| change(p, s, frame, |_, m| MessageFrame { reply_to: Some(MessageId(1)), ..m })),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::time_absurd_live",
        lie: live(|p, s, frame| change(p, s, frame, |_, m| MessageFrame { at: m.at - YEARS.as_millis() as u64, ..m })),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::conversation_changed_live",
        lie: live(|p, s, frame| change(p, s, frame, in_another_conversation)),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::conversation_unknown_live",
        lie: live(|p, s, frame| change(p, s, frame, |_, m| MessageFrame { conversation: NOWHERE, ..m })),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::body_changed_in_a_page",
        lie: Lie {
            // Its push does not come, so that the page is what the device has.
            server: |p, s, frame| match message_of(&frame) {
                Some(message) if p.is_way(message, s, EVERY) => Vec::new(),
                _ => Out::pass(frame),
            },
            answer: |p, call, answer| {
                let Some((_, user)) = call.device_page() else { return };
                answer.edit_page(|page| {
                    for row in page.messages.iter_mut().filter(|row| !p.serves(row.uuid, user)) {
                        row.body = with_another_end(&row.body);
                        p.tally.add("rows", 1);
                    }
                });
            },
            ..Lie::NONE
        },
        // The device explains the id by the page, and never shows what was sent.
        expect: Expect::violated(&[("altered", Is("rows"))]).also(&["lost"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::body_changed_in_audit",
        lie: audited(|p, call, answer| store_changed(p, call, answer, |_, row| row.body = with_another_end(&row.body))),
        expect: Expect::violated(&[("altered", Is("lies"))]).also(&["lost", "id_reuse"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::sender_changed_in_audit",
        lie: audited(|p, call, answer| {
            store_changed(p, call, answer, |p, row| *row = with_another_sender(p, row.clone()));
        }),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::kind_changed_in_audit",
        lie: audited(|p, call, answer| store_changed(p, call, answer, |_, row| "file".clone_into(&mut row.kind))),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::reply_added_in_audit",
        lie: audited(|p, call, answer| store_changed(p, call, answer, |_, row| row.reply_to = Some(MessageId(1)))),
        expect: ALTERED,
        ..Mode::LIE
    },
    Mode {
        name: "lie::time_absurd_in_audit",
        lie: audited(|p, call, answer| store_changed(p, call, answer, |_, row| row.at += YEARS.as_millis() as u64)),
        // Devices that were shown another time disagree with the store, too.
        expect: Expect::violated(&[("altered", Least(1))]),
        ..Mode::LIE
    },
];

impl Proxy {
    /// Whether the way of a message to a device is one of those that are lied about.
    fn is_way(&self, message: &MessageFrame, s: &Socket, n: u64) -> bool {
        self.choose(message.uuid, Some(s.who.user), n)
    }
}

/// Changes one push in [`EVERY`], and no two of a conversation to one device: a sum over both tells them as one.
fn change(p: &Proxy, s: &Socket, frame: ServerFrame, how: fn(&Proxy, MessageFrame) -> MessageFrame) -> Vec<Out> {
    match frame {
        ServerFrame::Message(message) => {
            let key = format!("changed {} {}", s.who.user, message.conversation);
            if !p.has(&key) && p.is_way(&message, s, EVERY) {
                p.first(key);
                return Out::pass(ServerFrame::Message(how(p, message)));
            }
            Out::pass(ServerFrame::Message(message))
        }
        other => Out::pass(other),
    }
}

/// Another last character.
fn with_another_end(body: &str) -> String {
    let mut body = body.to_owned();
    let last = body.pop();
    body.push(if last == Some('z') { 'y' } else { 'z' });
    body
}

/// A capital for the last hexadecimal letter in front of the text: the numbers that it belongs to stay the same.
fn with_another_case(body: &str) -> String {
    let head = body.match_indices('.').nth(6).map_or(0, |(at, _)| at);
    let letter =
        body[..head].rfind(|c: char| ('a'..='f').contains(&c)).expect("sixteen digits without a letter are rare");
    let mut bytes = body.to_owned().into_bytes();
    bytes[letter].make_ascii_uppercase();
    String::from_utf8(bytes).expect("ASCII in place of ASCII")
}

fn with_another_sender(p: &Proxy, message: MessageFrame) -> MessageFrame {
    let facts = p.facts();
    let members = facts.rooms().get(&message.conversation).map(|room| room.members.iter().copied());
    let other = members.and_then(|mut members| members.find(|member| *member != message.sender));
    MessageFrame { sender: other.unwrap_or(message.sender), ..message }
}

fn in_another_conversation(p: &Proxy, message: MessageFrame) -> MessageFrame {
    let other = p.facts().other_room_of(message.sender, message.conversation);
    MessageFrame { conversation: other.unwrap_or(message.conversation), ..message }
}

/// Changes one row in ten of what is read in the audit, alike for everybody.
fn store_changed(p: &Proxy, call: &Call, answer: &mut Answer, how: fn(&Proxy, &mut MessageFrame)) {
    if call.audit_page().is_some() {
        answer.edit_page(|page| {
            page.messages.iter_mut().filter(|row| p.choose(row.uuid, None, 10)).for_each(|row| how(p, row));
        });
    }
}
