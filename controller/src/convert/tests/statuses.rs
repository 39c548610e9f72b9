//! What statuses and findings say.

use super::*;

#[test]
fn bindings_are_reported() {
    let waypoint = |status: &str| WAYPOINT.replace("STATUS", status);
    let service = |ns: &str| BOUND.replace("NS", ns);
    let second = || waypoint(READY).replace("name: w,", "name: w2,");
    let weight = "}, annotations: {istio.io/use-waypoint-canary-weight";
    let canary = |rest: &str| {
        let bound = format!("istio.io/use-waypoint-namespace: a, istio.io/use-waypoint-canary: {rest}");
        waypoint(READY) + &second() + &service("a").replace("istio.io/use-waypoint-namespace: a", &bound)
    };
    let open = waypoint(READY).replace("protocol: HBONE", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}");
    let entry = |ns: &str, to: &str| {
        format!(
            "{open}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {ns}, labels: {{istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}}}\nspec: {{hosts: [x.example.com], exportTo: [{to}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS}}\n"
        )
    };
    for (text, wanted) in [
        (service("a"), "Service a/s: istio.io/WaypointBound False WaypointIsNotReady"),
        (waypoint("") + &service("a"), "Service a/s: istio.io/WaypointBound False WaypointIsNotReady"),
        (waypoint(READY) + &service("a"), "Service a/s: istio.io/WaypointBound True WaypointAccepted"),
        (waypoint(READY) + &service("b"), "Service b/s: istio.io/WaypointBound False AttachmentDenied"),
        (
            waypoint(READY).replace("protocol: HBONE", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}")
                + &service("b"),
            "Service b/s: istio.io/WaypointBound True WaypointAccepted",
        ),
        (
            waypoint(READY).replace("generation: 3", "labels: {istio.io/waypoint-for: workload}") + &service("a"),
            "Service a/s: istio.io/WaypointBound False UnsupportedTrafficType",
        ),
        (canary(&format!("w2{weight}: '30'")), "Service a/s: istio.io/WaypointBound True WaypointAccepted"),
        (canary(&format!("w{weight}: '30'")), "Service a/s: istio.io/WaypointBound False CanarySameAsPrimary"),
        (canary(&format!("w2{weight}: '101'")), "Service a/s: istio.io/WaypointBound False CanaryInvalidWeight"),
        (canary(&format!("w3{weight}: '30'")), "Service a/s: istio.io/WaypointBound False WaypointIsNotReady"),
        (canary("w2"), "Service a/s: istio.io/WaypointBound False CanaryInvalidWeight"),
        (entry("a", "'.'"), "ServiceEntry a/e: istio.io/VisibilityApplied True Namespace"),
        (entry("a", "'.', b"), "ServiceEntry a/e: istio.io/VisibilityApplied True Public"),
        (entry("a", "'.'"), "ServiceEntry a/e: istio.io/WaypointBound True WaypointAccepted"),
        (entry("b", "'.'"), "ServiceEntry b/e: istio.io/WaypointBound True WaypointAccepted"),
        (entry("b", "'*'"), "ServiceEntry b/e: istio.io/WaypointBound True WaypointAccepted"),
    ] {
        let all = conditions(&written(&text));
        assert!(all.iter().any(|c| c == wanted), "{wanted}\n{all:#?}");
    }
    // Written once; taken back with the label; the time of a condition stays while its status does.
    let said = |time: &str, reason: &str| {
        format!(
            "status: {{conditions: [{{type: istio.io/WaypointBound, status: 'True', reason: {reason}, message: 'bound to waypoint a/w', lastTransitionTime: '{time}'}}]}}\n---\n"
        )
    };
    let with = |status: &str| waypoint(READY) + &service("a").replace("---\n", status);
    let of_service = |w: Writes| w.statuses.into_iter().find(|s| s.to.kind == "Service").map(|s| s.status);
    assert_eq!(of_service(written(&with(&said("t", "WaypointAccepted")))), None);
    let again = of_service(written(&with(&said("t", "Other")))).unwrap();
    assert_eq!(again["conditions"][0]["lastTransitionTime"], "t");
    let without = with(&said("t", "WaypointAccepted")).replace("istio.io/use-waypoint: w", "x: y");
    assert_eq!(of_service(written(&without)).unwrap(), serde_json::json!({ "conditions": [] }));
}

#[test]
fn policies_say_who_enforces_them() {
    for (spec, wanted) in [
        ("{rules: [{}]}", "ZtunnelAccepted True Accepted"),
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", "ZtunnelAccepted True UnsupportedValue"),
        ("{action: DENY}", "ZtunnelAccepted False UnsupportedValue"),
        ("{targetRefs: [{kind: Service, name: none}]}", "WaypointAccepted False TargetNotFound"),
        ("{targetRefs: [{kind: Service, name: s}]}", "WaypointAccepted True Accepted"),
        ("{targetRefs: [{kind: Service, name: t}]}", "WaypointAccepted False AncestorNotBound"),
        (
            "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]}",
            "WaypointAccepted True Accepted",
        ),
    ] {
        let unbound = "apiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: a}\n---\n";
        let text = WAYPOINT.replace("STATUS", READY) + &BOUND.replace("NS", "a") + unbound + &policy(spec);
        let all = conditions(&written(&text));
        let wanted = format!("AuthorizationPolicy a/ap: {wanted}");
        assert!(all.contains(&wanted), "{wanted}\n{all:#?}");
    }
}

/// A waypoint that cannot be as it is written says so, by Gateway API's reasons; what is bound to it does not go there.
#[test]
fn a_waypoint_with_a_wrong_listener_is_not_programmed() {
    const MADE: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w, namespace: a, labels: {gateway.istio.io/managed: x}}\nstatus: {availableReplicas: 1}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: a, labels: {gateway.istio.io/managed: x}}\nspec: {clusterIP: 10.96.0.9}\n---\n";
    let with = |listeners: &str, status: &str| {
        let listener = "{name: mesh, port: 15008, protocol: HBONE}";
        WAYPOINT.replace(listener, listeners).replace("STATUS", status) + MADE + &BOUND.replace("NS", "a")
    };
    let said = |text: &str| {
        let w = written(text);
        let of = |c: &serde_json::Value| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "");
        let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
        let all = [&status["conditions"], &status["listeners"][0]["conditions"]];
        let one = |c: &serde_json::Value| c.as_array().unwrap()[..2].iter().map(of).collect::<Vec<_>>().join(", ");
        (all.map(one), status["addresses"].as_array().unwrap().len(), conditions(&w))
    };
    for (listener, reason) in [
        ("{name: mesh, port: 15008, protocol: HTTP}", "UnsupportedProtocol"),
        ("{name: mesh, port: 80, protocol: HBONE}", "PortUnavailable"),
        ("{name: mesh, port: 80, protocol: HTTP}", "UnsupportedProtocol"),
    ] {
        let ([own, of_listener], addresses, all) = said(&with(listener, ""));
        assert_eq!(own, "Accepted False ListenersNotValid, Programmed False Invalid", "{listener}");
        assert_eq!(of_listener, format!("Accepted False {reason}, Programmed False Invalid"), "{listener}");
        assert_eq!(addresses, 0, "{listener}");
        assert!(all.contains(&"Service a/s: istio.io/WaypointBound False WaypointIsNotReady".to_string()), "{all:#?}");
        // One that served: its policies stay in force.
        let ([own, _], addresses, all) = said(&with(listener, READY));
        assert_eq!((own.as_str(), addresses), ("Accepted False ListenersNotValid, Programmed False Invalid", 1));
        assert!(all.contains(&"Service a/s: istio.io/WaypointBound True WaypointAccepted".to_string()), "{all:#?}");
    }
    let ([own, _], addresses, _) = said(&with("{name: mesh, port: 15008, protocol: HBONE}", ""));
    assert_eq!((own.as_str(), addresses), ("Accepted True Accepted, Programmed True Programmed", 1));
    // Of two the one that can be is there.
    let two = "{name: web, port: 80, protocol: HTTP}, {name: mesh, port: 15008, protocol: HBONE}";
    let ([own, of_listener], addresses, _) = said(&with(two, ""));
    assert_eq!((own.as_str(), addresses), ("Accepted True ListenersNotValid, Programmed True Programmed", 1));
    assert_eq!(of_listener, "Accepted False UnsupportedProtocol, Programmed False Invalid");
}

#[test]
fn routes_say_what_became_of_them() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: b}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n---\n";
    let route = |parent: &str, backend: &str| {
        format!(
            "{service}apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a, generation: 2}}\nspec: {{parentRefs: [{{group: '', kind: Service, {parent}}}], rules: [{{backendRefs: [{{{backend}}}]}}]}}\n"
        )
    };
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}\n";
    let said = |text: &str| {
        let w = written(text);
        let s = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").map(|s| s.status["parents"].clone());
        let reasons = |c: &serde_json::Value| format!("{}={}", c["type"], c["reason"]).replace('"', "");
        s.map(|s| s[0]["conditions"].as_array().unwrap().iter().map(reasons).collect::<Vec<_>>().join(" "))
    };
    let host =
        |name: &str, port: u16| format!("group: networking.istio.io, kind: Hostname, name: {name}, port: {port}");
    for (parent, backend, more, wanted) in [
        ("name: s", "name: s, port: 80", "", "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
        ("name: s, port: 81", "name: s, port: 80", "", "Accepted=NoMatchingParent ResolvedRefs=ResolvedRefs"),
        ("name: none", "name: s", "", "Accepted=NoMatchingParent ResolvedRefs=ResolvedRefs"),
        ("name: s", "name: none", "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", "name: s, port: 81", "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", &host("s.a.svc.cluster.local", 80), "", "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
        ("name: s", &host("s.a.svc.cluster.local", 81), "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", &host("x.example", 80), "", "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        ("name: s", "name: s, kind: Pod", "", "Accepted=Accepted ResolvedRefs=InvalidKind"),
        ("name: s", "name: t, namespace: b, port: 80", "", "Accepted=Accepted ResolvedRefs=RefNotPermitted"),
        ("name: s", "name: t, namespace: b, port: 80", grant, "Accepted=Accepted ResolvedRefs=ResolvedRefs"),
        (
            "name: s",
            "name: s, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}}",
            "",
            "Accepted=Accepted ResolvedRefs=BackendNotFound",
        ),
    ] {
        // Only of a service that is there it can be said.
        let waypoint = if parent == "name: none" { "" } else { " ResolvedWaypoints=MissingUseWaypointLabel" };
        let wanted = format!("{wanted}{waypoint}");
        assert_eq!(said(&(route(parent, backend) + more)), Some(wanted), "{parent} {backend}");
    }
    // Written once; what another controller has said stays; a Gateway's routes are not ours.
    let fine = route("name: s", "name: s, port: 80");
    let w = written(&fine);
    let status = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").unwrap().status.clone();
    assert_eq!(said(&format!("{fine}status: {status}\n")), None);
    let other = "status: {parents: [{parentRef: {name: g}, controllerName: example.com/other, conditions: [{type: Accepted, status: 'True', reason: Accepted}]}]}\n";
    let w = written(&format!("{fine}{other}"));
    let all = w.statuses.iter().find(|s| s.to.kind == "HTTPRoute").unwrap().status["parents"].clone();
    assert_eq!((all.as_array().unwrap().len(), all[1]["controllerName"].as_str()), (2, Some("example.com/other")));
    assert_eq!(said(&fine.replace("group: '', kind: Service, name: s", "name: g")), None);
}

/// A route that nobody executes says so, as in Istio; what is mended is taken back.
#[test]
fn routes_without_a_waypoint_say_so() {
    let base = |label: &str| {
        WAYPOINT.replace("STATUS", READY) + &BOUND.replace("NS", "a").replace("istio.io/use-waypoint:", label)
    };
    let (with, without) = (base("istio.io/use-waypoint:"), base("x:"));
    let http = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{backendRefs: [{name: s}]}]}\n---\n";
    let istio = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: a}\nspec: {hosts: [s], http: [{route: [{destination: {host: TO}}]}]}\nSTATUS\n---\n";
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec: {host: none}\n---\n";
    let parent = |text: &str| {
        let w = written(&(text.to_string() + http));
        let route = w.statuses.into_iter().find(|s| s.to.kind == "HTTPRoute").unwrap();
        let c = &route.status["parents"][0]["conditions"][2];
        format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "")
    };
    assert_eq!(parent(&with), "ResolvedWaypoints True ResolvedWaypoints");
    assert_eq!(parent(&without), "ResolvedWaypoints False MissingUseWaypointLabel");
    let said = |text: &str, to: &str, status: &str| {
        let all = written(&(text.to_string() + &istio.replace("TO", to).replace("STATUS", status) + rule));
        let mut all = conditions(&all);
        all.retain(|c| c.starts_with("VirtualService") || c.starts_with("DestinationRule"));
        all
    };
    let lost = "DestinationRule a/d: ResolvedRefs False HostNotFound";
    assert_eq!(said(&with, "s", ""), [lost]);
    let missing = "VirtualService a/v: ResolvedWaypoints False MissingUseWaypointLabel";
    assert_eq!(said(&without, "s", ""), [missing, lost]);
    let refs = "VirtualService a/v: ResolvedRefs False HostNotFound";
    assert_eq!(said(&without, "gone", ""), [missing, refs, lost]);
    let old = "status: {conditions: [{type: ResolvedRefs, status: 'False', reason: HostNotFound, message: x, lastTransitionTime: t}]}";
    let w = written(&(with.clone() + &istio.replace("TO", "s").replace("STATUS", old)));
    let of = w.statuses.iter().find(|s| s.to.kind == "VirtualService").unwrap();
    assert_eq!(of.status, serde_json::json!({ "conditions": [] }));
    // Before anything is known, what was said stays.
    let text = with + &istio.replace("TO", "s").replace("STATUS", old);
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    let template = Template { image: String::new(), pull_policy: String::new(), ..Template::default() };
    let w = written_with(&State { objects, ..State::default() }, &template, None);
    assert!(w.statuses.iter().all(|s| s.to.kind != "VirtualService"));
}

#[test]
fn a_filter_that_nobody_executes_is_reported() {
    let text = |label: &str| {
        format!(
            "{WAYPOINT}{}apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: f, namespace: a}}\nspec: {{targetRefs: [{{kind: Service, name: s}}], rateLimits: [{{requests: 1}}]}}\n",
            BOUND.replace("NS", "a").replace("istio.io/use-waypoint:", label)
        )
        .replace("STATUS", READY)
    };
    let (m, p) = run(&text("istio.io/use-waypoint:"));
    assert!(p.is_empty() && m.routes["a/s.a.svc.cluster.local"].limits.len() == 1, "{p:?}");
    let (_, p) = run(&text("x/y:"));
    assert_eq!((p.len(), p[0].field.as_str()), (1, "spec.targetRefs[0]"), "{p:?}");
}

/// Of two policies for the same port the older one counts; a wrong one means no connection, and its status says why.
#[test]
fn backend_tls_policies_say_what_became_of_them() {
    let policy = |name: &str, time: &str, target: &str, validation: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{time}'}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s{target}}}], validation: {{{validation}}}}}\n"
        )
    };
    const SYSTEM: &str = "hostname: x, wellKnownCACertificates: System";
    let pem = crate::ca::Signer::generate("cluster.local").unwrap().0;
    let map = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: a}}\ndata:\n  ca.crt: |\n{}",
        pem.lines().map(|l| format!("    {l}\n")).collect::<String>()
    );
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let base = base.replace("clusterIP: 10.96.0.1}", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}");
    let said = |policies: &str| -> Vec<(String, String)> {
        let reasons = |w: Write| {
            let all = w.status["ancestors"][0]["conditions"].as_array().cloned().unwrap_or_default();
            let of = |i: usize| all[i]["reason"].as_str().unwrap_or_default().to_string();
            (format!("{} {}", w.to.name, of(0)), of(1))
        };
        let all = written(&format!("{base}{map}{policies}")).statuses;
        all.into_iter().filter(|w| w.to.kind == "BackendTLSPolicy").map(reasons).collect()
    };
    let one = |target: &str, validation: &str| said(&policy("p", "1", target, validation)).remove(0);
    let both = |a: &str, b: &str| (format!("p {a}"), b.to_string());
    assert_eq!(one("", SYSTEM), both("Accepted", "ResolvedRefs"));
    let refs = |list: &str| format!("hostname: x, caCertificateRefs: [{list}]");
    let good = "{group: '', kind: ConfigMap, name: ca}";
    assert_eq!(one("", &refs(good)), both("Accepted", "ResolvedRefs"));
    let lost = "{group: '', kind: ConfigMap, name: none}";
    assert_eq!(one("", &refs(lost)), both("NoValidCACertificate", "InvalidCACertificateRef"));
    assert_eq!(one("", &refs(&format!("{lost}, {good}"))), both("Accepted", "InvalidCACertificateRef"));
    assert_eq!(one("", &refs("{group: '', kind: Pod, name: ca}")), both("NoValidCACertificate", "InvalidKind"));
    assert_eq!(one("", &refs("{group: x.io, kind: ClusterTrustBundle, name: a}")).1, "InvalidKind");
    assert_eq!(one(", sectionName: none", SYSTEM), both("TargetNotFound", "ResolvedRefs"));
    assert_eq!(one("", "hostname: x"), both("Invalid", "ResolvedRefs"));
    let two = said(&(policy("young", "2", "", SYSTEM) + &policy("old", "1", "", SYSTEM)));
    assert_eq!(two.iter().map(|(a, _)| a.as_str()).collect::<Vec<_>>(), ["old Accepted", "young Conflicted"]);
    let two = said(&(policy("young", "2", "", SYSTEM) + &policy("old", "1", ", sectionName: http", SYSTEM)));
    assert_eq!(two.iter().map(|(a, _)| a.as_str()).collect::<Vec<_>>(), ["old Accepted", "young Accepted"]);
}

/// A BackendTLSPolicy for Service a/s.
const OF_S: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{group: '', kind: Service, name: s}], validation: {hostname: x, wellKnownCACertificates: System}}\n";

/// Whom its status names, as NAMESPACE/NAME, each with who has written it.
fn ancestors(text: &str) -> Vec<(String, String)> {
    let all = written(text).statuses.into_iter().filter(|w| w.to.kind == "BackendTLSPolicy");
    let of = all.flat_map(|w| w.status["ancestors"].as_array().cloned().unwrap_or_default());
    let word = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_string();
    of.map(|a| {
        let (to, by) = (&a["ancestorRef"], word(&a["controllerName"]));
        (format!("{}/{}", word(&to["namespace"]), word(&to["name"])), by)
    })
    .collect()
}

/// A Gateway with a listener of this protocol and so on.
fn gateway(namespace: &str, name: &str, listener: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{gatewayClassName: istio, allowedListeners: {{namespaces: {{from: All}}}}, listeners: [{{name: web, port: 80, protocol: {listener}}}]}}\n---\n"
    )
}

/// Filters of a listener that ask Service a/s at this port.
fn asking(port: u16) -> String {
    format!(
        ", filters: {{requests: [{{type: ExternalAuth, externalAuth: {{protocol: GRPC, backendRef: {{name: s, namespace: a, port: {port}}}}}}}]}}"
    )
}

/// Whoever sends requests to the Service is named: by a route, by its mirror, or to ask about a request. Who may not, or whose route
/// or listener is not in force, is not.
#[test]
fn backend_tls_policies_name_all_gateways_that_send_there() {
    const SET: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: set, namespace: b}\nspec: {parentRef: {name: g, namespace: a}, listeners: [{name: more, port: 81, protocol: HTTPFILTERS}]}\n---\n";
    const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: a}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: b}, {group: gateway.networking.k8s.io, kind: ListenerSet, namespace: b}], to: [{group: '', kind: Service}]}\n---\n";
    let route = |kind: &str, namespace: &str, parent: &str, rule: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: {namespace}}}\nspec: {{parentRefs: [{{{parent}}}], rules: [{{{rule}}}]}}\n---\n"
        )
    };
    const TO_S: &str = "backendRefs: [{name: s, namespace: a, port: 80}]";
    const TO_T: &str = "backendRefs: [{name: t, port: 80}]";
    let waypoint = WAYPOINT.replace("STATUS", READY);
    let (c, s) = (BOUND.replace("NS", "a").replace("name: s,", "name: c,"), BOUND.replace("NS", "a"));
    let canary = s.replace(
        "use-waypoint-namespace: a}",
        "use-waypoint-namespace: a, istio.io/use-waypoint-canary: w2}, annotations: {istio.io/use-waypoint-canary-weight: '30'}",
    );
    let second = waypoint.replace("name: w,", "name: w2,");
    let of_g = |rule: &str| format!("{SHOP}{}{}", gateway("a", "g", "HTTP"), route("HTTPRoute", "a", "name: g", rule));
    let of_b = format!("{SHOP}{}{}", gateway("b", "g", "HTTP"), route("HTTPRoute", "b", "name: g", TO_S));
    let of_set = format!("{SHOP}{}{}", gateway("a", "g", "HTTP"), SET.replace("FILTERS", &asking(80)));
    let of_c = |parent: &str| format!("{SHOP}{waypoint}{c}{}", route("HTTPRoute", "a", parent, TO_S));
    for (text, wanted) in [
        (format!("{SHOP}{}", gateway("a", "g", "HTTP")), &[][..]),
        // By a listener's filters, a ListenerSet's among them: the Gateway is who sends.
        (format!("{SHOP}{}", gateway("a", "g", &format!("HTTP{}", asking(80)))), &["a/g"]),
        (format!("{SHOP}{}", gateway("a", "g", &format!("HTTP{}", asking(81)))), &[]),
        (format!("{SHOP}{}", gateway("a", "g", &format!("TCP{}", asking(80)))), &[]),
        (of_set.clone(), &[]),
        (format!("{of_set}{GRANT}"), &["a/g"]),
        // By a route, and by its filters.
        (of_g(TO_S), &["a/g"]),
        (of_g(TO_T), &[]),
        (
            of_g(&format!(
                "filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: s, port: 80}}}}}}], {TO_T}"
            )),
            &["a/g"],
        ),
        (
            of_g(&format!(
                "filters: [{{type: ExternalAuth, externalAuth: {{protocol: HTTP, backendRef: {{name: s, port: 80}}}}}}], {TO_T}"
            )),
            &["a/g"],
        ),
        (
            of_g("backendRefs: [{group: networking.istio.io, kind: Hostname, name: s.a.svc.cluster.local, port: 80}]"),
            &["a/g"],
        ),
        (of_g("backendRefs: [{group: x.io, kind: Thing, name: s, port: 80}]"), &[]),
        (of_g(TO_S).replace("{name: g}]", "{name: g, sectionName: none}]"), &[]),
        (of_b.clone(), &[]),
        (format!("{of_b}{GRANT}"), &["b/g"]),
        (format!("{SHOP}{}{}", gateway("a", "g", "UDP"), route("UDPRoute", "a", "name: g", TO_S)), &[]),
        // By waypoints: that of the Service itself, the one with a part of its requests, and that of what a route is attached to.
        (format!("{waypoint}{s}"), &["a/w"]),
        (format!("{waypoint}{second}{canary}"), &["a/w", "a/w2"]),
        (of_c("group: '', kind: Service, name: c"), &["a/w"]),
        (of_c("group: '', kind: Service, name: s"), &[]),
    ] {
        let all = ancestors(&format!("{text}{OF_S}"));
        assert!(all.iter().all(|(_, by)| by == "istio.io/gateway-controller"), "{all:?}");
        let names: Vec<&str> = all.iter().map(|(to, _)| to.as_str()).collect();
        assert_eq!(names, wanted, "{text}");
    }
}

/// The API takes 16 entries: with one more no status could ever be written. Those that are there stay, others' among them.
#[test]
fn backend_tls_policies_name_no_more_gateways_than_there_is_room_for() {
    const HAVE: &str = "status: {ancestors: [{ancestorRef: {name: theirs}, controllerName: x.io/y, conditions: []}, {ancestorRef: {group: gateway.networking.k8s.io, kind: Gateway, namespace: a, name: g19}, controllerName: istio.io/gateway-controller, conditions: []}]}\n";
    let gateways: String = (0..20).map(|i| gateway("a", &format!("g{i:02}"), &format!("HTTP{}", asking(80)))).collect();
    let all = ancestors(&format!("{SHOP}{gateways}{OF_S}{HAVE}"));
    let mut wanted: Vec<String> = (0..14).map(|i| format!("a/g{i:02}")).collect();
    wanted.insert(0, "a/g19".into());
    wanted.push("/theirs".into());
    assert_eq!(all.iter().map(|(to, _)| to.as_str()).collect::<Vec<_>>(), wanted);
    assert_eq!(all.len(), 16);
}

/// GEP-5075: roots of the whole cluster; in whose name they are is nobody's to grant. Where the API server does not know the kind it is
/// one that is not supported.
#[test]
fn backends_are_verified_by_the_roots_of_a_trust_bundle() {
    const ROOTS: &str = "{group: certificates.k8s.io, kind: ClusterTrustBundle, name: 'x.io:roots:v1'}";
    let pem = crate::ca::Signer::generate("cluster.local").unwrap().0;
    let bundle = |name: &str, roots: &str| {
        let lines: String = roots.lines().map(|l| format!("    {l}\n")).collect();
        format!(
            "---\napiVersion: certificates.k8s.io/v1\nkind: ClusterTrustBundle\nmetadata: {{name: '{name}'}}\nspec:\n  trustBundle: |\n{lines}"
        )
    };
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let base = base.replace("clusterIP: 10.96.0.1}", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}");
    // Accepted and ResolvedRefs; and what the waypoint is told.
    let said = |refs: &str, more: &str, absent: &[&'static str]| {
        let text = format!(
            "{base}{more}---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s}}], validation: {{hostname: x, caCertificateRefs: [{refs}]}}}}\n"
        );
        let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
        let state = State { objects, absent: absent.iter().copied().collect(), ..State::default() };
        let (model, problems) = compile(&state, &mesh());
        let tls = model.backends["a/s.a.svc.cluster.local"].ports[&80].tls.clone().unwrap();
        assert_eq!(problems.is_empty(), tls.broken.is_empty(), "{problems:?}");
        assert!(problems.iter().all(|p| code::of(&p.message).is_some()), "{problems:?}");
        let all = written_with(&state, &Template::default(), None).statuses;
        let status = all.into_iter().find(|w| w.to.kind == "BackendTLSPolicy").unwrap().status;
        let of = |i: usize| status["ancestors"][0]["conditions"][i].clone();
        let reasons = [0usize, 1].map(|i| of(i)["reason"].as_str().unwrap().to_string());
        (reasons, String::from_utf8(tls.roots).unwrap(), of(1)["message"].as_str().unwrap().to_string())
    };
    let (reasons, roots, _) = said(ROOTS, &bundle("x.io:roots:v1", &pem), &[]);
    assert_eq!((reasons, roots.trim()), (["Accepted", "ResolvedRefs"].map(String::from), pem.trim()));
    let lost = |reason: &str| ["NoValidCACertificate", reason].map(String::from);
    let own = "spec.validation.caCertificateRefs[0]: ClusterTrustBundle x.io:roots:v1";
    for (more, absent, want, says) in [
        (String::new(), &[][..], "InvalidCACertificateRef", format!("{own} not found [KARST-0503]")),
        (bundle("x.io:other:v1", &pem), &[], "InvalidCACertificateRef", format!("{own} not found [KARST-0503]")),
        (bundle("x.io:roots:v1", ""), &[], "InvalidCACertificateRef", format!("{own}: spec.trustBundle is missing")),
        (bundle("x.io:roots:v1", "none"), &[], "InvalidCACertificateRef", format!("{own}: spec.trustBundle: ")),
        (
            bundle("x.io:roots:v1", &pem),
            &["ClusterTrustBundle"],
            "InvalidKind",
            "spec.validation.caCertificateRefs[0]: ClusterTrustBundle is not served by the API server".into(),
        ),
    ] {
        let (reasons, roots, message) = said(ROOTS, &more, absent);
        assert_eq!((reasons, roots.as_str()), (lost(want), ""), "{message}");
        assert!(message.starts_with(&says), "{message}");
    }
}

/// A wildcard that is looked up needs a waypoint: said in its status, until it has one.
#[test]
fn wildcards_without_a_waypoint_are_told_so() {
    let entry = |label: &str| {
        format!(
            "{WAYPOINT}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: a, labels: {{{label}}}}}\nspec: {{hosts: ['*.x.example'], resolution: DYNAMIC_DNS, ports: [{{number: 443, name: tls, protocol: TLS}}]}}\n"
        )
        .replace("STATUS", READY)
    };
    let said = |label: &str| -> Vec<String> {
        conditions(&written(&entry(label))).into_iter().filter(|c| c.contains("ServiceEntry")).collect()
    };
    let without = said("");
    assert!(
        without.len() == 1 && without[0].ends_with("istio.io/WaypointMissing True NoWaypointForWildcardService"),
        "{without:?}"
    );
    let with = said("istio.io/use-waypoint: w");
    assert!(with.len() == 1 && with[0].contains("WaypointBound True"), "{with:?}");
    let (m, p) = run(&entry("istio.io/use-waypoint: w"));
    assert!(
        p.is_empty() && m.backends["a/*.x.example"].by_name && m.services["a/*.x.example"].addresses.len() == 2,
        "{p:?}"
    );
}
