//! A client of HTTP/1.1 with one connection that is kept, out of a network namespace.

use anyhow::{Context, Result, bail, ensure};
use karst_rt::netns::Netns;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// An answer within this, or none.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client.
pub struct Client {
    from: Netns,
    to: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

/// An answer.
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body, whole.
    pub body: Vec<u8>,
}

impl Answer {
    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What the head of an answer says of what follows.
struct Head {
    status: u16,
    length: Option<usize>,
    is_chunked: bool,
    closes: bool,
}

impl Client {
    /// None is connected yet.
    pub fn new(from: &Netns, to: SocketAddr) -> Self {
        Self { from: from.clone(), to, connection: None }
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// There is no connection, or no answer to be read in time. The next request has a new connection.
    pub fn ask(&mut self, method: &str, host: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer> {
        let mut connection = self.begin(method, host, path, kind, body)?;
        let head = head(&mut connection)?;
        let mut body = vec![];
        match head {
            Head { is_chunked: true, .. } => while chunk(&mut connection, &mut body)? {},
            Head { length: Some(length), .. } => {
                body.resize(length, 0);
                connection.read_exact(&mut body)?;
            }
            Head { status: 204 | 304, .. } => {}
            Head { .. } => {
                connection.read_to_end(&mut body)?;
            }
        }
        if !head.closes {
            self.connection = Some(connection);
        }
        Ok(Answer { status: head.status, body })
    }

    /// A GET.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        self.ask("GET", host, path, "", &[])
    }

    /// Asks for an answer that does not end; gives its lines, and what ends it.
    ///
    /// # Errors
    /// There is no connection, or another answer.
    pub fn lines(mut self, host: &str, path: &str) -> Result<(Lines, TcpStream)> {
        let mut connection = self.begin("GET", host, path, "", &[])?;
        let head = head(&mut connection)?;
        ensure!(head.status == 200 && head.is_chunked, "{path}: status {}", head.status);
        connection.get_ref().set_read_timeout(None)?;
        let ends_it = connection.get_ref().try_clone()?;
        Ok((Lines { connection, rest: vec![] }, ends_it))
    }

    fn begin(&mut self, method: &str, host: &str, path: &str, kind: &str, body: &[u8]) -> Result<BufReader<TcpStream>> {
        let mut connection = match self.connection.take() {
            Some(kept) => kept,
            None => self.connect()?,
        };
        let kind = if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        let length = if method == "GET" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{kind}{length}\r\n").into_bytes();
        head.extend_from_slice(body);
        connection.get_mut().write_all(&head)?;
        Ok(connection)
    }

    fn connect(&self) -> Result<BufReader<TcpStream>> {
        let to = self.to;
        let stream = self.from.run(|| TcpStream::connect_timeout(&to, PATIENCE))?.with_context(|| to.to_string())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(BufReader::new(stream))
    }
}

/// Lines of an answer that does not end.
pub struct Lines {
    connection: BufReader<TcpStream>,
    rest: Vec<u8>,
}

impl Iterator for Lines {
    type Item = Vec<u8>;
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let after = self.rest.split_off(end + 1);
                return Some(std::mem::replace(&mut self.rest, after));
            }
            if !chunk(&mut self.connection, &mut self.rest).ok()? {
                return None;
            }
        }
    }
}

fn line(connection: &mut BufReader<TcpStream>) -> Result<String> {
    let mut text = String::new();
    ensure!(connection.read_line(&mut text)? > 0, "the connection has ended");
    Ok(text.trim_end().to_string())
}

fn head(connection: &mut BufReader<TcpStream>) -> Result<Head> {
    let first = line(connection)?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("{first:?}"))?;
    let mut head = Head { status, length: None, is_chunked: false, closes: false };
    loop {
        let field = line(connection)?;
        if field.is_empty() {
            return Ok(head);
        }
        let Some((name, value)) = field.split_once(':') else { bail!("{field:?} is no header") };
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", length) => head.length = Some(length.parse()?),
            ("transfer-encoding", "chunked") => head.is_chunked = true,
            ("connection", "close") => head.closes = true,
            _ => {}
        }
    }
}

/// Reads a chunk; false: that was the last one.
fn chunk(connection: &mut BufReader<TcpStream>, out: &mut Vec<u8>) -> Result<bool> {
    let size = line(connection)?;
    let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16).context(size.clone())?;
    let at = out.len();
    out.resize(at + size, 0);
    connection.read_exact(&mut out[at..])?;
    line(connection)?;
    Ok(size > 0)
}
