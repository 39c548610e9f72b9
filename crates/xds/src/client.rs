//! The subscriber's side: one stream for all types, reconnected with jitter, resumed by the versions that are held.

use futures_util::{Stream, StreamExt};
use karst_api::ads::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status as WireStatus,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use karst_rt::backoff::Backoff;
use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};
use tokio::sync::mpsc;
use tonic::{Request, metadata::MetadataValue, transport::Channel};

/// First pause before a reconnect.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause before a reconnect (Istio: 15 s).
const RETRY_CAP: Duration = Duration::from_secs(15);
/// A stream that lasted this long counts as a success: the next reconnect starts from the first pause again.
const GOOD_STREAM: Duration = Duration::from_secs(10);
/// A name that nothing has. It is asked for beside names that are asked for no more: when it is answered, what was told for those is
/// gone, and none of that is taken for an answer to who asks for one of them again. And it is asked for beside all names where only
/// these are told: a change that was under way may have one of these names, and is not all that there is of it.
const BARRIER: &str = "~";
/// Largest response that is accepted (Istio: 200 MiB).
const MAX_MESSAGE: usize = 200 << 20;

/// Changes of one type.
#[derive(Debug)]
pub struct Update {
    /// Type of the resources.
    pub type_url: String,
    /// Name, version, encoded message.
    pub changed: Vec<(String, String, Vec<u8>)>,
    /// Names.
    pub removed: Vec<String>,
    /// The rest of the update is still to come.
    pub more: bool,
}

/// Why a stream ended; the label of `istio_xds_connection_terminations_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// No connection could be made.
    ConnectionError,
    /// The server ended it with an error.
    Error,
    /// The server asked for a reconnect.
    Reconnect,
    /// The server closed it in order.
    Complete,
}

/// Names that are asked for, and names that are asked for no more.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Type of the resources.
    pub type_url: &'static str,
    /// Each is answered by the resource or as removed.
    pub names: Vec<String>,
    /// What only these have named is told as removed.
    pub no_more: Vec<String>,
}

/// What the owner of a client provides.
pub trait XdsSubscriber {
    /// Why the server cannot be connected to.
    type Error: std::fmt::Display;
    /// Applies an update. Names that cannot be applied are returned with the reason; they are refused (NACK), and not
    /// held.
    fn apply(&mut self, u: Update) -> Vec<(String, String)>;
    /// The token to present (read anew for each stream).
    fn token(&self) -> Result<String, Self::Error>;
    /// A channel to the server.
    fn connect(&self) -> impl Future<Output = Result<Channel, Self::Error>>;
    /// Headers to add.
    fn headers(&self) -> Vec<(String, String)>;
    /// A stream is up: the server answers.
    fn connected(&self) {}
    /// A stream has ended.
    fn ended(&self, _why: StreamEnd) {}
    /// The names of a type that a stream that begins is to ask for, in place of everything. None: everything.
    fn names(&self, _type_url: &str) -> Option<Vec<String>> {
        None
    }
    /// Waits until resources are to be asked for by name, in place of everything or besides: until all are answered, nothing more
    /// is asked for. Must not lose anything when it is dropped.
    fn wanted(&mut self) -> impl Future<Output = Wanted> {
        std::future::pending()
    }
    /// These names, which were asked for, are answered; what the answer says, all of it, has been applied. Whether there is
    /// anything of a name is told, too. A name whose resources were refused is never answered.
    fn answered(&mut self, _names: &[(String, bool)]) {}
    /// A message was received: its type and size in bytes.
    fn received(&self, _type_url: &str, _bytes: usize) {}
}

/// The version of a resource, as the server has called it. Of thousands of resources it is kept until a reconnect: a hash takes no
/// more than it must (ours and istiod's are, in hexadecimal).
#[derive(Clone, Debug, PartialEq)]
pub enum Version {
    /// One that reads as it was written.
    Hash(u64),
    /// Any other.
    Text(Box<str>),
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        match u64::from_str_radix(&text, 16) {
            Ok(hash) if format!("{hash:x}") == text => Version::Hash(hash),
            Ok(_) | Err(_) => Version::Text(text.into()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Hash(hash) => write!(f, "{hash:x}"),
            Version::Text(text) => f.write_str(text),
        }
    }
}

/// The versions of the resources of a type that are held, by name.
type Versions = HashMap<Box<str>, Version>;
/// What is held, by type.
pub type Held = HashMap<&'static str, Versions>;

/// Subscribes to all resources of the types, for ever.
pub async fn run<H: XdsSubscriber>(mut subscriber: H, mut node: Node, types: &'static [&'static str]) {
    node.client_features.push(crate::PARTS.into());
    let mut held = Held::new();
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        let began = tokio::time::Instant::now();
        let (why, text) = match stream(&mut subscriber, &node, types, &mut held).await {
            Ok(()) => (StreamEnd::Complete, "closed by the server".to_string()),
            Err(Failed::Connect(e)) => (StreamEnd::ConnectionError, e),
            Err(Failed::Stream(s)) => {
                let expected = matches!(
                    s.code(),
                    tonic::Code::Unknown
                        | tonic::Code::Cancelled
                        | tonic::Code::DeadlineExceeded
                        | tonic::Code::Unavailable
                );
                (
                    if expected { StreamEnd::Reconnect } else { StreamEnd::Error },
                    format!("{}: {}", s.code(), s.message()),
                )
            }
        };
        subscriber.ended(why);
        if began.elapsed() >= GOOD_STREAM {
            backoff.reset();
        }
        let pause = backoff.next_delay();
        tracing::warn!(
            error = text,
            retry_ms = pause.as_millis() as u64,
            "configuration stream ended; what is known stays in force"
        );
        tokio::time::sleep(pause).await;
    }
}

enum Failed {
    Connect(String),
    Stream(tonic::Status),
}
impl From<tonic::Status> for Failed {
    fn from(s: tonic::Status) -> Self {
        Failed::Stream(s)
    }
}

async fn stream<H: XdsSubscriber>(
    subscriber: &mut H,
    node: &Node,
    types: &'static [&'static str],
    held: &mut Held,
) -> Result<(), Failed> {
    let channel = subscriber.connect().await.map_err(|e| Failed::Connect(e.to_string()))?;
    let token = subscriber.token().map_err(|e| Failed::Connect(e.to_string()))?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (first, mut asked) = begin(subscriber, node, types, held);
    // Acknowledgements: one for each response, plus the first requests.
    let (tx, rx) = mpsc::channel(16);
    for request in first {
        let _ = tx.send(request).await;
    }
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(rx));
    let mut headers = subscriber.headers();
    headers.push(("authorization".into(), format!("Bearer {token}")));
    for (k, v) in headers {
        let key = tonic::metadata::MetadataKey::from_bytes(k.as_bytes())
            .map_err(|_| Failed::Connect(format!("header name {k:?} is not valid")))?;
        let value =
            MetadataValue::try_from(v).map_err(|_| Failed::Connect(format!("value of header {k:?} is not valid")))?;
        request.metadata_mut().insert(key, value);
    }
    let responses = client.delta_aggregated_resources(request).await?.into_inner();
    subscriber.connected();
    tracing::info!("configuration stream is up");
    Ok(exchange(subscriber, types, held, &mut asked, (tx, responses)).await?)
}

/// What a stream begins with: a request for each type, and what the requests ask for by name.
pub fn begin<H: XdsSubscriber>(
    subscriber: &H,
    node: &Node,
    types: &'static [&'static str],
    held: &Held,
) -> (Vec<DeltaDiscoveryRequest>, PendingSubscription) {
    let mut asked = PendingSubscription::default();
    let first = |type_url: &&'static str| {
        let versions = held.get(type_url).into_iter().flatten();
        let mut first = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: type_url.to_string(),
            initial_resource_versions: versions.map(|(name, v)| (name.to_string(), v.to_string())).collect(),
            ..Default::default()
        };
        if let Some(names) = subscriber.names(type_url) {
            // Everything, and then not: so even without a name it is not read as a request for everything.
            first.resource_names_subscribe = names.iter().cloned().chain(["*".into()]).collect();
            first.resource_names_unsubscribe = vec!["*".into()];
            asked = PendingSubscription::new(type_url, names);
        }
        first
    };
    (types.iter().map(first).collect(), asked)
}

/// A stream that has begun, to its end, over whatever carries its messages.
///
/// # Errors
/// The server's, for which it has ended.
pub async fn exchange<H: XdsSubscriber>(
    subscriber: &mut H,
    types: &'static [&'static str],
    held: &mut Held,
    asked: &mut PendingSubscription,
    (requests, mut responses): (
        mpsc::Sender<DeltaDiscoveryRequest>,
        impl Stream<Item = Result<DeltaDiscoveryResponse, tonic::Status>> + Unpin,
    ),
) -> Result<(), tonic::Status> {
    // The types of which only what is asked for is told.
    let by_name: Vec<&str> = types.iter().copied().filter(|type_url| subscriber.names(type_url).is_some()).collect();
    loop {
        let response = tokio::select! {
            response = responses.next() => match response {
                Some(response) => response?,
                None => return Ok(()),
            },
            Wanted { type_url, mut names, no_more } = subscriber.wanted(), if asked.is_answered() => {
                let has_barrier = !no_more.is_empty() || by_name.contains(&type_url);
                names.extend(has_barrier.then(|| BARRIER.to_string()));
                *asked = PendingSubscription::new(type_url, names.clone());
                let ask = DeltaDiscoveryRequest {
                    type_url: type_url.into(),
                    resource_names_subscribe: names,
                    resource_names_unsubscribe: no_more,
                    ..Default::default()
                };
                if requests.send(ask).await.is_err() {
                    return Ok(());
                }
                continue;
            }
        };
        subscriber.received(&response.type_url, prost::Message::encoded_len(&response));
        asked.note(&response);
        let (nonce, more) = (response.nonce.clone(), response.system_version_info == crate::MORE);
        let (type_url, refused) = match types.iter().find(|type_url| **type_url == response.type_url) {
            Some(t) => (t.to_string(), take(subscriber, held.entry(t).or_default(), response)),
            None => {
                let why = format!("type {:?} was not asked for", response.type_url);
                (response.type_url.clone(), vec![(response.type_url, why)])
            }
        };
        refused.iter().for_each(|(name, _)| asked.refuse(name));
        // What belongs to a name may be in any part of its answer.
        let answered = if more { vec![] } else { asked.answered(&type_url) };
        if !answered.is_empty() {
            subscriber.answered(&answered);
        }
        // Who is told of everything has asked besides: that subscription has done its work.
        let is_done = !by_name.contains(&type_url.as_str());
        let done = answered.into_iter().filter(|_| is_done).map(|(name, _)| name).collect();
        let error_detail = (!refused.is_empty()).then(|| {
            let message = refused.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; ");
            tracing::warn!(error = message, "refused configuration; the last good state stays in force");
            WireStatus { code: tonic::Code::InvalidArgument as i32, message, details: vec![] }
        });
        let ack = DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail,
            resource_names_unsubscribe: done,
            ..Default::default()
        };
        if requests.send(ack).await.is_err() {
            return Ok(());
        }
    }
}

/// What is asked for by name and not answered yet.
#[derive(Debug, Default)]
pub struct PendingSubscription {
    type_url: &'static str,
    names: HashSet<String>,
    /// Of these, those that a part of an answer has named, by what it has named for them. Empty: there is nothing.
    noted: HashMap<String, Vec<String>>,
    /// Resources that were refused.
    refused: HashSet<String>,
}

impl PendingSubscription {
    fn new(type_url: &'static str, names: Vec<String>) -> Self {
        Self { type_url, names: names.into_iter().collect(), ..Self::default() }
    }

    /// Is nothing open?
    fn is_answered(&self) -> bool {
        self.names.is_empty()
    }

    /// Notes which names a response, or a part of one, answers.
    fn note(&mut self, response: &DeltaDiscoveryResponse) {
        if response.type_url != self.type_url || self.names.is_empty() {
            return;
        }
        for resource in &response.resources {
            for name in [&resource.name].into_iter().chain(&resource.aliases).filter(|name| self.names.contains(*name))
            {
                self.noted.entry(name.clone()).or_default().push(resource.name.clone());
            }
        }
        for name in response.removed_resources.iter().filter(|name| self.names.contains(*name)) {
            self.noted.entry(name.clone()).or_default();
        }
    }

    fn refuse(&mut self, resource: &str) {
        if !self.is_answered() {
            self.refused.insert(resource.into());
        }
    }

    /// The names that are answered now, and whether there is anything of them. One that a refused resource has is none: what is
    /// there is not known. What has come before the barrier is no answer: that comes with it.
    fn answered(&mut self, type_url: &str) -> Vec<(String, bool)> {
        if type_url != self.type_url {
            return vec![];
        }
        if self.names.contains(BARRIER) && !self.noted.contains_key(BARRIER) {
            self.noted.clear();
            self.refused.clear();
            return vec![];
        }
        let mut answered = vec![];
        for (name, resources) in std::mem::take(&mut self.noted) {
            self.names.remove(&name);
            if name != BARRIER && !resources.iter().any(|resource| self.refused.contains(resource)) {
                answered.push((name, !resources.is_empty()));
            }
        }
        self.refused.clear();
        answered
    }
}

fn take<H: XdsSubscriber>(
    subscriber: &mut H,
    held: &mut Versions,
    response: DeltaDiscoveryResponse,
) -> Vec<(String, String)> {
    let mut changed = Vec::with_capacity(response.resources.len());
    let mut refused = Vec::new();
    for resource in response.resources {
        match resource.resource {
            Some(any) if any.type_url == response.type_url => {
                changed.push((resource.name, resource.version, any.value))
            }
            Some(any) => refused.push((
                resource.name,
                format!("is of type {:?} in a response of {:?}", any.type_url, response.type_url),
            )),
            None => refused.push((resource.name, "has no content".to_string())),
        }
    }
    let versions: Vec<(Box<str>, Version)> =
        changed.iter().map(|(name, version, _)| (name.as_str().into(), version.clone().into())).collect();
    let removed = response.removed_resources.clone();
    let more = response.system_version_info == crate::MORE;
    refused.extend(subscriber.apply(Update {
        type_url: response.type_url,
        changed,
        removed: response.removed_resources,
        more,
    }));
    for name in &removed {
        held.remove(name.as_str());
    }
    for (name, version) in versions {
        if refused.iter().any(|(refused, _)| **refused == *name) {
            held.remove(&name);
        } else {
            held.insert(name, version);
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::ads::Resource;

    /// Whatever a server calls versions, they are told again as it has called them.
    #[test]
    fn versions_are_told_as_they_were_called_and_take_little_memory() {
        let hash = crate::version(b"content");
        for text in
            [&*hash, "0", "ffffffffffffffff", "10000000000000000", "0a", "A", "+a", "v1", "", "2026-11-30T05:06:43Z"]
        {
            assert_eq!(Version::from(text.to_string()).to_string(), text);
        }
        assert!(matches!(Version::from(hash), Version::Hash(_)));
        assert!(size_of::<(Box<str>, Version)>() <= 32);
    }

    fn list(v: &[&str]) -> Vec<String> {
        v.iter().map(ToString::to_string).collect()
    }

    fn answer(type_url: &str, resources: &[(&str, &[&str])], removed: &[&str]) -> DeltaDiscoveryResponse {
        let one = |(name, aliases): &(&str, &[&str])| Resource {
            name: name.to_string(),
            aliases: list(aliases),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            type_url: type_url.into(),
            resources: resources.iter().map(one).collect(),
            removed_resources: list(removed),
            ..Default::default()
        }
    }

    fn sorted(mut all: Vec<(String, bool)>) -> Vec<(String, bool)> {
        all.sort();
        all
    }

    #[test]
    fn what_was_asked_for_is_answered_by_name_by_alias_or_as_removed() {
        let mut asked = PendingSubscription::new("t", list(&["a", "b", "c", "d"]));
        asked.note(&answer("other", &[("d", &[])], &[]));
        assert!(asked.answered("other").is_empty());
        asked.note(&answer("t", &[("a", &[]), ("x", &["b"])], &["c", "y"]));
        let want = [("a", true), ("b", true), ("c", false)].map(|(name, found)| (name.to_string(), found));
        assert_eq!(sorted(asked.answered("t")), want);
        assert!(!asked.is_answered() && asked.answered("t").is_empty(), "d is open");
    }

    #[test]
    fn what_comes_before_the_barrier_is_no_answer() {
        let mut asked = PendingSubscription::new("t", list(&["a", "b", BARRIER]));
        asked.note(&answer("t", &[("x", &["a"])], &["b"]));
        asked.refuse("x");
        assert!(asked.answered("t").is_empty() && !asked.is_answered());
        asked.note(&answer("t", &[("x", &["a"]), ("y", &["a", "b"])], &[BARRIER]));
        assert_eq!(sorted(asked.answered("t")), [("a".to_string(), true), ("b".to_string(), true)]);
        assert!(asked.is_answered());
    }

    #[test]
    fn parts_of_an_answer_are_one_answer() {
        let mut asked = PendingSubscription::new("t", list(&["a", "b"]));
        asked.note(&answer("t", &[("x", &["a"])], &[]));
        asked.note(&answer("t", &[("a", &[])], &["b"]));
        assert_eq!(sorted(asked.answered("t")), [("a".to_string(), true), ("b".to_string(), false)]);
        assert!(asked.is_answered());
    }

    #[test]
    fn a_name_of_a_resource_that_is_refused_is_not_answered() {
        let mut asked = PendingSubscription::new("t", list(&["a", "b"]));
        asked.note(&answer("t", &[("x", &["a"]), ("b", &[])], &[]));
        asked.refuse("x");
        assert_eq!(asked.answered("t"), [("b".to_string(), true)]);
        assert!(asked.is_answered(), "it is not waited for");
        asked.refuse("x");
        assert!(asked.refused.is_empty(), "nobody asks");
    }
}
