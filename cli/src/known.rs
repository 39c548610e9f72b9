//! Names and numbers that the parts of the mesh agree on, all of them Istio's.

/// Version of this program.
pub const CLIENT: &str = env!("CARGO_PKG_VERSION");
/// The control plane's port of metrics and debug pages.
pub const MONITORING: u16 = 15014;
/// A proxy's port of admin pages.
pub const ADMIN: u16 = 15000;
/// Labels of the node agents' pods.
pub const AGENT: &str = "k8s-app=istio-cni-node";
