//! Names of the field: API groups, labels, controllers, and the beginning of names of virtual hosts.

/// API group of Gateways.
pub(crate) const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// API group of Gateway API's kinds that are tried out.
pub(crate) const GATEWAY_API_EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";
/// API group of our own kinds.
pub(crate) const OWN_GROUP: &str = "karst.io";
/// API group of Istio's networking kinds.
pub(crate) const ISTIO_NETWORKING: &str = "networking.istio.io";

/// Label of what the deployer made; what lacks it is never overwritten.
pub(crate) const MANAGED: &str = "gateway.istio.io/managed";

/// Classes of Gateways that are no waypoints.
pub(crate) const INGRESS_CLASSES: [&str; 2] = ["istio", "karst"];
/// Controller name of these classes (Istio's).
pub(crate) const INGRESS: &str = "istio.io/gateway-controller";

/// What a parent is that names no kind.
pub(crate) const GATEWAY: &str = "Gateway";

/// A parent that adds listeners to a Gateway.
pub(crate) const LISTENER_SET: &str = "ListenerSet";

/// What calls within the mesh are called where a VirtualService names gateways.
pub(crate) const MESH: &str = "mesh";

/// What names of virtual hosts begin with: no name of a service does.
pub(crate) const VIRTUAL: char = '~';
