//! One look-up for everybody who wants the same thing at the same time.
//!
//! When an entry of a cache has just expired, hundreds ask for it at once; an engine is asked once. The look-up goes on
//! as long as somebody waits for it, whoever began it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, WeakShared};

use crate::backends::{BackendError, BackendResult};

/// Look-ups that have ended and are still listed, before they are taken out.
const ENDED_MAX: usize = 1_024;

type Answer<V> = Result<V, Arc<BackendError>>;

/// Look-ups under way, by what they look for. Written when one begins.
pub(super) struct SingleFlight<K, V> {
    under_way: Mutex<HashMap<K, WeakShared<BoxFuture<'static, Answer<V>>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

impl<K: Eq + Hash, V: Clone + Send + Sync + 'static> SingleFlight<K, V> {
    /// Waits for the look-up of a key, and begins one if none is under way.
    ///
    /// # Errors
    /// Those of the look-up, the same for all who wait.
    pub(super) async fn get<F>(&self, key: K, begin: impl FnOnce() -> F) -> BackendResult<V>
    where
        F: Future<Output = BackendResult<V>> + Send + 'static,
    {
        let look_up = {
            let mut under_way = self.under_way.lock().expect("no panic while held");
            match under_way.get(&key).and_then(WeakShared::upgrade) {
                Some(look_up) if look_up.peek().is_none() => look_up,
                _ => {
                    let look_up = begin().map(|answer| answer.map_err(Arc::new)).boxed().shared();
                    if under_way.len() >= ENDED_MAX {
                        under_way.retain(|_, look_up| look_up.upgrade().is_some());
                    }
                    if let Some(weak) = look_up.downgrade() {
                        under_way.insert(key, weak);
                    }
                    look_up
                }
            }
        };
        look_up.await.map_err(|error| error.repeated())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::backends::error::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_cost_one_look_up_and_a_later_one_costs_another() {
        let flights = SingleFlight::<u8, u32>::default();
        let looks = Arc::new(AtomicU32::new(0));
        let get = |key| {
            let looks = Arc::clone(&looks);
            flights.get(key, move || async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(looks.fetch_add(1, Ordering::Relaxed))
            })
        };
        let answers = futures_util::future::join_all((0..300).map(|_| get(1))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(0))));
        assert_eq!((get(2).await.ok(), get(1).await.ok()), (Some(1), Some(2)));
        for key in 0..=255 {
            let _ = get(key).await;
        }
        assert!(flights.under_way.lock().expect("no panic while held").len() <= ENDED_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_began_it_may_leave_and_an_error_is_everybodys() {
        let flights = SingleFlight::<u8, u32>::default();
        let looks = Arc::new(AtomicU32::new(0));
        let get = || {
            let looks = Arc::clone(&looks);
            flights.get(1, move || async move {
                looks.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(BackendError::not_applied("test", ErrorKind::TimedOut, "slow"))
            })
        };
        let first = async { tokio::time::timeout(Duration::from_millis(10), get()).await.is_err() };
        let (left, second) = tokio::join!(first, get());
        let error = second.expect_err("it fails");
        assert!(left && error.kind == ErrorKind::TimedOut && error.to_string().contains("slow"), "{error}");
        assert_eq!(looks.load(Ordering::Relaxed), 1);
    }
}
