//! The judgement of a call of which not everything is known, as a book of flows has it (no headers, no token): what would be
//! said whatever the rest is like, or that it depends on the rest.

use super::{Access, AttributeMatcher, AuthzContext, Condition, Policy, Verdict, closes};
use karst_api::route::AccessAction;

/// What of a call is not known, beside its headers and tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// The name in a TLS hello.
    pub sni: bool,
    /// Host, path and method of the request, which are not whole.
    pub request: bool,
}

/// True if one is; false if none is; None: it depends.
fn any(all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut sure = Some(false);
    for one in all {
        match one {
            Some(true) => return Some(true),
            Some(false) => {}
            None => sure = None,
        }
    }
    sure
}

/// True if all are; false if one is not; None: it depends.
fn all(all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    any(all.map(|one| one.map(|is| !is))).map(|is| !is)
}

impl Access {
    /// As [`Access::evaluate`], of a request without its headers and token. None: they, or what else is hidden, would decide.
    pub fn evaluate_partly(&self, context: &AuthzContext<'_>, hidden: Hidden) -> Option<Verdict<'_>> {
        let of = |action| self.policies.iter().filter(move |p| p.action == action && !p.dry_run);
        let is_request = context.request.is_some();
        let unasked = || of(AccessAction::Custom).filter(move |_| !is_request);
        let denies =
            || of(AccessAction::Deny).chain(unasked()).map(|policy| (policy, policy.matches_partly(context, hidden)));
        if let Some((policy, _)) = denies().find(|(_, matches)| *matches == Some(true)) {
            return Some(Verdict::DeniedBy(&policy.name, 0));
        }
        // None of them matches for sure: one may.
        any(denies().map(|(_, matches)| matches))?;
        // What a provider would say is not known.
        let mut asks = of(AccessAction::Custom).filter(move |_| is_request);
        if asks.any(|policy| policy.matches_partly(context, hidden) != Some(false)) {
            return None;
        }
        let mut allows = of(AccessAction::Allow).peekable();
        if allows.peek().is_none() {
            return Some(Verdict::Allow);
        }
        let allowed = any(allows.map(|policy| policy.matches_partly(context, hidden)))?;
        Some(if allowed { Verdict::Allow } else { Verdict::NotAllowed })
    }
}

impl Policy {
    fn matches_partly(&self, context: &AuthzContext<'_>, hidden: Hidden) -> Option<bool> {
        let deny = closes(self.action);
        let one = |condition: &Condition| match condition.is_hidden(context, hidden) {
            true => None,
            false => Some(condition.matches(context, deny)),
        };
        any(self
            .rules
            .iter()
            .map(|rule| all(rule.iter().map(|clause| any(clause.iter().map(|matches| all(matches.iter().map(one))))))))
    }
}

impl Condition {
    /// Does it look at something that is not known?
    fn is_hidden(&self, context: &AuthzContext<'_>, hidden: Hidden) -> bool {
        let is_request = context.request.is_some();
        match &self.what {
            AttributeMatcher::Header(_) | AttributeMatcher::RequestPrincipal | AttributeMatcher::Claim(_) => is_request,
            AttributeMatcher::Host | AttributeMatcher::Path | AttributeMatcher::Method => is_request && hidden.request,
            AttributeMatcher::Sni => hidden.sni,
            AttributeMatcher::Principal
            | AttributeMatcher::Namespace
            | AttributeMatcher::ServiceAccount
            | AttributeMatcher::TrustDomain
            | AttributeMatcher::SourceIp
            | AttributeMatcher::RemoteIp
            | AttributeMatcher::DestinationIp
            | AttributeMatcher::Port
            | AttributeMatcher::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::authz::access::Request;
    use http::HeaderMap;
    use karst_api::route as ir;
    use karst_policy::{Attribute, Path};
    use std::slice::from_ref;

    fn test(attribute: Attribute, name: &str, value: &str) -> ir::AccessTest {
        let attribute = ir::Attribute::from(attribute) as i32;
        ir::AccessTest { attribute, name: name.into(), values: vec![value.into()], not_values: vec![] }
    }

    #[test]
    fn what_a_provider_would_say_is_not_said() {
        let mut policy = ir::AccessPolicy { name: "ns/p".into(), provider: "p".into(), ..Default::default() };
        policy.set_action(AccessAction::Custom);
        let tests = vec![test(Attribute::Path, "", "/admin")];
        let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
        policy.rules = vec![ir::AccessRule { clauses }];
        let provider = ir::AuthzProvider { name: "p".into(), service: "s".into(), port: 80, ..Default::default() };
        let access =
            Access::new(&ir::Access { policies: vec![policy], providers: vec![provider], ..Default::default() });
        let (access, headers) = (access.unwrap(), HeaderMap::new());
        for (path, request, wanted) in [
            ("/admin", true, None),
            ("/other", true, Some(Verdict::Allow)),
            ("/other", false, Some(Verdict::DeniedBy("ns/p", 0))),
        ] {
            let path = Path::new(path);
            let (method, authority) = ("GET", "web");
            let asked = Request { method, authority, path: &path, headers: &headers, known: None, token: None };
            let (source, destination) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
            let request = request.then_some(asked);
            let context =
                AuthzContext { peer: None, source, remote: source, destination, port: 80, sni: None, request };
            assert_eq!(access.evaluate_partly(&context, Hidden::default()), wanted);
        }
    }

    /// Each policy has one rule, whose tests must all hold.
    fn access(policies: &[(&str, AccessAction, &[ir::AccessTest])]) -> Access {
        let one = |(name, action, tests): &(&str, AccessAction, &[ir::AccessTest])| {
            let clause = |test: &ir::AccessTest| ir::AccessClause {
                matches: vec![ir::AccessMatch { tests: vec![test.clone()] }],
            };
            let rule = ir::AccessRule { clauses: tests.iter().map(clause).collect() };
            let mut policy =
                ir::AccessPolicy { name: format!("ns/{name}"), rules: vec![rule], ..ir::AccessPolicy::default() };
            policy.set_action(*action);
            policy
        };
        Access::new(&ir::Access { policies: policies.iter().map(one).collect(), ..ir::Access::default() }).unwrap()
    }

    #[test]
    fn what_depends_on_headers_is_not_said() {
        let (get, post) = (test(Attribute::Method, "", "GET"), test(Attribute::Method, "", "POST"));
        let (header, admin) = (test(Attribute::Header, "x-user", "a"), test(Attribute::Path, "", "/admin"));
        let (yes, no) = (AccessAction::Allow, AccessAction::Deny);
        type Row<'a> = (&'a [(&'a str, AccessAction, &'a [ir::AccessTest])], Option<Verdict<'a>>);
        let table: [Row<'_>; 9] = [
            (&[], Some(Verdict::Allow)),
            (&[("a", yes, from_ref(&get))], Some(Verdict::Allow)),
            (&[("a", yes, from_ref(&post))], Some(Verdict::NotAllowed)),
            (&[("a", yes, &[get.clone(), header.clone()])], None),
            (&[("a", yes, &[post.clone(), header.clone()])], Some(Verdict::NotAllowed)),
            (&[("a", yes, from_ref(&header)), ("b", yes, from_ref(&get))], Some(Verdict::Allow)),
            (&[("a", no, from_ref(&header))], None),
            (&[("a", no, from_ref(&header)), ("b", no, from_ref(&get))], Some(Verdict::DeniedBy("ns/b", 0))),
            (&[("a", no, &[header.clone(), admin])], Some(Verdict::Allow)),
        ];
        let (path, headers) = (Path::new("/orders"), HeaderMap::new());
        for (number, (policies, wanted)) in table.into_iter().enumerate() {
            let request =
                Request { method: "GET", authority: "web", path: &path, headers: &headers, known: None, token: None };
            let context = AuthzContext {
                peer: None,
                source: [10, 0, 0, 1].into(),
                remote: [10, 0, 0, 1].into(),
                destination: [10, 0, 0, 2].into(),
                port: 80,
                sni: None,
                request: Some(request),
            };
            let access = access(policies);
            assert_eq!(access.evaluate_partly(&context, Hidden::default()), wanted, "{number}");
            // Where no policy looks at what is hidden, it is the judgement itself.
            if policies.iter().all(|(_, _, tests)| tests.iter().all(|t| t.name.is_empty())) {
                assert_eq!(Some(access.evaluate(&context)), wanted, "{number}");
            }
        }
    }
}
