//! The certificate authority. It copies nothing from a request but the public key.

use crate::token::write_private;
use anyhow::{Context, ensure};
use karst_core::Identity;
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use std::{fs, path::Path};
use time::{Duration, OffsetDateTime};

/// Certificates are valid from this long before their signing, against clocks that differ (Istio: 2 min).
const BACKDATE: Duration = Duration::minutes(2);
const ROOT_YEARS: i64 = 10;

/// A root that signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    not_after: OffsetDateTime,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request cannot be read or has a key that is too weak.
    #[error("csr: {0}")]
    Csr(String),
    /// The lifetime is out of range.
    #[error("validity_duration: {0}")]
    Lifetime(String),
    /// Our own fault.
    #[error("signing failed: {0}")]
    Internal(String),
}

impl Authority {
    /// Opens the authority in the data directory (ca-cert.pem, ca-key.pem), or makes one.
    pub fn open(dir: &Path, trust_domain: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {} (--data-dir)", dir.display()))?;
        let (cert, key) = (dir.join("ca-cert.pem"), dir.join("ca-key.pem"));
        ensure!(
            cert.exists() == key.exists(),
            "{} holds only one of ca-cert.pem and ca-key.pem: restore the other, or remove both for a new authority",
            dir.display()
        );
        if !key.exists() {
            let pair = KeyPair::generate()?;
            let root = root_params(trust_domain).self_signed(&pair)?;
            write_private(&key, &pair.serialize_pem())?;
            fs::write(&cert, root.pem()).with_context(|| format!("cannot write {}", cert.display()))?;
        }
        let read = |p: &Path| fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
        let (root_pem, key_pem) = (read(&cert)?, read(&key)?);
        let pair =
            KeyPair::from_pem(&key_pem).with_context(|| format!("{} is no private key in PEM", key.display()))?;
        let not_after = check_root(&root_pem, &pair).with_context(|| format!("{}", cert.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&root_pem, pair)
            .with_context(|| format!("{} is no CA certificate", cert.display()))?;
        Ok(Self { issuer, root_pem, not_after })
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Signs for an identity: the chain as the protocol wants it, leaf first, root bundle last.
    pub fn sign(&self, csr_pem: &str, id: &Identity, lifetime: std::time::Duration) -> Result<Vec<String>, Refusal> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| Refusal::Csr(e.to_string()))?;
        strong_enough(&csr)?;
        let uri = id.to_string().try_into().map_err(|e| Refusal::Internal(format!("{e}")))?;
        let leaf = self.leaf(vec![SanType::URI(uri)], lifetime)?;
        let cert = leaf.signed_by(&csr.public_key, &self.issuer).map_err(|e| Refusal::Internal(e.to_string()))?;
        Ok(vec![cert.pem(), self.root_pem.clone()])
    }

    /// A certificate for the controller's own server.
    pub fn serving(&self, names: &[String]) -> anyhow::Result<(String, String)> {
        let sans = names.iter().map(|n| match n.parse() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => n
                .clone()
                .try_into()
                .map(SanType::DnsName)
                .with_context(|| format!("--server-names: {n:?} is no DNS name")),
        });
        let leaf =
            self.leaf(sans.collect::<anyhow::Result<_>>()?, std::time::Duration::from_secs(10 * 365 * 86_400))?;
        let key = KeyPair::generate()?;
        Ok((leaf.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    fn leaf(&self, sans: Vec<SanType>, lifetime: std::time::Duration) -> Result<CertificateParams, Refusal> {
        let now = OffsetDateTime::now_utc();
        let mut p = CertificateParams::default();
        p.distinguished_name = DistinguishedName::new(); // empty: the SAN extension is then critical
        p.subject_alt_names = sans;
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        p.is_ca = IsCa::ExplicitNoCa;
        p.use_authority_key_identifier_extension = true;
        p.serial_number = Some(serial());
        p.not_before = now - BACKDATE;
        p.not_after = (now + lifetime).min(self.not_after);
        if p.not_after <= now {
            return Err(Refusal::Internal("the root certificate has expired".into()));
        }
        Ok(p)
    }
}

fn serial() -> SerialNumber {
    let mut b = [0u8; 16];
    rand::rng().fill_bytes(&mut b);
    b[0] &= 0x7f; // positive
    b[0] |= 0x40; // always 16 bytes
    SerialNumber::from_slice(&b)
}

fn root_params(trust_domain: &str) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut p = CertificateParams::default();
    p.distinguished_name = DistinguishedName::new();
    p.distinguished_name.push(DnType::OrganizationName, trust_domain);
    p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    p.serial_number = Some(serial());
    p.not_before = now - BACKDATE;
    p.not_after = now + Duration::days(365 * ROOT_YEARS);
    p
}

/// Is this a CA certificate for this key? Gives its end.
fn check_root(pem: &str, key: &KeyPair) -> anyhow::Result<OffsetDateTime> {
    use rcgen::PublicKeyData;
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("is no certificate in PEM")?;
    let c = pem.parse_x509().context("is no X.509 certificate")?;
    ensure!(c.is_ca(), "is no CA certificate (basicConstraints)");
    ensure!(c.public_key().raw == key.subject_public_key_info(), "does not belong to ca-key.pem");
    let end = c.validity().not_after.to_datetime();
    ensure!(end > OffsetDateTime::now_utc(), "expired at {end}");
    Ok(end)
}

/// ECDSA on P-256 or P-384, Ed25519, or RSA from 2048 bits.
fn strong_enough(csr: &CertificateSigningRequestParams) -> Result<(), Refusal> {
    use rcgen::PublicKeyData;
    let spki = csr.public_key.subject_public_key_info();
    let (_, k) = <x509_parser::x509::SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<_>>::from_der(&spki)
        .map_err(|e| Refusal::Csr(e.to_string()))?;
    match k.parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(r)) if r.key_size() >= 2048 => Ok(()),
        Ok(x509_parser::public_key::PublicKey::RSA(r)) => {
            Err(Refusal::Csr(format!("RSA key of {} bits: use at least 2048, or ECDSA P-256", r.key_size())))
        }
        Ok(x509_parser::public_key::PublicKey::EC(p)) if p.key_size() >= 256 => Ok(()),
        Ok(x509_parser::public_key::PublicKey::Unknown(b)) if b.len() == 32 => Ok(()), // Ed25519
        _ => Err(Refusal::Csr("key type is not supported: use ECDSA P-256".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (Authority, std::path::PathBuf) {
        let d = std::env::temp_dir().join(format!("karst-ca-{}-{:x}", std::process::id(), rand::random::<u32>()));
        (Authority::open(&d, "td").unwrap(), d)
    }

    #[test]
    fn only_the_key_is_taken_from_a_request() {
        let (ca, d) = authority();
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::new(vec!["evil.example".to_string()]).unwrap();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.subject_alt_names.push(SanType::URI("spiffe://td/ns/evil/sa/evil".to_string().try_into().unwrap()));
        p.distinguished_name.push(DnType::CommonName, "evil");
        let csr = p.serialize_request(&key).unwrap().pem().unwrap();
        let id = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let chain = ca.sign(&csr, &id, std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(chain.len(), 2);
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
        let c = pem.parse_x509().unwrap();
        let san = c.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical);
        assert_eq!(format!("{:?}", san.value.general_names), "[URI(\"spiffe://td/ns/a/sa/b\")]");
        assert!(!c.is_ca() && c.subject().iter().next().is_none());
        let life = c.validity().not_after.timestamp() - c.validity().not_before.timestamp();
        assert_eq!(life, 60 + 120);
        assert!(ca.sign("nonsense", &id, std::time::Duration::from_secs(60)).is_err());
        fs::remove_dir_all(d).unwrap();
    }

    #[test]
    fn a_half_authority_is_refused() {
        let (_, d) = authority();
        fs::remove_file(d.join("ca-key.pem")).unwrap();
        assert!(Authority::open(&d, "td").err().unwrap().to_string().contains("only one of"));
        fs::write(d.join("ca-key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let e = format!("{:#}", Authority::open(&d, "td").err().unwrap());
        assert!(e.contains("does not belong"), "{e}");
        fs::remove_dir_all(d).unwrap();
    }
}
