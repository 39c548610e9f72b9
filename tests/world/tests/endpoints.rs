//! Who an endpoint is: what objects write by address is the member there, in a tunnel and with its policies; and those that are
//! about to end serve while there is nobody else.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{
    Options, Pod, PodSpec, World, app, wait_for,
    web::{self, Web},
};
use std::{net::SocketAddr, time::Duration};

const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";
const PATIENCE: Duration = Duration::from_secs(10);

fn works(from: &Pod, to: SocketAddr) -> bool {
    from.connect(to).and_then(|mut s| app::ping(&mut s, MARK)).is_ok()
}

/// A Service without selector, and its slice with this endpoint.
fn service(n: u8, endpoint: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: app}}\nspec: {{clusterIP: 10.96.5.{n}, ports: [{{name: web, port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{n}-x, namespace: app, labels: {{kubernetes.io/service-name: s{n}}}}}\naddressType: IPv4\nendpoints: [{endpoint}]\nports: [{{name: web, port: 9000}}]\n"
    )
}

/// A ServiceEntry with this endpoint, or other words that say which they are; `labels` bind it to a waypoint.
fn entry(namespace: &str, n: u8, labels: &str, port: u16, endpoints: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e{n}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{hosts: [e{n}.test], addresses: [10.97.5.{n}], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}], {endpoints}}}\n"
    )
}

#[test]
fn endpoints_written_by_address_are_members() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("other", true);
    w.namespace("out", false);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let member = w.mesh_pod(PodSpec::new("app", "member", 1));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    w.waypoint("app", "way", 0, &[]);
    // Whoever comes in plaintext, or as somebody else, is refused.
    w.apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: app}\nspec: {mtls: {mode: STRICT}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: member, namespace: app}\nspec: {selector: {matchLabels: {app: member}}, rules: [{from: [{source: {serviceAccounts: [client, way]}}]}]}\n");
    let echo = app::Echo::start(&member, 9000, "");
    let server = Web::named(&member, 8080, "member");
    let _far = app::Echo::start(&outside, 9000, "");
    let (ip, ip6) = (member.ip, member.ip6);
    w.apply("slice", &service(1, &format!("{{addresses: [{ip}]}}")));
    w.apply("slice6", &service(2, &format!("{{addresses: ['{ip6}']}}")).replace("IPv4", "IPv6"));
    w.apply("reference", &service(3, &format!("{{addresses: [{ip}], targetRef: {{kind: Pod, name: member}}}}")));
    w.apply("static", &entry("app", 1, "", 9000, &format!("endpoints: [{{address: {ip}}}]")));
    w.apply("machine", &format!("{}---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: m, namespace: app, labels: {{app: machine}}}}\nspec: {{address: {ip}}}\n", entry("app", 2, "", 9000, "workloadSelector: {labels: {app: machine}}")));
    w.apply(
        "cluster-ip",
        &format!(
            "{}---\n{}",
            service(6, &format!("{{addresses: [{ip}]}}")),
            entry("app", 6, "", 80, "endpoints: [{address: 10.96.5.6}]")
        ),
    );
    let bound = "istio.io/use-waypoint: way";
    w.apply("bound", &entry("app", 3, bound, 8080, &format!("endpoints: [{{address: {ip}}}]")));

    let sniffer = w.sniffer(MARK);
    for (what, to) in [
        ("slice without targetRef", "10.96.5.1:80"),
        ("slice of the other family", "10.96.5.2:80"),
        ("slice with targetRef: its port counts", "10.96.5.3:80"),
        ("ServiceEntry with resolution STATIC", "10.97.5.1:80"),
        ("WorkloadEntry with a pod's address", "10.97.5.2:80"),
        ("ServiceEntry with a Service's address", "10.97.5.6:80"),
    ] {
        let before = sniffer.seen();
        let served = works(&client, to.parse().unwrap());
        let after = sniffer.seen();
        println!("endpoint {what}: served={served} marked={} hbone={}", after.marked, after.hbone - before.hbone);
        assert!(served && after.marked == 0 && after.hbone > before.hbone, "{what}: {after:?}");
    }
    assert_eq!(echo.connections(), 6);
    // The same from a waypoint.
    let path = format!("/{}", std::str::from_utf8(MARK).unwrap());
    let ask = |n: u8| web::ask(&client, ([10, 97, 5, n], 80).into(), &format!("e{n}.test"), &path, &[]).unwrap();
    let before = sniffer.seen();
    assert_eq!(ask(3).text(), "member");
    let after = sniffer.seen();
    assert!(server.count() == 1 && after.marked == 0 && after.hbone > before.hbone, "{after:?}");
    // A waypoint does not call a Service's address, behind which there may be members.
    let reason = |text: &str| {
        let said = || w.log_text("waypoint-way-1.log").contains(text);
        wait_for(text, PATIENCE, || said().then_some(()));
    };
    w.apply("past", &entry("app", 7, bound, 80, "endpoints: [{address: 10.96.5.6}]"));
    assert_eq!(ask(7).status(), 503);
    reason("10.96.5.6 has no usable address");
    // Nobody is led to himself: neither a client, nor a waypoint with its own pages.
    let own = app::Echo::start(&client, 8081, "");
    w.write("self", &entry("app", 8, "", 8081, "endpoints: [{address: 127.0.0.1}]")).unwrap();
    w.apply("pages", &entry("app", 9, bound, 15000, "endpoints: [{address: 127.0.0.1}]"));
    assert!(!works(&client, "10.97.5.8:80".parse().unwrap()));
    assert_eq!((own.connections(), ask(9).status()), (0, 503));
    assert!(w.log_text("controller.log").contains("is a loopback, unspecified, multicast or broadcast address"));
    // Whose policies trust the waypoint is not called by it because another namespace writes its address.
    w.edit("waypoint-app-way", "protocol: HBONE}", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}");
    let theirs = format!("{bound}, istio.io/use-waypoint-namespace: app");
    w.apply("theirs", &entry("other", 4, &theirs, 8080, &format!("endpoints: [{{address: {ip}}}]")));
    assert_eq!(ask(4).status(), 503);
    reason("a member of the mesh in another namespace");
    assert_eq!((server.count(), sniffer.seen().marked), (1, 0));
    // What nobody is known of is spoken to as it is: the sniffer would have seen it.
    w.apply("far", &entry("app", 5, "", 9000, &format!("endpoints: [{{address: {}}}]", outside.ip)));
    assert!(works(&client, "10.97.5.5:80".parse().unwrap()));
    assert!(sniffer.seen().marked > 0);
}

/// KEP-1669, by ztunnel's choice and by a waypoint's.
#[test]
fn those_that_are_about_to_end_serve_while_there_is_nobody_else() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let pods: Vec<Pod> = ["a", "b"].iter().map(|n| w.mesh_pod(PodSpec::new("app", n, 1).label("app", "web"))).collect();
    w.waypoint("app", "way", 0, &[]);
    w.apply("web", "apiVersion: v1\nkind: Service\nmetadata: {name: bytes, namespace: app}\nspec: {clusterIP: 10.96.6.1, selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 9000}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app, labels: {istio.io/use-waypoint: way}}\nspec: {clusterIP: 10.96.6.2, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    let echoes: Vec<_> = pods.iter().map(|p| app::Echo::start(p, 9000, "")).collect();
    let servers: Vec<_> = pods.iter().map(|p| Web::named(p, 8080, &p.spec.name)).collect();
    let (bytes, http): (SocketAddr, SocketAddr) = (([10, 96, 6, 1], 80).into(), ([10, 96, 6, 2], 80).into());
    // What of so many calls each pod has got: connections, then requests; and how many were served.
    let calls = |n: usize| {
        let count = || -> Vec<usize> {
            echoes.iter().map(app::Echo::connections).chain(servers.iter().map(Web::count)).collect()
        };
        let before = count();
        let mut served = 0;
        for _ in 0..n {
            served += usize::from(works(&client, bytes));
            served += usize::from(web::ask(&client, http, "web", "/", &[]).is_ok_and(|a| a.status() == 200));
        }
        let got: Vec<usize> = count().iter().zip(before).map(|(a, b)| a - b).collect();
        println!("ends: served={served}/{} by pod: connections {:?}, requests {:?}", 2 * n, &got[..2], &got[2..]);
        (served, got)
    };
    let end = |name: &str| {
        let file = format!("pod-app-{name}");
        w.edit(&file, "  uid: ", "  deletionTimestamp: '2026-01-01T00:00:00Z'\n  uid: ");
    };
    let (served, got) = calls(20);
    assert!(served == 40 && got.iter().all(|n| *n > 0), "{got:?}");
    end("a");
    assert_eq!(calls(10), (20, vec![0, 10, 0, 10]), "the one that stays serves");
    end("b");
    let (served, got) = calls(20);
    assert!(served == 40 && got.iter().all(|n| *n > 0), "all are about to end: {got:?}");
    // One of them serves no more; then none.
    w.edit("pod-app-a", "status: 'True'", "status: 'False'");
    assert_eq!(calls(10), (20, vec![0, 10, 0, 10]));
    w.edit("pod-app-b", "status: 'True'", "status: 'False'");
    assert_eq!(calls(3), (0, vec![0; 4]));
    wait_for("the reason", PATIENCE, || w.log_text("ztunnel0.log").contains("no healthy upstream").then_some(()));
}
