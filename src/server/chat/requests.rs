//! A connection's requests that wait for engines: in order within a conversation, and side by side between conversations.
//!
//! One conversation that is stuck, behind an engine that is slow for it, holds up neither the others nor the socket. A request's
//! time runs from its arrival, however long it waited here.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::session::Request;
use crate::protocol::ConversationId;

/// Conversations that one connection may have under way at once.
const AT_ONCE_MAX: usize = 8;

/// Longest that a client is asked to wait until there is room.
const ROOM_AFTER_MAX: Duration = Duration::from_secs(10);

/// Refused messages of one connection that are remembered.
const REFUSED_MAX: usize = 4_096;

/// A request, and when it came.
#[derive(Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) request: Request,
    /// On [`crate::runtime::clock::now_us`].
    pub(super) arrived_us: u64,
}

/// What waits, and what is under way. A connection has one only while something does.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    /// Each has one request under way. An array: most connections have one at a time, and none waits.
    busy: [Option<ConversationId>; AT_ONCE_MAX],
    /// Messages that were refused for want of room and did not come again yet.
    refused: BTreeSet<Uuid>,
}

impl Requests {
    /// Refuses a request for which there is no room. Returns when its client may come back: when half of what waits, here and at the
    /// client, should be done at the pace of now. Refusing must not become the work, and there must always be some to do.
    pub(super) fn refuse(&mut self, request: &Request, now_us: u64) -> Duration {
        if let Some(uuid) = request.uuid()
            && self.refused.len() < REFUSED_MAX
        {
            self.refused.insert(uuid);
        }
        // As many as are here were done while the oldest waited.
        let oldest_us = self.waiting.front().map_or(0, |oldest| now_us.saturating_sub(oldest.arrived_us));
        let here = self.len().max(1) as u64;
        let all = here + self.refused.len() as u64;
        Duration::from_micros(oldest_us.saturating_mul(all) / here / 2).min(ROOM_AFTER_MAX)
    }

    /// Takes a request that has come. Returns it where it can be done at once; then [`Requests::next`] ends it.
    pub(super) fn take(&mut self, waiting: Waiting) -> Option<Waiting> {
        if let Some(uuid) = waiting.request.uuid().filter(|_| !self.refused.is_empty()) {
            self.refused.remove(&uuid);
        }
        let conversation = Some(waiting.request.conversation());
        if !self.busy.contains(&conversation)
            && let Some(place) = self.busy.iter_mut().find(|place| place.is_none())
        {
            *place = conversation;
            return Some(waiting);
        }
        self.waiting.push_back(waiting);
        None
    }

    /// Ends a request of a conversation; returns the one to do in its stead, of this conversation or of another.
    pub(super) fn next(&mut self, done: ConversationId) -> Option<Waiting> {
        let place = self.busy.iter().position(|busy| *busy == Some(done))?;
        self.busy[place] = None;
        let is_free = |waiting: &Waiting| !self.busy.contains(&Some(waiting.request.conversation()));
        let next = self.waiting.iter().position(is_free).and_then(|at| self.waiting.remove(at))?;
        self.busy[place] = Some(next.request.conversation());
        Some(next)
    }

    /// Requests that wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.busy.iter().flatten().count()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.busy.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frames::SendFrame;

    fn typing(conversation: u64, n: u64) -> Waiting {
        Waiting { request: Request::Typing(ConversationId(conversation)), arrived_us: n }
    }

    #[test]
    fn a_conversation_is_done_in_order_and_does_not_hold_up_another() {
        let mut requests = Requests::default();
        assert_eq!(requests.take(typing(1, 1)), Some(typing(1, 1)));
        assert_eq!(requests.take(typing(1, 2)), None);
        assert_eq!(requests.take(typing(1, 3)), None);
        assert_eq!(requests.take(typing(2, 4)), Some(typing(2, 4)), "beside the first");
        assert_eq!(requests.next(ConversationId(2)), None);
        assert_eq!(requests.next(ConversationId(1)), Some(typing(1, 2)));
        assert_eq!(requests.next(ConversationId(1)), Some(typing(1, 3)));
        assert_eq!((requests.next(ConversationId(1)), requests.is_idle(), requests.len()), (None, true, 0));
    }

    fn send(n: u64) -> Request {
        let (uuid, conversation) = (Uuid::from_u64_pair(7, n), ConversationId(1));
        let (kind, body) = ("text".to_owned(), "hello".to_owned());
        Request::Send(SendFrame { uuid, conversation, kind, body, reply_to: None })
    }

    #[test]
    fn who_is_refused_is_asked_back_when_half_of_what_waits_should_be_done() {
        let mut requests = Requests::default();
        for _ in 0..=10 {
            requests.take(typing(1, 0));
        }
        assert_eq!(requests.refuse(&send(1), 0), Duration::ZERO, "all came in this moment");
        // Eleven are here, and the oldest has waited for 1.1 s: 100 ms for each.
        let after = |requests: &mut Requests, n| requests.refuse(&send(n), 1_100_000).as_millis();
        assert_eq!(after(&mut requests, 2), 650, "half of eleven and two");
        assert_eq!(after(&mut requests, 2), 650, "the same once more");
        assert_eq!(after(&mut requests, 3), 700);
        for _ in 0..3 {
            requests.next(ConversationId(1));
        }
        for n in [1, 2, 3] {
            requests.take(Waiting { request: send(n), arrived_us: 1_000_000 });
        }
        assert_eq!(after(&mut requests, 4), 600, "all that were refused are here: half of eleven and one");
        for n in 0..REFUSED_MAX as u64 + 9 {
            requests.refuse(&send(n), 1_100_000);
        }
        assert_eq!((requests.refuse(&send(5), 1_100_000), requests.refused.len()), (ROOM_AFTER_MAX, REFUSED_MAX));
    }

    #[test]
    fn only_so_many_are_under_way_and_each_that_ends_makes_room() {
        let mut requests = Requests::default();
        for n in 0..20 {
            assert_eq!(requests.take(typing(n, n)).is_some(), n < AT_ONCE_MAX as u64, "{n}");
        }
        assert_eq!(requests.len(), 20);
        for n in 0..20 {
            let next = requests.next(ConversationId(n));
            assert_eq!(next, (n < 12).then(|| typing(n + 8, n + 8)), "in the order in which they came");
        }
        assert!(requests.is_idle());
    }
}
