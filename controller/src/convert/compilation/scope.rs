//! Which routes and policies the pods of waypoints are told of: those of the services that are bound to them; and which routes the pods
//! of gateways: those of their listeners.
//!
//! What must always hold: a pod that serves a service as a waypoint (`karst_proxy::endpoints::is_waypoint` decides, by what the
//! pod is told of itself) has the service's policies. So a group is named by what a service names its waypoint by, and a pod is in
//! all groups that could mean it; where that cannot be said, it is told of everything.

use crate::{
    convert::{compilation::workload::uid, facts::gateway::is_gateway, objects::Objects},
    model::Model,
    scope_group,
};
use karst_core::addr::ip_from_bytes;
use karst_xds::Scopes;
use std::{collections::BTreeSet, sync::Arc};

/// The groups of each pod of a waypoint or gateway, by its namespace and name.
pub(crate) fn compile(objects: &Objects<'_>, model: &Model) -> Scopes {
    let pods = objects.pods.iter().filter(|pod| is_gateway(objects, pod));
    let scope = pods.filter_map(|pod| {
        let name = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
        let mut groups = groups(model, &uid(objects.mesh, pod))?;
        groups.extend(model.gateways.get(&name).into_iter().flat_map(|gateway| scope_group::listened(gateway)));
        Some((name, groups.into_iter().collect::<Arc<[String]>>()))
    });
    scope.collect()
}

/// The groups of a workload, as a waypoint. None: they cannot be named.
fn groups(model: &Model, uid: &str) -> Option<BTreeSet<String>> {
    let mut groups = BTreeSet::new();
    // One that nobody is told of is nobody's waypoint yet.
    if let Some(own) = model.workloads.get(uid) {
        groups.extend(own.addresses.iter().filter_map(|bytes| ip_from_bytes(bytes)).map(scope_group::at));
        for key in own.services.keys() {
            groups.insert(scope_group::called(key));
            for address in model.services.get(key).into_iter().flat_map(|service| &service.addresses) {
                // Any address of a range may be meant.
                if address.length.is_some() {
                    return None;
                }
                groups.extend(ip_from_bytes(&address.address).map(scope_group::at));
            }
        }
    }
    Some(groups)
}
