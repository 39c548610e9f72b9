//! What a certificate says of who has it, for those who are told of it (`x-forwarded-client-cert`): fingerprint, subject, names. Nothing
//! here decides: whom a certificate of the mesh names is said by [`crate::tls::identity_of`].

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use std::fmt::Write;
use x509_parser::{
    extensions::GeneralName,
    x509::{AttributeTypeAndValue, X509Name},
};

/// What a certificate says of who has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The subject as text (RFC 2253), of printable ASCII without `"`; a `\` stands only before what it escapes.
    pub subject: String,
    /// URIs among its alternative names.
    pub uris: Vec<String>,
    /// DNS names among them.
    pub dns: Vec<String>,
}

/// SHA-256 of the certificate, in hexadecimal digits.
pub fn fingerprint(cert: &CertificateDer<'_>) -> String {
    let mut out = String::with_capacity(64);
    for byte in digest(&SHA256, cert).as_ref() {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The names in a certificate; none if it cannot be read.
pub fn names_of(cert: &CertificateDer<'_>) -> Names {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else { return Names::default() };
    let mut names = Names { subject: subject(parsed.subject()), ..Names::default() };
    if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_string()),
                GeneralName::DNSName(dns) => names.dns.push((*dns).to_string()),
                _ => {}
            }
        }
    }
    names
}

/// The last part first (RFC 2253 §2.1), as OpenSSL prints it with `XN_FLAG_RFC2253`.
fn subject(name: &X509Name<'_>) -> String {
    let parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let id = attribute.attr_type().to_id_string();
    let kind = match id.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        other => other,
    };
    format!("{kind}={}", escaped(attribute.as_slice()))
}

/// A value (RFC 2253 §2.4). What a reader of quoted text could take for its end (`"`, and a `\` before it) is written in digits.
fn escaped(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len());
    for (index, byte) in value.iter().enumerate() {
        let is_end = index == 0 || index + 1 == value.len();
        match *byte {
            special @ (b',' | b'+' | b'<' | b'>' | b';') => out.extend(['\\', char::from(special)]),
            b' ' if is_end => out.push_str("\\ "),
            b'#' if index == 0 => out.push_str("\\#"),
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                let _ = write!(out, "\\{byte:02X}");
            }
            other => out.push(char::from(other)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn names_are_those_of_the_certificate() {
        let cert = certificate(|p| {
            p.distinguished_name.push(DnType::OrganizationName, "Shop, Inc.");
            p.distinguished_name.push(DnType::CommonName, "client");
            p.subject_alt_names = vec![
                SanType::DnsName("a.example".try_into().unwrap()),
                SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()),
                SanType::DnsName("b.example".try_into().unwrap()),
                SanType::URI("urn:x".try_into().unwrap()),
            ];
        });
        let names = names_of(&cert);
        assert_eq!(names.subject, "CN=client,O=Shop\\, Inc.");
        assert_eq!(
            (names.uris.join(" "), names.dns.join(" ")),
            ("spiffe://td/ns/a/sa/b urn:x".to_string(), "a.example b.example".to_string())
        );
        let digits = fingerprint(&cert);
        assert!(digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert_ne!(digits, fingerprint(&certificate(|_| {})));
        assert_eq!(names_of(&certificate(|_| {})), Names::default());
        assert_eq!(names_of(&CertificateDer::from(&b"none"[..])), Names::default());
    }

    #[test]
    fn a_subject_does_not_end_the_quotes_around_it() {
        for (value, want) in [
            ("plain name", "plain name"),
            (" a b ", "\\ a b\\ "),
            ("#1", "\\#1"),
            ("a\",URI=spiffe://td/ns/admin/sa/admin", "a\\22\\,URI=spiffe://td/ns/admin/sa/admin"),
            ("a\\", "a\\5C"),
            ("\r\nx", "\\0D\\0Ax"),
            ("\u{e9}", "\\C3\\A9"),
            ("a+b;c<d>e=f", "a\\+b\\;c\\<d\\>e=f"),
        ] {
            assert_eq!(escaped(value.as_bytes()), want, "{value:?}");
        }
    }
}
