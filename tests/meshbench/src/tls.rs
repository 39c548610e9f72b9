//! TLS of what is measured, never for anything secret: a relay's certificate is made at start, and nobody checks one.
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, default_provider, kx_group},
    },
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    version::TLS13,
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
        let provider = Arc::new(default_provider());
        match side {
            "accept" | "mutual" => {
                let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
                let params = rcgen::CertificateParams::default();
                let cert = params.self_signed(&key).map_err(io::Error::other)?;
                let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
                let schemes = provider.signature_verification_algorithms.supported_schemes();
                let b = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
                let b = b.map(|b| match side {
                    "mutual" => b.with_client_cert_verifier(Arc::new(Anyone(schemes))),
                    _ => b.with_no_client_auth(),
                });
                let c = b.and_then(|b| b.with_single_cert(vec![cert.der().clone()], key));
                Ok(Self::Accept(Arc::new(c.map_err(io::Error::other)?).into()))
            }
            "connect" => Ok(Self::Connect(Arc::new(unchecked(provider)?).into())),
            _ => Err(io::Error::other("--tls takes accept, mutual or connect")),
        }
    }
}

/// What clients speak. One cipher suite and one group are offered, so that all servers that are measured speak the same, and no session
/// is resumed. `protocol`: what is spoken within, as ALPN names it.
pub fn client(protocol: Option<&str>) -> io::Result<TlsConnector> {
    let provider = CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![kx_group::X25519],
        ..default_provider()
    };
    let mut config = unchecked(Arc::new(provider))?;
    config.alpn_protocols = protocol.into_iter().map(|p| p.as_bytes().to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config).into())
}

/// Whatever certificate the server has.
fn unchecked(provider: Arc<CryptoProvider>) -> io::Result<ClientConfig> {
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let config = builder.map_err(io::Error::other)?.dangerous();
    Ok(config.with_custom_certificate_verifier(Arc::new(Anyone(schemes))).with_no_client_auth())
}

/// What the connecting side of a relay calls its peer.
pub fn name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())
}

#[derive(Debug)]
struct Anyone(Vec<SignatureScheme>);

/// What both of rustls's traits ask in the same words: every signature is good.
macro_rules! signatures {
    () => {
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
    };
}

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
    signatures!();
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
    signatures!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CipherSuite, HandshakeKind, NamedGroup};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn each_connection_of_a_client_has_a_whole_handshake_by_one_suite() {
        let Side::Accept(server) = Side::new("accept").unwrap() else { panic!("it accepts") };
        let client = client(Some("http/1.1")).unwrap();
        for _ in 0..2 {
            let (near, far) = tokio::io::duplex(1 << 16);
            let (near, far) = tokio::join!(client.connect(name(), near), server.accept(far));
            let (mut near, mut far) = (near.unwrap(), far.unwrap());
            // With it come the tickets, by which a session could be resumed.
            far.write_all(b"x").await.unwrap();
            far.flush().await.unwrap();
            assert_eq!(near.read_u8().await.unwrap(), b'x');
            let spoken = far.get_ref().1;
            assert_eq!(spoken.handshake_kind(), Some(HandshakeKind::Full));
            let suite = spoken.negotiated_cipher_suite().map(|s| s.suite());
            assert_eq!(suite, Some(CipherSuite::TLS13_AES_128_GCM_SHA256));
            assert_eq!(spoken.negotiated_key_exchange_group().map(|g| g.name()), Some(NamedGroup::X25519));
        }
    }
}
