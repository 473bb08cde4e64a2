//! Sessions in Redis: one hash for each user, device → `session server expiry`.
//!
//! Each session has an expiry of its own, on the server's clock; the key's is only clean-up.

use std::sync::LazyLock;

use async_trait::async_trait;
use redis::{FromRedisValue, Pipeline, Script, ScriptInvocation};

use super::{SESSION_TTL, Session, Sessions};
use crate::backends::error::{BackendError, BackendResult, ErrorKind};
use crate::backends::redis::Redis;
use crate::protocol::{DeviceName, SessionId, UserId};

const COMMON: &str = r"
local key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(device)
  local text = redis.call('HGET', key, device)
  if not text then return nil end
  local session, server, expiry = string.match(text, '^(%S+) (%S+) (%S+)$')
  if tonumber(expiry) <= now then return nil end
  return {session = session, server = server}
end
local function write(device, session, server, life)
  redis.call('HSET', key, device, table.concat({session, server, string.format('%.0f', now + life)}, ' '))
  redis.call('PEXPIRE', key, life)
end
";

/// KEYS: user. ARGV: device, session, server, life. Answers the session and server before.
const CLAIM: &str = r"
local old = read(ARGV[1])
write(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))
if old then return {old.session, old.server} end
return {}
";

/// KEYS: user. ARGV: device, session, server, life. Answers 0 where the device has another session.
const REFRESH: &str = r"
local old = read(ARGV[1])
if old and old.session ~= ARGV[2] then return 0 end
write(ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))
return 1
";

/// KEYS: user. ARGV: device, session.
const RELEASE: &str = r"
local old = read(ARGV[1])
if not old or old.session ~= ARGV[2] then return 0 end
redis.call('HDEL', key, ARGV[1])
return 1
";

/// KEYS: user. Answers device, session and server of each live session.
const LOOKUP: &str = r"
local out = {}
for _, device in ipairs(redis.call('HKEYS', key)) do
  local session = read(device)
  if session then
    out[#out + 1] = device
    out[#out + 1] = session.session
    out[#out + 1] = session.server
  end
end
return out
";

struct Scripts {
    claim: Script,
    refresh: Script,
    release: Script,
    lookup: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let script = |body: &str| Script::new(&format!("{COMMON}{body}"));
    Scripts { claim: script(CLAIM), refresh: script(REFRESH), release: script(RELEASE), lookup: script(LOOKUP) }
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

    fn key(&self, user: UserId) -> String {
        self.redis.key(format_args!("sessions:{user}"))
    }

    async fn run<T: FromRedisValue>(&self, operation: &'static str, call: &ScriptInvocation<'_>) -> BackendResult<T> {
        let mut connection = self.redis.connection(operation).await?;
        match call.invoke_async(&mut connection.commands).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.redis.failed(operation, error, &connection)),
        }
    }

    /// Runs many calls of a script in one round trip.
    async fn run_all<T: FromRedisValue>(
        &self,
        operation: &'static str,
        script: &Script,
        calls: impl Iterator<Item = ScriptInvocation<'_>>,
    ) -> BackendResult<Vec<T>> {
        let mut pipeline = Pipeline::new();
        // The first command makes sure that the server knows the script.
        pipeline.load_script(script).ignore();
        let mut count = 0;
        for call in calls {
            pipeline.invoke_script(&call);
            count += 1;
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut connection = self.redis.connection(operation).await?;
        match pipeline.query_async(&mut connection.commands).await {
            Ok(answers) => Ok(answers),
            Err(error) => Err(self.redis.failed(operation, error, &connection)),
        }
    }
}

fn life_ms() -> u64 {
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
    async fn claim(&self, new: &Session) -> BackendResult<Option<Session>> {
        const OPERATION: &str = "sessions.claim";
        let mut call = SCRIPTS.claim.key(self.key(new.user));
        call.arg(new.device.as_str()).arg(new.session.to_string()).arg(new.server.as_str()).arg(life_ms());
        let old: Vec<String> = self.run(OPERATION, &call).await?;
        match &old[..] {
            [id, server] => session(OPERATION, new.user, new.device.as_str(), [id, server]).map(Some),
            _ => Ok(None),
        }
    }

    async fn refresh(&self, sessions: &[Session]) -> BackendResult<Vec<SessionId>> {
        let calls = sessions.iter().map(|session| {
            let mut call = SCRIPTS.refresh.key(self.key(session.user));
            call.arg(session.device.as_str()).arg(session.session.to_string());
            call.arg(session.server.as_str()).arg(life_ms());
            call
        });
        let kept: Vec<u64> = self.run_all("sessions.refresh", &SCRIPTS.refresh, calls).await?;
        let replaced = sessions.iter().zip(kept).filter(|(_, kept)| *kept == 0);
        Ok(replaced.map(|(session, _)| session.session).collect())
    }

    async fn release(&self, session: &Session) -> BackendResult<bool> {
        let mut call = SCRIPTS.release.key(self.key(session.user));
        call.arg(session.device.as_str()).arg(session.session.to_string());
        self.run("sessions.release", &call).await
    }

    async fn lookup(&self, users: &[UserId]) -> BackendResult<Vec<Session>> {
        const OPERATION: &str = "sessions.lookup";
        let calls = users.iter().map(|user| {
            let mut call = SCRIPTS.lookup.key(self.key(*user));
            call.arg(0);
            call
        });
        let answers: Vec<Vec<String>> = self.run_all(OPERATION, &SCRIPTS.lookup, calls).await?;
        let mut found = Vec::new();
        for (user, answer) in users.iter().zip(&answers) {
            for words in answer.chunks_exact(3) {
                found.push(session(OPERATION, *user, &words[0], [&words[1], &words[2]])?);
            }
        }
        Ok(found)
    }

    async fn probe(&self) -> BackendResult<()> {
        self.redis.probe("sessions.probe").await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backends::contract::RedisPlace;
    use crate::backends::sessions::contract::sessions_contract;

    async fn place() -> RedisPlace<dyn Sessions> {
        RedisPlace::<dyn Sessions>::new(|redis| Arc::new(RedisSessions::new(redis))).await
    }

    sessions_contract!(place().await, ignore = "needs redis-server");
}
