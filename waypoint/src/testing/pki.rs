//! Authorities of no mesh, certificates that they sign, and what they have revoked.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, CertifiedIssuer,
    DnType, IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;

/// A certificate authority.
pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

/// One of this name.
pub(crate) fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for a DNS name.
pub(crate) fn certificate(of: &Authority, name: &str, serial: u64) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(vec![name.to_string()]).unwrap();
    params.serial_number = Some(SerialNumber::from(serial));
    params.signed_by(&KeyPair::generate().unwrap(), of).unwrap().der().clone()
}

/// Its list, with one certificate that is revoked. The list's time is over: it stays in force.
pub(crate) fn list(of: &Authority, serial: u64) -> CertificateRevocationList {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 2),
        next_update: date_time_ymd(2020, 1, 3),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(of).unwrap()
}
