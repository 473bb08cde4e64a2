//! A simulated device: a state machine without I/O. Events and the time go in, actions come out.
//!
//! [`Device::handle`] takes what happened, [`Device::on_time`] does what is due, [`Device::take_actions`] returns what is to be
//! done. [`Device::due_us`] is the only place that decides when the device is woken next: it derives that time from the state,
//! so no timer can be set without being scheduled. `driver` does the I/O.
//!
//! There may be a million devices: what is needed only while connecting or catching up lives in a [`Reconnection`], which is
//! freed afterwards.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use super::causes::Causes;
use super::connection::{Call, Connection, Reconnection};
use super::conversation::DeviceConversation;
use super::event::{Action, Event, LinkError};
use super::mutant::{Mutant, is_planted};
use super::noted::Noted;
use super::pending::Pending;
use super::pushes::Pushes;
use super::{Command, grid};
use crate::loadgen::recorder::LagOf;
use crate::loadgen::run::Run;
use crate::loadgen::stats::add;
use crate::protocol::api::Placement;
use crate::protocol::frames::{Deliver, SubscribeFrame};
use crate::protocol::{ClientFrame, DeviceName, ServerFrame};

/// Longest that a person who leaves waits for the answer to a message.
const LEAVE_WAIT_US: u64 = 2_000_000;

/// Longest wait for anything after a ping. Then the connection is dead.
const PONG_WAIT_US: u64 = 10_000_000;

/// A time that never comes.
pub(super) const NEVER: u64 = u64::MAX;

/// What is left of a device at the end.
pub(in crate::loadgen) struct DeviceState {
    pub(in crate::loadgen) client: u32,
    pub(in crate::loadgen) user: u32,
    pub(in crate::loadgen) conversations: Box<[DeviceConversation]>,
    /// True when the last sync reached the end of every conversation.
    pub(in crate::loadgen) is_drained: bool,
    /// True of one that never connected, where what its last try failed by was a limit of this machine.
    pub(in crate::loadgen) is_shut_in: bool,
    /// True of one that could not sync at the end, where all that failed did so by a limit of this machine.
    pub(in crate::loadgen) is_undrained_here: bool,
}

/// A simulated device.
pub(in crate::loadgen) struct Device {
    pub(super) run: Arc<Run>,
    pub(super) client: u32,
    pub(super) user: u32,
    /// Number of the catch-up under way, to tell its answers from those of an earlier one.
    pub(super) generation: u32,
    /// Calls and connects that were repeated.
    retries: u32,
    /// When the event that is being handled happened.
    pub(super) now_us: u64,
    /// A slow reader does not read before.
    pub(super) reads_at_us: u64,
    /// When the token was issued that the connection was begun with. A call may have renewed it since.
    pub(super) token_issued_us: u64,
    /// When the connection was welcomed.
    pub(super) opened_us: u64,
    /// When the first connection was welcomed since the device was wanted; 0 while it is away by plan. A lost connection does
    /// not change it.
    pub(super) there_since_us: u64,
    /// When the server was last heard.
    pub(super) heard_us: u64,
    /// When a ping was written that nothing was heard after; 0 for none.
    pub(super) pinged_us: u64,
    pub(super) beat_due_us: u64,
    /// When to go offline at the latest, once what was sent is answered.
    pub(super) leave_by_us: u64,
    /// When to end at the latest, once the load is over.
    pub(super) finish_by_us: u64,
    pub(super) pending: Vec<Pending>,
    /// Rising by index.
    pub(super) conversations: Box<[DeviceConversation]>,
    pub(super) reconnection: Option<Box<Reconnection>>,
    actions: Vec<Action>,
    /// Conversations that are left before this connection has caught up; `None` when it has.
    pub(super) catching_up: Option<u32>,
    pub(super) connection: Connection,
    pub(super) is_wanted: bool,
    pub(super) ever_connected: bool,
    /// Whether the latest loss of the connection, or try to connect that failed, was by a limit of this machine.
    pub(super) has_failed_here: bool,
    /// What calls have failed by since the latest catch-up began.
    pub(super) call_causes: Causes,
    /// What has kept it from a connection since it had one last.
    pub(super) connect_causes: Causes,
    /// Connections in a row that were lost soon after they were made.
    pub(super) short_lived: u8,
    /// Connections in a row that their server gave up soon after they were made, by a drain.
    pub(super) short_moves: u8,
    pub(super) pushes: Pushes,
    /// Only where there is a history.
    pub(super) noted: Option<Box<Noted>>,
    /// Whether everything was synced, once the device has finished.
    outcome: Option<bool>,
}

impl Device {
    pub(in crate::loadgen) fn new(run: &Arc<Run>, client: u32, placement: Option<Placement>) -> Self {
        let user = run.world.clients[client as usize].user;
        let own = run.world.conversations_of(user);
        let mut device = Self {
            client,
            user,
            generation: 0,
            retries: 0,
            now_us: 0,
            reads_at_us: 0,
            token_issued_us: 0,
            opened_us: 0,
            there_since_us: 0,
            heard_us: 0,
            pinged_us: 0,
            beat_due_us: NEVER,
            leave_by_us: NEVER,
            finish_by_us: NEVER,
            pending: Vec::new(),
            conversations: own.iter().map(|index| DeviceConversation::new(*index)).collect(),
            reconnection: None,
            actions: Vec::new(),
            catching_up: None,
            connection: Connection::Down,
            is_wanted: false,
            ever_connected: false,
            has_failed_here: false,
            call_causes: Causes::default(),
            connect_causes: Causes::default(),
            short_lived: 0,
            short_moves: 0,
            pushes: Pushes::There,
            noted: None,
            outcome: None,
            run: Arc::clone(run),
        };
        device.reconnection().placement = placement;
        device
    }

    /// Takes one event that happened at `now_us`.
    pub(in crate::loadgen) fn handle(&mut self, now_us: u64, event: Event) {
        self.now_us = now_us;
        match event {
            Event::Command(command) => self.on_command(command),
            Event::Opened(welcome) => self.on_opened(&welcome),
            Event::ConnectFailed(error) => self.on_connect_failed(error),
            Event::Heard => self.on_heard(),
            Event::Closed(error) => self.disconnected(&error),
            Event::Inbox { generation, result } => self.on_inbox(generation, result),
            Event::Page(page) => self.on_page(*page),
            Event::LoggedIn(result) => self.on_logged_in(result),
        }
    }

    fn on_heard(&mut self) {
        if self.pinged_us > 0 && !self.is_slow_reader() {
            self.run.ledger.presence.target_took(self.now_us, self.now_us.saturating_sub(self.pinged_us));
        }
        (self.heard_us, self.pinged_us) = (self.now_us, 0);
    }

    /// What is to be done, in order.
    pub(in crate::loadgen) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Whether everything was synced, once the device has finished.
    pub(in crate::loadgen) const fn outcome(&self) -> Option<bool> {
        self.outcome
    }

    /// What is left of it.
    pub(in crate::loadgen) fn into_state(self) -> DeviceState {
        let is_drained = self.outcome == Some(true);
        let is_shut_in = !self.ever_connected && self.has_failed_here;
        let is_undrained_here = !is_drained && self.call_causes.are_only_here();
        let Self { client, user, conversations, .. } = self;
        DeviceState { client, user, conversations, is_drained, is_shut_in, is_undrained_here }
    }

    pub(super) fn name(&self) -> (String, DeviceName) {
        self.run.device_name(self.client)
    }

    pub(super) const fn is_reconnecting(&self) -> bool {
        self.reconnection.is_some()
    }

    /// Randomness of this device: the same for the same seed and the same number of retries.
    pub(super) fn rng(&self) -> StdRng {
        let mixed = (u64::from(self.client) << 32) ^ (u64::from(self.generation) << 16) ^ u64::from(self.retries);
        StdRng::seed_from_u64(self.run.scenario.seed.rotate_left(17) ^ mixed)
    }

    /// Counts something that is done again.
    pub(super) fn count_retry(&mut self) {
        self.retries = self.retries.saturating_add(1);
        self.run.stats.retried(self.retries);
    }

    pub(super) const fn is_connected(&self) -> bool {
        matches!(self.connection, Connection::Open)
    }

    /// Whether frames are to be read now. A slow reader reads rarely.
    pub(in crate::loadgen) const fn is_reading(&self, now_us: u64) -> bool {
        now_us >= self.reads_at_us
    }

    pub(super) const fn is_finishing(&self) -> bool {
        self.finish_by_us < NEVER
    }

    /// Whether its person reads slowly.
    pub(super) fn is_slow_reader(&self) -> bool {
        self.run.world.users[self.user as usize].behavior.spec().reading.is_slow()
    }

    // ---- time

    /// When something is due next; [`NEVER`] where nothing is.
    pub(in crate::loadgen) fn due_us(&self) -> u64 {
        let mut due = self.finish_by_us.min(self.leave_by_us);
        if let Some(reconnection) = &self.reconnection {
            if self.is_wanted && self.connection == Connection::Down && reconnection.login == Call::Idle {
                due = due.min(reconnection.connect_at_us);
            }
            for call in [reconnection.listing, reconnection.login] {
                if let Call::RetryAt(at_us) = call {
                    due = due.min(at_us);
                }
            }
        } else if self.is_wanted && self.connection == Connection::Down {
            due = 0;
        }
        if self.is_connected() {
            due = due.min(self.beat_due_us).min(self.sends_due_us()).min(self.alive_due_us());
            if self.reads_at_us > self.now_us {
                due = due.min(self.reads_at_us);
            }
        }
        if self.is_connected() || self.is_finishing() {
            due = due.min(self.syncs_due_us());
        }
        due
    }

    /// When the first message without an answer is to be written (again).
    fn sends_due_us(&self) -> u64 {
        self.pending.iter().map(|pending| pending.next_try_us).min().unwrap_or(NEVER)
    }

    /// When the first conversation is to be synced.
    fn syncs_due_us(&self) -> u64 {
        if is_planted(Mutant::SyncTimerForgotten) {
            return NEVER;
        }
        self.conversations.iter().filter_map(DeviceConversation::sync_due_us).min().unwrap_or(NEVER)
    }

    /// When a silent connection is to be pinged, or given up.
    fn alive_due_us(&self) -> u64 {
        let Some(ping_after_us) = self.run.scenario.ping_after_us().filter(|_| !is_planted(Mutant::DeadConnectionKept))
        else {
            return NEVER;
        };
        if self.pinged_us > 0 {
            self.pinged_us + PONG_WAIT_US
        } else {
            self.heard_us.max(self.reads_at_us).saturating_add(ping_after_us)
        }
    }

    /// Does what is due at `now_us`.
    pub(in crate::loadgen) fn on_time(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.call_again();
        self.connect_if_due();
        if self.is_connected() {
            if now_us >= self.alive_due_us() {
                self.check_alive();
            }
            if now_us >= self.beat_due_us {
                self.beat();
            }
            if now_us >= self.sends_due_us() {
                self.send_pending();
            }
        }
        if (self.is_connected() || self.is_finishing()) && now_us >= self.syncs_due_us() {
            self.sync_due();
        }
        if self.leave_by_us < NEVER && (self.pending.is_empty() || now_us >= self.leave_by_us) {
            self.go_offline();
        }
        if now_us >= self.finish_by_us {
            self.end(self.pushes == Pushes::Awaited);
        }
    }

    /// Repeats calls whose time has come.
    fn call_again(&mut self) {
        let now = self.now_us;
        let is_due = |call: Call| matches!(call, Call::RetryAt(at_us) if now >= at_us);
        let Some(reconnection) = &mut self.reconnection else { return };
        let (list, log_in) = (is_due(reconnection.listing), is_due(reconnection.login));
        if list {
            self.list_inbox();
        }
        if log_in {
            self.reconnection().login = Call::UnderWay;
            self.act(Action::LogIn);
        }
    }

    fn connect_if_due(&mut self) {
        if !self.is_wanted || self.connection != Connection::Down {
            return;
        }
        let now = self.now_us;
        let reconnection = self.reconnection();
        if now < reconnection.connect_at_us || reconnection.login != Call::Idle {
            return;
        }
        reconnection.trying_since_us = now;
        let (placement, avoid) = (reconnection.placement.take(), reconnection.avoid.clone());
        self.connection = Connection::Connecting;
        self.token_issued_us = self.run.world.token_issued_us(self.client);
        self.act(Action::Connect { placement, avoid });
    }

    /// Pings a silent connection; gives one up that stays silent.
    fn check_alive(&mut self) {
        if self.pinged_us > 0 {
            self.act(Action::Drop);
            return self.disconnected(&LinkError::Lost("nothing was heard after a ping".to_owned()));
        }
        self.pinged_us = self.now_us;
        self.push(ClientFrame::Ping);
    }

    /// The server owes an answer: a connection that is silent since is probably dead.
    pub(super) fn doubt_connection(&mut self, since_us: u64) {
        let pings = self.run.scenario.ping_after_us().is_some();
        if pings && self.pinged_us == 0 && self.heard_us < since_us {
            self.pinged_us = self.now_us;
            self.push(ClientFrame::Ping);
        }
    }

    fn beat(&mut self) {
        if self.beat_due_us > self.opened_us {
            self.run.recorder.late_by(LagOf::Other, self.beat_due_us, self.now_us);
        }
        self.push(ClientFrame::Beat);
        add(&self.run.stats.beats, 1);
        let late_us = if self.beat_due_us > self.opened_us { self.now_us.saturating_sub(self.beat_due_us) } else { 0 };
        let found = self.run.ledger.presence.on_beat(self.user, self.now_us, late_us);
        self.run.ledger.on_presence(&self.run.world, found);
        self.run.note("hb", || {
            let (user, device) = self.name();
            json!({"user": user, "dev": device})
        });
        let scenario = &self.run.scenario;
        let interval = scenario.heartbeat.as_micros() as u64;
        let due_us = self.beat_due_us.max(self.now_us.saturating_sub(interval)) + interval;
        self.beat_due_us = grid::align(due_us, scenario.heartbeat_grid.as_micros() as u64, self.run.unix_offset_us);
    }

    // ---- membership

    /// Who is added to a conversation again looks at what was said meanwhile.
    fn on_joined(&mut self, conversation: u32) {
        let Some(at) = self.find(conversation).filter(|_| self.is_connected()) else { return };
        self.subscribe_to(conversation);
        self.sync_news(at);
    }

    /// Asks for the messages of a large conversation. That lasts as long as connection and membership do.
    pub(super) fn subscribe_to(&mut self, conversation: u32) {
        let spec = &self.run.world.conversations[conversation as usize];
        if spec.is_large() {
            let frame = ClientFrame::Subscribe(SubscribeFrame { conversation: spec.id, deliver: Deliver::Messages });
            self.push(frame);
        }
    }

    // ---- commands

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Online(due_us) => self.come_online(due_us),
            Command::Vanish => self.vanish(),
            Command::Offline => self.leave_by_us = self.now_us + LEAVE_WAIT_US,
            Command::Send { conversation, intended_us, bytes } => self.on_send_due(conversation, intended_us, bytes),
            Command::TryToSend(conversation) => self.try_to_send(conversation),
            Command::Joined(conversation) => self.on_joined(conversation),
            Command::Finish(by_us) => self.finish(by_us),
        }
    }

    /// `due_us`: 0 where it was due at no time of the plan.
    fn come_online(&mut self, due_us: u64) {
        if due_us > 0 {
            self.run.recorder.late_by(LagOf::Other, due_us, self.now_us);
        }
        self.is_wanted = true;
        self.leave_by_us = NEVER;
        if self.connection == Connection::Down {
            self.go_on_recovering(if due_us > 0 { due_us } else { self.now_us });
            let reconnection = self.reconnection();
            // Whoever has been trying since goes on doing so.
            if reconnection.wanted_since_us == 0 {
                reconnection.wanted_since_us = due_us;
            }
            // Who comes back by plan does so at once, unless the server asked for a wait. At the end, whoever waits goes on
            // waiting: nothing is harmed more by all of them at once than a server that has just asked for time.
            if due_us > 0 {
                reconnection.connect_at_us = reconnection.not_before_us;
            }
        }
    }

    /// Nothing new is sent any more, and what has no answer never gets one that counts. Syncs for the last time.
    fn finish(&mut self, by_us: u64) {
        if !is_planted(Mutant::PendingKeptAtFinish) {
            self.abandon_pending();
        }
        self.count_not_caught_up();
        self.finish_by_us = by_us;
        self.reads_at_us = 0;
        self.catch_up();
    }

    /// Ends the device.
    pub(super) fn end(&mut self, is_drained: bool) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = Some(is_drained);
        self.finish_by_us = NEVER;
        self.abandon_pending();
        self.abandon_pages();
        self.run.note("end", || {
            let (user, device) = self.name();
            json!({"user": user, "dev": device, "drained": is_drained})
        });
        self.go_offline();
    }

    /// Where a conversation is among the device's own.
    pub(super) fn find(&self, conversation: u32) -> Option<usize> {
        self.conversations.binary_search_by_key(&conversation, |c| c.index).ok()
    }

    /// A slow reader has read something: it pauses, except at the end, where everybody reads what there is.
    pub(in crate::loadgen) fn has_read(&mut self, now_us: u64) {
        if self.is_slow_reader() && !self.is_finishing() {
            self.reads_at_us = now_us + self.run.scenario.read_pause.as_micros() as u64;
        }
    }

    /// Handles a frame, unless the connection that it came from has ended meanwhile.
    pub(in crate::loadgen) fn on_frame_of_connection(&mut self, now_us: u64, frame: ServerFrame) {
        if self.is_connected() {
            self.now_us = now_us;
            self.on_frame(frame);
        }
    }
}

#[cfg(test)]
impl Device {
    pub(in crate::loadgen) const fn client(&self) -> u32 {
        self.client
    }

    /// What keeps a device from resting: no connection, something to fetch, something unanswered.
    pub(in crate::loadgen) fn unrest(&self) -> Option<String> {
        let behind = self.conversations.iter().filter(|c| c.is_behind()).count();
        let is_quiet = self.is_connected() && self.catching_up.is_none() && self.pending.is_empty() && behind == 0;
        let Self { connection, catching_up, pending, .. } = self;
        (!is_quiet).then(|| {
            format!("is {connection:?}, catching up {catching_up:?}, {} pending, {behind} behind", pending.len())
        })
    }
}
