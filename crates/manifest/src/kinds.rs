//! The objects. Names and defaults are those of the Kubernetes, Gateway and Istio APIs; see there for their meaning.
#![allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]

pub use crate::{
    extension::HTTPFilter,
    gatewayapi::{BackendTLSPolicy, GRPCRoute, HTTPRoute, ReferenceGrant, TCPRoute, TLSRoute},
    security::RequestAuthentication,
    telemetry::Telemetry,
    traffic::{DestinationRule, IstioGateway, VirtualService},
};
use serde::{Deserialize, de::IgnoredAny};
use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Counts the changes of the spec; 0 where nobody counts (in files).
    pub generation: i64,
    pub labels: Labels,
    pub annotations: Labels,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
    pub owner_references: Vec<OwnerReference>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OwnerReference {
    pub kind: String,
    pub name: String,
    pub controller: bool,
}

macro_rules! kinds {
    ($($kind:ident $group:literal $namespaced:literal),* $(,)?) => {
        /// Any object that Karst reads.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object { $($kind(Box<$kind>)),* }
        impl Object {
            /// The kind's name here, one of [`KINDS`]; see [`api_kind`].
            pub fn kind(&self) -> &'static str {
                match self { $(Object::$kind(_) => stringify!($kind)),* }
            }
            /// The object's metadata.
            pub fn meta(&self) -> &Meta {
                match self { $(Object::$kind(o) => &o.metadata),* }
            }
            pub(crate) fn meta_mut(&mut self) -> &mut Meta {
                match self { $(Object::$kind(o) => &mut o.metadata),* }
            }
            pub(crate) fn read<'de, D: serde::Deserializer<'de>>(kind: &str, d: D) -> Option<Result<Self, D::Error>> {
                Some(match kind {
                    $(stringify!($kind) => Deserialize::deserialize(d).map(|o| Object::$kind(Box::new(o))),)*
                    _ => return None,
                })
            }
        }
        /// Kind (by its name here), API group, and whether objects of the kind live in a namespace.
        pub const KINDS: &[(&str, &str, bool)] = &[$((stringify!($kind), $group, $namespaced)),*];
    };
}

/// Two groups have a Gateway; Istio's has a name of its own here.
const ISTIO_GATEWAY: &str = "IstioGateway";

/// The name that the API has for a kind of [`KINDS`].
pub fn api_kind(kind: &str) -> &str {
    if kind == ISTIO_GATEWAY { "Gateway" } else { kind }
}

/// The entry of [`KINDS`] for what the API calls so.
pub fn known(kind: &str, group: &str) -> Option<&'static (&'static str, &'static str, bool)> {
    KINDS.iter().find(|(k, g, _)| api_kind(k) == kind && *g == group)
}

kinds! {
    Namespace "" false,
    Node "" false,
    Pod "" true,
    Service "" true,
    ServiceAccount "" true,
    ConfigMap "" true,
    Secret "" true,
    Deployment "apps" true,
    EndpointSlice "discovery.k8s.io" true,
    GatewayClass "gateway.networking.k8s.io" false,
    Gateway "gateway.networking.k8s.io" true,
    HTTPRoute "gateway.networking.k8s.io" true,
    GRPCRoute "gateway.networking.k8s.io" true,
    TCPRoute "gateway.networking.k8s.io" true,
    TLSRoute "gateway.networking.k8s.io" true,
    BackendTLSPolicy "gateway.networking.k8s.io" true,
    ReferenceGrant "gateway.networking.k8s.io" true,
    VirtualService "networking.istio.io" true,
    IstioGateway "networking.istio.io" true,
    DestinationRule "networking.istio.io" true,
    ServiceEntry "networking.istio.io" true,
    WorkloadEntry "networking.istio.io" true,
    AuthorizationPolicy "security.istio.io" true,
    PeerAuthentication "security.istio.io" true,
    RequestAuthentication "security.istio.io" true,
    Telemetry "telemetry.istio.io" true,
    HTTPFilter "karst.io" true,
}

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
    /// Certificates and parameters of Gateways ([`PARAMETERS`]) only: nothing else is read, and it may be large.
    #[serde(deserialize_with = "read_keys")]
    pub data: BTreeMap<String, String>,
}

/// The label of pods, and of what else is deployed for a Gateway: its name (Gateway API, GEP-1762).
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Keys of a ConfigMap with overlays for what is deployed for a Gateway (Istio's).
pub const PARAMETERS: [&str; 5] =
    ["serviceAccount", "horizontalPodAutoscaler", "podDisruptionBudget", "deployment", "service"];

fn read_keys<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    let mut all = BTreeMap::<String, String>::deserialize(d)?;
    all.retain(|k, _| k.ends_with(".crt") || k.ends_with(".pem") || PARAMETERS.contains(&k.as_str()));
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

/// The conditions that controllers write.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Status {
    pub conditions: Vec<StatusCondition>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatusCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    #[serde(deserialize_with = "generation")]
    pub observed_generation: i64,
    pub last_transition_time: String,
}

/// A number, as Kubernetes writes it, or a text, as protobuf's JSON has numbers of 64 bits (Istio's own statuses).
fn generation<'de, D: serde::Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    Ok(match Either::deserialize(d)? {
        Either::Number(n) => n,
        Either::Text(t) => t.parse().unwrap_or_default(),
    })
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

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayClass {
    pub metadata: Meta,
    pub spec: GatewayClassSpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayClassSpec {
    pub controller_name: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Gateway {
    pub metadata: Meta,
    pub spec: GatewaySpec,
    pub status: GatewayStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewaySpec {
    pub gateway_class_name: String,
    pub listeners: Vec<Listener>,
    pub addresses: Vec<GatewayAddress>,
    pub infrastructure: Infrastructure,
    pub tls: GatewayTls,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayTls {
    pub frontend: FrontendTls,
}
/// What is asked of clients by listeners that end TLS.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FrontendTls {
    pub default: FrontendTlsConfig,
    /// In place of the default at these ports.
    pub per_port: Vec<FrontendTlsPort>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FrontendTlsConfig {
    /// Whether there is one; what it says is not read.
    pub validation: Option<IgnoredAny>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FrontendTlsPort {
    pub port: u16,
    pub tls: FrontendTlsConfig,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Listener {
    pub name: String,
    pub hostname: Option<String>,
    pub port: u16,
    pub protocol: String,
    pub tls: Option<ListenerTls>,
    pub allowed_routes: AllowedRoutes,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListenerTls {
    /// Terminate (the default), Passthrough.
    pub mode: Option<String>,
    pub certificate_refs: Vec<SecretRef>,
    pub options: Labels,
    /// Gateway API's experimental channel, before 1.4: whether there is one; what it says is not read.
    pub frontend_validation: Option<IgnoredAny>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SecretRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AllowedRoutes {
    pub namespaces: RouteNamespaces,
    pub kinds: Vec<RouteKind>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RouteKind {
    pub group: Option<String>,
    pub kind: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// All, Same (the default), Selector, None.
    pub from: String,
    pub selector: LabelSelector,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Vec<Requirement>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}
impl LabelSelector {
    /// Kubernetes' meaning: all of it must hold; an unknown operator never does.
    pub fn selects(&self, labels: &Labels) -> bool {
        let holds = |r: &Requirement| {
            let v = labels.get(&r.key);
            match r.operator.as_str() {
                "In" => v.is_some_and(|v| r.values.contains(v)),
                "NotIn" => v.is_none_or(|v| !r.values.contains(v)),
                "Exists" => v.is_some(),
                "DoesNotExist" => v.is_none(),
                _ => false,
            }
        };
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)) && self.match_expressions.iter().all(holds)
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Infrastructure {
    pub labels: Labels,
    pub annotations: Labels,
    /// What is deployed, changed.
    pub parameters_ref: Option<ParametersRef>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ParametersRef {
    pub group: String,
    pub kind: String,
    pub name: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    pub addresses: Vec<GatewayAddress>,
    pub conditions: Vec<StatusCondition>,
    pub listeners: Vec<ListenerStatus>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListenerStatus {
    pub name: String,
    pub attached_routes: u32,
    pub supported_kinds: Vec<RouteKind>,
    pub conditions: Vec<StatusCondition>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceEntry {
    pub metadata: Meta,
    pub spec: ServiceEntrySpec,
    pub status: ServiceEntryStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceEntryStatus {
    pub conditions: Vec<StatusCondition>,
    /// Addresses that were given to its hosts.
    pub addresses: Vec<ServiceEntryAddress>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceEntryAddress {
    pub value: String,
    pub host: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    pub hosts: Vec<String>,
    pub addresses: Vec<String>,
    pub ports: Vec<ServiceEntryPort>,
    pub location: String,
    pub resolution: String,
    pub endpoints: Vec<WorkloadEntrySpec>,
    pub workload_selector: Option<WorkloadSelector>,
    /// `.`: its own namespace alone; `~`: nobody; `*`, or nothing: everybody.
    pub export_to: Vec<String>,
    pub subject_alt_names: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadSelector {
    pub labels: Labels,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntryPort {
    pub number: u16,
    pub name: String,
    pub protocol: String,
    pub target_port: Option<u16>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WorkloadEntry {
    pub metadata: Meta,
    pub spec: WorkloadEntrySpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    pub address: String,
    pub ports: BTreeMap<String, u16>,
    pub labels: Labels,
    pub network: String,
    pub locality: String,
    pub weight: u32,
    pub service_account: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AuthorizationPolicy {
    pub metadata: Meta,
    pub spec: AuthorizationPolicySpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    pub selector: Option<Selector>,
    pub target_ref: Option<TargetRef>,
    pub target_refs: Vec<TargetRef>,
    pub action: Option<String>,
    pub rules: Vec<PolicyRule>,
    pub provider: Option<serde_json::Value>,
}
impl AuthorizationPolicySpec {
    /// What the policy is attached to, and the path of the field that says so.
    pub fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
        TargetRef::all(self.target_ref.as_ref(), &self.target_refs)
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    pub match_labels: Labels,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetRef {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
}
impl TargetRef {
    /// Those of an object, and the path of the field that says so.
    pub(crate) fn all<'a>(one: Option<&'a Self>, many: &'a [Self]) -> impl Iterator<Item = (String, &'a Self)> {
        let many = many.iter().enumerate().map(|(i, t)| (format!("spec.targetRefs[{i}]"), t));
        one.into_iter().map(|t| ("spec.targetRef".to_string(), t)).chain(many)
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyRule {
    pub from: Vec<From>,
    pub to: Vec<To>,
    pub when: Vec<When>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct From {
    pub source: Source,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct To {
    pub operation: Operation,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct When {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PeerAuthentication {
    pub metadata: Meta,
    pub spec: PeerAuthenticationSpec,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    pub selector: Option<Selector>,
    pub mtls: Option<MutualTls>,
    #[serde(deserialize_with = "by_port")]
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

/// Keys of YAML may be numbers or text; in Kubernetes' API they are text, and many write them so.
fn by_port<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<u16, MutualTls>, D::Error> {
    #[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    #[serde(untagged)]
    enum Key {
        Number(i64),
        Text(String),
    }
    let all = BTreeMap::<Key, MutualTls>::deserialize(d)?;
    let port = |(k, m)| {
        let text = match k {
            Key::Number(n) => n.to_string(),
            Key::Text(s) => s,
        };
        let bad = |_| serde::de::Error::custom(format!("invalid port {text:?}: use 1 to 65535 [KARST-0019]"));
        Ok((text.parse().map_err(bad)?, m))
    };
    all.into_iter().map(port).collect()
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MutualTls {
    pub mode: Mode,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Mode {
    #[default]
    #[serde(rename = "UNSET")]
    Unset,
    #[serde(rename = "DISABLE")]
    Disable,
    #[serde(rename = "PERMISSIVE")]
    Permissive,
    #[serde(rename = "STRICT")]
    Strict,
}
