//! A line of the access log.

use crate::telemetry::stream_info::StreamInfo;
use http::HeaderValue;
use karst_core::untrusted::Untrusted;
use karst_rt::log;
use std::{
    borrow::Cow,
    fmt::{self, Display, Write as _},
};

/// Envoy's default line, as Istio has it.
pub fn line(info: &StreamInfo, took_ms: u128, sent: u64) -> String {
    let time = log::timestamp(info.time);
    let cluster = info.cluster();
    let upstream = info.workload.as_ref().map(|(_, a)| a.to_string()).unwrap_or_default();
    let (details, termination) = match info.carried {
        Some(_) => ("", &*info.details),
        None => (&*info.details, ""),
    };
    let (forwarded_for, user_agent) = (text(&info.forwarded_for), text(&info.user_agent));
    let (request_id, authority) = (text(&info.request_id), text(&info.authority));
    let sni = info.sni.as_deref().unwrap_or_default();
    if log::format() == log::Format::Json {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_string());
        let mut line = serde_json::json!({
            "start_time": time, "method": info.method.as_str(), "path": info.path(), "protocol": info.protocol,
            "response_code": info.answered, "response_flags": info.flag.text(),
            "response_code_details": some(details), "connection_termination_details": some(termination),
            "upstream_transport_failure_reason": some(&info.error), "bytes_received": info.received.get(),
            "bytes_sent": sent, "duration": took_ms, "upstream_service_time": info.upstream_ms,
            "x_forwarded_for": some(&forwarded_for), "user_agent": some(&user_agent), "request_id": some(&request_id),
            "authority": some(&authority), "upstream_host": some(&upstream), "upstream_cluster": cluster,
            "upstream_local_address": null, "downstream_local_address": info.to.to_string(),
            "downstream_remote_address": info.from.to_string(), "downstream_peer": info.principal(),
            "requested_server_name": some(sni), "route_name": info.route,
        });
        if let (Some(trace), Some(fields)) = (&info.trace, line.as_object_mut()) {
            fields.insert("trace_id".into(), trace.trace_id().into());
            fields.insert("span_id".into(), trace.span_id().into());
        }
        return line.to_string();
    }
    let mut out = String::with_capacity(500);
    let _ = write!(
        out,
        "[{time}] \"{} {} {}\" {} {} {} {} \"{}\" {} {sent} {took_ms} ",
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
        "\"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {cluster} - {} {} {} \"{}\"",
        Or(&forwarded_for),
        Or(&user_agent),
        Or(&request_id),
        Or(&authority),
        Or(&upstream),
        info.to,
        info.from,
        Or(sni),
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
