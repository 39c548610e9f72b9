//! What is said of a request, and of a connection that is not read any further.

use crate::limits::MAX_PATH;
use std::{fmt::Write, time::Duration};

/// How long ago the connection began. It is asked where a request begins, and where it is over.
pub type Clock<'a> = &'a dyn Fn() -> Duration;

/// A request and its answer, when both have ended, or one of them has broken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What was spoken.
    pub protocol: Protocol,
    /// 100 to 599; 0: there was no answer.
    pub status: u16,
    /// Why the answer is not whole.
    pub flag: Flag,
    /// The code of `grpc-status`, 0 to 16; other numbers are 2 (UNKNOWN), as gRPC's clients read them. None: not said.
    pub grpc_status: Option<u8>,
    /// Bytes of the request on the wire: its head, and its body with all framing and trailers. Of HTTP/2 whole frames (HEADERS,
    /// CONTINUATION, DATA); those of a block of headers count when that is whole.
    pub request_bytes: u64,
    /// The same of the answer, with the interim ones (1xx) before it.
    pub response_bytes: u64,
    /// Messages of gRPC in the request.
    pub request_messages: u64,
    /// Messages of gRPC in the answer.
    pub response_messages: u64,
    /// From the request's first byte to the last byte of both.
    pub duration: Duration,
    /// What the request asked for. None: it was not to be kept ([`Connection::keep_heads`](crate::Connection::keep_heads)) when the
    /// request came.
    pub asked: Option<Box<Asked>>,
}

/// What a request asked for. Texts are of visible ASCII (other bytes are as `%1B`), and of at most [`MAX_PATH`] bytes. Empty: not
/// known, as where a client of HTTP/2 names an entry of its table from before heads were kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Its method.
    pub method: Box<str>,
    /// Its path, with query; of a request to a proxy without the host before it.
    pub path: Box<str>,
    /// `HTTP/1.1`, `HTTP/2`.
    pub version: &'static str,
}

/// A peer's text as it may be shown anywhere.
pub(crate) fn visible(bytes: &[u8]) -> Box<str> {
    let mut text = String::with_capacity(bytes.len().min(MAX_PATH));
    for byte in bytes.iter().copied().take(MAX_PATH) {
        if byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text.truncate(MAX_PATH);
    text.into_boxed_str()
}

/// The label `request_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP of any version.
    Http,
    /// A request by HTTP/2 whose content type is `application/grpc`.
    Grpc,
}

impl Protocol {
    /// As the label has it.
    pub fn text(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
        }
    }
}

/// Envoy's response flags, as far as they can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// The answer is whole.
    None,
    /// The client has left or has reset the stream.
    ClientGone,
    /// The connection ended before the answer did.
    UpstreamGone,
    /// The server has reset the stream, or has said that it will not look at it.
    UpstreamReset,
}

impl Flag {
    /// As the label has it.
    pub fn text(self) -> &'static str {
        match self {
            Flag::None => "-",
            Flag::ClientGone => "DC",
            Flag::UpstreamGone => "UC",
            Flag::UpstreamReset => "UR",
        }
    }
}

/// Why a connection is not read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// It is not HTTP.
    NotHttp,
    /// It has become something else (101, or CONNECT), by a request that was counted.
    Upgraded,
    /// Its bytes were not as expected. What was open then is not counted.
    GaveUp(Surprise),
}

/// What was not as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surprise {
    /// The port is declared to be HTTP, and the client speaks something else.
    NotHttp,
    /// A line of a head cannot be read.
    Head,
    /// A line, or a block of headers, is longer than is kept of it.
    TooLong,
    /// Where a body ends cannot be said (Content-Length, Transfer-Encoding, a chunk's size).
    Framing,
    /// An answer without a request.
    Unasked,
    /// More requests without answer than are kept.
    TooMany,
    /// A frame of HTTP/2 that must not be there.
    Frame,
    /// A block of headers of HTTP/2 that cannot be read, or whose table is larger than is kept.
    Hpack,
    /// The client went on before it knew whether the connection becomes something else.
    Upgrade,
}

impl Surprise {
    /// All, for a table of counters.
    pub const ALL: [Surprise; 9] = [
        Surprise::NotHttp,
        Surprise::Head,
        Surprise::TooLong,
        Surprise::Framing,
        Surprise::Unasked,
        Surprise::TooMany,
        Surprise::Frame,
        Surprise::Hpack,
        Surprise::Upgrade,
    ];
    /// As the label `reason` has it.
    pub fn text(self) -> &'static str {
        match self {
            Surprise::NotHttp => "not_http",
            Surprise::Head => "head",
            Surprise::TooLong => "too_long",
            Surprise::Framing => "framing",
            Surprise::Unasked => "unasked_answer",
            Surprise::TooMany => "too_many_open",
            Surprise::Frame => "frame",
            Surprise::Hpack => "hpack",
            Surprise::Upgrade => "upgrade",
        }
    }
}

impl From<Surprise> for Over {
    fn from(surprise: Surprise) -> Self {
        Over::GaveUp(surprise)
    }
}

/// Which sides of a connection have ended, for what was open then.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    pub client: bool,
    pub server: bool,
}

impl Ends {
    /// Why an answer that was not whole is not.
    pub fn flag(self) -> Flag {
        if self.client && !self.server { Flag::ClientGone } else { Flag::UpstreamGone }
    }
}
