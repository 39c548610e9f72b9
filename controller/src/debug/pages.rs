//! The pages under `/debug`. Every one of them shows what the controller holds at the moment; pages of Istio's that have no meaning
//! here are not there.

use super::{status, subscribers::Subscriber};
use crate::{
    history::{History, Moment, page::summary},
    model::Model,
};
use karst_api::workload::{PortList, Service, TunnelProtocol, Workload, WorkloadStatus};
use karst_core::addr::ip_from_bytes;
use karst_rt::admin::{self, Answer};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write, sync::Arc};

/// The release of Istio whose tools and configuration this version follows: what tools that compare versions are told.
pub const ISTIO_LEVEL: &str = "1.30.0";

/// What the pages show.
#[derive(Clone)]
pub struct View {
    /// Proxies with an open stream.
    pub subscribers: Vec<Subscriber>,
    /// The mesh.
    pub model: Arc<Model>,
    /// This controller's pod.
    pub pod: String,
    /// Number of the snapshot that is served.
    pub version: u64,
    /// Digest of the manifests that it was made from (directory mode).
    pub manifests: u64,
    /// The mesh-wide settings, by Istio's names.
    pub mesh: Value,
    /// The versions that are kept.
    pub history: Arc<History>,
}

impl View {
    /// Nothing known.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self {
            subscribers: vec![],
            model: Arc::default(),
            pod: String::new(),
            version: 0,
            manifests: 0,
            mesh: Value::Null,
            history: Arc::default(),
        }
    }
}

type Page = fn(&View) -> Value;

/// Name, what is on it, and the page.
const PAGES: [(&str, &str, Page); 11] = [
    ("adsz", "Proxies with an open stream, and the types that each is sent", adsz),
    ("ambientz", "Workloads, services and policies as proxies are told of them", ambientz),
    ("authorizationz", "Layer 4 policies by namespace, as ztunnels are told of them", authorizationz),
    ("connections", "Proxies with an open stream", connections),
    ("endpointz", "Endpoints of every service port", endpointz),
    ("history", "Versions of the configuration that are kept; with ?at=TIME the configuration of that time", history),
    ("instancesz", "Pods that certificates are signed for", instancesz),
    ("karst", "Number of the snapshot, digest of the manifests, and what each proxy has taken in", karst),
    ("mesh", "The mesh-wide settings", |view| view.mesh.clone()),
    ("registryz", "Services with their addresses and ports", registryz),
    ("syncz", "What each proxy was sent and has acknowledged", |view| status::syncz(&view.subscribers, ISTIO_LEVEL)),
];

/// A page by its name (without `/debug/`); None: there is none of that name. `proxyID=POD.NAMESPACE` in the query narrows the pages
/// about proxies to one.
pub fn page(name: &str, query: &str, view: &View) -> Option<Value> {
    let (_, _, page) = PAGES.iter().find(|(known, ..)| *known == name)?;
    match query.split('&').find_map(|part| part.strip_prefix("proxyID=")) {
        Some(id) => {
            let subscribers = view.subscribers.iter().filter(|one| one.id() == id).cloned().collect();
            Some(page(&View { subscribers, ..view.clone() }))
        }
        None => Some(page(view)),
    }
}

/// The page with what is kept of older versions.
pub const HISTORY: &str = "/debug/history";

/// What a path under `/debug` is answered with.
pub fn answer(path: &str, query: &str, view: &View) -> Answer {
    // Exactly the path by which access was judged: no other spelling of a page is that page.
    let rest = path.strip_prefix("/debug").unwrap_or_default();
    match rest.strip_prefix('/').unwrap_or(rest) {
        "" => admin::typed(200, "text/html; charset=utf-8", index_html()),
        "list" => admin::text(200, index()),
        name => match page(name, query, view) {
            Some(value) => admin::json(&value),
            None => admin::text(404, format!("404 page not found; the pages are\n{}", index())),
        },
    }
}

/// The list of pages, as text.
pub fn index() -> String {
    PAGES.iter().fold(String::new(), |mut out, (name, what, _)| {
        let _ = writeln!(out, "/debug/{name:<12} {what}");
        out
    })
}

/// The list of pages for browsers (`istioctl dashboard istiod-debug`).
pub fn index_html() -> String {
    let rows = PAGES.iter().fold(String::new(), |mut out, (name, what, _)| {
        let _ = writeln!(out, "<tr><td><a href=\"/debug/{name}\">/debug/{name}</a></td><td>{what}</td></tr>");
        out
    });
    format!(
        "<!doctype html><html lang=\"en\"><head><title>Karst controller</title></head><body><h1>Debug pages</h1><table>\n{rows}</table></body></html>\n"
    )
}

/// The build, by the keys that Istio's tools decode.
pub fn build_info() -> Value {
    json!({
        "version": ISTIO_LEVEL, "revision": concat!("karst-", env!("CARGO_PKG_VERSION")), "golang_version": "",
        "status": "Clean", "tag": concat!("karst-", env!("CARGO_PKG_VERSION")),
    })
}

/// `/version`, as Istio writes it: release, commit and state of the tree, with hyphens between them. Ours has no hyphen inside.
pub fn version() -> String {
    format!("{ISTIO_LEVEL}-karst.{}-Clean", env!("CARGO_PKG_VERSION"))
}

fn karst(view: &View) -> Value {
    let proxies: Vec<Value> =
        view.subscribers.iter().map(|one| json!({ "proxy": one.name, "acked": one.acked })).collect();
    json!({ "version": view.version, "manifests": format!("{:x}", view.manifests), "proxies": proxies })
}

/// What is kept. The configuration of a time is told over HTTP only ([`crate::history::page::answer`]): it takes a while.
fn history(view: &View) -> Value {
    serde_json::to_value(summary(&view.history, Moment::now())).unwrap_or_default()
}

fn connections(view: &View) -> Value {
    let one = |subscriber: &Subscriber| json!({ "connectionId": subscriber.id(), "connectedAt": status::time(subscriber.connected) });
    json!({ "totalClients": view.subscribers.len(), "clients": view.subscribers.iter().map(one).collect::<Vec<_>>() })
}

fn adsz(view: &View) -> Value {
    let one = |subscriber: &Subscriber| {
        json!({
            "connectionId": subscriber.id(), "connectedAt": status::time(subscriber.connected),
            "address": subscriber.name, "metadata": {
                "CLUSTER_ID": subscriber.cluster, "NAMESPACE": subscriber.namespace, "ISTIO_VERSION": subscriber.version,
            },
            "watches": subscriber.types.keys().map(|type_url| (type_url.clone(), json!([])))
                .collect::<serde_json::Map<_, _>>(),
        })
    };
    json!({ "totalClients": view.subscribers.len(), "clients": view.subscribers.iter().map(one).collect::<Vec<_>>() })
}

fn addresses(service: &Service) -> Vec<String> {
    let text = |address: &karst_api::workload::NetworkAddress| {
        let ip = ip_from_bytes(&address.address)?;
        Some(address.length.map_or_else(|| format!("{ip}"), |length| format!("{ip}/{length}")))
    };
    service.addresses.iter().filter_map(text).collect()
}

fn registryz(view: &View) -> Value {
    let one = |service: &Service| {
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|port| json!({ "port": port.service_port, "targetPort": port.target_port, "protocol": port.app_protocol().as_str_name() }))
            .collect();
        json!({
            "hostname": service.hostname, "ports": ports, "addresses": addresses(service),
            "Attributes": { "Name": service.name, "Namespace": service.namespace },
        })
    };
    view.model.services.values().map(one).collect()
}

fn ips(workload: &Workload) -> Vec<String> {
    workload.addresses.iter().filter_map(|bytes| ip_from_bytes(bytes)).map(|ip| ip.to_string()).collect()
}

fn ports(list: &PortList) -> impl Iterator<Item = (u32, u32)> {
    list.ports.iter().map(|port| (port.service_port, port.target_port))
}

fn endpointz(view: &View) -> Value {
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for workload in view.model.workloads.values() {
        for (key, list) in &workload.services {
            let Some(service) = view.model.services.get(key) else { continue };
            for (port, target) in ports(list) {
                let addresses = ips(workload);
                all.entry(format!("{}:{port}", service.hostname)).or_default().push(json!({
                    "addresses": addresses, "port": target, "workload": workload.uid,
                    "healthy": workload.status() == WorkloadStatus::Healthy,
                }));
            }
        }
    }
    all.into_iter().map(|(name, endpoints)| json!({ "svc": name, "ep": endpoints })).collect()
}

fn instancesz(view: &View) -> Value {
    let one = |(name, pod): (&String, &Arc<crate::model::PodInfo>)| json!({ "pod": name, "serviceAccount": pod.service_account, "node": pod.node, "live": pod.live, "ips": pod.ips });
    view.model.pods.iter().map(one).collect()
}

fn ambientz(view: &View) -> Value {
    let workload = |workload: &Arc<Workload>| {
        json!({
            "uid": workload.uid, "name": workload.name, "namespace": workload.namespace, "addresses": ips(workload),
            "node": workload.node, "serviceAccount": workload.service_account,
            "protocol": if workload.tunnel_protocol() == TunnelProtocol::Hbone { "HBONE" } else { "TCP" },
            "status": if workload.status() == WorkloadStatus::Healthy { "Healthy" } else { "Unhealthy" },
            "authorizationPolicies": workload.authorization_policies,
        })
    };
    let service = |(key, service): (&String, &Service)| {
        json!({
            "key": key, "hostname": service.hostname, "vips": addresses(service), "waypoint": service.waypoint.is_some(),
        })
    };
    json!({
        "workloads": view.model.workloads.values().map(workload).collect::<Vec<_>>(),
        "services": view.model.services.iter().map(service).collect::<Vec<_>>(),
        "policies": view.model.policies.values().map(|p| serde_json::to_value(p).unwrap_or_default()).collect::<Vec<_>>(),
    })
}

fn authorizationz(view: &View) -> Value {
    let mut by_namespace: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (key, policy) in view.model.policies.iter() {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        by_namespace.entry(namespace).or_default().push(serde_json::to_value(policy).unwrap_or_default());
    }
    json!({ "authorization_policies": by_namespace })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_api::workload::{NetworkAddress, Port};
    use std::time::SystemTime;

    fn view() -> View {
        let mut model = Model::default();
        let port = Port { service_port: 80, target_port: 8080, ..Default::default() };
        let address = |ip: [u8; 4]| NetworkAddress { address: ip.to_vec(), ..Default::default() };
        model.services.insert(
            "a/web.a.svc.cluster.local".into(),
            Service {
                name: "web".into(),
                namespace: "a".into(),
                hostname: "web.a.svc.cluster.local".into(),
                addresses: vec![address([10, 96, 0, 1])],
                ports: vec![port],
                ..Default::default()
            },
        );
        let workload = Workload {
            uid: "Kubernetes//Pod/a/web-1".into(),
            addresses: vec![vec![10, 0, 0, 7].into()],
            services: [("a/web.a.svc.cluster.local".to_string(), PortList { ports: vec![port] })].into_iter().collect(),
            ..Default::default()
        };
        model.workloads.insert(workload.uid.clone(), Arc::new(workload));
        let one = |pod: &str| Subscriber::new(pod.into(), "a".into(), pod.into(), SystemTime::UNIX_EPOCH);
        View {
            model: Arc::new(model),
            subscribers: vec![one("p"), one("q")],
            version: 9,
            manifests: 255,
            ..View::empty()
        }
    }

    #[test]
    fn the_manual_lists_every_page() {
        let manual = include_str!("../../../docs/operations.md");
        let row = manual.lines().find(|line| line.starts_with("| controller | `:15014/debug/…` | ")).unwrap();
        let listed = row.split(" | ").nth(2).unwrap().split(';').next().unwrap();
        let listed: Vec<&str> = listed.split('`').skip(1).step_by(2).collect();
        assert_eq!(listed, PAGES.map(|(name, ..)| name));
    }

    #[test]
    fn every_page_of_the_index_is_there_and_no_other() {
        let view = view();
        for line in index().lines() {
            let name = line.split_whitespace().next().unwrap().strip_prefix("/debug/").unwrap();
            assert!(page(name, "", &view).is_some(), "{name}");
            assert!(index_html().contains(&format!("href=\"/debug/{name}\"")), "{name}");
        }
        assert!(page("inject", "", &view).is_none() && page("", "", &view).is_none());
        for (path, status) in [
            ("/debug", 200),
            ("/debug/", 200),
            ("/debug/syncz", 200),
            ("/debug/inject", 404),
            ("/debug//syncz", 404),
            ("/debug/syncz/", 404),
        ] {
            assert_eq!(answer(path, "", &view).status(), status, "{path}");
        }
    }

    #[test]
    fn pages_show_what_the_model_holds() {
        let view = view();
        assert_eq!(
            page("endpointz", "", &view).unwrap(),
            json!([{ "svc": "web.a.svc.cluster.local:80", "ep": [{
                "addresses": ["10.0.0.7"], "port": 8080, "workload": "Kubernetes//Pod/a/web-1", "healthy": true,
            }] }])
        );
        assert_eq!(page("registryz", "", &view).unwrap()[0]["addresses"], json!(["10.96.0.1"]));
        assert_eq!(
            page("karst", "", &view).unwrap(),
            json!({ "version": 9, "manifests": "ff", "proxies": [{ "proxy": "p", "acked": 0 }, { "proxy": "q", "acked": 0 }] })
        );
        assert_eq!(page("history", "", &view).unwrap()["versions"], 0);
        assert_eq!(page("syncz", "proxyID=q.a", &view).unwrap().as_array().unwrap().len(), 1);
    }

    /// istioctl cuts the last two of at least three parts off; what is left is the release.
    #[test]
    fn the_version_is_read_as_istios() {
        let text = version();
        let parts: Vec<&str> = text.split('-').collect();
        assert_eq!((parts.len(), parts[0], parts[2]), (3, ISTIO_LEVEL, "Clean"));
    }
}
