//! Addresses that are called because of what a client, a resolver or somebody's object says.

use karst_core::addr::is_host;
use karst_proxy::state::{self, Workload};
use std::net::IpAddr;

/// May this address be an endpoint that is known by its name, by what was called, or by what an object has written? Not ourselves,
/// nor what listens here for nobody else; and sent to a Service's address, it would go past the mesh. (An entry may well have its
/// endpoint's address.)
pub fn is_usable(mesh: &state::Snapshot, own: Option<&Workload>, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_own = own.is_some_and(|o| o.ips.contains(&ip));
    is_host(ip) && !is_own && mesh.cluster_service(ip).is_none()
}
