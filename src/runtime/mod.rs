//! How tasks live: clocks, named and tracked tasks, shutdown, bounded queues, backoff, sockets and the machine's limits.
//!
//! Other rooms use these instead of bare `tokio::spawn`, `Instant::now` and unbounded channels (clippy sees to it).

pub mod backoff;
pub mod clock;
pub mod machine;
pub mod net;
pub mod queue;
pub mod tasks;

pub use backoff::Backoff;
pub use tasks::Tasks;
