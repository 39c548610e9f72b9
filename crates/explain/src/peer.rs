//! Which PeerAuthentication makes a workload refuse plaintext. The compiled policy does not say so: one stands for all that are
//! STRICT without ports. (Reference control-plane §2.7: the oldest wins, the workload's before the namespace's before the root's.)

use crate::{
    answer::Object,
    objects::{Objects, selects, shown},
};
use karst_manifest::{
    Object as Read,
    kinds::{Labels, Mode, PeerAuthentication},
    parse::Located,
};
use std::sync::Arc;

/// What the names of policies that are made of PeerAuthentications begin with.
const CONVERTED: &str = "converted_peer_authentication_";
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// The PeerAuthentication behind a compiled policy (`namespace/name`) for a pod; None: it is not made of any.
pub(crate) fn behind(objects: &Objects, root: &str, policy: &str, pod: (&str, &Labels)) -> Option<Option<Object>> {
    let (namespace, name) = policy.split_once('/')?;
    if let Some(name) = name.strip_prefix(CONVERTED) {
        return Some(objects.named("PeerAuthentication", namespace, name));
    }
    (name == STATIC_STRICT).then(|| strict(objects, root, pod).map(|o| shown(o)))
}

fn mode(policy: &PeerAuthentication) -> Mode {
    policy.spec.mtls.as_ref().map_or(Mode::Unset, |mtls| mtls.mode)
}

fn selector(policy: &PeerAuthentication) -> Option<&Labels> {
    policy.spec.selector.as_ref().map(|s| &s.match_labels).filter(|labels| !labels.is_empty())
}

fn strict<'a>(objects: &'a Objects, root: &str, (namespace, labels): (&str, &Labels)) -> Option<&'a Arc<Located>> {
    let mut all: Vec<(&Arc<Located>, &PeerAuthentication)> = objects
        .all("PeerAuthentication")
        .filter_map(|o| if let Read::PeerAuthentication(p) = &o.object { Some((o, &**p)) } else { None })
        .collect();
    all.sort_by_key(|(_, p)| {
        (p.metadata.creation_timestamp.clone(), p.metadata.namespace.clone(), p.metadata.name.clone())
    });
    let own = |p: &PeerAuthentication| {
        p.metadata.namespace == namespace && selector(p).is_some_and(|wanted| selects(wanted, labels))
    };
    let of_workload = all.iter().find(|(_, p)| own(p));
    let is_wide = |p: &PeerAuthentication, ns: &str| p.metadata.namespace == ns && selector(p).is_none();
    let of_namespace = all.iter().find(|(_, p)| namespace != root && is_wide(p, namespace));
    let of_root = all.iter().find(|(_, p)| is_wide(p, root) && mode(p) != Mode::Unset);
    let by_precedence = [of_workload, of_namespace, of_root].into_iter().flatten();
    let decides = by_precedence.into_iter().find(|(_, p)| mode(p) != Mode::Unset)?;
    (mode(decides.1) == Mode::Strict).then_some(decides.0)
}
