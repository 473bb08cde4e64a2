//! Connections: refused, silent, cut, closed, dead, and full of what is no frame.

use std::time::Duration;

use chatctl::protocol::frames::{MovedFrame, WelcomeFrame};
use chatctl::protocol::{CloseCode, ServerFrame, websocket};

use super::message_of;
use crate::mode::Want::{Is, Least, Number};
use crate::mode::{Expect, Mode};
use crate::proxy::socket::{Out, Socket, Upgrade};
use crate::proxy::{Lie, Proxy};
use crate::scenarios;

/// Nobody gets in.
const fn shut(name: &'static str, connect: fn(&Proxy, &crate::proxy::facts::Who) -> Upgrade) -> Mode {
    Mode {
        name,
        scenario: scenarios::BRIEF,
        lie: Lie { connect, ..Lie::NONE },
        expect: Expect::failed("never_connected", &[("never_connected", Is("clients")), ("lost", Number(0))]),
        takes_s: 40,
        ..Mode::LIE
    }
}

/// A few devices get what is no frame.
const fn junk(name: &'static str, server: fn(&Proxy, &Socket, ServerFrame) -> Vec<Out>) -> Mode {
    Mode {
        name,
        lie: Lie { server, ..Lie::NONE },
        expect: Expect::failed("protocol_errors", &[("protocol_errors", Is("lies")), ("lost", Number(0))]),
        ..Mode::LIE
    }
}

/// Each device is welcomed otherwise than it has to be.
const fn welcomes(name: &'static str, server: fn(&Proxy, &Socket, ServerFrame) -> Vec<Out>) -> Mode {
    Mode {
        name,
        scenario: scenarios::BRIEF,
        lie: Lie { server, ..Lie::NONE },
        expect: Expect::failed("protocol_errors", &[("protocol_errors", Is("lies")), ("lost", Number(0))]),
        ..Mode::LIE
    }
}

pub(crate) const MODES: &[Mode] = &[
    shut("lie::upgrade_always_503", |p, _| {
        p.lied();
        Upgrade::Refuse(503)
    }),
    shut("lie::upgrade_always_401", |p, _| {
        p.lied();
        Upgrade::Refuse(401)
    }),
    shut("lie::accepted_and_never_answered", |p, _| {
        p.lied();
        Upgrade::Silent
    }),
    shut("lie::welcome_never_comes", |p, _| {
        p.lied();
        Upgrade::Deaf
    }),
    shut("lie::upgrade_with_a_wrong_key", |p, _| {
        p.lied();
        Upgrade::WrongKey
    }),
    // The second try gets through: nobody stays out, and everybody had to try again.
    Mode {
        name: "lie::upgrades_fail_at_times",
        scenario: scenarios::BRIEF,
        lie: Lie {
            connect: |p, _| {
                if p.one_in("upgrade", 3) {
                    p.lied();
                    return Upgrade::Refuse(500);
                }
                Upgrade::Through
            },
            ..Lie::NONE
        },
        expect: Expect::failed(
            "connects_failed",
            &[("connects_failed", Is("lies")), ("never_connected", Number(0)), ("lost", Number(0))],
        ),
        ..Mode::LIE
    },
    // The same with the status that asks for a login: the tokens are good.
    Mode {
        name: "lie::upgrades_refuse_good_tokens",
        scenario: scenarios::BRIEF,
        lie: Lie {
            connect: |p, _| {
                if p.one_in("upgrade", 3) {
                    p.lied();
                    return Upgrade::Refuse(401);
                }
                Upgrade::Through
            },
            ..Lie::NONE
        },
        expect: Expect::failed(
            "connects_failed",
            &[
                ("connects_failed", Is("lies")),
                ("tokens_renewed", Is("lies")),
                ("never_connected", Number(0)),
                ("lost", Number(0)),
            ],
        ),
        ..Mode::LIE
    },
    Mode {
        name: "lie::cut_every_second",
        scenario: scenarios::BRIEF,
        lie: Lie {
            server: |p, _, frame| {
                let is_welcome = matches!(frame, ServerFrame::Welcome(_)) && p.age() < Duration::from_millis(900);
                let mut outs = Out::pass(frame);
                if is_welcome {
                    p.lied();
                    outs.push(Out::cut().after(Duration::from_secs(1)));
                }
                outs
            },
            ..Lie::NONE
        },
        expect: Expect::failed("disconnects", &[("disconnects", Is("cut")), ("lost", Number(0))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::moved_over_and_over",
        // And nothing is ever pushed: there is no time for it.
        scenario: scenarios::LONGER,
        lie: Lie {
            server: |p, _, frame| {
                if message_of(&frame).is_some() {
                    return Vec::new();
                }
                let is_welcome = matches!(frame, ServerFrame::Welcome(_)) && p.age() < scenarios::LONGER_LOAD;
                let mut outs = Out::pass(frame);
                if is_welcome {
                    p.lied();
                    let wait = Duration::from_millis(800);
                    let moved = MovedFrame { reason: "drain".to_owned(), retry_after_ms: 10 };
                    outs.push(Out::frame(&ServerFrame::Moved(moved)).after(wait));
                    outs.push(Out::close(CloseCode::Moved.code()).after(wait));
                }
                outs
            },
            ..Lie::NONE
        },
        expect: Expect::failed("disconnects", &[("disconnects", Least(16)), ("lost", Number(0))]).extra(|_, result| {
            let is_told =
                result.reasons.iter().any(|reason| reason.contains("can't be said whether messages are pushed"));
            if is_told { Ok(()) } else { Err(format!("nothing is said of pushes: {:?}", result.reasons)) }
        }),
        takes_s: 18,
        ..Mode::LIE
    },
    Mode {
        name: "lie::moved_and_asked_to_wait_for_an_hour",
        scenario: scenarios::LONGER,
        lie: Lie {
            server: |p, s, frame| {
                let is_chosen = s.who.user.0.is_multiple_of(3) && matches!(frame, ServerFrame::Welcome(_));
                let mut outs = Out::pass(frame);
                if is_chosen && p.age() < Duration::from_secs(1) {
                    p.lied();
                    let moved = MovedFrame { reason: "drain".to_owned(), retry_after_ms: 3_600_000 };
                    outs.push(Out::frame(&ServerFrame::Moved(moved)).after(Duration::from_millis(300)));
                    outs.push(Out::close(CloseCode::Moved.code()).after(Duration::from_millis(300)));
                }
                outs
            },
            ..Lie::NONE
        },
        expect: Expect::failed("not_caught_up", &[("not_caught_up", Is("lies")), ("lost", Number(0))]),
        takes_s: 40,
        ..Mode::LIE
    },
    welcomes("lie::welcome_of_another_user", |p, s, frame| {
        welcome(p, frame, |p, welcome| {
            let other = p.facts().devices().iter().map(|who| who.user).find(|user| *user != s.who.user);
            vec![WelcomeFrame { user: other.expect("there are others"), ..welcome }]
        })
    }),
    welcomes("lie::welcome_of_another_device", |p, _, frame| {
        welcome(p, frame, |_, welcome| vec![WelcomeFrame { device: "device-77".parse().expect("a name"), ..welcome }])
    }),
    welcomes("lie::welcomed_twice", |p, _, frame| welcome(p, frame, |_, welcome| vec![welcome.clone(), welcome])),
    Mode {
        name: "lie::all_closed_with_1011",
        lie: Lie { server: |p, _, frame| close_after(p, frame, CloseCode::Internal), ..Lie::NONE },
        expect: Expect::failed("disconnects", &[("disconnects", Is("closed")), ("lost", Number(0))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::all_told_to_log_in",
        lie: Lie { server: |p, _, frame| close_after(p, frame, CloseCode::Unauthorized), ..Lie::NONE },
        expect: Expect::failed("disconnects", &[("disconnects", Is("closed")), ("tokens_renewed", Least(1))]),
        takes_s: 30,
        ..Mode::LIE
    },
    Mode {
        name: "lie::connections_left_dead",
        scenario: scenarios::LONG_TALK,
        lie: Lie {
            server: |p, s, frame| {
                let is_welcome = matches!(frame, ServerFrame::Welcome(_)) && p.first(s.who.user);
                let mut outs = Out::pass(frame);
                if is_welcome && p.one_in("welcome", 4) {
                    p.lied();
                    outs.push(Out::blackhole().after(Duration::from_secs(1)));
                }
                outs
            },
            ..Lie::NONE
        },
        // They are left for new ones while the load goes on.
        expect: Expect::failed(
            "disconnects",
            &[
                ("disconnects", Is("blackholed")),
                ("reconnects", Is("blackholed")),
                ("lost", Number(0)),
                ("unresolved", Number(0)),
            ],
        ),
        takes_s: 60,
        ..Mode::LIE
    },
    junk("lie::garbage_on_the_socket", |p, s, frame| {
        // Reserved bits, and more of it.
        behind_push(p, s, frame, Out::bytes(vec![0xff, 0x7f, 0x00, 0xde, 0xad, 0xbe, 0xef]))
    }),
    junk("lie::binary_frames", |p, s, frame| {
        behind_push(p, s, frame, Out::bytes(websocket::binary_frame(b"\x01\x02\x03", None)))
    }),
    junk("lie::frames_that_are_no_json", |p, s, frame| behind_push(p, s, frame, Out::text("{\"type\":\"mess"))),
    junk("lie::frames_of_an_unknown_type", |p, s, frame| behind_push(p, s, frame, Out::text("{\"type\":\"novelty\"}"))),
    junk("lie::frames_without_their_fields", |p, s, frame| {
        behind_push(p, s, frame, Out::text("{\"type\":\"message\",\"conversation\":\"c1\"}"))
    }),
    junk("lie::frames_that_are_masked", |p, s, frame| {
        behind_push(p, s, frame, Out::bytes(websocket::text_frame("{\"type\":\"pong\"}", Some([1, 2, 3, 4]))))
    }),
];

/// Closes each device's first connection when everybody talks.
fn close_after(p: &Proxy, frame: ServerFrame, code: CloseCode) -> Vec<Out> {
    let is_welcome = matches!(frame, ServerFrame::Welcome(_)) && p.age() < Duration::from_secs(1);
    let mut outs = Out::pass(frame);
    if is_welcome {
        p.lied();
        outs.push(Out::close(code.code()).after(Duration::from_millis(2_500)));
    }
    outs
}

/// Says something else instead of `welcome`.
fn welcome(
    p: &Proxy,
    frame: ServerFrame,
    otherwise: impl FnOnce(&Proxy, WelcomeFrame) -> Vec<WelcomeFrame>,
) -> Vec<Out> {
    match frame {
        ServerFrame::Welcome(welcome) => {
            p.lied();
            otherwise(p, welcome).into_iter().flat_map(|welcome| Out::pass(ServerFrame::Welcome(welcome))).collect()
        }
        other => Out::pass(other),
    }
}

/// Puts something behind the first push to one user in three.
fn behind_push(p: &Proxy, s: &Socket, frame: ServerFrame, junk: Out) -> Vec<Out> {
    let is_chosen = message_of(&frame).is_some() && s.who.user.0.is_multiple_of(3) && p.first(s.who.user);
    let mut outs = Out::pass(frame);
    if is_chosen {
        p.lied();
        outs.push(junk);
    }
    outs
}
