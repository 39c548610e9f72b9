//! From a Gateway to what runs it: ServiceAccount, Deployment, Service, owned by the Gateway (reference control-plane §4.1).

use crate::convert::{
    deploy::overlay::{DeployError, Overlays},
    facts::{
        gateway::{self, MAX_NAME, shortened},
        listener::{GatewayListener, ListenerParent},
        listeners::GatewayListeners,
        routability, waypoint,
    },
    objects::{GATEWAY_API, INGRESS, INGRESS_CLASSES, MANAGED, Objects, Template},
};
use karst_api::route::ListenerProtocol as Protocol;
use karst_kube::Ref;
use karst_manifest::kinds::{GATEWAY_NAME, Gateway, Labels};
use serde_json::{Value, json};
use std::net::IpAddr;

/// Values of [`MANAGED`] (Istio's).
const WAYPOINT_MANAGER: &str = "istio.io-mesh-controller";
const GATEWAY_MANAGER: &str = "istio.io-gateway-controller";

/// Classes of waypoints.
const CLASSES: [&str; 2] = ["istio-waypoint", "karst-waypoint"];

/// Annotation with the digest of what was applied.
const DIGEST: &str = "gateway.karst.io/digest";
/// Annotation of a Deployment: the kinds of [`EXTRAS`] that were made beside it.
const OPTIONAL: &str = "gateway.karst.io/optional";
/// What is made only where parameters ask for it: group, version, kind, key in the parameters.
const EXTRAS: [(&str, &str, &str, &str); 2] = [
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalPodAutoscaler"),
    ("policy", "v1", "PodDisruptionBudget", "podDisruptionBudget"),
];

/// The classes that lack. They are made once and never changed: who changes them means it (Istio does the same).
pub(crate) fn classes(objects: &Objects<'_>) -> Vec<(Ref, Value)> {
    let one = |(name, controller, text): (&str, &str, &str)| {
        let reference = Ref {
            group: GATEWAY_API,
            version: "v1",
            kind: "GatewayClass",
            namespace: String::new(),
            name: name.to_string(),
        };
        let spec = json!({ "controllerName": controller, "description": text });
        (reference, json!({ "metadata": { "labels": { MANAGED: WAYPOINT_MANAGER } }, "spec": spec }))
    };
    let waypoints = CLASSES.map(|c| (c, waypoint::CONTROLLER, "Layer 7 proxies of the mesh"));
    let gateways = INGRESS_CLASSES.map(|c| (c, INGRESS, "Gateways into and out of the mesh"));
    waypoints.into_iter().chain(gateways).filter(|c| !objects.classes.contains_key(c.0)).map(one).collect()
}

/// What lacks, or is not as it should be, in the order in which it is applied; and what is there and is wanted no more, with the
/// uid of its Gateway.
pub(crate) fn compile(
    applied: &Objects<'_>,
    listeners: &GatewayListeners,
    template: &Template,
    objects: &mut Vec<(Ref, Value)>,
    removed: &mut Vec<(Ref, String)>,
) {
    let ours = |g: &&&Gateway| waypoint::is_waypoint(applied, g) || gateway::is_ingress(applied, g);
    // In the same order each time: what is still to be written is then the same.
    let is_run = |g: &&&Gateway| given(g).is_none() && applied.is_ours(&g.metadata);
    let mut all: Vec<_> = applied.gateways.values().filter(ours).filter(is_run).collect();
    all.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
    for gateway in all {
        // With parameters that cannot be read nothing is run, and what runs stays as it is; the status says so.
        let Ok(overlays) = Overlays::of(applied, gateway) else { continue };
        let added: Vec<_> = listeners.added(gateway).collect();
        let Ok(all) = self::objects(applied, gateway, &added, template, &overlays) else { continue };
        one(applied, gateway, all, &overlays, objects, removed);
    }
}

/// Can the parameters of a Gateway be used?
///
/// # Errors
/// Why not.
pub(crate) fn parameters(applied: &Objects<'_>, gateway: &Gateway) -> Result<(), DeployError> {
    let overlays = Overlays::of(applied, gateway)?;
    // Those of its class may change anything.
    if !overlays.has_own() {
        return Ok(());
    }
    let any = Template::default();
    objects(applied, gateway, &[], &any, &overlays).map(drop)
}

/// The uid of the Gateway that an object is made for.
pub(crate) fn owner(fields: &Value) -> Option<&str> {
    fields.pointer("/metadata/ownerReferences/0/uid").and_then(Value::as_str)
}

/// The name of what is made for a Gateway: its own for a waypoint, with the class else (Istio's rule).
pub(crate) fn name(objects: &Objects<'_>, gateway: &Gateway) -> String {
    let meta = &gateway.metadata;
    if waypoint::is_waypoint(objects, gateway) {
        return meta.name.clone();
    }
    let given = meta.annotations.get("gateway.istio.io/name-override");
    let full = given.cloned().unwrap_or_else(|| format!("{}-{}", meta.name, gateway.spec.gateway_class_name));
    shortened(&full)
}

/// The (first) host name that the Gateway itself gives: somebody else runs it there.
pub(crate) fn given(gateway: &Gateway) -> Option<&str> {
    let mut all = gateway.spec.addresses.iter().filter(|a| a.kind == "Hostname").map(|a| a.value.as_str());
    all.find(|host| !host.is_empty())
}

/// The address that its Service asks the load balancer for; a Service can ask for one. (`externalIPs` would take whatever address one
/// names from whoever has it.)
fn asked(gateway: &Gateway) -> Option<&str> {
    let of_balancer = gateway.spec.addresses.iter().filter(|a| routability::is_from_anywhere(a));
    let all = of_balancer.filter(|a| matches!(a.kind.as_str(), "" | routability::IP));
    all.map(|a| a.value.as_str()).find(|value| value.parse::<IpAddr>().is_ok())
}

fn one(
    objects: &Objects<'_>,
    gateway: &Gateway,
    mut all: Vec<(Ref, Value)>,
    overlays: &Overlays<'_>,
    out: &mut Vec<(Ref, Value)>,
    removed: &mut Vec<(Ref, String)>,
) {
    let (ns, name) = (gateway.metadata.namespace.as_str(), name(objects, gateway));
    let name = name.as_str();
    // Somebody's own Service or Deployment of that name stays his.
    let service = objects.service(ns, name);
    let deployment = objects.deployments.get(&(ns, name));
    if service.is_some_and(|s| !s.metadata.labels.contains_key(MANAGED)) {
        return;
    }
    let text = json!(all.iter().map(|(_, v)| v).collect::<Vec<_>>()).to_string();
    let digest = format!("{:x}", xxhash_rust::xxh64::xxh64(text.as_bytes(), 0));
    let is = |a: &Labels| a.get(DIGEST) == Some(&digest);
    if service.is_some_and(|s| is(&s.metadata.annotations)) && deployment.is_some_and(|d| is(&d.metadata.annotations)) {
        return;
    }
    let before = deployment.and_then(|d| d.metadata.annotations.get(OPTIONAL)).map_or("", String::as_str);
    let old = EXTRAS.iter().filter(|(_, _, kind, key)| before.split(',').any(|k| k == *kind) && !overlays.has(key));
    removed.extend(old.map(|(group, version, kind, _)| {
        let r = Ref { group, version, kind, namespace: ns.to_string(), name: name.to_string() };
        (r, gateway.metadata.uid.clone())
    }));
    // All of them or none: `objects` has written to the same maps.
    if all.iter_mut().all(|(_, v)| put(v, "annotations", DIGEST, &digest).is_ok()) {
        out.extend(all);
    }
}

/// Writes a label or an annotation.
fn put(object: &mut Value, of: &'static str, key: &str, value: &str) -> Result<(), DeployError> {
    fn below<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
        Some(value.as_object_mut()?.entry(key).or_insert_with(|| json!({})))
    }
    let map = below(object, "metadata").and_then(|meta| below(meta, of)).and_then(Value::as_object_mut);
    map.ok_or(DeployError::NoMap(of))?.insert(key.into(), json!(value));
    Ok(())
}

/// `added`: the listeners of ListenerSets.
fn objects(
    objects: &Objects<'_>,
    gateway: &Gateway,
    added: &[&GatewayListener],
    template: &Template,
    overlays: &Overlays<'_>,
) -> Result<Vec<(Ref, Value)>, DeployError> {
    let gateway_meta = &gateway.metadata;
    let is_waypoint = waypoint::is_waypoint(objects, gateway);
    let (name, label) = (name(objects, gateway), shortened(&gateway_meta.name));
    let class = &gateway.spec.gateway_class_name;
    // An account that is named is somebody's own.
    let named = gateway_meta.annotations.get("gateway.istio.io/service-account");
    let account = named.unwrap_or(&name);
    let manager = if is_waypoint { WAYPOINT_MANAGER } else { GATEWAY_MANAGER };
    let own = json!({
        GATEWAY_NAME: label,
        "gateway.networking.k8s.io/gateway-class-name": class,
        MANAGED: manager,
        "istio.io/dataplane-mode": "none",
    });
    let with = |more: Value| {
        let mut all = json!(gateway.spec.infrastructure.labels);
        for part in [own.clone(), more] {
            for (k, v) in part.as_object().into_iter().flatten() {
                all[k] = v.clone();
            }
        }
        all
    };
    let owner = json!([{
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "name": gateway_meta.name,
        "uid": gateway_meta.uid,
    }]);
    let meta = |labels: Value| json!({ "labels": labels, "annotations": gateway.spec.infrastructure.annotations, "ownerReferences": owner });
    let reference = |group, kind, name: &str| Ref {
        group,
        version: "v1",
        kind,
        namespace: gateway_meta.namespace.clone(),
        name: name.into(),
    };
    let selector = json!({ GATEWAY_NAME: label });
    let pod_labels = with(json!({
        "sidecar.istio.io/inject": "false",
        "service.istio.io/canonical-name": name,
        "service.istio.io/canonical-revision": "latest",
    }));
    let mut pod_annotations = json!(gateway.spec.infrastructure.annotations);
    for (k, v) in [("scrape", "true"), ("port", "15020"), ("path", "/stats/prometheus")] {
        pod_annotations[format!("prometheus.io/{k}")] = json!(v);
    }
    let spec = deployment(objects, template, is_waypoint, account, &selector, (pod_labels, pod_annotations));
    let mut service = service(gateway, added, is_waypoint, &selector);
    if let Some(ip) = routability::cluster_ip(objects, gateway, &name).filter(|_| !is_waypoint) {
        service["clusterIP"] = json!(ip.to_string());
    }
    let mut out = vec![];
    if named.is_none() {
        out.push((reference("", "ServiceAccount", account), json!({ "metadata": meta(with(json!({}))) })));
    }
    let extras: Vec<_> = EXTRAS.iter().filter(|(.., key)| overlays.has(key)).collect();
    for (group, version, kind, _) in &extras {
        let spec = match *kind {
            "HorizontalPodAutoscaler" => {
                json!({ "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name }, "maxReplicas": 1 })
            }
            _ => json!({ "selector": { "matchLabels": selector } }),
        };
        let r = Ref { group, version, kind, namespace: gateway_meta.namespace.clone(), name: name.clone() };
        out.push((r, json!({ "metadata": meta(with(json!({}))), "spec": spec })));
    }
    out.push((reference("apps", "Deployment", &name), json!({ "metadata": meta(with(json!({}))), "spec": spec })));
    out.push((reference("", "Service", &name), json!({ "metadata": meta(with(json!({}))), "spec": service })));
    for (reference, manifest) in &mut out {
        overlays.apply(reference.kind, manifest)?;
        // Without it the object would be somebody else's.
        put(manifest, "labels", MANAGED, manager)?;
        if reference.kind == "Deployment" && !extras.is_empty() {
            let kinds: Vec<&str> = extras.iter().map(|(_, _, kind, _)| *kind).collect();
            put(manifest, "annotations", OPTIONAL, &kinds.join(","))?;
        }
    }
    Ok(out)
}

/// The proxy's container.
fn container(objects: &Objects<'_>, template: &Template, is_waypoint: bool) -> Value {
    let env = |name: &str, value: Value| json!({ "name": name, "value": value });
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut open = vec![
        json!({ "name": "metrics", "containerPort": 15020 }),
        json!({ "name": "status-port", "containerPort": 15021 }),
    ];
    if is_waypoint {
        open.push(json!({ "name": "hbone", "containerPort": waypoint::PORT }));
    }
    let control = objects.mesh.discovery();
    let mut container = json!({
        "name": "istio-proxy",
        "image": template.image,
        "imagePullPolicy": template.pull_policy,
        "args": ["proxy", if is_waypoint { "waypoint" } else { "router" }],
        "ports": open,
        "env": [
            env("XDS_ADDRESS", json!(control)), env("CA_ADDRESS", json!(control)), env("TRUST_DOMAIN", json!(objects.mesh.trust_domain)), env("CLUSTER_ID", json!(objects.mesh.cluster_id)), env("NETWORK", json!(objects.mesh.network)),
            env("CRL_PATH", json!("/var/run/secrets/istio/ca-crl.pem")), field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("INSTANCE_IP", "status.podIP"), field("SERVICE_ACCOUNT", "spec.serviceAccountName"), field("NODE_NAME", "spec.nodeName"),
        ],
        "readinessProbe": { "httpGet": { "path": "/healthz/ready", "port": 15021 }, "periodSeconds": 5, "failureThreshold": 4 },
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "cpu": "2", "memory": "1Gi" } },
        "securityContext": { "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337, "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" } },
        "volumeMounts": [{ "name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio" }, { "name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true }],
    });
    if let (Some(threads), Some(all)) =
        (objects.mesh_config.default_config.concurrency, container["env"].as_array_mut())
    {
        all.push(env("KARST_WORKER_THREADS", json!(threads.to_string())));
    }
    container
}

/// What a Deployment is to be. `pod`: labels and annotations.
fn deployment(
    objects: &Objects<'_>,
    template: &Template,
    is_waypoint: bool,
    account: &str,
    selector: &Value,
    pod: (Value, Value),
) -> Value {
    // What a pod may set without any privilege: ports below 1024 for everybody in it.
    let security = if is_waypoint {
        json!({})
    } else {
        json!({ "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }] })
    };
    let mut spec = json!({
        "selector": { "matchLabels": selector },
        "template": {
            "metadata": { "labels": pod.0, "annotations": pod.1 },
            "spec": {
                "serviceAccountName": account,
                // Its token is the projected one below; the API server is never called.
                "automountServiceAccountToken": false,
                "securityContext": security,
                "terminationGracePeriodSeconds": 30,
                "containers": [container(objects, template, is_waypoint)],
                "volumes": [
                    { "name": "istiod-ca-cert", "projected": { "sources": [{ "configMap": { "name": "istio-ca-root-cert" } }, { "configMap": { "name": "istio-ca-crl", "optional": true } }] } },
                    { "name": "istio-token", "projected": { "sources": [{ "serviceAccountToken": { "audience": "istio-ca", "expirationSeconds": 43_200, "path": "istio-token" } }] } },
                ],
            },
        },
    });
    if !template.pull_secrets.is_empty() {
        let secrets: Vec<Value> = template.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        spec["template"]["spec"]["imagePullSecrets"] = json!(secrets);
    }
    spec
}

/// What the Service is to be: a port for each of the listeners, `added` ones among them.
fn service(gateway: &Gateway, added: &[&GatewayListener], is_waypoint: bool, selector: &Value) -> Value {
    let mut ports = vec![
        json!({ "name": "status-port", "port": 15021, "targetPort": 15021, "protocol": "TCP", "appProtocol": "tcp" }),
    ];
    let of = |protocol: &str| if is_waypoint { "hbone".to_string() } else { protocol.to_ascii_lowercase() };
    let own = gateway.spec.listeners.iter().map(|l| (l.name.as_str(), l.port, l.protocol == "UDP", of(&l.protocol)));
    let added = added.iter().filter_map(|l| match &l.parent {
        ListenerParent::Api { listener, .. } => Some((listener.as_str(), l.port, l.udp, app_protocol(l).to_string())),
        ListenerParent::Istio { .. } => None,
    });
    for (name, port, udp, app_protocol) in own.chain(added) {
        let protocol = if udp { "UDP" } else { "TCP" };
        // Several listeners may share a port; and a number may be one of both protocols.
        if !ports.iter().any(|p| p["port"] == port && p["protocol"] == protocol) {
            ports.push(json!({
                "name": port_name(&ports, name, protocol, port),
                "port": port,
                "targetPort": port,
                "protocol": protocol,
                "appProtocol": app_protocol,
            }));
        }
    }
    let default = if is_waypoint || routability::is_internal(gateway) { "ClusterIP" } else { "LoadBalancer" };
    let kind = gateway.metadata.annotations.get("networking.istio.io/service-type").map_or(default, String::as_str);
    let mut service =
        json!({ "type": kind, "selector": selector, "ports": ports, "ipFamilyPolicy": "PreferDualStack" });
    if is_waypoint {
        service["trafficDistribution"] = json!("PreferClose");
    }
    if let Some(address) = asked(gateway).filter(|_| kind == "LoadBalancer") {
        service["loadBalancerIP"] = json!(address);
    }
    service
}

/// What a Service says that its port carries.
fn app_protocol(listener: &GatewayListener) -> &'static str {
    match listener.protocol {
        _ if listener.udp => "udp",
        Protocol::Http => "http",
        Protocol::Https => "https",
        Protocol::Tls => "tls",
        Protocol::Tcp => "tcp",
    }
}

/// A listener's name as the name of a port: at most 63 characters, and that of no other of these ports. (Names of listeners are
/// their own in each ListenerSet.)
fn port_name(ports: &[Value], name: &str, protocol: &str, port: u16) -> String {
    let own = (name.len() <= MAX_NAME && !name.contains('.')).then(|| name.to_string());
    let first = if protocol == "UDP" { format!("udp-port-{port}") } else { format!("port-{port}") };
    let more = (0..).map(|n: u32| if n == 0 { first.clone() } else { format!("{first}-{n}") });
    let mut all = own.into_iter().chain(more);
    all.find(|name| ports.iter().all(|p| p["name"] != *name)).unwrap_or_default()
}
