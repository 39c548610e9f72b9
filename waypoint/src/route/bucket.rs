//! Which bucket of a rate limit a request takes from: a hash (SHA-256, cut) of the values of the limit's keys. Whatever clients send, a
//! bucket's name has one size, and nobody finds values that lead to another's bucket.

use crate::authz::generations;
use aws_lc_rs::digest;
use http::HeaderName;
use karst_api::route as ir;
use std::net::IpAddr;

/// A bucket's name.
pub type Bucket = u128;

/// What of a request tells buckets apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Header(HeaderName),
    /// A parameter of the query.
    Query(String),
    /// Of the verified token; each within the one before.
    Claim(Vec<String>),
    Path,
    SourceAddress,
    /// The caller's identity, or its address.
    Caller,
    /// Of a later version: all requests have the same.
    Unknown,
}

impl Key {
    /// The keys of a limit.
    pub fn all(limit: &ir::RateLimit) -> Vec<Self> {
        let caller = limit.by_caller.then_some(Self::Caller);
        caller.into_iter().chain(limit.keys.iter().map(Self::new)).collect()
    }

    fn new(key: &ir::RateLimitKey) -> Self {
        use ir::rate_limit_key::Key;
        match &key.key {
            Some(Key::Header(name)) => HeaderName::from_bytes(name.as_bytes()).map_or(Self::Unknown, Self::Header),
            Some(Key::Query(name)) => Self::Query(name.clone()),
            Some(Key::Claim(name)) => Self::Claim(name.split("][").map(String::from).collect()),
            Some(Key::Path(_)) => Self::Path,
            Some(Key::SourceAddress(_)) => Self::SourceAddress,
            Some(Key::Caller(_)) => Self::Caller,
            None => Self::Unknown,
        }
    }

    /// For who reads.
    pub fn describe(&self) -> String {
        match self {
            Key::Header(name) => format!("header {name}"),
            Key::Query(name) => format!("query parameter {name}"),
            Key::Claim(path) => format!("claim {}", path.join(".")),
            Key::Path => "path".into(),
            Key::SourceAddress => "source address".into(),
            Key::Caller => "caller".into(),
            Key::Unknown => "a key that this version does not know".into(),
        }
    }
}

/// Makes a bucket's name of values, in order.
pub struct BucketHash(digest::Context);

impl Default for BucketHash {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl BucketHash {
    /// One more value.
    pub fn value(&mut self, value: &[u8]) {
        // The length first: no two lists of values are written alike.
        self.0.update(&(value.len() as u64).to_be_bytes());
        self.0.update(value);
    }

    /// The request does not have it.
    pub fn nothing(&mut self) {
        self.0.update(&u64::MAX.to_be_bytes());
    }

    /// An address: of IPv6 what one site has, or a client would have as many buckets as it likes.
    pub fn address(&mut self, ip: IpAddr) {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.value(&ip.octets()),
            IpAddr::V6(ip) => self.value(&ip.octets()[..8]),
        }
    }

    /// All of the hash.
    pub fn whole(self) -> generations::Key {
        generations::key(&self.0.finish())
    }

    /// The name.
    pub fn finish(self) -> Bucket {
        let hash = self.0.finish();
        hash.as_ref().iter().take(16).fold(0, |name, byte| (name << 8) | Bucket::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn of(values: &[Option<&str>]) -> Bucket {
        let mut hash = BucketHash::default();
        for value in values {
            match value {
                Some(value) => hash.value(value.as_bytes()),
                None => hash.nothing(),
            }
        }
        hash.finish()
    }

    #[test]
    fn other_values_are_another_bucket() {
        let all = [
            of(&[]),
            of(&[None]),
            of(&[Some("")]),
            of(&[Some("a")]),
            of(&[Some("a"), None]),
            of(&[None, Some("a")]),
            of(&[Some("ab"), Some("c")]),
            of(&[Some("a"), Some("bc")]),
            of(&[Some("abc")]),
        ];
        let mut apart = all.to_vec();
        apart.sort_unstable();
        apart.dedup();
        assert_eq!(apart.len(), all.len());
        assert_eq!(of(&[Some("ab"), Some("c")]), all[6]);
    }

    #[test]
    fn a_site_has_one_bucket() {
        let at = |ip: &str| {
            let mut hash = BucketHash::default();
            hash.address(ip.parse().unwrap());
            hash.finish()
        };
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("10.0.0.1"), at("::ffff:10.0.0.1"));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
    }

    #[test]
    fn keys_are_read_as_the_controller_writes_them() {
        use ir::rate_limit_key::Key as Ir;
        let keys = [
            Some(Ir::Header("x-tenant".into())),
            Some(Ir::Claim("realm][org".into())),
            Some(Ir::Path(true)),
            Some(Ir::Header("not a name".into())),
            None,
        ];
        let keys = keys.map(|key| ir::RateLimitKey { key }).to_vec();
        let all = Key::all(&ir::RateLimit { by_caller: true, keys, ..Default::default() });
        let claim = Key::Claim(vec!["realm".into(), "org".into()]);
        let header = Key::Header(HeaderName::from_static("x-tenant"));
        assert_eq!(all, [Key::Caller, header, claim, Key::Path, Key::Unknown, Key::Unknown]);
    }
}
