//! The sockets at which pods' DNS queries over UDP arrive, by either redirection.

use crate::{inpod::LocalPod, listeners::Redirection, worker::Shared};
use karst_core::limits::{DNS_MAX_UDP, port};
use karst_rt::{nat, socket};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
};

/// A socket at which a pod's queries arrive.
pub enum Queries {
    /// They arrive as they were sent.
    Lookup(socket::OrigDst),
    /// NAT has sent them here, and does so with the answers. Whom they were for it does not tell: what is not ours to answer goes
    /// to ztunnel's own resolver, as with Istio's.
    Nat(tokio::net::UdpSocket, PathBuf),
}

impl Queries {
    /// Takes a socket that is for a pod's queries.
    ///
    /// # Errors
    /// It cannot be registered with the runtime.
    pub fn new(socket: UdpSocket, pod: &LocalPod, shared: &Shared) -> io::Result<Self> {
        match pod.redirection {
            Redirection::Lookup => socket::OrigDst::new(socket).map(Self::Lookup),
            Redirection::Nat => tokio::net::UdpSocket::from_std(socket)
                .map(|socket| Self::Nat(socket, shared.config.resolv_conf.clone())),
        }
    }

    /// A query, its client, and the resolver that may know what we do not.
    ///
    /// # Errors
    /// Those of `recvmsg`.
    pub async fn recv(&self) -> io::Result<(Vec<u8>, SocketAddr, Option<SocketAddr>)> {
        match self {
            Self::Lookup(socket) => socket.recv(DNS_MAX_UDP).await.map(|(data, from, to)| (data, from, Some(to))),
            Self::Nat(socket, resolv_conf) => {
                let mut data = vec![0; DNS_MAX_UDP];
                let (length, from) = socket.recv_from(&mut data).await?;
                data.truncate(length);
                Ok((data, from, resolver(&std::fs::read_to_string(resolv_conf).unwrap_or_default())))
            }
        }
    }

    /// Answers a client: from the address that it has asked.
    ///
    /// # Errors
    /// Those of `sendto`, and of `bind` where the address is not our own.
    pub async fn send(
        &self,
        pod: &LocalPod,
        answer: &[u8],
        client: SocketAddr,
        asked: Option<SocketAddr>,
    ) -> io::Result<()> {
        match self {
            Self::Nat(socket, _) => socket.send_to(answer, client).await.map(|_| ()),
            Self::Lookup(_) => {
                let Some(asked) = asked else { return Ok(()) };
                let send = || socket::udp_from(asked).and_then(|socket| socket.send_to(answer, &client.into()));
                let sent = match &pod.connector.netns {
                    Some(n) => n.run(send).and_then(|r| r),
                    None => send(),
                };
                sent.map(|_| ())
            }
        }
    }

    /// From now on this socket gets what is new, and not another ztunnel's.
    ///
    /// # Errors
    /// Those of `setsockopt`.
    pub fn start(&self) -> io::Result<()> {
        match self {
            Self::Nat(socket, _) => {
                let loopback: IpAddr = match socket.local_addr()?.is_ipv4() {
                    true => Ipv4Addr::LOCALHOST.into(),
                    false => Ipv6Addr::LOCALHOST.into(),
                };
                nat::start_udp(socket, SocketAddr::new(loopback, port::DNS))
            }
            Self::Lookup(_) => Ok(()),
        }
    }
}

/// The first resolver of a resolv.conf.
fn resolver(resolv_conf: &str) -> Option<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    servers.map(|ip: IpAddr| SocketAddr::new(ip, 53)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_resolver_is_asked() {
        let text =
            "# made by the kubelet\nsearch a.svc b\n  nameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5\n";
        assert_eq!(resolver(text), Some("10.96.0.10:53".parse().unwrap()));
        assert_eq!(resolver("nameserver fd00::a"), Some("[fd00::a]:53".parse().unwrap()));
        assert_eq!(resolver("nameserver nobody\nnameserver 10.0.0.1"), Some("10.0.0.1:53".parse().unwrap()));
        assert_eq!(resolver("search a\n"), None);
    }
}
