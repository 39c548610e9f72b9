//! The keys that sessions are sealed with. The controller keeps them, and tells all pods of a gateway the same ones.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use karst_api::route as ir;
use std::fmt;

/// Longest sealed text that is looked at, bytes: twice what is ever sealed.
const LONGEST: usize = 1024;

/// The keys of a gateway: the first seals, all open. Its texts are as good with a nonce that comes twice (RFC 8452): replicas do not
/// agree on nonces.
#[derive(Default)]
pub struct SessionKeys(Vec<RandomizedNonceKey>);

/// What is no key.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a session key of {0} bytes: it must have 32")]
pub struct KeyError(usize);

impl SessionKeys {
    /// Of these secrets.
    ///
    /// # Errors
    /// One of them is no key.
    pub fn new(keys: &[ir::SessionKey]) -> Result<Self, KeyError> {
        let one = |key: &ir::SessionKey| {
            RandomizedNonceKey::new(&AES_256_GCM_SIV, &key.secret).map_err(|_| KeyError(key.secret.len()))
        };
        keys.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Are there none? Then nobody is bound to an endpoint.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Seals, for one use. None: there is no key, or no randomness.
    pub fn seal(&self, plain: &[u8], used_for: &[u8]) -> Option<String> {
        let mut sealed = plain.to_vec();
        let nonce = self.0.first()?.seal_in_place_append_tag(Aad::from(used_for), &mut sealed).ok()?;
        let nonce: &[u8; NONCE_LEN] = nonce.as_ref();
        let mut bytes = Vec::with_capacity(NONCE_LEN + sealed.len());
        bytes.extend_from_slice(nonce);
        bytes.extend_from_slice(&sealed);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens what was sealed for this use, and says whether the first key has sealed it. None: it was changed, or is none of ours.
    pub fn open(&self, sealed: &[u8], used_for: &[u8]) -> Option<(Vec<u8>, bool)> {
        if sealed.len() > LONGEST {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        self.0.iter().enumerate().find_map(|(number, key)| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut plain = sealed.to_vec();
            let length = key.open_in_place(nonce, Aad::from(used_for), &mut plain).ok()?.len();
            plain.truncate(length);
            Some((plain, number == 0))
        })
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKeys({})", self.0.len())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const USE: &[u8] = b"cookie a";

    /// Keys that are made of these bytes.
    pub(crate) fn keys(of: &[u8]) -> SessionKeys {
        let one = |byte: &u8| ir::SessionKey { secret: vec![*byte; 32] };
        SessionKeys::new(&of.iter().map(one).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_is_sealed_is_opened_by_whoever_has_the_key() {
        let sealed = keys(&[1]).seal(b"plain", USE).unwrap();
        assert!(!sealed.contains("plain") && sealed.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        let open = |by: &[u8], used_for: &[u8]| keys(by).open(sealed.as_bytes(), used_for);
        assert_eq!(open(&[1], USE), Some((b"plain".to_vec(), true)), "another replica");
        assert_eq!(open(&[2, 1], USE), Some((b"plain".to_vec(), false)), "after the keys have changed");
        assert_eq!(open(&[2], USE), None);
        assert_eq!(open(&[1], b"cookie b"), None, "another's");
        assert_ne!(keys(&[1]).seal(b"plain", USE).unwrap(), sealed, "no two are alike");
        assert_eq!(keys(&[]).seal(b"plain", USE), None);
    }

    #[test]
    fn whatever_is_changed_opens_nothing() {
        let own = keys(&[1]);
        let sealed = own.seal(b"plain", USE).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(own.open(&changed, USE), None, "{at}");
            assert_eq!(own.open(&sealed.as_bytes()[..at], USE), None, "cut at {at}");
        }
        let (long, longer) = ("A".repeat(LONGEST), "A".repeat(LONGEST + 4));
        for strange in ["", "=", "AAAA", "\u{fffd}", long.as_str(), longer.as_str()] {
            assert_eq!(own.open(strange.as_bytes(), USE), None);
        }
    }

    #[test]
    fn a_key_has_32_bytes_and_is_not_printed() {
        let short = ir::SessionKey { secret: vec![b'x'; 31] };
        assert_eq!(SessionKeys::new(std::slice::from_ref(&short)).unwrap_err(), KeyError(31));
        assert_eq!(format!("{:?} {short:?}", keys(b"xx")), "SessionKeys(2) SessionKey { .. }");
    }
}
