//! Bounded queues between tasks. A full queue is a counted, named event, never a surprise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

/// Makes a queue of at most `limit` items; what does not fit is refused and counted.
#[must_use]
pub fn bounded<T>(name: &'static str, limit: usize) -> (Sender<T>, mpsc::Receiver<T>) {
    let (inner, receiver) = mpsc::channel(limit);
    (Sender { name, inner, refused: Arc::default() }, receiver)
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    name: &'static str,
    inner: mpsc::Sender<T>,
    refused: Arc<AtomicU64>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { name: self.name, inner: self.inner.clone(), refused: Arc::clone(&self.refused) }
    }
}

/// The queue was full, or its reader is gone; here is the item back.
#[derive(Debug, thiserror::Error)]
#[error("queue {name} is full or closed")]
pub struct Refused<T> {
    /// Which queue.
    pub name: &'static str,
    /// What did not fit.
    pub item: T,
}

impl<T> Sender<T> {
    /// Puts an item in without waiting.
    ///
    /// # Errors
    /// [`Refused`] gives the item back.
    pub fn try_send(&self, item: T) -> Result<(), Refused<T>> {
        self.inner.try_send(item).map_err(|error| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            Refused { name: self.name, item: error.into_inner() }
        })
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`Refused`] when the reader is gone.
    pub async fn send(&self, item: T) -> Result<(), Refused<T>> {
        self.inner.send(item).await.map_err(|error| Refused { name: self.name, item: error.0 })
    }

    /// Items waiting now.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.inner.max_capacity() - self.inner.capacity()
    }

    /// Items refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_item_back_and_counts() {
        let (tx, _rx) = bounded::<u32>("test", 2);
        assert!(tx.try_send(1).is_ok() && tx.try_send(2).is_ok());
        let refused = tx.try_send(3).expect_err("full");
        assert_eq!((refused.item, tx.depth(), tx.refused()), (3, 2, 1));
        assert!(refused.to_string().contains("test"));
    }
}
