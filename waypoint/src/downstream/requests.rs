//! The requests of one connection of a client, until it ends.

use crate::{
    downstream::{
        busy::Busy,
        context::{Downstream, no_method},
        ports::LEAVING,
    },
    http::{codec, handle},
    telemetry::{flag::ResponseFlag, wire},
    worker::Worker,
};
use http::{HeaderValue, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use karst_core::{limits, refusal};
use karst_hbone::frames::{Limited, PREFACE};
use karst_rt::{admission::Permit, on_wake::OnWake};
use std::{cell::Cell, pin::Pin, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};

/// The head of a request from outside must be there after this time; counted from the end of the one before.
const PATIENCE: Duration = Duration::from_secs(300);
/// A connection that begins during the drain is told to end after this time; earlier, hyper would close it unread.
const LATE: Duration = Duration::from_secs(1);

/// Serves the requests of a connection until it ends. `http2`: HTTP/2 is spoken.
pub async fn requests<I>(worker: &Rc<Worker>, downstream: Rc<Downstream>, io: I, http2: bool)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Who comes through the mesh is known; from elsewhere, heads may be sent slowly on purpose.
    let patience = downstream.is_at_gateway().then_some(PATIENCE);
    let (permit, own) = (downstream.permit.clone(), downstream.clone());
    let outdated = &own.entered.outdated;
    // Of HTTP/1.1: each answer is its connection's last.
    let leaves = Rc::new(Cell::new(false));
    let service = {
        let (worker, downstream, leaves) = (worker.clone(), downstream.clone(), leaves.clone());
        service_fn(move |request| {
            let (worker, busy, downstream) = (worker.clone(), Busy::on(&downstream), downstream.clone());
            let leaves = leaves.clone();
            async move {
                let mut answer = handle::handle(worker, downstream, request).await;
                if leaves.get() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                let head = wire::response_head(answer.status(), answer.headers());
                Ok::<_, std::convert::Infallible>(answer.map(|a| a.headed(head).keeping(busy)))
            }
        })
    };
    let (mut drain, limits) = (worker.drain.clone(), worker.shared.config.head_limits());
    if http2 {
        let http2 = codec::server2(limits);
        let conn = std::pin::pin!(http2.serve_connection(TokioIo::new(Limited::new(io, PREFACE)), service));
        let leave = Leave { begins: &|| {}, wait: Duration::ZERO, outdated };
        let _ = until_drained(conn, |c| c.graceful_shutdown(), (&mut drain, leave), permit.as_deref()).await;
    } else {
        let http1 = codec::server1(patience, limits);
        let conn = std::pin::pin!(http1.serve_connection(TokioIo::new(io), service).with_upgrades());
        // hyper would close a connection without a request at once, and the one that is on its way there would be lost.
        let wait = LEAVING.min(worker.shared.config.drain_limit() / 2);
        let leave = Leave { begins: &|| leaves.set(true), wait, outdated };
        if let Err(e) = until_drained(conn, |c| c.graceful_shutdown(), (&mut drain, leave), permit.as_deref()).await {
            unreadable(worker, &own, &e);
        }
    }
    worker.shared.gate.note_evicted(permit.as_deref());
}

/// How a connection leaves when the drain begins.
struct Leave<'a> {
    /// What is to be known from then on.
    begins: &'a dyn Fn(),
    /// Before it is told to end.
    wait: Duration,
    /// Tells that it is to end at once, without a drain.
    outdated: &'a Notify,
}

/// Serves a client's connection to its end; when the drain begins, or it is told to be outdated, it is told to end after what is under
/// way. The same when it has to give way to others, and then it ends soon whatever the client does.
async fn until_drained<C: Future<Output = hyper::Result<()>>>(
    mut conn: Pin<&mut C>,
    end: impl Fn(Pin<&mut C>),
    (drain, leave): (&mut karst_rt::drain::Watch, Leave<'_>),
    permit: Option<&Permit>,
) -> hyper::Result<()> {
    let evicted = async {
        match permit {
            Some(p) => p.evicted().await,
            None => std::future::pending().await,
        }
    };
    let evicted = std::pin::pin!(evicted);
    let mut evicted = OnWake::new(evicted);
    let mut last: Option<Pin<Box<tokio::time::Sleep>>> = None;
    // Who comes during the drain (gateways take connections for a while) has come with a request.
    let wait = if drain.started() { LATE } else { Duration::ZERO };
    let drained = async {
        drain.reached(karst_rt::drain::Phase::Graceful).await;
        (leave.begins)();
        tokio::time::sleep(wait.max(leave.wait)).await;
    };
    let drained = std::pin::pin!(drained);
    let mut drained = OnWake::new(drained);
    let outdated = std::pin::pin!(leave.outdated.notified());
    let mut outdated = OnWake::new(outdated);
    let mut ending = false;
    loop {
        tokio::select! {
            r = conn.as_mut() => {
                return r.inspect_err(|e| tracing::debug!(error = %e, "a client's connection ended"));
            }
            () = &mut drained, if !ending => {
                ending = true;
                end(conn.as_mut());
            }
            () = &mut outdated, if !ending => {
                ending = true;
                end(conn.as_mut());
            }
            () = &mut evicted, if last.is_none() => {
                ending = true;
                end(conn.as_mut());
                last = Some(Box::pin(tokio::time::sleep(limits::GIVE_WAY_TIMEOUT)));
            }
            () = async { if let Some(t) = &mut last { t.await } }, if last.is_some() => return Ok(()),
        }
    }
}

/// Tells of what HTTP/1.1 could not read as a request; it has been answered (with a status that Envoy gives, too).
fn unreadable(worker: &Rc<Worker>, downstream: &Downstream, error: &hyper::Error) {
    if !error.is_parse() {
        return;
    }
    let mut record = downstream.record(&worker.sink, &worker.snapshot());
    (record.method, record.protocol, record.flag) = (no_method(), "HTTP/1.1", ResponseFlag::BadRequest);
    record.error = error.to_string();
    (record.answered, record.details) = match (error.is_parse_too_large(), record.error.contains("URI")) {
        (false, _) => (400, ResponseFlag::BadRequest.details().into()),
        (true, false) => (431, "http1.headers_too_large".into()),
        (true, true) => (414, "http1.headers_too_large".into()),
    };
    if error.is_parse_too_large() {
        record.error = refusal::LARGE_HEAD.into();
    }
    record.finish(0);
}
