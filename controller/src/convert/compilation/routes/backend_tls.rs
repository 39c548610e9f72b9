//! Gateway API's BackendTLSPolicy (GEP-1897): TLS that is spoken to a Service's endpoints. It stands before what DestinationRules
//! say about TLS of the same port.

use crate::convert::{
    facts::{backend_tls::evaluate, hosts::Hosts},
    objects::{FieldError, Objects},
};
use karst_api::route as ir;
use karst_manifest::parse::Located;
use std::{collections::BTreeMap, sync::Arc};

/// Adds them to the backends; gives back what is wrong with which.
pub(crate) fn compile<'a>(
    objects: &Objects<'a>,
    hosts: &Hosts,
    backends: &mut BTreeMap<String, Arc<ir::Backend>>,
) -> Vec<(&'a Located, FieldError)> {
    let mut of: BTreeMap<(&str, &str), BTreeMap<Option<u16>, ir::ClientTls>> = BTreeMap::new();
    let mut bad = vec![];
    for verdict in evaluate(objects) {
        for (name, port) in &verdict.places {
            of.entry((&verdict.policy.metadata.namespace, *name)).or_default().insert(*port, verdict.tls.clone());
        }
        bad.extend(verdict.bad.into_iter().map(|b| (verdict.at, b)));
    }
    for ((ns, name), tls) in of {
        let (Some(service), Some(key)) = (objects.service(ns, name), hosts.service(name, ns)) else { continue };
        let backend = Arc::make_mut(backends.entry(key.to_string()).or_default());
        for service_port in &service.spec.ports {
            // What is for the port stands before what is for the service.
            let Some(tls) = tls.get(&Some(service_port.port)).or(tls.get(&None)) else { continue };
            let port = u32::from(service_port.port);
            let set = |policy: &Option<ir::Policy>, ports: &mut BTreeMap<u32, ir::Policy>| {
                let mut own = ports.get(&port).or(policy.as_ref()).cloned().unwrap_or_default();
                own.tls = Some(tls.clone());
                ports.insert(port, own);
            };
            set(&backend.policy, &mut backend.ports);
            backend.clients.iter_mut().for_each(|c| set(&c.policy, &mut c.ports));
            let subsets = backend.clients.iter_mut().flat_map(|c| &mut c.subsets);
            backend.subsets.iter_mut().chain(subsets).for_each(|s| set(&s.policy, &mut s.ports));
        }
    }
    bad
}
