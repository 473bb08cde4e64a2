//! Devices, a network and a server in simulated time: a queue of events, and one random generator that decides everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::server::{Committed, Lie, Sent, Server};
use super::weather::Weather;
use crate::loadgen::client::{Action, CallError, Command, ConnectError, Device, Event, LinkError, Page};
use crate::loadgen::recorder::Recorder;
use crate::loadgen::run::Run;
use crate::loadgen::scenario::Scenario;
use crate::loadgen::stats::add;
use crate::loadgen::world::World;
use crate::protocol::frames::{Deliver, ErrorFrame, HeadFrame, MovedFrame, SendFrame, WelcomeFrame};
use crate::protocol::{ClientFrame, CloseCode, ConversationId, ErrorCode, Limits, ServerFrame, SessionId};

pub(super) const MS: u64 = 1_000;
pub(super) const S: u64 = 1_000_000;

/// How long the load lasts.
pub(super) const LOAD_US: u64 = 20 * S;

/// When an outage begins.
const OUTAGE_AT_US: u64 = 6 * S;

/// Messages in one page.
const PAGE: usize = 5;

/// A connection as the network sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Down,
    /// Being made; the number tells one try from the next.
    Opening(u64),
    Up(u64),
    /// It stands for the client, and nothing passes any more.
    Dead(u64),
}

impl Wire {
    const fn number(self) -> Option<u64> {
        match self {
            Self::Down | Self::Opening(_) => None,
            Self::Up(number) | Self::Dead(number) => Some(number),
        }
    }
}

/// What happens at some time.
enum Happening {
    /// A device looks at what is due.
    Wake(u32),
    /// Something that a device asked for, or that it is told by the plan.
    Event(u32, Event),
    /// The end of a try to connect.
    Connected(u32, u64, bool),
    ToServer(u32, u64, ClientFrame),
    ToClient(u32, u64, ServerFrame),
    Commit(u32, u64, u32, u64),
    /// The weather hits a connection.
    Hit,
    /// The load's next message is due.
    Send,
    /// No token is good any more: the next call or connect finds out.
    TokensEnd,
}

/// Everything that is simulated.
pub(super) struct Sim {
    pub(super) run: Arc<Run>,
    pub(super) devices: Vec<Device>,
    pub(super) now_us: u64,
    server: Server,
    wires: Vec<Wire>,
    subscribed: Vec<Vec<u32>>,
    is_token_good: Vec<bool>,
    armed_us: Vec<u64>,
    queue: BTreeMap<(u64, u64), Happening>,
    number: u64,
    rng: StdRng,
    weather: Weather,
    load_ends_us: u64,
    /// What happened so far; a run that never ends is a fault.
    pub(super) happenings: u64,
}

impl Sim {
    /// A simulation of a seed.
    pub(super) fn new(seed: u64, lie: Option<Lie>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weather = if lie.is_some() { Weather::calm() } else { Weather::draw(&mut rng) };
        let run = Arc::new(run_of(seed, &mut rng));
        let clients = run.world.clients.len();
        let devices = (0..clients as u32).map(|client| Device::new(&run, client, None)).collect();
        let now_us = S;
        let mut sim = Self {
            server: Server::new(run.world.conversations.len(), lie),
            devices,
            now_us,
            wires: vec![Wire::Down; clients],
            subscribed: vec![Vec::new(); clients],
            is_token_good: vec![true; clients],
            armed_us: vec![0; clients],
            queue: BTreeMap::new(),
            number: 0,
            rng,
            weather,
            load_ends_us: now_us + LOAD_US,
            happenings: 0,
            run,
        };
        sim.plan();
        sim
    }

    /// When devices come, go and send.
    fn plan(&mut self) {
        for client in 0..self.devices.len() as u32 {
            let mut at_us = self.now_us + self.rng.random_range(0..2 * S);
            self.at(at_us, Happening::Event(client, Event::Command(Command::Online(at_us))));
            // Some go and come, cleanly or not.
            let flaps = self.rng.random_bool(0.3);
            while flaps && at_us + 4 * S < self.load_ends_us {
                at_us += self.rng.random_range(S..6 * S);
                let gone = if self.rng.random_bool(0.7) { Command::Offline } else { Command::Vanish };
                self.at(at_us, Happening::Event(client, Event::Command(gone)));
                at_us += self.rng.random_range(100 * MS..4 * S);
                self.at(at_us, Happening::Event(client, Event::Command(Command::Online(at_us))));
            }
        }
        self.at(self.now_us + S, Happening::Send);
        self.at(self.now_us + S, Happening::Hit);
        if self.weather.tokens_end {
            let at_us = self.now_us + self.rng.random_range(5 * S..15 * S);
            self.at(at_us, Happening::TokensEnd);
        }
    }

    fn at(&mut self, at_us: u64, happening: Happening) {
        self.number += 1;
        self.queue.insert((at_us.max(self.now_us), self.number), happening);
    }

    /// Within the next `most_us`.
    fn soon(&mut self, most_us: u64) -> u64 {
        self.now_us + 100 + self.rng.random_range(0..=most_us)
    }

    fn chance(&mut self, of_thousand: u32) -> bool {
        self.rng.random_range(0..1_000) < of_thousand
    }

    /// Lets everything happen until `until_us`, or until `stop` holds.
    pub(super) fn go(&mut self, until_us: u64, stop: impl Fn(&Self) -> bool) {
        while let Some(entry) = self.queue.first_entry() {
            let (at_us, _) = *entry.key();
            if at_us > until_us || self.happenings > 2_000_000 {
                break;
            }
            let happening = entry.remove();
            self.now_us = at_us;
            self.happenings += 1;
            self.happen(happening);
            if stop(self) {
                return;
            }
        }
        self.now_us = self.now_us.max(until_us);
    }

    /// The load is over: nothing goes wrong any more.
    pub(super) fn calm(&mut self) {
        self.weather = Weather::calm();
        self.is_token_good.fill(true);
    }

    pub(super) fn command(&mut self, client: u32, command: Command) {
        self.device(client, |device, now_us| device.handle(now_us, Event::Command(command)));
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(client) => self.device(client, |_, _| {}),
            Happening::Event(client, event) => self.device(client, |device, now_us| device.handle(now_us, event)),
            Happening::Connected(client, number, is_refused) => self.connected(client, number, is_refused),
            Happening::ToServer(client, number, frame) => self.on_client_frame(client, number, frame),
            Happening::ToClient(client, number, frame) => {
                // What is read from a connection that was closed meanwhile goes nowhere.
                if self.wires[client as usize] == Wire::Up(number) {
                    self.device(client, |device, now_us| {
                        device.handle(now_us, Event::Heard);
                        device.on_frame_of_connection(now_us, frame);
                    });
                }
            }
            Happening::Commit(index, id, client, number) => self.commit(index, id, client, number),
            Happening::Hit => self.hit(),
            Happening::Send => self.send_next(),
            Happening::TokensEnd => self.is_token_good.fill(false),
        }
    }

    /// Does something with a device, and then what the device wants done.
    fn device(&mut self, client: u32, act: impl FnOnce(&mut Device, u64)) {
        let now_us = self.now_us;
        let device = &mut self.devices[client as usize];
        if device.outcome().is_some() {
            return;
        }
        act(device, now_us);
        device.on_time(now_us);
        for action in device.take_actions() {
            self.act(client, action);
        }
        let due_us = self.devices[client as usize].due_us();
        let armed_us = &mut self.armed_us[client as usize];
        if due_us < u64::MAX && (*armed_us <= now_us || due_us < *armed_us) {
            *armed_us = due_us.max(now_us + 1);
            let at_us = *armed_us;
            self.at(at_us, Happening::Wake(client));
        }
    }

    fn act(&mut self, client: u32, action: Action) {
        let at = client as usize;
        match action {
            Action::Connect { .. } => {
                self.number += 1;
                let number = self.number;
                self.wires[at] = Wire::Opening(number);
                let is_refused = self.chance(self.weather.refused_connect);
                let at_us = self.soon(self.weather.connect_us);
                self.at(at_us, Happening::Connected(client, number, is_refused));
            }
            Action::Write(frame) => {
                if let Wire::Up(number) = self.wires[at] {
                    // A socket keeps the order of what one end writes.
                    let at_us = self.now_us + 100 + self.weather.frame_us / 4;
                    self.at(at_us, Happening::ToServer(client, number, frame));
                }
            }
            Action::Close | Action::Drop | Action::Abandon => self.wires[at] = Wire::Down,
            Action::ListInbox { generation } => {
                let result = self.call(client, |sim, user| sim.server.inbox(&sim.run.world, user));
                self.answer(client, Event::Inbox { generation, result });
            }
            Action::FetchPage { conversation, after } => {
                let started_us = self.now_us;
                let result = self.call(client, |sim, user| sim.server.sync(conversation, user, after, PAGE));
                let ended_us = started_us;
                self.answer(
                    client,
                    Event::Page(Box::new(Page { conversation, after, started_us, ended_us, waited_us: 0, result })),
                );
            }
            Action::LogIn => {
                self.is_token_good[at] = true;
                self.answer(client, Event::LoggedIn(Ok(())));
            }
        }
    }

    /// The answer of a call is made now and comes later: the world goes on meanwhile.
    fn call<T>(&mut self, client: u32, answer: impl FnOnce(&Self, u32) -> T) -> Result<T, CallError> {
        if !self.is_token_good[client as usize] {
            return Err(CallError::Unauthorized);
        }
        let outage_us = OUTAGE_AT_US..OUTAGE_AT_US + self.weather.outage_us;
        if outage_us.contains(&self.now_us) || self.chance(self.weather.failed_call) {
            return Err(if self.rng.random_bool(0.5) {
                CallError::Throttled(Duration::from_secs(1))
            } else {
                CallError::Failed("http_500".to_owned())
            });
        }
        Ok(answer(self, self.run.world.clients[client as usize].user))
    }

    fn answer(&mut self, client: u32, event: Event) {
        let at_us = self.soon(self.weather.call_us);
        self.at(at_us, Happening::Event(client, event));
    }

    fn connected(&mut self, client: u32, number: u64, is_refused: bool) {
        if self.wires[client as usize] != Wire::Opening(number) {
            return;
        }
        let unauthorized = !self.is_token_good[client as usize];
        if is_refused || unauthorized {
            self.wires[client as usize] = Wire::Down;
            let (status, wait) = if unauthorized { (401, None) } else { (503, Some(Duration::from_secs(1))) };
            let cause = LinkError::Refused { status, text: String::new(), retry_after: wait };
            let error = ConnectError { cause, server: None, retry_after: wait };
            return self.device(client, |device, now_us| device.handle(now_us, Event::ConnectFailed(error)));
        }
        self.wires[client as usize] = Wire::Up(number);
        self.subscribed[client as usize].clear();
        let welcome = welcome(&self.run.world, client);
        self.device(client, |device, now_us| device.handle(now_us, Event::Opened(Box::new(welcome))));
    }

    fn push_to_client(&mut self, client: u32, frame: ServerFrame) {
        let Wire::Up(number) = self.wires[client as usize] else { return };
        let copies = if self.chance(self.weather.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            // Frames overtake each other: pushes of different servers do.
            let at_us = self.soon(self.weather.frame_us);
            self.at(at_us, Happening::ToClient(client, number, frame.clone()));
        }
    }

    fn on_client_frame(&mut self, client: u32, number: u64, frame: ClientFrame) {
        if self.wires[client as usize] != Wire::Up(number) {
            return;
        }
        match frame {
            ClientFrame::Send(frame) => self.on_send(client, number, frame),
            ClientFrame::Ping => self.push_to_client(client, ServerFrame::Pong),
            ClientFrame::Subscribe(frame) => {
                let index = self.index_of(frame.conversation);
                self.subscribed[client as usize].push(index);
            }
            _ => {}
        }
    }

    fn index_of(&self, conversation: ConversationId) -> u32 {
        self.run.world.conversation_index(conversation).expect("a conversation of this world")
    }

    fn on_send(&mut self, client: u32, number: u64, frame: SendFrame) {
        if self.chance(self.weather.error_answer) {
            let (code, retry_after_ms) = if self.rng.random_bool(0.5) {
                (ErrorCode::Overloaded, Some(700))
            } else {
                (ErrorCode::Internal, None)
            };
            let error = ErrorFrame { uuid: Some(frame.uuid), code, message: String::new(), retry_after_ms };
            return self.push_to_client(client, ServerFrame::Error(error));
        }
        let index = self.index_of(frame.conversation);
        let sender = self.run.world.users[self.run.world.clients[client as usize].user as usize].id;
        let skip = u64::from(self.chance(self.weather.skipped_id));
        match self.server.send(index, frame, sender, skip, self.unix_ms()) {
            Sent::Reserved(id) => {
                let at_us = self.soon(self.weather.commit_us);
                self.at(at_us, Happening::Commit(index, id, client, number));
            }
            Sent::Known(ack) => self.push_to_client(client, ServerFrame::Ack(ack)),
            Sent::Open => {}
        }
    }

    fn commit(&mut self, index: u32, id: u64, client: u32, number: u64) {
        let Some(Committed { ack, message, to_all, hidden_from }) = self.server.commit(index, id) else { return };
        if self.wires[client as usize].number() == Some(number) && !self.chance(self.weather.dropped_ack) {
            self.push_to_client(client, ServerFrame::Ack(ack));
        }
        let run = Arc::clone(&self.run);
        let world = &run.world;
        let is_large = world.conversations[index as usize].is_large();
        for user in 0..world.users.len() as u32 {
            let is_member = world.members(index).binary_search(&user).is_ok();
            if (!is_member && !to_all) || hidden_from == Some(user) {
                continue;
            }
            for device in world.clients_of(user).filter(|device| *device != client) {
                if self.chance(self.weather.dropped_push) {
                    continue;
                }
                let is_subscribed = is_large && self.subscribed[device as usize].contains(&index);
                // A server that passes its limits tells of a message in place of sending it.
                if !is_large || is_subscribed && self.rng.random_bool(0.5) {
                    self.push_to_client(device, ServerFrame::Message(message.clone()));
                } else if is_subscribed {
                    let head = HeadFrame { conversation: message.conversation, id: message.id };
                    self.push_to_client(device, ServerFrame::Head(head));
                }
            }
        }
    }

    /// Cuts a connection, silences it, closes it, or moves its device away.
    fn hit(&mut self) {
        let every_us = self.weather.cut_every_us;
        if every_us == 0 {
            return;
        }
        let client = self.rng.random_range(0..self.devices.len() as u32);
        if let Wire::Up(number) = self.wires[client as usize] {
            let how = self.rng.random_range(0..5);
            self.wires[client as usize] = if how == 0 { Wire::Dead(number) } else { Wire::Down };
            let closed = match how {
                0 => None,
                1 => Some(LinkError::Closed(CloseCode::Internal.code())),
                2 => {
                    let moved = ServerFrame::Moved(MovedFrame { reason: "drain".to_owned(), retry_after_ms: 400 });
                    self.device(client, |device, now_us| device.on_frame_of_connection(now_us, moved));
                    Some(LinkError::Closed(CloseCode::Moved.code()))
                }
                _ => Some(LinkError::Lost("cut".to_owned())),
            };
            if let Some(error) = closed {
                self.device(client, |device, now_us| device.handle(now_us, Event::Closed(error)));
            }
        }
        let at_us = self.soon(2 * every_us);
        self.at(at_us, Happening::Hit);
    }

    /// Somebody sends, whether connected or not.
    fn send_next(&mut self) {
        if self.now_us > self.load_ends_us {
            return;
        }
        let run = Arc::clone(&self.run);
        let client = self.rng.random_range(0..self.devices.len() as u32);
        let user = run.world.clients[client as usize].user;
        if let Some(conversation) = run.world.conversations_of(user).choose(&mut self.rng).copied() {
            add(&run.stats.intended, 1);
            self.command(client, Command::Send { conversation, intended_us: self.now_us, bytes: 90 });
        }
        let at_us = self.soon(300 * MS);
        self.at(at_us, Happening::Send);
    }

    /// Devices that hold on to a connection that is dead.
    pub(super) fn on_dead_connections(&self) -> usize {
        self.wires.iter().filter(|wire| matches!(wire, Wire::Dead(_))).count()
    }

    /// The server's clock.
    pub(super) fn unix_ms(&self) -> u64 {
        (self.now_us + self.run.unix_offset_us) / MS
    }

    /// Everything that is stored of a conversation.
    pub(super) fn stored(&self, index: u32) -> Vec<crate::protocol::MessageFrame> {
        self.server.stored(index)
    }
}

/// A small world with ids, and nothing measured yet.
pub(super) fn run_of(seed: u64, rng: &mut StdRng) -> Run {
    // Rarely one with a large channel: its world is twenty times as large.
    let (users, groups) = if seed % 40 == 39 { (104, "{min: 102, max: 104}") } else { (6, "{min: 3, max: 6}") };
    let text = format!(
        "{{name: model, seed: {seed}, population: {{users: {users}, direct_per_user: 2, devices_per_user: {{min: 1, max: 2}}, \
         groups: [{{count: 2, members: {groups}}}]}}, behaviors: {{one-to-one: 1}}, heartbeat: 5s, ping_after: 8s, \
         phases: [{{phase: steady, duration: 20s, rate: 5}}]}}"
    );
    let scenario = Scenario::parse(&text, "model").expect("valid");
    let mut world = World::draw(&scenario, rng.random());
    world.number_for_tests();
    Run::new(world.run(), scenario, world, Recorder::new(), None)
}

pub(super) fn welcome(world: &World, client: u32) -> WelcomeFrame {
    WelcomeFrame {
        session: SessionId(uuid::Uuid::nil()),
        server: "chat-1".parse().expect("a name"),
        user: world.users[world.clients[client as usize].user as usize].id,
        device: world.device_name(client),
        heartbeat_s: 5,
        limits: Limits::default(),
        channels: Deliver::Messages,
    }
}
