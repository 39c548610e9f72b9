//! The control plane's page /debug/syncz: its proxies, and what each has acknowledged. Istio's form is a list; one of
//! Karst before it took that form answers with an object.

use crate::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A proxy that is connected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proxy {
    /// Its cluster.
    pub cluster_id: String,
    /// Its node id: `pod.namespace`, or Envoy's `type~address~pod.namespace~domain`.
    pub proxy: String,
    /// `ztunnel`, `waypoint`, `router`.
    pub proxy_type: String,
    /// Its version.
    pub istio_version: String,
    /// Of each type of resource, by its URL.
    pub resources: BTreeMap<String, Resource>,
    /// Envoy's types, each `<type>_sent` and `<type>_acked`, and what else is said.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// One type of resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resource {
    /// Nonce or version that was sent last.
    pub sent: String,
    /// The one that was acknowledged last.
    pub acked: String,
    /// When it was sent, RFC 3339.
    pub sent_time: Option<String>,
    /// Why the last one was not taken.
    pub last_error: String,
}

/// Of a type: whether the proxy has what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has acknowledged the newest.
    Synced,
    /// Sent, and not acknowledged yet.
    Stale,
    /// Nothing was sent.
    NotSent,
    /// It has refused the newest.
    Error,
}

impl State {
    /// As istioctl prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Synced => "SYNCED",
            Self::Stale => "STALE",
            Self::NotSent => "NOT SENT",
            Self::Error => "ERROR",
        }
    }
}

impl Resource {
    /// Whether the proxy has it.
    pub fn state(&self) -> State {
        match () {
            () if !self.last_error.is_empty() => State::Error,
            () if self.sent.is_empty() => State::NotSent,
            () if self.sent == self.acked => State::Synced,
            () => State::Stale,
        }
    }
}

impl Proxy {
    /// The page's proxies.
    ///
    /// # Errors
    /// If it is neither form.
    pub fn list(page: Value) -> Result<Vec<Self>, Problem> {
        let wrong = |why: String| {
            Problem::new("/debug/syncz of the control plane is not what was expected")
                .because(why)
                .next("client and control plane may be of different versions: `karst version`")
        };
        match page {
            Value::Array(_) => serde_json::from_value(page).map_err(|e| wrong(e.to_string())),
            Value::Object(mut object) => match object.remove("proxies") {
                Some(Value::Array(all)) => Ok(all.iter().map(Self::from_object).collect()),
                _ => Err(wrong("neither a list nor an object with proxies".into())),
            },
            _ => Err(wrong("neither a list nor an object".into())),
        }
    }

    fn from_object(one: &Value) -> Self {
        let proxy = one.get("proxy").and_then(Value::as_str).unwrap_or_default().to_owned();
        let acked = one.get("acked").map(ToString::to_string).unwrap_or_default();
        let address = "type.googleapis.com/istio.workload.Address".to_owned();
        let resource = Resource { sent: acked.clone(), acked, ..Resource::default() };
        Self { proxy, resources: BTreeMap::from([(address, resource)]), ..Self::default() }
    }

    /// `pod.namespace`.
    pub fn name(&self) -> String {
        self.proxy.split('~').nth(2).unwrap_or(&self.proxy).to_owned()
    }

    /// What it has subscribed to, each type by istioctl's short name, with its state.
    pub fn types(&self) -> Vec<(String, State)> {
        let mut out: Vec<(String, State)> =
            self.resources.iter().map(|(url, resource)| (short(url), resource.state())).collect();
        for (field, name) in [("cluster", "CDS"), ("listener", "LDS"), ("endpoint", "EDS"), ("route", "RDS")] {
            let text =
                |what: &str| self.other.get(&format!("{field}_{what}")).and_then(Value::as_str).unwrap_or_default();
            let (sent, acked) = (text("sent").to_owned(), text("acked").to_owned());
            if !sent.is_empty() {
                out.push((name.into(), Resource { sent, acked, ..Resource::default() }.state()));
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out.dedup_by(|a, b| a.0 == b.0);
        out
    }
}

/// A type's URL as istioctl's columns name it; one that they do not know is its last part.
pub fn short(url: &str) -> String {
    let name = match url.rsplit('/').next().unwrap_or(url) {
        "envoy.config.cluster.v3.Cluster" => "CDS",
        "envoy.config.listener.v3.Listener" => "LDS",
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => "EDS",
        "envoy.config.route.v3.RouteConfiguration" => "RDS",
        "envoy.extensions.transport_sockets.tls.v3.Secret" => "SDS",
        "istio.networking.nds.v1.NameTable" => "NDS",
        "istio.mesh.v1alpha1.ProxyConfig" => "PCDS",
        "envoy.config.core.v3.TypedExtensionConfig" => "ECDS",
        "istio.workload.Address" | "istio.workload.Workload" => "WDS",
        "istio.security.Authorization" => "WADS",
        other => other,
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn istios_list_is_read() {
        let page = json!([{
            "cluster_id": "Kubernetes", "proxy": "ztunnel~10.0.0.1~ztunnel-1.istio-system~x", "proxy_type": "ztunnel",
            "istio_version": "0.1.0", "cluster_sent": "",
            "resources": {
                "type.googleapis.com/istio.workload.Address": { "sent": "7", "acked": "7", "sentTime": "2026-01-01T00:00:00Z" },
                "type.googleapis.com/istio.security.Authorization": { "sent": "8", "acked": "7" },
            },
        }]);
        let proxies = Proxy::list(page).unwrap();
        assert_eq!(proxies[0].name(), "ztunnel-1.istio-system");
        assert_eq!(proxies[0].types(), [("WADS".to_owned(), State::Stale), ("WDS".to_owned(), State::Synced)]);
    }

    #[test]
    fn the_older_object_is_read() {
        let page = json!({ "version": 3, "manifests": "1f", "proxies": [{ "proxy": "z.istio-system", "acked": 3 }] });
        assert_eq!(Proxy::list(page).unwrap()[0].types(), [("WDS".to_owned(), State::Synced)]);
        assert!(Proxy::list(json!({ "a": 1 })).is_err());
    }

    #[test]
    fn a_refused_resource_is_an_error() {
        let resource = Resource { sent: "2".into(), last_error: "bad".into(), ..Resource::default() };
        assert_eq!((resource.state(), Resource::default().state()), (State::Error, State::NotSent));
    }
}
