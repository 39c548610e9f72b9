//! What is not yet as it should be at the API server.

use crate::convert::{
    compilation::routes::cache::Cache,
    deploy,
    facts::listeners::GatewayListeners,
    finding::Finding,
    objects::{Mesh, Objects, Template, address},
    status::{self, Write, listener, settled::Settled},
};
use karst_kube::Ref;
use karst_manifest::State;
use serde_json::Value;
use std::collections::HashMap;

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

/// What is not yet as it should be. `compiled` is what came of the routes, `listeners` are those that they were compiled with, `settled`
/// are those that are not to be looked at again; `now` is the time in RFC 3339.
pub(crate) fn writes(
    state: &State,
    mesh: &Mesh,
    (compiled, listeners): (&Cache, &GatewayListeners),
    settled: &mut Settled,
    template: &Template,
    findings: Option<&[Finding]>,
    now: &str,
) -> Writes {
    let applied = Objects::new(state, mesh);
    let mut objects = if state.absent.contains("GatewayClass") { vec![] } else { deploy::classes(&applied) };
    let mut removed = vec![];
    deploy::compile(&applied, listeners, template, &mut objects, &mut removed);
    // Policies of backends are told who sends to these: that is asked of all routes.
    let are_kept = applied.backend_tls.is_empty();
    let routes = status::route::all(&applied, compiled, |at| are_kept && settled.has(at));
    let attached: Vec<_> = routes.iter().map(|route| listener::attached(&applied, listeners, route)).collect();
    let counts = listener::count(listeners, attached.iter().map(|all| &**all).chain(settled.listeners()));
    let of_routes = status::route::compile(&applied, listeners, &routes, now);
    let told = routes.iter().zip(attached).zip(&of_routes).filter(|(_, write)| write.is_none());
    let told: HashMap<_, _> = told.map(|((route, listeners), _)| (address(route.at), listeners)).collect();
    settled.end(&state.objects, told);
    let mut statuses = status::istio::compile(&applied, listeners, now);
    statuses.extend(findings.map(|f| status::istio::unserved(&applied, f, now)).unwrap_or_default());
    statuses.extend(status::gateway::compile(&applied, listeners, &counts, now));
    statuses.extend(of_routes.into_iter().flatten());
    statuses.extend(status::backend_tls::compile(&applied, listeners, &routes, now));
    statuses.extend(status::backend_traffic::compile(&applied, now));
    let mut statuses = status::revision::of_ours(&applied, state, statuses);
    statuses.extend(status::revision::compile(&applied, state, now));
    Writes { objects, removed, statuses }
}
