//! Certificates of tests.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

/// An authority of the tests.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    /// A new one.
    pub fn new() -> Self {
        let mut p = CertificateParams::new(vec![]).unwrap();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.distinguished_name.push(DnType::CommonName, "test");
        Self(CertifiedIssuer::self_signed(p, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate, PEM.
    pub fn roots(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name, which may be a URI, and its key, PEM.
    pub fn pair(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::new(vec![name.to_string()]).unwrap();
        if name.contains("://") {
            p.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        }
        let cert = p.signed_by(&key, &self.0).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// PEM as a block of YAML in a Secret.
pub fn indented(pem: &str) -> String {
    pem.lines().map(|l| format!("    {l}\n")).collect()
}

/// The manifest of a Secret with certificate and key, and with an authority if one is given.
pub fn secret(namespace: &str, name: &str, (cert, key): &(String, String)) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indented(cert),
        indented(key)
    )
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}
