//! The scripts of the counters: each of them one atomic step on one hash. What its fields hold is told in `redis.rs`.

use std::sync::LazyLock;

use redis::Script;

use crate::backends::redis::IN_LIFE;

/// Records of pending ids, the time, and the list of pending ids.
const COMMON: &str = r"
local key = KEYS[1]
local function record(id)
  local text = redis.call('HGET', key, 'i:' .. id)
  if not text then return nil end
  local at, digest, state, sender, uuid = string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  return {at = at, digest = digest, state = state, sender = sender, uuid = uuid}
end
local function write(id, r)
  redis.call('HSET', key, 'i:' .. id, table.concat({r.at, r.digest, r.state, r.sender, r.uuid}, ' '))
end
local function now_ms()
  local time = redis.call('TIME')
  return string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
end
local function pending() return redis.call('HGET', key, 'p') or '' end
local function settle(id)
  local list = ',' .. pending()
  local from, to = string.find(list, ',' .. id .. ',', 1, true)
  if from then redis.call('HSET', key, 'p', string.sub(list, 2, from) .. string.sub(list, to + 1)) end
end
";

/// Fingerprints of committed uuids, in buckets that grow by linear hashing: when there are more than 48 entries a bucket, one
/// more bucket takes over a part of another one's. An entry is 6 bytes of the fingerprint and 7 of the id.
const FINGERPRINTS: &str = r"
local WIDTH, FILL = 13, 48
local function place_of(fingerprint, buckets)
  local hash, level = struct.unpack('>I4', fingerprint), 1
  while level * 2 <= buckets do level = level * 2 end
  local at = hash % (level * 2)
  if at >= buckets then at = hash % level end
  return at, level
end
local function bucket(at) return redis.call('HGET', key, 'm:' .. at) or '' end
local function put(at, text)
  if text == '' then redis.call('HDEL', key, 'm:' .. at) else redis.call('HSET', key, 'm:' .. at, text) end
end
local function split_up(text, is_kept)
  local kept, others = {}, {}
  for from = 1, #text, WIDTH do
    local entry = string.sub(text, from, from + WIDTH - 1)
    local list = is_kept(entry) and kept or others
    list[#list + 1] = entry
  end
  return table.concat(kept), table.concat(others), #others
end
local function find(fingerprint, above, buckets)
  local text, from, lowest = bucket((place_of(fingerprint, buckets))), 1, nil
  while true do
    local at = string.find(text, fingerprint, from, true)
    if not at then return lowest end
    if (at - 1) % WIDTH == 0 then
      local id = struct.unpack('>I7', text, at + 6)
      if id > above and (not lowest or id < lowest) then lowest = id end
    end
    from = at + 1
  end
end
local function buckets_now() return tonumber(redis.call('HGET', key, 'n') or '1') end
local function has(fingerprint, id) return find(fingerprint, tonumber(id) - 1, buckets_now()) == tonumber(id) end
local function add(fingerprint, id)
  local buckets = buckets_now()
  local at, level = place_of(fingerprint, buckets)
  put(at, bucket(at) .. fingerprint .. struct.pack('>I7', tonumber(id)))
  if redis.call('HINCRBY', key, 'k', 1) > buckets * FILL then
    local old = buckets - level
    local stay, move = split_up(bucket(old), function(entry)
      return struct.unpack('>I4', entry) % (level * 2) ~= buckets
    end)
    put(old, stay)
    put(buckets, move)
    redis.call('HSET', key, 'n', buckets + 1)
  end
end
local function prune(at, floor)
  local kept, _, dropped = split_up(bucket(at), function(entry) return struct.unpack('>I7', entry, 7) > floor end)
  if dropped > 0 then
    put(at, kept)
    redis.call('HINCRBY', key, 'k', -dropped)
  end
end
";

/// KEYS: conversation. ARGV: sender, uuid, digest, fingerprint, ids up to which others are known, window, pending at most, life.
const RESERVE: &str = r"
local m = redis.call('HMGET', key, 'e', 'l', 'b', 'f', 't', 'n', 'w')
if not m[1] then return {'unseeded'} end
local at, window = now_ms(), tonumber(ARGV[6])
local now, floor, times, buckets = tonumber(at), tonumber(m[4]), m[5], tonumber(m[6] or '1')
local sweep = tonumber(m[7] or buckets)
local marked = tonumber(string.match(times, '(%d+):%d+,$') or '0')
if marked + window / 16 <= now then
  times = times .. at .. ':' .. m[2] .. ','
  while true do
    local oldest, id, behind = string.match(times, '^(%d+):(%d+),()')
    if tonumber(oldest) + window > now then break end
    floor, times, sweep = tonumber(id), string.sub(times, behind), 0
  end
  redis.call('HSET', key, 't', times, 'f', string.format('%.0f', floor))
end
if sweep < buckets then
  for _ = 1, 4 do
    prune(sweep, floor)
    sweep = sweep + 1
  end
  if sweep < buckets then redis.call('HSET', key, 'w', sweep) else redis.call('HDEL', key, 'w') end
end
local u = 'u:' .. ARGV[1] .. ':' .. ARGV[2]
local known = redis.call('HGET', key, u)
local r = known and record(known)
if r then
  if r.digest ~= ARGV[3] then return {'conflict'} end
  if r.state == 'v' then return {'overloaded'} end
  return {'pending', known, r.at, m[1]}
end
local committed = find(ARGV[4], math.max(floor, tonumber(ARGV[5])), buckets)
if committed then return {'committed', string.format('%.0f', committed)} end
local list = pending()
local _, count = string.gsub(list, ',', '')
if count >= tonumber(ARGV[7]) then return {'overloaded'} end
if tonumber(m[2]) >= tonumber(m[3]) then return {'used_up', m[1], m[3]} end
local id = string.format('%.0f', tonumber(m[2]) + 1)
write(id, {at = at, digest = ARGV[3], state = 'p', sender = ARGV[1], uuid = ARGV[2]})
redis.call('HSET', key, 'l', id, 'p', list .. id .. ',', u, id)
redis.call('PEXPIRE', key, ARGV[8])
return {'fresh', id, at, m[1]}
";

/// KEYS: conversation. ARGV: sender, uuid, fingerprint, id.
const COMMIT: &str = r"
local id = ARGV[4]
local u = 'u:' .. ARGV[1] .. ':' .. ARGV[2]
if redis.call('HGET', key, u) ~= id then return has(ARGV[3], id) and 1 or 0 end
local r = record(id)
if not r or r.state == 'v' then return 0 end
redis.call('HDEL', key, 'i:' .. id, u)
settle(id)
add(ARGV[3], id)
local newest = redis.call('HGET', key, 'h')
if not newest or tonumber(string.match(newest, '^%d+')) < tonumber(id) then
  redis.call('HSET', key, 'h', id .. ' ' .. r.at)
end
return 1
";

/// KEYS: conversation. Answers last id, epoch and now, then id and time of each pending one.
const PROGRESS: &str = r"
local m = redis.call('HMGET', key, 'l', 'e')
if not m[1] then return {} end
local out = {m[1], m[2], now_ms()}
for id in string.gmatch(pending(), '[^,]+') do
  local r = record(id)
  out[#out + 1] = id
  out[#out + 1] = r and r.at or '0'
end
return out
";

/// KEYS: conversations. Answers id and time of the greatest committed one of each, or nothing.
const NEWEST: &str = r"
local out = {}
for n, key in ipairs(KEYS) do out[n] = redis.call('HGET', key, 'h') or '' end
return out
";

/// KEYS: conversation. ARGV: id.
const BEGIN_VOID: &str = r"
local r = record(ARGV[1])
if not r then return 0 end
r.state = 'v'
write(ARGV[1], r)
return 1
";

/// KEYS: conversation. ARGV: id.
const END_VOID: &str = r"
local r = record(ARGV[1])
if r and r.state == 'v' then
  redis.call('HDEL', key, 'i:' .. ARGV[1], 'u:' .. r.sender .. ':' .. r.uuid)
  settle(ARGV[1])
end
return 1
";

/// KEYS: conversation. ARGV: epoch, life.
const BEGIN_SEED: &str = r"
local m = redis.call('HMGET', key, 'e', 'c')
if m[1] or tonumber(m[2] or '0') > tonumber(ARGV[1]) then return 0 end
if m[2] ~= ARGV[1] then redis.call('DEL', key) end
redis.call('HSET', key, 'c', ARGV[1])
redis.call('PEXPIRE', key, ARGV[2])
return 1
";

/// KEYS: conversation. ARGV: epoch, then id and fingerprint of each message.
const REMEMBER: &str = r"
local m = redis.call('HMGET', key, 'e', 'c')
if m[1] or m[2] ~= ARGV[1] then return 0 end
for n = 2, #ARGV - 1, 2 do
  if not has(ARGV[n + 1], ARGV[n]) then add(ARGV[n + 1], ARGV[n]) end
end
return 1
";

/// KEYS: conversation. ARGV: epoch, settled, end of the block.
const SEED: &str = r"
local m = redis.call('HMGET', key, 'e', 'c')
if m[1] or m[2] ~= ARGV[1] then return 0 end
redis.call('HSET', key, 'e', ARGV[1], 'l', ARGV[2], 'b', ARGV[3], 'f', '0', 'p', '', 't', now_ms() .. ':' .. ARGV[2] .. ',')
return 1
";

/// KEYS: conversation. ARGV: epoch, end of the block, epoch from now on.
const EXTEND: &str = r"
local m = redis.call('HMGET', key, 'e', 'b')
if m[1] ~= ARGV[1] then return 1 end
redis.call('HSET', key, 'e', ARGV[3])
if tonumber(m[2]) < tonumber(ARGV[2]) then redis.call('HSET', key, 'b', ARGV[2]) end
return 1
";

/// KEYS: conversation. ARGV: epoch, life.
const FORGET: &str = r"
local m = redis.call('HMGET', key, 'e', 'c')
if m[1] and tonumber(m[1]) <= tonumber(ARGV[1]) then
  redis.call('DEL', key)
  redis.call('HSET', key, 'c', m[2] or m[1])
  redis.call('PEXPIRE', key, ARGV[2])
end
return 1
";

/// KEYS: turn. ARGV: owner, life.
const KEEP_TURN: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
";

/// KEYS: turn. ARGV: owner.
const END_TURN: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
";

/// All of them, compiled by name.
pub(super) struct Scripts {
    pub(super) reserve: Script,
    pub(super) commit: Script,
    pub(super) progress: Script,
    pub(super) newest: Script,
    pub(super) begin_void: Script,
    pub(super) end_void: Script,
    pub(super) begin_seed: Script,
    pub(super) remember: Script,
    pub(super) seed: Script,
    pub(super) extend: Script,
    pub(super) forget: Script,
    pub(super) keep_turn: Script,
    pub(super) end_turn: Script,
}

/// The scripts. Those on a conversation run on data of the life that their last argument names.
pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let script = |body: &str| Script::new(&format!("{IN_LIFE}{COMMON}{body}"));
    let with_fingerprints = |body: &str| script(&format!("{FINGERPRINTS}{body}"));
    Scripts {
        reserve: with_fingerprints(RESERVE),
        commit: with_fingerprints(COMMIT),
        progress: script(PROGRESS),
        newest: Script::new(&format!("{IN_LIFE}{NEWEST}")),
        begin_void: script(BEGIN_VOID),
        end_void: script(END_VOID),
        begin_seed: script(BEGIN_SEED),
        remember: with_fingerprints(REMEMBER),
        seed: script(SEED),
        extend: script(EXTEND),
        forget: script(FORGET),
        keep_turn: Script::new(KEEP_TURN),
        end_turn: Script::new(END_TURN),
    }
});
