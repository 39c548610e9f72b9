//! Carries a connection's bytes until it ends, a policy forbids it, the process must stop, or its successor has it.

use crate::{conns::Guard, handover::pieces::Moved, outcome::Outcome, parking::Parked, worker::Worker};
use karst_api::handover::Offer;
use karst_hbone::{
    continuation::{End, Token},
    copy::{Counts, Pair, Tunnel},
};
use karst_rt::{drain::Phase, on_wake::OnWake};
use prost::Message;
use std::{
    io,
    pin::{Pin, pin},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

/// A peer that has not closed its half for this long, because its application takes nothing, does not hold the successor's attention.
const PEER: Duration = Duration::from_secs(1);

/// Carries the bytes of two sockets until the end, or until a policy forbids it, the process must stop, or its successor has them.
/// `guard`: whom policies close. `offer`: what a successor is told of the connection, also one after a crash. (What it carries is the
/// caller's, or it would be in the connection's task twice.)
pub async fn plain(
    worker: &Worker,
    guard: &Guard,
    counts: &Counts,
    pair: &mut Pair,
    offer: &dyn Fn() -> Offer,
) -> Outcome {
    if let Some(region) = &worker.region {
        pair.enter(region, &offer().encode_to_vec());
    }
    let stop = {
        let bytes = pin!(pair.carry(counts));
        until(worker, guard, Phase::HandOver, bytes).await
    };
    match stop {
        Stop::Done(result) => Outcome::of_copy(result),
        Stop::Closed(outcome) => outcome,
        // Rare, and large: not in the task of every connection.
        Stop::Phase => Box::pin(leave(worker, guard, counts, pair, offer)).await,
    }
}

/// The same of a socket and a stream. If the peer leaves, or the tunnel breaks and the connection outlives it: the token with which the
/// connection goes on.
///
/// # Errors
/// Its end.
pub async fn stream(
    worker: &Worker,
    guard: &Guard,
    counts: &Counts,
    tunnel: &mut Tunnel,
    offer: &dyn Fn() -> Offer,
) -> Result<Token, Outcome> {
    if let (Some(region), Some(token)) = (&worker.region, tunnel.token()) {
        tunnel.enter(region, &Offer { token: token.bytes().to_vec(), ..offer() }.encode_to_vec());
    }
    let stop = {
        let bytes = pin!(tunnel.carry(counts));
        until(worker, guard, Phase::HandOver, bytes).await
    };
    match stop {
        Stop::Done(_) | Stop::Closed(_) => goes_on(stop),
        // As above.
        Stop::Phase => Box::pin(leave_stream(worker, guard, counts, tunnel, offer)).await,
    }
}

/// Asks whether the successor would take it, and carries on meanwhile; then it goes in one moment, or stays.
async fn leave(worker: &Worker, guard: &Guard, counts: &Counts, pair: &mut Pair, offer: &dyn Fn() -> Offer) -> Outcome {
    let handed_over = &worker.shared.metrics.handed_over;
    loop {
        let ticket = {
            let bytes = pin!(pair.carry(counts));
            tokio::select! {
                stop = until(worker, guard, Phase::Forced, bytes) => return stop.into(),
                ticket = worker.shared.desk.ask(handed_over, offer) => ticket,
            }
        };
        // From here on nothing is read or written.
        let parts = match pair.parts() {
            Ok(parts) => parts,
            Err(error) => {
                tracing::warn!(error = %error, "an open connection cannot go over to the next ztunnel");
                drop(ticket);
                return until(worker, guard, Phase::Forced, pin!(pair.carry(counts))).await.into();
            }
        };
        if ticket.go(Moved::Pair(parts)).await {
            pair.release();
            handed_over.given.fetch_add(1, Relaxed);
            return Outcome::HandedOver;
        }
    }
}

/// The same of a stream: once the successor would take it the stream comes to its end, both ways, before the socket goes.
async fn leave_stream(
    worker: &Worker,
    guard: &Guard,
    counts: &Counts,
    tunnel: &mut Tunnel,
    offer: &dyn Fn() -> Offer,
) -> Result<Token, Outcome> {
    let handed_over = &worker.shared.metrics.handed_over;
    let asked = {
        let ask = pin!(worker.shared.desk.ask(handed_over, offer));
        let may_leave = tunnel.may_leave();
        let bytes = pin!(tunnel.carry(counts));
        tokio::select! {
            stop = until(worker, guard, Phase::Forced, bytes) => Err(stop),
            ticket = ask, if may_leave => Ok(ticket),
        }
    };
    let (ticket, token) = match asked {
        // Our half has ended meanwhile: nothing can be said in it any more.
        Ok(ticket) if !tunnel.may_leave() => {
            drop(ticket);
            let bytes = pin!(tunnel.carry(counts));
            return goes_on(until(worker, guard, Phase::Forced, bytes).await);
        }
        Ok(ticket) => {
            match Token::new() {
                Ok(token) => tunnel.leave(token),
                Err(e) => return Err(Outcome::Broken(e.to_string())),
            }
            let soon = {
                let bytes = pin!(tunnel.carry(counts));
                tokio::select! {
                    stop = until(worker, guard, Phase::Forced, bytes) => Some(stop),
                    () = tokio::time::sleep(PEER) => None,
                }
            };
            match soon {
                Some(stop) => (ticket, goes_on(stop)?),
                // Its place is for others: those whose peers' applications take nothing are not to hold up all.
                None => {
                    drop(ticket);
                    let stop = {
                        let bytes = pin!(tunnel.carry(counts));
                        until(worker, guard, Phase::Forced, bytes).await
                    };
                    return Err(leave_ended(worker, guard, tunnel, goes_on(stop)?, offer).await);
                }
            }
        }
        // It has ended, or its peer leaves, too.
        Err(stop) => return Err(leave_ended(worker, guard, tunnel, goes_on(stop)?, offer).await),
    };
    if tunnel.has_broken() {
        return Err(broken_while_leaving());
    }
    let cut = tunnel.interrupted().map_err(|e| Outcome::Broken(e.to_string()))?;
    if ticket.go(Moved::Stream(cut, token)).await {
        tunnel.release();
        handed_over.given.fetch_add(1, Relaxed);
        return Err(Outcome::HandedOver);
    }
    Err(Outcome::Broken("the next ztunnel has gone before it had the connection".into()))
}

/// The same of one whose stream has come to its end already.
async fn leave_ended(
    worker: &Worker,
    guard: &Guard,
    tunnel: &mut Tunnel,
    token: Token,
    offer: &dyn Fn() -> Offer,
) -> Outcome {
    if tunnel.has_broken() {
        return broken_while_leaving();
    }
    match tunnel.interrupted() {
        Ok(cut) => {
            tunnel.release();
            leave_cut(worker, guard, Parked::new(cut), token, offer).await
        }
        Err(e) => Outcome::Broken(e.to_string()),
    }
}

/// The same of a connection that is between two streams.
pub async fn leave_cut(
    worker: &Worker,
    guard: &Guard,
    cut: Parked,
    token: Token,
    offer: &dyn Fn() -> Offer,
) -> Outcome {
    if cut.reached().is_some() {
        return broken_while_leaving();
    }
    let handed_over = &worker.shared.metrics.handed_over;
    let ticket = {
        let nothing = pin!(std::future::pending::<io::Result<()>>());
        tokio::select! {
            stop = until(worker, guard, Phase::Forced, nothing) => return stop.into(),
            ticket = worker.shared.desk.ask(handed_over, offer) => ticket,
        }
    };
    let Some(cut) = cut.take() else { return Outcome::Drained };
    if ticket.go(Moved::Stream(cut, token)).await {
        handed_over.given.fetch_add(1, Relaxed);
        return Outcome::HandedOver;
    }
    Outcome::Broken("the next ztunnel has gone before it had the connection".into())
}

/// A connection does not go to the successor while its tunnel is broken: what goes there has come to an orderly end.
fn broken_while_leaving() -> Outcome {
    Outcome::Broken("its tunnel has broken while this process leaves".into())
}

/// A stream's end: the token with which it goes on, or else that of the connection.
fn goes_on(stop: Stop<End>) -> Result<Token, Outcome> {
    match stop {
        Stop::Done(Ok(End::Continues(token) | End::Breaks(token))) => Ok(token),
        Stop::Done(Ok(End::Over)) => Err(Outcome::Done),
        Stop::Done(Err(e)) => Err(Outcome::of_copy(Err(e))),
        Stop::Closed(outcome) => Err(outcome),
        Stop::Phase => Err(Outcome::Drained),
    }
}

/// Why nothing is carried any more.
enum Stop<T> {
    /// It has come to its end.
    Done(io::Result<T>),
    /// A policy forbids it.
    Closed(Outcome),
    /// The drain has come to the phase.
    Phase,
}

impl From<Stop<()>> for Outcome {
    fn from(stop: Stop<()>) -> Self {
        match stop {
            Stop::Done(result) => Outcome::of_copy(result),
            Stop::Closed(outcome) => outcome,
            Stop::Phase => Outcome::Drained,
        }
    }
}

async fn until<T>(
    worker: &Worker,
    guard: &Guard,
    phase: Phase,
    bytes: Pin<&mut impl Future<Output = io::Result<T>>>,
) -> Stop<T> {
    let mut drain = worker.drain.clone();
    let ended = pin!(async {
        tokio::select! {
            v = guard.forbidden() => Some(v),
            () = drain.reached(phase) => None,
        }
    });
    let mut ended = OnWake::new(ended);
    tokio::select! {
        result = bytes => Stop::Done(result),
        verdict = &mut ended => verdict.map_or(Stop::Phase, |v| Stop::Closed(Outcome::ClosedByPolicy(v))),
    }
}
