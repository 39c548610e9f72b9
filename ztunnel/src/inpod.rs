//! The node's pods, as the agent tells of them over ZDS.

use crate::{
    gate::{self, Gate},
    listeners::{Listeners, OpenError, Redirection},
    state::OwnPod,
};
use karst_api::{
    ZDS_MAX_PACKET,
    zds::{self, Ack, AddWorkload, Descriptor, ZdsHello, workload_request::Payload},
};
use karst_core::limits::MAX_ASKING_OF_POD;
use karst_rt::{
    admission::Admission,
    backoff::Backoff,
    log::Cause,
    netns::Netns,
    seqpacket::Packets,
    socket::{Exempt, NetnsConnector},
};
use prost::Message;
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// Ports of a pod that could not be had are tried again after this time (as Istio's ztunnel does).
const RETRY: Duration = Duration::from_secs(5);

/// A pod of this node.
#[derive(Debug)]
pub struct LocalPod {
    /// The uid on ZDS.
    pub uid: String,
    /// `namespace/name`.
    pub key: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Is its DNS captured, over TCP too? (`ambient.istio.io/dns-capture`; over UDP the redirection knows.)
    pub dns_capture: bool,
    /// Service account.
    pub account: String,
    /// Its addresses, the usual one of each family first; empty if the agent does not say (Istio's).
    pub ips: Vec<IpAddr>,
    /// How its connections come to us.
    pub redirection: Redirection,
    /// Where its connections are made.
    pub connector: NetnsConnector,
    /// What it uses up, over all workers, and for as long as it is served.
    pub usage: Arc<Usage>,
}

impl LocalPod {
    /// Who it is, as the agent says.
    pub fn own(&self) -> OwnPod<'_> {
        OwnPod { namespace: &self.namespace, name: &self.name, account: &self.account, uid: Some(&self.uid) }
    }

    /// Is it an address of the pod itself, and not of what is inside of it?
    pub fn holds(&self, ip: IpAddr) -> bool {
        self.ips.contains(&ip) || self.connector.is_local(ip)
    }
}

#[cfg(test)]
impl LocalPod {
    /// A pod of the namespace `ns`, for tests.
    pub fn test(name: &str, account: &str, uid: &str) -> Arc<Self> {
        Arc::new(Self {
            uid: uid.into(),
            key: format!("ns/{name}"),
            namespace: "ns".into(),
            name: name.into(),
            dns_capture: true,
            account: account.into(),
            ips: vec![],
            redirection: Redirection::Lookup,
            connector: NetnsConnector::host(),
            usage: Arc::default(),
        })
    }
}

/// What a pod uses up of the process.
#[derive(Debug)]
pub struct Usage {
    /// Open connections, both directions.
    pub connections: AtomicUsize,
    /// Of these, those that others have opened.
    pub inbound: AtomicUsize,
    /// Of these, those that it has opened.
    pub outbound: AtomicUsize,
    /// Its tunnels.
    pub gate: Gate,
    /// Those who call it without a tunnel.
    pub plaintext: Admission,
    /// How often one of its tasks has had to wait for others' turns.
    pub turns: Arc<AtomicU64>,
    /// Lines of the log about its connections that wait to be written.
    pub log: Arc<Cause>,
    /// Names that its connections and queries may ask the control plane for at a time.
    pub asking: Semaphore,
}

impl Default for Usage {
    fn default() -> Self {
        let descriptors = karst_rt::process::raise_descriptor_limit().unwrap_or(1024);
        let [connections, inbound, outbound] = Default::default();
        let (gate, plaintext) = (Gate::of_pod(descriptors), gate::plaintext(descriptors));
        let (turns, log) = Default::default();
        let asking = Semaphore::new(MAX_ASKING_OF_POD);
        Self { connections, inbound, outbound, gate, plaintext, turns, log, asking }
    }
}

/// The pods by uid. (Not by name: while one goes, another may come under its name.)
pub type LocalPods = HashMap<String, Arc<LocalPod>>;

/// Why a pod cannot be served. The text goes to the agent.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// There are no descriptors for a worker's own.
    #[error("descriptors: {0}")]
    Descriptors(io::Error),
    /// The process is about to end.
    #[error("a worker has stopped")]
    WorkerStopped,
    /// Its listeners, which the agent has left to us, cannot be opened; it is tried again.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A worker cannot use a listener.
    #[error("listener of {pod}: {error}")]
    Listener {
        /// Whose.
        pod: String,
        /// Why not.
        error: io::Error,
    },
}

/// Why the connection to the agent has ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("hello: {0}")]
    Hello(io::Error),
    #[error("acknowledge: {0}")]
    Acknowledge(io::Error),
}

/// What is wrong with a request of the agent. The text goes back to it.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It cannot be read.
    #[error("not a ZDS request: {0}")]
    Decode(prost::DecodeError),
    /// Of a newer agent.
    #[error("unknown kind of ZDS request")]
    Unknown,
    /// Nothing is said of the pod.
    #[error("AddWorkload without workload_info")]
    NoWorkloadInfo,
    /// Some were lost on the way.
    #[error("AddWorkload announces {announced} descriptors and the netns, and brings {brought}")]
    Descriptors {
        /// Besides the netns.
        announced: usize,
        /// With the netns.
        brought: usize,
    },
    /// There is no descriptor at all.
    #[error("AddWorkload without netns descriptor")]
    NoNetns,
    /// Of an agent that knows of listeners; one that does not (Istio's) sends nothing but the netns.
    #[error("AddWorkload brings descriptors, but not all four listeners")]
    NoListeners,
    /// An address that is none.
    #[error("an address has {0} bytes")]
    AddressLength(usize),
}

/// What the owner of the connection does with the agent's requests.
pub trait Pods {
    /// Takes on a pod; Ok once it is served. Without listeners they are to be opened.
    fn add(&mut self, pod: LocalPod, listeners: Option<Listeners>) -> impl Future<Output = Result<(), AddError>>;
    /// Is there a pod whose listeners could not be opened?
    fn is_waiting(&self) -> bool;
    /// Tries those once more.
    fn retry(&mut self) -> impl Future<Output = ()>;
    /// Lets a pod go.
    fn del(&mut self, uid: &str) -> impl Future<Output = ()>;
    /// The snapshot is complete: pods not in `uids` are gone.
    fn snapshot(&mut self, uids: &[String]) -> impl Future<Output = ()>;
    /// The connection to the agent is lost; pods are served on.
    fn lost(&mut self);
}

/// Talks to the agent, for ever.
pub async fn run(path: &Path, mut pods: impl Pods) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        match session(path, &mut pods, &mut backoff).await {
            Ok(()) => tracing::info!("the node agent closed the connection; pods are still served"),
            Err(e) => tracing::warn!(path = %path.display(), error = %e, "no connection to the node agent"),
        }
        pods.lost();
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Follows the node's pods beside a ztunnel that serves them, for ever. Only Karst's agent has a socket for this; it counts nobody
/// there as the node's ztunnel.
pub async fn stand_by(path: &Path, pods: &mut impl Pods) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        if let Err(e) = session(path, pods, &mut backoff).await {
            tracing::debug!(path = %path.display(), error = %e, "no standing by at the node agent");
        }
        pods.lost();
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn session(path: &Path, pods: &mut impl Pods, backoff: &mut Backoff) -> Result<(), SessionError> {
    let agent = Packets::connect(path).await?;
    let hello = ZdsHello { version: zds::Version::V1 as i32, karst_listeners: true };
    agent.send(&hello.encode_to_vec(), &[]).await.map_err(SessionError::Hello)?;
    backoff.reset();
    tracing::info!("connected to the node agent");
    let mut seen = Some(Vec::new());
    loop {
        let (bytes, fds) = tokio::select! {
            received = agent.recv(ZDS_MAX_PACKET) => received?,
            () = tokio::time::sleep(RETRY), if pods.is_waiting() => {
                pods.retry().await;
                continue;
            }
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let error = match request(&bytes, fds) {
            Ok(Request::Add(pod, l)) => {
                if let Some(uids) = &mut seen {
                    uids.push(pod.uid.clone());
                }
                pods.add(*pod, l).await.err().map(|e| e.to_string())
            }
            Ok(Request::Keep(uid)) => {
                if let Some(uids) = &mut seen {
                    uids.push(uid);
                }
                None
            }
            Ok(Request::Del(uid)) => {
                pods.del(&uid).await;
                None
            }
            Ok(Request::Snapshot) => {
                if let Some(uids) = seen.take() {
                    pods.snapshot(&uids).await;
                }
                None
            }
            Err(e) => Some(e.to_string()),
        };
        if let Some(e) = &error {
            tracing::warn!(error = e, "refused a request of the node agent");
        }
        let ack = zds::WorkloadResponse {
            payload: Some(zds::workload_response::Payload::Ack(Ack { error: error.unwrap_or_default() })),
        };
        agent.send(&ack.encode_to_vec(), &[]).await.map_err(SessionError::Acknowledge)?;
    }
}

/// A request, read.
pub enum Request {
    Add(Box<LocalPod>, Option<Listeners>),
    Keep(String),
    Del(String),
    Snapshot,
}

/// Reads a packet of the agent.
///
/// # Errors
/// With what is wrong; the text goes back to the agent.
pub fn request(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Request, RequestError> {
    match zds::WorkloadRequest::decode(bytes).map_err(RequestError::Decode)?.payload {
        Some(Payload::Add(a)) => add(a, fds).map(|(p, l)| Request::Add(Box::new(p), l)),
        Some(Payload::Keep(k)) => Ok(Request::Keep(k.uid)),
        Some(Payload::Del(d)) => Ok(Request::Del(d.uid)),
        Some(Payload::SnapshotSent(_)) => Ok(Request::Snapshot),
        None => Err(RequestError::Unknown),
    }
}

fn add(request: AddWorkload, fds: Vec<OwnedFd>) -> Result<(LocalPod, Option<Listeners>), RequestError> {
    let info = request.workload_info.ok_or(RequestError::NoWorkloadInfo)?;
    let (announced, brought) = (request.karst_descriptors.len(), fds.len());
    if brought != announced + 1 {
        return Err(RequestError::Descriptors { announced, brought });
    }
    let mut fds = fds.into_iter();
    let netns = Netns::from_fd(fds.next().ok_or(RequestError::NoNetns)?);
    let (mut outbound, mut plaintext, mut hbone, mut dns, mut exempt) = (None, None, None, None, None);
    let mut forward = None;
    for (kind, fd) in request.karst_descriptors.iter().zip(fds) {
        match Descriptor::try_from(*kind) {
            Ok(Descriptor::ListenOutbound) => outbound = Some(TcpListener::from(fd)),
            Ok(Descriptor::ListenPlaintext) => plaintext = Some(TcpListener::from(fd)),
            Ok(Descriptor::ListenHbone) => hbone = Some(TcpListener::from(fd)),
            Ok(Descriptor::DnsUdp) => dns = Some(UdpSocket::from(fd)),
            Ok(Descriptor::ListenForward) => forward = Some(TcpListener::from(fd)),
            Ok(Descriptor::ExemptMap) => exempt = Some(Exempt::new(fd)),
            // From a newer agent; closed.
            Ok(Descriptor::Unknown) | Err(_) => {}
        }
    }
    let listeners = match (outbound, plaintext, hbone, dns) {
        (Some(outbound), Some(plaintext), Some(hbone), Some(dns)) => {
            Some(Listeners { outbound, plaintext, hbone, dns: vec![dns], forward, dns_tcp: vec![] })
        }
        _ if announced == 0 => None,
        _ => return Err(RequestError::NoListeners),
    };
    let ip = |bytes: &Vec<u8>| karst_core::addr::ip_from_bytes(bytes).ok_or(RequestError::AddressLength(bytes.len()));
    let pod = LocalPod {
        uid: request.uid,
        ips: request.karst_addresses.iter().map(ip).collect::<Result<_, _>>()?,
        usage: Arc::default(),
        key: format!("{}/{}", info.namespace, info.name),
        namespace: info.namespace,
        name: info.name,
        dns_capture: !request.karst_bypass_dns,
        account: info.service_account,
        redirection: if listeners.is_some() { Redirection::Lookup } else { Redirection::Nat },
        connector: NetnsConnector::of_pod(netns, exempt),
    };
    Ok((pod, listeners))
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::zds::{WorkloadInfo, WorkloadRequest};

    #[test]
    fn dns_is_captured_unless_the_agent_says_otherwise() {
        let descriptor = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for (karst_bypass_dns, want) in [(false, true), (true, false)] {
            let add = AddWorkload {
                uid: "u".into(),
                workload_info: Some(WorkloadInfo { name: "n".into(), ..WorkloadInfo::default() }),
                karst_descriptors: (1..=4).collect(),
                karst_bypass_dns,
                ..AddWorkload::default()
            };
            let bytes = WorkloadRequest { payload: Some(Payload::Add(add)) }.encode_to_vec();
            let r = request(&bytes, (0..5).map(|_| descriptor()).collect());
            let Ok(Request::Add(pod, _)) = r else { unreachable!("{:?}", r.err()) };
            assert_eq!(pod.dns_capture, want);
        }
    }
    #[test]
    fn an_agent_sends_all_listeners_or_none() {
        let sent = |kinds: &[i32]| {
            let karst_descriptors = kinds.to_vec();
            let fds = 1 + karst_descriptors.len();
            let workload_info = Some(WorkloadInfo { name: "n".into(), ..WorkloadInfo::default() });
            let add = AddWorkload { uid: "u".into(), workload_info, karst_descriptors, ..AddWorkload::default() };
            let bytes = WorkloadRequest { payload: Some(Payload::Add(add)) }.encode_to_vec();
            request(&bytes, (0..fds).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect())
        };
        let by = |r| match r {
            Ok(Request::Add(pod, listeners)) => Some((pod.redirection, listeners.is_some())),
            Ok(_) | Err(_) => None,
        };
        assert_eq!(by(sent(&[1, 2, 3, 4])), Some((Redirection::Lookup, true)));
        // Istio's.
        assert_eq!(by(sent(&[])), Some((Redirection::Nat, false)));
        assert!(matches!(sent(&[1, 2, 3]), Err(RequestError::NoListeners)), "one is missing");
        assert!(matches!(sent(&[5]), Err(RequestError::NoListeners)), "with the exemption alone");
    }
}
