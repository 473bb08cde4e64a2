//! How a device fetches what it missed: after a connect, where there is a gap, and for the last time at the end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::cursor::Seen;
use super::device::{Device, NEVER};
use super::mailbox::Page;
use super::{Command, Shared, history_seconds};
use crate::loadgen::api::{Error, Source};
use crate::loadgen::recorder::{Path, add, sub};
use crate::protocol::api::{InboxEntry, MessagesSync};
use crate::protocol::{ErrorCode, MessageId};
use crate::runtime::clock;

/// A gap is closed by a sync after this time. Source: DESIGN section 2, "Sync".
const GAP_WAIT_US: u64 = 1_000_000;

/// Messages in one page.
const PAGE: usize = 200;

/// Conversations in one page of the inbox.
const INBOX_PAGE: usize = 500;

/// Longest that the last sync of a device may take.
const FINAL_SYNC: Duration = Duration::from_secs(40);

impl Device {
    /// Lists the inbox in the background.
    pub(super) fn list_inbox(&self) {
        if self.conversations.is_empty() {
            // Nothing can have been said to it: what costs a call for each of a million idle devices tells nothing.
            return self.shared.mailboxes[self.client as usize].put(Command::Heads(Ok(Vec::new())));
        }
        let (shared, client) = (Arc::clone(&self.shared), self.client);
        self.shared.tasks.spawn("load.inbox_sync", async move {
            let result = inbox(&shared, client).await;
            shared.mailboxes[client as usize].put(Command::Heads(result));
        });
    }

    pub(super) fn on_heads(&mut self, result: Result<Vec<InboxEntry>, Error>) {
        if !self.is_connected() {
            return;
        }
        let Ok(heads) = result else {
            self.shared.stats.error("inbox_sync");
            return self.list_inbox();
        };
        let mut left = 0;
        for entry in heads {
            let found = self.shared.world.conversation_index(entry.conversation).and_then(|c| self.find(c));
            let Some(at) = found else { continue };
            let conversation = &mut self.conversations[at];
            if entry.head.0 <= conversation.cursor.upto() {
                continue;
            }
            left += 1;
            conversation.behind().is_catching_up = true;
            if !conversation.is_syncing() {
                self.start_sync(at);
            }
        }
        self.catching_up = Some(left);
        self.check_caught_up();
    }

    fn check_caught_up(&mut self) {
        if self.catching_up == Some(0) {
            self.catching_up = None;
            self.caught_up();
        }
    }

    /// Syncs a conversation with a gap, unless the gap is closed by then.
    pub(super) fn sync_later(&mut self, at: usize) {
        let due_us = self.now_us + GAP_WAIT_US;
        let behind = self.conversations[at].behind();
        if behind.sync_due_us == 0 {
            behind.sync_due_us = due_us;
            self.syncs_due_us = self.syncs_due_us.min(due_us);
        }
    }

    /// Syncs what is due.
    pub(super) fn sync_due(&mut self) {
        self.syncs_due_us = NEVER;
        for at in 0..self.conversations.len() {
            match self.conversations[at].sync_due_us() {
                Some(due_us) if due_us <= self.now_us => {
                    add(&self.shared.stats.gaps_synced, 1);
                    self.start_sync(at);
                }
                Some(due_us) => self.syncs_due_us = self.syncs_due_us.min(due_us),
                None => {}
            }
        }
    }

    /// Fetches the next page of a conversation in the background.
    pub(super) fn start_sync(&mut self, at: usize) {
        let conversation = &mut self.conversations[at];
        let behind = conversation.behind();
        behind.is_syncing = true;
        behind.sync_due_us = 0;
        let (index, after) = (conversation.index, conversation.cursor.upto());
        let (shared, client) = (Arc::clone(&self.shared), self.client);
        self.shared.tasks.spawn("load.messages_sync", async move {
            let page = fetch(&shared, client, index, after).await;
            shared.mailboxes[client as usize].put(Command::Page(Box::new(page)));
        });
    }

    pub(super) fn on_page(&mut self, page: Page) {
        let Some(at) = self.find(page.conversation) else { return };
        let more = self.take_page(at, page);
        let conversation = &mut self.conversations[at];
        conversation.behind().is_syncing = false;
        if more == Some(true) {
            return self.start_sync(at);
        }
        let was_catching_up = std::mem::take(&mut conversation.behind().is_catching_up);
        if conversation.is_behind() && more.is_some() {
            self.sync_later(at);
        } else {
            conversation.behind().sync_due_us = 0;
            conversation.settle();
        }
        if was_catching_up {
            self.catching_up = self.catching_up.map(|left| left.saturating_sub(1));
            self.check_caught_up();
        }
    }

    /// Takes a page; returns whether there is more to fetch at once, or `None` when the user is no member any more.
    fn take_page(&mut self, at: usize, page: Page) -> Option<bool> {
        let answer = match page.result {
            Ok(answer) => answer,
            Err(error) if error.code() == Some(ErrorCode::NotAMember) => {
                self.conversations[at].behind().head = 0;
                return None;
            }
            Err(_) => {
                self.shared.stats.error("messages_sync");
                // Tried again a second later, as a gap.
                let conversation = &mut self.conversations[at];
                let next = conversation.cursor.upto() + 1;
                let behind = conversation.behind();
                behind.head = behind.head.max(next);
                return Some(false);
            }
        };
        let shared = Arc::clone(&self.shared);
        shared.recorder.record(self.client, Path::Sync, page.started_us, clock::now_us() - page.started_us);
        self.note_sync(at, page.after, page.started_s, &answer);
        let rows: Vec<Seen> = answer.messages.iter().filter_map(|message| self.check(message)).collect();
        let mut show = Vec::new();
        let conversation = &mut self.conversations[at];
        let before = conversation.cursor.upto();
        conversation.cursor.on_page(&rows, answer.stable.0, answer.has_more, &mut show);
        let moved = conversation.cursor.upto() > before;
        self.show(at, &show);
        Some(answer.has_more && moved)
    }

    fn note_sync(&self, at: usize, after: u64, started_s: f64, answer: &MessagesSync) {
        let (user, device) = self.name();
        self.shared.note("sync", || {
            let conversation = self.shared.world.conversations[self.conversations[at].index as usize].id;
            let rows: Vec<_> = answer.messages.iter().map(|m| json!([m.id, m.uuid])).collect();
            let reach =
                if answer.has_more { answer.messages.last().map_or(MessageId(after), |m| m.id) } else { answer.stable };
            json!({"user": user, "dev": device, "conv": conversation, "after": after, "msgs": rows, "t0": started_s,
                   "upto": reach.min(answer.stable), "vis": false})
        });
    }

    /// Syncs every conversation to its end; returns whether that worked.
    pub(super) async fn final_sync(&mut self) -> bool {
        let left = self.pending.len() as u64;
        add(&self.shared.stats.unresolved, left);
        sub(&self.shared.stats.pending, left);
        if self.conversations.is_empty() {
            return true;
        }
        let deadline = clock::instant() + FINAL_SYNC;
        loop {
            let behind = self.sync_round().await;
            if behind == Some(0) {
                return true;
            }
            if clock::instant() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Syncs what the inbox calls new; returns how many conversations are behind all the same.
    async fn sync_round(&mut self) -> Option<usize> {
        let shared = Arc::clone(&self.shared);
        let heads = inbox(&shared, self.client).await.ok()?;
        let mut behind = 0;
        for entry in heads {
            let Some(at) = shared.world.conversation_index(entry.conversation).and_then(|c| self.find(c)) else {
                continue;
            };
            loop {
                let conversation = &self.conversations[at];
                if entry.head.0 <= conversation.cursor.upto() {
                    break;
                }
                let page = fetch(&shared, self.client, conversation.index, conversation.cursor.upto()).await;
                self.now_us = clock::now_us();
                if page.result.is_err() || self.take_page(at, page) != Some(true) {
                    break;
                }
            }
            behind += usize::from(entry.head.0 > self.conversations[at].cursor.upto());
        }
        Some(behind)
    }
}

async fn inbox(shared: &Shared, client: u32) -> Result<Vec<InboxEntry>, Error> {
    let token = &shared.world.clients[client as usize].token;
    let mut all: Vec<InboxEntry> = Vec::new();
    loop {
        let after = all.last().map(|entry| entry.conversation);
        let page = shared.api.inbox_sync(token, after, INBOX_PAGE).await?;
        all.extend(page.conversations);
        if !page.has_more {
            return Ok(all);
        }
    }
}

async fn fetch(shared: &Shared, client: u32, conversation: u32, after: u64) -> Page {
    let token = &shared.world.clients[client as usize].token;
    let id = shared.world.conversations[conversation as usize].id;
    let started_us = clock::now_us();
    let result = shared.api.messages_sync(token, id, MessageId(after), PAGE, Source::Any).await;
    Page { conversation, after, started_us, started_s: history_seconds(started_us), result }
}
