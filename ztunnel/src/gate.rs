//! How many tunnels there may be, in the handshake and after it: those of a pod, and those of all pods of the node together.
//! Who must give way is decided in [`karst_rt::admission`]; shares are by the peer's address.

use karst_core::limits;
use karst_rt::admission::{Admission, Limits};

/// Places for tunnels.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Peers that have not shown who they are.
    pub handshakes: Admission,
    /// Peers that have.
    pub tunnels: Admission,
}

impl Gate {
    /// That of one pod, in a process with so many descriptors.
    pub fn of_pod(descriptors: u64) -> Self {
        let (handshakes, tunnels) = pod_limits(descriptors);
        Self { handshakes: Admission::new(handshakes), tunnels: Admission::new(tunnels) }
    }

    /// That of all pods together.
    pub fn of_node(descriptors: u64) -> Self {
        let (handshakes, tunnels) = node_limits(descriptors);
        Self { handshakes: Admission::new(handshakes), tunnels: Admission::new(tunnels) }
    }
}

/// Places for clients of one pod whose connections are captured as they are, without a tunnel, in a process with so many
/// descriptors. When all are taken, the oldest connection of the client that has the most gives way.
pub fn plaintext(descriptors: u64) -> Admission {
    Admission::new(plaintext_limits(descriptors))
}

fn plaintext_limits(descriptors: u64) -> Limits {
    let (total, per_source) = (limits::plaintext(descriptors), limits::plaintext_of_client(descriptors));
    // Those that no client may have alone are what strangers do not lose to clients of the mesh.
    Limits { total, per_source, known: 0, strangers: total - per_source, in_use: usize::MAX }
}

fn pod_limits(descriptors: u64) -> (Limits, Limits) {
    let tunnels = Limits {
        per_source: limits::MAX_TUNNELS_PER_PEER,
        // Streams: one peer must leave some of the pod's connections to others.
        in_use: limits::connections_of_peer(descriptors),
        ..Limits::even(limits::tunnels_of_pod(descriptors))
    };
    (Limits::shared(limits::handshakes_of_pod(descriptors)), tunnels)
}

fn node_limits(descriptors: u64) -> (Limits, Limits) {
    let tunnels = Limits {
        per_source: limits::tunnels_of_node_of_peer(descriptors),
        ..Limits::even(limits::tunnels_of_node(descriptors))
    };
    (Limits::shared(limits::handshakes_of_node(descriptors)), tunnels)
}

/// What there is at most of each, of all sources and of one, as metrics call it, in a process with so many descriptors.
pub fn bounds(descriptors: u64) -> [(&'static str, usize); 10] {
    let ((handshakes, tunnels), (of_node, tunnels_of_node)) = (pod_limits(descriptors), node_limits(descriptors));
    let plaintext = plaintext_limits(descriptors);
    [
        ("tunnels", tunnels.total),
        // Where there are few places, one peer may have all.
        ("tunnels_of_peer", tunnels.per_source.min(tunnels.total)),
        ("handshakes", handshakes.total),
        ("handshakes_of_peer", handshakes.per_source),
        ("plaintext", plaintext.total),
        ("plaintext_of_peer", plaintext.per_source),
        ("node_tunnels", tunnels_of_node.total),
        ("node_tunnels_of_peer", tunnels_of_node.per_source),
        ("node_handshakes", of_node.total),
        ("node_handshakes_of_peer", of_node.per_source),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_rt::admission::{Permit, Source};
    use std::{collections::HashMap, net::IpAddr};

    /// What the page says is what is enforced.
    #[test]
    fn there_are_as_many_places_as_the_page_says() {
        let (pod, node, plain) = (Gate::of_pod(2048), Gate::of_node(2048), plaintext(2048));
        let most = HashMap::from(bounds(2048));
        let ip = |n: usize| IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        for (places, name) in [
            (&pod.tunnels, "tunnels"),
            (&pod.handshakes, "handshakes"),
            (&plain, "plaintext"),
            (&node.tunnels, "node_tunnels"),
            (&node.handshakes, "node_handshakes"),
        ] {
            let begin = |n: usize| Permit::admit(&[places], &Source::address(ip(n), true)).unwrap();
            let (all, of_peer) = (most[name], most[&*format!("{name}_of_peer")]);
            let own: Vec<_> = (0..2 * all).map(|_| begin(1)).collect();
            assert_eq!(own.iter().filter(|p| !p.is_evicted()).count(), of_peer, "{name}");
            let others: Vec<_> = (2..1000).map(begin).collect();
            assert_eq!(own.iter().chain(&others).filter(|p| !p.is_evicted()).count(), all, "{name}");
        }
        assert_eq!(most.len(), 2 * 5, "no other row, and none twice");
    }

    #[test]
    fn no_peer_and_no_pod_can_use_up_the_descriptors() {
        for descriptors in [1024, 20_000, 65_536, 1 << 20, u64::MAX] {
            let ((pod_h, pod_t), (node_h, node_t)) = (pod_limits(descriptors), node_limits(descriptors));
            let all = (node_h.total + node_t.total) as u64;
            assert!(all <= descriptors / 5, "{all} of {descriptors}");
            assert!(pod_h.total <= node_h.total && pod_t.total <= node_t.total);
            assert!(
                pod_h.per_source < pod_h.total && node_h.per_source < node_h.total && node_t.per_source < node_t.total
            );
            let inbound = limits::connections_of_direction(descriptors);
            let plain = plaintext_limits(descriptors);
            assert!(pod_t.in_use < inbound && plain.per_source < plain.total && plain.total < inbound, "{plain:?}");
        }
        let (h, t) = pod_limits(1 << 20);
        assert_eq!((h.total, t.total), (limits::MAX_HANDSHAKES_PER_POD, limits::MAX_TUNNELS_PER_POD));
        assert!(t.per_source < t.total / 8);
    }
}
