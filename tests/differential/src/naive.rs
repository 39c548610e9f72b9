//! AuthorizationPolicies, evaluated by the sentences of Istio's documentation (reference of security.istio.io/v1, and
//! for ztunnel the page "Layer 4 policies" of ambient mode), and of docs/routes.md and docs/kubernetes.md where Karst
//! is stricter. Slow and plain: each request reads the policies anew, as JSON.

use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr};

/// The namespace whose policies are for all.
pub const ROOT: &str = "istio-system";
/// The namespace of the pod, the service and the gateway that are called.
pub const HOME: &str = "app";
/// The Service.
pub const SERVICE: &str = "shop";
/// The waypoint that it is bound to.
pub const WAYPOINT: &str = "w";
/// The waypoint's class.
pub const WAYPOINT_CLASS: &str = "istio-waypoint";
/// The gateway.
pub const GATEWAY: &str = "edge";
/// The gateway's class.
pub const GATEWAY_CLASS: &str = "istio";
/// The label of pods that selectors look at; the pod's and the gateway's values of it.
pub const LABEL: (&str, &str, &str) = ("app", "shop", "edge");

/// Where policies are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the pod, by ztunnel: connections.
    Pod,
    /// For the service, by its waypoint.
    Service,
    /// By the gateway.
    Gateway,
}

/// Who calls what.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Trust domain, namespace, service account.
    pub identity: Option<[String; 3]>,
    /// Where the connection comes from.
    pub source: IpAddr,
    /// What is called.
    pub destination: IpAddr,
    /// At which port.
    pub port: u16,
    /// The name in the hello of TLS. Empty: it has none. None: no hello was read.
    pub sni: Option<String>,
    /// None: bytes.
    pub request: Option<Request>,
}

/// What is said by a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The host, as it is sent.
    pub host: String,
    /// The path, as it is sent.
    pub path: String,
    /// Headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The claims of its token, if it has one and somebody verifies it.
    pub claims: Option<Value>,
}

/// What comes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// It goes on.
    pub is_allowed: bool,
    /// What policies say that only tell: `namespace/name`, and what.
    pub told: BTreeSet<(String, &'static str)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
    Audit,
}

/// A policy as it is in force.
struct Policy {
    name: String,
    action: Action,
    is_dry_run: bool,
    rules: Vec<Rule>,
}

/// All of its clauses: `from`, `to`, each of `when`. Of a clause any item.
type Rule = Vec<Vec<Vec<Condition>>>;

struct Condition {
    attribute: Attribute,
    values: Vec<String>,
    not_values: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Port,
    Sni,
    Host,
    Method,
    Path,
    Header(String),
    RequestPrincipal,
    Claim(Vec<String>),
}

/// The judgement on a call whose application reads the path so.
pub fn judge(policies: &[Value], facts: &Facts, place: Place, path: &str) -> Judgement {
    let all: Vec<Policy> = policies.iter().filter(|p| is_for(p, place)).map(read).collect();
    let matching = |p: &Policy| p.rules.iter().any(|r| rule_matches(r, p.action, facts, place, path));
    let in_force = |a: Action| all.iter().filter(move |p| p.action == a && !p.is_dry_run);
    let is_denied = in_force(Action::Deny).any(matching);
    let needs_one = in_force(Action::Allow).next().is_some();
    let is_allowed = !is_denied && (!needs_one || in_force(Action::Allow).any(matching));
    let some_allows = all.iter().any(|p| p.action == Action::Allow && matching(p));
    let mut told = BTreeSet::new();
    for p in &all {
        let said = match (p.action, matching(p)) {
            // ztunnel knows no AUDIT.
            (Action::Audit, true) if place != Place::Pod => "matches",
            (Action::Audit, _) => continue,
            _ if !p.is_dry_run => continue,
            (Action::Deny, true) => "denied",
            (Action::Deny, false) => continue,
            (Action::Allow, true) => "allowed",
            (Action::Allow, false) if some_allows => continue,
            (Action::Allow, false) => "denied",
        };
        told.insert((p.name.clone(), said));
    }
    Judgement { is_allowed, told }
}

fn text<'a>(v: &'a Value, pointer: &str) -> &'a str {
    v.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(v: &'a Value, field: &str) -> &'a [Value] {
    v[field].as_array().map_or(&[], Vec::as_slice)
}

fn texts(v: &Value, field: &str) -> Vec<String> {
    items(v, field).iter().filter_map(Value::as_str).map(String::from).collect()
}

/// Is the policy for what is called there?
fn is_for(policy: &Value, place: Place) -> bool {
    let namespace = text(policy, "/metadata/namespace");
    let is_root = namespace == ROOT;
    let is_attached = !items(&policy["spec"], "targetRefs").is_empty();
    let label = if place == Place::Gateway { LABEL.2 } else { LABEL.1 };
    // A field of the spec that nobody knows closes what is selected.
    let selector = &policy["spec"]["selector"]["matchLabels"];
    let selects = selector.as_object().is_none_or(|all| all.iter().all(|(k, v)| k == LABEL.0 && v == label));
    let here = (namespace == HOME || is_root) && selects;
    match place {
        // One that is attached is not its business, unless nobody knows what it is attached to: then it closes all of
        // what it may have meant.
        Place::Pod => here && (!is_attached || !targets_are_known(policy)),
        Place::Gateway if !is_attached => here,
        Place::Gateway => items(&policy["spec"], "targetRefs").iter().any(|t| match text(t, "/kind") {
            "Gateway" => namespace == HOME && text(t, "/name") == GATEWAY,
            // Only who runs the mesh decides about gateways of others.
            "GatewayClass" => is_root && text(t, "/name") == GATEWAY_CLASS,
            _ => false,
        }),
        Place::Service => items(&policy["spec"], "targetRefs").iter().any(|t| match text(t, "/kind") {
            "Service" => namespace == HOME && text(t, "/name") == SERVICE,
            "Gateway" => namespace == HOME && text(t, "/name") == WAYPOINT,
            "GatewayClass" => is_root && text(t, "/name") == WAYPOINT_CLASS,
            _ => false,
        }),
    }
}

/// Are its targets such as it may have?
fn targets_are_known(policy: &Value) -> bool {
    let is_root = text(policy, "/metadata/namespace") == ROOT;
    items(&policy["spec"], "targetRefs").iter().all(|t| {
        let group = text(t, "/group");
        let fits = match text(t, "/kind") {
            "Service" => group.is_empty() || group == "core",
            "ServiceEntry" => group == "networking.istio.io",
            "Gateway" => group == "gateway.networking.k8s.io",
            "GatewayClass" => group == "gateway.networking.k8s.io" && is_root,
            _ => false,
        };
        fits && text(t, "/namespace").is_empty()
    })
}

/// A policy as it is in force. One that cannot be understood closes: an ALLOW allows nobody, an AUDIT tells nothing,
/// any other denies everything.
fn read(policy: &Value) -> Policy {
    let spec = &policy["spec"];
    let action = match spec["action"].as_str() {
        None | Some("ALLOW") => Action::Allow,
        Some("AUDIT") => Action::Audit,
        Some(_) => Action::Deny,
    };
    let (annotation, is_clear) = match policy["metadata"]["annotations"]["istio.io/dry-run"].as_str() {
        Some("true") => (true, true),
        None | Some("false") => (false, true),
        Some(_) => (false, false),
    };
    let known = ["selector", "targetRefs", "action", "rules", "provider"];
    let wildcard = |(k, v): (&String, &Value)| k.contains('*') || v.as_str().is_some_and(|v| v.contains('*'));
    let labels = spec["selector"]["matchLabels"].as_object();
    let is_understood = [
        is_clear,
        has_only(spec, &known),
        matches!(spec["action"].as_str(), None | Some("ALLOW" | "DENY" | "AUDIT" | "CUSTOM")),
        // (There is no mesh configuration, and so no provider: what is to be asked about is denied.)
        (spec["action"] == "CUSTOM") != text(spec, "/provider/name").is_empty(),
        spec.get("selector").is_none() || items(spec, "targetRefs").is_empty(),
        targets_are_known(policy),
        !labels.is_some_and(|all| all.iter().any(wildcard)),
        action != Action::Deny || !items(spec, "rules").is_empty(),
    ];
    let namespace = text(policy, "/metadata/namespace");
    let written = (!is_understood.contains(&false)).then(|| {
        let all = items(spec, "rules").iter().map(|r| rule(r, namespace, action == Action::Allow));
        // None: nobody understands it; of those that are, one that matches nothing is none.
        all.collect::<Option<Vec<Option<Rule>>>>().map(|all| all.into_iter().flatten().collect::<Vec<_>>())
    });
    let rules = written.flatten().unwrap_or_else(|| if action == Action::Deny { vec![vec![]] } else { vec![] });
    Policy { name: format!("{namespace}/{}", text(policy, "/metadata/name")), action, is_dry_run: annotation, rules }
}

fn has_only(v: &Value, fields: &[&str]) -> bool {
    v.as_object().is_none_or(|all| all.keys().all(|k| fields.contains(&k.as_str())))
}

/// The fields of a source, and those of an operation.
fn fields(of: &str) -> Vec<(&'static str, &'static str, Attribute)> {
    match of {
        "source" => vec![
            ("principals", "notPrincipals", Attribute::Principal),
            ("requestPrincipals", "notRequestPrincipals", Attribute::RequestPrincipal),
            ("namespaces", "notNamespaces", Attribute::Namespace),
            ("serviceAccounts", "notServiceAccounts", Attribute::ServiceAccount),
            ("ipBlocks", "notIpBlocks", Attribute::SourceIp),
            ("remoteIpBlocks", "notRemoteIpBlocks", Attribute::RemoteIp),
        ],
        _ => vec![
            ("hosts", "notHosts", Attribute::Host),
            ("ports", "notPorts", Attribute::Port),
            ("methods", "notMethods", Attribute::Method),
            ("paths", "notPaths", Attribute::Path),
        ],
    }
}

/// Every key of conditions, first those that ztunnel sees; of headers and claims some.
pub const KEYS: [&str; 21] = [
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
    "remote.ip",
    "connection.sni",
    "request.headers[x-role]",
    "request.headers[X-Env]",
    "request.headers[x-none]",
    "request.headers[host]",
    "request.headers[:authority]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[groups]",
    "request.auth.claims[scope]",
    "request.auth.claims[realm][roles]",
    "request.auth.claims[nothing]",
];
/// How many of them ztunnel sees.
pub const KEYS_OF_CONNECTIONS: usize = 7;

fn key(key: &str) -> Option<Attribute> {
    let named = |prefix: &str| key.strip_prefix(prefix)?.strip_suffix(']').filter(|n| !n.is_empty());
    Some(match key {
        "source.ip" => Attribute::SourceIp,
        "source.namespace" => Attribute::Namespace,
        "source.principal" => Attribute::Principal,
        "source.serviceAccount" => Attribute::ServiceAccount,
        "source.trustDomain" => Attribute::TrustDomain,
        "remote.ip" => Attribute::RemoteIp,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::Port,
        "connection.sni" => Attribute::Sni,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::Claim(vec!["aud".into()]),
        "request.auth.presenter" => Attribute::Claim(vec!["azp".into()]),
        _ if named("request.headers[").is_some() => match named("request.headers[")?.to_lowercase().as_str() {
            "host" | ":authority" => Attribute::Host,
            n if n.contains([' ', ':', '/']) => return None,
            n => Attribute::Header(n.into()),
        },
        _ => Attribute::Claim(named("request.auth.claims[")?.split("][").map(String::from).collect()),
    })
}

/// None: it cannot be understood. Some(None): it matches nothing. Of an ALLOW (`grants`) a value that can match nothing
/// may be left out; what has lost all its values matches nothing, whatever else it says.
fn rule(rule: &Value, namespace: &str, grants: bool) -> Option<Option<Rule>> {
    if !has_only(rule, &["from", "to", "when"]) {
        return None;
    }
    let mut out: Vec<Vec<Vec<(Condition, bool)>>> = vec![];
    for (list, of) in [("from", "source"), ("to", "operation")] {
        if items(rule, list).is_empty() {
            continue;
        }
        let mut clause = vec![];
        for item in items(rule, list) {
            let inner = item.get(of).unwrap_or(&Value::Null);
            let all = fields(of);
            let known: Vec<&str> = all.iter().flat_map(|(yes, no, _)| [*yes, *no]).collect();
            if !has_only(item, &[of]) || !has_only(inner, &known) {
                return None;
            }
            let one = |(yes, no, attribute)| condition(inner, yes, no, attribute, namespace, grants);
            clause.push(all.into_iter().map(one).collect::<Vec<_>>());
        }
        // What can match nothing is not there.
        clause.retain(|item| item.iter().all(|(_, can_match)| *can_match));
        if clause.is_empty() {
            return Some(None);
        }
        out.push(clause);
    }
    let mut is_unknown = false;
    let mut can_match = true;
    for w in items(rule, "when") {
        if !has_only(w, &["key", "values", "notValues"]) {
            return None;
        }
        let Some(attribute) = key(text(w, "/key")) else {
            is_unknown = true;
            continue;
        };
        let c = condition(w, "values", "notValues", attribute, namespace, grants);
        can_match &= c.1;
        out.push(vec![vec![c]]);
    }
    if !can_match {
        return Some(None);
    }
    let mut whole: Rule = vec![];
    for clause in out {
        let mut items = vec![];
        for item in clause {
            let item: Vec<Condition> = item.into_iter().map(|(c, _)| c).filter(Condition::says_something).collect();
            let has = |a: Attribute| item.iter().any(|c| c.attribute == a && !c.values.is_empty());
            let both = has(Attribute::ServiceAccount) && (has(Attribute::Principal) || has(Attribute::Namespace));
            if item.is_empty() || both || !item.iter().all(Condition::is_valid) {
                return None;
            }
            items.push(item);
        }
        whole.push(items);
    }
    (!is_unknown).then_some(Some(whole))
}

/// And whether it can match anything.
fn condition(
    of: &Value,
    yes: &str,
    no: &str,
    attribute: Attribute,
    namespace: &str,
    grants: bool,
) -> (Condition, bool) {
    let (mut values, not_values) = (texts(of, yes), texts(of, no));
    let had = !values.is_empty();
    if grants {
        values.retain(|v| is_valid(&attribute, v));
    }
    let can_match = !had || !values.is_empty();
    // An account without a namespace is one of the policy's.
    let whole = |v: String| match attribute {
        Attribute::ServiceAccount if !v.contains('/') && !v.is_empty() => format!("{namespace}/{v}"),
        _ => v,
    };
    let values = values.into_iter().map(whole).collect();
    let not_values = not_values.into_iter().map(whole).collect();
    (Condition { attribute, values, not_values }, can_match)
}

impl Condition {
    fn says_something(&self) -> bool {
        !self.values.is_empty() || !self.not_values.is_empty()
    }

    fn is_valid(&self) -> bool {
        self.values.iter().chain(&self.not_values).all(|v| is_valid(&self.attribute, v))
    }
}

/// Can the value be compared?
fn is_valid(attribute: &Attribute, value: &str) -> bool {
    let inner = value.strip_prefix('*').or_else(|| value.strip_suffix('*')).unwrap_or(value);
    let one_star = !inner.contains('*');
    if value.is_empty() {
        return false;
    }
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => range(value).is_some(),
        Attribute::Port => value.bytes().all(|b| b.is_ascii_digit()) && value.parse().is_ok_and(|p: u16| p != 0),
        Attribute::ServiceAccount => {
            let parts: Vec<&str> = value.split('/').collect();
            !value.contains('*') && parts.len() <= 2 && parts.iter().all(|p| !p.is_empty())
        }
        Attribute::TrustDomain => !value.contains(['*', '/']),
        Attribute::Path if !value.starts_with(['/', '*']) || value.contains(['?', '#']) => false,
        Attribute::Path if value.contains(['{', '}']) => {
            let segments: Vec<&str> = value.split('/').collect();
            let is_operator = |s: &&str| matches!(*s, "{*}" | "{**}");
            let literal = |s: &&str| !s.contains(['{', '}', '*', ' ']);
            let last = segments.iter().rposition(is_operator);
            let any = segments.iter().position(|s| *s == "{**}");
            value.starts_with('/')
                && segments.iter().all(|s| is_operator(s) || literal(s))
                && (any.is_none() || any == last)
        }
        _ => one_star,
    }
}

/// A range: its bits.
fn range(value: &str) -> Option<(bool, Vec<bool>)> {
    let (ip, length) = match value.split_once('/') {
        Some((ip, length)) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            (ip, length.parse::<usize>().ok()?.into())
        }
        Some(_) => return None,
        None => (value, None),
    };
    let (is_v4, mut all) = bits(ip.parse().ok()?);
    let length = length.unwrap_or(all.len());
    if length > all.len() {
        return None;
    }
    all.truncate(length);
    Some((is_v4, all))
}

fn bits(ip: IpAddr) -> (bool, Vec<bool>) {
    let bytes = match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    (ip.is_ipv4(), bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1 == 1)).collect())
}

fn rule_matches(rule: &Rule, action: Action, facts: &Facts, place: Place, path: &str) -> bool {
    let hidden = |c: &Condition| seen(&c.attribute, facts, place, path).is_none();
    // A rule that needs what ztunnel cannot see allows nothing there.
    if place == Place::Pod && action != Action::Deny && rule.iter().flatten().flatten().any(hidden) {
        return false;
    }
    rule.iter().all(|clause| {
        clause.iter().any(|item| {
            item.iter().all(|c| {
                // What cannot be seen may be anything: a DENY takes it for a match, and nobody else does.
                let Some(seen) = seen(&c.attribute, facts, place, path) else { return action == Action::Deny };
                let hit = |v: &String| seen.iter().any(|s| value_matches(&c.attribute, v, s));
                (c.values.is_empty() || c.values.iter().any(hit)) && !c.not_values.iter().any(hit)
            })
        })
    })
}

/// What there is of an attribute; none: nothing. None: it cannot be seen.
fn seen(attribute: &Attribute, facts: &Facts, place: Place, path: &str) -> Option<Vec<String>> {
    let own = |f: &dyn Fn(&[String; 3]) -> String| Some(facts.identity.iter().map(f).collect());
    let request = facts.request.as_ref().filter(|_| place != Place::Pod);
    match attribute {
        Attribute::Principal => own(&|[domain, namespace, account]| format!("{domain}/ns/{namespace}/sa/{account}")),
        Attribute::Namespace => own(&|[_, namespace, _]| namespace.clone()),
        Attribute::ServiceAccount => own(&|[_, namespace, account]| format!("{namespace}/{account}")),
        Attribute::TrustDomain => own(&|[domain, ..]| domain.clone()),
        Attribute::SourceIp => Some(vec![facts.source.to_string()]),
        Attribute::DestinationIp => Some(vec![facts.destination.to_string()]),
        Attribute::Port => Some(vec![facts.port.to_string()]),
        // No proxy before it is trusted to name another client.
        Attribute::RemoteIp => (place != Place::Pod).then(|| vec![facts.source.to_string()]),
        Attribute::Sni if place == Place::Pod => None,
        // Without a hello no request would have come by TLS.
        Attribute::Sni => match &facts.sni {
            Some(name) => Some(vec![name.clone()]),
            None => request.map(|_| vec![]),
        },
        Attribute::Method => Some(vec![request?.method.clone()]),
        Attribute::Path => request.map(|_| vec![path.to_string()]),
        // With the port and without.
        Attribute::Host => {
            let host = host(&request?.host);
            let name = host.rsplit_once(':').map_or(host.clone(), |(name, _)| name.into());
            Some(vec![host, name])
        }
        Attribute::Header(name) => {
            let all: Vec<&str> =
                request?.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect();
            Some(if all.is_empty() { vec![] } else { vec![all.join(",")] })
        }
        Attribute::RequestPrincipal => {
            let claims = request?.claims.as_ref();
            Some(claims.map(|c| format!("{}/{}", text(c, "/iss"), text(c, "/sub"))).into_iter().collect())
        }
        Attribute::Claim(names) => {
            let claims = request?.claims.as_ref();
            let found = claims.and_then(|c| names.iter().try_fold(c, |c, name| c.get(name)));
            let spaced = names.len() == 1 && (names[0] == "scope" || names[0] == "permission");
            Some(match found {
                Some(Value::String(s)) if spaced => s.split(' ').map(String::from).collect(),
                Some(Value::String(s)) => vec![s.clone()],
                Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(String::from).collect(),
                _ => vec![],
            })
        }
    }
}

/// A host as it is compared: names have no case, and no last dot.
fn host(sent: &str) -> String {
    let (name, port) = sent.split_once(':').map_or((sent, None), |(name, port)| (name, Some(port)));
    let name = name.trim_end_matches('.').to_lowercase();
    port.map_or(name.clone(), |p| format!("{name}:{p}"))
}

fn value_matches(attribute: &Attribute, value: &str, seen: &str) -> bool {
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            let (Some((v4, range)), Ok(ip)) = (range(value), seen.parse()) else { return false };
            let (is_v4, all) = bits(ip);
            v4 == is_v4 && all.starts_with(&range)
        }
        Attribute::Port => value.trim_start_matches('0') == seen,
        Attribute::Host | Attribute::Sni if value != "*" => {
            let value = value.to_lowercase();
            let value = if *attribute == Attribute::Host { host(&value) } else { value };
            like(&value, &seen.to_lowercase())
        }
        Attribute::Path if value != "*" => like(value, seen),
        // Something, and not nothing.
        _ if value == "*" => !seen.is_empty(),
        _ => like(value, seen),
    }
}

/// Signs of wildcards stand for whatever makes the rest fit.
fn like(value: &str, seen: &str) -> bool {
    if let Some(rest) = value.strip_prefix("{**}").or_else(|| value.strip_prefix('*')) {
        return seen.char_indices().map(|(i, _)| i).chain([seen.len()]).any(|i| like(rest, &seen[i..]));
    }
    if let Some(rest) = value.strip_prefix("{*}") {
        let ends = seen.char_indices().map(|(i, _)| i).chain([seen.len()]).skip(1);
        return ends.take_while(|i| !seen[..*i].contains('/')).any(|i| like(rest, &seen[i..]));
    }
    match value.chars().next() {
        None => seen.is_empty(),
        Some(c) => seen.strip_prefix(c).is_some_and(|seen| like(&value[c.len_utf8()..], seen)),
    }
}
