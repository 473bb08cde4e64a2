//! Signals that stop what runs: ctrl-c, SIGTERM, and SIGHUP when the terminal or the session goes away.

use chatctl::runtime::{Tasks, temporary};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{self, Failure};

/// Opens each of them. One that whoever started this process has it ignore (`nohup`) stays ignored.
pub(crate) fn stops() -> Result<Vec<Signal>, Failure> {
    let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
    if !is_ignored(SignalKind::hangup()) {
        kinds.push(SignalKind::hangup());
    }
    kinds.into_iter().map(|kind| signal(kind).map_err(Failure::environment)).collect()
}

/// Whether this process was started with a signal ignored. Asked before a handler of ours replaces that.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}

/// Waits for the next of some signals.
pub(crate) async fn next(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let is_any = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if is_any { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// The first signal interrupts the run, the second ends the process.
pub(crate) fn watch(interrupt: &Tasks) -> Result<(), Failure> {
    let mut signals = stops()?;
    let interrupt = interrupt.clone();
    Tasks::new().spawn("load.signals", async move {
        loop {
            next(&mut signals).await;
            if interrupt.is_stopped() {
                // Not `restore`: it prints what goes wrong, and panics where nobody reads standard error any more.
                let _ = ratatui::try_restore();
                temporary::remove_all();
                std::process::exit(exit::INTERRUPTED.into());
            }
            interrupt.stop();
        }
    });
    Ok(())
}
