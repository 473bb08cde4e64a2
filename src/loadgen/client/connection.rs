//! How a device connects, loses its connection and comes back: waits that grow, what the server asked for, tokens. No I/O.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::causes::Causes;
use super::device::{Device, NEVER};
use super::event::{Action, CallError, ConnectError, LinkError};
use crate::loadgen::fault_track::Consequence;
use crate::loadgen::retry::after;
use crate::loadgen::stats::{add, sub};
use crate::protocol::api::Placement;
use crate::protocol::close_code::Reconnect;
use crate::protocol::frames::WelcomeFrame;
use crate::protocol::{ClientFrame, CloseCode, ServerName};
use crate::runtime::Backoff;
use crate::telemetry::LatencyPath;

/// A connection that is lost so long after its server asked to go elsewhere was not lost for that. A drain takes a minute.
const MOVED_WITHIN_US: u64 = 120_000_000;

/// A connection that is lost before this has not shown that the next one will last.
const SHORT_LIVED_US: u64 = 10_000_000;

/// So many connections in a row may be moved soon after they were made.
const SHORT_MOVES_MAX: u8 = 3;

/// First and longest wait before a failed API call is repeated, beyond what the server asked for.
const CALL_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));

/// A try to connect that has had no outcome for so long has failed when the device leaves. Source: invariant I9.
const HUNG_CONNECT: Duration = Duration::from_secs(5);

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
    pub(super) wanted_since_us: u64,
    /// When the latest try to connect began.
    pub(super) trying_since_us: u64,
    pub(super) connect_at_us: u64,
    pub(super) backoff: Backoff,
    /// The server that could not be reached last.
    pub(super) avoid: Option<ServerName>,
    /// Where login said to connect.
    pub(super) placement: Option<Placement>,
    /// When the connection was lost; by which fault, and since when the user waits for the end of its consequences.
    pub(super) lost: Option<(u64, Option<(usize, u64)>)>,
    /// Since when the device is away by plan though it had not caught up after a lost connection; 0 where it is not.
    pub(super) away_since_us: u64,
    /// When the server asked to go elsewhere; 0 where it did not.
    pub(super) moved_us: u64,
    /// The server asked not to come back before. No plan changes that.
    pub(super) not_before_us: u64,
    pub(super) listing: Call,
    /// When the inbox was asked for last.
    pub(super) listed_us: u64,
    /// The server asked not to be asked for it before.
    pub(super) list_not_before_us: u64,
    pub(super) call_backoff: Backoff,
    pub(super) login: Call,
    pub(super) login_backoff: Backoff,
}

impl Device {
    pub(super) fn reconnection(&mut self) -> &mut Reconnection {
        let reconnect = self.run.scenario.reconnect;
        let (first, max) = CALL_BACKOFF;
        self.reconnection.get_or_insert_with(|| {
            Box::new(Reconnection {
                wanted_since_us: 0,
                trying_since_us: 0,
                connect_at_us: 0,
                backoff: Backoff::new(reconnect.first, reconnect.max),
                avoid: None,
                placement: None,
                lost: None,
                away_since_us: 0,
                moved_us: 0,
                not_before_us: 0,
                listing: Call::Idle,
                listed_us: 0,
                list_not_before_us: 0,
                call_backoff: Backoff::new(first, max),
                login: Call::Idle,
                login_backoff: Backoff::new(first, max),
            })
        })
    }

    pub(super) fn on_opened(&mut self, welcome: &WelcomeFrame) {
        let now = self.now_us;
        self.connection = Connection::Open;
        let world = &self.run.world;
        let own = (world.users[self.user as usize].id, world.device_name(self.client));
        if (welcome.user, &welcome.device) != (own.0, &own.1) {
            self.break_protocol("welcome_of_another");
        }
        (self.opened_us, self.heard_us, self.pinged_us) = (now, now, 0);
        // That was asked of the connection before this one.
        let reconnection = self.reconnection();
        (reconnection.moved_us, reconnection.not_before_us) = (0, 0);
        self.reads_at_us = 0;
        if self.there_since_us == 0 {
            self.there_since_us = now;
        }
        let wanted_since_us = std::mem::take(&mut self.reconnection().wanted_since_us);
        let trying_since_us = self.reconnection().trying_since_us;
        let run = Arc::clone(&self.run);
        if trying_since_us > 0 {
            run.ledger.presence.target_took(now, now.saturating_sub(trying_since_us));
        }
        if wanted_since_us > 0 {
            run.recorder.record(LatencyPath::Connect, wanted_since_us, now.saturating_sub(wanted_since_us));
        }
        add(&run.stats.connections, 1);
        self.connect_causes = Causes::default();
        self.has_failed_here = false;
        let is_first = !std::mem::replace(&mut self.ever_connected, true);
        add(if is_first { &run.stats.ever_connected } else { &run.stats.reconnects }, 1);
        run.places.enter(self.client, &welcome.server);
        self.note_connected(welcome);
        let found = run.ledger.presence.on_watch(self.user, now);
        run.ledger.on_presence(&run.world, found);
        self.after_welcome();
    }

    /// Beat, subscribe, send again what is pending, and catch up.
    fn after_welcome(&mut self) {
        self.beat_due_us = self.now_us;
        for at in 0..self.conversations.len() {
            self.subscribe_to(self.conversations[at].index);
        }
        // What an answer put off stays put off: the server, or its engine, asked for that time, and not the connection.
        for pending in self.pending.iter_mut().filter(|pending| !pending.was_put_off) {
            pending.next_try_us = 0;
        }
        // A device that finishes is catching up already, for the last time.
        if !self.is_finishing() {
            self.catch_up();
        }
    }

    pub(super) fn on_connect_failed(&mut self, error: ConnectError) {
        self.connection = Connection::Down;
        let run = Arc::clone(&self.run);
        let may_refuse = run.world.may_refuse_token(self.client, self.token_issued_us, self.now_us);
        run.stats.connect_failed(&error, may_refuse);
        run.consequence(Consequence::Error, self.now_us, self.now_us);
        tracing::debug!(client = self.client, %error, "connect failed");
        self.has_failed_here = error.cause.is_local();
        self.connect_causes.note(self.has_failed_here);
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

    pub(super) fn on_logged_in(&mut self, result: Result<(), CallError>) {
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
                    *at_us = now.max(reconnection.list_not_before_us);
                }
                if reconnection.backoff.tries() <= 1 {
                    reconnection.connect_at_us = reconnection.connect_at_us.min(now).max(reconnection.not_before_us);
                }
            }
            Err(error) => {
                self.call_causes.note(matches!(error, CallError::Local(_)));
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
            return self.finished();
        }
        if !self.is_connected() {
            return;
        }
        // Where the server has asked to go elsewhere, the next connection is to come at once: what it asked for is kept.
        let is_moved = |reconnection: &Reconnection| reconnection.moved_us > 0;
        let lost = if self.reconnection.as_deref().is_some_and(is_moved) {
            self.reconnection().lost.take()
        } else {
            self.reconnection.take().and_then(|reconnection| reconnection.lost)
        };
        let Some((lost_us, fault)) = lost else { return };
        self.run.recorder.record(LatencyPath::Recovery, lost_us, self.now_us.saturating_sub(lost_us));
        if let Some(fault) = fault {
            self.run.recovered_from(fault, self.now_us);
        }
    }

    pub(super) fn push(&mut self, frame: ClientFrame) {
        if self.is_connected() {
            self.act(Action::Write(frame));
        }
    }

    pub(super) fn disconnected(&mut self, error: &LinkError) {
        if self.connection != Connection::Open {
            return;
        }
        // A server that asked to go elsewhere may cut who stays; one that let it be for long did not mean that.
        let now = self.now_us;
        let is_moved = |r: &Reconnection| r.moved_us > 0 && now < r.moved_us.saturating_add(MOVED_WITHIN_US);
        // A server has to end a connection with its token: it closes a socket, and refuses a request.
        let is_short = now < self.opened_us.saturating_add(SHORT_LIVED_US);
        let has_expired = error.is_unauthorized() && self.run.world.token_may_have_expired(self.token_issued_us, now);
        let was_moved = self.reconnection.as_deref().is_some_and(is_moved)
            || matches!(error, LinkError::Closed(code) if *code == CloseCode::Moved.code());
        // Each server of a stack may drain in turn; one that moves a device over and over serves nobody.
        self.short_moves = if was_moved && is_short { self.short_moves.saturating_add(1) } else { 0 };
        let is_planned = was_moved && self.short_moves <= SHORT_MOVES_MAX || has_expired;
        let why = error.name();
        if !is_planned {
            self.run.stats.connection_lost(error);
        }
        self.has_failed_here = error.is_local();
        if self.has_failed_here {
            // A loss by the target keeps nobody out: what keeps the device from the next connection does.
            self.connect_causes.note(true);
        }
        // A server that went away without a close frame is likely to be gone.
        let avoid = matches!(error, LinkError::Lost(_)).then(|| self.run.places.server_of(self.client)).flatten();
        self.end_answers(false);
        self.closed(&why);
        if !is_planned {
            let found = self.run.ledger.presence.on_lost(self.user);
            self.run.ledger.on_presence(&self.run.world, found);
        }
        // One that loses its connection again before it has caught up is still away by the first loss.
        let is_first = self.reconnection().lost.is_none();
        let may_be_a_faults = is_first && !has_expired && !error.is_local();
        let fault = may_be_a_faults.then(|| self.run.disconnected_by_fault(is_planned, now)).flatten();
        if !is_planned {
            self.short_lived = if is_short { self.short_lived.saturating_add(1) } else { 0 };
        }
        let failures = u32::from(self.short_lived).saturating_sub(1);
        let reconnection = self.reconnection();
        // A connection that is made and lost, over and over, is one that can't be made.
        reconnection.backoff.at_least(failures);
        reconnection.avoid = avoid;
        reconnection.lost.get_or_insert((now, fault));
        let code = if let LinkError::Closed(code) = error { CloseCode::from_code(*code) } else { None };
        if error.is_unauthorized() {
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
        self.end_answers(true);
        let run = Arc::clone(&self.run);
        sub(&run.stats.connections, 1);
        run.places.leave(self.client);
        self.note_disconnected(why);
        let found = run.ledger.presence.on_unwatch(self.user, self.now_us);
        run.ledger.on_presence(&run.world, found);
        self.pushes_are_cut();
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
    pub(super) fn vanish(&mut self) {
        self.leave_plan();
        if self.is_connected() {
            self.act(Action::Abandon);
            self.closed("vanished");
        }
    }

    pub(super) fn go_offline(&mut self) {
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
        (self.short_lived, self.short_moves) = (0, 0);
        self.leave_by_us = NEVER;
        self.there_since_us = 0;
        self.stop_recovering();
        self.leave_unconnected();
        if self.connection == Connection::Connecting {
            self.connection = Connection::Down;
            self.act(Action::Drop);
        }
    }

    /// From now on it is away by plan: that is no part of its recovery.
    fn stop_recovering(&mut self) {
        let now = self.now_us;
        if let Some(reconnection) = self.reconnection.as_deref_mut().filter(|reconnection| reconnection.lost.is_some())
            && reconnection.away_since_us == 0
        {
            reconnection.away_since_us = now;
        }
    }

    /// A device that left before it had caught up is to be there again from a time on. It counts as lost so much later.
    pub(super) fn go_on_recovering(&mut self, from_us: u64) {
        let reconnection = self.reconnection();
        let away_since_us = std::mem::take(&mut reconnection.away_since_us);
        if away_since_us == 0 {
            return;
        }
        let away_us = from_us.saturating_sub(away_since_us);
        if let Some((lost_us, fault)) = &mut reconnection.lost {
            *lost_us = lost_us.saturating_add(away_us);
            if let Some((_, since_us)) = fault {
                *since_us = since_us.saturating_add(away_us);
            }
        }
    }

    /// A device that leaves before it was connected was not connected for at least so long; a try that hung until then
    /// failed.
    fn leave_unconnected(&mut self) {
        let (now, is_connecting) = (self.now_us, self.connection == Connection::Connecting);
        let Some(reconnection) = &mut self.reconnection else { return };
        let wanted_since_us = std::mem::take(&mut reconnection.wanted_since_us);
        // Asking where to connect may have waited for its turn, for as long as calls did since then.
        let since_us = reconnection.trying_since_us;
        let is_hung = is_connecting
            && now.saturating_sub(since_us) >= after(self.run.stats.call_lags.longest_since(since_us), HUNG_CONNECT);
        if wanted_since_us > 0 {
            self.run.recorder.record(LatencyPath::Connect, wanted_since_us, now.saturating_sub(wanted_since_us));
        }
        if is_hung {
            self.has_failed_here = false;
            self.connect_causes.note(false);
            let cause = LinkError::TimedOut { what: "welcome before the device left", limit: HUNG_CONNECT };
            self.run.stats.connect_failed(&ConnectError { server: None, retry_after: None, cause }, false);
            self.run.consequence(Consequence::Error, now, now);
        }
    }
}
