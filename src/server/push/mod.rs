//! The push service: reads every inbox record and notifies recipients that have no live session.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::cluster::peer::{self, NothingOfItsOwn};
use super::inbox::InboxHeader;
use super::{Deps, StartError, cluster};
use crate::backends::BackendResult;
use crate::backends::log::{Delivered, GroupReader, Topic};
use crate::backends::push::Notification;
use crate::backends::registry::Role;
use crate::protocol::UserId;
use crate::runtime::clock;
use crate::telemetry::Counter;

/// The consumer group's name.
const GROUP: &str = "push";

/// Records are gathered for this long, so that a busy recipient is looked up once and not for every message.
const GATHER: Duration = Duration::from_millis(100);

/// Wait after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Starts the push service in the tasks of `deps`; `listener` is for other servers. It is announced when this returns.
pub async fn start(listener: TcpListener, deps: Deps) -> Result<(), StartError> {
    let address = deps.reached_at(&listener)?;
    let reader = deps.backends.log.group(Topic::Inbox, GROUP).await?;
    let tasks = deps.tasks.clone();
    peer::serve(listener, &deps, Arc::new(NothingOfItsOwn));
    tasks.spawn_until_stopped("push.loop", run(deps.clone(), reader));
    cluster::announce_as(Role::Push, &deps, address, address, || 0).await?;
    Ok(())
}

/// Hands over, then commits: a failure repeats a notification rather than losing it.
async fn run(deps: Deps, mut reader: Box<dyn GroupReader>) {
    loop {
        tokio::time::sleep(GATHER).await;
        let records = match reader.next().await {
            Ok(records) => records,
            Err(error) => {
                tracing::warn!(%error, "push can't read the inboxes");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        while let Err(error) = hand_over(&deps, &records).await {
            tracing::warn!(%error, "notifications were not handed over");
            tokio::time::sleep(RETRY).await;
        }
        if let Err(error) = reader.commit().await {
            tracing::warn!(%error, "push can't commit; notifications may repeat after a restart");
        }
    }
}

async fn hand_over(deps: &Deps, records: &[Delivered]) -> BackendResult<()> {
    let users: HashSet<UserId> = records.iter().flat_map(|r| r.record.keys.iter().map(|key| UserId(*key))).collect();
    let users: Vec<UserId> = users.into_iter().collect();
    let online: HashSet<UserId> = deps.backends.sessions.lookup(&users).await?.into_iter().map(|s| s.user).collect();
    let mut notifications = Vec::new();
    for record in records {
        let Some((header, _)) = InboxHeader::parse(&record.record.payload) else { continue };
        let recipients = record.record.keys.iter().map(|key| UserId(*key));
        for user in recipients.filter(|user| *user != header.sender && !online.contains(user)) {
            let at = clock::unix_ms();
            notifications.push(Notification { user, conversation: header.conversation, id: header.id, at });
        }
    }
    if notifications.is_empty() {
        return Ok(());
    }
    deps.backends.notifier.notify(&notifications).await?;
    deps.metrics.add(Counter::Notifications, notifications.len() as u64);
    Ok(())
}
