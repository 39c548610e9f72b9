//! Brings a ztunnel that leaves together with the one that comes after it: it passes one end of a pair of sockets on, and no
//! more. The connections then go from process to process; the agent sees none of them and keeps none.
//!
//! What must always hold: nobody is its own successor, and an end is passed on once. Proven by the tests below and by tests/world
//! (`handover`).

use karst_api::{
    HANDOVER_VERSION,
    handover::{Hello, Role},
};
use karst_rt::seqpacket::{Listener, Packets};
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    rc::Rc,
    time::Duration,
};
use tokio::sync::mpsc;

/// Who has connected and says nothing is disconnected.
const HELLO: Duration = Duration::from_secs(5);
/// Largest hello, in bytes.
const MAX_HELLO: usize = 256;
/// Ztunnels that may be here at a time, of both kinds; then the oldest is disconnected. (A rollout has two.)
const MAX_PEERS: usize = 16;
/// Those that leave and that one successor has not been told of yet; beyond, it is stuck, and another one is looked for.
const QUEUE: usize = MAX_PEERS;

/// One end of a pair, and whose other end it is.
struct End {
    instance: u64,
    socket: OwnedFd,
}

/// What a peer is here for.
enum Here {
    /// It takes connections over.
    Takes(mpsc::Sender<End>),
    /// It leaves, and no successor has been found yet.
    Waits(End),
    /// It leaves, and its end has been passed on.
    Met,
}

struct Peer {
    id: u64,
    instance: u64,
    here: Here,
    /// Dropped: it is to be disconnected.
    _stays: mpsc::Sender<()>,
}

/// All who are there, the newest last.
#[derive(Default)]
pub struct Broker {
    peers: RefCell<Vec<Peer>>,
    next: Cell<u64>,
}

impl Broker {
    /// Starts serving at a path. Runs in a `LocalSet`.
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn start(path: &Path) -> io::Result<Rc<Self>> {
        let listener = Listener::bind(path)?;
        let broker = Rc::new(Self::default());
        let own = broker.clone();
        tokio::task::spawn_local(async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => {
                        tokio::task::spawn_local(own.clone().serve(connection));
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "accept of a ztunnel that leaves or comes failed");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        });
        Ok(broker)
    }

    async fn serve(self: Rc<Self>, connection: Packets) {
        let id = self.next.get();
        self.next.set(id + 1);
        if let Err(e) = self.session(id, &connection).await {
            tracing::debug!(connection = id, error = %e, "a ztunnel that leaves or comes is disconnected");
        }
        self.peers.borrow_mut().retain(|peer| peer.id != id);
    }

    async fn session(&self, id: u64, connection: &Packets) -> io::Result<()> {
        let hello = tokio::time::timeout(HELLO, connection.recv(MAX_HELLO)).await;
        let (bytes, fds) = hello.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let hello = Hello::decode(&bytes[..]).map_err(|e| invalid(e.to_string()))?;
        if hello.version != HANDOVER_VERSION {
            return Err(invalid(format!("version {} is not {HANDOVER_VERSION}", hello.version)));
        }
        let (stays, mut stay) = mpsc::channel(1);
        let (tx, mut ends) = mpsc::channel(QUEUE);
        let here = match (Role::try_from(hello.role), fds.into_iter().next()) {
            (Ok(Role::Take), _) => Here::Takes(tx),
            (Ok(Role::Give), Some(socket)) => Here::Waits(End { instance: hello.instance, socket }),
            (Ok(Role::Give), None) => return Err(invalid("it leaves, and brings no descriptor".into())),
            (Ok(Role::Unknown) | Err(_), _) => return Err(invalid("unknown role".into())),
        };
        {
            let mut peers = self.peers.borrow_mut();
            if peers.len() >= MAX_PEERS {
                peers.remove(0);
            }
            peers.push(Peer { id, instance: hello.instance, here, _stays: stays });
        }
        self.bring_together();
        loop {
            tokio::select! {
                // None: the other kind, which waits for nothing here.
                Some(end) = ends.recv() => {
                    let told = Hello { version: HANDOVER_VERSION, instance: end.instance, role: Role::Give as i32 };
                    connection.send(&told.encode_to_vec(), &[end.socket.as_fd()]).await?;
                    tracing::info!(connection = id, "a ztunnel that leaves has met its successor");
                }
                // It says nothing more: readable means gone.
                received = connection.recv(MAX_HELLO) => {
                    received?;
                    return Ok(());
                }
                _ = stay.recv() => return Err(invalid("there are too many".into())),
            }
        }
    }

    /// Gives those who wait to the newest successor that is another process.
    fn bring_together(&self) {
        let mut peers = self.peers.borrow_mut();
        for at in 0..peers.len() {
            let waits = peers.get_mut(at).filter(|peer| matches!(peer.here, Here::Waits(_)));
            let Some(Here::Waits(end)) = waits.map(|peer| std::mem::replace(&mut peer.here, Here::Met)) else {
                continue;
            };
            if let (Some(end), Some(peer)) = (pass_on(&peers, end), peers.get_mut(at)) {
                peer.here = Here::Waits(end);
            }
        }
    }
}

/// Gives it back if there is nobody.
fn pass_on(peers: &[Peer], mut end: End) -> Option<End> {
    let leaving = end.instance;
    for peer in peers.iter().rev().filter(|peer| peer.instance != leaving) {
        if let Here::Takes(ends) = &peer.here {
            match ends.try_send(end) {
                Ok(()) => return None,
                Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => end = back,
            }
        }
    }
    Some(end)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tokio::{task::LocalSet, time::timeout};

    struct At(PathBuf);

    impl At {
        fn start(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("karst-handover-{}-{name}", std::process::id()));
            Broker::start(&path).unwrap();
            Self(path)
        }

        async fn hello(&self, instance: u64, role: Role, end: Option<&OwnedFd>) -> Packets {
            let peer = Packets::connect(&self.0).await.unwrap();
            let hello = Hello { version: HANDOVER_VERSION, instance, role: role as i32 };
            let fds: Vec<_> = end.iter().map(|fd| fd.as_fd()).collect();
            peer.send(&hello.encode_to_vec(), &fds).await.unwrap();
            // So that they come in this order.
            settle().await;
            peer
        }

        /// One that leaves: its connection, and its own end.
        async fn gives(&self, instance: u64) -> (Packets, Packets) {
            let (own, other) = Packets::pair().unwrap();
            (self.hello(instance, Role::Give, Some(&other)).await, own)
        }
    }

    impl Drop for At {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    /// The end that a successor is given, if it is.
    async fn given(successor: &Packets) -> Option<Packets> {
        let (bytes, mut fds) = timeout(Duration::from_millis(200), successor.recv(MAX_HELLO)).await.ok()?.unwrap();
        assert_eq!(Hello::decode(&bytes[..]).unwrap().role, Role::Give as i32);
        Some(Packets::from_fd(fds.remove(0)).unwrap())
    }

    /// Are these the two ends of one pair?
    async fn met(one: &Packets, other: &Packets) -> bool {
        one.send(b"hello", &[]).await.unwrap();
        timeout(Duration::from_millis(200), other.recv(64)).await.is_ok_and(|r| r.unwrap().0 == b"hello")
    }

    #[tokio::test]
    async fn who_leaves_meets_the_newest_that_is_another() {
        let run = async {
            let at = At::start("newest");
            let (older, newer) = (at.hello(1, Role::Take, None).await, at.hello(2, Role::Take, None).await);
            let own = at.hello(3, Role::Take, None).await;
            let (_leaving, end) = at.gives(3).await;
            assert!(met(&end, &given(&newer).await.unwrap()).await);
            assert!(given(&older).await.is_none() && given(&own).await.is_none());
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn who_leaves_first_is_met_by_who_comes_later_and_once() {
        let run = async {
            let at = At::start("later");
            let (_leaving, end) = at.gives(1).await;
            let own = at.hello(1, Role::Take, None).await;
            assert!(given(&own).await.is_none(), "nobody is its own successor");
            let next = at.hello(2, Role::Take, None).await;
            assert!(met(&end, &given(&next).await.unwrap()).await);
            let third = at.hello(3, Role::Take, None).await;
            assert!(given(&third).await.is_none());
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn who_has_gone_meets_nobody() {
        let run = async {
            let at = At::start("gone");
            drop(at.hello(1, Role::Take, None).await);
            let (leaving, _end) = at.gives(2).await;
            drop(leaving);
            settle().await;
            let next = at.hello(3, Role::Take, None).await;
            assert!(given(&next).await.is_none());
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn the_oldest_of_too_many_is_disconnected() {
        let run = async {
            let at = At::start("many");
            let first = at.hello(0, Role::Take, None).await;
            let mut others = vec![];
            for instance in 1..=MAX_PEERS as u64 {
                others.push(at.hello(instance, Role::Take, None).await);
            }
            assert!(first.recv(64).await.unwrap().0.is_empty());
            let unknown = at.hello(99, Role::Unknown, None).await;
            assert!(unknown.recv(64).await.unwrap().0.is_empty());
        };
        LocalSet::new().run_until(run).await;
    }
}
