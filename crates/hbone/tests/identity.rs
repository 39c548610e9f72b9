//! T22: who is refused in the handshake, on both sides. The attacker is a plain rustls peer that verifies nothing and shows
//! whatever certificate it likes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod common;

use common::{A, B, Ca, ca, credentials, leaf};
use karst_core::Identity;
use karst_hbone::{Settings, client, server, tls, tls::Credentials};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What both of rustls's traits ask in the same words: every signature is good.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            tls::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

#[derive(Debug)]
struct Anybody;
impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    signatures!();
}
impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    signatures!();
}

/// A peer's certificate and key, as the attacker shows them.
type Shown = Option<(CertificateDer<'static>, KeyPair)>;

/// Does our server take this client?
async fn server_accepts(creds: &Credentials, shown: &Shown, tls12: bool) -> bool {
    let versions: &[&rustls::SupportedProtocolVersion] =
        if tls12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let b = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap();
    let b = b.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut c = match shown {
        Some((cert, key)) => {
            b.with_client_auth_cert(vec![cert.clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap()
        }
        None => b.with_no_client_auth(),
    };
    c.alpn_protocols = vec![b"h2".to_vec()];
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = l.local_addr().unwrap();
    let attacker = async {
        let s = TcpStream::connect(to).await.unwrap();
        let s = TlsConnector::from(Arc::new(c)).connect(tls::server_name(to.ip()), s).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(s);
    };
    let ours = async {
        let (s, _) = l.accept().await.unwrap();
        server::handshake(s, creds).await.is_ok()
    };
    tokio::join!(attacker, ours).1
}

/// Does our client take this server, when it expects `expected`?
async fn client_accepts(creds: &Credentials, shown: &Shown, expected: &str) -> bool {
    let (cert, key) = shown.as_ref().unwrap();
    let b = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut c = b
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(vec![cert.clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    c.alpn_protocols = vec![b"h2".to_vec()];
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = l.local_addr().unwrap();
    let attacker = async {
        let (s, _) = l.accept().await.unwrap();
        let s = TlsAcceptor::from(Arc::new(c)).accept(s).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(s);
    };
    let expected: Identity = expected.parse().unwrap();
    let ours = async {
        let s = TcpStream::connect(to).await.unwrap();
        client::handshake(s, to, creds, &[expected], &Settings::default()).await.is_ok()
    };
    tokio::join!(attacker, ours).1
}

#[tokio::test]
async fn only_the_right_peer_is_taken() {
    let (good, other) = (ca(), ca());
    let ours = credentials(&good, A);
    let now = OffsetDateTime::now_utc();
    let by = |c: &Ca, p: CertificateParams| -> Shown {
        let key = KeyPair::generate().unwrap();
        Some((p.signed_by(&key, &c.issuer).unwrap().der().clone(), key))
    };
    let with = |f: &dyn Fn(&mut CertificateParams)| {
        let mut p = leaf(&[B]);
        f(&mut p);
        by(&good, p)
    };
    let own_key = KeyPair::generate().unwrap();
    let own = leaf(&[B]).self_signed(&own_key).unwrap().der().clone();
    let dns = |p: &mut CertificateParams| {
        p.subject_alt_names = vec![SanType::DnsName("b.example".to_string().try_into().unwrap())]
    };
    // What is shown; is it taken as a client, and as a server that should be B?
    let table: Vec<(&str, Shown, bool, bool)> = vec![
        ("B, as it should be", by(&good, leaf(&[B])), true, true),
        ("no URI name", by(&good, leaf(&[])), false, false),
        ("a DNS name only", with(&dns), false, false),
        ("two URI names, the right one first", by(&good, leaf(&[B, A])), false, false),
        ("two URI names, the right one last", by(&good, leaf(&[A, B])), false, false),
        ("three URI names", by(&good, leaf(&[B, B, B])), false, false),
        ("another trust domain", by(&good, leaf(&["spiffe://evil/ns/b/sa/b"])), false, false),
        ("another workload", by(&good, leaf(&["spiffe://td/ns/c/sa/c"])), true, false),
        ("longer path", by(&good, leaf(&["spiffe://td/ns/b/sa/b/x"])), false, false),
        ("no SPIFFE scheme", by(&good, leaf(&["https://td/ns/b/sa/b"])), false, false),
        ("another CA", by(&other, leaf(&[B])), false, false),
        ("self-signed", Some((own, own_key)), false, false),
        ("expired", with(&|p| p.not_after = now - time::Duration::minutes(1)), false, false),
        ("not yet valid", with(&|p| p.not_before = now + time::Duration::minutes(3)), false, false),
        (
            "for code signing",
            with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            false,
            false,
        ),
        ("for servers only", with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]), false, true),
        ("for clients only", with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]), true, false),
    ];
    for (what, shown, as_client, as_server) in &table {
        assert_eq!(server_accepts(&ours, shown, false).await, *as_client, "as client: {what}");
        assert_eq!(client_accepts(&ours, shown, B).await, *as_server, "as server: {what}");
    }
    assert!(!server_accepts(&ours, &None, false).await, "no certificate");
    assert!(!server_accepts(&ours, &by(&good, leaf(&[B])), true).await, "TLS 1.2");
    println!("T22 variants={} wrong=0", 2 * table.len() + 2);
}

#[test]
fn a_certificate_for_somebody_else_is_not_used() {
    let c = ca();
    let key = KeyPair::generate().unwrap();
    let cert = leaf(&[B]).signed_by(&key, &c.issuer).unwrap();
    let r = Credentials::new(
        A.parse().unwrap(),
        &[cert.pem(), c.pem.clone()],
        PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    );
    assert!(r.is_err(), "the CA gave B's certificate for A");
}
