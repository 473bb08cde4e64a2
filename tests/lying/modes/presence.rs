//! Who is there: not told, told wrongly, told to those whom it does not concern.

use std::time::Duration;

use chatctl::protocol::frames::{PresenceFrame, PresenceState};
use chatctl::protocol::{ServerFrame, UserId};
use chatctl::runtime::clock;

use crate::mode::Want::{Is, Within};
use crate::mode::{Expect, Mode};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{Lie, Proxy};
use crate::scenarios;

/// A friend who was welcomed so long before a first beat surely had to be told of it.
const SURELY_US: u64 = 1_300_000;

/// First beats up to this long after the first welcome are surely judged before the load ends.
const JUDGED_US: u64 = 3_500_000;

const DAY_MS: u64 = 24 * 3_600 * 1_000;

const fn friends(name: &'static str, lie: Lie, expect: Expect) -> Mode {
    Mode { name, scenario: scenarios::FRIENDS, lie, expect, takes_s: 10, ..Mode::LIE }
}

const fn away(name: &'static str, lie: Lie, expect: Expect) -> Mode {
    Mode { name, scenario: scenarios::AWAY, lie, expect, takes_s: 46, ..Mode::LIE }
}

const fn live(server: fn(&Proxy, &Socket, ServerFrame) -> Vec<Out>) -> Lie {
    Lie { server, ..Lie::NONE }
}

pub(crate) const MODES: &[Mode] = &[
    friends(
        "lie::presence_dropped",
        Lie {
            server: |p, _, frame| {
                if matches!(frame, ServerFrame::Presence(_)) {
                    p.lied();
                    return Vec::new();
                }
                Out::pass(frame)
            },
            finish: count_changes,
            ..Lie::NONE
        },
        // Who was there when the friend came had to be told; those who came later had to be shown who is there.
        Expect::violated(&[("presence_missed", Within("changes_surely", "lies"))]),
    ),
    friends(
        "lie::last_beat_of_another_day",
        live(|p, _, frame| match frame {
            ServerFrame::Presence(presence) if p.one_in("presence", 3) => {
                p.lied();
                let at = if p.one_in("day", 2) { presence.at + DAY_MS } else { presence.at - DAY_MS };
                Out::pass(ServerFrame::Presence(PresenceFrame { at, ..presence }))
            }
            frame => Out::pass(frame),
        }),
        Expect::failed("protocol_errors", &[("protocol_errors", Is("lies"))]),
    ),
    friends(
        "lie::presence_of_strangers",
        live(|p, s, frame| {
            let is_welcome = matches!(frame, ServerFrame::Welcome(_));
            let mut outs = Out::pass(frame);
            if let Some(stranger) = stranger(p, s.who.user).filter(|_| is_welcome) {
                p.lied();
                outs.push(told(stranger, PresenceState::Online).after(Duration::from_millis(300)));
            }
            outs
        }),
        Expect::violated(&[("presence_leaked", Is("lies"))]).also(&["presence_wrong"]),
    ),
    friends(
        "lie::presence_of_oneself",
        live(|p, s, frame| {
            let is_welcome = matches!(frame, ServerFrame::Welcome(_));
            let mut outs = Out::pass(frame);
            if is_welcome {
                p.lied();
                outs.push(told(s.who.user, PresenceState::Online).after(Duration::from_millis(300)));
            }
            outs
        }),
        Expect::violated(&[("presence_wrong", Is("lies"))]),
    ),
    friends(
        "lie::offline_while_beating",
        live(|p, _, frame| {
            let online = if let ServerFrame::Presence(presence) = &frame { Some(presence.user) } else { None };
            let mut outs = Out::pass(frame);
            if let Some(user) = online.filter(|_| p.one_in("presence", 3)) {
                p.lied();
                outs.push(told(user, PresenceState::Offline).after(Duration::from_millis(300)));
            }
            outs
        }),
        Expect::violated(&[("presence_wrong", Is("lies"))]),
    ),
    friends(
        "lie::online_before_the_first_beat",
        live(|p, s, frame| {
            let is_welcome = matches!(frame, ServerFrame::Welcome(_));
            let mut outs = Out::pass(frame);
            for friend in friends_not_there(p, s.who.user).into_iter().filter(|_| is_welcome) {
                p.lied();
                outs.push(told(friend, PresenceState::Online));
            }
            outs
        }),
        Expect::violated(&[("presence_wrong", Is("lies"))]),
    ),
    away(
        "lie::offline_never_told",
        live(|p, _, frame| match &frame {
            ServerFrame::Presence(presence) if presence.state == PresenceState::Offline => {
                p.lied();
                Vec::new()
            }
            _ => Out::pass(frame),
        }),
        Expect::violated(&[("presence_missed", Is("lies"))]),
    ),
    away(
        "lie::online_instead_of_offline",
        live(|p, _, frame| match &frame {
            ServerFrame::Presence(presence) if presence.state == PresenceState::Offline => {
                p.lied();
                vec![told(presence.user, PresenceState::Online)]
            }
            _ => Out::pass(frame),
        }),
        // "Online" half a minute after a beat may be late rather than wrong; "offline" is missing for certain.
        Expect::violated(&[("presence_missed", Is("lies"))]).also(&["presence_wrong"]),
    ),
];

fn told(user: UserId, state: PresenceState) -> Out {
    Out::frame(&ServerFrame::Presence(PresenceFrame { user, state, at: clock::unix_ms() }))
}

/// Somebody who is no friend.
fn stranger(p: &Proxy, user: UserId) -> Option<UserId> {
    let facts = p.facts();
    let mut users = facts.devices().iter().map(|who| who.user);
    users.find(|other| *other != user && !facts.are_friends(user, *other))
}

/// Friends who were never connected.
fn friends_not_there(p: &Proxy, user: UserId) -> Vec<UserId> {
    let facts = p.facts();
    let friends = facts.friends().iter().filter(|(a, _)| *a == user).map(|(_, friend)| *friend);
    friends.filter(|friend| facts.first_welcome_us(*friend).is_none()).collect()
}

/// Pairs of a friend who surely watched and one who came later.
fn count_changes(p: &Proxy) {
    let until_us = p.first_welcome_us() + JUDGED_US;
    let facts = p.facts();
    let surely = facts.friends().iter().filter(|(watcher, friend)| {
        let times = facts.first_welcome_us(*watcher).zip(facts.first_beat_us(*friend));
        times.is_some_and(|(welcomed, beat)| welcomed + SURELY_US < beat && beat < until_us)
    });
    let surely = surely.count() as u64;
    drop(facts);
    p.tally.set("changes_surely", surely);
}
