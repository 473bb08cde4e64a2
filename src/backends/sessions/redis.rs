//! Sessions in Redis: one hash for each user and life of the data, device → `session server expiry`.
//!
//! The order of a device's sessions is that of their ids as text, for those of version 7: it begins with the time.
//!
//! Each session has an expiry of its own, on the server's clock; the key's is only clean-up. What a promoted replica
//! has copied is of another life, and counts as forgotten: it may lack the last claims, so that the session that it
//! knows is not the device's any more. The refresh enters every session again.

use std::sync::LazyLock;

use async_trait::async_trait;
use redis::{Script, ScriptInvocation};
use uuid::Uuid;

use super::{Claim, SESSION_TTL, Session, Sessions};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::redis::{IN_LIFE, Redis};
use crate::protocol::{DeviceName, SessionId, UserId};

/// Users or sessions in one call of a script: the server does nothing else meanwhile.
const AT_ONCE: usize = 200;

/// The last argument of each script is the life of the data.
const COMMON: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(key, device)
  local text = redis.call('HGET', key, device)
  if not text then return nil end
  local session, server, expiry = string.match(text, '^(%S+) (%S+) (%S+)$')
  if tonumber(expiry) <= now then return nil end
  return {session = session, server = server}
end
local function write(key, device, session, server, ttl)
  redis.call('HSET', key, device, table.concat({session, server, string.format('%.0f', now + ttl)}, ' '))
  redis.call('PEXPIRE', key, ttl)
end
local function place(session)
  return string.sub(session, 15, 15) == '7' and session or ''
end
local function is_behind(session, other)
  return place(other) < place(session)
end
";

/// KEYS: user. ARGV: device, session, server, time to live. Answers the session and server before, or only a session
/// that the claim is not behind.
const CLAIM: &str = r"
local old = read(KEYS[1], ARGV[1])
if old and is_behind(old.session, ARGV[2]) then return {old.session} end
write(KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))
if old then return {old.session, old.server} end
return {}
";

/// KEYS: user of each session. ARGV: time to live, then device, session and server of each. Answers 0 where the device
/// has another session that this one is not behind.
const REFRESH: &str = r"
local kept = {}
for n, key in ipairs(KEYS) do
  local device, session, server = ARGV[3 * n - 1], ARGV[3 * n], ARGV[3 * n + 1]
  local old = read(key, device)
  if old and old.session ~= session and not is_behind(session, old.session) then
    kept[n] = 0
  else
    write(key, device, session, server, tonumber(ARGV[1]))
    kept[n] = 1
  end
end
return kept
";

/// KEYS: user. ARGV: device, session.
const RELEASE: &str = r"
local old = read(KEYS[1], ARGV[1])
if not old or old.session ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
";

/// KEYS: users. Answers device, session and server of each live session of each.
const LOOKUP: &str = r"
local found = {}
for n, key in ipairs(KEYS) do
  local out = {}
  for _, device in ipairs(redis.call('HKEYS', key)) do
    local session = read(key, device)
    if session then
      out[#out + 1] = device
      out[#out + 1] = session.session
      out[#out + 1] = session.server
    end
  end
  found[n] = out
end
return found
";

/// KEYS: mark. ARGV: time to live.
const ENTER_MARK: &str = "redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])";

/// KEYS: mark.
const HAS_MARK: &str = "return redis.call('EXISTS', KEYS[1])";

struct Scripts {
    claim: Script,
    refresh: Script,
    release: Script,
    lookup: Script,
    enter_mark: Script,
    has_mark: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let script = |body: &str| Script::new(&format!("{IN_LIFE}{COMMON}{body}"));
    Scripts {
        claim: script(CLAIM),
        refresh: script(REFRESH),
        release: script(RELEASE),
        lookup: script(LOOKUP),
        enter_mark: script(ENTER_MARK),
        has_mark: script(HAS_MARK),
    }
});

/// Sessions in a Redis.
#[derive(Clone)]
pub struct RedisSessions {
    redis: Redis,
}

impl RedisSessions {
    /// Over a server that was opened.
    #[must_use]
    pub const fn new(redis: Redis) -> Self {
        Self { redis }
    }

    fn key(&self, user: UserId, life: &str) -> String {
        self.redis.key(format_args!("sessions:{user}:{life}"))
    }

    fn mark_key(&self, mark: Uuid, life: &str) -> String {
        self.redis.key(format_args!("sessions-mark:{mark}:{life}"))
    }
}

fn ttl_ms() -> u64 {
    SESSION_TTL.as_millis() as u64
}

fn session(operation: &'static str, user: UserId, device: &str, words: [&str; 2]) -> BackendResult<Session> {
    let parsed = || {
        let device: DeviceName = device.parse().ok()?;
        Some(Session { user, device, session: SessionId(words[0].parse().ok()?), server: words[1].parse().ok()? })
    };
    let corrupt = || BackendError::not_applied(operation, ErrorKind::Corrupt, format!("session {device} {words:?}"));
    parsed().ok_or_else(corrupt)
}

#[async_trait]
impl Sessions for RedisSessions {
    async fn claim(&self, new: &Session) -> BackendResult<Claim> {
        const OPERATION: &str = "sessions.claim";
        let fill = |call: &mut ScriptInvocation<'_>, life: &str| {
            call.key(self.key(new.user, life)).arg(new.device.as_str()).arg(new.session.to_string());
            call.arg(new.server.as_str()).arg(ttl_ms());
        };
        let old: Vec<String> = self.redis.run_in_life(OPERATION, &SCRIPTS.claim, fill).await?;
        match &old[..] {
            [id, server] => {
                session(OPERATION, new.user, new.device.as_str(), [id, server]).map(|old| Claim::Made(Some(old)))
            }
            [id] => {
                let corrupt = |e: uuid::Error| BackendError::not_applied(OPERATION, ErrorKind::Corrupt, e);
                id.parse().map(|known| Claim::Late(SessionId(known))).map_err(corrupt)
            }
            _ => Ok(Claim::Made(None)),
        }
    }

    async fn refresh(&self, sessions: &[Session]) -> BackendResult<Vec<SessionId>> {
        let mut replaced = Vec::new();
        for sessions in sessions.chunks(AT_ONCE) {
            let fill = |call: &mut ScriptInvocation<'_>, life: &str| {
                call.arg(ttl_ms());
                for session in sessions {
                    call.key(self.key(session.user, life)).arg(session.device.as_str());
                    call.arg(session.session.to_string()).arg(session.server.as_str());
                }
            };
            let kept: Vec<u64> = self.redis.run_in_life("sessions.refresh", &SCRIPTS.refresh, fill).await?;
            let lost = sessions.iter().zip(kept).filter(|(_, kept)| *kept == 0);
            replaced.extend(lost.map(|(session, _)| session.session));
        }
        Ok(replaced)
    }

    async fn release(&self, session: &Session) -> BackendResult<bool> {
        let fill = |call: &mut ScriptInvocation<'_>, life: &str| {
            call.key(self.key(session.user, life)).arg(session.device.as_str()).arg(session.session.to_string());
        };
        self.redis.run_in_life("sessions.release", &SCRIPTS.release, fill).await
    }

    async fn lookup(&self, users: &[UserId]) -> BackendResult<Vec<Session>> {
        const OPERATION: &str = "sessions.lookup";
        let mut found = Vec::new();
        for users in users.chunks(AT_ONCE) {
            let fill = |call: &mut ScriptInvocation<'_>, life: &str| {
                for user in users {
                    call.key(self.key(*user, life));
                }
            };
            let answers: Vec<Vec<String>> = self.redis.run_in_life(OPERATION, &SCRIPTS.lookup, fill).await?;
            for (user, answer) in users.iter().zip(&answers) {
                for words in answer.chunks_exact(3) {
                    found.push(session(OPERATION, *user, &words[0], [&words[1], &words[2]])?);
                }
            }
        }
        Ok(found)
    }

    async fn now_ms(&self) -> BackendResult<u64> {
        self.redis.now_ms("sessions.now_ms").await
    }

    async fn enter_mark(&self, mark: Uuid) -> BackendResult<()> {
        let fill = |call: &mut ScriptInvocation<'_>, life: &str| {
            call.key(self.mark_key(mark, life)).arg(ttl_ms());
        };
        self.redis.run_in_life("sessions.enter_mark", &SCRIPTS.enter_mark, fill).await
    }

    async fn has_mark(&self, mark: Uuid) -> BackendResult<bool> {
        let fill = |call: &mut ScriptInvocation<'_>, life: &str| {
            call.key(self.mark_key(mark, life));
        };
        self.redis.run_in_life("sessions.has_mark", &SCRIPTS.has_mark, fill).await
    }

    async fn probe(&self) -> BackendResult<()> {
        self.redis.probe("sessions.probe").await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::backends::contract::{Place, RedisPlace};
    use crate::backends::deployment::DeploymentId;
    use crate::backends::sessions::contract::promises::session as new_session;
    use crate::backends::sessions::contract::sessions_contract;

    async fn place() -> RedisPlace<dyn Sessions> {
        RedisPlace::<dyn Sessions>::new(|redis| Arc::new(RedisSessions::new(redis))).await
    }

    sessions_contract!(place().await, ignore = "needs redis-server");

    /// A fail-over to a copy that had not heard of the last claim.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs redis-server"]
    async fn a_copy_that_missed_a_claim_does_not_end_the_session_that_was_claimed() {
        let (here, there) = (place().await, place().await);
        let port = here.open().await;
        there.follow(&here).await;
        let (old, new) = (new_session(1, "phone", "chat-1"), new_session(1, "phone", "chat-2"));
        port.claim(&old).await.expect("claims");
        let mark = Uuid::new_v4();
        port.enter_mark(mark).await.expect("enters");
        tokio::time::sleep(Duration::from_millis(300)).await;
        there.lead().await;
        assert_eq!(port.claim(&new).await.expect("claims"), Claim::Made(Some(old.clone())));
        // From now on it has what the copy has, under the connections that it had.
        here.follow(&there).await;
        here.lead().await;
        assert_eq!(port.lookup(&[new.user]).await.expect("answers"), [], "it forgot");
        assert!(!port.has_mark(mark).await.expect("answers"), "and the mark tells");
        assert_eq!(port.refresh(std::slice::from_ref(&new)).await.expect("answers"), []);
        assert_eq!(port.lookup(&[new.user]).await.expect("answers"), std::slice::from_ref(&new));
        assert_eq!(port.refresh(std::slice::from_ref(&old)).await.expect("answers"), [old.session]);
        assert!(!port.release(&old).await.expect("answers"));
    }

    #[tokio::test]
    #[ignore = "needs redis-server"]
    async fn a_flush_takes_marks_with_the_sessions() {
        let place = place().await;
        let port = place.open().await;
        let mark = Uuid::new_v4();
        port.enter_mark(mark).await.expect("enters");
        assert!(port.has_mark(mark).await.expect("answers"));
        place.redis_of(DeploymentId(7)).await.flush().await.expect("flushes");
        assert!(!port.has_mark(mark).await.expect("answers"));
    }
}
