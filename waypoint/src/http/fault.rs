//! Injected faults: a delay, then an answer in the endpoint's place.

use crate::{
    http::{
        answer::{local_reply, log_reply},
        names,
        reply::{self, ResponseBody},
    },
    route::{destination::status, rule::Fault},
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
};
use http::{HeaderValue, Response, StatusCode};
use karst_api::route as ir;
use std::time::Duration;

/// Waits if it is to; gives the fault back if the request is to be aborted.
pub(super) async fn inject<'a>(fault: Option<&'a Fault>, record: &mut RequestLog) -> Option<&'a ir::Fault> {
    let Fault { ir: fault, turns } = fault?;
    let is_delayed = turns.delays(fault.delay_per_million);
    if is_delayed {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
        record.flag = ResponseFlag::FaultDelay;
    }
    turns.aborts(is_delayed, fault.abort_per_million).then_some(fault)
}

pub(super) fn abort(fault: &ir::Fault, mut record: Box<RequestLog>) -> Response<ResponseBody> {
    let (_, text) = ResponseFlag::FaultAbort.answer();
    if let Some(code) = fault.abort_grpc {
        let mut response = reply::local_response(StatusCode::OK, text, true);
        response.headers_mut().insert(names::GRPC_STATUS, HeaderValue::from(code));
        record.is_grpc = true;
        return log_reply(record, response, ResponseFlag::FaultAbort);
    }
    let status = status(fault.abort_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    local_reply(record, status, text, ResponseFlag::FaultAbort)
}
