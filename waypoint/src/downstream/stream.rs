//! A CONNECT as a byte stream, or a socket: what HTTP is spoken on. Bytes that were looked at come first again.
//!
//! A stream that has sent its end is not dropped before the peer has sent its own: HTTP/2 would reset it, and the peer might
//! never see the last bytes. It lingers instead, in a task of the worker's.

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use karst_rt::turns;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::mpsc,
};

/// Most bytes that one write takes.
const WRITE: usize = 64 << 10;

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
    Socket(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<Io>>),
    #[cfg(any(test, feature = "fuzz"))]
    Memory(tokio::io::DuplexStream),
}

/// The two directions of a CONNECT.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
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
                while let Some(Ok(b)) = t.recv.data().await {
                    let _ = t.recv.flow_control().release_capacity(b.len());
                }
            };
            let _ = tokio::time::timeout(LINGER, rest).await;
        });
    }
}

fn broken(e: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, e.to_string())
}

impl Io {
    /// A stream of a tunnel.
    pub fn tunnel(send: SendStream<Bytes>, recv: RecvStream, lingering: Lingering) -> Self {
        let leg = Leg::Tunnel(Some(Tunnel { send, recv }), lingering);
        Self { leg, ahead: Bytes::new(), closed: false, ended: false }
    }

    /// A socket.
    pub fn socket(s: TcpStream) -> Self {
        Self { leg: Leg::Socket(s), ahead: Bytes::new(), closed: false, ended: false }
    }

    /// One of these with TLS of ours on it.
    pub fn tls(s: tokio_rustls::client::TlsStream<Io>) -> Self {
        Self { leg: Leg::Tls(Box::new(s)), ahead: Bytes::new(), closed: false, ended: false }
    }

    /// A stream in memory.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn memory(s: tokio::io::DuplexStream) -> Self {
        Self { leg: Leg::Memory(s), ahead: Bytes::new(), closed: false, ended: false }
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
                    t.send.send_reset(h2::Reason::CANCEL);
                }
            }
            Leg::Socket(s) => karst_rt::socket::reset_on_close(s),
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
                Leg::Socket(s) => {
                    let before = buf.filled().len();
                    let result = Pin::new(s).poll_read(cx, buf);
                    turns::spend(buf.filled().len() - before);
                    return result;
                }
                Leg::Tls(t) => return Pin::new(&mut **t).poll_read(cx, buf),
                #[cfg(any(test, feature = "fuzz"))]
                Leg::Memory(s) => return Pin::new(s).poll_read(cx, buf),
                Leg::Tunnel(None, _) => return Poll::Ready(Ok(())),
                Leg::Tunnel(Some(tunnel), _) => match ready!(tunnel.recv.poll_data(cx)) {
                    None => {
                        this.ended = true;
                        return Poll::Ready(Ok(()));
                    }
                    Some(Err(e)) => return Poll::Ready(Err(broken(e))),
                    Some(Ok(b)) => {
                        // They are ours now: the peer may send as many more. At most one frame is held here.
                        tunnel.recv.flow_control().release_capacity(b.len()).map_err(broken)?;
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
        let tunnel = match &mut self.leg {
            Leg::Socket(s) => {
                return Pin::new(s).poll_write_vectored(cx, bufs).map_ok(|n| {
                    turns::spend(n);
                    n
                });
            }
            Leg::Tls(t) => return Pin::new(&mut **t).poll_write_vectored(cx, bufs),
            #[cfg(any(test, feature = "fuzz"))]
            Leg::Memory(s) => return Pin::new(s).poll_write_vectored(cx, bufs),
            Leg::Tunnel(Some(tunnel), _) => tunnel,
            Leg::Tunnel(None, _) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let all: usize = bufs.iter().map(|b| b.len()).sum();
        if all == 0 {
            return Poll::Ready(Ok(0));
        }
        tunnel.send.reserve_capacity(all.min(WRITE));
        let room = match ready!(tunnel.send.poll_capacity(cx)) {
            Some(Ok(0)) => return Poll::Pending,
            Some(Ok(n)) => n.min(all).min(WRITE),
            Some(Err(e)) => return Poll::Ready(Err(broken(e))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let mut out = Vec::with_capacity(room);
        for b in bufs {
            out.extend_from_slice(&b[..b.len().min(room - out.len())]);
        }
        tunnel.send.send_data(out.into(), false).map_err(broken)?;
        turns::spend(room);
        Poll::Ready(Ok(room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.leg {
            Leg::Socket(s) => Pin::new(s).poll_flush(cx),
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
            Leg::Socket(s) => Pin::new(s).poll_shutdown(cx),
            Leg::Tls(t) => Pin::new(&mut **t).poll_shutdown(cx),
            #[cfg(any(test, feature = "fuzz"))]
            Leg::Memory(s) => Pin::new(s).poll_shutdown(cx),
            Leg::Tunnel(tunnel, _) => {
                if let Some(tunnel) = tunnel
                    && !std::mem::replace(&mut this.closed, true)
                {
                    // A peer that has gone needs no end.
                    let _ = tunnel.send.send_data(Bytes::new(), true);
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}
