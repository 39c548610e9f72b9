//! The `baggage` header that describes a workload.

use http::HeaderValue;
use karst_api::workload as pb;

pub(super) fn baggage(
    cluster: &str,
    ns: &str,
    kind: &str,
    name: &str,
    service: &str,
    version: &str,
    place: &pb::Locality,
) -> Option<HeaderValue> {
    let mut out = String::new();
    let kind_key = format!("k8s.{kind}.name");
    for (key, value) in [
        ("k8s.cluster.name", cluster),
        ("k8s.namespace.name", ns),
        (&kind_key, name),
        ("service.name", service),
        ("service.version", version),
        ("cloud.region", &place.region),
        ("cloud.availability_zone", &place.zone),
    ] {
        if !value.is_empty() {
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(key);
            out.push('=');
            out.push_str(value);
        }
    }
    HeaderValue::try_from(out).ok()
}
