//! The TLS to endpoints that DestinationRules ask for.

use karst_manifest::{kinds::*, traffic::*};

/// Every setting for TLS.
pub(crate) fn all_tls(rule: &DestinationRule) -> impl Iterator<Item = &ClientTls> {
    rule.spec.all_policies().flat_map(|p| {
        let ports = p.port_level_settings.iter().filter_map(|s| s.tls.as_ref());
        p.tls.iter().chain(ports)
    })
}

/// Is it TLS of ours? (Within the mesh every hop is encrypted and both ends are known, whatever is said.)
pub(crate) fn originates(tls: &ClientTls) -> bool {
    !matches!(tls.mode.as_deref().unwrap_or(""), "" | "DISABLE" | "ISTIO_MUTUAL")
}

pub(crate) fn wants_tls(rule: &DestinationRule) -> bool {
    all_tls(rule).any(originates)
}

/// The Secrets whose certificates proxies show to endpoints.
pub(crate) fn credentials(rule: &DestinationRule) -> impl Iterator<Item = &str> {
    all_tls(rule)
        .filter(|t| t.mode.as_deref() == Some("MUTUAL"))
        .map(|t| t.credential_name.as_str())
        .filter(|n| !n.is_empty())
}
