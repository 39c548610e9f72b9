//! Names and numbers that the parts of the mesh agree on, all of them Istio's.

/// Version of this program.
pub const CLIENT: &str = env!("CARGO_PKG_VERSION");
/// The control plane's port of metrics and debug pages.
pub const MONITORING: u16 = 15014;
/// A proxy's port of admin pages.
pub const ADMIN: u16 = 15000;
/// A proxy's port of metrics.
pub const METRICS: u16 = 15020;
/// Label of waypoints' and gateways' pods.
pub const GATEWAYS: &str = "gateway.networking.k8s.io/gateway-name";
/// Labels of the node agents' pods.
pub const AGENT: &str = "k8s-app=istio-cni-node";
