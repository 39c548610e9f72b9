//! Client and server, joined in memory: what is asked for by name is told, followed, and given up.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test's failure is a panic")]

use futures_util::StreamExt;
use karst_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use karst_xds::{
    Entry, Hub, NODE_GROUP, ON_DEMAND, PARTS, Resources, Scopes, Set,
    client::{Held, StreamEnd, Update, Wanted, XdsSubscriber, begin, exchange},
    server::{Peer, Types, channel, serve},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

const TYPE: &str = "address";
/// Removals of the first type come after everything else, in a response of their own: it is none that is asked for by name.
const ORDER: &[&str] = &["policy", TYPE];
const TYPES: Types = Types { order: ORDER, private: &[], variants: &[], scoped: &[] };
const LONG: Duration = Duration::from_secs(10);

/// What a subscriber has: the bytes of resources by name.
type State = BTreeMap<String, Vec<u8>>;

struct Subscriber {
    state: watch::Sender<State>,
    names: Vec<String>,
    asks: mpsc::Receiver<Wanted>,
    answers: mpsc::UnboundedSender<(String, bool, State)>,
    received: mpsc::UnboundedSender<usize>,
}

impl XdsSubscriber for Subscriber {
    type Error = String;
    fn apply(&mut self, update: Update) -> Vec<(String, String)> {
        let _ = self.received.send(update.changed.len());
        self.state.send_modify(|state| {
            update.removed.iter().for_each(|name| drop(state.remove(name)));
            state.extend(update.changed.into_iter().map(|(name, _, bytes)| (name, bytes)));
        });
        vec![]
    }
    fn token(&self) -> Result<String, String> {
        Ok(String::new())
    }
    async fn connect(&self) -> Result<Channel, String> {
        Err("it is joined in memory".into())
    }
    fn headers(&self) -> Vec<(String, String)> {
        vec![]
    }
    fn ended(&self, _: StreamEnd) {}
    fn names(&self, type_url: &str) -> Option<Vec<String>> {
        (type_url == TYPE).then(|| self.names.clone())
    }
    async fn wanted(&mut self) -> Wanted {
        match self.asks.recv().await {
            Some(wanted) => {
                self.names.extend(wanted.names.iter().cloned());
                self.names.retain(|name| !wanted.no_more.contains(name));
                wanted
            }
            None => std::future::pending().await,
        }
    }
    fn answered(&mut self, names: &[(String, bool)]) {
        for (name, found) in names {
            let _ = self.answers.send((name.clone(), *found, self.state.borrow().clone()));
        }
    }
}

/// A subscriber, whatever its stream.
struct Client {
    hub: Arc<Hub>,
    own: Arc<Mutex<(Subscriber, Held)>>,
    state: watch::Receiver<State>,
    asks: mpsc::Sender<Wanted>,
    answers: mpsc::UnboundedReceiver<(String, bool, State)>,
    received: mpsc::UnboundedReceiver<usize>,
    stream: Option<JoinHandle<()>>,
}

impl Client {
    async fn new(hub: &Arc<Hub>) -> Self {
        let (state_tx, state) = watch::channel(State::new());
        let ((asks, rx), (tx, answers)) = (mpsc::channel(8), mpsc::unbounded_channel());
        let (received_tx, received) = mpsc::unbounded_channel();
        let own = Subscriber { state: state_tx, names: vec![], asks: rx, answers: tx, received: received_tx };
        let own = Arc::new(Mutex::new((own, Held::new())));
        let mut client = Self { hub: hub.clone(), own, state, asks, answers, received, stream: None };
        client.connect();
        timeout(LONG, client.received.recv()).await.unwrap().unwrap();
        client
    }

    fn connect(&mut self) {
        let (hub, own) = (self.hub.clone(), self.own.clone());
        self.stream = Some(tokio::spawn(async move {
            let (own, held) = &mut *own.lock().await;
            let client_features = vec![PARTS.to_string(), ON_DEMAND.to_string()];
            let node = Node { client_features, ..Node::default() };
            let (first, mut asked) = begin(own, &node, ORDER, held);
            let (requests, from_client) = mpsc::channel(16);
            for request in first {
                requests.send(request).await.unwrap();
            }
            let (out, responses) = channel();
            let near = Arc::from([format!("{NODE_GROUP}n")]);
            let peer = Peer { name: "z".into(), own: "z".into(), near };
            let from_client = ReceiverStream::new(from_client).map(Ok);
            let server = serve(peer, from_client, hub.join(), TYPES, out, |_, _| ());
            let client = exchange(own, ORDER, held, &mut asked, (requests, ReceiverStream::new(responses)));
            let ((), _) = tokio::join!(server, client);
        }));
    }

    /// The stream breaks.
    async fn disconnect(&mut self) {
        let stream = self.stream.take().unwrap();
        stream.abort();
        let _ = stream.await;
    }

    /// What has come of resources since this was asked last.
    fn resources(&mut self) -> usize {
        let mut count = 0;
        while let Ok(resources) = self.received.try_recv() {
            count += resources;
        }
        count
    }

    /// Asks for a name: whether there is anything of it, and what was known when the answer was.
    async fn ask(&mut self, name: &str) -> (bool, BTreeSet<String>) {
        let wanted = Wanted { type_url: TYPE, names: vec![name.into()], no_more: vec![] };
        self.asks.send(wanted).await.unwrap();
        let (answered, found, state) = timeout(LONG, self.answers.recv()).await.unwrap().unwrap();
        assert_eq!(answered, name);
        (found, state.into_keys().collect())
    }

    async fn leave(&mut self, names: &[&str]) {
        let no_more = names.iter().map(ToString::to_string).collect();
        self.asks.send(Wanted { type_url: TYPE, names: vec![], no_more }).await.unwrap();
    }

    /// Waits until these resources are known, and no others.
    async fn knows(&mut self, names: &[&str]) {
        let want: BTreeSet<&str> = names.iter().copied().collect();
        let is = |state: &State| state.keys().map(String::as_str).collect::<BTreeSet<_>>() == want;
        let seen = timeout(LONG, self.state.wait_for(is)).await.is_ok();
        assert!(seen, "{:?}, not {want:?}", self.state.borrow().keys());
    }
}

/// A pod with an address, of services, on a node.
fn pod(name: &str, bytes: &str, services: &[&str], node: &str) -> (String, Entry) {
    let groups = services.iter().map(ToString::to_string).chain([format!("{NODE_GROUP}{node}")]).collect();
    (name.into(), Entry::new(bytes.as_bytes().to_vec(), vec![format!("ip-{name}")]).in_groups(groups))
}

fn service(name: &str) -> (String, Entry) {
    (name.into(), Entry::new(name.as_bytes().to_vec(), vec![format!("vip-{name}")]))
}

fn publish(hub: &Hub, all: Vec<(String, Entry)>) {
    let newest = hub.newest();
    let types = HashMap::from([(TYPE, all.into_iter().collect::<Set>())]);
    hub.publish(Arc::new(newest.next(types, newest.version + 1, Scopes::new())));
}

fn hub(all: Vec<(String, Entry)>) -> Arc<Hub> {
    let hub = Arc::<Hub>::default();
    hub.publish(Arc::new(Resources::new(HashMap::new(), 1)));
    publish(&hub, all);
    hub
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_is_told_and_followed_until_it_is_left() {
    let all = |a: &str, more: Vec<(String, Entry)>| {
        let mut all =
            vec![service("s"), pod("a", a, &["s"], "m"), pod("far", "1", &["t"], "m"), pod("near", "1", &[], "n")];
        all.extend(more);
        all
    };
    let hub = hub(all("1", vec![pod("b", "1", &["s"], "m")]));
    let mut client = Client::new(&hub).await;
    client.knows(&["near"]).await;
    assert_eq!(client.ask("vip-s").await, (true, set(&["a", "b", "near", "s"])));
    assert_eq!(client.ask("ip-nobody").await, (false, set(&["a", "b", "near", "s"])));
    client.resources();
    // An endpoint changes, one comes, one goes; a pod comes to the node; what is asked for comes to be.
    publish(&hub, all("2", vec![pod("c", "1", &["s"], "m"), pod("new", "1", &[], "n"), pod("nobody", "1", &[], "m")]));
    client.knows(&["a", "c", "near", "new", "nobody", "s"]).await;
    assert_eq!(client.state.borrow()["a"], b"2");
    assert_eq!(client.resources(), 4, "and nothing else was sent");
    // What it has not asked for is not told.
    publish(&hub, all("2", vec![pod("c", "1", &["s"], "m"), pod("new", "1", &[], "n"), pod("other", "1", &[], "m")]));
    client.knows(&["a", "c", "near", "new", "s"]).await;
    assert_eq!(client.resources(), 0);
    client.leave(&["vip-s"]).await;
    client.knows(&["near", "new"]).await;
    assert_eq!(client.ask("s").await, (true, set(&["a", "c", "near", "new", "s"])));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_comes_back_is_told_what_has_changed_meanwhile() {
    let all = |a: &str, others: &[&str]| {
        let mut all =
            vec![service("s"), pod("a", a, &["s"], "m"), pod("same", "1", &["s"], "m"), pod("near", "1", &[], "n")];
        all.extend(others.iter().map(|name| pod(name, "1", &["s"], "m")));
        all
    };
    let hub = hub(all("1", &["goes"]));
    let mut client = Client::new(&hub).await;
    client.ask("s").await;
    client.ask("ip-nobody").await;
    client.disconnect().await;
    assert!(hub.taken_in().1.is_empty(), "nothing is left of the stream");
    publish(&hub, all("2", &["comes"]));
    assert_eq!(client.state.borrow()["a"], b"1", "what is known is known still");
    client.resources();
    client.connect();
    client.knows(&["a", "comes", "near", "s", "same"]).await;
    // `s` and `nobody` are answered once more; `same` and `near` are not sent.
    let (again, _, _) = timeout(LONG, client.answers.recv()).await.unwrap().unwrap();
    let (other, _, _) = timeout(LONG, client.answers.recv()).await.unwrap().unwrap();
    assert_eq!(BTreeSet::from([again, other]), set(&["ip-nobody", "s"]));
    assert_eq!(client.state.borrow()["a"], b"2");
    assert_eq!(client.resources(), 3);
    publish(&hub, all("3", &["comes"]));
    client.state.wait_for(|state| state["a"] == b"3").await.unwrap();
}

/// What is told as removed because it was left is no answer to who asks for it again.
#[tokio::test(start_paused = true)]
async fn what_is_left_and_asked_for_at_once_is_told() {
    let hub = hub(vec![service("s"), pod("a", "1", &["s"], "m"), pod("near", "1", &[], "n")]);
    let mut client = Client::new(&hub).await;
    for (left, asked) in [("s", "s"), ("vip-s", "s"), ("vip-s", "ip-a")] {
        client.ask(left).await;
        client.leave(&[left]).await;
        let (found, known) = client.ask(asked).await;
        assert!(found && known.contains("a"), "{left} {asked}: {known:?}");
        client.leave(&[asked]).await;
        client.knows(&["near"]).await;
    }
}

/// An entry that somebody has written by an address changes when the address is asked for, and a member of the mesh has it, too: who
/// took the one for the answer would send plaintext to the other.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_under_way_is_no_answer() {
    let (state, _state) = watch::channel(State::new());
    let ((asks, rx), (tx, mut answers)) = (mpsc::channel(8), mpsc::unbounded_channel());
    let (received, _received) = mpsc::unbounded_channel();
    let mut own = Subscriber { state, names: vec![], asks: rx, answers: tx, received };
    let mut held = Held::new();
    let (_, mut asked) = begin(&own, &Node::default(), ORDER, &held);
    let (requests, mut from_client) = mpsc::channel::<DeltaDiscoveryRequest>(16);
    let (to_client, responses) = mpsc::channel(16);
    let tell = |names: &[&str], removed: Vec<String>| {
        let one = |name: &&str| Resource {
            name: (*name).into(),
            aliases: vec!["ip".into()],
            resource: Some(prost_types::Any { type_url: TYPE.into(), value: vec![] }),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            type_url: TYPE.into(),
            resources: names.iter().map(one).collect(),
            removed_resources: removed,
            ..DeltaDiscoveryResponse::default()
        }
    };
    let server = async {
        asks.send(Wanted { type_url: TYPE, names: vec!["ip".into()], no_more: vec![] }).await.unwrap();
        let mut nobody = from_client.recv().await.unwrap().resource_names_subscribe;
        nobody.retain(|name| name != "ip");
        to_client.send(Ok(tell(&["entry"], vec![]))).await.unwrap();
        from_client.recv().await.unwrap();
        assert!(answers.try_recv().is_err());
        to_client.send(Ok(tell(&["entry", "member"], nobody))).await.unwrap();
        let (name, found, known) = timeout(LONG, answers.recv()).await.unwrap().unwrap();
        assert_eq!((name.as_str(), found, known.len()), ("ip", true, 2));
    };
    tokio::select! {
        _ = exchange(&mut own, ORDER, &mut held, &mut asked, (requests, ReceiverStream::new(responses))) => panic!("it has ended"),
        () = server => {}
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_parts_counts_when_it_is_whole() {
    let names: Vec<String> = (0..1200).map(|n| format!("{n:04}")).collect();
    let pods = names.iter().map(|name| pod(name, "1", &["z"], "m"));
    let hub = hub(pods.chain([service("z")]).collect());
    let mut client = Client::new(&hub).await;
    let (found, known) = client.ask("vip-z").await;
    assert_eq!((found, known.len()), (true, 1201));
}
