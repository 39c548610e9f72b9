//! Istio's labels of a request or a connection.

use crate::telemetry::{
    rules::{AllLabels, Telemetry},
    stream_info::StreamInfo,
};
use karst_proxy::{
    labels::{Labels, put, side},
    state::{Service, Workload},
    traffic::Between,
};
use std::sync::Arc;

/// The labels of a request's series: Istio's, and as a Telemetry would have them.
///
/// `own`: a gateway tells of what it calls itself, as a sidecar would.
pub fn labels(r: &StreamInfo, own: Option<&Workload>, t: Option<&Telemetry>, values: &[String]) -> AllLabels {
    if let Some(t) = t {
        let mut all = Vec::new();
        standard(&mut all, r, own);
        return t.labels(&all, values);
    }
    let mut out = String::with_capacity(900);
    standard(&mut out, r, own);
    let out: Arc<str> = out.into();
    std::array::from_fn(|_| Some(out.clone()))
}

/// What was called, if it is a service.
fn service(r: &StreamInfo) -> Option<&Arc<Service>> {
    r.service().filter(|s| !s.is_workload_service())
}

fn reporter(r: &StreamInfo) -> (&'static str, &'static str) {
    if r.at_gateway { ("source", "unknown") } else { ("waypoint", "mutual_tls") }
}

/// What the series of a connection that is carried as it is is counted by. `own`: as in [`labels`].
pub fn between<'a>(r: &'a StreamInfo, own: Option<&'a Workload>) -> Between<'a> {
    let (reporter, security) = reporter(r);
    // Names that clients think of are no series.
    let told = r.destination.as_ref().is_none_or(|d| d.is_told);
    Between {
        reporter,
        source: own.or(r.source.as_deref()),
        destination: r.workload.as_ref().map(|(w, _)| &**w).filter(|_| told),
        service: service(r).map(|s| &**s),
        mtls: true,
        security,
    }
}

fn standard(out: &mut impl Labels, r: &StreamInfo, own: Option<&Workload>) {
    let (service, (reporter, security)) = (service(r), reporter(r));
    put(out, "reporter", reporter);
    side(out, "source", own.or(r.source.as_deref()), true, true);
    side(out, "destination", r.workload.as_ref().map(|(w, _)| &**w), true, true);
    put(out, "destination_service", service.map_or("", |s| &s.hostname));
    put(out, "destination_service_namespace", service.map_or("", |s| &s.namespace));
    put(out, "destination_service_name", service.map_or("", |s| &s.name));
    put(out, "request_protocol", if r.is_grpc { "grpc" } else { "http" });
    put(out, "response_code", &r.answered.to_string());
    if r.is_grpc {
        put(out, "grpc_response_status", &r.grpc.map(|g| g.to_string()).unwrap_or_default());
    }
    put(out, "response_flags", r.flag.text());
    put(out, "connection_security_policy", security);
}
