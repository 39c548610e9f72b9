//! What a gateway does for clients beside routing: datagrams, listeners of others, limits, gRPC-Web, compression, TLS as it is asked for.
//! Called by a pod that is no member.

use crate::{shop::serve, table::Table};
use karst_world::{
    Pod, PodSpec, World, app,
    pki::{Ca, secret},
    web::{self, Message, Session, TlsClient, TlsSession, Web},
};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Bytes of a large answer.
const LARGE: usize = 100_000;
const HOST: &str = "quay.example";
const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: stall, namespace: market}
spec: {clusterIP: 10.96.9.1, selector: {version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: names-v1, namespace: market}
spec: {clusterIP: 10.96.9.2, selector: {version: v1}, ports: [{name: dns, port: 53, protocol: UDP, targetPort: 5353}]}
---
apiVersion: v1
kind: Service
metadata: {name: names-v2, namespace: market}
spec: {clusterIP: 10.96.9.3, selector: {version: v2}, ports: [{name: dns, port: 53, protocol: UDP, targetPort: 5353}]}
---
apiVersion: v1
kind: Service
metadata: {name: calls, namespace: market}
spec: {clusterIP: 10.96.9.4, selector: {app: calls}, ports: [{name: grpc-web, port: 90, targetPort: 9090}]}
";
const ROUTES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: stall, namespace: market}
spec:
  parentRefs: [{name: quay, namespace: port}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /karst.samples.v1.Echo}}]
    backendRefs: [{name: calls, port: 90}]
  - backendRefs: [{name: stall, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {name: names, namespace: market}
spec:
  parentRefs: [{name: quay, namespace: port}]
  rules: [{backendRefs: [{name: names-v1, port: 53, weight: 3}, {name: names-v2, port: 53, weight: 1}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: more, namespace: market}
spec: {parentRef: {name: quay, namespace: port}, listeners: [{name: http, port: 8081, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: more, namespace: market}
spec: {parentRefs: [{kind: ListenerSet, name: more}], rules: [{backendRefs: [{name: stall, port: 80}]}]}
";
const ISTIO: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: quay, namespace: market}
spec:
  selector: {istio: quay}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}
  - {port: {number: 8443, name: https, protocol: HTTPS}, hosts: [quay.example], tls: {mode: SIMPLE, credentialName: quay, minProtocolVersion: TLSV1_3}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: stall, namespace: market}
spec: {hosts: ['*'], gateways: [quay], http: [{route: [{destination: {host: stall}}]}]}
";

struct Quay<'a> {
    w: &'a World,
    gateway: Pod,
    client: Pod,
    ca: Ca,
}

impl Quay<'_> {
    fn ask(&self, port: u16, path: &str, headers: &[(&str, &str)]) -> Message {
        web::ask(&self.client, self.gateway.at(port), HOST, path, headers).unwrap_or_default()
    }

    fn post(&self, port: u16, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Message {
        let session = Session::new(&self.client, self.gateway.at(port), HOST);
        session.and_then(|mut s| s.ask("POST", path, headers, body)).unwrap_or_default()
    }

    /// The Gateway of Gateway API, which takes ListenerSets of these namespaces.
    fn take_sets(&self, from: &str) {
        let all = "allowedRoutes: {namespaces: {from: All}}";
        self.w.apply(
            "edge-gateway",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: quay, namespace: port}}\nspec: {{gatewayClassName: istio, allowedListeners: {{namespaces: {{from: {from}}}}}, listeners: [{{name: web, port: 80, protocol: HTTP, {all}}}, {{name: names, port: 53, protocol: UDP, {all}}}]}}\n"
            ),
        );
    }

    /// What applies to the VirtualService.
    fn filter(&self, does: &str) {
        self.w.apply(
            "edge-filter",
            &format!(
                "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: stall, namespace: market}}\nspec: {{targetRefs: [{{group: networking.istio.io, kind: VirtualService, name: stall}}], {does}}}\n"
            ),
        );
    }
}

/// Waits until it holds, for a while.
fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() && Instant::now() < end {
        sleep(Duration::from_millis(20));
    }
}

/// Adds the rows.
pub fn show(w: &mut World, t: &mut Table) {
    t.step("at the edge: another gateway, and a pod outside of the mesh");
    w.namespace("market", true);
    w.namespace("port", false);
    w.apply("edge", SERVICES);
    let stalls = ["v1", "v2"].map(|v| w.mesh_pod(PodSpec::new("market", &format!("stall-{v}"), 1).label("version", v)));
    let _names = [("v1", &stalls[0]), ("v2", &stalls[1])].map(|(name, pod)| app::UdpEcho::start(pod, 5353, name));
    let _stall = Web::start(&stalls[0], 8080, |m| match m.path() {
        "/large" => (200, vec![("content-type".into(), "text/plain".into())], vec![b'a'; LARGE]),
        _ => (200, vec![], b"stall".to_vec()),
    });
    let calls = w.mesh_pod(PodSpec::new("market", "calls", 1).label("app", "calls"));
    let _calls = serve(&calls);
    let client = w.pod(PodSpec::new("port", "visitor", 1));
    let labels = [("gateway.networking.k8s.io/gateway-name", "quay"), ("istio", "quay")];
    let gateway = w.gateway("port", "quay", 0, &labels);
    let q = Quay { w, gateway, client, ca: Ca::new() };
    q.take_sets("None");
    q.w.apply("edge-routes", ROUTES);
    datagrams(&q, t);
    listener_sets(&q, t);
    grpc_web(&q, t);
    limits(&q, t);
    tls(&q, t);
}

fn datagrams(q: &Quay<'_>, t: &mut Table) {
    let socket = || app::datagrams(&q.client, q.gateway.at(53));
    until(|| app::ask(&socket(), "x").is_some());
    let (mut second, mut stay) = (0, 0);
    for _ in 0..80 {
        let socket = socket();
        let answers: Vec<Option<String>> = (0..3).map(|_| app::ask(&socket, "x")).collect();
        stay += usize::from(answers[0].is_some() && answers.iter().all(|a| *a == answers[0]));
        second += usize::from(answers[0].as_deref() == Some("v2 x"));
    }
    t.row(
        "UDP: 80 clients by weights 3:1, three datagrams each",
        "80 stay with their pod, 25 % ± 8 with v2",
        format!("{stay} stay with their pod, {:.0} % with v2", second as f64 / 0.8),
        stay == 80 && (14..=26).contains(&second),
    );
}

fn listener_sets(q: &Quay<'_>, t: &mut Table) {
    let closed = q.client.connect(q.gateway.at(8081)).is_err();
    q.take_sets("All");
    until(|| q.ask(8081, "/", &[]).status() == 200);
    let status = q.ask(8081, "/", &[]).status();
    t.row(
        "a ListenerSet: before its Gateway allows it, and after",
        "closed, then 200",
        format!("{}, then {status}", if closed { "closed" } else { "open" }),
        closed && status == 200,
    );
}

/// A browser's call: its trailers come at the end of the body.
fn grpc_web(q: &Quay<'_>, t: &mut Table) {
    let (path, kind) = ("/karst.samples.v1.Echo/Say", [("content-type", "application/grpc-web+proto")]);
    // A frame of four bytes: the field 1, "hi".
    let call = || q.post(80, path, &kind, b"\0\0\0\0\x04\x0a\x02hi");
    until(|| call().status() == 200);
    let answer = call();
    let text = answer.text().replace(' ', "");
    let (says, ends) = (text.contains("hi"), text.contains("grpc-status:0"));
    t.row(
        "gRPC-Web by HTTP/1.1 to an application of gRPC",
        "200, its answer, status 0 in the body",
        format!(
            "{}, {}, {} in the body",
            answer.status(),
            if says { "its answer" } else { "no answer" },
            if ends { "status 0" } else { "no status" }
        ),
        answer.status() == 200 && says && ends,
    );
}

fn limits(q: &Quay<'_>, t: &mut Table) {
    q.w.apply("edge-secret", &secret("port", "quay", &q.ca.pair(HOST)));
    q.w.apply("edge-istio", ISTIO);
    until(|| q.ask(8080, "/", &[]).status() == 200);
    q.filter("rateLimits: [{requests: 5, per: 1h, keys: [{type: Header, name: x-tenant}]}]");
    // Those without a tenant are one.
    until(|| q.ask(8080, "/", &[]).status() == 429);
    let served = ["a", "b", "c"]
        .map(|tenant| (0..8).filter(|_| q.ask(8080, "/", &[("x-tenant", tenant)]).status() == 200).count());
    t.row(
        "a VirtualService at a gateway: 5 an hour for each of 3 tenants, 8 asked",
        "[5, 5, 5] served",
        format!("{served:?} served"),
        served == [5; 3],
    );
    q.filter("compression: {}, maxRequestBytes: 1000");
    let large = |headers: &[(&str, &str)]| q.ask(8080, "/large", headers);
    until(|| !large(&[("accept-encoding", "gzip")]).header("content-encoding").is_empty());
    let (small, whole) = (large(&[("accept-encoding", "gzip")]), large(&[]));
    t.row(
        "compression of 100 kB: for who takes gzip, and who does not",
        "less than 2 kB by gzip; 100000 bytes",
        format!("{} bytes by {}; {} bytes", small.body.len(), small.header("content-encoding"), whole.body.len()),
        small.header("content-encoding") == "gzip" && small.body.len() < 2000 && whole.body.len() == LARGE,
    );
    let got = [1001, 1000].map(|length| q.post(8080, "/", &[], &vec![b'x'; length]).status());
    t.row(
        "a body of one byte more than maxRequestBytes, and one within",
        "[413, 200]",
        format!("{got:?}"),
        got == [413, 200],
    );
    q.w.delete("edge-filter");
}

fn tls(q: &Quay<'_>, t: &mut Table) {
    let ask = |old: bool| {
        let client = TlsClient { old, ..TlsClient::new(q.ca.roots()) };
        let session = TlsSession::new(&q.client, q.gateway.at(8443), HOST, &client);
        session.and_then(|mut s| s.ask(HOST, "/")).map_or(0, |m| m.status())
    };
    until(|| ask(false) == 200);
    let got = [ask(true), ask(false)];
    t.row(
        "minProtocolVersion TLSV1_3: a client of TLS 1.2, and one of 1.3",
        "refused, 200",
        got.map(|status| if status == 0 { "refused".to_string() } else { status.to_string() }).join(", "),
        got == [0, 200],
    );
}
