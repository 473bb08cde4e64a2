//! Who is connected here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use super::connection::Connection;
use crate::protocol::limits::CONNECTIONS_PER_USER_MAX;
use crate::protocol::{DeviceName, SessionId, UserId};

/// The connections of one server.
#[derive(Default)]
pub(super) struct Hub {
    users: RwLock<HashMap<UserId, Few>>,
    coming: Arc<ComingUp>,
    count: std::sync::atomic::AtomicUsize,
}

/// The connections of one user; nearly always one, so that costs no vector.
enum Few {
    One(Arc<Connection>),
    Many(Vec<Arc<Connection>>),
}

impl Few {
    fn as_slice(&self) -> &[Arc<Connection>] {
        match self {
            Self::One(connection) => std::slice::from_ref(connection),
            Self::Many(connections) => connections,
        }
    }

    fn add(&mut self, new: Arc<Connection>) {
        let mut all = self.as_slice().to_vec();
        all.push(new);
        *self = Self::Many(all);
    }

    /// Removes a session; returns whether it was here, and whether anybody is left.
    fn remove(&mut self, session: SessionId) -> (bool, bool) {
        let before = self.as_slice().len();
        let mut rest: Vec<_> = self.as_slice().iter().filter(|c| c.session != session).cloned().collect();
        let found = rest.len() < before;
        match rest.len() {
            0 => return (found, false),
            1 => *self = Self::One(rest.remove(0)),
            _ => *self = Self::Many(rest),
        }
        (found, true)
    }
}

/// How many connections of each user come up: they count before they are in the hub. Locked before `users`.
#[derive(Default)]
struct ComingUp(Mutex<HashMap<UserId, usize>>);

impl ComingUp {
    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, usize>> {
        self.0.lock().expect("no panic while held")
    }
}

/// A connection that comes up, as one of its user's, until it is in the hub or this is dropped.
pub(super) struct Coming {
    all: Arc<ComingUp>,
    user: UserId,
    is_counted: bool,
}

impl Coming {
    fn end(&mut self, all: &mut HashMap<UserId, usize>) {
        if std::mem::take(&mut self.is_counted)
            && let Some(count) = all.get_mut(&self.user)
        {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.user);
            }
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if self.is_counted {
            let all = Arc::clone(&self.all);
            self.end(&mut all.lock());
        }
    }
}

impl Hub {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<UserId, Few>> {
        self.users.read().expect("no panic while held")
    }

    /// Adds a connection.
    pub(super) fn add(&self, connection: Arc<Connection>) {
        let mut users = self.users.write().expect("no panic while held");
        self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if let Some(few) = users.get_mut(&connection.user) {
            few.add(connection);
        } else {
            users.insert(connection.user, Few::One(connection));
        }
    }

    /// Adds a connection that comes up, which counts as one all the while.
    pub(super) fn add_coming(&self, connection: Arc<Connection>, mut coming: Coming) {
        let mut all = self.coming.lock();
        self.add(connection);
        coming.end(&mut all);
    }

    /// Removes a connection. `None`: it was not here; `Some(true)`: it was the user's last.
    pub(super) fn remove(&self, user: UserId, session: SessionId) -> Option<bool> {
        let mut users = self.users.write().expect("no panic while held");
        let (found, any_left) = users.get_mut(&user)?.remove(session);
        if !found {
            return None;
        }
        self.count.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        if !any_left {
            users.remove(&user);
        }
        Some(!any_left)
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Calls `work` for each connection of a user.
    pub(super) fn for_user(&self, user: UserId, mut work: impl FnMut(&Arc<Connection>)) {
        if let Some(few) = self.read().get(&user) {
            few.as_slice().iter().for_each(&mut work);
        }
    }

    /// The connections of some users.
    pub(super) fn connections_of(&self, users: impl Iterator<Item = UserId>) -> Vec<Arc<Connection>> {
        let here = self.read();
        users.filter_map(|user| here.get(&user)).flat_map(Few::as_slice).cloned().collect()
    }

    pub(super) fn find(&self, user: UserId, session: SessionId) -> Option<Arc<Connection>> {
        self.read().get(&user)?.as_slice().iter().find(|c| c.session == session).cloned()
    }

    pub(super) fn has_user(&self, user: UserId) -> bool {
        self.read().contains_key(&user)
    }

    /// Counts a connection of a user in that comes up; `None` where the user has as many here as one may have. A device
    /// that has one of them replaces it, so that for a while there may be more: up to twice as many.
    pub(super) fn begin(&self, user: UserId, device: &DeviceName) -> Option<Coming> {
        let mut all = self.coming.lock();
        let begun = all.get(&user).copied().unwrap_or(0);
        let (here, is_own) = {
            let users = self.read();
            let connections = users.get(&user).map_or(&[][..], Few::as_slice);
            (connections.len(), connections.iter().any(|c| c.device == *device))
        };
        let most = if is_own { 2 * CONNECTIONS_PER_USER_MAX } else { CONNECTIONS_PER_USER_MAX };
        if here + begun >= most {
            return None;
        }
        *all.entry(user).or_default() += 1;
        Some(Coming { all: Arc::clone(&self.coming), user, is_counted: true })
    }

    /// The connections that `is_wanted` picks.
    pub(super) fn select(&self, is_wanted: impl Fn(&Connection) -> bool) -> Vec<Arc<Connection>> {
        self.read().values().flat_map(Few::as_slice).filter(|c| is_wanted(c)).cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.read().values().flat_map(Few::as_slice).cloned().collect()
    }

    /// Any connections, at most `limit`.
    pub(super) fn some(&self, limit: usize) -> Vec<Arc<Connection>> {
        self.read().values().flat_map(Few::as_slice).take(limit).cloned().collect()
    }

    /// Users, for tests that look for what was left behind.
    #[cfg(test)]
    pub(super) fn users(&self) -> usize {
        self.read().len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::connection;
    use super::*;

    const ALICE: UserId = UserId(1);

    fn devices() -> [DeviceName; 2] {
        ["phone", "tablet"].map(|name| name.parse().expect("valid"))
    }

    #[test]
    fn a_user_has_so_many_connections_and_a_device_may_replace_its_own() {
        let (hub, [own, other]) = (Hub::default(), devices());
        for _ in 0..CONNECTIONS_PER_USER_MAX {
            assert!(hub.begin(ALICE, &other).is_some());
            hub.add(connection(ALICE));
        }
        let may_begin = |user, device| hub.begin(user, device).is_some();
        assert!(!may_begin(ALICE, &other) && may_begin(ALICE, &own) && may_begin(UserId(2), &other));
        let replacing: Vec<Coming> = std::iter::from_fn(|| hub.begin(ALICE, &own)).take(1_000).collect();
        assert_eq!(replacing.len(), CONNECTIONS_PER_USER_MAX, "nor does one device take every seat");
        drop(replacing);
        let left = hub.all().pop().expect("there are some").session;
        hub.remove(ALICE, left);
        assert!(may_begin(ALICE, &other));
    }

    #[test]
    fn connections_of_a_user_that_come_up_at_once_count_before_they_are_here() {
        let (hub, [_, other]) = (Hub::default(), devices());
        let mut coming: Vec<Coming> = std::iter::from_fn(|| hub.begin(ALICE, &other)).take(1_000).collect();
        assert_eq!(coming.len(), CONNECTIONS_PER_USER_MAX);
        // One of them is live, and counts as one still.
        hub.add_coming(connection(ALICE), coming.pop().expect("there are some"));
        assert!(hub.begin(ALICE, &other).is_none());
        // Another one came to nothing.
        drop(coming.pop());
        let last = hub.begin(ALICE, &other);
        assert!(last.is_some() && hub.begin(ALICE, &other).is_none());
        drop((coming, last));
        assert!(hub.coming.lock().is_empty());
    }
}
