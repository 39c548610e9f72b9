//! A line of the access log: as text or as JSON, and its fields.

use crate::telemetry::stream_info::StreamInfo;
use http::HeaderValue;
use karst_core::untrusted::Untrusted;
use karst_rt::log;
use std::{
    borrow::Cow,
    fmt::{self, Display, Write as _},
};

/// A value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    Text(&'a str),
    Number(u64),
    Nothing,
}

/// A text; what is empty is nothing.
fn some(text: &str) -> Field<'_> {
    if text.is_empty() { Field::Nothing } else { Field::Text(text) }
}

/// The details of an answer, and those of the end of a connection: a line has one of both.
fn details(info: &StreamInfo) -> (&str, &str) {
    match info.carried {
        Some(_) => ("", &*info.details),
        None => (&*info.details, ""),
    }
}

fn upstream(info: &StreamInfo) -> String {
    info.workload.as_ref().map(|(_, a)| a.to_string()).unwrap_or_default()
}

/// The fields of a line by Envoy's names, but for those of a trace.
pub fn fields(info: &StreamInfo, took_ms: u64, sent: u64, mut tell: impl FnMut(&'static str, Field<'_>)) {
    let (details, termination) = details(info);
    tell("start_time", Field::Text(&log::timestamp(info.time)));
    tell("method", Field::Text(info.method.as_str()));
    tell("path", Field::Text(info.path()));
    tell("protocol", Field::Text(info.protocol));
    tell("response_code", Field::Number(info.answered.into()));
    tell("response_flags", Field::Text(info.flag.text()));
    tell("response_code_details", some(details));
    tell("connection_termination_details", some(termination));
    tell("upstream_transport_failure_reason", some(&info.error));
    tell("bytes_received", Field::Number(info.received.get()));
    tell("bytes_sent", Field::Number(sent));
    tell("duration", Field::Number(took_ms));
    tell("upstream_service_time", info.upstream_ms.map_or(Field::Nothing, Field::Number));
    tell("x_forwarded_for", some(&text(&info.forwarded_for)));
    tell("user_agent", some(&text(&info.user_agent)));
    tell("request_id", some(&text(&info.request_id)));
    tell("authority", some(&text(&info.authority)));
    tell("upstream_host", some(&upstream(info)));
    tell("upstream_cluster", Field::Text(&info.cluster()));
    tell("upstream_local_address", Field::Nothing);
    tell("downstream_local_address", Field::Text(&info.to.to_string()));
    tell("downstream_remote_address", Field::Text(&info.from.to_string()));
    tell("downstream_peer", Field::Text(info.principal()));
    tell("requested_server_name", some(info.sni.as_deref().unwrap_or_default()));
    tell("route_name", Field::Text(&info.route));
}

/// A line of the log.
pub fn line(info: &StreamInfo, took_ms: u64, sent: u64) -> String {
    match log::format() {
        log::Format::Text => text_line(info, took_ms, sent),
        log::Format::Json => json_line(info, took_ms, sent),
    }
}

fn json_line(info: &StreamInfo, took_ms: u64, sent: u64) -> String {
    let mut all = serde_json::Map::new();
    fields(info, took_ms, sent, |name, field| {
        let value: serde_json::Value = match field {
            Field::Text(text) => text.into(),
            Field::Number(number) => number.into(),
            Field::Nothing => serde_json::Value::Null,
        };
        all.insert(name.into(), value);
    });
    if let Some(trace) = &info.trace {
        all.insert("trace_id".into(), trace.trace_id().into());
        all.insert("span_id".into(), trace.span_id().into());
    }
    serde_json::Value::Object(all).to_string()
}

/// Envoy's default line, as Istio has it.
pub fn text_line(info: &StreamInfo, took_ms: u64, sent: u64) -> String {
    let (details, termination) = details(info);
    let (forwarded_for, user_agent) = (text(&info.forwarded_for), text(&info.user_agent));
    let (request_id, authority) = (text(&info.request_id), text(&info.authority));
    let mut out = String::with_capacity(500);
    let _ = write!(
        out,
        "[{}] \"{} {} {}\" {} {} {} {} \"{}\" {} {sent} {took_ms} ",
        log::timestamp(info.time),
        info.method,
        Or(info.path()),
        info.protocol,
        info.answered,
        info.flag.text(),
        Or(details),
        Or(termination),
        Or(&info.error),
        info.received.get(),
    );
    let _ = match info.upstream_ms {
        Some(ms) => write!(out, "{ms} "),
        None => write!(out, "- "),
    };
    let _ = write!(
        out,
        "\"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {} - {} {} {} \"{}\"",
        Or(&forwarded_for),
        Or(&user_agent),
        Or(&request_id),
        Or(&authority),
        Or(&upstream(info)),
        info.cluster(),
        info.to,
        info.from,
        Or(info.sni.as_deref().unwrap_or_default()),
        Or(&info.route),
    );
    if let Some(trace) = &info.trace {
        let _ = write!(out, " trace_id={} span_id={}", trace.trace_id(), trace.span_id());
    }
    out
}

fn text(v: &Option<HeaderValue>) -> Cow<'_, str> {
    v.as_ref().map_or(Cow::Borrowed(""), |v| String::from_utf8_lossy(v.as_bytes()))
}

/// Peers' text, or a dash.
struct Or<'a>(&'a str);

impl Display for Or<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("-") } else { Untrusted(self.0).fmt(f) }
    }
}

/// Response code details in braces, or the like, from a sentence: without what parts the fields of a line.
pub fn one_word(s: &str) -> String {
    s.replace(|c: char| c.is_whitespace() || c.is_control() || c == '"', "_")
}

/// Writes a line.
pub fn write(line: String) {
    #[cfg(any(test, feature = "fuzz"))]
    crate::testing::LINES.with_borrow_mut(|l| l.push(line.clone()));
    log::line(line);
}
