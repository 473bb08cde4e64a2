//! Stored messages on their way to the log.

use std::sync::Arc;

use crate::backends::BackendResult;
use crate::backends::log::{KeyedLog, Record, Topic};
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

    /// Large conversations: one record, whatever the number of members.
    pub(super) async fn publish_to_channel(
        &self,
        except: Option<SessionId>,
        message: &MessageFrame,
    ) -> BackendResult<()> {
        let payload = InboxHeader::payload(message, except);
        self.publish(Topic::Channel, Record { keys: vec![message.conversation.0], payload }).await
    }

    /// A record that names the members, to their inboxes.
    pub(super) async fn publish_to_inboxes(
        &self,
        except: Option<SessionId>,
        message: &MessageFrame,
        users: &[UserId],
    ) -> BackendResult<()> {
        let payload = InboxHeader::payload(message, except);
        let keys = users.iter().map(|user| user.0).collect();
        self.publish(Topic::Inbox, Record { keys, payload }).await
    }

    async fn publish(&self, topic: Topic, record: Record) -> BackendResult<()> {
        let records = self.log.publish(topic, record).await?;
        self.metrics.add(Counter::LogPublished, records);
        Ok(())
    }
}
