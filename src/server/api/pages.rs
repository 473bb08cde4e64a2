//! Pages of messages on their way to clients: how much of them may be in memory at once.
//!
//! An answer is in memory until its client has read it. So a user has a number of pages at once, and all of them together have a
//! number of bytes; each is given back when its answer is written, or given up.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::status::Failure;
use crate::protocol::{ErrorCode, UserId};

/// Pages of one user that may be read and written at once.
const OF_A_USER_MAX: u32 = 16;

/// Bytes of all pages that are being written.
const BYTES_MAX: usize = 128 << 20;

/// When to ask again.
const RETRY_AFTER_MS: u64 = 500;

/// The pages of one server.
pub(super) struct Pages {
    room: Arc<Semaphore>,
    of_users: Arc<Mutex<HashMap<UserId, u32>>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(BYTES_MAX)), of_users: Arc::default() }
    }
}

/// A user's turn to have a page.
pub(super) struct Turn {
    user: UserId,
    of_users: Arc<Mutex<HashMap<UserId, u32>>>,
}

impl Pages {
    /// Takes a turn for a user, before anything is read.
    ///
    /// # Errors
    /// `rate_limited`, when the user has many already.
    pub(super) fn turn(&self, user: UserId) -> Result<Turn, Failure> {
        let mut of_users = self.of_users.lock().expect("no panic while held");
        let count = of_users.entry(user).or_default();
        if *count >= OF_A_USER_MAX {
            let message = format!("{OF_A_USER_MAX} pages of yours are under way: read them first");
            return Err(Failure::retry_later(ErrorCode::RateLimited, message, RETRY_AFTER_MS));
        }
        *count += 1;
        Ok(Turn { user, of_users: Arc::clone(&self.of_users) })
    }

    /// Holds turn and room until the answer is written.
    ///
    /// # Errors
    /// `overloaded`, when there is no room for it.
    pub(super) fn hold(&self, turn: Turn, response: Response) -> Result<Response, Failure> {
        let bytes = usize::try_from(response.body().size_hint().lower()).unwrap_or(BYTES_MAX);
        let weight = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(weight) else {
            let message = "this server writes as many pages as it has memory for";
            return Err(Failure::retry_later(ErrorCode::Overloaded, message, RETRY_AFTER_MS));
        };
        Ok(response.map(|body| Body::new(Held { body, _turn: turn, _room: room })))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut of_users = self.of_users.lock().expect("no panic while held");
        if let Some(count) = of_users.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                of_users.remove(&self.user);
            }
        }
    }
}

/// A body, and what it holds.
struct Held {
    body: Body,
    _turn: Turn,
    _room: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn a_user_has_a_number_of_pages_and_gets_a_turn_back_with_each_answer() {
        let pages = Pages::default();
        let hold = |user: u64| {
            let turn = pages.turn(UserId(user))?;
            pages.hold(turn, "a page".into_response())
        };
        let mut held: Vec<Response> = (0..OF_A_USER_MAX).map(|_| hold(1).expect("room")).collect();
        assert!(hold(1).is_err());
        held.push(hold(2).expect("another user"));
        held.remove(0);
        held.push(hold(1).expect("one was written"));
        drop(held);
        assert!(pages.of_users.lock().expect("no panic while held").is_empty());
        assert_eq!(pages.room.available_permits(), BYTES_MAX);
    }

    #[test]
    fn all_pages_together_have_a_number_of_bytes() {
        let pages = Pages::default();
        let hold = |user: u64| {
            let turn = pages.turn(UserId(user))?;
            pages.hold(turn, "x".repeat(BYTES_MAX / 4).into_response())
        };
        let held: Vec<Response> = (0..4).map(|user| hold(user).expect("room")).collect();
        assert!(hold(9).is_err());
        drop(held);
        assert!(hold(9).is_ok());
    }
}
