//! The spans of a request that has ended: Envoy's and Istio's tags, by which Kiali finds them, and OpenTelemetry's attributes of
//! HTTP. Names and meanings: Envoy's `http_tracer_impl.cc`, Istio's waypoint tags, OpenTelemetry's semantic conventions for HTTP.

use crate::{
    spans::{
        common::{Common, Destination, Endpoint, Manner, Own},
        context::SpanContext,
        encode::{Head, Kind, Message},
        request::{AttemptSpan, RequestSpans},
        rules::{Custom, Tracing},
        writer::Tags,
    },
    telemetry::{flag::ResponseFlag, stream_info::StreamInfo},
};
use http::HeaderValue;
use karst_proxy::state::Workload;
use std::{
    borrow::Cow,
    fmt::{self, Write},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// gRPC statuses that are failures of the server (OpenTelemetry).
const GRPC_SERVER_ERRORS: [u16; 6] = [2, 4, 12, 13, 14, 15];
/// Those that Envoy marks by the tag `error`.
const GRPC_ERRORS: [u16; 7] = [2, 4, 8, 12, 13, 14, 15];
/// Longest text of a client's in a tag, in bytes (paths have a limit of their own): spans are small, whatever it sends.
const MAX_TEXT: usize = 512;

/// A request that has ended.
#[derive(Clone, Copy)]
pub struct Ended<'a> {
    pub info: &'a StreamInfo,
    pub tracing: &'a Tracing,
    pub spans: &'a RequestSpans,
    /// Bytes that the client was sent.
    pub sent: u64,
    pub took: Duration,
}

/// What the spans of one request have in common.
struct Request<'a> {
    ended: Ended<'a>,
    custom: &'a [Custom<'a>],
    without: &'a [&'a str],
    caller: Rc<Vec<u8>>,
    destination: Rc<Destination>,
    /// What the client has called the host, and the path that is shown.
    host: Cow<'a, str>,
    path: &'a str,
}

/// Writes the spans of a request, its own first, then its attempts in their order. `workload`: this proxy, if it is known.
pub fn write(
    message: &mut Message,
    common: &mut Common,
    (own, workload): (&Own, Option<&Arc<Workload>>),
    ended: Ended<'_>,
) {
    let Ended { info, tracing, spans, sent, .. } = ended;
    let custom = tracing.tags(info, spans.scheme, &own.hostname, sent);
    let without: Vec<&str> = custom.iter().filter(|tag| tag.replaces).map(|tag| tag.name).collect();
    let manner = Manner { form: message.form(), istio_tags: tracing.istio_tags, without: &without, own, workload };
    common.fit(manner);
    // At a gateway the caller is the gateway, as for its metrics, unless a member of the mesh calls it.
    let from = info.source.as_ref().or(workload.filter(|_| info.at_gateway));
    let request = Request {
        ended,
        custom: &custom,
        without: &without,
        caller: common.caller(manner, from),
        destination: common.destination(manner, info),
        host: text(info.authority.as_ref()),
        path: cut(info.path(), tracing.collector.max_path),
    };
    let mut endpoint = |attempt: &AttemptSpan| {
        let to = attempt.to.as_ref().or(info.workload.as_ref())?;
        Some(common.endpoint(manner, to, attempt.http2))
    };
    let last = spans.attempts.last().and_then(&mut endpoint);
    let before = spans.attempts.len().saturating_sub(1);
    let others: Vec<Option<Rc<Endpoint>>> = spans.attempts.iter().take(before).map(&mut endpoint).collect();
    request.server(message, &common.begin(manner), last.as_deref());
    for (n, (attempt, endpoint)) in spans.attempts.iter().zip(others.iter().chain([&last])).enumerate() {
        request.client(message, n, attempt, endpoint.as_deref());
    }
}

/// A text of a client's.
fn text(value: Option<&HeaderValue>) -> Cow<'_, str> {
    let Some(value) = value else { return Cow::Borrowed("") };
    let bytes = &value.as_bytes()[..value.len().min(MAX_TEXT)];
    // Mostly it is a text as it is: this check reads words, the other one bytes.
    str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Is it marked by the tag `error` (Envoy)? 0: there was no answer.
fn is_tagged(status: u16, grpc: Option<u16>) -> bool {
    status == 0 || status >= 500 || grpc.is_some_and(|g| GRPC_ERRORS.contains(&g))
}

/// Is the status of the span an error (OpenTelemetry)? A server's is not, where the client is to blame.
fn is_error(kind: Kind, status: u16, grpc: Option<u16>) -> bool {
    match kind {
        Kind::Server => status == 0 || status >= 500 || grpc.is_some_and(|g| GRPC_SERVER_ERRORS.contains(&g)),
        Kind::Client => status == 0 || status >= 400 || grpc.is_some_and(|g| g != 0),
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// How something has ended: status (0: there was no answer), gRPC's, flag.
#[derive(Clone, Copy)]
struct Outcome {
    kind: Kind,
    status: u16,
    grpc: Option<u16>,
    flag: ResponseFlag,
}

impl Outcome {
    fn is_error(self) -> bool {
        is_error(self.kind, self.status, self.grpc)
    }

    fn write(self, tags: &mut Tags<'_>) {
        let Outcome { status, grpc, flag, .. } = self;
        tags.decimal("http.status_code", status.into());
        tags.text("response_flags", flag.text());
        if status != 0 {
            tags.number("http.response.status_code", status.into());
        }
        if let Some(grpc) = grpc {
            tags.decimal("grpc.status_code", grpc.into());
        }
        if is_tagged(status, grpc) {
            tags.text("error", "true");
        }
        if self.is_error() {
            match (status, grpc) {
                (0, _) => tags.text("error.type", flag.text()),
                (200, Some(grpc)) => tags.decimal("error.type", grpc.into()),
                (status, _) => tags.decimal("error.type", status.into()),
            }
        }
    }
}

impl Request<'_> {
    fn server(&self, message: &mut Message, begin: &[u8], last: Option<&Endpoint>) {
        let Ended { info, spans, sent, took, .. } = self.ended;
        let outcome = Outcome { kind: Kind::Server, status: info.answered, grpc: info.grpc, flag: info.flag };
        let method = cut(info.method.as_str(), MAX_TEXT);
        let head = Head {
            context: spans.context,
            parent: spans.parent,
            trace_state: &spans.trace_state,
            name: self.destination.request.as_deref().unwrap_or(method),
            kind: Kind::Server,
            start: self.moment(Duration::ZERO),
            end: self.moment(took),
            is_error: outcome.is_error(),
        };
        let peer = Address::new(info.from.ip());
        message.span(&head, self.without, |tags| {
            tags.written(begin);
            tags.text("guid:x-request-id", &text(info.request_id.as_ref()));
            tags.text("guid:x-client-trace-id", &text(spans.client.as_ref()));
            tags.texts("http.url", &[spans.scheme, "://", &*self.host, self.path]);
            tags.text("http.method", method);
            tags.text("http.protocol", info.protocol);
            tags.text("downstream_cluster", "-");
            let user_agent = text(info.user_agent.as_ref());
            tags.text("user_agent", if user_agent.is_empty() { "-" } else { &user_agent });
            tags.decimal("request_size", info.received.get());
            tags.decimal("response_size", sent);
            tags.text("peer.address", peer.as_str());
            if info.is_grpc {
                tags.text("grpc.path", self.path);
                tags.text("grpc.authority", &self.host);
            }
            tags.written(&self.destination.cluster);
            outcome.write(tags);
            if let Some(last) = last {
                tags.written(&last.address);
            }
            tags.written(&self.caller);
            if let Some(last) = last {
                tags.written(&last.mesh);
            }
            self.server_semantics(tags, method, peer.as_str(), &user_agent);
            self.custom(tags);
        });
    }

    /// OpenTelemetry's attributes of the request.
    fn server_semantics(&self, tags: &mut Tags<'_>, method: &str, peer: &str, user_agent: &str) {
        let Ended { info, tracing, spans, .. } = self.ended;
        tags.text("http.request.method", method);
        tags.text("url.scheme", spans.scheme);
        let (path, query) = info.path().split_once('?').unwrap_or((info.path(), ""));
        let most = tracing.collector.max_path;
        tags.text("url.path", cut(path, most));
        tags.text("url.query", cut(query, most));
        let name = match self.host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &*self.host,
        };
        tags.text("server.address", name);
        tags.number("server.port", info.to.port().into());
        let forwarded = info.forwarded_for.as_ref().map(|all| text(Some(all)));
        let client = forwarded.as_deref().map_or(peer, |all| all.split(',').next().unwrap_or_default().trim());
        tags.text("client.address", client);
        tags.text("network.peer.address", peer);
        tags.number("network.peer.port", info.from.port().into());
        tags.text("network.protocol.version", if info.protocol == "HTTP/2" { "2" } else { "1.1" });
        tags.text("user_agent.original", user_agent);
    }

    fn client(&self, message: &mut Message, n: usize, attempt: &AttemptSpan, endpoint: Option<&Endpoint>) {
        let Ended { info, spans, took, .. } = self.ended;
        let is_last = attempt.ended.is_none();
        let outcome = Outcome {
            kind: Kind::Client,
            status: attempt.status.unwrap_or_default(),
            // What was said with the end of the body counts for the answer that the client has got.
            grpc: if is_last { info.grpc.or(attempt.grpc) } else { attempt.grpc },
            flag: if is_last { info.flag } else { attempt.flag },
        };
        let after = |moment: Instant| moment.into_std().saturating_duration_since(info.started).min(took);
        let head = Head {
            context: SpanContext { span: attempt.span, ..spans.context },
            parent: Some(spans.context.span),
            trace_state: &spans.trace_state,
            name: &self.destination.attempt,
            kind: Kind::Client,
            start: self.moment(after(attempt.began)),
            end: self.moment(attempt.ended.map_or(took, after)),
            is_error: outcome.is_error(),
        };
        message.span(&head, self.without, |tags| {
            if let Some(endpoint) = endpoint {
                tags.written(&endpoint.begin);
            }
            if n > 0 {
                tags.decimal("retry.count", n as u64);
            }
            tags.written(&self.destination.cluster);
            outcome.write(tags);
            tags.written(&self.caller);
            if let Some(endpoint) = endpoint {
                tags.written(&endpoint.mesh);
            }
            tags.text("http.request.method", cut(info.method.as_str(), MAX_TEXT));
            tags.written(&self.destination.server);
            tags.texts("url.full", &[spans.scheme, "://", &*self.host, self.path]);
            if let Some(endpoint) = endpoint {
                tags.written(&endpoint.end);
            }
            if n > 0 {
                tags.number("http.request.resend_count", n as u64);
            }
            self.custom(tags);
        });
    }

    /// A name stands once, with the value that a user has given it.
    fn custom(&self, tags: &mut Tags<'_>) {
        self.custom.iter().for_each(|tag| tags.custom(tag.name, &tag.value));
    }

    /// So long after it began, in nanoseconds since 1970.
    fn moment(&self, after: Duration) -> u64 {
        nanoseconds(self.ended.info.time + after)
    }
}

/// An IP address as text, without an allocation.
struct Address {
    text: [u8; 48],
    length: usize,
}

impl Address {
    fn new(ip: IpAddr) -> Self {
        let mut out = Self { text: [0; 48], length: 0 };
        // The longest has 39.
        let _ = write!(out, "{ip}");
        out
    }

    fn as_str(&self) -> &str {
        str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

impl Write for Address {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let to = self.text.get_mut(self.length..self.length + part.len()).ok_or(fmt::Error)?;
        to.copy_from_slice(part.as_bytes());
        self.length += part.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_is_cut() {
        let long = HeaderValue::from_bytes(&[b'a'; 10 * MAX_TEXT]);
        assert_eq!(text(long.ok().as_ref()).len(), MAX_TEXT);
        assert_eq!((&*text(Some(&HeaderValue::from_static("curl"))), &*text(None)), ("curl", ""));
    }

    #[test]
    fn addresses_of_any_length() {
        for ip in ["10.0.0.1", "::", "2001:db8:1111:2222:3333:4444:5555:6666", "::ffff:255.255.255.255"] {
            assert_eq!(ip.parse().map(Address::new).map_or(String::new(), |a| a.as_str().to_string()), ip);
        }
    }

    #[test]
    fn errors_are_marked_by_both_rules() {
        let table = [
            // Status, gRPC's, the tag, a server's status, a client's.
            (200, None, false, false, false),
            (404, None, false, false, true),
            (503, None, true, true, true),
            (0, None, true, true, true),
            (200, Some(0), false, false, false),
            (200, Some(5), false, false, true),
            (200, Some(8), true, false, true),
            (200, Some(14), true, true, true),
        ];
        for (status, grpc, tag, server, client) in table {
            assert_eq!(is_tagged(status, grpc), tag, "{status} {grpc:?}");
            assert_eq!(is_error(Kind::Server, status, grpc), server, "{status} {grpc:?}");
            assert_eq!(is_error(Kind::Client, status, grpc), client, "{status} {grpc:?}");
        }
    }
}
