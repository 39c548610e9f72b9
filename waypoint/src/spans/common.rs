//! What the spans of many requests have in common, encoded once and then only copied: who this proxy is, who calls, where requests
//! go. Each run of tags is found by the object of the state that it follows from, which it keeps: a change of the configuration
//! is another object. Bounded; and forgotten with the state, so that nothing of an old one is kept.

use crate::{
    spans::{
        encode::Producer,
        names::{DESTINATION, SOURCE},
        rules::Collector,
        writer::{Form, Tags},
    },
    telemetry::stream_info::{Chosen, StreamInfo},
};
use hashbrown::HashMap;
use karst_proxy::state::Workload;
use std::{
    hash::{Hash, RandomState},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

/// Runs of each kind that are kept; beyond, they are begun anew. Each has some hundred bytes, and never more than a few KiB.
const MOST: usize = 256;

/// This proxy.
#[derive(Clone, Debug)]
pub struct Own {
    /// As it introduces itself to the control plane: `waypoint~IP~POD.NS~NS.svc.DOMAIN`.
    pub node_id: Arc<str>,
    /// Istio's default: the trust domain.
    pub mesh_id: Arc<str>,
    pub cluster_id: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    pub account: Arc<str>,
    pub is_gateway: bool,
}

impl Own {
    /// This proxy as it tells a collector of itself, and as Istio names it: a waypoint by its account, a gateway by what it calls itself.
    /// `workload`: this proxy, if it is known.
    pub fn producer(&self, workload: Option<&Arc<Workload>>, collector: &Collector) -> Producer {
        let name = workload.filter(|_| self.is_gateway).map_or(&self.account, |workload| &workload.canonical_name);
        let about = [
            ("service.namespace", &self.namespace),
            ("service.instance.id", &self.hostname),
            ("k8s.namespace.name", &self.namespace),
            ("k8s.pod.name", &self.hostname),
        ];
        let about = about.map(|(key, value)| (key.to_string(), value.to_string()));
        let attributes = about.into_iter().chain(collector.resource.iter().cloned()).collect();
        Producer { service: format!("{name}.{}", self.namespace), attributes }
    }
}

/// What runs of tags depend on besides the object that they are found by.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    pub form: Form,
    /// With the tags `istio.*` of this proxy.
    pub istio_tags: bool,
    /// Names that a user has given other values. Such runs are made for each request.
    pub without: &'a [&'a str],
    pub own: &'a Own,
    /// This proxy, if it is known.
    pub workload: Option<&'a Arc<Workload>>,
}

/// An endpoint, as it is spoken to.
#[derive(Debug)]
pub struct Endpoint {
    /// A server span's.
    pub address: Vec<u8>,
    /// A client span begins with these,
    pub begin: Vec<u8>,
    /// and ends with these.
    pub end: Vec<u8>,
    /// Who it is.
    pub mesh: Vec<u8>,
}

/// A destination.
#[derive(Debug)]
pub struct Destination {
    pub cluster: Vec<u8>,
    /// A client span's.
    pub server: Vec<u8>,
    /// The names of spans: of the request's, if there is a service; of an attempt's.
    pub request: Option<String>,
    pub attempt: String,
}

/// Runs by what they follow from. Each value keeps that, so that no other comes to have its address.
struct Runs<K, O, V>(HashMap<K, (O, Rc<V>), RandomState>);

impl<K, O, V> Default for Runs<K, O, V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Eq + Hash, O, V> Runs<K, O, V> {
    fn get(&mut self, key: K, of: impl FnOnce() -> O, make: impl FnOnce() -> V) -> Rc<V> {
        if let Some((_, run)) = self.0.get(&key) {
            return run.clone();
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let run = Rc::new(make());
        self.0.insert(key, (of(), run.clone()));
        run
    }
}

/// A worker's runs of tags.
#[derive(Default)]
pub struct Common {
    /// What they were made with: in which form, with which tags, and who this proxy was.
    with: Option<(Form, bool, Option<Arc<Workload>>)>,
    begin: Rc<Vec<u8>>,
    callers: Runs<*const Workload, Option<Arc<Workload>>, Vec<u8>>,
    endpoints: Runs<(*const Workload, SocketAddr, bool), Arc<Workload>, Endpoint>,
    destinations: Runs<(*const Chosen, bool), Rc<Chosen>, Destination>,
}

impl Common {
    /// Forgets what follows from a state that is not the newest any more.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// What follows is of this manner.
    pub fn fit(&mut self, manner: Manner<'_>) {
        let own = manner.workload.map(Arc::as_ptr);
        let fits = self.with.as_ref().is_some_and(|(form, istio_tags, workload)| {
            (*form, *istio_tags, workload.as_ref().map(Arc::as_ptr)) == (manner.form, manner.istio_tags, own)
        });
        if !fits {
            let with = Some((manner.form, manner.istio_tags, manner.workload.cloned()));
            *self = Self { with, begin: Rc::new(begin(Manner { without: &[], ..manner })), ..Self::default() };
        }
    }

    /// What server spans begin with.
    pub fn begin(&self, manner: Manner<'_>) -> Rc<Vec<u8>> {
        if manner.without.is_empty() { self.begin.clone() } else { Rc::new(begin(manner)) }
    }

    /// Who this is, and who calls.
    pub fn caller(&mut self, manner: Manner<'_>, from: Option<&Arc<Workload>>) -> Rc<Vec<u8>> {
        let make = || caller(manner, from.map(|from| &**from));
        if !manner.without.is_empty() {
            return Rc::new(make());
        }
        self.callers.get(from.map_or(std::ptr::null(), Arc::as_ptr), || from.cloned(), make)
    }

    /// The endpoint of an attempt.
    pub fn endpoint(
        &mut self,
        manner: Manner<'_>,
        (workload, address): &(Arc<Workload>, SocketAddr),
        http2: bool,
    ) -> Rc<Endpoint> {
        let make = || endpoint(manner, workload, *address, http2);
        if !manner.without.is_empty() {
            return Rc::new(make());
        }
        self.endpoints.get((Arc::as_ptr(workload), *address, http2), || workload.clone(), make)
    }

    /// Where a request has gone.
    pub fn destination(&mut self, manner: Manner<'_>, info: &StreamInfo) -> Rc<Destination> {
        match &info.destination {
            Some(chosen) if manner.without.is_empty() => {
                let make = || destination(manner, info);
                self.destinations.get((Rc::as_ptr(chosen), info.at_gateway), || chosen.clone(), make)
            }
            Some(_) | None => Rc::new(destination(manner, info)),
        }
    }
}

fn run(manner: Manner<'_>, write: impl FnOnce(&mut Tags<'_>)) -> Vec<u8> {
    let mut out = vec![];
    write(&mut Tags::new(&mut out, manner.form, manner.without));
    out
}

fn begin(manner: Manner<'_>) -> Vec<u8> {
    run(manner, |tags| {
        tags.text("component", "proxy");
        tags.text("node_id", &manner.own.node_id);
        tags.text("zone", manner.workload.map_or("", |workload| &*workload.zone));
    })
}

fn caller(manner: Manner<'_>, from: Option<&Workload>) -> Vec<u8> {
    run(manner, |tags| {
        if manner.istio_tags {
            if let Some(workload) = manner.workload {
                tags.text("istio.canonical_revision", &workload.canonical_revision);
                tags.text("istio.canonical_service", &workload.canonical_name);
            }
            tags.text("istio.mesh_id", &manner.own.mesh_id);
            tags.text("istio.namespace", &manner.own.namespace);
            tags.text("istio.cluster_id", &manner.own.cluster_id);
        }
        if let Some(from) = from {
            side(tags, SOURCE, from);
        }
    })
}

/// One end of a call.
fn side(tags: &mut Tags<'_>, names: [&'static str; 7], workload: &Workload) {
    let values: [&str; 7] = [
        &workload.workload_name,
        &workload.namespace,
        &workload.cluster,
        &workload.canonical_name,
        &workload.canonical_revision,
        workload.workload_type,
        &workload.name,
    ];
    names.into_iter().zip(values).for_each(|(name, value)| tags.text(name, value));
}

fn endpoint(manner: Manner<'_>, workload: &Workload, address: SocketAddr, http2: bool) -> Endpoint {
    let (whole, ip) = (address.to_string(), address.ip().to_string());
    let (protocol, version) = if http2 { ("HTTP/2", "2") } else { ("HTTP/1.1", "1.1") };
    Endpoint {
        address: run(manner, |tags| tags.text("upstream_address", &whole)),
        begin: run(manner, |tags| {
            tags.text("component", "proxy");
            tags.text("http.protocol", protocol);
            tags.text("peer.address", &whole);
            tags.text("upstream_address", &whole);
        }),
        end: run(manner, |tags| {
            tags.text("network.peer.address", &ip);
            tags.number("network.peer.port", address.port().into());
            tags.text("network.protocol.version", version);
        }),
        mesh: run(manner, |tags| side(tags, DESTINATION, workload)),
    }
}

fn destination(manner: Manner<'_>, info: &StreamInfo) -> Destination {
    let cluster = info.cluster();
    let port = info.destination.as_ref().map_or(info.to.port(), |chosen| chosen.port);
    Destination {
        cluster: run(manner, |tags| {
            tags.text("upstream_cluster", &cluster);
            tags.text("upstream_cluster.name", &cluster);
        }),
        server: run(manner, |tags| {
            if let Some(chosen) = &info.destination {
                tags.text("server.address", &chosen.service.hostname);
                tags.number("server.port", chosen.port.into());
            }
        }),
        request: info.service().map(|service| format!("{}:{port}/*", service.hostname)),
        attempt: format!("router {cluster}; egress"),
    }
}
