//! Why a server did not start, the same for every role.

use crate::backends::BackendError;

/// Why a server did not start. An address that can't be had is not among these: the caller binds.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is not valid.
    #[error("{setting}: {reason}")]
    Config {
        /// Its key in a file of settings.
        setting: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// An engine failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A listener is of no use.
    #[error("listener: {0}")]
    Socket(#[from] std::io::Error),
}
