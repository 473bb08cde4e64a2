//! Keeps a counter that was overtaken from acknowledging anything.
//!
//! After a failover two Redis masters may be alive, and servers on either side see a counter of the same conversation. A
//! seed on one side raises the epoch in the message store and declares void whatever it does not find there; a message that
//! a server on the other side stores after that look would be acknowledged and lost. So, between storing a message and
//! acknowledging it, a server looks whether the epoch of its counter is still the store's. A look holds for a second, and a
//! seed of a conversation that was in use waits longer than that between raising the epoch and reading: whatever was stored
//! before a look that still holds is found. See `docs/adr/0010-fencing.md`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::backends::BackendResult;
use crate::backends::error::{BackendError, Effect, ErrorKind};
use crate::backends::messages::{Messages, StoredMessage};
use crate::backends::sequence::Sequence;
use crate::protocol::{ConversationId, MessageId};
use crate::runtime::clock;

/// How long a look at the store's epoch holds.
const LOOK_HOLDS: Duration = Duration::from_secs(1);

/// Time between raising an epoch and reading what is stored: a look that began before it does not hold any more.
pub(super) const TAIL_WAIT: Duration = Duration::from_millis(1_500);

/// Nobody holds a look at a conversation whose newest message is older: a look comes with a message. The counters' clock dated
/// the message; it may differ from the one that they have now by the greater part of this.
const QUIET_AFTER: Duration = Duration::from_secs(30);

/// How long a server that was overtaken leaves a conversation to the other side.
const STAY_AWAY: Duration = Duration::from_secs(5);

/// Conversations that are kept of each kind before old ones are thrown away.
const LOOKS_MAX: usize = 10_000;

/// Whether a look counts for the messages of the next second, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Kept,
    Once,
}

/// What a server knows of the epochs of conversations that it writes to.
#[derive(Default)]
pub(super) struct Fence {
    /// Epoch, and when the look began, on [`clock::now_us`].
    looks: Mutex<HashMap<ConversationId, (u64, u64)>>,
    /// Epoch that was overtaken, and until when the conversation is left alone.
    overtaken: Mutex<HashMap<ConversationId, (u64, u64)>>,
}

impl Fence {
    /// Whether a counter of this epoch may acknowledge what it has stored by now.
    pub(super) async fn holds(
        &self,
        messages: &dyn Messages,
        conversation: ConversationId,
        epoch: u64,
        kind: Look,
    ) -> BackendResult<bool> {
        let now = clock::now_us();
        let holds_us = LOOK_HOLDS.as_micros() as u64;
        let look = self.looks.lock().expect("no panic while held").get(&conversation).copied();
        if look.is_some_and(|(known, began)| known == epoch && now.saturating_sub(began) < holds_us) {
            return Ok(true);
        }
        let found = messages.head(conversation).await?.epoch;
        if kind == Look::Once {
            return Ok(found == epoch);
        }
        let mut looks = self.looks.lock().expect("no panic while held");
        if looks.len() >= LOOKS_MAX {
            looks.retain(|_, (_, began)| now.saturating_sub(*began) < holds_us);
        }
        looks.insert(conversation, (found, now));
        Ok(found == epoch)
    }

    /// Notes that a counter was overtaken. An error while the conversation is left to the other side; after that the
    /// caller takes it over.
    pub(super) fn overtaken(&self, conversation: ConversationId, epoch: u64) -> BackendResult<()> {
        let now = clock::now_us();
        let mut overtaken = self.overtaken.lock().expect("no panic while held");
        match overtaken.get(&conversation) {
            Some((known, until)) if *known == epoch && now >= *until => {
                overtaken.remove(&conversation);
                return Ok(());
            }
            Some((known, _)) if *known == epoch => {}
            _ => {
                if overtaken.len() >= LOOKS_MAX {
                    overtaken.retain(|_, (_, until)| now < *until);
                }
                overtaken.insert(conversation, (epoch, now + STAY_AWAY.as_micros() as u64));
            }
        }
        Err(BackendError {
            operation: "sequence.reserve",
            kind: ErrorKind::Unavailable,
            effect: Effect::Unknown,
            retry_after: Some(Duration::from_secs(1)),
            source: Some("another server has taken this conversation over, on another counter".into()),
        })
    }
}

/// Whether somebody may hold a look at a conversation now. Of two clocks, this server's and the counters', one may be ahead: the
/// earlier one counts.
pub(super) async fn was_in_use(
    sequence: &dyn Sequence,
    messages: &dyn Messages,
    conversation: ConversationId,
) -> BackendResult<bool> {
    let newest: Vec<StoredMessage> = messages.read_back(conversation, MessageId(u64::MAX), 1).await?;
    let Some(newest) = newest.first() else { return Ok(false) };
    let now_ms = clock::unix_ms().min(sequence.now_ms().await?);
    Ok(newest.at > now_ms.saturating_sub(QUIET_AFTER.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::sequence::EmbeddedSequence;
    use crate::protocol::UserId;

    #[tokio::test]
    async fn a_conversation_counts_as_in_use_though_the_counters_clock_is_ahead() {
        let folder = tempfile::tempdir().expect("a folder");
        let engines = crate::backends::Engines::default();
        let config = crate::backends::Config { data: folder.path().to_owned(), partitions: 4, engines };
        let messages = crate::backends::open(&config).await.expect("opens").messages;
        let (right, ahead) = (EmbeddedSequence::default(), EmbeddedSequence::default());
        ahead.advance(Duration::from_mins(5));
        for (conversation, age_s, in_use) in [(1, 0, true), (2, 20, true), (3, 40, false)] {
            let row = StoredMessage {
                conversation: ConversationId(conversation),
                id: MessageId(1),
                uuid: uuid::Uuid::new_v4(),
                sender: UserId(1),
                kind: "text".to_owned(),
                body: "x".to_owned(),
                reply_to: None,
                at: clock::unix_ms() - age_s * 1_000,
            };
            messages.append(&row).await.expect("appends");
            for sequence in [&right, &ahead] {
                let found = was_in_use(sequence, &*messages, row.conversation).await.expect("reads");
                assert_eq!(found, in_use, "{age_s} s");
            }
        }
        // Of a server that is a minute ahead of the counters, which dated the message, the counters' clock counts.
        let behind = EmbeddedSequence::default();
        behind.set_back(Duration::from_mins(1));
        assert!(was_in_use(&behind, &*messages, ConversationId(3)).await.expect("reads"));
        // A clock that is behind makes a seed wait in vain, and no more.
        let future = ConversationId(4);
        let row = messages.read_back(ConversationId(1), MessageId(u64::MAX), 1).await.expect("reads").remove(0);
        let at = clock::unix_ms() + 60_000;
        messages.append(&StoredMessage { conversation: future, at, ..row }).await.expect("appends");
        assert!(was_in_use(&right, &*messages, future).await.expect("reads"));
        assert!(!was_in_use(&right, &*messages, ConversationId(5)).await.expect("reads"), "nothing was ever sent");
    }
}
