//! Destinations: their endpoints, what is known of them, and the choice among them.

pub mod balance;
pub mod endpoint;
pub mod endpoint_set;
pub mod key;
pub mod locality;
pub mod overload;
pub mod retry_rate;
pub mod ring;
pub mod tls;
