//! Addresses as the mesh compares them: IPv4-mapped IPv6 is IPv4, and an address belongs to a network.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

/// An IP address in a network. The default network is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Name of the network (Istio: `topology.istio.io/network`).
    pub network: Arc<str>,
    /// The address, in canonical form.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// An address in a network, made canonical.
    pub fn new(network: impl Into<Arc<str>>, ip: IpAddr) -> Self {
        Self { network: network.into(), ip: ip.to_canonical() }
    }
}
impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// Turns an IPv4-mapped IPv6 address, as dual-stack sockets show it, back into IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Can it be the address of one host that others talk to? Loopback, unspecified, multicast and broadcast addresses cannot.
pub fn is_host(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST)
}

/// Reads an address of 4 or 16 bytes, as protobuf carries it.
pub fn ip_from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| IpAddr::from(v6).to_canonical())
}

/// The bytes of an address, as protobuf carries it.
pub fn ip_to_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: u128,
    /// Prefix length over 128 bits; IPv4 is held as IPv4-mapped.
    len: u8,
}

/// Why a text is not an address range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is neither an IP address nor a CIDR range such as 10.0.0.0/8 or 2001:db8::/32 [KARST-0021]")]
pub struct CidrError(pub String);

fn wide(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(a) => a.to_ipv6_mapped().to_bits(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

impl Cidr {
    /// A range from an address and a prefix length (0 to 32, or 0 to 128 for IPv6).
    pub fn new(ip: IpAddr, len: u8) -> Option<Self> {
        let (bits, shift) = if ip.is_ipv4() { (32, 96) } else { (128, 0) };
        if len > bits {
            return None;
        }
        let len = len + shift;
        Some(Self { base: wide(ip) & mask(len), len })
    }
    /// Does the range hold this address? An IPv4 range never holds a (real) IPv6 address, nor the reverse.
    pub fn contains(&self, ip: IpAddr) -> bool {
        // An IPv6 range so wide that it covers ::ffff:0:0/96 still does not speak of IPv4.
        if self.len < 96 && ip.to_canonical().is_ipv4() {
            return false;
        }
        wide(ip) & mask(self.len) == self.base
    }
    /// The prefix length in the family of the range.
    pub fn prefix_len(&self) -> u8 {
        if self.is_v4() { self.len - 96 } else { self.len }
    }
    /// Is it one address?
    pub fn is_single(&self) -> bool {
        self.len == 128
    }
    /// The first address.
    pub fn base(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_bits(self.base)).to_canonical()
    }
    fn is_v4(&self) -> bool {
        self.len >= 96 && Ipv6Addr::from_bits(self.base).to_ipv4_mapped().is_some()
    }
}
fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - u32::from(len.min(128))) }
}

impl std::str::FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let bad = || CidrError(text.to_string());
        let (ip, len) = match text.split_once('/') {
            Some((ip, len)) => (ip, Some(len.parse::<u8>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        Cidr::new(ip, len.unwrap_or(if ip.is_ipv4() { 32 } else { 128 })).ok_or_else(bad)
    }
}
impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_should() {
        let has = |c: &str, ip: &str| c.parse::<Cidr>().unwrap().contains(ip.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.255.0.1"));
        assert!(has("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(!has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("0.0.0.0/0", "1.2.3.4"));
        assert!(!has("0.0.0.0/0", "fd00::1"));
        assert!(!has("::/0", "1.2.3.4"));
        assert!(has("::/0", "fd00::1"));
        assert!(has("fd00::/8", "fdff::1"));
        assert!(has("10.0.0.7", "10.0.0.7"));
        let single = |c: &str| c.parse::<Cidr>().unwrap().is_single();
        assert!(single("10.0.0.7") && single("10.0.0.7/32") && single("fd00::1"));
        assert!(!single("10.0.0.0/31") && !single("fd00::/32") && !single("0.0.0.0/0"));
    }

    #[test]
    fn bad_ranges_are_refused() {
        for bad in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "x", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
