//! What is counted in a period: one reporter's view of one edge.

use karst_flows::DURATION_BOUNDS;
use std::{collections::BTreeMap, sync::Arc};

/// Istio's bounds of durations, in milliseconds; the last is infinite.
pub(crate) const BOUNDS: [f64; DURATION_BOUNDS.len() + 1] = {
    let mut all = [f64::INFINITY; DURATION_BOUNDS.len() + 1];
    all.split_at_mut(DURATION_BOUNDS.len()).0.copy_from_slice(&DURATION_BOUNDS);
    all
};
/// Most codes and most flags of one edge that are told apart; others are under 0, and under `other`.
const MAX_APART: usize = 24;
/// Statuses of gRPC that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
/// (OpenTelemetry's semantic conventions for RPC, server spans).
const GRPC_ERRORS: [u16; 6] = [2, 4, 12, 13, 14, 15];

/// Counts of a period.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cell {
    pub(crate) requests: u64,
    /// Of these: 5xx, no answer at all, or a status of gRPC that is the server's fault.
    pub(crate) errors: u64,
    /// Of these: 4xx.
    pub(crate) client_errors: u64,
    pub(crate) opened: u64,
    /// Connections that did not come about.
    pub(crate) failed: u64,
    /// Bytes to the client.
    pub(crate) sent: u64,
    /// Bytes from the client.
    pub(crate) received: u64,
    /// Of the requests and connections: those in mutual TLS.
    pub(crate) mtls: u64,
    /// Of the requests and connections: those in plaintext. Of the others it is not known.
    pub(crate) plain: u64,
    /// Calls that a policy has refused.
    pub(crate) refused: u64,
    pub(crate) codes: BTreeMap<u16, u64>,
    pub(crate) flags: BTreeMap<Arc<str>, u64>,
    /// Cumulative, as Prometheus has them: requests of at most that bound.
    pub(crate) buckets: [u64; BOUNDS.len()],
}

/// Is this answer an error of the server's?
pub(crate) fn is_error(code: u16, grpc: Option<u16>) -> bool {
    code >= 500 || code == 0 || grpc.is_some_and(|status| GRPC_ERRORS.contains(&status))
}

fn add<K: Ord + Clone>(all: &mut BTreeMap<K, u64>, key: &K, other: K, by: u64) {
    let key = if all.contains_key(key) || all.len() < MAX_APART { key.clone() } else { other };
    *all.entry(key).or_default() += by;
}

impl Cell {
    pub(crate) fn is_empty(&self) -> bool {
        let all = [self.requests, self.opened, self.failed, self.sent, self.received, self.refused];
        all.iter().all(|count| *count == 0)
    }

    pub(crate) fn code(&mut self, code: u16, by: u64) {
        add(&mut self.codes, &code, 0, by);
    }

    pub(crate) fn flag(&mut self, flag: &Arc<str>, by: u64) {
        if !flag.is_empty() {
            add(&mut self.flags, flag, "other".into(), by);
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.requests, other.requests),
            (&mut self.errors, other.errors),
            (&mut self.client_errors, other.client_errors),
            (&mut self.opened, other.opened),
            (&mut self.failed, other.failed),
            (&mut self.sent, other.sent),
            (&mut self.received, other.received),
            (&mut self.mtls, other.mtls),
            (&mut self.plain, other.plain),
            (&mut self.refused, other.refused),
        ] {
            *mine = mine.saturating_add(theirs);
        }
        other.codes.iter().for_each(|(code, by)| self.code(*code, *by));
        other.flags.iter().for_each(|(flag, by)| self.flag(flag, *by));
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// The duration that this share (0 to 1) of the requests has not exceeded, in milliseconds, as Prometheus'
    /// `histogram_quantile` estimates it: linear within a bucket, and the last finite bound for what is above it.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        // A bound that a page does not have counts what is below it.
        let mut counts = self.buckets;
        let mut most = 0;
        for count in &mut counts {
            most = most.max(*count);
            *count = most;
        }
        if most == 0 {
            return None;
        }
        let rank = share * most as f64;
        let at = counts.iter().position(|count| *count as f64 >= rank && *count > 0)?;
        let below = |values: &dyn Fn(usize) -> f64| at.checked_sub(1).map_or(0.0, values);
        let (from, before) = (below(&|i| BOUNDS[i]), below(&|i| counts[i] as f64));
        let inside = counts[at] as f64 - before;
        if BOUNDS[at].is_infinite() {
            return Some(from);
        }
        Some(if inside > 0.0 { from + (BOUNDS[at] - from) * (rank - before) / inside } else { BOUNDS[at] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let mut cell = Cell::default();
        assert_eq!(cell.quantile(0.5), None, "nothing was counted");
        // 100 requests between 10 and 25 ms, 100 between 25 and 50.
        for (at, count) in cell.buckets.iter_mut().enumerate() {
            *count = if BOUNDS[at] < 25.0 {
                0
            } else if BOUNDS[at] < 50.0 {
                100
            } else {
                200
            };
        }
        assert_eq!(cell.quantile(0.5), Some(25.0));
        assert_eq!(cell.quantile(0.75), Some(37.5));
        assert_eq!(cell.quantile(0.25), Some(17.5));
        let late =
            Cell { buckets: std::array::from_fn(|at| if at == BOUNDS.len() - 1 { 5 } else { 0 }), ..Cell::default() };
        assert_eq!(late.quantile(0.99), Some(3_600_000.0), "the last finite bound");
    }

    #[test]
    fn codes_and_flags_are_bounded() {
        let mut cell = Cell::default();
        (200..999).for_each(|code| cell.code(code, 1));
        (0..99).for_each(|flag| cell.flag(&format!("F{flag}").into(), 1));
        assert_eq!((cell.codes.len(), cell.codes.values().sum::<u64>()), (MAX_APART + 1, 799));
        assert_eq!((cell.flags.len(), cell.flags["other"]), (MAX_APART + 1, 99 - MAX_APART as u64));
    }

    #[test]
    fn what_is_an_error() {
        assert!(is_error(503, None) && is_error(0, None) && is_error(200, Some(14)));
        assert!(!is_error(404, None) && !is_error(200, Some(0)) && !is_error(200, Some(5)));
    }
}
