//! The handshake of TLS that we speak to endpoints.

use crate::{
    cluster::{
        endpoint_set::EndpointSet,
        tls::{self, RulesError, Verifier},
    },
    downstream::stream::Io,
    snapshot::Snapshot,
};
use karst_api::route as ir;
use karst_rt::clock;
use rustls::{
    HandshakeKind,
    client::{ClientConnection, danger::ServerCertVerifier},
};
use rustls_pki_types::{ServerName, UnixTime};
use std::{io, sync::Arc};
use tokio_rustls::TlsConnector;

/// What is to be spoken on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Http2,
    Anything,
    /// TLS, by the client itself: there is none of ours around it.
    Tls,
}

/// Why there is no TLS to an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// By its rules there can be none.
    #[error("TLS: {0}")]
    Rules(Arc<RulesError>),
    /// It has failed, or the endpoint is not who it must be.
    #[error("TLS: {0}")]
    Handshake(io::Error),
    /// The certificate of the first handshake does not count any more.
    #[error("TLS: resumed session: {0}")]
    Resumed(rustls::Error),
    /// The endpoint does not speak what is to be spoken.
    #[error("TLS: the endpoint does not speak HTTP/2")]
    NoHttp2,
}

/// TLS on a stream to an endpoint, by the rules of its destination.
///
/// # Errors
/// Why it cannot be.
pub async fn shake(s: &Snapshot, set: &EndpointSet, t: &ir::ClientTls, io: Io, speaks: Speaks) -> Result<Io, TlsError> {
    let made = set.tls.get_or_init(|| tls::config(s, t, &set.host).map_err(Arc::new));
    let (config, name, verifier) = made.as_ref().map_err(|e| TlsError::Rules(e.clone()))?;
    let mut config = config.clone();
    Arc::make_mut(&mut config).alpn_protocols = match speaks {
        Speaks::Http1 => vec![b"http/1.1".to_vec()],
        Speaks::Http2 => vec![b"h2".to_vec()],
        Speaks::Anything | Speaks::Tls => vec![],
    };
    let tls = TlsConnector::from(config).connect(name.clone(), io).await.map_err(TlsError::Handshake)?;
    still_valid(verifier, name, tls.get_ref().1).map_err(TlsError::Resumed)?;
    // An endpoint that names no protocol speaks HTTP/1.1.
    if speaks == Speaks::Http2 && tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(TlsError::NoHttp2);
    }
    Ok(Io::tls(tls))
}

/// A session that is resumed remembers the certificate of the first handshake, and rustls does not look at it again: it may have
/// ended since.
fn still_valid(verifier: &Verifier, sni: &ServerName<'_>, connection: &ClientConnection) -> Result<(), rustls::Error> {
    if connection.handshake_kind() != Some(HandshakeKind::Resumed) {
        return Ok(());
    }
    let now = UnixTime::since_unix_epoch(clock::since_epoch());
    match connection.peer_certificates() {
        Some([leaf, chain @ ..]) => verifier.verify_server_cert(leaf, chain, sni, &[], now).map(drop),
        Some([]) | None => Err(rustls::Error::NoCertificatesPresented),
    }
}
