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
    record: Box<RequestLog>,
    status: StatusCode,
    text: impl Into<Bytes>,
    flag: ResponseFlag,
) -> Response<ResponseBody> {
    let grpc = record.is_grpc;
    log_reply(record, reply::local_response(status, text, grpc), flag)
}

/// An answer of our own for a reason that has one.
pub(super) fn local_reply_of(record: Box<RequestLog>, flag: ResponseFlag) -> Response<ResponseBody> {
    let (status, text) = flag.answer();
    local_reply(record, status, text, flag)
}

pub(super) fn log_reply(
    mut record: Box<RequestLog>,
    response: Response<ResponseBody>,
    flag: ResponseFlag,
) -> Response<ResponseBody> {
    record.answered = response.status().as_u16();
    record.grpc = response.headers().get(names::GRPC_STATUS).and_then(reply::grpc_status);
    if flag != ResponseFlag::None {
        record.flag = flag;
    }
    if record.details.is_empty() {
        record.details = flag.details().into();
    }
    response.map(|b| b.recorded(record))
}
