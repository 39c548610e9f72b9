//! Which objects a call concerns, and what is to be said of them: those that cannot be used, and those without effect.

use crate::{answer::Object, objects::selects, settings::names, way::Way, world::World};
use karst_manifest::{Object as Read, gatewayapi::ParentRef, kinds};

/// Label of objects that only one of several control planes reads.
const REVISION: &str = "istio.io/rev";

/// Whom a call concerns.
struct Concerned<'a> {
    world: &'a World,
    way: &'a Way,
    /// Namespaces of what is called.
    called: Vec<String>,
    /// Gateways on the way, `namespace/name`.
    gateways: Vec<String>,
    /// The services, as namespace, name and host.
    services: Vec<(String, String, String)>,
}

/// What is to be said of the objects that the call concerns.
pub(super) fn statements(world: &World, way: &Way) -> Vec<(Option<Object>, String)> {
    let concerned = Concerned::new(world, way);
    let mut out: Vec<(Option<Object>, String)> = vec![];
    for problem in &world.compiled.problems {
        let (kind, name) = problem.object.split_once(' ').unwrap_or_default();
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        if let Some((object, read)) = find(world, kind, namespace, name)
            && concerned.is(read)
        {
            let separator = if problem.field.is_empty() { "" } else { ": " };
            out.push((Some(object), format!("{}{separator}{}", problem.field, problem.message)));
        }
    }
    for one in world.compiled.no_effect.iter().chain(&world.compiled.warnings) {
        if let Some((object, read)) = find(world, one.kind, &one.namespace, &one.name)
            && concerned.is(read)
        {
            out.push((Some(object), one.text.clone()));
        }
    }
    out.extend(concerned.selects_nobody());
    out.extend(concerned.of_other_revision());
    out
}

fn find<'a>(world: &'a World, kind: &str, namespace: &str, name: &str) -> Option<(Object, &'a Read)> {
    let kinds = kinds::KINDS.iter().map(|(own, ..)| *own).filter(|own| kinds::api_kind(own) == kind);
    let located = kinds.filter_map(|own| world.objects.get(own, namespace, name)).next()?;
    Some((crate::objects::shown(located), &located.object))
}

impl<'a> Concerned<'a> {
    fn new(world: &'a World, way: &'a Way) -> Self {
        let mut services: Vec<(String, String, String)> = vec![];
        let mut add = |key: &str| {
            if let Some(service) = world.mesh.services.get(key) {
                let one = (service.namespace.to_string(), service.name.to_string(), service.hostname.to_string());
                if !services.contains(&one) {
                    services.push(one);
                }
            }
        };
        way.answer.service.iter().for_each(|key| add(key));
        let of_endpoint = way.answer.endpoints.iter().filter_map(|e| world.mesh.workload(e.address.ip()));
        of_endpoint.flat_map(|workload| &workload.services).for_each(|(key, _)| add(key));
        let gateways = way.answer.steps.iter().filter_map(|s| s.object.as_ref()).filter(|o| o.kind == "Gateway");
        let gateways: Vec<String> = gateways.map(|o| format!("{}/{}", o.namespace, o.name)).collect();
        let mut called: Vec<String> = services.iter().map(|(namespace, ..)| namespace.clone()).collect();
        let of_pods = way.answer.endpoints.iter().filter_map(|e| e.workload.split_once('/'));
        called.extend(of_pods.map(|(namespace, _)| namespace.to_string()));
        called.sort();
        called.dedup();
        Self { world, way, called, gateways, services }
    }

    fn is(&self, object: &Read) -> bool {
        let meta = object.meta();
        let place = &*meta.namespace;
        let is_called = || self.called.iter().any(|namespace| namespace == place);
        let is_root = place == self.world.compiled.root_namespace;
        match object {
            Read::Namespace(n) => {
                self.called.contains(&n.metadata.name) || n.metadata.name == *self.way.source.workload.namespace
            }
            Read::AuthorizationPolicy(_)
            | Read::RequestAuthentication(_)
            | Read::PeerAuthentication(_)
            | Read::HTTPFilter(_) => is_called() || is_root,
            Read::HTTPRoute(r) => self.is_parent(&r.spec.parent_refs, place),
            Read::GRPCRoute(r) => self.is_parent(&r.spec.parent_refs, place),
            Read::TCPRoute(r) => self.is_parent(&r.spec.parent_refs, place),
            Read::TLSRoute(r) => self.is_parent(&r.spec.parent_refs, place),
            Read::XBackendTrafficPolicy(p) => p.spec.target_refs.iter().any(|target| {
                self.services.iter().any(|(namespace, name, _)| namespace == place && *name == target.name)
            }),
            Read::ListenerSet(s) => self.is_set(&s.metadata.namespace, &s.metadata.name),
            Read::UDPRoute(r) => self.is_parent(&r.spec.parent_refs, place),
            Read::VirtualService(v) => {
                let at_gateway = v.spec.gateways.iter().any(|gateway| {
                    let (namespace, name) = gateway.split_once('/').unwrap_or((place, gateway));
                    self.gateways.contains(&format!("{namespace}/{name}"))
                });
                at_gateway || v.spec.hosts.iter().any(|host| self.is_host(host, place))
            }
            // A rule for a host that nobody has may have been meant for one of these.
            Read::DestinationRule(d) => self.is_host(&d.spec.host, place) || is_called(),
            Read::ServiceEntry(e) => e.spec.hosts.iter().any(|host| self.is_host(host, place)),
            Read::Gateway(_) | Read::IstioGateway(_) => {
                self.gateways.contains(&format!("{place}/{}", meta.name)) || (is_called() && self.gateways.is_empty())
            }
            Read::Service(s) => self
                .services
                .iter()
                .any(|(namespace, name, _)| (namespace, name) == (&s.metadata.namespace, &s.metadata.name)),
            _ => false,
        }
    }

    fn is_host(&self, written: &str, place: &str) -> bool {
        self.services.iter().any(|(namespace, _, host)| names(written, place, namespace, host))
    }

    fn is_parent(&self, parents: &[ParentRef], place: &str) -> bool {
        parents.iter().any(|parent| {
            let namespace = parent.namespace.as_deref().unwrap_or(place);
            let is_service = self.services.iter().any(|(ns, name, _)| ns == namespace && *name == parent.name);
            match parent.kind.as_deref() {
                Some("ListenerSet") => self.is_set(namespace, &parent.name),
                _ => is_service || self.gateways.contains(&format!("{namespace}/{}", parent.name)),
            }
        })
    }

    /// Is it a ListenerSet of a Gateway on the way?
    fn is_set(&self, namespace: &str, name: &str) -> bool {
        let of = self.world.objects.gateway_of_set(namespace, name);
        of.is_some_and(|(namespace, name)| self.gateways.contains(&format!("{namespace}/{name}")))
    }

    /// Policies of the namespaces that are called whose selectors select no pod.
    fn selects_nobody(&self) -> Vec<(Option<Object>, String)> {
        let mut out = vec![];
        for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
            for located in self.world.objects.all(kind) {
                let selector = match &located.object {
                    Read::AuthorizationPolicy(p) => p.spec.selector.as_ref(),
                    Read::PeerAuthentication(p) => p.spec.selector.as_ref(),
                    _ => None,
                };
                let place = &located.object.meta().namespace;
                let wanted = selector.map(|s| &s.match_labels).filter(|labels| !labels.is_empty());
                let Some(wanted) = wanted.filter(|_| self.called.contains(place)) else { continue };
                let mut pods = self.world.objects.pods().filter(|(_, pod)| pod.metadata.namespace == *place);
                if pods.any(|(_, pod)| selects(wanted, &pod.metadata.labels)) {
                    continue;
                }
                let text: Vec<String> = wanted.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let why = format!("spec.selector: {} selects no pod of {place}: it has no effect", text.join(","));
                out.push((Some(crate::objects::shown(located)), why));
            }
        }
        out
    }

    /// Objects that are for another control plane than the one that is asked about.
    fn of_other_revision(&self) -> Vec<(Option<Object>, String)> {
        let concerned = |object: &&std::sync::Arc<karst_manifest::parse::Located>| self.is(&object.object);
        let kinds = ["AuthorizationPolicy", "PeerAuthentication", "HTTPRoute", "VirtualService", "DestinationRule"];
        let all = kinds.iter().chain(&["Gateway", "HTTPFilter"]).flat_map(|kind| self.world.objects.all(kind));
        let labelled = all.filter(concerned).filter_map(|located| {
            let revision = located.object.meta().labels.get(REVISION)?;
            let own = self.world.compiled.revisions.contains(revision);
            (!own && !revision.is_empty()).then(|| {
                let why = format!(
                    "metadata.labels[{REVISION}]: {revision} is not this control plane's revision ({}): it has no effect here",
                    self.world.compiled.revisions.join(", ")
                );
                (Some(crate::objects::shown(located)), why)
            })
        });
        labelled.collect()
    }
}
