//! A span's place in its trace, as headers carry it: W3C's `traceparent` (Trace Context level 1) and Zipkin's B3, in one header or
//! in several. Pure; what is not of its form is told apart from what is not there, since it is then passed on untouched (Envoy).

use http::{HeaderMap, HeaderName, HeaderValue};
pub use karst_proxy::trace::{SpanContext, TRACEPARENT};
use karst_proxy::trace::{digits, header, number};

/// What vendors say of a W3C trace.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// All of B3 in one header.
pub const B3: HeaderName = HeaderName::from_static("b3");
/// B3's trace.
pub const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
/// B3's span.
pub const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
/// The parent of B3's span.
pub const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
/// B3's decision.
pub const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
/// B3's debug flag: 1 means sampled.
pub const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What a request's headers say of its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Nothing.
    Absent,
    /// Something that is not of its form.
    Malformed,
    /// The caller's span, if it has one, and what has been decided, if it has.
    Known { caller: Option<SpanContext>, sampled: Option<bool> },
}

/// Reads W3C's header.
pub fn w3c(headers: &HeaderMap) -> Incoming {
    let mut all = headers.get_all(TRACEPARENT).iter();
    match (all.next(), all.next()) {
        (None, _) => Incoming::Absent,
        (Some(one), None) => traceparent(one.as_bytes()).unwrap_or(Incoming::Malformed),
        (Some(_), Some(_)) => Incoming::Malformed,
    }
}

fn traceparent(text: &[u8]) -> Option<Incoming> {
    let (caller, sampled) = SpanContext::parse(text)?;
    Some(Incoming::Known { caller: Some(caller), sampled: Some(sampled) })
}

/// Reads B3, the one header before the several.
pub fn b3(headers: &HeaderMap) -> Incoming {
    if let Some(one) = headers.get(B3) {
        return b3_single(one.as_bytes()).unwrap_or(Incoming::Malformed);
    }
    let (trace, span) = (headers.get(B3_TRACE), headers.get(B3_SPAN));
    let sampled = match (headers.get(B3_FLAGS), headers.get(B3_SAMPLED).map(HeaderValue::as_bytes)) {
        (Some(flags), _) if flags.as_bytes() == b"1" => Some(true),
        (_, Some(b"1" | b"true")) => Some(true),
        (_, Some(b"0" | b"false")) => Some(false),
        (_, Some(_)) => return Incoming::Malformed,
        (_, None) => None,
    };
    match (trace, span) {
        (None, None) if sampled.is_none() => Incoming::Absent,
        (None, None) => Incoming::Known { caller: None, sampled },
        (Some(trace), Some(span)) => match ids(trace.as_bytes(), span.as_bytes()) {
            Some(caller) => Incoming::Known { caller: Some(caller), sampled },
            None => Incoming::Malformed,
        },
        (Some(_), None) | (None, Some(_)) => Incoming::Malformed,
    }
}

/// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or a decision alone.
fn b3_single(text: &[u8]) -> Option<Incoming> {
    let mut parts = text.split(|b| *b == b'-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        return Some(Incoming::Known { caller: None, sampled: Some(decision(first)?) });
    };
    let caller = ids(first, span)?;
    let sampled = parts.next().map_or(Some(None), |s| decision(s).map(Some))?;
    match parts.next() {
        Some(parent) if parent.len() != 16 || number(parent).is_none() => return None,
        _ if parts.next().is_some() => return None,
        _ => {}
    }
    Some(Incoming::Known { caller: Some(caller), sampled })
}

fn decision(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"d" => Some(true),
        b"0" => Some(false),
        _ => None,
    }
}

fn ids(trace: &[u8], span: &[u8]) -> Option<SpanContext> {
    if ![16, 32].contains(&trace.len()) || span.len() != 16 {
        return None;
    }
    let caller = SpanContext { trace: number(trace)?, span: number(span)? as u64 };
    (caller.trace != 0 && caller.span != 0).then_some(caller)
}

fn value(text: &[u8]) -> HeaderValue {
    // All of it is ASCII that a header may have.
    HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static("-"))
}

/// A trace as B3 has it: of 64 bits where it is no longer than that.
fn b3_trace(context: SpanContext) -> ([u8; 32], usize) {
    let mut out = [0; 32];
    digits(context.trace, &mut out);
    (out, if context.trace >> 64 == 0 { 16 } else { 0 })
}

/// Writes B3's several headers, and the one header where there was one: who reads it looks there first.
pub fn write_b3(context: SpanContext, parent: Option<u64>, sampled: bool, headers: &mut HeaderMap) {
    let (trace, from) = b3_trace(context);
    let (mut span, mut above) = ([0; 16], [0; 16]);
    digits(context.span.into(), &mut span);
    digits(parent.unwrap_or_default().into(), &mut above);
    let decided = if sampled { "1" } else { "0" };
    if headers.contains_key(B3) {
        let mut one = Vec::with_capacity(68);
        one.extend_from_slice(&trace[from..]);
        for part in [&span[..], decided.as_bytes()].into_iter().chain(parent.map(|_| &above[..])) {
            one.push(b'-');
            one.extend_from_slice(part);
        }
        headers.insert(B3, value(&one));
    }
    headers.insert(B3_TRACE, if from == 0 { header(trace) } else { value(&trace[from..]) });
    headers.insert(B3_SPAN, header(span));
    headers.insert(B3_SAMPLED, HeaderValue::from_static(decided));
    match parent {
        Some(_) => drop(headers.insert(B3_PARENT, header(above))),
        None => drop(headers.remove(B3_PARENT)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
    const CALLER: SpanContext = SpanContext { trace: TRACE, span: SPAN };

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn w3c_in_and_out() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(CALLER.to_traceparent(true), text);
        let read = |text: &str| w3c(&headers(&[(TRACEPARENT, text)]));
        assert_eq!(read(text), Incoming::Known { caller: Some(CALLER), sampled: Some(true) });
        let off = CALLER.to_traceparent(false);
        assert_eq!(read(off.to_str().unwrap()), Incoming::Known { caller: Some(CALLER), sampled: Some(false) });
        assert_eq!(w3c(&HeaderMap::new()), Incoming::Absent);
        for wrong in [
            "",
            "00",
            &text[..54],
            &format!("{text}-00"),
            &text.replace("00-4", "ff-4"),
            &text.replace("-01", "_01"),
            &text.replace("4bf9", "xbf9"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(read(wrong), Incoming::Malformed, "{wrong}");
        }
        let mut two = headers(&[(TRACEPARENT, text)]);
        two.append(TRACEPARENT, HeaderValue::from_static("00"));
        assert_eq!(w3c(&two), Incoming::Malformed);
    }

    #[test]
    fn b3_in() {
        let read = |text: &str| b3(&headers(&[(B3, text)]));
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let known = |sampled| Incoming::Known { caller: Some(CALLER), sampled };
        assert_eq!(read(&format!("{trace}-{span}")), known(None));
        assert_eq!(read(&format!("{trace}-{span}-d")), known(Some(true)));
        assert_eq!(read(&format!("{trace}-{span}-0-{span}")), known(Some(false)));
        assert_eq!(read("0"), Incoming::Known { caller: None, sampled: Some(false) });
        for wrong in ["", "2", "a-b", &format!("{trace}-{span}-7"), &format!("{trace}-{span}-1-{span}-1")] {
            assert_eq!(read(wrong), Incoming::Malformed, "{wrong}");
        }
        let several =
            |more: &[(HeaderName, &str)]| b3(&headers(&[&[(B3_TRACE, trace), (B3_SPAN, span)][..], more].concat()));
        assert_eq!(several(&[]), known(None));
        assert_eq!(several(&[(B3_SAMPLED, "true")]), known(Some(true)));
        assert_eq!(several(&[(B3_SAMPLED, "0"), (B3_FLAGS, "1")]), known(Some(true)));
        assert_eq!(several(&[(B3_SAMPLED, "maybe")]), Incoming::Malformed);
        assert_eq!(b3(&headers(&[(B3_TRACE, trace)])), Incoming::Malformed);
        assert_eq!(b3(&HeaderMap::new()), Incoming::Absent);
        let short = b3(&headers(&[(B3_TRACE, "a3ce929d0e0e4736"), (B3_SPAN, span)]));
        let caller = SpanContext { trace: 0xa3ce_929d_0e0e_4736, span: SPAN };
        assert_eq!(short, Incoming::Known { caller: Some(caller), sampled: None });
    }

    #[test]
    fn b3_out() {
        let mut out = HeaderMap::new();
        write_b3(CALLER, Some(0xab), true, &mut out);
        assert_eq!(out.len(), 4, "no single header where there was none");
        assert_eq!((&out[B3_PARENT], &out[B3_SAMPLED]), (&"00000000000000ab".parse().unwrap(), &"1".parse().unwrap()));
        assert_eq!(b3(&out), Incoming::Known { caller: Some(CALLER), sampled: Some(true) });
        out.insert(B3, HeaderValue::from_static("0"));
        let short = SpanContext { trace: 0xa3ce_929d_0e0e_4736, span: SPAN };
        write_b3(short, None, false, &mut out);
        assert_eq!(
            (&out[B3], out.contains_key(B3_PARENT)),
            (&"a3ce929d0e0e4736-00f067aa0ba902b7-0".parse().unwrap(), false)
        );
        assert_eq!(out[B3_TRACE], "a3ce929d0e0e4736");
    }
}
