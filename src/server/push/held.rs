//! Notifications of users whose chat server is gone: held back until they had time to come back elsewhere.

use std::collections::VecDeque;
use std::time::Duration;

use crate::backends::push::Notification;
use crate::backends::registry::ENTRY_TTL;
use crate::backends::sessions::{SESSION_TTL, Session};
use crate::runtime::clock;

/// How long a user has to come back.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// Looks at a user of whom the registry can't tell anything; past them every session has ended that is not refreshed.
const LOOKS_MAX: u64 = SESSION_TTL.as_secs() / BACK_WITHIN.as_secs() + 1;

/// Notifications that may be held back; then the oldest are handed over: once too often, not never.
const HELD_MAX: usize = 50_000;

/// Notifications that were not handed over for a live session, and how long they are remembered: longer than the registry lists a
/// server that died, and than its view is old.
const LATELY_MAX: usize = 200_000;
const LATELY: Duration = ENTRY_TTL.saturating_mul(2);

/// One that waits for another look.
pub(super) struct Waiting {
    pub(super) notification: Notification,
    looks: u64,
    due_us: u64,
}

/// Those that wait, the first that is due in front.
#[derive(Default)]
pub(super) struct Held(VecDeque<Waiting>);

impl Held {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Holds one back; returns the one that is to be handed over for it, where too many are.
    pub(super) fn put(&mut self, notification: Notification) -> Option<Notification> {
        self.push(Waiting { notification, looks: 0, due_us: 0 })
    }

    /// Holds back one that was most likely delivered; returns whether there was room.
    pub(super) fn put_if_room(&mut self, notification: Notification) -> bool {
        let has_room = self.0.len() < HELD_MAX;
        if has_room {
            self.put(notification);
        }
        has_room
    }

    /// Holds one back once more; returns it where it was often enough.
    pub(super) fn put_again(&mut self, waiting: Waiting) -> Option<Notification> {
        let looks = waiting.looks + 1;
        if looks >= LOOKS_MAX {
            return Some(waiting.notification);
        }
        self.push(Waiting { looks, ..waiting })
    }

    fn push(&mut self, waiting: Waiting) -> Option<Notification> {
        let due_us = clock::now_us() + BACK_WITHIN.as_micros() as u64;
        self.0.push_back(Waiting { due_us, ..waiting });
        let oldest = if self.0.len() > HELD_MAX { self.0.pop_front() } else { None };
        oldest.map(|waiting| waiting.notification)
    }

    /// Takes out those whose users had their time.
    pub(super) fn due(&mut self) -> Vec<Waiting> {
        let now_us = clock::now_us();
        let due = self.0.iter().take_while(|waiting| waiting.due_us <= now_us).count();
        self.0.drain(..due).collect()
    }
}

/// One that was not handed over, since its user had a live session.
struct Left {
    at_us: u64,
    session: Session,
    notification: Notification,
}

/// What was left to sessions lately: for a while the registry lists a server that has died.
#[derive(Default)]
pub(super) struct Lately(VecDeque<Left>);

impl Lately {
    /// Notes that a user's sessions make a notification needless. Returns how many are forgotten for it, too early.
    pub(super) fn note(&mut self, sessions: &[Session], notification: Notification) -> u64 {
        let at_us = clock::now_us();
        let mut forgotten = 0;
        for session in sessions {
            if self.0.len() >= LATELY_MAX {
                self.0.pop_front();
                forgotten += 1;
            }
            self.0.push_back(Left { at_us, session: session.clone(), notification });
        }
        forgotten
    }

    /// When the oldest of what is remembered was noted, on [`clock::now_us`].
    pub(super) fn since_us(&self) -> Option<u64> {
        self.0.front().map(|left| left.at_us)
    }

    /// Takes out what was left to sessions that do not count any more.
    pub(super) fn of_gone(&mut self, counts: impl Fn(&Session) -> bool) -> Vec<Notification> {
        let (left, gone): (VecDeque<Left>, VecDeque<Left>) =
            std::mem::take(&mut self.0).into_iter().partition(|left| counts(&left.session));
        self.0 = left;
        gone.into_iter().map(|left| left.notification).collect()
    }

    /// Forgets what is too old to matter.
    pub(super) fn forget_old(&mut self) {
        let now_us = clock::now_us();
        let is_old = |left: &Left| now_us.saturating_sub(left.at_us) > LATELY.as_micros() as u64;
        while self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ConversationId, MessageId, SessionId, UserId};

    fn notification(id: u64) -> Notification {
        Notification { user: UserId(1), conversation: ConversationId(1), id: MessageId(id), at: 0 }
    }

    #[test]
    fn what_is_forgotten_too_early_is_counted() {
        let session = Session {
            user: UserId(1),
            device: "phone".parse().expect("a name"),
            session: SessionId(uuid::Uuid::nil()),
            server: "chat-1".parse().expect("a name"),
        };
        let (mut lately, mut held) = (Lately::default(), Held::default());
        let sessions = [session.clone(), session];
        let forgotten = (0..=LATELY_MAX as u64 / 2).map(|id| lately.note(&sessions, notification(id))).sum::<u64>();
        assert_eq!(forgotten, 2);
        let taken = (0..=HELD_MAX as u64).filter(|id| held.put_if_room(notification(*id))).count();
        assert_eq!((taken, held.len()), (HELD_MAX, HELD_MAX));
    }
}
