//! Who calls and what is called, found by the words that people use for them.

use crate::{call::Call, world::World};
use karst_core::Identity;
use karst_proxy::state::{Announced, Service, Workload};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

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

/// `NAME[.NAMESPACE]`.
fn split(text: &str) -> (&str, &str) {
    text.split_once('.').unwrap_or((text, "default"))
}

/// The caller of a call.
pub(crate) fn source(world: &World, call: &Call) -> Result<Source, PartyError> {
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
    let (name, namespace) = split(rest);
    let unknown = |what| PartyError::Unknown { what, name: name.into(), namespace: namespace.into() };
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
        let (name, namespace) = split(rest);
        let workload = found(world, namespace, &|w| *w.name == *name);
        let unknown = PartyError::Unknown { what: "pod", name: name.into(), namespace: namespace.into() };
        let workload = workload.ok_or(unknown)?;
        let ip = workload.ips.first().copied().ok_or(PartyError::NoAddress { to: call.to.clone() })?;
        return at(call, None, ip);
    }
    let (name, namespace) = split(&call.to);
    let domain = &world.compiled.cluster_domain;
    let short = format!("{name}.{namespace}.svc.{domain}");
    let own = format!("{}.{}.svc.{domain}", call.to, if client.is_empty() { "default" } else { client });
    let long = format!("{}.{domain}", call.to);
    let hosts = [call.to.as_str(), long.as_str(), own.as_str(), short.as_str()];
    let service = hosts.iter().find_map(|host| world.mesh.host(host, client)).cloned();
    let unknown = || PartyError::Unknown { what: "service", name: name.into(), namespace: namespace.into() };
    let service = service.ok_or_else(unknown)?;
    let headless = || {
        let all = karst_proxy::endpoints::serving(&world.mesh, &service);
        all.into_iter().find_map(|w| w.ips.first().copied())
    };
    let ip = service.vips.first().copied().or_else(headless);
    let ip = ip.ok_or(PartyError::NoAddress { to: call.to.clone() })?;
    at(call, Some(service), ip)
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
