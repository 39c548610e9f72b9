//! Evaluation: deny wins; without any allow policy everything is allowed; else one must match
//! (Istio: AuthorizationPolicy, "implicit enablement").

use crate::model::{Action, CidrText, Clause, Match, Policy, Rule, StringMatch};
use karst_core::Identity;
use serde::Serialize;
use std::{net::IpAddr, sync::Arc};

/// What a policy may look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Who calls, as proven by TLS (or by the pod's own network namespace on the same node). None: plaintext.
    pub source_identity: Option<Identity>,
    /// Address that the connection came from.
    pub source_ip: IpAddr,
    /// Address of the destination workload.
    pub destination_ip: IpAddr,
    /// Port of the application, after translation of service ports.
    pub destination_port: u16,
}

/// What the policies say of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// No policy forbids it.
    Allow,
    /// The named deny policy (`namespace/name`) matched, by the rule with this index.
    DeniedBy(Arc<str>, usize),
    /// There are allow policies, and none of them matched.
    NotAllowed,
}

impl Verdict {
    /// Is the connection allowed?
    pub fn is_allow(&self) -> bool {
        *self == Verdict::Allow
    }
}

/// What a policy in dry run would have done to a connection, were it enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Would {
    /// It is an allow policy, and matches.
    Allow,
    /// It is a deny policy that matches, or an allow policy that does not match, as no other one does.
    Deny,
}

impl Would {
    /// As Istio's dry runs call the result.
    pub fn result(self) -> &'static str {
        match self {
            Would::Allow => "allowed",
            Would::Deny => "denied",
        }
    }
    /// For the log.
    pub fn text(self) -> &'static str {
        match self {
            Would::Allow => "dry run: would have been allowed",
            Would::Deny => "dry run: would have been denied",
        }
    }
}

/// What the policies in dry run would have done to a connection; those that would have had no part in the decision are left
/// out. It decides nothing: [`authorize`] passes over these policies.
pub fn dry_run<'a>(
    policies: impl Iterator<Item = &'a Policy> + Clone,
    connection: &Connection,
) -> Vec<(&'a Policy, Would)> {
    let matches = |policy: &Policy| policy.rules.iter().any(|r| rule(r, policy.action, connection));
    // The usual case costs no more than this look.
    if !policies.clone().any(|policy| policy.dry_run) {
        return vec![];
    }
    let allowed = policies.clone().any(|policy| policy.action == Action::Allow && matches(policy));
    let one = |policy: &'a Policy| {
        let would = match (policy.action, matches(policy)) {
            (Action::Deny, true) => Would::Deny,
            (Action::Deny, false) => return None,
            (Action::Allow, true) => Would::Allow,
            (Action::Allow, false) if allowed => return None,
            (Action::Allow, false) => Would::Deny,
        };
        Some((policy, would))
    };
    policies.filter(|policy| policy.dry_run).filter_map(one).collect()
}

/// Judges a connection by the policies that apply to its destination. Policies with `dry_run` are passed over.
pub fn authorize<'a>(policies: impl Iterator<Item = &'a Policy> + Clone, connection: &Connection) -> Verdict {
    let enforced = || policies.clone().filter(|p| !p.dry_run);
    for policy in enforced().filter(|policy| policy.action == Action::Deny) {
        if let Some(index) = policy.rules.iter().position(|r| rule(r, Action::Deny, connection)) {
            return Verdict::DeniedBy(policy.key().into(), index);
        }
    }
    let mut any = false;
    for policy in enforced().filter(|policy| policy.action == Action::Allow) {
        any = true;
        if policy.rules.iter().any(|r| rule(r, Action::Allow, connection)) {
            return Verdict::Allow;
        }
    }
    if any { Verdict::NotAllowed } else { Verdict::Allow }
}

fn rule(rule: &Rule, action: Action, connection: &Connection) -> bool {
    rule.clauses.iter().all(|cl| clause(cl, action, connection))
}

fn clause(cl: &Clause, action: Action, connection: &Connection) -> bool {
    cl.matches.is_empty() || cl.matches.iter().any(|m| one(m, action, connection))
}

fn one(wanted: &Match, action: Action, connection: &Connection) -> bool {
    if wanted.unknown {
        return match action {
            Action::Deny => true,
            Action::Allow => false,
        };
    }
    if is_empty(wanted) {
        return false;
    }
    let id = connection.source_identity.as_ref();
    let text = |v: &[StringMatch], s: Option<&str>| s.is_some_and(|s| v.iter().any(|x| x.matches(s)));
    let net = |v: &[CidrText], ip: IpAddr| v.iter().any(|x| x.0.contains(ip));
    let account = |v: &[crate::ServiceAccountMatch]| {
        id.is_some_and(|i| {
            v.iter().any(|x| *x.namespace == *i.namespace() && *x.service_account == *i.service_account())
        })
    };
    let ns = id.map(Identity::namespace);
    let principal = id.map(Identity::principal);
    let port = connection.destination_port;
    (wanted.namespaces.is_empty() || text(&wanted.namespaces, ns))
        && !text(&wanted.not_namespaces, ns)
        && (wanted.principals.is_empty() || text(&wanted.principals, principal))
        && !text(&wanted.not_principals, principal)
        && (wanted.source_ips.is_empty() || net(&wanted.source_ips, connection.source_ip))
        && !net(&wanted.not_source_ips, connection.source_ip)
        && (wanted.destination_ips.is_empty() || net(&wanted.destination_ips, connection.destination_ip))
        && !net(&wanted.not_destination_ips, connection.destination_ip)
        && (wanted.destination_ports.is_empty() || wanted.destination_ports.contains(&port))
        && !wanted.not_destination_ports.contains(&port)
        && (wanted.service_accounts.is_empty() || account(&wanted.service_accounts))
        && !account(&wanted.not_service_accounts)
}

fn is_empty(wanted: &Match) -> bool {
    wanted.namespaces.is_empty()
        && wanted.not_namespaces.is_empty()
        && wanted.principals.is_empty()
        && wanted.not_principals.is_empty()
        && wanted.source_ips.is_empty()
        && wanted.not_source_ips.is_empty()
        && wanted.destination_ips.is_empty()
        && wanted.not_destination_ips.is_empty()
        && wanted.destination_ports.is_empty()
        && wanted.not_destination_ports.is_empty()
        && wanted.service_accounts.is_empty()
        && wanted.not_service_accounts.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Scope;

    fn conn(id: Option<&str>, port: u16) -> Connection {
        Connection {
            source_identity: id.map(|i| i.parse().unwrap()),
            source_ip: "10.0.0.1".parse().unwrap(),
            destination_ip: "10.0.0.2".parse().unwrap(),
            destination_port: port,
        }
    }
    fn policy(action: Action, m: Match) -> Policy {
        Policy {
            name: "p".into(),
            namespace: "ns".into(),
            scope: Scope::Namespace,
            action,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![m] }] }],
            dry_run: false,
        }
    }
    const A: Option<&str> = Some("spiffe://td/ns/a/sa/x");

    #[test]
    fn deny_wins_over_allow() {
        let m = Match { destination_ports: vec![80], ..Match::default() };
        let ps = [policy(Action::Allow, m.clone()), policy(Action::Deny, m)];
        assert_eq!(authorize(ps.iter(), &conn(A, 80)), Verdict::DeniedBy("ns/p".into(), 0));
        assert_eq!(authorize(ps.iter(), &conn(A, 81)), Verdict::NotAllowed);
        assert_eq!(authorize([].iter(), &conn(A, 81)), Verdict::Allow);
    }

    #[test]
    fn a_refusal_names_the_first_rule_that_matches() {
        let port = |port: u16| Rule {
            clauses: vec![Clause { matches: vec![Match { destination_ports: vec![port], ..Match::default() }] }],
        };
        let p = Policy { rules: vec![port(80), port(81), port(81)], ..policy(Action::Deny, Match::default()) };
        assert_eq!(authorize([&p].into_iter(), &conn(A, 80)), Verdict::DeniedBy("ns/p".into(), 0));
        assert_eq!(authorize([&p].into_iter(), &conn(A, 81)), Verdict::DeniedBy("ns/p".into(), 1));
    }

    #[test]
    fn strict_is_deny_without_principal() {
        let p = [policy(Action::Deny, Match { not_principals: vec![StringMatch::Presence], ..Match::default() })];
        assert!(!authorize(p.iter(), &conn(None, 80)).is_allow());
        assert!(authorize(p.iter(), &conn(A, 80)).is_allow());
    }

    #[test]
    fn without_identity_positive_fails_and_negative_passes() {
        for m in [
            Match { namespaces: vec![StringMatch::Prefix("".into())], ..Match::default() },
            Match { principals: vec![StringMatch::Presence], ..Match::default() },
            Match { service_accounts: vec![ServiceAccount("a", "x").into()], ..Match::default() },
        ] {
            let p = [policy(Action::Allow, m)];
            assert!(!authorize(p.iter(), &conn(None, 80)).is_allow());
            assert!(authorize(p.iter(), &conn(A, 80)).is_allow());
        }
        let p = [policy(Action::Allow, Match { not_namespaces: vec![StringMatch::Presence], ..Match::default() })];
        assert!(authorize(p.iter(), &conn(None, 80)).is_allow());
        assert!(!authorize(p.iter(), &conn(A, 80)).is_allow());
    }
    struct ServiceAccount(&'static str, &'static str);
    impl From<ServiceAccount> for crate::ServiceAccountMatch {
        fn from(s: ServiceAccount) -> Self {
            Self { namespace: s.0.into(), service_account: s.1.into() }
        }
    }

    #[test]
    fn what_is_not_understood_denies() {
        let m = Match { unknown: true, ..Match::default() };
        assert!(!authorize([policy(Action::Allow, m.clone())].iter(), &conn(A, 80)).is_allow());
        assert!(!authorize([policy(Action::Deny, m)].iter(), &conn(A, 80)).is_allow());
    }

    #[test]
    fn a_dry_run_decides_nothing_and_says_what_it_would_have_done() {
        let port = |p: u16| Match { destination_ports: vec![p], ..Match::default() };
        let named = |name: &str, action: Action, m: Match, dry_run: bool| Policy {
            name: name.into(),
            dry_run,
            ..policy(action, m)
        };
        let told = |ps: &[Policy], c: &Connection| {
            let all = dry_run(ps.iter(), c);
            all.iter().map(|(p, w)| format!("{} {}", p.name, w.result())).collect::<Vec<_>>()
        };
        let deny = named("deny", Action::Deny, port(80), true);
        let allow = named("allow", Action::Allow, port(81), true);
        let ps = [deny.clone(), allow.clone()];
        for (p, want) in
            [(80, vec!["deny denied", "allow denied"]), (81, vec!["allow allowed"]), (82, vec!["allow denied"])]
        {
            assert_eq!(authorize(ps.iter(), &conn(A, p)), Verdict::Allow, "{p}");
            assert_eq!(told(&ps, &conn(A, p)), want, "{p}");
        }
        // An allow policy that is enforced, and matches, makes up for one in dry run that does not.
        let ps = [allow.clone(), named("enforced", Action::Allow, port(80), false)];
        assert_eq!((authorize(ps.iter(), &conn(A, 80)), told(&ps, &conn(A, 80)).len()), (Verdict::Allow, 0));
        // What is refused already would have been refused by it, too; and what it allows stays refused.
        assert_eq!(authorize(ps.iter(), &conn(A, 82)), Verdict::NotAllowed);
        assert_eq!(told(&ps, &conn(A, 82)), ["allow denied"]);
        assert_eq!(authorize(ps.iter(), &conn(A, 81)), Verdict::NotAllowed);
        assert_eq!(told(&ps, &conn(A, 81)), ["allow allowed"]);
        // What is unknown would deny; nothing is told without a dry run.
        let unknown = named("deny", Action::Deny, Match { unknown: true, ..Match::default() }, true);
        assert_eq!(told(&[unknown], &conn(A, 80)), ["deny denied"]);
        assert!(told(&[named("enforced", Action::Deny, port(80), false)], &conn(A, 80)).is_empty());
    }

    #[test]
    fn what_is_empty_matches_as_in_istio() {
        let mut p = policy(Action::Deny, Match::default());
        assert!(authorize([p.clone()].iter(), &conn(A, 80)).is_allow(), "a clause of empty matches never fires");
        p.rules = vec![Rule { clauses: vec![Clause::default()] }];
        assert!(!authorize([p.clone()].iter(), &conn(A, 80)).is_allow(), "a clause without matches fires");
        p.rules = vec![Rule::default()];
        assert!(!authorize([p.clone()].iter(), &conn(A, 80)).is_allow(), "a rule without clauses fires");
        p.rules = vec![];
        assert!(authorize([p.clone()].iter(), &conn(A, 80)).is_allow(), "a policy without rules never fires");
        p.action = Action::Allow;
        assert!(!authorize([p].iter(), &conn(A, 80)).is_allow(), "but as ALLOW it still means default deny");
    }
}
