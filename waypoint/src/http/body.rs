//! Bodies. A request's body that may be needed again (a retry, a mirror) is kept, up to a bound, while it is sent; whoever
//! reads it later reads the same bytes. So does whoever reads it after its beginning was looked at ([`RequestBody::read_ahead`]).

use crate::http::base64_text::Decoder;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use karst_hbone::copy::keep;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::time::timeout;

/// Bytes of a request that are kept for a retry (Envoy keeps at most a connection's buffer).
pub const REPLAY: usize = 64 << 10;
/// Bytes that a mirror may be behind; then it is given up.
pub const BEHIND: usize = 1 << 20;

/// A client whose body is waited for before anything else is done sends at least something in this time (Envoy's default for streams
/// on which nothing happens).
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Why the beginning of a body is not there.
#[derive(Debug, thiserror::Error)]
pub enum AheadError {
    /// It broke off.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// Nothing has come for [`PATIENCE`].
    #[error("nothing has come of the request's body")]
    Silent,
}

/// An error of a body.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A request's body, as its client sends it. Its beginning may have been read ahead.
pub struct RequestBody {
    ahead: Option<Box<Ahead>>,
    rest: Incoming,
    checks: Option<Box<Checks>>,
}

/// What is looked at while a body is sent on.
struct Checks {
    /// So many bytes may still come.
    left: u64,
    /// It is text, of which this makes bytes.
    text: Option<Decoder>,
    fault: Faults,
}

/// Why a body is not sent on to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// It is larger than it may be.
    TooLarge,
    /// It was to be base64.
    NotBase64,
}

/// Where a fault is told, once. (What reads the body sees an error like any other.)
pub type Faults = Rc<Cell<Option<BodyFault>>>;

/// What was read ahead, and not yet by who sends it on.
#[derive(Default)]
struct Ahead {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// Nothing comes after it.
    end: bool,
}

impl From<Incoming> for RequestBody {
    fn from(rest: Incoming) -> Self {
        Self { ahead: None, rest, checks: None }
    }
}

impl RequestBody {
    /// Has it more bytes than this, as far as it says itself?
    pub fn is_larger_than(&self, most: u64) -> bool {
        self.size_hint().lower() > most
    }

    /// No more than so many bytes of it are sent on.
    pub fn limit(&mut self, most: u64) {
        let checks = self.checks();
        checks.left = checks.left.min(most);
    }

    /// It is base64 (gRPC-Web's text form), and what it stands for is sent on.
    pub fn decode(&mut self) {
        self.checks().text = Some(Decoder::default());
    }

    /// Where its faults are told. None: it cannot have any.
    pub fn faults(&self) -> Option<Faults> {
        self.checks.as_ref().map(|checks| checks.fault.clone())
    }

    fn checks(&mut self) -> &mut Checks {
        let none = || Box::new(Checks { left: u64::MAX, text: None, fault: Faults::default() });
        self.checks.get_or_insert_with(none)
    }

    /// The next part as it has come.
    fn poll_raw(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(ahead) = &mut self.ahead {
            if let Some(chunk) = ahead.chunks.pop_front() {
                ahead.bytes -= chunk.len();
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if let Some(trailers) = ahead.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if ahead.end {
                return Poll::Ready(None);
            }
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    /// The first bytes, at most `limit`, and whether they are all. `is_part_enough`: nobody waits for what is beyond them.
    ///
    /// # Errors
    /// The client has not sent them.
    pub async fn read_ahead(&mut self, limit: usize, is_part_enough: bool) -> Result<(Bytes, bool), AheadError> {
        let ahead = self.ahead.get_or_insert_default();
        ahead.end |= self.rest.is_end_stream();
        let wanted = if is_part_enough { limit } else { limit.saturating_add(1) };
        while ahead.bytes < wanted && !ahead.end {
            let next = std::future::poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx));
            match timeout(PATIENCE, next).await.map_err(|_| AheadError::Silent)? {
                None => ahead.end = true,
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        ahead.bytes += data.len();
                        keep(&mut ahead.chunks, data);
                    }
                    Err(frame) => (ahead.trailers, ahead.end) = (frame.into_trailers().ok(), true),
                },
            }
            ahead.end |= self.rest.is_end_stream();
        }
        let is_all = ahead.end && ahead.bytes <= limit;
        // Mostly it is one part, and then nothing is copied.
        if let (Some(only), 1) = (ahead.chunks.front(), ahead.chunks.len()) {
            return Ok((only.slice(..only.len().min(limit)), is_all));
        }
        let mut out = BytesMut::with_capacity(ahead.bytes.min(limit));
        for chunk in &ahead.chunks {
            out.extend_from_slice(&chunk[..chunk.len().min(limit - out.len())]);
        }
        Ok((out.freeze(), is_all))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            let next = ready!(this.poll_raw(cx)).transpose()?;
            let Some(checks) = &mut this.checks else { return Poll::Ready(next.map(Ok)) };
            match checks.check(next) {
                Ok(Some(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Ok(frame) => return Poll::Ready(frame.map(Ok)),
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        if self.checks.as_ref().and_then(|checks| checks.text.as_ref()).is_some_and(|text| !text.is_whole()) {
            return false;
        }
        match &self.ahead {
            None => self.rest.is_end_stream(),
            Some(ahead) => {
                ahead.chunks.is_empty() && ahead.trailers.is_none() && (ahead.end || self.rest.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.checks.as_ref().is_some_and(|checks| checks.text.is_some()) {
            return SizeHint::default();
        }
        let mut hint = self.rest.size_hint();
        if let Some(ahead) = &self.ahead {
            let bytes = ahead.bytes as u64;
            if ahead.end && ahead.trailers.is_none() {
                return SizeHint::with_exact(bytes);
            }
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + bytes);
            }
            hint.set_lower(hint.lower() + bytes);
        }
        hint
    }
}

impl Checks {
    /// A part, or the end, as it is sent on.
    fn check(&mut self, next: Option<Frame<Bytes>>) -> Result<Option<Frame<Bytes>>, Error> {
        let Some(frame) = next else {
            let is_whole = self.text.as_ref().is_none_or(Decoder::is_whole);
            return if is_whole { Ok(None) } else { Err(self.has(BodyFault::NotBase64)) };
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => return Ok(Some(other)),
        };
        let Some(left) = self.left.checked_sub(data.len() as u64) else { return Err(self.has(BodyFault::TooLarge)) };
        self.left = left;
        let data = match &mut self.text {
            None => data,
            Some(text) => match text.decode(&data) {
                Some(bytes) => bytes,
                None => return Err(self.has(BodyFault::NotBase64)),
            },
        };
        Ok(Some(Frame::data(data)))
    }

    fn has(&self, fault: BodyFault) -> Error {
        self.fault.set(Some(fault));
        match fault {
            BodyFault::TooLarge => "the request's body is larger than it may be".into(),
            BodyFault::NotBase64 => "the request's body is not base64".into(),
        }
    }
}

/// What is sent.
pub enum Body {
    /// Nothing.
    Empty,
    /// As it comes.
    Incoming(RequestBody),
    /// As it comes, shared with others.
    Shared(Reader),
    /// All of it.
    Bytes(Bytes),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Incoming(i) => Pin::new(i).poll_frame(cx),
            Body::Shared(r) => r.poll(cx),
            Body::Bytes(all) if all.is_empty() => Poll::Ready(None),
            Body::Bytes(all) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(all))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Incoming(i) => i.is_end_stream(),
            Body::Shared(r) => r.is_at_end(),
            Body::Bytes(all) => all.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Incoming(i) => i.size_hint(),
            Body::Shared(r) => r.of.borrow().hint,
            Body::Bytes(all) => SizeHint::with_exact(all.len() as u64),
        }
    }
}

/// A body that several read. The attempt that is under way decides how fast it comes; mirrors read what it has read. A mirror
/// must not make an application fail by being faster, nor by being slower: it is given up when it is too far behind.
struct Inner {
    source: RequestBody,
    hint: SizeHint,
    chunks: VecDeque<Bytes>,
    /// Number of the first of them.
    base: usize,
    bytes: usize,
    /// How many bytes may be kept.
    limit: usize,
    trailers: Option<HeaderMap>,
    end: bool,
    error: Option<String>,
    /// Mirrors that wait for more.
    waiting: Vec<Waker>,
    /// Attempts that are under way, and whether there may be more.
    attempts: usize,
    over: bool,
}

impl Inner {
    fn wake(&mut self) {
        for w in self.waiting.drain(..) {
            w.wake();
        }
    }

    /// Takes the next part from the client.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
            None => self.end = true,
            Some(Err(e)) => self.error = Some(e.to_string()),
            Some(Ok(f)) => match f.into_data() {
                Ok(data) => {
                    // Often known with the last part: then that is sent as the last.
                    self.end = self.source.is_end_stream();
                    if !data.is_empty() {
                        self.bytes += data.len();
                        self.chunks.push_back(data);
                    }
                    while self.bytes > self.limit && self.chunks.len() > 1 {
                        if let Some(old) = self.chunks.pop_front() {
                            self.bytes -= old.len();
                            self.base += 1;
                        }
                    }
                }
                Err(f) => self.trailers = f.into_trailers().ok(),
            },
        }
        self.wake();
        Poll::Ready(())
    }
}

/// One of those who read it.
pub struct Reader {
    of: Rc<RefCell<Inner>>,
    /// Number of the part that comes next.
    next: usize,
    trailers_read: bool,
    /// Is it an attempt? (Else a mirror.)
    attempt: bool,
}

/// The way to its readers.
pub struct Source(Rc<RefCell<Inner>>);

impl Source {
    /// Shares a body, of which at most `limit` bytes are kept.
    pub fn new(source: RequestBody, limit: usize) -> Self {
        let hint = source.size_hint();
        Self(Rc::new(RefCell::new(Inner {
            source,
            hint,
            chunks: VecDeque::new(),
            base: 0,
            bytes: 0,
            limit,
            trailers: None,
            end: false,
            error: None,
            waiting: vec![],
            attempts: 0,
            over: false,
        })))
    }

    /// Is the start still there?
    pub fn is_whole(&self) -> bool {
        self.0.borrow().base == 0
    }

    /// A reader from the start, for an attempt; None if the start is no longer there.
    pub fn attempt(&self) -> Option<Body> {
        self.is_whole().then(|| {
            self.0.borrow_mut().attempts += 1;
            Body::Shared(Reader { of: self.0.clone(), next: 0, trailers_read: false, attempt: true })
        })
    }

    /// A reader from the start, for a mirror.
    pub fn mirror(&self) -> Option<Body> {
        let reader = || Body::Shared(Reader { of: self.0.clone(), next: 0, trailers_read: false, attempt: false });
        self.is_whole().then(reader)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut x = self.0.borrow_mut();
        x.over = true;
        x.wake();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.attempt {
            let mut x = self.of.borrow_mut();
            x.attempts -= 1;
            x.wake();
        }
    }
}

impl Reader {
    /// Is nothing left?
    fn is_at_end(&self) -> bool {
        let inner = self.of.borrow();
        inner.end && self.next >= inner.base + inner.chunks.len() && (inner.trailers.is_none() || self.trailers_read)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut inner = self.of.borrow_mut();
        loop {
            if self.next < inner.base {
                return Poll::Ready(Some(Err("too far behind: the bytes are no longer kept".into())));
            }
            if let Some(c) = inner.chunks.get(self.next - inner.base) {
                self.next += 1;
                return Poll::Ready(Some(Ok(Frame::data(c.clone()))));
            }
            if let Some(e) = &inner.error {
                return Poll::Ready(Some(Err(e.clone().into())));
            }
            if inner.end {
                let first = !std::mem::replace(&mut self.trailers_read, true);
                return Poll::Ready(inner.trailers.clone().filter(|_| first).map(|t| Ok(Frame::trailers(t))));
            }
            if self.attempt {
                ready!(inner.poll_source(cx));
                continue;
            }
            if inner.over && inner.attempts == 0 {
                return Poll::Ready(Some(Err("the request was given up".into())));
            }
            if !inner.waiting.iter().any(|w| w.will_wake(cx.waker())) {
                inner.waiting.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
    }
}

/// Reads a body to its end and forgets it, so that its connection can be used again.
pub async fn discard(mut b: Incoming) {
    let _ = std::future::poll_fn(|cx| {
        loop {
            match ready!(Pin::new(&mut b).poll_frame(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
    })
    .await;
}

/// Is it a part that says nothing? It is not sent on: an endpoint closes a connection with too many of them, on which others
/// have requests, too (h2: 100; Envoy: 1).
pub fn is_idle(data: &Bytes, last: bool) -> bool {
    data.is_empty() && !last
}

/// What is sent to an endpoint; counts its bytes.
pub struct Counted {
    body: Body,
    bytes: Rc<Cell<u64>>,
}

impl Counted {
    /// Adds what is sent to `bytes`.
    pub fn new(body: Body, bytes: Rc<Cell<u64>>) -> Self {
        Self { body, bytes }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            let next = ready!(Pin::new(&mut self.body).poll_frame(cx));
            if let Some(Ok(frame)) = &next
                && let Some(data) = frame.data_ref()
            {
                if is_idle(data, self.body.is_end_stream()) {
                    continue;
                }
                self.bytes.set(self.bytes.get() + data.len() as u64);
            }
            return Poll::Ready(next);
        }
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::testing::{run, run_paused, spawn};
    use http::Request;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    /// The body of a request of `n` bytes, as a server gets it.
    async fn incoming(n: usize) -> RequestBody {
        let head = format!("content-length: {n}\r\n\r\n");
        incoming_of([head.as_bytes(), &vec![7; n]].concat()).await
    }

    /// That of a request that ends like this.
    async fn incoming_of(end: Vec<u8>) -> RequestBody {
        let (mut client, server) = tokio::io::duplex(16 << 10);
        let (tx, rx) = tokio::sync::oneshot::channel();
        let tx = RefCell::new(Some(tx));
        spawn(async move {
            let take = service_fn(move |r: Request<Incoming>| {
                let _ = tx.borrow_mut().take().unwrap().send(r.into_body());
                std::future::pending::<Result<http::Response<String>, std::convert::Infallible>>()
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), take).await;
        });
        spawn(async move {
            client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\n").await.unwrap();
            client.write_all(&end).await.unwrap();
            std::future::pending::<()>().await;
        });
        rx.await.unwrap().into()
    }

    /// Reads what is there: bytes, and whether it has ended well.
    async fn read(b: &mut Body) -> (usize, Option<bool>) {
        let mut n = 0;
        loop {
            let next = std::future::poll_fn(|cx| match Pin::new(&mut *b).poll_frame(cx) {
                Poll::Pending => Poll::Ready(None),
                Poll::Ready(x) => Poll::Ready(Some(x)),
            });
            match next.await {
                None => return (n, None),
                Some(None) => return (n, Some(true)),
                Some(Some(Ok(f))) => n += f.into_data().map_or(0, |d| d.len()),
                Some(Some(Err(_))) => return (n, Some(false)),
            }
        }
    }

    /// Lets the others go on, and reads until the end.
    async fn read_all(b: &mut Body) -> (usize, bool) {
        let mut all = 0;
        loop {
            let (n, end) = read(b).await;
            all += n;
            match end {
                Some(e) => return (all, e),
                None => tokio::task::yield_now().await,
            }
        }
    }

    #[test]
    fn what_was_read_ahead_is_sent_all_the_same() {
        run(async {
            const SIZE: usize = 100 << 10;
            for (limit, is_part_enough, bytes, is_all) in [
                (SIZE, false, SIZE, true),
                (SIZE + 1, true, SIZE, true),
                (SIZE - 1, false, SIZE - 1, false),
                (10, true, 10, false),
            ] {
                let mut body = incoming(SIZE).await;
                let (ahead, all) = body.read_ahead(limit, is_part_enough).await.unwrap();
                assert_eq!((ahead.len(), all), (bytes, is_all), "{limit}");
                assert_eq!(body.size_hint().exact(), Some(SIZE as u64), "{limit}");
                // Another one who asks for less, or for more.
                assert_eq!(body.read_ahead(7, true).await.unwrap().0.len(), 7);
                assert_eq!(body.read_ahead(SIZE, false).await.unwrap(), (Bytes::from(vec![7; SIZE]), true));
                assert!(!body.is_end_stream());
                assert_eq!(read_all(&mut Body::Incoming(body)).await, (SIZE, true));
            }
            let mut none = incoming(0).await;
            assert_eq!(none.read_ahead(10, false).await.unwrap(), (Bytes::new(), true));
            assert!(none.is_end_stream());
        });
    }

    /// Who sends a head, and no body, is not waited for without end.
    #[test]
    fn a_body_that_does_not_come_is_given_up() {
        run_paused(async {
            let mut body = incoming_of(b"content-length: 10\r\n\r\nabc".to_vec()).await;
            assert_eq!(body.read_ahead(3, true).await.unwrap(), (Bytes::from_static(b"abc"), false));
            let began = tokio::time::Instant::now();
            assert!(matches!(body.read_ahead(10, false).await, Err(AheadError::Silent)));
            assert!(began.elapsed() >= PATIENCE && began.elapsed() < 2 * PATIENCE);
        });
    }

    /// A body in chunks of one byte costs what it carries.
    #[test]
    fn what_was_read_ahead_is_kept_in_few_pieces() {
        run(async {
            const SIZE: usize = 40_000;
            let sent = ["transfer-encoding: chunked\r\n\r\n", &"1\r\n\u{7}\r\n".repeat(SIZE), "0\r\n\r\n"].concat();
            let mut body = incoming_of(sent.into_bytes()).await;
            assert_eq!(body.read_ahead(SIZE, false).await.unwrap(), (Bytes::from(vec![7; SIZE]), true));
            let pieces = body.ahead.as_ref().map_or(0, |ahead| ahead.chunks.len());
            assert!(pieces < 10, "{pieces}");
            assert_eq!(read_all(&mut Body::Incoming(body)).await, (SIZE, true));
        });
    }

    #[test]
    fn mirrors_neither_hurry_nor_hold_up_an_attempt() {
        run(async {
            // A mirror that is first gets nothing before the attempt does; then the same bytes.
            let s = Source::new(incoming(300 << 10).await, 1 << 20);
            let (mut mirror, mut attempt) = (s.mirror().unwrap(), s.attempt().unwrap());
            for _ in 0..20 {
                assert_eq!(read(&mut mirror).await, (0, None));
                tokio::task::yield_now().await;
            }
            assert_eq!(read_all(&mut attempt).await, (300 << 10, true));
            assert_eq!(read_all(&mut mirror).await, (300 << 10, true));
            // One that is too slow is given up, and the attempt goes on; there is no second one then.
            let s = Source::new(incoming(300 << 10).await, 64 << 10);
            let (mut mirror, mut attempt) = (s.mirror().unwrap(), s.attempt().unwrap());
            assert_eq!(read_all(&mut attempt).await, (300 << 10, true));
            assert!(!read_all(&mut mirror).await.1);
            assert!(s.attempt().is_none());
            // What fits is read again; a mirror of what was given up does not wait for ever.
            let s = Source::new(incoming(10 << 10).await, 64 << 10);
            let mut first = s.attempt().unwrap();
            assert_eq!(read_all(&mut first).await, (10 << 10, true));
            assert_eq!(read_all(&mut s.attempt().unwrap()).await, (10 << 10, true));
            let s = Source::new(incoming(10 << 10).await, 64 << 10);
            let (mut mirror, attempt) = (s.mirror().unwrap(), s.attempt().unwrap());
            drop((attempt, s));
            assert_eq!(read_all(&mut mirror).await, (0, false));
        });
    }
}
