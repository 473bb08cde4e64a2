//! What lets a connection be here: a token, until it expires or is logged out, and the claim of its device's session,
//! until the device connects elsewhere (docs/design.md, section 6). What else ends while a connection is open lies with
//! its owner: a membership with `subscriptions`, a friendship with `presence_feed`.
//!
//! A device's sessions have an order, that of their ids. A claim is behind those before it whatever the clocks of
//! servers say, so that after the store forgot all of them the last one is entered, not the one whose server comes
//! first. Ids are dated by the store's clock (`session_clock`): also of claims between which the store forgot the
//! first one the second one is behind.
//!
//! Whoever ends a right notes that first and then looks for connections that have it. A connection that comes up is
//! entered into the hub first and then looks for the notes. So one of the two sees the other, whatever the order.
//!
//! What one server tells another may be lost: logouts are read from the directory as well, and replaced sessions come
//! back with the refresh.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::connection::Connection;
use super::outbound::Outbound;
use super::recent_set::RecentSet;
use super::session_clock::SessionClock;
use super::session_keeper::SessionKeeper;
use super::shared::Shared;
use crate::backends::BackendResult;
use crate::backends::directory::Directory;
use crate::backends::log::{LogReader, Topic};
use crate::backends::registry::Role;
use crate::backends::sessions::{Claim, Session, Sessions};
use crate::protocol::{CloseCode, DeviceName, ServerName, SessionId, UserId};
use crate::runtime::{Backoff, Tasks, clock};
use crate::server::Deps;
use crate::server::cluster::Cluster;
use crate::server::cluster::peer::{Call, Peers};
use crate::telemetry::{Counter, Metrics};

/// How often logouts are read.
const INTERVAL: Duration = Duration::from_secs(2);

/// Logouts of so long before the last read are read once more: longer than a commit may take to be seen.
const LOGOUTS_AGAIN: Duration = Duration::from_secs(20);

/// Waits between tries to tell a server that one of its sessions was replaced.
const REPLACE_RETRY: Duration = Duration::from_millis(100);
const REPLACE_RETRY_MAX: Duration = Duration::from_secs(2);

/// Tries of that; after them the server finds it out when it refreshes its sessions.
const REPLACE_TRIES: u32 = 20;

/// Tokens and claims of the connections of one server.
pub(super) struct Rights {
    /// Of this server.
    name: ServerName,
    outbound: Arc<Outbound>,
    reader: Arc<dyn LogReader>,
    sessions: Arc<dyn Sessions>,
    clock: Arc<SessionClock>,
    directory: Arc<dyn Directory>,
    cluster: Arc<Cluster>,
    peers: Arc<Peers>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// How long tokens live: who was logged out before that has none any more.
    tokens_live: Duration,
    /// Tokens that were logged out lately.
    logged_out: RecentSet<Uuid>,
    /// Sessions whose device connected elsewhere lately.
    replaced: RecentSet<SessionId>,
    /// Claims that are made just now, or whose former holder is still to be told.
    claims: TaskTracker,
    /// How often all sessions were entered again. Counted before the hub is asked for them.
    passes: AtomicU64,
}

/// How often all sessions had been entered when one was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass(u64);

impl Rights {
    /// Without claims.
    pub(super) fn new(deps: &Deps, shared: &Shared, clock: Arc<SessionClock>) -> Self {
        Self {
            name: deps.name.clone(),
            outbound: Arc::clone(&shared.outbound),
            reader: Arc::clone(&shared.reader),
            sessions: Arc::clone(&deps.backends.sessions),
            clock,
            directory: Arc::clone(&deps.backends.directory),
            cluster: Arc::clone(&shared.cluster),
            peers: Arc::clone(&shared.peers),
            tasks: deps.tasks.clone(),
            metrics: Arc::clone(&deps.metrics),
            tokens_live: deps.tokens.lifetime(),
            logged_out: RecentSet::default(),
            replaced: RecentSet::default(),
            claims: TaskTracker::new(),
            passes: AtomicU64::new(0),
        }
    }

    /// A new session of a device on this server.
    pub(super) fn new_session(&self, user: UserId, device: DeviceName) -> Session {
        let session = SessionId::made_at(self.clock.now_ms(), rand::random());
        Session { user, device, session, server: self.name.clone() }
    }

    /// The session of a connection of this server.
    pub(super) fn session_of(&self, connection: &Connection) -> Session {
        Session {
            user: connection.user,
            device: connection.device.clone(),
            session: connection.session,
            server: self.name.clone(),
        }
    }

    fn pass(&self) -> Pass {
        Pass(self.passes.load(Ordering::SeqCst))
    }

    /// Subscribes to the user's inbox and claims the device's session, under another id where that is what it takes;
    /// sends the connection that it replaces away. For [`Rights::came_up`].
    pub(super) async fn claim(self: &Arc<Self>, session: &mut Session) -> BackendResult<Pass> {
        // A drain waits for what follows from it.
        let under_way = self.claims.token();
        let pass = self.pass();
        // In this order, so that nothing was replaced where either fails.
        self.reader.subscribe(Topic::Inbox, session.user.0).await?;
        match self.claim_behind_all(session).await {
            Ok(replaced) => {
                if let Some(old) = replaced {
                    self.send_away(old, under_way);
                }
                Ok(pass)
            }
            Err(error) => {
                // The reader only reads too much if this fails.
                let _ = self.reader.unsubscribe(Topic::Inbox, session.user.0).await;
                Err(error)
            }
        }
    }

    /// Claims a session; returns the one that it replaces. One that another server made has a later time where it knows
    /// the store's clock less well: then this one is made anew behind it.
    async fn claim_behind_all(&self, session: &mut Session) -> BackendResult<Option<Session>> {
        loop {
            match self.sessions.claim(session).await? {
                Claim::Made(replaced) => return Ok(replaced),
                Claim::Late(known) => {
                    session.session = SessionId::made_behind(known, self.clock.now_ms(), rand::random());
                }
            }
        }
    }

    /// To be told of a connection that is in the hub now. Where all sessions were entered again since its claim, which
    /// the store may have forgotten meanwhile, the hub did not have it then: it is entered now.
    pub(super) fn came_up(self: &Arc<Self>, connection: &Arc<Connection>, claimed: Pass) {
        if self.pass() == claimed {
            return;
        }
        let (this, session) = (Arc::clone(self), self.session_of(connection));
        self.tasks.spawn_until_stopped("chat.enter_again", async move {
            let refreshed = this.sessions.refresh(std::slice::from_ref(&session)).await;
            if this.outbound.hub.find(session.user, session.session).is_none() {
                // Who left in the same moment must not come back by it.
                this.release(&session).await;
            } else if refreshed.is_ok_and(|replaced| !replaced.is_empty()) {
                this.replace(session.user, session.session);
            }
        });
    }

    /// Ends a claim, unless the device has another session by now. One that failed may have worked without telling.
    pub(super) async fn release(&self, session: &Session) {
        let _ = self.sessions.release(session).await;
    }

    /// Ends the inbox subscription and the claim of a connection that has left the hub.
    pub(super) async fn give_up(&self, connection: &Connection) {
        // Failures here cost nothing: the session ends by its time to live, the reader only reads too much.
        let _ = self.reader.unsubscribe(Topic::Inbox, connection.user.0).await;
        self.release(&self.session_of(connection)).await;
    }

    /// Whether claims are made just now, or former holders are still to be told.
    pub(super) fn has_claims_under_way(&self) -> bool {
        !self.claims.is_empty()
    }

    /// Why a connection may not stay, if so. For one that was entered into the hub just now.
    pub(super) fn ended(&self, connection: &Connection) -> Option<CloseCode> {
        if self.logged_out.contains(&connection.token) {
            Some(CloseCode::LoggedOut)
        } else if self.replaced.contains(&connection.session) {
            Some(CloseCode::Replaced)
        } else if connection.has_expired(clock::unix_ms()) {
            Some(CloseCode::Unauthorized)
        } else {
            None
        }
    }

    /// Whether a token was logged out lately: within the time that anything may wait.
    pub(super) fn has_logged_out(&self, token: Uuid) -> bool {
        self.logged_out.contains(&token)
    }

    /// Closes the connections whose token has expired, at a time in milliseconds since 1970.
    pub(super) fn close_expired(&self, unix_ms: u64) {
        for connection in self.outbound.hub.select(|connection| connection.has_expired(unix_ms)) {
            self.outbound.close(&connection, CloseCode::Unauthorized);
        }
    }

    /// Closes the connections of a token that was logged out, those that come up now too.
    pub(super) fn log_out(&self, token: Uuid) {
        self.metrics.add(Counter::NotesDropped, self.logged_out.insert(token));
        for connection in self.outbound.hub.select(|connection| connection.token == token) {
            self.outbound.close(&connection, CloseCode::LoggedOut);
        }
    }

    /// Closes a session of this server whose device connected elsewhere, also if it comes up only now.
    pub(super) fn replace(&self, user: UserId, session: SessionId) {
        self.metrics.add(Counter::NotesDropped, self.replaced.insert(session));
        if let Some(connection) = self.outbound.hub.find(user, session) {
            self.outbound.close(&connection, CloseCode::Replaced);
        }
    }

    /// Has the connection closed that a new one of the same device replaces. Does not wait for it; the claim is under
    /// way for as long as it takes.
    fn send_away(self: &Arc<Self>, old: Session, claim: TaskTrackerToken) {
        if old.server == self.name {
            return self.replace(old.user, old.session);
        }
        let this = Arc::clone(self);
        self.tasks.spawn_until_stopped("chat.replace", async move {
            this.replace_elsewhere(&old).await;
            drop(claim);
        });
    }

    /// Tells another server that one of its sessions was replaced, until it has heard it or is gone with its
    /// connections.
    async fn replace_elsewhere(&self, old: &Session) {
        let call = Call::Replace { user: old.user, session: old.session };
        let mut backoff = Backoff::new(REPLACE_RETRY, REPLACE_RETRY_MAX);
        while backoff.tries() < REPLACE_TRIES {
            let listed = self.cluster.look_up(Role::Chat, &old.server).await;
            let missing = || self.cluster.present(Role::Chat)?.into_iter().find(|entry| entry.name == old.server);
            let Some(entry) = listed.or_else(missing) else { return };
            if self.peers.call(&entry, &call).await.map_or_else(|error| error.is_gone, |_| true) {
                return;
            }
            let wait = backoff.next_wait(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    /// Closes connections whose token was logged out, by the directory. Inputs: the clock.
    pub(super) async fn logouts_loop(self: Arc<Self>) {
        // Whoever is connected showed a token that was good a moment ago.
        let mut read_s = clock::since_boot_s();
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.read_logouts(&mut read_s).await;
        }
    }

    /// Closes connections whose token was logged out since the last read that succeeded, which began at `read_s` on
    /// [`clock::since_boot_s`]; that clock runs while the machine sleeps, too.
    async fn read_logouts(&self, read_s: &mut f64) {
        let now_s = clock::since_boot_s();
        // What fails now is read by the next, however late; the port's layer counts it.
        let Ok(tokens) = self.directory.revoked_within(self.logouts_since(*read_s, now_s)).await else { return };
        *read_s = now_s;
        let new: HashSet<Uuid> = tokens.into_iter().filter(|token| !self.logged_out.contains(token)).collect();
        if new.is_empty() {
            return;
        }
        for token in &new {
            self.metrics.add(Counter::NotesDropped, self.logged_out.insert(*token));
        }
        for connection in self.outbound.hub.select(|connection| new.contains(&connection.token)) {
            self.outbound.close(&connection, CloseCode::LoggedOut);
        }
    }

    /// Of how many seconds logouts are to be read now, after a read at another time. The database counts them back by
    /// its own clock.
    fn logouts_since(&self, read_s: f64, now_s: f64) -> u64 {
        let since = Duration::try_from_secs_f64(now_s - read_s).unwrap_or_default();
        // A second more, for the part of one that the database leaves out.
        (since + LOGOUTS_AGAIN).min(self.tokens_live.max(LOGOUTS_AGAIN)).as_secs() + 1
    }

    /// Keeps the sessions of this server in the session store. Inputs: the clock.
    pub(super) async fn session_loop(self: Arc<Self>) {
        let mut keeper = SessionKeeper::new(Arc::clone(&self.sessions));
        loop {
            tokio::time::sleep(keeper.wait()).await;
            self.clock.set().await;
            self.keep_sessions(&mut keeper).await;
        }
    }

    async fn keep_sessions(&self, keeper: &mut SessionKeeper) {
        let hub = &self.outbound.hub;
        // One that is closing is not entered again: its device may be back under a session that would lose to it.
        let open = || {
            // Counted first: who is entered into the hub behind this sees it.
            self.passes.fetch_add(1, Ordering::SeqCst);
            hub.select(|c| c.socket.is_open()).iter().map(|c| self.session_of(c)).collect()
        };
        let is_here = |session: &Session| hub.find(session.user, session.session).is_some();
        for gone in keeper.look(open, is_here).await {
            // Its device connected elsewhere, and the word of it did not get here.
            self.replace(gone.user, gone.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, connection, written};
    use super::*;
    use crate::backends::layers::{Faults, Layer, Layered};

    const ALICE: UserId = UserId(1);

    #[tokio::test]
    async fn a_right_that_ended_before_its_connection_came_up_is_found_by_it() {
        let bench = Bench::new().await;
        let rights = bench.rights().await;
        let [logged_out, replaced, other] = [(), (), ()].map(|()| connection(ALICE));
        rights.log_out(logged_out.token);
        rights.replace(ALICE, replaced.session);
        let ended = [&logged_out, &replaced, &other].map(|connection| rights.ended(connection));
        assert_eq!(ended, [Some(CloseCode::LoggedOut), Some(CloseCode::Replaced), None]);
    }

    #[tokio::test]
    async fn logouts_are_read_from_the_last_read_that_succeeded() {
        let mut bench = Bench::new().await;
        let directory = Arc::clone(&bench.deps.backends.directory);
        let away = Layer::Faulty(Box::new(Faults::new(7, 1_000)));
        bench.deps.backends.directory = Arc::new(Layered::<dyn Directory>::new(Arc::clone(&directory), away));
        let cut_off = bench.rights().await;
        bench.deps.backends.directory = Arc::clone(&directory);
        let rights = bench.rights().await;
        let (began_s, now_s) = (0.25, clock::since_boot_s());
        let mut read_s = began_s;
        for _ in 0..10 {
            cut_off.read_logouts(&mut read_s).await;
        }
        assert!((read_s - began_s).abs() < f64::EPSILON, "none of them succeeded");
        // The usual, after ten minutes, and no more than a token lives.
        let seconds = [2.0, 600.0, 1e6, -5.0].map(|after| rights.logouts_since(read_s, read_s + after));
        assert_eq!(seconds, [23, 621, 3_601, 21]);
        let (out, stays) = (bench.enter(ALICE), bench.enter(ALICE));
        directory.revoke_token(out.token, u64::from(u32::MAX)).await.expect("logs out");
        rights.read_logouts(&mut read_s).await;
        assert_eq!((written(&out).1, written(&stays).1), (Some(CloseCode::LoggedOut.code()), None));
        assert!(read_s >= now_s);
    }

    #[tokio::test]
    async fn of_two_connections_of_a_device_the_later_claim_stays() {
        let bench = Bench::new().await;
        let rights = bench.rights().await;
        let [first, second] = [(), ()].map(|()| bench.enter(ALICE));
        for connection in [&first, &second] {
            rights.claim(&mut rights.session_of(connection)).await.expect("claims");
        }
        assert_eq!((written(&first).1, written(&second).1), (Some(CloseCode::Replaced.code()), None));
        assert!(!rights.has_claims_under_way(), "the first one's server is this one");
        // What the first one leaves behind is not the second one's session.
        bench.shared.outbound.hub.remove(ALICE, first.session);
        rights.give_up(&first).await;
        let sessions = bench.deps.backends.sessions.lookup(&[ALICE]).await.expect("reads");
        assert_eq!(sessions, [rights.session_of(&second)]);
    }

    #[tokio::test]
    async fn a_claim_is_behind_those_of_servers_whose_clock_is_ahead() {
        let bench = Bench::new().await;
        let (rights, sessions) = (bench.rights().await, &bench.deps.backends.sessions);
        let connection = bench.enter(ALICE);
        let ahead = Session {
            server: "chat-2".parse().expect("a name"),
            session: SessionId::made_at(clock::unix_ms() + 3_600_000, [0; 10]),
            ..rights.session_of(&connection)
        };
        sessions.claim(&ahead).await.expect("claims");
        let mut session = rights.new_session(ALICE, connection.device.clone());
        rights.claim(&mut session).await.expect("claims");
        assert!(session.session.is_behind(&ahead.session));
        assert_eq!(sessions.lookup(&[ALICE]).await.expect("reads"), std::slice::from_ref(&session));
        // The one that is ahead does not come back by its server's next pass.
        assert_eq!(sessions.refresh(std::slice::from_ref(&ahead)).await.expect("answers"), [ahead.session]);
    }

    #[tokio::test]
    async fn a_connection_that_was_claimed_before_the_store_forgot_is_entered_when_it_comes_up() {
        let bench = Bench::new().await;
        let (rights, sessions) = (bench.rights().await, Arc::clone(&bench.deps.backends.sessions));
        let connection = connection(ALICE);
        let mut session = rights.session_of(&connection);
        let pass = rights.claim(&mut session).await.expect("claims");
        // As by a flush. What is in the hub is entered again.
        sessions.release(&session).await.expect("answers");
        rights.keep_sessions(&mut SessionKeeper::new(Arc::clone(&sessions))).await;
        assert_eq!(sessions.lookup(&[ALICE]).await.expect("reads"), []);
        bench.shared.outbound.hub.add(Arc::clone(&connection));
        rights.came_up(&connection, pass);
        let entered = async {
            while sessions.lookup(&[ALICE]).await.expect("reads") != [session.clone()] {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), entered).await.expect("it is entered, long before the next pass");
    }

    #[tokio::test]
    async fn a_refresh_enters_what_the_store_forgot_and_closes_what_was_replaced_unnoticed() {
        let bench = Bench::new().await;
        let rights = bench.rights().await;
        let (forgotten, replaced) = (bench.enter(ALICE), bench.enter(UserId(2)));
        let elsewhere = Session {
            server: "chat-2".parse().expect("a name"),
            ..rights.new_session(replaced.user, replaced.device.clone())
        };
        bench.deps.backends.sessions.claim(&elsewhere).await.expect("claims");
        let closing = bench.enter(ALICE);
        bench.shared.outbound.close(&closing, CloseCode::Replaced);
        rights.keep_sessions(&mut SessionKeeper::new(Arc::clone(&bench.deps.backends.sessions))).await;
        assert_eq!((written(&forgotten).1, written(&replaced).1), (None, Some(CloseCode::Replaced.code())));
        let sessions = bench.deps.backends.sessions.lookup(&[ALICE, UserId(2)]).await.expect("reads");
        assert_eq!(sessions, [rights.session_of(&forgotten), elsewhere]);
    }
}
