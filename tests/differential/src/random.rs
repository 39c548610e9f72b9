//! Policies and calls by chance, such that they meet: both are made of the same few words, and calls of the values of
//! the policies that they are judged by, or nearly.

use crate::naive::{self, Facts, Request};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

const NAMESPACES: [&str; 4] = [naive::HOME, naive::ROOT, "ap", "other"];
const ACCOUNTS: [&str; 3] = ["web", "we", "batch"];
const DOMAINS: [&str; 2] = ["cluster.local", "other.td"];
const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.1.1", "192.168.7.9", "fd00::1", "fd00:1::1", "11.0.0.1"];
const RANGES: [&str; 8] =
    ["10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/32", "192.168.7.9", "fd00::1", "10.0.0.1/32"];
const PORTS: [&str; 5] = ["80", "443", "8080", "15008", "080"];
const HOSTS: [&str; 7] = ["shop", "SHOP", "shop.", "shop:80", "api.example", "Api.Example:8080", "api.example.:80"];
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "PURGE"];
const PATHS: [&str; 10] = ["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", "/b/a.js", "/c/a/b", "/a/x-y_z~1"];
const TEMPLATES: [&str; 8] = ["/{*}", "/a/{*}", "/{*}/b", "/a/{**}", "/{**}", "/{**}/b", "/{*}/{**}/c", "/a/{*}/c"];
/// What some applications read in another way.
const DISGUISED: [&str; 10] = [
    "/%61",
    "/a%2fb",
    "/a/..%2fb",
    "/b/%2e%2e%2fa",
    "/a//b",
    "/a;x/b",
    "/x;/..%2fa/b",
    "/a\\b",
    "/b/..%5ca",
    "/a/./b/../c",
];
const HEADERS: [&str; 3] = ["x-role", "x-env", "x-none"];
const ROLES: [&str; 5] = ["admin", "adm", "guest", "admin,guest", ""];
const NAMES: [&str; 3] = ["shop", "api.example", "edge.example"];
/// The issuers whose tokens are taken.
pub const ISSUERS: [&str; 2] = ["https://one.example", "two"];
const SUBJECTS: [&str; 3] = ["alice", "bob", "al"];
const CLAIMS: [&str; 5] = ["one", "on", "two", "read", "write"];

/// What is no value of anything: of each attribute that compares text, of ports, of ranges, of accounts, of paths.
const INVALID: [&str; 12] =
    ["", "*x*", "a*b", "**", "10.0.0.0/40", "here", "0", "70000", "+80", "/user/{id}", "/{**}/a/{*}", "a/b/c"];

fn pick<T: Copy>(r: &mut StdRng, all: &[T]) -> Option<T> {
    all.choose(r).copied()
}

fn word(r: &mut StdRng, all: &[&str]) -> String {
    pick(r, all).unwrap_or_default().into()
}

/// A text as it is, or with a wildcard for its beginning or end, or for all of it.
fn pattern(r: &mut StdRng, text: &str) -> String {
    let at = r.random_range(0..=text.chars().count());
    let at = text.char_indices().nth(at).map_or(text.len(), |(i, _)| i);
    match r.random_range(0..6) {
        0 => format!("{}*", &text[..at]),
        1 => format!("*{}", &text[at..]),
        2 if r.random_bool(0.5) => "*".into(),
        _ => text.into(),
    }
}

fn principal(r: &mut StdRng) -> String {
    format!("{}/ns/{}/sa/{}", word(r, &DOMAINS), word(r, &NAMESPACES), word(r, &ACCOUNTS))
}

fn value(r: &mut StdRng, of: &str) -> String {
    // Most of a policy must be understood, or all are closed.
    if r.random_bool(0.01) {
        return word(r, &INVALID);
    }
    let text = match of {
        "principals" | "source.principal" => principal(r),
        "namespaces" | "source.namespace" => word(r, &NAMESPACES),
        "serviceAccounts" | "source.serviceAccount" => {
            let account = word(r, &ACCOUNTS);
            return if r.random_bool(0.5) { account } else { format!("{}/{account}", word(r, &NAMESPACES)) };
        }
        "source.trustDomain" if r.random_bool(0.05) => return "cluster.local/ns/app".into(),
        "source.trustDomain" => return word(r, &DOMAINS),
        "ipBlocks" | "remoteIpBlocks" | "source.ip" | "remote.ip" | "destination.ip" => return word(r, &RANGES),
        "ports" | "destination.port" => return word(r, &PORTS),
        "hosts" => word(r, &HOSTS),
        "methods" => word(r, &METHODS),
        "paths" if r.random_bool(0.3) => return word(r, &TEMPLATES),
        "paths" => {
            let path = word(r, &PATHS);
            return Some(pattern(r, &path)).filter(|p| p.starts_with(['/', '*'])).unwrap_or(path);
        }
        "requestPrincipals" | "request.auth.principal" => format!("{}/{}", word(r, &ISSUERS), word(r, &SUBJECTS)),
        "connection.sni" => word(r, &NAMES),
        "request.headers[host]" | "request.headers[:authority]" => word(r, &HOSTS),
        _ if of.starts_with("request.headers") => word(r, &ROLES[..4]),
        _ => word(r, &CLAIMS),
    };
    pattern(r, &text)
}

fn values(r: &mut StdRng, of: &str) -> Value {
    (0..r.random_range(1..3)).map(|_| Value::String(value(r, of))).collect()
}

/// A source or an operation: some of these fields.
fn item(r: &mut StdRng, fields: &[&str]) -> Value {
    let mut out = Map::new();
    for _ in 0..r.random_range(1..3) {
        let field = word(r, fields);
        let negative = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
        match r.random_range(0..4) {
            0 => out.insert(negative, values(r, &field)),
            1 => {
                out.insert(negative, values(r, &field));
                out.insert(field.clone(), values(r, &field))
            }
            _ => out.insert(field.clone(), values(r, &field)),
        };
    }
    if r.random_bool(0.005) {
        out.clear();
    }
    Value::Object(out)
}

/// Fields of a source.
const SOURCE: [&str; 6] =
    ["principals", "requestPrincipals", "namespaces", "serviceAccounts", "ipBlocks", "remoteIpBlocks"];
/// Fields of an operation.
const OPERATION: [&str; 4] = ["hosts", "ports", "methods", "paths"];
/// Those of both that ztunnel sees.
const CONNECTION: [&str; 5] = ["principals", "namespaces", "serviceAccounts", "ipBlocks", "ports"];

fn rule(r: &mut StdRng, is_plain: bool) -> Value {
    let mut out = Map::new();
    let sees = |fields: &[&'static str]| -> Vec<&'static str> {
        fields.iter().copied().filter(|f| !is_plain || CONNECTION.contains(f)).collect()
    };
    for (list, inner, fields) in [("from", "source", sees(&SOURCE)), ("to", "operation", sees(&OPERATION))] {
        if r.random_bool(0.4) {
            let all = (0..r.random_range(1..3)).map(|_| json!({ inner: item(r, &fields) }));
            out.insert(list.into(), all.collect());
        }
    }
    if r.random_bool(0.4) {
        let keys = if is_plain { &naive::KEYS[..naive::KEYS_OF_CONNECTIONS] } else { &naive::KEYS[..] };
        let all = (0..r.random_range(1..3)).map(|_| {
            let key = if r.random_bool(0.005) { "source.port".into() } else { word(r, keys) };
            let fields: &[&str] = match r.random_range(0..40) {
                0..10 => &["notValues"],
                10..15 => &["values", "notValues"],
                15 => &[],
                _ => &["values"],
            };
            let mut when: Map<String, Value> = fields.iter().map(|f| (f.to_string(), values(r, &key))).collect();
            when.insert("key".into(), key.into());
            Value::Object(when)
        });
        out.insert("when".into(), all.collect());
    }
    if r.random_bool(0.003) {
        out.insert("form".into(), json!([]));
    }
    Value::Object(out)
}

fn target(r: &mut StdRng, is_root: bool) -> Value {
    const API: &str = "gateway.networking.k8s.io";
    let right = |kind: &str| json!({ "group": API, "kind": kind });
    let mut t = match r.random_range(0..100) {
        0..40 => json!({ "group": "", "kind": "Service", "name": naive::SERVICE }),
        40..45 => json!({ "group": "core", "kind": "Service", "name": naive::SERVICE }),
        45..50 => json!({ "group": "", "kind": "Service", "name": "nothing" }),
        50..80 => {
            let mut t = right("Gateway");
            t["name"] = word(r, &[naive::WAYPOINT, naive::GATEWAY]).into();
            t
        }
        n @ 80..96 if is_root || n < 84 => {
            let mut t = right("GatewayClass");
            t["name"] = word(r, &[naive::WAYPOINT_CLASS, naive::GATEWAY_CLASS]).into();
            t
        }
        80..96 => json!({ "kind": "Service", "name": naive::SERVICE }),
        96 => json!({ "group": "", "kind": "Gateway", "name": naive::GATEWAY }),
        97 => json!({ "group": "apps", "kind": "Deployment", "name": naive::SERVICE }),
        98 => json!({ "group": "networking.istio.io", "kind": "ServiceEntry", "name": "nothing" }),
        _ => json!({ "group": "", "kind": "Service", "name": naive::SERVICE, "namespace": "other" }),
    };
    if r.random_bool(0.5) && t["group"] == "" {
        t.as_object_mut().map(|t| t.remove("group"));
    }
    t
}

/// A policy of this name.
pub fn policy(r: &mut StdRng, name: &str) -> Value {
    let namespace = match r.random_range(0..20) {
        0..11 => naive::HOME,
        11..18 => naive::ROOT,
        _ => "other",
    };
    let mut spec = Map::new();
    let action = pick(r, &["ALLOW", "ALLOW", "ALLOW", "", "DENY", "DENY", "DENY", "AUDIT"]).unwrap_or_default();
    let action = if r.random_bool(0.01) { word(r, &["CUSTOM", "PERMIT"]) } else { action.into() };
    if !action.is_empty() {
        spec.insert("action".into(), action.into());
    }
    let is_attached = r.random_bool(0.5);
    if is_attached {
        let all = (0..r.random_range(1..3)).map(|_| target(r, namespace == naive::ROOT));
        spec.insert("targetRefs".into(), all.collect());
    }
    if r.random_bool(if is_attached { 0.01 } else { 0.4 }) {
        let (key, pod, gateway) = naive::LABEL;
        let value = if r.random_bool(0.02) { "sh*".into() } else { word(r, &[pod, pod, gateway, "none"]) };
        let labels = if r.random_bool(0.1) { json!({}) } else { json!({ key: value }) };
        spec.insert("selector".into(), json!({ "matchLabels": labels }));
    }
    // What ztunnel judges is mostly about what it sees.
    let is_plain = !is_attached && r.random_bool(0.8);
    let all = (0..r.random_range(0..8_u32).div_ceil(3)).map(|_| rule(r, is_plain));
    let rules: Value = all.collect();
    if !rules.as_array().is_some_and(Vec::is_empty) || r.random_bool(0.1) {
        spec.insert("rules".into(), rules);
    }
    if r.random_bool(0.003) {
        spec.insert("provider".into(), json!({ "name": "p" }));
    }
    if r.random_bool(0.003) {
        spec.insert("targets".into(), json!([]));
    }
    let mut metadata = json!({ "name": name, "namespace": namespace });
    if r.random_bool(0.15) {
        let marks = pick(r, &["true", "true", "true", "true", "false", "yes"]);
        metadata["annotations"] = json!({ "istio.io/dry-run": marks });
    }
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata,
        "spec": Value::Object(spec),
    })
}

/// What each attribute is compared with in some policies: values of all lists, by the name of the list or key.
pub struct Used(Vec<(String, String)>);

impl Used {
    /// Of these policies.
    pub fn of(policies: &[Value]) -> Self {
        let mut out = vec![];
        for p in policies {
            collect(&p["spec"]["rules"], &mut out);
        }
        Self(out)
    }

    /// A text that one of the values of such a list fits, or nearly; or else one of these words.
    fn near(&self, r: &mut StdRng, lists: &[&str], words: &[&str]) -> String {
        let known: Vec<&str> =
            self.0.iter().filter(|(list, _)| lists.contains(&list.as_str())).map(|(_, v)| v.as_str()).collect();
        let Some(chosen) = pick(r, &known).filter(|_| r.random_bool(0.7)) else { return word(r, words) };
        let filler = pick(r, &["", "x", "a"]).unwrap_or_default();
        let text = chosen.replace("{**}", "b/c").replace("{*}", "b").replace('*', filler);
        if r.random_bool(0.9) {
            return text;
        }
        // A near miss.
        match r.random_range(0..3) {
            0 => format!("{text}x"),
            1 => text.chars().take(text.chars().count().saturating_sub(1)).collect(),
            _ => text.chars().skip(1).collect(),
        }
    }
}

fn collect(v: &Value, out: &mut Vec<(String, String)>) {
    match v {
        Value::Array(all) => all.iter().for_each(|v| collect(v, out)),
        Value::Object(all) => {
            let key = v["key"].as_str();
            for (name, inner) in all {
                let name = name.strip_prefix("not").unwrap_or(name);
                let (first, rest) = name.split_at(name.len().min(1));
                let list = match key {
                    Some(key) => key.to_string(),
                    None => format!("{}{rest}", first.to_lowercase()),
                };
                for text in inner.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    out.push((list.clone(), text.into()));
                }
                collect(inner, out);
            }
        }
        _ => {}
    }
}

/// Claims of some tokens, each of which is used often: to sign them costs more than all the rest.
pub fn claims(r: &mut StdRng) -> Value {
    let list = |r: &mut StdRng| (0..r.random_range(0..3)).map(|_| word(r, &CLAIMS)).collect::<Vec<_>>();
    let mut out = json!({
        "iss": word(r, &ISSUERS), "sub": word(r, &SUBJECTS), "azp": word(r, &CLAIMS), "groups": list(r),
        "scope": format!("{} {}", word(r, &CLAIMS), word(r, &CLAIMS)), "realm": { "roles": list(r) },
    });
    match r.random_range(0..3) {
        0 => out["aud"] = list(r).into(),
        1 => out["aud"] = word(r, &CLAIMS).into(),
        _ => {}
    }
    out
}

/// A call. `tokens`: the claims that there are, and whether anybody verifies them.
pub fn facts(r: &mut StdRng, used: &Used, tokens: &[Value]) -> Facts {
    let identity = r.random_bool(0.85).then(|| {
        let known = used.near(r, &["principals", "source.principal"], &[]);
        let parts: Vec<&str> = known.split('/').collect();
        let good = |s: &&str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        if let [domain, "ns", namespace, "sa", account] = parts[..]
            && [domain, namespace, account].iter().all(good)
            && r.random_bool(0.5)
        {
            return [domain, namespace, account].map(String::from);
        }
        let near = |r: &mut StdRng, lists: &[&str], words: &[&str]| {
            Some(used.near(r, lists, words)).filter(|s| good(&s.as_str())).unwrap_or_else(|| word(r, words))
        };
        let domain = near(r, &["source.trustDomain"], &DOMAINS);
        let namespace = near(r, &["namespaces", "source.namespace"], &NAMESPACES);
        let accounts = used.near(r, &["serviceAccounts", "source.serviceAccount"], &[]);
        let account = accounts.rsplit('/').next().filter(good).map_or_else(|| word(r, &ACCOUNTS), String::from);
        [domain, namespace, account]
    });
    let address = |r: &mut StdRng, lists: &[&str]| {
        let range = used.near(r, lists, &ADDRESSES);
        let text = range.split('/').next().unwrap_or_default().parse();
        text.or_else(|_| word(r, &ADDRESSES).parse()).unwrap_or(std::net::Ipv4Addr::LOCALHOST.into())
    };
    let port = used.near(r, &["ports", "destination.port"], &PORTS[..4]).parse().ok().filter(|p| *p != 0);
    let request = r.random_bool(0.9).then(|| request(r, used, tokens));
    Facts {
        identity,
        source: address(r, &["ipBlocks", "remoteIpBlocks", "source.ip", "remote.ip"]),
        destination: address(r, &["destination.ip"]),
        port: port.unwrap_or(80),
        sni: r.random_bool(0.5).then(|| used.near(r, &["connection.sni"], &NAMES)),
        request,
    }
}

fn request(r: &mut StdRng, used: &Used, tokens: &[Value]) -> Request {
    let path = if r.random_bool(0.15) {
        word(r, &DISGUISED)
    } else {
        let path = used.near(r, &["paths"], &PATHS);
        let plain = is_plain(&path) && path.starts_with('/');
        if plain { path } else { word(r, &PATHS) }
    };
    let token = |b: u8| b.is_ascii_uppercase();
    let method = used.near(r, &["methods"], &METHODS);
    let method = Some(method).filter(|m| !m.is_empty() && m.bytes().all(token)).unwrap_or_else(|| "GET".into());
    let host = used.near(r, &["hosts", "request.headers[host]", "request.headers[:authority]"], &HOSTS);
    let host = if is_host(&host) { host } else { word(r, &HOSTS) };
    let mut headers = vec![];
    for name in HEADERS {
        let key = format!("request.headers[{name}]");
        for _ in 0..pick(r, &[0, 1, 1, 2]).unwrap_or(0) {
            let value = used.near(r, &[&key, "request.headers[X-Env]"], &ROLES);
            headers.push((name.to_string(), value));
        }
    }
    let claims = pick(r, &(0..tokens.len()).collect::<Vec<_>>()).filter(|_| r.random_bool(0.5));
    Request { method, host, path, headers, claims: claims.map(|i| tokens[i].clone()) }
}

/// A host that every server takes for one.
fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let name = name.strip_suffix('.').unwrap_or(name);
    name.split('.').all(label) && port.is_none_or(|p| !p.starts_with('0') && p.parse().is_ok_and(|p: u16| p != 0))
}

/// A path that nobody reads in another way than it is written.
pub fn is_plain(path: &str) -> bool {
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    path.bytes().all(usual) && !path.contains("//") && !path.split('/').any(|s| s == "." || s == "..")
}
