//! The pages of tasks, line by line, with the book shop and its waypoint; the last that is done with either.

use crate::sample;
use karst_e2e::{apply, kubectl, tasks::Page};

/// Those of the pages besides the book shop's.
const NAMESPACES: &[&str] = &["foo", "bar", "legacy", "shop", "istio-ingress"];
/// What the pages of `shop` name: a workload, its Services, and a pod that calls it.
const SHOP: &str = include_str!("../../manifests/tasks.yaml");
/// Followed, but they change nothing that the others look at.
const ASIDE: &[&str] = &["tasks/dashboard", "tasks/debugging"];
/// It removes the waypoint.
const LAST: &str = "tasks/waypoints";

/// Two readers: one of the pages that change the mesh, another of those that look at it.
pub fn follow() {
    // Those of exercises, and of a run that has failed.
    let delete = ["delete", "namespace", "--ignore-not-found", "--timeout=90s"];
    kubectl(&[&delete[..], NAMESPACES].concat());
    apply(SHOP);
    let (httpbin, sleep) = (sample("manifests/httpbin.yaml"), sample("manifests/sleep.yaml"));
    kubectl(&["-n", "foo", "apply", "-f", &httpbin, "-f", &sleep]);
    for namespace in ["bar", "legacy"] {
        kubectl(&["-n", namespace, "apply", "-f", &sleep]);
    }
    for (namespace, deployment) in
        [("foo", "httpbin"), ("foo", "sleep"), ("bar", "sleep"), ("legacy", "sleep"), ("shop", "web")]
    {
        kubectl(&["-n", namespace, "rollout", "status", &format!("deploy/{deployment}"), "--timeout=60s"]);
    }
    kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod/web-0", "--timeout=60s"]);
    let (last, pages): (Vec<Page>, Vec<Page>) = Page::all().into_iter().partition(|page| page.name() == LAST);
    let changes = |page: &Page| page.is_followed() && !ASIDE.contains(&page.name());
    let (followed, others): (Vec<Page>, Vec<Page>) = pages.into_iter().partition(changes);
    assert!(last.len() == 1 && !followed.is_empty() && !others.is_empty());
    std::thread::scope(|scope| {
        scope.spawn(|| others.iter().for_each(Page::run));
        followed.iter().for_each(Page::run);
    });
    last.iter().for_each(Page::run);
    let delete = ["delete", "namespace", "--ignore-not-found", "--wait=false"];
    kubectl(&[&delete[..], NAMESPACES].concat());
}
