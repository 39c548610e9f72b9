//! The names of the tags that spans have by themselves, so that it is known before a request which custom tags replace one.

/// Istio's tags of one end of a call.
macro_rules! side {
    ($side:literal) => {
        [
            concat!("istio.", $side, "_workload"),
            concat!("istio.", $side, "_namespace"),
            concat!("istio.", $side, "_cluster_id"),
            concat!("istio.", $side, "_canonical_service"),
            concat!("istio.", $side, "_canonical_revision"),
            concat!("istio.", $side, "_workload_type"),
            concat!("istio.", $side, "_instance_name"),
        ]
    };
}

/// Names of [`crate::spans::common`]'s values of one end of a call, in their order: of who calls,
pub const SOURCE: [&str; 7] = side!("source");
/// and of who is called.
pub const DESTINATION: [&str; 7] = side!("destination");

/// All others.
const STANDARD: [&str; 43] = [
    "client.address",
    "component",
    "downstream_cluster",
    "error",
    "error.type",
    "grpc.authority",
    "grpc.path",
    "grpc.status_code",
    "guid:x-client-trace-id",
    "guid:x-request-id",
    "http.method",
    "http.protocol",
    "http.request.method",
    "http.request.resend_count",
    "http.response.status_code",
    "http.status_code",
    "http.url",
    "istio.canonical_revision",
    "istio.canonical_service",
    "istio.cluster_id",
    "istio.mesh_id",
    "istio.namespace",
    "network.peer.address",
    "network.peer.port",
    "network.protocol.version",
    "node_id",
    "peer.address",
    "request_size",
    "response_flags",
    "response_size",
    "retry.count",
    "server.address",
    "server.port",
    "upstream_address",
    "upstream_cluster",
    "upstream_cluster.name",
    "url.full",
    "url.path",
    "url.query",
    "url.scheme",
    "user_agent",
    "user_agent.original",
    "zone",
];

/// Is there a tag of this name without a user's saying so?
pub fn is_standard(name: &str) -> bool {
    [&STANDARD[..], &SOURCE, &DESTINATION].iter().any(|names| names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_proxys_own_tags_are_known() {
        for name in ["zone", "istio.mesh_id", "istio.source_workload", "istio.destination_workload_type"] {
            assert!(is_standard(name), "{name}");
        }
        for name in ["mine", "istio.mine", "istio.workload", "istio.source_mesh_id", "workload"] {
            assert!(!is_standard(name), "{name}");
        }
    }
}
