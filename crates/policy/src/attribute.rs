//! What a policy may look at: the one table that the controller judges policies by, and ztunnel and waypoints compare by. A key
//! that is not in it is refused; each that is has a test of its own at whoever can see it.

use crate::{PathPattern, StringMatch, ValueError};

/// An attribute of a connection or of a request, with its number on the wire (`Attribute` in route.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// The caller's identity, without `spiffe://`.
    Principal = 1,
    /// Its namespace.
    Namespace = 2,
    /// Its service account.
    ServiceAccount = 3,
    /// Its trust domain.
    TrustDomain = 17,
    /// The address that the connection comes from.
    SourceIp = 4,
    /// The client's address, as trusted proxies tell it.
    RemoteIp = 5,
    /// The address that is called.
    DestinationIp = 12,
    /// The port that is called.
    Port = 10,
    /// The name in the hello of TLS.
    Sni = 13,
    /// The authority that is called.
    Host = 7,
    /// The method of a request.
    Method = 8,
    /// Its path.
    Path = 9,
    /// A header.
    Header = 11,
    /// Issuer and subject of a token.
    RequestPrincipal = 6,
    /// A claim of a token.
    Claim = 14,
    /// Its audiences.
    Audience = 15,
    /// Its presenter.
    Presenter = 16,
}

/// Who can see an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenBy {
    /// ztunnel and waypoints.
    Both,
    /// Waypoints (and gateways) only.
    Waypoint,
}

/// What its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Whole, or with one `*` at an end ([`StringMatch`]).
    Text,
    /// [`PathPattern`]s.
    Path,
    /// Addresses and ranges.
    Ranges,
    /// Ports.
    Ports,
    /// `NAME` or `NAMESPACE/NAME`.
    Accounts,
    /// Whole ones.
    TrustDomains,
}

impl Attribute {
    /// All of them.
    pub const ALL: [Attribute; 17] = [
        Attribute::Principal,
        Attribute::Namespace,
        Attribute::ServiceAccount,
        Attribute::TrustDomain,
        Attribute::SourceIp,
        Attribute::RemoteIp,
        Attribute::DestinationIp,
        Attribute::Port,
        Attribute::Sni,
        Attribute::Host,
        Attribute::Method,
        Attribute::Path,
        Attribute::Header,
        Attribute::RequestPrincipal,
        Attribute::Claim,
        Attribute::Audience,
        Attribute::Presenter,
    ];

    /// Who can see it.
    pub const fn seen_by(self) -> SeenBy {
        use Attribute as A;
        match self {
            A::Principal
            | A::Namespace
            | A::ServiceAccount
            | A::TrustDomain
            | A::SourceIp
            | A::DestinationIp
            | A::Port => SeenBy::Both,
            A::RemoteIp
            | A::Sni
            | A::Host
            | A::Method
            | A::Path
            | A::Header
            | A::RequestPrincipal
            | A::Claim
            | A::Audience
            | A::Presenter => SeenBy::Waypoint,
        }
    }

    /// What its values are.
    pub const fn values(self) -> Values {
        use Attribute as A;
        match self {
            A::SourceIp | A::RemoteIp | A::DestinationIp => Values::Ranges,
            A::Port => Values::Ports,
            A::ServiceAccount => Values::Accounts,
            A::TrustDomain => Values::TrustDomains,
            A::Path => Values::Path,
            A::Principal
            | A::Namespace
            | A::Sni
            | A::Host
            | A::Method
            | A::Header
            | A::RequestPrincipal
            | A::Claim
            | A::Audience
            | A::Presenter => Values::Text,
        }
    }

    /// Can a value that is compared as text be compared? (Others are read by who knows their form.)
    ///
    /// # Errors
    /// Why not.
    pub fn check(self, value: &str) -> Result<(), ValueError> {
        match self.values() {
            Values::Text => StringMatch::parse(value).map(drop),
            Values::Path => PathPattern::parse(value).map(drop),
            Values::TrustDomains if value.contains('*') => Err(ValueError::NoStar),
            // It would be one at a waypoint, and more of a principal at ztunnel.
            Values::TrustDomains if value.contains('/') => Err(ValueError::Domain),
            Values::TrustDomains | Values::Ranges | Values::Ports | Values::Accounts => Ok(()),
        }
    }
}

/// The port that a value names: digits only, whatever zeros are before them.
pub fn port(value: &str) -> Option<u16> {
    value.parse().ok().filter(|p| *p != 0 && value.bytes().all(|b| b.is_ascii_digit()))
}

/// A key of a condition (`when`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As it is written; of one with a name, what stands before it.
    pub key: &'static str,
    /// What it means.
    pub attribute: Attribute,
}

/// All keys, in the order in which they are listed.
pub const KEYS: [Key; 14] = [
    Key { key: "source.ip", attribute: Attribute::SourceIp },
    Key { key: "source.namespace", attribute: Attribute::Namespace },
    Key { key: "source.principal", attribute: Attribute::Principal },
    Key { key: "source.serviceAccount", attribute: Attribute::ServiceAccount },
    Key { key: "source.trustDomain", attribute: Attribute::TrustDomain },
    Key { key: "remote.ip", attribute: Attribute::RemoteIp },
    Key { key: "destination.ip", attribute: Attribute::DestinationIp },
    Key { key: "destination.port", attribute: Attribute::Port },
    Key { key: "connection.sni", attribute: Attribute::Sni },
    Key { key: "request.headers", attribute: Attribute::Header },
    Key { key: "request.auth.principal", attribute: Attribute::RequestPrincipal },
    Key { key: "request.auth.audiences", attribute: Attribute::Audience },
    Key { key: "request.auth.presenter", attribute: Attribute::Presenter },
    Key { key: "request.auth.claims", attribute: Attribute::Claim },
];

impl Key {
    /// Does a name follow it, in brackets?
    pub const fn is_named(&self) -> bool {
        matches!(self.attribute, Attribute::Header | Attribute::Claim)
    }
}

/// Finds a key: what it means, and the name in its brackets. (Of claims within claims: `a][b`.)
pub fn find(key: &str) -> Option<(Attribute, &str)> {
    KEYS.iter().find_map(|known| {
        let rest = key.strip_prefix(known.key)?;
        let name = match known.is_named() {
            false => rest.is_empty().then_some("")?,
            true => rest.strip_prefix('[')?.strip_suffix(']').filter(|n| names(known.attribute, n))?,
        };
        Some((known.attribute, name))
    })
}

/// The header that requests of HTTP/1.1 have as `host`, and those of HTTP/2 as this (RFC 9113 §8.3.1).
pub const AUTHORITY: &str = ":authority";

fn names(attribute: Attribute, name: &str) -> bool {
    // RFC 9110 §5.6.2.
    let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
    match attribute {
        Attribute::Header => name == AUTHORITY || (!name.is_empty() && name.bytes().all(token)),
        _ => name.split("][").all(|n| !n.is_empty() && !n.contains(['[', ']'])),
    }
}

/// All keys, for a message.
pub fn list() -> String {
    let one = |k: &Key| if k.is_named() { format!("{}[NAME]", k.key) } else { k.key.to_string() };
    let all: Vec<String> = KEYS.iter().map(one).collect();
    match all.split_last() {
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_and_others_are_not() {
        for (key, wanted) in [
            ("source.ip", Some((Attribute::SourceIp, ""))),
            ("request.auth.claims[a][b]", Some((Attribute::Claim, "a][b"))),
            ("request.headers[X-Role]", Some((Attribute::Header, "X-Role"))),
            ("request.headers[:authority]", Some((Attribute::Header, AUTHORITY))),
            ("request.headers[:path]", None),
            ("request.headers[a b]", None),
            ("request.headers[]", None),
            ("request.headers", None),
            ("request.auth.claims[a]b]", None),
            ("request.auth.claims[][a]", None),
            ("source.ip[x]", None),
            ("source.port", None),
            ("experimental.envoy.filters.a.b[c]", None),
        ] {
            assert_eq!(find(key), wanted, "{key}");
        }
        for k in KEYS {
            let name = if k.is_named() { "[x]" } else { "" };
            assert_eq!(find(&format!("{}{name}", k.key)).map(|f| f.0), Some(k.attribute));
            assert!(list().contains(k.key));
        }
    }

    #[test]
    fn a_star_is_the_first_or_the_last_or_refused() {
        for a in Attribute::ALL.into_iter().filter(|a| matches!(a.values(), Values::Text | Values::Path)) {
            for v in ["*", "/x*", "*x", "/x"] {
                assert_eq!(a.check(v), Ok(()), "{a:?} {v}");
            }
            for v in ["*x*", "/x*y", "**", "/x**", "*x*y"] {
                assert!(matches!(a.check(v), Err(ValueError::Star | ValueError::PathStar)), "{a:?} {v}");
            }
        }
        assert_eq!(Attribute::TrustDomain.check("cluster.*"), Err(ValueError::NoStar));
        assert_eq!(Attribute::TrustDomain.check("cluster.local/ns/a"), Err(ValueError::Domain));
    }

    #[test]
    fn a_port_is_a_number_and_no_text() {
        for (value, wanted) in [("80", Some(80)), ("080", Some(80)), ("65535", Some(65535))] {
            assert_eq!(port(value), wanted, "{value}");
        }
        for value in ["", "0", "00", "+80", "-1", "65536", "http", "80 ", "8*"] {
            assert_eq!(port(value), None, "{value}");
        }
    }
}
