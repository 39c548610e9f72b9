//! Bodies. A request's body that may be needed again (a retry, a mirror) is kept, up to a bound, while it is sent; whoever
//! reads it later reads the same bytes.

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

/// Bytes of a request that are kept for a retry (Envoy keeps at most a connection's buffer).
pub const REPLAY: usize = 64 << 10;
/// Bytes that a mirror may be behind; then it is given up.
pub const BEHIND: usize = 1 << 20;

/// An error of a body.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What is sent.
pub enum Body {
    /// Nothing.
    Empty,
    /// As it comes.
    Incoming(Incoming),
    /// As it comes, shared with others.
    Shared(Reader),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Incoming(i) => Pin::new(i).poll_frame(cx).map_err(Into::into),
            Body::Shared(r) => r.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Incoming(i) => i.is_end_stream(),
            Body::Shared(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Incoming(i) => i.size_hint(),
            Body::Shared(r) => r.0.borrow().hint,
        }
    }
}

/// A body that several read.
struct Inner {
    source: Incoming,
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
    waiting: Vec<Waker>,
}

/// One of those who read it.
pub struct Reader(Rc<RefCell<Inner>>, usize, bool);

/// The way to more of them.
pub struct Source(Rc<RefCell<Inner>>);

impl Source {
    /// Shares a body, of which at most `limit` bytes are kept.
    pub fn new(source: Incoming, limit: usize) -> Self {
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
        })))
    }

    /// A reader from the start; None if the start is no longer there.
    pub fn reader(&self) -> Option<Body> {
        let whole = self.0.borrow().base == 0;
        whole.then(|| Body::Shared(Reader(self.0.clone(), 0, false)))
    }
}

impl Reader {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut x = self.0.borrow_mut();
        loop {
            if self.1 < x.base {
                return Poll::Ready(Some(Err("too far behind: the bytes are no longer kept".into())));
            }
            if let Some(c) = x.chunks.get(self.1 - x.base) {
                self.1 += 1;
                return Poll::Ready(Some(Ok(Frame::data(c.clone()))));
            }
            if let Some(e) = &x.error {
                return Poll::Ready(Some(Err(e.clone().into())));
            }
            if x.end {
                let first = !std::mem::replace(&mut self.2, true);
                return Poll::Ready(x.trailers.clone().filter(|_| first).map(|t| Ok(Frame::trailers(t))));
            }
            let next = match Pin::new(&mut x.source).poll_frame(cx) {
                Poll::Pending => {
                    // Only the last that asked is told: it tells the others.
                    if !x.waiting.iter().any(|w| w.will_wake(cx.waker())) {
                        x.waiting.push(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
                Poll::Ready(n) => n,
            };
            match next {
                None => x.end = true,
                Some(Err(e)) => x.error = Some(e.to_string()),
                Some(Ok(f)) => match f.into_data() {
                    Ok(d) => {
                        x.bytes += d.len();
                        x.chunks.push_back(d);
                        while x.bytes > x.limit && x.chunks.len() > 1 {
                            if let Some(old) = x.chunks.pop_front() {
                                x.bytes -= old.len();
                                x.base += 1;
                            }
                        }
                    }
                    Err(f) => x.trailers = f.into_trailers().ok(),
                },
            }
            for w in x.waiting.drain(..) {
                w.wake();
            }
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

/// What is sent to an endpoint; counts its bytes.
pub struct Counted {
    body: Body,
    bytes: Rc<std::cell::Cell<u64>>,
}

impl Counted {
    /// Adds what is sent to `bytes`.
    pub fn new(body: Body, bytes: Rc<std::cell::Cell<u64>>) -> Self {
        Self { body, bytes }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let r = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(f)) = &r
            && let Some(d) = f.data_ref()
        {
            self.bytes.set(self.bytes.get() + d.len() as u64);
        }
        Poll::Ready(r)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
