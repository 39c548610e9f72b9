//! The guard on a pod's devices: by tcx where the kernel has it (Linux 6.6), else as a filter of a clsact qdisc.
//!
//! A tcx link is pinned, and only who holds it can take it off. A filter needs no pin: it belongs to its device, outlives the
//! agent, and goes with the device; it is found again by its priority and handle, replaced in place, and taken out by its name.
//! What it cannot do is withstand a process of the pod that has CAP_NET_ADMIN (docs/threat-model.md): what such a process does to it
//! is seen, since its program is pinned beside it, and put right. A name or a priority alone would say nothing of what runs.
//!
//! A link is known by the index of its device, which the kernel tells, and not by its pin's name: a device may be
//! renamed, and another one may have its name by then.
//!
//! What must always hold: a pod is enrolled only if each of its devices that may lead out (`forward`; each device, if it is closed)
//! has the guard in one of the two ways, and only a kernel that has no tcx leads to the second. Proven by `tests/programs.rs`, on
//! old kernels by `cargo xtask kernels`.

use crate::{
    Error,
    net::{self, Device, in_netns},
    node::{duplicate, program, replace},
    sys,
};
use aya::programs::{
    ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
    links::{FdLink, LinkOrder},
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
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// The program's name, and so the filter's.
pub(crate) const NAME: &str = "pod_guard";
/// How the names of the links' pins begin.
pub(crate) const PINS: &str = "guard-";
/// How the names of the pins of filters' programs begin; the device's index follows.
const PROGRAMS: &str = "filter-";
/// Before all other filters.
const PRIORITY: u16 = 1;
const FILTER: u16 = 0x539;
const HANDLE: TcHandle = TcHandle::new(0, FILTER);
/// Where filters of a clsact qdisc are asked for at the egress (`TC_H_MIN_EGRESS`, linux/pkt_sched.h).
const EGRESS: Qdisc = Qdisc { major: 0xffff, minor: 0xfff3 };

/// What came of guarding devices, each by itself.
pub type Guarding = Vec<(Device, Result<(), Error>)>;

/// Puts the guard on these devices of the pod, or replaces it there. Each by itself: one that cannot be guarded is in
/// nobody's way.
/// A device that is gone, or has another name, by the time is left out.
pub(crate) fn attach(bpf: &mut aya::Ebpf, netns: &Netns, dir: &Path, devices: Vec<Device>) -> Result<Guarding, Error> {
    let guard: &mut SchedClassifier = program(bpf, NAME)?;
    guard.load().map_err(refused(NAME))?;
    let is_there = |d: &Device| Ok::<_, Error>(in_netns(netns, || sys::ifindex(&d.name))?.ok() == Some(d.index));
    let mut out = Vec::new();
    for device in devices {
        if !is_there(&device)? {
            continue;
        }
        let done = on_device(guard, netns, dir, &device);
        // Attached by name: only if that is still the device's, the device is guarded.
        if is_there(&device)? {
            out.push((device, done));
        }
    }
    Ok(out)
}

fn on_device(guard: &mut SchedClassifier, netns: &Netns, dir: &Path, device: &Device) -> Result<(), Error> {
    let pins = pins(dir)?;
    let mut there = pins.iter().filter(|(_, index)| *index == device.index);
    if let Some((pin, _)) = there.next() {
        let fd = duplicate(guard.fd().map_err(refused(NAME))?)?;
        replace(pin, fd.as_fd())?;
        // An earlier agent's, from when the device had another name. The kernel takes a program once for a device.
        there.for_each(|(pin, _)| remove(pin));
        return Ok(());
    }
    let pin = place(dir, device, &pins);
    // A link whose device is gone is in nobody's way but its successor's.
    if pins.iter().any(|(pinned, _)| *pinned == pin) {
        fs::remove_file(&pin).map_err(Error::io("cannot remove", &pin))?;
    }
    let name = &device.name;
    match in_netns(netns, || by_tcx(guard, name))? {
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
            hold_by_filter(guard, netns, dir, device)
        }
        Err(e) => Err(refused(name)(e)),
    }
}

/// The way of kernels without tcx: a filter, and beside it, pinned, the program that it has to run.
fn hold_by_filter(guard: &mut SchedClassifier, netns: &Netns, dir: &Path, device: &Device) -> Result<(), Error> {
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

fn program_pin(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("{PROGRAMS}{index}"))
}

/// The pod's pinned links, each with the index of its device; 0: that is gone from the pod.
fn pins(dir: &Path) -> Result<Vec<(PathBuf, u32)>, Error> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("cannot read", dir))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PINS) {
            let pin = entry.path();
            let link = sys::obj_get(&pin).map_err(Error::io("cannot open the pinned link", &pin))?;
            let index = sys::link_device(link.as_fd()).map_err(Error::io("cannot read the link", &pin))?;
            out.push((pin, index));
        }
    }
    Ok(out)
}

/// Where a device's link is pinned: by its name, unless the link of a device that had the name before, and lives, is
/// there.
fn place(dir: &Path, device: &Device, pins: &[(PathBuf, u32)]) -> PathBuf {
    let usual = dir.join(format!("{PINS}{}", device.name));
    if pins.iter().any(|(pin, index)| *pin == usual && *index != 0) {
        // No device has a colon in its name.
        return dir.join(format!("{PINS}{}:{}", device.name, device.index));
    }
    usual
}

/// Those of these devices that have lost their guard: made anew, or moved away and back, under the same name and index.
/// Or, of the kernels that hold it by a filter, those of which somebody in the pod took it off.
pub(crate) fn lost(netns: &Netns, dir: &Path, devices: &[Device]) -> Result<Vec<Device>, Error> {
    let pins = pins(dir)?;
    if pins.is_empty() {
        // What a process of the pod has put beside it, so that nothing can be read, is no reason to believe that it is there.
        let is_gone = |device: &&Device| {
            let program = ProgramInfo::from_pin(program_pin(dir, device.index));
            !program.is_ok_and(|program| is_filtered(device.index, program.id()).unwrap_or(false))
        };
        return in_netns(netns, || devices.iter().filter(is_gone).cloned().collect());
    }
    Ok(devices.iter().filter(|d| is_lost(dir, d, &pins)).cloned().collect())
}

/// Is our filter at a device of the calling thread's namespace, with this program, and does nothing stand beside it that may decide
/// before it? A device that is gone has none.
fn is_filtered(index: u32, program: u32) -> io::Result<bool> {
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

fn is_lost(dir: &Path, device: &Device, pins: &[(PathBuf, u32)]) -> bool {
    let alive = pins.iter().any(|(_, index)| *index == device.index);
    let dead = [format!("{PINS}{}", device.name), format!("{PINS}{}:{}", device.name, device.index)];
    !alive && pins.iter().any(|(pin, index)| *index == 0 && dead.iter().any(|d| *pin == dir.join(d)))
}

/// Attaches to a device of the calling thread's namespace by a link.
pub(crate) fn by_tcx(guard: &mut SchedClassifier, device: &str) -> Result<FdLink, ProgramError> {
    let last = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = guard.attach_with_options(device, TcAttachType::Egress, last)?;
    FdLink::try_from(guard.take_link(id)?).map_err(|e| ProgramError::IOError(io::Error::other(e)))
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

/// The same, alone at its priority: what else is there, by whomever, is taken out if it is in the filter's place or may be before it.
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

/// Adds a clsact qdisc, unless there is one. Another kind in its place is an error: the kernel would take a filter for egress,
/// and put it at the ingress.
fn add_clsact(device: &str) -> io::Result<()> {
    let mut qdisc = TcMessage::with_index(sys::ifindex(device)? as i32);
    qdisc.header.handle = Qdisc { major: 0xffff, minor: 0 };
    qdisc.header.parent = Qdisc { major: 0xffff, minor: 0xfff1 };
    qdisc.attributes = vec![TcAttribute::Kind("clsact".into())];
    // Not exclusive: "change it" is what the kernel does to one that is there, if the kind is the same.
    net::request(&Socket::new(NETLINK_ROUTE)?, RouteNetlinkMessage::NewQueueDiscipline(qdisc), NLM_F_CREATE)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot add a clsact qdisc to {device}: {e}")))
}

/// Takes the guard, in both of its ways, off devices that have turned out to lead nowhere.
pub(crate) fn leave(netns: &Netns, dir: &Path, devices: &[Device]) {
    if devices.is_empty() {
        return;
    }
    let pins = pins(dir).unwrap_or_else(|e| {
        tracing::warn!(error = %e, "devices inside a pod stay guarded");
        Vec::new()
    });
    pins.iter().filter(|(_, index)| devices.iter().any(|d| d.index == *index)).for_each(|(pin, _)| remove(pin));
    for pin in devices.iter().map(|d| program_pin(dir, d.index)).filter(|pin| pin.exists()) {
        if let Err(e) = fs::remove_file(&pin) {
            tracing::debug!(program = %pin.display(), error = %e, "program could not be unpinned");
        }
    }
    let removed = in_netns(netns, || devices.iter().try_for_each(|d| remove_filter(&d.name)));
    if let Err(e) = removed.and_then(|r| r.map_err(Error::io("cannot remove the guard's filters of", dir))) {
        tracing::warn!(error = %e, "devices inside a pod stay guarded");
    }
}

/// Takes a link off its device, and its pin away.
fn remove(pin: &Path) {
    if let Err(e) = sys::obj_get(pin).and_then(|l| sys::link_detach(l.as_fd())) {
        tracing::debug!(link = %pin.display(), error = %e, "link could not be detached");
    }
    if let Err(e) = fs::remove_file(pin) {
        tracing::debug!(link = %pin.display(), error = %e, "link could not be removed");
    }
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
    fn a_link_is_known_by_its_device_and_not_by_its_pins_name() {
        let dir = Path::new("/pods/u");
        let device = |index, name: &str| Device { index, name: name.into() };
        let pins = |all: &[(&str, u32)]| all.iter().map(|(p, i)| (dir.join(p), *i)).collect::<Vec<_>>();
        for (what, pinned, device, pin, is_lost_now) in [
            ("a new one", &[] as &[(&str, u32)], device(5, "eth1"), "guard-eth1", false),
            ("another one's guard", &[("guard-eth0", 2)], device(5, "eth1"), "guard-eth1", false),
            ("made anew", &[("guard-eth1", 0)], device(6, "eth1"), "guard-eth1", true),
            ("made anew with its old index", &[("guard-eth1", 0)], device(5, "eth1"), "guard-eth1", true),
            ("renamed", &[("guard-eth0", 5)], device(5, "eth1"), "guard-eth1", false),
            (
                "renamed, and the old name's is gone",
                &[("guard-eth1", 0), ("guard-eth0", 5)],
                device(5, "eth1"),
                "guard-eth1",
                false,
            ),
            ("the name of one that was renamed", &[("guard-eth1", 5)], device(8, "eth1"), "guard-eth1:8", false),
            ("the same, lost", &[("guard-eth1", 5), ("guard-eth1:8", 0)], device(8, "eth1"), "guard-eth1:8", true),
        ] {
            let pins = pins(pinned);
            assert_eq!(place(dir, &device, &pins), dir.join(pin), "{what}");
            assert_eq!(is_lost(dir, &device, &pins), is_lost_now, "{what}");
        }
        assert!(!is_lost(dir, &device(5, "eth1"), &pins(&[("guard-eth1", 5)])));
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

    /// Where pins of a pod without tcx are; gone with it.
    struct Pins(PathBuf);
    impl Drop for Pins {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Whatever a process of the pod with CAP_NET_ADMIN does to the filter is seen, and put right. (As on a kernel without tcx: there
    /// are no links.)
    #[test]
    fn a_filter_that_is_not_ours_alone_is_seen_and_put_right() {
        let pins = Pins(Path::new("/sys/fs/bpf").join(format!("karst-guard-test-{}", std::process::id())));
        fs::create_dir(&pins.0).expect("a bpffs (as root)");
        let netns = crate::check::scratch().expect("a network namespace (as root)");
        let lo = Device { index: 1, name: "lo".into() };
        let lost = || lost(&netns, &pins.0, std::slice::from_ref(&lo)).expect("filters can be read").len();
        let hold = || {
            let mut bpf = object();
            let guard = program::<SchedClassifier>(&mut bpf, NAME).expect("guard");
            hold_by_filter(guard, &netns, &pins.0, &lo).expect("held");
        };
        // Programs of devices that are gone do not stay.
        object().program_mut(NAME).expect("guard").pin(program_pin(&pins.0, 7)).expect("pinned");
        assert_eq!(lost(), 1, "there is none yet");
        hold();
        assert!(lost() == 0 && !connects(&netns) && !program_pin(&pins.0, 7).exists());
        // Another program (the same one, loaded once more, as it may decide by other maps) with ours' priority and handle; before
        // ours; of one protocol in its place.
        let another = pins.0.join("another");
        let mut bpf = object();
        let other = program::<SchedClassifier>(&mut bpf, NAME).expect("guard");
        other.pin(&another).expect("pinned");
        let bpf = |words: &str| format!("filter {words} bpf direct-action object-pinned {}", another.display());
        let egress = "dev lo egress protocol all prio 1";
        for (what, all) in [
            ("gone", vec!["filter del dev lo egress".to_string()]),
            ("replaced in place", vec![bpf(&format!("replace {egress} handle 0x539"))]),
            ("before it", vec![bpf(&format!("add {egress} handle 0x1"))]),
            (
                "of another protocol",
                vec!["filter del dev lo egress".into(), bpf("add dev lo egress protocol ip prio 1")],
            ),
            ("the qdisc", vec!["qdisc del dev lo clsact".into()]),
        ] {
            all.iter().for_each(|words| drop(tc(&netns, words)));
            assert_eq!(lost(), 1, "{what}");
            hold();
            assert!(lost() == 0 && !connects(&netns), "{what}");
        }
        // What stands behind it is nobody's business.
        tc(&netns, &bpf("add dev lo egress protocol all prio 9"));
        assert_eq!(lost(), 0);
        tc(&netns, "filter del dev lo egress prio 9");
        leave(&netns, &pins.0, std::slice::from_ref(&lo));
        assert!(connects(&netns) && !program_pin(&pins.0, 1).exists());
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
