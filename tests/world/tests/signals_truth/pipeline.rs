//! Clients of HTTP/1.1: pipelines of bytes that are made beforehand, and the ways in which a connection may end.

use crate::{
    http1::{Head, drain, next_line, put_chunks, skip},
    route::{Route, TEXT, pick},
};
use rand::{Rng, rngs::StdRng};
use socket2::SockRef;
use std::{
    io::{self, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

/// The application's port, which is declared to be HTTP.
const PORT: u16 = 80;
/// What a pipeline and its answers may be together before its last request, in bytes: what sockets take while nobody reads.
const BATCH: usize = 48 << 10;

const CODES: [u16; 8] = [200, 200, 201, 204, 304, 404, 500, 503];
/// How a connection ends. "": the client has no more to say.
const ENDINGS: [&str; 11] = ["", "", "junk", "close", "rest", "refuse", "quit", "half", "reset", "wait", "part"];

/// The answer that must come.
struct Want {
    is_head: bool,
    code: u16,
    size: usize,
}

/// The first lines of a request, which others may follow.
fn head(client: usize, method: &str, form: &str, code: u16, size: usize) -> String {
    format!("{method} /{client}/{form}/{code}/{size} HTTP/1.1\r\nhost: app\r\n")
}

fn size(rng: &mut StdRng) -> usize {
    match rng.random_range(0..40) {
        0 => rng.random_range(0..20_000),
        1..=8 => 0,
        _ => rng.random_range(0..600),
    }
}

struct Session<'a> {
    route: &'a Route,
    rng: &'a mut StdRng,
    stream: &'a TcpStream,
    from: BufReader<&'a TcpStream>,
    asked: u64,
}

/// A connection with some pipelines on it; how many requests there were.
pub fn session(route: &Route, rng: &mut StdRng) -> io::Result<u64> {
    let stream = route.connect(PORT)?;
    let mut session = Session { route, rng, stream: &stream, from: BufReader::new(&stream), asked: 0 };
    for _ in 0..session.rng.random_range(1..8) {
        match session.rng.random_range(0..8) {
            0 => session.expecting()?,
            1 => session.staying()?,
            _ => session.pipeline()?,
        }
    }
    session.end()?;
    Ok(session.asked)
}

/// A connection that becomes a websocket's: one request, and bytes that are none.
pub fn upgraded(route: &Route, rng: &mut StdRng) -> io::Result<u64> {
    let stream = route.connect(PORT)?;
    let mut session = Session { route, rng, stream: &stream, from: BufReader::new(&stream), asked: 0 };
    let request = head(route.number, "GET", "upgrade", 101, 0) + "connection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    session.send(request.as_bytes())?;
    session.hear(&[Want { is_head: false, code: 101, size: 0 }])?;
    for _ in 0..session.rng.random_range(0..6) {
        let mut bytes = TEXT[..session.rng.random_range(1..40_000)].to_vec();
        if session.rng.random() {
            session.rng.fill(&mut bytes[..]);
        }
        session.send(&bytes)?;
        let mut back = vec![0; bytes.len()];
        session.from.read_exact(&mut back)?;
        if back != bytes {
            return Err(io::Error::other("other bytes came back"));
        }
    }
    stream.shutdown(Shutdown::Write)?;
    drain(&mut session.from)?;
    Ok(1)
}

impl Session<'_> {
    /// Adds a request that says nothing of the connection.
    fn put(&mut self, out: &mut Vec<u8>) -> Want {
        self.asked += 1;
        let rng = &mut *self.rng;
        let method = pick(rng, &["GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE"]);
        let form = pick(rng, &["length", "length", "chunked", "early"]);
        let want = Want { is_head: method == "HEAD", code: pick(rng, &CODES), size: size(rng) };
        out.extend_from_slice(head(self.route.number, method, form, want.code, want.size).as_bytes());
        let body = &TEXT[..size(rng)];
        if !matches!(method, "POST" | "PUT") {
            out.extend_from_slice(b"\r\n");
        } else if rng.random() {
            let _ = write!(out, "content-length: {}\r\n\r\n", body.len());
            out.extend_from_slice(body);
        } else {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            put_chunks(out, body);
        }
        want
    }

    /// In one piece or in two.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let cut = if self.rng.random() { self.rng.random_range(0..=bytes.len()) } else { bytes.len() };
        let mut to = self.stream;
        to.write_all(&bytes[..cut])?;
        to.write_all(&bytes[cut..])
    }

    /// These answers, and no others.
    fn hear(&mut self, wanted: &[Want]) -> io::Result<()> {
        for want in wanted {
            let (code, head) = loop {
                let first = next_line(&mut self.from)?;
                let code = first.split(' ').nth(1).and_then(|c| c.parse::<u16>().ok()).unwrap_or_default();
                let head = Head::read(&mut self.from)?;
                if code == 101 || code >= 200 {
                    break (code, head);
                }
            };
            if code != want.code {
                return Err(io::Error::other(format!("{code} instead of {}", want.code)));
            }
            match code {
                101 | 204 | 304 => {}
                _ if want.is_head => {}
                _ if head.length.is_none() && !head.is_chunked => drain(&mut self.from)?,
                _ => head.skip_body(&mut self.from)?,
            }
        }
        Ok(())
    }

    fn pipeline(&mut self) -> io::Result<()> {
        let (mut out, mut wanted, mut answers) = (vec![], vec![], 0);
        let most = self.rng.random_range(1..=64);
        while wanted.len() < most && out.len() + answers < BATCH {
            let want = self.put(&mut out);
            answers += want.size;
            wanted.push(want);
        }
        self.send(&out)?;
        self.hear(&wanted)
    }

    /// The body goes when the application wants it; both are large.
    fn expecting(&mut self) -> io::Result<()> {
        self.asked += 1;
        let size = self.rng.random_range(0..100_000);
        let head = head(self.route.number, "POST", "chunked", 200, size);
        self.send(format!("{head}expect: 100-continue\r\ncontent-length: {size}\r\n\r\n").as_bytes())?;
        let interim = next_line(&mut self.from)?;
        if interim != "HTTP/1.1 100 Continue" || !next_line(&mut self.from)?.is_empty() {
            return Err(io::Error::other(format!("{interim:?} instead of 100")));
        }
        self.send(&TEXT[..size])?;
        self.hear(&[Want { is_head: false, code: 200, size }])
    }

    /// The application does not want another protocol.
    fn staying(&mut self) -> io::Result<()> {
        self.asked += 1;
        let head = head(self.route.number, "GET", "length", 426, 10);
        self.send(format!("{head}connection: Upgrade\r\nupgrade: h2c\r\n\r\n").as_bytes())?;
        self.hear(&[Want { is_head: false, code: 426, size: 10 }])
    }

    fn end(&mut self) -> io::Result<()> {
        let (ending, client) = (pick(self.rng, &ENDINGS), self.route.number);
        let (mut out, mut wanted) = (vec![], vec![]);
        if matches!(ending, "quit" | "half" | "wait") {
            for _ in 0..self.rng.random_range(0..5) {
                wanted.push(self.put(&mut out));
            }
        }
        let length = self.rng.random_range(0..600);
        match ending {
            "" => {}
            "junk" => {
                out.extend_from_slice(b"\0\xffjunk\r\n\r\n");
                self.route.tally.gave_up(client, "head");
            }
            "refuse" => {
                out.extend_from_slice(head(client, "POST", ending, 417, length).as_bytes());
                out.extend_from_slice(b"expect: 100-continue\r\ncontent-length: 10\r\n\r\n");
                wanted.push(Want { is_head: false, code: 417, size: length });
            }
            _ => out.extend_from_slice((head(client, "GET", ending, 200, length) + "\r\n").as_bytes()),
        }
        self.asked += u64::from(!matches!(ending, "" | "junk"));
        match ending {
            "close" | "rest" => wanted.push(Want { is_head: false, code: 200, size: length }),
            // They are in vain.
            "quit" | "half" => {
                for _ in 0..self.rng.random_range(0..5) {
                    self.put(&mut out);
                }
            }
            _ => {}
        }
        self.send(&out)?;
        if matches!(ending, "" | "junk" | "wait") {
            self.stream.shutdown(Shutdown::Write)?;
        }
        self.hear(&wanted)?;
        if ending == "part" {
            next_line(&mut self.from)?;
            Head::read(&mut self.from)?;
            skip(&mut self.from, length)?;
            return SockRef::from(self.stream).set_linger(Some(Duration::ZERO));
        }
        let ended = drain(&mut self.from);
        // There it may be an error.
        if ending == "reset" { Ok(()) } else { ended }
    }
}
