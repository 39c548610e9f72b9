//! Which of a pod's devices are inside, and what is to be in force for them. The decision alone, without the kernel.

use super::rule::{INSIDE, OUTSIDE, Rule, Step};
use crate::{PodConfig, net::Device};
use karst_ebpf_common::{MAX_FORWARDED, slot};
use std::collections::{BTreeMap, BTreeSet};

/// One device of the pod's network namespace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Frames, and not bare packets.
    pub(super) ether: bool,
    pub(super) loopback: bool,
    pub(super) kind: Kind,
    /// The bridge (or other device) that it is a port of.
    pub(super) master: Option<u32>,
    pub(super) group: u32,
}

/// What matters of a device's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) enum End {
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
pub(super) fn inside(links: &[Link], uplinks: &BTreeSet<u32>, named: &[String]) -> BTreeSet<u32> {
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

/// The rules for these devices: those inside between which the pod's kernel forwards, and those that lead out.
pub(super) fn rules(within: &[&Link], out: &[&Link], families: &[bool], dns: bool) -> BTreeSet<Rule> {
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
pub(super) struct Wanted {
    /// Slots by device.
    pub(super) slots: BTreeMap<u32, u32>,
    /// Groups by device, where they are other ones now.
    pub(super) groups: Vec<(u32, u32)>,
    pub(super) rules: BTreeSet<Rule>,
    /// Ethernet devices on which the guard must be.
    pub(super) guarded: Vec<Device>,
    /// Those on which it must not be.
    pub(super) unguarded: Vec<Device>,
}

pub(super) fn wanted(links: &[Link], uplinks: &BTreeSet<u32>, pod: &PodConfig) -> Wanted {
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
}
