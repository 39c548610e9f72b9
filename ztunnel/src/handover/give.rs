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
    let agent = Packets::connect(path).await?;
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
                    if sent.is_err() {
                        moved.give_up();
                    }
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
            Some(What::Go(_)) => last(successor, &given, &moved.sockets()).await?,
            _ => send(successor, &given, &[]).await?,
        }
    }
    Ok(())
}

/// Until the successor has taken the sockets, their close is a reset: if it ends before it has read the packet, applications must not
/// take what they have for complete.
async fn last(successor: &Packets, given: &Given, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let linger = |time: Option<Duration>| {
        for socket in sockets {
            let _ = socket2::SockRef::from(socket).set_linger(time);
        }
    };
    linger(Some(Duration::ZERO));
    // What stays here ends as ever.
    send(successor, given, sockets).await.inspect_err(|_| linger(None))
}

/// A packet is sent whole, or not at all.
async fn send(successor: &Packets, given: &Given, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    timeout(STUCK, successor.send(&given.encode_to_vec(), sockets)).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::handover::Offer;
    use karst_hbone::copy::{Left, Parts};
    use std::{io::Read, os::fd::OwnedFd};
    use tokio::task::LocalSet;

    fn moved(rest: usize) -> Box<Moved> {
        let socket = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let up = Left { rest: vec![7; rest].into(), ended: true };
        Box::new(Moved::Pair(Parts { client: socket(), server: socket(), up, down: Left::default() }))
    }

    /// The next packet, and how many descriptors it brings.
    async fn next(successor: &Packets) -> (Given, usize) {
        let (bytes, sockets) = successor.recv(HANDOVER_MAX_PACKET).await.unwrap();
        (Given::decode(&bytes[..]).unwrap(), sockets.len())
    }

    /// Whoever leaves, its orders, and the other end.
    fn leaving() -> (tokio::task::JoinHandle<io::Result<()>>, mpsc::Sender<Order>, Packets) {
        let (own, other) = Packets::pair().unwrap();
        let (orders, received) = mpsc::channel(ORDERS);
        let talk = tokio::task::spawn_local(async move { talk(&own, received).await });
        (talk, orders, Packets::from_fd(other).unwrap())
    }

    #[tokio::test]
    async fn a_connection_goes_with_all_there_is_of_it() {
        let run = async {
            let (talk, orders, successor) = leaving();
            let (answer, answered) = oneshot::channel();
            assert!(orders.send(Order::Offer { id: 5, offer: Box::<Offer>::default(), answer }).await.is_ok());
            assert!(matches!(next(&successor).await, (Given { id: 5, what: Some(What::Offer(_)) }, 0)));
            // Of one that was not asked for, then the answer.
            for (id, refusal) in [(4, "x"), (5, "not yet")] {
                successor.send(&Answer { id, refusal: refusal.into() }.encode_to_vec(), &[]).await.unwrap();
            }
            assert_eq!(answered.await.unwrap(), "not yet");
            let (done, is_done) = oneshot::channel();
            assert!(orders.send(Order::Go { id: 6, moved: moved(100_000), done }).await.is_ok());
            let (mut rest, mut sockets) = (0, 0);
            while sockets == 0 {
                let (given, count) = next(&successor).await;
                match given.what {
                    Some(What::Rest(piece)) => rest += piece.data.len(),
                    Some(What::Go(go)) => assert!(go.client_ended && !go.server_ended && count == 2),
                    other => panic!("{other:?}"),
                }
                sockets = count;
            }
            assert!(is_done.await.unwrap() && rest == 100_000);
            assert!(orders.send(Order::Withdraw(7)).await.is_ok());
            assert!(matches!(next(&successor).await, (Given { id: 7, what: Some(What::Withdrawn(_)) }, 0)));
            drop(orders);
            talk.await.unwrap().unwrap();
        };
        LocalSet::new().run_until(run).await;
    }

    /// The two sockets of a connection, and their other ends.
    fn sockets() -> ([socket2::Socket; 2], [socket2::Socket; 2]) {
        let pair = || {
            let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let near = std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap();
            (socket2::Socket::from(near), socket2::Socket::from(l.accept().unwrap().0))
        };
        let ((a, b), (c, d)) = (pair(), pair());
        ([a, c], [b, d])
    }

    #[tokio::test]
    async fn a_successor_that_dies_before_it_has_looked_resets() {
        let run = async {
            for dies in [true, false] {
                let ([client, server], others) = sockets();
                let own = client.try_clone().unwrap();
                let parts =
                    Parts { client: client.into(), server: server.into(), up: Left::default(), down: Left::default() };
                let moved = Moved::Pair(parts);
                let (successor, other) = Packets::pair().unwrap();
                let other = (!dies).then(|| Packets::from_fd(other).unwrap());
                let sent = go(&successor, 1, &moved).await;
                assert_eq!(sent.is_ok(), !dies);
                assert_eq!(own.linger().unwrap().is_some(), !dies, "what has stayed ends as ever");
                drop((moved, own, successor, other));
                let how = |mut socket: &socket2::Socket| socket.read(&mut [0; 1]).map_err(|e| e.kind());
                let want = if dies { Ok(0) } else { Err(io::ErrorKind::ConnectionReset) };
                assert!(others.iter().all(|socket| how(socket) == want), "{dies}");
            }
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn what_a_successor_does_not_get_stays_here() {
        let run = async {
            let (talk, orders, successor) = leaving();
            drop(successor);
            // It hears of that, or fails to send.
            let (done, is_done) = oneshot::channel();
            let _ = orders.send(Order::Go { id: 1, moved: moved(0), done }).await;
            assert!(!is_done.await.unwrap_or(false));
            assert!(talk.await.unwrap().is_err());
            // One that stands still takes some, and then no more.
            let (talk, orders, _successor) = leaving();
            let mut stayed = 0;
            for id in 0..20 {
                let (done, is_done) = oneshot::channel();
                let sent = orders.send(Order::Go { id, moved: moved(60_000), done }).await.is_ok();
                if !sent || !is_done.await.unwrap_or(false) {
                    stayed += 1;
                }
            }
            assert!(stayed > 10, "{stayed}");
            assert!(talk.await.unwrap().is_err());
        };
        LocalSet::new().run_until(run).await;
    }
}
