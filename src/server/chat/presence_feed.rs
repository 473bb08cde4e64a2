//! Beats on their way to the presence servers, and friends' changes on their way to the sockets.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

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
use crate::runtime::{Tasks, clock};
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

/// Friends whose presence is read at once.
const SHOWN_AT_ONCE: usize = 1_000;

/// Of what may wait for a connection friends who are online take one part of so many: the rest is for what happens.
const SHOWN_SHARE: usize = 2;

/// How often it is looked whether a connection has room for more of them.
const ROOM_INTERVAL: Duration = Duration::from_millis(50);

/// Passes the beats of this server's users on, and tells them of their friends' presence.
pub(super) struct PresenceFeed {
    outbound: Arc<Outbound>,
    reader: Arc<dyn LogReader>,
    directory: Arc<dyn Directory>,
    presence: Arc<dyn Presence>,
    cluster: Arc<Cluster>,
    peers: Arc<Peers>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    beats: BeatBuffer,
    watches: Watches,
    /// Users all of whose friends are watched. Written when that is done, and when their watches end.
    watching: Mutex<HashSet<UserId>>,
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
            tasks: deps.tasks.clone(),
            metrics: Arc::clone(&deps.metrics),
            beats: BeatBuffer::new(USERS_WAITING_MAX),
            watches: Watches::default(),
            watching: Mutex::default(),
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
    pub(super) async fn greet(self: &Arc<Self>, connection: &Arc<Connection>) {
        let user = connection.user;
        let friends =
            if self.is_watching(user) { self.directory.friends(user).await } else { self.watch_friends(user).await };
        let Ok(friends) = friends else {
            tracing::warn!(%user, "friends can't be read; their presence comes later");
            return self.watch_later(user);
        };
        self.show(user, friends, vec![Arc::clone(connection)]).await;
    }

    fn watching(&self) -> MutexGuard<'_, HashSet<UserId>> {
        self.watching.lock().expect("no panic while held")
    }

    /// Whether all friends of a user are watched.
    fn is_watching(&self, user: UserId) -> bool {
        self.watching().contains(&user)
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
        self.watching().insert(user);
        if !self.outbound.hub.has_user(user) {
            // Gone again meanwhile, and its clean-up ran before the watches were there.
            self.stop_watching(user).await;
        }
        Ok(friends)
    }

    /// Watches and shows friends where that failed before.
    pub(super) async fn watch_again(self: &Arc<Self>) {
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

    /// Shows those of a user's friends who are online to some of its connections: as many as these have room for, and
    /// the others as they read. Does not wait for that.
    async fn show(self: &Arc<Self>, user: UserId, friends: Vec<UserId>, mut connections: Vec<Arc<Connection>>) {
        let mut shown = self.show_some(user, &friends, &connections).await;
        if shown == friends.len() {
            return;
        }
        let this = Arc::clone(self);
        self.tasks.spawn_until_stopped("chat.show", async move {
            while shown < friends.len() {
                tokio::time::sleep(ROOM_INTERVAL).await;
                connections.retain(|connection| connection.socket.is_open());
                if connections.is_empty() {
                    return;
                }
                shown += this.show_some(user, &friends[shown..], &connections).await;
            }
        });
    }

    /// The same while all the connections have room; returns how many friends are done with.
    async fn show_some(&self, user: UserId, friends: &[UserId], connections: &[Arc<Connection>]) -> usize {
        let have_room = |bytes| connections.iter().all(|connection| self.has_room(connection, bytes));
        let mut done = 0;
        for some in friends.chunks(SHOWN_AT_ONCE) {
            if !have_room(0) {
                return done;
            }
            // Just before it is shown: what changes later is told as it changes.
            let Ok(records) = self.presence.get(some).await else { return friends.len() };
            for (friend, record) in some.iter().zip(records) {
                // Who is no friend any more is watched no longer.
                if record.online && self.watches.has(*friend, user) {
                    let frame = PresenceFrame { user: *friend, state: PresenceState::Online, at: record.last_beat_ms };
                    let frame: Bytes = websocket::text_frame(&ServerFrame::Presence(frame).encode(), None).into();
                    if !have_room(frame.len()) {
                        return done;
                    }
                    for connection in connections {
                        self.outbound.push(connection, frame.clone());
                    }
                }
                done += 1;
            }
        }
        done
    }

    /// Whether a connection may be shown so many bytes more.
    fn has_room(&self, connection: &Connection, bytes: usize) -> bool {
        connection.socket.waiting_bytes() == 0 || self.outbound.has_room(connection, bytes, SHOWN_SHARE)
    }

    /// Shows friends on each connection of the user.
    async fn show_to_user(self: &Arc<Self>, user: UserId, friends: Vec<UserId>) {
        let connections = self.outbound.hub.connections_of(std::iter::once(user));
        self.show(user, friends, connections).await;
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
        self.watching().remove(&user);
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
    pub(super) async fn friends_changed(self: &Arc<Self>, a: UserId, b: UserId, friends: bool) {
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
        let frame: Bytes = websocket::text_frame(text, None).into();
        for key in &delivered.record.keys {
            for user in self.watches.of(UserId(*key)) {
                self.outbound.hub.for_user(user, |connection| self.outbound.push(connection, frame.clone()));
            }
        }
    }
}

#[cfg(test)]
#[path = "presence_feed_tests.rs"]
mod tests;
