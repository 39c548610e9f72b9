//! Metrics (`/metrics`) and health (`/healthz`, `/readyz`).

use crate::agent::Agent;
use karst_rt::admin;
use std::{fmt::Write, rc::Rc};
use tokio::net::TcpListener;

/// Serves the pages.
pub async fn serve(listener: TcpListener, agent: Rc<Agent>) {
    let handler = admin::pages(move |_, path, _| match path {
        "/metrics" => admin::typed(200, "text/plain; version=0.0.4", render(&agent)),
        "/healthz" | "/readyz" => admin::text(200, "ok\n"),
        _ => admin::text(404, "pages: /metrics /healthz /readyz\n"),
    });
    admin::serve(listener, handler).await;
}

fn render(agent: &Agent) -> String {
    let mut out = String::from(
        "# HELP karst_redirect_total What the redirection programs did with a pod's connections, by reason.\n# TYPE karst_redirect_total counter\n",
    );
    let dir = agent.node.borrow().dir().to_path_buf();
    let pods = agent.pods();
    for (key, uid) in &pods {
        let Ok(state) = karst_ebpf::pod_state(&dir, uid) else { continue };
        let (ns, name) = key.split_once('/').unwrap_or(("", key));
        for (counter, count) in state.counters {
            let _ = writeln!(
                out,
                "karst_redirect_total{{namespace=\"{ns}\",pod=\"{name}\",reason=\"{}\"}} {count}",
                counter.name()
            );
        }
    }
    out += "# HELP karst_unmeshed_connections Open connections of a redirected pod from before it was: not encrypted, by no policy judged.\n# TYPE karst_unmeshed_connections gauge\n";
    for (key, uid) in &pods {
        let (ns, name) = key.split_once('/').unwrap_or(("", key));
        let count = agent.unmeshed.count(uid);
        let _ = writeln!(out, "karst_unmeshed_connections{{namespace=\"{ns}\",pod=\"{name}\"}} {count}");
    }
    let guards = agent.guards();
    out += "# HELP karst_unguarded_devices Devices of a pod on which the guard should be and cannot be: plaintext may leave by them.\n# TYPE karst_unguarded_devices gauge\n";
    for (key, counts) in &guards {
        let (ns, name) = key.split_once('/').unwrap_or(("", key));
        let count = counts.unguarded.get();
        let _ = writeln!(out, "karst_unguarded_devices{{namespace=\"{ns}\",pod=\"{name}\"}} {count}");
    }
    out += "# HELP karst_guard_failures_total Attempts to guard a device that came later, and failed.\n# TYPE karst_guard_failures_total counter\n";
    for (key, counts) in &guards {
        let (ns, name) = key.split_once('/').unwrap_or(("", key));
        let count = counts.failures.get();
        let _ = writeln!(out, "karst_guard_failures_total{{namespace=\"{ns}\",pod=\"{name}\"}} {count}");
    }
    let _ = writeln!(
        out,
        "# HELP karst_closed_pods Pods that should be redirected but cannot be, and are closed: another network stack has their addresses.\n# TYPE karst_closed_pods gauge\nkarst_closed_pods {}",
        agent.closed_pods()
    );
    let _ = writeln!(
        out,
        "# HELP karst_enrolled_pods Pods of this node that are redirected.\n# TYPE karst_enrolled_pods gauge\nkarst_enrolled_pods {}",
        pods.len()
    );
    if let Some(is_chained) = agent.plugin_is_chained() {
        let _ = writeln!(
            out,
            "# HELP karst_cni_plugin_chained Is the CNI plugin the last of the node's network configuration? If not, new pods are redirected shortly after they start.\n# TYPE karst_cni_plugin_chained gauge\nkarst_cni_plugin_chained {}",
            i32::from(is_chained)
        );
    }
    let _ = writeln!(
        out,
        "# HELP ztunnel_connected Is a ztunnel connected?\n# TYPE ztunnel_connected gauge\nztunnel_connected {}",
        i32::from(agent.hub.has_peer())
    );
    karst_rt::process_metrics::render(&mut out, "cni");
    out
}
