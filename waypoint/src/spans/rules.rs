//! What is said of traces (Istio's Telemetry `tracing` with the provider that it names), compiled.

use crate::{
    config,
    spans::{health::Health, names::is_standard},
    telemetry::{
        expression::{self, ExpressionError, evaluate},
        stream_info::StreamInfo,
    },
};
use cel::Program;
use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};
use karst_api::route::{self as ir, CollectorProtocol, custom_tag};
use karst_core::operators::{self, Fragment, Header, Operator, OperatorError, Part, Piece as AddressPiece, time};
use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};

/// Longest path in a tag where nothing is said (Envoy's `max_path_tag_length`), in bytes.
const MAX_PATH: usize = 256;
/// Longest value of a tag, in bytes.
const MAX_VALUE: usize = 256;
/// An export takes at most this long where nothing is said (OTLP's default).
const TIMEOUT: Duration = Duration::from_secs(10);

/// Which requests are traced, and what their spans say.
pub struct Tracing {
    pub collector: Arc<Collector>,
    /// So many of [`crate::spans::sampling::WHOLE`].
    pub rate: u32,
    /// The mark in `x-request-id` counts.
    pub reads_mark: bool,
    /// Upstreams are told of the trace.
    pub propagates: bool,
    /// With the tags `istio.*`.
    pub istio_tags: bool,
    /// A tag reads headers: they are kept for the end of the request.
    pub wants_headers: bool,
    tags: Vec<Rule>,
}

/// What is said of a tag.
struct Rule {
    name: String,
    source: Source,
    /// Spans have one of this name by themselves.
    replaces: bool,
}

/// A tag of a request, as a user has asked for it.
#[derive(Debug)]
pub struct Custom<'a> {
    pub name: &'a str,
    pub value: Cow<'a, str>,
    /// Spans have one of this name by themselves, which gives way.
    pub replaces: bool,
}

/// What takes spans.
#[derive(Debug)]
pub struct Collector {
    /// `HOST` or `NAMESPACE/HOST` of a service.
    pub service: Arc<str>,
    pub port: u16,
    pub protocol: CollectorProtocol,
    /// Of an export by HTTP.
    pub path: PathAndQuery,
    /// Of one export.
    pub timeout: Duration,
    /// Sent with each export.
    pub headers: HeaderMap,
    /// Longest path in a tag, in bytes.
    pub max_path: usize,
    /// New traces have ids of 64 bits.
    pub short_ids: bool,
    /// Zipkin: W3C's headers, too.
    pub w3c: bool,
    /// Attributes of the resource from the proxy's environment.
    pub resource: Vec<(String, String)>,
    pub health: Health,
}

/// Where a tag's value comes from.
enum Source {
    Fixed(Arc<str>),
    Header(HeaderName, Option<Arc<str>>),
    Made(Vec<Piece>),
}

/// A part of a value.
enum Piece {
    Plain(Part),
    Expression(Program),
}

/// What cannot be traced by.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    #[error("there is no collector")]
    NoCollector,
    #[error("collector: port {0}")]
    Port(u32),
    #[error("collector: protocol {0}")]
    Protocol(i32),
    #[error("collector: path {0:?}")]
    Path(String),
    #[error("collector: header {0:?}")]
    Header(String),
    #[error("tag {0}: header {1:?}")]
    TagHeader(String, String),
    #[error("tag {0}: {1}")]
    Operator(String, OperatorError),
    #[error("tag {0}: {1}")]
    Expression(String, ExpressionError),
}

impl std::fmt::Debug for Tracing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracing").field("collector", &self.collector).field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Tracing {
    /// Compiles.
    ///
    /// # Errors
    /// What cannot be traced by.
    pub fn new(said: &ir::Tracing) -> Result<Self, TracingError> {
        let collector = said.collector.as_ref().ok_or(TracingError::NoCollector)?;
        let rule = |tag: &ir::CustomTag, source: Source| {
            let name = tag.name.clone();
            Rule { replaces: is_standard(&name), name, source }
        };
        let tags = said.tags.iter().filter_map(|tag| source(tag).map(|s| s.map(|s| rule(tag, s))).transpose());
        let tags = tags.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            collector: Arc::new(Collector::new(collector)?),
            rate: said.per_ten_thousand,
            reads_mark: !said.ignore_request_id,
            propagates: !said.no_propagation,
            istio_tags: !said.no_istio_tags,
            wants_headers: tags.iter().any(|rule| rule.source.wants_headers()),
            tags,
        })
    }

    /// The tags of a request that has ended; of one name the last counts. `scheme`: how it has come; `hostname`: this proxy's pod.
    pub fn tags<'a>(&'a self, info: &'a StreamInfo, scheme: &str, hostname: &str, sent: u64) -> Vec<Custom<'a>> {
        let mut out: Vec<Custom<'a>> = vec![];
        for Rule { name, source, replaces } in &self.tags {
            let Some(value) = source.value(info, scheme, hostname, sent) else { continue };
            out.retain(|before| before.name != name);
            out.push(Custom { name, value, replaces: *replaces });
        }
        out
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_VALUE)]
}

impl Source {
    /// None: the tag is not there.
    fn value<'a>(&'a self, info: &'a StreamInfo, scheme: &str, hostname: &str, sent: u64) -> Option<Cow<'a, str>> {
        match self {
            Source::Fixed(text) => Some(Cow::Borrowed(&**text)),
            Source::Header(name, or) => {
                let found = info.headers.as_ref().and_then(|h| h.get(name));
                let found = found.map(|v| match String::from_utf8_lossy(v.as_bytes()) {
                    Cow::Borrowed(text) => Cow::Borrowed(cut(text)),
                    Cow::Owned(text) => Cow::Owned(cut(&text).to_string()),
                });
                found.or_else(|| or.as_deref().map(Cow::Borrowed))
            }
            Source::Made(pieces) => {
                let mut out = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Plain(Part::Text(text)) => out.push_str(text),
                        Piece::Plain(Part::Operator(operator, longest)) => {
                            let text = operated(operator, info, scheme, hostname);
                            out.push_str(&text[..text.floor_char_boundary(longest.unwrap_or(MAX_VALUE))]);
                        }
                        Piece::Expression(program) => {
                            out.push_str(&evaluate(program, info, sent).map(expression::text).unwrap_or_default());
                        }
                    }
                }
                out.truncate(cut(&out).len());
                (!out.is_empty()).then_some(Cow::Owned(out))
            }
        }
    }

    fn wants_headers(&self) -> bool {
        match self {
            Source::Fixed(_) => false,
            Source::Header(..) => true,
            Source::Made(pieces) => pieces.iter().any(|piece| match piece {
                Piece::Plain(Part::Operator(Operator::Request(_), _)) => true,
                Piece::Plain(_) => false,
                Piece::Expression(program) => program.references().variables().contains(&"request"),
            }),
        }
    }
}

/// Where a tag's value comes from; None: it has none.
fn source(tag: &ir::CustomTag) -> Result<Option<Source>, TracingError> {
    let or = |or: &str| (!or.is_empty()).then(|| Arc::from(or));
    let Some(value) = &tag.value else { return Ok(None) };
    Ok(match value {
        custom_tag::Value::Literal(text) => Some(Source::Fixed(text.as_str().into())),
        custom_tag::Value::Environment(from) => {
            let found = config::environment(&from.name).map(|v| Arc::from(cut(&v)));
            found.or_else(|| or(&from.or)).map(Source::Fixed)
        }
        custom_tag::Value::Header(from) => {
            let name = HeaderName::try_from(from.name.as_str());
            let name = name.map_err(|_| TracingError::TagHeader(tag.name.clone(), from.name.clone()))?;
            Some(Source::Header(name, or(&from.or)))
        }
        custom_tag::Value::Format(format) => Some(Source::Made(pieces(&tag.name, format)?)),
    })
}

/// The parts of a format.
fn pieces(tag: &str, format: &str) -> Result<Vec<Piece>, TracingError> {
    let mut out = vec![];
    for fragment in operators::fragments(format) {
        match fragment {
            Fragment::Plain(text) => {
                let parts = operators::parse(text).map_err(|e| TracingError::Operator(tag.into(), e))?;
                out.extend(parts.into_iter().map(Piece::Plain));
            }
            Fragment::Expression(text) => {
                let program = expression::program(text).map_err(|e| TracingError::Expression(tag.into(), e))?;
                out.push(Piece::Expression(program));
            }
        }
    }
    Ok(out)
}

/// What an operator stands for when a request has ended. (Of the answer's headers only the status is known then; the controller
/// refuses the others.)
fn operated(operator: &Operator, info: &StreamInfo, scheme: &str, hostname: &str) -> String {
    let address = |a: SocketAddr, piece: AddressPiece| match piece {
        AddressPiece::Whole => a.to_string(),
        AddressPiece::Ip => a.ip().to_string(),
        AddressPiece::Port => a.port().to_string(),
    };
    match operator {
        Operator::Request(Header { name, or }) => {
            let one = |name: &str| match name {
                ":path" => info.path().to_string(),
                ":method" => info.method.to_string(),
                ":scheme" => scheme.to_string(),
                ":authority" | "host" => text(info.authority.as_ref()),
                name => text(info.headers.as_ref().and_then(|h| h.get(name))),
            };
            Some(one(name)).filter(|v| !v.is_empty()).or_else(|| or.as_deref().map(one)).unwrap_or_default()
        }
        Operator::Response(Header { name, .. }) if name == ":status" => info.answered.to_string(),
        Operator::Response(_) => String::new(),
        Operator::RemoteAddress(piece) => address(info.from, *piece),
        Operator::LocalAddress(piece) => address(info.to, *piece),
        Operator::UpstreamAddress(piece) => {
            info.workload.as_ref().map(|(_, a)| address(*a, *piece)).unwrap_or_default()
        }
        Operator::UpstreamCluster => info.cluster(),
        Operator::Protocol => info.protocol.into(),
        Operator::Hostname => hostname.into(),
        Operator::ResponseCode => info.answered.to_string(),
        Operator::ResponseFlags => info.flag.text().into(),
        Operator::StartTime(format) => time(format, info.time).unwrap_or_default(),
        Operator::RouteName => info.route.clone(),
        Operator::PeerUriSan => info.principal().into(),
        Operator::ServerName => info.sni.as_deref().unwrap_or_default().into(),
    }
}

fn text(value: Option<&HeaderValue>) -> String {
    value.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
}

impl Collector {
    /// Compiles.
    ///
    /// # Errors
    /// What cannot be called.
    pub fn new(said: &ir::Collector) -> Result<Self, TracingError> {
        let port = u16::try_from(said.port).ok().filter(|port| *port > 0).ok_or(TracingError::Port(said.port))?;
        let protocol = CollectorProtocol::try_from(said.protocol).map_err(|_| TracingError::Protocol(said.protocol))?;
        let path = match said.path.as_str() {
            "" => Ok(PathAndQuery::from_static("/")),
            path => path.parse().map_err(|_| TracingError::Path(path.into())),
        }?;
        let mut headers = HeaderMap::new();
        for header in &said.headers {
            let wrong = || TracingError::Header(header.name.clone());
            let value = match header.environment.as_str() {
                "" => Some(HeaderValue::from_str(&header.value).map_err(|_| wrong())?),
                // The controller does not know it: without one, the collector says what is missing.
                name => config::environment(name).and_then(|value| HeaderValue::try_from(value).ok()),
            };
            let name = HeaderName::try_from(header.name.as_str()).map_err(|_| wrong())?;
            if let Some(mut value) = value {
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
        let environment = if said.environment { config::environment("OTEL_RESOURCE_ATTRIBUTES") } else { None };
        Ok(Self {
            service: said.service.as_str().into(),
            port,
            protocol,
            path,
            timeout: if said.timeout_ms == 0 { TIMEOUT } else { Duration::from_millis(said.timeout_ms) },
            headers,
            max_path: if said.max_path == 0 { MAX_PATH } else { said.max_path as usize },
            short_ids: said.short_ids,
            w3c: said.w3c,
            resource: environment.map(|text| resource(&text)).unwrap_or_default(),
            health: Health::default(),
        })
    }

    /// Is it the same, and called in the same way?
    pub fn is_same(&self, other: &Self) -> bool {
        let Self { service, port, protocol, path, timeout, headers, max_path, short_ids, w3c, resource, health: _ } =
            self;
        (service, port, protocol, path, timeout)
            == (&other.service, &other.port, &other.protocol, &other.path, &other.timeout)
            && (headers, max_path, short_ids, w3c, resource)
                == (&other.headers, &other.max_path, &other.short_ids, &other.w3c, &other.resource)
    }
}

/// `KEY=VALUE,KEY=VALUE` (OpenTelemetry's `OTEL_RESOURCE_ATTRIBUTES`).
fn resource(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| pair.split_once('=').map(|(k, v)| (k.trim().to_string(), v.trim().to_string()));
    text.split(',').filter_map(pair).filter(|(key, _)| !key.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn tracing(tags: Vec<(&str, custom_tag::Value)>) -> Result<Tracing, TracingError> {
        let collector = ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
        let tags = tags.into_iter().map(|(name, value)| ir::CustomTag { name: name.into(), value: Some(value) });
        Tracing::new(&ir::Tracing { collector: Some(collector), tags: tags.collect(), ..Default::default() })
    }

    #[test]
    fn headers_are_kept_only_for_tags_that_read_them() {
        let format = |text: &str| tracing(vec![("t", custom_tag::Value::Format(text.into()))]);
        assert!(!format("%CEL(response.code)% of %UPSTREAM_CLUSTER%").unwrap().wants_headers);
        assert!(format("a %REQ(x-user)%").unwrap().wants_headers);
        assert!(format("%CEL(request.headers['x'])%").unwrap().wants_headers);
        let header = ir::TagSource { name: "x-user".into(), or: String::new() };
        assert!(tracing(vec![("t", custom_tag::Value::Header(header))]).unwrap().wants_headers);
    }

    #[test]
    fn what_cannot_be_traced_by_is_refused() {
        assert!(Tracing::new(&ir::Tracing::default()).is_err(), "no collector");
        for wrong in ["%CEL(a ==)%", "50%", "%NOPE%", "%CEL(a"] {
            assert!(tracing(vec![("t", custom_tag::Value::Format(wrong.into()))]).is_err(), "{wrong}");
        }
        let header = ir::TagSource { name: "a b".into(), or: String::new() };
        assert!(tracing(vec![("t", custom_tag::Value::Header(header))]).is_err());
        let of = |change: fn(&mut ir::Collector)| {
            let mut collector = ir::Collector { service: "c".into(), port: 1, ..Default::default() };
            change(&mut collector);
            Collector::new(&collector)
        };
        assert!(
            of(|c| c.port = 0).is_err() && of(|c| c.protocol = 9).is_err() && of(|c| c.path = "a b".into()).is_err()
        );
        let c = of(|c| {
            c.headers = vec![
                ir::CollectorHeader { name: "authorization".into(), value: "token".into(), ..Default::default() },
                ir::CollectorHeader {
                    name: "x".into(),
                    environment: "KARST_NO_SUCH_VARIABLE".into(),
                    ..Default::default()
                },
            ];
        });
        let c = c.unwrap();
        assert_eq!((c.headers.len(), c.timeout, c.max_path), (1, TIMEOUT, MAX_PATH));
        assert!(!format!("{c:?}").contains("token"), "it is a secret");
    }

    #[test]
    fn attributes_of_the_environment() {
        assert_eq!(resource("a=b, team = x ,=z,c"), [("a".into(), "b".into()), ("team".into(), "x".into())]);
    }
}
