//! What nobody sent: messages, receipts, typing.

use chatctl::protocol::frames::{ConversationChangeFrame, HeadFrame, ReceiptFrame, ReceiptStatus, TypingFrame};
use chatctl::protocol::{ConversationId, MessageFrame, MessageId, ServerFrame};
use uuid::Uuid;

use super::message_of;
use crate::body;
use crate::mode::Want::Is;
use crate::mode::{Expect, Mode};
use crate::proxy::http::{Answer, Call};
use crate::proxy::socket::{Out, Socket};
use crate::proxy::{Lie, Proxy};

/// Messages that a client is far from sending.
const FAR_UP: u32 = 100_000;

/// One push in so many is followed by a forgery.
const EVERY: u64 = 60;

const fn live(server: fn(&Proxy, &Socket, ServerFrame) -> Vec<Out>) -> Lie {
    Lie { server, ..Lie::NONE }
}

pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "lie::message_with_a_counter_that_was_never_reached",
        lie: live(|p, _, frame| and(p, frame, |m| body::forged(m, FAR_UP).map(|f| shown_next(m, f)))),
        // The next message has that id.
        expect: Expect::violated(&[("forged", Is("lies"))]).also(&["id_reuse", "lost", "duplicated"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::text_that_nobody_sent",
        lie: live(|p, _, frame| {
            and(p, frame, |m| {
                let text = MessageFrame { uuid: Uuid::new_v4(), body: "buy now".to_owned(), ..m.clone() };
                Some(shown_next(m, text))
            })
        }),
        expect: Expect::violated(&[("forged", Is("lies"))]).also(&["id_reuse", "lost"]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::conversation_grows_that_did_not",
        lie: live(|p, _, frame| {
            and(p, frame, |m| {
                let conversation = m.conversation;
                Some(ServerFrame::Conversation(ConversationChangeFrame { conversation, large: true }))
            })
        }),
        expect: Expect::failed("protocol_errors", &[("protocol_errors", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::receipt_that_nobody_sent",
        lie: live(|p, _, frame| {
            and(p, frame, |m| {
                let (conversation, user, upto) = (m.conversation, m.sender, m.id);
                Some(ServerFrame::Receipt(ReceiptFrame { conversation, user, status: ReceiptStatus::Read, upto }))
            })
        }),
        expect: Expect::violated(&[("forged", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::news_of_a_conversation_that_is_not_there",
        lie: live(|p, _, frame| {
            and(p, frame, |m| {
                let conversation = ConversationId(m.conversation.0 + 1_000_000);
                Some(ServerFrame::Head(HeadFrame { conversation, id: m.id }))
            })
        }),
        expect: Expect::violated(&[("forged", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::news_up_to_an_id_that_is_not_there",
        lie: live(|p, s, frame| {
            let id = message_of(&frame).filter(|_| p.first(s.who.user) && s.who.user.0.is_multiple_of(4));
            let head = id.map(|m| HeadFrame { conversation: m.conversation, id: MessageId(m.id.0 + 1_000_000) });
            let head = head.map(|head| {
                p.lied();
                Out::frame(&ServerFrame::Head(head))
            });
            Out::pass(frame).into_iter().chain(head).collect()
        }),
        expect: Expect::violated(&[("forged", Is("lies"))]),
        takes_s: 20,
        ..Mode::LIE
    },
    Mode {
        name: "lie::typing_that_nobody_sent",
        lie: live(|p, _, frame| {
            and(p, frame, |m| Some(ServerFrame::Typing(TypingFrame { conversation: m.conversation, user: m.sender })))
        }),
        expect: Expect::violated(&[("forged", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::row_in_audit_that_nobody_sent",
        lie: Lie {
            answer: |p, call, answer| {
                add_row(p, call, answer, |last| body::forged(last, FAR_UP));
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("forged", Is("lies"))]),
        ..Mode::LIE
    },
    Mode {
        name: "lie::text_in_audit_that_nobody_sent",
        lie: Lie {
            answer: |p, call, answer| {
                add_row(p, call, answer, |last| {
                    let uuid = Uuid::from_u128(!last.uuid.as_u128());
                    Some(MessageFrame { uuid, body: "buy now".to_owned(), ..last.clone() })
                });
            },
            ..Lie::NONE
        },
        expect: Expect::violated(&[("forged", Is("lies"))]),
        ..Mode::LIE
    },
];

/// Lets a forgery follow one push in [`EVERY`].
fn and(p: &Proxy, frame: ServerFrame, forge: fn(&MessageFrame) -> Option<ServerFrame>) -> Vec<Out> {
    let forged = message_of(&frame).filter(|_| p.one_in("forge", EVERY)).and_then(forge);
    let forged = forged.map(|forged| {
        p.lied();
        Out::frame(&forged)
    });
    Out::pass(frame).into_iter().chain(forged).collect()
}

fn shown_next(before: &MessageFrame, message: MessageFrame) -> ServerFrame {
    ServerFrame::Message(MessageFrame { id: before.id.next(), ..message })
}

/// Puts a row behind the last one that is read in the audit, alike for everybody.
fn add_row(p: &Proxy, call: &Call, answer: &mut Answer, forge: fn(&MessageFrame) -> Option<MessageFrame>) {
    let Some((query, _)) = call.audit_page().filter(|(query, _)| query.after == 0) else { return };
    answer.edit_page(|page| {
        let Some(last) = page.messages.last().cloned() else { return };
        if let Some(row) = forge(&last) {
            if p.first(query.conversation) {
                p.lied();
            }
            page.messages.push(MessageFrame { id: last.id.next(), ..row });
        }
    });
}
