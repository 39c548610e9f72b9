//! The compiled routes of a service. A look-up finds candidates by hash (the whole path, its prefixes by length, its leading
//! segments) and takes the first in order whose other conditions hold: it costs the same with ten and with thousands of
//! routes. Nothing of a request is parsed twice, and its query only if a candidate asks for it.

mod why;

use crate::{
    authz::{external::provider::Provider, jwt::Token},
    http::entry,
    route::{
        compression::Compression,
        error::CompileError,
        limit::{Limit, Limits},
        matcher::StringMatcher,
        operators::{Value, Values},
        sequence::{FaultTurns, Sequence},
        wire::{WireRoutes, WireTable},
    },
    session::rules::SessionRules,
};
use bytes::Bytes;
use hashbrown::HashTable;
use http::{HeaderMap, HeaderName, HeaderValue};
use karst_api::route as ir;
use karst_core::{authority::Authority, claims};
use prost::Message;
use std::{
    cell::OnceCell,
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, LazyLock},
};

/// What of a request decides about its route.
pub struct RouteInput<'a> {
    /// Without query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub method: &'a str,
    pub scheme: &'a str,
    pub authority: &'a str,
    pub headers: &'a HeaderMap,
    /// The caller's namespace, as proven.
    pub namespace: &'a str,
    /// Labels of the caller's pod, as far as known.
    pub labels: &'a BTreeMap<String, String>,
    /// The token, where one was verified.
    pub token: Option<&'a Token>,
    parameters: OnceCell<Vec<(String, String)>>,
}

impl<'a> RouteInput<'a> {
    /// Of these parts.
    #[allow(clippy::too_many_arguments, reason = "what of a request routes ask about, each once and by its name")]
    pub fn new(
        path: &'a str,
        query: Option<&'a str>,
        method: &'a str,
        scheme: &'a str,
        authority: &'a str,
        headers: &'a HeaderMap,
        namespace: &'a str,
        labels: &'a BTreeMap<String, String>,
    ) -> Self {
        let parameters = OnceCell::new();
        Self { path, query, method, scheme, authority, headers, namespace, labels, token: None, parameters }
    }

    /// With a token that was verified.
    #[must_use]
    pub fn with_token(self, token: Option<&'a Token>) -> Self {
        Self { token, ..self }
    }

    fn parameters(&self) -> &[(String, String)] {
        self.parameters.get_or_init(|| {
            let q = self.query.unwrap_or("");
            form_urlencoded::parse(q.as_bytes()).map(|(k, v)| (k.into_owned(), v.into_owned())).collect()
        })
    }
}

/// What of a connection decides about its route.
pub struct TcpRouteInput<'a> {
    pub port: u16,
    /// The caller's namespace, as proven.
    pub namespace: &'a str,
    /// Labels of the caller's pod, as far as known.
    pub labels: &'a BTreeMap<String, String>,
    /// The name in its TLS hello.
    pub sni: Option<&'a str>,
}

/// Does a name, maybe with a wildcard in front, stand for this one?
fn covers(wide: &str, name: &str) -> bool {
    wide == name || wide.strip_prefix('*').is_some_and(|s| name.len() > s.len() && name.ends_with(s))
}

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
        self.tcp.iter().find(|rule| {
            (rule.ports.is_empty() || rule.ports.contains(&u32::from(input.port)))
                && (rule.namespace.is_empty() || rule.namespace == input.namespace)
                && rule.labels.iter().all(|(k, v)| input.labels.get(k) == Some(v))
                && (rule.sni.is_empty() || input.sni.is_some_and(|n| rule.sni.iter().any(|h| covers(h, n))))
        })
    }
}

/// So many rules are looked at one after the other. Most hosts have one or two: tables of paths would take more than the rules.
const FEW: usize = 4;

/// The rules for one port.
#[derive(Debug, Default)]
struct Index {
    rules: Box<[Arc<Rule>]>,
    /// Where they are by path, if they are not few.
    paths: Option<Box<Paths>>,
}

/// Rules by path. The tables have numbers of rules only: a path is kept once, in its rule.
#[derive(Debug, Default)]
struct Paths {
    /// The first rule with a path, by the path's hash.
    exact: HashTable<u32>,
    prefix: HashTable<u32>,
    segments: HashTable<u32>,
    hasher: RandomState,
    /// By rule: the next one in the same table with the same path, or [`NO_RULE`].
    next: Box<[u32]>,
    /// Lengths of the prefixes.
    lengths: Vec<usize>,
    /// Those without a path, with a pattern, or that ignore its case.
    other: Vec<u32>,
}

/// No rule has this number.
const NO_RULE: u32 = u32::MAX;

/// The path that a rule is found by.
fn path_of(rule: &Rule) -> &str {
    match &rule.path {
        Some(StringMatcher::Exact(p) | StringMatcher::Prefix(p) | StringMatcher::PathSegments(p)) => p,
        Some(StringMatcher::Regex(_) | StringMatcher::Present) | None => "",
    }
}

impl Index {
    fn new(rules: impl Iterator<Item = Arc<Rule>>) -> Self {
        let rules: Box<[Arc<Rule>]> = rules.collect();
        let paths = (rules.len() > FEW).then(|| Box::new(Paths::new(&rules)));
        Self { rules, paths }
    }

    fn origins(&self) -> Vec<String> {
        self.rules.iter().map(|r| r.origin.clone()).collect()
    }

    /// The first rule that holds.
    fn find(&self, input: &RouteInput<'_>) -> Option<&Arc<Rule>> {
        match &self.paths {
            Some(paths) => self.rules.get(paths.find(&self.rules, input) as usize),
            None => self.rules.iter().find(|rule| rule.matches(input, true)),
        }
    }
}

impl Paths {
    fn new(rules: &[Arc<Rule>]) -> Self {
        let mut index = Self { next: vec![NO_RULE; rules.len()].into(), ..Self::default() };
        let hasher = index.hasher.clone();
        let path = |number: &u32| path_of(&rules[*number as usize]);
        // From the last one: each is put before those of its path that are there.
        for (at, rule) in rules.iter().enumerate().rev() {
            let number = at as u32;
            let table = match &rule.path {
                Some(StringMatcher::Exact(_)) if !rule.ignore_case => &mut index.exact,
                Some(StringMatcher::Prefix(prefix)) if !rule.ignore_case => {
                    index.lengths.push(prefix.len());
                    &mut index.prefix
                }
                Some(StringMatcher::PathSegments(_)) if !rule.ignore_case => &mut index.segments,
                _ => {
                    index.other.push(number);
                    continue;
                }
            };
            let own = path_of(rule);
            let hash = hasher.hash_one(own);
            match table.find_mut(hash, |n| path(n) == own) {
                Some(first) => index.next[at] = std::mem::replace(first, number),
                None => {
                    table.insert_unique(hash, number, |n| hasher.hash_one(path(n)));
                }
            }
        }
        index.other.reverse();
        index.other.shrink_to_fit();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index.lengths.shrink_to_fit();
        index
    }

    /// The rules of a table with this path, in order.
    fn with_path(&self, rules: &[Arc<Rule>], table: &HashTable<u32>, path: &str) -> impl Iterator<Item = u32> {
        let first = match table.is_empty() {
            true => None,
            false => table.find(self.hasher.hash_one(path), |n| path_of(&rules[*n as usize]) == path).copied(),
        };
        std::iter::successors(first, move |n| self.next.get(*n as usize).copied().filter(|n| *n != NO_RULE))
    }

    /// The number of the first rule that holds, or [`NO_RULE`].
    fn find(&self, rules: &[Arc<Rule>], input: &RouteInput<'_>) -> u32 {
        let holds = |number: u32, path_too| rules[number as usize].matches(input, path_too);
        let mut best = NO_RULE;
        let mut look = |table: &HashTable<u32>, path: &str| {
            first_that_holds(self.with_path(rules, table, path), |number| holds(number, false), &mut best);
        };
        look(&self.exact, input.path);
        for n in &self.lengths {
            match input.path.get(..*n) {
                Some(p) => look(&self.prefix, p),
                None if *n > input.path.len() => break,
                // Within a character: no prefix of that length is one of this path.
                None => {}
            }
        }
        if !self.segments.is_empty() {
            look(&self.segments, input.path);
            for (at, _) in input.path.match_indices('/') {
                look(&self.segments, &input.path[..at]);
            }
        }
        first_that_holds(self.other.iter().copied(), |number| holds(number, true), &mut best);
        best
    }
}

/// Goes through candidates, which are in order, to the first that holds, and takes it for the best if it is.
fn first_that_holds(candidates: impl Iterator<Item = u32>, holds: impl Fn(u32) -> bool, best: &mut u32) {
    for number in candidates {
        if *best <= number {
            return;
        }
        if holds(number) {
            *best = number;
            return;
        }
    }
}

/// One rule, ready to be executed. A gateway may have thousands: what few of them have is kept apart from what all have.
#[derive(Debug, Default)]
pub struct Rule {
    pub origin: String,
    pub path: Option<StringMatcher>,
    pub ignore_case: bool,
    pub method: Option<StringMatcher>,
    /// Name, value, and whether it must not match.
    pub headers: Box<[(HeaderName, StringMatcher, bool)]>,
    rare: Option<Box<RareConditions>>,

    pub redirect: Option<Box<ir::Redirect>>,
    pub response: Option<Box<ir::DirectResponse>>,
    pub destinations: Box<[Destination]>,
    pub total_weight: u64,
    weights: Sequence,
    pub rewrite: Option<Box<Rewrite>>,
    pub request: Option<Box<HeaderChange>>,
    pub answer: Option<Box<HeaderChange>>,
    pub mirrors: Box<[Mirror]>,
    pub fault: Option<Box<Fault>>,
    pub cors: Option<Box<Cors>>,
    pub timeout_ms: u64,
    pub retry: Option<Arc<ir::Retry>>,
    pub limits: Box<[Arc<Limit>]>,
    /// Largest body of a request; 0: it says nothing of it.
    pub max_body_bytes: u64,
    pub compression: Option<Box<Compression>>,
    /// Who is asked whether a request may go on.
    pub authorization: Option<Arc<Provider>>,
    /// How its clients come back to the same endpoints.
    pub session: Option<Arc<SessionRules>>,
}

/// Conditions that few rules have.
#[derive(Debug, Default)]
struct RareConditions {
    scheme: Option<StringMatcher>,
    authority: Option<StringMatcher>,
    /// Of a verified token.
    claims: Box<[ClaimMatch]>,
    query: Vec<(String, StringMatcher, bool)>,
    labels: BTreeMap<String, String>,
    namespace: String,
}

impl RareConditions {
    /// None: there are none. `claims`: those of the conditions on headers that are conditions on claims.
    fn new(conditions: &ir::Match, claims: Vec<ClaimMatch>) -> Result<Option<Box<Self>>, CompileError> {
        let ir::Match { scheme, authority, query, source_labels, source_namespace, .. } = conditions;
        let has_names = !query.is_empty() || !source_labels.is_empty() || !source_namespace.is_empty();
        if scheme.is_none() && authority.is_none() && claims.is_empty() && !has_names {
            return Ok(None);
        }
        let parameter = |p: &ir::Named| Ok::<_, CompileError>((p.name.clone(), value(&p.value)?, p.invert));
        Ok(Some(Box::new(Self {
            scheme: scheme.as_ref().map(|t| StringMatcher::new(t, false)).transpose()?,
            authority: authority.as_ref().map(self::authority).transpose()?,
            claims: claims.into(),
            query: exactly(query, parameter)?,
            labels: source_labels.clone(),
            namespace: source_namespace.clone(),
        })))
    }

    fn match_all(&self, input: &RouteInput<'_>) -> bool {
        self.scheme.as_ref().is_none_or(|t| t.matches(input.scheme))
            && self.authority.as_ref().is_none_or(|t| t.matches(input.authority))
            && self.claims.iter().all(|claim| claim.holds(input.token))
            && self
                .query
                .iter()
                .all(|(n, t, invert)| input.parameters().iter().any(|(k, v)| k == n && t.matches(v)) != *invert)
            && (self.namespace.is_empty() || self.namespace == input.namespace)
            && self.labels.iter().all(|(k, v)| input.labels.get(k) == Some(v))
    }
}

impl Rule {
    fn new(rule: &ir::HttpRule, limit: &mut impl FnMut(&ir::RateLimit) -> Arc<Limit>) -> Result<Self, CompileError> {
        let empty = ir::Match::default();
        let conditions = rule.r#match.as_ref().unwrap_or(&empty);
        let text = |t: &Option<ir::Text>, case| t.as_ref().map(|t| StringMatcher::new(t, case)).transpose();
        let (mut headers, mut claims) = (Vec::with_capacity(conditions.headers.len()), vec![]);
        for header in &conditions.headers {
            if let Some(path) = claims::path(&header.name) {
                let path = path.map_err(|_| CompileError::HeaderName(header.name.clone()))?;
                claims.push(ClaimMatch { path, value: value(&header.value)?, invert: header.invert });
                continue;
            }
            let name = name(&header.name)?;
            let value = match &header.value {
                Some(t) if name == http::header::HOST => authority(t)?,
                v => value(v)?,
            };
            headers.push((name, value, header.invert));
        }
        let destinations = exactly(&rule.destinations, Destination::new)?.into_boxed_slice();
        let mut mirrors = Vec::with_capacity(rule.mirrors.len());
        for mirror in &rule.mirrors {
            let to = mirror.to.as_ref().ok_or(CompileError::Mirror)?;
            mirrors.push(Mirror {
                to: Destination::new(to)?,
                per_million: mirror.per_million,
                turns: Sequence::default(),
            });
        }
        Ok(Self {
            origin: rule.origin.clone(),
            path: text(&conditions.path, conditions.ignore_path_case)?,
            ignore_case: conditions.ignore_path_case,
            method: text(&conditions.method, false)?,
            headers: headers.into(),
            rare: RareConditions::new(conditions, claims)?,
            redirect: rule.redirect.clone().map(Box::new),
            response: rule.response.clone().map(Box::new),
            total_weight: destinations.iter().map(|d| u64::from(d.weight)).sum(),
            destinations,
            weights: Sequence::default(),
            rewrite: rule.rewrite.as_ref().map(Rewrite::new).transpose()?.map(Box::new),
            request: HeaderChange::new(rule.request.as_ref())?,
            answer: HeaderChange::new(rule.answer.as_ref())?,
            mirrors: mirrors.into(),
            fault: Fault::new(rule.fault),
            cors: rule.cors.as_ref().map(Cors::new).transpose()?.map(Box::new),
            timeout_ms: rule.timeout_ms,
            retry: rule.retry.as_ref().map(retry),
            limits: rule.limits.iter().map(limit).collect(),
            max_body_bytes: rule.max_body_bytes,
            compression: compression(rule.compression.as_ref()),
            authorization: rule.authorization.as_ref().map(|p| Provider::new(p).map(Arc::new)).transpose()?,
            session: rule.session.as_ref().map(|s| SessionRules::new(s).map(Arc::new)).transpose()?,
        })
    }

    /// Does it hold? The path is left out where it has been looked up.
    pub fn matches(&self, input: &RouteInput<'_>, path_too: bool) -> bool {
        let is = |t: &Option<StringMatcher>, s: &str| t.as_ref().is_none_or(|t| t.matches(s));
        let path = || match &self.path {
            Some(t) if self.ignore_case => t.matches(&input.path.to_lowercase()),
            t => is(t, input.path),
        };
        is(&self.method, input.method)
            && (!path_too || path())
            && self.headers.iter().all(|(n, t, invert)| header(input, n, t, *invert) != *invert)
            && self.rare.as_ref().is_none_or(|rare| rare.match_all(input))
    }

    /// Its conditions on claims of a verified token.
    pub fn claims(&self) -> &[ClaimMatch] {
        self.rare.as_ref().map_or(&[][..], |rare| &rare.claims[..])
    }

    /// The destination whose turn it is, by the weights.
    pub fn choose(&self) -> Option<&Destination> {
        // Of one nothing is open.
        let is_open = self.destinations.len() > 1;
        self.choose_weighted(if is_open { self.weights.below(self.total_weight) } else { 0 })
    }

    /// The destination for a number below [`Rule::total_weight`].
    pub fn choose_weighted(&self, mut at: u64) -> Option<&Destination> {
        self.destinations.iter().find(|d| {
            let weight = u64::from(d.weight);
            let hit = at < weight;
            at = at.saturating_sub(weight);
            hit
        })
    }
}

/// A fault that is injected, and whose turn it is.
#[derive(Debug)]
pub struct Fault {
    pub ir: ir::Fault,
    pub turns: FaultTurns,
}

impl Fault {
    fn new(fault: Option<ir::Fault>) -> Option<Box<Self>> {
        fault.map(|ir| Box::new(Self { ir, turns: FaultTurns::default() }))
    }
}

/// Most rules say the same of retries: that is there once.
fn retry(rule: &ir::Retry) -> Arc<ir::Retry> {
    static STANDARD: LazyLock<Arc<ir::Retry>> = LazyLock::new(|| Arc::new(ir::Retry::istio()));
    if *rule == **STANDARD { STANDARD.clone() } else { Arc::new(rule.clone()) }
}

fn compression(rule: Option<&ir::Compression>) -> Option<Box<Compression>> {
    rule.map(|rule| Box::new(Compression::new(rule)))
}

/// A condition on a claim of the request's token.
#[derive(Debug)]
pub struct ClaimMatch {
    /// Names of claims, each within the one before.
    pub path: Vec<String>,
    pub value: StringMatcher,
    /// It must not match.
    pub invert: bool,
}

impl ClaimMatch {
    /// Does it hold? A text matches, or one text of a list; without a token, or without the claim, nothing does.
    pub fn holds(&self, token: Option<&Token>) -> bool {
        token.is_some_and(|token| token.has_claim(&self.path, |text| self.value.matches(text))) != self.invert
    }
}

/// Several lines of a header count as one ([`entry::joined`]). The host is the authority, by whichever version of HTTP it has
/// come. For a condition that is inverted, one that is not there is empty, unless it is asked whether it is there (Istio:
/// TreatMissingHeaderAsEmpty).
fn header(input: &RouteInput<'_>, name: &HeaderName, matcher: &StringMatcher, invert: bool) -> bool {
    if *name == http::header::HOST {
        return matcher.matches(input.authority);
    }
    match entry::joined(input.headers, name) {
        Some(v) => matcher.matches_bytes(&v),
        None => invert && !matches!(matcher, StringMatcher::Present) && matcher.matches(""),
    }
}

/// All of them, in no more memory than they need: a vector that is collected from results has room for four.
fn exactly<T, U>(all: &[T], one: impl Fn(&T) -> Result<U, CompileError>) -> Result<Vec<U>, CompileError> {
    let mut out = Vec::with_capacity(all.len());
    for x in all {
        out.push(one(x)?);
    }
    Ok(out)
}

fn value(v: &Option<ir::Text>) -> Result<StringMatcher, CompileError> {
    match v {
        Some(t) => StringMatcher::new(t, false),
        None => Err(CompileError::MatchValue),
    }
}

/// A condition on the authority, read as those of requests are: names in lower case and without a last dot.
fn authority(t: &ir::Text) -> Result<StringMatcher, CompileError> {
    Ok(match StringMatcher::new(t, true)? {
        StringMatcher::Exact(s) => {
            let canonical = Authority::parse(s.as_bytes()).ok().map(|a| a.to_string().into_boxed_str());
            StringMatcher::Exact(canonical.unwrap_or(s))
        }
        other => other,
    })
}

fn name(s: &str) -> Result<HeaderName, CompileError> {
    HeaderName::from_bytes(s.as_bytes()).map_err(|_| CompileError::HeaderName(s.into()))
}

/// Who gets copies of requests.
#[derive(Debug)]
pub struct Mirror {
    pub to: Destination,
    /// Of a million requests, this many.
    pub per_million: u32,
    pub turns: Sequence,
}

/// Where requests go.
#[derive(Debug)]
pub struct Destination {
    /// Key of the service.
    pub service: Arc<str>,
    /// 0: the port that was called.
    pub port: u16,
    pub subset: Arc<str>,
    pub weight: u32,
    pub request: Option<Box<HeaderChange>>,
    pub answer: Option<Box<HeaderChange>>,
    pub rewrite: Option<Box<Rewrite>>,
    /// Answer this instead.
    pub refuse: Option<http::StatusCode>,
    pub timeout_ms: u64,
}

impl Destination {
    fn new(destination: &ir::Destination) -> Result<Self, CompileError> {
        Ok(Self {
            service: destination.service.as_str().into(),
            port: u16::try_from(destination.port).map_err(|_| CompileError::Port(destination.port))?,
            // What is empty is shared.
            subset: if destination.subset.is_empty() { Arc::default() } else { destination.subset.as_str().into() },
            weight: destination.weight,
            request: HeaderChange::new(destination.request.as_ref())?,
            answer: HeaderChange::new(destination.answer.as_ref())?,
            rewrite: destination.rewrite.as_ref().map(Rewrite::new).transpose()?.map(Box::new),
            refuse: match destination.refuse_status {
                0 => None,
                n => Some(status(n)?),
            },
            timeout_ms: destination.timeout_ms,
        })
    }

    /// The service that was called.
    pub fn same(service: &Arc<str>) -> Self {
        Self {
            service: service.clone(),
            port: 0,
            subset: "".into(),
            weight: 1,
            request: None,
            answer: None,
            rewrite: None,
            refuse: None,
            timeout_ms: 0,
        }
    }
}

/// A status code.
///
/// # Errors
/// If it is none.
pub fn status(n: u32) -> Result<http::StatusCode, CompileError> {
    u16::try_from(n).ok().and_then(|n| http::StatusCode::from_u16(n).ok()).ok_or(CompileError::Status(n))
}

/// Where connections go.
#[derive(Debug)]
pub struct TcpRule {
    pub origin: String,
    ports: Vec<u32>,
    labels: BTreeMap<String, String>,
    namespace: String,
    sni: Vec<String>,
    pub destinations: Vec<ir::Destination>,
    weights: Sequence,
}

impl TcpRule {
    fn new(rule: &ir::TcpRule) -> Self {
        Self {
            origin: rule.origin.clone(),
            ports: rule.ports.clone(),
            labels: rule.source_labels.clone(),
            namespace: rule.source_namespace.clone(),
            sni: rule.sni.clone(),
            destinations: rule.destinations.clone(),
            weights: Sequence::default(),
        }
    }

    /// The sum of their weights.
    pub fn total_weight(&self) -> u64 {
        self.destinations.iter().map(|d| u64::from(d.weight)).sum()
    }

    /// The destination whose turn it is, by the weights.
    pub fn choose(&self) -> Option<&ir::Destination> {
        let is_open = self.destinations.len() > 1;
        let mut at = if is_open { self.weights.below(self.total_weight()) } else { 0 };
        self.destinations.iter().find(|d| {
            let hit = at < u64::from(d.weight);
            at = at.saturating_sub(u64::from(d.weight));
            hit
        })
    }
}

/// Changes of headers.
#[derive(Debug)]
pub struct HeaderChange {
    set: Vec<(HeaderName, Value)>,
    add: Vec<(HeaderName, Value)>,
    remove: Vec<HeaderName>,
    names: entry::Names,
}

impl HeaderChange {
    fn new(change: Option<&ir::HeaderChange>) -> Result<Option<Box<Self>>, CompileError> {
        let Some(change) = change else { return Ok(None) };
        let pair = |h: &ir::Header| Ok::<_, CompileError>((name(&h.name)?, Value::new(&h.value)?));
        let mut out = Self {
            set: exactly(&change.set, pair)?,
            add: exactly(&change.add, pair)?,
            remove: exactly(&change.remove, |n| name(n))?,
            names: entry::Names::default(),
        };
        out.names = out.remove.iter().chain(out.set.iter().chain(&out.add).map(|(n, _)| n)).collect();
        Ok(Some(Box::new(out)))
    }

    /// The headers that are changed.
    pub fn names(&self) -> &entry::Names {
        &self.names
    }

    /// Changes headers; `values`: what operators stand for. No value is made of another that is made here (Envoy).
    pub fn apply(&self, headers: &mut HeaderMap, values: &dyn Values) {
        for n in &self.remove {
            headers.remove(n);
        }
        let all = self.set.iter().chain(&self.add).filter(|(_, v)| matches!(v, Value::Made(_)));
        let made: Vec<Option<HeaderValue>> = all.map(|(_, v)| v.make(values, headers)).collect();
        let mut made = made.into_iter();
        let mut next = |v: &Value| match v {
            Value::Fixed(v) => Some(v.clone()),
            Value::Made(_) => made.next().flatten(),
        };
        for (n, v) in &self.set {
            if let Some(v) = next(v) {
                headers.insert(n, v);
            }
        }
        for (n, v) in &self.add {
            if let Some(v) = next(v) {
                headers.append(n, v);
            }
        }
    }
}

/// Changes of path and authority.
#[derive(Debug)]
pub struct Rewrite {
    pub authority: Option<HeaderValue>,
    path: Option<PathChange>,
}

#[derive(Debug)]
enum PathChange {
    Prefix(String),
    Full(String),
    Regex(Box<(regex::Regex, String)>),
}

impl Rewrite {
    fn new(rewrite: &ir::Rewrite) -> Result<Self, CompileError> {
        use ir::rewrite::Path;
        let authority = match rewrite.authority.as_str() {
            "" => None,
            a => Some(HeaderValue::from_str(a).map_err(|_| CompileError::Authority(a.into()))?),
        };
        let path = match &rewrite.path {
            None => None,
            Some(Path::Prefix(p)) => Some(PathChange::Prefix(p.clone())),
            Some(Path::Full(p)) => Some(PathChange::Full(p.clone())),
            Some(Path::Regex(x)) => {
                let pattern =
                    regex::Regex::new(&x.r#match).map_err(|e| CompileError::RewriteRegex(x.r#match.clone(), e))?;
                Some(PathChange::Regex(Box::new((pattern, braces(&x.rewrite)))))
            }
        };
        Ok(Self { authority, path })
    }

    /// The new path of a request whose path was matched by this; None: as it is.
    pub fn path(&self, path: &str, matched: Option<&StringMatcher>) -> Option<String> {
        Some(match self.path.as_ref()? {
            PathChange::Full(p) => p.clone(),
            PathChange::Prefix(p) => replace_prefix(path, matched, p),
            PathChange::Regex(by) => by.0.replace_all(path, by.1.as_str()).into_owned(),
        })
    }
}

/// `\1` as the regex crate writes it.
fn braces(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 4);
    let mut chars = s.chars().peekable();
    while let Some(character) = chars.next() {
        match (character, chars.peek()) {
            ('\\', Some(d)) if d.is_ascii_digit() => {
                out.push_str(&format!("${{{d}}}"));
                chars.next();
            }
            ('\\', Some('\\')) => {
                out.push('\\');
                chars.next();
            }
            ('$', _) => out.push_str("$$"),
            _ => out.push(character),
        }
    }
    out
}

/// Puts `to` in place of the part that was matched.
pub fn replace_prefix(path: &str, matched: Option<&StringMatcher>, to: &str) -> String {
    match matched {
        // Whole segments: exactly one slash between what is new and what follows.
        Some(StringMatcher::PathSegments(p)) => {
            let rest = path.get(p.len()..).unwrap_or("").trim_start_matches('/');
            let head = to.trim_end_matches('/');
            if rest.is_empty() && !path.ends_with('/') {
                return if to.is_empty() { "/".into() } else { to.into() };
            }
            format!("{head}/{rest}")
        }
        Some(StringMatcher::Prefix(p)) => absolute(format!("{to}{}", path.get(p.len()..).unwrap_or(""))),
        // Nothing was asked of the path: its first slash is what it begins with.
        None => absolute(format!("{to}{}", path.strip_prefix('/').unwrap_or(path))),
        Some(StringMatcher::Exact(_) | StringMatcher::Regex(_) | StringMatcher::Present) => to.into(),
    }
}

fn absolute(s: String) -> String {
    if s.starts_with('/') { s } else { format!("/{s}") }
}

/// Cross-origin requests.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<StringMatcher>,
    /// What matches `*` stands for every origin, whichever kind of match it is (Envoy).
    is_for_all: bool,
    pub ir: ir::Cors,
}

impl Cors {
    fn new(c: &ir::Cors) -> Result<Self, CompileError> {
        let origins = c.origins.iter().map(|t| StringMatcher::new(t, false)).collect::<Result<Vec<_>, _>>()?;
        let is_for_all = origins.iter().any(|t| t.matches("*"));
        Ok(Self { origins, is_for_all, ir: c.clone() })
    }

    /// May this origin?
    pub fn admits(&self, origin: &HeaderValue) -> bool {
        self.is_for_all || self.origins.iter().any(|t| t.matches_bytes(origin.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
    use super::*;
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

    #[test]
    fn what_matches_a_star_stands_for_every_origin() {
        for (kind, all) in [
            (Kind::Exact("*".into()), true),
            (Kind::Prefix("*".into()), true),
            (Kind::Prefix(String::new()), true),
            (Kind::Regex(".*".into()), true),
            (Kind::Regex("https://.*".into()), false),
            (Kind::Prefix("https://*".into()), false),
            (Kind::Exact("https://a".into()), false),
        ] {
            let origins = vec![ir::Text { kind: Some(kind.clone()) }];
            let c = Cors::new(&ir::Cors { origins, ..Default::default() }).unwrap();
            let admits = |o| c.admits(&HeaderValue::from_static(o));
            assert_eq!([admits("http://b"), admits("null")], [all; 2], "{kind:?}");
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
    fn headers_are_changed_and_made() {
        use karst_core::operators::Operator;
        /// Knows the header that is asked for.
        struct Own;
        impl Values for Own {
            fn write(&self, o: &Operator, headers: &HeaderMap, out: &mut Vec<u8>) {
                if let Operator::Request(h) = o {
                    out.extend_from_slice(headers.get(&h.name).map_or(&b""[..], HeaderValue::as_bytes));
                }
            }
        }
        let header = |(name, value): (&str, &str)| ir::Header { name: name.into(), value: value.into() };
        let change = |set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]| ir::HeaderChange {
            set: set.iter().copied().map(header).collect(),
            add: add.iter().copied().map(header).collect(),
            remove: remove.iter().map(ToString::to_string).collect(),
        };
        let set =
            [("a", "<%REQ(user)%>"), ("user", "other"), ("kept", "%REQ(none)%"), ("per-cent", "5%%"), ("fixed", "x")];
        let c = change(&set, &[("a", "%REQ(user):2%"), ("b", "%REQ(gone)%"), ("c", "%REQ(none)%")], &["gone"]);
        let c = HeaderChange::new(Some(&c)).unwrap().unwrap();
        let mut h = HeaderMap::new();
        for (k, v) in [("user", "jason"), ("kept", "as it was"), ("gone", "1")] {
            h.insert(k, HeaderValue::from_static(v));
        }
        c.apply(&mut h, &Own);
        let mut all: Vec<String> = h.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap())).collect();
        all.sort_unstable();
        assert_eq!(all, ["a=<jason>", "a=ja", "fixed=x", "kept=as it was", "per-cent=5%", "user=other"]);
        for bad in ["%FOO%", "50%", "a\nb", "%REQ(a)%\n"] {
            assert!(HeaderChange::new(Some(&change(&[("a", bad)], &[], &[]))).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixes_are_replaced() {
        let seg = |p: &str| StringMatcher::PathSegments(p.trim_end_matches('/').into());
        for (path, matched, to, want) in [
            ("/foo/bar", Some(seg("/foo")), "/xyz", "/xyz/bar"),
            ("/foo/bar", Some(seg("/foo")), "/xyz/", "/xyz/bar"),
            ("/foo", Some(seg("/foo")), "/xyz", "/xyz"),
            ("/foo/", Some(seg("/foo")), "/xyz", "/xyz/"),
            ("/foo/bar", Some(seg("/foo")), "/", "/bar"),
            ("/foo", Some(seg("/foo")), "/", "/"),
            ("/foo", Some(seg("/foo")), "", "/"),
            ("/foo/bar", Some(seg("/foo")), "", "/bar"),
            ("/bar", Some(seg("/")), "/v1", "/v1/bar"),
            ("/ratings/1", Some(StringMatcher::Prefix("/ratings".into())), "/v1/r", "/v1/r/1"),
            ("/x", None, "/y/", "/y/x"),
            ("/x", Some(StringMatcher::Exact("/x".into())), "/y", "/y"),
        ] {
            assert_eq!(replace_prefix(path, matched.as_ref(), to), want, "{path} {to}");
        }
        let r = ir::Regex { r#match: "^/v(\\d+)/(.*)$".into(), rewrite: "/\\2/\\1$".into() };
        let r =
            Rewrite::new(&ir::Rewrite { authority: String::new(), path: Some(ir::rewrite::Path::Regex(r)) }).unwrap();
        assert_eq!(r.path("/v2/x", None).unwrap(), "/x/2$");
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
