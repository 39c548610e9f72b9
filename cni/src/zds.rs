//! ZDS server. Each ztunnel that connects gets a snapshot of all pods, then changes. Additions go to the newest
//! connection only, deletions to all, each acknowledged before the next is sent (reference: Istio's node agent).

use crate::sockets::PodSockets;
use karst_api::{ZDS_MAX_PACKET, zds::*};
use karst_rt::{netns::Netns, seqpacket};
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
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

enum Command {
    Add(Pod, oneshot::Sender<Result<(), String>>),
    Del(String),
}

/// All connections.
pub struct Hub {
    pods: RefCell<Vec<Pod>>,
    peers: RefCell<Vec<(u64, mpsc::Sender<Command>)>>,
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
    pub fn start(path: &Path, exempt: OwnedFd) -> std::io::Result<Rc<Self>> {
        if let Some(d) = path.parent() {
            std::fs::create_dir_all(d)?;
        }
        let l = seqpacket::Listener::bind(path)?;
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
        let h = hub.clone();
        tokio::task::spawn_local(async move {
            loop {
                match l.accept().await {
                    Ok(c) => {
                        tokio::task::spawn_local(h.clone().serve(c));
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "ZDS accept failed");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        });
        Ok(hub)
    }

    /// Is a ztunnel connected?
    pub fn has_peer(&self) -> bool {
        !self.peers.borrow().is_empty()
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
    pub async fn add(&self, pod: Pod) -> Result<bool, String> {
        {
            let mut pods = self.pods.borrow_mut();
            pods.retain(|p| p.uid != pod.uid);
            pods.push(pod.clone());
        }
        let Some((_, tx)) = self.peers.borrow().last().cloned() else { return Ok(false) };
        let (ack, acked) = oneshot::channel();
        if tx.send(Command::Add(pod, ack)).await.is_err() {
            return Ok(false);
        }
        match acked.await {
            Ok(r) => r.map(|()| true),
            Err(_) => Ok(false), // disconnected meanwhile
        }
    }

    /// Tells all ztunnels that a pod is no longer theirs.
    pub fn del(&self, uid: &str) {
        self.pods.borrow_mut().retain(|p| p.uid != uid);
        for (_, p) in self.peers.borrow().iter() {
            let _ = p.try_send(Command::Del(uid.into()));
        }
    }

    async fn serve(self: Rc<Self>, c: seqpacket::Packets) {
        let id = self.next.get();
        self.next.set(id + 1);
        match self.session(id, &c).await {
            Ok(()) => tracing::info!(connection = id, "ztunnel disconnected"),
            Err(e) => tracing::warn!(connection = id, error = %e, "ztunnel connection ended"),
        }
        self.peers.borrow_mut().retain(|(i, _)| *i != id);
    }

    async fn session(&self, id: u64, c: &seqpacket::Packets) -> Result<(), String> {
        let hello = tokio::time::timeout(ANSWER, c.recv(ZDS_MAX_PACKET)).await.map_err(|_| "no hello within 5 s")?;
        let (bytes, _) = hello.map_err(|e| format!("hello: {e}"))?;
        let hello = ZdsHello::decode(&bytes[..]).map_err(|e| format!("hello: {e}"))?;
        if hello.version != Version::V1 as i32 {
            return Err(format!("ztunnel speaks ZDS version {}; this agent speaks 1", hello.version));
        }
        let ours = hello.karst_listeners;
        while !self.open.get() {
            self.opened.notified().await;
        }
        let snapshot: Vec<Pod> = self.pods.borrow().clone();
        tracing::info!(connection = id, pods = snapshot.len(), listeners = ours, "ztunnel connected");
        let (tx, mut rx) = mpsc::channel(QUEUE);
        // From here on changes are queued behind the snapshot.
        self.peers.borrow_mut().push((id, tx));
        for p in &snapshot {
            if let Err(e) = self.send_add(c, p, ours).await? {
                tracing::warn!(pod = p.uid, error = e, "ztunnel cannot serve a pod yet");
            }
        }
        exchange(c, workload_request::Payload::SnapshotSent(SnapshotSent {}), &[])
            .await?
            .map_err(|e| format!("snapshot: {e}"))?;
        self.synced.set(true);
        self.connected.notify_waiters();
        loop {
            let command = tokio::select! {
                x = rx.recv() => x,
                // Between requests ztunnel says nothing: readable means gone.
                r = c.recv(ZDS_MAX_PACKET) => return match r {
                    Ok((b, _)) if b.is_empty() => Ok(()),
                    Ok(_) => Err("packet without request".into()),
                    Err(e) => Err(e.to_string()),
                },
            };
            match command {
                Some(Command::Add(p, ack)) => {
                    let r = self.send_add(c, &p, ours).await?;
                    let _ = ack.send(r);
                }
                Some(Command::Del(uid)) => {
                    if let Err(e) =
                        exchange(c, workload_request::Payload::Del(DelWorkload { uid: uid.clone() }), &[]).await?
                    {
                        tracing::warn!(pod = uid, error = e, "ztunnel cannot remove a pod");
                    }
                }
                None => return Ok(()),
            }
        }
    }

    async fn send_add(&self, c: &seqpacket::Packets, p: &Pod, ours: bool) -> Result<Result<(), String>, String> {
        let mut add = AddWorkload { uid: p.uid.clone(), workload_info: Some(p.info.clone()), ..AddWorkload::default() };
        let mut fds = vec![p.netns.as_fd()];
        if ours {
            add.karst_addresses = p.ips.iter().map(|ip| karst_core::addr::ip_to_bytes(*ip)).collect();
            let s = &p.sockets;
            let all = [
                (Descriptor::ListenOutbound, s.outbound.as_fd()),
                (Descriptor::ListenPlaintext, s.plaintext.as_fd()),
                (Descriptor::ListenHbone, s.hbone.as_fd()),
                (Descriptor::DnsUdp, s.dns.as_fd()),
                (Descriptor::ExemptMap, self.exempt.as_fd()),
                (Descriptor::ListenForward, s.forward.as_fd()),
            ];
            add.karst_descriptors = all.iter().map(|(d, _)| *d as i32).collect();
            fds.extend(all.iter().map(|(_, f)| *f));
            add.karst_bypass_dns = p.bypass_dns;
        }
        exchange(c, workload_request::Payload::Add(add), &fds).await
    }
}

/// One request and its acknowledgement. Outer error: the connection is unusable; inner: ztunnel refused.
async fn exchange(
    c: &seqpacket::Packets,
    payload: workload_request::Payload,
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> Result<Result<(), String>, String> {
    let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    if bytes.len() > ZDS_MAX_PACKET {
        return Ok(Err(format!("request of {} bytes does not fit a ZDS packet of {ZDS_MAX_PACKET}", bytes.len())));
    }
    let talk = async {
        c.send(&bytes, fds).await?;
        c.recv(ZDS_MAX_PACKET).await
    };
    let (answer, _) =
        tokio::time::timeout(ANSWER, talk).await.map_err(|_| "no answer within 5 s")?.map_err(|e| e.to_string())?;
    if answer.is_empty() {
        return Err("closed while an answer was awaited".into());
    }
    let answer = WorkloadResponse::decode(&answer[..]).map_err(|e| format!("answer: {e}"))?;
    match answer.payload {
        Some(workload_response::Payload::Ack(Ack { error })) if error.is_empty() => Ok(Ok(())),
        Some(workload_response::Payload::Ack(Ack { error })) => Ok(Err(error)),
        None => Err("answer without acknowledgement".into()),
    }
}
