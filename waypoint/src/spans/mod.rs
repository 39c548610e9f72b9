//! Traces (Istio's Telemetry `tracing`): which requests are traced, the spans of a request, and the way of these to a collector.
//! A request that is not traced checks one pointer; one that is hands its spans over when it ends, and waits for nobody.

pub mod attribute;
pub mod context;
pub mod encode;
pub mod export;
pub mod queue;
pub mod request;
pub mod rules;
pub mod sampling;
pub mod tags;
