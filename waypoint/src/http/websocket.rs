//! The handshake of WebSocket, between any two versions of HTTP. A client of HTTP/1.1 asks by an upgrade with a key, which the
//! server's answer must be made of (RFC 6455 §4); one of HTTP/2 by an extended CONNECT, which has no key (RFC 8441). Within this proxy
//! it is an upgrade of HTTP/1.1 in either case, as in Envoy: policies, routes and logs see a GET, and 101 where it has come about.
//! Proven by `tests/websockets.rs`.

use crate::{
    http::{
        entry::{self, Entry},
        reply::ResponseBody,
    },
    telemetry::flag::ResponseFlag,
};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION},
    request::Parts,
    response,
};
use hyper::upgrade::OnUpgrade;

/// What a key is answered with is made of it and of this (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// An endpoint's 101 that nobody may follow.
pub(super) const NOT_ASKED: &str = "the endpoint has changed to a protocol that was not asked for";

/// A WebSocket that a client has asked for.
pub(super) struct Handshake {
    /// The client's stream, once it has been answered.
    client: Option<OnUpgrade>,
    /// It has come by HTTP/2.
    is_extended: bool,
    /// What the key has to be answered with. The key is the client's, or ours.
    accept: Option<HeaderValue>,
}

/// Marks the answer to an extended CONNECT after which bytes follow.
#[derive(Clone, Copy)]
struct Opened;

impl Handshake {
    /// What a request asks for, if it asks for WebSocket: an endpoint of HTTP/1.1 is asked with a key whoever asks.
    pub(super) fn begin(entry: &Entry, parts: &mut Parts) -> Option<Self> {
        if !entry.websocket {
            return None;
        }
        if entry.is_extended {
            parts.headers.insert(SEC_WEBSOCKET_KEY, key());
            parts.headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        }
        let accept = parts.headers.get(SEC_WEBSOCKET_KEY).and_then(accept);
        Some(Self { client: parts.extensions.remove(), is_extended: entry.is_extended, accept })
    }

    /// An endpoint's 101 as its client gets it, and the client's stream.
    ///
    /// # Errors
    /// It is none that may be followed.
    pub(super) fn answered(self, head: &mut response::Parts) -> Result<OnUpgrade, &'static str> {
        let by_http2 = head.version == Version::HTTP_2;
        let Some(client) = self.client.filter(|_| entry::names_websocket(&head.headers)) else {
            return Err(NOT_ASKED);
        };
        entry::strip(&mut head.headers);
        if self.is_extended {
            // The key was ours: nobody else looks whether it has been understood.
            if !by_http2 && head.headers.get(SEC_WEBSOCKET_ACCEPT) != self.accept.as_ref() {
                return Err("the endpoint's Sec-WebSocket-Accept does not answer the key: it speaks no WebSocket");
            }
            head.status = StatusCode::OK;
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
            head.headers.remove(CONTENT_LENGTH);
            head.extensions.insert(Opened);
        } else {
            if let Some(accept) = self.accept.filter(|_| by_http2) {
                head.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
            entry::upgrade(&mut head.headers);
        }
        Ok(client)
    }
}

/// The answer to an extended CONNECT: whatever has succeeded in another way is none that a WebSocket's client may take for its own
/// (what follows a 2xx would be its bytes).
pub(super) fn unless_opened(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if !response.status().is_success() || response.extensions().get::<Opened>().is_some() {
        return response;
    }
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response.map(|body| {
        body.answered(
            StatusCode::BAD_GATEWAY,
            ResponseFlag::ProtocolError,
            "an answer that opens no WebSocket, although its status says that the request has succeeded",
        )
    })
}

/// A new key: 16 random bytes.
fn key() -> HeaderValue {
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static(""))
}

/// What a key has to be answered with.
fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let all = [key.as_bytes().trim_ascii(), GUID].concat();
    HeaderValue::try_from(STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &all))).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_rfc_has_it() {
        // RFC 6455 §1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn keys_are_new_and_have_16_bytes() {
        let [a, b] = [key(), key()];
        assert_ne!(a, b);
        assert_eq!(STANDARD.decode(a).unwrap().len(), 16);
    }
}
