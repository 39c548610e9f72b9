//! What policies have refused, counted for the metrics page: a series for each caller, destination and policy, at both proxies. The
//! book of flows has more of each (port, method, path), and is for loopback. Series that have not grown for a while are dropped, and
//! their number is bounded.

use crate::{labels::put, series::Index};
use arc_swap::ArcSwap;
use karst_flows::{Decision, Reporter, Seen};
use karst_rt::{
    clock::Instant,
    exposition::{Kind, Page},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Most series; beyond, those that have not grown for the longest time are dropped.
const MAX_SERIES: usize = 2_000;
/// Series that have not grown for this long are dropped, in seconds.
const SERIES_IDLE: u64 = 3600;
const NAME: &str = "karst_policy_refusals_total";

#[derive(Debug)]
struct Series {
    labels: Arc<str>,
    count: AtomicU64,
    /// Seconds after the table began.
    used: AtomicU64,
}

/// What is refused is seldom: its labels are written each time, and are the key, too.
type All = Index<Arc<str>, Arc<str>, Series, MAX_SERIES>;

/// The refusals of a process.
#[derive(Debug)]
pub(crate) struct Refusals {
    all: ArcSwap<All>,
    began: Instant,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { all: ArcSwap::default(), began: Instant::now() }
    }
}

impl Refusals {
    /// Counts a connection or request if a policy has refused it.
    pub(crate) fn note(&self, seen: &Seen<'_>) {
        let policy = match seen.decision {
            Decision::Allowed => return,
            Decision::DeniedBy(policy) => policy,
            Decision::NotAllowed => "-",
        };
        let now = self.now();
        let series = self.series(labels(seen, policy).into(), now);
        series.count.fetch_add(1, Relaxed);
        series.used.store(now, Relaxed);
    }

    fn series(&self, labels: Arc<str>, now: u64) -> Arc<Series> {
        if let Some(series) = self.all.load().known(&labels) {
            return series;
        }
        loop {
            let before = self.all.load_full();
            let mut all = (*before).clone();
            if !all.has_place(&labels) {
                all.evict(|series| series.used.load(Relaxed));
            }
            let new = |labels| Series { labels, count: AtomicU64::new(0), used: AtomicU64::new(now) };
            let series = all.add(labels.clone(), labels.clone(), new);
            let seen = self.all.compare_and_swap(&before, Arc::new(all));
            if Arc::ptr_eq(&seen, &before) {
                return series;
            }
        }
    }

    /// Adds them to the metrics page.
    pub(crate) fn render(&self, page: &mut Page) {
        let now = self.now();
        let is_idle = |series: &Series| now.saturating_sub(series.used.load(Relaxed)) >= SERIES_IDLE;
        self.all.rcu(|all| {
            let mut all = All::clone(all);
            all.sweep(|series| is_idle(series));
            all
        });
        let mut series: Vec<Arc<Series>> = self.all.load().values().cloned().collect();
        series.sort_by(|one, other| one.labels.cmp(&other.labels));
        let help = "Connections (at waypoints and gateways requests, too) that policies have refused.";
        let mut family = page.family(NAME, Kind::Counter, help);
        for one in series {
            family.series(&one.labels, one.count.load(Relaxed));
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }
}

/// Nothing that a caller could invent: its identity is proven, and the rest is of the control plane.
fn labels(seen: &Seen<'_>, policy: &str) -> String {
    let mut out = String::with_capacity(400);
    put(
        &mut out,
        "by",
        match seen.reporter {
            Reporter::Ztunnel => "ztunnel",
            Reporter::Waypoint => "waypoint",
            Reporter::Gateway => "gateway",
        },
    );
    put(&mut out, "source_principal", seen.identity.map_or("", |identity| identity.as_str()));
    put(&mut out, "destination_workload", seen.workload);
    put(&mut out, "destination_workload_namespace", seen.namespace);
    put(&mut out, "destination_service", seen.service.split_once('/').map_or("", |(_, host)| host));
    put(&mut out, "request_protocol", if seen.request.is_some() { "http" } else { "tcp" });
    put(&mut out, "policy", policy);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use karst_core::Identity;
    use karst_flows::Request;
    use std::{net::IpAddr, time::Duration};

    fn seen<'a>(identity: Option<&'a Identity>, decision: Decision<'a>) -> Seen<'a> {
        Seen {
            reporter: Reporter::Ztunnel,
            identity,
            from: IpAddr::from([10, 0, 0, 9]),
            namespace: "shop",
            workload: "reviews-v1",
            service: "shop/reviews.shop.svc.cluster.local",
            to: ([10, 0, 0, 1], 9080).into(),
            pod: "reviews-v1-1",
            request: None,
            decision,
        }
    }

    fn lines(refusals: &Refusals) -> Vec<String> {
        let page = karst_rt::exposition::page(|page| refusals.render(page));
        page.lines().filter(|line| !line.starts_with('#')).map(String::from).collect()
    }

    #[test]
    fn refusals_are_counted_by_caller_destination_and_policy() {
        let refusals = Refusals::default();
        let web = Identity::new("cluster.local", "shop", "web").unwrap();
        let denied = seen(Some(&web), Decision::DeniedBy("shop/no-web"));
        let request = Request { method: "GET", path: "/reviews/7", host: "reviews" };
        let at_waypoint = Seen { reporter: Reporter::Waypoint, workload: "", request: Some(request), ..denied };
        for one in [
            denied,
            // Another port and another of its pods are the same series.
            Seen { to: ([10, 0, 0, 2], 1).into(), pod: "reviews-v1-2", ..denied },
            at_waypoint,
            seen(None, Decision::NotAllowed),
            seen(Some(&web), Decision::Allowed),
        ] {
            refusals.note(&one);
        }
        let line = |by: &str, source: &str, workload: &str, protocol: &str, policy: &str, count: u64| {
            format!(
                "karst_policy_refusals_total{{by=\"{by}\",source_principal=\"{source}\",destination_workload=\"{workload}\",\
                 destination_workload_namespace=\"shop\",destination_service=\"reviews.shop.svc.cluster.local\",\
                 request_protocol=\"{protocol}\",policy=\"{policy}\"}} {count}"
            )
        };
        let identity = web.as_str();
        assert_eq!(
            lines(&refusals),
            [
                line("waypoint", identity, "unknown", "http", "shop/no-web", 1),
                line("ztunnel", identity, "reviews-v1", "tcp", "shop/no-web", 2),
                line("ztunnel", "unknown", "reviews-v1", "tcp", "-", 1),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn series_that_do_not_grow_go_and_their_number_is_bounded() {
        let refusals = Refusals::default();
        let note = |policy: &str| refusals.note(&seen(None, Decision::DeniedBy(policy)));
        note("shop/old");
        tokio::time::advance(Duration::from_secs(SERIES_IDLE / 2)).await;
        note("shop/kept");
        tokio::time::advance(Duration::from_secs(SERIES_IDLE / 2)).await;
        assert!(matches!(&lines(&refusals)[..], [one] if one.contains("shop/kept")), "{:?}", lines(&refusals));
        for n in 0..MAX_SERIES + 10 {
            note(&format!("shop/{n}"));
        }
        let all = lines(&refusals);
        assert!(all.len() <= MAX_SERIES && all.len() > MAX_SERIES * 8 / 10, "{}", all.len());
        assert!(!all.iter().any(|line| line.contains("shop/kept")), "the one that was not used for the longest time");
        assert!(all.iter().any(|line| line.contains(&format!("\"shop/{}\"", MAX_SERIES + 9))), "the newest");
    }
}
