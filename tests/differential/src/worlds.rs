//! Small meshes by chance, and calls in them: policies, routes, waypoints, ports and endpoints, such that each decides now and
//! then, and some of them broken.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

/// Who calls, as the objects have them: name as `karst explain` takes it, address, namespace and account.
pub const CALLERS: [(&str, &str, &str, &str); 4] = [
    ("pod/caller.client", "10.1.0.1", "client", "caller"),
    ("pod/batch.client", "10.1.0.2", "client", "batch"),
    ("pod/stranger.plain", "10.2.0.1", "plain", "stranger"),
    ("203.0.113.9", "203.0.113.9", "", ""),
];
/// What is called: name, address.
pub const CALLED: [(&str, &str); 6] = [
    ("web.shop", "10.96.0.1"),
    ("web.shop", "10.96.0.1"),
    ("other.shop", "10.96.0.3"),
    ("pod/web-1.shop", "10.0.0.1"),
    ("198.51.100.7", "198.51.100.7"),
    ("10.96.0.9", "10.96.0.9"),
];
/// Which of [`CALLED`] is the gateway.
pub const AT_GATEWAY: usize = 5;
/// The gateway: namespace, pod, account.
pub const GATEWAY: [&str; 3] = ["shop", "front-1", "front"];
/// Its pod's address.
pub const GATEWAY_IP: &str = "10.0.0.60";
/// The waypoint: namespace, pod, account.
pub const WAYPOINT: [&str; 3] = ["shop", "w-1", "w"];

/// A call.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which of [`CALLERS`].
    pub caller: usize,
    /// Which of [`CALLED`].
    pub called: usize,
    /// Port.
    pub port: u16,
    /// Method.
    pub method: &'static str,
    /// Path.
    pub path: &'static str,
    /// A header.
    pub header: Option<(&'static str, &'static str)>,
    /// The host of the request.
    pub host: &'static str,
}

fn one<T: Clone>(random: &mut StdRng, all: &[T]) -> T {
    all.choose(random).unwrap_or(&all[0]).clone()
}

/// A call.
pub fn question(random: &mut StdRng) -> Question {
    let called = random.random_range(0..CALLED.len());
    let at_gateway = ["shop.example.com", "shop.example.com", "api.example.com", "elsewhere.org"];
    Question {
        host: if called == AT_GATEWAY { one(random, &at_gateway) } else { "web.shop.svc.cluster.local" },
        caller: one(random, &[0, 0, 0, 1, 1, 2, 3]),
        called,
        port: one(random, &[80, 80, 80, 80, 81, 82, 99]),
        method: one(random, &["GET", "GET", "POST"]),
        path: one(random, &["/", "/a", "/a/b", "/b", "/%61"]),
        header: random.random_bool(0.3).then(|| ("x-role", one(random, &["admin", "guest"]))),
    }
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn pod(name: &str, namespace: &str, account: &str, ip: &str, labels: Value, is_ready: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": { "nodeName": "n", "serviceAccountName": account },
        "status": {
            "phase": "Running", "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }],
        },
    })
}

fn service(name: &str, ip: &str, labels: Value, selector: Value, ports: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "labels": labels },
        "spec": { "clusterIP": ip, "selector": selector, "ports": ports },
    })
}

/// A world.
pub fn world(random: &mut StdRng) -> Vec<Value> {
    let ambient = json!({ "istio.io/dataplane-mode": "ambient" });
    let shop = if random.random_bool(0.9) { ambient.clone() } else { json!({}) };
    let client = if random.random_bool(0.9) { ambient } else { json!({}) };
    let mut all = vec![
        namespace("istio-system", json!({})),
        namespace("shop", shop),
        namespace("client", client),
        namespace("plain", json!({})),
        pod("caller", "client", "caller", "10.1.0.1", json!({ "app": "caller" }), true),
        pod("batch", "client", "batch", "10.1.0.2", json!({ "app": "batch" }), true),
        pod("stranger", "plain", "stranger", "10.2.0.1", json!({}), true),
    ];
    for number in 1..=3 {
        let version = one(random, &["v1", "v1", "v2"]);
        let app = if random.random_bool(0.9) { "web" } else { "wep" };
        let labels = json!({ "app": app, "version": version });
        let (name, ip) = (format!("web-{number}"), format!("10.0.0.{number}"));
        all.push(pod(&name, "shop", "web", &ip, labels, random.random_bool(0.85)));
    }
    all.push(pod("other-1", "shop", "other", "10.0.0.9", json!({ "app": "other" }), random.random_bool(0.8)));
    let has_waypoint = random.random_bool(0.65);
    let bound = if has_waypoint { json!({ "istio.io/use-waypoint": "w" }) } else { json!({}) };
    let http = one(random, &["http", "http", "http-web", "tcp", "web"]);
    let ports = json!([
        { "name": http, "port": 80, "targetPort": 8080 },
        { "name": "tcp", "port": 81, "targetPort": 8081 },
        { "name": "odd", "port": 82, "targetPort": one(random, &[json!(8082), json!("named")]) },
    ]);
    let selector = if random.random_bool(0.93) { json!({ "app": "web" }) } else { json!({ "app": "nothing" }) };
    all.push(service("web", "10.96.0.1", bound, selector, ports));
    let port = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
    all.push(service("other", "10.96.0.3", json!({}), json!({ "app": "other" }), port));
    waypoint(random, &mut all);
    gateway(random, &mut all);
    settings(random, &mut all);
    for number in 0..random.random_range(0..4) {
        all.push(policy(random, number));
    }
    for number in 0..random.random_range(0..3) {
        all.push(peer(random, number));
    }
    match random.random_range(0..4) {
        0 => (0..random.random_range(1..3)).for_each(|number| all.push(http_route(random, number))),
        1 => virtual_service(random, &mut all),
        2 if random.random_bool(0.5) => all.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1alpha2", "kind": "TCPRoute",
            "metadata": { "name": "tcp", "namespace": "shop" },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "web", "port": 81 }],
                "rules": [{ "backendRefs": [{ "name": one(random, &["other", "web", "missing"]), "port": 80 }] }],
            },
        })),
        _ => {}
    }
    all
}

fn waypoint(random: &mut StdRng, all: &mut Vec<Value>) {
    let status = match random.random_bool(0.95) {
        true => json!({ "addresses": [{ "type": "IPAddress", "value": "10.96.0.2" }] }),
        false => json!({}),
    };
    all.push(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "w", "namespace": "shop" },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
        "status": status,
    }));
    let labels = json!({
        "gateway.networking.k8s.io/gateway-name": "w", "networking.istio.io/tunnel": "http",
        "istio.io/dataplane-mode": "none",
    });
    all.push(pod("w-1", "shop", "w", "10.0.0.50", labels, random.random_bool(0.93)));
    let own = json!({ "gateway.networking.k8s.io/managed": "istio.io-mesh-controller" });
    let selector = json!({ "gateway.networking.k8s.io/gateway-name": "w" });
    let ports = json!([{ "name": "mesh", "port": 15008, "appProtocol": "hbone" }]);
    all.push(service("w", "10.96.0.2", own, selector, ports));
}

/// A gateway at the mesh's border, and routes for it.
fn gateway(random: &mut StdRng, all: &mut Vec<Value>) {
    let listener = |random: &mut StdRng, number: usize| {
        let hosts = [json!(null), json!("*.example.com"), json!("shop.example.com"), json!("api.example.com")];
        let mut out = json!({ "name": format!("l{number}"), "port": one(random, &[80, 80, 81]), "protocol": "HTTP" });
        let host = one(random, &hosts);
        if !host.is_null() {
            out["hostname"] = host;
        }
        out
    };
    let listeners: Vec<Value> = (0..random.random_range(1..3)).map(|number| listener(random, number)).collect();
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": { "name": "istio" },
        "spec": { "controllerName": "istio.io/gateway-controller" },
    });
    all.push(class);
    all.push(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "front", "namespace": "shop" },
        "spec": { "gatewayClassName": "istio", "listeners": listeners },
    }));
    let name = json!({ "gateway.networking.k8s.io/gateway-name": "front" });
    let mut labels = name.clone();
    labels["istio.io/dataplane-mode"] = json!("none");
    all.push(pod(GATEWAY[1], "shop", GATEWAY[2], GATEWAY_IP, labels, random.random_bool(0.95)));
    let ports = json!([
        { "name": "http", "port": 80, "targetPort": 80 },
        { "name": "more", "port": 81, "targetPort": 81 },
        { "name": "nothing", "port": 82, "targetPort": 82 },
    ]);
    all.push(service("front-istio", "10.96.0.9", json!({}), name, ports));
    for number in 0..random.random_range(0..3) {
        let mut route = http_route(random, number);
        route["metadata"]["name"] = format!("g{number}").into();
        let mut parent = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "front" });
        if random.random_bool(0.3) {
            parent["sectionName"] = one(random, &["l0", "l1", "lost"]).into();
        }
        route["spec"]["parentRefs"] = json!([parent]);
        if random.random_bool(0.5) {
            route["spec"]["hostnames"] =
                json!([one(random, &["shop.example.com", "*.example.com", "api.example.com"])]);
        }
        all.push(route);
    }
}

/// What is only named: limits that no test reaches.
fn settings(random: &mut StdRng, all: &mut Vec<Value>) {
    if random.random_bool(0.3) {
        all.push(json!({
            "apiVersion": "karst.io/v1alpha1", "kind": "HTTPFilter",
            "metadata": { "name": "limit", "namespace": "shop" },
            "spec": {
                "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }],
                "rateLimits": [{ "requests": 1_000_000, "per": "1s" }],
            },
        }));
    }
    if random.random_bool(0.3) {
        let pool = json!({ "http": { "http1MaxPendingRequests": 1000 } });
        all.push(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": { "name": "breaker", "namespace": "shop" },
            "spec": { "host": "other.shop.svc.cluster.local", "trafficPolicy": { "connectionPool": pool } },
        }));
    }
}

fn source(random: &mut StdRng) -> Value {
    match random.random_range(0..6) {
        0 => json!({ "principals": ["cluster.local/ns/client/sa/caller"] }),
        1 => json!({ "principals": ["cluster.local/ns/shop/sa/w"] }),
        2 => json!({ "namespaces": [one(random, &["client", "shop", "plain"])] }),
        3 => json!({ "notPrincipals": ["cluster.local/ns/client/sa/batch"] }),
        4 => json!({ "ipBlocks": [one(random, &["10.1.0.0/16", "203.0.113.0/24", "10.0.0.50/32"])] }),
        _ => json!({ "principals": ["*"] }),
    }
}

fn operation(random: &mut StdRng) -> Value {
    match random.random_range(0..5) {
        0 => json!({ "ports": [one(random, &["80", "8080", "81", "8081"])] }),
        1 => json!({ "methods": [one(random, &["GET", "POST"])] }),
        2 => json!({ "paths": [one(random, &["/a", "/a*", "/b", "*"])] }),
        3 => json!({ "notPaths": ["/b"], "methods": ["GET"] }),
        // A template that cannot be read closes.
        _ if random.random_bool(0.1) => json!({ "paths": ["/user/{id}"] }),
        _ => json!({ "hosts": [one(random, &["web.shop*", "elsewhere"])] }),
    }
}

fn policy(random: &mut StdRng, number: usize) -> Value {
    let rule = |random: &mut StdRng| {
        let mut out = json!({});
        if random.random_bool(0.7) {
            out["from"] = json!([{ "source": source(random) }]);
        }
        if random.random_bool(0.5) {
            out["to"] = json!([{ "operation": operation(random) }]);
        }
        if random.random_bool(0.1) {
            out["when"] = json!([{ "key": "request.headers[x-role]", "values": ["admin"] }]);
        }
        out
    };
    let rules: Vec<Value> = (0..random.random_range(0..3)).map(|_| rule(random)).collect();
    let mut spec = json!({ "action": one(random, &["ALLOW", "ALLOW", "DENY"]), "rules": rules });
    let gateway = "gateway.networking.k8s.io";
    match random.random_range(0..5) {
        0 | 1 => spec["targetRefs"] = json!([{ "group": "", "kind": "Service", "name": "web" }]),
        2 => {
            let name = one(random, &["w", "w", "front"]);
            spec["targetRefs"] = json!([{ "group": gateway, "kind": "Gateway", "name": name }]);
        }
        3 => spec["selector"] = json!({ "matchLabels": { "app": one(random, &["web", "other"]) } }),
        _ => {}
    }
    let namespace = if random.random_bool(0.85) { "shop" } else { "istio-system" };
    let mut metadata = json!({ "name": format!("p{number}"), "namespace": namespace });
    if random.random_bool(0.1) {
        metadata["annotations"] = json!({ "istio.io/dry-run": "true" });
    }
    json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec })
}

fn peer(random: &mut StdRng, number: usize) -> Value {
    let mode = |random: &mut StdRng| one(random, &["STRICT", "STRICT", "PERMISSIVE", "UNSET", "DISABLE"]);
    let mut spec = json!({ "mtls": { "mode": mode(random) } });
    let namespace = one(random, &["shop", "shop", "istio-system"]);
    if random.random_bool(0.5) {
        spec["selector"] = json!({ "matchLabels": { "app": one(random, &["web", "other"]) } });
        if random.random_bool(0.5) {
            spec["portLevelMtls"] = json!({ "8080": { "mode": mode(random) } });
        }
    }
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": format!("m{number}"), "namespace": namespace }, "spec": spec,
    })
}

fn http_route(random: &mut StdRng, number: usize) -> Value {
    let backend = |random: &mut StdRng| match random.random_range(0..6) {
        0 => json!({ "name": "other", "port": 80 }),
        1 => json!({ "name": "missing", "port": 80 }),
        2 => json!({ "name": "elsewhere", "namespace": "client", "port": 80 }),
        3 => json!({ "name": "web", "port": 80, "weight": 3 }),
        _ => json!({ "name": "web", "port": 80 }),
    };
    let rule = |random: &mut StdRng| {
        let mut out = json!({});
        match random.random_range(0..5) {
            0 => out["matches"] = json!([{ "path": { "type": "PathPrefix", "value": "/a" } }]),
            1 => out["matches"] = json!([{ "path": { "type": "Exact", "value": "/b" } }, { "method": "POST" }]),
            2 => out["matches"] = json!([{ "headers": [{ "name": "x-role", "value": "admin" }] }]),
            _ => {}
        }
        match random.random_range(0..8) {
            0 => {
                let to = json!({ "statusCode": 302, "hostname": "elsewhere" });
                out["filters"] = json!([{ "type": "RequestRedirect", "requestRedirect": to }]);
            }
            _ => {
                let backends: Vec<Value> = (0..random.random_range(1..3)).map(|_| backend(random)).collect();
                out["backendRefs"] = backends.into();
            }
        }
        out
    };
    let rules: Vec<Value> = (0..random.random_range(1..4)).map(|_| rule(random)).collect();
    let mut parent = json!({ "group": "", "kind": "Service", "name": "web" });
    if random.random_bool(0.3) {
        parent["port"] = json!(one(random, &[80, 82]));
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": format!("r{number}"), "namespace": "shop" },
        "spec": { "parentRefs": [parent], "rules": rules },
    })
}

fn virtual_service(random: &mut StdRng, all: &mut Vec<Value>) {
    let host = "web.shop.svc.cluster.local";
    let to = |random: &mut StdRng, weight: u32| {
        let mut destination = json!({ "host": host });
        match random.random_range(0..5) {
            0 => destination["host"] = one(random, &["other", "missing"]).into(),
            4 => {}
            n => destination["subset"] = format!("v{n}").into(),
        }
        json!({ "destination": destination, "weight": weight })
    };
    let rule = |random: &mut StdRng| {
        let mut out = json!({});
        match random.random_range(0..4) {
            0 => out["match"] = json!([{ "uri": { "prefix": "/a" } }]),
            1 => out["match"] = json!([{ "headers": { "x-role": { "exact": "admin" } } }]),
            2 => out["match"] = json!([{ "sourceLabels": { "app": "caller" } }, { "method": { "exact": "POST" } }]),
            _ => {}
        }
        match random.random_range(0..6) {
            0 => out["directResponse"] = json!({ "status": one(random, &[200, 503]) }),
            1 => {
                out["fault"] = json!({ "abort": { "httpStatus": 418, "percentage": { "value": 100 } } });
                out["route"] = json!([to(random, 100)]);
            }
            _ => {
                let first = one(random, &[100, 50, 90]);
                let mut routes = vec![to(random, first)];
                if first < 100 {
                    routes.push(to(random, 100 - first));
                }
                out["route"] = routes.into();
            }
        }
        out
    };
    let rules: Vec<Value> = (0..random.random_range(1..4)).map(|_| rule(random)).collect();
    all.push(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "vs", "namespace": "shop" },
        "spec": { "hosts": [host], "http": rules },
    }));
    if random.random_bool(0.9) {
        let subset = |name: &str| json!({ "name": name, "labels": { "version": name } });
        let subsets: Vec<Value> =
            ["v1", "v2", "v3"].iter().take(random.random_range(1..4)).map(|n| subset(n)).collect();
        all.push(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": { "name": "dr", "namespace": "shop" }, "spec": { "host": host, "subsets": subsets },
        }));
    }
}
