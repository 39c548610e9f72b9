//! What selects pods, or is attached to something: whom it is for.

use crate::convert::objects::{FieldError, GATEWAY_API, ISTIO_NETWORKING, Objects, selects};
use karst_manifest::kinds::*;

/// What a policy may be attached to.
const TARGETS: [(&str, &str); 4] =
    [("Service", ""), ("ServiceEntry", ISTIO_NETWORKING), ("Gateway", GATEWAY_API), ("GatewayClass", GATEWAY_API)];

/// What selects pods, or is attached to something by `targetRefs`.
pub(crate) trait Attached {
    fn meta(&self) -> &Meta;
    fn selector(&self) -> Option<&Selector>;
    /// What it is attached to, and the path of the field that says so.
    fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)>;
    fn is_attached(&self) -> bool {
        self.targets().next().is_some()
    }
}
macro_rules! attached {
    ($($kind:ident),*) => { $(impl Attached for $kind {
        fn meta(&self) -> &Meta {
            &self.metadata
        }
        fn selector(&self) -> Option<&Selector> {
            self.spec.selector.as_ref()
        }
        fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
            self.spec.targets()
        }
    })* };
}
attached!(AuthorizationPolicy, RequestAuthentication, Telemetry);

/// Why it is for nobody, if it is not. (Else anybody could decide about waypoints of others.)
pub(crate) fn ineffective_reason(objects: &Objects<'_>, object: &impl Attached) -> Option<FieldError> {
    if object.selector().is_some() && object.is_attached() {
        return Some((
            "spec.selector".into(),
            "cannot be combined with targetRefs: remove one of them [KARST-0014]".into(),
        ));
    }
    let root = object.meta().namespace == objects.mesh.root_namespace;
    object.targets().find_map(|(path, t)| target(t, &path, root).err())
}

pub(crate) fn target(target: &TargetRef, at: &str, root: bool) -> Result<(), FieldError> {
    let Some((_, group)) = TARGETS.iter().find(|(k, _)| *k == target.kind) else {
        return Err((
            format!("{at}.kind"),
            format!(
                "unsupported target kind {:?}: use Service, ServiceEntry, Gateway or GatewayClass [KARST-0104]",
                target.kind
            ),
        ));
    };
    if target.group != *group && !(target.kind == "Service" && target.group == "core") {
        return Err((
            format!("{at}.group"),
            format!("{:?} is not the API group of {}: use {group:?} [KARST-0104]", target.group, target.kind),
        ));
    }
    if target.kind == "GatewayClass" && !root {
        return Err((
            format!("{at}.kind"),
            "GatewayClass can be a target only in the root namespace: use a Gateway, or move the policy to the root namespace [KARST-0105]".into(),
        ));
    }
    if target.namespace.as_deref().is_some_and(|n| !n.is_empty()) {
        return Err((
            format!("{at}.namespace"),
            "must be empty: a policy attaches only within its own namespace [KARST-0106]".into(),
        ));
    }
    Ok(())
}

/// Labels are compared as they stand: a wildcard would select nothing.
pub(crate) fn selector(selector: &Selector) -> Result<(), FieldError> {
    for (key, value) in &selector.match_labels {
        if value.contains('*') || key.contains('*') {
            return Err((
                format!("spec.selector.matchLabels[{key}]"),
                format!(
                    "{:?} contains a wildcard, which is not supported in labels: specify the whole value [KARST-0107]",
                    format!("{key}={value}")
                ),
            ));
        }
    }
    Ok(())
}

/// Is it for a pod of this Gateway?
pub(crate) fn applies(objects: &Objects<'_>, pod: &Pod, gateway: Option<&Gateway>, object: &impl Attached) -> bool {
    let own = object.meta().namespace == pod.metadata.namespace;
    if !object.is_attached() {
        let root = object.meta().namespace == objects.mesh.root_namespace;
        return (own || root) && object.selector().is_none_or(|s| selects(&s.match_labels, &pod.metadata.labels));
    }
    object.targets().any(|(_, t)| match t.kind.as_str() {
        "Gateway" => own && gateway.is_some_and(|g| g.metadata.name == t.name),
        "GatewayClass" => gateway.is_some_and(|g| is_class(objects, &object.meta().namespace, t, g)),
        _ => false,
    })
}

/// Does a target of an object of this namespace mean the class of a Gateway? Only in the root namespace: else anybody could decide
/// about all gateways, and were it with a policy that cannot be understood, which closes.
pub(crate) fn is_class(objects: &Objects<'_>, ns: &str, target: &TargetRef, gateway: &Gateway) -> bool {
    ns == objects.mesh.root_namespace && gateway.spec.gateway_class_name == target.name
}
