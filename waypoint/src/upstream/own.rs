//! Services that this proxy calls for itself: collectors of traces, providers of authorization. They are called as any other
//! destination is: by its endpoints, with the limits, the balancing and the TLS that its rules ask for.

use crate::{
    cluster::{endpoint_set::EndpointSet, key::ClusterKeyRef},
    snapshot::Snapshot,
    worker::Worker,
};
use karst_proxy::state::{Service, Workload};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

/// The endpoints of a service that the mesh configuration names, and the address that we call it from.
pub struct OwnCall {
    pub set: Rc<EndpointSet>,
    pub from: SocketAddr,
}

impl OwnCall {
    /// Of a service, as `NAMESPACE/HOST`, or as a host that is looked for as this proxy's own namespace sees it. None: there is no
    /// such service or port.
    pub fn to(worker: &Worker, snapshot: &Arc<Snapshot>, name: &str, port: u16) -> Option<Self> {
        let own = worker.own(snapshot)?;
        let service = service(snapshot, own, name)?;
        let ip = own.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        // A DestinationRule of this proxy's namespace counts, as for its other calls.
        let backend = snapshot.backend_by_client(&service.key);
        let client = backend.filter(|b| b.has_client(&own.namespace)).map_or("", |_| &*own.namespace);
        let subset: Arc<str> = "".into();
        let key = ClusterKeyRef { service: &service.key, port, subset: &subset, client, udp: false };
        Some(Self { set: worker.set(snapshot, key, ip)?, from: SocketAddr::new(ip, 0) })
    }
}

fn service<'a>(snapshot: &'a Snapshot, own: &Workload, name: &str) -> Option<&'a Arc<Service>> {
    match name.contains('/') {
        true => snapshot.mesh.services.get(name),
        false => snapshot.mesh.host(name, &own.namespace),
    }
}
