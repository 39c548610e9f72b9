//! Connections that were open before their pod was redirected. The mesh cannot take them over: they go on as they were, in
//! plaintext and judged by nobody, also under STRICT. So they are counted, and closed where that is asked for.
//!
//! Which they are is found out once, when the pod is redirected, and kept by the kernel's cookies in the pod's record, also
//! over restarts of the agent. Proven by tests/world (agent).

use crate::records::{Record, Records};
use karst_ebpf::MARK_MASK;
use karst_rt::{
    netns::Netns,
    sock_diag::{SockDiag, States, TcpSocket},
    socket::{MARK_CAPTURE, MARK_ZTUNNEL},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

/// Connections of one pod that are followed; with more, the first are.
const MAX: usize = 65_536;

struct Tracked {
    /// `namespace/name`, for the log.
    key: String,
    netns: Netns,
    cookies: BTreeSet<u64>,
    close: bool,
}

/// The node's pods with such connections, by uid.
#[derive(Default)]
pub struct Unmeshed {
    pods: RefCell<BTreeMap<String, Tracked>>,
    /// Ending connections has failed, and that was said.
    told: Cell<bool>,
}

/// Those with these cookies that are still open.
pub fn open(netns: &Netns, cookies: &BTreeSet<u64>) -> io::Result<Vec<TcpSocket>> {
    let mut open = Vec::new();
    netns.run(SockDiag::open)??.each(States::Open, None, |c| {
        if cookies.contains(&c.cookie) {
            open.push(c);
        }
    })?;
    Ok(open)
}

/// All that are open; each says whether it is in the map of ztunnel's sockets.
fn all(netns: &Netns, exempt: BorrowedFd<'_>) -> io::Result<Vec<TcpSocket>> {
    let mut all = Vec::new();
    netns.run(SockDiag::open)??.each(States::Open, Some(exempt), |c| all.push(c))?;
    Ok(all)
}

impl Unmeshed {
    /// A pod has just been redirected, or is again by another agent; then its record says what was open at first. `exempt` is the map
    /// of ztunnel's sockets.
    pub fn redirected(&self, key: &str, record: &mut Record, netns: &Netns, exempt: BorrowedFd<'_>, close: bool) {
        if record.unmeshed.is_none() {
            match all(netns, exempt) {
                Ok(all) => record.unmeshed = Some(those_of(&all, record)),
                Err(e) => {
                    tracing::warn!(pod = key, error = %e, "connections from before the pod's redirection cannot be counted");
                }
            }
            let count = record.unmeshed.as_ref().map_or(0, Vec::len);
            if count > 0 && !close {
                tracing::warn!(
                    pod = key,
                    connections = count,
                    "open connections from before the pod's redirection go on without encryption and policy; the annotation karst.io/close-unmeshed-connections: \"true\" closes them"
                );
            }
        }
        let cookies = record.unmeshed.iter().flatten().copied().collect();
        let tracked = Tracked { key: key.into(), netns: netns.clone(), cookies, close };
        self.pods.borrow_mut().insert(record.uid.clone(), tracked);
    }

    /// A pod is no longer redirected.
    pub fn forget(&self, uid: &str) {
        self.pods.borrow_mut().remove(uid);
    }

    /// How many are still open, as of the last look.
    pub fn count(&self, uid: &str) -> usize {
        self.pods.borrow().get(uid).map_or(0, |t| t.cookies.len())
    }

    /// Looks which are still open, and closes those that are to be. `serves`: a ztunnel is there that takes what comes in their place.
    pub fn look(&self, records: &Records, serves: bool) {
        for (uid, tracked) in self.pods.borrow_mut().iter_mut().filter(|(_, tracked)| !tracked.cookies.is_empty()) {
            let open = match open(&tracked.netns, &tracked.cookies) {
                Ok(o) => o,
                Err(e) => {
                    tracing::debug!(pod = tracked.key, error = %e, "connections cannot be listed");
                    continue;
                }
            };
            let before = tracked.cookies.len();
            tracked.cookies = open.iter().map(|c| c.cookie).collect();
            if tracked.close && serves {
                self.close(tracked, &open);
            }
            if tracked.cookies.len() != before
                && let Some(mut record) = records.one(uid)
            {
                record.unmeshed = Some(tracked.cookies.iter().copied().collect());
                records.save(&record);
            }
        }
    }

    fn close(&self, tracked: &mut Tracked, open: &[TcpSocket]) {
        let (mut done, mut failed) = (0, None);
        let ended = tracked.netns.run(SockDiag::open).and_then(|diag| diag).map(|diag| {
            for connection in open {
                match diag.destroy(connection) {
                    Ok(()) => {
                        tracked.cookies.remove(&connection.cookie);
                        done += 1;
                    }
                    Err(e) => failed = Some(e),
                }
            }
        });
        if done > 0 {
            tracing::info!(
                pod = tracked.key,
                connections = done,
                "closed connections from before the pod's redirection"
            );
        }
        if let Some(e) = ended.err().or(failed)
            && !self.told.replace(true)
        {
            tracing::warn!(
                pod = tracked.key,
                error = %e,
                "connections from before the pod's redirection cannot be closed (the kernel needs CONFIG_INET_DIAG_DESTROY, the agent CAP_NET_ADMIN): restart the pod to end them"
            );
        }
    }
}

/// The cookies of those that bypass the mesh.
fn those_of(all: &[TcpSocket], record: &Record) -> Vec<u64> {
    let cookies: Vec<u64> = all
        .iter()
        .filter(|c| is_unmeshed(c.local, c.remote, c.mark, c.stored, &record.ips))
        .map(|c| c.cookie)
        .take(MAX)
        .collect();
    if cookies.len() == MAX {
        let pod = format!("{}/{}", record.namespace, record.name);
        tracing::warn!(
            pod,
            "more than {MAX} connections are open from before the pod's redirection; {MAX} are followed"
        );
    }
    cookies
}

/// Does a connection bypass the mesh: opened before the pod was redirected, towards somebody else? What the connect hooks have
/// captured and what ztunnel has accepted is marked, ztunnel's other sockets are exempt, and what stays in the pod (`own`) is
/// nobody's business.
fn is_unmeshed(local: SocketAddr, remote: SocketAddr, mark: u32, exempt: bool, own: &[IpAddr]) -> bool {
    let mark = mark & MARK_MASK;
    let inside = remote.ip().is_loopback() || own.contains(&remote.ip());
    !exempt && mark != MARK_CAPTURE && mark != MARK_ZTUNNEL && !inside && !local.ip().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn what_bypasses_the_mesh() {
        let own: [IpAddr; 2] = [Ipv4Addr::new(10, 0, 0, 5).into(), "fd00::5".parse().unwrap()];
        let is = |local: &str, remote: &str, mark: u32, exempt: bool| {
            is_unmeshed(local.parse().unwrap(), remote.parse().unwrap(), mark, exempt, &own)
        };
        assert!(is("10.0.0.5:40000", "10.0.1.7:8080", 0, false));
        assert!(is("[fd00::5]:8080", "[fd00::9]:40000", 0, false), "those that came in as well");
        assert!(is("10.0.0.5:40000", "10.0.1.7:8080", 0x7, false), "a mark of the application's own");
        assert!(!is("10.0.0.5:40000", "10.0.1.7:8080", MARK_CAPTURE, false), "captured");
        assert!(!is("10.0.0.5:40000", "10.0.1.7:8080", 0xf000 | MARK_CAPTURE, false), "captured, with bits of others");
        assert!(!is("10.0.0.5:15008", "10.0.1.7:40000", MARK_ZTUNNEL, false), "accepted by ztunnel");
        assert!(!is("10.0.0.5:40000", "10.0.1.7:15008", 0, true), "made by ztunnel");
        assert!(!is("10.0.0.5:40000", "10.0.0.5:8080", 0, false), "with itself");
        assert!(!is("127.0.0.1:40000", "127.0.0.1:8080", 0, false));
        assert!(!is("[::1]:40000", "[::1]:8080", 0, false));
    }
}
