//! The book shop of the tutorials, in the mesh from the first pod to the last policy: it is visited all the time, and the other stages
//! are run on it in between.

use crate::{apps, exercises, pages, tasks, ways_in};
use karst_e2e::{LONG, Pod, Visits, apply, exercise::Exercise, get, kubectl, vip, wait_redirected};
use karst_world::wait_for;
use std::{net::SocketAddr, time::Duration};

/// The book shop: four services that call each other by name, enrolled, restarted and scaled while it is visited.
pub fn is_visited_all_the_time() {
    let a = apps();
    // Of a run that has failed.
    kubectl(&["delete", "namespace", "bookinfo", "--ignore-not-found"]);
    let mut guide = Exercise::open("shop");
    guide.through("productpage:9080/productpage");
    // As the tutorials do it.
    let page = || {
        let wget = ["/bin/busybox", "wget", "-qO-", "productpage:9080/productpage"];
        kubectl(&[&["-n", "bookinfo", "exec", "deploy/ratings-v1", "--"], &wget[..]].concat())
    };
    let shop: SocketAddr = (vip("bookinfo", "productpage"), 9080).into();
    let visits = Visits::start(&a.client.netns(), shop);
    guide.through("istio.io/dataplane-mode=ambient");
    let pods = get(&["pods", "-n", "bookinfo"]);
    let names: Vec<String> =
        pods["items"].as_array().unwrap().iter().map(|p| p["metadata"]["name"].as_str().unwrap().into()).collect();
    let pods: Vec<Pod> = names.iter().map(|n| Pod::get("bookinfo", n)).collect();
    wait_redirected(&pods.iter().collect::<Vec<_>>(), true);
    a.mesh(true);
    assert!(page().contains("Book Details"));
    guide.through("bookinfo-productpage");
    drop(guide);
    // Who calls whom is in the logs of ztunnel, by identity.
    let log = kubectl(&["-n", "istio-system", "logs", "-l", "app=ztunnel", "--tail=1000"]);
    for (from, to) in [("productpage", "reviews"), ("productpage", "details"), ("reviews", "ratings")] {
        let hop = |l: &&str| {
            l.contains(&format!("src.identity=\"spiffe://cluster.local/ns/bookinfo/sa/bookinfo-{from}\""))
                && l.contains(&format!("dst.identity=\"spiffe://cluster.local/ns/bookinfo/sa/bookinfo-{to}\""))
        };
        assert!(log.lines().any(|l| hop(&l)), "{from} to {to}");
    }
    // Churn: pods come and go.
    for _ in 0..2 {
        kubectl(&["-n", "bookinfo", "scale", "deploy/reviews-v1", "deploy/details-v1", "--replicas=3"]);
        kubectl(&["-n", "bookinfo", "rollout", "status", "deploy/details-v1", "--timeout=60s"]);
        kubectl(&["-n", "bookinfo", "scale", "deploy/reviews-v1", "deploy/details-v1", "--replicas=1"]);
        std::thread::sleep(Duration::from_secs(3));
    }
    let r = visits.end();
    println!("bookinfo: {} pages, {} whole, stars {:?}, {} failed", r.pages, r.whole, r.stars, r.failed.len());
    assert!(r.failed.is_empty(), "{:?}", r.failed);
    assert!(r.pages > 50 && r.whole == r.pages);
    assert!(r.stars.iter().all(|n| *n > 0), "all three releases of reviews are seen: {:?}", r.stars);
    // The targets of other exercises, and where their requests come from.
    for f in ["httpbin", "sleep", "nginx"] {
        let path = format!("{}/../../samples/manifests/{f}.yaml", env!("CARGO_MANIFEST_DIR"));
        kubectl(&["-n", "bookinfo", "apply", "-f", &path]);
    }
    for d in ["httpbin", "sleep", "nginx-v1", "nginx-v2"] {
        kubectl(&["-n", "bookinfo", "rollout", "status", &format!("deploy/{d}"), "--timeout=60s"]);
    }
    let from_sleep = |url: &str| {
        let wget = ["/bin/busybox", "wget", "-qO-", url];
        kubectl(&[&["-n", "bookinfo", "exec", "deploy/sleep", "--"], &wget[..]].concat())
    };
    let headers: serde_json::Value = serde_json::from_str(&from_sleep("httpbin:8000/headers")).unwrap();
    assert_eq!(headers["headers"]["Host"][0], "httpbin:8000");
    let origin: serde_json::Value = serde_json::from_str(&from_sleep("httpbin:8000/ip")).unwrap();
    assert_eq!(origin["origin"], Pod::by_label("bookinfo", "app=sleep").ip.to_string(), "the caller's own address");
    let welcome: String = (0..20).map(|_| from_sleep("nginx:80/")).collect();
    assert!(welcome.contains("nginx v1") && welcome.contains("nginx v2"), "both releases answer");
    pages::signals(&a);
    pages::past();
    exercises::run(&a, &page, &from_sleep);
    pages::counted_once();
    pages::live_traffic();
    pages::rate_limits();
    pages::tokens();
    exercises::telemetry();
    exercises::sessions(&a);
    ways_in::both(&a);
    pages::external_authorization();
    pages::client_addresses();
    pages::datagrams();
    pages::egress();
    tasks::follow();
    // Only reviews may ask for details; then the page does without.
    apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: details-viewer, namespace: bookinfo}\nspec: {selector: {matchLabels: {app: details}}, action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/bookinfo/sa/bookinfo-reviews]}}]}]}\n",
    );
    wait_for("productpage without details", LONG, || page().contains("Error fetching product details!").then_some(()));
    kubectl(&["delete", "namespace", "bookinfo", "--wait=false"]);
}
