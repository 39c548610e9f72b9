//! Labels of Istio's traffic metrics.

use crate::state::Workload;
use karst_rt::exposition;

/// What labels are put into: the text of the page, or a list that is still to be changed.
pub trait Labels {
    /// Adds one.
    fn add(&mut self, k: &str, v: &str);
}
impl Labels for String {
    fn add(&mut self, key: &str, value: &str) {
        exposition::label(self, key, value);
    }
}
impl Labels for Vec<(String, String)> {
    fn add(&mut self, key: &str, value: &str) {
        self.push((key.into(), value.into()));
    }
}

/// Adds a label; an empty value is `unknown`.
pub fn put(out: &mut impl Labels, key: &str, value: &str) {
    out.add(key, if value.is_empty() { "unknown" } else { value });
}

/// The status of a gRPC call; where the answer had none, what its HTTP status stands for, as Envoy's `getGrpcStatus` has it. Without
/// an answer the label is empty, which is none to Prometheus.
pub fn grpc_status(out: &mut impl Labels, status: Option<u16>, answered: u16) {
    let derived = (answered > 0).then(|| grpc_of_http(answered));
    let status = status.or(derived).map(|status| status.to_string());
    out.add("grpc_response_status", &status.unwrap_or_default());
}

/// What an HTTP status stands for where gRPC's own is missing (gRPC's `http-grpc-status-mapping.md`, as Envoy has it). One of success
/// stands for nothing good: the call has no end.
pub fn grpc_of_http(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The labels of one side. `place`: with region and zone.
pub fn side(out: &mut impl Labels, side: &str, workload: Option<&Workload>, mtls: bool, place: bool) {
    let of = |f: fn(&Workload) -> &str| workload.map_or("", f);
    let principal = workload.filter(|_| mtls).map(|workload| workload.identity.to_string()).unwrap_or_default();
    put(out, &format!("{side}_workload"), of(|workload| &workload.workload_name));
    put(out, &format!("{side}_canonical_service"), of(|workload| &workload.canonical_name));
    put(out, &format!("{side}_canonical_revision"), of(|workload| &workload.canonical_revision));
    put(out, &format!("{side}_workload_namespace"), of(|workload| &workload.namespace));
    put(out, &format!("{side}_principal"), &principal);
    put(out, &format!("{side}_app"), of(|workload| &workload.canonical_name));
    put(out, &format!("{side}_version"), of(|workload| &workload.canonical_revision));
    put(out, &format!("{side}_cluster"), of(|workload| &workload.cluster));
    if place {
        put(out, &format!("{side}_region"), of(|workload| &workload.region));
        put(out, &format!("{side}_zone"), of(|workload| &workload.zone));
    }
}
