//! Addresses that are called because of what a client or a resolver says.

use karst_core::addr::is_host;
use karst_proxy::state::{self, Workload};
use std::net::IpAddr;

/// May this address be an endpoint that is known by its name, or by what was called? Not ourselves; and sent to a service's
/// address, it would go past the mesh. (An entry may well have its endpoint's address.)
pub fn is_usable(mesh: &state::Snapshot, own: Option<&Workload>, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_own = own.is_some_and(|o| o.ips.contains(&ip));
    let mut called = mesh.by_vip.get(&ip).into_iter().flatten().filter_map(|k| mesh.services.get(k));
    is_host(ip) && !is_own && !called.any(|s| s.canonical)
}
