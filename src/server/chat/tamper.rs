//! A hook for tests that break the server on purpose, to prove that a load test notices.

use std::time::Duration;

use crate::protocol::{MessageFrame, UserId};

/// Changes what a chat server does with messages. Production has none.
pub trait Tamper: Send + Sync {
    /// What a recipient gets instead of a message: none, the same, another one, several.
    fn outgoing(&self, to: UserId, message: &MessageFrame) -> Vec<MessageFrame> {
        let _ = to;
        vec![message.clone()]
    }

    /// How long a delivery is held back.
    fn delay(&self) -> Duration {
        Duration::ZERO
    }

    /// True to deliver to users who are not members any more.
    fn ignores_removals(&self) -> bool {
        false
    }
}
