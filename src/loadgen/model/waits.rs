//! What one device does with the time that a server asks for, and what is measured of what never came.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::sim::{MS, S, run_of, welcome};
use crate::loadgen::body::Tag;
use crate::loadgen::client::{Action, CallError, Command, ConnectError, Device, Event, LinkError, Page};
use crate::loadgen::fault_track::FaultTrack;
use crate::loadgen::ledger::{Kind, Ledger, Presence, Unpushed};
use crate::loadgen::run::Run;
use crate::loadgen::stats::get;
use crate::protocol::api::{InboxEntry, MessagesSync};
use crate::protocol::frames::{AckFrame, ConversationChangeFrame, ErrorFrame, HeadFrame, PresenceFrame, PresenceState};
use crate::protocol::{ClientFrame, ErrorCode, MessageFrame, MessageId, ServerFrame};
use crate::telemetry::LatencyPath;

/// A device and the time.
pub(super) struct Alone {
    pub(super) run: Arc<Run>,
    pub(super) device: Device,
    pub(super) now_us: u64,
}

impl Alone {
    pub(super) fn new() -> Self {
        Self::of(1)
    }

    /// A device of the world of a seed.
    fn of(seed: u64) -> Self {
        Self::in_run(run_of(seed, &mut StdRng::seed_from_u64(1)))
    }

    fn in_run(run: Run) -> Self {
        let run = Arc::new(run);
        run.recorder.begin(S, &run.scenario.phases);
        Self { device: Device::new(&run, 0, None), run, now_us: S }
    }

    /// The index of the device's first conversation.
    pub(super) fn conversation(&self) -> u32 {
        self.run.world.conversations_of(self.run.world.clients[0].user)[0]
    }

    /// A device of somebody else who is in a conversation, the last one.
    fn other_member(&self, conversation: u32) -> u32 {
        let (world, own) = (&self.run.world, self.run.world.clients[0].user);
        let user = |client: &u32| world.clients[*client as usize].user;
        let is_one = |client: &u32| user(client) != own && world.is_original_member(conversation, user(client));
        (1..world.clients.len() as u32).rev().find(is_one).expect("there are others")
    }

    /// The message that a device sends as its `counter`-th of a conversation, as it is stored under an id.
    fn message(&self, conversation: u32, sender: u32, counter: u32, (id, sent_us): (u64, u64)) -> MessageFrame {
        let (run, world) = (&self.run, &self.run.world);
        let tag = Tag { run: world.run(), conversation, client: sender, counter, intended_us: sent_us, sent_us };
        run.ledger.on_sent(&tag);
        MessageFrame {
            conversation: world.conversations[conversation as usize].id,
            id: MessageId(id),
            uuid: tag.uuid(),
            sender: world.users[world.clients[sender as usize].user as usize].id,
            kind: "text".to_owned(),
            body: tag.body(90),
            reply_to: None,
            at: (sent_us + run.unix_offset_us) / MS,
        }
    }

    /// What it does about an event, now and at once.
    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        self.device.handle(self.now_us, event);
        self.device.on_time(self.now_us);
        self.device.take_actions()
    }

    pub(super) fn hears(&mut self, frame: ServerFrame) -> Vec<Action> {
        self.device.on_frame_of_connection(self.now_us, frame);
        self.device.on_time(self.now_us);
        self.device.take_actions()
    }

    /// What it does by itself until a time, step by step; pings and beats are left out.
    pub(super) fn until(&mut self, until_us: u64) -> Vec<(u64, Action)> {
        let mut done = Vec::new();
        while self.device.due_us() <= until_us {
            self.now_us = self.device.due_us().max(self.now_us + 1);
            self.device.handle(self.now_us, Event::Heard);
            self.device.on_time(self.now_us);
            let counts = |action: &Action| !matches!(action, Action::Write(ClientFrame::Beat | ClientFrame::Ping));
            let actions = self.device.take_actions().into_iter().filter(counts);
            done.extend(actions.map(|action| (self.now_us, action)));
        }
        self.now_us = until_us;
        done
    }

    /// Lets it do what it does by itself until a time, while it hears nothing.
    fn hear_nothing_until(&mut self, until_us: u64) {
        while self.device.due_us() <= until_us {
            self.device.on_time(self.device.due_us());
        }
        self.device.take_actions();
        self.now_us = until_us;
    }

    /// Connects; returns what it does then.
    pub(super) fn connect(&mut self) -> Vec<Action> {
        let welcome = welcome(&self.run.world, 0);
        self.on(Event::Opened(Box::new(welcome)))
    }

    /// Comes online and catches up, with nothing to fetch.
    pub(super) fn come(&mut self) {
        self.on(Event::Command(Command::Online(self.now_us)));
        let actions = self.connect();
        self.list(&actions, Ok(Vec::new()));
    }

    /// Answers the listing of the inbox that is among some actions.
    pub(super) fn list(&mut self, actions: &[Action], result: Result<Vec<InboxEntry>, CallError>) -> Vec<Action> {
        let generation = actions.iter().find_map(|action| match action {
            Action::ListInbox { generation } => Some(*generation),
            _ => None,
        });
        self.on(Event::Inbox { generation: generation.expect("it lists the inbox"), result })
    }

    /// The server's clock.
    fn unix_ms(&self) -> u64 {
        (self.now_us + self.run.unix_offset_us) / MS
    }

    /// An entry of the inbox, of the first conversation.
    fn entry(&self, head: u64, at: u64) -> InboxEntry {
        let conversation = self.run.world.conversations[self.conversation() as usize].id;
        InboxEntry { conversation, head: MessageId(head), at }
    }

    /// News of a message.
    pub(super) fn news(&mut self, id: u64) -> Vec<Action> {
        let conversation = self.run.world.conversations[self.conversation() as usize].id;
        self.hears(ServerFrame::Head(HeadFrame { conversation, id: MessageId(id) }))
    }

    /// The answer to a sync that began `took_us` ago.
    pub(super) fn page(&mut self, took_us: u64, result: Result<MessagesSync, CallError>) -> Vec<Action> {
        self.page_of(self.conversation(), took_us, 0, result)
    }

    /// The answer to a sync of a conversation, whose call waited for the generator for a while.
    fn page_of(
        &mut self,
        conversation: u32,
        took_us: u64,
        waited_us: u64,
        result: Result<MessagesSync, CallError>,
    ) -> Vec<Action> {
        let now = self.now_us;
        let page = Page { conversation, after: 0, started_us: now - took_us, ended_us: now, waited_us, result };
        self.on(Event::Page(Box::new(page)))
    }

    /// How many samples a path has, and the longest.
    fn measured(&self, path: LatencyPath) -> (u64, u64) {
        self.run.recorder.overall().get(&path).map_or((0, 0), |latency| (latency.count(), latency.max_us()))
    }
}

fn is_sync(action: &Action) -> bool {
    matches!(action, Action::FetchPage { .. })
}

fn is_send(action: &Action) -> bool {
    matches!(action, Action::Write(ClientFrame::Send(_)))
}

const BUSY: CallError = CallError::Throttled(Duration::from_secs(5));

#[test]
fn news_do_not_bring_a_sync_before_the_server_wants_one() {
    let mut alone = Alone::new();
    alone.come();
    assert!(alone.news(3).iter().any(is_sync));
    alone.now_us += 20 * MS;
    let asked_us = alone.now_us;
    assert!(!alone.page(20 * MS, Err(BUSY)).iter().any(is_sync));
    for id in 4..9 {
        alone.now_us += 100 * MS;
        assert!(!alone.news(id).iter().any(is_sync), "id {id}");
    }
    let syncs: Vec<u64> = alone.until(30 * S).into_iter().filter(|(_, a)| is_sync(a)).map(|(at, _)| at).collect();
    assert_eq!(syncs.len(), 1, "{syncs:?}");
    assert!(syncs[0] >= asked_us + 5 * S, "{syncs:?}");
}

#[test]
fn a_new_connection_does_not_end_the_time_that_was_asked_for() {
    let mut alone = Alone::new();
    alone.come();
    assert!(alone.news(3).iter().any(is_sync));
    let asked_us = alone.now_us;
    alone.page(0, Err(BUSY));
    // A send is put off, too.
    let conversation = alone.conversation();
    let sent = alone.on(Event::Command(Command::Send { conversation, intended_us: asked_us, bytes: 90 }));
    let uuid = sent.iter().find_map(|action| match action {
        Action::Write(ClientFrame::Send(frame)) => Some(frame.uuid),
        _ => None,
    });
    let (code, message) = (ErrorCode::Overloaded, String::new());
    alone.hears(ServerFrame::Error(ErrorFrame { uuid, code, message, retry_after_ms: Some(9_000) }));
    alone.on(Event::Closed(LinkError::Lost("cut".to_owned())));
    alone.now_us += S;
    let actions = alone.connect();
    assert!(!actions.iter().any(is_send), "{actions:?}");
    let entry = alone.entry(3, alone.unix_ms());
    assert!(!alone.list(&actions, Ok(vec![entry])).iter().any(is_sync));
    let done = alone.until(30 * S);
    let first = |is: fn(&Action) -> bool| done.iter().find(|(_, a)| is(a)).map(|(at, _)| at - asked_us);
    assert!(first(is_sync).is_some_and(|us| us >= 5 * S), "{done:?}");
    assert!(first(is_send).is_some_and(|us| us >= 9 * S), "{done:?}");
}

#[test]
fn a_fault_is_no_backpressure_whatever_time_it_names() {
    let mut alone = Alone::new();
    alone.come();
    for code in [ErrorCode::Internal, ErrorCode::Unavailable, ErrorCode::RateLimited] {
        let error = ErrorFrame { uuid: None, code, message: String::new(), retry_after_ms: Some(500) };
        alone.hears(ServerFrame::Error(error));
    }
    let errors = alone.run.stats.errors();
    assert_eq!((get(&alone.run.stats.throttled), errors.len(), errors.get("internal")), (2, 1, Some(&1)));
}

#[test]
fn an_inbox_that_was_put_off_stays_so_over_a_new_connection() {
    let mut alone = Alone::new();
    alone.on(Event::Command(Command::Online(alone.now_us)));
    let actions = alone.connect();
    let asked_us = alone.now_us;
    alone.list(&actions, Err(BUSY));
    alone.on(Event::Closed(LinkError::Lost("cut".to_owned())));
    alone.now_us += S;
    let is_listing = |action: &Action| matches!(action, Action::ListInbox { .. });
    assert!(!alone.connect().iter().any(is_listing));
    let at = alone.until(30 * S).into_iter().find(|(_, action)| is_listing(action)).map(|(at, _)| at);
    assert!(at.is_some_and(|at| at >= asked_us + 5 * S), "{at:?}");
}

#[test]
fn a_sync_counts_from_its_first_try_and_one_that_never_came_counts_too() {
    let nothing = || MessagesSync { messages: Vec::new(), has_more: false, stable: MessageId(3) };
    let mut alone = Alone::new();
    alone.come();
    alone.news(3);
    alone.now_us += 8 * S;
    alone.page(8 * S, Err(CallError::Failed("no_answer".to_owned())));
    alone.until(12 * S);
    alone.now_us += 10 * MS;
    alone.page(10 * MS, Ok(nothing()));
    let (count, longest_us) = alone.measured(LatencyPath::Sync);
    assert!(count == 1 && longest_us >= 10 * S, "{count} samples, the longest {longest_us} us");
    alone.news(9);
    alone.page(0, Err(BUSY));
    alone.now_us += 2 * S;
    alone.on(Event::Closed(LinkError::Lost("cut".to_owned())));
    assert_eq!(alone.measured(LatencyPath::Sync).0, 2, "given up with its connection");
}

#[test]
fn a_message_of_a_channel_waited_for_all_pages_and_tries_before_it() {
    let mut alone = Alone::of(39);
    alone.come();
    let run = Arc::clone(&alone.run);
    let world = &run.world;
    let large = |at: &usize| world.conversations[*at].is_large();
    let channel = (0..world.conversations.len()).find(large).expect("there is one") as u32;
    assert!(world.is_original_member(channel, world.clients[0].user), "the device hears of it");
    let sender = alone.other_member(channel);
    let (conversation, sent_us) = (world.conversations[channel as usize].id, 2 * S);
    let messages = [1, 2, 3].map(|id| alone.message(channel, sender, id, (id.into(), sent_us)));
    let lag = |alone: &Alone| {
        let (count, longest_us) = alone.measured(LatencyPath::FetchLag);
        (count, longest_us / (100 * MS))
    };
    let page = |id: usize, has_more| {
        Ok(MessagesSync { messages: vec![messages[id - 1].clone()], has_more, stable: MessageId(id as u64) })
    };
    alone.now_us = sent_us;
    let head = HeadFrame { conversation, id: MessageId(3) };
    assert!(alone.hears(ServerFrame::Head(head)).iter().any(is_sync));
    alone.now_us += 4 * S;
    assert!(alone.page_of(channel, 4 * S, 2 * S, page(1, true)).iter().any(is_sync));
    assert_eq!(lag(&alone), (1, 20));
    alone.page_of(channel, 0, S, Err(CallError::Failed("no_answer".to_owned())));
    assert!(alone.until(alone.now_us + 3 * S).iter().any(|(_, action)| is_sync(action)));
    alone.page_of(channel, 0, S, page(2, false));
    assert_eq!(lag(&alone), (2, 40), "two of the first page, one of a failed try, one");
    assert!(alone.until(alone.now_us + 3 * S).iter().any(|(_, action)| is_sync(action)));
    alone.page_of(channel, 0, 8 * S, page(3, false));
    assert_eq!(lag(&alone), (3, 80), "a fetch that is over counts no more");
    let pushed = |alone: &Alone| [&alone.run.stats.pushed, &alone.run.stats.pushed_by_head].map(get);
    assert_eq!(pushed(&alone), [3, 3], "a head told of them");
    let whole = alone.message(channel, sender, 4, (4, sent_us));
    alone.hears(ServerFrame::Message(whole));
    assert_eq!(pushed(&alone), [4, 3], "it came whole");
}

#[test]
fn a_head_of_a_conversation_that_is_no_channel_breaks_the_protocol_and_is_no_push() {
    let mut alone = Alone::new();
    assert!(!alone.run.world.conversations[alone.conversation() as usize].is_large());
    alone.come();
    assert!(alone.news(3).iter().any(is_sync), "what it tells of is fetched all the same");
    let told = alone.run.stats.errors().get("head_of_no_channel").copied();
    assert_eq!((told, get(&alone.run.stats.protocol_errors)), (Some(1), 1));
}

#[test]
fn a_missing_push_is_not_excused_where_no_more_are_remembered() {
    let mut run = run_of(1, &mut StdRng::seed_from_u64(1));
    run.ledger.unpushed = Unpushed::with_room(0);
    let mut alone = Alone::in_run(run);
    alone.come();
    alone.now_us = 5 * S;
    let conversation = alone.conversation();
    let message = alone.message(conversation, alone.other_member(conversation), 1, (1, 5 * S));
    alone.now_us += 10 * MS;
    alone.news(1);
    alone.page(10 * MS, Ok(MessagesSync { messages: vec![message], has_more: false, stable: MessageId(1) }));
    let stats = &alone.run.stats;
    assert_eq!([&stats.push_expected, &stats.pushed, &stats.push_unknown].map(get), [1, 0, 0]);
}

#[test]
fn notices_may_be_as_late_as_welcomes_and_answers_to_pings() {
    // Whether it is missed that a friend came at 10 s, of whom nothing is told by 15 s.
    let missed = |connect_us: u64, pong_us: u64| {
        let mut run = run_of(1, &mut StdRng::seed_from_u64(1));
        run.world.friends = vec![(0, 1)];
        let presence = Presence::new(&run.scenario, &run.world);
        run.ledger = Ledger::new(run.id, run.world.conversations.len(), 0).with_presence(presence);
        let mut alone = Alone::in_run(run);
        alone.on(Event::Command(Command::Online(S)));
        alone.now_us += connect_us;
        let actions = alone.connect();
        alone.list(&actions, Ok(Vec::new()));
        // It is pinged after 8 s without a frame.
        alone.hear_nothing_until(alone.now_us + 8 * S);
        alone.hear_nothing_until(alone.now_us + pong_us);
        alone.on(Event::Heard);
        let (ledger, world) = (&alone.run.ledger, &alone.run.world);
        ledger.on_presence(world, ledger.presence.on_beat(1, 10 * S, 0));
        ledger.on_presence(world, ledger.presence.on_unwatch(0, 15 * S));
        ledger.on_presence(world, ledger.presence.conclude());
        ledger.count(Kind::PresenceMissed)
    };
    assert_eq!([missed(0, 0), missed(4 * S, 0), missed(0, 4 * S)], [1, 0, 0]);
}

#[test]
fn what_is_pushed_again_is_the_same_message() {
    // Pushed in this order: counters, each with an id.
    let found = |pushes: &[(u32, u64)]| {
        let mut alone = Alone::new();
        alone.come();
        alone.now_us = 5 * S;
        let conversation = alone.conversation();
        let sender = alone.other_member(conversation);
        for (counter, id) in pushes {
            let message = alone.message(conversation, sender, *counter, (*id, 5 * S));
            alone.hears(ServerFrame::Message(message));
        }
        let count = |kind| alone.run.ledger.count(kind);
        (get(&alone.run.stats.repeated_on_wire), count(Kind::IdReuse), count(Kind::Duplicated))
    };
    assert_eq!(found(&[(1, 1), (2, 2), (1, 1), (2, 2), (2, 2)]), (3, 0, 0));
    assert_eq!(found(&[(1, 1), (2, 2), (3, 2)]), (1, 1, 0), "another message under an id that was shown");
    let (repeats, reused, duplicated) = found(&[(1, 1), (2, 2), (2, 1)]);
    assert_eq!((repeats, reused + duplicated), (1, 1), "one that was shown, under an id that was shown");
    assert_eq!(found(&[(1, 1), (3, 3), (3, 3)]), (1, 0, 0), "it waits above a hole");
    assert_eq!(found(&[(1, 1), (3, 3), (4, 3)]), (0, 1, 0), "another one is held under its id");
}

#[test]
fn a_page_that_is_under_way_at_the_end_of_its_connection_counts_from_its_first_try() {
    let nothing = || MessagesSync { messages: Vec::new(), has_more: false, stable: MessageId(3) };
    // The second try is under way when the connection ends.
    let cut = || {
        let mut alone = Alone::new();
        alone.come();
        alone.news(3);
        alone.now_us += 8 * S;
        alone.page(8 * S, Err(CallError::Failed("no_answer".to_owned())));
        assert!(alone.until(12 * S).iter().any(|(_, action)| is_sync(action)));
        alone.on(Event::Closed(LinkError::Lost("cut".to_owned())));
        assert_eq!(alone.measured(LatencyPath::Sync).0, 0, "its answer may still come");
        alone.now_us += S;
        alone
    };
    let first_try_us = 10 * S;
    let mut came = cut();
    came.page(S, Ok(nothing()));
    let (count, longest_us) = came.measured(LatencyPath::Sync);
    assert!(count == 1 && longest_us >= first_try_us, "{count} samples, the longest {longest_us} us");
    let mut failed = cut();
    failed.page(S, Err(CallError::Failed("no_answer".to_owned())));
    let (count, longest_us) = failed.measured(LatencyPath::Sync);
    assert!(count == 1 && longest_us >= first_try_us, "{count} samples, the longest {longest_us} us");
    failed.now_us += 60 * S;
    let actions = failed.connect();
    failed.list(&actions, Ok(Vec::new()));
    assert!(failed.measured(LatencyPath::Sync).1 < 20 * S, "the minute without a connection is not the page's");
    let mut ended = cut();
    ended.on(Event::Command(Command::Finish(ended.now_us + S)));
    ended.until(ended.now_us + 2 * S);
    let (count, longest_us) = ended.measured(LatencyPath::Sync);
    assert!(count == 1 && longest_us >= first_try_us, "{count} samples, the longest {longest_us} us");
}

#[test]
fn a_connect_that_hung_until_its_device_left_is_measured_and_has_failed() {
    // `turn_us`: when a call had its turn that had waited for as long as it says.
    let left_after = |us: u64, (turn_us, call_lag_us): (u64, u64)| {
        let mut alone = Alone::new();
        alone.run.stats.call_lags.note(turn_us - call_lag_us, turn_us);
        let actions = alone.on(Event::Command(Command::Online(S)));
        assert!(matches!(actions[..], [Action::Connect { .. }]), "{actions:?}");
        alone.now_us += us;
        alone.on(Event::Command(Command::Offline));
        (alone.measured(LatencyPath::Connect), get(&alone.run.stats.connects_failed))
    };
    let ((count, us), failed) = left_after(7 * S, (S, 0));
    assert_eq!((count, us / S, failed), (1, 7, 1));
    let ((count, us), failed) = left_after(S, (S, 0));
    assert_eq!((count, us / S, failed), (1, 1, 0), "whoever leaves that soon can't say that it failed");
    assert_eq!(left_after(7 * S, (5 * S, 3 * S)).1, 0, "it may have waited for the generator");
    assert_eq!(left_after(7 * S, (S, S)).1, 1, "what calls waited before says nothing of this try");
}

#[test]
fn the_time_that_a_device_is_away_by_plan_is_no_part_of_its_recovery() {
    let recovered = |leaves: bool| {
        let mut alone = Alone::new();
        alone.come();
        alone.now_us += S;
        alone.run.faults.lock().expect("free").push(FaultTrack { at_us: alone.now_us, ..FaultTrack::default() });
        alone.on(Event::Closed(LinkError::Lost("cut".to_owned())));
        alone.now_us += S;
        if leaves {
            alone.on(Event::Command(Command::Offline));
        }
        alone.now_us += 8 * S;
        // It comes back half a second late: that is part of what its user waits.
        alone.on(Event::Command(Command::Online(alone.now_us - S / 2)));
        let actions = alone.connect();
        alone.list(&actions, Ok(Vec::new()));
        let of_fault = alone.run.faults.lock().expect("free")[0].recovery.max_us();
        let (count, us) = alone.measured(LatencyPath::Recovery);
        assert_eq!((count, of_fault / MS), (1, us / MS), "of the fault, too");
        us as f64 / S as f64
    };
    let (stays, leaves) = (recovered(false), recovered(true));
    assert!((8.9..9.1).contains(&stays) && (1.4..1.6).contains(&leaves), "{stays} s and {leaves} s");
}

#[test]
fn the_end_of_the_load_does_not_make_a_long_try_to_connect_unheard_of() {
    let mut alone = Alone::new();
    alone.on(Event::Command(Command::Online(S)));
    let refused = || LinkError::Refused { status: 403, text: String::new(), retry_after: None };
    alone.on(Event::ConnectFailed(ConnectError { cause: refused(), server: None, retry_after: None }));
    alone.now_us += 15 * S;
    alone.on(Event::Command(Command::Online(0)));
    alone.now_us += S;
    alone.connect();
    let (count, longest_us) = alone.measured(LatencyPath::Connect);
    assert_eq!(count, 1);
    assert!(longest_us >= 16 * S);
}

#[test]
fn only_a_device_whose_last_try_failed_here_was_kept_out_by_this_machine() {
    let ended = |causes: [LinkError; 2]| {
        let mut alone = Alone::new();
        alone.on(Event::Command(Command::Online(S)));
        for cause in causes {
            alone.on(Event::ConnectFailed(ConnectError { cause, server: None, retry_after: None }));
        }
        alone.device.into_state().is_shut_in
    };
    let here = || LinkError::Local("EADDRNOTAVAIL".to_owned());
    let there = || LinkError::Refused { status: 403, text: String::new(), retry_after: None };
    let by_placement = LinkError::Placement(CallError::Local("EMFILE".to_owned()));
    assert_eq!([ended([there(), here()]), ended([here(), there()])], [true, false]);
    assert!(ended([there(), by_placement]));
}

#[test]
fn what_a_removed_member_tries_to_send_is_in_no_figure_of_messages() {
    let mut alone = Alone::new();
    alone.come();
    let run = Arc::clone(&alone.run);
    let (conversation, user) = (alone.conversation(), run.world.clients[0].user);
    let try_to_send = |alone: &mut Alone| {
        let actions = alone.on(Event::Command(Command::TryToSend(conversation)));
        actions.into_iter().find_map(|action| match action {
            Action::Write(ClientFrame::Send(frame)) => Some((frame.uuid, frame.conversation)),
            _ => None,
        })
    };
    let error = |uuid, code, retry_after_ms| {
        ServerFrame::Error(ErrorFrame { uuid: Some(uuid), code, message: String::new(), retry_after_ms })
    };
    assert_eq!(try_to_send(&mut alone), None, "a member does not try");
    run.ledger.leaving(&run.world, conversation, user, alone.now_us);
    run.ledger.left(&run.world, conversation, user, alone.now_us);
    alone.now_us += S;
    let (refused, _) = try_to_send(&mut alone).expect("tries");
    alone.hears(error(refused, ErrorCode::NotAMember, None));
    let (busy, _) = try_to_send(&mut alone).expect("tries");
    alone.hears(error(busy, ErrorCode::Overloaded, Some(500)));
    assert!(!alone.until(30 * S).iter().any(|(_, action)| is_send(action)), "it is not tried again");
    assert_eq!((get(&run.stats.write_probes), run.ledger.described()), (1, Vec::new()));
    let (uuid, conversation_id) = try_to_send(&mut alone).expect("tries");
    alone.hears(ServerFrame::Ack(AckFrame { uuid, conversation: conversation_id, id: MessageId(9), at: 1 }));
    assert_eq!((get(&run.stats.write_probes), run.ledger.count(Kind::FalseAcceptance)), (2, 1));
    let stats = &run.stats;
    let figures = [&stats.sent, &stats.acked, &stats.refused, &stats.refused_removed, &stats.unresolved];
    assert_eq!(figures.map(get), [0; 5]);
    assert_eq!([&stats.throttled, &stats.retries, &stats.resent].map(get), [0; 3]);
    assert!(stats.errors().is_empty() && stats.owed() == 0, "{:?}", stats.errors());
    assert_eq!([LatencyPath::Ack, LatencyPath::Answer].map(|path| alone.measured(path).0), [0; 2]);
    run.ledger.joining(&run.world, conversation, user, alone.now_us);
    assert_eq!(try_to_send(&mut alone), None, "a member again, perhaps");
}

#[test]
fn times_that_can_not_be_are_errors_of_the_protocol() {
    const DAY_MS: u64 = 24 * 3_600 * 1_000;
    let mut alone = Alone::new();
    let (now, friend) = (alone.unix_ms(), alone.run.world.users[1].id);
    for at in [now, now + DAY_MS, now - DAY_MS] {
        alone.on(Event::Command(Command::Online(alone.now_us)));
        let actions = alone.connect();
        let entry = alone.entry(3, at);
        alone.list(&actions, Ok(vec![entry]));
        let presence = PresenceFrame { user: friend, state: PresenceState::Online, at };
        alone.hears(ServerFrame::Presence(presence));
        alone.on(Event::Closed(LinkError::Lost("cut".to_owned())));
        alone.now_us += S;
    }
    let errors = alone.run.stats.errors();
    assert_eq!(["inbox_time", "presence_time"].map(|name| errors.get(name).copied()), [Some(2); 2], "{errors:?}");
    assert_eq!(get(&alone.run.stats.protocol_errors), 4);
}

#[test]
fn a_size_that_a_conversation_can_not_have_is_an_error_of_the_protocol() {
    // One of the worlds with large channels.
    let mut alone = Alone::of(39);
    alone.come();
    let run = Arc::clone(&alone.run);
    let world = &run.world;
    let user = world.clients[0].user;
    let is_large = |index: &&u32| world.conversations[**index as usize].is_large();
    let own = world.conversations_of(user);
    let small = own.iter().find(|index| !is_large(index)).expect("there is one");
    let large = own.iter().find(is_large).expect("there is one");
    let mut errors = |index: u32, large| {
        let conversation = world.conversations[index as usize].id;
        alone.hears(ServerFrame::Conversation(ConversationChangeFrame { conversation, large }));
        get(&run.stats.protocol_errors)
    };
    assert_eq!([errors(*small, false), errors(*large, true)], [0, 0]);
    assert_eq!([errors(*small, true), errors(*large, false)], [1, 2]);
    for member in world.members(*large).iter().filter(|member| **member != user).take(4) {
        run.ledger.leaving(world, *large, *member, S);
    }
    assert_eq!(errors(*large, false), 2, "it may have shrunk");
}
