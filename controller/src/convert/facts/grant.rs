//! What an object may refer to in another namespace (ReferenceGrant).

use crate::convert::objects::{GATEWAY_API, Objects};
use karst_manifest::gatewayapi::*;

/// Is this service what a route of the namespace is attached to? Its callers may call it anyway: nobody has to grant it to them.
pub(crate) fn is_parent(parents: &[ParentRef], from: &str, ns: &str, name: &str) -> bool {
    parents
        .iter()
        .any(|p| p.kind.as_deref() == Some("Service") && p.name == name && p.namespace.as_deref().unwrap_or(from) == ns)
}

/// Does another namespace let routes of this kind and namespace refer to what it has (ReferenceGrant)?
pub(crate) fn granted(
    objects: &Objects<'_>,
    route: &str,
    from: &str,
    (ns, group, kind, name): (&str, &str, &str, &str),
) -> bool {
    objects.grants.iter().filter(|g| g.metadata.namespace == ns).any(|g| {
        let ours = |f: &GrantFrom| f.group == GATEWAY_API && f.kind == route && f.namespace == from;
        let to = |t: &GrantTo| t.group == group && t.kind == kind && t.name.as_ref().is_none_or(|n| n == name);
        g.spec.from.iter().any(ours) && g.spec.to.iter().any(to)
    })
}

/// May a Gateway, or a ListenerSet, of this namespace use a Secret of another? What is granted to the one is not to the other.
pub(crate) fn granted_secret(objects: &Objects<'_>, kind: &str, from: &str, ns: &str, name: &str) -> bool {
    granted(objects, kind, from, (ns, "", "Secret", name))
}
