//! Headers that a request or an answer is asked for, or given, by name. As constants: a name that is text is read and
//! checked anew at each look-up.

use http::HeaderName;

/// Who has called, and by whom it has come.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How it has come: `http` or `https`.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Whose certificates it has come by.
pub const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The client, as trusted proxies tell.
pub const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
/// What tells a request from others in logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The path before a rewrite.
pub const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// When a call of gRPC has to be over.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// How a call of gRPC has ended.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
