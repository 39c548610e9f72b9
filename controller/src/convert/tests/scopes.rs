//! Which routes and policies the pods of waypoints are told of.

use super::*;
use crate::{push, scope_group};
use karst_api::{ACCESS_TYPE, ROUTES_TYPE, VIRTUAL_HOST_TYPE};

const PODS: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: w-1, namespace: a, labels: {gateway.networking.k8s.io/gateway-name: w}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.50}], conditions: [{type: Ready, status: 'True'}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: a}\nspec: {clusterIP: 10.96.0.50, selector: {gateway.networking.k8s.io/gateway-name: w}, ports: [{port: 15008}]}\n---\n";

fn bound(status: &str) -> String {
    [&*WAYPOINT.replace("STATUS", status), &BOUND.replace("NS", "a"), PODS].concat()
}

fn scope(model: &Model) -> Option<Vec<String>> {
    model.scopes.get("a/w-1").map(|groups| groups.to_vec())
}

/// By whatever a service names its waypoint: what is executed for it is told to who executes it.
#[test]
fn the_pods_of_a_waypoint_are_in_the_groups_of_what_is_bound_to_it() {
    let addresses =
        ["10.96.0.50", "10.0.0.50"].map(|ip| format!("status: {{addresses: [{{type: IPAddress, value: {ip}}}]}}"));
    for status in addresses.iter().map(String::as_str).chain([READY]) {
        let (model, _) = run(&bound(status));
        let groups = scope_group::of(&model.services["a/s.a.svc.cluster.local"]);
        assert_eq!(groups.len(), 1, "{status}");
        assert!(scope(&model).unwrap().contains(&groups[0]), "{status}: {groups:?} {:?}", scope(&model));
        let other = scope_group::of(&model.services["a/w.a.svc.cluster.local"]);
        assert!(other.is_empty(), "it is bound to nothing");
    }
}

#[test]
fn who_may_be_meant_by_a_range_is_told_of_everything() {
    let range = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [x.com], addresses: [10.97.0.0/24], resolution: STATIC, workloadSelector: {labels: {gateway.networking.k8s.io/gateway-name: w}}, ports: [{number: 80, name: http, protocol: HTTP}]}\n---\n";
    let (model, _) = run(&[&*bound(READY), range].concat());
    assert!(model.workloads["Kubernetes//Pod/a/w-1"].services.contains_key("a/x.com"));
    assert_eq!(scope(&model), None);
}

#[test]
fn routes_and_policies_of_a_service_are_in_the_group_of_its_waypoint() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{backendRefs: [{name: s, port: 80}]}]}\n---\n";
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{kind: Service, name: s}], rules: [{}]}\n---\n";
    let all = [&*bound(READY), route, policy]
        .concat()
        .replace("clusterIP: 10.96.0.1", "clusterIP: 10.96.0.1, ports: [{port: 80}]");
    let (before, _) = run(&all);
    let told = push::resources(&before, 1, None);
    let groups = |told: &karst_xds::Resources| {
        [ROUTES_TYPE, ACCESS_TYPE].map(|set| told.types[set]["a/s.a.svc.cluster.local"].groups.to_vec())
    };
    assert_eq!(groups(&told), [["~waypoint/a/w.a.svc.cluster.local"]; 2]);
    // It leaves the waypoint, and its routes are what they were.
    let (after, _) = run(&all.replace("istio.io/use-waypoint: w", "istio.io/use-waypoint: none"));
    assert_eq!(before.routes, after.routes);
    let later = push::resources(&after, 2, Some((&before, &told)));
    assert_eq!(groups(&later), [[""; 0]; 2]);
    // It comes back: what its routes lead to was told before.
    let again = push::resources(&before, 3, Some((&after, &later)));
    let are_moved = |told: &karst_xds::Resources| {
        [ROUTES_TYPE, ACCESS_TYPE].map(|set| told.types[set]["a/s.a.svc.cluster.local"].is_moved)
    };
    assert_eq!((groups(&again), are_moved(&again)), (groups(&told), [true; 2]));
    assert_eq!(are_moved(&told), [false; 2]);
}

/// Of a mesh with many gateways each has the routes of its own listeners only, whoever's API they are written in.
#[test]
fn the_pods_of_a_gateway_are_in_the_groups_of_its_listeners_virtual_hosts() {
    let of_gateway_api = |name: &str, host: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-1, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: {name}}}}}\nspec: {{nodeName: n}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.5}}], conditions: [{{type: Ready, status: 'True'}}]}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a}}\nspec: {{gatewayClassName: istio, listeners: [{{name: web, port: 80, protocol: HTTP}}, {{name: u, port: 53, protocol: UDP}}]}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: a}}\nspec: {{hostnames: [{host}], parentRefs: [{{name: {name}}}], rules: [{{backendRefs: [{{name: s, port: 80}}]}}]}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {{name: {name}, namespace: a}}\nspec: {{parentRefs: [{{name: {name}, sectionName: u}}], rules: [{{backendRefs: [{{name: s, port: 53}}]}}]}}\n---\n"
        )
    };
    let of_istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: i, namespace: edge}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: i, namespace: edge}\nspec: {hosts: [i.example], gateways: [i], http: [{route: [{destination: {host: s.a.svc.cluster.local}}]}]}\n---\n";
    let shop = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}\n---\n";
    let all = [shop, INGRESS, of_istio, &of_gateway_api("g", "g.example"), &of_gateway_api("h", "h.example")].concat();
    let (model, problems) = run(&all);
    let hosts = &push::resources(&model, 1, None).types[VIRTUAL_HOST_TYPE];
    let told = |pod: &str| -> Vec<String> {
        let is_in = |groups: &[String]| groups.iter().any(|group| model.scopes[pod].contains(group));
        hosts.iter().filter(|(_, entry)| is_in(&entry.groups)).map(|(name, _)| name.clone()).collect()
    };
    let names = |pod: &str| told(pod).iter().map(|key| key.rsplit('/').next().unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(names("edge/gw"), ["i.example"], "{hosts:?} {problems:?}");
    for (pod, host) in [("a/g-1", "g.example"), ("a/h-1", "h.example")] {
        assert_eq!(names(pod), ["*", host], "UDP, and HTTP: {hosts:?} {problems:?}");
    }
    assert!(hosts.values().all(|entry| entry.groups.len() == 1), "{hosts:?}");
}
