//! HTTP/2 of tests, frame by frame: a client that asks for a page and for a WebSocket (RFC 8441) at once, on one connection, as browsers
//! do.

use std::io::{Error, Read, Result, Write};

const PAGE: u32 = 1;
const CHAT: u32 = 3;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The setting that says that extended CONNECTs are taken, and its value.
const CONNECT_PROTOCOL: [u8; 6] = [0, 8, 0, 0, 0, 1];
/// The field `:status: 200`, by its number in HPACK's table.
const OK: u8 = 0x88;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// The client.
pub struct Browser<T> {
    io: T,
    /// What it has got of the page.
    pub page: Vec<u8>,
    /// The WebSocket was answered with 200.
    pub is_open: bool,
}

impl<T: Read + Write> Browser<T> {
    /// Begins a connection, asks for `/` and for a WebSocket at `path`, and waits for the page and for the WebSocket's answer.
    ///
    /// # Errors
    /// Those of the stream; settings without extended CONNECT; a stream that is reset in place of an answer; GOAWAY.
    pub fn open(io: T, scheme: &str, authority: &str, path: &str) -> Result<Self> {
        let mut browser = Self { io, page: vec![], is_open: false };
        browser.io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        browser.send(SETTINGS, 0, 0, &[])?;
        browser.settings()?;
        let common = [(":scheme", scheme), (":authority", authority)];
        let page = [&[(":method", "GET"), (":path", "/")][..], &common].concat();
        let chat = [&[(":method", "CONNECT"), (":protocol", "websocket"), (":path", path)][..], &common].concat();
        browser.send(HEADERS, END_HEADERS | END_STREAM, PAGE, &fields(&page))?;
        browser.send(HEADERS, END_HEADERS, CHAT, &fields(&chat))?;
        let (mut is_read, mut is_answered) = (false, false);
        while !is_read || !is_answered {
            let frame = browser.receive()?;
            match (frame.stream, frame.kind) {
                (PAGE, HEADERS) => is_read = frame.flags & END_STREAM != 0,
                (PAGE, DATA) => {
                    browser.page.extend(&frame.payload);
                    is_read = frame.flags & END_STREAM != 0;
                }
                (CHAT, HEADERS) => {
                    is_answered = true;
                    browser.is_open = frame.payload.first() == Some(&OK);
                }
                // Who refuses has no use for what would follow.
                (CHAT, RST_STREAM) if is_answered && !browser.is_open => {}
                (_, RST_STREAM | GOAWAY) => return Err(frame.ended()),
                _ => {}
            }
        }
        Ok(browser)
    }

    /// Sends text on the WebSocket, and waits for as much that comes back.
    ///
    /// # Errors
    /// Those of the stream; one that is reset; GOAWAY.
    pub fn echo(&mut self, text: &[u8]) -> Result<Vec<u8>> {
        self.send(DATA, 0, CHAT, text)?;
        let mut back = vec![];
        while back.len() < text.len() {
            let frame = self.receive()?;
            match (frame.stream, frame.kind) {
                (CHAT, DATA) => back.extend(&frame.payload),
                (CHAT, RST_STREAM) | (_, GOAWAY) => return Err(frame.ended()),
                _ => {}
            }
        }
        Ok(back)
    }

    /// Ends this side of the WebSocket.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn end(&mut self) -> Result<()> {
        self.send(DATA, END_STREAM, CHAT, &[])
    }

    /// Waits until the other side has ended the WebSocket. True: by a reset.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn ended(&mut self) -> Result<bool> {
        loop {
            let frame = self.receive()?;
            match (frame.stream, frame.kind) {
                (CHAT, RST_STREAM) => return Ok(true),
                (CHAT, DATA) if frame.flags & END_STREAM != 0 => return Ok(false),
                _ => {}
            }
        }
    }

    /// Waits for the server's settings.
    fn settings(&mut self) -> Result<()> {
        loop {
            let frame = self.receive()?;
            if (frame.kind, frame.flags) == (SETTINGS, 0) {
                self.send(SETTINGS, ACK, 0, &[])?;
                return match frame.payload.chunks(6).any(|setting| setting == CONNECT_PROTOCOL) {
                    true => Ok(()),
                    false => Err(Error::other("extended CONNECT is not announced")),
                };
            }
        }
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let length = (payload.len() as u32).to_be_bytes();
        self.io.write_all(&[&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat())
    }

    fn receive(&mut self) -> Result<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head)?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.io.read_exact(&mut payload)?;
        Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }
}

impl Frame {
    /// The error that it stands for.
    fn ended(&self) -> Error {
        let what = if self.kind == GOAWAY { "GOAWAY" } else { "reset" };
        Error::other(format!("stream {}: {what} {:?}", self.stream, self.payload))
    }
}

/// Fields as HPACK writes them without any table.
fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    let text = |s: &str| [&[s.len() as u8][..], s.as_bytes()].concat();
    all.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}
