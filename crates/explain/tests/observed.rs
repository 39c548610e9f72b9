//! Proxies that have not heard yet: the answer is by what they know, and what they lack is named.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use base64::{Engine, prelude::BASE64_STANDARD};
use karst_api::{ACCESS_TYPE, BACKEND_TYPE, ROUTES_TYPE};
use karst_explain::{Call, Comparison, Enrolment, Head, ProxyKind, Verdict, World, compare, explain, text};
use karst_manifest::{State, parse};
use karst_proxy::dump;
use serde_json::{Value, json};
use std::{fs, path::Path, sync::Arc};

/// The objects of an incident; without those of a kind.
fn world(incident: &str, without: &str) -> World {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("incidents").join(incident).join("mesh.yaml");
    let objects = parse::file(Path::new("mesh.yaml"), &fs::read_to_string(file).unwrap()).unwrap();
    let objects = objects.into_iter().filter(|o| o.object.kind() != without).map(Arc::new).collect();
    World::new(State { objects, ..State::default() }, Enrolment::Expected).unwrap()
}

fn call() -> Call {
    Call { from: "pod/caller.shop".into(), to: "web.shop".into(), request: Some(Head::default()), ..Call::default() }
}

/// The page of a ztunnel that knows this world.
fn ztunnel(world: &World) -> Value {
    let mesh = dump::mesh(world.mesh());
    let policies: Vec<Value> = world.mesh().policies.values().map(|p| serde_json::to_value(&**p).unwrap()).collect();
    json!({
        "network": "", "workloads": mesh.workloads, "services": mesh.services, "policies": policies,
        "podRanges": mesh.pod_ranges, "outboundTrafficPolicy": "ALLOW_ANY",
    })
}

/// The page of a waypoint that knows this world.
fn waypoint(world: &World) -> Value {
    let kept =
        |r: &&karst_controller::offline::Resource| [ACCESS_TYPE, BACKEND_TYPE, ROUTES_TYPE].contains(&r.type_url);
    let resource = |r: &karst_controller::offline::Resource| json!({ "type": r.type_url, "name": r.name, "body": BASE64_STANDARD.encode(&r.bytes) });
    let resources: Vec<Value> = world.compiled().resources.iter().filter(kept).map(resource).collect();
    json!({ "pod": "shop/w-1", "mesh": ztunnel(world), "resources": resources })
}

fn said(all: &[Comparison]) -> Vec<(&str, &str, &str)> {
    let lines = all.iter().flat_map(|one| one.differences.iter().map(|d| (&*one.proxy, &*d.subject, &*d.field)));
    lines.collect()
}

#[test]
fn a_ztunnel_that_has_not_heard_of_a_policy_lets_in() {
    let mut new = world("deny-at-ztunnel", "");
    let by_objects = explain(&new, &call()).unwrap();
    assert_eq!(by_objects.verdict, Verdict::Refused);
    let node = by_objects.proxies.iter().find(|p| p.kind == ProxyKind::Ztunnel).unwrap();
    assert_eq!(node.name, "node-1");
    new.observe_ztunnel("node-1", ztunnel(&world("deny-at-ztunnel", "AuthorizationPolicy"))).unwrap();
    let answer = explain(&new, &call()).unwrap();
    assert_eq!(answer.verdict, Verdict::Allowed);
    let all = compare(&new, &answer);
    assert!(said(&all).contains(&("the ztunnel of node node-1", "policy shop/web", "")), "{all:?}");
    let shown = text::compared(&all, Some(by_objects.verdict));
    assert!(shown.contains("it has not yet taken policy shop/web"), "{shown}");
    assert!(shown.contains("By the objects alone it is refused"), "{shown}");
    // One that has heard answers as the objects do.
    new.observe_ztunnel("node-1", ztunnel(&world("deny-at-ztunnel", ""))).unwrap();
    let answer = explain(&new, &call()).unwrap();
    assert_eq!((answer.verdict, said(&compare(&new, &answer))), (Verdict::Refused, vec![]));
}

#[test]
fn a_ztunnel_that_does_not_know_of_the_waypoint_goes_straight() {
    let mut new = world("deny-at-waypoint", "");
    assert_eq!(explain(&new, &call()).unwrap().verdict, Verdict::Refused);
    new.observe_ztunnel("", ztunnel(&world("deny-at-waypoint", "Gateway"))).unwrap();
    let answer = explain(&new, &call()).unwrap();
    assert_eq!(answer.verdict, Verdict::Allowed);
    let all = compare(&new, &answer);
    assert!(said(&all).contains(&("the ztunnel", "service shop/web.shop.svc.cluster.local", "waypoint")), "{all:?}");
}

/// A ztunnel that asks for what is called: what it has not asked for it would be told, and has not missed.
#[test]
fn what_a_ztunnel_has_not_asked_for_it_would_be_told() {
    let mut new = world("deny-at-waypoint", "");
    let before = explain(&new, &call()).unwrap();
    let node = new.mesh().workloads.values().find(|w| &*w.name == "caller").unwrap().node.to_string();
    let mut page = ztunnel(&new);
    page["onDemand"] = json!({ "names": [] });
    page["services"] = json!([]);
    page["workloads"].as_array_mut().unwrap().retain(|w| w["node"] == node.as_str());
    new.observe_ztunnel(&node, page).unwrap();
    let answer = explain(&new, &call()).unwrap();
    assert_eq!(answer.verdict, before.verdict);
    assert!(said(&compare(&new, &answer)).is_empty());
}

#[test]
fn a_waypoint_that_has_not_heard_of_a_policy_or_a_route_is_told_of() {
    let mut new = world("deny-at-waypoint", "");
    let before = explain(&new, &call()).unwrap();
    assert!(before.proxies.iter().any(|p| p.kind == ProxyKind::Waypoint && p.name == "shop/w-1"), "{before:?}");
    new.observe_proxy("shop/w-1", &waypoint(&world("deny-at-waypoint", "AuthorizationPolicy"))).unwrap();
    let answer = explain(&new, &call()).unwrap();
    assert_eq!(answer.verdict, Verdict::Allowed);
    let expected = ("pod shop/w-1", "policies of shop/web.shop.svc.cluster.local", "AuthorizationPolicy shop/web");
    assert_eq!(said(&compare(&new, &answer)), [expected]);

    let mut new = world("fault-injected", "");
    new.observe_proxy("shop/w-1", &waypoint(&world("fault-injected", "VirtualService"))).unwrap();
    let answer = explain(&new, &call()).unwrap();
    assert_eq!(answer.verdict, Verdict::Allowed);
    let all = compare(&new, &answer);
    let expected = ("pod shop/w-1", "routes of shop/web.shop.svc.cluster.local");
    assert!(
        said(&all).iter().any(|(proxy, what, field)| (*proxy, *what) == expected && field.contains("shop/web")),
        "{all:?}"
    );
    new.observe_proxy("shop/w-1", &waypoint(&world("fault-injected", ""))).unwrap();
    let answer = explain(&new, &call()).unwrap();
    assert_eq!((answer.verdict, said(&compare(&new, &answer))), (Verdict::Refused, vec![]));
}

#[test]
fn what_is_no_page_is_refused_with_what_to_save() {
    let mut world = world("deny-at-waypoint", "");
    let wrong = world.observe_ztunnel("", json!({ "version": "1" })).unwrap_err().to_string();
    assert!(wrong.contains("/config_dump of a ztunnel"), "{wrong}");
    let wrong = world.observe_proxy("shop/w-1", &json!({ "mesh": {} })).unwrap_err().to_string();
    assert!(wrong.contains("/config_dump/karst?resources"), "{wrong}");
}
