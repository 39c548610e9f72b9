//! The page in the cluster: whoever logs in sees the namespaces whose pods they may list, and of the others no name.

use crate::{Apps, policy, talk};
use karst_e2e::{LONG, Pod, apply, dashboard::edge, helm, kubectl, try_kubectl};
use karst_world::wait_for;
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const SYSTEM: &str = "istio-system";
const PORT: u16 = 8080;

/// An account that may list the pods of its namespace, if it may list any, and nothing else.
fn viewer(namespace: &str, name: &str, may_list: bool) -> String {
    let metadata = format!("metadata: {{name: {name}, namespace: {namespace}}}");
    apply(&format!("apiVersion: v1\nkind: ServiceAccount\n{metadata}\n"));
    if may_list {
        let rbac = "apiVersion: rbac.authorization.k8s.io/v1";
        apply(&format!(
            "{rbac}\nkind: Role\n{metadata}\nrules: [{{apiGroups: [\"\"], resources: [pods], verbs: [list]}}]\n---\n\
             {rbac}\nkind: RoleBinding\n{metadata}\nroleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}\n\
             subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]\n"
        ));
    }
    kubectl(&["create", "token", name, "-n", namespace]).trim().to_string()
}

/// The page, at the end of a port-forward: the loopback of its pod.
struct Page(Pod);

impl Page {
    fn ask(&self, method: &str, path: &str, header: &str) -> (u16, String) {
        let to = SocketAddr::from(([127, 0, 0, 1], PORT));
        let connected = self.0.netns().run(move || TcpStream::connect_timeout(&to, LONG));
        let mut stream = connected.unwrap().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost:{PORT}\r\nconnection: close\r\n{header}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default())
    }

    /// The secret of a session.
    fn log_in(&self, token: &str) -> String {
        let (status, text) =
            self.ask("POST", "/api/login", &format!("authorization: Bearer {token}\r\ncontent-length: 0\r\n"));
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["token"].as_str().unwrap().to_string()
    }

    fn graph(&self, secret: &str) -> (String, Value) {
        let (status, text) = self.ask("GET", "/api/graph", &format!("x-karst-token: {secret}\r\n"));
        assert_eq!(status, 200, "{text}");
        let graph = serde_json::from_str(&text).unwrap();
        (text, graph)
    }
}

/// Between pods of a namespace, and from another one to them; a refusal; rights that are taken away.
pub fn see_their_own_namespaces(a: &Apps) {
    let rendered = helm(&[
        "template",
        "page",
        "charts/istiod",
        "--kube-version=1.34.0",
        "-n",
        SYSTEM,
        "--set=dashboard.enabled=true",
        "-s",
        "templates/dashboard.yaml",
    ]);
    apply(&rendered);
    kubectl(&["-n", SYSTEM, "rollout", "status", "deploy/karst-dashboard", "--timeout=120s"]);
    has_few_rights();
    let page = Page(Pod::by_label(SYSTEM, "app=karst-dashboard"));
    // From outside of the mesh, where nobody accepts for it.
    let open = a.outside.netns().run({
        let to = page.0.at(PORT);
        move || TcpStream::connect_timeout(&to, Duration::from_secs(3))
    });
    assert!(open.unwrap().is_err(), "in plaintext it is for port-forwards");
    let tokens = [viewer("app", "viewer", true), viewer("outside", "viewer", true), viewer("app", "nobody", false)];
    assert_eq!(page.ask("GET", "/api/graph", "").0, 401);
    assert_eq!(page.ask("POST", "/api/login", "authorization: Bearer x.y.z\r\ncontent-length: 0\r\n").0, 401);
    let of_proxy = kubectl(&["create", "token", "ztunnel", "-n", SYSTEM, "--audience=istio-ca"]);
    let bearer = format!("authorization: Bearer {}\r\ncontent-length: 0\r\n", of_proxy.trim());
    assert_eq!(page.ask("POST", "/api/login", &bearer).0, 401, "a token for another server");
    let [app, outside, nobody] = tokens.map(|token| page.log_in(&token));

    let calls = || {
        talk(&a.client, a.service).unwrap();
        talk(&a.outside, a.service).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    };
    let (text, _) = wait_for("both edges of the namespace", LONG, || {
        calls();
        let (text, graph) = page.graph(&app);
        let both = edge(&graph, "client", "echo").is_some() && edge(&graph, "other namespaces", "echo").is_some();
        both.then_some((text, graph))
    });
    let names_outside = ["outside/client", "\"namespace\":\"outside\""].iter().any(|name| text.contains(name));
    assert!(!names_outside, "a name of another namespace: {text}");
    let (text, graph) = page.graph(&outside);
    assert!(edge(&graph, "client", "other namespaces").is_some(), "{text}");
    assert!(!text.contains("\"app\"") && !text.contains("echo"), "{text}");
    let (text, graph) = page.graph(&nobody);
    assert!(graph["edges"].as_array().unwrap().is_empty() && graph["nodes"].as_array().unwrap().is_empty(), "{text}");

    policy("nobody", "{action: DENY, rules: [{}]}");
    let text = wait_for("the refusal", LONG, || {
        let _ = talk(&a.client, a.service);
        std::thread::sleep(Duration::from_millis(500));
        let (text, graph) = page.graph(&app);
        let refusals = &edge(&graph, "client", "echo")?["refusals"];
        (refusals[0]["policy"] == "app/nobody").then_some(text)
    });
    println!("the page in the cluster: {text}");
    let (text, _) = page.graph(&outside);
    kubectl(&["-n", "app", "delete", "authorizationpolicy", "nobody"]);
    assert!(!text.contains("app/nobody"), "{text}");

    kubectl(&["-n", "app", "delete", "rolebinding", "viewer"]);
    wait_for("the right is gone", LONG, || {
        std::thread::sleep(Duration::from_secs(1));
        page.graph(&app).1["edges"].as_array()?.is_empty().then_some(())
    });
    kubectl(&["-n", "app", "delete", "serviceaccount,role", "viewer"]);
    kubectl(&["-n", "app", "delete", "serviceaccount", "nobody"]);
    kubectl(&["-n", "outside", "delete", "serviceaccount,role,rolebinding", "viewer"]);
    kubectl(&["-n", SYSTEM, "delete", "deployment,serviceaccount", "karst-dashboard"]);
    kubectl(&["delete", "clusterrole,clusterrolebinding", "karst-dashboard-istio-system"]);
    wait_for("the permission", LONG, || talk(&a.client, a.service).ok());
}

/// What it could do for whoever breaks in: nothing that a user could not ask for, and no way to a pod's loopback.
fn has_few_rights() {
    let who = "--as=system:serviceaccount:istio-system:karst-dashboard";
    let may = |what: &[&str]| try_kubectl(&[&["auth", "can-i", "-A", who], what].concat()).is_ok();
    assert!(may(&["list", "pods"]) && may(&["create", "tokenreviews"]) && may(&["create", "subjectaccessreviews"]));
    for what in [
        &["get", "secrets"][..],
        &["list", "configmaps"],
        &["create", "pods", "--subresource=portforward"],
        &["create", "pods", "--subresource=exec"],
        &["get", "pods", "--subresource=proxy"],
        &["delete", "pods"],
        &["impersonate", "users"],
    ] {
        assert!(!may(what), "it may {what:?}");
    }
}
