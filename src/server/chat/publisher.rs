//! Stored messages on their way to the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::backends::BackendResult;
use crate::backends::log::{KeyedLog, Record, Topic};
use crate::protocol::frames::HeadFrame;
use crate::protocol::{MessageFrame, SessionId, UserId};
use crate::server::Deps;
use crate::server::inbox::InboxHeader;
use crate::telemetry::{Counter, Metrics};

/// Publishes messages to the log. Clones are the same.
#[derive(Clone)]
pub(super) struct Publisher {
    log: Arc<dyn KeyedLog>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// To the log of a server.
    pub(super) fn new(deps: &Deps) -> Self {
        Self { log: Arc::clone(&deps.backends.log), metrics: Arc::clone(&deps.metrics) }
    }

    /// Large conversations: one record with the new head; clients fetch.
    pub(super) async fn publish_head(&self, message: &MessageFrame) -> BackendResult<()> {
        let head = HeadFrame { conversation: message.conversation, id: message.id };
        let payload = serde_json::to_vec(&head).expect("plain data").into();
        let key = message.conversation.0;
        self.metrics.count(Counter::LogPublished);
        self.log.publish(Topic::Channel, self.log.partition_of(key), Record { keys: vec![key], payload }).await
    }

    /// One record per inbox partition that holds members, naming them.
    pub(super) async fn publish_to_inboxes(
        &self,
        except: Option<SessionId>,
        message: &MessageFrame,
        users: &[UserId],
    ) -> BackendResult<()> {
        let payload = InboxHeader::payload(message, except);
        let mut partitions: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for user in users {
            partitions.entry(self.log.partition_of(user.0)).or_default().push(user.0);
        }
        self.metrics.add(Counter::LogPublished, partitions.len() as u64);
        let publishes = partitions.into_iter().map(|(partition, keys)| {
            self.log.publish(Topic::Inbox, partition, Record { keys, payload: Bytes::clone(&payload) })
        });
        try_join_all(publishes).await.map(|_| ())
    }
}
