//! The spans of a request that has ended: Envoy's and Istio's tags, by which Kiali finds them, and OpenTelemetry's attributes of
//! HTTP. Names and meanings: Envoy's `http_tracer_impl.cc`, Istio's waypoint tags, OpenTelemetry's semantic conventions for HTTP.

use crate::{
    spans::{
        attribute::{Attribute, Key, Kind, Span, Value},
        context::SpanContext,
        request::{AttemptSpan, RequestSpans},
    },
    telemetry::{flag::ResponseFlag, stream_info::StreamInfo},
};
use http::HeaderValue;
use karst_proxy::state::Workload;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// gRPC statuses that are failures of the server (OpenTelemetry).
const GRPC_SERVER_ERRORS: [u16; 6] = [2, 4, 12, 13, 14, 15];
/// Those that Envoy marks by the tag `error`.
const GRPC_ERRORS: [u16; 7] = [2, 4, 8, 12, 13, 14, 15];
/// Longest text of a client's in a tag, in bytes (paths have a limit of their own): spans are small, whatever it sends.
const MAX_TEXT: usize = 512;

/// This proxy.
#[derive(Debug)]
pub struct Own {
    /// As it introduces itself to the control plane: `waypoint~IP~POD.NS~NS.svc.DOMAIN`.
    pub node_id: Arc<str>,
    /// Istio's default: the trust domain.
    pub mesh_id: Arc<str>,
    pub cluster_id: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

/// What the spans of one request have in common.
struct Ended<'a> {
    info: &'a StreamInfo,
    spans: &'a RequestSpans,
    own: &'a Own,
    workload: Option<&'a Workload>,
    custom: Vec<(Arc<str>, Arc<str>)>,
    cluster: Arc<str>,
    sent: u64,
    end: SystemTime,
}

/// The spans of a request that has ended after this time, its own first, then its attempts in their order. `workload`: this proxy,
/// if it is known. `sent`: bytes that the client was sent.
pub fn spans(
    info: &StreamInfo,
    spans: &RequestSpans,
    own: &Own,
    workload: Option<&Workload>,
    sent: u64,
    took: Duration,
) -> Vec<Span> {
    let (custom, cluster) = (spans.tracing.tags(info, spans.scheme, &own.hostname, sent), info.cluster().into());
    let ended = Ended { info, spans, own, workload, custom, cluster, sent, end: info.time + took };
    let attempts = spans.attempts.iter().enumerate();
    [ended.server()].into_iter().chain(attempts.map(|(n, attempt)| ended.client(n, attempt))).collect()
}

/// Adds to attributes; what is empty is not there.
struct Tags(Vec<Attribute>);

impl Tags {
    fn put(&mut self, key: &'static str, value: impl Into<Value>) {
        let value = value.into();
        let is_empty = match &value {
            Value::Static(text) => text.is_empty(),
            Value::Shared(text) => text.is_empty(),
            Value::Text(text) => text.is_empty(),
            Value::Number(_) => false,
        };
        if !is_empty {
            self.0.push((Key::Known(key), value));
        }
    }
}

fn text(value: Option<&HeaderValue>) -> String {
    let cut = |v: &HeaderValue| String::from_utf8_lossy(&v.as_bytes()[..v.len().min(MAX_TEXT)]).into_owned();
    value.map(cut).unwrap_or_default()
}

fn method(info: &StreamInfo) -> String {
    let method = info.method.as_str();
    method[..method.floor_char_boundary(MAX_TEXT)].to_string()
}

fn or_dash(text: String) -> Value {
    if text.is_empty() { Value::Static("-") } else { Value::Text(text) }
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

impl Ended<'_> {
    fn server(&self) -> Span {
        let (info, spans) = (self.info, self.spans);
        let mut tags = Tags(Vec::with_capacity(56));
        tags.put("component", "proxy");
        tags.put("node_id", self.own.node_id.clone());
        tags.put("zone", self.workload.map_or(Arc::default(), |w| w.zone.clone()));
        tags.put("guid:x-request-id", text(info.request_id.as_ref()));
        tags.put("guid:x-client-trace-id", text(spans.client.as_ref()));
        let host = text(info.authority.as_ref());
        let path = info.path();
        let shown = &path[..path.floor_char_boundary(spans.tracing.collector.max_path)];
        tags.put("http.url", format!("{}://{host}{shown}", spans.scheme));
        tags.put("http.method", method(info));
        tags.put("http.protocol", info.protocol);
        tags.put("downstream_cluster", "-");
        tags.put("user_agent", or_dash(text(info.user_agent.as_ref())));
        tags.put("request_size", info.received.get().to_string());
        tags.put("response_size", self.sent.to_string());
        tags.put("peer.address", info.from.ip().to_string());
        if info.is_grpc {
            tags.put("grpc.path", shown.to_string());
            tags.put("grpc.authority", host);
        }
        self.outcome(&mut tags, Kind::Server, info.answered, info.grpc, info.flag);
        let attempt = spans.attempts.last();
        if let Some(last) = attempt {
            tags.put("upstream_address", last.address.to_string());
        }
        self.mesh(&mut tags, attempt.map(|last| &*last.workload));
        self.server_semantics(&mut tags);
        let name = match info.service() {
            Some(service) => {
                format!("{}:{}/*", service.hostname, info.destination.as_ref().map_or(info.to.port(), |d| d.port))
            }
            None => method(info),
        };
        self.span(
            spans.context,
            spans.parent,
            name,
            Kind::Server,
            (info.time, self.end),
            tags,
            (info.answered, info.grpc),
        )
    }

    fn client(&self, n: usize, attempt: &AttemptSpan) -> Span {
        let info = self.info;
        let status = attempt.status.unwrap_or_default();
        // What was said with the end of the body counts for the answer that the client has got.
        let grpc = if attempt.ended.is_none() { info.grpc.or(attempt.grpc) } else { attempt.grpc };
        let mut tags = Tags(Vec::with_capacity(48));
        tags.put("component", "proxy");
        tags.put("http.protocol", if attempt.http2 { "HTTP/2" } else { "HTTP/1.1" });
        tags.put("peer.address", attempt.address.to_string());
        tags.put("upstream_address", attempt.address.to_string());
        if n > 0 {
            tags.put("retry.count", n.to_string());
        }
        let flag = if attempt.ended.is_none() { info.flag } else { attempt.flag };
        self.outcome(&mut tags, Kind::Client, status, grpc, flag);
        self.mesh(&mut tags, Some(&attempt.workload));
        tags.put("http.request.method", method(info));
        if let Some(chosen) = &info.destination {
            tags.put("server.address", chosen.service.hostname.clone());
            tags.put("server.port", i64::from(chosen.port));
        }
        let path = info.path();
        let shown = &path[..path.floor_char_boundary(self.spans.tracing.collector.max_path)];
        tags.put("url.full", format!("{}://{}{shown}", self.spans.scheme, text(info.authority.as_ref())));
        tags.put("network.peer.address", attempt.address.ip().to_string());
        tags.put("network.peer.port", i64::from(attempt.address.port()));
        tags.put("network.protocol.version", if attempt.http2 { "2" } else { "1.1" });
        if n > 0 {
            tags.put("http.request.resend_count", n as i64);
        }
        let context = SpanContext { span: attempt.span, ..self.spans.context };
        let name = format!("router {}; egress", self.cluster);
        let times = (attempt.began, attempt.ended.unwrap_or(self.end));
        self.span(context, Some(self.spans.context.span), name, Kind::Client, times, tags, (status, grpc))
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one span")]
    fn span(
        &self,
        context: SpanContext,
        parent: Option<u64>,
        name: String,
        kind: Kind,
        (start, end): (SystemTime, SystemTime),
        mut tags: Tags,
        (status, grpc): (u16, Option<u16>),
    ) -> Span {
        for (name, value) in &self.custom {
            // A name stands once, with the value that a user has given it.
            tags.0.retain(|(key, _)| key.as_str() != &**name);
            tags.0.push((Key::Own(name.clone()), Value::Shared(value.clone())));
        }
        let trace_state = self.spans.trace_state.clone();
        let is_error = is_error(kind, status, grpc);
        Span { context, parent, trace_state, name, kind, start, end, attributes: tags.0, is_error }
    }

    /// How it has ended.
    fn outcome(&self, tags: &mut Tags, kind: Kind, status: u16, grpc: Option<u16>, flag: ResponseFlag) {
        tags.put("upstream_cluster", self.cluster.clone());
        tags.put("upstream_cluster.name", self.cluster.clone());
        tags.put("http.status_code", status.to_string());
        tags.put("response_flags", flag.text());
        if status != 0 {
            tags.put("http.response.status_code", i64::from(status));
        }
        if let Some(grpc) = grpc {
            tags.put("grpc.status_code", grpc.to_string());
        }
        if is_tagged(status, grpc) {
            tags.put("error", "true");
        }
        if is_error(kind, status, grpc) {
            let why = match (status, grpc) {
                (0, _) => flag.text().to_string(),
                (200, Some(grpc)) => grpc.to_string(),
                (status, _) => status.to_string(),
            };
            tags.put("error.type", why);
        }
    }

    /// Who this is, and who calls whom. `to`: the endpoint, if one was chosen.
    fn mesh(&self, tags: &mut Tags, to: Option<&Workload>) {
        if self.spans.tracing.istio_tags {
            if let Some(own) = self.workload {
                tags.put("istio.canonical_revision", own.canonical_revision.clone());
                tags.put("istio.canonical_service", own.canonical_name.clone());
            }
            tags.put("istio.mesh_id", self.own.mesh_id.clone());
            tags.put("istio.namespace", self.own.namespace.clone());
            tags.put("istio.cluster_id", self.own.cluster_id.clone());
        }
        // At a gateway the caller is the gateway, as for its metrics, unless a member of the mesh calls it.
        let from = self.info.source.as_deref().or(self.workload.filter(|_| self.info.at_gateway));
        if let Some(from) = from {
            tags.put("istio.source_workload", from.workload_name.clone());
            tags.put("istio.source_namespace", from.namespace.clone());
            tags.put("istio.source_cluster_id", from.cluster.clone());
            tags.put("istio.source_canonical_service", from.canonical_name.clone());
            tags.put("istio.source_canonical_revision", from.canonical_revision.clone());
            tags.put("istio.source_workload_type", from.workload_type);
            tags.put("istio.source_instance_name", from.name.clone());
        }
        if let Some(to) = to {
            tags.put("istio.destination_workload", to.workload_name.clone());
            tags.put("istio.destination_namespace", to.namespace.clone());
            tags.put("istio.destination_cluster_id", to.cluster.clone());
            tags.put("istio.destination_canonical_service", to.canonical_name.clone());
            tags.put("istio.destination_canonical_revision", to.canonical_revision.clone());
            tags.put("istio.destination_workload_type", to.workload_type);
            tags.put("istio.destination_instance_name", to.name.clone());
        }
    }

    /// OpenTelemetry's attributes of the request.
    fn server_semantics(&self, tags: &mut Tags) {
        let info = self.info;
        tags.put("http.request.method", method(info));
        tags.put("url.scheme", self.spans.scheme);
        let (path, query) = info.path().split_once('?').unwrap_or((info.path(), ""));
        let most = self.spans.tracing.collector.max_path;
        tags.put("url.path", path[..path.floor_char_boundary(most)].to_string());
        tags.put("url.query", query[..query.floor_char_boundary(most)].to_string());
        let host = text(info.authority.as_ref());
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &host,
        };
        tags.put("server.address", name.to_string());
        tags.put("server.port", i64::from(info.to.port()));
        let first = info.forwarded_for.as_ref().map(|v| text(Some(v)));
        let first = first.and_then(|all| Some(all.split(',').next()?.trim().to_string()));
        tags.put("client.address", first.unwrap_or_else(|| info.from.ip().to_string()));
        tags.put("network.peer.address", info.from.ip().to_string());
        tags.put("network.peer.port", i64::from(info.from.port()));
        tags.put("network.protocol.version", if info.protocol == "HTTP/2" { "2" } else { "1.1" });
        tags.put("user_agent.original", text(info.user_agent.as_ref()));
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
