//! What a sound server may do: it ends in a pass, or in a threshold that is not met for slowness or cuts, and never in an
//! accusation.

use std::time::Duration;

use chatctl::protocol::frames::{ErrorFrame, HeadFrame, MovedFrame};
use chatctl::protocol::{ClientFrame, CloseCode, ErrorCode, MessageId, ServerFrame, websocket};
use serde_json::Value;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, OpCode};

use super::message_of;
use crate::mode::Want::{Is, Least, Number};
use crate::mode::{Expect, Mode};
use crate::proxy::http::{Answer, Call, Endpoint, Reply};
use crate::proxy::socket::{Out, Socket, Upgrade};
use crate::proxy::{Lie, Proxy, Wire};
use crate::scenarios;

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "sound::cut",
        lie: Lie { server: cut_some, ..Lie::NONE },
        expect: Expect::not_accused(&[("unresolved", Number(0)), ("undrained", Number(0))]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::cut_and_slow_upgrade",
        lie: Lie { server: cut_some, connect: |_, _| Upgrade::Slow(Duration::from_secs(3)), ..Lie::NONE },
        expect: Expect::not_accused(&[
            ("unresolved", Number(0)),
            ("undrained", Number(0)),
            ("never_connected", Number(0)),
        ]),
        takes_s: 12,
        ..Mode::SOUND
    },
    Mode {
        name: "sound::slow_sync",
        lie: Lie {
            server: |p, s, frame| {
                if message_of(&frame).is_some() && p.one_in("push", 30) { Vec::new() } else { cut_some(p, s, frame) }
            },
            request: |p, call| slow(p, call, 1_500),
            ..Lie::NONE
        },
        expect: Expect::not_accused(&[("undrained", Number(0))]),
        takes_s: 12,
        ..Mode::SOUND
    },
    Mode {
        name: "sound::throttled",
        lie: Lie { server: cut_some, request: throttle, client: overloaded_at_first, ..Lie::NONE },
        expect: Expect::not_accused(&[("unresolved", Number(0)), ("undrained", Number(0)), ("http_errors", Number(0))]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::duplicates_on_the_wire",
        lie: Lie {
            server: |p, _, frame| match frame {
                ServerFrame::Message(_) | ServerFrame::Ack(_) => {
                    p.lied();
                    let again = Out::frame(&frame).after(Duration::from_millis(p.below(50)));
                    Out::pass(frame).into_iter().chain([again]).collect()
                }
                _ => Out::pass(frame),
            },
            ..Lie::NONE
        },
        expect: Expect::passed(&[]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::reordered_on_the_wire",
        lie: Lie {
            server: |p, _, frame| match frame {
                ServerFrame::Message(_) | ServerFrame::Ack(_) => {
                    p.lied();
                    vec![Out::frame(&frame).after(Duration::from_millis(p.below(200)))]
                }
                _ => Out::pass(frame),
            },
            ..Lie::NONE
        },
        expect: Expect::passed(&[]),
        ..Mode::SOUND
    },
    // Past a rate, or behind, a server tells of a message of a channel in place of sending it.
    Mode {
        name: "sound::some_heads_in_a_channel",
        scenario: scenarios::CHANNEL,
        lie: Lie {
            server: |p, _, frame| match message_of(&frame) {
                Some(message) if p.one_in("message", 4) => {
                    p.lied();
                    let head = HeadFrame { conversation: message.conversation, id: message.id };
                    vec![Out::frame(&ServerFrame::Head(head))]
                }
                _ => Out::pass(frame),
            },
            ..Lie::NONE
        },
        expect: Expect::passed(&[("pushed_by_head", Least(1)), ("protocol_errors", Number(0))]),
        takes_s: 12,
        seeds: 3,
        ..Mode::SOUND
    },
    Mode {
        name: "sound::half_open",
        lie: Lie {
            server: |p, s, frame| {
                let is_welcome = matches!(frame, ServerFrame::Welcome(_)) && p.first(s.who.user);
                let mut outs = Out::pass(frame);
                if is_welcome && p.one_in("welcome", 4) {
                    p.lied();
                    outs.push(Out::blackhole().after(Duration::from_millis(300 + p.below(1_000))));
                }
                outs
            },
            ..Lie::NONE
        },
        expect: Expect::not_accused(&[]),
        takes_s: 30,
        ..Mode::SOUND
    },
    Mode {
        name: "sound::everything_delayed",
        lie: Lie {
            server: |p, _, frame| {
                p.lied();
                vec![Out::frame(&frame).after(Duration::from_millis(300))]
            },
            request: |p, call| slow(p, call, 300),
            ..Lie::NONE
        },
        expect: Expect::passed(&[]),
        ..Mode::SOUND
    },
    // Nobody says anything, so that what is late is presence alone, welcomes and answers to pings.
    Mode {
        name: "sound::everything_delayed_among_friends_who_say_nothing",
        scenario: scenarios::QUIET_FRIENDS,
        lie: Lie { server: delayed_by_4_s, ..Lie::NONE },
        expect: Expect::not_accused(&[("presence_seen", Least(5))]),
        takes_s: 24,
        seeds: 3,
        ..Mode::SOUND
    },
    Mode {
        name: "sound::everything_delayed_while_friends_come_and_go",
        scenario: scenarios::QUIET_RETURNS,
        lie: Lie { server: delayed_by_4_s, ..Lie::NONE },
        expect: Expect::not_accused(&[]),
        takes_s: 60,
        seeds: 1,
        ..Mode::SOUND
    },
    // The notices alone.
    Mode {
        name: "sound::presence_delayed",
        scenario: scenarios::QUIET_FRIENDS,
        lie: Lie {
            server: |p, s, frame| {
                if matches!(frame, ServerFrame::Presence(_)) { delayed_by_4_s(p, s, frame) } else { Out::pass(frame) }
            },
            ..Lie::NONE
        },
        expect: Expect::passed(&[("presence_seen", Least(5))]),
        takes_s: 20,
        seeds: 3,
        ..Mode::SOUND
    },
    Mode {
        name: "sound::late_acks",
        lie: Lie {
            server: |p, _, frame| {
                if matches!(frame, ServerFrame::Ack(_)) && p.one_in("ack", 10) {
                    p.lied();
                    // Behind the retry, whose ACK comes first.
                    return vec![Out::frame(&frame).after(Duration::from_millis(5_500))];
                }
                Out::pass(frame)
            },
            ..Lie::NONE
        },
        expect: Expect::passed(&[("unresolved", Number(0))]),
        takes_s: 10,
        ..Mode::SOUND
    },
    // Each message is acknowledged when it is sent again, as by a server whose answers get lost.
    Mode {
        name: "sound::acks_lost_at_first",
        lie: Lie {
            server: |p, _, frame| match &frame {
                ServerFrame::Ack(ack) if p.first(ack.uuid) && p.one_in("ack", 10) => {
                    p.lied();
                    Vec::new()
                }
                _ => Out::pass(frame),
            },
            ..Lie::NONE
        },
        expect: Expect::passed(&[("unresolved", Number(0)), ("resent", Is("lies"))]).extra(|_, result| {
            let is_told = result.warnings.iter().any(|warning| warning.contains("had no answer within 5 s"));
            if is_told { Ok(()) } else { Err(format!("no warning of it: {:?}", result.warnings)) }
        }),
        takes_s: 10,
        seeds: 3,
        ..Mode::SOUND
    },
    // Slower than a sync, also at the end, when the load is over.
    Mode {
        name: "sound::pushes_late_by_1600_ms",
        lie: Lie {
            server: |p, _, frame| {
                if message_of(&frame).is_none() {
                    return Out::pass(frame);
                }
                p.lied();
                vec![Out::frame(&frame).after(Duration::from_millis(1_600))]
            },
            ..Lie::NONE
        },
        expect: Expect::passed(&[("push_expected-pushed", Number(0))]),
        takes_s: 9,
        ..Mode::SOUND
    },
    Mode {
        name: "sound::idle_connections_closed",
        lie: Lie { closes_idle: true, server: cut_some, ..Lie::NONE },
        expect: Expect::not_accused(&[("http_errors", Number(0)), ("undrained", Number(0))]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::crumbs",
        lie: Lie { wire: Wire::Crumbs, server: noted, ..Lie::NONE },
        expect: Expect::not_accused(&[("protocol_errors", Number(0))]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::lumps",
        lie: Lie { wire: Wire::Lumps(Duration::from_millis(80)), server: noted, ..Lie::NONE },
        expect: Expect::passed(&[("protocol_errors", Number(0))]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::drained",
        lie: Lie { server: drain, ..Lie::NONE },
        expect: Expect::passed(&[("disconnects", Number(0)), ("reconnects", Is("closed"))]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::fields_of_a_newer_version",
        lie: Lie { server: with_more_fields, answer: with_more_fields_too, ..Lie::NONE },
        expect: Expect::passed(&[("protocol_errors", Number(0))]),
        ..Mode::SOUND
    },
    Mode {
        name: "sound::fragments_and_pings",
        lie: Lie { server: in_fragments, ..Lie::NONE },
        expect: Expect::passed(&[("protocol_errors", Number(0))]),
        ..Mode::SOUND
    },
    // A server may give ids with holes between them: every cursor, head and page agrees on them.
    Mode {
        name: "sound::holes_between_ids",
        lie: Lie { server: doubled, request: ask_doubled, answer: answer_doubled, ..Lie::NONE },
        expect: Expect::passed(&[("gaps_synced", Least(1))]),
        ..Mode::SOUND
    },
];

fn delayed_by_4_s(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    p.lied();
    vec![Out::frame(&frame).after(Duration::from_secs(4))]
}

const fn twice(id: MessageId) -> MessageId {
    MessageId(id.0 * 2)
}

fn doubled(p: &Proxy, _: &Socket, mut frame: ServerFrame) -> Vec<Out> {
    match &mut frame {
        ServerFrame::Message(message) => message.id = twice(message.id),
        ServerFrame::Ack(ack) => {
            p.lied();
            ack.id = twice(ack.id);
        }
        ServerFrame::Head(head) => head.id = twice(head.id),
        _ => {}
    }
    Out::pass(frame)
}

fn ask_doubled(_: &Proxy, call: &mut Call) -> Reply {
    if let Some((page, _)) = call.page() {
        call.ask_after(page.after / 2);
    }
    Reply::Pass
}

fn answer_doubled(_: &Proxy, call: &Call, answer: &mut Answer) {
    answer.edit_inbox(|inbox| {
        for entry in &mut inbox.conversations {
            entry.head = twice(entry.head);
        }
    });
    if call.page().is_none() {
        return;
    }
    answer.edit_page(|page| {
        page.stable = twice(page.stable);
        for row in &mut page.messages {
            row.id = twice(row.id);
        }
    });
}

fn noted(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    p.lied();
    Out::pass(frame)
}

/// Cuts half of the connections at some time in the first two seconds.
fn cut_some(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    let is_welcome = matches!(frame, ServerFrame::Welcome(_)) && p.age() < Duration::from_millis(1_500);
    let mut outs = Out::pass(frame);
    if is_welcome && p.below(2) == 0 {
        p.lied();
        outs.push(Out::cut().after(Duration::from_millis(200 + p.below(1_200))));
    }
    outs
}

/// Answers of syncs and placements take their time.
fn slow(p: &Proxy, call: &mut Call, ms: u64) -> Reply {
    match call.api {
        Endpoint::Messages(_) | Endpoint::Inbox | Endpoint::Placement => {
            p.lied();
            Reply::Later(Duration::from_millis(ms))
        }
        _ => Reply::Pass,
    }
}

/// For two seconds, half of the syncs and placements are to come back later.
fn throttle(p: &Proxy, call: &mut Call) -> Reply {
    let is_one = matches!(call.api, Endpoint::Messages(_) | Endpoint::Inbox | Endpoint::Placement);
    if is_one && p.age() < Duration::from_secs(2) && p.below(2) == 0 {
        p.lied();
        return Reply::Answer(Answer::throttled(300));
    }
    Reply::Pass
}

/// One message in ten is taken only when it is sent again.
fn overloaded_at_first(p: &Proxy, s: &Socket, frame: ClientFrame) -> Vec<ClientFrame> {
    match &frame {
        ClientFrame::Send(send) if p.first(send.uuid) && p.one_in("send", 10) => {
            p.lied();
            let (uuid, message) = (Some(send.uuid), "so says the proxy".to_owned());
            let error = ErrorFrame { uuid, code: ErrorCode::Overloaded, message, retry_after_ms: Some(200) };
            s.put(Out::frame(&ServerFrame::Error(error)));
            Vec::new()
        }
        _ => vec![frame],
    }
}

/// Each device's first connection is moved.
fn drain(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    let is_welcome = matches!(frame, ServerFrame::Welcome(_)) && p.first(s.who.user);
    let mut outs = Out::pass(frame);
    if is_welcome {
        p.lied();
        let moved = ServerFrame::Moved(MovedFrame { reason: "drain".to_owned(), retry_after_ms: 100 });
        let wait = Duration::from_millis(400 + p.below(800));
        outs.push(Out::frame(&moved).after(wait));
        outs.push(Out::close(CloseCode::Moved.code()).after(wait));
    }
    outs
}

fn add_field(text: &str) -> Option<String> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    value.as_object_mut()?.insert("since_the_next_version".to_owned(), serde_json::json!({"a": [1, null]}));
    Some(value.to_string())
}

fn with_more_fields(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    if matches!(frame, ServerFrame::Ack(_)) {
        return Out::pass(frame);
    }
    p.lied();
    vec![Out::text(&add_field(&frame.encode()).expect("an object"))]
}

fn with_more_fields_too(p: &Proxy, _: &Call, answer: &mut Answer) {
    if let Some(more) = std::str::from_utf8(&answer.body).ok().and_then(add_field) {
        p.lied();
        answer.body = more.into_bytes();
    }
}

/// Each text in two fragments with a ping between.
fn in_fragments(p: &Proxy, _: &Socket, frame: ServerFrame) -> Vec<Out> {
    p.lied();
    let mut whole = websocket::text_frame(&frame.encode(), None);
    let header = whole.len() - frame.encode().len();
    let text = whole.split_off(header);
    let (first, second) = text.split_at(text.len() / 2);
    let mut bytes = Vec::new();
    fragment(0x01, first, &mut bytes);
    websocket::encode(OpCode::Control(Control::Ping), b"there?", None, &mut bytes);
    fragment(0x80, second, &mut bytes);
    vec![Out::bytes(bytes)]
}

/// A frame with a hand-made first byte.
fn fragment(first: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    match payload.len() {
        short @ 0..126 => out.push(short as u8),
        long => {
            out.push(126);
            out.extend_from_slice(&(long as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}
