//! The byte stream of a tunnel: TCP and TLS 1.3, for HTTP/2 and for one task.
//!
//! Two things a general TLS stream does not do:
//! - **Writes are gathered.** HTTP/2 flushes after each frame; here frames are sealed into one buffer, and [`FlushTurn`] sends it
//!   once per turn of the connection's task: the messages of many streams leave in one system call and one TCP segment.
//! - **Buffers are lent.** The worker's buffers are taken when bytes move and given back when they are gone; an idle tunnel
//!   holds none. A turn reads one buffer's worth, then lets the streams take it while it is in the cache. Of a buffer only the pages
//!   are resident that have been used.

use crate::{
    copy::show_passed,
    record::{HEADER, MAX_PLAIN, OVERHEAD, Opener, Sealer, alert, kind},
    revocation::Standing,
    spare::Spare,
};
use karst_core::limits;
use karst_rt::{buffer::Buffer, turns};
use rustls::{
    ClientConfig, CommonState, HandshakeKind, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};
use rustls_pki_types::{CertificateDer, ServerName};
use std::{
    cell::RefCell,
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

/// A lent buffer, bytes: what a stream may have waiting, sealed and framed, so that it leaves in one write.
const BUFFER: usize = limits::SEND_BUFFER + (8 << 10);
/// Pieces at least this long are sealed from where they are; shorter ones are first gathered in one record.
const DIRECT: usize = 2 << 10;
/// Buffers that a worker keeps: what is beyond is mapped and faulted in anew at each use. They go when they are not needed for a while.
const KEEP: usize = 16;
/// Most bytes of a handshake.
const MAX_HANDSHAKE: usize = 128 << 10;
/// Largest message after the handshake (a ticket).
const MAX_MESSAGE: usize = 16 << 10;
/// Records in a row that carry no application data; rustls's own bound.
const MAX_EMPTY: u32 = 32;

thread_local! {
    static BUFFERS: RefCell<Spare<Buffer>> = const { RefCell::new(Spare::new(KEEP)) };
}

fn borrow() -> Buffer {
    BUFFERS.with_borrow_mut(Spare::take).unwrap_or_else(|| Buffer::new(BUFFER))
}

fn give_back(buffer: &mut Buffer) {
    let buffer = std::mem::take(buffer);
    if buffer.len() == BUFFER {
        BUFFERS.with_borrow_mut(|spare| spare.give(buffer));
    }
}

/// Lets go of buffers that this thread has not needed since the last time.
pub(crate) fn release_unneeded() {
    BUFFERS.with_borrow_mut(Spare::release);
}

/// What rustls keeps of a connection.
enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn sealer(&mut self) -> io::Result<Sealer> {
        let (seq, secret) = match self {
            Keys::Client(k) => k.update_tx_secret(),
            Keys::Server(k) => k.update_tx_secret(),
        }
        .map_err(bad)?;
        Sealer::new(seq, &secret).map_err(bad)
    }
    fn opener(&mut self) -> io::Result<Opener> {
        let (seq, secret) = match self {
            Keys::Client(k) => k.update_rx_secret(),
            Keys::Server(k) => k.update_rx_secret(),
        }
        .map_err(bad)?;
        Opener::new(seq, &secret).map_err(bad)
    }
}

fn bad(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The sending half: a lent buffer of sealed records, and after them one record that is still open.
struct Out {
    sealer: Sealer,
    buf: Buffer,
    /// Sealed and not yet sent.
    sealed: Range<usize>,
    /// Plaintext in the open record.
    open: usize,
}

impl Out {
    fn waiting(&self) -> usize {
        self.sealed.len() + self.open
    }

    /// Plaintext for which there is room in a record that begins or goes on here.
    fn room(&self) -> usize {
        self.buf.len().saturating_sub(self.sealed.end + self.open + OVERHEAD)
    }

    /// Takes as much as there is room for.
    fn append(&mut self, mut data: &[u8]) -> io::Result<usize> {
        if self.buf.is_empty() {
            self.buf = borrow();
        }
        let all = data.len();
        while !data.is_empty() {
            if data.len() >= DIRECT {
                self.close_record()?;
                let length = data.len().min(MAX_PLAIN).min(self.room());
                if length == 0 {
                    break;
                }
                let out = &mut self.buf[self.sealed.end..];
                self.sealed.end += self.sealer.seal(kind::DATA, &data[..length], out).map_err(bad)?;
                data = &data[length..];
            } else {
                let length = data.len().min(MAX_PLAIN - self.open).min(self.room());
                if length == 0 && self.open == 0 {
                    break;
                }
                let at = self.sealed.end + HEADER + self.open;
                self.buf[at..at + length].copy_from_slice(&data[..length]);
                self.open += length;
                data = &data[length..];
                if self.open == MAX_PLAIN || length == 0 {
                    self.close_record()?;
                }
            }
        }
        Ok(all - data.len())
    }

    fn close_record(&mut self) -> io::Result<()> {
        if self.open > 0 {
            let out = &mut self.buf[self.sealed.end..];
            self.sealed.end += self.sealer.seal_in_place(kind::DATA, out, self.open).map_err(bad)?;
            self.open = 0;
        }
        Ok(())
    }

    /// A record that is no application data. What does not fit is an error: there are few of these, and they are small.
    fn message(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        if self.buf.is_empty() {
            self.buf = borrow();
        }
        self.close_record()?;
        if self.room() < bytes.len() {
            // The buffer is full of records that the peer does not take: nothing can be said to it any more.
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read"));
        }
        let out = &mut self.buf[self.sealed.end..];
        self.sealed.end += self.sealer.seal(kind, bytes, out).map_err(bad)?;
        Ok(())
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            let sent = ready!(Pin::new(&mut *tcp).poll_write(cx, &self.buf[self.sealed.clone()]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.start += sent;
            turns::spend(sent);
        }
        if self.open > 0 {
            // Moves to the front: the room behind it is used again.
            let from = self.sealed.end + HEADER;
            self.buf.copy_within(from..from + self.open, HEADER);
        } else {
            give_back(&mut self.buf);
        }
        self.sealed = 0..0;
        Poll::Ready(Ok(()))
    }
}

/// The receiving half: bytes from the socket, of which some are opened and wait to be taken.
struct In {
    opener: Opener,
    buf: Buffer,
    /// From the socket, not yet opened.
    raw: Range<usize>,
    /// Opened, not yet taken; lies before `raw`.
    plain: Range<usize>,
    /// A message after the handshake that goes over several records.
    message: Vec<u8>,
    /// Records in a row without application data.
    empty: u32,
    /// The peer has said that nothing more comes.
    closed: bool,
    /// This turn has read a full buffer.
    full: bool,
}

impl In {
    /// More bytes from the socket. Nothing is held while there are none.
    fn poll_fill(&mut self, tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let held = self.raw.len();
        if self.buf.len() == BUFFER {
            self.buf.copy_within(self.raw.clone(), 0);
        } else {
            let mut borrowed = borrow();
            borrowed[..held].copy_from_slice(&self.buf[self.raw.clone()]);
            self.buf = borrowed;
        }
        self.raw = 0..held;
        let most = turns::bytes(BUFFER - held);
        let mut rb = ReadBuf::new(&mut self.buf[held..held + most]);
        let result = Pin::new(tcp).poll_read(cx, &mut rb);
        let length = rb.filled().len();
        match result {
            Poll::Ready(Ok(())) => {
                self.full = length == most;
                self.raw.end += length;
                turns::spend(length);
                Poll::Ready(Ok(length))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                // A part of a record, if anything: kept in a buffer of its own size.
                let rest = self.buf[..held].to_vec();
                give_back(&mut self.buf);
                self.buf = rest.into();
                Poll::Pending
            }
        }
    }
}

struct Inner {
    tcp: TcpStream,
    keys: Keys,
    input: In,
    out: Out,
    /// We have said that nothing more comes.
    closed: bool,
    /// Sending failed between two calls of HTTP/2; told at the next.
    error: Option<io::Error>,
}

impl Inner {
    fn check(&mut self) -> io::Result<()> {
        match &self.error {
            Some(e) => Err(io::Error::new(e.kind(), e.to_string())),
            None => Ok(()),
        }
    }

    /// Tells the peer what is wrong, as far as it still listens, and gives the error.
    fn fail(&mut self, alert: u8, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        if !self.closed && self.out.message(kind::ALERT, &[2, alert]).is_ok() {
            let _ = self.out.poll_send(&mut self.tcp, cx);
        }
        self.closed = true;
        self.error = Some(io::Error::new(error.kind(), error.to_string()));
        error
    }

    /// Opens the next whole record. False: there is none.
    fn next_record(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let input = &mut self.input;
        let len = match Opener::length(&input.buf[input.raw.clone()]) {
            Ok(Some(n)) if n <= input.raw.len() => n,
            Ok(_) => return Ok(false),
            Err(e) => return Err(self.fail(e.alert(), cx, bad(e))),
        };
        let at = input.raw.start;
        input.raw.start += len;
        let (kind, length) = match input.opener.open(&mut input.buf[at..at + len]) {
            Ok(x) => x,
            Err(e) => return Err(self.fail(e.alert(), cx, bad(e))),
        };
        let content = at + HEADER..at + HEADER + length;
        if kind == kind::DATA && length > 0 && input.message.is_empty() {
            input.plain = content;
            input.empty = 0;
            return Ok(true);
        }
        input.empty += 1;
        let result = if input.empty > MAX_EMPTY {
            Err((alert::UNEXPECTED_MESSAGE, "records without data"))
        } else {
            match kind {
                kind::ALERT => self.alert(content),
                kind::HANDSHAKE => self.handshake_bytes(content)?,
                kind::DATA if self.input.message.is_empty() => Ok(()),
                _ => Err((alert::UNEXPECTED_MESSAGE, "a record of an unexpected type")),
            }
        };
        match result {
            Ok(()) => Ok(true),
            Err((a, what)) => Err(self.fail(a, cx, io::Error::new(io::ErrorKind::InvalidData, what))),
        }
    }

    fn alert(&mut self, content: Range<usize>) -> Result<(), (u8, &'static str)> {
        match self.input.buf[content] {
            [_, alert::CLOSE_NOTIFY] => {
                self.input.closed = true;
                Ok(())
            }
            [_, alert::USER_CANCELED] => Ok(()),
            // The answer to an alert is an end without one (RFC 8446 §6.2).
            [_, _] => {
                self.closed = true;
                Err((0, "the peer has sent a fatal alert"))
            }
            _ => Err((alert::DECODE_ERROR, "a malformed alert")),
        }
    }

    fn handshake_bytes(&mut self, content: Range<usize>) -> io::Result<Result<(), (u8, &'static str)>> {
        if self.input.message.len() + content.len() > MAX_MESSAGE {
            return Ok(Err((alert::DECODE_ERROR, "a handshake message is too long")));
        }
        let mut message = std::mem::take(&mut self.input.message);
        message.extend_from_slice(&self.input.buf[content]);
        let mut rest = &message[..];
        while let [typ, high, middle, low, body @ ..] = rest {
            let len = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if body.len() < len {
                break;
            }
            let (body, next) = body.split_at(len);
            rest = next;
            if let Err(error) = self.message(*typ, body, rest.is_empty())? {
                return Ok(Err(error));
            }
        }
        if !rest.is_empty() {
            self.input.message = rest.to_vec();
        }
        Ok(Ok(()))
    }

    fn message(&mut self, typ: u8, body: &[u8], last: bool) -> io::Result<Result<(), (u8, &'static str)>> {
        const NEW_SESSION_TICKET: u8 = 4;
        const KEY_UPDATE: u8 = 24;
        match (typ, body, &mut self.keys) {
            (NEW_SESSION_TICKET, t, Keys::Client(k)) => {
                k.handle_new_session_ticket(t).map_err(bad)?;
                Ok(Ok(()))
            }
            // The key changes with the next record: nothing may stand behind the message (RFC 8446 §5.1).
            (KEY_UPDATE, [asked @ (0 | 1)], keys) if last => {
                self.input.opener = keys.opener()?;
                if *asked == 1 {
                    self.update_key()?;
                }
                Ok(Ok(()))
            }
            _ => Ok(Err((alert::UNEXPECTED_MESSAGE, "an unexpected handshake message"))),
        }
    }

    /// Changes the key that we seal with (RFC 8446 §4.6.3).
    fn update_key(&mut self) -> io::Result<()> {
        self.out.message(kind::HANDSHAKE, &[24, 0, 0, 1, 0])?;
        self.out.sealer = self.keys.sealer()?;
        Ok(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, rb: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = rb.filled().len();
        loop {
            let input = &mut self.input;
            if !input.plain.is_empty() {
                let length = input.plain.len().min(rb.remaining());
                rb.put_slice(&input.buf[input.plain.start..input.plain.start + length]);
                input.plain.start += length;
            }
            if rb.remaining() == 0 || input.closed {
                return Poll::Ready(Ok(()));
            }
            self.check()?;
            if self.next_record(cx)? {
                continue;
            }
            if rb.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if self.input.full {
                // The streams are to take what has come before more is read.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if ready!(self.input.poll_fill(&mut self.tcp, cx))? == 0 {
                // Without CLOSE_NOTIFY: somebody may have cut the connection.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check()?;
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut taken = 0;
        loop {
            if self.out.sealer.needs_rekey() {
                self.update_key()?;
            }
            for slice in slices {
                let length = self.out.append(slice)?;
                taken += length;
                if length < slice.len() {
                    break;
                }
            }
            if taken == 0 {
                ready!(self.out.poll_send(&mut self.tcp, cx))?;
                if slices.iter().any(|s| !s.is_empty()) {
                    continue;
                }
            }
            return Poll::Ready(Ok(taken));
        }
    }

    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        self.out.close_record()?;
        self.out.poll_send(&mut self.tcp, cx)
    }
}

/// A tunnel's stream, for HTTP/2. What is written leaves with [`FlushTurn::run`] or at shutdown, not with `poll_flush`.
pub struct TlsStream(Rc<RefCell<Inner>>, Option<Standing>);

/// A turn of the tunnel's task.
pub struct FlushTurn(Rc<RefCell<Inner>>);

impl FlushTurn {
    /// Lets HTTP/2 read and write, then sends what it wrote. Who watches connections is shown only then what they have sent.
    pub fn run<T>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
        self.0.borrow_mut().input.full = false;
        let out = poll(cx);
        self.send(cx);
        show_passed();
        out
    }

    fn send(&self, cx: &mut Context<'_>) {
        let mut inner = self.0.borrow_mut();
        if inner.error.is_none()
            && inner.out.waiting() > 0
            && let Poll::Ready(Err(e)) = inner.poll_push(cx)
        {
            // HTTP/2 has its turn again, and hears of it.
            inner.error = Some(e);
            cx.waker().wake_by_ref();
        }
    }
}

impl TlsStream {
    /// The turns of the task that owns this stream.
    pub fn flush_turn(&self) -> FlushTurn {
        FlushTurn(self.0.clone())
    }
    /// Keeps the peer's standing until the stream is served.
    pub fn set_standing(&mut self, standing: Standing) {
        self.1 = Some(standing);
    }
    /// The peer's standing, to be watched by whoever serves the stream.
    pub fn take_standing(&mut self) -> Option<Standing> {
        self.1.take()
    }
    /// Tells the peer why it is refused, as far as it listens.
    pub fn refuse(self, alert: u8) {
        let why = io::Error::from(io::ErrorKind::PermissionDenied);
        let _ = self.0.borrow_mut().fail(alert, &mut Context::from_waker(Waker::noop()), why);
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().check())
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if !inner.closed {
            inner.out.message(kind::ALERT, &[1, alert::CLOSE_NOTIFY])?;
            inner.closed = true;
        }
        ready!(inner.poll_push(cx))?;
        Pin::new(&mut inner.tcp).poll_shutdown(cx)
    }
}

/// What the handshake has shown.
pub struct Peer {
    /// The peer's chain, leaf first.
    pub certificates: Option<Vec<CertificateDer<'static>>>,
    /// The application protocol that was agreed on.
    pub alpn: Option<Vec<u8>>,
    /// It goes on with a session of before: rustls has verified no certificate, it remembers the one of then.
    pub resumed: bool,
}

/// The client's side of a handshake.
///
/// # Errors
/// Those of the socket, and `InvalidData` with rustls's error.
pub async fn connect(
    tcp: TcpStream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<(TlsStream, Peer)> {
    let mut connection = UnbufferedClientConnection::new(config.clone(), name).map_err(bad)?;
    let handshake = Handshake::new(tcp).run(&mut connection).await?;
    let peer = peer(&connection);
    let (secrets, keys) = connection.dangerous_into_kernel_connection().map_err(bad)?;
    handshake.finish(&secrets, Keys::Client(keys)).map(|s| (s, peer))
}

/// The server's side of a handshake.
///
/// # Errors
/// As [`connect`].
pub async fn accept(tcp: TcpStream, config: &Arc<ServerConfig>) -> io::Result<(TlsStream, Peer)> {
    let mut connection = UnbufferedServerConnection::new(config.clone()).map_err(bad)?;
    let handshake = Handshake::new(tcp).run(&mut connection).await?;
    let peer = peer(&connection);
    let (secrets, keys) = connection.dangerous_into_kernel_connection().map_err(bad)?;
    handshake.finish(&secrets, Keys::Server(keys)).map(|s| (s, peer))
}

fn peer(state: &CommonState) -> Peer {
    Peer {
        certificates: state.peer_certificates().map(<[_]>::to_vec),
        alpn: state.alpn_protocol().map(<[_]>::to_vec),
        resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
    }
}

/// Either side's rustls session during the handshake.
trait Session {
    type Side;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;
    fn wants_write(&self) -> bool;
}
impl Session for UnbufferedClientConnection {
    type Side = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(input)
    }
    fn wants_write(&self) -> bool {
        rustls::CommonState::wants_write(self)
    }
}
impl Session for UnbufferedServerConnection {
    type Side = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(input)
    }
    fn wants_write(&self) -> bool {
        rustls::CommonState::wants_write(self)
    }
}

struct Handshake {
    tcp: TcpStream,
    /// From the peer, not yet processed.
    input: Vec<u8>,
    /// To the peer.
    output: Vec<u8>,
    /// Application data that came with the end of the handshake.
    early: Vec<u8>,
}

enum Next {
    Again,
    Send,
    Receive,
    Done,
}

impl Handshake {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp, input: Vec::new(), output: Vec::new(), early: Vec::new() }
    }

    async fn run<S: Session>(mut self, session: &mut S) -> io::Result<Self> {
        let mut total = 0;
        loop {
            match self.step(session) {
                Ok(Next::Again) => {}
                Ok(Next::Done) => return Ok(self),
                Ok(Next::Send) => {
                    self.tcp.write_all(&self.output).await?;
                    self.output.clear();
                }
                Ok(Next::Receive) => {
                    let length = self.tcp.read_buf(&mut self.input).await?;
                    if total == 0 {
                        // From here on it costs something.
                        turns::spend(limits::TURN_HANDSHAKE);
                    }
                    total += length;
                    if length == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    if total > MAX_HANDSHAKE {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "the handshake is too long"));
                    }
                }
                Err(e) => {
                    // The alert that rustls has for the peer.
                    // (Asked for only if there is one: after an error rustls must not look at the input again.)
                    while session.wants_write()
                        && let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(data)), .. } =
                            session.process(&mut [])
                    {
                        encode(data, &mut self.output)?;
                    }
                    let _ = self.tcp.try_write(&self.output);
                    return Err(e);
                }
            }
        }
    }

    /// Lets rustls look at what has come, and does what it asks for.
    fn step<S: Session>(&mut self, session: &mut S) -> io::Result<Next> {
        let UnbufferedStatus { discard, state } = session.process(&mut self.input);
        let next = match state.map_err(bad)? {
            ConnectionState::EncodeTlsData(d) => {
                encode(d, &mut self.output)?;
                Next::Again
            }
            ConnectionState::TransmitTlsData(t) => {
                t.done();
                Next::Send
            }
            ConnectionState::BlockedHandshake => Next::Receive,
            ConnectionState::ReadTraffic(mut r) => {
                while let Some(record) = r.next_record() {
                    self.early.extend_from_slice(record.map_err(bad)?.payload);
                }
                Next::Again
            }
            ConnectionState::WriteTraffic(_) => Next::Done,
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        self.input.drain(..discard);
        Ok(next)
    }

    fn finish(self, secrets: &rustls::ExtractedSecrets, keys: Keys) -> io::Result<TlsStream> {
        let opener = Opener::new(secrets.rx.0, &secrets.rx.1).map_err(bad)?;
        let sealer = Sealer::new(secrets.tx.0, &secrets.tx.1).map_err(bad)?;
        let plain = 0..self.early.len();
        let raw = plain.end..plain.end + self.input.len();
        let buf = [self.early, self.input].concat().into();
        let input = In { opener, buf, raw, plain, message: Vec::new(), empty: 0, closed: false, full: false };
        let out = Out { sealer, buf: Buffer::default(), sealed: 0..0, open: 0 };
        let inner = Inner { tcp: self.tcp, keys, input, out, closed: false, error: None };
        Ok(TlsStream(Rc::new(RefCell::new(inner)), None))
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, output: &mut Vec<u8>) -> io::Result<()> {
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        let at = output.len();
        output.resize(at + size.required_size, 0);
        data.encode(&mut output[at..]).map_err(bad)?;
    }
    Ok(())
}
