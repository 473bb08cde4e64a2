//! Each rule, from both sides. User 0 is watched by user 1, who is a friend.

use super::PresenceState::{Offline, Online};
use super::*;

const S: u64 = 1_000_000;

/// Users 0 and 1 are friends; 2 is friends with 3.
fn presence() -> Presence {
    let text = "{name: t, population: {users: 4, friends_per_user: 1}, behaviors: {lurker: 1}, \
                phases: [{phase: steady, duration: 9s}]}";
    let scenario = Scenario::parse(text, "t").expect("valid");
    let mut world = World::draw(&scenario, 1);
    world.friends = vec![(0, 1), (2, 3)];
    Presence::new(&scenario, &world)
}

/// Beats of user 0 every five seconds from one time to another, both included; times in seconds.
fn beats(p: &Presence, from_s: u64, to_s: u64) -> Vec<Finding> {
    (from_s..=to_s).step_by(5).flat_map(|s| beat(p, s * S)).collect()
}

/// What was found, with what was held back.
fn all(p: &Presence, mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.extend(p.conclude());
    findings
}

/// Somebody tells user 1 of user 0.
fn told(p: &Presence, state: PresenceState, at_us: u64) -> Vec<Finding> {
    all(p, p.on_notice(1, Some(0), state, at_us))
}

/// The only device of user 1 leaves.
fn unwatch(p: &Presence, at_us: u64) -> Vec<Finding> {
    all(p, p.on_unwatch(1, at_us))
}

fn close(p: &Presence, at_us: u64) -> Vec<Finding> {
    all(p, p.close(at_us))
}

fn beat(p: &Presence, at_us: u64) -> Vec<Finding> {
    all(p, p.on_beat(0, at_us, 0))
}

/// A watcher who was there before, and was told of the coming at 10 s. Beats until 30 s.
fn watched() -> Presence {
    let p = presence();
    p.on_watch(1, S);
    assert_eq!(beats(&p, 10, 10), []);
    assert_eq!(told(&p, Online, 10 * S + 50), [Finding::Took(Online, 50), Finding::Seen]);
    assert_eq!(beats(&p, 15, 30), []);
    p
}

const MISSED_ONLINE: Finding = Finding::Missed(1, 0, Online);
const MISSED_OFFLINE: Finding = Finding::Missed(1, 0, Offline);

fn wrong(state: PresenceState, silence_us: u64) -> Finding {
    Finding::Wrong(1, 0, state, Some(silence_us))
}

#[test]
fn offline_is_right_between_thirty_and_thirty_five_seconds() {
    for (at_s, finding) in [(35, vec![wrong(Offline, 5 * S)]), (58, vec![wrong(Offline, 28 * S)])] {
        assert_eq!(told(&watched(), Offline, at_s * S), finding);
    }
    for silence in [29, 31, 36] {
        let p = watched();
        assert_eq!(told(&p, Offline, (30 + silence) * S), [Finding::Took(Offline, silence * S), Finding::Seen]);
        assert_eq!(unwatch(&p, 100 * S), [], "judged once");
    }
    assert_eq!(told(&watched(), Offline, 67 * S), [Finding::Took(Offline, 37 * S), MISSED_OFFLINE], "too late");
}

#[test]
fn offline_must_be_told_to_who_watched_all_the_time() {
    assert_eq!(unwatch(&watched(), 67 * S), [MISSED_OFFLINE]);
    assert_eq!(unwatch(&watched(), 65 * S), [], "gone before the limit");
    assert_eq!(close(&watched(), 67 * S), [MISSED_OFFLINE]);
    assert_eq!(close(&watched(), 65 * S), [], "the load ended before the limit");
    let p = watched();
    assert_eq!(beat(&p, 70 * S), [MISSED_OFFLINE], "found when the user is back");
    let p = watched();
    assert_eq!(beat(&p, 64 * S), [], "perhaps told, perhaps not");
    // Who comes in the silence owes nothing unless told that the user is there.
    let late = |is_told: bool| {
        let p = watched();
        unwatch(&p, 31 * S);
        p.on_watch(1, 57 * S);
        if is_told {
            told(&p, Online, 57 * S + 10);
        }
        unwatch(&p, 80 * S)
    };
    assert_eq!(late(false), []);
    assert_eq!(late(true), [MISSED_OFFLINE]);
}

#[test]
fn an_offline_that_crossed_the_beat_is_right_and_must_be_followed_by_online() {
    let crossed = || {
        let p = watched();
        assert_eq!(beat(&p, 61 * S), []);
        assert_eq!(told(&p, Offline, 61 * S + S / 2), [Finding::Took(Offline, 31 * S + S / 2), Finding::Seen]);
        p
    };
    let p = crossed();
    assert_eq!(beat(&p, 61 * S + S / 2 + 1), [], "a beat of another device");
    assert_eq!(told(&p, Online, 62 * S), [Finding::Seen]);
    assert_eq!(unwatch(&crossed(), 65 * S), [MISSED_ONLINE], "the order counts");
    let p = crossed();
    p.target_took(62 * S, 10_000);
    assert_eq!(unwatch(&p, 65 * S), [MISSED_ONLINE], "messages were not as late");
    let p = watched();
    beat(&p, 61 * S);
    assert_eq!(told(&p, Offline, 64 * S), [wrong(Offline, 3 * S)], "not for long");
}

#[test]
fn online_must_be_told_in_time() {
    let coming = |told_us: Option<u64>, until_s: u64| {
        let p = presence();
        p.on_watch(1, S);
        beat(&p, 10 * S);
        let mut findings: Vec<Finding> = told_us.into_iter().flat_map(|at| told(&p, Online, at)).collect();
        findings.extend(unwatch(&p, until_s * S));
        findings
    };
    assert_eq!(coming(Some(12 * S), 20), [Finding::Took(Online, 2 * S), Finding::Seen]);
    assert_eq!(coming(None, 20), [MISSED_ONLINE]);
    assert_eq!(coming(None, 12), [Finding::Unsure], "gone before the limit");
    assert_eq!(coming(Some(14 * S), 20), [Finding::Took(Online, 4 * S), Finding::Seen], "late, and told");
    let p = presence();
    p.on_watch(1, 10 * S - 1);
    beat(&p, 10 * S);
    assert_eq!(unwatch(&p, 20 * S), [], "came at the same moment");
}

#[test]
fn who_was_told_offline_must_be_told_that_the_user_is_back() {
    let p = watched();
    told(&p, Offline, 61 * S);
    assert_eq!(beat(&p, 63 * S), []);
    assert_eq!(unwatch(&p, 70 * S), [MISSED_ONLINE]);
    let p = watched();
    assert_eq!(beat(&p, 63 * S), []);
    assert_eq!(unwatch(&p, 70 * S), [], "never told offline");
    let p = watched();
    told(&p, Offline, 61 * S);
    assert_eq!(beat(&p, 90 * S), []);
    assert_eq!(told(&p, Online, 91 * S), [Finding::Took(Online, S), Finding::Seen]);
}

#[test]
fn online_needs_a_beat() {
    let p = presence();
    p.on_watch(1, S);
    assert_eq!(told(&p, Online, 5 * S), [Finding::Wrong(1, 0, Online, None)]);
    assert_eq!(told(&watched(), Online, 40 * S), [], "may be repeated");
    let p = watched();
    assert_eq!(told(&p, Online, 67 * S), [wrong(Online, 37 * S)], "instead of offline");
    let p = watched();
    told(&p, Offline, 61 * S);
    assert_eq!(told(&p, Online, 61 * S + S / 2), [], "they crossed");
    told(&p, Offline, 61 * S + S / 2);
    assert_eq!(told(&p, Online, 63 * S), [wrong(Online, 33 * S)], "no beat since");
    let p = presence();
    p.on_watch(1, S);
    assert_eq!(told(&p, Offline, 5 * S), [], "who never beat is offline");
}

#[test]
fn who_comes_is_told_who_is_there() {
    let greeted = |comes_s: u64, is_told: bool| {
        let p = presence();
        beats(&p, 10, 20);
        p.on_watch(1, comes_s * S);
        beats(&p, 25, 30);
        let mut findings = if is_told { told(&p, Online, comes_s * S + S / 2) } else { Vec::new() };
        findings.extend(unwatch(&p, 40 * S));
        findings
    };
    assert_eq!(greeted(21, true), [Finding::Seen], "and is not timed as a change");
    assert_eq!(greeted(21, false), [MISSED_ONLINE]);
    let p = presence();
    beats(&p, 10, 10);
    p.on_watch(1, 10 * S + 5);
    assert_eq!(unwatch(&p, 40 * S), [], "came a moment before");
    let p = presence();
    beats(&p, 10, 10);
    p.on_watch(1, 37 * S);
    assert_eq!(unwatch(&p, 50 * S), [], "perhaps gone by then");
}

#[test]
fn only_friends_are_told() {
    let p = presence();
    p.on_watch(1, S);
    p.on_beat(2, S, 0);
    assert_eq!(p.on_notice(1, Some(2), Online, 2 * S), [Finding::Leaked]);
    assert_eq!(p.on_notice(1, None, Offline, 2 * S), [Finding::Leaked]);
    assert_eq!(p.on_notice(1, Some(1), Online, 2 * S), [Finding::Leaked]);
    assert_eq!(Presence::default().on_notice(1, Some(2), Online, S), [Finding::Leaked], "nobody has friends");
}

#[test]
fn what_a_fault_or_a_lost_connection_explains_is_no_accusation() {
    let p = watched();
    p.fault_began(40 * S);
    p.fault_ended(40 * S, 50 * S);
    assert_eq!(close(&p, 100 * S), [Finding::Unsure]);
    let p = watched();
    p.on_lost(0);
    assert_eq!(told(&p, Offline, 55 * S), [Finding::Unsure], "the last beats may not have arrived");
    let p = watched();
    p.on_lost(0);
    beat(&p, 32 * S);
    assert_eq!(told(&p, Offline, 55 * S), [wrong(Offline, 23 * S)], "this one did");
    let p = presence();
    p.on_watch(1, S);
    beat(&p, 10 * S);
    assert_eq!(p.on_lost(0), [Finding::Unsure]);
    assert_eq!(unwatch(&p, 20 * S), []);
}

#[test]
fn only_a_fault_that_lasts_for_a_whole_silence_explains_who_is_told_to_be_gone() {
    let beating = |ended_s: u64| {
        let p = presence();
        p.on_watch(1, S);
        p.fault_began(10 * S);
        p.fault_ended(10 * S, ended_s * S);
        beats(&p, 5, 50);
        told(&p, Offline, 51 * S)
    };
    let found = beating(50);
    assert!(found.iter().all(|f| *f == Finding::Unsure), "beats lay before a server that stood still: {found:?}");
    assert!(beating(11).contains(&wrong(Offline, S)), "a restart is no reason to forget who is there");
}

#[test]
fn pushes_are_judged_again_soon_after_a_fault() {
    let p = presence();
    assert!(!p.may_have_lost_push(S, 100 * S));
    p.fault_began(10 * S);
    assert!(p.may_have_lost_push(5 * S, 10 * S) && !p.may_have_lost_push(5 * S, 9 * S), "it lasts");
    p.fault_ended(10 * S, 20 * S);
    assert!(p.may_have_lost_push(25 * S, 26 * S) && !p.may_have_lost_push(26 * S, 90 * S));
}

#[test]
fn a_generator_that_is_late_accuses_nobody() {
    let p = presence();
    p.on_watch(1, S);
    p.on_beat(1, 9 * S, 2 * S);
    beat(&p, 10 * S);
    assert_eq!(told(&p, Online, 14 * S + S / 2), [Finding::Took(Online, 4 * S + S / 2), Finding::Seen]);
}

#[test]
fn one_device_of_several_is_enough() {
    let p = presence();
    p.on_watch(1, S);
    p.on_watch(1, 2 * S);
    beat(&p, 10 * S);
    told(&p, Online, 10 * S + 1);
    assert_eq!(told(&p, Online, 10 * S + 2), [], "the other device");
    assert_eq!(unwatch(&p, 20 * S), []);
    assert_eq!(unwatch(&p, 60 * S), [], "watching began anew after the last beat");
}

#[test]
fn a_target_that_is_slow_is_not_one_that_is_silent() {
    let late = |took_us: u64| {
        let p = presence();
        p.on_watch(1, S);
        p.on_beat(0, 10 * S, 0);
        assert_eq!(p.on_unwatch(1, 18 * S), [], "held back: a message of that time may still be on its way");
        p.target_took(20 * S, took_us);
        p.conclude().remove(0)
    };
    assert_eq!(late(2 * S), MISSED_ONLINE);
    assert_eq!(late(6 * S), Finding::Late, "messages took as long");
    let never = |took_us: u64, came_s: u64| {
        let p = watched();
        p.on_unwatch(1, 80 * S);
        p.target_took(came_s * S, took_us);
        p.conclude()
    };
    assert_eq!(never(3 * S, 80), [MISSED_OFFLINE], "no message was as late");
    assert_eq!(never(20 * S, 80), [Finding::Late]);
    assert_eq!(never(20 * S, 90), [Finding::Late], "it was under way");
    let p = watched();
    p.on_beat(0, 61 * S, 0);
    p.on_notice(1, Some(0), Offline, 66 * S);
    p.target_took(66 * S, 5 * S);
    assert_eq!(p.conclude(), [Finding::Late], "an offline of the silence before, late like everything");
}

#[test]
fn a_target_whose_notices_are_late_is_accused_of_none_of_them() {
    // Users 2 and 3 are friends, too: what one pair sees says how slow the target is.
    let late = |told_us: u64| {
        let p = watched();
        p.on_watch(3, 50 * S);
        p.on_beat(2, 60 * S, 0);
        assert_eq!(p.on_notice(3, Some(2), Online, told_us), [Finding::Took(Online, told_us - 60 * S), Finding::Seen]);
        // User 0 is silent from 30 on and back at 61: an "offline" that was decided before that comes after it.
        p.on_beat(0, 61 * S, 0);
        told(&p, Offline, 64 * S + S / 2)
    };
    assert_eq!(late(60 * S + 50), [wrong(Offline, 3 * S + S / 2)]);
    assert_eq!(late(64 * S), [Finding::Late], "by as much as other notices");
}

#[test]
fn a_slow_target_is_not_accused_of_what_is_too_much_to_hold_back() {
    let p = watched();
    let held = || HeldBack { needs_us: 1, from_us: S, until_us: S, finding: Finding::Seen };
    p.held_back.lock().expect("free").resize_with(HELD_BACK_MAX, held);
    assert_eq!(p.on_unwatch(1, 80 * S), [Finding::Unsure]);
    let p = presence();
    p.on_watch(1, S);
    p.held_back.lock().expect("free").resize_with(HELD_BACK_MAX, held);
    let never_beat = Finding::Wrong(1, 0, Online, None);
    assert_eq!(p.on_notice(1, Some(0), Online, 2 * S), [never_beat], "which no lateness explains");
}

#[test]
fn one_slow_message_explains_nothing_of_another_minute() {
    let missed = |came_s: u64| {
        let p = watched();
        // The user is silent from second 30 on: an "offline" is owed from second 59 until 66.
        p.target_took(came_s * S, 20 * S);
        assert_eq!(p.on_unwatch(1, 80 * S), [], "held back, or explained");
        p.conclude()
    };
    assert_eq!([missed(40), missed(120)], [[MISSED_OFFLINE], [MISSED_OFFLINE]], "long before, and long after");
    let greeted = |slow_s: u64| {
        let p = presence();
        beats(&p, 10, 20);
        p.target_took(slow_s * S, 26 * S);
        p.on_watch(1, 100 * S);
        p.on_unwatch(1, 100 * S + 1);
        // Last beat at 120: surely there until 149.
        beats(&p, 105, 120);
        p.on_watch(1, 121 * S);
        all(&p, p.on_unwatch(1, 160 * S))
    };
    assert_eq!(greeted(60), [MISSED_ONLINE], "a slow message of long ago does not let the server off");
}

#[test]
fn what_a_second_device_is_greeted_with_is_no_answer_to_what_the_first_was_owed() {
    let p = presence();
    p.on_watch(1, S);
    assert_eq!(beats(&p, 10, 70), []);
    let second = p.on_watch(1, 71 * S);
    assert_eq!(all(&p, second), [MISSED_ONLINE]);
    assert_eq!(told(&p, Online, 71 * S + 50), [], "its greeting is neither seen nor timed");
    let p = presence();
    p.on_watch(1, S);
    assert_eq!(beats(&p, 10, 10), []);
    let second = p.on_watch(1, 11 * S);
    assert_eq!(all(&p, second), [], "in time yet");
    assert_eq!(told(&p, Online, 11 * S + 50), [Finding::Seen]);
}
