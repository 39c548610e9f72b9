//! Listeners of applications that do not answer on `lo`: bound to a device (SO_BINDTODEVICE), so that they see nothing that comes by
//! another one; or with a mark of their own (SO_MARK), which their answers carry instead of the mark that keeps them on `lo`.
//!
//! The kernel is asked (sock_diag) only when an application has not answered, and then seldom; nothing is asked for connections
//! that are in order.

use crate::{
    mark::{MARK_APP, MARK_CAPTURE},
    netns::Netns,
    sock_diag::{SockDiag, States},
};
use karst_core::limits;
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
};
use tokio::time::Instant;

/// `lo` in every network namespace.
const LO: u32 = 1;
/// Listeners of one pod that are remembered; the application of another is called as usual.
const MAX: usize = 256;

/// The listeners of a pod's applications that answer elsewhere, as they were when last looked at.
#[derive(Debug, Default)]
pub struct Apart(Mutex<Option<(Instant, Vec<SocketAddr>)>>);

impl Apart {
    /// Does the application at `dst` answer elsewhere? `suspect`: it has not answered; else it is looked at only if it was one that
    /// does.
    pub fn is_apart(&self, netns: &Netns, dst: SocketAddr, suspect: bool) -> bool {
        self.judge(dst, suspect, || ask(netns))
    }

    fn judge(&self, dst: SocketAddr, suspect: bool, ask: impl FnOnce() -> io::Result<Vec<SocketAddr>>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (fresh, was) = match &*known {
            None => (false, false),
            Some((at, all)) => (at.elapsed() < limits::APART_FOR, holds(all, dst)),
        };
        if fresh || !(suspect || was) {
            return was;
        }
        match ask() {
            Ok(all) => {
                let is = holds(&all, dst);
                *known = Some((Instant::now(), all));
                is
            }
            Err(e) => {
                tracing::warn!(error = %e, "the listeners of a pod's applications cannot be read");
                *known = Some((Instant::now(), vec![]));
                false
            }
        }
    }
}

fn holds(all: &[SocketAddr], dst: SocketAddr) -> bool {
    let ip = dst.ip().to_canonical();
    all.iter().any(|l| {
        // The IPv6 wildcard mostly takes both families.
        let any = l.ip() == Ipv6Addr::UNSPECIFIED || (ip.is_ipv4() && l.ip() == Ipv4Addr::UNSPECIFIED);
        l.port() == dst.port() && (any || l.ip() == ip)
    })
}

fn ask(netns: &Netns) -> io::Result<Vec<SocketAddr>> {
    let mut all = Vec::new();
    let listed = netns.run(SockDiag::open)??.each(States::Listening, None, |l| {
        if all.len() < MAX && answers_elsewhere(l.device, l.mark) {
            all.push(l.local);
        }
    });
    match listed {
        // A kernel that does not list sockets (CONFIG_INET_DIAG).
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(vec![]),
        other => other.map(|()| all),
    }
}

fn answers_elsewhere(device: u32, mark: u32) -> bool {
    (device != 0 && device != LO) || ![0, MARK_CAPTURE, MARK_APP].contains(&mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_with_a_device_or_a_mark_of_their_own_answer_elsewhere() {
        for (device, mark, elsewhere) in [
            (0, 0, false),
            (2, 0, true),
            (0, 7, true),
            (LO, 0, false),
            (0, MARK_CAPTURE, false),
            (0, MARK_APP, false),
            (2, MARK_APP, true),
        ] {
            assert_eq!(answers_elsewhere(device, mark), elsewhere, "{device} {mark:#x}");
        }
    }

    #[test]
    fn a_wildcard_listener_is_at_each_address() {
        let all = ["[::]:81", "10.0.0.1:82", "0.0.0.0:83"].map(|l| l.parse().unwrap());
        let is = |dst: &str| holds(&all, dst.parse().unwrap());
        assert!(is("10.0.0.1:81") && is("[fd00::1]:81") && is("10.0.0.1:82") && is("[::ffff:10.0.0.1]:82"));
        assert!(is("10.0.0.2:83") && !is("[fd00::1]:83"));
        assert!(!is("10.0.0.1:80") && !is("10.0.0.2:82") && !is("[fd00::1]:82"));
    }

    /// However many connections are made to ports at which nobody answers.
    #[tokio::test(start_paused = true)]
    async fn the_kernel_is_asked_once_in_a_while() {
        let (apart, asked) = (Apart::default(), std::cell::Cell::new(0));
        let elsewhere: SocketAddr = "10.0.0.1:81".parse().unwrap();
        let judge = |port: u16, suspect: bool, fails: bool| {
            apart.judge(SocketAddr::new(elsewhere.ip(), port), suspect, || {
                asked.set(asked.get() + 1);
                if fails { Err(io::ErrorKind::Other.into()) } else { Ok(vec![elsewhere]) }
            })
        };
        assert!(!judge(81, false, false) && asked.get() == 0, "who answers is not looked at");
        for port in 1..=1000 {
            assert_eq!(judge(port, true, false), port == 81);
        }
        assert_eq!(asked.get(), 1);
        assert!(judge(81, false, false), "it is remembered");
        // What cannot be asked is not asked more often.
        tokio::time::advance(limits::APART_FOR).await;
        for port in 1..=1000 {
            assert!(!judge(port, true, true));
        }
        assert_eq!(asked.get(), 2);
    }

    #[test]
    fn the_kernel_says_who_listens() {
        // Without privileges marks are not shown; that a listener in order is none of these is.
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let all = ask(&Netns::current().unwrap());
        if let Ok(all) = all {
            assert!(!holds(&all, l.local_addr().unwrap()));
        }
    }
}
