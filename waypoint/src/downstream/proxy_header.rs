//! The header of the PROXY protocol that a connection to a gateway begins with, where the gateway's topology says that it does. What it is
//! read from goes on after it. (What a header may be is decided in [`karst_core::proxy_protocol`].)

use crate::downstream::stream::Io;
use karst_core::proxy_protocol::{self, HeaderError, Origin};
use std::io;
use tokio::io::AsyncReadExt;

/// Bytes that are read at a time.
const PIECE: usize = 512;

/// Why a connection has no header.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The peer has left before its end.
    #[error("the connection ended before a PROXY protocol header")]
    Left,
    /// The connection is broken.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It begins otherwise.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// Whom a connection is from. What comes after the header is read by whom the connection is for.
///
/// # Errors
/// There is no header.
pub async fn origin(io: &mut Io) -> Result<Origin, ProxyHeaderError> {
    // A header is never longer than `MAX`: more than that and one piece is never held.
    let (mut first, mut piece) = (Vec::with_capacity(PIECE), vec![0; PIECE]);
    loop {
        let length = io.read(&mut piece).await?;
        if length == 0 {
            return Err(ProxyHeaderError::Left);
        }
        first.extend_from_slice(piece.get(..length).unwrap_or_default());
        if let Some(header) = proxy_protocol::read(&first)? {
            io.unread(first.split_off(header.length).into());
            return Ok(header.origin);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_core::proxy_protocol::Version;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn what_follows_the_header_is_the_connections_own() {
        let (from, to) = ("192.0.2.1:1".parse().unwrap(), "198.51.100.2:2".parse().unwrap());
        for version in [Version::V1, Version::V2] {
            let header = proxy_protocol::write(version, from, to);
            // At once, and byte by byte.
            for piece in [header.len() + 5, 1] {
                let (mut client, server) = tokio::io::duplex(1);
                let bytes = [&header[..], b"hello"].concat();
                let write = async {
                    for part in bytes.chunks(piece) {
                        client.write_all(part).await.unwrap();
                    }
                    drop(client);
                };
                let read = async {
                    let mut io = Io::memory(server);
                    let found = origin(&mut io).await.unwrap();
                    let mut rest = String::new();
                    io.read_to_string(&mut rest).await.unwrap();
                    (found, rest)
                };
                let ((), (found, rest)) = tokio::join!(write, read);
                assert_eq!((found, rest.as_str()), (Origin::Client { from, to }, "hello"), "{version:?} {piece}");
            }
        }
    }

    #[tokio::test]
    async fn without_a_header_there_is_no_client() {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01", b"PROXY TCP4 1.2.3.4", b"PROXY TCP9 \r\n", b""] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(bytes).await.unwrap();
            drop(client);
            assert!(origin(&mut Io::memory(server)).await.is_err(), "{bytes:?}");
        }
    }
}
