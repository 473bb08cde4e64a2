//! How tasks live: clocks, named and tracked tasks, shutdown, bounded queues, backoff, sockets and the machine's limits.
//!
//! Other rooms use these instead of bare `tokio::spawn`, `Instant::now` and unbounded channels (clippy sees to it).

pub mod backoff;
pub mod clock;
mod error_chain;
pub mod files;
pub mod http_client;
pub mod limits;
pub mod machine;
pub mod net;
mod pacing_thread;
pub mod process;
pub mod queue;
pub mod spelling;
pub mod tasks;
pub mod temporary;
mod unclosed;
pub mod yaml;

pub use backoff::Backoff;
pub use error_chain::{error_chain, is_local_cause, plain_os_errors};
pub use pacing_thread::{Bell, PacingThread};
pub use tasks::Tasks;
pub use temporary::TemporaryFolder;
