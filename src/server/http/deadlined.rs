//! A socket whose other end has to read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::server::min_rate::MinRate;

/// A socket that fails when what is written to it is taken too slowly.
pub(in crate::server) struct Deadlined<T> {
    inner: T,
    rate: MinRate,
}

impl<T> Deadlined<T> {
    /// One that may take nothing for a time.
    pub(in crate::server) fn new(inner: T, stall_max: Duration) -> Self {
        Self { inner, rate: MinRate::new(stall_max) }
    }

    /// Passes progress on; without it, fails once the other end has stalled for too long.
    fn or_too_slow<R>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<R>>,
        bytes: impl FnOnce(&R) -> usize,
    ) -> Poll<io::Result<R>> {
        if let Poll::Ready(result) = &progress {
            self.rate.took(result.as_ref().map_or(0, bytes));
            return progress;
        }
        self.rate.poll_too_slow(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Deadlined<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.or_too_slow(context, progress, |written| *written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_write_vectored(context, bytes);
        this.or_too_slow(context, progress, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_flush(context);
        this.or_too_slow(context, progress, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.inner).poll_shutdown(context);
        this.or_too_slow(context, progress, |()| 0)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Deadlined<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, into)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::runtime::clock;

    const STALL_MAX: Duration = Duration::from_secs(10);

    /// Seconds until an answer is written, or until it failed, to a reader that takes some bytes at a time.
    async fn written(bytes: usize, taken: usize, every: Duration) -> (u64, io::Result<()>) {
        let (near, mut far) = tokio::io::duplex(100);
        let (mut near, begun) = (Deadlined::new(near, STALL_MAX), clock::instant());
        let answer = vec![7; bytes];
        let read = async {
            let mut part = vec![0; taken];
            loop {
                tokio::time::sleep(every).await;
                if far.read(&mut part).await.is_err() {
                    return;
                }
            }
        };
        let result = tokio::select! {
            result = near.write_all(&answer) => result,
            () = read => Err(io::ErrorKind::BrokenPipe.into()),
        };
        ((clock::instant() - begun).as_secs(), result)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_or_trickles_is_given_up_and_one_that_is_slow_is_not() {
        for (taken, every) in [(1, Duration::from_hours(1)), (1, Duration::from_secs(1)), (100, Duration::from_secs(1))]
        {
            let (seconds, result) = written(1 << 20, taken, every).await;
            assert_eq!(result.expect_err("too slow").kind(), io::ErrorKind::TimedOut);
            assert!((10..12).contains(&seconds), "{taken} bytes every {every:?}: {seconds} s");
        }
        // A short answer may take its time, a long one as long as its size is worth.
        written(400, 100, Duration::from_secs(2)).await.1.expect("within the time");
        let (_, result) = written(1 << 20, 100, Duration::from_millis(10)).await;
        result.expect("more than the lowest rate");
    }
}
