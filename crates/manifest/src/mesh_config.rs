//! Istio's mesh configuration (`MeshConfig`), as far as it is honoured: key `mesh` of ConfigMap `istio`. What is
//! not listed here has no effect; docs/values.md says of each field what stands in its place. Unlike objects of
//! users, it is in force whatever other fields it has: Istio has many, and a slip ([`MeshConfig::unknown_fields`]) is only told.

mod fields;

use crate::telemetry::CustomTag;
use karst_core::tls::{CipherSuite, Curve, Version};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// Key of the ConfigMap that holds it.
pub const KEY: &str = "mesh";
/// Where access logs can be written: the output of the proxy, or (an empty text) nowhere.
const LOG_FILES: [&str; 2] = ["", "/dev/stdout"];
/// Values of a default `exportTo`.
const EXPORT_TO: [&str; 2] = ["*", "."];

/// The mesh configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    /// Where waypoints and gateways write their access logs: `/dev/stdout`, or empty for none. None: as the
    /// proxies' options say.
    pub access_log_file: Option<String>,
    /// Namespaces that VirtualServices without `exportTo` are for: `*` or `.`; empty: as the controller's option says.
    pub default_virtual_service_export_to: Vec<String>,
    /// The same of DestinationRules.
    pub default_destination_rule_export_to: Vec<String>,
    /// Where pods of the mesh may connect to. ztunnel reads it itself; here it is only looked at.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Trust domain; taken at the start only, from the controller's option.
    pub trust_domain: String,
    /// Namespace whose policies are for all; taken at the start only, from the controller's option.
    pub root_namespace: String,
    /// What is the same for all proxies.
    pub default_config: ProxyConfig,
    /// What Telemetry may name as a provider.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Providers where a Telemetry names none.
    pub default_providers: DefaultProviders,
    /// TLS with whom is not of the mesh, where a Gateway says nothing.
    pub tls_defaults: TlsDefaults,
}

/// Istio's `tlsDefaults`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TlsDefaults {
    /// `TLS_AUTO` (also if empty), `TLSV1_2` or `TLSV1_3`; of servers only, as in Istio.
    pub min_protocol_version: String,
    /// Of TLS 1.2.
    pub cipher_suites: Vec<String>,
    /// What keys are exchanged by.
    pub ecdh_curves: Vec<String>,
}

impl TlsDefaults {
    /// The least version of servers. (What cannot be spoken is not read at all.)
    pub fn min_version(&self) -> Option<Version> {
        Version::named(&self.min_protocol_version).ok().flatten()
    }

    fn check(&self) -> Result<(), MeshConfigError> {
        let bad = |field: String, value: &str, known: &[&str]| {
            Err(MeshConfigError::Tls { field, value: value.into(), known: known.join(", ") })
        };
        if Version::named(&self.min_protocol_version).is_err() {
            let known = Version::ALL.map(Version::name);
            return bad("minProtocolVersion".into(), &self.min_protocol_version, &known);
        }
        if let Some((index, suite)) = (0..).zip(&self.cipher_suites).find(|(_, s)| CipherSuite::named(s).is_none()) {
            let known = CipherSuite::ALL.map(CipherSuite::name);
            return bad(format!("cipherSuites[{index}]"), suite, &known);
        }
        if let Some((index, curve)) = (0..).zip(&self.ecdh_curves).find(|(_, c)| Curve::named(c).is_none()) {
            return bad(format!("ecdhCurves[{index}]"), curve, &Curve::ALL.map(Curve::name));
        }
        Ok(())
    }
}

/// Istio's `defaultProviders`, as far as they are honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultProviders {
    /// The first takes spans.
    pub tracing: Vec<String>,
    /// All take the access log; empty: the proxy's output does.
    pub access_logging: Vec<String>,
}

/// Istio's `extensionProviders[]`, as far as they take spans or logs, or decide about requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtensionProvider {
    /// What a Telemetry or an AuthorizationPolicy names it by.
    pub name: String,
    /// A collector that speaks OTLP.
    pub opentelemetry: Option<OpenTelemetryProvider>,
    /// One that takes Zipkin's spans.
    pub zipkin: Option<ZipkinProvider>,
    /// One that takes the access log by OTLP.
    pub envoy_otel_als: Option<OtelAlsProvider>,
    /// One that is asked by gRPC whether a request may go on.
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpcProvider>,
    /// The same by HTTP.
    pub envoy_ext_authz_http: Option<ExtAuthzHttpProvider>,
    /// Ours: how long an answer of external authorization is kept, and for which requests.
    pub cache: Option<AnswerCache>,
}

/// Answers of external authorization that are kept: each for all requests that have the same values of `keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AnswerCache {
    /// A duration.
    pub ttl: String,
    /// What of requests the provider's answers follow from.
    pub keys: Vec<AnswerKey>,
    /// Fields that are none of these.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// What of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AnswerKey {
    /// `Method`, `Host`, `Path`, `Query`, `Header`, `SourceAddress` or `Caller`.
    pub r#type: String,
    /// Of the header; of a parameter of the query (empty: all of the query).
    pub name: String,
    /// Fields that are none of these.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// Istio's `envoyExtAuthzGrpc` provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtAuthzGrpcProvider {
    /// `[NAMESPACE/]HOST` of a service.
    pub service: String,
    /// Of the service.
    pub port: u32,
    /// A duration; empty: 600s.
    pub timeout: String,
    /// Without an answer the request goes on.
    pub fail_open: bool,
    /// Routes are chosen after the answer in any case.
    pub clear_route_cache: bool,
    /// The answer to requests about which there is none; empty: 403.
    #[serde(deserialize_with = "text")]
    pub status_on_error: String,
    /// None: the body is not sent.
    pub include_request_body_in_check: Option<RequestBodyInCheck>,
    /// Fields that are none of these.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// Istio's `envoyExtAuthzHttp` provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtAuthzHttpProvider {
    /// `[NAMESPACE/]HOST` of a service.
    pub service: String,
    /// Of the service.
    pub port: u32,
    /// A duration; empty: 600s.
    pub timeout: String,
    /// Before the path of the request.
    pub path_prefix: String,
    /// Without an answer the request goes on.
    pub fail_open: bool,
    /// Routes are chosen after the answer in any case.
    pub clear_route_cache: bool,
    /// The answer to requests about which there is none; empty: 403.
    #[serde(deserialize_with = "text")]
    pub status_on_error: String,
    /// None: the body is not sent.
    pub include_request_body_in_check: Option<RequestBodyInCheck>,
    /// Headers of the request that are sent: names, `start*` or `*end`.
    pub include_request_headers_in_check: Vec<String>,
    /// An older name of the same.
    pub include_headers_in_check: Vec<String>,
    /// Sent in place of what the request has.
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// Headers of the answer that the request goes on with.
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Headers of the answer that the client gets with that of the service.
    pub headers_to_downstream_on_allow: Vec<String>,
    /// Headers of the answer that the client gets with it; empty: all.
    pub headers_to_downstream_on_deny: Vec<String>,
    /// Fields that are none of these.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// Istio's `includeRequestBodyInCheck`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestBodyInCheck {
    /// Most bytes that are sent.
    pub max_request_bytes: u32,
    /// Of a larger body the start is sent; else its request is answered 413.
    pub allow_partial_message: bool,
    /// By gRPC: as bytes and not as text.
    pub pack_as_bytes: bool,
    /// Fields that are none of these.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// A number may be written without quotes.
fn text<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Number(u32),
        Text(String),
    }
    Ok(match Value::deserialize(d)? {
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text,
    })
}

/// Istio's `opentelemetry` provider. With neither `http` nor `grpc` it is called by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OpenTelemetryProvider {
    /// `[NAMESPACE/]HOST` of a service.
    pub service: String,
    /// Of the service.
    pub port: u32,
    /// Longest path in a tag, in bytes.
    pub max_tag_length: Option<u32>,
    /// By HTTP.
    pub http: Option<HttpExport>,
    /// By gRPC.
    pub grpc: Option<GrpcExport>,
    /// Where attributes of the resource come from.
    pub resource_detectors: Option<ResourceDetectors>,
    /// Not honoured: Dynatrace's own sampling.
    pub dynatrace_sampler: Option<serde_json::Value>,
    /// Not honoured but for `ISTIO_CANONICAL`, the default.
    pub service_attribute_enrichment: String,
}

/// Of OTLP by HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpExport {
    /// As it is sent: nothing is added.
    pub path: String,
    /// A duration.
    pub timeout: String,
    /// Sent with each export.
    pub headers: Vec<ExportHeader>,
}

/// Of OTLP by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcExport {
    /// A duration.
    pub timeout: String,
    /// Sent with each export.
    pub initial_metadata: Vec<ExportHeader>,
}

/// A header of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExportHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// A variable of the proxy's environment that has the value.
    pub env_name: String,
}

/// Istio's `resourceDetectors`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResourceDetectors {
    /// `OTEL_RESOURCE_ATTRIBUTES` of the proxy's environment.
    pub environment: Option<serde_json::Value>,
    /// Not honoured.
    pub dynatrace: Option<serde_json::Value>,
}

/// Istio's `zipkin` provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ZipkinProvider {
    /// `[NAMESPACE/]HOST` of a service.
    pub service: String,
    /// Of the service.
    pub port: u32,
    /// Longest path in a tag, in bytes.
    pub max_tag_length: Option<u32>,
    /// Ids of traces have 64 bits, not 128.
    #[serde(rename = "enable64bitTraceId")]
    pub enable_64bit_trace_id: bool,
    /// Where spans are sent; empty: `/api/v2/spans`.
    pub path: String,
    /// `USE_B3` (also if empty) or `USE_B3_WITH_W3C_PROPAGATION`.
    pub trace_context_option: String,
    /// A duration; empty: 5s.
    pub timeout: String,
    /// Sent with each export.
    pub headers: Vec<ExportHeader>,
}

/// Istio's `envoyOtelAls` provider, which is called by gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OtelAlsProvider {
    /// `[NAMESPACE/]HOST` of a service.
    pub service: String,
    /// Of the service.
    pub port: u32,
    /// The name of the log; empty: Istio's.
    pub log_name: String,
    /// Not honoured: a record has all fields of the log.
    pub log_format: Option<serde_json::Value>,
}

/// Istio's `outboundTrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct OutboundTrafficPolicy {
    /// `ALLOW_ANY` (also if empty) or `REGISTRY_ONLY`.
    pub mode: String,
}

/// Annotation of a pod with a `ProxyConfig` of its own (Istio's).
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";

/// Istio's `ProxyConfig`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyConfig {
    /// Threads of each waypoint and gateway that is deployed for a Gateway; 0: one per core.
    pub concurrency: Option<u32>,
    /// Where a Telemetry says nothing.
    pub tracing: ProxyTracing,
    /// What stands in front of gateways.
    pub gateway_topology: Option<GatewayTopology>,
}

/// Istio's `gatewayTopology`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayTopology {
    /// Proxies in front whose X-Forwarded-For is trusted.
    pub num_trusted_proxies: u32,
    /// What becomes of x-forwarded-client-cert.
    pub forward_client_cert_details: ForwardClientCertDetails,
    /// Connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Option<ProxyProtocolListener>,
}

/// Istio's `ForwardClientCertDetails`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ForwardClientCertDetails {
    /// The default of the proxy.
    #[default]
    Undefined,
    /// It is taken out.
    Sanitize,
    /// From clients with a certificate it goes on as it is.
    ForwardOnly,
    /// The same, and their certificate is added.
    AppendForward,
    /// Their certificate is put in its place.
    SanitizeSet,
    /// It goes on as it is, from whomever.
    AlwaysForwardOnly,
}

/// Istio's `ProxyProtocolConfiguration`, which has no fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ProxyProtocolListener {}

impl ProxyConfig {
    /// Reads one that stands by itself ([`PROXY_CONFIG`]).
    ///
    /// # Errors
    /// What cannot be used; then nothing of it is.
    pub fn read(text: &str) -> Result<Self, MeshConfigError> {
        Ok(from_yaml::<Option<Self>>(text)?.unwrap_or_default())
    }
}

/// Istio's `defaultConfig.tracing`, as far as it is honoured. (Its collectors are of before `extensionProviders`: with them alone
/// nothing is traced, as in Istio.)
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyTracing {
    /// Percentage, 0 to 100.
    pub sampling: Option<f64>,
    /// Of spans.
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// Longest path in a tag, in bytes.
    pub max_path_tag_length: Option<u32>,
}

/// Why a text is no mesh configuration. The field is named by the text.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MeshConfigError {
    /// Not YAML, or a field has a value of another type.
    #[error("cannot be read: {0} [KARST-0710]")]
    NotRead(String),
    /// An access log that cannot be written.
    #[error("accessLogFile: unsupported file {0:?}: use /dev/stdout, or \"\" for no access log [KARST-0710]")]
    AccessLogFile(String),
    /// A mode that is not known.
    #[error("outboundTrafficPolicy.mode: unsupported value {0:?}: use ALLOW_ANY or REGISTRY_ONLY [KARST-0710]")]
    Mode(String),
    /// A default `exportTo` that names namespaces.
    #[error("{field}: unsupported value {value:?}: use [\"*\"] or [\".\"] [KARST-0710]")]
    ExportTo {
        /// Which of the fields.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// TLS that cannot be spoken.
    #[error("tlsDefaults.{field}: unsupported value {value:?}: use {known} [KARST-0710]")]
    Tls {
        /// Which of the fields, and at which place.
        field: String,
        /// What it says.
        value: String,
        /// What it could say.
        known: String,
    },
    /// A percentage that is none.
    #[error("defaultConfig.tracing.sampling: {0} is out of range: must be between 0 and 100 [KARST-0710]")]
    Sampling(f64),
}

/// A field that neither Istio has nor we, by its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: is unknown in this version and has no effect: correct its name, or remove it [KARST-0712]")]
pub struct UnknownField(pub String);

fn value(text: &str) -> Result<serde_json::Value, MeshConfigError> {
    let mut value = serde_yaml_ng::from_str(text).map_err(|e| MeshConfigError::NotRead(e.to_string()))?;
    // A section with nothing below it, as templates leave them.
    crate::nulls::without_nulls(&mut value);
    Ok(value)
}

fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, MeshConfigError> {
    serde_path_to_error::deserialize(value(text)?).map_err(|e| MeshConfigError::NotRead(e.to_string()))
}

impl MeshConfig {
    /// Reads it. An empty text is a configuration that says nothing.
    ///
    /// # Errors
    /// What cannot be used; then nothing of it is.
    pub fn read(text: &str) -> Result<Self, MeshConfigError> {
        let config = from_yaml::<Option<Self>>(text)?.unwrap_or_default();
        if let Some(file) = config.access_log_file.as_ref().filter(|f| !LOG_FILES.contains(&f.as_str())) {
            return Err(MeshConfigError::AccessLogFile(file.clone()));
        }
        let mode = &config.outbound_traffic_policy.mode;
        if !matches!(mode.as_str(), "" | "ALLOW_ANY" | "REGISTRY_ONLY") {
            return Err(MeshConfigError::Mode(mode.clone()));
        }
        for (field, all) in [
            ("defaultVirtualServiceExportTo", &config.default_virtual_service_export_to),
            ("defaultDestinationRuleExportTo", &config.default_destination_rule_export_to),
        ] {
            if let Some(value) = all.iter().find(|v| !EXPORT_TO.contains(&v.as_str())) {
                return Err(MeshConfigError::ExportTo { field, value: value.clone() });
            }
        }
        if let Some(percentage) = config.default_config.tracing.sampling.filter(|p| !(0.0..=100.0).contains(p)) {
            return Err(MeshConfigError::Sampling(percentage));
        }
        config.tls_defaults.check()?;
        Ok(config)
    }

    /// The fields of a text that have no effect since nobody knows them. (Istio's that have none here are not among them.) Of a text
    /// that cannot be read there are none.
    pub fn unknown_fields(text: &str) -> Vec<UnknownField> {
        let fields = value(text).map(|value| fields::unknown(&value)).unwrap_or_default();
        fields.into_iter().map(UnknownField).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn what_is_honoured_is_read_and_the_rest_is_passed_over() {
        let text = "accessLogFile: ''\nenableTracing: true\nextensionProviders: [{name: otel}]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\ndefaultConfig: {concurrency: 2, discoveryAddress: istiod:15012}\ndefaultVirtualServiceExportTo: ['.']\n";
        let config = MeshConfig::read(text).unwrap();
        assert_eq!((config.extension_providers.len(), &*config.extension_providers[0].name), (1, "otel"));
        assert_eq!(config.access_log_file.as_deref(), Some(""));
        assert_eq!(config.outbound_traffic_policy.mode, "REGISTRY_ONLY");
        assert_eq!((config.default_config.concurrency, &*config.default_virtual_service_export_to[0]), (Some(2), "."));
        assert_eq!(MeshConfig::read("").unwrap(), MeshConfig::default());
        assert_eq!(MeshConfig::read("# nothing\n").unwrap(), MeshConfig::default());
        assert_eq!(MeshConfig::read("defaultConfig:\noutboundTrafficPolicy: null\n").unwrap(), MeshConfig::default());
        assert!(MeshConfig::unknown_fields(text).is_empty());
    }

    #[test]
    fn slips_are_named_and_the_rest_is_in_force() {
        let text = "accessLogfile: x\ntlsDefaults: {minProtocolVersion: TLSV1_3, curves: [P-256]}\nmeshid:\n";
        let mut unknown: Vec<String> = MeshConfig::unknown_fields(text).into_iter().map(|field| field.0).collect();
        unknown.sort();
        assert_eq!(unknown, ["accessLogfile", "tlsDefaults.curves"], "what has no value is not there");
        assert_eq!(MeshConfig::read(text).unwrap().tls_defaults.min_version(), Some(Version::V1_3));
        for none in ["", "# nothing", "a: [", "[]", "text"] {
            assert!(MeshConfig::unknown_fields(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn defaults_of_tls_are_read() {
        let text = "tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256], ecdhCurves: [P-256, X25519]}";
        let defaults = MeshConfig::read(text).unwrap().tls_defaults;
        assert_eq!(defaults.min_version(), Some(Version::V1_3));
        assert_eq!((defaults.cipher_suites.len(), defaults.ecdh_curves.len()), (1, 2));
        let auto = MeshConfig::read("tlsDefaults: {minProtocolVersion: TLS_AUTO}").unwrap().tls_defaults;
        assert_eq!(auto.min_version(), None);
    }

    #[test]
    fn a_topology_is_read_wherever_it_stands() {
        let text =
            "gatewayTopology: {numTrustedProxies: 2, forwardClientCertDetails: APPEND_FORWARD, proxyProtocol: {}}";
        let topology = ProxyConfig::read(text).unwrap().gateway_topology.unwrap();
        assert_eq!(topology.num_trusted_proxies, 2);
        assert_eq!(topology.forward_client_cert_details, ForwardClientCertDetails::AppendForward);
        assert!(topology.proxy_protocol.is_some());
        let whole = MeshConfig::read(&format!("defaultConfig:\n  {text}\n")).unwrap();
        assert_eq!(whole.default_config.gateway_topology, Some(topology));
        let without = ProxyConfig::read("gatewayTopology: {proxyProtocol: null}").unwrap();
        assert_eq!(without.gateway_topology, Some(GatewayTopology::default()));
        assert_eq!(ProxyConfig::read("").unwrap(), ProxyConfig::default());
        assert!(ProxyConfig::read("gatewayTopology: [").is_err());
    }

    #[test]
    fn providers_of_external_authorization_are_read_whole() {
        let text = "
extensionProviders:
- name: grpc
  envoyExtAuthzGrpc: {service: a/authz.example.com, port: 9000, timeout: 1s, failOpen: true, statusOnError: 503, clearRouteCache: true, includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}}
- name: http
  envoyExtAuthzHttp: {service: authz.a.svc, port: '8000', pathPrefix: /check, statusOnError: '429', includeRequestHeadersInCheck: [x-a], includeHeadersInCheck: [x-b], includeAdditionalHeadersInCheck: {x-c: d}, headersToUpstreamOnAllow: [x-e], headersToDownstreamOnAllow: [x-f], headersToDownstreamOnDeny: [x-g]}
";
        assert!(MeshConfig::read(text).unwrap_err().to_string().contains("port: invalid type"));
        let config = MeshConfig::read(&text.replace("'8000'", "8000")).unwrap();
        let grpc = config.extension_providers[0].envoy_ext_authz_grpc.as_ref().unwrap();
        let body = RequestBodyInCheck {
            max_request_bytes: 10,
            allow_partial_message: true,
            pack_as_bytes: true,
            unknown: BTreeMap::new(),
        };
        assert_eq!((&*grpc.service, grpc.port, &*grpc.timeout), ("a/authz.example.com", 9000, "1s"));
        assert_eq!((grpc.fail_open, &*grpc.status_on_error), (true, "503"));
        assert_eq!((grpc.clear_route_cache, grpc.include_request_body_in_check.as_ref()), (true, Some(&body)));
        let http = config.extension_providers[1].envoy_ext_authz_http.as_ref().unwrap();
        assert_eq!((http.port, &*http.path_prefix, &*http.status_on_error), (8000, "/check", "429"));
        let lists = [
            &http.include_request_headers_in_check,
            &http.include_headers_in_check,
            &http.headers_to_upstream_on_allow,
            &http.headers_to_downstream_on_allow,
            &http.headers_to_downstream_on_deny,
        ];
        assert_eq!(lists.map(|list| &*list[0]), ["x-a", "x-b", "x-e", "x-f", "x-g"]);
        assert_eq!(http.include_additional_headers_in_check["x-c"], "d");
        assert!(grpc.unknown.is_empty() && http.unknown.is_empty());
        // What is not known is not passed over.
        let text = "extensionProviders: [{name: p, cache: {ttl: 5s, keys: [{type: Path, nam: x}], tll: 5s}, envoyExtAuthzGrpc: {service: s, failopen: false, port: 1}}]";
        let config = MeshConfig::read(text).unwrap();
        let grpc = config.extension_providers[0].envoy_ext_authz_grpc.as_ref().unwrap();
        assert_eq!(
            (&*grpc.service, grpc.port, grpc.unknown.keys().map(String::as_str).collect::<Vec<_>>()),
            ("s", 1, vec!["failopen"])
        );
        let cache = config.extension_providers[0].cache.as_ref().unwrap();
        assert_eq!((&*cache.ttl, cache.unknown.keys().map(String::as_str).collect::<Vec<_>>()), ("5s", vec!["tll"]));
        assert_eq!(
            (&*cache.keys[0].r#type, cache.keys[0].unknown.keys().map(String::as_str).collect::<Vec<_>>()),
            ("Path", vec!["nam"])
        );
    }

    #[test]
    fn providers_of_logs_are_read() {
        let text = "
extensionProviders:
- name: otel
  envoyOtelAls: {service: a/collector.example.com, port: 4317, logName: mesh, logFormat: {labels: {a: b}}}
defaultProviders: {accessLogging: [envoy, otel]}
";
        let config = MeshConfig::read(text).unwrap();
        let otel = config.extension_providers[0].envoy_otel_als.as_ref().unwrap();
        assert_eq!((&*otel.service, otel.port, &*otel.log_name), ("a/collector.example.com", 4317, "mesh"));
        assert!(otel.log_format.is_some());
        assert_eq!(config.default_providers.access_logging, ["envoy", "otel"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, says) in [
            ("accessLogFile: /var/log/access", "accessLogFile: unsupported file \"/var/log/access\""),
            ("outboundTrafficPolicy: {mode: NONE}", "outboundTrafficPolicy.mode: unsupported value \"NONE\""),
            ("defaultDestinationRuleExportTo: [team]", "defaultDestinationRuleExportTo: unsupported value \"team\""),
            ("defaultConfig: {tracing: {sampling: 101}}", "defaultConfig.tracing.sampling: 101 is out of range"),
            ("defaultConfig: {concurrency: many}", "concurrency: invalid type"),
            ("defaultConfig: {gatewayTopology: {numTrustedProxies: -1}}", "numTrustedProxies: invalid value"),
            ("defaultConfig: {gatewayTopology: {forwardClientCertDetails: ALL}}", "unknown variant `ALL`"),
            ("defaultConfig: {gatewayTopology: {proxyProtocol: true}}", "proxyProtocol: invalid type"),
            (
                "tlsDefaults: {minProtocolVersion: TLSV1_1}",
                "minProtocolVersion: unsupported value \"TLSV1_1\": use TLSV1_2, ",
            ),
            (
                "tlsDefaults: {cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256, AES128-SHA]}",
                "tlsDefaults.cipherSuites[1]: unsupported value \"AES128-SHA\": use ECDHE-ECDSA-AES256-GCM-SHA384, ",
            ),
            (
                "tlsDefaults: {ecdhCurves: [P-521]}",
                "tlsDefaults.ecdhCurves[0]: unsupported value \"P-521\": use P-256, ",
            ),
            ("a: [", "cannot be read"),
        ] {
            let error = MeshConfig::read(text).unwrap_err().to_string();
            assert!(error.contains(says) && error.ends_with("[KARST-0710]"), "{text}: {error}");
        }
    }
}
