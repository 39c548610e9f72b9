//! Why policies refuse that were hardly meant to: a principal that is nearly the caller's, conditions that ztunnel cannot see,
//! a token that is missing or that nobody verifies, a policy that cannot be used as it is written.

use crate::{
    answer::{Cause, Fix, Outcome, Stage},
    call::Call,
    way::Way,
    world::World,
};
use karst_manifest::{Object as Read, kinds::AuthorizationPolicy};

/// The name of code KARST-0114: conditions on HTTP at ztunnel.
const HTTP_AT_ZTUNNEL: &str = "KARST-0114";
/// Typing errors up to which a principal is nearly another.
const NEARLY: usize = 2;

/// The policy of the step that refuses.
fn refusing<'a>(world: &'a World, way: &Way) -> Option<(&'a AuthorizationPolicy, Stage)> {
    let step = way.answer.steps.iter().find(|s| s.outcome == Outcome::Refuse)?;
    let object = step.object.as_ref().filter(|o| o.kind == "AuthorizationPolicy")?;
    match &world.objects.get("AuthorizationPolicy", &object.namespace, &object.name)?.object {
        Read::AuthorizationPolicy(policy) => Some((policy, step.step)),
        _ => None,
    }
}

/// What is wrong with a policy as it is written.
fn problem(world: &World, policy: &AuthorizationPolicy) -> Option<String> {
    let name = format!("AuthorizationPolicy {}/{}", policy.metadata.namespace, policy.metadata.name);
    let mut of_it = world.compiled.problems.iter().filter(|p| p.object == name);
    of_it.next().map(|p| format!("{}: {}", p.field, p.message))
}

/// What is hardly meant, of a code.
fn warning<'a>(world: &'a World, policy: &AuthorizationPolicy, code: &str) -> Option<&'a str> {
    let of_it = world.compiled.warnings.iter().find(|w| {
        w.kind == "AuthorizationPolicy"
            && (&w.namespace, &w.name) == (&policy.metadata.namespace, &policy.metadata.name)
            && w.text.contains(code)
    });
    of_it.map(|w| w.text.as_str())
}

/// A DENY policy matches.
pub(super) fn denied(world: &World, way: &mut Way) {
    let Some((policy, stage)) = refusing(world, way) else { return };
    if let Some(text) = problem(world, policy) {
        way.explain_refusal(Cause::PolicyUnusable, &text);
    } else if let (Stage::Authorization, Some(text)) = (stage, warning(world, policy, HTTP_AT_ZTUNNEL)) {
        way.explain_refusal(Cause::HttpPolicyAtZtunnel, text);
    }
}

/// There are ALLOW policies, and none matches.
pub(super) fn not_allowed(world: &World, call: &Call, way: &mut Way) {
    let Some((policy, stage)) = refusing(world, way) else { return };
    if let Some(text) = problem(world, policy) {
        return way.explain_refusal(Cause::PolicyUnusable, &text);
    }
    if let (Stage::Authorization, Some(text)) = (stage, warning(world, policy, HTTP_AT_ZTUNNEL)) {
        return way.explain_refusal(Cause::HttpPolicyAtZtunnel, text);
    }
    if let Some((cause, text)) = nearly(policy, way) {
        return way.explain_refusal(cause, &text);
    }
    if let Some(text) = token(world, call, policy) {
        way.explain_refusal(Cause::TokenMissing, &text);
        // One more policy that asks for no token would turn it, and is not what was meant.
        let text = "send a token of an issuer that a RequestAuthentication with targetRefs names".into();
        way.answer.fix = Some(Fix { text, yaml: String::new(), verified: false });
    }
}

/// A principal of the policy is the caller's but for its trust domain, or for a few letters.
fn nearly(policy: &AuthorizationPolicy, way: &Way) -> Option<(Cause, String)> {
    if !way.source.in_mesh {
        return None;
    }
    let caller = way.source.workload.identity.principal().to_string();
    for (rule_number, rule) in policy.spec.rules.iter().enumerate() {
        for (source_number, from) in rule.from.iter().enumerate() {
            let at =
                |field: &str, n: usize| format!("spec.rules[{rule_number}].from[{source_number}].source.{field}[{n}]");
            for (number, written) in from.source.principals.iter().enumerate() {
                let place = at("principals", number);
                if let Some((cause, why)) = differs(written, &caller) {
                    return Some((cause, format!("{place} is {written:?}, and the caller is {caller:?}: {why}")));
                }
            }
            let own = &*way.source.workload.namespace;
            let namespaces = from.source.namespaces.iter().enumerate();
            if let Some((number, written)) = namespaces.into_iter().find(|(_, w)| is_near(w, own)) {
                let text =
                    format!("{} is {written:?}, and the caller's namespace is {own:?}", at("namespaces", number));
                return Some((Cause::PrincipalMistyped, text));
            }
        }
    }
    None
}

fn differs(written: &str, caller: &str) -> Option<(Cause, String)> {
    if written.contains('*') || written == caller {
        return None;
    }
    if let Some(rest) = written.strip_prefix("spiffe://") {
        let same = rest == caller || is_near(rest, caller);
        return same.then(|| (Cause::PrincipalMistyped, "write it without spiffe://".into()));
    }
    let (domain, rest) = written.split_once('/')?;
    let (own_domain, own_rest) = caller.split_once('/')?;
    if rest == own_rest && domain != own_domain {
        return Some((Cause::OtherTrustDomain, format!("the trust domain of this mesh is {own_domain}")));
    }
    is_near(written, caller).then(|| (Cause::PrincipalMistyped, "correct the name".into()))
}

/// Are they the same but for a few letters?
fn is_near(one: &str, other: &str) -> bool {
    one != other && distance(one, other) <= NEARLY
}

/// How many letters must be changed, added or removed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, letter) in one.chars().enumerate() {
        let mut diagonal = number;
        let mut left = number + 1;
        for (cell, wanted) in row.iter_mut().skip(1).zip(&other) {
            let changed = diagonal + usize::from(letter != *wanted);
            diagonal = *cell;
            left = changed.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = number + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// The policy asks for a token.
fn token(world: &World, call: &Call, policy: &AuthorizationPolicy) -> Option<String> {
    let asks = policy.spec.rules.iter().any(|rule| {
        rule.from.iter().any(|from| !from.source.request_principals.is_empty())
            || rule.when.iter().any(|when| when.key.starts_with("request.auth."))
    });
    if !asks {
        return None;
    }
    let verified = world.objects.all("RequestAuthentication").any(|o| match &o.object {
        Read::RequestAuthentication(r) => {
            r.metadata.namespace == policy.metadata.namespace && r.spec.targets().next().is_some()
        }
        _ => false,
    });
    let has_token = call.request.as_ref().is_some_and(|head| head.claims.is_some());
    Some(match (verified, has_token) {
        (false, _) => format!(
            "no RequestAuthentication with targetRefs is in {}: nobody verifies tokens there, so no request has a principal",
            policy.metadata.namespace
        ),
        (true, false) => "the request has no token (ask with --token-claims)".into(),
        (true, true) => {
            "the claims of the token are not those that the policy asks for, or its issuer is not known".into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_differ_are_counted() {
        for (one, other, want) in
            [("", "", 0), ("a", "", 1), ("caler", "caller", 1), ("web", "bew", 2), ("abc", "xyz", 3)]
        {
            assert_eq!((distance(one, other), distance(other, one)), (want, want), "{one} {other}");
        }
        let caller = "cluster.local/ns/shop/sa/web";
        let cause = |written: &str| differs(written, caller).map(|(cause, _)| cause);
        assert_eq!(cause("cluster.local/ns/shop/sa/wep"), Some(Cause::PrincipalMistyped));
        assert_eq!(cause("spiffe://cluster.local/ns/shop/sa/web"), Some(Cause::PrincipalMistyped));
        assert_eq!(cause("old.example/ns/shop/sa/web"), Some(Cause::OtherTrustDomain));
        assert_eq!(cause("cluster.local/ns/shop/sa/ledger"), None);
        assert_eq!(cause("*/sa/web"), None);
    }
}
