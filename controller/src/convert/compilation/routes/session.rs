//! Session persistence: Gateway API's, of a rule (GEP-1619), and Istio's, by the labels of a service.

use crate::convert::{
    compilation::routes::scalar::{header_name, optional_duration},
    facts::{
        hosts::Hosts,
        session::{COOKIE, HEADER, is_bound},
    },
    objects::{FieldError, Objects},
};
use karst_api::route as ir;
use karst_manifest::{Problem, gatewayapi::SessionPersistence, kinds::*};
use std::{collections::BTreeMap, path::PathBuf};
use xxhash_rust::xxh64::xxh64;

/// Longest name of a cookie or header, and longest path (Gateway API).
const LONGEST_NAME: usize = 256;
const LONGEST_PATH: usize = 1024;
/// Headers that are others' already.
const TAKEN: [&str; 16] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

/// What a rule asks for. `scope`: its route, in whose rules sessions of one name are the same.
pub(crate) fn of_rule(persistence: &SessionPersistence, scope: String, at: &str) -> Result<ir::Session, FieldError> {
    let SessionPersistence { kind, cookie, header, session_name, cookie_config, .. } = persistence;
    let in_header = match kind.as_deref().unwrap_or("Cookie") {
        "Cookie" => false,
        "Header" => true,
        other => {
            let text = format!("unsupported value {other:?}: use Cookie or Header [KARST-0016]");
            return Err((format!("{at}.type"), text));
        }
    };
    let misplaced = match in_header {
        true => [("cookie", cookie.is_some()), ("cookieConfig", cookie_config.is_some())],
        false => [("header", header.is_some()), ("", false)],
    };
    if let Some((field, _)) = misplaced.iter().find(|(_, is_set)| *is_set) {
        let (own, other) = if in_header { ("Cookie", "Header") } else { ("Header", "Cookie") };
        let text =
            format!("is only for type {own}, and the type is {other}: remove it, or change the type [KARST-0014]");
        return Err((format!("{at}.{field}"), text));
    }
    let newer = if in_header {
        header.as_ref().map(|h| ("header.name", h.name.as_str()))
    } else {
        cookie.as_ref().and_then(|c| Some(("cookie.name", c.name.as_deref()?)))
    };
    let older = session_name.as_deref().map(|name| ("sessionName", name));
    if let (Some((field, _)), Some(_)) = (newer, older) {
        return Err((at.into(), format!("must set only one of {field}, sessionName [KARST-0014]")));
    }
    let (name, path) = match (newer.or(older), in_header) {
        (Some((field, name)), true) => (header_of(name, &format!("{at}.{field}"))?, String::new()),
        (None, true) => return Err((format!("{at}.header.name"), "is required with type Header [KARST-0010]".into())),
        (name, false) => {
            let (field, name) = name.unwrap_or(("", ""));
            // Nobody else's, and the same in every replica.
            let generated = || format!("karst-session-{:08x}", xxh64(scope.as_bytes(), 0) as u32);
            let name = if field.is_empty() { generated() } else { cookie_of(name, &format!("{at}.{field}"))? };
            let path = cookie.as_ref().and_then(|c| c.path.as_deref()).unwrap_or("/");
            (name, path_of(path, &format!("{at}.cookie.path"))?)
        }
    };
    let absolute_ms = timeout(persistence.absolute_timeout.as_deref(), &format!("{at}.absoluteTimeout"))?;
    let idle_ms = timeout(persistence.idle_timeout.as_deref(), &format!("{at}.idleTimeout"))?;
    let permanent = is_permanent(persistence, at)?;
    if permanent && absolute_ms == 0 {
        return Err((format!("{at}.absoluteTimeout"), "is required with lifetimeType Permanent [KARST-0010]".into()));
    }
    Ok(ir::Session { name, in_header, path, permanent, absolute_ms, idle_ms, scope, strict: true })
}

fn is_permanent(persistence: &SessionPersistence, at: &str) -> Result<bool, FieldError> {
    let newer = persistence.cookie.as_ref().and_then(|c| c.lifetime_type.as_deref());
    let older = persistence.cookie_config.as_ref().and_then(|c| c.lifetime_type.as_deref());
    let (field, lifetime) = match (newer, older) {
        (Some(newer), Some(older)) if newer != older => {
            let text = "must set only one of cookie.lifetimeType, cookieConfig.lifetimeType [KARST-0014]";
            return Err((at.into(), text.into()));
        }
        (Some(lifetime), _) => ("cookie", lifetime),
        (None, lifetime) => ("cookieConfig", lifetime.unwrap_or("Session")),
    };
    match lifetime {
        "Session" => Ok(false),
        "Permanent" => Ok(true),
        other => Err((
            format!("{at}.{field}.lifetimeType"),
            format!("unsupported value {other:?}: use Session or Permanent [KARST-0016]"),
        )),
    }
}

/// 0: there is none.
fn timeout(text: Option<&str>, at: &str) -> Result<u64, FieldError> {
    match optional_duration(text, || at.into())? {
        0 if text.is_some() => Err((at.into(), "must be longer than 0s [KARST-0017]".into())),
        ms => Ok(ms),
    }
}

fn header_of(name: &str, at: &str) -> Result<String, FieldError> {
    let name = header_name(name, at)?;
    if TAKEN.contains(&name.as_str()) || name.starts_with("x-forwarded-") || name.starts_with("x-envoy-") {
        let text = format!("{name:?} has a meaning of its own: use another header, for example x-session [KARST-0024]");
        return Err((at.into(), text));
    }
    not_longer(name, LONGEST_NAME, at)
}

fn cookie_of(name: &str, at: &str) -> Result<String, FieldError> {
    // A token (RFC 6265 §4.1.1), as the name of a header is.
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        let text = format!("invalid cookie name {name:?}: use letters, digits and !#$%&'*+-.^_`|~ [KARST-0016]");
        return Err((at.into(), text));
    }
    not_longer(name.to_string(), LONGEST_NAME, at)
}

fn path_of(path: &str, at: &str) -> Result<String, FieldError> {
    let fits = path.starts_with('/') && path.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b';');
    if !fits {
        let text = format!("invalid cookie path {path:?}: it must begin with '/' and have no ';' [KARST-0016]");
        return Err((at.into(), text));
    }
    not_longer(path.to_string(), LONGEST_PATH, at)
}

fn not_longer(text: String, longest: usize, at: &str) -> Result<String, FieldError> {
    if text.len() <= longest {
        return Ok(text);
    }
    Err((at.into(), format!("is longer than {longest} characters [KARST-0017]")))
}

/// The sessions of services that are labelled so, by `namespace/hostname`.
pub(crate) fn of_services(
    objects: &Objects<'_>,
    hosts: &Hosts,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, ir::Session> {
    let mut out = BTreeMap::new();
    let mut add = |kind: &str, meta: &Meta, keys: Vec<String>| match of_labels(&meta.labels) {
        Ok(session) => out.extend(keys.into_iter().map(|key| (key, session.clone()))),
        Err((field, message)) => problems.push(Problem {
            file: PathBuf::new(),
            line: 0,
            object: format!("{kind} {}/{}", meta.namespace, meta.name),
            field,
            message,
        }),
    };
    for service in objects.services.values().flatten().filter(|service| is_bound(&service.metadata)) {
        let meta = &service.metadata;
        add("Service", meta, hosts.service(&meta.name, &meta.namespace).map(ToString::to_string).into_iter().collect());
    }
    for (_, entry) in objects.service_entries.iter().filter(|(_, entry)| is_bound(&entry.metadata)) {
        let meta = &entry.metadata;
        let keys = entry.spec.hosts.iter().filter_map(|host| hosts.own(host, &meta.namespace));
        add("ServiceEntry", meta, keys.map(ToString::to_string).collect());
    }
    out
}

/// What a service's labels say, of which there is one. As in Istio the cookie comes first, ends with the browser's session, and is for
/// clients of whatever site.
fn of_labels(labels: &Labels) -> Result<ir::Session, FieldError> {
    let get = |label: &str| labels.get(label).map_or("", String::as_str);
    let at = |label: &str| format!("metadata.labels[{label}]");
    match (get(COOKIE), get(HEADER)) {
        ("", header) => {
            Ok(ir::Session { name: header_of(header, &at(HEADER))?, in_header: true, ..ir::Session::default() })
        }
        (cookie, _) => {
            let (name, path) = cookie.split_once(':').unwrap_or((cookie, "/"));
            let (name, path) = (cookie_of(name, &at(COOKIE))?, path_of(path, &at(COOKIE))?);
            Ok(ir::Session { name, path, ..ir::Session::default() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> Result<ir::Session, FieldError> {
        let persistence = serde_yaml_ng::from_str::<SessionPersistence>(spec).unwrap();
        of_rule(&persistence, "HTTPRoute a/r".into(), "at")
    }

    #[test]
    fn both_forms_mean_the_same() {
        for (older, newer) in [
            ("{sessionName: s}", "{type: Cookie, cookie: {name: s}}"),
            ("{sessionName: s, cookieConfig: {lifetimeType: Session}}", "{cookie: {name: s, path: /}}"),
            (
                "{sessionName: s, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}",
                "{absoluteTimeout: 60m, cookie: {name: s, lifetimeType: Permanent}}",
            ),
            (
                "{type: Header, sessionName: X-S, idleTimeout: 5m}",
                "{type: Header, header: {name: x-s}, idleTimeout: 300s}",
            ),
            ("{}", "{type: Cookie, cookie: {}}"),
        ] {
            assert_eq!(of(older).unwrap(), of(newer).unwrap(), "{older}");
        }
        let permanent = of("{absoluteTimeout: 1h, cookie: {name: S, path: /p, lifetimeType: Permanent}}").unwrap();
        let want = ir::Session {
            name: "S".into(),
            path: "/p".into(),
            permanent: true,
            absolute_ms: 3_600_000,
            scope: "HTTPRoute a/r".into(),
            strict: true,
            ..Default::default()
        };
        assert_eq!(permanent, want);
    }

    #[test]
    fn a_name_is_made_of_the_route_where_there_is_none() {
        let name = |scope: &str| of_rule(&SessionPersistence::default(), scope.into(), "at").unwrap().name;
        assert_eq!(name("HTTPRoute a/r"), name("HTTPRoute a/r"));
        assert_ne!(name("HTTPRoute a/r"), name("HTTPRoute b/r"));
        assert!(name("x").starts_with("karst-session-"));
    }

    #[test]
    fn what_is_wrong_is_told_where_it_stands() {
        let long = format!("{{sessionName: {}}}", "s".repeat(257));
        for (spec, want) in [
            ("{type: Query}", r#"at.type: unsupported value "Query": use Cookie or Header [KARST-0016]"#),
            ("{type: Header}", "at.header.name: is required with type Header [KARST-0010]"),
            ("{header: {name: s}}", "at.header: is only for type Header, and the type is Cookie: "),
            (
                "{type: Header, sessionName: s, cookie: {}}",
                "at.cookie: is only for type Cookie, and the type is Header: ",
            ),
            ("{type: Header, sessionName: s, cookieConfig: {}}", "at.cookieConfig: is only for type Cookie"),
            ("{sessionName: s, cookie: {name: s}}", "at: must set only one of cookie.name, sessionName [KARST-0014]"),
            ("{sessionName: a b}", r#"at.sessionName: invalid cookie name "a b": "#),
            ("{sessionName: ''}", r#"at.sessionName: invalid cookie name "": "#),
            ("{cookie: {name: 'a=b'}}", r#"at.cookie.name: invalid cookie name "a=b": "#),
            (long.as_str(), "at.sessionName: is longer than 256 characters [KARST-0017]"),
            ("{cookie: {path: x}}", r#"at.cookie.path: invalid cookie path "x": "#),
            ("{cookie: {path: '/;Domain=x'}}", r#"at.cookie.path: invalid cookie path "/;Domain=x": "#),
            ("{type: Header, header: {name: 'a b'}}", r#"at.header.name: invalid header name "a b" [KARST-0024]"#),
            ("{type: Header, header: {name: Host}}", r#"at.header.name: "host" has a meaning of its own: "#),
            ("{type: Header, sessionName: X-Forwarded-For}", r#"at.sessionName: "x-forwarded-for" has a meaning"#),
            (
                "{cookie: {lifetimeType: Permanent}}",
                "at.absoluteTimeout: is required with lifetimeType Permanent [KARST-0010]",
            ),
            ("{cookieConfig: {lifetimeType: Ever}}", r#"at.cookieConfig.lifetimeType: unsupported value "Ever": "#),
            ("{cookie: {lifetimeType: Ever}}", r#"at.cookie.lifetimeType: unsupported value "Ever": "#),
            (
                "{absoluteTimeout: 1h, cookie: {lifetimeType: Permanent}, cookieConfig: {lifetimeType: Session}}",
                "at: must set only one of cookie.lifetimeType, cookieConfig.lifetimeType [KARST-0014]",
            ),
            ("{absoluteTimeout: 0s}", "at.absoluteTimeout: must be longer than 0s [KARST-0017]"),
            ("{idleTimeout: soon}", r#"at.idleTimeout: invalid duration "soon": "#),
        ] {
            let (field, text) = of(spec).unwrap_err();
            assert!(format!("{field}: {text}").starts_with(want), "{spec}: {field}: {text}");
        }
    }

    #[test]
    fn labels_are_read_as_istio_reads_them() {
        let of = |list: &[(&str, &str)]| {
            let labels = list.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            of_labels(&labels)
                .map(|s| (s.name, s.in_header, s.path))
                .map_err(|(field, text)| format!("{field}: {text}"))
        };
        assert_eq!(of(&[(COOKIE, "shop")]).unwrap(), ("shop".into(), false, "/".into()));
        assert_eq!(of(&[(COOKIE, "shop:/cart"), (HEADER, "x")]).unwrap(), ("shop".into(), false, "/cart".into()));
        assert_eq!(of(&[(COOKIE, ""), (HEADER, "X-Shop")]).unwrap(), ("x-shop".into(), true, String::new()));
        let wrong = of(&[(HEADER, "connection")]).unwrap_err();
        assert!(wrong.starts_with("metadata.labels[istio.io/persistent-session-header]: \"connection\" "), "{wrong}");
        let wrong = of(&[(COOKIE, "a:b")]).unwrap_err();
        assert!(wrong.contains("invalid cookie path \"b\""), "{wrong}");
    }
}
