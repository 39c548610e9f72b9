//! Wrong environments: what is around the command line does not fit, and it says so in one error with the next step.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

mod fake;

use fake::{Answers, Request, list, pod, serve, status};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

/// What is around it.
enum Around {
    /// A kubeconfig of the case's own; `SERVER` in it is where nobody answers.
    Kubeconfig(String),
    /// No kubeconfig at all.
    Nothing,
    /// A kubeconfig for an API server that answers so.
    Server(Answers),
    /// A server of TLS whose certificate the kubeconfig does not trust.
    OtherAuthority,
    /// A proxy at which nobody answers.
    DeadProxy,
}

struct Case {
    what: &'static str,
    line: &'static str,
    around: Around,
    status: i32,
    /// All of it is in the answer.
    says: &'static [&'static str],
    /// The next step: on the same line as what follows `next:`, or in a table's row.
    next: &'static str,
}

fn case(
    what: &'static str,
    line: &'static str,
    around: Around,
    status: i32,
    says: &'static [&'static str],
    next: &'static str,
) -> Case {
    Case { what, line, around, status, says, next }
}

fn server(answers: impl FnMut(&Request) -> Option<fake::Answer> + Send + 'static) -> Around {
    Around::Server(Box::new(answers))
}

/// Answers all requests of a resource.
fn when(resource: &'static str, answer: impl Fn(&Request) -> fake::Answer + Send + 'static) -> Around {
    server(move |request| (request.resource == resource).then(|| answer(request)))
}

const SYSTEM: &str = "istio-system";
const NO_STREAMS: &str = "pods \"istiod-1\" is forbidden: User \"jane\" cannot create resource \"pods/portforward\" in API group \"\" in the namespace \"istio-system\"";

fn kubeconfig(server: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\nclusters: [{{name: c, cluster: {{server: \"{server}\"{more}}}}}]\n\
         contexts: [{{name: here, context: {{cluster: c, user: u}}}}, {{name: there, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\n"
    )
}

/// The kubeconfig itself, and the way to the API server.
fn before_the_server() -> Vec<Case> {
    let with_user = |user: &str| Around::Kubeconfig(kubeconfig("SERVER", "").replace("{token: t}", user));
    let config = |text: &str| Around::Kubeconfig(text.to_owned());
    vec![
        case(
            "no kubeconfig",
            "proxy-status",
            Around::Nothing,
            1,
            &["no Kubernetes cluster is configured"],
            "set KUBECONFIG or pass --kubeconfig FILE",
        ),
        case(
            "a kubeconfig that is no YAML",
            "check --kubeconfig KUBECONFIG",
            config("clusters: [}"),
            1,
            &["cannot be read"],
            "set KUBECONFIG or pass --kubeconfig FILE",
        ),
        case(
            "a file that is no kubeconfig",
            "check --kubeconfig KUBECONFIG",
            config("apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"),
            1,
            &["cannot be used"],
            "it has no contexts: is it a kubeconfig?",
        ),
        case(
            "a context that is not there",
            "check --context elsewhere",
            Around::Kubeconfig(kubeconfig("SERVER", "")),
            1,
            &["--context elsewhere: cannot be used"],
            "pass --context with one of: here, there",
        ),
        case(
            "a login program that is not installed",
            "check",
            with_user(
                "{exec: {apiVersion: client.authentication.k8s.io/v1, command: cloud-login, interactiveMode: Never}}",
            ),
            1,
            &["the login program cloud-login has failed"],
            "install it, or log in again",
        ),
        case(
            "an API server that is not there",
            "check",
            Around::Kubeconfig(kubeconfig("SERVER", "")),
            1,
            &["the API server cannot be reached", "refused"],
            "check that the cluster is running and that the context is the right one",
        ),
        case(
            "a name that is not known",
            "check",
            Around::Kubeconfig(kubeconfig("https://api.invalid:6443", "")),
            1,
            &["the API server's name cannot be resolved"],
            "clusters[].cluster.server",
        ),
        case(
            "the certificate of another authority",
            "check",
            Around::OtherAuthority,
            1,
            &["the API server's certificate is not trusted"],
            "fetch the kubeconfig anew",
        ),
        case(
            "a proxy that is not there",
            "check",
            Around::DeadProxy,
            1,
            &["cannot be reached through the proxy http://127.0.0.1:"],
            "set NO_PROXY to the API server's host; HTTPS_PROXY is set",
        ),
        case(
            "something else at the address",
            "check",
            server(|_| Some((200, json!("<html>Welcome</html>")))),
            1,
            &["its answer is not Kubernetes'"],
            "something else answers there",
        ),
    ]
}

/// What the API server refuses.
fn refusals() -> Vec<Case> {
    vec![
        case(
            "a token that has expired",
            "proxy-status",
            server(|_| Some(status(401, "Unauthorized"))),
            1,
            &["the API server does not accept these credentials"],
            "log in again, or pass another --context",
        ),
        case(
            "a right that is missing",
            "proxy-status",
            when("pods", |_| {
                let text = "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"istio-system\"";
                status(403, text)
            }),
            1,
            &["User \"jane\" cannot list resource \"pods\""],
            "`kubectl auth can-i list pods -n istio-system`",
        ),
        case(
            "no right to connect to pods",
            "proxy-status",
            server(|request| match request.part.as_str() {
                "portforward" => Some(status(403, NO_STREAMS)),
                _ => (request.resource == "pods").then(|| (200, list(&[controller(true)]))),
            }),
            1,
            &["cannot reach port 15014 of pod istiod-1.istio-system"],
            "`kubectl auth can-i create pods/portforward -n istio-system`",
        ),
        case(
            "no right to look at live traffic",
            "tap -n shop",
            server(may_forward_only_in("nowhere")),
            1,
            &[
                "the live traffic of namespace shop may not be looked at",
                "this user may not `create pods/portforward` in namespace istio-system, shop",
            ],
            "`kubectl auth can-i create pods/portforward -n istio-system`",
        ),
        case(
            "the right to look at one namespace's live traffic",
            "top -n shop --for 1s",
            server(may_forward_only_in("shop")),
            1,
            &["note: ztunnels are not looked at", "cannot reach port 15000 of pod waypoint-1.shop"],
            "`kubectl auth can-i create pods/portforward -n istio-system`",
        ),
        case(
            "a namespace on one of two nodes: what it calls on the other is told of by that one's ztunnel",
            "tap -n shop --for 1s",
            server(two_ztunnels),
            1,
            &["port 15000 of pod ztunnel-n1.istio-system", "port 15000 of pod ztunnel-n2.istio-system"],
            "`kubectl auth can-i create pods/portforward -n istio-system`",
        ),
        case(
            "live traffic of a namespace without pods",
            "tap -n shpo --for 1s",
            server(two_ztunnels),
            1,
            &["note: no pod is running in namespace shpo: check its name (-n)"],
            "`kubectl auth can-i create pods/portforward -n istio-system`",
        ),
        case(
            "no right to install",
            "check",
            when("selfsubjectaccessreviews", |request| {
                let mut review = request.body.clone();
                review["status"] = json!({ "allowed": false });
                (201, review)
            }),
            79,
            &["rights of this user", "may not create namespaces, clusterroles"],
            "install as a cluster administrator",
        ),
        case(
            "a webhook that does not answer",
            "waypoint apply -n shop",
            when("gateways", |request| match request.method.as_str() {
                "PATCH" => status(
                    500,
                    "Internal error occurred: failed calling webhook \"policy.example\": connection refused",
                ),
                _ if request.name.is_empty() => (200, list(&[])),
                _ => status(404, "gateways \"waypoint\" not found"),
            }),
            1,
            &["cannot apply Gateway waypoint", "failed calling webhook"],
            "the service behind webhook policy.example must answer",
        ),
        case(
            "a namespace that is not there",
            "waypoint apply -n nowhere",
            when("gateways", |request| match request.method.as_str() {
                "PATCH" => status(404, "namespaces \"nowhere\" not found"),
                _ if request.name.is_empty() => (200, list(&[])),
                _ => status(404, "gateways \"waypoint\" not found"),
            }),
            1,
            &["namespaces \"nowhere\" not found"],
            "create it: `kubectl create namespace nowhere`, or name another with -n",
        ),
        case(
            "an API server that is overloaded",
            "zc workload",
            when("pods", |_| status(500, "etcdserver: request timed out")),
            1,
            &["etcdserver: request timed out"],
            "kubectl get --raw /readyz?verbose",
        ),
    ]
}

/// A user who may forward ports in one namespace, as the review says, and a waypoint in each of two. Streams are not served.
fn may_forward_only_in(namespace: &'static str) -> impl FnMut(&Request) -> Option<fake::Answer> + Send {
    move |request| match (request.resource.as_str(), request.part.as_str()) {
        ("selfsubjectaccessreviews", _) => {
            let mut review = request.body.clone();
            let asked = &review["spec"]["resourceAttributes"];
            let what = [&asked["verb"], &asked["resource"], &asked["subresource"]];
            let allowed = what == ["create", "pods", "portforward"] && asked["namespace"] == namespace;
            review["status"] = json!({ "allowed": allowed });
            Some((201, review))
        }
        ("pods", "portforward") if !request.path.contains("/namespaces/shop/") => panic!("{}", request.path),
        ("pods", "portforward") => Some(status(403, NO_STREAMS)),
        ("pods", _) if request.query.contains("gateway-name") => {
            let waypoint = |namespace| pod(namespace, "waypoint-1", json!({}), true);
            Some((200, list(&[waypoint("shop"), waypoint(SYSTEM)])))
        }
        _ => None,
    }
}

/// Two nodes with a ztunnel each, and a pod of namespace shop on one. All is allowed, but streams are not served.
fn two_ztunnels(request: &Request) -> Option<fake::Answer> {
    match (request.resource.as_str(), request.part.as_str()) {
        ("selfsubjectaccessreviews", _) => {
            let mut review = request.body.clone();
            review["status"] = json!({ "allowed": true });
            Some((201, review))
        }
        ("pods", "portforward") => Some(status(403, NO_STREAMS)),
        ("pods", _) if request.query.contains("ztunnel") => {
            let mut far = pod(SYSTEM, "ztunnel-n2", json!({}), true);
            far["spec"]["nodeName"] = "n2".into();
            Some((200, list(&[pod(SYSTEM, "ztunnel-n1", json!({}), true), far])))
        }
        ("pods", _) if request.path.contains("/namespaces/shop/") => {
            Some((200, list(&[pod("shop", "web", json!({}), true)])))
        }
        _ => None,
    }
}

fn controller(is_ready: bool) -> Value {
    pod(SYSTEM, "istiod-1", json!({ "app": "istiod" }), is_ready)
}

fn node(kernel: &str, ready: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
        "status": {
            "conditions": [{ "type": "Ready", "status": ready }],
            "nodeInfo": { "kernelVersion": kernel, "operatingSystem": "linux" },
        },
    })
}

/// Deployment or DaemonSet with a variable by which it is known, and so many of its pods ready.
fn workload(kind: &str, name: &str, variable: &str, ready: u64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name, "namespace": SYSTEM },
        "spec": { "replicas": 1, "template": { "spec": { "containers": [{ "env": [{ "name": variable, "value": "" }] }] } } },
        "status": { "readyReplicas": ready, "desiredNumberScheduled": 1, "numberReady": ready },
    })
}

/// A cluster that does not fit, or in which something else is.
fn clusters() -> Vec<Case> {
    vec![
        case(
            "Kubernetes too old",
            "check",
            server(|request| (request.path == "/version").then(|| (200, fake::version("27")))),
            79,
            &["1.27 is older than 1.30"],
            "upgrade Kubernetes first",
        ),
        case(
            "Kubernetes too old, and installed all the same",
            "install -y",
            server(|request| (request.path == "/version").then(|| (200, fake::version("27")))),
            1,
            &["Kubernetes v1.27.0 is older than 1.30"],
            "upgrade Kubernetes first",
        ),
        case(
            "no node is ready",
            "check",
            when("nodes", |_| (200, list(&[node("6.1.0", "False")]))),
            79,
            &["none of 1 is ready"],
            "`kubectl describe node n1` says why",
        ),
        case(
            "a kernel that is too old",
            "check",
            when("nodes", |_| (200, list(&[node("4.19.0-27-amd64", "True")]))),
            79,
            &["4.19.0-27-amd64 (node n1) is older than 5.17"],
            "upgrade the node's system",
        ),
        case(
            "no Gateway API",
            "waypoint apply -n shop",
            when("gateways", |_| status(404, "the server could not find the requested resource")),
            1,
            &["the cluster does not have the Gateway API"],
            "install the Gateway API's standard CRDs",
        ),
        case(
            "Istio with sidecars is there",
            "check",
            server(|request| match (request.resource.as_str(), request.name.as_str()) {
                ("deployments", "istiod") => Some((200, workload("Deployment", "istiod", "PILOT_TRACE_SAMPLING", 1))),
                ("pods", "") => {
                    let mut with = pod("shop", "web", json!({}), true);
                    with["spec"]["containers"][0]["name"] = "istio-proxy".into();
                    Some((200, list(&[with])))
                }
                _ => None,
            }),
            79,
            &["Istio's control plane", "1 pods have a container istio-proxy"],
            "Remove Istio first",
        ),
        case(
            "Istio's ambient mode is there",
            "check",
            server(|request| match (request.resource.as_str(), request.name.as_str()) {
                ("deployments", "istiod") => Some((200, workload("Deployment", "istiod", "PILOT_ENABLE_AMBIENT", 1))),
                ("daemonsets", name @ ("ztunnel" | "istio-cni-node")) => {
                    Some((200, workload("DaemonSet", name, "NODE_NAME", 1)))
                }
                _ => None,
            }),
            79,
            &["DaemonSet istio-system/ztunnel is there", "DaemonSet istio-system/istio-cni-node is there"],
            "or install in another namespace with -i",
        ),
        case(
            "what is there belongs to helm",
            "install -y",
            server(|request| match (request.resource.as_str(), request.name.as_str()) {
                ("serviceaccounts", "istiod") => Some((200, of_helm("v1", "ServiceAccount", "istiod"))),
                ("secrets", "") => {
                    Some((200, list(&[json!({ "metadata": { "name": "sh.helm.release.v1.istiod.v1" } })])))
                }
                _ => None,
            }),
            1,
            &["belong to helm's release istio-system/istiod"],
            "upgrade it by helm",
        ),
        case(
            "CRDs that are too old, before an installation",
            "check",
            old_crd(),
            79,
            &["CRDs of others", "CustomResourceDefinition sidecars.networking.istio.io was not installed by karst"],
            "take it over with --force",
        ),
        case(
            "CRDs that are too old, and installed all the same",
            "install -y",
            old_crd(),
            1,
            &["CustomResourceDefinition sidecars.networking.istio.io was not installed by karst", "it lacks"],
            "take it over with --force",
        ),
        case(
            "CRDs that are too old, and a further revision",
            "install --revision canary -y",
            old_crd(),
            1,
            &["CustomResourceDefinition sidecars.networking.istio.io was not installed by karst", "it lacks"],
            "take it over with --force",
        ),
        case(
            "a revision that is not installed",
            "uninstall --revision old -y",
            server(|_| None),
            1,
            &["revision old is not installed"],
            "next: ",
        ),
        case(
            "nothing to upgrade",
            "upgrade -y",
            server(|_| None),
            1,
            &["karst has installed nothing in namespace istio-system"],
            "karst install installs it",
        ),
    ]
}

/// A CRD of an old Istio's, which knows no fields.
fn old_crd() -> Around {
    server(|request| match (request.method.as_str(), request.name.as_str()) {
        ("GET", name @ "sidecars.networking.istio.io") => Some((
            200,
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": { "name": name, "labels": { "release": "istio" } },
                "spec": { "versions": [{ "name": "v1alpha3", "served": true, "schema": { "openAPIV3Schema": {} } }] },
            }),
        )),
        ("PATCH", _) => Some((200, request.body.clone())),
        _ => None,
    })
}

fn of_helm(version: &str, kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": version, "kind": kind,
        "metadata": {
            "name": name, "namespace": SYSTEM, "labels": { "app.kubernetes.io/managed-by": "Helm" },
            "annotations": { "meta.helm.sh/release-name": "istiod", "meta.helm.sh/release-namespace": SYSTEM },
        },
    })
}

/// A mesh that is there, and does not work.
fn broken_meshes() -> Vec<Case> {
    vec![
        case(
            "no control plane",
            "proxy-status",
            server(|_| None),
            1,
            &["no control plane is running in namespace istio-system"],
            "install the mesh, or name its namespace with -i",
        ),
        case(
            "a control plane that is not ready",
            "proxy-status",
            when("pods", |_| {
                let mut late = controller(false);
                late["status"]["containerStatuses"] = json!([{
                    "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                    "lastState": { "terminated": { "exitCode": 1, "message": "cannot read the certificate authority's key" } },
                }]);
                (200, list(&[late]))
            }),
            1,
            &[
                "the control plane in namespace istio-system is not ready",
                "cannot read the certificate authority's key",
            ],
            "kubectl -n istio-system describe pod istiod-1",
        ),
        case(
            "a node without bpffs",
            "check",
            installed("/sys/fs/bpf/karst is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf)"),
            79,
            &["istio-cni-node", "0/1 ready", "is not on a bpffs"],
            "mount one (mount -t bpf bpf /sys/fs/bpf)",
        ),
        case(
            "a kernel without what the node agent needs",
            "check",
            installed(
                "cannot load or attach note_probe: invalid argument; needs sock_ops with netns cookie (Linux 5.15 or later)",
            ),
            79,
            &["istio-cni-node", "0/1 ready"],
            "(Linux 5.15 or later)",
        ),
        case(
            "a proxy without a pod",
            "pc routes deploy/waypoint -n shop",
            when("deployments", |request| match request.name.as_str() {
                "waypoint" => {
                    let spec = json!({ "selector": { "matchLabels": { "app": "waypoint" } } });
                    (200, json!({ "metadata": { "name": "waypoint", "namespace": "shop" }, "spec": spec }))
                }
                _ => status(404, "deployments.apps \"waypoint\" not found"),
            }),
            1,
            &["deployment waypoint has no running pod in namespace shop"],
            "kubectl -n shop",
        ),
        case(
            "a proxy's deployment that is not there",
            "pc routes deploy/gone -n shop",
            server(|_| None),
            1,
            &["there is no deployment gone in namespace shop"],
            "check the name and the namespace (-n)",
        ),
        case(
            "a pod that is not there",
            "pc routes gone.shop",
            server(|_| None),
            1,
            &["pod gone in namespace shop"],
            "check the name and the namespace (-n)",
        ),
        case(
            "an image that cannot be pulled",
            "install -y --readiness-timeout 1s",
            installing(json!({
                "containerStatuses": [{
                    "image": "registry.local/karst/pilot:none",
                    "state": { "waiting": { "reason": "ImagePullBackOff", "message": "not found" } },
                }],
            })),
            1,
            &["not ready after 1 s", "pod istiod-1: ImagePullBackOff: registry.local/karst/pilot:none"],
            "--set hub=REGISTRY",
        ),
        case(
            "no room for a pod",
            "install -y --readiness-timeout 1s",
            installing(json!({
                "conditions": [{
                    "type": "PodScheduled", "status": "False",
                    "message": "0/2 nodes are available: 2 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }",
                }],
            })),
            1,
            &["not ready after 1 s", "pod istiod-1: not scheduled: 0/2 nodes are available", "disk-pressure"],
            "kubectl describe nodes",
        ),
    ]
}

/// Installed; the node agent ends with these words.
fn installed(words: &'static str) -> Around {
    server(move |request| match (request.resource.as_str(), request.name.as_str()) {
        // A named revision alone is an installation, too.
        ("deployments", "") if request.query.contains("istiod") => {
            Some((200, list(&[workload("Deployment", "istiod-canary", "KARST_SOURCE", 1)])))
        }
        ("daemonsets", "istio-cni-node") => Some((200, workload("DaemonSet", "istio-cni-node", "KARST_SOURCE", 0))),
        ("daemonsets", "ztunnel") => Some((200, workload("DaemonSet", "ztunnel", "XDS_ADDRESS", 1))),
        ("pods", "istio-cni-node-1") => Some((200, json!(format!("karst-cni: {words}\n")))),
        ("pods", "") if request.query.contains("istio-cni-node") => {
            let mut late = pod(SYSTEM, "istio-cni-node-1", json!({ "k8s-app": "istio-cni-node" }), false);
            late["status"]["containerStatuses"] = json!([{
                "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                "lastState": { "terminated": { "exitCode": 1 } },
            }]);
            Some((200, list(&[late])))
        }
        _ => None,
    })
}

/// Takes what is applied; the controller's pod has this status.
fn installing(pod_status: Value) -> Around {
    let mut stored: BTreeMap<String, Value> = BTreeMap::new();
    server(move |request| match (request.method.as_str(), request.resource.as_str()) {
        ("PATCH", _) => {
            let mut object = request.body.clone();
            if object["kind"] == "CustomResourceDefinition" {
                object["status"] = json!({ "conditions": [{ "type": "Established", "status": "True" }] });
            }
            if !request.query.contains("dryRun") {
                stored.insert(request.path.clone(), object.clone());
            }
            Some((200, object))
        }
        ("GET", "pods") if request.name.is_empty() => {
            let mut late = pod(SYSTEM, "istiod-1", json!({}), false);
            late["status"] = pod_status.clone();
            Some((200, list(&[late])))
        }
        ("GET", _) => stored.get(&request.path).map(|object| (200, object.clone())),
        _ => None,
    })
}

/// A server of TLS, and a kubeconfig that trusts another authority.
fn other_authority() -> String {
    use base64::Engine;
    let minted = || rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let (own, trusted) = (minted(), minted());
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let config = std::sync::Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut connection = rustls::ServerConnection::new(config.clone()).unwrap();
            // The client ends it: that is what is tried.
            let _ = connection.complete_io(&mut stream);
        }
    });
    let authority = base64::engine::general_purpose::STANDARD.encode(trusted.cert.pem());
    kubeconfig(&format!("https://{address}"), &format!(", certificate-authority-data: {authority}"))
}

fn nobody() -> String {
    // Bound and closed: nobody has the port now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{address}")
}

fn run(line: &str, around: Around, file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karst"));
    command.env_clear().env("HOME", "/nowhere");
    let text = match around {
        Around::Nothing => None,
        Around::Kubeconfig(text) => Some(text.replace("SERVER", &nobody())),
        Around::Server(answers) => Some(kubeconfig(&serve(answers), "")),
        Around::OtherAuthority => Some(other_authority()),
        Around::DeadProxy => {
            command.env("HTTPS_PROXY", nobody());
            Some(kubeconfig("https://kubernetes.example:6443", ""))
        }
    };
    if let Some(text) = text {
        std::fs::write(file, text).unwrap();
        command.env("KUBECONFIG", file);
    }
    let file = file.display().to_string();
    command.args(line.split(' ').map(|word| word.replace("KUBECONFIG", &file))).output().unwrap()
}

/// What is wrong with an answer.
fn fault(case: &Case, out: &Output) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&out.stdout) + &text(&out.stderr), text(&out.stderr));
    let missing = case.says.iter().chain([&case.next]).find(|part| !said.contains(**part));
    let count = errors.lines().filter(|line| line.starts_with("karst: ") || line.starts_with("error: ")).count();
    let steps = errors.lines().filter(|line| line.trim_start().starts_with("next: ")).count();
    let why = match () {
        () if out.status.code() != Some(case.status) => format!("status {:?}, not {}", out.status.code(), case.status),
        () if said.contains("panicked") => "a panic".into(),
        () if (count, steps) != (1, 1) => format!("{count} errors and {steps} next steps"),
        () => format!("it lacks {:?}", missing?),
    };
    Some(format!("{} (karst {}): {why}:\n{said}", case.what, case.line))
}

#[test]
fn each_has_one_error_and_the_next_step() {
    let all: Vec<Case> = [before_the_server(), refusals(), clusters(), broken_meshes()].into_iter().flatten().collect();
    let file = std::env::temp_dir().join(format!("karst-environment-{}", std::process::id()));
    let (mut faults, count) = (vec![], all.len());
    for mut case in all {
        let around = std::mem::replace(&mut case.around, Around::Nothing);
        let out = run(case.line, around, &file);
        let said = String::from_utf8_lossy(&out.stderr).lines().next().unwrap_or_default().to_owned();
        println!("{:45} {said}", case.what);
        faults.extend(fault(&case, &out));
    }
    let _ = std::fs::remove_file(&file);
    assert!(faults.is_empty(), "{} of {count}:\n{}", faults.len(), faults.join("\n"));
    assert!(count >= 30, "{count}");
}

/// A further revision leaves CRDs to the one that has them; those of an older release it brings to its own, and no others.
#[test]
fn a_further_revision_brings_older_crds_of_karsts_to_its_release() {
    let of_karst = |request: &Request| match (request.method.as_str(), request.name.as_str()) {
        ("GET", name @ "sidecars.networking.istio.io") => Some((
            200,
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": { "name": name, "labels": { "karst.io/installation": "installed-state" } },
                "spec": { "versions": [{ "name": "v1", "served": true, "schema": { "openAPIV3Schema": {} } }] },
            }),
        )),
        ("PATCH", "sidecars.networking.istio.io") => {
            assert!(request.query.contains("dryRun"), "{}", request.query);
            assert_eq!(request.body["metadata"]["labels"]["karst.io/installation"], "installed-state");
            Some((200, request.body.clone()))
        }
        _ => None,
    };
    let file = std::env::temp_dir().join(format!("karst-environment-crds-{}", std::process::id()));
    for (line, is_shared) in [("install --revision canary --dry-run", true), ("install --dry-run", false)] {
        let out = run(line, server(of_karst), &file);
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("CustomResourceDefinition")).collect();
        assert!(
            lines.iter().any(|line| line.starts_with("~ CustomResourceDefinition sidecars.networking.istio.io (")),
            "{said}"
        );
        assert_eq!(lines.len() == 1, is_shared, "{said}");
    }
    let _ = std::fs::remove_file(&file);
}
