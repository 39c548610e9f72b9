//! Kubernetes' own objects.
#![allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]

use crate::{
    mesh_config,
    meta::{Labels, Meta, StatusCondition},
};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Namespace {
    #[serde(default)]
    pub metadata: Meta,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Node {
    #[serde(default)]
    pub metadata: Meta,
    #[serde(default)]
    pub spec: NodeSpec,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// What its pods have their addresses from; empty where the network plugin does not go by it.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ServiceAccount {
    #[serde(default)]
    pub metadata: Meta,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: Meta,
    /// Certificates, revocation lists, parameters of Gateways ([`PARAMETERS`]) and the mesh configuration only: nothing else is
    /// read, and it may be large.
    #[serde(deserialize_with = "read_keys")]
    pub data: ConfigData,
    /// Base64, of the same what is no text: a revocation list in DER stands here.
    #[serde(rename = "binaryData", deserialize_with = "read_keys")]
    pub binary_data: ConfigData,
}
impl ConfigMap {
    /// One of its values, whether it is a text or not. (What is no base64 is given as it is: nobody is to take it for missing.)
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        use base64::Engine;
        if let Some(text) = self.data.get(key) {
            return Some(text.clone().into_bytes());
        }
        let coded = self.binary_data.get(key)?;
        let decoded = base64::engine::general_purpose::STANDARD.decode(coded.trim());
        Some(decoded.unwrap_or_else(|_| coded.clone().into_bytes()))
    }
}

/// Texts by key.
pub type ConfigData = BTreeMap<String, String>;

/// The label of pods, and of what else is deployed for a Gateway: its name (Gateway API, GEP-1762).
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Keys of a ConfigMap with overlays for what is deployed for a Gateway (Istio's).
pub const PARAMETERS: [&str; 5] =
    ["serviceAccount", "horizontalPodAutoscaler", "podDisruptionBudget", "deployment", "service"];

fn read_keys<'de, D: serde::Deserializer<'de>>(d: D) -> Result<ConfigData, D::Error> {
    let mut all = ConfigData::deserialize(d)?;
    all.retain(|k, _| {
        let is_read = [".crt", ".crl", ".pem"].iter().any(|end| k.ends_with(end));
        is_read || k == mesh_config::KEY || PARAMETERS.contains(&k.as_str())
    });
    Ok(all)
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Secret {
    pub metadata: Meta,
    #[serde(rename = "type")]
    pub kind: String,
    /// Base64.
    pub data: BTreeMap<String, Hidden>,
    pub string_data: BTreeMap<String, Hidden>,
}
impl Secret {
    /// One of its values.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        use base64::Engine;
        if let Some(s) = self.string_data.get(key) {
            return Some(s.0.clone().into_bytes());
        }
        base64::engine::general_purpose::STANDARD.decode(self.data.get(key)?.0.trim()).ok()
    }
}
/// Text that is never printed.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);
impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    pub node_name: String,
    pub service_account_name: String,
    pub host_network: bool,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub restart_policy: String,
    pub ports: Vec<ContainerPort>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u16,
    pub protocol: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    pub phase: String,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    pub conditions: Vec<Condition>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Deployment {
    pub metadata: Meta,
    pub status: DeploymentStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentStatus {
    pub available_replicas: u32,
}

/// Certificates of authorities, for everybody in the cluster (certificates.k8s.io).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClusterTrustBundle {
    pub metadata: Meta,
    pub spec: ClusterTrustBundleSpec,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterTrustBundleSpec {
    /// PEM.
    pub trust_bundle: String,
}

/// What the cluster IPs of Services are from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceCIDR {
    pub metadata: Meta,
    pub spec: ServiceCidrSpec,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    pub cidrs: Vec<String>,
}

/// Which fields objects of its kind may have; nothing else of it is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CustomResourceDefinition {
    pub metadata: Meta,
    pub spec: CrdSpec,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CrdSpec {
    pub versions: Vec<CrdVersion>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CrdVersion {
    pub name: String,
    pub schema: CrdSchema,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CrdSchema {
    #[serde(rename = "openAPIV3Schema")]
    pub root: SchemaNode,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchemaNode {
    pub properties: BTreeMap<String, SchemaNode>,
    pub items: Option<Box<SchemaNode>>,
}
impl CustomResourceDefinition {
    /// Has this version of its kind the field? Each of the names is one within the one before, or within the items of that.
    pub fn has_field(&self, version: &str, names: &[&str]) -> bool {
        fn has(node: &SchemaNode, names: &[&str]) -> bool {
            let Some((first, rest)) = names.split_first() else { return true };
            let own = node.items.as_deref().unwrap_or(node);
            own.properties.get(*first).is_some_and(|below| has(below, rest))
        }
        self.spec.versions.iter().any(|v| v.name == version && has(&v.schema.root, names))
    }
}

/// Those with the label `istio.io/tag` stand for revision tags; whom they call is none of ours.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct MutatingWebhookConfiguration {
    pub metadata: Meta,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: Meta,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    pub conditions: Vec<StatusCondition>,
    pub load_balancer: LoadBalancerStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    pub ingress: Vec<LoadBalancerIngress>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerIngress {
    pub ip: String,
    pub hostname: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    pub selector: Labels,
    pub ports: Vec<ServicePort>,
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    pub external_name: String,
    pub ip_families: Vec<String>,
    pub ip_family_policy: String,
    pub internal_traffic_policy: String,
    pub traffic_distribution: String,
    pub publish_not_ready_addresses: bool,
    pub session_affinity: String,
    pub session_affinity_config: SessionAffinityConfig,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIpConfig,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<u32>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
    pub target_port: Option<IntOrString>,
    pub app_protocol: Option<String>,
}
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(u16),
    String(String),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Meta,
    pub address_type: String,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<EndpointPort>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub conditions: EndpointConditions,
    pub target_ref: Option<ObjectReference>,
    pub node_name: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}
impl EndpointConditions {
    /// Takes connections now. What is not said counts as the API has it.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }
    /// Is about to end, and takes connections still: for when there is nobody else (KEP-1669).
    pub fn is_draining(&self) -> bool {
        !self.is_ready() && self.serving.unwrap_or(false) && self.terminating.unwrap_or(false)
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ObjectReference {
    pub kind: String,
    pub name: String,
    pub namespace: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    pub name: Option<String>,
    pub port: Option<u16>,
    pub protocol: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_crd_says_which_fields_there_are() {
        let crd: CustomResourceDefinition = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "gateways.gateway.networking.k8s.io" },
            "spec": { "group": "gateway.networking.k8s.io", "versions": [{ "name": "v1", "served": true, "schema": { "openAPIV3Schema": {
                "type": "object",
                "properties": { "status": { "type": "object", "default": {}, "properties": { "addresses": {
                    "type": "array", "items": { "type": "object", "properties": { "routability": { "type": "string" } } },
                } } } },
            } } }] },
        }))
        .unwrap();
        let has = |version: &str, names: &[&str]| crd.has_field(version, names);
        assert!(has("v1", &["status", "addresses", "routability"]) && has("v1", &["status", "addresses"]));
        assert!(!has("v1", &["status", "addresses", "value"]) && !has("v1", &["spec", "addresses"]));
        assert!(!has("v1beta1", &["status", "addresses", "routability"]));
    }
}
