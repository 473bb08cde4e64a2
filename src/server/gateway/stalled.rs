//! Answers of servers that stop in the middle: a server that hangs while it writes an answer would hold its client for as
//! long as that waits.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;

use crate::telemetry::{Counter, Metrics};

/// Longest that a server may send nothing of an answer that it has begun. What it waits for itself it waits for before its
/// answer begins. Source: invariant I9, 5 s, twice.
const STALL_MAX: Duration = Duration::from_secs(10);

/// A server sent a part of its answer only.
#[derive(Debug, thiserror::Error)]
#[error("nothing of the answer came for {} s", STALL_MAX.as_secs())]
pub(super) struct Stalled;

/// The body of a server's answer; it fails when nothing of it comes for too long, however large it is.
pub(super) struct AnswerBody<B> {
    body: B,
    server: SocketAddr,
    metrics: Arc<Metrics>,
    /// Runs while the next part is waited for.
    end: Option<Pin<Box<Sleep>>>,
}

impl<B> AnswerBody<B> {
    /// What a server answers.
    pub(super) const fn new(body: B, server: SocketAddr, metrics: Arc<Metrics>) -> Self {
        Self { body, server, metrics, end: None }
    }
}

impl<B> HttpBody for AnswerBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        // First what has come: a client that takes its time is not the server's stall.
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.end = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let end = this.end.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_MAX)));
        end.as_mut().poll(context).map(|()| {
            this.metrics.count(Counter::PeerFailures);
            tracing::warn!(server = %this.server, "a server stopped in the middle of its answer");
            Some(Err(Stalled.into()))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use futures_util::StreamExt;
    use http_body_util::BodyExt;

    use super::*;
    use crate::telemetry::Registry;

    /// The body of an answer whose parts come one by one.
    fn answer(parts: usize, every: Duration) -> (AnswerBody<Body>, Arc<Metrics>) {
        let metrics = Registry::default().register("gateway", "gateway-1");
        let parts = futures_util::stream::iter(0..parts).then(move |_| async move {
            tokio::time::sleep(every).await;
            Ok::<_, Infallible>(Bytes::from_static(b"part"))
        });
        let server = SocketAddr::from(([127, 0, 0, 1], 1));
        (AnswerBody::new(Body::from_stream(parts), server, Arc::clone(&metrics)), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_which_nothing_comes_fails_and_one_that_goes_on_does_not() {
        let (body, metrics) = answer(100, STALL_MAX * 9 / 10);
        assert_eq!(body.collect().await.expect("it goes on").to_bytes().len(), 400);
        assert_eq!(metrics.counted(Counter::PeerFailures), 0);
        let (body, metrics) = answer(1, STALL_MAX * 1_000);
        let error = body.collect().await.expect_err("nothing comes");
        assert!(error.is::<Stalled>(), "{error}");
        assert_eq!(metrics.counted(Counter::PeerFailures), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_its_client_does_not_take_is_no_stall() {
        let (mut body, _) = answer(1, STALL_MAX / 2);
        // Asked for, and then not taken for long.
        let first = tokio::time::timeout(STALL_MAX / 4, body.frame()).await;
        assert!(first.is_err(), "it has not come yet");
        tokio::time::sleep(STALL_MAX * 10).await;
        body.frame().await.expect("it is there").expect("has come");
    }
}
