//! Istio's Telemetry: what proxies tell of requests.

use crate::meta::{Meta, Selector, Status, TargetRef};
#[cfg(test)]
use crate::security::{SelectorSchema, TargetSchema};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Telemetry {
    pub metadata: Meta,
    pub spec: TelemetrySpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetrySpec {
    /// Pods of waypoints and gateways; by default, all in the namespace, or in the root namespace all in the mesh.
    #[cfg_attr(test, schemars(with = "Option<SelectorSchema>"))]
    pub selector: Option<Selector>,
    #[cfg_attr(test, schemars(with = "Option<TargetSchema>"))]
    pub target_ref: Option<TargetRef>,
    /// Gateways, and in the root namespace GatewayClasses.
    #[cfg_attr(test, schemars(with = "Vec<TargetSchema>"))]
    pub target_refs: Vec<TargetRef>,
    pub tracing: Vec<Tracing>,
    pub metrics: Vec<Metrics>,
    pub access_logging: Vec<AccessLogging>,
}
impl TelemetrySpec {
    /// What it is attached to, and the path of the field that says so.
    pub fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
        TargetRef::all(self.target_ref.as_ref(), &self.target_refs)
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    pub name: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ModeMatch {
    /// CLIENT (gateways), SERVER (waypoints) or CLIENT_AND_SERVER (the default).
    pub mode: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLogging {
    #[serde(rename = "match")]
    pub matched: Option<ModeMatch>,
    /// `envoy` (the proxy's standard output), or names of extensionProviders of kind envoyOtelAls.
    pub providers: Vec<Provider>,
    pub disabled: Option<bool>,
    pub filter: Option<LogFilter>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LogFilter {
    /// CEL expression over Envoy's attributes; a line is written if it is true.
    pub expression: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Metrics {
    /// `prometheus`: the proxy's metrics endpoint.
    pub providers: Vec<Provider>,
    pub overrides: Vec<MetricsOverride>,
    pub reporting_interval: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricsOverride {
    #[serde(rename = "match")]
    pub matched: Option<MetricMatch>,
    pub disabled: Option<bool>,
    pub tag_overrides: BTreeMap<String, TagOverride>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricMatch {
    /// ALL_METRICS (the default), REQUEST_COUNT, REQUEST_DURATION, REQUEST_SIZE, RESPONSE_SIZE, or a metric of TCP or gRPC
    /// messages.
    pub metric: String,
    pub custom_metric: String,
    pub mode: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TagOverride {
    /// UPSERT (the default) or REMOVE.
    pub operation: String,
    /// CEL expression over Envoy's attributes.
    pub value: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    #[serde(rename = "match")]
    pub matched: Option<ModeMatch>,
    pub providers: Vec<Provider>,
    /// Percentage, 0 to 100.
    pub random_sampling_percentage: Option<f64>,
    pub disable_span_reporting: Option<bool>,
    pub disable_context_propagation: Option<bool>,
    pub custom_tags: BTreeMap<String, CustomTag>,
    pub use_request_id_for_trace_sampling: Option<bool>,
    pub enable_istio_tags: Option<bool>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CustomTag {
    pub literal: Option<Literal>,
    pub environment: Option<Named>,
    pub header: Option<Named>,
    pub formatter: Option<Literal>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Literal {
    pub value: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Named {
    pub name: String,
    pub default_value: String,
}
