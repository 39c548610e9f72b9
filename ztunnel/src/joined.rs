//! Tests: a worker that asks for what is called, joined in memory to a control plane that answers by the product's own code.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{
    control::TYPES,
    outbound::tests::{app, ping, worker_of},
    state::{Pages, Snapshot},
    worker::Worker,
};
use futures_util::StreamExt;
use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, POD_RANGES_TYPE,
    ads::Node,
    route::PodRanges,
    workload::{self as pb, address::Type},
};
use karst_core::addr::ip_from_bytes;
use karst_proxy::{
    demand::Book,
    testing::{control_plane, pod, service},
    untold::Asker,
    xds::StateWriter,
};
use karst_rt::{drain::Drain, ready::Ready};
use karst_xds::{
    Entry, Hub, NODE_GROUP, ON_DEMAND, Resources, Scopes, Set, UNNAMED_GROUP,
    client::{Held, StreamEnd, XdsSubscriber, begin, exchange},
    server::{Peer, Types, channel, serve},
};
use prost::Message;
use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

const KEY: &str = "ns/s.ns.svc.cluster.local";
const VIP: &str = "127.0.0.9";
const NODE: &str = "n";
const SERVED: Types =
    Types { order: &[AUTHORIZATION_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE], private: &[], variants: &[], scoped: &[] };

/// Addresses as the controller tells them.
fn set(workloads: Vec<pb::Workload>, services: Vec<pb::Service>) -> Set {
    let encode = |one: Type| pb::Address { r#type: Some(one) }.encode_to_vec();
    let workload = |one: pb::Workload| {
        let aliases = one.addresses.iter().filter_map(|a| Some(format!("/{}", ip_from_bytes(a)?))).collect();
        let groups = one.services.keys().cloned().chain([format!("{NODE_GROUP}{}", one.node)]).collect();
        (one.uid.clone(), Entry::new(encode(Type::Workload(one)), aliases).in_groups(groups))
    };
    let service = |one: pb::Service| {
        let aliases = one.addresses.iter().filter_map(|a| Some(format!("/{}", ip_from_bytes(&a.address)?))).collect();
        let (key, groups) = (format!("{}/{}", one.namespace, one.hostname), vec![format!("~host/{}", one.hostname)]);
        (key, Entry::new(encode(Type::Service(one)), aliases).in_groups(groups))
    };
    workloads.into_iter().map(workload).chain(services.into_iter().map(service)).collect()
}

fn client() -> pb::Workload {
    pb::Workload { node: NODE.into(), ..pod("client", "10.0.0.9", &[]) }
}

/// One that takes no tunnels.
fn plain(name: &str, ip: &str, port: u16, target: u32) -> pb::Workload {
    pb::Workload { tunnel_protocol: 0, ..pod(name, ip, &[(KEY, &[(port.into(), target)])]) }
}

/// The worker's side of the stream, whichever it is.
type Writer = Rc<RefCell<Option<(StateWriter<Snapshot>, Held)>>>;

struct Joined {
    hub: Arc<Hub>,
    worker: Rc<Worker>,
    state: watch::Receiver<Arc<Snapshot>>,
    writer: Writer,
    closes: Rc<Notify>,
    stream: Option<JoinHandle<()>>,
    _open: Drain,
}

impl Joined {
    /// A worker that has been told what it is told unasked.
    async fn new(addresses: Set, ranges: &[&str]) -> Self {
        let hub = Arc::<Hub>::default();
        let list = ranges.iter().map(ToString::to_string).collect();
        let ranges = Entry::new(PodRanges { ranges: list }.encode_to_vec(), vec![]);
        let ranges = Set::from_iter([("node".to_string(), ranges)]);
        let types = [(ADDRESS_TYPE, addresses), (POD_RANGES_TYPE, ranges), (AUTHORIZATION_TYPE, Set::new())];
        hub.publish(Arc::new(Resources::new(types.into(), 1)));
        let (questions, asker) = Asker::new("");
        let pages = Pages::default();
        let (state_tx, state) = watch::channel(Arc::new(Snapshot::new("").on_demand(pages.clone())));
        let (configured, mut told) = watch::channel(false);
        let (stream_tx, stream) = watch::channel(false);
        let remote = control_plane();
        let needed = (&Ready::default(), crate::control::needed(true));
        let asker = asker.on_demand(Book::new(pages, Arc::default()));
        let writer = StateWriter::new(remote, state_tx, needed, (configured, stream_tx), Arc::default(), asker);
        let writer = Rc::new(RefCell::new(Some((writer, Held::new()))));
        let (worker, open) = worker_of((state.clone(), stream, questions), &["--on-demand", "true"]);
        let mut joined = Self { hub, worker, state, writer, closes: Rc::default(), stream: None, _open: open };
        joined.connect();
        timeout(Duration::from_secs(10), told.wait_for(|told| *told)).await.unwrap().unwrap();
        joined
    }

    fn connect(&mut self) {
        let (hub, writer, closes) = (self.hub.clone(), self.writer.clone(), self.closes.clone());
        self.stream = Some(spawn_local(async move {
            let (mut own, mut held) = writer.borrow_mut().take().unwrap();
            let node = Node { client_features: vec![ON_DEMAND.into()], ..Node::default() };
            let (first, mut asked) = begin(&own, &node, TYPES, &held);
            let (requests, from_client) = mpsc::channel(16);
            for request in first {
                requests.send(request).await.unwrap();
            }
            let (out, responses) = channel();
            let near = Arc::from([format!("{NODE_GROUP}{NODE}"), UNNAMED_GROUP.to_string()]);
            let peer = Peer { name: "z".into(), own: "z".into(), near };
            let from_client = ReceiverStream::new(from_client).map(Ok);
            own.connected();
            tokio::select! {
                () = serve(peer, from_client, hub.join(), SERVED, out, |_, _| ()) => {}
                _ = exchange(&mut own, TYPES, &mut held, &mut asked, (requests, ReceiverStream::new(responses))) => {}
                () = closes.notified() => {}
            }
            own.ended(StreamEnd::Complete);
            *writer.borrow_mut() = Some((own, held));
        }));
    }

    /// The control plane goes away.
    async fn disconnect(&mut self) {
        self.closes.notify_one();
        self.stream.take().unwrap().await.unwrap();
    }

    fn publish(&self, addresses: Set) {
        let newest = self.hub.newest();
        let mut types = newest.types.clone();
        types.insert(ADDRESS_TYPE, addresses);
        self.hub.publish(Arc::new(newest.next(types, newest.version + 1, Scopes::new())));
    }

    fn known(&self) -> usize {
        let state = self.state.borrow();
        state.workloads.len() + state.services.len()
    }
}

#[tokio::test]
async fn what_is_called_is_asked_for_and_then_served() {
    let run = async {
        let (app, port) = app("127.0.0.5", true).await;
        let listener = TcpListener::bind((VIP, 0)).await.unwrap();
        let at = listener.local_addr().unwrap().port();
        let others = (0..50).map(|n| pod(&format!("other-{n}"), &format!("10.1.0.{n}"), &[("ns/o", &[(80, 80)])]));
        let workloads = [client(), plain("a", "127.0.0.5", at, port)].into_iter().chain(others).collect();
        let services = vec![service("s", VIP, &[(at.into(), 1)]), service("o", "10.96.0.1", &[(80, 80)])];
        let joined = Joined::new(set(workloads, services), &[]).await;
        assert_eq!(joined.known(), 1, "the node's own pod");
        for n in 1..=3 {
            assert_eq!(ping(&joined.worker, &listener).await.unwrap(), b"pong");
            assert_eq!((app.connections.get(), joined.known()), (n, 3), "and the service, and its endpoint");
        }
    };
    LocalSet::new().run_until(run).await;
}

/// The controller knows the address as a member's: without its word the connection would go there as it is.
#[tokio::test(start_paused = true)]
async fn without_an_answer_nothing_leaves() {
    let run = async {
        let listener = TcpListener::bind((VIP, 0)).await.unwrap();
        let mut joined = Joined::new(set(vec![client(), pod("member", VIP, &[])], vec![]), &[]).await;
        joined.disconnect().await;
        let began = Instant::now();
        assert!(ping(&joined.worker, &listener).await.is_err());
        assert!(began.elapsed() >= karst_core::limits::HOLD_TIMEOUT, "it was held");
        let second = timeout(Duration::from_secs(1), listener.accept()).await;
        assert!(second.is_err(), "nothing came there as it is");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn what_is_known_stays_known_while_the_control_plane_is_away() {
    let run = async {
        let ((one, port), (other, besides)) = (app("127.0.0.5", true).await, app("127.0.0.6", true).await);
        let listener = TcpListener::bind((VIP, 0)).await.unwrap();
        let at = listener.local_addr().unwrap().port();
        let world = |endpoint| set(vec![client(), endpoint], vec![service("s", VIP, &[(at.into(), 1)])]);
        let mut joined = Joined::new(world(plain("a", "127.0.0.5", at, port)), &[]).await;
        assert_eq!(ping(&joined.worker, &listener).await.unwrap(), b"pong");
        joined.disconnect().await;
        assert_eq!(ping(&joined.worker, &listener).await.unwrap(), b"pong");
        // It comes back, and tells what has changed: the endpoint is another one, which was never asked for.
        joined.publish(world(plain("b", "127.0.0.6", at, besides)));
        joined.connect();
        let mut state = joined.state.clone();
        let is_told =
            |state: &Arc<Snapshot>| state.workloads.contains_key("Kubernetes//Pod/ns/b") && state.workloads.len() == 2;
        timeout(Duration::from_secs(10), state.wait_for(is_told)).await.unwrap().unwrap();
        assert_eq!(ping(&joined.worker, &listener).await.unwrap(), b"pong");
        assert_eq!((one.connections.get(), other.connections.get()), (2, 1));
    };
    LocalSet::new().run_until(run).await;
}
