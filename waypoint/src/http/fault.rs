//! Injected faults: a delay, then an answer in the endpoint's place.

use crate::{
    http::{
        answer::{local_reply, log_reply},
        names,
        reply::{self, ResponseBody},
    },
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
    worker::{SampleKind, Worker},
};
use http::{HeaderValue, Response, StatusCode};
use karst_api::route as ir;
use std::time::Duration;

/// Waits if it is to; gives the fault back if the request is to be aborted.
pub(super) async fn inject(w: &Worker, f: Option<&ir::Fault>, record: &mut RequestLog) -> Option<ir::Fault> {
    let f = f?;
    if w.chance(SampleKind::Delay, f.delay_per_million) {
        tokio::time::sleep(Duration::from_millis(f.delay_ms)).await;
        record.flag = ResponseFlag::FaultDelay;
    }
    w.chance(SampleKind::Abort, f.abort_per_million).then_some(*f)
}

pub(super) fn abort(f: &ir::Fault, mut record: Box<RequestLog>) -> Response<ResponseBody> {
    let (_, text) = ResponseFlag::FaultAbort.answer();
    if let Some(code) = f.abort_grpc {
        let mut a = reply::local_response(StatusCode::OK, text, true);
        a.headers_mut().insert(names::GRPC_STATUS, HeaderValue::from(code));
        record.is_grpc = true;
        return log_reply(record, a, ResponseFlag::FaultAbort);
    }
    let status = crate::route::table::status(f.abort_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    local_reply(record, status, text, ResponseFlag::FaultAbort)
}
