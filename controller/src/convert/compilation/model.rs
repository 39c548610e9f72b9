//! All objects to the whole model.

use crate::{
    convert::{
        compilation::{
            gateway, node, policy,
            routes::{build, cache::Cache},
            scope, service, workload,
        },
        facts::{
            endpoint,
            listeners::GatewayListeners,
            policy::{effect, judge_all},
        },
        objects::{Mesh, Objects},
    },
    model::Model,
};
use karst_manifest::{Problem, State};
use std::sync::Arc;

/// Compiles the model; problems of meaning (as opposed to form) come back beside it.
pub fn compile(state: &State, mesh: &Mesh) -> (Model, Vec<Problem>) {
    let whole = compile_all(&Objects::new(state, mesh), &mut Cache::default());
    (whole.model, whole.problems)
}

/// The stored AuthorizationPolicies that are in force otherwise than they are written, since they cannot be read; a line for each.
pub fn closing(state: &State, mesh: &Mesh) -> Vec<String> {
    let objects = Objects::new(state, mesh);
    objects.authorization.iter().filter_map(|(_, p)| effect(&objects, p)).collect()
}

/// All that is made from the objects.
pub(crate) struct Whole {
    pub(crate) model: Model,
    pub(crate) problems: Vec<Problem>,
    /// What decides about pods alone.
    pub(crate) policies: policy::Policies,
    /// Pods that decide about more than themselves.
    pub(crate) watched: endpoint::Watched,
    /// What gateways listen on: the statuses say the same of it.
    pub(crate) listeners: Arc<GatewayListeners>,
}

pub(crate) fn compile_all(objects: &Objects<'_>, cache: &mut Cache) -> Whole {
    let mut problems = Vec::new();
    let mut model = Model { pods: workload::pod_infos(objects), ..Model::default() };
    let judged = judge_all(objects);
    let mut policies = policy::compile(objects, &judged, &mut problems);
    node::compile(objects, &mut model, &mut problems);
    service::compile(objects, &mut model, &mut problems);
    let owners = endpoint::Owners::new(objects);
    workload::compile(objects, &policies, &owners, &mut model, &mut problems);
    let listeners = Arc::new(GatewayListeners::with_pods(objects));
    build::compile(objects, &listeners, &judged, &mut model, &mut problems, cache);
    model.gateways = gateway::compile(objects, &listeners, &judged, &mut problems).into_iter().collect();
    model.policies = policies.take().into();
    model.scopes = scope::compile(objects, &model);
    Whole { model, problems, policies, watched: owners.watched(), listeners }
}
