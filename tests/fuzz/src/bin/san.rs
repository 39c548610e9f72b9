//! A peer's certificate and its names.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(id) = karst_hbone::tls::identity_of(&rustls_pki_types::CertificateDer::from(data)) {
        // What is taken is of our form, and says the same when it is read again.
        assert_eq!(id.to_string().parse::<karst_hbone::Identity>().ok().as_ref(), Some(&id));
    }
});
