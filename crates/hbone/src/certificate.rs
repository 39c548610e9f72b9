//! Certificates in PEM, as admin pages show them. Nothing is decided by what stands here.

use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::time::{Duration, SystemTime};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// What a page says of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// The certificate itself.
    pub pem: String,
    /// In decimal digits, as istioctl and Kiali read it.
    pub serial_number: String,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// The certificates of a PEM text, in their order. What cannot be read as a certificate is passed over.
pub fn summaries(pem: &str) -> Vec<CertificateSummary> {
    pem.split_inclusive(END).filter_map(summary).collect()
}

fn summary(text: &str) -> Option<CertificateSummary> {
    let pem = text.get(text.find(BEGIN)?..)?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some(CertificateSummary {
        pem: format!("{pem}\n"),
        serial_number: parsed.serial.to_string(),
        not_before: time(parsed.validity().not_before.timestamp()),
        not_after: time(parsed.validity().not_after.timestamp()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn serial_numbers_are_decimal_and_every_certificate_is_listed() {
        let certificate = |serial: &[u8]| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec!["a".to_string()]).unwrap();
            params.serial_number = Some(rcgen::SerialNumber::from_slice(serial));
            params.self_signed(&key).unwrap().pem()
        };
        // 2^64 + 255: more than any machine integer that a careless reader would take.
        let text = format!("# a comment\n{}\n{}", certificate(&[1, 0, 0, 0, 0, 0, 0, 0, 255]), certificate(&[7]));
        let all = summaries(&text);
        let serials: Vec<&str> = all.iter().map(|c| c.serial_number.as_str()).collect();
        assert_eq!(serials, ["18446744073709551871", "7"]);
        assert!(all.iter().all(|c| c.pem.starts_with(BEGIN) && c.not_before < c.not_after));
        assert_eq!(summaries("no certificate"), []);
    }
}
