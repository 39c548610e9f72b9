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
    // Some of the pod's inbound connections are left to tunnels, and of these to whoever else comes.
    let total = limits::connections_of_peer(descriptors);
    Limits { total, per_source: total - total / 8, known: 0, strangers: total / 8, in_use: usize::MAX }
}

fn part(descriptors: u64, of: u64, most: usize) -> usize {
    usize::try_from(descriptors / of).unwrap_or(usize::MAX).clamp(32, most)
}

fn pod_limits(descriptors: u64) -> (Limits, Limits) {
    let tunnels = Limits {
        per_source: limits::MAX_TUNNELS_PER_PEER,
        // Streams: one peer must leave some of the pod's connections to others.
        in_use: limits::connections_of_peer(descriptors),
        ..Limits::even(part(descriptors, 8, limits::MAX_TUNNELS_PER_POD))
    };
    (Limits::shared(part(descriptors, 32, limits::MAX_HANDSHAKES_PER_POD)), tunnels)
}

fn node_limits(descriptors: u64) -> (Limits, Limits) {
    let tunnels = part(descriptors, 8, 65_536);
    (
        Limits::shared(part(descriptors, 32, 4 * limits::MAX_HANDSHAKES_PER_POD)),
        Limits { per_source: tunnels / 4, ..Limits::even(tunnels) },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
