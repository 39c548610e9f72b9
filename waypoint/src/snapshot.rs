//! What is known at one time: the mesh, routes, and how services are called, immutable.

use crate::{
    authz::access::Access,
    downstream::{gateway::Gateway, topology::Topology},
    route::table::Routes,
    telemetry::rules::Telemetry,
};
use imbl::OrdMap;
use karst_api::route as ir;
use karst_proxy::state::{self, Service};
use std::sync::Arc;

/// One immutable state.
#[derive(Clone)]
pub struct Snapshot {
    pub mesh: state::Snapshot,
    /// By service.
    pub routes: OrdMap<Arc<str>, Arc<Routes>>,
    /// By service.
    pub backends: OrdMap<Arc<str>, Arc<ir::Backend>>,
    /// How many of those have rules for some clients.
    pub by_client: usize,
    /// By service.
    pub access: OrdMap<Arc<str>, Arc<Access>>,
    /// Routes of virtual hosts of gateways, by the listener's name for them, a slash and the host.
    pub hosts: OrdMap<Arc<str>, Arc<Routes>>,
    /// What we listen on.
    pub gateway: Option<Arc<Gateway>>,
    /// What was told last of what is compiled here, by type and name, for the admin page; no keys.
    pub told: OrdMap<(&'static str, Arc<str>), Arc<[u8]>>,
    /// Counts the changes of what is told of requests.
    pub telemetry_generation: u64,
}

impl AsRef<state::Snapshot> for Snapshot {
    fn as_ref(&self) -> &state::Snapshot {
        &self.mesh
    }
}

impl Snapshot {
    /// Nothing known.
    pub fn new(network: &str) -> Self {
        Self {
            mesh: state::Snapshot::new(network),
            routes: OrdMap::new(),
            backends: OrdMap::new(),
            by_client: 0,
            access: OrdMap::new(),
            hosts: OrdMap::new(),
            gateway: None,
            told: OrdMap::new(),
            telemetry_generation: 0,
        }
    }

    /// How a service is called; None: in no way of its own any more.
    pub fn put_backend(&mut self, service: &Arc<str>, backend: Option<ir::Backend>) {
        let has_clients = |b: &ir::Backend| !b.clients.is_empty();
        self.by_client += usize::from(backend.as_ref().is_some_and(has_clients));
        let before = match backend {
            Some(backend) => self.backends.insert(service.clone(), Arc::new(backend)),
            None => self.backends.remove(service),
        };
        self.by_client -= usize::from(before.is_some_and(|b| has_clients(&b)));
    }

    /// How a service is called, if some clients have rules of their own for that. (Nobody asks a table where none has.)
    pub fn backend_by_client(&self, service: &Arc<str>) -> Option<&Arc<ir::Backend>> {
        match self.by_client {
            0 => None,
            _ => self.backends.get(service).filter(|b| !b.clients.is_empty()),
        }
    }

    /// The policies for what is called. What is sent to a pod itself has those of the waypoint's Gateway.
    pub fn access_to(&self, s: &Service) -> Option<&Access> {
        match s.is_workload_service() {
            true => self.gateway.as_ref()?.access.as_ref(),
            false => self.access.get(&s.key).map(|a| &**a),
        }
    }

    /// The names of all policies in dry run.
    pub fn dry_runs(&self) -> impl Iterator<Item = &str> {
        let own = self.gateway.iter().filter_map(|g| g.access.as_ref());
        self.access.values().map(|a| &**a).chain(own).flat_map(Access::dry_runs)
    }

    /// May clients be bound to endpoints?
    pub fn has_sessions(&self) -> bool {
        self.gateway.as_ref().is_some_and(|g| !g.session_keys.is_empty())
    }

    /// Who in front of us is believed.
    pub fn topology(&self) -> Topology {
        self.gateway.as_ref().map(|g| g.topology).unwrap_or_default()
    }

    /// What is told of requests, where it differs from the standard.
    pub fn telemetry(&self) -> Option<&Arc<Telemetry>> {
        self.gateway.as_ref()?.telemetry.as_ref()
    }
}
