//! Connections that a server closes while they are idle, as it may whenever it likes: also while the next request is on its way.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

/// Longest that a connection without a request is kept.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10);

/// Connections from which on those that are no more are forgotten.
const USED_MAX: usize = 4_096;

/// Whether a request found its connection closed, rather than an answer that can't be read.
pub(super) fn is_of_closed(error: &(dyn std::error::Error + 'static)) -> bool {
    let is_closed = |error: &(dyn std::error::Error + 'static)| {
        let by_http = error.downcast_ref::<hyper::Error>();
        let by_socket = error.downcast_ref::<std::io::Error>();
        by_http.is_some_and(|e| e.is_incomplete_message() || e.is_closed() || e.is_canceled())
            || by_socket.is_some_and(|e| matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
    };
    std::iter::successors(Some(error), |error| error.source()).any(is_closed)
}

/// Connections that carried an answer lately, by their ends here, with the time of the last one (µs). The pool keeps none for
/// longer than [`IDLE_MAX`]: what is older was another connection from the same port.
#[derive(Default)]
pub(super) struct UsedConnections(Mutex<HashMap<SocketAddr, u64>>);

impl UsedConnections {
    pub(super) fn has_answered(&self, own_end: SocketAddr, now_us: u64) {
        let mut used = self.0.lock().expect("no panic while held");
        if used.len() >= USED_MAX {
            used.retain(|_, at_us| is_recent(*at_us, now_us));
        }
        used.insert(own_end, now_us);
    }

    /// A connection has ended. Returns whether it had carried an answer.
    pub(super) fn has_ended(&self, own_end: SocketAddr, now_us: u64) -> bool {
        let last_us = self.0.lock().expect("no panic while held").remove(&own_end);
        last_us.is_some_and(|last_us| is_recent(last_us, now_us))
    }
}

fn is_recent(at_us: u64, now_us: u64) -> bool {
    now_us.saturating_sub(at_us) <= IDLE_MAX.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_known_by_its_port_for_as_long_as_it_may_be_kept() {
        let used = UsedConnections::default();
        let own_end = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let idle_us = IDLE_MAX.as_micros() as u64;
        used.has_answered(own_end(1), 100);
        used.has_answered(own_end(2), 100);
        assert!(used.has_ended(own_end(1), 100 + idle_us) && !used.has_ended(own_end(1), 100), "it ends once");
        assert!(!used.has_ended(own_end(2), 101 + idle_us), "another one from the same port");
        for port in 0..5_000 {
            used.has_answered(own_end(port), 200 + u64::from(port) * idle_us);
        }
        assert!(used.0.lock().expect("no panic").len() <= USED_MAX);
    }

    #[test]
    fn an_answer_that_can_not_be_read_is_no_closed_connection() {
        let io = |kind: ErrorKind| std::io::Error::from(kind);
        assert!(is_of_closed(&io(ErrorKind::ConnectionReset)) && is_of_closed(&io(ErrorKind::BrokenPipe)));
        assert!(!is_of_closed(&io(ErrorKind::InvalidData)) && !is_of_closed(&io(ErrorKind::TimedOut)));
    }
}
