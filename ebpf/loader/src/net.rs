//! Routing rules and sysctls of an enrolled pod, by netlink, in the calling thread's network namespace.
//!
//! Per family: marked flows look up table 100, which delivers everything to `lo`. Which addresses are local, and on which device,
//! is what the kernel says ([`addresses`]).

use crate::Error;
use karst_ebpf_common::{MARK_APP, MARK_CAPTURE, MARK_MASK};
use karst_rt::{netns::Netns, process::proc_root};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{fmt, fs, io, net::IpAddr};

/// A device of a network namespace. A name alone does not tell it from another one that comes later; an index alone,
/// from itself under another name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (index {})", self.name, self.index)
    }
}

/// Delivers everything to `lo`.
pub(crate) const TABLE: u8 = 100;
const PREF_MARKED: u32 = 10;
/// Behind it: marked flows that table 100 has not taken.
const PREF_REFUSED: u32 = 11;
/// Marks of what goes over `lo`.
const MARKS: [u32; 2] = [MARK_CAPTURE, MARK_APP];

/// Sysctls that redirection needs: accepted sockets inherit the mark of the SYN (so that the application's answers
/// come back over `lo`), and refusals of closed ports carry the mark of what they answer.
pub(crate) const SYSCTLS: [(&str, bool); 4] = [
    ("ipv4/tcp_fwmark_accept", false),
    ("ipv4/fwmark_reflect", false),
    ("ipv6/fwmark_reflect", true),
    // DNS queries that the guard moves to `lo` have the pod's own address as their source.
    ("ipv4/conf/lo/accept_local", false),
];

/// Sets up the pod's side of redirection. Idempotent.
pub(crate) fn setup(ips: &[IpAddr]) -> io::Result<()> {
    for (name, v6) in SYSCTLS {
        if !v6 || ips.iter().any(IpAddr::is_ipv6) {
            fs::write(proc_root().join("sys/net").join(name), "1")
                .map_err(|e| io::Error::new(e.kind(), format!("sysctl net.{name}: {e}")))?;
        }
    }
    let socket = Socket::new(NETLINK_ROUTE)?;
    for v6 in [false, true] {
        let Some(ip) = ips.iter().find(|i| i.is_ipv6() == v6) else { continue };
        request(&socket, RouteNetlinkMessage::NewRoute(local_route(*ip)), NLM_F_CREATE | NLM_F_REPLACE)?;
        for mark in MARKS {
            request(&socket, RouteNetlinkMessage::NewRule(marked_rule(v6, mark)), NLM_F_CREATE | NLM_F_EXCL)?;
            if v6 {
                request(&socket, RouteNetlinkMessage::NewRule(refused_rule(mark)), NLM_F_CREATE | NLM_F_EXCL)?;
            }
        }
    }
    Ok(())
}

/// Takes back what [`setup`] has set up.
pub(crate) fn remove(ips: &[IpAddr]) -> io::Result<()> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    for v6 in [false, true] {
        if let Some(ip) = ips.iter().find(|i| i.is_ipv6() == v6) {
            for mark in MARKS {
                if v6 {
                    request(&socket, RouteNetlinkMessage::DelRule(refused_rule(mark)), 0)?;
                }
                request(&socket, RouteNetlinkMessage::DelRule(marked_rule(v6, mark)), 0)?;
            }
            request(&socket, RouteNetlinkMessage::DelRoute(local_route(*ip)), 0)?;
        }
    }
    for (name, _) in SYSCTLS {
        let _ = fs::write(proc_root().join("sys/net").join(name), "0");
    }
    Ok(())
}

/// The Ethernet devices of the calling thread's namespace. (Those of other kinds carry no frames: what a tunnel's device sends
/// goes to a process, or leaves by one of these.)
///
/// # Errors
/// Those of netlink.
pub fn devices() -> io::Result<Vec<Device>> {
    let mut out = Vec::new();
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |m| {
        if let RouteNetlinkMessage::NewLink(l) = m
            && l.header.link_layer_type == LinkLayerType::Ether
        {
            let index = l.header.index;
            out.extend(l.attributes.into_iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(Device { index, name }),
                _ => None,
            }));
        }
    })?;
    Ok(out)
}

/// Every address of the calling thread's namespace, with the index of its device.
///
/// # Errors
/// Those of netlink.
pub(crate) fn addresses() -> io::Result<Vec<(u32, IpAddr)>> {
    let mut out = Vec::new();
    dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |m| {
        if let RouteNetlinkMessage::NewAddress(a) = m {
            out.extend(address(&a).map(|ip| (a.header.index, ip)));
        }
    })?;
    Ok(out)
}

/// Asks for everything of a kind.
pub(crate) fn dump(what: RouteNetlinkMessage, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let mut packet = NetlinkMessage::from(what);
    packet.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut buf = vec![0; packet.buffer_len()];
    packet.serialize(&mut buf);
    socket.send_to(&buf, &SocketAddr::new(0, 0), 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            // Messages begin at multiples of four bytes.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(message) => each(message),
                _ => {}
            }
        }
    }
}

/// The address itself. (Where there is a peer, `IFA_ADDRESS` is the peer's and `IFA_LOCAL` ours.)
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

pub(crate) fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn rule(v6: bool, attributes: Vec<RuleAttribute>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(v6);
    message.header.table = TABLE;
    message.header.action = RuleAction::ToTable;
    message.attributes = attributes;
    message
}

fn marked_rule(v6: bool, mark: u32) -> RuleMessage {
    rule(v6, vec![RuleAttribute::Priority(PREF_MARKED), RuleAttribute::FwMark(mark), RuleAttribute::FwMask(MARK_MASK)])
}

/// A marked flow that is bound to a device, as one to a link-local address is, does not go to `lo`. It is refused at once: the guard
/// would drop it without a word. (IPv4 takes what is bound to a device for reachable on it, whatever the rules say.)
fn refused_rule(mark: u32) -> RuleMessage {
    let mut message = rule(
        true,
        vec![RuleAttribute::Priority(PREF_REFUSED), RuleAttribute::FwMark(mark), RuleAttribute::FwMask(MARK_MASK)],
    );
    message.header.table = 0;
    message.header.action = RuleAction::Unreachable;
    message
}

fn local_route(source: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(source.is_ipv6()),
        table: TABLE,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    let addr = match source {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    };
    // `lo` is device 1 of every network namespace.
    message.attributes = vec![RouteAttribute::Oif(1), RouteAttribute::PrefSource(addr)];
    message
}

/// Sends one request and waits for its acknowledgement. "Exists already" and "is gone already" are success.
pub(crate) fn request(socket: &Socket, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    match ask(socket, message, NLM_F_ACK | flags) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EEXIST | libc::ENOENT | libc::ESRCH)) => Ok(()),
        r => r.map(drop),
    }
}

/// Sends one request and gives the answer, if there is more in it than an acknowledgement.
pub(crate) fn ask(
    socket: &Socket,
    message: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | flags;
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut buf = vec![0; packet.buffer_len()];
    packet.serialize(&mut buf);
    socket.send_to(&buf, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(e) => match e.code.map(|c| -c.get()) {
            None => Ok(None),
            Some(code) => Err(io::Error::from_raw_os_error(code)),
        },
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        _ => Ok(None),
    }
}

/// Runs something in a pod's namespace.
pub(crate) fn in_netns<T>(netns: &Netns, f: impl FnOnce() -> T) -> Result<T, Error> {
    netns.run(f).map_err(Error::kernel("cannot enter the pod's network namespace", "CAP_SYS_ADMIN", "3.0"))
}
