//! Who calls and what is called, found by the words that people use for them.

use crate::{
    call::Call,
    gateways::{self, Taken},
    world::World,
};
use karst_core::Identity;
use karst_manifest::{Object as Read, enrol};
use karst_proxy::state::{Announced, Service, Workload};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// The first address of a workload, or one for documentation.
pub(crate) fn address(workload: &Workload) -> IpAddr {
    workload.ips.first().copied().unwrap_or(NOBODY)
}

/// A caller that is nobody in particular, outside of the Kubernetes cluster.
const OUTSIDE: &str = "outside";

/// The address of a caller that has none: one for documentation (RFC 5737).
pub(crate) const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A party of the call is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartyError {
    /// Nobody is called so.
    #[error("no {what} is called {name:?} in namespace {namespace}: name it as NAME.NAMESPACE, or give an address")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
        /// Where.
        namespace: String,
    },
    /// No kind that can call or be called.
    #[error("{kind:?} is no kind of caller: use pod/, deploy/, sa/, a SPIFFE identity or an address")]
    Kind {
        /// What was said.
        kind: String,
    },
    /// The identity cannot be read.
    #[error("{text:?} is no identity: write spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    Identity {
        /// What was said.
        text: String,
    },
    /// There are several ports, or none.
    #[error("{to} has the ports {ports}: choose one with --port")]
    Port {
        /// What is called.
        to: String,
        /// Its ports.
        ports: String,
    },
    /// It has no address that could be called.
    #[error("{to} has no address: it is called by the names that its wildcard stands for, or it has no endpoint yet")]
    NoAddress {
        /// What is called.
        to: String,
    },
    /// The pod has ended.
    #[error(
        "pod {namespace}/{name} has ended ({phase}): it calls nobody, and nothing is sent to it; name a pod that runs"
    )]
    Ended {
        /// Where it was.
        namespace: String,
        /// Its name.
        name: String,
        /// `Succeeded` or `Failed`.
        phase: String,
    },
    /// The service is an alias of a name outside.
    #[error(
        "Service {namespace}/{name} is an alias (ExternalName) of {target}, which no Service and no ServiceEntry has: pods resolve that name themselves, and no policy or route of the mesh is for it; add a ServiceEntry with host {target}"
    )]
    Alias {
        /// Where it is.
        namespace: String,
        /// Its name.
        name: String,
        /// What it stands for.
        target: String,
    },
    /// A ServiceEntry that gives its host no address.
    #[error(
        "ServiceEntry {namespace}/{name} has no spec.addresses, and none is allocated for {host} (label networking.istio.io/enable-autoallocate-ip is false, or the host is a wildcard): connections to it cannot be told from others; add spec.addresses, or remove the label"
    )]
    NoEntryAddress {
        /// Where it is.
        namespace: String,
        /// Its name.
        name: String,
        /// Its host.
        host: String,
    },
}

/// The caller.
pub(crate) struct Source {
    pub(crate) workload: Arc<Workload>,
    pub(crate) ip: IpAddr,
    /// Is it somebody of the mesh, with a certificate?
    pub(crate) in_mesh: bool,
    /// It is no workload that is known, only assumed.
    pub(crate) assumed: bool,
}

/// What is called.
pub(crate) struct Destination {
    pub(crate) to: SocketAddr,
    pub(crate) service: Option<Arc<Service>>,
    /// The service's host, or the address.
    pub(crate) name: String,
}

/// The caller of a call.
pub(crate) fn source(world: &World, call: &Call) -> Result<Source, PartyError> {
    if call.from == OUTSIDE {
        return outside(world, NOBODY);
    }
    if let Ok(ip) = call.from.parse::<IpAddr>() {
        return Ok(match world.mesh.workload(ip.to_canonical()) {
            Some(workload) => known(workload),
            None => outside(world, ip)?,
        });
    }
    if call.from.starts_with("spiffe://") {
        let bad = |_| PartyError::Identity { text: call.from.clone() };
        return Ok(by_identity(world, call.from.parse::<Identity>().map_err(bad)?));
    }
    let (kind, rest) = call.from.split_once('/').unwrap_or(("", &call.from));
    let (name, namespace) = call.split(rest);
    let unknown = |what| {
        let unknown = PartyError::Unknown { what, name: name.into(), namespace: namespace.into() };
        ended(world, namespace, name).unwrap_or(unknown)
    };
    let by = |fits: &dyn Fn(&Workload) -> bool| found(world, namespace, fits);
    match kind {
        "pod" => by(&|w| *w.name == *name).map(|w| known(&w)).ok_or_else(|| unknown("pod")),
        "deploy" | "deployment" | "statefulset" | "daemonset" | "workload" => {
            by(&|w| *w.workload_name == *name).map(|w| known(&w)).ok_or_else(|| unknown("workload"))
        }
        "sa" | "serviceaccount" => Identity::new(&world.compiled.trust_domain, namespace, name)
            .map(|identity| by_identity(world, identity))
            .map_err(|_| PartyError::Identity { text: call.from.clone() }),
        "" => by(&|w| *w.name == *name)
            .or_else(|| by(&|w| *w.workload_name == *name))
            .or_else(|| by(&|w| w.identity.service_account() == name))
            .map(|w| known(&w))
            .ok_or_else(|| unknown("pod, workload or service account")),
        other => Err(PartyError::Kind { kind: other.into() }),
    }
}

/// The pod of this name has ended, so that nobody knows it.
fn ended(world: &World, namespace: &str, name: &str) -> Option<PartyError> {
    let (_, pod) = world.objects.pod(namespace, name).filter(|(_, pod)| !world.is_past && enrol::is_done(pod))?;
    let phase = pod.status.phase.clone();
    Some(PartyError::Ended { namespace: namespace.into(), name: name.into(), phase })
}

/// The first by name, those of the mesh before others.
fn found(world: &World, namespace: &str, fits: &dyn Fn(&Workload) -> bool) -> Option<Arc<Workload>> {
    let mut all: Vec<_> = world.mesh.workloads.values().filter(|w| *w.namespace == *namespace && fits(w)).collect();
    all.sort_by_key(|w| (!w.hbone, w.name.clone()));
    all.first().map(|w| (*w).clone())
}

fn known(workload: &Arc<Workload>) -> Source {
    let ip = workload.ips.first().copied().unwrap_or(NOBODY);
    Source { workload: workload.clone(), ip, in_mesh: workload.hbone, assumed: false }
}

fn by_identity(world: &World, identity: Identity) -> Source {
    let mut all: Vec<_> = world.mesh.workloads.values().filter(|w| w.identity == identity && w.hbone).collect();
    all.sort_by_key(|w| w.name.clone());
    match all.first() {
        Some(workload) => known(workload),
        None => {
            let workload = stranger(identity.namespace().into(), identity);
            Source { workload: Arc::new(workload), ip: NOBODY, in_mesh: true, assumed: true }
        }
    }
}

fn outside(world: &World, ip: IpAddr) -> Result<Source, PartyError> {
    // Nobody asks who somebody is that shows no certificate.
    let bad = |_| PartyError::Identity { text: world.compiled.trust_domain.clone() };
    let identity = Identity::new(&world.compiled.trust_domain, "outside", "outside").map_err(bad)?;
    let workload = Workload { hbone: false, ..stranger(String::new(), identity) };
    Ok(Source { workload: Arc::new(workload), ip, in_mesh: false, assumed: false })
}

fn stranger(namespace: String, identity: Identity) -> Workload {
    let name = identity.service_account().to_string();
    Workload::unannounced(Announced {
        namespace: &namespace,
        name: &name,
        identity,
        node: "",
        cluster: "",
        network: "",
    })
}

/// What a call calls.
pub(crate) fn destination(world: &World, call: &Call, source: &Source) -> Result<Destination, PartyError> {
    let client = &*source.workload.namespace;
    if let Ok(ip) = call.to.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let service = world.mesh.service(ip, client).cloned();
        return at(call, service, ip);
    }
    if let Some(rest) = call.to.strip_prefix("pod/") {
        let (name, namespace) = call.split(rest);
        let workload = found(world, namespace, &|w| *w.name == *name);
        let unknown = || PartyError::Unknown { what: "pod", name: name.into(), namespace: namespace.into() };
        let workload = workload.ok_or_else(|| ended(world, namespace, name).unwrap_or_else(unknown))?;
        let ip = workload.ips.first().copied().ok_or(PartyError::NoAddress { to: call.to.clone() })?;
        return at(call, None, ip);
    }
    let (name, namespace) = call.split(&call.to);
    if let Some(target) = alias(world, name, namespace) {
        let of_mesh = world.mesh.host(target, client).cloned();
        let (namespace, name) = (namespace.into(), name.into());
        let service = of_mesh.ok_or_else(|| PartyError::Alias { namespace, name, target: target.into() })?;
        return called(world, call, service);
    }
    match by_name(world, call, client) {
        Some(service) => called(world, call, service),
        None => match gateways::taking(world.gateways(), &call.to, call.port) {
            Some(taken) => Ok(at_gateway(world, call, source, &taken)),
            None => Err(PartyError::Unknown { what: "service", name: name.into(), namespace: namespace.into() }),
        },
    }
}

/// What an ExternalName Service stands for.
fn alias<'a>(world: &'a World, name: &str, namespace: &str) -> Option<&'a str> {
    let namespace = namespace.split('.').next().unwrap_or_default();
    let service = world.objects.service(namespace, name)?;
    Some(&*service.spec.external_name).filter(|_| service.spec.kind == "ExternalName")
}

/// The service that a client means by a name.
fn by_name(world: &World, call: &Call, client: &str) -> Option<Arc<Service>> {
    let text = &*call.to;
    let (name, namespace) = call.split(text);
    let domain = &world.compiled.cluster_domain;
    let short = format!("{name}.{namespace}.svc.{domain}");
    let own = format!("{text}.{}.svc.{domain}", if client.is_empty() { call.namespace() } else { client });
    let long = format!("{text}.{domain}");
    let hosts = [text, long.as_str(), own.as_str(), short.as_str()];
    hosts.iter().find_map(|host| world.mesh.host(host, client)).cloned()
}

fn called(world: &World, call: &Call, service: Arc<Service>) -> Result<Destination, PartyError> {
    let headless = || {
        let all = karst_proxy::endpoints::serving(&world.mesh, &service);
        all.into_iter().find_map(|w| w.ips.first().copied())
    };
    match service.vips.first().copied().or_else(headless) {
        Some(ip) => at(call, Some(service), ip),
        None => Err(no_address(world, call, &service)),
    }
}

fn no_address(world: &World, call: &Call, service: &Service) -> PartyError {
    let host = &*service.hostname;
    let entry = world.objects.all("ServiceEntry").find(|o| match &o.object {
        Read::ServiceEntry(e) => e.metadata.namespace == *service.namespace && e.spec.hosts.iter().any(|h| h == host),
        _ => false,
    });
    match entry.map(|o| o.object.meta()) {
        Some(meta) => {
            let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
            PartyError::NoEntryAddress { namespace, name, host: host.into() }
        }
        None => PartyError::NoAddress { to: call.to.clone() },
    }
}

/// A host that a gateway takes: by the service in front of its pod if there is one.
fn at_gateway(world: &World, call: &Call, source: &Source, taken: &Taken<'_>) -> Destination {
    let (port, uid) = (taken.listening.port, &taken.pod.uid);
    let mut services: Vec<&Arc<Service>> = world.mesh.services.values().collect();
    services.sort_by_key(|service| service.key.clone());
    let in_front = services.into_iter().find_map(|service| {
        let ports = world.mesh.endpoints.get(&service.key)?.get(uid)?;
        let (own, _) = ports.iter().find(|(own, target)| *target == port && *own == taken.listening.called)?;
        let visible = !service.private || *service.namespace == *source.workload.namespace;
        Some((service, *own, service.vips.first().copied().filter(|_| visible)?))
    });
    let name = call.to.clone();
    match in_front {
        Some((service, port, ip)) => {
            Destination { to: SocketAddr::new(ip, port), service: Some(service.clone()), name }
        }
        None => Destination { to: SocketAddr::new(address(taken.pod), port), service: None, name },
    }
}

fn at(call: &Call, service: Option<Arc<Service>>, ip: IpAddr) -> Result<Destination, PartyError> {
    let ports: Vec<u16> = service.iter().flat_map(|s| &s.ports).map(|(port, _)| *port).collect();
    let port = match (call.port, &ports[..]) {
        (Some(port), _) => port,
        (None, [one]) => *one,
        (None, _) => {
            let all: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let ports = if all.is_empty() { "that its pods listen on".into() } else { all.join(", ") };
            return Err(PartyError::Port { to: call.to.clone(), ports });
        }
    };
    let name = service.as_ref().map_or_else(|| ip.to_string(), |s| s.hostname.to_string());
    Ok(Destination { to: SocketAddr::new(ip, port), service, name })
}
