//! What a layer 7 proxy's log says of requests that it refuses for what they are. The codes are those of docs/refused.md.

/// A head with more bytes or fields than it may have (431).
pub const LARGE_HEAD: &str = "the request's head has more bytes (KARST_MAX_REQUEST_HEAD) or fields (KARST_MAX_REQUEST_FIELDS) than it may have \
     [KARST-0911]";
/// A body that is larger than it may be (413).
pub const LARGE_BODY: &str = "the request's body is larger than KARST_MAX_REQUEST_BODY, or maxRequestBytes of an HTTPFilter, lets it be \
     [KARST-0912]";
/// A body of gRPC-Web's text form that is none (400).
pub const NOT_BASE64: &str = "the body of the gRPC-Web request is not base64 [KARST-0913]";
