//! The guard's way on kernels without tcx: a filter of a clsact qdisc, and beside it, pinned, the program that it has
//! to run. It is found by its priority and handle, replaced in place, and taken out by its name.

use crate::{
    Error,
    net::{self, Device, in_netns},
    sys,
};
use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use karst_rt::netns::Netns;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle as Qdisc, TcHeader, TcMessage, TcOption},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The program's name, and so the filter's.
pub(crate) const NAME: &str = "pod_guard";
/// How the names of the pins of filters' programs begin; the device's index follows.
const PROGRAMS: &str = "filter-";
/// Before all other filters.
const PRIORITY: u16 = 1;
const FILTER: u16 = 0x539;
const HANDLE: TcHandle = TcHandle::new(0, FILTER);
/// Where filters of a clsact qdisc are asked for at the egress (`TC_H_MIN_EGRESS`, linux/pkt_sched.h).
const EGRESS: Qdisc = Qdisc { major: 0xffff, minor: 0xfff3 };

/// The way of kernels without tcx: a filter, and beside it, pinned, the program that it has to run.
pub(super) fn hold_by_filter(
    guard: &mut SchedClassifier,
    netns: &Netns,
    dir: &Path,
    device: &Device,
) -> Result<(), Error> {
    let there = in_netns(netns, net::devices)?.map_err(Error::io("cannot list the pod's devices", dir))?;
    // Devices come and go, as often as the pod likes; their programs are not to stay.
    for entry in fs::read_dir(dir).map_err(Error::io("cannot read", dir))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_of = |device: &Device| name == format!("{PROGRAMS}{}", device.index);
        if name.starts_with(PROGRAMS) && (is_of(device) || !there.iter().any(is_of)) {
            let pin = entry.path();
            fs::remove_file(&pin).map_err(Error::io("cannot remove", &pin))?;
        }
    }
    let pin = program_pin(dir, device.index);
    guard.pin(&pin).map_err(Error::kernel(format!("cannot pin {}", pin.display()), "bpffs", "4.4"))?;
    in_netns(netns, || by_filter_alone(guard, device))?.map_err(Error::kernel(
        format!("cannot attach {NAME} to {}", device.name),
        "tcx (Linux 6.6), or a clsact qdisc with cls_bpf (modules sch_ingress and cls_bpf)",
        "4.5",
    ))
}

pub(super) fn program_pin(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("{PROGRAMS}{index}"))
}

/// Attaches to a device of the calling thread's namespace by a filter of a clsact qdisc, in place of an earlier one.
pub(crate) fn by_filter(guard: &mut SchedClassifier, device: &str) -> Result<(), ProgramError> {
    add_clsact(device)?;
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
    let id = match guard.attach_with_options(device, TcAttachType::Egress, options) {
        Err(ProgramError::TcError(TcError::NetlinkError(e))) if e.raw_os_error() == Some(libc::EEXIST) => {
            let there = SchedClassifierLink::attached(device, TcAttachType::Egress, PRIORITY, HANDLE, None)?;
            guard.attach_to_link(there)?
        }
        attached => attached?,
    };
    // The filter stays when this process ends; the link, dropped, would take it out.
    std::mem::forget(guard.take_link(id)?);
    Ok(())
}

/// The same, alone at its priority: what else is there, by whomever, is taken out if it is in the filter's place or may
/// be before it.
fn by_filter_alone(guard: &mut SchedClassifier, device: &Device) -> Result<(), ProgramError> {
    let program = guard.info()?.id();
    let first = by_filter(guard, &device.name);
    if first.is_ok() && is_filtered(device.index, program)? {
        return Ok(());
    }
    if let Err(e) = remove_priority(device.index) {
        first?;
        return Err(e.into());
    }
    by_filter(guard, &device.name)?;
    match is_filtered(device.index, program)? {
        true => Ok(()),
        false => Err(io::Error::other("another filter has taken its place").into()),
    }
}

/// Takes all filters of our priority off a device of the calling thread's namespace.
fn remove_priority(index: u32) -> io::Result<()> {
    let mut filters = TcMessage::with_index(index as i32);
    filters.header.parent = EGRESS;
    // Of whatever protocol.
    filters.header.info = u32::from(PRIORITY) << 16;
    net::request(&Socket::new(NETLINK_ROUTE)?, RouteNetlinkMessage::DelTrafficFilter(filters), 0)
}

/// Adds a clsact qdisc, unless there is one. Another kind in its place is an error: the kernel would take a filter for
/// egress, and put it at the ingress.
fn add_clsact(device: &str) -> io::Result<()> {
    let mut qdisc = TcMessage::with_index(sys::ifindex(device)? as i32);
    qdisc.header.handle = Qdisc { major: 0xffff, minor: 0 };
    qdisc.header.parent = Qdisc { major: 0xffff, minor: 0xfff1 };
    qdisc.attributes = vec![TcAttribute::Kind("clsact".into())];
    // Not exclusive: "change it" is what the kernel does to one that is there, if the kind is the same.
    net::request(&Socket::new(NETLINK_ROUTE)?, RouteNetlinkMessage::NewQueueDiscipline(qdisc), NLM_F_CREATE)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot add a clsact qdisc to {device}: {e}")))
}

/// Is our filter at a device of the calling thread's namespace, with this program, and does nothing stand beside it
/// that may decide before it? A device that is gone has none.
pub(super) fn is_filtered(index: u32, program: u32) -> io::Result<bool> {
    let mut filters = TcMessage::with_index(index as i32);
    filters.header.parent = EGRESS;
    let (mut ours, mut others) = (false, false);
    let dumped = net::dump(RouteNetlinkMessage::GetTrafficFilter(filters), |message| {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = message else { return };
        let TcHeader { index: device, handle, info, .. } = filter.header;
        // Of a list of filters the kernel tells, too, without a handle.
        let is_first = device == index as i32 && info >> 16 == u32::from(PRIORITY) && handle != Qdisc::default();
        if is_first && handle == (Qdisc { major: 0, minor: FILTER }) && runs(&filter, program) {
            ours = true;
        } else {
            others |= is_first;
        }
    });
    match dumped {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        dumped => dumped.map(|()| ours && !others),
    }
}

/// Does a filter decide by this program, about whatever leaves the device?
fn runs(filter: &TcMessage, program: u32) -> bool {
    let has = |option: &dyn Fn(&TcFilterBpfOption) -> bool| {
        filter.attributes.iter().any(|attribute| match attribute {
            TcAttribute::Options(all) => all.iter().any(|o| matches!(o, TcOption::Bpf(o) if option(o))),
            _ => false,
        })
    };
    let other_chain = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Chain(chain) if *chain != 0);
    filter.header.info as u16 == (libc::ETH_P_ALL as u16).to_be()
        && !filter.attributes.iter().any(other_chain)
        && has(&|o| matches!(o, TcFilterBpfOption::ProgId(id) if *id == program))
        && has(&|o| matches!(o, TcFilterBpfOption::Flags(flags) if flags.contains(TcBpfFlags::DirectAction)))
}

/// Takes the filters off the devices of the calling thread's namespace. Where there are none, it does nothing.
///
/// # Errors
/// Those of netlink.
pub(crate) fn remove_filters() -> io::Result<()> {
    net::devices()?.iter().try_for_each(|device| remove_filter(&device.name))
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::node::program;
    use std::{
        net::{Ipv4Addr, TcpListener, TcpStream},
        process::Command,
        time::Duration,
    };

    /// In a namespace of its own, as root: can a connection be made over its `lo`?
    pub(in crate::guard) fn connects(netns: &Netns) -> bool {
        let made = netns.run(|| {
            let l = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            TcpStream::connect_timeout(&l.local_addr()?, Duration::from_millis(300))
        });
        made.expect("namespace").is_ok()
    }

    pub(in crate::guard) fn tc(netns: &Netns, words: &str) -> String {
        let out = netns.run(|| Command::new("tc").args(words.split(' ')).output()).expect("namespace").expect("tc");
        assert!(out.status.success(), "tc {words}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub(in crate::guard) fn object() -> aya::Ebpf {
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
