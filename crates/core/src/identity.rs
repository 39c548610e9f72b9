//! SPIFFE identities of workloads. An [`Identity`] is parsed once, at the edge; what does not have exactly
//! the form `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>` is an error, never a guess.

use std::{fmt, str::FromStr, sync::Arc};

/// A workload identity: trust domain, namespace and service account.
///
/// ```
/// use karst_core::Identity;
/// let id: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
/// assert_eq!(id.namespace(), "shop");
/// assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    uri: Arc<str>,
    namespace: (u16, u16),
    account: u16,
}

/// Why a text is not an identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not of the form `spiffe://td/ns/NAMESPACE/sa/ACCOUNT`.
    #[error("identity is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Form,
    /// A character that none of the three parts may hold.
    #[error("identity has a character other than a-z A-Z 0-9 . _ -")]
    Character,
    /// Longer than 2048 bytes (SPIFFE ID specification §2.3).
    #[error("identity is longer than 2048 bytes")]
    TooLong,
}

const SCHEME: &str = "spiffe://";

impl Identity {
    /// Builds an identity from its parts.
    ///
    /// # Errors
    /// If a part is empty or holds a character that a SPIFFE path segment may not.
    pub fn new(trust_domain: &str, namespace: &str, account: &str) -> Result<Self, IdentityError> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}").parse()
    }
    /// The trust domain, as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..usize::from(self.namespace.0) - 4]
    }
    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.uri[usize::from(self.namespace.0)..usize::from(self.namespace.1)]
    }
    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.uri[usize::from(self.account)..]
    }
    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }
    /// The identity as policies write it: without `spiffe://`.
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }
}

impl FromStr for Identity {
    type Err = IdentityError;
    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        if uri.len() > 2048 {
            return Err(IdentityError::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(IdentityError::Form)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [td, "ns", ns, "sa", sa] = parts[..] else { return Err(IdentityError::Form) };
        if [td, ns, sa].iter().any(|p| p.is_empty() || *p == "." || *p == "..") {
            return Err(IdentityError::Form);
        }
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if ![td, ns, sa].iter().all(|p| p.bytes().all(ok)) {
            return Err(IdentityError::Character);
        }
        let ns_at = SCHEME.len() + td.len() + 4;
        let sa_at = ns_at + ns.len() + 4;
        // Checked above: at most 2048.
        Ok(Identity { uri: uri.into(), namespace: (ns_at as u16, (ns_at + ns.len()) as u16), account: sa_at as u16 })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
impl serde::Serialize for Identity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        let id = Identity::new("td.example", "n-1", "sa.x").unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("td.example", "n-1", "sa.x"));
        assert_eq!(id.to_string(), "spiffe://td.example/ns/n-1/sa/sa.x");
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/a/ns/b",
            "https://td/ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe://td/ns/../sa/b",
        ] {
            assert_eq!(bad.parse::<Identity>(), Err(IdentityError::Form), "{bad}");
        }
        for bad in [
            "spiffe://td/ns/a\0/sa/b",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://td/ns/a%2f/sa/b",
            "spiffe://td/ns/a b/sa/b",
        ] {
            assert_eq!(bad.parse::<Identity>(), Err(IdentityError::Character), "{bad}");
        }
        assert_eq!(
            format!("spiffe://td/ns/{}/sa/b", "x".repeat(2048)).parse::<Identity>(),
            Err(IdentityError::TooLong)
        );
    }
}
