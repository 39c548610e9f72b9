//! A GET without ceremony, for admin pages.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Status and body.
pub fn get(s: TcpStream, path: &str) -> std::io::Result<(u16, String)> {
    request(s, "GET", path)
}

/// Status and body.
pub fn request(s: TcpStream, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    with_headers(s, method, path, "")
}

/// Status and body; `headers` are whole lines.
pub fn with_headers(mut s: TcpStream, method: &str, path: &str, headers: &str) -> std::io::Result<(u16, String)> {
    s.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(s, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")?;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|c| c.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map(|(_, b)| b.to_string()).unwrap_or_default();
    Ok((status, body))
}

/// Connects within two seconds.
pub fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(2))
}
