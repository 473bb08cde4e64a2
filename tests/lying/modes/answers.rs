//! The HTTP API: errors, silence, throttling, tokens that end; and that nobody is flooded for it.

use std::time::Duration;

use chatctl::protocol::{CloseCode, ErrorCode, ServerFrame};

use super::message_of;
use crate::mode::Want::{Is, Least, Number, Within};
use crate::mode::{Expect, Mode, StackKind};
use crate::proxy::http::{Answer, Call, Endpoint, Reply};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{Lie, Proxy};
use crate::scenarios;

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "lie::inbox_answers_500",
        lie: Lie { request: |p, call| fail(p, matches!(call.api, Endpoint::Inbox), Answer::internal), ..Lie::NONE },
        expect: Expect::failed(
            "undrained",
            &[("undrained", Is("clients")), ("http_errors", Within("one", "lies")), ("lost", Number(0))],
        )
        .extra(|p, _| within_budget(p, "inbox", 150)),
        takes_s: 50,
        ..Mode::LIE
    },
    Mode {
        name: "lie::pages_answer_500",
        lie: Lie {
            server: |p, s, frame| leave_behind(p, s, frame),
            request: |p, call| fail(p, call.device_page().is_some(), Answer::internal),
            ..Lie::NONE
        },
        expect: Expect::failed(
            "undrained",
            &[("undrained", Is("behind")), ("http_errors", Within("one", "lies")), ("lost", Number(0))],
        )
        // Four conversations and some groups may be behind at a time.
        .extra(|p, _| within_budget(p, "messages", 600)),
        takes_s: 50,
        ..Mode::LIE
    },
    Mode {
        name: "lie::pages_cannot_be_read",
        lie: Lie {
            server: |p, s, frame| leave_behind(p, s, frame),
            answer: |p, call, answer| {
                if call.device_page().is_some() {
                    p.lied();
                    answer.body.truncate(answer.body.len() / 2);
                }
            },
            ..Lie::NONE
        },
        expect: Expect::failed(
            "undrained",
            &[("undrained", Is("behind")), ("protocol_errors", Within("one", "lies")), ("lost", Number(0))],
        ),
        takes_s: 50,
        ..Mode::LIE
    },
    Mode {
        name: "lie::audit_answers_500",
        lie: Lie { request: |p, call| fail(p, call.audit_page().is_some(), Answer::internal), ..Lie::NONE },
        expect: Expect::failed(
            "unaudited",
            &[("unaudited", Is("conversations")), ("http_errors", Within("one", "lies")), ("lost", Number(0))],
        ),
        takes_s: 20,
        ..Mode::LIE
    },
    // The owners' views are all that there is, and who was removed is not refused: nothing is known of anybody else.
    Mode {
        name: "lie::audit_throttles_members",
        lie: Lie {
            request: |p, call| {
                let page = call.audit_page();
                let is_anothers = page.is_some_and(|(query, user)| !p.facts().is_owner(query.conversation, user));
                fail(p, is_anothers, || Answer::throttled(LONGER_THAN_ANY_TRY_MS))
            },
            ..Lie::NONE
        },
        expect: Expect::failed(
            "unread_views",
            &[("unread_views", Is("lies")), ("read_views", Number(0)), ("lost", Number(0))],
        ),
        ..Mode::LIE
    },
    Mode {
        name: "lie::the_removed_are_throttled",
        scenario: scenarios::CHURN,
        lie: Lie {
            request: |p, call| {
                let is_removed = call.device_page().is_some_and(|(query, user)| {
                    query.after == 0
                        && p.facts().removed(query.conversation).iter().any(|(removed, _)| *removed == user)
                });
                fail(p, is_removed, || Answer::throttled(LONGER_THAN_ANY_TRY_MS))
            },
            ..Lie::NONE
        },
        expect: Expect::failed(
            "unprobed",
            &[("unprobed", Least(1)), ("access_probes", Number(0)), ("lost", Number(0))],
        ),
        takes_s: 18,
        ..Mode::LIE
    },
    Mode {
        name: "lie::audit_refuses_the_owners",
        lie: Lie {
            request: |p, call| fail(p, call.audit_page().is_some(), || Answer::error(403, ErrorCode::NotAMember, None)),
            ..Lie::NONE
        },
        expect: Expect::failed("unaudited", &[("unaudited", Is("conversations")), ("lost", Number(0))]),
        takes_s: 20,
        ..Mode::LIE
    },
    Mode {
        name: "lie::inbox_throttled_until_the_end",
        scenario: scenarios::LONGER,
        lie: Lie {
            request: |p, call| {
                if matches!(call.api, Endpoint::Inbox) && p.age() < scenarios::LONGER_LOAD {
                    p.lied();
                    return Reply::Answer(Answer::throttled(3_600_000));
                }
                Reply::Pass
            },
            ..Lie::NONE
        },
        expect: Expect::failed("not_caught_up", &[("not_caught_up", Is("clients")), ("lost", Number(0))]),
        takes_s: 18,
        ..Mode::LIE
    },
    Mode {
        name: "lie::pages_throttled_until_the_end",
        // Everything behind the first gap waits for the hour that the server asks for.
        scenario: scenarios::LONGER,
        lie: Lie {
            server: |p, s, frame| {
                let is_first =
                    message_of(&frame).is_some_and(|m| p.first(format!("{} {}", s.who.user, m.conversation)));
                if is_first { Vec::new() } else { Out::pass(frame) }
            },
            request: |p, call| {
                if call.device_page().is_some() && p.age() < scenarios::LONGER_LOAD {
                    p.lied();
                    return Reply::Answer(Answer::throttled(3_600_000));
                }
                Reply::Pass
            },
            ..Lie::NONE
        },
        expect: Expect::failed("not_caught_up", &[("not_caught_up", Within("one", "clients")), ("lost", Number(0))]),
        takes_s: 20,
        ..Mode::LIE
    },
    Mode {
        name: "lie::inbox_never_answers",
        scenario: scenarios::BRIEF,
        lie: Lie {
            request: |p, call| {
                if matches!(call.api, Endpoint::Inbox) {
                    p.lied();
                    return Reply::Hang;
                }
                Reply::Pass
            },
            ..Lie::NONE
        },
        expect: Expect::failed("undrained", &[("undrained", Is("clients")), ("lost", Number(0))]),
        takes_s: 60,
        ..Mode::LIE
    },
    Mode {
        name: "lie::placement_answers_500_after_a_cut",
        lie: Lie {
            server: |_, _, frame| {
                let is_welcome = matches!(frame, ServerFrame::Welcome(_));
                let mut outs = Out::pass(frame);
                outs.extend(is_welcome.then(|| Out::cut().after(Duration::from_millis(1_500))));
                outs
            },
            request: |p, call| fail(p, matches!(call.api, Endpoint::Placement), Answer::internal),
            ..Lie::NONE
        },
        expect: Expect::failed("http_errors", &[("http_errors", Within("one", "lies")), ("disconnects", Is("cut"))])
            .extra(|p, _| within_budget(p, "placement", 40)),
        takes_s: 30,
        ..Mode::LIE
    },
    Mode {
        name: "lie::no_token_is_taken_for_the_inbox",
        lie: Lie {
            request: |p, call| {
                fail(p, matches!(call.api, Endpoint::Inbox), || Answer::error(401, ErrorCode::Unauthorized, None))
            },
            ..Lie::NONE
        },
        // Each try logs in and asks again with the new token, which is refused, too.
        expect: Expect::failed("undrained", &[("undrained", Is("clients")), ("lost", Number(0))])
            .extra(|p, _| within_budget(p, "inbox", 40)),
        takes_s: 50,
        ..Mode::LIE
    },
    Mode {
        name: "lie::closed_for_its_token_at_once",
        lie: Lie {
            server: |p, _, frame| after_welcome(p, frame, || Out::close(CloseCode::Unauthorized.code())),
            ..Lie::NONE
        },
        expect: Expect::failed("disconnects", &[("lost", Number(0))]).extra(|p, _| within_budget(p, "inbox", 40)),
        takes_s: 50,
        ..Mode::LIE
    },
    Mode {
        name: "lie::no_connection_lasts",
        lie: Lie { server: |p, _, frame| after_welcome(p, frame, Out::cut), ..Lie::NONE },
        expect: Expect::failed("disconnects", &[("lost", Number(0))]).extra(|p, _| within_budget(p, "inbox", 40)),
        takes_s: 50,
        ..Mode::LIE
    },
    Mode {
        name: "lie::removals_answer_500",
        scenario: scenarios::CHURN,
        lie: Lie {
            request: |p, call| fail(p, matches!(call.api, Endpoint::RemoveMember(..)), Answer::internal),
            ..Lie::NONE
        },
        expect: Expect::failed("http_errors", &[("http_errors", Is("lies"))]),
        takes_s: 40,
        ..Mode::LIE
    },
    Mode {
        name: "lie::members_are_refused_their_pages",
        lie: Lie {
            server: leave_behind,
            request: |p, call| {
                let is_one = call.device_page().is_some() && p.one_in("page", 2);
                fail(p, is_one, || Answer::error(403, ErrorCode::NotAMember, None))
            },
            ..Lie::NONE
        },
        expect: Expect::failed("http_errors", &[("http_errors", Is("lies")), ("lost", Number(0))]),
        takes_s: 20,
        ..Mode::LIE
    },
    Mode {
        name: "lie::throttled_for_8_seconds",
        lie: Lie {
            request: |p, call| {
                let is_early = p.age() < Duration::from_secs(8);
                let is_throttled = is_early && matches!(call.api, Endpoint::Inbox);
                p.tally.add("throttled", u64::from(is_throttled));
                fail(p, is_throttled, || Answer::throttled(1_000))
            },
            ..Lie::NONE
        },
        // A server may say so; a client that asks more often than once a second, with some to spare, harms it.
        expect: Expect::passed(&[("throttled", Is("throttled")), ("http_errors", Number(0))])
            .extra(|p, _| within_budget(p, "inbox", 14)),
        takes_s: 16,
        ..Mode::LIE
    },
    Mode {
        name: "lie::token_refused_in_mid_run",
        lie: Lie { request: refuse_old_tokens, ..Lie::NONE },
        // They were good. One login for each, however many of its calls were refused.
        expect: Expect::failed(
            "http_errors",
            &[
                ("tokens_renewed", Is("refused_devices")),
                ("http_errors", Within("refused_devices", "lies")),
                ("lost", Number(0)),
            ],
        ),
        ..Mode::LIE
    },
    Mode {
        name: "lie::token_lives_for_4_seconds",
        scenario: scenarios::CHURN,
        stack: StackKind::ShortTokens,
        lie: Lie {
            answer: |p, request, answer| {
                if answer.status == 401 || matches!(request.api, Endpoint::Login) {
                    p.lied();
                }
            },
            ..Lie::NONE
        },
        // Each device once at least: calls are refused, and sockets closed, when their tokens end.
        expect: Expect::passed(&[("tokens_renewed", Least(16)), ("disconnects", Number(0))]),
        takes_s: 18,
        ..Mode::LIE
    },
];

/// A wait that a server asks for, for which no call of the audit is tried again, in ms.
const LONGER_THAN_ANY_TRY_MS: u64 = 30_000;

fn fail(p: &Proxy, is_wanted: bool, answer: fn() -> Answer) -> Reply {
    if !is_wanted {
        return Reply::Pass;
    }
    p.lied();
    Reply::Answer(answer())
}

/// Ends each connection when its device has just caught up.
fn after_welcome(p: &Proxy, frame: ServerFrame, end: impl FnOnce() -> Out) -> Vec<Out> {
    let is_welcome = matches!(frame, ServerFrame::Welcome(_));
    let mut outs = Out::pass(frame);
    if is_welcome {
        p.lied();
        outs.push(end().after(Duration::from_millis(60)));
    }
    outs
}

/// Whether no device asked more often than so.
pub(crate) fn within_budget(p: &Proxy, endpoint: &str, most: u64) -> Result<(), String> {
    match p.asked_max(endpoint) {
        asked if asked <= most => Ok(()),
        asked => Err(format!("a device asked {endpoint} {asked} times, {most} are plenty")),
    }
}

/// Drops one push in forty: the device has a gap from then on.
fn leave_behind(p: &Proxy, s: &Socket, frame: ServerFrame) -> Vec<Out> {
    if message_of(&frame).is_some() && p.one_in("push", 40) {
        if p.first(format!("behind {}", s.who.user)) {
            p.tally.add("behind", 1);
        }
        return Vec::new();
    }
    Out::pass(frame)
}

/// After two seconds, tokens from before are refused once and for all.
fn refuse_old_tokens(p: &Proxy, call: &mut Call) -> Reply {
    let (Some(token), Some(who)) = (&call.token, &call.who) else { return Reply::Pass };
    if p.age() < Duration::from_secs(2) || !p.facts().is_first_token(token) {
        return Reply::Pass;
    }
    if p.first(format!("refused {} {}", who.user, who.device)) {
        p.tally.add("refused_devices", 1);
    }
    p.lied();
    Reply::Answer(Answer::error(401, ErrorCode::Unauthorized, None))
}
