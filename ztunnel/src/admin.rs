//! Admin page, metrics, readiness; shapes as Istio's (reference ztunnel §4.8).

use crate::{
    state::{Endpoints, Gateway, GatewayTo, Mode, Service, Workload},
    worker::{Command, Shared},
};
use karst_hbone::tls::Credentials;
use karst_rt::{admin, log, ready::Ready};
use serde_json::{Value, json};
use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::SystemTime};
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
                "ztunnel\n  GET  /config_dump\n  GET  /connections\n  POST /logging?level=SPEC\n  POST /logging?reset\n  POST /quitquitquit\n",
            ),
            ("GET", "/config_dump") => admin::json(&self.config_dump(self.connections().await)),
            ("GET", "/connections") => admin::json(&Value::Array(self.connections().await)),
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
                let (mut page, snapshot) = (self.shared.metrics.render(), self.shared.state.borrow().clone());
                let known = |p: &str| snapshot.policies.get(p).is_some_and(|p| p.dry_run);
                self.shared.metrics.dry_runs.render(&mut page, known);
                self.shared.secrets.revocation().render(&mut page);
                self.shared.outbound.render(&mut page);
                admin::typed(200, "text/plain; version=0.0.4", page)
            }
            _ => admin::text(404, "pages: /metrics /stats/prometheus\n"),
        })
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
        let workloads: BTreeMap<_, _> = snapshot.workloads.iter().map(|(k, w)| (k.to_string(), workload(w))).collect();
        let services: BTreeMap<_, _> =
            snapshot.services.iter().map(|(k, v)| (k.to_string(), service(v, snapshot.endpoints.get(k)))).collect();
        let policies: BTreeMap<_, _> = snapshot
            .policies
            .iter()
            .map(|(k, p)| (k.to_string(), serde_json::to_value(&**p).unwrap_or_default()))
            .collect();
        let certificates: Vec<Value> = self.shared.secrets.all().values().map(|c| certificate(c)).collect();
        let state: BTreeMap<String, Value> = self.shared.pods.load().values().map(|p| (p.uid.clone(), json!({ "state": "Up", "info": { "name": p.name, "namespace": p.namespace, "serviceAccount": p.account } }))).collect();
        let mut ranges: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (node, range) in snapshot.pod_ranges.iter() {
            ranges.entry(node.to_string()).or_default().push(range.to_string());
        }
        json!({
            "podRanges": ranges,
            "workloads": workloads.values().collect::<Vec<_>>(),
            "services": services.values().collect::<Vec<_>>(),
            "policies": policies.values().collect::<Vec<_>>(),
            "stagedServices": {},
            "staticConfig": {},
            "certificates": certificates,
            "workloadState": state,
            "connections": connections,
            "version": { "version": env!("CARGO_PKG_VERSION"), "name": "karst-ztunnel" },
            "config": serde_json::to_value(&self.shared.config).unwrap_or_default(),
        })
    }
}

fn gateway(gateway: &Gateway) -> Value {
    let destination = match &gateway.to {
        GatewayTo::Service(k) => k.to_string(),
        GatewayTo::Address(a) => format!("/{a}"),
    };
    json!({ "destination": destination, "hboneMtlsPort": gateway.port })
}

fn workload(workload: &Workload) -> Value {
    json!({
        "uid": &*workload.uid, "name": &*workload.name, "namespace": &*workload.namespace,
        "workloadIps": workload.ips, "hostname": &*workload.hostname, "network": &*workload.network,
        "protocol": if workload.hbone { "HBONE" } else { "TCP" }, "nativeTunnel": workload.native_tunnel,
        "trustDomain": workload.identity.trust_domain(), "serviceAccount": workload.identity.service_account(),
        "waypoint": workload.waypoint.as_ref().map(gateway), "node": &*workload.node,
        "workloadName": &*workload.workload_name, "workloadType": workload.workload_type,
        "canonicalName": &*workload.canonical_name, "canonicalRevision": &*workload.canonical_revision,
        "authorizationPolicies": workload.policies.iter().map(|p| p.to_string()).collect::<Vec<_>>(),
        "dryRunPolicies": workload.dry_runs.iter().map(|p| p.to_string()).collect::<Vec<_>>(),
        "status": if workload.healthy { "Healthy" } else { "Unhealthy" }, "draining": workload.draining,
        "clusterId": &*workload.cluster,
        "locality": { "region": &*workload.region, "zone": &*workload.zone, "subzone": &*workload.subzone },
        "capacity": workload.capacity, "networkMode": if workload.host_network { "HostNetwork" } else { "Standard" },
        "services": workload.services.iter().map(|(k, _)| k.to_string()).collect::<Vec<_>>(),
    })
}

fn service(service: &Service, endpoints: Option<&Endpoints>) -> Value {
    let ports = |p: &[(u16, u16)]| p.iter().map(|(a, b)| (a.to_string(), json!(b))).collect::<serde_json::Map<_, _>>();
    let endpoints: BTreeMap<String, Value> = endpoints
        .into_iter()
        .flatten()
        .map(|(u, p)| (u.to_string(), json!({ "workloadUid": &**u, "port": ports(p) })))
        .collect();
    json!({
        "name": &*service.name, "namespace": &*service.namespace, "hostname": &*service.hostname,
        "vips": service.vips.iter().map(|v| format!("/{v}")).collect::<Vec<_>>(),
        "cidrVips": service.ranges.iter().map(|c| format!("/{c}")).collect::<Vec<_>>(),
        "ports": ports(&service.ports), "endpoints": endpoints,
        "subjectAltNames": service.sans.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "waypoint": service.waypoints.first().map(|(g, _)| gateway(g)),
        "loadBalancer": load_balancer(service), "canonical": service.canonical, "private": service.private,
        "sessionAffinitySeconds": service.affinity.map(|t| t.as_secs()),
    })
}

fn load_balancer(service: &Service) -> Value {
    let mode = match service.mode {
        Mode::Any => "Standard",
        Mode::Strict => "Strict",
        Mode::Failover => "Failover",
        Mode::Passthrough => "Passthrough",
    };
    json!({
        "mode": mode, "routingPreferences": service.scopes.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>(),
        "healthPolicy": if service.only_healthy { "OnlyHealthy" } else { "AllowAll" },
    })
}

fn certificate(credentials: &Credentials) -> Value {
    let time = |t: SystemTime| karst_rt::log::timestamp(t);
    json!({
        "identity": credentials.identity.to_string(),
        "state": if credentials.not_after > SystemTime::now() { "Available" } else { "Expired" },
        "certChain": [{
            "pem": credentials.pem.first(), "serialNumber": credentials.serial,
            "validFrom": time(credentials.not_before), "expirationTime": time(credentials.not_after),
        }],
        "rootCerts": credentials.pem.last(),
    })
}
