//! What a device waits for at the end of the load, and how long it has waited until then: pushes that a sync has overtaken, and
//! what it missed while it was away. No I/O.

use super::conversation::DeviceConversation;
use super::device::Device;
use crate::loadgen::ledger::{Kind, PUSH_WAIT_US, device};
use crate::loadgen::stats::add;

/// A device that is still fetching what it missed so long after its connect has not caught up; nor has one that lost its
/// connection so long ago.
const CAUGHT_UP_WITHIN_US: u64 = 10_000_000;

/// No device waits that long for its next sync unless the server asks for it.
const WAIT_MAX_US: u64 = 25_000_000;

/// Pushes to a device on its present connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pushes {
    /// None is missing.
    #[default]
    There,
    /// One is missing.
    Missing,
    /// Everything is synced for the last time, and only what is missing is waited for.
    Awaited,
}

impl Device {
    /// Counts the device, at the end of the load, where it has waited too long; apart where it is this machine that keeps it from
    /// a connection, or from what it fetches.
    pub(super) fn count_not_caught_up(&self) {
        if self.has_waited_too_long() {
            let causes = if self.is_connected() { self.call_causes } else { self.connect_causes };
            let is_here = causes.are_only_here();
            add(&self.run.stats.not_caught_up, 1);
            add(&self.run.stats.not_caught_up_local, u64::from(is_here));
        }
    }

    /// Whether, at the end of the load, its person has waited too long for what was said: since a connect without having caught
    /// up, without a connection, or because the server asked for a wait of half a minute.
    fn has_waited_too_long(&self) -> bool {
        let is_long_ago = |at_us: u64| {
            // Asking what there is, and where to connect, may have waited for the generator for as long as calls did since.
            let call_lag_us = self.run.stats.own_call_lags.longest_since(at_us);
            at_us.saturating_add(CAUGHT_UP_WITHIN_US).saturating_add(call_lag_us) <= self.now_us
        };
        if !self.is_connected() {
            let lost = self.reconnection.as_deref().and_then(|reconnection| reconnection.lost);
            return self.there_since_us > 0 && lost.is_some_and(|(lost_us, _)| is_long_ago(lost_us));
        }
        let has_to_wait = |due_us: u64| due_us > self.now_us.saturating_add(WAIT_MAX_US);
        self.catching_up.is_some() && is_long_ago(self.opened_us)
            || self.conversations.iter().any(|own| own.is_behind() && own.sync_due_us().is_some_and(has_to_wait))
    }

    /// Everything is synced for the last time. A push that a sync has overtaken is waited for, as an answer to a message is.
    pub(super) fn finished(&mut self) {
        if self.pushes == Pushes::Awaited {
            if self.conversations.iter().any(DeviceConversation::is_syncing) {
                return;
            }
        } else {
            self.check_news();
        }
        let shown_us = if self.pushes != Pushes::There && self.is_connected() { self.unpushed_since() } else { None };
        match shown_us.map(|shown_us| shown_us.saturating_add(PUSH_WAIT_US)).filter(|until_us| *until_us > self.now_us)
        {
            Some(until_us) => {
                self.pushes = Pushes::Awaited;
                self.finish_by_us = self.finish_by_us.min(until_us);
            }
            None => self.end(true),
        }
    }

    /// Who was told of news that are not there was told something made up: all that is stored has been fetched.
    fn check_news(&self) {
        for own in &self.conversations {
            if let Some(told) = own.news_of_nothing() {
                self.run.ledger.violation(Kind::Forged, || {
                    let name = self.run.world.conversation_name(own.index);
                    format!(
                        "news of {name} up to id {told}, where nothing has that id, came to {}",
                        device(&self.run.world, self.client)
                    )
                });
            }
        }
    }

    /// When the newest message was shown whose push is missing.
    fn unpushed_since(&self) -> Option<u64> {
        self.run.ledger.unpushed.newest_us(self.client)
    }

    /// A sync brought a message that a push had to bring.
    pub(super) fn push_is_missing(&mut self) {
        if self.pushes == Pushes::There {
            self.pushes = Pushes::Missing;
        }
    }

    /// The connection has ended: what was on its way is not missing, and what is awaited does not come any more.
    pub(super) fn pushes_are_cut(&mut self) {
        let pushes = std::mem::take(&mut self.pushes);
        if pushes != Pushes::There {
            let cut = self.run.ledger.unpushed.cut(self.client, self.now_us);
            self.run.excuse_pushes(cut);
            if self.unpushed_since().is_some() {
                self.pushes = Pushes::Missing;
            }
        }
        if pushes == Pushes::Awaited {
            self.end(true);
        }
    }

    /// The news of a large channel came, up to an id, of which a sync has brought some before.
    pub(super) fn push_of_all_came(&mut self, conversation: u32, upto: u64) {
        if self.pushes != Pushes::There {
            let came = self.run.ledger.unpushed.came_upto(self.client, conversation, upto);
            add(&self.run.stats.pushed, came);
            add(&self.run.stats.pushed_by_head, came);
            self.pushes_came(came);
        }
    }

    /// Pushes came of what a sync had brought before.
    pub(super) fn pushes_came(&mut self, came: u64) {
        if self.pushes == Pushes::Awaited {
            self.finished();
        } else if came > 0 && self.unpushed_since().is_none() {
            self.pushes = Pushes::There;
        }
    }
}
