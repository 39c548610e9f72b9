//! Answers: those of endpoints, and our own. Whatever the way of an answer, its end is recorded once.

use crate::{
    clock,
    cluster::{endpoint_set::EndpointSet, overload},
    downstream::busy::Busy,
    http::{
        body::{Error, is_idle},
        names,
        transform::Transform,
    },
    telemetry::{
        flag::{LATE_RESET, ResponseFlag},
        request_log::RequestLog,
    },
    upstream::pool::ConnectionDisposition,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use karst_proxy::labels::grpc_of_http;
use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};
use tokio::{sync::OwnedSemaphorePermit, time::Sleep};

/// What a request uses until its answer has ended.
pub struct InFlightEndpoint {
    pub set: Rc<EndpointSet>,
    pub member: usize,
    /// Given back with the rest.
    _permit: Option<OwnedSemaphorePermit>,
}

impl InFlightEndpoint {
    /// Counts a request of the member, and of the destination.
    pub fn new(set: Rc<EndpointSet>, member: usize, permit: Option<OwnedSemaphorePermit>) -> Self {
        set.members[member].state.active.fetch_add(1, Relaxed);
        Self { set, member, _permit: permit }
    }
}

impl Drop for InFlightEndpoint {
    fn drop(&mut self) {
        self.set.members[self.member].state.active.fetch_sub(1, Relaxed);
    }
}

/// A place among a destination's requests, given back when dropped.
pub struct RequestPermit(pub Rc<EndpointSet>);

impl RequestPermit {
    /// One more request of the destination; None if there are as many as it may have.
    pub fn request(set: &Rc<EndpointSet>) -> Option<Self> {
        let most = set.policy.limits.as_ref().map_or(0, |l| l.max_requests);
        let now = set.cluster.requests.fetch_add(1, Relaxed);
        let one = Self(set.clone());
        (most == 0 || now < most).then_some(one)
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.cluster.requests.fetch_sub(1, Relaxed);
    }
}

enum Kind {
    Local(Bytes),
    Endpoint {
        incoming: Incoming,
        disposition: Option<ConnectionDisposition>,
        held: InFlightEndpoint,
        _counter: RequestPermit,
    },
}

impl Kind {
    /// The next part as it has come.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self {
            Kind::Local(b) if b.is_empty() => Poll::Ready(None),
            Kind::Local(b) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(b))))),
            Kind::Endpoint { incoming, .. } => loop {
                let next = Pin::new(&mut *incoming).poll_frame(cx).map_err(Error::from);
                if let Poll::Ready(Some(Ok(f))) = &next
                    && f.data_ref().is_some_and(|d| is_idle(d, incoming.is_end_stream()))
                {
                    continue;
                }
                return next;
            },
        }
    }

    fn is_at_end(&self) -> bool {
        match self {
            Kind::Local(b) => b.is_empty(),
            Kind::Endpoint { incoming, .. } => incoming.is_end_stream(),
        }
    }
}

/// A body that is changed on its way.
struct Transforming {
    by: Box<dyn Transform>,
    /// It had no part from the start: then nothing is made of it.
    was_empty: bool,
    /// All parts have been sent; these trailers have not.
    last: Option<Option<HeaderMap>>,
}

impl Transforming {
    fn is_at_end(&self) -> bool {
        self.was_empty || matches!(self.last, Some(None))
    }

    /// What is sent after what has come. None: nothing yet.
    fn next(&mut self, came: Poll<Option<Frame<Bytes>>>) -> io::Result<Option<Frame<Bytes>>> {
        let trailers = match came {
            Poll::Pending => return Ok(part(self.by.pause()?)),
            Poll::Ready(Some(frame)) => match frame.into_data() {
                Ok(data) => return Ok(part(self.by.data(data)?)),
                Err(frame) => frame.into_trailers().ok(),
            },
            Poll::Ready(None) => None,
        };
        let (bytes, trailers) = self.by.end(trailers)?;
        self.last = Some(trailers);
        Ok(part(bytes))
    }
}

/// A part, if there is something in it.
fn part(bytes: Bytes) -> Option<Frame<Bytes>> {
    (!bytes.is_empty()).then(|| Frame::data(bytes))
}

/// An answer's body.
pub struct ResponseBody {
    kind: Kind,
    /// Sent to the client so far, bytes.
    sent: u64,
    deadline: Option<Pin<Box<Sleep>>>,
    transform: Option<Box<Transforming>>,
    record: Option<Box<RequestLog>>,
    /// The client's connection is not idle until the answer has been sent.
    _busy: Option<Busy>,
}

impl ResponseBody {
    /// Our own answer.
    pub fn local(body: impl Into<Bytes>) -> Self {
        Self::new(Kind::Local(body.into()))
    }

    /// An endpoint's.
    pub fn endpoint(
        incoming: Incoming,
        disposition: ConnectionDisposition,
        held: InFlightEndpoint,
        counter: RequestPermit,
    ) -> Self {
        Self::new(Kind::Endpoint { incoming, disposition: Some(disposition), held, _counter: counter })
    }

    fn new(kind: Kind) -> Self {
        Self { kind, sent: 0, deadline: None, transform: None, record: None, _busy: None }
    }

    /// Changed on its way.
    pub fn transformed(mut self, by: Box<dyn Transform>) -> Self {
        let was_empty = self.kind.is_at_end();
        self.transform = Some(Box::new(Transforming { by, was_empty, last: None }));
        self
    }

    /// Is it changed on its way?
    pub fn is_transformed(&self) -> bool {
        self.transform.is_some()
    }

    /// Until its end, the client's connection is in use.
    pub fn keeping(mut self, busy: Option<Busy>) -> Self {
        self._busy = busy;
        self
    }

    /// Breaks off at a time.
    pub fn until(mut self, deadline: Option<tokio::time::Instant>) -> Self {
        self.deadline = deadline.map(|d| Box::pin(tokio::time::sleep_until(d)));
        self
    }

    /// The size of the head that it is sent with.
    pub fn headed(mut self, size: u64) -> Self {
        if let Some(record) = &mut self.record {
            record.response_head = size;
        }
        self
    }

    /// Records its end.
    pub fn recorded(mut self, r: Box<RequestLog>) -> Self {
        self.record = Some(r);
        self
    }

    /// The next part as it is sent.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(transform) = &mut self.transform else { return self.kind.poll(cx) };
        loop {
            if let Some(last) = &mut transform.last {
                return Poll::Ready(last.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let came = match self.kind.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(next) => Poll::Ready(next.transpose()?),
            };
            let (is_pending, trailers) = match &came {
                Poll::Pending => (true, None),
                Poll::Ready(next) => (false, next.as_ref().and_then(Frame::trailers_ref)),
            };
            // They may be told in another way from here on.
            if let Some(trailers) = trailers {
                note_overload(&self.kind, trailers);
                if let (Some(record), Some(grpc)) = (&mut self.record, grpc_of_trailers(trailers)) {
                    record.grpc = Some(grpc);
                }
            }
            match transform.next(came)? {
                Some(frame) => return Poll::Ready(Some(Ok(frame))),
                None if is_pending => return Poll::Pending,
                None => {}
            }
        }
    }

    /// Its client gets another status than was recorded, for this reason.
    pub fn answered(mut self, status: StatusCode, flag: ResponseFlag, error: &str) -> Self {
        if let Some(record) = &mut self.record {
            record.answered = status.as_u16();
            if record.flag == ResponseFlag::None {
                (record.flag, record.details) = (flag, flag.details().into());
            }
            if record.error.is_empty() {
                error.clone_into(&mut record.error);
            }
        }
        self
    }

    fn end(&mut self, whole: bool, trailers: Option<&HeaderMap>) {
        if let Some(trailers) = trailers {
            note_overload(&self.kind, trailers);
        }
        if let Kind::Endpoint { disposition, .. } = &mut self.kind
            && let Some(a) = disposition.take()
            && whole
        {
            a.release();
        }
        if let Some(mut record) = self.record.take() {
            if let Some(status) = trailers.and_then(|t| t.get(names::GRPC_STATUS)) {
                record.grpc = grpc_status(status);
            }
            if !whole && record.flag == ResponseFlag::None {
                record.flag = ResponseFlag::ClientGone;
                record.details = ResponseFlag::ClientGone.details().into();
            }
            record.finish(self.sent);
        }
    }
}

/// Notes that the endpoint has too much to do, if its trailers say so.
fn note_overload(kind: &Kind, trailers: &HeaderMap) {
    if let Kind::Endpoint { held, .. } = kind
        && let Some(pause) = overload::of_trailers(trailers)
    {
        held.set.record_overload(&held.set.members[held.member], pause, clock::now());
    }
}

fn grpc_of_trailers(trailers: &HeaderMap) -> Option<u16> {
    trailers.get(names::GRPC_STATUS).and_then(grpc_status)
}

/// The number in a `grpc-status`.
pub fn grpc_status(v: &HeaderValue) -> Option<u16> {
    v.to_str().ok()?.parse().ok()
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        match this.poll_part(cx) {
            Poll::Pending => {
                if let Some(deadline) = &mut this.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    if let Some(record) = &mut this.record {
                        record.flag = ResponseFlag::Timeout;
                        record.details = ResponseFlag::Timeout.details().into();
                    }
                    this.end(false, None);
                    return Poll::Ready(Some(Err("upstream request timeout".into())));
                }
                Poll::Pending
            }
            Poll::Ready(None) => {
                this.end(true, None);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.sent += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.end(true, Some(&trailers.clone()));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(record) = &mut this.record {
                    record.flag = ResponseFlag::Reset;
                    record.details = LATE_RESET.into();
                }
                this.end(false, None);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.transform.as_ref().map_or_else(|| self.kind.is_at_end(), |transform| transform.is_at_end())
    }

    fn size_hint(&self) -> SizeHint {
        if self.transform.as_ref().is_some_and(|transform| !transform.was_empty) {
            return SizeHint::default();
        }
        match &self.kind {
            Kind::Local(b) => SizeHint::with_exact(b.len() as u64),
            Kind::Endpoint { incoming, .. } => incoming.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // hyper does not ask for the end of what has none, or whose length it knows.
        let whole = matches!(self.kind, Kind::Local(_)) || self.is_end_stream();
        self.end(whole, None);
    }
}

/// Our own answer to a request. To gRPC it is one in gRPC's form (a status in the headers, no body).
pub fn local_response(status: StatusCode, text: impl Into<Bytes>, grpc: bool) -> Response<ResponseBody> {
    if grpc {
        let mut response = Response::new(ResponseBody::local(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(names::GRPC_STATUS, HeaderValue::from(grpc_of(status)));
        if let Ok(v) = HeaderValue::from_bytes(&text.into()) {
            headers.insert("grpc-message", v);
        }
        return response;
    }
    let text = text.into();
    let plain = !text.is_empty();
    let mut response = Response::new(ResponseBody::local(text));
    *response.status_mut() = status;
    if plain {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// gRPC's code for an answer of our own.
fn grpc_of(s: StatusCode) -> u16 {
    if s.is_success() { 0 } else { grpc_of_http(s.as_u16()) }
}
