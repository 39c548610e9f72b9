//! Its side of ZDS: a snapshot for each ztunnel that connects; additions to the newest, deletions to all; each acknowledged before
//! the next is sent, within 5 s.

use crate::Pod;
use anyhow::{Context, Result, ensure};
use karst_api::{
    ZDS_MAX_PACKET,
    zds::{
        AddWorkload, DelWorkload, SnapshotSent, Version, WorkloadInfo, WorkloadRequest, WorkloadResponse, ZdsHello,
        workload_request::Payload, workload_response,
    },
};
use karst_rt::{
    netns::Netns,
    seqpacket::{Listener, Packets},
};
use prost::Message;
use std::{
    cell::RefCell,
    os::fd::AsFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc as blocking,
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(5);

/// What is said of a request: empty, or ztunnel's error.
type Said = String;

#[derive(Clone)]
enum Order {
    Add(Workload, blocking::Sender<Said>),
    Del(String, blocking::Sender<Said>),
}

#[derive(Clone)]
struct Workload {
    uid: String,
    info: WorkloadInfo,
    netns: Netns,
}

/// An agent; ends when it is dropped, and leaves the rules that it has set.
pub struct IstioAgent {
    orders: Option<mpsc::UnboundedSender<Order>>,
    connected: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl IstioAgent {
    /// Starts one that listens at a path, and has these pods already.
    ///
    /// # Errors
    /// The path cannot be had.
    pub fn start(path: &Path, pods: &[Pod]) -> Result<Self> {
        let (orders, received) = mpsc::unbounded_channel();
        let (up, is_up) = blocking::channel();
        let connected = Arc::new(AtomicUsize::new(0));
        let hub = (connected.clone(), pods.iter().map(Workload::of).collect(), path.to_path_buf());
        let thread = std::thread::spawn(move || run(hub, received, &up));
        is_up.recv().context("the agent's thread has ended")??;
        Ok(Self { orders: Some(orders), connected, thread: Some(thread) })
    }

    /// How many ztunnels are connected, and have their snapshot.
    pub fn connected(&self) -> usize {
        self.connected.load(Relaxed)
    }

    /// Tells the newest ztunnel of a pod.
    pub fn add(&self, pod: &Pod) -> Said {
        self.order(|to| Order::Add(Workload::of(pod), to))
    }

    /// Tells all ztunnels that a pod is gone.
    pub fn del(&self, uid: &str) -> Said {
        self.order(|to| Order::Del(uid.into(), to))
    }

    fn order(&self, make: impl FnOnce(blocking::Sender<Said>) -> Order) -> Said {
        let (to, said) = blocking::channel();
        self.orders.as_ref().expect("it runs").send(make(to)).expect("it runs");
        let all: Vec<Said> = said.iter().collect();
        all.concat()
    }
}

impl Drop for IstioAgent {
    fn drop(&mut self) {
        self.orders.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Workload {
    fn of(pod: &Pod) -> Self {
        let spec = &pod.spec;
        let info = WorkloadInfo {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            service_account: spec.account.clone(),
        };
        Self { uid: pod.uid.clone(), info, netns: pod.netns().clone() }
    }

    /// Nothing of Karst's is in it.
    fn added(&self) -> Payload {
        let workload_info = Some(self.info.clone());
        Payload::Add(AddWorkload { uid: self.uid.clone(), workload_info, ..AddWorkload::default() })
    }
}

struct Hub {
    pods: RefCell<Vec<Workload>>,
    /// By number of the connection, the newest last.
    peers: RefCell<Vec<(usize, mpsc::UnboundedSender<Order>)>>,
    connected: Arc<AtomicUsize>,
}

fn run(
    (connected, pods, path): (Arc<AtomicUsize>, Vec<Workload>, PathBuf),
    mut orders: mpsc::UnboundedReceiver<Order>,
    up: &blocking::Sender<Result<()>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = match Listener::bind(&path) {
            Ok(listener) => listener,
            Err(e) => return drop(up.send(Err(e.into()))),
        };
        let _ = up.send(Ok(()));
        let hub = Rc::new(Hub { pods: pods.into(), peers: RefCell::default(), connected });
        let mut number = 0;
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    number += 1;
                    let hub = hub.clone();
                    tokio::task::spawn_local(async move {
                        let connection = accepted.expect("a connection");
                        let ended = hub.serve(number, &connection).await;
                        hub.peers.borrow_mut().retain(|(n, _)| *n != number);
                        println!("Istio's agent: connection {number} ended: {ended:?}");
                    });
                }
                order = orders.recv() => match order {
                    Some(order) => hub.order(order),
                    None => break,
                },
            }
        }
    });
}

impl Hub {
    fn order(&self, order: Order) {
        let peers = self.peers.borrow();
        match &order {
            Order::Add(workload, _) => {
                self.pods.borrow_mut().push(workload.clone());
                if let Some((_, newest)) = peers.last() {
                    let _ = newest.send(order);
                }
            }
            Order::Del(uid, _) => {
                self.pods.borrow_mut().retain(|w| w.uid != *uid);
                for (_, peer) in peers.iter() {
                    let _ = peer.send(order.clone());
                }
            }
        }
    }

    async fn serve(&self, number: usize, connection: &Packets) -> Result<()> {
        let (orders, mut received) = mpsc::unbounded_channel();
        self.peers.borrow_mut().push((number, orders));
        let (bytes, _) = tokio::time::timeout(DEADLINE, connection.recv(ZDS_MAX_PACKET)).await??;
        let hello = ZdsHello::decode(&bytes[..])?;
        ensure!(hello.version == Version::V1 as i32, "version {}", hello.version);
        let snapshot = self.pods.borrow().clone();
        for workload in &snapshot {
            let said = exchange(connection, workload.added(), Some(&workload.netns)).await?;
            if !said.is_empty() {
                println!("Istio's agent: {}: {said}", workload.uid);
            }
        }
        exchange(connection, Payload::SnapshotSent(SnapshotSent {}), None).await?;
        self.connected.fetch_add(1, Relaxed);
        let ended = self.changes(connection, &mut received).await;
        self.connected.fetch_sub(1, Relaxed);
        ended
    }

    async fn changes(&self, connection: &Packets, orders: &mut mpsc::UnboundedReceiver<Order>) -> Result<()> {
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                // A ztunnel says nothing unasked: readable means gone.
                received = connection.recv(ZDS_MAX_PACKET) => {
                    ensure!(received?.0.is_empty(), "a packet that nobody has asked for");
                    return Ok(());
                }
            };
            let (said, to) = match order {
                None => return Ok(()),
                Some(Order::Add(workload, to)) => {
                    (exchange(connection, workload.added(), Some(&workload.netns)).await?, to)
                }
                Some(Order::Del(uid, to)) => (exchange(connection, Payload::Del(DelWorkload { uid }), None).await?, to),
            };
            let _ = to.send(said);
        }
    }
}

/// A request with the one descriptor that Istio's agent sends, and what is said of it.
async fn exchange(connection: &Packets, payload: Payload, netns: Option<&Netns>) -> Result<Said> {
    let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    ensure!(bytes.len() <= ZDS_MAX_PACKET, "{} bytes", bytes.len());
    let fds: Vec<_> = netns.iter().map(|n| n.as_fd()).collect();
    tokio::time::timeout(DEADLINE, connection.send(&bytes, &fds)).await??;
    let (bytes, _) = tokio::time::timeout(DEADLINE, connection.recv(ZDS_MAX_PACKET)).await??;
    match WorkloadResponse::decode(&bytes[..])?.payload {
        Some(workload_response::Payload::Ack(ack)) => Ok(ack.error),
        None => anyhow::bail!("no acknowledgement"),
    }
}
