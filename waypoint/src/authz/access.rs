//! Who may call: AuthorizationPolicies as Istio's waypoints evaluate them. Where a CUSTOM rule matches, a provider is asked first
//! ([`crate::authz::external`]). A DENY rule that matches refuses; if there are ALLOW policies, one of their rules must match. What is
//! not understood never allows, and always denies or asks.
//!
//! Paths are compared in all the ways in which an application may read them ([`karst_policy::Readings`]): a value refuses if any of
//! them matches, and grants only if all do, and what was sent is as it is written. (Istio compares them as they are written unless told otherwise, so that `/%61dmin` passes a rule that denies
//! `/admin`.)

mod partly;

use crate::{
    authz::{
        error::AccessError,
        external::provider::Provider,
        jwt::{Token, TokenError, Tokens},
    },
    http::entry::{self, Names},
    telemetry::{access_log::one_word, flag::DENIED_BY},
};
use http::{HeaderMap, HeaderName, header};
use karst_api::route::{self as ir, AccessAction};
use karst_core::{Cidr, Identity, authority::Authority};
use karst_policy::{
    Attribute, Path, PathPattern, StringMatch,
    attribute::{AUTHORITY, Values, port},
};
use karst_proxy::dry_run::Would;
use std::{net::IpAddr, sync::Arc};

pub use partly::Hidden;

/// What is known of a caller, and what it wants.
pub struct AuthzContext<'a> {
    /// None: it has shown no certificate of the mesh.
    pub peer: Option<&'a Identity>,
    /// Where its packets come from.
    pub source: IpAddr,
    /// The client, as trusted proxies tell (X-Forwarded-For, the PROXY protocol); where there are none, the same.
    pub remote: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
    /// The name in a TLS hello that has come to us; empty: it has none. None: no hello was read. A request has come without; what
    /// else has is not known.
    pub sni: Option<&'a str>,
    /// None: bytes, of which nothing is known.
    pub request: Option<Request<'a>>,
}

/// What a request shows.
pub struct Request<'a> {
    pub method: &'a str,
    /// In its canonical form.
    pub authority: &'a str,
    pub path: &'a Path<'a>,
    pub headers: &'a HeaderMap,
    /// Those of the headers that are known. None: all.
    pub known: Option<&'a Names>,
    /// A token that is good.
    pub token: Option<&'a Token>,
}

/// The policies of a service, compiled.
#[derive(Debug, Default)]
pub struct Access {
    policies: Vec<Policy>,
    /// Whose tokens are taken.
    pub tokens: Tokens,
    headers: Arc<Names>,
    /// Who is asked, in this order.
    providers: Vec<Arc<Provider>>,
}

/// A provider that is to be asked about a call.
#[derive(Debug)]
pub struct Asks<'a> {
    pub provider: &'a Arc<Provider>,
    /// The CUSTOM policy that asks.
    pub policy: &'a str,
    /// Nothing follows from what it says.
    pub dry_run: bool,
}

#[derive(Debug)]
struct Policy {
    name: String,
    action: AccessAction,
    rules: Vec<Vec<Vec<Vec<Condition>>>>,
    dry_run: bool,
    /// Of CUSTOM: whom it asks.
    provider: Arc<str>,
}

#[derive(Debug)]
struct Condition {
    what: AttributeMatcher,
    values: Vec<ValueMatcher>,
    not_values: Vec<ValueMatcher>,
}

#[derive(Debug)]
enum AttributeMatcher {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Host,
    Method,
    Path,
    Port,
    Header(HeaderName),
    Sni,
    RequestPrincipal,
    /// Names of claims, each within the one before.
    Claim(Vec<String>),
    Unknown,
}

#[derive(Debug)]
enum ValueMatcher {
    Text(StringMatch),
    Path(PathPattern),
    Net(Cidr),
}

/// The judgement.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Allow,
    /// The policy, and the number of its rule that matches.
    DeniedBy(&'a str, usize),
    NotAllowed,
}

/// Why a call is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// For who reads the log.
    pub error: String,
    /// As Envoy has it in response code details.
    pub details: String,
    /// The DENY policy that matches (`namespace/name`); empty: no ALLOW policy does.
    pub policy: String,
}

impl Denial {
    /// A stream goes on no longer: the token that it has begun with is not good any more.
    pub fn of_token(why: TokenError) -> Self {
        let error = format!("its token is not good any more: {why}");
        Self {
            details: format!("jwt_authn_access_denied{{{}}}", one_word(&why.to_string())),
            error,
            policy: String::new(),
        }
    }
}

impl Verdict<'_> {
    /// Why not; None: it is allowed.
    pub fn denial(&self) -> Option<Denial> {
        let (policy, error, by) = match self {
            Verdict::Allow => return None,
            Verdict::DeniedBy(p, rule) => {
                let (namespace, name) = p.split_once('/').unwrap_or(("", p));
                (*p, format!("{DENIED_BY}{p}"), format!("ns[{namespace}]-policy[{name}]-rule[{rule}]"))
            }
            Verdict::NotAllowed => ("", "no policy allows it".into(), "none".into()),
        };
        Some(Denial { policy: policy.into(), error, details: format!("rbac_access_denied_matched_policy[{by}]") })
    }
}

/// What a policy that only tells says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    /// AUDIT, and it matches.
    Matches,
    /// It is in dry run: what it would have done, and whether it is one that denies.
    DryRun { would: Would, deny: bool },
}

impl Access {
    /// Compiles.
    ///
    /// # Errors
    /// If the message is not of this version; then nobody is to use it.
    pub fn new(access: &ir::Access) -> Result<Self, AccessError> {
        let mut providers = access.providers.iter().map(provider).collect::<Result<Vec<_>, _>>()?;
        providers.sort_by(|a, b| a.name.cmp(&b.name));
        let policy = |policy: &ir::AccessPolicy| {
            let action = AccessAction::try_from(policy.action)
                .map_err(|_| AccessError::Action { policy: policy.name.clone(), action: policy.action })?;
            if action == AccessAction::Custom && !providers.iter().any(|p| *p.name == *policy.provider) {
                let (policy, provider) = (policy.name.clone(), policy.provider.clone());
                return Err(AccessError::NoProvider { policy, provider });
            }
            let condition = |test: &ir::AccessTest| Condition::new(test).of(action);
            let matched = |m: &ir::AccessMatch| m.tests.iter().map(condition).collect::<Vec<_>>();
            let clause = |c: &ir::AccessClause| c.matches.iter().map(matched).collect::<Vec<_>>();
            let rule = |r: &ir::AccessRule| r.clauses.iter().map(clause).collect::<Vec<_>>();
            Ok::<_, AccessError>(Policy {
                name: policy.name.clone(),
                action,
                rules: policy.rules.iter().map(rule).collect(),
                dry_run: policy.dry_run,
                provider: policy.provider.as_str().into(),
            })
        };
        let policies: Vec<Policy> = access.policies.iter().map(policy).collect::<Result<_, _>>()?;
        let tokens = Tokens::new(&access.tokens)?;
        let tests = policies.iter().flat_map(|p| p.rules.iter().flatten().flatten().flatten());
        let named = tests.filter_map(|t| if let AttributeMatcher::Header(n) = &t.what { Some(n) } else { None });
        let headers = Arc::new(named.chain(tokens.headers()).collect());
        Ok(Self { policies, tokens, headers, providers })
    }

    /// Those who may have to be asked about a request, in the order in which they are.
    pub fn providers(&self) -> &[Arc<Provider>] {
        &self.providers
    }

    /// Is one of them to be asked about a request? Once, if several policies say so; in earnest, if one of these is not in dry run.
    pub fn asks<'a>(&'a self, provider: &'a Arc<Provider>, context: &AuthzContext<'_>) -> Option<Asks<'a>> {
        let custom = self.policies.iter().filter(|p| p.action == AccessAction::Custom && p.provider == provider.name);
        let policy = custom.filter(|p| p.matches(context)).min_by_key(|p| p.dry_run)?;
        Some(Asks { provider, policy: &policy.name, dry_run: policy.dry_run })
    }

    /// The headers that policies look at, and those that hold tokens or are made of them.
    pub fn headers(&self) -> &Arc<Names> {
        &self.headers
    }

    /// Allows nothing.
    pub fn closed() -> Self {
        let name = "a policy that is not understood".to_string();
        let none =
            Policy { name, action: AccessAction::Allow, rules: vec![], dry_run: false, provider: Arc::default() };
        Self { policies: vec![none], ..Self::default() }
    }

    /// Judges: a request, once those have been asked who are to be ([`Access::asks`]). Nobody can be asked about bytes: what is to be
    /// asked about is denied.
    pub fn evaluate(&self, context: &AuthzContext<'_>) -> Verdict<'_> {
        let of = |action| self.policies.iter().filter(move |p| p.action == action && !p.dry_run);
        let unasked = of(AccessAction::Custom).filter(|_| context.request.is_none());
        let mut closing = of(AccessAction::Deny).chain(unasked);
        if let Some((policy, rule)) = closing.find_map(|policy| Some((policy, policy.matching(context)?))) {
            return Verdict::DeniedBy(&policy.name, rule);
        }
        let mut any = false;
        for policy in of(AccessAction::Allow) {
            any = true;
            if policy.matches(context) {
                return Verdict::Allow;
            }
        }
        if any { Verdict::NotAllowed } else { Verdict::Allow }
    }

    /// The first ALLOW policy that matches, and the number of its rule: for who asks why.
    pub fn allowing(&self, context: &AuthzContext<'_>) -> Option<(&str, usize)> {
        let mut all = self.policies.iter().filter(|p| p.action == AccessAction::Allow && !p.dry_run);
        all.find_map(|policy| Some((policy.name.as_str(), policy.matching(context)?)))
    }

    /// What policies say that only tell: AUDIT where they match, and those in dry run where they would have had a part in the
    /// decision (as `karst_policy::dry_run` has it for connections).
    pub fn audit(&self, context: &AuthzContext<'_>) -> impl Iterator<Item = (&str, AuditEvent)> {
        let tells = |p: &&Policy| p.action == AccessAction::Audit || p.dry_run;
        let trial = |p: &Policy| p.action == AccessAction::Allow && p.dry_run;
        let allows = |p: &Policy| p.action == AccessAction::Allow && p.matches(context);
        let allowed = self.policies.iter().any(trial) && self.policies.iter().any(allows);
        let say = move |p: &Policy| match (p.action, p.matches(context)) {
            (AccessAction::Audit, true) => Some(AuditEvent::Matches),
            (AccessAction::Deny, true) => Some(AuditEvent::DryRun { would: Would::Deny, deny: true }),
            (AccessAction::Audit | AccessAction::Deny | AccessAction::Custom, false) => None,
            // Of a request its provider knows.
            (AccessAction::Custom, true) if context.request.is_some() => None,
            (AccessAction::Custom, true) => Some(AuditEvent::DryRun { would: Would::Deny, deny: true }),
            (AccessAction::Allow, true) => Some(AuditEvent::DryRun { would: Would::Allow, deny: false }),
            (AccessAction::Allow, false) if allowed => None,
            (AccessAction::Allow, false) => Some(AuditEvent::DryRun { would: Would::Deny, deny: false }),
        };
        let all: Vec<_> = self.policies.iter().filter(tells).filter_map(|p| Some((p.name.as_str(), say(p)?))).collect();
        all.into_iter()
    }

    /// Name, action and number of rules of the policies that are enforced, for the admin page.
    pub fn enforced(&self) -> impl Iterator<Item = (&str, AccessAction, usize)> {
        self.policies.iter().filter(|p| !p.dry_run).map(|p| (p.name.as_str(), p.action, p.rules.len()))
    }

    /// The names of the policies in dry run.
    pub fn dry_runs(&self) -> impl Iterator<Item = &str> {
        self.policies.iter().filter(|p| p.dry_run).map(|p| p.name.as_str())
    }
}

impl Policy {
    fn matches(&self, context: &AuthzContext<'_>) -> bool {
        self.matching(context).is_some()
    }

    /// The number of the first rule that matches.
    fn matching(&self, context: &AuthzContext<'_>) -> Option<usize> {
        let deny = closes(self.action);
        self.rules.iter().position(|r| r.iter().all(|c| c.iter().any(|m| m.iter().all(|t| t.matches(context, deny)))))
    }
}

/// Does a match keep somebody out, or may it? Then what is not understood, or not known, matches.
fn closes(action: AccessAction) -> bool {
    match action {
        AccessAction::Deny | AccessAction::Custom => true,
        AccessAction::Allow | AccessAction::Audit => false,
    }
}

fn provider(said: &ir::AuthzProvider) -> Result<Arc<Provider>, AccessError> {
    let wrong = |error| AccessError::Provider { name: said.name.clone(), error };
    Provider::new(said).map(Arc::new).map_err(wrong)
}

impl Condition {
    /// As policies of this action look at it. Tokens are verified after providers have been asked (their answer may bring one): at
    /// that time nothing is known of them.
    fn of(mut self, action: AccessAction) -> Self {
        let of_token = matches!(self.what, AttributeMatcher::RequestPrincipal | AttributeMatcher::Claim(_));
        if action == AccessAction::Custom && of_token {
            self.what = AttributeMatcher::Unknown;
        }
        self
    }

    fn new(test: &ir::AccessTest) -> Self {
        let unknown = Self { what: AttributeMatcher::Unknown, values: vec![], not_values: vec![] };
        let Some(attribute) = test.attribute().known() else { return unknown };
        let what = match attribute {
            Attribute::Principal => AttributeMatcher::Principal,
            Attribute::Namespace => AttributeMatcher::Namespace,
            Attribute::ServiceAccount => AttributeMatcher::ServiceAccount,
            Attribute::TrustDomain => AttributeMatcher::TrustDomain,
            Attribute::SourceIp => AttributeMatcher::SourceIp,
            Attribute::RemoteIp => AttributeMatcher::RemoteIp,
            Attribute::DestinationIp => AttributeMatcher::DestinationIp,
            Attribute::Host => AttributeMatcher::Host,
            Attribute::Method => AttributeMatcher::Method,
            Attribute::Path => AttributeMatcher::Path,
            Attribute::Port => AttributeMatcher::Port,
            // Whatever version of HTTP: one has it as a header, the other does not.
            Attribute::Header if test.name == AUTHORITY || test.name.eq_ignore_ascii_case(header::HOST.as_str()) => {
                AttributeMatcher::Host
            }
            Attribute::Header => {
                HeaderName::from_bytes(test.name.as_bytes()).map_or(AttributeMatcher::Unknown, AttributeMatcher::Header)
            }
            Attribute::Sni => AttributeMatcher::Sni,
            Attribute::RequestPrincipal => AttributeMatcher::RequestPrincipal,
            Attribute::Claim => AttributeMatcher::Claim(test.name.split("][").map(String::from).collect()),
            Attribute::Audience => AttributeMatcher::Claim(vec!["aud".into()]),
            Attribute::Presenter => AttributeMatcher::Claim(vec!["azp".into()]),
        };
        let all = |v: &[String]| {
            v.iter().map(|s| ValueMatcher::new(s, attribute.values(), &what)).collect::<Option<Vec<_>>>()
        };
        match (all(&test.values), all(&test.not_values)) {
            (Some(values), Some(not_values)) => Self { values, not_values, what },
            // A value that cannot be read.
            _ => unknown,
        }
    }

    fn matches(&self, context: &AuthzContext<'_>, deny: bool) -> bool {
        let request = context.request.as_ref();
        let one = |s: &str| self.has(|v| v.text(s));
        match &self.what {
            AttributeMatcher::Unknown => deny,
            AttributeMatcher::Principal => context.peer.map_or_else(|| self.has(|_| false), |p| one(p.principal())),
            AttributeMatcher::Namespace => context.peer.map_or_else(|| self.has(|_| false), |p| one(p.namespace())),
            AttributeMatcher::ServiceAccount => context
                .peer
                .map_or_else(|| self.has(|_| false), |p| one(&format!("{}/{}", p.namespace(), p.service_account()))),
            AttributeMatcher::TrustDomain => {
                context.peer.map_or_else(|| self.has(|_| false), |p| one(p.trust_domain()))
            }
            // No request, and no hello was read: it may name anything.
            AttributeMatcher::Sni if context.sni.is_none() && request.is_none() => deny,
            AttributeMatcher::Sni => self.has(|v| context.sni.is_some_and(|s| v.host(s))),
            AttributeMatcher::SourceIp => self.has(|v| v.net(context.source)),
            AttributeMatcher::RemoteIp => self.has(|v| v.net(context.remote)),
            AttributeMatcher::DestinationIp => self.has(|v| v.net(context.destination)),
            AttributeMatcher::Port => one(&context.port.to_string()),
            // Of bytes nothing of this is known: they are not allowed for it, and denied as if it were so.
            AttributeMatcher::Host
            | AttributeMatcher::Method
            | AttributeMatcher::Path
            | AttributeMatcher::Header(_)
            | AttributeMatcher::RequestPrincipal
            | AttributeMatcher::Claim(_)
                if request.is_none() =>
            {
                deny
            }
            AttributeMatcher::RequestPrincipal => match request.and_then(|r| r.token) {
                Some(t) => one(&t.principal),
                None => self.has(|_| false),
            },
            AttributeMatcher::Claim(path) => {
                let all = request.and_then(|r| r.token).map(|t| t.claim(path)).unwrap_or_default();
                self.has(|v| all.iter().any(|s| v.text(s)))
            }
            AttributeMatcher::Host => {
                let host = request.map_or("", |r| r.authority);
                let name = host.rsplit_once(':').filter(|(_, p)| p.bytes().all(|b| b.is_ascii_digit())).map(|(h, _)| h);
                self.has(|v| v.host(host) || name.is_some_and(|n| v.host(n)))
            }
            AttributeMatcher::Method => one(request.map_or("", |r| r.method)),
            AttributeMatcher::Path => {
                let Some(request) = request else { return deny };
                // Of a DENY its exceptions grant, of any other its values.
                let holds = |v: &ValueMatcher, grants: bool| match v {
                    ValueMatcher::Path(p) if grants => p.grants(request.path),
                    ValueMatcher::Path(p) => p.touches(request.path),
                    _ => false,
                };
                (self.values.is_empty() || self.values.iter().any(|v| holds(v, !deny)))
                    && !self.not_values.iter().any(|v| holds(v, deny))
            }
            AttributeMatcher::Header(n) => {
                let Some(request) = request.filter(|request| request.known.is_none_or(|k| k.contains(n))) else {
                    return deny;
                };
                let value = entry::joined(request.headers, n);
                self.has(|v| value.as_ref().is_some_and(|x| v.bytes(x)))
            }
        }
    }

    fn has(&self, f: impl Fn(&ValueMatcher) -> bool) -> bool {
        (self.values.is_empty() || self.values.iter().any(&f)) && !self.not_values.iter().any(&f)
    }
}

impl ValueMatcher {
    /// None: it cannot be read.
    fn new(value: &str, of: Values, what: &AttributeMatcher) -> Option<Self> {
        match of {
            Values::Text if matches!(what, AttributeMatcher::Host) => {
                StringMatch::parse(&host_value(value)).ok().map(ValueMatcher::Text)
            }
            Values::Ranges => value.parse().ok().map(ValueMatcher::Net),
            Values::Path => PathPattern::parse(value).ok().map(ValueMatcher::Path),
            Values::Text => StringMatch::parse(value).ok().map(ValueMatcher::Text),
            // As a number, however it is written.
            Values::Ports => port(value).map(|p| ValueMatcher::Text(StringMatch::Exact(p.to_string().into()))),
            // No trust domain has a slash: a value of an older controller's that has one means something else.
            Values::TrustDomains if value.contains('/') => None,
            Values::Accounts | Values::TrustDomains => {
                (!value.contains('*')).then(|| ValueMatcher::Text(StringMatch::Exact(value.into())))
            }
        }
    }

    fn text(&self, s: &str) -> bool {
        matches!(self, ValueMatcher::Text(t) if t.matches(s))
    }

    /// As [`ValueMatcher::text`], of a header's value, which need not be text.
    fn bytes(&self, bytes: &[u8]) -> bool {
        let ValueMatcher::Text(t) = self else { return false };
        match t {
            StringMatch::Exact(e) => e.as_bytes() == bytes,
            StringMatch::Prefix(p) => bytes.starts_with(p.as_bytes()),
            StringMatch::Suffix(x) => bytes.ends_with(x.as_bytes()),
            StringMatch::Presence => !bytes.is_empty(),
        }
    }

    /// Host names have no case.
    fn host(&self, host: &str) -> bool {
        let ValueMatcher::Text(t) = self else { return false };
        match t {
            StringMatch::Exact(e) => e.eq_ignore_ascii_case(host),
            StringMatch::Prefix(p) => host.get(..p.len()).is_some_and(|x| x.eq_ignore_ascii_case(p)),
            StringMatch::Suffix(x) => {
                host.len().checked_sub(x.len()).and_then(|n| host.get(n..)).is_some_and(|y| y.eq_ignore_ascii_case(x))
            }
            StringMatch::Presence => !host.is_empty(),
        }
    }

    fn net(&self, ip: IpAddr) -> bool {
        matches!(self, ValueMatcher::Net(c) if c.contains(ip))
    }
}

/// A value for hosts as authorities are written: names without a last dot, ports without leading zeros.
fn host_value(value: &str) -> String {
    if let Ok(a) = Authority::parse(value.as_bytes()) {
        return a.to_string();
    }
    // With a wildcard.
    let (host, number) = match value.rsplit_once(':') {
        Some((host, number)) => (host, Some(number)),
        None => (value, None),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    match number {
        Some(number) => format!("{host}:{}", port(number).map_or_else(|| number.to_string(), |p| p.to_string())),
        None => host.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    use karst_policy::attribute::{KEYS, SeenBy};

    fn test(a: Attribute, name: &str, values: &[&str], not: &[&str]) -> ir::AccessTest {
        let all = |v: &[&str]| v.iter().map(ToString::to_string).collect();
        ir::AccessTest {
            attribute: ir::Attribute::from(a) as i32,
            name: name.into(),
            values: all(values),
            not_values: all(not),
        }
    }

    fn access(action: AccessAction, rules: Vec<Vec<ir::AccessTest>>) -> Access {
        let clause = |t| ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![t] }] };
        let rules = rules.into_iter().map(|r| ir::AccessRule { clauses: r.into_iter().map(clause).collect() });
        let mut p = ir::AccessPolicy { name: "ns/p".into(), rules: rules.collect(), ..Default::default() };
        p.set_action(action);
        Access::new(&ir::Access { policies: vec![p], ..Default::default() }).unwrap()
    }

    fn asked<R>(
        method: &str,
        path: &str,
        headers: &[(&'static str, &str)],
        http: bool,
        f: impl FnOnce(&AuthzContext<'_>) -> R,
    ) -> R {
        let peer: Identity = "spiffe://cluster.local/ns/app/sa/web".parse().unwrap();
        let mut h = HeaderMap::new();
        for (k, v) in headers {
            h.append(*k, http::HeaderValue::from_bytes(v.as_bytes()).unwrap());
        }
        let path = Path::new(path);
        let request = Request { method, authority: "shop:80", path: &path, headers: &h, known: None, token: None };
        let ip = "10.0.0.1".parse().unwrap();
        f(&AuthzContext {
            peer: Some(&peer),
            source: ip,
            remote: ip,
            destination: ip,
            port: 80,
            sni: None,
            request: http.then_some(request),
        })
    }

    fn allowed(a: &Access, method: &str, path: &str, headers: &[(&'static str, &str)], http: bool) -> bool {
        asked(method, path, headers, http, |asked| a.evaluate(asked) == Verdict::Allow)
    }

    /// One that asks a provider `p`, by this test.
    fn custom(name: &str, test: ir::AccessTest, dry_run: bool) -> ir::AccessPolicy {
        let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![test] }] }];
        let rules = vec![ir::AccessRule { clauses }];
        let (name, provider) = (name.into(), "p".into());
        let mut p = ir::AccessPolicy { name, rules, dry_run, provider, ..Default::default() };
        p.set_action(AccessAction::Custom);
        p
    }

    fn asking(policies: Vec<ir::AccessPolicy>) -> Access {
        let provider = ir::AuthzProvider { name: "p".into(), service: "s".into(), port: 80, ..Default::default() };
        Access::new(&ir::Access { policies, providers: vec![provider], ..Default::default() }).unwrap()
    }

    #[test]
    fn a_provider_is_asked_about_what_may_be_meant() {
        let path = test(Attribute::Path, "", &["/admin*"], &[]);
        let unknown = ir::AccessTest { attribute: 99, ..Default::default() };
        let a = asking(vec![custom("ns/a", path.clone(), false)]);
        let asks = |a: &Access, path: &str, headers: &[(&'static str, &str)]| {
            asked("GET", path, headers, true, |asked| {
                let asks = a.asks(&a.providers()[0], asked);
                asks.map(|asks| (asks.policy.to_string(), asks.dry_run))
            })
        };
        let yes = |name: &str, dry_run: bool| Some((name.to_string(), dry_run));
        for path in ["/admin", "/admin/x", "/%61dmin", "//admin", "/x/..%2fadmin"] {
            assert_eq!(asks(&a, path, &[]), yes("ns/a", false), "{path}");
        }
        assert_eq!(asks(&a, "/other", &[]), None);
        assert!(allowed(&a, "GET", "/admin", &[], true), "what follows is not its business");
        // Exceptions grant: only what is written so, and is read in no other way.
        let but = asking(vec![custom("ns/a", test(Attribute::Path, "", &[], &["/public/*"]), false)]);
        assert_eq!(asks(&but, "/public/a", &[]), None);
        assert!(asks(&but, "/public/..%2fadmin", &[]).is_some());
        // Of tokens nothing is known yet; of conditions of a later version never.
        for test in [
            test(Attribute::RequestPrincipal, "", &["me/you"], &[]),
            test(Attribute::RequestPrincipal, "", &[], &["*"]),
            test(Attribute::Claim, "groups", &["admin"], &[]),
            unknown,
        ] {
            assert!(asks(&asking(vec![custom("ns/a", test.clone(), false)]), "/", &[]).is_some(), "{test:?}");
        }
        // In earnest if one of them is.
        let both = asking(vec![custom("ns/dry", path.clone(), true), custom("ns/a", path.clone(), false)]);
        assert_eq!(asks(&both, "/admin", &[]), yes("ns/a", false));
        let dry = asking(vec![custom("ns/dry", path.clone(), true)]);
        assert_eq!(asks(&dry, "/admin", &[]), yes("ns/dry", true));
        // A provider that we were not told of.
        let policies = vec![custom("ns/a", path, false)];
        assert!(Access::new(&ir::Access { policies, ..Default::default() }).is_err());
    }

    #[test]
    fn nobody_can_be_asked_about_bytes() {
        let port = |number: &str| test(Attribute::Port, "", &[number], &[]);
        let path = test(Attribute::Path, "", &["/admin"], &[]);
        for (test, denied) in [(port("80"), true), (port("81"), false), (path.clone(), true)] {
            let a = asking(vec![custom("ns/a", test.clone(), false)]);
            assert_eq!(allowed(&a, "GET", "/", &[], false), !denied, "{test:?}");
        }
        let dry = asking(vec![custom("ns/dry", path, true)]);
        asked("GET", "/", &[], false, |asked| {
            assert_eq!(dry.evaluate(asked), Verdict::Allow);
            let told: Vec<_> = dry.audit(asked).collect();
            assert_eq!(told, [("ns/dry", AuditEvent::DryRun { would: Would::Deny, deny: true })]);
        });
    }

    #[test]
    fn a_dry_run_decides_nothing_and_says_what_it_would_have_done() {
        let policy = |name: &str, action: AccessAction, path: &str, dry_run: bool| {
            let tests = vec![test(Attribute::Path, "", &[path], &[])];
            let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
            let mut p = ir::AccessPolicy {
                name: name.into(),
                rules: vec![ir::AccessRule { clauses }],
                dry_run,
                ..Default::default()
            };
            p.set_action(action);
            p
        };
        let (deny, allow) =
            (policy("deny", AccessAction::Deny, "/a", true), policy("allow", AccessAction::Allow, "/b", true));
        let audit = policy("audit", AccessAction::Audit, "/c", false);
        let enforced = policy("enforced", AccessAction::Allow, "/a", false);
        let told = |policies: &[&ir::AccessPolicy], path: &str| {
            let policies = policies.iter().map(|p| (*p).clone()).collect();
            let a = Access::new(&ir::Access { policies, ..Default::default() }).unwrap();
            let say = |(name, told): (&str, AuditEvent)| match told {
                AuditEvent::Matches => format!("{name} matches"),
                AuditEvent::DryRun { would, deny } => {
                    assert_eq!(deny, name == "deny");
                    format!("{name} {}", would.result())
                }
            };
            asked("GET", path, &[], true, |asked| {
                (a.evaluate(asked) == Verdict::Allow, a.audit(asked).map(say).collect::<Vec<_>>().join(", "))
            })
        };
        let table: [(&[&ir::AccessPolicy], &str, (bool, &str)); 7] = [
            (&[&deny, &allow, &audit], "/a", (true, "deny denied, allow denied")),
            (&[&deny, &allow, &audit], "/b", (true, "allow allowed")),
            (&[&deny, &allow, &audit], "/c", (true, "allow denied, audit matches")),
            (&[&enforced, &allow], "/a", (true, "")),
            (&[&enforced, &allow], "/b", (false, "allow allowed")),
            (&[&enforced, &allow], "/c", (false, "allow denied")),
            (&[&enforced], "/a", (true, "")),
        ];
        for (policies, path, wanted) in table {
            let (allowed, said) = told(policies, path);
            assert_eq!((allowed, said.as_str()), wanted, "{path}");
        }
    }

    #[test]
    fn every_attribute_allows_and_denies() {
        use Attribute as A;
        for (t, holds) in [
            (test(A::Principal, "", &["cluster.local/ns/app/sa/web"], &[]), true),
            (test(A::Principal, "", &["*/sa/other"], &[]), false),
            (test(A::Namespace, "", &["app"], &[]), true),
            (test(A::Namespace, "", &[], &["app"]), false),
            (test(A::ServiceAccount, "", &["app/web"], &[]), true),
            (test(A::TrustDomain, "", &["cluster.local"], &[]), true),
            (test(A::TrustDomain, "", &["cluster"], &[]), false),
            (test(A::TrustDomain, "", &[], &["cluster.local"]), false),
            (test(A::SourceIp, "", &["10.0.0.0/8"], &["10.0.0.2"]), true),
            (test(A::RemoteIp, "", &["192.168.0.0/16"], &[]), false),
            (test(A::Host, "", &["shop"], &[]), true),
            (test(A::Host, "", &["SHOP."], &[]), true),
            (test(A::Host, "", &["shop.:80"], &[]), true),
            (test(A::Host, "", &["*hop."], &[]), true),
            (test(A::Host, "", &["*hop.:80"], &[]), true),
            (test(A::Host, "", &["*:0080"], &[]), true),
            (test(A::Host, "", &["shop.:*"], &[]), true),
            (test(A::Host, "", &["*.example.com"], &[]), false),
            (test(A::Method, "", &["GET"], &[]), true),
            (test(A::Port, "", &["080"], &[]), true),
            (test(A::Port, "", &[], &["0080"]), false),
            (test(A::Method, "", &["POST"], &[]), false),
            (test(A::Path, "", &["/a/*"], &[]), true),
            (test(A::Path, "", &["/a/{*}/c"], &[]), true),
            (test(A::Path, "", &["/{**}/c"], &[]), true),
            (test(A::Path, "", &["/a/{*}"], &[]), false),
            (test(A::Port, "", &["80"], &[]), true),
            (test(A::Header, "x-role", &["admin", "op*"], &[]), true),
            (test(A::Header, "x-name", &["Zoë"], &[]), true),
            (test(A::Header, "host", &["shop:80"], &[]), true),
            (test(A::Header, "x-none", &["*"], &[]), false),
            (test(A::Header, "x-none", &[], &["*"]), true),
            (test(A::Header, "host", &["shop"], &[]), true),
            (test(A::Header, ":authority", &["shop:80"], &[]), true),
            (test(A::Header, "Host", &[], &["shop"]), false),
            (test(A::RequestPrincipal, "", &["*"], &[]), false),
            (test(A::RequestPrincipal, "", &[], &["*"]), true),
        ] {
            let ask = |a: &Access| allowed(a, "GET", "/a/b/c", &[("x-role", "operator"), ("x-name", "Zoë")], true);
            assert_eq!(ask(&access(AccessAction::Allow, vec![vec![t.clone()]])), holds, "{t:?}");
            assert_eq!(ask(&access(AccessAction::Deny, vec![vec![t.clone()]])), !holds, "{t:?}");
            assert!(ask(&access(AccessAction::Audit, vec![vec![t]])));
        }
    }

    /// The table's keys, here: each lets in what it matches and nothing else, and denies what it matches and nothing else.
    #[test]
    fn every_key_evaluates() {
        use Attribute as A;
        for k in KEYS {
            let (name, matches, other) = match k.attribute {
                A::Principal => ("", "cluster.local/ns/app/sa/web", "cluster.local/ns/app/sa/x"),
                A::Namespace => ("", "app", "other"),
                A::ServiceAccount => ("", "app/web", "app/x"),
                A::TrustDomain => ("", "cluster.local", "other"),
                A::SourceIp | A::RemoteIp | A::DestinationIp => ("", "10.0.0.1", "10.0.0.2"),
                A::Port => ("", "80", "81"),
                A::Sni => ("", "shop.example", "x.example"),
                A::Header => ("x-role", "admin", "guest"),
                A::RequestPrincipal => ("", "issuer/subject", "issuer/x"),
                A::Claim => ("groups][of", "b", "c"),
                A::Audience => ("", "aud-1", "aud-2"),
                A::Presenter => ("", "client", "x"),
                A::Host | A::Method | A::Path => panic!("{k:?} is no key"),
            };
            let token = Token::test(
                "issuer/subject",
                serde_json::json!({ "aud": ["aud-1"], "azp": "client", "groups": { "of": ["a", "b"] } }),
            );
            for (value, holds) in [(matches, true), (other, false)] {
                for (yes, no, holds) in [(&[value][..], &[][..], holds), (&[][..], &[value][..], !holds)] {
                    for action in [AccessAction::Allow, AccessAction::Deny] {
                        let a = access(action, vec![vec![test(k.attribute, name, yes, no)]]);
                        let allowed = asked("GET", "/", &[("x-role", "admin")], true, |asked| {
                            let request = asked.request.as_ref().unwrap();
                            let request = Request { token: Some(&token), ..*request };
                            let asked = AuthzContext { sni: Some("shop.example"), request: Some(request), ..*asked };
                            a.evaluate(&asked) == Verdict::Allow
                        });
                        assert_eq!(
                            allowed,
                            holds == (action == AccessAction::Allow),
                            "{k:?} {action:?} {yes:?} {no:?}"
                        );
                    }
                }
            }
            // Bytes show what ztunnel sees, and the name in the hello.
            for action in [AccessAction::Allow, AccessAction::Deny] {
                let a = access(action, vec![vec![test(k.attribute, name, &[matches], &[])]]);
                let allowed = asked("GET", "/", &[], false, |asked| {
                    a.evaluate(&AuthzContext { sni: Some("shop.example"), request: None, ..*asked }) == Verdict::Allow
                });
                let seen = k.attribute.seen_by() == SeenBy::Both || matches!(k.attribute, A::Sni | A::RemoteIp);
                assert_eq!(allowed, seen && action == AccessAction::Allow, "{k:?} {action:?}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_closed() {
        let unknown = ir::AccessTest { attribute: 0, values: vec!["x".into()], ..Default::default() };
        let newer = ir::AccessTest { attribute: 1000, ..unknown.clone() };
        for t in [
            unknown,
            newer,
            test(Attribute::Path, "", &["*/admin/*"], &[]),
            test(Attribute::Path, "", &["/user/{id}"], &[]),
            test(Attribute::Host, "", &["*.shop.*"], &[]),
            test(Attribute::TrustDomain, "", &["cluster.*"], &[]),
            test(Attribute::SourceIp, "", &["nonsense"], &[]),
            test(Attribute::Header, "no header", &["x"], &[]),
        ] {
            for action in [AccessAction::Allow, AccessAction::Deny] {
                assert!(!allowed(&access(action, vec![vec![t.clone()]]), "GET", "/", &[], true), "{action:?} {t:?}");
            }
        }
        // Of bytes it is not known what they ask for.
        for action in [AccessAction::Allow, AccessAction::Deny] {
            let get = test(Attribute::Method, "", &["GET"], &[]);
            assert!(!allowed(&access(action, vec![vec![get]]), "GET", "/", &[], false), "{action:?}");
        }
        assert!(!allowed(&access(AccessAction::Allow, vec![]), "GET", "/", &[], true), "a policy without rules");
        assert!(
            allowed(&access(AccessAction::Allow, vec![vec![]]), "GET", "/", &[], true),
            "a rule without conditions"
        );
        assert!(allowed(&Access::default(), "GET", "/", &[], true), "no policy");
        let other = ir::AccessPolicy { action: 7, ..Default::default() };
        assert!(Access::new(&ir::Access { policies: vec![other], ..Default::default() }).is_err());
    }

    /// T18: however a path is written, it is compared as an application reads it.
    #[test]
    fn paths_cannot_be_disguised() {
        let deny = access(AccessAction::Deny, vec![vec![test(Attribute::Path, "", &["/admin*"], &[])]]);
        let allow = access(AccessAction::Allow, vec![vec![test(Attribute::Path, "", &["/public/*"], &[])]]);
        for p in [
            "/admin",
            "/%61dmin",
            "//admin",
            "/./admin",
            "/x/../admin",
            "/x/%2e%2e/admin",
            "/%2fadmin",
            "/x\\..\\admin",
            "/x/..%5cadmin",
            "/admin/",
            "/public/../admin",
            "/public/%2e%2e%2fadmin",
            "/admin;x",
            "/public;x/../admin",
            "/x;/..;/admin",
        ] {
            assert!(!allowed(&deny, "GET", p, &[], true), "{p}");
            assert!(!allowed(&allow, "GET", p, &[], true), "{p}");
        }
        assert!(allowed(&deny, "GET", "/public/a", &[], true) && allowed(&allow, "GET", "/public/a", &[], true));
        // An application that decodes and does not resolve reads another path than one that does both.
        let internal = access(AccessAction::Deny, vec![vec![test(Attribute::Path, "", &["/internal/*"], &[])]]);
        for p in ["/internal/..%2fpublic/a", "/internal/..%5cpublic/a", "/internal;x/..%2fpublic/a"] {
            assert!(!allowed(&allow, "GET", p, &[], true), "{p}");
            assert!(!allowed(&internal, "GET", p, &[], true), "{p}");
        }
    }

    #[test]
    fn values_of_paths_are_normalised_as_requests_are() {
        let deny = |value: &str| access(AccessAction::Deny, vec![vec![test(Attribute::Path, "", &[value], &[])]]);
        for (value, path) in [
            ("/a//b", "/a//b"),
            ("/a//b", "/a/b"),
            ("/a/%62", "/a/b"),
            ("/my files/*", "/my%20files/x"),
            ("*//b", "/a//b"),
        ] {
            assert!(!allowed(&deny(value), "GET", path, &[], true), "{value} {path}");
        }
        // Who lets in what is written, has not let in all that may be made of it; nor exempted it from a DENY.
        let allow = |value: &str| access(AccessAction::Allow, vec![vec![test(Attribute::Path, "", &[value], &[])]]);
        let but = |value: &str| access(AccessAction::Deny, vec![vec![test(Attribute::Path, "", &[], &[value])]]);
        for (value, written, other) in [
            ("/v4/projects/group%2Frepo", "/v4/projects/group%2frepo", "/v4/projects/group/repo"),
            ("/a;v=1", "/a;v=1", "/a"),
            ("/objects/a%2F*", "/objects/a%2Fx", "/objects/a/x"),
        ] {
            for a in [allow(value), but(value)] {
                assert!(allowed(&a, "GET", written, &[], true), "{value} {written}");
                assert!(!allowed(&a, "GET", other, &[], true), "{value} {other}");
            }
        }
    }

    /// As Envoy: what is compared is the joined value, so that one line hides nothing of another.
    #[test]
    fn values_that_are_not_ascii_are_there() {
        let is = |action, value: &str| access(action, vec![vec![test(Attribute::Header, "x-name", &[value], &[])]]);
        let zoe = [("x-name", "Zoë")];
        for (value, holds) in [("Zoë", true), ("Zo*", true), ("*ë", true), ("*", true), ("Zoe", false)] {
            for (action, wanted) in [(AccessAction::Allow, holds), (AccessAction::Deny, !holds)] {
                assert_eq!(allowed(&is(action, value), "GET", "/", &zoe, true), wanted, "{action:?} {value:?}");
            }
        }
    }

    #[test]
    fn lines_of_a_header_are_one_value() {
        let is =
            |action, yes: &[&str], no: &[&str]| access(action, vec![vec![test(Attribute::Header, "x-env", yes, no)]]);
        let (one, two) = ([("x-env", "prod")], [("x-env", "prod"), ("x-env", "evil")]);
        for (a, single, both) in [
            (is(AccessAction::Deny, &[], &["prod"]), true, false),
            (is(AccessAction::Allow, &["prod"], &[]), true, false),
            (is(AccessAction::Allow, &["prod*"], &[]), true, true),
            (is(AccessAction::Deny, &["*evil"], &[]), true, false),
            (is(AccessAction::Allow, &["prod,evil"], &[]), false, true),
        ] {
            let got = [&one[..], &two[..]].map(|h| allowed(&a, "GET", "/", h, true));
            assert_eq!(got, [single, both], "{a:?}");
        }
    }

    #[test]
    fn a_hello_that_was_not_read_may_name_anything() {
        let is = |action, yes: &[&str], no: &[&str]| access(action, vec![vec![test(Attribute::Sni, "", yes, no)]]);
        for (a, unread, none, other) in [
            (is(AccessAction::Deny, &["admin.*"], &[]), false, true, true),
            (is(AccessAction::Allow, &[], &["admin.*"]), false, true, true),
            (is(AccessAction::Allow, &["shop"], &[]), false, false, true),
            (is(AccessAction::Deny, &[], &["shop"]), false, false, true),
        ] {
            let got = [None, Some(""), Some("shop")].map(|sni| {
                asked("GET", "/", &[], false, |q| {
                    a.evaluate(&AuthzContext { sni, request: None, ..*q }) == Verdict::Allow
                })
            });
            assert_eq!(got, [unread, none, other], "{a:?}");
            // A request has come without a hello.
            assert_eq!(allowed(&a, "GET", "/", &[], true), none, "{a:?}");
        }
    }

    #[test]
    fn a_header_that_is_not_known_any_more_may_be_anything() {
        let known = [HeaderName::from_static("x-kept")];
        let known: Names = known.iter().collect();
        for (name, wanted) in [("x-kept", [true, true]), ("x-gone", [false, false])] {
            for (action, wanted) in [AccessAction::Allow, AccessAction::Deny].into_iter().zip(wanted) {
                let a = access(action, vec![vec![test(Attribute::Header, name, &[], &["x"])]]);
                let got = asked("GET", "/", &[], true, |q| {
                    let request = q.request.as_ref().map(|r| Request { known: Some(&known), ..*r });
                    a.evaluate(&AuthzContext { request, ..*q }) == Verdict::Allow
                });
                assert_eq!(got, wanted && action == AccessAction::Allow, "{name} {action:?}");
            }
        }
    }

    /// All but what `notPaths` name: an exception must be one in every reading for a DENY, and be read by nobody for an ALLOW.
    #[test]
    fn exceptions_are_judged_to_the_safe_side() {
        let but = |action| access(action, vec![vec![test(Attribute::Path, "", &[], &["/health", "/public/*"])]]);
        let (deny, allow) = (but(AccessAction::Deny), but(AccessAction::Allow));
        for (path, denied, let_in) in [
            ("/health", false, false),
            ("/x", true, true),
            ("/x/..%2fhealth", true, false),
            ("/public/..%2fadmin", true, false),
            ("/%68ealth", true, false),
            ("/public/a%2fb", false, false),
        ] {
            assert_eq!(!allowed(&deny, "GET", path, &[], true), denied, "DENY {path}");
            assert_eq!(allowed(&allow, "GET", path, &[], true), let_in, "ALLOW {path}");
        }
    }

    /// What an evaluator sees that was written straight from the sentences of Istio's documentation: no readings, no matchers.
    struct Facts {
        peer: Option<Identity>,
        ip: IpAddr,
        port: u16,
        sni: Option<&'static str>,
        method: &'static str,
        authority: &'static str,
        role: Option<&'static str>,
        token: Option<Token>,
        http: bool,
    }

    /// What a test looks at. None: it cannot be known.
    fn seen(t: &ir::AccessTest, f: &Facts, path: &str) -> Option<Vec<String>> {
        use Attribute as A;
        let peer = |g: &dyn Fn(&Identity) -> String| f.peer.iter().map(g).collect::<Vec<_>>();
        let claim = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(ToString::to_string).collect();
            f.token.iter().flat_map(|t| t.claim(&path)).map(String::from).collect::<Vec<_>>()
        };
        let a = t.attribute().known()?;
        let l7 = matches!(
            a,
            A::Host | A::Method | A::Path | A::Header | A::RequestPrincipal | A::Claim | A::Audience | A::Presenter
        );
        if (l7 || (a == A::Sni && f.sni.is_none())) && !f.http {
            return None;
        }
        Some(match a {
            A::Principal => peer(&|p| p.to_string().trim_start_matches("spiffe://").to_string()),
            A::Namespace => peer(&|p| p.namespace().into()),
            A::ServiceAccount => peer(&|p| format!("{}/{}", p.namespace(), p.service_account())),
            A::TrustDomain => peer(&|p| p.trust_domain().into()),
            A::SourceIp | A::RemoteIp | A::DestinationIp => vec![f.ip.to_string()],
            A::Port => vec![f.port.to_string()],
            A::Sni => f.sni.iter().map(ToString::to_string).collect(),
            A::Host => vec![f.authority.into(), f.authority.split(':').next().unwrap().into()],
            A::Method => vec![f.method.into()],
            A::Path => vec![path.into()],
            A::Header if t.name == "host" => vec![f.authority.into(), f.authority.split(':').next().unwrap().into()],
            A::Header => f.role.iter().filter(|_| t.name == "x-role").map(ToString::to_string).collect(),
            A::RequestPrincipal => f.token.iter().map(|t| t.principal.clone()).collect(),
            A::Claim => claim(&["groups"]),
            A::Audience => claim(&["aud"]),
            A::Presenter => claim(&["azp"]),
        })
    }

    /// Signs of wildcards stand for whatever makes the rest fit.
    fn glob(v: &str, s: &str) -> bool {
        if let Some(v) = v.strip_prefix("{**}").or_else(|| v.strip_prefix('*')) {
            return (0..=s.len()).any(|n| glob(v, &s[n..]));
        }
        if let Some(v) = v.strip_prefix("{*}") {
            return (1..=s.len()).filter(|n| !s[..*n].contains('/')).any(|n| glob(v, &s[n..]));
        }
        match v.chars().next() {
            None => s.is_empty(),
            Some(c) => s.strip_prefix(c).is_some_and(|s| glob(&v[1..], s)),
        }
    }

    fn naive_test(t: &ir::AccessTest, f: &Facts, path: &str, deny: bool) -> bool {
        use Attribute as A;
        let readable = t.values.iter().chain(&t.not_values).all(|v| *v != "*x*");
        let Some(seen) = seen(t, f, path).filter(|_| readable) else { return deny };
        let a = t.attribute().known().unwrap();
        let like = |v: &str, s: &str| match a {
            A::SourceIp | A::RemoteIp | A::DestinationIp => v.parse::<Cidr>().unwrap().contains(s.parse().unwrap()),
            _ if v == "*" => !s.is_empty(),
            _ if matches!(a, A::Host | A::Sni) || t.name == "host" => glob(&v.to_lowercase(), &s.to_lowercase()),
            _ => glob(v, s),
        };
        let hit = |all: &[String]| all.iter().any(|v| seen.iter().any(|s| like(v, s)));
        (t.values.is_empty() || hit(&t.values)) && !hit(&t.not_values)
    }

    /// For an application that reads the path so.
    fn naive(policies: &[ir::AccessPolicy], f: &Facts, path: &str) -> bool {
        let matches = |p: &ir::AccessPolicy| {
            let deny = p.action() == AccessAction::Deny;
            let one = |m: &ir::AccessMatch| m.tests.iter().all(|t| naive_test(t, f, path, deny));
            p.rules.iter().any(|r| r.clauses.iter().all(|c| c.matches.iter().any(one)))
        };
        let of = |a: AccessAction| policies.iter().filter(move |p| p.action() == a);
        !of(AccessAction::Deny).any(matches)
            && (of(AccessAction::Allow).next().is_none() || of(AccessAction::Allow).any(matches))
    }

    #[test]
    fn waypoints_agree_with_a_naive_evaluator() {
        use Attribute as A;
        use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
        let seed: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        let mut r = StdRng::seed_from_u64(seed);
        let values = |a: A| -> &[&str] {
            match a {
                A::Principal => &["td/ns/a/sa/x", "td/*", "*/sa/x", "*", "*x*"],
                A::Namespace => &["a", "b", "a*", "*b", "*"],
                A::ServiceAccount => &["a/x", "b/x", "a/y"],
                A::TrustDomain => &["td", "other"],
                A::SourceIp | A::RemoteIp | A::DestinationIp => &["10.0.0.0/8", "10.0.0.1", "192.168.0.0/16"],
                A::Port => &["80", "443"],
                A::Sni | A::Host => &["shop", "SHOP", "*.example", "api.*", "*", "api.example:80"],
                A::Method => &["GET", "POST", "P*", "*"],
                A::Path => &["/a", "/a/*", "*/b", "*", "/a/{*}", "/{**}/b", "/a/{**}", "/b", "/a/b"],
                A::Header => &["admin", "a*", "*t", "*", "*x*"],
                A::RequestPrincipal => &["i/s", "i/*", "*/t", "*"],
                A::Claim | A::Audience | A::Presenter => &["one", "o*", "*e", "two", "*"],
            }
        };
        let paths = [
            "/a",
            "/b",
            "/a/b",
            "/a/b/b",
            "/",
            "/a/",
            "/x/a/b",
            "/%61",
            "/a/..%2fb",
            "/b/..%2fa",
            "/a//b",
            "/a;x/b",
            "/x;/..%2fa/b",
            "/a%2fb",
            "/a\\b",
        ];
        let decode = |p: &str| p.replace("%2f", "/").replace("%61", "a");
        let resolve = |p: &str| {
            let mut out: Vec<&str> = vec![];
            for s in p.split('/').filter(|s| !s.is_empty()) {
                if s == ".." {
                    out.pop();
                } else {
                    out.push(s);
                }
            }
            format!("/{}{}", out.join("/"), if p.ends_with('/') && !out.is_empty() { "/" } else { "" })
        };
        let bare = |p: &str| p.split('/').map(|s| s.split(';').next().unwrap()).collect::<Vec<_>>().join("/");
        let (mut allowed, mut denied, mut disguised) = (0, 0, 0);
        for n in 0..100_000 {
            let test = |r: &mut StdRng| {
                let a = *A::ALL.choose(r).unwrap();
                let name = match a {
                    A::Header => *["x-role", "host", "x-none"].choose(r).unwrap(),
                    A::Claim => "groups",
                    _ => "",
                };
                let some = |r: &mut StdRng, n| (0..n).map(|_| *values(a).choose(r).unwrap()).collect::<Vec<_>>();
                let (yes, no) = *[(1, 0), (2, 0), (0, 1), (1, 1)].choose(r).unwrap();
                let (yes, no) = (some(r, yes), some(r, no));
                test(a, name, &yes, &no)
            };
            let policies: Vec<ir::AccessPolicy> = (0..r.random_range(0..4))
                .map(|i| {
                    let rules = (0..r.random_range(0..3)).map(|_| {
                        let clauses = (0..r.random_range(0..3)).map(|_| {
                            let matches = (0..r.random_range(1..3)).map(|_| ir::AccessMatch {
                                tests: (0..r.random_range(1..3)).map(|_| test(&mut r)).collect(),
                            });
                            ir::AccessClause { matches: matches.collect() }
                        });
                        ir::AccessRule { clauses: clauses.collect() }
                    });
                    let rules = rules.collect();
                    let mut p = ir::AccessPolicy { name: format!("ns/{i}"), rules, ..Default::default() };
                    p.set_action(if r.random_bool(0.5) { AccessAction::Allow } else { AccessAction::Deny });
                    p
                })
                .collect();
            let id =
                ["spiffe://td/ns/a/sa/x", "spiffe://td/ns/b/sa/x", "spiffe://other/ns/ab/sa/y"].choose(&mut r).unwrap();
            let claims = serde_json::json!({ "aud": ["one", "x"], "azp": "two", "groups": ["one", "three"] });
            let f = Facts {
                peer: r.random_bool(0.8).then(|| id.parse().unwrap()),
                ip: ["10.0.0.1", "10.0.0.2", "192.168.0.1"].choose(&mut r).unwrap().parse().unwrap(),
                port: *[80, 443].choose(&mut r).unwrap(),
                sni: [None, Some("api.example"), Some("shop")].choose(&mut r).copied().flatten(),
                method: ["GET", "POST", "PUT"].choose(&mut r).unwrap(),
                authority: ["shop", "Shop:80", "api.example", "api.example:80"].choose(&mut r).unwrap(),
                role: [None, Some("admin"), Some("guest")].choose(&mut r).copied().flatten(),
                token: r.random_bool(0.5).then(|| Token::test("i/s", claims)),
                http: r.random_bool(0.9),
            };
            let path = *paths.choose(&mut r).unwrap();
            let sent = Path::new(path);
            let mut headers = HeaderMap::new();
            if let Some(v) = f.role {
                headers.insert("x-role", v.parse().unwrap());
            }
            let request = Request {
                method: f.method,
                authority: f.authority,
                path: &sent,
                headers: &headers,
                known: None,
                token: f.token.as_ref(),
            };
            let asked = AuthzContext {
                peer: f.peer.as_ref(),
                source: f.ip,
                remote: f.ip,
                destination: f.ip,
                port: f.port,
                sni: f.sni,
                request: f.http.then_some(request),
            };
            let a = Access::new(&ir::Access { policies: policies.clone(), ..Default::default() }).unwrap();
            let got = a.evaluate(&asked) == Verdict::Allow;
            let slashes = path.replace('\\', "/");
            for p in [path, &decode(path), &resolve(&decode(path)), &resolve(&decode(&bare(path))), &resolve(&slashes)]
            {
                let want = naive(&policies, &f, p);
                assert!(want || !got, "case {n}, seed {seed}: {path} is let in, read as {p}: {policies:#?}");
                assert!(
                    got == want || !matches!(sent.readings(), karst_policy::Readings::One(_)),
                    "case {n}, seed {seed}: {path}: {policies:#?}"
                );
                disguised += usize::from(want && !got);
            }
            if got { allowed += 1 } else { denied += 1 }
        }
        println!("cases=100000 allowed={allowed} denied={denied} refused for another reading={disguised} seed={seed}");
        assert!(allowed > 20_000 && denied > 20_000 && disguised > 500, "the generator must exercise all of it");
    }
}
