//! Large channels and who subscribes to them: what [`super::subscriptions`] keeps. No I/O.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::connection::Connection;
use crate::protocol::frames::Deliver;
use crate::protocol::{ConversationId, SessionId, UserId};
use crate::runtime::clock;

/// Age of the last look at the subscribers' rights at which another one is due.
const DUE: Duration = Duration::from_secs(2);

/// Age at which messages wait for the next look. Source: invariant I13, 5 s.
const STALE: Duration = Duration::from_secs(5);

/// Time after a look that failed in which no other is made.
const RETRY: Duration = Duration::from_secs(1);

/// A connection that subscribes, and to what.
#[derive(Clone)]
pub(super) struct Subscriber {
    pub(super) connection: Arc<Connection>,
    pub(super) wants: Deliver,
    /// Of the last subscription of this connection: a look that began before it says nothing of it.
    number: u64,
}

/// How old the last look at the subscribers' rights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Young enough.
    Known,
    /// Young enough, and another one should be made meanwhile: by who asked, nobody else is told so.
    Due,
    /// Nothing may be sent by it.
    Stale,
    /// The same, and the last look has just failed.
    Unreadable,
}

struct Channel {
    subscribers: HashMap<SessionId, Subscriber>,
    /// The same as a list, made when somebody asks.
    listed: Option<Arc<[Subscriber]>>,
    /// When the last look began that found all of them to be members; those who came since were looked at one by one.
    looked_at: Instant,
    /// Whether a look is under way.
    is_looking: bool,
    /// After a failed look: when the next one may be made.
    retry_at: Option<Instant>,
}

impl Channel {
    fn new() -> Self {
        Self {
            subscribers: HashMap::new(),
            listed: None,
            looked_at: clock::instant(),
            is_looking: false,
            retry_at: None,
        }
    }

    fn list(&mut self) -> Arc<[Subscriber]> {
        let subscribers = &self.subscribers;
        Arc::clone(self.listed.get_or_insert_with(|| subscribers.values().cloned().collect()))
    }

    fn rights(&mut self) -> Rights {
        let now = clock::instant();
        let age = now - self.looked_at;
        let has_failed = self.retry_at.is_some_and(|at| now < at);
        if age >= STALE {
            return if has_failed { Rights::Unreadable } else { Rights::Stale };
        }
        if age < DUE || has_failed || self.is_looking {
            return Rights::Known;
        }
        self.is_looking = true;
        Rights::Due
    }
}

/// The channels of one server that have subscribers.
#[derive(Default)]
pub(super) struct Channels {
    channels: Mutex<HashMap<ConversationId, Channel>>,
    /// The last [`Subscriber::number`].
    numbers: AtomicU64,
}

/// A look at the rights of a channel's subscribers. Where it is dropped before [`Look::end`] it has failed.
pub(super) struct Look<'a> {
    channels: &'a Channels,
    channel: ConversationId,
    /// Who subscribed as it began.
    pub(super) subscribers: Arc<[Subscriber]>,
    began: Instant,
    is_made: bool,
}

impl Look<'_> {
    /// All of the subscribers are members, or are none any more.
    pub(super) fn end(mut self) {
        self.is_made = true;
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        let mut channels = self.channels.lock();
        let Some(channel) = channels.get_mut(&self.channel) else { return };
        channel.is_looking = false;
        if self.is_made {
            channel.looked_at = channel.looked_at.max(self.began);
            channel.retry_at = None;
        } else {
            channel.retry_at = Some(clock::instant() + RETRY);
        }
    }
}

impl Channels {
    fn lock(&self) -> MutexGuard<'_, HashMap<ConversationId, Channel>> {
        self.channels.lock().expect("no panic while held")
    }

    /// Those that there are.
    pub(super) fn ids(&self) -> Vec<ConversationId> {
        self.lock().keys().copied().collect()
    }

    /// Who subscribes to a channel.
    pub(super) fn of(&self, channel: ConversationId) -> Arc<[Subscriber]> {
        self.lock().get_mut(&channel).map_or_else(|| Arc::from([]), Channel::list)
    }

    /// The same, with what is known of their rights; `None` where nobody subscribes.
    pub(super) fn look(&self, channel: ConversationId) -> Option<(Arc<[Subscriber]>, Rights)> {
        let mut channels = self.lock();
        let channel = channels.get_mut(&channel)?;
        Some((channel.list(), channel.rights()))
    }

    /// Whether a connection of a user subscribes to a channel.
    pub(super) fn has(&self, channel: ConversationId, user: UserId) -> bool {
        let is_users = |subscriber: &Subscriber| subscriber.connection.user == user;
        self.lock().get(&channel).is_some_and(|channel| channel.subscribers.values().any(is_users))
    }

    /// Enters a connection, for heads; one that is there keeps what it wants. Returns whether it is new.
    pub(super) fn enter(&self, channel: ConversationId, connection: &Arc<Connection>) -> bool {
        let mut channels = self.lock();
        let channel = channels.entry(channel).or_insert_with(Channel::new);
        let before = channel.subscribers.get(&connection.session).map(|subscriber| subscriber.wants);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let wants = before.unwrap_or_default();
        let subscriber = Subscriber { connection: Arc::clone(connection), wants, number };
        channel.subscribers.insert(connection.session, subscriber);
        channel.listed = None;
        before.is_none()
    }

    /// Sets what a connection wants of a channel, if it is there. Its user must be known to have the right to it.
    pub(super) fn want(&self, channel: ConversationId, session: SessionId, wants: Deliver) {
        let mut channels = self.lock();
        let Some(channel) = channels.get_mut(&channel) else { return };
        if let Some(subscriber) = channel.subscribers.get_mut(&session).filter(|one| one.wants != wants) {
            subscriber.wants = wants;
            channel.listed = None;
        }
    }

    /// Whether a subscriber is still in the channel by the same subscription.
    pub(super) fn is_still(&self, channel: ConversationId, subscriber: &Subscriber) -> bool {
        let channels = self.lock();
        let now = channels.get(&channel).and_then(|channel| channel.subscribers.get(&subscriber.connection.session));
        now.is_some_and(|now| now.number == subscriber.number)
    }

    /// Takes a connection out of a channel.
    pub(super) fn leave(&self, channel: ConversationId, session: SessionId) {
        let mut channels = self.lock();
        if let Some(entry) = channels.get_mut(&channel) {
            entry.subscribers.remove(&session);
            entry.listed = None;
            if entry.subscribers.is_empty() {
                channels.remove(&channel);
            }
        }
    }

    /// A look at the rights of a channel's subscribers begins; `None` where there are none.
    pub(super) fn begin_look(&self, channel: ConversationId) -> Option<Look<'_>> {
        let mut channels = self.lock();
        let entry = channels.get_mut(&channel)?;
        entry.is_looking = true;
        let (subscribers, began) = (entry.list(), clock::instant());
        Some(Look { channels: self, channel, subscribers, began, is_made: false })
    }

    /// Subscriptions, for tests that look for what was left behind.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().values().map(|channel| channel.subscribers.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::connection;
    use super::*;

    const CHANNEL: ConversationId = ConversationId(7);

    fn rights(channels: &Channels) -> Rights {
        channels.look(CHANNEL).expect("has subscribers").1
    }

    #[tokio::test(start_paused = true)]
    async fn rights_age_and_one_look_at_a_time_makes_them_young() {
        let channels = Channels::default();
        assert!(channels.look(CHANNEL).is_none() && channels.begin_look(CHANNEL).is_none());
        let first = connection(UserId(1));
        assert!(channels.enter(CHANNEL, &first));
        assert_eq!(rights(&channels), Rights::Known, "it was looked at itself");
        tokio::time::advance(DUE).await;
        assert_eq!([rights(&channels), rights(&channels)], [Rights::Due, Rights::Known], "one is told to look");
        channels.begin_look(CHANNEL).expect("there is one").end();
        assert_eq!(rights(&channels), Rights::Known);
        tokio::time::advance(DUE).await;
        assert_eq!(rights(&channels), Rights::Due);
        drop(channels.begin_look(CHANNEL));
        assert_eq!(rights(&channels), Rights::Known, "it has failed, and is not made at once again");
        tokio::time::advance(RETRY).await;
        assert_eq!(rights(&channels), Rights::Due);
        tokio::time::advance(STALE.saturating_sub(DUE)).await;
        assert_eq!(rights(&channels), Rights::Stale);
        let look = channels.begin_look(CHANNEL).expect("there is one");
        assert_eq!(rights(&channels), Rights::Stale, "until it is made");
        drop(look);
        assert_eq!(rights(&channels), Rights::Unreadable);
        tokio::time::advance(RETRY).await;
        channels.begin_look(CHANNEL).expect("there is one").end();
        assert_eq!(rights(&channels), Rights::Known);
    }

    #[tokio::test]
    async fn a_look_says_nothing_of_who_has_subscribed_since() {
        let channels = Channels::default();
        let connection = connection(UserId(1));
        channels.enter(CHANNEL, &connection);
        let look = channels.begin_look(CHANNEL).expect("there is one");
        assert!(channels.is_still(CHANNEL, &look.subscribers[0]));
        channels.enter(CHANNEL, &connection);
        assert!(!channels.is_still(CHANNEL, &look.subscribers[0]));
    }

    #[tokio::test]
    async fn a_list_is_made_anew_when_something_has_changed() {
        let channels = Channels::default();
        let [a, b] = [connection(UserId(1)), connection(UserId(2))];
        channels.enter(CHANNEL, &a);
        let first = channels.of(CHANNEL);
        assert!(Arc::ptr_eq(&first, &channels.of(CHANNEL)));
        channels.want(CHANNEL, a.session, Deliver::Messages);
        assert!(!channels.enter(CHANNEL, &a), "it is there");
        assert_eq!((first[0].wants, channels.of(CHANNEL)[0].wants), (Deliver::Heads, Deliver::Messages));
        channels.want(CHANNEL, b.session, Deliver::Messages);
        assert!(!channels.has(CHANNEL, b.user) && channels.enter(CHANNEL, &b));
        assert_eq!((channels.of(CHANNEL).len(), channels.len()), (2, 2));
        channels.leave(CHANNEL, a.session);
        assert!(channels.has(CHANNEL, b.user) && !channels.has(CHANNEL, a.user));
        channels.leave(CHANNEL, b.session);
        assert_eq!((channels.of(CHANNEL).len(), channels.ids()), (0, Vec::new()));
    }
}
