//! What verbs do to this process: logs, and a runtime for what is short.

use std::io::IsTerminal;

use crate::exit::Failure;

/// Logs to standard error; `CHATCTL_LOG` sets the filter. Without it: warnings, but not those of Kafka's and Cassandra's client
/// libraries, which repeat for each try what the error of the call says once. In colour on a terminal only, and not with `NO_COLOR`.
pub(crate) fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CHATCTL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,librdkafka=off,rdkafka=off,scylla=off"));
    let in_colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(in_colour)
        .with_writer(std::io::stderr)
        // They would go to standard error by a way that panics when its reader went away.
        .log_internal_errors(false)
        .try_init();
}

/// Runs something short on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::environment)?;
    runtime.block_on(future)
}
