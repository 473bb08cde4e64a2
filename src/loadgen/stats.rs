//! Counters of a run.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::call_lag::CallLags;
use super::client::{CallError, ConnectError, LinkError};

/// Counters of a run. Written by clients, read by the engine.
#[derive(Default)]
pub(super) struct Stats {
    /// Messages that the rates asked for, whether or not somebody could send them.
    pub(super) scheduled: AtomicU64,
    pub(super) intended: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Refused because the sender was being removed.
    pub(super) refused_removed: AtomicU64,
    pub(super) unresolved: AtomicU64,
    /// Of those, messages of devices that a limit of this machine kept from a connection.
    pub(super) unresolved_local: AtomicU64,
    pub(super) delivered: AtomicU64,
    /// Of those, to devices that were there by plan.
    pub(super) delivered_online: AtomicU64,
    pub(super) frames: AtomicU64,
    pub(super) repeated_on_wire: AtomicU64,
    /// Devices that were connected at least once.
    pub(super) ever_connected: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) wanted: AtomicU64,
    pub(super) gaps_synced: AtomicU64,
    pub(super) beats: AtomicU64,
    pub(super) push_expected: AtomicU64,
    pub(super) pushed: AtomicU64,
    /// Of those, what a `head` told of and a sync fetched.
    pub(super) pushed_by_head: AtomicU64,
    /// Deliveries by sync of which it can't be said whether a push had to bring them.
    pub(super) push_unknown: AtomicU64,
    /// Messages without an answer for [`super::client`]'s longest wait, sent again.
    pub(super) resent: AtomicU64,
    /// Devices that had not caught up when the load ended.
    pub(super) not_caught_up: AtomicU64,
    /// Of those, devices that a limit of this machine kept from it.
    pub(super) not_caught_up_local: AtomicU64,
    /// Conversations that could not be read back by a limit of this machine.
    pub(super) unaudited_local: AtomicU64,
    /// Of the audit: member views read and not read, reads tried for removed members that were answered and that were not.
    pub(super) read_views: AtomicU64,
    pub(super) unread_views: AtomicU64,
    pub(super) access_probes: AtomicU64,
    pub(super) unprobed: AtomicU64,
    /// Messages that removed members tried to send, and that were answered.
    pub(super) write_probes: AtomicU64,
    /// Connections that were lost or closed against the plan, other than by a limit of this machine.
    pub(super) disconnects: AtomicU64,
    /// Tries to connect that failed, other than by backpressure or for a token that may have come to its end.
    pub(super) connects_failed: AtomicU64,
    /// Members that the API confirmed to have removed, and to have added again.
    pub(super) removals: AtomicU64,
    pub(super) additions: AtomicU64,
    /// Changes of membership that were given up.
    pub(super) changes_failed: AtomicU64,
    /// Frames and answers that can't be read, or break the protocol.
    pub(super) protocol_errors: AtomicU64,
    /// API calls that failed, other than by backpressure.
    pub(super) http_errors: AtomicU64,
    /// Answers that asked to be tried again later.
    pub(super) throttled: AtomicU64,
    /// Calls and connects that were repeated: all, and the most of one device.
    pub(super) retries: AtomicU64,
    pub(super) retries_per_device_max: AtomicU64,
    /// What API calls waited for their turn.
    pub(super) call_lags: CallLags,
    /// What of those waits was the generator's own.
    pub(super) own_call_lags: CallLags,
    /// What this machine could not do: files, ports, memory.
    pub(super) local_errors: AtomicU64,
    /// Errors by code.
    pub(super) errors: Mutex<BTreeMap<String, u64>>,
}

impl Stats {
    /// Messages that were due and have no answer yet, whether or not a device has noticed that they are due.
    pub(super) fn owed(&self) -> u64 {
        let answered = get(&self.acked) + get(&self.refused) + get(&self.refused_removed) + get(&self.unresolved);
        get(&self.intended).saturating_sub(answered)
    }

    /// ACKs and deliveries so far.
    pub(super) fn answers(&self) -> u64 {
        get(&self.acked) + get(&self.delivered)
    }

    /// A device did something again, for the `of_device`th time.
    pub(super) fn retried(&self, of_device: u32) {
        add(&self.retries, 1);
        self.retries_per_device_max.fetch_max(u64::from(of_device), Ordering::Relaxed);
    }

    /// A try to connect failed. `may_refuse`: whether the server may call the token invalid that it was made with.
    pub(super) fn connect_failed(&self, error: &ConnectError, may_refuse: bool) {
        match &error.cause {
            LinkError::Placement(error) => {
                add(&self.http_errors, u64::from(*error == CallError::Unauthorized && !may_refuse));
                return self.call_failed("placement", error);
            }
            LinkError::Local(_) => add(&self.local_errors, 1),
            LinkError::Broken(_) => add(&self.protocol_errors, 1),
            // As of calls: only "busy", with a time to come back, is no failure.
            LinkError::Refused { status: 429 | 503, .. } if error.retry_after.is_some() => {
                return add(&self.throttled, 1);
            }
            LinkError::Refused { .. } | LinkError::Closed(_) if error.cause.is_unauthorized() && may_refuse => {}
            LinkError::Lost(_) | LinkError::TimedOut { .. } | LinkError::Refused { .. } | LinkError::Closed(_) => {
                add(&self.connects_failed, 1);
            }
        }
        self.error(&format!("connect_{}", error.cause.name()));
    }

    /// A connection ended against the plan.
    pub(super) fn connection_lost(&self, error: &LinkError) {
        add(if error.is_local() { &self.local_errors } else { &self.disconnects }, 1);
        add(&self.protocol_errors, u64::from(matches!(error, LinkError::Broken(_))));
        self.error(&error.name());
    }

    /// An API call failed.
    pub(super) fn call_failed(&self, call: &str, error: &CallError) {
        let name = match error {
            CallError::Throttled(_) => return add(&self.throttled, 1),
            CallError::Unauthorized => "unauthorized",
            CallError::NotAMember => "not_a_member",
            CallError::Local(_) => {
                add(&self.local_errors, 1);
                "local"
            }
            CallError::Unreadable(_) => {
                add(&self.protocol_errors, 1);
                "unreadable"
            }
            CallError::Failed(name) => {
                add(&self.http_errors, 1);
                name
            }
        };
        self.error(&format!("{call}_{name}"));
    }

    pub(super) fn error(&self, code: &str) {
        *self.errors.lock().expect("no panic while held").entry(code.to_owned()).or_default() += 1;
    }

    /// Errors so far, by code. The lock is free when this returns, which that of a field in the caller's expression would not be.
    pub(super) fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().expect("no panic while held").clone()
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Takes from a counter.
pub(super) fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}

/// Reads a counter.
pub(super) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_busy_server_that_names_a_time_has_not_failed() {
        let counted = |status, has_time: bool| {
            let retry_after = has_time.then_some(Duration::from_secs(1));
            let cause = LinkError::Refused { status, text: String::new(), retry_after };
            let stats = Stats::default();
            stats.connect_failed(&ConnectError { cause, server: None, retry_after }, false);
            (get(&stats.throttled), get(&stats.connects_failed))
        };
        assert_eq!([429, 503].map(|status| counted(status, true)), [(1, 0); 2]);
        assert_eq!([403, 500, 502].map(|status| counted(status, true)), [(0, 1); 3]);
        assert_eq!(counted(503, false), (0, 1));
    }

    #[test]
    fn a_connection_that_is_lost_here_is_not_lost_by_the_target() {
        let counted = |error: LinkError| {
            let stats = Stats::default();
            stats.connection_lost(&error);
            [&stats.disconnects, &stats.local_errors, &stats.protocol_errors].map(get)
        };
        assert_eq!(counted(LinkError::Lost(String::new())), [1, 0, 0]);
        assert_eq!(counted(LinkError::Local(String::new())), [0, 1, 0]);
        assert_eq!(counted(LinkError::Broken(String::new())), [1, 0, 1]);
    }

    #[test]
    fn a_token_may_be_refused_with_a_reason_only() {
        let failed = |cause: LinkError, may_refuse| {
            let stats = Stats::default();
            stats.connect_failed(&ConnectError { cause, server: None, retry_after: None }, may_refuse);
            (get(&stats.connects_failed), get(&stats.http_errors))
        };
        let refused = || LinkError::Refused { status: 401, text: String::new(), retry_after: None };
        assert_eq!([true, false].map(|may| failed(refused(), may)), [(0, 0), (1, 0)]);
        let placement = || LinkError::Placement(CallError::Unauthorized);
        assert_eq!([true, false].map(|may| failed(placement(), may)), [(0, 0), (0, 1)]);
    }
}
