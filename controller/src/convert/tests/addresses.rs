//! The addresses that a Gateway asks for (Gateway API: GatewayStaticAddresses, GatewayAddressEmpty).

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

/// What the Service of a Gateway asks its load balancer for.
fn asked(addresses: &str) -> serde_json::Value {
    let w = written(&gateway(addresses, ""));
    let (_, service) = w.objects.iter().find(|(r, _)| r.kind == "Service").unwrap();
    service["spec"]["loadBalancerIP"].clone()
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
        (USABLE, &["10.98.0.1"], "False AddressNotUsable", &["IPAddress 10.98.0.1"]),
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
        ("{type: Hostname}", &["10.98.0.1"], "False AddressNotAssigned", &["IPAddress 10.98.0.1"]),
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
