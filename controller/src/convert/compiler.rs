//! Keeps the model up to date. Pods change far more often than anything else, and a pod decides only about its own
//! workload, unless an endpoint is written by its address or a gateway's rules hang on it: while nothing else has changed, only
//! the changed pods are compiled. A route decides only about what it is for: where only routes have changed, and such pods, nothing
//! else is compiled; and where these are routes of Gateway API, nothing else is looked at. Everything else compiles the whole.

use crate::{
    convert::{
        compilation::{
            model::{Whole, compile_all},
            policy::Policies,
            routes::{build, cache::Cache},
            workload,
        },
        facts::{
            endpoint::{Owners, Watched},
            gateway,
            listeners::GatewayListeners,
            udp,
            workload::is_one,
        },
        finding::Finding,
        notices::notices,
        objects::{Mesh, Objects, Template, address},
        status::settled::Settled,
        writes::{Writes, writes},
    },
    model::Model,
};
use karst_kube::{ChangedObject, Notice};
use karst_manifest::{
    MeshConfig, Object, Problem, State,
    dir::{Keys, SessionKey},
    kinds::EndpointSlice,
    parse::Located,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// What an update has changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that a proxy could see.
    Nothing,
    /// These workloads, by uid: new, changed or gone.
    Workloads(Vec<String>),
    /// These, and the routes of these services and virtual hosts, by name: new, changed or gone.
    Routes {
        /// By uid.
        workloads: Vec<String>,
        /// By `namespace/hostname`, or the name of the virtual host.
        routes: Vec<String>,
    },
    /// Possibly anything.
    Everything,
}

/// What a step has taken in, the rarer before the more frequent. A look at everything is to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// Routes: their statuses are to be written, and those of the Gateways that they are attached to.
    Routes,
    /// Statuses, from which nothing is compiled.
    Statuses,
    /// Pods alone.
    Pods,
}

/// The model and what it was made from.
pub struct Compiler {
    mesh: Mesh,
    /// All, as they were when all were looked at last.
    objects: Vec<Arc<Located>>,
    /// What steps have taken in since then, by kind, namespace and name.
    stepped: BTreeMap<(&'static str, String, String), Arc<Located>>,
    /// Of these, and of what is around them, what pods are compiled by: all but pods and slices.
    around: State,
    /// Of what is around, what steps look at: all but the routes that are in `routes_at`.
    fixed: State,
    /// Routes of Gateway API, by [`build::route_address`].
    routes_at: HashMap<usize, Arc<Located>>,
    enrolled: BTreeSet<String>,
    absent: BTreeSet<&'static str>,
    keys: Arc<Keys>,
    session_keys: Arc<Vec<SessionKey>>,
    mesh_config: Arc<MeshConfig>,
    policies: Option<Policies>,
    watched: Watched,
    routes: Cache,
    listeners: Arc<GatewayListeners>,
    settled: Settled,
    /// Counts how often everything was compiled.
    compilation: u64,
    model: Model,
    problems: Vec<Problem>,
    whole: bool,
    told: bool,
    last_step: Stepped,
}

/// An object before and after.
type Versions<'a> = (Option<&'a Arc<Located>>, Option<&'a Arc<Located>>);

impl Compiler {
    /// Knows nothing yet.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            mesh,
            objects: vec![],
            stepped: BTreeMap::new(),
            around: State::default(),
            fixed: State::default(),
            routes_at: HashMap::new(),
            enrolled: BTreeSet::new(),
            absent: BTreeSet::new(),
            keys: Arc::default(),
            session_keys: Arc::default(),
            mesh_config: Arc::default(),
            policies: None,
            watched: Watched::default(),
            routes: Cache::default(),
            listeners: Arc::default(),
            settled: Settled::default(),
            compilation: 0,
            model: Model::default(),
            problems: vec![],
            whole: false,
            told: false,
            last_step: Stepped::Pods,
        }
    }

    /// The model. A copy shares everything with it.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Problems of meaning in the objects.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Has the last update looked at more than pods? Then statuses may have to change.
    pub fn was_whole(&self) -> bool {
        self.whole
    }

    /// Did statuses change that nothing is compiled from? Then what is still to be written has changed, and nothing else by them.
    pub fn was_told(&self) -> bool {
        self.told
    }

    /// What the last step has taken in.
    pub fn last_step(&self) -> Stepped {
        self.last_step
    }

    /// What is not yet as it should be at the API server, after an update with the same objects. Without findings nothing is said
    /// of them.
    pub fn writes(&mut self, state: &State, template: &Template, findings: Option<&[Finding]>, now: &str) -> Writes {
        self.settled.begin(self.compilation);
        let compiled = (&self.routes, &*self.listeners);
        writes(state, &self.mesh, compiled, &mut self.settled, template, findings, now)
    }

    /// What is to be told on objects.
    pub fn notices(&self, state: &State) -> Vec<Notice> {
        notices(state, &self.mesh)
    }

    /// Takes in changes of pods and slices, of routes of Gateway API, and of statuses, without a look at those that have not changed.
    /// None: some decide about more than themselves, and all objects are to be looked at ([`Compiler::update`], which may be given
    /// these changes once more).
    pub fn step(&mut self, changes: &[ChangedObject]) -> Option<Change> {
        let policies = self.policies.as_ref()?;
        // Of a pod the last change counts, of others what was compiled last and what is there now.
        let mut last: BTreeMap<_, &ChangedObject> = BTreeMap::new();
        let mut others: BTreeMap<_, Versions<'_>> = BTreeMap::new();
        for change in changes {
            let (before, now) = (change.0.as_ref(), change.1.as_ref());
            let one = now.or(before).filter(|one| is_small(&one.object))?;
            if is_of_pods(&one.object) {
                last.insert(name(one), change);
            } else {
                others.entry(name(one)).or_insert((before, None)).1 = now;
            }
        }
        let objects = Objects::new(&self.fixed, &self.mesh);
        // Also what a pod was between: it may have decided about others then.
        let mut pods = changes.iter().flat_map(|(before, now)| before.iter().chain(now));
        if !pods.all(|o| !is_of_pods(&o.object) || is_local(&objects, &self.watched, o)) {
            return None;
        }
        let (mut left, mut come): (LocatedObjects, LocatedObjects) = (vec![], vec![]);
        let mut told: Vec<((usize, usize), Arc<Located>)> = vec![];
        for (before, now) in others.values().copied() {
            if let (Some(before), Some(now)) = (before, now)
                && (&before.file, before.line) == (&now.file, now.line)
                && let Some(addresses) = differ_by_status(&before.object, &now.object)
            {
                told.push((addresses, now.clone()));
                continue;
            }
            left.extend(before.cloned());
            come.extend(now.cloned());
        }
        let routes = match left.is_empty() && come.is_empty() {
            true => None,
            false => {
                let are_alone = left.iter().chain(&come).all(|o| build::is_alone(&o.object));
                if !are_alone || !build::can_edit(&objects, &self.routes) {
                    return None;
                }
                Some(build::Step::find(&objects, (&left, &come), &self.routes, &self.routes_at)?)
            }
        };
        // From here on all is taken in.
        let gone: Vec<_> =
            last.values().filter(|(_, now)| now.is_none()).filter_map(|(before, _)| before.clone()).collect();
        let new: Vec<_> = last.values().filter_map(|(_, now)| now.clone()).collect();
        let of_pods = last.iter().map(|(name, (_, now))| (name, now.as_ref()));
        // Those of others from which something is compiled: what is known of a route hangs on its address.
        let of_routes = others.iter().map(|(name, (_, now))| (name, *now));
        let is_kept = |o: &Arc<Located>| is_of_pods(&o.object) || build::route_address(&o.object).is_some();
        for ((kind, namespace, name), now) in of_pods.chain(of_routes) {
            let key = (*kind, (*namespace).to_string(), (*name).to_string());
            match now.filter(|now| is_kept(now)) {
                Some(now) => drop(self.stepped.insert(key, now.clone())),
                None => drop(self.stepped.remove(&key)),
            }
        }
        (self.whole, self.told) = (false, false);
        self.last_step = match (&routes, told.is_empty()) {
            (Some(_), _) => Stepped::Routes,
            (None, false) => Stepped::Statuses,
            (None, true) => Stepped::Pods,
        };
        let change = compile_pods(&objects, policies, &mut self.model, &gone, &new);
        let changed = routes.map(|found| found.take_in(&mut self.model, &mut self.routes)).unwrap_or_default();
        for address in left.iter().filter_map(|route| build::route_address(&route.object)) {
            self.routes_at.remove(&address);
        }
        for route in come {
            if let Some(address) = build::route_address(&route.object) {
                self.routes_at.insert(address, route);
            }
        }
        for ((old, new), object) in told {
            self.routes.rename(old, new);
            if self.routes_at.remove(&old).is_some() {
                self.routes_at.insert(new, object);
            }
        }
        Some(match change {
            change if changed.is_empty() => change,
            Change::Workloads(workloads) => Change::Routes { workloads, routes: changed },
            Change::Nothing | Change::Routes { .. } | Change::Everything => {
                Change::Routes { workloads: vec![], routes: changed }
            }
        })
    }

    /// Takes in changes where nothing else has changed: pods that decide about no other workload, and objects that decide about
    /// routes alone. None: there are others, and nothing was taken in.
    fn edit(&mut self, gone: &[Arc<Located>], new: &[Arc<Located>]) -> Option<Change> {
        let policies = self.policies.as_ref()?;
        let split = |all: &[Arc<Located>]| -> (LocatedObjects, LocatedObjects) {
            all.iter().cloned().partition(|o| is_of_pods(&o.object))
        };
        let ((gone_pods, gone), (new_pods, new)) = (split(gone), split(new));
        if !gone.iter().chain(&new).all(|o| build::is_alone(&o.object)) {
            return None;
        }
        let objects = Objects::new(&self.around, &self.mesh);
        let are_local = gone_pods.iter().chain(&new_pods).all(|o| is_local(&objects, &self.watched, o));
        let has_routes = !gone.is_empty() || !new.is_empty();
        if !are_local || (has_routes && !build::can_edit(&objects, &self.routes)) {
            return None;
        }
        let change = compile_pods(&objects, policies, &mut self.model, &gone_pods, &new_pods);
        if !has_routes {
            return Some(change);
        }
        self.whole = true;
        let is_other = build::edit(&objects, (&gone, &new), &mut self.model, &mut self.problems, &mut self.routes);
        Some(if is_other { Change::Everything } else { change })
    }

    /// Takes in the newest objects.
    pub fn update(&mut self, state: &State) -> Change {
        let old = std::mem::replace(&mut self.objects, state.objects.clone());
        let same_around = self.enrolled == state.enrolled
            && self.absent == state.absent
            && self.keys == state.keys
            && self.session_keys == state.session_keys
            && self.mesh_config == state.mesh_config;
        self.whole = false;
        let (mut gone, mut new) = difference(&old, &state.objects);
        only_stepped(std::mem::take(&mut self.stepped).into_values(), state, &mut gone, &mut new);
        let renamed = only_told(&mut gone, &mut new);
        self.told = !renamed.is_empty();
        self.routes.renamed(&renamed);
        let are_pods = renamed.is_empty() && gone.iter().chain(&new).all(|o| is_of_pods(&o.object));
        if !are_pods {
            let at = |o: &Arc<Located>| Some((build::route_address(&o.object)?, o.clone()));
            self.routes_at = state.objects.iter().filter_map(at).collect();
        }
        if same_around && self.policies.is_some() && gone.is_empty() && new.is_empty() {
            return Change::Nothing;
        }
        if !same_around || !are_pods {
            let around: LocatedObjects = state.objects.iter().filter(|o| !is_of_pods(&o.object)).cloned().collect();
            let fixed = around.iter().filter(|o| build::route_address(&o.object).is_none()).cloned().collect();
            let with = |objects: LocatedObjects| State {
                objects,
                enrolled: state.enrolled.clone(),
                absent: state.absent.clone(),
                keys: state.keys.clone(),
                session_keys: state.session_keys.clone(),
                mesh_config: state.mesh_config.clone(),
                ..State::default()
            };
            (self.fixed, self.around) = (with(fixed), with(around));
        }
        if same_around && let Some(change) = self.edit(&gone, &new) {
            return change;
        }
        let objects = Objects::new(state, &self.mesh);
        self.whole = true;
        self.compilation += 1;
        let Whole { model, problems, policies, watched, listeners } = compile_all(&objects, &mut self.routes);
        // Until here an address stood for one object.
        drop(old);
        self.enrolled.clone_from(&state.enrolled);
        self.absent.clone_from(&state.absent);
        self.keys.clone_from(&state.keys);
        self.session_keys.clone_from(&state.session_keys);
        self.mesh_config.clone_from(&state.mesh_config);
        self.problems = problems;
        self.policies = Some(policies);
        self.watched = watched;
        self.listeners = listeners;
        if model == self.model {
            return Change::Nothing;
        }
        self.model = model;
        Change::Everything
    }
}

/// Compiles pods that decide about no other workload, and only them. Of one that has changed more than once the last state counts.
fn compile_pods(
    objects: &Objects<'_>,
    policies: &Policies,
    model: &mut Model,
    gone: &[Arc<Located>],
    new: &[Arc<Located>],
) -> Change {
    // No endpoint hangs on any of them.
    let owners = Owners::default();
    let mut changed = Vec::new();
    let kept: HashSet<_> = new.iter().map(|o| name(o)).collect();
    for o in gone.iter().filter(|o| !kept.contains(&name(o))) {
        let m = o.object.meta();
        if let Object::Pod(p) = &o.object {
            model.pods.remove(&format!("{}/{}", m.namespace, m.name));
            let uid = workload::uid(objects.mesh, p);
            changed.extend(model.workloads.remove(&uid).map(|_| uid));
        }
    }
    for o in new {
        let Object::Pod(pod) = &o.object else { continue };
        let (key, fact) = workload::pod_info(pod);
        model.pods.insert(key, Arc::new(fact));
        let uid = workload::uid(objects.mesh, pod);
        let now = is_one(pod).then(|| workload::pod(objects, pod, policies, &owners));
        if model.workloads.get(&uid).map(|w| &**w) == now.as_ref() {
            continue;
        }
        match now {
            Some(w) => model.workloads.insert(uid.clone(), Arc::new(w)),
            None => model.workloads.remove(&uid),
        };
        changed.push(uid);
    }
    if changed.is_empty() { Change::Nothing } else { Change::Workloads(changed) }
}

/// Adds what steps have taken in, and what was looked at neither before nor now has: an object that came by a step, and is gone by
/// now, is in the model and in nothing else.
fn only_stepped(
    stepped: impl Iterator<Item = Arc<Located>>,
    state: &State,
    gone: &mut LocatedObjects,
    new: &mut LocatedObjects,
) {
    let known: HashSet<_> = new.iter().map(Arc::as_ptr).collect();
    let mut behind = stepped.filter(|o| !known.contains(&Arc::as_ptr(o))).peekable();
    if behind.peek().is_none() {
        return;
    }
    let is_route = |o: &Arc<Located>| build::route_address(&o.object).is_some();
    let small = state.objects.iter().filter(|o| is_of_pods(&o.object) || is_route(o));
    let now: HashMap<_, &Arc<Located>> = small.map(|o| (name(o), o)).collect();
    for o in behind {
        let now = now.get(&name(&o)).copied();
        new.extend(now.filter(|now| !known.contains(&Arc::as_ptr(now))).cloned());
        // What is known of a route hangs on its address: of one that is another by now it is to be forgotten.
        if now.is_none_or(|now| is_route(&o) && !Arc::ptr_eq(now, &o)) {
            gone.push(o);
        }
    }
}

/// Is it a pod, or a slice of endpoints, which are many and change all the time?
pub fn is_of_pods(object: &Object) -> bool {
    matches!(object, Object::Pod(_) | Object::EndpointSlice(_))
}

/// Is it an object of which a change may be taken in by a step: one that [`is_of_pods`], a route of Gateway API, or one whose status is
/// written for each of these?
pub fn is_small(object: &Object) -> bool {
    is_of_pods(object)
        || build::route_address(object).is_some()
        || matches!(object, Object::Gateway(_) | Object::ListenerSet(_))
}

/// Takes out objects of which only such statuses have changed that nothing is compiled from. Each write of ours is seen as one:
/// of thousands none compiles anything. Gives back their addresses, before and now.
fn only_told(gone: &mut LocatedObjects, new: &mut LocatedObjects) -> HashMap<usize, usize> {
    let before: HashMap<_, &Arc<Located>> = gone.iter().map(|o| (name(o), o)).collect();
    let (mut renamed, mut told) = (HashMap::new(), HashSet::new());
    new.retain(|o| {
        let before = before.get(&name(o)).filter(|b| (&b.file, b.line) == (&o.file, o.line));
        let Some((earlier, pair)) = before.and_then(|b| Some((b, differ_by_status(&b.object, &o.object)?))) else {
            return true;
        };
        told.insert(Arc::as_ptr(earlier));
        renamed.extend([pair]);
        false
    });
    gone.retain(|o| !told.contains(&Arc::as_ptr(o)));
    renamed
}

/// The addresses of both, if they differ only by what they are told. (Addresses of Gateways and ServiceEntries are compiled.)
fn differ_by_status(before: &Object, after: &Object) -> Option<(usize, usize)> {
    macro_rules! same {
        ($a:ident, $b:ident) => {
            ($a.metadata == $b.metadata && $a.spec == $b.spec).then(|| (address(&**$a), address(&**$b)))
        };
    }
    match (before, after) {
        (Object::VirtualService(a), Object::VirtualService(b)) => same!(a, b),
        (Object::DestinationRule(a), Object::DestinationRule(b)) => same!(a, b),
        (Object::IstioGateway(a), Object::IstioGateway(b)) => same!(a, b),
        (Object::HTTPRoute(a), Object::HTTPRoute(b)) => same!(a, b),
        (Object::GRPCRoute(a), Object::GRPCRoute(b)) => same!(a, b),
        (Object::TCPRoute(a), Object::TCPRoute(b)) => same!(a, b),
        (Object::TLSRoute(a), Object::TLSRoute(b)) => same!(a, b),
        (Object::UDPRoute(a), Object::UDPRoute(b)) => same!(a, b),
        (Object::AuthorizationPolicy(a), Object::AuthorizationPolicy(b)) => same!(a, b),
        (Object::PeerAuthentication(a), Object::PeerAuthentication(b)) => same!(a, b),
        (Object::RequestAuthentication(a), Object::RequestAuthentication(b)) => same!(a, b),
        (Object::Telemetry(a), Object::Telemetry(b)) => same!(a, b),
        (Object::BackendTLSPolicy(a), Object::BackendTLSPolicy(b)) => same!(a, b),
        (Object::XBackendTrafficPolicy(a), Object::XBackendTrafficPolicy(b)) => same!(a, b),
        (Object::ListenerSet(a), Object::ListenerSet(b)) => same!(a, b),
        (Object::Gateway(a), Object::Gateway(b)) if a.status.addresses == b.status.addresses => same!(a, b),
        _ => None,
    }
}

/// Kind, namespace and name.
fn name(located: &Located) -> (&'static str, &str, &str) {
    let m = located.object.meta();
    (located.object.kind(), &m.namespace, &m.name)
}

/// Does this object decide about no other workload than its own? A slice that only says what the selector of its service
/// says anyway decides about nothing.
fn is_local(objects: &Objects<'_>, watched: &Watched, located: &Located) -> bool {
    match &located.object {
        // Of a UDP port it is told whether all endpoints are closed.
        Object::Pod(p) => !gateway::is_gateway(objects, p) && !watched.has(p) && udp::of_pod(objects, p).is_empty(),
        Object::EndpointSlice(s) => follows_selector(objects, s),
        _ => false,
    }
}

fn follows_selector(objects: &Objects<'_>, slice: &EndpointSlice) -> bool {
    let Some(service) = slice.metadata.labels.get("kubernetes.io/service-name") else { return true };
    let selects = objects.service(&slice.metadata.namespace, service).is_some_and(|v| !v.spec.selector.is_empty());
    selects && slice.endpoints.iter().all(|e| e.target_ref.as_ref().is_some_and(|t| t.kind == "Pod"))
}

type LocatedObjects = Vec<Arc<Located>>;

/// What is only in the one and what is only in the other. Unchanged objects are the same ones, and in the same order.
fn difference(old: &[Arc<Located>], new: &[Arc<Located>]) -> (LocatedObjects, LocatedObjects) {
    let same = |(a, b): &(&Arc<Located>, &Arc<Located>)| Arc::ptr_eq(a, b);
    let start = old.iter().zip(new).take_while(same).count();
    let (old, new) = (&old[start..], &new[start..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    let set = |v: &[Arc<Located>]| v.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
    let (before, after) = (set(old), set(new));
    let only = |v: &[Arc<Located>], other: &HashSet<*const Located>| {
        v.iter().filter(|o| !other.contains(&Arc::as_ptr(o))).cloned().collect()
    };
    (only(old, &after), only(new, &before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use imbl::ordmap::DiffItem;
    use karst_manifest::parse;
    use rand::Rng;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p%N, namespace: ns%M, uid: MADE, deletionTimestamp: ENDS, labels: {app: a%L, GATEWAY: g}, annotations: {ambient.istio.io/redirection: ANNOTATION}}\nspec: {nodeName: n, hostNetwork: HOST}\nstatus: {phase: PHASE, podIPs: [{ip: PODIP}], conditions: [{type: Ready, status: 'True'}]}\n";
    const NODE: &str =
        "apiVersion: v1\nkind: Node\nmetadata: {name: n%L}\nspec: {podCIDRs: [10.0.%N.0/24, 'fd00:%M::/64']}\n";
    const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s%L, namespace: ns%M, labels: {kubernetes.io/service-name: SERVICE}}\naddressType: IPv4\nendpoints: [{addresses: [ADDRESS], conditions: CONDITIONS, targetRef: REFERENCE}]\nports: [{name: web, port: 9%N}]\n";
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a%L, namespace: ns%M}\nspec: {clusterIP: 10.96.%M.%L, selector: SELECTOR, ports: [{name: web, port: 80, targetPort: 8%N}, {name: dns, port: 53, protocol: UDP, targetPort: 5%N}]}\n";
    const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e%L, namespace: ns%M}\nspec: {hosts: ['e%N.com'], resolution: STATIC, ports: [{number: 8%L, name: web, protocol: HTTP}], endpoints: [{address: ADDRESS}, {address: 192.0.2.9}]}\n";
    const MACHINE: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: m%L, namespace: ns%M, labels: {app: a%L, networking.istio.io/tunnel: TUNNEL}}\nspec: {address: ADDRESS}\n";
    const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x%L, namespace: ns%M}\nspec: {selector: {matchLabels: {app: a%L}}}\n";

    const VS: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x%L, namespace: ns%M}\nspec: {hosts: [HOSTS], exportTo: [EXPORT], http: [{match: [{uri: {prefix: /%N}}], route: [{destination: {host: a%L}}], timeout: TIMEOUT}, {delegate: {name: d}, timeout: 2s}]}\nTOLD";
    const DELEGATE: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: d, namespace: ns%M}\nspec: {exportTo: [EXPORT], http: [{route: [{destination: {host: a%L}, weight: 100}]}]}\n";
    const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: x%L, namespace: ns%M}\nspec: {parentRefs: [{group: '', kind: Service, name: a%L, namespace: ns0}], rules: [{matches: [{path: {value: /%N}}], backendRefs: [{name: a%N, namespace: ns1, port: 80}]}]}\n";
    const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: ns1}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: ns%M}], to: [{group: '', kind: Service}]}\n";
    const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x%L, namespace: ns%M}\nspec: {host: RULED, exportTo: [EXPORT], subsets: [{name: v%N, labels: {app: a%N}}]}\nTOLD";

    const FILTER: &str = "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {name: f%L, namespace: ns%M}\nspec: {targetRefs: [{kind: Service, name: a%L}], rateLimits: [{requests: %N}]}\n";
    const TLS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: y%L, namespace: ns%M}\nspec: {hostnames: [a%N.com], parentRefs: [{name: g, namespace: ns0}], rules: [{backendRefs: [{name: a%N, port: 80}]}]}\n";
    const DATAGRAMS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {name: u%L, namespace: ns%M}\nspec: {parentRefs: [{name: g, namespace: ns0}], rules: [{backendRefs: [{name: a%L, port: 53}]}]}\n";
    const LIMITED: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: z%L, namespace: ns%M}\nspec: {parentRefs: [{group: '', kind: Service, name: a%L}], rules: [{filters: [{type: ExtensionRef, extensionRef: {group: karst.io, kind: HTTPFilter, name: f%L}}], backendRefs: [{name: a%L, port: 80}]}]}\n";
    const SET: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: z%L, namespace: ns%M, creationTimestamp: MADE}\nspec: {parentRef: {name: g, namespace: ns0}, listeners: [{name: l%L, port: 8%N, protocol: HTTP, hostname: a%N.com}, {name: s, port: 443, protocol: HTTPS, hostname: a%N.com, tls: {certificateRefs: [{name: c}]}}]}\nTOLD";
    const TRAFFIC: &str = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: t%L, namespace: ns%M, creationTimestamp: MADE}\nspec: {targetRefs: [{group: '', kind: Service, name: a%N}], retryConstraint: {budget: {percent: %N}}, sessionPersistence: {sessionName: s%L}}\nTOLD";
    const IN_SET: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: y%L, namespace: ns%M}\nspec: {parentRefs: [{kind: ListenerSet, name: z%L}, {name: g, namespace: ns0}], rules: [{backendRefs: [{name: a%N, port: 80}]}]}\n";
    const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: ns%M}\nspec: {gatewayClassName: istio, allowedListeners: {namespaces: {from: ALLOWED}}, listeners: [{name: l%L, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}, {name: s, port: 443, protocol: HTTPS, hostname: a%N.com, tls: {certificateRefs: [{name: c}]}}, {name: t, port: 8443, protocol: TLS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}, {name: u, port: 53, protocol: UDP, allowedRoutes: {namespaces: {from: All}}}]}\n";
    const ISTIO: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: ns%M}\nspec: {selector: {app: a%L}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}, {port: {number: 443, name: s, protocol: HTTPS}, hosts: ['a%N.com'], tls: {mode: SIMPLE, credentialName: c}}]}\nTOLD";
    const SECRET: &str =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: c, namespace: ns%M}\nstringData: {tls.crt: none}\n";
    const BOUND: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: y%L, namespace: ns%M}\nspec: {hosts: ['a%N.com', '*.com'], exportTo: [EXPORT], gateways: [g, g.ns0.svc.cluster.local, mesh], http: [{match: [{uri: {prefix: /%N}, gateways: [g]}, {uri: {prefix: /m}}], route: [{destination: {host: a%L}}]}]}\n";
    const ATTACHED: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: y%L, namespace: ns%M}\nspec: {hostnames: [a%N.com], parentRefs: [{name: g, namespace: ns0}, {group: '', kind: Service, name: a%L}], rules: [{backendRefs: [{name: a%N, port: 80}]}]}\n";

    /// Whatever happens, in whatever order: the same model as if it was compiled anew.
    #[test]
    fn small_steps_lead_to_the_same_model() {
        let mesh = crate::convert::tests::mesh();
        let mut r = rand::rng();
        let (mut small, mut nothing) = (0, 0);
        for _ in 0..120 {
            let mut state = State::default();
            let mut c = Compiler::new(mesh.clone());
            for _ in 0..60 {
                for _ in 0..r.random_range(1..3) {
                    step(&mut state, &mut r);
                }
                let before = c.model().clone();
                match c.update(&state) {
                    Change::Nothing => {
                        nothing += 1;
                        assert!(seen_by_proxies(&before) == seen_by_proxies(c.model()));
                    }
                    Change::Workloads(changed) => {
                        small += 1;
                        let name = |d| match d {
                            DiffItem::Add(k, _) | DiffItem::Remove(k, _) | DiffItem::Update { new: (k, _), .. } => {
                                String::clone(k)
                            }
                        };
                        let seen: BTreeSet<String> = before.workloads.diff(&c.model().workloads).map(name).collect();
                        assert_eq!(seen, changed.into_iter().collect());
                        assert!(before.services == c.model().services && before.policies == c.model().policies);
                    }
                    Change::Routes { .. } => panic!("a look at everything tells of no route by itself"),
                    Change::Everything => {}
                }
                let whole = compile_all(&Objects::new(&state, &mesh), &mut Cache::default());
                assert!(whole.model == *c.model() && whole.problems == c.problems());
                assert!(pods_stand_alone(c.model()));
            }
        }
        println!("{small} small steps, {nothing} without effect");
        assert!(small > 100 && nothing > 20);
    }

    /// What has changed, as it is watched.
    fn changes(old: &[Arc<Located>], new: &[Arc<Located>]) -> Vec<ChangedObject> {
        let (gone, new) = difference(old, new);
        let same = |one: &Arc<Located>, other: &Arc<Located>| name(one) == name(other);
        let replaced = |o: &Arc<Located>| new.iter().find(|n| same(o, n)).cloned();
        let mut out: Vec<ChangedObject> = gone.iter().map(|o| (Some(o.clone()), replaced(o))).collect();
        out.extend(new.iter().filter(|n| !gone.iter().any(|o| same(o, n))).map(|n| (None, Some(n.clone()))));
        out
    }

    /// The same by changes alone as long as they will do, and with a look at everything now and then.
    #[test]
    fn changes_alone_lead_to_the_same_model() {
        let mesh = crate::convert::tests::mesh();
        let mut r = rand::rng();
        let (mut steps, mut nothing) = (0, 0);
        for _ in 0..100 {
            let mut state = State::default();
            let mut c = Compiler::new(mesh.clone());
            c.update(&state);
            for _ in 0..80 {
                let (old, before) = (state.objects.clone(), c.model().clone());
                let mut changed = vec![];
                for _ in 0..r.random_range(1..4) {
                    let last = state.objects.clone();
                    step(&mut state, &mut r);
                    changed.extend(changes(&last, &state.objects));
                }
                if r.random_range(0..2) == 0 {
                    changed = changes(&old, &state.objects);
                }
                match c.step(&changed) {
                    Some(Change::Nothing) => {
                        nothing += 1;
                        assert!(seen_by_proxies(&before) == seen_by_proxies(c.model()));
                    }
                    Some(Change::Workloads(changed)) => {
                        steps += 1;
                        assert_eq!(others(&before.workloads, &c.model().workloads), changed.into_iter().collect());
                        assert!(before.routes == c.model().routes);
                    }
                    Some(Change::Routes { workloads, routes }) => {
                        assert_eq!(others(&before.workloads, &c.model().workloads), workloads.into_iter().collect());
                        assert_eq!(others(&before.routes, &c.model().routes), routes.into_iter().collect());
                    }
                    Some(Change::Everything) => panic!("a step looks at what has changed"),
                    None => drop(c.update(&state)),
                }
                if r.random_range(0..8) == 0 {
                    c.update(&state);
                }
                let whole = compile_all(&Objects::new(&state, &mesh), &mut Cache::default());
                assert!(whole.model == *c.model() && whole.problems == c.problems());
            }
        }
        println!("{steps} steps, {nothing} without effect");
        assert!(steps > 100 && nothing > 20);
    }

    /// The keys of what is not the same in both.
    fn others<V: Clone + PartialEq>(
        before: &imbl::OrdMap<String, V>,
        now: &imbl::OrdMap<String, V>,
    ) -> BTreeSet<String> {
        let all = before.keys().chain(now.keys());
        all.filter(|key| before.get(*key) != now.get(*key)).cloned().collect()
    }

    /// The same of routes of Gateway API, with nothing around that keeps them from being taken in by themselves.
    #[test]
    fn routes_taken_in_alone_lead_to_the_same_model() {
        let mesh = crate::convert::tests::mesh();
        let mut r = rand::rng();
        let (mut routed, mut statuses) = (0, 0);
        for _ in 0..60 {
            let mut state = State::default();
            // Services, Gateways, a set of listeners, and some routes.
            for kind in [0, 0, 0, 0, 18, 18, 18, 33, 14, 23] {
                put(&mut state, &mut r, kind);
            }
            let mut c = Compiler::new(mesh.clone());
            c.update(&state);
            for _ in 0..80 {
                let before = c.model().clone();
                let mut changed = vec![];
                for _ in 0..r.random_range(1..4) {
                    let last = state.objects.clone();
                    // Routes and pods; now and then a Gateway, or a Service.
                    let kind = [14, 23, 27, 35, 5, 14, 23, 27, 35, 5, 18, 0][r.random_range(0..12)];
                    put(&mut state, &mut r, kind);
                    changed.extend(changes(&last, &state.objects));
                }
                match c.step(&changed) {
                    Some(Change::Routes { workloads, routes }) => {
                        routed += 1;
                        assert_eq!(c.last_step(), Stepped::Routes);
                        assert_eq!(others(&before.workloads, &c.model().workloads), workloads.into_iter().collect());
                        assert_eq!(others(&before.routes, &c.model().routes), routes.into_iter().collect());
                    }
                    Some(_) => {
                        statuses += usize::from(c.last_step() == Stepped::Statuses);
                        assert!(before.routes == c.model().routes);
                    }
                    None => drop(c.update(&state)),
                }
                if r.random_range(0..8) == 0 {
                    c.update(&state);
                }
                let whole = compile_all(&Objects::new(&state, &mesh), &mut Cache::default());
                assert!(whole.model == *c.model() && whole.problems == c.problems());
            }
        }
        println!("{routed} steps of routes, {statuses} of statuses");
        assert!(routed > 200 && statuses > 10);
    }

    /// It is in the model, and in neither of the two states that are compared.
    #[test]
    fn a_pod_that_came_by_a_step_and_goes_with_an_edited_route_is_gone() {
        let mesh = crate::convert::tests::mesh();
        let of = |text: &str| Arc::new(parse::file("t.yaml".as_ref(), text).unwrap().remove(0));
        let route = |timeout: &str| {
            of(&format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x, namespace: ns0}}\nspec: {{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}], timeout: {timeout}}}]}}\n"
            ))
        };
        let pod = |ip: &str| {
            of(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: ns0, annotations: {{ambient.istio.io/redirection: enabled}}}}\nspec: {{nodeName: n}}\nstatus: {{phase: Running, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}\n"
            ))
        };
        let service = of(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: ns0}\nspec: {clusterIP: 10.96.0.1, ports: [{name: web, port: 80}]}\n",
        );
        let state = |all: &[&Arc<Located>]| {
            let objects = all.iter().copied().cloned().collect();
            State { objects, ..State::default() }
        };
        let (first, second, one, other) = (route("1s"), route("2s"), pod("10.0.0.8"), pod("10.0.0.9"));
        // It was not there when all was looked at, or was another one, and then is gone or is that again.
        for (before, after) in [
            (None, None),
            (None, Some(&other)),
            (Some(&one), None),
            (Some(&one), Some(&one)),
            (Some(&one), Some(&other)),
        ] {
            // With a route, and alone.
            for route in [&second, &first] {
                let mut c = Compiler::new(mesh.clone());
                c.update(&state(&[&service, &first].into_iter().chain(before).collect::<Vec<_>>()));
                let between = pod("10.0.0.7");
                let step = c.step(&[(before.cloned(), Some(between))]);
                assert!(matches!(&step, Some(Change::Workloads(all)) if all.len() == 1), "{step:?}");
                let last = state(&[&service, route].into_iter().chain(after).collect::<Vec<_>>());
                let is_edited = !Arc::ptr_eq(route, &first);
                let change = c.update(&last);
                assert_eq!(change == Change::Everything, is_edited, "{change:?}");
                let whole = compile_all(&Objects::new(&last, &mesh), &mut Cache::default());
                assert!(whole.model == *c.model(), "{:?}", c.model().workloads);
            }
        }
    }

    /// No workload is made for an address that a pod has.
    fn pods_stand_alone(m: &Model) -> bool {
        let is_pod = |uid: &str| uid.contains("//Pod/");
        let standard = |w: &karst_api::workload::Workload| w.network_mode == 0;
        let pods = m.workloads.iter().filter(|(uid, w)| is_pod(uid) && standard(w)).flat_map(|(_, w)| &w.addresses);
        let taken: HashSet<_> = pods.collect();
        m.workloads.iter().filter(|(uid, _)| !is_pod(uid)).flat_map(|(_, w)| &w.addresses).all(|a| !taken.contains(a))
    }

    fn seen_by_proxies(m: &Model) -> impl PartialEq + use<'_> {
        (&m.workloads, &m.services, &m.policies, (&m.routes, &m.gateways, &m.pod_ranges))
    }

    /// Adds, replaces or removes one object.
    fn step(state: &mut State, r: &mut impl Rng) {
        let kind = r.random_range(0..40);
        put(state, r, kind);
    }

    /// The same of an object of this kind.
    fn put(state: &mut State, r: &mut impl Rng, kind: usize) {
        let pick = |r: &mut dyn FnMut(usize) -> usize, of: &[&str]| of[r(of.len())].to_string();
        let mut n = |k: usize| r.random_range(0..k);
        let text = match kind {
            38 | 39 => TRAFFIC,
            33 | 34 => SET,
            35 | 36 => IN_SET,
            37 => DATAGRAMS,
            32 => NODE,
            30 => ENTRY,
            31 => MACHINE,
            27 => TLS,
            24 | 25 => FILTER,
            26 => LIMITED,
            18 => GATEWAY,
            19 => ISTIO,
            20 => SECRET,
            21 | 22 => BOUND,
            23 => ATTACHED,
            12 => VS,
            13 => DELEGATE,
            14 | 15 => ROUTE,
            16 => GRANT,
            17 => RULE,
            0 => SERVICE,
            1 => POLICY,
            2..=4 => SLICE,
            _ => POD,
        };
        let text = text
            .replace("ANNOTATION", &pick(&mut n, &["enabled", "''"]))
            .replace("GATEWAY", &pick(&mut n, &["gateway.networking.k8s.io/gateway-name", "x", "x", "x"]))
            .replace("ALLOWED", &pick(&mut n, &["All", "All", "Same", "None"]))
            .replace("MADE", &pick(&mut n, &["first", "again"]))
            .replace("PHASE", &pick(&mut n, &["Running", "Running", "Running", "Succeeded"]))
            .replace("SELECTOR", &pick(&mut n, &["{app: a1}", "{}"]))
            .replace("SERVICE", &pick(&mut n, &["a0", "a1", "a2"]))
            .replace("HOSTS", &pick(&mut n, &["a%L", "a%L.ns0.svc.cluster.local", "'*.svc.cluster.local'"]))
            .replace("EXPORT", &pick(&mut n, &["'*'", "'*'", "'.'", "ns1", "'.', ns0"]))
            .replace("RULED", &pick(&mut n, &["a%L", "a%L.ns0.svc.cluster.local", "'*.ns0.svc.cluster.local'"]))
            .replace("TIMEOUT", &pick(&mut n, &["1s", "1s", "never"]))
            .replace("TOLD", &pick(&mut n, &["", "status: {conditions: [{type: t, reason: r%N}]}\n"]))
            .replace("REFERENCE", &pick(&mut n, &["{kind: Pod, name: p%N}", "{kind: Machine}", "null"]))
            // Mostly of nobody, else every pod would have an endpoint.
            .replace("ADDRESS", &pick(&mut n, &["10.0.%M.%N", "192.0.2.%N", "192.0.2.%N", "192.0.2.%N"]))
            // An address may change, or be two pods'.
            .replace("PODIP", &pick(&mut n, &["10.0.%M.%N", "10.0.%M.%N", "10.0.%M.%N", "10.0.0.%N"]))
            .replace(
                "CONDITIONS",
                &pick(&mut n, &["{}", "{ready: false}", "{ready: false, serving: true, terminating: true}"]),
            )
            .replace("TUNNEL", &pick(&mut n, &["http", "none"]))
            .replace("ENDS", &pick(&mut n, &["null", "null", "'2026-01-01T00:00:00Z'"]))
            .replace("HOST", &pick(&mut n, &["false", "false", "false", "true"]))
            .replace("%M", &n(2).to_string())
            .replace("%N", &n(6).to_string())
            .replace("%L", &n(3).to_string());
        let o = parse::file("t.yaml".as_ref(), &text).unwrap().remove(0);
        let key = |o: &Located| (o.object.kind(), o.object.meta().namespace.clone(), o.object.meta().name.clone());
        let at = state.objects.binary_search_by_key(&key(&o), |o| key(o));
        match (at, n(4)) {
            (Ok(i), 0) => drop(state.objects.remove(i)),
            (Ok(i), _) => state.objects[i] = Arc::new(o),
            (Err(i), _) => state.objects.insert(i, Arc::new(o)),
        }
    }
}
