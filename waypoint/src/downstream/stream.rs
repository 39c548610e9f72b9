//! A CONNECT as a byte stream, or a socket: what HTTP is spoken on. Bytes that were looked at come first again.
//!
//! A stream that has sent its end is not dropped before the peer has sent its own: HTTP/2 would reset it, and the peer might
//! never see the last bytes. It lingers instead, in a task of the worker's.

use crate::downstream::continued::{Next, Resume, Tunnel};
use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use karst_rt::{socket, turns};
use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, Sleep, sleep},
};

/// A byte stream.
pub struct Io {
    leg: Leg,
    /// To be read before anything else.
    ahead: Bytes,
    /// Our end has been sent, and the peer's has come.
    closed: bool,
    ended: bool,
}

enum Leg {
    Tunnel(Option<Tunnel>, Lingering),
    Socket(TcpStream, Option<Box<Watch>>),
    Tls(Box<tokio_rustls::client::TlsStream<Io>>),
    #[cfg(any(test, feature = "fuzz"))]
    Memory(tokio::io::DuplexStream),
}

/// Looks from time to time whether the host at the other end is still there, while something is waited for.
struct Watch {
    next: Pin<Box<Sleep>>,
}

/// Between two looks.
const LOOK: Duration = Duration::from_secs(3);

impl Watch {
    fn begin() -> Self {
        Self { next: Box::pin(sleep(LOOK)) }
    }

    /// Ready once the host is gone.
    fn poll_lost(&mut self, s: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.next.as_mut().poll(cx));
            if socket::is_lost(s) {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the host does not acknowledge any more"));
            }
            self.next.as_mut().reset(Instant::now() + LOOK);
        }
    }
}

/// Where streams go that have sent their end.
pub type Lingering = mpsc::UnboundedSender<Tunnel>;
/// A peer that does not end its side is waited for this long.
const LINGER: Duration = Duration::from_secs(10);

/// Keeps streams until their peers have ended, too. Runs in a `LocalSet`.
pub async fn linger(mut streams: mpsc::UnboundedReceiver<Tunnel>) {
    while let Some(mut t) = streams.recv().await {
        tokio::task::spawn_local(async move {
            let rest = async {
                while let Ok(Some(b)) = poll_fn(|cx| t.poll_data(cx)).await {
                    let _ = t.release(b.len());
                }
            };
            let _ = tokio::time::timeout(LINGER, rest).await;
        });
    }
}

impl Io {
    fn new(leg: Leg) -> Self {
        Self { leg, ahead: Bytes::new(), closed: false, ended: false }
    }

    /// A stream of a tunnel.
    pub fn tunnel(send: SendStream<Bytes>, recv: RecvStream, lingering: Lingering) -> Self {
        Self::new(Leg::Tunnel(Some(Tunnel::new(send, recv)), lingering))
    }

    /// A stream of a tunnel that goes on in another one when the process at its other side is replaced. `client`: this side has opened
    /// it.
    pub fn continuing(first: Next, client: bool, resume: Box<dyn Resume>, lingering: Lingering) -> Self {
        Self::new(Leg::Tunnel(Some(Tunnel::continuing(first, client, resume)), lingering))
    }

    /// A socket.
    pub fn socket(s: TcpStream) -> Self {
        Self::new(Leg::Socket(s, None))
    }

    /// A socket towards an endpoint. Reading it ends with an error when its host is gone without a word.
    pub fn watched(s: TcpStream) -> Self {
        Self::new(Leg::Socket(s, Some(Box::new(Watch::begin()))))
    }

    /// One of these with TLS of ours on it.
    pub fn tls(s: tokio_rustls::client::TlsStream<Io>) -> Self {
        Self::new(Leg::Tls(Box::new(s)))
    }

    /// A stream in memory.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn memory(s: tokio::io::DuplexStream) -> Self {
        Self::new(Leg::Memory(s))
    }

    /// Puts bytes in front of what is read next.
    pub fn unread(&mut self, b: Bytes) {
        self.ahead = if self.ahead.is_empty() { b } else { [&b[..], &self.ahead[..]].concat().into() };
    }
}

/// What can be broken off, so that the peer does not take it for an end.
pub trait Reset {
    /// Ends both directions with an error.
    fn reset(&mut self);
}

impl Reset for tokio_rustls::server::TlsStream<Io> {
    fn reset(&mut self) {
        self.get_mut().0.reset();
    }
}

impl Reset for Io {
    fn reset(&mut self) {
        match &mut self.leg {
            Leg::Tunnel(t, _) => {
                if let Some(mut t) = t.take() {
                    t.reset();
                }
            }
            Leg::Socket(s, _) => socket::reset_on_close(s),
            Leg::Tls(t) => t.get_mut().0.reset(),
            #[cfg(any(test, feature = "fuzz"))]
            Leg::Memory(_) => {}
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let Leg::Tunnel(tunnel, lingering) = &mut self.leg
            && self.closed
            && !self.ended
            && let Some(tunnel) = tunnel.take()
        {
            let _ = lingering.send(tunnel);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            match &mut this.leg {
                Leg::Socket(s, watch) => {
                    let before = buf.filled().len();
                    let result = Pin::new(&mut *s).poll_read(cx, buf);
                    turns::spend(buf.filled().len() - before);
                    return match watch {
                        Some(watch) if result.is_pending() => watch.poll_lost(s, cx).map(Err),
                        Some(_) | None => result,
                    };
                }
                Leg::Tls(t) => return Pin::new(&mut **t).poll_read(cx, buf),
                #[cfg(any(test, feature = "fuzz"))]
                Leg::Memory(s) => return Pin::new(s).poll_read(cx, buf),
                Leg::Tunnel(None, _) => return Poll::Ready(Ok(())),
                Leg::Tunnel(Some(tunnel), _) => match ready!(tunnel.poll_data(cx))? {
                    None => {
                        this.ended = true;
                        return Poll::Ready(Ok(()));
                    }
                    Some(b) => {
                        // They are ours now: the peer may send as many more. At most one frame is held here.
                        tunnel.release(b.len())?;
                        this.ahead = b;
                    }
                },
            }
            if this.ahead.is_empty() {
                // An empty frame is no end.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let n = this.ahead.len().min(buf.remaining());
        turns::spend(n);
        buf.put_slice(&this.ahead[..n]);
        this.ahead.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.leg {
            Leg::Socket(s, _) => Pin::new(s).poll_write_vectored(cx, bufs).map_ok(|n| {
                turns::spend(n);
                n
            }),
            Leg::Tls(t) => Pin::new(&mut **t).poll_write_vectored(cx, bufs),
            #[cfg(any(test, feature = "fuzz"))]
            Leg::Memory(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Leg::Tunnel(Some(tunnel), _) => tunnel.poll_write(cx, bufs),
            Leg::Tunnel(None, _) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.leg {
            Leg::Socket(s, _) => Pin::new(s).poll_flush(cx),
            Leg::Tls(t) => Pin::new(&mut **t).poll_flush(cx),
            #[cfg(any(test, feature = "fuzz"))]
            Leg::Memory(s) => Pin::new(s).poll_flush(cx),
            // The tunnel's task sends.
            Leg::Tunnel(..) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match &mut this.leg {
            Leg::Socket(s, _) => Pin::new(s).poll_shutdown(cx),
            Leg::Tls(t) => Pin::new(&mut **t).poll_shutdown(cx),
            #[cfg(any(test, feature = "fuzz"))]
            Leg::Memory(s) => Pin::new(s).poll_shutdown(cx),
            Leg::Tunnel(tunnel, _) => {
                if let Some(tunnel) = tunnel
                    && !std::mem::replace(&mut this.closed, true)
                {
                    tunnel.end();
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}
