//! Why a provider of the mesh configuration cannot be used. Each text ends in its code; those who name the provider put their field
//! before it.

use crate::convert::compilation::routes::scalar::InvalidDuration;

/// Most bytes of a body that proxies keep for a question.
pub(crate) const MAX_BODY: u32 = 10 << 20;
/// Most keys of answers that are kept.
pub(super) const KEYS: usize = 8;

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProviderError {
    #[error("no such provider in extensionProviders of the mesh configuration [KARST-0131]")]
    Missing,
    #[error("the name is duplicated in extensionProviders of the mesh configuration [KARST-0013]")]
    Duplicate,
    #[error("envoyExtAuthzGrpc cannot be combined with envoyExtAuthzHttp: remove one of them [KARST-0014]")]
    Both,
    #[error("decides about no requests: only providers of kind envoyExtAuthzGrpc or envoyExtAuthzHttp do [KARST-0131]")]
    Kind,
    #[error("envoyExtAuthzGrpc.{0}")]
    Grpc(SettingError),
    #[error("envoyExtAuthzHttp.{0}")]
    Http(SettingError),
    #[error("cache.{0}")]
    Cache(#[from] CacheError),
}

/// A field that nobody knows, by its way from what is read.
#[derive(Debug, thiserror::Error)]
#[error("{0}: unknown field: remove it, or correct its name [KARST-0001]")]
pub(crate) struct UnknownField(pub(super) String);

/// What is wrong with how answers are kept. `at`: the key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error(transparent)]
    Unknown(#[from] UnknownField),
    #[error("ttl: {0}")]
    Ttl(#[from] InvalidDuration),
    #[error("ttl: {0:?} is out of range: must be between 1ms and 1h [KARST-0017]")]
    Range(String),
    #[error(
        "keys: {0} keys are out of range: specify between 1 and {max}, all of which the provider's answers follow from [KARST-0017]",
        max = KEYS
    )]
    Count(usize),
    #[error("{at}.name: must not be set for {kind} [KARST-0014]")]
    Named { at: String, kind: String },
    #[error("{at}.name: {name:?} is not the name of a header [KARST-0024]")]
    Header { at: String, name: String },
    #[error(
        "{at}.type: unsupported value {kind:?}: use Method, Host, Path, Query, Header, SourceAddress or Caller [KARST-0016]"
    )]
    Kind { at: String, kind: String },
}

/// What is wrong with one of its fields.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingError {
    #[error(transparent)]
    Unknown(#[from] UnknownField),
    #[error("service: {0:?} is not [NAMESPACE/]HOST of a service [KARST-0022]")]
    Service(String),
    #[error("port: {0} is not a port: must be between 1 and 65535 [KARST-0019]")]
    Port(u32),
    #[error("timeout: {0}")]
    Timeout(#[from] InvalidDuration),
    #[error("{field}: {path:?} is not a path: it must begin with '/' [KARST-0022]")]
    Path { field: &'static str, path: String },
    /// Of external authorization.
    #[error("statusOnError: {0:?} is not the status of an error: use 400 to 599 [KARST-0026]")]
    Status(String),
    #[error(
        "includeRequestBodyInCheck.maxRequestBytes: {0} is out of range: must be between 1 and {max} [KARST-0017]",
        max = MAX_BODY
    )]
    Body(u32),
    #[error(
        "{field}: {pattern:?} is not the name of a header, nor its beginning or end with one '*': use for example x-user or x-auth-* [KARST-0024]"
    )]
    Pattern { field: &'static str, pattern: String },
    #[error(
        "includeAdditionalHeadersInCheck: {0:?} is not the name of a header that can be set, or its value is none [KARST-0024]"
    )]
    Additional(String),
    /// Of collectors of spans.
    #[error("header {0:?} is not the name of a header, or its value is none [KARST-0024]")]
    Header(String),
    #[error("header {0:?}: value cannot be combined with envName: remove one of them [KARST-0014]")]
    HeaderTwice(String),
    #[error("http cannot be combined with grpc: remove one of them [KARST-0014]")]
    HttpAndGrpc,
    #[error("traceContextOption: unsupported value {0:?}: use USE_B3 or USE_B3_WITH_W3C_PROPAGATION [KARST-0016]")]
    TraceContext(String),
}
