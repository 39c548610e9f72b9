//! Gateways with the real binary: listeners of Gateway API and of Istio, TLS, policies, bytes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{
    Options, Pod, PodSpec, World,
    http2::Browser,
    pki::{Ca, indented, secret},
    wait_for,
    web::{self, Session, TlsClient, TlsSession, TlsWeb, Web},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A gateway on node 0, `shop` with two releases in the mesh on node 1, and a client that is no member.
struct Site {
    w: World,
    gateway: Pod,
    client: Pod,
    v1: Web,
    v2: Web,
}

impl Site {
    fn new(labels: &[(&str, &str)]) -> Self {
        let mut w = World::start(Options::default()).unwrap();
        w.apply("app", "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: edge}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: out}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop-v1, namespace: app}\nspec: {clusterIP: 10.96.1.1, selector: {version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop-v2, namespace: app}\nspec: {clusterIP: 10.96.1.2, selector: {version: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
        let mut release = |v: &str| w.mesh_pod(PodSpec::new("app", &format!("shop-{v}"), 1).label("version", v));
        let (p1, p2) = (release("v1"), release("v2"));
        let (v1, v2) = (Web::named(&p1, 8080, "v1"), Web::named(&p2, 8080, "v2"));
        let client = w.pod(PodSpec::new("out", "client", 1));
        let gateway = w.gateway("edge", "gw", 0, labels);
        Self { w, gateway, client, v1, v2 }
    }

    fn at(&self, port: u16) -> SocketAddr {
        self.gateway.at(port)
    }

    /// Configuration, and until the gateway has these ports open.
    fn apply(&self, name: &str, text: &str, ports: &[u16]) {
        self.w.apply(name, text);
        for p in ports {
            wait_for("the port open", PATIENCE, || self.client.connect(self.at(*p)).ok());
        }
    }

    fn ask(&self, port: u16, host: &str, path: &str) -> web::Message {
        web::ask(&self.client, self.at(port), host, path, &[]).unwrap()
    }

    /// Asks until the answer has this status: what was applied is in force soon.
    fn until(&self, port: u16, host: &str, path: &str, status: u16) -> web::Message {
        wait_for(&format!("{status} for {host}{path}"), PATIENCE, || {
            Some(self.ask(port, host, path)).filter(|a| a.status() == status)
        })
    }
}

const NAMED: (&str, &str) = ("gateway.networking.k8s.io/gateway-name", "gw");

fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: edge}}\nspec: {{gatewayClassName: istio, listeners: {listeners}}}\n"
    )
}

fn route(name: &str, more: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: app}}\nspec: {{parentRefs: [{{name: gw, namespace: edge}}], {more}, rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]}}\n"
    )
}

const ALL: &str = "allowedRoutes: {namespaces: {from: All}}";

#[test]
fn gateway_api_listeners_and_routes() {
    let s = Site::new(&[NAMED]);
    assert!(s.client.connect(s.at(80)).is_err(), "nothing is configured: no port is open");
    // Only the gateway may call v1: what comes is from its identity.
    s.w.apply("only", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: app}\nspec: {selector: {matchLabels: {version: v1}}, rules: [{from: [{source: {principals: [cluster.local/ns/edge/sa/gw]}}]}]}\n");
    let web = |more: &str| {
        gateway(&format!(
            "[{{name: web, port: 80, protocol: HTTP, {ALL}}}, {{name: shop, hostname: '*.shop.com', port: 80, protocol: HTTP, {ALL}}}{more}]"
        ))
    };
    s.apply("gw", &web(""), &[80]);
    assert_eq!(s.ask(80, "any.com", "/").status(), 404, "there is no route");
    s.w.apply("r1", &route("r1", "hostnames: [any.com]", "shop-v1"));
    assert_eq!(s.until(80, "any.com", "/", 200).text(), "v1");
    let m = s.v1.take().remove(0);
    assert_eq!(
        (m.header("host"), m.header("x-forwarded-for"), m.header("x-forwarded-proto")),
        ("any.com", s.client.ip.to_string().as_str(), "http")
    );
    assert_eq!(s.ask(80, "other.com", "/").status(), 404);
    assert_eq!(s.ask(80, "ANY.com:80", "/").status(), 200, "names have no case, and a port does not matter");
    // The narrower listener is for its names, even where its routes have none for them.
    s.w.apply(
        "r2",
        &route("r2", "hostnames: [a.shop.com, b.shop.com]", "shop-v2")
            .replace("namespace: edge}", "namespace: edge, sectionName: shop}"),
    );
    assert_eq!(s.until(80, "a.shop.com", "/", 200).text(), "v2");
    assert_eq!(s.ask(80, "c.shop.com", "/").status(), 404);
    assert_eq!(s.ask(80, "any.com", "/").text(), "v1");
    // A route without names takes those of the listener; one that no listener allows takes nothing.
    s.w.apply(
        "r3",
        &route("r3", "hostnames: []", "shop-v2").replace("namespace: edge}", "namespace: edge, sectionName: web}"),
    );
    assert_eq!(s.until(80, "other.com", "/", 200).text(), "v2");
    s.w.apply("gw", &web("").replace(ALL, "allowedRoutes: {namespaces: {from: Same}}"));
    s.until(80, "any.com", "/", 404);
    // A connection that is kept is asked for anew with each request; a port without listener is closed.
    let mut kept = Session::new(&s.client, s.at(80), "any.com").unwrap();
    assert_eq!(kept.ask("GET", "/", &[], b"").unwrap().status(), 404);
    s.apply("gw", &web(&format!(", {{name: more, port: 8081, protocol: HTTP, {ALL}}}")), &[8081]);
    wait_for("the routes back", PATIENCE, || (kept.ask("GET", "/", &[], b"").unwrap().status() == 200).then_some(()));
    assert_eq!(s.ask(8081, "any.com", "/").text(), "v1");
    s.w.apply("gw", &web(""));
    wait_for("the port closed", PATIENCE, || s.client.connect(s.at(8081)).is_err().then_some(()));
    // Policies of the Gateway: by path, and by the client's address; the TLS hello and principals are not there to allow anything.
    let policy = |rules: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: edge}}\nspec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: gw}}], {rules}}}\n"
        )
    };
    s.w.apply("p", &policy("action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]"));
    assert_eq!(s.until(80, "any.com", "/admin/x", 403).text(), "RBAC: access denied");
    assert_eq!(s.ask(80, "any.com", "/%61dmin").status(), 403);
    assert_eq!(s.ask(80, "any.com", "/x").status(), 200);
    s.w.apply(
        "p",
        &policy(&format!("action: ALLOW, rules: [{{from: [{{source: {{ipBlocks: [{}]}}}}]}}]", s.client.ip)),
    );
    s.until(80, "any.com", "/admin", 200);
    s.w.apply("p", &policy("action: ALLOW, rules: [{from: [{source: {principals: ['*']}}]}]"));
    s.until(80, "any.com", "/", 403);
    s.w.apply("p", &policy("action: NONSENSE, rules: [{}]"));
    assert_eq!(s.ask(80, "any.com", "/").status(), 403, "what is not understood lets nobody in");
    s.w.delete("p");
    s.until(80, "any.com", "/", 200);
    let (_, page) = s.w.waypoint_page(&s.gateway, 15020, "/stats/prometheus").unwrap();
    let line =
        page.lines().find(|l| l.starts_with("istio_requests_total{") && l.contains("response_code=\"200\"")).unwrap();
    for part in [
        "reporter=\"source\"",
        "source_workload=\"gw-1\"",
        "destination_service=\"shop-v",
        "source_principal=\"spiffe://cluster.local/ns/edge/sa/gw\"",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn tls_ends_or_passes() {
    let mut s = Site::new(&[NAMED]);
    let ca = Ca::new();
    let client = TlsClient::new(ca.roots());
    let tls = |name: &str| {
        format!(
            "{{name: {name}, hostname: {name}.com, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: {name}}}]}}, {ALL}}}"
        )
    };
    let first = ca.pair("one.com");
    s.w.apply("secret-one", &secret("edge", "one", &first));
    s.w.apply("secret-two", &secret("edge", "two", &ca.pair("two.com")));
    // A service that ends TLS itself.
    let own = s.w.mesh_pod(PodSpec::new("app", "own", 1).label("app", "own"));
    s.w.apply("own", "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: app}\nspec: {clusterIP: 10.96.1.3, selector: {app: own}, ports: [{name: tls, port: 443, targetPort: 8443}]}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: pass, namespace: app}\nspec: {selector: {gateway.networking.k8s.io/gateway-name: gw}, servers: [{port: {number: 8443, name: tls, protocol: TLS}, hosts: ['*.own.com'], tls: {mode: PASSTHROUGH}}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: pass, namespace: app}\nspec: {hosts: ['*.own.com'], gateways: [pass], tls: [{match: [{sniHosts: [a.own.com]}], route: [{destination: {host: own, port: {number: 443}}}]}]}\n");
    let _tls = TlsWeb::start(&own, 8443, &ca.pair("a.own.com"), None);
    s.apply("gw", &gateway(&format!("[{}, {}]", tls("one"), tls("two"))), &[443, 8443]);
    s.w.apply("r1", &route("r1", "hostnames: [one.com]", "shop-v1"));
    s.w.apply("r2", &route("r2", "hostnames: [two.com]", "shop-v2"));
    let open = |sni: &str| TlsSession::new(&s.client, s.at(443), sni, &client);
    let mut one = open("one.com").unwrap();
    wait_for("the route", PATIENCE, || (one.ask("one.com", "/").unwrap().text() == "v1").then_some(()));
    assert_eq!(s.v1.take().pop().unwrap().header("x-forwarded-proto"), "https");
    assert_eq!(open("two.com").unwrap().ask("two.com", "/").unwrap().text(), "v2");
    let old = TlsClient { old: true, ..client.clone() };
    let mut old = TlsSession::new(&s.client, s.at(443), "two.com", &old).expect("clients of TLS 1.2 come in, too");
    assert_eq!(old.ask("two.com", "/").unwrap().text(), "v2");
    assert_eq!(one.ask("two.com", "/").unwrap().status(), 421, "another listener's name on this connection");
    assert_eq!(one.ask("none.com", "/").unwrap().status(), 404);
    let e = open("none.com").err().expect("no listener matches this name");
    assert!(!e.to_string().contains("certificate"), "{e}");
    assert!(web::ask(&s.client, s.at(443), "one.com", "/", &[]).is_err(), "plaintext is not taken for TLS");
    // Passed through: the application's own certificate is seen, and only for the name that has a route.
    let pass = |sni: &str| TlsSession::new(&s.client, s.at(8443), sni, &client);
    assert_eq!(pass("a.own.com").unwrap().ask("a.own.com", "/").unwrap().text(), "a.own.com / alone");
    assert!(pass("b.own.com").is_err() && pass("own.com").is_err());
    // The same by Gateway API: a listener that passes TLS through, and a TLSRoute by name.
    let passes = format!("{{name: pass, port: 9443, protocol: TLS, tls: {{mode: Passthrough}}, {ALL}}}");
    s.apply("gw", &gateway(&format!("[{}, {}, {passes}]", tls("one"), tls("two"))), &[443, 8443, 9443]);
    s.w.apply("tls-route", "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: own, namespace: app}\nspec: {parentRefs: [{name: gw, namespace: edge, sectionName: pass}], hostnames: ['*.own.com'], rules: [{backendRefs: [{name: own, port: 443}]}]}\n");
    let pass = |sni: &str| TlsSession::new(&s.client, s.at(9443), sni, &client);
    wait_for("the TLSRoute", PATIENCE, || {
        pass("a.own.com").ok()?.ask("a.own.com", "/t").ok().filter(|m| m.text() == "a.own.com /t alone")
    });
    assert!(pass("own.com").is_err() && pass("a.other.com").is_err());
    // A new certificate is shown to who comes next; who is there stays. One that is broken changes nothing.
    let other = Ca::new();
    s.w.apply("secret-one", &secret("edge", "one", &other.pair("one.com")));
    let roots = TlsClient::new(other.roots());
    wait_for("the new certificate", PATIENCE, || TlsSession::new(&s.client, s.at(443), "one.com", &roots).ok());
    assert!(open("one.com").is_err());
    assert_eq!(one.ask("one.com", "/").unwrap().text(), "v1");
    s.w.apply("secret-one", &secret("edge", "one", &(first.0, ca.pair("x.com").1)));
    wait_for("the complaint", PATIENCE, || s.w.log_text("controller.log").contains("Secret edge/one").then_some(()));
    assert_eq!(open("two.com").unwrap().ask("two.com", "/").unwrap().text(), "v2", "the other listener goes on");
}

#[test]
fn istio_gateways_and_virtual_services() {
    let s = Site::new(&[("istio", "ingressgateway")]);
    let ca = Ca::new();
    s.w.apply("secret", &secret("edge", "site", &ca.pair("site.com")));
    s.w.apply("secret-address", &secret("edge", "address", &ca.pair(&s.gateway.ip.to_string())));
    s.w.apply("ca", &format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: site-cacert, namespace: edge}}\nstringData:\n  ca.crt: |\n{}", indented(&ca.roots())));
    // The Gateway is in the application's namespace, as in the tutorials.
    let servers = "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}, {port: {number: 8081, name: plain, protocol: HTTP}, hosts: [site.com], tls: {httpsRedirect: true}}, {port: {number: 443, name: https, protocol: HTTPS}, hosts: [site.com], tls: {mode: SIMPLE, credentialName: site}}, {port: {number: 8443, name: mutual, protocol: HTTPS}, hosts: [site.com], tls: {mode: MUTUAL, credentialName: site, subjectAltNames: [partner.com]}}, {port: {number: 9443, name: any, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: address}}, {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}]";
    s.apply("gw", &format!("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: site, namespace: app}}\nspec: {{selector: {{istio: ingressgateway}}, servers: {servers}}}\n"), &[80, 443, 8081, 8443, 9000]);
    assert_eq!(s.ask(80, "site.com", "/").status(), 404);
    s.w.apply("vs", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: site, namespace: app}\nspec: {hosts: ['*'], gateways: [site], http: [{match: [{uri: {exact: /productpage}}, {uri: {prefix: /static}}], route: [{destination: {host: shop-v1}}]}, {match: [{uri: {prefix: /api}, gateways: [other]}], route: [{destination: {host: shop-v1}}]}, {match: [{uri: {prefix: /v2/}}], rewrite: {uri: /}, route: [{destination: {host: shop-v2, port: {number: 80}}}]}], tcp: [{match: [{port: 9000}], route: [{destination: {host: shop-v2, port: {number: 80}}}]}]}\n");
    assert_eq!(s.until(80, "bookinfo.com", "/productpage", 200).text(), "v1");
    assert_eq!(s.ask(80, "x", "/static/a").text(), "v1");
    assert_eq!(
        (s.ask(80, "x", "/api").status(), s.ask(80, "x", "/").status()),
        (404, 404),
        "for another gateway; for none"
    );
    s.v2.take();
    assert_eq!(s.ask(80, "x", "/v2/y").text(), "v2");
    assert_eq!(s.v2.take()[0].path(), "/y");
    // TLS: redirect, simple, mutual with a name that may come in.
    let a = s.ask(8081, "site.com:8081", "/productpage?q=1");
    assert_eq!((a.status(), a.header("location")), (301, "https://site.com/productpage?q=1"));
    let plain = TlsClient::new(ca.roots());
    let ask = |port: u16, c: &TlsClient| {
        TlsSession::new(&s.client, s.at(port), "site.com", c).and_then(|mut t| t.ask("site.com", "/productpage"))
    };
    assert_eq!(ask(443, &plain).unwrap().text(), "v1");
    assert!(ask(8443, &plain).is_err(), "without a certificate");
    let shows = |pair: (String, String)| TlsClient { own: Some(pair), ..plain.clone() };
    assert_eq!(ask(8443, &shows(ca.pair("partner.com"))).unwrap().text(), "v1");
    assert!(ask(8443, &shows(ca.pair("stranger.com"))).is_err(), "another name");
    assert!(ask(8443, &shows(Ca::new().pair("partner.com"))).is_err(), "signed by somebody else");
    // A client that calls an address names nobody in its hello.
    let own = s.gateway.ip.to_string();
    let mut t = TlsSession::new(&s.client, s.at(9443), &own, &plain).unwrap();
    assert_eq!(t.ask(&own, "/productpage").unwrap().text(), "v1");
    // Bytes.
    assert_eq!(s.ask(9000, "anything", "/").text(), "v2");
    // Routes for calls within the mesh are not for the gateway, and the other way round.
    s.w.apply("vs", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: site, namespace: app}\nspec: {hosts: [shop-v1.app.svc.cluster.local], http: [{directResponse: {status: 418}}]}\n");
    s.until(80, "shop-v1.app.svc.cluster.local", "/", 404);
    // A Secret that is not there: the other servers go on, and the controller says which it is.
    s.w.delete("secret");
    wait_for("the port closed", PATIENCE, || s.client.connect(s.at(443)).is_err().then_some(()));
    assert_eq!(s.ask(80, "x", "/").status(), 404);
    let log = s.w.log_text("controller.log");
    assert!(log.contains("Secret edge/site not found: it must be in the namespace of the gateway's pods"), "{log}");
}

/// A ListenerSet of another namespace adds a host and a port with routes of its own; what the Gateway has it does not get, and what
/// the Gateway allows no more is gone.
#[test]
fn listeners_that_a_set_adds_are_served() {
    let s = Site::new(&[NAMED]);
    let allowing = |from: &str| {
        gateway(&format!("[{{name: web, port: 80, protocol: HTTP, hostname: own.com, {ALL}}}]"))
            .replace("listeners:", &format!("allowedListeners: {{namespaces: {{from: {from}}}}}, listeners:"))
    };
    s.apply("gw", &allowing("All"), &[80]);
    s.w.apply("own", &route("own", "hostnames: []", "shop-v1"));
    s.apply(
        "set",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: more, namespace: app}\nspec: {parentRef: {name: gw, namespace: edge}, listeners: [{name: added, port: 80, protocol: HTTP, hostname: added.com}, {name: taken, port: 80, protocol: HTTP, hostname: own.com}, {name: far, port: 8081, protocol: HTTP}]}\n",
        &[8081],
    );
    s.w.apply(
        "added",
        &route("added", "hostnames: []", "shop-v2")
            .replace("{name: gw, namespace: edge}", "{kind: ListenerSet, name: more}"),
    );
    assert_eq!(s.until(80, "added.com", "/", 200).text(), "v2");
    assert_eq!(s.until(8081, "any.com", "/", 200).text(), "v2");
    assert_eq!(s.until(80, "own.com", "/", 200).text(), "v1", "the Gateway's own comes first");
    s.w.apply("gw", &allowing("None"));
    wait_for("the port closed", PATIENCE, || s.client.connect(s.at(8081)).is_err().then_some(()));
    s.until(80, "added.com", "/", 404);
    assert_eq!(s.ask(80, "own.com", "/").text(), "v1");
}

/// What holds keys is told to the pod that it is for only, whatever another asks for.
#[test]
fn keys_are_told_to_their_gateway_only() {
    let mut s = Site::new(&[NAMED]);
    let ca = Ca::new();
    let pair = ca.pair("one.com");
    s.w.apply("secret-one", &secret("edge", "one", &pair));
    s.apply(
        "gw",
        &gateway(&format!(
            "[{{name: one, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: one}}]}}, {ALL}}}]"
        )),
        &[443],
    );
    let other = s.w.gateway("edge", "other", 1, &[]);
    let page = |p: &Pod| s.w.waypoint_page(p, 15000, "/config_dump/karst").unwrap().1;
    let envoy = s.w.waypoint_page(&s.gateway, 15000, "/config_dump?include_eds=true").unwrap().1;
    assert!(page(&s.gateway).contains("Gateway/edge/gw/one") && envoy.contains("ListenersConfigDump"));
    assert!(
        page(&other).contains("\"listeners\":null") || page(&other).contains("\"listeners\": null"),
        "{}",
        page(&other)
    );
    let key: String = pair.1.lines().nth(1).unwrap().into();
    assert!(!page(&s.gateway).contains(&key) && !envoy.contains(&key), "keys are not shown");
    assert!(!envoy.contains("private_key"), "nor is there a place for one");
}

/// Those who send connections to a gateway hear late that it ends: it goes on to take them for a while.
#[test]
fn a_gateway_that_ends_takes_connections_for_a_while() {
    let mut s = Site::new(&[NAMED]);
    s.apply("gw", &gateway(&format!("[{{name: web, port: 80, protocol: HTTP, {ALL}}}]")), &[80]);
    s.w.apply("r1", &route("r1", "hostnames: [any.com]", "shop-v1"));
    s.until(80, "any.com", "/", 200);
    let (client, at) = (s.client.clone(), s.at(80));
    let visits = std::thread::spawn(move || {
        let mut seen = vec![];
        while let Ok(a) = web::ask(&client, at, "any.com", "/", &[]) {
            seen.push(a.status());
            std::thread::sleep(Duration::from_millis(5));
        }
        seen
    });
    std::thread::sleep(Duration::from_millis(100));
    let before = s.v1.count();
    s.w.stop_waypoint(&s.gateway, libc::SIGTERM);
    let after = s.v1.count() - before;
    let seen = visits.join().unwrap();
    assert!(seen.iter().all(|status| *status == 200), "{seen:?}");
    assert!(after > 20, "only {after} were served after it was told to end");
}

/// As browsers ask for it: by HTTP/2, on the connection of TLS on which they ask for the page (RFC 8441). The application speaks HTTP/1.1;
/// policies see a GET, and one that comes later ends what is open.
#[test]
fn a_browser_opens_a_websocket_on_the_connection_of_its_page() {
    let mut s = Site::new(&[NAMED]);
    let pod = s.w.mesh_pod(PodSpec::new("app", "chat", 1).label("app", "chat"));
    let server = Web::chatting(&pod, 8080);
    let ca = Ca::new();
    s.w.apply("secret", &secret("edge", "chat", &ca.pair("chat.com")));
    s.w.apply("chat", "apiVersion: v1\nkind: Service\nmetadata: {name: chat, namespace: app}\nspec: {clusterIP: 10.96.1.3, selector: {app: chat}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    let listener =
        "{name: chat, hostname: chat.com, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: chat}]}";
    s.apply("gw", &gateway(&format!("[{listener}, {ALL}}}]")), &[443]);
    s.w.apply("route", &route("chat", "hostnames: [chat.com]", "chat"));
    let old = TlsClient::new(ca.roots());
    wait_for("the route", PATIENCE, || {
        let mut session = TlsSession::new(&s.client, s.at(443), "chat.com", &old).ok()?;
        session.ask("chat.com", "/").ok().filter(|a| a.status() == 200)
    });
    server.take();
    let new = TlsClient { http2: true, ..old };
    let connect = || TlsSession::new(&s.client, s.at(443), "chat.com", &new).unwrap();
    let mut session = connect();
    let io = session.raw();
    assert_eq!(io.conn.alpn_protocol(), Some(&b"h2"[..]));
    let mut browser = Browser::open(io, "https", "chat.com", "/chat").unwrap();
    assert!(browser.is_open && browser.page == b"page");
    assert_eq!(browser.echo(b"over").unwrap(), b"over");
    let asked = server.take();
    let upgrade = asked.iter().find(|m| m.path() == "/chat").unwrap();
    assert_eq!(
        (upgrade.line[0].as_str(), upgrade.header("host"), upgrade.header("x-forwarded-proto")),
        ("GET", "chat.com", "https")
    );
    assert_eq!(upgrade.header("x-forwarded-for"), s.client.ip.to_string());
    let deny = |method: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: edge}}\nspec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: gw}}], action: DENY, rules: [{{to: [{{operation: {{methods: [{method}], paths: [/chat]}}}}]}}]}}\n"
        )
    };
    s.w.apply("p", &deny("CONNECT"));
    assert_eq!(browser.echo(b"and").unwrap(), b"and", "to policies it is no CONNECT");
    let mut other = connect();
    assert!(Browser::open(other.raw(), "https", "chat.com", "/chat").unwrap().is_open);
    s.w.apply("p", &deny("GET"));
    browser.ended().unwrap();
    let mut late = connect();
    let late = Browser::open(late.raw(), "https", "chat.com", "/chat").unwrap();
    assert!(!late.is_open && late.page == b"page", "{}", String::from_utf8_lossy(&late.page));
    wait_for("the WebSocket in the metrics", PATIENCE, || {
        let (_, page) = s.w.waypoint_page(&s.gateway, 15020, "/stats/prometheus").ok()?;
        let is_told = |l: &str| l.starts_with("istio_requests_total{") && l.contains("response_code=\"101\"");
        page.lines().any(is_told).then_some(())
    });
}

/// `istio.io/ingress-use-waypoint`: what a gateway sends to a service goes the way of its waypoint.
#[test]
fn requests_go_through_the_waypoint_where_that_is_asked_for() {
    let mut s = Site::new(&[NAMED]);
    let shop = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: shop, namespace: app, labels: {{istio.io/use-waypoint: wp{labels}}}}}\nspec: {{clusterIP: 10.96.1.4, selector: {{version: v1}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
        )
    };
    s.w.apply("shop", &shop(""));
    s.w.apply("mesh", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: mesh, namespace: app}\nspec: {parentRefs: [{group: '', kind: Service, name: shop}], rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-way, value: waypoint}]}}], backendRefs: [{name: shop-v2, port: 80}]}]}\n");
    s.apply("gw", &gateway(&format!("[{{name: web, port: 80, protocol: HTTP, {ALL}}}]")), &[80]);
    s.w.apply("r1", &route("r1", "hostnames: [any.com]", "shop"));
    let waypoint = s.w.waypoint("app", "wp", 1, &[]);
    assert_eq!(s.until(80, "any.com", "/", 200).text(), "v1", "nobody has asked for it");
    s.w.apply("shop", &shop(", istio.io/ingress-use-waypoint: 'true'"));
    wait_for("the way through the waypoint", PATIENCE, || (s.ask(80, "any.com", "/").text() == "v2").then_some(()));
    let m = s.v2.take().remove(0);
    assert_eq!((m.header("x-way"), m.header("x-forwarded-for")), ("waypoint", s.client.ip.to_string().as_str()));
    // The waypoint knows who calls: the gateway.
    let policy = |rule: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: app}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: shop}}], action: DENY, rules: [{rule}]}}\n"
        )
    };
    s.w.apply(
        "p",
        &policy("{from: [{source: {principals: [cluster.local/ns/edge/sa/gw]}}], to: [{operation: {paths: [/no]}}]}"),
    );
    s.until(80, "any.com", "/no", 403);
    assert_eq!(s.ask(80, "any.com", "/").text(), "v2");
    // Without the waypoint nothing goes past it.
    let before = s.v1.count();
    s.w.stop_waypoint(&waypoint, libc::SIGKILL);
    s.until(80, "any.com", "/", 503);
    assert_eq!(s.v1.count(), before);
    s.w.apply("shop", &shop(""));
    wait_for("the way past it", PATIENCE, || (s.ask(80, "any.com", "/").status() == 200).then_some(()));
    assert_eq!(s.ask(80, "any.com", "/no").text(), "v1");
}

/// BackendTLSPolicy: TLS to the endpoints, or nothing.
#[test]
fn backends_are_spoken_to_by_tls() {
    let mut s = Site::new(&[NAMED]);
    let ca = Ca::new();
    let own = s.w.mesh_pod(PodSpec::new("app", "own", 1).label("app", "own"));
    s.w.apply("own", "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: app}\nspec: {clusterIP: 10.96.1.3, selector: {app: own}, ports: [{name: https, port: 80, targetPort: 8443}, {name: other, port: 81, targetPort: 8443}]}\n");
    let server = TlsWeb::start(&own, 8443, &ca.pair("own.com"), None);
    s.apply("gw", &gateway(&format!("[{{name: web, port: 80, protocol: HTTP, {ALL}}}]")), &[80]);
    s.w.apply("r1", &route("r1", "hostnames: [any.com]", "own"));
    // What comes is no HTTP.
    s.until(80, "any.com", "/", 502);
    let policy = |target: &str, validation: &str| {
        s.w.apply("tls", &format!("apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: own, namespace: app}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: own{target}}}], validation: {{{validation}}}}}\n"));
    };
    let answer = |want: (u16, &str)| {
        wait_for(&format!("{want:?}"), PATIENCE, || {
            let a = s.ask(80, "any.com", "/x");
            (a.status() == want.0 && a.text().contains(want.1)).then_some(())
        });
    };
    let refused = |why: &str| {
        answer((503, ""));
        wait_for(why, PATIENCE, || {
            let said =
                s.w.log_text("controller.log") + &s.w.log_text("gateway-gw-1.log") + &s.w.log_text("waypoint-gw-1.log");
            said.contains(why).then_some(())
        });
    };
    // The certificates come after the policy.
    policy("", "hostname: own.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]");
    refused("ConfigMap app/ca not found [KARST-0503]");
    s.w.apply(
        "ca",
        &format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: app}}\ndata:\n  ca.crt: |\n{}",
            indented(&ca.roots())
        ),
    );
    answer((200, "own.com /x alone"));
    // Whose certificate it must be.
    policy("", "hostname: other.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]");
    answer((503, ""));
    policy(
        "",
        "hostname: other.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}], subjectAltNames: [{type: Hostname, hostname: own.com}]",
    );
    answer((200, "other.com /x alone"));
    policy("", "hostname: own.com, wellKnownCACertificates: System");
    refused("UnknownIssuer");
    // For one port only, and for another one.
    policy(", sectionName: other", "hostname: own.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]");
    answer((502, "protocol error"));
    policy(", sectionName: https", "hostname: own.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]");
    answer((200, "own.com /x alone"));
    // A name that is a URI.
    drop(server);
    let _server = TlsWeb::start(&own, 8443, &ca.pair("spiffe://own.com/x"), None);
    policy(
        "",
        "hostname: own.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}], subjectAltNames: [{type: URI, uri: 'spiffe://own.com/y'}]",
    );
    answer((503, ""));
    policy(
        "",
        "hostname: own.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}], subjectAltNames: [{type: URI, uri: 'spiffe://own.com/x'}]",
    );
    answer((200, "own.com /x alone"));
    // What is not understood is no reason to speak without TLS.
    policy("", "hostname: own.com, caCertificateRefs: [{group: '', kind: Thing, name: ca}]");
    refused("unsupported kind \"Thing\": use ConfigMap, Secret or ClusterTrustBundle");
    // Roots of the whole cluster (GEP-5075), which come after the policy, change, and go.
    let bundle = |ca: &Ca| {
        let pem = indented(&ca.roots());
        s.w.apply(
            "bundle",
            &format!(
                "apiVersion: certificates.k8s.io/v1\nkind: ClusterTrustBundle\nmetadata: {{name: 'own.com:roots:v1'}}\nspec:\n  trustBundle: |\n{pem}"
            ),
        );
    };
    policy(
        "",
        "hostname: own.com, caCertificateRefs: [{group: certificates.k8s.io, kind: ClusterTrustBundle, name: 'own.com:roots:v1'}], subjectAltNames: [{type: URI, uri: 'spiffe://own.com/x'}]",
    );
    refused("ClusterTrustBundle own.com:roots:v1 not found [KARST-0503]");
    bundle(&ca);
    answer((200, "own.com /x alone"));
    bundle(&Ca::new());
    answer((503, ""));
    bundle(&ca);
    answer((200, "own.com /x alone"));
    s.w.delete("bundle");
    answer((503, ""));
}

/// ConfigMap `ca` with an authority's certificate.
fn authority(namespace: &str, ca: &Ca) -> String {
    let certificate = indented(&ca.roots());
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: {namespace}}}\ndata:\n  ca.crt: |\n{certificate}"
    )
}

/// Gateway API's client certificates (GEP-91): at a port, in both modes, and changed while they are used.
#[test]
fn clients_of_a_port_show_certificates() {
    let s = Site::new(&[NAMED]);
    let (ca, partners, strangers) = (Ca::new(), Ca::new(), Ca::new());
    s.w.apply("secret-one", &secret("edge", "one", &ca.pair("one.com")));
    s.w.apply("ca", &authority("edge", &partners));
    let asking = |mode: &str| {
        let one = |name: &str, port: u16| {
            format!("{{name: {name}, port: {port}, protocol: HTTPS, tls: {{certificateRefs: [{{name: one}}]}}, {ALL}}}")
        };
        let validation = format!("validation: {{caCertificateRefs: [{{group: '', kind: ConfigMap, name: ca}}]{mode}}}");
        let frontend = format!("frontend: {{default: {{{validation}}}, perPort: [{{port: 8443, tls: {{}}}}]}}");
        gateway(&format!("[{}, {}]", one("asks", 443), one("open", 8443)))
            .replace("listeners:", &format!("tls: {{{frontend}}}, listeners:"))
    };
    s.apply("gw", &asking(""), &[443, 8443]);
    s.w.apply("r1", &route("r1", "hostnames: [one.com]", "shop-v1"));
    let plain = TlsClient::new(ca.roots());
    let shows = |ca: &Ca| TlsClient { own: Some(ca.pair("client.com")), ..plain.clone() };
    let ask = |port: u16, c: &TlsClient| {
        TlsSession::new(&s.client, s.at(port), "one.com", c).and_then(|mut t| t.ask("one.com", "/"))
    };
    let told = || s.v1.take().pop().unwrap().header("x-forwarded-client-cert").to_string();
    let (right, wrong) = (shows(&partners), shows(&strangers));
    wait_for("the route", PATIENCE, || ask(443, &right).ok().filter(|a| a.text() == "v1"));
    assert!(told().ends_with(";DNS=client.com"));
    assert!(ask(443, &plain).is_err() && ask(443, &wrong).is_err());
    assert_eq!(ask(8443, &plain).unwrap().text(), "v1", "of this port nothing is asked");
    // Whatever is shown is taken, and told.
    s.w.apply("gw", &asking(", mode: AllowInsecureFallback"));
    wait_for("the other mode", PATIENCE, || ask(443, &plain).ok());
    assert_eq!(told(), "");
    assert_eq!(ask(443, &wrong).unwrap().text(), "v1");
    assert!(told().ends_with(";DNS=client.com"));
    s.w.apply("gw", &asking(""));
    wait_for("the first mode", PATIENCE, || ask(443, &plain).is_err().then_some(()));
    // Others count.
    s.w.apply("ca", &authority("edge", &strangers));
    wait_for("the other authority", PATIENCE, || ask(443, &wrong).ok());
    assert!(ask(443, &right).is_err());
    // With nobody to tell them apart by, nobody is served there.
    s.w.delete("ca");
    wait_for("the port closed", PATIENCE, || s.client.connect(s.at(443)).is_err().then_some(()));
    assert_eq!(ask(8443, &plain).unwrap().text(), "v1");
    let log = s.w.log_text("controller.log");
    assert!(log.contains("ConfigMap edge/ca not found [KARST-0503]"), "{log}");
}

/// A gateway's own certificate for backends (GEP-3155): shown where a BackendTLSPolicy makes TLS, or nothing is sent.
#[test]
fn a_gateway_shows_backends_its_certificate() {
    let mut s = Site::new(&[NAMED]);
    let (ca, clients) = (Ca::new(), Ca::new());
    let own = s.w.mesh_pod(PodSpec::new("app", "own", 1).label("app", "own"));
    s.w.apply("own", "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: app}\nspec: {clusterIP: 10.96.1.3, selector: {app: own}, ports: [{name: https, port: 80, targetPort: 8443}]}\n");
    let _server = TlsWeb::start(&own, 8443, &ca.pair("own.com"), Some(&clients.roots()));
    s.w.apply("ca", &authority("app", &ca));
    s.w.apply("tls", "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: own, namespace: app}\nspec: {targetRefs: [{group: '', kind: Service, name: own}], validation: {hostname: own.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}\n");
    let plain = gateway(&format!("[{{name: web, port: 80, protocol: HTTP, {ALL}}}]"));
    let with = plain.replace("listeners:", "tls: {backend: {clientCertificateRef: {name: me}}}, listeners:");
    s.apply("gw", &plain, &[80]);
    s.w.apply("r1", &route("r1", "hostnames: [any.com]", "own"));
    s.until(80, "any.com", "/x", 503);
    // The Secret comes after the Gateway that names it.
    s.w.apply("gw", &with);
    wait_for("the reason", PATIENCE, || {
        assert_eq!(s.ask(80, "any.com", "/x").status(), 503);
        let said = "clientCertificateRef: Secret edge/me not found [KARST-0503]";
        let all = s.w.log_text("controller.log") + &s.w.log_text("waypoint-gw-1.log");
        all.contains(said).then_some(())
    });
    s.w.apply("secret-me", &secret("edge", "me", &clients.pair("gw")));
    assert_eq!(s.until(80, "any.com", "/x", 200).text(), "own.com /x mutual");
    s.w.apply("secret-me", &secret("edge", "me", &Ca::new().pair("gw")));
    s.until(80, "any.com", "/x", 503);
    s.w.apply("secret-me", &secret("edge", "me", &clients.pair("gw")));
    s.until(80, "any.com", "/x", 200);
    s.w.apply("gw", &plain);
    s.until(80, "any.com", "/x", 503);
}

/// Who is asked about a listener's requests.
const FILTER: &str = ", filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: authz, namespace: app, port: 8000}, http: {path: /check, allowedHeaders: [x-token], allowedResponseHeaders: [x-user]}}}]}";
const AUTHZ: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: authz, namespace: app}\nspec: {clusterIP: 10.96.1.3, selector: {app: authz}, ports: [{name: http, port: 8000, targetPort: 9000}]}\n";
const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: edge, namespace: app}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}], to: [{group: '', kind: Service, name: authz}]}\n";

/// A listener with these filters, and two without: for the other hosts of its port, and for all hosts of another port.
fn listening(filters: &str) -> String {
    gateway(&format!(
        "[{{name: asked, hostname: '*.asked.com', port: 80, protocol: HTTP, {ALL}{filters}}}, {{name: open, port: 80, protocol: HTTP, {ALL}}}, {{name: far, port: 8081, protocol: HTTP, {ALL}}}]"
    ))
}

/// A site with a provider of authorization in the mesh, which only the gateway may call: it knows anna's token, and nobody else's.
struct Guarded {
    site: Site,
    provider: Web,
    /// It closes connections without an answer.
    is_silent: Arc<AtomicBool>,
}

impl Guarded {
    fn new() -> Self {
        let mut site = Site::new(&[NAMED]);
        let pod = site.w.mesh_pod(PodSpec::new("app", "authz", 1));
        let is_silent = Arc::new(AtomicBool::new(false));
        let silent = is_silent.clone();
        let provider = Web::start(&pod, 9000, move |asked| match asked.header("x-token") {
            _ if silent.load(Relaxed) => (0, vec![], vec![]),
            "anna" => (200, vec![("x-user".into(), "anna".into()), ("x-other".into(), "1".into())], vec![]),
            _ => (401, vec![("x-reason".into(), "token".into())], b"who are you?".to_vec()),
        });
        site.w.apply("only", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: app}\nspec: {selector: {matchLabels: {app: authz}}, rules: [{from: [{source: {principals: [cluster.local/ns/edge/sa/gw]}}]}]}\n");
        assert!(web::ask(&site.client, pod.at(9000), "authz", "/", &[]).is_err(), "only the gateway may ask it");
        site.w.apply("authz", AUTHZ);
        site.w.apply("grant", GRANT);
        // All listeners take this one; the hosts decide which of them a request is for.
        site.w.apply("r1", &route("r1", "hostnames: [a.asked.com, open.com]", "shop-v1"));
        let by_user = "[{matches: [{headers: [{name: x-user, value: anna}]}], backendRefs";
        let by_user = route("r2", "hostnames: [c.asked.com]", "shop-v2").replace("[{backendRefs", by_user);
        site.w.apply("r2", &by_user);
        site.apply("gw", &listening(FILTER), &[80, 8081]);
        Self { site, provider, is_silent }
    }

    /// Asks by a token, as a client that says that it is somebody else.
    fn ask(&self, host: &str, token: &str) -> web::Message {
        let headers = [("x-token", token), ("x-user", "mallory")];
        web::ask(&self.site.client, self.site.at(80), host, "/x", &headers).unwrap()
    }

    fn until(&self, host: &str, token: &str, status: u16) -> web::Message {
        wait_for(&format!("{status} for {token} at {host}"), PATIENCE, || {
            Some(self.ask(host, token)).filter(|a| a.status() == status)
        })
    }

    /// Requests that have come to a backend.
    fn served(&self) -> [usize; 2] {
        [self.site.v1.count(), self.site.v2.count()]
    }

    fn wait_for_log(&self, name: &str, text: &str) {
        wait_for(text, PATIENCE, || self.site.w.log_text(name).contains(text).then_some(()));
    }
}

/// Filters of listeners (GEP-5224): a provider is asked about each request of one listener, and about none of the others'.
#[test]
fn requests_of_a_listener_pass_its_filters() {
    let g = Guarded::new();
    let Guarded { site: s, provider, .. } = &g;
    assert_eq!(g.until("a.asked.com", "anna", 200).text(), "v1");
    let question = provider.take().pop().unwrap();
    assert_eq!(
        (question.path(), question.header("host"), question.header("x-token"), question.header("x-user")),
        ("/check/x", "a.asked.com", "anna", ""),
        "it is told what it may know"
    );
    let seen = s.v1.take().pop().unwrap();
    assert_eq!(
        (seen.path(), seen.header("x-user"), seen.header("x-other")),
        ("/x", "anna", ""),
        "the backend is told what the provider says, and of that what it may know"
    );
    assert_eq!(g.until("c.asked.com", "anna", 200).text(), "v2", "the route is chosen by what the provider says");
    let (asked, served) = (provider.count(), g.served());
    let refused = g.ask("a.asked.com", "eve");
    assert_eq!((refused.status(), refused.text().as_str(), refused.header("x-reason")), (401, "who are you?", "token"));
    // Without a route, too: only who may come in is told that there is none.
    assert_eq!(["eve", "anna"].map(|token| g.ask("b.asked.com", token).status()), [401, 404]);
    assert_eq!((provider.count(), g.served()), (asked + 3, served));
    g.wait_for_log("waypoint-gw-1.log", " 401 UAEX ext_authz_denied ");
    // The other listeners, of this port and of another one.
    assert_eq!(g.until("open.com", "eve", 200).text(), "v1");
    assert_eq!(s.v1.take().pop().unwrap().header("x-user"), "mallory");
    assert_eq!(g.ask("nowhere.com", "eve").status(), 404);
    assert_eq!(s.ask(8081, "a.asked.com", "/").text(), "v1");
    assert_eq!(provider.count(), asked + 3, "about these nobody is asked");
    // On an open connection it is the filters of now that the next request passes.
    let mut kept = Session::new(&s.client, s.at(80), "a.asked.com").unwrap();
    let mut next = |token: &str| kept.ask("GET", "/x", &[("x-token", token)], b"").unwrap().status();
    assert_eq!([next("anna"), next("eve")], [200, 401]);
    s.w.apply("gw", &listening(""));
    wait_for("the filter gone", PATIENCE, || (next("eve") == 200).then_some(()));
    let asked = provider.count();
    assert_eq!([next("anna"), next("eve")], [200, 200]);
    assert_eq!(provider.count(), asked, "nobody is asked any more");
    s.w.apply("gw", &listening(FILTER));
    wait_for("the filter back", PATIENCE, || (next("eve") == 401).then_some(()));
    assert_eq!(next("anna"), 200);
}

/// The provider of a filter is gone, or may not be asked: its listener's requests are answered 500, on open connections, too. A filter
/// that is not understood closes the listener, and the one that would take its requests.
#[test]
fn no_request_gets_past_a_filter_that_has_no_answer() {
    let g = Guarded::new();
    let Guarded { site: s, is_silent, .. } = &g;
    g.until("a.asked.com", "anna", 200);
    let mut kept = Session::new(&s.client, s.at(80), "a.asked.com").unwrap();
    let mut next = |token: &str| kept.ask("GET", "/x", &[("x-token", token)], b"").unwrap().status();
    assert_eq!(next("anna"), 200);
    let mut closed = |why: &str| {
        // What nobody has allowed does not come in meanwhile.
        wait_for(why, PATIENCE, || {
            let status = g.ask("a.asked.com", "eve").status();
            assert!([401, 500].contains(&status), "{why}: {status}");
            (status == 500).then_some(())
        });
        let before = g.served();
        let known = ["a.asked.com", "b.asked.com", "c.asked.com"].map(|host| g.ask(host, "anna").status());
        assert_eq!((known, next("anna"), g.served()), ([500; 3], 500, before), "{why}");
        assert_eq!(g.ask("open.com", "eve").text(), "v1", "{why}: the other listener goes on");
    };
    is_silent.store(true, Relaxed);
    closed("it says nothing");
    is_silent.store(false, Relaxed);
    g.until("a.asked.com", "anna", 200);
    s.w.apply("authz", &AUTHZ.replace("app: authz", "app: nobody"));
    closed("it has no endpoint");
    g.wait_for_log("waypoint-gw-1.log", "filter 0 of the listener: the service has no endpoint that can be used");
    s.w.delete("authz");
    closed("its Service is gone");
    g.wait_for_log("controller.log", "Service app/authz not found [KARST-0307]");
    g.wait_for_log("waypoint-gw-1.log", "filter 0 of the listener cannot be executed");
    s.w.apply("authz", AUTHZ);
    g.until("a.asked.com", "anna", 200);
    s.w.delete("grant");
    closed("nobody grants it");
    g.wait_for_log("controller.log", "reference to Service app/authz is not permitted");
    s.w.apply("gw", &listening(", filters: {requests: [{type: CORS}]}"));
    wait_for("the port closed", PATIENCE, || s.client.connect(s.at(80)).is_err().then_some(()));
    assert_eq!(next("anna"), 404, "nobody listens for it");
    assert_eq!(s.ask(8081, "a.asked.com", "/").text(), "v1", "a listener of another port goes on");
    g.wait_for_log("controller.log", "unsupported filter type");
}
