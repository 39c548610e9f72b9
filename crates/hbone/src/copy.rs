//! Moves bytes. An idle connection holds no buffer: the worker's arena is borrowed only when the socket has something.
//!
//! Both directions run to their own end (half-close is kept); an abnormal end of one leg becomes an abnormal end of the
//! other, so that an application can tell truncation from completion (docs/hbone.md §6).

mod outlive;
mod tunnel;
mod watch;

pub use outlive::Reached;
pub use tunnel::{Interrupted, Tunnel, keep, tunnel};
pub(crate) use watch::show_passed;
pub use watch::{Counts, Watch, Way};

use crate::spare::Spare;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use karst_core::limits;
use karst_rt::{
    socket::reset_on_close,
    splice::{PIPE_SIZE, Pipe},
    survive::{
        claim,
        progress::take,
        settle::LOOK,
        table::{Entry, Region},
    },
    turns,
};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

/// Largest read of a tunnelled stream, in bytes: as much as a stream may have waiting to be sent, so that a turn of the
/// stream's task is followed by one of the tunnel's, while the bytes are in the cache.
const CHUNK: usize = limits::SEND_BUFFER;
/// A worker's arena: reads take from it, and it is used again when what was read has been sent.
const ARENA: usize = 1 << 20;
/// Plain copies change to splice(2) after a read of at least this much: small messages are cheaper by read and write.
const SPLICE_FROM: usize = 32 << 10;
/// Empty pipes that a worker keeps.
const PIPES: usize = 64;
/// Largest read of a plain connection that is not spliced. Whoever comes after a crash counts on it.
const SMALL: usize = LOOK;

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(ARENA));
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static SPARE: RefCell<Spare<Pipe>> = const { RefCell::new(Spare::new(PIPES)) };
    /// Has the arena been used since the last look?
    static USED: Cell<bool> = const { Cell::new(false) };
}

/// Lets go of what this thread has not needed since the last time: pipes, and the memory of reads.
pub(crate) fn release_unneeded() {
    SPARE.with_borrow_mut(Spare::release);
    if !USED.replace(false) {
        BUFFER.with_borrow_mut(|arena| *arena = BytesMut::new());
    }
}

/// A socket that is carried. Its close is a reset until both directions have come to their end, also where the task is dropped
/// (a policy that came later, the end of a drain): an application must not take what is truncated for complete.
#[derive(Debug)]
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

/// Carries bytes between two sockets until both directions have ended. `client` is the side that opened the connection.
///
/// # Errors
/// If a leg broke; the other has then been reset.
pub async fn plain(client: TcpStream, server: TcpStream, counts: &Counts) -> io::Result<()> {
    Pair::new(client, server).carry(counts).await
}

/// Two sockets between which bytes are carried, in one stretch or in several: between two stretches nothing is lost, and the
/// connection can go over to another process.
#[derive(Debug)]
pub struct Pair {
    /// Its place in the table of those that outlive this process, if it is in there. What is read is then only looked at until the other
    /// side has it. The first field, and so the first to go: what is closed is in no table any more.
    entry: Option<Entry>,
    /// From the client.
    up: Flow,
    /// To the client.
    down: Flow,
    client: Leg,
    server: Leg,
}

/// A socket of another process, which is this runtime's now. Until it is, its close is a reset: whoever had it may have been stopped in
/// between.
fn taken_over(socket: OwnedFd) -> io::Result<TcpStream> {
    let tcp = std::net::TcpStream::from(socket);
    tcp.set_nonblocking(true)?;
    let tcp = TcpStream::from_std(tcp)?;
    socket2::SockRef::from(&tcp).set_linger(None)?;
    Ok(tcp)
}

/// What of one direction outlives the task that carries it.
#[derive(Debug, Default)]
struct Flow {
    /// Read, and not taken by the other side yet.
    rest: Bytes,
    /// The same, in the kernel. Only while `rest` is empty.
    pipe: Option<Pipe>,
    /// Its end has been passed on.
    ended: bool,
}

/// What of a direction another process has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Read, and not taken by the other side yet.
    pub rest: Bytes,
    /// Its end has been passed on.
    pub ended: bool,
}

/// A connection on its way to another process. Nothing may be read or written any more.
#[derive(Debug)]
pub struct Parts {
    /// The client's socket.
    pub client: OwnedFd,
    /// The server's socket.
    pub server: OwnedFd,
    /// From the client.
    pub up: Left,
    /// To the client.
    pub down: Left,
}

impl Pair {
    /// Of two sockets of which nothing has been read yet.
    pub fn new(client: TcpStream, server: TcpStream) -> Self {
        let (client, server) = (Leg::new(client), Leg::new(server));
        Self { entry: None, up: Flow::default(), down: Flow::default(), client, server }
    }

    /// Of another process.
    ///
    /// # Errors
    /// The runtime cannot take the sockets.
    pub fn resume(parts: Parts) -> io::Result<Self> {
        let flow = |left: Left| Flow { rest: left.rest, pipe: None, ended: left.ended };
        Ok(Self {
            entry: None,
            up: flow(parts.up),
            down: flow(parts.down),
            client: Leg::new(taken_over(parts.client)?),
            server: Leg::new(taken_over(parts.server)?),
        })
    }

    /// Enters it in the table of those that outlive this process: another one can go on with it if this one is killed
    /// (docs/survival.md). `note`: what that is told of it. If it cannot be entered it is as others are.
    pub fn enter(&mut self, region: &Rc<Region>, note: &[u8]) {
        // What is in this process's memory would be gone with it.
        for flow in [&mut self.up, &mut self.down] {
            flow.leave_to_kernel();
        }
        let held = [&self.up, &self.down].map(Flow::held);
        let pipes = [self.up.pipe.as_ref(), self.down.pipe.as_ref()];
        self.entry = region.enter([self.client.tcp.as_fd(), self.server.tcp.as_fd()], held, pipes, note);
    }

    /// Carries until both directions have ended. It may be dropped and called again.
    ///
    /// # Errors
    /// If a leg broke; both are reset when this is dropped.
    pub async fn carry(&mut self, counts: &Counts) -> io::Result<()> {
        let result = {
            let (mut ra, mut wa) = self.client.tcp.split();
            let (mut rb, mut wb) = self.server.tcp.split();
            let entry = self.entry.as_ref();
            let up = pin!(one_way(&mut ra, &mut wb, &counts.from_client, &mut self.up, entry));
            let down = pin!(one_way(&mut rb, &mut wa, &counts.to_client, &mut self.down, entry));
            both(up, down).await
        };
        (self.client.complete, self.server.complete) = (result.is_ok(), result.is_ok());
        result
    }

    /// What another process needs to go on. Until [`Pair::release`] this one may go on as well, if the other does not. It outlives this
    /// process no more: two would go on with it.
    ///
    /// # Errors
    /// There are no descriptors left. Nothing is lost.
    pub fn parts(&mut self) -> io::Result<Parts> {
        self.entry = None;
        let client = self.client.tcp.as_fd().try_clone_to_owned()?;
        let server = self.server.tcp.as_fd().try_clone_to_owned()?;
        Ok(Parts { client, server, up: self.up.left()?, down: self.down.left()? })
    }

    /// Lets go of the sockets, which are another process's now: when this is dropped they are neither reset nor shut down.
    pub fn release(&mut self) {
        (self.client.complete, self.server.complete) = (true, true);
    }
}

impl Flow {
    fn left(&mut self) -> io::Result<Left> {
        if let Some(pipe) = &mut self.pipe {
            if pipe.held > 0 {
                self.rest = pipe.take()?.into();
            }
            self.give();
        }
        Ok(Left { rest: self.rest.clone(), ended: self.ended })
    }

    /// What was read is in the kernel from now on, if there is room for it.
    fn leave_to_kernel(&mut self) {
        if !self.rest.is_empty()
            && self.pipe.is_none()
            && let Ok(Some(pipe)) = Pipe::holding(&self.rest)
        {
            (self.pipe, self.rest) = (Some(pipe), Bytes::new());
        }
    }

    /// Bytes that were read and that the other side has not taken.
    fn held(&self) -> usize {
        self.rest.len() + self.pipe.as_ref().map_or(0, |pipe| pipe.held)
    }

    /// Has a pipe from now on. `entry`: its connection's, if it has one.
    fn open_pipe(&mut self, way: &Way, entry: Option<&Entry>) -> io::Result<()> {
        let pipe = match SPARE.with_borrow_mut(Spare::take) {
            Some(pipe) => pipe,
            None => Pipe::new()?,
        };
        if let Some(entry) = entry {
            entry.pipe(way.is_from_client(), Some(&pipe))?;
        }
        self.pipe = Some(pipe);
        Ok(())
    }

    /// An empty pipe is somebody else's next. `entry`: as of [`Flow::open_pipe`].
    fn give_back(&mut self, way: &Way, entry: Option<&Entry>) -> io::Result<()> {
        let is_empty = self.pipe.as_ref().is_some_and(|pipe| pipe.held == 0);
        if let Some(entry) = entry.filter(|_| is_empty) {
            entry.pipe(way.is_from_client(), None)?;
        }
        self.give();
        Ok(())
    }

    fn give(&mut self) {
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held == 0) {
            SPARE.with_borrow_mut(|spare| spare.give(pipe));
        }
    }
}

impl From<claim::Settled> for Parts {
    fn from(settled: claim::Settled) -> Self {
        let claim::Settled { client, server, up, down } = settled;
        let left = |left: claim::Left| Left { rest: left.rest.into(), ended: left.ended };
        Self { client, server, up: left(up), down: left(down) }
    }
}

/// Whenever it waits, what was read and not written is in `flow`: it may be dropped there. `entry`: its connection's, if it has one.
async fn one_way(
    rd: &mut ReadHalf<'_>,
    wr: &mut WriteHalf<'_>,
    way: &Way,
    flow: &mut Flow,
    entry: Option<&Entry>,
) -> io::Result<()> {
    if flow.ended {
        return Ok(());
    }
    // What a stretch before has left, perhaps in another process.
    turns::spend(flow.rest.len());
    write_rest(wr, way, flow).await?;
    if flow.pipe.is_some() {
        // Large, as what splices is: not in the task of every connection.
        Box::pin(write_pipe(wr, way, flow)).await?;
        flow.give_back(way, entry)?;
    }
    loop {
        let read = match entry.is_some() {
            true => looked_at(rd, wr, way).await?,
            false => small(rd, wr, way, flow).await?,
        };
        match read {
            0 => break,
            // What is watched is copied.
            n if n >= SPLICE_FROM && !way.is_watched() && Box::pin(spliced(rd, wr, way, flow, entry)).await? => break,
            _ => turns::pass().await,
        }
    }
    way.ended();
    end(wr);
    flow.ended = true;
    Ok(())
}

/// One read and its writes, through the worker's scratch buffer; what the socket does not take at once is kept.
async fn small(rd: &mut ReadHalf<'_>, wr: &mut WriteHalf<'_>, way: &Way, flow: &mut Flow) -> io::Result<usize> {
    let length = poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|buf| {
            if buf.is_empty() {
                buf.resize(SMALL, 0);
            }
            let mut read_buf = ReadBuf::new(buf);
            ready!(Pin::new(&mut *rd).poll_read(cx, &mut read_buf)).inspect_err(|_| way.sender_gone())?;
            let length = read_buf.filled().len();
            turns::spend(length);
            let (mut done, mut failed) = (0, None);
            while done < length && failed.is_none() {
                match poll_write(wr, cx, &buf[done..length]) {
                    Poll::Ready(Ok(w)) => done += w,
                    Poll::Ready(Err(e)) => failed = Some(e),
                    Poll::Pending => break,
                }
            }
            way.add(done);
            way.show(&buf[..length]);
            if let Some(error) = failed {
                way.receiver_gone();
                return Poll::Ready(Err(error));
            }
            if done < length {
                flow.rest = Bytes::copy_from_slice(&buf[done..length]);
            }
            Poll::Ready(Ok::<_, io::Error>(length))
        })
    })
    .await?;
    write_rest(wr, way, flow).await?;
    Ok(length)
}

/// The same of a connection that outlives this process: what is seen is taken out of the one socket when the other has it. What that
/// does not take stays where it is, and is looked at again.
async fn looked_at(rd: &mut ReadHalf<'_>, wr: &mut WriteHalf<'_>, way: &Way) -> io::Result<usize> {
    loop {
        let (seen, done) = poll_fn(|cx| SCRATCH.with_borrow_mut(|buf| poll_looked_at(rd, wr, way, cx, buf))).await?;
        if done > 0 || seen == 0 {
            return Ok(seen);
        }
        // Rare, and large: not in the task of every connection.
        Box::pin(wr.writable()).await?;
    }
}

/// Bytes that were seen, and how many of these the other side has taken.
fn poll_looked_at(
    rd: &mut ReadHalf<'_>,
    wr: &mut WriteHalf<'_>,
    way: &Way,
    cx: &mut Context<'_>,
    buf: &mut Vec<u8>,
) -> Poll<io::Result<(usize, usize)>> {
    if buf.is_empty() {
        buf.resize(SMALL, 0);
    }
    let seen = ready!(rd.poll_peek(cx, &mut ReadBuf::new(buf))).inspect_err(|_| way.sender_gone())?;
    let (mut done, mut failed) = (0, None);
    while done < seen && failed.is_none() {
        match poll_write(wr, cx, &buf[done..seen]) {
            Poll::Ready(Ok(w)) => done += w,
            Poll::Ready(Err(e)) => failed = Some(e),
            Poll::Pending => break,
        }
    }
    // Killed before this, it has given more than it has taken, by no more than it looks at.
    take(rd.as_ref().as_fd(), done).inspect_err(|_| way.sender_gone())?;
    turns::spend(done);
    way.add(done);
    if let Some(error) = failed {
        way.show(&buf[..seen]);
        way.receiver_gone();
        return Poll::Ready(Err(error));
    }
    if done > 0 || seen == 0 {
        way.show(&buf[..done]);
    }
    Poll::Ready(Ok((seen, done)))
}

async fn write_rest(wr: &mut WriteHalf<'_>, way: &Way, flow: &mut Flow) -> io::Result<()> {
    while !flow.rest.is_empty() {
        let written = poll_fn(|cx| poll_write(wr, cx, &flow.rest)).await.inspect_err(|_| way.receiver_gone())?;
        way.add(written);
        flow.rest.advance(written);
        if flow.rest.is_empty() {
            // An idle connection holds no buffer.
            flow.rest = Bytes::new();
        }
    }
    Ok(())
}

async fn write_pipe(wr: &mut WriteHalf<'_>, way: &Way, flow: &mut Flow) -> io::Result<()> {
    while let Some(pipe) = flow.pipe.as_mut().filter(|pipe| pipe.held > 0) {
        match wr.as_ref().try_io(Interest::WRITABLE, || pipe.drain(wr.as_ref().as_fd())) {
            Ok(n) => {
                turns::spend(n);
                way.add(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wr.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Splices until the socket has nothing for the moment. True: the direction has ended. `entry`: as of [`one_way`].
async fn spliced(
    rd: &mut ReadHalf<'_>,
    wr: &mut WriteHalf<'_>,
    way: &Way,
    flow: &mut Flow,
    entry: Option<&Entry>,
) -> io::Result<bool> {
    if flow.pipe.is_none() {
        flow.open_pipe(way, entry)?;
    }
    let mut rounds = 0;
    loop {
        let Some(pipe) = &mut flow.pipe else { return Ok(false) };
        // The pipe is empty here, so "would block" can only be about the socket.
        let filled = rd.as_ref().try_io(Interest::READABLE, || pipe.fill(rd.as_ref().as_fd(), turns::bytes(PIPE_SIZE)));
        match filled {
            Ok(0) => {
                flow.give_back(way, entry)?;
                return Ok(true);
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if rounds == 0 {
                    flow.give_back(way, entry)?;
                    return Ok(false);
                }
                // In the middle of a bulk transfer the next bytes are near; but an idle connection must hold no pipe.
                let more = tokio::time::timeout(std::time::Duration::from_millis(1), rd.readable()).await;
                if more.is_err() {
                    flow.give_back(way, entry)?;
                    return Ok(false);
                }
                rounds = 1;
                continue;
            }
            Err(e) => return Err(e),
        }
        rounds += 1;
        write_pipe(wr, way, flow).await?;
        tokio::task::coop::consume_budget().await;
        turns::pass().await;
    }
}

/// At most `max` bytes, without a copy, in the worker's arena. Empty: end of stream.
fn poll_bytes(rd: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Bytes>> {
    USED.set(true);
    BUFFER.with_borrow_mut(|arena| {
        // From its beginning if all that was read into it has been sent: small messages are all read into the same few lines, which
        // are in the cache.
        if !arena.try_reclaim(ARENA) && arena.capacity() < CHUNK {
            arena.reserve(ARENA);
        }
        let mut limited = (&mut *arena).limit(max);
        let read = std::pin::pin!(rd.read_buf(&mut limited));
        ready!(read.poll(cx))?;
        Poll::Ready(Ok(arena.split().freeze()))
    })
}

/// A socket as whoever looks reads it: the bytes stay in it. Each look sees what comes after the one before, if it was told so
/// (`karst_rt::survive::ahead`).
struct Looking<'a, 'b>(&'a mut ReadHalf<'b>);

impl AsyncRead for Looking<'_, '_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_peek(cx, buf).map_ok(|_| ())
    }
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
    use karst_rt::survive::table::{self, Table};
    use socket2::SockRef;
    use std::{fs::File, net::Shutdown};
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    pub(super) async fn pair() -> (TcpStream, TcpStream) {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(l.local_addr().unwrap()), l.accept());
        (a.unwrap(), b.unwrap().0)
    }

    /// How an application's connection ends: with its end of data, or with an error.
    async fn end(mut s: TcpStream) -> Result<Vec<u8>, io::ErrorKind> {
        let mut all = vec![];
        s.read_to_end(&mut all).await.map(|_| all).map_err(|e| e.kind())
    }

    /// What was shown.
    #[derive(Debug, Default)]
    pub(super) struct Shown {
        pub(super) client: Vec<u8>,
        pub(super) server: Vec<u8>,
        /// What of it came when; the same in a row is there once.
        pub(super) order: Vec<&'static str>,
    }
    impl Shown {
        fn note(&mut self, what: &'static str) {
            if self.order.last() != Some(&what) {
                self.order.push(what);
            }
        }
    }

    /// Keeps what it is shown.
    #[derive(Debug)]
    struct Seen {
        shown: Rc<RefCell<Shown>>,
        reading: bool,
    }
    impl Watch for Seen {
        fn is_reading(&self) -> bool {
            self.reading
        }
        fn client_sent(&self, bytes: &[u8]) {
            let mut shown = self.shown.borrow_mut();
            shown.client.extend_from_slice(bytes);
            // The end of a direction is a read of nothing.
            if !bytes.is_empty() {
                shown.note("client");
            }
        }
        fn server_sent(&self, bytes: &[u8]) {
            let mut shown = self.shown.borrow_mut();
            shown.server.extend_from_slice(bytes);
            if !bytes.is_empty() {
                shown.note("server");
            }
        }
        fn client_ended(&self) {
            self.shown.borrow_mut().note("client ended");
        }
        fn server_ended(&self) {
            self.shown.borrow_mut().note("server ended");
        }
        fn closed(&self) {
            self.shown.borrow_mut().note("closed");
        }
    }

    /// Somebody watches; `reading`: wants more than it has been shown.
    pub(super) fn watched(reading: bool) -> (Counts, Rc<RefCell<Shown>>) {
        let (counts, shown) = (Counts::default(), Rc::<RefCell<Shown>>::default());
        counts.show_to(Rc::new(Seen { shown: shown.clone(), reading }));
        (counts, shown)
    }

    /// Says `said` and ends, perhaps before it has heard all; what it hears.
    pub(super) async fn talk(tcp: TcpStream, said: &[u8]) -> Vec<u8> {
        let (mut rd, mut wr) = tcp.into_split();
        let mut heard = vec![];
        let write = async {
            wr.write_all(said).await.unwrap();
            wr.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(write, rd.read_to_end(&mut heard));
        read.unwrap();
        heard
    }

    /// One message after the other is read into the same memory, and what somebody still has is left alone.
    #[tokio::test]
    async fn messages_are_read_into_the_same_memory() {
        // Another test in this thread may have left something.
        BUFFER.set(BytesMut::new());
        let (mut app, mut tcp) = pair().await;
        let (mut rd, _wr) = tcp.split();
        let mut read = async |message: &[u8]| {
            app.write_all(message).await.unwrap();
            let data = poll_fn(|cx| poll_bytes(&mut rd, cx, CHUNK)).await.unwrap();
            assert_eq!(data, message);
            data
        };
        let place = read(b"first").await.as_ptr();
        let held = read(b"second").await;
        assert_eq!(held.as_ptr(), place);
        let third = read(b"third").await;
        assert_ne!(third.as_ptr(), place);
        assert_eq!(held, "second");
        drop((held, third));
        assert_eq!(read(b"fourth").await.as_ptr(), place);
    }

    /// Of bulk, too, which would be spliced, and which the sockets take in parts.
    #[tokio::test]
    async fn who_watches_is_shown_every_byte_of_a_plain_connection() {
        let (said, answered) = (vec![1; 3 << 20], vec![2; 2 << 20]);
        let ((client, a), (app, b)) = (pair().await, pair().await);
        for leg in [&a, &b] {
            SockRef::from(leg).set_send_buffer_size(16 << 10).unwrap();
        }
        let (counts, shown) = watched(true);
        let (carried, asked, heard) = tokio::join!(plain(a, b, &counts), talk(app, &answered), talk(client, &said));
        carried.unwrap();
        let shown = shown.borrow();
        assert!(shown.client == said && asked == said && shown.server == answered && heard == answered);
        assert_eq!(shown.order.iter().filter(|what| what.ends_with("ended")).count(), 2);
        assert_eq!((counts.from_client.get(), counts.to_client.get()), (said.len() as u64, answered.len() as u64));
    }

    /// What came with the end, or just before it, is shown before it; so is what was asked before what was answered.
    #[tokio::test]
    async fn last_bytes_are_shown_before_the_end() {
        let ((mut client, a), (mut app, b)) = (pair().await, pair().await);
        let (counts, shown) = watched(true);
        client.write_all(b"asked").await.unwrap();
        client.shutdown().await.unwrap();
        let answer = async {
            let mut asked = vec![];
            app.read_to_end(&mut asked).await.unwrap();
            app.write_all(b"answered").await.unwrap();
            drop(app);
            asked
        };
        let (carried, asked) = tokio::join!(plain(a, b, &counts), answer);
        carried.unwrap();
        assert_eq!((asked, end(client).await), (b"asked".to_vec(), Ok(b"answered".to_vec())));
        let shown = shown.borrow();
        assert!(shown.client == b"asked" && shown.server == b"answered");
        assert_eq!(shown.order, ["client", "client ended", "server", "server ended"]);
    }

    /// It was read, and nobody can be given it: it is shown once all the same, and then who has gone.
    #[tokio::test]
    async fn what_cannot_be_written_is_shown_once() {
        for of_client in [true, false] {
            let ((mut client, a), (mut app, b)) = (pair().await, pair().await);
            let (counts, shown) = watched(true);
            let (says, to) = if of_client { (&mut client, &b) } else { (&mut app, &a) };
            says.write_all(b"said").await.unwrap();
            SockRef::from(to).shutdown(Shutdown::Write).unwrap();
            assert_eq!(plain(a, b, &counts).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            counts.watch().unwrap().closed();
            let shown = shown.borrow();
            let (said, want): (_, &[&str]) = match of_client {
                true => (&shown.client, &["client", "closed"]),
                false => (&shown.server, &["server", "client ended", "closed"]),
            };
            assert!(said == b"said" && shown.client.len() + shown.server.len() == 4, "{shown:?}");
            assert_eq!(shown.order, want);
            assert_eq!((counts.from_client.get(), counts.to_client.get()), (0, 0));
        }
    }

    /// Whose fault it is that an answer is not whole: a client that resets has ended; what a server has said has not.
    #[tokio::test]
    async fn who_has_gone_is_told() {
        for of_client in [true, false] {
            let ((client, a), (app, b)) = (pair().await, pair().await);
            let (counts, shown) = watched(true);
            let (gone, _stays) = if of_client { (client, app) } else { (app, client) };
            reset_on_close(&gone);
            drop(gone);
            plain(a, b, &counts).await.unwrap_err();
            let want: &[&str] = if of_client { &["client ended"] } else { &[] };
            assert_eq!(shown.borrow().order, want);
        }
    }

    /// A pipe that was used is kept by the worker: none was where all was copied.
    #[tokio::test]
    async fn what_nobody_reads_is_spliced() {
        let said = vec![1; 3 << 20];
        for (name, counts, spliced) in [
            ("nobody watches", Counts::default(), true),
            ("given up", watched(false).0, true),
            ("watched", watched(true).0, false),
        ] {
            SPARE.with_borrow_mut(|spare| *spare = Spare::new(PIPES));
            let ((client, a), (app, b)) = (pair().await, pair().await);
            let (carried, asked, _) = tokio::join!(plain(a, b, &counts), talk(app, b""), talk(client, &said));
            carried.unwrap();
            assert!(asked == said, "{name}");
            assert_eq!(counts.from_client.get(), said.len() as u64, "{name}");
            assert_eq!(SPARE.with_borrow(|pipes| !pipes.is_empty()), spliced, "{name}");
        }
    }

    #[tokio::test]
    async fn who_watches_is_shown_every_byte_of_a_tunnel() {
        let (said, answered) = (vec![1; 300 << 10], vec![2; 500 << 10]);
        let (near, far) = tokio::io::duplex(64 << 10);
        let server = async {
            let mut connection = h2::server::handshake(far).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let send = respond.send_response(http::Response::new(()), false).unwrap();
            let (app, b) = pair().await;
            let (counts, shown) = watched(true);
            let body = request.into_body();
            let mut carried = pin!(tunnel(b, send, body, &counts, false));
            let mut done = false;
            let carried = poll_fn(|cx| {
                done = done || connection.poll_closed(cx).is_ready();
                carried.as_mut().poll(cx)
            });
            let (carried, heard) = tokio::join!(carried, talk(app, &answered));
            carried.unwrap();
            assert!(heard == said && shown.borrow().client == said && shown.borrow().server == answered);
            // What is left is sent.
            if !done {
                let _ = poll_fn(|cx| connection.poll_closed(cx)).await;
            }
        };
        let client = async {
            let (send, connection) = h2::client::handshake(near).await.unwrap();
            let run = async {
                let mut send = send.ready().await.unwrap();
                let request = http::Request::connect("a:1").body(()).unwrap();
                let (response, send) = send.send_request(request, false).unwrap();
                let body = response.await.unwrap().into_body();
                let (app, b) = pair().await;
                let (counts, shown) = watched(true);
                let (carried, heard) = tokio::join!(tunnel(b, send, body, &counts, true), talk(app, &said));
                carried.unwrap();
                assert!(heard == answered && shown.borrow().client == said && shown.borrow().server == answered);
            };
            let _ = tokio::join!(run, connection);
        };
        tokio::join!(server, client);
    }

    /// One that would outlive this process is carried as others are, whether it is spliced or not, and to who takes little as well.
    #[tokio::test]
    async fn what_is_in_the_table_of_those_that_outlive_is_carried_the_same() {
        let (said, answered) = (vec![1; 3 << 20], vec![2; 2 << 20]);
        let table = Table::new(1).unwrap();
        let region = table.region(0).unwrap();
        let entries = || table::read(&File::from(table.as_fd().try_clone_to_owned().unwrap())).unwrap();
        for is_watched in [false, true] {
            let ((client, a), (app, b)) = (pair().await, pair().await);
            for leg in [&a, &b] {
                SockRef::from(leg).set_send_buffer_size(16 << 10).unwrap();
            }
            let (counts, shown) = watched(is_watched);
            let mut pair = Pair::new(a, b);
            pair.enter(&region, b"a note");
            assert_eq!(entries()[0].note, b"a note");
            let (carried, asked, heard) = tokio::join!(pair.carry(&counts), talk(app, &answered), talk(client, &said));
            carried.unwrap();
            assert!(asked == said && heard == answered, "{is_watched}");
            assert_eq!((counts.from_client.get(), counts.to_client.get()), (said.len() as u64, answered.len() as u64));
            let shown = shown.borrow();
            assert!(!is_watched || shown.client == said && shown.server == answered);
            assert_eq!(entries()[0].pipes, [None, None], "those that were used are others' next");
            drop(pair);
            assert!(entries().is_empty());
        }
    }

    /// Two would go on with it.
    #[tokio::test]
    async fn what_goes_over_to_another_process_outlives_this_one_no_more() {
        let ((mut client, a), (mut app, b)) = (pair().await, pair().await);
        let table = Table::new(1).unwrap();
        let entries = || table::read(&File::from(table.as_fd().try_clone_to_owned().unwrap())).unwrap().len();
        let mut carried = Pair::new(a, b);
        carried.enter(&table.region(0).unwrap(), b"");
        assert_eq!(entries(), 1);
        drop(carried.parts().unwrap());
        assert_eq!(entries(), 0);
        // The other one refuses: it goes on as any.
        client.write_all(b"said").await.unwrap();
        let (counts, mut heard) = (Counts::default(), [0; 4]);
        tokio::select! {
            _ = carried.carry(&counts) => panic!("nobody has ended it"),
            r = app.read_exact(&mut heard) => assert_eq!((r.unwrap(), &heard), (4, b"said")),
        }
    }

    /// Whoever passes a connection on has made its close a reset: so it is where the next process cannot serve it.
    #[test]
    fn what_cannot_be_resumed_is_reset() {
        let pair = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (near, listener.accept().unwrap().0)
        };
        let ((mut client, a), (mut app, b)) = (pair(), pair());
        for leg in [&a, &b] {
            SockRef::from(leg).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
        // A runtime that takes no sockets any more.
        let over = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let handle = over.handle().clone();
        drop(over);
        let _context = handle.enter();
        let parts = Parts { client: a.into(), server: b.into(), up: Left::default(), down: Left::default() };
        assert!(Pair::resume(parts).is_err());
        for end in [&mut client, &mut app] {
            let ended = std::io::Read::read(end, &mut [0]).map_err(|e| e.kind());
            assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
        }
    }

    /// As a successor takes a connection over.
    fn go_over(mut pair: Pair) -> Pair {
        let parts = pair.parts().unwrap();
        pair.release();
        Pair::resume(parts).unwrap()
    }

    /// Applications that read late, so that something is always on the way; every few milliseconds another process carries them.
    #[tokio::test]
    async fn a_connection_that_goes_over_and_over_loses_nothing() {
        let ((client, a), (app, b)) = (pair().await, pair().await);
        let bytes = |seed: u8, length: usize| (0..length).map(|n| (n / 7) as u8 ^ seed).collect::<Vec<_>>();
        let (said, answered) = (bytes(3, 24 << 20), bytes(9, 16 << 20));
        let (counts, went) = (Counts::default(), Cell::new(0));
        let carried = async {
            let mut pair = Pair::new(a, b);
            let mut pause = 100;
            loop {
                let stretch = tokio::time::timeout(std::time::Duration::from_micros(pause), pair.carry(&counts)).await;
                if let Ok(result) = stretch {
                    return result;
                }
                pair = go_over(pair);
                went.set(went.get() + 1);
                // 0.1 ms to 3 ms.
                pause = 100 + (pause * 7 + 13) % 2900;
            }
        };
        let (carried, asked, heard) = tokio::join!(carried, talk(app, &answered), talk(client, &said));
        carried.unwrap();
        assert!(asked == said && heard == answered && went.get() > 3, "{}", went.get());
        assert_eq!((counts.from_client.get(), counts.to_client.get()), (said.len() as u64, answered.len() as u64));
    }

    /// What the application has not taken yet goes along, and so does the client's end, which is not passed on twice.
    #[tokio::test]
    async fn what_is_on_the_way_and_what_has_ended_goes_along() {
        let ((mut client, a), (mut app, b)) = (pair().await, pair().await);
        let counts = Counts::default();
        let wait = std::time::Duration::from_millis(300);
        // Small queues, which are full soon.
        socket2::SockRef::from(&a).set_recv_buffer_size(64 << 10).unwrap();
        socket2::SockRef::from(&b).set_send_buffer_size(64 << 10).unwrap();
        socket2::SockRef::from(&app).set_recv_buffer_size(64 << 10).unwrap();
        let mut carried = Pair::new(a, b);
        let said = vec![7; 32 << 20];
        // Nobody reads: the queues fill, and the rest is ours.
        let write = tokio::time::timeout(wait, client.write_all(&said));
        tokio::select! {
            _ = carried.carry(&counts) => panic!("nobody has ended it"),
            r = write => assert!(r.is_err(), "all of it was taken"),
        }
        let parts = carried.parts().unwrap();
        assert!(!parts.up.rest.is_empty() && !parts.up.ended && parts.down == Left::default());
        // The other process refuses: this one goes on, and then the next takes it.
        drop(parts);
        assert!(tokio::time::timeout(wait / 10, carried.carry(&counts)).await.is_err());
        let mut carried = go_over(carried);
        client.shutdown().await.unwrap();
        let mut heard = vec![];
        tokio::select! {
            _ = carried.carry(&counts) => panic!("the application has not ended"),
            r = app.read_to_end(&mut heard) => drop(r.unwrap()),
        }
        assert_eq!(counts.from_client.get(), heard.len() as u64);
        // Half closed: the application answers the next process.
        let _ = tokio::time::timeout(wait / 10, carried.carry(&counts)).await;
        assert!(carried.parts().unwrap().up.ended);
        let mut carried = go_over(carried);
        app.write_all(b"the answer").await.unwrap();
        drop(app);
        carried.carry(&counts).await.unwrap();
        assert_eq!(end(client).await, Ok(b"the answer".to_vec()));
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
