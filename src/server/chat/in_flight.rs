//! Requests that are under way, by conversation, so that a change of members can wait for those that began before it.
//!
//! A request enters, then checks that its user is a member, then does its work. Who changes the members makes the server forget
//! them first, and then waits: a request that entered before may have gone by the old list, one that enters afterwards can't.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::protocol::{ConversationId, UserId};

/// What is under way, by conversation.
#[derive(Default)]
pub(super) struct InFlight(Mutex<State>);

#[derive(Default)]
struct State {
    /// The number of the next request.
    next: u64,
    /// Conversations in which something is under way.
    places: HashMap<ConversationId, Place>,
}

#[derive(Default)]
struct Place {
    /// The numbers of its requests, rising, and whose they are.
    under_way: Vec<(u64, UserId)>,
    /// Told whenever one ends.
    ended: Arc<Notify>,
}

/// A request that is under way, until it is dropped.
pub(super) struct Entered<'a> {
    all: &'a InFlight,
    conversation: ConversationId,
    number: u64,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    /// Enters a request of a user.
    pub(super) fn enter(&self, conversation: ConversationId, user: UserId) -> Entered<'_> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.places.entry(conversation).or_default().under_way.push((number, user));
        Entered { all: self, conversation, number }
    }

    /// Conversations in which something is under way, for tests.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().places.len()
    }

    /// Whose requests are under way.
    pub(super) fn users(&self, conversation: ConversationId) -> Vec<UserId> {
        let state = self.lock();
        state
            .places
            .get(&conversation)
            .map_or_else(Vec::new, |place| place.under_way.iter().map(|(_, user)| *user).collect())
    }

    /// Waits until nothing of some users is under way that entered before this call.
    pub(super) async fn ended(&self, conversation: ConversationId, is_of_interest: impl Fn(UserId) -> bool) {
        let mark = self.lock().next;
        while let Some(notify) = self.with_older(conversation, mark, &is_of_interest) {
            let mut ended = std::pin::pin!(notify.notified());
            // Before the second look, so that an end between the two is not missed.
            ended.as_mut().enable();
            if self.with_older(conversation, mark, &is_of_interest).is_none() {
                return;
            }
            ended.await;
        }
    }

    /// What tells of an end, if something is under way that entered before a number was given out.
    fn with_older(
        &self,
        conversation: ConversationId,
        mark: u64,
        is_of_interest: impl Fn(UserId) -> bool,
    ) -> Option<Arc<Notify>> {
        let state = self.lock();
        let place = state.places.get(&conversation)?;
        let mut older = place.under_way.iter().take_while(|(number, _)| *number < mark);
        older.any(|(_, user)| is_of_interest(*user)).then(|| Arc::clone(&place.ended))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        let Some(place) = state.places.get_mut(&self.conversation) else { return };
        place.under_way.retain(|(number, _)| *number != self.number);
        place.ended.notify_waiters();
        if place.under_way.is_empty() {
            state.places.remove(&self.conversation);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_change_waits_for_what_began_before_it_and_for_nothing_else() {
        let all = InFlight::default();
        let (busy, other) = (ConversationId(1), ConversationId(2));
        let (one, two) = (UserId(1), UserId(2));
        let (first, second, _elsewhere) = (all.enter(busy, one), all.enter(busy, one), all.enter(other, one));
        let _somebody_elses = all.enter(busy, two);
        assert_eq!(all.users(busy), [one, one, two]);
        let mut ended = std::pin::pin!(all.ended(busy, |user| user == one));
        assert!(ended.as_mut().now_or_never().is_none());
        let _later = all.enter(busy, one);
        drop(first);
        assert!(ended.as_mut().now_or_never().is_none());
        let mut again = std::pin::pin!(all.ended(busy, |user| user == one));
        assert!(again.as_mut().now_or_never().is_none(), "who asks once more waits for the same");
        drop(second);
        ended.await;
        assert!(again.now_or_never().is_none(), "the later one is under way");
    }

    #[tokio::test]
    async fn nothing_is_kept_of_what_has_ended() {
        let all = InFlight::default();
        for n in 0..100 {
            drop((all.enter(ConversationId(n), UserId(1)), all.enter(ConversationId(n), UserId(2))));
        }
        assert!(all.lock().places.is_empty());
        all.ended(ConversationId(1), |_| true).await;
    }
}
