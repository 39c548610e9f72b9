//! A socket and a stream of a tunnel, between which bytes are carried.
//!
//! It may be carried in several stretches, and go on in another stream and another process (docs/hbone.md §10). What must always
//! hold: a side that leaves has sent all that it has read, and has got all that the other side has read, before the connection goes
//! on elsewhere; so nothing is on its way then, and nothing can be lost or sent twice. Where both sides have agreed on it, a connection
//! also goes on when its tunnel breaks ([`super::outlive`]): then both say how far they have come, and what was on its way is sent again.

use super::{
    CHUNK, Counts, Left, Leg, Looking, Way, both, end,
    outlive::{Outlives, Reached},
    poll_bytes, taken_over,
};
use crate::{
    continuation::{self, End, Half, Said, Sides, Token},
    lasting::{Joint, Line},
};
use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use karst_rt::{survive::table::Region, turns};
use std::{
    cell::Cell,
    collections::VecDeque,
    future::poll_fn,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::{
    io::AsyncWrite,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

/// Largest DATA frame that we send, in bytes. The receiver collects a frame before it passes any of it on.
const FRAME: usize = 256 << 10;
/// Frames of a stream that are waiting go to the application in one write of about this much, and of this many pieces.
const GATHER: usize = 256 << 10;
const PIECES: usize = 16;
/// Frames that wait for an application that takes nothing are put together up to so many bytes.
const JOINED: usize = 16 << 10;

/// Carries a socket's bytes over a stream and back, until both directions have ended. `client` says that the socket is the
/// side that opened the connection.
///
/// # Errors
/// If a leg broke; the other has then been reset.
pub async fn tunnel(
    tcp: TcpStream,
    send: SendStream<Bytes>,
    recv: RecvStream,
    counts: &Counts,
    client: bool,
) -> io::Result<()> {
    Tunnel::new(tcp, (send, recv), client, false).carry(counts).await.map(|_| ())
}

/// A socket and a stream.
pub struct Tunnel {
    /// It goes on if its tunnel breaks. The first field: what is closed is in no table any more.
    outlives: Option<Box<Outlives>>,
    leg: Leg,
    send: SendStream<Bytes>,
    recv: RecvStream,
    client: bool,
    sides: Cell<Sides>,
    /// Both sides know of continuation.
    continues: bool,
    /// Our half is to be closed with this.
    asked: Cell<Option<Token>>,
    /// We leave: what comes is taken in even while the application takes nothing.
    leaves: bool,
    down: Down,
}

/// From the stream to the socket: what outlives the task that carries it.
#[derive(Default)]
struct Down {
    /// Received, and not taken by the socket yet; in this order.
    first: Bytes,
    more: Pieces,
    /// All of that is to be shown when its write has been tried.
    unseen: bool,
    /// Bytes for which the peer gets window when all of these are written.
    unreleased: usize,
    /// Nothing more comes.
    complete: bool,
    /// The socket has heard of the peer's end.
    passed: bool,
    /// Where the other side hears of what the socket has taken, if the connection outlives its tunnel.
    line: Option<Rc<Line>>,
}

/// A connection on its way to another stream, and perhaps another process.
#[derive(Debug)]
pub struct Interrupted {
    /// The application's socket.
    pub socket: OwnedFd,
    /// Is the application the side that has opened the connection?
    pub client: bool,
    /// The application has ended, and the other side has heard of it.
    pub ended: bool,
    /// To the application: what it has not taken yet, and whether it has heard of the other side's end.
    pub down: Left,
    /// Its tunnel has broken: how far it has come. None: its stream has come to an orderly end, and nothing is on its way.
    pub reached: Option<Reached>,
}

impl Tunnel {
    /// Of a socket and a stream of which nothing has been carried. `continues`: both sides know of continuation.
    pub fn new(tcp: TcpStream, (send, recv): (SendStream<Bytes>, RecvStream), client: bool, continues: bool) -> Self {
        Self {
            outlives: None,
            leg: Leg::new(tcp),
            send,
            recv,
            client,
            sides: Cell::new(Sides::new(client)),
            continues,
            asked: Cell::new(None),
            leaves: false,
            down: Down::default(),
        }
    }

    /// It is to go on if its tunnel breaks, as both sides have agreed. Before anything is carried; so many bytes of the application's were
    /// taken and sent before.
    ///
    /// # Errors
    /// The kernel cannot look ahead in the socket.
    pub fn outlive(&mut self, joint: Joint, already: u64) -> io::Result<()> {
        self.down.line = Some(joint.line.clone());
        self.outlives = Some(Box::new(Outlives::begin(self.leg.tcp.as_fd(), joint, already)?));
        Ok(())
    }

    /// By which token it goes on if its tunnel breaks.
    pub fn token(&self) -> Option<Token> {
        self.outlives.as_ref().map(|outlives| outlives.token)
    }

    /// Has its tunnel broken?
    pub fn has_broken(&self) -> bool {
        self.outlives.as_ref().is_some_and(|outlives| outlives.broken)
    }

    /// Enters it in the table of those that outlive this process, if it outlives its tunnel. `note`: what another process is told of it.
    pub fn enter(&mut self, region: &Rc<Region>, note: &[u8]) {
        if let Some(outlives) = &mut self.outlives {
            outlives.enter(self.leg.tcp.as_fd(), region, self.down.passed, note);
        }
    }

    /// Goes on with an interrupted connection in a new stream.
    ///
    /// # Errors
    /// The runtime cannot take the socket, or the stream has ended again.
    pub fn resume(from: Interrupted, (mut send, recv): (SendStream<Bytes>, RecvStream)) -> io::Result<Self> {
        let leg = Leg::new(taken_over(from.socket)?);
        let mut sides = Sides::new(from.client);
        if from.ended {
            // The peer has heard of it; in this stream it is said once more.
            send.send_data(Bytes::new(), true).map_err(broken)?;
            sides.close(Half::Ended);
        }
        if from.down.ended {
            sides.closed(Half::Ended);
        }
        let down = Down { first: from.down.rest, passed: from.down.ended, ..Down::default() };
        Ok(Self {
            outlives: None,
            leg,
            send,
            recv,
            client: from.client,
            sides: Cell::new(sides),
            continues: true,
            asked: Cell::new(None),
            leaves: false,
            down,
        })
    }

    /// Goes on, in a new stream, with a connection whose tunnel has broken. What the other side lacks is sent again, and so are ends.
    /// `continues`: as of [`Tunnel::new`].
    ///
    /// # Errors
    /// The runtime cannot take the socket; it has failed; or the sides do not fit together. It is reset then.
    pub fn go_on(
        from: Interrupted,
        stream: (SendStream<Bytes>, RecvStream),
        joint: Joint,
        continues: bool,
    ) -> io::Result<Self> {
        // Dropped before its end, it is reset.
        let leg = Leg::new(taken_over(from.socket)?);
        let reached = from.reached.ok_or(io::ErrorKind::InvalidInput)?;
        let line = Some(joint.line.clone());
        let outlives = Outlives::go_on(leg.tcp.as_fd(), joint, reached)?;
        let (send, recv) = stream;
        Ok(Self {
            outlives: Some(Box::new(outlives)),
            leg,
            send,
            recv,
            client: from.client,
            sides: Cell::new(Sides::new(from.client)),
            continues,
            asked: Cell::new(None),
            leaves: false,
            down: Down { passed: from.down.ended, line, ..Down::default() },
        })
    }

    /// Goes on in the next stream, however the one before has ended. `continues`: as of [`Tunnel::new`]; who has shown the token in a
    /// CONNECT has said by it that it knows, whatever it is configured to.
    ///
    /// # Errors
    /// Those of [`Tunnel::resume`] and [`Tunnel::go_on`]; the other side has not said how far it has come. It is reset then.
    pub fn next(
        from: Interrupted,
        stream: (SendStream<Bytes>, RecvStream),
        joint: Option<Box<Joint>>,
        continues: bool,
    ) -> io::Result<Self> {
        match (from.reached, joint) {
            (None, _) => Self::resume(from, stream),
            (Some(_), Some(joint)) => Self::go_on(from, stream, *joint, continues),
            (Some(_), None) => {
                from.reset();
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }

    /// May it go on in another process? Not if our half has ended: then nothing can be said in it any more.
    pub fn may_leave(&self) -> bool {
        self.continues && self.sides.get().sent() == Half::Open
    }

    /// From the next stretch on nothing is read from the application, and the stream comes to its end.
    pub fn leave(&mut self, token: Token) {
        // If the other side has left a moment before us, it is named already.
        if self.asked.get().is_none() {
            self.asked.set(Some(token));
        }
        self.leaves = true;
    }

    /// Carries until both halves of the stream are closed. It may be dropped and called again.
    ///
    /// # Errors
    /// If a leg broke; the stream has then been reset, and the socket is when this is dropped.
    pub async fn carry(&mut self, counts: &Counts) -> io::Result<End> {
        let (up, down) = match self.client {
            true => (&counts.from_client, &counts.to_client),
            false => (&counts.to_client, &counts.from_client),
        };
        let result = if self.outlives.is_some() {
            // Large, and not in the task of every connection.
            Box::pin(self.carry_outliving(up, down)).await
        } else {
            let (mut rd, mut wr) = self.leg.tcp.split();
            let talk = Talk { sides: &self.sides, asked: &self.asked, continues: self.continues };
            let upward = pin!(to_stream(&mut rd, &mut self.send, up, &talk));
            let downward = pin!(to_socket(&mut self.recv, &mut wr, down, &mut self.down, &talk, self.leaves));
            both(upward, downward).await.map(|()| None)
        };
        let ended = result.and_then(|broken| {
            broken.or_else(|| self.sides.get().end()).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
        });
        self.leg.complete = matches!(ended, Ok(End::Over));
        if ended.is_err() {
            self.send.send_reset(Reason::CANCEL);
        }
        ended
    }

    /// The same of a connection that outlives its tunnel. [`End::Breaks`]: it has broken.
    async fn carry_outliving(&mut self, up: &Way, down: &Way) -> io::Result<Option<End>> {
        let Some(outlives) = &mut self.outlives else { return Ok(None) };
        let result = {
            let (mut rd, mut wr) = self.leg.tcp.split();
            let talk = Talk { sides: &self.sides, asked: &self.asked, continues: self.continues };
            let line = outlives.line.clone();
            let upward = pin!(to_stream_kept(&mut rd, &mut self.send, up, &talk, outlives));
            let downward = pin!(to_socket(&mut self.recv, &mut wr, down, &mut self.down, &talk, self.leaves));
            let mut carried = pin!(both(upward, downward));
            // Also while nothing is waited for but an application that takes nothing: somebody asks for the connection.
            poll_fn(|cx| match carried.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => line.poll_gone(cx).map(Err),
            })
            .await
        };
        let result = match (result, self.sides.get().end()) {
            // The other side may lack something of it, and is to know that we do not.
            (Ok(()), Some(End::Over)) => poll_fn(|cx| outlives.poll_done(self.leg.tcp.as_fd(), cx)).await,
            (result, _) => result,
        };
        match result {
            Ok(()) => Ok(None),
            Err(_) if outlives.line.is_broken() => {
                outlives.broken = true;
                Ok(Some(End::Breaks(outlives.token)))
            }
            Err(e) => Err(e),
        }
    }

    /// What is needed to go on elsewhere, after [`End::Continues`] or [`End::Breaks`]. Until [`Tunnel::release`] it is this one's.
    ///
    /// # Errors
    /// There are no descriptors left, or the socket has failed.
    pub fn interrupted(&mut self) -> io::Result<Interrupted> {
        let passed = self.down.passed;
        let reached = match &mut self.outlives {
            Some(outlives) if outlives.broken => {
                // The other side sends it again.
                (self.down.first, self.down.more) = (Bytes::new(), Pieces::default());
                Some(outlives.reached(passed))
            }
            Some(outlives) => {
                outlives.leaves(self.leg.tcp.as_fd())?;
                None
            }
            None => None,
        };
        let socket = self.leg.tcp.as_fd().try_clone_to_owned()?;
        let ended = reached.is_none() && self.sides.get().sent() == Half::Ended;
        let down = Left { rest: self.down.rest(), ended: passed };
        Ok(Interrupted { socket, client: self.client, ended, down, reached })
    }

    /// Lets go of the socket: when this is dropped it is neither reset nor shut down.
    pub fn release(&mut self) {
        self.leg.complete = true;
    }
}

impl Interrupted {
    /// Nobody goes on with it: the application must not take it for complete. (It is, if both directions have ended here.)
    pub fn reset(self) {
        if self.reached.is_some_and(|reached| reached.over) {
            return;
        }
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}

/// What both directions know.
struct Talk<'a> {
    sides: &'a Cell<Sides>,
    asked: &'a Cell<Option<Token>>,
    continues: bool,
}

impl Talk<'_> {
    fn close(&self, half: Half) {
        let mut sides = self.sides.get();
        sides.close(half);
        self.sides.set(sides);
    }
    /// The other side has closed its half. True: ours is to be closed now.
    fn closed(&self, half: Half) -> bool {
        let mut sides = self.sides.get();
        let answer = sides.closed(half);
        self.sides.set(sides);
        if self.asked.get().is_none() {
            self.asked.set(answer);
        }
        answer.is_some()
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
}

/// Whenever it waits, all that was read is HTTP/2's.
async fn to_stream(rd: &mut ReadHalf<'_>, send: &mut SendStream<Bytes>, way: &Way, talk: &Talk<'_>) -> io::Result<()> {
    if talk.sides.get().sent() != Half::Open {
        return Ok(());
    }
    loop {
        // Nothing is reserved while the application is silent: a reservation would take window from other streams.
        let leaves = poll_fn(|cx| {
            if let Some(token) = talk.asked.get() {
                return Poll::Ready(Ok(Some(token)));
            }
            if let Poll::Ready(result) = rd.as_ref().poll_read_ready(cx) {
                return Poll::Ready(result.map(|()| None));
            }
            poll_reset(send, cx).map(Err)
        })
        .await
        .inspect_err(|_| way.receiver_gone())?;
        if let Some(token) = leaves {
            return close(send, &token, talk);
        }
        // In a block, or what is in it would be in the connection's task also while it waits for its turn.
        {
            // What is reserved is there at once, mostly, and HTTP/2 tells whoever waits of the stream's sending half: this task, which
            // would have another turn for nothing. From here to where it waits again, somebody else waits.
            let _ = send.poll_reset(&mut Context::from_waker(Waker::noop()));
            send.reserve_capacity(turns::bytes(CHUNK));
            let room = poll_fn(|cx| match talk.asked.get() {
                // The next turn closes it.
                Some(_) => Poll::Ready(Ok(0)),
                None => match ready!(send.poll_capacity(cx)) {
                    None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                    Some(room) => Poll::Ready(room.map_err(broken)),
                },
            })
            .await
            .inspect_err(|_: &io::Error| way.receiver_gone())?;
            if room == 0 {
                send.reserve_capacity(0);
                continue;
            }
            let data = poll_fn(|cx| match poll_bytes(rd, cx, room.min(turns::bytes(CHUNK))) {
                // Readiness was stale: give the window back while we wait again.
                Poll::Pending => Poll::Ready(Ok(None)),
                Poll::Ready(r) => Poll::Ready(r.map(Some)),
            })
            .await
            .inspect_err(|_| way.sender_gone())?;
            match data {
                None => send.reserve_capacity(0),
                Some(d) if d.is_empty() => {
                    send.reserve_capacity(0);
                    way.ended();
                    send.send_data(Bytes::new(), true).map_err(broken)?;
                    talk.close(Half::Ended);
                    return Ok(());
                }
                Some(mut d) => {
                    turns::spend(d.len());
                    way.add(d.len());
                    way.show_later(&d);
                    while d.len() > FRAME {
                        send.send_data(d.split_to(FRAME), false).map_err(broken)?;
                    }
                    send.send_data(d, false).map_err(broken)?;
                    send.reserve_capacity(0);
                }
            }
        }
        turns::pass().await;
    }
}

/// The same of a connection that outlives its tunnel: what is sent stays in the socket until the other side's application has it.
async fn to_stream_kept(
    rd: &mut ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    way: &Way,
    talk: &Talk<'_>,
    kept: &mut Outlives,
) -> io::Result<()> {
    if talk.sides.get().sent() != Half::Open {
        return Ok(());
    }
    loop {
        let leaves = poll_fn(|cx| {
            if let Some(token) = talk.asked.get() {
                return Poll::Ready(Ok(Some(token)));
            }
            kept.acknowledge(rd.as_ref().as_fd(), cx)?;
            if let Poll::Ready(result) = rd.as_ref().poll_read_ready(cx) {
                return Poll::Ready(result.map(|()| None));
            }
            poll_reset(send, cx).map(Err)
        })
        .await
        .inspect_err(|_: &io::Error| way.receiver_gone())?;
        if let Some(token) = leaves {
            return close(send, &token, talk);
        }
        let _ = send.poll_reset(&mut Context::from_waker(Waker::noop()));
        send.reserve_capacity(turns::bytes(CHUNK));
        let room = poll_fn(|cx| match talk.asked.get() {
            // The next turn closes it.
            Some(_) => Poll::Ready(Ok(0)),
            None => {
                kept.acknowledge(rd.as_ref().as_fd(), cx)?;
                match ready!(send.poll_capacity(cx)) {
                    None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                    Some(room) => Poll::Ready(room.map_err(broken)),
                }
            }
        })
        .await
        .inspect_err(|_: &io::Error| way.receiver_gone())?;
        if room == 0 {
            send.reserve_capacity(0);
            continue;
        }
        let data = poll_fn(|cx| match poll_bytes(&mut Looking(rd), cx, room.min(turns::bytes(CHUNK))) {
            // As above.
            Poll::Pending => Poll::Ready(Ok(None)),
            Poll::Ready(r) => Poll::Ready(r.map(Some)),
        })
        .await
        .inspect_err(|_: &io::Error| {
            kept.line.fail();
            way.sender_gone();
        })?;
        match data {
            None => send.reserve_capacity(0),
            Some(d) if d.is_empty() => {
                send.reserve_capacity(0);
                if kept.ends() {
                    way.ended();
                }
                send.send_data(Bytes::new(), true).map_err(broken)?;
                talk.close(Half::Ended);
                return Ok(());
            }
            Some(mut d) => {
                turns::spend(d.len());
                let new = kept.sends(&d);
                way.add(new.len());
                if !new.is_empty() {
                    way.show_later(&new);
                }
                while d.len() > FRAME {
                    send.send_data(d.split_to(FRAME), false).map_err(broken)?;
                }
                send.send_data(d, false).map_err(broken)?;
                send.reserve_capacity(0);
            }
        }
        turns::pass().await;
    }
}

/// The peer has reset the stream, or it has broken.
fn poll_reset(send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<io::Error> {
    send.poll_reset(cx).map(|reset| match reset {
        Ok(r) if r == Reason::NO_ERROR || r == Reason::CANCEL => io::ErrorKind::ConnectionReset.into(),
        Ok(r) => io::Error::new(io::ErrorKind::ConnectionReset, r.to_string()),
        Err(e) => broken(e),
    })
}

/// Our half goes on elsewhere: what is in HTTP/2's hands has the peer's window, so nothing is in the way of this.
fn close(send: &mut SendStream<Bytes>, token: &Token, talk: &Talk<'_>) -> io::Result<()> {
    send.reserve_capacity(0);
    let mut trailers = HeaderMap::with_capacity(1);
    continuation::name(&mut trailers, token);
    send.send_trailers(trailers).map_err(broken)?;
    talk.close(Half::Continued(*token));
    Ok(())
}

/// Whenever it waits, what was received and not written is in `down`.
async fn to_socket(
    recv: &mut RecvStream,
    wr: &mut WriteHalf<'_>,
    way: &Way,
    down: &mut Down,
    talk: &Talk<'_>,
    leaves: bool,
) -> io::Result<()> {
    match (talk.sides.get().received(), leaves) {
        (Half::Open, true) => return take_in(recv, wr, way, down, talk).await,
        (Half::Open, false) => {}
        // All of it has come, and what is left goes along.
        (Half::Ended | Half::Continued(_), true) => return Ok(()),
        (Half::Ended | Half::Continued(_), false) => return down.write(recv, wr, way).await,
    }
    down.write(recv, wr, way).await?;
    while !down.complete {
        let Some(first) = poll_fn(|cx| poll_data(recv, cx)).await.inspect_err(|_| way.sender_gone())? else { break };
        // What else has come goes into the same write.
        let mut total = first.len();
        down.first = first;
        while total < turns::bytes(GATHER) && down.more.0.len() + 1 < PIECES && !down.complete {
            match poll_fn(|cx| Poll::Ready(poll_data(recv, cx))).await {
                // It says nothing.
                Poll::Ready(Ok(Some(d))) if d.is_empty() => {}
                Poll::Ready(Ok(Some(d))) => {
                    total += d.len();
                    down.more.0.push_back(d);
                }
                Poll::Ready(Ok(None)) => down.complete = true,
                // After what came before it.
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        down.unreleased += total;
        // Only with something to write: it is tried at once then.
        down.unseen = total > 0;
        down.write(recv, wr, way).await?;
        if !down.complete {
            turns::pass().await;
        }
    }
    down.complete = true;
    match poll_fn(|cx| poll_token(recv, cx, talk)).await {
        Half::Continued(token) => {
            if talk.closed(Half::Continued(token)) {
                // The other direction is to look.
                poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    Poll::Ready(())
                })
                .await;
            }
        }
        Half::Open | Half::Ended => {
            if !down.passed {
                way.ended();
                end(wr);
                down.pass();
            }
            talk.closed(Half::Ended);
        }
    }
    Ok(())
}

/// Takes in all that the peer has sent, whatever the application takes of it meanwhile; no more than the stream's window. The peer's
/// end, if it comes now, is for whoever goes on.
async fn take_in(
    recv: &mut RecvStream,
    wr: &mut WriteHalf<'_>,
    way: &Way,
    down: &mut Down,
    talk: &Talk<'_>,
) -> io::Result<()> {
    poll_fn(|cx| {
        while !down.complete {
            match poll_data(recv, cx) {
                Poll::Ready(Ok(Some(d))) => {
                    way.show(&d);
                    down.unreleased += d.len();
                    keep(&mut down.more.0, d);
                }
                Poll::Ready(Ok(None)) => down.complete = true,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        while down.has_some() {
            match down.poll_write(wr, cx, way) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        if !down.has_some() {
            down.release(recv)?;
        }
        if down.complete { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
    .inspect_err(|_| way.sender_gone())?;
    // An end is not passed on here: it comes again with the next stream.
    let half = poll_fn(|cx| poll_token(recv, cx, talk)).await;
    talk.closed(half);
    Ok(())
}

impl Down {
    fn has_some(&self) -> bool {
        self.first.has_remaining() || self.more.has_remaining()
    }

    /// Writes all of it, and gives the peer window for it.
    async fn write(&mut self, recv: &mut RecvStream, wr: &mut WriteHalf<'_>, way: &Way) -> io::Result<()> {
        while self.has_some() {
            poll_fn(|cx| self.poll_write(wr, cx, way)).await?;
        }
        self.release(recv)
    }

    fn poll_write(&mut self, wr: &mut WriteHalf<'_>, cx: &mut Context<'_>, way: &Way) -> Poll<io::Result<()>> {
        let mut iov = [io::IoSlice::new(&[]); PIECES];
        let mut used = 0;
        if self.first.has_remaining() {
            iov[0] = io::IoSlice::new(&self.first);
            used = 1;
        }
        used += self.more.chunks_vectored(&mut iov[used..]);
        let result = match &iov[..used] {
            // The system call for one piece is the cheaper one, and mostly there is one.
            [one] => Pin::new(&mut *wr).poll_write(cx, one),
            pieces => Pin::new(&mut *wr).poll_write_vectored(cx, pieces),
        };
        self.show(way);
        let written = match ready!(result) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => other,
        };
        let written: usize = written.inspect_err(|_: &io::Error| self.fail(way))?;
        turns::spend(written);
        way.add(written);
        if let Some(line) = &self.line {
            line.give(written as u64);
        }
        let of_first = written.min(self.first.len());
        self.first.advance(of_first);
        self.more.advance(written - of_first);
        Poll::Ready(Ok(()))
    }

    /// The socket takes nothing any more.
    fn fail(&self, way: &Way) {
        if let Some(line) = &self.line {
            line.fail();
        }
        way.receiver_gone();
    }

    /// The socket has heard of the peer's end.
    fn pass(&mut self) {
        self.passed = true;
        if let Some(line) = &self.line {
            line.end();
        }
    }

    /// What has come is shown, all of it and once.
    fn show(&mut self, way: &Way) {
        if std::mem::take(&mut self.unseen) {
            way.show(&self.first);
            self.more.0.iter().for_each(|data| way.show(data));
        }
    }

    /// All of it is written: an idle connection holds no buffer.
    fn release(&mut self, recv: &mut RecvStream) -> io::Result<()> {
        (self.first, self.more) = (Bytes::new(), Pieces::default());
        match std::mem::take(&mut self.unreleased) {
            0 => Ok(()),
            count => recv.flow_control().release_capacity(count).map_err(broken),
        }
    }

    /// All of it, in one piece.
    fn rest(&mut self) -> Bytes {
        let length = self.first.remaining() + self.more.remaining();
        let more = std::mem::take(&mut self.more);
        std::mem::take(&mut self.first).chain(more).copy_to_bytes(length)
    }
}

/// The next frame's bytes; None at an orderly end, also one that is said by a reset (reference ztunnel §1.4). A GOAWAY with the same
/// reason is none: so we end a tunnel ourselves whose peer does not answer any more, and nobody knows what was still to come.
fn poll_data(recv: &mut RecvStream, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
    Poll::Ready(match ready!(recv.poll_data(cx)) {
        None => Ok(None),
        Some(Ok(d)) => Ok(Some(d)),
        Some(Err(e)) if e.is_reset() && e.reason() == Some(Reason::NO_ERROR) => Ok(None),
        Some(Err(e)) => Err(broken(e)),
    })
}

/// How the peer's half has ended, once there is no more data.
fn poll_token(recv: &mut RecvStream, cx: &mut Context<'_>, talk: &Talk<'_>) -> Poll<Half> {
    if !talk.continues {
        return Poll::Ready(Half::Ended);
    }
    Poll::Ready(match ready!(recv.poll_trailers(cx)) {
        Ok(Some(trailers)) => match continuation::said(&trailers) {
            Said::Token(token) => Half::Continued(token),
            Said::Knows | Said::Nothing => Half::Ended,
        },
        Ok(None) | Err(_) => Half::Ended,
    })
}

/// One more piece of what waits, perhaps for long. Small ones are put together: what a frame costs beside its bytes is not the peer's
/// to choose.
pub fn keep(pieces: &mut VecDeque<Bytes>, data: Bytes) {
    if data.is_empty() {
        return;
    }
    match pieces.pop_back() {
        Some(last) if last.len() + data.len() <= JOINED => {
            let copied = |last: Bytes| {
                let mut copy = BytesMut::with_capacity(JOINED);
                copy.extend_from_slice(&last);
                copy
            };
            let mut joined = last.try_into_mut().unwrap_or_else(copied);
            joined.extend_from_slice(&data);
            pieces.push_back(joined.freeze());
        }
        last => pieces.extend(last.into_iter().chain([data])),
    }
}

/// Several pieces as one buffer.
#[derive(Default)]
struct Pieces(VecDeque<Bytes>);
impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }
    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |d| d)
    }
    fn chunks_vectored<'a>(&'a self, to: &mut [io::IoSlice<'a>]) -> usize {
        let count = to.len().min(self.0.len());
        to.iter_mut().zip(&self.0).for_each(|(v, d)| *v = io::IoSlice::new(d));
        count
    }
    fn advance(&mut self, mut count: usize) {
        while let Some(data) = self.0.front_mut() {
            let part = count.min(data.len());
            data.advance(part);
            count -= part;
            if !data.is_empty() {
                break;
            }
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
    use super::{
        super::tests::{pair, talk, watched},
        *,
    };
    use h2::client::SendRequest;
    use std::rc::Rc;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::mpsc,
        task::{LocalSet, spawn_local},
        time::timeout,
    };

    type Stream = (SendStream<Bytes>, RecvStream);

    /// A tunnel in memory: a client's handle, and the server's side of each stream.
    struct Wire {
        client: SendRequest<Bytes>,
        accepted: mpsc::UnboundedReceiver<Stream>,
        /// Of the client's connection, so far.
        polls: Rc<Cell<usize>>,
    }

    /// Counts the future's polls.
    async fn counted<F: Future>(future: F, polls: Rc<Cell<usize>>) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            polls.set(polls.get() + 1);
            future.as_mut().poll(cx)
        })
        .await
    }

    impl Wire {
        async fn new() -> Self {
            Self::with_window(65_535).await
        }

        /// `window`: of a stream and of all, in bytes.
        async fn with_window(window: u32) -> Self {
            let (near, far) = tokio::io::duplex(256 << 10);
            let (tx, accepted) = mpsc::unbounded_channel();
            spawn_local(async move {
                let mut connection = h2::server::handshake(far).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let send = respond.send_response(http::Response::new(()), false).unwrap();
                    let _ = tx.send((send, request.into_body()));
                }
            });
            let mut ours = h2::client::Builder::new();
            ours.initial_window_size(window).initial_connection_window_size(window);
            let (client, connection) = ours.handshake(near).await.unwrap();
            let polls = Rc::<Cell<usize>>::default();
            spawn_local(counted(connection, polls.clone()));
            Self { client, accepted, polls }
        }

        /// A stream, both its sides.
        async fn open(&mut self) -> (Stream, Stream) {
            let mut ready = self.client.clone().ready().await.unwrap();
            let request = http::Request::connect("a:1").body(()).unwrap();
            let (response, send) = ready.send_request(request, false).unwrap();
            let recv = response.await.unwrap().into_body();
            ((send, recv), self.accepted.recv().await.unwrap())
        }
    }

    fn bytes(seed: u8, length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 5) as u8 ^ (n >> 12) as u8 ^ seed).collect()
    }

    /// Who leaves, and when.
    #[derive(Clone, Copy, Debug)]
    enum Leaves {
        Client,
        Server,
        Both,
    }

    /// Goes on in stream after stream, on each as long as `pause` says; how often that was.
    async fn carried(
        wire: &mut Wire,
        (a, b): (TcpStream, TcpStream),
        who: Leaves,
        counts: &[Counts; 2],
        mut pause: impl FnMut() -> Duration,
    ) -> usize {
        let (near, far) = wire.open().await;
        let (mut client, mut server) = (Tunnel::new(a, near, true, true), Tunnel::new(b, far, false, true));
        let mut streams = 1;
        loop {
            let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
            let ends = match timeout(pause(), both).await {
                Ok(ends) => ends,
                Err(_) => {
                    if matches!(who, Leaves::Client | Leaves::Both) && client.may_leave() {
                        client.leave(Token::new().unwrap());
                    }
                    if matches!(who, Leaves::Server | Leaves::Both) && server.may_leave() {
                        server.leave(Token::new().unwrap());
                    }
                    let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
                    timeout(Duration::from_secs(20), both).await.unwrap_or_else(|_| panic!("{who:?}: it does not end"))
                }
            };
            let (one, other) = (ends.0.unwrap(), ends.1.unwrap());
            assert_eq!(one, other, "{who:?}");
            if one == End::Over {
                return streams;
            }
            let (near, far) = wire.open().await;
            let (one, other) = (client.interrupted().unwrap(), server.interrupted().unwrap());
            client.release();
            server.release();
            (client, server) = (Tunnel::resume(one, near).unwrap(), Tunnel::resume(other, far).unwrap());
            streams += 1;
        }
    }

    #[tokio::test]
    async fn a_connection_goes_on_in_stream_after_stream() {
        let run = async {
            for (n, who) in [Leaves::Client, Leaves::Server, Leaves::Both].into_iter().enumerate() {
                // Whose end comes first, and how much there is.
                for (up, down) in [(6 << 20, 8 << 20), (9 << 20, 1000), (1, 5 << 20), (0, 0)] {
                    let mut wire = Wire::new().await;
                    let ((app, a), (b, other)) = (pair().await, pair().await);
                    let (said, answered) = (bytes(n as u8, up), bytes(77, down));
                    let (counts, mut step) = (<[Counts; 2]>::default(), 500u64);
                    let pause = || {
                        step = 300 + (step * 7 + 131) % 4000;
                        Duration::from_micros(step)
                    };
                    let all = carried(&mut wire, (a, b), who, &counts, pause);
                    let (streams, heard, asked) = tokio::join!(all, talk(app, &said), talk(other, &answered));
                    assert!(asked == said && heard == answered, "{who:?} {up} {down}: {streams} streams");
                    for counts in &counts {
                        assert_eq!((counts.from_client.get(), counts.to_client.get()), (up as u64, down as u64));
                    }
                }
            }
        };
        LocalSet::new().run_until(run).await;
    }

    /// The application of the side that leaves takes nothing: what has come goes along.
    #[tokio::test]
    async fn what_an_application_has_not_taken_goes_along() {
        let run = async {
            // More than the sockets hold.
            let mut wire = Wire::with_window(1 << 20).await;
            let ((app, a), (b, mut other)) = (pair().await, pair().await);
            for socket in [&app, &a] {
                socket2::SockRef::from(socket).set_recv_buffer_size(32 << 10).unwrap();
                socket2::SockRef::from(socket).set_send_buffer_size(32 << 10).unwrap();
            }
            let counts = <[Counts; 2]>::default();
            let (near, far) = wire.open().await;
            let (mut client, mut server) = (Tunnel::new(a, near, true, true), Tunnel::new(b, far, false, true));
            let answer = bytes(5, 2 << 20);
            let write = async { timeout(Duration::from_millis(300), other.write_all(&answer)).await };
            let some = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
            tokio::select! {
                _ = some => panic!("nobody has ended it"),
                _ = write => {}
            }
            client.leave(Token::new().unwrap());
            let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
            let (one, two) = timeout(Duration::from_secs(5), both).await.unwrap();
            assert!(matches!((one.unwrap(), two.unwrap()), (End::Continues(x), End::Continues(y)) if x == y));
            let (one, two) = (client.interrupted().unwrap(), server.interrupted().unwrap());
            assert!(!one.down.rest.is_empty() && !one.ended && !one.down.ended && two.down.rest.is_empty());
            client.release();
            server.release();
            let (near, far) = wire.open().await;
            let (mut client, mut server) = (Tunnel::resume(one, near).unwrap(), Tunnel::resume(two, far).unwrap());
            let written = (counts[1].to_client.get() as usize).min(answer.len());
            let rest = async {
                let (mut app, mut heard) = (app, vec![0; written]);
                app.read_exact(&mut heard).await.unwrap();
                heard
            };
            let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
            tokio::select! {
                _ = both => panic!("nobody has ended it"),
                heard = rest => assert!(heard == answer[..written]),
            }
        };
        LocalSet::new().run_until(run).await;
    }

    /// Frames of one byte and of none, for as long as the application takes nothing: they cost what they carry.
    #[test]
    fn small_frames_that_wait_are_few_pieces() {
        let (mut pieces, mut want) = (Pieces::default(), vec![]);
        for n in 0..100_000 {
            let data = match n % 10_000 {
                0 => bytes(n as u8, 15 << 10),
                odd => vec![n as u8; odd % 2],
            };
            want.extend_from_slice(&data);
            keep(&mut pieces.0, data.into());
        }
        assert!(pieces.0.len() < 40 && pieces.remaining() == want.len(), "{}", pieces.0.len());
        let mut got = vec![];
        while pieces.has_remaining() {
            // As it is written: in part, from several pieces.
            let mut iov = [io::IoSlice::new(&[]); PIECES];
            let used = pieces.chunks_vectored(&mut iov);
            let some: Vec<u8> = iov[..used].iter().flat_map(|piece| piece.iter().copied()).take(7000).collect();
            assert!(!some.is_empty() && some.starts_with(&pieces.chunk()[..pieces.chunk().len().min(7000)]));
            pieces.advance(some.len());
            got.extend(some);
        }
        assert!(got == want && pieces.chunk().is_empty());
    }

    /// An application that takes nothing, and a peer that sends frames without bytes before others: nothing is lost.
    #[tokio::test]
    async fn frames_without_bytes_are_none() {
        let run = async {
            let mut wire = Wire::with_window(1 << 20).await;
            let ((app, a), counts) = (pair().await, Counts::default());
            let (near, (mut far, _recv)) = wire.open().await;
            let mut client = Tunnel::new(a, near, true, true);
            client.leave(Token::new().unwrap());
            let said = bytes(3, 100_000);
            let peer = async {
                for part in said.chunks(20_000) {
                    // HTTP/2's implementation takes no more than 100 of them.
                    for _ in 0..=PIECES {
                        far.send_data(Bytes::new(), false).unwrap();
                    }
                    far.send_data(Bytes::copy_from_slice(part), false).unwrap();
                    tokio::task::yield_now().await;
                }
                let mut trailers = HeaderMap::new();
                continuation::name(&mut trailers, &Token::new().unwrap());
                far.send_trailers(trailers).unwrap();
            };
            let (end, ()) =
                timeout(Duration::from_secs(5), async { tokio::join!(client.carry(&counts), peer) }).await.unwrap();
            assert!(matches!(end.unwrap(), End::Continues(_)));
            let left = client.interrupted().unwrap().down.rest;
            let (mut app, mut heard) = (app, vec![0; said.len() - left.len()]);
            app.read_exact(&mut heard).await.unwrap();
            heard.extend_from_slice(&left);
            assert!(heard == said);
        };
        LocalSet::new().run_until(run).await;
    }

    /// Nothing is shown twice, whatever the application takes, and whether we stay or leave.
    #[tokio::test]
    async fn what_waits_for_an_application_is_shown_once() {
        let run = async {
            // More than the sockets hold, and less than the window.
            let (mut wire, said) = (Wire::with_window(1 << 20).await, bytes(11, 900_000));
            let (app, a) = pair().await;
            socket2::SockRef::from(&a).set_send_buffer_size(32 << 10).unwrap();
            socket2::SockRef::from(&app).set_recv_buffer_size(32 << 10).unwrap();
            let (counts, shown) = watched(true);
            let (near, (mut far, _recv)) = wire.open().await;
            let mut client = Tunnel::new(a, near, true, true);
            let (first, rest) = said.split_at(700_000);
            // One without bytes comes first, and by itself.
            far.send_data(Bytes::new(), false).unwrap();
            assert!(timeout(Duration::from_millis(50), client.carry(&counts)).await.is_err());
            for part in first.chunks(20_000) {
                far.send_data(Bytes::copy_from_slice(part), false).unwrap();
            }
            assert!(timeout(Duration::from_millis(300), client.carry(&counts)).await.is_err());
            {
                let shown = shown.borrow();
                assert!(!shown.server.is_empty() && first.starts_with(&shown.server), "{}", shown.server.len());
                assert!(counts.to_client.get() < shown.server.len() as u64, "some of it waits");
            }
            client.leave(Token::new().unwrap());
            for part in rest.chunks(7_000) {
                far.send_data(Bytes::copy_from_slice(part), false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            continuation::name(&mut trailers, &Token::new().unwrap());
            far.send_trailers(trailers).unwrap();
            let end = timeout(Duration::from_secs(5), client.carry(&counts)).await.unwrap();
            assert!(matches!(end.unwrap(), End::Continues(_)) && shown.borrow().server == said);
            drop(app);
        };
        LocalSet::new().run_until(run).await;
    }

    /// What HTTP/2 was given is shown, if nothing else makes it so, before the connection's end is told: of one that is cut, and of
    /// one that ends.
    #[tokio::test]
    async fn last_bytes_for_a_stream_are_shown_before_the_end() {
        let run = async {
            for cut in [true, false] {
                let mut wire = Wire::new().await;
                let ((mut app, a), (counts, shown)) = (pair().await, watched(true));
                let (near, (mut send, mut recv)) = wire.open().await;
                let mut client = Tunnel::new(a, near, true, false);
                app.write_all(b"asked").await.unwrap();
                {
                    let mut carried = pin!(client.carry(&counts));
                    // The peer has the bytes.
                    tokio::select! {
                        _ = &mut carried => panic!("nobody has ended it"),
                        data = poll_fn(|cx| recv.poll_data(cx)) => assert_eq!(data.unwrap().unwrap(), "asked"),
                    }
                    if !cut {
                        app.shutdown().await.unwrap();
                        send.send_data(Bytes::from_static(b"answered"), true).unwrap();
                        carried.await.unwrap();
                    }
                }
                counts.watch().unwrap().closed();
                let shown = shown.borrow();
                assert!(shown.client == b"asked");
                let want: &[&[&str]] = match cut {
                    true => &[&["client", "closed"]],
                    // The two directions end by themselves.
                    false => &[
                        &["client", "client ended", "server", "server ended", "closed"],
                        &["client", "server", "client ended", "server ended", "closed"],
                        &["client", "server", "server ended", "client ended", "closed"],
                    ],
                };
                assert!(want.contains(&&shown.order[..]), "{cut}: {:?}", shown.order);
            }
        };
        LocalSet::new().run_until(run).await;
    }

    /// The application's socket takes nothing any more: what has come for it is shown once, and then that it has gone.
    #[tokio::test]
    async fn what_the_socket_refuses_is_shown_once() {
        let run = async {
            let mut wire = Wire::new().await;
            let ((app, a), (counts, shown)) = (pair().await, watched(true));
            let (near, (mut far, _recv)) = wire.open().await;
            socket2::SockRef::from(&a).shutdown(std::net::Shutdown::Write).unwrap();
            far.send_data(Bytes::from_static(b"answered"), false).unwrap();
            let error = Tunnel::new(a, near, true, false).carry(&counts).await.unwrap_err();
            assert_eq!((error.kind(), counts.to_client.get()), (io::ErrorKind::BrokenPipe, 0));
            counts.watch().unwrap().closed();
            let shown = shown.borrow();
            assert!(shown.server == b"answered" && shown.client.is_empty());
            assert_eq!(shown.order, ["server", "client ended", "closed"]);
            drop(app);
        };
        LocalSet::new().run_until(run).await;
    }

    /// Nothing that is done for a message wakes a task that has had its turn for it: one poll of the stream's and one of the tunnel's,
    /// either way.
    #[tokio::test]
    async fn a_message_takes_one_poll_of_each_task() {
        let run = async {
            let mut wire = Wire::new().await;
            let (mut app, a) = pair().await;
            let (near, (mut send, mut recv)) = wire.open().await;
            let (polls, tunnel_polls) = (Rc::<Cell<usize>>::default(), wire.polls.clone());
            let carried = async move {
                let (mut client, counts) = (Tunnel::new(a, near, true, false), Counts::default());
                client.carry(&counts).await
            };
            spawn_local(counted(carried, polls.clone()));
            // Until both have had a turn and nobody has anything to do any more; the turns of that time.
            let settled = async || {
                let both = async {
                    while polls.get() == 0 || tunnel_polls.get() == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                timeout(Duration::from_secs(5), both).await.expect("a turn of each");
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                (polls.take(), tunnel_polls.take())
            };
            settled().await;
            for size in [5, 1000, 5, 1000] {
                let (asked, answered) = (bytes(1, size), bytes(2, size));
                app.write_all(&asked).await.unwrap();
                assert_eq!(settled().await, (1, 1), "{size} bytes of the application's");
                assert_eq!(poll_fn(|cx| recv.poll_data(cx)).await.unwrap().unwrap(), asked);
                send.send_data(answered.clone().into(), false).unwrap();
                assert_eq!(settled().await, (1, 1), "{size} bytes for the application");
                let mut heard = vec![0; size];
                app.read_exact(&mut heard).await.unwrap();
                assert!(heard == answered);
            }
        };
        LocalSet::new().run_until(run).await;
    }

    /// While a stream's task has nothing to send it hears of a reset, also after it has sent.
    #[tokio::test]
    async fn a_reset_is_heard_of_after_a_message() {
        let run = async {
            let mut wire = Wire::new().await;
            let (mut app, a) = pair().await;
            let (near, (mut send, mut recv)) = wire.open().await;
            let carried = spawn_local(async move {
                let (mut client, counts) = (Tunnel::new(a, near, true, false), Counts::default());
                client.carry(&counts).await
            });
            // From here on only the half that sends can hear of it.
            send.send_data(Bytes::new(), true).unwrap();
            assert_eq!(app.read(&mut [0; 8]).await.unwrap(), 0);
            for _ in 0..3 {
                app.write_all(b"asked").await.unwrap();
                assert_eq!(poll_fn(|cx| recv.poll_data(cx)).await.unwrap().unwrap(), "asked");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            send.send_reset(Reason::CANCEL);
            let ended = timeout(Duration::from_secs(5), carried).await.unwrap().unwrap();
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        };
        LocalSet::new().run_until(run).await;
    }

    /// A tunnel whose peer does not answer is given up with the reason of an end (`server::serve`). It is none, also for who has nothing
    /// to send any more.
    #[tokio::test]
    async fn a_tunnel_that_is_given_up_is_no_end() {
        let run = async {
            let (near, far) = tokio::io::duplex(64 << 10);
            let (client, connection) = h2::client::handshake(near).await.unwrap();
            spawn_local(async move { drop(connection.await) });
            let _asked = spawn_local(async move {
                let request = http::Request::connect("a:1").body(()).unwrap();
                let mut client = client.ready().await.unwrap();
                let (response, send) = client.send_request(request, false).unwrap();
                (response.await.unwrap().into_body(), send, client)
            });
            let mut server = h2::server::handshake(far).await.unwrap();
            let (request, mut respond) = server.accept().await.unwrap().unwrap();
            let send = respond.send_response(http::Response::new(()), false).unwrap();
            let ((mut app, a), counts) = (pair().await, Counts::default());
            app.shutdown().await.unwrap();
            let mut tunnel = Tunnel::new(a, (send, request.into_body()), false, false);
            {
                let mut carried = pin!(tunnel.carry(&counts));
                let some = poll_fn(|cx| {
                    let _ = server.poll_closed(cx);
                    carried.as_mut().poll(cx)
                });
                assert!(timeout(Duration::from_millis(50), some).await.is_err(), "nobody has ended it");
                server.abrupt_shutdown(Reason::NO_ERROR);
                let ended = timeout(Duration::from_secs(5), carried).await.unwrap();
                assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            }
            drop(tunnel);
            assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        };
        LocalSet::new().run_until(run).await;
    }

    /// A peer that does not know of continuation is served as ever: trailers are an end.
    #[tokio::test]
    async fn who_does_not_know_of_it_does_not_leave() {
        let run = async {
            let mut wire = Wire::new().await;
            let ((app, a), (b, other)) = (pair().await, pair().await);
            let (near, far) = wire.open().await;
            let (mut client, counts) = (Tunnel::new(a, near, true, false), <[Counts; 2]>::default());
            assert!(!client.may_leave());
            let both = async { tokio::join!(client.carry(&counts[0]), tunnel(b, far.0, far.1, &counts[1], false)) };
            let ((one, two), heard, asked) = tokio::join!(both, talk(app, b"asked"), talk(other, b"answered"));
            assert_eq!(one.unwrap(), End::Over);
            two.unwrap();
            assert!(heard == b"answered" && asked == b"asked");
        };
        LocalSet::new().run_until(run).await;
    }
}
