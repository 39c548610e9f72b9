//! Carries a connection's bytes until it ends, a policy forbids it, the process must stop, or its successor has it.

use crate::{conns::Guard, outcome::Outcome, worker::Worker};
use karst_api::handover::Offer;
use karst_hbone::copy::{Counts, Pair};
use karst_rt::{drain::Phase, on_wake::OnWake};
use std::{
    io,
    pin::{Pin, pin},
    sync::atomic::Ordering::Relaxed,
};

/// Carries bytes until the end, or until a policy forbids it, or the process must stop. (Pinned by the caller, or it would be
/// in the connection's task twice.)
pub async fn relay(worker: &Worker, guard: &Guard, bytes: Pin<&mut impl Future<Output = io::Result<()>>>) -> Outcome {
    until(worker, guard, Phase::Forced, bytes).await.unwrap_or(Outcome::Drained)
}

/// The same of two sockets, which go over to a successor if there is one. `guard`: whom policies close. `offer`: what a successor is
/// told of the connection.
pub async fn plain(
    worker: &Worker,
    guard: &Guard,
    counts: &Counts,
    pair: &mut Pair,
    offer: &dyn Fn() -> Offer,
) -> Outcome {
    let ended = {
        let bytes = pin!(pair.carry(counts));
        until(worker, guard, Phase::HandOver, bytes).await
    };
    match ended {
        Some(outcome) => outcome,
        // Rare, and large: not in the task of every connection.
        None => Box::pin(leave(worker, guard, counts, pair, offer)).await,
    }
}

/// Asks whether the successor would take it, and carries on meanwhile; then it goes in one moment, or stays.
async fn leave(worker: &Worker, guard: &Guard, counts: &Counts, pair: &mut Pair, offer: &dyn Fn() -> Offer) -> Outcome {
    let handed_over = &worker.shared.metrics.handed_over;
    loop {
        let ticket = {
            let bytes = pin!(pair.carry(counts));
            tokio::select! {
                ended = until(worker, guard, Phase::Forced, bytes) => return ended.unwrap_or(Outcome::Drained),
                ticket = worker.shared.desk.ask(handed_over, offer) => ticket,
            }
        };
        // From here on nothing is read or written.
        let parts = match pair.parts() {
            Ok(parts) => parts,
            Err(error) => {
                tracing::warn!(error = %error, "an open connection cannot go over to the next ztunnel");
                drop(ticket);
                return relay(worker, guard, pin!(pair.carry(counts))).await;
            }
        };
        if ticket.go(parts).await {
            pair.release();
            handed_over.given.fetch_add(1, Relaxed);
            return Outcome::HandedOver;
        }
    }
}

/// None: the drain has come to this phase.
async fn until(
    worker: &Worker,
    guard: &Guard,
    phase: Phase,
    bytes: Pin<&mut impl Future<Output = io::Result<()>>>,
) -> Option<Outcome> {
    let mut drain = worker.drain.clone();
    let ended = pin!(async {
        tokio::select! {
            v = guard.forbidden() => Some(Outcome::ClosedByPolicy(v)),
            () = drain.reached(phase) => None,
        }
    });
    let mut ended = OnWake::new(ended);
    tokio::select! {
        r = bytes => Some(Outcome::of_copy(r)),
        outcome = &mut ended => outcome,
    }
}
