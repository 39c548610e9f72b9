//! The first bytes of a connection: a TLS hello, or the preface of HTTP/2. Whoever the connection is for reads them again.

use crate::downstream::{sniff::PREFACE, stream::Io};
use karst_core::authority;
use rustls::server::Acceptor;
use std::{borrow::Cow, io, time::Duration};
use tokio::io::AsyncReadExt;

/// A client must have greeted, and TLS must be done, within this time from the accept on.
pub const HELLO: Duration = Duration::from_secs(10);
/// Longest hello of TLS, bytes: one record of the largest size and what a client may put before.
const MAX_HELLO: usize = 64 << 10;

/// Why there is no hello.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The client has left, or what it says is too long.
    #[error("no hello")]
    None,
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no TLS.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Is HTTP/2 spoken, without TLS? None: nothing is.
pub async fn preface(io: &mut Io) -> Option<bool> {
    let mut first = Vec::with_capacity(PREFACE.len());
    let mut buf = [0; 1024];
    while first.is_empty() || (first.len() < PREFACE.len() && PREFACE.starts_with(&first)) {
        match io.read(&mut buf).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => first.extend_from_slice(&buf[..n]),
        }
    }
    let http2 = first.starts_with(PREFACE);
    io.unread(first.into());
    Some(http2)
}

/// The name in a TLS hello. What has been read is read again by whom the connection is for.
///
/// # Errors
/// What comes is no TLS.
pub async fn hello(io: &mut Io) -> Result<Option<String>, HelloError> {
    let mut first = Vec::with_capacity(2048);
    let found = read_hello(io, &mut first).await;
    io.unread(first.into());
    found
}

async fn read_hello(io: &mut Io, first: &mut Vec<u8>) -> Result<Option<String>, HelloError> {
    let mut acceptor = Acceptor::default();
    let mut buf = vec![0; 4096];
    loop {
        let length = io.read(&mut buf).await?;
        if length == 0 || first.len() + length > MAX_HELLO {
            return Err(HelloError::None);
        }
        first.extend_from_slice(&buf[..length]);
        let mut rest = &buf[..length];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest)?;
            if let Some(accepted) = acceptor.accept().map_err(|(e, _)| e)? {
                // As authorities are written, or a last dot would make another name of it.
                let own = |n: &str| authority::name(n).map_or_else(|| n.to_ascii_lowercase(), Cow::into_owned);
                return Ok(accepted.client_hello().server_name().map(own));
            }
        }
    }
}
