//! The soak's decisions, apart from all that is done: which faults there are, when they come, what they excuse, and whether memory
//! is flat. Pure; proven by `tests/soak.rs`. `karst-soak` carries them out (`cargo xtask soak`).

pub mod faults;
pub mod judge;
pub mod schedule;
pub mod slope;
