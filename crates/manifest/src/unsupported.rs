//! Istio's kinds that have nothing to do in this mesh.

/// What is said of one when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsupportedKind {
    /// Who applied it relies on something that would not happen.
    Refused(&'static str),
    /// Nothing is lost without it.
    Warned(&'static str),
}

/// Kinds, their groups, and what is said.
pub const UNSUPPORTED: [(&str, &str, UnsupportedKind); 5] = [
    (
        "EnvoyFilter",
        "networking.istio.io",
        UnsupportedKind::Refused(
            "there is no Envoy to be patched: use VirtualService and DestinationRule, HTTPFilter (karst.io) for faults and rate limits, Telemetry for logs and metrics",
        ),
    ),
    (
        "WasmPlugin",
        "extensions.istio.io",
        UnsupportedKind::Refused(
            "proxies run no WebAssembly: use RequestAuthentication and AuthorizationPolicy for access, HTTPFilter (karst.io) for faults and rate limits",
        ),
    ),
    (
        "Sidecar",
        "networking.istio.io",
        UnsupportedKind::Warned(
            "a Sidecar has no effect: there are no sidecars; who may call whom is said by AuthorizationPolicies",
        ),
    ),
    (
        "ProxyConfig",
        "networking.istio.io",
        UnsupportedKind::Warned(
            "a ProxyConfig has no effect: values of the charts configure ztunnel, and spec.infrastructure of a Gateway its proxy",
        ),
    ),
    (
        "WorkloadGroup",
        "networking.istio.io",
        UnsupportedKind::Warned(
            "a WorkloadGroup has no effect in this version: machines do not register themselves; write a WorkloadEntry for each",
        ),
    ),
];

/// Is it one of them?
pub fn unsupported(kind: &str, group: &str) -> Option<UnsupportedKind> {
    UNSUPPORTED.iter().find(|(k, g, _)| *k == kind && *g == group).map(|(_, _, i)| *i)
}
