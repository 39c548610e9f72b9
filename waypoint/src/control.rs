//! What the control plane tells, written into one immutable [`Snapshot`] after the other.

use crate::{
    authz::{access::Access, error::AccessError},
    downstream::gateway::{Gateway, GatewayError},
    route::{error::CompileError, table::Routes},
    snapshot::Snapshot,
    telemetry::rules::Telemetry,
};
use karst_api::{
    ACCESS_TYPE, ADDRESS_TYPE, BACKEND_TYPE, GATEWAY_TYPE, POD_RANGES_TYPE, ROUTES_TYPE, VIRTUAL_HOST_TYPE, route as ir,
};
use karst_proxy::{state::ResourceError, xds::ApplyResource};
use prost::{DecodeError, Message};
use std::sync::Arc;

/// Types that a waypoint subscribes. The ranges of pods before the addresses: what is not told there is then known to be missing.
pub const WAYPOINT: &[&str] = &[ACCESS_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE, BACKEND_TYPE, ROUTES_TYPE, GATEWAY_TYPE];
/// Types that a gateway subscribes.
pub const GATEWAY: &[&str] = &[POD_RANGES_TYPE, ADDRESS_TYPE, BACKEND_TYPE, VIRTUAL_HOST_TYPE, GATEWAY_TYPE];

/// Those of the subscribed types that must have arrived once. (istiod does not answer for the ranges of pods.)
pub fn needed(types: &[&'static str]) -> Vec<&'static str> {
    types.iter().copied().filter(|t| *t != POD_RANGES_TYPE).collect()
}

/// Why a resource is refused.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// It is no message of its type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Of the mesh: a workload, a service, ranges of pods.
    #[error(transparent)]
    Mesh(#[from] ResourceError),
    /// Routes.
    #[error(transparent)]
    Routes(#[from] CompileError),
    /// What we listen on.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// Who may call.
    #[error(transparent)]
    Access(#[from] AccessError),
}

impl ApplyResource for Snapshot {
    type Error = PutError;
    fn put(&mut self, type_url: &str, name: &str, bytes: &[u8]) -> Result<(), PutError> {
        match type_url {
            ADDRESS_TYPE => {
                let taken = self.mesh.put_address(name, bytes);
                self.mesh.add_workload_service(name);
                taken?;
            }
            POD_RANGES_TYPE => self.mesh.put_pod_ranges(name, bytes)?,
            ROUTES_TYPE | VIRTUAL_HOST_TYPE => {
                let all = if type_url == ROUTES_TYPE { &mut self.routes } else { &mut self.hosts };
                let new = Routes::new(&ir::Routes::decode(bytes)?, all.get(name).map(|r| &**r))?;
                all.insert(name.into(), Arc::new(new));
            }
            GATEWAY_TYPE => {
                let read = || Ok::<_, PutError>(Gateway::new(&ir::Gateway::decode(bytes)?)?);
                // What cannot be read leaves what was before; if there was nothing, nobody is let in.
                match read() {
                    Ok(gateway) => self.gateway = Some(Arc::new(gateway)),
                    Err(e) => {
                        self.gateway.get_or_insert_with(|| Arc::new(Gateway::closed()));
                        return Err(e);
                    }
                }
            }
            ACCESS_TYPE => {
                let read = || Ok::<_, PutError>(Access::new(&ir::Access::decode(bytes)?)?);
                // What was meant is not known: nobody is let in until it is.
                let (access, wrong) = match read() {
                    Ok(access) => (access, None),
                    Err(e) => (Access::closed(), Some(e)),
                };
                self.access.insert(name.into(), Arc::new(access));
                return wrong.map_or(Ok(()), Err);
            }
            _ => self.put_backend(name, Some(ir::Backend::decode(bytes)?)),
        }
        Ok(())
    }
    fn remove(&mut self, type_url: &str, name: &str) {
        match type_url {
            ADDRESS_TYPE => {
                self.mesh.remove_address(name);
                self.mesh.add_workload_service(name);
            }
            POD_RANGES_TYPE => self.mesh.remove_pod_ranges(name),
            ACCESS_TYPE => drop(self.access.remove(name)),
            ROUTES_TYPE => drop(self.routes.remove(name)),
            VIRTUAL_HOST_TYPE => drop(self.hosts.remove(name)),
            GATEWAY_TYPE => self.gateway = None,
            _ => self.put_backend(name, None),
        }
    }
    fn applied(&mut self, before: &Self) {
        if !Telemetry::same(self.telemetry().map(|t| &**t), before.telemetry().map(|t| &**t)) {
            self.telemetry_generation += 1;
        }
    }
}
