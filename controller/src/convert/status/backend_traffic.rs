//! The statuses of XBackendTrafficPolicies: one entry for each Service that is a target (as Istio has it: who sends there is nobody's
//! matter but the proxies').

use crate::convert::{
    compilation::routes::backend_traffic::{ACCEPTED, Verdict, evaluate},
    objects::{GATEWAY_API_EXPERIMENTAL, Objects},
    status::{
        ancestors,
        condition::{Condition, Write, reference},
    },
};
use karst_kube::Ref;
use karst_manifest::gatewayapi::{ParentRef, PolicyTarget};

/// All that differ.
pub(crate) fn compile(objects: &Objects<'_>, now: &str) -> Vec<Write> {
    evaluate(objects).iter().filter_map(|verdict| one(verdict, now)).collect()
}

fn one(verdict: &Verdict<'_>, now: &str) -> Option<Write> {
    let meta = &verdict.policy.metadata;
    let said: Vec<Condition> = verdict
        .targets
        .iter()
        .map(|(_, (reason, message))| Condition {
            kind: "Accepted",
            status: *reason == ACCEPTED,
            reason,
            message: message.clone(),
        })
        .collect();
    let targets = verdict.targets.iter().map(|(target, _)| ancestor(&meta.namespace, target));
    let wanted = targets.zip(said.iter().map(std::slice::from_ref)).collect();
    let to = Ref { version: "v1alpha1", ..reference(GATEWAY_API_EXPERIMENTAL, "XBackendTrafficPolicy", meta) };
    ancestors::write(to, meta, &verdict.policy.status.ancestors, wanted, now)
}

/// What an entry is of. (A group that is left out would be that of Gateways.)
fn ancestor(namespace: &str, target: &PolicyTarget) -> ParentRef {
    let group = if target.group == "core" { "" } else { &target.group };
    ParentRef {
        group: Some(group.into()),
        kind: Some(target.kind.clone()),
        namespace: Some(namespace.into()),
        name: target.name.clone(),
        ..ParentRef::default()
    }
}
