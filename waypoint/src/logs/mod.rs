//! The access log for collectors (OpenTelemetry's logs): who has asked for it pays for it, and a request waits for nobody.
//!
//! - [`rules`]: where records go, and which. [`record`]: what one says. [`recorder`]: a worker's; their further way is that of spans
//!   ([`crate::spans::batches`]).

pub mod record;
pub mod recorder;
pub mod rules;
