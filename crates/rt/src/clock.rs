//! The clocks. Code of the product asks for the time here (`cargo xtask lint` counts who does not: `lint/clocks.rs`): a
//! clock that a test is to move, or a fault is to set, can be put in one place.

#[cfg(feature = "testing")]
mod wrong;

use std::time::{Duration, SystemTime, UNIX_EPOCH};
#[cfg(feature = "testing")]
use wrong::shifted;

/// A moment of the monotonic clock: tokio's, so that what is measured and what is waited for go by the same one.
pub use tokio::time::Instant;

/// The time of day. It may be set, and go back: only for what people and peers read.
pub fn wall() -> SystemTime {
    shifted(SystemTime::now())
}

/// It is as the system has it.
#[cfg(not(feature = "testing"))]
fn shifted(now: SystemTime) -> SystemTime {
    now
}

/// The time of day as the time since 1970; none before that.
pub fn since_epoch() -> Duration {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_of_this_century() {
        assert!(since_epoch() > Duration::from_secs(1_700_000_000));
    }
}
