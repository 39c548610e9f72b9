//! An endpoint's answer on its way to the client, and the bytes after a change of protocol.

use crate::{
    downstream::{busy::Busy, conns::Guard, context::Downstream},
    http::{
        answer::{local_reply_of, log_reply},
        entry::{self, Authority},
        names,
        reply::{self, InFlightEndpoint, RequestPermit, ResponseBody},
        session,
        side::Side,
        values::OfRequest,
        websocket::{Handshake, NOT_ASKED},
    },
    route::{destination::Destination, rule::Rule},
    telemetry::{
        carried::{Carried, Metered},
        flag::{ResponseFlag, VIA_UPSTREAM},
        request_log::RequestLog,
        wire,
    },
    upstream::pool::ConnectionDisposition,
    worker::Open,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use std::rc::Rc;
use tokio::time::Instant;

/// What an answer still needs.
pub(super) struct Ending<'a> {
    pub(super) rule: Option<&'a Rule>,
    pub(super) to: &'a Destination,
    pub(super) deadline: Option<Instant>,
    /// Of what asks for WebSocket.
    pub(super) websocket: Option<Handshake>,
    /// What was asked.
    pub(super) asked: (&'a Downstream, &'a Parts, &'a Authority),
    /// Of the connection, if it may change to another protocol.
    pub(super) busy: Option<Busy>,
    /// Of what changes to another protocol: whom policies close, and its place among those that a drain waits for.
    pub(super) guard: Option<(Guard, Open)>,
    /// To be set at the client, so that it comes back to the same endpoint.
    pub(super) cookie: Option<HeaderValue>,
    /// What it is told of its session.
    pub(super) session: Option<(HeaderName, HeaderValue)>,
}

pub(super) fn finish(
    ending: Ending<'_>,
    response: Response<Incoming>,
    after: ConnectionDisposition,
    held: InFlightEndpoint,
    counter: RequestPermit,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let (mut head, incoming) = response.into_parts();
    record.answered = head.status.as_u16();
    record.details = VIA_UPSTREAM.into();
    record.grpc = head.headers.get(names::GRPC_STATUS).and_then(reply::grpc_status);
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // Only to what was asked for: nothing of what follows is judged.
        let client = match ending.websocket {
            Some(websocket) => websocket.answered(&mut head),
            None => Err(NOT_ASKED),
        };
        return match client {
            Ok(client) => {
                session::tell(ending.session, &mut head.headers);
                switched(head, incoming, (client, ending.busy, ending.guard), after, record)
            }
            Err(why) => {
                record.error = why.into();
                record.details = ResponseFlag::ProtocolError.details().into();
                local_reply_of(record, ResponseFlag::ProtocolError)
            }
        };
    }
    head.version = Version::HTTP_11;
    entry::strip(&mut head.headers);
    for c in [ending.to.answer.as_ref(), ending.rule.and_then(|r| r.answer.as_ref())].into_iter().flatten() {
        let (downstream, parts, authority) = ending.asked;
        c.apply(&mut head.headers, &OfRequest { downstream, parts, authority, record: &record, answered: true });
    }
    if let Some(c) = ending.cookie {
        head.headers.append(header::SET_COOKIE, c);
    }
    session::tell(ending.session, &mut head.headers);
    let body = ResponseBody::endpoint(incoming, after, held, counter).until(ending.deadline).recorded(record);
    head.extensions.clear();
    Response::from_parts(head, body)
}

/// Both sides have changed to another protocol (RFC 9110 §7.8): bytes from now on.
fn switched(
    mut head: http::response::Parts,
    _: Incoming,
    (client, busy, guard): (OnUpgrade, Option<Busy>, Option<(Guard, Open)>),
    after: ConnectionDisposition,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let endpoint = head.extensions.remove::<OnUpgrade>();
    head.version = Version::HTTP_11;
    record.response_head = wire::response_head(head.status, &head.headers);
    if let (Some(endpoint), Some((guard, open))) = (endpoint, guard) {
        tokio::task::spawn_local(async move {
            let bytes = Rc::new(Carried { received: record.received.clone(), ..Carried::default() });
            if let (Ok(client), Ok(endpoint)) = (client.await, endpoint.await) {
                let mut client = Metered::new(Side::new(client), bytes.clone());
                let mut endpoint = Side::new(endpoint);
                let carried = async {
                    tokio::select! {
                        r = tokio::io::copy_bidirectional(&mut client, &mut endpoint) => drop(r),
                        by = guard.forbidden() => (record.error, record.details) = (by.error, by.details.into()),
                    }
                };
                Busy::keep_busy(busy, carried).await;
            }
            drop(after);
            // Told when it is over, with what has been carried.
            record.finish(bytes.sent.get());
            drop(open);
        });
        return Response::from_parts(head, ResponseBody::local(Bytes::new()));
    }
    let r = Response::from_parts(head, ResponseBody::local(Bytes::new()));
    log_reply(record, r, ResponseFlag::None)
}
