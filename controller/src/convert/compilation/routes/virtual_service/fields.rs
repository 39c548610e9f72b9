//! Fields of a VirtualService's rule, each by itself.

use crate::convert::{
    compilation::routes::scalar::{exact, header, header_name, optional_duration, regex},
    objects::FieldError,
};
use karst_api::route as ir;
use karst_manifest::traffic::*;

/// Adds what is wrong; what is wrong with a rule is so for each of its matches.
pub(super) fn tell(bad: &mut Vec<FieldError>, problem: FieldError) {
    if !bad.contains(&problem) {
        bad.push(problem);
    }
}

/// A match of a header or a query parameter. An empty one means that it is there, and so does `regex: '*'`, which is no regular
/// expression (Istio: canBeConvertedToPresentMatch).
pub(super) fn value(matching: &StringMatch, at: &str) -> Result<ir::Text, FieldError> {
    let is_there = match (&matching.exact, &matching.prefix, &matching.regex) {
        (None, None, None) => true,
        (None, None, Some(r)) => r == "*",
        _ => false,
    };
    if is_there { Ok(ir::Text { kind: Some(ir::text::Kind::Present(true)) }) } else { text(matching, at) }
}

pub(super) fn text(text: &StringMatch, at: &str) -> Result<ir::Text, FieldError> {
    use ir::text::Kind;
    let kind = match (&text.exact, &text.prefix, &text.regex) {
        (None, None, None) => None,
        (Some(e), None, None) => Some(Kind::Exact(e.clone())),
        (None, Some(p), None) => Some(Kind::Prefix(p.clone())),
        (None, None, Some(r)) => Some(Kind::Regex(regex(r, format!("{at}.regex"))?)),
        _ => return Err((at.into(), "must set only one of exact, prefix, regex [KARST-0014]".into())),
    };
    Ok(ir::Text { kind })
}

pub(super) type Changes = (Option<ir::HeaderChange>, Option<ir::HeaderChange>, String);

/// Changes of requests and answers, and the new authority, which Istio lets set as a header. A header that cannot be read is told and
/// left out: the rest holds. One that was to be set is taken out, so that nobody else's stands in its place.
pub(super) fn headers(headers: &VsHeaders, at: &str, bad: &mut Vec<FieldError>) -> Changes {
    let mut authority = String::new();
    let mut change = |changes: &VsHeaderChange, f: &str, request: bool| -> Option<ir::HeaderChange> {
        let mut out = ir::HeaderChange::default();
        for (name, value) in &changes.set {
            let at = format!("{at}.headers.{f}.set[{name}]");
            if request && (name.eq_ignore_ascii_case("host") || name == ":authority") {
                if value.contains('%') {
                    let text =
                        format!("{value:?} contains a %: operators are not supported in the authority [KARST-0025]");
                    tell(bad, (at, text));
                } else {
                    authority.clone_from(value);
                }
                continue;
            }
            match header(name, value, at) {
                Ok(h) => out.set.push(h),
                Err(b) => {
                    tell(bad, b);
                    out.remove.extend(header_name(name, "").ok());
                }
            }
        }
        for (k, v) in &changes.add {
            match header(k, v, format!("{at}.headers.{f}.add[{k}]")) {
                Ok(h) => out.add.push(h),
                Err(b) => tell(bad, b),
            }
        }
        for k in &changes.remove {
            match header_name(k, format!("{at}.headers.{f}.remove")) {
                Ok(name) => out.remove.push(name),
                Err(b) => tell(bad, b),
            }
        }
        (out != ir::HeaderChange::default()).then_some(out)
    };
    let request = change(&headers.request, "request", true);
    let answer = change(&headers.response, "response", false);
    (request, answer, authority)
}

pub(super) fn set_authority(rewrite: &mut Option<ir::Rewrite>, authority: String) {
    if !authority.is_empty() {
        rewrite.get_or_insert_default().authority = authority;
    }
}

pub(super) fn rewrite(rewrite: &VsRewrite, matched: &ir::Match, at: &str) -> Result<ir::Rewrite, FieldError> {
    use ir::{rewrite::Path, text::Kind};
    let path = match (&rewrite.uri_regex_rewrite, rewrite.uri.as_str()) {
        (Some(r), _) => Some(Path::Regex(ir::Regex {
            r#match: regex(&r.pattern, format!("{at}.rewrite.uriRegexRewrite.match"))?,
            rewrite: r.rewrite.clone(),
        })),
        (None, "") => None,
        // In place of what was matched: a prefix, or the whole.
        (None, uri) => Some(match matched.path.as_ref().and_then(|p| p.kind.as_ref()) {
            Some(Kind::Exact(_) | Kind::Regex(_)) => Path::Full(uri.into()),
            _ => Path::Prefix(uri.into()),
        }),
    };
    Ok(ir::Rewrite { authority: rewrite.authority.clone(), path })
}

pub(super) fn redirect(redirect: &VsRedirect, at: &str) -> Result<ir::Redirect, FieldError> {
    let at = format!("{at}.redirect");
    if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        return Err((
            format!("{at}.redirectCode"),
            format!("unsupported value {}: use 301, 302, 303, 307 or 308 [KARST-0016]", redirect.redirect_code),
        ));
    }
    if !matches!(redirect.derive_port.as_str(), "" | "FROM_PROTOCOL_DEFAULT" | "FROM_REQUEST_PORT") {
        return Err((
            format!("{at}.derivePort"),
            format!(
                "unsupported value {:?}: use FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT [KARST-0016]",
                redirect.derive_port
            ),
        ));
    }
    Ok(ir::Redirect {
        code: u32::from(redirect.redirect_code),
        scheme: redirect.scheme.clone(),
        authority: redirect.authority.clone(),
        port: u32::from(redirect.port.unwrap_or(0)),
        request_port: redirect.derive_port == "FROM_REQUEST_PORT",
        path: (!redirect.uri.is_empty()).then(|| ir::redirect::Path::Full(redirect.uri.clone())),
    })
}

pub(super) fn direct(response: &VsDirectResponse, at: &str) -> Result<ir::DirectResponse, FieldError> {
    use base64::Engine;
    let at = format!("{at}.directResponse");
    if !(200..600).contains(&response.status) {
        return Err((
            format!("{at}.status"),
            format!("invalid status {}: use 200 to 599 [KARST-0026]", response.status),
        ));
    }
    let body = match &response.body {
        None => vec![],
        Some(VsBody { string: Some(s), .. }) => s.clone().into_bytes(),
        Some(VsBody { bytes: Some(b), .. }) => base64::prelude::BASE64_STANDARD
            .decode(b)
            .map_err(|_| (format!("{at}.body.bytes"), "is not valid base64 [KARST-0027]".to_string()))?,
        Some(_) => vec![],
    };
    Ok(ir::DirectResponse { status: u32::from(response.status), body })
}

pub(super) fn cors(cors: &VsCors, at: &str) -> Result<ir::Cors, FieldError> {
    let at = format!("{at}.corsPolicy");
    let mut origins = vec![];
    for (i, o) in cors.allow_origins.iter().enumerate() {
        origins.push(text(o, &format!("{at}.allowOrigins[{i}]"))?);
    }
    // The old form, which counts only without the new one. (Of either `*` stands for all.)
    if origins.is_empty() {
        origins.extend(cors.allow_origin.iter().map(exact));
    }
    let max_age = optional_duration(cors.max_age.as_deref(), || format!("{at}.maxAge"))?;
    Ok(ir::Cors {
        origins,
        methods: cors.allow_methods.clone(),
        headers: cors.allow_headers.clone(),
        expose: cors.expose_headers.clone(),
        max_age_s: cors.max_age.is_some().then_some(max_age / 1000),
        credentials: cors.allow_credentials,
        forward_unmatched: cors.unmatched_preflights != "IGNORE",
    })
}

pub(super) fn retries(retries: &VsRetries, at: &str) -> Result<ir::Retry, FieldError> {
    let at = format!("{at}.retries");
    let backoff = optional_duration(retries.backoff.as_deref(), || format!("{at}.backoff"))?;
    let mut out = ir::Retry {
        attempts: retries.attempts,
        per_try_ms: optional_duration(retries.per_try_timeout.as_deref(), || format!("{at}.perTryTimeout"))?,
        backoff_ms: if backoff == 0 { 25 } else { backoff },
        same_host: retries.retry_ignore_previous_hosts == Some(false),
        ..Default::default()
    };
    if retries.retry_on.trim().is_empty() {
        let d = ir::Retry::istio();
        return Ok(ir::Retry { grpc: d.grpc, connect_failure: true, refused_stream: true, ..out });
    }
    for word in retries.retry_on.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match word {
            "5xx" => out.server_error = true,
            "gateway-error" => out.gateway_error = true,
            "reset" => out.reset = true,
            "reset-before-request" => out.reset_before_request = true,
            "connect-failure" => out.connect_failure = true,
            "refused-stream" => out.refused_stream = true,
            "retriable-4xx" => out.retriable_4xx = true,
            // The list of codes is in the same field.
            "retriable-status-codes" | "retriable-headers" | "envoy-ratelimited" | "http3-post-connect-failure" => {}
            "cancelled" => out.grpc.push(1),
            "deadline-exceeded" => out.grpc.push(4),
            "resource-exhausted" => out.grpc.push(8),
            "internal" => out.grpc.push(13),
            "unavailable" => out.grpc.push(14),
            code => match code.parse() {
                Ok(c) if (100..600).contains(&c) => out.codes.push(c),
                _ => {
                    return Err((
                        format!("{at}.retryOn"),
                        format!(
                            "unknown condition {word:?}: use 5xx, gateway-error, reset, reset-before-request, connect-failure, refused-stream, retriable-4xx, cancelled, deadline-exceeded, internal, resource-exhausted, unavailable, or a status code [KARST-0304]"
                        ),
                    ));
                }
            },
        }
    }
    Ok(out)
}
