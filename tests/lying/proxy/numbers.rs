//! Message ids shown under other numbers: in ACKs, messages, heads, pages and cursors alike, so that each lie about numbers is
//! one that a client can only see by the order of events, by a hole, or by two messages of one id.

use std::collections::HashMap;
use std::sync::Mutex;

use chatctl::protocol::api::MessagesSync;
use chatctl::protocol::{ConversationId, MessageId, ServerFrame};

use super::http::{Answer, Call};

/// The numbers of one conversation; every real id is shown as itself where nothing else is said.
#[derive(Debug, Default)]
struct Numbering {
    /// Single ids.
    exact: HashMap<u64, u64>,
    /// From a real id on, so much more (or less).
    shifts: Vec<(u64, i64)>,
}

impl Numbering {
    fn shown(&self, id: u64) -> u64 {
        if let Some(shown) = self.exact.get(&id) {
            return *shown;
        }
        let shift: i64 = self.shifts.iter().filter(|(from, _)| id >= *from).map(|(_, by)| by).sum();
        id.saturating_add_signed(shift)
    }

    /// A real id whose successors are all that is shown above a number, and perhaps some more.
    fn before(&self, shown: u64) -> u64 {
        let up: i64 = self.shifts.iter().map(|(_, by)| (*by).max(0)).sum();
        if self.exact.is_empty() && up == 0 { shown } else { shown.saturating_sub(up as u64 + 2) }
    }
}

/// The numbers of all conversations.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<HashMap<ConversationId, Numbering>>);

impl Numbers {
    fn with<R>(&self, conversation: ConversationId, act: impl FnOnce(&mut Numbering) -> R) -> R {
        act(self.0.lock().expect("no panic while held").entry(conversation).or_default())
    }

    /// Shows one id as another number.
    pub(crate) fn set(&self, conversation: ConversationId, id: u64, shown: u64) {
        self.with(conversation, |n| n.exact.insert(id, shown));
    }

    /// Shows every id from one on as so much more or less.
    pub(crate) fn shift(&self, conversation: ConversationId, from: u64, by: i64) {
        self.with(conversation, |n| n.shifts.push((from, by)));
    }

    /// Whether anything is said of an id.
    pub(crate) fn has(&self, conversation: ConversationId, id: u64) -> bool {
        self.with(conversation, |n| n.exact.contains_key(&id))
    }

    pub(crate) fn shown(&self, conversation: ConversationId, id: MessageId) -> MessageId {
        MessageId(self.with(conversation, |n| n.shown(id.0)))
    }

    /// A frame of the server with the numbers that are shown.
    pub(crate) fn frame(&self, mut frame: ServerFrame) -> ServerFrame {
        match &mut frame {
            ServerFrame::Message(message) => message.id = self.shown(message.conversation, message.id),
            ServerFrame::Ack(ack) => ack.id = self.shown(ack.conversation, ack.id),
            ServerFrame::Head(head) => head.id = self.shown(head.conversation, head.id),
            _ => {}
        }
        frame
    }

    /// Has a request for what is behind a shown number ask for what is behind the real ones.
    pub(crate) fn request(&self, call: &mut Call) {
        if let Some((page, _)) = call.page() {
            call.ask_after(self.with(page.conversation, |n| n.before(page.after)));
        }
    }

    /// An answer with the numbers that are shown.
    pub(crate) fn answer(&self, call: &Call, answer: &mut Answer) {
        answer.edit_inbox(|inbox| {
            for entry in &mut inbox.conversations {
                entry.head = self.shown(entry.conversation, entry.head);
            }
        });
        let Some((query, _)) = call.page() else { return };
        answer.edit_page(|page: &mut MessagesSync| {
            for row in &mut page.messages {
                row.id = self.shown(row.conversation, row.id);
            }
            page.messages.sort_by_key(|row| row.id);
            page.messages.retain(|row| row.id.0 > query.after);
            page.stable = self.with(query.conversation, |n| {
                // What is said of single ids is no promise about their neighbours.
                let plain = Numbering { exact: HashMap::new(), shifts: n.shifts.clone() };
                MessageId(plain.shown(page.stable.0))
            });
        });
    }
}
