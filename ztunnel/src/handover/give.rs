//! The process that leaves: it finds its successor, and passes on what connections say at the [`Desk`].
//!
//! What must always hold: a connection whose `go` was not sent stays here, and one whose `go` was sent does not.

use super::{
    desk::{Desk, ORDERS, Order},
    pieces::Moved,
};
use karst_api::{
    HANDOVER_MAX_PACKET, HANDOVER_VERSION,
    handover::{Answer, Given, Hello, Role, Withdrawn, given::What},
};
use karst_rt::{
    backoff::Backoff,
    drain::{Drain, Phase},
    seqpacket::Packets,
};
use prost::Message;
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

/// A successor that takes no packet for this long stands still: what was about to go goes on here.
const STUCK: Duration = Duration::from_secs(1);

/// Finds a successor, again and again, until this is dropped. When there is one, the drain's connections are told.
pub async fn give(path: &Path, instance: u64, desk: &Desk, drain: &Drain) {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        match meet(path, instance).await {
            Ok(successor) => {
                backoff.reset();
                tracing::info!("open connections go over to the next ztunnel of this node");
                let (orders, received) = mpsc::channel(ORDERS);
                desk.open(Some(orders));
                drain.start(Phase::HandOver);
                let ended = talk(&successor, received).await;
                desk.open(None);
                if let Err(e) = ended {
                    tracing::warn!(error = %e, "the next ztunnel takes no more connections; those left stay here");
                }
            }
            // Istio's agent has no such socket.
            Err(e) => tracing::debug!(path = %path.display(), error = %e, "no successor for open connections (yet)"),
        }
        sleep(backoff.next_delay()).await;
    }
}

/// Waits until a successor is there.
async fn meet(path: &Path, instance: u64) -> io::Result<Packets> {
    let agent = Packets::connect(path)?;
    let (own, other) = Packets::pair()?;
    let hello = Hello { version: HANDOVER_VERSION, instance, role: Role::Give as i32 };
    agent.send(&hello.encode_to_vec(), &[other.as_fd()]).await?;
    drop(other);
    tokio::select! {
        biased;
        greeting = own.recv(HANDOVER_MAX_PACKET) => {
            if greeting?.0.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        // It says nothing: readable means gone.
        gone = agent.recv(HANDOVER_MAX_PACKET) => {
            gone?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(own)
}

async fn talk(successor: &Packets, mut orders: mpsc::Receiver<Order>) -> io::Result<()> {
    let mut asked: HashMap<u64, oneshot::Sender<String>> = HashMap::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                // The desk has the other end.
                None => return Ok(()),
                Some(Order::Offer { id, offer, answer }) => {
                    asked.insert(id, answer);
                    send(successor, &Given { id, what: Some(What::Offer(*offer)) }, &[]).await?;
                }
                Some(Order::Go { id, moved, done }) => {
                    let sent = go(successor, id, &moved).await;
                    let _ = done.send(sent.is_ok());
                    sent?;
                }
                Some(Order::Withdraw(id)) => {
                    asked.remove(&id);
                    send(successor, &Given { id, what: Some(What::Withdrawn(Withdrawn {})) }, &[]).await?;
                }
            },
            received = successor.recv(HANDOVER_MAX_PACKET) => {
                let (bytes, _) = received?;
                if bytes.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let answer = Answer::decode(&bytes[..]);
                let Answer { id, refusal } = answer.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                if let Some(answer) = asked.remove(&id) {
                    let _ = answer.send(refusal);
                }
            }
        }
    }
}

/// All there is of a connection; the last packet makes it the successor's.
async fn go(successor: &Packets, id: u64, moved: &Moved) -> io::Result<()> {
    for given in moved.pieces(id) {
        match given.what {
            Some(What::Go(_)) => send(successor, &given, &moved.sockets()).await?,
            _ => send(successor, &given, &[]).await?,
        }
    }
    Ok(())
}

/// A packet is sent whole, or not at all.
async fn send(successor: &Packets, given: &Given, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    timeout(STUCK, successor.send(&given.encode_to_vec(), sockets)).await?
}
