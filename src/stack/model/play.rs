//! Does the steps of a schedule, several at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::ledger::{Change, Sent, Word};
use super::schedule::{CHANNEL, Schedule, Step, user_of};
use super::world::{Under, World};
use crate::protocol::ClientFrame;
use crate::protocol::frames::{ConversationFrame, Deliver, SendFrame, SubscribeFrame};
use crate::runtime::clock;

/// Life of a token that is to last.
const LONG_S: u64 = 3_600;

/// Longest that a step may take, whatever is done to the servers meanwhile.
const STEP_SECONDS_MAX: u64 = 120;

impl World {
    /// Plays a schedule to its end, which every step must come to.
    pub(super) async fn play(self: &Arc<Self>, schedule: &Schedule) {
        for (wait_ms, step) in &schedule.steps {
            if *wait_ms > 0 {
                tokio::time::sleep(Duration::from_millis(*wait_ms)).await;
            }
            self.note(&format!("{step:?}"));
            let (world, step, under) = (Arc::clone(self), *step, Under::begin(self));
            self.tasks.spawn("model.step", async move {
                world.act(step).await;
                drop(under);
            });
        }
        for _ in 0..STEP_SECONDS_MAX {
            if self.steps.load(Ordering::Relaxed) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.ledger().fault("a step comes to no end".to_owned());
    }

    async fn act(self: &Arc<Self>, step: Step) {
        match step {
            Step::SignIn { device, lives_s } => {
                self.sign_in(device, lives_s);
            }
            Step::Connect { device, times, any_token } => self.connect_times(device, times, any_token).await,
            Step::LogOut { device } => {
                let token = self.ledger().token_of.get(&device).copied();
                if let Some(token) = token {
                    self.log_out(token).await;
                }
            }
            Step::Cut { device } => self.tell_newest(device, Word::Cut),
            Step::Goodbye { device } => self.tell_newest(device, Word::Goodbye),
            Step::Send { device, conversation, uuid } => self.send(device, conversation, uuid),
            Step::Again { device, uuid } => self.send_again(device, uuid),
            Step::Remove { user, conversation } => self.change(user, conversation, false, 0).await,
            Step::Leave { user, conversation } => self.change(user, conversation, false, user).await,
            Step::Add { user, conversation } => self.change(user, conversation, true, 0).await,
            Step::Subscribe { device } => self.subscribe(device, true),
            Step::Unsubscribe { device } => self.subscribe(device, false),
            Step::Drain { server } => self.drain(server).await,
            Step::Kill { server } => self.kill(server),
            Step::Start { server } => self.bring_up(server).await,
        }
    }

    async fn connect_times(self: &Arc<Self>, device: usize, times: usize, any_token: bool) {
        let known = {
            let ledger = self.ledger();
            let known = ledger.token_of.get(&device).copied();
            known.filter(|token| any_token || ledger.tokens[*token].ends_ms() > clock::unix_ms() + 1_000)
        };
        let token = known.unwrap_or_else(|| self.sign_in(device, LONG_S));
        futures_util::future::join_all((0..times).map(|_| self.connect(device, token))).await;
    }

    fn tell_newest(&self, device: usize, word: Word) {
        let newest = self.ledger().newest(device);
        if let Some(socket) = newest {
            self.tell(socket, word);
        }
    }

    /// Sends something new, if the device is connected.
    pub(super) fn send(&self, device: usize, conversation: usize, uuid: Uuid) {
        let socket = {
            let mut ledger = self.ledger();
            let Some(socket) = ledger.newest(device) else { return };
            let (written, body) = (ledger.tick(), format!("{uuid} says something"));
            let user = user_of(device);
            let sent =
                Sent { user, conversation, body, written, is_acked: false, ids: std::collections::BTreeSet::new() };
            ledger.sent.insert(uuid, sent);
            socket
        };
        self.say_again(socket, uuid);
    }

    fn send_again(&self, device: usize, uuid: Uuid) {
        let socket = {
            let ledger = self.ledger();
            let is_own = ledger.sent.get(&uuid).is_some_and(|sent| sent.user == user_of(device));
            ledger.newest(device).filter(|_| is_own)
        };
        if let Some(socket) = socket {
            self.say_again(socket, uuid);
        }
    }

    fn say_again(&self, socket: usize, uuid: Uuid) {
        let frame = {
            let ledger = self.ledger();
            let sent = &ledger.sent[&uuid];
            let conversation = self.conversations[sent.conversation];
            SendFrame { uuid, conversation, kind: "text".to_owned(), body: sent.body.clone(), reply_to: None }
        };
        self.tell(socket, Word::Say(ClientFrame::Send(frame)));
    }

    pub(super) fn subscribe(&self, device: usize, wants: bool) {
        let socket = {
            let mut ledger = self.ledger();
            let Some(socket) = ledger.newest(device) else { return };
            let at = ledger.tick();
            ledger.sockets[socket].subscribed = wants.then_some(at);
            socket
        };
        let channel = ConversationFrame { conversation: self.conversations[CHANNEL] };
        // Half of the devices know heads only.
        let deliver = if device.is_multiple_of(2) { Deliver::Messages } else { Deliver::Heads };
        let asked = SubscribeFrame { conversation: channel.conversation, deliver };
        let frame = if wants { ClientFrame::Subscribe(asked) } else { ClientFrame::Unsubscribe(channel) };
        self.tell(socket, Word::Say(frame));
    }

    /// Adds or removes a member, in the name of somebody, unless that member is being added or removed.
    pub(super) async fn change(&self, user: usize, conversation: usize, is_added: bool, by: usize) {
        let place = (conversation, user);
        let (asked, done) =
            if is_added { (Change::AddAsked, Change::Added) } else { (Change::RemoveAsked, Change::Removed) };
        {
            let mut ledger = self.ledger();
            if !ledger.changing.insert(place) {
                return;
            }
            ledger.note_change(place, asked);
        }
        let (id, who) = (self.conversations[conversation], self.users[user]);
        let members = format!("/conversations/{id}/members");
        let token = &self.api_tokens[by];
        let status = if is_added {
            self.insist("POST", &members, token, &json!({"members": [who]}).to_string()).await
        } else {
            self.insist("DELETE", &format!("{members}/{who}"), token, "").await
        };
        let mut ledger = self.ledger();
        ledger.changing.remove(&place);
        match status {
            Some(200 | 204) => ledger.note_change(place, done),
            Some(status) => {
                ledger.fault(format!("a change of member {user} of {conversation} is answered with {status}"));
            }
            // It may have been done. It is asked for once more in the end.
            None => {}
        }
        drop(ledger);
        self.note(&format!("  {done:?} user {user} of {conversation}: {status:?}"));
    }
}
