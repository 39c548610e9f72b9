//! The PROXY protocol (haproxy's proxy-protocol.txt), versions 1 and 2: whom a connection is from, in its first bytes, by the word of a
//! proxy in front that is trusted. Reading is strict: what is not exactly a header is none, and a header is never longer than
//! [`MAX`]. Bytes in, a decision out: who may send a header at all is decided by who calls this.

use crate::canonical;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header, bytes.
pub const MAX: usize = HEAD + MAX_REST;
/// The longest of version 1, with its end of line.
const MAX_V1: usize = 107;
/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// What version 1 begins with.
const START: &[u8] = b"PROXY ";
/// Of version 2 before the addresses, bytes.
const HEAD: usize = 16;
/// Addresses and TLVs of version 2, bytes. (haproxy may send the client's certificate; AWS and Google send a hundred bytes.)
const MAX_REST: usize = 8 << 10;
/// Addresses of Unix sockets, bytes.
const UNIX: usize = 216;
/// The TLV with a checksum of the whole header.
const CRC32C: u8 = 3;

/// How a header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// As a line of text.
    V1,
    /// As bytes.
    V2,
}

/// Whom a connection is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client, and what it has called.
    Client {
        /// The client.
        from: SocketAddr,
        /// What it has called.
        to: SocketAddr,
    },
    /// The sender of the header itself (LOCAL: its health checks), or somebody whose address it does not tell (UNKNOWN, UNSPEC, a
    /// Unix socket). The connection counts as the sender's.
    Sender,
}

/// A header that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whom the connection is from.
    pub origin: Origin,
    /// Its length: what comes after is the connection's.
    pub length: usize,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// They begin otherwise.
    #[error("there is no PROXY protocol header")]
    None,
    /// It has no end where it must have one.
    #[error("the PROXY protocol header is too long")]
    Long,
    /// A line that is not as version 1 has it.
    #[error("the PROXY protocol line is malformed")]
    Line,
    /// A version or a command that is not known.
    #[error("the PROXY protocol header has version and command {0:#04x}")]
    Command(u8),
    /// A family or a transport that is not known, or not of streams.
    #[error("the PROXY protocol header has address family and protocol {0:#04x}")]
    Family(u8),
    /// Less is there than it says.
    #[error("the PROXY protocol header ends within an address or a TLV")]
    Short,
    /// The checksum is another.
    #[error("the PROXY protocol header has a wrong checksum")]
    Checksum,
    /// There are two checksums.
    #[error("the PROXY protocol header has more than one checksum")]
    Checksums,
}

/// Reads the header that a connection's first bytes begin with. None: more of them are needed.
///
/// # Errors
/// They begin with none.
pub fn read(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    let may_begin = |start: &[u8]| bytes.starts_with(start) || start.starts_with(bytes);
    if may_begin(&SIGNATURE) {
        return binary(bytes);
    }
    if may_begin(START) {
        return line(bytes);
    }
    Err(HeaderError::None)
}

fn line(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    let bytes = bytes.get(..MAX_V1).unwrap_or(bytes);
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < MAX_V1 { Ok(None) } else { Err(HeaderError::Long) };
    };
    let fields = bytes.get(START.len()..end).ok_or(HeaderError::Line)?;
    let is_unknown = fields.strip_prefix(b"UNKNOWN").is_some_and(|rest| rest.is_empty() || rest.starts_with(b" "));
    let origin = if is_unknown { Origin::Sender } else { client(fields).ok_or(HeaderError::Line)? };
    Ok(Some(Header { origin, length: end + 2 }))
}

/// `TCP4` or `TCP6`, two addresses and two ports.
fn client(fields: &[u8]) -> Option<Origin> {
    let mut fields = std::str::from_utf8(fields).ok()?.split(' ');
    let mut next = || fields.next();
    let (family, from, to, from_port, to_port) = (next()?, next()?, next()?, next()?, next()?);
    if next().is_some() {
        return None;
    }
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let from = canonical(SocketAddr::new(address(from)?, port(from_port)?));
    Some(Origin::Client { from, to: canonical(SocketAddr::new(address(to)?, port(to_port)?)) })
}

/// Digits only, without zeros before them.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn binary(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    let Some(&[.., command, family, high, low]) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    // As soon as it is known: nothing is waited for that cannot be taken.
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        other => return Err(HeaderError::Command(other)),
    };
    if !is_local && !matches!(family, 0x00 | 0x11 | 0x21 | 0x31) {
        return Err(HeaderError::Family(family));
    }
    if rest > MAX_REST {
        return Err(HeaderError::Long);
    }
    let length = HEAD + rest;
    let Some(whole) = bytes.get(..length) else { return Ok(None) };
    let mut left = whole.get(HEAD..).unwrap_or_default();
    let origin = match family {
        // Whatever is told beside does not count.
        _ if is_local => return Ok(Some(Header { origin: Origin::Sender, length })),
        0x11 => {
            let (from, to) = (take::<4>(&mut left)?, take::<4>(&mut left)?);
            with_ports(from.into(), to.into(), &mut left)?
        }
        0x21 => {
            let (from, to) = (take::<16>(&mut left)?, take::<16>(&mut left)?);
            with_ports(from.into(), to.into(), &mut left)?
        }
        0x31 => {
            take::<UNIX>(&mut left)?;
            Origin::Sender
        }
        _ => return Ok(Some(Header { origin: Origin::Sender, length })),
    };
    check(whole, left)?;
    Ok(Some(Header { origin, length }))
}

fn with_ports(from: IpAddr, to: IpAddr, left: &mut &[u8]) -> Result<Origin, HeaderError> {
    let mut port = || take::<2>(left).map(u16::from_be_bytes);
    let (from_port, to_port) = (port()?, port()?);
    let (from, to) = (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port));
    Ok(Origin::Client { from: canonical(from), to: canonical(to) })
}

fn take<const N: usize>(left: &mut &[u8]) -> Result<[u8; N], HeaderError> {
    let (first, rest) = left.split_first_chunk::<N>().ok_or(HeaderError::Short)?;
    *left = rest;
    Ok(*first)
}

/// TLVs are passed over; a checksum among them must be that of the header. (There is one at most: each takes a look at all bytes.)
fn check(whole: &[u8], tlvs: &[u8]) -> Result<(), HeaderError> {
    let (mut left, mut is_checked) = (tlvs, false);
    while !left.is_empty() {
        let [kind, high, low] = take::<3>(&mut left)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = left.split_at_checked(length).ok_or(HeaderError::Short)?;
        if kind == CRC32C {
            if std::mem::replace(&mut is_checked, true) {
                return Err(HeaderError::Checksums);
            }
            let sent = <[u8; 4]>::try_from(value).map(u32::from_be_bytes).map_err(|_| HeaderError::Checksum)?;
            // It is made with zeros in its own place.
            let before = whole.len() - left.len();
            let bytes = whole.iter().enumerate().map(|(i, b)| if i.wrapping_sub(before) < 4 { 0 } else { *b });
            if crc32c(bytes) != sent {
                return Err(HeaderError::Checksum);
            }
        }
        left = rest;
    }
    Ok(())
}

/// Castagnoli's (RFC 3720 §12.1).
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let one = |crc: u32, byte: u8| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    };
    !bytes.fold(!0, one)
}

/// The header of a connection of this client's, which has called this.
pub fn write(version: Version, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (from, to) = (canonical(from), canonical(to));
    // Both are of one family.
    let (from, to) = match (from.ip(), to.ip()) {
        (IpAddr::V4(ip), IpAddr::V6(_)) => (SocketAddr::new(ip.to_ipv6_mapped().into(), from.port()), to),
        (IpAddr::V6(_), IpAddr::V4(ip)) => (from, SocketAddr::new(ip.to_ipv6_mapped().into(), to.port())),
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => (from, to),
    };
    match version {
        Version::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
        }
        Version::V2 => {
            let mut out = SIGNATURE.to_vec();
            let (family, length) = if from.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            out.extend([0x21, family, 0, length]);
            for ip in [from.ip(), to.ip()] {
                match ip {
                    IpAddr::V4(ip) => out.extend(ip.octets()),
                    IpAddr::V6(ip) => out.extend(ip.octets()),
                }
            }
            out.extend(from.port().to_be_bytes());
            out.extend(to.port().to_be_bytes());
            out
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn client(from: &str, to: &str) -> Origin {
        Origin::Client { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    /// Of version 2, with this in place of addresses and TLVs.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const FOUR: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x1f, 0x90, 0x01, 0xbb];

    #[test]
    fn a_line_is_read_as_it_is_defined() {
        let table: [(&str, Result<Origin, HeaderError>); 27] = [
            ("PROXY TCP4 192.0.2.1 198.51.100.2 8080 443\r\n", Ok(client("192.0.2.1:8080", "198.51.100.2:443"))),
            ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", Ok(client("255.255.255.255:65535", "0.0.0.0:0"))),
            ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", Ok(client("[2001:db8::1]:1", "[::1]:2"))),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Ok(client("192.0.2.1:1", "[::1]:2"))),
            ("PROXY UNKNOWN\r\n", Ok(Origin::Sender)),
            ("PROXY UNKNOWN anything at all \u{e9}\r\n", Ok(Origin::Sender)),
            ("PROXY UNKNOWNS\r\n", Err(HeaderError::Line)),
            ("PROXY unknown\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 8080 443\n\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4  192.0.2.1 198.51.100.2 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 8080 443 \r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 8080\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 8080 65536\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 8080 +1\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 08080 443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2  443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2.01 198.51.100.2 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 192.0.2 198.51.100.2 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP4 ::1 ::1 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP6 192.0.2.1 198.51.100.2 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP6 [::1] ::1 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY TCP6 fe80::1%eth0 ::1 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY UDP4 192.0.2.1 198.51.100.2 8080 443\r\n", Err(HeaderError::Line)),
            ("PROXY \r\n", Err(HeaderError::Line)),
            ("PROXYTCP4", Err(HeaderError::None)),
            ("proxy TCP4 192.0.2.1 198.51.100.2 8080 443\r\n", Err(HeaderError::None)),
            ("GET / HTTP/1.1\r\n", Err(HeaderError::None)),
        ];
        for (text, want) in table {
            let got = read(text.as_bytes()).map(|h| h.unwrap());
            assert_eq!(got.map(|h| h.origin), want, "{text:?}");
            assert!(got.is_err() || got.unwrap().length == text.len(), "{text:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1));
        assert_eq!(read(long.as_bytes()), Err(HeaderError::Long));
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1 - 16));
        assert_eq!(read(longest.as_bytes()).unwrap().unwrap().length, MAX_V1);
    }

    #[test]
    fn bytes_are_read_as_they_are_defined() {
        let six = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[1], &[0; 15], &[1], &[0, 1, 0, 2]].concat();
        let tlv = |kind: u8, value: &[u8]| [&[kind, 0, value.len() as u8][..], value].concat();
        let with = |tlvs: &[u8]| [&FOUR[..], tlvs].concat();
        let unix = [b'/'; UNIX];
        let four = || Ok(client("192.0.2.1:8080", "198.51.100.2:443"));
        let table: [(Vec<u8>, Result<Origin, HeaderError>); 22] = [
            (v2(0x21, 0x11, &FOUR), four()),
            (v2(0x21, 0x11, &with(&tlv(0x02, b"shop.example"))), four()),
            (v2(0x21, 0x11, &with(&tlv(0x04, &[]))), four()),
            (v2(0x21, 0x21, &six), Ok(client("[2001:db8::1]:1", "[::1]:2"))),
            (v2(0x21, 0x31, &unix), Ok(Origin::Sender)),
            (v2(0x21, 0x00, &[]), Ok(Origin::Sender)),
            (v2(0x21, 0x00, b"anything"), Ok(Origin::Sender)),
            (v2(0x20, 0x00, &[]), Ok(Origin::Sender)),
            (v2(0x20, 0x11, &FOUR), Ok(Origin::Sender)),
            (v2(0x20, 0xff, b"x"), Ok(Origin::Sender)),
            (v2(0x22, 0x11, &FOUR), Err(HeaderError::Command(0x22))),
            (v2(0x11, 0x11, &FOUR), Err(HeaderError::Command(0x11))),
            (v2(0x31, 0x11, &FOUR), Err(HeaderError::Command(0x31))),
            // Datagrams, and what is not defined.
            (v2(0x21, 0x12, &FOUR), Err(HeaderError::Family(0x12))),
            (v2(0x21, 0x10, &FOUR), Err(HeaderError::Family(0x10))),
            (v2(0x21, 0x41, &FOUR), Err(HeaderError::Family(0x41))),
            (v2(0x21, 0x11, &FOUR[..11]), Err(HeaderError::Short)),
            (v2(0x21, 0x21, &FOUR), Err(HeaderError::Short)),
            (v2(0x21, 0x31, &unix[1..]), Err(HeaderError::Short)),
            (v2(0x21, 0x11, &with(&[1, 0])), Err(HeaderError::Short)),
            (v2(0x21, 0x11, &with(&[1, 0, 2, 0])), Err(HeaderError::Short)),
            (v2(0x21, 0x11, &[0; MAX_REST + 1]), Err(HeaderError::Long)),
        ];
        for (bytes, want) in table {
            let got = read(&bytes).map(|h| h.unwrap());
            assert_eq!(got.map(|h| h.origin), want, "{bytes:x?}");
            assert!(got.is_err() || got.unwrap().length == bytes.len(), "{bytes:x?}");
        }
    }

    #[test]
    fn a_checksum_must_be_right() {
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283, "the one of the RFC");
        for (before, after) in [(&[][..], &[][..]), (&[4, 0, 2, 9, 9], &[4, 0, 1, 7])] {
            let rest = [&FOUR[..], before, &[CRC32C, 0, 4, 0, 0, 0, 0], after].concat();
            let mut bytes = v2(0x21, 0x11, &rest);
            let at = bytes.len() - after.len() - 4;
            let sum = crc32c(bytes.iter().copied());
            bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
            assert!(read(&bytes).unwrap().is_some());
            // Of another kind it is no checksum.
            for i in (HEAD..bytes.len()).filter(|i| *i != at - 3) {
                let mut other = bytes.clone();
                other[i] ^= 1;
                assert!(read(&other).is_err(), "byte {i}: {other:x?}");
            }
        }
        assert_eq!(read(&v2(0x21, 0x11, &[&FOUR[..], &[CRC32C, 0, 1, 0]].concat())), Err(HeaderError::Checksum));
        // Another one after it is not looked at.
        let mut two = v2(0x21, 0x11, &[&FOUR[..], &[CRC32C, 0, 4, 0, 0, 0, 0, CRC32C, 0, 4, 1, 2, 3, 4]].concat());
        let (at, sum) = (HEAD + FOUR.len() + 3, crc32c(two.iter().copied()));
        two[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(read(&two), Err(HeaderError::Checksums));
    }

    #[test]
    fn a_header_may_come_byte_by_byte_and_what_follows_is_not_its_own() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 8080 443\r\n";
        for header in [&line[..], &v2(0x21, 0x11, &FOUR)[..], &v2(0x20, 0, &[])[..]] {
            for n in 0..header.len() {
                assert_eq!(read(&header[..n]), Ok(None), "{n} of {header:x?}");
            }
            let more = [header, b"\r\n\x03GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&more).unwrap().unwrap().length, header.len());
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (from, to, want) in [
            ("192.0.2.1:8080", "198.51.100.2:443", client("192.0.2.1:8080", "198.51.100.2:443")),
            ("[2001:db8::1]:1", "[::1]:65535", client("[2001:db8::1]:1", "[::1]:65535")),
            ("[::ffff:192.0.2.1]:1", "198.51.100.2:2", client("192.0.2.1:1", "198.51.100.2:2")),
            ("192.0.2.1:1", "[2001:db8::1]:2", client("192.0.2.1:1", "[2001:db8::1]:2")),
            ("[2001:db8::1]:1", "192.0.2.1:2", client("[2001:db8::1]:1", "192.0.2.1:2")),
        ] {
            for version in [Version::V1, Version::V2] {
                let bytes = write(version, from.parse().unwrap(), to.parse().unwrap());
                let read = read(&bytes).unwrap().unwrap();
                assert_eq!((read.origin, read.length), (want, bytes.len()), "{version:?} {from} {to}");
            }
        }
        let line = write(Version::V1, "192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        assert_eq!(line, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    }
}
