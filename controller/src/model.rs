//! The mesh as the controller knows it: the result of [`crate::convert::compile`], without any Kubernetes type.

use imbl::OrdMap;
use karst_api::{
    route::{Access, Backend, Gateway, PodRanges, Routes},
    workload::{Service, Workload},
};
use karst_policy::Policy;
use karst_xds::Scopes;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// The whole state. A copy shares what it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// By uid.
    pub workloads: OrdMap<String, Arc<Workload>>,
    /// By `namespace/hostname`.
    pub services: OrdMap<String, Service>,
    /// By `namespace/name`.
    pub policies: Arc<BTreeMap<String, Policy>>,
    /// What gateways listen on, by `namespace/name` of the pod.
    pub gateways: OrdMap<String, Arc<Gateway>>,
    /// Routes of services, by `namespace/hostname`, and of gateways' virtual hosts, whose names begin with `~`.
    pub routes: OrdMap<String, Arc<Routes>>,
    /// How services are called, by `namespace/hostname`.
    pub backends: OrdMap<String, Arc<Backend>>,
    /// Who may call services, by `namespace/hostname`.
    pub access: OrdMap<String, Arc<Access>>,
    /// What nodes give their pods addresses from, by node.
    pub pod_ranges: OrdMap<String, PodRanges>,
    /// Of routes and policies of services, and of routes of virtual hosts, the groups that the pods of waypoints and gateways are told
    /// of, by `namespace/name`.
    pub scopes: Scopes,
    /// For the certificate authority: what runs where. By `namespace/name`.
    pub pods: OrdMap<String, Arc<PodInfo>>,
}

/// What the certificate authority knows of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodInfo {
    /// metadata.uid; a name that is used again has another.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Node.
    pub node: String,
    /// Not ended (phase neither Succeeded nor Failed).
    pub live: bool,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}
