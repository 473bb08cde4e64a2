//! Beats on their way to the presence servers, and friends' changes on their way to the sockets.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::connection::Connection;
use super::outbound::Outbound;
use super::recent_set::RecentSet;
use super::shared::Shared;
use super::watches::Watches;
use crate::backends::BackendResult;
use crate::backends::directory::Directory;
use crate::backends::log::{Delivered, LogReader, Topic};
use crate::backends::presence::Presence;
use crate::backends::registry::Role;
use crate::protocol::frames::{PresenceFrame, PresenceState};
use crate::protocol::{ServerFrame, UserId, websocket};
use crate::runtime::clock;
use crate::server::Deps;
use crate::server::beats::BeatBuffer;
use crate::server::cluster::Cluster;
use crate::server::cluster::peer::{Call, Peers};
use crate::server::cluster::placement::rendezvous;
use crate::telemetry::{Counter, Metrics};

/// How often beats are passed on.
const BEAT_INTERVAL: Duration = Duration::from_millis(200);

/// Users whose beats may wait.
const USERS_WAITING_MAX: usize = 500_000;

/// Beats in one call.
const BEATS_PER_CALL: usize = 5_000;

/// Passes the beats of this server's users on, and tells them of their friends' presence.
pub(super) struct PresenceFeed {
    outbound: Arc<Outbound>,
    reader: Arc<dyn LogReader>,
    directory: Arc<dyn Directory>,
    presence: Arc<dyn Presence>,
    cluster: Arc<Cluster>,
    peers: Arc<Peers>,
    metrics: Arc<Metrics>,
    beats: BeatBuffer,
    watches: Watches,
    /// Friendships that ended lately, each by both directions. Noted before the look for users who watch: one who comes
    /// up meanwhile reads the note after the watch began.
    ended: RecentSet<(UserId, UserId)>,
    /// Users whose friends could not be read, or whose friends' changes can't be read from the log.
    unwatched: Mutex<HashSet<UserId>>,
}

impl PresenceFeed {
    /// With nobody watched.
    pub(super) fn new(deps: &Deps, shared: &Shared) -> Self {
        Self {
            outbound: Arc::clone(&shared.outbound),
            reader: Arc::clone(&shared.reader),
            directory: Arc::clone(&deps.backends.directory),
            presence: Arc::clone(&deps.backends.presence),
            cluster: Arc::clone(&shared.cluster),
            peers: Arc::clone(&shared.peers),
            metrics: Arc::clone(&deps.metrics),
            beats: BeatBuffer::new(USERS_WAITING_MAX),
            watches: Watches::default(),
            ended: RecentSet::default(),
            unwatched: Mutex::default(),
        }
    }

    /// Watched friends, for tests that look for what was left behind.
    #[cfg(test)]
    pub(super) fn watched(&self) -> usize {
        self.watches.len()
    }

    /// Takes a beat.
    pub(super) fn beat(&self, user: UserId) {
        self.metrics.count(Counter::Beats);
        self.keep_beats([(user, clock::now_us())]);
    }

    /// Passes beats to the presence servers that own the users. Inputs: the clock.
    pub(super) async fn beat_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(BEAT_INTERVAL).await;
            let beats = self.beats.take();
            if !beats.is_empty() {
                self.pass_beats(beats).await;
            }
        }
    }

    async fn pass_beats(&self, beats: HashMap<UserId, u64>) {
        let servers = self.cluster.servers(Role::Presence);
        let mut owners: HashMap<usize, Vec<(UserId, u64)>> = HashMap::new();
        for beat in beats {
            let owner = (0..servers.len()).max_by_key(|n| rendezvous(&servers[*n].name, beat.0.0));
            match owner {
                Some(owner) => owners.entry(owner).or_default().push(beat),
                None => self.keep_beats([beat]),
            }
        }
        let calls = owners.into_iter().map(|(owner, beats)| {
            let owner = &servers[owner];
            async move {
                for chunk in beats.chunks(BEATS_PER_CALL) {
                    let now_us = clock::now_us();
                    let aged = chunk.iter().map(|(user, at_us)| (*user, (now_us - at_us) / 1_000));
                    let call = Call::Beats(aged.collect());
                    if self.peers.call(owner, &call).await.is_err() {
                        self.metrics.count(Counter::PeerFailures);
                        self.keep_beats(chunk.iter().copied());
                    }
                }
            }
        });
        futures_util::future::join_all(calls).await;
    }

    /// Keeps beats until they can be passed on.
    fn keep_beats(&self, kept: impl IntoIterator<Item = (UserId, u64)>) {
        self.metrics.add(Counter::BeatsDropped, self.beats.add(kept));
    }

    /// Tells a new connection which friends are online, and keeps it informed.
    pub(super) async fn greet(&self, connection: &Arc<Connection>, is_first: bool) {
        let user = connection.user;
        let friends = if is_first { self.watch_friends(user).await } else { self.directory.friends(user).await };
        let Ok(friends) = friends else {
            tracing::warn!(%user, "friends can't be read; their presence comes later");
            return self.watch_later(user);
        };
        self.show(connection.user, friends, |frame| self.outbound.reply(connection, frame)).await;
    }

    /// Has the friends of a user looked up again.
    fn watch_later(&self, user: UserId) {
        self.unwatched.lock().expect("no panic while held").insert(user);
    }

    /// Whether `friend` stopped being a friend of `user` lately.
    fn has_unfriended(&self, user: UserId, friend: UserId) -> bool {
        self.ended.contains(&(user, friend))
    }

    /// Has the friends of a user who is connected here watched; returns them.
    ///
    /// # Errors
    /// When they can't be read, or the log can't; then it is to be done again.
    async fn watch_friends(&self, user: UserId) -> BackendResult<Vec<UserId>> {
        let friends = self.directory.friends(user).await?;
        for friend in &friends {
            self.start_watching(*friend, user).await?;
        }
        if !self.outbound.hub.has_user(user) {
            // Gone again meanwhile, and its clean-up ran before the watches were there.
            self.stop_watching(user).await;
        }
        Ok(friends)
    }

    /// Watches and shows friends where that failed before.
    pub(super) async fn watch_again(&self) {
        let unwatched = std::mem::take(&mut *self.unwatched.lock().expect("no panic while held"));
        let mut unwatched = unwatched.into_iter().filter(|user| self.outbound.hub.has_user(*user));
        while let Some(user) = unwatched.next() {
            if let Ok(friends) = self.watch_friends(user).await {
                self.show_to_user(user, friends).await;
            } else {
                // The others would fail as well.
                self.watch_later(user);
                unwatched.by_ref().for_each(|other| self.watch_later(other));
            }
        }
    }

    /// Shows those of a user's friends who are online, as far as they still are friends.
    async fn show(&self, user: UserId, friends: Vec<UserId>, show: impl Fn(&ServerFrame)) {
        if friends.is_empty() {
            return;
        }
        let Ok(records) = self.presence.get(&friends).await else { return };
        for (friend, record) in friends.into_iter().zip(records).filter(|(_, record)| record.online) {
            if !self.has_unfriended(user, friend) {
                let frame = PresenceFrame { user: friend, state: PresenceState::Online, at: record.last_beat_ms };
                show(&ServerFrame::Presence(frame));
            }
        }
    }

    /// The same on each connection of the user.
    async fn show_to_user(&self, user: UserId, friends: Vec<UserId>) {
        self.show(user, friends, |frame| self.outbound.reply_to_user(user, frame)).await;
    }

    /// Has a friend's changes told to a user.
    async fn start_watching(&self, friend: UserId, user: UserId) -> BackendResult<()> {
        self.reader.subscribe(Topic::PresenceUpdates, friend.0).await?;
        if !self.watches.add(friend, user) {
            self.lower_count(friend).await;
        }
        // Who stopped being a friend after the friends were read was not watched then.
        if self.has_unfriended(user, friend) {
            self.end_watching(friend, user).await;
        }
        Ok(())
    }

    async fn end_watching(&self, friend: UserId, user: UserId) {
        if self.watches.remove(friend, user) {
            self.lower_count(friend).await;
        }
    }

    async fn lower_count(&self, friend: UserId) {
        // The reader only reads too much if this fails.
        let _ = self.reader.unsubscribe(Topic::PresenceUpdates, friend.0).await;
    }

    /// Ends the watches of a user whose last connection has ended.
    pub(super) async fn stop_watching(&self, user: UserId) {
        if self.outbound.hub.has_user(user) {
            return;
        }
        // What it watches, not who its friends are: a friendship may have ended without a word to this server.
        for friend in self.watches.remove_all(user) {
            self.lower_count(friend).await;
        }
        if self.outbound.hub.has_user(user) {
            // Back in the same moment, and what it began to watch may have ended with this.
            self.watch_later(user);
        }
    }

    /// Begins to tell two users of each other's presence, or ends it, unless the directory says otherwise: words of
    /// servers may overtake each other.
    pub(super) async fn friends_changed(&self, a: UserId, b: UserId, friends: bool) {
        let hub = &self.outbound.hub;
        if friends && !hub.has_user(a) && !hub.has_user(b) && !self.ended.contains(&(a, b)) {
            return;
        }
        let known = self.directory.are_friends(a, b).await;
        if known.as_ref().is_ok_and(|are_friends| *are_friends != friends) {
            // A late word of what is otherwise since.
            return;
        }
        // Noted before the look for users: one who comes up now reads the note afterwards.
        for pair in [(a, b), (b, a)] {
            if friends {
                self.ended.remove(&pair);
            } else {
                self.metrics.add(Counter::NotesDropped, self.ended.insert(pair));
            }
        }
        for (user, friend) in [(a, b), (b, a)] {
            if !friends {
                // Also of one who has just left: its clean-up knows the friends as they are now.
                self.end_watching(friend, user).await;
                if known.is_err() && hub.has_user(user) {
                    // Whether that was a late word is seen later.
                    self.watch_later(user);
                }
            } else if !hub.has_user(user) {
                // It reads its friends when it comes.
            } else if known.is_ok() && self.start_watching(friend, user).await.is_ok() {
                // A new friend who is online is shown at once.
                self.show_to_user(user, vec![friend]).await;
            } else {
                self.watch_later(user);
            }
        }
    }

    /// Passes a change of users' presence on to those who watch them.
    pub(super) fn on_record(&self, delivered: &Delivered) {
        let Ok(text) = std::str::from_utf8(&delivered.record.payload) else { return };
        let frame: bytes::Bytes = websocket::text_frame(text, None).into();
        for key in &delivered.record.keys {
            for user in self.watches.of(UserId(*key)) {
                self.outbound.hub.for_user(user, |connection| self.outbound.push(connection, frame.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, written};
    use super::*;
    use crate::backends::log::Record;
    use crate::backends::presence::Beat;

    fn online(user: UserId) -> ServerFrame {
        ServerFrame::Presence(PresenceFrame { user, state: PresenceState::Online, at: 7 })
    }

    fn record(user: UserId) -> Delivered {
        let record = Record { keys: vec![user.0], payload: online(user).encode().into_bytes().into() };
        Delivered { topic: Topic::PresenceUpdates, partition: 0, offset: 0, at_ms: 0, record: Arc::new(record) }
    }

    #[tokio::test]
    async fn beats_that_no_presence_server_takes_are_kept_with_their_age() {
        let bench = Bench::new().await;
        let feed = bench.presence_feed();
        let [early, late] = [1, 2].map(UserId);
        feed.beat(early);
        let beats = feed.beats.take();
        feed.beat(late);
        feed.pass_beats(beats.clone()).await;
        let kept = feed.beats.take();
        assert_eq!((kept.len(), kept[&early]), (2, beats[&early]));
        assert_eq!(feed.metrics.counted(Counter::BeatsDropped), 0);
    }

    #[tokio::test]
    async fn a_friends_change_reaches_who_watches_until_the_friendship_ends() {
        let bench = Bench::new().await;
        let feed = bench.presence_feed();
        let [friend, user, other] = bench.users().await;
        let (watching, stranger) = (bench.enter(user), bench.enter(other));
        let directory = &bench.deps.backends.directory;
        directory.set_friends(friend, user, true).await.expect("befriends");
        feed.friends_changed(friend, user, true).await;
        feed.on_record(&record(friend));
        assert_eq!(written(&watching).0, [online(friend)]);
        directory.set_friends(friend, user, false).await.expect("ends");
        // The word of the beginning comes once more, and late.
        for told in [false, true] {
            feed.friends_changed(friend, user, told).await;
            feed.on_record(&record(friend));
            assert_eq!((written(&watching).0, written(&stranger).0), (Vec::new(), Vec::new()), "{told}");
        }
        assert_eq!(feed.watched(), 0);
        // They are friends again, and the word of the end comes once more.
        directory.set_friends(friend, user, true).await.expect("befriends");
        for told in [true, false] {
            feed.friends_changed(friend, user, told).await;
            feed.on_record(&record(friend));
            assert_eq!(written(&watching).0, [online(friend)], "{told}");
        }
    }

    #[tokio::test]
    async fn a_friendship_that_ends_while_its_user_leaves_leaves_no_watch() {
        let bench = Bench::new().await;
        let feed = bench.presence_feed();
        let [friend, user] = bench.users().await;
        bench.deps.backends.directory.set_friends(friend, user, true).await.expect("befriends");
        let connection = bench.enter(user);
        feed.greet(&connection, true).await;
        assert_eq!(feed.watches.of(friend), [user]);
        bench.shared.outbound.hub.remove(user, connection.session);
        bench.deps.backends.directory.set_friends(friend, user, false).await.expect("ends");
        feed.friends_changed(friend, user, false).await;
        feed.stop_watching(user).await;
        assert_eq!(feed.watched(), 0);
    }

    #[tokio::test]
    async fn a_friendship_that_ends_while_its_user_comes_up_is_neither_shown_nor_watched() {
        let bench = Bench::new().await;
        let feed = bench.presence_feed();
        let [friend, former, user] = bench.users().await;
        for other in [friend, former] {
            // The directory as it was read before the end of one of the friendships.
            bench.deps.backends.directory.set_friends(user, other, true).await.expect("befriends");
            feed.presence.beat(&[Beat { user: other, age_ms: 0 }]).await.expect("beats");
        }
        for pair in [(user, former), (former, user)] {
            assert_eq!(feed.ended.insert(pair), 0);
        }
        let connection = bench.enter(user);
        feed.greet(&connection, true).await;
        let (shown, _) = written(&connection);
        assert!(matches!(&shown[..], [ServerFrame::Presence(shown)] if shown.user == friend), "{shown:?}");
        assert_eq!((feed.watches.of(former), feed.watches.of(friend)), (Vec::new(), vec![user]));
    }
}
