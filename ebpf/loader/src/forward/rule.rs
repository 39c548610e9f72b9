//! Routing rules by a pod's devices, as they are written and read.

use crate::net::{TABLE, family};
use netlink_packet_route::{
    IpProtocol,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
};

/// Groups of devices: those that lead out, and those inside.
pub(super) const OUTSIDE: u32 = 15008;
pub(super) const INSIDE: u32 = 15009;
/// Marks our rules, besides their priorities.
const PROTOCOL: u8 = 75;
const DNS_PORT: u16 = 53;

/// A rule of ours; its place and its device say all about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    /// First what leaves things as they are, then what takes the rest.
    pub(super) step: Step,
    pub(super) v6: bool,
    pub(super) device: String,
}

/// What a rule is for; its number is its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(super) enum Step {
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
    pub(super) const ALL: [Step; 5] = [Step::WithinTcp, Step::PastTcp, Step::TakeTcp, Step::WithinDns, Step::TakeDns];

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
    /// As the kernel is told.
    pub(super) fn message(&self) -> RuleMessage {
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
    pub(super) fn read(message: &RuleMessage) -> Option<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
