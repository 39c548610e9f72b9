//! What the tutorials do with the book shop's waypoint: routes, faults, mirrors; a Telemetry; sessions.

use crate::{Apps, install_gateway_api, sample};
use karst_e2e::{LONG, Pod, Visits, exercise::Exercise, get, kubectl, try_kubectl, vip, visits};
use karst_world::wait_for;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// The exercises of the tutorials on a waypoint, as their pages have them; and what is to be counted over more requests.
pub fn run(a: &Apps, page: &dyn Fn() -> String, from_sleep: &dyn Fn(&str) -> String) {
    install_gateway_api();
    Exercise::open("shop").after("bookinfo-productpage").finish();
    let shop: SocketAddr = (vip("bookinfo", "productpage"), 9080).into();
    // Stars of so many pages: none, black, red.
    let seen = |n: usize, user: &str| {
        let mut out = [0; 3];
        for _ in 0..n {
            let s = a.client.netns().run(|| TcpStream::connect_timeout(&shop, LONG)).unwrap().unwrap();
            let p = visits::page(s, user).unwrap();
            out[visits::release(&p).unwrap_or_else(|| panic!("{p}"))] += 1;
        }
        out
    };
    let mut releases = Exercise::open("releases");
    let mut shift = |manifest: &str| {
        releases.through(manifest);
        releases.through("stars nobody");
    };
    shift("reviews-v1.yaml");
    assert_eq!(seen(20, ""), [20, 0, 0]);
    shift("reviews-v2-v3.yaml");
    let half = seen(100, "");
    assert!(half[0] == 0 && (30..=70).contains(&half[1]), "{half:?}");
    shift("reviews-90-10.yaml");
    let tenth = seen(200, "");
    assert!((6..=36).contains(&tenth[1]) && tenth[2] == 0, "{tenth:?}");
    releases.finish();
    assert_eq!((seen(10, "jason"), seen(10, "")), ([0, 10, 0], [0, 0, 10]));
    println!("bookinfo with a waypoint: v1 20 of 20, 50/50 {half:?}, 90/10 {tenth:?}, jason black, others red");
    Exercise::open("faults").finish();
    let whole = page();
    assert!(whole.contains("Book Reviews") && !whole.contains("unavailable"), "{whole}");
    Exercise::open("timeouts").finish();
    Exercise::open("breaker").finish();
    // A copy of each request goes to v2, of which the caller sees nothing.
    Exercise::open("mirror").finish();
    wait_for("v1 only", LONG, || (0..4).all(|_| from_sleep("nginx:80/copied").contains("nginx v1")).then_some(()));
    let copies = || {
        let log = kubectl(&["-n", "bookinfo", "logs", "deploy/nginx-v2", "--tail=-1"]);
        log.lines().filter(|l| l.contains("/copied-now")).count()
    };
    for _ in 0..10 {
        assert!(from_sleep("nginx:80/copied-now").contains("nginx v1"));
    }
    wait_for("ten copies", LONG, || (copies() == 10).then_some(()));
    // A waypoint that is replaced loses nothing that it has taken.
    let visits = Visits::start(&a.client.netns(), shop);
    kubectl(&["-n", "bookinfo", "rollout", "restart", "deploy/waypoint"]);
    kubectl(&["-n", "bookinfo", "rollout", "status", "deploy/waypoint", "--timeout=90s"]);
    std::thread::sleep(Duration::from_secs(2));
    let r = visits.end();
    println!("while the waypoint was replaced: {} pages, {} whole, {} failed", r.pages, r.whole, r.failed.len());
    assert!(r.failed.is_empty() && r.whole == r.pages && r.pages > 30, "{:?}", r.failed);
}

/// The waypoint tells what a Telemetry says.
pub fn telemetry() {
    let f = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/exercises/waypoint-telemetry.yaml");
    let ask = |path: &str| {
        let wget = ["/bin/busybox", "wget", "-qO-", &format!("httpbin:8000{path}")];
        let _ = try_kubectl(&[&["-n", "bookinfo", "exec", "deploy/sleep", "--"], &wget[..]].concat());
    };
    let logged = |path: &str| {
        let log =
            kubectl(&["-n", "bookinfo", "logs", "-l", "gateway.networking.k8s.io/gateway-name=waypoint", "--tail=-1"]);
        log.contains(&format!("\"GET {path} HTTP/1.1\""))
    };
    let page = || {
        let pod = Pod::by_label("bookinfo", "gateway.networking.k8s.io/gateway-name=waypoint");
        let s = pod.netns().run(|| TcpStream::connect_timeout(&pod.at(15020), LONG)).unwrap().unwrap();
        karst_world::http::get(s, "/stats/prometheus").unwrap().1
    };
    ask("/ip?before");
    wait_for("all is logged", LONG, || logged("/ip?before").then_some(()));
    kubectl(&["-n", "bookinfo", "apply", "-f", f]);
    wait_for("the host in the metrics", LONG, || {
        ask("/ip?after");
        page().contains("request_host=\"httpbin:8000\"").then_some(())
    });
    ask("/ip?well");
    ask("/status/500?badly");
    wait_for("failures are logged", LONG, || logged("/status/500?badly").then_some(()));
    assert!(!logged("/ip?well") && !page().contains("istio_request_bytes_count{"));
    kubectl(&["-n", "bookinfo", "delete", "-f", f]);
}

/// Clients of a service with Istio's label come back to their pod by a cookie, also through a waypoint that has been replaced: the
/// key is in a Secret.
pub fn sessions(a: &Apps) {
    kubectl(&["-n", "bookinfo", "delete", "-f", &sample("exercises/nginx-mirror.yaml")]);
    kubectl(&["-n", "bookinfo", "label", "service", "nginx", "istio.io/persistent-session=shop"]);
    let nginx: SocketAddr = (vip("bookinfo", "nginx"), 80).into();
    // The release, and the cookie that is told.
    let ask = |cookie: &str| -> Option<(bool, String)> {
        let mut s = a.client.netns().run(|| TcpStream::connect_timeout(&nginx, LONG)).ok()?.ok()?;
        write!(s, "GET / HTTP/1.1\r\nHost: nginx\r\nCookie: a=b; {cookie}\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        s.read_to_string(&mut text).ok()?;
        let told = text.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
        Some((text.contains("nginx v1"), told.unwrap_or_default().to_string()))
    };
    let (is_first, cookie) = wait_for("a cookie", LONG, || ask("").filter(|(_, told)| told.starts_with("shop=")));
    let stays = || (0..10).all(|_| ask(&cookie) == Some((is_first, String::new())));
    assert!(stays());
    let others = (0..30).filter_map(|_| ask("")).filter(|(first, _)| *first != is_first).count();
    assert!(others > 0, "new clients are balanced");
    assert!(get(&["secret", "-n", "istio-system", "karst-session-keys"])["data"]["keys"].is_string());
    kubectl(&["-n", "bookinfo", "rollout", "restart", "deploy/waypoint"]);
    kubectl(&["-n", "bookinfo", "rollout", "status", "deploy/waypoint", "--timeout=90s"]);
    assert!(stays(), "through the new waypoint");
    kubectl(&["-n", "bookinfo", "label", "service", "nginx", "istio.io/persistent-session-"]);
}
