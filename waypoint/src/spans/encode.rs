//! Spans in the forms that collectors take: OpenTelemetry's messages, and Zipkin's JSON (v2).

use crate::spans::attribute::{Attribute, Kind, Span, Value};
use karst_api::otlp::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span as OtlpSpan, SpanKind, Status, StatusCode, any_value,
};
use prost::Message;
use serde_json::{Map, json};
use std::time::{Duration, SystemTime};

/// What created the spans.
const SCOPE: &str = "karst-waypoint";
/// The flags of a sampled span.
const SAMPLED: u32 = 1;

/// Who creates spans.
#[derive(Clone, Debug, Default)]
pub struct Producer {
    /// `service.name`.
    pub service: String,
    /// Further attributes of the resource; of one name the last counts.
    pub attributes: Vec<(String, String)>,
}

/// As OpenTelemetry's `ExportTraceServiceRequest`, in protobuf.
pub fn otlp<'a>(producer: &Producer, spans: impl Iterator<Item = &'a Span>) -> Vec<u8> {
    let own = [("service.name", &producer.service)].map(|(k, v)| (k.to_string(), v.clone()));
    let sdk = [("telemetry.sdk.name", "karst"), ("telemetry.sdk.language", "rust")];
    let sdk = sdk.into_iter().chain([("telemetry.sdk.version", env!("CARGO_PKG_VERSION"))]);
    let sdk = sdk.map(|(k, v)| (k.to_string(), v.to_string()));
    let mut all: Vec<(String, String)> = vec![];
    for (key, value) in own.into_iter().chain(sdk).chain(producer.attributes.iter().cloned()) {
        all.retain(|(k, _)| *k != key);
        all.push((key, value));
    }
    let attributes = all.into_iter().map(|(key, value)| pair(key, any_value::Value::StringValue(value))).collect();
    let scope = InstrumentationScope { name: SCOPE.into(), version: env!("CARGO_PKG_VERSION").into() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: spans.map(otlp_span).collect() }];
    let resource_spans = vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn pair(key: String, value: any_value::Value) -> KeyValue {
    KeyValue { key, value: Some(AnyValue { value: Some(value) }) }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

fn otlp_span(span: &Span) -> OtlpSpan {
    let attribute = |(key, value): &Attribute| {
        let value = match value {
            Value::Number(n) => any_value::Value::IntValue(*n),
            text => any_value::Value::StringValue(as_text(text)),
        };
        pair(key.as_str().into(), value)
    };
    let status = span.is_error.then(|| Status { message: String::new(), code: StatusCode::Error as i32 });
    OtlpSpan {
        trace_id: span.context.trace.to_be_bytes().into(),
        span_id: span.context.span.to_be_bytes().into(),
        trace_state: span.trace_state.clone(),
        parent_span_id: span.parent.map(|parent| parent.to_be_bytes().into()).unwrap_or_default(),
        name: span.name.clone(),
        kind: match span.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        } as i32,
        start_time_unix_nano: nanoseconds(span.start),
        end_time_unix_nano: nanoseconds(span.end),
        attributes: span.attributes.iter().map(attribute).collect(),
        status,
        flags: SAMPLED,
    }
}

fn as_text(value: &Value) -> String {
    match value {
        Value::Static(text) => (*text).into(),
        Value::Shared(text) => text.to_string(),
        Value::Text(text) => text.clone(),
        Value::Number(n) => n.to_string(),
    }
}

/// As Zipkin's list of spans, in JSON.
pub fn zipkin<'a>(producer: &Producer, spans: impl Iterator<Item = &'a Span>) -> Vec<u8> {
    let all: Vec<serde_json::Value> = spans.map(|span| zipkin_span(producer, span)).collect();
    serde_json::Value::from(all).to_string().into_bytes()
}

fn zipkin_span(producer: &Producer, span: &Span) -> serde_json::Value {
    let trace = span.context.trace;
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Zipkin counts microseconds, and takes none for a duration that is not known.
    let took = span.end.duration_since(span.start).unwrap_or_default().max(Duration::from_micros(1));
    let tags: Map<String, serde_json::Value> =
        span.attributes.iter().map(|(key, value)| (key.as_str().to_string(), as_text(value).into())).collect();
    let mut out = json!({
        "traceId": if trace >> 64 == 0 { format!("{trace:016x}") } else { format!("{trace:032x}") },
        "id": format!("{:016x}", span.context.span),
        "name": span.name,
        "kind": match span.kind { Kind::Server => "SERVER", Kind::Client => "CLIENT" },
        "timestamp": since(span.start).as_micros() as u64,
        "duration": took.as_micros() as u64,
        "localEndpoint": {"serviceName": producer.service},
        "tags": tags,
    });
    if let Some(parent) = span.parent {
        out["parentId"] = format!("{parent:016x}").into();
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::spans::{attribute::Key, context::SpanContext};

    fn span() -> Span {
        Span {
            context: SpanContext { trace: 0xab << 64 | 0xcd, span: 0xef },
            parent: Some(0x12),
            trace_state: "a=b".into(),
            name: "s.ns:80/*".into(),
            kind: Kind::Server,
            start: SystemTime::UNIX_EPOCH + Duration::from_millis(1),
            end: SystemTime::UNIX_EPOCH + Duration::from_millis(3),
            attributes: vec![
                (Key::Known("component"), Value::Static("proxy")),
                (Key::Own("mine".into()), Value::Number(7)),
            ],
            is_error: true,
        }
    }

    #[test]
    fn opentelemetrys_form() {
        let attributes = vec![("service.name".into(), "mine".into()), ("a".into(), "b".into())];
        let bytes = otlp(&Producer { service: "w.ns".into(), attributes }, [span()].iter());
        let request = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
        let all = &request.resource_spans[0];
        let resource = &all.resource.as_ref().unwrap().attributes;
        let names: Vec<&str> = resource.iter().filter(|kv| kv.key == "service.name").map(|kv| &*kv.key).collect();
        assert_eq!((names.len(), resource.len()), (1, 5));
        let span = &all.scope_spans[0].spans[0];
        assert_eq!((span.trace_id.len(), span.span_id[7], span.parent_span_id[7]), (16, 0xef, 0x12));
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 2_000_000);
        assert_eq!((span.kind(), span.status.as_ref().unwrap().code()), (SpanKind::Server, StatusCode::Error));
        assert_eq!(span.attributes[1].value.as_ref().unwrap().value, Some(any_value::Value::IntValue(7)));
    }

    #[test]
    fn zipkins_form() {
        let bytes = zipkin(&Producer { service: "w.ns".into(), attributes: vec![] }, [span()].iter());
        let wanted = json!([{
            "traceId": "00000000000000ab00000000000000cd", "id": "00000000000000ef", "parentId": "0000000000000012",
            "name": "s.ns:80/*", "kind": "SERVER", "timestamp": 1000, "duration": 2000,
            "localEndpoint": {"serviceName": "w.ns"}, "tags": {"component": "proxy", "mine": "7"},
        }]);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(), wanted);
    }
}
