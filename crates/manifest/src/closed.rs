//! What stands for a stored object that cannot be read: nothing of what it restricts is open because of that.
//!
//! | kind | what stands for it |
//! |---|---|
//! | AuthorizationPolicy | by its action: allows nobody, refuses all, or audits nothing |
//! | PeerAuthentication | STRICT |
//! | RequestAuthentication | each token of each place that it names is refused (401); who has none has no principal |
//! | DestinationRule | the same without what cannot be read; if that may say how TLS is spoken, no connection |
//! | BackendTLSPolicy | no connection to its targets (Gateway API: an invalid policy) |
//! | XBackendTrafficPolicy | nothing of it is in force, and its status says so |
//! | routes | a refusal of whatever no other route is for |
//! | HTTPFilter | a refusal of the requests that it is for |
//!
//! Of the other kinds one that is missing opens nothing (`each_kind_that_is_refused_for_a_field_is_closed_or_opens_nothing`).

use crate::{kinds::Object, nulls::without_nulls, parse::value};
use serde_json::Value;
use serde_path_to_error::Segment;

/// So many parts of an object may be unreadable for the rest of it to be used.
const PARTS: usize = 64;
/// Settings of DestinationRules that say nothing about TLS.
const NOT_TLS: [&str; 4] = ["loadBalancer", "connectionPool", "outlierDetection", "retryBudget"];
/// What says whom an object is for.
const SCOPE: [&str; 6] = ["host", "exportTo", "workloadSelector", "selector", "targetRef", "targetRefs"];

/// Has the kind a closed form ([`closed`])?
pub fn has_closed(kind: &str) -> bool {
    closed_spec(kind, None).is_some() || ROUTES.contains(&kind) || PARTIAL.contains(&kind)
}

/// Kinds of routes: what they are for is nobody else's because they cannot be read.
const ROUTES: [&str; 6] = ["VirtualService", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "UDPRoute"];

/// Kinds of which the rest is in force without what cannot be read.
const PARTIAL: [&str; 5] =
    ["RequestAuthentication", "DestinationRule", "BackendTLSPolicy", "XBackendTrafficPolicy", "HTTPFilter"];

/// By what it was to do (`action`).
fn closed_spec(kind: &str, action: Option<&Value>) -> Option<Value> {
    match kind {
        "AuthorizationPolicy" => Some(match action.map(Value::as_str) {
            // Without rules it allows nothing.
            None | Some(Some("ALLOW")) => serde_json::json!({ "action": "ALLOW" }),
            Some(Some("AUDIT")) => serde_json::json!({ "action": "AUDIT" }),
            // It may have been to refuse, also what another one allows.
            Some(_) => serde_json::json!({ "action": "DENY", "rules": [{}] }),
        }),
        "PeerAuthentication" => Some(serde_json::json!({ "mtls": { "mode": "STRICT" } })),
        _ => None,
    }
}

/// What stands for a security object that cannot be read: the same object, closing what it selects (all of its namespace,
/// if not even that can be read); and for a route, which is refused whatever nothing else is for. None for other kinds.
pub fn closed(kind: &str, object: Value) -> Option<Object> {
    if ROUTES.contains(&kind) {
        return unread(kind, &object);
    }
    if PARTIAL.contains(&kind) {
        return partial(kind, object);
    }
    let spec = closed_spec(kind, object.pointer("/spec/action").filter(|a| !a.is_null()))?;
    let part = |p: &str| object.pointer(p).cloned().unwrap_or_default();
    let metadata = part("/metadata");
    let mut narrow = spec.clone();
    for field in ["selector", "targetRef", "targetRefs"] {
        if object.pointer(&format!("/spec/{field}")).is_some() && (kind == "AuthorizationPolicy" || field == "selector")
        {
            narrow[field] = part(&format!("/spec/{field}"));
        }
    }
    let object = |spec| {
        let whole = |status| serde_json::json!({ "metadata": metadata, "spec": spec, "status": status });
        // Its status stays, so that it is not written anew; if that can be read.
        value(kind, whole(part("/status"))).or_else(|_| value(kind, whole(Value::Null))).ok()
    };
    let mut out = object(&narrow).or_else(|| object(&spec))?;
    if let Object::AuthorizationPolicy(policy) = &mut out {
        policy.spec.is_unread = true;
    }
    Some(out)
}

/// A route for the same services, gateways and hosts, none of whose rules is read.
fn unread(kind: &str, object: &Value) -> Option<Object> {
    let part = |p: &str| object.pointer(p).cloned().unwrap_or_default();
    let has = |p: &str| object.pointer(p).and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    let rules = |p: &str| if has(p) { serde_json::json!([{}]) } else { Value::Null };
    let spec = match kind {
        "VirtualService" => serde_json::json!({
            "hosts": part("/spec/hosts"), "gateways": part("/spec/gateways"), "exportTo": part("/spec/exportTo"),
            "http": rules("/spec/http"), "tcp": rules("/spec/tcp"), "tls": rules("/spec/tls"),
        }),
        _ => serde_json::json!({ "parentRefs": part("/spec/parentRefs"), "hostnames": part("/spec/hostnames") }),
    };
    let whole = serde_json::json!({ "metadata": part("/metadata"), "spec": spec, "status": part("/status") });
    let mut object = value(kind, whole).ok()?;
    match &mut object {
        Object::VirtualService(r) => r.spec.is_unread = true,
        Object::HTTPRoute(r) => r.spec.is_unread = true,
        Object::GRPCRoute(r) => r.spec.is_unread = true,
        Object::TCPRoute(r) => r.spec.is_unread = true,
        Object::TLSRoute(r) => r.spec.is_unread = true,
        Object::UDPRoute(r) => r.spec.is_unread = true,
        _ => return None,
    }
    Some(object)
}

/// The same object without what cannot be read, marked so.
fn partial(kind: &str, mut object: Value) -> Option<Object> {
    without_nulls(&mut object);
    let mut scope = object.clone();
    if let Some(spec) = scope.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|field, _| SCOPE.contains(&field.as_str()));
    }
    let (mut read, left_out) = match readable(kind, &mut object) {
        Some(read) => read,
        // Too much of it. What is left out of its settings may be anything.
        None => {
            let (read, mut left_out) = readable(kind, &mut scope)?;
            left_out.push(Part { path: vec!["spec".into()], is_unknown: false });
            (read, left_out)
        }
    };
    match &mut read {
        Object::RequestAuthentication(a) => {
            a.spec.is_unread = true;
            // Where its tokens are looked for is not known, but that some are to be refused.
            if a.spec.jwt_rules.is_empty() {
                a.spec.jwt_rules.push(Default::default());
            }
            // Whom it is for is not known, either: all gateways and waypoints of its namespace.
            let is_nameless = a.spec.targets().any(|(_, target)| target.name.is_empty());
            if is_nameless || left_out.iter().any(Part::hides_targets) {
                (a.spec.selector, a.spec.target_ref, a.spec.target_refs) = (None, None, vec![]);
                a.spec.is_for_all = true;
            }
        }
        Object::DestinationRule(d) => d.spec.is_unread = left_out.iter().any(|part| part.hides_tls(&object)),
        Object::BackendTLSPolicy(p) => p.spec.is_unread = true,
        Object::XBackendTrafficPolicy(p) => p.spec.is_unread = true,
        Object::HTTPFilter(f) => f.spec.is_unread = true,
        _ => return None,
    }
    Some(read)
}

/// A part of an object that cannot be read.
struct Part {
    /// Fields, and places in lists, from the object on.
    path: Vec<String>,
    /// The field is not known at all; of the others the value is wrong.
    is_unknown: bool,
}

impl Part {
    /// May it say how TLS is spoken? Not what is about other things, nor a new field beside a `tls` that says it. `object`: without
    /// what is left out.
    fn hides_tls(&self, object: &Value) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        if path.first() != Some(&"spec") {
            return false;
        }
        let of_policy = |i: usize| {
            let above = |n: usize| i.checked_sub(n).and_then(|i| path.get(i));
            above(1) == Some(&"trafficPolicy") || above(2) == Some(&"portLevelSettings")
        };
        if path.iter().enumerate().any(|(i, field)| NOT_TLS.contains(field) && of_policy(i)) {
            return false;
        }
        let Some((_, around)) = path.split_last() else { return true };
        let around = object.pointer(&pointer(around));
        let says = |p: &str| around.and_then(|a| a.pointer(p)).is_some_and(Value::is_string);
        !self.is_unknown || !(says("/tls/mode") || says("/trafficPolicy/tls/mode"))
    }

    /// May it say whom a policy is for? (An unknown field can only narrow a target or selector that is otherwise read.)
    fn hides_targets(&self) -> bool {
        match self.path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["spec"] => true,
            ["spec", "selector" | "targetRef" | "targetRefs", ..] => !self.is_unknown,
            _ => false,
        }
    }
}

fn pointer(path: &[&str]) -> String {
    path.iter().map(|field| format!("/{}", field.replace('~', "~0").replace('/', "~1"))).collect()
}

/// Takes out of an object what cannot be read, part by part. None: too many parts, or it is none at all.
fn readable(kind: &str, object: &mut Value) -> Option<(Object, Vec<Part>)> {
    let mut left_out = vec![];
    while left_out.len() < PARTS {
        let mut track = serde_path_to_error::Track::new();
        let error = match Object::read(kind, serde_path_to_error::Deserializer::new(&*object, &mut track))? {
            Ok(read) => return Some((read, left_out)),
            Err(e) => e.to_string(),
        };
        let path = track.path();
        let path = path.iter().map(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        let path: Vec<String> = path.collect::<Option<_>>()?;
        remove(object, &path)?;
        left_out.push(Part { path, is_unknown: error.starts_with("unknown field") });
    }
    None
}

fn remove(object: &mut Value, path: &[String]) -> Option<()> {
    let (last, around) = path.split_last()?;
    let around: Vec<&str> = around.iter().map(String::as_str).collect();
    match object.pointer_mut(&pointer(&around))? {
        Value::Object(fields) => fields.remove(last).map(drop),
        Value::Array(all) => {
            let place = last.parse().ok().filter(|place| *place < all.len())?;
            all.remove(place);
            Some(())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_closed() {
        // It closes what it selects; everything, if that cannot be read either.
        for (selector, labels) in
            [(serde_json::json!({ "matchLabels": { "app": "a" } }), 1), (serde_json::json!({ "labels": {} }), 0)]
        {
            let v = serde_json::json!({ "metadata": { "name": "p", "namespace": "n" }, "spec": { "action": "NEW", "selector": selector, "rules": [{ "form": [] }] } });
            let Some(Object::AuthorizationPolicy(a)) = closed("AuthorizationPolicy", v) else { panic!("no policy") };
            assert_eq!((a.spec.action.as_deref(), a.spec.rules.len(), a.spec.is_unread), (Some("DENY"), 1, true));
            assert_eq!(a.spec.selector.map_or(0, |s| s.match_labels.len()), labels);
        }
        // What was to refuse does so, whatever another one allows; what was to let in lets in nobody.
        for (action, closed_by) in [
            (serde_json::json!("DENY"), ("DENY", 1)),
            (serde_json::json!(5), ("DENY", 1)),
            (serde_json::json!("ALLOW"), ("ALLOW", 0)),
            (Value::Null, ("ALLOW", 0)),
            (serde_json::json!("AUDIT"), ("AUDIT", 0)),
        ] {
            let v = serde_json::json!({ "metadata": { "name": "p", "namespace": "n" }, "spec": { "action": action, "rules": [{ "form": [] }] } });
            let Some(Object::AuthorizationPolicy(a)) = closed("AuthorizationPolicy", v) else { panic!("no policy") };
            assert_eq!((a.spec.action.as_deref().unwrap_or("ALLOW"), a.spec.rules.len()), closed_by, "{action}");
        }
        assert!(closed("Pod", serde_json::json!({})).is_none());
        // A route stays one for the same services, with nothing of its rules; its status stays, so that it is not written anew.
        let status = serde_json::json!({ "parents": [{ "parentRef": { "name": "s" }, "controllerName": "c" }] });
        let v = serde_json::json!({ "metadata": { "name": "r", "namespace": "n" }, "spec": { "parentRefs": [{ "name": "s" }], "rules": [{ "newer": 1 }] }, "status": status });
        let Some(Object::HTTPRoute(r)) = closed("HTTPRoute", v) else { panic!("no route") };
        assert_eq!((r.spec.is_unread, r.spec.parent_refs.len(), r.spec.rules.len()), (true, 1, 0));
        assert_eq!(r.status.parents.len(), 1);
    }

    fn stands_for(kind: &str, spec: &str) -> Object {
        let spec: Value = serde_yaml_ng::from_str(spec).unwrap();
        let object = serde_json::json!({ "metadata": { "name": "x", "namespace": "n" }, "spec": spec });
        assert!(value(kind, object.clone()).is_err(), "{kind} {object} can be read");
        closed(kind, object).unwrap_or_else(|| panic!("nothing stands for {kind}"))
    }

    #[test]
    fn a_request_authentication_stays_for_whom_it_was_for_with_the_places_of_its_tokens() {
        for (spec, targets, rules, is_for_all) in [
            ("{new: 1}", 0, 1, false),
            ("{new: 1, targetRefs: [{kind: Service, name: s}], jwtRules: [{issuer: a}, {issuer: b}]}", 1, 2, false),
            ("{targetRefs: [{kind: Gateway, name: g, new: x}], jwtRules: [{issuer: a}]}", 1, 1, false),
            ("{targetRefs: [{kind: Gateway, new: x}], jwtRules: [{issuer: a}]}", 0, 1, true),
            ("{targetRefs: [{kind: Gateway, name: [g]}]}", 0, 1, true),
            ("{targetRef: 1, jwtRules: 1}", 0, 1, true),
            ("{selector: {labels: {}}}", 0, 1, false),
            ("1", 0, 1, true),
        ] {
            let Object::RequestAuthentication(a) = stands_for("RequestAuthentication", spec) else { panic!("{spec}") };
            let is = (a.spec.targets().count(), a.spec.jwt_rules.len(), a.spec.is_for_all);
            assert_eq!((is, a.spec.is_unread), ((targets, rules, is_for_all), true), "{spec}");
        }
        let fields: Vec<String> = (0..2 * PARTS).map(|i| format!("n{i}: 1")).collect();
        let long = format!("{{targetRefs: [{{kind: Service, name: s}}], {}}}", fields.join(", "));
        let Object::RequestAuthentication(a) = stands_for("RequestAuthentication", &long) else {
            panic!("another kind")
        };
        assert!(a.spec.is_unread && a.spec.is_for_all, "too much of it");
        let rule = "{jwtRules: [{issuer: a, fromHeaders: [{name: x, new: 1}], outputPayloadToHeader: y, new: 1}]}";
        let Object::RequestAuthentication(a) = stands_for("RequestAuthentication", rule) else {
            panic!("another kind")
        };
        let rule = &a.spec.jwt_rules[0];
        assert_eq!((&*rule.from_headers[0].name, &*rule.output_payload_to_header), ("x", "y"));
    }

    #[test]
    fn a_destination_rule_is_broken_by_what_may_be_about_tls_and_by_nothing_else() {
        for (spec, is_unread) in [
            ("{host: a, new: 1}", true),
            ("{host: a, trafficPolicy: 1}", true),
            ("{host: a, trafficPolicy: {new: 1}}", true),
            ("{host: a, trafficPolicy: {tls: {mode: SIMPLE, new: 1}}}", true),
            ("{host: a, trafficPolicy: {tls: {mode: 1}}}", true),
            ("{host: a, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: 1}}", true),
            ("{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, new: 1}]}}", true),
            ("{host: a, subsets: [{name: v, trafficPolicy: {tls: {new: 1}}}]}", true),
            ("{host: a, subsets: [{name: v, new: {}}]}", true),
            ("{host: a, subsets: [{name: v, labels: {loadBalancer: []}}]}", true),
            // What is said of TLS is read.
            ("{host: a, new: 1, trafficPolicy: {tls: {mode: SIMPLE}}}", false),
            ("{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, new: 1}}", false),
            ("{host: a, trafficPolicy: {loadBalancer: {new: 1}, connectionPool: {tcp: {new: 1}}}}", false),
            ("{host: a, trafficPolicy: {outlierDetection: 1, retryBudget: {new: 1}}}", false),
            ("{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, loadBalancer: {new: 1}}]}}", false),
        ] {
            let Object::DestinationRule(d) = stands_for("DestinationRule", spec) else { panic!("{spec}") };
            assert_eq!((&*d.spec.host, d.spec.is_unread), ("a", is_unread), "{spec}");
        }
        let both = "{host: a, trafficPolicy: {tls: {mode: SIMPLE}, loadBalancer: {simple: RANDOM, new: 1}}}";
        let Object::DestinationRule(d) = stands_for("DestinationRule", both) else { panic!("another kind") };
        let policy = d.spec.traffic_policy.unwrap();
        assert_eq!(policy.tls.unwrap().mode.as_deref(), Some("SIMPLE"));
        assert_eq!(policy.load_balancer.unwrap().simple.as_deref(), Some("RANDOM"));
    }

    #[test]
    fn a_backend_tls_policy_stays_for_its_targets() {
        for (spec, targets) in [
            ("{new: 1, targetRefs: [{kind: Service, name: s}]}", 1),
            ("{targetRefs: [{kind: Service, name: s, sectionName: a, new: 1}], validation: {hostname: a, new: 1}}", 1),
            ("{targetRefs: [{kind: Service, name: s}, 1], validation: 1}", 1),
        ] {
            let Object::BackendTLSPolicy(p) = stands_for("BackendTLSPolicy", spec) else { panic!("{spec}") };
            assert_eq!((p.spec.target_refs.len(), p.spec.is_unread), (targets, true), "{spec}");
        }
    }

    #[test]
    fn a_backend_traffic_policy_stays_for_its_targets() {
        for (spec, targets) in [
            ("{new: 1, targetRefs: [{group: '', kind: Service, name: s}]}", 1),
            ("{targetRefs: [{group: '', kind: Service, name: s}], retryConstraint: {budget: {percent: x}}}", 1),
        ] {
            let Object::XBackendTrafficPolicy(p) = stands_for("XBackendTrafficPolicy", spec) else { panic!("{spec}") };
            assert_eq!((p.spec.target_refs.len(), p.spec.is_unread), (targets, true), "{spec}");
        }
    }

    #[test]
    fn a_filter_stays_for_its_targets() {
        for (spec, targets) in [
            ("{new: 1}", 0),
            ("{new: 1, targetRefs: [{kind: Service, name: s}]}", 1),
            ("{targetRefs: [{kind: Service, name: s, new: 1}], rateLimits: [{requests: x}]}", 1),
            ("{targetRefs: [{kind: Service, name: s}, 1], maxRequestBytes: all}", 1),
        ] {
            let Object::HTTPFilter(f) = stands_for("HTTPFilter", spec) else { panic!("{spec}") };
            assert_eq!((f.spec.target_refs.len(), f.spec.is_unread), (targets, true), "{spec}");
        }
    }

    /// A kind that is given `deny_unknown_fields` needs an answer here to what its absence opens.
    #[test]
    fn each_kind_that_is_refused_for_a_field_is_closed_or_opens_nothing() {
        for (kind, ..) in crate::kinds::KINDS {
            let object = serde_json::json!({ "metadata": { "name": "x", "namespace": "n" }, "spec": { "isNew": 1 } });
            let is_refused = value(kind, object.clone()).is_err();
            // A port that is not listened on; what is logged, and no decision.
            let opens_nothing = matches!(*kind, "IstioGateway" | "Telemetry");
            assert!(!is_refused || opens_nothing || closed(kind, object).is_some(), "{kind} vanishes");
        }
    }
}
