//! What TLS may be spoken with, by the names that users write: Istio's for versions, OpenSSL's for cipher suites and key exchange.
//! Only what our TLS can do has a name here; everything else is refused where it is written.

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

impl Version {
    /// All, old before new.
    pub const ALL: [Self; 2] = [Self::V1_2, Self::V1_3];

    /// Istio's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_2 => "TLSV1_2",
            Self::V1_3 => "TLSV1_3",
        }
    }

    /// By its name. Ok(None): none is named, the library chooses. Err: one that cannot be spoken.
    pub fn named(name: &str) -> Result<Option<Self>, Unsupported> {
        match name {
            "" | "TLS_AUTO" => Ok(None),
            name => Self::ALL.into_iter().find(|v| v.name() == name).map(Some).ok_or(Unsupported),
        }
    }
}

/// A version that cannot be spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

/// A cipher suite of TLS 1.2. (Those of TLS 1.3 are not chosen, in Istio as here: all of them are good.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherSuite {
    /// TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384.
    EcdsaAes256Gcm,
    /// TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256.
    EcdsaAes128Gcm,
    /// TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256.
    EcdsaChaCha20,
    /// TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384.
    RsaAes256Gcm,
    /// TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256.
    RsaAes128Gcm,
    /// TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256.
    RsaChaCha20,
}

impl CipherSuite {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::EcdsaAes256Gcm,
        Self::EcdsaAes128Gcm,
        Self::EcdsaChaCha20,
        Self::RsaAes256Gcm,
        Self::RsaAes128Gcm,
        Self::RsaChaCha20,
    ];

    /// OpenSSL's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EcdsaAes256Gcm => "ECDHE-ECDSA-AES256-GCM-SHA384",
            Self::EcdsaAes128Gcm => "ECDHE-ECDSA-AES128-GCM-SHA256",
            Self::EcdsaChaCha20 => "ECDHE-ECDSA-CHACHA20-POLY1305",
            Self::RsaAes256Gcm => "ECDHE-RSA-AES256-GCM-SHA384",
            Self::RsaAes128Gcm => "ECDHE-RSA-AES128-GCM-SHA256",
            Self::RsaChaCha20 => "ECDHE-RSA-CHACHA20-POLY1305",
        }
    }

    /// By its name. None: it cannot be spoken.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }
}

/// What keys are exchanged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// x25519.
    X25519,
    /// x25519 with ML-KEM-768: also against quantum computers, in TLS 1.3 only.
    X25519MlKem768,
}

impl Curve {
    /// All.
    pub const ALL: [Self; 4] = [Self::P256, Self::P384, Self::X25519, Self::X25519MlKem768];

    /// BoringSSL's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::X25519 => "X25519",
            Self::X25519MlKem768 => "X25519MLKEM768",
        }
    }

    /// By its name. None: it cannot be spoken.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|curve| curve.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_name_is_found_by_it_and_nothing_else_is() {
        assert_eq!(Version::ALL.map(|v| Version::named(v.name())), Version::ALL.map(|v| Ok(Some(v))));
        assert_eq!(["", "TLS_AUTO"].map(Version::named), [Ok(None), Ok(None)]);
        assert_eq!(["TLSV1_0", "TLSV1_1", "1.3"].map(Version::named), [Err(Unsupported); 3]);
        assert!(Version::V1_2 < Version::V1_3);
        assert_eq!(CipherSuite::ALL.map(|s| CipherSuite::named(s.name())), CipherSuite::ALL.map(Some));
        // No forward secrecy; CBC; TLS 1.3.
        for other in ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA", "TLS_AES_128_GCM_SHA256", ""] {
            assert_eq!(CipherSuite::named(other), None, "{other}");
        }
        assert_eq!(Curve::ALL.map(|c| Curve::named(c.name())), Curve::ALL.map(Some));
        for other in ["P-224", "P-521", "X25519Kyber768Draft00", "p-256", ""] {
            assert_eq!(Curve::named(other), None, "{other}");
        }
    }
}
