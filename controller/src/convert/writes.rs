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

/// What is not yet as it should be. `compiled` is what came of the routes, `listeners` are those that they were compiled with; `now` is the time in RFC 3339.
pub(crate) fn writes(
    state: &State,
    mesh: &Mesh,
    compiled: &Cache,
    listeners: &GatewayListeners,
    template: &Template,
    findings: Option<&[Finding]>,
    now: &str,
) -> Writes {
    let applied = Objects::new(state, mesh);
    let mut objects = if state.absent.contains("GatewayClass") { vec![] } else { deploy::classes(&applied) };
    let mut removed = vec![];
    deploy::compile(&applied, listeners, template, &mut objects, &mut removed);
    let all = status::route::all(&applied, compiled);
    let mut statuses = status::istio::compile(&applied, listeners, now);
    statuses.extend(findings.map(|f| status::istio::unserved(&applied, f, now)).unwrap_or_default());
    statuses.extend(status::gateway::compile(&applied, listeners, &all, now));
    statuses.extend(status::route::compile(&applied, listeners, &all, now));
    statuses.extend(status::backend_tls::compile(&applied, listeners, &all, now));
    statuses.extend(status::backend_traffic::compile(&applied, now));
    let mut statuses = status::revision::of_ours(&applied, state, statuses);
    statuses.extend(status::revision::compile(&applied, state, now));
    Writes { objects, removed, statuses }
}
