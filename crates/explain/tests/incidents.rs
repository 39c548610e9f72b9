//! Incidents as people meet them: each is named in the first line of the answer, and what is offered as a fix was tried.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use karst_explain::{Call, Cause, Enrolment, Explanation, Head, Verdict, World, explain, text};
use karst_manifest::{State, parse};
use std::{path::Path, sync::Arc};

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Pod
metadata: {name: caller, namespace: shop, labels: {app: caller}}
spec: {serviceAccountName: caller}
status: {phase: Running, podIPs: [{ip: 10.0.1.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: plain, labels: {app: stranger}}
spec: {serviceAccountName: stranger}
status: {phase: Running, podIPs: [{ip: 10.0.2.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1}}
spec: {serviceAccountName: web}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'WEB-READY'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {USE}}
spec: {clusterIP: 10.96.0.1, selector: {app: SELECTED}, ports: [{name: PORT-NAME, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: w-1, namespace: shop, labels: {gw: w, networking.istio.io/tunnel: http, istio.io/dataplane-mode: none}}
spec: {serviceAccountName: w}
status: {phase: Running, podIPs: [{ip: 10.0.0.50}], conditions: [{type: Ready, status: 'WAYPOINT-READY'}]}
---
apiVersion: v1
kind: Service
metadata: {name: w, namespace: shop, labels: {gateway.networking.k8s.io/managed: istio.io-mesh-controller}}
spec: {clusterIP: 10.96.0.2, selector: {gw: w}, ports: [{name: mesh, port: 15008}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {ADDRESSES}
---
";

const ADDRESSES: &str = "addresses: [{type: IPAddress, value: 10.96.0.2}]";
const USE: (&str, &str) = ("USE", "istio.io/use-waypoint: w");
const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

struct Incident {
    name: &'static str,
    /// Texts of [`MESH`] that are otherwise.
    changes: Vec<(&'static str, &'static str)>,
    more: String,
    from: &'static str,
    port: u16,
    verdict: Verdict,
    cause: Option<Cause>,
    first_line: &'static str,
    /// A change is offered, and has been tried.
    fixed: bool,
}

fn incident(name: &'static str, cause: Cause, first_line: &'static str) -> Incident {
    Incident {
        name,
        changes: vec![],
        more: String::new(),
        from: "pod/caller.shop",
        port: 80,
        verdict: Verdict::Refused,
        cause: Some(cause),
        first_line,
        fixed: false,
    }
}

fn ask(incident: &Incident) -> Explanation {
    let mut text = format!("{MESH}{}", incident.more);
    for (from, to) in &incident.changes {
        text = text.replace(from, to);
    }
    let defaults = [
        ("USE", "none: none"),
        ("SELECTED", "web"),
        ("PORT-NAME", "http"),
        ("WEB-READY", "True"),
        ("WAYPOINT-READY", "True"),
        ("ADDRESSES", ADDRESSES),
    ];
    for (from, to) in defaults {
        text = text.replace(from, to);
    }
    let objects = parse::file(Path::new("mesh.yaml"), &text).unwrap().into_iter().map(Arc::new).collect();
    let world = World::new(State { objects, ..State::default() }, Enrolment::Expected).unwrap();
    let call = Call {
        from: incident.from.into(),
        to: "web.shop".into(),
        port: Some(incident.port),
        request: Some(Head::default()),
        server_name: None,
    };
    explain(&world, &call).unwrap()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn route(rules: &str) -> String {
    let parent = "parentRefs: [{group: '', kind: Service, name: web}]";
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec: {{{parent}, rules: [{rules}]}}\n"
    )
}

fn subset(subsets: &str) -> String {
    let host = "web.shop.svc.cluster.local";
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\nspec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: {host}, subset: v2}}}}]}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: shop}}\nspec: {{host: {host}, subsets: [{subsets}]}}\n"
    )
}

#[test]
fn each_incident_is_named_in_the_first_line() {
    let web = "{group: '', kind: Service, name: web}";
    let all = vec![
        Incident {
            changes: vec![("SELECTED", "wep")],
            fixed: true,
            ..incident("wrong selector", Cause::SelectorMatchesNoPod, "the selector of the service matches no pod")
        },
        Incident {
            more: policy("{}"),
            fixed: true,
            ..incident("nothing is allowed", Cause::NotAllowedByAnyPolicy, "there are ALLOW policies (shop/p)")
        },
        Incident {
            more: policy("{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}"),
            fixed: true,
            ..incident("a DENY matches", Cause::DeniedByPolicy, "the DENY policy shop/p matches")
        },
        Incident {
            changes: vec![USE],
            more: policy(&format!(
                "{{action: DENY, targetRefs: [{web}], rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}"
            )),
            fixed: true,
            ..incident(
                "a DENY at the waypoint",
                Cause::DeniedByPolicy,
                "the DENY policy shop/p matches by spec.rules[0]",
            )
        },
        Incident {
            changes: vec![USE],
            more: policy(
                "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/caller]}}]}]}",
            ),
            fixed: true,
            ..incident(
                "a policy names the caller and not the waypoint",
                Cause::NotAllowedByAnyPolicy,
                "no ALLOW policy matches",
            )
        },
        Incident {
            more: STRICT.into(),
            from: "pod/stranger.plain",
            fixed: true,
            ..incident(
                "STRICT, a pod outside",
                Cause::StrictMtlsOutsider,
                "mutual TLS is required, and the caller is not in the mesh",
            )
        },
        Incident {
            more: STRICT.into(),
            from: "203.0.113.1",
            fixed: true,
            ..incident("STRICT, an address outside", Cause::StrictMtlsOutsider, "mutual TLS is required")
        },
        Incident {
            changes: vec![USE, ("WAYPOINT-READY", "False")],
            ..incident("no waypoint is ready", Cause::WaypointNotReady, "the waypoint is not ready")
        },
        Incident {
            changes: vec![USE, ("ADDRESSES", "addresses: []")],
            verdict: Verdict::Allowed,
            cause: None,
            ..incident("waypoint not programmed", Cause::WaypointNotReady, "names w, which has no pod that is ready")
        },
        Incident {
            changes: vec![("USE", "istio.io/use-waypoint: x")],
            verdict: Verdict::Allowed,
            cause: None,
            ..incident("no such waypoint", Cause::WaypointNotReady, "names x, and there is no such Gateway in shop")
        },
        Incident {
            changes: vec![USE],
            from: "pod/stranger.plain",
            verdict: Verdict::Allowed,
            cause: None,
            ..incident("an outsider passes by the waypoint", Cause::WaypointNotReady, "it passes by the waypoint")
        },
        Incident {
            changes: vec![USE, ("PORT-NAME", "tcp-web")],
            more: policy(&format!("{{targetRefs: [{web}], rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}")),
            fixed: true,
            ..incident(
                "a port that is not named http",
                Cause::HttpPolicyOnTcpPort,
                "a policy for HTTP meets a port that is declared as TCP",
            )
        },
        Incident {
            changes: vec![USE],
            more: route("{backendRefs: [{name: web, namespace: plain, port: 80}]}"),
            ..incident("no ReferenceGrant", Cause::BackendNotUsable, "no ReferenceGrant")
        },
        Incident {
            changes: vec![USE],
            more: route("{matches: [{path: {type: PathPrefix, value: /api}}], backendRefs: [{name: web, port: 80}]}"),
            ..incident("no rule matches", Cause::NoRouteMatches, "no route matches")
        },
        Incident {
            changes: vec![USE],
            more: subset("{name: v2, labels: {version: v2}}"),
            ..incident("subset without pods", Cause::SubsetWithoutPods, "the subset has no ready pods")
        },
        Incident {
            changes: vec![USE],
            more: subset("{name: v1, labels: {version: v1}}"),
            ..incident("no such subset", Cause::NoSuchDestination, "a service, port or subset that does not exist")
        },
        Incident { port: 81, ..incident("no such port", Cause::NoSuchPort, "the service does not have this port") },
        Incident {
            changes: vec![USE],
            port: 81,
            ..incident("no such port, by a waypoint", Cause::NoSuchPort, "the service does not have this port")
        },
        Incident {
            changes: vec![("WEB-READY", "False")],
            ..incident("no pod is ready", Cause::NoReadyEndpoint, "no pod of the service is ready")
        },
    ];
    for one in &all {
        let answer = ask(one);
        let shown = text::render(&answer);
        let first = shown.lines().next().unwrap();
        assert!(first.contains(one.first_line), "{}: {shown}", one.name);
        assert_eq!((answer.verdict, answer.cause), (one.verdict, one.cause), "{}: {shown}", one.name);
        assert_eq!(answer.fix.as_ref().is_some_and(|f| f.verified), one.fixed, "{}: {shown}", one.name);
    }
}

#[test]
fn steps_name_the_object_with_its_file_and_line() {
    let answer = ask(&Incident { more: policy("{}"), ..incident("", Cause::NotAllowedByAnyPolicy, "") });
    let decided = answer.steps.iter().find(|s| s.outcome == karst_explain::Outcome::Refuse).unwrap();
    let object = decided.object.as_ref().unwrap();
    assert_eq!((&*object.kind, &*object.name), ("AuthorizationPolicy", "p"));
    let line = MESH.lines().count() + 1;
    assert_eq!((object.file.as_deref(), object.line), (Some(Path::new("mesh.yaml")), line));
}
