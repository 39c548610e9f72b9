//! Which Gateways and pods are those of gateways, and how they find each other.

use crate::convert::objects::{INGRESS, INGRESS_CLASSES, Objects, selects};
use karst_manifest::kinds::*;
use std::collections::BTreeMap;

/// Is this Gateway one of ours that is no waypoint?
pub(crate) fn is_ingress(objects: &Objects<'_>, gateway: &Gateway) -> bool {
    match objects.classes.get(gateway.spec.gateway_class_name.as_str()) {
        Some(c) => c.spec.controller_name == INGRESS,
        // In files the class need not stand beside it.
        None => INGRESS_CLASSES.contains(&gateway.spec.gateway_class_name.as_str()),
    }
}

/// Is this a pod of a gateway? Then it decides about more than its own workload.
pub(crate) fn is_gateway(objects: &Objects<'_>, pod: &Pod) -> bool {
    let l = &pod.metadata.labels;
    l.contains_key(GATEWAY_NAME) || objects.istio_gateways.iter().any(|(_, g)| selected(g, l))
}

pub(crate) fn selected(gateway: &IstioGateway, labels: &Labels) -> bool {
    !gateway.spec.selector.is_empty() && selects(&gateway.spec.selector, labels)
}

/// Gateways by namespace and the label of their pods. (A label is shorter than the longest name.)
pub(crate) fn by_label<'a>(objects: &Objects<'a>) -> BTreeMap<(String, String), &'a Gateway> {
    let one = |g: &&'a Gateway| ((g.metadata.namespace.clone(), shortened(&g.metadata.name)), *g);
    objects.gateways.values().map(one).collect()
}

pub(crate) fn of_pod<'a>(named: &BTreeMap<(String, String), &'a Gateway>, pod: &Pod) -> Option<&'a Gateway> {
    let label = pod.metadata.labels.get(GATEWAY_NAME)?;
    named.get(&(pod.metadata.namespace.clone(), label.clone())).copied()
}

/// Longest name of what is made: pods' names and labels are derived from it.
pub(crate) const MAX_NAME: usize = 63;

/// A name that is short enough, and like no other.
pub(crate) fn shortened(full: &str) -> String {
    if full.len() <= MAX_NAME {
        return full.to_string();
    }
    let digest = format!("{:08x}", xxhash_rust::xxh64::xxh64(full.as_bytes(), 0) as u32);
    let start = full.get(..MAX_NAME - 9).unwrap_or("gateway").trim_end_matches(['-', '.']);
    format!("{start}-{digest}")
}
