//! Objects that nobody executes: routes of services without a waypoint, or of services and gateways that are not there; rules for
//! hosts that are not there; namespaces that wait for sidecars.

use crate::{
    convert::{
        compilation::{routes::virtual_service, tokens},
        deploy,
        facts::{
            gateway,
            hosts::Hosts,
            listener_set,
            listeners::{self, Taken},
            service, waypoint,
        },
        finding::{Finding, Reason},
        objects::{GATEWAY_API, ISTIO_NETWORKING, MESH, Mesh, Objects, Revision, named},
    },
    model::Model,
};
use karst_core::claims;
use karst_manifest::{
    Object, State,
    gatewayapi::ParentRef,
    kinds::*,
    traffic::{VirtualServiceSpec, VsDestination},
};
use std::{collections::HashMap, sync::Arc};

/// Label of namespaces that asks for sidecars.
const INJECTION: &str = "istio-injection";

/// What objects are looked up in.
pub(crate) struct View<'a> {
    objects: &'a Objects<'a>,
    hosts: Hosts,
    /// Labels of services, by their key.
    labels: HashMap<String, (&'a str, &'a Labels)>,
}

/// What is wrong with an object, and why.
type Found = (Reason, (String, String));

/// All findings, in the order of the objects.
pub fn all(state: &State, model: &Model, mesh: &Mesh) -> Vec<Finding> {
    with_view(state, model, mesh, |view| view.all(state))
}

/// Does something with what objects of this state are looked up in.
pub(crate) fn with_view<T>(state: &State, model: &Model, mesh: &Mesh, judge: impl FnOnce(&View<'_>) -> T) -> T {
    let objects = Objects::new(state, mesh);
    judge(&View::new(&objects, model))
}

/// What is to be said of an object whatever else is there. None: it is to be looked at among the others ([`View::applied`]).
pub(crate) fn alone(object: &Object) -> Option<Vec<Finding>> {
    if let Object::Namespace(n) = object {
        return Some(injection(n).into_iter().collect());
    }
    if names_revision(object) {
        return None;
    }
    let looked_up = matches!(
        object,
        Object::VirtualService(_) | Object::DestinationRule(_) | Object::Gateway(_) | Object::ListenerSet(_)
    );
    let of_service = |p: &ParentRef| service_kind(p).is_some();
    let among_others = looked_up || parents(object).is_some_and(|p| p.iter().any(of_service));
    (!among_others).then(Vec::new)
}

/// What is to be said of an object that is applied among these.
#[cfg(test)]
pub fn around(object: &Object, state: &State, model: &Model, mesh: &Mesh) -> Vec<Finding> {
    alone(object).unwrap_or_else(|| with_view(state, model, mesh, |view| view.applied(object)))
}

/// What a reference is to, if it is to services.
fn service_kind(parent: &ParentRef) -> Option<&'static str> {
    match (parent.group.as_deref().unwrap_or(GATEWAY_API), parent.kind.as_deref().unwrap_or("")) {
        ("" | "core", "Service") => Some("Service"),
        (ISTIO_NETWORKING, "ServiceEntry") => Some("ServiceEntry"),
        _ => None,
    }
}

/// Names and references of a route of Gateway API.
fn parents(object: &Object) -> Option<&[ParentRef]> {
    match object {
        Object::HTTPRoute(r) => Some(&r.spec.parent_refs),
        Object::GRPCRoute(r) => Some(&r.spec.parent_refs),
        Object::TCPRoute(r) => Some(&r.spec.parent_refs),
        Object::TLSRoute(r) => Some(&r.spec.parent_refs),
        _ => None,
    }
}

/// Is it an object that a label makes one revision's?
fn names_revision(object: &Object) -> bool {
    named(&object.meta().labels).is_some()
        && (matches!(object, Object::Gateway(_)) || Revision::label(object).is_some())
}

fn one(object: &Object, view: &View<'_>) -> Vec<Finding> {
    let meta = object.meta();
    if names_revision(object)
        && let Some(bad) = view.objects.revisions.unknown(meta)
    {
        return vec![Finding::new(object.kind(), meta, Reason::RevisionNotFound, bad)];
    }
    let found = match object {
        Object::Namespace(n) => return injection(n).into_iter().collect(),
        Object::VirtualService(v) => view.virtual_service(v),
        Object::DestinationRule(d) => {
            let lost = !d.spec.host.is_empty() && view.hosts.all(&d.spec.host, &meta.namespace).is_empty();
            let found = || (Reason::HostNotFound, ("spec.host".into(), no_service(&d.spec.host)));
            lost.then(found).into_iter().collect()
        }
        Object::Gateway(g) => view.gateway(g),
        Object::ListenerSet(s) => view.listener_set(s),
        other => parents(other).map(|p| view.parents(&meta.namespace, p)).unwrap_or_default(),
    };
    found.into_iter().map(|(reason, bad)| Finding::new(object.kind(), meta, reason, bad)).collect()
}

fn no_service(host: &str) -> String {
    format!("service {host:?} does not exist: this has no effect until it does [KARST-0307]")
}

impl<'a> View<'a> {
    fn new(objects: &'a Objects<'a>, model: &Model) -> Self {
        let mut labels: HashMap<String, (&str, &Labels)> = HashMap::new();
        for (_, e) in &objects.service_entries {
            let ns = e.metadata.namespace.as_str();
            labels.extend(e.spec.hosts.iter().map(|h| (format!("{ns}/{h}"), (ns, &e.metadata.labels))));
        }
        for s in objects.services.values().flatten() {
            let ns = s.metadata.namespace.as_str();
            labels.insert(format!("{ns}/{}", service::hostname(objects, s)), (ns, &s.metadata.labels));
        }
        let listeners = Arc::new(listeners::GatewayListeners::with_pods(objects));
        Self { objects, hosts: Hosts::new(objects, model, &listeners), labels }
    }

    /// All findings of this state, in the order of the objects.
    pub(crate) fn all(&self, state: &State) -> Vec<Finding> {
        state.objects.iter().flat_map(|o| one(&o.object, self)).collect()
    }

    /// What is to be said of an object that is applied among these.
    pub(crate) fn applied(&self, object: &Object) -> Vec<Finding> {
        // What is named in the same breath is about to be there.
        let later = |f: &Finding| {
            matches!(f.reason, Reason::WaypointNotBound | Reason::TokensNotVerified)
                || f.field.ends_with("parametersRef")
        };
        one(object, self).into_iter().filter(|f| !later(f)).collect()
    }

    /// Why nobody executes the routes of a service.
    fn unserved(&self, key: &str) -> Option<(Reason, String)> {
        let (ns, labels) = self.labels.get(key)?;
        let name = key.split_once('/').map_or(key, |(_, host)| host);
        waypoint::executing(self.objects, ns, labels, name).err()
    }

    /// What of a Gateway of ours cannot be. (Listeners of those that are no waypoints are problems of the compilation.)
    fn gateway(&self, gateway: &Gateway) -> Vec<Found> {
        let is_waypoint = waypoint::is_waypoint(self.objects, gateway);
        if !is_waypoint && !gateway::is_ingress(self.objects, gateway) {
            return vec![];
        }
        let listeners = gateway.spec.listeners.iter().filter(|_| is_waypoint);
        let wrong =
            listeners.filter_map(|l| Some((format!("spec.listeners[{}]", l.name), waypoint::wrong_listener(l)?.1)));
        let parameters = deploy::parameters(self.objects, gateway).err();
        let parameters = parameters.map(|e| ("spec.infrastructure.parametersRef".to_string(), e.to_string()));
        wrong.chain(parameters).map(|bad| (Reason::Invalid, bad)).collect()
    }

    /// Why a Gateway of ours does not take the listeners of a set. (Which of them cannot be is a problem of the compilation.)
    fn listener_set(&self, set: &ListenerSet) -> Vec<Found> {
        let of = listener_set::parent(self.objects, set).filter(|of| listener_set::is_ours(self.objects, of));
        let text = of.and_then(|of| listener_set::refusal(self.objects, of, &set.metadata.namespace));
        text.map(|text| (Reason::Invalid, ("spec.parentRef".to_string(), text))).into_iter().collect()
    }

    /// The first match of a claim, where nobody verifies tokens.
    fn unverified(&self, spec: &VirtualServiceSpec) -> Option<(String, String)> {
        if tokens::placed(self.objects).next().is_some() {
            return None;
        }
        let matches = spec.http.iter().enumerate();
        let mut matches = matches.flat_map(|(i, route)| route.matches.iter().enumerate().map(move |(j, m)| (i, j, m)));
        matches.find_map(|(i, j, m)| {
            let fields = [("headers", &m.headers), ("withoutHeaders", &m.without_headers)];
            let claim = |name: &&String| claims::path(name).is_some();
            let (field, name) = fields.into_iter().find_map(|(field, all)| Some((field, all.keys().find(claim)?)))?;
            let text = "no RequestAuthentication verifies tokens, so no claim is ever there: create one for the services of the waypoint, or for the gateway [KARST-0133]";
            Some((format!("spec.http[{i}].match[{j}].{field}[{name}]"), text.into()))
        })
    }

    fn virtual_service(&self, service: &VirtualService) -> Vec<Found> {
        let (spec, ns) = (&service.spec, service.metadata.namespace.as_str());
        let taken = self.hosts.listeners.taken(self.objects, service);
        let mut out = vec![];
        match taken {
            Taken::No if spec.gateways.iter().any(|g| g != MESH) => {
                let text =
                    "none of these Gateways accepts any of its hosts: this has no effect until one does [KARST-0316]";
                out.push((Reason::GatewayNotFound, ("spec.gateways".into(), text.into())));
            }
            Taken::NotExported => {
                let text = "includes none of the namespaces of its gateways' pods: add them, or use * [KARST-0317]";
                out.push((Reason::GatewayNotFound, ("spec.exportTo".into(), text.into())));
            }
            Taken::No | Taken::Yes => {}
        }
        out.extend(self.unverified(spec).map(|bad| (Reason::TokensNotVerified, bad)));
        // What a gateway executes may be for it alone, though it names the mesh, too.
        let hosts = spec
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, h)| *h != "*" && taken == Taken::No && virtual_service::is_for_mesh(service));
        for (i, host) in hosts {
            let at = format!("spec.hosts[{i}]");
            let keys = self.hosts.all(host, ns);
            if keys.is_empty() {
                out.push((Reason::HostNotFound, (at, no_service(host))));
                continue;
            }
            let why: Vec<_> = keys.iter().map(|k| self.unserved(k)).collect();
            // Of many services some may have none.
            if let Some(Some((reason, text))) =
                why.iter().all(Option::is_some).then(|| why.into_iter().next().flatten())
            {
                out.push((reason, (at, text)));
            }
        }
        let lost =
            |(_, d): &(String, &VsDestination)| !d.host.is_empty() && self.hosts.destination(&d.host, ns).is_none();
        let all = virtual_service::destinations(spec).into_iter().filter(lost);
        let why = |host: &str| match self.hosts.alias(host, ns) {
            Some(_) if !self.hosts.is_own_alias(host, ns) => format!(
                "{host} is an ExternalName Service for a host that no Service or ServiceEntry has: requests to it are answered with 503; create a ServiceEntry for that host [KARST-0307]"
            ),
            Some(name) => format!(
                "{host} is an ExternalName Service for {name:?}, but no Service or ServiceEntry has that host: requests to it are answered with 503; create a ServiceEntry [KARST-0307]"
            ),
            None => no_service(host),
        };
        out.extend(all.map(|(at, d)| (Reason::HostNotFound, (format!("{at}.host"), why(&d.host)))));
        let no_port = |(at, destination): (String, &VsDestination)| {
            let (key, port) = (self.hosts.destination(&destination.host, ns)?, destination.port.number);
            let lost = !self.hosts.has_port(key, port.into());
            lost.then(|| {
                (
                    format!("{at}.port.number"),
                    format!(
                        "{} has no port {port}: requests to it are answered with 503 [KARST-0308]",
                        destination.host
                    ),
                )
            })
        };
        let all = virtual_service::destinations(spec).into_iter().filter_map(no_port);
        out.extend(all.map(|bad| (Reason::PortNotFound, bad)));
        out
    }

    fn parents(&self, namespace: &str, all: &[ParentRef]) -> Vec<Found> {
        let mut out = vec![];
        for (index, parent) in all.iter().enumerate() {
            let ns = parent.namespace.as_deref().unwrap_or(namespace);
            let found = match service_kind(parent) {
                Some("Service") => self.hosts.service(&parent.name, ns).map(|key| self.unserved(key)),
                Some(_) => {
                    let mut all = self.objects.entries_of.get(ns).into_iter().flatten();
                    let e = all.find(|e| e.metadata.name == parent.name);
                    e.map(|e| waypoint::executing(self.objects, ns, &e.metadata.labels, &parent.name).err())
                }
                None => continue,
            };
            let at = format!("spec.parentRefs[{index}]");
            match found {
                None => out.push((Reason::HostNotFound, (at, no_service(&parent.name)))),
                Some(Some((reason, text))) => out.push((reason, (at, text))),
                Some(None) => {}
            }
        }
        out
    }
}

fn injection(namespace: &Namespace) -> Option<Finding> {
    if namespace.metadata.labels.get(INJECTION).map(String::as_str) != Some("enabled") {
        return None;
    }
    let fix = match karst_manifest::enrol::enrols(namespace) {
        true => "remove it; the namespace is already in the mesh by its other label",
        false => "to add its pods to the mesh, use the label istio.io/dataplane-mode=ambient",
    };
    let text = format!("has no effect, because the mesh has no sidecars: {fix} [KARST-0707]");
    let field = format!("metadata.labels[{INJECTION}]");
    Some(Finding::new("Namespace", &namespace.metadata, Reason::SidecarInjection, (field, text)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::convert::{compile, finding::count, tests::mesh};
    use karst_manifest::{Problem, parse};
    use std::sync::Arc;

    const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nSTATUS\n---\n";
    const READY: &str = "status: {addresses: [{type: Hostname, value: w.a.svc.cluster.local}]}";
    const SERVICES: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: with, namespace: a, labels: {istio.io/use-waypoint: w}}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: without, namespace: a}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: in, namespace: a}\nspec: {selector: {app: in}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*.com']}]}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: out, namespace: a}\nspec: {selector: {app: out}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*.com']}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: out, namespace: edge, labels: {app: out}}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.9, phase: Running}\n---\n";

    fn state(text: &str) -> State {
        let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(Arc::new).collect();
        State { objects, ..State::default() }
    }

    /// Reasons and fields of what is said of the last object, by all and when it is applied.
    fn said(gateway: &str, last: &str) -> [Vec<String>; 2] {
        let before = state(&(GATEWAY.replace("STATUS", gateway) + SERVICES));
        let whole = state(&(GATEWAY.replace("STATUS", gateway) + SERVICES + last));
        let object = &whole.objects.last().unwrap().object;
        let show = |f: &Finding| format!("{} {}", f.reason.name(), f.field);
        let mine = |f: &&Finding| f.kind == object.kind() && f.name == object.meta().name;
        let of_all = all(&whole, &compile(&whole, &mesh()).0, &mesh());
        let applied = around(object, &before, &compile(&before, &mesh()).0, &mesh());
        [of_all.iter().filter(mine).map(show).collect(), applied.iter().map(show).collect()]
    }

    fn route(spec: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: a}}\nspec: {{{spec}}}\n"
        )
    }

    #[test]
    fn claims_that_nobody_verifies_are_told() {
        const TOKENS: &str = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: r, namespace: a}\nspec: {targetRefs: [{group: '', kind: Service, name: with}], jwtRules: [{issuer: 'https://i'}]}\n---\n";
        let by = |field: &str, name: &str| {
            route(&format!(
                "hosts: [with], http: [{{route: [{{destination: {{host: with}}}}]}}, {{match: [{{}}, {{{field}: {{'{name}': {{exact: a}}}}}}], route: [{{destination: {{host: with}}}}]}}]"
            ))
        };
        for field in ["headers", "withoutHeaders"] {
            let vs = by(field, "@request.auth.claims.sub");
            // It may be about to be there when the VirtualService is applied.
            let want = format!("TokensNotVerified spec.http[1].match[1].{field}[@request.auth.claims.sub]");
            assert_eq!(said(READY, &vs), [vec![want], vec![]]);
            assert_eq!(said(READY, &(TOKENS.to_string() + &vs)), [vec![], Vec::<String>::new()]);
            assert_eq!(said(READY, &by(field, "x-user")), [vec![], Vec::<String>::new()]);
        }
    }

    #[test]
    fn routes_that_nobody_executes_are_told() {
        const TO: &str = "http: [{route: [{destination: {host: with}}]}]";
        for (spec, want) in [
            ("hosts: [with]", vec![]),
            ("hosts: [without]", vec!["MissingUseWaypointLabel spec.hosts[0]"]),
            ("hosts: [with, without.a.svc.cluster.local]", vec!["MissingUseWaypointLabel spec.hosts[1]"]),
            ("hosts: ['*.a.svc.cluster.local']", vec![]),
            ("hosts: [none]", vec!["HostNotFound spec.hosts[0]"]),
            ("hosts: [x.com], gateways: [in, mesh]", vec![]),
            ("hosts: [without], gateways: [mesh]", vec!["MissingUseWaypointLabel spec.hosts[0]"]),
            ("hosts: [x.com], gateways: [other]", vec!["GatewayNotFound spec.gateways"]),
            ("hosts: [x.org], gateways: [in]", vec!["GatewayNotFound spec.gateways"]),
            ("hosts: [x.com], gateways: [out]", vec![]),
            ("hosts: [x.com], gateways: [out], exportTo: [.]", vec!["GatewayNotFound spec.exportTo"]),
            ("hosts: [x.com], gateways: [out], exportTo: [., edge]", vec![]),
        ] {
            let both = said(READY, &route(&format!("{spec}, {TO}")));
            assert_eq!(both, [want.clone(), want], "{spec}");
        }
        let at = |port: u16| {
            format!("hosts: [with], tcp: [{{route: [{{destination: {{host: with, port: {{number: {port}}}}}}}]}}]")
        };
        assert_eq!(said(READY, &route(&at(80)))[0], Vec::<String>::new());
        let want = vec!["PortNotFound spec.tcp[0].route[0].destination.port.number".to_string()];
        assert_eq!(said(READY, &route(&at(81))), [want.clone(), want]);
        let to = "hosts: [with], http: [{route: [{destination: {host: with}}, {destination: {host: none}, weight: 0}], mirrors: [{destination: {host: none}}], mirror: {host: lost}}], tcp: [{route: [{destination: {host: gone}}]}]";
        let want = ["http[0].route[1]", "http[0].mirrors[0]", "http[0].mirror", "tcp[0].route[0]"];
        let want = [
            format!("HostNotFound spec.{}.destination.host", want[0]),
            format!("HostNotFound spec.{}.destination.host", want[1]),
            format!("HostNotFound spec.{}.host", want[2]),
            format!("HostNotFound spec.{}.destination.host", want[3]),
        ];
        assert_eq!(said(READY, &route(to)), [want.clone(), want].map(Vec::from));
        // One that is not ready is in the status; when it is applied it may be about to be.
        let [of_all, applied] = said("", &route(&format!("hosts: [with], {TO}")));
        assert_eq!((of_all, applied), (vec!["WaypointNotBound spec.hosts[0]".to_string()], vec![]));
    }

    #[test]
    fn routes_of_gateway_api_and_rules_for_nobody_are_told() {
        let http = |parents: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{parents}], rules: [{{backendRefs: [{{name: with, port: 80}}]}}]}}\n"
            )
        };
        let service = |name: &str| format!("{{group: '', kind: Service, name: {name}}}");
        let wants = |parents: &str, want: Vec<&str>| {
            let want: Vec<String> = want.into_iter().map(String::from).collect();
            assert_eq!(said(READY, &http(parents)), [want.clone(), want], "{parents}");
        };
        wants(&service("with"), vec![]);
        wants(&service("without"), vec!["MissingUseWaypointLabel spec.parentRefs[0]"]);
        wants(&service("none"), vec!["HostNotFound spec.parentRefs[0]"]);
        let both = format!("{}, {}", service("with"), service("without"));
        wants(&both, vec!["MissingUseWaypointLabel spec.parentRefs[1]"]);
        wants("{name: somebodys}", vec![]);
        let rule = |host: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: a}}\nspec: {{host: {host}}}\n"
            )
        };
        assert_eq!(said(READY, &rule("without")), [vec![], vec![]] as [Vec<String>; 2]);
        assert_eq!(said(READY, &rule("none"))[1], ["HostNotFound spec.host"]);
    }

    #[test]
    fn waypoints_that_cannot_be_are_told() {
        let gateway = |class: &str, listener: &str, more: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: x, namespace: a}}\nspec: {{gatewayClassName: {class}, listeners: [{{name: l, {listener}}}]{more}}}\n"
            )
        };
        let fine = "port: 15008, protocol: HBONE";
        assert_eq!(said(READY, &gateway("istio-waypoint", fine, "")), [vec![], vec![]] as [Vec<String>; 2]);
        let want = vec!["Invalid spec.listeners[l]".to_string()];
        let wrong = gateway("istio-waypoint", "port: 80, protocol: HBONE", "");
        assert_eq!(said(READY, &wrong), [want.clone(), want]);
        let more = ", infrastructure: {parametersRef: {kind: ConfigMap, name: none}}";
        let want = vec!["Invalid spec.infrastructure.parametersRef".to_string()];
        for (class, listener) in [("istio-waypoint", fine), ("istio", "port: 80, protocol: HTTP")] {
            assert_eq!(said(READY, &gateway(class, listener, more)), [want.clone(), vec![]], "{class}");
        }
        assert!(said(READY, &gateway("nginx", "port: 80, protocol: HTTP", more))[0].is_empty());
    }

    #[test]
    fn listener_sets_that_a_gateway_does_not_take_are_told() {
        let set = |of: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: l, namespace: a}}\nspec: {{parentRef: {{name: {of}}}, listeners: [{{name: x, port: 80, protocol: HTTP}}]}}\n"
            )
        };
        let want = vec!["Invalid spec.parentRef".to_string()];
        // A waypoint takes none; of one that is not there nothing is known.
        assert_eq!(said(READY, &set("w")), [want.clone(), want.clone()]);
        assert_eq!(said(READY, &set("none")), [vec![], vec![]] as [Vec<String>; 2]);
        for (from, want) in [("All", vec![]), ("Same", vec![]), ("None", want.clone()), ("Selector", want.clone())] {
            let gateway = format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, allowedListeners: {{namespaces: {{from: {from}, selector: {{matchLabels: {{x: y}}}}}}}}, listeners: [{{name: l, port: 80, protocol: HTTP}}]}}\n---\n"
            );
            let all = state(&(SERVICES.to_string() + &gateway + &set("g")));
            let object = &all.objects.last().unwrap().object;
            let found = around(object, &all, &compile(&all, &mesh()).0, &mesh());
            let fields: Vec<String> = found.iter().map(|f| format!("{} {}", f.reason.name(), f.field)).collect();
            assert_eq!(fields, want, "{from}");
        }
    }

    #[test]
    fn namespaces_that_wait_for_sidecars_are_told() {
        let namespace =
            |labels: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: z, labels: {{{labels}}}}}\n");
        let want = vec!["SidecarInjection metadata.labels[istio-injection]".to_string()];
        assert_eq!(said(READY, &namespace("istio-injection: enabled")), [want.clone(), want.clone()]);
        assert_eq!(said(READY, &namespace("istio-injection: disabled"))[0], Vec::<String>::new());
        let both = "istio-injection: enabled, istio.io/dataplane-mode: ambient";
        assert_eq!(said(READY, &namespace(both))[1], want);
    }

    /// One series for each kind and reason, however many objects there are, and whatever they are called.
    #[test]
    fn objects_are_counted_by_kind_and_reason() {
        let text: String = (0..50)
            .map(|i| route("hosts: [without, without]").replace("name: v", &format!("name: v{i}")) + "---\n")
            .collect();
        let s = state(&(SERVICES.to_string() + &text));
        let (model, problems) = compile(&s, &mesh());
        let made_up = (0..50).map(|i| parse::unreadable(&format!("Kind{i}"), "a/x", "no".into()));
        let problems: Vec<Problem> = problems.into_iter().chain(made_up).collect();
        let counts = count(&all(&s, &model, &mesh()), problems.iter());
        let counts: Vec<_> = counts.into_iter().map(|((k, r), n)| format!("{k} {r} {n}")).collect();
        assert_eq!(counts, ["VirtualService MissingUseWaypointLabel 50", "other Invalid 50"]);
    }
}
