//! One message to a collector, sent as any other call to a service is: by its endpoints, through a tunnel if they take it, with the TLS
//! that a DestinationRule asks for. To another endpoint, if the first is not there.

use crate::{
    clock,
    cluster::endpoint_set::EndpointSet,
    http::body::{Body, Counted},
    spans::{queue::Signal, rules::Collector},
    upstream::{
        error::Error,
        open::Attempt,
        own::{self, OwnCall},
        pool::ConnectionDisposition,
        send::plain,
    },
    worker::Worker,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header, uri::PathAndQuery};
use http_body::Body as _;
use hyper::body::Incoming;
use karst_api::{otlp::ExportTraceServiceResponse, route::CollectorProtocol};
use karst_proxy::state::Service;
use prost::Message;
use std::{cell::Cell, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;
/// Endpoints that an export is tried at.
const TRIES: usize = 2;
/// HTTP: it is the message that cannot be taken, and the next one may be.
const OF_MESSAGE: [u16; 3] = [400, 413, 422];
/// gRPC: the same (8 is also what a message beyond the collector's maximum is answered with, which is 413 by HTTP).
const OF_GRPC_MESSAGE: [u16; 2] = [INVALID_ARGUMENT, RESOURCE_EXHAUSTED];
const INVALID_ARGUMENT: u16 = 3;
const RESOURCE_EXHAUSTED: u16 = 8;
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

    /// Does it say something of the message alone, and nothing of the next one?
    pub fn is_of_message(&self) -> bool {
        match self {
            ExportError::Status(status) => OF_MESSAGE.contains(status),
            ExportError::Grpc(status) => OF_GRPC_MESSAGE.contains(status),
            ExportError::NoService
            | ExportError::NoEndpoint
            | ExportError::Late(_)
            | ExportError::Send(_)
            | ExportError::Read(_)
            | ExportError::Host => false,
        }
    }
}

/// Sends a message, within the time that the collector has. Returns how many of its items the collector has rejected.
///
/// # Errors
/// See [`ExportError`].
pub async fn send(
    worker: &Rc<Worker>,
    signal: Signal,
    collector: &Collector,
    message: &Bytes,
) -> Result<u64, ExportError> {
    match tokio::time::timeout(collector.timeout, by_endpoints(worker, signal, collector, message)).await {
        Ok(ended) => ended,
        Err(_) => {
            forget(worker, collector);
            Err(ExportError::Late(collector.timeout))
        }
    }
}

/// A connection on which nobody answers may lead nowhere any more: what is sent next has another one.
fn forget(worker: &Rc<Worker>, collector: &Collector) {
    let own = OwnCall::to(worker, &worker.snapshot(), &collector.service, collector.port);
    for member in own.iter().flat_map(|own| &own.set.members) {
        worker.upstream.forget(&member.workload.uid, member.address);
    }
}

/// Sends a message, to another endpoint if the first is not there.
async fn by_endpoints(
    worker: &Rc<Worker>,
    signal: Signal,
    collector: &Collector,
    message: &Bytes,
) -> Result<u64, ExportError> {
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
    let answered = plain(worker, &attempt, request, is_grpc, &sent).await;
    let status = answered.as_ref().ok().map(|(response, _)| response.status().as_u16());
    if answered.as_ref().err().is_none_or(Error::is_of_endpoint) {
        set.record_outcome(member, status);
    }
    let (response, after) = answered?;
    taken(response, after, is_grpc).await
}

fn request(signal: Signal, collector: &Collector, service: &Service, body: Bytes) -> Option<Request<Counted>> {
    let authority = HeaderValue::try_from(format!("{}:{}", service.hostname, collector.port)).ok()?;
    let (is_grpc, is_empty) = (collector.protocol == CollectorProtocol::OtlpGrpc, body.is_empty());
    let mut request = Request::new(Counted::new(Body::Bytes(body), Rc::default()));
    *request.method_mut() = http::Method::POST;
    let headers = request.headers_mut();
    headers.extend(collector.headers.clone());
    headers.insert(header::USER_AGENT, own::user_agent());
    let kind = match collector.protocol {
        CollectorProtocol::OtlpGrpc => "application/grpc",
        CollectorProtocol::OtlpHttp => "application/x-protobuf",
        CollectorProtocol::Zipkin => "application/json",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if is_grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        own::insert_grpc_timeout(headers, collector.timeout)?;
    } else if is_empty {
        // hyper says no length of what has no bytes.
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let path = match is_grpc {
        true => PathAndQuery::from_static(signal.grpc_path()),
        false => collector.path.clone(),
    };
    own::address(&mut request, is_grpc, authority, path)?;
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
