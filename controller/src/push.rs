//! From the model to a snapshot of xDS resources.

use crate::{model::Model, scope_group};
use imbl::OrdMap;
use karst_api::{
    ACCESS_TYPE, ADDRESS_TYPE, AUTHORIZATION_TYPE, BACKEND_TYPE, GATEWAY_TYPE, POD_RANGES_TYPE, ROUTES_TYPE,
    VIRTUAL_HOST_TYPE,
    convert::policy_to_wire,
    route::{Access, Backend, Routes},
    workload as pb,
};
use karst_core::addr::ip_from_bytes;
use karst_xds::{
    Entry, HOST_GROUP, NODE_GROUP, Resources, Set, UNNAMED_GROUP,
    server::{Types, Variant},
};
use prost::Message;
use std::{cmp::Ordering, collections::HashMap, sync::Arc};

/// Types in the order in which additions are sent: policies before the workloads that name them, what
/// routes lead to before the routes.
const ORDER: &[&str] = &[
    AUTHORIZATION_TYPE,
    ACCESS_TYPE,
    POD_RANGES_TYPE,
    ADDRESS_TYPE,
    BACKEND_TYPE,
    ROUTES_TYPE,
    VIRTUAL_HOST_TYPE,
    GATEWAY_TYPE,
];
/// Types whose resources hold secrets: a subscriber is told of the one with its own name only.
const PRIVATE: &[&str] = &[GATEWAY_TYPE];
/// All policies, for those who know that some are in dry run. Under the type itself are those that are enforced: another
/// proxy passes over the mark.
const ALL_POLICIES: &str = "policies, those in dry run among them";
/// Of these the pods of a waypoint are told what is for services that are bound to it, and those of a gateway what is for its
/// listeners; or was when they were told.
const SCOPED: &[&str] = &[ACCESS_TYPE, ROUTES_TYPE, VIRTUAL_HOST_TYPE];
const VARIANTS: &[Variant] =
    &[Variant { feature: karst_xds::DRY_RUN, type_url: AUTHORIZATION_TYPE, set: ALL_POLICIES }];
/// Sets of which older versions are kept, each with the type that a subscriber knows it by. The policies that are enforced are
/// among all policies, as they are told to those who know dry runs.
pub const REMEMBERED: &[Remembered] = &[
    Remembered::new(ADDRESS_TYPE, Secrets::None),
    Remembered::new(POD_RANGES_TYPE, Secrets::None),
    Remembered { set: ALL_POLICIES, type_url: AUTHORIZATION_TYPE, held: Secrets::None },
    Remembered::new(ACCESS_TYPE, Secrets::Tokens),
    Remembered::new(ROUTES_TYPE, Secrets::None),
    Remembered::new(BACKEND_TYPE, Secrets::None),
    Remembered::new(VIRTUAL_HOST_TYPE, Secrets::None),
    Remembered::new(GATEWAY_TYPE, Secrets::Keys),
];

/// A set of which older versions are kept.
#[derive(Clone, Copy, Debug)]
pub struct Remembered {
    /// Its key in [`Resources::types`].
    pub set: &'static str,
    /// The type of its resources.
    pub type_url: &'static str,
    /// What they hold that is not kept.
    pub held: Secrets,
}

/// What resources hold that only their subscriber may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// Nothing.
    None,
    /// Private keys, of a gateway ([`karst_api::route::Gateway`]).
    Keys,
    /// Keys that verify tokens, whose private part a user may have left in ([`karst_api::route::Access`]).
    Tokens,
}

impl Remembered {
    /// The set whose key is its type.
    const fn new(type_url: &'static str, held: Secrets) -> Self {
        Self { set: type_url, type_url, held }
    }
}

/// What is served.
pub const TYPES: Types = Types { order: ORDER, private: PRIVATE, variants: VARIANTS, scoped: SCOPED };

/// The groups of a subscriber on a node that asks for addresses by name.
pub fn near(node: &str) -> Arc<[String]> {
    Arc::from([format!("{NODE_GROUP}{node}"), UNNAMED_GROUP.to_string()])
}

/// Encodes the model. The maps inside are written in the order of their keys, so that equal content has equal bytes.
/// What is the same as in an older model is the same resource, and its set shares it with the older one: what has changed is then
/// found without a look at the rest.
pub fn resources(model: &Model, version: u64, old: Option<(&Model, &Resources)>) -> Resources {
    let (no_model, no_resources) = (Model::default(), Resources::default());
    let (before, told) = old.unwrap_or((&no_model, &no_resources));
    let set = |name: &str| told.types.get(name).cloned().unwrap_or_default();
    let (mut addresses, mut routes, mut virtual_hosts) = (set(ADDRESS_TYPE), set(ROUTES_TYPE), set(VIRTUAL_HOST_TYPE));
    let (mut ranges, mut gateways) = (set(POD_RANGES_TYPE), set(GATEWAY_TYPE));
    let (mut backends, mut access) = (set(BACKEND_TYPE), set(ACCESS_TYPE));

    let is_same = |a: &Arc<pb::Workload>, b: &Arc<pb::Workload>| Arc::ptr_eq(a, b) || a == b;
    follow(&mut addresses, &before.workloads, &model.workloads, is_same, |_, one| workload(one));
    let bound = |key: &str| model.services.get(key).map(scope_group::of).unwrap_or_default();
    for (key, now) in differences(&before.services, &model.services, |a, b| a == b) {
        match now {
            Some(now) => addresses.insert(key.clone(), service(now)),
            None => addresses.remove(key),
        };
        // What is for a service that is bound to another waypoint is another's, though it says the same. What it leads to was told
        // with it: the waypoint is to have it before it serves the service.
        for set in [&mut routes, &mut access] {
            let moved = set.get(key).filter(|entry| *entry.groups != *bound(key)).cloned();
            if let Some(entry) = moved {
                set.insert(key.clone(), entry.moved_to(bound(key)));
            }
        }
    }
    follow(&mut ranges, &before.pod_ranges, &model.pod_ranges, |a, b| a == b, |_, one| alone(one.encode_to_vec()));
    follow(&mut gateways, &before.gateways, &model.gateways, |a, b| a == b, |_, one| alone(one.encode_to_vec()));
    follow(
        &mut access,
        &before.access,
        &model.access,
        |a: &Arc<Access>, b| Arc::ptr_eq(a, b) || a == b,
        |key, one| alone(one.encode_to_vec()).in_groups(bound(key)),
    );
    for (key, now) in differences(&before.routes, &model.routes, |a: &Arc<Routes>, b| Arc::ptr_eq(a, b) || a == b) {
        let set = if is_virtual(key) { &mut virtual_hosts } else { &mut routes };
        match now {
            Some(now) => set.insert(key.clone(), routes_of(model, key, now)),
            None => set.remove(key),
        };
    }
    // Services share what the same rules say of them.
    let changed = differences(&before.backends, &model.backends, |a: &Arc<Backend>, b| Arc::ptr_eq(a, b));
    let mut encoded: HashMap<*const Backend, Entry> = HashMap::new();
    // Where none has changed there is none to share.
    for (key, one) in (!changed.is_empty()).then_some(&model.backends).into_iter().flatten() {
        let is_known = before.backends.get(key).is_some_and(|known| Arc::ptr_eq(known, one));
        if let Some(entry) = backends.get(key).filter(|_| is_known) {
            encoded.entry(Arc::as_ptr(one)).or_insert_with(|| entry.clone());
        }
    }
    for (key, now) in changed {
        match now {
            Some(now) => {
                let one = encoded.entry(Arc::as_ptr(now)).or_insert_with(|| alone(now.encode_to_vec()));
                backends.insert(key.clone(), one.clone())
            }
            None => backends.remove(key),
        };
    }
    let (mut enforced, mut all_policies) = (set(AUTHORIZATION_TYPE), set(ALL_POLICIES));
    let are_same = Arc::ptr_eq(&before.policies, &model.policies) || before.policies == model.policies;
    if old.is_none() || !are_same {
        let policies = |dry_run: bool| {
            let some = model.policies.iter().filter(move |(_, p)| p.dry_run == dry_run);
            some.map(|(k, p)| (k.clone(), alone(policy_to_wire(p).encode_to_vec())))
        };
        enforced = policies(false).collect();
        all_policies = enforced.clone().into_iter().chain(policies(true)).collect();
    }
    let types = [
        (ADDRESS_TYPE, addresses),
        (POD_RANGES_TYPE, ranges),
        (AUTHORIZATION_TYPE, enforced),
        (ALL_POLICIES, all_policies),
        (ACCESS_TYPE, access),
        (ROUTES_TYPE, routes),
        (BACKEND_TYPE, backends),
        (VIRTUAL_HOST_TYPE, virtual_hosts),
        (GATEWAY_TYPE, gateways),
    ];
    told.next(types.into(), version, model.scopes.clone())
}

/// The resources after a change of these workloads, and of the routes of these services and virtual hosts, only.
pub fn update(old: &Resources, model: &Model, (uids, keys): (&[String], &[String]), version: u64) -> Resources {
    let mut types = old.types.clone();
    let addresses = types.entry(ADDRESS_TYPE).or_default();
    for uid in uids {
        match model.workloads.get(uid) {
            Some(w) => addresses.insert(uid.clone(), workload(w)),
            None => addresses.remove(uid),
        };
    }
    for key in keys {
        let set = types.entry(if is_virtual(key) { VIRTUAL_HOST_TYPE } else { ROUTES_TYPE }).or_default();
        match model.routes.get(key) {
            Some(now) => set.insert(key.clone(), routes_of(model, key, now)),
            None => set.remove(key),
        };
    }
    old.next(types, version, old.scopes.clone())
}

/// Are these the routes of a gateway's virtual host?
fn is_virtual(key: &str) -> bool {
    key.starts_with(crate::convert::VIRTUAL)
}

/// The routes of a virtual host, told to gateways that listen for it, or of a service, told to the waypoint that it is bound to.
fn routes_of(model: &Model, key: &str, routes: &Routes) -> Entry {
    let entry = alone(routes.encode_to_vec());
    match model.services.get(key) {
        _ if is_virtual(key) => entry.in_groups(scope_group::of_virtual_host(key).into_iter().collect()),
        Some(service) => entry.in_groups(scope_group::of(service)),
        None => entry,
    }
}

/// The keys of which two versions do not hold the same, in order, and what the later one holds.
fn differences<'a, V>(
    before: &'a OrdMap<String, V>,
    now: &'a OrdMap<String, V>,
    is_same: impl Fn(&V, &V) -> bool,
) -> Vec<(&'a String, Option<&'a V>)> {
    if before.ptr_eq(now) {
        return vec![];
    }
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    let mut out = vec![];
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return out,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = if order == Ordering::Greater { None } else { before.next() };
        let new = if order == Ordering::Less { None } else { now.next() };
        match (old, new) {
            (Some((_, old)), Some((_, new))) if is_same(old, new) => {}
            (_, Some((key, new))) => out.push((key, Some(new))),
            (Some((key, _)), None) => out.push((key, None)),
            (None, None) => return out,
        }
    }
}

/// Puts what has changed into a set.
fn follow<V>(
    set: &mut Set,
    before: &OrdMap<String, V>,
    now: &OrdMap<String, V>,
    is_same: impl Fn(&V, &V) -> bool,
    encode: impl Fn(&str, &V) -> Entry,
) {
    for (key, now) in differences(before, now, is_same) {
        match now {
            Some(now) => set.insert(key.clone(), encode(key, now)),
            None => set.remove(key),
        };
    }
}

/// A resource that has no other name and is in no group.
fn alone(bytes: Vec<u8>) -> Entry {
    Entry::new(bytes, vec![])
}

/// A service: to be found by its addresses and its host; where none of these is its own alone, by all.
fn service(service: &pb::Service) -> Entry {
    let alias = |a: &pb::NetworkAddress| {
        let ip = ip_from_bytes(&a.address)?;
        Some(a.length.map_or_else(|| format!("{}/{ip}", a.network), |l| format!("{}/{ip}/{l}", a.network)))
    };
    let aliases = service.addresses.iter().filter_map(alias).collect();
    let is_unnamed = service.hostname.starts_with('*') || service.addresses.iter().any(|a| a.length.is_some());
    let unnamed = is_unnamed.then(|| UNNAMED_GROUP.to_string());
    let groups = unnamed.into_iter().chain([format!("{HOST_GROUP}{}", service.hostname)]).collect();
    let address = pb::Address { r#type: Some(pb::address::Type::Service(service.clone())) };
    Entry::new(address.encode_to_vec(), aliases).in_groups(groups)
}

/// A workload: to be found by its addresses, its services and its node.
fn workload(workload: &pb::Workload) -> Entry {
    let aliases =
        workload.addresses.iter().filter_map(|a| Some(format!("{}/{}", workload.network, ip_from_bytes(a)?))).collect();
    let mut groups: Vec<String> = workload.services.keys().cloned().collect();
    if !workload.node.is_empty() {
        groups.push(format!("{NODE_GROUP}{}", workload.node));
    }
    groups.sort();
    Entry::new(workload_bytes(workload), aliases).in_groups(groups)
}

/// A workload's bytes with its map of services in sorted order: the generated encoder follows a hash map's order, which
/// differs from run to run and would make every restart look like a change of everything.
fn workload_bytes(workload: &pb::Workload) -> Vec<u8> {
    let mut rest = workload.clone();
    let mut services: Vec<(String, pb::PortList)> = rest.services.drain().collect();
    services.sort_by(|a, b| a.0.cmp(&b.0));
    let mut inner = rest.encode_to_vec();
    for (k, v) in services {
        // A map field of protobuf is a repeated message {1: key, 2: value}; this one has number 22.
        let one = pb::Workload { services: HashMap::from([(k, v)]), ..Default::default() };
        inner.extend(one.encode_to_vec());
    }
    let mut out = Vec::with_capacity(inner.len() + 6);
    prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(inner.len() as u64, &mut out);
    out.extend(inner);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_update_equals_a_new_encoding() {
        let w = |uid: &str, name: &str| {
            let w = pb::Workload { uid: uid.into(), name: name.into(), ..Default::default() };
            (uid.to_string(), std::sync::Arc::new(w))
        };
        let model = |v: Vec<_>| Model { workloads: v.into_iter().collect(), ..Model::default() };
        let (a, b) =
            (model(vec![w("1", "a"), w("2", "a"), w("3", "a")]), model(vec![w("1", "a"), w("2", "b"), w("4", "a")]));
        let changed = ["2", "3", "4"].map(String::from);
        let small = update(&resources(&a, 1, None), &b, (&changed, &[]), 2);
        assert_eq!(small.types, resources(&b, 2, None).types);
    }

    /// Whatever has changed: the same as if it was encoded anew, and what has not is shared.
    #[test]
    fn what_follows_an_older_model_equals_a_new_encoding() {
        use karst_api::{
            route::{AccessPolicy, PodRanges},
            workload::gateway_address::Destination,
        };
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(7);
        let mut model = Model::default();
        let mut told = resources(&model, 0, None);
        for version in 1..400 {
            let before = model.clone();
            let key = format!("ns/s{}", random.random_range(0..4));
            let uid = format!("cluster//Pod/{key}");
            let text = random.random_range(0..3).to_string();
            let goes = random.random_range(0..3) == 0;
            match random.random_range(0..6) {
                0 if goes => drop(model.services.remove(&key)),
                0 => {
                    let hostname = format!("w{text}");
                    let name = pb::NamespacedHostname { namespace: "ns".into(), hostname };
                    let waypoint =
                        pb::GatewayAddress { destination: Some(Destination::Hostname(name)), ..Default::default() };
                    let service = pb::Service { waypoint: Some(waypoint), hostname: key.clone(), ..Default::default() };
                    model.services.insert(key, service);
                }
                1 if goes => drop(model.routes.remove(&key)),
                1 => drop(
                    model.routes.insert(key, Arc::new(Routes { max_body_bytes: version % 3, ..Default::default() })),
                ),
                2 if goes => drop(model.backends.remove(&key)),
                2 => {
                    let shared = model.backends.values().next().filter(|_| text == "0").cloned();
                    drop(model.backends.insert(key, shared.unwrap_or_default()));
                }
                3 if goes => drop(model.access.remove(&key)),
                3 => {
                    let policies = vec![AccessPolicy { name: text, ..Default::default() }];
                    drop(model.access.insert(key, Arc::new(Access { policies, ..Default::default() })));
                }
                4 if goes => drop(model.pod_ranges.remove(&key)),
                4 => drop(model.pod_ranges.insert(key, PodRanges { ranges: vec![text] })),
                _ if goes => drop(model.workloads.remove(&uid)),
                _ => {
                    let services = [(format!("ns/s{text}"), pb::PortList::default())].into();
                    let workload = pb::Workload { uid: uid.clone(), node: text, services, ..Default::default() };
                    model.workloads.insert(uid, Arc::new(workload));
                }
            }
            let next = resources(&model, version, Some((&before, &told)));
            assert_eq!(next.types, resources(&model, version, None).types, "version {version}");
            let changed: usize = next.types.iter().map(|(set, now)| told.types[set].diff(now).count()).sum();
            assert!(changed <= 4, "{changed} resources of one change");
            told = next;
        }
    }

    #[test]
    fn workloads_and_services_are_found_by_what_proxies_ask_for() {
        use karst_core::addr::ip_to_bytes;
        let at = |ip: &str| ip_to_bytes(ip.parse().unwrap());
        let address = |ip: &str, length| pb::NetworkAddress { network: "net".into(), address: at(ip), length };
        let list = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let found = |entry: Entry| (entry.aliases.to_vec(), entry.groups.to_vec());
        let pod = pb::Workload {
            network: "net".into(),
            addresses: vec![at("10.0.0.1").into(), at("fd00::1").into()],
            node: "n".into(),
            services: ["ns/b", "ns/a"].map(|key| (key.to_string(), pb::PortList::default())).into(),
            ..Default::default()
        };
        let want = (list(&["net/10.0.0.1", "net/fd00::1"]), list(&["ns/a", "ns/b", "~node/n"]));
        assert_eq!(found(workload(&pod)), want);
        let of = |host: &str, addresses: &[pb::NetworkAddress]| {
            found(service(&pb::Service { hostname: host.into(), addresses: addresses.to_vec(), ..Default::default() }))
        };
        assert_eq!(of("a.com", &[address("10.96.0.1", None)]), (list(&["net/10.96.0.1"]), list(&["~host/a.com"])));
        let (aliases, groups) = of("a.com", &[address("10.96.0.0", Some(24))]);
        assert_eq!((aliases, groups), (list(&["net/10.96.0.0/24"]), list(&["~unnamed", "~host/a.com"])));
        assert_eq!(of("*.a.com", &[]).1, list(&["~unnamed", "~host/*.a.com"]));
        assert_eq!(*near("n"), list(&["~node/n", "~unnamed"]));
    }

    /// Istio's ztunnel would enforce what it is told of, whatever the mark says.
    #[test]
    fn dry_runs_are_told_only_to_who_knows_them() {
        let policy = |name: &str, dry_run: bool| karst_policy::Policy {
            name: name.into(),
            namespace: "ns".into(),
            scope: karst_policy::Scope::Namespace,
            action: karst_policy::Action::Deny,
            rules: vec![],
            dry_run,
        };
        let policies = [policy("dry", true), policy("enforced", false)].map(|p| (p.key(), p));
        let m = Model { policies: Arc::new(policies.into()), ..Model::default() };
        let r = resources(&m, 1, None);
        let names = |set: &str| r.types[set].keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(AUTHORIZATION_TYPE), ["ns/enforced"]);
        let variant = TYPES.variants.iter().find(|v| v.type_url == AUTHORIZATION_TYPE).unwrap();
        assert_eq!(
            (variant.feature, names(variant.set)),
            (karst_xds::DRY_RUN, vec!["ns/dry".into(), "ns/enforced".into()])
        );
        let bytes = &r.types[variant.set]["ns/dry"].bytes;
        assert!(karst_api::convert::policy(bytes).unwrap().dry_run, "and it is marked");
    }

    /// A type that is new is to be kept, too, and somebody decides what of it.
    #[test]
    fn older_versions_are_kept_of_every_type_that_is_served() {
        let kept: BTreeSet<&str> = REMEMBERED.iter().map(|one| one.type_url).collect();
        let served: BTreeSet<&str> = TYPES.order.iter().copied().collect();
        assert_eq!(kept, served);
        assert_eq!(kept.len(), REMEMBERED.len());
        let sets = resources(&Model::default(), 1, None).types;
        assert!(REMEMBERED.iter().all(|one| sets.contains_key(one.set)));
        for private in TYPES.private {
            assert!(REMEMBERED.iter().any(|one| one.type_url == *private && one.held != Secrets::None), "{private}");
        }
    }

    #[test]
    fn equal_workloads_have_equal_bytes() {
        let w = |order: [&str; 3]| pb::Workload {
            uid: "u".into(),
            services: order.iter().map(|s| (s.to_string(), pb::PortList::default())).collect(),
            ..Default::default()
        };
        let (a, b) = (w(["x", "y", "z"]), w(["z", "x", "y"]));
        assert_eq!(workload_bytes(&a), workload_bytes(&b));
        let back = pb::Address::decode(&workload_bytes(&a)[..]).unwrap();
        assert_eq!(back.r#type, Some(pb::address::Type::Workload(a)));
    }
}
