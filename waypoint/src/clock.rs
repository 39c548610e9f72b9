//! The process's clock: all times are counted from its beginning.

use std::{sync::LazyLock, time::Duration};
use tokio::time::Instant;

/// When the process began.
static START: LazyLock<Instant> = LazyLock::new(|| Instant::from_std(std::time::Instant::now()));

/// How long the process has run.
pub fn elapsed() -> Duration {
    START.elapsed()
}

/// Milliseconds since the process began.
pub fn now() -> u64 {
    elapsed().as_millis() as u64
}

/// The same for a moment that has been read already.
pub fn at(moment: Instant) -> u64 {
    moment.saturating_duration_since(*START).as_millis() as u64
}
