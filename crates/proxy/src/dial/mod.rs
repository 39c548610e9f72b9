//! The one way to an endpoint, for the node proxy and the layer 7 proxy: resolve its name, connect to it, or open a
//! stream on a tunnel to it whose other end has proven who it is. The choice among endpoints is the caller's, who is
//! told which could not be reached.
//!
//! What must always hold: an endpoint of a service that has not answered for [`karst_core::limits::FIRST_TRY`] is not
//! waited for where there is another that is not avoided itself; it is avoided for [`karst_core::limits::AVOID`]; a
//! tunnel whose peer did not answer gets no further stream ([`karst_hbone::pool::Pool::open`]).

mod candidate;
mod dialer;
mod error;
mod headers;
#[cfg(test)]
mod testing;

pub use candidate::{Candidate, Endpoint};
pub use dialer::{Dialer, Target};
pub use error::DialError;
pub use headers::headers;
