//! Answers of Karst's own, written to the log as they are given.

use crate::{
    http::{
        names,
        reply::{self, ResponseBody},
    },
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
};
use bytes::Bytes;
use http::{Response, StatusCode};

/// Our own answer.
pub(super) fn local_reply(
    r: Box<RequestLog>,
    status: StatusCode,
    text: impl Into<Bytes>,
    flag: ResponseFlag,
) -> Response<ResponseBody> {
    let grpc = r.is_grpc;
    log_reply(r, reply::local_response(status, text, grpc), flag)
}

/// An answer of our own for a reason that has one.
pub(super) fn local_reply_of(r: Box<RequestLog>, flag: ResponseFlag) -> Response<ResponseBody> {
    let (status, text) = flag.answer();
    local_reply(r, status, text, flag)
}

pub(super) fn log_reply(
    mut r: Box<RequestLog>,
    a: Response<ResponseBody>,
    flag: ResponseFlag,
) -> Response<ResponseBody> {
    r.answered = a.status().as_u16();
    r.grpc = a.headers().get(names::GRPC_STATUS).and_then(reply::grpc_status);
    if flag != ResponseFlag::None {
        r.flag = flag;
    }
    if r.details.is_empty() {
        r.details = flag.details().into();
    }
    a.map(|b| b.recorded(r))
}
