//! Answers to what was sent: wrong, missing, contradicting each other. Every uuid has one fate.

use std::time::Duration;

use chatctl::loadgen::RunResult;
use chatctl::protocol::frames::{AckFrame, ErrorFrame};
use chatctl::protocol::{ClientFrame, ErrorCode, MessageId, ServerFrame};
use uuid::Uuid;

use crate::mode::Want::{Is, Number};
use crate::mode::{Expect, Mode};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{Lie, Proxy};
use chatctl::telemetry::LatencyPath;

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "lie::second_ack_with_another_id",
        lie: Lie {
            server: |p, _, frame| {
                with_ack(p, frame, 25, |ack| {
                    let other = AckFrame { id: MessageId(ack.id.0 + 7), ..*ack };
                    vec![out(*ack), out(other).after(Duration::from_millis(100))]
                })
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("ack_wrong", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::ack_for_another_conversation",
        lie: Lie { server: name_another_conversation, ..Lie::NONE },
        expect: Expect::violated(&[("ack_wrong", Is("lies"))]),
        takes_s: 12,
        ..Mode::LIE
    },
    Mode {
        name: "lie::ack_of_a_uuid_that_nobody_sent",
        lie: Lie {
            server: |p, _, frame| {
                with_ack(p, frame, 25, |ack| vec![out(*ack), out(AckFrame { uuid: Uuid::new_v4(), ..*ack })])
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("ack_wrong", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::ack_told_to_another_device",
        lie: Lie { server: |p, s, frame| tell_another(p, s, frame, |ack| out(*ack)), ..Lie::NONE },
        expect: Expect::violated(&[("ack_wrong", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::refusal_of_a_uuid_that_nobody_sent",
        lie: Lie {
            server: |p, _, frame| with_ack(p, frame, 25, |ack| vec![out(*ack), refusal(Uuid::new_v4())]),
            ..Lie::NONE
        },
        expect: Expect::violated(&[("ack_wrong", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::refusal_told_to_another_device",
        lie: Lie { server: |p, s, frame| tell_another(p, s, frame, |ack| refusal(ack.uuid)), ..Lie::NONE },
        expect: Expect::violated(&[("ack_wrong", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::ack_with_an_id_that_is_not_stored",
        lie: Lie {
            server: |p, _, frame| match &frame {
                // Once per conversation, so that one per message and one per conversation are the same.
                ServerFrame::Ack(ack) if p.first(ack.conversation) => {
                    p.lied();
                    vec![out(AckFrame { id: MessageId(ack.id.0 + 1_000), ..*ack })]
                }
                _ => Out::pass(frame),
            },
            ..Lie::NONE
        },
        // Others see it under the id that it has, and everything behind it has lower ones.
        expect: Expect::violated(&[("id_reuse", Is("lies"))]).also(&["ack_wrong", "duplicated", "id_went_back"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::ack_never_comes",
        lie: Lie {
            server: |p, _, frame| match &frame {
                ServerFrame::Ack(ack) if p.choose(ack.uuid, None, 12) => Vec::new(),
                _ => Out::pass(frame),
            },
            finish: count_waits,
            ..Lie::NONE
        },
        expect: Expect::failed("unresolved", &[("unresolved", Is("lies")), ("lost", Number(0))]).extra(waits_are_told),
        takes_s: 30,
        ..Mode::LIE
    },
    Mode {
        name: "lie::9_percent_never_answered",
        lie: Lie {
            client: |p, _, frame| match &frame {
                ClientFrame::Send(send) if p.choose(send.uuid, None, 11) => Vec::new(),
                _ => vec![frame],
            },
            finish: count_waits,
            ..Lie::NONE
        },
        expect: Expect::failed("unresolved", &[("unresolved", Is("lies")), ("lost", Number(0))]).extra(waits_are_told),
        takes_s: 30,
        ..Mode::LIE
    },
    Mode {
        name: "lie::overloaded_for_ever",
        lie: Lie {
            client: |p, s, frame| refuse(p, s, frame, 20, ErrorCode::Overloaded, Some(500)),
            finish: count_waits,
            ..Lie::NONE
        },
        expect: Expect::failed("unresolved", &[("unresolved", Is("lies"))]).extra(waits_are_told),
        takes_s: 30,
        ..Mode::LIE
    },
    Mode {
        name: "lie::20_percent_refused",
        lie: Lie { client: |p, s, frame| refuse(p, s, frame, 5, ErrorCode::Forbidden, None), ..Lie::NONE },
        expect: Expect::failed("refused", &[("refused", Is("lies")), ("false_refusal", Number(0))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::refused_but_stored_and_delivered",
        lie: Lie { server: |p, _, frame| with_ack(p, frame, 20, |ack| vec![refusal(ack.uuid)]), ..Lie::NONE },
        expect: Expect::violated(&[("false_refusal", Is("lies")), ("refused", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::refused_then_acked",
        lie: Lie {
            server: |p, _, frame| {
                with_ack(p, frame, 20, |ack| vec![refusal(ack.uuid), out(*ack).after(Duration::from_millis(100))])
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("false_refusal", Is("lies"))]).also(&["ack_wrong"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::acked_then_refused",
        lie: Lie {
            server: |p, _, frame| {
                with_ack(p, frame, 20, |ack| vec![out(*ack), refusal(ack.uuid).after(Duration::from_millis(100))])
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("false_refusal", Is("lies"))]),
        ..Mode::LIE
    },
];

fn out(ack: AckFrame) -> Out {
    Out::frame(&ServerFrame::Ack(ack))
}

/// A definite error for a message.
fn refusal(uuid: Uuid) -> Out {
    let message = "so says the proxy".to_owned();
    let error = ErrorFrame { uuid: Some(uuid), code: ErrorCode::BadRequest, message, retry_after_ms: None };
    Out::frame(&ServerFrame::Error(error))
}

/// Passes everything on, and says something about one ACK in 25 to a device that did not send its message.
fn tell_another(p: &Proxy, s: &Socket, frame: ServerFrame, what: fn(&AckFrame) -> Out) -> Vec<Out> {
    if let ServerFrame::Ack(ack) = &frame {
        let other = p.sockets().into_iter().find(|other| other.who.user != s.who.user);
        if let Some(other) = other.filter(|_| p.one_in("ack", 25)) {
            p.lied();
            other.put(what(ack));
        }
    }
    Out::pass(frame)
}

/// Says something else than one ACK in `n`.
fn with_ack(p: &Proxy, frame: ServerFrame, n: u64, instead: fn(&AckFrame) -> Vec<Out>) -> Vec<Out> {
    match &frame {
        ServerFrame::Ack(ack) if p.one_in("ack", n) => {
            p.lied();
            instead(ack)
        }
        _ => Out::pass(frame),
    }
}

fn name_another_conversation(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    let ServerFrame::Ack(ack) = &frame else { return Out::pass(frame) };
    let other = p.facts().other_room_of(s.who.user, ack.conversation);
    match other {
        // Its second ACK, should it ask again, is as it ought to be.
        Some(conversation) if p.one_in("ack", 25) && p.first(ack.uuid) => {
            p.lied();
            vec![out(AckFrame { conversation, ..*ack })]
        }
        _ => Out::pass(frame),
    }
}

/// Refuses one message in `n` without storing it, as often as it is sent.
fn refuse(
    p: &Proxy,
    s: &Socket,
    frame: ClientFrame,
    n: u64,
    code: ErrorCode,
    retry_after_ms: Option<u64>,
) -> Vec<ClientFrame> {
    match &frame {
        ClientFrame::Send(send) if p.choose(send.uuid, None, n) => {
            let message = "so says the proxy".to_owned();
            let error = ErrorFrame { uuid: Some(send.uuid), code, message, retry_after_ms };
            s.put(Out::frame(&ServerFrame::Error(error)));
            Vec::new()
        }
        _ => vec![frame],
    }
}

/// Shortest time over which a message without an answer was sent again and again.
fn count_waits(p: &Proxy) {
    let facts = p.facts();
    let waits = p.chosen().into_iter().filter_map(|(uuid, _)| facts.sent(uuid)).map(|s| s.last_us - s.first_us);
    let least = waits.min().unwrap_or(0);
    drop(facts);
    p.tally.set("waited_us_min", least);
}

/// What was never answered counts with the time that it waited.
fn waits_are_told(p: &Proxy, result: &RunResult) -> Result<(), String> {
    let waited_us = p.tally.get("waited_us_min");
    let told_us = result.latency.get(LatencyPath::Ack).map_or(0, |ack| ack.p99_us);
    if waited_us > 0 && told_us < waited_us {
        return Err(format!("ACK p99 is told as {told_us} µs, unanswered messages waited at least {waited_us} µs"));
    }
    Ok(())
}
