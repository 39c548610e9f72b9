//! What each pod of a gateway listens on and is told.

use crate::{
    convert::{
        compilation::{access, telemetry},
        facts::{
            backend_certificate,
            ca_certificates::{Authorities, ContentsError, of_secret},
            client_tls,
            gateway::{by_label, is_ingress, of_pod},
            listener::{GatewayListener, ListenerParent},
            listeners::{GatewayListeners, Served, TAKEN},
            policy::Judged,
            secret::{ca_bundle, key_pair},
            session, topology, validate, waypoint,
        },
        objects::{FieldError, Objects, address, problem},
    },
    session_keys,
};
use karst_api::route as ir;
use karst_manifest::{
    Problem,
    kinds::*,
    mesh_config::{MeshConfigError, PROXY_CONFIG},
    parse::Located,
    traffic::GwServer,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};

/// So many bytes of roots and lists a gateway is told within its listeners, too: those before this version know no others. (What is beyond is
/// larger than any that they have met; their listeners are closed.)
const WITHIN_LISTENERS: usize = 64 << 10;

/// What Secrets hold of authorities, each read once, whichever pods and servers it is for. By [`address`].
type Read = HashMap<usize, Result<Arc<Authorities>, Arc<ContentsError>>>;

/// Whose certificates of clients count at the listeners of one gateway, under names that these have for them.
#[derive(Default)]
struct Shared {
    /// By [`address`].
    names: HashMap<usize, String>,
    told: BTreeMap<String, ir::ClientAuthorities>,
    /// Bytes that stand within listeners.
    within: usize,
}

impl Shared {
    /// Says in a listener's TLS whose count.
    fn say(&mut self, authorities: &Arc<Authorities>, tls: &mut ir::Tls) {
        tls.client_authorities = self.name(authorities);
        // Both or neither: roots without their lists would let in whom they have revoked.
        let within = self.within + authorities.roots.len() + authorities.lists.iter().map(Vec::len).sum::<usize>();
        if within <= WITHIN_LISTENERS {
            self.within = within;
            tls.client_roots.clone_from(&authorities.roots);
            tls.client_lists.clone_from(&authorities.lists);
        }
    }

    /// The same for the same, wherever it stands.
    fn name(&mut self, authorities: &Arc<Authorities>) -> String {
        if let Some(name) = self.names.get(&address(&**authorities)) {
            return name.clone();
        }
        let Authorities { roots, lists } = &**authorities;
        let same = self.told.iter().find(|(_, told)| told.roots == *roots && told.lists == *lists);
        let name = same.map_or_else(|| self.told.len().to_string(), |(name, _)| name.clone());
        let new = || ir::ClientAuthorities { roots: roots.clone(), lists: lists.clone() };
        self.told.entry(name.clone()).or_insert_with(new);
        self.names.insert(address(&**authorities), name.clone());
        name
    }
}

/// The Secrets that a server of Istio's Gateway names are in the namespace of the pod. Its certificates are added to `out`, the rest of
/// its TLS; whose certificates of clients count is given back.
fn credentials(
    objects: &Objects<'_>,
    (server, index): (&GwServer, usize),
    ns: &str,
    listener: &GatewayListener,
    read: &mut Read,
    out: &mut ir::Tls,
) -> Result<Arc<Authorities>, FieldError> {
    let settings = server.tls.clone().unwrap_or_default();
    let field = |f: &str| format!("spec.servers[{index}].tls.{f}");
    if out.modern && out.only_tls12 {
        let text = "TLSV1_2 is below minProtocolVersion TLSV1_3 of tlsDefaults in the mesh configuration: set minProtocolVersion, too [KARST-0014]";
        return Err((field("maxProtocolVersion"), text.into()));
    }
    let get = |name: &str| objects.secrets.get(&(ns, name)).copied();
    let names: Vec<&String> = if settings.credential_names.is_empty() {
        vec![&settings.credential_name]
    } else {
        settings.credential_names.iter().collect()
    };
    for name in &names {
        let secret = get(name).ok_or_else(|| {
            (
                field("credentialName"),
                format!("Secret {ns}/{name} not found: it must be in the namespace of the gateway's pods [KARST-0503]"),
            )
        })?;
        out.certificates.push(key_pair(secret).map_err(|e| (field("credentialName"), e.to_string()))?);
    }
    if listener.client == ir::ClientCertificate::None {
        return Ok(Arc::default());
    }
    let first = names[0].trim_end_matches("-cacert");
    let own = if settings.ca_cert_credential_name.is_empty() {
        format!("{first}-cacert")
    } else {
        settings.ca_cert_credential_name.clone()
    };
    let holder = [own.as_str(), first].into_iter().filter_map(get).find(|secret| ca_bundle(secret).is_some());
    let holder = holder.ok_or_else(|| {
        (
            field("credentialName"),
            format!(
                "neither Secret {ns}/{own} nor {ns}/{first} has data[\"ca.crt\"], which mode {} requires [KARST-0504]",
                settings.mode.as_deref().unwrap_or_default()
            ),
        )
    })?;
    let read_now = || of_secret(holder).map(Arc::new).map_err(Arc::new);
    let found = read.entry(address(holder)).or_insert_with(read_now);
    found.clone().map_err(|e| (field("credentialName"), e.to_string()))
}

/// What each pod of a gateway listens on, by `namespace/name` of the pod.
pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    policies: &[(&Located, Judged<'_>)],
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Arc<ir::Gateway>> {
    for (at, g) in &objects.istio_gateways {
        problems.extend(validate::istio_gateway(&g.spec).into_iter().map(|(field, text)| problem(at, field, text)));
        for (n, u) in listeners.unmapped(&g.metadata.namespace, &g.metadata.name) {
            problems.push(problem(at, format!("spec.servers[{n}].port.number"), &u.text));
        }
    }
    backend_certificates(objects, problems);
    let told_of = telemetry::effective(objects, problems);
    let mut out = BTreeMap::new();
    if listeners.is_idle(objects) {
        return out;
    }
    let for_pods =
        |g: &Gateway| waypoint::is_waypoint(objects, g) && waypoint::takes(objects, g, waypoint::Traffic::Workload);
    let has_sessions = session::in_use(objects);
    let named = by_label(objects);
    tell_of_listeners(objects, listeners, problems);
    let (mut told, mut read) = (BTreeSet::<(String, String)>::new(), Read::default());
    for pod in &objects.pods {
        let Some(served) = listeners.pods.get(&address(*pod)) else { continue };
        let (meta, mut gateway) = (&pod.metadata, ir::Gateway::default());
        let own = of_pod(&named, pod);
        let mut shared = Shared::default();
        for served in served {
            let Some(listener) = listeners.all.get(served.listener) else { continue };
            match shown_by(objects, listener, &meta.namespace, &mut read) {
                Ok((mut tls, authorities)) => {
                    if listener.client != ir::ClientCertificate::None {
                        shared.say(&authorities, &mut tls);
                    }
                    listen(&mut gateway, listener, served, tls);
                }
                Err((at, (field, text))) => {
                    if told.insert((listener.id.clone(), text.clone())) {
                        problems.push(problem(at, field, text));
                    }
                }
            }
        }
        gateway.client_authorities = shared.told;
        let listens = !gateway.listeners.is_empty() || !gateway.udp.is_empty();
        if listens {
            gateway.access = access::of_pod(objects, policies, pod, own, false);
        } else if own.is_some_and(for_pods) {
            gateway.access = access::of_pod(objects, policies, pod, own, true);
        }
        // Those of its own namespace; who writes rules elsewhere does not decide where they are shown.
        let near =
            |d: &&DestinationRule| [&meta.namespace, &objects.mesh.root_namespace].contains(&&d.metadata.namespace);
        let rules = objects.destination_rules.iter().map(|(_, d)| *d).filter(near);
        for name in rules.flat_map(client_tls::credentials) {
            let pair = objects.secrets.get(&(meta.namespace.as_str(), name)).and_then(|s| key_pair(s).ok());
            gateway.credentials.extend(pair.map(|k| (name.to_string(), k)));
        }
        let ingress = own.filter(|g| is_ingress(objects, g));
        gateway.backend_certificate = ingress.and_then(|g| backend_certificate::told(objects, g));
        gateway.backend_parameters = backend_parameters(objects);
        let client = own.is_none_or(|g| is_ingress(objects, g));
        gateway.telemetry = telemetry::of_pod(objects, &told_of, pod, own, client);
        let topology = topology::of_pod(objects, pod, own, listens);
        let topology = topology.unwrap_or_else(|(error, closed)| {
            problems.push(unread(meta, &error));
            closed
        });
        gateway.topology = (topology != ir::Topology::default()).then_some(topology);
        if has_sessions {
            gateway.session_keys = session_keys::of_gateway(objects.session_keys, &shared_by(pod, own));
        }
        if gateway != ir::Gateway::default() {
            out.insert(format!("{}/{}", meta.namespace, meta.name), Arc::new(gateway));
        }
    }
    out
}

/// Says at their objects what is wrong with listeners of Gateway API.
fn tell_of_listeners(objects: &Objects<'_>, listeners: &GatewayListeners, problems: &mut Vec<Problem>) {
    for (index, facts) in listeners.all.iter().enumerate() {
        let ListenerParent::Api { namespace, gateway, set, listener, .. } = &facts.parent else { continue };
        let at = match set {
            Some(set) => objects.listener_sets.get(&(set.namespace.as_str(), set.name.as_str())).map(|(at, _)| at),
            None => objects.gateways_at.get(&(namespace.as_str(), gateway.as_str())),
        };
        for u in listeners.unmapped.iter().filter(|u| u.listener == index && u.reason == TAKEN) {
            problems.extend(at.map(|at| problem(at, format!("spec.listeners[{listener}].port"), &u.text)));
        }
        for (_, text) in [facts.refused.as_ref(), facts.conflict.as_ref(), facts.lost()].into_iter().flatten() {
            problems.extend(at.map(|at| problem(at, format!("spec.listeners[{listener}]"), text.clone())));
        }
    }
}

/// What a listener shows to clients of a pod in this namespace, and whose certificates of theirs count; or what is wrong with it, and
/// with which object.
fn shown_by<'a>(
    objects: &Objects<'a>,
    listener: &GatewayListener,
    ns: &str,
    read: &mut Read,
) -> Result<(ir::Tls, Arc<Authorities>), (&'a Located, FieldError)> {
    let mut tls = listener.tls(&objects.mesh_config.tls_defaults);
    let mut authorities = listener.client_authorities.clone();
    if let ListenerParent::Istio { namespace, gateway, server: n, .. } = &listener.parent
        && listener.terminates_tls
        && let Some((at, i)) = istio(objects, namespace, gateway)
    {
        let server = (&i.spec.servers[*n], *n);
        authorities = credentials(objects, server, ns, listener, read, &mut tls).map_err(|wrong| (at, wrong))?;
    }
    Ok((tls, authorities))
}

/// Tells a gateway to listen.
fn listen(gateway: &mut ir::Gateway, listener: &GatewayListener, served: &Served, tls: ir::Tls) {
    let called = if served.port == listener.port { 0 } else { u32::from(listener.port) };
    let (origin, routes, port) = (listener.id.clone(), served.routes.clone(), u32::from(served.port));
    if listener.udp {
        return gateway.udp.push(ir::UdpListener { origin, routes, port, called });
    }
    let filters = filters(listener);
    // Who knows of no filters is to know no such protocol, either.
    let flag = if filters.is_some() { ir::ListenerFlag::Filtered } else { ir::ListenerFlag::None };
    gateway.listeners.push(ir::Listener {
        origin,
        routes,
        port,
        called,
        protocol: listener.protocol as i32 + flag as i32,
        hosts: listener.hosts.clone(),
        tls: listener.terminates_tls.then_some(tls),
        redirect: listener.redirect,
        filters,
        grpc_web: listener.grpc_web,
    });
}

/// What the requests of a listener pass first.
fn filters(listener: &GatewayListener) -> Option<ir::ListenerFilters> {
    let one = |asked: &Option<ir::AuthzProvider>| ir::ListenerFilter { authorization: asked.clone() };
    let requests: Vec<ir::ListenerFilter> = listener.filters.iter().map(one).collect();
    (!requests.is_empty()).then_some(ir::ListenerFilters { requests })
}

/// What all proxies speak TLS to endpoints with, as the mesh configuration says. (The least version is of servers only, as in Istio.)
fn backend_parameters(objects: &Objects<'_>) -> Option<ir::TlsParameters> {
    let defaults = &objects.mesh_config.tls_defaults;
    let (cipher_suites, curves) = (defaults.cipher_suites.clone(), defaults.ecdh_curves.clone());
    let parameters = ir::TlsParameters { cipher_suites, curves };
    (parameters != ir::TlsParameters::default()).then_some(parameters)
}

/// What is wrong with the certificates that gateways show to backends.
fn backend_certificates(objects: &Objects<'_>, problems: &mut Vec<Problem>) {
    let mut all: Vec<_> = objects.gateways.iter().filter(|(_, g)| is_ingress(objects, g)).collect();
    all.sort_by_key(|(name, _)| **name);
    for (name, g) in all {
        if let (Some(at), Some(Err((_, text)))) = (objects.gateways_at.get(name), backend_certificate::of(objects, g)) {
            problems.push(problem(at, backend_certificate::FIELD, text));
        }
    }
}

/// What the pods of a gateway have in common: their Gateway, or, of those that Istio's select, their account.
fn shared_by(pod: &Pod, own: Option<&Gateway>) -> String {
    match own {
        Some(gateway) => format!("Gateway {}/{}", gateway.metadata.namespace, gateway.metadata.name),
        None => format!("ServiceAccount {}/{}", pod.metadata.namespace, pod.spec.service_account_name),
    }
}

/// A pod's annotation cannot be read. (Of pods nobody keeps where they stand.)
fn unread(pod: &Meta, error: &MeshConfigError) -> Problem {
    Problem {
        file: PathBuf::new(),
        line: 0,
        object: format!("Pod {}/{}", pod.namespace, pod.name),
        field: format!("metadata.annotations[{PROXY_CONFIG}]"),
        message: error.to_string(),
    }
}

fn istio<'a>(objects: &Objects<'a>, ns: &str, name: &str) -> Option<(&'a Located, &'a IstioGateway)> {
    objects.istio_gateways.iter().find(|(_, g)| g.metadata.namespace == ns && g.metadata.name == name).copied()
}
