//! What is kept of a connection at most.

/// Most bytes of a line (of which only one that has not ended is kept); servers take 8 KiB by default. Longer: given up.
pub const MAX_LINE: usize = 16 << 10;
/// Most bytes of a block of headers (HTTP/2, as it is on the wire). Larger: given up.
pub const MAX_BLOCK: usize = 32 << 10;
/// Most requests without answer on a connection of HTTP/1. More: given up.
pub const MAX_PIPELINE: usize = 256;
/// Most open streams on a connection of HTTP/2. More: given up.
pub const MAX_STREAMS: usize = 1024;
/// Largest table of headers that a peer may use (RFC 7541 §4.2), in its bytes; of these an entry of 32 or more is 16 here. Larger:
/// given up.
pub const MAX_TABLE: usize = 64 << 10;
/// Most bytes that are kept of what a request asks for, of its method and of its path with query each. What is longer is cut.
pub const MAX_PATH: usize = 256;
/// Most bytes of a server that speaks before its client, as servers of gRPC may. More: it is not HTTP.
pub const MAX_EARLY: usize = 1024;
