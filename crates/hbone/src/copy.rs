//! Moves bytes. An idle connection holds no buffer: the worker's arena is borrowed only when the socket has something.
//!
//! Both directions run to their own end (half-close is kept); an abnormal end of one leg becomes an abnormal end of the
//! other, so that an application can tell truncation from completion (docs/hbone.md §6).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use karst_core::limits;
use karst_rt::{socket::reset_on_close, splice::Pipe};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io,
    os::fd::AsFd,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

/// Bytes carried so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// From the side that opened the connection.
    pub from_client: Cell<u64>,
    /// To the side that opened the connection.
    pub to_client: Cell<u64>,
}

/// Largest read of a tunnelled stream, in bytes: as much as a stream may have waiting to be sent, so that a turn of the
/// stream's task is followed by one of the tunnel's, while the bytes are in the cache.
const CHUNK: usize = limits::SEND_BUFFER;
/// Largest DATA frame that we send, in bytes. The receiver collects a frame before it passes any of it on.
const FRAME: usize = 256 << 10;
/// Frames of a stream that are waiting go to the application in one write of about this much, and of this many pieces.
const GATHER: usize = 256 << 10;
const PIECES: usize = 16;
/// A worker's arena: reads take from it, and it is used again when what was read has been sent.
const ARENA: usize = 1 << 20;
/// Plain copies change to splice(2) after a read of at least this much: small messages are cheaper by read and write.
const SPLICE_FROM: usize = 32 << 10;
/// Empty pipes that a worker keeps.
const PIPES: usize = 64;

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(ARENA));
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

fn add(cell: &Cell<u64>, count: usize) {
    cell.set(cell.get() + count as u64);
}

/// A socket that is carried. Its close is a reset until both directions have come to their end, also where the task is dropped
/// (a policy that came later, the end of a drain): an application must not take what is truncated for complete.
struct Leg {
    tcp: TcpStream,
    complete: bool,
}

impl Leg {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp, complete: false }
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        if !self.complete {
            reset_on_close(&self.tcp);
        }
    }
}

/// Carries a socket's bytes over a stream and back, until both directions have ended. `client` says that the socket is the
/// side that opened the connection.
///
/// # Errors
/// If a leg broke; the other has then been reset.
pub async fn tunnel(
    tcp: TcpStream,
    mut send: SendStream<Bytes>,
    mut recv: RecvStream,
    counts: &Counts,
    client: bool,
) -> io::Result<()> {
    let (up, down) =
        if client { (&counts.from_client, &counts.to_client) } else { (&counts.to_client, &counts.from_client) };
    let mut leg = Leg::new(tcp);
    let result = {
        let (mut rd, mut wr) = leg.tcp.split();
        let upward = pin!(to_stream(&mut rd, &mut send, up));
        let downward = pin!(to_socket(&mut recv, &mut wr, down));
        both(upward, downward).await
    };
    leg.complete = result.is_ok();
    if result.is_err() {
        send.send_reset(Reason::CANCEL);
    }
    result
}

/// Runs both; the first error ends it. They are pinned by the caller: an async function holds what it is given twice, as its
/// argument and where it is awaited, and this is in the task of every connection.
async fn both(
    mut first: Pin<&mut impl Future<Output = io::Result<()>>>,
    mut second: Pin<&mut impl Future<Output = io::Result<()>>>,
) -> io::Result<()> {
    let (mut first_done, mut second_done) = (false, false);
    poll_fn(|cx| {
        if !first_done && let Poll::Ready(result) = first.as_mut().poll(cx) {
            result?;
            first_done = true;
        }
        if !second_done && let Poll::Ready(result) = second.as_mut().poll(cx) {
            result?;
            second_done = true;
        }
        if first_done && second_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
}

async fn to_stream(rd: &mut ReadHalf<'_>, send: &mut SendStream<Bytes>, count: &Cell<u64>) -> io::Result<()> {
    loop {
        // Nothing is reserved while the application is silent: a reservation would take window from other streams.
        poll_fn(|cx| {
            if let Poll::Ready(result) = rd.as_ref().poll_read_ready(cx) {
                return Poll::Ready(result);
            }
            match send.poll_reset(cx) {
                Poll::Ready(Ok(r)) if r == Reason::NO_ERROR || r == Reason::CANCEL => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
                Poll::Ready(Ok(r)) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, r.to_string()))),
                Poll::Ready(Err(e)) => Poll::Ready(Err(broken(e))),
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
        send.reserve_capacity(CHUNK);
        let room = poll_fn(|cx| send.poll_capacity(cx)).await.ok_or(io::ErrorKind::ConnectionReset)?.map_err(broken)?;
        let data = poll_fn(|cx| match poll_bytes(rd, cx, room.min(CHUNK)) {
            // Readiness was stale: give the window back while we wait again.
            Poll::Pending => Poll::Ready(Ok(None)),
            Poll::Ready(r) => Poll::Ready(r.map(Some)),
        })
        .await?;
        match data {
            None => send.reserve_capacity(0),
            Some(d) if d.is_empty() => {
                send.reserve_capacity(0);
                return send.send_data(Bytes::new(), true).map_err(broken);
            }
            Some(mut d) => {
                add(count, d.len());
                while d.len() > FRAME {
                    send.send_data(d.split_to(FRAME), false).map_err(broken)?;
                }
                send.send_data(d, false).map_err(broken)?;
                send.reserve_capacity(0);
            }
        }
    }
}

async fn to_socket(recv: &mut RecvStream, wr: &mut WriteHalf<'_>, count: &Cell<u64>) -> io::Result<()> {
    while let Some(first) = poll_fn(|cx| poll_data(recv, cx)).await? {
        // What else has come goes into the same write.
        let (mut total, mut ended, mut more) = (first.len(), false, Vec::new());
        while total < GATHER && more.len() + 1 < PIECES && !ended {
            match poll_fn(|cx| Poll::Ready(poll_data(recv, cx))).await {
                Poll::Ready(Ok(Some(d))) => {
                    total += d.len();
                    more.push(d);
                }
                Poll::Ready(Ok(None)) => ended = true,
                // After what came before it.
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        write_all(wr, first, more).await?;
        add(count, total);
        recv.flow_control().release_capacity(total).map_err(broken)?;
        if ended {
            break;
        }
    }
    end(wr);
    Ok(())
}

/// The next frame's bytes; None at an orderly end, also one that is said by a reset (reference ztunnel §1.4).
fn poll_data(recv: &mut RecvStream, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
    Poll::Ready(match ready!(recv.poll_data(cx)) {
        None => Ok(None),
        Some(Ok(d)) => Ok(Some(d)),
        Some(Err(e)) if e.reason() == Some(Reason::NO_ERROR) => Ok(None),
        Some(Err(e)) => Err(broken(e)),
    })
}

async fn write_all(wr: &mut WriteHalf<'_>, first: Bytes, more: Vec<Bytes>) -> io::Result<()> {
    let mut pieces = first.chain(Pieces(more.into()));
    while pieces.has_remaining() {
        let written = poll_fn(|cx| {
            let mut iov = [io::IoSlice::new(&[]); PIECES];
            let used = pieces.chunks_vectored(&mut iov);
            Pin::new(&mut *wr).poll_write_vectored(cx, &iov[..used])
        })
        .await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        pieces.advance(written);
    }
    Ok(())
}

/// Several pieces as one buffer.
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

/// Carries bytes between two sockets until both directions have ended. `client` is the side that opened the connection.
///
/// # Errors
/// If a leg broke; the other has then been reset.
pub async fn plain(client: TcpStream, server: TcpStream, counts: &Counts) -> io::Result<()> {
    let (mut client, mut server) = (Leg::new(client), Leg::new(server));
    let result = {
        let (mut ra, mut wa) = client.tcp.split();
        let (mut rb, mut wb) = server.tcp.split();
        let up = pin!(one_way(&mut ra, &mut wb, &counts.from_client));
        let down = pin!(one_way(&mut rb, &mut wa, &counts.to_client));
        both(up, down).await
    };
    (client.complete, server.complete) = (result.is_ok(), result.is_ok());
    result
}

async fn one_way(rd: &mut ReadHalf<'_>, wr: &mut WriteHalf<'_>, count: &Cell<u64>) -> io::Result<()> {
    loop {
        match small(rd, wr, count).await? {
            0 => {
                end(wr);
                return Ok(());
            }
            n if n >= SPLICE_FROM && spliced(rd, wr, count).await? => {
                end(wr);
                return Ok(());
            }
            _ => {}
        }
    }
}

/// One read and its writes, through the worker's scratch buffer; what the socket does not take at once is kept.
async fn small(rd: &mut ReadHalf<'_>, wr: &mut WriteHalf<'_>, count: &Cell<u64>) -> io::Result<usize> {
    let (length, rest) = poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|buf| {
            if buf.is_empty() {
                buf.resize(64 << 10, 0);
            }
            let mut read_buf = ReadBuf::new(buf);
            ready!(Pin::new(&mut *rd).poll_read(cx, &mut read_buf))?;
            let length = read_buf.filled().len();
            let mut done = 0;
            while done < length {
                match poll_write(wr, cx, &buf[done..length]) {
                    Poll::Ready(Ok(w)) => done += w,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => break,
                }
            }
            Poll::Ready(Ok::<_, io::Error>((length, buf[done..length].to_vec())))
        })
    })
    .await?;
    let mut at = 0;
    while at < rest.len() {
        at += poll_fn(|cx| poll_write(wr, cx, &rest[at..])).await?;
    }
    add(count, length);
    Ok(length)
}

/// Splices until the socket has nothing for the moment. True: the direction has ended.
async fn spliced(rd: &mut ReadHalf<'_>, wr: &mut WriteHalf<'_>, count: &Cell<u64>) -> io::Result<bool> {
    let mut pipe = match SPARE.with_borrow_mut(Vec::pop) {
        Some(p) => p,
        None => Pipe::new()?,
    };
    let mut rounds = 0;
    loop {
        // The pipe is empty here, so "would block" can only be about the socket.
        let filled = rd.as_ref().try_io(Interest::READABLE, || pipe.fill(rd.as_ref().as_fd()));
        match filled {
            Ok(0) => {
                give_back(pipe);
                return Ok(true);
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if rounds == 0 {
                    give_back(pipe);
                    return Ok(false);
                }
                // In the middle of a bulk transfer the next bytes are near; but an idle connection must hold no pipe.
                let more = tokio::time::timeout(std::time::Duration::from_millis(1), rd.readable()).await;
                if more.is_err() {
                    give_back(pipe);
                    return Ok(false);
                }
                rounds = 1;
                continue;
            }
            Err(e) => return Err(e),
        }
        rounds += 1;
        while pipe.held > 0 {
            match wr.as_ref().try_io(Interest::WRITABLE, || pipe.drain(wr.as_ref().as_fd())) {
                Ok(n) => add(count, n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => wr.writable().await?,
                Err(e) => return Err(e),
            }
        }
        tokio::task::coop::consume_budget().await;
    }
}

fn give_back(pipe: Pipe) {
    SPARE.with_borrow_mut(|v| {
        if v.len() < PIPES && pipe.held == 0 {
            v.push(pipe);
        }
    });
}

/// At most `max` bytes, without a copy, out of the worker's arena. Empty: end of stream.
fn poll_bytes(rd: &mut ReadHalf<'_>, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Bytes>> {
    BUFFER.with_borrow_mut(|arena| {
        if arena.capacity() < CHUNK {
            // Takes the old memory again if all that was read into it has been sent.
            arena.reserve(ARENA);
        }
        let mut limited = (&mut *arena).limit(max);
        let read = std::pin::pin!(rd.read_buf(&mut limited));
        ready!(read.poll(cx))?;
        Poll::Ready(Ok(arena.split().freeze()))
    })
}

fn poll_write(wr: &mut WriteHalf<'_>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
    Pin::new(wr).poll_write(cx, buf)
}

fn end(wr: &WriteHalf<'_>) {
    let _ = socket2::SockRef::from(wr.as_ref()).shutdown(std::net::Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    async fn pair() -> (TcpStream, TcpStream) {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(l.local_addr().unwrap()), l.accept());
        (a.unwrap(), b.unwrap().0)
    }

    /// How an application's connection ends: with its end of data, or with an error.
    async fn end(mut s: TcpStream) -> Result<Vec<u8>, io::ErrorKind> {
        let mut all = vec![];
        s.read_to_end(&mut all).await.map(|_| all).map_err(|e| e.kind())
    }

    #[tokio::test]
    async fn what_is_cut_is_reset_and_what_is_complete_is_not() {
        for cut in [false, true] {
            let ((mut client, a), (mut app, b)) = (pair().await, pair().await);
            client.write_all(b"half").await.unwrap();
            let counts = Counts::default();
            {
                let mut carried = pin!(plain(a, b, &counts));
                let mut got = [0; 4];
                // Until the application has the bytes.
                tokio::select! {
                    _ = &mut carried => panic!("nobody has ended it"),
                    r = app.read_exact(&mut got) => assert_eq!(r.unwrap(), 4),
                }
                if !cut {
                    app.shutdown().await.unwrap();
                    client.shutdown().await.unwrap();
                    carried.await.unwrap();
                }
            }
            let want = if cut { Err(io::ErrorKind::ConnectionReset) } else { Ok(vec![]) };
            assert_eq!((end(client).await, end(app).await), (want.clone(), want), "cut: {cut}");
        }
    }
}
