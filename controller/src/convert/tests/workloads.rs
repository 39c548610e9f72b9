//! Pods, entries and slices become workloads.

use super::*;

#[test]
fn a_pod_becomes_a_workload_of_its_services() {
    let (m, p) = run(&format!(
        "{POD}apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: web}}, {{name: u, port: 53, protocol: UDP}}]}}\n"
    ));
    assert!(p.is_empty(), "{p:?}");
    let w = &m.workloads["Kubernetes//Pod/a/p"];
    assert_eq!(
        (w.tunnel_protocol, w.status, w.addresses.len(), w.canonical_name.as_str(), w.canonical_revision.as_str()),
        (1, 0, 2, "web", "v2")
    );
    let port = &w.services["a/s.a.svc.cluster.local"].ports[..];
    assert_eq!((port.len(), port[0].service_port, port[0].target_port, port[0].app_protocol), (1, 80, 8080, 1));
    assert_eq!(m.services["a/s.a.svc.cluster.local"].ports[0].target_port, 0, "a named target port is sent as 0");
}

/// Whatever object names the address of a pod, or of a WorkloadEntry that takes tunnels: the endpoint is that workload.
#[test]
fn endpoints_by_address_are_the_workloads_there() {
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: NS}\nspec: {clusterIP: 10.96.0.1, SELECTORports: [{name: web, port: 80, targetPort: 81}, {name: other, port: 90}]}\n---\n";
    const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: NS, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: [{addresses: [ADDRESS]MORE}]\nports: [PORTS]\n---\n";
    const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: NS}\nspec: {hosts: [e.com], resolution: STATIC, ports: [{number: 80, name: web, protocol: HTTP}], endpoints: [{address: ADDRESS, ports: {web: 9000}MORE}]}\n---\n";
    const MACHINE: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: m, namespace: NS, labels: {app: vmMORE}}\nspec: {address: ADDRESS, ports: {web: 9000}, serviceAccount: vm}\n---\n";
    let slice = |ns: &str, address: &str, more: &str| {
        let text = SERVICE.replace("SELECTOR", "") + SLICE;
        text.replace("NS", ns)
            .replace("ADDRESS", address)
            .replace("MORE", more)
            .replace("PORTS", "{name: web, port: 9000}")
    };
    let entry =
        |ns: &str, address: &str, more: &str| ENTRY.replace("NS", ns).replace("ADDRESS", address).replace("MORE", more);
    let machine = |ns: &str, address: &str, more: &str| {
        let selects = SERVICE.replace("SELECTOR", "selector: {app: vm}, ").replace("targetPort: 81", "targetPort: web");
        (selects + MACHINE).replace("NS", ns).replace("ADDRESS", address).replace("MORE", more)
    };
    // Kind of workload, identity's account, and the ports of its services.
    let all = |text: &str| -> Vec<String> {
        let (m, p) = run(text);
        assert!(p.is_empty(), "{p:?}");
        let one = |w: &karst_api::workload::Workload| {
            let mut kinds = ["Pod", "EndpointSlice", "ServiceEntry", "WorkloadEntry"].into_iter();
            let kind = kinds.find(|k| w.uid.contains(&format!("/{k}/"))).unwrap();
            let port = |p: &karst_api::workload::Port| format!("{}:{}", p.service_port, p.target_port);
            let services: std::collections::BTreeMap<_, _> = w.services.iter().collect();
            let list = services.iter().map(|(k, v)| {
                let ports: Vec<String> = v.ports.iter().map(port).collect();
                format!(" {} {}", k.split('.').next().unwrap_or_default(), ports.join(" "))
            });
            format!("{kind} {}{}", w.tunnel_protocol, list.collect::<String>())
        };
        m.workloads.values().map(|w| one(w)).collect()
    };
    // The pod has 10.0.0.1 and fd00::1 and takes tunnels.
    let pod = |text: &str| all(&format!("{POD}{text}"));
    for address in ["10.0.0.1", "'fd00::1'", "'FD00:0::1'"] {
        for ns in ["a", "b"] {
            assert_eq!(pod(&slice(ns, address, "")), [format!("Pod 1 {ns}/s 80:9000")]);
            assert_eq!(pod(&entry(ns, address, "")), [format!("Pod 1 {ns}/e 80:9000")]);
            assert_eq!(pod(&machine(ns, address, "")), [format!("Pod 1 {ns}/s 80:9000 90:90")]);
        }
    }
    // Nobody's address; that of another network; nobody's pod.
    assert_eq!(pod(&slice("a", "192.0.2.1", "")), ["Pod 1", "EndpointSlice 0 a/s 80:9000"]);
    assert_eq!(pod(&entry("a", "192.0.2.1", "")), ["Pod 1", "ServiceEntry 0 a/e 80:9000"]);
    assert_eq!(pod(&entry("a", "10.0.0.1", ", network: far")).len(), 2);
    assert_eq!(pod(&slice("a", "192.0.2.1", ", targetRef: {kind: Pod, name: gone}")), ["Pod 1"]);
    // A reference: the slice's ports; the address decides, where somebody has it.
    assert_eq!(pod(&slice("a", "192.0.2.1", ", targetRef: {kind: Pod, name: p}")), ["Pod 1 a/s 80:9000"]);
    assert_eq!(pod(&slice("a", "10.0.0.1", ", targetRef: {kind: Pod, name: other}")), ["Pod 1 a/s 80:9000"]);
    assert_eq!(
        pod(&slice("a", "10.0.0.1", ", targetRef: {kind: VirtualMachineInstance, name: x}")),
        ["Pod 1 a/s 80:9000"]
    );
    // What is said to be down is no endpoint; what is about to end, or is wanted all the same, is.
    assert_eq!(pod(&slice("a", "10.0.0.1", ", conditions: {ready: false}")), ["Pod 1"]);
    let ends = ", conditions: {ready: false, serving: true, terminating: true}";
    assert_eq!(pod(&slice("a", "10.0.0.1", ends)), ["Pod 1 a/s 80:9000"]);
    let down = slice("a", "10.0.0.1", ", conditions: {ready: false}");
    assert_eq!(pod(&down.replace("clusterIP", "publishNotReadyAddresses: true, clusterIP")), ["Pod 1 a/s 80:9000"]);
    // A port without number is the service's; a selector's ports are the service's, whatever its slices say.
    let any = slice("a", "10.0.0.1", "").replace("{name: web, port: 9000}", "{name: web}, {name: other, port: 91}");
    assert_eq!(pod(&any), ["Pod 1 a/s 80:81 90:91"]);
    let selected = slice("a", "10.0.0.1", ", targetRef: {kind: Pod, name: p}");
    assert_eq!(pod(&selected.replace("clusterIP", "selector: {app: web}, clusterIP")), ["Pod 1 a/s 80:81 90:90"]);
    let (m, _) = run(&selected);
    assert!(
        m.services["a/s.a.svc.cluster.local"].ports.iter().all(|p| p.target_port == 0),
        "each endpoint says its own"
    );
    // A node's address is nobody's in particular.
    let host = POD.replace("nodeName: n", "nodeName: n, hostNetwork: true");
    assert_eq!(all(&(host + &slice("a", "10.0.0.1", "")))[1], "EndpointSlice 0 a/s 80:9000");
    // A machine with a tunnel of its own, which is no pod.
    let vm = machine("a", "192.0.2.1", ", networking.istio.io/tunnel: http");
    let vm_first = vm.replace("name: s,", "name: v,");
    assert_eq!(all(&format!("{vm_first}{}", entry("b", "192.0.2.1", ""))).len(), 1);
    assert!(
        all(&format!("{vm_first}{}", entry("b", "192.0.2.1", "")))[0].ends_with(" 1 a/v 80:9000 90:90 b/e 80:9000")
    );
    assert!(
        all(&format!("{vm_first}{}", slice("b", "192.0.2.1", "")))[0].ends_with(" 1 a/v 80:9000 90:90 b/s 80:9000")
    );
    // Without tunnel it is one of several that nothing is known of.
    let plain = machine("a", "192.0.2.1", "").replace("name: s,", "name: v,");
    assert_eq!(all(&format!("{plain}{}", entry("b", "192.0.2.1", ""))).len(), 2);
}

/// Whoever called it would call himself: with what listens there for nobody else.
#[test]
fn nobodys_address_is_no_endpoint() {
    const OBJECTS: [(&str, &str); 4] = [
        (
            "ServiceEntry",
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [e.com], resolution: STATIC, ports: [{number: 80, name: web}], endpoints: [{address: 'ADDRESS'}]}\n",
        ),
        (
            "ServiceEntry",
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [e.com], resolution: DNS, ports: [{number: 80, name: web}], endpoints: [{address: 'ADDRESS'}]}\n",
        ),
        (
            "WorkloadEntry",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: m, namespace: a}\nspec: {address: 'ADDRESS'}\n",
        ),
        // Which the API server judges, and a directory does not.
        (
            "",
            "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{name: web, port: 80}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: a, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nendpoints: [{addresses: ['ADDRESS']}]\nports: [{name: web, port: 80}]\n",
        ),
    ];
    for (kind, text) in OBJECTS {
        for address in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "ff02::1",
            "::ffff:127.0.0.1",
        ] {
            let (model, problems) = run(&text.replace("ADDRESS", address));
            assert!(model.workloads.is_empty(), "{kind} {address}");
            let said: Vec<_> = problems.iter().map(|p| p.message.as_str()).collect();
            let codes = said.iter().filter_map(|m| code::of(m)).collect::<Vec<_>>();
            assert_eq!(codes, vec![211; usize::from(!kind.is_empty())], "{kind} {address}: {said:?}");
        }
        let (model, problems) = run(&text.replace("ADDRESS", "192.0.2.1"));
        assert!(model.workloads.len() == 1 && problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn who_is_about_to_end_is_told() {
    let state = |text: &str| {
        let (m, _) = run(text);
        let w = m.workloads.values().next().unwrap();
        (w.status, w.extensions.iter().any(|e| *e == karst_api::draining()))
    };
    let ends = POD.replace("namespace: a,", "namespace: a, deletionTimestamp: '2026-01-01T00:00:00Z',");
    let not = |text: &str| text.replace("status: 'True'", "status: 'False'");
    assert_eq!(
        [state(POD), state(&not(POD)), state(&ends), state(&not(&ends))],
        [(0, false), (1, false), (1, true), (1, false)]
    );
    let slice = |conditions: &str| {
        state(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-1, namespace: a, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nendpoints: [{{addresses: [192.0.2.1], conditions: {conditions}}}]\nports: [{{port: 80}}]\n"
        ))
    };
    for (conditions, want) in [
        ("{}", (0, false)),
        ("{ready: true, serving: true, terminating: false}", (0, false)),
        ("{ready: false}", (1, false)),
        ("{ready: false, serving: false, terminating: true}", (1, false)),
        ("{ready: false, serving: true, terminating: true}", (1, true)),
        // Not ready, and about nothing else said.
        ("{ready: false, serving: true}", (1, false)),
    ] {
        assert_eq!(slice(conditions), want, "{conditions}");
    }
}

/// Names are used again; the uid says which pod it is.
#[test]
fn a_workload_says_which_pod_it_is() {
    use prost::Message;
    let uid = |text: &str| {
        let (m, _) = run(text);
        let w = &m.workloads["Kubernetes//Pod/a/p"];
        let own = w.extensions.iter().filter_map(|e| e.config.as_ref()).find(|c| c.type_url == karst_api::POD_TYPE);
        own.map(|c| karst_api::route::Pod::decode(&c.value[..]).unwrap().uid)
    };
    assert_eq!(uid(POD), None);
    assert_eq!(uid(&POD.replace("name: p, ", "name: p, uid: u-1, ")), Some("u-1".into()));
}

#[test]
fn nodes_tell_what_their_pods_have_addresses_from() {
    let node = |name: &str, spec: &str| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
    };
    let (m, p) = run(&format!(
        "{}{}{}",
        node("one", "podCIDRs: [10.77.0.0/24, 'fd77:0::/64'], podCIDR: 10.77.0.0/24"),
        node("two", ""),
        node("three", "podCIDRs: [10.77.2.0/24, 10.77.2.0/33]")
    ));
    let told: Vec<_> = m.pod_ranges.iter().map(|(n, r)| (n.as_str(), r.ranges.join(" "))).collect();
    assert_eq!(told, [("one", "10.77.0.0/24 fd77::/64".into()), ("three", "10.77.2.0/24".into())]);
    let problems: Vec<String> = p.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("spec.podCIDRs[1]") && problems[0].contains("10.77.2.0/33"), "{problems:?}");
}
