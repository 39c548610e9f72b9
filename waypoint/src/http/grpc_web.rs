//! gRPC-Web: gRPC for browsers, which cannot read trailers. At a service port that is declared so, a request becomes one of gRPC, and
//! the trailers of its answer the last frame of the body; in the text form all of it is base64 (gRPC's PROTOCOL-WEB). Proven by
//! `tests/grpc_web.rs`.

use crate::{
    cluster::endpoint_set::EndpointSet,
    downstream::gateway::Port,
    http::{base64_text, body::RequestBody, call::Call, names, reply::ResponseBody, transform::Transform},
};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Response,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE},
    request::Parts,
};
use http_body::Body;
use std::io;

/// What content types of gRPC begin with, and those of gRPC-Web's two forms.
const GRPC: &[u8] = b"application/grpc";
const WEB: &[u8] = b"application/grpc-web";
const WEB_TEXT: &[u8] = b"application/grpc-web-text";
/// Flag of a frame that has trailers.
const TRAILERS: u8 = 0x80;
/// Encoding of messages that is named where the endpoint names none (as Envoy does).
const PROTO: &[u8] = b"+proto";

/// A client that speaks gRPC-Web.
#[derive(Clone, Copy)]
pub(super) struct Web {
    /// It reads base64.
    is_text: bool,
}

/// A content type of gRPC-Web: which form, and the encoding of messages after it (`+proto`).
fn form(content_type: &[u8]) -> Option<(bool, &[u8])> {
    let plain = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    after(plain, WEB_TEXT).map(|rest| (true, rest)).or_else(|| after(plain, WEB).map(|rest| (false, rest)))
}

/// What follows this start of a content type, if that is all but an encoding of messages.
fn after<'a>(plain: &'a [u8], start: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = plain.split_at_checked(start.len())?;
    (head.eq_ignore_ascii_case(start) && matches!(rest.first(), None | Some(b'+'))).then_some(rest)
}

/// Makes a request of gRPC-Web one of gRPC, if it goes to a port, or has come to one of a gateway, that is declared to be for gRPC-Web.
pub(super) fn translate(call: &Call<'_>, set: &EndpointSet, parts: &mut Parts, body: &mut RequestBody) -> Option<Web> {
    if parts.method != Method::POST {
        return None;
    }
    let (sends_text, encoding) = form(parts.headers.get(CONTENT_TYPE)?.as_bytes())?;
    if !set.service.grpc_web.contains(&set.key.port) && !has_come_to_web(call) {
        return None;
    }
    let content_type = HeaderValue::from_bytes(&[GRPC, encoding].concat()).ok()?;
    let is_text = reads_text(&parts.headers, sends_text);
    parts.headers.insert(CONTENT_TYPE, content_type);
    parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    if sends_text {
        parts.headers.remove(CONTENT_LENGTH);
        body.decode();
    }
    Some(Web { is_text })
}

/// Has it come to a port of a gateway that is for gRPC-Web?
fn has_come_to_web(call: &Call<'_>) -> bool {
    let gateway = call.snapshot.gateway.as_ref().filter(|_| call.downstream.is_at_gateway());
    gateway.and_then(|gateway| gateway.ports.get(&call.downstream.port)).is_some_and(Port::takes_grpc_web)
}

/// Does a client read base64? As it says (`Accept`), or as it writes itself.
fn reads_text(headers: &HeaderMap, sends_text: bool) -> bool {
    let all = headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let mut forms = all.filter_map(form).map(|(is_text, _)| is_text);
    forms.next().unwrap_or(sends_text)
}

impl Web {
    /// The answer as its client reads it. What is none of gRPC stays as it is: clients go by its status.
    pub(super) fn answer(self, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(GRPC));
        let Some(encoding) = kind.filter(|rest| matches!(rest.first(), None | Some(b'+'))) else { return response };
        let encoding = if encoding.is_empty() { PROTO } else { encoding };
        let start = if self.is_text { WEB_TEXT } else { WEB };
        if let Ok(content_type) = HeaderValue::from_bytes(&[start, encoding].concat()) {
            response.headers_mut().insert(CONTENT_TYPE, content_type);
        }
        // One without a message has its trailers in the head, where every client finds them.
        if response.headers().contains_key(names::GRPC_STATUS) && response.body().is_end_stream() {
            return response;
        }
        response.headers_mut().remove(CONTENT_LENGTH);
        response.map(|body| body.transformed(Box::new(self)))
    }

    fn written(self, bytes: Bytes) -> Bytes {
        if self.is_text && !bytes.is_empty() { base64_text::encode(&bytes) } else { bytes }
    }
}

impl Transform for Web {
    fn data(&mut self, data: Bytes) -> io::Result<Bytes> {
        Ok(self.written(data))
    }

    fn pause(&mut self) -> io::Result<Bytes> {
        Ok(Bytes::new())
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> io::Result<(Bytes, Option<HeaderMap>)> {
        Ok((self.written(trailers.map(frame).transpose()?.unwrap_or_default()), None))
    }
}

/// Trailers as a frame: its flag, its length, and a line for each. (A value has no line break: it would be no value.)
fn frame(trailers: HeaderMap) -> io::Result<Bytes> {
    let size: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    let mut out = BytesMut::with_capacity(size + 5);
    out.put_u8(TRAILERS);
    out.put_u32(u32::try_from(size).map_err(io::Error::other)?);
    for (name, value) in &trailers {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.put_slice(piece);
        }
    }
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn forms_are_told_apart() {
        for (kind, want) in [
            ("application/grpc-web", Some((false, ""))),
            ("application/grpc-web+proto", Some((false, "+proto"))),
            ("Application/gRPC-Web-Text; charset=utf-8", Some((true, ""))),
            ("application/grpc-web-text+proto", Some((true, "+proto"))),
            ("application/grpc", None),
            ("application/grpc+proto", None),
            ("application/grpc-webx", None),
            ("application/grpc-web-textual", None),
            ("", None),
        ] {
            let want = want.map(|(is_text, encoding)| (is_text, encoding.as_bytes()));
            assert_eq!(form(kind.as_bytes()), want, "{kind}");
        }
    }

    #[test]
    fn clients_read_what_they_accept_or_what_they_write() {
        for (accept, sends, want) in [
            (None, true, true),
            (None, false, false),
            (Some("*/*"), true, true),
            (Some("application/grpc-web-text"), false, true),
            (Some("application/grpc-web"), true, false),
            (Some("text/html, application/grpc-web-text+proto"), false, true),
        ] {
            let headers = accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))).into_iter().collect();
            assert_eq!(reads_text(&headers, sends), want, "{accept:?}");
        }
    }

    #[test]
    fn trailers_are_a_frame() {
        let trailers = HeaderMap::from_iter([(names::GRPC_STATUS, HeaderValue::from_static("0"))]);
        assert_eq!(frame(trailers).unwrap(), &b"\x80\0\0\0\x10grpc-status: 0\r\n"[..]);
        assert_eq!(frame(HeaderMap::new()).unwrap(), &b"\x80\0\0\0\0"[..]);
    }
}
