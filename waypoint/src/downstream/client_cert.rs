//! What `x-forwarded-client-cert` says of a client's certificate: one element of it, in Envoy's order (By, Hash, Cert, Subject, URI, DNS).
//! Whatever the names in a certificate are, they end neither their own part nor the element: an application that splits it sees
//! what was certified, and no more.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;
use karst_core::Identity;
use karst_hbone::names::{fingerprint, names_of};
use rustls_pki_types::CertificateDer;
use std::fmt::Write;

/// Longest element, bytes. Of larger certificates what does not fit is left out: first the certificate itself, then the last names.
const LONGEST: usize = 16 << 10;
/// Of names in certificates; those that come after are left out.
const MOST_NAMES: usize = 64;
/// Characters of a line of PEM.
const LINE: usize = 64;

/// Of a client that has shown a certificate in TLS that ends here. `own`: the URIs in the certificate that was shown to it.
pub fn of_certificate(own: &[String], cert: &CertificateDer<'_>) -> Option<HeaderValue> {
    let names = names_of(cert);
    let mut element = Element(String::with_capacity(512));
    for uri in own {
        element.add("By", &value(uri));
    }
    element.add("Hash", &fingerprint(cert));
    // In base64 it is a third longer, and what is escaped in that makes little of it.
    if cert.len() < LONGEST / 2 {
        element.add("Cert", &format!("\"{}\"", encoded(cert)));
    }
    // These two are there even where there is nothing in them.
    element.add("Subject", &format!("\"{}\"", names.subject));
    if names.uris.is_empty() {
        element.add("URI", "");
    }
    for uri in names.uris.iter().take(MOST_NAMES) {
        element.add("URI", &value(uri));
    }
    for dns in names.dns.iter().take(MOST_NAMES) {
        element.add("DNS", &value(dns));
    }
    HeaderValue::try_from(element.0).ok()
}

/// Of a caller of the mesh, as Istio's waypoints write it.
pub fn of_identity(own: &Identity, peer: &Identity) -> Option<HeaderValue> {
    let mut element = Element(String::new());
    element.add("By", &value(&own.to_string()));
    element.add("URI", &value(&peer.to_string()));
    HeaderValue::try_from(element.0).ok()
}

struct Element(String);

impl Element {
    fn add(&mut self, key: &str, value: &str) {
        if self.0.len() + key.len() + value.len() + 2 > LONGEST {
            return;
        }
        if !self.0.is_empty() {
            self.0.push(';');
        }
        let _ = write!(self.0, "{key}={value}");
    }
}

/// A name as a value. One with a character that separates is put in quotes, and what could end these, or is no visible character,
/// is written as in URIs.
fn value(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' | 0..=0x20 | 0x7f.. => {
                let _ = write!(out, "%{byte:02X}");
            }
            other => out.push(char::from(other)),
        }
    }
    if out.contains([',', ';', '=']) { format!("\"{out}\"") } else { out }
}

/// The certificate as PEM, and that as in URLs.
fn encoded(cert: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(cert);
    let mut out = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for (index, letter) in text.chars().enumerate() {
        if index > 0 && index % LINE == 0 {
            out.push_str("%0A");
        }
        match letter {
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            other => out.push(other),
        }
    }
    out.push_str("%0A-----END%20CERTIFICATE-----%0A");
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    fn certificate(name: &str, uris: &[&str], dns: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names =
            uris.chain(dns.iter().map(|dns| SanType::DnsName((*dns).try_into().unwrap()))).collect();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn parts(own: &[&str], cert: &CertificateDer<'_>) -> Vec<String> {
        let own: Vec<String> = own.iter().map(ToString::to_string).collect();
        let element = of_certificate(&own, cert).unwrap();
        split(element.to_str().unwrap(), ';')
    }

    /// As an application reads it: separators within quotes separate nothing.
    fn split(text: &str, at: char) -> Vec<String> {
        let (mut out, mut quoted) = (vec![String::new()], false);
        for letter in text.chars() {
            quoted ^= letter == '"';
            match letter == at && !quoted {
                true => out.push(String::new()),
                false => out.last_mut().unwrap().push(letter),
            }
        }
        out
    }

    #[test]
    fn an_element_has_envoys_order() {
        let cert = certificate("client", &["spiffe://td/ns/a/sa/b", "urn:x"], &["a.example", "b.example"]);
        let all = parts(&["spiffe://td/ns/gw/sa/gw"], &cert);
        let keys: Vec<&str> = all.iter().map(|part| part.split('=').next().unwrap()).collect();
        assert_eq!(keys, ["By", "Hash", "Cert", "Subject", "URI", "URI", "DNS", "DNS"]);
        assert_eq!(all[0], "By=spiffe://td/ns/gw/sa/gw");
        assert_eq!(all[1], format!("Hash={}", fingerprint(&cert)));
        assert_eq!(all[3], "Subject=\"CN=client\"");
        assert_eq!(all[4..].join(" "), "URI=spiffe://td/ns/a/sa/b URI=urn:x DNS=a.example DNS=b.example");
        let pem = all[2].strip_prefix("Cert=\"").unwrap().strip_suffix('"').unwrap();
        let pem = pem.replace("%0A", "\n").replace("%20", " ").replace("%2B", "+").replace("%2F", "/");
        let pem = pem.replace("%3D", "=");
        let read: CertificateDer<'_> = rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(read, cert);
        let without = parts(&[], &certificate("x", &[], &[]));
        assert_eq!((without.len(), without[3].as_str()), (4, "URI="), "Envoy writes it all the same");
    }

    #[test]
    fn no_name_ends_its_own_part() {
        let evil = "x\",By=spiffe://td/ns/a/sa/admin;URI=spiffe://td/ns/a/sa/admin";
        let cert = certificate(evil, &[evil, "a\\", "b"], &[evil]);
        let all = parts(&[], &cert);
        let keys: Vec<&str> = all.iter().map(|part| part.split('=').next().unwrap()).collect();
        assert_eq!(keys, ["Hash", "Cert", "Subject", "URI", "URI", "URI", "DNS"]);
        assert_eq!(all[4..6].join(" "), "URI=a%5C URI=b");
        let element = of_certificate(&[], &cert).unwrap();
        assert_eq!(split(element.to_str().unwrap(), ',').len(), 1, "{element:?}");
    }

    #[test]
    fn an_element_is_bounded() {
        let names: Vec<String> = (0..500).map(|n| format!("{n}.{}.example", "x".repeat(50))).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let all = parts(&[], &certificate("x", &[], &names));
        assert!(all.iter().all(|part| !part.starts_with("Cert=")) && all.len() == 3 + MOST_NAMES, "{}", all.len());
        assert!(all.iter().map(String::len).sum::<usize>() < LONGEST);
    }

    #[test]
    fn a_caller_of_the_mesh_is_told_as_by_istio() {
        let (own, peer) = ("spiffe://td/ns/a/sa/waypoint", "spiffe://td/ns/b/sa/web");
        let element = of_identity(&own.parse().unwrap(), &peer.parse().unwrap()).unwrap();
        assert_eq!(element, "By=spiffe://td/ns/a/sa/waypoint;URI=spiffe://td/ns/b/sa/web");
    }
}
