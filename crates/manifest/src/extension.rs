//! Karst's own API, `karst.io/v1alpha1`: what neither Gateway API nor Istio's API can say.

use crate::{
    kinds::{Meta, TargetRef},
    traffic::VsFault,
};
use serde::Deserialize;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct HTTPFilter {
    pub metadata: Meta,
    pub spec: HttpFilterSpec,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpFilterSpec {
    /// Services of this namespace: it is for all of their requests. Without any it is for the rules of HTTPRoutes and GRPCRoutes
    /// that name it in a filter of type ExtensionRef.
    #[cfg_attr(test, schemars(with = "Vec<FilterTarget>"))]
    pub target_refs: Vec<TargetRef>,
    /// As in a VirtualService.
    pub fault: Option<VsFault>,
    /// Requests must be within all of them.
    pub rate_limits: Vec<RateLimit>,
}
/// What a schema says of a TargetRef.
#[cfg(test)]
#[derive(schemars::JsonSchema)]
pub struct FilterTarget {
    /// Empty, as of a Service.
    pub group: Option<String>,
    /// Service.
    pub kind: String,
    pub name: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// So many, 1 to 1,000,000, in the time that `per` says. Each proxy counts for itself.
    pub requests: u32,
    /// Such as 1s (and this if nothing is given), 1m or 1h; 1ms to 24h.
    pub per: Option<String>,
    /// So many may come at once; `requests` if nothing is given.
    pub burst: Option<u32>,
    /// All (and this if nothing is given): everybody together, over all rules of a service that name the filter; Caller: each
    /// identity of the mesh by itself, or address where there is none.
    pub by: Option<String>,
}
