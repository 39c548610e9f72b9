//! What applications make of a path, and servers of an authority: three of each, as small as they can be.

use std::net::Ipv6Addr;

/// An application that takes the path as it is sent.
pub fn as_sent(path: &str) -> String {
    path.into()
}

/// One that decodes and resolves nothing (WSGI, many frameworks).
pub fn decoded(path: &str) -> String {
    let (bytes, mut at, mut out) = (path.as_bytes(), 0, vec![]);
    while let Some(byte) = bytes.get(at) {
        let digits = path.get(at + 1..at + 3).filter(|d| *byte == b'%' && d.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        out.push(code.unwrap_or(*byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One that decodes, then merges slashes and resolves `.` and `..` (nginx; Java's Path).
pub fn resolved(path: &str) -> String {
    let text = decoded(path);
    let mut out: Vec<&str> = vec![];
    for segment in text.split('/').filter(|s| !s.is_empty() && *s != ".") {
        match segment {
            ".." => drop(out.pop()),
            name => out.push(name),
        }
    }
    let is_directory = ["/", "/.", "/.."].iter().any(|end| text.ends_with(end)) && !out.is_empty();
    format!("/{}{}", out.join("/"), if is_directory { "/" } else { "" })
}

/// What an application makes of a path.
pub type ReadPath = fn(&str) -> String;

/// The three.
pub const PATHS: [(&str, ReadPath); 3] = [("as sent", as_sent), ("decoded", decoded), ("resolved", resolved)];

/// A host, as names are compared, and a port.
pub type HostPort = (String, Option<u16>);

/// None: it is none.
pub type ReadAuthority = fn(&str) -> Option<HostPort>;

/// The three.
pub const AUTHORITIES: [(&str, ReadAuthority); 3] = [("RFC 3986", rfc3986), ("Go", go), ("Envoy", envoy)];

/// Names have no case and no last dot; addresses have many spellings.
fn compared(host: &str) -> String {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().map_or(host.to_lowercase(), |ip| match ip.to_ipv4_mapped() {
            Some(ip) => ip.to_string(),
            None => format!("[{ip}]"),
        }),
        None => host.strip_suffix('.').unwrap_or(host).to_lowercase(),
    }
}

/// None: that is no port. Some(None): none is named.
fn port(text: &str) -> Option<Option<u16>> {
    match text {
        "" => Some(None),
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok().map(Some),
        _ => None,
    }
}

/// RFC 3986 §3.2, as RFC 9110 §7.2 has it for Host: a host that is not empty, no user.
fn rfc3986(text: &str) -> Option<HostPort> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, rest) = inner.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (format!("[{address}]"), rest)
        }
        None => {
            let at = text.find(':').unwrap_or(text.len());
            let name = text.get(..at)?;
            // unreserved, sub-delims, and what is encoded.
            let usual = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b);
            let valid = !name.is_empty()
                && name.bytes().all(usual)
                && name
                    .split('%')
                    .skip(1)
                    .all(|s| s.get(..2).is_some_and(|d| d.bytes().all(|b| b.is_ascii_hexdigit())));
            (valid.then(|| decoded(name))?, text.get(at..)?)
        }
    };
    let port = match rest.strip_prefix(':') {
        Some(digits) => port(digits)?,
        None => rest.is_empty().then_some(None)?,
    };
    Some((compared(&host), port))
}

/// net/http: what its ServeMux makes of it (`stripHostPort`), by net.SplitHostPort: the last colon counts, and if it
/// cannot be split it is all host.
fn go(text: &str) -> Option<HostPort> {
    // golang.org/x/net/http/httpguts.ValidHostHeader
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"!$%&'()*+,-./:;=@[]_~".contains(&b);
    if !text.bytes().all(usual) {
        return None;
    }
    let split = || {
        let (host, digits) = text.rsplit_once(':')?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']')?;
            return (!inner.contains(['[', ']'])).then(|| (format!("[{inner}]"), digits));
        }
        (!host.contains([':', '[', ']'])).then(|| (host.to_string(), digits))
    };
    match split() {
        Some((host, digits)) => Some((compared(&host), port(digits)?)),
        None => Some((compared(text), None)),
    }
}

/// With strip_any_host_port and strip_trailing_host_dot: the last colon that is not in brackets.
fn envoy(text: &str) -> Option<HostPort> {
    // http_parser's host: visible, and nothing that ends an authority.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\\\"<>^`{|}".contains(&b)) {
        return None;
    }
    let start = text.rfind(':').filter(|at| text.rfind(']').is_none_or(|end| end < *at));
    match start {
        Some(at) => Some((compared(text.get(..at)?), port(text.get(at + 1..)?)?)),
        None => Some((compared(text), None)),
    }
}
