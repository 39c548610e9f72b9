//! What a ztunnel decides: where a connection of its pod goes, and whom its pod lets in.

use crate::{
    answer::{Arrival, Cause, Outcome, Stage, Step},
    network::{self, End, PodEnd},
    objects::shown,
    parties::Source,
    peer,
    world::World,
};
use karst_core::Identity;
use karst_manifest::{Object, kinds::Labels};
use karst_policy::{Action, Connection, Policy, Verdict, authorize};
use karst_proxy::state::{OwnPod, Snapshot, Workload};
use karst_ztunnel::{
    mesh_config::admit,
    needs::needs,
    plan::{Draw, OWN_PORTS, Plan, Refusal, plan},
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

/// Where a connection of a member goes: to the first of all that could be chosen. The others are asked for by themselves.
pub(crate) fn leaves(world: &World, source: &Source, to: SocketAddr) -> Plan {
    let mesh = mesh_of_call(world, &source.workload, to);
    let plan = plan(mesh, as_known(mesh, &source.workload), to, &[], &mut Draw(0));
    match admit(&plan, world.outbound_at(&source.workload.node)) {
        Ok(()) => plan,
        Err(refusal) => Plan::Refuse(refusal),
    }
}

/// What the ztunnel of a workload's node decides by where a connection goes. One that asks for what is called (XDS_ON_DEMAND) asks
/// for the rest, and is told what the objects compile to.
pub(crate) fn mesh_of_call<'a>(world: &'a World, source: &'a Arc<Workload>, to: SocketAddr) -> &'a Snapshot {
    let mesh = world.mesh_at(&source.node);
    let source = as_known(mesh, source);
    match needs(mesh, source, to, &plan(mesh, source, to, &[], &mut Draw(0))).is_empty() {
        true => mesh,
        false => &world.mesh,
    }
}

/// A workload as a ztunnel knows it.
pub(crate) fn as_known<'a>(mesh: &'a Snapshot, workload: &'a Arc<Workload>) -> &'a Arc<Workload> {
    let uids = mesh.by_name.get(&format!("{}/{}", workload.namespace, workload.name)).into_iter().flatten();
    uids.filter_map(|uid| mesh.workloads.get(uid)).find(|known| known.identity == workload.identity).unwrap_or(workload)
}

/// The policies that the ztunnel of a workload's node has for it.
///
/// # Errors
/// One that is named, and has not come.
fn policies<'a>(world: &'a World, workload: &'a Workload) -> Result<Vec<&'a Policy>, Arc<str>> {
    match world.observed.ztunnel(&workload.node) {
        Some(ztunnel) if workload.is_pod() => ztunnel.mesh.policies_of_own(&OwnPod {
            namespace: &workload.namespace,
            name: &workload.name,
            account: workload.identity.service_account(),
            uid: None,
        }),
        _ => world.mesh.policies_of(workload),
    }
}

/// What a plan that refuses is called.
pub(crate) fn cause(world: &World, refusal: Refusal, service: Option<&str>) -> Cause {
    match refusal {
        Refusal::OwnPort | Refusal::NotItsAddress | Refusal::NotInside => Cause::OwnPort,
        Refusal::OwnAddress => Cause::OwnAddress,
        Refusal::Untold | Refusal::NotTold => Cause::NobodyKnown,
        Refusal::NotInRegistry => Cause::NotInRegistry,
        Refusal::NoPort => Cause::NoSuchPort,
        Refusal::NoEndpoint | Refusal::BadAddress => no_endpoint(world, service),
        Refusal::NoWaypoint => Cause::WaypointNotReady,
    }
}

/// Why a service has no endpoint: nobody is selected, or nobody selected is ready.
pub(crate) fn no_endpoint(world: &World, key: Option<&str>) -> Cause {
    let endpoints = key.and_then(|key| world.mesh.endpoints.get(key));
    match endpoints.is_none_or(|all| all.is_empty()) {
        true => Cause::SelectorMatchesNoPod,
        false => Cause::NoReadyEndpoint,
    }
}

/// Who comes to a pod, and how.
pub(crate) struct Arriving<'a> {
    /// None: plaintext.
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) ip: IpAddr,
    pub(crate) weight: u64,
}

/// The end of a connection, as Kubernetes' NetworkPolicies see it.
fn end(world: &World, ip: IpAddr) -> End<'_> {
    static NONE: LazyLock<Labels> = LazyLock::new(Labels::new);
    let workload = world.mesh.workload(ip);
    let pod = workload.and_then(|w| world.objects.pod(&w.namespace, &w.name)).map(|(_, pod)| {
        let around = world.objects.namespace(&pod.metadata.namespace).map_or(&*NONE, |n| &n.metadata.labels);
        PodEnd { namespace: &pod.metadata.namespace, labels: &pod.metadata.labels, around }
    });
    // On the host network a pod has the node's address, and no policy is for it.
    let pod = pod.filter(|_| workload.is_some_and(|w| !w.host_network));
    End { ip, pod }
}

/// Does Kubernetes keep a tunnel from `ip` to a pod out? `at`: where the pod serves.
pub(crate) fn closed(world: &World, pod: &Workload, at: SocketAddr, ip: IpAddr) -> Option<(Arrival, Vec<Step>)> {
    kept_out(world, pod, at, (ip, karst_core::limits::port::HBONE, 0))
}

fn kept_out(
    world: &World,
    pod: &Workload,
    at: SocketAddr,
    (ip, port, weight): (IpAddr, u16, u64),
) -> Option<(Arrival, Vec<Step>)> {
    let (object, way) = network::closes(&world.network, &end(world, ip), &end(world, at.ip()), port)?;
    let why = match port == at.port() {
        true => format!("it does not let TCP {port} {way}"),
        false => format!("it does not let TCP {port} {way}, by which the mesh carries what is for port {}", at.port()),
    };
    let workload = format!("{}/{}", pod.namespace, pod.name);
    let arrival = Arrival { workload, address: at, weight, allowed: false, policy: None };
    Some((arrival, vec![step(Stage::Network, Outcome::Refuse, Some(object.clone()), why)]))
}

/// What a pod's ztunnel says of a call. The steps are those of this pod alone.
pub(crate) fn arrives(
    world: &World,
    workload: &Arc<Workload>,
    to: SocketAddr,
    by: &Arriving<'_>,
) -> (Arrival, Vec<Step>, Option<Cause>) {
    let arrival = |allowed, policy| Arrival {
        workload: format!("{}/{}", workload.namespace, workload.name),
        address: to,
        weight: by.weight,
        allowed,
        policy,
    };
    let port = if by.identity.is_some() { karst_core::limits::port::HBONE } else { to.port() };
    if let Some((arrival, steps)) = kept_out(world, workload, to, (by.ip, port, by.weight)) {
        return (arrival, steps, Some(Cause::NetworkPolicy));
    }
    if !workload.hbone {
        let why = format!("{} is not in the mesh: nobody judges what comes to it", workload.name);
        return (arrival(true, None), vec![step(Stage::Authorization, Outcome::Pass, None, why)], None);
    }
    if OWN_PORTS.contains(&to.port()) {
        let why = format!("port {} is one of ztunnel's own", to.port());
        let refused = step(Stage::Authorization, Outcome::Refuse, None, why);
        return (arrival(false, None), vec![refused], Some(Cause::OwnPort));
    }
    let policies = match policies(world, workload) {
        Ok(policies) => policies,
        Err(missing) => {
            let why = format!("the policy {missing} is named, and has not come: the connection is held, then refused");
            let refused = step(Stage::Authorization, Outcome::Refuse, None, why);
            return (arrival(false, Some(missing.to_string())), vec![refused], Some(Cause::PolicyMissing));
        }
    };
    let check = Connection {
        source_identity: by.identity.cloned(),
        source_ip: by.ip,
        destination_ip: to.ip(),
        destination_port: to.port(),
    };
    let (allowed, policy, steps, cause) = judged(world, workload, &policies, &check, by);
    (arrival(allowed, policy), steps, cause)
}

/// What policies say of a connection to a pod: is it let in, and by which of them or not.
fn judged(
    world: &World,
    workload: &Workload,
    policies: &[&Policy],
    check: &Connection,
    by: &Arriving<'_>,
) -> (bool, Option<String>, Vec<Step>, Option<Cause>) {
    let verdict = authorize(policies.iter().copied(), check);
    let labels = labels(world, workload);
    let root = &world.compiled.root_namespace;
    let behind = |policy: &str| peer::behind(&world.objects, root, policy, (&workload.namespace, &labels));
    let mut steps = vec![];
    if let Verdict::DeniedBy(policy, _) = &verdict
        && let Some(object) = behind(policy)
    {
        let why = format!(
            "{} accepts only mutual TLS at port {}, and this is plaintext",
            workload.name, check.destination_port
        );
        steps.push(step(Stage::PeerAuthentication, Outcome::Refuse, object, why));
        return (false, Some(policy.to_string()), steps, Some(Cause::StrictMtlsOutsider));
    }
    steps.push(step(
        Stage::PeerAuthentication,
        Outcome::Pass,
        None,
        match by.identity {
            Some(identity) => format!("mutual TLS: the caller is {identity}"),
            None => "plaintext, which is accepted here".into(),
        },
    ));
    let object = |key: &str| {
        let (namespace, name) = key.split_once('/')?;
        world.objects.named("AuthorizationPolicy", namespace, name)
    };
    let (policy, cause) = match &verdict {
        Verdict::Allow => {
            let allows = policies.iter().filter(|p| p.action == Action::Allow && !p.dry_run);
            // The one that allows, alone, still does.
            let by = allows.clone().find(|p| authorize([**p].into_iter(), check).is_allow());
            let why = match by {
                Some(policy) => format!("the ALLOW policy {} matches", policy.key()),
                None if policies.is_empty() => "no policy applies to it".into(),
                None => "no DENY policy matches, and there is no ALLOW policy".into(),
            };
            steps.push(step(Stage::Authorization, Outcome::Pass, by.and_then(|p| object(&p.key())), why));
            return (true, None, steps, None);
        }
        Verdict::DeniedBy(policy, _) => {
            let why = format!("the DENY policy {policy} matches the connection");
            steps.push(step(Stage::Authorization, Outcome::Refuse, object(policy), why));
            (policy.to_string(), Cause::DeniedByPolicy)
        }
        Verdict::NotAllowed => {
            let named: Vec<String> =
                policies.iter().filter(|p| p.action == Action::Allow && !p.dry_run).map(|p| p.key()).collect();
            let why = format!("there are ALLOW policies ({}), and none matches", named.join(", "));
            let first = named.first().and_then(|key| object(key));
            steps.push(step(Stage::Authorization, Outcome::Refuse, first, why));
            (String::new(), Cause::NotAllowedByAnyPolicy)
        }
    };
    (false, Some(policy), steps, Some(cause))
}

/// Which endpoints may be chosen, and of how many.
pub(crate) fn choice<'a>(
    world: &World,
    service: Option<&str>,
    chosen: impl Iterator<Item = (&'a Workload, SocketAddr)>,
) -> String {
    let names: Vec<String> = chosen.map(|(workload, at)| format!("{} ({at})", workload.name)).collect();
    let all = service.and_then(|key| world.mesh.endpoints.get(key)).map_or(0, |all| all.len());
    let others = match all > names.len() {
        true => {
            format!(", of {all}: the others are not ready, lack the port, or are not of the subset or the best place")
        }
        false => String::new(),
    };
    format!("one of {}{others}", names.join(", "))
}

/// The labels of a workload's pod.
pub(crate) fn labels(world: &World, workload: &Workload) -> Labels {
    let pod = world.objects.pod(&workload.namespace, &workload.name);
    pod.map(|(_, p)| p.metadata.labels.clone()).unwrap_or_default()
}

/// The pod behind a workload, as it is shown.
pub(crate) fn pod(world: &World, workload: &Workload) -> Option<crate::answer::Object> {
    let located = world.objects.get("Pod", &workload.namespace, &workload.name)?;
    matches!(located.object, Object::Pod(_)).then(|| shown(located))
}

/// A step.
pub(crate) fn step(
    step: Stage,
    outcome: Outcome,
    object: Option<crate::answer::Object>,
    why: impl Into<String>,
) -> Step {
    Step { step, outcome, object, why: why.into() }
}
