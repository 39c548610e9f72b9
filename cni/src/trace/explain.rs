//! What became of a packet, why, and what can be done.

use karst_ebpf::{Counter, trace::Event};

/// `lo`, in every network namespace.
pub(super) const LO: u32 = 1;
const HBONE_PORT: u16 = 15008;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It never left the pod.
    Dropped,
    /// Its sender gets a reset, or nothing.
    Refused,
    /// It went its way without the mesh.
    PassedBy,
    /// It went to ztunnel, or came from there, or never left the pod's own loopback. The programs do not tell of these.
    Untold,
}

/// Is it told of, if only drops are to be (`drops`), or what is passed by as well?
pub(super) fn is_wanted(counter: Counter, drops: bool) -> bool {
    match verdict(counter) {
        Verdict::Dropped | Verdict::Refused => true,
        Verdict::PassedBy => !drops,
        Verdict::Untold => false,
    }
}

pub(super) fn verdict(counter: Counter) -> Verdict {
    match counter {
        Counter::GuardDrop | Counter::GuardUnparsable | Counter::GuardProtocol => Verdict::Dropped,
        Counter::NoListener => Verdict::Refused,
        Counter::Probe | Counter::OptOut | Counter::OwnFlow | Counter::OtherDevice => Verdict::PassedBy,
        Counter::Hbone | Counter::Plaintext | Counter::Outbound | Counter::Forwarded => Verdict::Untold,
        Counter::Dns | Counter::GuardPass | Counter::Local => Verdict::Untold,
    }
}

/// Why, and what can be done where something can. `closed`: why the pod is closed, if it is.
pub(super) fn reason(event: &Event, closed: Option<&str>) -> (String, Option<&'static str>) {
    let plain = |text: &str, fix| (text.to_string(), fix);
    if let (Counter::GuardDrop, Some(why)) = (event.what, closed) {
        return (format!("the pod is closed, all its TCP traffic is dropped: {why}"), None);
    }
    match event.what {
        Counter::GuardDrop => plain(
            "a connection left the pod bypassing ztunnel: through a raw socket, a socket bound to a device (SO_BINDTODEVICE) or changed routing rules; or the pod only forwarded it",
            Some(
                "use an ordinary socket that is bound to no device, or remove the pod from the mesh (istio.io/dataplane-mode: none)",
            ),
        ),
        Counter::GuardUnparsable => plain(
            "the packet ends before its TCP flags, or has more than six IPv6 extension headers, or two VLAN tags",
            Some("send complete headers in the first fragment"),
        ),
        Counter::GuardProtocol => (
            format!("the frame is neither IP nor ARP, or has a VLAN tag (EtherType {:#06x})", event.ether_type),
            Some("annotate the pod with karst.io/allow-other-protocols: \"true\" if it needs to send these"),
        ),
        Counter::NoListener => (
            format!("ztunnel does not listen for {} of this pod", direction(event)),
            Some("check that the pods of ztunnel and karst-cni run on this node, and check their logs"),
        ),
        Counter::Probe => {
            plain("just opened by the node itself, like the kubelet's probes: exempt from policies", None)
        }
        Counter::OptOut => plain(
            "the pod accepts plaintext that bypasses the mesh (ambient.istio.io/bypass-inbound-capture)",
            Some("remove the annotation for policies to apply"),
        ),
        Counter::OwnFlow => plain("ztunnel's own connection, back at its pod", None),
        Counter::OtherDevice => (
            format!(
                "arrived on a device without an address of the pod (index {}), for an address that is not the pod's",
                event.device
            ),
            Some("annotate the pod with karst.io/capture-all-devices: \"true\" to have it captured"),
        ),
        Counter::Local => plain("within the pod", None),
        Counter::Hbone | Counter::Plaintext | Counter::Outbound | Counter::Forwarded => {
            plain("redirected to ztunnel", None)
        }
        Counter::Dns | Counter::GuardPass => plain("redirected to ztunnel, or sent by it", None),
    }
}

/// Which listener's affair a connection is.
pub(super) fn direction(event: &Event) -> &'static str {
    let to_hbone = event.ends.is_some_and(|(_, to)| to.port() == HBONE_PORT);
    match (event.device, event.protocol) {
        (_, UDP) => "DNS queries",
        (LO, _) => "outbound connections",
        _ if to_hbone => "tunnels (HBONE)",
        _ => "inbound connections, or those that the pod forwards,",
    }
}

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Dropped => "dropped",
        Verdict::Refused => "refused",
        Verdict::PassedBy => "passed by",
        Verdict::Untold => "untold",
    }
}

pub(super) fn protocol(event: &Event) -> String {
    match event.protocol {
        0 if event.ends.is_none() => "-".into(),
        1 => "icmp".into(),
        TCP => "tcp".into(),
        UDP => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        n => n.to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::{
        net::SocketAddr,
        time::{Duration, SystemTime},
    };

    pub(in crate::trace) fn event(what: Counter) -> Event {
        Event {
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456),
            pod: Some("10.0.0.5".parse().unwrap()),
            what,
            ends: Some(("10.0.0.5:40000".parse().unwrap(), "10.0.1.7:8080".parse().unwrap())),
            protocol: TCP,
            ether_type: 0x0800,
            device: 2,
        }
    }

    #[test]
    fn whose_listener_is_missing_is_said() {
        let why = |device, protocol, port: u16| {
            let to = SocketAddr::from(([10, 0, 0, 5], port));
            let e = Event { device, protocol, ends: Some((to, to)), ..event(Counter::NoListener) };
            reason(&e, None).0
        };
        assert!(why(LO, TCP, 80).contains("outbound connections"));
        assert!(why(LO, UDP, 53).contains("DNS queries"));
        assert!(why(2, TCP, HBONE_PORT).contains("tunnels"));
        assert!(why(2, TCP, 8080).contains("inbound connections"));
    }

    #[test]
    fn what_is_carried_is_never_asked_for() {
        let asked =
            |drops| Counter::ALL.into_iter().filter(|c| is_wanted(*c, drops)).map(Counter::name).collect::<Vec<_>>();
        assert_eq!(asked(true), ["no_listener", "guard_drop", "guard_unparsable", "guard_protocol"]);
        assert_eq!(asked(false).len(), 8);
        assert!(!asked(false).contains(&"outbound"));
    }
}
