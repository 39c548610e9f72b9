//! One pod's redirection. The order of the steps is the safety argument: listeners first, then everything that
//! leads to them, and the switch for new outbound connections last; removal runs the other way round.

use crate::{
    Error, Listeners, Node, PodConfig, forward,
    guard::{self, Guarding},
    maps,
    net::{self, Device, in_netns},
    node::{attach_or_replace, duplicate, key, program},
    sys, trace,
};
use aya::{
    EbpfLoader,
    maps::{Map, MapData, PerCpuArray, SockMap},
    programs::SkLookup,
};
use karst_ebpf_common::{Addr, Counter, LAYOUT, MAX_POD_IPS, flag, slot};
use karst_rt::netns::Netns;
use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
};

/// What is known of a pinned pod.
#[derive(Clone, Debug)]
pub struct PodState {
    /// Inode of its network namespace; 0 when that is gone.
    pub netns_ino: u32,
    /// The counters, in the order of [`Counter::ALL`].
    pub counters: Vec<(Counter, u64)>,
}

struct Fd(RawFd);
impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Node {
    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.dir().join("pods").join(uid)
    }

    /// Redirects a pod's connections to the listeners. Safe to call again: what is there is replaced in place. One that
    /// is closed gets a guard that lets nothing of TCP pass, and no redirection. Gives the devices that are guarded:
    /// all that are to be.
    ///
    /// # Errors
    /// With the step that failed. A pod that was enrolled before stays as it was; a new one stays unredirected.
    pub fn enrol(&mut self, netns: &Netns, pod: &PodConfig, listeners: &Listeners<'_>) -> Result<Vec<Device>, Error> {
        if pod.ips.is_empty() || pod.ips.len() > MAX_POD_IPS {
            return Err(Error::Pod(format!(
                "pod {}: has {} addresses; redirection takes 1 to {MAX_POD_IPS}",
                pod.uid,
                pod.ips.len()
            )));
        }
        let cookie = cookie_of(netns)?;
        let dir = self.pod_dir(&pod.uid);
        let maps = dir.join(format!("v{LAYOUT}"));
        fs::create_dir_all(&maps).map_err(Error::io("cannot create", &maps))?;
        let mut bpf = self.load_pod(pod, cookie, &maps)?;
        if pod.closed {
            let all = self.sync_local(netns, pod)?;
            return all_guarded(guard::attach(&mut bpf, netns, &dir, all)?);
        }
        fill(&mut bpf, listeners)?;
        self.route(netns, pod)?;
        // After the routing table that it leads to.
        let devices = self.sync_local(netns, pod)?;
        for ip in &pod.ips {
            self.set_ip(*ip, true)?;
        }
        attach_lookup(&mut bpf, netns, &dir)?;
        // Before the guard, which would drop the SYNs of connections that are not marked yet.
        self.set_enrolled(cookie, true)?;
        all_guarded(guard::attach(&mut bpf, netns, &dir, devices)?)
    }

    /// Guards devices that a pinned pod has by now, each by itself. One that is gone meanwhile is left out.
    ///
    /// # Errors
    /// If none of them can be guarded, whatever it is.
    pub fn guard(&self, netns: &Netns, pod: &PodConfig, devices: Vec<Device>) -> Result<Guarding, Error> {
        let cookie = cookie_of(netns)?;
        let dir = self.pod_dir(&pod.uid);
        let mut bpf = self.load_pod(pod, cookie, &dir.join(format!("v{LAYOUT}")))?;
        guard::attach(&mut bpf, netns, &dir, devices)
    }

    /// Those of a pinned pod's devices that have lost their guard, though their name and index are what they were.
    ///
    /// # Errors
    /// Those of reading the pins, or the filters of the pod's devices.
    pub fn lost(&self, netns: &Netns, pod: &PodConfig, devices: &[Device]) -> Result<Vec<Device>, Error> {
        guard::lost(netns, &self.pod_dir(&pod.uid), devices)
    }

    /// Sets up a pod's routing. What is there stays.
    ///
    /// # Errors
    /// Those of netlink and of sysctls; also while the pod does not have its addresses.
    pub fn route(&self, netns: &Netns, pod: &PodConfig) -> Result<(), Error> {
        in_netns(netns, || {
            net::setup(&pod.ips).map_err(Error::kernel(
                "cannot set up routing in the pod",
                "policy routing by mark and protocol",
                "4.17",
            ))
        })?
    }

    fn load_pod(&self, pod: &PodConfig, cookie: u64, maps: &std::path::Path) -> Result<aya::Ebpf, Error> {
        let mut ips = [[0u32; 4]; MAX_POD_IPS];
        for (to, ip) in ips.iter_mut().zip(&pod.ips) {
            *to = key(*ip);
        }
        let flat: Vec<u32> = ips.iter().flatten().copied().collect();
        let mut flags = 0;
        for (on, bit) in [
            (pod.bypass_inbound, flag::NO_INBOUND),
            (pod.bypass_dns, flag::NO_DNS),
            (pod.trust_mark, flag::TRUST_MARK),
            (pod.closed, flag::CLOSED),
            (pod.all_devices, flag::ALL_DEVICES),
            (pod.other_protocols, flag::OTHER_PROTOCOLS),
        ] {
            if on {
                flags |= bit;
            }
        }
        let shared = self.dir().join(format!("maps-v{LAYOUT}"));
        EbpfLoader::new()
            .map_pin_path("LISTENERS", maps.join("LISTENERS"))
            .map_pin_path("COUNTS", maps.join("COUNTS"))
            .map_pin_path("LOCAL", maps.join("LOCAL"))
            .map_pin_path("UPLINKS", maps.join("UPLINKS"))
            .map_pin_path("FORWARDED", maps.join("FORWARDED"))
            .map_pin_path("OWN_FLOWS", shared.join("OWN_FLOWS"))
            .map_pin_path("PROBES", shared.join("PROBES"))
            .map_pin_path("EXEMPT", shared.join("EXEMPT"))
            .map_pin_path(trace::REQUEST, shared.join(trace::REQUEST))
            .map_pin_path(trace::BUDGET, shared.join(trace::BUDGET))
            .map_pin_path(trace::EVENTS, shared.join(trace::EVENTS))
            .override_global("IPS", &flat[..], true)
            .override_global("FLAGS", &flags, true)
            .override_global("NETNS", &cookie, true)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.o")))
            .map_err(Error::kernel(format!("cannot load the eBPF object of pod {}", pod.uid), "sk_lookup", "5.9"))
    }

    /// Tells a pinned pod's programs which addresses are local and which devices carry the pod's own, as the kernel has
    /// them now; and sets up what the pod forwards. Gives the devices that are to be guarded: of a pod that is closed,
    /// all.
    ///
    /// # Errors
    /// If the pod is not pinned.
    pub fn sync_local(&self, netns: &Netns, pod: &PodConfig) -> Result<Vec<Device>, Error> {
        let dir = self.pod_dir(&pod.uid);
        if pod.closed {
            return in_netns(netns, net::devices)?.map_err(Error::io("cannot list the pod's devices", &dir));
        }
        let addresses = in_netns(netns, net::addresses)?
            .map_err(Error::io("cannot read the addresses of the pod's namespace", &dir))?;
        let own = |ip: &IpAddr| pod.ips.contains(ip);
        let uplinks = addresses.iter().filter(|(_, ip)| own(ip)).map(|(device, _)| (*device, 1)).collect();
        // The pod's own addresses are its own also where another network stack holds them.
        let local = addresses.iter().map(|(_, ip)| *ip).chain(pod.ips.iter().copied()).map(|ip| (key(ip), 1)).collect();
        let pinned = dir.join(format!("v{LAYOUT}"));
        maps::replace::<Addr>(&pinned.join("LOCAL"), local)?;
        maps::replace::<u32>(&pinned.join("UPLINKS"), uplinks)?;
        self.sync_forwarding(netns, &dir, pod, &addresses)
    }

    /// Points a pinned pod's slots to new listeners; the old ones keep what is in their queues.
    ///
    /// # Errors
    /// If the pod is not pinned.
    pub fn set_listeners(&self, uid: &str, listeners: &Listeners<'_>) -> Result<(), Error> {
        let path = self.pod_dir(uid).join(format!("v{LAYOUT}/LISTENERS"));
        let mut map: SockMap<MapData> = maps::open(&path, Map::SockMap)?;
        set_slots(&mut map, listeners)
    }

    /// Stops redirecting new connections of a pod that lives on. Open ones keep going through ztunnel.
    ///
    /// # Errors
    /// With the step that failed.
    pub fn release(&mut self, netns: &Netns, pod: &PodConfig) -> Result<(), Error> {
        let cookie = cookie_of(netns)?;
        self.detach(&pod.uid, guard::PINS);
        let unguarded = in_netns(netns, guard::remove_filters)?;
        self.set_enrolled(cookie, false)?;
        // What it forwards goes its own way again, before nobody takes it any more.
        in_netns(netns, forward::remove)?.map_err(Error::io("cannot remove routing rules of", &pod.uid))?;
        self.forget(&pod.uid, &pod.ips)?;
        unguarded.map_err(Error::io("cannot remove the guard's filters of pod", &pod.uid))
    }

    /// Removes the pins of a pod: its links detach. For pods whose namespace is gone.
    ///
    /// # Errors
    /// Those of removing files.
    pub fn forget(&mut self, uid: &str, ips: &[IpAddr]) -> Result<(), Error> {
        for ip in ips {
            self.set_ip(*ip, false)?;
        }
        self.detach(uid, guard::PINS);
        self.detach(uid, "lookup");
        let dir = self.pod_dir(uid);
        Node::remove_all(&dir)
    }

    /// Detaches the pod's links whose names begin so. A link whose namespace is gone is detached already.
    fn detach(&self, uid: &str, prefix: &str) {
        for e in fs::read_dir(self.pod_dir(uid)).into_iter().flatten().flatten() {
            if e.file_name().to_string_lossy().starts_with(prefix) {
                let detached = sys::obj_get(&e.path()).and_then(|l| sys::link_detach(l.as_fd()));
                if let Err(e) = detached {
                    tracing::debug!(pod = uid, link = prefix, error = %e, "link could not be detached");
                }
            }
        }
    }
}

/// Takes all redirection out of the calling thread's network namespace, that of a pod with these addresses. What is
/// pinned stays.
///
/// # Errors
/// Those of netlink.
pub fn remove_from_netns(ips: &[IpAddr]) -> io::Result<()> {
    guard::remove_filters()?;
    forward::remove()?;
    net::remove(ips)
}

/// What tells the pod's network namespace from all others.
fn cookie_of(netns: &Netns) -> Result<u64, Error> {
    netns.cookie().map_err(Error::kernel("cannot enter the pod's network namespace", "SO_NETNS_COOKIE", "5.14"))
}

/// Only a pod all of whose devices are guarded is enrolled.
fn all_guarded(each: Guarding) -> Result<Vec<Device>, Error> {
    each.into_iter().map(|(device, done)| done.map(|()| device)).collect()
}

/// Reads the state and counters of a pod pinned under a node's directory. Changes nothing.
///
/// # Errors
/// If it is not pinned.
pub fn pod_state(node: &std::path::Path, uid: &str) -> Result<PodState, Error> {
    let dir = node.join("pods").join(uid);
    let pin = dir.join("lookup");
    let link = sys::obj_get(&pin).map_err(Error::io("cannot open the pinned link", &pin))?;
    let netns_ino = sys::link_netns(link.as_fd()).map_err(Error::io("cannot read the link", &pin))?;
    let path = dir.join(format!("v{LAYOUT}/COUNTS"));
    let map: PerCpuArray<MapData, u64> = maps::open(&path, Map::PerCpuArray)?;
    let sum = |c: &Counter| map.get(&(*c as u32), 0).map(|v| v.iter().sum()).unwrap_or(0);
    Ok(PodState { netns_ino, counters: Counter::ALL.iter().map(|c| (*c, sum(c))).collect() })
}

fn fill(bpf: &mut aya::Ebpf, listeners: &Listeners<'_>) -> Result<(), Error> {
    let map = bpf.map_mut("LISTENERS").ok_or_else(|| Error::Pod("the pod's object has no map LISTENERS".into()))?;
    let mut map: SockMap<_> = map.try_into().map_err(|e| Error::Pod(format!("LISTENERS: {e}")))?;
    set_slots(&mut map, listeners)
}

fn set_slots<T: std::borrow::BorrowMut<MapData>>(map: &mut SockMap<T>, listeners: &Listeners<'_>) -> Result<(), Error> {
    let all: [(u32, &OwnedFd); slot::COUNT as usize] = [
        (slot::HBONE, listeners.hbone),
        (slot::PLAINTEXT, listeners.plaintext),
        (slot::OUTBOUND, listeners.outbound),
        (slot::DNS, listeners.dns),
        (slot::FORWARD, listeners.forward),
    ];
    for (place, socket) in all {
        map.set(place, &Fd(socket.as_raw_fd()), 0).map_err(Error::kernel(
            "cannot put a listener into its slot",
            "listening sockets in sockmaps",
            "5.9",
        ))?;
    }
    Ok(())
}

fn attach_lookup(bpf: &mut aya::Ebpf, netns: &Netns, dir: &std::path::Path) -> Result<(), Error> {
    let err = || Error::kernel::<aya::programs::ProgramError>("cannot load or attach pod_lookup", "sk_lookup", "5.9");
    let lookup: &mut SkLookup = program(bpf, "pod_lookup")?;
    lookup.load().map_err(err())?;
    let pin = dir.join("lookup");
    let fd = duplicate(lookup.fd().map_err(err())?)?;
    attach_or_replace(&pin, fd.as_fd(), || {
        let ns = File::from(netns.as_fd().try_clone_to_owned().map_err(Error::io("cannot duplicate", &pin))?);
        let id = lookup.attach(ns).map_err(err())?;
        Ok(lookup.take_link(id).map_err(err())?.into())
    })
}
