//! What gateways listen on.

use super::*;

/// Secret `c` of namespace a.
fn key_pair() -> String {
    let pair = crate::ca::Signer::generate("cluster.local").unwrap();
    let indented = |pem: &str| pem.lines().map(|l| format!("    {l}\n")).collect::<String>();
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
    let of = |gateway: &str, one: &str| -> Vec<String> {
        let tls = "certificateRefs: [{name: c}]";
        let text = format!(
            "{POD}{secret}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, {gateway} listeners: [
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
    assert_eq!(of("", ""), none);
    assert_eq!(of("", "options: {other/option: MUTUAL}"), none);
    assert_eq!(of("tls: {frontend: {default: {}}},", &option("SIMPLE")), none);
    for mode in ["MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL", "mutual"] {
        assert_eq!(of("", &option(mode)), ["one", "wide"], "{mode}");
    }
    assert_eq!(of("", &format!("frontendValidation: {CA}")), ["one", "wide"]);
    let all = ["one", "wide", "narrow", "other", "bytes"];
    assert_eq!(of(&format!("tls: {{frontend: {{default: {{validation: {CA}}}}}}},"), ""), all);
    let per_port = |default: &str, tls: &str| {
        of(&format!("tls: {{frontend: {{default: {{{default}}}, perPort: [{{port: 443, tls: {{{tls}}}}}]}}}},"), "")
    };
    assert_eq!(per_port("", &format!("validation: {CA}")), ["one", "wide", "narrow"]);
    assert_eq!(per_port(&format!("validation: {CA}"), ""), ["other", "bytes"]);
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
