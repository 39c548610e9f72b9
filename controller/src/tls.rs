//! TLS of the controller's own servers: one certificate for all, made anew in time and when the authority's root is.

use crate::ca::Authority;
use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

/// Lifetime of the certificate; a new one is made after half of it.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// A handshake must be done within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time, and connections that wait to be served; more wait in the listen queue.
const AT_ONCE: usize = 256;

/// The certificate, always a current one.
#[derive(Debug)]
pub struct Serving(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certificate(authority: &Authority, names: &[String]) -> anyhow::Result<Arc<CertifiedKey>> {
    let (chain, key) = authority.serving(names, LIFETIME)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain?, key, &provider)?))
}

/// Are these certificates, in PEM, that can have signed others?
///
/// # Errors
/// What is wrong.
pub fn check_roots(pem: &[u8]) -> Result<(), String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let mut roots = rustls::RootCertStore::empty();
    match roots.add_parsable_certificates(all).0 {
        0 => Err("there is no certificate in it".into()),
        _ => Ok(()),
    }
}

/// Are these, in PEM, a certificate chain and the key that goes with it?
///
/// # Errors
/// What is wrong.
pub fn check_pair(chain: &[u8], key: &[u8]) -> Result<(), String> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|e| format!("certificate: {e}"))?;
    if chain.is_empty() {
        return Err("certificate: there is none in it".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("key: {e}"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(drop).map_err(|e| e.to_string())
}

impl Serving {
    /// Makes the first certificate, and keeps it current. Must run in a `LocalSet`.
    ///
    /// # Errors
    /// If none can be made.
    pub fn start(authority: Arc<Authority>, names: Vec<String>) -> anyhow::Result<Arc<Self>> {
        let s = Arc::new(Self(certificate(&authority, &names).context("the controller's own certificate")?.into()));
        let mut roots = authority.roots();
        let mine = s.clone();
        tokio::task::spawn_local(async move {
            loop {
                // A closed channel would make this spin; the authority lives as long as the task.
                let _ = tokio::time::timeout(LIFETIME / 2, roots.changed()).await;
                match certificate(&authority, &names) {
                    Ok(c) => mine.0.store(c),
                    Err(e) => {
                        tracing::error!(error = format!("{e:#}"), "the controller's own certificate cannot be renewed");
                    }
                }
            }
        });
        Ok(s)
    }

    /// For a server that speaks this protocol.
    ///
    /// # Errors
    /// Those of rustls's configuration.
    pub fn acceptor(self: &Arc<Self>, protocol: &[u8]) -> anyhow::Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("TLS of the controller's servers")?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Connections with their handshake done. One that does not get on holds up no other.
pub fn incoming(l: TcpListener, acceptor: TlsAcceptor) -> ReceiverStream<std::io::Result<TlsStream<TcpStream>>> {
    let (tx, rx) = mpsc::channel(AT_ONCE);
    let slots = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    tokio::task::spawn_local(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (s, from) = karst_rt::accept::accept(&l).await;
            let _ = s.set_nodelay(true);
            let (acceptor, tx) = (acceptor.clone(), tx.clone());
            tokio::task::spawn_local(async move {
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(s)).await {
                    Ok(Ok(s)) => drop(tx.send(Ok(s)).await),
                    Ok(Err(e)) => tracing::debug!(peer = %from, error = %e, "TLS handshake failed"),
                    Err(_) => tracing::debug!(peer = %from, "TLS handshake took too long"),
                }
                drop(slot);
            });
        }
    });
    ReceiverStream::new(rx)
}
