//! Beats on their way to the presence servers, and friends' changes on their way to the sockets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ChatServer;
use super::connection::Connection;
use crate::backends::BackendResult;
use crate::backends::log::{Delivered, Topic};
use crate::backends::registry::Role;
use crate::protocol::frames::{PresenceFrame, PresenceState};
use crate::protocol::{ServerFrame, UserId, websocket};
use crate::runtime::clock;
use crate::server::cluster::peer::Call;
use crate::server::cluster::placement::rendezvous;
use crate::telemetry::Counter;

/// How often beats are passed on.
const BEAT_INTERVAL: Duration = Duration::from_millis(200);

/// Users whose beats may wait; a newer beat of a user replaces the older one.
const USERS_WAITING_MAX: usize = 500_000;

/// Beats in one call.
const BEATS_PER_CALL: usize = 5_000;

/// Newest beat of each user, on [`clock::now_us`], not passed on yet. Written by readers, taken by the loop.
#[derive(Default)]
pub(super) struct BeatBuffer(Mutex<HashMap<UserId, u64>>);

impl ChatServer {
    pub(super) fn beat(&self, user: UserId) {
        self.deps.metrics.count(Counter::Beats);
        let mut beats = self.beats.0.lock().expect("no panic while held");
        if beats.len() < USERS_WAITING_MAX || beats.contains_key(&user) {
            beats.insert(user, clock::now_us());
        } else {
            self.deps.metrics.count(Counter::BeatsDropped);
        }
    }

    /// Passes beats to the presence servers that own the users. Inputs: the clock.
    pub(super) async fn beat_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(BEAT_INTERVAL).await;
            let beats = std::mem::take(&mut *self.beats.0.lock().expect("no panic while held"));
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
                None => self.keep_beats(&[beat]),
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
                        self.deps.metrics.count(Counter::PeerFailures);
                        self.keep_beats(chunk);
                    }
                }
            }
        });
        futures_util::future::join_all(calls).await;
    }

    /// Puts beats back that could not be passed on, unless a newer one came.
    fn keep_beats(&self, kept: &[(UserId, u64)]) {
        let mut beats = self.beats.0.lock().expect("no panic while held");
        for (user, at_us) in kept {
            if beats.len() < USERS_WAITING_MAX {
                beats.entry(*user).or_insert(*at_us);
            } else {
                self.deps.metrics.count(Counter::BeatsDropped);
            }
        }
    }

    /// Tells a new connection which friends are online, and keeps it informed.
    pub(super) async fn greet_with_presence(self: &Arc<Self>, connection: &Arc<Connection>, is_first: bool) {
        let user = connection.user;
        let friends = if is_first { self.watch_friends(user).await } else { self.friends_of(user).await };
        let Ok(friends) = friends else {
            tracing::warn!(%user, "friends can't be read; their presence comes later");
            return self.rights.watch_later(user);
        };
        self.show_presence(connection.user, friends, |frame| self.outbound.reply(connection, frame)).await;
    }

    async fn friends_of(&self, user: UserId) -> BackendResult<Vec<UserId>> {
        self.deps.backends.directory.friends(user).await
    }

    /// Has the friends of a user who is connected here watched; returns them.
    ///
    /// # Errors
    /// When they can't be read, or the log can't; then it is to be done again.
    pub(super) async fn watch_friends(&self, user: UserId) -> BackendResult<Vec<UserId>> {
        let friends = self.friends_of(user).await?;
        for friend in &friends {
            self.start_watching(*friend, user).await?;
        }
        if !self.outbound.hub.has_user(user) {
            // Gone again meanwhile, and its clean-up ran before the watches were there.
            self.stop_watching(user).await;
        }
        Ok(friends)
    }

    /// Watches and shows a user's friends, where that failed when the user came.
    pub(super) async fn watch_friends_again(self: &Arc<Self>, user: UserId) -> BackendResult<()> {
        let friends = self.watch_friends(user).await?;
        let show = |frame: &ServerFrame| self.outbound.reply_to_user(user, frame);
        self.show_presence(user, friends, show).await;
        Ok(())
    }

    /// Shows those of a user's friends who are online, as far as they still are friends.
    async fn show_presence(&self, user: UserId, friends: Vec<UserId>, show: impl Fn(&ServerFrame)) {
        if friends.is_empty() {
            return;
        }
        let Ok(records) = self.deps.backends.presence.get(&friends).await else { return };
        for (friend, record) in friends.into_iter().zip(records).filter(|(_, record)| record.online) {
            if !self.rights.has_unfriended(user, friend) {
                let frame = PresenceFrame { user: friend, state: PresenceState::Online, at: record.last_beat_ms };
                show(&ServerFrame::Presence(frame));
            }
        }
    }

    /// Has a friend's changes told to a user.
    async fn start_watching(&self, friend: UserId, user: UserId) -> BackendResult<()> {
        self.reader.subscribe(Topic::PresenceUpdates, friend.0).await?;
        if !self.outbound.hub.watch(friend, user) {
            self.lower_presence_count(friend).await;
        }
        // Who stopped being a friend after the friends were read was not watched then.
        if self.rights.has_unfriended(user, friend) {
            self.end_watching(friend, user).await;
        }
        Ok(())
    }

    async fn end_watching(&self, friend: UserId, user: UserId) {
        if self.outbound.hub.unwatch(friend, user) {
            self.lower_presence_count(friend).await;
        }
    }

    async fn lower_presence_count(&self, friend: UserId) {
        // The reader only reads too much if this fails.
        let _ = self.reader.unsubscribe(Topic::PresenceUpdates, friend.0).await;
    }

    pub(super) async fn stop_watching(&self, user: UserId) {
        let friends = match self.friends_of(user).await {
            Ok(friends) => friends,
            Err(_) => self.outbound.hub.watched_by(user),
        };
        if self.outbound.hub.has_user(user) {
            return;
        }
        for friend in self.outbound.hub.unwatch_all(user, &friends) {
            self.lower_presence_count(friend).await;
        }
        if self.outbound.hub.has_user(user) {
            // Back in the same moment, and what it began to watch may have ended with this.
            self.rights.watch_later(user);
        }
    }

    pub(super) async fn friends_changed(self: &Arc<Self>, a: UserId, b: UserId, friends: bool) {
        // Noted before the look for users: one who comes up now reads the note afterwards.
        self.rights.note_friends(a, b, friends);
        for (user, friend) in [(a, b), (b, a)].into_iter().filter(|(user, _)| self.outbound.hub.has_user(*user)) {
            if !friends {
                self.end_watching(friend, user).await;
            } else if self.start_watching(friend, user).await.is_ok() {
                // A new friend who is online is shown at once.
                let show = |frame: &ServerFrame| self.outbound.reply_to_user(user, frame);
                self.show_presence(user, vec![friend], show).await;
            } else {
                self.rights.watch_later(user);
            }
        }
    }

    pub(super) fn on_presence_record(self: &Arc<Self>, delivered: &Delivered) {
        let Ok(text) = std::str::from_utf8(&delivered.record.payload) else { return };
        let frame: bytes::Bytes = websocket::text_frame(text, None).into();
        for key in &delivered.record.keys {
            for user in self.outbound.hub.watchers(UserId(*key)) {
                self.outbound.hub.for_user(user, |connection| self.outbound.push(connection, frame.clone()));
            }
        }
    }
}
