//! The compiled routes of a service. Nothing of a request is parsed twice, and its query only if a candidate asks for it.

use crate::route::{
    compression::Compression,
    error::CompileError,
    index::Index,
    input::{RouteInput, TcpRouteInput},
    limit::{Limit, Limits},
    rule::{Fault, Rule, compression},
    tcp::TcpRule,
    wire::{WireRoutes, WireTable},
};
use bytes::Bytes;
use karst_api::route as ir;
use prost::Message;
use std::{collections::BTreeMap, sync::Arc};

/// What a rule answers that cannot be executed.
const FAILURE: u32 = 500;

fn failure() -> ir::DirectResponse {
    ir::DirectResponse { status: FAILURE, ..Default::default() }
}

/// A rule for the same requests, which go nowhere.
fn closed(rule: &ir::HttpRule) -> ir::HttpRule {
    let (origin, ports) = (rule.origin.clone(), rule.ports.clone());
    ir::HttpRule { origin, ports, r#match: rule.r#match.clone(), response: Some(failure()), ..Default::default() }
}

/// The routes of one service, or of one virtual host, of which a gateway may have thousands.
#[derive(Debug, Default)]
pub struct Routes {
    /// By namespace, in order.
    consumers: Box<[(String, Table)]>,
    producer: Table,
    /// For every request.
    pub limits: Box<[Arc<Limit>]>,
    /// For requests whose rule has none of its own.
    pub fault: Option<Box<Fault>>,
    /// Largest body of a request; 0: they say nothing of it.
    pub max_body_bytes: u64,
    /// Of answers to requests whose rule has none of its own.
    pub compression: Option<Box<Compression>>,
    /// None: there are no limits.
    buckets: Option<Box<Limits>>,
}

impl Routes {
    /// Compiles a `karst.route.v1.Routes`, one rule after the other: none but the one that is compiled is decoded. What `old` has
    /// counted goes on where the limit is the same.
    ///
    /// # Errors
    /// It is no such message, or says what cannot be executed; and of which rule that is.
    pub fn decode(bytes: &[u8], old: Option<&Self>) -> Result<Self, CompileError> {
        let routes = WireRoutes::decode(Bytes::copy_from_slice(bytes))?;
        let old = old.and_then(|o| o.buckets.as_deref());
        let mut buckets = Limits::default();
        let mut limit = |l: &ir::RateLimit| buckets.take_over(old, l);
        let mut table =
            |t: Option<WireTable>| t.map(|t| Table::compile(&t, &mut limit)).transpose().map(Option::unwrap_or_default);
        let producer = table(routes.producer)?;
        let consumers = routes.consumers.into_iter().map(|c| Ok((c.namespace, table(c.table)?)));
        let consumers = consumers.collect::<Result<BTreeMap<_, _>, CompileError>>()?;
        let limits = routes.limits.iter().map(&mut limit).collect();
        Ok(Self {
            consumers: consumers.into_iter().collect(),
            producer,
            limits,
            fault: Fault::new(routes.fault),
            max_body_bytes: routes.max_body_bytes,
            compression: compression(routes.compression.as_ref()),
            buckets: (!buckets.is_empty()).then(|| Box::new(buckets)),
        })
    }

    /// The same of what is not encoded.
    #[cfg(test)]
    pub fn new(routes: &ir::Routes, old: Option<&Self>) -> Result<Self, CompileError> {
        Self::decode(&routes.encode_to_vec(), old)
    }

    /// The same routes, of which each rule that does what cannot be executed answers 500 to the requests that it is for. (One whose
    /// conditions cannot be read stays as it is: whom it is for is not known.)
    pub fn executable(routes: &ir::Routes) -> ir::Routes {
        let mut out = routes.clone();
        let consumers = out.consumers.iter_mut().filter_map(|c| c.table.as_mut());
        for rule in out.producer.iter_mut().chain(consumers).flat_map(|table| &mut table.http) {
            if Rule::new(rule, &mut |l: &ir::RateLimit| Limits::default().take_over(None, l)).is_err() {
                *rule = closed(rule);
            }
        }
        out
    }

    /// Every request is answered 500, and no connection goes on.
    pub fn closed() -> Self {
        let origin = "routes that are not understood".to_string();
        let rule = Rule { origin: origin.clone(), response: Some(Box::new(failure())), ..Rule::default() };
        let destination = ir::Destination { weight: 1, refuse_status: FAILURE, ..Default::default() };
        let tcp = TcpRule::new(&ir::TcpRule { origin, destinations: vec![destination], ..Default::default() });
        let rest = Index::new(std::iter::once(Arc::new(rule)));
        Self { producer: Table { rest, tcp: Box::new([tcp]), ..Table::default() }, ..Self::default() }
    }

    /// For the admin page: where the rules come from, in order.
    pub fn describe(&self) -> serde_json::Value {
        let of = |t: &Table| {
            let mut all: Vec<(String, Vec<String>)> =
                t.ports.iter().map(|(p, x)| (p.to_string(), x.origins())).collect();
            all.sort();
            all.push(("*".into(), t.rest.origins()));
            serde_json::Value::from(all.into_iter().map(|(p, o)| (p, o.into())).collect::<serde_json::Map<_, _>>())
        };
        let consumers: serde_json::Map<_, _> = self.consumers.iter().map(|(n, t)| (n.clone(), of(t))).collect();
        serde_json::json!({ "producer": of(&self.producer), "consumers": consumers })
    }

    /// All tables: that of callers whose namespace has none of its own (no name), and those of namespaces, by name.
    pub fn tables(&self) -> impl Iterator<Item = (Option<&str>, &Table)> {
        let consumers = self.consumers.iter().map(|(name, table)| (Some(name.as_str()), table));
        [(None, &self.producer)].into_iter().chain(consumers)
    }

    /// The table for callers of a namespace.
    pub fn table(&self, namespace: &str) -> &Table {
        match self.consumers.binary_search_by(|(name, _)| name.as_str().cmp(namespace)) {
            Ok(at) => &self.consumers[at].1,
            Err(_) => &self.producer,
        }
    }
}

/// The rules for one group of callers.
#[derive(Debug, Default)]
pub struct Table {
    /// Ports that rules name, in order.
    ports: Box<[(u16, Index)]>,
    /// For every other port.
    rest: Index,
    tcp: Box<[TcpRule]>,
}

/// What the look-up says.
pub enum RouteMatch<'a> {
    /// This rule.
    Rule(&'a Arc<Rule>),
    /// There are rules, and none matches.
    Nothing,
    /// There are no rules: to the service that was called.
    Default,
}

impl Table {
    /// The rules for requests to a port, in the order in which they are tried.
    pub fn rules(&self, port: u16) -> &[Arc<Rule>] {
        &self.index(port).rules
    }

    fn index(&self, port: u16) -> &Index {
        match self.ports.binary_search_by_key(&port, |(own, _)| *own) {
            Ok(at) => &self.ports[at].1,
            Err(_) => &self.rest,
        }
    }

    /// The rules for connections, in the order in which they are tried.
    pub fn tcp_rules(&self) -> &[TcpRule] {
        &self.tcp
    }

    #[cfg(test)]
    fn new(table: &ir::Table, limit: &mut impl FnMut(&ir::RateLimit) -> Arc<Limit>) -> Result<Self, CompileError> {
        Self::compile(&WireTable::decode(Bytes::from(table.encode_to_vec()))?, limit)
    }

    fn compile(table: &WireTable, limit: &mut impl FnMut(&ir::RateLimit) -> Arc<Limit>) -> Result<Self, CompileError> {
        let mut rules = Vec::with_capacity(table.http.len());
        for rule in &table.http {
            let rule = ir::HttpRule::decode(rule.clone())?;
            let compiled = Rule::new(&rule, limit)
                .map_err(|e| CompileError::Rule { origin: rule.origin.clone(), error: e.into() })?;
            rules.push((rule.ports, Arc::new(compiled)));
        }
        let ports: std::collections::BTreeSet<u32> = rules.iter().flat_map(|(p, _)| p.iter().copied()).collect();
        let of = |port: Option<u32>| {
            let fits = |p: &[u32]| p.is_empty() || port.is_some_and(|x| p.contains(&x));
            Index::new(rules.iter().filter(|(p, _)| fits(p)).map(|(_, r)| r.clone()))
        };
        let tcp = table.tcp.iter().map(TcpRule::new).collect();
        Ok(Self {
            ports: ports.iter().filter_map(|p| Some((u16::try_from(*p).ok()?, of(Some(*p))))).collect(),
            rest: of(None),
            tcp,
        })
    }

    /// The rule for a request to a port of the service.
    pub fn find(&self, port: u16, input: &RouteInput<'_>) -> RouteMatch<'_> {
        let index = self.index(port);
        if index.rules.is_empty() {
            return RouteMatch::Default;
        }
        index.find(input).map_or(RouteMatch::Nothing, RouteMatch::Rule)
    }

    /// The rule for a connection; None: to the service that was called.
    pub fn find_tcp(&self, input: &TcpRouteInput<'_>) -> Option<&TcpRule> {
        self.tcp.iter().find(|rule| rule.matches(input))
    }

    /// The rules for a port that come before the one that matches (all, if none does), and of each the first condition that
    /// does not hold.
    pub fn passed_over(&self, port: u16, input: &RouteInput<'_>) -> Vec<(String, String)> {
        let before = self.rules(port).iter().take_while(|rule| !rule.matches(input, true));
        before.map(|rule| (rule.origin.clone(), rule.failing(input))).collect()
    }

    /// The same of rules for connections.
    pub fn passed_over_tcp(&self, input: &TcpRouteInput<'_>) -> Vec<(String, String)> {
        let chosen = self.find_tcp(input);
        let before = self.tcp.iter().take_while(|rule| !chosen.is_some_and(|found| std::ptr::eq(found, *rule)));
        before.map(|rule| (rule.origin.clone(), rule.failing(input))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
    use super::*;
    use crate::route::{destination::Destination, index::FEW, matcher::StringMatcher};
    use http::{HeaderMap, HeaderName, HeaderValue};
    use ir::text::Kind;

    fn fresh(l: &ir::RateLimit) -> Arc<Limit> {
        Limits::default().take_over(None, l)
    }

    fn rule(origin: &str, path: Option<Kind>, f: impl FnOnce(&mut ir::HttpRule)) -> ir::HttpRule {
        let mut r = ir::HttpRule { origin: origin.into(), ..Default::default() };
        r.r#match = Some(ir::Match { path: path.map(|k| ir::Text { kind: Some(k) }), ..Default::default() });
        f(&mut r);
        r
    }

    fn found<'a>(t: &'a Table, port: u16, path: &str, headers: &HeaderMap) -> &'a str {
        let labels = BTreeMap::new();
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        let input = RouteInput::new(path, query, "GET", "http", "a", headers, "ns", &labels);
        match t.find(port, &input) {
            RouteMatch::Rule(r) => &r.origin,
            RouteMatch::Nothing => "-",
            RouteMatch::Default => "default",
        }
    }

    #[test]
    fn a_header_that_is_not_there_is_empty_where_a_condition_is_inverted() {
        for (kind, holds) in [
            (Kind::Present(true), true),
            (Kind::Exact("x".into()), true),
            (Kind::Regex("x+".into()), true),
            (Kind::Regex("x*".into()), false),
            (Kind::Exact(String::new()), false),
        ] {
            let without = |r: &mut ir::HttpRule| {
                let value = Some(ir::Text { kind: Some(kind.clone()) });
                r.r#match.as_mut().unwrap().headers.push(ir::Named { name: "h".into(), value, invert: true });
            };
            let http = vec![rule("without", None, without)];
            let t = Table::new(&ir::Table { http, ..Default::default() }, &mut fresh).unwrap();
            assert_eq!(found(&t, 80, "/", &HeaderMap::new()) == "without", holds, "{kind:?}");
            let one = HeaderMap::from_iter([(HeaderName::from_static("h"), HeaderValue::from_static("x"))]);
            assert_eq!(found(&t, 80, "/", &one) == "without", kind == Kind::Exact(String::new()), "{kind:?}");
        }
    }

    /// Requests of HTTP/2 have no header of that name; and names have no case, and may have a last dot.
    #[test]
    fn a_match_on_host_is_one_on_the_authority() {
        for (kind, holds) in [
            (Kind::Exact("a".into()), true),
            (Kind::Exact("A.".into()), true),
            (Kind::Prefix("A".into()), true),
            (Kind::Regex("[A-C]".into()), true),
            (Kind::Present(true), true),
            (Kind::Exact("b".into()), false),
            (Kind::Exact("a:80".into()), false),
            (Kind::Prefix("a.".into()), false),
        ] {
            let value = Some(ir::Text { kind: Some(kind.clone()) });
            let named = |invert| ir::Named { name: "host".into(), value: value.clone(), invert };
            for (what, m, holds) in [
                ("host", ir::Match { headers: vec![named(false)], ..Default::default() }, holds),
                ("not host", ir::Match { headers: vec![named(true)], ..Default::default() }, !holds),
                ("authority", ir::Match { authority: value.clone(), ..Default::default() }, holds),
            ] {
                let http = vec![rule("host", None, |r| r.r#match = Some(m))];
                let t = Table::new(&ir::Table { http, ..Default::default() }, &mut fresh).unwrap();
                let one = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("a"))]);
                for headers in [HeaderMap::new(), one] {
                    assert_eq!(found(&t, 80, "/", &headers) == "host", holds, "{what} {kind:?}");
                }
            }
        }
    }

    /// A gateway has thousands of rules: a field that few of them need belongs into a box, and no vector may have room to spare.
    #[test]
    fn a_rule_takes_little_memory() {
        for (what, size, most) in [
            ("Rule", size_of::<Rule>(), 272),
            ("Destination", size_of::<Destination>(), 72),
            ("StringMatcher", size_of::<Option<StringMatcher>>(), 24),
            // Of each virtual host.
            ("Routes", size_of::<Routes>(), 120),
        ] {
            assert!(size <= most, "{what}: {size} bytes, at most {most}");
        }
        let header = || ir::Header { name: "x-a".into(), value: "1".into() };
        let to = || ir::Destination { service: "ns/s".into(), weight: 1, ..Default::default() };
        let plain = rule("plain", Some(Kind::Segments("/a".into())), |r| r.destinations = vec![to()]);
        let plain = Rule::new(&plain, &mut fresh).unwrap();
        assert!(plain.rare.is_none() && plain.fault.is_none() && plain.compression.is_none());
        let retries = |attempts| {
            let own = ir::Retry { attempts, ..ir::Retry::istio() };
            Rule::new(&rule("retries", None, |r| r.retry = Some(own)), &mut fresh).unwrap().retry.unwrap()
        };
        let [standard, again, other] = [2, 2, 3].map(retries);
        assert!(Arc::ptr_eq(&standard, &again) && *standard == ir::Retry::istio() && other.attempts == 3);
        let host = |rules: usize| {
            let http = (0..rules).map(|n| rule("r", Some(Kind::Exact(format!("/{n}"))), |_| {})).collect();
            Table::new(&ir::Table { http, tcp: vec![] }, &mut fresh).unwrap().rest
        };
        assert!(host(FEW).paths.is_none() && host(FEW + 1).paths.is_some());
        assert!(Routes::new(&ir::Routes::default(), None).unwrap().buckets.is_none());
        let full = rule("full", None, |r| {
            r.request = Some(ir::HeaderChange { set: vec![header()], add: vec![header()], remove: vec!["x-b".into()] });
            r.mirrors = vec![ir::Mirror { to: Some(to()), per_million: 1 }];
            let value = Some(ir::Text { kind: Some(Kind::Present(true)) });
            let named = ir::Named { name: "x-c".into(), value, invert: false };
            let conditions = r.r#match.as_mut().unwrap();
            (conditions.headers, conditions.query) = (vec![named.clone()], vec![named]);
        });
        let full = Rule::new(&full, &mut fresh).unwrap();
        let change = full.request.unwrap();
        let rooms = [change.set.capacity(), change.add.capacity(), change.remove.capacity()];
        assert_eq!((rooms, full.rare.unwrap().query.capacity()), ([1; 3], 1));
    }

    /// Rules with the same path are told apart by their other conditions, in order, wherever they stand.
    #[test]
    fn rules_of_one_path_are_all_looked_at() {
        let by_header = |origin: &str, name: &str, path: Kind| {
            let value = Some(ir::Text { kind: Some(Kind::Present(true)) });
            rule(origin, Some(path), |r| {
                r.r#match.as_mut().unwrap().headers.push(ir::Named { name: name.into(), value, invert: false });
            })
        };
        let path = || Kind::Segments("/a".into());
        let http = vec![
            by_header("one", "x-1", path()),
            by_header("other", "x-2", Kind::Segments("/b".into())),
            by_header("two", "x-2", path()),
            by_header("exact", "x-4", Kind::Exact("/a".into())),
            by_header("three", "x-3", path()),
            rule("last", Some(path()), |_| {}),
        ];
        let t = Table::new(&ir::Table { http, tcp: vec![] }, &mut fresh).unwrap();
        for (names, want) in [
            (&["x-1"][..], "one"),
            (&["x-2"][..], "two"),
            (&["x-3"][..], "three"),
            (&["x-3", "x-2"][..], "two"),
            (&["x-3", "x-4"][..], "exact"),
            (&["x-5"][..], "last"),
        ] {
            let one = |n: &'static str| (HeaderName::from_static(n), HeaderValue::from_static("1"));
            let headers: HeaderMap = names.iter().copied().map(one).collect();
            assert_eq!(found(&t, 80, "/a", &headers), want, "{names:?}");
        }
    }

    /// What cannot be read of one rule refuses all of them, as what cannot be executed does.
    #[test]
    fn what_is_no_message_is_refused() {
        let good = ir::HttpRule { origin: "good".into(), ..Default::default() }.encode_to_vec();
        // A field of the wrong kind: `timeout_ms` as text.
        for (rule, is_good) in [(good, true), (vec![0x6a, 1, b'x'], false), (vec![0x0a, 9], false)] {
            let table = WireTable { http: vec![rule.into()], tcp: vec![] };
            let routes = WireRoutes { producer: Some(table), ..Default::default() }.encode_to_vec();
            match Routes::decode(&routes, None) {
                Ok(routes) => assert!(is_good && routes.table("").rules(80).len() == 1),
                Err(e) => assert!(!is_good && matches!(e, CompileError::Decode(_)), "{e}"),
            }
        }
        assert!(matches!(Routes::decode(&[0xff], None), Err(CompileError::Decode(_))));
    }

    #[test]
    fn the_first_that_holds_is_it() {
        let header = |r: &mut ir::HttpRule| {
            let value = Some(ir::Text { kind: Some(Kind::Exact("jason".into())) });
            r.r#match.as_mut().unwrap().headers.push(ir::Named { name: "end-user".into(), value, invert: false });
        };
        let query = |r: &mut ir::HttpRule| {
            let value = Some(ir::Text { kind: Some(Kind::Exact("a b".into())) });
            r.r#match.as_mut().unwrap().query.push(ir::Named { name: "q".into(), value, invert: false });
        };
        let t = ir::Table {
            http: vec![
                rule("jason", Some(Kind::Prefix("/".into())), header),
                rule("query", None, query),
                rule("exact", Some(Kind::Exact("/a".into())), |_| {}),
                rule("segments", Some(Kind::Segments("/a".into())), |_| {}),
                rule("prefix", Some(Kind::Prefix("/ab".into())), |_| {}),
                rule("pattern", Some(Kind::Regex("/[xy]+".into())), |_| {}),
                rule("port", None, |r| r.ports = vec![81]),
            ],
            tcp: vec![],
        };
        let t = Table::new(&t, &mut fresh).unwrap();
        let mut jason = HeaderMap::new();
        jason.insert("end-user", HeaderValue::from_static("jason"));
        let none = HeaderMap::new();
        for (port, path, headers, want) in [
            (80, "/a", &none, "exact"),
            (80, "/a", &jason, "jason"),
            (80, "/a/b", &none, "segments"),
            (80, "/abc", &none, "prefix"),
            (80, "/xyx", &none, "pattern"),
            (80, "/xyz", &none, "-"),
            (81, "/xyz", &none, "port"),
            (80, "/other?q=a+b", &none, "query"),
            (80, "/other?q=a", &none, "-"),
            (80, "/ä", &none, "-"),
        ] {
            assert_eq!(found(&t, port, path, headers), want, "{port} {path}");
        }
        assert_eq!(found(&Table::default(), 80, "/", &none), "default");
    }

    #[test]
    fn headers_are_matched_as_bytes() {
        let named = |name: &str, kind: Kind, invert: bool| {
            let value = Some(ir::Text { kind: Some(kind) });
            rule(name, None, |r| {
                r.r#match.as_mut().unwrap().headers.push(ir::Named { name: name.into(), value, invert })
            })
        };
        let http = vec![
            named("x-name", Kind::Exact("Zoë,Zoë".into()), false),
            named("x-other", Kind::Present(true), true),
            named("host", Kind::Exact("a".into()), false),
        ];
        let t = Table::new(&ir::Table { http, tcp: vec![] }, &mut fresh).unwrap();
        let of = |all: &[(&'static str, &[u8])]| {
            let mut h = HeaderMap::new();
            for (k, v) in all {
                h.append(*k, HeaderValue::from_bytes(v).unwrap());
            }
            found(&t, 80, "/", &h).to_string()
        };
        let (zoe, latin) = ("Zoë".as_bytes(), b"\xe9");
        assert_eq!(of(&[("x-name", zoe), ("x-name", zoe)]), "x-name");
        assert_eq!(of(&[]), "x-other");
        assert_eq!(
            of(&[("x-other", latin)]),
            "host",
            "what is no text is there all the same; the host is the authority"
        );
    }

    /// The index says what a look at every rule in order would say.
    #[test]
    fn the_index_agrees_with_a_linear_search() {
        use rand::{Rng, seq::IndexedRandom};
        let mut r = rand::rng();
        let parts = ["/", "/a", "/a/", "/a/b", "/ab", "/b", "/a/b/c", "/B"];
        for _ in 0..300 {
            let mut http = vec![];
            for i in 0..r.random_range(1..12) {
                let p = parts.choose(&mut r).unwrap().to_string();
                let kind = match r.random_range(0..5) {
                    0 => Some(Kind::Exact(p)),
                    1 => Some(Kind::Prefix(p)),
                    2 => Some(Kind::Segments(p)),
                    3 => Some(Kind::Regex(p)),
                    _ => None,
                };
                let case = r.random_bool(0.2);
                let needs = r.random_bool(0.3);
                http.push(rule(&i.to_string(), kind, |x| {
                    let m = x.r#match.as_mut().unwrap();
                    m.ignore_path_case = case;
                    if needs {
                        let value = Some(ir::Text { kind: Some(Kind::Present(true)) });
                        m.headers.push(ir::Named { name: "h".into(), value, invert: false });
                    }
                }));
            }
            let table = Table::new(&ir::Table { http, tcp: vec![] }, &mut fresh).unwrap();
            let mut headers = HeaderMap::new();
            if r.random_bool(0.5) {
                headers.insert("h", HeaderValue::from_static("x"));
            }
            for path in parts {
                let labels = BTreeMap::new();
                let input = RouteInput::new(path, None, "GET", "http", "a", &headers, "ns", &labels);
                let want = table.rest.rules.iter().find(|x| x.matches(&input, true)).map_or("-", |x| &x.origin);
                assert_eq!(found(&table, 80, path, &headers), want, "{path}");
            }
        }
    }

    #[test]
    fn destinations_are_chosen_by_their_weights() {
        let mut r = rule("r", None, |_| {});
        for w in [9, 0, 1] {
            r.destinations.push(ir::Destination { service: format!("s{w}"), weight: w, ..Default::default() });
        }
        let r = Rule::new(&r, &mut fresh).unwrap();
        let count = |s: &str| (0..r.total_weight).filter(|i| &*r.choose_weighted(*i).unwrap().service == s).count();
        assert_eq!((count("s9"), count("s0"), count("s1")), (9, 0, 1));
        assert!(r.choose_weighted(10).is_none());
    }
}
