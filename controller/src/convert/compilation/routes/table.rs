//! The rules of services and of gateways' virtual hosts, and which of them comes first: by API, by host, by how exact they are, by
//! age. What the order is for users is said in [`super`]; `tests::virtual_services_in_the_mesh_are_merged` and its neighbours show it.

use crate::convert::{
    facts::{
        export::Export,
        host::{closeness, is_of},
    },
    objects::{Age, Objects, VIRTUAL},
};
use karst_api::route as ir;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Which API a rule is of, the first before the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Api {
    Gateway,
    Istio,
}

/// A rule and its place among others: less comes first.
#[derive(Clone)]
pub(crate) struct Ranked {
    /// It stands for what cannot be read: behind all others.
    pub(crate) is_last: bool,
    pub(crate) api: Api,
    /// How closely the object's host fits what is called.
    pub(crate) closeness: usize,
    /// How exact it is; only for Gateway API.
    pub(crate) precision: Precision,
    pub(crate) age: Age,
    /// Place in its object.
    pub(crate) place: usize,
    pub(crate) rule: ir::HttpRule,
}

impl Ranked {
    /// Less comes first. Of VirtualServices only those with the closest host are there ([`Rules::table`]).
    fn rank(&self) -> impl Ord {
        let closeness = Reverse(if self.api == Api::Gateway { self.closeness } else { 0 });
        let matches_all = self.api == Api::Istio && matches_all(&self.rule);
        (self.is_last, self.api, closeness, matches_all, self.precision, &self.age, self.place)
    }
}

/// Gateway API's order: exact paths, long paths, a method, many headers, many query parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precision(pub(crate) Reverse<(u8, usize, bool, usize, usize)>);

/// The same for connections.
#[derive(Clone)]
pub(crate) struct RankedTcp {
    /// It stands for what cannot be read: behind all others.
    pub(crate) is_last: bool,
    pub(crate) api: Api,
    pub(crate) closeness: usize,
    pub(crate) age: Age,
    pub(crate) rule: ir::TcpRule,
}

impl RankedTcp {
    /// Less comes first: the longest name in the TLS hello, whichever API asks for it. ([`by_name`] has left one name.)
    fn rank(&self) -> impl Ord {
        let fit = self.rule.sni.first().map(|n| closeness(n));
        (self.is_last, Reverse(fit), self.api, &self.age)
    }
}

/// Rules for one group of callers.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    pub(crate) http: Vec<Ranked>,
    pub(crate) tcp: Vec<RankedTcp>,
}

impl Rules {
    pub(crate) fn extend(&mut self, other: Self) {
        self.http.extend(other.http);
        self.tcp.extend(other.tcp);
    }

    /// In order of precedence.
    fn table(mut self) -> ir::Table {
        self.http = closest(self.http, |r| (r.api == Api::Istio).then_some(r.closeness));
        self.tcp = closest(self.tcp, |r| (r.api == Api::Istio).then_some(r.closeness));
        self.http.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let names = self.tcp.into_iter().flat_map(by_name);
        let mut tcp: Vec<_> = names.collect();
        tcp.sort_by(|a, b| a.rank().cmp(&b.rank()));
        ir::Table {
            http: self.http.into_iter().map(|r| r.rule).collect(),
            tcp: tcp.into_iter().map(|r| r.rule).collect(),
        }
    }
}

/// Of those that have a closeness only the closest, and all others.
fn closest<T>(all: Vec<T>, of: impl Fn(&T) -> Option<usize>) -> Vec<T> {
    let best = all.iter().filter_map(&of).max();
    all.into_iter().filter(|r| of(r).is_none_or(|c| Some(c) == best)).collect()
}

/// A rule for each of its names.
fn by_name(ranked: RankedTcp) -> Vec<RankedTcp> {
    match ranked.rule.sni.len() {
        0 | 1 => vec![ranked],
        _ => {
            let one = |n: &String| RankedTcp {
                rule: ir::TcpRule { sni: vec![n.clone()], ..ranked.rule.clone() },
                ..ranked.clone()
            };
            ranked.rule.sni.iter().map(one).collect()
        }
    }
}

/// Does it match whatever comes (to its ports)? Then it is behind the others of its kind (Istio: SortVHostRoutes).
fn matches_all(rule: &ir::HttpRule) -> bool {
    use ir::text::Kind;
    let Some(matching) = &rule.r#match else { return true };
    // A new condition must be decided about here.
    let ir::Match {
        path,
        ignore_path_case: _,
        method,
        scheme,
        authority,
        headers,
        query,
        source_labels,
        source_namespace,
    } = matching;
    let any_path = match path.as_ref().and_then(|p| p.kind.as_ref()) {
        None => true,
        Some(Kind::Prefix(p) | Kind::Segments(p)) => matches!(p.as_str(), "" | "/"),
        Some(Kind::Regex(r)) => matches!(r.as_str(), ".*" | "/.*"),
        Some(Kind::Exact(_) | Kind::Present(_)) => false,
    };
    let texts = [method, scheme, authority].into_iter().all(Option::is_none);
    let lists = headers.is_empty() && query.is_empty() && source_labels.is_empty();
    any_path && texts && lists && source_namespace.is_empty()
}

/// The rules of one object as far as they are reached: behind one that matches everything, none is at its ports (Istio:
/// waypointInboundRoute). Of several objects these come last all the same. `ports`: those that there are.
pub(crate) fn reached(rules: Vec<ir::HttpRule>, ports: &[u32]) -> Vec<ir::HttpRule> {
    let (mut out, mut ended) = (vec![], BTreeSet::new());
    for mut rule in rules {
        if !ended.is_empty() {
            if rule.ports.is_empty() {
                rule.ports = ports.to_vec();
            }
            rule.ports.retain(|p| !ended.contains(p));
            if rule.ports.is_empty() {
                continue;
            }
        }
        let ends = matches_all(&rule).then(|| rule.ports.clone());
        out.push(rule);
        match ends {
            Some(all) if all.is_empty() => break,
            Some(some) => ended.extend(some),
            None => {}
        }
    }
    out
}

/// For whom rules are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Callers {
    All,
    /// Those of a namespace that they are exported to, beside the rules for all.
    Exported(String),
    /// Those of the rules' own namespace, which is not the service's: in place of the rules for all.
    Own(String),
}

/// Rules for all callers, and by callers' namespace.
type Grouped = (Option<Rules>, BTreeMap<String, Rules>);

/// Collects the rules of all services.
#[derive(Default)]
pub(crate) struct Tables {
    by_service: BTreeMap<(Arc<str>, Callers), Rules>,
}

impl Tables {
    /// The rules of a service to which an object of this namespace contributes.
    pub(crate) fn of(&mut self, objects: &Objects<'_>, key: &Arc<str>, namespace: &str) -> &mut Rules {
        let callers = if decides(objects, key, namespace) { Callers::All } else { Callers::Own(namespace.into()) };
        self.by_service.entry((key.clone(), callers)).or_default()
    }

    /// The same for one that is not exported to all.
    pub(crate) fn exported(
        &mut self,
        objects: &Objects<'_>,
        key: &Arc<str>,
        export: &Export<'_>,
        mut add: impl FnMut(&mut Rules),
    ) {
        let own = export.namespace;
        if export.is_for_all() {
            return add(self.of(objects, key, own));
        }
        let named: BTreeSet<Callers> = match decides(objects, key, own) {
            true => export.namespaces().map(|n| Callers::Exported(n.into())).collect(),
            false => export.is_for(own).then(|| Callers::Own(own.into())).into_iter().collect(),
        };
        for callers in named {
            add(self.by_service.entry((key.clone(), callers)).or_default());
        }
    }

    /// The routes of each service but for those that `skip`.
    pub(crate) fn routes(self, skip: impl Fn(&Arc<str>) -> bool) -> BTreeMap<Arc<str>, ir::Routes> {
        let mut grouped: BTreeMap<Arc<str>, Grouped> = BTreeMap::new();
        // The map's order: those for all, those that are exported, those in place of all.
        for ((key, callers), rules) in self.by_service {
            if skip(&key) {
                continue;
            }
            let (all, consumers) = grouped.entry(key).or_default();
            match callers {
                Callers::All => *all = Some(rules),
                Callers::Exported(namespace) => {
                    let mut both = all.clone().unwrap_or_default();
                    both.extend(rules);
                    consumers.insert(namespace, both);
                }
                Callers::Own(namespace) => drop(consumers.insert(namespace, rules)),
            }
        }
        let consumer = |(namespace, rules): (String, Rules)| ir::Consumer { namespace, table: Some(rules.table()) };
        let one = |(all, consumers): Grouped| ir::Routes {
            producer: all.map(Rules::table),
            consumers: consumers.into_iter().map(consumer).collect(),
            ..Default::default()
        };
        grouped.into_iter().map(|(key, rules)| (key, one(rules))).collect()
    }
}

/// Do objects of this namespace decide for all callers of a service? (Who comes through a gateway has no namespace.)
fn decides(objects: &Objects<'_>, key: &str, namespace: &str) -> bool {
    key.starts_with(VIRTUAL) || is_of(key, namespace) || namespace == objects.mesh.root_namespace
}
