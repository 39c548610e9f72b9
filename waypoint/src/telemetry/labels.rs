//! Istio's labels of a request or a connection.

use crate::telemetry::{
    rules::{AllLabels, Telemetry},
    stream_info::StreamInfo,
};
use karst_proxy::{
    labels::{Labels, grpc_status, put, side},
    state::{Service, Workload},
    traffic::Between,
};
use std::sync::Arc;

/// The labels of a request's series: Istio's, and as a Telemetry would have them.
///
/// `own`: a gateway tells of what it calls itself, as a sidecar would.
pub fn labels(
    info: &StreamInfo,
    own: Option<&Workload>,
    telemetry: Option<&Telemetry>,
    values: &[String],
) -> AllLabels {
    if let Some(telemetry) = telemetry {
        let mut all = Vec::new();
        standard(&mut all, info, own);
        return telemetry.labels(&all, values);
    }
    let mut out = String::with_capacity(900);
    standard(&mut out, info, own);
    let out: Arc<str> = out.into();
    std::array::from_fn(|_| Some(out.clone()))
}

/// What was called, if it is a service.
fn service(info: &StreamInfo) -> Option<&Arc<Service>> {
    info.service().filter(|s| !s.is_workload_service())
}

fn reporter(info: &StreamInfo) -> (&'static str, &'static str) {
    if info.at_gateway { ("source", "unknown") } else { ("waypoint", "mutual_tls") }
}

/// What the series of a connection that is carried as it is is counted by. `own`: as in [`labels`].
pub fn between<'a>(info: &'a StreamInfo, own: Option<&'a Workload>) -> Between<'a> {
    let (reporter, security) = reporter(info);
    // Names that clients think of are no series.
    let told = info.destination.as_ref().is_none_or(|d| d.is_told);
    Between {
        reporter,
        source: own.or(info.source.as_deref()),
        destination: info.workload.as_ref().map(|(w, _)| &**w).filter(|_| told),
        service: service(info).map(|s| &**s),
        mtls: true,
        security,
    }
}

fn standard(out: &mut impl Labels, info: &StreamInfo, own: Option<&Workload>) {
    let (service, (reporter, security)) = (service(info), reporter(info));
    put(out, "reporter", reporter);
    side(out, "source", own.or(info.source.as_deref()), true, true);
    side(out, "destination", info.workload.as_ref().map(|(w, _)| &**w), true, true);
    put(out, "destination_service", service.map_or("", |s| &s.hostname));
    put(out, "destination_service_namespace", service.map_or("", |s| &s.namespace));
    put(out, "destination_service_name", service.map_or("", |s| &s.name));
    put(out, "request_protocol", if info.is_grpc { "grpc" } else { "http" });
    put(out, "response_code", &info.answered.to_string());
    if info.is_grpc {
        grpc_status(out, info.grpc, info.answered);
    }
    put(out, "response_flags", info.flag.text());
    put(out, "connection_security_policy", security);
}
