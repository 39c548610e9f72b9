//! The objects. Names and defaults are those of the Kubernetes, Gateway and Istio APIs; see there for their meaning.
#![allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]

pub use crate::{
    authorization::*,
    extension::HTTPFilter,
    gateway::*,
    gatewayapi::{
        BackendTLSPolicy, GRPCRoute, HTTPRoute, ReferenceGrant, TCPRoute, TLSRoute, UDPRoute, XBackendTrafficPolicy,
    },
    kubernetes::*,
    meta::*,
    security::RequestAuthentication,
    service_entry::*,
    telemetry::Telemetry,
    traffic::{DestinationRule, IstioGateway, VirtualService},
};
use serde::Deserialize;

macro_rules! kinds {
    ($($kind:ident $group:literal $namespaced:literal),* $(,)?) => {
        /// Any object that Karst reads.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object { $($kind(Box<$kind>)),* }
        impl Object {
            /// The kind's name here, one of [`KINDS`]; see [`api_kind`].
            pub fn kind(&self) -> &'static str {
                match self { $(Object::$kind(_) => stringify!($kind)),* }
            }
            /// The object's metadata.
            pub fn meta(&self) -> &Meta {
                match self { $(Object::$kind(o) => &o.metadata),* }
            }
            pub(crate) fn meta_mut(&mut self) -> &mut Meta {
                match self { $(Object::$kind(o) => &mut o.metadata),* }
            }
            pub(crate) fn read<'de, D: serde::Deserializer<'de>>(kind: &str, d: D) -> Option<Result<Self, D::Error>> {
                Some(match kind {
                    $(stringify!($kind) => Deserialize::deserialize(d).map(|o| Object::$kind(Box::new(o))),)*
                    _ => return None,
                })
            }
        }
        /// Kind (by its name here), API group, and whether objects of the kind live in a namespace.
        pub const KINDS: &[(&str, &str, bool)] = &[$((stringify!($kind), $group, $namespaced)),*];
    };
}

/// Two groups have a Gateway; Istio's has a name of its own here.
const ISTIO_GATEWAY: &str = "IstioGateway";

/// The name that the API has for a kind of [`KINDS`].
pub fn api_kind(kind: &str) -> &str {
    if kind == ISTIO_GATEWAY { "Gateway" } else { kind }
}

/// The entry of [`KINDS`] for what the API calls so.
pub fn known(kind: &str, group: &str) -> Option<&'static (&'static str, &'static str, bool)> {
    KINDS.iter().find(|(k, g, _)| api_kind(k) == kind && *g == group)
}

kinds! {
    Namespace "" false,
    Node "" false,
    Pod "" true,
    Service "" true,
    ServiceAccount "" true,
    ConfigMap "" true,
    Secret "" true,
    Deployment "apps" true,
    EndpointSlice "discovery.k8s.io" true,
    MutatingWebhookConfiguration "admissionregistration.k8s.io" false,
    ClusterTrustBundle "certificates.k8s.io" false,
    ServiceCIDR "networking.k8s.io" false,
    CustomResourceDefinition "apiextensions.k8s.io" false,
    GatewayClass "gateway.networking.k8s.io" false,
    Gateway "gateway.networking.k8s.io" true,
    ListenerSet "gateway.networking.k8s.io" true,
    HTTPRoute "gateway.networking.k8s.io" true,
    GRPCRoute "gateway.networking.k8s.io" true,
    TCPRoute "gateway.networking.k8s.io" true,
    TLSRoute "gateway.networking.k8s.io" true,
    UDPRoute "gateway.networking.k8s.io" true,
    BackendTLSPolicy "gateway.networking.k8s.io" true,
    XBackendTrafficPolicy "gateway.networking.x-k8s.io" true,
    ReferenceGrant "gateway.networking.k8s.io" true,
    VirtualService "networking.istio.io" true,
    IstioGateway "networking.istio.io" true,
    DestinationRule "networking.istio.io" true,
    ServiceEntry "networking.istio.io" true,
    WorkloadEntry "networking.istio.io" true,
    AuthorizationPolicy "security.istio.io" true,
    PeerAuthentication "security.istio.io" true,
    RequestAuthentication "security.istio.io" true,
    Telemetry "telemetry.istio.io" true,
    HTTPFilter "karst.io" true,
}
