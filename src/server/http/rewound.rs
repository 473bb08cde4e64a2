//! A socket of which the beginning was read already.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

/// Gives the beginning once more, and then what comes. What was given is not kept: a connection may idle for long.
pub(super) struct Rewound<T> {
    begun: Bytes,
    inner: T,
}

impl<T> Rewound<T> {
    pub(super) const fn new(begun: Bytes, inner: T) -> Self {
        Self { begun, inner }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.begun.is_empty() {
            return Pin::new(&mut this.inner).poll_read(context, into);
        }
        let given = this.begun.split_to(this.begun.len().min(into.remaining()));
        into.put_slice(&given);
        if this.begun.is_empty() {
            this.begun = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;

    use super::*;

    struct Shared(Arc<[u8]>);

    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    #[tokio::test]
    async fn the_beginning_comes_first_and_is_not_kept() {
        let begun: Arc<[u8]> = Arc::from(&b"GET / HT"[..]);
        let mut socket = Rewound::new(Bytes::from_owner(Shared(Arc::clone(&begun))), &b"TP/1.1"[..]);
        let mut read = [0; 5];
        socket.read_exact(&mut read).await.expect("reads");
        assert_eq!((&read, Arc::strong_count(&begun)), (b"GET /", 2));
        socket.read_exact(&mut read).await.expect("reads");
        assert_eq!((&read, Arc::strong_count(&begun)), (b" HTTP", 1));
        let mut rest = String::new();
        socket.read_to_string(&mut rest).await.expect("reads");
        assert_eq!(rest, "/1.1");
    }
}
