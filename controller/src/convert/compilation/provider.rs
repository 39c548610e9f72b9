//! Providers of external authorization: the mesh configuration's `extensionProviders` of kind `envoyExtAuthzGrpc` and
//! `envoyExtAuthzHttp`, which CUSTOM policies name. One that cannot be used closes what the policy selects.

mod error;

use crate::convert::{
    compilation::routes::scalar,
    objects::{FieldError, Objects},
};
use error::{CacheError, KEYS, MAX_BODY, UnknownField};
pub(crate) use error::{ProviderError, SettingError};
use karst_api::route as ir;
use karst_manifest::{
    MeshConfig, PolicyAction,
    gatewayapi::ExternalAuth,
    kinds::AuthorizationPolicy,
    mesh_config::{AnswerCache, AnswerKey, ExtAuthzGrpcProvider, ExtAuthzHttpProvider, RequestBodyInCheck},
};
use serde_json::Value;
use std::{collections::BTreeMap, ops::RangeInclusive};

/// How long an answer may be kept: up to an hour, in milliseconds.
const TTL: RangeInclusive<u64> = 1..=3_600_000;
/// What a question has of its own, whatever the request.
const OWN_HEADERS: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "te",
    "http2-settings",
];

/// The provider that a CUSTOM policy names, or why it cannot be asked. None: it is no CUSTOM policy, or names none.
pub(crate) fn of_policy(
    config: &MeshConfig,
    policy: &AuthorizationPolicy,
) -> Option<Result<ir::AuthzProvider, ProviderError>> {
    let named = policy.spec.provider.as_ref().filter(|_| policy.spec.action() == PolicyAction::Custom)?;
    Some(compile(config, &named.name))
}

/// Why the provider of a policy cannot be asked, if it cannot.
pub(crate) fn unusable(config: &MeshConfig, policy: &AuthorizationPolicy) -> Option<FieldError> {
    let why = of_policy(config, policy)?.err()?;
    let name = policy.spec.provider.as_ref().map_or("", |provider| &provider.name);
    Some((
        "spec.provider.name".into(),
        format!("{name:?}: {why}; all requests that the policy selects are denied until it is fixed"),
    ))
}

/// The same, or what of the provider has no effect, where there is a mesh configuration to judge by: at admission, and where objects
/// are read from files, there is none.
pub(crate) fn problem(objects: &Objects<'_>, policy: &AuthorizationPolicy) -> Option<FieldError> {
    let is_configured = *objects.mesh_config != MeshConfig::default();
    let all = || unusable(objects.mesh_config, policy).or_else(|| without_effect(objects.mesh_config, policy));
    is_configured.then(all).flatten()
}

fn without_effect(config: &MeshConfig, policy: &AuthorizationPolicy) -> Option<FieldError> {
    let named = policy.spec.provider.as_ref().filter(|_| policy.spec.action() == PolicyAction::Custom)?;
    let provider = config.extension_providers.iter().find(|p| p.name == named.name)?;
    let body = provider.envoy_ext_authz_http.as_ref()?.include_request_body_in_check.as_ref()?;
    let text = format!(
        "{:?}: envoyExtAuthzHttp.includeRequestBodyInCheck.packAsBytes has no effect: by HTTP a body is sent as it is [KARST-0030]",
        named.name
    );
    body.pack_as_bytes.then(|| ("spec.provider.name".into(), text))
}

/// The provider of a name.
pub(crate) fn compile(config: &MeshConfig, name: &str) -> Result<ir::AuthzProvider, ProviderError> {
    let mut all = config.extension_providers.iter().filter(|p| p.name == name);
    let (found, other) = (all.next().ok_or(ProviderError::Missing)?, all.next());
    if other.is_some() {
        return Err(ProviderError::Duplicate);
    }
    let made = match (&found.envoy_ext_authz_grpc, &found.envoy_ext_authz_http) {
        (Some(grpc), None) => by_grpc(grpc).map_err(ProviderError::Grpc),
        (None, Some(http)) => by_http(http).map_err(ProviderError::Http),
        (Some(_), Some(_)) => Err(ProviderError::Both),
        (None, None) => Err(ProviderError::Kind),
    };
    let cache = found.cache.as_ref().map(cache).transpose()?;
    Ok(ir::AuthzProvider { name: name.into(), cache, ..made? })
}

/// A field that nobody knows may be one that was to close: without it the provider is not asked.
fn known(unknown: &BTreeMap<String, Value>, at: &str) -> Result<(), UnknownField> {
    match unknown.keys().next() {
        None => Ok(()),
        Some(name) => Err(UnknownField(format!("{at}{name}"))),
    }
}

/// How long an answer is kept, and for which requests.
fn cache(said: &AnswerCache) -> Result<ir::AuthzCache, CacheError> {
    known(&said.unknown, "")?;
    let ttl_ms = scalar::duration(&said.ttl)?;
    if !TTL.contains(&ttl_ms) {
        return Err(CacheError::Range(said.ttl.clone()));
    }
    if !(1..=KEYS).contains(&said.keys.len()) {
        return Err(CacheError::Count(said.keys.len()));
    }
    let keys = said.keys.iter().enumerate().map(|(index, key)| cache_key(key, &format!("keys[{index}]")));
    Ok(ir::AuthzCache { ttl_ms, keys: keys.collect::<Result<_, _>>()? })
}

fn cache_key(said: &AnswerKey, at: &str) -> Result<ir::AuthzCacheKey, CacheError> {
    use ir::authz_cache_key::Key;
    known(&said.unknown, &format!("{at}."))?;
    let unnamed = |key: Key| match said.name.is_empty() {
        true => Ok(key),
        false => Err(CacheError::Named { at: at.into(), kind: said.r#type.clone() }),
    };
    let key = match said.r#type.as_str() {
        "Method" => unnamed(Key::Method(true))?,
        "Host" => unnamed(Key::Host(true))?,
        "Path" => unnamed(Key::Path(true))?,
        "Query" if said.name.is_empty() => Key::Query(true),
        "Query" => Key::Parameter(said.name.clone()),
        "Header" if is_token(&said.name) => Key::Header(said.name.clone()),
        "Header" => return Err(CacheError::Header { at: at.into(), name: said.name.clone() }),
        "SourceAddress" => unnamed(Key::SourceAddress(true))?,
        "Caller" => unnamed(Key::Caller(true))?,
        other => return Err(CacheError::Kind { at: at.into(), kind: other.into() }),
    };
    Ok(ir::AuthzCacheKey { key: Some(key) })
}

/// What both kinds have: who is asked (by a name or within a namespace, and a port), for how long, what is sent of a body, and what
/// becomes of a request about which nothing is said.
fn either(
    (service, port): (&str, u32),
    time: &str,
    sent: Option<&RequestBodyInCheck>,
    (fail_open, on_error): (bool, &str),
) -> Result<ir::AuthzProvider, SettingError> {
    address(service, port)?;
    Ok(ir::AuthzProvider {
        service: service.into(),
        port,
        timeout_ms: timeout(time)?,
        fail_open,
        status_on_error: status(on_error)?,
        body: body(sent)?,
        ..Default::default()
    })
}

fn by_grpc(provider: &ExtAuthzGrpcProvider) -> Result<ir::AuthzProvider, SettingError> {
    let ExtAuthzGrpcProvider { service, port, timeout, fail_open, status_on_error, .. } = provider;
    known(&provider.unknown, "")?;
    let sent = provider.include_request_body_in_check.as_ref();
    let mut out = either((service, *port), timeout, sent, (*fail_open, status_on_error))?;
    out.set_protocol(ir::AuthzProtocol::AuthzGrpc);
    Ok(out)
}

fn by_http(provider: &ExtAuthzHttpProvider) -> Result<ir::AuthzProvider, SettingError> {
    let ExtAuthzHttpProvider { service, port, timeout, fail_open, status_on_error, .. } = provider;
    known(&provider.unknown, "")?;
    let sent = provider.include_request_body_in_check.as_ref();
    let common = either((service, *port), timeout, sent, (*fail_open, status_on_error))?;
    let mut request = patterns("includeRequestHeadersInCheck", &provider.include_request_headers_in_check)?;
    request.extend(patterns("includeHeadersInCheck", &provider.include_headers_in_check)?);
    let additional = provider.include_additional_headers_in_check.iter().map(|(name, value)| additional(name, value));
    let mut out = ir::AuthzProvider {
        path_prefix: prefix(&provider.path_prefix)?,
        request_headers: request,
        additional_headers: additional.collect::<Result<_, _>>()?,
        upstream_on_allow: patterns("headersToUpstreamOnAllow", &provider.headers_to_upstream_on_allow)?,
        downstream_on_allow: patterns("headersToDownstreamOnAllow", &provider.headers_to_downstream_on_allow)?,
        downstream_on_deny: patterns("headersToDownstreamOnDeny", &provider.headers_to_downstream_on_deny)?,
        ..common
    };
    out.set_protocol(ir::AuthzProtocol::AuthzHttp);
    Ok(out)
}

/// That of an HTTPRoute's filter. (It says nothing of time; a larger body is rejected, as its description asks for.)
pub(crate) fn of_filter(auth: &ExternalAuth, to: &ir::Destination, at: &str) -> Result<ir::AuthzProvider, FieldError> {
    /// In milliseconds.
    const TIMEOUT: u64 = 10_000;
    let wrong = |why: SettingError| (at.to_string(), why.to_string());
    let size = auth.forward_body.as_ref().map_or(0, |body| body.max_size);
    if size > MAX_BODY {
        let text = format!("{size} is out of range: must be at most {MAX_BODY} [KARST-0017]");
        return Err((format!("{at}.forwardBody.maxSize"), text));
    }
    let mut out = ir::AuthzProvider {
        name: to.service.clone(),
        service: to.service.clone(),
        port: to.port,
        timeout_ms: TIMEOUT,
        body: (size > 0).then(|| ir::CheckBody { max_bytes: size, ..Default::default() }),
        ..Default::default()
    };
    match (auth.protocol.as_str(), &auth.grpc, &auth.http) {
        ("GRPC", grpc, None) => {
            out.set_protocol(ir::AuthzProtocol::AuthzGrpc);
            let grpc = grpc.clone().unwrap_or_default();
            out.request_headers = patterns("grpc.allowedHeaders", &grpc.allowed_headers).map_err(wrong)?;
        }
        ("HTTP", None, http) => {
            out.set_protocol(ir::AuthzProtocol::AuthzHttp);
            let http = http.clone().unwrap_or_default();
            out.path_prefix = prefix(&http.path).map_err(wrong)?;
            out.request_headers = patterns("http.allowedHeaders", &http.allowed_headers).map_err(wrong)?;
            let named = patterns("http.allowedResponseHeaders", &http.allowed_response_headers).map_err(wrong)?;
            out.all_upstream_on_allow = named.is_empty();
            out.upstream_on_allow = named;
        }
        ("GRPC" | "HTTP", ..) => {
            let text = "grpc is for protocol GRPC, and http for protocol HTTP: remove the other one [KARST-0014]";
            return Err((at.to_string(), text.into()));
        }
        (other, ..) => {
            let text = format!("unsupported value {other:?}: use HTTP or GRPC [KARST-0016]");
            return Err((format!("{at}.protocol"), text));
        }
    }
    Ok(out)
}

/// What a provider is called at.
pub(crate) fn address(service: &str, port: u32) -> Result<(), SettingError> {
    // The host becomes that of a URI.
    let is_name = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let (namespace, host) = service.split_once('/').unwrap_or(("ns", service));
    if !is_name(namespace) || !is_name(host) {
        return Err(SettingError::Service(service.into()));
    }
    if !(1..=65535).contains(&port) {
        return Err(SettingError::Port(port));
    }
    Ok(())
}

/// RFC 9110 §5.6.2.
pub(crate) fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// In milliseconds; 0: none is said.
pub(crate) fn timeout(text: &str) -> Result<u64, SettingError> {
    match text {
        "" => Ok(0),
        text => Ok(scalar::duration(text)?),
    }
}

/// One of success would be taken for an answer of the service.
fn status(text: &str) -> Result<u32, SettingError> {
    match text {
        "" => Ok(0),
        text => {
            let number = text.parse().ok().filter(|number| (400..=599).contains(number));
            number.ok_or_else(|| SettingError::Status(text.into()))
        }
    }
}

fn body(said: Option<&RequestBodyInCheck>) -> Result<Option<ir::CheckBody>, SettingError> {
    let Some(said) = said else { return Ok(None) };
    known(&said.unknown, "includeRequestBodyInCheck.")?;
    if !(1..=MAX_BODY).contains(&said.max_request_bytes) {
        return Err(SettingError::Body(said.max_request_bytes));
    }
    Ok(Some(ir::CheckBody {
        max_bytes: said.max_request_bytes,
        allow_partial: said.allow_partial_message,
        as_bytes: said.pack_as_bytes,
    }))
}

fn prefix(path: &str) -> Result<String, SettingError> {
    let is_path = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}#?".contains(&b));
    match path {
        "" => Ok(String::new()),
        path if is_path => Ok(path.into()),
        other => Err(SettingError::Path { field: "pathPrefix", path: other.into() }),
    }
}

/// Names of headers, `start*` or `*end`.
fn patterns(field: &'static str, all: &[String]) -> Result<Vec<String>, SettingError> {
    let is_pattern = |text: &str| {
        let part = text.strip_suffix('*').or_else(|| text.strip_prefix('*')).unwrap_or(text);
        is_token(part) && !part.contains('*')
    };
    match all.iter().find(|text| !is_pattern(text)) {
        None => Ok(all.to_vec()),
        Some(wrong) => Err(SettingError::Pattern { field, pattern: wrong.clone() }),
    }
}

fn additional(name: &str, value: &str) -> Result<ir::CheckHeader, SettingError> {
    let is_value = value.bytes().all(|b| b == b'\t' || (32..127).contains(&b));
    if !is_token(name) || !is_value || OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(SettingError::Additional(name.into()));
    }
    Ok(ir::CheckHeader { name: name.into(), value: value.into() })
}

#[cfg(test)]
mod tests;
