//! ZDS server. Each ztunnel that connects gets a snapshot of all pods, then changes. Additions go to the newest
//! connection only, deletions to all, each acknowledged before the next is sent (reference: Istio's node agent).
//!
//! A second socket is for those that stand by (the spare process of a ztunnel). They get the same, additions too, so that they
//! have the pods' listeners when the ztunnel that serves dies; but they are never the node's ztunnel, and nobody waits for them.

use crate::sockets::PodSockets;
use karst_api::{ZDS_MAX_PACKET, zds::*, zds_standby};
use karst_rt::{
    netns::Netns,
    seqpacket::{self, Packets},
};
use prost::{DecodeError, Message};
use std::{
    cell::{Cell, RefCell},
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    rc::Rc,
    time::Duration,
};
use tokio::sync::{Notify, mpsc, oneshot};

/// A ztunnel that does not answer within this time is disconnected (Istio's deadline).
const ANSWER: Duration = Duration::from_secs(5);
/// Commands that may wait for one ztunnel; beyond, it is stuck and gets disconnected.
const QUEUE: usize = 4096;

/// What ztunnel is told of a pod.
#[derive(Clone)]
pub struct Pod {
    /// The uid on the wire.
    pub uid: String,
    /// Name, namespace, service account.
    pub info: WorkloadInfo,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: Netns,
    /// Its listeners.
    pub sockets: Rc<PodSockets>,
    /// Its DNS is not captured.
    pub bypass_dns: bool,
}

/// Why ztunnel does not serve a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// In its own words.
    #[error("{0}")]
    ByZtunnel(String),
    /// It was not asked.
    #[error("request of {0} bytes does not fit a ZDS packet of {ZDS_MAX_PACKET}")]
    TooLarge(usize),
}

/// Why a connection to ztunnel ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("no hello within 5 s")]
    NoHello,
    #[error("hello: {0}")]
    Hello(io::Error),
    #[error("hello: {0}")]
    InvalidHello(DecodeError),
    #[error("ztunnel speaks ZDS version {0}; this agent speaks 1")]
    Version(i32),
    #[error(
        "this ztunnel opens listeners of its own, which nothing leads to: it is not Karst's, and its pods stay closed; run \
         Karst's ztunnel with this agent, or Istio's agent with this ztunnel"
    )]
    Foreign,
    #[error("snapshot: {0}")]
    Snapshot(Refusal),
    #[error("packet without request")]
    Unasked,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within 5 s")]
    NoAnswer,
    #[error("closed while an answer was awaited")]
    Closed,
    #[error("answer: {0}")]
    InvalidAnswer(DecodeError),
    #[error("answer without acknowledgement")]
    NoAcknowledgement,
}

enum Command {
    Add(Pod, oneshot::Sender<Result<(), Refusal>>),
    Del(String),
}

/// A connection.
struct Peer {
    id: u64,
    commands: mpsc::Sender<Command>,
    /// It does not serve the node.
    standby: bool,
}

/// All connections.
pub struct Hub {
    pods: RefCell<Vec<Pod>>,
    /// The newest last.
    peers: RefCell<Vec<Peer>>,
    next: Cell<u64>,
    /// A ztunnel has its snapshot.
    synced: Cell<bool>,
    connected: Notify,
    /// Snapshots may be sent: the agent knows its pods. (An empty one would make a running ztunnel drop them all.)
    open: Cell<bool>,
    opened: Notify,
    exempt: OwnedFd,
}

impl Hub {
    /// Starts serving at a path.
    pub fn start(path: &Path, exempt: OwnedFd) -> io::Result<Rc<Self>> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let serving = seqpacket::Listener::bind(path)?;
        let standby = seqpacket::Listener::bind(&zds_standby(path))?;
        let hub = Rc::new(Self {
            pods: RefCell::default(),
            peers: RefCell::default(),
            next: Cell::new(0),
            synced: Cell::new(false),
            connected: Notify::new(),
            open: Cell::new(false),
            opened: Notify::new(),
            exempt,
        });
        hub.clone().listen(serving, false);
        hub.clone().listen(standby, true);
        Ok(hub)
    }

    fn listen(self: Rc<Self>, listener: seqpacket::Listener, standby: bool) {
        tokio::task::spawn_local(async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => {
                        tokio::task::spawn_local(self.clone().serve(connection, standby));
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "ZDS accept failed");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        });
    }

    /// Is a ztunnel connected?
    pub fn has_peer(&self) -> bool {
        self.peers.borrow().iter().any(|peer| !peer.standby)
    }

    /// Waits until a ztunnel is connected and has its snapshot, at most `limit`.
    pub async fn wait_peer(&self, limit: Duration) -> bool {
        let wait = async {
            while !self.synced.get() {
                self.connected.notified().await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Notes a pod for the first snapshot.
    pub fn register(&self, pod: Pod) {
        self.pods.borrow_mut().push(pod);
    }
    /// From here on snapshots are sent.
    pub fn open(&self) {
        self.open.set(true);
        self.opened.notify_waiters();
    }

    /// Tells the newest ztunnel of a pod and waits for its acknowledgement. Without any ztunnel: Ok(false); the next
    /// one learns of the pod by its snapshot.
    pub async fn add(&self, pod: Pod) -> Result<bool, Refusal> {
        {
            let mut pods = self.pods.borrow_mut();
            pods.retain(|p| p.uid != pod.uid);
            pods.push(pod.clone());
        }
        self.tell_standbys(&pod);
        let newest = self.peers.borrow().iter().rfind(|peer| !peer.standby).map(|peer| peer.commands.clone());
        let Some(tx) = newest else { return Ok(false) };
        let (ack, acked) = oneshot::channel();
        if tx.send(Command::Add(pod, ack)).await.is_err() {
            return Ok(false);
        }
        match acked.await {
            Ok(answer) => answer.map(|()| true),
            Err(_) => Ok(false), // disconnected meanwhile
        }
    }

    /// Tells those that stand by of a pod. One that has not taken in what it was told is disconnected, and begins anew.
    fn tell_standbys(&self, pod: &Pod) {
        self.peers.borrow_mut().retain(|peer| {
            if !peer.standby {
                return true;
            }
            // Nobody waits for the answer.
            let (ack, _) = oneshot::channel();
            peer.commands.try_send(Command::Add(pod.clone(), ack)).is_ok()
        });
    }

    /// Tells all ztunnels that a pod is no longer theirs.
    pub fn del(&self, uid: &str) {
        self.pods.borrow_mut().retain(|pod| pod.uid != uid);
        for peer in self.peers.borrow().iter() {
            let _ = peer.commands.try_send(Command::Del(uid.into()));
        }
    }

    async fn serve(self: Rc<Self>, connection: Packets, standby: bool) {
        let id = self.next.get();
        self.next.set(id + 1);
        match self.session((id, standby), &connection).await {
            Ok(()) => tracing::info!(connection = id, standby, "ztunnel disconnected"),
            Err(e) => tracing::warn!(connection = id, standby, error = %e, "ztunnel connection ended"),
        }
        self.peers.borrow_mut().retain(|peer| peer.id != id);
    }

    async fn session(&self, (id, standby): (u64, bool), connection: &Packets) -> Result<(), SessionError> {
        let hello = tokio::time::timeout(ANSWER, connection.recv(ZDS_MAX_PACKET)).await;
        let (bytes, _) = hello.map_err(|_| SessionError::NoHello)?.map_err(SessionError::Hello)?;
        let hello = ZdsHello::decode(&bytes[..]).map_err(SessionError::InvalidHello)?;
        if hello.version != Version::V1 as i32 {
            return Err(SessionError::Version(hello.version));
        }
        if !hello.karst_listeners {
            // It would acknowledge every pod, and its connections would wait in queues that nobody empties.
            return Err(SessionError::Foreign);
        }
        while !self.open.get() {
            self.opened.notified().await;
        }
        let snapshot: Vec<Pod> = self.pods.borrow().clone();
        tracing::info!(connection = id, standby, pods = snapshot.len(), "ztunnel connected");
        let (tx, mut rx) = mpsc::channel(QUEUE);
        // From here on changes are queued behind the snapshot.
        self.peers.borrow_mut().push(Peer { id, commands: tx, standby });
        for pod in &snapshot {
            if let Err(e) = self.send_add(connection, pod).await? {
                tracing::warn!(pod = pod.uid, error = e.to_string(), "ztunnel cannot serve a pod yet");
            }
        }
        exchange(connection, workload_request::Payload::SnapshotSent(SnapshotSent {}), &[])
            .await?
            .map_err(SessionError::Snapshot)?;
        if !standby {
            self.synced.set(true);
            self.connected.notify_waiters();
        }
        loop {
            let command = tokio::select! {
                command = rx.recv() => command,
                // Between requests ztunnel says nothing: readable means gone.
                received = connection.recv(ZDS_MAX_PACKET) => return match received {
                    Ok((bytes, _)) if bytes.is_empty() => Ok(()),
                    Ok(_) => Err(SessionError::Unasked),
                    Err(e) => Err(e.into()),
                },
            };
            match command {
                Some(Command::Add(pod, ack)) => {
                    let answer = self.send_add(connection, &pod).await?;
                    let _ = ack.send(answer);
                }
                Some(Command::Del(uid)) => {
                    let del = workload_request::Payload::Del(DelWorkload { uid: uid.clone() });
                    if let Err(e) = exchange(connection, del, &[]).await? {
                        tracing::warn!(pod = uid, error = e.to_string(), "ztunnel cannot remove a pod");
                    }
                }
                None => return Ok(()),
            }
        }
    }

    async fn send_add(&self, connection: &Packets, pod: &Pod) -> Result<Answer, SessionError> {
        let (uid, info) = (pod.uid.clone(), pod.info.clone());
        let sockets = &pod.sockets;
        let all = [
            (Descriptor::ListenOutbound, sockets.outbound.as_fd()),
            (Descriptor::ListenPlaintext, sockets.plaintext.as_fd()),
            (Descriptor::ListenHbone, sockets.hbone.as_fd()),
            (Descriptor::DnsUdp, sockets.dns.as_fd()),
            (Descriptor::ExemptMap, self.exempt.as_fd()),
            (Descriptor::ListenForward, sockets.forward.as_fd()),
        ];
        let add = AddWorkload {
            uid,
            workload_info: Some(info),
            karst_descriptors: all.iter().map(|(d, _)| *d as i32).collect(),
            karst_addresses: pod.ips.iter().map(|ip| karst_core::addr::ip_to_bytes(*ip)).collect(),
            karst_bypass_dns: pod.bypass_dns,
        };
        let mut fds = vec![pod.netns.as_fd()];
        fds.extend(all.iter().map(|(_, f)| *f));
        exchange(connection, workload_request::Payload::Add(add), &fds).await
    }
}

/// What ztunnel says of one request.
type Answer = Result<(), Refusal>;

/// One request and its acknowledgement. An error: the connection is unusable.
async fn exchange(
    connection: &Packets,
    payload: workload_request::Payload,
    fds: &[BorrowedFd<'_>],
) -> Result<Answer, SessionError> {
    let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    if bytes.len() > ZDS_MAX_PACKET {
        return Ok(Err(Refusal::TooLarge(bytes.len())));
    }
    let talk = async {
        connection.send(&bytes, fds).await?;
        connection.recv(ZDS_MAX_PACKET).await
    };
    let (answer, _) = tokio::time::timeout(ANSWER, talk).await.map_err(|_| SessionError::NoAnswer)??;
    if answer.is_empty() {
        return Err(SessionError::Closed);
    }
    let answer = WorkloadResponse::decode(&answer[..]).map_err(SessionError::InvalidAnswer)?;
    match answer.payload {
        Some(workload_response::Payload::Ack(Ack { error })) if error.is_empty() => Ok(Ok(())),
        Some(workload_response::Payload::Ack(Ack { error })) => Ok(Err(Refusal::ByZtunnel(error))),
        None => Err(SessionError::NoAcknowledgement),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf};

    /// A hub that knows its pods, and where it is. Its sockets' files are removed at once: who connects does so before.
    fn hub(name: &str) -> (Rc<Hub>, PathBuf) {
        let path = std::env::temp_dir().join(format!("karst-zds-{}-{name}", std::process::id()));
        let exempt = fs::File::open("/dev/null").unwrap().into();
        let hub = Hub::start(&path, exempt).unwrap();
        hub.open();
        (hub, path)
    }

    fn remove(path: &Path) {
        fs::remove_file(zds_standby(path)).unwrap();
        fs::remove_file(path).unwrap();
    }

    async fn connect(path: &Path, karst_listeners: bool) -> Packets {
        let ztunnel = Packets::connect(path).await.unwrap();
        let hello = ZdsHello { version: Version::V1 as i32, karst_listeners };
        ztunnel.send(&hello.encode_to_vec(), &[]).await.unwrap();
        ztunnel
    }

    /// The next request; none: the connection is closed.
    async fn next(ztunnel: &Packets) -> Option<workload_request::Payload> {
        let (bytes, _) = ztunnel.recv(ZDS_MAX_PACKET).await.unwrap();
        WorkloadRequest::decode(&bytes[..]).unwrap().payload
    }

    /// The next request, acknowledged: the pod's uid, or empty at the end of the snapshot.
    async fn take(ztunnel: &Packets) -> String {
        let uid = match next(ztunnel).await {
            Some(workload_request::Payload::Add(add)) => format!("add {}", add.uid),
            Some(workload_request::Payload::Del(del)) => format!("del {}", del.uid),
            Some(workload_request::Payload::SnapshotSent(_)) => String::new(),
            other => unreachable!("{other:?}"),
        };
        let ack = WorkloadResponse { payload: Some(workload_response::Payload::Ack(Ack::default())) };
        ztunnel.send(&ack.encode_to_vec(), &[]).await.unwrap();
        uid
    }

    fn pod(uid: &str) -> Pod {
        let file = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let sockets = PodSockets { hbone: file(), plaintext: file(), outbound: file(), dns: file(), forward: file() };
        Pod {
            uid: uid.into(),
            info: WorkloadInfo::default(),
            ips: vec![],
            netns: Netns::current().unwrap(),
            sockets: Rc::new(sockets),
            bypass_dns: false,
        }
    }

    #[tokio::test]
    async fn a_ztunnel_that_takes_no_listeners_is_told_of_no_pods() {
        let run = async {
            let (_hub, path) = hub("listeners");
            let (karsts, istios) = (connect(&path, true).await, connect(&path, false).await);
            remove(&path);
            let snapshot = workload_request::Payload::SnapshotSent(SnapshotSent {});
            assert_eq!(next(&karsts).await, Some(snapshot));
            assert_eq!(next(&istios).await, None, "Istio's");
        };
        tokio::task::LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn who_stands_by_has_all_pods_and_never_serves_the_node() {
        let run = async {
            let (hub, path) = hub("standby");
            hub.register(pod("old"));
            let spare = connect(&zds_standby(&path), true).await;
            assert_eq!((take(&spare).await, take(&spare).await), ("add old".into(), String::new()));
            assert!(!hub.has_peer() && !hub.wait_peer(Duration::from_millis(20)).await);
            let (added, told) = tokio::join!(hub.add(pod("first")), take(&spare));
            assert_eq!((added, told), (Ok(false), "add first".into()), "nobody serves it");

            let ztunnel = connect(&path, true).await;
            let known = [take(&ztunnel).await, take(&ztunnel).await, take(&ztunnel).await];
            assert_eq!(known, ["add old", "add first", ""]);
            assert!(hub.wait_peer(Duration::from_secs(5)).await && hub.has_peer());
            // One that came later is still none that serves.
            let later = connect(&zds_standby(&path), true).await;
            remove(&path);
            let known = [take(&later).await, take(&later).await, take(&later).await];
            assert_eq!(known, ["add old", "add first", ""]);
            let add = hub.add(pod("new"));
            let (added, by_ztunnel, by_spare, by_later) = tokio::join!(add, take(&ztunnel), take(&spare), take(&later));
            assert_eq!(added, Ok(true));
            assert_eq!([by_ztunnel, by_spare, by_later], ["add new", "add new", "add new"]);
            hub.del("old");
            let (by_ztunnel, by_spare) = tokio::join!(take(&ztunnel), take(&spare));
            assert_eq!([by_ztunnel, by_spare], ["del old", "del old"]);
            // It dies, and nobody serves the node until the spare says that it does, at the other socket.
            drop(ztunnel);
            while hub.has_peer() {
                tokio::task::yield_now().await;
            }
        };
        tokio::task::LocalSet::new().run_until(run).await;
    }
}
