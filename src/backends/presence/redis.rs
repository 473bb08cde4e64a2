//! Presence in Redis: a sorted set holds who is online, by last beat; `presence:{user}` holds the last beat of somebody who was
//! declared offline, for 35 s.
//!
//! The sorted set decides; the single keys only keep an old beat, that was on its way while its user was declared offline,
//! from bringing the user back. A beat of somebody online touches one place (see `docs/adr/0018-last-beats.md`).

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use redis::{FromRedisValue, Script, ScriptInvocation};

use super::{Beat, LastBeat, Presence, PresenceRecord, Silent};
use crate::backends::error::BackendResult;
use crate::backends::redis::Redis;
use crate::protocol::UserId;
use crate::runtime::clock;

/// Life of the last beat of somebody who is offline. Source: docs/design.md, section 5.
const LAST_BEAT_TTL: Duration = Duration::from_secs(35);

/// Beats in one call of a script: the server does nothing else meanwhile.
const BEATS_AT_ONCE: usize = 500;

/// The server's clock, in milliseconds: the only one that dates a beat.
const CLOCK: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
";

/// By how much the server's clock may be ahead of what its last answer lets expect, before a beat is dated by the latter: a call
/// that lay in the server's queue while it stood still is older than it says.
const AHEAD_MAX_MS: u64 = 1_000;

/// ARGV: prefix, latest time that a beat of age 0 can have (0: any), then age and user of each beat. Answers the clock, then the
/// numbers of those that came online.
///
/// Nearly always everybody is online and beat later than before, which one command does and tells.
const BEAT: &str = r"
local beats, latest = {}, tonumber(ARGV[2])
local base = latest > 0 and math.min(now, latest) or now
for n = 3, #ARGV, 2 do
  beats[n - 2] = string.format('%.0f', math.max(base - ARGV[n], 0))
  beats[n - 1] = ARGV[n + 1]
end
local came = {now, base}
local later = redis.call('ZADD', KEYS[1], 'XX', 'GT', 'CH', unpack(beats))
if later == #beats / 2 then return came end
local users = {}
for n = 2, #beats, 2 do users[#users + 1] = beats[n] end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(users))
for n, user in ipairs(users) do
  if not scores[n] then
    local at, last = beats[2 * n - 1], redis.call('GET', ARGV[1] .. user)
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

/// ARGV: silence, users to skip, limit. Answers the clock, the life of the data, then users and their last beats.
///
/// A beat from the future is one from before the clock was set back: it counts as of now, or its user would be online until the
/// clock is there again.
const SILENT: &str = r"
local clock = string.format('%.0f', now)
local ahead = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now + 1000), '+inf', 'LIMIT', 0, 5000)
for _, user in ipairs(ahead) do redis.call('ZADD', KEYS[1], 'XX', clock, user) end
local life = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
local before = '(' .. string.format('%.0f', now - ARGV[1])
local users = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
return {clock, life, users}
";

/// Users that one call asks for: the server does nothing else meanwhile.
const USERS_AT_ONCE: usize = 1_000;

struct Scripts {
    beat: Script,
    expire: Script,
    get: Script,
    silent: Script,
}

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    beat: Script::new(&format!("{CLOCK}{BEAT}")),
    expire: Script::new(EXPIRE),
    get: Script::new(GET),
    silent: Script::new(&format!("{CLOCK}{SILENT}")),
});

/// Presence in a Redis.
#[derive(Clone)]
pub struct RedisPresence {
    redis: Redis,
    /// Users who are online, by their last beat. Every key has the same hash tag, so that one script may touch them.
    online: String,
    /// Before the user of a last beat.
    prefix: String,
    /// The server's clock as it last told it, and when that was, on [`clock::now_us`].
    seen: Arc<Mutex<Option<(u64, u64)>>>,
}

impl RedisPresence {
    /// Over a server that was opened.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        let key = |rest| redis.tagged_key("presence", rest);
        let (online, prefix) = (key("online"), key(""));
        Self { redis, online, prefix, seen: Arc::default() }
    }

    /// The latest that the server's clock can be now, as far as is known; 0 if nothing is.
    fn latest_ms(&self) -> u64 {
        let seen = *self.seen.lock().expect("no panic while held");
        seen.map_or(0, |(now_ms, at_us)| now_ms + (clock::now_us() - at_us) / 1_000 + AHEAD_MAX_MS)
    }

    fn saw(&self, now_ms: u64) {
        *self.seen.lock().expect("no panic while held") = Some((now_ms, clock::now_us()));
    }

    async fn run<T: FromRedisValue>(
        &self,
        operation: &'static str,
        script: &Script,
        arguments: impl FnOnce(&mut ScriptInvocation<'_>),
    ) -> BackendResult<T> {
        let mut connection = self.redis.connection(operation).await?;
        let mut call = script.key(&self.online);
        arguments(&mut call);
        match call.invoke_async(&mut connection.commands).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.redis.failed(operation, error, &connection)),
        }
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn beat(&self, beats: &[Beat]) -> BackendResult<Vec<LastBeat>> {
        let mut came_online = Vec::new();
        for beats in beats.chunks(BEATS_AT_ONCE) {
            let latest_ms = self.latest_ms();
            let answer: Vec<u64> = self
                .run("presence.beat", &SCRIPTS.beat, |call| {
                    call.arg(&self.prefix).arg(latest_ms);
                    for beat in beats {
                        call.arg(beat.age_ms).arg(beat.user.0);
                    }
                })
                .await?;
            let [now_ms, base_ms, came @ ..] = answer.as_slice() else { continue };
            self.saw(*now_ms);
            came_online.extend(came.iter().filter_map(|n| {
                let beat = beats.get(usize::try_from(*n).ok()?)?;
                Some(LastBeat { user: beat.user, at_ms: base_ms.saturating_sub(beat.age_ms) })
            }));
        }
        Ok(came_online)
    }

    async fn silent(&self, silence_ms: u64, skip: usize, limit: usize) -> BackendResult<Silent> {
        let (now_ms, life, silent): (u64, String, Vec<(u64, u64)>) = self
            .run("presence.silent", &SCRIPTS.silent, |call| {
                call.arg(silence_ms).arg(skip).arg(limit);
            })
            .await?;
        self.saw(now_ms);
        let users = silent.into_iter().map(|(user, at_ms)| LastBeat { user: UserId(user), at_ms }).collect();
        Ok(Silent { life, now_ms, users })
    }

    async fn expire(&self, last: &LastBeat) -> BackendResult<bool> {
        self.run("presence.expire", &SCRIPTS.expire, |call| {
            call.arg(last.user.0).arg(last.at_ms).arg(&self.prefix).arg(LAST_BEAT_TTL.as_millis() as u64);
        })
        .await
    }

    async fn get(&self, users: &[UserId]) -> BackendResult<Vec<PresenceRecord>> {
        let record = |pair: &[u64]| PresenceRecord { online: pair[0] == 1, last_beat_ms: pair[1] };
        let mut records = Vec::with_capacity(users.len());
        for users in users.chunks(USERS_AT_ONCE) {
            let answer: Vec<u64> = self
                .run("presence.get", &SCRIPTS.get, |call| {
                    call.arg(&self.prefix);
                    for user in users {
                        call.arg(user.0);
                    }
                })
                .await?;
            records.extend(answer.chunks_exact(2).map(record));
        }
        Ok(records)
    }

    async fn probe(&self) -> BackendResult<()> {
        self.redis.probe("presence.probe").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::contract::{Place, RedisPlace};
    use crate::backends::deployment::DeploymentId;
    use crate::backends::presence::contract::presence_contract;

    async fn place() -> RedisPlace<dyn Presence> {
        RedisPlace::<dyn Presence>::new(|redis| Arc::new(RedisPresence::new(redis))).await
    }

    presence_contract!(place().await, ignore = "needs redis-server");

    #[tokio::test]
    #[ignore = "needs redis-server"]
    async fn beats_of_before_the_clock_was_set_back_do_not_keep_a_user_online() {
        let place = place().await;
        let redis = place.redis_of(DeploymentId(7)).await;
        let port = RedisPresence::new(redis.clone());
        let (user, hour_ms) = (UserId(1), 3_600_000);
        let came = port.beat(&[Beat { user, age_ms: 0 }]).await.expect("takes");
        let mut connection = redis.connection("test").await.expect("connects");
        let mut set = redis::cmd("ZADD");
        set.arg(&port.online).arg(came[0].at_ms + hour_ms).arg(user.0);
        set.query_async::<()>(&mut connection.commands).await.expect("sets");
        assert_eq!(port.silent(30_000, 0, 10).await.expect("answers").users, []);
        let last = port.get(&[user]).await.expect("answers")[0].last_beat_ms;
        assert!(last < came[0].at_ms + 60_000, "{last} is still ahead of {came:?}");
    }

    #[tokio::test]
    #[ignore = "needs redis-server"]
    async fn a_beat_that_lay_in_a_server_that_stood_still_is_as_old_as_it_is() {
        let place = place().await;
        let port = RedisPresence::new(place.redis_of(DeploymentId(7)).await);
        let user = UserId(1);
        port.silent(30_000, 0, 10).await.expect("answers");
        place.signal("STOP");
        let beats = [Beat { user, age_ms: 0 }];
        let beating = port.beat(&beats);
        let waking = async {
            tokio::time::sleep(Duration::from_millis(1_800)).await;
            place.signal("CONT");
        };
        let (came, ()) = tokio::join!(beating, waking);
        let now_ms = port.silent(30_000, 0, 10).await.expect("answers").now_ms;
        let age_ms = now_ms - came.expect("takes")[0].at_ms;
        assert!(age_ms >= 700, "it beat 1.8 s ago, and is dated {age_ms} ms ago");
    }

    /// Beats 40 s before the copy, and comes back with it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs redis-server"]
    async fn older_data_are_of_another_life() {
        let (here, there) = (place().await, place().await);
        let port = here.open().await;
        port.beat(&[Beat { user: UserId(1), age_ms: 40_000 }]).await.expect("takes");
        there.follow(&here).await;
        there.lead().await;
        port.beat(&[Beat { user: UserId(1), age_ms: 0 }]).await.expect("takes");
        let before = port.silent(30_000, 0, 10).await.expect("answers");
        here.follow(&there).await;
        here.lead().await;
        let after = port.silent(30_000, 0, 10).await.expect("answers");
        assert_eq!((before.users.len(), after.users.len()), (0, 1), "the copy is the older one");
        assert_ne!(before.life, after.life);
    }
}
