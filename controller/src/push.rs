//! From the model to a snapshot of xDS resources.

use crate::model::Model;
use karst_api::{
    ACCESS_TYPE, ADDRESS_TYPE, AUTHORIZATION_TYPE, BACKEND_TYPE, GATEWAY_TYPE, POD_RANGES_TYPE, ROUTES_TYPE,
    VIRTUAL_HOST_TYPE,
    convert::policy_to_wire,
    route::{Backend, Routes},
    workload as pb,
};
use karst_core::addr::ip_from_bytes;
use karst_xds::{
    Entry, Resources, Set,
    server::{Types, Variant},
};
use prost::Message;
use std::{collections::HashMap, sync::Arc};

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
pub const TYPES: Types = Types { order: ORDER, private: PRIVATE, variants: VARIANTS };

/// Encodes the model. The maps inside are written in the order of their keys, so that equal content has equal bytes.
/// What is the same as in an older model has the bytes of then.
pub fn resources(model: &Model, version: u64, old: Option<(&Model, &Resources)>) -> Resources {
    let mut addresses: Set = model.workloads.iter().map(|(uid, w)| (uid.clone(), workload(w))).collect();
    for (key, service) in &model.services {
        let alias = |a: &pb::NetworkAddress| {
            let ip = ip_from_bytes(&a.address)?;
            Some(a.length.map_or_else(|| format!("{}/{ip}", a.network), |l| format!("{}/{ip}/{l}", a.network)))
        };
        let address = pb::Address { r#type: Some(pb::address::Type::Service(service.clone())) };
        addresses.insert(
            key.clone(),
            Entry::new(address.encode_to_vec(), service.addresses.iter().filter_map(alias).collect()),
        );
    }
    let policies = |dry_run: bool| {
        let some = model.policies.iter().filter(move |(_, p)| p.dry_run == dry_run);
        some.map(|(k, p)| (k.clone(), Entry::new(policy_to_wire(p).encode_to_vec(), vec![])))
    };
    let enforced: Set = policies(false).collect();
    let all_policies: Set = enforced.clone().into_iter().chain(policies(true)).collect();
    let is_virtual = |k: &String| k.starts_with(crate::convert::VIRTUAL);
    let before = |k: &String, r: &Arc<Routes>| {
        let (model, resources) = old?;
        let same = model.routes.get(k).is_some_and(|o| Arc::ptr_eq(o, r));
        let t = if is_virtual(k) { VIRTUAL_HOST_TYPE } else { ROUTES_TYPE };
        resources.types.get(t)?.get(k).filter(|_| same).cloned()
    };
    let route = |(k, r): (&String, &Arc<Routes>)| {
        (k.clone(), before(k, r).unwrap_or_else(|| Entry::new(r.encode_to_vec(), vec![])))
    };
    let routes = model.routes.iter().filter(|(k, _)| !is_virtual(k)).map(route).collect();
    let virtual_hosts = model.routes.iter().filter(|(k, _)| is_virtual(k)).map(route).collect();
    let gateways = model.gateways.iter().map(|(k, g)| (k.clone(), Entry::new(g.encode_to_vec(), vec![]))).collect();
    // Services share what the same rules say of them.
    let mut encoded: HashMap<*const Backend, Entry> = HashMap::new();
    let backend = |(key, b): (&String, &Arc<Backend>)| {
        let one = encoded.entry(Arc::as_ptr(b)).or_insert_with(|| {
            let before = old.filter(|(model, _)| model.backends.get(key).is_some_and(|o| Arc::ptr_eq(o, b)));
            let before = before.and_then(|(_, resources)| resources.types.get(BACKEND_TYPE)?.get(key).cloned());
            before.unwrap_or_else(|| Entry::new(b.encode_to_vec(), vec![]))
        });
        (key.clone(), one.clone())
    };
    let backends = model.backends.iter().map(backend).collect();
    let access = model.access.iter().map(|(k, a)| (k.clone(), Entry::new(a.encode_to_vec(), vec![]))).collect();
    let ranges = model.pod_ranges.iter().map(|(k, r)| (k.clone(), Entry::new(r.encode_to_vec(), vec![]))).collect();
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
    Resources { types: types.into(), version }
}

/// The resources after a change of these workloads only.
pub fn update(old: &Resources, model: &Model, changed: &[String], version: u64) -> Resources {
    let mut types = old.types.clone();
    let addresses = types.entry(ADDRESS_TYPE).or_default();
    for uid in changed {
        match model.workloads.get(uid) {
            Some(w) => addresses.insert(uid.clone(), workload(w)),
            None => addresses.remove(uid),
        };
    }
    Resources { types, version }
}

fn workload(workload: &pb::Workload) -> Entry {
    let aliases =
        workload.addresses.iter().filter_map(|a| Some(format!("{}/{}", workload.network, ip_from_bytes(a)?))).collect();
    Entry::new(workload_bytes(workload), aliases)
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
        let small = update(&resources(&a, 1, None), &b, &changed, 2);
        assert_eq!(small.types, resources(&b, 2, None).types);
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
