//! Who is subscribed, and what each was sent and has taken in: the truth behind `istioctl proxy-status`.

use karst_api::ads::Node;
use karst_xds::server::Event;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Exchange of one type with one proxy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exchange {
    /// Number of the last response.
    pub sent: Option<String>,
    /// When it was sent.
    pub sent_at: Option<SystemTime>,
    /// Number of the last response that it has taken in.
    pub acked: Option<String>,
    /// Why it refused a response, if it has accepted none since.
    pub error: Option<String>,
}

/// A proxy with an open stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscriber {
    /// The authenticated caller, for logs.
    pub name: String,
    /// The authenticated pod's namespace.
    pub namespace: String,
    /// The authenticated pod.
    pub pod: String,
    /// `ztunnel`, `waypoint` or `router`, as the proxy says; without a word of it, `ztunnel`.
    pub kind: String,
    /// Cluster that it says it is in; may be empty.
    pub cluster: String,
    /// Version that it says it is; may be empty.
    pub version: String,
    /// It says that it stands by for another process of its pod.
    pub spare: bool,
    /// Since when.
    pub connected: SystemTime,
    /// Number of the snapshot that it has taken in.
    pub acked: u64,
    /// By type URL.
    pub types: BTreeMap<String, Exchange>,
}

impl Subscriber {
    /// One that has said nothing yet.
    pub fn new(name: String, namespace: String, pod: String, connected: SystemTime) -> Self {
        let (kind, cluster, version) = ("ztunnel".into(), String::new(), String::new());
        let types = BTreeMap::new();
        Self { name, namespace, pod, kind, cluster, version, spare: false, connected, acked: 0, types }
    }

    /// The proxy's name as Istio writes it: `pod.namespace`.
    pub fn id(&self) -> String {
        format!("{}.{}", self.pod, self.namespace)
    }

    /// Takes in what its stream tells; what a peer may choose freely, cut to a length.
    pub fn note(&mut self, event: &Event, now: SystemTime) {
        match event {
            Event::Node(node) => self.introduce(node),
            Event::Acked { version, .. } => self.acked = *version,
            Event::Pushed { .. } | Event::Failed { .. } => {}
            Event::Sent { type_url, nonce, .. } => {
                let exchange = self.types.entry(type_url.clone()).or_default();
                (exchange.sent, exchange.sent_at) = (Some(nonce.clone()), Some(now));
            }
            Event::Accepted { type_url, nonce } => {
                let exchange = self.types.entry(type_url.clone()).or_default();
                (exchange.acked, exchange.error) = (Some(cut(nonce, SHORT)), None);
            }
            Event::Nack { type_url, error } => {
                self.types.entry(type_url.clone()).or_default().error = Some(cut(error, LONG));
            }
        }
    }

    fn introduce(&mut self, node: &Node) {
        let text = |key: &str| match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
            prost_types::value::Kind::StringValue(value) => Some(cut(value, SHORT)),
            _ => None,
        };
        if let Some((kind @ ("ztunnel" | "waypoint" | "router"), _)) = node.id.split_once('~') {
            self.kind = kind.into();
        }
        self.cluster = text("CLUSTER_ID").unwrap_or_default();
        self.version = text("ISTIO_VERSION").unwrap_or_default();
        self.spare = text(karst_api::SPARE).is_some_and(|value| value == "true");
    }
}

/// Characters that are kept of a name, a version or a nonce.
const SHORT: usize = 64;
/// Characters that are kept of an error.
const LONG: usize = 1024;

/// The first printable characters: any pod with a token may connect, and what it sends is kept as long as its stream.
fn cut(text: &str, most: usize) -> String {
    text.chars().filter(|sign| !sign.is_control()).take(most).collect()
}

/// Those that serve, for who counts or lists proxies: a ztunnel's pod has two processes with a stream, of which one stands by. Where
/// all that a pod has have stood by once (a crash), the one that is connected for the longest time serves.
pub fn serving(all: &[Subscriber]) -> Vec<&Subscriber> {
    let rank = |one: &Subscriber| (one.spare, one.connected);
    let mut first: HashMap<(&str, &str), (bool, SystemTime)> = HashMap::new();
    for one in all {
        let known = first.entry((one.namespace.as_str(), one.pod.as_str())).or_insert_with(|| rank(one));
        *known = rank(one).min(*known);
    }
    let serves = |one: &&Subscriber| {
        !one.spare || first.get(&(one.namespace.as_str(), one.pod.as_str())).is_none_or(|known| *known == rank(one))
    };
    all.iter().filter(serves).collect()
}

/// All of them, by number of their stream.
#[derive(Debug, Default)]
pub struct Subscribers(Mutex<BTreeMap<u64, Subscriber>>);

impl Subscribers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Subscriber>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A stream has begun.
    pub fn add(&self, stream: u64, subscriber: Subscriber) {
        self.lock().insert(stream, subscriber);
    }
    /// A stream has ended.
    pub fn remove(&self, stream: u64) {
        self.lock().remove(&stream);
    }
    /// A stream tells something.
    pub fn note(&self, stream: u64, event: &Event, now: SystemTime) {
        if let Some(subscriber) = self.lock().get_mut(&stream) {
            subscriber.note(event, now);
        }
    }
    /// Those of now, by number of their stream. `current`: those that have taken in all that concerns them up to a snapshot's
    /// number, whichever of them told them of something last.
    pub fn all(&self, version: u64, current: &HashSet<u64>) -> Vec<Subscriber> {
        let one = |(stream, subscriber): (&u64, &Subscriber)| {
            let mut subscriber = subscriber.clone();
            if current.contains(stream) {
                subscriber.acked = version;
            }
            subscriber
        };
        self.lock().iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_stands_until_something_is_accepted() {
        let all = Subscribers::default();
        let now = SystemTime::UNIX_EPOCH;
        all.add(7, Subscriber::new("n".into(), "istio-system".into(), "zt".into(), now));
        let (type_url, error) = ("t".to_string(), "bad".to_string());
        all.note(7, &Event::Sent { type_url: type_url.clone(), nonce: "1".into(), bytes: 0 }, now);
        all.note(7, &Event::Nack { type_url: type_url.clone(), error }, now);
        let listed = |current: &[u64]| all.all(9, &current.iter().copied().collect());
        let exchange = |_: &Subscribers| listed(&[])[0].types["t"].clone();
        assert_eq!((exchange(&all).acked, exchange(&all).error), (None, Some("bad".into())));
        all.note(7, &Event::Accepted { type_url, nonce: "1".into() }, now);
        assert_eq!((exchange(&all).acked, exchange(&all).error), (Some("1".into()), None));
        all.note(7, &Event::Acked { version: 4, told: true }, now);
        assert_eq!((listed(&[6])[0].acked, listed(&[7])[0].acked), (4, 9));
        all.remove(7);
        assert!(listed(&[7]).is_empty());
    }

    #[test]
    fn of_a_pod_one_process_is_shown() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let one = |pod: &str, connected: u64, spare: bool| {
            let mut one = Subscriber::new("n".into(), "istio-system".into(), pod.into(), at(connected));
            let text = |text: &str| Some(prost_types::value::Kind::StringValue(text.into()));
            let fields = [(karst_api::SPARE.to_string(), prost_types::Value { kind: text(&spare.to_string()) })].into();
            let node = Node { metadata: Some(prost_types::Struct { fields }), ..Default::default() };
            one.note(&Event::Node(node), at(connected));
            assert_eq!(one.spare, spare);
            one
        };
        let shown = |all: &[Subscriber]| -> Vec<String> {
            let seconds = |one: &Subscriber| one.connected.duration_since(at(0)).unwrap().as_secs();
            serving(all).into_iter().map(|one| format!("{} {}", one.pod, seconds(one))).collect()
        };
        let other = one("zt-2", 9, false);
        let both = [one("zt-1", 1, false), one("zt-1", 2, true), other.clone()];
        assert_eq!(shown(&both), ["zt-1 1", "zt-2 9"]);
        // The controller was restarted, and the spare was faster.
        let again = [one("zt-1", 3, true), one("zt-1", 4, false), other.clone()];
        assert_eq!(shown(&again), ["zt-1 4", "zt-2 9"]);
        // The first has crashed: the spare serves, and has a spare itself.
        let crashed = [one("zt-1", 2, true), one("zt-1", 5, true), other.clone()];
        assert_eq!(shown(&crashed), ["zt-1 2", "zt-2 9"]);
        // A stream that broke is still there beside its successor: nobody is left out who does not say so.
        let broken = [one("zt-1", 1, false), one("zt-1", 2, false)];
        assert_eq!(shown(&broken).len(), 2);
    }

    #[test]
    fn what_a_proxy_says_of_itself_is_bounded_to_known_kinds() {
        let now = SystemTime::UNIX_EPOCH;
        let mut subscriber = Subscriber::new("n".into(), "a".into(), "w".into(), now);
        let node = |id: &str| Node { id: id.into(), ..Default::default() };
        for (id, kind) in [
            ("waypoint~10.0.0.1~w.a~a.svc.cluster.local", "waypoint"),
            ("router~10.0.0.1~w.a~a.svc.cluster.local", "router"),
            ("<script>~x", "router"),
            ("", "router"),
        ] {
            subscriber.note(&Event::Node(node(id)), now);
            assert_eq!(subscriber.kind, kind, "{id}");
        }
        assert_eq!(subscriber.id(), "w.a");
    }
}
