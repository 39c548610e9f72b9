//! Which address Envoy takes for the client's: `Utility::getLastAddressFromXFF`, as it is written there, on text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whom these lines of X-Forwarded-For name, behind so many trusted proxies. None: whoever has opened the connection.
pub fn client(lines: &[String], trusted: usize) -> Option<IpAddr> {
    if trusted == 0 || lines.is_empty() {
        return None;
    }
    // Envoy has one header, with commas.
    let whole = lines.join(",");
    let mut text = whole.as_str();
    // The last addresses are those of trusted proxies.
    for _ in 0..trusted - 1 {
        text = &text[..text.rfind(',')?];
    }
    if let Some(comma) = text.rfind(',')
        && comma + 1 < text.len()
    {
        text = &text[comma + 1..];
    }
    let text = text.trim_matches([' ', '\t']);
    let four = dotted(text).map(IpAddr::V4);
    let mapped = |six: Ipv6Addr| six.to_ipv4_mapped().map_or(IpAddr::V6(six), IpAddr::V4);
    four.or_else(|| text.parse().ok().map(mapped))
}

/// Four numbers, none with a zero before it.
fn dotted(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u8> = text
        .split('.')
        .map(|part| {
            let is_plain = part.len() == 1 || !part.starts_with('0');
            part.chars().all(|c| c.is_ascii_digit()).then(|| part.parse().ok().filter(|_| is_plain)).flatten()
        })
        .collect::<Option<_>>()?;
    <[u8; 4]>::try_from(parts).ok().map(Ipv4Addr::from)
}
