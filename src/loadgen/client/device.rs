//! A simulated device: a state machine without I/O. Events and the time go in, actions come out.
//!
//! [`Device::handle`] takes what happened, [`Device::on_time`] does what is due, [`Device::take_actions`] returns what is to be
//! done. [`Device::due_us`] is the only place that decides when the device is woken next: it derives that time from the state,
//! so no timer can be set without being scheduled. `driver` does the I/O.
//!
//! There may be a million devices: what is needed only while connecting or catching up lives in a [`Reconnection`], which is
//! freed afterwards.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use super::conversation::DeviceConversation;
use super::event::{Action, CallError, ConnectError, Event, LinkError};
use super::mutant::{Mutant, is_planted};
use super::{Command, grid};
use crate::loadgen::body::Tag;
use crate::loadgen::recorder::LagOf;
use crate::loadgen::retry::after;
use crate::loadgen::run::{Consequence, Run};
use crate::loadgen::stats::{add, sub};
use crate::protocol::api::Placement;
use crate::protocol::close_code::Reconnect;
use crate::protocol::frames::{ConversationFrame, WelcomeFrame};
use crate::protocol::{ClientFrame, CloseCode, DeviceName, ServerFrame, ServerName};
use crate::runtime::Backoff;
use crate::telemetry::LatencyPath;

/// Longest that a person who leaves waits for the answer to a message.
const LEAVE_WAIT_US: u64 = 2_000_000;

/// A connection that is lost so long after its server asked to go elsewhere was not lost for that. A drain takes a minute.
const MOVED_WITHIN_US: u64 = 120_000_000;

/// A connection that is lost before this has not shown that the next one will last.
const SHORT_LIVED_US: u64 = 10_000_000;

/// Longest wait for anything after a ping. Then the connection is dead.
const PONG_WAIT_US: u64 = 10_000_000;

/// First and longest wait before a failed API call is repeated, beyond what the server asked for.
const CALL_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));

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
    /// Writes so far.
    pub(super) tries: u16,
    /// Writes that had no definite answer: more than one where a connection or an answer was lost.
    pub(super) open_tries: u16,
    pub(super) next_try_us: u64,
}

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    Down,
    Connecting,
    Open,
}

/// A call of the API that is repeated until it succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Idle,
    UnderWay,
    /// Repeat it at this time (µs).
    RetryAt(u64),
}

/// From wanting a connection until it has caught up.
pub(super) struct Reconnection {
    /// When being connected became due; 0 once it was measured.
    wanted_since_us: u64,
    connect_at_us: u64,
    backoff: Backoff,
    /// The server that could not be reached last.
    avoid: Option<ServerName>,
    /// Where login said to connect.
    placement: Option<Placement>,
    /// When the connection was lost; by which fault, and since when the user waits for the end of its consequences.
    lost: Option<(u64, Option<(usize, u64)>)>,
    /// When the server asked to go elsewhere; 0 where it did not.
    moved_us: u64,
    /// The server asked not to come back before. No plan changes that.
    not_before_us: u64,
    pub(super) listing: Call,
    pub(super) call_backoff: Backoff,
    login: Call,
    login_backoff: Backoff,
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
    reads_at_us: u64,
    /// When the connection was welcomed.
    pub(super) opened_us: u64,
    /// When the first connection was welcomed since the device was wanted; 0 while it is away by plan. A lost connection does
    /// not change it.
    pub(super) there_since_us: u64,
    /// When the server was last heard.
    heard_us: u64,
    /// When a ping was written that nothing was heard after; 0 for none.
    pinged_us: u64,
    beat_due_us: u64,
    /// When to go offline at the latest, once what was sent is answered.
    leave_by_us: u64,
    finish_by_us: u64,
    pub(super) pending: Vec<Pending>,
    /// Rising by index.
    pub(super) conversations: Box<[DeviceConversation]>,
    reconnection: Option<Box<Reconnection>>,
    actions: Vec<Action>,
    /// Conversations that are left before this connection has caught up; `None` when it has.
    pub(super) catching_up: Option<u32>,
    connection: Connection,
    is_wanted: bool,
    ever_connected: bool,
    /// Connections in a row that were lost soon after they were made.
    short_lived: u8,
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
            short_lived: 0,
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
            Event::Heard => (self.heard_us, self.pinged_us) = (now_us, 0),
            Event::Frame(frame) => self.on_frame(*frame),
            Event::Closed(error) => self.disconnected(&error),
            Event::Inbox { generation, result } => self.on_inbox(generation, result),
            Event::Page(page) => self.on_page(*page),
            Event::LoggedIn(result) => self.on_logged_in(result),
        }
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
        DeviceState { client: self.client, user: self.user, conversations: self.conversations, is_drained }
    }

    pub(super) fn name(&self) -> (String, DeviceName) {
        self.run.device_name(self.client)
    }

    pub(super) const fn is_reconnecting(&self) -> bool {
        self.reconnection.is_some()
    }

    pub(super) fn reconnection(&mut self) -> &mut Reconnection {
        let reconnect = self.run.scenario.reconnect;
        let (first, max) = CALL_BACKOFF;
        self.reconnection.get_or_insert_with(|| {
            Box::new(Reconnection {
                wanted_since_us: 0,
                connect_at_us: 0,
                backoff: Backoff::new(reconnect.first, reconnect.max),
                avoid: None,
                placement: None,
                lost: None,
                moved_us: 0,
                not_before_us: 0,
                listing: Call::Idle,
                call_backoff: Backoff::new(first, max),
                login: Call::Idle,
                login_backoff: Backoff::new(first, max),
            })
        })
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
            self.end(false);
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
        let (placement, avoid) = (reconnection.placement.take(), reconnection.avoid.clone());
        self.connection = Connection::Connecting;
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
            self.run.recorder.late_by(self.client, LagOf::Other, self.beat_due_us, self.now_us);
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

    // ---- connecting

    fn on_opened(&mut self, welcome: &WelcomeFrame) {
        let now = self.now_us;
        self.connection = Connection::Open;
        (self.opened_us, self.heard_us, self.pinged_us) = (now, now, 0);
        // That was asked of the connection before this one.
        let reconnection = self.reconnection();
        (reconnection.moved_us, reconnection.not_before_us) = (0, 0);
        self.reads_at_us = 0;
        if self.there_since_us == 0 {
            self.there_since_us = now;
        }
        let wanted_since_us = std::mem::take(&mut self.reconnection().wanted_since_us);
        let run = Arc::clone(&self.run);
        if wanted_since_us > 0 {
            run.recorder.record(
                self.client,
                LatencyPath::Connect,
                wanted_since_us,
                now.saturating_sub(wanted_since_us),
            );
        }
        add(&run.stats.connections, 1);
        let is_first = !std::mem::replace(&mut self.ever_connected, true);
        add(if is_first { &run.stats.ever_connected } else { &run.stats.reconnects }, 1);
        run.places.enter(self.client, &welcome.server);
        run.note("conn", || {
            let (user, device) = self.name();
            json!({"user": user, "dev": device, "conn": welcome.session, "srv": welcome.server.as_str()})
        });
        run.note("watch", || json!({"user": self.name().0}));
        run.ledger.presence.on_watch(self.user, now);
        self.after_welcome();
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
        // A device that finishes is catching up already, for the last time.
        if !self.is_finishing() {
            self.catch_up();
        }
    }

    fn on_connect_failed(&mut self, error: ConnectError) {
        self.connection = Connection::Down;
        let run = Arc::clone(&self.run);
        run.stats.connect_failed(&error);
        run.consequence(Consequence::Error, self.now_us);
        tracing::debug!(client = self.client, %error, "connect failed");
        let retry_after = error.retry_after;
        self.reconnection().avoid = error.server;
        if error.cause.is_unauthorized() {
            self.log_in();
        }
        self.back_off(retry_after);
        self.count_retry();
    }

    /// Puts the next try to connect off: by a backoff, and at least by what the server asked for.
    fn back_off(&mut self, retry_after: Option<Duration>) {
        let mut rng = self.rng();
        let now = self.now_us;
        let reconnection = self.reconnection();
        let asked = retry_after.unwrap_or_default();
        let wait = reconnection.backoff.next_wait(&mut rng).saturating_add(asked);
        reconnection.not_before_us = reconnection.not_before_us.max(after(now, asked));
        reconnection.connect_at_us = after(now, wait).max(reconnection.not_before_us);
    }

    /// Gets a new token, unless that is under way.
    pub(super) fn log_in(&mut self) {
        if self.reconnection().login == Call::Idle {
            self.reconnection().login = Call::UnderWay;
            self.act(Action::LogIn);
        }
    }

    fn on_logged_in(&mut self, result: Result<(), CallError>) {
        let now = self.now_us;
        match result {
            Ok(()) => {
                let reconnection = self.reconnection();
                reconnection.login = Call::Idle;
                reconnection.login_backoff.reset();
                // What failed for the old token is due now. What failed with the new one, too, keeps its wait: a server that
                // gives tokens and takes none is not to be flooded.
                if reconnection.call_backoff.tries() <= 1
                    && let Call::RetryAt(at_us) = &mut reconnection.listing
                {
                    *at_us = now;
                }
                if reconnection.backoff.tries() <= 1 {
                    reconnection.connect_at_us = reconnection.connect_at_us.min(now).max(reconnection.not_before_us);
                }
            }
            Err(error) => {
                self.run.stats.call_failed("login", &error);
                let mut rng = self.rng();
                let wait = self.reconnection().login_backoff.next_wait(&mut rng);
                let wait = wait.saturating_add(error.retry_after().unwrap_or_default());
                self.reconnection().login = Call::RetryAt(after(now, wait));
                self.count_retry();
            }
        }
    }

    /// Called when the connection has everything that was said while it was away.
    pub(super) fn caught_up(&mut self) {
        if self.is_finishing() {
            return self.end(true);
        }
        if !self.is_connected() {
            return;
        }
        // One whose server has asked to go elsewhere is needed again at once.
        let is_moved = |reconnection: &Reconnection| reconnection.moved_us > 0;
        let lost = if self.reconnection.as_deref().is_some_and(is_moved) {
            self.reconnection().lost.take()
        } else {
            self.reconnection.take().and_then(|reconnection| reconnection.lost)
        };
        let Some((lost_us, fault)) = lost else { return };
        self.run.recorder.record(self.client, LatencyPath::Recovery, lost_us, self.now_us.saturating_sub(lost_us));
        if let Some(fault) = fault {
            self.run.recovered_from(fault, self.now_us);
        }
    }

    pub(super) fn push(&mut self, frame: ClientFrame) {
        if self.is_connected() {
            self.act(Action::Write(frame));
        }
    }

    fn disconnected(&mut self, error: &LinkError) {
        if self.connection != Connection::Open {
            return;
        }
        // A server that asked to go elsewhere may cut who stays; one that let it be for long did not mean that.
        let now = self.now_us;
        let is_moved = |r: &Reconnection| r.moved_us > 0 && now < r.moved_us.saturating_add(MOVED_WITHIN_US);
        let is_planned = self.reconnection.as_deref().is_some_and(is_moved)
            || matches!(error, LinkError::Closed(code) if *code == CloseCode::Moved.code());
        let why = error.name();
        if !is_planned {
            self.run.stats.connection_lost(error);
        }
        // A server that went away without a close frame is likely to be gone.
        let avoid = matches!(error, LinkError::Lost(_)).then(|| self.run.places.server_of(self.client)).flatten();
        self.closed(&why);
        if !is_planned {
            let found = self.run.ledger.presence.on_lost(self.user);
            self.run.ledger.on_presence(&self.run.world, found);
        }
        // One that loses its connection again before it has caught up is still away by the first loss.
        let is_first = self.reconnection().lost.is_none();
        let fault = is_first.then(|| self.run.disconnected_by_fault(is_planned, now)).flatten();
        let is_short = now < self.opened_us.saturating_add(SHORT_LIVED_US);
        self.short_lived = if is_short { self.short_lived.saturating_add(1) } else { 0 };
        let failures = u32::from(self.short_lived).saturating_sub(1);
        let reconnection = self.reconnection();
        // A connection that is made and lost, over and over, is one that can't be made.
        reconnection.backoff.at_least(failures);
        reconnection.avoid = avoid;
        reconnection.lost.get_or_insert((now, fault));
        let code = if let LinkError::Closed(code) = error { CloseCode::from_code(*code) } else { None };
        if code == Some(CloseCode::Unauthorized) {
            self.log_in();
        } else if code.is_some_and(|code| code.reconnect() == Reconnect::No) {
            self.run.event(format!("device {} was closed for good: {error}", self.client));
            self.is_wanted = false;
        }
        let retry_after = if let LinkError::Refused { retry_after, .. } = error { *retry_after } else { None };
        self.back_off(retry_after);
    }

    /// What follows from any end of a connection.
    fn closed(&mut self, why: &str) {
        self.connection = Connection::Down;
        let run = Arc::clone(&self.run);
        sub(&run.stats.connections, 1);
        run.places.leave(self.client);
        run.note("disc", || {
            let (user, device) = self.name();
            json!({"user": user, "dev": device, "why": why})
        });
        run.note("unwatch", || json!({"user": self.name().0}));
        let found = run.ledger.presence.on_unwatch(self.user, self.now_us);
        run.ledger.on_presence(&run.world, found);
        if !self.is_finishing() {
            self.stop_catching_up();
        }
    }

    /// The server will close the connection, and says when to come back.
    pub(super) fn on_moved(&mut self, retry_after_ms: u64) {
        let now = self.now_us;
        let reconnection = self.reconnection();
        reconnection.moved_us = now.max(1);
        reconnection.not_before_us = after(now, Duration::from_millis(retry_after_ms.min(600_000)));
    }

    /// Leaves the socket open and does not touch it again before the next connection stands.
    fn vanish(&mut self) {
        self.leave_plan();
        if self.is_connected() {
            self.act(Action::Abandon);
            self.closed("vanished");
        }
    }

    fn go_offline(&mut self) {
        self.leave_plan();
        if self.is_connected() {
            self.run.note("bye", || {
                let (user, device) = self.name();
                json!({"user": user, "dev": device})
            });
            self.act(Action::Close);
            self.closed("bye");
        }
    }

    /// The device is not wanted any more.
    fn leave_plan(&mut self) {
        self.is_wanted = false;
        self.leave_by_us = NEVER;
        self.there_since_us = 0;
        if self.connection == Connection::Connecting {
            self.connection = Connection::Down;
            self.act(Action::Drop);
        }
    }

    // ---- membership

    /// Who is added to a conversation again looks at what was said meanwhile.
    fn on_joined(&mut self, conversation: u32) {
        let Some(at) = self.find(conversation).filter(|_| self.is_connected()) else { return };
        self.subscribe_to(conversation);
        if !self.conversations[at].is_syncing() {
            self.start_sync(at);
        }
    }

    /// Asks for the heads of a large conversation. That lasts as long as connection and membership do.
    fn subscribe_to(&mut self, conversation: u32) {
        let spec = &self.run.world.conversations[conversation as usize];
        if spec.is_large() {
            let frame = ClientFrame::Subscribe(ConversationFrame { conversation: spec.id });
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
            Command::Joined(conversation) => self.on_joined(conversation),
            Command::Finish(by_us) => self.finish(by_us),
        }
    }

    /// `due_us`: 0 where it was due at no time of the plan.
    fn come_online(&mut self, due_us: u64) {
        if due_us > 0 {
            self.run.recorder.late_by(self.client, LagOf::Other, due_us, self.now_us);
        }
        self.is_wanted = true;
        self.leave_by_us = NEVER;
        if self.connection == Connection::Down {
            let reconnection = self.reconnection();
            reconnection.wanted_since_us = due_us;
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
        self.finish_by_us = by_us;
        self.reads_at_us = 0;
        self.catch_up();
    }

    /// Ends the device.
    fn end(&mut self, is_drained: bool) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = Some(is_drained);
        self.finish_by_us = NEVER;
        self.abandon_pending();
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
            self.handle(now_us, Event::Frame(Box::new(frame)));
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
