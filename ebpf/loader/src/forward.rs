//! What a pod forwards between devices inside of it (the bridge of its containers, the tap device of its virtual machine, a VPN's
//! tunnel) and those that lead out. Both directions end at ztunnel: outwards it is the pod's own connection, inwards it is
//! plaintext to the pod, which policies judge.
//!
//! By routing rules, which come after the pod's own address translation, so what is meant counts and not what was first said:
//! TCP (and queries to port 53, unless DNS is not captured) that comes by a device inside and whose route does not lead to another
//! such device, and TCP that comes from outside and whose route leads inside, is delivered locally (table 100). There the pod's
//! program knows it by its destination, which is not local, and its device (`FORWARDED`). Without a device inside there is none
//! of this. The rules tell where a route leads by the group of its device.
//!
//! The guard is on the devices that lead out, and only there: between the devices inside, packets pass as they did before.
//! Which is which does not depend on what the pod may change: where the other end of a device is, its kernel says.
//! Proven by tests/world (`forward`).

mod plan;
mod rule;

use crate::{
    Error, Node, PodConfig, guard, maps,
    net::{self, Device, ask, dump, family, request},
};
use karst_ebpf_common::LAYOUT;
use karst_rt::netns::Netns;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
    rule::RuleMessage,
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use plan::{End, Kind, Link, wanted};
use rule::Rule;
use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

impl Node {
    /// Brings the pod's forwarding in line with the devices that it has now. Gives the Ethernet devices that are to be guarded.
    pub(crate) fn sync_forwarding(
        &self,
        netns: &Netns,
        dir: &Path,
        pod: &PodConfig,
        addresses: &[(u32, IpAddr)],
    ) -> Result<Vec<Device>, Error> {
        let host = self.host().clone();
        let uplinks = addresses.iter().filter(|(_, ip)| pod.ips.contains(ip)).map(|(device, _)| *device).collect();
        let links = net::in_netns(netns, || links(&host))?
            .map_err(Error::io("cannot read the devices of the pod's namespace", dir))?;
        let mut wanted = wanted(&links, &uplinks, pod);
        // What is delivered is known before it is delivered; and the guard goes last.
        let done = maps::replace(&dir.join(format!("v{LAYOUT}")).join("FORWARDED"), wanted.slots)
            .and_then(|()| net::in_netns(netns, || apply(&wanted.groups, &wanted.rules)))
            .and_then(|r| r.map_err(Error::io("cannot set up the capture of traffic that the pod forwards", dir)));
        match done {
            Ok(()) => guard::leave(netns, dir, &wanted.unguarded),
            // Nothing leaves, and nothing comes in.
            Err(e) => {
                tracing::warn!(pod = pod.uid, error = %e, "traffic that the pod forwards is not captured, but dropped");
                wanted.guarded.append(&mut wanted.unguarded);
            }
        }
        Ok(wanted.guarded)
    }
}

/// Takes all of it back, in the calling thread's namespace. (Groups say nothing by themselves, and stay.)
///
/// # Errors
/// Those of netlink.
pub(crate) fn remove() -> io::Result<()> {
    apply(&[], &BTreeSet::new())
}

fn apply(groups: &[(u32, u32)], wanted: &BTreeSet<Rule>) -> io::Result<()> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    for (index, group) in groups {
        let mut message = LinkMessage::default();
        message.header.index = *index;
        message.attributes = vec![LinkAttribute::Group(*group)];
        match request(&socket, RouteNetlinkMessage::SetLink(message), 0) {
            // Gone meanwhile; there will be another change to follow.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            r => r?,
        }
    }
    let mut there = BTreeSet::new();
    for v6 in [false, true] {
        let mut message = RuleMessage::default();
        message.header.family = family(v6);
        let read = dump(RouteNetlinkMessage::GetRule(message), |message| {
            if let RouteNetlinkMessage::NewRule(rule) = message {
                there.extend(Rule::read(&rule));
            }
        });
        match read {
            // A kernel without IPv6.
            Err(e) if v6 && matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {}
            r => r?,
        }
    }
    // In the order of their steps: what leaves things as they are first. Away with them the other way round.
    for rule in wanted.difference(&there) {
        request(&socket, RouteNetlinkMessage::NewRule(rule.message()), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    for rule in there.difference(wanted).collect::<Vec<_>>().into_iter().rev() {
        request(&socket, RouteNetlinkMessage::DelRule(rule.message()), 0)?;
    }
    Ok(())
}

/// The devices of the calling thread's namespace.
fn links(node: &Netns) -> io::Result<Vec<Link>> {
    let mut told = Vec::new();
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |m| {
        if let RouteNetlinkMessage::NewLink(l) = m {
            told.push(l);
        }
    })?;
    // After that: the kernel numbers a namespace when it shows a device that leads there.
    let node = id_of(node)?;
    Ok(told.iter().filter_map(|l| link(l, node)).collect())
}

/// The number by which the calling thread's namespace knows another one; none: no device of it leads there.
fn id_of(other: &Netns) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Fd(other.as_fd().as_raw_fd() as u32)];
    let Some(RouteNetlinkMessage::NewNsId(message)) =
        ask(&Socket::new(NETLINK_ROUTE)?, RouteNetlinkMessage::GetNsId(message), 0)?
    else {
        return Err(io::Error::other("the kernel does not say which namespace is the node's"));
    };
    let id = message.attributes.iter().find_map(|a| match a {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    });
    Ok(id.filter(|id| *id >= 0))
}

fn link(message: &LinkMessage, node: Option<i32>) -> Option<Link> {
    let (mut name, mut kind, mut master, mut end, mut group) = (None, None, None, End::Here, 0);
    for a in &message.attributes {
        match a {
            LinkAttribute::IfName(n) => name = Some(n.clone()),
            LinkAttribute::Controller(i) => master = Some(*i).filter(|i| *i != 0),
            LinkAttribute::Group(g) => group = *g,
            LinkAttribute::LinkNetNsId(id) => end = if Some(*id) == node { End::Node } else { End::Third },
            LinkAttribute::LinkInfo(all) => {
                kind = all.iter().find_map(|i| match i {
                    LinkInfo::Kind(k) => Some(k.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let kind = match kind {
        Some(InfoKind::Bridge) => Kind::Bridge,
        Some(InfoKind::Tun | InfoKind::Dummy | InfoKind::Wireguard) => Kind::Virtual,
        Some(InfoKind::Veth) => Kind::Pair(end),
        _ => Kind::Other,
    };
    let layer = message.header.link_layer_type;
    Some(Link {
        index: message.header.index,
        name: name?,
        ether: layer == LinkLayerType::Ether,
        loopback: layer == LinkLayerType::Loopback,
        kind,
        master,
        group,
    })
}
