//! The smallest change that turns a refusal: each candidate is tried on a copy of the objects, and named as tried only if the
//! call then gets through.

use crate::{
    answer::{Cause, Fix, Outcome, Verdict},
    call::Call,
    objects::selects,
    walk::walk,
    way::Way,
    world::World,
};
use karst_manifest::{
    Object,
    kinds::{AuthorizationPolicy, From, Labels, Source},
};
use serde_json::{Value, json};

/// Label that brings pods of a namespace into the mesh.
const MODE: &str = "istio.io/dataplane-mode";

/// A change, if one is known for the cause.
pub(crate) fn find(world: &World, call: &Call, way: &Way) -> Option<Fix> {
    match way.answer.cause? {
        Cause::DeniedByPolicy => denied(world, call, way),
        Cause::NotAllowedByAnyPolicy => allowed(world, call, way),
        Cause::StrictMtlsOutsider => outsider(world, call, way),
        Cause::SelectorMatchesNoPod => selector(world, call, way),
        Cause::NoSuchPort => {
            let ports: Vec<String> =
                way.destination.service.iter().flat_map(|s| &s.ports).map(|(port, _)| port.to_string()).collect();
            Some(advice(format!("call one of the ports that the service has: {}", ports.join(", "))))
        }
        Cause::HttpPolicyOnTcpPort => http_port(world, call, way),
        Cause::WaypointNotReady => Some(advice("wait until a pod of the waypoint is ready, or deploy the waypoint")),
        Cause::NoReadyEndpoint => {
            Some(advice("make a pod of the service ready (kubectl describe pod says why it is not)"))
        }
        Cause::NoRouteMatches => Some(advice("add a rule without matches to the route, as its last one")),
        Cause::SubsetWithoutPods => Some(advice("give pods the labels of the subset, or change the subset's labels")),
        Cause::BackendNotUsable => {
            Some(advice("add a ReferenceGrant in the backend's namespace, or correct backendRefs"))
        }
        Cause::NotInRegistry => Some(advice(
            "add a ServiceEntry for the address, or set meshConfig.outboundTrafficPolicy.mode to ALLOW_ANY",
        )),
        Cause::NoSuchDestination => {
            Some(advice("correct host, port or subset of the route, or add the subset to a DestinationRule"))
        }
        Cause::WaypointRefuses
        | Cause::OwnPort
        | Cause::OwnAddress
        | Cause::NobodyKnown
        | Cause::BadRequest
        | Cause::AnsweredByRoute
        | Cause::PolicyMissing
        | Cause::FaultInjected
        | Cause::PolicyUnusable
        | Cause::PrincipalMistyped
        | Cause::OtherTrustDomain
        | Cause::TokenMissing
        | Cause::HttpPolicyAtZtunnel => None,
        Cause::NetworkPolicy => Some(advice("let TCP 15008 in (and out) from every source that you allow")),
        Cause::NoListener => Some(advice("add a listener for the port and the name to the Gateway")),
        Cause::NoRouteForHost => Some(advice("attach a route for the host to the Gateway")),
        Cause::TokenExpired => Some(advice("ask the issuer for a new token")),
    }
}

fn advice(text: impl Into<String>) -> Fix {
    Fix { text: text.into(), yaml: String::new(), verified: false }
}

/// Does the call get through when the objects are changed so?
fn turns(world: &World, call: &Call, change: impl FnOnce(&mut Vec<Object>)) -> bool {
    let changed = world.with(change);
    changed.and_then(|w| walk(&w, call).ok()).is_some_and(|way| way.answer.verdict == Verdict::Allowed)
}

fn yaml(value: &Value) -> String {
    serde_yaml_ng::to_string(value).unwrap_or_default()
}

/// With one more object.
fn added(world: &World, call: &Call, text: String, object: &Value) -> Fix {
    let read = object["kind"].as_str().and_then(|kind| karst_manifest::parse::value(kind, object.clone()).ok());
    let verified = read.is_some_and(|read| turns(world, call, |all| all.push(read)));
    Fix { text, yaml: yaml(object), verified }
}

/// Who is judged where it is refused: the caller itself, or the waypoint on its behalf.
fn judged(way: &Way) -> Option<String> {
    let by_waypoint = way.answer.steps.iter().any(|s| s.step == crate::Stage::WaypointAuthorization);
    let at_waypoint =
        way.answer.steps.iter().any(|s| s.step == crate::Stage::WaypointAuthorization && s.outcome == Outcome::Refuse);
    match by_waypoint && !at_waypoint {
        true => None,
        false => Some(way.source.workload.identity.principal().to_string()).filter(|_| way.source.in_mesh),
    }
}

/// A DENY rule gets an exception for the caller.
fn denied(world: &World, call: &Call, way: &Way) -> Option<Fix> {
    let (namespace, name) = way.answer.policy.as_ref()?.split_once('/')?;
    let principal = judged(way)?;
    let located = world.objects.get("AuthorizationPolicy", namespace, name)?;
    let Object::AuthorizationPolicy(policy) = &located.object else { return None };
    let exception = |p: &mut AuthorizationPolicy, rule: usize| {
        let Some(rule) = p.spec.rules.get_mut(rule) else { return };
        if rule.from.is_empty() {
            rule.from.push(From::default());
        }
        rule.from.iter_mut().for_each(|f| f.source.not_principals.push(principal.clone()));
    };
    let rules = 0..policy.spec.rules.len();
    let tried = rules.map(|rule| {
        let change = |all: &mut Vec<Object>| {
            for object in all {
                if let Object::AuthorizationPolicy(p) = object
                    && (&*p.metadata.namespace, &*p.metadata.name) == (namespace, name)
                {
                    exception(p, rule);
                }
            }
        };
        (rule, turns(world, call, change))
    });
    let all: Vec<(usize, bool)> = tried.collect();
    let (rule, verified) = all.iter().find(|(_, turned)| *turned).or(all.first()).copied()?;
    let mut changed = (**policy).clone();
    exception(&mut changed, rule);
    let sources: Vec<Value> =
        changed.spec.rules.get(rule)?.from.iter().map(|f| json!({ "source": source(&f.source) })).collect();
    let text = format!("exempt the caller in AuthorizationPolicy {namespace}/{name}, spec.rules[{rule}]");
    Some(Fix { text, yaml: yaml(&json!({ "from": sources })), verified })
}

/// A source as it is written.
fn source(source: &Source) -> Value {
    let fields = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    fields
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| (name.to_string(), json!(values)))
        .collect()
}

/// One more ALLOW policy, for this caller.
fn allowed(world: &World, call: &Call, way: &Way) -> Option<Fix> {
    let at_waypoint =
        way.answer.steps.iter().any(|s| s.step == crate::Stage::WaypointAuthorization && s.outcome == Outcome::Refuse);
    let own = || Some(way.source.workload.identity.clone()).filter(|_| way.source.in_mesh);
    // The pods of the service see the waypoint or the gateway.
    let caller = if at_waypoint { own() } else { way.proxy.clone().or_else(own) };
    let Some(caller) = caller else {
        return Some(advice("the policy asks for an identity: bring the caller into the mesh, so that it has one"));
    };
    let rules = json!([{ "from": [{ "source": { "principals": [caller.principal()] } }] }]);
    let (mut spec, namespace) = (json!({ "action": "ALLOW", "rules": rules }), way.destination.service.as_ref());
    let refused = way.answer.endpoints.iter().find(|e| !e.allowed);
    let namespace = match (at_waypoint, namespace, refused) {
        (true, Some(service), _) => {
            spec["targetRefs"] = json!([{ "group": "", "kind": "Service", "name": &*service.name }]);
            service.namespace.to_string()
        }
        (_, _, Some(endpoint)) => {
            let (namespace, name) = endpoint.workload.split_once('/')?;
            let selector = world.objects.service(namespace, way.destination.service.as_ref().map_or("", |s| &s.name));
            let own = world.objects.pod(namespace, name).map(|(_, p)| p.metadata.labels.clone());
            let labels = selector.map(|s| s.spec.selector.clone()).filter(|l| !l.is_empty()).or(own)?;
            spec["selector"] = json!({ "matchLabels": labels });
            namespace.to_string()
        }
        _ => return None,
    };
    let name = format!("allow-{}", caller.service_account());
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec,
    });
    let text = format!("allow {} in namespace {namespace}", caller.principal());
    // No more than this request, if that is enough.
    if let Some(head) = call.request.as_ref().filter(|_| at_waypoint) {
        let mut narrow = object.clone();
        let path = head.path.split('?').next().unwrap_or_default();
        narrow["spec"]["rules"][0]["to"] = json!([{ "operation": { "methods": [head.method], "paths": [path] } }]);
        let fix = added(world, call, text.clone(), &narrow);
        if fix.verified {
            return Some(fix);
        }
    }
    Some(added(world, call, text, &object))
}

/// The caller's namespace comes into the mesh; who is no pod is let in at the port.
fn outsider(world: &World, call: &Call, way: &Way) -> Option<Fix> {
    let namespace = &*way.source.workload.namespace;
    if !namespace.is_empty() && world.objects.pod(namespace, &way.source.workload.name).is_some() {
        let known = world.objects.namespace(namespace).is_some();
        let change = |all: &mut Vec<Object>| {
            for object in all {
                if let Object::Namespace(n) = object
                    && n.metadata.name == namespace
                {
                    n.metadata.labels.insert(MODE.into(), "ambient".into());
                }
            }
        };
        let verified = known && turns(world, call, change);
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": { MODE: "ambient" } },
        });
        return Some(Fix { text: format!("bring namespace {namespace} into the mesh"), yaml: yaml(&object), verified });
    }
    let endpoint = way.answer.endpoints.iter().find(|e| !e.allowed)?;
    let (namespace, name) = endpoint.workload.split_once('/')?;
    let labels = world.objects.pod(namespace, name).map(|(_, p)| p.metadata.labels.clone()).unwrap_or_default();
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": format!("plaintext-{}", endpoint.address.port()), "namespace": namespace },
        "spec": {
            "selector": { "matchLabels": labels },
            "portLevelMtls": { endpoint.address.port().to_string(): { "mode": "PERMISSIVE" } },
        },
    });
    Some(added(world, call, format!("accept plaintext at port {} of {name}", endpoint.address.port()), &object))
}

/// The selector of the service, corrected to what most of its words select.
fn selector(world: &World, call: &Call, way: &Way) -> Option<Fix> {
    let service = way.destination.service.as_ref()?;
    let written = world.objects.service(&service.namespace, &service.name)?;
    let wanted = &written.spec.selector;
    let pods = world.objects.pods().filter(|(_, p)| *p.metadata.namespace == *service.namespace);
    let shared = |labels: &Labels| wanted.keys().filter(|key| labels.contains_key(key)).count();
    let nearest =
        pods.map(|(_, p)| &p.metadata.labels).max_by_key(|labels| shared(labels)).filter(|l| shared(l) > 0)?;
    let corrected: Labels = wanted.keys().filter_map(|key| Some((key.clone(), nearest.get(key)?.clone()))).collect();
    if selects(wanted, nearest) {
        return None;
    }
    let change = |all: &mut Vec<Object>| {
        for object in all {
            if let Object::Service(s) = object
                && (&s.metadata.namespace, &s.metadata.name) == (&written.metadata.namespace, &written.metadata.name)
            {
                s.spec.selector.clone_from(&corrected);
            }
        }
    };
    let verified = turns(world, call, change);
    let text = format!("correct the selector of Service {}/{}", service.namespace, service.name);
    Some(Fix { text, yaml: yaml(&json!({ "spec": { "selector": corrected } })), verified })
}

/// The port is declared as HTTP.
fn http_port(world: &World, call: &Call, way: &Way) -> Option<Fix> {
    let service = way.destination.service.as_ref()?;
    let port = way.destination.to.port();
    let change = |all: &mut Vec<Object>| {
        for object in all {
            if let Object::Service(s) = object
                && (*s.metadata.namespace == *service.namespace, *s.metadata.name == *service.name) == (true, true)
            {
                s.spec.ports.iter_mut().filter(|p| p.port == port).for_each(|p| p.app_protocol = Some("http".into()));
            }
        }
    };
    let verified = turns(world, call, change);
    let text = format!("declare port {port} of Service {}/{} as HTTP", service.namespace, service.name);
    let part = json!({ "spec": { "ports": [{ "port": port, "appProtocol": "http" }] } });
    Some(Fix { text, yaml: yaml(&part), verified })
}
