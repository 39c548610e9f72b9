//! The two directions of a CONNECT. Where its peer knows of continuation (docs/hbone.md §10) and its process is replaced, they go on in
//! another stream: who reads and writes here sees nothing of that but a pause. This process never leaves itself: it follows.
//!
//! What must always hold: all that the peer has sent in a stream is read before the next one, all that was written is in HTTP/2's hands
//! before our half of it ends, and what has ended stays ended. If there is no next stream, that is an error and no end. Proven by the
//! tests of `continued` and `continuation`.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use karst_hbone::{
    continuation::{self, End, Half, Said, Sides, Token},
    parking::{Bound, Parking},
};
use karst_rt::turns;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker, ready},
};
use tokio::sync::oneshot;

/// Most bytes that one write takes.
const WRITE: usize = 64 << 10;

/// A stream with which a connection goes on.
pub struct Next {
    pub send: SendStream<Bytes>,
    pub recv: RecvStream,
    /// Its place on its tunnel, given back when dropped.
    pub held: Box<dyn Send>,
}

/// Where a stream is given to the connection that waits for it.
pub type Place = oneshot::Sender<Next>;
/// The stream with which a connection goes on, once it is there. None: there is none, and will be none.
pub type NextStream = Pin<Box<dyn Future<Output = Option<Next>> + Send>>;

/// How a connection comes to its next stream.
pub trait Resume: Send {
    /// The one that shows this token.
    fn next(&self, token: Token) -> NextStream;
}

/// Its client opens the next stream: the connection waits for that.
pub struct Waits {
    pub parking: Parking<Place>,
    /// Who may open it, and what for.
    pub bound: Bound,
}

impl Resume for Waits {
    fn next(&self, token: Token) -> NextStream {
        let (parking, bound) = (self.parking.clone(), self.bound.clone());
        Box::pin(async move {
            let (place, arrives) = oneshot::channel();
            parking.park(token, bound, place).await;
            arrives.await.ok()
        })
    }
}

/// The two directions of a CONNECT.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// None: one of the sides does not know of continuation.
    continues: Option<Box<Continues>>,
}

struct Continues {
    sides: Sides,
    at: At,
    resume: Box<dyn Resume>,
    /// Our end is said in each stream from now on.
    ends: bool,
    waiting: Waiting,
    /// See [`Next::held`].
    held: Box<dyn Send>,
}

enum At {
    /// In a stream.
    Stream,
    /// Between two.
    Between(NextStream),
    /// There was no next one.
    Lost,
}

/// Who waits for the next stream. They may be two tasks, and both have to hear of it.
#[derive(Clone, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        [&self.reader, &self.writer].into_iter().flatten().for_each(Waker::wake_by_ref);
    }
}

#[derive(Clone, Copy)]
enum Side {
    Reads,
    Writes,
}

fn broken(e: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, e.to_string())
}

fn lost() -> io::Error {
    let text = "the peer was replaced, and the stream with which its connection was to go on has not come";
    io::Error::new(io::ErrorKind::ConnectionReset, text)
}

impl Tunnel {
    /// Of one stream, whatever its trailers say.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, continues: None }
    }

    /// Of a stream whose sides both know of continuation. `client`: this one has opened it.
    pub fn continuing(Next { send, recv, held }: Next, client: bool, resume: Box<dyn Resume>) -> Self {
        let (sides, waiting) = (Sides::new(client), Waiting::default());
        let continues = Continues { sides, at: At::Stream, resume, ends: false, waiting, held };
        Self { send, recv, continues: Some(Box::new(continues)) }
    }

    /// The next bytes; None at an orderly end. [`Tunnel::release`] says that they were taken.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            ready!(self.poll_stream(cx, Side::Reads))?;
            if let Some(data) = ready!(self.recv.poll_data(cx)) {
                return Poll::Ready(data.map(Some).map_err(broken));
            }
            match ready!(self.poll_half(cx))? {
                Half::Continued(token) => self.interrupted(token)?,
                Half::Open | Half::Ended => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// The peer may send so many bytes more.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn release(&mut self, count: usize) -> io::Result<()> {
        self.recv.flow_control().release_capacity(count).map_err(broken)
    }

    /// Writes what there is room for.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all: usize = bufs.iter().map(|b| b.len()).sum();
        if all == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_stream(cx, Side::Writes))?;
        self.send.reserve_capacity(all.min(WRITE));
        let room = match self.send.poll_capacity(cx) {
            Poll::Pending | Poll::Ready(Some(Ok(0))) => {
                // The stream may come to its end meanwhile.
                self.waits(cx, Side::Writes);
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(room))) => room.min(all).min(WRITE),
            Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(broken(e))),
            Poll::Ready(None) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let mut out = Vec::with_capacity(room);
        for b in bufs {
            out.extend_from_slice(&b[..b.len().min(room - out.len())]);
        }
        self.send.send_data(out.into(), false).map_err(broken)?;
        turns::spend(room);
        Poll::Ready(Ok(room))
    }

    /// Says that nothing more is written.
    pub fn end(&mut self) {
        if let Some(continues) = &mut self.continues {
            continues.ends = true;
            if !matches!(continues.at, At::Stream) {
                // The next stream begins with it.
                return;
            }
            continues.sides.close(Half::Ended);
        }
        // A peer that has gone needs no end.
        let _ = self.send.send_data(Bytes::new(), true);
    }

    /// Breaks it off.
    pub fn reset(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }

    /// How the peer's half has ended, once there is no more data.
    fn poll_half(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Half>> {
        if self.continues.is_none() {
            return Poll::Ready(Ok(Half::Ended));
        }
        let trailers = ready!(self.recv.poll_trailers(cx)).map_err(broken)?;
        Poll::Ready(Ok(match trailers.as_ref().map(continuation::said) {
            Some(Said::Token(token)) => Half::Continued(token),
            Some(Said::Knows | Said::Nothing) | None => Half::Ended,
        }))
    }

    /// The peer's half goes on in another stream, and so does ours.
    fn interrupted(&mut self, token: Token) -> io::Result<()> {
        let Some(continues) = &mut self.continues else { return Ok(()) };
        if let Some(answer) = continues.sides.closed(Half::Continued(token)) {
            // What is in HTTP/2's hands has the peer's window, so nothing is in the way of this.
            self.send.reserve_capacity(0);
            let mut trailers = HeaderMap::with_capacity(1);
            continuation::name(&mut trailers, &answer);
            self.send.send_trailers(trailers).map_err(broken)?;
            continues.sides.close(Half::Continued(answer));
        }
        continues.at = match continues.sides.end() {
            Some(End::Continues(token)) => At::Between(continues.resume.next(token)),
            // None of ours outlives a tunnel that breaks.
            Some(End::Over | End::Breaks(_)) | None => At::Lost,
        };
        // It waits for the next stream from now on, and not for room in this one.
        if let Some(writer) = continues.waiting.writer.take() {
            writer.wake();
        }
        Ok(())
    }

    /// Waits for the next stream, if there is none at the moment.
    fn poll_stream(&mut self, cx: &mut Context<'_>, side: Side) -> Poll<io::Result<()>> {
        match self.continues.as_ref().map(|continues| &continues.at) {
            None | Some(At::Stream) => return Poll::Ready(Ok(())),
            Some(At::Lost) => return Poll::Ready(Err(lost())),
            Some(At::Between(_)) => self.waits(cx, side),
        }
        let Some(continues) = &mut self.continues else { return Poll::Ready(Ok(())) };
        let At::Between(next) = &mut continues.at else { return Poll::Ready(Ok(())) };
        let waiting = Waker::from(Arc::new(continues.waiting.clone()));
        let next = ready!(next.as_mut().poll(&mut Context::from_waker(&waiting)));
        continues.waiting = Waiting::default();
        // The other side, if it is another task.
        waiting.wake();
        let Some(Next { send, recv, held }) = next else {
            continues.at = At::Lost;
            return Poll::Ready(Err(lost()));
        };
        (self.send, self.recv) = (send, recv);
        (continues.held, continues.at, continues.sides) = (held, At::Stream, continues.sides.next());
        if continues.ends {
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
            continues.sides.close(Half::Ended);
        }
        Poll::Ready(Ok(()))
    }

    /// Whom to wake when there is another stream.
    fn waits(&mut self, cx: &Context<'_>, side: Side) {
        let Some(continues) = &mut self.continues else { return };
        let who = match side {
            Side::Reads => &mut continues.waiting.reader,
            Side::Writes => &mut continues.waiting.writer,
        };
        if !who.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *who = Some(cx.waker().clone());
        }
    }
}

#[cfg(test)]
mod tests;
