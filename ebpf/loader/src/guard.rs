//! The guard on a pod's devices: by tcx where the kernel has it (Linux 6.6), else as a filter of a clsact qdisc.
//!
//! A tcx link is pinned, and only who holds it can take it off. A filter needs no pin: it belongs to its device, outlives the
//! agent, and goes with the device; it is found again by its priority and handle, replaced in place, and taken out by its name.
//! What it cannot do is withstand a process of the pod that has CAP_NET_ADMIN (docs/threat-model.md).
//!
//! What must always hold: a pod is enrolled only if each of its devices that may lead out (`forward`; each device, if it is closed)
//! has the guard in one of the two ways, and only a kernel that has no tcx leads to the second. Proven by `tests/programs.rs`, on
//! old kernels by `cargo xtask kernels`.

use crate::{
    Error,
    net::{self, in_netns},
    node::{duplicate, program, replace},
    sys,
};
use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkOrder},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use karst_rt::netns::Netns;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle as Qdisc, TcMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use std::{
    fs, io,
    os::fd::AsFd,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// The program's name, and so the filter's.
pub(crate) const NAME: &str = "pod_guard";
/// Before all other filters.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x539);

/// Puts the guard on these devices of the pod, or replaces it there.
pub(crate) fn attach(bpf: &mut aya::Ebpf, netns: &Netns, dir: &Path, devices: &[String]) -> Result<(), Error> {
    let p: &mut SchedClassifier = program(bpf, NAME)?;
    p.load().map_err(refused(NAME))?;
    devices.iter().try_for_each(|device| on_device(p, netns, dir, device))
}

fn on_device(p: &mut SchedClassifier, netns: &Netns, dir: &Path, device: &str) -> Result<(), Error> {
    let pin = dir.join(format!("guard-{device}"));
    unpin_if_dead(&pin)?;
    if pin.exists() {
        let fd = duplicate(p.fd().map_err(refused(NAME))?)?;
        return replace(&pin, fd.as_fd());
    }
    match in_netns(netns, || by_tcx(p, device))? {
        Ok(link) => {
            link.pin(&pin).map(drop).map_err(Error::kernel(format!("cannot pin {}", pin.display()), "bpffs", "5.7"))
        }
        Err(e) if no_tcx(&e) => {
            static TOLD: AtomicBool = AtomicBool::new(false);
            if !TOLD.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "this kernel has no tcx (Linux 6.6): pods are guarded by clsact filters, which a pod with CAP_NET_ADMIN can remove"
                );
            }
            in_netns(netns, || by_filter(p, device))?.map_err(Error::kernel(
                format!("cannot attach {NAME} to {device}"),
                "tcx (Linux 6.6), or a clsact qdisc with cls_bpf (modules sch_ingress and cls_bpf)",
                "4.5",
            ))
        }
        Err(e) => Err(refused(device)(e)),
    }
}

/// A pinned link whose device is gone is in nobody's way but its successor's: a new device may have the same name.
fn unpin_if_dead(pin: &Path) -> Result<(), Error> {
    if !pin.exists() {
        return Ok(());
    }
    let link = sys::obj_get(pin).map_err(Error::io("cannot open the pinned link", pin))?;
    let device = sys::link_device(link.as_fd()).map_err(Error::io("cannot read the link", pin))?;
    if device == 0 {
        fs::remove_file(pin).map_err(Error::io("cannot remove", pin))?;
    }
    Ok(())
}

/// Attaches to a device of the calling thread's namespace by a link.
pub(crate) fn by_tcx(p: &mut SchedClassifier, device: &str) -> Result<FdLink, ProgramError> {
    let last = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = p.attach_with_options(device, TcAttachType::Egress, last)?;
    FdLink::try_from(p.take_link(id)?).map_err(|e| ProgramError::IOError(io::Error::other(e)))
}

/// Does the kernel say that it does not know tcx? (It is asked for an attach type that it has not heard of, or with more than it
/// knows of the call.)
pub(crate) fn no_tcx(e: &ProgramError) -> bool {
    match e {
        ProgramError::SyscallError(e) => matches!(e.io_error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG)),
        _ => false,
    }
}

/// Attaches to a device of the calling thread's namespace by a filter of a clsact qdisc, in place of an earlier one.
pub(crate) fn by_filter(p: &mut SchedClassifier, device: &str) -> Result<(), ProgramError> {
    add_clsact(device)?;
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
    let id = match p.attach_with_options(device, TcAttachType::Egress, options) {
        Err(ProgramError::TcError(TcError::NetlinkError(e))) if e.raw_os_error() == Some(libc::EEXIST) => {
            let there = SchedClassifierLink::attached(device, TcAttachType::Egress, PRIORITY, HANDLE, None)?;
            p.attach_to_link(there)?
        }
        attached => attached?,
    };
    // The filter stays when this process ends; the link, dropped, would take it out.
    std::mem::forget(p.take_link(id)?);
    Ok(())
}

/// Adds a clsact qdisc, unless there is one. Another kind in its place is an error: the kernel would take a filter for egress,
/// and put it at the ingress.
fn add_clsact(device: &str) -> io::Result<()> {
    let mut m = TcMessage::with_index(sys::ifindex(device)? as i32);
    m.header.handle = Qdisc { major: 0xffff, minor: 0 };
    m.header.parent = Qdisc { major: 0xffff, minor: 0xfff1 };
    m.attributes = vec![TcAttribute::Kind("clsact".into())];
    // Not exclusive: "change it" is what the kernel does to one that is there, if the kind is the same.
    net::request(&Socket::new(NETLINK_ROUTE)?, RouteNetlinkMessage::NewQueueDiscipline(m), NLM_F_CREATE)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot add a clsact qdisc to {device}: {e}")))
}

/// Takes the guard, in both of its ways, off devices that have turned out to lead nowhere.
pub(crate) fn leave(netns: &Netns, dir: &Path, devices: &[String]) {
    for pin in devices.iter().map(|d| dir.join(format!("guard-{d}"))).filter(|p| p.exists()) {
        if let Err(e) = sys::obj_get(&pin).and_then(|l| sys::link_detach(l.as_fd())) {
            tracing::debug!(link = %pin.display(), error = %e, "link could not be detached");
        }
        if let Err(e) = fs::remove_file(&pin) {
            tracing::debug!(link = %pin.display(), error = %e, "link could not be removed");
        }
    }
    if devices.is_empty() {
        return;
    }
    let removed = in_netns(netns, || devices.iter().try_for_each(|d| remove_filter(d)));
    if let Err(e) = removed.and_then(|r| r.map_err(Error::io("cannot remove the guard's filters of", dir))) {
        tracing::warn!(error = %e, "devices inside a pod stay guarded");
    }
}

/// Takes the filters off the devices of the calling thread's namespace. Where there are none, it does nothing.
///
/// # Errors
/// Those of netlink.
pub(crate) fn remove_filters() -> io::Result<()> {
    net::devices()?.iter().try_for_each(|device| remove_filter(device))
}

/// Takes the filter off a device. The qdisc stays: it may be somebody else's too.
pub(crate) fn remove_filter(device: &str) -> io::Result<()> {
    match tc::qdisc_detach_program(device, TcAttachType::Egress, NAME) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(e)) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // The device, and the filter with it, went meanwhile.
        Err(_) if sys::ifindex(device).is_err() => Ok(()),
        Err(e) => Err(io::Error::other(format!("{device}: {e}"))),
    }
}

fn refused(on: &str) -> impl FnOnce(ProgramError) -> Error {
    Error::kernel(format!("cannot load {NAME} or attach it to {on}"), "tcx or clsact", "4.5")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::sys::SyscallError;
    use std::{
        net::{Ipv4Addr, TcpListener, TcpStream},
        process::Command,
        time::Duration,
    };

    fn syscall(errno: i32) -> ProgramError {
        SyscallError { call: "bpf_mprog_attach", io_error: io::Error::from_raw_os_error(errno) }.into()
    }

    #[test]
    fn only_a_kernel_that_knows_no_tcx_leads_to_the_filter() {
        assert!(no_tcx(&syscall(libc::EINVAL)) && no_tcx(&syscall(libc::E2BIG)));
        for errno in [libc::EPERM, libc::EEXIST, libc::ENODEV, libc::ENOMEM, libc::EBUSY] {
            assert!(!no_tcx(&syscall(errno)), "errno {errno}");
        }
        assert!(!no_tcx(&ProgramError::NotLoaded));
    }

    /// In a namespace of its own, as root: can a connection be made over its `lo`?
    fn connects(netns: &Netns) -> bool {
        let made = netns.run(|| {
            let l = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            TcpStream::connect_timeout(&l.local_addr()?, Duration::from_millis(300))
        });
        made.expect("namespace").is_ok()
    }

    fn tc(netns: &Netns, words: &str) -> String {
        let out = netns.run(|| Command::new("tc").args(words.split(' ')).output()).expect("namespace").expect("tc");
        assert!(out.status.success(), "tc {words}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn object() -> aya::Ebpf {
        let loaded = aya::EbpfLoader::new().load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.o")));
        let mut bpf = loaded.expect("the pod's object loads (as root)");
        program::<SchedClassifier>(&mut bpf, NAME).expect("guard").load().expect("the verifier takes the guard");
        bpf
    }

    fn filter(netns: &Netns, bpf: &mut aya::Ebpf) -> Result<(), ProgramError> {
        let p = program::<SchedClassifier>(bpf, NAME).expect("guard");
        netns.run(|| by_filter(p, "lo")).expect("namespace")
    }

    #[test]
    fn a_filter_outlives_its_loader_is_replaced_in_place_and_taken_out() {
        let netns = crate::check::scratch().expect("a network namespace (as root)");
        assert!(connects(&netns));
        filter(&netns, &mut object()).expect("first");
        assert!(!connects(&netns), "the filter must stay when the object goes");
        // A restarted agent.
        filter(&netns, &mut object()).expect("again");
        assert_eq!(tc(&netns, "filter show dev lo egress").matches("handle 0x539").count(), 1);
        assert!(!connects(&netns));
        netns.run(|| remove_filter("lo")).expect("namespace").expect("removal");
        netns.run(|| remove_filter("lo")).expect("namespace").expect("nothing is left to remove");
        assert!(connects(&netns));
    }

    #[test]
    fn the_filter_of_a_device_that_is_gone_is_gone() {
        let netns = crate::check::scratch().expect("a network namespace (as root)");
        netns.run(|| remove_filter("eth7")).expect("namespace").expect("no such device, no such filter");
    }

    #[test]
    fn another_qdisc_in_the_place_of_clsact_is_an_error() {
        let netns = crate::check::scratch().expect("a network namespace (as root)");
        tc(&netns, "qdisc add dev lo ingress");
        let e = filter(&netns, &mut object()).expect_err("the kernel would guard the wrong direction");
        assert!(e.to_string().contains("cannot add a clsact qdisc to lo"), "{e}");
        assert!(connects(&netns));
    }
}
