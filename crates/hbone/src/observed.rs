//! A stream whose reader is observed: what has come is shown in passing to somebody, who may make an error of it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Is shown what has come on a stream.
pub trait Observer {
    /// The next bytes; none: its end.
    ///
    /// # Errors
    /// Whoever reads gets it in their place.
    fn observe(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// A stream, and who is shown what comes on it.
pub struct Observed<S, O> {
    stream: S,
    observer: O,
}

impl<S, O> Observed<S, O> {
    /// A stream of which nothing has been read.
    pub fn by(observer: O, stream: S) -> Self {
        Self { stream, observer }
    }
}

impl<S: AsyncRead + Unpin, O: Observer + Unpin> AsyncRead for Observed<S, O> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        // Without room nothing was asked for, and nothing is no end.
        Poll::Ready(if room == 0 { Ok(()) } else { self.observer.observe(&buf.filled()[before..]) })
    }
}

impl<S: AsyncWrite + Unpin, O: Unpin> AsyncWrite for Observed<S, O> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Keeps what it is shown, and takes an `x` for an error.
    #[derive(Default)]
    struct Kept(Vec<Vec<u8>>);

    impl Observer for Kept {
        fn observe(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.push(bytes.to_vec());
            if bytes.contains(&b'x') { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn all_that_comes_is_shown_once_and_may_be_an_error() {
        let (mut peer, stream) = tokio::io::duplex(64);
        let mut observed = Observed::by(Kept::default(), stream);
        peer.write_all(b"first").await.unwrap();
        let mut room = [0; 16];
        assert_eq!(observed.read(&mut []).await.unwrap(), 0);
        assert!(observed.observer.0.is_empty(), "nothing was asked for");
        assert_eq!(observed.read(&mut room[..2]).await.unwrap(), 2);
        assert_eq!(observed.read(&mut room).await.unwrap(), 3);
        peer.write_all(b"x").await.unwrap();
        assert_eq!(observed.read(&mut room).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        observed.write_all(b"answer").await.unwrap();
        assert_eq!(peer.read(&mut room).await.unwrap(), 6);
        drop(peer);
        assert_eq!(observed.read(&mut room).await.unwrap(), 0);
        let shown: Vec<&[u8]> = observed.observer.0.iter().map(Vec::as_slice).collect();
        assert_eq!(shown, [&b"fi"[..], b"rst", b"x", b""]);
    }
}
