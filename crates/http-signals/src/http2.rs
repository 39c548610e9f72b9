//! HTTP/2 (RFC 9113): frames, and of them what tells how a stream went.

use crate::{
    exchange::{Asked, Clock, Ends, Exchange, Flag, Over, Protocol, Surprise},
    grpc::Messages,
    hpack::{Decoder, Field},
    limits::{MAX_BLOCK, MAX_STREAMS},
    queue::Queue,
};
use std::time::Duration;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Bytes of a frame's header.
const HEADER: usize = 9;
/// What a buffer for blocks of headers may keep, in bytes.
const KEPT: usize = 4096;

/// A connection.
#[derive(Debug, Default)]
pub(crate) struct Http2 {
    client: Side,
    server: Side,
    /// By id, which only grows.
    streams: Vec<Stream>,
    last: u32,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    started: Duration,
    is_grpc: bool,
    status: u16,
    grpc_status: Option<u8>,
    asked: Option<Box<Asked>>,
    request: Way,
    answer: Way,
}

/// One direction of a stream.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// Of its frames, with their headers.
    bytes: u64,
    messages: Messages,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Client,
    Server,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Side {
    /// Bytes of a frame's header, or the first ones of its content.
    head: [u8; HEADER],
    have: usize,
    /// None: a header is read.
    frame: Option<Frame>,
    /// A frame has come: the first one is SETTINGS.
    begun: bool,
    decoder: Decoder,
    block: Vec<u8>,
    /// Whose headers are in the block, if more are to come.
    open_block: Option<Block>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    stream: u32,
    /// Of its frames so far, with their headers: a request's stream is there when the block is whole.
    bytes: u64,
    ends_stream: bool,
    is_promise: bool,
    /// When it began, if it is the client's.
    started: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Bytes that are to come, with padding.
    left: usize,
    /// Of these, before the content: the length of the padding, a priority, a promised stream.
    prefix: usize,
    /// The next byte is the length of the padding.
    pad_next: bool,
    padding: usize,
}

impl Frame {
    fn read(head: [u8; HEADER]) -> Result<Self, Surprise> {
        let [a, b, c, kind, flags, d, e, f, g] = head;
        let left = u32::from_be_bytes([0, a, b, c]) as usize;
        let padded = flags & PADDED != 0 && matches!(kind, DATA | HEADERS | PUSH_PROMISE);
        let more = match kind {
            HEADERS if flags & PRIORITY != 0 => 5,
            PUSH_PROMISE => 4,
            _ => 0,
        };
        let prefix = usize::from(padded) + more;
        let stream = u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff;
        let of_stream = matches!(kind, DATA | HEADERS | RST_STREAM | PUSH_PROMISE | CONTINUATION);
        let of_connection = matches!(kind, SETTINGS | GOAWAY);
        let bad_length = kind == RST_STREAM && left != 4 || kind == GOAWAY && left < 8;
        if prefix > left || bad_length || of_stream && stream == 0 || of_connection && stream != 0 {
            return Err(Surprise::Frame);
        }
        Ok(Self { kind, flags, stream, left, prefix, pad_next: padded, padding: 0 })
    }
}

impl Side {
    /// The next frame's header, if it is whole.
    fn header(&mut self, from: By, bytes: &mut &[u8], now: Clock<'_>) -> Result<Option<Frame>, Surprise> {
        self.collect(bytes, HEADER);
        if self.have < HEADER {
            return Ok(None);
        }
        self.have = 0;
        let frame = Frame::read(self.head)?;
        let continues = self.open_block.is_some_and(|b| b.stream == frame.stream) && frame.kind == CONTINUATION;
        let is_wrong = if self.open_block.is_some() { !continues } else { frame.kind == CONTINUATION };
        if is_wrong || !self.begun && frame.kind != SETTINGS {
            return Err(Surprise::Frame);
        }
        self.begun = true;
        if matches!(frame.kind, HEADERS | PUSH_PROMISE) {
            self.open_block = Some(Block {
                stream: frame.stream,
                bytes: 0,
                ends_stream: frame.flags & END_STREAM != 0 && frame.kind == HEADERS,
                is_promise: frame.kind == PUSH_PROMISE,
                started: if from == By::Client { now() } else { Duration::ZERO },
            });
        }
        Ok(Some(frame))
    }

    /// The first bytes of something, up to so many.
    fn collect(&mut self, bytes: &mut &[u8], wanted: usize) {
        let taken = bytes.len().min(wanted.saturating_sub(self.have));
        let (now, rest) = bytes.split_at(taken);
        if let Some(place) = self.head.get_mut(self.have..self.have + taken) {
            place.copy_from_slice(now);
            self.have += taken;
        }
        *bytes = rest;
    }
}

impl Http2 {
    /// More of the client's. `keep`: what requests ask for is kept.
    pub fn client_sent(
        &mut self,
        bytes: &[u8],
        keep: bool,
        now: Clock<'_>,
        done: &mut Queue<Exchange>,
    ) -> Result<(), Over> {
        self.read(By::Client, bytes, keep, now, done).map_err(Over::from)
    }

    /// More of the server's.
    pub fn server_sent(&mut self, bytes: &[u8], now: Clock<'_>, done: &mut Queue<Exchange>) -> Result<(), Over> {
        self.read(By::Server, bytes, false, now, done).map_err(Over::from)
    }

    fn side(&mut self, from: By) -> &mut Side {
        if from == By::Client { &mut self.client } else { &mut self.server }
    }

    fn read(
        &mut self,
        from: By,
        mut bytes: &[u8],
        keep: bool,
        now: Clock<'_>,
        done: &mut Queue<Exchange>,
    ) -> Result<(), Surprise> {
        while !bytes.is_empty() {
            let side = self.side(from);
            let (mut frame, header) = match side.frame.take() {
                Some(frame) => (frame, 0),
                None => match side.header(from, &mut bytes, now)? {
                    Some(frame) => (frame, HEADER),
                    None => return Ok(()),
                },
            };
            let before = bytes.len();
            self.content(from, &mut frame, &mut bytes)?;
            self.count(from, frame, header + before - bytes.len());
            if frame.left > 0 {
                self.side(from).frame = Some(frame);
            } else {
                self.ended(from, frame, keep, now, done)?;
            }
        }
        Ok(())
    }

    /// What there is of a frame's content.
    fn content(&mut self, from: By, frame: &mut Frame, bytes: &mut &[u8]) -> Result<(), Surprise> {
        while frame.prefix > 0 {
            let Some((first, rest)) = bytes.split_first() else { return Ok(()) };
            if std::mem::take(&mut frame.pad_next) {
                frame.padding = usize::from(*first);
            }
            (frame.prefix, frame.left, *bytes) = (frame.prefix - 1, frame.left - 1, rest);
        }
        let content = frame.left.checked_sub(frame.padding).ok_or(Surprise::Frame)?;
        let (piece, rest) = bytes.split_at(content.min(bytes.len()));
        (frame.left, *bytes) = (frame.left - piece.len(), rest);
        match frame.kind {
            DATA => {
                if let Some(stream) = self.stream(frame.stream).filter(|s| s.is_grpc) {
                    stream.way(from).messages.read(piece);
                }
            }
            HEADERS | CONTINUATION | PUSH_PROMISE => {
                let block = &mut self.side(from).block;
                if block.len() + piece.len() > MAX_BLOCK {
                    return Err(Surprise::TooLong);
                }
                block.extend_from_slice(piece);
            }
            GOAWAY => self.side(from).collect(&mut &*piece, 4),
            _ => {}
        }
        if frame.left == frame.padding {
            let padding = frame.padding.min(bytes.len());
            *bytes = bytes.get(padding..).unwrap_or_default();
            (frame.left, frame.padding) = (frame.left - padding, frame.padding - padding);
        }
        Ok(())
    }

    /// So many bytes of a frame have come, with its header if that was read now.
    fn count(&mut self, from: By, frame: Frame, bytes: usize) {
        let counter = match frame.kind {
            DATA => self.stream(frame.stream).map(|stream| &mut stream.way(from).bytes),
            HEADERS | CONTINUATION => self.side(from).open_block.as_mut().map(|block| &mut block.bytes),
            _ => None,
        };
        if let Some(counter) = counter {
            *counter += bytes as u64;
        }
    }

    /// A frame is whole.
    fn ended(
        &mut self,
        from: By,
        frame: Frame,
        keep: bool,
        now: Clock<'_>,
        done: &mut Queue<Exchange>,
    ) -> Result<(), Surprise> {
        match frame.kind {
            DATA if frame.flags & END_STREAM != 0 => self.way_ended(from, frame.stream, now, done),
            HEADERS | CONTINUATION | PUSH_PROMISE if frame.flags & END_HEADERS != 0 => {
                let side = self.side(from);
                let Some(block) = side.open_block.take() else { return Err(Surprise::Frame) };
                let (mut fields, mut bytes) = (Fields::default(), std::mem::take(&mut side.block));
                let mut asked = keep.then(|| Box::new(Asked { version: "HTTP/2", ..Asked::default() }));
                side.decoder.decode(&bytes, asked.as_deref_mut(), |f| fields.note(f))?;
                bytes.clear();
                bytes.shrink_to(KEPT);
                side.block = bytes;
                if !block.is_promise {
                    self.headers(from, block, fields, asked)?;
                    if block.ends_stream {
                        self.way_ended(from, block.stream, now, done);
                    }
                }
            }
            RST_STREAM => self.reset(from, frame.stream, now, done),
            GOAWAY => {
                let side = self.side(from);
                side.have = 0;
                let [a, b, c, d, ..] = side.head;
                if from == By::Server {
                    self.left_out(u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff, now, done);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A block of headers of a stream: a request, an answer, or trailers.
    fn headers(&mut self, from: By, block: Block, fields: Fields, asked: Option<Box<Asked>>) -> Result<(), Surprise> {
        if from == By::Client && block.stream > self.last {
            if block.stream.is_multiple_of(2) {
                return Err(Surprise::Frame);
            }
            if self.streams.len() >= MAX_STREAMS {
                return Err(Surprise::TooMany);
            }
            self.last = block.stream;
            self.streams.push(Stream {
                id: block.stream,
                started: block.started,
                is_grpc: fields.is_grpc,
                status: 0,
                grpc_status: None,
                asked,
                request: Way { bytes: block.bytes, ..Way::default() },
                answer: Way::default(),
            });
            return Ok(());
        }
        let Some(stream) = self.stream(block.stream) else { return Ok(()) };
        stream.way(from).bytes += block.bytes;
        if from == By::Client {
            return Ok(());
        }
        match fields.status {
            Some(0) => return Err(Surprise::Head),
            Some(100..200) => {}
            Some(status) => (stream.status, stream.grpc_status) = (status, fields.grpc_status),
            None => stream.grpc_status = fields.grpc_status.or(stream.grpc_status),
        }
        Ok(())
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.streams.binary_search_by_key(&id, |s| s.id).ok()
    }

    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        let place = self.place(id)?;
        self.streams.get_mut(place)
    }

    /// A direction of a stream has ended; when both have, it has.
    fn way_ended(&mut self, from: By, id: u32, now: Clock<'_>, done: &mut Queue<Exchange>) {
        let Some(place) = self.place(id) else { return };
        let Some(stream) = self.streams.get_mut(place) else { return };
        stream.way(from).ended = true;
        if stream.request.ended && stream.answer.ended {
            done.push(self.streams.remove(place).exchange(Flag::None, now()));
        }
    }

    fn reset(&mut self, from: By, id: u32, now: Clock<'_>, done: &mut Queue<Exchange>) {
        let Some(place) = self.place(id) else { return };
        let flag = if from == By::Client { Flag::ClientGone } else { Flag::UpstreamReset };
        done.push(self.streams.remove(place).exchange(flag, now()));
    }

    /// The server will not look at streams behind this one.
    fn left_out(&mut self, last: u32, now: Clock<'_>, done: &mut Queue<Exchange>) {
        let from = self.streams.partition_point(|s| s.id <= last);
        self.streams.drain(from..).for_each(|s| done.push(s.exchange(Flag::UpstreamReset, now())));
    }

    /// The connection has ended.
    pub fn close(&mut self, ends: Ends, now: Clock<'_>, done: &mut Queue<Exchange>) {
        self.streams.drain(..).for_each(|s| done.push(s.exchange(ends.flag(), now())));
    }
}

impl Stream {
    fn way(&mut self, from: By) -> &mut Way {
        if from == By::Client { &mut self.request } else { &mut self.answer }
    }

    /// `flag`: why it has ended before its end, if its answer is not whole.
    fn exchange(self, flag: Flag, now: Duration) -> Exchange {
        Exchange {
            protocol: if self.is_grpc { Protocol::Grpc } else { Protocol::Http },
            status: self.status,
            flag: if self.answer.ended { Flag::None } else { flag },
            grpc_status: self.grpc_status.filter(|_| self.is_grpc),
            request_bytes: self.request.bytes,
            response_bytes: self.answer.bytes,
            request_messages: self.request.messages.count,
            response_messages: self.answer.messages.count,
            duration: now.saturating_sub(self.started),
            asked: self.asked,
        }
    }
}

/// What is read of a block of headers.
#[derive(Clone, Copy, Debug, Default)]
struct Fields {
    status: Option<u16>,
    is_grpc: bool,
    grpc_status: Option<u8>,
}

impl Fields {
    fn note(&mut self, field: Field) {
        match field {
            Field::Status(status) => self.status = Some(status),
            Field::ContentType { grpc } => self.is_grpc = grpc,
            Field::GrpcStatus(code) => self.grpc_status = Some(code),
            Field::Method | Field::Path | Field::Other => {}
        }
    }
}
