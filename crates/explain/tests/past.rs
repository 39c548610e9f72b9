//! Another time: the answer is by what proxies were told then, and what only the objects of now say is left out.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use karst_api::{GATEWAY_TYPE, route, secrets};
use karst_controller::offline::Resource;
use karst_explain::{Call, Enrolment, Head, NetworkPolicy, Stage, Verdict, World, explain};
use karst_manifest::{State, parse};
use prost::Message;
use std::{fs, path::Path, sync::Arc};

fn text(incident: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("incidents").join(incident).join("mesh.yaml");
    fs::read_to_string(file).unwrap()
}

/// The objects of an incident; without those of a kind.
fn world(incident: &str, without: &str) -> World {
    let objects = parse::file(Path::new("mesh.yaml"), &text(incident)).unwrap();
    let objects = objects.into_iter().filter(|o| o.object.kind() != without).map(Arc::new).collect();
    World::new(State { objects, ..State::default() }, Enrolment::Expected).unwrap()
}

/// What the controller keeps of what it tells proxies of this world.
fn kept(world: &World) -> Vec<Resource> {
    let without_keys = |resource: &Resource| match resource.type_url {
        GATEWAY_TYPE => {
            let gateway = route::Gateway::decode(&*resource.bytes).unwrap();
            Resource { bytes: secrets::without_keys(gateway).encode_to_vec(), ..resource.clone() }
        }
        _ => resource.clone(),
    };
    world.compiled().resources.iter().map(without_keys).collect()
}

fn call() -> Call {
    Call { from: "pod/caller.shop".into(), to: "web.shop".into(), request: Some(Head::default()), ..Call::default() }
}

#[test]
fn what_proxies_were_told_then_decides() {
    for incident in ["deny-at-ztunnel", "deny-at-waypoint"] {
        let now = explain(&world(incident, ""), &call()).unwrap();
        assert_eq!(now.verdict, Verdict::Refused, "{incident}");
        assert!(now.fix.is_some(), "{incident}");
        let before = world(incident, "").with_told(kept(&world(incident, "AuthorizationPolicy")));
        let answer = explain(&before, &call()).unwrap();
        assert_eq!(answer.verdict, Verdict::Allowed, "{incident}: {}", answer.summary);
        // The other way round: it was refused, by an object that is not there any more.
        let before = world(incident, "AuthorizationPolicy").with_told(kept(&world(incident, "")));
        let answer = explain(&before, &call()).unwrap();
        assert_eq!((answer.verdict, answer.fix), (Verdict::Refused, None), "{incident}: {}", answer.summary);
        assert_eq!(answer.policy, now.policy, "{incident}");
    }
}

#[test]
fn routes_of_then_decide() {
    let before = world("fault-injected", "").with_told(kept(&world("fault-injected", "VirtualService")));
    assert_eq!(explain(&before, &call()).unwrap().verdict, Verdict::Allowed);
    let before = world("fault-injected", "VirtualService").with_told(kept(&world("fault-injected", "")));
    assert_eq!(explain(&before, &call()).unwrap().verdict, Verdict::Refused);
}

#[test]
fn network_policies_of_now_are_left_out() {
    let text = text("deny-at-ztunnel");
    let closed = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: none, namespace: shop}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n";
    let network = parse::values(&format!("{text}---\n{closed}"));
    let network = || network.iter().filter_map(|(line, v)| NetworkPolicy::read(v, None, *line)).collect::<Vec<_>>();
    let now = world("deny-at-ztunnel", "AuthorizationPolicy").with_network_policies(network());
    let at_network = |world: &World| explain(world, &call()).unwrap().steps.iter().any(|s| s.step == Stage::Network);
    assert!(at_network(&now));
    let told = kept(&now);
    assert!(!at_network(&now.with_told(told)));
}
