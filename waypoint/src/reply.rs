//! Answers: those of endpoints, and our own. Whatever the way of an answer, its end is recorded once.

use crate::{
    body::{Error, is_idle},
    cluster::Set,
    conns::Upgrade,
    gate::Busy,
    metrics,
    telemetry::Telemetry,
    upstream::After,
    worker::Worker,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use karst_core::untrusted::Untrusted;
use karst_proxy::state::{Service, Workload};
use karst_rt::log;
use std::{
    cell::Cell,
    fmt::Write as _,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::{Instant, SystemTime},
};
use tokio::{sync::OwnedSemaphorePermit, time::Sleep};

/// Why an answer is not the endpoint's own: Envoy's response flags, and what goes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// All is well.
    None,
    /// No route matches.
    NoRoute,
    /// The destination or the subset does not exist.
    NoCluster,
    /// No endpoint may be used.
    NoHealthy,
    /// No connection to the endpoint.
    ConnectFailure,
    /// The connection broke.
    Reset,
    /// A limit of connections or requests at a time is reached.
    Overflow,
    /// A rate limit is reached.
    RateLimited,
    /// The answer took too long.
    Timeout,
    /// All retries are used up.
    RetryLimit,
    /// An abort was injected.
    FaultAbort,
    /// A delay was injected, and the endpoint has answered.
    FaultDelay,
    /// The client has left.
    ClientGone,
}

impl Flag {
    /// As logs and metrics have it.
    pub fn text(self) -> &'static str {
        match self {
            Flag::None => "-",
            Flag::NoRoute => "NR",
            Flag::NoCluster => "NC",
            Flag::NoHealthy => "UH",
            Flag::ConnectFailure => "UF",
            Flag::Reset => "UC",
            Flag::Overflow => "UO",
            Flag::RateLimited => "RL",
            Flag::Timeout => "UT",
            Flag::RetryLimit => "URX",
            Flag::FaultAbort => "FI",
            Flag::FaultDelay => "DI",
            Flag::ClientGone => "DC",
        }
    }

    /// Status and body of our own answer (Envoy's words).
    pub fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Flag::NoRoute => (StatusCode::NOT_FOUND, ""),
            Flag::NoCluster => (StatusCode::SERVICE_UNAVAILABLE, ""),
            Flag::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "local_rate_limited"),
            Flag::NoHealthy => (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream"),
            Flag::ConnectFailure => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
            ),
            Flag::Reset => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            Flag::Overflow => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            ),
            Flag::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout"),
            Flag::FaultAbort => (StatusCode::INTERNAL_SERVER_ERROR, "fault filter abort"),
            Flag::None | Flag::RetryLimit | Flag::FaultDelay | Flag::ClientGone => {
                (StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }
}

/// What a request uses until its answer has ended.
pub struct Held {
    pub set: Rc<Set>,
    pub member: usize,
    /// Given back with the rest.
    _place: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Counts a request of the member, and of the destination.
    pub fn new(set: Rc<Set>, member: usize, place: Option<OwnedSemaphorePermit>) -> Self {
        set.members[member].state.active.fetch_add(1, Relaxed);
        Self { set, member, _place: place }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set.members[self.member].state.active.fetch_sub(1, Relaxed);
    }
}

/// A place among a destination's requests, given back when dropped.
pub struct Counter(pub Rc<Set>);

impl Counter {
    /// One more request of the destination; None if there are as many as it may have.
    pub fn request(set: &Rc<Set>) -> Option<Self> {
        let most = set.policy.limits.as_ref().map_or(0, |l| l.max_requests);
        let now = set.cluster.requests.fetch_add(1, Relaxed);
        let one = Self(set.clone());
        (most == 0 || now < most).then_some(one)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.0.cluster.requests.fetch_sub(1, Relaxed);
    }
}

enum Kind {
    Own(Bytes),
    Endpoint { incoming: Incoming, after: Option<After>, _held: Held, _counter: Counter },
}

/// An answer's body.
pub struct Reply {
    kind: Kind,
    /// Sent to the client so far, bytes.
    sent: u64,
    deadline: Option<Pin<Box<Sleep>>>,
    record: Option<Box<Record>>,
    /// The client's connection is not idle until the answer has been sent.
    _busy: Option<Busy>,
}

impl Reply {
    /// Our own answer.
    pub fn own(body: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Own(body.into()), sent: 0, deadline: None, record: None, _busy: None }
    }

    /// An endpoint's.
    pub fn endpoint(incoming: Incoming, after: After, held: Held, counter: Counter) -> Self {
        let kind = Kind::Endpoint { incoming, after: Some(after), _held: held, _counter: counter };
        Self { kind, sent: 0, deadline: None, record: None, _busy: None }
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

    /// Records its end.
    pub fn recorded(mut self, r: Box<Record>) -> Self {
        self.record = Some(r);
        self
    }

    fn end(&mut self, whole: bool, trailers: Option<&HeaderMap>) {
        if let Kind::Endpoint { after, .. } = &mut self.kind
            && let Some(a) = after.take()
            && whole
        {
            a.done();
        }
        if let Some(mut r) = self.record.take() {
            if let Some(status) = trailers.and_then(|t| t.get("grpc-status")) {
                r.grpc = grpc_status(status);
            }
            if !whole && r.flag == Flag::None {
                r.flag = Flag::ClientGone;
            }
            r.finish(self.sent);
        }
    }
}

/// The number in a `grpc-status`.
pub fn grpc_status(v: &HeaderValue) -> Option<u16> {
    v.to_str().ok()?.parse().ok()
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let next = loop {
            break match &mut this.kind {
                Kind::Own(b) if b.is_empty() => Poll::Ready(None),
                Kind::Own(b) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(b))))),
                Kind::Endpoint { incoming, .. } => {
                    let next = Pin::new(&mut *incoming).poll_frame(cx).map_err(Error::from);
                    if let Poll::Ready(Some(Ok(f))) = &next
                        && f.data_ref().is_some_and(|d| is_idle(d, incoming.is_end_stream()))
                    {
                        continue;
                    }
                    next
                }
            };
        };
        match next {
            Poll::Pending => {
                if let Some(d) = &mut this.deadline
                    && d.as_mut().poll(cx).is_ready()
                {
                    if let Some(r) = &mut this.record {
                        r.flag = Flag::Timeout;
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
            Poll::Ready(Some(Ok(f))) => {
                if let Some(d) = f.data_ref() {
                    this.sent += d.len() as u64;
                } else if let Some(t) = f.trailers_ref() {
                    this.end(true, Some(&t.clone()));
                }
                Poll::Ready(Some(Ok(f)))
            }
            Poll::Ready(Some(Err(e))) => {
                if let Some(r) = &mut this.record {
                    r.flag = Flag::Reset;
                }
                this.end(false, None);
                Poll::Ready(Some(Err(e)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(b) => b.is_empty(),
            Kind::Endpoint { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(b) => SizeHint::with_exact(b.len() as u64),
            Kind::Endpoint { incoming, .. } => incoming.size_hint(),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // hyper does not ask for the end of what has none, or whose length it knows.
        let whole = match &self.kind {
            Kind::Own(_) => true,
            Kind::Endpoint { incoming, .. } => incoming.is_end_stream(),
        };
        self.end(whole, None);
    }
}

/// Our own answer to a request. To gRPC it is one in gRPC's form (a status in the headers, no body).
pub fn own(status: StatusCode, text: impl Into<Bytes>, grpc: bool) -> Response<Reply> {
    if grpc {
        let mut r = Response::new(Reply::own(Bytes::new()));
        let h = r.headers_mut();
        h.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        h.insert("grpc-status", HeaderValue::from(grpc_of(status)));
        if let Ok(v) = HeaderValue::from_bytes(&text.into()) {
            h.insert("grpc-message", v);
        }
        return r;
    }
    let text = text.into();
    let plain = !text.is_empty();
    let mut r = Response::new(Reply::own(text));
    *r.status_mut() = status;
    if plain {
        r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    r
}

/// gRPC's code for a status (gRPC's http-grpc-status-mapping, as Envoy has it).
fn grpc_of(s: StatusCode) -> u16 {
    match s.as_u16() {
        200..=299 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// What is told of a request when it has ended.
pub struct Record {
    pub worker: Rc<Worker>,
    pub started: Instant,
    pub time: SystemTime,
    pub method: http::Method,
    pub path: String,
    pub authority: String,
    pub protocol: &'static str,
    pub is_grpc: bool,
    pub user_agent: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    pub from: SocketAddr,
    pub source: Option<Arc<Workload>>,
    pub principal: String,
    pub called: Option<Arc<Service>>,
    /// It has come to a gateway.
    pub at_gateway: bool,
    pub port: u16,
    pub destination: Option<(Arc<Service>, Arc<str>)>,
    pub workload: Option<(Arc<Workload>, SocketAddr)>,
    /// What tells it from others in metrics.
    pub endpoint: Option<Arc<str>>,
    pub route: String,
    /// 0: there was no answer.
    pub answered: u16,
    pub grpc: Option<u16>,
    pub flag: Flag,
    pub error: String,
    pub received: Rc<Cell<u64>>,
    /// Of the request, where telemetry asks for them.
    pub headers: Option<HeaderMap>,
    /// What is told of it; none: the standard.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Which of [`crate::control::Snapshot::era`] that is.
    pub era: u64,
    /// It has been told.
    pub told: bool,
    /// Of a request that asks for another protocol, what policies are to judge later.
    pub upgrade: Option<Box<Upgrade>>,
}

impl Drop for Record {
    /// The client has left before there was an answer: its request counts all the same.
    fn drop(&mut self) {
        if !self.told {
            self.flag = Flag::ClientGone;
            self.answered = 0;
            self.finish(0);
        }
    }
}

impl Record {
    fn finish(&mut self, sent: u64) {
        self.told = true;
        let took = self.started.elapsed();
        let telemetry = self.telemetry.take();
        let t = telemetry.as_deref();
        let values = t.map(|t| t.values(self, sent)).unwrap_or_default();
        let series = metrics::Key {
            era: self.era,
            source: self.source.as_ref().map(|w| w.uid.clone()),
            principal: self.principal.clone(),
            workload: self.endpoint.clone(),
            service: self
                .destination
                .as_ref()
                .map(|(s, _)| s.key.clone())
                .or(self.called.as_ref().map(|s| s.key.clone())),
            status: self.answered,
            grpc: self.grpc,
            flag: self.flag,
            is_grpc: self.is_grpc,
            values,
        };
        let s = self.worker.series(series, |k| metrics::labels(self, t, &k.values));
        s.add(took, self.received.get(), sent);
        if self.worker.shared.config.access_log && t.is_none_or(|t| t.logs(self, sent)) {
            self.line(took.as_millis(), sent);
        }
    }

    /// What Envoy would call the cluster.
    pub fn cluster(&self) -> String {
        match (&self.destination, &self.called) {
            (Some((s, subset)), _) if self.at_gateway => format!("outbound|{}|{subset}|{}", self.port, s.hostname),
            (Some((s, subset)), _) => format!("inbound-vip|{}|{subset}|{}", self.port, s.hostname),
            (None, Some(s)) => format!("inbound-vip|{}||{}", self.port, s.hostname),
            (None, None) => "-".into(),
        }
    }

    /// Envoy's default line, as Istio has it.
    fn line(&self, took_ms: u128, sent: u64) {
        let text = |v: &Option<HeaderValue>| match v {
            Some(v) => format!("{}", Untrusted(&String::from_utf8_lossy(v.as_bytes()))),
            None => "-".to_string(),
        };
        let host = self.workload.as_ref().map_or_else(|| "-".to_string(), |(_, a)| a.to_string());
        let cluster = self.cluster();
        let or = |s: &str| if s.is_empty() { "-".to_string() } else { format!("{}", Untrusted(s)) };
        let mut out = String::with_capacity(400);
        let time = log::timestamp(self.time);
        if log::format() == log::Format::Json {
            let line = serde_json::json!({
                "start_time": time, "method": self.method.as_str(), "path": self.path, "protocol": self.protocol,
                "response_code": self.answered, "response_flags": self.flag.text(),
                "upstream_transport_failure_reason": if self.error.is_empty() { None } else { Some(&self.error) },
                "bytes_received": self.received.get(), "bytes_sent": sent, "duration": took_ms,
                "user_agent": text(&self.user_agent), "request_id": text(&self.request_id), "authority": self.authority,
                "upstream_host": host, "upstream_cluster": cluster, "downstream_remote_address": self.from.to_string(),
                "downstream_peer": self.principal, "route_name": self.route,
            });
            return log::line(line.to_string());
        }
        let _ = write!(
            out,
            "[{time}] \"{} {} {}\" {} {} via_upstream - \"{}\" {} {sent} {took_ms} - \"-\" \"{}\" \"{}\" \"{}\" \"{host}\" {cluster} - - {} - \"{}\"",
            self.method,
            or(&self.path),
            self.protocol,
            self.answered,
            self.flag.text(),
            or(&self.error),
            self.received.get(),
            text(&self.user_agent),
            text(&self.request_id),
            or(&self.authority),
            self.from,
            or(&self.route),
        );
        log::line(out);
    }
}
