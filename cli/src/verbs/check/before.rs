//! Before an installation: what this user may do, and what is there of Istio.

use super::{
    after::is_ours,
    looked::{DAEMON_SET, Looked, Status},
};
use crate::{
    cluster::{Cluster, Resource, failed},
    problem::Problem,
};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use karst_install::cluster::{ClusterError, Target, Used, used};
use kube::{Api, ResourceExt, api::DynamicObject, api::PostParams};
use serde_json::Value;

const WEBHOOK: Resource = Resource::new(
    "admissionregistration.k8s.io",
    "v1",
    "MutatingWebhookConfiguration",
    "mutatingwebhookconfigurations",
);
/// What an installation creates: group, resource, whether in the mesh's namespace.
const CREATED: &[(&str, &str, bool)] = &[
    ("", "namespaces", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("", "configmaps", true),
    ("apps", "deployments", true),
    ("apps", "daemonsets", true),
];

/// Whether this user may create all that an installation has.
pub async fn rights(cluster: &Cluster, place: &str) -> Result<Looked, Problem> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client());
    let mut missing = vec![];
    for (group, resource, is_namespaced) in CREATED {
        let attributes = ResourceAttributes {
            group: Some((*group).into()),
            resource: Some((*resource).into()),
            namespace: is_namespaced.then(|| place.to_owned()),
            verb: Some("create".into()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let ask = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = api.create(&PostParams::default(), &ask).await;
        let status = answer.map_err(|e| failed("cannot ask for this user's rights", &e))?.status;
        if !status.is_some_and(|status| status.allowed) {
            missing.push(*resource);
        }
    }
    let what = "rights of this user";
    Ok(match missing.is_empty() {
        true => Looked::new(what, Status::Ok, "may create all that an installation has"),
        false => {
            let message = format!("may not create {}: install as a cluster administrator", missing.join(", "));
            Looked::new(what, Status::Error, message)
        }
    })
}

/// What Istio, or an earlier installation of it, has there.
pub async fn leftovers(cluster: &Cluster, place: &str) -> Result<Vec<Looked>, Problem> {
    let mut out = vec![];
    for (resource, name, title) in [
        (Resource::DEPLOYMENT, "istiod", "Istio's control plane"),
        (DAEMON_SET, "ztunnel", "Istio's ztunnel"),
        (DAEMON_SET, "istio-cni-node", "Istio's node agent"),
    ] {
        let there = cluster.object(resource, Some(place), name).await?;
        // A ztunnel of ours cannot be told from Istio's; without a control plane it is a leftover all the same.
        if there.is_some_and(|there| !is_ours(&there)) {
            let message = format!(
                "{} {place}/{name} is there: it has the name of ours. Remove Istio first (`istioctl uninstall --purge` \
                 or `helm uninstall`), or install in another namespace with -i; docs/coming-from-istio.md has the way",
                resource.kind
            );
            out.push(Looked::new(title, Status::Error, message));
        }
    }
    let used = used(&Target::new(cluster.client())).await.map_err(|error| match &error {
        ClusterError::Request { what, error } => failed(what.clone(), error),
        other => Problem::new("cannot look at CRDs").because(other),
    })?;
    out.extend(crds(&used));
    for webhook in cluster.list(WEBHOOK, None, "").await?.unwrap_or_default() {
        let name = webhook.name_any();
        if name.starts_with("istio-") && name.contains("injector") {
            let message = format!(
                "{name} is there: pods would get sidecars of another control plane; delete it when that is \
                 gone: `kubectl delete mutatingwebhookconfiguration {name}`"
            );
            out.push(Looked::new("webhooks of Istio", Status::Warning, message));
        }
    }
    let pods = cluster.list(Resource::POD, None, "").await?.unwrap_or_default();
    let sidecars = pods.iter().filter(|pod| has_sidecar(pod)).count();
    if sidecars > 0 {
        let message =
            format!("{sidecars} pods have a container istio-proxy: restart them without injection before they join");
        out.push(Looked::new("sidecars", Status::Warning, message));
    }
    if out.is_empty() {
        out.push(Looked::new("leftovers of Istio", Status::Ok, "none"));
    }
    Ok(out)
}

/// CRDs that are there and are not changed by an installation: it uses them, or refuses, as it is said here.
fn crds(used: &[Used]) -> Vec<Looked> {
    let what = "CRDs of others";
    let refusals = used.iter().filter_map(Used::refusal);
    let mut out: Vec<Looked> = refusals.map(|refusal| Looked::new(what, Status::Error, refusal.to_string())).collect();
    let good: Vec<&Used> = used.iter().filter(|used| used.lacks.needed.is_empty()).collect();
    if !good.is_empty() {
        let dropped: Vec<String> = good
            .iter()
            .filter(|used| !used.lacks.dropped.is_empty())
            .map(|used| format!("{} without {}", used.name, used.lacks.dropped.join(", ")))
            .collect();
        let without = match dropped.as_slice() {
            [] => String::new(),
            all => format!("; these fields of objects are dropped by the API server: {}", all.join("; ")),
        };
        let message = format!("{} are there and will be used as they are{without}", good.len());
        out.push(Looked::new(what, Status::Ok, message));
    }
    out
}

fn has_sidecar(pod: &DynamicObject) -> bool {
    let names = |list: &str| pod.data.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
    let all = [names("/spec/containers"), names("/spec/initContainers")].concat();
    all.iter().any(|container| container.get("name").and_then(Value::as_str) == Some("istio-proxy"))
        && pod.labels().get("gateway.networking.k8s.io/gateway-name").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_install::cluster::Lacks;

    #[test]
    fn crds_of_others_are_used_unless_they_lack_what_is_needed() {
        let used = |name: &str, needed: &[&str], dropped: &[&str]| {
            let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
            let lacks = Lacks { needed: texts(needed), dropped: texts(dropped) };
            Used { name: name.into(), whose: "was not installed by karst".into(), lacks }
        };
        let all = [used("a", &[], &[]), used("b", &[], &["spec.x[].y"]), used("c", &["spec.targetRefs"], &[])];
        let told = crds(&all);
        assert_eq!(told.iter().map(|one| one.status).collect::<Vec<_>>(), [Status::Error, Status::Ok]);
        assert!(told[0].message.contains("CustomResourceDefinition c was not installed by karst"), "{told:?}");
        assert!(told[0].message.contains("it lacks spec.targetRefs"), "{told:?}");
        assert!(told[1].message.starts_with("2 are there and will be used") && told[1].message.contains("b without"));
        assert!(crds(&[]).is_empty());
    }
}
