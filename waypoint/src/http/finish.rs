//! An endpoint's answer on its way to the client, and the bytes after a change of protocol.

use crate::{
    downstream::{busy::Busy, conns::Guard, context::Downstream},
    http::{
        answer::{local_reply_of, log_reply},
        entry::{self, Authority},
        names,
        reply::{self, InFlightEndpoint, RequestPermit, ResponseBody},
        values::OfRequest,
    },
    route::table::{Destination, Rule},
    telemetry::{
        carried::{Carried, Metered},
        flag::{ResponseFlag, VIA_UPSTREAM},
        request_log::RequestLog,
    },
    upstream::pool::ConnectionDisposition,
};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use std::rc::Rc;
use tokio::time::Instant;

/// What an answer still needs.
pub(super) struct Ending<'a> {
    pub(super) rule: Option<&'a Rule>,
    pub(super) to: &'a Destination,
    pub(super) deadline: Option<Instant>,
    pub(super) client_upgrade: Option<OnUpgrade>,
    /// What was asked.
    pub(super) asked: (&'a Downstream, &'a Parts, &'a Authority),
    /// Of the connection, if it may change to another protocol.
    pub(super) busy: Option<Busy>,
    pub(super) guard: Option<Guard>,
    /// To be set at the client, so that it comes back to the same endpoint.
    pub(super) cookie: Option<HeaderValue>,
}

pub(super) fn finish(
    e: Ending<'_>,
    a: Response<Incoming>,
    after: ConnectionDisposition,
    held: InFlightEndpoint,
    counter: RequestPermit,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let (mut p, incoming) = a.into_parts();
    record.answered = p.status.as_u16();
    record.details = VIA_UPSTREAM.into();
    record.grpc = p.headers.get(names::GRPC_STATUS).and_then(reply::grpc_status);
    p.version = Version::HTTP_11;
    if p.status == StatusCode::SWITCHING_PROTOCOLS {
        // Only to what was asked for: nothing of what follows is judged.
        if e.client_upgrade.is_none() || !entry::names_websocket(&p.headers) {
            record.error = "the endpoint has changed to a protocol that was not asked for".into();
            record.details = ResponseFlag::ProtocolError.details().into();
            return local_reply_of(record, ResponseFlag::ProtocolError);
        }
        return switched(p, incoming, (e.client_upgrade, e.busy, e.guard), after, record);
    }
    entry::strip(&mut p.headers);
    for c in [e.to.answer.as_ref(), e.rule.and_then(|r| r.answer.as_ref())].into_iter().flatten() {
        let (downstream, parts, authority) = e.asked;
        c.apply(&mut p.headers, &OfRequest { downstream, parts, authority, record: &record, answered: true });
    }
    if let Some(c) = e.cookie {
        p.headers.append(header::SET_COOKIE, c);
    }
    let body = ResponseBody::endpoint(incoming, after, held, counter).until(e.deadline).recorded(record);
    p.extensions.clear();
    Response::from_parts(p, body)
}

/// Both sides have changed to another protocol (RFC 9110 §7.8): bytes from now on.
fn switched(
    mut p: http::response::Parts,
    _: Incoming,
    (client, busy, guard): (Option<OnUpgrade>, Option<Busy>, Option<Guard>),
    after: ConnectionDisposition,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let endpoint = p.extensions.remove::<OnUpgrade>();
    entry::strip(&mut p.headers);
    entry::upgrade(&mut p.headers);
    if let (Some(c), Some(e), Some(guard)) = (client, endpoint, guard) {
        tokio::task::spawn_local(async move {
            let bytes = Rc::new(Carried { received: record.received.clone(), ..Carried::default() });
            if let (Ok(c), Ok(e)) = (c.await, e.await) {
                let mut c = Metered::new(hyper_util::rt::TokioIo::new(c), bytes.clone());
                let mut e = hyper_util::rt::TokioIo::new(e);
                let carried = async {
                    tokio::select! {
                        r = tokio::io::copy_bidirectional(&mut c, &mut e) => drop(r),
                        by = guard.forbidden() => (record.error, record.details) = (by.error, by.details.into()),
                    }
                };
                Busy::keep_busy(busy, carried).await;
            }
            drop(after);
            // Told when it is over, with what has been carried.
            record.finish(bytes.sent.get());
        });
        return Response::from_parts(p, ResponseBody::local(Bytes::new()));
    }
    let r = Response::from_parts(p, ResponseBody::local(Bytes::new()));
    log_reply(record, r, ResponseFlag::None)
}
