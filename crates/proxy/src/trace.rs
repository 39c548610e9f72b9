//! A span's place in its trace, and W3C's text of it (`traceparent`, Trace Context level 1): on requests, and on the CONNECT that
//! one of them has opened (docs/hbone.md §4.3). Pure; what a peer has written is read in a bounded time and held against nobody.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// W3C's header.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Length of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// The bit of its flags that says that the trace is sampled.
const SAMPLED: u8 = 1;

/// A span and its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// Never 0.
    pub trace: u128,
    /// Never 0.
    pub span: u64,
}

impl SpanContext {
    /// Reads a `traceparent`, with its sampled flag. Digits may be of either case, as for Envoy.
    pub fn parse(text: &[u8]) -> Option<(Self, bool)> {
        if text.len() != LENGTH || [2, 35, 52].iter().any(|at| text.get(*at) != Some(&b'-')) {
            return None;
        }
        let version = number(text.get(..2)?)?;
        let context = Self { trace: number(text.get(3..35)?)?, span: number(text.get(36..52)?)? as u64 };
        let flags = number(text.get(53..)?)? as u8;
        let is_valid = version != 0xff && context.trace != 0 && context.span != 0;
        is_valid.then_some((context, flags & SAMPLED != 0))
    }

    /// As W3C's header.
    pub fn to_traceparent(self, sampled: bool) -> HeaderValue {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        digits(self.trace, &mut out[3..35]);
        digits(self.span.into(), &mut out[36..52]);
        out[54] = if sampled { b'1' } else { b'0' };
        header(out)
    }

    /// The trace as logs and collectors have it.
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span as logs and collectors have it.
    pub fn span_id(self) -> String {
        format!("{:016x}", self.span)
    }
}

/// The trace that a CONNECT names, for the log only. What is not exactly of W3C's form, or is there twice, counts for nothing; nor
/// does what is not sampled, as Istio's ztunnel invents it for each CONNECT: no collector knows it.
pub fn of_connect(headers: &HeaderMap) -> Option<SpanContext> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let text = all.next()?.as_bytes();
    let (context, is_sampled) = SpanContext::parse(text)?;
    (is_sampled && all.next().is_none() && !text.iter().any(u8::is_ascii_uppercase)).then_some(context)
}

/// Hexadecimal digits, at most 32.
pub fn number(digits: &[u8]) -> Option<u128> {
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    digits.iter().try_fold(0, |n, d| Some(n << 4 | u128::from(char::from(*d).to_digit(16)?)))
}

/// Writes the hexadecimal digits of a number, with zeros before them.
pub fn digits(mut number: u128, out: &mut [u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    // 16 digits at a time are in one register.
    for places in out.rchunks_mut(16) {
        let mut part = number as u64;
        for place in places.iter_mut().rev() {
            *place = DIGITS[(part & 0xf) as usize];
            part >>= 4;
        }
        number >>= 64;
    }
}

/// A header's value of ASCII that a header may have. It is allocated once, however often it is cloned: [`HeaderValue::from_bytes`]
/// allocates again for its first clone.
pub fn header<const N: usize>(text: [u8; N]) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from_owner(text)).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const CONTEXT: SpanContext =
        SpanContext { trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span: 0x00f0_67aa_0ba9_02b7 };

    fn connect(texts: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(text).unwrap());
        }
        headers
    }

    #[test]
    fn a_connect_names_its_trace() {
        assert_eq!(CONTEXT.to_traceparent(true), TEXT);
        assert_eq!(SpanContext::parse(TEXT.as_bytes()), Some((CONTEXT, true)));
        let off = CONTEXT.to_traceparent(false);
        assert_eq!(SpanContext::parse(off.as_bytes()), Some((CONTEXT, false)));
        for named in [TEXT.as_bytes(), TEXT.replace("00-4", "01-4").as_bytes()] {
            assert_eq!(of_connect(&connect(&[named])), Some(CONTEXT));
        }
        assert_eq!(of_connect(&connect(&[off.as_bytes()])), None, "of no trace that somebody could look up");
        assert_eq!(CONTEXT.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(CONTEXT.span_id(), "00f067aa0ba902b7");
        let short = SpanContext { trace: 1, span: 2 };
        assert_eq!((&*short.trace_id(), &*short.span_id()), (&*format!("{:0>32}", 1), &*format!("{:0>16}", 2)));
    }

    #[test]
    fn digits_are_of_any_length() {
        let of = |n: u128, length: usize| {
            let mut out = vec![b' '; length];
            digits(n, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!((&*of(0xabc, 2), &*of(0xabc, 5), &*of(7, 0)), ("bc", "00abc", ""));
        assert_eq!(of(CONTEXT.trace, 32), CONTEXT.trace_id());
        assert_eq!(of(CONTEXT.trace, 20), CONTEXT.trace_id()[12..]);
    }

    #[test]
    fn values_are_shared_by_their_clones() {
        let one = CONTEXT.to_traceparent(true);
        assert_eq!(one.as_bytes().as_ptr(), one.clone().as_bytes().as_ptr());
        assert_eq!((one, header(*b"a\n")), (TEXT.parse().unwrap(), "-".parse().unwrap()));
    }

    #[test]
    fn what_strangers_write_counts_for_nothing() {
        assert_eq!(of_connect(&HeaderMap::new()), None);
        assert_eq!(of_connect(&connect(&[TEXT.as_bytes(), TEXT.as_bytes()])), None, "which one?");
        for wrong in [
            "",
            "00",
            &TEXT[..54],
            &format!("{TEXT}0"),
            &format!("{TEXT}-00"),
            &TEXT.to_uppercase(),
            &TEXT.replace("00-4", "ff-4"),
            &TEXT.replace("-01", "_01"),
            &TEXT.replace("-01", "-+1"),
            &TEXT.replace("4bf9", "xbf9"),
            &TEXT.replace("4bf9", "4b\" "),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &"0".repeat(16 << 10),
        ] {
            assert_eq!(of_connect(&connect(&[wrong.as_bytes()])), None, "{wrong}");
        }
        assert_eq!(of_connect(&connect(&[&[0xff; LENGTH]])), None);
    }
}
