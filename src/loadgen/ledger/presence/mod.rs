//! Presence, judged both ways: what friends were told against the beats, and what they had to be told.
//!
//! A user's beats alone say whether the user is there. A silence is the time between two beats, or from the last beat on.
//! `SLACK` is for notices and beats that cross each other.
//!
//! | silence | "offline" | "online" when the user is back |
//! |---|---|---|
//! | under 29 s | must not be told | may be repeated |
//! | 29 to 36 s | may be told | must be told to whoever was told "offline" |
//! | over 36 s | must be told by the 36th second | must be told |
//!
//! "Must" holds for a friend who watches from before the change until the limit. A friend who connects must be told of whoever
//! surely is there. What falls into a fault, on a connection that was lost, or behind the end of the load, is not judged.
//!
//! A target that is slow is not one that is silent: an "online" that comes is told, however late, and what a notice's
//! lateness would explain is held back until the end, when it is known how late the generator was at that time, and how long
//! messages, other notices, connects and answers to pings took. Lateness itself is what the latencies of presence are for.
//!
//! No I/O; time is a parameter, on the run's clock in µs.

mod beats;
mod judge;
mod lateness;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use self::beats::{Beats, Change};
use self::judge::Judge;
use self::lateness::Lateness;
use crate::loadgen::scenario::{Scenario, Transport};
use crate::loadgen::world::World;
use crate::protocol::frames::PresenceState;
use crate::protocol::limits::OFFLINE_AFTER;

/// Tolerance for beats and notices on their way.
const SLACK_US: u64 = 1_000_000;

/// Shortest silence after which "offline" may be told.
const OFFLINE_EARLIEST_US: u64 = OFFLINE_AFTER.as_micros() as u64 - SLACK_US;

/// Longest silence before "offline" must be told. Source: invariant I8, 35 s.
const OFFLINE_LATEST_US: u64 = 35_000_000 + SLACK_US;

/// Longest time from a change until "online" must be told.
const ONLINE_LATEST_US: u64 = 2_000_000 + SLACK_US;

/// Time after a fault in which nobody is told "offline" on purpose, and a while to settle. Source: docs/design.md,
/// section 5.
const AFTER_FAULT_US: u64 = 40_000_000;

/// Time after a fault in which pushes may still be missing: connections to engines come back, and subscriptions with them.
const AFTER_FAULT_PUSH_US: u64 = 5_000_000;

/// A fault, on the run's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    began_us: u64,
    /// [`NEVER`] while it lasts.
    ended_us: u64,
}

impl Fault {
    /// Whether it lasted, or had ended less than `tail_us` before, at any time between two.
    const fn meets(&self, from_us: u64, until_us: u64, tail_us: u64) -> bool {
        self.began_us <= until_us && from_us <= self.ended_us.saturating_add(tail_us)
    }
}

/// Findings that are held back until the end; past them, those that a lateness may explain are not judged.
const HELD_BACK_MAX: usize = 100_000;

/// A time that never comes, and a lateness that explains anything.
const NEVER: u64 = u64::MAX;

/// What a judgement found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::loadgen) enum Finding {
    /// A change that had to be told was.
    Seen,
    /// A change that had to be told was not, or an "offline" too late: the watching user, the friend, what.
    Missed(u32, u32, PresenceState),
    /// A notice contradicts the beats: the same, and the silence of the friend in µs; `None` where no beat was ever sent.
    Wrong(u32, u32, PresenceState, Option<u64>),
    /// Somebody was told of somebody who is no friend.
    Leaked,
    /// A change was told after so many µs: from the beat that made it, or from the last one before it.
    Took(PresenceState, u64),
    /// A change that can't be judged.
    Unsure,
    /// One that can't be judged since the target, or the generator, was as late at that time.
    Late,
}

/// A finding that a lateness may explain.
struct HeldBack {
    /// How much lateness explains it.
    needs_us: u64,
    /// When that would have been.
    from_us: u64,
    until_us: u64,
    /// What it is if there was less.
    finding: Finding,
}

/// What a watching user was told of one friend.
#[derive(Debug, Default, Clone, Copy)]
struct Pair {
    /// Index of the friend.
    friend: u32,
    told: Option<PresenceState>,
    told_us: u64,
    /// The last beat before the silence that the last "offline" belonged to.
    offline_of_us: u64,
    /// The last beat before the silence that was judged last.
    judged_us: u64,
    /// Since when "online" is owed; 0 while it is not.
    owed_us: u64,
    /// Whether it is owed for a change, rather than because the watcher came.
    is_change: bool,
    /// Of what is owed because the watcher came: how late a target may look and still find the friend there, in ms.
    /// [`u16::MAX`] of anything else.
    spare_ms: u16,
}

impl Pair {
    /// "Online" is owed for something that the friend did.
    const fn owe(&mut self, now_us: u64, is_change: bool) {
        (self.owed_us, self.is_change, self.spare_ms) = (now_us, is_change, u16::MAX);
    }

    /// How late a target may be that says nothing for it.
    const fn spare_us(&self) -> u64 {
        if self.spare_ms == u16::MAX { NEVER } else { self.spare_ms as u64 * 1_000 + 1 }
    }
}

/// A user: beats, and what the user is told of friends.
#[derive(Debug, Default)]
struct User {
    beats: Beats,
    /// Connected devices.
    devices: u32,
    /// Since when the user watches without a break; 0 while nobody does.
    since_us: u64,
    /// Rising by friend.
    pairs: Box<[Pair]>,
}

/// The presence of all users of a run. Empty where nobody has friends. Written by devices and the engine.
#[derive(Default)]
pub(in crate::loadgen) struct Presence {
    users: Vec<Mutex<User>>,
    /// Where the friends of each user begin in `friends`.
    friends_at: Vec<u32>,
    friends: Vec<u32>,
    /// Users whose devices read late on purpose: what they are told is not timed.
    is_slow: Vec<bool>,
    /// Longest time that a notice waits for a client that polls.
    reads_every_us: u64,
    /// How late the generator was: a notice may have waited so long for it.
    lag: Lateness,
    /// How long ACKs took, deliveries to devices that were there, connects, answers to pings and other notices: a notice may
    /// have taken as long.
    slow: Lateness,
    /// What lateness may explain.
    held_back: Mutex<Vec<HeldBack>>,
    /// Faults, in the order in which they began.
    faults: Mutex<Vec<Fault>>,
    /// From then on nothing is owed; 0 before.
    closed_us: AtomicU64,
}

impl Presence {
    pub(in crate::loadgen) fn new(scenario: &Scenario, world: &World) -> Self {
        if world.friends.is_empty() {
            return Self::default();
        }
        let mut friends: Vec<Vec<u32>> = vec![Vec::new(); world.users.len()];
        for (a, b) in &world.friends {
            friends[*a as usize].push(*b);
            friends[*b as usize].push(*a);
        }
        let mut presence = Self {
            is_slow: world.users.iter().map(|user| user.behavior.spec().reading.is_slow()).collect(),
            reads_every_us: match scenario.transport {
                Transport::Poll => scenario.poll_interval.as_micros() as u64,
                Transport::Websocket | Transport::LongPoll => 0,
            },
            ..Self::default()
        };
        for mut own in friends {
            own.sort_unstable();
            own.dedup();
            presence.friends_at.push(presence.friends.len() as u32);
            let pairs = own.iter().map(|friend| Pair { friend: *friend, ..Pair::default() }).collect();
            presence.users.push(Mutex::new(User { pairs, ..User::default() }));
            presence.friends.extend(own);
        }
        presence.friends_at.push(presence.friends.len() as u32);
        presence
    }

    fn user(&self, user: u32) -> MutexGuard<'_, User> {
        self.users[user as usize].lock().expect("no panic while held")
    }

    fn friends(&self, user: u32) -> &[u32] {
        &self.friends[self.friends_at[user as usize] as usize..self.friends_at[user as usize + 1] as usize]
    }

    /// Beats of a user's friends, in the order of the pairs. Taken before the user is locked: two users are never locked at once.
    fn beats_of_friends(&self, user: u32) -> Vec<Beats> {
        self.friends(user).iter().map(|friend| self.user(*friend).beats).collect()
    }

    fn is_judged(&self, watcher: u32) -> bool {
        !self.is_slow[watcher as usize]
    }

    fn is_closed(&self) -> bool {
        self.closed_us.load(Ordering::Relaxed) > 0
    }

    /// What a limit between two times is longer by: notices wait for clients that poll, for a generator that is late,
    /// for a target that is slow.
    fn late_us(&self, from_us: u64, until_us: u64) -> u64 {
        self.reads_every_us + self.lag.between(from_us, until_us) + self.slow.between(from_us, until_us)
    }

    /// What came at `now_us` took the target so long: a message from its first write to its ACK or to a device that was there, a
    /// connect to its welcome, a ping to its answer.
    pub(in crate::loadgen) fn target_took(&self, now_us: u64, us: u64) {
        if !self.users.is_empty() {
            self.slow.note(now_us, us);
        }
    }

    /// The end, when everything that was late has come: judges what was held back.
    pub(in crate::loadgen) fn conclude(&self) -> Vec<Finding> {
        let held_back = std::mem::take(&mut *self.held_back.lock().expect("no panic while held"));
        let is_explained = |held: &HeldBack| held.needs_us <= self.late_us(held.from_us, held.until_us);
        held_back.into_iter().map(|held| if is_explained(&held) { Finding::Late } else { held.finding }).collect()
    }

    fn judge(&self, watcher: u32, now_us: u64) -> Judge<'_> {
        Judge { presence: self, watcher, now_us, findings: Vec::new() }
    }

    /// A fault begins: until it ends, and a while longer, changes are not judged.
    pub(in crate::loadgen) fn fault_began(&self, at_us: u64) {
        self.faults.lock().expect("no panic while held").push(Fault { began_us: at_us, ended_us: NEVER });
    }

    /// The fault that began at a time is over.
    pub(in crate::loadgen) fn fault_ended(&self, began_us: u64, now_us: u64) {
        let mut faults = self.faults.lock().expect("no panic while held");
        if let Some(fault) = faults.iter_mut().find(|fault| **fault == Fault { began_us, ended_us: NEVER }) {
            fault.ended_us = now_us;
        }
    }

    fn is_any_fault(&self, is_one: impl Fn(&Fault) -> bool) -> bool {
        self.faults.lock().expect("no panic while held").iter().any(is_one)
    }

    /// Whether a fault lasted, or had ended a while before, at any time between two: changes of presence are not judged there.
    fn was_disturbed(&self, from_us: u64, until_us: u64) -> bool {
        self.is_any_fault(|fault| fault.meets(from_us, until_us, AFTER_FAULT_US))
    }

    /// Whether one fault lasted from a time to another; what it held up may come a moment after its end.
    fn was_disturbed_throughout(&self, from_us: u64, until_us: u64) -> bool {
        self.is_any_fault(|fault| {
            fault.began_us <= from_us && until_us <= fault.ended_us.saturating_add(ONLINE_LATEST_US)
        })
    }

    /// Whether a fault may have taken away the push of a message that was sent at one time and shown at another.
    pub(in crate::loadgen) fn may_have_lost_push(&self, sent_us: u64, shown_us: u64) -> bool {
        self.is_any_fault(|fault| fault.meets(sent_us, shown_us, AFTER_FAULT_PUSH_US))
    }

    /// A device of a user is about to beat, `late_us` after it was due. Must be called before anybody can be told.
    pub(in crate::loadgen) fn on_beat(&self, user: u32, now_us: u64, late_us: u64) -> Vec<Finding> {
        if self.users.is_empty() {
            return Vec::new();
        }
        self.lag.note(now_us, late_us);
        let (before, change) = {
            let mut user = self.user(user);
            (user.beats, user.beats.on_beat(now_us))
        };
        if change == Change::None || self.is_closed() {
            return Vec::new();
        }
        let mut findings = Vec::new();
        for watcher in self.friends(user) {
            if !self.is_judged(*watcher) {
                continue;
            }
            let mut judge = self.judge(*watcher, now_us);
            let mut watching = self.user(*watcher);
            let since_us = watching.since_us;
            let Some(pair) = watching.pair(user) else { continue };
            judge.settle_online(pair);
            judge.settle_offline(pair, &before, since_us);
            let is_owed = match change {
                Change::Came => since_us > 0 && since_us + SLACK_US <= now_us,
                // Perhaps told, perhaps not: whoever was, must hear that the user is back.
                Change::Perhaps => pair.told == Some(PresenceState::Offline) && pair.offline_of_us == before.last_us,
                Change::None => false,
            };
            if is_owed {
                pair.owe(now_us, change == Change::Came);
            }
            drop(watching);
            findings.append(&mut judge.findings);
        }
        findings
    }

    /// A device of a user was welcomed.
    pub(in crate::loadgen) fn on_watch(&self, user: u32, now_us: u64) -> Vec<Finding> {
        if self.users.is_empty() {
            return Vec::new();
        }
        let mut judge = self.judge(user, now_us);
        let beats = self.beats_of_friends(user);
        let mut watching = self.user(user);
        watching.devices += 1;
        if watching.devices > 1 {
            if watching.since_us > 0 && self.is_judged(user) && !self.is_closed() {
                // What this device is told as it comes is no answer to what the others were owed.
                watching.pairs.iter_mut().for_each(|pair| judge.before_a_greeting(pair));
            }
            return judge.findings;
        }
        watching.since_us = now_us;
        let greets = self.is_judged(user) && !self.is_closed();
        for (pair, beats) in watching.pairs.iter_mut().zip(beats) {
            pair.told = None;
            let is_there = beats.is_surely_there(now_us, self.reads_every_us);
            (pair.owed_us, pair.is_change) = (if greets && is_there { now_us } else { 0 }, false);
            pair.spare_ms = u16::try_from(beats.there_for_us(now_us) / 1_000).unwrap_or(u16::MAX - 1);
        }
        judge.findings
    }

    /// A connection of a user's device ended, for whatever reason.
    pub(in crate::loadgen) fn on_unwatch(&self, user: u32, now_us: u64) -> Vec<Finding> {
        if self.users.is_empty() {
            return Vec::new();
        }
        let mut judge = self.judge(user, now_us);
        let beats = self.beats_of_friends(user);
        let mut watching = self.user(user);
        self.settle(&mut judge, &mut watching, &beats);
        watching.devices = watching.devices.saturating_sub(1);
        // What goes on on another device begins anew: it is not known which one would have been told.
        watching.since_us = if watching.devices > 0 { now_us } else { 0 };
        judge.findings
    }

    /// A connection of a user's device was lost against the plan: its last beats may not have arrived.
    pub(in crate::loadgen) fn on_lost(&self, user: u32) -> Vec<Finding> {
        if self.users.is_empty() {
            return Vec::new();
        }
        self.user(user).beats.doubt();
        let mut findings = Vec::new();
        for watcher in self.friends(user) {
            let mut watching = self.user(*watcher);
            if let Some(pair) = watching.pair(user).filter(|pair| pair.owed_us > 0) {
                pair.owed_us = 0;
                findings.push(Finding::Unsure);
            }
        }
        findings
    }

    /// The load ends: what is owed by now is judged, and nothing is owed any more.
    pub(in crate::loadgen) fn close(&self, now_us: u64) -> Vec<Finding> {
        let mut findings = Vec::new();
        for watcher in 0..self.users.len() as u32 {
            let mut judge = self.judge(watcher, now_us);
            let beats = self.beats_of_friends(watcher);
            self.settle(&mut judge, &mut self.user(watcher), &beats);
            findings.append(&mut judge.findings);
        }
        self.closed_us.store(now_us.max(1), Ordering::Relaxed);
        findings
    }

    fn settle(&self, judge: &mut Judge<'_>, watching: &mut User, beats: &[Beats]) {
        let since_us = watching.since_us;
        if since_us == 0 || self.is_closed() || !self.is_judged(judge.watcher) {
            return;
        }
        for (pair, beats) in watching.pairs.iter_mut().zip(beats) {
            judge.settle_online(pair);
            judge.settle_offline(pair, beats, since_us);
        }
    }

    /// A device of `watcher` was told of a user; `None` stands for somebody outside the run.
    pub(in crate::loadgen) fn on_notice(
        &self,
        watcher: u32,
        friend: Option<u32>,
        state: PresenceState,
        now_us: u64,
    ) -> Vec<Finding> {
        let known =
            friend.filter(|friend| !self.users.is_empty() && self.friends(watcher).binary_search(friend).is_ok());
        let Some(friend) = known else {
            return vec![Finding::Leaked];
        };
        if !self.is_judged(watcher) {
            return Vec::new();
        }
        let beats = self.user(friend).beats;
        let mut judge = self.judge(watcher, now_us);
        let mut watching = self.user(watcher);
        let since_us = watching.since_us;
        let Some(pair) = watching.pair(friend) else { return Vec::new() };
        match state {
            PresenceState::Online => judge.online(pair, &beats),
            PresenceState::Offline => judge.offline(pair, &beats, since_us),
        }
        (pair.told, pair.told_us) = (Some(state), now_us);
        judge.findings
    }
}

impl User {
    fn pair(&mut self, friend: u32) -> Option<&mut Pair> {
        let at = self.pairs.binary_search_by_key(&friend, |pair| pair.friend).ok()?;
        Some(&mut self.pairs[at])
    }
}
