//! What the control plane tells, written into one immutable [`Snapshot`] after the other.

use crate::{
    authz::access::Access, downstream::gateway::Gateway, route::table::Routes, snapshot::Snapshot,
    telemetry::rules::Telemetry,
};
use karst_api::{
    ACCESS_TYPE, ADDRESS_TYPE, BACKEND_TYPE, GATEWAY_TYPE, POD_RANGES_TYPE, ROUTES_TYPE, VIRTUAL_HOST_TYPE, route as ir,
};
use karst_proxy::{
    discovery::Counts,
    remote::{ControlPlaneClient, RemoteError},
    untold::Asker,
};
use karst_rt::ready::{Blocker, Ready};
use karst_xds::client::{StreamEnd, Update, XdsSubscriber};
use prost::Message;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::transport::Channel;

/// Types that a waypoint subscribes. The ranges of pods before the addresses: what is not told there is then known to be missing.
pub const WAYPOINT: &[&str] = &[ACCESS_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE, BACKEND_TYPE, ROUTES_TYPE, GATEWAY_TYPE];
/// Types that a gateway subscribes.
pub const GATEWAY: &[&str] = &[POD_RANGES_TYPE, ADDRESS_TYPE, BACKEND_TYPE, VIRTUAL_HOST_TYPE, GATEWAY_TYPE];

/// The one writer of the state.
pub struct StateWriter {
    remote: ControlPlaneClient,
    state: watch::Sender<Arc<Snapshot>>,
    /// Until each type has arrived once.
    missing: Vec<(&'static str, Blocker)>,
    /// Says whether there is a control plane.
    stream: watch::Sender<bool>,
    /// Says when nothing is missing any more.
    configured: watch::Sender<bool>,
    discovery: Arc<Counts>,
    /// Asks who is at an address.
    asker: Asker,
}

impl StateWriter {
    /// A writer whose readiness waits for the first answers.
    pub fn new(
        remote: ControlPlaneClient,
        state: watch::Sender<Arc<Snapshot>>,
        ready: &Ready,
        types: &[&'static str],
        (configured, stream): (watch::Sender<bool>, watch::Sender<bool>),
        discovery: Arc<Counts>,
        asker: Asker,
    ) -> Self {
        // The ranges of pods come before the addresses, if the server knows of them.
        let needed = types.iter().filter(|t| **t != POD_RANGES_TYPE);
        let missing = needed.map(|t| (*t, ready.block(&format!("first configuration of {t}")))).collect();
        Self { remote, state, missing, stream, configured, discovery, asker }
    }
}

impl XdsSubscriber for StateWriter {
    type Error = RemoteError;
    fn apply(&mut self, update: Update) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        // Cheap: the maps inside are persistent.
        let mut snapshot = (**self.state.borrow()).clone();
        for (name, _, bytes) in &update.changed {
            let taken = match update.type_url.as_str() {
                ADDRESS_TYPE => {
                    let taken = snapshot.mesh.put_address(name, bytes).map_err(|e| e.to_string());
                    snapshot.mesh.add_workload_service(name);
                    taken
                }
                POD_RANGES_TYPE => snapshot.mesh.put_pod_ranges(name, bytes).map_err(|e| e.to_string()),
                ROUTES_TYPE | VIRTUAL_HOST_TYPE => {
                    let all = if update.type_url == ROUTES_TYPE { &mut snapshot.routes } else { &mut snapshot.hosts };
                    ir::Routes::decode(&bytes[..]).map_err(|e| e.to_string()).and_then(|r| {
                        let old = all.get(name.as_str()).map(|r| &**r);
                        let new = Arc::new(Routes::new(&r, old).map_err(|e| e.to_string())?);
                        all.insert(name.as_str().into(), new);
                        Ok(())
                    })
                }
                GATEWAY_TYPE => {
                    let new = ir::Gateway::decode(&bytes[..])
                        .map_err(|e| e.to_string())
                        .and_then(|g| Gateway::new(&g).map_err(|e| e.to_string()));
                    // What cannot be read leaves what was before; if there was nothing, nobody is let in.
                    match new {
                        Ok(g) => {
                            snapshot.gateway = Some(Arc::new(g));
                            Ok(())
                        }
                        Err(e) => {
                            snapshot.gateway.get_or_insert_with(|| Arc::new(Gateway::closed()));
                            Err(e)
                        }
                    }
                }
                ACCESS_TYPE => {
                    let new = ir::Access::decode(&bytes[..])
                        .map_err(|e| e.to_string())
                        .and_then(|a| Access::new(&a).map_err(|e| e.to_string()));
                    // What was meant is not known: nobody is let in until it is.
                    let (a, error) = match new {
                        Ok(a) => (a, None),
                        Err(e) => (Access::closed(), Some(e)),
                    };
                    snapshot.access.insert(name.as_str().into(), Arc::new(a));
                    error.map_or(Ok(()), Err)
                }
                _ => ir::Backend::decode(&bytes[..]).map_err(|e| e.to_string()).map(|b| {
                    snapshot.backends.insert(name.as_str().into(), Arc::new(b));
                }),
            };
            if let Err(e) = taken {
                refused.push((name.clone(), e));
            }
        }
        for name in &update.removed {
            match update.type_url.as_str() {
                ADDRESS_TYPE => {
                    snapshot.mesh.remove_address(name);
                    snapshot.mesh.add_workload_service(name);
                }
                POD_RANGES_TYPE => snapshot.mesh.remove_pod_ranges(name),
                ACCESS_TYPE => drop(snapshot.access.remove(name.as_str())),
                ROUTES_TYPE => drop(snapshot.routes.remove(name.as_str())),
                VIRTUAL_HOST_TYPE => drop(snapshot.hosts.remove(name.as_str())),
                GATEWAY_TYPE => snapshot.gateway = None,
                _ => drop(snapshot.backends.remove(name.as_str())),
            }
        }
        if !Telemetry::same(snapshot.telemetry().map(|t| &**t), self.state.borrow().telemetry().map(|t| &**t)) {
            snapshot.telemetry_generation += 1;
        }
        self.state.send_replace(Arc::new(snapshot));
        if !update.more {
            self.missing.retain(|(t, _)| *t != update.type_url);
        }
        if self.missing.is_empty() {
            self.configured.send_if_modified(|c| !std::mem::replace(c, true));
        }
        refused
    }
    fn token(&self) -> Result<String, RemoteError> {
        self.remote.bearer()
    }
    fn connect(&self) -> impl Future<Output = Result<Channel, RemoteError>> {
        self.remote.channel()
    }
    fn headers(&self) -> Vec<(String, String)> {
        vec![("clusterid".into(), self.remote.cluster_id.clone())]
    }
    fn connected(&self) {
        self.stream.send_replace(true);
    }
    async fn wanted(&mut self) -> (&'static str, Vec<String>) {
        (ADDRESS_TYPE, self.asker.names().await)
    }
    fn answered(&mut self, names: &[String]) {
        self.asker.answered(names);
    }
    fn ended(&self, why: StreamEnd) {
        self.stream.send_replace(false);
        self.asker.forget();
        self.discovery.ended(why);
    }
    fn received(&self, type_url: &str, bytes: usize) {
        self.discovery.received(type_url, bytes);
    }
}
