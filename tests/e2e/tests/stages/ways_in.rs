//! Gateways of the book shop.

use crate::{Apps, wait_condition};
use karst_e2e::{LONG, Pod, apply, exercise::Exercise, get, kubectl, vip, visits};
use karst_world::wait_for;
use std::{
    net::{IpAddr, TcpStream},
    time::Duration,
};

/// The way into the book shop: by the chart's gateway with Istio's Gateway, and by one that is deployed for Gateway API's.
pub fn both(a: &Apps) {
    // From a pod that is no member of the mesh.
    let page = |ip: IpAddr| {
        let s = a.outside.netns().run(|| TcpStream::connect_timeout(&(ip, 80).into(), Duration::from_secs(2))).ok()?;
        visits::page(s.ok()?, "").ok().filter(|p| p.contains("Book Details"))
    };
    let mut exercise = Exercise::open("ingress");
    exercise.through("bookinfo-gateway-istio.bookinfo/nothing");
    let gateway = ["gateways.gateway.networking.k8s.io", "-n", "bookinfo", "bookinfo-gateway"];
    wait_condition(&gateway, "Programmed", ("True", "Programmed"));
    let status = wait_for("the route attached", LONG, || {
        Some(get(&gateway)["status"].clone()).filter(|s| s["listeners"][0]["attachedRoutes"] == 1)
    });
    assert_eq!(status["addresses"][0]["value"], "bookinfo-gateway-istio.bookinfo.svc.cluster.local");
    let route = get(&["httproute", "-n", "bookinfo", "bookinfo"]);
    let parent = &route["status"]["parents"][0];
    assert!(parent["conditions"].as_array().unwrap().iter().all(|c| c["status"] == "True"), "{parent}");
    wait_for("the page through Gateway API's", LONG, || page(vip("bookinfo", "bookinfo-gateway-istio")));
    let name = "istio-ingressgateway";
    exercise.through("helm install");
    assert!(page(vip("istio-ingress", name)).is_none(), "nothing is configured: its port is closed");
    exercise.through("istio-ingressgateway.istio-ingress/nothing");
    wait_for("the page through Istio's Gateway", LONG, || page(vip("istio-ingress", name)));
    // What comes through it has its identity.
    let only = |who: &str| {
        apply(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: only, namespace: bookinfo}}\nspec: {{selector: {{matchLabels: {{app: productpage}}}}, rules: [{{from: [{{source: {{serviceAccounts: [{who}]}}}}]}}]}}\n"
        ));
    };
    only("istio-ingress/somebody");
    wait_for("no page for the gateway", LONG, || page(vip("istio-ingress", name)).is_none().then_some(()));
    only("istio-ingress/istio-ingressgateway");
    wait_for("the page for the gateway", LONG, || page(vip("istio-ingress", name)));
    kubectl(&["-n", "bookinfo", "delete", "authorizationpolicy", "only"]);
    // A Secret that comes later; a load balancer that gives an address later.
    apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: secure, namespace: bookinfo}\nspec: {gatewayClassName: istio, listeners: [{name: https, port: 443, protocol: HTTPS, hostname: shop.example, tls: {certificateRefs: [{name: site}]}}]}\n",
    );
    let secure = ["gateways.gateway.networking.k8s.io", "-n", "bookinfo", "secure"];
    wait_condition(&secure, "Programmed", ("False", "AddressNotAssigned"));
    let reason = |wanted: &str| {
        wait_for(wanted, LONG, || {
            let c = get(&secure)["status"]["listeners"][0]["conditions"].as_array()?.clone();
            c.iter().any(|c| c["type"] == "ResolvedRefs" && c["reason"] == wanted).then_some(())
        });
    };
    reason("InvalidCertificateRef");
    let key = rcgen::generate_simple_self_signed(vec!["shop.example".into()]).unwrap();
    let lines = |pem: String| pem.lines().map(|l| format!("    {l}\n")).collect::<String>();
    apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: site, namespace: bookinfo}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        lines(key.cert.pem()),
        lines(key.signing_key.serialize_pem())
    ));
    reason("ResolvedRefs");
    let address = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"10.98.0.9"}]}}}"#;
    kubectl(&["-n", "bookinfo", "patch", "service", "secure-istio", "--subresource=status", "-p", address]);
    wait_condition(&secure, "Programmed", ("True", "Programmed"));
    assert_eq!(get(&secure)["status"]["addresses"][0]["value"], "10.98.0.9");
    let pod = Pod::by_label("bookinfo", "gateway.networking.k8s.io/gateway-name=secure");
    wait_for("its port open", LONG, || {
        let s = a.outside.netns().run(|| TcpStream::connect_timeout(&pod.at(443), Duration::from_secs(2)));
        s.unwrap().ok()
    });
    // Listeners that somebody else adds: statuses, a port of the Service, a port of the pod.
    apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: more, namespace: bookinfo}\nspec: {parentRef: {name: secure}, listeners: [{name: http, port: 8080, protocol: HTTP, hostname: more.example}]}\n",
    );
    let set = ["listenersets.gateway.networking.k8s.io", "-n", "bookinfo", "more"];
    wait_condition(&set, "Accepted", ("False", "NotAllowed"));
    let allowed = r#"{"spec":{"allowedListeners":{"namespaces":{"from":"Same"}}}}"#;
    kubectl(&["-n", "bookinfo", "patch", secure[0], "secure", "--type=merge", "-p", allowed]);
    wait_condition(&set, "Programmed", ("True", "Programmed"));
    wait_for("the set counted", LONG, || (get(&secure)["status"]["attachedListenerSets"] == 1).then_some(()));
    wait_for("its port in the Service", LONG, || {
        let service = get(&["service", "-n", "bookinfo", "secure-istio"]);
        service["spec"]["ports"].as_array()?.iter().any(|port| port["port"] == 8080).then_some(())
    });
    wait_for("the port of the set open", LONG, || {
        let s = a.outside.netns().run(|| TcpStream::connect_timeout(&pod.at(8080), Duration::from_secs(2)));
        s.unwrap().ok()
    });
    kubectl(&["-n", "bookinfo", "delete", set[0], "more"]);
    kubectl(&["-n", "bookinfo", "delete", gateway[0], "secure"]);
    exercise.finish();
    println!(
        "the book shop through a gateway of the chart (Istio's Gateway) and one that was deployed (Gateway API's)"
    );
}
