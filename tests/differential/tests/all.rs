//! All that is judged a second time by somebody else.

mod authorization;
mod common;
mod doors;
mod flows;
mod forwarded;
mod gateway_samples;
mod readings;
mod truth;
