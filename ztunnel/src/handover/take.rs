//! The successor: it waits at the node agent for processes that leave, and hands what they pass on to the workers.
//!
//! What must always hold: nothing is read from a socket or written to it before its `go` has come; and a connection that has come
//! and that nobody serves is reset, never ended in order.

use super::{
    incoming::{Incoming, Offered, Origin},
    pieces::{Moved, PiecesError},
    table::{Fault, MAX_WAITING, Table},
};
use crate::worker::{Command, Shared};
use karst_api::{
    HANDOVER_MAX_PACKET, HANDOVER_VERSION,
    handover::{Answer, Given, Hello, Role, given::What},
};
use karst_rt::{backoff::Backoff, clock::Instant, seqpacket::Packets};
use prost::{DecodeError, Message};
use std::{io, path::Path, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// The first thing that a process that leaves hears, so that it knows that somebody is there. (Any packet that is not empty.)
const GREETING: &str = "ready";

/// Why a process that leaves is not listened to any more.
#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("packet: {0}")]
    Decode(#[from] DecodeError),
    #[error("unknown kind of packet")]
    Unknown,
    #[error(transparent)]
    Pieces(#[from] PiecesError),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Waits for processes that leave, for ever.
pub async fn take(path: &Path, instance: u64, shared: Arc<Shared>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        if let Err(e) = wait(path, instance, &shared, &mut backoff).await {
            // Istio's agent has no such socket.
            tracing::debug!(path = %path.display(), error = %e, "open connections of the ztunnel before cannot come here");
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn wait(path: &Path, instance: u64, shared: &Arc<Shared>, backoff: &mut Backoff) -> io::Result<()> {
    let agent = Packets::connect(path).await?;
    let hello = Hello { version: HANDOVER_VERSION, instance, role: Role::Take as i32 };
    agent.send(&hello.encode_to_vec(), &[]).await?;
    loop {
        let (bytes, ends) = agent.recv(HANDOVER_MAX_PACKET).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        backoff.reset();
        for end in ends {
            tokio::task::spawn_local(session(Packets::from_fd(end)?, shared.clone()));
        }
    }
}

async fn session(leaving: Packets, shared: Arc<Shared>) {
    let (began, mut count) = (Instant::now(), 0u64);
    let ended = talk(&leaving, &shared, &mut count).await;
    let ms = began.elapsed().as_millis() as u64;
    match ended {
        Ok(()) => tracing::info!(connections = count, ms, "connections of the ztunnel before were taken over"),
        Err(e) => {
            tracing::warn!(connections = count, ms, error = %e, "the ztunnel before passes no more connections on")
        }
    }
}

/// `count`: connections that have come.
async fn talk(leaving: &Packets, shared: &Shared, count: &mut u64) -> Result<(), TalkError> {
    let greeting = Answer { id: 0, refusal: GREETING.into() };
    leaving.send(&greeting.encode_to_vec(), &[]).await?;
    let (tx, mut answers) = mpsc::channel::<Answer>(MAX_WAITING);
    let mut table = Table::new();
    loop {
        tokio::select! {
            // There is always a sender.
            Some(answer) = answers.recv() => {
                if !answer.refusal.is_empty() {
                    table.withdrawn(answer.id);
                }
                leaving.send(&answer.encode_to_vec(), &[]).await?;
            }
            received = leaving.recv(HANDOVER_MAX_PACKET) => {
                let (bytes, sockets) = received?;
                if bytes.is_empty() {
                    return Ok(());
                }
                let Given { id, what } = Given::decode(&bytes[..])?;
                match what {
                    Some(What::Offer(offer)) => {
                        let (who, arrives) = oneshot::channel();
                        table.offered(id, who)?;
                        let (answers, origin) = (tx.clone(), Origin::HandOver);
                        if let Some(refusal) = dispatch(shared, Offered { id, offer, answers, arrives, origin }) {
                            table.withdrawn(id);
                            leaving.send(&Answer { id, refusal }.encode_to_vec(), &[]).await?;
                        }
                    }
                    Some(What::Rest(rest)) => table.rest(id, &rest)?,
                    Some(What::Go(go)) => match table.go(id, &go) {
                        Ok((who, up, down)) => {
                            let moved = Moved::read(&go, sockets, up, down)?;
                            *count += 1;
                            if let Err(moved) = who.send(moved) {
                                moved.reset();
                            }
                        }
                        // The others go on.
                        Err(fault @ Fault::TooMuch) => {
                            tracing::warn!(id, error = %fault, "a connection of the ztunnel before is reset");
                            for socket in sockets {
                                let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
                            }
                        }
                        Err(fault) => return Err(fault.into()),
                    },
                    Some(What::Withdrawn(_)) => table.withdrawn(id),
                    None => return Err(TalkError::Unknown),
                }
            }
        }
    }
}

/// To the worker that has the least to do; why not, if it cannot.
pub fn dispatch(shared: &Shared, offered: Offered) -> Option<String> {
    let workers = &shared.workers;
    let idlest = (0..workers.commands().count()).min_by_key(|worker| workers.running(*worker));
    let Some(to) = idlest else { return Some("there is no worker".into()) };
    let incoming = Incoming { offered, running: workers.start(to) };
    let sent = workers.dispatch(to, Command::Resume(Box::new(incoming)));
    sent.is_err().then(|| "all workers are busy or about to end".into())
}
