//! The bytes of a connection that is carried as it is, counted while they pass: what is seen of it does not wait for its end.

use karst_proxy::traffic::Traffic;
use std::{
    cell::{Cell, OnceCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes there were so far.
#[derive(Default)]
pub struct Carried {
    /// From the client.
    pub received: Rc<Cell<u64>>,
    /// To the client.
    pub sent: Cell<u64>,
    /// Where they are counted, once the connection to an endpoint has come about.
    pub series: OnceCell<Arc<Traffic>>,
}

impl Carried {
    /// So many have come from the client.
    pub fn receive(&self, n: u64) {
        self.received.set(self.received.get() + n);
        if let Some(s) = self.series.get() {
            s.received.fetch_add(n, Relaxed);
        }
    }

    /// So many have gone to the client.
    pub fn send(&self, n: u64) {
        self.sent.set(self.sent.get() + n);
        if let Some(s) = self.series.get() {
            s.sent.fetch_add(n, Relaxed);
        }
    }
}

/// A client's stream whose bytes are counted.
pub struct Metered<I> {
    /// The stream.
    pub io: I,
    carried: Rc<Carried>,
}

impl<I> Metered<I> {
    /// Counts here.
    pub fn new(io: I, carried: Rc<Carried>) -> Self {
        Self { io, carried }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Metered<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.carried.receive((buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Metered<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.carried.send(n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        self.carried.send(n as u64);
        Poll::Ready(Ok(n))
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
