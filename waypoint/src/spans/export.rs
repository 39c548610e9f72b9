//! The exporter: one task of the control thread that takes batches of spans, and of records of the log, from their queues and sends them
//! to their collectors, as any other call to a service is sent: by its endpoints, through a tunnel if they take it, with the TLS that a
//! DestinationRule asks for. It never holds up a request: what a collector does not take in time is dropped and counted. A batch is
//! sent as the worker has written it, and its buffer goes back there. Neither of both waits for the other's collector.

use crate::{
    clock,
    cluster::endpoint_set::EndpointSet,
    http::{
        body::{Body, Counted},
        names,
    },
    spans::{
        queue::{Batch, CAPACITY, Counts, Signal},
        rules::Collector,
    },
    upstream::{
        connector::Connector,
        error::Error,
        follow,
        open::Attempt,
        own::OwnCall,
        pool::ConnectionDisposition,
        reopen,
        send::{http1, http2},
    },
    worker::{Shared, Worker},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version, header, uri::Scheme};
use http_body::Body as _;
use hyper::body::Incoming;
use karst_api::{otlp::ExportTraceServiceResponse, route::CollectorProtocol};
use karst_proxy::state::Service;
use karst_rt::{drain, repeated::Repeated, socket::NetnsConnector};
use prost::Message;
use std::{
    cell::Cell,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// While a collector cannot be reached it is tried once in this time: meanwhile the queue fills, and what finds no place costs nothing.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest that gRPC can say of a call's time (8 digits), in milliseconds.
const MAX_GRPC_TIMEOUT: u128 = 99_999_999;
/// A stopping process waits this long for its last exports.
const LAST: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;
/// Endpoints that an export is tried at.
const TRIES: usize = 2;
/// gRPC: the collector cannot take them now.
const UNAVAILABLE: u16 = 14;
const UNKNOWN: u16 = 2;

impl Signal {
    /// What it is sent to by gRPC.
    fn grpc_path(self) -> &'static str {
        match self {
            Self::Spans => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }

    /// Where it is counted.
    fn counts(self, worker: &Worker) -> &Counts {
        match self {
            Self::Spans => &worker.shared.metrics.spans,
            Self::Logs => &worker.shared.metrics.logs,
        }
    }
}

/// Why an export has failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("no such service or port in the mesh; check service and port of the provider in extensionProviders")]
    NoService,
    #[error("the service has no endpoint that can be used")]
    NoEndpoint,
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("{0}")]
    Send(#[from] Error),
    #[error("the answer broke off: {0}")]
    Read(hyper::Error),
    #[error("answered with HTTP status {0}")]
    Status(u16),
    #[error("answered with gRPC status {0}")]
    Grpc(u16),
    #[error("the service's host is not one that can be called")]
    Host,
}

impl ExportError {
    /// May another endpoint take them? (OTLP, "Failures": not what the collector has refused.)
    fn may_retry(&self) -> bool {
        match self {
            ExportError::Send(_) | ExportError::Read(_) => true,
            ExportError::Status(status) => [502, 503, 504].contains(status),
            ExportError::Grpc(status) => *status == UNAVAILABLE,
            ExportError::NoService | ExportError::NoEndpoint | ExportError::Late(_) | ExportError::Host => false,
        }
    }

    /// Is the collector not there at all?
    fn is_unreachable(&self) -> bool {
        match self {
            ExportError::NoService
            | ExportError::NoEndpoint
            | ExportError::Host
            | ExportError::Send(Error::Connect(_)) => true,
            ExportError::Send(Error::StreamRefused(_) | Error::Reset(_) | Error::Protocol(_))
            | ExportError::Late(_)
            | ExportError::Read(_)
            | ExportError::Status(_)
            | ExportError::Grpc(_) => false,
        }
    }
}

/// The exporter of a process.
pub struct Exporter {
    stops: [oneshot::Sender<()>; 2],
    task: tokio::task::JoinHandle<()>,
    /// The workers' drain is none of its: it has something to do when they have nothing.
    _drain: drain::Drain,
}

/// Starts it, on this thread's `LocalSet`: of spans, and of the log.
pub fn start(shared: Arc<Shared>, [spans, logs]: [mpsc::Receiver<Batch>; 2]) -> Exporter {
    let (drain, watch) = drain::new();
    let ((no_more_spans, spans_end), (no_more_logs, logs_end)) = (oneshot::channel(), oneshot::channel());
    let task = tokio::task::spawn_local(async move {
        // What connections and tunnels are kept in is a worker's; this one has no number, and serves nobody.
        let (following, orders) = follow::orders();
        let network = Connector::Network(NetnsConnector::host());
        let worker = Worker::new(shared, usize::MAX, watch, network, following);
        tokio::task::spawn_local(reopen::run(Rc::downgrade(&worker), orders));
        tokio::join!(run(worker.clone(), spans, spans_end), run(worker, logs, logs_end));
    });
    Exporter { stops: [no_more_spans, no_more_logs], task, _drain: drain }
}

impl Exporter {
    /// Sends what is still there, for at most [`LAST`].
    pub async fn finish(self) {
        for stop in self.stops {
            let _ = stop.send(());
        }
        let _ = tokio::time::timeout(LAST, self.task).await;
    }
}

/// Exports until it is told to stop; then what is in the queue is the last.
pub async fn run(worker: Rc<Worker>, mut queue: mpsc::Receiver<Batch>, mut stop: oneshot::Receiver<()>) {
    let mut trouble = Repeated::default();
    loop {
        let first = tokio::select! {
            first = queue.recv() => first,
            _ = &mut stop, if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        let Some(first) = first else { return };
        let mut is_reached = export(&worker, first, &mut trouble).await;
        // What waits already belongs to the same round, within limits: it is asked in between whether there is an end.
        for _ in 1..CAPACITY {
            if !is_reached {
                break;
            }
            let Ok(next) = queue.try_recv() else { break };
            is_reached = export(&worker, next, &mut trouble).await;
        }
        // Tunnels to collectors that have gone are not kept.
        worker.dialer.retire(&worker.snapshot().mesh);
        for over in trouble.end_round() {
            tracing::info!("export: {over}");
        }
        if !is_reached && !queue.is_closed() {
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = &mut stop => queue.close(),
            }
        }
    }
}

/// Sends a batch; what is not taken is counted, and told in the log. False: the collector is not there.
async fn export(worker: &Rc<Worker>, batch: Batch, trouble: &mut Repeated) -> bool {
    let Batch { signal, collector, count, message, buffers } = batch;
    let sent = tokio::time::timeout(collector.timeout, send(worker, signal, &collector, &message)).await;
    let all = count as u64;
    let (rejected, is_reached) = match sent.unwrap_or(Err(ExportError::Late(collector.timeout))) {
        Ok(rejected) => (rejected.min(all), true),
        Err(error) => {
            let text = format!("{}:{}: {error}", collector.service, collector.port);
            if let Some(line) = trouble.note(&text) {
                tracing::warn!("{} could not be exported and are dropped: {line}", signal.name());
            }
            (all, !error.is_unreachable())
        }
    };
    let counts = signal.counts(worker);
    counts.dropped_failed.fetch_add(rejected, Relaxed);
    counts.exported.fetch_add(all - rejected, Relaxed);
    give_back(message, &buffers);
    is_reached
}

/// The worker writes its next batch into the same memory, unless somebody still has it, or there is enough.
fn give_back(message: Bytes, buffers: &mpsc::Sender<Vec<u8>>) {
    if let Ok(mut buffer) = message.try_into_mut() {
        // Nothing is moved then.
        buffer.clear();
        let _ = buffers.try_send(buffer.into());
    }
}

/// Sends a batch, to another endpoint if the first is not there. Returns how many of its items the collector has rejected.
async fn send(worker: &Rc<Worker>, signal: Signal, collector: &Collector, message: &Bytes) -> Result<u64, ExportError> {
    let snapshot = worker.snapshot();
    let OwnCall { set, from } =
        OwnCall::to(worker, &snapshot, &collector.service, collector.port).ok_or(ExportError::NoService)?;
    let mut tried = vec![];
    loop {
        let index = worker.choose(&set, None, &tried, clock::now()).ok_or(ExportError::NoEndpoint)?;
        tried.push(index);
        match once(worker, (signal, collector), (&*set, index, from), message.clone()).await {
            Err(e) if e.may_retry() && tried.len() < TRIES.min(set.live().len()) => {}
            ended => return ended,
        }
    }
}

/// Sends a body to one endpoint.
async fn once(
    worker: &Rc<Worker>,
    (signal, collector): (Signal, &Collector),
    (set, index, from): (&EndpointSet, usize, SocketAddr),
    body: Bytes,
) -> Result<u64, ExportError> {
    let member = &set.members[index];
    let (held, sent) = (Cell::new(false), Cell::new(false));
    let has_other = || false;
    let attempt = Attempt { set, member, from, to: from, has_other: &has_other, held: &held, trace: &|| None };
    let is_grpc = collector.protocol == CollectorProtocol::OtlpGrpc;
    let request = request(signal, collector, &set.service, body).ok_or(ExportError::Host)?;
    let answered = match is_grpc {
        true => http2(worker, &attempt, request, &sent).await,
        false => http1(worker, &attempt, request, &sent).await,
    };
    let status = answered.as_ref().ok().map(|(response, _)| response.status().as_u16());
    if answered.as_ref().err().is_none_or(Error::is_of_endpoint) {
        set.record_outcome(member, status);
    }
    let (response, after) = answered?;
    taken(response, after, is_grpc).await
}

fn request(signal: Signal, collector: &Collector, service: &Service, body: Bytes) -> Option<Request<Counted>> {
    let authority = format!("{}:{}", service.hostname, collector.port);
    let mut request = Request::new(Counted::new(Body::Bytes(body), Rc::default()));
    *request.method_mut() = http::Method::POST;
    let headers = request.headers_mut();
    headers.extend(collector.headers.clone());
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("karst/", env!("CARGO_PKG_VERSION"))));
    let kind = match collector.protocol {
        CollectorProtocol::OtlpGrpc => "application/grpc",
        CollectorProtocol::OtlpHttp => "application/x-protobuf",
        CollectorProtocol::Zipkin => "application/json",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if collector.protocol != CollectorProtocol::OtlpGrpc {
        headers.insert(header::HOST, HeaderValue::from_str(&authority).ok()?);
        *request.uri_mut() = Uri::from(collector.path.clone());
        return Some(request);
    }
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let timeout = format!("{}m", collector.timeout.as_millis().min(MAX_GRPC_TIMEOUT));
    headers.insert(names::GRPC_TIMEOUT, HeaderValue::from_str(&timeout).ok()?);
    *request.version_mut() = Version::HTTP_2;
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(signal.grpc_path());
    *request.uri_mut() = uri.build().ok()?;
    Some(request)
}

/// How many items an answer rejects. (Of both signals it has the same fields.)
async fn taken(response: Response<Incoming>, after: ConnectionDisposition, is_grpc: bool) -> Result<u64, ExportError> {
    let (head, body) = response.into_parts();
    let (body, trailers) = read(body).await.map_err(ExportError::Read)?;
    after.release();
    if !head.status.is_success() {
        return Err(ExportError::Status(head.status.as_u16()));
    }
    if is_grpc {
        let status = trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
        let status = status.map_or(Some(UNKNOWN), |s| s.to_str().ok()?.parse().ok()).unwrap_or(UNKNOWN);
        if status != 0 {
            return Err(ExportError::Grpc(status));
        }
    }
    let message = if is_grpc { body.get(5..).unwrap_or_default() } else { &body };
    // Zipkin has no such answer, and one in JSON is not read.
    let partial = ExportTraceServiceResponse::decode(message).ok().and_then(|answer| answer.partial_success);
    Ok(partial.map_or(0, |partial| partial.rejected_spans.max(0) as u64))
}

/// An answer's body, of which at most [`MAX_ANSWER`] are kept, and its trailers.
async fn read(mut body: Incoming) -> Result<(Vec<u8>, Option<HeaderMap>), hyper::Error> {
    let (mut out, mut trailers) = (vec![], None);
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => {
                let left = MAX_ANSWER - out.len();
                out.extend_from_slice(&data[..data.len().min(left)]);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((out, trailers))
}
