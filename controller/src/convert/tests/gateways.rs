//! What gateways listen on.

use super::*;
use karst_api::route as ir;

/// The value of a field that is two deep.
fn indented(pem: &str) -> String {
    pem.lines().map(|l| format!("    {l}\n")).collect()
}

/// Secret `c` of namespace a.
pub(super) fn key_pair() -> String {
    let pair = crate::ca::Signer::generate("cluster.local").unwrap();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: c, namespace: a}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}---\n",
        indented(&pair.0),
        indented(&pair.1)
    )
}

/// Istio has a filter for it at such a server.
#[test]
fn a_server_can_be_for_grpc_web() {
    for (protocol, want) in [("HTTP", false), ("GRPC-WEB", true), ("grpc-web", true), ("GRPC", false)] {
        let text = [
            INGRESS,
            SHOP,
            &servers("gw", &[(80, "*")]).replace("protocol: HTTP", &format!("protocol: {protocol}")),
            &virtual_service(
                "name: v, namespace: a",
                "hosts: ['*'], gateways: [gw], http: [{route: [{destination: {host: s}}]}]",
            ),
        ]
        .concat();
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        let all: Vec<bool> = m.gateways["edge/gw"].listeners.iter().map(|l| l.grpc_web).collect();
        assert_eq!(all, [want], "{protocol}");
    }
}

/// Of one port's servers, whichever Gateways they are of, the routes of a host are one list: the oldest first, but what matches
/// everything last. Istio's httpbin and helloworld samples are like that.
#[test]
fn servers_of_a_port_share_their_virtual_hosts() {
    for (httpbin, helloworld) in [("2024", "2025"), ("2025", "2024")] {
        let text = [
            INGRESS,
            SHOP,
            &servers("httpbin-gateway", &[(80, "*")]),
            &servers("helloworld-gateway", &[(80, "*"), (80, "x.com")]),
            &virtual_service(
                &format!("name: httpbin, namespace: a, creationTimestamp: '{httpbin}'"),
                "hosts: ['*'], gateways: [httpbin-gateway], http: [{route: [{destination: {host: s}}]}]",
            ),
            &virtual_service(
                &format!("name: hello, namespace: a, creationTimestamp: '{helloworld}'"),
                "hosts: ['*'], gateways: [helloworld-gateway, httpbin-gateway], http: [{match: [{uri: {exact: /hello}}], route: [{destination: {host: s}}]}]",
            ),
        ]
        .concat();
        let (m, p) = run(&text);
        assert!(p.is_empty(), "{p:?}");
        assert_eq!(m.gateways["edge/gw"].listeners.len(), 3);
        let routes = virtual_hosts(&m, 80);
        let all = m.routes[&format!("{routes}/*")].producer.as_ref();
        assert_eq!(origins(all), ["hello http[0]", "httpbin http[0]"], "httpbin {httpbin}");
        // A longer host has its own list: that of whoever is bound there.
        let own = m.routes[&format!("{routes}/x.com")].producer.as_ref();
        assert_eq!(origins(own), ["hello http[0]"]);
    }
}

/// A server's port is the Service's; the pod listens where the Service sends what comes there.
#[test]
fn ports_of_gateways_are_those_of_their_services() {
    let service = |ports: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: gw, namespace: edge}}\nspec: {{clusterIP: 10.96.0.9, selector: {{istio: ingressgateway}}, ports: [{ports}]}}\n---\n"
        )
    };
    let bound = |port: u16| {
        virtual_service(
            "name: v, namespace: a",
            &format!(
                "hosts: [x.com], gateways: [gw], http: [{{match: [{{port: {port}}}], route: [{{destination: {{host: s}}}}]}}]"
            ),
        )
    };
    let of = |services: &str, number: u16| {
        let text = [INGRESS, SHOP, services, &servers("gw", &[(number, "*")]), &bound(number)].concat();
        let (m, p) = run(&text);
        let listeners = &m.gateways["edge/gw"].listeners;
        let ports: Vec<_> = listeners.iter().map(|l| (l.port, l.called)).collect();
        // What a rule calls the port is that of the Gateway.
        let routes = virtual_hosts(&m, ports[0].0);
        let rule = &m.routes[&format!("{routes}/x.com")].producer.as_ref().unwrap().http[0];
        assert!(rule.ports.is_empty(), "{rule:?}");
        let said: Vec<_> = conditions(&written(&text)).into_iter().filter(|c| c.starts_with("Gateway ")).collect();
        (ports, p.iter().map(|p| p.field.clone()).collect::<Vec<_>>(), said)
    };
    let none: Vec<String> = vec![];
    let mapped = service("{name: http, port: 80, targetPort: 8080}");
    assert_eq!(of(&mapped, 80), (vec![(8080, 80)], none.clone(), none.clone()));
    // Istio's newer samples name the pod's port.
    assert_eq!(of(&mapped, 8080), (vec![(8080, 0)], none.clone(), none.clone()));
    assert_eq!(of("", 80), (vec![(80, 0)], none.clone(), none.clone()));
    let reverse = service("{name: http, port: 8080, targetPort: 80}");
    assert_eq!(of(&reverse, 8080), (vec![(80, 8080)], none.clone(), none.clone()));
    let out = mapped
        .replace("name: gw,", "name: gw, labels: {experimental.istio.io/disable-gateway-port-translation: 'true'},");
    assert_eq!(of(&out, 80).0, [(80, 0)]);
    // Two Services: both.
    let two = mapped.clone() + &service("{name: http, port: 80, targetPort: 8081}").replace("name: gw,", "name: gw2,");
    assert_eq!(of(&two, 80).0, [(8080, 80), (8081, 80)]);
    // A Gateway of Gateway API that somebody else runs: the Service that it names must have the ports.
    let named = |port: u16| {
        let text = format!(
            "{mapped}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge}}\nspec: {{gatewayClassName: istio, addresses: [{{type: Hostname, value: gw.edge.svc.cluster.local}}], listeners: [{{name: l, port: {port}, protocol: HTTP}}]}}\n"
        );
        conditions(&written(&text)).into_iter().find(|c| c.contains("Programmed")).unwrap()
    };
    assert_eq!(named(80), "Gateway edge/g: Programmed True Programmed");
    assert_eq!(named(81), "Gateway edge/g: Programmed False AddressNotUsable");
    // No Service has it: it is listened on all the same, and told.
    let (ports, fields, said) = of(&mapped, 9000);
    assert_eq!((ports, fields), (vec![(9000, 0)], vec!["spec.servers[0].port.number".to_string()]));
    assert_eq!(said, ["Gateway a/gw: karst.io/PortsMapped False PortNotInService"]);
    // Requests and bytes at one port of the pod: the first has it, and the other says so.
    let text = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: a}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}, {port: {number: 8080, name: t, protocol: TCP}, hosts: ['*']}]}\n";
    let text = [INGRESS, &mapped, text].concat();
    let (m, p) = run(&text);
    let listeners = &m.gateways["edge/gw"].listeners;
    assert_eq!(listeners.iter().map(|l| (l.port, l.called)).collect::<Vec<_>>(), [(8080, 80)]);
    let want = "Gateway a/gw: spec.servers[1].port.number: maps to port 8080 of pod edge/gw, which spec.servers[0] of Gateway a/gw already uses with another protocol: use another port [KARST-0507]";
    assert_eq!(p.iter().map(|p| p.to_string().split_once(": ").unwrap().1.to_string()).collect::<Vec<_>>(), [want]);
    let said: Vec<_> = conditions(&written(&text)).into_iter().filter(|c| c.starts_with("Gateway ")).collect();
    assert_eq!(said, ["Gateway a/gw: karst.io/PortsMapped False PortConflict"]);
    // The same for listeners of Gateway API.
    let text = [
        INGRESS.replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g").as_str(),
        &mapped.replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g"),
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: edge}\nspec: {gatewayClassName: istio, listeners: [{name: h, port: 80, protocol: HTTP}, {name: t, port: 8080, protocol: TCP}]}\n",
    ]
    .concat();
    let w = written(&text);
    let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
    let reasons = |of: &serde_json::Value| -> Vec<String> {
        let all = of["conditions"].as_array().unwrap().iter();
        all.map(|c| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "")).collect()
    };
    assert!(reasons(status).contains(&"Accepted True ListenersNotValid".to_string()), "{status}");
    let [h, t] = [0usize, 1].map(|i| reasons(&status["listeners"][i]));
    assert_eq!(h[..2], ["Accepted True Accepted", "Programmed True Programmed"]);
    assert_eq!(t[..2], ["Accepted False PortUnavailable", "Programmed False Invalid"]);
    let why = status["listeners"][1]["conditions"][0]["message"].as_str().unwrap();
    assert!(
        why.starts_with("port 8080 maps to port 8080 of pod edge/gw, which listener h of Gateway edge/g already uses"),
        "{why}"
    );
}

/// Istio's egress task: subsets of a gateway in another namespace, said beside the application.
#[test]
fn an_egress_gateway_has_the_subsets_of_its_clients() {
    let text = [
        "apiVersion: v1\nkind: Service\nmetadata: {name: istio-egressgateway, namespace: istio-system}\nspec: {clusterIP: 10.96.0.8, selector: {istio: egressgateway}, ports: [{name: http2, port: 80, targetPort: 8080}]}\n---\n",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: cnn, namespace: default}\nspec: {hosts: [edition.cnn.com], resolution: DNS, ports: [{number: 80, name: http-port, protocol: HTTP}]}\n---\n",
        &INGRESS.replace("name: gw, namespace: edge, labels: {istio: ingressgateway}", "name: gw, namespace: istio-system, labels: {istio: egressgateway}"),
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: istio-egressgateway, namespace: default}\nspec: {selector: {istio: egressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [edition.cnn.com]}]}\n---\n",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: egressgateway-for-cnn, namespace: default}\nspec: {host: istio-egressgateway.istio-system.svc.cluster.local, subsets: [{name: cnn}]}\n---\n",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: direct-cnn-through-egress-gateway, namespace: default}\nspec: {hosts: [edition.cnn.com], gateways: [istio-egressgateway, mesh], http: [{match: [{gateways: [mesh], port: 80}], route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: cnn, port: {number: 80}}, weight: 100}]}, {match: [{gateways: [istio-egressgateway], port: 80}], route: [{destination: {host: edition.cnn.com, port: {number: 80}}, weight: 100}]}]}\n",
    ]
    .concat();
    let (m, p) = run(&text);
    assert!(p.is_empty(), "{p:?}");
    const GATEWAY: &str = "istio-system/istio-egressgateway.istio-system.svc.cluster.local";
    let to = |table: Option<&karst_api::route::Table>| {
        let d = table.unwrap().http[0].destinations[0].clone();
        (d.service, d.port, d.subset, d.refuse_status)
    };
    let routes = &m.routes["default/edition.cnn.com"];
    assert_eq!(to(routes.producer.as_ref()), (GATEWAY.into(), 80, "cnn".into(), 0));
    let backend = &m.backends[GATEWAY];
    assert!(backend.rules("default").subsets.iter().any(|s| s.name == "cnn"));
    assert!(backend.rules("other").subsets.is_empty());
    // The gateway listens where its Service sends port 80, and sends on.
    let listener = &m.gateways["istio-system/gw"].listeners[0];
    assert_eq!((listener.port, listener.called), (8080, 80));
    let on = &m.routes[&format!("{}/edition.cnn.com", listener.routes)];
    assert_eq!(to(on.producer.as_ref()), ("default/edition.cnn.com".into(), 80, String::new(), 0));
}

/// Where clients are to show certificates nobody is served without, and it is told.
#[test]
fn listeners_that_ask_for_client_certificates_are_refused() {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: g}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n---\n";
    const MODE: &str = "gateway.istio.io/tls-terminate-mode";
    let secret = key_pair();
    let of = |one: &str| -> Vec<String> {
        let tls = "certificateRefs: [{name: c}]";
        let text = format!(
            "{POD}{secret}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, listeners: [
            {{name: one, port: 443, protocol: HTTPS, hostname: A.x.com, tls: {{{tls}, {one}}}}},
            {{name: wide, port: 443, protocol: HTTPS, hostname: '*.x.com', tls: {{{tls}}}}},
            {{name: narrow, port: 443, protocol: HTTPS, hostname: a.a.x.com, tls: {{{tls}}}}},
            {{name: other, port: 8443, protocol: HTTPS, tls: {{{tls}}}}},
            {{name: bytes, port: 9443, protocol: TLS, tls: {{{tls}}}}},
            {{name: pass, port: 9444, protocol: TLS, tls: {{mode: Passthrough}}}},
            {{name: plain, port: 80, protocol: HTTP}}]}}\n"
        );
        let (m, p) = run(&text);
        let served: Vec<&str> =
            m.gateways["a/p"].listeners.iter().map(|l| l.origin.rsplit('/').next().unwrap()).collect();
        let w = written(&text);
        let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
        let refused = status["listeners"].as_array().unwrap().iter().filter(|l| {
            let c = l["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Accepted").unwrap();
            (&c["status"], &c["reason"]) == (&"False".into(), &"UnsupportedValue".into())
        });
        let refused: Vec<String> = refused.map(|l| l["name"].as_str().unwrap().to_string()).collect();
        assert!(refused.iter().all(|r| !served.contains(&r.as_str())) && refused.len() + served.len() == 7);
        let told: Vec<&str> = p.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(told, refused.iter().map(|r| format!("spec.listeners[{r}]")).collect::<Vec<_>>(), "{p:?}");
        refused
    };
    const CA: &str = "{caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}";
    let option = |mode: &str| format!("options: {{{MODE}: {mode}}}");
    let none: [&str; 0] = [];
    assert_eq!(of(""), none);
    assert_eq!(of("options: {other/option: MUTUAL}"), none);
    assert_eq!(of(&option("SIMPLE")), none);
    for mode in ["MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL", "mutual"] {
        assert_eq!(of(&option(mode)), ["one", "wide"], "{mode}");
    }
    assert_eq!(of(&format!("frontendValidation: {CA}")), ["one", "wide"]);
}

/// Four listeners of a Gateway, the first with these filters, for one pod; and Service `s`.
fn with_filters(filters: &str) -> String {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: g}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n---\n";
    format!(
        "{POD}{SHOP}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, listeners: [
        {{name: one, port: 80, protocol: HTTP, hostname: a.x.com{filters}}},
        {{name: wide, port: 80, protocol: HTTP, hostname: '*.x.com'}},
        {{name: narrow, port: 80, protocol: HTTP, hostname: a.a.x.com}},
        {{name: other, port: 8080, protocol: HTTP}}]}}\n"
    )
}

/// The listeners that are served.
fn served(text: &str) -> Vec<ir::Listener> {
    run(text).0.gateways["a/p"].listeners.clone()
}

fn names_of(listeners: &[ir::Listener]) -> Vec<&str> {
    listeners.iter().map(|l| l.origin.rsplit('/').next().unwrap()).collect()
}

/// Reason and message of a condition of a Gateway's listener.
fn said_of_listener(text: &str, place: usize, kind: &str) -> (String, String) {
    let w = written(text);
    let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
    let all = status["listeners"][place]["conditions"].as_array().unwrap();
    let found = all.iter().find(|c| c["type"] == kind).unwrap();
    let word = |field: &str| found[field].as_str().unwrap().to_string();
    (word("reason"), word("message"))
}

/// GEP-5224: who is asked is told in order, however often; gateways that know of no filters know no such listener.
#[test]
fn filters_of_a_listener_are_asked_in_order() {
    let ask =
        |more: &str| format!("{{type: ExternalAuth, externalAuth: {{backendRef: {{name: s, port: 80}}, {more}}}}}");
    let (http, grpc) = (ask("protocol: HTTP, http: {path: /check, allowedHeaders: [x-a]}"), ask("protocol: GRPC"));
    let text = with_filters(&format!(", filters: {{requests: [{http}, {grpc}, {http}]}}"));
    let all = served(&text);
    assert_eq!(names_of(&all), ["one", "wide", "narrow", "other"]);
    let requests = all[0].filters.clone().unwrap().requests;
    let asked: Vec<_> = requests.into_iter().map(|filter| filter.authorization.unwrap()).collect();
    let protocols: Vec<_> = asked.iter().map(|provider| provider.protocol()).collect();
    let (by_http, by_grpc) = (ir::AuthzProtocol::AuthzHttp, ir::AuthzProtocol::AuthzGrpc);
    assert_eq!(protocols, [by_http, by_grpc, by_http]);
    assert!(asked.iter().all(|provider| provider.status_on_error == 500 && !provider.fail_open));
    assert_eq!((&*asked[0].service, asked[0].port, &*asked[0].path_prefix), ("a/s.a.svc.cluster.local", 80, "/check"));
    assert!(all.iter().skip(1).all(|listener| listener.filters.is_none() && listener.protocol == 0));
    assert_eq!(all[0].protocol, ir::ListenerFlag::Filtered as i32);
    for kind in ["Accepted", "ResolvedRefs", "Programmed"] {
        assert_eq!(said_of_listener(&text, 0, kind).0, kind);
    }
    // None are none.
    for empty in ["", ", filters: {}", ", filters: {requests: []}"] {
        assert!(served(&with_filters(empty)).iter().all(|l| l.filters.is_none()), "{empty}");
    }
}

/// Who is to be asked and is not there answers nobody: the requests go nowhere, and to no other listener.
#[test]
fn a_filter_that_names_nobody_lets_nobody_in() {
    const GRANT: &str = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: a}], to: [{group: '', kind: Service}]}\n";
    let far = SHOP.replace("namespace: a", "namespace: b");
    for (backend, more, reason, says) in [
        ("name: none, port: 80", "", "InvalidListenerFilterRef", "Service a/none not found [KARST-0307]"),
        ("name: s, port: 81", "", "InvalidListenerFilterRef", "Service a/s has no port 81 [KARST-0308]"),
        ("name: s", "", "InvalidListenerFilterRef", "port: is required [KARST-0010]"),
        ("group: x.io, kind: Thing, name: s, port: 80", "", "InvalidListenerFilterRef", "use Service [KARST-0310]"),
        ("name: s, namespace: b, port: 80", "", "RefNotPermitted", "[KARST-0309]"),
        ("name: s, namespace: b, port: 80", GRANT, "ResolvedRefs", "No errors found"),
    ] {
        let filter = format!("{{type: ExternalAuth, externalAuth: {{protocol: GRPC, backendRef: {{{backend}}}}}}}");
        let text = format!("{far}{}{more}", with_filters(&format!(", filters: {{requests: [{filter}]}}")));
        let all = served(&text);
        assert_eq!(names_of(&all), ["one", "wide", "narrow", "other"], "{backend}");
        let asked = all[0].filters.clone().unwrap().requests.remove(0).authorization;
        assert_eq!(asked.is_some(), reason == "ResolvedRefs", "{backend}");
        let (told, message) = said_of_listener(&text, 0, "ResolvedRefs");
        assert_eq!(told, reason, "{message}");
        assert!(message.ends_with(says), "{message}");
        let is_named = message.starts_with("filters.requests[0].externalAuth.backendRef: ");
        assert_eq!(is_named, told != "ResolvedRefs", "{message}");
        assert_eq!(said_of_listener(&text, 0, "Accepted").0, "Accepted");
    }
}

/// One that cannot be executed closes its listener, and those that would take its requests without it.
#[test]
fn listeners_with_filters_that_are_not_supported_are_refused() {
    let ask = |protocol: &str| {
        format!("{{type: ExternalAuth, externalAuth: {{protocol: {protocol}, backendRef: {{name: s, port: 80}}}}}}")
    };
    let (tcp, many) =
        (format!("{{requests: [{}]}}", ask("TCP")), format!("{{requests: [{}]}}", vec![ask("GRPC"); 17].join(", ")));
    let (invalid, unsupported) = ("InvalidListenerFilter", "UnsupportedValue");
    for (filters, reason, says) in [
        (
            "{requests: [{type: ExtensionRef, extensionRef: {group: karst.io, kind: HTTPFilter, name: f}}]}",
            unsupported,
            "ExtensionRef are not supported for a listener",
        ),
        ("{requests: [{type: CORS}]}", unsupported, "filters.requests[0]: unsupported filter type \"CORS\""),
        ("{requests: [{type: ExternalAuth}]}", invalid, "filters.requests[0]: must set the one field"),
        ("{requests: [{type: ExternalAuth, isNew: 1}]}", invalid, "cannot be read: unknown field `isNew`"),
        ("{connection: []}", invalid, "cannot be read: unknown field `connection`"),
        (tcp.as_str(), invalid, "filters.requests[0].externalAuth.protocol: unsupported value \"TCP\""),
        (many.as_str(), invalid, "filters.requests: 17 are out of range"),
    ] {
        let text = with_filters(&format!(", filters: {filters}"));
        assert_eq!(names_of(&served(&text)), ["narrow", "other"], "{filters}");
        let (told, message) = said_of_listener(&text, 0, "Accepted");
        assert_eq!(told, reason, "{message}");
        assert!(message.starts_with("filters") && message.contains(says) && message.contains("[KARST-"), "{message}");
        let (told, message) = said_of_listener(&text, 1, "Accepted");
        assert_eq!(told, "UnsupportedValue");
        assert!(message.contains("listener one has filters") && message.ends_with("[KARST-0029]"), "{message}");
    }
    // Bytes have no requests.
    let text = with_filters(", filters: {requests: []}").replace("protocol: HTTP, hostname: a.x.com", "protocol: TCP");
    assert_eq!(said_of_listener(&text, 0, "Accepted").0, "InvalidListenerFilter");
}

/// What is wrong with the listener otherwise is no way past its filters.
#[test]
fn a_listener_with_filters_that_cannot_be_served_has_no_other_in_its_place() {
    let ask = "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: s, port: 80}}}";
    let https = |filters: &str| {
        let text = with_filters("").replace(
            "name: one, port: 80, protocol: HTTP, hostname: a.x.com",
            &format!("name: one, port: 443, protocol: HTTPS, hostname: a.x.com{filters}"),
        );
        text.replace(
            "name: wide, port: 80, protocol: HTTP",
            "name: wide, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}",
        )
    };
    // It has no certificate.
    let plain = format!("{}{}", key_pair(), https(""));
    assert_eq!(names_of(&served(&plain)), ["wide", "narrow", "other"]);
    let filtered = format!("{}{}", key_pair(), https(&format!(", filters: {{requests: [{ask}]}}")));
    assert_eq!(names_of(&served(&filtered)), ["narrow", "other"]);
    // Nor does one that passes TLS through take its connections.
    let passes = |text: &str| text.replace("tls: {certificateRefs: [{name: c}]}", "tls: {mode: Passthrough}");
    let through = |text: &str| passes(text).replace("port: 443, protocol: HTTPS, tls", "port: 443, protocol: TLS, tls");
    assert_eq!(names_of(&served(&through(&plain))), ["wide", "narrow", "other"]);
    assert_eq!(names_of(&served(&through(&filtered))), ["narrow", "other"]);
    // Nor one that takes whatever bytes there are; one for datagrams takes no requests, and keeps none from anybody.
    let bytes = |protocol: &str| {
        let text = with_filters(", filters: {requests: [{type: CORS}]}");
        let text = text
            .replace("name: wide, port: 80, protocol: HTTP", &format!("name: wide, port: 80, protocol: {protocol}"));
        text.replace("name: narrow, port: 80", "name: narrow, port: 81")
    };
    assert_eq!(names_of(&served(&bytes("TCP"))), ["narrow", "other"]);
    let datagrams = bytes("HTTP").replace("name: one, port: 80, protocol: HTTP", "name: one, port: 80, protocol: UDP");
    assert_eq!(names_of(&served(&datagrams)), ["wide", "narrow", "other"]);
    // Of two for one name neither is served.
    let two = |filters: &str| {
        let same = "{name: same, port: 80, protocol: HTTP, hostname: a.x.com},\n        {name: narrow,";
        with_filters(filters).replace("{name: narrow,", same)
    };
    assert_eq!(names_of(&served(&two(""))), ["wide", "narrow", "other"]);
    let text = two(&format!(", filters: {{requests: [{ask}]}}"));
    assert_eq!(names_of(&served(&text)), ["narrow", "other"]);
    assert_eq!(said_of_listener(&text, 0, "Accepted").0, "HostnameConflict");
    assert_eq!(said_of_listener(&text, 1, "Accepted").0, "UnsupportedValue");
}

/// A Service may lead two ports that clients call to one of the pods, where it is not known which of both was called.
#[test]
fn a_listener_that_asks_and_cannot_be_served_has_no_other_in_its_place_at_the_pods_port() {
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: gw, namespace: a}\nspec: {clusterIP: 10.96.0.9, selector: {gateway.networking.k8s.io/gateway-name: g}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n";
    let ask = "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: s, port: 80}}}";
    let of = |filter: &str| format!("{SERVICE}{}", with_filters(&format!(", filters: {{requests: [{filter}]}}")));
    let names = |text: &str| {
        let mut names: Vec<String> = names_of(&served(text)).into_iter().map(String::from).collect();
        names.sort();
        names
    };
    assert!(served(&of(ask)).iter().all(|listener| listener.port == 8080));
    assert_eq!(names(&of(ask)), ["narrow", "one", "other", "wide"]);
    let text = of("{type: CORS}");
    assert_eq!(names(&text), ["narrow"]);
    let (told, message) = said_of_listener(&text, 3, "Accepted");
    assert_eq!(told, "PortUnavailable", "{message}");
    let says = "port 8080 maps to port 8080 of pod a/p, as listener one of Gateway a/g does, which has filters for \"a.x.com\"";
    assert!(message.starts_with(says) && message.ends_with("[KARST-0029]"), "{message}");
    // One for other names, and one for datagrams, take nothing of it.
    let other =
        |protocol: &str| text.replace("port: 8080, protocol: HTTP", &format!("port: 8080, protocol: {protocol}"));
    assert_eq!(names(&other("HTTP, hostname: b.com")), ["narrow", "other"]);
    assert_eq!(run(&other("UDP")).0.gateways["a/p"].udp.len(), 1);
    // The same of certificates that are asked for by a field that cannot be honoured.
    let https = |more: &str| {
        let tls = |more: &str| format!("protocol: HTTPS, tls: {{certificateRefs: [{{name: c}}]{more}}}");
        let one = format!("name: one, port: 443, hostname: a.x.com, {}", tls(more));
        let text = with_filters("").replace("name: one, port: 80, protocol: HTTP, hostname: a.x.com", &one);
        let text = text.replace("port: 8080, protocol: HTTP", &format!("port: 8443, {}", tls("")));
        let service = SERVICE.replace("port: 80, targetPort: 8080", "port: 443, targetPort: 8443");
        format!("{}{service}{text}", key_pair())
    };
    assert_eq!(names(&https("")), ["narrow", "one", "other", "wide"]);
    let text = https(", options: {gateway.istio.io/tls-terminate-mode: MUTUAL}");
    assert_eq!(names(&text), ["narrow", "wide"]);
    let (told, message) = said_of_listener(&text, 3, "Accepted");
    assert!(told == "PortUnavailable" && message.ends_with("[KARST-0506]"), "{told} {message}");
}

/// ConfigMap of this namespace and name with an authority's certificate.
pub(super) fn authority(ns: &str, name: &str) -> String {
    let pem = crate::ca::Signer::generate("cluster.local").unwrap().0;
    let indented: String = pem.lines().map(|l| format!("    {l}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {ns}}}\ndata:\n  ca.crt: |\n{indented}---\n"
    )
}

/// GEP-91: what is asked of clients at which port, and Gateway API's reasons where that cannot be.
#[test]
fn clients_of_a_port_are_asked_for_certificates() {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: g}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n---\n";
    const BAD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: broken, namespace: a}\ndata: {ca.crt: none}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: lacks, namespace: a}\n---\n";
    const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: a}], to: [{group: '', kind: ConfigMap}]}\n---\n";
    let around = [POD, BAD, &key_pair(), &authority("a", "ca"), &authority("b", "far")].concat();
    let tls = "tls: {certificateRefs: [{name: c}]}";
    let text = |frontend: &str, more: &str| {
        format!(
            "{around}{more}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, tls: {{frontend: {{{frontend}}}}}, listeners: [{{name: one, port: 443, protocol: HTTPS, {tls}}}, {{name: two, port: 8443, protocol: HTTPS, {tls}}}, {{name: plain, port: 80, protocol: HTTP}}]}}\n"
        )
    };
    let status = |text: &str| {
        let all = written(text).statuses;
        all.into_iter().find(|s| s.to.kind == "Gateway").map(|s| s.status)
    };
    let reason = |of: &serde_json::Value, kind: &str| {
        let all = of["conditions"].as_array().unwrap();
        let found = all.iter().find(|c| c["type"] == kind);
        found.map_or(String::new(), |c| c["reason"].as_str().unwrap().to_string())
    };
    // Of each listener what is asked (nothing where it is not served), Accepted, ResolvedRefs.
    let of = |frontend: &str, more: &str| {
        let text = text(frontend, more);
        let (m, _) = run(&text);
        let status = status(&text).unwrap();
        let one = |l: &serde_json::Value| {
            let id = format!("Gateway/a/g/{}", l["name"].as_str().unwrap());
            let served = m.gateways["a/p"].listeners.iter().find(|l| l.origin == id);
            let asked = served.map_or("-", |l| l.tls.as_ref().map_or("", |t| t.client().as_str_name()));
            if asked == "REQUIRED" {
                let tls = served.unwrap().tls.as_ref().unwrap();
                let told = &m.gateways["a/p"].client_authorities[&tls.client_authorities];
                // Those before this version know only what is in the listener.
                assert!(!told.roots.is_empty() && told.roots == tls.client_roots);
            }
            format!("{asked} {} {}", reason(l, "Accepted"), reason(l, "ResolvedRefs"))
        };
        let [one, two, plain] = [0usize, 1, 2].map(|i| one(&status["listeners"][i]));
        assert_eq!(plain, " Accepted ResolvedRefs");
        [one, two]
    };
    let refs = |list: &str| format!("validation: {{caCertificateRefs: [{list}]}}");
    let map = |name: &str| format!("{{group: '', kind: ConfigMap, name: {name}}}");
    let bundle = |name: &str, more: &str| {
        format!("{{group: certificates.k8s.io, kind: ClusterTrustBundle, name: {name}{more}}}")
    };
    let pem = indented(&crate::ca::Signer::generate("cluster.local").unwrap().0);
    let two_bundles = [bundle("none", ""), bundle("roots", "")].join(", ");
    let roots = format!(
        "apiVersion: certificates.k8s.io/v1\nkind: ClusterTrustBundle\nmetadata: {{name: roots}}\nspec:\n  trustBundle: |\n{pem}---\n"
    );
    let roots = roots.as_str();
    let (good, lost) = (refs(&map("ca")), refs(&map("none")));
    let (none, required) = ("NONE Accepted ResolvedRefs", "REQUIRED Accepted ResolvedRefs");
    assert_eq!(of("default: {}", ""), [none, none]);
    assert_eq!(of(&format!("default: {{{good}}}"), ""), [required, required]);
    let at_8443 =
        |default: &str, tls: &str| format!("default: {{{default}}}, perPort: [{{port: 8443, tls: {{{tls}}}}}]");
    assert_eq!(of(&at_8443("", &good), ""), [none, required]);
    assert_eq!(of(&at_8443(&good, ""), ""), [required, none]);
    // At a port without TLS it is for nobody.
    assert_eq!(of(&format!("default: {{}}, perPort: [{{port: 80, tls: {{{lost}}}}}]"), ""), [none, none]);
    let refused = |reason: &str| format!("- NoValidCACertificate {reason}");
    for (refs, more, want) in [
        (lost.clone(), "", refused("InvalidCACertificateRef")),
        (refs(&map("broken")), "", refused("InvalidCACertificateRef")),
        (refs(&map("lacks")), "", refused("InvalidCACertificateRef")),
        (refs(""), "", refused("InvalidCACertificateRef")),
        (refs("{group: '', kind: Service, name: s}"), "", refused("InvalidCACertificateKind")),
        (refs("{group: x.io, kind: ConfigMap, name: ca}"), "", refused("InvalidCACertificateKind")),
        (refs("{group: '', kind: ClusterTrustBundle, name: roots}"), "", refused("InvalidCACertificateKind")),
        // Of the whole cluster: nobody grants it, and it has no namespace (GEP-5075).
        (refs(&bundle("roots", "")), roots, required.to_string()),
        (refs(&bundle("roots", "")), "", refused("InvalidCACertificateRef")),
        (refs(&bundle("roots", ", namespace: a")), roots, refused("InvalidCACertificateRef")),
        (refs(&two_bundles), roots, "REQUIRED Accepted InvalidCACertificateRef".to_string()),
        (refs("{group: '', kind: ConfigMap, name: far, namespace: b}"), "", refused("RefNotPermitted")),
        (refs("{group: '', kind: ConfigMap, name: far, namespace: b}"), GRANT, required.to_string()),
        // One that can be used is enough.
        (refs(&[map("none"), map("ca")].join(", ")), "", "REQUIRED Accepted InvalidCACertificateRef".to_string()),
        (good.replace("validation: {", "validation: {mode: AllowSome, "), "", "- UnsupportedValue ResolvedRefs".into()),
    ] {
        assert_eq!(of(&at_8443("", &refs), more), [none.to_string(), want], "{refs}");
    }
    // A Gateway that takes whatever clients show says so, for as long as it does.
    const FALLBACK: &str = "InsecureFrontendValidationMode";
    let fallback = at_8443("", &good.replace("validation: {", "validation: {mode: AllowInsecureFallback, "));
    assert_eq!(of(&fallback, ""), [none, "UNVERIFIED Accepted ResolvedRefs"]);
    let insecure = status(&text(&fallback, "")).unwrap();
    assert_eq!(reason(&insecure, FALLBACK), "ConfigurationChanged");
    let strict = text(&at_8443("", &good), "");
    let mut settled = status(&strict).unwrap();
    assert_eq!(reason(&settled, FALLBACK), "");
    assert_eq!(status(&format!("{strict}status: {settled}\n")), None);
    let left = insecure["conditions"].as_array().unwrap().iter().find(|c| c["type"] == FALLBACK).unwrap();
    settled["conditions"].as_array_mut().unwrap().push(left.clone());
    let again = status(&format!("{strict}status: {settled}\n")).unwrap();
    assert_eq!(reason(&again, FALLBACK), "");
}

/// Where a Service sends two ports to one of the pods, clients of the one would be served as the other asks.
#[test]
fn ports_that_ask_different_certificates_are_not_one() {
    let around = [
        INGRESS.replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g").as_str(),
        "apiVersion: v1\nkind: Service\nmetadata: {name: gw, namespace: edge}\nspec: {clusterIP: 10.96.0.9, selector: {gateway.networking.k8s.io/gateway-name: g}, ports: [{name: a, port: 443, targetPort: 8443}, {name: b, port: 444, targetPort: 8443}, {name: c, port: 445, targetPort: 8445}]}\n---\n",
        &key_pair().replace("namespace: a", "namespace: edge"),
        &authority("edge", "ca"),
    ]
    .concat();
    let of = |frontend: &str| {
        let listener = |name: &str, port: u16| {
            format!("{{name: {name}, port: {port}, protocol: HTTPS, tls: {{certificateRefs: [{{name: c}}]}}}}")
        };
        let text = format!(
            "{around}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge}}\nspec: {{gatewayClassName: istio, tls: {{frontend: {{{frontend}}}}}, listeners: [{}, {}, {}]}}\n",
            listener("one", 443),
            listener("two", 444),
            listener("alone", 445)
        );
        let (model, problems) = run(&text);
        let served: Vec<String> = model.gateways["edge/gw"].listeners.iter().map(|l| l.origin.clone()).collect();
        let written = written(&text);
        let status = &written.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
        let reasons = [0usize, 1, 2].map(|i| {
            let all = status["listeners"][i]["conditions"].as_array().unwrap();
            all.iter().find(|c| c["type"] == "Accepted").unwrap()["reason"].as_str().unwrap().to_string()
        });
        (served, reasons, problems.iter().map(|p| p.field.clone()).collect::<Vec<_>>())
    };
    let asked = "validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}";
    let (served, reasons, problems) = of(&format!("default: {{{asked}}}"));
    assert_eq!((served.len(), problems.len()), (3, 0));
    assert_eq!(reasons, ["Accepted", "Accepted", "Accepted"]);
    // Whichever of them it is that asks.
    for port in [443, 444] {
        let (served, reasons, problems) = of(&format!("default: {{}}, perPort: [{{port: {port}, tls: {{{asked}}}}}]"));
        assert_eq!(served, ["Gateway/edge/g/alone"], "{port}");
        assert_eq!(reasons, ["PortUnavailable", "PortUnavailable", "Accepted"], "{port}");
        assert_eq!(problems, ["spec.listeners[one].port", "spec.listeners[two].port"], "{port}");
    }
}

/// The older one speaks TLS with the clients of both: what the other one asks would be asked of nobody.
#[test]
fn a_server_for_the_host_of_one_that_asks_otherwise_is_left_out() {
    let of = |first: &str, second: &str| {
        let server = |name: &str, year: u16, tls: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{year}'}}\nspec: {{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: 443, name: s, protocol: HTTPS}}, hosts: [{name}.com, x.com], tls: {{credentialName: c, {tls}}}}}]}}\n---\n"
            )
        };
        let text = [
            INGRESS,
            &key_pair().replace("namespace: a", "namespace: edge"),
            &authority("edge", "c-cacert").replace("ConfigMap", "Secret").replace("\ndata:", "\nstringData:"),
            // By name the younger one is the first.
            &server("one", 2025, second),
            &server("two", 2024, first),
        ]
        .concat();
        let (model, problems) = run(&text);
        let served: Vec<String> = model.gateways["edge/gw"].listeners.iter().map(|l| l.origin.clone()).collect();
        let said: Vec<_> = conditions(&written(&text)).into_iter().filter(|c| c.starts_with("Gateway ")).collect();
        (served, problems.iter().map(ToString::to_string).collect::<Vec<_>>(), said)
    };
    let (simple, mutual, named) = ("mode: SIMPLE", "mode: MUTUAL", "mode: MUTUAL, subjectAltNames: [y.com]");
    for same in [simple, mutual, named] {
        let (served, problems, said) = of(same, same);
        assert_eq!(served, ["istio/a/two/0", "istio/a/one/0"], "{same}");
        assert!(problems.is_empty() && said.is_empty(), "{same}: {problems:?} {said:?}");
    }
    for (first, second) in [(simple, mutual), (mutual, simple), (mutual, named), ("mode: OPTIONAL_MUTUAL", mutual)] {
        let (served, problems, said) = of(first, second);
        assert_eq!(served, ["istio/a/two/0"], "{first}, {second}");
        let why = "at port 443 of pod edge/gw spec.servers[0] of Gateway a/two has \"x.com\", too, and asks other certificates of its clients: use another host [KARST-0508]";
        assert!(problems.len() == 1 && problems[0].ends_with(why), "{problems:?}");
        assert_eq!(said, ["Gateway a/one: karst.io/PortsMapped False PortConflict"]);
    }
}

/// Istio's `insecureSkipVerify` of servers: certificates are asked for, and what is shown need not be verified.
#[test]
fn certificates_of_clients_that_cannot_be_verified_may_be_accepted() {
    for (tls, want) in [
        ("mode: MUTUAL", "REQUIRED"),
        ("mode: MUTUAL, insecureSkipVerify: false", "REQUIRED"),
        ("mode: MUTUAL, insecureSkipVerify: true", "ANY"),
        ("mode: OPTIONAL_MUTUAL", "OPTIONAL"),
        ("mode: OPTIONAL_MUTUAL, insecureSkipVerify: true", "UNVERIFIED"),
        // Nothing is verified there in any case.
        ("mode: SIMPLE, insecureSkipVerify: true", "NONE"),
    ] {
        let text = [
            INGRESS,
            &key_pair().replace("namespace: a", "namespace: edge"),
            &authority("edge", "c-cacert").replace("ConfigMap", "Secret").replace("\ndata:", "\nstringData:"),
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: 443, name: s, protocol: HTTPS}}, hosts: ['*'], tls: {{credentialName: c, {tls}}}}}]}}\n"
            ),
        ]
        .concat();
        let (model, problems) = run(&text);
        assert!(problems.is_empty(), "{tls}: {problems:?}");
        let told = model.gateways["edge/gw"].listeners[0].tls.clone().unwrap();
        assert_eq!(told.client().as_str_name(), want, "{tls}");
        assert_eq!(told.client_authorities.is_empty(), want == "NONE", "{tls}");
    }
}

/// Istio's option of listeners of Gateway API.
#[test]
fn cipher_suites_of_a_listener_are_an_option() {
    let pod = INGRESS
        .replace("namespace: edge", "namespace: a")
        .replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g");
    let secret = key_pair();
    let told = |options: &str| {
        let gateway = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, listeners: [{{name: l, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: c}}], options: {{{options}}}}}}}]}}\n"
        );
        let (model, problems) = run(&[&*pod, &secret, &gateway].concat());
        let tls = model.gateways.get("a/gw").and_then(|g| g.listeners[0].tls.clone());
        let suites = tls.map(|tls| tls.parameters.map_or(vec![], |p| p.cipher_suites));
        let object: serde_json::Value = serde_yaml_ng::from_str(&gateway).unwrap();
        let said = check::written("Gateway", "gateway.networking.k8s.io", &object);
        (suites, problems.iter().map(ToString::to_string).collect::<Vec<_>>(), said)
    };
    let none: Vec<String> = vec![];
    assert_eq!(told(""), (Some(none.clone()), none.clone(), none.clone()));
    let two = "gateway.istio.io/tls-cipher-suites: 'ECDHE-RSA-AES128-GCM-SHA256, ECDHE-ECDSA-AES128-GCM-SHA256'";
    let want = ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"].map(String::from).to_vec();
    assert_eq!(told(two), (Some(want), none.clone(), none.clone()));
    let (suites, problems, _) = told("gateway.istio.io/tls-cipher-suites: AES128-SHA");
    assert!(suites.is_none() && problems.len() == 1, "{problems:?}");
    assert!(problems[0].contains("tls.options[gateway.istio.io/tls-cipher-suites]: unsupported cipher suite"));
    // Of another implementation.
    let (suites, problems, said) = told("example.com/x: y");
    assert_eq!((suites, problems), (Some(none.clone()), none));
    assert_eq!(said, ["spec.listeners[0].tls.options[example.com/x]: has no effect [KARST-0030]"]);
}

/// The lists of the first listener's clients.
fn client_lists(gateway: &ir::Gateway) -> Vec<Vec<u8>> {
    let tls = gateway.listeners[0].tls.as_ref().unwrap();
    let told = gateway.client_authorities[&tls.client_authorities].lists.clone();
    // Gateways of the version before know only these.
    assert_eq!(tls.client_lists, told);
    told
}

/// An authority's certificate (PEM), and its list of revoked certificates.
fn authority_with_list() -> (String, rcgen::CertificateRevocationList) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyIdMethod, KeyPair, date_time_ymd};
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let list = rcgen::CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2030, 1, 1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&ca).unwrap();
    (ca.pem(), list)
}

/// The lists that are told of a Gateway whose clients are asked for certificates of `ca`, which `holder` is, and what is said of it.
fn lists_of_clients(kind: &str, holder: &str) -> (Option<Vec<Vec<u8>>>, Vec<String>) {
    let text = format!(
        "{}{}{holder}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, tls: {{frontend: {{default: {{validation: {{caCertificateRefs: [{{group: '', kind: {kind}, name: ca}}]}}}}}}}}, listeners: [{{name: l, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: c}}]}}}}]}}\n",
        INGRESS
            .replace("namespace: edge", "namespace: a")
            .replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g"),
        key_pair(),
    );
    let (model, problems) = run(&text);
    (
        model.gateways.get("a/gw").map(|gateway| client_lists(gateway)),
        problems.iter().map(ToString::to_string).collect(),
    )
}

/// Lists of revoked certificates go where the authority's certificates go; without one that is there nobody is let in, or called.
#[test]
fn revocation_lists_are_told_with_their_authorities() {
    let (authority, list) = authority_with_list();
    let list = list.pem().unwrap();
    let holder = |kind: &str, name: &str, namespace: &str, list: &str| {
        let data = if kind == "Secret" { "stringData" } else { "data" };
        let (certificate, list) = (indented(&authority), indented(list));
        let list = if list.is_empty() { list } else { format!("  ca.crl: |\n{list}") };
        format!(
            "apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{data}:\n  ca.crt: |\n{certificate}{list}---\n"
        )
    };
    // Of Istio's Gateway.
    let istio = |list: &str| {
        let text = format!(
            "{INGRESS}{}{}apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: 443, name: s, protocol: HTTPS}}, hosts: ['*'], tls: {{mode: MUTUAL, credentialName: c}}}}]}}\n",
            key_pair().replace("namespace: a", "namespace: edge"),
            holder("Secret", "c-cacert", "edge", list)
        );
        let (model, problems) = run(&text);
        let told = model.gateways.get("edge/gw").map(|g| client_lists(g));
        (told, problems.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    // Of Gateway API.
    let api = |kind: &str, list: &str| lists_of_clients(kind, &holder(kind, "ca", "a", list));
    // Of services that TLS is spoken to.
    let backend = |kind: &str, list: &str| {
        let target = "targetRefs: [{group: '', kind: Service, name: s}]";
        let policy = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{{target}, validation: {{hostname: x, caCertificateRefs: [{{group: '', kind: {kind}, name: ca}}]}}}}\n"
        );
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec: {host: s, trafficPolicy: {tls: {mode: SIMPLE, credentialName: ca}}}\n";
        [policy.as_str(), rule]
            .into_iter()
            .filter(|text| kind == "Secret" || *text != rule)
            .map(|text| {
                let (model, _) = run(&[SHOP, &holder(kind, "ca", "a", list), text].concat());
                let backend = &model.backends["a/s.a.svc.cluster.local"];
                let tls = backend.ports.get(&80).or(backend.policy.as_ref()).and_then(|p| p.tls.clone()).unwrap();
                (tls.lists, tls.broken.contains("data[\"ca.crl\"]: contains no revocation list"))
            })
            .collect::<Vec<_>>()
    };
    for kind in ["Secret", "ConfigMap"] {
        assert!(backend(kind, &list).iter().all(|told| *told == (vec![list.clone().into_bytes()], false)), "{kind}");
        assert!(backend(kind, "").iter().all(|told| *told == (vec![], false)), "{kind}");
        assert!(backend(kind, "none").iter().all(|told| *told == (vec![], true)), "{kind}");
    }
    for told in [istio(&list), api("Secret", &list), api("ConfigMap", &list)] {
        assert_eq!(told, (Some(vec![list.clone().into_bytes()]), vec![]));
    }
    for told in [istio(""), api("Secret", ""), api("ConfigMap", "")] {
        assert_eq!(told, (Some(vec![]), vec![]));
    }
    for (told, problems) in [istio("none"), api("Secret", "none"), api("ConfigMap", "none")] {
        assert!(told.is_none() && !problems.is_empty(), "{problems:?}");
        let says = problems.iter().all(|p| p.contains("data[\"ca.crl\"]: contains no revocation list"));
        assert!(says && problems[0].ends_with("[KARST-0505]"), "{problems:?}");
    }
}

/// Thousands of listeners may ask for certificates of the same authorities.
#[test]
fn authorities_of_clients_are_told_once() {
    let of = |times: usize| {
        let pem = crate::ca::Signer::generate("cluster.local").unwrap().0.repeat(times);
        let indented: String = pem.lines().map(|l| format!("    {l}\n")).collect();
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: a}}\ndata:\n  ca.crt: |\n{indented}---\n"
        );
        let tls = "tls: {certificateRefs: [{name: c}]}";
        let listeners: Vec<String> =
            (0..3).map(|n| format!("{{name: l{n}, port: 443, hostname: h{n}.com, protocol: HTTPS, {tls}}}")).collect();
        let text = format!(
            "{}{}{map}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, tls: {{frontend: {{default: {{validation: {{caCertificateRefs: [{{group: '', kind: ConfigMap, name: ca}}]}}}}}}}}, listeners: [{}]}}\n",
            INGRESS
                .replace("namespace: edge", "namespace: a")
                .replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g"),
            key_pair(),
            listeners.join(", ")
        );
        let (model, problems) = run(&text);
        assert!(problems.is_empty(), "{problems:?}");
        model.gateways["a/gw"].clone()
    };
    let told = |g: &ir::Gateway| g.listeners.iter().map(|l| l.tls.clone().unwrap()).collect::<Vec<_>>();
    let few = of(1);
    assert_eq!((few.listeners.len(), few.client_authorities.len()), (3, 1));
    assert!(told(&few).iter().all(|tls| tls.client_authorities == "0" && !tls.client_roots.is_empty()));
    // What is large stands nowhere else.
    let many = of(500);
    assert_eq!((many.listeners.len(), many.client_authorities.len()), (3, 1));
    assert!(told(&many).iter().all(|tls| tls.client_authorities == "0" && tls.client_roots.is_empty()));
}

/// kubectl writes a file that is no text to `binaryData` (of a Secret there is one `data` for all).
#[test]
fn a_revocation_list_in_der_is_told_by_a_config_map_too() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let (authority, list) = authority_with_list();
    let der = list.der().to_vec();
    let told = |coded: &str| {
        let certificate = indented(&authority);
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: a}}\ndata:\n  ca.crt: |\n{certificate}binaryData: {{ca.crl: '{coded}', other: AAAA}}\n---\n"
        );
        lists_of_clients("ConfigMap", &map)
    };
    assert_eq!(told(&BASE64_STANDARD.encode(&der)), (Some(vec![der]), vec![]));
    // What cannot be read lets nobody in.
    for coded in [BASE64_STANDARD.encode("none"), "*".into()] {
        let (served, problems) = told(&coded);
        assert!(served.is_none() && problems[0].contains("data[\"ca.crl\"]"), "{coded}: {problems:?}");
    }
}

/// GEP-3155: what a gateway shows to backends, and Gateway API's reasons where it cannot.
#[test]
fn a_gateway_has_a_certificate_for_backends() {
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: g}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n---\n";
    const BAD: &str =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: lacks, namespace: a}\nstringData: {tls.crt: none}\n---\n";
    const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: a}], to: [{group: '', kind: Secret}]}\n---\n";
    let secret = key_pair();
    let far = secret.replace("name: c, namespace: a", "name: far, namespace: b");
    let text = |reference: &str, listener: &str, more: &str| {
        format!(
            "{POD}{BAD}{secret}{far}{more}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, tls: {{backend: {{{reference}}}}}, listeners: [{{name: l, {listener}}}]}}\n"
        )
    };
    let status = |text: &str| {
        let all = written(text).statuses;
        all.into_iter().find(|s| s.to.kind == "Gateway").map(|s| s.status)
    };
    let resolved = |status: &serde_json::Value| {
        let all = status["conditions"].as_array().unwrap();
        assert!(all.iter().any(|c| c["type"] == "Accepted" && c["status"] == "True"), "{status}");
        let found = all.iter().find(|c| c["type"] == "ResolvedRefs");
        found.map_or(String::new(), |c| format!("{} {}", c["status"], c["reason"]).replace('"', ""))
    };
    let plain = "port: 80, protocol: HTTP";
    for (reference, more, want) in [
        ("clientCertificateRef: {name: c}", "", "True ResolvedRefs"),
        ("clientCertificateRef: {group: '', kind: Secret, name: c}", "", "True ResolvedRefs"),
        ("clientCertificateRef: {name: none}", "", "False InvalidClientCertificateRef"),
        ("clientCertificateRef: {name: lacks}", "", "False InvalidClientCertificateRef"),
        ("clientCertificateRef: {group: x.io, kind: Secret, name: c}", "", "False InvalidClientCertificateRef"),
        ("clientCertificateRef: {kind: ConfigMap, name: c}", "", "False InvalidClientCertificateRef"),
        ("clientCertificateRef: {name: far, namespace: b}", "", "False RefNotPermitted"),
        ("clientCertificateRef: {name: far, namespace: b}", GRANT, "True ResolvedRefs"),
        ("", "", ""),
    ] {
        let text = text(reference, plain, more);
        assert_eq!(resolved(&status(&text).unwrap()), want, "{reference}");
        let own = run(&text).0.gateways["a/p"].backend_certificate.clone();
        let is = (own.as_ref().is_some_and(|own| own.pair.is_some()), own.map_or(String::new(), |own| own.broken));
        assert_eq!(is.0, want.starts_with("True"), "{reference}");
        let says = "Gateway a/g: spec.tls.backend.clientCertificateRef: ";
        assert_eq!(is.1.starts_with(says), want.starts_with("False"), "{reference}: {}", is.1);
    }
    // It sums up the listeners; and what was said once is not taken back, but true.
    let lost = text("clientCertificateRef: {name: c}", "port: 443, protocol: HTTPS, tls: {certificateRefs: []}", "");
    let all = written(&lost).statuses;
    let of_gateway = all.iter().find(|s| s.to.kind == "Gateway").unwrap();
    let said = of_gateway.status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "ResolvedRefs");
    assert_eq!(said.unwrap()["reason"], "ListenersNotResolved");
    let none = text("", plain, "");
    let mut settled = status(&none).unwrap();
    assert_eq!(status(&format!("{none}status: {settled}\n")), None);
    let old = serde_json::json!({ "type": "ResolvedRefs", "status": "False", "reason": "InvalidClientCertificateRef", "message": "x", "observedGeneration": 0, "lastTransitionTime": "t" });
    settled["conditions"].as_array_mut().unwrap().push(old);
    let again = status(&format!("{none}status: {settled}\n")).unwrap();
    assert_eq!(resolved(&again), "True ResolvedRefs");
    assert_eq!(status(&format!("{none}status: {again}\n")), None);
}

/// What TLS a gateway speaks: as a server says, else as the mesh does; towards endpoints as the mesh does.
#[test]
fn tls_is_spoken_as_a_server_says_and_else_as_the_mesh_does() {
    let secret = key_pair().replace("namespace: a", "namespace: edge");
    let compiled = |config: &str, tls: &str| {
        let text = format!(
            "{INGRESS}{secret}apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: 443, name: s, protocol: HTTPS}}, hosts: ['*'], tls: {{mode: SIMPLE, credentialName: c{tls}}}}}]}}\n"
        );
        let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
        let mesh_config = Arc::new(karst_manifest::MeshConfig::read(config).unwrap());
        let (model, problems) = compile(&State { objects, mesh_config, ..State::default() }, &mesh());
        let gateway = model.gateways.get("edge/gw").map(|g| (**g).clone()).unwrap_or_default();
        (gateway, problems.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    const ALL: &str =
        "tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256], ecdhCurves: [P-384]}";
    let (mesh, own) = ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384");
    // TLS 1.3 only, TLS 1.2 only, suites, curves.
    for (config, tls, want) in [
        ("", "", (false, false, "", "")),
        ("", ", minProtocolVersion: TLSV1_3", (true, false, "", "")),
        ("", ", maxProtocolVersion: TLSV1_2", (false, true, "", "")),
        ("", ", minProtocolVersion: TLSV1_2, maxProtocolVersion: TLSV1_3", (false, false, "", "")),
        ("", ", minProtocolVersion: TLS_AUTO, cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]", (false, false, own, "")),
        (ALL, "", (true, false, mesh, "P-384")),
        (ALL, ", minProtocolVersion: TLSV1_2", (false, false, mesh, "P-384")),
        (ALL, ", cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]", (true, false, own, "P-384")),
        (ALL, ", minProtocolVersion: TLSV1_2, maxProtocolVersion: TLSV1_2", (false, true, mesh, "P-384")),
    ] {
        let (gateway, problems) = compiled(config, tls);
        assert!(problems.is_empty(), "{config} {tls}: {problems:?}");
        let listener = gateway.listeners[0].tls.clone().unwrap();
        let parameters = listener.parameters.unwrap_or_default();
        let (suites, curves) = (parameters.cipher_suites.join(","), parameters.curves.join(","));
        assert_eq!((listener.modern, listener.only_tls12, &*suites, &*curves), want, "{config} {tls}");
        let to_endpoints = gateway.backend_parameters.map(|p| (p.cipher_suites.join(","), p.curves.join(",")));
        let want = (config == ALL).then(|| (mesh.to_string(), "P-384".to_string()));
        assert_eq!(to_endpoints, want, "{config} {tls}");
    }
    // What contradicts the mesh's is not served.
    let (gateway, problems) = compiled(ALL, ", maxProtocolVersion: TLSV1_2");
    assert!(gateway.listeners.is_empty() && problems.len() == 1, "{problems:?}");
    let says = "spec.servers[0].tls.maxProtocolVersion: TLSV1_2 is below minProtocolVersion TLSV1_3 of tlsDefaults";
    assert!(problems[0].contains(says) && problems[0].ends_with("[KARST-0014]"), "{problems:?}");
    // What cannot be spoken is refused.
    for (tls, says) in [
        (", minProtocolVersion: TLSV1_1", "tls.minProtocolVersion: unsupported TLS version \"TLSV1_1\""),
        (", maxProtocolVersion: TLSV1_0", "tls.maxProtocolVersion: unsupported TLS version \"TLSV1_0\""),
        (", minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2", "tls.minProtocolVersion: TLSV1_3 is above"),
        (", cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256, AES128-SHA]", "tls.cipherSuites[1]: unsupported cipher suite"),
    ] {
        let (gateway, problems) = compiled("", tls);
        assert!(gateway.listeners.is_empty() && problems.iter().any(|p| p.contains(says)), "{tls}: {problems:?}");
    }
}

/// What a proxy shows to endpoints is told to pods of the Secret's namespace, and only for rules of there or of the root namespace.
#[test]
fn credentials_are_told_to_their_namespace_only() {
    let pod = |ns: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {ns}, labels: {{gateway.networking.k8s.io/gateway-name: w}}}}\nspec: {{nodeName: n}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.1}}]}}\n---\n"
        )
    };
    let secret = key_pair();
    let rule = |ns: &str, mode: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: {ns}}}\nspec: {{host: x.com, trafficPolicy: {{tls: {{mode: {mode}, credentialName: c}}}}}}\n"
        )
    };
    for (of, mode, told) in
        [("a", "MUTUAL", true), ("istio-system", "MUTUAL", true), ("b", "MUTUAL", false), ("a", "SIMPLE", false)]
    {
        let (m, p) = run(&(pod("a") + &pod("b") + &secret + &rule(of, mode)));
        assert!(p.is_empty(), "{p:?}");
        let has = |pod: &str| m.gateways.get(pod).is_some_and(|g| g.credentials.contains_key("c"));
        assert_eq!((has("a/p"), has("b/p")), (told, false), "{of} {mode}");
    }
}

/// What wants TLS and cannot be read gets no connection; what does not, and cannot be read, changes nothing.
#[test]
fn tls_that_cannot_be_is_none_without() {
    let of = |policy: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: a}}\nspec: {{host: s, trafficPolicy: {policy}}}\n"
        );
        let (m, p) = run(&text);
        assert_eq!(p.len(), 1, "{policy}: {p:?}");
        let b = m.backends.get("a/s.a.svc.cluster.local").cloned();
        b.and_then(|b| Some(b.policy.as_ref()?.tls.as_ref()?.broken.clone()))
    };
    for wants in [
        "{tls: {mode: SIMPLE, caCertificates: /ca.pem}}",
        "{portLevelSettings: [{port: {number: 80}, tls: {mode: MUTUAL}}]}",
        "{tls: {mode: SIMPLE}, outlierDetection: {interval: soon}}",
        "{tls: {mode: NEW}}",
    ] {
        assert!(of(wants).is_some_and(|b| b.contains("DestinationRule a/d: spec.trafficPolicy")), "{wants}");
    }
    assert_eq!(of("{tls: {mode: DISABLE}, outlierDetection: {interval: soon}}"), None);
}
