//! From a client's request to its answer: membership, store, recipients, ACK.

use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::delivery::Delivery;
use super::fanout::Fanout;
use super::in_flight::InFlight;
use super::outbound::Outbound;
use super::refused::{Refused, members_for, retry_after_ms};
use super::requests::Waiting;
use super::session::Request;
use super::shared::Shared;
use super::subscriptions::Subscriptions;
use super::unannounced::Unannounced;
use super::uuids::{Use, Uuids};
use crate::backends::directory::Directory;
use crate::backends::error::BackendError;
use crate::protocol::api::Receipt;
use crate::protocol::frames::{AckFrame, ErrorFrame, ReceiptFrame, SendFrame, SendReceiptFrame, TypingFrame};
use crate::protocol::{ConversationId, ErrorCode, MessageFrame, ServerFrame};
use crate::runtime::{Tasks, clock};
use crate::server::Deps;
use crate::server::access::members::Members;
use crate::server::ordering::Ordering;
use crate::telemetry::{Counter, Metrics, Timer};

/// A request that is not done so long after it came is answered with an error; it may be done still. One that was not
/// begun by then is not done at all. Source: invariant I9, 5 s.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(4_500);

/// How often overdue ids are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// Longest that a change of members waits for the requests that are under way; it is told again then.
const IN_FLIGHT_WAIT_MAX: Duration = Duration::from_millis(1_500);

/// How long what came at some time may take from now on, if it may be begun at all.
fn time_left(arrived_us: u64) -> Option<Duration> {
    let waited = Duration::from_micros(clock::now_us() - arrived_us);
    REQUEST_TIMEOUT.checked_sub(waited).filter(|left| !left.is_zero())
}

/// Answers the requests of one server's connections.
pub(super) struct Sender {
    outbound: Arc<Outbound>,
    subscriptions: Arc<Subscriptions>,
    fanout: Fanout,
    members: Arc<Members>,
    ordering: Ordering,
    directory: Arc<dyn Directory>,
    unannounced: Unannounced,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    /// Requests of one connection that may wait or be under way.
    of_a_connection_max: usize,
    in_flight: InFlight,
    uuids: Uuids,
}

impl Sender {
    /// A connection may have so many requests at once.
    pub(super) fn new(
        deps: &Deps,
        shared: &Shared,
        subscriptions: Arc<Subscriptions>,
        delivery: Arc<Delivery>,
        of_a_connection_max: usize,
    ) -> Self {
        Self {
            outbound: Arc::clone(&shared.outbound),
            subscriptions,
            fanout: Fanout::new(deps, shared, delivery),
            members: Arc::clone(&shared.members),
            ordering: Ordering::new(&deps.backends, &deps.metrics),
            directory: Arc::clone(&deps.backends.directory),
            unannounced: Unannounced::new(deps, shared),
            tasks: deps.tasks.clone(),
            metrics: Arc::clone(&deps.metrics),
            of_a_connection_max,
            in_flight: InFlight::default(),
            uuids: Uuids::default(),
        }
    }

    /// Conversations in which something is under way, for tests.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.in_flight.len()
    }

    /// Gives a request to a worker, which lives only while there is work; reading never waits for it.
    pub(super) fn enqueue(self: &Arc<Self>, connection: &Arc<Connection>, request: Request) {
        let mut slot = connection.requests();
        let requests = slot.get_or_insert_with(Box::default);
        if requests.len() >= self.of_a_connection_max {
            let room_after_ms = requests.refuse(&request, clock::now_us()).as_millis() as u64;
            drop(slot);
            let frame = ErrorFrame {
                uuid: request.uuid(),
                code: ErrorCode::Overloaded,
                message: "too many requests of this connection are waiting".to_owned(),
                // Not all at once: those that were refused together differ by what is drawn.
                retry_after_ms: Some(room_after_ms + retry_after_ms()),
            };
            return self.outbound.reply(connection, &ServerFrame::Error(frame));
        }
        let begun = requests.take(Waiting { request, arrived_us: clock::now_us() });
        drop(slot);
        if let Some(first) = begun {
            let (sender, shared) = (Arc::clone(self), Arc::clone(connection));
            self.tasks.spawn("chat.worker", async move { sender.work(shared, first).await });
        }
    }

    async fn work(self: Arc<Self>, connection: Arc<Connection>, first: Waiting) {
        let mut next = Some(first);
        while let Some(waiting) = next {
            let conversation = waiting.request.conversation();
            if connection.socket.is_open() {
                self.handle(&connection, waiting).await;
            } else {
                self.drop_unbegun(&waiting);
            }
            let mut slot = connection.requests();
            next = slot.as_mut().and_then(|requests| requests.next(conversation));
            slot.take_if(|requests| requests.is_idle());
        }
    }

    /// Drops what waited on a connection that is closing: the right to it may have ended with it, and nobody hears of
    /// it. It has no effect; whoever sent it sends it again.
    fn drop_unbegun(&self, waiting: &Waiting) {
        if waiting.request.uuid().is_some() {
            self.metrics.count(Counter::SendsFailed);
        }
    }

    async fn handle(&self, connection: &Arc<Connection>, waiting: Waiting) {
        let Waiting { request, arrived_us } = waiting;
        let uuid = request.uuid();
        // Before the members are looked at: a removal waits for what goes by the list as it was.
        let _entered = self.in_flight.enter(request.conversation(), connection.user);
        let done = match request {
            Request::Send(frame) => self.send(connection, frame, arrived_us).await.map(Some),
            Request::Typing(conversation) => {
                self.in_time(connection, arrived_us, self.typing(connection, conversation)).await
            }
            Request::Receipt(frame) => self.in_time(connection, arrived_us, self.receipt(connection, frame)).await,
            Request::Subscribe(asked) => {
                self.in_time(connection, arrived_us, self.subscriptions.subscribe(connection, asked)).await
            }
            Request::Unsubscribe(channel) => {
                // Never too late: nobody gets anything by it.
                self.subscriptions.remove(connection, channel).await;
                Ok(None)
            }
        };
        match done {
            Ok(Some(ack)) => self.outbound.reply(connection, &ServerFrame::Ack(ack)),
            Ok(None) => {}
            Err(refused) => self.outbound.reply(connection, &refused.into_frame(uuid)),
        }
    }

    /// Does what came at some time, unless it is too late to begin. What is begun goes to its end, so that nothing is
    /// left half done; where that takes too long the client is answered before.
    async fn in_time(
        &self,
        from: &Arc<Connection>,
        arrived_us: u64,
        work: impl Future<Output = Result<(), Refused>>,
    ) -> Result<Option<AckFrame>, Refused> {
        let left = time_left(arrived_us).ok_or_else(Refused::too_late)?;
        let mut work = std::pin::pin!(work);
        if let Ok(done) = tokio::time::timeout(left, work.as_mut()).await {
            return done.map(|()| None);
        }
        self.outbound.reply(from, &Refused::unanswered().into_frame(None));
        // How it ends is not told twice.
        let _ = work.await;
        Ok(None)
    }

    /// Stores a message and sends it on its way. On `Ok` both are done.
    async fn send(&self, from: &Arc<Connection>, frame: SendFrame, arrived_us: u64) -> Result<AckFrame, Refused> {
        let used = self.uuids.claim(from.user, frame.uuid, frame.conversation);
        if used == Use::Elsewhere {
            self.metrics.count(Counter::SendsFailed);
            return Err(Refused::uuid_elsewhere());
        }
        let timed_out = || Err(BackendError::timed_out("send").into());
        let result = match time_left(arrived_us) {
            Some(left) => {
                tokio::time::timeout(left, self.store_and_fan_out(from, &frame)).await.unwrap_or_else(|_| timed_out())
            }
            None => Err(Refused::too_late()),
        };
        match result {
            Ok(message) => {
                self.metrics.count(Counter::SendsAcked);
                self.metrics.time_us(Timer::Send, clock::now_us() - arrived_us);
                let MessageFrame { uuid, conversation, id, at, .. } = message;
                Ok(AckFrame { uuid, conversation, id, at })
            }
            Err(refused) => {
                if used == Use::New && refused.code.is_definite() {
                    self.uuids.give_back(from.user, frame.uuid);
                }
                self.metrics.count(Counter::SendsFailed);
                Err(refused)
            }
        }
    }

    async fn store_and_fan_out(&self, from: &Arc<Connection>, frame: &SendFrame) -> Result<MessageFrame, Refused> {
        let members = members_for(&self.members, from.user, frame.conversation).await?;
        if let Some(answered) = frame.reply_to
            && !self.ordering.is_stored(frame.conversation, answered).await.map_err(Refused::unread)?
        {
            let message = format!("reply_to: there is no message {answered} in {}", frame.conversation);
            return Err(Refused::definite(ErrorCode::NotFound, message));
        }
        let message = self.ordering.store(from.user, frame).await?;
        let announcing = self.unannounced.begin(from.session, &message);
        self.fanout.send(from.session, &message, &members).await.map_err(Refused::unannounced)?;
        announcing.done();
        Ok(message)
    }

    async fn typing(&self, from: &Arc<Connection>, conversation: ConversationId) -> Result<(), Refused> {
        let members = members_for(&self.members, from.user, conversation).await?;
        let frame = ServerFrame::Typing(TypingFrame { conversation, user: from.user });
        self.fanout.tell_others(from.session, conversation, &members, &frame).await;
        Ok(())
    }

    async fn receipt(&self, from: &Arc<Connection>, frame: SendReceiptFrame) -> Result<(), Refused> {
        let SendReceiptFrame { conversation, status, upto } = frame;
        let members = members_for(&self.members, from.user, conversation).await?;
        if upto.0 == 0 || !self.ordering.is_given_out(conversation, upto).await? {
            let message = format!("upto: there is no message {upto} in {conversation} yet");
            return Err(Refused::definite(ErrorCode::BadRequest, message));
        }
        let receipt = Receipt { user: from.user, status, upto };
        if !self.directory.raise_receipt(conversation, &receipt).await? {
            // A higher one is known; what was said before is not said again.
            return Ok(());
        }
        let frame = ServerFrame::Receipt(ReceiptFrame { conversation, user: from.user, status, upto });
        self.fanout.tell_others(from.session, conversation, &members, &frame).await;
        Ok(())
    }

    /// Waits for the requests under way of those who are no members any more, the ones that passed the door while they
    /// were. Returns whether they have ended; false also where the members can't be read.
    pub(super) async fn former_members_ended(&self, conversation: ConversationId) -> bool {
        let users = self.in_flight.users(conversation);
        if users.is_empty() {
            return true;
        }
        let Ok(members) = self.members.among(conversation, &users).await else { return false };
        let ended = self.in_flight.ended(conversation, |user| users.contains(&user) && !members.contains(&user));
        tokio::time::timeout(IN_FLIGHT_WAIT_MAX, ended).await.is_ok()
    }

    /// Publishes what could not be published before. Inputs: what waits, the clock.
    pub(super) async fn unannounced_loop(self: Arc<Self>) {
        self.unannounced.publish_loop().await;
    }

    /// Voids ids that were reserved and never filled. Inputs: the clock.
    pub(super) async fn sweep_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.ordering.sweep().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, send_frame, written};
    use super::*;
    use crate::backends::layers::{Layer, Layered, Pace};
    use crate::protocol::frames::{Deliver, ReceiptStatus, SubscribeFrame};
    use crate::protocol::{CloseCode, MessageFrame, MessageId, UserId};
    use crate::server::bench::Gate;

    fn waiting(frame: &SendFrame) -> Waiting {
        Waiting { request: Request::Send(frame.clone()), arrived_us: clock::now_us() }
    }

    /// The one answer to a request: the id of an ACK, or the code of an error.
    async fn answer(sender: &Sender, connection: &Arc<Connection>, waiting: Waiting) -> Result<MessageId, ErrorCode> {
        sender.handle(connection, waiting).await;
        match &written(connection).0[..] {
            [ServerFrame::Ack(ack)] => Ok(ack.id),
            [ServerFrame::Error(error)] => Err(error.code),
            other => panic!("not an answer: {other:?}"),
        }
    }

    async fn talks<const N: usize>(bench: &Bench, user: UserId) -> [ConversationId; N] {
        let mut talks = [ConversationId(0); N];
        for talk in &mut talks {
            *talk = bench.group(&[user]).await;
        }
        talks
    }

    #[tokio::test]
    async fn what_is_refused_definitely_gives_its_uuid_back() {
        let bench = Bench::new().await;
        let sender = bench.sender();
        let [user] = bench.users().await;
        let [here, there] = talks(&bench, user).await;
        let connection = bench.enter(user);
        let frame = SendFrame { reply_to: Some(MessageId(9)), ..send_frame(here) };
        assert_eq!(answer(&sender, &connection, waiting(&frame)).await, Err(ErrorCode::NotFound));
        let frame = SendFrame { reply_to: None, conversation: there, ..frame };
        assert_eq!(answer(&sender, &connection, waiting(&frame)).await, Ok(MessageId(1)));
        assert_eq!(answer(&sender, &connection, waiting(&frame)).await, Ok(MessageId(1)), "a retry");
        let frame = SendFrame { conversation: here, ..frame };
        assert_eq!(answer(&sender, &connection, waiting(&frame)).await, Err(ErrorCode::Conflict));
        assert_eq!(sender.metrics.counted(Counter::SendsFailed), 2);
    }

    #[tokio::test]
    async fn what_is_not_refused_definitely_keeps_its_uuid() {
        let bench = Bench::new().await;
        let sender = bench.sender();
        let [user] = bench.users().await;
        let [here, there] = talks(&bench, user).await;
        let connection = bench.enter(user);
        let frame = send_frame(here);
        tokio::time::pause();
        let late = waiting(&frame);
        tokio::time::advance(REQUEST_TIMEOUT).await;
        tokio::time::resume();
        assert_eq!(answer(&sender, &connection, late).await, Err(ErrorCode::Unavailable));
        let frame = SendFrame { conversation: there, ..frame };
        assert_eq!(answer(&sender, &connection, waiting(&frame)).await, Err(ErrorCode::Conflict));
    }

    #[tokio::test]
    async fn a_connection_has_so_many_requests_at_once_and_the_others_are_asked_back_later() {
        let bench = Bench::new().await;
        let sender = bench.sender();
        let [user] = bench.users().await;
        let [talk] = talks(&bench, user).await;
        let connection = bench.enter(user);
        let frames = [(); 3].map(|()| send_frame(talk));
        for frame in &frames {
            // The worker does nothing before this test waits.
            sender.enqueue(&connection, Request::Send(frame.clone()));
        }
        let (refused, _) = written(&connection);
        let [ServerFrame::Error(refused)] = &refused[..] else { panic!("one is refused: {refused:?}") };
        assert_eq!((refused.uuid, refused.code), (Some(frames[2].uuid), ErrorCode::Overloaded));
        assert!(refused.retry_after_ms.is_some_and(|ms| ms > 0));
        let mut acked = Vec::new();
        while acked.len() < 2 {
            connection.socket.news().await;
            acked.extend(written(&connection).0);
        }
        let uuid = |frame: &ServerFrame| if let ServerFrame::Ack(ack) = frame { Some(ack.uuid) } else { None };
        assert_eq!(acked.iter().map(uuid).collect::<Vec<_>>(), [Some(frames[0].uuid), Some(frames[1].uuid)]);
    }

    #[tokio::test]
    async fn a_removal_waits_for_what_the_former_member_has_under_way() {
        let bench = Bench::new().await;
        let sender = bench.sender();
        let [stays, leaves] = bench.users().await;
        let talk = bench.group(&[stays, leaves]).await;
        let (_of_a_member, under_way) = (sender.in_flight.enter(talk, stays), sender.in_flight.enter(talk, leaves));
        assert!(sender.former_members_ended(talk).await, "both are members");
        bench.deps.backends.directory.remove_member(talk, leaves).await.expect("removes");
        bench.shared.members.invalidate(talk);
        assert!(!sender.former_members_ended(talk).await, "it is still under way");
        drop(under_way);
        assert!(sender.former_members_ended(talk).await);
    }

    fn came(request: Request) -> Waiting {
        Waiting { request, arrived_us: clock::now_us() }
    }

    fn read_upto(conversation: ConversationId, upto: MessageId) -> Request {
        Request::Receipt(SendReceiptFrame { conversation, status: ReceiptStatus::Read, upto })
    }

    /// A message of a user who is connected.
    async fn said(bench: &Bench) -> (ConversationId, MessageFrame, Arc<Connection>) {
        let [user] = bench.users().await;
        let [talk] = talks(bench, user).await;
        (talk, bench.say(talk, user).await, bench.enter(user))
    }

    #[tokio::test]
    async fn whatever_waited_too_long_is_refused_and_not_done() {
        let bench = Bench::new().await;
        let sender = bench.sender();
        let (talk, message, connection) = said(&bench).await;
        let subscribe = SubscribeFrame { conversation: talk, deliver: Deliver::Heads };
        for request in [Request::Typing(talk), read_upto(talk, message.id), Request::Subscribe(subscribe)] {
            tokio::time::pause();
            let late = came(request);
            tokio::time::advance(REQUEST_TIMEOUT).await;
            tokio::time::resume();
            assert_eq!(answer(&sender, &connection, late).await, Err(ErrorCode::Unavailable));
        }
        let receipts = sender.directory.receipts(talk, UserId(0), 10).await.expect("reads");
        assert_eq!((receipts, sender.subscriptions.len()), (Vec::new(), 0));
    }

    #[tokio::test]
    async fn what_takes_too_long_is_answered_before_and_done_all_the_same() {
        let mut bench = Bench::new().await;
        let gate = Gate::new("directory.raise_receipt");
        let layer = Layer::Paced(Arc::clone(&gate) as Arc<dyn Pace>);
        let directory = Arc::clone(&bench.deps.backends.directory);
        bench.deps.backends.directory = Arc::new(Layered::<dyn Directory>::new(directory, layer));
        let sender = bench.sender();
        let (talk, message, connection) = said(&bench).await;
        let mut handling = Box::pin(sender.handle(&connection, came(read_upto(talk, message.id))));
        tokio::select! {
            () = &mut handling => panic!("it is held up"),
            () = gate.reached() => {}
        }
        tokio::time::pause();
        tokio::time::advance(REQUEST_TIMEOUT).await;
        tokio::time::resume();
        tokio::select! {
            () = &mut handling => panic!("it is held up"),
            () = connection.socket.news() => {}
        }
        let (told, _) = written(&connection);
        assert!(matches!(&told[..], [ServerFrame::Error(e)] if e.code == ErrorCode::Unavailable), "{told:?}");
        gate.open();
        handling.await;
        assert_eq!(written(&connection).0, []);
        let receipts = sender.directory.receipts(talk, UserId(0), 10).await.expect("reads");
        assert_eq!(receipts.len(), 1);
    }

    #[tokio::test]
    async fn what_waits_when_its_connection_closes_is_not_done() {
        let bench = Bench::new().await;
        let sender = bench.sender();
        let (talk, message, connection) = said(&bench).await;
        sender.enqueue(&connection, Request::Send(send_frame(talk)));
        sender.enqueue(&connection, read_upto(talk, message.id));
        // The worker does nothing before this test waits.
        sender.outbound.close(&connection, CloseCode::LoggedOut);
        while connection.requests().is_some() {
            tokio::task::yield_now().await;
        }
        let newest = bench.deps.backends.messages.read_back(talk, MessageId(u64::MAX), 10).await.expect("reads");
        assert_eq!(newest.iter().map(|stored| stored.id).collect::<Vec<_>>(), [message.id]);
        assert_eq!(sender.directory.receipts(talk, UserId(0), 10).await.expect("reads"), []);
        assert_eq!(sender.metrics.counted(Counter::SendsFailed), 1);
    }
}
