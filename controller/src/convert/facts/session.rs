//! Where clients are bound to endpoints: by which routes and policies, and by which labels of services (Istio's).

use crate::convert::objects::Objects;
use karst_manifest::kinds::*;

/// Istio's labels of a service: a cookie (`NAME` or `NAME:/PATH`), or else a header.
pub(crate) const COOKIE: &str = "istio.io/persistent-session";
pub(crate) const HEADER: &str = "istio.io/persistent-session-header";

/// Do a service's labels bind its clients?
pub(crate) fn is_bound(meta: &Meta) -> bool {
    [COOKIE, HEADER].iter().any(|label| meta.labels.get(label).is_some_and(|value| !value.is_empty()))
}

/// Do those of any service?
pub(crate) fn by_labels(objects: &Objects<'_>) -> bool {
    objects.services.values().flatten().any(|service| is_bound(&service.metadata))
        || objects.service_entries.iter().any(|(_, entry)| is_bound(&entry.metadata))
}

/// Is anybody bound, so that gateways and waypoints need keys?
pub(crate) fn in_use(objects: &Objects<'_>) -> bool {
    let http = objects.http_routes.iter().flat_map(|(_, route)| &route.spec.rules);
    let grpc = objects.grpc_routes.iter().flat_map(|(_, route)| &route.spec.rules);
    http.map(|rule| &rule.session_persistence).chain(grpc.map(|rule| &rule.session_persistence)).any(Option::is_some)
        || objects.backend_traffic.iter().any(|(_, policy)| policy.spec.session_persistence.is_some())
        || by_labels(objects)
}
