//! A record of OpenTelemetry's logs: its body is the line of the log, and its attributes are the fields of the line under the names that
//! the log has in JSON. A request or connection that is traced has its trace.

use crate::{
    spans::{
        context::SpanContext,
        writer::{Tags, delimited, text_value},
    },
    telemetry::{
        access_log::{self, Field},
        stream_info::StreamInfo,
    },
};
use std::time::{Duration, SystemTime};

/// The flags of a sampled span.
const SAMPLED: u32 = 1;

/// Fields of the message as they begin: their number, and the kind of what follows.
mod field {
    /// Eight bytes.
    pub(super) const TIME: u8 = 1 << 3 | 1;
    /// Length and bytes.
    pub(super) const BODY: u8 = 5 << 3 | 2;
    /// Four bytes.
    pub(super) const FLAGS: u8 = 8 << 3 | 5;
    pub(super) const TRACE_ID: u8 = 9 << 3 | 2;
    pub(super) const SPAN_ID: u8 = 10 << 3 | 2;
    pub(super) const OBSERVED: u8 = 11 << 3 | 1;
}

/// A request or connection that has ended.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub info: &'a StreamInfo,
    pub took: Duration,
    /// Bytes that the client was sent.
    pub sent: u64,
    /// None: it is not traced.
    pub trace: Option<SpanContext>,
}

impl Record<'_> {
    /// Appends it to a buffer.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Self { info, took, sent, trace } = *self;
        let took_ms = took.as_millis() as u64;
        for (field, time) in [(field::TIME, info.time), (field::OBSERVED, info.time + took)] {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            out.push(field);
            out.extend_from_slice(&(since.as_nanos() as u64).to_le_bytes());
        }
        text_value(out, field::BODY, &access_log::text_line(info, took_ms, sent));
        let mut attributes = Tags::of_record(out);
        access_log::fields(info, took_ms, sent, |name, value| match value {
            Field::Text(text) => attributes.text(name, text),
            Field::Number(number) => attributes.number(name, number),
            Field::Nothing => {}
        });
        if let Some(trace) = trace {
            out.push(field::FLAGS);
            out.extend_from_slice(&SAMPLED.to_le_bytes());
            delimited(out, field::TRACE_ID, &trace.trace.to_be_bytes());
            delimited(out, field::SPAN_ID, &trace.span.to_be_bytes());
        }
    }
}
