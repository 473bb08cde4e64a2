//! The message store in the data folder.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use async_trait::async_trait;

use super::{ConversationHead, Messages, Newest, StoredMessage};
use crate::backends::store::{Change, Durability, EmbeddedStore, Keyspace};
use crate::backends::{BackendError, BackendResult, error::ErrorKind};
use crate::protocol::{ConversationId, MessageId};

/// Messages in a data folder. Clones are the same store.
#[derive(Clone)]
pub struct EmbeddedMessages {
    inner: Arc<Inner>,
}

struct Inner {
    store: EmbeddedStore,
    /// (conversation, id) → message as JSON.
    rows: Keyspace,
    /// (conversation, last id of the range) → id before the range.
    void_ranges: Keyspace,
    /// conversation → epoch, end of block.
    heads: Keyspace,
    /// name → value.
    marks: Keyspace,
    /// The void ranges, for `append` to look at. Appends enqueue under the read lock, so that none slips past a void.
    voids: RwLock<HashMap<ConversationId, Vec<VoidRange>>>,
    /// Serializes what compares and sets: heads and marks.
    head_lock: tokio::sync::Mutex<()>,
}

/// Ids with `after < id <= upto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct VoidRange {
    after: u64,
    upto: u64,
}

impl EmbeddedMessages {
    /// Opens the messages of a data folder.
    pub fn open(store: &EmbeddedStore) -> BackendResult<Self> {
        let void_ranges = store.keyspace("message-voids")?;
        let mut voids: HashMap<ConversationId, Vec<VoidRange>> = HashMap::new();
        for guard in void_ranges.get_ref().map_err(|e| failed("messages.open", e))?.iter() {
            let (key, value) = guard.into_inner().map_err(|e| failed("messages.open", e))?;
            let (Some((conversation, upto)), Some(after)) = (parse_key(&key), parse_u64(&value)) else {
                return Err(corrupt("messages.open", "a void range has a wrong shape"));
            };
            voids.entry(conversation).or_default().push(VoidRange { after, upto });
        }
        Ok(Self {
            inner: Arc::new(Inner {
                store: store.clone(),
                rows: store.keyspace("messages")?,
                void_ranges,
                heads: store.keyspace("conversation-heads")?,
                marks: store.keyspace("store-marks")?,
                voids: RwLock::new(voids),
                head_lock: tokio::sync::Mutex::default(),
            }),
        })
    }
}

fn key(conversation: ConversationId, id: u64) -> Vec<u8> {
    [conversation.0.to_be_bytes(), id.to_be_bytes()].concat()
}

fn parse_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

fn parse_key(bytes: &[u8]) -> Option<(ConversationId, u64)> {
    let (conversation, id) = bytes.split_at_checked(8)?;
    Some((ConversationId(parse_u64(conversation)?), parse_u64(id)?))
}

fn failed(operation: &'static str, error: fjall::Error) -> BackendError {
    BackendError::not_applied(operation, ErrorKind::Unavailable, error)
}

fn corrupt(operation: &'static str, what: impl ToString) -> BackendError {
    BackendError::not_applied(operation, ErrorKind::Corrupt, what.to_string())
}

fn parse_row(value: &[u8]) -> BackendResult<StoredMessage> {
    serde_json::from_slice(value).map_err(|e| corrupt("messages.read", e))
}

impl Inner {
    fn change(keyspace: &Keyspace, key: Vec<u8>, value: Option<Vec<u8>>) -> Change {
        Change { keyspace: keyspace.clone(), key, value }
    }

    fn read_head(&self, conversation: ConversationId) -> BackendResult<ConversationHead> {
        let value = self.heads.get(conversation.0.to_be_bytes()).map_err(|e| failed("messages.head", e))?;
        let Some(value) = value else { return Ok(ConversationHead::default()) };
        match value.split_at_checked(8).map(|(a, b)| (parse_u64(a), parse_u64(b))) {
            Some((Some(epoch), Some(block_end))) => Ok(ConversationHead { epoch, block_end }),
            _ => Err(corrupt("messages.head", "a head has a wrong shape")),
        }
    }
}

#[async_trait]
impl Messages for EmbeddedMessages {
    async fn append(&self, message: &StoredMessage) -> BackendResult<()> {
        const APPEND: &str = "messages.append";
        let value = serde_json::to_vec(message).map_err(|e| corrupt(APPEND, e))?;
        let pending = {
            let voids = self.inner.voids.read().expect("no panic while held");
            let id = message.id.0;
            let ranges = voids.get(&message.conversation).map_or(&[][..], Vec::as_slice);
            if ranges.iter().any(|range| range.after < id && id <= range.upto) {
                return Ok(());
            }
            let change = Inner::change(&self.inner.rows, key(message.conversation, id), Some(value));
            self.inner.store.enqueue(APPEND, vec![change], Durability::Power)?
        };
        pending.wait().await
    }

    async fn read(
        &self,
        conversation: ConversationId,
        after: MessageId,
        upto: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>> {
        if upto <= after {
            return Ok(Vec::new());
        }
        let rows = self.inner.rows.clone();
        let range = key(conversation, after.0 + 1)..=key(conversation, upto.0);
        let values = EmbeddedStore::read("messages.read", move || {
            rows.get_ref()?.range(range).take(limit).map(fjall::Guard::value).collect::<fjall::Result<Vec<_>>>()
        })
        .await?;
        values.iter().map(|value| parse_row(value)).collect()
    }

    async fn read_back(
        &self,
        conversation: ConversationId,
        before: MessageId,
        limit: usize,
    ) -> BackendResult<Vec<StoredMessage>> {
        let rows = self.inner.rows.clone();
        let range = key(conversation, 0)..key(conversation, before.0);
        let values = EmbeddedStore::read("messages.read_back", move || {
            rows.get_ref()?.range(range).rev().take(limit).map(fjall::Guard::value).collect::<fjall::Result<Vec<_>>>()
        })
        .await?;
        values.iter().map(|value| parse_row(value)).collect()
    }

    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Newest>>> {
        let (rows, conversations) = (self.inner.rows.clone(), conversations.to_vec());
        EmbeddedStore::read("messages.newest", move || {
            let rows = rows.get_ref()?;
            let newest = |c: &ConversationId| {
                let last = rows.range(key(*c, 0)..key(*c, u64::MAX)).next_back();
                let value = last.map(fjall::Guard::value).transpose()?;
                Ok(value.map(|value| parse_row(&value).map(Newest::from)))
            };
            conversations.iter().map(newest).collect::<fjall::Result<Vec<_>>>()
        })
        .await?
        .into_iter()
        .map(Option::transpose)
        .collect()
    }

    async fn void(&self, conversation: ConversationId, after: MessageId, upto: MessageId) -> BackendResult<()> {
        const VOID: &str = "messages.void";
        if upto <= after {
            return Ok(());
        }
        let range = VoidRange { after: after.0, upto: upto.0 };
        let reached = {
            let mut voids = self.inner.voids.write().expect("no panic while held");
            let ranges = voids.entry(conversation).or_default();
            if !ranges.contains(&range) {
                ranges.push(range);
            }
            let change =
                Inner::change(&self.inner.void_ranges, key(conversation, upto.0), Some(after.0.to_be_bytes().to_vec()));
            self.inner.store.enqueue(VOID, vec![change], Durability::Power)?
        };
        // Appends that were enqueued before are applied now; later ones see the range.
        reached.wait().await?;
        let rows = self.inner.rows.clone();
        let stored = EmbeddedStore::read(VOID, move || {
            rows.get_ref()?
                .range(key(conversation, after.0 + 1)..=key(conversation, upto.0))
                .map(|guard| guard.key().map(|k| k.to_vec()))
                .collect::<fjall::Result<Vec<_>>>()
        })
        .await?;
        if stored.is_empty() {
            return Ok(());
        }
        let changes = stored.into_iter().map(|key| Inner::change(&self.inner.rows, key, None)).collect();
        self.inner.store.write(VOID, changes, Durability::Power).await
    }

    async fn head(&self, conversation: ConversationId) -> BackendResult<ConversationHead> {
        self.inner.read_head(conversation)
    }

    async fn mark(&self, name: &str, value: &str) -> BackendResult<String> {
        const MARK: &str = "messages.mark";
        let _serial = self.inner.head_lock.lock().await;
        if let Some(found) = self.inner.marks.get(name.as_bytes()).map_err(|e| failed(MARK, e))? {
            return String::from_utf8(found.to_vec()).map_err(|e| corrupt(MARK, e));
        }
        let change = Inner::change(&self.inner.marks, name.as_bytes().to_vec(), Some(value.as_bytes().to_vec()));
        self.inner.store.write(MARK, vec![change], Durability::Power).await?;
        Ok(value.to_owned())
    }

    async fn probe(&self) -> BackendResult<()> {
        let change = Inner::change(&self.inner.marks, b"probe".to_vec(), Some(Vec::new()));
        self.inner.store.write("messages.probe", vec![change], Durability::Power).await
    }

    async fn raise_head(
        &self,
        conversation: ConversationId,
        from: ConversationHead,
        to: ConversationHead,
    ) -> BackendResult<bool> {
        let _serial = self.inner.head_lock.lock().await;
        if self.inner.read_head(conversation)? != from {
            return Ok(false);
        }
        let value = [to.epoch.to_be_bytes(), to.block_end.to_be_bytes()].concat();
        let change = Inner::change(&self.inner.heads, conversation.0.to_be_bytes().to_vec(), Some(value));
        self.inner.store.write("messages.raise_head", vec![change], Durability::Power).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::EmbeddedPlace;
    use crate::backends::messages::contract::messages_contract;

    fn place() -> EmbeddedPlace<dyn Messages> {
        EmbeddedPlace::<dyn Messages>::new(|store| Arc::new(EmbeddedMessages::open(store).expect("opens")))
    }

    messages_contract!(place());
}
