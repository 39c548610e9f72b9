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

/// The same for one that an object has written by its address. If our pod has its node's network, the node's address is not ours alone:
/// what else is at a node (its API server, say) may be called, and what listens there is there for everybody.
pub fn is_usable_as_written(mesh: &state::Snapshot, own: Option<&Workload>, ip: IpAddr) -> bool {
    is_usable(mesh, own.filter(|own| !own.host_network), ip)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_api::workload::{self as pb, NetworkMode};
    use karst_proxy::testing::{pod, service, snapshot};

    #[test]
    fn a_nodes_address_may_be_written_though_a_gateway_shares_it() {
        let kubernetes = pb::Service { canonical: true, ..service("k", "10.96.0.2", &[(443, 6443)]) };
        for (mode, shares) in [(NetworkMode::Standard, false), (NetworkMode::HostNetwork, true)] {
            let own = pb::Workload { network_mode: mode as i32, ..pod("own", "192.0.2.1", &[]) };
            let mesh = snapshot(vec![own], vec![kubernetes.clone()]);
            let own = mesh.workloads.get("Kubernetes//Pod/ns/own").map(|own| &**own);
            assert!(own.is_some());
            let is = |ip: &str| is_usable_as_written(&mesh, own, ip.parse().unwrap());
            assert_eq!(is("192.0.2.1"), shares, "{mode:?}");
            assert!(is("192.0.2.2") && !is("127.0.0.1") && !is("10.96.0.2"), "{mode:?}");
            // A name may lead anywhere its owner likes.
            assert!(!is_usable(&mesh, own, "192.0.2.1".parse().unwrap()));
        }
    }
}
