//! Who may be connected: a number of seats for users, and before that a number of connections that have not said yet who they are.
//!
//! A seat is taken once a token was found good, so that nobody without one keeps users out. Of those that are half open the
//! oldest is cut when others want in: a client says who it is within milliseconds, one that only holds a connection never does.
//! Who was refused is waited for until it has heard that, and holds nobody up by it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::connects::OfDevice;
use crate::runtime::clock;

/// Half-open connections at once, at least; where there are more seats, a tenth of them.
pub(in crate::server) const HALF_OPEN_MIN: usize = 256;

/// Clients that were refused and are waited for, at once.
pub(in crate::server) const LINGERING_MAX: usize = 256;

/// How often room is looked for while there is none.
const ROOM_INTERVAL: Duration = Duration::from_millis(5);

/// How long a client's connection is half open, however many want in.
const PATIENCE: Duration = Duration::from_secs(1);

/// Seats of one kind.
pub(in crate::server) struct Seats {
    taken: Arc<AtomicUsize>,
    most: usize,
}

/// One that is taken, until it is dropped.
pub(in crate::server) struct Seat {
    taken: Arc<AtomicUsize>,
    /// The device's connection that has it, if it is one's.
    _of_device: Option<OfDevice>,
}

impl Seats {
    pub(in crate::server) fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// Takes a seat, if one is free.
    pub(in crate::server) fn take(&self) -> Option<Seat> {
        self.take_with(None)
    }

    /// The same for a connection of a device.
    pub(in crate::server) fn take_for(&self, device: OfDevice) -> Option<Seat> {
        self.take_with(Some(device))
    }

    fn take_with(&self, of_device: Option<OfDevice>) -> Option<Seat> {
        // Made before the look, so that it is given back where there is none.
        let seat = Seat { taken: Arc::clone(&self.taken), _of_device: of_device };
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        (before < self.most).then_some(seat)
    }

    /// How many there are.
    pub(in crate::server) const fn most(&self) -> usize {
        self.most
    }

    /// How many are taken, for tests.
    #[cfg(test)]
    pub(in crate::server) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether none is free now.
    pub(in crate::server) fn are_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.most
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connections that have not said who they are.
pub(in crate::server) struct HalfOpen {
    most: usize,
    /// How long each has, however many want in.
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// By number, oldest first: when it began, on [`clock::now_us`], and what cuts it.
    open: BTreeMap<u64, (u64, Arc<Notify>)>,
    /// Those that have sent a token, which is being checked: they are not cut.
    checked: usize,
}

/// One of them, until it is dropped.
pub(in crate::server) struct Begun {
    all: Arc<HalfOpen>,
    number: u64,
    cut: Arc<Notify>,
    is_checked: bool,
}

/// Why a step of a handshake came to no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum TooLate {
    /// It took too long.
    Slow,
    /// The connection was cut to let others in.
    Cut,
}

impl HalfOpen {
    /// As many as befit a number of seats.
    pub(in crate::server) fn beside(seats: usize) -> Arc<Self> {
        Self::new((seats / 10).max(HALF_OPEN_MIN), PATIENCE)
    }

    /// So many, each of which has a time however many want in.
    pub(in crate::server) fn new(most: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self { most, patience, state: Mutex::default() })
    }

    /// How many there are, for tests.
    #[cfg(test)]
    pub(in crate::server) fn len(&self) -> usize {
        let state = self.state.lock().expect("no panic while held");
        state.open.len() + state.checked
    }

    /// Whether there is room for one more; makes some where the oldest had its time.
    fn has_room(&self) -> bool {
        self.has_room_at(clock::now_us())
    }

    fn has_room_at(&self, now_us: u64) -> bool {
        let mut state = self.state.lock().expect("no panic while held");
        if state.open.len() + state.checked < self.most {
            return true;
        }
        let oldest = state.open.first_entry();
        match oldest.filter(|oldest| now_us.saturating_sub(oldest.get().0) >= self.patience.as_micros() as u64) {
            Some(oldest) => {
                let (_, cut) = oldest.remove();
                cut.notify_one();
                true
            }
            None => false,
        }
    }

    /// Counts one in that has come, once there is room for it. One task does so.
    pub(in crate::server) async fn admit(self: &Arc<Self>) -> Begun {
        while !self.has_room() {
            tokio::time::sleep(ROOM_INTERVAL).await;
        }
        self.begin()
    }

    fn begin(self: &Arc<Self>) -> Begun {
        let mut state = self.state.lock().expect("no panic while held");
        let (number, cut) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.open.insert(number, (clock::now_us(), Arc::clone(&cut)));
        Begun { all: Arc::clone(self), number, cut, is_checked: false }
    }
}

impl Begun {
    /// Runs a step of a handshake, for so long at most.
    pub(in crate::server) async fn within<T>(
        &self,
        limit: Duration,
        step: impl Future<Output = T>,
    ) -> Result<T, TooLate> {
        tokio::select! {
            biased;
            done = tokio::time::timeout(limit, step) => done.map_err(|_| TooLate::Slow),
            () = self.cut.notified() => Err(TooLate::Cut),
        }
    }

    /// A token has come, and is checked: what that takes is not the client's fault. It goes on to count.
    pub(in crate::server) fn has_token(&mut self) {
        if !self.is_checked {
            let mut state = self.all.state.lock().expect("no panic while held");
            state.open.remove(&self.number);
            state.checked += 1;
            self.is_checked = true;
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.all.state.lock().expect("no panic while held");
        if self.is_checked {
            state.checked -= 1;
        } else {
            state.open.remove(&self.number);
        }
    }
}

/// Clients that are told that they are refused, and are waited for until they have heard it. Of too many the oldest is
/// waited for no longer: what it was told is on its way.
#[derive(Default)]
pub(in crate::server) struct Lingering(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    /// By number, oldest first: what ends the wait.
    clients: BTreeMap<u64, Arc<Notify>>,
}

/// One of them, until it is dropped.
struct Place<'a> {
    all: &'a Lingering,
    number: u64,
    cut: Arc<Notify>,
}

impl Lingering {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("no panic while held")
    }

    fn enter(&self) -> Place<'_> {
        let mut waiting = self.lock();
        let (number, cut) = (waiting.next, Arc::new(Notify::new()));
        waiting.next += 1;
        waiting.clients.insert(number, Arc::clone(&cut));
        if waiting.clients.len() > LINGERING_MAX
            && let Some((_, oldest)) = waiting.clients.pop_first()
        {
            oldest.notify_one();
        }
        Place { all: self, number, cut }
    }

    /// Refuses a client, until that is done or others need the place.
    pub(in crate::server) async fn refuse(&self, refusal: impl Future<Output = ()>) {
        let place = self.enter();
        tokio::select! {
            biased;
            // At least it is begun.
            () = refusal => {}
            () = place.cut.notified() => {}
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.all.lock().clients.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_seat_is_free_again_when_its_holder_leaves() {
        let seats = Seats::new(2);
        let (one, two) = (seats.take(), seats.take());
        assert!(one.is_some() && two.is_some() && seats.take().is_none() && seats.are_taken());
        drop(one);
        assert!(!seats.are_taken() && seats.take().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_cut_when_others_want_in_and_not_before_its_time() {
        let all = HalfOpen::beside(0);
        let mut silent: Vec<Begun> = (0..HALF_OPEN_MIN).map(|_| all.begin()).collect();
        assert!(!all.has_room());
        let later_us = clock::now_us() + PATIENCE.as_micros() as u64;
        assert!(all.has_room_at(later_us));
        let limit = Duration::from_secs(9);
        assert_eq!(silent[0].within(limit, std::future::pending::<()>()).await, Err(TooLate::Cut));
        silent[2].has_token();
        assert_eq!(silent[1].within(limit, std::future::ready(7)).await.ok(), Some(7), "it is not cut");
        let news: Vec<Begun> =
            std::iter::from_fn(|| all.has_room_at(later_us).then(|| all.begin())).take(100).collect();
        assert_eq!(news.len(), 100, "each of the old ones makes room for one");
        assert_eq!(all.state.lock().expect("no panic while held").open.len(), HALF_OPEN_MIN - 1);
        drop((silent, news));
        let state = all.state.lock().expect("no panic while held");
        assert!(state.open.is_empty() && state.checked == 0);
    }

    #[tokio::test]
    async fn of_too_many_who_were_refused_the_oldest_is_waited_for_no_longer() {
        let (lingering, told) = (Lingering::default(), AtomicUsize::new(0));
        let refusal = || {
            lingering.refuse(async {
                told.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
            })
        };
        let mut waiting: Vec<_> = (0..LINGERING_MAX).map(|_| Box::pin(refusal())).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        assert!(Box::pin(refusal()).as_mut().now_or_never().is_none());
        assert_eq!(told.load(Ordering::Relaxed), LINGERING_MAX + 1, "each is told");
        let ended = waiting.iter_mut().map(|one| one.as_mut().now_or_never().is_some()).collect::<Vec<_>>();
        assert!(ended[0] && !ended[1..].contains(&true));
        drop(waiting);
        assert!(lingering.lock().clients.is_empty());
    }
}
