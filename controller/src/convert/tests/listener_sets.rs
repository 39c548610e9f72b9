//! ListenerSets (Gateway API, GEP-1713), as the conformance suite asks for them (its tests `ListenerSet…`).

use super::*;
use crate::convert::facts::listener::COMPARED;
use serde_json::Value;

/// Gateway g of namespace edge, with a pod and a Service.
fn gateway(allowed: &str, listeners: &str) -> String {
    format!(
        "{}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge, uid: u, generation: 2}}\nspec: {{gatewayClassName: istio, {allowed}listeners: [{listeners}]}}\n---\n{MADE}",
        INGRESS.replace("istio: ingressgateway", "gateway.networking.k8s.io/gateway-name: g")
    )
}

const MADE: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: g-istio, namespace: edge, labels: {gateway.istio.io/managed: x}}\nstatus: {availableReplicas: 1}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: g-istio, namespace: edge, labels: {gateway.istio.io/managed: x}}\nspec: {type: LoadBalancer}\nstatus: {loadBalancer: {ingress: [{ip: 10.98.0.1}]}}\n---\n";

/// Whom the Gateway lets add listeners.
fn from(which: &str) -> String {
    format!("allowedListeners: {{namespaces: {{from: {which}, selector: {{matchLabels: {{allowed: ns}}}}}}}}, ")
}

/// A listener for requests without TLS that takes routes of all namespaces.
fn http(name: &str, host: &str) -> String {
    format!(
        "{{name: {name}, port: 80, protocol: HTTP, hostname: {host}, allowedRoutes: {{namespaces: {{from: All}}}}}}"
    )
}

fn set(ns: &str, name: &str, listeners: &[String]) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: {name}, namespace: {ns}, generation: 3}}\nspec: {{parentRef: {{name: g, namespace: edge}}, listeners: [{}]}}\n---\n",
        listeners.join(", ")
    )
}

/// An HTTPRoute with these `parentRefs`.
fn route(ns: &str, name: &str, parents: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {{parentRefs: [{parents}], rules: [{{backendRefs: [{{name: s, port: 80}}]}}]}}\n---\n"
    )
}

/// Status and reason of each condition, `Accepted True Accepted`.
fn reasons(of: &Value) -> Vec<String> {
    let all = of["conditions"].as_array().unwrap().iter();
    all.map(|c| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "")).collect()
}

/// What is written to an object.
fn status(w: &Writes, kind: &str, name: &str) -> Value {
    let is_it = |s: &&Write| s.to.kind == kind && format!("{}/{}", s.to.namespace, s.to.name) == name;
    w.statuses.iter().find(is_it).unwrap_or_else(|| panic!("no status of {kind} {name}")).status.clone()
}

/// The listeners of a pod, by their origin.
fn listened(text: &str) -> Vec<String> {
    let (m, _) = run(text);
    m.gateways.get("edge/gw").map_or(vec![], |g| g.listeners.iter().map(|l| l.origin.clone()).collect())
}

const NAMESPACES: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: chosen, labels: {allowed: ns}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n---\n";

#[test]
fn a_gateway_takes_the_sets_of_the_namespaces_that_it_allows() {
    const NONE: &[&str] = &[];
    let sets: String =
        ["edge", "chosen", "other"].map(|ns| set(ns, "more", &[http("l", &format!("{ns}.com"))])).concat();
    for (allowed, taken) in [
        (String::new(), NONE),
        (from("None"), &[]),
        (from("Same"), &["edge"]),
        (from("Selector"), &["chosen"]),
        (from("All"), &["chosen", "edge", "other"]),
        // What nobody knows lets nobody in, nor does a selector that is not there.
        (from("Most"), &[]),
        ("allowedListeners: {namespaces: {from: Selector}}, ".into(), &[]),
    ] {
        let text = [NAMESPACES, &gateway(&allowed, &http("own", "own.com")), &sets].concat();
        let w = written(&text);
        conditions(&w);
        for ns in ["edge", "chosen", "other"] {
            let status = status(&w, "ListenerSet", &format!("{ns}/more"));
            let is_taken = taken.contains(&ns);
            let want = match is_taken {
                true => ["Accepted True Accepted", "Programmed True Programmed"],
                false => ["Accepted False NotAllowed", "Programmed False NotAllowed"],
            };
            assert_eq!(reasons(&status), want, "{allowed} {ns}");
            assert_eq!(status["listeners"].as_array().unwrap().len(), usize::from(is_taken), "{allowed} {ns}");
        }
        let of_gateway = status(&w, "Gateway", "edge/g");
        let count = of_gateway["attachedListenerSets"].as_u64().unwrap_or(0) as usize;
        assert_eq!((count, of_gateway["listeners"].as_array().unwrap().len()), (taken.len(), 1), "{allowed}");
        // A CRD of an older release does not have the field.
        assert_eq!(of_gateway.get("attachedListenerSets").is_some(), count > 0);
        let mut want = vec!["Gateway/edge/g/own".to_string()];
        want.extend(taken.iter().map(|ns| format!("ListenerSet/{ns}/more/l")));
        assert_eq!(listened(&text), want, "{allowed}");
    }
}

/// Kubernetes: a selector that is null selects nothing, and one that is empty everything. (Gateway API: it must be there.)
#[test]
fn a_listener_without_its_selector_takes_no_routes() {
    for (selector, want) in [("", "Accepted False NotAllowedByListeners"), (", selector: {}", "Accepted True Accepted")]
    {
        let own = format!(
            "{{name: own, port: 80, protocol: HTTP, allowedRoutes: {{namespaces: {{from: Selector{selector}}}}}}}"
        );
        let text = [NAMESPACES, &gateway("", &own), &route("chosen", "r", "{name: g, namespace: edge}")].concat();
        let status = status(&written(&text), "HTTPRoute", "chosen/r");
        assert_eq!(reasons(&status["parents"][0])[0], want, "{selector}");
    }
}

/// As the suite has them: what the Gateway has, and what an older set has, nobody takes; of sets of the same time the name decides.
#[test]
fn the_first_to_claim_a_listener_keeps_it() {
    let tcp = |name: &str| format!("{{name: {name}, port: 80, protocol: TCP}}");
    let (gw, first) = ("with-gateway.com", "with-set.com");
    for (reason, of_gateway, of_set) in [
        ("HostnameConflict", http("with-gateway", gw), http("with-set", first)),
        ("ProtocolConflict", tcp("with-gateway"), tcp("with-set")),
    ] {
        let own = [http("own", "own.com"), http("with-gateway", gw)].join(", ");
        let text = [
            gateway(&from("Same"), &own),
            set("edge", "set-2", &[http("second", "second.com"), of_set.clone()]),
            set("edge", "gateway-1", &[http("one", "one.com"), of_gateway.clone(), http("with-set", first)]),
            set("edge", "set-3", &[of_set]),
            set("edge", "gateway-2", &[of_gateway]),
        ]
        .concat();
        let w = written(&text);
        let status_of = |name: &str| status(&w, "ListenerSet", &format!("edge/{name}"));
        let fine = ["Accepted True Accepted", "Programmed True Programmed", "Conflicted False NoConflicts"];
        let lost =
            ["Accepted False", "Programmed False", "Conflicted True"].map(|condition| format!("{condition} {reason}"));
        let is = |name: &str, wanted: &[bool]| {
            let status = status_of(name);
            let listeners = status["listeners"].as_array().unwrap();
            assert_eq!(listeners.len(), wanted.len());
            for (listener, is_fine) in listeners.iter().zip(wanted) {
                let got = reasons(listener);
                if *is_fine {
                    assert_eq!(got[..3], fine, "{name} {listener}");
                } else {
                    assert_eq!(got[..3], lost, "{name} {listener}");
                }
                assert_eq!(got[3], "ResolvedRefs True ResolvedRefs");
            }
            reasons(&status)
        };
        let some = ["Accepted True ListenersNotValid", "Programmed True Programmed"];
        let none = ["Accepted False ListenersNotValid", "Programmed False ListenersNotValid"];
        assert_eq!(is("gateway-1", &[true, false, true]), some);
        assert_eq!(is("set-2", &[true, false]), some);
        assert_eq!(is("gateway-2", &[false]), none);
        assert_eq!(is("set-3", &[false]), none);
        let of_gateway = status(&w, "Gateway", "edge/g");
        assert_eq!(of_gateway["attachedListenerSets"], 2);
        assert_eq!(reasons(&of_gateway)[..2], ["Accepted True Accepted", "Programmed True Programmed"]);
        for own in of_gateway["listeners"].as_array().unwrap() {
            assert_eq!(reasons(own)[..3], fine);
        }
        let want = [
            "Gateway/edge/g/own",
            "Gateway/edge/g/with-gateway",
            "ListenerSet/edge/gateway-1/one",
            "ListenerSet/edge/gateway-1/with-set",
            "ListenerSet/edge/set-2/second",
        ];
        assert_eq!(listened(&text), want, "{reason}");
    }
}

#[test]
fn the_older_set_comes_first() {
    let dated = |name: &str, year: u16| {
        let text = set("edge", name, &[http("l", "x.com")]);
        text.replace("generation: 3", &format!("creationTimestamp: '{year}-01-01T00:00:00Z'"))
    };
    let own = http("own", "own.com");
    let text = [gateway(&from("All"), &own), dated("a", 2025), dated("b", 2024)].concat();
    assert_eq!(listened(&text), ["Gateway/edge/g/own", "ListenerSet/edge/b/l"]);
    // Own listeners in conflict with each other are nobody else's.
    let both = [http("one", "x.com"), http("two", "x.com")].join(", ");
    let text = [gateway(&from("All"), &both), dated("a", 2025)].concat();
    assert_eq!(listened(&text), Vec::<String>::new());
}

/// Each reference is judged alone: one to a Gateway reaches the Gateway's own listeners, one to a set those of the set.
#[test]
fn routes_name_the_set_whose_listeners_they_want() {
    let same = |name: &str, host: &str| http(name, host).replace("from: All", "from: Same");
    let set_of = |name: &str| {
        format!("{{kind: ListenerSet, group: gateway.networking.k8s.io, name: more, namespace: other{name}}}")
    };
    const OWN: &str = "{name: g, namespace: edge}";
    let text = [
        NAMESPACES,
        SHOP,
        &gateway(&from("All"), &http("own", "own.com")),
        &set("other", "more", &[http("all", "all.com"), same("same", "same.com")]),
        &set("other", "younger", &[http("all", "all.com")]),
        &route("a", "both", &format!("{OWN}, {}", set_of(""))),
        &route("a", "gateway", OWN),
        &route(
            "a",
            "one",
            &format!("{{name: g, namespace: edge, sectionName: all}}, {}", set_of(", sectionName: all")),
        ),
        &route("a", "refused", &set_of(", sectionName: same")),
        &route("other", "near", &set_of("")),
        &route("a", "none", "{kind: ListenerSet, name: none}"),
    ]
    .concat();
    let w = written(&text);
    let accepted = |name: &str| -> Vec<String> {
        let status = status(&w, "HTTPRoute", name);
        status["parents"].as_array().unwrap().iter().map(|p| reasons(p).remove(0)).collect()
    };
    let fine = "Accepted True Accepted";
    assert_eq!(accepted("a/both"), [fine, fine]);
    assert_eq!(accepted("a/gateway"), [fine]);
    assert_eq!(accepted("a/one"), ["Accepted False NoMatchingParent", fine]);
    assert_eq!(accepted("a/refused"), ["Accepted False NotAllowedByListeners"]);
    assert_eq!(accepted("other/near"), [fine]);
    assert!(w.statuses.iter().all(|s| s.to.name != "none"), "of a set that is not there nothing is known");
    let both = status(&w, "HTTPRoute", "a/both");
    assert_eq!(both["parents"][1]["parentRef"]["kind"], "ListenerSet");
    // Counted where they are attached, with the kinds that there may be.
    let counts = |status: Value| -> Vec<u64> {
        status["listeners"].as_array().unwrap().iter().map(|l| l["attachedRoutes"].as_u64().unwrap()).collect()
    };
    let of_set = status(&w, "ListenerSet", "other/more");
    assert_eq!(of_set["listeners"][0]["supportedKinds"][0]["kind"], "HTTPRoute");
    assert_eq!(counts(of_set), [3, 1]);
    assert_eq!(counts(status(&w, "Gateway", "edge/g")), [2]);
    // And executed there only.
    let (m, _) = run(&text);
    let rules = |key: &str| -> Vec<String> {
        let all = origins(m.routes.get(key).and_then(|r| r.producer.as_ref()));
        let mut all: Vec<String> = all.iter().map(|o| o.split(' ').nth(1).unwrap().to_string()).collect();
        all.sort();
        all
    };
    assert_eq!(rules("~Gateway/edge/g/own/own.com"), ["a/both", "a/gateway"]);
    assert_eq!(rules("~ListenerSet/other/more/all/all.com"), ["a/both", "a/one", "other/near"]);
    assert_eq!(rules("~ListenerSet/other/more/same/same.com"), ["other/near"]);
    // A set that is not allowed is no parent.
    let text = text.replace("from: All, selector", "from: None, selector");
    let w = written(&text);
    let parents = status(&w, "HTTPRoute", "a/both")["parents"].clone();
    let all: Vec<String> = parents.as_array().unwrap().iter().map(|p| reasons(p).remove(0)).collect();
    assert_eq!(all, [fine, "Accepted False NoMatchingParent"]);
}

/// A certificate in another namespace is granted to the kind that refers to it.
#[test]
fn what_is_granted_to_a_gateway_is_not_to_its_sets() {
    let https = |name: &str| {
        format!(
            "{{name: {name}, port: 443, protocol: HTTPS, hostname: {name}.com, tls: {{certificateRefs: [{{name: c, namespace: a}}]}}}}"
        )
    };
    let grant = |kind: &str, ns: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: {}, namespace: a}}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {ns}}}], to: [{{group: '', kind: Secret}}]}}\n---\n",
            kind.to_lowercase()
        )
    };
    let base = [
        gateways::key_pair(),
        NAMESPACES.to_string(),
        gateway(&from("All"), &https("own")),
        grant("Gateway", "edge"),
        set("edge", "more", &[https("more")]),
        set("other", "far", &[https("far")]),
    ]
    .concat();
    let said = |text: &str, name: &str| {
        let w = written(text);
        let status = status(&w, "ListenerSet", name);
        (reasons(&status), reasons(&status["listeners"][0]).remove(3))
    };
    let lost = ["Accepted False ListenersNotValid", "Programmed False ListenersNotValid"].map(String::from).to_vec();
    assert_eq!(said(&base, "edge/more"), (lost.clone(), "ResolvedRefs False RefNotPermitted".to_string()));
    assert_eq!(listened(&base), ["Gateway/edge/g/own"]);
    let granted = base.clone() + &grant("ListenerSet", "edge");
    let fine = ["Accepted True Accepted", "Programmed True Programmed"].map(String::from).to_vec();
    assert_eq!(said(&granted, "edge/more"), (fine, "ResolvedRefs True ResolvedRefs".to_string()));
    assert_eq!(said(&granted, "other/far").0, lost);
    assert_eq!(listened(&granted), ["Gateway/edge/g/own", "ListenerSet/edge/more/more"]);
    // What the pod is told has the key.
    let (m, _) = run(&granted);
    let tls = m.gateways["edge/gw"].listeners[1].tls.as_ref().unwrap();
    assert_eq!(tls.certificates.len(), 1);
    // What is granted to a set is not to its Gateway.
    let only = base.replace("kind: Gateway, namespace: edge}], to", "kind: ListenerSet, namespace: edge}], to");
    assert_eq!(listened(&only), ["ListenerSet/edge/more/more"]);
}

#[test]
fn a_listener_of_a_set_cannot_have_other_kinds_or_ports_of_the_proxy() {
    let passes = "{name: tls, port: 443, protocol: TLS, hostname: x.com, tls: {mode: Passthrough}, allowedRoutes: {kinds: [{kind: HTTPRoute}]}}";
    let own = |port: u16| format!("{{name: p{port}, port: {port}, protocol: HTTP}}");
    let text = [
        gateway(&from("All"), &http("own", "own.com")),
        set("edge", "more", &[passes.to_string(), own(15020), own(15021), own(15000), own(15008), own(8080)]),
    ]
    .concat();
    let w = written(&text);
    let status = status(&w, "ListenerSet", "edge/more");
    assert_eq!(reasons(&status), ["Accepted True ListenersNotValid", "Programmed True Programmed"]);
    let listeners = status["listeners"].as_array().unwrap();
    assert_eq!(reasons(&listeners[0])[3], "ResolvedRefs False InvalidRouteKinds");
    assert_eq!(listeners[0]["supportedKinds"], serde_json::json!([]));
    for listener in &listeners[1..5] {
        assert_eq!(reasons(listener)[0], "Accepted False PortUnavailable");
    }
    assert_eq!(reasons(&listeners[5])[0], "Accepted True Accepted");
    assert_eq!(listened(&text), ["Gateway/edge/g/own", "ListenerSet/edge/more/p8080"]);
}

/// The Service of a Gateway has the ports of its sets, each once and under a name of its own.
#[test]
fn the_service_of_a_gateway_has_the_ports_of_its_sets() {
    let listener =
        |name: &str, port: u16, protocol: &str| format!("{{name: {name}, port: {port}, protocol: {protocol}}}");
    let text = [
        gateway(&from("All"), &http("web", "own.com")).replace(MADE, ""),
        set("edge", "a", &[listener("web", 8080, "HTTP"), listener("status-port", 9000, "TCP")]),
        set(
            "edge",
            "b",
            &[
                http("again", "b.com"),
                listener("db", 9000, "TCP"),
                listener("port-9003", 9001, "TCP"),
                listener("web", 9003, "TCP"),
            ],
        ),
        set("other", "c", &[listener("late", 9002, "TCP")]).replace("name: g,", "name: gone,"),
    ]
    .concat();
    let ports = |text: &str| -> Vec<String> {
        let w = written(text);
        let (_, service) = w.objects.iter().find(|(r, _)| r.kind == "Service").unwrap();
        let all = service["spec"]["ports"].as_array().unwrap().iter();
        all.map(|p| format!("{} {} {}", p["name"], p["port"], p["appProtocol"]).replace('"', "")).collect()
    };
    let own = ["status-port 15021 tcp", "web 80 http"];
    let added = ["port-8080 8080 http", "port-9000 9000 tcp", "port-9003 9001 tcp", "port-9003-1 9003 tcp"];
    let want = [&own[..], &added[..]].concat();
    assert_eq!(ports(&text), want);
    let text = text.replace("from: All, selector", "from: None, selector");
    assert_eq!(ports(&text), own);
}

/// Who may add listeners does not get every port of every node: what is beyond is refused, and others go on.
#[test]
fn a_gateway_has_no_more_ports_than_a_service_may() {
    let many = |from: u16, count: u16| -> Vec<String> {
        (from..from + count).map(|port| format!("{{name: p{port}, port: {port}, protocol: TCP}}")).collect()
    };
    let later = [many(2060, 60), vec![http("web", "late.com"), "{name: u, port: 2000, protocol: UDP}".into()]].concat();
    let text = [
        gateway(&from("All"), &http("own", "own.com")).replace(MADE, ""),
        set("edge", "a", &many(2000, 60)),
        set("edge", "b", &later),
    ]
    .concat();
    let w = written(&text);
    let (_, service) = w.objects.iter().find(|(r, _)| r.kind == "Service").unwrap();
    assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 100);
    let accepted = |set: &str| -> Vec<bool> {
        let status = status(&w, "ListenerSet", set);
        let all = status["listeners"].as_array().unwrap().iter().map(|l| reasons(l)[0].clone());
        all.map(|r| match r.as_str() {
            "Accepted True Accepted" => true,
            "Accepted False PortUnavailable" => false,
            other => panic!("{other}"),
        })
        .collect()
    };
    assert_eq!(accepted("edge/a"), [true; 60]);
    // 98 are left beside the Gateway's own; a port that is there already costs none.
    let want = [vec![true; 38], vec![false; 22], vec![true, false]].concat();
    assert_eq!(accepted("edge/b"), want);
    assert_eq!(listened(&text).len(), 1 + 60 + 38 + 1);
}

/// What a set asks of clients, and nobody can honour, is no reason to take others' listeners away: those of the Gateway would all be
/// gone by one line of whoever may add to it.
#[test]
fn a_set_that_asks_in_vain_takes_nobody_elses_listener() {
    let https = |name: &str, host: &str, more: &str| {
        format!(
            "{{name: {name}, port: 443, protocol: HTTPS, hostname: '{host}', tls: {{certificateRefs: [{{name: c}}]{more}}}}}"
        )
    };
    let asks = ", options: {gateway.istio.io/tls-terminate-mode: MUTUAL}";
    let of = |own: &[String]| {
        let text = [
            gateways::key_pair().replace("namespace: a", "namespace: edge"),
            gateway(&from("All"), &own.join(", ")),
            set("edge", "a", &[https("asks", "x.com", asks), https("wider", "*.x.com", ""), https("wide", "*", "")]),
            set("edge", "b", &[https("same", "x.com", ""), https("other", "*.org", "")]),
        ]
        .concat();
        listened(&text)
    };
    let [own, other] = ["Gateway/edge/g/own", "ListenerSet/edge/b/other"];
    // Who has the host has it, as the Gateway does here, or may have it.
    assert_eq!(
        of(&[https("own", "*.com", "")]),
        [own, "ListenerSet/edge/a/wider", "ListenerSet/edge/b/same", other],
        "its own wide one would take the same clients"
    );
    assert_eq!(of(&[https("own", "x.com", "")]), [own, "ListenerSet/edge/a/wider", other]);
    // What the Gateway itself asks counts for all.
    assert_eq!(of(&[https("own", "*.org", asks)]), ["ListenerSet/edge/a/wider", "ListenerSet/edge/b/same"]);
}

/// A name that a set wants to have asked about, and that another has: the other is served for it, or nobody is.
#[test]
fn a_name_that_a_set_wants_in_vain_is_taken_by_no_wider_listener_of_the_set() {
    let filtered = |filters: &str| http("mine", "x.com").replace("protocol: HTTP", &format!("protocol: HTTP{filters}"));
    let of = |own: &[String], filters: &str| {
        let text =
            [gateway(&from("All"), &own.join(", ")), set("edge", "a", &[filtered(filters), http("wide", "'*.com'")])];
        listened(&text.concat())
    };
    let ask = "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: s, port: 80}}}";
    let filters = format!(", filters: {{requests: [{ask}]}}");
    let wide = "ListenerSet/edge/a/wide";
    for filters in ["", filters.as_str()] {
        assert_eq!(of(&[http("own", "x.com")], filters), ["Gateway/edge/g/own", wide], "{filters}");
    }
    // The Gateway's own are in conflict with each other.
    let both = [http("one", "x.com"), http("two", "x.com")];
    assert_eq!(of(&both, ""), [wide]);
    assert_eq!(of(&both, &filters), Vec::<String>::new());
}

/// Where a Service sends one port to another one of the pods, a set that adds that one asks clients of both as it asks its own.
#[test]
fn a_set_at_a_port_that_asks_otherwise_gives_way() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: gw, namespace: edge}\nspec: {clusterIP: 10.96.0.9, selector: {gateway.networking.k8s.io/gateway-name: g}, ports: [{name: a, port: 443, targetPort: 8443}]}\n---\n";
    let https = |name: &str, port: u16| {
        format!(
            "{{name: {name}, port: {port}, protocol: HTTPS, hostname: {name}.com, tls: {{certificateRefs: [{{name: c}}]}}}}"
        )
    };
    let asked = "validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}";
    let frontend =
        format!("{}tls: {{frontend: {{default: {{}}, perPort: [{{port: 443, tls: {{{asked}}}}}]}}}}, ", from("All"));
    let text = [
        gateways::key_pair().replace("namespace: a", "namespace: edge"),
        gateways::authority("edge", "ca"),
        service.to_string(),
        gateway(&frontend, &https("own", 443)),
        set("edge", "like", &[https("like", 443)]),
        set("edge", "unlike", &[https("unlike", 8443)]),
    ]
    .concat();
    assert_eq!(listened(&text), ["Gateway/edge/g/own", "ListenerSet/edge/like/like"]);
    let status = status(&written(&text), "ListenerSet", "edge/unlike");
    assert_eq!(reasons(&status["listeners"][0])[0], "Accepted False PortUnavailable");
}

/// Where somebody else runs the Gateway, behind a Service without the set's port: the set is not reached, and the Gateway is as before.
#[test]
fn a_port_that_a_set_wants_in_vain_takes_no_address_from_its_gateway() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: gw, namespace: edge}\nspec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}\n---\n";
    let addresses = format!("{}addresses: [{{type: Hostname, value: gw.edge.svc.cluster.local}}], ", from("All"));
    for (port, want) in [(80, "Programmed True Programmed"), (8080, "Programmed False Invalid")] {
        let added = http("l", "more.com").replace("port: 80", &format!("port: {port}"));
        let text = [service, &gateway(&addresses, &http("own", "own.com")), &set("edge", "more", &[added])].concat();
        let w = written(&text);
        conditions(&w);
        let of_gateway = status(&w, "Gateway", "edge/g");
        assert_eq!(reasons(&of_gateway)[..2], ["Accepted True Accepted", "Programmed True Programmed"], "{port}");
        assert_eq!(of_gateway["addresses"][0]["value"], "gw.edge.svc.cluster.local", "{port}");
        assert_eq!(reasons(&status(&w, "ListenerSet", "edge/more")), ["Accepted True Accepted", want], "{port}");
    }
}

/// Who may add listeners adds as many as there may be: each is looked at a few times, and no two of them with one another.
#[test]
fn many_listeners_are_compared_in_no_square() {
    const MANY: usize = 400;
    let https = |n: usize| {
        format!(
            "{{name: l{n}, port: 443, protocol: HTTPS, hostname: h{n}.com, tls: {{certificateRefs: [{{name: c}}]}}}}"
        )
    };
    let all: Vec<String> = (0..MANY).map(https).collect();
    let text = [
        gateways::key_pair().replace("namespace: a", "namespace: edge"),
        gateway(&from("All"), &http("own", "own.com")),
        set("edge", "more", &all),
    ]
    .concat();
    COMPARED.set(0);
    assert_eq!(listened(&text).len(), MANY + 1);
    let compared = COMPARED.get();
    assert!((MANY..10 * MANY).contains(&compared), "{compared}");
}

/// A Gateway that is not accepted, or not programmed, has no set that is.
#[test]
fn a_set_is_no_more_than_its_gateway() {
    let more = set("edge", "more", &[http("l", "more.com")]);
    let said = |text: &str| {
        let w = written(text);
        conditions(&w);
        let count = status(&w, "Gateway", "edge/g")["attachedListenerSets"].as_u64().unwrap_or(0);
        (reasons(&status(&w, "ListenerSet", "edge/more")).join(", "), count)
    };
    let fine = gateway(&from("Same"), &http("own", "own.com")) + &more;
    let address =
        fine.replace("gatewayClassName: istio, ", "gatewayClassName: istio, addresses: [{type: x, value: y}], ");
    assert_eq!(said(&address), ("Accepted False ParentNotAccepted, Programmed False ParentNotProgrammed".into(), 0));
    let waits = fine.replace("availableReplicas: 1", "availableReplicas: 0");
    assert_eq!(said(&waits), ("Accepted True Accepted, Programmed False ParentNotProgrammed".into(), 1));
    // Its listeners are those of its sets, too: one that has none of its own that is valid is accepted by theirs.
    let wrong = http("own", "own.com").replace("protocol: HTTP", "protocol: SMTP");
    let text = gateway(&from("Same"), &wrong) + &more;
    assert_eq!(said(&text), ("Accepted True Accepted, Programmed True Programmed".into(), 1));
    let of_gateway = reasons(&status(&written(&text), "Gateway", "edge/g"));
    assert_eq!(of_gateway[0], "Accepted True ListenersNotValid");
    // A waypoint takes none.
    let waypoint =
        WAYPOINT.replace("STATUS", "").replace("listeners:", "allowedListeners: {namespaces: {from: All}}, listeners:");
    let w = written(&(waypoint + &more.replace("name: g, namespace: edge", "name: w, namespace: a")));
    let status = status(&w, "ListenerSet", "edge/more");
    assert_eq!(reasons(&status), ["Accepted False NotAllowed", "Programmed False NotAllowed"]);
}

/// What is written is what is wanted: then nothing is written again.
#[test]
fn statuses_of_sets_are_written_once() {
    let all = [http("l", "more.com"), http("lost", "own.com")];
    let (own, more) = (gateway(&from("Same"), &http("own", "own.com")), set("edge", "more", &all));
    let w = written(&(own.clone() + &more));
    let with = |text: &str, status: Value| text.replacen("\n---\n", &format!("\nstatus: {status}\n---\n"), 1);
    let more = with(&more, status(&w, "ListenerSet", "edge/more"));
    // The Gateway is the second document.
    let (pod, rest) = own.split_once("---\n").unwrap();
    let own = format!("{pod}---\n{}", with(rest, status(&w, "Gateway", "edge/g")));
    let left: Vec<String> = written(&(own + &more)).statuses.iter().map(|s| s.to.to_string()).collect();
    assert_eq!(left, Vec::<String>::new());
}
