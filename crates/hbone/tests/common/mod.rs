//! Certificates for the tests of this crate.
#![allow(dead_code, missing_docs, reason = "not every test uses all of it")]

use karst_hbone::tls::Credentials;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use time::OffsetDateTime;

pub struct Ca {
    pub issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

pub fn ca() -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut p = CertificateParams::default();
    p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = p.self_signed(&key).unwrap().pem();
    Ca { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
}

pub fn leaf(sans: &[&str]) -> CertificateParams {
    let mut p = CertificateParams::default();
    p.distinguished_name = DistinguishedName::new();
    p.subject_alt_names = sans.iter().map(|s| SanType::URI(s.to_string().try_into().unwrap())).collect();
    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    p.not_before = OffsetDateTime::now_utc() - time::Duration::minutes(5);
    p.not_after = OffsetDateTime::now_utc() + time::Duration::minutes(5);
    p
}

pub const A: &str = "spiffe://td/ns/a/sa/a";
pub const B: &str = "spiffe://td/ns/b/sa/b";

pub fn credentials(ca: &Ca, id: &str) -> Credentials {
    let key = KeyPair::generate().unwrap();
    let cert = leaf(&[id]).signed_by(&key, &ca.issuer).unwrap();
    Credentials::new(
        id.parse().unwrap(),
        &[cert.pem(), ca.pem.clone()],
        PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    )
    .unwrap()
}
