//! Answers that are compressed (gzip) on their way to clients that take it, where a rule says so. Not those that are compressed already,
//! or that say that nobody may change them; what is there is sent on at once, and compressed better where more comes quickly.
//! Proven by `tests/compression.rs`.

use crate::{
    http::{
        encoders::{Encoder, Encoders, Lent},
        entry,
        reply::ResponseBody,
        transform::Transform,
    },
    route::compression::Compression,
};
use bytes::Bytes;
use flate2::Crc;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        ETAG, VARY,
    },
    request::Parts,
};
use http_body::Body;
use std::{
    io::{self, Write},
    rc::Rc,
};

/// What gzip begins with (RFC 1952 §2.3): no name, no time, of an unknown system.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// Sums of what is sent: they would be those of something else.
static SUMS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// What of a request decides whether its answer is compressed.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    takes_gzip: bool,
    is_head: bool,
}

impl Asked {
    pub(super) fn of(parts: &Parts) -> Self {
        Self { takes_gzip: takes_gzip(&parts.headers), is_head: parts.method == Method::HEAD }
    }
}

/// The answer, compressed if it is to be.
pub(super) fn compress(
    rule: &Compression,
    asked: Asked,
    mut response: Response<ResponseBody>,
    encoders: &Rc<Encoders>,
) -> Response<ResponseBody> {
    if !may_be(rule, &response) {
        return response;
    }
    // Whoever keeps it must not give it to other clients.
    vary(response.headers_mut(), &ACCEPT_ENCODING);
    let body = response.body();
    let is_small = body.size_hint().exact().is_some_and(|size| size < rule.min_bytes);
    if !asked.takes_gzip || asked.is_head || is_small || body.is_end_stream() || body.is_transformed() {
        return response;
    }
    let Some(lent) = encoders.lend(&HEAD) else { return response };
    let headers = response.headers_mut();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    if let Some(weak) = headers.get(ETAG).and_then(weakened) {
        headers.insert(ETAG, weak);
    }
    response.map(|body| body.transformed(Box::new(Gzip { lent, sum: Crc::new(), is_pending: true })))
}

/// May an answer be compressed, whoever has asked?
fn may_be(rule: &Compression, response: &Response<ResponseBody>) -> bool {
    const NEVER: [StatusCode; 4] =
        [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::PARTIAL_CONTENT, StatusCode::NOT_MODIFIED];
    let (status, headers) = (response.status(), response.headers());
    let has_type = headers.get(CONTENT_TYPE).is_some_and(|kind| rule.covers(kind.as_bytes()));
    let is_encoded = headers.contains_key(CONTENT_ENCODING) || headers.contains_key(CONTENT_RANGE);
    has_type
        && !is_encoded
        && !status.is_informational()
        && !NEVER.contains(&status)
        && !names(headers, &CACHE_CONTROL, b"no-transform")
        && !SUMS.iter().any(|sum| headers.contains_key(sum))
}

/// Has a header that is a list this member?
fn names(headers: &HeaderMap, name: &HeaderName, member: &[u8]) -> bool {
    let all = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    all.map(<[u8]>::trim_ascii).any(|one| one.eq_ignore_ascii_case(member))
}

/// Says that an answer depends on a header of the request.
pub(super) fn vary(headers: &mut HeaderMap, by: &HeaderName) {
    if !names(headers, &VARY, b"*") && !names(headers, &VARY, by.as_str().as_bytes()) {
        headers.append(VARY, by.clone().into());
    }
}

/// The entity tag of what means the same and has other bytes (RFC 9110 §8.8.1). None: it says so already.
fn weakened(tag: &HeaderValue) -> Option<HeaderValue> {
    let is_weak = tag.as_bytes().starts_with(b"W/");
    (!is_weak).then(|| HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok()).flatten()
}

/// Does a client take gzip, and like it no less than what is not encoded (RFC 9110 §12.5.3)?
fn takes_gzip(headers: &HeaderMap) -> bool {
    let Some(all) = entry::joined(headers, &ACCEPT_ENCODING) else { return false };
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for member in all.split(|b| *b == b',') {
        let mut parts = member.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let coding = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(weight).unwrap_or(1000);
        match &coding[..] {
            b"gzip" | b"x-gzip" => gzip = Some(weight),
            b"*" => any = Some(weight),
            b"identity" => identity = Some(weight),
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// Thousandths of a `q=`; 0 if it is none that can be read. None: it is another parameter.
fn weight(parameter: &[u8]) -> Option<u32> {
    let [b'q' | b'Q', b'=', number @ ..] = parameter else { return None };
    let text = std::str::from_utf8(number).unwrap_or_default();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_read = matches!(whole, "0" | "1") && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    let thousandths: u32 = format!("{whole}{part:0<3}").parse().unwrap_or(0);
    Some(if is_read { thousandths.min(1000) } else { 0 })
}

/// A body on its way through gzip.
struct Gzip {
    lent: Lent,
    sum: Crc,
    /// Something has gone in, or the head is there, and has not come out.
    is_pending: bool,
}

impl Gzip {
    /// What has come out.
    fn take(&mut self) -> Bytes {
        self.lent.encoder().map(|encoder| std::mem::take(encoder.get_mut())).unwrap_or_default().into()
    }

    fn encoder(&mut self) -> io::Result<&mut Encoder> {
        self.lent.encoder().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Transform for Gzip {
    fn data(&mut self, data: Bytes) -> io::Result<Bytes> {
        self.sum.update(&data);
        self.encoder()?.write_all(&data)?;
        self.is_pending = true;
        Ok(self.take())
    }

    fn pause(&mut self) -> io::Result<Bytes> {
        if !std::mem::take(&mut self.is_pending) {
            return Ok(Bytes::new());
        }
        self.encoder()?.flush()?;
        Ok(self.take())
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> io::Result<(Bytes, Option<HeaderMap>)> {
        let encoder = self.encoder()?;
        encoder.try_finish()?;
        let mut last = std::mem::take(encoder.get_mut());
        last.extend_from_slice(&self.sum.sum().to_le_bytes());
        last.extend_from_slice(&self.sum.amount().to_le_bytes());
        Ok((last.into(), trailers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_say_whether_they_take_it() {
        for (value, want) in [
            ("gzip", true),
            ("gzip, deflate, br", true),
            ("deflate, GZIP;q=0.5", true),
            ("x-gzip", true),
            ("*", true),
            ("br, *;q=0.1", true),
            ("br", false),
            ("", false),
            ("identity", false),
            ("gzip;q=0", false),
            ("gzip; q=0.000, *", false),
            ("gzip;q=0.5, identity;q=0.6", false),
            ("gzip;q=0.5, identity;q=0.5", true),
            ("gzip;q=high", false),
            ("gzip;q=2", false),
            ("gzip;q=0.1234", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(takes_gzip(&headers), want, "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn what_depends_on_the_client_says_so_once() {
        for (before, want) in [
            (&["Origin"][..], &["Origin", "accept-encoding"][..]),
            (&[], &["accept-encoding"]),
            (&["Origin, Accept-Encoding"], &["Origin, Accept-Encoding"]),
            (&["*"], &["*"]),
        ] {
            let mut headers = HeaderMap::new();
            for value in before {
                headers.append(VARY, HeaderValue::from_static(value));
            }
            vary(&mut headers, &ACCEPT_ENCODING);
            let all: Vec<&HeaderValue> = headers.get_all(VARY).iter().collect();
            assert_eq!(all, want);
        }
    }
}
