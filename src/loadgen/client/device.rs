//! A device's loop. Inputs: its socket, its mailbox, alarms.
//!
//! There may be a million of them: what is needed only while connecting or catching up lives in a [`Journey`], and is given
//! back afterwards.

use std::sync::Arc;
use std::task::{Context, Poll};

use serde_json::json;

use super::conversation::DeviceConversation;
use super::link::{Link, LinkError, SocketLink};
use super::poll::PollLink;
use super::{Command, Shared, Trouble};
use crate::loadgen::body::Tag;
use crate::loadgen::recorder::{Path, add, sub};
use crate::loadgen::scenario::{Behavior, Transport};
use crate::protocol::api::Placement;
use crate::protocol::close_code::Reconnect;
use crate::protocol::frames::ConversationFrame;
use crate::protocol::{ClientFrame, CloseCode, DeviceName, ServerFrame, ServerName};
use crate::runtime::{Backoff, clock};

/// Longest that a person who leaves waits for the answer to a message.
const LEAVE_WAIT_US: u64 = 2_000_000;

/// A time that never comes.
pub(super) const NEVER: u64 = u64::MAX;

/// What is left of a device at the end.
pub(in crate::loadgen) struct DeviceState {
    pub(in crate::loadgen) client: u32,
    pub(in crate::loadgen) user: u32,
    pub(in crate::loadgen) conversations: Box<[DeviceConversation]>,
    /// True when the last sync reached the end of every conversation.
    pub(in crate::loadgen) is_drained: bool,
}

/// A message without an answer yet.
pub(super) struct Pending {
    pub(super) tag: Tag,
    pub(super) bytes: u32,
    /// Tries that were written and had no definite answer: more than one where a connection or an answer was lost.
    pub(super) open_tries: u32,
    pub(super) next_try_us: u64,
}

/// From wanting a connection until it has caught up.
struct Journey {
    /// When being connected became due; 0 once it was measured.
    wanted_since_us: u64,
    connect_at_us: u64,
    backoff: Backoff,
    /// The server that could not be reached last.
    avoid: Option<ServerName>,
    /// Where login said to connect, the first time.
    placement: Option<Placement>,
    /// When the connection was lost, and by which fault.
    lost: Option<(u64, Option<usize>)>,
}

/// A simulated device.
pub(in crate::loadgen) struct Device {
    pub(super) shared: Arc<Shared>,
    pub(super) client: u32,
    pub(super) user: u32,
    link: Option<Link>,
    /// A connection that this device has vanished from: open, and neither read nor written.
    ghost: Option<Box<Link>>,
    /// A slow reader does not read before.
    reads_at_us: u64,
    /// When the connection was welcomed.
    pub(super) opened_us: u64,
    /// The first welcome since the plan wanted it online; 0 while it is away by plan.
    pub(super) here_since_us: u64,
    /// When what is being worked on was read.
    pub(super) now_us: u64,
    beat_due_us: u64,
    /// When the first of `pending` is to be written (again).
    pub(super) sends_due_us: u64,
    /// When the first conversation is to be synced.
    pub(super) syncs_due_us: u64,
    /// When the next alarm rings.
    armed_us: u64,
    /// When to go offline at the latest, once what was sent is answered.
    leave_by_us: u64,
    finish_by_us: u64,
    pub(super) pending: Vec<Pending>,
    /// Rising by index.
    pub(super) conversations: Box<[DeviceConversation]>,
    journey: Option<Box<Journey>>,
    /// Syncs that are left before this connection has caught up; `None` when it has.
    pub(super) catching_up: Option<u32>,
    is_wanted: bool,
    ever_connected: bool,
}

impl Device {
    pub(in crate::loadgen) fn new(shared: &Arc<Shared>, client: u32, placement: Placement) -> Self {
        let user = shared.world.clients[client as usize].user;
        let own = shared.world.conversations_of(user);
        let mut device = Self {
            client,
            user,
            link: None,
            ghost: None,
            reads_at_us: 0,
            opened_us: 0,
            here_since_us: 0,
            now_us: 0,
            beat_due_us: NEVER,
            sends_due_us: NEVER,
            syncs_due_us: NEVER,
            armed_us: 0,
            leave_by_us: NEVER,
            finish_by_us: NEVER,
            pending: Vec::new(),
            conversations: own.iter().map(|index| DeviceConversation::new(*index)).collect(),
            journey: None,
            catching_up: None,
            is_wanted: false,
            ever_connected: false,
            shared: Arc::clone(shared),
        };
        device.journey().placement = Some(placement);
        device
    }

    pub(super) fn name(&self) -> (String, DeviceName) {
        self.shared.device_name(self.client)
    }

    fn journey(&mut self) -> &mut Journey {
        let reconnect = self.shared.scenario.reconnect;
        self.journey.get_or_insert_with(|| {
            Box::new(Journey {
                wanted_since_us: 0,
                connect_at_us: 0,
                backoff: Backoff::new(reconnect.first, reconnect.max),
                avoid: None,
                placement: None,
                lost: None,
            })
        })
    }

    /// Lives until it is told to finish and has.
    ///
    /// The rare and large parts (connecting, the last sync) are boxed, so that they take no memory while waiting.
    pub(in crate::loadgen) async fn run(mut self: Box<Self>) {
        while !self.is_finished() {
            if self.is_due_to_connect() {
                Box::pin(self.connect()).await;
            }
            self.wait().await;
            for command in self.shared.mailboxes[self.client as usize].take() {
                self.on_command(command);
            }
            self.on_time();
            if self.leave_by_us < NEVER && (self.pending.is_empty() || self.now_us >= self.leave_by_us) {
                Box::pin(self.go_offline()).await;
            }
            if let Err(error) = self.flush().await {
                self.disconnected(&error);
            }
        }
        Box::pin(self.end()).await;
    }

    /// Syncs for the last time and leaves what it has to the engine.
    async fn end(mut self: Box<Self>) {
        let is_drained = self.final_sync().await;
        let (user, device) = self.name();
        self.shared.note("end", || json!({"user": user, "dev": device, "drained": is_drained}));
        self.go_offline().await;
        let Self { shared, client, user, conversations, .. } = *self;
        let state = DeviceState { client, user, conversations, is_drained };
        shared.ended.lock().expect("no panic while held").push(state);
    }

    const fn is_finished(&self) -> bool {
        let is_quiet = self.pending.is_empty() && self.catching_up.is_none() && self.link.is_some();
        self.finish_by_us < NEVER && (is_quiet || self.now_us >= self.finish_by_us)
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    fn is_due_to_connect(&self) -> bool {
        let is_due = self.journey.as_ref().is_none_or(|journey| self.now_us >= journey.connect_at_us);
        self.is_wanted && self.link.is_none() && is_due
    }

    /// Waits for the socket, the mailbox or the next thing that is due, and takes what was read.
    async fn wait(&mut self) {
        self.set_alarm();
        let (frames, result) = std::future::poll_fn(|context| self.poll_wait(context)).await;
        self.now_us = clock::now_us();
        // At the end everybody reads what there is.
        if !frames.is_empty() && self.finish_by_us == NEVER && self.is_slow_reader() {
            self.reads_at_us = self.now_us + self.shared.scenario.read_pause.as_micros() as u64;
        }
        // What came before an error counts.
        for frame in frames {
            self.on_frame(frame);
        }
        if let Err(error) = result {
            self.disconnected(&error);
        }
    }

    /// Ready with what was read, and with nothing where somebody else has news. No frame is kept while it waits: room for a
    /// few would be a third of what an idle device takes.
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<(Vec<ServerFrame>, Result<(), LinkError>)> {
        let Self { shared, link, .. } = self;
        let news = shared.mailboxes[self.client as usize].poll_news(context);
        let is_reading = self.now_us >= self.reads_at_us;
        let mut frames = Vec::new();
        // Both are polled, so that both know whom to wake.
        let read = match link {
            Some(link) if is_reading => link.poll_read(context, &mut frames, &shared.traffic),
            _ => Poll::Pending,
        };
        match read {
            Poll::Ready(result) => Poll::Ready((frames, result)),
            Poll::Pending => news.map(|()| (frames, Ok(()))),
        }
    }

    /// Writes what was pushed.
    async fn flush(&mut self) -> Result<(), LinkError> {
        let Some(link) = self.link.as_mut().filter(|link| link.has_output()) else { return Ok(()) };
        if link.try_flush(&self.shared.traffic)? {
            return Ok(());
        }
        // Rare and large, so boxed.
        Box::pin(link.flush(&self.shared.traffic)).await
    }

    /// Asks to be woken for what is due next, unless an alarm rings before that anyway.
    fn set_alarm(&mut self) {
        let mut due = self.finish_by_us.min(self.leave_by_us);
        if let Some(link) = &self.link {
            due = due
                .min(link.due_us().unwrap_or(NEVER))
                .min(self.beat_due_us)
                .min(self.sends_due_us)
                .min(self.syncs_due_us);
            if self.reads_at_us > self.now_us {
                due = due.min(self.reads_at_us);
            }
        } else if self.is_wanted {
            due = due.min(self.journey.as_ref().map_or(0, |journey| journey.connect_at_us));
        }
        let is_armed = self.armed_us > self.now_us && self.armed_us <= due;
        if due < NEVER && !is_armed {
            self.armed_us = due;
            self.shared.alarms.set(self.client, due);
        }
    }

    // ---- connecting

    async fn connect(&mut self) {
        let result = self.try_connect().await;
        self.now_us = clock::now_us();
        if let Err(error) = result {
            self.shared.stats.error("connect");
            self.shared.trouble(Trouble::Error, self.now_us);
            tracing::debug!(client = self.client, error, "connect failed");
            self.back_off();
        }
    }

    /// Puts the next try to connect off.
    fn back_off(&mut self) {
        let now = self.now_us;
        let journey = self.journey();
        journey.connect_at_us = now + journey.backoff.next_wait(&mut rand::rng()).as_micros() as u64;
    }

    async fn try_connect(&mut self) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let token = &shared.world.clients[self.client as usize].token;
        let placement = if let Some(placement) = self.journey().placement.take() {
            placement
        } else {
            shared.api.placement(token, self.journey().avoid.as_ref()).await.map_err(|e| e.to_string())?
        };
        let source = shared.sources.get(self.client as usize % shared.sources.len().max(1)).copied();
        let (traffic, transport) = (&shared.traffic, shared.scenario.transport);
        let opened = match transport {
            Transport::Websocket => {
                let opened = SocketLink::open(&placement.url, token, source, traffic).await;
                opened.map(|(link, welcome, frames)| (Link::Socket(link), welcome, frames))
            }
            Transport::LongPoll | Transport::Poll => {
                let interval = (transport == Transport::Poll).then_some(shared.scenario.poll_interval);
                let opened = PollLink::open(&shared.pollers, &placement.url, token, interval, traffic).await;
                opened.map(|(link, welcome, frames)| (Link::Poll(Box::new(link)), welcome, frames))
            }
        };
        self.journey().avoid = opened.is_err().then_some(placement.server);
        let (link, welcome, frames) = opened.map_err(|e| e.to_string())?;
        self.now_us = clock::now_us();
        self.opened_us = self.now_us;
        if self.here_since_us == 0 {
            self.here_since_us = self.now_us;
        }
        self.link = Some(link);
        self.ghost = None;
        self.reads_at_us = 0;
        let wanted_since_us = std::mem::take(&mut self.journey().wanted_since_us);
        if wanted_since_us > 0 {
            shared.recorder.record(self.client, Path::Connect, self.now_us.saturating_sub(wanted_since_us));
        }
        add(&shared.stats.connections, 1);
        let is_first = !std::mem::replace(&mut self.ever_connected, true);
        add(if is_first { &shared.stats.ever_connected } else { &shared.stats.reconnects }, 1);
        shared.mailboxes[self.client as usize].set_server(Some(shared.server_index(&welcome.server)));
        let (user, device) = self.name();
        shared.note(
            "conn",
            || json!({"user": user, "dev": device, "conn": welcome.session, "srv": welcome.server.as_str()}),
        );
        shared.note("watch", || json!({"user": user}));
        shared.ledger.presence.on_watch(self.user, self.now_us);
        self.after_welcome();
        for frame in frames {
            self.on_frame(frame);
        }
        Ok(())
    }

    /// Beat, subscribe, send again what is pending, and catch up.
    fn after_welcome(&mut self) {
        self.beat_due_us = self.now_us;
        for at in 0..self.conversations.len() {
            self.subscribe_to(self.conversations[at].index);
        }
        for pending in &mut self.pending {
            pending.next_try_us = 0;
        }
        self.sends_due_us = if self.pending.is_empty() { NEVER } else { 0 };
        self.catching_up = Some(0);
        self.list_inbox();
    }

    /// Who is added to a conversation again looks at what was said meanwhile.
    fn on_joined(&mut self, conversation: u32) {
        let Some(at) = self.find(conversation).filter(|_| self.is_connected()) else { return };
        self.subscribe_to(conversation);
        if !self.conversations[at].behind().is_syncing {
            self.start_sync(at);
        }
    }

    /// Asks for the heads of a large conversation. That lasts as long as connection and membership do.
    fn subscribe_to(&mut self, conversation: u32) {
        let spec = &self.shared.world.conversations[conversation as usize];
        if spec.is_large() {
            let frame = ClientFrame::Subscribe(ConversationFrame { conversation: spec.id });
            self.push(&frame);
        }
    }

    /// Called when the connection has everything that was said while it was away.
    pub(super) fn caught_up(&mut self) {
        let Some((lost_us, fault)) = self.journey.take().and_then(|journey| journey.lost) else { return };
        self.shared.recorder.record(self.client, Path::Recovery, self.now_us - lost_us);
        if let Some(fault) = fault {
            let mut faults = self.shared.faults.lock().expect("no panic while held");
            let track = &mut faults[fault];
            track.recovery.record_us(self.now_us.saturating_sub(track.at_us));
        }
    }

    pub(super) fn push(&mut self, frame: &ClientFrame) {
        if let Some(link) = &mut self.link {
            link.push(frame);
        }
    }

    fn disconnected(&mut self, error: &LinkError) {
        if self.link.take().is_none() {
            return;
        }
        let why = match error {
            LinkError::Closed(code) => format!("close_{code}"),
            LinkError::Lost(_) => "connection_lost".to_owned(),
            LinkError::Refused(_) | LinkError::Broken(_) => "broken".to_owned(),
        };
        // A server that drains closes by plan: no error.
        let is_drained = matches!(error, LinkError::Closed(code) if *code == CloseCode::Moved.code());
        if !is_drained {
            self.shared.stats.error(&why);
        }
        // A server that went away without a word is likely to be gone.
        let avoid = matches!(error, LinkError::Lost(_)).then(|| self.shared.server_of(self.client)).flatten();
        self.closed(&why);
        add(&self.shared.stats.disconnects, u64::from(!is_drained));
        if !is_drained {
            let found = self.shared.ledger.presence.on_lost(self.user);
            self.shared.ledger.on_presence(&self.shared.world, found);
        }
        // One that loses its connection again before it has caught up is still away by the first loss.
        let is_first = self.journey().lost.is_none();
        let fault = {
            let mut faults = self.shared.faults.lock().expect("no panic while held");
            let last = faults.len().checked_sub(1);
            if let Some(last) = last.filter(|_| is_first) {
                faults[last].disconnected += 1;
            }
            last
        };
        let now = self.now_us;
        let journey = self.journey();
        journey.avoid = avoid;
        journey.lost.get_or_insert((now, fault));
        let comes_back = match error {
            LinkError::Closed(code) => {
                CloseCode::from_code(*code).is_none_or(|code| code.reconnect() == Reconnect::Yes)
            }
            _ => true,
        };
        if !comes_back {
            self.shared.event(format!("device {} was closed for good: {error}", self.client));
            self.is_wanted = false;
        }
        self.back_off();
    }

    /// What follows from any end of a connection.
    fn closed(&mut self, why: &str) {
        let shared = &self.shared;
        sub(&shared.stats.connections, 1);
        shared.mailboxes[self.client as usize].set_server(None);
        let (user, device) = self.name();
        shared.note("disc", || json!({"user": user, "dev": device, "why": why}));
        shared.note("unwatch", || json!({"user": user}));
        let found = shared.ledger.presence.on_unwatch(self.user, self.now_us);
        shared.ledger.on_presence(&shared.world, found);
        self.catching_up = None;
        for conversation in &mut self.conversations {
            conversation.stop_catching_up();
            conversation.settle();
        }
    }

    /// Whether its person reads slowly.
    pub(super) fn is_slow_reader(&self) -> bool {
        self.shared.world.users[self.user as usize].behavior == Behavior::SlowReader
    }

    /// Leaves the socket open and does not touch it again before the next connection stands.
    fn vanish(&mut self) {
        self.is_wanted = false;
        self.leave_by_us = NEVER;
        self.here_since_us = 0;
        if let Some(link) = self.link.take() {
            self.ghost = Some(Box::new(link));
            self.closed("vanished");
        }
    }

    async fn go_offline(&mut self) {
        self.is_wanted = false;
        self.leave_by_us = NEVER;
        self.here_since_us = 0;
        if let Some(link) = self.link.take() {
            let (user, device) = self.name();
            self.shared.note("bye", || json!({"user": user, "dev": device}));
            link.close(&self.shared.traffic).await;
            self.closed("bye");
        }
    }

    // ---- what is due

    fn on_time(&mut self) {
        if self.link.is_none() {
            return;
        }
        if self.now_us >= self.beat_due_us {
            self.beat();
        }
        if self.now_us >= self.sends_due_us {
            self.send_pending();
        }
        if self.now_us >= self.syncs_due_us {
            self.sync_due();
        }
    }

    fn beat(&mut self) {
        let late_us = if self.beat_due_us > self.opened_us { self.now_us - self.beat_due_us } else { 0 };
        if self.beat_due_us > self.opened_us {
            self.shared.recorder.late_by(late_us);
        }
        self.push(&ClientFrame::Beat);
        add(&self.shared.stats.beats, 1);
        let found = self.shared.ledger.presence.on_beat(self.user, self.now_us, late_us);
        self.shared.ledger.on_presence(&self.shared.world, found);
        self.shared.note("hb", || {
            let (user, device) = self.name();
            json!({"user": user, "dev": device})
        });
        let scenario = &self.shared.scenario;
        let interval = scenario.heartbeat.as_micros() as u64;
        let due_us = self.beat_due_us.max(self.now_us.saturating_sub(interval)) + interval;
        let due_unix_ms = clock::unix_ms() + due_us.saturating_sub(self.now_us) / 1_000;
        self.beat_due_us = due_us + until_grid_ms(due_unix_ms, scenario.heartbeat_grid.as_millis() as u64) * 1_000;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Online(due_us) => {
                self.is_wanted = true;
                self.leave_by_us = NEVER;
                if self.link.is_none() {
                    let journey = self.journey();
                    journey.wanted_since_us = due_us;
                    journey.connect_at_us = 0;
                }
            }
            Command::Vanish => self.vanish(),
            Command::Offline => self.leave_by_us = self.now_us + LEAVE_WAIT_US,
            Command::Send { conversation, intended_us, bytes } => self.on_send_due(conversation, intended_us, bytes),
            Command::Joined(conversation) => self.on_joined(conversation),
            Command::Heads(result) => self.on_heads(result),
            Command::Page(page) => self.on_page(*page),
            Command::Finish(by_us) => {
                self.finish_by_us = by_us;
                self.reads_at_us = 0;
            }
        }
    }

    /// Where a conversation is among the device's own.
    pub(super) fn find(&self, conversation: u32) -> Option<usize> {
        self.conversations.binary_search_by_key(&conversation, |c| c.index).ok()
    }
}

/// From a time until the next multiple of `grid_ms`; 0 where there is no grid. Processes of one machine have one clock, and so
/// one grid.
const fn until_grid_ms(at_ms: u64, grid_ms: u64) -> u64 {
    if grid_ms == 0 { 0 } else { at_ms.next_multiple_of(grid_ms) - at_ms }
}

#[cfg(test)]
mod tests {
    use super::until_grid_ms;

    #[test]
    fn a_time_on_the_grid_stays_and_others_wait_for_the_next() {
        let waits = [0, 1, 19, 20, 21].map(|at_ms| until_grid_ms(1_000 + at_ms, 20));
        assert_eq!(waits, [0, 19, 1, 0, 19]);
        assert_eq!(until_grid_ms(1_007, 0), 0);
    }
}
