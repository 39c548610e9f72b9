//! Who calls, by address. What an application binds before it connects is its own choice, and says nothing: others see its
//! pod's own address, or no connection (docs/threat-model.md; `adversary::a_client_has_its_pods_address_whatever_it_binds`).

use crate::plan::Refusal;
use karst_core::addr::is_host;
use std::net::{IpAddr, SocketAddr};

/// Who connected, by the listener that the redirection chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process of the pod.
    Pod,
    /// What is inside the pod, a container or a virtual machine, whose connections the pod would have forwarded. Its address is the
    /// pod's affair, and nobody else's: it acts as its pod.
    Inside,
}

/// The client of a captured connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Client {
    /// The pod's own addresses, of IPv4 and of IPv6: what its peers see.
    own: [Option<IpAddr>; 2],
    port: u16,
    /// An address that the application has chosen among those of its pod; kept where nothing depends on it.
    chosen: Option<IpAddr>,
}

impl Client {
    /// Judges the address that a connection came from. `own`: the pod's addresses, the first of each family being the one that
    /// its connections have by themselves; `is_local`: does the pod's kernel have this address? (Asked only for others.)
    ///
    /// # Errors
    /// The address is not one of the pod's.
    pub fn new(
        own: &[IpAddr],
        from: SocketAddr,
        caller: Caller,
        is_local: impl FnOnce(IpAddr) -> bool,
    ) -> Result<Self, Refusal> {
        let ip = from.ip().to_canonical();
        if !is_host(ip) {
            return Err(Refusal::NotItsAddress);
        }
        let first = |v4: bool| own.iter().find(|a| a.is_ipv4() == v4).copied();
        let chosen = match first(ip.is_ipv4()) {
            None => return Err(Refusal::NotItsAddress),
            Some(_) if caller == Caller::Inside => None,
            Some(usual) if usual == ip => None,
            Some(_) if own.contains(&ip) || is_local(ip) => Some(ip),
            Some(_) => return Err(Refusal::NotItsAddress),
        };
        Ok(Self { own: [first(true), first(false)], port: from.port(), chosen })
    }

    /// The address that a peer of this address sees; if the pod has none of that family, one of the other.
    pub fn seen_by(&self, peer: IpAddr) -> SocketAddr {
        let [v4, v6] = self.own;
        let ip = if peer.is_ipv4() { v4.or(v6) } else { v6.or(v4) };
        SocketAddr::new(ip.unwrap_or(peer), self.port)
    }

    /// What the application has chosen, if that is another than it would have had.
    pub fn chosen(&self) -> Option<IpAddr> {
        self.chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn only_addresses_of_the_pod_are_clients() {
        let own = [ip("10.0.0.1"), ip("fd00::1"), ip("10.0.0.2")];
        let local = [ip("10.9.0.1"), ip("127.0.0.1")];
        for (from, want) in [
            ("10.0.0.1:5", "10.0.0.1:5 -"),
            ("[::ffff:10.0.0.1]:5", "10.0.0.1:5 -"),
            ("[fd00::1]:5", "[fd00::1]:5 -"),
            ("10.0.0.2:5", "10.0.0.1:5 10.0.0.2"),
            ("10.9.0.1:5", "10.0.0.1:5 10.9.0.1"),
            ("10.9.0.2:5", "refused"),
            ("127.0.0.1:5", "refused"),
            ("[::ffff:127.0.0.1]:5", "refused"),
            ("127.9.9.9:5", "refused"),
            ("[::1]:5", "refused"),
            ("0.0.0.0:5", "refused"),
            ("[::]:5", "refused"),
            ("255.255.255.255:5", "refused"),
            ("224.0.0.1:5", "refused"),
            ("[ff02::1]:5", "refused"),
        ] {
            let from: SocketAddr = from.parse().unwrap();
            let seen = match Client::new(&own, from, Caller::Pod, |a| local.contains(&a)) {
                Ok(c) => {
                    let chosen = c.chosen().map_or("-".into(), |a| a.to_string());
                    format!("{} {chosen}", c.seen_by(from.ip().to_canonical()))
                }
                Err(_) => "refused".into(),
            };
            assert_eq!(seen, want, "{from}");
        }
    }

    #[test]
    fn a_pod_without_an_address_of_the_family_is_refused() {
        for caller in [Caller::Pod, Caller::Inside] {
            assert!(Client::new(&[ip("10.0.0.1")], "[fd00::1]:5".parse().unwrap(), caller, |_| true).is_err());
            assert!(Client::new(&[], "10.0.0.1:5".parse().unwrap(), caller, |_| true).is_err());
        }
    }

    #[test]
    fn a_peer_of_the_other_family_sees_the_address_of_that_family() {
        let own = [ip("10.0.0.1"), ip("fd00::1")];
        let c = Client::new(&own, "10.0.0.1:5".parse().unwrap(), Caller::Pod, |_| false).unwrap();
        assert_eq!(c.seen_by(ip("fd00::9")), "[fd00::1]:5".parse().unwrap());
        // Or the one that there is.
        for (own, peer) in [("10.0.0.1", "fd00::9"), ("fd00::1", "10.0.0.9")] {
            let from = SocketAddr::new(ip(own), 5);
            assert_eq!(Client::new(&[ip(own)], from, Caller::Pod, |_| false).unwrap().seen_by(ip(peer)), from);
        }
    }

    #[test]
    fn what_is_inside_the_pod_is_seen_as_the_pod() {
        let own = [ip("10.0.0.1"), ip("fd00::1")];
        // Whatever its address is: also one that somebody else has, or the pod.
        for from in ["172.17.0.2:5", "10.0.0.9:5", "10.0.0.1:5"] {
            let c = Client::new(&own, from.parse().unwrap(), Caller::Inside, |_| false).unwrap();
            assert_eq!((c.seen_by(ip("10.0.0.7")), c.chosen()), ("10.0.0.1:5".parse().unwrap(), None), "{from}");
        }
        assert!(Client::new(&own, "127.0.0.1:5".parse().unwrap(), Caller::Inside, |_| true).is_err());
    }
}
