//! `check` and `x precheck`: can the mesh be installed here, or, where it is, is everything healthy.

use crate::{
    cluster::{Cluster, Resource, failed},
    output::{Cell, Format, Table, Tone},
    problem::{Exit, Problem},
    session::Session,
    verbs::waypoint::gateways_without_program,
};
use clap::Args;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, ResourceExt, api::PostParams};
use serde::Serialize;
use serde_json::Value;

/// Oldest minor version of Kubernetes 1.x that the charts take (kubeVersion).
const OLDEST: u32 = 30;
const CRD: Resource =
    Resource::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions");
const DAEMON_SET: Resource = Resource::new("apps", "v1", "DaemonSet", "daemonsets");
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

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst check                before an installation: what would be in its way
                             after it: is every component healthy
  karst check -o json

Ends with 79 if something must be repaired. The kernel of the nodes is looked at by the node agent, whose pod
is not ready where it does not fit.")]
pub struct Check {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What was looked at, and how it is.
#[derive(Debug, Serialize)]
struct Looked {
    what: String,
    status: Status,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Status {
    Ok,
    Warning,
    Error,
}

impl Looked {
    fn new(what: impl Into<String>, status: Status, message: impl Into<String>) -> Self {
        Self { what: what.into(), status, message: message.into() }
    }
}

impl Check {
    /// Looks, and prints.
    ///
    /// # Errors
    /// If something must be repaired, or the cluster cannot be asked.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let place = cluster.istio_namespace.clone();
        let control_plane = cluster.object(Resource::DEPLOYMENT, Some(&place), "istiod").await?;
        let mut all = vec![version(&cluster).await?];
        all.extend(gateway_api(&cluster).await?);
        if control_plane.is_some() {
            all.extend(components(&cluster, &place).await?);
        } else {
            all.extend(rights(&cluster, &place).await?);
            all.extend(leftovers(&cluster).await?);
        }
        let mut table = Table::new(&["CHECK", "STATUS", "MESSAGE"]);
        for looked in &all {
            let (text, tone) = match looked.status {
                Status::Ok => ("ok", Tone::Good),
                Status::Warning => ("warning", Tone::Warning),
                Status::Error => ("error", Tone::Bad),
            };
            table.row([looked.what.clone().into(), Cell::new(text, tone), looked.message.clone().into()]);
        }
        session.show(self.output, &table, &all)?;
        let errors = all.iter().filter(|looked| looked.status == Status::Error).count();
        if errors > 0 {
            return Err(Problem::new(format!("check: {errors} errors"))
                .next("each names the fix")
                .exit(Exit::Findings));
        }
        if self.output == Format::Table {
            session.line(match control_plane {
                Some(_) => "\u{2714} The mesh is healthy.",
                None => "\u{2714} No issues found. The mesh can be installed or upgraded here.",
            })?;
        }
        Ok(())
    }
}

async fn version(cluster: &Cluster) -> Result<Looked, Problem> {
    let info =
        cluster.client().apiserver_version().await.map_err(|e| failed("cannot ask for Kubernetes' version", &e))?;
    Ok(judge_version(&info.major, &info.minor))
}

fn judge_version(major: &str, minor: &str) -> Looked {
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    let (what, number) = ("Kubernetes version", digits.parse::<u32>().ok());
    match (major, number) {
        ("1", Some(number)) if number >= OLDEST => Looked::new(what, Status::Ok, format!("1.{number}")),
        _ => {
            let message = format!("{major}.{minor} is older than 1.{OLDEST}: upgrade Kubernetes first");
            Looked::new(what, Status::Error, message)
        }
    }
}

async fn gateway_api(cluster: &Cluster) -> Result<Vec<Looked>, Problem> {
    let what = "Gateway API CRDs";
    let found = cluster.object(CRD, None, "gateways.gateway.networking.k8s.io").await?;
    let Some(crd) = found else {
        let message = "not installed: waypoints and Gateways need them; \
                       install release v1.4.0 or newer of kubernetes-sigs/gateway-api (standard channel)";
        return Ok(vec![Looked::new(what, Status::Warning, message)]);
    };
    let version = crd.annotations().get("gateway.networking.k8s.io/bundle-version").cloned().unwrap_or_default();
    let served = crd.data.pointer("/spec/versions").and_then(Value::as_array);
    let has_v1 = served.into_iter().flatten().any(|version| {
        version.get("name").and_then(Value::as_str) == Some("v1") && version.get("served") == Some(&Value::Bool(true))
    });
    Ok(vec![match has_v1 {
        true => Looked::new(what, Status::Ok, version),
        false => Looked::new(what, Status::Error, format!("{version} does not serve v1: install v1.4.0 or newer")),
    }])
}

async fn rights(cluster: &Cluster, place: &str) -> Result<Vec<Looked>, Problem> {
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
    Ok(vec![match missing.is_empty() {
        true => Looked::new("rights of this user", Status::Ok, "may create all that an installation has"),
        false => {
            let message = format!("may not create {}: install as a cluster administrator", missing.join(", "));
            Looked::new("rights of this user", Status::Error, message)
        }
    }])
}

/// What an earlier installation of Istio has left.
async fn leftovers(cluster: &Cluster) -> Result<Vec<Looked>, Problem> {
    let mut out = vec![];
    let crds = cluster.list(CRD, None, "").await?.unwrap_or_default();
    let istio = crds.iter().filter(|crd| crd.name_any().ends_with(".istio.io")).count();
    if istio > 0 {
        out.push(Looked::new("CRDs of Istio", Status::Ok, format!("{istio} are there and will be used")));
    }
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
    let pods = cluster.list(Resource::new("", "v1", "Pod", "pods"), None, "").await?.unwrap_or_default();
    let has_sidecar = |pod: &kube::api::DynamicObject| {
        let names = |list: &str| pod.data.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let all = [names("/spec/containers"), names("/spec/initContainers")].concat();
        all.iter().any(|container| container.get("name").and_then(Value::as_str) == Some("istio-proxy"))
            && pod.labels().get("gateway.networking.k8s.io/gateway-name").is_none()
    };
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

async fn components(cluster: &Cluster, place: &str) -> Result<Vec<Looked>, Problem> {
    let mut out = vec![];
    for (resource, name, wanted, ready) in [
        (Resource::DEPLOYMENT, "istiod", "/spec/replicas", "/status/readyReplicas"),
        (DAEMON_SET, "istio-cni-node", "/status/desiredNumberScheduled", "/status/numberReady"),
        (DAEMON_SET, "ztunnel", "/status/desiredNumberScheduled", "/status/numberReady"),
    ] {
        let Some(object) = cluster.object(resource, Some(place), name).await? else {
            let message =
                format!("not installed in namespace {place}: install its chart, or name the namespace with -i");
            out.push(Looked::new(name, Status::Error, message));
            continue;
        };
        let number = |pointer: &str| object.data.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        out.push(judge_ready(name, place, number(wanted), number(ready)));
    }
    for (namespace, name, message) in gateways_without_program(cluster).await? {
        out.push(Looked::new(format!("gateway {namespace}/{name}"), Status::Error, message));
    }
    Ok(out)
}

fn judge_ready(name: &str, place: &str, wanted: u64, ready: u64) -> Looked {
    match ready {
        _ if wanted == 0 => Looked::new(name, Status::Error, "no pod is wanted: no node fits, or it is scaled to 0"),
        _ if ready >= wanted => Looked::new(name, Status::Ok, format!("{ready}/{wanted} ready")),
        _ => {
            let message = format!("{ready}/{wanted} ready: `kubectl -n {place} get pods` and their logs say why");
            Looked::new(name, Status::Error, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_may_have_a_plus() {
        let status = |major, minor| judge_version(major, minor).status;
        assert_eq!([status("1", "30"), status("1", "34+")], [Status::Ok, Status::Ok]);
        assert_eq!([status("1", "29"), status("1", "x"), status("2", "0")], [Status::Error; 3]);
    }

    #[test]
    fn a_component_is_healthy_if_all_of_its_pods_are_ready() {
        let status = |wanted, ready| judge_ready("ztunnel", "istio-system", wanted, ready).status;
        assert_eq!([status(2, 2), status(2, 1), status(0, 0)], [Status::Ok, Status::Error, Status::Error]);
    }
}
