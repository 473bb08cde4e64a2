//! A device's loop. Inputs: its socket, its mailbox, the clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::json;
use uuid::Uuid;

use super::cursor::{Arrival, Cursor, Seen};
use super::link::{Link, LinkError};
use super::presence::OfflineTold;
use super::{Command, Page, Shared, history_seconds};
use crate::loadgen::body::Tag;
use crate::loadgen::ledger::Kind;
use crate::loadgen::ledger::ranges::Ranges;
use crate::loadgen::recorder::{Path, add, sub};
use crate::protocol::api::{ConversationKind, InboxEntry, MessagesSync, Placement};
use crate::protocol::frames::{AckFrame, ConversationFrame, ErrorFrame, PresenceFrame, PresenceState, SendFrame};
use crate::protocol::{ClientFrame, CloseCode, ErrorCode, MessageFrame, MessageId, ServerFrame, ServerName};
use crate::runtime::{Backoff, clock};

/// A gap is closed by a sync after this time. Source: DESIGN section 2, "Sync".
const GAP_WAIT_US: u64 = 1_000_000;

/// Time without an answer after which a message is sent again.
const RETRY_WAIT_US: u64 = 5_000_000;

/// Longest that a person who leaves waits for the answer to a message.
const LEAVE_WAIT_US: u64 = 2_000_000;

/// Messages in one page.
const PAGE: usize = 200;

/// Conversations in one page of the inbox.
const INBOX_PAGE: usize = 500;

/// Longest that the last sync of a device may take.
const FINAL_SYNC: Duration = Duration::from_secs(40);

/// What a device has of one conversation.
#[derive(Default)]
pub(in crate::loadgen) struct DeviceConversation {
    pub(in crate::loadgen) index: u32,
    cursor: Cursor,
    pub(in crate::loadgen) shown: Ranges,
    pub(in crate::loadgen) acked: Ranges,
    counter: u32,
    /// The newest id heard of in a `head` frame.
    head: u64,
    /// When to sync; 0 for never.
    sync_due_us: u64,
    is_syncing: bool,
    /// True while this sync belongs to the catching up after a connect.
    is_catching_up: bool,
}

/// What is left of a device at the end.
pub(in crate::loadgen) struct DeviceState {
    pub(in crate::loadgen) client: u32,
    pub(in crate::loadgen) user: u32,
    pub(in crate::loadgen) conversations: Vec<DeviceConversation>,
    pub(in crate::loadgen) ever_connected: bool,
    /// True when the last sync reached the end of every conversation.
    pub(in crate::loadgen) is_drained: bool,
}

/// A message without an answer yet.
struct Pending {
    tag: Tag,
    bytes: u32,
    next_try_us: u64,
}

/// A simulated device.
pub(in crate::loadgen) struct Device {
    shared: Arc<Shared>,
    client: u32,
    user: u32,
    rng: SmallRng,
    link: Option<Box<Link>>,
    /// When the connection was welcomed.
    opened_us: u64,
    is_wanted: bool,
    /// When being connected became due; 0 once it was measured.
    wanted_since_us: u64,
    connect_at_us: u64,
    backoff: Backoff,
    /// The server that could not be reached last.
    avoid: Option<ServerName>,
    has_used_login: bool,
    ever_connected: bool,
    beat_due_us: u64,
    pending: HashMap<Uuid, Pending>,
    conversations: Vec<DeviceConversation>,
    /// Syncs that are left before this connection has caught up; `None` when it has.
    catching_up: Option<u32>,
    /// When the connection was lost, and by which fault; until it has caught up.
    lost: Option<(u64, Option<usize>)>,
    finish_by_us: Option<u64>,
    /// When to go offline at the latest, once what was sent is answered; 0 for not at all.
    leave_by_us: u64,
}

impl Device {
    pub(in crate::loadgen) fn new(shared: &Arc<Shared>, client: u32) -> Self {
        let user = shared.world.clients[client as usize].user;
        let own = &shared.world.users[user as usize].conversations;
        let conversation = |index: &u32| DeviceConversation { index: *index, ..DeviceConversation::default() };
        let reconnect = shared.scenario.reconnect;
        Self {
            client,
            user,
            rng: SmallRng::seed_from_u64(shared.scenario.seed ^ (u64::from(client) << 20)),
            link: None,
            opened_us: 0,
            is_wanted: false,
            wanted_since_us: 0,
            connect_at_us: 0,
            backoff: Backoff::new(reconnect.first, reconnect.max),
            avoid: None,
            has_used_login: false,
            ever_connected: false,
            beat_due_us: 0,
            pending: HashMap::new(),
            conversations: own.iter().map(conversation).collect(),
            catching_up: None,
            lost: None,
            finish_by_us: None,
            leave_by_us: 0,
            shared: Arc::clone(shared),
        }
    }

    fn name(&self) -> (String, &str) {
        self.shared.device_name(self.client)
    }

    fn token(&self) -> &str {
        let login = self.shared.world.clients[self.client as usize].login.as_ref();
        login.map_or("", |login| &login.token)
    }

    /// Lives until it is told to finish and has.
    ///
    /// The rare and large parts (connecting, the last sync) are boxed, so that they take no memory while waiting.
    pub(in crate::loadgen) async fn run(mut self: Box<Self>) -> DeviceState {
        let mut frames = Vec::new();
        while !self.is_finished() {
            if self.is_wanted && self.link.is_none() && clock::now_us() >= self.connect_at_us {
                Box::pin(self.connect()).await;
            }
            self.wait(&mut frames).await;
            for frame in frames.drain(..) {
                self.on_frame(frame);
            }
            for command in self.mailbox().take() {
                self.on_command(command);
            }
            self.on_time();
            if self.leave_by_us > 0 && (self.pending.is_empty() || clock::now_us() >= self.leave_by_us) {
                self.leave_by_us = 0;
                Box::pin(self.go_offline()).await;
            }
            if let Some(link) = self.link.as_mut().filter(|link| link.has_output())
                && let Err(error) = Box::pin(link.flush()).await
            {
                self.disconnected(&error);
            }
        }
        let is_drained = Box::pin(self.final_sync()).await;
        let (user, device) = self.name();
        self.shared.note("end", || json!({"user": user, "dev": device, "drained": is_drained}));
        Box::pin(self.go_offline()).await;
        DeviceState {
            client: self.client,
            user: self.user,
            conversations: self.conversations,
            ever_connected: self.ever_connected,
            is_drained,
        }
    }

    fn mailbox(&self) -> &super::Mailbox {
        &self.shared.mailboxes[self.client as usize]
    }

    fn is_finished(&self) -> bool {
        let is_quiet = self.pending.is_empty() && self.catching_up.is_none() && self.link.is_some();
        self.finish_by_us.is_some_and(|by| is_quiet || clock::now_us() >= by)
    }

    /// Waits for the socket, the mailbox or the next thing that is due.
    async fn wait(&mut self, frames: &mut Vec<ServerFrame>) {
        let due = self.next_due_us();
        let shared = Arc::clone(&self.shared);
        let news = shared.mailboxes[self.client as usize].news.notified();
        let result = if let Some(link) = &mut self.link {
            tokio::select! {
                result = link.read(frames) => result,
                () = news => Ok(()),
                () = clock::sleep_until_us(due) => Ok(()),
            }
        } else {
            tokio::select! {
                () = news => Ok(()),
                () = clock::sleep_until_us(due) => Ok(()),
            }
        };
        if let Err(error) = result {
            // What came before the end counts.
            for frame in frames.drain(..) {
                self.on_frame(frame);
            }
            self.disconnected(&error);
        }
    }

    fn next_due_us(&self) -> u64 {
        const FAR: u64 = 3_600_000_000;
        let now = clock::now_us();
        let mut due = self.finish_by_us.unwrap_or(now + FAR);
        if self.leave_by_us > 0 {
            due = due.min(self.leave_by_us);
        }
        if self.link.is_some() {
            due = due.min(self.beat_due_us);
            due = self.pending.values().map(|p| p.next_try_us).fold(due, u64::min);
            let syncs = self.conversations.iter().filter(|c| c.sync_due_us > 0 && !c.is_syncing);
            due = syncs.map(|c| c.sync_due_us).fold(due, u64::min);
        } else if self.is_wanted {
            due = due.min(self.connect_at_us);
        }
        due
    }

    // ---- connecting

    async fn connect(&mut self) {
        let result = self.try_connect().await;
        if let Err(error) = result {
            self.shared.stats.error("connect");
            tracing::debug!(client = self.client, error, "connect failed");
            self.connect_at_us = clock::now_us() + self.backoff.next_wait(&mut self.rng).as_micros() as u64;
        }
    }

    async fn try_connect(&mut self) -> Result<(), String> {
        let placement = self.placement().await?;
        let opened = Link::open(&placement.url, self.token()).await;
        self.avoid = opened.is_err().then_some(placement.server);
        let (link, welcome, frames) = opened.map_err(|e| e.to_string())?;
        let now = clock::now_us();
        let shared = Arc::clone(&self.shared);
        self.link = Some(Box::new(link));
        self.opened_us = now;
        if self.wanted_since_us > 0 {
            shared.recorder.record(self.client, Path::Connect, now - self.wanted_since_us);
            self.wanted_since_us = 0;
        }
        add(&shared.stats.connects, 1);
        add(&shared.stats.connections, 1);
        if std::mem::replace(&mut self.ever_connected, true) {
            add(&shared.stats.reconnects, 1);
        }
        let server = shared.server_index(&welcome.server);
        shared.client_servers[self.client as usize].store(server + 1, Ordering::Relaxed);
        let (user, device) = self.name();
        shared.note(
            "conn",
            || json!({"user": user, "dev": device, "conn": welcome.session, "srv": welcome.server.as_str()}),
        );
        shared.note("watch", || json!({"user": user}));
        self.after_welcome();
        for frame in frames {
            self.on_frame(frame);
        }
        Ok(())
    }

    /// Where to connect: what login said, the first time; then a fresh placement.
    async fn placement(&mut self) -> Result<Placement, String> {
        let shared = Arc::clone(&self.shared);
        if !std::mem::replace(&mut self.has_used_login, true)
            && let Some(login) = &shared.world.clients[self.client as usize].login
        {
            return Ok(login.placement.clone());
        }
        shared.api.placement(self.token(), self.avoid.as_ref()).await.map_err(|e| e.to_string())
    }

    /// Beat, subscribe, send again what is pending, and catch up.
    fn after_welcome(&mut self) {
        self.beat_due_us = clock::now_us();
        let shared = Arc::clone(&self.shared);
        let large = self.conversations.iter().map(|c| c.index);
        let large: Vec<u32> = large.filter(|c| shared.world.conversations[*c as usize].is_large()).collect();
        for channel in large {
            let conversation = shared.world.conversations[channel as usize].id;
            self.push(&ClientFrame::Subscribe(ConversationFrame { conversation }));
        }
        for pending in self.pending.values_mut() {
            pending.next_try_us = 0;
        }
        self.catching_up = Some(0);
        self.list_inbox();
    }

    fn list_inbox(&self) {
        let (shared, client, token) = (Arc::clone(&self.shared), self.client, self.token().to_owned());
        self.shared.tasks.spawn("load.inbox_sync", async move {
            let result = inbox(&shared, &token).await;
            shared.mailboxes[client as usize].put(Command::Heads(result));
        });
    }

    fn push(&mut self, frame: &ClientFrame) {
        if let Some(link) = &mut self.link {
            link.push(frame, &mut self.rng);
        }
    }

    fn disconnected(&mut self, error: &LinkError) {
        if self.link.take().is_none() {
            return;
        }
        let now = clock::now_us();
        let why = match error {
            LinkError::Closed(code) => format!("close_{code}"),
            LinkError::Lost(_) => "lost".to_owned(),
            LinkError::Refused(_) | LinkError::Broken(_) => "broken".to_owned(),
        };
        self.shared.stats.error(&why);
        // A server that went away without a word is likely to be gone.
        self.avoid = matches!(error, LinkError::Lost(_)).then(|| self.shared.server_of(self.client)).flatten();
        self.closed(&why);
        let fault = {
            let mut faults = self.shared.faults.lock().expect("no panic while held");
            let last = faults.len().checked_sub(1);
            if let Some(last) = last {
                faults[last].disconnected += 1;
            }
            last
        };
        self.lost.get_or_insert((now, fault));
        let comes_back = match error {
            LinkError::Closed(code) => {
                CloseCode::from_code(*code).is_none_or(|c| c.reconnect() == crate::protocol::close_code::Reconnect::Yes)
            }
            _ => true,
        };
        if !comes_back {
            self.shared.event(format!("device {} was closed for good: {error}", self.client));
            self.is_wanted = false;
        }
        self.connect_at_us = now + self.backoff.next_wait(&mut self.rng).as_micros() as u64;
    }

    /// What follows from any end of a connection.
    fn closed(&mut self, why: &str) {
        let shared = &self.shared;
        sub(&shared.stats.connections, 1);
        shared.client_servers[self.client as usize].store(0, Ordering::Relaxed);
        let (user, device) = self.name();
        shared.note("disc", || json!({"user": user, "dev": device, "why": why}));
        shared.note("unwatch", || json!({"user": user}));
        self.catching_up = None;
        for conversation in &mut self.conversations {
            conversation.is_catching_up = false;
        }
    }

    async fn go_offline(&mut self) {
        self.is_wanted = false;
        if let Some(link) = self.link.take() {
            let (user, device) = self.name();
            self.shared.note("bye", || json!({"user": user, "dev": device}));
            link.close(&mut self.rng).await;
            self.closed("bye");
        }
    }

    // ---- what is due

    fn on_time(&mut self) {
        if self.link.is_none() {
            return;
        }
        let now = clock::now_us();
        if now >= self.beat_due_us {
            self.beat(now);
        }
        if self.pending.values().any(|p| p.next_try_us <= now) {
            self.send_pending(now);
        }
        for at in 0..self.conversations.len() {
            let conversation = &self.conversations[at];
            if conversation.sync_due_us > 0 && conversation.sync_due_us <= now && !conversation.is_syncing {
                add(&self.shared.stats.gaps_synced, 1);
                self.start_sync(at);
            }
        }
    }

    fn beat(&mut self, now: u64) {
        if self.beat_due_us > self.opened_us {
            self.shared.recorder.late_by(now - self.beat_due_us);
        }
        self.push(&ClientFrame::Beat);
        self.shared.presence[self.user as usize].on_beat(now);
        self.shared.note("hb", || {
            let (user, device) = self.name();
            json!({"user": user, "dev": device})
        });
        let interval = self.shared.scenario.heartbeat.as_micros() as u64;
        self.beat_due_us = self.beat_due_us.max(now.saturating_sub(interval)) + interval;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Online(due_us) => {
                self.is_wanted = true;
                self.leave_by_us = 0;
                self.wanted_since_us = due_us;
                self.connect_at_us = 0;
            }
            Command::Offline => self.leave_by_us = clock::now_us() + LEAVE_WAIT_US,
            Command::Send { conversation, intended_us, bytes } => self.on_send_due(conversation, intended_us, bytes),
            Command::Heads(result) => self.on_heads(result),
            Command::Page(page) => self.on_page(page),
            Command::Finish(by_us) => self.finish_by_us = Some(by_us),
        }
    }

    // ---- sending

    fn on_send_due(&mut self, conversation: u32, intended_us: u64, bytes: u32) {
        let run = self.shared.run;
        let Some(at) = self.find(conversation) else { return };
        let own = &mut self.conversations[at];
        own.counter += 1;
        let tag = Tag { run, conversation, client: self.client, counter: own.counter, intended_us, sent_us: 0 };
        self.pending.insert(tag.uuid(), Pending { tag, bytes, next_try_us: 0 });
        add(&self.shared.stats.pending, 1);
        if self.link.is_some() {
            self.shared.recorder.late_by(clock::now_us().saturating_sub(intended_us));
        }
    }

    fn send_pending(&mut self, now: u64) {
        let mut due: Vec<Uuid> =
            self.pending.iter().filter(|(_, p)| p.next_try_us <= now).map(|(uuid, _)| *uuid).collect();
        // In the order in which they were due.
        due.sort_by_key(|uuid| self.pending.get(uuid).map(|p| (p.tag.intended_us, p.tag.counter)));
        for uuid in due {
            let Some(pending) = self.pending.get_mut(&uuid) else { continue };
            pending.next_try_us = now + RETRY_WAIT_US;
            let is_first = pending.tag.sent_us == 0;
            if is_first {
                pending.tag.sent_us = now;
                add(&self.shared.stats.sent, 1);
            }
            let (tag, bytes) = (pending.tag, pending.bytes);
            let conversation = self.shared.world.conversations[tag.conversation as usize].id;
            let (user, device) = self.name();
            self.shared.note("send", || {
                json!({"conv": conversation, "user": user, "uuid": uuid, "dev": device, "try": u32::from(!is_first)})
            });
            self.push(&ClientFrame::Send(SendFrame {
                uuid,
                conversation,
                kind: "text".to_owned(),
                body: tag.body(bytes as usize),
                reply_to: None,
            }));
        }
    }

    fn on_ack(&mut self, ack: &AckFrame) {
        // The answer to a retry of something answered already.
        let Some(pending) = self.pending.remove(&ack.uuid) else { return };
        let shared = Arc::clone(&self.shared);
        sub(&shared.stats.pending, 1);
        add(&shared.stats.acked, 1);
        let tag = pending.tag;
        shared.recorder.record(self.client, Path::Ack, clock::now_us().saturating_sub(tag.intended_us));
        shared.note("ack", || {
            let (user, device) = self.name();
            json!({"conv": ack.conversation, "user": user, "uuid": ack.uuid, "id": ack.id, "dev": device})
        });
        shared.ledger.on_ack(&tag, ack.id);
        let Some(at) = self.find(tag.conversation) else { return };
        self.conversations[at].acked.insert(tag.counter.into());
        self.on_seen(at, Seen { id: ack.id.0, tag });
    }

    fn on_error(&mut self, error: &ErrorFrame) {
        self.shared.stats.error(error.code.as_str());
        let Some(uuid) = error.uuid else { return };
        let Some(pending) = self.pending.get_mut(&uuid) else { return };
        let wait_us = error.retry_after_ms.unwrap_or(1_000) * 1_000;
        pending.next_try_us = clock::now_us() + wait_us;
        if error.code.is_retryable() {
            return;
        }
        self.pending.remove(&uuid);
        sub(&self.shared.stats.pending, 1);
        add(&self.shared.stats.refused, 1);
        let definite = error.code.is_definite();
        self.shared.note("fail", || json!({"uuid": uuid, "code": error.code, "definite": definite}));
    }

    // ---- receiving

    fn find(&self, conversation: u32) -> Option<usize> {
        self.conversations.binary_search_by_key(&conversation, |c| c.index).ok()
    }

    fn on_frame(&mut self, frame: ServerFrame) {
        add(&self.shared.stats.frames, 1);
        match frame {
            ServerFrame::Message(message) => self.on_message(&message),
            ServerFrame::Ack(ack) => self.on_ack(&ack),
            ServerFrame::Error(error) => self.on_error(&error),
            ServerFrame::Presence(presence) => self.on_presence(&presence),
            ServerFrame::Head(head) => {
                let found = self.shared.world.conversation_index(head.conversation).and_then(|c| self.find(c));
                if let Some(at) = found {
                    let conversation = &mut self.conversations[at];
                    conversation.head = conversation.head.max(head.id.0);
                    if conversation.head > conversation.cursor.upto() && !conversation.is_syncing {
                        self.start_sync(at);
                    }
                }
            }
            ServerFrame::Welcome(_)
            | ServerFrame::Receipt(_)
            | ServerFrame::Typing(_)
            | ServerFrame::Moved(_)
            | ServerFrame::Pong => {}
        }
    }

    /// Reads the tag of a message and checks that the frame around it fits; a body that was changed is a violation.
    fn check(&self, message: &MessageFrame) -> Option<Seen> {
        let world = &self.shared.world;
        let fits = |tag: &Tag| {
            let sender = world.clients.get(tag.client as usize).map(|c| world.users[c.user as usize].id);
            world.conversation_index(message.conversation) == Some(tag.conversation)
                && sender == Some(message.sender)
                && tag.run == self.shared.run
        };
        if let Some(tag) = Tag::of(message).filter(fits) {
            Some(Seen { id: message.id.0, tag })
        } else {
            self.shared.ledger.on_altered(|| {
                format!("{} id {} came to client {} changed", message.conversation, message.id, self.client)
            });
            None
        }
    }

    fn on_message(&mut self, message: &MessageFrame) {
        self.shared.note("wire", || {
            let (user, device) = self.name();
            let (conversation, id) = (message.conversation, message.id);
            json!({"user": user, "dev": device, "conv": conversation, "uuid": message.uuid, "id": id, "from": message.sender})
        });
        let Some(seen) = self.check(message) else { return };
        let Some(at) = self.find(seen.tag.conversation) else {
            let client = self.client;
            self.shared.ledger.violation(Kind::Leaked, || {
                format!("{} id {} came to client {client}, who was never a member", message.conversation, message.id)
            });
            return;
        };
        self.on_seen(at, seen);
    }

    /// Takes a message that came live, or the device's own that was acknowledged.
    fn on_seen(&mut self, at: usize, seen: Seen) {
        let mut show = Vec::new();
        let conversation = &mut self.conversations[at];
        match conversation.cursor.on_live(seen, &mut show) {
            Arrival::Shown => {}
            Arrival::Held => {
                if conversation.sync_due_us == 0 {
                    conversation.sync_due_us = clock::now_us() + GAP_WAIT_US;
                }
            }
            Arrival::Repeated => {
                if seen.tag.client != self.client {
                    add(&self.shared.stats.repeated_on_wire, 1);
                }
            }
        }
        if !conversation.cursor.has_gap() {
            conversation.sync_due_us = 0;
        }
        self.show(at, &show);
    }

    /// Shows messages to the person: the ledger checks them, the recorder times them.
    fn show(&mut self, at: usize, messages: &[Seen]) {
        let now = clock::now_us();
        let shared = Arc::clone(&self.shared);
        let conversation = &mut self.conversations[at];
        for seen in messages {
            let newest = conversation.shown.max();
            let is_first_time = conversation.shown.insert(seen.id);
            shared.ledger.on_shown(&shared.world, self.user, seen, newest, is_first_time);
            add(&shared.stats.delivered, 1);
            shared.note("recv", || {
                let (user, device) = shared.device_name(self.client);
                let conversation = shared.world.conversations[seen.tag.conversation as usize].id;
                json!({"user": user, "dev": device, "conv": conversation, "uuid": seen.tag.uuid(), "id": seen.id})
            });
            if seen.tag.client != self.client {
                time_delivery(&shared, self.client, self.opened_us, &seen.tag, now);
            }
        }
    }

    fn on_presence(&self, frame: &PresenceFrame) {
        let Some(user) = self.shared.world.user_index(frame.user) else { return };
        let now = clock::now_us();
        self.shared.note("pres", || json!({"by": self.name().0, "user": frame.user, "state": frame.state}));
        let presence = &self.shared.presence[user as usize];
        match frame.state {
            PresenceState::Online => {
                if let Some(us) = presence.online_told(self.opened_us, now) {
                    self.shared.recorder.record(self.client, Path::PresenceOnline, us);
                }
            }
            PresenceState::Offline => match presence.offline_told(now) {
                OfflineTold::InTime(us) => self.shared.recorder.record(self.client, Path::PresenceOffline, us),
                OfflineTold::Wrong(us) => self.shared.ledger.violation(Kind::PresenceWrong, || {
                    format!("{} was told offline {:.1} s after the last beat", frame.user, us as f64 / 1e6)
                }),
            },
        }
    }

    // ---- syncing

    fn on_heads(&mut self, result: Result<Vec<InboxEntry>, crate::loadgen::api::Error>) {
        if self.link.is_none() {
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
            conversation.is_catching_up = true;
            if !conversation.is_syncing {
                self.start_sync(at);
            }
        }
        self.catching_up = Some(left);
        self.check_caught_up();
    }

    fn check_caught_up(&mut self) {
        if self.catching_up != Some(0) {
            return;
        }
        self.catching_up = None;
        self.backoff.reset();
        let Some((lost_us, fault)) = self.lost.take() else { return };
        let now = clock::now_us();
        self.shared.recorder.record(self.client, Path::Recovery, now - lost_us);
        if let Some(fault) = fault {
            let mut faults = self.shared.faults.lock().expect("no panic while held");
            let track = &mut faults[fault];
            track.recovered_us.push(now.saturating_sub(track.at_us));
        }
    }

    /// Fetches the next page of a conversation in the background.
    fn start_sync(&mut self, at: usize) {
        let conversation = &mut self.conversations[at];
        conversation.is_syncing = true;
        conversation.sync_due_us = 0;
        let (index, after) = (conversation.index, conversation.cursor.upto());
        let (shared, client, token) = (Arc::clone(&self.shared), self.client, self.token().to_owned());
        self.shared.tasks.spawn("load.messages_sync", async move {
            let page = fetch(&shared, &token, index, after).await;
            shared.mailboxes[client as usize].put(Command::Page(page));
        });
    }

    fn on_page(&mut self, page: Page) {
        let Some(at) = self.find(page.conversation) else { return };
        let more = self.take_page(at, page);
        let conversation = &mut self.conversations[at];
        conversation.is_syncing = false;
        if more == Some(true) {
            return self.start_sync(at);
        }
        let is_behind = conversation.cursor.has_gap() || conversation.head > conversation.cursor.upto();
        conversation.sync_due_us = if is_behind && more.is_some() { clock::now_us() + GAP_WAIT_US } else { 0 };
        if std::mem::take(&mut conversation.is_catching_up) {
            self.catching_up = self.catching_up.map(|left| left.saturating_sub(1));
            self.check_caught_up();
        }
    }

    /// Takes a page; returns whether there is more to fetch at once, or `None` when the user is no member any more.
    fn take_page(&mut self, at: usize, page: Page) -> Option<bool> {
        let answer = match page.result {
            Ok(answer) => answer,
            Err(error) if error.code() == Some(ErrorCode::NotAMember) => {
                self.conversations[at].head = 0;
                return None;
            }
            Err(_) => {
                self.shared.stats.error("messages_sync");
                // Tried again a second later, as a gap.
                let conversation = &mut self.conversations[at];
                conversation.head = conversation.head.max(conversation.cursor.upto() + 1);
                return Some(false);
            }
        };
        let shared = Arc::clone(&self.shared);
        shared.recorder.record(self.client, Path::Sync, clock::now_us() - page.started_us);
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
    async fn final_sync(&mut self) -> bool {
        let left = self.pending.len() as u64;
        add(&self.shared.stats.unresolved, left);
        sub(&self.shared.stats.pending, left);
        let deadline = clock::instant() + FINAL_SYNC;
        let shared = Arc::clone(&self.shared);
        let token = self.token().to_owned();
        loop {
            let behind = self.sync_round(&shared, &token).await;
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
    async fn sync_round(&mut self, shared: &Arc<Shared>, token: &str) -> Option<usize> {
        let heads = inbox(shared, token).await.ok()?;
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
                let page = fetch(shared, token, conversation.index, conversation.cursor.upto()).await;
                if page.result.is_err() || self.take_page(at, page) != Some(true) {
                    break;
                }
            }
            behind += usize::from(entry.head.0 > self.conversations[at].cursor.upto());
        }
        Some(behind)
    }
}

async fn inbox(shared: &Shared, token: &str) -> Result<Vec<InboxEntry>, crate::loadgen::api::Error> {
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

async fn fetch(shared: &Shared, token: &str, conversation: u32, after: u64) -> Page {
    let id = shared.world.conversations[conversation as usize].id;
    let started_us = clock::now_us();
    let result = shared.api.messages_sync(token, id, MessageId(after), PAGE).await;
    Page { conversation, after, started_us, started_s: history_seconds(started_us), result }
}

/// Records how long a message took to one device, on the path that it went.
fn time_delivery(shared: &Shared, client: u32, opened_us: u64, tag: &Tag, now: u64) {
    let took = now.saturating_sub(tag.intended_us);
    if opened_us == 0 || opened_us > tag.intended_us {
        return shared.recorder.record(client, Path::DeliveryAfterReconnect, took);
    }
    let spec = &shared.world.conversations[tag.conversation as usize];
    let server = |client: u32| shared.client_servers[client as usize].load(Ordering::Relaxed);
    let path = if spec.is_large() {
        Path::DeliveryChannel
    } else if spec.kind == ConversationKind::Group {
        Path::DeliveryGroup
    } else if server(client) == server(tag.client) {
        Path::DeliverySameServer
    } else {
        Path::DeliveryOtherServer
    };
    shared.recorder.record(client, path, took);
}
