//! A question to a provider of external authorization, sent as any other request of this proxy's own: by the provider's endpoints,
//! with the limits, the balancing and the TLS that its rules ask for. Whatever is not an answer in time is an error. What must hold: a
//! provider that may have read something of a question is not asked it again, nor is another endpoint of it. What it does by a question
//! (a token that is used up, a count of its own) it does once.

use crate::{
    authz::external::{
        answer::{Answer, Invalid},
        grpc, plain,
        provider::{HttpRules, Protocol, Provider},
        question::Prepared,
    },
    clock,
    cluster::{balance, endpoint_set::EndpointSet},
    http::{
        body::{Body, Counted, discard},
        permits::acquire_connection,
        reply::{InFlightEndpoint, RequestPermit},
    },
    snapshot::Snapshot,
    telemetry::flag::ResponseFlag,
    upstream::{
        error::Error,
        open::Attempt,
        own::{self, OwnCall},
        pool::ConnectionDisposition,
        send,
    },
    worker::Worker,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, response};
use http_body::Body as _;
use hyper::body::Incoming;
use karst_api::workload::AppProtocol;
use karst_proxy::state::Service;
use std::{cell::Cell, net::SocketAddr, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Endpoints that a question is tried at.
const TRIES: usize = 2;
/// Most bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// What follows a yes is read this long, so that its connection can be used again.
const REST: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("no such service or port in the mesh; check service and port of the provider in extensionProviders")]
    NoService,
    #[error("the service has no endpoint that can be used")]
    NoEndpoint,
    #[error("the service has as many requests or connections as it may have")]
    Overflow,
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("{0}")]
    Send(#[from] Error),
    #[error("the answer broke off: {0}")]
    Read(hyper::Error),
    #[error("an answer that cannot be used: {0}")]
    Invalid(#[from] Invalid),
    #[error("the service's host is not one that can be called")]
    Host,
}

/// When an answer must be there, and how long that was.
#[derive(Clone, Copy)]
struct Limit {
    until: Instant,
    time: Duration,
}

/// Asks a provider; another endpoint of it, if the first has seen nothing of the question.
///
/// # Errors
/// It has not answered.
pub(super) async fn ask(
    worker: &Rc<Worker>,
    snapshot: &Arc<Snapshot>,
    provider: &Provider,
    prepared: &Prepared,
    time: Duration,
) -> Result<Answer, CheckError> {
    let limit = Limit { until: Instant::now() + time, time };
    let own = OwnCall::to(worker, snapshot, &provider.service, provider.port).ok_or(CheckError::NoService)?;
    let is_http2 = is_http2(provider, &own.set);
    let mut tried = vec![];
    loop {
        let counter = RequestPermit::request(&own.set).ok_or(CheckError::Overflow)?;
        let permit = acquire_connection(&own.set, is_http2, Some(limit.until)).await.map_err(|flag| match flag {
            ResponseFlag::Timeout => CheckError::Late(time),
            _ => CheckError::Overflow,
        })?;
        let index = worker.choose(&own.set, None, &tried, clock::now()).ok_or(CheckError::NoEndpoint)?;
        let held = (InFlightEndpoint::new(own.set.clone(), index, permit), counter);
        let request = request(provider, prepared, &own.set.service, is_http2, time).ok_or(CheckError::Host)?;
        let sent = Cell::new(false);
        let call = Attempted { worker, set: &own.set, from: own.from, index, tried: &tried, is_http2, sent: &sent };
        match call.once(provider, request, limit, held).await {
            Err(CheckError::Send(error))
                if error.is_unseen(sent.get()) && tried.len() + 1 < TRIES.min(own.set.live().len()) =>
            {
                tried.push(index);
            }
            ended => return ended,
        }
    }
}

/// Does the provider speak HTTP/2? By HTTP, if its port says so.
fn is_http2(provider: &Provider, set: &EndpointSet) -> bool {
    match &provider.protocol {
        Protocol::Grpc(_) => true,
        Protocol::Http(_) => {
            let port = set.service.protocols.iter().find(|(port, _)| *port == set.key.port).map(|(_, speaks)| *speaks);
            matches!(port, Some(AppProtocol::Http2 | AppProtocol::Grpc))
        }
    }
}

fn request(
    provider: &Provider,
    prepared: &Prepared,
    service: &Service,
    is_http2: bool,
    time: Duration,
) -> Option<Request<Counted>> {
    let authority = match &prepared.authority {
        Some(authority) => authority.clone(),
        None => HeaderValue::from_str(&format!("{}:{}", service.hostname, provider.port)).ok()?,
    };
    let mut request = Request::new(Counted::new(Body::Bytes(prepared.body.clone()), Rc::default()));
    *request.method_mut() = prepared.method.clone();
    let headers = request.headers_mut();
    *headers = prepared.headers.clone();
    if matches!(provider.protocol, Protocol::Grpc(_)) {
        own::insert_grpc_timeout(headers, time)?;
        headers.insert(header::USER_AGENT, own::user_agent());
    }
    own::address(&mut request, is_http2, authority, prepared.path.clone())?;
    Some(request)
}

/// What a question uses of its endpoint until the answer has been read.
type Held = (InFlightEndpoint, RequestPermit);

/// A question on its way to one endpoint.
struct Attempted<'a> {
    worker: &'a Rc<Worker>,
    set: &'a Rc<EndpointSet>,
    from: SocketAddr,
    index: usize,
    tried: &'a [usize],
    is_http2: bool,
    /// Set once something of it may have been read.
    sent: &'a Cell<bool>,
}

impl Attempted<'_> {
    async fn once(
        &self,
        provider: &Provider,
        request: Request<Counted>,
        limit: Limit,
        held: Held,
    ) -> Result<Answer, CheckError> {
        let Self { worker, set, from, index, tried, is_http2, sent } = *self;
        let member = &set.members[index];
        let held_back = Cell::new(false);
        let has_other = || tried.len() + 1 < TRIES && balance::has_other(set, index, tried);
        // It has no span.
        let attempt = Attempt { set, member, from, to: from, has_other: &has_other, held: &held_back, trace: &|| None };
        let answered = timeout_at(limit.until, send::plain(worker, &attempt, request, is_http2, sent)).await;
        let outcome = match &answered {
            Ok(Ok((response, _))) => Some(Some(response.status().as_u16())),
            Ok(Err(error)) => error.is_of_endpoint().then_some(None),
            Err(_) => (!held_back.get()).then_some(None),
        };
        if let Some(status) = outcome {
            set.record_outcome(member, status);
        }
        let (response, after) = answered.map_err(|_| CheckError::Late(limit.time))??;
        match &provider.protocol {
            Protocol::Grpc(_) => by_grpc(response, after, limit).await,
            Protocol::Http(rules) => by_http(rules, response, after, limit, held).await,
        }
    }
}

async fn by_grpc(
    response: Response<Incoming>,
    after: ConnectionDisposition,
    limit: Limit,
) -> Result<Answer, CheckError> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(Invalid::Status(head.status.as_u16()).into());
    }
    let late = |_| CheckError::Late(limit.time);
    let Whole { body, trailers } = timeout_at(limit.until, read(body)).await.map_err(late)??;
    after.release();
    // A call that has failed may have its status in the head.
    Ok(grpc::answer(&body, trailers.as_ref().unwrap_or(&head.headers))?)
}

/// The head says yes or no: nobody waits for what follows a yes, and a no stays one whatever becomes of the rest of it.
async fn by_http(
    rules: &HttpRules,
    response: Response<Incoming>,
    after: ConnectionDisposition,
    limit: Limit,
    held: Held,
) -> Result<Answer, CheckError> {
    let (response::Parts { status, headers, .. }, body) = response.into_parts();
    if status == StatusCode::OK {
        tokio::task::spawn_local(async move {
            let _held = held;
            if tokio::time::timeout(REST, discard(body)).await.is_ok() {
                after.release();
            }
        });
        return Ok(plain::answer(rules, status, &headers, Bytes::new())?);
    }
    let body = match timeout_at(limit.until, read(body)).await {
        Ok(Ok(whole)) => {
            after.release();
            whole.body
        }
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    Ok(plain::answer(rules, status, &headers, body)?)
}

/// An answer after its head.
struct Whole {
    body: Bytes,
    trailers: Option<HeaderMap>,
}

/// Reads an answer, of which there may be at most [`MAX_ANSWER`].
async fn read(mut body: Incoming) -> Result<Whole, CheckError> {
    let (mut out, mut trailers) = (vec![], None);
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map_err(CheckError::Read)?.into_data() {
            Ok(data) if out.len() + data.len() > MAX_ANSWER => return Err(Invalid::TooLong(MAX_ANSWER).into()),
            Ok(data) => out.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(Whole { body: out.into(), trailers })
}
