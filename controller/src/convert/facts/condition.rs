//! The conditions of AuthorizationPolicies: which attributes they are about, and what of them ztunnel compares.

use crate::convert::objects::FieldError;
use karst_manifest::kinds::*;
use karst_policy::{
    Attribute, Match, StringMatch,
    attribute::{self, SeenBy, Values},
    model::{CidrText, ServiceAccountMatch},
};

fn strings(values: &[String], at: &str) -> Result<Vec<StringMatch>, FieldError> {
    let one =
        |(i, s): (usize, &String)| StringMatch::parse(s).map_err(|e| (format!("{at}[{i}]"), format!("{s:?} {e}")));
    values.iter().enumerate().map(one).collect()
}

fn filled(values: &[String], at: &str) -> Result<(), FieldError> {
    match values.iter().position(String::is_empty) {
        Some(i) => Err((format!("{at}[{i}]"), "is empty: remove it or specify a value [KARST-0012]".into())),
        None => Ok(()),
    }
}

fn nets(values: &[String], at: &str) -> Result<Vec<CidrText>, FieldError> {
    values
        .iter()
        .enumerate()
        .map(|(i, s)| {
            s.parse().map(CidrText).map_err(|e: karst_core::addr::CidrError| (format!("{at}[{i}]"), e.to_string()))
        })
        .collect()
}

fn ports(values: &[String], at: &str) -> Result<Vec<u16>, FieldError> {
    let one = |(i, s): (usize, &String)| {
        attribute::port(s)
            .ok_or_else(|| (format!("{at}[{i}]"), format!("invalid port {s:?}: use 1 to 65535 [KARST-0019]")))
    };
    values.iter().enumerate().map(one).collect()
}

fn accounts(values: &[String], ns: &str, at: &str) -> Result<Vec<ServiceAccountMatch>, FieldError> {
    let one = |(i, text): (usize, &String)| {
        let (namespace, account) = text.split_once('/').unwrap_or((ns, text));
        if account.is_empty() || account.contains(['/', '*']) || namespace.contains('*') {
            return Err((
                format!("{at}[{i}]"),
                format!("invalid service account {text:?}: use NAME or NAMESPACE/NAME, without wildcards [KARST-0108]"),
            ));
        }
        Ok(ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() })
    };
    values.iter().enumerate().map(one).collect()
}

/// What an attribute must be, or must not be. What a waypoint is told is made of this, too.
pub(crate) struct Condition<'a> {
    pub(crate) attribute: Attribute,
    /// Of a header or a claim.
    pub(crate) name: &'a str,
    pub(crate) values: &'a [String],
    pub(crate) not_values: &'a [String],
    /// The fields that hold them.
    pub(crate) fields: [&'static str; 2],
}

impl Condition<'_> {
    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.not_values.is_empty()
    }

    /// Adds it to what is compared of a connection. True: only a waypoint can see it.
    pub(crate) fn judge(&self, matched: &mut Match, ns: &str, at: &str) -> Result<bool, FieldError> {
        use Attribute as A;
        let (yes, no) = (self.values, self.not_values);
        let [yes_at, no_at] = self.fields.map(|f| format!("{at}.{f}"));
        for (values, at) in [(yes, &yes_at), (no, &no_at)] {
            filled(values, at)?;
            for (i, v) in values.iter().enumerate() {
                self.attribute.check(v).map_err(|e| (format!("{at}[{i}]"), format!("{v:?} {e}")))?;
            }
        }
        let domain = |v: &[String]| v.iter().map(|d| StringMatch::Prefix(format!("{d}/").into())).collect::<Vec<_>>();
        match self.attribute {
            A::Principal => {
                matched.principals.extend(strings(yes, &yes_at)?);
                matched.not_principals.extend(strings(no, &no_at)?);
            }
            A::TrustDomain => {
                matched.principals.extend(domain(yes));
                matched.not_principals.extend(domain(no));
            }
            A::Namespace => {
                matched.namespaces.extend(strings(yes, &yes_at)?);
                matched.not_namespaces.extend(strings(no, &no_at)?);
            }
            A::ServiceAccount => {
                matched.service_accounts.extend(accounts(yes, ns, &yes_at)?);
                matched.not_service_accounts.extend(accounts(no, ns, &no_at)?);
            }
            A::SourceIp => {
                matched.source_ips.extend(nets(yes, &yes_at)?);
                matched.not_source_ips.extend(nets(no, &no_at)?);
            }
            A::DestinationIp => {
                matched.destination_ips.extend(nets(yes, &yes_at)?);
                matched.not_destination_ips.extend(nets(no, &no_at)?);
            }
            A::Port => {
                matched.destination_ports.extend(ports(yes, &yes_at)?);
                matched.not_destination_ports.extend(ports(no, &no_at)?);
            }
            // Nothing is compared here; values of these kinds have a form.
            other if other.seen_by() == SeenBy::Waypoint => match other.values() {
                Values::Ranges => drop((nets(yes, &yes_at)?, nets(no, &no_at)?)),
                Values::Ports => drop((ports(yes, &yes_at)?, ports(no, &no_at)?)),
                Values::Accounts => drop((accounts(yes, ns, &yes_at)?, accounts(no, ns, &no_at)?)),
                Values::Text | Values::Path | Values::TrustDomains => {}
            },
            // The table says that ztunnel sees it, and nothing here compares it: the policy is closed.
            other => return Err((yes_at, format!("{other:?} cannot be compared by ztunnel [KARST-0110]"))),
        }
        Ok(!self.is_empty() && self.attribute.seen_by() == SeenBy::Waypoint)
    }
}

/// The conditions of a source.
pub(crate) fn source(source: &Source) -> [Condition<'_>; 6] {
    use Attribute as A;
    let one = |attribute, values, not_values, fields| Condition { attribute, name: "", values, not_values, fields };
    [
        one(A::Principal, &source.principals[..], &source.not_principals[..], ["principals", "notPrincipals"]),
        one(
            A::RequestPrincipal,
            &source.request_principals,
            &source.not_request_principals,
            ["requestPrincipals", "notRequestPrincipals"],
        ),
        one(A::Namespace, &source.namespaces, &source.not_namespaces, ["namespaces", "notNamespaces"]),
        one(
            A::ServiceAccount,
            &source.service_accounts,
            &source.not_service_accounts,
            ["serviceAccounts", "notServiceAccounts"],
        ),
        one(A::SourceIp, &source.ip_blocks, &source.not_ip_blocks, ["ipBlocks", "notIpBlocks"]),
        one(
            A::RemoteIp,
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
            ["remoteIpBlocks", "notRemoteIpBlocks"],
        ),
    ]
}

/// The conditions of an operation.
pub(crate) fn operation(operation: &Operation) -> [Condition<'_>; 4] {
    use Attribute as A;
    let one = |attribute, values, not_values, fields| Condition { attribute, name: "", values, not_values, fields };
    [
        one(A::Host, &operation.hosts[..], &operation.not_hosts[..], ["hosts", "notHosts"]),
        one(A::Method, &operation.methods, &operation.not_methods, ["methods", "notMethods"]),
        one(A::Path, &operation.paths, &operation.not_paths, ["paths", "notPaths"]),
        one(A::Port, &operation.ports, &operation.not_ports, ["ports", "notPorts"]),
    ]
}

/// The condition of a key. None: nobody knows it.
pub(crate) fn when(when: &When) -> Option<Condition<'_>> {
    let (attribute, name) = attribute::find(&when.key)?;
    let (values, not_values) = (&when.values[..], &when.not_values[..]);
    Some(Condition { attribute, name, values, not_values, fields: ["values", "notValues"] })
}

/// What of them is compared of a connection, and whether there is more, which only a waypoint can see.
pub(crate) fn all(conditions: &[Condition<'_>], ns: &str, at: &str) -> Result<(Match, bool), FieldError> {
    if conditions.iter().all(Condition::is_empty) {
        return Err((at.into(), "is empty: specify at least one condition [KARST-0109]".into()));
    }
    let (mut matched, mut beyond) = (Match::default(), false);
    for c in conditions {
        beyond |= c.judge(&mut matched, ns, at)?;
    }
    Ok((matched, beyond))
}

pub(crate) fn judge_source(request_source: &Source, ns: &str, at: &str) -> Result<(Match, bool), FieldError> {
    let others = !request_source.principals.is_empty() || !request_source.namespaces.is_empty();
    if others && !request_source.service_accounts.is_empty() {
        return Err((
            format!("{at}.serviceAccounts"),
            "cannot be combined with principals or namespaces: remove one of them [KARST-0014]".into(),
        ));
    }
    all(&source(request_source), ns, at)
}

pub(crate) fn judge_when(condition: &When, ns: &str, at: &str) -> Result<(Match, bool), FieldError> {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        return Err((at.into(), "has neither values nor notValues: specify at least one of them [KARST-0109]".into()));
    }
    let unknown =
        || (format!("{at}.key"), format!("unknown key {:?}: use {} [KARST-0110]", condition.key, attribute::list()));
    all(&[when(condition).ok_or_else(unknown)?], ns, at)
}
