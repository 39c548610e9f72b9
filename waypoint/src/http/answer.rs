//! Answers of Karst's own, written to the log as they are given.

use crate::{
    http::{
        body::BodyFault,
        names,
        reply::{self, ResponseBody},
    },
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use karst_core::refusal;

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

/// The answer to a request whose body is not sent on.
pub(super) fn refused_body(fault: BodyFault, mut record: Box<RequestLog>) -> Response<ResponseBody> {
    let (status, text, details, error) = match fault {
        BodyFault::TooLarge => {
            (StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", "request_payload_too_large", refusal::LARGE_BODY)
        }
        BodyFault::NotBase64 => (StatusCode::BAD_REQUEST, "", "grpc_base_64_decode_failed", refusal::NOT_BASE64),
    };
    (record.details, record.error) = (details.into(), error.into());
    local_reply(record, status, text, ResponseFlag::None)
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
