//! Admin page, metrics, readiness; shapes as Istio's (reference ztunnel §4.8).

use crate::{
    inpod::LocalPod,
    shares,
    worker::{Command, Shared},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use karst_hbone::{
    certificate::{CertificateSummary, summaries},
    tls::Credentials,
};
use karst_proxy::dump;
use karst_rt::{admin, clock, exposition, log, ready::Ready};
use serde_json::{Value, json};
use std::{collections::BTreeMap, rc::Rc, sync::Arc};
use tokio::sync::{Notify, oneshot};

/// The pages' view of the process.
pub struct Pages {
    pub shared: Arc<Shared>,
    pub ready: Ready,
    pub quit: Arc<Notify>,
}

impl Pages {
    /// The admin page.
    pub fn admin(self: Arc<Self>) -> admin::Handler {
        Rc::new(move |method, path, query| {
            let (pages, method, path, query) = (self.clone(), method.to_string(), path.to_string(), query.to_string());
            Box::pin(async move { pages.page(&method, &path, &query).await })
        })
    }
    async fn page(&self, method: &str, path: &str, query: &str) -> admin::Answer {
        match (method, path) {
            ("GET", "/") => admin::text(
                200,
                "ztunnel\n  GET  /config_dump\n  GET  /connections\n  GET  /flows\n  GET  /tap?FILTER\n  POST /logging?level=SPEC\n  POST /logging?reset\n  POST /quitquitquit\n",
            ),
            ("GET", "/config_dump") => admin::json(&self.config_dump(self.connections().await)),
            ("GET", "/connections") => admin::json(&Value::Array(self.connections().await)),
            ("GET", "/flows") => admin::json(&serde_json::to_value(self.shared.flows.page().await).unwrap_or_default()),
            ("GET", "/tap") => self.shared.taps.page(query),
            ("POST", "/logging") => match log::level(query) {
                Ok(now) => admin::text(200, format!("current log level is {now}\n")),
                Err(e) => admin::text(400, format!("{e}\n")),
            },
            ("POST", "/quitquitquit") => {
                self.quit.notify_one();
                admin::text(200, "shutdown now\n")
            }
            ("GET", "/quitquitquit" | "/logging") => admin::text(405, "use POST\n"),
            _ => admin::text(404, "not found; GET / lists the pages\n"),
        }
    }
    /// The open connections of all workers.
    async fn connections(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for worker in self.shared.workers.commands() {
            let (tx, rx) = oneshot::channel();
            if worker.send(Command::Dump(tx)).await.is_ok() {
                all.extend(rx.await.unwrap_or_default());
            }
        }
        all
    }
    /// Metrics.
    pub fn stats(self: Arc<Self>) -> admin::Handler {
        admin::pages(move |_, path, _| match path {
            "/metrics" | "/stats/prometheus" => {
                let page = exposition::page(|page| self.metrics(page));
                admin::typed(200, exposition::CONTENT_TYPE, page)
            }
            _ => admin::text(404, "pages: /metrics /stats/prometheus\n"),
        })
    }
    fn metrics(&self, page: &mut exposition::Page) {
        let shared = &self.shared;
        shared.metrics.render(page);
        let snapshot = shared.state.borrow().clone();
        let known = |p: &str| snapshot.policies.get(p).is_some_and(|p| p.dry_run);
        shared.metrics.dry_runs.render(page, known);
        shared.secrets.revocation().render(page);
        shared.outbound.render(page);
        shared.flows.render(page);
        shares::render(page, &shared.pods.load(), shared.budget.descriptors);
    }
    /// Readiness.
    pub fn readiness(self: Arc<Self>) -> admin::Handler {
        admin::pages(move |_, path, _| match path {
            "/healthz/ready" => match self.ready.missing() {
                m if m.is_empty() => admin::text(200, "ready\n"),
                m => admin::text(500, format!("not ready, pending: {}\n", m.join(", "))),
            },
            _ => admin::text(404, "page: /healthz/ready\n"),
        })
    }

    fn config_dump(&self, connections: Vec<Value>) -> Value {
        let snapshot = self.shared.state.borrow().clone();
        let mesh = dump::mesh(&snapshot);
        let policies: BTreeMap<_, _> = snapshot
            .policies
            .iter()
            .map(|(k, p)| (k.to_string(), serde_json::to_value(&**p).unwrap_or_default()))
            .collect();
        let certificates: Vec<Value> = self.shared.secrets.all().values().map(|c| certificate(c)).collect();
        let state: BTreeMap<String, Value> = self
            .shared
            .pods
            .load()
            .values()
            .map(|pod| {
                (pod.uid.clone(), workload_state(pod, &self.shared.config.certificates.trust_domain, &connections))
            })
            .collect();
        json!({
            "network": snapshot.network(),
            "podRanges": mesh.pod_ranges,
            "onDemand": snapshot.asked().map(|asked| dump::names(asked, snapshot.network())),
            "workloads": mesh.workloads,
            "services": mesh.services,
            "outboundTrafficPolicy": self.shared.outbound.mode(),
            "policies": policies.values().collect::<Vec<_>>(),
            "stagedServices": {},
            "staticConfig": {},
            "certificates": certificates,
            "workloadState": state,
            "version": { "version": env!("CARGO_PKG_VERSION"), "name": "karst-ztunnel" },
            "config": serde_json::to_value(&self.shared.config).unwrap_or_default(),
        })
    }
}

/// A pod of this node with its connections, as istioctl and Kiali read it.
fn workload_state(pod: &LocalPod, trust_domain: &str, connections: &[Value]) -> Value {
    let of = |direction: &str| -> Vec<&Value> {
        connections.iter().filter(|c| c["pod"] == pod.key.as_str() && c["direction"] == direction).collect()
    };
    json!({
        "state": "Up",
        "connections": { "inbound": of("inbound"), "outbound": of("outbound") },
        "info": {
            "name": pod.name, "namespace": pod.namespace,
            "trustDomain": trust_domain, "serviceAccount": pod.account,
        },
    })
}

fn certificate(credentials: &Credentials) -> Value {
    let (roots, chain) = credentials.pem.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
    json!({
        "identity": credentials.identity.to_string(),
        "state": if credentials.not_after > clock::wall() { "Available" } else { "Expired" },
        "certChain": chain.iter().flat_map(|pem| summaries(pem)).map(summary).collect::<Vec<_>>(),
        "rootCerts": summaries(roots).into_iter().map(summary).collect::<Vec<_>>(),
    })
}

/// The PEM is in base64, as in ztunnel's dump; times are RFC 3339.
fn summary(certificate: CertificateSummary) -> Value {
    json!({
        "pem": BASE64_STANDARD.encode(certificate.pem),
        "serialNumber": certificate.serial_number,
        "validFrom": log::timestamp(certificate.not_before),
        "expirationTime": log::timestamp(certificate.not_after),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_core::Identity;
    use karst_proxy::testing;

    /// istioctl's and Kiali's types, key by key: a list where they have an object fails the whole dump in Go's decoder.
    #[test]
    fn a_pods_connections_stand_under_its_uid() {
        let pod = LocalPod::test("a", "sa-a", "uid-a");
        let connection = |pod: &str, direction: &str, port: u16| json!({ "pod": pod, "direction": direction, "src": format!("10.0.0.1:{port}") });
        let all =
            [connection("ns/a", "outbound", 1), connection("ns/b", "outbound", 2), connection("ns/a", "inbound", 3)];
        let state = workload_state(&pod, "cluster.local", &all);
        assert_eq!(
            state["info"],
            json!({ "name": "a", "namespace": "ns", "trustDomain": "cluster.local", "serviceAccount": "sa-a" })
        );
        let sources = |direction: &str| -> Vec<String> {
            let list = state["connections"][direction].as_array().unwrap();
            list.iter().map(|c| c["src"].as_str().unwrap().to_string()).collect()
        };
        assert_eq!((sources("inbound"), sources("outbound")), (vec!["10.0.0.1:3".into()], vec!["10.0.0.1:1".into()]));
        let idle = workload_state(&LocalPod::test("c", "sa", "uid-c"), "td", &all);
        assert_eq!(idle["connections"], json!({ "inbound": [], "outbound": [] }));
    }

    #[test]
    fn certificates_are_objects_in_lists() {
        let identity = Identity::new("cluster.local", "ns", "a").unwrap();
        let page = certificate(&testing::Ca::mint().credentials(&identity));
        assert_eq!((&page["identity"], &page["state"]), (&json!(identity.to_string()), &json!("Available")));
        for list in ["certChain", "rootCerts"] {
            let first = &page[list][0];
            let text = |key: &str| first[key].as_str().unwrap();
            assert!(text("serialNumber").bytes().all(|b| b.is_ascii_digit()), "{list}: {first}");
            let pem = BASE64_STANDARD.decode(text("pem")).unwrap();
            assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"), "{list}: {first}");
            assert!(text("validFrom") < text("expirationTime"), "{list}: {first}");
        }
    }
}
