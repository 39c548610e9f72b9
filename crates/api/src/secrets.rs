//! What only the proxy itself may have of its resources, taken out of them: for pages, and for versions that are kept.

use crate::route::{Access, Gateway};

/// Members of a JSON Web Key that only its owner may have (RFC 7518 §6.2.2, §6.3.2, §6.4.1).
const SECRET_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// What a gateway listens on, without private keys, without what sessions are sealed with, and without the headers that are for the
/// collectors of its traces and logs.
#[must_use]
pub fn without_keys(mut gateway: Gateway) -> Gateway {
    let listeners = gateway.listeners.iter_mut().filter_map(|listener| listener.tls.as_mut());
    let own = gateway.backend_certificate.iter_mut().filter_map(|own| own.pair.as_mut());
    let pairs = listeners.flat_map(|tls| &mut tls.certificates).chain(gateway.credentials.values_mut()).chain(own);
    pairs.for_each(|pair| pair.key.clear());
    gateway.session_keys.iter_mut().for_each(|key| key.secret.clear());
    gateway.access.iter_mut().for_each(without_secrets);
    if let Some(telemetry) = &mut gateway.telemetry {
        let tracing = telemetry.tracing.iter_mut().filter_map(|tracing| tracing.collector.as_mut());
        let logs = telemetry.log_exports.iter_mut().filter_map(|export| export.collector.as_mut());
        tracing.chain(logs).flat_map(|collector| &mut collector.headers).for_each(|header| header.value.clear());
    }
    gateway
}

/// Keys that verify tokens, without what a user may have left in them by mistake (none, if they cannot be read); and what providers of
/// external authorization are sent besides the request, without values.
pub fn without_secrets(access: &mut Access) {
    let headers = access.providers.iter_mut().flat_map(|provider| &mut provider.additional_headers);
    headers.for_each(|header| header.value.clear());
    for token in access.tokens.iter_mut().filter(|token| !token.jwks.is_empty()) {
        let mut set: serde_json::Value = serde_json::from_str(&token.jwks).unwrap_or_default();
        let keys = set.get_mut("keys").and_then(|keys| keys.as_array_mut());
        for key in keys.into_iter().flatten().filter_map(|key| key.as_object_mut()) {
            key.retain(|member, _| !SECRET_MEMBERS.contains(&member.as_str()));
        }
        token.jwks = set.to_string();
    }
}
