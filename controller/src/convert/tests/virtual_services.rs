//! Istio's VirtualServices and DestinationRules.

use super::*;

/// What a delegate does not say, the rule that delegates to it does; its hosts are those of its own namespace.
#[test]
fn a_delegate_is_merged_into_the_rule_that_names_it() {
    let service = |ns: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: {ns}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let root = "timeout: 3s, retries: {attempts: 7, perTryTimeout: 1s, retryOn: 5xx}, headers: {request: {set: {x-root: y}}}, fault: {delay: {fixedDelay: 1s, percentage: {value: 5}}}, corsPolicy: {allowOrigins: [{exact: root}]}, mirrors: [{destination: {host: s}}], rewrite: {uri: /root}";
    let leaf = "timeout: 4s, retries: {attempts: 0}, headers: {response: {set: {x-leaf: y}}}, fault: {delay: {fixedDelay: 2s, percentage: {value: 5}}}, corsPolicy: {allowOrigins: [{exact: leaf}]}, mirror: {host: s}, mirrors: [{destination: {host: s}, percentage: {value: 1}}], rewrite: {uri: /leaf}";
    let rule = |leaf: &str| {
        let (m, p) = run(&format!(
            "{}{}apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: root, namespace: a}}\nspec: {{hosts: [s], http: [{{match: [{{uri: {{prefix: /d}}}}], delegate: {{name: part, namespace: b}}, {root}}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: part, namespace: b}}\nspec: {{http: [{{route: [{{destination: {{host: s}}}}], {leaf}}}]}}\n",
            service("a"),
            service("b")
        ));
        assert!(p.is_empty(), "{p:?}");
        m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone()
    };
    let own = "b/s.b.svc.cluster.local";
    let r = rule("");
    assert_eq!((r.timeout_ms, r.retry.as_ref().map(|r| (r.attempts, r.server_error))), (3000, Some((7, true))));
    assert_eq!((r.request.unwrap().set[0].name.as_str(), r.answer), ("x-root", None));
    assert_eq!(r.fault.unwrap().delay_ms, 1000);
    assert!(format!("{:?}", r.cors.unwrap().origins).contains("root"));
    assert!(format!("{:?}", r.rewrite.unwrap()).contains("/root"));
    assert_eq!(r.destinations[0].service, own);
    // The mirror of the root is the root's service.
    assert_eq!((r.mirrors.len(), r.mirrors[0].to.as_ref().unwrap().service.as_str()), (1, "a/s.a.svc.cluster.local"));
    let r = rule(leaf);
    assert_eq!((r.timeout_ms, r.retry), (4000, None));
    assert_eq!((r.request, r.answer.unwrap().set[0].name.as_str()), (None, "x-leaf"));
    assert_eq!(r.fault.unwrap().delay_ms, 2000);
    assert!(format!("{:?}", r.cors.unwrap().origins).contains("leaf"));
    assert!(format!("{:?}", r.rewrite.unwrap()).contains("/leaf"));
    let mirrors: Vec<_> = r.mirrors.iter().map(|m| (m.to.as_ref().unwrap().service.as_str(), m.per_million)).collect();
    assert_eq!(mirrors, [(own, 10_000), (own, 1_000_000)]);
}

/// Claims of tokens stand among the headers, in Istio's two forms. What names none is told, and its rule refuses.
#[test]
fn claims_are_matched_among_headers() {
    let rule = |matching: &str| {
        let spec = format!("hosts: [s], http: [{{match: [{{{matching}}}], route: [{{destination: {{host: s}}}}]}}]");
        let (m, p) = run(&(SHOP.to_string() + &virtual_service("name: v, namespace: a", &spec)));
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        let named = rule.r#match.clone().unwrap().headers;
        (named.into_iter().map(|n| (n.name, n.invert)).collect::<Vec<_>>(), rule.response.map_or(0, |r| r.status), p)
    };
    let claim = |name: &str, invert| vec![(format!("@request.auth.claims{name}"), invert)];
    for (matching, wanted) in [
        ("headers: {'@request.auth.claims.groups': {exact: staff}}", claim("[groups]", false)),
        ("headers: {'@Request.Auth.Claims.realm.roles': {prefix: a}}", claim("[realm][roles]", false)),
        ("withoutHeaders: {'@request.auth.claims[a.b][c]': {regex: x+}}", claim("[a.b][c]", true)),
        ("withoutHeaders: {'@request.auth.claims[sub]': {}}", claim("[sub]", true)),
    ] {
        let (named, refused, p) = rule(matching);
        assert_eq!((named, refused), (wanted, 0), "{matching}");
        assert!(p.is_empty(), "{p:?}");
    }
    for name in ["@request.auth.claims", "@request.auth.claims[a", "@request.auth.claims.a..b", "@request.auth"] {
        let (named, refused, p) = rule(&format!("headers: {{'{name}': {{exact: b}}}}"));
        assert_eq!((named, refused, p.len()), (vec![], 503, 1), "{name}");
    }
}

/// A filter for a VirtualService, or for one of its routes, limits these, at gateways as in the mesh; a delegate's has both.
#[test]
fn filters_limit_virtual_services() {
    let filter = |name: &str, spec: &str| {
        format!(
            "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: {name}, namespace: a}}\nspec: {{{spec}}}\n---\n"
        )
    };
    let to = "route: [{destination: {host: s}}]";
    let routes = format!(
        "hosts: [x.com, s], gateways: [gw, mesh], http: [{{name: one, match: [{{uri: {{prefix: /one}}}}], {to}}}, {{name: two, {to}}}]"
    );
    let limits = |filters: &[String], problems: usize| {
        let text =
            [INGRESS, SHOP, &servers("gw", &[(80, "*")]), &virtual_service("name: v, namespace: a", &routes)].concat();
        let (m, p) = run(&(text + &filters.concat()));
        assert_eq!(p.len(), problems, "{p:?}");
        let of = |key: &str| {
            let (_, r) = m.routes.iter().find(|(k, _)| k.ends_with(key)).unwrap();
            let rules = &r.producer.as_ref().unwrap().http;
            rules
                .iter()
                .map(|r| r.limits.iter().map(|l| l.name.clone()).collect::<Vec<_>>().join(","))
                .collect::<Vec<_>>()
        };
        let (gateway, mesh) = (of("/x.com"), of("/s.a.svc.cluster.local"));
        assert_eq!(gateway, mesh);
        gateway.join(" ")
    };
    let target = "group: networking.istio.io, kind: VirtualService, name: v";
    let whole = filter("f", &format!("targetRefs: [{{{target}}}], rateLimits: [{{requests: 5}}]"));
    let part = filter("g", &format!("targetRefs: [{{{target}, sectionName: two}}], rateLimits: [{{requests: 5}}]"));
    assert_eq!(limits(std::slice::from_ref(&whole), 0), "a/f 0 a/f 0");
    assert_eq!(limits(std::slice::from_ref(&part), 0), " a/g 0");
    assert_eq!(limits(&[whole, part], 0), "a/f 0 a/f 0,a/g 0");
    let lost = filter("h", &format!("targetRefs: [{{{target}, sectionName: three}}], rateLimits: [{{requests: 5}}]"));
    assert_eq!(limits(&[lost], 1), " ");
    let others = filter("h", "targetRefs: [{group: '', kind: VirtualService, name: v}], rateLimits: [{requests: 5}]");
    assert_eq!(limits(&[others], 1), " ", "not of that group");
    let root = virtual_service(
        "name: root, namespace: a",
        "hosts: [s], http: [{name: r, match: [{uri: {prefix: /d}}], delegate: {name: part, namespace: a}}]",
    );
    let leaf = virtual_service("name: part, namespace: a", &format!("http: [{{{to}}}]"));
    let of = |name: &str, vs: &str| {
        let spec = format!(
            "targetRefs: [{{group: networking.istio.io, kind: VirtualService, name: {vs}}}], rateLimits: [{{requests: 5}}]"
        );
        filter(name, &spec)
    };
    let (m, p) = run(&(SHOP.to_string() + &root + &leaf + &of("f", "root") + &of("g", "part")));
    assert!(p.is_empty(), "{p:?}");
    let rule = &m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0];
    assert_eq!(rule.limits.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["a/f 0", "a/g 0"]);
}

/// A filter that cannot be read is no filter that is not there: what it is for does not go on without it.
#[test]
fn a_filter_that_cannot_be_read_closes_what_it_is_for() {
    let filter = |target: &str, spec: &str| {
        format!(
            "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: f, namespace: a}}\nspec: {{targetRefs: [{{{target}}}], {spec}}}\n---\n"
        )
    };
    let (of_route, of_service) =
        ("group: networking.istio.io, kind: VirtualService, name: v, sectionName: two", "kind: Service, name: s");
    let to = "route: [{destination: {host: s}}]";
    let routes = virtual_service(
        "name: v, namespace: a",
        &format!("hosts: [s], http: [{{name: one, match: [{{uri: {{prefix: /one}}}}], {to}}}, {{name: two, {to}}}]"),
    );
    // What each rule answers by itself; 0: nothing.
    let of = |text: &[&str]| {
        let (m, p) = run(&[&[SHOP][..], text].concat().concat());
        let told = &m.routes["a/s.a.svc.cluster.local"];
        let rules = &told.producer.as_ref().unwrap().http;
        let answers = rules.iter().map(|r| r.response.as_ref().map_or(0, |r| r.status)).collect::<Vec<_>>();
        // That no waypoint executes it is not of interest here.
        let fields = p.iter().map(|p| p.field.clone()).filter(|field| field != "spec.targetRefs[0]");
        (answers, told.limits.len(), fields.collect::<Vec<_>>())
    };
    let (good, bad) = ("rateLimits: [{requests: 5}]", "rateLimits: [{requests: 0}]");
    assert_eq!(of(&[&routes, &filter(of_route, good)]), (vec![0, 0], 0, vec![]));
    let told = vec!["spec.rateLimits[0].requests".to_string()];
    assert_eq!(of(&[&routes, &filter(of_route, bad)]), (vec![0, 503], 0, told.clone()));
    // Of a Service it is for all requests, however they are routed.
    assert_eq!(of(&[&routes, &filter(of_service, good)]), (vec![0, 0], 1, vec![]));
    assert_eq!(of(&[&routes, &filter(of_service, bad)]), (vec![500], 0, told.clone()));
    assert_eq!(of(&[&filter(of_service, bad)]), (vec![500], 0, told));
    // One of a newer version of the API, as the API server has it.
    let newer = serde_json::json!({
        "metadata": { "name": "f", "namespace": "a" },
        "spec": { "targetRefs": [{ "kind": "Service", "name": "s" }], "newer": 1 },
    });
    let stand_in = karst_manifest::closed::closed("HTTPFilter", newer).unwrap();
    let mut objects = parse::file("t.yaml".as_ref(), &[SHOP, &routes].concat()).unwrap();
    objects.push(Located { object: stand_in, file: "f".into(), line: 1 });
    let state = State { objects: objects.into_iter().map(Arc::new).collect(), ..State::default() };
    let (m, p) = compile(&state, &mesh());
    let rules = &m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http;
    assert_eq!(
        (rules.len(), rules[0].response.as_ref().unwrap().status, &*rules[0].origin),
        (1, 500, "HTTPFilter a/f")
    );
    assert!(p.iter().any(|p| p.field == "spec" && p.message.ends_with("[KARST-0001]")), "{p:?}");
}

/// Limits of size and compression are a VirtualService's as they are a Service's; of several the smallest limit counts.
#[test]
fn filters_limit_sizes_of_virtual_services_and_compress() {
    let filter = |name: &str, spec: &str| {
        format!(
            "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: {name}, namespace: a}}\nspec: {{targetRefs: [{{group: networking.istio.io, kind: VirtualService, name: v}}], {spec}}}\n---\n"
        )
    };
    let route = virtual_service("name: v, namespace: a", "hosts: [s], http: [{route: [{destination: {host: s}}]}]");
    let filters = filter("f", "maxRequestBytes: 20, compression: {minBytes: 5}") + &filter("g", "maxRequestBytes: 10");
    let (m, p) = run(&(SHOP.to_string() + &route + &filters));
    assert!(p.is_empty(), "{p:?}");
    let rule = &m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0];
    let compression = karst_api::route::Compression { min_bytes: 5, ..Default::default() };
    assert_eq!((rule.max_body_bytes, rule.compression.clone()), (10, Some(compression)));
}

/// What tells buckets apart reaches proxies as it is written.
#[test]
fn keys_of_limits_are_compiled() {
    use karst_api::route::rate_limit_key::Key;
    let filter = "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {name: f, namespace: a}\nspec: {targetRefs: [{kind: Service, name: s}], rateLimits: [{requests: 5, keys: [{type: Header, name: X-Tenant}, {type: Query, name: q}, {type: Claim, name: realm.org}, {type: Claim, name: '[a.b][c]'}, {type: Path}, {type: SourceAddress}, {type: Caller}]}, {requests: 1, by: Caller, scope: Shared}]}\n";
    let (m, _) = run(&(SHOP.to_string() + filter));
    let limits = &m.routes["a/s.a.svc.cluster.local"].limits;
    let keys: Vec<Key> = limits[0].keys.iter().filter_map(|key| key.key.clone()).collect();
    let claim = |path: &str| Key::Claim(path.into());
    let named = [Key::Header("x-tenant".into()), Key::Query("q".into()), claim("realm][org"), claim("a.b][c")];
    let rest = [Key::Path(true), Key::SourceAddress(true), Key::Caller(true)];
    assert_eq!(keys, named.into_iter().chain(rest).collect::<Vec<_>>());
    assert!(!limits[0].by_caller && limits[1].by_caller && limits[1].keys.is_empty());
    // Each service that is a target has its own count.
    assert_eq!([0, 1].map(|i| limits[i].shared.as_str()), ["", "a/f 1 a/s.a.svc.cluster.local"]);
}

/// Within the mesh the longest host wins, then what does not match everything, then the older one.
#[test]
fn virtual_services_in_the_mesh_are_merged() {
    let vs = |name: &str, host: &str, rules: &str| {
        virtual_service(
            &format!("name: {name}, namespace: a, creationTimestamp: '{name}'"),
            &format!("hosts: ['{host}'], {rules}"),
        )
    };
    let all = "http: [{route: [{destination: {host: s}}]}]";
    let api = "http: [{match: [{uri: {prefix: /api}}], route: [{destination: {host: s}}]}]";
    let of = |parts: &[String], service: &str| {
        let (m, p) = run(&(SHOP.to_string() + &SHOP.replace("name: s,", "name: t,") + &parts.concat()));
        assert!(p.is_empty(), "{p:?}");
        origins(m.routes.get(&format!("a/{service}.a.svc.cluster.local")).and_then(|r| r.producer.as_ref()))
    };
    assert_eq!(of(&[vs("v1", "s", all), vs("v2", "s", api)], "s"), ["v2 http[0]", "v1 http[0]"]);
    let wide = vs("v0", "*.svc.cluster.local", all);
    let near = vs("v1", "*.a.svc.cluster.local", all);
    let own = vs("v2", "s", api);
    let three = [wide, near, own];
    assert_eq!((of(&three, "s"), of(&three, "t")), (vec!["v2 http[0]".into()], vec!["v1 http[0]".to_string()]));
    assert_eq!(of(&three[..1], "t"), ["v0 http[0]"]);
    // Names in TLS hellos, too.
    let tls = |name: &str, sni: &str| {
        vs(name, "s", &format!("tls: [{{match: [{{sniHosts: [{sni}]}}], route: [{{destination: {{host: s}}}}]}}]"))
    };
    let (m, _) = run(&(SHOP.to_string() + &tls("v1", "'*.com', '*'") + &tls("v2", "a.com, '*.b.com'")));
    let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
    let names: Vec<_> = table.tcp.iter().map(|r| r.sni.join(" ")).collect();
    assert_eq!(names, ["a.com", "*.b.com", "*.com", "*"]);
}

/// Gateways are found by every name that Istio knows, by VirtualServices that are exported to their pods' namespace.
#[test]
fn virtual_services_are_bound_by_name_and_export() {
    let bound = |gateway: &str, export: &str| {
        let spec = format!(
            "hosts: [x.com], gateways: ['{gateway}'], exportTo: [{export}], http: [{{match: [{{gateways: ['{gateway}']}}], route: [{{destination: {{host: s}}}}]}}]"
        );
        let text =
            [INGRESS, SHOP, &servers("gw", &[(80, "*")]), &virtual_service("name: v, namespace: a", &spec)].concat();
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        m.routes.iter().any(|(k, r)| k.ends_with("/x.com") && r.producer.as_ref().is_some_and(|t| t.http.len() == 1))
    };
    for name in ["gw", "./gw", "a/gw", "gw.a", "gw.a.svc.cluster.local"] {
        assert!(bound(name, ""), "{name}");
    }
    for name in ["b/gw", "gw.b.svc.cluster.local", "other"] {
        assert!(!bound(name, ""), "{name}");
    }
    for (export, wanted) in
        [("'*'", true), ("edge", true), ("'.'", false), ("b", false), ("'~'", false), ("'.', edge", true)]
    {
        assert_eq!(bound("gw", export), wanted, "{export}");
    }
}

/// Whose routes count for whom, by `exportTo`.
#[test]
fn virtual_services_are_for_whom_they_are_exported_to() {
    let vs = |name: &str, ns: &str, export: &str| {
        virtual_service(
            &format!("name: {name}, namespace: {ns}"),
            &format!(
                "hosts: [s.a.svc.cluster.local], {export} http: [{{match: [{{uri: {{prefix: /{name}}}}}], route: [{{destination: {{host: s.a.svc.cluster.local}}}}]}}]"
            ),
        )
    };
    // For everybody, and by callers' namespace.
    let of = |parts: &[String]| {
        let (m, p) = run(&(SHOP.to_string() + &parts.concat()));
        assert!(p.is_empty(), "{p:?}");
        let r = m.routes.get("a/s.a.svc.cluster.local").map(|r| (**r).clone()).unwrap_or_default();
        let name = |t: Option<&karst_api::route::Table>| origins(t).join(" ").replace(" http[0]", "");
        let consumers = r.consumers.iter().map(|c| format!("{}: {}", c.namespace, name(c.table.as_ref())));
        [name(r.producer.as_ref())].into_iter().chain(consumers).collect::<Vec<_>>()
    };
    let all = || vs("all", "a", "");
    assert_eq!(of(&[all()]), ["all"]);
    assert_eq!(of(&[all(), vs("own", "a", "exportTo: ['.'],")]), ["all", "a: all own"]);
    assert_eq!(of(&[all(), vs("two", "a", "exportTo: [b, c],")]), ["all", "b: all two", "c: all two"]);
    assert_eq!(of(&[vs("two", "a", "exportTo: [b],")]), ["", "b: two"]);
    assert_eq!(of(&[all(), vs("none", "a", "exportTo: ['~'],")]), ["all"]);
    // Another namespace's are for its own callers, if they are for them at all.
    let consumer = |export: &str| of(&[all(), vs("mine", "b", export)]);
    assert_eq!(consumer(""), ["all", "b: VirtualService b/mine"]);
    assert_eq!(consumer("exportTo: ['.'],"), ["all", "b: VirtualService b/mine"]);
    assert_eq!(consumer("exportTo: [a],"), ["all"]);
    // Where nothing is said the mesh's default counts.
    let mut mesh = mesh();
    mesh.virtual_services_are_for = vec![".".into()];
    let objects = parse::file("t.yaml".as_ref(), &(SHOP.to_string() + &all())).unwrap();
    let state = State { objects: objects.into_iter().map(std::sync::Arc::new).collect(), ..State::default() };
    let (m, _) = compile(&state, &mesh);
    let r = &m.routes["a/s.a.svc.cluster.local"];
    assert!(r.producer.is_none() && r.consumers[0].namespace == "a");
}

#[test]
fn limits_slow_start_and_ejection_are_compiled() {
    let of = |policy: &str| {
        let rule =
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec:";
        let (m, p) = run(&format!("{SHOP}{rule} {{host: s, trafficPolicy: {policy}}}\n"));
        assert!(p.is_empty(), "{p:?}");
        m.backends["a/s.a.svc.cluster.local"].policy.clone().unwrap()
    };
    let pool = "{connectionPool: {tcp: {idleTimeout: 2s}, http: {maxConcurrentStreams: 5, idleTimeout: 1s}}}";
    let limits = of(pool).limits.unwrap();
    assert_eq!((limits.tcp_idle_ms, limits.idle_timeout_ms, limits.concurrent_streams), (2000, 1000, 5));
    let warmup = |text: &str| {
        let b = of(&format!("{{loadBalancer: {{simple: RANDOM, {text}}}}}")).balance.unwrap();
        (b.warmup_ms, b.warmup_minimum, b.warmup_aggression)
    };
    assert_eq!(warmup("warmup: {duration: 5s}"), (5000, 100_000, 1000));
    assert_eq!(warmup("warmupDurationSecs: 5s"), (5000, 100_000, 1000));
    assert_eq!(warmup("warmup: {duration: 5s, minimumPercent: 0, aggression: 1.5}"), (5000, 0, 1500));
    assert_eq!(warmup("warmup: {minimumPercent: 20}"), (0, 0, 0));
    let apart = |text: &str| of(&format!("{{outlierDetection: {{{text}}}}}")).outlier.unwrap().consecutive_local;
    assert_eq!(apart("consecutiveLocalOriginFailures: 7"), 0);
    assert_eq!(apart("splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 7"), 7);
    assert_eq!(apart("splitExternalLocalOriginErrors: true"), 5);
    assert_eq!(apart("splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 0"), 5);
}

/// The client's namespace first, then the service's, then the root namespace; within it the longest host, and of these the oldest.
#[test]
fn destination_rules_are_found_as_in_istio() {
    let rule = |ns: &str, name: &str, host: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {ns}, creationTimestamp: '{name}'}}\nspec: {{host: '{host}', {export} subsets: [{{name: {ns}-{name}, labels: {{v: '1'}}}}]}}\n---\n"
        )
    };
    const FULL: &str = "s.a.svc.cluster.local";
    let of = |parts: &[String]| {
        let (m, p) = run(&(SHOP.to_string() + &parts.concat()));
        assert!(p.is_empty(), "{p:?}");
        let b = m.backends.get("a/s.a.svc.cluster.local").map(|b| (**b).clone()).unwrap_or_default();
        let names = |all: &[karst_api::route::Subset]| all.iter().map(|s| s.name.clone()).collect::<Vec<_>>().join(" ");
        let clients = b.clients.iter().map(|c| format!("{}: {}", c.namespace, names(&c.subsets)));
        [names(&b.subsets)].into_iter().chain(clients).collect::<Vec<_>>()
    };
    let (own, root) = (|n: &str| rule("a", n, "s", ""), |n: &str| rule("istio-system", n, FULL, ""));
    let client = |n: &str| rule("b", n, FULL, "");
    assert_eq!(of(&[own("1")]), ["a-1"]);
    let origin = |parts: &[String]| {
        let (m, _) = run(&(SHOP.to_string() + &parts.concat()));
        m.backends["a/s.a.svc.cluster.local"].origin.clone()
    };
    assert_eq!(origin(&[own("1"), own("2")]), "DestinationRule a/1", "the one that decides first");
    assert_eq!(origin(&[client("3")]), "", "it is for some clients only");
    assert_eq!(of(&[root("1")]), ["istio-system-1"]);
    assert_eq!(of(&[root("1"), own("2")]), ["a-2"], "the service's own stand alone");
    assert_eq!(of(&[own("1"), own("2")]), ["a-1 a-2"], "of one host: the oldest, and what others add");
    assert_eq!(of(&[own("1"), root("1"), client("3")]), ["a-1", "b: b-3"]);
    assert_eq!(of(&[client("3")]), ["", "b: b-3"]);
    // The longest host, however old.
    let wide = rule("a", "0", "*.svc.cluster.local", "");
    assert_eq!(of(&[wide.clone(), own("1")]), ["a-1"]);
    assert_eq!(of(&[wide.clone(), rule("a", "1", "*.a.svc.cluster.local", "")]), ["a-1"]);
    assert_eq!(of(&[wide, root("1")]), ["a-0"], "the namespace comes before the host");
    // Exported: to its own namespace, to another, to nobody.
    assert_eq!(of(&[rule("a", "1", "s", "exportTo: ['.'],"), root("2")]), ["istio-system-2", "a: a-1"]);
    assert_eq!(of(&[rule("a", "1", "s", "exportTo: [c],")]), ["", "c: a-1"]);
    assert_eq!(of(&[rule("b", "1", FULL, "exportTo: [c],")]), [""], "not its own clients'");
    assert_eq!(
        of(&[rule("istio-system", "1", FULL, "exportTo: ['.'],"), own("2")]),
        ["a-2", "istio-system: istio-system-1"]
    );
    assert_eq!(of(&[root("1"), own("2")]), ["a-2"], "the root namespace's own clients have the service's, too");
    // For some clients only: for none, rather than for all (of the namespace).
    let some = "workloadSelector: {matchLabels: {app: batch}},";
    assert_eq!(of(&[own("1"), rule("b", "2", FULL, some)]), ["a-1"]);
    assert_eq!(of(&[rule("a", "1", "s", some), root("2")]), ["istio-system-2"]);
}

/// A rule of a VirtualService that cannot be read takes no other with it, and is not the default.
#[test]
fn a_virtual_service_is_read_rule_by_rule() {
    let of = |rules: &str| -> Vec<(String, u32)> {
        let (m, p) =
            run(&(SHOP.to_string() + &virtual_service("name: v, namespace: a", &format!("hosts: [s], {rules}"))));
        assert_eq!(p.len(), 1, "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http.iter().map(|r| {
            let path =
                r.r#match.as_ref().and_then(|m| m.path.as_ref()).map_or(String::new(), |p| format!("{:?}", p.kind));
            (path, r.response.as_ref().map_or(200, |r| r.status))
        });
        http.chain(table.tcp.iter().map(|r| (String::new(), r.destinations[0].refuse_status))).collect()
    };
    let path = |p: &str| format!("Some(Prefix(\"{p}\"))");
    let fine = "{match: [{uri: {prefix: /a}}], route: [{destination: {host: s}}]}";
    let late = "{match: [{uri: {prefix: /b}}], timeout: soon, route: [{destination: {host: s}}]}";
    assert_eq!(of(&format!("http: [{late}, {fine}]")), [(path("/b"), 503), (path("/a"), 200)]);
    let pattern = "{match: [{uri: {regex: '('}}], route: [{destination: {host: s}}]}";
    assert_eq!(of(&format!("http: [{pattern}, {fine}]")), [(path("/a"), 200), (String::new(), 503)]);
    assert_eq!(of("tcp: [{route: []}]"), [(String::new(), 503)]);
    let weightless = "route: [{destination: {host: s}, weight: 0}, {destination: {host: s}, weight: 0}]";
    assert_eq!(of(&format!("tcp: [{{{weightless}}}]")), [(String::new(), 503)]);
    assert_eq!(of(&format!("tls: [{{match: [{{sniHosts: [x]}}], {weightless}}}]")), [(String::new(), 503)]);
}

/// What comes behind a rule for everything is not reached, as in Istio: in its own VirtualService, at its ports, in the mesh and at
/// gateways. Other VirtualServices' rules are.
#[test]
fn a_rule_for_everything_ends_its_virtual_service() {
    let service = SHOP.replace("ports: [{port: 80}]", "ports: [{name: a, port: 80}, {name: b, port: 81}]");
    let to = "route: [{destination: {host: s, port: {number: 80}}}]";
    let api = format!("{{match: [{{uri: {{prefix: /api}}}}], {to}}}");
    let closed = "{directResponse: {status: 503}}";
    let at = |port: u16| format!("{{match: [{{port: {port}}}], {to}}}");
    let other = virtual_service(
        "name: other, namespace: a, creationTimestamp: '2025'",
        &format!("hosts: [s, x.com], gateways: [gw, mesh], http: [{{match: [{{uri: {{exact: /o}}}}], {to}}}]"),
    );
    let part = virtual_service("name: part, namespace: a", &format!("http: [{api}, {{{to}}}, {api}]"));
    // Of each rule where it comes from, and its ports.
    let of = |rules: &str, more: &str| {
        let spec = format!("hosts: [s, x.com], gateways: [gw, mesh], http: [{rules}]");
        let own = virtual_service("name: v, namespace: a, creationTimestamp: '2024'", &spec);
        let (m, p) = run(&[INGRESS, &service, &servers("gw", &[(80, "*")]), &own, more].concat());
        assert!(p.is_empty(), "{p:?}");
        let gateway = format!("{}/x.com", virtual_hosts(&m, 80));
        ["a/s.a.svc.cluster.local", &gateway].map(|key| {
            let table = m.routes[key].producer.as_ref();
            let ports = table.iter().flat_map(|t| &t.http).map(|r| format!("{:?}", r.ports)).collect::<Vec<_>>();
            origins(table).iter().zip(ports).map(|(o, p)| format!("{o} {p}").replace(" []", "")).collect::<Vec<_>>()
        })
    };
    for (rules, more, mesh, gateway) in [
        (format!("{closed}, {api}"), "", vec!["v http[0]"], vec!["v http[0]"]),
        (format!("{{match: [{{uri: {{prefix: /}}}}], {to}}}, {api}"), "", vec!["v http[0]"], vec!["v http[0]"]),
        (format!("{api}, {closed}, {api}"), "", vec!["v http[0]", "v http[1]"], vec!["v http[0]", "v http[1]"]),
        (
            format!("{{match: [{{uri: {{prefix: /}}, method: {{exact: GET}}}}], {to}}}, {api}"),
            "",
            vec!["v http[0]", "v http[1]"],
            vec!["v http[0]", "v http[1]"],
        ),
        (format!("{}, {api}", at(80)), "", vec!["v http[1] [81]", "v http[0] [80]"], vec!["v http[0]"]),
        (format!("{}, {api}", at(81)), "", vec!["v http[1] [80]", "v http[0] [81]"], vec!["v http[1]"]),
        (
            format!("{}, {}, {api}, {{{to}}}", at(80), at(81)),
            "",
            vec!["v http[0] [80]", "v http[1] [81]"],
            vec!["v http[0]"],
        ),
        (format!("{closed}, {api}"), &other, vec!["other http[0]", "v http[0]"], vec!["other http[0]", "v http[0]"]),
        (
            format!("{{delegate: {{name: part}}}}, {api}"),
            &part,
            vec!["part http[0]", "part http[1]"],
            vec!["part http[0]", "part http[1]"],
        ),
    ] {
        assert_eq!(of(&rules, more), [mesh, gateway], "{rules}");
    }
}

/// One match that cannot be read takes its rule with it, and no other rule: the rule's other matches are refused where they stand, as in
/// Gateway API, what is left of the match behind all other rules, in the mesh and at gateways. So is a condition that is not executed.
#[test]
fn a_match_that_cannot_be_read_is_nobodys() {
    let to = "route: [{destination: {host: s, port: {number: 80}}}]";
    let show = |m: &Model, key: &str| -> Vec<String> {
        let table = m.routes[key].producer.clone().unwrap();
        let http = table.http.iter().map(|r| {
            let m = r.r#match.as_ref().unwrap();
            let path = m.path.as_ref().and_then(|p| p.kind.as_ref()).map_or("any".into(), |p| format!("{p:?}"));
            format!("{path}={}", r.response.as_ref().map_or(200, |r| r.status))
        });
        let tcp = table.tcp.iter().map(|r| {
            let what = if r.sni.is_empty() { format!("{:?}", r.ports) } else { r.sni.join(" ") };
            format!("{what}={}", r.destinations[0].refuse_status)
        });
        http.chain(tcp).collect()
    };
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: a}\nspec: {selector: {istio: ingressgateway}, servers: [SERVER]}\n---\n";
    let of = |rules: &str, server: &str, more: &str| {
        let spec = format!("hosts: [s, x.com], gateways: [gw, mesh], {rules}");
        let own = virtual_service("name: v, namespace: a", &spec);
        let (m, p) = run(&[INGRESS, SHOP, &gateway.replace("SERVER", server), &own, more].concat());
        let key = format!(
            "{}/{}",
            m.gateways["edge/gw"].listeners[0].routes,
            if server.contains("TCP") { "*" } else { "x.com" }
        );
        let fields: Vec<String> = p.into_iter().map(|p| p.field).collect();
        (fields, show(&m, "a/s.a.svc.cluster.local"), show(&m, &key))
    };
    let part =
        virtual_service("name: part, namespace: a", &format!("http: [{{match: [{{uri: {{prefix: /d/e}}}}], {to}}}]"));
    let web = format!("{{match: [{{uri: {{prefix: /web}}}}], {to}}}");
    let pattern = "{uri: {regex: '('}}";
    let (here, all) = ("spec.http[0].match[0]", "any=503".to_string());
    let prefix = |p: &str, status: u32| format!("Prefix(\"{p}\")={status}");
    for (rules, more, field, wanted) in [
        (
            format!("{{match: [{{uri: {{prefix: /admin}}}}, {pattern}], directResponse: {{status: 403}}}}, {web}"),
            "",
            "spec.http[0].match[1].uri.regex".to_string(),
            vec![prefix("/admin", 503), prefix("/web", 200), all.clone()],
        ),
        (
            format!("{{match: [{pattern}], {to}}}, {{{to}}}"),
            "",
            format!("{here}.uri.regex"),
            vec!["any=200".into(), all.clone()],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /a}}, headers: {{'a b': {{exact: x}}}}}}], {to}}}, {web}"),
            "",
            format!("{here}.headers[a b]"),
            vec![prefix("/web", 200), prefix("/a", 503)],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /a}}, withoutHeaders: {{b: {{regex: '('}}}}}}], {to}}}"),
            "",
            format!("{here}.withoutHeaders[b].regex"),
            vec![prefix("/a", 503)],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /d}}}}, {pattern}], delegate: {{name: part}}}}, {web}"),
            &part,
            "spec.http[0].match[1].uri.regex".into(),
            vec![prefix("/d", 503), prefix("/web", 200), all.clone()],
        ),
        (
            format!("{{match: [{{uri: {{prefix: /d}}}}], delegate: {{name: part}}, {to}}}, {web}"),
            &part,
            "spec.http[0]".into(),
            vec![prefix("/d", 503), prefix("/web", 200)],
        ),
    ] {
        let http = "{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}";
        assert_eq!(of(&format!("http: [{rules}]"), http, more), (vec![field], wanted.clone(), wanted), "{rules}");
    }
    let (tcp, tls) = (
        "{port: {number: 80, name: t, protocol: TCP}, hosts: ['*']}",
        "{port: {number: 443, name: s, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: ['*']}",
    );
    let at = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (rules, server, fields, mesh, gateway) in [
        (
            format!("tcp: [{{match: [{{sourceSubnet: 10.0.0.0/8}}], {to}}}, {{match: [{{port: 80}}], {to}}}]"),
            tcp,
            at(&["spec.tcp[0].match[0].sourceSubnet"]),
            at(&["[80]=0", "[]=503"]),
            at(&["[]=0", "[]=503"]),
        ),
        (
            format!(
                "tcp: [{{match: [{{destinationSubnets: [10.0.0.0/8], sourceSubnet: 10.0.0.0/8, port: 80}}], {to}}}]"
            ),
            tcp,
            at(&["spec.tcp[0].match[0].destinationSubnets", "spec.tcp[0].match[0].sourceSubnet"]),
            at(&["[80]=503"]),
            at(&["[]=503"]),
        ),
        (
            format!(
                "tls: [{{match: [{{sniHosts: [x.com], destinationSubnets: [10.0.0.0/8]}}], {to}}}, {{match: [{{sniHosts: ['*']}}], {to}}}]"
            ),
            tls,
            at(&["spec.tls[0].match[0].destinationSubnets"]),
            at(&["*=0", "x.com=503"]),
            at(&["*=0", "x.com=503"]),
        ),
        (
            format!("tcp: [{{match: [{{port: 80}}, {{sourceSubnet: 10.0.0.0/8}}], {to}}}]"),
            tcp,
            at(&["spec.tcp[0].match[1].sourceSubnet"]),
            at(&["[80]=503", "[]=503"]),
            at(&["[]=503", "[]=503"]),
        ),
        (
            format!("tls: [{{match: [{{sniHosts: [x.com]}}, {{port: 443}}], {to}}}, {{{to}}}]"),
            tls,
            at(&["spec.tls[0].match[1].sniHosts", "spec.tls[1].match"]),
            at(&["x.com=503", "*=503", "*=503"]),
            at(&["x.com=503", "*=503", "*=503"]),
        ),
    ] {
        assert_eq!(of(&rules, server, ""), (fields, mesh, gateway), "{rules}");
    }
}

/// `regex: '*'` is how Istio's users write that a header is there, or is not; it is no regular expression.
#[test]
fn a_star_for_a_regular_expression_means_presence() {
    use karst_api::route::text::Kind;
    let of = |conditions: &str| {
        let rule = format!("http: [{{match: [{{{conditions}}}], route: [{{destination: {{host: s}}}}]}}]");
        let v = virtual_service("name: v, namespace: a", &format!("hosts: [s], {rule}"));
        let (m, p) = run(&(SHOP.to_string() + &v));
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        (rule.r#match.unwrap(), p)
    };
    for there in ["{}", "{regex: '*'}"] {
        let (m, p) = of(&format!(
            "headers: {{a: {there}, ':method': {there}}}, withoutHeaders: {{b: {there}, ':authority': {there}}}, queryParams: {{c: {there}}}"
        ));
        assert!(p.is_empty(), "{p:?}");
        let named = |all: &[karst_api::route::Named]| {
            let one = |n: &karst_api::route::Named| {
                assert_eq!(n.value.as_ref().unwrap().kind, Some(Kind::Present(true)), "{} {there}", n.name);
                format!("{}{}", if n.invert { "!" } else { "" }, n.name)
            };
            all.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(named(&m.headers), ["a", "!host", "!b"]);
        assert_eq!(named(&m.query), ["c"]);
        assert_eq!(m.method.unwrap().kind, Some(Kind::Present(true)));
    }
    // Elsewhere it is a regular expression, and a wrong one.
    let fields: Vec<String> = of("uri: {regex: '*'}, authority: {regex: '*'}").1.into_iter().map(|p| p.field).collect();
    assert_eq!(fields, ["spec.http[0].match[0].uri.regex", "spec.http[0].match[0].authority.regex"]);
}

#[test]
fn origins_are_those_of_one_field() {
    let of = |origins: &str| {
        let rule = format!("http: [{{corsPolicy: {{{origins}}}, route: [{{destination: {{host: s}}}}]}}]");
        let v = virtual_service("name: v, namespace: a", &format!("hosts: [s], {rule}"));
        let (m, p) = run(&(SHOP.to_string() + &v));
        assert!(p.is_empty(), "{p:?}");
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        rule.cors.unwrap().origins.into_iter().filter_map(|o| o.kind).collect::<Vec<_>>()
    };
    let exact = |o: &str| karst_api::route::text::Kind::Exact(o.into());
    assert_eq!(of("allowOrigin: ['*', 'http://a']"), [exact("*"), exact("http://a")]);
    assert_eq!(of("allowOrigins: [{exact: '*'}]"), [exact("*")]);
    assert_eq!(of("allowOrigins: [{exact: 'http://b'}], allowOrigin: ['*']"), [exact("http://b")], "as in Istio");
}
