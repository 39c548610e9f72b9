//! One edge as it is kept, and which reporters count.
//!
//! A call is told of by up to three proxies. Of an edge the destination's report counts, and a waypoint's (in ambient mode the
//! destination's ztunnel tells of the waypoint as the source of what comes through it, so these are never the same calls); the
//! source's only where neither of them has told for a while. What a source reports to a service, or to its waypoint, does not
//! count either where a waypoint reports the same caller and service.
//! Connections that did not come about are the exception, since a destination may never have seen them: the larger of all
//! reporters' counts.

use crate::{
    cell::Cell,
    place::{Between, Protocol, Reporter},
    refusal::Refusal,
};
use std::{collections::VecDeque, sync::Arc};

/// Whoever has told of an edge is waited for this long, in milliseconds, before another reporter counts.
pub(crate) const STICKY: u64 = 60_000;
/// What is live is counted over this long, in milliseconds.
pub(crate) const WINDOW: u64 = 10_000;
/// Most refusals that an edge keeps.
const MAX_REFUSALS: usize = 8;

/// One reporter's view of an edge.
#[derive(Default)]
struct View {
    pending: Cell,
    requests_at: Option<u64>,
    connections_at: Option<u64>,
    /// All connections that did not come about, since the edge is known.
    failed: u64,
}

struct Tick {
    at: u64,
    cell: Cell,
}

/// An edge.
pub(crate) struct Tracked {
    pub(crate) between: Between,
    pub(crate) source_principal: Arc<str>,
    pub(crate) destination_principal: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) refusals: Vec<Refusal>,
    /// When something was last seen, in milliseconds.
    pub(crate) last: u64,
    /// What is counted of the slot of the time line that has begun.
    pub(crate) slot: Cell,
    /// Calls refused, not yet counted.
    pub(crate) refused: u64,
    views: [View; 3],
    /// Of the connections that did not come about: those that were counted.
    failed: u64,
    live: VecDeque<Tick>,
}

fn at(reporter: Reporter) -> usize {
    match reporter {
        Reporter::Destination => 0,
        Reporter::Waypoint => 1,
        Reporter::Source => 2,
    }
}

fn is_fresh(told: Option<u64>, now: u64) -> bool {
    told.is_some_and(|told| now.saturating_sub(told) < STICKY)
}

impl Tracked {
    pub(crate) fn new(between: Between, now: u64) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            between,
            source_principal: empty.clone(),
            destination_principal: empty,
            protocol: Protocol::Tcp,
            refusals: vec![],
            last: now,
            slot: Cell::default(),
            refused: 0,
            views: Default::default(),
            failed: 0,
            live: VecDeque::new(),
        }
    }

    /// What a reporter has told and is not counted yet.
    pub(crate) fn pending(&mut self, reporter: Reporter) -> &mut Cell {
        &mut self.views[at(reporter)].pending
    }

    /// Does a waypoint tell of requests or connections of this edge?
    pub(crate) fn has_waypoint(&self, now: u64) -> bool {
        let view = &self.views[at(Reporter::Waypoint)];
        let pending = !view.pending.is_empty();
        pending || is_fresh(view.requests_at, now) || is_fresh(view.connections_at, now)
    }

    /// Counts what is pending, each call once. `behind`: the source reports to a service whose waypoint tells of the same.
    pub(crate) fn settle(&mut self, now: u64, behind: bool) {
        for view in &mut self.views {
            let cell = &view.pending;
            if cell.requests > 0 {
                view.requests_at = Some(now);
            }
            if cell.opened + cell.sent + cell.received > 0 {
                view.connections_at = Some(now);
            }
            view.failed += cell.failed;
        }
        let told = |time: fn(&View) -> Option<u64>| self.views.iter().take(2).any(|view| is_fresh(time(view), now));
        let source_requests = !behind && !told(|view| view.requests_at);
        let source_connections = !behind && !told(|view| view.connections_at);
        let mut sum = Cell::default();
        for (i, view) in self.views.iter_mut().enumerate() {
            let cell = std::mem::take(&mut view.pending);
            let is_source = i == at(Reporter::Source);
            let counted = part(cell, !is_source || source_requests, !is_source || source_connections);
            sum.add(&counted);
        }
        let failed = self.views.iter().map(|view| view.failed).max().unwrap_or_default();
        sum.failed = if behind { 0 } else { failed.saturating_sub(self.failed) };
        self.failed = self.failed.max(failed);
        sum.refused = std::mem::take(&mut self.refused);
        while self.live.front().is_some_and(|tick| tick.at + WINDOW <= now) {
            self.live.pop_front();
        }
        if !sum.is_empty() {
            self.last = now;
            self.slot.add(&sum);
            self.live.push_back(Tick { at: now, cell: sum });
        }
    }

    /// Bytes that it takes, without the names and what the maps of its cells have.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.live.capacity() * size_of::<Tick>() + self.refusals.capacity() * size_of::<Refusal>()
    }

    /// The sum of what is live.
    pub(crate) fn live(&self) -> Cell {
        let mut sum = Cell::default();
        self.live.iter().for_each(|tick| sum.add(&tick.cell));
        sum
    }

    /// A refusal: the newest are kept, one of each kind.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        match self.refusals.iter_mut().find(|known| known.is_like(&refusal)) {
            Some(known) if known.last <= refusal.last => *known = refusal,
            Some(_) => {}
            None => self.refusals.push(refusal),
        }
        self.refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.last));
        self.refusals.truncate(MAX_REFUSALS);
    }
}

/// What counts of a reporter's cell.
fn part(mut cell: Cell, requests: bool, connections: bool) -> Cell {
    if !requests {
        (cell.requests, cell.errors, cell.client_errors) = (0, 0, 0);
        cell.codes.clear();
        cell.buckets = Default::default();
    }
    if !connections {
        (cell.opened, cell.sent, cell.received) = (0, 0, 0);
    }
    if !requests && !connections {
        (cell.mtls, cell.plain) = (0, 0);
        if cell.failed == 0 {
            cell.flags.clear();
        }
    }
    cell
}
