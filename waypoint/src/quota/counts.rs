//! By what requests were let through, or not, where a limit is shared.

use karst_rt::exposition::{Kind, Page};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const NAME: &str = "karst_shared_rate_limit_checks_total";

/// Who has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The bucket is kept here.
    Own,
    /// What was leased, or is known to be used up.
    Lease,
    /// The request has waited for the keeper.
    Asked,
    /// The keeper was not reached in time: this replica counted for itself.
    Alone,
}

impl By {
    const ALL: [Self; 4] = [Self::Own, Self::Lease, Self::Asked, Self::Alone];

    fn text(self) -> &'static str {
        match self {
            By::Own => "own",
            By::Lease => "lease",
            By::Asked => "asked",
            By::Alone => "alone",
        }
    }
}

/// The counters of a process.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; By::ALL.len()]);

impl Counts {
    /// One more.
    pub fn count(&self, by: By) {
        self.0[by as usize].fetch_add(1, Relaxed);
    }

    /// How many.
    pub fn of(&self, by: By) -> u64 {
        self.0[by as usize].load(Relaxed)
    }

    /// Adds them to the metrics page.
    pub fn render(&self, page: &mut Page) {
        let mut family = page.family(NAME, Kind::Counter, "Requests that a shared rate limit was asked about.");
        for by in By::ALL {
            family.sample(&[("by", by.text())], self.of(by));
        }
    }
}
