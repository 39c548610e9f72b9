//! The objects by kind, as everything that is made from them looks them up. It knows nothing of what is made.

use crate::convert::objects::{
    MANAGED, Mesh, Named, Revisions,
    parameters::{Classes, Parameters, ParametersError},
};
use karst_manifest::{MeshConfig, Object, State, kinds::*, parse::Located};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The CRD of Gateway API's Gateways.
const GATEWAY_CRD: &str = "gateways.gateway.networking.k8s.io";

/// The objects by kind.
pub(crate) struct Objects<'a> {
    pub mesh: &'a Mesh,
    pub revisions: Revisions,
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
    /// By namespace and name.
    pub listener_sets: BTreeMap<(&'a str, &'a str), (&'a Located, &'a ListenerSet)>,
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
    pub udp_routes: Vec<(&'a Located, &'a UDPRoute)>,
    pub http_filters: Vec<(&'a Located, &'a HTTPFilter)>,
    /// By namespace and name.
    pub filter_named: HashMap<(&'a str, &'a str), &'a HTTPFilter>,
    /// Those for a VirtualService, by its namespace and name.
    pub filters_of: HashMap<&'a str, HashMap<&'a str, Vec<&'a HTTPFilter>>>,
    pub backend_tls: Vec<(&'a Located, &'a BackendTLSPolicy)>,
    pub backend_traffic: Vec<(&'a Located, &'a XBackendTrafficPolicy)>,
    /// By namespace and name.
    pub config_maps: HashMap<(&'a str, &'a str), &'a ConfigMap>,
    /// By name.
    pub trust_bundles: HashMap<&'a str, &'a ClusterTrustBundle>,
    pub service_cidrs: Vec<&'a ServiceCIDR>,
    /// May statuses of Gateways say where an address is reached from? The CRD of the experimental channel has the field; by another one
    /// the whole status would be refused.
    pub has_routability: bool,
    /// Parameters of all Gateways of a class.
    pub class_parameters: HashMap<&'a str, Result<Parameters, ParametersError>>,
    pub grants: Vec<&'a ReferenceGrant>,
    /// Labels of pods that proxies must know.
    pub label_keys: BTreeSet<&'a str>,
    /// Kinds that the API server does not know.
    pub absent: &'a BTreeSet<&'static str>,
    pub enrolled: &'a BTreeSet<String>,
    pub keys: &'a karst_manifest::dir::Keys,
    pub session_keys: &'a [karst_manifest::dir::SessionKey],
    /// What of the mesh can be changed while we run.
    pub mesh_config: &'a MeshConfig,
}

impl<'a> Objects<'a> {
    pub(crate) fn new(state: &'a State, mesh: &'a Mesh) -> Self {
        let mut index = Self::empty(state, mesh);
        let mut classes = Classes::default();
        let mut tags: Vec<&Labels> = vec![];
        for located in &state.objects {
            let located: &Located = located;
            match &located.object {
                Object::ConfigMap(c) => classes.add(&mesh.root_namespace, c),
                Object::MutatingWebhookConfiguration(webhook) => tags.push(&webhook.metadata.labels),
                _ => {}
            }
            index.add(located);
        }
        index.class_parameters = classes.read();
        let of_root = index.services.get(&*mesh.root_namespace).into_iter().flatten();
        let labels = tags.into_iter().chain(of_root.map(|service| &service.metadata.labels));
        index.revisions = Revisions::of_labels(labels, &mesh.revision);
        index.label_keys = label_keys(&index);
        index
    }

    /// Does the mesh configuration alone say something of telemetry, so that pods are told without any Telemetry?
    pub(crate) fn has_mesh_wide_telemetry(&self) -> bool {
        let config = self.mesh_config;
        config.access_log_file.as_deref() == Some("") || config.default_providers != Default::default()
    }

    /// Without any object.
    fn empty(state: &'a State, mesh: &'a Mesh) -> Self {
        Self {
            mesh,
            revisions: Revisions::default(),
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
            listener_sets: BTreeMap::new(),
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
            udp_routes: vec![],
            http_filters: vec![],
            filter_named: HashMap::new(),
            filters_of: HashMap::new(),
            backend_tls: vec![],
            backend_traffic: vec![],
            config_maps: HashMap::new(),
            trust_bundles: HashMap::new(),
            service_cidrs: vec![],
            has_routability: false,
            class_parameters: HashMap::new(),
            grants: vec![],
            label_keys: BTreeSet::new(),
            absent: &state.absent,
            enrolled: &state.enrolled,
            keys: &state.keys,
            session_keys: &state.session_keys,
            mesh_config: &state.mesh_config,
        }
    }

    /// Puts an object where it is looked for.
    fn add(&mut self, located: &'a Located) {
        match &located.object {
            Object::Namespace(n) => {
                self.namespaces.insert(&n.metadata.name, n);
            }
            Object::Node(n) => {
                self.nodes.insert(&n.metadata.name, n);
                self.nodes_at.push((located, n));
            }
            Object::Pod(p) => self.pods.push(p),
            Object::Service(s) => self.services.entry(&s.metadata.namespace).or_default().push(s),
            Object::ServiceAccount(_) => {}
            Object::ConfigMap(c) => {
                self.config_maps.insert((&c.metadata.namespace, &c.metadata.name), c);
            }
            Object::EndpointSlice(e) => self.slices.push(e),
            Object::Deployment(deployment) => {
                let m = &deployment.metadata;
                if m.labels.contains_key(MANAGED) {
                    self.deployments.insert((&m.namespace, &m.name), deployment);
                }
            }
            Object::GatewayClass(c) => {
                self.classes.insert(&c.metadata.name, c);
            }
            Object::Gateway(g) => {
                self.gateways.insert((&g.metadata.namespace, &g.metadata.name), g);
                self.gateways_at.insert((&g.metadata.namespace, &g.metadata.name), located);
            }
            Object::ListenerSet(s) => {
                self.listener_sets.insert((&s.metadata.namespace, &s.metadata.name), (located, s));
            }
            Object::ServiceEntry(s) => {
                self.entries_of.entry(&s.metadata.namespace).or_default().push(s);
                self.service_entries.push((located, s));
            }
            Object::WorkloadEntry(w) => self.workload_entries.push((located, w)),
            Object::AuthorizationPolicy(a) => self.authorization.push((located, a)),
            Object::PeerAuthentication(p) => self.peer.push((located, p)),
            Object::RequestAuthentication(r) => self.request.push((located, r)),
            Object::Telemetry(t) => self.telemetry.push((located, t)),
            Object::IstioGateway(g) => self.istio_gateways.push((located, g)),
            Object::Secret(s) => {
                self.secrets.insert((&s.metadata.namespace, &s.metadata.name), s);
            }
            Object::VirtualService(v) => self.virtual_services.push((located, v)),
            Object::DestinationRule(d) => self.destination_rules.push((located, d)),
            Object::HTTPRoute(r) => self.http_routes.push((located, r)),
            Object::GRPCRoute(r) => self.grpc_routes.push((located, r)),
            Object::TCPRoute(r) => self.tcp_routes.push((located, r)),
            Object::TLSRoute(r) => self.tls_routes.push((located, r)),
            Object::UDPRoute(r) => self.udp_routes.push((located, r)),
            Object::HTTPFilter(f) => {
                self.filter_named.insert((&f.metadata.namespace, &f.metadata.name), f);
                for target in f.spec.target_refs.iter().filter(|t| t.kind == "VirtualService") {
                    let here = self.filters_of.entry(&f.metadata.namespace).or_default();
                    here.entry(&target.name).or_default().push(f);
                }
                self.http_filters.push((located, f));
            }
            Object::BackendTLSPolicy(b) => self.backend_tls.push((located, b)),
            Object::XBackendTrafficPolicy(b) => self.backend_traffic.push((located, b)),
            Object::ClusterTrustBundle(bundle) => {
                self.trust_bundles.insert(&bundle.metadata.name, bundle);
            }
            Object::ServiceCIDR(ranges) => self.service_cidrs.push(ranges),
            Object::CustomResourceDefinition(crd) if crd.metadata.name == GATEWAY_CRD => {
                self.has_routability = crd.has_field("v1", &["status", "addresses", "routability"]);
            }
            Object::CustomResourceDefinition(_) => {}
            Object::ReferenceGrant(g) => self.grants.push(g),
            // Its labels only: see `new`.
            Object::MutatingWebhookConfiguration(_) => {}
        }
    }

    /// Does this revision run and tend an object? (Its status is another's to write, else, and its pods another's to run.)
    pub(crate) fn is_ours(&self, meta: &Meta) -> bool {
        let namespace = self.namespaces.get(&*meta.namespace).map(|namespace| &namespace.metadata.labels);
        self.revisions.owner(&meta.labels, namespace) == Named::Own
    }

    pub(crate) fn routes_are_empty(&self) -> bool {
        let bytes = self.tcp_routes.is_empty() && self.tls_routes.is_empty() && self.udp_routes.is_empty();
        self.http_routes.is_empty() && self.grpc_routes.is_empty() && bytes
    }

    /// The service of this name.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&'a Service> {
        self.services.get(namespace)?.iter().find(|s| s.metadata.name == name).copied()
    }
}

/// Labels that subsets or rules ask for: only these are told to proxies.
pub(crate) fn label_keys<'a>(objects: &Objects<'a>) -> BTreeSet<&'a str> {
    let mut keys = BTreeSet::new();
    for (_, d) in &objects.destination_rules {
        keys.extend(d.spec.subsets.iter().flat_map(|s| s.labels.keys()).map(String::as_str));
    }
    let policies = objects.destination_rules.iter().flat_map(|(_, d)| d.spec.all_policies());
    for l in policies.filter_map(|p| p.load_balancer.as_ref()?.locality_lb_setting.as_ref()) {
        keys.extend(l.failover_priority.iter().map(|p| p.split_once('=').map_or(p.as_str(), |(k, _)| k)));
    }
    keys.extend(objects.virtual_services.iter().flat_map(|(_, service)| source_labels(service)));
    keys
}

/// Labels of clients that a VirtualService asks for.
pub(crate) fn source_labels(service: &VirtualService) -> impl Iterator<Item = &str> {
    let http = service.spec.http.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
    let tcp = service.spec.tcp.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
    let tls = service.spec.tls.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
    http.chain(tcp).chain(tls).map(String::as_str)
}
