//! The least policies that allow what was seen: for each service or ServiceEntry with a waypoint by callers, methods and paths, for
//! each workload by callers and ports. They are compiled and judged as any others, and all that was seen is replayed against them.

use super::{
    judge::{Judge, Judgement},
    rules::{Rules, Target},
    selector::selector,
};
use crate::world::{Enrolment, World, WorldError};
use karst_flows::{Flow, Reporter, Verdict};
use karst_manifest::{Object, Problem, State, parse};
use karst_proxy::state::Service;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

/// Policies cannot be suggested.
#[derive(Debug, thiserror::Error)]
pub enum SuggestError {
    /// The objects cannot be compiled.
    #[error(transparent)]
    World(#[from] WorldError),
    /// What was made is not valid by our own rules.
    #[error("the suggestion is not valid, which is a fault of karst: {0}")]
    Invalid(Problem),
}

/// Why nothing is suggested for flows: what is said of so many.
#[derive(Debug, thiserror::Error)]
enum LeftOut {
    #[error("were refused, and stay so")]
    Refused,
    #[error("are refused by now, and stay so")]
    RefusedByNow,
    #[error("cannot be judged: {0}")]
    Unjudged(&'static str),
    /// What a gateway sends on is in the policies of those whom it calls: there it is a caller as any other.
    #[error(
        "are of callers of gateways: these have no identity by which they could be named, and who may call from outside is for you to say (ipBlocks, hosts, a RequestAuthentication)"
    )]
    OfGateway,
    #[error("are of a service that is not there any more")]
    NoService,
    #[error("are of a ServiceEntry that is not there any more")]
    NoEntry,
    #[error("are of a workload that is not there any more")]
    NoWorkload,
    #[error("are of pods that have no label that stays with them")]
    NoLabel,
}

/// What all that was seen says of the suggestion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// Flows that are let in now, and were replayed.
    pub flows: usize,
    /// Connections and requests of these.
    pub calls: u64,
    /// Of these flows, those that the suggestion would refuse.
    pub refused: Vec<Flow>,
}

/// Policies, and what is to be known about them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Suggestion {
    /// AuthorizationPolicies, by name.
    pub policies: Vec<Value>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// What the replay has shown.
    pub replay: Replay,
}

/// The least policies of a namespace.
///
/// # Errors
/// The objects cannot be compiled.
pub fn suggest(
    state: &State,
    enrolment: Enrolment,
    namespace: &str,
    flows: &[Flow],
) -> Result<Suggestion, SuggestError> {
    let present = World::new(state.clone(), enrolment)?;
    let judge = Judge::new(&present);
    let mut notes = BTreeMap::new();
    let mut targets: BTreeMap<Target, Rules> = BTreeMap::new();
    let mut seen: Vec<(Target, &Flow)> = vec![];
    for flow in flows.iter().filter(|flow| flow.key.destination.namespace == namespace) {
        let target = match (flow.key.verdict, judge.judge(flow)) {
            (Verdict::Denied | Verdict::NotAllowed, _) => Err(LeftOut::Refused),
            (Verdict::Allowed, Judgement::Refused(_)) => Err(LeftOut::RefusedByNow),
            (Verdict::Allowed, Judgement::Unknown(why)) => Err(LeftOut::Unjudged(why)),
            (Verdict::Allowed, Judgement::Allowed) => target(&present, &judge, flow),
        };
        match target {
            Err(why) => *notes.entry(why.to_string()).or_insert(0) += 1,
            Ok(target) => {
                targets.entry(target.clone()).or_default().add(flow);
                seen.push((target, flow));
            }
        }
    }
    let mut made = made(state, enrolment, namespace, &targets)?;
    // Paths that no template stands for as policies read them (encoded slashes, say): the caller may have all paths of that method.
    let judge = Judge::new(&made.1);
    let mut widened = 0;
    for (target, flow) in &seen {
        if matches!(judge.judge(flow), Judgement::Refused(_)) && !flow.key.path.is_empty() {
            targets.entry(target.clone()).or_default().open(flow);
            widened += 1;
        }
    }
    if widened > 0 {
        made = self::made(state, enrolment, namespace, &targets)?;
    }
    let judge = Judge::new(&made.1);
    let refused = seen.iter().filter(|(_, flow)| matches!(judge.judge(flow), Judgement::Refused(_)));
    let refused = refused.map(|(_, flow)| (*flow).clone()).collect();
    let calls = seen.iter().map(|(_, flow)| flow.count).sum();
    let mut notes: Vec<String> =
        notes.into_iter().map(|(why, flows)| format!("left out: {flows} flows {why}")).collect();
    if widened > 0 {
        notes.push(format!(
            "{widened} flows have paths that no template stands for: all paths of their method are allowed"
        ));
    }
    Ok(Suggestion { policies: made.0, notes, replay: Replay { flows: seen.len(), calls, refused } })
}

/// What a policy for a flow is attached to.
fn target(world: &World, judge: &Judge<'_>, flow: &Flow) -> Result<Target, LeftOut> {
    match flow.key.reporter {
        Reporter::Gateway => Err(LeftOut::OfGateway),
        Reporter::Waypoint => {
            let service = world.mesh.services.get(flow.key.destination.service.as_str());
            let service = service.ok_or(LeftOut::NoService)?;
            // A ServiceEntry may have the name of a Service: the host tells.
            let host = format!("{}.{}.svc.{}", service.name, service.namespace, world.compiled.cluster_domain);
            match world.objects.service(&service.namespace, &service.name) {
                Some(_) if *service.hostname == *host => Ok(Target::Service(service.name.to_string())),
                Some(_) | None => entry(world, service).map(Target::Entry).ok_or(LeftOut::NoEntry),
            }
        }
        Reporter::Ztunnel => {
            let pod = judge.pod(flow).ok_or(LeftOut::NoWorkload)?;
            let labels = selector(world, pod).ok_or(LeftOut::NoLabel)?;
            Ok(Target::Workload(labels))
        }
    }
}

/// The ServiceEntry that a host is of; the first by name.
fn entry(world: &World, service: &Service) -> Option<String> {
    let own = world.objects.all("ServiceEntry").filter_map(|one| match &one.object {
        Object::ServiceEntry(entry)
            if entry.metadata.namespace == *service.namespace
                && entry.spec.hosts.iter().any(|host| *host == *service.hostname) =>
        {
            Some(entry.metadata.name.clone())
        }
        _ => None,
    });
    own.min()
}

/// The policies, and the world with them.
fn made(
    state: &State,
    enrolment: Enrolment,
    namespace: &str,
    targets: &BTreeMap<Target, Rules>,
) -> Result<(Vec<Value>, World), SuggestError> {
    let own = |one: &Arc<parse::Located>| one.object.kind() == "AuthorizationPolicy";
    let in_namespace = state.objects.iter().filter(|one| own(one) && one.object.meta().namespace == namespace);
    let mut taken: BTreeSet<String> = in_namespace.map(|one| one.object.meta().name.clone()).collect();
    let (mut policies, mut objects) = (vec![], state.objects.clone());
    for (target, rules) in targets {
        let name = free(&target.name(), &mut taken);
        let mut spec = json!({ "action": "ALLOW", "rules": rules.values() });
        match target {
            Target::Service(service) => {
                spec["targetRefs"] = json!([{ "group": "", "kind": "Service", "name": service }]);
            }
            Target::Entry(entry) => {
                spec["targetRefs"] = json!([{ "group": "networking.istio.io", "kind": "ServiceEntry", "name": entry }]);
            }
            Target::Workload(labels) => spec["selector"] = json!({ "matchLabels": labels }),
        }
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": name, "namespace": namespace },
            "spec": spec,
        });
        let object = parse::value("AuthorizationPolicy", policy.clone()).map_err(SuggestError::Invalid)?;
        objects.push(Arc::new(parse::Located { object, file: PathBuf::new(), line: 0 }));
        policies.push(policy);
    }
    let world = World::new(State { objects, ..state.clone() }, enrolment)?;
    let is_ours = |problem: &&Problem| {
        policies.iter().any(|p| {
            problem.object
                == format!("AuthorizationPolicy {namespace}/{}", p["metadata"]["name"].as_str().unwrap_or_default())
        })
    };
    if let Some(problem) = world.problems().find(is_ours) {
        return Err(SuggestError::Invalid(problem.clone()));
    }
    Ok((policies, world))
}

/// A name that nothing has yet.
fn free(name: &str, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|n| format!("{name}-{n}"));
    let name = std::iter::once(name.to_string()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}
