//! The end of a run: every conversation read back as its members see it, and held against the ledger.
//!
//! The owner's view is read of each conversation; of other members', all in small conversations and a few, drawn from the
//! seed, in larger ones: as many as a run can afford. Who was removed must be refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::calls::{CALL_LIMIT, count_failure, in_time};
use super::watch::Watcher;
use crate::loadgen::api::{Error, Source};
use crate::loadgen::client::{CallError, Causes, DeviceState};
use crate::loadgen::history::body_hash;
use crate::loadgen::ledger::{AuditedDevice, Kind, audit_conversation, audit_view};
use crate::loadgen::retry::Retry;
use crate::loadgen::run::Shared;
use crate::loadgen::stats::{add, get};
use crate::protocol::limits::SYNC_LIMIT_MAX;
use crate::protocol::{ErrorCode, MessageFrame, MessageId};
use crate::runtime::clock;

/// Conversations read back at the same time.
const AUDITS_AT_ONCE: usize = 16;

/// Where nothing could be read for this long, the rest is not asked for: there may be a million conversations left.
const SILENCE_MAX_US: u64 = 60_000_000;

/// A conversation that has so many times more messages than the run has sent is not read to its end: it may have none.
const ROWS_PER_SENT_MAX: u64 = 4;

/// Conversations up to this size are read as every member sees them.
const MEMBERS_ALL_READ_MAX: usize = 8;

/// Members whose views are read of larger ones.
const MEMBERS_READ: usize = 4;

/// Members' views of a whole run that are read, about.
const VIEWS_MAX: u64 = 20_000;

/// Reads every conversation back and holds it against what was acknowledged and shown, until told to stop. Returns how many
/// were not read.
pub(super) async fn audit(
    shared: &Arc<Shared>,
    states: &[DeviceState],
    watcher: &Watcher,
    told_to_stop: impl Future<Output = ()>,
) -> u64 {
    let devices = devices_by_conversation(shared, states);
    let total = devices.len() as u64;
    let auditor = &Auditor::new(shared);
    let audits = (0..).zip(&devices).map(|(index, devices)| auditor.audit(index, devices));
    let mut results = stream::iter(audits).buffer_unordered(AUDITS_AT_ONCE);
    let (mut done, mut read) = (0, 0);
    tokio::pin!(told_to_stop);
    loop {
        let audited = tokio::select! {
            audited = results.next() => audited,
            () = &mut told_to_stop => None,
        };
        let Some(audited) = audited else { break };
        read += u64::from(audited);
        done += 1;
        watcher.progress(f64::from(done) / total as f64, format!("conversations {done}/{total}"));
    }
    let unread = total - read;
    add(&shared.stats.unaudited_local, if auditor.causes().are_only_here() { unread } else { 0 });
    unread
}

fn devices_by_conversation<'a>(shared: &Shared, states: &'a [DeviceState]) -> Vec<Vec<AuditedDevice<'a>>> {
    let mut devices: Vec<Vec<AuditedDevice<'_>>> = shared.world.conversations.iter().map(|_| Vec::new()).collect();
    for state in states {
        for conversation in &state.conversations {
            let record = conversation.record();
            devices[conversation.index as usize].push(AuditedDevice {
                client: state.client,
                user: state.user,
                shown: &record.shown,
                shown_sum: record.shown_sum,
                at_sum: record.at_sum,
                acked: &record.acked,
                held: conversation.cursor.held().copied().collect(),
                is_drained: state.is_drained,
            });
        }
    }
    devices
}

/// Since when calls of a kind had no answer, on the run's clock; 0 while they have.
#[derive(Default)]
pub(super) struct Silence(AtomicU64);

impl Silence {
    /// One was answered.
    fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// One failed.
    fn go_on(&self, now_us: u64) {
        let _ = self.0.compare_exchange(0, now_us.max(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether it has lasted for so long that no more calls are made.
    fn is_over_long(&self, now_us: u64) -> bool {
        let since_us = self.0.load(Ordering::Relaxed);
        since_us > 0 && now_us >= since_us.saturating_add(SILENCE_MAX_US)
    }
}

/// Reads what members see.
struct Auditor<'a> {
    shared: &'a Shared,
    /// Of reads for owners, for other members, and for removed ones: a target may answer some of them only.
    owners: Silence,
    members: Silence,
    removed: Silence,
    /// Views of members that could be read.
    views: u64,
    /// What calls have failed by.
    causes: Mutex<Causes>,
}

impl<'a> Auditor<'a> {
    fn new(shared: &'a Shared) -> Self {
        let members = (0..shared.world.conversations.len() as u32).map(|c| shared.world.members(c).len());
        let views = members.map(|members| views_of(members) as u64).sum();
        let (owners, members, removed) = Default::default();
        Self { shared, owners, members, removed, views, causes: Mutex::default() }
    }

    fn causes(&self) -> MutexGuard<'_, Causes> {
        self.causes.lock().expect("no panic while held")
    }

    /// Audits one conversation; returns whether it could be read.
    async fn audit(&self, index: u32, devices: &[AuditedDevice<'_>]) -> bool {
        let shared = self.shared;
        let conversation = &shared.world.conversations[index as usize];
        let Some(stored) = self.read_back(index, conversation.owner, &self.owners).await else { return false };
        shared.note("final", || {
            let rows: Vec<_> = stored.iter().map(|m| json!([m.id, m.uuid, body_hash(&m.body)])).collect();
            let auditor = shared.world.users[conversation.owner as usize].id;
            json!({"conv": conversation.id, "user": auditor, "msgs": rows, "complete": true})
        });
        audit_conversation(&shared.ledger, &shared.world, index, &stored, devices, clock::unix_ms());
        for member in self.other_members(index) {
            match self.read_back(index, member, &self.members).await {
                Some(view) => {
                    add(&shared.stats.read_views, 1);
                    audit_view(&shared.ledger, &shared.world, index, &stored, (member, &view), devices);
                }
                None => add(&shared.stats.unread_views, 1),
            }
        }
        for removed in shared.ledger.removed(index) {
            let was_answered = probe_removed(shared, (index, removed), &self.removed, std::future::pending()).await;
            add(&shared.stats.unprobed, u64::from(!was_answered));
        }
        true
    }

    /// The members whose views are read beside the owner's, drawn from the seed.
    fn other_members(&self, index: u32) -> Vec<u32> {
        let world = &self.shared.world;
        let owner = world.conversations[index as usize].owner;
        let draw = |member: u32| drawn(self.shared.scenario.seed, index, member);
        let is_afforded = |member: &u32| draw(*member) % self.views.max(1) < VIEWS_MAX;
        let is_member = |member: &u32| self.shared.ledger.is_member(world, index, *member);
        let others = world.members(index).iter().copied().filter(|member| *member != owner);
        let mut others: Vec<u32> = others.filter(is_member).collect();
        others.sort_by_key(|member| draw(*member));
        others.truncate(views_of(world.members(index).len()));
        others.retain(is_afforded);
        others
    }

    /// Everything that a member of a conversation can read; `None` when it can't be read.
    async fn read_back(&self, index: u32, member: u32, silence: &Silence) -> Option<Vec<MessageFrame>> {
        let (shared, world) = (self.shared, &self.shared.world);
        let (api, id, client) = (&shared.api, world.conversations[index as usize].id, world.first_client(member));
        let mut all: Vec<MessageFrame> = Vec::new();
        let mut retry = Retry::with_budget(drawn(shared.scenario.seed, index, member), CALL_LIMIT);
        while !silence.is_over_long(clock::now_us()) {
            let after = all.last().map(|m| m.id).unwrap_or_default();
            let page = world.authorized(client, api, |token| async move {
                api.messages_sync(&token, id, after, SYNC_LIMIT_MAX, Source::Store).await
            });
            let retry_after = match in_time(page).await {
                Ok(page) => {
                    // A page that says that there is more and has nothing new is asked for again, as one that failed.
                    let is_over = all.len() as u64 > get(&shared.stats.sent).saturating_mul(ROWS_PER_SENT_MAX);
                    let is_stuck =
                        page.has_more && (is_over || page.messages.last().is_none_or(|last| last.id <= after));
                    if is_stuck {
                        self.causes().note(false);
                        shared.stats.call_failed("audit", &CallError::Unreadable("there is always more".to_owned()));
                    } else {
                        silence.end();
                        all.extend(page.messages);
                    }
                    if !page.has_more {
                        return Some(all);
                    }
                    if !is_stuck {
                        retry.reset();
                        continue;
                    }
                    None
                }
                Err(error) => {
                    tracing::debug!(%error, conversation = %id, "audit");
                    let retry_after = error.retry_after();
                    self.causes().note(error.is_local());
                    count_failure(shared, "audit", error);
                    retry_after
                }
            };
            silence.go_on(clock::now_us());
            tokio::time::sleep(retry.next(clock::now_us(), retry_after)?).await;
            add(&shared.stats.retries, 1);
        }
        None
    }
}

/// How many other members' views are read of a conversation with so many members.
fn views_of(members: usize) -> usize {
    if members <= MEMBERS_ALL_READ_MAX { members.saturating_sub(1) } else { MEMBERS_READ }
}

/// A number for a member of a conversation that depends on the seed. The finalizer of `splitmix64`.
const fn drawn(seed: u64, conversation: u32, member: u32) -> u64 {
    let x = seed ^ (((conversation as u64) << 32) | member as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Tries to read a conversation as somebody who was removed, until the API says yes or no: it must refuse it. Returns false
/// where it said neither, and nothing ended the tries before.
pub(super) async fn probe_removed(
    shared: &Shared,
    (conversation, user): (u32, u32),
    silence: &Silence,
    told_to_stop: impl Future<Output = ()>,
) -> bool {
    let mut retry = Retry::with_budget(drawn(shared.scenario.seed, conversation, user), CALL_LIMIT);
    tokio::pin!(told_to_stop);
    while !silence.is_over_long(clock::now_us()) {
        let answer = read_as_removed(shared, conversation, user).await;
        // Somebody who was added meanwhile may read it.
        if !shared.ledger.has_left(&shared.world, conversation, user) {
            return true;
        }
        let Err(error) = answer else {
            silence.end();
            add(&shared.stats.access_probes, 1);
            return true;
        };
        silence.go_on(clock::now_us());
        let wait = retry.next(clock::now_us(), error.retry_after());
        count_failure(shared, "audit", error);
        let Some(wait) = wait else { return false };
        tokio::select! {
            () = tokio::time::sleep(wait) => add(&shared.stats.retries, 1),
            () = &mut told_to_stop => return true,
        }
    }
    false
}

/// One try of it. Being refused is an answer; being let in is a leak.
async fn read_as_removed(shared: &Shared, conversation: u32, user: u32) -> Result<(), Error> {
    let id = shared.world.conversations[conversation as usize].id;
    let (api, client) = (&shared.api, shared.world.first_client(user));
    let answer = shared.world.authorized(client, api, |token| async move {
        api.messages_sync(&token, id, MessageId(0), SYNC_LIMIT_MAX, Source::Any).await
    });
    match in_time(answer).await {
        Ok(page) if shared.ledger.has_left(&shared.world, conversation, user) => {
            shared.ledger.violation(Kind::Leaked, || {
                let (user, rows) = (shared.world.users[user as usize].id, page.messages.len());
                format!("{id} let {user}, who was removed, read {rows} messages over HTTP")
            });
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => match error.code() {
            Some(ErrorCode::NotAMember | ErrorCode::Forbidden | ErrorCode::NotFound) => Ok(()),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_lasts_from_the_first_failure_until_an_answer() {
        let silence = Silence::default();
        assert!(!silence.is_over_long(10 * SILENCE_MAX_US), "nothing was asked");
        silence.go_on(5);
        silence.go_on(SILENCE_MAX_US);
        assert_eq!([4, 5].map(|us| silence.is_over_long(SILENCE_MAX_US + us)), [false, true]);
        silence.end();
        assert!(!silence.is_over_long(2 * SILENCE_MAX_US));
    }

    #[test]
    fn small_conversations_are_read_by_all_and_large_ones_by_a_few() {
        assert_eq!([2, 8, 9, 300].map(views_of), [1, 7, 4, 4]);
        let draws: std::collections::BTreeSet<u64> =
            (0..100).flat_map(|c| (0..100).map(move |m| drawn(7, c, m))).collect();
        assert_eq!(draws.len(), 10_000);
        assert_eq!(drawn(7, 3, 4), drawn(7, 3, 4));
        assert_ne!(drawn(7, 3, 4), drawn(8, 3, 4));
    }
}
