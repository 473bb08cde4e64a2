//! Presence in Redis: a sorted set holds who is online, by last beat; `presence:{user}` holds the last beat of somebody who was
//! declared offline, for 35 s.
//!
//! The sorted set decides; the single keys only keep an old beat, that was on its way while its user was declared offline,
//! from bringing the user back. A beat of somebody online touches one place (see `docs/adr/0018-last-beats.md`).

use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use redis::{FromRedisValue, Script, ScriptInvocation};

use super::{Beat, Presence, PresenceRecord};
use crate::backends::error::BackendResult;
use crate::backends::redis::Redis;
use crate::protocol::UserId;

/// Life of the last beat of somebody who is offline. Source: DESIGN section 2, "Presence".
const LAST_BEAT_TTL: Duration = Duration::from_secs(35);

/// Beats in one call of a script: the server does nothing else meanwhile.
const BEATS_AT_ONCE: usize = 500;

/// Users who are online, by their last beat. Every key has the same hash tag, so that one script may touch them.
const ONLINE: &str = "chatctl:{presence}:online";

/// ARGV: prefix, then time and user of each beat. Answers the numbers of those that came online.
///
/// Nearly always everybody is online and beat later than before, which one command does and tells.
const BEAT: &str = r"
local later = redis.call('ZADD', KEYS[1], 'XX', 'GT', 'CH', unpack(ARGV, 2))
if later == (#ARGV - 1) / 2 then return {} end
local users, came = {}, {}
for n = 3, #ARGV, 2 do users[#users + 1] = ARGV[n] end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(users))
for n, user in ipairs(users) do
  if not scores[n] then
    local at, last = ARGV[2 * n], redis.call('GET', ARGV[1] .. user)
    local is_news = not last or tonumber(at) > tonumber(last)
    if is_news and redis.call('ZADD', KEYS[1], 'GT', at, user) == 1 then came[#came + 1] = n - 1 end
  end
end
return came
";

/// ARGV: user, time, prefix, life.
const EXPIRE: &str = r"
local last = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not last or tonumber(last) ~= tonumber(ARGV[2]) then return 0 end
redis.call('SET', ARGV[3] .. ARGV[1], ARGV[2], 'PX', ARGV[4])
return redis.call('ZREM', KEYS[1], ARGV[1])
";

/// ARGV: prefix, then users. Answers online (0 or 1) and last beat of each.
const GET: &str = r"
local out = {}
for n = 2, #ARGV do
  local online = redis.call('ZSCORE', KEYS[1], ARGV[n])
  out[#out + 1] = online and 1 or 0
  out[#out + 1] = tonumber(online or redis.call('GET', ARGV[1] .. ARGV[n]) or '0')
end
return out
";

/// ARGV: before, limit. Answers users and their last beats.
const OVERDUE: &str = r"
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1], 'WITHSCORES', 'LIMIT', 0, ARGV[2])
";

struct Scripts {
    beat: Script,
    expire: Script,
    get: Script,
    overdue: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    beat: Script::new(BEAT),
    expire: Script::new(EXPIRE),
    get: Script::new(GET),
    overdue: Script::new(OVERDUE),
});

/// Presence in a Redis.
#[derive(Clone)]
pub struct RedisPresence {
    redis: Redis,
}

impl RedisPresence {
    const PREFIX: &str = "chatctl:{presence}:";

    /// Over a server that was opened.
    #[must_use]
    pub const fn new(redis: Redis) -> Self {
        Self { redis }
    }

    async fn run<T: FromRedisValue>(
        &self,
        operation: &'static str,
        script: &Script,
        arguments: impl FnOnce(&mut ScriptInvocation<'_>),
    ) -> BackendResult<T> {
        let mut connection = self.redis.connection(operation).await?;
        let mut call = script.key(ONLINE);
        arguments(&mut call);
        match call.invoke_async(&mut connection.commands).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.redis.failed(operation, error).await),
        }
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn beat(&self, beats: &[Beat]) -> BackendResult<Vec<Beat>> {
        let mut came_online = Vec::new();
        for beats in beats.chunks(BEATS_AT_ONCE) {
            let came: Vec<usize> = self
                .run("presence.beat", &SCRIPTS.beat, |call| {
                    call.arg(Self::PREFIX);
                    for beat in beats {
                        call.arg(beat.at_ms).arg(beat.user.0);
                    }
                })
                .await?;
            came_online.extend(came.into_iter().filter_map(|n| beats.get(n).copied()));
        }
        Ok(came_online)
    }

    async fn overdue(&self, before_ms: u64, limit: usize) -> BackendResult<Vec<Beat>> {
        let overdue: Vec<(u64, u64)> = self
            .run("presence.overdue", &SCRIPTS.overdue, |call| {
                call.arg(before_ms).arg(limit);
            })
            .await?;
        Ok(overdue.into_iter().map(|(user, at_ms)| Beat { user: UserId(user), at_ms }).collect())
    }

    async fn expire(&self, last: &Beat) -> BackendResult<bool> {
        self.run("presence.expire", &SCRIPTS.expire, |call| {
            call.arg(last.user.0).arg(last.at_ms).arg(Self::PREFIX).arg(LAST_BEAT_TTL.as_millis() as u64);
        })
        .await
    }

    async fn get(&self, users: &[UserId]) -> BackendResult<Vec<PresenceRecord>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let answer: Vec<u64> = self
            .run("presence.get", &SCRIPTS.get, |call| {
                call.arg(Self::PREFIX);
                for user in users {
                    call.arg(user.0);
                }
            })
            .await?;
        let record = |pair: &[u64]| PresenceRecord { online: pair[0] == 1, last_beat_ms: pair[1] };
        Ok(answer.chunks_exact(2).map(record).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backends::contract::RedisPlace;
    use crate::backends::presence::contract::presence_contract;

    async fn place() -> RedisPlace<dyn Presence> {
        RedisPlace::<dyn Presence>::new(|redis| Arc::new(RedisPresence::new(redis))).await
    }

    presence_contract!(place().await, ignore = "needs redis-server");
}
