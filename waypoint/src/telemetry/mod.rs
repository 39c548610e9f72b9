//! What is told of requests and connections: the access log, and Istio's metrics.

pub mod access_log;
pub mod carried;
pub mod expression;
pub mod flag;
pub mod key;
pub mod labels;
pub mod metrics;
pub mod request_log;
pub mod rules;
pub mod sink;
pub mod stream_info;
pub mod tapped;
pub mod wire;
