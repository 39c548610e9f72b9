//! Which proxies are looked at, as far as this user may: all, since a connection is told of by the ztunnel of its destination's node,
//! which need not have a pod of the caller's namespace. Where there are too many, those that carry most of a namespace's traffic.

use crate::{
    cluster::{Cluster, PodName, node_of},
    known::GATEWAYS,
    problem::Problem,
};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};

/// Proxies that are looked at by one command.
const MOST: usize = 64;

/// Those that are looked at, and what is not seen for that.
pub(super) struct Proxies {
    pub(super) pods: Vec<PodName>,
    pub(super) notes: Vec<String>,
}

/// The ztunnels of the nodes that have pods of the namespace, the waypoints and gateways, then the other ztunnels. Only of namespaces
/// in which this user may forward ports.
pub(super) async fn find(cluster: &Cluster, scope: Option<&str>) -> Result<Proxies, Problem> {
    let (mut pods, mut far, mut notes, mut refused) = (vec![], vec![], vec![], BTreeSet::new());
    if cluster.may_forward(&cluster.istio_namespace).await? {
        let nodes = nodes(cluster, scope, &mut notes).await;
        for pod in cluster.ztunnels().await? {
            let tier = if nodes.contains(node_of(&pod)) { &mut pods } else { &mut far };
            tier.push(PodName::from(&pod));
        }
    } else {
        refused.insert(cluster.istio_namespace.clone());
        notes.push(
            "ztunnels are not looked at, so no connections are seen, only requests at waypoints and gateways".into(),
        );
    }
    let mut may = BTreeMap::new();
    for pod in gateways(cluster, scope).await? {
        let name = PodName::from(&pod);
        let is_allowed = match may.get(&name.namespace) {
            Some(known) => *known,
            None => {
                let answer = cluster.may_forward(&name.namespace).await?;
                may.insert(name.namespace.clone(), answer);
                answer
            }
        };
        if is_allowed {
            pods.push(name);
        } else {
            refused.insert(name.namespace);
        }
    }
    pods.append(&mut far);
    if pods.is_empty() {
        return Err(none(&refused, scope));
    }
    if !refused.is_empty() {
        notes.push(format!("you may not `create pods/portforward` in namespace {}", list(&refused)));
    }
    if pods.len() > MOST {
        notes.push(format!(
            "{MOST} of {} proxies are looked at, first those of the namespace's nodes; what the others carry is not seen",
            pods.len()
        ));
        pods.truncate(MOST);
    }
    Ok(Proxies { pods, notes })
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// There is a ztunnel ([`Cluster::ztunnels`]): it may not be looked at, nor may any other proxy.
fn none(refused: &BTreeSet<String>, scope: Option<&str>) -> Problem {
    let place = scope.map_or("the mesh".into(), |namespace| format!("namespace {namespace}"));
    let (namespaces, some) = (list(refused), refused.iter().next().cloned().unwrap_or_default());
    Problem::new(format!("the live traffic of {place} may not be looked at"))
        .because(format!("this user may not `create pods/portforward` in namespace {namespaces}"))
        .next(format!(
            "ask the cluster's administrator for this right: `kubectl auth can-i create pods/portforward -n {some}` \
             tries it. In a waypoint's namespace it shows the requests at that waypoint, in the mesh's all connections"
        ))
}

/// The nodes with pods of a namespace; none: they cannot be told.
async fn nodes(cluster: &Cluster, scope: Option<&str>, notes: &mut Vec<String>) -> BTreeSet<String> {
    let Some(namespace) = scope else { return BTreeSet::new() };
    let Ok(pods) = cluster.pods(namespace, "").await else { return BTreeSet::new() };
    if pods.is_empty() {
        notes.push(format!("no pod is running in namespace {namespace}: check its name (-n)"));
    }
    pods.iter().map(|pod| node_of(pod).to_owned()).collect()
}

/// Waypoints and gateways of all namespaces; of one, where this user may not list them all.
async fn gateways(cluster: &Cluster, scope: Option<&str>) -> Result<Vec<Pod>, Problem> {
    match (cluster.pods_of(None, GATEWAYS).await, scope) {
        (Ok(pods), _) => Ok(pods),
        (Err(_), Some(namespace)) => cluster.pods(namespace, GATEWAYS).await,
        (Err(problem), None) => Err(problem),
    }
}
