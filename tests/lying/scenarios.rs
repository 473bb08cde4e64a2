//! What is run through the proxy: small and short, with one kind of traffic each.

use std::time::Duration;

/// One-to-one talk and groups; everybody is connected a while before the first message.
pub(crate) const TALK: &str = "
name: talk
population:
  users: 24
  direct_per_user: 4
  groups: [{count: 4, members: {min: 6, max: 10}}]
behaviors: {one-to-one: 1, group-talker: 1}
connect_over: 300ms
phases: [{phase: warm-up, duration: 1500ms, rate: 0.001}, {phase: steady, duration: 3s, rate: 60}]
generator_lag_max: 10s
";

/// The same for half a minute, for what takes its time.
pub(crate) const LONG_TALK: &str = "
name: long-talk
population:
  users: 16
  direct_per_user: 4
behaviors: {one-to-one: 1}
connect_over: 300ms
phases: [{phase: steady, duration: 45s, rate: 10}]
generator_lag_max: 10s
";

/// One-to-one talk for some seconds.
pub(crate) const LONGER: &str = "
name: longer
population: {users: 16, direct_per_user: 4}
behaviors: {one-to-one: 1}
connect_over: 300ms
phases: [{phase: steady, duration: 12s, rate: 30}]
generator_lag_max: 10s
";

/// How long that lasts.
pub(crate) const LONGER_LOAD: Duration = Duration::from_secs(12);

/// Half of the users only read.
pub(crate) const READERS: &str = "
name: readers
population:
  users: 24
  direct_per_user: 4
  groups: [{count: 4, members: {min: 6, max: 10}}]
behaviors: {one-to-one: 1, group-talker: 1, lurker: 2}
connect_over: 300ms
phases: [{phase: warm-up, duration: 700ms, rate: 0.001}, {phase: steady, duration: 4s, rate: 60}]
generator_lag_max: 10s
";

/// A large channel that everybody is in, and nothing else.
pub(crate) const CHANNEL: &str = "
name: channel
population:
  users: 104
  groups: [{count: 1, members: {min: 104, max: 104}}]
behaviors: {group-talker: 1}
connect_over: 500ms
phases: [{phase: warm-up, duration: 1500ms, rate: 0.001}, {phase: steady, duration: 3s, rate: 8}]
generator_lag_max: 10s
";

/// The same, and messages have to come as such.
pub(crate) const CHANNEL_OF_MESSAGES: &str = "
name: channel-of-messages
population:
  users: 104
  groups: [{count: 1, members: {min: 104, max: 104}}]
behaviors: {group-talker: 1}
connect_over: 500ms
phases: [{phase: warm-up, duration: 1500ms, rate: 0.001}, {phase: steady, duration: 3s, rate: 8}]
thresholds: ['pushed_whole_percent >= 90']
generator_lag_max: 10s
";

/// Members are removed and come back seconds later.
pub(crate) const CHURN: &str = "
name: churn
population:
  users: 16
  groups: [{count: 4, members: {min: 8, max: 10}}]
behaviors: {group-talker: 1}
connect_over: 200ms
churn: {every: 300ms, back_after: 4s}
phases: [{phase: steady, duration: 5s, rate: 60}]
generator_lag_max: 10s
";

/// Friends who come online one after the other.
pub(crate) const FRIENDS: &str = "
name: friends
population:
  users: 16
  friends_per_user: 4
  direct_per_user: 2
behaviors: {one-to-one: 1}
connect_over: 3s
heartbeat: 1s
phases: [{phase: steady, duration: 8s, rate: 20}]
generator_lag_max: 10s
";

/// The same without a message: nothing but presence says how slow the target is.
pub(crate) const QUIET_FRIENDS: &str = "
name: quiet-friends
population: {users: 16, friends_per_user: 4}
behaviors: {lurker: 1}
connect_over: 3s
heartbeat: 1s
phases: [{phase: steady, duration: 14s}]
generator_lag_max: 10s
";

/// Half of them leave, and are back at about the time at which they are offline: the news of both cross.
pub(crate) const QUIET_RETURNS: &str = "
name: quiet-returns
population: {users: 12, friends_per_user: 4}
behaviors: {lurker: 1, presence-only: 1}
connect_over: 300ms
heartbeat: 1s
flapper: {online: 8s, presence_away: 27s}
phases: [{phase: steady, duration: 48s}]
generator_lag_max: 10s
";

/// Some friends leave for longer than the 30 s after which they are offline.
pub(crate) const AWAY: &str = "
name: away
population:
  users: 12
  friends_per_user: 4
  direct_per_user: 2
behaviors: {one-to-one: 1, presence-only: 1}
connect_over: 300ms
heartbeat: 1s
flapper: {online: 1s, presence_away: 70s}
phases: [{phase: steady, duration: 40s, rate: 5}]
generator_lag_max: 10s
";

/// Short, for runs by the hundred.
pub(crate) const BRIEF: &str = "
name: brief
population:
  users: 16
  direct_per_user: 4
  groups: [{count: 2, members: {min: 5, max: 8}}]
behaviors: {one-to-one: 1, group-talker: 1}
connect_over: 200ms
reconnect: {first: 200ms, max: 1s}
phases: [{phase: steady, duration: 2s, rate: 60}]
generator_lag_max: 10s
";

/// Deliveries have to be fast.
pub(crate) const IN_TIME: &str = "
name: in-time
population: {users: 24, direct_per_user: 4}
behaviors: {one-to-one: 1}
connect_over: 300ms
phases: [{phase: steady, duration: 4s, rate: 60}]
thresholds: ['delivery_ms.p90 < 1000']
generator_lag_max: 10s
";
