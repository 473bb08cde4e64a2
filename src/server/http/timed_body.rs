//! Bodies of requests, which have a deadline.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::Sleep;

/// Time for a request's body, from its head on. Below the time that a request has: a slow body is the client's fault,
/// and is told so.
const BODY_TIMEOUT: Duration = Duration::from_secs(4);

/// A body did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not come within {} s", BODY_TIMEOUT.as_secs())]
pub(in crate::server) struct SlowBody;

/// Whether a body was refused for its slowness.
pub(in crate::server) fn is_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<SlowBody>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// A request's body with a deadline.
pub(super) struct TimedBody {
    body: Incoming,
    /// Made when the body is first waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    pub(super) const fn new(body: Incoming) -> Self {
        Self { body, deadline: None }
    }
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
        deadline.as_mut().poll(context).map(|()| Some(Err(SlowBody.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
