//! TLS of the controller's own servers: one certificate for all, made anew in time and when the authority's root is.

use crate::{
    ca::CertificateAuthority,
    gate::{AUTHENTICATE, Gate, Link},
};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use karst_core::limits;
use karst_rt::admission::{Ended, Permit};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Lifetime of the certificate; a new one is made after half of it.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// Connections with their handshake done that wait to be served; more wait with their own places.
const QUEUE: usize = 256;

/// The certificate, always a current one.
#[derive(Debug)]
pub struct Serving(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certificate(authority: &CertificateAuthority, names: &[String]) -> anyhow::Result<Arc<CertifiedKey>> {
    let (chain, key) = authority.serving(names, LIFETIME)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain?, key, &provider)?))
}

impl Serving {
    /// Makes the first certificate, and keeps it current. Must run in a `LocalSet`.
    ///
    /// # Errors
    /// If none can be made.
    pub fn start(authority: Arc<CertificateAuthority>, names: Vec<String>) -> anyhow::Result<Arc<Self>> {
        let serving =
            Arc::new(Self(certificate(&authority, &names).context("the controller's own certificate")?.into()));
        let mut roots = authority.roots();
        let mine = serving.clone();
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
        Ok(serving)
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

/// A connection with its handshake done. It breaks off when it has to end ([`Link::ended`]).
pub struct Connection {
    tls: TlsStream<TcpStream>,
    link: Link,
    ends: Pin<Box<dyn Future<Output = Ended> + Send>>,
    ended: bool,
}

impl Connection {
    fn new(tls: TlsStream<TcpStream>, link: Link) -> Self {
        let ends = Box::pin(link.ended(AUTHENTICATE));
        Self { tls, link, ends, ended: false }
    }
}

impl Connected for Connection {
    type ConnectInfo = Link;
    fn connect_info(&self) -> Link {
        self.link.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Whoever serves it always waits for the next bytes, too.
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Poll::Ready(e) = this.ends.as_mut().poll(cx) {
            this.ended = true;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, e)));
        }
        Pin::new(&mut this.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Connections with their handshake done. Those that do not get on hold up no others: they give way. `known`: may one from this
/// address have a place that is kept from strangers?
pub fn incoming(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    gate: Arc<Gate>,
    known: impl Fn(IpAddr) -> bool + 'static,
) -> ReceiverStream<io::Result<Connection>> {
    let (tx, rx) = mpsc::channel(QUEUE);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, from) = karst_rt::accept::accept(&listener).await;
            let Ok(permit) = gate.admit(from.ip(), known(from.ip())) else { continue };
            let _ = stream.set_nodelay(true);
            let (acceptor, tx, gate) = (acceptor.clone(), tx.clone(), gate.clone());
            tokio::task::spawn_local(async move {
                let evicted = permit.watch();
                match handshake(stream, from, &acceptor, &gate, permit).await {
                    Ok(Some(c)) => tokio::select! {
                        _ = tx.send(Ok(c)) => {}
                        () = evicted => gate.unknown.note(Ended::Evicted),
                    },
                    Ok(None) => {}
                    Err(e) => {
                        gate.unknown.note(e);
                        tracing::debug!(peer = %from, error = %e, "TLS handshake failed");
                    }
                }
            });
        }
    });
    ReceiverStream::new(rx)
}

async fn handshake(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: &TlsAcceptor,
    gate: &Arc<Gate>,
    permit: Permit,
) -> Result<Option<Connection>, Ended> {
    permit.first_byte(&stream, limits::FIRST_BYTE_TIMEOUT).await?;
    match permit.within(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await? {
        Ok(tls) => Ok(Some(Connection::new(tls, Link::new(from, gate.clone(), permit)))),
        Err(e) => {
            tracing::debug!(peer = %from, error = %e, "TLS handshake failed");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_rt::admission::Limits;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
        task::LocalSet,
    };
    use tokio_rustls::{TlsConnector, client};
    use tokio_stream::StreamExt;

    const PLACES: usize = 64;
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Site {
        acceptor: TlsAcceptor,
        connector: TlsConnector,
    }

    impl Site {
        fn new() -> Self {
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = rcgen::CertificateParams::new(vec!["istiod".into()]).unwrap().self_signed(&key).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let own = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
            let server = server.unwrap().with_no_client_auth().with_single_cert(vec![cert.der().clone()], own).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(cert.der().clone()).unwrap();
            let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
            Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() }
        }

        /// A server that says hello on each connection, and then holds it as long as its peer does.
        async fn serve(&self, gate: &Arc<Gate>) -> SocketAddr {
            let l = TcpListener::bind("0.0.0.0:0").await.unwrap();
            let at = SocketAddr::from(([127, 0, 0, 1], l.local_addr().unwrap().port()));
            let mut all = incoming(l, self.acceptor.clone(), gate.clone(), |_| false);
            tokio::task::spawn_local(async move {
                while let Some(c) = all.next().await {
                    let mut c = c.unwrap();
                    tokio::task::spawn_local(async move {
                        c.write_all(b"hello").await.unwrap();
                        while c.read(&mut [0; 16]).await.is_ok_and(|n| n > 0) {}
                    });
                }
            });
            at
        }

        async fn greeted(&self, to: SocketAddr) -> client::TlsStream<TcpStream> {
            let s = TcpStream::connect(to).await.unwrap();
            let mut s = self.connector.connect("istiod".try_into().unwrap(), s).await.unwrap();
            let mut hello = [0; 5];
            s.read_exact(&mut hello).await.unwrap();
            assert_eq!(&hello, b"hello");
            s
        }
    }

    /// The n-th attacker; one of eight addresses.
    async fn silent(to: SocketAddr, n: usize) -> io::Result<TcpStream> {
        let s = TcpSocket::new_v4()?;
        s.bind(([127, 0, 1, (n % 8) as u8 + 1], 0).into())?;
        s.connect(to).await
    }

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::new(Limits::shared(PLACES), Limits::even(PLACES)))
    }

    async fn run(f: impl Future<Output = ()>) {
        tokio::time::timeout(PATIENCE, LocalSet::new().run_until(f)).await.unwrap();
    }

    /// Twice the places are taken by who says nothing, then by who shows no token after the handshake.
    #[tokio::test]
    async fn who_does_not_get_on_keeps_nobody_out() {
        run(async {
            let (site, gate) = (Site::new(), gate());
            let to = site.serve(&gate).await;
            let mut held = vec![];
            for n in 0..2 * PLACES {
                held.push(silent(to, n).await);
                if n % 16 == 15 {
                    site.greeted(to).await;
                }
            }
            assert!(gate.unknown.of(Ended::Evicted) >= PLACES as u64);
            let mut idle = vec![];
            for _ in 0..2 * PLACES {
                idle.push(site.greeted(to).await);
            }
            assert!(!matches!(idle[0].read(&mut [0]).await, Ok(1..)), "the first one has ended");
        })
        .await;
    }

    #[tokio::test]
    async fn who_fills_one_server_does_not_stop_the_other() {
        run(async {
            let (site, one, other) = (Site::new(), gate(), gate());
            let (discovery, webhook) = (site.serve(&one).await, site.serve(&other).await);
            let mut held = vec![];
            for n in 0..2 * PLACES {
                held.push(silent(discovery, n).await);
            }
            site.greeted(webhook).await;
            assert_eq!([Ended::Evicted, Ended::Refused].map(|e| other.unknown.of(e)), [0, 0]);
            site.greeted(discovery).await;
        })
        .await;
    }
}
