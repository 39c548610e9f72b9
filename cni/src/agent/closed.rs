//! Pods whose addresses another network stack has (gVisor, virtual machines): redirection would see nothing of their connections,
//! so nothing of them could be encrypted or judged. Such a pod is closed: nothing of TCP passes its network namespace, no annotation
//! says that it is redirected (so nobody is told that it takes HBONE), and an event tells its owner what to do.
//!
//! A stack takes the addresses after the pod's network was made, and may give them back: this is looked at again and again.
//! Proven by tests/world (agent).

use super::{
    desired::Desired,
    state::{Active, Agent, Closed, Joined, open_netns},
};
use crate::{local::Followed, records::Record, sockets::PodSockets};
use anyhow::Context;
use karst_ebpf::PodConfig;
use karst_rt::{netlink::Watch, netns::Netns};
use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    net::IpAddr,
    rc::Rc,
    time::Duration,
};

/// How often each pod's network namespace is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Connections from before redirection are looked at every so many times.
const UNMESHED: u32 = 5;

/// The sign of another network stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// None of the pod's addresses is in its network namespace.
    NoAddress(Vec<IpAddr>),
    /// A device that passes everything on to a virtual machine; the addresses may be there and mean nothing.
    Tap(String),
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::NoAddress(ips) => {
                let ips: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
                write!(f, "its network namespace holds none of its addresses ({})", ips.join(", "))?;
            }
            Sign::Tap(device) => write!(f, "device {device} of its network namespace belongs to a virtual machine")?,
        }
        f.write_str(
            ": another network stack (gVisor, Kata Containers) handles the pod's network, so the mesh can neither encrypt nor authorize its connections. TCP from and to the pod is closed. Remove the pod from the mesh (label istio.io/dataplane-mode: none), or run it without that runtime class",
        )
    }
}

/// What a namespace tells of itself: which of the pod's addresses it holds, and its devices.
fn sign(ips: &[(IpAddr, bool)], devices: &[String]) -> Option<Sign> {
    if !ips.iter().any(|(_, held)| *held) {
        return Some(Sign::NoAddress(ips.iter().map(|(ip, _)| *ip).collect()));
    }
    // Kata Containers' name for it: tap0_kata.
    devices.iter().find(|d| d.starts_with("tap") && d.ends_with("_kata")).map(|d| Sign::Tap(d.clone()))
}

/// Does another network stack have this pod's addresses?
fn foreign(netns: &Netns, ips: &[IpAddr]) -> io::Result<Option<Sign>> {
    let held = ips.iter().map(|ip| Ok((*ip, netns.holds(*ip)?))).collect::<io::Result<Vec<_>>>()?;
    let devices: Vec<String> = netns.run(karst_ebpf::net::devices)??.into_iter().map(|d| d.name).collect();
    Ok(sign(&held, &devices))
}

impl Agent {
    /// Forgets those that nobody wants any more, or wants otherwise. (What is in force for them is taken back as that of strangers.)
    pub(super) fn retain_closed(&self, wanted: &BTreeMap<String, Desired>) {
        self.closed.borrow_mut().retain(|key, c| wanted.get(key) == Some(&c.desired));
    }

    /// Closes the pod if another network stack has its addresses.
    pub(super) async fn close_foreign(
        &self,
        key: &str,
        desired: &Desired,
        netns: &Netns,
    ) -> anyhow::Result<Option<Joined>> {
        let Some(sign) = foreign(netns, &desired.config.ips).context("cannot inspect the pod's network namespace")?
        else {
            self.closed.borrow_mut().remove(key);
            return Ok(None);
        };
        let record = Record { unmeshed: None, closed: Some(sign.to_string()), ..desired.record() };
        self.records.save(&record);
        let sockets = PodSockets::open(netns).context("cannot open sockets in the pod's network namespace")?;
        let config = PodConfig { closed: true, ..desired.config.clone() };
        let watch = Watch::of(netns).context("cannot follow the devices of the pod's network namespace")?;
        let guarded = self.node.borrow_mut().enrol(netns, &config, &sockets.listeners())?;
        self.hub.del(&desired.config.uid);
        self.active.borrow_mut().remove(key);
        self.unmeshed.forget(&desired.config.uid);
        let pod = (desired.info.namespace.as_str(), desired.info.name.as_str(), desired.uid.as_str());
        self.report.set(&self.config.node, pod, false).await?;
        let followed = Followed { node: self.node.clone(), key: key.into(), netns: netns.clone(), config };
        let closed =
            Closed { desired: desired.clone(), netns: netns.clone(), following: followed.follow(watch, guarded) };
        self.closed.borrow_mut().insert(key.into(), closed);
        tracing::warn!(pod = key, "pod is closed: {sign}");
        self.report.warn(pod, "NotRedirected", sign.to_string());
        Ok(Some(Joined::Closed))
    }

    /// Looks at the pods' network namespaces for as long as the agent runs, and at their connections from before.
    pub(super) async fn look_after_pods(self: Rc<Self>) {
        let mut doubted = HashSet::new();
        for round in 1u32.. {
            tokio::time::sleep(LOOK).await;
            self.records.retry();
            doubted = self.look_at_stacks(&doubted);
            if round.is_multiple_of(UNMESHED) {
                self.unmeshed.look(&self.records, self.hub.has_peer());
            }
        }
    }

    /// Has reconciliation begin anew with pods whose addresses have gone elsewhere, or have come back. Gives those whose addresses seem
    /// to be gone: only the second time in a row counts, as a pod that ends loses its addresses, too.
    fn look_at_stacks(&self, doubted: &HashSet<String>) -> HashSet<String> {
        let seen = |active: &Active| foreign(&active.netns, &active.desired.config.ips).is_ok_and(|s| s.is_some());
        let doubts: HashSet<String> =
            self.active.borrow().iter().filter(|(_, active)| seen(active)).map(|(k, _)| k.clone()).collect();
        for key in doubts.intersection(doubted) {
            let desired = self.active.borrow().get(key).map(|active| active.desired.clone());
            // Without a process that runs, the pod has ended.
            let Some(now) = desired.and_then(|d| open_netns(&d).ok()) else { continue };
            let Some(active) = self.active.borrow_mut().remove(key) else { continue };
            if !matches!((now.id(), active.netns.id()), (Ok(x), Ok(y)) if x == y) {
                // It has moved to another namespace. In the same one the guard stays where it is.
                self.hub.del(&active.desired.config.uid);
                if let Err(e) = self.node.borrow_mut().release(&active.netns, &active.desired.config) {
                    tracing::warn!(pod = key, error = %e, "redirection could not be removed completely");
                }
            }
            self.again.notify_one();
        }
        let back = |c: &Closed| foreign(&c.netns, &c.desired.config.ips).is_ok_and(|s| s.is_none());
        let before = self.closed_pods();
        self.closed.borrow_mut().retain(|_, c| !back(c));
        if self.closed_pods() != before {
            self.again.notify_one();
        }
        doubts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_stack_is_known_by_what_it_takes_and_by_its_device() {
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap());
        let eth0 = ["eth0".to_string()];
        assert_eq!(sign(&[(a, true), (b, true)], &eth0), None);
        // One family may be off, or be looking for duplicates still.
        assert_eq!(sign(&[(a, true), (b, false)], &eth0), None);
        let none = sign(&[(a, false), (b, false)], &eth0).unwrap();
        assert_eq!(none, Sign::NoAddress(vec![a, b]));
        let text = none.to_string();
        assert!(text.contains("10.0.0.5, fd00::5") && text.contains("istio.io/dataplane-mode: none"), "{text}");
        assert!(text.len() < 1000, "an event's text is cut there, and what to do stands last: {}", text.len());
        let kata = ["eth0".to_string(), "tap0_kata".to_string()];
        assert_eq!(sign(&[(a, true)], &kata), Some(Sign::Tap("tap0_kata".into())));
        assert_eq!(sign(&[(a, true)], &["tap0".to_string()]), None, "a VPN's");
    }
}
