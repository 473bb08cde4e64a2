//! What the contract suites share: a place that can be opened twice and restarted, and the macro that makes tests.

/// Makes one `#[tokio::test]` per promise.
macro_rules! contract_tests {
    ($place:expr; $module:path; $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                use $module as promises;
                promises::$name($place).await;
            }
        )*
    };
}

pub(crate) use contract_tests;

/// One deployment of an engine, as two servers see it.
#[async_trait::async_trait]
pub(crate) trait Place<P: ?Sized + Send + Sync>: Send + Sync {
    /// Another handle on the same place, as another server would have.
    async fn open(&self) -> std::sync::Arc<P>;

    /// Ends the engine's process and starts it again on the same data. Handles from before are of no use.
    async fn restart(&self);
}

pub(crate) use embedded::EmbeddedPlace;

mod embedded {
    use std::sync::{Arc, Mutex};

    use super::Place;
    use crate::backends::store::EmbeddedStore;

    type Open<P> = Box<dyn Fn(&EmbeddedStore) -> Arc<P> + Send + Sync>;

    /// A temporary data folder.
    pub(crate) struct EmbeddedPlace<P: ?Sized> {
        folder: tempfile::TempDir,
        make: Open<P>,
        opened: Mutex<Option<(EmbeddedStore, Arc<P>)>>,
    }

    impl<P: ?Sized> EmbeddedPlace<P> {
        pub(crate) fn new(make: impl Fn(&EmbeddedStore) -> Arc<P> + Send + Sync + 'static) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            Self { folder, make: Box::new(make), opened: Mutex::default() }
        }
    }

    #[async_trait::async_trait]
    impl<P: ?Sized + Send + Sync> Place<P> for EmbeddedPlace<P> {
        async fn open(&self) -> Arc<P> {
            let mut opened = self.opened.lock().expect("no panic while held");
            let (_, port) = opened.get_or_insert_with(|| {
                let store = EmbeddedStore::open(self.folder.path()).expect("opens");
                let port = (self.make)(&store);
                (store, port)
            });
            Arc::clone(port)
        }

        async fn restart(&self) {
            *self.opened.lock().expect("no panic while held") = None;
        }
    }
}
