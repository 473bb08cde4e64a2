//! Messages for those who have no right to them.

use std::time::Duration;

use chatctl::protocol::api::InboxEntry;
use chatctl::protocol::frames::{AckFrame, HeadFrame};
use chatctl::protocol::{ClientFrame, MessageFrame, MessageId, ServerFrame, UserId};
use chatctl::runtime::clock;

use super::message_of;
use crate::mode::Want::Is;
use crate::mode::{Expect, Mode};
use crate::proxy::http::{Call, Reply};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{Lie, Proxy};
use crate::scenarios;

/// Time after the answer to a removal after which a message was surely sent behind it.
const SURELY: Duration = Duration::from_millis(200);

/// Members come back four seconds after their removal; what is sent to them by then takes its time on a busy machine.
const GONE: Duration = Duration::from_millis(2_500);

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "lie::leaked_to_a_stranger",
        lie: Lie { server: leak_to_stranger, ..Lie::NONE },
        expect: Expect::violated(&[("leaked", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::news_for_a_stranger",
        lie: Lie {
            server: |p, _, frame| {
                if let Some(message) = message_of(&frame) {
                    let stranger = p.facts().stranger_to(message.conversation);
                    let socket = stranger.and_then(|stranger| p.sockets_of(stranger).into_iter().next());
                    if let Some(socket) = socket.filter(|_| p.one_in("leak", 60)) {
                        p.lied();
                        let head = HeadFrame { conversation: message.conversation, id: message.id };
                        socket.put(Out::frame(&ServerFrame::Head(head)));
                    }
                }
                Out::pass(frame)
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("leaked", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::inbox_lists_conversations_of_others",
        lie: Lie {
            answer: |p, call, answer| {
                let Some(who) = &call.who else { return };
                let stranger = {
                    let facts = p.facts();
                    facts.rooms().iter().find(|(_, room)| !room.members.contains(&who.user)).map(|(id, _)| *id)
                };
                answer.edit_inbox(|inbox| {
                    let Some(conversation) = stranger.filter(|_| p.first(who.user)) else { return };
                    p.lied();
                    inbox.conversations.push(InboxEntry { conversation, head: MessageId(7), at: 0 });
                    inbox.conversations.sort_by_key(|entry| entry.conversation);
                });
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("leaked", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::removed_member_gets_pushes",
        scenario: scenarios::CHURN,
        lie: Lie { server: leak_to_removed, ..Lie::NONE },
        expect: Expect::violated(&[("leaked", Is("lies"))]),
        takes_s: 12,
        ..Mode::LIE
    },
    Mode {
        name: "lie::removed_member_reads_over_http",
        scenario: scenarios::CHURN,
        lie: Lie { request: let_removed_read, ..Lie::NONE },
        expect: Expect::violated(&[("leaked", Is("lies"))]),
        takes_s: 12,
        ..Mode::LIE
    },
    Mode {
        name: "lie::removed_member_may_send",
        scenario: scenarios::CHURN,
        lie: Lie { client: let_removed_send, ..Lie::NONE },
        expect: Expect::violated(&[("false_acceptance", Is("lies"))]),
        takes_s: 12,
        ..Mode::LIE
    },
];

/// Pushes one message in sixty to a device of a user who was never a member.
fn leak_to_stranger(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    if let Some(message) = message_of(&frame) {
        let stranger = p.facts().stranger_to(message.conversation);
        let socket = stranger.and_then(|stranger| p.sockets_of(stranger).into_iter().next());
        if let Some(socket) = socket.filter(|_| p.one_in("leak", 60)) {
            p.lied();
            socket.put(Out::frame(&frame));
        }
    }
    Out::pass(frame)
}

/// Users who were surely removed when a message was sent, and are gone for a while yet.
fn surely_removed(p: &Proxy, message: &MessageFrame) -> Vec<UserId> {
    let facts = p.facts();
    let Some(sent) = facts.sent(message.uuid) else { return Vec::new() };
    let (surely_us, gone_us) = (SURELY.as_micros() as u64, GONE.as_micros() as u64);
    let is_gone = |us: &u64| sent.first_us > us + surely_us && clock::now_us() < us + gone_us;
    facts.removed(message.conversation).into_iter().filter(|(_, us)| is_gone(us)).map(|(user, _)| user).collect()
}

/// Pushes to removed members what others get.
fn leak_to_removed(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    if let Some(message) = message_of(&frame) {
        for user in surely_removed(p, message) {
            let socket = p.sockets_of(user).into_iter().next();
            if let Some(socket) = socket.filter(|_| p.first(format!("{user} {}", message.uuid))) {
                p.lied();
                socket.put(Out::frame(&frame));
            }
        }
    }
    Out::pass(frame)
}

/// Rows that the generator asks for when it tries what it has no right to; its devices ask for fewer.
const PROBE_ROWS: u64 = 500;

/// Asks for removed members with the owner's token.
fn let_removed_read(p: &Proxy, call: &mut Call) -> Reply {
    let Some((query, user)) = call.page().filter(|(query, _)| query.limit == PROBE_ROWS) else { return Reply::Pass };
    let facts = p.facts();
    let is_removed = facts.removed(query.conversation).iter().any(|(removed, _)| *removed == user);
    let token = facts.owner(query.conversation).filter(|_| is_removed).and_then(|owner| facts.token_of(owner));
    drop(facts);
    token.map_or(Reply::Pass, |token| {
        p.lied();
        Reply::As(token)
    })
}

/// Bytes of the scenario's shortest message; what removed members try to send is shorter.
const SHORTEST: usize = 100;

/// Says that what a removed member tries to send is stored.
fn let_removed_send(p: &Proxy, socket: &Socket, frame: ClientFrame) -> Vec<ClientFrame> {
    match &frame {
        ClientFrame::Send(send) if send.body.len() < SHORTEST => {
            p.lied();
            let (uuid, conversation) = (send.uuid, send.conversation);
            let ack = AckFrame { uuid, conversation, id: MessageId(1_000_000), at: clock::unix_ms() };
            socket.put(Out::frame(&ServerFrame::Ack(ack)));
            Vec::new()
        }
        _ => vec![frame],
    }
}
