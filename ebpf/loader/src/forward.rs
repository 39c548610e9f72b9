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

use crate::{
    Error, Node, PodConfig, guard, maps,
    net::{self, Device, TABLE, ask, dump, family, request},
};
use karst_ebpf_common::{LAYOUT, MAX_FORWARDED, slot};
use karst_rt::netns::Netns;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    IpProtocol, RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

/// Groups of devices: those that lead out, and those inside.
const OUTSIDE: u32 = 15008;
const INSIDE: u32 = 15009;
/// Marks our rules, besides their priorities.
const PROTOCOL: u8 = 75;
const DNS_PORT: u16 = 53;

/// One device of the pod's network namespace.
#[derive(Clone, Debug, PartialEq)]
struct Link {
    index: u32,
    name: String,
    /// Frames, and not bare packets.
    ether: bool,
    loopback: bool,
    kind: Kind,
    /// The bridge (or other device) that it is a port of.
    master: Option<u32>,
    group: u32,
}

/// What matters of a device's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bridge,
    /// Has no other end (dummy), or one that is held by a process or is the pod's own encapsulation (tun and tap, WireGuard).
    Virtual,
    /// One end of a pair.
    Pair(End),
    /// All others may lead out.
    Other,
}

/// Where the other end of a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Here,
    /// In the node's namespace.
    Node,
    /// In a third one: a container's in the pod, or that of something on the node.
    Third,
}

/// The devices that lead nowhere but into the pod, by index.
///
/// A pair whose other end is in a third namespace is inside if it is a port of a bridge that is, or is named (`named`:
/// `ambient.istio.io/reroute-virtual-interfaces`): by itself it might be a network that leads to other pods. A bridge is inside
/// if none of its ports leads out. What has an address of the pod's (`uplinks`) never is.
fn inside(links: &[Link], uplinks: &BTreeSet<u32>, named: &[String]) -> BTreeSet<u32> {
    let may = |link: &Link| {
        let by_itself = match link.kind {
            Kind::Bridge | Kind::Virtual | Kind::Pair(End::Here) => true,
            Kind::Pair(End::Third) => link.master.is_some(),
            Kind::Pair(End::Node) | Kind::Other => false,
        };
        !link.loopback && !uplinks.contains(&link.index) && (by_itself || named.contains(&link.name))
    };
    let mut all: BTreeSet<u32> = links.iter().filter(|link| may(link)).map(|link| link.index).collect();
    // Until nothing changes: a bridge with a port that leads out, then its ports that are inside only by it, then what they carry.
    loop {
        let out = |link: &Link| match link.kind {
            Kind::Bridge => links.iter().any(|p| p.master == Some(link.index) && !all.contains(&p.index)),
            Kind::Pair(End::Third) if !named.contains(&link.name) => link.master.is_none_or(|m| !all.contains(&m)),
            Kind::Virtual | Kind::Pair(_) | Kind::Other => false,
        };
        let gone: Vec<u32> =
            links.iter().filter(|link| all.contains(&link.index) && out(link)).map(|link| link.index).collect();
        if gone.is_empty() {
            return all;
        }
        all.retain(|i| !gone.contains(i));
    }
}

/// A rule of ours; its place and its device say all about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    /// First what leaves things as they are, then what takes the rest.
    step: Step,
    v6: bool,
    device: String,
}

/// What a rule is for; its number is its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
enum Step {
    /// TCP from inside to inside goes its way.
    WithinTcp = 12,
    /// TCP from outside to the outside goes its way (where the guard is).
    PastTcp = 13,
    /// All other TCP is delivered locally.
    TakeTcp = 14,
    /// Queries from inside to inside go their way.
    WithinDns = 15,
    /// All other queries are delivered locally.
    TakeDns = 16,
}

impl Step {
    const ALL: [Step; 5] = [Step::WithinTcp, Step::PastTcp, Step::TakeTcp, Step::WithinDns, Step::TakeDns];

    /// The group whose devices a route must not lead to; none: it is table 100 that is asked.
    fn suppressed(self) -> Option<u32> {
        match self {
            Step::WithinTcp | Step::WithinDns => Some(OUTSIDE),
            Step::PastTcp => Some(INSIDE),
            Step::TakeTcp | Step::TakeDns => None,
        }
    }
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let table = if self.step.suppressed().is_some() { libc::RT_TABLE_MAIN } else { TABLE };
        let mut message = RuleMessage::default();
        message.header.family = family(self.v6);
        message.header.table = table;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.step as u32),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
            RuleAttribute::Iifname(self.device.clone()),
        ];
        message.attributes.extend(self.step.suppressed().map(RuleAttribute::SuppressIfGroup));
        match self.step {
            Step::WithinTcp | Step::PastTcp | Step::TakeTcp => {
                message.attributes.push(RuleAttribute::IpProtocol(IpProtocol::Tcp));
            }
            Step::WithinDns | Step::TakeDns => message.attributes.extend([
                RuleAttribute::IpProtocol(IpProtocol::Udp),
                RuleAttribute::DestinationPortRange(RulePortRange { start: DNS_PORT, end: DNS_PORT }),
            ]),
        }
        message
    }

    /// Reads a rule that the kernel shows, if it is one of ours.
    fn read(message: &RuleMessage) -> Option<Self> {
        let v6 = message.header.family == family(true);
        let (mut step, mut device, mut ours) = (None, None, false);
        for a in &message.attributes {
            match a {
                RuleAttribute::Priority(p) => step = Step::ALL.into_iter().find(|s| *s as u32 == *p),
                RuleAttribute::Iifname(name) => device = Some(name.clone()),
                RuleAttribute::Protocol(p) => ours = u8::from(*p) == PROTOCOL,
                _ => {}
            }
        }
        Some(Self { step: step.filter(|_| ours)?, v6, device: device? })
    }
}

/// The rules for these devices: those inside between which the pod's kernel forwards, and those that lead out.
fn rules(within: &[&Link], out: &[&Link], families: &[bool], dns: bool) -> BTreeSet<Rule> {
    let mut all = BTreeSet::new();
    if within.is_empty() {
        return all;
    }
    let mut add = |steps: &[Step], l: &Link| {
        for v6 in families {
            all.extend(steps.iter().map(|step| Rule { step: *step, v6: *v6, device: l.name.clone() }));
        }
    };
    for link in within {
        add(&[Step::WithinTcp, Step::TakeTcp], link);
        if dns {
            add(&[Step::WithinDns, Step::TakeDns], link);
        }
    }
    for link in out {
        add(&[Step::PastTcp, Step::TakeTcp], link);
    }
    all
}

/// What is to be in force.
struct Wanted {
    /// Slots by device.
    slots: BTreeMap<u32, u32>,
    /// Groups by device, where they are other ones now.
    groups: Vec<(u32, u32)>,
    rules: BTreeSet<Rule>,
    /// Ethernet devices on which the guard must be.
    guarded: Vec<Device>,
    /// Those on which it must not be.
    unguarded: Vec<Device>,
}

fn wanted(links: &[Link], uplinks: &BTreeSet<u32>, pod: &PodConfig) -> Wanted {
    let inside = inside(links, uplinks, &pod.inner_devices);
    // A bridge's ports are its own: the kernel forwards by the bridge.
    let forwards = |l: &&Link| !l.loopback && l.master.is_none();
    let (mut within, mut out): (Vec<&Link>, Vec<&Link>) =
        links.iter().filter(forwards).partition(|l| inside.contains(&l.index));
    // Bounded by the map: those beyond are not steered, and the guard drops what they would send out.
    let places = MAX_FORWARDED as usize;
    out.truncate(places);
    within.truncate(places - out.len());
    let families: Vec<bool> =
        [false, true].into_iter().filter(|v6| pod.ips.iter().any(|i| i.is_ipv6() == *v6)).collect();
    let rules = rules(&within, &out, &families, !pod.bypass_dns);
    if within.is_empty() {
        out.clear();
    }
    let slots = within.iter().map(|l| (l.index, slot::FORWARD)).chain(out.iter().map(|l| (l.index, slot::PLAINTEXT)));
    let groups = within.iter().map(|l| (*l, INSIDE)).chain(out.iter().map(|l| (*l, OUTSIDE)));
    let devices = |guard: bool| {
        let chosen = links.iter().filter(|l| l.ether && inside.contains(&l.index) != guard);
        chosen.map(|l| Device { index: l.index, name: l.name.clone() }).collect()
    };
    Wanted {
        slots: slots.collect(),
        groups: groups.filter(|(l, g)| l.group != *g).map(|(l, g)| (l.index, g)).collect(),
        rules,
        guarded: devices(true),
        unguarded: devices(false),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Kind, master: u32) -> Link {
        let master = (master != 0).then_some(master);
        let loopback = name == "lo";
        Link { index, name: name.into(), ether: !loopback, loopback, kind, master, group: 0 }
    }
    fn names(links: &[Link], of: &BTreeSet<u32>) -> String {
        links.iter().filter(|l| of.contains(&l.index)).map(|l| l.name.as_str()).collect::<Vec<_>>().join(" ")
    }
    fn device(index: u32, name: &str) -> Device {
        Device { index, name: name.into() }
    }
    fn lo() -> Link {
        link(1, "lo", Kind::Other, 0)
    }
    fn eth0(master: u32) -> Link {
        link(2, "eth0", Kind::Pair(End::Node), master)
    }
    fn pod(inner: &[&str], dns: bool) -> PodConfig {
        PodConfig {
            uid: "u".into(),
            closed: false,
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            bypass_inbound: false,
            bypass_dns: !dns,
            all_devices: false,
            other_protocols: false,
            trust_mark: false,
            inner_devices: inner.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn devices_that_lead_nowhere_are_inside() {
        let third = Kind::Pair(End::Third);
        for (what, named, links, want) in [
            ("a pod as most are", &[][..], vec![lo(), eth0(0)], ""),
            (
                "containers on a bridge",
                &[],
                vec![lo(), eth0(0), link(3, "docker0", Kind::Bridge, 0), link(4, "veth1", third, 3)],
                "docker0 veth1",
            ),
            (
                "a virtual machine behind a bridge",
                &[],
                vec![lo(), eth0(0), link(3, "k6t", Kind::Bridge, 0), link(4, "tap0", Kind::Virtual, 3)],
                "k6t tap0",
            ),
            ("a VPN", &[], vec![lo(), eth0(0), link(3, "tun0", Kind::Virtual, 0)], "tun0"),
            ("a second network of the node", &[], vec![lo(), eth0(0), link(3, "net1", Kind::Pair(End::Node), 0)], ""),
            ("a network card, macvlan, VXLAN", &[], vec![lo(), eth0(0), link(3, "net1", Kind::Other, 0)], ""),
            ("a pair to nobody knows where", &[], vec![lo(), eth0(0), link(3, "p", third, 0)], ""),
            ("the same, named", &["p"], vec![lo(), eth0(0), link(3, "p", third, 0)], "p"),
            ("a pair within", &[], vec![link(3, "a", Kind::Pair(End::Here), 0)], "a"),
            ("the uplink itself, named", &["eth0"], vec![lo(), eth0(0)], ""),
            (
                "a bridge over the uplink: nothing that is behind it is inside for its sake",
                &[],
                vec![eth0(3), link(3, "br0", Kind::Bridge, 0), link(4, "veth1", third, 3)],
                "",
            ),
            (
                "a bridge over a second network, and one over that",
                &[],
                vec![
                    eth0(0),
                    link(3, "br0", Kind::Bridge, 4),
                    link(4, "br1", Kind::Bridge, 0),
                    link(5, "net1", Kind::Pair(End::Node), 3),
                    link(6, "veth1", third, 4),
                ],
                "",
            ),
        ] {
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            assert_eq!(names(&links, &inside(&links, &BTreeSet::from([2]), &named)), want, "{what}");
        }
    }

    #[test]
    fn the_uplink_stays_guarded_also_without_its_address() {
        // The pod has moved its address to a bridge, or away.
        for uplinks in [BTreeSet::from([3]), BTreeSet::new()] {
            let links = [lo(), eth0(3), link(3, "br0", Kind::Bridge, 0)];
            let w = wanted(&links, &uplinks, &pod(&[], true));
            assert_eq!((w.guarded.contains(&device(2, "eth0")), w.unguarded.len()), (true, 0));
        }
    }

    #[test]
    fn without_a_device_inside_nothing_is_done() {
        let w = wanted(&[lo(), eth0(0), link(3, "net1", Kind::Other, 0)], &BTreeSet::from([2]), &pod(&[], true));
        assert!(w.slots.is_empty() && w.groups.is_empty() && w.rules.is_empty() && w.unguarded.is_empty());
        assert_eq!(w.guarded, [device(2, "eth0"), device(3, "net1")]);
    }

    #[test]
    fn both_directions_are_taken_and_ports_of_bridges_are_not_asked() {
        let third = Kind::Pair(End::Third);
        let links = [lo(), eth0(0), link(3, "docker0", Kind::Bridge, 0), link(4, "veth1", third, 3)];
        let w = wanted(&links, &BTreeSet::from([2]), &pod(&[], true));
        assert_eq!(w.slots, BTreeMap::from([(2, slot::PLAINTEXT), (3, slot::FORWARD)]));
        assert_eq!(w.groups, [(3, INSIDE), (2, OUTSIDE)]);
        assert_eq!(w.unguarded, [device(3, "docker0"), device(4, "veth1")]);
        let of = |device: &str| {
            let steps = w.rules.iter().filter(|r| r.device == device && !r.v6).map(|r| r.step);
            steps.collect::<Vec<_>>()
        };
        assert_eq!(of("docker0"), [Step::WithinTcp, Step::TakeTcp, Step::WithinDns, Step::TakeDns]);
        assert_eq!(of("eth0"), [Step::PastTcp, Step::TakeTcp]);
        assert_eq!(w.rules.len(), 2 * 6, "both families");
        let no_dns = wanted(&links, &BTreeSet::from([2]), &pod(&[], false));
        assert!(no_dns.rules.iter().all(|r| !matches!(r.step, Step::WithinDns | Step::TakeDns)));
    }

    #[test]
    fn rules_are_read_as_they_were_written_and_others_are_left_alone() {
        for step in Step::ALL {
            let r = Rule { step, v6: true, device: "docker0".into() };
            assert_eq!(Rule::read(&r.message()), Some(r));
        }
        let mut other = Rule { step: Step::TakeTcp, v6: false, device: "docker0".into() }.message();
        other.attributes.retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
        assert_eq!(Rule::read(&other), None);
    }
}
