//! One side of a connection that has changed its protocol. hyper reads a stream of HTTP/2 that was reset as one that has ended, and what
//! it is joined to would stay open for as long as the other side likes; the half that writes knows of the reset.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One side.
pub(super) struct Side {
    io: TokioIo<Upgraded>,
    /// It has ended, and hyper's task that writes has had its turn since.
    has_waited: bool,
}

impl Side {
    pub(super) fn new(io: Upgraded) -> Self {
        Self { io: TokioIo::new(io), has_waited: false }
    }

    /// It seems to have ended: an end, or an error if it was broken off.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.has_waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Err(broken)) => Poll::Ready(Err(broken)),
            // What is still to be written will tell.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Side {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if room == 0 || buf.filled().len() > before { Poll::Ready(Ok(())) } else { self.poll_end(cx) }
    }
}

impl AsyncWrite for Side {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
