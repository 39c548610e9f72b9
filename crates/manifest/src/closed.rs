//! What stands for a stored object that cannot be read: nothing of what it restricts is open because of that.

use crate::{kinds::Object, parse::value};

/// Has the kind a closed form ([`closed`])?
pub fn has_closed(kind: &str) -> bool {
    closed_spec(kind, None).is_some() || ROUTES.contains(&kind)
}

/// Kinds of routes: what they are for is nobody else's because they cannot be read.
const ROUTES: [&str; 5] = ["VirtualService", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"];

/// By what it was to do (`action`).
fn closed_spec(kind: &str, action: Option<&serde_json::Value>) -> Option<serde_json::Value> {
    match kind {
        "AuthorizationPolicy" => Some(match action.map(serde_json::Value::as_str) {
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
pub fn closed(kind: &str, object: serde_json::Value) -> Option<Object> {
    if ROUTES.contains(&kind) {
        return unread(kind, &object);
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
    let object = |spec| value(kind, serde_json::json!({ "metadata": metadata, "spec": spec })).ok();
    object(narrow).or_else(|| object(spec))
}

/// A route for the same services, gateways and hosts, none of whose rules is read.
fn unread(kind: &str, object: &serde_json::Value) -> Option<Object> {
    let part = |p: &str| object.pointer(p).cloned().unwrap_or_default();
    let has = |p: &str| object.pointer(p).and_then(serde_json::Value::as_array).is_some_and(|a| !a.is_empty());
    let rules = |p: &str| if has(p) { serde_json::json!([{}]) } else { serde_json::Value::Null };
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
        _ => return None,
    }
    Some(object)
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
            assert_eq!((a.spec.action.as_deref(), a.spec.rules.len()), (Some("DENY"), 1));
            assert_eq!(a.spec.selector.map_or(0, |s| s.match_labels.len()), labels);
        }
        // What was to refuse does so, whatever another one allows; what was to let in lets in nobody.
        for (action, closed_by) in [
            (serde_json::json!("DENY"), ("DENY", 1)),
            (serde_json::json!(5), ("DENY", 1)),
            (serde_json::json!("ALLOW"), ("ALLOW", 0)),
            (serde_json::Value::Null, ("ALLOW", 0)),
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
}
