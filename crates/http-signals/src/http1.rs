//! HTTP/1.x (RFC 9112): where each message ends is all that is read, besides method and status, and
//! for who wants it the path. Every byte is counted for the
//! message that it belongs to.

use crate::{
    exchange::{Asked, Clock, Ends, Exchange, Flag, Over, Protocol, Surprise, visible},
    hpack::status,
    limits::{MAX_LINE, MAX_PIPELINE},
    lines::Lines,
    queue::Queue,
};
use std::time::Duration;

/// Longest method that is one.
const MAX_METHOD: usize = 24;

/// A connection.
#[derive(Debug, Default)]
pub(crate) struct Http1 {
    /// Requests without an answer that has ended; the answer that is read is the first one's.
    open: Queue<Request>,
    client: Side,
    server: Side,
    answer: Option<Answer>,
    /// What the server has sent for the first of the open requests, interim answers too.
    answer_bytes: u64,
    /// The first line was a request's.
    is_http: bool,
    /// When the request that is read began.
    began: Option<Duration>,
}

#[derive(Debug)]
struct Request {
    method: Method,
    started: Duration,
    /// Read so far, its head too.
    bytes: u64,
    /// Its head has ended.
    headed: bool,
    /// All of it has come.
    ended: bool,
    asked: Option<Box<Asked>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    status: u16,
    ended: bool,
}

/// One direction.
#[derive(Debug, Default)]
struct Side {
    lines: Lines,
    at: At,
    head: Head,
}

/// Where a direction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the first line of a message.
    #[default]
    Start,
    Fields,
    /// So many bytes of the body are to come.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    /// The line's end after a chunk.
    ChunkEnd,
    Trailers,
    /// Of the server: all until the end is the body.
    UntilEnd,
    /// Of the client: what follows depends on the answer.
    Held,
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    length: Option<u64>,
    /// Is the last coding `chunked`?
    chunked: Option<bool>,
    upgrade: bool,
    /// The last field, whose value may go on in the next line (obs-fold), if it is one of those that are read.
    field: Option<Name>,
    value: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Name {
    Length,
    Coding,
    Upgrade,
}

/// A body, as the head has it.
enum Body {
    None,
    Length(u64),
    Chunked,
    Unknown,
}

impl Head {
    /// A line of the head that is not empty.
    fn line(&mut self, line: &[u8]) -> Result<(), Surprise> {
        if let [b' ' | b'\t', ..] = line {
            if self.field.is_some() {
                if self.value.len() + line.len() > MAX_LINE {
                    return Err(Surprise::TooLong);
                }
                self.value.extend_from_slice(line);
            }
            return Ok(());
        }
        self.flush()?;
        let colon = memchr::memchr(b':', line).ok_or(Surprise::Head)?;
        let (name, value) = line.split_at(colon);
        let name = name.trim_ascii_end();
        self.field = match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => Some(Name::Length),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => Some(Name::Coding),
            7 if name.eq_ignore_ascii_case(b"upgrade") => Some(Name::Upgrade),
            _ => None,
        };
        if self.field.is_some() {
            self.value.extend_from_slice(value.get(1..).unwrap_or_default());
        }
        Ok(())
    }

    /// The last field's value is whole.
    fn flush(&mut self) -> Result<(), Surprise> {
        match self.field.take() {
            None => return Ok(()),
            Some(Name::Length) => {
                for one in self.value.split(|b| *b == b',') {
                    let length = decimal(one.trim_ascii()).ok_or(Surprise::Framing)?;
                    if self.length.is_some_and(|l| l != length) {
                        return Err(Surprise::Framing);
                    }
                    self.length = Some(length);
                }
            }
            Some(Name::Coding) => {
                let last = self.value.rsplit(|b| *b == b',').next().unwrap_or_default();
                self.chunked = Some(last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            }
            Some(Name::Upgrade) => self.upgrade = true,
        }
        self.value.clear();
        self.value.shrink_to(256);
        Ok(())
    }

    /// The head has ended. (RFC 9112 §6.3: a coding counts more than a length.)
    fn body(&mut self) -> Result<Body, Surprise> {
        self.flush()?;
        Ok(match (self.chunked.take(), self.length.take()) {
            (Some(true), _) => Body::Chunked,
            (Some(false), _) => Body::Unknown,
            (None, Some(0)) => Body::None,
            (None, Some(length)) => Body::Length(length),
            (None, None) => Body::None,
        })
    }
}

impl Side {
    /// Reads a head's lines, behind its first one, as far as they have come. True: the head has ended.
    fn fields(&mut self, bytes: &mut &[u8]) -> Result<bool, Surprise> {
        while let Some(line) = self.lines.next(bytes)? {
            if line.is_empty() {
                return Ok(true);
            }
            self.head.line(line)?;
        }
        Ok(false)
    }

    /// Reads what belongs to a body. True: it has ended.
    fn body(&mut self, bytes: &mut &[u8]) -> Result<bool, Surprise> {
        match self.at {
            At::Body(left) | At::Chunk(left) => {
                let taken = left.min(bytes.len() as u64);
                *bytes = bytes.get(taken as usize..).unwrap_or_default();
                let is_chunk = matches!(self.at, At::Chunk(_));
                self.at = match left - taken {
                    0 if is_chunk => At::ChunkEnd,
                    0 => return Ok(true),
                    left if is_chunk => At::Chunk(left),
                    left => At::Body(left),
                };
            }
            At::UntilEnd => *bytes = &[],
            At::ChunkSize => {
                let Some(line) = self.lines.next(bytes)? else { return Ok(false) };
                self.at = match hexadecimal(line).ok_or(Surprise::Framing)? {
                    0 => At::Trailers,
                    size => At::Chunk(size),
                };
            }
            At::ChunkEnd => {
                let Some(line) = self.lines.next(bytes)? else { return Ok(false) };
                if !line.is_empty() {
                    return Err(Surprise::Framing);
                }
                self.at = At::ChunkSize;
            }
            At::Trailers => return Ok(self.lines.next(bytes)?.is_some_and(<[u8]>::is_empty)),
            At::Start | At::Fields | At::Held => {}
        }
        Ok(false)
    }
}

impl Http1 {
    /// More of the client's. `keep`: what requests ask for is kept.
    pub fn client_sent(
        &mut self,
        mut bytes: &[u8],
        keep: bool,
        now: Clock<'_>,
        done: &mut Queue<Exchange>,
    ) -> Result<(), Over> {
        while !bytes.is_empty() {
            let before = bytes.len();
            let ended = match self.client.at {
                At::Start => {
                    self.request_line(&mut bytes, keep, now)?;
                    false
                }
                At::Fields => self.client.fields(&mut bytes)? && self.request_headed()?,
                At::Held => return Err(Surprise::Upgrade.into()),
                At::Body(_) | At::ChunkSize | At::Chunk(_) | At::ChunkEnd | At::Trailers | At::UntilEnd => {
                    self.client.body(&mut bytes)?
                }
            };
            // At the start there is no request yet: what is held of its first line counts when that is whole.
            if self.client.at != At::Start
                && let Some(request) = self.open.last_mut()
            {
                request.bytes += (before - bytes.len()) as u64;
            }
            if ended {
                self.request_ended(now, done);
            }
        }
        Ok(())
    }

    fn request_line(&mut self, bytes: &mut &[u8], keep: bool, now: Clock<'_>) -> Result<(), Over> {
        let began = *self.began.get_or_insert_with(now);
        let bad = if self.is_http { Surprise::Head.into() } else { Over::NotHttp };
        let held = self.client.lines.held().len() as u64;
        let line = match self.client.lines.next(bytes) {
            Ok(Some(line)) => line,
            Ok(None) => return if may_be_request(self.client.lines.held()) { Ok(()) } else { Err(bad) },
            Err(_) if !self.is_http => return Err(bad),
            Err(e) => return Err(e.into()),
        };
        if line.is_empty() && self.is_http {
            // Some clients send a line's end too many (RFC 9112 §2.2).
            self.began = None;
            return Ok(());
        }
        let Some(method) = method(line) else { return Err(bad) };
        if self.open.len() >= MAX_PIPELINE {
            return Err(Surprise::TooMany.into());
        }
        let method = match method {
            b"HEAD" => Method::Head,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        };
        let asked = keep.then(|| asked(line));
        self.open.push(Request { method, started: began, bytes: held, headed: false, ended: false, asked });
        (self.client.at, self.is_http, self.began) = (At::Fields, true, None);
        self.client.head = Head { value: std::mem::take(&mut self.client.head.value), ..Head::default() };
        Ok(())
    }

    /// The head of a request has ended. True: so has the request.
    fn request_headed(&mut self) -> Result<bool, Surprise> {
        let body = self.client.head.body()?;
        if let Some(request) = self.open.last_mut() {
            request.headed = true;
        }
        self.client.at = match body {
            Body::None => return Ok(true),
            Body::Length(length) => At::Body(length),
            Body::Chunked => At::ChunkSize,
            Body::Unknown => return Err(Surprise::Framing),
        };
        Ok(false)
    }

    fn request_ended(&mut self, now: Clock<'_>, done: &mut Queue<Exchange>) {
        let Some(request) = self.open.last_mut() else { return };
        request.ended = true;
        let held = request.method == Method::Connect || self.client.head.upgrade;
        self.client.at = if held { At::Held } else { At::Start };
        if self.answer.is_some_and(|a| a.ended) && self.open.len() == 1 {
            self.client.at = At::Start;
            self.answered(now, done);
        }
    }

    /// More of the server's.
    pub fn server_sent(&mut self, mut bytes: &[u8], now: Clock<'_>, done: &mut Queue<Exchange>) -> Result<(), Over> {
        while !bytes.is_empty() {
            let (before, at) = (bytes.len(), self.server.at);
            let ended = match at {
                At::Start => {
                    self.status_line(&mut bytes)?;
                    false
                }
                At::Fields => self.server.fields(&mut bytes)?,
                _ => self.server.body(&mut bytes)?,
            };
            self.answer_bytes += (before - bytes.len()) as u64;
            if ended && at == At::Fields {
                self.answer_headed(now, done)?;
            } else if ended {
                self.answered(now, done);
            }
        }
        Ok(())
    }

    fn status_line(&mut self, bytes: &mut &[u8]) -> Result<(), Surprise> {
        let Some(line) = self.server.lines.next(bytes)? else { return Ok(()) };
        let status = line.get(9..12).and_then(status).filter(|_| line.starts_with(b"HTTP/1."));
        let status = status.ok_or(Surprise::Head)?;
        let is_asked = self.open.first().is_some_and(|r| r.headed) && self.answer.is_none();
        if !is_asked {
            return Err(Surprise::Unasked);
        }
        self.answer = Some(Answer { status, ended: false });
        self.server.at = At::Fields;
        self.server.head = Head { value: std::mem::take(&mut self.server.head.value), ..Head::default() };
        Ok(())
    }

    /// The head of an answer has ended.
    fn answer_headed(&mut self, now: Clock<'_>, done: &mut Queue<Exchange>) -> Result<(), Over> {
        let has_length = self.server.head.length.is_some() || matches!(self.server.head.field, Some(Name::Length));
        let body = self.server.head.body()?;
        let (Some(answer), Some(request)) = (self.answer, self.open.first_mut()) else { return Ok(()) };
        if (100..200).contains(&answer.status) && answer.status != 101 {
            (self.answer, self.server.at) = (None, At::Start);
            return Ok(());
        }
        if answer.status == 101 || request.method == Method::Connect && (200..300).contains(&answer.status) {
            request.ended = true;
            self.answered(now, done);
            return Err(Over::Upgraded);
        }
        let method = request.method;
        // The connection stays what it is.
        if self.client.at == At::Held && self.open.len() == 1 {
            self.client.at = At::Start;
        }
        self.server.at = match body {
            _ if method == Method::Head || matches!(answer.status, 204 | 304) => At::Start,
            Body::None if has_length => At::Start,
            Body::None | Body::Unknown => At::UntilEnd,
            Body::Length(length) => At::Body(length),
            Body::Chunked => At::ChunkSize,
        };
        if self.server.at == At::Start {
            self.answered(now, done);
        }
        Ok(())
    }

    /// The answer has ended; the exchange, when its request has, too.
    fn answered(&mut self, now: Clock<'_>, done: &mut Queue<Exchange>) {
        self.server.at = At::Start;
        let (Some(answer), Some(request)) = (&mut self.answer, self.open.first_mut()) else { return };
        answer.ended = true;
        if request.ended {
            let bytes = std::mem::take(&mut self.answer_bytes);
            done.push(exchange(request, Some(*answer), bytes, Flag::None, now()));
            self.answer = None;
            self.open.pop();
            // Also what asked for another protocol is answered: it stays this one.
            if self.open.is_empty() && self.client.at == At::Held {
                self.client.at = At::Start;
            }
        }
    }

    /// The server sends no more.
    pub fn server_ended(&mut self, now: Clock<'_>, done: &mut Queue<Exchange>) {
        if self.server.at == At::UntilEnd {
            self.answered(now, done);
        }
    }

    /// The connection has ended.
    pub fn close(&mut self, ends: Ends, now: Clock<'_>, done: &mut Queue<Exchange>) {
        for mut request in self.open.drain().filter(|r| r.headed) {
            let answer = self.answer.take();
            let flag = if answer.is_some_and(|a| a.ended) { Flag::None } else { ends.flag() };
            let bytes = std::mem::take(&mut self.answer_bytes);
            done.push(exchange(&mut request, answer, bytes, flag, now()));
        }
    }
}

fn exchange(request: &mut Request, answer: Option<Answer>, answer_bytes: u64, flag: Flag, now: Duration) -> Exchange {
    Exchange {
        protocol: Protocol::Http,
        status: answer.map_or(0, |a| a.status),
        flag,
        grpc_status: None,
        request_bytes: request.bytes,
        response_bytes: answer_bytes,
        request_messages: 0,
        response_messages: 0,
        duration: now.saturating_sub(request.started),
        asked: request.asked.take(),
    }
}

/// May a request begin like this? Of every beginning of a request it is true.
fn may_be_request(line: &[u8]) -> bool {
    let method = line.split(|b| *b == b' ').next().unwrap_or_default();
    let line_end = |b: &u8| *b == b'\r' || *b == b'\n';
    is_method(method) || line.iter().all(line_end)
}

fn is_method(text: &[u8]) -> bool {
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    text.len() <= MAX_METHOD && text.iter().all(is_token)
}

/// The method, if this is the line of a request of a version of HTTP/1.
fn method(line: &[u8]) -> Option<&[u8]> {
    let (before, version) = line.split_at_checked(line.len().checked_sub(b" HTTP/1.1".len())?)?;
    if !version.starts_with(b" HTTP/1.") || version.ends_with(b" ") {
        return None;
    }
    let method = before.get(..memchr::memchr(b' ', before)?)?;
    is_method(method).then_some(method)
}

/// What a request's line asks for.
fn asked(line: &[u8]) -> Box<Asked> {
    let (rest, version) = line.split_at(line.len().saturating_sub(8));
    let mut parts = rest.trim_ascii_end().splitn(2, |b| *b == b' ');
    let method = visible(parts.next().unwrap_or_default());
    let path = visible(path_of(parts.next().unwrap_or_default()));
    Box::new(Asked { method, path, version: if version == b"HTTP/1.0" { "HTTP/1.0" } else { "HTTP/1.1" } })
}

/// The path of what a request's line names (RFC 9112 §3.2): in its absolute form a host is before it, with a user's password
/// perhaps. Empty: it is of no form that has a path.
fn path_of(target: &[u8]) -> &[u8] {
    if matches!(target.first(), Some(b'/' | b'*')) {
        return target;
    }
    let Some(scheme) = memchr::memmem::find(target, b"://") else { return &[] };
    let rest = target.get(scheme + 3..).unwrap_or_default();
    memchr::memchr2(b'/', b'?', rest).and_then(|at| rest.get(at..)).unwrap_or(b"/")
}

fn decimal(text: &[u8]) -> Option<u64> {
    let step = |n: u64, d: &u8| n.checked_mul(10)?.checked_add(u64::from(d.is_ascii_digit().then(|| d - b'0')?));
    if text.is_empty() { None } else { text.iter().try_fold(0, step) }
}

/// The size of a chunk; extensions follow it.
fn hexadecimal(line: &[u8]) -> Option<u64> {
    let size = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if size.is_empty() || size.len() > 15 {
        return None;
    }
    size.iter().try_fold(0, |n, d| Some((n << 4) | u64::from(char::from(*d).to_digit(16)?)))
}
