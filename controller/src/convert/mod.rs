//! From objects to the model. Pure: the same objects give the same model, whatever the order of events.
//! Rules: Istio's workload discovery (reference control-plane §2), with the differences that docs/architecture.md lists.

pub mod check;
mod compiler;
pub mod deploy;
mod endpoint;
pub mod finding;
mod gateway_status;
mod no_effect;
mod node;
mod overlay;
mod policy;
mod policy_status;
mod privilege;
mod route_status;
mod routes;
mod service;
mod status;
mod waypoint;
mod workload;

#[cfg(test)]
pub(crate) use routes::unserved::around;

pub use compiler::{Change, Compiler};
pub(crate) use routes::{
    gateways::{VIRTUAL, warnings as of_gateway},
    tokens::public_keys,
    unserved::{all as findings, alone, with_view},
};
pub use status::Write;

use crate::{config::Config, model::Model};
use karst_manifest::{Object, Problem, State, kinds::*, parse::Located};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Names that conversion needs.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub trust_domain: String,
    pub cluster_domain: String,
    pub cluster_id: String,
    pub network: String,
    pub root_namespace: String,
    /// Whom VirtualServices are for that do not say so: `*` or `.` (Istio: defaultVirtualServiceExportTo).
    pub virtual_services_are_for: Vec<String>,
    /// The same of DestinationRules.
    pub destination_rules_are_for: Vec<String>,
    /// May ConfigMaps that Gateways name as parameters give rights to their pods?
    pub privileged_parameters: bool,
}

impl std::convert::From<&Config> for Mesh {
    fn from(c: &Config) -> Self {
        Self {
            trust_domain: c.trust_domain.clone(),
            cluster_domain: c.cluster_domain.clone(),
            cluster_id: c.cluster_id.clone(),
            network: c.network.clone(),
            root_namespace: c.root_namespace.clone(),
            virtual_services_are_for: c.virtual_services_are_for.clone(),
            destination_rules_are_for: c.destination_rules_are_for.clone(),
            privileged_parameters: c.privileged_parameters,
        }
    }
}

/// The objects by kind.
pub(crate) struct Objects<'a> {
    pub mesh: &'a Mesh,
    pub namespaces: BTreeMap<&'a str, &'a Namespace>,
    pub nodes: BTreeMap<&'a str, &'a Node>,
    /// Where they stand.
    pub nodes_at: Vec<(&'a Located, &'a Node)>,
    pub pods: Vec<&'a Pod>,
    /// By namespace.
    pub services: BTreeMap<&'a str, Vec<&'a Service>>,
    pub slices: Vec<&'a EndpointSlice>,
    /// Those that the deployer made, by namespace and name.
    pub deployments: HashMap<(&'a str, &'a str), &'a Deployment>,
    pub classes: BTreeMap<&'a str, &'a GatewayClass>,
    /// By namespace and name.
    pub gateways: HashMap<(&'a str, &'a str), &'a Gateway>,
    /// Where they stand.
    pub gateways_at: HashMap<(&'a str, &'a str), &'a Located>,
    pub service_entries: Vec<(&'a Located, &'a ServiceEntry)>,
    /// By namespace.
    pub entries_of: HashMap<&'a str, Vec<&'a ServiceEntry>>,
    pub workload_entries: Vec<(&'a Located, &'a WorkloadEntry)>,
    pub authorization: Vec<(&'a Located, &'a AuthorizationPolicy)>,
    pub peer: Vec<(&'a Located, &'a PeerAuthentication)>,
    pub request: Vec<(&'a Located, &'a RequestAuthentication)>,
    pub telemetry: Vec<(&'a Located, &'a Telemetry)>,
    pub istio_gateways: Vec<(&'a Located, &'a IstioGateway)>,
    /// By namespace and name.
    pub secrets: HashMap<(&'a str, &'a str), &'a Secret>,
    pub virtual_services: Vec<(&'a Located, &'a VirtualService)>,
    pub destination_rules: Vec<(&'a Located, &'a DestinationRule)>,
    pub http_routes: Vec<(&'a Located, &'a HTTPRoute)>,
    pub grpc_routes: Vec<(&'a Located, &'a GRPCRoute)>,
    pub tcp_routes: Vec<(&'a Located, &'a TCPRoute)>,
    pub tls_routes: Vec<(&'a Located, &'a TLSRoute)>,
    pub http_filters: Vec<(&'a Located, &'a HTTPFilter)>,
    /// By namespace and name.
    pub filter_named: HashMap<(&'a str, &'a str), &'a HTTPFilter>,
    pub backend_tls: Vec<(&'a Located, &'a BackendTLSPolicy)>,
    /// By namespace and name.
    pub config_maps: HashMap<(&'a str, &'a str), &'a ConfigMap>,
    /// Parameters of all Gateways of a class.
    pub class_parameters: HashMap<&'a str, Result<overlay::Parameters, String>>,
    pub grants: Vec<&'a ReferenceGrant>,
    /// Labels of pods that proxies must know.
    pub label_keys: BTreeSet<&'a str>,
    pub enrolled: &'a BTreeSet<String>,
    pub keys: &'a karst_manifest::dir::Keys,
}

impl<'a> Objects<'a> {
    pub(crate) fn new(state: &'a State, mesh: &'a Mesh) -> Self {
        let mut x = Self {
            mesh,
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            nodes_at: vec![],
            pods: vec![],
            services: BTreeMap::new(),
            slices: vec![],
            deployments: HashMap::new(),
            classes: BTreeMap::new(),
            gateways: HashMap::new(),
            gateways_at: HashMap::new(),
            service_entries: vec![],
            entries_of: HashMap::new(),
            workload_entries: vec![],
            authorization: vec![],
            peer: vec![],
            request: vec![],
            telemetry: vec![],
            istio_gateways: vec![],
            secrets: HashMap::new(),
            virtual_services: vec![],
            destination_rules: vec![],
            http_routes: vec![],
            grpc_routes: vec![],
            tcp_routes: vec![],
            tls_routes: vec![],
            http_filters: vec![],
            filter_named: HashMap::new(),
            backend_tls: vec![],
            config_maps: HashMap::new(),
            class_parameters: HashMap::new(),
            grants: vec![],
            label_keys: BTreeSet::new(),
            enrolled: &state.enrolled,
            keys: &state.keys,
        };
        let mut classes = overlay::Classes::default();
        for o in &state.objects {
            let o: &Located = o;
            match &o.object {
                Object::Namespace(n) => {
                    x.namespaces.insert(&n.metadata.name, n);
                }
                Object::Node(n) => {
                    x.nodes.insert(&n.metadata.name, n);
                    x.nodes_at.push((o, n));
                }
                Object::Pod(p) => x.pods.push(p),
                Object::Service(s) => x.services.entry(&s.metadata.namespace).or_default().push(s),
                Object::ServiceAccount(_) => {}
                Object::ConfigMap(c) => {
                    classes.add(&mesh.root_namespace, c);
                    x.config_maps.insert((&c.metadata.namespace, &c.metadata.name), c);
                }
                Object::EndpointSlice(e) => x.slices.push(e),
                Object::Deployment(d) => {
                    let m = &d.metadata;
                    if m.labels.contains_key(deploy::MANAGED) {
                        x.deployments.insert((&m.namespace, &m.name), d);
                    }
                }
                Object::GatewayClass(c) => {
                    x.classes.insert(&c.metadata.name, c);
                }
                Object::Gateway(g) => {
                    x.gateways.insert((&g.metadata.namespace, &g.metadata.name), g);
                    x.gateways_at.insert((&g.metadata.namespace, &g.metadata.name), o);
                }
                Object::ServiceEntry(s) => {
                    x.entries_of.entry(&s.metadata.namespace).or_default().push(s);
                    x.service_entries.push((o, s));
                }
                Object::WorkloadEntry(w) => x.workload_entries.push((o, w)),
                Object::AuthorizationPolicy(a) => x.authorization.push((o, a)),
                Object::PeerAuthentication(p) => x.peer.push((o, p)),
                Object::RequestAuthentication(r) => x.request.push((o, r)),
                Object::Telemetry(t) => x.telemetry.push((o, t)),
                Object::IstioGateway(g) => x.istio_gateways.push((o, g)),
                Object::Secret(s) => {
                    x.secrets.insert((&s.metadata.namespace, &s.metadata.name), s);
                }
                Object::VirtualService(v) => x.virtual_services.push((o, v)),
                Object::DestinationRule(d) => x.destination_rules.push((o, d)),
                Object::HTTPRoute(r) => x.http_routes.push((o, r)),
                Object::GRPCRoute(r) => x.grpc_routes.push((o, r)),
                Object::TCPRoute(r) => x.tcp_routes.push((o, r)),
                Object::TLSRoute(r) => x.tls_routes.push((o, r)),
                Object::HTTPFilter(f) => {
                    x.filter_named.insert((&f.metadata.namespace, &f.metadata.name), f);
                    x.http_filters.push((o, f));
                }
                Object::BackendTLSPolicy(b) => x.backend_tls.push((o, b)),
                Object::ReferenceGrant(g) => x.grants.push(g),
            }
        }
        x.class_parameters = classes.read();
        x.label_keys = routes::label_keys(&x);
        x
    }

    fn routes_are_empty(&self) -> bool {
        let bytes = self.tcp_routes.is_empty() && self.tls_routes.is_empty();
        self.http_routes.is_empty() && self.grpc_routes.is_empty() && bytes
    }

    /// The service of this name.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&'a Service> {
        self.services.get(namespace)?.iter().find(|s| s.metadata.name == name).copied()
    }
}

/// API group of Gateways.
const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// API group of our own kinds.
const OWN_GROUP: &str = "karst.io";
/// API group of Istio's networking kinds.
const ISTIO_NETWORKING: &str = "networking.istio.io";

/// What is wrong with an object: the field, and what and the fix.
type FieldError = (String, String);

/// What is to be written to the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// Objects to make or bring in order, in this order.
    pub objects: Vec<(karst_kube::Ref, serde_json::Value)>,
    /// Objects to remove before that, and the uid of the Gateway that each was made for.
    pub removed: Vec<(karst_kube::Ref, String)>,
    /// Statuses.
    pub statuses: Vec<Write>,
}

/// What is not yet as it should be. `compiled` is what came of the routes; `now` is the time in RFC 3339.
fn writes(
    state: &State,
    mesh: &Mesh,
    compiled: &routes::Cache,
    template: &deploy::Template,
    findings: Option<&[finding::Finding]>,
    now: &str,
) -> Writes {
    let x = Objects::new(state, mesh);
    let mut objects = if state.absent.contains("GatewayClass") { vec![] } else { deploy::classes(&x) };
    let mut removed = vec![];
    deploy::compile(&x, template, &mut objects, &mut removed);
    let listeners = routes::gateways::GatewayListeners::with_pods(&x);
    let all = route_status::all(&x, compiled);
    let mut statuses = status::compile(&x, &listeners, now);
    statuses.extend(findings.map(|f| status::unserved(&x, f, now)).unwrap_or_default());
    statuses.extend(gateway_status::compile(&x, &listeners, &all, now));
    statuses.extend(route_status::compile(&x, &listeners, &all, now));
    statuses.extend(policy_status::compile(&x, &listeners, &all, now));
    Writes { objects, removed, statuses }
}

/// Compiles the model; problems of meaning (as opposed to form) come back beside it.
pub fn compile(state: &State, mesh: &Mesh) -> (Model, Vec<Problem>) {
    let whole = compile_all(&Objects::new(state, mesh), &mut routes::Cache::default());
    (whole.model, whole.problems)
}

/// The stored AuthorizationPolicies that are in force otherwise than they are written, since they cannot be read; a line for each.
pub fn closing(state: &State, mesh: &Mesh) -> Vec<String> {
    let objects = Objects::new(state, mesh);
    objects.authorization.iter().filter_map(|(_, p)| policy::effect(&objects, p)).collect()
}

/// All that is made from the objects.
struct Whole {
    model: Model,
    problems: Vec<Problem>,
    /// What decides about pods alone.
    policies: policy::Policies,
    /// Pods that decide about more than themselves.
    watched: endpoint::Watched,
}

fn compile_all(objects: &Objects<'_>, cache: &mut routes::Cache) -> Whole {
    let mut problems = Vec::new();
    let mut model = Model { pods: workload::pod_infos(objects), ..Model::default() };
    let mut policies = policy::compile(objects, &mut problems);
    node::compile(objects, &mut model, &mut problems);
    service::compile(objects, &mut model, &mut problems);
    let owners = endpoint::Owners::new(objects);
    workload::compile(objects, &policies, &owners, &mut model, &mut problems);
    let listeners = Arc::new(routes::gateways::GatewayListeners::with_pods(objects));
    routes::compile(objects, &listeners, &mut model, &mut problems, cache);
    model.gateways = routes::gateways::compile(objects, &listeners, &mut problems).into_iter().collect();
    model.policies = policies.take().into();
    Whole { model, problems, policies, watched: owners.watched() }
}

/// May a Gateway of this namespace use a Secret of another?
fn granted_secret(objects: &Objects<'_>, from: &str, ns: &str, name: &str) -> bool {
    routes::granted(objects, "Gateway", from, (ns, "", "Secret", name))
}

/// A problem of a located object.
pub(crate) fn problem(at: &Located, field: impl Into<String>, message: impl Into<String>) -> Problem {
    let m = at.object.meta();
    Problem {
        file: at.file.clone(),
        line: at.line,
        object: format!("{} {}/{}", api_kind(at.object.kind()), m.namespace, m.name),
        field: field.into(),
        message: message.into(),
    }
}

/// Do the labels hold all of the selector? An empty selector selects everything.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

#[cfg(test)]
pub(crate) mod tests;
