//! Istio's traffic API: VirtualService, DestinationRule, Gateway. Fields that ambient mode gives no meaning are read all the same,
//! so that users' manifests are taken; what is not executed is reported.

use crate::meta::{Labels, Meta, Status};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct VirtualService {
    pub metadata: Meta,
    pub spec: VirtualServiceSpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualServiceSpec {
    /// Hosts of the services that the routes apply to: short names in this namespace, or full names; may start with a wildcard.
    pub hosts: Vec<String>,
    /// Gateways that the routes apply to; `mesh` (the default) stands for requests within the mesh.
    pub gateways: Vec<String>,
    /// Rules in order; the first that matches is applied.
    pub http: Vec<VsHttp>,
    pub tls: Vec<VsTls>,
    pub tcp: Vec<VsTcp>,
    pub export_to: Vec<String>,
    /// It stands for one that cannot be read ([`crate::closed::closed`]), with an empty rule for each kind that it has rules of.
    #[serde(skip)]
    pub is_unread: bool,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsHttp {
    pub name: String,
    #[serde(rename = "match")]
    pub matches: Vec<VsMatch>,
    pub route: Vec<VsRoute>,
    pub redirect: Option<VsRedirect>,
    pub direct_response: Option<VsDirectResponse>,
    pub delegate: Option<VsDelegate>,
    pub rewrite: Option<VsRewrite>,
    /// Timeout for the whole request, including retries, for example 1.5s.
    pub timeout: Option<String>,
    pub retries: Option<VsRetries>,
    /// Fault to inject; without a percentage, none is injected.
    pub fault: Option<VsFault>,
    /// Destination that receives a copy of each request; its responses are ignored.
    pub mirror: Option<VsDestination>,
    pub mirrors: Vec<VsMirror>,
    #[serde(alias = "mirror_percent")]
    pub mirror_percent: Option<u32>,
    #[serde(alias = "mirror_percentage")]
    pub mirror_percentage: Option<Percent>,
    #[serde(alias = "cors_policy")]
    pub cors_policy: Option<VsCors>,
    pub headers: Option<VsHeaders>,
}
impl VsHttp {
    /// A delegate's rule within this one, which delegates to it: what the delegate does not say, this one does (Istio's
    /// `mergeHTTPRoute`). `matches`: those of both.
    pub fn merge(&self, leaf: &Self, matches: Vec<VsMatch>) -> Self {
        fn or<T: Clone>(leaf: &Option<T>, root: &Option<T>) -> Option<T> {
            leaf.clone().or_else(|| root.clone())
        }
        Self {
            name: leaf.name.clone(),
            matches,
            route: leaf.route.clone(),
            redirect: leaf.redirect.clone(),
            direct_response: leaf.direct_response.clone(),
            delegate: leaf.delegate.clone(),
            rewrite: or(&leaf.rewrite, &self.rewrite),
            timeout: or(&leaf.timeout, &self.timeout),
            retries: or(&leaf.retries, &self.retries),
            fault: or(&leaf.fault, &self.fault),
            mirror: or(&leaf.mirror, &self.mirror),
            mirrors: if leaf.mirrors.is_empty() { self.mirrors.clone() } else { leaf.mirrors.clone() },
            mirror_percent: or(&leaf.mirror_percent, &self.mirror_percent),
            mirror_percentage: or(&leaf.mirror_percentage, &self.mirror_percentage),
            cors_policy: or(&leaf.cors_policy, &self.cors_policy),
            headers: or(&leaf.headers, &self.headers),
        }
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsMatch {
    pub name: String,
    pub uri: Option<StringMatch>,
    pub scheme: Option<StringMatch>,
    pub method: Option<StringMatch>,
    pub authority: Option<StringMatch>,
    pub headers: BTreeMap<String, StringMatch>,
    pub port: u16,
    pub source_labels: Labels,
    pub gateways: Vec<String>,
    pub query_params: BTreeMap<String, StringMatch>,
    pub ignore_uri_case: bool,
    pub without_headers: BTreeMap<String, StringMatch>,
    pub source_namespace: String,
    pub stat_prefix: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct StringMatch {
    pub exact: Option<String>,
    pub prefix: Option<String>,
    pub regex: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsRoute {
    pub destination: VsDestination,
    /// Weight, relative to the sum of all weights.
    pub weight: u32,
    pub headers: Option<VsHeaders>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsDestination {
    pub host: String,
    pub subset: String,
    pub port: PortSelector,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSelector {
    pub number: u16,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsHeaders {
    pub request: VsHeaderChange,
    pub response: VsHeaderChange,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsHeaderChange {
    pub set: Labels,
    pub add: Labels,
    pub remove: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsRedirect {
    pub uri: String,
    pub authority: String,
    pub port: Option<u16>,
    pub derive_port: String,
    pub scheme: String,
    /// Status code; 301 by default.
    pub redirect_code: u16,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsDirectResponse {
    pub status: u16,
    pub body: Option<VsBody>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsBody {
    pub string: Option<String>,
    /// Content of the body, base64-encoded.
    pub bytes: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsDelegate {
    pub name: String,
    pub namespace: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsRewrite {
    pub uri: String,
    pub authority: String,
    pub uri_regex_rewrite: Option<VsRegexRewrite>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsRegexRewrite {
    #[serde(rename = "match")]
    pub pattern: String,
    pub rewrite: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsRetries {
    pub attempts: u32,
    pub per_try_timeout: Option<String>,
    pub retry_on: String,
    pub retry_remote_localities: Option<bool>,
    pub retry_ignore_previous_hosts: Option<bool>,
    pub backoff: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Percent {
    pub value: f64,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsFault {
    pub delay: Option<VsDelay>,
    pub abort: Option<VsAbort>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsDelay {
    pub percent: Option<u32>,
    pub percentage: Option<Percent>,
    pub fixed_delay: Option<String>,
    pub exponential_delay: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsAbort {
    pub percent: Option<u32>,
    pub percentage: Option<Percent>,
    pub http_status: Option<u16>,
    pub grpc_status: Option<String>,
    pub http2_error: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsMirror {
    pub destination: VsDestination,
    pub percentage: Option<Percent>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsCors {
    pub allow_origins: Vec<StringMatch>,
    pub allow_origin: Vec<String>,
    pub allow_methods: Vec<String>,
    pub allow_headers: Vec<String>,
    pub expose_headers: Vec<String>,
    pub max_age: Option<String>,
    pub allow_credentials: Option<bool>,
    pub unmatched_preflights: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsTcp {
    #[serde(rename = "match")]
    pub matches: Vec<VsTcpMatch>,
    pub route: Vec<VsRoute>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsTcpMatch {
    pub destination_subnets: Vec<String>,
    pub port: u16,
    pub source_labels: Labels,
    pub gateways: Vec<String>,
    pub source_namespace: String,
    pub source_subnet: String,
}
/// Routes for TLS connections that are not terminated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsTls {
    #[serde(rename = "match")]
    pub matches: Vec<VsTlsMatch>,
    pub route: Vec<VsRoute>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct VsTlsMatch {
    pub sni_hosts: Vec<String>,
    pub destination_subnets: Vec<String>,
    pub port: u16,
    pub source_labels: Labels,
    pub gateways: Vec<String>,
    pub source_namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DestinationRule {
    pub metadata: Meta,
    pub spec: DestinationRuleSpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRuleSpec {
    /// Host of the service that the rule applies to.
    pub host: String,
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named versions of the service, selected by labels of their pods; routes refer to them.
    pub subsets: Vec<DrSubset>,
    pub export_to: Vec<String>,
    pub workload_selector: Option<serde_json::Value>,
    /// It stands for one that cannot be read ([`crate::closed::closed`]), which may have said how TLS is spoken.
    #[serde(skip)]
    pub is_unread: bool,
}
impl DestinationRuleSpec {
    /// That of the service and those of its subsets.
    pub fn all_policies(&self) -> impl Iterator<Item = &TrafficPolicy> {
        self.traffic_policy.iter().chain(self.subsets.iter().filter_map(|s| s.traffic_policy.as_ref()))
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct DrSubset {
    pub name: String,
    pub labels: Labels,
    pub traffic_policy: Option<TrafficPolicy>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    pub load_balancer: Option<LoadBalancer>,
    pub connection_pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
    pub tls: Option<ClientTls>,
    pub port_level_settings: Vec<PortPolicy>,
    pub tunnel: Option<serde_json::Value>,
    /// Connections to the endpoints begin with a header of the PROXY protocol, which names the client.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limit of concurrent retries; replaces connectionPool.http.maxRetries.
    pub retry_budget: Option<RetryBudget>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ProxyProtocol {
    /// V1 (the default) or V2.
    pub version: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PortPolicy {
    pub port: PortSelector,
    pub load_balancer: Option<LoadBalancer>,
    pub connection_pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
    pub tls: Option<ClientTls>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    pub simple: Option<String>,
    pub consistent_hash: Option<ConsistentHash>,
    /// Load balancing by locality: failover or distribution.
    pub locality_lb_setting: Option<LocalityLb>,
    pub warmup_duration_secs: Option<String>,
    pub warmup: Option<Warmup>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientTls {
    /// DISABLE, ISTIO_MUTUAL (the mesh's own TLS, which is always used), SIMPLE or MUTUAL.
    pub mode: Option<String>,
    pub client_certificate: String,
    pub private_key: String,
    /// `system`: the public certificate authorities, as by default.
    pub ca_certificates: String,
    /// Name of a Secret with ca.crt and, for MUTUAL, tls.crt and tls.key.
    pub credential_name: String,
    /// Names, one of which the server's certificate must have; by default the name in `sni`.
    pub subject_alt_names: Vec<String>,
    /// Server name in the TLS handshake; by default the host name of the service.
    pub sni: String,
    pub insecure_skip_verify: Option<bool>,
    pub ca_crl: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Limit of concurrent retries as a percentage of active requests, 0 to 100; 20 by default.
    pub percent: Option<f64>,
    /// Number of concurrent retries that are always allowed; 3 by default.
    pub min_retry_concurrency: Option<u32>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalityLb {
    /// Distribution of traffic over localities, by locality of the client.
    pub distribute: Vec<Distribute>,
    /// Region that receives a region's requests if its own endpoints are unhealthy.
    pub failover: Vec<Failover>,
    /// Labels in order of importance: the more of the first labels an endpoint shares with the client, the higher its priority.
    pub failover_priority: Vec<String>,
    pub enabled: Option<bool>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Distribute {
    /// Locality of the client: region/zone/subzone, where * matches any.
    pub from: String,
    /// Weights by locality, in percent; they must add up to 100.
    pub to: BTreeMap<String, u32>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Failover {
    /// Region of the client.
    pub from: String,
    pub to: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Warmup {
    pub duration: Option<String>,
    pub minimum_percent: Option<f64>,
    pub aggression: Option<f64>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHash {
    pub http_header_name: Option<String>,
    pub http_cookie: Option<HttpCookie>,
    pub use_source_ip: Option<bool>,
    pub http_query_parameter_name: Option<String>,
    pub ring_hash: Option<RingHash>,
    pub maglev: Option<Maglev>,
    pub minimum_ring_size: Option<u32>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RingHash {
    pub minimum_ring_size: Option<u32>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Maglev {
    pub table_size: Option<u32>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCookie {
    pub name: String,
    pub path: String,
    pub ttl: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionPool {
    pub tcp: TcpPool,
    pub http: HttpPool,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpPool {
    pub max_connections: u32,
    pub connect_timeout: Option<String>,
    pub tcp_keepalive: Option<serde_json::Value>,
    pub idle_timeout: Option<String>,
    pub max_connection_duration: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpPool {
    pub http1_max_pending_requests: u32,
    pub http2_max_requests: u32,
    pub max_requests_per_connection: u32,
    pub max_retries: u32,
    pub idle_timeout: Option<String>,
    pub h2_upgrade_policy: String,
    pub use_client_protocol: bool,
    pub max_concurrent_streams: u32,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    pub consecutive_gateway_errors: Option<u32>,
    pub consecutive_errors: Option<u32>,
    pub consecutive_local_origin_failures: Option<u32>,
    pub split_external_local_origin_errors: bool,
    pub interval: Option<String>,
    pub base_ejection_time: Option<String>,
    pub max_ejection_percent: Option<u32>,
    pub min_health_percent: Option<u32>,
}

/// Istio's Gateway: what the gateways that it selects listen on.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IstioGateway {
    pub metadata: Meta,
    pub spec: IstioGatewaySpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct IstioGatewaySpec {
    /// Labels of the gateway pods, in any namespace.
    pub selector: Labels,
    pub servers: Vec<GwServer>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct GwServer {
    pub name: String,
    pub port: GwPort,
    pub bind: String,
    /// Host names, `*` or `*.domain`; `namespace/name` accepts VirtualServices of that namespace only.
    pub hosts: Vec<String>,
    pub tls: Option<GwTls>,
    pub default_endpoint: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct GwPort {
    pub number: u16,
    /// HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, MONGO, TCP or TLS.
    pub protocol: String,
    pub name: String,
    pub target_port: u16,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct GwTls {
    pub https_redirect: bool,
    /// With MUTUAL and OPTIONAL_MUTUAL: client certificates that cannot be verified are accepted, too.
    pub insecure_skip_verify: Option<bool>,
    /// PASSTHROUGH (the default), SIMPLE, MUTUAL, OPTIONAL_MUTUAL, ISTIO_MUTUAL, AUTO_PASSTHROUGH.
    pub mode: Option<String>,
    /// Name of a Secret in the namespace of the gateway's pods.
    pub credential_name: String,
    pub credential_names: Vec<String>,
    pub ca_cert_credential_name: String,
    pub server_certificate: String,
    pub private_key: String,
    pub ca_certificates: String,
    pub ca_crl: String,
    pub tls_certificates: Vec<serde_json::Value>,
    pub subject_alt_names: Vec<String>,
    pub verify_certificate_spki: Vec<String>,
    pub verify_certificate_hash: Vec<String>,
    /// TLSV1_2 or TLSV1_3; other versions are rejected.
    pub min_protocol_version: Option<String>,
    pub max_protocol_version: Option<String>,
    pub cipher_suites: Vec<String>,
}
