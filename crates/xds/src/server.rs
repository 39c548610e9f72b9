//! The server's side of one delta stream.
//!
//! Order within a push: new policies first, then what names them, removals of policies last, so that no subscriber ever
//! sees a workload whose policy it was not sent, nor a service that it serves without the service's policies. What was there, and
//! has come to a group that a subscriber is limited to, comes after the policies: the rules of a service that it serves from now on.

use crate::{
    MORE, ON_DEMAND, PARTS,
    hub::{Names, Stream},
    interest::{Changed, Interest, Touched},
    snapshot::{Resources, Set},
};
use karst_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use karst_rt::clock::Instant;
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// Responses that may wait for a slow subscriber; then it is skipped until it has read them. Those after them are not made before.
const QUEUE: usize = 2;
/// Resources in one response, so that no message grows without bound.
const WHOLE: usize = 5_000;
/// The same for subscribers that know parts: what is encoded for a stream stays allocated as long as the stream.
const PART: usize = 100;
/// For those of them that ask for addresses by name: they are many, and hold few.
const SMALL_PART: usize = 64;
/// Names of a type that a stream may follow: twice what our ztunnel does. Each is kept for as long as the stream, and any pod with a
/// token may have one.
const MAX_NAMES: usize = 32_768;
/// Bytes of a name. (The longest that means something is a workload's.)
const MAX_NAME: usize = 1_024;
/// Pushes that may wait to be acknowledged; then the next takes the place of the last.
const MAX_PENDING: usize = 1_024;

/// Who subscribes.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The authenticated name, for the log.
    pub name: String,
    /// The resource of each private type that it is told of.
    pub own: String,
    /// The groups that it is in where it asks for resources by name.
    pub near: Arc<[String]>,
}

/// The types that are served.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    /// In the order in which their additions are sent.
    pub order: &'static [&'static str],
    /// Those of which a subscriber is told its own resource only, whatever it asks for.
    pub private: &'static [&'static str],
    /// Those of which some subscribers are told something else.
    pub variants: &'static [Variant],
    /// Those of which a subscriber that has groups ([`Resources::scopes`]) is told what is in these only, if it asks for
    /// everything. What it was told of it is told on, until that is gone; and that it is told last.
    pub scoped: &'static [&'static str],
}

/// Subscribers with a feature are told of another set of resources in place of a type's.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Of `Node.client_features`.
    pub feature: &'static str,
    /// The type that is asked for.
    pub type_url: &'static str,
    /// Key of the other set in [`Resources::types`].
    pub set: &'static str,
}

/// Something a subscriber said that the operator should see.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It has said what it is; the first event of a stream, if it says so at all.
    Node(Node),
    /// A response with resources of a type is on its way to it.
    Sent {
        /// Type of the resources.
        type_url: String,
        /// Number of the response.
        nonce: String,
        /// Size of the resources in it, in bytes.
        bytes: usize,
    },
    /// All that it is to be told of a snapshot is in its queue.
    Pushed {
        /// Since it was begun to find out what that is.
        took: Duration,
    },
    /// It has taken in a response.
    Accepted {
        /// Type of the resources.
        type_url: String,
        /// Number of the response.
        nonce: String,
    },
    /// It has taken in everything up to this snapshot.
    Acked {
        /// The snapshot's number.
        version: u64,
        /// It was told something: the snapshot had news for it.
        told: bool,
    },
    /// It refused a response.
    Nack {
        /// Type of the resources.
        type_url: String,
        /// Its words.
        error: String,
    },
    /// The stream ends because it cannot be served: a request that makes no sense, or cannot be read.
    Failed {
        /// What is wrong.
        error: String,
    },
}

/// Serves one stream until it ends.
pub async fn serve<S>(
    peer: Peer,
    mut requests: S,
    stream: Stream,
    types: Types,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    on_event: impl Fn(&Peer, Event),
) where
    S: futures_util::Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Unpin,
{
    use futures_util::StreamExt;
    let mut interests = Interests::new();
    let mut followed = HashMap::new();
    let mut nonce = 0u64;
    let mut size = WHOLE;
    let mut introduced = false;
    // Pushes that are not acknowledged yet: last nonce and number of the snapshot.
    let mut pending: VecDeque<(u64, u64)> = VecDeque::new();
    let mut under_way: Option<UnderWay> = None;
    let mut dirty = false;
    let acked = |version: u64, told: bool| {
        stream.has_taken_in(version);
        on_event(&peer, Event::Acked { version, told });
    };
    loop {
        // Who reads nothing of what it is told is not heard without end meanwhile.
        let is_heard = under_way.is_none() || left(&interests) <= MAX_NAMES;
        tokio::select! {
            r = requests.next(), if is_heard => match r {
                Some(Ok(r)) => {
                    if let Some(node) = r.node.as_ref().filter(|_| !introduced) {
                        introduced = true;
                        on_event(&peer, Event::Node(node.clone()));
                    }
                    let answered: u64 = r.response_nonce.parse().unwrap_or(0);
                    while let Some((_, version)) = pending.front().copied().filter(|(last, _)| *last <= answered) {
                        pending.pop_front();
                        acked(version, true);
                    }
                    let has = |feature: &str| r.node.as_ref().is_some_and(|n| n.client_features.iter().any(|f| f == feature));
                    if has(PARTS) {
                        size = if has(ON_DEMAND) { SMALL_PART } else { PART };
                    }
                    match request(&mut interests, types, r, &peer, &on_event) {
                        Ok(has_news) => dirty |= has_news,
                        Err(s) => {
                            on_event(&peer, Event::Failed { error: s.message().into() });
                            let _ = out.send(Err(s)).await;
                            return;
                        }
                    }
                }
                Some(Err(status)) => {
                    if is_fault(status.code()) {
                        on_event(&peer, Event::Failed { error: status.message().into() });
                    }
                    return;
                }
                None => return,
            },
            () = stream.concerned(), if under_way.is_none() => dirty = true,
            slot = out.reserve(), if under_way.is_some() => {
                let Ok(slot) = slot else { return };
                if let Some(UnderWay { plan, version, begun }) = &mut under_way
                    && let Some(message) = plan.next(&mut nonce)
                {
                    let (type_url, number) = (message.type_url.clone(), message.nonce.clone());
                    let bytes = message.resources.iter().filter_map(|r| Some(r.resource.as_ref()?.value.len())).sum();
                    on_event(&peer, Event::Sent { type_url, nonce: number, bytes });
                    let is_last = plan.is_done();
                    if is_last {
                        wait(&mut pending, (nonce, *version));
                    }
                    slot.send(Ok(message));
                    if is_last {
                        on_event(&peer, Event::Pushed { took: begun.elapsed() });
                        under_way = None;
                    }
                }
            }
        }
        // What comes meanwhile is looked at when this is in the queue: in order, and all that is new at once.
        if under_way.is_some() || !std::mem::take(&mut dirty) {
            continue;
        }
        // Before it looks: what changes from now on, it is woken for.
        follow(&stream, &interests, types, &mut followed);
        let (now, touched) = stream.take();
        let begun = Instant::now();
        let plan = push(&mut interests, types, (&now, touched), &peer, size);
        if !plan.is_done() {
            under_way = Some(UnderWay { plan, version: now.version, begun });
        } else if pending.is_empty() {
            acked(now.version, false);
        } else {
            wait(&mut pending, (nonce, now.version));
        }
    }
}

/// A push of which not all is in the queue yet.
struct UnderWay {
    plan: Plan,
    /// Number of the snapshot.
    version: u64,
    begun: Instant,
}

/// Notes a push that is not acknowledged. Who reads and never acknowledges costs no more than that: what is acknowledged later is
/// acknowledged with all before it.
fn wait(pending: &mut VecDeque<(u64, u64)>, push: (u64, u64)) {
    if pending.len() >= MAX_PENDING {
        pending.pop_back();
    }
    pending.push_back(push);
}

type Interests = HashMap<&'static str, Interest>;

/// How many names a subscriber has left that no push has looked at yet. (Those that it has asked for are within [`MAX_NAMES`].)
fn left(interests: &Interests) -> usize {
    interests.values().map(|interest| interest.left.len()).sum()
}

/// How a stream follows a type: the set that it is told of, and whether it follows all of it.
type Followed = (&'static str, Option<Names>);

/// Lets the stream be woken for what its subscriber wants now.
fn follow(stream: &Stream, interests: &Interests, types: Types, followed: &mut HashMap<&'static str, Followed>) {
    for (&type_url, interest) in interests {
        let all = interest.is_for_everything().then(|| match types.scoped.contains(&type_url) {
            true => Names::Told,
            false => Names::NotTold,
        });
        let now = (interest.set.unwrap_or(type_url), all);
        let before = followed.insert(type_url, now);
        if before != Some(now) {
            if let Some((set, _)) = before {
                stream.leave_all(set);
            }
            match all {
                Some(names) => stream.follow_all(now.0, names),
                None => {
                    stream.follow(now.0, interest.groups.iter().map(|group| group.as_str().into()));
                    stream.follow(now.0, interest.names.iter().cloned());
                }
            }
        } else if all.is_none() && !(interest.asked.is_empty() && interest.left.is_empty()) {
            stream.leave(now.0, &interest.left);
            stream.follow(now.0, interest.asked.iter().cloned());
        }
    }
}

/// Does a stream that ends so end by something that should not be? That a peer leaves, or its connection breaks, should.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::Internal | Code::OutOfRange | Code::ResourceExhausted | Code::Unimplemented
    )
}

/// What goes out on a stream.
pub type Outgoing = Result<DeltaDiscoveryResponse, Status>;

/// A channel for responses.
pub fn channel() -> (mpsc::Sender<Outgoing>, mpsc::Receiver<Outgoing>) {
    mpsc::channel(QUEUE)
}

fn request(
    interests: &mut Interests,
    Types { order, private, variants, .. }: Types,
    request: DeltaDiscoveryRequest,
    peer: &Peer,
    on_event: &impl Fn(&Peer, Event),
) -> Result<bool, Status> {
    let Some(type_url) = order.iter().find(|type_url| **type_url == request.type_url) else {
        return Err(Status::invalid_argument(format!(
            "type {:?} is not served here; known are {order:?}",
            request.type_url
        )));
    };
    let asked = &request.resource_names_subscribe;
    if asked.len() > MAX_NAMES || asked.iter().any(|name| name.len() > MAX_NAME) {
        return Err(too_many(type_url));
    }
    if let Some(e) = request.error_detail {
        on_event(peer, Event::Nack { type_url: request.type_url, error: e.message });
        return Ok(false);
    }
    if !request.response_nonce.is_empty() {
        let (type_url, nonce) = (request.type_url.clone(), request.response_nonce.clone());
        on_event(peer, Event::Accepted { type_url, nonce });
    }
    let has = |f: &str| request.node.iter().flat_map(|node| &node.client_features).any(|x| x == f);
    let first = !interests.contains_key(type_url);
    let held = if first { request.initial_resource_versions } else { HashMap::new() };
    // Without our feature, what a subscriber by name holds is what it asks for (istiod's reading).
    let named: Vec<String> = if has(ON_DEMAND) { vec![] } else { held.keys().cloned().collect() };
    let interest = interests.entry(type_url).or_insert_with(|| Interest::new(held));
    let set = variants.iter().find(|v| v.type_url == *type_url && has(v.feature)).map(|v| v.set);
    // Who has said it once need not say it again: the node may be left out of later requests.
    let other = set.is_some() && interest.set != set;
    interest.set = set.or(interest.set);
    if other {
        interest.look_again();
    }
    if private.contains(type_url) {
        interest.names = BTreeSet::from([peer.own.as_str().into()]);
        return Ok(first);
    }
    if first {
        // Without names at first: everything (the delta protocol's wildcard).
        interest.set_everything(request.resource_names_subscribe.is_empty());
        interest.groups = peer.near.clone();
    }
    let before = interest.is_for_everything();
    for name in &request.resource_names_subscribe {
        if name == "*" {
            interest.set_everything(true);
        } else {
            interest.ask(name);
        }
    }
    for name in &request.resource_names_unsubscribe {
        if name == "*" {
            interest.set_everything(false);
        } else {
            interest.leave(name);
        }
    }
    if interest.names.len() > MAX_NAMES {
        return Err(too_many(type_url));
    }
    let everything = interest.is_for_everything();
    if first && !everything {
        interest.names.extend(named.into_iter().map(Arc::from));
    }
    let named = !interest.asked.is_empty() || !interest.left.is_empty();
    Ok(first || other || named || before != everything)
}

fn too_many(type_url: &str) -> Status {
    Status::resource_exhausted(format!(
        "a subscriber may ask for {MAX_NAMES} resources of type {type_url:?} by name, and by names of {MAX_NAME} bytes"
    ))
}

/// What is to be sent of a push, in its order. A response is made when there is room for it: what a mesh is, is not encoded at once, nor
/// for all who come at once.
struct Plan {
    steps: VecDeque<Step>,
    /// Resources in a response.
    size: usize,
}

/// Of one type; without anything in it, the answer that there is nothing.
struct Step {
    type_url: &'static str,
    changed: Changed,
    removed: Vec<String>,
}

impl Plan {
    fn is_done(&self) -> bool {
        self.steps.is_empty()
    }

    /// The next response. All but the last of a step say that more comes; removals are in the last.
    fn next(&mut self, nonce: &mut u64) -> Option<DeltaDiscoveryResponse> {
        let step = self.steps.front_mut()?;
        let changed = step.changed.take(self.size);
        if !step.changed.is_empty() {
            let part = response(step.type_url, changed, vec![], nonce);
            return Some(DeltaDiscoveryResponse { system_version_info: MORE.into(), ..part });
        }
        let step = self.steps.pop_front()?;
        Some(response(step.type_url, changed, step.removed, nonce))
    }
}

fn push(
    interests: &mut Interests,
    Types { order, scoped, .. }: Types,
    (now, mut touched): (&Resources, HashMap<&'static str, Touched>),
    peer: &Peer,
    size: usize,
) -> Plan {
    let empty = Set::new();
    let mut all = Vec::new();
    let mut moved = Vec::new();
    for type_url in order {
        let Some(interest) = interests.get_mut(type_url) else { continue };
        let name = interest.set.unwrap_or(type_url);
        let set = now.types.get(name).unwrap_or(&empty);
        if scoped.contains(type_url) {
            interest.limit(now.scopes.get(&peer.own));
        }
        let touched = touched.remove(name).unwrap_or_default();
        let difference = interest.advance(set, &now.index(name), touched);
        moved.push((*type_url, difference.moved));
        let first = !std::mem::replace(&mut interest.answered, true);
        all.push((*type_url, difference.changed, difference.removed, first));
    }
    moved.retain(|(_, moved)| !moved.is_empty());
    let mut steps = VecDeque::new();
    let mut late = Vec::new();
    for (type_url, changed, removed, first) in all {
        let is_early = type_url == order[0] || scoped.contains(&type_url);
        if type_url != order[0] || scoped.contains(&type_url) {
            let moved = std::mem::take(&mut moved).into_iter();
            steps.extend(moved.map(|(type_url, moved)| Step { type_url, changed: moved.into(), removed: vec![] }));
        }
        let has_changes = !changed.is_empty();
        if is_early && !removed.is_empty() {
            late.push(Step { type_url, changed: vec![].into(), removed });
            if has_changes {
                steps.push_back(Step { type_url, changed, removed: vec![] });
            }
        } else if has_changes || !removed.is_empty() || first {
            steps.push_back(Step { type_url, changed, removed });
        }
    }
    // Nonces are in the order of sending: an acknowledgement is for all before it.
    steps.extend(late);
    Plan { steps, size }
}

fn response(
    type_url: &str,
    changed: Vec<(String, crate::Entry)>,
    removed: Vec<String>,
    nonce: &mut u64,
) -> DeltaDiscoveryResponse {
    *nonce += 1;
    let resources = changed
        .into_iter()
        .map(|(name, entry)| Resource {
            version: entry.version.to_string(),
            resource: Some(prost_types::Any { type_url: type_url.to_string(), value: entry.bytes.to_vec() }),
            name,
            aliases: entry.aliases.to_vec(),
        })
        .collect();
    DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources,
        type_url: type_url.to_string(),
        nonce: nonce.to_string(),
        removed_resources: removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, Hub, Scopes};

    const ORDER: &[&str] = &["policy", "address"];
    const TYPES: Types = Types { order: ORDER, private: &[], variants: &[], scoped: &[] };

    fn peer(own: &str) -> Peer {
        Peer { name: "p".into(), own: own.into(), near: Arc::default() }
    }

    /// What is sent to one that is told of this next.
    fn told(i: &mut Interests, now: &Resources, n: &mut u64) -> Vec<DeltaDiscoveryResponse> {
        sent(push(i, TYPES, (now, HashMap::new()), &peer("p"), WHOLE), n)
    }

    /// All responses of a push.
    fn sent(mut plan: Plan, n: &mut u64) -> Vec<DeltaDiscoveryResponse> {
        std::iter::from_fn(|| plan.next(n)).collect()
    }

    fn snapshot(policies: &[&str], addresses: &[&str]) -> Resources {
        let set = |v: &[&str]| v.iter().map(|n| (n.to_string(), Entry::new(n.as_bytes().to_vec(), vec![]))).collect();
        Resources::new(HashMap::from([("policy", set(policies)), ("address", set(addresses))]), 1)
    }

    /// What is counted as a stream's fault, a refusal, and a proxy that has taken in what it was told.
    #[tokio::test]
    async fn what_becomes_of_a_push_is_told() {
        let (requests, stream) = mpsc::channel(8);
        let hub = Arc::<Hub>::default();
        hub.publish(Arc::new(snapshot(&["p"], &["abc"])));
        let (tx, mut rx) = channel();
        let told = Arc::new(std::sync::Mutex::new(vec![]));
        let sink = told.clone();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let on_event = move |_: &Peer, event: Event| sink.lock().unwrap().push(event);
        let served = tokio::spawn(serve(peer("p"), stream, hub.join(), TYPES, tx, on_event));
        let ask = |type_url: &str, nonce: &str| DeltaDiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            ..Default::default()
        };
        requests.send(Ok(ask("address", ""))).await.unwrap();
        let nonce = rx.recv().await.unwrap().unwrap().nonce;
        requests.send(Ok(ask("address", &nonce))).await.unwrap();
        requests.send(Ok(ask("nonsense", ""))).await.unwrap();
        assert!(rx.recv().await.unwrap().is_err());
        served.await.unwrap();
        let told = told.lock().unwrap();
        assert_eq!(told[0], Event::Sent { type_url: "address".into(), nonce: "1".into(), bytes: 3 });
        assert!(matches!(told[1], Event::Pushed { .. }), "{told:?}");
        assert_eq!(told[2], Event::Acked { version: 1, told: true });
        assert!(told.iter().any(|e| matches!(e, Event::Failed { error } if error.contains("nonsense"))), "{told:?}");
        assert!(
            is_fault(Code::Internal)
                && ![Code::Cancelled, Code::Unavailable, Code::Unknown].map(is_fault).contains(&true)
        );
    }

    #[test]
    fn who_never_acknowledges_takes_no_memory_for_it() {
        let mut pending = VecDeque::new();
        (1..=3 * MAX_PENDING as u64).for_each(|n| wait(&mut pending, (n, n)));
        assert_eq!(pending.len(), MAX_PENDING);
        assert_eq!(
            (pending[0], pending[MAX_PENDING - 1].0),
            ((1, 1), 3 * MAX_PENDING as u64),
            "in order, the newest last"
        );
    }

    #[test]
    fn policies_come_before_addresses_and_leave_after_them() {
        let mut i = HashMap::new();
        let mut n = 0;
        let sub = |t: &str| DeltaDiscoveryRequest { type_url: t.into(), ..Default::default() };
        let peer = peer("p");
        for t in ORDER {
            assert!(request(&mut i, TYPES, sub(t), &peer, &|_, _| ()).unwrap());
        }
        let types = |v: &[DeltaDiscoveryResponse]| {
            v.iter().map(|r| (r.type_url.clone(), r.resources.len(), r.removed_resources.len())).collect::<Vec<_>>()
        };
        let out = told(&mut i, &snapshot(&["p"], &["a"]), &mut n);
        assert_eq!(types(&out), [("policy".into(), 1, 0), ("address".into(), 1, 0)]);
        let out = told(&mut i, &snapshot(&["q"], &["b"]), &mut n);
        assert_eq!(types(&out), [("policy".into(), 1, 0), ("address".into(), 1, 1), ("policy".into(), 0, 1)]);
        assert!(told(&mut i, &snapshot(&["q"], &["b"]), &mut n).is_empty());
    }

    #[test]
    fn of_a_private_type_only_the_own_resource_is_told() {
        let types = Types { order: ORDER, private: &["address"], ..TYPES };
        let peer = peer("mine");
        let asks: [(&[&str], &[&str]); 4] =
            [(&[], &[]), (&["*"], &[]), (&["other", "mine"], &[]), (&["other"], &["mine"])];
        for (subscribe, unsubscribe) in asks {
            let (mut i, mut n) = (HashMap::new(), 0);
            let list = |v: &[&str]| v.iter().map(ToString::to_string).collect();
            for _ in 0..2 {
                let r = DeltaDiscoveryRequest {
                    type_url: "address".into(),
                    resource_names_subscribe: list(subscribe),
                    resource_names_unsubscribe: list(unsubscribe),
                    ..Default::default()
                };
                request(&mut i, types, r, &peer, &|_, _| ()).unwrap();
            }
            let now = (&snapshot(&[], &["other", "mine"]), HashMap::new());
            let out = sent(push(&mut i, types, now, &peer, WHOLE), &mut n);
            let names: Vec<_> = out.iter().flat_map(|r| &r.resources).map(|r| r.name.as_str()).collect();
            assert_eq!(names, ["mine"], "{subscribe:?} {unsubscribe:?}");
        }
    }

    #[test]
    fn only_who_knows_a_variant_is_told_of_it() {
        const ALL: Variant = Variant { feature: "all", type_url: "policy", set: "policy and more" };
        let types = Types { variants: &[ALL], ..TYPES };
        let peer = peer("p");
        let mut s = snapshot(&["p"], &["a"]);
        s.types.insert("policy and more", snapshot(&["p", "more"], &[]).types["policy"].clone());
        let ask = |t: &str, feature: Option<&str>| {
            let client_features = feature.map(String::from).into_iter().collect();
            let node = karst_api::ads::Node { client_features, ..Default::default() };
            DeltaDiscoveryRequest { type_url: t.into(), node: Some(node), ..Default::default() }
        };
        let names = |v: &[DeltaDiscoveryResponse]| {
            let one = |r: &DeltaDiscoveryResponse| {
                let names =
                    r.resources.iter().map(|x| x.name.as_str()).chain(r.removed_resources.iter().map(|n| n.as_str()));
                format!("{} {}", r.type_url, names.collect::<Vec<_>>().join(" "))
            };
            v.iter().map(one).collect::<Vec<_>>()
        };
        for (feature, want) in
            [(Some("all"), "policy more p"), (Some("other"), "policy p"), (None, "policy p"), (Some(""), "policy p")]
        {
            let (mut i, mut n) = (HashMap::new(), 0);
            for t in ORDER {
                request(&mut i, types, ask(t, feature), &peer, &|_, _| ()).unwrap();
            }
            assert_eq!(
                names(&sent(push(&mut i, types, (&s, HashMap::new()), &peer, WHOLE), &mut n)),
                [want, "address a"],
                "{feature:?}"
            );
        }
        // Said late, and not again.
        let (mut i, mut n) = (HashMap::new(), 0);
        assert!(request(&mut i, types, ask("policy", None), &peer, &|_, _| ()).unwrap());
        assert_eq!(names(&sent(push(&mut i, types, (&s, HashMap::new()), &peer, WHOLE), &mut n)), ["policy p"]);
        assert!(request(&mut i, types, ask("policy", Some("all")), &peer, &|_, _| ()).unwrap());
        assert!(!request(&mut i, types, ask("policy", None), &peer, &|_, _| ()).unwrap());
        assert_eq!(names(&sent(push(&mut i, types, (&s, HashMap::new()), &peer, WHOLE), &mut n)), ["policy more"]);
    }

    /// A service that is bound to a waypoint no more: its policies hold for who is connected by that waypoint, and if they go with
    /// the service, they go after it.
    #[test]
    fn what_is_told_by_groups_comes_first_and_leaves_last() {
        let order: &[&str] = &["policy", "access", "address"];
        let types = Types { order, scoped: &["access"], ..TYPES };
        let now = |access: &[(&str, &str)], bound: &str| {
            let one = |(name, group): &(&str, &str)| {
                (name.to_string(), Entry::new(vec![], vec![]).in_groups(vec![group.to_string()]))
            };
            let address = ("s".to_string(), Entry::new(bound.as_bytes().to_vec(), vec![]));
            let sets = [("access", access.iter().map(one).collect()), ("address", Set::from_iter([address]))];
            let own: Arc<[String]> = ["w".to_string()].into();
            let scopes = Scopes::from_iter([("p".to_string(), own)]);
            Resources::default().next(sets.into(), 1, scopes)
        };
        let (mut i, mut n) = (HashMap::new(), 0);
        for type_url in &order[1..] {
            let ask = DeltaDiscoveryRequest { type_url: type_url.to_string(), ..Default::default() };
            request(&mut i, types, ask, &peer("p"), &|_, _| ()).unwrap();
        }
        let mut said = |now: &Resources, touched: &[&str]| {
            let touched =
                HashMap::from([("access", Touched::These(touched.iter().map(|name| Arc::from(*name)).collect()))]);
            let out = sent(push(&mut i, types, (now, touched), &peer("p"), WHOLE), &mut n);
            let one = |r: &DeltaDiscoveryResponse| {
                let names = r.resources.iter().map(|x| x.name.clone());
                let gone = r.removed_resources.iter().map(|name| format!("-{name}"));
                format!("{} {} {}", r.nonce, r.type_url, names.chain(gone).collect::<String>())
            };
            out.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(said(&now(&[("s", "w"), ("t", "v")], "w"), &[]), ["1 access s", "2 address s"]);
        assert_eq!(said(&now(&[("s", "v"), ("t", "v")], "v"), &["s"]), ["3 address s"]);
        assert_eq!(said(&now(&[("t", "v")], "none"), &["s"]), ["4 address s", "5 access -s"]);
        assert_eq!(said(&now(&[("s", "w"), ("t", "v")], "w"), &["s"]), ["6 access s", "7 address s"]);
    }

    /// A service that is bound to the waypoint from now on: whoever calls it by that is served by the rules that it has had.
    #[test]
    fn what_was_there_and_comes_to_a_group_is_told_before_the_addresses_and_what_is_new_after_them() {
        let order: &[&str] = &["policy", "address", "routes"];
        let types = Types { order, scoped: &["routes"], ..TYPES };
        let now = |routes: Vec<(&str, Entry)>, addresses: &[&str]| {
            let routes: Set = routes.into_iter().map(|(name, entry)| (name.to_string(), entry)).collect();
            let addresses: Set = addresses.iter().map(|name| (name.to_string(), Entry::new(vec![], vec![]))).collect();
            let own: Arc<[String]> = ["w".to_string()].into();
            let scopes = Scopes::from_iter([("p".to_string(), own)]);
            Resources::default().next(HashMap::from([("routes", routes), ("address", addresses)]), 1, scopes)
        };
        let (mut i, mut n) = (HashMap::new(), 0);
        for type_url in &order[1..] {
            let ask = DeltaDiscoveryRequest { type_url: type_url.to_string(), ..Default::default() };
            request(&mut i, types, ask, &peer("p"), &|_, _| ()).unwrap();
        }
        let mut said = |now: &Resources, touched: &[&str]| {
            let touched =
                HashMap::from([("routes", Touched::These(touched.iter().map(|name| Arc::from(*name)).collect()))]);
            let out = sent(push(&mut i, types, (now, touched), &peer("p"), WHOLE), &mut n);
            let one = |r: &DeltaDiscoveryResponse| {
                let names = r.resources.iter().map(|x| x.name.clone()).collect::<String>();
                format!("{} {} {names}", r.nonce, r.type_url)
            };
            out.iter().map(one).collect::<Vec<_>>()
        };
        let route = |group: &str| Entry::new(vec![], vec![]).in_groups(vec![group.to_string()]);
        assert_eq!(said(&now(vec![("s", route("v"))], &["s"]), &[]), ["1 address s", "2 routes "]);
        let bound = route("v").moved_to(vec!["w".to_string()]);
        let both = now(vec![("s", bound), ("t", route("w"))], &["s", "t"]);
        assert_eq!(said(&both, &["s", "t"]), ["3 routes s", "4 address t", "5 routes t"]);
    }

    #[test]
    fn parts_but_the_last_say_that_more_comes() {
        let all: Vec<_> = (0..25).map(|i| (i.to_string(), Entry::new(vec![], vec![]))).collect();
        let mut n = 0;
        let shape = |v: &[DeltaDiscoveryResponse]| {
            v.iter()
                .map(|r| (r.resources.len(), r.removed_resources.len(), r.system_version_info == MORE))
                .collect::<Vec<_>>()
        };
        let mut parts = |removed: &[&str], size: usize| {
            let removed = removed.iter().map(ToString::to_string).collect();
            let step = Step { type_url: "t", changed: all.clone().into(), removed };
            shape(&sent(Plan { steps: [step].into(), size }, &mut n))
        };
        assert_eq!(parts(&["x"], 25), [(25, 1, false)]);
        assert_eq!(parts(&[], 10), [(10, 0, true), (10, 0, true), (5, 0, false)]);
        assert_eq!(parts(&["x"], 20), [(20, 0, true), (5, 1, false)]);
    }

    #[test]
    fn who_asks_for_a_name_that_is_nobodys_is_told_so_and_keeps_all() {
        let (mut i, mut n) = (HashMap::new(), 0);
        let peer = peer("p");
        let sub = |names: &[&str]| DeltaDiscoveryRequest {
            type_url: "address".into(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let said = |out: Vec<DeltaDiscoveryResponse>| {
            let names = |r: &DeltaDiscoveryResponse| r.resources.iter().map(|x| x.name.clone()).collect::<Vec<_>>();
            out.iter().map(|r| (names(r), r.removed_resources.clone())).collect::<Vec<_>>()
        };
        let list = |v: &[&str]| v.iter().map(ToString::to_string).collect::<Vec<_>>();
        request(&mut i, TYPES, sub(&[]), &peer, &|_, _| ()).unwrap();
        let out = told(&mut i, &snapshot(&[], &["a"]), &mut n);
        assert_eq!(said(out), [(list(&["a"]), vec![])]);
        for _ in 0..2 {
            assert!(request(&mut i, TYPES, sub(&["/10.0.0.9"]), &peer, &|_, _| ()).unwrap());
            let out = told(&mut i, &snapshot(&[], &["a"]), &mut n);
            assert_eq!(said(out), [(vec![], list(&["/10.0.0.9"]))], "each time that it asks");
        }
        let done = DeltaDiscoveryRequest {
            type_url: "address".into(),
            resource_names_unsubscribe: list(&["/10.0.0.9"]),
            ..Default::default()
        };
        request(&mut i, TYPES, done, &peer, &|_, _| ()).unwrap();
        assert!(i["address"].names.is_empty());
        let out = told(&mut i, &snapshot(&[], &["a", "b"]), &mut n);
        assert_eq!(said(out), [(list(&["b"]), vec![])], "everything is still told");
    }

    /// Any pod with a token may open a stream, and ask.
    #[test]
    fn who_asks_for_more_names_than_anybody_needs_is_refused() {
        let peer = peer("p");
        let sub = |names: std::ops::Range<usize>, left: std::ops::Range<usize>| DeltaDiscoveryRequest {
            type_url: "address".into(),
            resource_names_subscribe: names.map(|n| n.to_string()).collect(),
            resource_names_unsubscribe: left.map(|n| n.to_string()).collect(),
            ..Default::default()
        };
        let mut i = HashMap::new();
        let mut ask = |asked: DeltaDiscoveryRequest| request(&mut i, TYPES, asked, &peer, &|_, _| ()).err();
        let code = |refused: Option<Status>| refused.map(|status| status.code());
        assert_eq!(code(ask(sub(0..MAX_NAMES, 0..0))), None);
        assert_eq!(code(ask(sub(0..MAX_NAMES, 0..0))), None, "the same once more");
        assert_eq!(code(ask(sub(MAX_NAMES..MAX_NAMES + 2, 0..2))), None, "others in place of some");
        assert_eq!(code(ask(sub(0..1, 0..0))), Some(Code::ResourceExhausted));
        let (mut others, mut n) = (HashMap::new(), 0);
        let mut ask = |asked: DeltaDiscoveryRequest| request(&mut others, TYPES, asked, &peer, &|_, _| ()).err();
        let long = |length: usize| DeltaDiscoveryRequest {
            type_url: "address".into(),
            resource_names_subscribe: vec!["a".repeat(length)],
            ..Default::default()
        };
        assert_eq!(code(ask(long(MAX_NAME))), None);
        assert_eq!(code(ask(long(MAX_NAME + 1))), Some(Code::ResourceExhausted));
        assert_eq!(code(ask(sub(0..MAX_NAMES + 1, 0..0))), Some(Code::ResourceExhausted));
        // However often it asks for a name at once, it is one question.
        let often = DeltaDiscoveryRequest { resource_names_subscribe: vec!["a".into(); 9], ..long(1) };
        assert!(ask(often).is_none());
        assert_eq!(others["address"].asked.len(), 2, "with the long one");
        assert_eq!(told(&mut others, &snapshot(&[], &["a"]), &mut n)[0].resources.len(), 1);
    }

    /// Nor may it leave names without end while it reads nothing: they are kept until it has read what came before.
    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_not_heard_without_end() {
        const SOON: Duration = Duration::from_secs(1);
        let (requests, stream) = mpsc::channel(1);
        let hub = Arc::<Hub>::default();
        hub.publish(Arc::new(snapshot(&["p"], &["a"])));
        let (tx, mut rx) = channel();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let served = tokio::spawn(serve(peer("p"), stream, hub.join(), TYPES, tx, |_: &Peer, _: Event| ()));
        let ask = |names: std::ops::Range<usize>, left: std::ops::Range<usize>| DeltaDiscoveryRequest {
            type_url: "address".into(),
            resource_names_subscribe: names.map(|n| n.to_string()).collect(),
            resource_names_unsubscribe: left.map(|n| n.to_string()).collect(),
            ..Default::default()
        };
        // Each is answered by itself: the queue is full, and one more response waits for room in it.
        for n in 0..=QUEUE {
            requests.send(Ok(ask(n..n + 1, 0..0))).await.unwrap();
            tokio::time::sleep(SOON).await;
        }
        let mut heard = 0;
        'asks: for n in 1..50 {
            let names = n * 10_000..(n + 1) * 10_000;
            for one in [ask(names.clone(), 0..0), ask(0..0, names)] {
                match tokio::time::timeout(SOON, requests.send(Ok(one))).await {
                    Ok(sent) => sent.unwrap(),
                    Err(_) => break 'asks,
                }
                heard += 1;
            }
        }
        assert!((4..=2 * MAX_NAMES / 10_000 + 4).contains(&heard), "{heard}");
        // Once it reads, it is heard again.
        let reads = tokio::spawn(async move { while rx.recv().await.is_some() {} });
        tokio::time::timeout(SOON, requests.send(Ok(ask(0..1, 0..0)))).await.unwrap().unwrap();
        drop(requests);
        served.await.unwrap();
        reads.await.unwrap();
    }

    #[test]
    fn an_empty_set_is_answered_once() {
        let mut i = HashMap::new();
        let mut n = 0;
        let peer = peer("p");
        request(
            &mut i,
            TYPES,
            DeltaDiscoveryRequest { type_url: "policy".into(), ..Default::default() },
            &peer,
            &|_, _| (),
        )
        .unwrap();
        assert_eq!(told(&mut i, &snapshot(&[], &[]), &mut n).len(), 1);
        assert_eq!(told(&mut i, &snapshot(&[], &[]), &mut n).len(), 0);
        assert!(
            request(
                &mut i,
                TYPES,
                DeltaDiscoveryRequest { type_url: "x".into(), ..Default::default() },
                &peer,
                &|_, _| ()
            )
            .is_err()
        );
    }
}
