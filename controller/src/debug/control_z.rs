//! ControlZ's `/scopej`, as far as `istioctl admin log` uses it: which scope is logged at which level, and changes of that. The scopes
//! are the targets of our log filter; `default` is what has no scope of its own.

use karst_rt::{
    admin::{self, AdminRequest, Answer},
    log,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DEFAULT: &str = "default";

/// Scopes that are listed even when the filter does not name them.
const KNOWN: [(&str, &str); 4] = [
    (DEFAULT, "Everything that has no scope of its own"),
    ("audit", "Certificates signed, callers refused"),
    ("karst_controller", "The controller"),
    ("karst_kube", "Watches and writes of Kubernetes objects"),
];

/// Answers a request to the loopback port.
pub fn answer(asked: &AdminRequest) -> Answer {
    let current = match log::level("") {
        Ok(filter) => filter,
        Err(e) => return admin::text(500, format!("{e}\n")),
    };
    match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", "/scopej" | "/scopej/") => admin::json(&scopes(&current)),
        ("PUT", path) => match path.strip_prefix("/scopej/") {
            Some(scope) => change(&current, scope, &asked.body),
            None => admin::text(404, "page: PUT /scopej/SCOPE\n"),
        },
        _ => admin::text(404, "pages: GET /scopej, PUT /scopej/SCOPE\n"),
    }
}

fn change(current: &str, scope: &str, body: &[u8]) -> Answer {
    let wanted = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let Some(level) = wanted["output_level"].as_str().and_then(our_level) else {
        return admin::text(400, "output_level: use none, fatal, error, warn, info or debug\n");
    };
    match log::level(&format!("level={}", with(current, scope, level))) {
        Ok(now) => {
            tracing::info!(scope, level, filter = now, "log level changed through ControlZ");
            admin::text(202, "")
        }
        Err(e) => admin::text(400, format!("{e}\n")),
    }
}

/// Istio's name of a level as ours. (It has `fatal`, which we have not, and calls ours for nothing `none`.)
fn our_level(istio: &str) -> Option<&'static str> {
    Some(match istio {
        "none" => "off",
        "fatal" | "error" => "error",
        "warn" => "warn",
        "info" => "info",
        "debug" => "debug",
        _ => return None,
    })
}

/// Our name of a level as Istio's.
fn istio_level(ours: &str) -> &str {
    match ours {
        "off" => "none",
        "trace" => "debug",
        other => other,
    }
}

/// The filter by scope. A word alone is the level of the rest.
fn levels(filter: &str) -> BTreeMap<String, String> {
    let each = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut all: BTreeMap<String, String> = each
        .map(|part| part.split_once('=').map_or((DEFAULT.into(), part.into()), |(at, level)| (at.into(), level.into())))
        .collect();
    all.entry(DEFAULT.into()).or_insert("error".into()); // the filter's own default
    all
}

/// The filter with one scope's level changed.
fn with(filter: &str, scope: &str, level: &str) -> String {
    let mut all = levels(filter);
    all.insert(scope.into(), level.into());
    let rest = all.remove(DEFAULT).unwrap_or_default();
    let named = all.into_iter().map(|(scope, level)| format!("{scope}={level}"));
    named.chain([rest]).collect::<Vec<_>>().join(",")
}

fn scopes(filter: &str) -> Value {
    let all = levels(filter);
    let default = all.get(DEFAULT).map_or("error", String::as_str);
    let described = |name: &str| KNOWN.iter().find(|(known, _)| *known == name).map_or("", |(_, what)| *what);
    let mut names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).chain(all.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    let one = |name: &str| {
        json!({
            "name": name, "description": described(name),
            "output_level": istio_level(all.get(name).map_or(default, String::as_str)),
            "stack_trace_level": "none", "log_callers": false,
        })
    };
    names.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_scope_is_changed_and_the_others_stay() {
        for (filter, scope, level, then) in [
            ("info", "default", "debug", "debug"),
            ("info", "audit", "off", "audit=off,info"),
            ("audit=off,info", "audit", "debug", "audit=debug,info"),
            ("audit=off,info", "default", "warn", "audit=off,warn"),
            ("audit=off", "karst_kube", "debug", "audit=off,karst_kube=debug,error"),
        ] {
            assert_eq!(with(filter, scope, level), then, "{filter} {scope}");
        }
    }

    #[test]
    fn scopes_have_istioctls_keys() {
        let page = scopes("audit=off,info,trace_me=trace");
        let audit = page.as_array().unwrap().iter().find(|scope| scope["name"] == "audit").unwrap();
        assert_eq!(
            *audit,
            json!({
                "name": "audit", "description": "Certificates signed, callers refused", "output_level": "none",
                "stack_trace_level": "none", "log_callers": false,
            })
        );
        let level = |name: &str| {
            let found = page.as_array().unwrap().iter().find(|scope| scope["name"] == name);
            found.unwrap()["output_level"].clone()
        };
        assert_eq!(
            (level("default"), level("karst_kube"), level("trace_me")),
            (json!("info"), json!("info"), json!("debug"))
        );
    }

    #[test]
    fn istios_levels_are_known_and_no_others() {
        assert_eq!(["none", "fatal", "info"].map(our_level), [Some("off"), Some("error"), Some("info")]);
        assert_eq!(our_level("loud"), None);
    }
}
