//! What is not yet as it should be at the API server.

use crate::convert::{
    compilation::routes::cache::Cache,
    deploy,
    facts::listeners::GatewayListeners,
    finding::Finding,
    objects::{Mesh, Objects, Template},
    status::{self, Write},
};
use karst_kube::Ref;
use karst_manifest::State;
use serde_json::Value;

/// What is to be written to the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// Objects to make or bring in order, in this order.
    pub objects: Vec<(Ref, Value)>,
    /// Objects to remove before that, and the uid of the Gateway that each was made for.
    pub removed: Vec<(Ref, String)>,
    /// Statuses.
    pub statuses: Vec<Write>,
}

/// What is not yet as it should be. `compiled` is what came of the routes; `now` is the time in RFC 3339.
pub(crate) fn writes(
    state: &State,
    mesh: &Mesh,
    compiled: &Cache,
    template: &Template,
    findings: Option<&[Finding]>,
    now: &str,
) -> Writes {
    let x = Objects::new(state, mesh);
    let mut objects = if state.absent.contains("GatewayClass") { vec![] } else { deploy::classes(&x) };
    let mut removed = vec![];
    deploy::compile(&x, template, &mut objects, &mut removed);
    let listeners = GatewayListeners::with_pods(&x);
    let all = status::route::all(&x, compiled);
    let mut statuses = status::istio::compile(&x, &listeners, now);
    statuses.extend(findings.map(|f| status::istio::unserved(&x, f, now)).unwrap_or_default());
    statuses.extend(status::gateway::compile(&x, &listeners, &all, now));
    statuses.extend(status::route::compile(&x, &listeners, &all, now));
    statuses.extend(status::backend_tls::compile(&x, &listeners, &all, now));
    Writes { objects, removed, statuses }
}
