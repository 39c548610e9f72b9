//! Pages: metrics, readiness, and what is known.

use crate::worker::Shared;
use karst_rt::{
    admin::{self, Handler},
    ready::Ready,
};
use std::{collections::HashSet, sync::Arc};

/// The pages of the process.
pub struct Pages {
    pub shared: Arc<Shared>,
    pub ready: Ready,
}

impl Pages {
    /// Loopback only.
    pub fn admin(self: Arc<Self>) -> Handler {
        admin::pages(move |method, path, query| match (method, path) {
            (_, "/config_dump") => {
                let snapshot = self.shared.state.borrow().clone();
                let tables: Vec<_> = snapshot
                    .routes
                    .iter()
                    .map(|(k, r)| serde_json::json!({ "service": **k, "routes": r.describe() }))
                    .collect();
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
            ("POST", "/logging") => match karst_rt::log::level(query) {
                Ok(now) => admin::text(200, format!("current log level is {now}\n")),
                Err(e) => admin::text(400, format!("{e}\n")),
            },
            (_, "/metrics" | "/stats/prometheus") => self.metrics(),
            _ => admin::text(404, "pages: /config_dump /logging?level= /metrics\n"),
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
        let (mut page, s) = (self.shared.metrics.render(&self.shared.gate), self.shared.state.borrow().clone());
        let known: HashSet<&str> = s.dry_runs().collect();
        self.shared.metrics.dry_runs.render(&mut page, |p| known.contains(p));
        self.shared.secrets.revocation().render(&mut page);
        admin::typed(200, "text/plain; version=0.0.4", page)
    }
}
