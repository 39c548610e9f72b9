//! Where the clients connect to, in plaintext or in TLS.
use crate::{tls, util::Args};
use rustls::pki_types::ServerName;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Whom a client calls.
#[derive(Clone)]
pub struct Target {
    to: String,
    /// By what, and the name that it asks for.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    /// `--to`, with `--tls` by TLS to `--host`. `protocol`: what is spoken there, as ALPN names it.
    pub fn new(args: &Args, protocol: Option<&str>) -> io::Result<Target> {
        let to = args.to()?;
        if !args.flag("tls") {
            return Ok(Target { to, tls: None });
        }
        let host = args.get("host").ok_or_else(|| io::Error::other("--tls needs --host NAME"))?;
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        Ok(Target { to, tls: Some((tls::client(protocol)?, name)) })
    }
    /// A path there, as a URL.
    pub fn url(&self, host: &str, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{host}{path}")
    }
    /// A new connection.
    pub async fn open(&self) -> io::Result<Box<dyn Io>> {
        let s = connect(&self.to).await?;
        let io: Box<dyn Io> = match &self.tls {
            None => Box::new(s),
            Some((tls, name)) => Box::new(tls.connect(name.clone(), s).await?),
        };
        Ok(io)
    }
}

/// A socket to an address.
pub async fn connect(to: &str) -> io::Result<TcpStream> {
    let s = TcpStream::connect(to).await?;
    s.set_nodelay(true)?;
    Ok(s)
}
