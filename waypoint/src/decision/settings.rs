//! What is done with calls besides sending them on, in words: limits, faults, mirrors, timeouts, retries, circuit breaking,
//! ejection, TLS. Whether a limit is reached depends on other calls: it is only named.

use super::answer::{Setting, SettingKind};
use crate::{
    authz::access::Asks,
    downstream::gateway::Filter,
    route::{bucket::Key, limit::Limit, rule::Rule, table::Routes},
};
use karst_api::route as ir;

/// Parts of a million, as per cent.
fn percent(per_million: u32) -> String {
    let text = format!("{:.4}", f64::from(per_million) / 10_000.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn milliseconds(number: u64) -> String {
    match number % 1000 {
        0 => format!("{} s", number / 1000),
        _ => format!("{number} ms"),
    }
}

fn limited(limit: &Limit) -> Setting {
    let rule = limit.rule();
    let keys: Vec<String> = limit.keys().iter().map(Key::describe).collect();
    let whose = if keys.is_empty() { "in all".to_string() } else { format!("for each {}", keys.join(" and ")) };
    Setting {
        kind: SettingKind::RateLimit,
        text: format!(
            "no more than {} requests in {} {whose}, {} at once{}; what is above is answered 429",
            rule.requests,
            milliseconds(rule.per_ms),
            rule.burst,
            if rule.shared.is_empty() { "" } else { ", counted by all replicas together" }
        ),
        origin: format!("HTTPFilter {}", rule.name),
    }
}

fn fault(fault: &ir::Fault, origin: &str) -> Option<Setting> {
    let mut all = vec![];
    if fault.delay_per_million > 0 {
        all.push(format!(
            "{} of the requests wait for {}",
            percent(fault.delay_per_million),
            milliseconds(fault.delay_ms)
        ));
    }
    if fault.abort_per_million > 0 {
        let with = match fault.abort_grpc {
            Some(code) => format!("gRPC status {code}"),
            None => fault.abort_status.to_string(),
        };
        all.push(format!("{} of the requests are answered {with} on purpose", percent(fault.abort_per_million)));
    }
    let text = format!("fault injection: {}", all.join(", "));
    (!all.is_empty()).then(|| Setting { kind: SettingKind::Fault, text, origin: origin.into() })
}

/// A provider of external authorization, which decides by itself.
pub(super) fn of_provider(asks: &Asks<'_>) -> Setting {
    let name = &asks.provider.name;
    let text = match (asks.dry_run, asks.provider.fail_open) {
        (true, _) => format!("provider {name} is asked, and what it says is only logged (dry run)"),
        (false, true) => {
            format!("provider {name} is asked first, and denies what it does not allow (if it answers: failOpen)")
        }
        (false, false) => format!("provider {name} is asked first, and denies what it does not allow"),
    };
    Setting { kind: SettingKind::ExternalAuthorization, text, origin: format!("AuthorizationPolicy {}", asks.policy) }
}

/// Who is asked by the filters of a listener.
pub(super) fn of_filters(filters: &[Filter]) -> Vec<Setting> {
    let one = |(place, filter): (usize, &Filter)| {
        let text = match filter {
            Filter::ExternalAuth(provider) => {
                format!("{} is asked first, and denies what it does not allow", provider.service)
            }
            Filter::Refuse => "it cannot be executed, and all requests are answered 500".to_string(),
        };
        Setting { kind: SettingKind::ExternalAuthorization, text, origin: format!("filter {place} of the listener") }
    };
    filters.iter().enumerate().map(one).collect()
}

/// What holds for all requests, whatever their rule.
pub(super) fn of_routes(routes: Option<&Routes>) -> Vec<Setting> {
    routes.map(|routes| routes.limits.iter().map(|limit| limited(limit)).collect()).unwrap_or_default()
}

/// What a rule does.
pub(super) fn of_rule(rule: &Rule) -> Vec<Setting> {
    let mut out: Vec<Setting> = rule.limits.iter().map(|limit| limited(limit)).collect();
    let mut add = |kind, text| out.push(Setting { kind, text, origin: rule.origin.clone() });
    if let Some(provider) = &rule.authorization {
        let text = format!("{} is asked first, and denies what it does not allow", provider.service);
        add(SettingKind::ExternalAuthorization, text);
    }
    if rule.timeout_ms > 0 {
        add(
            SettingKind::Timeout,
            format!("a request that takes longer than {} is answered 504", milliseconds(rule.timeout_ms)),
        );
    }
    if let Some(retry) = rule.retry.as_deref().filter(|retry| **retry != ir::Retry::istio() && retry.attempts > 0) {
        let each = match retry.per_try_ms {
            0 => String::new(),
            each => format!(", each for at most {}", milliseconds(each)),
        };
        add(SettingKind::Retry, format!("up to {} retries{each}", retry.attempts));
    }
    for mirror in &rule.mirrors {
        let text = format!("copies of {} of the requests go to {}", percent(mirror.per_million), mirror.to.service);
        add(SettingKind::Mirror, text);
    }
    if rule.max_body_bytes > 0 {
        let text = format!("a request whose body is larger than {} bytes is answered 413", rule.max_body_bytes);
        add(SettingKind::RequestSize, text);
    }
    if let Some(compression) = &rule.compression {
        let text =
            format!("answers of {} bytes or more are compressed for clients that take gzip", compression.min_bytes);
        add(SettingKind::Compression, text);
    }
    out.extend(rule.fault.as_ref().and_then(|own| fault(&own.ir, &rule.origin)));
    out
}

/// What the rules of a destination say.
pub(super) fn of_policy(policy: &ir::Policy) -> Vec<Setting> {
    let mut out = vec![];
    let mut add = |kind, text: String| out.push(Setting { kind, text, origin: String::new() });
    if let Some(limits) = &policy.limits {
        let all = [
            (limits.max_connections, "connections"),
            (limits.max_pending, "waiting requests"),
            (limits.max_requests, "requests at a time"),
        ];
        let set: Vec<String> =
            all.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
        if !set.is_empty() {
            let text = format!("circuit breaking: no more than {}; what is above is answered 503", set.join(", "));
            add(SettingKind::CircuitBreaker, text);
        }
    }
    if let Some(outlier) = &policy.outlier {
        let after =
            [(outlier.consecutive_5xx, "answers of 5xx"), (outlier.consecutive_gateway, "answers of 502, 503 or 504")];
        let after: Vec<String> =
            after.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
        if !after.is_empty() {
            add(
                SettingKind::OutlierDetection,
                format!(
                    "an endpoint is left out for {} or longer after {} in a row, at most {} % of them",
                    milliseconds(outlier.ejection_ms),
                    after.join(" or "),
                    outlier.max_ejection_percent
                ),
            );
        }
    }
    if let Some(tls) = &policy.tls {
        let text = match (&*tls.broken, tls.unverified) {
            ("", false) => "TLS to the endpoints, whose certificates are verified".to_string(),
            ("", true) => "TLS to the endpoints, and whoever answers is taken (insecureSkipVerify)".to_string(),
            (why, _) => format!("TLS to the endpoints cannot be: {why}"),
        };
        add(SettingKind::Tls, text);
    }
    out
}
