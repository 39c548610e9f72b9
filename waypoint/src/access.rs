//! Who may call: AuthorizationPolicies as Istio's waypoints evaluate them. A DENY rule that matches refuses; if there are ALLOW
//! policies, one of their rules must match. What is not understood never allows, and always denies.
//!
//! Paths are compared as applications may read them: decoded, without `.` and `..`, with single slashes. (Istio compares them
//! as they are written unless told otherwise, so that `/%61dmin` passes a rule that denies `/admin`.)

use crate::token::{Token, Tokens};
use http::{HeaderMap, HeaderName};
use karst_api::route::{self as ir, AccessAction, Attribute};
use karst_core::{Cidr, Identity, authority::Authority};
use karst_proxy::dry_run::Would;
use std::{borrow::Cow, net::IpAddr};

/// What is known of a caller, and what it wants.
pub struct Asked<'a> {
    /// None: it has shown no certificate of the mesh.
    pub peer: Option<&'a Identity>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
    /// The name in a TLS hello that has come to us.
    pub sni: Option<&'a str>,
    /// None: bytes, of which nothing is known.
    pub request: Option<Request<'a>>,
}

/// What a request shows.
pub struct Request<'a> {
    pub method: &'a str,
    /// In its canonical form.
    pub authority: &'a str,
    /// Made plain by [`plain`].
    pub path: &'a str,
    /// The same without parameters of segments (`/a;x/b`), if it has any: some applications pass them over, some do not.
    pub bare: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// A token that is good.
    pub token: Option<&'a Token>,
}

/// The policies of a service, compiled.
#[derive(Debug, Default)]
pub struct Access {
    policies: Vec<Policy>,
    /// Whose tokens are taken.
    pub tokens: Tokens,
}

#[derive(Debug)]
struct Policy {
    name: String,
    action: AccessAction,
    rules: Vec<Vec<Vec<Vec<Test>>>>,
    dry_run: bool,
}

#[derive(Debug)]
struct Test {
    what: What,
    values: Vec<Value>,
    not_values: Vec<Value>,
}

#[derive(Debug)]
enum What {
    Principal,
    Namespace,
    ServiceAccount,
    SourceIp,
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
enum Value {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Present,
    Net(Cidr),
    /// Path segments, of which some stand for any.
    Template(Vec<Segment>),
}

#[derive(Debug)]
enum Segment {
    Text(String),
    One,
    Any,
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
#[derive(Debug, PartialEq, Eq)]
pub struct Denial {
    /// For who reads the log.
    pub error: String,
    /// As Envoy has it in response code details.
    pub details: String,
}

impl Verdict<'_> {
    /// Why not; None: it is allowed.
    pub fn denial(&self) -> Option<Denial> {
        let (error, by) = match self {
            Verdict::Allow => return None,
            Verdict::DeniedBy(p, rule) => {
                let (namespace, name) = p.split_once('/').unwrap_or(("", p));
                (format!("denied by policy {p}"), format!("ns[{namespace}]-policy[{name}]-rule[{rule}]"))
            }
            Verdict::NotAllowed => ("no policy allows it".into(), "none".into()),
        };
        Some(Denial { error, details: format!("rbac_access_denied_matched_policy[{by}]") })
    }
}

/// What a policy that only tells says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
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
    pub fn new(a: &ir::Access) -> Result<Self, String> {
        let policy = |p: &ir::AccessPolicy| {
            let action = AccessAction::try_from(p.action).map_err(|_| format!("{}: action {}", p.name, p.action))?;
            let matched = |m: &ir::AccessMatch| m.tests.iter().map(Test::new).collect::<Vec<_>>();
            let clause = |c: &ir::AccessClause| c.matches.iter().map(matched).collect::<Vec<_>>();
            let rule = |r: &ir::AccessRule| r.clauses.iter().map(clause).collect::<Vec<_>>();
            Ok::<_, String>(Policy {
                name: p.name.clone(),
                action,
                rules: p.rules.iter().map(rule).collect(),
                dry_run: p.dry_run,
            })
        };
        let policies = a.policies.iter().map(policy).collect::<Result<_, _>>()?;
        Ok(Self { policies, tokens: Tokens::new(&a.tokens)? })
    }

    /// The headers that policies look at, and those that hold tokens or are made of them.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> + Clone {
        let tests = self.policies.iter().flat_map(|p| p.rules.iter().flatten().flatten().flatten());
        let named = tests.filter_map(|t| if let What::Header(n) = &t.what { Some(n) } else { None });
        named.chain(self.tokens.headers())
    }

    /// Allows nothing.
    pub fn closed() -> Self {
        let name = "a policy that is not understood".to_string();
        let none = Policy { name, action: AccessAction::Allow, rules: vec![], dry_run: false };
        Self { policies: vec![none], tokens: Tokens::default() }
    }

    /// Judges.
    pub fn judge(&self, a: &Asked<'_>) -> Verdict<'_> {
        let of = |action| self.policies.iter().filter(move |p| p.action == action && !p.dry_run);
        if let Some((p, rule)) = of(AccessAction::Deny).find_map(|p| Some((p, p.matching(a)?))) {
            return Verdict::DeniedBy(&p.name, rule);
        }
        let mut any = false;
        for p in of(AccessAction::Allow) {
            any = true;
            if p.matches(a) {
                return Verdict::Allow;
            }
        }
        if any { Verdict::NotAllowed } else { Verdict::Allow }
    }

    /// What policies say that only tell: AUDIT where they match, and those in dry run where they would have had a part in the
    /// decision (as `karst_policy::dry_run` has it for connections).
    pub fn told(&self, a: &Asked<'_>) -> impl Iterator<Item = (&str, Told)> {
        let tells = |p: &&Policy| p.action == AccessAction::Audit || p.dry_run;
        let trial = |p: &Policy| p.action == AccessAction::Allow && p.dry_run;
        let allows = |p: &Policy| p.action == AccessAction::Allow && p.matches(a);
        let allowed = self.policies.iter().any(trial) && self.policies.iter().any(allows);
        let say = move |p: &Policy| match (p.action, p.matches(a)) {
            (AccessAction::Audit, true) => Some(Told::Matches),
            (AccessAction::Deny, true) => Some(Told::DryRun { would: Would::Deny, deny: true }),
            (AccessAction::Audit | AccessAction::Deny, false) => None,
            (AccessAction::Allow, true) => Some(Told::DryRun { would: Would::Allow, deny: false }),
            (AccessAction::Allow, false) if allowed => None,
            (AccessAction::Allow, false) => Some(Told::DryRun { would: Would::Deny, deny: false }),
        };
        let all: Vec<_> = self.policies.iter().filter(tells).filter_map(|p| Some((p.name.as_str(), say(p)?))).collect();
        all.into_iter()
    }

    /// The names of the policies in dry run.
    pub fn dry_runs(&self) -> impl Iterator<Item = &str> {
        self.policies.iter().filter(|p| p.dry_run).map(|p| p.name.as_str())
    }
}

impl Policy {
    fn matches(&self, a: &Asked<'_>) -> bool {
        self.matching(a).is_some()
    }

    /// The number of the first rule that matches.
    fn matching(&self, a: &Asked<'_>) -> Option<usize> {
        let deny = self.action == AccessAction::Deny;
        self.rules.iter().position(|r| r.iter().all(|c| c.iter().any(|m| m.iter().all(|t| t.holds(a, deny)))))
    }
}

impl Test {
    fn new(t: &ir::AccessTest) -> Self {
        let what = match t.attribute() {
            Attribute::Principal => What::Principal,
            Attribute::Namespace => What::Namespace,
            Attribute::ServiceAccount => What::ServiceAccount,
            // Who speaks to us is the client itself: no proxy before us is trusted to name another.
            Attribute::SourceIp | Attribute::RemoteIp => What::SourceIp,
            Attribute::DestinationIp => What::DestinationIp,
            Attribute::Host => What::Host,
            Attribute::Method => What::Method,
            Attribute::Path => What::Path,
            Attribute::Port => What::Port,
            Attribute::Header => HeaderName::from_bytes(t.name.as_bytes()).map_or(What::Unknown, What::Header),
            Attribute::Sni => What::Sni,
            Attribute::RequestPrincipal => What::RequestPrincipal,
            Attribute::Claim => What::Claim(t.name.split("][").map(String::from).collect()),
            Attribute::Audience => What::Claim(vec!["aud".into()]),
            Attribute::Presenter => What::Claim(vec!["azp".into()]),
            Attribute::Unknown => What::Unknown,
        };
        let all = |v: &[String]| v.iter().map(|s| Value::new(s, &what)).collect::<Option<Vec<_>>>();
        match (all(&t.values), all(&t.not_values)) {
            (Some(values), Some(not_values)) => Self { values, not_values, what },
            // A value that cannot be read.
            _ => Self { what: What::Unknown, values: vec![], not_values: vec![] },
        }
    }

    fn holds(&self, a: &Asked<'_>, deny: bool) -> bool {
        let r = a.request.as_ref();
        let one = |s: &str| self.has(|v| v.text(s));
        match &self.what {
            What::Unknown => deny,
            What::Principal => a.peer.map_or_else(|| self.has(|_| false), |p| one(p.principal())),
            What::Namespace => a.peer.map_or_else(|| self.has(|_| false), |p| one(p.namespace())),
            What::ServiceAccount => a
                .peer
                .map_or_else(|| self.has(|_| false), |p| one(&format!("{}/{}", p.namespace(), p.service_account()))),
            What::Sni => self.has(|v| a.sni.is_some_and(|s| v.host(s))),
            What::SourceIp => self.has(|v| v.net(a.source)),
            What::DestinationIp => self.has(|v| v.net(a.destination)),
            What::Port => one(&a.port.to_string()),
            // Of bytes nothing of this is known: they are not allowed for it, and denied as if it were so.
            What::Host | What::Method | What::Path | What::Header(_) | What::RequestPrincipal | What::Claim(_)
                if r.is_none() =>
            {
                deny
            }
            What::RequestPrincipal => match r.and_then(|r| r.token) {
                Some(t) => one(&t.principal),
                None => self.has(|_| false),
            },
            What::Claim(path) => {
                let all = r.and_then(|r| r.token).map(|t| t.claim(path)).unwrap_or_default();
                self.has(|v| all.iter().any(|s| v.text(s)))
            }
            What::Host => {
                let host = r.map_or("", |r| r.authority);
                let name = host.rsplit_once(':').filter(|(_, p)| p.bytes().all(|b| b.is_ascii_digit())).map(|(h, _)| h);
                self.has(|v| v.host(host) || name.is_some_and(|n| v.host(n)))
            }
            What::Method => one(r.map_or("", |r| r.method)),
            What::Path => {
                let Some(r) = r else { return deny };
                match r.bare {
                    None => one(r.path),
                    // However it is read, it is denied; allowed only if it is both ways.
                    Some(b) if deny => one(r.path) || one(b),
                    Some(b) => one(r.path) && one(b),
                }
            }
            What::Header(n) => {
                let Some(r) = r else { return deny };
                // By whichever version of HTTP it has come.
                if *n == http::header::HOST {
                    return one(r.authority);
                }
                let all = r.headers.get_all(n);
                self.has(|v| all.iter().any(|x| v.bytes(x.as_bytes())))
            }
        }
    }

    fn has(&self, f: impl Fn(&Value) -> bool) -> bool {
        (self.values.is_empty() || self.values.iter().any(&f)) && !self.not_values.iter().any(&f)
    }
}

impl Value {
    /// None: it cannot be read.
    fn new(s: &str, what: &What) -> Option<Self> {
        if matches!(what, What::SourceIp | What::DestinationIp) {
            return s.parse().ok().map(Value::Net);
        }
        if matches!(what, What::Path) && s.contains('{') {
            let segment = |s: &str| match s {
                "{*}" => Segment::One,
                "{**}" => Segment::Any,
                s => Segment::Text(s.into()),
            };
            return Some(Value::Template(s.split('/').skip(1).map(segment).collect()));
        }
        let canonical = matches!(what, What::Host).then(|| host_value(s));
        let s = canonical.as_deref().unwrap_or(s);
        Some(match (s, s.strip_suffix('*'), s.strip_prefix('*')) {
            ("*", ..) => Value::Present,
            (_, Some(p), _) => Value::Prefix(p.into()),
            (_, _, Some(p)) => Value::Suffix(p.into()),
            _ => Value::Exact(s.into()),
        })
    }

    fn text(&self, s: &str) -> bool {
        match self {
            Value::Exact(e) => e == s,
            Value::Prefix(p) => s.starts_with(p.as_str()),
            Value::Suffix(x) => s.ends_with(x.as_str()),
            Value::Present => !s.is_empty(),
            Value::Net(_) => false,
            Value::Template(t) => template(t, &s.split('/').skip(1).collect::<Vec<_>>()),
        }
    }

    /// As [`Value::text`], of a header's value, which need not be text.
    fn bytes(&self, b: &[u8]) -> bool {
        match self {
            Value::Exact(e) => e.as_bytes() == b,
            Value::Prefix(p) => b.starts_with(p.as_bytes()),
            Value::Suffix(x) => b.ends_with(x.as_bytes()),
            Value::Present => !b.is_empty(),
            Value::Net(_) | Value::Template(_) => false,
        }
    }

    /// Host names have no case.
    fn host(&self, s: &str) -> bool {
        match self {
            Value::Exact(e) => e.eq_ignore_ascii_case(s),
            Value::Prefix(p) => s.get(..p.len()).is_some_and(|x| x.eq_ignore_ascii_case(p)),
            Value::Suffix(x) => {
                s.len().checked_sub(x.len()).and_then(|n| s.get(n..)).is_some_and(|y| y.eq_ignore_ascii_case(x))
            }
            Value::Present => !s.is_empty(),
            Value::Net(_) | Value::Template(_) => false,
        }
    }

    fn net(&self, ip: IpAddr) -> bool {
        matches!(self, Value::Net(c) if c.contains(ip))
    }
}

/// A value for hosts as authorities are written: without a last dot.
fn host_value(s: &str) -> String {
    match Authority::parse(s.as_bytes()) {
        Ok(a) => a.to_string(),
        // With a wildcard.
        Err(_) => s.strip_suffix('.').unwrap_or(s).to_string(),
    }
}

fn template(t: &[Segment], path: &[&str]) -> bool {
    match (t, path) {
        ([], []) => true,
        ([Segment::Any, rest @ ..], _) => (0..=path.len()).any(|n| template(rest, &path[n..])),
        ([Segment::One, rest @ ..], [p, path @ ..]) => !p.is_empty() && template(rest, path),
        ([Segment::Text(s), rest @ ..], [p, path @ ..]) => s == p && template(rest, path),
        _ => false,
    }
}

/// A path as an application may read it: decoded, without `.` and `..`, with single slashes.
pub fn plain(path: &str) -> Cow<'_, str> {
    if !path.contains(['%', '\\']) && !path.contains("//") && !path.contains("/.") {
        return Cow::Borrowed(path);
    }
    let (b, mut out) = (path.as_bytes(), Vec::with_capacity(path.len()));
    let hex = |c: u8| (c as char).to_digit(16);
    let mut i = 0;
    while i < b.len() {
        match (b[i], b.get(i + 1).copied().and_then(hex), b.get(i + 2).copied().and_then(hex)) {
            (b'%', Some(h), Some(l)) => {
                out.push((h * 16 + l) as u8);
                i += 3;
            }
            (b'\\', ..) => {
                out.push(b'/');
                i += 1;
            }
            (c, ..) => {
                out.push(c);
                i += 1;
            }
        }
    }
    let text = String::from_utf8_lossy(&out).replace('\\', "/");
    let mut parts: Vec<&str> = vec![];
    let slash = text.ends_with('/') || text.ends_with("/.") || text.ends_with("/..");
    for s in text.split('/').filter(|s| !s.is_empty() && *s != ".") {
        if s == ".." {
            parts.pop();
        } else {
            parts.push(s);
        }
    }
    let end = if slash && !parts.is_empty() { "/" } else { "" };
    Cow::Owned(format!("/{}{end}", parts.join("/")))
}

/// A plain path without the parameters of its segments, if it has any.
pub fn bare(path: &str) -> Option<String> {
    let without = |s: &str| s.split(';').next().unwrap_or("").to_string();
    path.contains(';').then(|| {
        let parts: Vec<String> = path.split('/').map(without).collect();
        plain(&parts.join("/")).into_owned()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn test(a: Attribute, name: &str, values: &[&str], not: &[&str]) -> ir::AccessTest {
        let all = |v: &[&str]| v.iter().map(ToString::to_string).collect();
        ir::AccessTest { attribute: a as i32, name: name.into(), values: all(values), not_values: all(not) }
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
        f: impl FnOnce(&Asked<'_>) -> R,
    ) -> R {
        let peer: Identity = "spiffe://cluster.local/ns/app/sa/web".parse().unwrap();
        let mut h = HeaderMap::new();
        for (k, v) in headers {
            h.append(*k, http::HeaderValue::from_bytes(v.as_bytes()).unwrap());
        }
        let path = plain(path);
        let bare = bare(&path);
        let request =
            Request { method, authority: "shop:80", path: &path, bare: bare.as_deref(), headers: &h, token: None };
        let ip = "10.0.0.1".parse().unwrap();
        f(&Asked {
            peer: Some(&peer),
            source: ip,
            destination: ip,
            port: 80,
            sni: None,
            request: http.then_some(request),
        })
    }

    fn allowed(a: &Access, method: &str, path: &str, headers: &[(&'static str, &str)], http: bool) -> bool {
        asked(method, path, headers, http, |asked| a.judge(asked) == Verdict::Allow)
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
            let say = |(name, told): (&str, Told)| match told {
                Told::Matches => format!("{name} matches"),
                Told::DryRun { would, deny } => {
                    assert_eq!(deny, name == "deny");
                    format!("{name} {}", would.result())
                }
            };
            asked("GET", path, &[], true, |asked| {
                (a.judge(asked) == Verdict::Allow, a.told(asked).map(say).collect::<Vec<_>>().join(", "))
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
            (test(A::SourceIp, "", &["10.0.0.0/8"], &["10.0.0.2"]), true),
            (test(A::RemoteIp, "", &["192.168.0.0/16"], &[]), false),
            (test(A::Host, "", &["shop"], &[]), true),
            (test(A::Host, "", &["SHOP."], &[]), true),
            (test(A::Host, "", &["shop.:80"], &[]), true),
            (test(A::Host, "", &["*hop."], &[]), true),
            (test(A::Host, "", &["*.example.com"], &[]), false),
            (test(A::Method, "", &["GET"], &[]), true),
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
            (test(A::RequestPrincipal, "", &["*"], &[]), false),
            (test(A::RequestPrincipal, "", &[], &["*"]), true),
        ] {
            let ask = |a: &Access| allowed(a, "GET", "/a/b/c", &[("x-role", "operator"), ("x-name", "Zoë")], true);
            assert_eq!(ask(&access(AccessAction::Allow, vec![vec![t.clone()]])), holds, "{t:?}");
            assert_eq!(ask(&access(AccessAction::Deny, vec![vec![t.clone()]])), !holds, "{t:?}");
            assert!(ask(&access(AccessAction::Audit, vec![vec![t]])));
        }
    }

    #[test]
    fn what_is_not_understood_is_closed() {
        for t in [
            test(Attribute::Unknown, "", &["x"], &[]),
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
    }
}
