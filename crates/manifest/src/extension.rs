//! Karst's own API, `karst.io/v1alpha1`: what neither Gateway API nor Istio's API can say.

use crate::{meta::Meta, traffic::VsFault};
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
    /// Services or VirtualServices of this namespace, to all requests of which the filter applies. Without any, it applies to the
    /// rules of HTTPRoutes and GRPCRoutes that refer to it in a filter of type ExtensionRef.
    #[cfg_attr(test, schemars(with = "Vec<FilterTarget>"))]
    pub target_refs: Vec<FilterTargetRef>,
    /// As in a VirtualService.
    pub fault: Option<VsFault>,
    /// Rate limits; a request must be within all of them.
    pub rate_limits: Vec<RateLimit>,
    /// Largest body of a request, in bytes, 1 to 1,099,511,627,776. A larger one is answered with 413. The smallest of several limits
    /// counts.
    pub max_request_bytes: Option<u64>,
    /// Compresses responses (gzip) for clients that accept it. Off by default, because secrets in compressed responses can be
    /// guessed.
    pub compression: Option<Compression>,
    /// It stands for one that cannot be read ([`crate::closed::closed`]): what it applies to is refused.
    #[serde(skip)]
    pub is_unread: bool,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Compression {
    /// Smallest body that is compressed, in bytes, 1 to 1,073,741,824; by default 1024. A body of unknown size is compressed.
    pub min_bytes: Option<u32>,
    /// Content types that are compressed, without parameters; by default text, JavaScript, JSON, XHTML, XML and SVG.
    pub content_types: Vec<String>,
}
/// What a filter applies to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct FilterTargetRef {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
    pub section_name: Option<String>,
}
/// What a schema says of it.
#[cfg(test)]
#[derive(schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilterTarget {
    /// API group: empty, for a Service; networking.istio.io, for a VirtualService.
    pub group: Option<String>,
    /// Kind: Service or VirtualService.
    pub kind: String,
    pub name: String,
    /// Of a VirtualService: the name of one of its HTTP routes; by default, all of them.
    pub section_name: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Number of requests per interval (`per`), 1 to 1,000,000.
    pub requests: u32,
    /// Interval, for example 1s (the default), 1m or 1h; 1ms to 24h.
    pub per: Option<String>,
    /// Number of requests that may arrive at once; by default, the same as `requests`.
    pub burst: Option<u32>,
    /// All (the default): one limit for all clients, over all rules of a service that refer to the filter; Caller: a separate limit
    /// for each mesh identity, or for each address where there is no identity.
    pub by: Option<String>,
    /// A separate limit for each combination of the values of these; at most 8. Not together with `by`.
    pub keys: Vec<RateLimitKey>,
    /// Replica (the default): each replica of a waypoint or gateway counts for itself; Shared: its replicas count together.
    pub scope: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitKey {
    /// Header, Query (a parameter), Claim (of a verified token), Path (without the query), SourceAddress (of IPv6 the first 64
    /// bits), or Caller (the mesh identity, or the address where there is none). Requests without it share one limit.
    pub r#type: String,
    /// Name of the header, the parameter or the claim (`a.b` or `[a][b]` for claims within claims).
    pub name: String,
}
