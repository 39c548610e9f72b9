//! Istio's kinds that have nothing to do in this mesh.

/// What is said of one when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsupportedKind {
    /// Who applied it relies on something that would not happen.
    Refused(&'static str),
    /// Nothing is lost without it.
    Warned(&'static str),
}

/// Kinds, their groups, and what is said: of a refused one after its kind and name, of another alone.
pub const UNSUPPORTED: [(&str, &str, UnsupportedKind); 5] = [
    (
        "EnvoyFilter",
        "networking.istio.io",
        UnsupportedKind::Refused(
            "is not supported, because proxies are not Envoy: use VirtualService and DestinationRule, HTTPFilter (karst.io) for faults and rate limits, or Telemetry for logs and metrics [KARST-0007]",
        ),
    ),
    (
        "WasmPlugin",
        "extensions.istio.io",
        UnsupportedKind::Refused(
            "is not supported, because proxies do not run WebAssembly: use RequestAuthentication and AuthorizationPolicy for access control, or HTTPFilter (karst.io) for faults and rate limits [KARST-0007]",
        ),
    ),
    (
        "Sidecar",
        "networking.istio.io",
        UnsupportedKind::Warned(
            "Sidecar has no effect: the mesh has no sidecars; use AuthorizationPolicy to control which workloads may call each other [KARST-0008]",
        ),
    ),
    (
        "ProxyConfig",
        "networking.istio.io",
        UnsupportedKind::Warned(
            "ProxyConfig has no effect: configure ztunnel by its chart's values, and the proxy of a Gateway by its spec.infrastructure [KARST-0008]",
        ),
    ),
    (
        "WorkloadGroup",
        "networking.istio.io",
        UnsupportedKind::Warned(
            "WorkloadGroup has no effect in this version: machines do not register themselves; create a WorkloadEntry for each [KARST-0008]",
        ),
    ),
];

/// Is it one of them?
pub fn unsupported(kind: &str, group: &str) -> Option<UnsupportedKind> {
    UNSUPPORTED.iter().find(|(k, g, _)| *k == kind && *g == group).map(|(_, _, i)| *i)
}
