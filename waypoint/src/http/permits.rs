//! Circuit breaking: places among a destination's retries and HTTP/1.1 connections.

use crate::{clock, cluster::endpoint_set::EndpointSet, telemetry::flag::ResponseFlag};
use std::{rc::Rc, sync::atomic::Ordering::Relaxed};
use tokio::time::Instant;

/// A retry, counted until the next one.
pub(super) struct RetryPermit(Rc<EndpointSet>);

impl RetryPermit {
    /// None if there are as many as there may be.
    pub(super) fn start(set: &Rc<EndpointSet>) -> Option<Self> {
        let most = match (&set.policy.retries, &set.retry_rate) {
            (None, None) => set.policy.limits.as_ref().map(|l| l.max_retries).filter(|n| *n > 0),
            // A rate says nothing of how many there are at a time.
            (None, Some(rate)) if rate.retry(clock::now()) => None,
            (None, Some(_)) => return None,
            (Some(b), _) => {
                let under_way = u64::from(set.cluster.requests.load(Relaxed));
                Some(((under_way * u64::from(b.per_million) / 1_000_000) as u32).max(b.at_least))
            }
        };
        let now = set.cluster.retries.fetch_add(1, Relaxed);
        let one = Self(set.clone());
        most.is_none_or(|m| now < m).then_some(one)
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.cluster.retries.fetch_sub(1, Relaxed);
    }
}

/// A place among a destination's HTTP/1.1 connections: waits for one, with no more others than may wait.
pub(super) async fn acquire_connection(
    set: &EndpointSet,
    http2: bool,
    until: Option<Instant>,
) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, ResponseFlag> {
    let Some(limits) = set.policy.limits.as_ref().filter(|limits| limits.max_connections > 0 && !http2) else {
        return Ok(None);
    };
    let connection_permits = set.cluster.connection_permits(limits.max_connections);
    if let Ok(p) = connection_permits.clone().try_acquire_owned() {
        return Ok(Some(p));
    }
    struct PendingGuard<'a>(&'a EndpointSet);
    impl Drop for PendingGuard<'_> {
        fn drop(&mut self) {
            self.0.cluster.pending.fetch_sub(1, Relaxed);
        }
    }
    let others = set.cluster.pending.fetch_add(1, Relaxed);
    let _waiting = PendingGuard(set);
    if limits.max_pending > 0 && others >= limits.max_pending {
        return Err(ResponseFlag::Overflow);
    }
    let wait = connection_permits.acquire_owned();
    let got = match until {
        None => wait.await,
        Some(t) => tokio::time::timeout_at(t, wait).await.map_err(|_| ResponseFlag::Timeout)?,
    };
    got.map(Some).map_err(|_| ResponseFlag::Overflow)
}
