//! TLS for a relay that is measured, never for anything secret: the certificate is made at start, and nobody checks it.
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::{io, sync::Arc};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// On which side of the relay.
#[derive(Clone)]
pub enum Side {
    Accept(TlsAcceptor),
    Connect(TlsConnector),
}

impl Side {
    /// `accept`, `mutual` (accepts, and asks for a certificate) or `connect`. TLS 1.3, as HBONE: AES-256-GCM, X25519MLKEM768.
    pub fn new(side: &str) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = &[&rustls::version::TLS13];
        match side {
            "accept" | "mutual" => {
                let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
                let params = rcgen::CertificateParams::default();
                let cert = params.self_signed(&key).map_err(io::Error::other)?;
                let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
                let schemes = provider.signature_verification_algorithms.supported_schemes();
                let b = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions);
                let b = b.map(|b| match side {
                    "mutual" => b.with_client_cert_verifier(Arc::new(Anyone(schemes))),
                    _ => b.with_no_client_auth(),
                });
                let c = b.and_then(|b| b.with_single_cert(vec![cert.der().clone()], key));
                Ok(Self::Accept(Arc::new(c.map_err(io::Error::other)?).into()))
            }
            "connect" => {
                let schemes = provider.signature_verification_algorithms.supported_schemes();
                let c = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(versions)
                    .map_err(io::Error::other)?
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(Anyone(schemes)))
                    .with_no_client_auth();
                Ok(Self::Connect(Arc::new(c).into()))
            }
            _ => Err(io::Error::other("--tls takes accept, mutual or connect")),
        }
    }
}

/// What the connecting side calls its peer.
pub fn name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())
}

#[derive(Debug)]
struct Anyone(Vec<SignatureScheme>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _m: &[u8],
        _c: &CertificateDer<'_>,
        _d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _m: &[u8],
        _c: &CertificateDer<'_>,
        _d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _m: &[u8],
        _c: &CertificateDer<'_>,
        _d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _m: &[u8],
        _c: &CertificateDer<'_>,
        _d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
