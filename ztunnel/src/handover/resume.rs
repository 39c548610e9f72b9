//! A worker goes on with a connection of the process before.
//!
//! What must always hold: it has its place among the pod's connections, its pods are of this node and known, and policies allow it
//! *now*; what was decided before counts for nothing.

use super::{
    end::{self, EndError, describe, of_destination, of_source},
    incoming::{Incoming, Offered, Origin},
    pieces::Moved,
};
use crate::{
    conn::Conn,
    connect,
    inbound::still_allowed,
    inpod::LocalPod,
    outbound,
    outcome::Outcome,
    parking::{self, Bound, Parked},
    relay,
    state::Name,
    worker::{Direction, Place, Worker},
};
use karst_api::handover::{Answer, Offer};
use karst_core::limits;
use karst_hbone::{
    continuation::Token,
    copy::{Pair, Parts, Tunnel},
    pool::Opened,
};
use karst_rt::{
    admission::{Ended, Permit, Source},
    turns::Share,
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Why a connection is not taken over. The text goes to the process that leaves.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// Of a newer version, or gone wrong.
    #[error("it is of no pod")]
    NoEnd,
    #[error("pod {0} is not of this node (yet)")]
    NoPod(String),
    #[error(transparent)]
    End(#[from] EndError),
    #[error("{}", .0.text().unwrap_or_default())]
    Outcome(Outcome),
}

/// The pods of this node that it belongs to; at least one.
struct Pods {
    source: Option<Arc<LocalPod>>,
    destination: Option<Arc<LocalPod>>,
}

impl Pods {
    fn of(worker: &Worker, offer: &Offer) -> Result<Self, Refusal> {
        let all = worker.shared.pods.load();
        let find = |end: &Option<karst_api::handover::End>| match end {
            None => Ok(None),
            Some(end) => match all.get(&end.pod) {
                Some(pod) => Ok(Some(pod.clone())),
                None => Err(Refusal::NoPod(end.pod.clone())),
            },
        };
        let pods = Self { source: find(&offer.source)?, destination: find(&offer.destination)? };
        match (&pods.source, &pods.destination) {
            (None, None) => Err(Refusal::NoEnd),
            (Some(_), _) | (_, Some(_)) => Ok(pods),
        }
    }

    /// As at the first time: that of the pod that has opened it, or else of the one that serves it.
    fn place<'a>(&'a self, worker: &'a Worker) -> Result<Place<'a>, Refusal> {
        let (pod, direction) = match (&self.source, &self.destination) {
            (Some(source), _) => (source, Direction::Outbound),
            (None, Some(destination)) => (destination, Direction::Inbound),
            (None, None) => return Err(Refusal::NoEnd),
        };
        worker.shared.budget.place(pod, direction).ok_or_else(|| {
            worker.refused(direction);
            Refusal::Outcome(Outcome::Limit)
        })
    }

    /// Where only what is asked for is told: the process before has asked for what the ends are, and this one has not.
    async fn recall(&self, worker: &Worker, offer: &Offer) {
        let Some(pod) = self.source.as_ref().or(self.destination.as_ref()) else { return };
        let ends = || offer.source.iter().chain(&offer.destination);
        let uids = ends().flat_map(|end| [&end.source_workload, &end.destination_workload, &end.service]);
        let uids = uids.filter(|uid| !uid.is_empty()).map(|uid| Name::Resource(uid.as_str().into()));
        let clients = ends().filter_map(|end| Some(Name::Address(end.source_address.parse::<SocketAddr>().ok()?.ip())));
        let names = uids.chain(clients).filter(|name| !worker.snapshot().is_told(name)).collect();
        worker.shared.ask(pod, names, tokio::time::Instant::now() + limits::HOLD_TIMEOUT).await;
    }

    /// Both ends, as far as they are here, by what is known now.
    fn conns(&self, worker: &Worker, offer: &Offer) -> Result<(Option<Conn>, Option<Conn>), Refusal> {
        let snapshot = worker.snapshot();
        let source = match (&self.source, &offer.source) {
            (Some(pod), Some(end)) => Some(of_source(end, pod, &snapshot)?),
            _ => None,
        };
        let destination = match (&self.destination, &offer.destination) {
            (Some(pod), Some(end)) => {
                let conn = of_destination(end, pod, &snapshot)?;
                if !offer.tunnel {
                    vouched(&conn, source.as_ref())?;
                }
                if let Some(check) = &conn.check {
                    still_allowed(worker, pod, check).map_err(Refusal::Outcome)?;
                }
                Some(conn)
            }
            _ => None,
        };
        Ok((source, destination))
    }
}

/// Without a tunnel only the pod's own namespace proves who calls: on this node, and as what that pod is here.
fn vouched(conn: &Conn, source: Option<&Conn>) -> Result<(), Refusal> {
    let Some(said) = &conn.source_identity else { return Ok(()) };
    let own = source.and_then(|source| source.source.as_ref()).map(|own| &own.identity);
    if own == Some(said) { Ok(()) } else { Err(Refusal::Outcome(Outcome::NoIdentity)) }
}

/// Begins to answer an offer, in the turn of the pod that the connection is of.
pub fn begin(worker: Rc<Worker>, incoming: Incoming) {
    let Incoming { offered, running } = incoming;
    match whose(&worker, &offered.offer) {
        Ok((share, caller)) => Worker::run((&share, caller), running, resume(worker, offered)),
        Err(why) => {
            let id = offered.id;
            tracing::debug!(id, refusal = %why, "a connection of the ztunnel before is not taken over (yet)");
            // There is room for as many as may be under way; who gets no answer asks again.
            let _ = offered.answers.try_send(Answer { id, refusal: why.to_string() });
        }
    }
}

/// In whose turn a connection goes on, as at the first time: in that of the pod that has opened it, or else of the one that serves it,
/// among what the same caller has begun. This worker may not serve the pod yet.
fn whose(worker: &Worker, offer: &Offer) -> Result<(Rc<Share>, IpAddr), Refusal> {
    let end = offer.source.as_ref().or(offer.destination.as_ref()).ok_or(Refusal::NoEnd)?;
    let served = worker.pods.borrow().get(&end.pod).cloned();
    let share = served.ok_or_else(|| Refusal::NoPod(end.pod.clone()))?.share.clone();
    // One that cannot be read is refused when the end is read.
    let caller = end.source_address.parse().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |at: SocketAddr| at.ip());
    Ok((share, caller))
}

/// Answers an offer, waits for the connection, and carries it on.
async fn resume(worker: Rc<Worker>, offered: Offered) {
    let Offered { id, offer, answers, arrives, origin } = offered;
    let refuse = async |why: Refusal| {
        tracing::debug!(id, refusal = %why, "a connection of the ztunnel before is not taken over (yet)");
        let _ = answers.send(Answer { id, refusal: why.to_string() }).await;
    };
    let pods = match Pods::of(&worker, &offer) {
        Ok(pods) => pods,
        Err(why) => return refuse(why).await,
    };
    let _place = match pods.place(&worker) {
        Ok(place) => place,
        Err(why) => return refuse(why).await,
    };
    if worker.shared.config.on_demand {
        Box::pin(pods.recall(&worker, &offer)).await;
    }
    let (client, is_plaintext) = match pods.conns(&worker, &offer) {
        Ok((None, Some(conn))) => (conn.source_addr.ip(), !offer.tunnel),
        Ok((Some(conn), _)) => (conn.source_addr.ip(), false),
        Ok((None, None)) => return refuse(Refusal::NoEnd).await,
        Err(why) => return refuse(why).await,
    };
    // Captured plaintext has its client's share, too.
    let share = match &pods.destination {
        Some(pod) if is_plaintext => {
            let source = Source::address(client, worker.knows(client));
            match Permit::admit(&[&pod.usage.plaintext], &source) {
                Ok(share) => Some(share),
                Err(e) => {
                    worker.shared.metrics.plaintext.note(e);
                    return refuse(Refusal::Outcome(Outcome::Limit)).await;
                }
            }
        }
        Some(_) | None => None,
    };
    let _in_use = share.as_ref().map(Permit::in_use);
    if answers.send(Answer { id, refusal: String::new() }).await.is_err() {
        return;
    }
    // Until the process before lets go of it, or says that it has ended, or is gone.
    let parts = match arrives.await.map(|moved| moved.if_offered(offer.tunnel)) {
        Ok(Some(Moved::Pair(parts))) => parts,
        Ok(Some(Moved::Stream(cut, token))) => {
            return Box::pin(stream(&worker, &pods, &offer, (Parked::new(cut), token), origin)).await;
        }
        Ok(None) => {
            return tracing::warn!(id, "a connection has come that is not the one that was offered: it is reset");
        }
        Err(_) => return,
    };
    let evicted = async {
        match &share {
            Some(share) => share.evicted().await,
            None => std::future::pending().await,
        }
    };
    carry(&worker, &pods, &offer, (parts, origin), evicted).await;
}

/// A socket whose stream has been interrupted, or has broken, is ours. Towards the application of a pod of ours it waits for its next
/// stream; from an application it is for us to open one.
async fn stream(worker: &Worker, pods: &Pods, offer: &Offer, (cut, token): (Parked, Token), origin: Origin) {
    if origin == Origin::HandOver {
        worker.shared.metrics.handed_over.taken.fetch_add(1, Relaxed);
    }
    let (source, destination) = match pods.conns(worker, offer) {
        Ok(conns) => conns,
        Err(why) => return tracing::info!(refusal = %why, "a connection that was taken over is closed"),
    };
    if let (Some(conn), Some(pod)) = (&destination, &pods.destination) {
        let Some(peer) = conn.source_identity.clone() else { return };
        let bound = Bound { peer, from: conn.source_addr.ip(), owner: pod.uid.clone(), to: conn.destination_addr };
        if let Some(cut) = cut.take() {
            drop(parking::park(&worker.shared.parking, token, bound, cut).await);
        }
        return;
    }
    let (Some(conn), Some(pod)) = (source, &pods.source) else { return };
    let guard = worker.conns.add(conn);
    let opened = connect::again(worker, pod, guard.conn(), (&token, cut.reached())).await;
    let Opened { lease, send, recv, continues, joint } = match opened {
        Ok(opened) => opened,
        Err(outcome) => {
            if origin == Origin::Crash {
                worker.shared.metrics.survived.refused.fetch_add(1, Relaxed);
            }
            return guard.end(&outcome);
        }
    };
    let Some(cut) = cut.take() else { return };
    let mut tunnel = match Tunnel::next(cut, (send, recv), joint, continues) {
        Ok(tunnel) => tunnel,
        Err(e) => return guard.end(&Outcome::Broken(e.to_string())),
    };
    guard.established();
    if origin == Origin::Crash {
        worker.shared.metrics.survived.resumed.fetch_add(1, Relaxed);
        guard.resumed();
    }
    let again = || end::offer(guard.conn(), &pod.uid, true);
    let outcome = match relay::stream(worker, &guard, &guard.conn().counts, &mut tunnel, &again).await {
        Ok(token) => outbound::follow(worker, pod, &guard, (lease, tunnel, token)).await,
        Err(outcome) => {
            drop((lease, tunnel));
            outcome
        }
    };
    guard.end(&outcome);
}

/// It is ours.
async fn carry(
    worker: &Worker,
    pods: &Pods,
    offer: &Offer,
    (parts, origin): (Parts, Origin),
    evicted: impl Future<Output = ()>,
) {
    // Dropped before its end, both its sockets are reset.
    let mut pair = match Pair::resume(parts) {
        Ok(pair) => pair,
        Err(error) => return tracing::warn!(error = %error, "a connection that was taken over cannot be served"),
    };
    let metrics = &worker.shared.metrics;
    let count = match origin {
        Origin::HandOver => &metrics.handed_over.taken,
        Origin::Crash => &metrics.survived.resumed,
    };
    count.fetch_add(1, Relaxed);
    // Something may have changed since the answer. Nothing is waited for until it is registered: no change falls between.
    let (source, destination) = match pods.conns(worker, offer) {
        Ok(conns) => conns,
        Err(why) => return tracing::info!(refusal = %why, "a connection that was taken over is closed"),
    };
    let (source, destination) =
        (source.map(|conn| worker.conns.add(conn)), destination.map(|conn| worker.conns.add(conn)));
    let Some(judged) = destination.as_ref().or(source.as_ref()) else { return };
    let Some(counted) = source.as_ref().or(destination.as_ref()) else { return };
    for guard in [&source, &destination].into_iter().flatten() {
        guard.established();
        if origin == Origin::Crash {
            guard.resumed();
        }
    }
    let counts = &counted.conn().counts;
    let again = || Offer {
        source: source.as_ref().zip(pods.source.as_ref()).map(|(guard, pod)| describe(guard.conn(), &pod.uid)),
        destination: destination
            .as_ref()
            .zip(pods.destination.as_ref())
            .map(|(guard, pod)| describe(guard.conn(), &pod.uid)),
        ..Offer::default()
    };
    let outcome = {
        let bytes = pin!(relay::plain(worker, judged, counts, &mut pair, &again));
        tokio::select! {
            outcome = bytes => outcome,
            () = evicted => {
                worker.shared.metrics.plaintext.note(Ended::Evicted);
                Outcome::GaveWay
            }
        }
    };
    drop(pair);
    if let (Some(source), Some(destination)) = (&source, &destination) {
        // Counted once, told at both ends.
        let (from, to) = (&source.conn().counts, &destination.conn().counts);
        to.from_client.set(from.from_client.get());
        to.to_client.set(from.to_client.get());
    }
    for guard in [destination, source].into_iter().flatten() {
        guard.end(&outcome);
    }
}
