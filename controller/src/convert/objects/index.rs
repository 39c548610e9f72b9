//! The objects by kind, as everything that is made from them looks them up. It knows nothing of what is made.

use crate::convert::objects::{
    MANAGED, Mesh,
    parameters::{Classes, Parameters, ParametersError},
};
use karst_manifest::{Object, State, kinds::*, parse::Located};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
    pub class_parameters: HashMap<&'a str, Result<Parameters, ParametersError>>,
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
        let mut classes = Classes::default();
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
                    if m.labels.contains_key(MANAGED) {
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
        x.label_keys = label_keys(&x);
        x
    }

    pub(crate) fn routes_are_empty(&self) -> bool {
        let bytes = self.tcp_routes.is_empty() && self.tls_routes.is_empty();
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
    for (_, v) in &objects.virtual_services {
        let http = v.spec.http.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
        let tcp = v.spec.tcp.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
        let tls = v.spec.tls.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
        keys.extend(http.chain(tcp).chain(tls).map(String::as_str));
    }
    keys
}
