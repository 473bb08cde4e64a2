//! What must be true once everything is quiet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::ledger::{Change, Word};
use super::schedule::{CHANNEL, DEVICES_PER_USER, PAIRS, USERS, user_of};
use super::world::World;
use crate::protocol::api::MessagesSync;
use crate::protocol::frames::PresenceState;
use crate::protocol::{ConversationId, MessageFrame, SessionId};
use crate::runtime::clock;
use crate::server::chat::{ChatServer, Figures};

/// Longer than a session goes without being refreshed, and than the longest silence of a user who is online.
const QUIET: Duration = Duration::from_secs(40);

/// How long a right that ended may still be of use, and a moment more.
const VOID_WITHIN: Duration = Duration::from_secs(6);

/// The device that the owner looks on from.
const OBSERVER: usize = 0;

/// A device of its own for each user, for the messages at the end.
const fn probe_device(user: usize) -> usize {
    user * DEVICES_PER_USER + 1
}

impl World {
    /// Lets everything come to rest, and looks whether all is as it must be.
    pub(super) async fn judge(self: &Arc<Self>, seed: u64) {
        self.weather.set_calm(true);
        for server in 0..self.servers_max() {
            self.bring_up(server).await;
        }
        self.settle_members().await;
        self.connect_anew(OBSERVER).await;
        self.is_busy.store(false, std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(VOID_WITHIN).await;
        if self.killed.lock().expect("no panic while held").is_empty() {
            // What one server is to tell another is lost where it is killed, and made good when sessions are refreshed.
            self.check_sockets();
        }
        tokio::time::sleep(QUIET).await;
        self.check_sockets();
        self.check_presence();
        self.check_servers("while connected");
        self.probe(seed).await;
        for conversation in 0..self.conversations.len() {
            self.check_history(conversation).await;
        }
        self.check_heads();
        self.check_end().await;
    }

    fn servers_max(&self) -> usize {
        let servers = self.servers.lock().expect("no panic while held");
        servers.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len()
    }

    /// Asks once more for what was not answered.
    async fn settle_members(&self) {
        let open: Vec<(usize, usize, bool)> = {
            let ledger = self.ledger();
            let last = |changes: &Vec<(u64, Change)>| changes.last().map(|(_, change)| *change);
            let open = ledger.changes.iter().filter_map(|(place, changes)| match last(changes)? {
                Change::AddAsked => Some((place.1, place.0, true)),
                Change::RemoveAsked => Some((place.1, place.0, false)),
                Change::Added | Change::Removed => None,
            });
            open.collect()
        };
        for (user, conversation, is_added) in open {
            self.change(user, conversation, is_added, 0).await;
            if self.ledger().is_member(conversation, user).is_none() {
                self.ledger().fault(format!("member {user} of {conversation} can't be changed in the end"));
            }
        }
    }

    async fn connect_anew(self: &Arc<Self>, device: usize) -> Option<usize> {
        let token = self.sign_in(device, 3_600);
        let mut socket = None;
        for _ in 0..10 {
            socket = self.connect(device, token).await;
            if socket.is_some() {
                return socket;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.ledger().fault(format!("device {device} can't connect in the end"));
        socket
    }

    /// No socket outlives its token, and a device has one.
    fn check_sockets(&self) {
        let now_ms = clock::unix_ms();
        let mut ledger = self.ledger();
        let mut faults = Vec::new();
        let mut by_device: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, sock) in ledger.live() {
            by_device.entry(sock.device).or_default().push(number);
            if ledger.tokens[sock.token].ends_ms() + 6_000 < now_ms {
                faults.push(format!("socket {number} of device {} outlives its token", sock.device));
            }
        }
        for (device, sockets) in by_device.iter().filter(|(_, sockets)| sockets.len() > 1) {
            faults.push(format!("device {device} has the sockets {sockets:?} at once"));
        }
        ledger.take_faults(faults);
    }

    /// The owner was told who is there.
    fn check_presence(&self) {
        let mut ledger = self.ledger();
        let Some(observer) = ledger.newest(OBSERVER) else { return ledger.fault("the observer is gone".to_owned()) };
        let online: BTreeSet<usize> = ledger.live().map(|(_, sock)| user_of(sock.device)).collect();
        for user in 1..USERS {
            let told = ledger.sockets[observer].told.get(&self.users[user]).copied();
            let is_online = told == Some(PresenceState::Online);
            if is_online != online.contains(&user) {
                ledger.fault(format!("user {user} is told {told:?}, and has a socket: {}", online.contains(&user)));
            }
        }
    }

    /// What the servers hold is what there is.
    fn check_servers(&self, when: &str) {
        let kernel = sockets_of_kernel();
        for (name, server) in self.running() {
            let sessions: BTreeSet<_> = {
                let ledger = self.ledger();
                ledger.live().filter(|(_, sock)| sock.server == name).map(|(_, sock)| sock.session).collect()
            };
            for fault in leaks(&server, &sessions, &kernel) {
                self.ledger().fault(format!("{name} {when}: {fault}"));
            }
        }
    }

    /// Everybody hears what is said in the end, if they are members, and nobody else does.
    async fn probe(self: &Arc<Self>, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x9e37);
        let watched: Vec<usize> = self.ledger().live().map(|(number, _)| number).collect();
        let mut probes = HashMap::new();
        for conversation in 0..self.conversations.len() {
            let user = if conversation <= CHANNEL { 0 } else { PAIRS[conversation - 2][0] };
            // A device that nobody watches: its socket is the only one that need not hear.
            let device = user * DEVICES_PER_USER + usize::from(user == 0);
            let newest = self.ledger().newest(device);
            let from = match newest {
                Some(socket) => Some(socket),
                None => self.connect_anew(if user == 0 { probe_device(0) } else { device }).await,
            };
            let Some(from) = from else { return };
            tokio::time::sleep(Duration::from_millis(300)).await;
            let (device, uuid) = (self.ledger().sockets[from].device, Uuid::from_u128(rng.random()));
            self.send(device, conversation, uuid);
            probes.insert(uuid, (conversation, from));
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        for (uuid, (conversation, from)) in probes {
            if !self.ledger().sent[&uuid].is_acked {
                self.ledger().fault(format!("what is said in conversation {conversation} in the end is not taken"));
                continue;
            }
            for socket in &watched {
                self.check_probe(*socket, conversation, uuid, *socket == from);
            }
        }
    }

    fn check_probe(&self, socket: usize, conversation: usize, uuid: Uuid, is_sender: bool) {
        let mut ledger = self.ledger();
        let sock = &ledger.sockets[socket];
        if sock.ended.is_some() {
            // The probe of a device that had none took its place.
            return;
        }
        let user = user_of(sock.device);
        let is_in = conversation <= CHANNEL || PAIRS[conversation - 2].contains(&user);
        let is_member = is_in && ledger.is_member(conversation, user) == Some(true);
        let id = ledger.sent[&uuid].ids.first().copied().unwrap_or_default();
        let count = if conversation == CHANNEL {
            // The message itself, or a head.
            let is_it = |uuid_heard: Option<Uuid>| uuid_heard.is_none_or(|heard| heard == uuid);
            sock.heard.iter().filter(|h| h.conversation == CHANNEL && h.id == id && is_it(h.uuid)).count()
        } else {
            sock.heard.iter().filter(|h| h.uuid == Some(uuid)).count()
        };
        let must = is_member && !is_sender && (conversation != CHANNEL || ledger.must_be_subscribed(socket));
        if must && count == 0 {
            ledger.fault(format!(
                "socket {socket} of user {user}, a member, heard nothing in conversation {conversation}"
            ));
        }
        if !is_member && count > 0 {
            ledger.fault(format!("socket {socket} of user {user}, no member, heard what was said in {conversation}"));
        }
    }

    /// A sync has all that was acknowledged, once, in order; each uuid has one id.
    async fn check_history(&self, conversation: usize) {
        let reader = if conversation <= CHANNEL { 0 } else { PAIRS[conversation - 2][0] };
        let Some(stored) = self.sync(self.conversations[conversation], reader).await else {
            return self.ledger().fault(format!("conversation {conversation} can't be read in the end"));
        };
        self.compare(conversation, &stored);
        self.check_door(conversation).await;
    }

    fn compare(&self, conversation: usize, stored: &[MessageFrame]) {
        let mut ledger = self.ledger();
        for pair in stored.windows(2).filter(|pair| pair[0].id >= pair[1].id) {
            ledger.fault(format!("{} comes behind {} in conversation {conversation}", pair[1].id, pair[0].id));
        }
        let mut ids = HashMap::new();
        for message in stored {
            ledger.check_message(message, Some(conversation));
            if let Some(other) = ids.insert(message.uuid, message.id) {
                ledger.fault(format!("{} is stored twice, as {other} and as {}", message.uuid, message.id));
            }
        }
        let mut faults = Vec::new();
        for (uuid, sent) in ledger.sent.iter().filter(|(_, sent)| sent.conversation == conversation) {
            if sent.is_acked && !ids.contains_key(uuid) {
                faults.push(format!("{uuid} was acknowledged and is not in conversation {conversation}"));
            }
            if sent.ids.len() > 1 {
                faults.push(format!("{uuid} has the ids {:?}", sent.ids));
            }
        }
        ledger.take_faults(faults);
    }

    /// Who was removed can't read.
    async fn check_door(&self, conversation: usize) {
        for user in 1..USERS {
            let is_out = conversation <= CHANNEL && self.ledger().is_member(conversation, user) == Some(false);
            if is_out && self.sync(self.conversations[conversation], user).await.is_some() {
                self.ledger().fault(format!("user {user} was removed from conversation {conversation} and reads it"));
            }
        }
    }

    async fn sync(&self, conversation: ConversationId, user: usize) -> Option<Vec<MessageFrame>> {
        let (mut stored, mut after) = (Vec::new(), 0);
        loop {
            let path = format!("/messages/sync?conversation_id={conversation}&after_message_id={after}");
            let (status, body) = self.http("GET", &path, &self.api_tokens[user], "").await?;
            let page: MessagesSync = serde_json::from_value(body).ok().filter(|_| status == 200)?;
            let has_more = page.has_more;
            stored.extend(page.messages);
            after = stored.last().map_or(0, |message: &MessageFrame| message.id.0);
            if !has_more {
                return Some(stored);
            }
        }
    }

    /// Nobody was told of a message of the channel that was sent after the removal.
    fn check_heads(&self) {
        let mut ledger = self.ledger();
        let mut faults = Vec::new();
        let written: HashMap<u64, u64> = ledger
            .sent
            .values()
            .filter(|sent| sent.conversation == CHANNEL)
            .flat_map(|sent| sent.ids.iter().map(|id| (*id, sent.written)))
            .collect();
        for (number, sock) in ledger.sockets.iter().enumerate() {
            let place = (CHANNEL, user_of(sock.device));
            for head in sock.heard.iter().filter(|heard| heard.conversation == CHANNEL && heard.uuid.is_none()) {
                if written.get(&head.id).is_some_and(|written| !ledger.may_hear(place, *written, head.at)) {
                    faults.push(format!("socket {number} was told of message {} after its user was removed", head.id));
                }
            }
        }
        ledger.take_faults(faults);
    }

    /// When all clients have gone nothing of them is left, and when the servers have stopped nothing of these.
    async fn check_end(self: &Arc<Self>) {
        let live: Vec<usize> = self.ledger().live().map(|(number, _)| number).collect();
        for (n, socket) in live.into_iter().enumerate() {
            self.tell(socket, if n % 2 == 0 { Word::Cut } else { Word::Goodbye });
        }
        tokio::time::sleep(Duration::from_secs(8)).await;
        self.check_servers("when all have gone");
        self.stop().await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        let servers = self.servers.lock().expect("no panic while held");
        for (name, _) in servers.iter().filter(|(_, server)| server.strong_count() > 0) {
            self.ledger().fault(format!("something of a stopped {name} lives on"));
        }
    }
}

impl super::ledger::Ledger {
    /// Whether a socket subscribed to the channel, and its user was a member then and ever since.
    fn must_be_subscribed(&self, socket: usize) -> bool {
        let sock = &self.sockets[socket];
        let changes = self.changes.get(&(CHANNEL, user_of(sock.device)));
        sock.subscribed.is_some_and(|at| {
            let last = changes.and_then(|changes| changes.last());
            last.is_none_or(|(then, change)| *then < at && *change == Change::Added)
        })
    }
}

/// What a server holds beside the sessions that live on it.
fn leaks(
    server: &Arc<ChatServer>,
    sessions: &BTreeSet<SessionId>,
    kernel: &HashMap<u16, BTreeSet<String>>,
) -> Vec<String> {
    let (figures, live) = (server.figures(), server.live());
    let here: BTreeSet<SessionId> = live.iter().map(|(session, _)| *session).collect();
    let mut faults = Vec::new();
    if here != *sessions {
        faults.push(format!("it has the sessions {here:?}, its clients {sessions:?}"));
    }
    let count = sessions.len();
    let subscriptions = live.iter().map(|(_, subscriptions)| subscriptions).sum();
    let expected = Figures {
        connections: count,
        subscriptions,
        seats: count,
        half_open: 0,
        under_way: 0,
        sockets: count as u64,
        users: if count == 0 { 0 } else { figures.users.min(count) },
        watched: if count == 0 { 0 } else { figures.watched },
    };
    if figures != expected {
        faults.push(format!("it holds {figures:?}, and should {expected:?}"));
    }
    let descriptors = kernel.get(&server.address().port()).map_or(0, BTreeSet::len);
    if descriptors != count {
        faults.push(format!("it has {descriptors} descriptors of {count} sockets, at {}", server.address()));
    }
    faults
}

/// The sockets among this process's descriptors.
fn own_inodes() -> BTreeSet<String> {
    let descriptors = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inode =
        |target: std::path::PathBuf| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    targets.filter_map(inode).collect()
}

/// Sockets that this process has open, each once however often the table tells of it while it changes, by their own port: of servers these are what they accepted.
fn sockets_of_kernel() -> HashMap<u16, BTreeSet<String>> {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let own = own_inodes();
    let mut sockets: HashMap<u16, BTreeSet<String>> = HashMap::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else { continue };
        let port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
        if let Some(port) = port.filter(|_| (*state == ESTABLISHED || *state == CLOSE_WAIT) && own.contains(*inode)) {
            sockets.entry(port).or_default().insert((*inode).to_owned());
        }
    }
    sockets
}
