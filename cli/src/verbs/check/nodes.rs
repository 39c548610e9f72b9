//! Nodes: by what the API server knows of them, and, once they have an agent, by what it finds there.

use super::looked::{Looked, Status};
use crate::{
    cluster::{Cluster, PodName, Resource, is_ready, node_of},
    known::{AGENT, MONITORING},
    problem::Problem,
};
use kube::{ResourceExt, api::DynamicObject};
use serde_json::Value;
use std::collections::BTreeMap;

/// From here on kernels have everything that is needed (docs/kernels.md).
const WHOLE: (u32, u32) = (5, 17);
/// The oldest that a distribution has brought these features to (RHEL 9).
const BACKPORTED: (u32, u32) = (5, 14);
/// Agents that are asked; in a large cluster the others are alike.
const ASKED: usize = 20;

/// Whether nodes are ready, and their kernels new enough.
pub async fn look(cluster: &Cluster) -> Vec<Looked> {
    match cluster.list(Resource::NODE, None, "").await {
        Ok(nodes) => judge(&nodes.unwrap_or_default()),
        // A user of one namespace may not list nodes.
        Err(problem) => vec![Looked::new("nodes", Status::Warning, format!("not looked at: {}", one_line(&problem)))],
    }
}

fn judge(nodes: &[DynamicObject]) -> Vec<Looked> {
    let text = |node: &DynamicObject, pointer: &str| {
        node.data.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let linux: Vec<&DynamicObject> =
        nodes.iter().filter(|node| text(node, "/status/nodeInfo/operatingSystem") != "windows").collect();
    let late: Vec<String> = linux.iter().filter(|node| !node_is_ready(node)).map(|node| node.name_any()).collect();
    let mut out = vec![match late.len() {
        _ if linux.is_empty() => {
            Looked::new("nodes", Status::Error, "the cluster has no Linux node: add one, nothing can run")
        }
        0 => Looked::new("nodes", Status::Ok, format!("{} ready", linux.len())),
        count if count == linux.len() => {
            let message = format!(
                "none of {count} is ready: nothing can be installed until one is; `kubectl describe node {}` says why",
                late.first().map_or("", String::as_str)
            );
            Looked::new("nodes", Status::Error, message)
        }
        _ => Looked::new("nodes", Status::Warning, format!("not ready, and skipped for now: {}", late.join(", "))),
    }];
    // Nodes are mostly alike: one line for each kernel.
    let mut kernels: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in &linux {
        kernels.entry(text(node, "/status/nodeInfo/kernelVersion")).or_default().push(node.name_any());
    }
    out.extend(kernels.iter().map(|(kernel, nodes)| judge_kernel(kernel, nodes)));
    out
}

fn node_is_ready(node: &DynamicObject) -> bool {
    let conditions = node.data.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        let field = |name: &str| condition.get(name).and_then(Value::as_str);
        field("type") == Some("Ready") && field("status") == Some("True")
    })
}

fn judge_kernel(kernel: &str, nodes: &[String]) -> Looked {
    let (what, of) = ("kernel", format!("{kernel} (node {})", nodes.join(", ")));
    let mut parts = kernel.split(['.', '-', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
        return Looked::new(what, Status::Warning, format!("{of}: not a version of Linux that is known"));
    };
    match (major, minor) {
        version if version >= WHOLE => Looked::new(what, Status::Ok, of),
        version if version >= BACKPORTED => {
            let message = format!(
                "{of}: Linux {}.{} is needed, unless the distribution has brought its features here; \
                 `karst-cni check` on the node tells",
                WHOLE.0, WHOLE.1
            );
            Looked::new(what, Status::Warning, message)
        }
        _ => {
            let message = format!(
                "{of} is older than {}.{}: pods there cannot be redirected; upgrade the node's system, or keep the \
                 agent from it (cni's nodeSelector)",
                WHOLE.0, WHOLE.1
            );
            Looked::new(what, Status::Error, message)
        }
    }
}

/// What each agent finds on its node: kernel, bpffs, and whether the CNI plugin is chained.
///
/// # Errors
/// If pods cannot be listed.
pub async fn by_agents(cluster: &Cluster, place: &str) -> Result<Vec<Looked>, Problem> {
    let pods = cluster.pods(place, AGENT).await?;
    let mut out = vec![];
    for pod in pods.iter().filter(|pod| is_ready(pod)).take(ASKED) {
        let (name, node) = (PodName::from(pod), node_of(pod));
        let what = format!("node {node}");
        let tried = match cluster.exec(&name, "", &["karst-cni", "check"]).await {
            Ok(tried) => tried,
            Err(problem) => {
                out.push(Looked::new(what, Status::Warning, format!("not looked at: {}", one_line(&problem))));
                continue;
            }
        };
        let said = if tried.is_success { &tried.stdout } else { &tried.stderr };
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no answer").to_owned();
        let looked = match tried.is_success {
            true => Looked::new(what, Status::Ok, last),
            false => Looked::new(
                what,
                Status::Error,
                format!("{last}; `kubectl -n {place} exec {} -- karst-cni check` has all", name.name),
            ),
        };
        out.push(looked);
        let metrics = cluster.get(&name, MONITORING, "/metrics").await.unwrap_or_default();
        out.extend(judge_metrics(node, &metrics));
    }
    Ok(out)
}

/// What an agent's metrics say that is not as it should be.
fn judge_metrics(node: &str, metrics: &str) -> Vec<Looked> {
    let value = |name: &str| {
        metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_default().trim()
    };
    let mut out = vec![];
    if value("karst_cni_plugin_chained") == "0" {
        let message = "the CNI plugin is not the last of the node's network configuration, so that new pods are \
                       redirected a moment after they start: the network plugin must have a list (*.conflist) in \
                       the directory cniConfDir of chart cni";
        out.push(Looked::new(format!("node {node}: CNI"), Status::Warning, message));
    }
    if value("ztunnel_connected") == "0" {
        let message =
            "its ztunnel is not connected to the agent: pods there cannot join; look at the pod of app=ztunnel";
        out.push(Looked::new(format!("node {node}: ztunnel"), Status::Error, message));
    }
    out
}

/// Without its next step.
fn one_line(problem: &Problem) -> String {
    problem.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, kernel: &str, ready: &str) -> DynamicObject {
        let value = json!({
            "metadata": { "name": name },
            "status": {
                "conditions": [{ "type": "Ready", "status": ready }],
                "nodeInfo": { "kernelVersion": kernel, "operatingSystem": "linux" },
            },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn kernels_are_judged_once_each() {
        let nodes =
            [node("a", "6.1.0-57-cloud", "True"), node("b", "6.1.0-57-cloud", "True"), node("c", "4.18.0", "True")];
        let all = judge(&nodes);
        let told: Vec<(Status, &str)> = all.iter().map(|one| (one.status, one.message.as_str())).collect();
        assert_eq!(told[0], (Status::Ok, "3 ready"));
        assert!(told[1].0 == Status::Error && told[1].1.contains("4.18.0 (node c) is older than 5.17"), "{told:?}");
        assert_eq!(told[2], (Status::Ok, "6.1.0-57-cloud (node a, b)"));
        let status = |kernel: &str| judge_kernel(kernel, &[]).status;
        let kernels = ["5.17.0", "5.14.0-427.el9", "5.10.0", "weird"];
        assert_eq!(kernels.map(status), [Status::Ok, Status::Warning, Status::Error, Status::Warning]);
    }

    #[test]
    fn an_agent_says_what_it_lacks() {
        let told = |text: &str| judge_metrics("n1", text).iter().map(|one| one.status).collect::<Vec<_>>();
        assert_eq!(told("# TYPE ztunnel_connected gauge\nkarst_cni_plugin_chained 1\nztunnel_connected 1\n"), []);
        assert_eq!(told("karst_cni_plugin_chained 0\nztunnel_connected 0\n"), [Status::Warning, Status::Error]);
        assert_eq!(told(""), [], "an older agent does not say");
    }

    #[test]
    fn without_a_ready_node_nothing_can_be_installed() {
        let status = |nodes: &[DynamicObject]| judge(nodes)[0].status;
        assert_eq!(status(&[]), Status::Error);
        assert_eq!(status(&[node("a", "6.1.0", "False")]), Status::Error);
        assert_eq!(status(&[node("a", "6.1.0", "False"), node("b", "6.1.0", "True")]), Status::Warning);
    }
}
