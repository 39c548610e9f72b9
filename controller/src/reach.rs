//! Which addresses the controller connects to when a URL that a user wrote says so. A decision on its own: no I/O. The client asks
//! it about every address, after names are resolved, and again for each redirect.
//!
//! Always: loopback, link-local, multicast, broadcast and metadata addresses are refused, also where an IPv6 address stands for
//! one of IPv4 (mapped, NAT64, 6to4 and the like). Private addresses are not: identity providers are in clusters, too.
//! Proven by `tests` here, and on connections by `client::tests`.

use karst_core::Cidr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What may be reached beside, and what not.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// May be reached, whatever else is said of it.
    pub allowed: Vec<Cidr>,
    /// May not be reached, in addition.
    pub blocked: Vec<Cidr>,
}

/// An address that may not be reached.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "requests to {ip} are not allowed: {form} is {why}; allow it with ALLOWED_CIDRS_IN_JWKS_URIS of the controller [KARST-0123]"
)]
pub struct Refused {
    /// The address.
    pub ip: IpAddr,
    /// What it stands for; often itself.
    form: IpAddr,
    why: &'static str,
}

impl Reach {
    /// Everything, for hosts that the operator names.
    pub fn anywhere() -> Self {
        let all = [Cidr::new(Ipv4Addr::UNSPECIFIED.into(), 0), Cidr::new(Ipv6Addr::UNSPECIFIED.into(), 0)];
        Self { allowed: all.into_iter().flatten().collect(), blocked: vec![] }
    }

    /// May this address be reached? Not if any of the addresses that it stands for may not.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, ip: IpAddr) -> Result<(), Refused> {
        let whole = ip.to_canonical();
        let inner = match whole {
            IpAddr::V4(_) => [None; 4],
            IpAddr::V6(a) => embedded(a),
        };
        let forms = std::iter::once(whole).chain(inner.into_iter().flatten().map(IpAddr::V4));
        match forms.into_iter().find_map(|form| Some((form, self.refuses(form)?))) {
            None => Ok(()),
            Some((form, why)) => Err(Refused { ip, form, why }),
        }
    }

    fn refuses(&self, ip: IpAddr) -> Option<&'static str> {
        if self.allowed.iter().any(|c| c.contains(ip)) {
            return None;
        }
        if self.blocked.iter().any(|c| c.contains(ip)) {
            return Some("in BLOCKED_CIDRS_IN_JWKS_URIS");
        }
        never(ip)
    }
}

/// What is never meant by the address of an issuer's keys.
fn never(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(a) => match a.octets() {
            [0, ..] => Some("unspecified"),
            [127, ..] => Some("loopback"),
            [169, 254, ..] => Some("link-local"),
            [224..=239, ..] => Some("multicast"),
            [255, 255, 255, 255] => Some("broadcast"),
            // Alibaba; Azure's WireServer; Oracle. Those of others are link-local.
            [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => Some("a cloud's metadata service"),
            _ => None,
        },
        IpAddr::V6(a) => match a.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
            [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
            [0xfe80..=0xfebf, ..] => Some("link-local"),
            [0xff00..=0xffff, ..] => Some("multicast"),
            // AWS (also the agent of EKS Pod Identity); Google; Oracle; Scaleway; Linode; Alibaba.
            [0xfd00, 0xec2, ..]
            | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
            | [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
            | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]
            | [0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1]
            | [0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200] => Some("a cloud's metadata service"),
            _ => None,
        },
    }
}

/// The IPv4 addresses that a translator or a tunnel may make of an IPv6 address.
fn embedded(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    // The two octets on both sides of the border between two groups.
    let across = |a: u16, b: u16| (a << 8) | (b >> 8);
    let [a, b, c, d, e, f, g, h] = ip.segments();
    match [a, b, c, d, e, f] {
        // Compatible; :: and ::1 are themselves.
        [0, 0, 0, 0, 0, 0] => [Some(v4(g, h)).filter(|_| g != 0), None, None, None],
        // Mapped, translated (RFC 2765), and NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => {
            [Some(v4(g, h)), None, None, None]
        }
        // NAT64 of a network's own (RFC 8215): where the address is depends on the prefix (96, 48, 56, 64), which is not known. A
        // place that begins with 0 is none that was filled.
        [0x64, 0xff9b, 1, ..] => {
            let places = [v4(g, h), v4(d, across(e, f)), v4(across(d, e << 8), f), v4(across(e, f), across(f, g))];
            places.map(|a| Some(a).filter(|a| u32::from(*a) >> 24 != 0))
        }
        // 6to4.
        [0x2002, high, low, ..] => [Some(v4(high, low)), None, None, None],
        // Teredo: its server, and the client.
        [0x2001, 0, high, low, ..] => [Some(v4(high, low)), Some(v4(!g, !h)), None, None],
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe] => [Some(v4(g, h)), None, None, None],
        _ => [None; 4],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn refused(r: &Reach, ip: &str) -> Option<&'static str> {
        r.check(ip.parse().unwrap()).err().map(|e| e.why)
    }

    #[test]
    fn loopback_link_local_and_metadata_are_never_reached() {
        let table = [
            ("unspecified", &["0.0.0.0", "0.1.2.3", "::"][..]),
            ("loopback", &["127.0.0.1", "127.0.0.53", "127.255.255.255", "::1"]),
            ("link-local", &["169.254.0.0", "169.254.169.254", "169.254.170.2", "169.254.255.255"]),
            ("link-local", &["fe80::1", "fe80::a9fe:a9fe", "febf:ffff::1"]),
            ("multicast", &["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"]),
            ("broadcast", &["255.255.255.255"]),
            ("a cloud's metadata service", &["100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"]),
            ("a cloud's metadata service", &["fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"]),
            ("a cloud's metadata service", &["fd00:a9fe:a9fe::1", "fd00:100::100:200"]),
        ];
        for (why, all) in table {
            for ip in all {
                assert_eq!(refused(&Reach::default(), ip), Some(why), "{ip}");
            }
        }
    }

    #[test]
    fn addresses_within_addresses_are_found() {
        let table = [
            ("mapped", "::ffff:169.254.169.254"),
            ("mapped", "::ffff:7f00:1"),
            ("mapped", "::ffff:0.0.0.0"),
            ("mapped", "::ffff:255.255.255.255"),
            ("mapped", "::ffff:100.100.100.200"),
            ("compatible", "::127.0.0.1"),
            ("compatible", "::169.254.169.254"),
            ("translated", "::ffff:0:169.254.169.254"),
            ("NAT64", "64:ff9b::169.254.169.254"),
            ("NAT64", "64:ff9b::127.0.0.1"),
            ("NAT64", "64:ff9b::0.0.0.0"),
            ("NAT64 of its own, /96", "64:ff9b:1::169.254.169.254"),
            ("NAT64 of its own, /96", "64:ff9b:1:2:3:4:127.0.0.1"),
            ("NAT64 of its own, /48", "64:ff9b:1:a9fe:a9:fe00::"),
            ("NAT64 of its own, /48 with a suffix", "64:ff9b:1:a9fe:a9:fe01:203:405"),
            ("NAT64 of its own, /56", "64:ff9b:1:a9:fe:a9fe::"),
            ("NAT64 of its own, /64", "64:ff9b:1:0:a9:fea9:fe00:0"),
            ("6to4", "2002:a9fe:a9fe::1"),
            ("6to4", "2002:7f00:1::"),
            ("Teredo, server", "2001:0:a9fe:a9fe::1"),
            ("Teredo, client", "2001:0:808:808::5601:5601"),
            ("ISATAP", "2001:db8::5efe:169.254.169.254"),
            ("ISATAP", "2001:db8::200:5efe:127.0.0.1"),
        ];
        for (kind, ip) in table {
            assert!(refused(&Reach::default(), ip).is_some(), "{kind}: {ip}");
        }
    }

    #[test]
    fn private_and_public_addresses_are_reached() {
        for ip in [
            "10.0.0.1",
            "10.77.1.5",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "8.8.8.8",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "169.255.0.1",
            "223.255.255.255",
            "240.0.0.1",
            "fd00::1",
            "fd66::100",
            "fec0::1",
            "2001:db8::1",
            "2606:4700::1111",
            "::ffff:10.0.0.1",
            "64:ff9b::8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::10.1.2.3",
            "64:ff9b:1:a01:2:300::",
            "2002:808:808::1",
        ] {
            assert_eq!(refused(&Reach::default(), ip), None, "{ip}");
        }
    }

    #[test]
    fn operators_block_and_allow() {
        let nets = |all: &[&str]| all.iter().map(|c| c.parse().unwrap()).collect::<Vec<Cidr>>();
        let r = Reach { allowed: nets(&["127.0.0.1", "10.1.2.3"]), blocked: nets(&["10.0.0.0/8", "fd00::/8"]) };
        for ip in ["127.0.0.1", "::ffff:127.0.0.1", "10.1.2.3", "192.168.1.1", "64:ff9b::a01:203"] {
            assert_eq!(refused(&r, ip), None, "{ip}");
        }
        for ip in ["127.0.0.2", "169.254.169.254", "::1", "64:ff9b::169.254.169.254"] {
            assert!(refused(&r, ip).is_some(), "{ip}");
        }
        for ip in ["10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "fd66::1"] {
            assert_eq!(refused(&r, ip), Some("in BLOCKED_CIDRS_IN_JWKS_URIS"), "{ip}");
        }
        // Nothing but one.
        let r = Reach { allowed: nets(&["10.1.2.3"]), blocked: nets(&["0.0.0.0/0", "::/0"]) };
        assert_eq!(
            ["10.1.2.3", "10.1.2.4", "8.8.8.8", "2001:db8::1"].map(|ip| refused(&r, ip).is_none()),
            [true, false, false, false]
        );
        for ip in ["127.0.0.1", "::1", "169.254.169.254", "64:ff9b::127.0.0.1", "10.0.0.1"] {
            assert_eq!(refused(&Reach::anywhere(), ip), None, "{ip}");
        }
    }

    #[test]
    fn a_refusal_says_what_and_how_to_allow_it() {
        let e = Reach::default().check("64:ff9b::a9fe:a9fe".parse().unwrap()).unwrap_err();
        assert_eq!(
            e.to_string(),
            "requests to 64:ff9b::a9fe:a9fe are not allowed: 169.254.169.254 is link-local; allow it with ALLOWED_CIDRS_IN_JWKS_URIS of the controller [KARST-0123]"
        );
    }
}
