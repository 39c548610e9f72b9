//! The wire formats that Karst shares with Istio, as generated types, and the constants that go with them.
//!
//! Only shapes live here, with six exceptions that both ends need: [`convert`] turns a wire policy into the model that is
//! evaluated, closed where it is not understood; [`route::Attribute::known`] does so for an attribute; [`route::Retry::istio`] is
//! the default for retries; [`route::Backend::rules`] finds a client's rules; [`zds_standby`] is where ztunnels stand by, and
//! [`zds_handover`] where they follow one another; and [`secrets`] takes keys out of resources.

mod attribute;
pub mod convert;
pub mod secrets;

use std::path::{Path, PathBuf};

/// `istio.workload`: what ztunnel knows of workloads and services.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod workload {
    tonic::include_proto!("istio.workload");
}
/// `istio.security`: L4 authorization policies.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod security {
    tonic::include_proto!("istio.security");
}
/// `istio.v1.auth`: certificate signing.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}
/// `istio.workload.zds`: node agent to ztunnel.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod zds {
    tonic::include_proto!("istio.workload.zds");
}
/// `envoy.service.discovery.v3`: delta discovery, and the stream of debug types.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod ads {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// `envoy.service.status.v3`: what proxies have taken in, as istioctl reads it.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod status {
    tonic::include_proto!("envoy.service.status.v3");
}

/// `karst.route.v1`: what layer 7 proxies do with requests.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod route {
    tonic::include_proto!("karst.route.v1");
}

/// OpenTelemetry's protocol for traces, as far as it is sent.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod otlp {
    tonic::include_proto!("opentelemetry.proto.trace.v1");
}

/// Envoy's protocol of external authorization, as far as it is spoken.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod ext_authz {
    tonic::include_proto!("envoy.service.auth.v3");
}

/// `karst.handover.v1`: how a ztunnel passes open connections to its successor.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod handover {
    tonic::include_proto!("karst.handover.v1");
}

/// Where a ztunnel that leaves and its successor find each other: a socket beside that of ZDS ([`handover`]). Istio's agent has none.
pub fn zds_handover(zds: &Path) -> PathBuf {
    zds.with_extension("handover.sock")
}

/// Where a ztunnel stands by: a socket beside that of ZDS, with the same protocol, whose callers get all pods and are never the one
/// that serves the node. (Not a word in the hello: Istio's agent takes whoever connects last for the node's ztunnel.)
pub fn zds_standby(zds: &Path) -> PathBuf {
    zds.with_extension("standby.sock")
}

impl std::fmt::Debug for route::KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPair")
    }
}

impl std::fmt::Debug for route::CollectorHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CollectorHeader").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for route::CheckHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckHeader").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for route::SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionKey").finish_non_exhaustive()
    }
}

impl route::Retry {
    /// What is tried again where nothing is said (Istio's default): two more attempts, where the application cannot have seen
    /// the request, or asks for it (gRPC's CANCELLED and UNAVAILABLE).
    pub fn istio() -> Self {
        Self {
            attempts: 2,
            backoff_ms: 25,
            connect_failure: true,
            refused_stream: true,
            grpc: vec![1, 14],
            ..Default::default()
        }
    }
}

/// How a service is called by clients of one namespace.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// For every port that has none of its own.
    pub policy: Option<&'a route::Policy>,
    /// By port.
    pub ports: &'a std::collections::BTreeMap<u32, route::Policy>,
    /// By name.
    pub subsets: &'a [route::Subset],
}

impl route::Backend {
    /// Is it called in a way of its own from this namespace?
    pub fn has_client(&self, namespace: &str) -> bool {
        self.clients.iter().any(|c| c.namespace == namespace)
    }

    /// The rules for clients of a namespace; for one that has none of its own those for everybody.
    pub fn rules(&self, namespace: &str) -> Rules<'_> {
        match self.clients.iter().find(|c| c.namespace == namespace) {
            Some(c) => Rules { policy: c.policy.as_ref(), ports: &c.ports, subsets: &c.subsets },
            None => Rules { policy: self.policy.as_ref(), ports: &self.ports, subsets: &self.subsets },
        }
    }
}

/// A workload's extension that says that it is about to end and serves still ([`DRAINING_TYPE`]).
pub fn draining() -> workload::Extension {
    let config = prost_types::Any { type_url: DRAINING_TYPE.into(), value: vec![] };
    workload::Extension { name: "karst.draining".into(), config: Some(config) }
}

/// Envoy's attributes that expressions (CEL) may name: `request.path`, `response.code`, `source.address`, …
pub const ATTRIBUTES: [&str; 7] = ["request", "response", "connection", "source", "destination", "upstream", "xds"];

/// Longest expression, in bytes (Istio's limit for regular expressions).
pub const MAX_EXPRESSION: usize = 1024;

/// xDS type of the routes of services.
pub const ROUTES_TYPE: &str = "type.googleapis.com/karst.route.v1.Routes";
/// xDS type of the routes of gateways' virtual hosts: the message is that of [`ROUTES_TYPE`].
pub const VIRTUAL_HOST_TYPE: &str = "type.googleapis.com/karst.route.v1.VirtualHost";
/// xDS type of what gateways listen on; each pod is told of its own only.
pub const GATEWAY_TYPE: &str = "type.googleapis.com/karst.route.v1.Gateway";
/// xDS type of how services are called.
pub const BACKEND_TYPE: &str = "type.googleapis.com/karst.route.v1.Backend";
/// xDS type of who may call services.
pub const ACCESS_TYPE: &str = "type.googleapis.com/karst.route.v1.Access";
/// Type of a workload's extension with its labels.
pub const LABELS_TYPE: &str = "type.googleapis.com/karst.route.v1.Labels";
/// Type of a workload's extension that says which pod it is.
pub const POD_TYPE: &str = "type.googleapis.com/karst.route.v1.Pod";
/// xDS type of the ranges that pods have their addresses from, by node.
pub const POD_RANGES_TYPE: &str = "type.googleapis.com/karst.route.v1.PodRanges";
/// Type of a workload's extension that says that it is about to end and serves still.
pub const DRAINING_TYPE: &str = "type.googleapis.com/karst.route.v1.Draining";
/// xDS type of workloads and services (Istio: `istio.workload.Address`).
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// xDS type of L4 policies (Istio: `istio.security.Authorization`).
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Largest ZDS packet, in bytes (Istio's agent and ztunnel both use this buffer).
pub const ZDS_MAX_PACKET: usize = 1024;
/// Version of [`handover`].
pub const HANDOVER_VERSION: u32 = 1;
/// Largest packet of [`handover`], in bytes.
pub const HANDOVER_MAX_PACKET: usize = 96 << 10;
/// Largest piece of [`handover::Rest`], in bytes.
pub const HANDOVER_PIECE: usize = 64 << 10;
/// In the metadata of a node, `true`: a process that stands by for another one of the same pod, which serves.
pub const SPARE: &str = "KARST_SPARE";
/// Token audience that both discovery and the CA ask for.
pub const TOKEN_AUDIENCE: &str = "istio-ca";
