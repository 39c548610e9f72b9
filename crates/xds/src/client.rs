//! The subscriber's side: one stream for all types, reconnected with jitter, resumed by the versions that are held.

use karst_api::ads::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status as WireStatus,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use karst_rt::backoff::Backoff;
use std::{collections::HashMap, fmt, time::Duration};
use tokio::sync::mpsc;
use tonic::{Request, metadata::MetadataValue, transport::Channel};

/// First pause before a reconnect.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause before a reconnect (Istio: 15 s).
const RETRY_CAP: Duration = Duration::from_secs(15);
/// A stream that lasted this long counts as a success: the next reconnect starts from the first pause again.
const GOOD_STREAM: Duration = Duration::from_secs(10);
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
    /// Waits until resources are to be asked for by name, besides everything: their type and names. Each is answered by the
    /// resource or as removed; until all are, nothing more is asked for. Must not lose anything when it is dropped.
    fn wanted(&mut self) -> impl Future<Output = (&'static str, Vec<String>)> {
        std::future::pending()
    }
    /// These names, which were asked for, are answered; what the answer says has been applied.
    fn answered(&mut self, _names: &[String]) {}
    /// A message was received: its type and size in bytes.
    fn received(&self, _type_url: &str, _bytes: usize) {}
}

/// The version of a resource, as the server has called it. Of thousands of resources it is kept until a reconnect: a hash takes no
/// more than it must (ours and istiod's are, in hexadecimal).
#[derive(Clone, Debug, PartialEq)]
enum Version {
    Hash(u64),
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

/// The resources of a type that are held, by name.
type Held = HashMap<Box<str>, Version>;

/// Subscribes to all resources of the types, for ever.
pub async fn run<H: XdsSubscriber>(mut subscriber: H, mut node: Node, types: &'static [&'static str]) {
    node.client_features.push(crate::PARTS.into());
    let mut held: HashMap<&'static str, Held> = HashMap::new();
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
    held: &mut HashMap<&'static str, Held>,
) -> Result<(), Failed> {
    let channel = subscriber.connect().await.map_err(|e| Failed::Connect(e.to_string()))?;
    let token = subscriber.token().map_err(|e| Failed::Connect(e.to_string()))?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    // Acknowledgements: one for each response, plus the first requests.
    let (tx, rx) = mpsc::channel(16);
    for type_url in types {
        let versions = held.get(type_url).into_iter().flatten();
        let first = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: type_url.to_string(),
            initial_resource_versions: versions.map(|(name, v)| (name.to_string(), v.to_string())).collect(),
            ..Default::default()
        };
        let _ = tx.send(first).await;
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
    let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
    subscriber.connected();
    tracing::info!("configuration stream is up");
    let mut asked = PendingSubscription::default();
    loop {
        let response = tokio::select! {
            response = responses.message() => match response? {
                Some(response) => response,
                None => return Ok(()),
            },
            (type_url, names) = subscriber.wanted(), if asked.names.is_empty() => {
                asked = PendingSubscription { type_url, names: names.clone() };
                let ask = DeltaDiscoveryRequest {
                    type_url: type_url.into(),
                    resource_names_subscribe: names,
                    ..Default::default()
                };
                if tx.send(ask).await.is_err() {
                    return Ok(());
                }
                continue;
            }
        };
        subscriber.received(&response.type_url, prost::Message::encoded_len(&response));
        let answered = asked.answered(&response);
        let nonce = response.nonce.clone();
        let (type_url, error) = match types.iter().find(|type_url| **type_url == response.type_url) {
            Some(t) => (t.to_string(), take(subscriber, held.entry(t).or_default(), response)),
            None => (response.type_url.clone(), Some(format!("type {:?} was not asked for", response.type_url))),
        };
        if !answered.is_empty() {
            subscriber.answered(&answered);
        }
        let error_detail = error.map(|message| {
            tracing::warn!(error = message, "refused configuration; the last good state stays in force");
            WireStatus { code: tonic::Code::InvalidArgument as i32, message, details: vec![] }
        });
        let ack = DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail,
            resource_names_unsubscribe: answered,
            ..Default::default()
        };
        if tx.send(ack).await.is_err() {
            return Ok(());
        }
    }
}

/// What is asked for by name and not answered yet.
#[derive(Default)]
struct PendingSubscription {
    type_url: &'static str,
    names: Vec<String>,
}

impl PendingSubscription {
    /// Takes out the names that this answers: their subscription has done its work.
    fn answered(&mut self, response: &DeltaDiscoveryResponse) -> Vec<String> {
        if response.type_url != self.type_url {
            return vec![];
        }
        let is = |n: &String| {
            response.removed_resources.contains(n)
                || response.resources.iter().any(|x| x.name == *n || x.aliases.contains(n))
        };
        let (answered, open) = std::mem::take(&mut self.names).into_iter().partition(is);
        self.names = open;
        answered
    }
}

fn take<H: XdsSubscriber>(subscriber: &mut H, held: &mut Held, response: DeltaDiscoveryResponse) -> Option<String> {
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
    if refused.is_empty() {
        return None;
    }
    Some(refused.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; "))
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

    #[test]
    fn what_was_asked_for_is_answered_by_name_by_alias_or_as_removed() {
        let list = |v: &[&str]| v.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut asked = PendingSubscription { type_url: "t", names: list(&["a", "b", "c", "d"]) };
        let answer = |type_url: &str| DeltaDiscoveryResponse {
            type_url: type_url.into(),
            resources: vec![
                Resource { name: "a".into(), ..Default::default() },
                Resource { name: "x".into(), aliases: list(&["b"]), ..Default::default() },
            ],
            removed_resources: list(&["c", "y"]),
            ..Default::default()
        };
        assert!(asked.answered(&answer("other")).is_empty());
        assert_eq!(asked.answered(&answer("t")), ["a", "b", "c"]);
        assert_eq!(asked.names, ["d"]);
        assert!(asked.answered(&answer("t")).is_empty());
    }
}
