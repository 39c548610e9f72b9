//! Spans in the forms that collectors take: OpenTelemetry's messages (protobuf), and Zipkin's JSON (v2). A message is one buffer that
//! spans are appended to as they end, and that is sent as it is: nothing is built before it is encoded, and nothing is copied after.
//! Records of the log are framed as spans are: the messages around both have the same numbers.

use crate::spans::{
    context::SpanContext,
    writer::{Decimal, Form, Tags, VARINT, delimited, escaped, hexadecimal, varint, varint_length},
};
use bytes::Bytes;
use karst_api::{
    otlp::{AnyValue, InstrumentationScope, KeyValue, Resource, SpanKind, StatusCode, any_value},
    route::CollectorProtocol,
};
use prost::Message as _;

/// What created the spans.
const SCOPE: &str = "karst-waypoint";
/// The flags of a sampled span.
const SAMPLED: u32 = 1;
/// Before a message of gRPC: whether it is compressed, and its length.
const GRPC_HEAD: usize = 5;

/// Fields of OpenTelemetry's messages as they begin: their number, and the kind of what follows.
mod field {
    /// Length and bytes.
    const BYTES: u8 = 2;
    pub(super) const RESOURCE_SPANS: u8 = 1 << 3 | BYTES;
    pub(super) const RESOURCE: u8 = 1 << 3 | BYTES;
    pub(super) const SCOPE_SPANS: u8 = 2 << 3 | BYTES;
    pub(super) const SCOPE: u8 = 1 << 3 | BYTES;
    pub(super) const SPAN: u8 = 2 << 3 | BYTES;
    pub(super) const TRACE_ID: u8 = 1 << 3 | BYTES;
    pub(super) const SPAN_ID: u8 = 2 << 3 | BYTES;
    pub(super) const TRACE_STATE: u8 = 3 << 3 | BYTES;
    pub(super) const PARENT: u8 = 4 << 3 | BYTES;
    pub(super) const NAME: u8 = 5 << 3 | BYTES;
    pub(super) const KIND: u8 = 6 << 3;
    /// Eight bytes.
    pub(super) const START: u8 = 7 << 3 | 1;
    pub(super) const END: u8 = 8 << 3 | 1;
    pub(super) const STATUS: u8 = 15 << 3 | BYTES;
    /// Four bytes; field 16, whose beginning is a varint of two.
    pub(super) const FLAGS: [u8; 2] = [0x85, 1];
    pub(super) const STATUS_CODE: u8 = 3 << 3;
}

/// Whose side of a call a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request, as it has come here.
    Server,
    /// One attempt at an endpoint.
    Client,
}

/// Who creates spans.
#[derive(Clone, Debug, Default)]
pub struct Producer {
    /// `service.name`.
    pub service: String,
    /// Further attributes of the resource; of one name the last counts.
    pub attributes: Vec<(String, String)>,
}

/// What a span says besides its tags.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub context: SpanContext,
    /// None: the root of its trace.
    pub parent: Option<u64>,
    /// W3C's, as it has come.
    pub trace_state: &'a str,
    pub name: &'a str,
    pub kind: Kind,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    /// Its status is an error.
    pub is_error: bool,
}

/// A message to a collector, which spans are appended to.
#[derive(Debug)]
pub struct Message {
    protocol: CollectorProtocol,
    /// OpenTelemetry's field of the resource and that of the scope, which stand before the spans.
    before: [Vec<u8>; 2],
    /// What Zipkin's spans say of who creates them.
    service: Vec<u8>,
    /// Bytes that are kept for what stands before the spans: its lengths follow from theirs.
    room: usize,
    buffer: Vec<u8>,
}

impl Message {
    /// Begins one, in a buffer that may have been used before.
    pub fn begin(protocol: CollectorProtocol, producer: &Producer, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        let (mut before, mut service) = ([vec![], vec![]], vec![]);
        let room = match Form::from(protocol) {
            Form::Otlp => {
                let scope = InstrumentationScope { name: SCOPE.into(), version: env!("CARGO_PKG_VERSION").into() };
                delimited(&mut before[0], field::RESOURCE, &resource(producer).encode_to_vec());
                delimited(&mut before[1], field::SCOPE, &scope.encode_to_vec());
                GRPC_HEAD + before.concat().len() + 2 * (1 + VARINT)
            }
            Form::Zipkin => {
                escaped(&mut service, &producer.service);
                1
            }
        };
        buffer.resize(room, b'[');
        Self { protocol, before, service, room, buffer }
    }

    /// How tags are written in it.
    pub fn form(&self) -> Form {
        self.protocol.into()
    }

    /// Its length so far, in bytes.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Appends a span. `tags` writes its tags, without these names.
    pub fn span(&mut self, head: &Head<'_>, without: &[&str], tags: impl FnOnce(&mut Tags<'_>)) {
        let form = self.form();
        let at = match form {
            Form::Otlp => self.otlp_head(head),
            Form::Zipkin => self.zipkin_head(head),
        };
        tags(&mut Tags::new(&mut self.buffer, form, without));
        match form {
            Form::Otlp => self.otlp_end(head, at),
            Form::Zipkin => self.zipkin_end(),
        }
    }

    /// Appends a record of the log, which is encoded (OpenTelemetry's alone).
    pub fn record(&mut self, record: &[u8]) {
        delimited(&mut self.buffer, field::SPAN, record);
    }

    /// What stands before a span's attributes. Returns where the span's own bytes begin.
    fn otlp_head(&mut self, head: &Head<'_>) -> usize {
        let out = &mut self.buffer;
        // Its length is known at its end; mostly it is of two bytes.
        out.extend_from_slice(&[field::SPAN, 0, 0]);
        let at = out.len();
        delimited(out, field::TRACE_ID, &head.context.trace.to_be_bytes());
        delimited(out, field::SPAN_ID, &head.context.span.to_be_bytes());
        if !head.trace_state.is_empty() {
            delimited(out, field::TRACE_STATE, head.trace_state.as_bytes());
        }
        if let Some(parent) = head.parent {
            delimited(out, field::PARENT, &parent.to_be_bytes());
        }
        delimited(out, field::NAME, head.name.as_bytes());
        let kind = match head.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        };
        out.extend_from_slice(&[field::KIND, kind as u8]);
        for (field, time) in [(field::START, head.start), (field::END, head.end)] {
            out.push(field);
            out.extend_from_slice(&time.to_le_bytes());
        }
        at
    }

    fn otlp_end(&mut self, head: &Head<'_>, at: usize) {
        let out = &mut self.buffer;
        if head.is_error {
            out.extend_from_slice(&[field::STATUS, 2, field::STATUS_CODE, StatusCode::Error as u8]);
        }
        out.extend_from_slice(&field::FLAGS);
        out.extend_from_slice(&SAMPLED.to_le_bytes());
        let length = out.len() - at;
        if (0x80..0x80 << 7).contains(&length) {
            out[at - 2..at].copy_from_slice(&[length as u8 | 0x80, (length >> 7) as u8]);
        } else {
            let mut other = Vec::with_capacity(VARINT);
            varint(&mut other, length as u64);
            drop(out.splice(at - 2..at, other));
        }
    }

    fn zipkin_head(&mut self, head: &Head<'_>) -> usize {
        let out = &mut self.buffer;
        let (trace, at) = (head.context.trace, out.len());
        out.extend_from_slice(b"{\"traceId\":\"");
        hexadecimal(out, trace, if trace >> 64 == 0 { 16 } else { 32 });
        out.extend_from_slice(b"\",\"id\":\"");
        hexadecimal(out, head.context.span.into(), 16);
        if let Some(parent) = head.parent {
            out.extend_from_slice(b"\",\"parentId\":\"");
            hexadecimal(out, parent.into(), 16);
        }
        out.extend_from_slice(b"\",\"name\":\"");
        escaped(out, head.name);
        out.extend_from_slice(match head.kind {
            Kind::Server => b"\",\"kind\":\"SERVER\",\"timestamp\":",
            Kind::Client => b"\",\"kind\":\"CLIENT\",\"timestamp\":",
        });
        // Zipkin counts microseconds, and takes none for a duration that is not known.
        out.extend_from_slice(Decimal::new(head.start / 1000).as_str().as_bytes());
        out.extend_from_slice(b",\"duration\":");
        let took = (head.end.saturating_sub(head.start) / 1000).max(1);
        out.extend_from_slice(Decimal::new(took).as_str().as_bytes());
        out.extend_from_slice(b",\"localEndpoint\":{\"serviceName\":\"");
        out.extend_from_slice(&self.service);
        out.extend_from_slice(b"\"},\"tags\":{");
        at
    }

    fn zipkin_end(&mut self) {
        self.no_comma();
        self.buffer.extend_from_slice(b"}},");
    }

    /// Takes back the comma behind what was the last of its kind.
    fn no_comma(&mut self) {
        self.buffer.pop_if(|last| *last == b',');
    }

    /// All of it, as it is sent: with gRPC's head, if it is for gRPC.
    pub fn finish(mut self) -> Bytes {
        if self.form() == Form::Zipkin {
            self.no_comma();
            self.buffer.push(b']');
            return self.buffer.into();
        }
        let head = self.otlp_message_head();
        let from = self.room - head.len();
        self.buffer[from..self.room].copy_from_slice(&head);
        Bytes::from(self.buffer).slice(from..)
    }

    /// What stands before the spans: at most [`Message::room`].
    fn otlp_message_head(&self) -> Vec<u8> {
        let [resource, scope] = &self.before;
        let scope_spans = scope.len() + self.buffer.len() - self.room;
        let resource_spans = resource.len() + 1 + varint_length(scope_spans as u64) + scope_spans;
        let mut head = Vec::with_capacity(self.room);
        if self.protocol == CollectorProtocol::OtlpGrpc {
            let all = 1 + varint_length(resource_spans as u64) + resource_spans;
            // Not compressed.
            head.push(0);
            head.extend_from_slice(&(all as u32).to_be_bytes());
        }
        head.push(field::RESOURCE_SPANS);
        varint(&mut head, resource_spans as u64);
        head.extend_from_slice(resource);
        head.push(field::SCOPE_SPANS);
        varint(&mut head, scope_spans as u64);
        head.extend_from_slice(scope);
        head
    }
}

/// A message without spans or records, as it is sent: who takes messages takes it, too (OTLP: "the server SHOULD respond with success").
pub fn empty(protocol: CollectorProtocol) -> Bytes {
    match protocol {
        CollectorProtocol::OtlpGrpc => Bytes::from_static(&[0; GRPC_HEAD]),
        CollectorProtocol::OtlpHttp => Bytes::new(),
        CollectorProtocol::Zipkin => Bytes::from_static(b"[]"),
    }
}

/// Who creates the spans, in OpenTelemetry's form.
fn resource(producer: &Producer) -> Resource {
    let own = [("service.name", &producer.service)].map(|(k, v)| (k.to_string(), v.clone()));
    let sdk = [("telemetry.sdk.name", "karst"), ("telemetry.sdk.language", "rust")];
    let sdk = sdk.into_iter().chain([("telemetry.sdk.version", env!("CARGO_PKG_VERSION"))]);
    let sdk = sdk.map(|(k, v)| (k.to_string(), v.to_string()));
    let mut all: Vec<(String, String)> = vec![];
    for (key, value) in own.into_iter().chain(sdk).chain(producer.attributes.iter().cloned()) {
        all.retain(|(k, _)| *k != key);
        all.push((key, value));
    }
    let pair =
        |(key, value)| KeyValue { key, value: Some(AnyValue { value: Some(any_value::Value::StringValue(value)) }) };
    Resource { attributes: all.into_iter().map(pair).collect() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_api::otlp::{ExportTraceServiceRequest, Span};
    use serde_json::json;

    const HEAD: Head<'_> = Head {
        context: SpanContext { trace: 0xab << 64 | 0xcd, span: 0xef },
        parent: Some(0x12),
        trace_state: "a=b",
        name: "s.ns:80/*",
        kind: Kind::Server,
        start: 1_000_000,
        end: 3_000_000,
        is_error: true,
    };

    fn producer() -> Producer {
        let attributes = vec![("service.name".into(), "mine".into()), ("a".into(), "b".into())];
        Producer { service: "w.ns".into(), attributes }
    }

    fn decoded(bytes: &[u8]) -> Vec<Span> {
        let request = ExportTraceServiceRequest::decode(bytes).unwrap();
        request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
    }

    fn some(tags: &mut Tags<'_>) {
        tags.text("component", "proxy");
        tags.text("none", "");
        tags.number("number", 7);
        tags.decimal("decimal", u64::MAX);
        tags.texts("parts", &["", "a\"", "b\\\n"]);
        tags.custom("mine", "");
    }

    #[test]
    fn opentelemetrys_form() {
        let mut message = Message::begin(CollectorProtocol::OtlpHttp, &producer(), b"used before".to_vec());
        message.span(&HEAD, &[], some);
        let bytes = message.finish();
        let request = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
        let all = &request.resource_spans[0];
        let resource = &all.resource.as_ref().unwrap().attributes;
        let names: Vec<&str> = resource.iter().filter(|kv| kv.key == "service.name").map(|kv| &*kv.key).collect();
        assert_eq!((names.len(), resource.len(), all.scope_spans.len()), (1, 5, 1));
        assert_eq!(all.scope_spans[0].scope.as_ref().unwrap().name, SCOPE);
        let text = |key: &str, value: &str| KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }),
        };
        let number = AnyValue { value: Some(any_value::Value::IntValue(7)) };
        let wanted = Span {
            trace_id: (0xab_u128 << 64 | 0xcd).to_be_bytes().into(),
            span_id: 0xef_u64.to_be_bytes().into(),
            trace_state: "a=b".into(),
            parent_span_id: 0x12_u64.to_be_bytes().into(),
            name: "s.ns:80/*".into(),
            kind: SpanKind::Server as i32,
            start_time_unix_nano: 1_000_000,
            end_time_unix_nano: 3_000_000,
            attributes: vec![
                text("component", "proxy"),
                KeyValue { key: "number".into(), value: Some(number) },
                text("decimal", "18446744073709551615"),
                text("parts", "a\"b\\\n"),
                text("mine", ""),
            ],
            status: Some(karst_api::otlp::Status { message: String::new(), code: StatusCode::Error as i32 }),
            flags: SAMPLED,
        };
        assert_eq!(all.scope_spans[0].spans, std::slice::from_ref(&wanted));
        // The bytes are those that the message itself has.
        let spans = vec![wanted];
        let scope_spans = vec![karst_api::otlp::ScopeSpans { scope: all.scope_spans[0].scope.clone(), spans }];
        let resource_spans = vec![karst_api::otlp::ResourceSpans { resource: all.resource.clone(), scope_spans }];
        assert_eq!(bytes, ExportTraceServiceRequest { resource_spans }.encode_to_vec());
    }

    #[test]
    fn spans_of_any_length_are_framed() {
        let mut message = Message::begin(CollectorProtocol::OtlpGrpc, &producer(), vec![]);
        let root = Head { parent: None, trace_state: "", is_error: false, kind: Kind::Client, ..HEAD };
        for length in [0, 100, 128, 16_300, 20_000, 3 << 20] {
            message.span(&root, &[], |tags| tags.custom("k", &"x".repeat(length)));
        }
        let bytes = message.finish();
        let (head, rest) = bytes.split_at(GRPC_HEAD);
        assert_eq!((head[0], u32::from_be_bytes(head[1..].try_into().unwrap()) as usize), (0, rest.len()));
        let spans = decoded(rest);
        let length = |span: &Span| match &span.attributes[0].value.as_ref().unwrap().value {
            Some(any_value::Value::StringValue(text)) => text.len(),
            _ => 0,
        };
        assert_eq!(spans.iter().map(length).collect::<Vec<_>>(), [0, 100, 128, 16_300, 20_000, 3 << 20]);
        assert!(
            spans.iter().all(|s| s.parent_span_id.is_empty() && s.status.is_none() && s.kind() == SpanKind::Client)
        );
    }

    #[test]
    fn a_batch_is_one_buffer() {
        for protocol in [CollectorProtocol::OtlpGrpc, CollectorProtocol::OtlpHttp, CollectorProtocol::Zipkin] {
            let buffer: Vec<u8> = Vec::with_capacity(1 << 16);
            let memory = buffer.as_ptr()..buffer.as_ptr().wrapping_add(1 << 16);
            let mut message = Message::begin(protocol, &producer(), buffer);
            (0..20).for_each(|_| message.span(&HEAD, &[], some));
            let bytes = message.finish();
            assert!(memory.contains(&bytes.as_ptr()) && bytes.len() > 2000, "{protocol:?}: it was copied");
            // And it can be had back.
            let mut back = bytes.try_into_mut().unwrap();
            back.clear();
            let back = Vec::from(back);
            assert_eq!((back.as_ptr(), back.capacity(), back.len()), (memory.start, 1 << 16, 0));
        }
    }

    #[test]
    fn what_a_user_replaces_is_left_out() {
        let mut message = Message::begin(CollectorProtocol::OtlpHttp, &producer(), vec![]);
        message.span(&HEAD, &["number", "component", "parts"], some);
        let keys: Vec<String> = decoded(&message.finish())[0].attributes.iter().map(|kv| kv.key.clone()).collect();
        assert_eq!(keys, ["decimal", "mine"]);
    }

    #[test]
    fn zipkins_form() {
        let mut message = Message::begin(CollectorProtocol::Zipkin, &producer(), vec![]);
        message.span(&HEAD, &[], some);
        let root = Head { parent: None, end: 0, kind: Kind::Client, name: "\"\u{1}é", ..HEAD };
        message.span(&Head { context: SpanContext { trace: 0xcd, span: 1 }, ..root }, &[], |_| {});
        let wanted = json!([{
            "traceId": "00000000000000ab00000000000000cd", "id": "00000000000000ef", "parentId": "0000000000000012",
            "name": "s.ns:80/*", "kind": "SERVER", "timestamp": 1000, "duration": 2000,
            "localEndpoint": {"serviceName": "w.ns"}, "tags": {
                "component": "proxy", "number": "7", "decimal": "18446744073709551615", "parts": "a\"b\\\n", "mine": "",
            },
        }, {
            "traceId": "00000000000000cd", "id": "0000000000000001", "name": "\"\u{1}é", "kind": "CLIENT",
            "timestamp": 1000, "duration": 1, "localEndpoint": {"serviceName": "w.ns"}, "tags": {},
        }]);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&message.finish()).unwrap(), wanted);
        let none = Message::begin(CollectorProtocol::Zipkin, &producer(), vec![]).finish();
        assert_eq!((&none[..], &none), (&b"[]"[..], &empty(CollectorProtocol::Zipkin)));
    }

    #[test]
    fn an_empty_message_has_no_spans() {
        assert!(decoded(&empty(CollectorProtocol::OtlpHttp)).is_empty());
        let by_grpc = empty(CollectorProtocol::OtlpGrpc);
        let (head, rest) = by_grpc.split_at(GRPC_HEAD);
        assert_eq!((head, rest.len()), (&[0; GRPC_HEAD][..], 0), "not compressed, and of no length");
    }
}
