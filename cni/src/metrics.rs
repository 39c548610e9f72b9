//! Metrics (`/metrics`) and health (`/healthz`, `/readyz`).

use crate::agent::Agent;
use karst_rt::{
    admin,
    exposition::{self, Kind, Page},
    process_metrics,
};
use std::rc::Rc;
use tokio::net::TcpListener;

/// Serves the pages.
pub async fn serve(listener: TcpListener, agent: Rc<Agent>) {
    let handler = admin::pages(move |_, path, _| match path {
        "/metrics" => {
            let page = exposition::page(|page| render(&agent, page));
            admin::typed(200, exposition::CONTENT_TYPE, page)
        }
        "/healthz" | "/readyz" => admin::text(200, "ok\n"),
        _ => admin::text(404, "pages: /metrics /healthz /readyz\n"),
    });
    admin::serve(listener, handler).await;
}

fn render(agent: &Agent, page: &mut Page) {
    let help = "What the redirection programs did with a pod's connections, by reason.";
    let mut family = page.family("karst_redirect_total", Kind::Counter, help);
    let dir = agent.node.borrow().dir().to_path_buf();
    let pods = agent.pods();
    for (key, uid) in &pods {
        let Ok(state) = karst_ebpf::pod_state(&dir, uid) else { continue };
        let [namespace, pod] = labels(key);
        for (counter, count) in state.counters {
            family.sample(&[namespace, pod, ("reason", counter.name())], count);
        }
    }
    let mut family = page.family(
        "karst_unmeshed_connections",
        Kind::Gauge,
        "Open connections of a redirected pod from before it was: not encrypted, by no policy judged.",
    );
    for (key, uid) in &pods {
        family.sample(&labels(key), agent.unmeshed.count(uid));
    }
    let guards = agent.guards();
    let mut family = page.family(
        "karst_unguarded_devices",
        Kind::Gauge,
        "Devices of a pod on which the guard should be and cannot be: plaintext may leave by them.",
    );
    for (key, counts) in &guards {
        family.sample(&labels(key), counts.unguarded.get());
    }
    let help = "Attempts to guard a device that came later, and failed.";
    let mut family = page.family("karst_guard_failures_total", Kind::Counter, help);
    for (key, counts) in &guards {
        family.sample(&labels(key), counts.failures.get());
    }
    page.single(
        "karst_closed_pods",
        Kind::Gauge,
        "Pods that should be redirected but cannot be, and are closed: another network stack has their addresses.",
        agent.closed_pods(),
    );
    page.single("karst_enrolled_pods", Kind::Gauge, "Pods of this node that are redirected.", pods.len());
    if let Some(is_chained) = agent.plugin_is_chained() {
        page.single(
            "karst_cni_plugin_chained",
            Kind::Gauge,
            "Is the CNI plugin the last of the node's network configuration? If not, new pods are redirected shortly after they start.",
            i32::from(is_chained),
        );
    }
    page.single("ztunnel_connected", Kind::Gauge, "Is a ztunnel connected?", i32::from(agent.hub.has_peer()));
    process_metrics::render(page, "cni");
}

/// Those of a pod, by its key (`namespace/name`).
fn labels(key: &str) -> [(&'static str, &str); 2] {
    let (namespace, pod) = key.split_once('/').unwrap_or(("", key));
    [("namespace", namespace), ("pod", pod)]
}
