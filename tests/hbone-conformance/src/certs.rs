//! Certificates as the specification wants them, and others.

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};
use std::{path::Path, sync::Arc};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// An authority that the endpoint trusts, and one that it does not.
pub struct Ca {
    trusted: Issuer<'static, KeyPair>,
    cert: CertificateDer<'static>,
    stranger: Issuer<'static, KeyPair>,
}

/// A chain with its key.
pub type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What a certificate says.
#[derive(Clone)]
pub struct Leaf {
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Seconds from now.
    pub valid: (i64, i64),
    /// Usable as a server, as a client.
    pub usages: (bool, bool),
    /// By the trusted authority.
    pub trusted: bool,
}

impl Leaf {
    /// A good one.
    pub fn good(identity: &str) -> Self {
        Self { uris: vec![identity.into()], dns: vec![], valid: (-300, 3600), usages: (true, true), trusted: true }
    }

    /// Certificates that must be refused, whoever shows them, with what is wrong with them.
    pub fn bad(identity: &str, other: &str) -> Vec<(&'static str, Self)> {
        let good = Self::good(identity);
        let uris = |u: &[&str]| Self { uris: u.iter().map(ToString::to_string).collect(), ..good.clone() };
        vec![
            ("signed by another authority", Self { trusted: false, ..good.clone() }),
            ("expired", Self { valid: (-7200, -3600), ..good.clone() }),
            ("not valid yet", Self { valid: (3600, 7200), ..good.clone() }),
            ("two URI names, the right one first", uris(&[identity, other])),
            ("two URI names, the right one last", uris(&[other, identity])),
            ("no URI name", uris(&[])),
            ("a DNS name only", Self { dns: vec!["a.example".into()], ..uris(&[]) }),
            ("a URI that is no SPIFFE id", uris(&["https://a.example/"])),
            ("a SPIFFE id of another form", uris(&["spiffe://cluster.local/workload/a"])),
        ]
    }
}

impl Ca {
    /// Reads an authority.
    pub fn open(cert: &Path, key: &Path) -> Result<Self> {
        let read = |p: &Path| std::fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
        let (pem, key_pem) = (read(cert)?, read(key)?);
        let key = KeyPair::from_pem(&key_pem).with_context(|| format!("{}: no private key in PEM", key.display()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .ok()
            .with_context(|| format!("{}: no certificate in PEM", cert.display()))?;
        let trusted = Issuer::from_ca_cert_der(&der, key).with_context(|| cert.display().to_string())?;
        let key = KeyPair::generate()?;
        let mut p = CertificateParams::default();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let stranger = Issuer::from_ca_cert_der(p.self_signed(&key)?.der(), key)?;
        Ok(Self { trusted, cert: der, stranger })
    }

    /// Makes a certificate.
    pub fn issue(&self, l: &Leaf) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let mut p = CertificateParams::default();
        p.distinguished_name = DistinguishedName::new();
        for u in &l.uris {
            p.subject_alt_names.push(SanType::URI(u.as_str().try_into()?));
        }
        for d in &l.dns {
            p.subject_alt_names.push(SanType::DnsName(d.as_str().try_into()?));
        }
        let now = OffsetDateTime::now_utc();
        (p.not_before, p.not_after) = (now + Duration::seconds(l.valid.0), now + Duration::seconds(l.valid.1));
        if l.usages.0 {
            p.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if l.usages.1 {
            p.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let cert = p.signed_by(&key, if l.trusted { &self.trusted } else { &self.stranger })?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok((vec![cert.der().clone(), self.cert.clone()], key))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut r = RootCertStore::empty();
        r.add(self.cert.clone())?;
        Ok(Arc::new(r))
    }

    /// A client with this certificate, or none.
    pub fn client(&self, show: Option<Credentials>, alpn: &str) -> Result<Arc<ClientConfig>> {
        let verifier =
            Arc::new(ChainOnly { roots: self.roots()?, algorithms: provider().signature_verification_algorithms });
        let b = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut c = match show {
            Some((chain, key)) => b.with_client_auth_cert(chain, key)?,
            None => b.with_no_client_auth(),
        };
        c.alpn_protocols = vec![alpn.into()];
        c.enable_sni = false;
        Ok(Arc::new(c))
    }

    /// A server with this certificate.
    pub fn server(&self, show: Credentials) -> Result<Arc<ServerConfig>> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider()).build()?;
        let mut c = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(show.0, show.1)?;
        c.alpn_protocols = vec![b"h2".to_vec()];
        // Each tunnel shows its certificate.
        c.send_tls13_tickets = 0;
        c.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(c))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The URI names of a certificate; Err: what is wrong with their number or form.
pub fn spiffe_name(chain: Option<&[CertificateDer<'_>]>) -> Result<String> {
    let leaf = chain.and_then(|c| c.first()).context("no certificate")?;
    let (_, x) = X509Certificate::from_der(leaf).ok().context("a certificate that cannot be read")?;
    let names = x.subject_alternative_name().ok().flatten().context("no subject alternative names")?;
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|n| match n {
            GeneralName::URI(u) => Some(*u),
            _ => None,
        })
        .collect();
    ensure!(uris.len() == 1, "{} URI names", uris.len());
    let parts: Vec<&str> = uris[0].strip_prefix("spiffe://").context("no SPIFFE id")?.split('/').collect();
    ensure!(
        matches!(parts[..], [td, "ns", ns, "sa", sa] if ![td, ns, sa].contains(&"")),
        "a SPIFFE id of another form: {}",
        uris[0]
    );
    Ok(uris[0].into())
}

/// The chain and the key usage, but no host names: HBONE has none.
#[derive(Debug)]
struct ChainOnly {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, chain, now, self.algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &self.algorithms)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(m, c, d, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
