//! Whose derived state it is: the id of a deployment.
//!
//! A deployment is a message store with everything that can be rebuilt from it: counters, sessions, last beats, log records,
//! registry entries. The id is made with the store, and what is derived carries it in its key, so that another deployment's
//! state on the same Redis, Kafka or ZooKeeper is not seen, and what an older store left there neither
//! ([ADR 20](../../docs/adr/0020-deployment-id.md)).

use std::fmt;
use std::str::FromStr;

use super::error::{BackendError, BackendResult, ErrorKind};
use super::messages::Messages;

/// Mark of the message store that holds the deployment's id.
pub(super) const DEPLOYMENT: &str = "deployment";

/// Mark of the message store that names the directory whose conversations it holds.
const DIRECTORY: &str = "directory";

/// The id of a deployment. As text, 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeploymentId(pub u64);

impl DeploymentId {
    /// An id that no other deployment has.
    #[must_use]
    pub fn fresh() -> Self {
        Self(rand::random())
    }

    /// The id of a message store's deployment; a store without one gets a fresh one.
    ///
    /// # Errors
    /// When the store does not answer, or holds an id that can't be read.
    pub async fn of(messages: &dyn Messages) -> BackendResult<Self> {
        Self::marked(messages, Self::fresh()).await
    }

    /// The id of a message store's deployment; a store without one gets `own`.
    ///
    /// # Errors
    /// As of [`DeploymentId::of`].
    pub async fn marked(messages: &dyn Messages, own: Self) -> BackendResult<Self> {
        let text = messages.mark(DEPLOYMENT, &own.to_string()).await?;
        text.parse().map_err(|()| {
            let text = format!("the id of the deployment is {text:?}: not 16 hexadecimal digits");
            BackendError::not_applied("open messages", ErrorKind::Corrupt, text)
        })
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for DeploymentId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() == 16 { u64::from_str_radix(text, 16).map(Self).map_err(|_| ()) } else { Err(()) }
    }
}

/// Binds a message store to the directory whose conversations it holds: conversations of another directory have the same ids
/// and other members.
///
/// # Errors
/// Names both directories when the store is bound to another one.
pub async fn bind_directory(messages: &dyn Messages, directory: &str) -> BackendResult<()> {
    let bound = messages.mark(DIRECTORY, directory).await?;
    if bound == directory {
        return Ok(());
    }
    let text = format!(
        "the message store holds conversations of directory {bound}, and this one is {directory}: their ids mean other \
         conversations; give the store its own directory, or this directory a store of its own"
    );
    Err(BackendError::not_applied("open directory", ErrorKind::Rejected, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::messages::EmbeddedMessages;
    use crate::backends::store::EmbeddedStore;

    #[tokio::test]
    async fn a_store_keeps_its_id_and_its_directory_and_another_one_is_refused_with_both_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let messages = EmbeddedMessages::open(&store).expect("opens");
        let id = DeploymentId::of(&messages).await.expect("marks");
        assert_eq!(DeploymentId::of(&messages).await.expect("reads"), id);
        assert_eq!(DeploymentId::marked(&messages, DeploymentId(7)).await.expect("reads"), id);
        for _ in 0..2 {
            bind_directory(&messages, "one").await.expect("binds");
        }
        let refused = bind_directory(&messages, "another").await.expect_err("refused").to_string();
        assert!(refused.contains("directory one,") && refused.contains("is another:"), "{refused}");
    }

    #[test]
    fn an_id_is_read_back_as_it_was_written() {
        for id in [DeploymentId(0), DeploymentId(7), DeploymentId(u64::MAX), DeploymentId::fresh()] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for bad in ["", "7", "00000000000000gg", "00000000000000001"] {
            assert_eq!(bad.parse::<DeploymentId>(), Err(()), "{bad}");
        }
    }
}
