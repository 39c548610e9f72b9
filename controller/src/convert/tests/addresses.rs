//! The addresses that a Gateway asks for (Gateway API: GatewayStaticAddresses, GatewayAddressEmpty, and GatewayAddressRoutability with
//! GatewayAddressRoutabilityCluster, which the conformance suite has no test of: GEP-5093 lists what one would ask).

use super::*;

/// Gateway g of namespace edge with these addresses, and, where they are given, the `spec` and `status` of its Service.
fn gateway(addresses: &str, service: &str) -> String {
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge, uid: u, generation: 2}}\nspec: {{gatewayClassName: istio, addresses: [{addresses}], listeners: [{{name: http, port: 8080, protocol: HTTP}}]}}\n---\n"
    );
    if !service.is_empty() {
        text += &format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: g-istio, namespace: edge, labels: {{gateway.istio.io/managed: x}}}}\nstatus: {{availableReplicas: 1}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: g-istio, namespace: edge, labels: {{gateway.istio.io/managed: x}}}}\n{service}\n---\n"
        );
    }
    text
}

/// A Service of type LoadBalancer that was assigned these addresses.
fn balanced(ips: &[&str]) -> String {
    let all: Vec<String> = ips.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
    format!("spec: {{type: LoadBalancer}}\nstatus: {{loadBalancer: {{ingress: [{}]}}}}", all.join(", "))
}

/// Accepted and Programmed, and the addresses that the status has.
fn said(text: &str) -> ([String; 2], Vec<String>) {
    let w = written(text);
    // Every refusal has a code.
    conditions(&w);
    let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
    let of = |kind: &str| {
        let all = status["conditions"].as_array().unwrap();
        let found = all.iter().find(|c| c["type"] == kind).unwrap();
        format!("{} {}", found["status"], found["reason"]).replace('"', "")
    };
    let address = |a: &serde_json::Value| format!("{} {}", a["type"], a["value"]).replace('"', "");
    let addresses = status["addresses"].as_array().unwrap().iter().map(address).collect();
    ([of("Accepted"), of("Programmed")], addresses)
}

/// What the Service of a Gateway is to be.
fn deployed(text: &str) -> serde_json::Value {
    let w = written(text);
    let (_, service) = w.objects.iter().find(|(r, _)| r.kind == "Service").unwrap();
    service["spec"].clone()
}

/// What the Service of a Gateway asks its load balancer for.
fn asked(addresses: &str) -> serde_json::Value {
    deployed(&gateway(addresses, ""))["loadBalancerIP"].clone()
}

/// The CRD of the experimental channel, as far as it is looked at.
const EXPERIMENTAL: &str = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: gateways.gateway.networking.k8s.io}\nspec: {versions: [{name: v1, schema: {openAPIV3Schema: {properties: {status: {properties: {addresses: {items: {properties: {routability: {type: string}}}}}}}}}}]}\n---\n";
/// A Service with a load balancer's address and a cluster IP, and one with a cluster IP alone.
const BALANCED: &str =
    "spec: {type: LoadBalancer, clusterIP: 10.96.0.9}\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}";
const INTERNAL: &str = "spec: {type: ClusterIP, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9]}";
const NAME: &str = "g-istio.edge.svc.cluster.local";

/// Programmed and AddressesAssigned, and the addresses, each with where it is reached from (`-`: that is not told).
fn reached(text: &str) -> ([String; 2], Vec<(String, String)>) {
    let w = written(text);
    conditions(&w);
    let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
    let of = |kind: &str| {
        let found = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind);
        found.map_or("-".into(), |c| format!("{} {}", c["status"], c["reason"]).replace('"', ""))
    };
    let word = |v: &serde_json::Value| v.as_str().unwrap_or("-").to_string();
    let addresses =
        status["addresses"].as_array().unwrap().iter().map(|a| (word(&a["value"]), word(&a["routability"])));
    ([of("Programmed"), of("AddressesAssigned")], addresses.collect())
}

#[test]
fn a_gateway_has_the_addresses_that_it_asks_for_or_says_which_it_lacks() {
    const USABLE: &str = "{type: IPAddress, value: 10.98.255.1}";
    const UNUSABLE: &str = "{value: 192.0.2.1}";
    const NONE: &[&str] = &[];
    let (accepted, programmed) = ("True Accepted", "True Programmed");
    for (addresses, given, wanted, there) in [
        // As the suite does it: of three one is of a type that nobody knows, one is not to be had.
        ("{type: test/fake-invalid-type, value: x}, ", NONE, ["False UnsupportedAddress", "False Invalid"], NONE),
        ("", &[], [accepted, "False AddressNotUsable"], &[]),
        ("", &["10.98.255.1"], [accepted, "False AddressNotUsable"], &["IPAddress 10.98.255.1"]),
    ] {
        let text = gateway(&format!("{addresses}{UNUSABLE}, {USABLE}"), &balanced(given));
        assert_eq!(said(&text), (wanted.map(String::from), there.iter().map(|a| a.to_string()).collect()), "{given:?}");
    }
    for (addresses, given, wanted, there) in [
        (USABLE, &["10.98.255.1"][..], programmed, &["IPAddress 10.98.255.1"][..]),
        (USABLE, &[], "False AddressNotUsable", &[]),
        // What nobody has asked for is not told.
        (USABLE, &["10.98.0.1"], "False AddressNotUsable", &[]),
        // Of two families both may be assigned; an address may be written in several ways.
        (
            "{value: 10.98.0.1}, {value: '2001:db8:0::1'}",
            &["10.98.0.1", "2001:db8::1"],
            programmed,
            &["IPAddress 10.98.0.1", "IPAddress 2001:db8::1"],
        ),
        // Any of its type.
        ("{}", &["10.98.0.1"], programmed, &["IPAddress 10.98.0.1"]),
        ("{}", &[], "False AddressNotAssigned", &[]),
        ("{type: Hostname}", &["10.98.0.1"], "False AddressNotAssigned", &[]),
        ("", &["10.98.0.1"], programmed, &["IPAddress 10.98.0.1"]),
        ("", &[], "False AddressNotAssigned", &[]),
    ] {
        let text = gateway(addresses, &balanced(given));
        let wanted = [accepted, wanted].map(String::from);
        assert_eq!(said(&text), (wanted, there.iter().map(|a| a.to_string()).collect()), "{addresses} {given:?}");
    }
    // Nothing is assigned on request to a Service of another type.
    let text = gateway(USABLE, "spec: {type: ClusterIP}");
    assert_eq!(said(&text).0, [accepted, "False AddressNotUsable"].map(String::from));
}

/// A Service can ask for one address: the first that is one.
#[test]
fn the_service_asks_for_the_first_address() {
    assert_eq!(asked("{value: 192.0.2.1}, {type: IPAddress, value: 10.98.255.1}"), "192.0.2.1");
    assert_eq!(asked("{type: test/fake-invalid-type, value: 192.0.2.1}, {value: 10.98.255.1}"), "10.98.255.1");
    for none in ["", "{}", "{value: x}", "{type: Hostname}"] {
        assert!(asked(none).is_null(), "{none}");
    }
}

/// One that somebody else runs is reached at all the host names that it gives, and at addresses of the Services behind these.
#[test]
fn a_gateway_that_somebody_else_runs_is_where_it_says() {
    let service = |port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: edge}}\nspec: {{type: LoadBalancer, clusterIP: 10.96.0.9, ports: [{{port: {port}}}]}}\nstatus: {{loadBalancer: {{ingress: [{{ip: 10.98.0.7}}]}}}}\n"
        )
    };
    const OWN: &str = "{type: Hostname, value: own.edge.svc.cluster.local}";
    for (more, port, wanted, there) in [
        ("", 8080, "True Programmed", &["Hostname own.edge.svc.cluster.local"][..]),
        ("", 80, "False AddressNotUsable", &[]),
        (
            ", {type: Hostname, value: x.example}",
            8080,
            "True Programmed",
            &["Hostname own.edge.svc.cluster.local", "Hostname x.example"],
        ),
        (
            ", {value: 10.98.0.7}",
            8080,
            "True Programmed",
            &["Hostname own.edge.svc.cluster.local", "IPAddress 10.98.0.7"],
        ),
        (", {value: 192.0.2.1}", 8080, "False AddressNotUsable", &["Hostname own.edge.svc.cluster.local"]),
    ] {
        let text = gateway(&format!("{OWN}{more}"), "") + &service(port);
        let wanted = ["True Accepted", wanted].map(String::from);
        assert_eq!(said(&text), (wanted, there.iter().map(|a| a.to_string()).collect()), "{more} {port}");
        assert!(written(&text).objects.iter().all(|(r, _)| r.kind == "GatewayClass"), "nothing is deployed");
    }
}

/// Each address that is asked for has one of its own, and none of another reach.
#[test]
fn addresses_are_reached_from_where_it_is_asked_for() {
    const SENTINEL: &str = "testing.x-k8s.io/sentinel";
    let (outer, inner) = (("203.0.113.10", ""), ("10.96.0.9", "Cluster"));
    let (programmed, lost) = ("True Programmed", "False AddressNotAssigned");
    let (all, part, none) = ("True AddressesAssigned", "False PartiallyAssigned", "False NotAssigned");
    let of_sentinel = format!("{{routability: {SENTINEL}}}");
    for (addresses, service, wanted, there) in [
        ("", BALANCED, [programmed, all], &[outer][..]),
        ("", INTERNAL, [programmed, all], &[(NAME, "Cluster")]),
        ("", "spec: {type: ClusterIP, clusterIP: None}", [programmed, all], &[(NAME, "")]),
        ("{}", BALANCED, [programmed, all], &[outer]),
        ("{routability: ''}", INTERNAL, [programmed, all], &[inner]),
        ("{routability: Cluster}", INTERNAL, [programmed, all], &[inner]),
        ("{}, {routability: Cluster}", BALANCED, [programmed, all], &[outer, inner]),
        ("{routability: Cluster}, {}", BALANCED, [programmed, all], &[inner, outer]),
        ("{type: Hostname, routability: Cluster}", INTERNAL, [programmed, all], &[(NAME, "Cluster")]),
        (of_sentinel.as_str(), BALANCED, [programmed, all], &[("203.0.113.10", SENTINEL)]),
        // One address is not two.
        ("{routability: Cluster}, {routability: Cluster}", INTERNAL, [programmed, part], &[inner]),
        ("{}, {}", BALANCED, [programmed, part], &[outer]),
        // Its value, or nothing.
        ("{value: 10.96.0.9, routability: Cluster}", BALANCED, [programmed, all], &[inner]),
        ("{value: 10.96.0.7, routability: Cluster}", INTERNAL, [lost, none], &[]),
        ("{}, {value: 192.0.2.1, routability: Cluster}", BALANCED, [programmed, part], &[outer]),
        ("{value: 203.0.113.10, routability: Cluster}", BALANCED, [lost, none], &[]),
        ("{value: 192.0.2.1}", BALANCED, ["False AddressNotUsable", none], &[]),
        // Nobody knows what that is.
        ("{routability: example.com/Wan}", BALANCED, [lost, none], &[]),
        ("{routability: testing.x-k8s.io/other}", BALANCED, [lost, none], &[]),
        ("{routability: Public}", BALANCED, [lost, none], &[]),
        ("{routability: example.com/Wan}, {}", BALANCED, [programmed, part], &[outer]),
        // The load balancer has not answered yet.
        ("", "spec: {type: LoadBalancer, clusterIP: 10.96.0.9}", [lost, none], &[]),
        (
            "{}, {routability: Cluster}",
            "spec: {type: LoadBalancer, clusterIP: 10.96.0.9}",
            [programmed, part],
            &[inner],
        ),
    ] {
        let text = gateway(addresses, service);
        let there = there.iter().map(|(value, from)| (value.to_string(), from.to_string())).collect();
        assert_eq!(
            reached(&format!("{EXPERIMENTAL}{text}")),
            (wanted.map(String::from), there),
            "{addresses} {service}"
        );
        // A CRD of the standard channel would refuse the status.
        assert!(reached(&text).1.iter().all(|(_, from)| from == "-"), "{addresses}");
    }
}

/// What is not had is named, and what to do about it.
#[test]
fn an_address_that_is_not_had_is_named() {
    let said = |addresses: &str, more: &str| {
        let w = written(&(gateway(addresses, INTERNAL) + more));
        let status = &w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
        let all = status["conditions"].as_array().unwrap();
        let found = all.iter().find(|c| c["type"] == "AddressesAssigned").unwrap();
        found["message"].as_str().unwrap().to_string()
    };
    let text =
        said("{routability: Cluster}, {routability: example.com/Wan}, {value: 10.96.0.7, routability: Cluster}", "");
    assert!(!text.contains("spec.addresses[0]"), "{text}");
    for part in [
        "spec.addresses[1]: unsupported routability \"example.com/Wan\": use Cluster, or remove it [KARST-0016]; ",
        "spec.addresses[2]: Service edge/g-istio has the cluster IP 10.96.0.9, which cannot be changed",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

/// Who asks for addresses within the cluster only is not given a load balancer, and may choose among the cluster's addresses.
#[test]
fn a_service_is_made_for_where_its_addresses_are_reached_from() {
    let kind = |addresses: &str| deployed(&gateway(addresses, ""))["type"].clone();
    for outer in ["", "{}", "{routability: Cluster}, {}", "{routability: testing.x-k8s.io/sentinel}"] {
        assert_eq!(kind(outer), "LoadBalancer", "{outer}");
    }
    for inner in
        ["{routability: Cluster}", "{routability: example.com/Wan}", "{routability: Cluster}, {routability: x/y}"]
    {
        assert_eq!(kind(inner), "ClusterIP", "{inner}");
    }
    const NAMED: &str = "{value: 10.96.0.77, routability: Cluster}";
    let ranges = |cidr: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\nspec: {{cidrs: ['{cidr}']}}\n---\n"
        )
    };
    let other =
        "apiVersion: v1\nkind: Service\nmetadata: {name: o, namespace: x}\nspec: {clusterIP: 10.96.0.77}\n---\n";
    for (around, service, wanted) in [
        (String::new(), "", Some("10.96.0.77")),
        (ranges("10.96.0.0/16"), "", Some("10.96.0.77")),
        // With one that it cannot have there would be no Service.
        (ranges("10.97.0.0/16"), "", None),
        (other.to_string(), "", None),
        (String::new(), "spec: {type: ClusterIP, clusterIP: 10.96.0.77}", Some("10.96.0.77")),
        (String::new(), INTERNAL, None),
    ] {
        let spec = deployed(&format!("{around}{}", gateway(NAMED, service)));
        assert_eq!(
            (spec["clusterIP"].as_str(), spec["type"].as_str()),
            (wanted, Some("ClusterIP")),
            "{around} {service}"
        );
        assert!(spec["loadBalancerIP"].is_null());
    }
}

/// Its pods come later than its addresses: what nobody is served at is not told. What was told once stays.
#[test]
fn addresses_are_told_once_somebody_is_served_there() {
    let waits = gateway("{routability: Cluster}", INTERNAL).replace("availableReplicas: 1", "availableReplicas: 0");
    let waits = format!("{EXPERIMENTAL}{waits}");
    assert_eq!(reached(&waits), (["False Pending", "-"].map(String::from), vec![]));
    let known = waits
        .replace("protocol: HTTP}]}", "protocol: HTTP}]}\nstatus: {addresses: [{type: IPAddress, value: 10.96.0.9}]}");
    let inner = ("10.96.0.9".to_string(), "Cluster".to_string());
    assert_eq!(reached(&known), (["False Pending", "True AddressesAssigned"].map(String::from), vec![inner]));
    // The condition of a Gateway that had no address is taken back meanwhile.
    let before =
        "status: {addresses: [], conditions: [{type: AddressesAssigned, status: 'False', reason: NotAssigned}]}";
    let settled = waits.replace("protocol: HTTP}]}", &format!("protocol: HTTP}}]}}\n{before}"));
    assert_eq!(reached(&settled).0[1], "-");
}

/// Where somebody else runs it, names and addresses are those of the Services that it names.
#[test]
fn a_gateway_that_somebody_else_runs_is_reached_within_the_cluster_by_its_service() {
    let own = "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: edge}\nspec: {type: LoadBalancer, clusterIP: 10.96.0.9, ports: [{port: 8080}]}\nstatus: {loadBalancer: {ingress: [{ip: 10.98.0.7}]}}\n";
    const OWN: &str = "own.edge.svc.cluster.local";
    let (programmed, all) = ("True Programmed", "True AddressesAssigned");
    for (addresses, wanted, there) in [
        (format!("{{type: Hostname, value: {OWN}}}"), [programmed, all], &[(OWN, "Cluster")][..]),
        (
            format!("{{type: Hostname, value: {OWN}, routability: Cluster}}, {{routability: Cluster}}, {{}}"),
            [programmed, all],
            &[(OWN, "Cluster"), ("10.96.0.9", "Cluster"), ("10.98.0.7", "")],
        ),
        (
            format!("{{type: Hostname, value: {OWN}}}, {{value: 10.98.0.7, routability: Cluster}}"),
            [programmed, "False PartiallyAssigned"],
            &[(OWN, "Cluster")],
        ),
        ("{type: Hostname, value: x.example}".into(), [programmed, all], &[("x.example", "")]),
        (
            "{type: Hostname, value: x.example, routability: Cluster}".into(),
            ["False AddressNotAssigned", "False NotAssigned"],
            &[],
        ),
    ] {
        let text = format!("{EXPERIMENTAL}{}{own}", gateway(&addresses, ""));
        let there = there.iter().map(|(value, from)| (value.to_string(), from.to_string())).collect();
        assert_eq!(reached(&text), (wanted.map(String::from), there), "{addresses}");
    }
}
