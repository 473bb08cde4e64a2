//! The push service: reads every inbox record and notifies recipients that have no live session.
//!
//! | file | what |
//! |---|---|
//! | `live` | which sessions count: those of chat servers that are there |
//! | `held` | notifications that wait for a second look, since a chat server is gone |
//!
//! Where a chat server died, its sessions outlive it. Their users may be back on another server in a moment: their notifications
//! are held back, and handed over to whoever is not back by then.
//!
//! What was left to a session may turn out to have been left to a dead server. So records are committed when that would
//! have shown: a push server that is killed meanwhile decides once more after its restart, and repeats what it handed
//! over in those seconds.

mod held;
mod live;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use self::held::{Held, Lately};
use self::live::{Standing, View};
use super::cluster::peer::{self, NothingOfItsOwn};
use super::inbox::InboxHeader;
use super::{Deps, StartError, cluster, lag};
use crate::backends::log::{Delivered, GroupPosition, GroupReader, Topic};
use crate::backends::push::Notification;
use crate::backends::registry::Role;
use crate::backends::sessions::Session;
use crate::backends::{BackendError, BackendResult};
use crate::protocol::UserId;
use crate::runtime::{Backoff, clock};
use crate::telemetry::{Counter, Gauge};

/// The consumer group's name.
const GROUP: &str = "push";

/// Records are gathered for this long, so that a busy recipient is looked up once and not for every message.
const GATHER: Duration = Duration::from_millis(100);

/// A read of so many records is followed by the next one at once: there is more.
const FULL_READ: usize = 256;

/// How often it is looked whether chat servers are gone, and whether what is held back is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Users in one look-up of their sessions, and notifications in one call: each is to be done within the deadline of a call.
const USERS_PER_CALL: usize = 5_000;
const NOTIFICATIONS_PER_CALL: usize = 1_000;

/// Time between two positions of which one can be committed, and how many are kept; past them the last one moves.
const MARK_INTERVAL: Duration = Duration::from_secs(1);
const MARKS_MAX: usize = 128;

/// Longest that a commit may take when the service stops.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// First wait after a failure, and the longest.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Starts the push service in the tasks of `deps`; `listener` is for other servers. It is announced when this returns.
///
/// # Errors
/// When the registry or the log does not answer, or the listener is of no use.
pub async fn start(listener: TcpListener, deps: Deps) -> Result<(), StartError> {
    let address = deps.reached_at(&listener)?;
    let reader = deps.backends.log.group(Topic::Inbox, GROUP).await?;
    peer::serve(listener, &deps, Arc::new(NothingOfItsOwn));
    start_loops(&deps, &reader);
    cluster::announce_as(Role::Push, &deps, address, address, || 0).await?;
    Ok(())
}

fn start_loops(deps: &Deps, reader: &Arc<dyn GroupReader>) {
    let service = Service::new(deps.clone(), Arc::clone(reader));
    deps.tasks.spawn("push.loop", service.run());
    deps.tasks.spawn_until_stopped("push.lag_loop", lag_loop(deps.clone(), Arc::clone(reader)));
}

/// Writes the gauges of the lag. Inputs: the clock.
async fn lag_loop(deps: Deps, reader: Arc<dyn GroupReader>) {
    loop {
        lag::tell(&deps.metrics, &reader.lag().await);
        tokio::time::sleep(lag::INTERVAL).await;
    }
}

/// What the loop keeps.
struct Service {
    deps: Deps,
    reader: Arc<dyn GroupReader>,
    view: View,
    held: Held,
    /// What was held back is being decided or handed over: it is neither held any more, nor dealt with.
    is_in_hand: bool,
    lately: Lately,
    backoff: Backoff,
    /// How far it had come at some times, on [`clock::now_us`], the earliest first; what is read and not committed.
    marks: VecDeque<(u64, GroupPosition)>,
    /// When a commit is tried, on [`clock::now_us`], after one that failed.
    commit_from_us: u64,
    commit_backoff: Backoff,
}

impl Service {
    fn new(deps: Deps, reader: Arc<dyn GroupReader>) -> Self {
        let view = View::new(Arc::clone(&deps.backends.registry));
        let backoff = Backoff::new(RETRY, RETRY_MAX);
        Self {
            deps,
            reader,
            view,
            held: Held::default(),
            is_in_hand: false,
            lately: Lately::default(),
            backoff,
            marks: VecDeque::new(),
            commit_from_us: 0,
            commit_backoff: backoff,
        }
    }

    /// Serves until it is to stop, and commits what is dealt with then: a planned restart repeats nothing. Inputs:
    /// records, the clock, the word to stop.
    async fn run(mut self) {
        let tasks = self.deps.tasks.clone();
        tokio::select! {
            () = self.serve() => {}
            () = tasks.stopped() => {}
        }
        // What the stop has cut off, and what is held back, comes again.
        if !self.is_in_hand
            && self.held.is_empty()
            && let Some((_, last)) = self.marks.pop_back()
        {
            // What fails here is repeated.
            let _ = tokio::time::timeout(LAST_COMMIT, self.reader.commit(&last)).await;
        }
    }

    /// Hands over, then commits: a failure repeats a notification rather than losing it.
    async fn serve(&mut self) {
        loop {
            let read = tokio::time::timeout(LOOK_INTERVAL, self.reader.next()).await;
            match read {
                Ok(Ok(records)) => {
                    self.backoff.reset();
                    self.take(&records).await;
                    self.mark();
                    if records.len() < FULL_READ {
                        tokio::time::sleep(GATHER).await;
                    }
                }
                Ok(Err(error)) => self.failed("push can't read the inboxes", &error).await,
                Err(_) => {}
            }
            self.look_again().await;
            self.commit().await;
        }
    }

    async fn failed(&mut self, what: &str, error: &BackendError) {
        tracing::warn!(%error, "{what}");
        let wait = self.backoff.next_wait(&mut rand::rng());
        tokio::time::sleep(wait).await;
    }

    /// Notes how far it has come.
    fn mark(&mut self) {
        let now_us = clock::now_us();
        let is_soon = |at_us: u64| now_us.saturating_sub(at_us) < MARK_INTERVAL.as_micros() as u64;
        // The last mark moves as long as the one before it is not long ago.
        let before_last = self.marks.len().checked_sub(2).map(|at| self.marks[at].0);
        if self.marks.len() >= MARKS_MAX || before_last.is_some_and(is_soon) {
            self.marks.pop_back();
        }
        self.marks.push_back((now_us, self.reader.position()));
    }

    /// Commits what was read, up to where nothing is held back, or may have to be: that comes again after an end.
    async fn commit(&mut self) {
        if !self.held.is_empty() || clock::now_us() < self.commit_from_us {
            return;
        }
        let open_since_us = self.lately.since_us().unwrap_or(u64::MAX);
        let dealt_with = self.marks.iter().take_while(|(at_us, _)| *at_us < open_since_us).count();
        let Some(last) = dealt_with.checked_sub(1) else { return };
        if let Err(error) = self.reader.commit(&self.marks[last].1).await {
            // A later round tries again; what can be read is not held up.
            tracing::warn!(%error, "push can't commit; notifications may repeat after a restart");
            let wait = self.commit_backoff.next_wait(&mut rand::rng());
            self.commit_from_us = clock::now_us() + wait.as_micros() as u64;
            return;
        }
        self.marks.drain(..dealt_with);
        self.commit_backoff.reset();
    }

    /// Deals with records: notifies who has no session, holds back who has one of a server that is gone.
    async fn take(&mut self, records: &[Delivered]) {
        let mut all = Vec::new();
        for record in records {
            let Some((header, _)) = InboxHeader::parse(&record.record.payload) else { continue };
            let recipients = record.record.keys.iter().map(|key| UserId(*key)).filter(|user| *user != header.sender);
            let (conversation, id, at) = (header.conversation, header.id, clock::unix_ms());
            all.extend(recipients.map(|user| Notification { user, conversation, id, at }));
        }
        if all.is_empty() {
            return;
        }
        let sessions = self.sessions_of(&all).await;
        let mut due = Vec::new();
        for notification in all {
            let sessions = sessions.get(&notification.user).map_or(&[][..], Vec::as_slice);
            match self.view.standing(sessions) {
                Standing::Absent => due.push(notification),
                Standing::Doubtful => due.extend(self.held.put(notification)),
                Standing::Live => {
                    let forgotten = self.lately.note(sessions, notification);
                    self.deps.metrics.add(Counter::SecondLooksDropped, forgotten);
                }
            }
        }
        self.hand_over(due).await;
    }

    /// Holds back what was not handed over since a server was there that is gone now, and deals with what is due.
    async fn look_again(&mut self) {
        let mut due = Vec::new();
        if self.view.look().await {
            let counts = |session: &Session| self.view.standing(std::slice::from_ref(session)) == Standing::Live;
            for notification in self.lately.of_gone(counts) {
                if !self.held.put_if_room(notification) {
                    self.deps.metrics.count(Counter::SecondLooksDropped);
                }
            }
        }
        if self.view.is_known() {
            // Until then nobody can say which servers have gone.
            self.lately.forget_old();
        }
        self.is_in_hand = true;
        let again = self.held.due();
        if !again.is_empty() {
            let notifications: Vec<Notification> = again.iter().map(|held| held.notification).collect();
            let sessions = self.sessions_of(&notifications).await;
            for held in again {
                let sessions = sessions.get(&held.notification.user).map_or(&[][..], Vec::as_slice);
                match self.view.standing(sessions) {
                    Standing::Live if self.view.is_known() => {}
                    Standing::Live => due.extend(self.held.put_again(held)),
                    Standing::Absent | Standing::Doubtful => due.push(held.notification),
                }
            }
        }
        self.hand_over(due).await;
        self.is_in_hand = false;
        self.deps.metrics.set(Gauge::NotificationsHeld, self.held.len() as u64);
    }

    /// The sessions of the recipients of notifications, asked for until they are known.
    async fn sessions_of(&mut self, notifications: &[Notification]) -> HashMap<UserId, Vec<Session>> {
        self.view.look_if_old().await;
        let users: HashSet<UserId> = notifications.iter().map(|notification| notification.user).collect();
        let users: Vec<UserId> = users.into_iter().collect();
        let mut sessions: HashMap<UserId, Vec<Session>> = HashMap::new();
        for users in users.chunks(USERS_PER_CALL) {
            loop {
                match self.deps.backends.sessions.lookup(users).await {
                    Ok(found) => {
                        for session in found {
                            sessions.entry(session.user).or_default().push(session);
                        }
                        self.backoff.reset();
                        break;
                    }
                    Err(error) => self.failed("push can't tell who is connected", &error).await,
                }
            }
        }
        sessions
    }

    /// Hands notifications over, each until it is taken.
    async fn hand_over(&mut self, notifications: Vec<Notification>) {
        for notifications in notifications.chunks(NOTIFICATIONS_PER_CALL) {
            while let Err(error) = self.notify(notifications).await {
                self.failed("notifications were not handed over", &error).await;
            }
            self.backoff.reset();
        }
    }

    async fn notify(&self, notifications: &[Notification]) -> BackendResult<()> {
        self.deps.backends.notifier.notify(notifications).await?;
        self.deps.metrics.add(Counter::Notifications, notifications.len() as u64);
        Ok(())
    }
}
