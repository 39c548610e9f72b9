//! Pages: metrics, readiness, and what is known.

use crate::{
    config::Config,
    envoy::{self, View, clusters, listeners, secrets},
    snapshot::Snapshot,
    worker::Shared,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use karst_proxy::dump;
use karst_rt::{
    admin::{self, Handler},
    exposition,
    ready::Ready,
};
use std::{collections::HashSet, rc::Rc, sync::Arc};

/// Envoy's pages that Istio's tools read, and ours.
const PAGES: &str = "pages: /config_dump?include_eds /config_dump/karst?resources /flows /tap?FILTER /clusters?format=json /listeners /certs /server_info /memory /runtime /logging?level= /stats/prometheus\n";

/// All that the control plane has told, without keys: by it `karst explain` judges as this proxy does.
fn told(config: &Config, snapshot: &Snapshot) -> serde_json::Value {
    let mesh = dump::mesh(&snapshot.mesh);
    let mut resources: Vec<_> = snapshot.told.iter().collect();
    resources.sort_by_key(|(key, _)| *key);
    let resource = |((type_url, name), bytes): (&(&'static str, Arc<str>), &Arc<[u8]>)| serde_json::json!({ "type": type_url, "name": **name, "body": BASE64_STANDARD.encode(bytes) });
    serde_json::json!({
        "pod": format!("{}/{}", config.pod_namespace, config.pod_name),
        "resources": resources.into_iter().map(resource).collect::<Vec<_>>(),
        "mesh": {
            "network": snapshot.mesh.network(),
            "workloads": mesh.workloads, "services": mesh.services, "podRanges": mesh.pod_ranges,
        },
    })
}

/// The pages of the process.
pub struct Pages {
    pub shared: Arc<Shared>,
    pub ready: Ready,
}

impl Pages {
    /// Loopback only.
    pub fn admin(self: Arc<Self>) -> Handler {
        Rc::new(move |method, path, query| {
            if path == "/tap" {
                return Box::pin(std::future::ready(self.shared.taps.page(query)));
            }
            if path != "/flows" {
                return Box::pin(std::future::ready(self.page(method, path, query)));
            }
            let pages = self.clone();
            Box::pin(async move { admin::json(&serde_json::json!(pages.shared.flows.page().await)) })
        })
    }

    /// The pages that need not wait for the workers.
    fn page(&self, method: &str, path: &str, query: &str) -> admin::Answer {
        match (method, path) {
            (_, "/config_dump/karst") => {
                let snapshot = self.shared.state.borrow().clone();
                let tables: Vec<_> = snapshot
                    .routes
                    .iter()
                    .map(|(k, r)| serde_json::json!({ "service": **k, "routes": r.describe() }))
                    .collect();
                if query.contains("resources") {
                    return admin::json(&told(&self.shared.config, &snapshot));
                }
                admin::json(&serde_json::json!({
                    "config": self.shared.config,
                    "services": snapshot.mesh.services.len(),
                    "workloads": snapshot.mesh.workloads.len(),
                    "backends": snapshot.backends.keys().map(|k| k.to_string()).collect::<Vec<_>>(),
                    "routes": tables,
                    "listeners": snapshot.gateway.as_ref().map(|g| g.describe()),
                    "virtualHosts": snapshot.hosts.iter().map(|(k, r)| (k.to_string(), r.describe()))
                        .collect::<serde_json::Map<_, _>>(),
                }))
            }
            (_, "/config_dump") => {
                admin::json(&self.envoy(|view| envoy::dump::config_dump(view, query.contains("include_eds"))))
            }
            (_, "/clusters") => match query {
                "format=json" => admin::json(&self.envoy(clusters::statuses)),
                _ => admin::text(200, self.envoy(clusters::text)),
            },
            (_, "/listeners") => admin::text(200, self.envoy(listeners::text)),
            (_, "/certs") => admin::json(&self.envoy(secrets::certs)),
            (_, "/memory") => admin::json(&envoy::dump::memory()),
            // There is no runtime layer that could be changed.
            (_, "/runtime") => admin::json(&serde_json::json!({ "layers": [], "entries": {} })),
            (_, "/server_info") => {
                admin::json(&envoy::dump::server_info(&self.shared.config, self.ready.missing().is_empty()))
            }
            ("POST", "/logging") => match karst_rt::log::level(query) {
                Ok(now) => admin::text(200, format!("current log level is {now}\n")),
                Err(e) => admin::text(400, format!("{e}\n")),
            },
            (_, "/metrics" | "/stats/prometheus") => self.metrics(),
            _ => admin::text(404, PAGES),
        }
    }

    /// Something made of what is known now, in Envoy's words.
    fn envoy<T>(&self, make: impl Fn(&View<'_>) -> T) -> T {
        let (snapshot, certificates) = (self.shared.state.borrow().clone(), self.shared.secrets.all());
        make(&View {
            config: &self.shared.config,
            identity: &self.shared.identity,
            snapshot: &snapshot,
            certificates: &certificates,
        })
    }

    /// For Prometheus.
    pub fn stats(self: Arc<Self>) -> Handler {
        admin::pages(move |_, path, _| match path {
            "/metrics" | "/stats/prometheus" => self.metrics(),
            _ => admin::text(404, "pages: /metrics /stats/prometheus\n"),
        })
    }

    /// For the kubelet.
    pub fn readiness(self: Arc<Self>) -> Handler {
        admin::pages(move |_, path, _| match path {
            "/healthz/ready" => match self.ready.missing() {
                m if m.is_empty() => admin::text(200, "ready\n"),
                m => admin::text(503, format!("waiting for: {}\n", m.join(", "))),
            },
            _ => admin::text(404, "pages: /healthz/ready\n"),
        })
    }

    fn metrics(&self) -> admin::Answer {
        let shared = &self.shared;
        let page = exposition::page(|page| {
            shared.metrics.render(&shared.gate, page);
            let state = shared.state.borrow().clone();
            let known: HashSet<&str> = state.dry_runs().collect();
            shared.metrics.dry_runs.render(page, |p| known.contains(p));
            shared.secrets.revocation().render(page);
            shared.flows.render(page);
        });
        admin::typed(200, exposition::CONTENT_TYPE, page)
    }
}
