//! The engine's own calls of the API: of the audit, and for changes of membership.

use std::time::Duration;

use crate::loadgen::api::Error;
use crate::loadgen::client::CallError;
use crate::loadgen::run::Shared;

/// Longest that one call may take, with the retries of a page.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(20);

/// A call with everything that it waits for, such as a new token: a server may ask for any wait.
///
/// # Errors
/// That of the call; "no answer in time" after [`CALL_LIMIT`].
pub(super) async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Err(Error::transport("no answer in time"));
    tokio::time::timeout(CALL_LIMIT, call).await.unwrap_or_else(late)
}

/// Counts a call that failed: backpressure, a limit of this machine, or an error of the target. Whoever makes these calls may
/// make them, so that being refused is an error like others. Whether a token may be refused, its request has counted.
pub(super) fn count_failure(shared: &Shared, call: &str, error: Error) {
    let error = match CallError::from(error) {
        CallError::NotAMember => CallError::Failed("not_a_member".to_owned()),
        other => other,
    };
    shared.stats.call_failed(call, &error);
}
