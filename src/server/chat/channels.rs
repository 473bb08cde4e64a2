//! Large channels and who subscribes to them: what [`super::subscriptions`] keeps. No I/O.

use std::collections::HashMap;
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

/// Shortest time between two looks that are made since somebody has subscribed.
const BETWEEN: Duration = Duration::from_millis(500);

/// A connection that subscribes, and to what.
#[derive(Clone)]
pub(super) struct Subscriber {
    pub(super) connection: Arc<Connection>,
    pub(super) wants: Deliver,
}

/// How old the last look at the subscribers' rights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Young enough.
    Known,
    /// Young enough, and another one should be made meanwhile.
    Due,
    /// Nothing may be sent by it.
    Stale,
}

/// What came of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is new.
    New,
    /// It was there, for something else.
    Changed,
    /// It was there.
    Known,
}

struct Channel {
    subscribers: HashMap<SessionId, Subscriber>,
    /// The same as a list, made when somebody asks.
    listed: Option<Arc<[Subscriber]>>,
    /// When the last look began that found all of them to be members; those who came since were looked at one by one.
    looked_at: Instant,
    /// Whether somebody has subscribed since.
    has_new: bool,
    /// Whether a look is under way.
    is_looking: bool,
}

impl Channel {
    fn new() -> Self {
        Self {
            subscribers: HashMap::new(),
            listed: None,
            looked_at: clock::instant(),
            has_new: false,
            is_looking: false,
        }
    }

    fn list(&mut self) -> Arc<[Subscriber]> {
        let subscribers = &self.subscribers;
        Arc::clone(self.listed.get_or_insert_with(|| subscribers.values().cloned().collect()))
    }

    fn rights(&self) -> Rights {
        let age = clock::instant() - self.looked_at;
        if age >= STALE {
            return Rights::Stale;
        }
        let is_due = age >= DUE || self.has_new && age >= BETWEEN;
        if is_due && !self.is_looking { Rights::Due } else { Rights::Known }
    }
}

/// The channels of one server that have subscribers.
#[derive(Default)]
pub(super) struct Channels {
    channels: Mutex<HashMap<ConversationId, Channel>>,
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

    /// Enters a connection, or what it wants.
    pub(super) fn enter(&self, channel: ConversationId, connection: &Arc<Connection>, wants: Deliver) -> Entered {
        let mut channels = self.lock();
        let channel = channels.entry(channel).or_insert_with(Channel::new);
        let subscriber = Subscriber { connection: Arc::clone(connection), wants };
        match channel.subscribers.insert(connection.session, subscriber) {
            Some(old) if old.wants == wants => return Entered::Known,
            Some(_) => {
                channel.listed = None;
                return Entered::Changed;
            }
            None => {}
        }
        channel.listed = None;
        channel.has_new = true;
        Entered::New
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

    /// A look at the rights of a channel's subscribers begins; [`Self::end_look`] must follow. `None` where there are none.
    pub(super) fn begin_look(&self, channel: ConversationId) -> Option<(Arc<[Subscriber]>, Instant)> {
        let mut channels = self.lock();
        let channel = channels.get_mut(&channel)?;
        channel.has_new = false;
        channel.is_looking = true;
        Some((channel.list(), clock::instant()))
    }

    /// The look has ended. `began` where it was made.
    pub(super) fn end_look(&self, channel: ConversationId, began: Option<Instant>) {
        let mut channels = self.lock();
        let Some(channel) = channels.get_mut(&channel) else { return };
        channel.is_looking = false;
        match began {
            Some(began) => channel.looked_at = channel.looked_at.max(began),
            None => channel.has_new = true,
        }
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
    async fn rights_age_and_who_is_new_is_looked_at_soon() {
        let channels = Channels::default();
        assert!(channels.look(CHANNEL).is_none() && channels.begin_look(CHANNEL).is_none());
        let first = connection(UserId(1));
        assert_eq!(channels.enter(CHANNEL, &first, Deliver::Messages), Entered::New);
        assert_eq!(rights(&channels), Rights::Known, "it was looked at itself");
        tokio::time::advance(BETWEEN).await;
        assert_eq!(rights(&channels), Rights::Due, "it is new");
        let (looked, began) = channels.begin_look(CHANNEL).expect("there is one");
        assert_eq!((looked.len(), rights(&channels)), (1, Rights::Known), "one look at a time");
        channels.end_look(CHANNEL, Some(began));
        assert_eq!(rights(&channels), Rights::Known);
        tokio::time::advance(DUE).await;
        assert_eq!(rights(&channels), Rights::Due);
        channels.begin_look(CHANNEL);
        channels.end_look(CHANNEL, None);
        assert_eq!(rights(&channels), Rights::Due, "it could not be made");
        tokio::time::advance(STALE.saturating_sub(DUE)).await;
        assert_eq!(rights(&channels), Rights::Stale);
        let (_, began) = channels.begin_look(CHANNEL).expect("there is one");
        assert_eq!(rights(&channels), Rights::Stale, "until it is made");
        channels.end_look(CHANNEL, Some(began));
        assert_eq!(rights(&channels), Rights::Known);
    }

    #[tokio::test]
    async fn a_list_is_made_anew_when_something_has_changed() {
        let channels = Channels::default();
        let [a, b] = [connection(UserId(1)), connection(UserId(2))];
        channels.enter(CHANNEL, &a, Deliver::Heads);
        let first = channels.of(CHANNEL);
        assert!(Arc::ptr_eq(&first, &channels.of(CHANNEL)));
        assert_eq!(channels.enter(CHANNEL, &a, Deliver::Heads), Entered::Known);
        assert_eq!(channels.enter(CHANNEL, &a, Deliver::Messages), Entered::Changed);
        assert_eq!(channels.of(CHANNEL)[0].wants, Deliver::Messages);
        channels.enter(CHANNEL, &b, Deliver::Heads);
        assert_eq!((channels.of(CHANNEL).len(), channels.len()), (2, 2));
        channels.leave(CHANNEL, a.session);
        assert!(channels.has(CHANNEL, b.user) && !channels.has(CHANNEL, a.user));
        channels.leave(CHANNEL, b.session);
        assert_eq!((channels.of(CHANNEL).len(), channels.ids()), (0, Vec::new()));
    }
}
