//! What has become of the open connections of processes that were killed.

use karst_rt::exposition::{Kind, Page};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// By what has become of them.
#[derive(Debug, Default)]
pub struct Counts {
    /// They go on here.
    pub resumed: AtomicU64,
    /// They may not go on, by what is known now.
    pub refused: AtomicU64,
    /// Bytes of theirs are missing, or nobody knows.
    pub unaccounted: AtomicU64,
}

impl Counts {
    /// Adds them to a page.
    pub fn render(&self, page: &mut Page) {
        let mut family = page.family(
            "karst_connections_after_crash_total",
            Kind::Counter,
            "Open connections of a process that was killed: those that were resumed (resumed), and those that were reset because they are not allowed or known any more (refused) or because it is not certain how far they have come (unaccounted).",
        );
        let all = [("resumed", &self.resumed), ("refused", &self.refused), ("unaccounted", &self.unaccounted)];
        for (outcome, count) in all {
            family.sample(&[("outcome", outcome)], count.load(Relaxed));
        }
    }
}
