//! What makes a Gateway a waypoint.

use crate::{
    cluster::{Cluster, Resource},
    problem::Problem,
};
use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};
use std::time::Duration;

/// The Gateway API's Gateway.
pub const GATEWAY: Resource = Resource::new("gateway.networking.k8s.io", "v1", "Gateway", "gateways");
/// Class of waypoints.
pub const CLASS: &str = "istio-waypoint";
/// Label: for what traffic a waypoint is.
pub const FOR: &str = "istio.io/waypoint-for";
/// Label: which control plane it belongs to.
pub const REVISION: &str = "istio.io/rev";
/// Label: which waypoint is used.
pub const USE: &str = "istio.io/use-waypoint";
/// Between two looks at a waypoint that is not ready.
const LOOK: Duration = Duration::from_millis(500);

/// For what traffic a waypoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Traffic {
    /// Traffic to services
    Service,
    /// Traffic to pods by their addresses
    Workload,
    /// Both
    All,
    /// None (to try one without effect)
    None,
}

impl Traffic {
    fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// The Gateway.
pub fn manifest(name: &str, namespace: Option<&str>, traffic: Option<Traffic>, revision: Option<&str>) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    if let Some(traffic) = traffic {
        metadata["labels"][FOR] = traffic.name().into();
    }
    if let Some(revision) = revision.filter(|revision| !revision.is_empty()) {
        metadata["labels"][REVISION] = revision.into();
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": metadata,
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    })
}

/// The waypoints of a namespace, or of all.
pub async fn all(cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<DynamicObject>, Problem> {
    let Some(gateways) = cluster.list(GATEWAY, namespace, "").await? else { return Err(no_crds()) };
    Ok(gateways.into_iter().filter(is_waypoint).collect())
}

/// Gateways of this mesh's classes that are not programmed: namespace, name, why.
pub async fn not_programmed(cluster: &Cluster) -> Result<Vec<(String, String, String)>, Problem> {
    let all = cluster.list(GATEWAY, None, "").await?.unwrap_or_default();
    let class = |one: &DynamicObject| {
        one.data.pointer("/spec/gatewayClassName").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let ours = all.into_iter().filter(|one| [CLASS, "istio"].contains(&class(one).as_str()));
    let told = |one: DynamicObject| {
        let [status, reason, message] = condition(&one, "Programmed").unwrap_or(["Unknown", "Unknown", "no status"]);
        let why = format!("not programmed: {reason}: {message}");
        (status != "True").then(|| (one.namespace().unwrap_or_default(), one.name_any(), why))
    };
    Ok(ours.filter_map(told).collect())
}

/// What to say where the API server does not know Gateways.
pub fn no_crds() -> Problem {
    Problem::new("the cluster does not have the Gateway API")
        .because("the CRD gateways.gateway.networking.k8s.io is not installed")
        .next("install the Gateway API's standard CRDs (release v1.4.0 or newer of kubernetes-sigs/gateway-api)")
}

/// Whether a Gateway is a waypoint.
pub fn is_waypoint(gateway: &DynamicObject) -> bool {
    gateway.data.pointer("/spec/gatewayClassName").and_then(Value::as_str) == Some(CLASS)
}

/// A condition of a Gateway: status, reason, message.
pub fn condition<'a>(gateway: &'a DynamicObject, kind: &str) -> Option<[&'a str; 3]> {
    let conditions = gateway.data.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|one| one.get("type").and_then(Value::as_str) == Some(kind))?;
    let field = |name: &str| found.get(name).and_then(Value::as_str).unwrap_or_default();
    Some([field("status"), field("reason"), field("message")])
}

/// Waits until a waypoint is programmed.
///
/// # Errors
/// If it is not in time; the problem has the reason that its status gives.
pub async fn wait(cluster: &Cluster, namespace: &str, name: &str, patience: Duration) -> Result<(), Problem> {
    let until = karst_rt::clock::Instant::now() + patience;
    loop {
        let gateway = cluster.object(GATEWAY, Some(namespace), name).await?;
        let status = gateway.as_ref().and_then(|gateway| condition(gateway, "Programmed"));
        if status.is_some_and(|[status, ..]| status == "True") {
            return Ok(());
        }
        if karst_rt::clock::Instant::now() >= until {
            let why = status.map_or_else(
                || "its status has no condition Programmed: no control plane has looked at it".to_owned(),
                |[_, reason, message]| format!("{reason}: {message}"),
            );
            let seconds = patience.as_secs();
            return Err(Problem::new(format!("waypoint {namespace}/{name} is not ready after {seconds} s"))
                .because(why)
                .next(format!(
                    "look at its pods: `kubectl -n {namespace} get pods -l \
                     gateway.networking.k8s.io/gateway-name={name}`"
                )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A label; empty if there is none.
pub fn label<'a>(gateway: &'a DynamicObject, name: &str) -> &'a str {
    gateway.labels().get(name).map(String::as_str).unwrap_or_default()
}

/// A duration as istioctl writes them: `90s`, `2m`, `1m30s`, or a number of seconds.
///
/// # Errors
/// What is wrong with it, for clap.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let (mut seconds, mut digits) = (0u64, String::new());
    for letter in text.chars() {
        let unit = match letter {
            '0'..='9' => {
                digits.push(letter);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return Err(DurationError),
        };
        let number: u64 = std::mem::take(&mut digits).parse().map_err(|_| DurationError)?;
        seconds = number.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or(DurationError)?;
    }
    if !digits.is_empty() {
        seconds = seconds.checked_add(digits.parse().map_err(|_| DurationError)?).ok_or(DurationError)?;
    } else if text.is_empty() {
        return Err(DurationError);
    }
    // A year: longer is a slip, and would overflow the clock.
    if seconds > 31_536_000 { Err(DurationError) } else { Ok(Duration::from_secs(seconds)) }
}

/// Not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration: write for example 90s, 2m or 1m30s, at most a year")]
pub struct DurationError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let seconds = |text: &str| duration(text).map(|d| d.as_secs());
        assert_eq!([seconds("90s"), seconds("1m30s"), seconds("2"), seconds("1h")], [Ok(90), Ok(90), Ok(2), Ok(3600)]);
        for wrong in ["", "s", "5x", "-1s", "99999999999999999999s", "9999999h"] {
            assert_eq!(seconds(wrong), Err(DurationError), "{wrong}");
        }
    }

    #[test]
    fn a_waypoint_is_istios_gateway() {
        let gateway = manifest("waypoint", Some("shop"), Some(Traffic::All), Some("canary"));
        assert_eq!(gateway.pointer("/metadata/labels/istio.io~1waypoint-for"), Some(&json!("all")));
        assert_eq!(gateway.pointer("/metadata/labels/istio.io~1rev"), Some(&json!("canary")));
        assert_eq!(gateway.pointer("/spec/gatewayClassName"), Some(&json!("istio-waypoint")));
        assert_eq!(
            gateway.pointer("/spec/listeners/0"),
            Some(&json!({ "name": "mesh", "port": 15008, "protocol": "HBONE" }))
        );
        assert_eq!(manifest("w", None, None, Some("")).pointer("/metadata"), Some(&json!({ "name": "w" })));
    }
}
