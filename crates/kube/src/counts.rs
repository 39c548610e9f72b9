//! What happens to watched objects, counted.

use karst_manifest::kinds::KINDS;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What has happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It was not there before.
    Add,
    /// Something that is read of it has changed.
    Update,
    /// Nothing that is read of it has changed.
    UpdateSame,
    /// It is gone.
    Delete,
}

impl Happened {
    const ALL: [Self; 4] = [Self::Add, Self::Update, Self::UpdateSame, Self::Delete];

    /// Istio's word for it, for the label `event`.
    pub fn text(self) -> &'static str {
        match self {
            Happened::Add => "add",
            Happened::Update => "update",
            Happened::UpdateSame => "updatesame",
            Happened::Delete => "delete",
        }
    }
}

/// How often what has happened, by kind (one of [`KINDS`]).
#[derive(Debug)]
pub struct WatchCounts(Vec<[AtomicU64; 4]>);

impl Default for WatchCounts {
    fn default() -> Self {
        Self(KINDS.iter().map(|_| Default::default()).collect())
    }
}

impl WatchCounts {
    /// One more.
    pub(crate) fn note(&self, kind: &str, what: Happened) {
        let counts = KINDS.iter().zip(&self.0).find(|((known, ..), _)| *known == kind).map(|(_, counts)| counts);
        if let Some(count) = counts.and_then(|counts| counts.get(what as usize)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// The counts of now: what has never happened is left out.
    pub fn all(&self) -> Vec<(&'static str, Happened, u64)> {
        let of = |((kind, ..), counts): (&(&'static str, &'static str, bool), &[AtomicU64; 4])| {
            let kind = *kind;
            let counts: [u64; 4] = std::array::from_fn(|i| counts[i].load(Relaxed));
            Happened::ALL.into_iter().zip(counts).map(move |(what, count)| (kind, what, count))
        };
        KINDS.iter().zip(&self.0).flat_map(of).filter(|(_, _, count)| *count > 0).collect()
    }
}
