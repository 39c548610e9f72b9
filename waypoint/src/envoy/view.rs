//! What the pages are made of, and how services are named in them.

use crate::{config::Config, snapshot::Snapshot};
use karst_api::workload::AppProtocol;
use karst_core::Identity;
use karst_hbone::tls::Credentials;
use karst_proxy::state::{GatewayTo, Service};
use std::{collections::BTreeMap, sync::Arc};

/// What is known at one time.
pub struct View<'a> {
    /// How the process was started.
    pub config: &'a Config,
    /// Who we are.
    pub identity: &'a Identity,
    /// What requests are served from.
    pub snapshot: &'a Snapshot,
    /// Our certificates.
    pub certificates: &'a BTreeMap<Identity, Arc<Credentials>>,
}

impl View<'_> {
    /// Is the service called through us, as its waypoint?
    pub fn is_own(&self, service: &Service) -> bool {
        if self.config.is_gateway() {
            return false;
        }
        let name = format!("{}/{}.", self.identity.namespace(), self.identity.service_account());
        service.waypoints.iter().any(|(gateway, _)| match &gateway.to {
            GatewayTo::Service(key) => key.starts_with(&name),
            GatewayTo::Address(ip) => {
                let keys = self.snapshot.mesh.by_vip.get(ip);
                keys.into_iter().flatten().any(|key| key.starts_with(&name))
            }
        })
    }

    /// The services that have a name, in order.
    pub fn services(&self) -> Vec<&Arc<Service>> {
        let named = |service: &&Arc<Service>| !service.is_workload_service();
        let mut all: Vec<_> = self.snapshot.mesh.services.values().filter(named).collect();
        all.sort_by(|one, other| one.key.cmp(&other.key));
        all
    }

    /// The name of a cluster, as Istio writes it: direction, port, subset and host. To a service behind us it is `inbound-vip`, and
    /// the subset follows the protocol.
    pub fn cluster_name(&self, service: &Service, port: u16, subset: &str) -> String {
        let host = &service.hostname;
        match (self.is_own(service), subset) {
            (false, _) => format!("outbound|{port}|{subset}|{host}"),
            (true, "") => format!("inbound-vip|{port}|{}|{host}", protocol(service, port)),
            (true, _) => format!("inbound-vip|{port}|{}/{subset}|{host}", protocol(service, port)),
        }
    }

    /// The same for the key of a service, which need not be there any more; port 0 is the port that was called.
    pub fn destination(&self, key: &str, port: u16, called: u16, subset: &str) -> String {
        let port = if port == 0 { called } else { port };
        match self.snapshot.mesh.services.get(key) {
            Some(service) => self.cluster_name(service, port, subset),
            None => format!("outbound|{port}|{subset}|{}", key.split_once('/').map_or(key, |(_, host)| host)),
        }
    }

    /// The names of a service's subsets, the empty one (all of it) first.
    pub fn subsets(&self, service: &Service) -> Vec<&str> {
        let backend = self.snapshot.backends.get(&service.key);
        let named = backend.into_iter().flat_map(|b| &b.subsets).map(|subset| subset.name.as_str());
        [""].into_iter().chain(named).collect()
    }
}

/// `http` or `tcp`: whether requests are looked at.
pub fn protocol(service: &Service, port: u16) -> &'static str {
    match service.protocols.iter().find(|(at, _)| *at == port).map(|(_, protocol)| *protocol) {
        Some(AppProtocol::Tcp | AppProtocol::Tls) => "tcp",
        Some(AppProtocol::Unknown | AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) | None => "http",
    }
}
