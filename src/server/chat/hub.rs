//! Who is connected here.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use super::connection::Connection;
use crate::protocol::limits::CONNECTIONS_PER_USER_MAX;
use crate::protocol::{DeviceName, SessionId, UserId};

/// The connections of one server.
#[derive(Default)]
pub(super) struct Hub {
    users: RwLock<HashMap<UserId, Few>>,
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

impl Hub {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<UserId, Few>> {
        self.users.read().expect("no panic while held")
    }

    /// Adds a connection; returns true when it is the user's first here.
    pub(super) fn add(&self, connection: Arc<Connection>) -> bool {
        let mut users = self.users.write().expect("no panic while held");
        self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if let Some(few) = users.get_mut(&connection.user) {
            few.add(connection);
            false
        } else {
            users.insert(connection.user, Few::One(connection));
            true
        }
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

    /// Whether a user has as many connections here as one may have. A device that has one of them replaces it.
    pub(super) fn is_full_for(&self, user: UserId, device: &DeviceName) -> bool {
        let users = self.read();
        let connections = users.get(&user).map_or(&[][..], Few::as_slice);
        connections.len() >= CONNECTIONS_PER_USER_MAX && connections.iter().all(|c| c.device != *device)
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

    #[test]
    fn a_user_has_so_many_connections_and_a_device_may_always_replace_its_own() {
        let (hub, alice) = (Hub::default(), UserId(1));
        let [own, other] = ["phone", "tablet"].map(|name| name.parse::<DeviceName>().expect("valid"));
        for _ in 0..CONNECTIONS_PER_USER_MAX {
            assert!(!hub.is_full_for(alice, &other));
            hub.add(connection(alice));
        }
        assert!(hub.is_full_for(alice, &other) && !hub.is_full_for(alice, &own) && !hub.is_full_for(UserId(2), &other));
        let left = hub.all().pop().expect("there are some").session;
        hub.remove(alice, left);
        assert!(!hub.is_full_for(alice, &other));
    }
}
