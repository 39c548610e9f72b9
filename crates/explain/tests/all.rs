//! Incidents, what was observed, and what was before.

mod incidents;
mod observed;
mod past;
