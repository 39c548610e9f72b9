//! Gateway API's routes, and what both APIs share.

use super::*;

/// Connections, as requests: Gateway API before VirtualServices, however old; but the longer name in the hello comes first.
#[test]
fn routes_of_gateway_api_come_first_for_connections_too() {
    let tls = |kind: &str, version: &str, names: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r, namespace: a, creationTimestamp: '2025'}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], {names} rules: [{{backendRefs: [{{name: s, port: 80}}]}}]}}\n"
        )
    };
    let old = |rules: &str| {
        virtual_service("name: v, namespace: a, creationTimestamp: '2024'", &format!("hosts: [s], {rules}"))
    };
    let (all, to) = ("tcp: [{route: [{destination: {host: s}}]}]", "route: [{destination: {host: s}}]");
    let name = |n: &str| format!("tls: [{{match: [{{sniHosts: ['{n}']}}], {to}}}]");
    let (tcp, named) = (tls("TCPRoute", "v1alpha2", ""), tls("TLSRoute", "v1alpha2", "hostnames: ['*.com'],"));
    let (api, istio) = (|kind: &str| format!("{kind} a/r rule 0"), |entry: &str| format!("VirtualService a/v {entry}"));
    for (own, other, wanted) in [
        (old(all), &tcp, [api("TCPRoute"), istio("tcp[0]")]),
        (old(&name("*.com")), &named, [api("TLSRoute"), istio("tls[0]")]),
        (old(&name("a.com")), &named, [istio("tls[0]"), api("TLSRoute")]),
        (old(all), &named, [api("TLSRoute"), istio("tcp[0]")]),
    ] {
        let (m, p) = run(&[SHOP, &own, other].concat());
        assert!(p.is_empty(), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        assert_eq!(table.tcp.iter().map(|r| r.origin.clone()).collect::<Vec<_>>(), wanted, "{own}{other}");
    }
}

/// Of routes at one listener those with the longer host come first, however exact the paths of others are.
#[test]
fn routes_of_the_longer_host_come_first() {
    let route = |name: &str, hosts: &str, path: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{name}'}}\nspec: {{parentRefs: [{{name: g}}], hostnames: [{hosts}], rules: [{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: s, port: 80}}]}}]}}\n---\n"
        )
    };
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: a}\nspec: {gatewayClassName: istio, listeners: [{name: l, port: 80, protocol: HTTP, hostname: a.example.com}]}\n---\n";
    let text = [
        SHOP,
        gateway,
        &route("r1", "", "/long/path"),
        &route("r2", "'*.example.com'", "/longer/path"),
        &route("r3", "a.example.com", "/"),
    ]
    .concat();
    let (m, p) = run(&text);
    assert!(p.is_empty(), "{p:?}");
    let all = origins(m.routes["~Gateway/a/g/l/a.example.com"].producer.as_ref());
    assert_eq!(all, ["r3", "r2", "r1"].map(|r| format!("HTTPRoute a/{r} rule 0")));
}

/// In Gateway API a value is sent as it is, but for operators; filters that are for whole rules refuse the requests of a backend.
#[test]
fn filters_of_gateway_api_are_executed_or_refuse() {
    let of = |kind: &str, filters: &str, of_backend: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{filters: [{filters}], backendRefs: [{{name: s, port: 80, filters: [{of_backend}]}}]}}]}}\n"
        );
        let (m, p) = run(&(SHOP.to_string() + &text));
        assert!(p.is_empty(), "{p:?}");
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        assert!(rule.response.is_none(), "{rule:?}");
        let object: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        (rule, check::written(kind, "gateway.networking.k8s.io", &object))
    };
    let header = |kind: &str, value: &str| {
        let field = kind.replacen(|c: char| c.is_uppercase(), &kind[..1].to_lowercase(), 1);
        format!("{{type: {kind}, {field}: {{add: [{{name: x, value: '{value}'}}]}}}}")
    };
    for (value, sent, told) in [
        ("50%", "50%%", true),
        ("/a%20b", "/a%%20b", true),
        ("%PROTOCOL%", "%PROTOCOL%", false),
        ("%FOO%", "%%FOO%%", true),
    ] {
        for kind in ["HTTPRoute", "GRPCRoute"] {
            let (request, response) = (header("RequestHeaderModifier", value), header("ResponseHeaderModifier", value));
            let (rule, warnings) = of(kind, &request, &response);
            let value = |c: &Option<karst_api::route::HeaderChange>| c.as_ref().unwrap().add[0].value.clone();
            assert_eq!(
                (value(&rule.request), value(&rule.destinations[0].answer)),
                (sent.into(), sent.into()),
                "{kind}"
            );
            let at = ["filters[0].requestHeaderModifier", "backendRefs[0].filters[0].responseHeaderModifier"];
            let is_told = |(w, at): (&String, &str)| {
                w.starts_with(&format!("spec.rules[0].{at}.add[0]: ")) && w.ends_with("; the value is sent unchanged")
            };
            assert!(warnings.len() == if told { 2 } else { 0 } && warnings.iter().zip(at).all(is_told), "{warnings:?}");
        }
    }
    for (filter, status) in [
        ("type: URLRewrite, urlRewrite: {hostname: x.com}", 0),
        ("type: RequestRedirect, requestRedirect: {hostname: x.com}", 500),
        ("type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}}", 500),
        ("type: CORS, cors: {allowOrigins: ['*']}", 500),
        ("type: Other", 500),
    ] {
        let (rule, warnings) = of("HTTPRoute", "", &format!("{{{filter}}}"));
        assert_eq!(rule.destinations[0].refuse_status, status, "{filter}");
        assert_eq!(
            warnings.iter().any(|w| w.contains("answered with 500")),
            status == 500 && filter != "type: Other",
            "{warnings:?}"
        );
    }
}

/// A route with a field that is not known here (of a newer version of the API, say) cannot be read at all: what it is for is refused
/// behind all other rules, and not sent by default.
#[test]
fn a_route_that_cannot_be_read_at_all_is_not_the_default() {
    let parent = "parentRefs: [{group: '', kind: Service, name: s}]";
    let newer = "{newer: [x]}";
    let other = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: other, namespace: a}}\nspec: {{{parent}, rules: [{{matches: [{{path: {{value: /o}}}}], backendRefs: [{{name: s, port: 80}}]}}]}}\n"
    );
    for (kind, spec, wanted) in [
        ("HTTPRoute", format!("{{{parent}, rules: [{newer}]}}"), ["other=200 unread=500", ""]),
        ("HTTPRoute", format!("{{{parent}, rules: [{{filters: [{newer}]}}]}}"), ["other=200 unread=500", ""]),
        ("GRPCRoute", format!("{{{parent}, rules: [{{matches: [{newer}]}}]}}"), ["other=200 unread=500", ""]),
        ("TCPRoute", format!("{{{parent}, rules: [{newer}]}}"), ["other=200", "=500"]),
        ("TLSRoute", format!("{{{parent}, hostnames: [a.com], rules: [{newer}]}}"), ["other=200", "a.com=500"]),
        ("VirtualService", format!("{{hosts: [s], http: [{newer}, {newer}]}}"), ["other=200 unread=503", ""]),
        ("VirtualService", format!("{{hosts: [s], tcp: [{newer}], tls: [{newer}]}}"), ["other=200", "*=503 =503"]),
        // Not for this service.
        ("VirtualService", format!("{{hosts: [t], http: [{newer}]}}"), ["other=200", ""]),
        ("VirtualService", format!("{{hosts: [s], gateways: [g], http: [{newer}]}}"), ["other=200", ""]),
    ] {
        let spec: serde_json::Value = serde_yaml_ng::from_str(&spec).unwrap();
        let raw = serde_json::json!({ "metadata": { "name": "unread", "namespace": "a" }, "spec": spec });
        assert!(parse::value(kind, raw.clone()).is_err(), "{kind} {spec}");
        let object = karst_manifest::closed::closed(kind, raw).unwrap();
        let mut objects = parse::file("t.yaml".as_ref(), &(SHOP.to_string() + &other)).unwrap();
        objects.push(Located { object, file: "t.yaml".into(), line: 0 });
        let state = State { objects: objects.into_iter().map(std::sync::Arc::new).collect(), ..State::default() };
        let (m, _) = compile(&state, &mesh());
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http.iter().map(|r| {
            let name = r.origin.split(['/', ' ']).nth(2).unwrap_or_default();
            format!("{name}={}", r.response.as_ref().map_or(200, |r| r.status))
        });
        let tcp = table.tcp.iter().map(|r| format!("{}={}", r.sni.join(" "), r.destinations[0].refuse_status));
        let is = [http.collect::<Vec<_>>().join(" "), tcp.collect::<Vec<_>>().join(" ")];
        assert_eq!(is, wanted.map(String::from), "{kind} {spec}");
        if kind != "VirtualService" {
            let template =
                Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), ..Template::default() };
            let all = written_with(&state, &template, None).statuses;
            let accepted = &all.iter().find(|w| w.to.name == "unread").unwrap().status["parents"][0]["conditions"][0];
            let said = ["type", "status", "reason"].map(|f| accepted[f].as_str().unwrap());
            assert_eq!(said, ["Accepted", "False", "UnsupportedValue"], "{kind}");
        }
    }
}

/// A header that cannot be read is refused when it is applied; of what is stored the rest holds, and nobody else's value stands in the
/// place of one that was to be set.
#[test]
fn a_header_that_cannot_be_read_takes_no_rule_with_it() {
    let of = |headers: &str, of_destination: &str| {
        let rule = format!(
            "http: [{{headers: {{{headers}}}, route: [{{destination: {{host: s}}, headers: {{{of_destination}}}}}]}}]"
        );
        let (m, p) =
            run(&(SHOP.to_string() + &virtual_service("name: v, namespace: a", &format!("hosts: [s], {rule}"))));
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        assert!(rule.response.is_none() && rule.destinations[0].refuse_status == 0, "{rule:?}");
        let show = |c: &Option<karst_api::route::HeaderChange>| {
            let names =
                |all: &[karst_api::route::Header]| all.iter().map(|h| h.name.clone()).collect::<Vec<_>>().join(" ");
            c.as_ref().map_or(String::new(), |c| format!("{}/{}/{}", names(&c.set), names(&c.add), c.remove.join(" ")))
        };
        let d = &rule.destinations[0];
        let changes = [show(&rule.request), show(&rule.answer), show(&d.request), show(&d.answer)];
        let at = "spec.http[0].";
        (changes, p.iter().map(|p| p.field.trim_start_matches(at).to_string()).collect::<Vec<_>>(), rule.rewrite)
    };
    let is = |changes: [&str; 4], fields: &[&str]| {
        (changes.map(String::from), fields.iter().map(ToString::to_string).collect::<Vec<_>>(), None)
    };
    let set = "request: {set: {x-y: '50%', x-z: '%PROTOCOL%'}}";
    assert_eq!(of(set, ""), is(["x-z//x-y", "", "", ""], &["headers.request.set[x-y]"]));
    assert_eq!(of("", set), is(["", "", "x-z//x-y", ""], &["route[0].headers.request.set[x-y]"]));
    assert_eq!(
        of("response: {add: {x-y: '%FOO%'}, remove: ['a b', c]}", ""),
        is(["", "//c", "", ""], &["headers.response.add[x-y]", "headers.response.remove"])
    );
    assert_eq!(
        of("request: {set: {'a b': x}}", "response: {set: {x-y: '%REQ()%'}}"),
        is(["", "", "", "//x-y"], &["route[0].headers.response.set[x-y]", "headers.request.set[a b]"])
    );
    assert_eq!(of("request: {set: {host: '%REQ(x)%'}}", ""), is(["", "", "", ""], &["headers.request.set[host]"]));
}

/// A rule that cannot be read takes no other with it, and its requests are not sent by default: 500, and a condition that says why.
#[test]
fn a_rule_that_cannot_be_read_is_not_the_default() {
    let base = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n";
    let route = |kind: &str, rules: &str| {
        format!(
            "{base}apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: a, generation: 2}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{rules}]}}\n"
        )
    };
    // Each rule as PATH=ANSWER, in order.
    let rules = |text: &str| -> Vec<String> {
        let (m, p) = run(text);
        assert!(p.iter().all(|p| p.field.starts_with("spec.rules[")), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let one = |r: &karst_api::route::HttpRule| {
            let m = r.r#match.as_ref().unwrap();
            let path = m.path.as_ref().and_then(|p| p.kind.as_ref()).map_or("any".into(), |k| format!("{k:?}"));
            let headers: String = m.headers.iter().map(|h| format!(" {}", h.name)).collect();
            format!("{path}{headers}={}", r.response.as_ref().map_or(200, |r| r.status))
        };
        table.http.iter().map(one).collect()
    };
    let said = |text: &str| {
        let w = written(text);
        let of = w.statuses.iter().find(|s| s.to.kind.ends_with("Route")).unwrap();
        let all = of.status["parents"][0]["conditions"].as_array().unwrap().clone();
        let reason = |c: &serde_json::Value| format!("{}={}", c["type"], c["reason"]).replace('"', "");
        let text = all.iter().map(|c| c["message"].as_str().unwrap()).collect::<Vec<_>>().join(" ");
        for c in all.iter().filter(|c| (c["status"] == "False") != (c["type"] == "PartiallyInvalid")) {
            assert!(code::of(c["message"].as_str().unwrap()).is_some(), "has no code: {c}");
        }
        (all.iter().map(reason).collect::<Vec<_>>().join(" "), text)
    };
    let to = "backendRefs: [{name: s, port: 80}]";
    let path = |kind: &str, value: &str| {
        format!("{{path: {{type: {kind}, value: '{value}'}}, headers: [{{name: h, value: v}}]}}")
    };
    let (fine, pattern) = (path("PathPrefix", "/a"), path("RegularExpression", "/b("));
    let good = format!("{{matches: [{fine}], {to}}}");
    // A match: what is left of it, behind all others. With another match of its own the rule does not hold either.
    let bad_match = format!("{{matches: [{}, {pattern}], {to}}}", path("Exact", "/c"));
    let text = route("HTTPRoute", &format!("{good}, {bad_match}"));
    assert_eq!(rules(&text), ["Exact(\"/c\") h=500", "Segments(\"/a\") h=200", "any h=500"]);
    let (reasons, text) = said(&text);
    let none = "ResolvedWaypoints=MissingUseWaypointLabel";
    assert_eq!(
        reasons,
        format!("Accepted=Accepted ResolvedRefs=ResolvedRefs {none} PartiallyInvalid=UnsupportedValue")
    );
    assert!(text.contains("Dropped Rule spec.rules[1].matches[1].path.value"), "{text}");
    // What is done: where the rule matches.
    for wrong in [
        "timeouts: {request: soon}",
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a b', value: x}]}}]",
        "filters: [{type: RequestRedirect}]",
    ] {
        let text = route("HTTPRoute", &format!("{good}, {{matches: [{{path: {{value: /d}}}}], {wrong}, {to}}}"));
        assert_eq!(rules(&text), ["Segments(\"/a\") h=200", "Segments(\"/d\")=500"], "{wrong}");
        assert!(said(&text).1.contains("Dropped Rule spec.rules[1]."), "{wrong}");
    }
    // What a backend does, or what is not executed for one: its share.
    for wrong in [
        "type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: 'a b', value: x}]}",
        "type: CORS, cors: {allowOrigins: ['*']}",
        "type: RequestRedirect, requestRedirect: {hostname: x.com}",
        "type: RequestMirror, requestMirror: {backendRef: {name: s, port: 80}}",
        "type: ExternalAuth",
    ] {
        let text = route(
            "HTTPRoute",
            &format!("{{backendRefs: [{{name: s, port: 80}}, {{name: s, port: 80, filters: [{{{wrong}}}]}}]}}"),
        );
        let (m, _) = run(&text);
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        let statuses: Vec<u32> = rule.destinations.iter().map(|d| d.refuse_status).collect();
        assert_eq!((rule.response, statuses), (None, vec![0, 500]), "{wrong}");
        let (reasons, text) = said(&text);
        assert!(reasons.starts_with("Accepted=Accepted") && reasons.ends_with("PartiallyInvalid=UnsupportedValue"));
        assert!(text.contains("Dropped Rule spec.rules[0].backendRefs[1].filters[0]"), "{text}");
    }
    // None of its backends is left: the rule serves nothing, and so does a route of such rules.
    let lost = "{name: s, port: 80, filters: [{type: ExternalAuth}]}";
    let refused = |rules: &str| said(&route("HTTPRoute", rules)).0;
    let (not_accepted, partly) = ("Accepted=UnsupportedValue", "PartiallyInvalid=UnsupportedValue");
    for rule in [format!("{lost}, {lost}"), format!("{lost}, {{name: s, port: 80, weight: 0}}")] {
        let rule = format!("{{backendRefs: [{rule}]}}");
        assert!(refused(&rule).starts_with(not_accepted), "{rule}");
        let two = refused(&format!("{rule}, {good}"));
        assert!(two.starts_with("Accepted=Accepted") && two.ends_with(partly), "{two}");
    }
    // A filter of a rule that is not known: the rule.
    let text = route("GRPCRoute", &format!("{{filters: [{{type: ExternalAuth}}], {to}}}, {{{to}}}"));
    assert_eq!(rules(&text), ["Segments(\"/\")=500", "Segments(\"/\")=200"]);
    assert!(said(&text).1.contains("Dropped Rule spec.rules[0].filters[0]: unsupported filter type \"ExternalAuth\""));
    // Nothing is left: the route is not accepted, and the service is not called all the same.
    let text = route("HTTPRoute", &format!("{{matches: [{pattern}], {to}}}"));
    assert_eq!(rules(&text), ["any h=500"]);
    assert_eq!(said(&text).0, format!("Accepted=UnsupportedValue ResolvedRefs=ResolvedRefs {none}"));
    let text = route("GRPCRoute", &format!("{{matches: [{{method: {{type: Other, service: x}}}}], {to}}}, {{{to}}}"));
    assert_eq!(rules(&text), ["Segments(\"/\")=200", "Segments(\"/\")=500"]);
    assert!(said(&text).0.contains("PartiallyInvalid"));
    // The condition goes with its reason.
    let good = route("HTTPRoute", &good);
    let fine = written(&good).statuses.into_iter().find(|s| s.to.kind == "HTTPRoute").unwrap().status;
    let mut old = fine.clone();
    let partly = serde_json::json!({"type": "PartiallyInvalid", "status": "True", "reason": "UnsupportedValue", "observedGeneration": 2});
    old["parents"][0]["conditions"].as_array_mut().unwrap().push(partly);
    let wrote = |status: &serde_json::Value| !written(&format!("{good}status: {status}\n")).statuses.is_empty();
    assert_eq!((wrote(&fine), wrote(&old)), (false, true));
}

/// A route leads to ports that a service has, and never to a number: 500 for Gateway API, 503 for Istio's.
#[test]
fn routes_lead_to_ports_that_services_have() {
    let base = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: two, namespace: a}\nspec: {clusterIP: 10.96.0.2, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81}]}\n---\n";
    let first = |text: &str| {
        let (m, p) = run(&format!("{base}{text}"));
        assert!(p.is_empty(), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http.iter().flat_map(|r| r.destinations.iter().chain(r.mirrors.iter().flat_map(|m| &m.to)));
        let tcp = table.tcp.iter().flat_map(|r| &r.destinations);
        http.chain(tcp).map(|d| (d.port, d.refuse_status)).collect::<Vec<_>>()
    };
    let istio = |rules: &str| {
        first(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: a}}\nspec: {{hosts: [s], {rules}}}\n"
        ))
    };
    let to = |host: &str, port: u16| format!("destination: {{host: {host}, port: {{number: {port}}}}}");
    for (host, port, wanted) in [
        ("two", 80, (80, 0)),
        // What its endpoints listen on is no port of the service.
        ("two", 8080, (8080, 503)),
        ("two", 0, (0, 0)),
        ("s", 0, (80, 0)),
        ("none", 80, (80, 503)),
    ] {
        assert_eq!(istio(&format!("http: [{{route: [{{{}}}]}}]", to(host, port))), [wanted], "{host} {port}");
        assert_eq!(istio(&format!("tcp: [{{route: [{{{}}}]}}]", to(host, port))), [wanted], "{host} {port}");
        let tls = istio(&format!("tls: [{{match: [{{sniHosts: [s]}}], route: [{{{}}}]}}]", to(host, port)));
        assert_eq!(tls, [wanted], "{host} {port}");
        let mirror = istio(&format!("http: [{{route: [{{{}}}], mirrors: [{{{}}}]}}]", to("s", 80), to(host, port)));
        assert_eq!(mirror, [(80, 0), wanted], "{host} {port}");
    }
    for (kind, group) in [("HTTPRoute", "v1"), ("GRPCRoute", "v1"), ("TCPRoute", "v1alpha2"), ("TLSRoute", "v1")] {
        let route = |backend: &str| {
            first(&format!(
                "apiVersion: gateway.networking.k8s.io/{group}\nkind: {kind}\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{backendRefs: [{{{backend}}}]}}]}}\n"
            ))
        };
        assert_eq!(route("name: two, port: 81"), [(81, 0)], "{kind}");
        assert_eq!(route("name: two, port: 8080"), [(8080, 500)], "{kind}");
        let host = "group: networking.istio.io, kind: Hostname, name: two.a.svc.cluster.local";
        assert_eq!(route(&format!("{host}, port: 82")), [(82, 500)], "{kind}");
    }
}

/// A rule of an HTTPRoute, and the fields that are wrong in it.
fn http_rule(rule: &str) -> (karst_api::route::HttpRule, Vec<String>) {
    let text = format!(
        "{SHOP}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{{rule}, backendRefs: [{{name: s, port: 80}}]}}]}}\n"
    );
    let (m, p) = run(&text);
    let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
    (rule, p.into_iter().map(|p| p.field).collect())
}

/// GEP-1731: what no backend has acted on is tried again, and what it may have acted on only where the rule says so.
#[test]
fn retries_of_gateway_api_repeat_nothing_that_may_have_been_done() {
    let of = |retry: &str, timeouts: &str| {
        let (rule, bad) = http_rule(&format!("retry: {{{retry}}}, timeouts: {{{timeouts}}}"));
        assert!(bad.is_empty(), "{bad:?}");
        rule.retry.unwrap()
    };
    let default = of("", "");
    assert_eq!((default.attempts, default.per_try_ms, default.backoff_ms), (1, 0, 25));
    assert!(default.connect_failure && default.refused_stream && default.reset_before_request);
    assert!(!default.reset && !default.server_error && !default.gateway_error && !default.retriable_4xx);
    assert_eq!((default.grpc, default.codes), (vec![14], vec![]));
    let of_all = of("attempts: 3, codes: [500, 503, 429], backoff: 100ms", "request: 2s, backendRequest: 500ms");
    assert_eq!((of_all.attempts, of_all.per_try_ms, of_all.backoff_ms), (3, 500, 100));
    assert!(of_all.attempt_timeout && !of_all.reset && of_all.codes == [500, 503, 429]);
    assert_eq!(of("attempts: 0, codes: [500]", "").attempts, 0, "none at all");
    // Without the stanza: as in Istio, where an attempt that takes too long is the client's to repeat.
    let (rule, _) = http_rule("timeouts: {backendRequest: 500ms}");
    let istio = karst_api::route::Retry { per_try_ms: 500, ..karst_api::route::Retry::istio() };
    assert_eq!(rule.retry, Some(istio));
    for (wrong, field) in [
        ("codes: [500, 399]", "spec.rules[0].retry.codes[1]"),
        ("codes: [600]", "spec.rules[0].retry.codes[0]"),
        ("backoff: soon", "spec.rules[0].retry.backoff"),
    ] {
        let (rule, bad) = http_rule(&format!("retry: {{{wrong}}}"));
        assert_eq!((bad, rule.response.map(|r| r.status)), (vec![field.to_string()], Some(500)), "{wrong}");
    }
}

/// HTTPCORSFilter: `*` is greedy within a host, and 80 and 443 are what `http` and `https` are without a port.
#[test]
fn origins_of_cors_have_hosts_and_ports() {
    use karst_api::route::text::Kind;
    let admits = |entry: &str, origin: &str| {
        let (rule, bad) = http_rule(&format!("filters: [{{type: CORS, cors: {{allowOrigins: ['{entry}']}}}}]"));
        assert!(bad.is_empty(), "{bad:?}");
        rule.cors.unwrap().origins.iter().any(|t| match t.kind.as_ref().unwrap() {
            Kind::Exact(text) => text == origin || text == "*",
            Kind::Regex(pattern) => regex::Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(origin),
            other => panic!("{other:?}"),
        })
    };
    for (entry, yes, no) in [
        ("*", &["https://a.com", "http://a.com:8080", "null"][..], &[] as &[&str]),
        (
            "https://www.foo.com",
            &["https://www.foo.com", "https://www.foo.com:443"],
            &["https://www.foo.com:8443", "http://www.foo.com", "https://foo.com", "https://www.foo.com.evil.com"],
        ),
        ("http://Foo.com:80", &["http://foo.com", "http://foo.com:80"], &["http://foo.com:443", "https://foo.com"]),
        ("https://foo.com:80", &["https://foo.com:80"], &["https://foo.com", "https://foo.com:443"]),
        (
            "https://*.bar.com",
            &["https://www.bar.com", "https://xpto.www.bar.com", "https://www.bar.com:443"],
            &[
                "https://foobar.com",
                "https://bar.com",
                "https://.bar.com.evil.com",
                "https://www.bar.com:8443",
                "https://evil.com/x.bar.com",
                "https://evil.com:443.bar.com",
                "https://www.barxcom",
            ],
        ),
        ("https://*.bar.com:8443", &["https://www.bar.com:8443"], &["https://www.bar.com", "https://www.bar.com:443"]),
        (
            "http://*",
            &["http://a", "http://a.b.c:80", "http://[::1]"],
            &["https://a", "http://a:81", "http://[::1]:81"],
        ),
    ] {
        for (origins, wanted) in [(yes, true), (no, false)] {
            for origin in origins {
                assert_eq!(admits(entry, origin), wanted, "{entry} {origin}");
            }
        }
    }
    let age = |cors: &str| http_rule(&format!("filters: [{{type: CORS, cors: {{{cors}}}}}]")).0.cors.unwrap().max_age_s;
    assert_eq!(["", "maxAge: 0", "maxAge: 1"].map(age), [Some(5), Some(5), Some(1)]);
}

/// A rewrite in one backend is that backend's; the rule's own is for those without one.
#[test]
fn a_backend_has_a_rewrite_of_its_own() {
    use karst_api::route::{Rewrite, rewrite::Path};
    let path = |kind: &str, field: &str| {
        format!("{{type: URLRewrite, urlRewrite: {{path: {{type: {kind}, {field}: /new}}}}}}")
    };
    for (filter, wanted) in [
        (path("ReplaceFullPath", "replaceFullPath"), Path::Full("/new".into())),
        (path("ReplacePrefixMatch", "replacePrefixMatch"), Path::Prefix("/new".into())),
    ] {
        let text = format!(
            "{SHOP}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{filters: [{{type: URLRewrite, urlRewrite: {{hostname: x.com}}}}], backendRefs: [{{name: s, port: 80, filters: [{filter}]}}, {{name: s, port: 80}}]}}]}}\n"
        );
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        let rule = m.routes["a/s.a.svc.cluster.local"].producer.as_ref().unwrap().http[0].clone();
        let own = Rewrite { path: Some(wanted), ..Default::default() };
        let all: Vec<_> = rule.destinations.into_iter().map(|d| (d.rewrite, d.refuse_status)).collect();
        assert_eq!(all, [(Some(own), 0), (None, 0)], "{filter}");
        assert_eq!(rule.rewrite, Some(Rewrite { authority: "x.com".into(), path: None }));
    }
}

/// Limits of size and compression, for a service and for the rules that name the filter; of several the smallest limit counts.
#[test]
fn filters_limit_sizes_and_compress() {
    let filter = |name: &str, spec: &str| {
        format!(
            "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: {name}, namespace: a}}\nspec: {{{spec}}}\n---\n"
        )
    };
    let named = |name: &str| {
        format!("{{type: ExtensionRef, extensionRef: {{group: karst.io, kind: HTTPFilter, name: {name}}}}}")
    };
    let route = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{filters: [{}, {}], backendRefs: [{{name: s, port: 80}}]}}]}}\n---\n",
        named("small"),
        named("page")
    );
    let target = "targetRefs: [{kind: Service, name: s}]";
    let text = [
        SHOP,
        &route,
        &filter("small", "maxRequestBytes: 10"),
        &filter("page", "maxRequestBytes: 20, compression: {minBytes: 5, contentTypes: [Text/HTML]}"),
        &filter("whole", &format!("{target}, maxRequestBytes: 300, compression: {{}}")),
        &filter("other", &format!("{target}, maxRequestBytes: 200")),
    ]
    .concat();
    let (m, _) = run(&text);
    let routes = &m.routes["a/s.a.svc.cluster.local"];
    assert_eq!(
        (routes.max_body_bytes, routes.compression.clone()),
        (200, Some(karst_api::route::Compression::default()))
    );
    let rule = &routes.producer.as_ref().unwrap().http[0];
    let page = karst_api::route::Compression { min_bytes: 5, content_types: vec!["text/html".into()] };
    assert_eq!((rule.max_body_bytes, rule.compression.clone()), (10, Some(page)));
}
