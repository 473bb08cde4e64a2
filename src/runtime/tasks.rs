//! Named, tracked tasks and the word to stop.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks that are told to stop together and waited for together. Clones are the same group.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
    /// What can end them at once, for tests that have several servers in one runtime.
    #[cfg(test)]
    spawned: std::sync::Arc<std::sync::Mutex<Vec<tokio::task::AbortHandle>>>,
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task of this group on the current runtime. It ends by itself, or when the runtime is dropped; loops
    /// watch [`Tasks::stopped`].
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let _ = name; // kept for the reader and for a console; tokio's own task names are unstable
        #[expect(clippy::disallowed_methods, reason = "this is the wrapper")]
        let spawned = tokio::spawn(self.tracker.track_future(future));
        #[cfg(test)]
        self.spawned.lock().expect("no panic while held").push(spawned.abort_handle());
        drop(spawned);
    }

    /// Drops every task in the middle of whatever it does, as the end of a process would.
    #[cfg(test)]
    pub(crate) fn kill(&self) {
        self.stop();
        self.spawned.lock().expect("no panic while held").drain(..).for_each(|task| task.abort());
    }

    /// Starts a loop that is dropped at its next await when the group stops.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.spawn(name, async move {
            let _ = stop.run_until_cancelled(future).await;
        });
    }

    /// Does work that takes longer than a task may hold its thread, in a thread for such work. `None` where it panicked.
    pub async fn block<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        #[expect(clippy::disallowed_methods, reason = "this is the wrapper")]
        let done = tokio::task::spawn_blocking(work);
        done.await.ok()
    }

    /// Tells every task of the group to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// True once [`Tasks::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until the group is told to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Waits until every task has ended, at most `limit`. Returns how many are left.
    pub async fn join(&self, limit: Duration) -> usize {
        self.tracker.close();
        let _ = tokio::time::timeout(limit, self.tracker.wait()).await;
        self.tracker.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_task_is_dropped_where_it_waits() {
        let (tasks, held) = (Tasks::new(), std::sync::Arc::new(()));
        let holds = std::sync::Arc::clone(&held);
        tasks.spawn("test.holds", async move {
            std::future::pending::<()>().await;
            drop(holds);
        });
        tasks.kill();
        assert_eq!(tasks.join(Duration::from_secs(5)).await, 0);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_stopped_loop_ends_and_is_waited_for() {
        let tasks = Tasks::new();
        tasks.spawn_until_stopped("test.forever", std::future::pending());
        tasks.stop();
        assert_eq!(tasks.join(Duration::from_secs(5)).await, 0);
    }
}
