//! From the wire to the model of [`karst_policy`], and back. Fail closed: what the wire holds and this version
//! does not know becomes `unknown`, which denies.

use crate::security as pb;
use karst_core::{Cidr, addr::ip_from_bytes};
use karst_policy::{self as model, model::CidrText};
use prost::Message;

/// Why the bytes of a resource are no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// They are no such message.
    #[error("not an istio.security.Authorization: {0}")]
    Decode(prost::DecodeError),
    /// It has no name.
    #[error("name: is empty")]
    NoName,
}

/// Reads a policy from an xDS resource's bytes.
///
/// # Errors
/// Only if the bytes are no such message, or have no name: then there is nothing that could be enforced.
pub fn policy(bytes: &[u8]) -> Result<model::Policy, PolicyError> {
    let message = pb::Authorization::decode(bytes).map_err(PolicyError::Decode)?;
    if message.name.is_empty() {
        return Err(PolicyError::NoName);
    }
    // A field that this version does not know is lost in decoding; then the sizes differ.
    let unknown_field = message.encoded_len() != bytes.len() || !message.extensions.is_empty();
    let scope = match pb::Scope::try_from(message.scope) {
        Ok(pb::Scope::Global) => Some(model::Scope::Global),
        Ok(pb::Scope::Namespace) => Some(model::Scope::Namespace),
        Ok(pb::Scope::WorkloadSelector) => Some(model::Scope::WorkloadSelector),
        Err(_) => None,
    };
    let action = match pb::Action::try_from(message.action) {
        Ok(pb::Action::Allow) => Some(model::Action::Allow),
        Ok(pb::Action::Deny) => Some(model::Action::Deny),
        Err(_) => None,
    };
    let mut rules: Vec<model::Rule> = message.rules.iter().map(rule).collect();
    if unknown_field || scope.is_none() || action.is_none() {
        let unknown = model::Match { unknown: true, ..Default::default() };
        let denying = model::Rule { clauses: vec![model::Clause { matches: vec![unknown] }] };
        rules = vec![denying];
    }
    Ok(model::Policy {
        name: message.name.into(),
        namespace: message.namespace.into(),
        scope: scope.unwrap_or(model::Scope::Namespace),
        action: action.unwrap_or(model::Action::Deny),
        rules,
        dry_run: message.dry_run,
    })
}

fn rule(wire: &pb::Rule) -> model::Rule {
    let clause = |c: &pb::Clause| model::Clause { matches: c.matches.iter().map(one).collect() };
    model::Rule { clauses: wire.clauses.iter().map(clause).collect() }
}

fn one(wire: &pb::Match) -> model::Match {
    let mut unknown = !wire.extensions.is_empty();
    let mut strings = |list: &[pb::StringMatch]| -> Vec<model::StringMatch> {
        use pb::string_match::MatchType;
        list.iter()
            .filter_map(|s| match &s.match_type {
                Some(MatchType::Exact(x)) => Some(model::StringMatch::Exact(x.as_str().into())),
                Some(MatchType::Prefix(x)) => Some(model::StringMatch::Prefix(x.as_str().into())),
                Some(MatchType::Suffix(x)) => Some(model::StringMatch::Suffix(x.as_str().into())),
                Some(MatchType::Presence(_)) => Some(model::StringMatch::Presence),
                None => {
                    unknown = true;
                    None
                }
            })
            .collect()
    };
    let (namespaces, not_namespaces) = (strings(&wire.namespaces), strings(&wire.not_namespaces));
    let (principals, not_principals) = (strings(&wire.principals), strings(&wire.not_principals));
    let mut nets = |list: &[pb::Address]| -> Vec<CidrText> {
        list.iter()
            .filter_map(|a| {
                let c = ip_from_bytes(&a.address).and_then(|ip| Cidr::new(ip, u8::try_from(a.length).ok()?));
                unknown |= c.is_none();
                c.map(CidrText)
            })
            .collect()
    };
    let (source_ips, not_source_ips) = (nets(&wire.source_ips), nets(&wire.not_source_ips));
    let (destination_ips, not_destination_ips) = (nets(&wire.destination_ips), nets(&wire.not_destination_ips));
    let mut ports = |list: &[u32]| -> Vec<u16> {
        list.iter()
            .filter_map(|p| {
                let p = u16::try_from(*p).ok();
                unknown |= p.is_none();
                p
            })
            .collect()
    };
    let (destination_ports, not_destination_ports) =
        (ports(&wire.destination_ports), ports(&wire.not_destination_ports));
    let accounts = |list: &[pb::ServiceAccountMatch]| -> Vec<model::ServiceAccountMatch> {
        let one = |s: &pb::ServiceAccountMatch| model::ServiceAccountMatch {
            namespace: s.namespace.as_str().into(),
            service_account: s.service_account.as_str().into(),
        };
        list.iter().map(one).collect()
    };
    model::Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts: accounts(&wire.service_accounts),
        not_service_accounts: accounts(&wire.not_service_accounts),
        unknown,
    }
}

/// Writes a policy for the wire.
pub fn policy_to_wire(policy: &model::Policy) -> pb::Authorization {
    pb::Authorization {
        name: policy.name.to_string(),
        namespace: policy.namespace.to_string(),
        scope: match policy.scope {
            model::Scope::Global => pb::Scope::Global,
            model::Scope::Namespace => pb::Scope::Namespace,
            model::Scope::WorkloadSelector => pb::Scope::WorkloadSelector,
        } as i32,
        action: match policy.action {
            model::Action::Allow => pb::Action::Allow,
            model::Action::Deny => pb::Action::Deny,
        } as i32,
        rules: policy.rules.iter().map(rule_to_wire).collect(),
        dry_run: policy.dry_run,
        extensions: vec![],
    }
}

fn rule_to_wire(rule: &model::Rule) -> pb::Rule {
    let clause = |c: &model::Clause| pb::Clause { matches: c.matches.iter().map(match_to_wire).collect() };
    pb::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn match_to_wire(matched: &model::Match) -> pb::Match {
    let strings = |list: &[model::StringMatch]| list.iter().map(string_to_wire).collect();
    let nets = |list: &[CidrText]| {
        let one = |c: &CidrText| pb::Address {
            address: karst_core::addr::ip_to_bytes(c.0.base()),
            length: u32::from(c.0.prefix_len()),
        };
        list.iter().map(one).collect()
    };
    let ports = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect();
    let accounts = |list: &[model::ServiceAccountMatch]| {
        let one = |s: &model::ServiceAccountMatch| pb::ServiceAccountMatch {
            namespace: s.namespace.to_string(),
            service_account: s.service_account.to_string(),
        };
        list.iter().map(one).collect()
    };
    pb::Match {
        namespaces: strings(&matched.namespaces),
        not_namespaces: strings(&matched.not_namespaces),
        principals: strings(&matched.principals),
        not_principals: strings(&matched.not_principals),
        source_ips: nets(&matched.source_ips),
        not_source_ips: nets(&matched.not_source_ips),
        destination_ips: nets(&matched.destination_ips),
        not_destination_ips: nets(&matched.not_destination_ips),
        destination_ports: ports(&matched.destination_ports),
        not_destination_ports: ports(&matched.not_destination_ports),
        service_accounts: accounts(&matched.service_accounts),
        not_service_accounts: accounts(&matched.not_service_accounts),
        extensions: vec![],
    }
}

fn string_to_wire(matched: &model::StringMatch) -> pb::StringMatch {
    use pb::string_match::MatchType;
    let match_type = Some(match matched {
        model::StringMatch::Exact(x) => MatchType::Exact(x.to_string()),
        model::StringMatch::Prefix(x) => MatchType::Prefix(x.to_string()),
        model::StringMatch::Suffix(x) => MatchType::Suffix(x.to_string()),
        model::StringMatch::Presence => MatchType::Presence(()),
    });
    pb::StringMatch { match_type }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> pb::Authorization {
        let m = pb::Match {
            principals: vec![pb::StringMatch { match_type: Some(pb::string_match::MatchType::Prefix("td/".into())) }],
            destination_ports: vec![80],
            ..Default::default()
        };
        let rules = vec![pb::Rule { clauses: vec![pb::Clause { matches: vec![m] }] }];
        pb::Authorization { name: "p".into(), namespace: "n".into(), action: 1, rules, ..Default::default() }
    }

    #[test]
    fn wire_and_model_agree() {
        let bytes = sample().encode_to_vec();
        let p = policy(&bytes).unwrap();
        assert_eq!(policy_to_wire(&p).encode_to_vec(), bytes);
        assert!(!p.rules[0].clauses[0].matches[0].unknown);
    }

    #[test]
    fn what_is_unknown_is_marked() {
        let unknown = |p: &model::Policy| p.rules[0].clauses[0].matches[0].unknown;
        let mut a = sample();
        a.action = 7;
        let p = policy(&a.encode_to_vec()).unwrap();
        assert!(unknown(&p) && p.action == model::Action::Deny);
        let mut a = sample();
        a.rules[0].clauses[0].matches[0].destination_ports = vec![70000];
        assert!(unknown(&policy(&a.encode_to_vec()).unwrap()));
        // Field 15 of the policy, a varint, is not known.
        let mut bytes = sample().encode_to_vec();
        bytes.extend([15 << 3, 1]);
        assert!(unknown(&policy(&bytes).unwrap()));
        assert!(policy(&[0xff]).is_err());
    }
}
