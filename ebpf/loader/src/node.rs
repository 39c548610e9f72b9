//! The node's object: connect hooks and the probe exemption, at the root of cgroup2.

use crate::{Error, sys};
use aya::{
    EbpfLoader,
    maps::{Array, HashMap, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramFd, SockOps, links::FdLink},
};
use karst_ebpf_common::{Addr, LAYOUT, prober};
use karst_rt::netns::Netns;
use std::{
    fs::{self, File},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Whose connections from the node's own network to its pods are left alone, as probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probers {
    /// Nobody's.
    None,
    /// Everybody's.
    All,
    /// Those of the processes of a cgroup, by its id (the inode number of its directory).
    Cgroup(u64),
}

impl Probers {
    fn value(self) -> u64 {
        match self {
            Probers::None => prober::NONE,
            Probers::All => prober::ALL,
            Probers::Cgroup(id) => id,
        }
    }
}

/// The node's programs and maps.
pub struct Node {
    dir: PathBuf,
    enrolled: HashMap<MapData, u64, u64>,
    pod_ips: HashMap<MapData, Addr, u32>,
    exempt: OwnedFd,
    probe_cgroup: Array<MapData, u64>,
    /// The node's own network namespace.
    host: Netns,
}

impl Node {
    /// Loads the node's programs, or replaces those that an earlier agent left, in place. `dir` must be on a bpffs and
    /// belongs to this node alone; `cgroup` is the root of cgroup2; `host` the node's own network namespace; see
    /// [`Node::set_probers`].
    ///
    /// # Errors
    /// With the missing kernel feature, if that is why.
    pub fn open(dir: &Path, cgroup: &Path, host: &Netns, probers: Probers) -> Result<Self, Error> {
        let maps = dir.join(format!("maps-v{LAYOUT}"));
        for dir in [&maps, &dir.join("links"), &dir.join("pods")] {
            fs::create_dir_all(dir).map_err(Error::io("cannot create", dir))?;
        }
        if !sys::is_bpffs(dir) {
            return Err(Error::NoBpffs(dir.into()));
        }
        let cookie = host.cookie().map_err(Error::kernel("cannot read the netns cookie", "SO_NETNS_COOKIE", "5.14"))?;
        let mut bpf = EbpfLoader::new()
            .map_pin_path("ENROLLED", maps.join("ENROLLED"))
            .map_pin_path("POD_IPS", maps.join("POD_IPS"))
            .map_pin_path("PROBES", maps.join("PROBES"))
            .map_pin_path("OWN_FLOWS", maps.join("OWN_FLOWS"))
            .map_pin_path("EXEMPT", maps.join("EXEMPT"))
            .map_pin_path("PROBE_CGROUP", maps.join("PROBE_CGROUP"))
            .map_pin_path("PROBE_SOCKETS", maps.join("PROBE_SOCKETS"))
            .override_global("HOST_NETNS", &cookie, true)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node.o")))
            .map_err(Error::kernel(
                "cannot load the node's eBPF object",
                "BPF socket storage in cgroup programs",
                "5.9",
            ))?;
        let map = |bpf: &mut aya::Ebpf, name: &str| {
            bpf.take_map(name).ok_or_else(|| Error::Pod(format!("the node's object has no map {name}")))
        };
        let bad = |e: aya::maps::MapError| Error::Pod(format!("the node's maps: {e}"));
        // Before anything is attached that asks for it.
        let mut probe_cgroup: Array<MapData, u64> = map(&mut bpf, "PROBE_CGROUP")?.try_into().map_err(bad)?;
        set_probers(&mut probe_cgroup, probers)?;
        let root = File::open(cgroup).map_err(Error::io("cannot open the cgroup2 root (set --cgroup)", cgroup))?;
        for (name, feature, since) in [
            ("mark_connect4", "cgroup/connect4 with setsockopt", "5.8"),
            ("mark_connect6", "cgroup/connect6 with setsockopt", "5.8"),
        ] {
            let err = || {
                Error::kernel::<aya::programs::ProgramError>(
                    format!("cannot load or attach {name} at {}", cgroup.display()),
                    feature,
                    since,
                )
            };
            let hook: &mut CgroupSockAddr = program(&mut bpf, name)?;
            hook.load().map_err(err())?;
            let fd = duplicate(hook.fd().map_err(err())?)?;
            attach_or_replace(&dir.join("links").join(name), fd.as_fd(), || {
                let id = hook.attach(&root, CgroupAttachMode::Single).map_err(err())?;
                FdLink::try_from(hook.take_link(id).map_err(err())?).map_err(links(name))
            })?;
        }
        let err = || {
            Error::kernel::<aya::programs::ProgramError>(
                "cannot load or attach note_probe",
                "netns cookie in sock_ops",
                "5.15",
            )
        };
        let hook: &mut SockOps = program(&mut bpf, "note_probe")?;
        hook.load().map_err(err())?;
        let fd = duplicate(hook.fd().map_err(err())?)?;
        attach_or_replace(&dir.join("links/note_probe"), fd.as_fd(), || {
            let id = hook.attach(&root, CgroupAttachMode::Single).map_err(err())?;
            FdLink::try_from(hook.take_link(id).map_err(err())?).map_err(links("note_probe"))
        })?;
        Ok(Self {
            enrolled: map(&mut bpf, "ENROLLED")?.try_into().map_err(bad)?,
            pod_ips: map(&mut bpf, "POD_IPS")?.try_into().map_err(bad)?,
            exempt: sys::obj_get(&maps.join("EXEMPT")).map_err(Error::io("cannot open", maps.join("EXEMPT")))?,
            probe_cgroup,
            host: host.clone(),
            dir: dir.into(),
        })
    }

    /// The node's own network namespace.
    pub(crate) fn host(&self) -> &Netns {
        &self.host
    }

    /// Says from now on whose connections to the node's pods pass as probes, by no policy judged.
    ///
    /// # Errors
    /// Those of writing to a map.
    pub fn set_probers(&mut self, probers: Probers) -> Result<(), Error> {
        set_probers(&mut self.probe_cgroup, probers)
    }

    /// The map whose descriptor lets its holder exempt sockets from redirection.
    pub fn exempt_map(&self) -> &OwnedFd {
        &self.exempt
    }
    /// The node's pin directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// The pods that have pinned links; see [`pinned_pods`].
    ///
    /// # Errors
    /// Those of reading the directory.
    pub fn pinned_pods(&self) -> Result<Vec<String>, Error> {
        pinned_pods(&self.dir)
    }
    /// Switches redirection of new outbound connections on: the last step of enrolment.
    pub(crate) fn set_enrolled(&mut self, cookie: u64, on: bool) -> Result<(), Error> {
        let full = Error::kernel(
            "cannot enrol the pod: the map of enrolled pods is full (4096 on a node)",
            "hash maps",
            "3.19",
        );
        if !on {
            let _ = self.enrolled.remove(&cookie);
            return Ok(());
        }
        if self.enrolled.get(&cookie, 0).is_ok() {
            return Ok(());
        }
        self.enrolled.insert(cookie, 0, 0).map_err(full)
    }
    /// How many outbound connections the connect hooks have marked for this namespace.
    pub fn marked(&self, cookie: u64) -> u64 {
        self.enrolled.get(&cookie, 0).unwrap_or(0)
    }
    pub(crate) fn set_ip(&mut self, ip: IpAddr, on: bool) -> Result<(), Error> {
        let address = key(ip);
        if on {
            self.pod_ips.insert(address, 1, 0).map_err(Error::kernel(
                "cannot note the pod's address: the map is full",
                "hash maps",
                "3.19",
            ))
        } else {
            let _ = self.pod_ips.remove(&address);
            Ok(())
        }
    }
    /// Removes every link and map of this node: afterwards nothing is redirected.
    ///
    /// # Errors
    /// Those of removing files.
    pub fn remove_all(dir: &Path) -> Result<(), Error> {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("cannot remove", dir)(e)),
            _ => Ok(()),
        }
    }
}

fn set_probers(map: &mut Array<MapData, u64>, probers: Probers) -> Result<(), Error> {
    map.set(0, probers.value(), 0).map_err(Error::kernel("cannot set the cgroup of probes", "array maps", "3.19"))
}

/// The pods that have pinned links under a node's directory, by the uid under which they were enrolled. Changes nothing.
///
/// # Errors
/// Those of reading the directory.
pub fn pinned_pods(dir: &Path) -> Result<Vec<String>, Error> {
    let dir = dir.join("pods");
    let list = fs::read_dir(&dir).map_err(Error::io("cannot list", &dir))?;
    Ok(list.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
}

pub(crate) fn program<'a, P>(bpf: &'a mut aya::Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = bpf.program_mut(name).ok_or_else(|| Error::Pod(format!("the eBPF object has no program {name}")))?;
    program.try_into().map_err(|e| Error::Pod(format!("{name}: {e}")))
}

/// A descriptor of its own, so that the program can be attached while it is held.
pub(crate) fn duplicate(program: &ProgramFd) -> Result<ProgramFd, Error> {
    program.try_clone().map_err(|e| Error::Pod(format!("cannot duplicate the descriptor of a program: {e}")))
}

/// Puts a program into force: in place of that of the link pinned here, or by a new link.
pub(crate) fn attach_or_replace(
    pin: &Path,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<FdLink, Error>,
) -> Result<(), Error> {
    if !pin.exists() {
        let pinned = attach()?.pin(pin);
        return pinned.map(drop).map_err(Error::kernel(format!("cannot pin {}", pin.display()), "bpffs", "5.7"));
    }
    replace(pin, program)
}

/// Puts a program in place of that of the link pinned here.
pub(crate) fn replace(pin: &Path, program: BorrowedFd<'_>) -> Result<(), Error> {
    let link = sys::obj_get(pin).map_err(Error::io("cannot open the pinned link", pin))?;
    sys::link_update(link.as_fd(), program).map_err(Error::kernel(
        format!("cannot replace the program of {}", pin.display()),
        "BPF_LINK_UPDATE",
        "5.7",
    ))
}

fn links<E: std::error::Error + Send + Sync + 'static>(name: &str) -> impl FnOnce(E) -> Error {
    Error::kernel(name, "BPF links for cgroups", "5.7")
}

/// An address as the programs compare it.
pub(crate) fn key(ip: IpAddr) -> Addr {
    let octets = match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
    .octets();
    let (words, _) = octets.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_ne_bytes(words[i]))
}
