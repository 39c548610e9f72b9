//! The services by host name, to find what objects name.

use crate::{
    convert::{
        facts::{
            host::{full_host, is_of},
            listeners, service,
        },
        objects::Objects,
    },
    model::Model,
};
use karst_api::workload::Visibility;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// The services by host name, to find what objects name.
pub(crate) struct Hosts {
    pub(crate) by_host: HashMap<String, Vec<Arc<str>>>,
    /// Those that only their own namespace knows.
    pub(crate) private: HashSet<Arc<str>>,
    ports: HashMap<Arc<str>, Vec<u32>>,
    udp_ports: HashMap<Arc<str>, Vec<u32>>,
    /// What Services of type ExternalName stand for, by their host names.
    aliases: BTreeMap<String, String>,
    domain: String,
    pub(crate) listeners: Arc<listeners::GatewayListeners>,
}

/// Names after names that are followed: more is a circle or a mistake.
const ALIASES: usize = 8;

/// The hosts that Services of type ExternalName stand for, by their own host names.
pub(crate) fn aliases(objects: &Objects<'_>) -> BTreeMap<String, String> {
    let all = objects.services.values().flatten().filter(|s| service::is_alias(s));
    let host = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    all.map(|s| (service::hostname(objects, s), host(&s.spec.external_name))).collect()
}

impl Hosts {
    pub(crate) fn new(objects: &Objects<'_>, model: &Model, listeners: &Arc<listeners::GatewayListeners>) -> Self {
        let mut by_host: HashMap<String, Vec<Arc<str>>> = HashMap::new();
        let (mut private, mut ports, mut udp_ports) = (HashSet::new(), HashMap::new(), HashMap::new());
        for (key, service) in &model.services {
            let key: Arc<str> = key.as_str().into();
            ports.insert(key.clone(), numbers(service));
            if !service.karst_udp_ports.is_empty() {
                udp_ports.insert(key.clone(), service.karst_udp_ports.clone());
            }
            if is_private(service) {
                private.insert(key.clone());
            }
            by_host.entry(service.hostname.clone()).or_default().push(key);
        }
        let (aliases, domain) = (aliases(objects), objects.mesh.cluster_domain.clone());
        Self { by_host, private, ports, udp_ports, aliases, domain, listeners: listeners.clone() }
    }

    /// The ports of a service.
    pub(crate) fn ports(&self, key: &str) -> &[u32] {
        self.ports.get(key).map_or(&[], Vec::as_slice)
    }

    /// Can a destination have this port of a service? 0: whichever is called.
    pub(crate) fn has_port(&self, key: &str, port: u32) -> bool {
        port == 0 || self.ports(key).contains(&port)
    }

    /// The same of its UDP ports. 0: the only one.
    pub(crate) fn has_udp_port(&self, key: &str, port: u32) -> bool {
        let all = self.udp_ports.get(key).map_or(&[][..], Vec::as_slice);
        all.contains(&port) || (port == 0 && all.len() == 1)
    }

    /// The full name that an object of this namespace means.
    pub(crate) fn full(&self, host: &str, namespace: &str) -> String {
        full_host(host, namespace, &self.domain)
    }

    /// The service that a host name means, the namespace's own first.
    pub(crate) fn find(&self, host: &str, namespace: &str) -> Option<&Arc<str>> {
        let full = self.full(host, namespace);
        let keys = self.by_host.get(&full).or_else(|| self.by_host.get(&self.longer(&full)?))?;
        self.seen(keys, namespace)
    }

    /// The Service of this name in this namespace, as references to objects mean it. (A name with a dot, which no Service has,
    /// would be read as a host name, and so as one of another namespace.)
    pub(crate) fn service(&self, name: &str, namespace: &str) -> Option<&Arc<str>> {
        self.own(name, namespace).filter(|_| !name.contains('.'))
    }

    /// The service of this namespace that has a host name: what the owner of a ServiceEntry may say something of, also while that
    /// is not in force, or hidden, and others have one with the same host name.
    pub(crate) fn own(&self, host: &str, namespace: &str) -> Option<&Arc<str>> {
        self.find(host, namespace).filter(|key| is_of(key, namespace))
    }

    /// `name.namespace` and `name.namespace.svc` are used, too.
    pub(crate) fn longer(&self, full: &str) -> Option<String> {
        match full.split('.').collect::<Vec<_>>()[..] {
            [n, ns] | [n, ns, "svc"] => Some(format!("{n}.{ns}.svc.{}", self.domain)),
            _ => None,
        }
    }

    /// Of services with one host name the one that an object of this namespace means.
    pub(crate) fn seen<'k>(&self, keys: &'k [Arc<str>], namespace: &str) -> Option<&'k Arc<str>> {
        keys.iter().find(|k| is_of(k, namespace)).or_else(|| keys.iter().find(|k| self.is_seen(k, namespace)))
    }

    /// The service that a destination of Istio's API leads to: a Service of type ExternalName stands for the one that it names
    /// (Istio: GetDestinationCluster). It is no service of its own: rules for its host name are for nobody.
    pub(crate) fn destination(&self, host: &str, namespace: &str) -> Option<&Arc<str>> {
        self.find(host, namespace).or_else(|| {
            let mut name = self.alias(host, namespace)?;
            for _ in 0..ALIASES {
                if let Some(keys) = self.by_host.get(name) {
                    return self.seen(keys, namespace);
                }
                name = self.aliases.get(name)?;
            }
            None
        })
    }

    /// What a Service of type ExternalName stands for.
    pub(crate) fn alias(&self, host: &str, namespace: &str) -> Option<&String> {
        let full = self.full(host, namespace);
        self.aliases.get(&full).or_else(|| self.aliases.get(&self.longer(&full)?))
    }

    /// Is a Service of type ExternalName, by its host name, one of this namespace? What those of others stand for is not told.
    pub(crate) fn is_own_alias(&self, host: &str, namespace: &str) -> bool {
        let full = self.full(host, namespace);
        let full = self.longer(&full).unwrap_or(full);
        full.ends_with(&format!(".{namespace}.svc.{}", self.domain))
    }

    /// May an object of this namespace mean it?
    pub(crate) fn is_seen(&self, key: &Arc<str>, namespace: &str) -> bool {
        is_of(key, namespace) || !self.private.contains(key)
    }

    /// The same, with those of the name in other namespaces (ServiceEntries of one host).
    pub(crate) fn every(&self, host: &str, namespace: &str) -> Vec<Arc<str>> {
        if host.starts_with('*') {
            return self.all(host, namespace);
        }
        let Some(one) = self.find(host, namespace) else { return vec![] };
        let name = one.split_once('/').map_or("", |(_, name)| name);
        let all = self.by_host.get(name).into_iter().flatten();
        all.filter(|k| self.is_seen(k, namespace)).cloned().collect()
    }

    /// All services that a host name, maybe with a wildcard, means.
    pub(crate) fn all(&self, host: &str, namespace: &str) -> Vec<Arc<str>> {
        match host.strip_prefix('*') {
            None => self.find(host, namespace).into_iter().cloned().collect(),
            Some(suffix) => {
                let fits = |h: &str| h == host || (h.len() > suffix.len() && h.ends_with(suffix));
                let keys = self.by_host.iter().filter(|(h, _)| fits(h)).flat_map(|(_, k)| k);
                let mut all: Vec<_> = keys.filter(|k| self.is_seen(k, namespace)).cloned().collect();
                all.sort();
                all
            }
        }
    }
}

/// Does only its own namespace know it?
pub(crate) fn is_private(service: &karst_api::workload::Service) -> bool {
    service.visibility == Visibility::Namespace as i32
}

/// Its ports, and those of UDP behind all that there can be of TCP.
pub(crate) fn all_numbers(service: &karst_api::workload::Service) -> Vec<u32> {
    let udp = service.karst_udp_ports.iter().map(|p| p + (1 << 16));
    numbers(service).into_iter().chain(udp).collect()
}

pub(crate) fn numbers(service: &karst_api::workload::Service) -> Vec<u32> {
    service.ports.iter().map(|p| p.service_port).collect()
}
