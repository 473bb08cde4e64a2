//! Messages that a sync fetched where a push had to bring them: the push may still come, only late.

use std::collections::HashSet;
use std::sync::Mutex;

/// So many are remembered. Where more are missing, pushes that come late stay counted as missing.
const UNPUSHED_MAX: usize = 100_000;

/// One message on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::loadgen) struct MessageCopy {
    /// Index of the device.
    pub(in crate::loadgen) client: u32,
    /// Index of the conversation.
    pub(in crate::loadgen) conversation: u32,
    /// The message's id.
    pub(in crate::loadgen) id: u64,
}

/// The messages whose push is missing so far. Locked only when one is missing, or comes twice.
#[derive(Debug, Default)]
pub(in crate::loadgen) struct Unpushed(Mutex<HashSet<MessageCopy>>);

impl Unpushed {
    /// A sync was faster than the push.
    pub(in crate::loadgen) fn note(&self, copy: MessageCopy) {
        let mut unpushed = self.0.lock().expect("no panic while held");
        if unpushed.len() < UNPUSHED_MAX {
            unpushed.insert(copy);
        }
    }

    /// A push came of what was here before. Returns whether it is one that was missing.
    pub(in crate::loadgen) fn came(&self, copy: MessageCopy) -> bool {
        self.0.lock().expect("no panic while held").remove(&copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_that_comes_late_is_missing_no_more_and_counts_once() {
        let unpushed = Unpushed::default();
        let copy = |id| MessageCopy { client: 1, conversation: 2, id };
        unpushed.note(copy(7));
        assert!(!unpushed.came(copy(8)), "that one was never missing");
        assert!(unpushed.came(copy(7)));
        assert!(!unpushed.came(copy(7)), "sent twice");
    }
}
