//! Signals that stop what runs: ctrl-c, SIGTERM, and SIGHUP when the terminal or the session goes away.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::run::Error;
use crate::runtime::Tasks;

/// Opens each of them. One that whoever started this process has it ignore (`nohup`) stays ignored.
///
/// # Errors
/// When the system refuses one.
pub fn stops() -> Result<Vec<Signal>, Error> {
    let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
    if !is_ignored(SignalKind::hangup()) {
        kinds.push(SignalKind::hangup());
    }
    kinds.into_iter().map(|kind| signal(kind).map_err(Error::environment)).collect()
}

/// Whether this process was started with a signal ignored. Asked before a handler of ours replaces that.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}

/// Waits for the next of some signals.
pub async fn next(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let is_any = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if is_any { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// The first signal interrupts the run; each one after it calls `end`, which ends the process.
///
/// # Errors
/// When the system refuses a signal.
pub fn watch(interrupt: &Tasks, end: impl Fn() + Send + 'static) -> Result<(), Error> {
    let mut signals = stops()?;
    let interrupt = interrupt.clone();
    Tasks::new().spawn("load.signals", async move {
        loop {
            next(&mut signals).await;
            if interrupt.is_stopped() {
                end();
            }
            interrupt.stop();
        }
    });
    Ok(())
}
