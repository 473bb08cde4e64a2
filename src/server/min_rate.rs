//! The lowest rate at which a reader has to take what is written to it.
//!
//! What is written waits in memory until it is taken. A reader that takes a byte now and then would keep it there for
//! as long as it likes, if any progress were enough. So a reader may stall for a time in all, and gets some of that
//! time back for each byte that it takes: the whole of an answer has a time that grows with its size. Source of the
//! idea: `MinResponseDataRate` of ASP.NET Core.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::runtime::clock;

/// Bytes in a second that a reader takes at least while something waits for it: 1 MiB has two minutes.
pub(super) const BYTES_PER_SECOND_MIN: u64 = 8 * 1024;

/// How long a client on a WebSocket may stall. Shorter than the silence after which it is closed, longer than a phone
/// is in a tunnel.
pub(super) const SOCKET_STALL_MAX: Duration = Duration::from_mins(1);

/// What one reader may stall still.
pub(super) struct MinRate {
    stall_max: Duration,
    /// Time that it may stall, as of `free_since`.
    credit: Duration,
    /// Since when nothing stalls.
    free_since: Instant,
    /// Runs while something waits, to the end of the credit.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl MinRate {
    /// For a reader that may stall for a time.
    pub(super) fn new(stall_max: Duration) -> Self {
        Self { stall_max, credit: stall_max, free_since: clock::instant(), stalled: None }
    }

    /// Notes bytes that were taken.
    pub(super) fn took(&mut self, bytes: usize) {
        if self.stalled.is_none() && self.credit == self.stall_max {
            // Nothing to give back: the usual case reads no clock.
            return;
        }
        let now = clock::instant();
        let credit = match self.stalled.take() {
            Some(end) => end.deadline().into_std().saturating_duration_since(now),
            None => self.credit + now.saturating_duration_since(self.free_since),
        };
        let earned = Duration::from_micros(bytes as u64 * 1_000_000 / BYTES_PER_SECOND_MIN);
        self.credit = (credit + earned).min(self.stall_max);
        self.free_since = now;
    }

    /// To be asked while nothing is taken: ready once the reader has stalled for too long.
    pub(super) fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let end = self.stalled.get_or_insert_with(|| {
            let free = clock::instant().saturating_duration_since(self.free_since);
            Box::pin(tokio::time::sleep((self.credit + free).min(self.stall_max)))
        });
        end.as_mut().poll(context)
    }

    /// Waits, while nothing is taken, until the reader has stalled for too long.
    pub(super) async fn too_slow(&mut self) {
        poll_fn(|context| self.poll_too_slow(context)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL_MAX: Duration = Duration::from_secs(10);

    /// How long a reader is borne with that takes some bytes every second, up to an hour.
    async fn borne_with(bytes: usize) -> u64 {
        let (mut rate, begun) = (MinRate::new(STALL_MAX), clock::instant());
        for _ in 0..3_600 {
            if tokio::time::timeout(Duration::from_secs(1), rate.too_slow()).await.is_ok() {
                break;
            }
            rate.took(bytes);
        }
        (clock::instant() - begun).as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn progress_counts_by_its_bytes() {
        let minimum = BYTES_PER_SECOND_MIN as usize;
        assert_eq!((borne_with(0).await, borne_with(1).await), (10, 10));
        assert_eq!(borne_with(minimum / 2).await, 19, "half of each second is given back");
        assert_eq!(borne_with(minimum).await, 3_600);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_waits_is_given_back() {
        let mut rate = MinRate::new(STALL_MAX);
        for _ in 0..10 {
            assert!(tokio::time::timeout(Duration::from_secs(9), rate.too_slow()).await.is_err());
            rate.took(1);
            tokio::time::sleep(Duration::from_secs(9)).await;
        }
    }
}
