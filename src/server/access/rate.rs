//! Token buckets: a rate over a window, with room for a burst.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::Duration;

use crate::runtime::clock;
use crate::server::bounded_map::BoundedMap;

/// Seconds whose worth of frames may come at once.
pub const BURST_S: u32 = 10;

/// Whose an address is: of IPv6 the first 64 bits, which one customer has.
#[must_use]
pub fn customer_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(long) => match long.to_ipv4_mapped() {
            Some(short) => short.into(),
            None => Ipv6Addr::from_bits(long.to_bits() & !u128::from(u64::MAX)).into(),
        },
    }
}

/// One client's bucket; eight bytes, no clock of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// Frames taken and not yet paid back by time.
    taken: u32,
    /// When it was last looked at.
    at_ms: u32,
}

impl Bucket {
    /// Takes one; returns how long to wait when there is none.
    pub fn take(&mut self, per_second: u32, now_ms: u32) -> Result<(), Duration> {
        self.take_of(per_second, per_second.saturating_mul(BURST_S), now_ms)
    }

    /// The same where so many may come at once.
    pub fn take_of(&mut self, per_second: u32, burst: u32, now_ms: u32) -> Result<(), Duration> {
        let elapsed_ms = u64::from(now_ms.wrapping_sub(self.at_ms));
        let paid = elapsed_ms * u64::from(per_second) / 1_000;
        if paid > 0 || self.taken == 0 {
            self.taken = self.taken.saturating_sub(u32::try_from(paid).unwrap_or(u32::MAX));
            self.at_ms = now_ms;
        }
        if self.taken >= burst {
            return Err(Duration::from_millis(1_000 / u64::from(per_second.max(1)) + 1));
        }
        self.taken += 1;
        Ok(())
    }
}

/// Buckets by key, such as a user name or an address. Bounded: what was not used while as many others were is forgotten, and
/// nobody whose bucket is in use.
pub struct Buckets<K> {
    per_second: u32,
    burst: u32,
    buckets: Mutex<BoundedMap<K, Bucket>>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// At most `per_second` for each key, over ten seconds.
    #[must_use]
    pub fn new(per_second: u32, entries_max: usize) -> Self {
        Self::with_burst(per_second, per_second.saturating_mul(BURST_S), entries_max)
    }

    /// At most `per_second` for each key in the long run, and so many at once.
    #[must_use]
    pub fn with_burst(per_second: u32, burst: u32, entries_max: usize) -> Self {
        Self { per_second, burst, buckets: Mutex::new(BoundedMap::new(entries_max)) }
    }

    /// Takes one for a key; returns how long to wait when there is none.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().expect("no panic while held");
        buckets.use_entry(key).take_of(self.per_second, self.burst, clock::now_ms_u32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let mut bucket = Bucket::default();
        let taken = (0..100).filter(|_| bucket.take(5, 1_000).is_ok()).count();
        assert_eq!(taken, 50);
        assert!(bucket.take(5, 1_100).is_err());
        assert!(bucket.take(5, 1_200).is_ok());
        assert!(bucket.take(5, 1_200).is_err());
        let later = (0..100).filter(|_| bucket.take(5, 60_000).is_ok()).count();
        assert_eq!(later, 50);
    }

    #[test]
    fn others_do_not_make_a_full_table_forget_who_is_at_the_limit() {
        let buckets = Buckets::new(1, 100);
        assert_eq!((0..30).filter(|_| buckets.take(u32::MAX).is_ok()).count(), 10);
        for key in 0..10_000 {
            let _ = buckets.take(key);
            if key % 40 == 0 {
                assert!(buckets.take(u32::MAX).is_err(), "{key}");
            }
        }
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let buckets = Buckets::new(1, 100);
        assert_eq!((0..30).filter(|_| buckets.take("a").is_ok()).count(), 10);
        assert!(buckets.take("b").is_ok());
    }
}
