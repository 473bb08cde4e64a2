//! Messages that do not come: by push, by sync, or at all.

use std::time::Duration;

use chatctl::protocol::frames::HeadFrame;
use chatctl::protocol::{ClientFrame, MessageFrame, ServerFrame, UserId};

use super::message_of;
use crate::mode::Want::{Is, Number, Within};
use crate::mode::{Expect, Mode};
use crate::proxy::http::{Answer, Call};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{Lie, Proxy};
use crate::scenarios;

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "lie::push_dropped_entirely",
        lie: Lie { server: drop_push, ..Lie::NONE },
        // What a sync for another gap fetches at once may have been on its way.
        expect: Expect::failed(
            "pushed_percent",
            &[("pushed", Number(0)), ("push_expected", Within("hundred", "lies"))],
        ),
        ..Mode::LIE
    },
    Mode {
        name: "lie::head_instead_of_the_message",
        // Fetched at once, and not pushed: only a large channel is to be told of news.
        lie: Lie { server: head_only, finish: |p| p.tally.set("hundred", 100), ..Lie::NONE },
        expect: Expect::failed(
            "pushed_percent",
            &[
                ("pushed", Number(0)),
                ("push_expected", Within("hundred", "lies")),
                ("protocol_errors", Within("hundred", "lies")),
            ],
        )
        .extra(|_, result| {
            let is_told = result.reasons.iter().any(|reason| reason.contains("protocol_errors"));
            if is_told { Ok(()) } else { Err(format!("no reason names protocol_errors: {:?}", result.reasons)) }
        }),
        ..Mode::LIE
    },
    Mode {
        name: "lie::heads_only_in_a_channel",
        // A server may have reasons for a head, and who asks for messages sees how many came as such.
        scenario: scenarios::CHANNEL_OF_MESSAGES,
        lie: Lie { server: head_only, finish: |p| p.tally.set("hundred", 100), ..Lie::NONE },
        expect: Expect::failed(
            "pushed_whole_percent",
            &[
                ("pushed-pushed_by_head", Number(0)),
                ("pushed_by_head", Within("hundred", "lies")),
                ("protocol_errors", Number(0)),
            ],
        ),
        takes_s: 12,
        ..Mode::LIE
    },
    Mode {
        name: "lie::push_dropped_5_percent",
        lie: Lie { server: drop_one_push, ..Lie::NONE },
        expect: Expect::failed("pushed_percent", &[("push_expected-pushed", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::heads_never_sent",
        scenario: scenarios::CHANNEL,
        lie: Lie { server: drop_heads, ..Lie::NONE },
        expect: Expect::failed("pushed_percent", &[("pushed", Number(0)), ("push_expected", Within("one", "owed"))]),
        takes_s: 12,
        ..Mode::LIE
    },
    Mode {
        name: "lie::heads_without_messages",
        scenario: scenarios::CHANNEL,
        lie: Lie {
            answer: |p, call, answer| {
                // A reader of the channel in fifty lacks a message.
                strip(call.device_page().is_some(), p, call, answer, |p, row, user| {
                    row.sender != user && p.choose(row.uuid, Some(user), 50)
                });
            },
            server: |p, s, frame| hide_push(p, s, frame, 50),
            ..Lie::NONE
        },
        expect: Expect::violated(&[("lost", Is("lies"))]),
        takes_s: 12,
        ..Mode::LIE
    },
    Mode {
        name: "lie::acked_and_not_stored",
        lie: Lie {
            client: |p, _, frame| {
                if let ClientFrame::Send(send) = &frame {
                    p.choose(send.uuid, None, 25);
                }
                vec![frame]
            },
            server: |p, _, frame| match message_of(&frame) {
                Some(message) if p.is_chosen(message.uuid, None) => Vec::new(),
                _ => Out::pass(frame),
            },
            answer: |p, call, answer| strip(true, p, call, answer, |p, row, _| p.is_chosen(row.uuid, None)),
            ..Lie::NONE
        },
        // Its sender has shown it, under an id that nothing is stored under.
        expect: Expect::violated(&[("lost", Is("lies"))]).also(&["id_reuse"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::lost_for_one_member",
        lie: Lie {
            server: |p, s, frame| hide_push(p, s, frame, 60),
            answer: |p, call, answer| strip_hidden(p, call, answer),
            ..Lie::NONE
        },
        expect: Expect::violated(&[("lost", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::row_missing_in_audit",
        lie: Lie {
            answer: |p, call, answer| {
                let is_audit = call.audit_page().is_some();
                strip(is_audit, p, call, answer, |p, row, _| p.choose(row.uuid, None, 20));
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("lost", Is("lies"))]).also(&["id_reuse"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::hole_in_a_members_history",
        lie: Lie {
            answer: |p, call, answer| {
                let is_others = call.audit_page().is_some_and(|(q, user)| !p.facts().is_owner(q.conversation, user));
                strip(is_others, p, call, answer, |p, row, user| p.choose(row.uuid, Some(user), 20));
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("lost", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::inbox_omits_conversation",
        scenario: scenarios::READERS,
        lie: Lie { server: mute, answer: omit_muted, finish: count_muted, ..Lie::NONE },
        expect: Expect::violated(&[("lost", Within("muted_surely", "lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::deliveries_held_for_seconds",
        scenario: scenarios::IN_TIME,
        lie: Lie {
            server: |p, _, frame| {
                if message_of(&frame).is_none() {
                    return Out::pass(frame);
                }
                p.lied();
                vec![Out::frame(&frame).after(Duration::from_millis(2_500))]
            },
            ..Lie::NONE
        },
        expect: Expect::failed("delivery_ms.p90", &[("lost", Number(0))]),
        ..Mode::LIE
    },
];

/// Drops every push.
fn drop_push(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    p.tally.set("hundred", 100);
    if message_of(&frame).is_none() {
        return Out::pass(frame);
    }
    p.lied();
    Vec::new()
}

/// Tells of each message in place of sending it.
fn head_only(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    let Some(message) = message_of(&frame) else { return Out::pass(frame) };
    p.lied();
    vec![Out::frame(&ServerFrame::Head(HeadFrame { conversation: message.conversation, id: message.id }))]
}

/// The last pushes of a run are not dropped: the sync at its end would fetch them as fast as a push.
const LAST: Duration = Duration::from_secs(3);

/// Drops a push to a device of every other conversation that it has, and no second one while that gap waits for its sync.
fn drop_one_push(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    let Some(message) = message_of(&frame) else { return Out::pass(frame) };
    let is_new = p.age() < LAST && p.first(format!("push {} {}", s.who.user, message.conversation));
    if is_new && p.one_in("push", 2) {
        p.lied();
        return Vec::new();
    }
    Out::pass(frame)
}

/// Drops what tells of news in a channel. Each message is owed to everybody but its sender.
fn drop_heads(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    match frame {
        ServerFrame::Head(_) | ServerFrame::Message(_) => {
            p.lied();
            Vec::new()
        }
        ServerFrame::Ack(ack) => {
            let members = p.facts().rooms().get(&ack.conversation).map_or(0, |room| room.members.len());
            p.tally.add("owed", members as u64 - 1);
            Out::pass(ServerFrame::Ack(ack))
        }
        other => Out::pass(other),
    }
}

/// Drops one push in `n` for good.
fn hide_push(p: &Proxy, s: &Socket, frame: ServerFrame, n: u64) -> Vec<Out> {
    match message_of(&frame) {
        Some(message) if p.choose(message.uuid, Some(s.who.user), n) => Vec::new(),
        _ => Out::pass(frame),
    }
}

/// Takes rows out of a page.
fn strip(
    is_wanted: bool,
    p: &Proxy,
    call: &Call,
    answer: &mut Answer,
    is_hidden: fn(&Proxy, &MessageFrame, UserId) -> bool,
) {
    let Some((_, user)) = call.page().filter(|_| is_wanted) else { return };
    answer.edit_page(|page| page.messages.retain(|row| !is_hidden(p, row, user)));
}

/// Takes what was hidden out of the pages that devices get.
fn strip_hidden(p: &Proxy, call: &Call, answer: &mut Answer) {
    strip(call.device_page().is_some(), p, call, answer, |p, row, user| !p.serves(row.uuid, user));
}

/// From a second on, some readers hear nothing of some conversations any more.
fn mute(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    let Some(message) = message_of(&frame) else { return Out::pass(frame) };
    let user = s.who.user;
    let is_late = p.age() > Duration::from_millis(2_500);
    if !is_late || p.facts().has_sent(user) || !user.0.is_multiple_of(3) {
        return Out::pass(frame);
    }
    p.choose(message.uuid, Some(user), 1);
    p.first(format!("muted {user} {}", message.conversation));
    Vec::new()
}

/// The inbox says nothing of muted conversations.
fn omit_muted(p: &Proxy, call: &Call, answer: &mut Answer) {
    let Some(who) = &call.who else { return };
    answer.edit_inbox(|inbox| {
        inbox.conversations.retain(|entry| !p.has(format!("muted {} {}", who.user, entry.conversation)));
    });
}

/// Who sent something later heard of a gap, and fetched what was missing.
fn count_muted(p: &Proxy) {
    let surely = p.chosen().iter().filter(|(_, user)| user.is_none_or(|user| !p.facts().has_sent(user))).count();
    p.tally.set("muted_surely", surely as u64);
}
