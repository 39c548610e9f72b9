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

mod filter;

pub(crate) use filter::{NAME, by_filter, remove_filter, remove_filters};

use crate::{
    Error,
    net::{Device, in_netns},
    node::{duplicate, program, replace},
    sys,
};
use aya::programs::{
    ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
    links::{FdLink, LinkOrder},
    tc::TcAttachOptions,
};
use filter::{hold_by_filter, is_filtered, program_pin};
use karst_rt::netns::Netns;
use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// How the names of the links' pins begin.
pub(crate) const PINS: &str = "guard-";
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

fn refused(on: &str) -> impl FnOnce(ProgramError) -> Error {
    Error::kernel(format!("cannot load {NAME} or attach it to {on}"), "tcx or clsact", "4.5")
}

#[cfg(test)]
mod tests {
    use super::{
        filter::tests::{connects, object, tc},
        *,
    };
    use aya::sys::SyscallError;

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
}
