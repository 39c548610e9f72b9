//! Reads the proxies, round after round, into what the page shows.

use super::scrape::{ScrapeError, scrape};
use crate::{
    cluster::{Cluster, PodName},
    known::{ADMIN, GATEWAYS, METRICS},
    page::{Reading, Shared, Unread},
    problem::Problem,
};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use karst_flows::Page;
use karst_rt::clock::{Instant, since_epoch};
use karst_topology::{Kind, text};
use kube::ResourceExt;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Pods are listed again after this many rounds, and books of flows are read in every such round.
const LIST_EVERY: u64 = 10;
/// See [`LIST_EVERY`].
const FLOWS_EVERY: u64 = 2;
/// A proxy that has not answered within this time is passed over in this round.
const PATIENCE: Duration = Duration::from_secs(10);
/// Label that says which controller has made a Gateway's pods, and its value for waypoints.
const MANAGED: &str = "gateway.istio.io/managed";
const OF_WAYPOINTS: &str = "istio.io-mesh-controller";

/// How proxies are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the API server, with the right to forward ports: metrics and books of flows.
    Forwarded,
    /// At their own addresses, as Prometheus reads them: metrics, which everybody in the cluster may read. The books are on loopback.
    Direct,
}

impl Way {
    /// A round begins this long after the one before began, or when that has ended. Who reads all day asks less often.
    fn every(self) -> Duration {
        match self {
            Self::Forwarded => Duration::from_secs(2),
            Self::Direct => Duration::from_secs(5),
        }
    }

    /// Proxies that are read at a time: each is a connection of its own through the API server; in a pod, whose memory is limited,
    /// each is a page that is held.
    fn at_once(self) -> usize {
        match self {
            Self::Forwarded => 8,
            Self::Direct => 2,
        }
    }
}

/// A proxy to be read.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pod: PodName,
    /// None: it has none yet.
    address: Option<IpAddr>,
    /// Of a waypoint or gateway: the workload that its pods belong to, and which of both.
    gateway: Option<((String, String), Kind)>,
}

/// All proxies that the user may list: of all namespaces, or only of one where the others are not to be seen.
///
/// # Errors
/// If no ztunnel can be listed, and no gateway either.
pub(super) async fn proxies(cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<Proxy>, Problem> {
    let ztunnels = cluster.ztunnels().await;
    let gateways = match (cluster.pods_of(None, GATEWAYS).await, namespace) {
        (Err(_), Some(namespace)) => cluster.pods(namespace, GATEWAYS).await,
        (listed, _) => listed,
    };
    let (ztunnels, gateways) = match (ztunnels, gateways) {
        (Err(problem), Err(_)) => return Err(problem),
        (Err(problem), Ok(gateways)) if gateways.is_empty() => return Err(problem),
        (ztunnels, gateways) => (ztunnels.unwrap_or_default(), gateways.unwrap_or_default()),
    };
    let proxy = |pod: &Pod, gateway| Proxy { pod: pod.into(), address: address(pod), gateway };
    let all = ztunnels.iter().map(|pod| proxy(pod, None));
    Ok(all.chain(gateways.iter().map(|pod| proxy(pod, Some(gateway(pod))))).collect())
}

fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

/// Its workload has the Gateway's name, or that with the class's; the pod's name tells, without its two random parts.
fn gateway(pod: &Pod) -> ((String, String), Kind) {
    let name = pod.name_any();
    let workload = name.rsplitn(3, '-').nth(2).unwrap_or(&name).to_owned();
    let managed = pod.labels().get(MANAGED).is_some_and(|by| by == OF_WAYPOINTS);
    let kind = if managed { Kind::Waypoint } else { Kind::Gateway };
    ((pod.namespace().unwrap_or_default(), workload), kind)
}

/// Why a page of a proxy was not taken in.
#[derive(Debug, thiserror::Error)]
enum UnreadError {
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
    /// The line that says what has failed: where it is shown, nobody can take the next step.
    #[error("{}", .0.to_string().lines().next().unwrap_or_default())]
    Asked(Problem),
    #[error("its pod has no address yet")]
    NoAddress,
    #[error(transparent)]
    Scraped(ScrapeError),
    #[error(transparent)]
    Text(text::Error),
}

/// What a proxy has answered.
struct Answer {
    namespace: String,
    name: String,
    metrics: Result<String, UnreadError>,
    flows: Option<Result<Page, UnreadError>>,
}

async fn ask(way: Way, cluster: &Cluster, proxy: &Proxy, with_flows: bool) -> Answer {
    let metrics = async {
        let page = async {
            match way {
                Way::Forwarded => cluster.get(&proxy.pod, METRICS, "/metrics").await.map_err(UnreadError::Asked),
                Way::Direct => {
                    let at = SocketAddr::new(proxy.address.ok_or(UnreadError::NoAddress)?, METRICS);
                    scrape(at).await.map_err(UnreadError::Scraped)
                }
            }
        };
        tokio::time::timeout(PATIENCE, page).await.map_err(|_| UnreadError::Late)?
    };
    let flows = async {
        if !with_flows || way == Way::Direct {
            return None;
        }
        let page = tokio::time::timeout(PATIENCE, cluster.page::<Page>(&proxy.pod, ADMIN, "/flows")).await;
        Some(page.map_err(|_| UnreadError::Late).and_then(|page| page.map_err(UnreadError::Asked)))
    };
    let (metrics, flows) = tokio::join!(metrics, flows);
    Answer { namespace: proxy.pod.namespace.clone(), name: proxy.pod.to_string(), metrics, flows }
}

/// Reads until it is dropped. `all`: those that were listed; without any they are listed at once.
pub(super) async fn run(way: Way, cluster: Cluster, namespace: Option<String>, mut all: Vec<Proxy>, shared: Shared) {
    let mut rounds = tokio::time::interval(way.every());
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unlisted = None;
    for round in 0u64.. {
        rounds.tick().await;
        if all.is_empty() || round > 0 && round.is_multiple_of(LIST_EVERY) {
            match proxies(&cluster, namespace.as_deref()).await {
                Ok(listed) => (all, unlisted) = (listed, None),
                Err(problem) => {
                    let (namespace, why) = (cluster.istio_namespace.clone(), problem.to_string());
                    unlisted = Some(Unread { namespace, name: "list of pods".into(), why });
                }
            }
        }
        let began = Instant::now();
        let with_flows = round.is_multiple_of(FLOWS_EVERY);
        let mut reading = Reading::default();
        reading.unread.extend(unlisted.clone());
        let asked = stream::iter(&all).map(|proxy| ask(way, &cluster, proxy, with_flows));
        let mut answers = asked.buffer_unordered(way.at_once());
        // One after the other: the pages of a large mesh together would be gigabytes.
        while let Some(answer) = answers.next().await {
            take(&shared, answer, &mut reading);
        }
        reading.took = began.elapsed().as_millis() as u64;
        end(&shared, &all, reading);
    }
}

fn now() -> u64 {
    since_epoch().as_millis() as u64
}

/// Takes in what a proxy has answered.
fn take(shared: &Shared, Answer { namespace, name, metrics, flows }: Answer, reading: &mut Reading) {
    let (mut state, now) = (shared.borrow_mut(), now());
    let metrics = metrics.and_then(|page| state.topology.read(&name, &page, now).map_err(UnreadError::Text));
    match metrics {
        Ok(()) => reading.read += 1,
        Err(e) => {
            let namespace = namespace.clone();
            reading.unread.push(Unread { namespace, name: name.clone(), why: e.to_string() });
        }
    }
    match flows {
        Some(Ok(page)) => state.topology.read_flows(&name, &page.flows, now),
        Some(Err(e)) => {
            reading.unread.push(Unread { namespace, name: format!("{name}, book of flows"), why: e.to_string() });
        }
        None => {}
    }
}

/// Ends a round: what was taken in is counted, and shown.
fn end(shared: &Shared, all: &[Proxy], reading: Reading) {
    let mut state = shared.borrow_mut();
    state.topology.set_kinds(all.iter().filter_map(|proxy| proxy.gateway.clone()));
    let names: BTreeSet<String> = all.iter().map(|proxy| proxy.pod.to_string()).collect();
    state.topology.keep_proxies(|name| names.contains(name));
    state.topology.settle(now());
    state.reading = reading;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_gateways_pod_tells_its_workload_and_whether_it_is_a_waypoint() {
        let pod = |name: &str, managed: &str| {
            let pod = serde_json::json!({ "metadata": { "name": name, "namespace": "shop", "labels": { MANAGED: managed } } });
            gateway(&serde_json::from_value(pod).unwrap())
        };
        let is = |name: &str, kind| (("shop".to_owned(), name.to_owned()), kind);
        assert_eq!(pod("waypoint-6d5f7c-x2b9k", OF_WAYPOINTS), is("waypoint", Kind::Waypoint));
        assert_eq!(pod("web-istio-6d5f7c-x2b9k", "istio.io-gateway-controller"), is("web-istio", Kind::Gateway));
        assert_eq!(pod("single", ""), is("single", Kind::Gateway));
    }

    #[test]
    fn a_round_is_shown_with_who_could_not_be_read() {
        let shared = Shared::default();
        let name = |name: &str| PodName { namespace: "istio-system".into(), name: name.into() };
        let all = ["a", "b"].map(|pod| Proxy { pod: name(pod), address: None, gateway: None });
        let namespace = || "istio-system".to_owned();
        let answers = [
            Answer {
                namespace: namespace(),
                name: all[0].pod.to_string(),
                metrics: Ok("up 1\n".into()),
                flows: Some(Ok(Page::default())),
            },
            Answer {
                namespace: namespace(),
                name: all[1].pod.to_string(),
                metrics: Ok("no metrics".into()),
                flows: Some(Err(UnreadError::Asked(Problem::new("404").next("x")))),
            },
        ];
        let mut reading = Reading { took: 7, ..Reading::default() };
        answers.into_iter().for_each(|answer| take(&shared, answer, &mut reading));
        end(&shared, &all, reading);
        let state = shared.borrow();
        assert_eq!((state.reading.read, state.reading.took), (1, 7));
        let why: Vec<&str> = state.reading.unread.iter().map(|one| one.why.as_str()).collect();
        assert_eq!(why, ["line 1 of the metrics page: no number after the labels", "404"]);
    }
}
