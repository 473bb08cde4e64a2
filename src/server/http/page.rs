//! Pages that many ask for, such as figures: made once for all who ask within a time, and shared by them.
//!
//! Who asks for many gets the same one, and what clients do not read is in memory once.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::runtime::{Tasks, clock};

/// How long a page of this process' own figures stands.
const LOCAL_TTL: Duration = Duration::from_millis(50);

/// How long a page stands that other servers were asked for.
const GATHERED_TTL: Duration = Duration::from_secs(1);

/// A page, and when it was made, on [`clock::now_us`]: a gathered one when it was done.
type Made = Option<(u64, Bytes)>;

fn young(made: &Made, now_us: u64, ttl: Duration) -> Option<Bytes> {
    let (at_us, page) = made.as_ref()?;
    (now_us.saturating_sub(*at_us) < ttl.as_micros() as u64).then(|| page.clone())
}

/// A page of what is known here.
#[derive(Default)]
pub(in crate::server) struct LocalPage(Mutex<Made>);

impl LocalPage {
    /// The page, made now where there is none that is young.
    pub(in crate::server) fn get(&self, make: impl FnOnce() -> String) -> Bytes {
        let mut made = self.0.lock().expect("no panic while held");
        let now_us = clock::now_us();
        young(&made, now_us, LOCAL_TTL).unwrap_or_else(|| {
            let page = Bytes::from(make());
            *made = Some((now_us, page.clone()));
            page
        })
    }
}

/// A page that takes time to make: one is under way at a time.
#[derive(Default)]
pub(in crate::server) struct GatheredPage(Arc<tokio::sync::Mutex<Made>>);

impl GatheredPage {
    /// The page, made now where there is none that is young, in a task of its own: who asks and leaves begins no second one.
    /// `None` once the tasks stop.
    pub(in crate::server) async fn get<F>(&self, tasks: &Tasks, make: impl FnOnce() -> F) -> Option<Bytes>
    where
        F: Future<Output = String> + Send + 'static,
    {
        // Whoever makes one has the lock.
        let mut made = Arc::clone(&self.0).lock_owned().await;
        let now_us = clock::now_us();
        if let Some(page) = young(&made, now_us, GATHERED_TTL) {
            return Some(page);
        }
        let (done, page) = oneshot::channel();
        let making = make();
        tasks.spawn_until_stopped("http.page", async move {
            let page = Bytes::from(making.await);
            // Young from now on: one that took long, since a server did not answer, is for those who waited too.
            *made = Some((clock::now_us(), page.clone()));
            // Who asked may have left.
            let _ = done.send(page);
        });
        page.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_get_one_page_and_a_later_one_gets_another() {
        let (page, tasks, made) = (GatheredPage::default(), Tasks::new(), Arc::new(AtomicU32::new(0)));
        let get = || {
            let made = Arc::clone(&made);
            page.get(&tasks, move || async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                (made.fetch_add(1, Ordering::Relaxed) + 1).to_string()
            })
        };
        // Who leaves begins it all the same.
        assert!(tokio::time::timeout(Duration::from_millis(1), get()).await.is_err());
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(1), get()).await.is_err());
        }
        let pages = futures_util::future::join_all((0..200).map(|_| get())).await;
        assert!(pages.iter().all(|page| page.as_deref() == Some(b"1")), "{:?}", pages.first());
        tokio::time::advance(GATHERED_TTL).await;
        assert_eq!(get().await.as_deref(), Some(&b"2"[..]));
        tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_of_this_process_stands_for_a_moment() {
        let page = LocalPage::default();
        let get = |text: &str| page.get(|| text.to_owned());
        assert_eq!((get("a"), get("b")), (Bytes::from("a"), Bytes::from("a")));
        tokio::time::advance(LOCAL_TTL).await;
        assert_eq!(get("c"), "c");
    }
}
