//! From the records of large channels to their subscribers: the message itself, encoded once, or a `head` in its place.
//!
//! | who | gets |
//! |---|---|
//! | who asked for messages | each, except the session that sent it |
//! | the same, where the channel passes its rate, or this server is behind | heads |
//! | the same, who reads slowly | heads, until its socket has room |
//! | who asked for heads | heads |
//!
//! A head names the newest id that was not sent; heads are coalesced ([`HEAD_INTERVAL`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

use super::channels::{Rights, Subscriber};
use super::connection::Connection;
use super::deliverer::Deliverer;
use super::outbound::{Outbound, Writes};
use super::subscriptions::Subscriptions;
use crate::protocol::frames::{Deliver, HeadFrame};
use crate::protocol::{ConversationId, MessageId, ServerFrame, SessionId, websocket};
use crate::runtime::{Tasks, clock};
use crate::server::Deps;
use crate::server::inbox::InboxHeader;
use crate::telemetry::{Counter, Metrics, Timer};

/// How often heads are passed on: a busy channel costs each subscriber this many frames at most.
pub(super) const HEAD_INTERVAL: Duration = Duration::from_millis(50);

/// Age of a record at which this server counts as behind: messages would only put it behind further. Of two machines' clocks,
/// which may differ by less.
const BEHIND: Duration = Duration::from_secs(3);

/// Of a connection's bytes that may wait, the part that messages of channels may take.
const ROOM_SHARE: usize = 4;

/// Subscribers that are written to before other tasks have their turn.
const TURN: usize = 128;

/// Most of one channel that a subscriber is sent in a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct RateMax {
    pub(super) messages: u32,
    pub(super) bytes: u64,
}

/// What one channel had in the second that runs.
#[derive(Default)]
struct Spent {
    messages: u32,
    bytes: u64,
}

/// The second that runs, with what was spent in it.
#[derive(Default)]
struct Second {
    number: u64,
    spent: HashMap<ConversationId, Spent>,
}

/// What is not passed on yet; 0 for nothing.
#[derive(Default)]
struct News {
    /// The newest, for those who want heads.
    newest: MessageId,
    /// The newest that those did not get who want messages.
    missed: MessageId,
}

/// A connection that reads slowly.
struct Slow {
    connection: Arc<Connection>,
    /// The newest of a channel that it did not get.
    missed: MessageId,
}

/// Passes channels on to the connections of one server.
pub(super) struct ChannelFeed {
    outbound: Arc<Outbound>,
    subscriptions: Arc<Subscriptions>,
    deliverer: Deliverer,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    rate_max: RateMax,
    second: Mutex<Second>,
    news: Mutex<HashMap<ConversationId, News>>,
    slow: Mutex<HashMap<(ConversationId, SessionId), Slow>>,
}

impl ChannelFeed {
    /// To the subscribers of one server.
    pub(super) fn new(
        deps: &Deps,
        outbound: Arc<Outbound>,
        subscriptions: Arc<Subscriptions>,
        deliverer: Deliverer,
        rate_max: RateMax,
    ) -> Self {
        Self {
            outbound,
            subscriptions,
            deliverer,
            tasks: deps.tasks.clone(),
            metrics: Arc::clone(&deps.metrics),
            rate_max,
            second: Mutex::default(),
            news: Mutex::default(),
            slow: Mutex::default(),
        }
    }

    fn news(&self) -> MutexGuard<'_, HashMap<ConversationId, News>> {
        self.news.lock().expect("no panic while held")
    }

    /// Passes a message on. Returns false, and does nothing, where the subscribers' rights have to be looked at first.
    pub(super) async fn pass(&self, writes: &mut Writes, header: &InboxHeader, frame: &Bytes, age: Duration) -> bool {
        let Some((subscribers, rights)) = self.subscriptions.look(header.conversation) else { return true };
        let rights = if self.deliverer.ignores_removals() { Rights::Known } else { rights };
        if rights == Rights::Due {
            self.look_meanwhile(header.conversation);
        }
        // A head says nothing that needs a right.
        if age >= BEHIND || rights == Rights::Unreadable {
            self.skip(header, &subscribers);
            return true;
        }
        if rights == Rights::Stale {
            return false;
        }
        self.send(writes, header, frame, age, &subscribers).await;
        true
    }

    fn look_meanwhile(&self, channel: ConversationId) {
        let subscriptions = Arc::clone(&self.subscriptions);
        // One that fails is made again after a while; when it is too late messages wait for it.
        let look = async move { _ = subscriptions.look_at_rights(channel).await };
        self.tasks.spawn_until_stopped("chat.channel_rights", look);
    }

    /// The same, with a look at the rights where one is needed. Where that fails nobody gets a message who may have no right to it.
    pub(super) async fn pass_after_a_look(&self, header: &InboxHeader, frame: &Bytes, age: Duration) {
        if self.pass(&mut Writes::direct(), header, frame, age).await {
            return;
        }
        let looked = self.subscriptions.look_at_rights(header.conversation).await;
        if looked.is_err() || !self.pass(&mut Writes::direct(), header, frame, age).await {
            self.skip(header, &self.subscriptions.of(header.conversation));
        }
    }

    /// Tells of a message in place of sending it.
    fn skip(&self, header: &InboxHeader, subscribers: &[Subscriber]) {
        let wants_it =
            |one: &&Subscriber| one.wants == Deliver::Messages && header.except != Some(one.connection.session);
        let skipped = subscribers.iter().filter(wants_it).count();
        self.metrics.add(Counter::ChannelMessagesSkipped, skipped as u64);
        self.tell(header.conversation, header.id);
    }

    async fn send(
        &self,
        writes: &mut Writes,
        header: &InboxHeader,
        frame: &Bytes,
        age: Duration,
        subscribers: &[Subscriber],
    ) {
        let (channel, id) = (header.conversation, header.id);
        if !self.has_rate(channel, frame.len()) {
            return self.skip(header, subscribers);
        }
        let (mut sent, mut wants_head) = (0, false);
        for (n, Subscriber { connection, wants, .. }) in subscribers.iter().enumerate() {
            if n % TURN == TURN - 1 {
                // Others have their turn: the answer to who said it, for one.
                tokio::task::yield_now().await;
            }
            match wants {
                Deliver::Heads => wants_head = true,
                Deliver::Messages if header.except == Some(connection.session) => {}
                Deliver::Messages => {
                    let has_room = || self.outbound.has_room(connection, frame.len(), ROOM_SHARE);
                    if !has_room() {
                        // What waits may only be gathered.
                        self.outbound.write(writes);
                    }
                    if has_room() {
                        self.deliverer.deliver(writes, connection, frame);
                        sent += 1;
                    } else {
                        self.tell_later(channel, connection, id);
                    }
                }
            }
        }
        self.metrics.add(Counter::Deliveries, sent);
        self.metrics.time_us(Timer::Fanout, age.as_micros() as u64);
        if wants_head {
            self.note(channel, |news| &mut news.newest, id);
        }
    }

    /// Whether a channel may send one more message in this second.
    fn has_rate(&self, channel: ConversationId, bytes: usize) -> bool {
        let mut second = self.second.lock().expect("no panic while held");
        let number = clock::now_us() / 1_000_000;
        if second.number != number {
            second.number = number;
            second.spent.clear();
        }
        let spent = second.spent.entry(channel).or_default();
        spent.messages += 1;
        spent.bytes += bytes as u64;
        spent.messages <= self.rate_max.messages && (spent.bytes <= self.rate_max.bytes || spent.messages == 1)
    }

    fn tell_later(&self, channel: ConversationId, connection: &Arc<Connection>, id: MessageId) {
        self.metrics.count(Counter::ChannelMessagesSkipped);
        let mut slow = self.slow.lock().expect("no panic while held");
        let entry = slow.entry((channel, connection.session));
        let entry = entry.or_insert_with(|| Slow { connection: Arc::clone(connection), missed: id });
        entry.missed = entry.missed.max(id);
    }

    /// Has all subscribers of a channel told by a head.
    pub(super) fn tell(&self, channel: ConversationId, id: MessageId) {
        self.note(channel, |news| &mut news.newest, id);
        self.note(channel, |news| &mut news.missed, id);
    }

    fn note(&self, channel: ConversationId, which: impl Fn(&mut News) -> &mut MessageId, id: MessageId) {
        let mut news = self.news();
        let noted = which(news.entry(channel).or_default());
        if noted.0 > 0 {
            self.metrics.count(Counter::HeadsCoalesced);
        }
        *noted = (*noted).max(id);
    }

    /// Passes heads on. Inputs: the clock.
    pub(super) async fn head_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HEAD_INTERVAL).await;
            self.pass_heads();
        }
    }

    fn pass_heads(&self) {
        let all = std::mem::take(&mut *self.news());
        for (conversation, News { newest, missed }) in all {
            let (newest_frame, missed_frame) = (head_frame(conversation, newest), head_frame(conversation, missed));
            for Subscriber { connection, wants, .. } in self.subscriptions.of(conversation).iter() {
                match wants {
                    Deliver::Heads if newest.0 > 0 => self.outbound.push(connection, newest_frame.clone()),
                    Deliver::Messages if missed.0 > 0 => self.outbound.push(connection, missed_frame.clone()),
                    Deliver::Heads | Deliver::Messages => {}
                }
            }
        }
        self.slow.lock().expect("no panic while held").retain(|(conversation, _), Slow { connection, missed }| {
            let is_subscriber = connection.subscriptions().contains(conversation);
            if !is_subscriber || !connection.socket.is_open() {
                return false;
            }
            let head = head_frame(*conversation, *missed);
            // With some more room than one frame needs, so that what follows finds it as well.
            let has_room = self.outbound.has_room(connection, head.len(), 2 * ROOM_SHARE);
            if has_room {
                self.outbound.push(connection, head);
            }
            !has_room
        });
    }
}

fn head_frame(conversation: ConversationId, id: MessageId) -> Bytes {
    let head = ServerFrame::Head(HeadFrame { conversation, id });
    websocket::text_frame(&head.encode(), None).into()
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, connection, written};
    use super::*;
    use crate::protocol::frames::SubscribeFrame;
    use crate::protocol::{MessageFrame, UserId};

    const NOW: Duration = Duration::ZERO;

    /// A channel, its feed, and a subscriber who wants messages and one who wants heads.
    struct Scene {
        bench: Bench,
        feed: Arc<ChannelFeed>,
        channel: ConversationId,
        users: [UserId; 2],
        wants_messages: Arc<Connection>,
        wants_heads: Arc<Connection>,
    }

    impl Scene {
        async fn new() -> Self {
            let bench = Bench::new().await;
            let feed = bench.channel_feed(bench.subscriptions());
            let users = bench.users().await;
            let channel = bench.group(&users).await;
            let [wants_messages, wants_heads] = users.map(|user| bench.enter(user));
            for (connection, deliver) in [(&wants_messages, Deliver::Messages), (&wants_heads, Deliver::Heads)] {
                let asked = SubscribeFrame { conversation: channel, deliver };
                feed.subscriptions.subscribe(connection, asked).await.expect("a member");
            }
            Self { bench, feed, channel, users, wants_messages, wants_heads }
        }

        fn message(&self, id: u64, bytes: usize) -> MessageFrame {
            MessageFrame {
                conversation: self.channel,
                id: MessageId(id),
                uuid: uuid::Uuid::from_u128(id.into()),
                sender: self.users[1],
                kind: "text".to_owned(),
                body: "x".repeat(bytes),
                reply_to: None,
                at: 0,
            }
        }

        fn record(&self, id: u64, bytes: usize, except: Option<SessionId>) -> (InboxHeader, Bytes) {
            InboxHeader::parse(&InboxHeader::payload(&self.message(id, bytes), except)).expect("one of ours")
        }

        async fn pass(&self, id: u64, bytes: usize, age: Duration) -> bool {
            let (header, frame) = self.record(id, bytes, None);
            self.feed.pass(&mut Writes::direct(), &header, &frame, age).await
        }

        /// What each was sent, heads that are due included: who wants messages, and who wants heads.
        fn sent(&self) -> (Vec<ServerFrame>, Vec<ServerFrame>) {
            self.feed.pass_heads();
            (written(&self.wants_messages).0, written(&self.wants_heads).0)
        }

        const fn head(&self, id: u64) -> ServerFrame {
            ServerFrame::Head(HeadFrame { conversation: self.channel, id: MessageId(id) })
        }
    }

    #[tokio::test]
    async fn each_subscriber_gets_what_it_asked_for() {
        let scene = Scene::new().await;
        // What was published in another order than it was stored.
        for id in [3, 2] {
            assert!(scene.pass(id, 5, NOW).await);
        }
        let messages = [3, 2].map(|id| ServerFrame::Message(scene.message(id, 5))).to_vec();
        assert_eq!(scene.sent(), (messages, vec![scene.head(3)]));
        assert_eq!(scene.sent(), (Vec::new(), Vec::new()));
        assert_eq!(scene.feed.metrics.counted(Counter::HeadsCoalesced), 1);
        assert_eq!(scene.feed.metrics.counted(Counter::Deliveries), 2);
        let (header, frame) = scene.record(4, 5, Some(scene.wants_messages.session));
        assert!(scene.feed.pass(&mut Writes::direct(), &header, &frame, NOW).await);
        assert_eq!(scene.sent(), (Vec::new(), vec![scene.head(4)]), "not the session that sent it");
    }

    #[tokio::test]
    async fn past_its_rate_and_when_the_server_is_behind_heads_come_in_place_of_messages() {
        let scene = Scene::new().await;
        scene.pass(1, 5, BEHIND).await;
        assert_eq!(scene.sent(), (vec![scene.head(1)], vec![scene.head(1)]));
        for id in 2..=9 {
            scene.pass(id, 5, NOW).await;
        }
        let (messages, heads) = scene.sent();
        // A second may have ended meanwhile, and another three were sent.
        let sent = messages.iter().filter(|frame| matches!(frame, ServerFrame::Message(_))).count();
        assert!(sent == 3 && messages.last() == Some(&scene.head(9)) || sent >= 4, "{messages:?}");
        assert_eq!(heads, [scene.head(9)]);
        assert!(scene.feed.metrics.counted(Counter::ChannelMessagesSkipped) >= 2);
    }

    #[tokio::test]
    async fn who_reads_slowly_is_told_when_there_is_room_again() {
        let scene = Scene::new().await;
        let filler = ServerFrame::Message(scene.message(90, (1 << 20) / ROOM_SHARE));
        scene.bench.shared.outbound.reply(&scene.wants_messages, &filler);
        for id in [1, 2] {
            scene.pass(id, 5, NOW).await;
        }
        scene.feed.pass_heads();
        assert_eq!(written(&scene.wants_messages).0, [filler], "no room");
        assert_eq!(scene.sent().0, [scene.head(2)]);
        assert_eq!((scene.sent().0, scene.feed.slow.lock().expect("no panic").len()), (Vec::new(), 0));
    }

    #[tokio::test]
    async fn a_message_is_never_sent_by_rights_that_were_looked_at_long_ago() {
        let scene = Scene::new().await;
        let directory = &scene.bench.deps.backends.directory;
        directory.remove_member(scene.channel, scene.wants_messages.user).await.expect("removes");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!scene.pass(1, 5, NOW).await);
        let (header, frame) = scene.record(1, 5, None);
        tokio::time::resume();
        scene.feed.pass_after_a_look(&header, &frame, NOW).await;
        assert_eq!(scene.sent(), (Vec::new(), vec![scene.head(1)]));
        assert!(scene.wants_messages.subscriptions().is_empty());
        assert!(scene.pass(2, 5, NOW).await, "one look is for all that wait");
    }

    #[tokio::test]
    async fn rights_are_looked_at_while_the_server_is_behind_too() {
        let scene = Scene::new().await;
        let directory = &scene.bench.deps.backends.directory;
        directory.remove_member(scene.channel, scene.wants_messages.user).await.expect("removes");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::time::resume();
        scene.pass(1, 5, BEHIND).await;
        let is_found = async {
            while !scene.wants_messages.subscriptions().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), is_found).await.expect("who was removed is found");
    }

    #[tokio::test]
    async fn an_ended_connection_is_forgotten() {
        let scene = Scene::new().await;
        let gone = connection(scene.users[0]);
        scene.feed.tell_later(scene.channel, &gone, MessageId(1));
        scene.feed.pass_heads();
        assert_eq!((written(&gone).0, scene.feed.slow.lock().expect("no panic").len()), (Vec::new(), 0));
    }
}
