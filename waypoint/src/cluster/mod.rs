//! Destinations: their endpoints, what is known of them, and the choice among them.

pub mod balance;
pub mod endpoint_set;
pub mod locality;
