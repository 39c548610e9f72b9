//! HTTP/1.1 of the application: it does what the path of a request says, `/client/form/code/size`, and counts what it did.

use crate::{route::TEXT, tally::Tally};
use socket2::SockRef;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

/// What is read or written at once, in bytes.
const BUFFER: usize = 64 << 10;

/// The next line, without its end. None: nothing more comes.
fn line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    from.read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_string()))
}

/// The next line, where one must come.
pub fn next_line(from: &mut impl BufRead) -> io::Result<String> {
    line(from)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Passes over so many bytes.
pub fn skip(from: &mut impl BufRead, size: usize) -> io::Result<()> {
    let skipped = io::copy(&mut from.take(size as u64), &mut io::sink())?;
    if skipped == size as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Passes over all that comes.
pub fn drain(from: &mut impl BufRead) -> io::Result<()> {
    io::copy(from, &mut io::sink()).map(|_| ())
}

/// Adds a body in chunks, with an extension and a trailer.
pub fn put_chunks(out: &mut Vec<u8>, body: &[u8]) {
    for chunk in body.chunks(700) {
        let _ = write!(out, "{:x};x=y\r\n", chunk.len());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\nx-trailer: z\r\n\r\n");
}

/// What a head says of its body.
#[derive(Default)]
pub struct Head {
    pub length: Option<usize>,
    pub is_chunked: bool,
    expects: bool,
}

impl Head {
    /// The lines after the first one.
    pub fn read(from: &mut impl BufRead) -> io::Result<Self> {
        let mut head = Self::default();
        loop {
            let field = next_line(from)?;
            match field.split_once(": ") {
                _ if field.is_empty() => return Ok(head),
                Some(("content-length", value)) => head.length = Some(value.parse().map_err(io::Error::other)?),
                Some(("transfer-encoding", _)) => head.is_chunked = true,
                Some(("expect", _)) => head.expects = true,
                _ => {}
            }
        }
    }

    /// Passes over the body, if it has one whose end is said.
    pub fn skip_body(&self, from: &mut impl BufRead) -> io::Result<()> {
        if !self.is_chunked {
            return skip(from, self.length.unwrap_or_default());
        }
        loop {
            let size = next_line(from)?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16);
            match size.map_err(io::Error::other)? {
                0 => break,
                size => skip(from, size)?,
            }
            next_line(from)?;
        }
        while !next_line(from)?.is_empty() {}
        Ok(())
    }
}

struct Request {
    is_head: bool,
    client: usize,
    form: String,
    code: u16,
    size: usize,
    head: Head,
}

impl Request {
    /// None: no more come. `InvalidData`: that is none.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(first) = line(from)? else { return Ok(None) };
        let words: Vec<&str> = first.split([' ', '/']).collect();
        let [method, "", client, form, code, size, "HTTP", "1.1"] = words[..] else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let number = |text: &str| text.parse::<usize>().map_err(io::Error::other);
        Ok(Some(Self {
            is_head: method == "HEAD",
            client: number(client)?,
            form: form.into(),
            code: number(code)? as u16,
            size: number(size)?,
            head: Head::read(from)?,
        }))
    }

    /// Adds what is said to it.
    fn answer(&self, out: &mut Vec<u8>) {
        let Self { form, code, size, .. } = self;
        let head = match form.as_str() {
            "quit" | "reset" | "wait" => return,
            _ if self.code == 204 => String::new(),
            "chunked" => "transfer-encoding: chunked\r\n".into(),
            "rest" => "connection: close\r\n".into(),
            "upgrade" => "connection: Upgrade\r\nupgrade: websocket\r\n".into(),
            "close" | "refuse" => format!("connection: close\r\ncontent-length: {size}\r\n"),
            // One byte more than comes.
            "half" | "part" => format!("content-length: {}\r\n", size + 1),
            _ => format!("content-length: {size}\r\n"),
        };
        if form == "early" {
            out.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n");
        }
        let _ = write!(out, "HTTP/1.1 {code} x\r\n{head}\r\n");
        let body = &TEXT[..*size];
        match form.as_str() {
            _ if self.is_head || matches!(self.code, 101 | 204 | 304) => {}
            "chunked" => put_chunks(out, body),
            _ => out.extend_from_slice(body),
        }
    }
}

fn send(mut to: &TcpStream, out: &mut Vec<u8>) -> io::Result<()> {
    to.write_all(out)?;
    out.clear();
    Ok(())
}

/// What comes goes back.
fn echo(from: &mut impl BufRead, mut to: &TcpStream) -> io::Result<()> {
    loop {
        let bytes = from.fill_buf()?;
        let length = bytes.len();
        if length == 0 {
            return Ok(());
        }
        to.write_all(bytes)?;
        from.consume(length);
    }
}

/// One connection. Answers wait until no more of a pipeline is there.
pub fn serve(stream: &TcpStream, tally: &Tally) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut from, mut out) = (BufReader::with_capacity(BUFFER, stream), Vec::new());
    loop {
        if from.buffer().is_empty() || out.len() > BUFFER {
            send(stream, &mut out)?;
        }
        let request = match Request::read(&mut from) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return drain(&mut from),
            Err(e) => return Err(e),
        };
        let form = request.form.as_str();
        if form != "refuse" {
            if request.head.expects {
                out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                send(stream, &mut out)?;
            }
            request.head.skip_body(&mut from)?;
        }
        request.answer(&mut out);
        let (code, flag) = match form {
            "length" | "chunked" | "early" => {
                tally.http(request.client, request.code, "-");
                continue;
            }
            "quit" | "reset" => (0, "UC"),
            "wait" => (0, "DC"),
            "half" => (request.code, "UC"),
            "part" => (request.code, "DC"),
            _ => (request.code, "-"),
        };
        // The last one that is answered.
        send(stream, &mut out)?;
        match form {
            "reset" => SockRef::from(stream).set_linger(Some(Duration::ZERO))?,
            "wait" => drain(&mut from)?,
            // The client's reset is an error.
            "part" => drop(drain(&mut from)),
            "upgrade" => echo(&mut from, stream)?,
            _ => stream.shutdown(Shutdown::Write)?,
        }
        tally.http(request.client, code, flag);
        if form == "reset" {
            return Ok(());
        }
        // Who was behind it in the pipeline is read, and told nothing.
        while let Ok(Some(more)) = Request::read(&mut from) {
            more.head.skip_body(&mut from)?;
            tally.http(more.client, 0, "UC");
        }
        return Ok(());
    }
}
