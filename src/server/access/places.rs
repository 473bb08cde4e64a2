//! Places of connections that carry one request after the other, and may be cut in between.
//!
//! A client may keep its connection for its next request, as long as nobody else needs the place: when none is free, the
//! connection that has waited longest for a request is cut, so that who only holds connections keeps nobody out. And no
//! address has more than its share; who has it all makes room for its own new connection in the same way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::rate::customer_of;

/// Connections that were cut and have not ended yet; while there are more, no other is cut.
pub(in crate::server) const LEAVING_MAX: usize = 64;

/// Of all places one in so many is free at least, or else connections end behind their next answer.
const FREE_SHARE: usize = 8;

/// What a holder is about, where it does not wait for a request: then it is the number of its wait.
const BUSY: u64 = 0;
const LEAVING: u64 = u64::MAX;

/// Places of one kind.
pub(in crate::server) struct Places {
    most: usize,
    of_an_address: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of the last wait.
    waits: u64,
    taken: usize,
    leaving: usize,
    /// Those that wait for a request, by the number of the wait: the oldest first.
    idle: BTreeMap<u64, Arc<Holder>>,
    addresses: HashMap<IpAddr, OfAddress>,
}

/// What one address has. None is kept that has nothing.
#[derive(Default)]
struct OfAddress {
    taken: usize,
    idle: BTreeSet<u64>,
}

struct Holder {
    address: IpAddr,
    cut: Notify,
    /// Written with the state locked.
    standing: AtomicU64,
}

/// One that is taken, until it is dropped. A request is under way at first.
pub(in crate::server) struct Place {
    all: Arc<Places>,
    holder: Arc<Holder>,
}

impl Places {
    /// So many in all, and for one address.
    pub(in crate::server) fn new(most: usize, of_an_address: usize) -> Arc<Self> {
        Arc::new(Self { most, of_an_address, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// How many are taken, for tests.
    #[cfg(test)]
    pub(in crate::server) fn taken(&self) -> usize {
        self.lock().taken
    }

    /// Takes a place for a connection from an address, if there is one, or if one can be made free.
    pub(in crate::server) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let address = customer_of(from);
        let mut state = self.lock();
        let own = state.addresses.get(&address).filter(|own| own.taken >= self.of_an_address);
        if let Some(own) = own {
            let oldest = own.idle.first().copied()?;
            state.cut(oldest)?;
        } else if state.taken >= self.most {
            let oldest = state.idle.keys().next().copied()?;
            state.cut(oldest)?;
        }
        state.taken += 1;
        state.addresses.entry(address).or_default().taken += 1;
        let holder = Arc::new(Holder { address, cut: Notify::new(), standing: AtomicU64::new(BUSY) });
        Some(Place { all: Arc::clone(self), holder })
    }
}

impl State {
    /// Cuts a connection that waits; `None` where too many have not gone yet.
    fn cut(&mut self, wait: u64) -> Option<()> {
        if self.leaving >= LEAVING_MAX {
            return None;
        }
        let holder = Arc::clone(self.idle.get(&wait)?);
        self.goes(&holder);
        self.leaving += 1;
        holder.standing.store(LEAVING, Ordering::Relaxed);
        holder.cut.notify_one();
        Some(())
    }

    /// Ends a holder's wait, if it waits.
    fn end_wait(&mut self, holder: &Holder) {
        let wait = holder.standing.load(Ordering::Relaxed);
        if self.idle.remove(&wait).is_some()
            && let Some(own) = self.addresses.get_mut(&holder.address)
        {
            own.idle.remove(&wait);
        }
    }

    /// Gives a holder's place back.
    fn goes(&mut self, holder: &Holder) {
        self.end_wait(holder);
        self.taken -= 1;
        if let Some(own) = self.addresses.get_mut(&holder.address) {
            own.taken -= 1;
            if own.taken == 0 {
                self.addresses.remove(&holder.address);
            }
        }
    }
}

impl Place {
    /// A request has come.
    pub(in crate::server) fn begin(&self) {
        let mut state = self.all.lock();
        state.end_wait(&self.holder);
        if self.holder.standing.load(Ordering::Relaxed) != LEAVING {
            self.holder.standing.store(BUSY, Ordering::Relaxed);
        }
    }

    /// The request is answered: the connection waits for the next one.
    pub(in crate::server) fn wait(&self) {
        let mut state = self.all.lock();
        if self.holder.standing.load(Ordering::Relaxed) == BUSY {
            state.waits += 1;
            let wait = state.waits;
            self.holder.standing.store(wait, Ordering::Relaxed);
            state.idle.insert(wait, Arc::clone(&self.holder));
            state.addresses.entry(self.holder.address).or_default().idle.insert(wait);
        }
    }

    /// Returns when the place is somebody else's.
    pub(in crate::server) async fn cut(&self) {
        self.holder.cut.notified().await;
    }

    /// Whether few places are left, of all or of the address's: a connection should not be kept.
    pub(in crate::server) fn is_scarce(&self) -> bool {
        let state = self.all.lock();
        let own = state.addresses.get(&self.holder.address).map_or(0, |own| own.taken);
        let is_scarce = |taken: usize, most: usize| most.saturating_sub(taken).saturating_mul(FREE_SHARE) < most;
        is_scarce(state.taken, self.all.most) || is_scarce(own, self.all.of_an_address)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        if self.holder.standing.load(Ordering::Relaxed) == LEAVING {
            state.leaving -= 1;
        } else {
            state.goes(&self.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn at(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// Places that are taken, each of an address, and wait for a request.
    fn waiting(places: &Arc<Places>, addresses: impl IntoIterator<Item = u8>) -> Vec<Place> {
        let enter = |n| places.enter(at(n)).expect("a place");
        addresses.into_iter().map(enter).inspect(Place::wait).collect()
    }

    fn is_cut(place: &Place) -> bool {
        place.cut().now_or_never().is_some()
    }

    #[test]
    fn who_has_waited_longest_for_a_request_makes_room_and_who_has_one_under_way_does_not() {
        let places = Places::new(3, 3);
        let old = waiting(&places, [1, 2, 3]);
        old[0].begin();
        let new = places.enter(at(4)).expect("the second one makes room");
        assert_eq!([&old[0], &old[1], &old[2], &new].map(is_cut), [false, true, false, false]);
        assert_eq!(places.taken(), 3);
        old[0].wait();
        let newer = [places.enter(at(5)), places.enter(at(6))];
        assert!(is_cut(&old[2]) && is_cut(&old[0]), "in the order of their waits");
        assert!(newer.iter().all(Option::is_some) && places.enter(at(7)).is_none(), "all have requests");
        drop((old, new));
        assert!(places.enter(at(8)).is_some());
        drop(newer);
        let state = places.lock();
        assert_eq!((state.taken, state.leaving, state.idle.len(), state.addresses.len()), (0, 0, 0, 0));
    }

    #[test]
    fn an_address_has_its_share_and_makes_room_for_itself() {
        let places = Places::new(10, 4);
        let (other, own) = (waiting(&places, [2]), waiting(&places, [1; 4]));
        own[0].begin();
        let more = places.enter(at(1)).expect("its own makes room");
        assert!(is_cut(&own[1]) && !is_cut(&other[0]));
        for place in &own {
            place.begin();
        }
        assert!(places.enter(at(1)).is_none() && places.enter(at(3)).is_some());
        let long = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
        let _of_a_customer: Vec<Place> = (0..4).map(|n| places.enter(long(n)).expect("a place")).collect();
        assert!(places.enter(long(9)).is_none(), "one customer's addresses are one");
        drop(more);
    }

    #[test]
    fn those_that_were_cut_and_do_not_go_are_few() {
        let places = Places::new(LEAVING_MAX * 2, usize::MAX);
        let old = waiting(&places, [1; LEAVING_MAX * 2]);
        let new: Vec<Place> = std::iter::from_fn(|| places.enter(at(2))).collect();
        assert_eq!(new.len(), LEAVING_MAX);
        drop(old);
        assert_eq!(places.lock().leaving, 0);
    }

    #[test]
    fn places_are_scarce_when_few_are_left_of_all_or_of_an_address() {
        let places = Places::new(100, 16);
        let own = waiting(&places, [1; 14]);
        assert!(!own[0].is_scarce());
        let last = waiting(&places, [1]);
        assert!(own[0].is_scarce() && last[0].is_scarce());
        let others = waiting(&places, 2..=74);
        assert!(others[0].is_scarce(), "88 are taken");
    }

    #[test]
    fn a_request_that_comes_as_its_connection_is_cut_changes_nothing() {
        let places = Places::new(1, 1);
        let old = waiting(&places, [1]);
        let new = places.enter(at(2)).expect("makes room");
        old[0].begin();
        old[0].wait();
        assert!(places.enter(at(3)).is_none());
        drop(old);
        assert_eq!(places.taken(), 1);
        drop(new);
        assert_eq!(places.taken(), 0);
    }
}
