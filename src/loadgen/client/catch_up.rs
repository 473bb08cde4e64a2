//! How a device fetches what it missed: after a connect, where there is a gap, and for the last time at the end.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use super::causes::Causes;
use super::connection::Call;
use super::conversation::DeviceConversation;
use super::cursor::Seen;
use super::device::Device;
use super::event::{Action, CallError, Page};
use super::mutant::{Mutant, is_planted};
use super::talk::Fetched;
use crate::loadgen::fault_track::Consequence;
use crate::loadgen::ledger::Kind;
use crate::loadgen::retry::after;
use crate::loadgen::stats::add;
use crate::protocol::api::{InboxEntry, MessagesSync};
use crate::telemetry::LatencyPath;

/// A gap is closed by a sync after this time.
const GAP_WAIT_US: u64 = 1_000_000;

/// Longest wait between two syncs of a gap that stays; the wait doubles with each one that changes nothing.
const GAP_WAIT_MAX_US: u64 = 16_000_000;

/// Syncs in a row that change nothing, after which news are taken for made up.
const VAIN_SYNCS: u8 = 3;

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// There is more to fetch at once.
    More,
    /// This was the last page for now.
    Last,
    /// The call failed, or its answer changed nothing though there is more: try again later.
    Stuck,
    /// The user is no member any more.
    Gone,
}

impl Device {
    /// Begins to fetch everything that was said while this device could not hear it.
    pub(super) fn catch_up(&mut self) {
        self.stop_catching_up();
        self.call_causes = Causes::default();
        self.catching_up = Some(0);
        if self.conversations.is_empty() {
            // Nothing can have been said to it: what costs a call for each of a million idle devices tells nothing.
            return self.check_caught_up();
        }
        let now = self.now_us;
        let reconnection = self.reconnection();
        reconnection.call_backoff.reset();
        if reconnection.list_not_before_us > now {
            // The server asked for time, and a new connection is no answer to that.
            reconnection.listing = Call::RetryAt(reconnection.list_not_before_us);
            return;
        }
        self.list_inbox();
    }

    /// Ends the catching up, and ignores what is under way for it.
    pub(super) fn stop_catching_up(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.catching_up = None;
        if self.is_reconnecting() {
            self.reconnection().listing = Call::Idle;
        }
        self.give_up_pages();
        for conversation in &mut self.conversations {
            conversation.stop_catching_up();
            conversation.settle();
        }
    }

    /// Pages that did not come by the end of a connection count as having taken at least until now.
    fn give_up_pages(&mut self) {
        self.end_pages(DeviceConversation::give_up_page);
    }

    /// The same at the end of the device, of all pages: no answer comes any more.
    pub(super) fn abandon_pages(&mut self) {
        self.end_pages(DeviceConversation::abandon_page);
    }

    fn end_pages(&mut self, end: fn(&mut DeviceConversation) -> Option<u64>) {
        let (now, run) = (self.now_us, &self.run);
        for since_us in self.conversations.iter_mut().filter_map(end) {
            run.recorder.record(LatencyPath::Sync, since_us, now.saturating_sub(since_us));
        }
    }

    pub(super) fn list_inbox(&mut self) {
        let now = self.now_us;
        let reconnection = self.reconnection();
        (reconnection.listing, reconnection.listed_us) = (Call::UnderWay, now);
        let generation = self.generation;
        self.act(Action::ListInbox { generation });
    }

    pub(super) fn on_inbox(&mut self, generation: u32, result: Result<Vec<InboxEntry>, CallError>) {
        if generation != self.generation && !is_planted(Mutant::StaleAnswerTaken) {
            // Nobody waits for it any more, and what went wrong is counted all the same.
            if let Err(error) = &result {
                self.run.stats.call_failed("inbox_sync", error);
            }
            return;
        }
        let heads = match result {
            Ok(heads) => heads,
            Err(error) => return self.on_inbox_failed(&error),
        };
        let asked_us = self.reconnection().listed_us;
        self.reconnection().listing = Call::Idle;
        let mut left = 0;
        for entry in heads {
            // A conversation whose making was told as failed may be there all the same, without a message.
            let is_made = entry.head.0 > 0 || self.run.world.conversation_index(entry.conversation).is_some();
            let own = || self.own_conversation(entry.conversation, "an entry of the inbox", asked_us);
            let Some(at) = is_made.then(own).flatten() else { continue };
            // The conversation was made by this run.
            if entry.head.0 > 0 && !self.is_of_run(entry.at) {
                self.break_protocol("inbox_time");
            }
            let conversation = &mut self.conversations[at];
            if entry.head.0 <= conversation.cursor.upto() {
                continue;
            }
            left += 1;
            let behind = conversation.behind();
            behind.catching_upto = entry.head.0;
            if !is_planted(Mutant::HeadForgotten) {
                behind.head = behind.head.max(entry.head.0);
            }
            self.sync_news(at);
        }
        self.catching_up = Some(left);
        self.check_caught_up();
    }

    fn on_inbox_failed(&mut self, error: &CallError) {
        self.call_failed("inbox_sync", error);
        let mut rng = self.rng();
        let now = self.now_us;
        let asked = error.retry_after().unwrap_or_default();
        let reconnection = self.reconnection();
        let wait = reconnection.call_backoff.next_wait(&mut rng).saturating_add(asked);
        let wait = if is_planted(Mutant::RetryWithoutWait) { Duration::ZERO } else { wait };
        reconnection.list_not_before_us = after(now, asked.min(wait));
        reconnection.listing = Call::RetryAt(after(now, wait));
    }

    /// Counts a failed call that will be repeated, and gets a new token where that is the reason.
    fn call_failed(&mut self, call: &'static str, error: &CallError) {
        self.call_causes.note(matches!(error, CallError::Local(_)));
        self.run.stats.call_failed(call, error);
        self.run.consequence(Consequence::Error, self.now_us, self.now_us);
        if *error == CallError::Unauthorized {
            self.log_in();
        }
        self.count_retry();
    }

    fn check_caught_up(&mut self) {
        if self.catching_up == Some(0) {
            self.catching_up = None;
            self.caught_up();
        }
    }

    /// Syncs a conversation that is behind, unless it has caught up by then. The wait doubles with each sync that changed
    /// nothing.
    pub(super) fn sync_later(&mut self, at: usize) {
        let attempts = self.conversations[at].behind().attempts;
        let wait_us = (GAP_WAIT_US << attempts.min(8)).min(GAP_WAIT_MAX_US);
        let jitter_us = if attempts == 0 { 0 } else { self.rng().random_range(0..=wait_us / 4) };
        self.sync_at(at, self.now_us + wait_us + jitter_us);
    }

    fn sync_at(&mut self, at: usize, due_us: u64) {
        let behind = self.conversations[at].behind();
        if behind.sync_due_us == 0 {
            behind.sync_due_us = due_us.max(behind.put_off_until_us);
        }
    }

    /// Fetches what is new, unless that is under way: at once, or when the sync that failed may be repeated. A server
    /// that has asked for time gets it, however much there is to tell.
    pub(super) fn sync_news(&mut self, at: usize) {
        let now = self.now_us;
        let behind = self.conversations[at].behind();
        if behind.is_syncing {
            return;
        }
        if behind.put_off_until_us > now {
            return self.sync_at(at, now);
        }
        self.start_sync(at);
    }

    /// Syncs what is due.
    pub(super) fn sync_due(&mut self) {
        for at in 0..self.conversations.len() {
            if self.conversations[at].sync_due_us().is_some_and(|due_us| due_us <= self.now_us) {
                add(&self.run.stats.gaps_synced, 1);
                self.start_sync(at);
            }
        }
    }

    /// Fetches the next page of a conversation.
    fn start_sync(&mut self, at: usize) {
        let now = self.now_us;
        let conversation = &mut self.conversations[at];
        let behind = conversation.behind();
        behind.is_syncing = true;
        behind.sync_due_us = 0;
        if behind.tried_since_us == 0 {
            behind.tried_since_us = now;
        }
        let (conversation, after) = (conversation.index, conversation.cursor.upto());
        self.act(Action::FetchPage { conversation, after });
    }

    pub(super) fn on_page(&mut self, page: Page) {
        let Some(at) = self.find(page.conversation) else { return };
        let upto = self.conversations[at].cursor.upto();
        let behind = self.conversations[at].behind();
        behind.waited_us = behind.waited_us.saturating_add(page.waited_us);
        let retry_after = page.result.as_ref().err().and_then(CallError::retry_after);
        let progress = self.take_page(at, page);
        let conversation = &mut self.conversations[at];
        let has_moved = conversation.cursor.upto() > upto;
        let behind = conversation.behind();
        behind.is_syncing = false;
        behind.put_off_until_us = 0;
        behind.attempts = if has_moved { 0 } else { behind.attempts.saturating_add(1) };
        let is_behind = conversation.is_behind();
        match progress {
            Progress::More => return self.start_sync(at),
            Progress::Last if is_behind => {
                // The target owes what it has told of.
                self.call_causes.note(false);
                let conversation = &mut self.conversations[at];
                conversation.behind().waited_us = 0;
                self.sync_later(at);
            }
            Progress::Stuck => {
                // Counted from the failure, whatever was planned before it.
                conversation.behind().sync_due_us = 0;
                self.sync_later(at);
                let behind = self.conversations[at].behind();
                behind.sync_due_us = if is_planted(Mutant::RetryWithoutWait) {
                    self.now_us
                } else {
                    after(behind.sync_due_us, retry_after.unwrap_or_default())
                };
                behind.put_off_until_us = behind.sync_due_us;
            }
            Progress::Last | Progress::Gone => {
                let behind = conversation.behind();
                (behind.sync_due_us, behind.waited_us) = (0, 0);
                behind.attempts = 0;
            }
        }
        if progress == Progress::Stuck && !self.is_connected() && !self.is_finishing() {
            // The next connection tries it anew: the time until then is not the page's.
            self.give_up_pages();
        }
        let has_caught_up = !is_behind || self.has_enough(at);
        let is_done = match progress {
            Progress::Gone => true,
            Progress::Stuck | Progress::More => false,
            Progress::Last => has_caught_up || is_planted(Mutant::HeadForgotten),
        };
        if is_done {
            self.conversation_caught_up(at);
        }
        self.conversations[at].settle();
    }

    /// Whether a conversation that is behind has caught up all the same. Before the end with everything that was said until the
    /// connect: there may always be news. At the end everything has to be there, except what several syncs have not found.
    fn has_enough(&self, at: usize) -> bool {
        let conversation = &self.conversations[at];
        let is_told_of_nothing = conversation.attempts() >= VAIN_SYNCS && !conversation.cursor.has_gap();
        conversation.has_caught_up() && (!self.is_finishing() || is_told_of_nothing)
    }

    fn conversation_caught_up(&mut self, at: usize) {
        if self.conversations[at].end_catching_up() {
            self.catching_up = self.catching_up.map(|left| left.saturating_sub(1));
            self.check_caught_up();
        }
    }

    /// Nothing is left to fetch of a conversation that live messages have brought up to date.
    pub(super) fn rest(&mut self, at: usize) {
        let conversation = &self.conversations[at];
        if !conversation.has_work() || conversation.is_syncing() {
            return;
        }
        if conversation.is_behind() {
            if self.has_enough(at) {
                self.conversation_caught_up(at);
            }
            return;
        }
        let now = self.now_us;
        if let Some(since_us) = self.conversations[at].give_up_page() {
            // What it was to bring has come another way.
            self.run.recorder.record(LatencyPath::Sync, since_us, now.saturating_sub(since_us));
        }
        let behind = self.conversations[at].behind();
        behind.sync_due_us = 0;
        if behind.put_off_until_us <= now {
            behind.put_off_until_us = 0;
        }
        self.conversation_caught_up(at);
        self.conversations[at].settle();
    }

    fn take_page(&mut self, at: usize, page: Page) -> Progress {
        let answer = match page.result {
            Ok(answer) => answer,
            Err(CallError::NotAMember) => {
                let (world, user) = (&self.run.world, self.user);
                if !self.run.ledger.was_settled_since(world, page.conversation, user, page.started_us) {
                    let behind = self.conversations[at].behind();
                    (behind.head, behind.tried_since_us) = (0, 0);
                    return Progress::Gone;
                }
                // A member is refused what is the user's own.
                self.call_failed("messages_sync", &CallError::Failed("not_a_member".to_owned()));
                return Progress::Stuck;
            }
            Err(error) => {
                self.call_failed("messages_sync", &error);
                return Progress::Stuck;
            }
        };
        let run = Arc::clone(&self.run);
        // From its first try: one that failed is part of what it took.
        let since_us = std::mem::take(&mut self.conversations[at].behind().tried_since_us);
        let since_us = if since_us == 0 { page.started_us } else { since_us.min(page.started_us) };
        run.recorder.record(LatencyPath::Sync, since_us, page.ended_us.saturating_sub(since_us));
        self.note_sync(at, page.after, page.started_us, &answer);
        let rows = self.read_rows(page.conversation, page.after, &answer);
        let mut show = Vec::new();
        let conversation = &mut self.conversations[at];
        let announced = conversation.announced();
        let before = conversation.cursor.upto();
        conversation.cursor.on_page(&rows, answer.stable.0, answer.has_more, &mut show);
        let has_moved = conversation.cursor.upto() > before;
        // What an earlier page or a failed try waited for, this one's messages waited for, too.
        let lag_us = conversation.behind().waited_us;
        self.show(at, &show, Fetched { announced, lag_us });
        match (answer.has_more, has_moved) {
            (true, true) => Progress::More,
            (true, false) => {
                self.call_causes.note(false);
                Progress::Stuck
            }
            (false, _) => Progress::Last,
        }
    }

    /// The rows of a page that are what was asked for.
    fn read_rows(&self, conversation: u32, after: u64, answer: &MessagesSync) -> Vec<Seen> {
        let (run, id) = (&self.run, self.run.world.conversations[conversation as usize].id);
        let ids = || answer.messages.iter().map(|message| message.id.0);
        if std::iter::once(after).chain(ids()).zip(ids()).any(|(before, id)| id <= before) {
            add(&run.stats.protocol_errors, 1);
            run.stats.error("messages_sync_out_of_order");
        }
        let mut rows = Vec::with_capacity(answer.messages.len());
        for message in &answer.messages {
            if message.conversation == id {
                rows.extend(self.check(message, false));
            } else {
                run.ledger.violation(Kind::Leaked, || {
                    format!("{} id {} came in a page of {id}", message.conversation, message.id)
                });
            }
        }
        rows
    }
}

impl DeviceConversation {
    /// Ends this conversation's part of the catching up; returns whether it had one.
    fn end_catching_up(&mut self) -> bool {
        std::mem::take(&mut self.behind().catching_upto) > 0
    }
}
