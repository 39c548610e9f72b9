//! Which proxies are looked at: those that carry traffic of a namespace, as far as this user may.

use crate::{
    cluster::{Cluster, PodName, node_of},
    problem::Problem,
};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};

/// Label of waypoints' and gateways' pods.
const GATEWAYS: &str = "gateway.networking.k8s.io/gateway-name";
/// Proxies that are looked at by one command.
const MOST: usize = 64;

/// Those that are looked at, and what is not seen for that.
pub(super) struct Proxies {
    pub(super) pods: Vec<PodName>,
    pub(super) notes: Vec<String>,
}

/// The ztunnels of the nodes that have pods of the namespace, and the waypoints and gateways; all of them where none is named. Only
/// of namespaces in which this user may forward ports.
pub(super) async fn find(cluster: &Cluster, scope: Option<&str>) -> Result<Proxies, Problem> {
    let (mut pods, mut notes, mut refused) = (vec![], vec![], BTreeSet::new());
    if cluster.may_forward(&cluster.istio_namespace).await? {
        let nodes = nodes(cluster, scope).await?;
        let here = |pod: &&Pod| nodes.as_ref().is_none_or(|nodes| nodes.contains(node_of(pod)));
        pods.extend(cluster.ztunnels().await?.iter().filter(here).map(PodName::from));
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
    if pods.is_empty() {
        return Err(none(&refused, scope));
    }
    if !refused.is_empty() {
        notes.push(format!("you may not `create pods/portforward` in namespace {}", list(&refused)));
    }
    if pods.len() > MOST {
        notes.push(format!(
            "{MOST} of {} proxies are looked at; name a namespace or a pod to see all of its",
            pods.len()
        ));
        pods.truncate(MOST);
    }
    Ok(Proxies { pods, notes })
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn none(refused: &BTreeSet<String>, scope: Option<&str>) -> Problem {
    let place = scope.map_or("the mesh".into(), |namespace| format!("namespace {namespace}"));
    if refused.is_empty() {
        return Problem::new(format!("no proxy carries traffic of {place}"))
            .because("there are no waypoints or gateways, and no ztunnel on a node with its pods")
            .next("check the namespace's name (-n); `karst x describe pod NAME` says whether a pod is in the mesh");
    }
    let (namespaces, some) = (list(refused), refused.iter().next().cloned().unwrap_or_default());
    Problem::new(format!("the live traffic of {place} may not be looked at"))
        .because(format!("this user may not `create pods/portforward` in namespace {namespaces}"))
        .next(format!(
            "ask the cluster's administrator for this right: `kubectl auth can-i create pods/portforward -n {some}` \
             tries it. In a waypoint's namespace it shows the requests at that waypoint, in the mesh's all connections"
        ))
}

/// The nodes with pods of a namespace; None: all nodes, or they cannot be told.
async fn nodes(cluster: &Cluster, scope: Option<&str>) -> Result<Option<BTreeSet<String>>, Problem> {
    let Some(namespace) = scope else { return Ok(None) };
    let pods = cluster.pods(namespace, "").await.unwrap_or_default();
    let nodes: BTreeSet<String> = pods.iter().map(|pod| node_of(pod).to_owned()).collect();
    Ok((!nodes.is_empty()).then_some(nodes))
}

/// Waypoints and gateways of all namespaces; of one, where this user may not list them all.
async fn gateways(cluster: &Cluster, scope: Option<&str>) -> Result<Vec<Pod>, Problem> {
    match (cluster.pods_of(None, GATEWAYS).await, scope) {
        (Ok(pods), _) => Ok(pods),
        (Err(_), Some(namespace)) => cluster.pods(namespace, GATEWAYS).await,
        (Err(problem), None) => Err(problem),
    }
}
