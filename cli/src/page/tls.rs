//! The page's own HTTPS, by the certificate and key of a Secret that is mounted: tokens do not pass in plaintext. They are read again
//! when they have been renewed; what cannot be read leaves those that there were.

use super::guard::Log;
use karst_rt::clock::Instant;
use rustls::{
    ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use std::{
    cell::RefCell,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_rustls::TlsAcceptor;

/// The files are read again after this time.
const AGAIN: Duration = Duration::from_secs(60);

/// Why there is no HTTPS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It has no certificates, or no key.
    #[error("{}: {error}", .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: pem::Error,
    },
    /// They do not belong together, or are of a kind that is not known.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What connections are accepted with.
pub struct Tls {
    directory: PathBuf,
    current: RefCell<(Instant, TlsAcceptor)>,
    log: Log,
}

impl Tls {
    /// By the files `tls.crt` and `tls.key` of a directory, as Secrets of type `kubernetes.io/tls` have them.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn open(directory: &Path, log: Log) -> Result<Self, TlsError> {
        let current = RefCell::new((Instant::now(), read(directory)?));
        Ok(Self { directory: directory.to_owned(), current, log })
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.borrow_mut();
        if current.0.elapsed() >= AGAIN {
            current.0 = Instant::now();
            match read(&self.directory) {
                Ok(acceptor) => current.1 = acceptor,
                Err(e) => (self.log)(&format!("{e}; the certificate that was read before stays in use")),
            }
        }
        current.1.clone()
    }
}

fn read(directory: &Path) -> Result<TlsAcceptor, TlsError> {
    let file = |name: &str| {
        let path = directory.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok((path, bytes)),
            Err(error) => Err(TlsError::File { path, error }),
        }
    };
    let (path, bytes) = file("tls.crt")?;
    let chain: Result<Vec<CertificateDer<'static>>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| TlsError::Pem { path, error })?;
    let (path, bytes) = file("tls.key")?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| TlsError::Pem { path, error })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = versions.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::page::{Door, Shared, Site};
    use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
    use std::{fs, rc::Rc};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::LocalSet,
    };
    use tokio_rustls::TlsConnector;

    /// A directory as a Secret is mounted; gone with the test.
    struct Mounted(PathBuf);

    impl Mounted {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("karst-page-tls-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            Self(directory)
        }

        /// Writes a new certificate; gives a client's trust in it.
        fn renew(&self) -> TlsConnector {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate =
                rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
            fs::write(self.0.join("tls.crt"), certificate.pem()).unwrap();
            fs::write(self.0.join("tls.key"), key.serialize_pem()).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(certificate.der().clone()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn quiet() -> Log {
        Box::new(|_| {})
    }

    #[test]
    fn what_is_missing_or_does_not_belong_together_is_told_with_its_file() {
        let mounted = Mounted::new("wrong");
        let said = || Tls::open(&mounted.0, quiet()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said().contains("tls.crt"), "{}", said());
        mounted.renew();
        assert_eq!(said(), "");
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(mounted.0.join("tls.key"), key.serialize_pem()).unwrap();
        assert!(said().contains("cannot be used"), "another's key: {}", said());
        fs::write(mounted.0.join("tls.key"), "no key").unwrap();
        assert!(said().contains("tls.key"), "{}", said());
        fs::write(mounted.0.join("tls.crt"), "no certificate").unwrap();
        assert!(!said().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_renewed_is_used_and_what_cannot_be_read_is_not() {
        let mounted = Mounted::new("renewed");
        let first = mounted.renew();
        let tls = Tls::open(&mounted.0, quiet()).unwrap();
        let shakes = async |client: &TlsConnector| {
            let (ours, theirs) = tokio::io::duplex(16 << 10);
            let name = ServerName::try_from("localhost").unwrap();
            let (server, client) = tokio::join!(tls.acceptor().accept(ours), client.connect(name, theirs));
            server.is_ok() && client.is_ok()
        };
        assert!(shakes(&first).await);
        fs::write(mounted.0.join("tls.key"), "half written").unwrap();
        tokio::time::advance(AGAIN).await;
        assert!(shakes(&first).await, "what there was");
        let second = mounted.renew();
        assert!(!shakes(&second).await, "not read at each connection");
        tokio::time::advance(AGAIN).await;
        assert!(shakes(&second).await && !shakes(&first).await);
    }

    #[tokio::test]
    async fn the_page_is_served_by_https_and_not_in_plaintext() {
        let run = async {
            let mounted = Mounted::new("served");
            let client = mounted.renew();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let site = Rc::new(Site::new(Door::new(at.port()), Shared::default(), None));
            let tls = Tls::open(&mounted.0, quiet()).unwrap();
            tokio::task::spawn_local(async move { site.serve(listener, Some(tls)).await });
            let ask = format!("GET /login.css HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n");
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = client.connect(name, TcpStream::connect(at).await.unwrap()).await.unwrap();
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
            let mut plain = TcpStream::connect(at).await.unwrap();
            plain.write_all(ask.as_bytes()).await.unwrap();
            let mut answer = vec![];
            let _ = plain.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
        };
        LocalSet::new().run_until(run).await;
    }
}
