//! Services, entries and names become services.

use super::*;

#[test]
fn session_affinity_is_compiled_with_its_timeout() {
    for (spec, seconds) in [
        ("", 0),
        ("sessionAffinity: None, ", 0),
        ("sessionAffinity: ClientIP, ", 10_800),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, ", 60),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ", 10_800),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}, ", 86_400),
        ("sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, ", 0),
    ] {
        let (m, p) = run(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{{spec}clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n"
        ));
        assert!(p.is_empty(), "{p:?}");
        assert_eq!(m.services["a/s.a.svc.cluster.local"].karst_session_affinity_seconds, seconds, "{spec}");
    }
}

/// It is gRPC for whoever else calls.
#[test]
fn ports_for_grpc_web_are_told() {
    let service = |port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80, {port}}}]}}\n"
        )
    };
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: s, namespace: a}\nspec: {hosts: [s.a.svc.cluster.local], resolution: STATIC, ports: [{number: 80, name: p, protocol: GRPC-WEB}], endpoints: [{address: 192.0.2.1}]}\n";
    for (text, want) in [
        (service("name: grpc-web"), &[80][..]),
        (service("name: grpc-web-shop"), &[80]),
        (service("name: GRPC-Web-shop"), &[80]),
        (service("name: x, appProtocol: grpc-web"), &[80]),
        (service("name: grpc-web, appProtocol: grpc"), &[]),
        (service("name: grpc-webshop"), &[]),
        (service("name: grpc"), &[]),
        (entry.to_string(), &[80]),
    ] {
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        let found = &m.services["a/s.a.svc.cluster.local"];
        assert_eq!(found.karst_grpc_web_ports, want, "{text}");
        assert_eq!(found.ports[0].app_protocol(), karst_api::workload::AppProtocol::Grpc, "{text}");
    }
}

#[test]
fn service_entries_get_stable_addresses() {
    let se = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [x.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}\n";
    let (m, p) = run(se);
    assert!(p.is_empty(), "{p:?}");
    let vip = m.services["a/x.example"].addresses[0].address.clone();
    assert_eq!(vip[..2], [240, 240]);
    assert_eq!(run(se).0.services["a/x.example"].addresses[0].address, vip);
    assert_eq!(m.workloads.len(), 1);
    // One of each family (2001:2::/48).
    let of = |text: &str| -> Vec<String> {
        let (m, _) = run(text);
        let ip =
            |a: &karst_api::workload::NetworkAddress| karst_core::addr::ip_from_bytes(&a.address).unwrap().to_string();
        m.services["a/x.example"].addresses.iter().map(ip).collect()
    };
    let given = of(se);
    assert!(given.len() == 2 && given[0].starts_with("240.240.") && given[1].starts_with("2001:2::"), "{given:?}");
    // What the status tells stays, if it is one of ours, and if it is of this host; what is missing is given.
    let status = |list: &str| format!("{se}status: {{addresses: [{list}]}}\n");
    let told = "{value: 240.240.3.4, host: x.example}, {value: '2001:2::5', host: x.example}";
    assert_eq!(of(&status(told)), ["240.240.3.4", "2001:2::5"]);
    assert_eq!(of(&status("{value: '2001:2::5', host: x.example}")), [given[0].as_str(), "2001:2::5"]);
    for other in
        ["{value: 10.96.0.1, host: x.example}", "{value: 240.240.3.4, host: y.example}", "{value: x, host: x.example}"]
    {
        assert_eq!(of(&status(other)), given, "{other}");
    }
    // An entry that has been there for longer keeps what its status tells; whoever claims the same gets another.
    let two = format!(
        "{}---\n{}",
        status(told),
        status(told)
            .replace("name: e,", "name: f,")
            .replace("hosts: [x.", "hosts: [y.")
            .replace("host: x.", "host: y.")
    );
    let (m, _) = run(&two);
    let of_host = |h: &str| m.services[h].addresses.iter().map(|a| a.address.clone()).collect::<Vec<_>>();
    assert!(of_host("a/x.example").iter().all(|a| !of_host("a/y.example").contains(a)));
    // None where there are addresses, nothing to look up, or no wish for them.
    for none in [
        se.replace("resolution: STATIC", "addresses: [10.0.0.7], resolution: STATIC"),
        se.replace("namespace: a}", "namespace: a, labels: {networking.istio.io/enable-autoallocate-ip: 'false'}}"),
    ] {
        assert!(of(&none).iter().all(|a| a == "10.0.0.7"), "{none}");
    }
    // Told in the status, once.
    let said = |text: &str| -> Vec<serde_json::Value> {
        let of = |w: Write| (w.manager == "istio.io/ip-autoallocate").then(|| w.status["addresses"].clone());
        written(text).statuses.into_iter().filter_map(of).collect()
    };
    let wanted: Vec<_> = given.iter().map(|v| serde_json::json!({ "value": v, "host": "x.example" })).collect();
    assert_eq!(said(se), [serde_json::json!(wanted)]);
    let list = given.iter().map(|v| format!("{{value: '{v}', host: x.example}}")).collect::<Vec<_>>().join(", ");
    assert!(said(&status(&list)).is_empty() && said(&status(told)).is_empty());
    let own = status(told).replace("resolution: STATIC", "addresses: [10.0.0.7], resolution: STATIC");
    assert_eq!(said(&own), [serde_json::json!([])], "what is not given any more is not told");
    let (_, p) = run(&se.replace("192.0.2.1", "host.example"));
    assert_eq!(p[0].field, "spec.endpoints[0].address");
}

/// Two ServiceEntries of one host are one service with the ports of both; an endpoint has those of its own entry.
#[test]
fn service_entries_of_one_host_are_one_service() {
    let entry = |name: &str, port: u16, more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{name}'}}\nspec: {{hosts: [x.example], addresses: [10.0.{port}.1], resolution: STATIC, ports: [{{number: {port}, name: p, protocol: TCP}}], {more}}}\n---\n"
        )
    };
    let at = |list: &str| format!("endpoints: [{list}]");
    let ports = |list: &karst_api::workload::PortList| -> Vec<String> {
        list.ports.iter().map(|p| format!("{}:{}", p.service_port, p.target_port)).collect()
    };
    let run_all = |text: &str| {
        let (m, p) = run(text);
        let endpoints: Vec<_> = m.workloads.values().map(|w| ports(&w.services["a/x.example"]).join(" ")).collect();
        let s = &m.services["a/x.example"];
        let all: Vec<u32> = s.ports.iter().map(|p| p.service_port).collect();
        (all, s.addresses.len(), endpoints, p.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let two = entry("b", 80, &at("{address: 192.0.2.1}")) + &entry("c", 90, &at("{address: 192.0.2.1}"));
    assert_eq!(run_all(&two), (vec![80, 90], 2, vec!["80:80".into(), "90:90".into()], vec![]));
    // The same by labels: the pod is an endpoint at both.
    let selects = "workloadSelector: {labels: {app: web}}";
    let selected = POD.to_string() + &entry("b", 80, selects) + &entry("c", 90, selects);
    assert_eq!(run_all(&selected).2, ["80:80 90:90"]);
    // Two at one address, told apart by their ports.
    let twins = entry("b", 80, &at("{address: 192.0.2.1, ports: {p: 81}}, {address: 192.0.2.1, ports: {p: 82}}"));
    assert_eq!(run_all(&twins).2, ["80:81", "80:82"]);
    // What cannot be one service stays that of the older one, and is told.
    let other = entry("c", 90, "").replace("resolution: STATIC", "resolution: NONE");
    let (all, addresses, _, problems) = run_all(&(entry("b", 80, &at("{address: 192.0.2.1}")) + &other));
    assert_eq!((all, addresses, problems.len()), (vec![80], 1, 1), "{problems:?}");
    assert!(problems[0].contains("ServiceEntry a/c") && problems[0].contains("different resolution"), "{problems:?}");
}

/// A Service of type ExternalName is another name: destinations of VirtualServices lead to what it stands for, if the mesh knows
/// that, as in Istio. To Gateway API it is no backend and no parent.
#[test]
fn an_external_name_is_another_name() {
    let alias = |name: &str, of: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec: {{type: ExternalName, externalName: {of}, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: b}\nspec: {hosts: [x.example], EXPORTresolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}\n---\n";
    let of = |host: &str, more: &str| {
        let to = format!("[{{destination: {{host: {host}}}}}]");
        let rules = format!("http: [{{route: {to}, mirror: {{host: {host}}}}}], tcp: [{{route: {to}}}]");
        let v = virtual_service("name: v, namespace: a", &format!("hosts: [s], {rules}"));
        let text = [SHOP, more, &v].concat();
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        let table = m.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        let http = table.http[0].destinations.iter().chain(&table.http[0].mirrors[0].to);
        let mut all: Vec<_> = http.chain(&table.tcp[0].destinations).cloned().collect();
        all.iter_mut().for_each(|d| d.weight = 0);
        all.dedup();
        assert_eq!(all.len(), 1, "{all:?}");
        let said = conditions(&written(&text));
        let lost = said.iter().any(|c| c == "VirtualService a/v: ResolvedRefs False HostNotFound");
        assert_eq!(lost, all[0].refuse_status == 503, "{said:?}");
        (all[0].service.clone(), all[0].port, all[0].refuse_status)
    };
    let s = ("a/s.a.svc.cluster.local".to_string(), 80, 0);
    for (host, more) in [
        ("ext", alias("ext", "s.a.svc.cluster.local")),
        ("ext.a", alias("ext", "S.a.svc.cluster.local.")),
        ("ext.a.svc.cluster.local", alias("ext", "two.a.svc.cluster.local") + &alias("two", "s.a.svc.cluster.local")),
    ] {
        assert_eq!(of(host, &more), s, "{host}");
    }
    let open = entry.replace("EXPORT", "");
    assert_eq!(of("ext", &(alias("ext", "x.example") + &open)), ("b/x.example".into(), 443, 0));
    for (of_alias, more) in [
        ("x.example", String::new()),
        ("x.example", entry.replace("EXPORT", "exportTo: ['.'], ")),
        ("ext.a.svc.cluster.local", String::new()),
    ] {
        assert_eq!(of("ext", &(alias("ext", of_alias) + &more)), ("ext".into(), 0, 503), "{of_alias} {more}");
    }
    // Rules for the name are for nobody.
    let v = virtual_service("name: v, namespace: a", "hosts: [ext], http: [{route: [{destination: {host: s}}]}]");
    let (m, _) = run(&[SHOP, &alias("ext", "s.a.svc.cluster.local"), &v].concat());
    assert!(m.routes.is_empty(), "{:?}", m.routes);
    let route = |parent: &str, backend: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: {parent}}}], rules: [{{backendRefs: [{{{backend}, port: 80}}]}}]}}\n"
        );
        let text = [SHOP, &alias("ext", "s.a.svc.cluster.local"), &text].concat();
        let routes = run(&text).0.routes;
        let refused = |r: &karst_api::route::Routes| r.producer.as_ref().unwrap().http[0].destinations[0].refuse_status;
        let w = written(&text);
        let of = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").unwrap();
        let all = of.status["parents"][0]["conditions"].as_array().unwrap();
        let reasons: Vec<_> = all.iter().filter_map(|c| c["reason"].as_str().map(String::from)).take(2).collect();
        (routes.values().map(|r| refused(r)).collect::<Vec<_>>(), reasons.join(" "))
    };
    let by_host = "group: networking.istio.io, kind: Hostname, name: ext.a.svc.cluster.local";
    for backend in ["name: ext", by_host] {
        assert_eq!(route("s", backend), (vec![500], "Accepted BackendNotFound".into()), "{backend}");
    }
    assert_eq!(route("ext", "name: s"), (vec![], "NoMatchingParent ResolvedRefs".into()));
}

/// Nothing is for a Service of type ExternalName, whoever's: policies say so, and what it stands for is told in its namespace only.
#[test]
fn nothing_is_attached_to_an_external_name() {
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: ext, namespace: NS, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}\nspec: {type: ExternalName, externalName: secret.example, ports: [{port: 80}]}\n---\n";
    let waypoint = WAYPOINT.replace("STATUS", READY);
    let said = |ns: &str, text: &str, kind: &str| -> Vec<serde_json::Value> {
        let all = written(&[&*waypoint, &alias.replace("NS", ns), text].concat()).statuses;
        all.into_iter().filter(|w| w.to.kind == kind).map(|w| w.status).collect()
    };
    let reason = |c: &serde_json::Value| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "");
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{kind: Service, name: ext}], rules: [{}]}\n";
    let is = &said("a", policy, "AuthorizationPolicy")[0]["conditions"][0];
    assert_eq!(reason(is), "WaypointAccepted False TargetNotFound");
    assert!(is["message"].as_str().unwrap().ends_with("refer to \"secret.example\" itself [KARST-0321]"), "{is}");
    assert_eq!(said("a", "", "Service"), [serde_json::Value::Null; 0], "it is bound to nothing");
    let bound =
        "status: {conditions: [{type: istio.io/WaypointBound, status: 'True', reason: WaypointAccepted}]}\n---\n";
    let stale = alias.replace("NS", "b").replace("---\n", bound);
    assert_eq!(said("a", &stale, "Service"), [serde_json::json!({ "conditions": [] })]);
    let tls = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{group: '', kind: Service, name: ext}], validation: {hostname: x, wellKnownCACertificates: System}}\n";
    let (_, problems) = run(&[&alias.replace("NS", "a"), tls].concat());
    assert!(problems.iter().any(|p| p.message.contains("not supported as a target")), "{problems:?}");
    // Of another namespace's nobody learns what it stands for.
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: ext, namespace: NS}]}\n";
    for (ns, is_told) in [("a", true), ("b", false)] {
        let accepted = said(ns, &route.replace("NS", ns), "HTTPRoute")[0]["parents"][0]["conditions"][0].clone();
        assert_eq!(reason(&accepted), "Accepted False NoMatchingParent");
        assert_eq!(accepted["message"].as_str().unwrap().contains("secret.example"), is_told, "{accepted}");
        let to = format!("hosts: [x.com], http: [{{route: [{{destination: {{host: ext.{ns}.svc.cluster.local}}}}]}}]");
        let v = virtual_service("name: v, namespace: a", &to);
        let lost = &said(ns, &v, "VirtualService")[0].to_string();
        assert!(lost.contains("ExternalName") && lost.contains("secret.example") == is_told, "{lost}");
    }
}
