//! What is told of requests and connections: the access log, and Istio's metrics.

pub mod carried;
pub mod flag;
pub mod metrics;
pub mod request_log;
pub mod rules;
