//! How often logins of a name may be tried, so that nobody guesses passwords, and nobody is locked out by those who try.
//!
//! | who tries | limit |
//! |---|---|
//! | a device that shows an earlier token of the account | its own: `logins_per_second` |
//! | an address | its own for each name: `logins_per_second` |
//! | all addresses together from which nobody logged in to the name before | [`STRANGERS`] times that |
//!
//! So strangers, however many, can't keep out who was here before; a new device waits while many of them try.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use crate::protocol::DeviceName;
use crate::server::access::rate::{Buckets, customer_of};
use crate::server::bounded_map::BoundedMap;

/// How many times the rate of one address all strangers have together.
const STRANGERS: u32 = 5;

/// Names, and pairs of name and place, whose logins are counted.
const ENTRIES_MAX: usize = 100_000;

/// Where a login comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// A device that has shown an earlier token of the account.
    Device(DeviceName),
    /// An address; of IPv6 the first 64 bits, which one customer has.
    Address(IpAddr),
}

impl Place {
    /// The place of an address.
    pub(super) fn of(address: IpAddr) -> Self {
        Self::Address(customer_of(address))
    }
}

/// The tries of one server.
pub(super) struct Logins {
    of_places: Buckets<(String, Place)>,
    of_strangers: Buckets<String>,
    /// From where a name logged in.
    known: Mutex<BoundedMap<(String, Place), bool>>,
}

impl Logins {
    /// At most `per_second` of a name at a place, over ten seconds.
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            of_places: Buckets::new(per_second, ENTRIES_MAX),
            of_strangers: Buckets::new(per_second.saturating_mul(STRANGERS), ENTRIES_MAX),
            known: Mutex::new(BoundedMap::new(ENTRIES_MAX)),
        }
    }

    /// Takes a try; returns how long to wait when there is none left. `name` is in the form in which names are kept.
    pub(super) fn take(&self, name: &str, place: &Place) -> Result<(), Duration> {
        self.of_places.take((name.to_owned(), place.clone()))?;
        let key = (name.to_owned(), place.clone());
        let is_known = matches!(place, Place::Device(_))
            || self.known.lock().expect("no panic while held").get(&key).copied().unwrap_or(false);
        if is_known { Ok(()) } else { self.of_strangers.take(name.to_owned()) }
    }

    /// Notes that somebody logged in.
    pub(super) fn succeeded(&self, name: &str, place: Place) {
        *self.known.lock().expect("no panic while held").use_entry((name.to_owned(), place)) = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> Place {
        Place::of(IpAddr::from([127, 0, 0, n]))
    }

    fn taken(logins: &Logins, name: &str, place: &Place) -> usize {
        (0..100).filter(|_| logins.take(name, place).is_ok()).count()
    }

    #[test]
    fn an_address_has_its_tries_of_each_name() {
        let logins = Logins::new(1);
        assert_eq!((taken(&logins, "anna", &at(1)), taken(&logins, "bob", &at(1))), (10, 10));
        assert_eq!(taken(&logins, "anna", &at(2)), 10);
    }

    #[test]
    fn strangers_do_not_lock_out_who_was_here_before() {
        let logins = Logins::new(1);
        assert!(logins.take("anna", &at(1)).is_ok());
        logins.succeeded("anna", at(1));
        let strangers: usize = (2..100).map(|n| taken(&logins, "anna", &at(n))).sum();
        assert!(strangers < 50, "{strangers}");
        assert!(logins.take("anna", &at(1)).is_ok(), "from where she logged in");
        assert!(logins.take("anna", &Place::Device("phone".parse().expect("valid"))).is_ok(), "with an earlier token");
        assert!(logins.take("anna", &at(200)).is_err(), "one more stranger");
        assert!(logins.take("bob", &at(200)).is_ok(), "of another name");
    }

    #[test]
    fn an_ipv6_customer_is_one_place() {
        let place = |text: &str| Place::of(text.parse().expect("valid"));
        assert_eq!(place("2001:db8::1"), place("2001:db8::ffff:1:2:3"));
        assert_ne!(place("2001:db8::1"), place("2001:db8:0:1::1"));
        assert_eq!(place("::ffff:127.0.0.1"), place("127.0.0.1"));
    }
}
