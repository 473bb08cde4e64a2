//! A consumer group of the embedded log: its members share one position.
//!
//! A member commits what it has dealt with. What it has not committed comes again, to another member or to itself when it is back;
//! so records may come twice, and none is left out. Where the group falls back, everything from there on is read again: what a
//! member had read of that is no longer its own, and positions from before say nothing any more.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;

use super::embedded::{Inner, QUEUE, READ_RECORDS_MAX, read_failed};
use super::{Delivered, GroupPosition, GroupReader, PartitionLag, Topic};
use crate::backends::BackendResult;
use crate::backends::store::{Change, Durability};

/// Beside the offset in a position: how often its member had been thrown back. No partition has this number.
const FALLBACKS: u32 = QUEUE + 1;

/// How far a group has come. Written by its members.
pub(super) type SharedState = Arc<Mutex<GroupState>>;

pub(super) struct GroupState {
    /// Where it reads next.
    next: u64,
    /// Where members began to read what they have not committed yet: what lies before all of them is dealt with.
    begun: Vec<u64>,
}

impl GroupState {
    /// A member begins to have something uncommitted somewhere else than before, or has nothing.
    fn move_begun(&mut self, from: Option<u64>, to: Option<u64>) {
        if let Some(at) = self.begun.iter().position(|known| Some(*known) == from) {
            self.begun.swap_remove(at);
        }
        self.begun.extend(to);
    }

    /// Up to where everything is dealt with.
    fn dealt_with(&self) -> u64 {
        self.begun.iter().copied().fold(self.next, u64::min)
    }
}

fn commit_key(topic: Topic, group: &str) -> String {
    format!("{}/{group}/{QUEUE}", topic.name())
}

/// A member of a group.
pub(super) struct EmbeddedGroup {
    log: Arc<Inner>,
    topic: Topic,
    group: String,
    /// Shared by the group's members.
    state: SharedState,
    /// Where this member began to read what it has not committed yet, and how far it came.
    uncommitted: Mutex<Option<Range<u64>>>,
    /// How often it read on before the end of what it had not committed.
    fallbacks: AtomicU64,
}

impl EmbeddedGroup {
    /// Joins a group, which reads on behind what it committed last.
    pub(super) fn join(log: &Arc<Inner>, topic: Topic, group: &str) -> BackendResult<Self> {
        let mut groups = log.groups.lock().expect("no panic while held");
        let state = if let Some(state) = groups.get(&(topic, group.to_owned())) {
            Arc::clone(state)
        } else {
            let value = log.commits.get(commit_key(topic, group)).map_err(read_failed)?;
            let next = value.and_then(|v| v.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes);
            let state = Arc::new(Mutex::new(GroupState { next, begun: Vec::new() }));
            groups.insert((topic, group.to_owned()), Arc::clone(&state));
            state
        };
        Ok(Self {
            log: Arc::clone(log),
            topic,
            group: group.to_owned(),
            state,
            uncommitted: Mutex::default(),
            fallbacks: AtomicU64::new(0),
        })
    }

    fn uncommitted(&self) -> MutexGuard<'_, Option<Range<u64>>> {
        self.uncommitted.lock().expect("no panic while held")
    }

    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().expect("no panic while held")
    }

    fn take(&self) -> BackendResult<Vec<Delivered>> {
        let (mut uncommitted, mut state) = (self.uncommitted(), self.state());
        let from = state.next;
        let (records, next) = self.log.read(self.topic, from, READ_RECORDS_MAX)?;
        if !records.is_empty() {
            state.next = next;
            let before = uncommitted.as_ref().map(|range| range.start);
            let is_thrown_back = uncommitted.as_ref().is_some_and(|range| from < range.end);
            // The rest of what it had comes again, to whoever reads it then.
            let start = if is_thrown_back { from } else { before.unwrap_or(from) };
            self.fallbacks.fetch_add(u64::from(is_thrown_back), Ordering::Relaxed);
            state.move_begun(before, Some(start));
            *uncommitted = Some(start..next);
        }
        Ok(records)
    }

    /// Has something else uncommitted than before.
    fn set_uncommitted(&self, to: Option<Range<u64>>) {
        let (mut uncommitted, mut state) = (self.uncommitted(), self.state());
        state.move_begun(uncommitted.as_ref().map(|range| range.start), to.as_ref().map(|range| range.start));
        *uncommitted = to;
    }
}

/// What a member has not committed comes to another one, or to itself when it is back.
impl Drop for EmbeddedGroup {
    fn drop(&mut self) {
        if let Some(range) = self.uncommitted().take() {
            let mut state = self.state();
            state.move_begun(Some(range.start), None);
            state.next = state.next.min(range.start);
        }
    }
}

#[async_trait]
impl GroupReader for EmbeddedGroup {
    async fn next(&self) -> BackendResult<Vec<Delivered>> {
        let log = Arc::clone(&self.log);
        loop {
            let mut news = std::pin::pin!(log.group_news.notified());
            news.as_mut().enable();
            let out = self.take()?;
            if !out.is_empty() {
                return Ok(out);
            }
            news.await;
        }
    }

    fn position(&self) -> GroupPosition {
        let fallbacks = self.fallbacks.load(Ordering::Relaxed);
        let of = |range: &Range<u64>| BTreeMap::from([(QUEUE, range.end), (FALLBACKS, fallbacks)]);
        GroupPosition(self.uncommitted().as_ref().map(of).unwrap_or_default())
    }

    async fn commit(&self, position: &GroupPosition) -> BackendResult<()> {
        let (before, to) = (self.uncommitted().clone(), position.0.get(&QUEUE).copied());
        let (Some(before), Some(to)) = (before, to) else { return Ok(()) };
        let is_of_before = position.0.get(&FALLBACKS) != Some(&self.fallbacks.load(Ordering::Relaxed));
        if is_of_before || to <= before.start {
            return Ok(());
        }
        self.set_uncommitted((to < before.end).then_some(to..before.end));
        let dealt_with = self.state().dealt_with();
        let change = Change {
            keyspace: self.log.commits.clone(),
            key: commit_key(self.topic, &self.group).into_bytes(),
            value: Some(dealt_with.to_be_bytes().to_vec()),
        };
        let written = self.log.store.write("log.commit", vec![change], Durability::Process).await;
        if written.is_err() {
            self.set_uncommitted(Some(before));
        }
        written
    }

    async fn lag(&self) -> Vec<PartitionLag> {
        let next = self.state().next;
        vec![self.log.lag(self.topic, next)]
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::backends::log::{EmbeddedLog, KeyedLog, Record};
    use crate::backends::store::EmbeddedStore;

    #[tokio::test]
    async fn what_a_member_did_not_commit_comes_to_another_one_however_far_that_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(&EmbeddedStore::open(folder.path()).expect("opens"), 3).expect("opens");
        let publish = async |text: &'static str| {
            let record = Record { keys: vec![1], payload: Bytes::from_static(text.as_bytes()) };
            log.publish(Topic::Inbox, record).await.expect("publishes");
        };
        let read = async |group: &dyn GroupReader| {
            let records = group.next().await.expect("reads");
            records.iter().map(|d| String::from_utf8_lossy(&d.record.payload).into_owned()).collect::<Vec<_>>()
        };
        let slow = log.group(Topic::Inbox, "push").await.expect("joins");
        let fast = log.group(Topic::Inbox, "push").await.expect("joins");
        publish("one").await;
        assert_eq!(read(&*slow).await, ["one"]);
        publish("two").await;
        assert_eq!(read(&*fast).await, ["two"]);
        fast.commit(&fast.position()).await.expect("commits");
        drop(slow);
        assert_eq!(read(&*fast).await, ["one", "two"]);
    }

    #[tokio::test]
    async fn a_commit_does_not_pass_what_a_member_that_is_gone_left_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let log = EmbeddedLog::open(&store, 3).expect("opens");
        let mut members = Vec::new();
        for n in 0..3_u8 {
            let record = Record { keys: vec![1], payload: Bytes::from(vec![n]) };
            log.publish(Topic::Inbox, record).await.expect("publishes");
            let member = log.group(Topic::Inbox, "push").await.expect("joins");
            assert_eq!(member.next().await.expect("reads")[0].offset, u64::from(n));
            members.push(member);
        }
        // The first one ends before it has committed, the second one goes on.
        drop(members.remove(0));
        members[1].commit(&members[1].position()).await.expect("commits");
        let kept = store.keyspace("log-commits").expect("opens").get(commit_key(Topic::Inbox, "push")).expect("reads");
        assert_eq!(kept.as_deref(), Some(&0_u64.to_be_bytes()[..]));
    }

    #[tokio::test]
    async fn a_commit_does_not_pass_what_a_member_reads_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let log = EmbeddedLog::open(&store, 3).expect("opens");
        let publish = async |n: u8| {
            let record = Record { keys: vec![1], payload: Bytes::from(vec![n]) };
            log.publish(Topic::Inbox, record).await.expect("publishes");
        };
        let kept = || {
            let commits = store.keyspace("log-commits").expect("opens");
            let value = commits.get(commit_key(Topic::Inbox, "push")).expect("reads");
            value.map_or(0, |v| u64::from_be_bytes(v.as_ref().try_into().expect("eight bytes")))
        };
        let mut members = Vec::new();
        for n in 0..2 {
            publish(n).await;
            let member = log.group(Topic::Inbox, "push").await.expect("joins");
            assert_eq!(member.next().await.expect("reads")[0].offset, u64::from(n));
            members.push(member);
        }
        let old = members[1].position();
        drop(members.remove(0));
        let offsets = members[0].next().await.expect("reads").iter().map(|d| d.offset).collect::<Vec<_>>();
        assert_eq!(offsets, [0, 1], "the first one's, and its own again");
        publish(2).await;
        let third = log.group(Topic::Inbox, "push").await.expect("joins");
        assert_eq!(third.next().await.expect("reads")[0].offset, 2);
        third.commit(&third.position()).await.expect("commits");
        assert_eq!(kept(), 0, "nothing of what was read again is dealt with");
        members[0].commit(&old).await.expect("is of no matter");
        assert_eq!(kept(), 0, "a position from before the fall back does not hold what was read behind it");
        members[0].commit(&members[0].position()).await.expect("commits");
        assert_eq!(kept(), 3);
    }
}
