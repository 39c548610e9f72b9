//! What a request calls the host (RFC 3986 §3.2): a name, an IPv4 address or an IPv6 address in brackets, and maybe a port. Whatever
//! an application may take for the same host has one canonical form, so that no rule about hosts is passed by writing one in
//! another way; what is none of these is no authority. Nothing is allocated for one that is canonical already.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// Longest name and longest label of one (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// An authority in its canonical form: names in lower case and without a last dot, addresses as [`IpAddr`] writes them
/// (IPv6 in brackets, unless it is IPv4 in disguise), ports without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    host: Cow<'a, str>,
    port: Option<u16>,
    /// The text was canonical.
    canonical: bool,
}

/// The text is no authority.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("is not HOST or HOST:PORT, with a name, an IPv4 address or an IPv6 address in brackets")]
pub struct NotAnAuthority;

impl<'a> Authority<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &'a [u8]) -> Result<Self, NotAnAuthority> {
        let text = std::str::from_utf8(text).map_err(|_| NotAnAuthority)?;
        let bracketed = text.starts_with('[');
        let end = match bracketed {
            true => text.find(']').map(|i| i + 1).ok_or(NotAnAuthority)?,
            false => text.find(':').unwrap_or(text.len()),
        };
        let (host, rest) = text.split_at(end);
        let host = if bracketed { address(host) } else { name(host) }.ok_or(NotAnAuthority)?;
        let (port, plain) = match rest.strip_prefix(':') {
            None if rest.is_empty() => (None, true),
            None => return Err(NotAnAuthority),
            // A port may be empty: the default.
            Some("") => (None, false),
            Some(p) => (Some(number(p).ok_or(NotAnAuthority)?), !p.starts_with('0')),
        };
        let canonical = plain && matches!(host, Cow::Borrowed(h) if h.len() == end);
        Ok(Self { host, port, canonical })
    }

    /// The host: a name, an IPv4 address, or an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if one is named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Was it written in its canonical form?
    pub fn is_canonical(&self) -> bool {
        self.canonical
    }
}

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(p) => write!(f, "{}:{p}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// The canonical form of a DNS name (an IPv4 address looks like one); None: it is none.
pub fn name(text: &str) -> Option<Cow<'_, str>> {
    let name = text.strip_suffix('.').unwrap_or(text);
    // The underscore is in no host name, but in names that people have.
    let character = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |l: &str| (1..=MAX_LABEL).contains(&l.len()) && l.bytes().all(character);
    if name.len() > MAX_NAME || !name.split('.').all(label) {
        return None;
    }
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Some(Cow::Owned(name.to_ascii_lowercase())),
        false => Some(Cow::Borrowed(name)),
    }
}

/// An IPv6 address in brackets.
fn address(text: &str) -> Option<Cow<'_, str>> {
    let ip: Ipv6Addr = text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    let canonical = match IpAddr::V6(ip).to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    Some(if canonical == text { Cow::Borrowed(text) } else { Cow::Owned(canonical) })
}

fn number(text: &str) -> Option<u16> {
    // `parse` would take a sign, too.
    text.parse().ok().filter(|p| *p != 0 && text.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_one_form() {
        for (text, host, port) in [
            ("shop", "shop", None),
            ("shop.app.svc:80", "shop.app.svc", Some(80)),
            ("Admin.Example.COM", "admin.example.com", None),
            ("admin.example.com.", "admin.example.com", None),
            ("admin.example.com.:8443", "admin.example.com", Some(8443)),
            ("web.2024", "web.2024", None),
            ("a_b.example", "a_b.example", None),
            ("shop:", "shop", None),
            ("shop:0080", "shop", Some(80)),
            ("10.0.0.1", "10.0.0.1", None),
            ("10.0.0.1.:80", "10.0.0.1", Some(80)),
            ("[::1]:80", "[::1]", Some(80)),
            ("[2001:DB8:0:0::1]", "[2001:db8::1]", None),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1", Some(80)),
        ] {
            let a = Authority::parse(text.as_bytes()).unwrap();
            assert_eq!((a.host(), a.port()), (host, port), "{text}");
            let canonical = a.to_string();
            assert_eq!(a.is_canonical(), canonical == text, "{text}");
            let again = Authority::parse(canonical.as_bytes()).unwrap();
            assert!(again.is_canonical() && again.to_string() == canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        let long = "a".repeat(64);
        for text in [
            "",
            ".",
            ":80",
            "a..b",
            ".a",
            "a..",
            "a b",
            "user@a",
            "a/b",
            "a%2eb",
            "a,b",
            "*",
            "*.example.com",
            "::1",
            "a:b",
            "a:80:80",
            "a:0",
            "a:65536",
            "a:+80",
            "[::1",
            "[::1].",
            "[::1]80",
            "[fe80::1%25eth0]",
            "[10.0.0.1]",
            "[a]",
            "exämple.com",
            &long,
        ] {
            assert_eq!(Authority::parse(text.as_bytes()), Err(NotAnAuthority), "{text}");
        }
        assert!(Authority::parse(b"a\xff").is_err());
    }
}
