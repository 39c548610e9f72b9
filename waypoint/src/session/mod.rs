//! Session persistence (GEP-1619): a client comes back to the endpoint that it was at, by a value in a cookie or header that only
//! gateways and waypoints can read or write. Nothing is kept here, so restarts and other replicas lose nothing. What always holds: a
//! value that was changed, or is another's, counts as none; an endpoint is only looked for among those of the destination that the
//! route has chosen. Who asks is [`mod@crate::http`]'s `session`; proven there and by the tests of these files.

pub mod keys;
pub mod rules;
pub mod token;
