//! Who the client of a request is, and what is told on of it: `x-forwarded-for`, `x-forwarded-proto` and `x-forwarded-client-cert`, as
//! Envoy has them. Who has opened the connection is known; what it says of others counts only as far as the gateway's topology
//! says ([`Topology`]): the rest is taken out, or put behind what is known.

use crate::{
    downstream::{
        context::Downstream,
        topology::{CertificateMode, Topology},
    },
    http::{entry, names},
};
use http::{HeaderMap, HeaderValue};
use karst_core::Identity;
use std::net::{IpAddr, SocketAddr};

/// The client of a request whose head is as it has come: whom the trusted proxies name, else whom the connection is from. (The port
/// of the first is not known: 0.)
pub(crate) fn client(downstream: &Downstream, topology: Topology, headers: &HeaderMap) -> SocketAddr {
    if topology.trusted_proxies == 0 {
        return downstream.from;
    }
    named(headers, topology.trusted_proxies).map_or(downstream.from, |ip| SocketAddr::new(ip, 0))
}

/// The address that the last of so many trusted proxies has added to X-Forwarded-For is the first of them from the right; the client's
/// is the one that the first proxy has added (Envoy: getLastAddressFromXFF). None: there are fewer, or it is no address.
pub(crate) fn named(headers: &HeaderMap, trusted: usize) -> Option<IpAddr> {
    let lines = headers.get_all(names::FORWARDED_FOR).iter().rev();
    let entry = lines.flat_map(|line| line.as_bytes().rsplit(|b| *b == b',')).nth(trusted.checked_sub(1)?)?;
    let ip: IpAddr = std::str::from_utf8(entry.trim_ascii()).ok()?.parse().ok()?;
    Some(ip.to_canonical())
}

/// Has a proxy that is trusted ended TLS before us?
pub(crate) fn is_https(topology: Topology, headers: &HeaderMap) -> bool {
    let is = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"https");
    topology.trusted_proxies > 0 && headers.get(names::FORWARDED_PROTO).is_some_and(is)
}

/// What a request says of certificates, if it goes on. (The entry takes it out.)
pub(crate) fn certificates(downstream: &Downstream, topology: Topology, headers: &HeaderMap) -> Option<HeaderValue> {
    let goes_on = match topology.client_certificate(downstream.is_at_gateway()) {
        CertificateMode::Sanitize | CertificateMode::SanitizeSet => false,
        CertificateMode::ForwardOnly | CertificateMode::AppendForward => downstream.has_certificate(),
        CertificateMode::AlwaysForwardOnly => true,
    };
    if !goes_on {
        return None;
    }
    let name = names::FORWARDED_CLIENT_CERT;
    HeaderValue::from_bytes(&entry::joined(headers, &name)?).ok()
}

/// Tells of certificates: what was sent, if it goes on, and what is known of the client's own, if that is asked for. `own`: who we are.
pub(super) fn tell_certificates(
    downstream: &Downstream,
    topology: Topology,
    sent: Option<HeaderValue>,
    own: &Identity,
    headers: &mut HeaderMap,
) {
    let known = match topology.client_certificate(downstream.is_at_gateway()) {
        CertificateMode::AppendForward | CertificateMode::SanitizeSet => downstream.certificate(own),
        CertificateMode::Sanitize | CertificateMode::ForwardOnly | CertificateMode::AlwaysForwardOnly => None,
    };
    let value = match (sent, known) {
        (Some(sent), Some(known)) => HeaderValue::from_bytes(&[sent.as_bytes(), known.as_bytes()].join(&b","[..])).ok(),
        (sent, known) => sent.or(known),
    };
    if let Some(value) = value {
        headers.insert(names::FORWARDED_CLIENT_CERT, value);
    }
}

/// Tells the application who has come through a gateway, and how. What the client says of itself stands before. Returns
/// all that is told of who has come.
pub(super) fn introduce(
    downstream: &Downstream,
    topology: Topology,
    client: SocketAddr,
    headers: &mut HeaderMap,
) -> Option<HeaderValue> {
    let is_behind = topology.trusted_proxies > 0;
    // How it has come to a proxy before us only that one knows.
    if !is_behind || !headers.contains_key(names::FORWARDED_PROTO) {
        headers.insert(names::FORWARDED_PROTO, HeaderValue::from_static(downstream.scheme()));
    }
    if let Some(address) = is_behind.then(|| HeaderValue::try_from(client.ip().to_string()).ok()).flatten() {
        headers.insert(names::EXTERNAL_ADDRESS, address);
    }
    let own = downstream.address();
    let told = match headers.contains_key(names::FORWARDED_FOR) {
        false => own.clone(),
        true => {
            let before = headers.get_all(names::FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
            let all: Vec<&[u8]> = before.chain([own.as_bytes()]).collect();
            HeaderValue::from_bytes(&all.join(&b","[..])).ok()?
        }
    };
    headers.insert(names::FORWARDED_FOR, told.clone());
    Some(told)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn the_client_is_whom_the_first_trusted_proxy_has_seen() {
        let table: &[(&[&str], [Option<&str>; 4])] = &[
            (&[], [None, None, None, None]),
            (&["192.0.2.1"], [None, Some("192.0.2.1"), None, None]),
            (&["192.0.2.1, 198.51.100.2"], [None, Some("198.51.100.2"), Some("192.0.2.1"), None]),
            (&["192.0.2.1 ,\t198.51.100.2 "], [None, Some("198.51.100.2"), Some("192.0.2.1"), None]),
            // Several lines are one.
            (&["192.0.2.1", "198.51.100.2,::1"], [None, Some("::1"), Some("198.51.100.2"), Some("192.0.2.1")]),
            (&["::ffff:192.0.2.1"], [None, Some("192.0.2.1"), None, None]),
            // No address is taken for one, and none is looked for elsewhere.
            (&["192.0.2.1,unknown"], [None, None, Some("192.0.2.1"), None]),
            (&["192.0.2.1:80", "[::1]"], [None, None, None, None]),
            (&["192.0.2.01"], [None, None, None, None]),
            (&["192.0.2.1,"], [None, None, Some("192.0.2.1"), None]),
            (&["", ","], [None, None, None, None]),
            (&["fe80::1%eth0"], [None, None, None, None]),
        ];
        for (lines, want) in table {
            let mut headers = HeaderMap::new();
            for line in *lines {
                headers.append(names::FORWARDED_FOR, line.parse().unwrap());
            }
            for (trusted, want) in want.iter().enumerate() {
                let got = named(&headers, trusted).map(|ip| ip.to_string());
                assert_eq!(got.as_deref(), *want, "{lines:?}, {trusted} trusted");
            }
            assert_eq!(named(&headers, usize::MAX), None);
        }
    }
}
