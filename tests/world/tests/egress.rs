//! The way out: a waypoint bound to a ServiceEntry; endpoints by name; TLS that the waypoint speaks to them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{
    Options, Pod, PodSpec, World, app,
    pki::{Ca, indented, secret},
    wait_for,
    web::{self, TlsClient, TlsSession, TlsWeb, Web},
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn v4(p: &Pod) -> Ipv4Addr {
    match p.ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!(),
    }
}

/// `api.example.com`, reached through a waypoint: port 80 becomes TLS at port 8443, port 81 stays plain at 8080.
const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: app, labels: {istio.io/use-waypoint: out}}\nspec: {hosts: [api.example.com], addresses: [10.97.0.1], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}, {number: 81, name: http-plain, protocol: HTTP, targetPort: 8080}]}\n";

struct Way {
    w: World,
    client: Pod,
    outside: Pod,
    conf: std::path::PathBuf,
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.conf);
    }
}

impl Way {
    fn new() -> Self {
        let conf =
            std::env::temp_dir().join(format!("karst-egress-{}-{:?}", std::process::id(), std::thread::current().id()));
        let mut w = World::start(Options::default()).unwrap();
        w.namespace("app", true);
        w.namespace("out", false);
        let client = w.mesh_pod(PodSpec::new("app", "client", 0));
        let member = w.mesh_pod(PodSpec::new("app", "member", 1));
        let (outside, names) = (w.pod(PodSpec::new("out", "outside", 1)), w.pod(PodSpec::new("out", "names", 0)));
        let records = vec![
            ("api.example.com", v4(&outside)),
            ("in.example.com", v4(&member)),
            ("self.example.com", Ipv4Addr::LOCALHOST),
            ("service.example.com", Ipv4Addr::new(10, 96, 3, 1)),
        ];
        app::name_server(&names, records);
        std::fs::write(&conf, format!("nameserver {}\n", names.ip)).unwrap();
        w.apply("entry", ENTRY);
        w.waypoint("app", "out", 1, &[("KARST_RESOLV_CONF", conf.to_str().unwrap())]);
        Self { w, client, outside, conf }
    }

    fn ask(&self, port: u16, path: &str) -> (u16, String) {
        let to: SocketAddr = ([10, 97, 0, 1], port).into();
        let a = web::ask(&self.client, to, "api.example.com", path, &[]).unwrap();
        (a.status(), a.text())
    }

    /// The policy for port 80; then until the answer is this one.
    fn until(&self, tls: &str, want: (u16, &str)) {
        self.w.apply("rule", &format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: app}}\nspec: {{host: api.example.com, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {tls}}}]}}}}\n"));
        let mut last = (0, String::new());
        let end = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < end {
            last = self.ask(80, "/x");
            if last.0 == want.0 && last.1.contains(want.1) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{tls}: {want:?} expected, {last:?} seen");
    }
}

#[test]
fn endpoints_by_name_and_policies_on_the_way_out() {
    let s = Way::new();
    let server = Web::named(&s.outside, 8080, "outside");
    assert_eq!(s.ask(81, "/a"), (200, "outside".into()));
    assert_eq!(server.take()[0].header("host"), "api.example.com");
    // What may leave, and by what route.
    s.w.apply("policy", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: app}\nspec: {targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: api}], action: DENY, rules: [{to: [{operation: {paths: [/secret*]}}]}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: api, namespace: app}\nspec: {hosts: [api.example.com], http: [{match: [{uri: {prefix: /old}, port: 81}], rewrite: {uri: /new}, route: [{destination: {host: api.example.com, port: {number: 81}}}]}, {route: [{destination: {host: api.example.com}}]}]}\n");
    wait_for("the policy", PATIENCE, || (s.ask(81, "/secret/x").0 == 403).then_some(()));
    server.take();
    assert_eq!(s.ask(81, "/old/x").0, 200);
    assert_eq!(server.take()[0].path(), "/new/x");
    // A name that leads to a member of the mesh, and one that leads to the waypoint itself.
    let member = PodSpec::new("app", "member", 1);
    let other = |host: &str, ip: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {}, namespace: app, labels: {{istio.io/use-waypoint: out}}}}\nspec: {{hosts: [{host}], addresses: [{ip}], resolution: DNS, ports: [{{number: 81, name: http, protocol: HTTP, targetPort: 8080}}]}}\n",
            host.replace('.', "-")
        )
    };
    s.w.apply(
        "others",
        &(other("in.example.com", "10.97.0.2")
            + &other("self.example.com", "10.97.0.3")
            + &other("no.example.com", "10.97.0.4")
            + &other("service.example.com", "10.97.0.5")
            + "---\napiVersion: v1\nkind: Service\nmetadata: {name: member, namespace: app}\nspec: {clusterIP: 10.96.3.1, selector: {app: member}, ports: [{port: 8080}]}\n"),
    );
    // Only the waypoint's identity may call the member: it must be spoken to as one.
    s.w.apply("strict", &format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: member, namespace: app}}\nspec: {{selector: {{matchLabels: {{app: {}}}}}, rules: [{{from: [{{source: {{serviceAccounts: [out]}}}}]}}]}}\n", member.name));
    let pods = s.w.pods();
    let member = pods.iter().find(|p| p.spec.name == member.name).unwrap();
    let _member = Web::named(member, 8080, "member");
    let ask = |n: u8, host: &str| web::ask(&s.client, ([10, 97, 0, n], 81).into(), host, "/", &[]).unwrap();
    assert_eq!(ask(2, "in.example.com").text(), "member");
    let refused = [(3, "self.example.com"), (4, "no.example.com"), (5, "service.example.com")];
    assert_eq!(refused.map(|(n, host)| ask(n, host).status()), [503; 3]);
    let log = s.w.log_text("waypoint-out-1.log");
    for said in [
        "self.example.com has no usable address",
        "no.example.com cannot be resolved",
        "service.example.com has no usable address",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
}

#[test]
fn tls_is_originated() {
    let s = Way::new();
    let (ca, clients) = (Ca::new(), Ca::new());
    let _server = TlsWeb::start(&s.outside, 8443, &ca.pair("api.example.com"), None);
    // Without TLS the server answers no HTTP; with public authorities it is not known; it never goes on in plaintext.
    s.until("{mode: DISABLE}", (502, "protocol error"));
    s.until("{mode: SIMPLE}", (503, ""));
    wait_for("the reason", PATIENCE, || s.w.log_text("waypoint-out-1.log").contains("UnknownIssuer").then_some(()));
    // The Secret comes after the rule that names it.
    s.until("{mode: SIMPLE, credentialName: api}", (503, ""));
    let with_ca = |name: &str, pair: &(String, String), ca: &Ca| {
        format!("{}  ca.crt: |\n{}", secret("app", name, pair), indented(&ca.roots()))
    };
    s.w.apply("secret", &with_ca("api", &clients.pair("client"), &ca));
    s.until("{mode: SIMPLE, credentialName: api}", (200, "api.example.com /x alone"));
    // Another name in the hello, and what must be in the certificate.
    s.until("{mode: SIMPLE, credentialName: api, sni: other.example.com}", (503, ""));
    s.until("{mode: SIMPLE, credentialName: api, sni: other.example.com, subjectAltNames: [x.example.com, api.example.com]}", (200, "other.example.com /x alone"));
    s.until("{mode: SIMPLE, credentialName: api, subjectAltNames: [x.example.com]}", (503, ""));
    s.until("{mode: SIMPLE, insecureSkipVerify: true, sni: any.example.com}", (200, "any.example.com /x alone"));
    // A server that wants a certificate: of ours, which only this waypoint is told of.
    drop(_server);
    let _server = TlsWeb::start(&s.outside, 8443, &ca.pair("api.example.com"), Some(&clients.roots()));
    // (With the rules of before, connections of before would do.)
    s.until("{mode: SIMPLE, credentialName: api, subjectAltNames: [api.example.com]}", (503, ""));
    s.until("{mode: MUTUAL, credentialName: api}", (200, "api.example.com /x mutual"));
    s.w.apply("secret", &with_ca("api", &Ca::new().pair("client"), &ca));
    s.until("{mode: MUTUAL, credentialName: api}", (503, ""));
}

/// A wildcard: the host of each request, or the name in the TLS hello, is looked up.
#[test]
fn wildcards_follow_the_name() {
    let s = Way::new();
    s.w.apply("wild", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: app, labels: {istio.io/use-waypoint: out}}\nspec: {hosts: ['*.example.com'], addresses: [10.97.0.9], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS, targetPort: 8443}]}\n");
    let server = Web::named(&s.outside, 8080, "outside");
    let at = |port: u16| -> SocketAddr { ([10, 97, 0, 9], port).into() };
    let ask = |host: &str, path: &str| web::ask(&s.client, at(80), host, path, &[]).unwrap();
    wait_for("the entry", PATIENCE, || (ask("api.example.com", "/a").status() == 200).then_some(()));
    assert_eq!(server.take().pop().unwrap().header("host"), "api.example.com");
    assert_eq!(ask("API.example.com:80", "/a").text(), "outside");
    // Others are not looked up, whatever their addresses; nor is ourselves reached, nor the mesh past its services.
    let refused = [
        "api.other.com",
        "example.com",
        "xexample.com",
        "10.97.0.1",
        "self.example.com",
        "no.example.com",
        "in.example.com",
    ];
    let pods = s.w.pods();
    let member = pods.iter().find(|p| p.spec.name == "member").unwrap();
    let inside = Web::named(member, 8080, "member");
    assert_eq!(refused.map(|h| ask(h, "/").status()), [503; 7]);
    assert_eq!(
        inside.count(),
        0,
        "a member of the mesh is not called with the waypoint's identity because a name leads to it"
    );
    // Routes and policies are for all of its names.
    s.w.apply("policy", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: app}\nspec: {targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: wild}], action: DENY, rules: [{to: [{operation: {paths: [/secret*], ports: ['80']}}]}, {when: [{key: connection.sni, values: [no.example.com]}]}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: wild, namespace: app}\nspec: {hosts: ['*.example.com'], http: [{match: [{uri: {prefix: /old}}], rewrite: {uri: /new}, route: [{destination: {host: '*.example.com'}}]}, {route: [{destination: {host: '*.example.com'}}]}]}\n");
    wait_for("the policy", PATIENCE, || (ask("api.example.com", "/secret").status() == 403).then_some(()));
    server.take();
    assert_eq!(ask("api.example.com", "/old").status(), 200);
    assert_eq!(server.take()[0].path(), "/new");
    // TLS of the client goes through as it is.
    let ca = Ca::new();
    let _tls = TlsWeb::start(&s.outside, 8443, &ca.pair("api.example.com"), None);
    let client = TlsClient::new(ca.roots());
    let open = |sni: &str| TlsSession::new(&s.client, at(443), sni, &client);
    assert_eq!(
        open("api.example.com").unwrap().ask("api.example.com", "/t").unwrap().text(),
        "api.example.com /t alone"
    );
    for sni in ["api.other.com", "self.example.com", "no.example.com"] {
        assert!(open(sni).is_err(), "{sni}");
    }
    // TLS of ours has the name that was asked for.
    s.w.apply("rule", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: wild, namespace: app}\nspec: {host: '*.example.com', trafficPolicy: {tls: {mode: SIMPLE, credentialName: wild}}}\n");
    s.w.apply("secret", &format!("{}  ca.crt: |\n{}", secret("app", "wild", &ca.pair("x")), indented(&ca.roots())));
    s.w.apply("wild-tls", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: tls, namespace: app, labels: {istio.io/use-waypoint: out}}\nspec: {hosts: ['*.com'], addresses: [10.97.0.8], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: tls, namespace: app}\nspec: {host: '*.com', trafficPolicy: {tls: {mode: SIMPLE, credentialName: wild}}}\n");
    let tls = |host: &str| web::ask(&s.client, ([10, 97, 0, 8], 80).into(), host, "/o", &[]).unwrap();
    wait_for("TLS of ours", PATIENCE, || (tls("api.example.com").text() == "api.example.com /o alone").then_some(()));
    assert_eq!(tls("other.example.com").status(), 503, "the certificate has another name");
    // And the client's own is not wrapped once more.
    assert_eq!(
        open("api.example.com").unwrap().ask("api.example.com", "/t").unwrap().text(),
        "api.example.com /t alone"
    );
}

/// Resolution NONE: to the address that was called, by way of the waypoint.
#[test]
fn addresses_are_kept_where_nothing_is_resolved() {
    let s = Way::new();
    let pods = s.w.pods();
    let member = pods.iter().find(|p| p.spec.name == "member").unwrap();
    let inside = Web::named(member, 8080, "member");
    let range = format!("{}/32', '{}/32", s.outside.ip, member.ip);
    s.w.apply("none", &format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: none, namespace: app, labels: {{istio.io/use-waypoint: out}}}}\nspec: {{hosts: [none.example.com], addresses: ['{range}'], location: MESH_EXTERNAL, resolution: NONE, ports: [{{number: 8080, name: http, protocol: HTTP}}]}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: app}}\nspec: {{targetRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: none}}], action: DENY, rules: [{{to: [{{operation: {{paths: [/secret*]}}}}]}}]}}\n"));
    let server = Web::named(&s.outside, 8080, "outside");
    let ask = |path: &str| web::ask(&s.client, s.outside.at(8080), "any.com", path, &[]).unwrap();
    wait_for("the policy", PATIENCE, || (ask("/secret").status() == 403).then_some(()));
    assert_eq!(ask("/x").text(), "outside");
    assert_eq!(server.take().pop().unwrap().header("host"), "any.com");
    // Nor is a member called by its address with the waypoint's identity.
    let a = web::ask(&s.client, member.at(8080), "any.com", "/x", &[]).unwrap();
    assert_eq!((a.status(), inside.count()), (503, 0));
}

/// `connectionPool.http.idleTimeout`: a connection without requests is closed after it.
#[test]
fn idle_connections_are_closed() {
    let s = Way::new();
    let _server = Web::named(&s.outside, 8080, "outside");
    let open = || {
        let all = s.outside.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap()).unwrap();
        // Local port 8080, established.
        all.lines()
            .filter(|l| l.split_whitespace().nth(1).is_some_and(|a| a.ends_with(":1F90")) && l.contains(" 01 "))
            .count()
    };
    assert_eq!((s.ask(81, "/").0, open()), (200, 1), "kept for the next request");
    s.w.apply("rule", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api, namespace: app}\nspec: {host: api.example.com, trafficPolicy: {connectionPool: {http: {idleTimeout: 100ms}}}}\n");
    // (Each worker has connections of its own; what was kept by the old rule stays until it is used again.)
    wait_for("all closed", PATIENCE, || {
        s.ask(81, "/");
        s.ask(81, "/");
        std::thread::sleep(Duration::from_millis(1500));
        (open() == 0).then_some(())
    });
}

/// A TLSRoute of a service: the name in the hello decides.
#[test]
fn names_in_hellos_decide() {
    let mut s = Way::new();
    let ca = Ca::new();
    let mut serve = |name: &str| {
        let p = s.w.mesh_pod(PodSpec::new("app", name, 1).label("app", name));
        TlsWeb::start(&p, 8443, &ca.pair(&format!("{name}.com")), None)
    };
    let (_one, _two) = (serve("one"), serve("two"));
    let service = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: app, labels: {{istio.io/use-waypoint: out}}}}\nspec: {{clusterIP: {ip}, selector: {{app: {name}}}, ports: [{{name: tls, port: 443, targetPort: 8443}}]}}\n---\n"
        )
    };
    s.w.apply("services", &(service("one", "10.96.4.1") + &service("two", "10.96.4.2")));
    let client = TlsClient::new(ca.roots());
    let ask = |sni: &str| {
        let mut t = TlsSession::new(&s.client, ([10, 96, 4, 1], 443).into(), sni, &client)?;
        t.ask(sni, "/").map(|m| m.text())
    };
    wait_for("the service", PATIENCE, || (ask("one.com").ok()? == "one.com / alone").then_some(()));
    assert!(ask("two.com").is_err(), "the certificate has another name");
    s.w.apply("route", "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: two, namespace: app}\nspec: {parentRefs: [{group: '', kind: Service, name: one}], hostnames: [two.com], rules: [{backendRefs: [{name: two, port: 443}]}]}\n");
    wait_for("the route", PATIENCE, || (ask("two.com").ok()? == "two.com / alone").then_some(()));
    assert_eq!(ask("one.com").unwrap(), "one.com / alone");
    // The same by a VirtualService; and what is no TLS is carried as it is.
    s.w.delete("route");
    s.w.apply("vs", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: two, namespace: app}\nspec: {hosts: [one], tls: [{match: [{sniHosts: ['*.two.com', two.com]}], route: [{destination: {host: two}}]}]}\n");
    wait_for("the VirtualService", PATIENCE, || (ask("two.com").ok()? == "two.com / alone").then_some(()));
    assert_eq!(ask("one.com").unwrap(), "one.com / alone");
}

/// `outboundTrafficPolicy: REGISTRY_ONLY`: what the mesh does not know is refused to its members, with a reason in log and metric,
/// and a ServiceEntry opens it. The mode is read live, and one that cannot be read changes nothing.
#[test]
fn registry_only_refuses_what_the_mesh_does_not_know() {
    let file = std::env::temp_dir().join(format!("karst-mesh-{}", std::process::id()));
    // As a ConfigMap's volume does it: whole, and another file.
    let configure = |text: &str| {
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    configure("outboundTrafficPolicy: {mode: ALLOW_ANY}\n");
    let path = file.to_str().unwrap().to_string();
    let env = vec![("MESH_CONFIG_PATH".to_string(), path)];
    let mut w = World::start(Options { ztunnel_env: env, ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (client, member) = (w.mesh_pod(PodSpec::new("app", "client", 0)), w.mesh_pod(PodSpec::new("app", "member", 1)));
    let known = w.pod(PodSpec::new("out", "known", 1));
    let stranger = w.pod(PodSpec::new("out", "stranger", 1));
    // It runs on, and nobody tells of it.
    w.delete("pod-out-stranger");
    let _servers = [&member, &known, &stranger].map(|p| app::Echo::start(p, 8080, ""));
    let works = |from: &Pod, to: &Pod| from.connect(to.at(8080)).and_then(|mut s| app::ping(&mut s, b"egress")).is_ok();
    let all = || [&member, &known, &stranger].map(|to| works(&client, to));
    let mode = |registry_only: f64| {
        wait_for("the mode", PATIENCE, || {
            (w.metric(0, "karst_outbound_registry_only", &[]) == registry_only).then_some(())
        });
    };
    mode(0.0);
    assert_eq!(all(), [true, true, true], "ALLOW_ANY");
    configure("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n");
    mode(1.0);
    let refused = || w.metric(0, "istio_tcp_connections_failed_total", &["response_flags=\"REGISTRY_ONLY\""]);
    assert_eq!(refused(), 0.0);
    assert_eq!(all(), [true, true, false], "REGISTRY_ONLY");
    wait_for("the metric", PATIENCE, || (refused() == 1.0).then_some(()));
    // The log is written a moment after the metric is counted.
    let said = "outboundTrafficPolicy is REGISTRY_ONLY, and the destination is neither a service";
    wait_for("the log", PATIENCE, || w.log_text("ztunnel0.log").contains(said).then_some(()));
    // Who is no member is nobody's business.
    assert!(works(&known, &stranger));
    // What cannot be read changes nothing, and says so.
    configure("outboundTrafficPolicy: {mode: NONE}\n");
    wait_for("the fault", PATIENCE, || (w.metric(0, "karst_mesh_config_current", &[]) == 0.0).then_some(()));
    assert_eq!(all(), [true, true, false], "the last good one");
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: stranger, namespace: app}}\nspec: {{hosts: [stranger.example.com], addresses: [{}], location: MESH_EXTERNAL, resolution: NONE, ports: [{{number: 8080, name: tcp, protocol: TCP}}]}}\n",
        stranger.ip
    );
    w.apply("entry", &entry);
    assert_eq!(all(), [true, true, true], "a ServiceEntry");
    w.delete("entry");
    assert_eq!(all(), [true, true, false], "without it");
    configure("rootNamespace: istio-system\n");
    mode(0.0);
    assert_eq!(all(), [true, true, true], "nothing said");
    let _ = std::fs::remove_file(&file);
}
