//! The loop that does a device's I/O. Inputs: its connection (or the try to make one), its mailbox, alarms. Nothing is awaited
//! but all of them together, so none of them can hold up another.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;

use super::device::{Device, NEVER};
use super::event::{Action, CallError, Command, ConnectError, Event, LinkError, Page};
use super::link::{Link, SocketLink};
use super::poll::PollLink;
use crate::loadgen::api::{Error, Source};
use crate::loadgen::call_lag;
use crate::loadgen::run::Shared;
use crate::loadgen::scenario::Transport;
use crate::loadgen::stats::add;
use crate::loadgen::tokens::Stale;
use crate::protocol::api::{InboxEntry, Placement};
use crate::protocol::frames::WelcomeFrame;
use crate::protocol::{ClientFrame, MessageId, ServerFrame, ServerName};
use crate::runtime::clock;

/// Messages in one page.
const PAGE: usize = 200;

/// Conversations in one page of the inbox.
const INBOX_PAGE: usize = 500;

/// Conversations that a server looks through for one page of the inbox, at the least. Source: docs/protocol.md, "some hundreds".
const INBOX_LOOKED_THROUGH: usize = 100;

/// Pages that an inbox may have beyond those: tries of the setup whose answers were lost have left conversations, too.
const INBOX_PAGES_SPARE: usize = 8;

/// A connection that stands: the link, the server's first frame, and the frames behind it.
type Opened = (Link, WelcomeFrame, Vec<ServerFrame>);

/// What a device is connected by.
enum Wire {
    Down,
    Connecting(BoxFuture<'static, Result<Opened, ConnectError>>),
    Up(Link),
}

/// What ended a wait.
enum Wake {
    /// Time passed, or the mailbox has something.
    News,
    Opened(Result<Opened, ConnectError>),
    /// What was read, and whether the connection still stands.
    Read(Vec<ServerFrame>, Result<(), LinkError>),
}

/// A device and what it does I/O with.
struct Driver {
    shared: Arc<Shared>,
    client: u32,
    /// How often its token had been replaced when its connection was begun.
    renewals: u32,
    device: Device,
    wire: Wire,
    /// A connection that this device has vanished from: open, and neither read nor written.
    ghost: Option<Box<Link>>,
    /// When the next alarm rings.
    armed_us: u64,
    /// Whether its mailbox has something, as far as it was told.
    has_news: bool,
}

thread_local! {
    /// Room for the frames of one read, used by one device after the other.
    static ROOM: Cell<Vec<ServerFrame>> = const { Cell::new(Vec::new()) };
}

/// Frames for which the room is kept.
const ROOM_MAX: usize = 256;

/// Starts a device.
pub(in crate::loadgen) fn start(shared: &Arc<Shared>, client: u32, placement: Placement) {
    let device = Device::new(&shared.run, client, Some(placement));
    let shared = Arc::clone(shared);
    let devices = shared.devices.clone();
    let driver = Box::new(Driver {
        shared,
        client,
        renewals: 0,
        device,
        wire: Wire::Down,
        ghost: None,
        armed_us: 0,
        has_news: true,
    });
    devices.spawn("load.device", driver.run());
}

impl Driver {
    /// Lives until the device has finished.
    async fn run(mut self: Box<Self>) {
        while self.device.outcome().is_none() {
            self.set_alarm();
            let wake = std::future::poll_fn(|context| self.poll_wake(context)).await;
            self.on_wake(wake);
        }
        Box::pin(self.end()).await;
    }

    /// Closes the connection and leaves what the device has to the engine.
    async fn end(mut self: Box<Self>) {
        if let Wire::Up(link) = std::mem::replace(&mut self.wire, Wire::Down) {
            link.close(&self.shared.traffic).await;
        }
        let Self { shared, device, .. } = *self;
        shared.ended.lock().expect("no panic while held").push(device.into_state());
    }

    /// Asks to be woken for what is due next, unless an alarm rings before that anyway.
    fn set_alarm(&mut self) {
        let mut due_us = self.device.due_us();
        if let Wire::Up(link) = &self.wire {
            due_us = due_us.min(link.due_us(self.device.is_reading(self.device.now_us)).unwrap_or(NEVER));
        }
        let now_us = self.device.now_us;
        let is_armed = self.armed_us > now_us && self.armed_us <= due_us;
        if due_us < NEVER && !is_armed {
            self.armed_us = due_us;
            self.shared.alarms.set(self.client, due_us);
        }
    }

    /// Ready with what was read, with a connection, or with nothing where there is news. No frame is kept while it waits: room
    /// for a few would be a third of what an idle device takes.
    fn poll_wake(&mut self, context: &mut Context<'_>) -> Poll<Wake> {
        // Everything is polled, so that everything knows whom to wake.
        let news = self.shared.mailboxes[self.client as usize].poll_news(context);
        self.has_news |= news.is_ready();
        let wake = match &mut self.wire {
            Wire::Down => Poll::Pending,
            Wire::Connecting(opening) => opening.as_mut().poll(context).map(Wake::Opened),
            Wire::Up(link) => {
                let is_reading = self.device.is_reading(self.device.now_us);
                poll_link(link, is_reading, &self.shared, context)
            }
        };
        // Whatever it was woken for, the mailbox is emptied too.
        if wake.is_pending() { news.map(|()| Wake::News) } else { wake }
    }

    fn on_wake(&mut self, wake: Wake) {
        let now_us = clock::now_us();
        match wake {
            Wake::News => {}
            Wake::Opened(Ok((link, welcome, frames))) => {
                self.wire = Wire::Up(link);
                self.ghost = None;
                self.device.handle(now_us, Event::Opened(Box::new(welcome)));
                self.on_frames(now_us, frames);
            }
            Wake::Opened(Err(error)) => {
                self.wire = Wire::Down;
                self.device.handle(now_us, Event::ConnectFailed(error));
            }
            Wake::Read(frames, result) => {
                self.device.handle(now_us, Event::Heard);
                if !frames.is_empty() {
                    self.device.has_read(now_us);
                }
                // What came before an error counts.
                self.on_frames(now_us, frames);
                if let Err(error) = result {
                    self.wire = Wire::Down;
                    self.device.handle(now_us, Event::Closed(error));
                }
            }
        }
        let mut now_us = now_us;
        if std::mem::take(&mut self.has_news) {
            for event in self.shared.mailboxes[self.client as usize].take() {
                if let Event::Command(Command::Send { intended_us, .. }) = &event {
                    now_us = self.shared.handover.wait_until_due(*intended_us, now_us);
                }
                self.device.handle(now_us, event);
            }
        }
        self.device.on_time(now_us);
        for action in self.device.take_actions() {
            self.act(action);
        }
    }

    fn on_frames(&mut self, now_us: u64, mut frames: Vec<ServerFrame>) {
        add(&self.shared.run.stats.frames, frames.len() as u64);
        for frame in frames.drain(..) {
            self.device.on_frame_of_connection(now_us, frame);
        }
        if frames.capacity() <= ROOM_MAX {
            ROOM.set(frames);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Write(frame) => self.write(&frame),
            Action::Connect { placement, avoid } => {
                let (shared, client) = (Arc::clone(&self.shared), self.client);
                self.renewals = shared.world.renewals(client);
                self.wire = Wire::Connecting(Box::pin(connect(shared, client, placement, avoid)));
            }
            Action::Close => {
                let wire = std::mem::replace(&mut self.wire, Wire::Down);
                if self.device.outcome().is_some() {
                    // The end of the loop closes it.
                    self.wire = wire;
                } else if let Wire::Up(link) = wire {
                    let shared = Arc::clone(&self.shared);
                    self.shared.tasks.spawn("load.close", async move { link.close(&shared.traffic).await });
                }
            }
            Action::Drop => self.wire = Wire::Down,
            Action::Abandon => {
                if let Wire::Up(link) = std::mem::replace(&mut self.wire, Wire::Down) {
                    self.ghost = Some(Box::new(link));
                }
            }
            Action::ListInbox { generation } => self.call("load.inbox_sync", move |shared, client| async move {
                let result = inbox(&shared, client).await.map_err(CallError::from);
                Event::Inbox { generation, result }
            }),
            Action::FetchPage { conversation, after } => {
                self.call("load.messages_sync", move |shared, client| async move {
                    Event::Page(Box::new(fetch(&shared, client, conversation, after).await))
                });
            }
            Action::LogIn => {
                // Calls renew the token that they were made with by themselves: the one that is meant is the connection's.
                let stale = Stale::After(self.renewals);
                self.call("load.login", move |shared, client| async move {
                    let renewed = shared.world.renew(client, stale, &shared.api).await;
                    Event::LoggedIn(renewed.map(|_| ()).map_err(CallError::from))
                });
            }
        }
    }

    fn write(&mut self, frame: &ClientFrame) {
        if let Wire::Up(link) = &mut self.wire {
            link.push(frame);
        }
    }

    /// Makes a call of the API in the background, until the run is over; what it brings back goes to the mailbox.
    fn call<F>(&self, name: &'static str, call: impl FnOnce(Arc<Shared>, u32) -> F)
    where
        F: Future<Output = Event> + Send + 'static,
    {
        let (shared, client) = (Arc::clone(&self.shared), self.client);
        let event = call(Arc::clone(&self.shared), client);
        self.shared.tasks.spawn_until_stopped(name, async move {
            let event = event.await;
            shared.mailboxes[client as usize].deliver(event);
        });
    }
}

/// Writes what was pushed and reads what there is.
fn poll_link(link: &mut Link, is_reading: bool, shared: &Shared, context: &mut Context<'_>) -> Poll<Wake> {
    if link.has_output()
        && let Poll::Ready(Err(error)) = link.poll_flush(context, &shared.traffic)
    {
        // What the server said before it went counts, and may say why it did.
        let mut frames = Vec::new();
        let said = link.drain(context, &mut frames, &shared.traffic);
        return Poll::Ready(Wake::Read(frames, Err(said.unwrap_or(error))));
    }
    if !is_reading {
        return Poll::Pending;
    }
    let mut frames = ROOM.take();
    match link.poll_read(context, &mut frames, &shared.traffic) {
        Poll::Ready(result) => Poll::Ready(Wake::Read(frames, result)),
        Poll::Pending => {
            ROOM.set(frames);
            Poll::Pending
        }
    }
}

/// Connects to where the API or login said.
async fn connect(
    shared: Arc<Shared>,
    client: u32,
    placement: Option<Placement>,
    avoid: Option<ServerName>,
) -> Result<Opened, ConnectError> {
    let token = shared.world.token(client);
    let placement = match placement {
        Some(placement) => placement,
        None => shared.api.placement(&token, avoid.as_ref()).await.map_err(|error| {
            let error = CallError::from(error);
            ConnectError { server: None, retry_after: error.retry_after(), cause: LinkError::Placement(error) }
        })?,
    };
    let source = shared.sources.get(client as usize % shared.sources.len().max(1)).copied();
    let (traffic, transport) = (&shared.traffic, shared.scenario.transport);
    let opened = match transport {
        Transport::Websocket => {
            let opened = SocketLink::open(&placement.url, &token, source, traffic).await;
            opened.map(|(link, welcome, frames)| (Link::Socket(link), welcome, frames))
        }
        Transport::LongPoll | Transport::Poll => {
            let interval = (transport == Transport::Poll).then_some(shared.scenario.poll_interval);
            let opened = PollLink::open(&shared.pollers, &placement.url, &token, interval, traffic).await;
            opened.map(|(link, welcome, frames)| (Link::Poll(Box::new(link)), welcome, frames))
        }
    };
    opened.map_err(|cause| {
        let retry_after = if let LinkError::Refused { retry_after, .. } = &cause { *retry_after } else { None };
        ConnectError { server: Some(placement.server), retry_after, cause }
    })
}

async fn inbox(shared: &Shared, client: u32) -> Result<Vec<InboxEntry>, Error> {
    let (world, api) = (&shared.world, &shared.api);
    let own = world.conversations_of(world.clients[client as usize].user).len();
    let pages_max = own / INBOX_LOOKED_THROUGH + INBOX_PAGES_SPARE;
    let mut all: Vec<InboxEntry> = Vec::new();
    let mut after = None;
    // A server that always has one more would be asked for ever.
    for _ in 0..pages_max {
        let page = world
            .authorized(client, api, |token| async move { api.inbox_sync(&token, after, INBOX_PAGE).await })
            .await?;
        let next = page.after_conversation_id.or(page.conversations.last().map(|entry| entry.conversation));
        if page.has_more && next.is_none() {
            return Err(Error::Unreadable("a page of the inbox says that there is more, and holds nothing".to_owned()));
        }
        // A server that does not look at where a page is to begin would be asked for ever.
        if page.has_more && next <= after {
            return Err(Error::Unreadable("a page of the inbox ends where it was to begin".to_owned()));
        }
        all.extend(page.conversations);
        after = next;
        if !page.has_more {
            return Ok(all);
        }
    }
    Err(Error::Unreadable(format!("the inbox of a user with {own} conversations goes on after {pages_max} pages")))
}

async fn fetch(shared: &Shared, client: u32, conversation: u32, after: u64) -> Page {
    let (world, api) = (&shared.world, &shared.api);
    let id = world.conversations[conversation as usize].id;
    let started_us = clock::now_us();
    let result = world.authorized(client, api, |token| async move {
        api.messages_sync(&token, id, MessageId(after), PAGE, Source::Any).await
    });
    let (result, waited_us) = call_lag::with_wait(result).await;
    let result = result.map_err(CallError::from);
    Page { conversation, after, started_us, ended_us: clock::now_us(), waited_us, result }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::loadgen::Scenario;
    use crate::loadgen::api::Api;
    use crate::loadgen::engine::share;
    use crate::loadgen::recorder::Recorder;
    use crate::loadgen::run::Run;
    use crate::loadgen::world::World;

    #[tokio::test(start_paused = true)]
    async fn a_call_of_a_device_does_not_outlive_its_run() {
        let text = "{name: t, population: {users: 2, direct_per_user: 1}, behaviors: {one-to-one: 1}, \
                    phases: [{phase: steady, duration: 1s, rate: 1}]}";
        let scenario = Scenario::parse(text, "t").expect("valid");
        let world = World::draw(&scenario, 1);
        // Nobody listens there: what matters is when the call ends.
        let api = Api::new("http://127.0.0.1:1").expect("an address");
        let shared = Arc::new(share(Run::new(1, scenario, world, Recorder::new(), None), api, Vec::new()));
        let driver = Driver {
            device: Device::new(&shared.run, 0, None),
            shared: Arc::clone(&shared),
            client: 0,
            renewals: 0,
            wire: Wire::Down,
            ghost: None,
            armed_us: 0,
            has_news: true,
        };
        driver.call("test.call", |_, _| std::future::pending());
        shared.tasks.stop();
        assert_eq!(shared.tasks.join(Duration::from_secs(5)).await, 0);
    }
}
