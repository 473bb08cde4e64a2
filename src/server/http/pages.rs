//! Pages of messages, and answers to polls, on their way to clients: how much of them may be in memory at once.
//!
//! An answer is in memory until its client has read it. So a user has a number of pages at once, and all of them together have a
//! number of bytes; each is given back when its answer is written, or given up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::protocol::{ErrorCode, UserId};
use crate::server::http::status::Failure;

/// Pages of one user that may be read and written at once.
const OF_A_USER_MAX: u32 = 16;

/// Bytes of all pages that are being written.
const BYTES_MAX: usize = 128 << 20;

/// When to ask again.
const RETRY_AFTER_MS: u64 = 500;

/// The pages of one server.
pub(in crate::server) struct Pages {
    room: Arc<Semaphore>,
    of_users: Arc<Mutex<HashMap<UserId, u32>>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(BYTES_MAX)), of_users: Arc::default() }
    }
}

/// A user's turn to have a page.
pub(in crate::server) struct Turn {
    user: UserId,
    of_users: Arc<Mutex<HashMap<UserId, u32>>>,
}

impl Pages {
    /// Takes a turn for a user, before anything is read.
    ///
    /// # Errors
    /// `rate_limited`, when the user has many already.
    pub(in crate::server) fn turn(&self, user: UserId) -> Result<Turn, Failure> {
        let mut of_users = self.of_users.lock().expect("no panic while held");
        let count = of_users.entry(user).or_default();
        if *count >= OF_A_USER_MAX {
            let message = format!("{OF_A_USER_MAX} answers of yours are under way: read them first");
            return Err(Failure::retry_later(ErrorCode::RateLimited, message, RETRY_AFTER_MS));
        }
        *count += 1;
        Ok(Turn { user, of_users: Arc::clone(&self.of_users) })
    }

    /// Makes the answer, which holds turn and room until it is written.
    ///
    /// # Errors
    /// `overloaded`, when there is no room for it.
    pub(in crate::server) fn answer(&self, turn: Turn, page: &impl Serialize) -> Result<Response, Failure> {
        let json = encode(page)?;
        Ok(self.room_for(turn, json.len())?.holds(json))
    }

    /// Takes room for an answer that has about so many bytes, before it is made.
    ///
    /// # Errors
    /// `overloaded`, when there is none.
    pub(in crate::server) fn room_for(&self, turn: Turn, bytes: usize) -> Result<Room, Failure> {
        let weight = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(weight) else {
            let message = "this server writes as many pages as it has memory for";
            return Err(Failure::retry_later(ErrorCode::Overloaded, message, RETRY_AFTER_MS));
        };
        Ok(Room { turn, room })
    }
}

fn encode(page: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(page).map_err(|e| Failure::new(ErrorCode::Internal, e.to_string()))
}

/// Room for an answer.
pub(in crate::server) struct Room {
    turn: Turn,
    room: OwnedSemaphorePermit,
}

impl Room {
    /// The answer, for which there is room.
    ///
    /// # Errors
    /// `internal`, when it has no JSON.
    pub(in crate::server) fn answer(self, page: &impl Serialize) -> Result<Response, Failure> {
        Ok(self.holds(encode(page)?))
    }

    fn holds(self, json: Vec<u8>) -> Response {
        // HTTP takes the bytes out of the body at once and keeps them until they are written: they hold the rest.
        let bytes = Bytes::from_owner(Held { json, _turn: self.turn, _room: self.room });
        ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
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

/// The bytes of an answer, and what they hold.
struct Held {
    json: Vec<u8>,
    _turn: Turn,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use hyper_util::service::TowerToHyperService;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::runtime::{Tasks, net};
    use crate::server::http;

    fn answer(pages: &Pages, user: u64, bytes: usize) -> Result<Response, Failure> {
        pages.answer(pages.turn(UserId(user))?, &"x".repeat(bytes))
    }

    fn is_free(pages: &Pages) -> bool {
        pages.of_users.lock().expect("no panic while held").is_empty() && pages.room.available_permits() == BYTES_MAX
    }

    #[test]
    fn a_user_has_a_number_of_pages_and_gets_a_turn_back_with_each_answer() {
        let pages = Pages::default();
        let mut held: Vec<Response> = (0..OF_A_USER_MAX).map(|_| answer(&pages, 1, 9).expect("room")).collect();
        assert!(answer(&pages, 1, 9).is_err());
        held.push(answer(&pages, 2, 9).expect("another user"));
        held.remove(0);
        held.push(answer(&pages, 1, 9).expect("one was written"));
        drop(held);
        assert!(is_free(&pages));
    }

    #[test]
    fn all_pages_together_have_a_number_of_bytes() {
        let pages = Pages::default();
        let held: Vec<Response> = (0..4).map(|user| answer(&pages, user, BYTES_MAX / 4 - 9).expect("room")).collect();
        assert!(answer(&pages, 9, 99).is_err());
        drop(held);
        assert!(answer(&pages, 9, 99).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_is_held_until_its_client_has_read_it_or_is_given_up() {
        const PAGE_BYTES: usize = 32 << 20;
        let (pages, tasks) = (Arc::new(Pages::default()), Tasks::new());
        let shared = Arc::clone(&pages);
        let page = move || std::future::ready(answer(&shared, 1, PAGE_BYTES));
        let router = TowerToHyperService::new(Router::new().route("/page", get(page)));
        let listener = net::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let group = tasks.clone();
        tasks.spawn_until_stopped("test.accept", async move {
            while let Ok((stream, _)) = listener.accept().await {
                group.spawn("test.serve", http::serve(stream, Vec::new(), group.clone(), router.clone()));
            }
        });
        let request = b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut reads = tokio::net::TcpStream::connect(address).await.expect("connects");
        reads.write_all(request).await.expect("writes");
        let mut all = Vec::new();
        reads.read_to_end(&mut all).await.expect("reads");
        assert!(all.len() > PAGE_BYTES);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(is_free(&pages), "it was read");
        let mut reads_not = tokio::net::TcpStream::connect(address).await.expect("connects");
        reads_not.write_all(request).await.expect("writes");
        reads_not.read_exact(&mut [0; 100]).await.expect("it begins");
        assert!(pages.room.available_permits() < BYTES_MAX, "most of it is in memory");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(is_free(&pages), "it was given up");
        tasks.stop();
    }
}
