//! Workloads, services, and how gateways are named.

use super::baggage::Baggage;
use http::HeaderValue;
use karst_api::workload as pb;
use karst_core::{Cidr, Identity};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

/// Service port and target port, of each port.
pub type Ports = Vec<(u16, u16)>;
/// A service's key, and its ports on a workload.
pub type Membership = (Arc<str>, Ports);

/// A UDP port of a service on a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpPort {
    /// The service's.
    pub port: u16,
    /// The workload's.
    pub target: u16,
    /// What forbids who has no identity to send there, in words. Empty: nothing.
    pub closed: Arc<str>,
}

/// What a workload is made from, as its uid says (`cluster/group/kind/namespace/name`). Found where the uid is taken in, and asked of
/// each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// One of Kubernetes' pods.
    Pod,
    /// What another API group calls a pod.
    OtherPod,
    /// An entry of another kind, which may have a pod's name.
    Entry,
}

impl ObjectKind {
    /// Of the workload with this uid.
    pub fn of(uid: &str) -> Self {
        if uid.contains("//Pod/") {
            Self::Pod
        } else if uid.contains("/Pod/") {
            Self::OtherPod
        } else {
            Self::Entry
        }
    }
}

/// A pod or another endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub uid: Arc<str>,
    /// See [`ObjectKind::of`].
    pub kind: ObjectKind,
    /// Which pod it is, as the node agent writes uids ([`karst_core::zds_uid`]); empty: not told (istiod does not).
    pub pod_uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub ips: Vec<IpAddr>,
    pub hostname: Arc<str>,
    pub network: Arc<str>,
    pub hbone: bool,
    pub native_tunnel: bool,
    pub identity: Identity,
    pub waypoint: Option<Gateway>,
    pub node: Arc<str>,
    pub workload_name: Arc<str>,
    pub workload_type: &'static str,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub policies: Vec<Arc<str>>,
    /// Policies in dry run that select it (an extension of ours).
    pub dry_runs: Vec<Arc<str>>,
    pub healthy: bool,
    /// Not healthy, as it is about to end, but it serves still: for when there is no other (KEP-1669).
    pub draining: bool,
    pub cluster: Arc<str>,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
    pub host_network: bool,
    pub capacity: u32,
    /// By service key: service port and target port.
    pub services: Vec<Membership>,
    /// The UDP ports of its services, by their keys (an extension of ours).
    pub udp: Vec<(Arc<str>, Vec<UdpPort>)>,
    /// Those of its labels that routes ask for (an extension of ours).
    pub labels: Arc<BTreeMap<String, String>>,
    /// See [`Workload::baggage`].
    pub baggage: Baggage,
}

/// How a gateway or waypoint is named.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    pub to: GatewayTo,
    pub port: u16,
}
#[derive(Clone, Debug, PartialEq)]
pub enum GatewayTo {
    /// Key of a service: `namespace/hostname`.
    Service(Arc<str>),
    Address(IpAddr),
}

/// A pod as those say who run it: the node's agent, or the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct OwnPod<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub account: &'a str,
    /// As the node agent writes it; None: not known.
    pub uid: Option<&'a str>,
}

impl OwnPod<'_> {
    /// Is this workload that pod? A name is used again, by a pod of another uid and maybe another account: that is another pod,
    /// and nothing that was said of the one holds for the other.
    pub fn is(&self, workload: &Workload) -> bool {
        let same = self.uid.is_none_or(|u| workload.pod_uid.is_empty() || *workload.pod_uid == *u);
        let named = *workload.namespace == *self.namespace && *workload.name == *self.name;
        same && named && workload.is_pod() && workload.identity.service_account() == self.account
    }
}

/// What the node agent says of a pod.
pub struct Announced<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub identity: Identity,
    pub node: &'a str,
    pub cluster: &'a str,
    pub network: &'a str,
}

impl Workload {
    /// Is it a pod, not an entry of another kind that may have a pod's name?
    pub fn is_pod(&self) -> bool {
        match self.kind {
            ObjectKind::Pod | ObjectKind::OtherPod => true,
            ObjectKind::Entry => false,
        }
    }
    /// A pod of this node that the control plane has not told of, from what the agent says.
    pub fn unannounced(announced: Announced<'_>) -> Self {
        Self {
            uid: format!("{}//Pod/{}/{}", announced.cluster, announced.namespace, announced.name).into(),
            kind: ObjectKind::Pod,
            pod_uid: "".into(),
            name: announced.name.into(),
            namespace: announced.namespace.into(),
            ips: vec![],
            hostname: "".into(),
            network: announced.network.into(),
            hbone: true,
            native_tunnel: false,
            identity: announced.identity,
            waypoint: None,
            node: announced.node.into(),
            workload_name: announced.name.into(),
            workload_type: "pod",
            canonical_name: announced.name.into(),
            canonical_revision: "latest".into(),
            policies: vec![],
            dry_runs: vec![],
            healthy: true,
            draining: false,
            cluster: announced.cluster.into(),
            region: "".into(),
            zone: "".into(),
            subzone: "".into(),
            host_network: false,
            capacity: 1,
            services: vec![],
            udp: vec![],
            labels: Arc::default(),
            baggage: Baggage::none(),
        }
    }
    /// The `baggage` header that describes it. None: nobody has told what it would say.
    pub fn baggage(&self) -> Option<&HeaderValue> {
        let kind = match self.workload_type {
            "deployment" => "k8s.deployment.name",
            "cronjob" => "k8s.cronjob.name",
            "job" => "k8s.job.name",
            _ => "k8s.pod.name",
        };
        self.baggage.get(&[
            ("k8s.cluster.name", &*self.cluster),
            ("k8s.namespace.name", &*self.namespace),
            (kind, &*self.workload_name),
            ("service.name", &*self.canonical_name),
            ("service.version", &*self.canonical_revision),
            ("cloud.region", &*self.region),
            ("cloud.availability_zone", &*self.zone),
        ])
    }
    /// Is this an address of nobody else than this workload?
    pub fn has(&self, ip: IpAddr) -> bool {
        !self.host_network && self.ips.contains(&ip)
    }
    /// Its UDP port for one of a service's.
    pub fn udp_port(&self, service: &str, port: u16) -> Option<&UdpPort> {
        let (_, ports) = self.udp.iter().find(|(key, _)| **key == *service)?;
        ports.iter().find(|p| p.port == port)
    }
    /// Why who has no identity may not send datagrams to this workload, as an endpoint of a service: what is not captured guards
    /// nothing, and what a member does not say of itself is not known. None: he may.
    pub fn closed_to_datagrams(&self, service: &str, port: u16) -> Option<Arc<str>> {
        if !self.hbone {
            return None;
        }
        match self.udp_port(service, port) {
            Some(own) if own.closed.is_empty() => None,
            Some(own) => Some(own.closed.clone()),
            None => Some("the endpoint is a member of the mesh by another object".into()),
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub key: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    pub vips: Vec<IpAddr>,
    pub ranges: Vec<Cidr>,
    /// If it has but one family (`ipFamilies`): an address of that, unspecified. Its endpoints may have others, at which their
    /// applications need not listen.
    pub only_family: Option<IpAddr>,
    /// Service port and target port (0: named, see the endpoint).
    pub ports: Vec<(u16, u16)>,
    /// Its UDP ports (an extension of ours).
    pub udp_ports: Vec<u16>,
    /// What is spoken at each service port.
    pub protocols: Vec<(u16, pb::AppProtocol)>,
    /// Service ports at which gRPC-Web is made gRPC (an extension of ours).
    pub grpc_web: Vec<u16>,
    pub sans: Vec<Identity>,
    pub waypoints: Vec<(Gateway, u32)>,
    pub mode: Mode,
    pub scopes: Vec<LocalityScope>,
    pub only_healthy: bool,
    pub canonical: bool,
    pub private: bool,
    /// Gateways send what is for it to its waypoint (`istio.io/ingress-use-waypoint`).
    pub ingress_waypoint: bool,
    /// A client stays with its endpoint until it has made no connection for this long (`sessionAffinity: ClientIP`; an
    /// extension of ours).
    pub affinity: Option<Duration>,
}

impl Service {
    /// The key of the service that stands for a workload alone ([`super::Snapshot::add_workload_service`]).
    pub fn workload_service(uid: &str) -> Arc<str> {
        format!("~{uid}").into()
    }
    /// The service that stands for a workload alone, behind its waypoint: without name or address.
    pub(super) fn of_workload(workload: &Workload, waypoint: Gateway) -> Self {
        Self {
            key: Self::workload_service(&workload.uid),
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            hostname: "".into(),
            vips: vec![],
            ranges: vec![],
            only_family: None,
            ports: vec![],
            udp_ports: vec![],
            protocols: vec![],
            grpc_web: vec![],
            sans: vec![],
            waypoints: vec![(waypoint, 1)],
            mode: Mode::Any,
            scopes: vec![],
            only_healthy: false,
            canonical: false,
            private: true,
            ingress_waypoint: false,
            affinity: None,
        }
    }
    /// Does it stand for a workload alone?
    pub fn is_workload_service(&self) -> bool {
        self.key.starts_with('~')
    }
}

/// How endpoints are chosen by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Any,
    Strict,
    Failover,
    Passthrough,
}
/// A place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalityScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_says_whether_it_is_a_pods() {
        for (uid, kind) in [
            ("Kubernetes//Pod/ns/a", ObjectKind::Pod),
            ("//Pod/ns/a", ObjectKind::Pod),
            ("c/other.example.com/Pod/ns/a", ObjectKind::OtherPod),
            ("Kubernetes/networking.istio.io/WorkloadEntry/ns/a", ObjectKind::Entry),
            ("Pod/ns/a", ObjectKind::Entry),
            ("c//pod/ns/a", ObjectKind::Entry),
            ("", ObjectKind::Entry),
        ] {
            assert_eq!(ObjectKind::of(uid), kind, "{uid}");
        }
    }
}
