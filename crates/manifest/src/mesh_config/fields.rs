//! Names of the fields of a mesh configuration: Istio's, whether they have an effect or not (docs/values.md says which), and ours.
//! What is none of them is a slip. Where a list ends the fields below are not looked at: maps of users, providers that say
//! themselves what they do not know, and what has no effect as a whole.

use serde_json::Value;

/// Of each object of the configuration that is looked at, by its path without places in lists: the fields that it may have.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "accessLogEncoding",
            "accessLogFile",
            "accessLogFormat",
            "ambientMesh",
            "authPolicy",
            "ca",
            "caCertificates",
            "certificates",
            "configSources",
            "connectTimeout",
            "defaultConfig",
            "defaultDestinationRuleExportTo",
            "defaultHttpRetryPolicy",
            "defaultProviders",
            "defaultServiceExportTo",
            "defaultVirtualServiceExportTo",
            "disableEnvoyListenerLog",
            "discoverySelectors",
            "dnsRefreshRate",
            "enableAutoMtls",
            "enableEnvoyAccessLogService",
            "enablePrometheusMerge",
            "enableTracing",
            "extensionProviders",
            "h2UpgradePolicy",
            "hboneIdleTimeout",
            "inboundClusterStatName",
            "inboundTrafficPolicy",
            "ingressClass",
            "ingressControllerMode",
            "ingressSelector",
            "ingressService",
            "localityLbSetting",
            "meshMTLS",
            "outboundClusterStatName",
            "outboundTrafficPolicy",
            "pathNormalization",
            "proxyHttpPort",
            "proxyInboundListenPort",
            "proxyListenPort",
            "rootNamespace",
            "sdsUdsPath",
            "serviceScopeConfigs",
            "serviceSettings",
            "statPrefix",
            "tcpKeepalive",
            "thriftConfig",
            "tlsDefaults",
            "trustDomain",
            "trustDomainAliases",
            "verifyCertificateAtClient",
        ],
    ),
    (
        "defaultConfig",
        &[
            "binaryPath",
            "caCertificatesPem",
            "concurrency",
            "configPath",
            "controlPlaneAuthPolicy",
            "customConfigFile",
            "discoveryAddress",
            "drainDuration",
            "envoyAccessLogService",
            "envoyMetricsService",
            "extraStatTags",
            "fileFlushInterval",
            "fileFlushMinSizeKb",
            "gatewayTopology",
            "holdApplicationUntilProxyStarts",
            "image",
            "interceptionMode",
            "meshId",
            "privateKeyProvider",
            "proxyAdminPort",
            "proxyBootstrapTemplatePath",
            "proxyHeaders",
            "proxyMetadata",
            "proxyStatsMatcher",
            "readinessProbe",
            "runtimeValues",
            "serviceCluster",
            "statNameLength",
            "statsCompression",
            "statsdUdpAddress",
            "statusPort",
            "terminationDrainDuration",
            "tracing",
            "tracingServiceName",
            "zipkinAddress",
        ],
    ),
    ("defaultConfig.gatewayTopology", &["forwardClientCertDetails", "numTrustedProxies", "proxyProtocol"]),
    (
        "defaultConfig.tracing",
        &[
            "customTags",
            "datadog",
            "enableIstioTags",
            "lightstep",
            "maxPathTagLength",
            "openCensusAgent",
            "sampling",
            "stackdriver",
            "tlsSettings",
            "zipkin",
        ],
    ),
    ("defaultProviders", &["accessLogging", "metrics", "tracing"]),
    (
        "extensionProviders",
        &[
            "cache",
            "datadog",
            "envoyExtAuthzGrpc",
            "envoyExtAuthzHttp",
            "envoyFileAccessLog",
            "envoyHttpAls",
            "envoyOtelAls",
            "envoyTcpAls",
            "lightstep",
            "name",
            "opencensus",
            "opentelemetry",
            "prometheus",
            "sds",
            "skywalking",
            "stackdriver",
            "zipkin",
        ],
    ),
    ("extensionProviders.envoyOtelAls", &["logFormat", "logName", "port", "service"]),
    (
        "extensionProviders.opentelemetry",
        &[
            "dynatraceSampler",
            "grpc",
            "http",
            "maxTagLength",
            "port",
            "resourceDetectors",
            "service",
            "serviceAttributeEnrichment",
        ],
    ),
    (
        "extensionProviders.zipkin",
        &["enable64bitTraceId", "headers", "maxTagLength", "path", "port", "service", "timeout", "traceContextOption"],
    ),
    ("outboundTrafficPolicy", &["egressProxy", "mode"]),
    ("tlsDefaults", &["cipherSuites", "ecdhCurves", "minProtocolVersion"]),
];

/// Paths of the fields that have none of these names.
pub(super) fn unknown(config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look("", "", config, &mut found);
    found
}

/// `object`: as [`FIELDS`] has it; `at`: its path, with places in lists.
fn look(object: &str, at: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(all) => {
            for (place, value) in all.iter().enumerate() {
                look(object, &format!("{at}[{place}]"), value, found);
            }
        }
        Value::Object(fields) => {
            let Some((_, known)) = FIELDS.iter().find(|(path, _)| *path == object) else { return };
            for (name, value) in fields {
                let at = below(at, name);
                if known.contains(&name.as_str()) {
                    look(&below(object, name), &at, value, found);
                } else {
                    found.push(at);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::mesh_config::*;
    use serde::de::{Deserializer, Error as _, Visitor, value::Error};
    use serde_json::json;

    #[test]
    fn what_has_none_of_the_names_is_found_wherever_it_stands() {
        for (config, paths) in [
            (json!({}), ""),
            (json!(null), ""),
            (json!({ "accessLogfile": "/dev/stdout" }), "accessLogfile"),
            (json!({ "enableTracing": true, "localityLbSetting": { "enable": true } }), ""),
            (
                json!({ "defaultConfig": { "concurency": 2, "proxyMetadata": { "ANY": "x" } } }),
                "defaultConfig.concurency",
            ),
            (
                json!({ "defaultConfig": { "gatewayTopology": { "numTrustedProxys": 2 } } }),
                "defaultConfig.gatewayTopology.numTrustedProxys",
            ),
            (json!({ "tlsDefaults": { "minVersion": "TLSV1_3" } }), "tlsDefaults.minVersion"),
            (json!({ "outboundTrafficPolicy": { "Mode": "REGISTRY_ONLY" } }), "outboundTrafficPolicy.Mode"),
            (
                json!({ "extensionProviders": [{ "name": "a" }, { "name": "b", "openTelemetry": {}, "zipkin": { "host": "z" } }] }),
                "extensionProviders[1].openTelemetry extensionProviders[1].zipkin.host",
            ),
            (json!({ "tracing": 1, "mesh": {} }), "mesh tracing"),
        ] {
            let mut found = unknown(&config);
            found.sort();
            assert_eq!(found.join(" "), paths, "{config}");
        }
    }

    /// Looks at the names of the fields that a type is read from.
    struct Names<'a>(&'a mut Vec<&'static str>);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Error> {
            self.0.extend_from_slice(fields);
            Err(Error::custom("only looked at"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn names<T: DeserializeOwned>() -> Vec<&'static str> {
        let mut names = Vec::new();
        assert!(T::deserialize(Names(&mut names)).is_err() && !names.is_empty());
        names
    }

    #[test]
    fn what_is_read_is_known() {
        for (object, read) in [
            ("", names::<MeshConfig>()),
            ("defaultConfig", names::<ProxyConfig>()),
            ("defaultConfig.gatewayTopology", names::<GatewayTopology>()),
            ("defaultConfig.tracing", names::<ProxyTracing>()),
            ("defaultProviders", names::<DefaultProviders>()),
            ("extensionProviders", names::<ExtensionProvider>()),
            ("extensionProviders.envoyOtelAls", names::<OtelAlsProvider>()),
            ("extensionProviders.opentelemetry", names::<OpenTelemetryProvider>()),
            ("extensionProviders.zipkin", names::<ZipkinProvider>()),
            ("outboundTrafficPolicy", names::<OutboundTrafficPolicy>()),
            ("tlsDefaults", names::<TlsDefaults>()),
        ] {
            let (_, known) = FIELDS.iter().find(|(path, _)| *path == object).unwrap();
            let missing: Vec<_> = read.iter().filter(|name| !known.contains(name)).collect();
            assert!(missing.is_empty(), "{object}: {missing:?}");
        }
        // Of each object that is looked at.
        assert_eq!(FIELDS.len(), 11);
    }

    #[test]
    fn what_the_charts_take_is_known() {
        let table = include_str!("../../../../charts/values.tsv");
        let keys = table.lines().filter_map(|line| line.split('\t').nth(1)?.strip_prefix("meshConfig."));
        let mut seen = 0;
        for key in keys {
            let config = key.rsplit('.').fold(json!("x"), |value, name| json!({ name: value }));
            assert_eq!(unknown(&config), [""; 0], "{key}");
            seen += 1;
        }
        assert!(seen > 80, "{seen} rows");
    }
}
