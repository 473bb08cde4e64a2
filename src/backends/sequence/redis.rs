//! Counters in Redis, one hash for each conversation and life of the server.
//!
//! Everything that belongs to a conversation is in one key, so that it is there as a whole or not at all: a flush, an eviction
//! or an expiry leaves an unseeded conversation, never half of one. The key carries the deployment, and the life of the server's
//! data (its replication id): what a restarted, restored or promoted server finds on its disk is not taken for the truth. Every
//! script asks for the life first, since a server can be demoted and promoted under an open connection.
//!
//! | field | holds |
//! |---|---|
//! | `e`, `l`, `b` | epoch, last id given out, end of the block |
//! | `c` | epoch of the highest claim to seed |
//! | `h` | the greatest committed id and its time |
//! | `p` | ids that are pending or marked, each followed by a comma, rising |
//! | `i:ID` | `at digest state sender uuid` of such an id; state is `p`ending or `v`oiding |
//! | `u:SENDER:UUID` | such an id |
//! | `m:N` | a bucket of the uuids of committed messages: fingerprint and id of each |
//! | `n`, `k` | buckets, and entries in all of them |
//! | `t` | `at:id,` some sixteen times a retry window: up to which id were given out by when |
//! | `f`, `w` | the greatest id whose uuid is forgotten, and the bucket where dropping them goes on |

use std::time::Duration;

use async_trait::async_trait;
use redis::{Script, ScriptInvocation, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::redis_scripts::SCRIPTS;
use super::{PENDING_IDS_MAX, Progress, Remembered, Request, Reservation, Seed, Sequence, Slot};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::messages::ConversationHead;
use crate::backends::redis::Redis;
use crate::protocol::limits::RETRY_WINDOW;
use crate::protocol::{ConversationId, MessageId, UserId};

/// A counter that nobody used for this long is dropped; the next use seeds it. Longer than uuids are remembered, so that
/// nothing is forgotten early.
const IDLE_LIFE: Duration = Duration::from_hours(25);

/// Conversations that one call asks for their newest message.
const NEWEST_KEYS: usize = 200;

/// Messages that one call remembers: the server does nothing else meanwhile.
const REMEMBER_ROWS: usize = 500;

/// Counters in a Redis.
#[derive(Clone)]
pub struct RedisSequence {
    redis: Redis,
}

impl RedisSequence {
    /// Over a server that was opened.
    #[must_use]
    pub const fn new(redis: Redis) -> Self {
        Self { redis }
    }

    /// Runs a script on a conversation.
    async fn run<T: redis::FromRedisValue>(
        &self,
        operation: &'static str,
        script: &Script,
        conversation: ConversationId,
        arguments: impl Fn(&mut ScriptInvocation<'_>, &str) + Sync,
    ) -> BackendResult<T> {
        let fill = |call: &mut ScriptInvocation<'_>, life: &str| {
            call.key(self.key(conversation, life));
            arguments(call, life);
        };
        self.redis.run_in_life(operation, script, fill).await
    }

    /// Key of a conversation's counter.
    fn key(&self, conversation: ConversationId, life: &str) -> String {
        self.redis.key(format_args!("ids:{conversation}:{life}"))
    }

    /// Key of the turn to seed.
    fn turn(&self, conversation: ConversationId, life: &str) -> String {
        self.redis.key(format_args!("ids:{conversation}:{life}:turn"))
    }
}

fn corrupt(operation: &'static str, answer: &[String]) -> BackendError {
    BackendError::not_applied(operation, ErrorKind::Corrupt, format!("unexpected answer {answer:?}"))
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn slot(id: &str, at_ms: &str) -> Option<Slot> {
    Some(Slot { id: MessageId(number(id)?), at_ms: number(at_ms)? })
}

/// What is kept of a sender's uuid: 6 bytes. The life is in them, which no client knows: uuids that were chosen to share a bucket
/// would have Redis copy all of it for each message.
fn fingerprint(life: &str, sender: UserId, uuid: Uuid) -> Vec<u8> {
    let hash = Sha256::new().chain_update(life).chain_update(sender.0.to_be_bytes()).chain_update(uuid).finalize();
    hash[..6].to_vec()
}

fn life_ms() -> u64 {
    IDLE_LIFE.as_millis() as u64
}

#[async_trait]
impl Sequence for RedisSequence {
    fn can_split(&self) -> bool {
        true
    }

    async fn take_turn(&self, conversation: ConversationId, owner: u64, life: Duration) -> BackendResult<bool> {
        const OPERATION: &str = "sequence.take_turn";
        let mut connection = self.redis.connection(OPERATION).await?;
        let mut set = redis::cmd("SET");
        set.arg(self.turn(conversation, &connection.life)).arg(owner).arg("NX").arg("PX").arg(life.as_millis() as u64);
        match set.query_async::<Option<String>>(&mut connection.commands).await {
            Ok(answer) => Ok(answer.is_some()),
            Err(error) => Err(self.redis.failed(OPERATION, error, &connection)),
        }
    }

    async fn keep_turn(&self, conversation: ConversationId, owner: u64, life: Duration) -> BackendResult<()> {
        const OPERATION: &str = "sequence.keep_turn";
        let mut connection = self.redis.connection(OPERATION).await?;
        let mut call = SCRIPTS.keep_turn.key(self.turn(conversation, &connection.life));
        call.arg(owner).arg(life.as_millis() as u64);
        match call.invoke_async::<Value>(&mut connection.commands).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.redis.failed(OPERATION, error, &connection)),
        }
    }

    async fn end_turn(&self, conversation: ConversationId, owner: u64) -> BackendResult<()> {
        const OPERATION: &str = "sequence.end_turn";
        let mut connection = self.redis.connection(OPERATION).await?;
        let mut call = SCRIPTS.end_turn.key(self.turn(conversation, &connection.life));
        call.arg(owner);
        match call.invoke_async::<Value>(&mut connection.commands).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.redis.failed(OPERATION, error, &connection)),
        }
    }

    async fn reserve(&self, request: &Request) -> BackendResult<Reservation> {
        const OPERATION: &str = "sequence.reserve";
        let Request { conversation, sender, uuid, digest, not_upto } = *request;
        let answer: Vec<String> = self
            .run(OPERATION, &SCRIPTS.reserve, conversation, |call, life| {
                call.arg(sender.0).arg(uuid.simple().to_string()).arg(digest);
                call.arg(fingerprint(life, sender, uuid)).arg(not_upto.0);
                call.arg(RETRY_WINDOW.as_millis() as u64).arg(PENDING_IDS_MAX).arg(life_ms());
            })
            .await?;
        let words: Vec<&str> = answer.iter().map(String::as_str).collect();
        let reservation = match words[..] {
            ["unseeded"] => Some(Reservation::Unseeded),
            ["conflict"] => Some(Reservation::Conflict),
            ["overloaded"] => Some(Reservation::Overloaded),
            ["fresh", id, at, epoch] => slot(id, at).zip(number(epoch)).map(|(s, e)| Reservation::Fresh(s, e)),
            ["pending", id, at, epoch] => slot(id, at).zip(number(epoch)).map(|(s, e)| Reservation::Pending(s, e)),
            ["committed", id] => number(id).map(|id| Reservation::Committed(MessageId(id))),
            ["used_up", epoch, end] => {
                number(epoch).zip(number(end)).map(|(epoch, block_end)| Reservation::BlockUsedUp { epoch, block_end })
            }
            _ => None,
        };
        reservation.ok_or_else(|| corrupt(OPERATION, &answer))
    }

    async fn commit(
        &self,
        conversation: ConversationId,
        sender: UserId,
        uuid: Uuid,
        id: MessageId,
    ) -> BackendResult<bool> {
        self.run("sequence.commit", &SCRIPTS.commit, conversation, |call, life| {
            call.arg(sender.0).arg(uuid.simple().to_string());
            call.arg(fingerprint(life, sender, uuid)).arg(id.0);
        })
        .await
    }

    async fn progress(&self, conversation: ConversationId) -> BackendResult<Option<Progress>> {
        const OPERATION: &str = "sequence.progress";
        let answer: Vec<String> = self.run(OPERATION, &SCRIPTS.progress, conversation, |_, _| {}).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        let read = || {
            let (head, epoch, now_ms) = (number(&answer[0])?, number(answer.get(1)?)?, number(answer.get(2)?)?);
            let pending = answer[3..].chunks(2).map(|pair| slot(&pair[0], pair.get(1)?));
            Some((head, epoch, now_ms, pending.collect::<Option<Vec<Slot>>>()?))
        };
        let (head, epoch, now_ms, pending) = read().ok_or_else(|| corrupt(OPERATION, &answer))?;
        let stable = pending.first().map_or(head, |slot| slot.id.0 - 1);
        Ok(Some(Progress { epoch, stable: MessageId(stable), head: MessageId(head), pending, now_ms }))
    }

    async fn newest(&self, conversations: &[ConversationId]) -> BackendResult<Vec<Option<Slot>>> {
        const OPERATION: &str = "sequence.newest";
        let mut slots = Vec::with_capacity(conversations.len());
        for chunk in conversations.chunks(NEWEST_KEYS) {
            let answer: Vec<String> = self
                .redis
                .run_in_life(OPERATION, &SCRIPTS.newest, |call, life| {
                    for conversation in chunk {
                        call.key(self.key(*conversation, life));
                    }
                })
                .await?;
            slots.extend(answer.iter().map(|text| text.split_once(' ').and_then(|(id, at)| slot(id, at))));
        }
        Ok(slots)
    }

    async fn now_ms(&self) -> BackendResult<u64> {
        self.redis.now_ms("sequence.now_ms").await
    }

    async fn begin_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<bool> {
        let id_argument = |call: &mut ScriptInvocation<'_>, _: &str| _ = call.arg(id.0);
        self.run("sequence.begin_void", &SCRIPTS.begin_void, conversation, id_argument).await
    }

    async fn end_void(&self, conversation: ConversationId, id: MessageId) -> BackendResult<()> {
        let id_argument = |call: &mut ScriptInvocation<'_>, _: &str| _ = call.arg(id.0);
        let _: Value = self.run("sequence.end_void", &SCRIPTS.end_void, conversation, id_argument).await?;
        Ok(())
    }

    async fn begin_seed(&self, conversation: ConversationId, epoch: u64) -> BackendResult<bool> {
        self.run("sequence.begin_seed", &SCRIPTS.begin_seed, conversation, |call, _| {
            call.arg(epoch).arg(life_ms());
        })
        .await
    }

    async fn remember(&self, conversation: ConversationId, epoch: u64, messages: &[Remembered]) -> BackendResult<bool> {
        for rows in messages.chunks(REMEMBER_ROWS) {
            let stands: bool = self
                .run("sequence.remember", &SCRIPTS.remember, conversation, |call, life| {
                    call.arg(epoch);
                    for row in rows {
                        call.arg(row.id.0).arg(fingerprint(life, row.sender, row.uuid));
                    }
                })
                .await?;
            if !stands {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn seed(&self, conversation: ConversationId, seed: &Seed) -> BackendResult<bool> {
        self.run("sequence.seed", &SCRIPTS.seed, conversation, |call, _| {
            call.arg(seed.epoch).arg(seed.settled.0).arg(seed.block_end);
        })
        .await
    }

    async fn extend(&self, conversation: ConversationId, epoch: u64, to: ConversationHead) -> BackendResult<()> {
        let _: Value = self
            .run("sequence.extend", &SCRIPTS.extend, conversation, |call, _| {
                call.arg(epoch).arg(to.block_end).arg(to.epoch);
            })
            .await?;
        Ok(())
    }

    async fn forget(&self, conversation: ConversationId, epoch: u64) -> BackendResult<()> {
        let _: Value = self
            .run("sequence.forget", &SCRIPTS.forget, conversation, |call, _| {
                call.arg(epoch).arg(life_ms());
            })
            .await?;
        Ok(())
    }

    async fn probe(&self) -> BackendResult<()> {
        self.redis.probe("sequence.probe").await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backends::contract::{Place, RedisPlace};
    use crate::backends::deployment::DeploymentId;
    use crate::backends::sequence::contract::sequence_contract;
    use crate::backends::sequence::contract::talk::{TALK, request, seeded};

    #[test]
    fn no_uuid_can_be_chosen_for_its_fingerprint() {
        let of = |life| fingerprint(life, UserId(1), Uuid::from_u128(7));
        assert!(of("one life") != of("another") && of("one life").len() == 6);
    }

    async fn place() -> RedisPlace<dyn Sequence> {
        RedisPlace::<dyn Sequence>::new(|redis| Arc::new(RedisSequence::new(redis))).await
    }

    sequence_contract!(place().await, ignore = "needs redis-server");

    #[tokio::test]
    #[ignore = "needs redis-server"]
    async fn another_deployment_on_the_same_server_is_not_seen() {
        let place = place().await;
        let own = RedisSequence::new(place.redis_of(DeploymentId(7)).await);
        seeded(&own).await;
        own.reserve(&request()).await.expect("reserves");
        let other = RedisSequence::new(place.redis_of(DeploymentId(8)).await);
        assert_eq!(other.progress(TALK).await.expect("reads"), None);
        assert_eq!(other.reserve(&request()).await.expect("answers"), Reservation::Unseeded);
    }

    /// Sends and commits messages, whose ids rise from 1.
    async fn committed(port: &RedisSequence, count: u64) -> Vec<Request> {
        let mut sent = Vec::new();
        for id in 1..=count {
            let request = request();
            let reserved = port.reserve(&request).await.expect("reserves");
            assert!(matches!(reserved, Reservation::Fresh(slot, 1) if slot.id.0 == id), "{reserved:?}");
            assert!(port.commit(TALK, request.sender, request.uuid, MessageId(id)).await.expect("commits"));
            sent.push(request);
        }
        sent
    }

    /// Runs a command on the key of the conversation.
    async fn ask<T: redis::FromRedisValue>(port: &RedisSequence, command: &[&str], behind: &[&str]) -> T {
        let mut connection = port.redis.connection("test").await.expect("connects");
        let mut call = redis::cmd(command[0]);
        call.arg(&command[1..]).arg(port.key(TALK, &connection.life)).arg(behind);
        call.query_async(&mut connection.commands).await.expect("answers")
    }

    #[tokio::test]
    #[ignore = "needs redis-server"]
    async fn uuids_that_are_older_than_the_window_are_forgotten_and_their_room_is_given_back() {
        let place = place().await;
        let port = RedisSequence::new(place.redis_of(DeploymentId(7)).await);
        seeded(&port).await;
        port.extend(TALK, 1, ConversationHead { epoch: 1, block_end: 10_000 }).await.expect("raises");
        let sent = committed(&port, 1_000).await;
        // As if the first 600 had been sent a day and an hour ago.
        let at = crate::runtime::clock::unix_ms() - RETRY_WINDOW.as_millis() as u64 - 3_600_000;
        let _: Value = ask(&port, &["HSET"], &["t", &format!("{at}:600,")]).await;
        let reserved = port.reserve(&sent[600]).await.expect("answers");
        assert_eq!(reserved, Reservation::Committed(MessageId(601)), "it was sent after that");
        let reserved = port.reserve(&sent[599]).await.expect("answers");
        assert!(matches!(reserved, Reservation::Fresh(slot, 1) if slot.id.0 == 1_001), "{reserved:?}");
        for request in &sent[600..] {
            assert!(matches!(port.reserve(request).await.expect("answers"), Reservation::Committed(_)));
        }
        let entries: u64 = ask(&port, &["HGET"], &["k"]).await;
        assert_eq!(entries, 400);
        let sweep: Option<u64> = ask(&port, &["HGET"], &["w"]).await;
        assert_eq!(sweep, None, "every bucket was swept");
    }

    #[tokio::test]
    #[ignore = "needs redis-server"]
    async fn a_committed_message_takes_some_twenty_bytes() {
        const MESSAGES: u64 = 20_000;
        let place = place().await;
        let port = RedisSequence::new(place.redis_of(DeploymentId(7)).await);
        seeded(&port).await;
        port.extend(TALK, 1, ConversationHead { epoch: 1, block_end: MESSAGES }).await.expect("raises");
        committed(&port, MESSAGES).await;
        let bytes: u64 = ask(&port, &["MEMORY", "USAGE"], &["SAMPLES", "0"]).await;
        assert!(bytes < 20 * MESSAGES, "{} bytes a message", bytes as f64 / MESSAGES as f64);
    }

    /// A fail-over to a copy that was behind, and a fail-back in good order: the server is the same process with the same
    /// connections, and its data are older than they were.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs redis-server"]
    async fn data_that_went_back_under_an_open_connection_are_not_taken_for_the_truth() {
        let (here, there) = (place().await, place().await);
        let port = here.open().await;
        // A master's first replica changes its life, too.
        there.follow(&here).await;
        seeded(&*port).await;
        let first = request();
        let fresh = async |request: &Request| match port.reserve(request).await.expect("reserves") {
            Reservation::Fresh(slot, _) => slot,
            other => panic!("not fresh: {other:?}"),
        };
        let slot = fresh(&first).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        there.lead().await;
        for id in 2..=3 {
            assert_eq!(fresh(&request()).await.id, MessageId(id));
        }
        here.follow(&there).await;
        assert!(port.progress(TALK).await.is_err(), "a replica tells of another life");
        here.lead().await;
        // That it was a replica is the answer for a moment.
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(port.progress(TALK).await.expect("reads"), None);
        assert_eq!(port.reserve(&first).await.expect("answers"), Reservation::Unseeded);
        assert_eq!(port.newest(&[TALK]).await.expect("reads"), [None]);
        assert!(!port.commit(TALK, first.sender, first.uuid, slot.id).await.expect("answers"));
    }
}
