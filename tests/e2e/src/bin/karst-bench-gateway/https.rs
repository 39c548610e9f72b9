//! A request by TLS, on a connection of its own.

use anyhow::{Context, Result};
use karst_rt::netns::Netns;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

/// An answer within this, or none.
const PATIENCE: Duration = Duration::from_secs(30);

/// The status of the answer to a GET.
///
/// # Errors
/// There is no connection or no answer, or who answers has no certificate for the host that is one of these (PEM).
pub fn get(from: &Netns, to: SocketAddr, host: &str, path: &str, trusted: &str) -> Result<u16> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let name = ServerName::try_from(host.to_string())?;
    let socket = from.run(|| TcpStream::connect_timeout(&to, PATIENCE))?.with_context(|| to.to_string())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut io = StreamOwned::new(ClientConnection::new(config, name)?, socket);
    write!(io, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(io).read_line(&mut line)?;
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).with_context(|| format!("{line:?} is no answer"))
}
