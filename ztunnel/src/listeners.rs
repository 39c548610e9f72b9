//! The sockets at which a pod's redirected connections arrive. Karst's agent sends them; Istio's sends none, and they are opened
//! here, inside the pod, at the ports to which its rules redirect.
//!
//! What must always hold where they are our own: what was not redirected to the outbound listener is no connection of the pod's,
//! and is refused. (A process may call the port itself, and so may a stranger where the pod's inbound is not captured.) Proven by
//! tests/world (swap).

use karst_core::limits::port;
use karst_rt::{backoff::Backoff, nat, netns::Netns, socket::NetnsConnector};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};
use tokio::net::TcpStream;

/// A port that another process holds is asked for again after this time at first.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// And after this time at most.
const RETRY_CAP: Duration = Duration::from_secs(30);

/// By which means a pod's connections come to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// Karst's agent: programs give connections to listeners, and change nothing.
    Lookup,
    /// Istio's agent: NAT to ports of the pod's own; only the mark keeps our own sockets from it.
    Nat,
}

impl Redirection {
    /// Where a captured connection was to go.
    ///
    /// # Errors
    /// Those of `getsockname` and `getsockopt`.
    pub fn destination(self, stream: &TcpStream) -> io::Result<SocketAddr> {
        match self {
            Self::Lookup => stream.local_addr().map(karst_core::canonical),
            Self::Nat => nat::original_destination(stream),
        }
    }

    /// Has somebody called the listener itself? Then the connection is nobody's that we know.
    pub fn is_direct(self, stream: &TcpStream, to: SocketAddr) -> bool {
        self == Self::Nat && local(stream).is_none_or(|at| at == to)
    }

    /// Was it sent here by a device of the pod's, and not by one of its processes? The kernel redirects what a process sends to
    /// loopback, and what a device brings to an address of the device's.
    pub fn is_from_inside(self, stream: &TcpStream) -> bool {
        self == Self::Nat && local(stream).is_none_or(|at| !at.ip().is_loopback())
    }

    /// Is it DNS over TCP that was captured as such? `wanted`: the pod's DNS is captured.
    pub fn is_dns(self, stream: &TcpStream, to: SocketAddr, wanted: bool) -> bool {
        wanted
            && to.port() == 53
            && match self {
                Self::Lookup => true,
                Self::Nat => local(stream).is_some_and(|at| at.port() == port::DNS),
            }
    }
}

fn local(stream: &TcpStream) -> Option<SocketAddr> {
    stream.local_addr().map(karst_core::canonical).ok()
}

/// The listeners of a pod. Where the agent has sent them they are duplicates: it keeps its own.
pub struct Listeners {
    pub outbound: TcpListener,
    pub plaintext: TcpListener,
    pub hbone: TcpListener,
    /// Over UDP; one for each family where they are our own. None in what a worker gets.
    pub dns: Vec<UdpSocket>,
    /// None: the agent is an older one, and captures nothing of what the pod forwards; or it is Istio's, and `outbound` gets it.
    pub forward: Option<TcpListener>,
    /// DNS over TCP, where it is redirected to a port of its own.
    pub dns_tcp: Vec<TcpListener>,
}

/// A port of a pod that we cannot have.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A process of the pod has it, most likely.
    #[error(
        "cannot listen at {at} in the pod's network namespace: {error}; ports 15001, 15006, 15008 and 15053 must be free \
         there, and ztunnel needs NET_ADMIN and SYS_ADMIN"
    )]
    Listen {
        /// Where.
        at: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The namespace cannot be entered.
    #[error("cannot enter the pod's network namespace: {0}; ztunnel needs SYS_ADMIN")]
    Enter(io::Error),
}

/// Which listeners are opened.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Those for DNS.
    pub dns: bool,
    /// IPv6.
    pub ipv6: bool,
}

impl Listeners {
    /// Opens them in a pod's namespace. From then on connections wait in their queues, even if nobody accepts them yet; unless
    /// there is another ztunnel, which goes on to serve them until [`Listeners::start`].
    ///
    /// # Errors
    /// The namespace cannot be entered, or a port is taken.
    pub fn open(netns: &Netns, wanted: Wanted) -> Result<Self, OpenError> {
        netns.run(|| Self::open_here(wanted)).map_err(OpenError::Enter)?
    }

    fn open_here(wanted: Wanted) -> Result<Self, OpenError> {
        let tcp = |at| nat::listener(at).map_err(|error| OpenError::Listen { at, error });
        let udp = |at| nat::udp(at).map_err(|error| OpenError::Listen { at, error });
        let all = |port| match wanted.ipv6 {
            true => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            false => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        };
        let (mut dns, mut dns_tcp) = (vec![], vec![]);
        if wanted.dns {
            // The rules redirect it to loopback, and nobody else is to ask us.
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port::DNS));
            dns.push(udp(at)?);
            dns_tcp.push(tcp(at)?);
            let at = SocketAddr::from((Ipv6Addr::LOCALHOST, port::DNS));
            if wanted.ipv6 {
                match udp(at).and_then(|queries| Ok((queries, tcp(at)?))) {
                    Ok((over_udp, over_tcp)) => {
                        dns.push(over_udp);
                        dns_tcp.push(over_tcp);
                    }
                    Err(OpenError::Listen { error, .. }) if nat::is_without_family(&error) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(Self {
            outbound: tcp(all(port::OUTBOUND))?,
            plaintext: tcp(all(port::PLAINTEXT))?,
            hbone: tcp(all(port::HBONE))?,
            dns,
            forward: None,
            dns_tcp,
        })
    }

    /// From now on these get what is new, and not another ztunnel's.
    ///
    /// # Errors
    /// Those of `listen` and `setsockopt`.
    pub fn start(&self) -> io::Result<()> {
        for listener in [&self.outbound, &self.plaintext, &self.hbone].into_iter().chain(&self.dns_tcp) {
            nat::start(listener)?;
        }
        Ok(())
    }

    /// Those of TCP, once more, for a worker.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn for_worker(&self) -> io::Result<Self> {
        Ok(Self {
            outbound: self.outbound.try_clone()?,
            plaintext: self.plaintext.try_clone()?,
            hbone: self.hbone.try_clone()?,
            dns: vec![],
            forward: self.forward.as_ref().map(TcpListener::try_clone).transpose()?,
            dns_tcp: self.dns_tcp.iter().map(TcpListener::try_clone).collect::<Result<_, _>>()?,
        })
    }
}

/// Starts a socket of our own; while that fails, again and again. What the pod's processes do is not ours to end: one that holds
/// the port may be gone later.
pub async fn started(pod: &str, what: &str, start: impl Fn() -> io::Result<()>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    let mut errors = karst_rt::repeated::Repeated::default();
    while let Err(error) = start() {
        if let Some(line) = errors.note(&not_started(what, &error)) {
            tracing::error!(pod, "{line}");
        }
        errors.end_round();
        tokio::time::sleep(backoff.next_delay()).await;
    }
    for line in errors.end_round() {
        tracing::info!(pod, "{line}");
    }
}

/// What is not served, why, and what to do.
fn not_started(what: &str, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrInUse {
        return format!(
            "{what} of the pod is not served: a process in the pod's network namespace holds the port; end it or give it \
             another port. It is tried again"
        );
    }
    format!("{what} of the pod is not served by this ztunnel: {error}. It is tried again")
}

/// Do two connectors lead to the same namespace?
pub fn same_netns(one: &NetnsConnector, other: &NetnsConnector) -> bool {
    let id = |c: &NetnsConnector| c.netns.as_ref().and_then(|n| n.id().ok());
    id(one).is_some_and(|a| id(other) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn accepted(at: &str) -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind(at).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_was_not_redirected_is_direct() {
        let (_client, stream) = accepted("127.0.0.1:0").await;
        let at = stream.local_addr().unwrap();
        let elsewhere = "10.0.0.1:53".parse().unwrap();
        assert_eq!(Redirection::Nat.destination(&stream).unwrap(), at);
        assert!(Redirection::Nat.is_direct(&stream, at) && !Redirection::Nat.is_direct(&stream, elsewhere));
        assert!(!Redirection::Lookup.is_direct(&stream, at), "there the local address is the destination");
        assert!(!Redirection::Nat.is_from_inside(&stream) && !Redirection::Lookup.is_from_inside(&stream));
        // Only what came to the port of DNS is DNS that was captured: else the pod's annotation may say that it is not.
        assert!(
            Redirection::Lookup.is_dns(&stream, elsewhere, true) && !Redirection::Nat.is_dns(&stream, elsewhere, true)
        );
        assert!(!Redirection::Lookup.is_dns(&stream, elsewhere, false));
    }

    /// A process of the pod has the port for itself at first.
    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_held_is_taken_once_it_is_free() {
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = held.local_addr().unwrap();
        let own = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        own.set_reuse_port(true).unwrap();
        let (held, tries) = (std::cell::Cell::new(Some(held)), std::cell::Cell::new(0));
        started("ns/a", "DNS", || {
            let result = nat::start_udp(&own, at);
            tries.set(tries.get() + 1);
            // It ends after our third try.
            if tries.get() == 3 {
                drop(held.take());
            }
            result
        })
        .await;
        assert_eq!(tries.get(), 4);
        let own: UdpSocket = own.into();
        assert_eq!(own.local_addr().unwrap(), at);
    }

    #[test]
    fn a_port_that_is_held_is_named_as_that() {
        let held = not_started("DNS over UDP (port 15053)", &io::ErrorKind::AddrInUse.into());
        assert!(
            held.starts_with("DNS over UDP (port 15053) of the pod is not served: a process in the pod's"),
            "{held}"
        );
        let other = not_started("a listener", &io::Error::from_raw_os_error(1));
        assert!(other.contains("Operation not permitted") && !other.contains("holds"), "{other}");
    }

    #[test]
    fn a_namespace_is_itself_only() {
        let here = || NetnsConnector::of_pod(Netns::current().unwrap(), None);
        assert!(same_netns(&here(), &here()));
        assert!(!same_netns(&here(), &NetnsConnector::host()));
        assert!(!same_netns(&NetnsConnector::host(), &NetnsConnector::host()));
    }
}
