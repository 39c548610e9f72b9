//! What of this kernel Karst needs, and whether it is here: found out by doing it, never by a version number (distributions
//! backport much). Programs are loaded, and attached in a network namespace and a cgroup of its own that are gone afterwards;
//! nothing of what runs is touched. `karst-cni check` prints the rows.

use crate::{
    guard, net,
    node::program,
    sys::{self, is_bpffs, is_cgroup2},
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapType, SockMap},
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError, ProgramType, SchedClassifier, SkLookup, SockOps, tc::TcError,
    },
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use karst_ebpf_common::slot;
use karst_rt::{netns::Netns, process::proc_root};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use std::{
    error::Error as StdError,
    fs::{self, File},
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is here.
    Here,
    /// It is not, and why that is known.
    Missing(String),
    /// It could not be found out, and why.
    Unknown(String),
}

/// What becomes of Karst without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing works.
    Required,
    /// Something else is done, or nothing is lost.
    Fallback(&'static str),
}

/// Why no program can be attached to a cgroup here.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup2, and why.
    #[error("{0}")]
    NoRoot(String),
    /// None can be made below its root.
    #[error("cannot create {dir}: {why}")]
    Create {
        /// The one that was to be.
        dir: PathBuf,
        /// The kernel's words.
        why: String,
    },
}

/// One thing that a kernel may have.
#[derive(Clone, Debug)]
pub struct Row {
    /// The thing.
    pub feature: &'static str,
    /// What Karst does with it.
    pub purpose: &'static str,
    /// The first Linux that has it (a distribution's may be older).
    pub since: &'static str,
    /// What becomes of Karst without it.
    pub need: Need,
    /// Is it here?
    pub found: Found,
}

impl Row {
    /// Is this what keeps Karst from working here? What could not be found out counts as missing.
    pub fn is_lacking(&self) -> bool {
        self.need == Need::Required && self.found != Found::Here
    }
}

/// Calls that programs of a type may make or not: feature, purpose, since, type, call.
const HELPERS: [(&str, &str, &str, ProgramType, BpfHelper); 7] = {
    use ProgramType::{CgroupSockAddr as Connect, SchedClassifier as Tc, SockOps};
    const COOKIE: BpfHelper = BpfHelper::BPF_FUNC_get_netns_cookie;
    const STORAGE: BpfHelper = BpfHelper::BPF_FUNC_sk_storage_get;
    const CGROUP: BpfHelper = BpfHelper::BPF_FUNC_get_current_cgroup_id;
    [
        ("cgroup/connect: setsockopt", "marking of connections", "5.8", Connect, BpfHelper::BPF_FUNC_setsockopt),
        ("cgroup/connect: netns cookie", "telling pods apart", "5.7", Connect, COOKIE),
        ("cgroup/connect: socket storage", "ztunnel's sockets are exempt", "5.3", Connect, STORAGE),
        ("cgroup/connect: cgroup of the process", "telling the kubelet's probes", "5.7", Connect, CGROUP),
        ("sock_ops: netns cookie", "the kubelet's probes", "5.15", SockOps, COOKIE),
        ("sock_ops: socket storage", "ztunnel's own connections", "5.3", SockOps, STORAGE),
        ("tc: socket storage", "ztunnel's packets pass the guard", "5.2", Tc, STORAGE),
    ]
};

/// Looks at everything. `dir` is to be on a bpffs (it need not be there yet); `cgroup` the root of cgroup2, or why there is none.
pub fn rows(dir: &Path, cgroup: Result<&Path, CgroupError>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |feature, purpose, since, need, found| rows.push(Row { feature, purpose, since, need, found });
    let required = Need::Required;

    row("cgroup2", "place of the connect hooks", "4.5", required, cgroup2(&cgroup));
    row("bpffs", "redirection that outlives the agent", "4.4", required, bpffs(dir));
    let btf = "nothing today; it lets tools show our maps";
    row("BTF of the kernel", "names in bpftool", "5.2", Need::Fallback(btf), path("/sys/kernel/btf/vmlinux"));
    row("socket storage", "ztunnel's sockets are exempt", "5.2", required, map(MapType::SkStorage));
    for (feature, purpose, since, kind, call) in HELPERS {
        row(feature, purpose, since, required, helper(kind, call));
    }
    row("sk_lookup", "steering to the listeners", "5.9", required, small(SK_LOOKUP, &[ONE, EXIT]));
    row("sk_lookup: ingress_ifindex", "telling in from out", "5.17", required, small(SK_LOOKUP, &[INGRESS, ONE, EXIT]));
    let netns = match scratch() {
        Ok(n) => n,
        Err(e) => {
            row("network namespaces", "trying the rest", "3.0", required, judge_io(Err(e)));
            return rows;
        }
    };
    row("SO_NETNS_COOKIE", "telling pods apart", "5.14", required, judge_io(netns.cookie().map(drop)));
    let v6 = proc_root().join("sys/net/ipv6").is_dir();
    row(
        "IPv6",
        "pods with IPv6 addresses",
        "3.0",
        Need::Fallback("pods have IPv4 addresses only"),
        if v6 { Found::Here } else { Found::Missing("off (ipv6.disable=1)".into()) },
    );
    for (name, is_v6) in net::SYSCTLS {
        let found =
            if is_v6 && !v6 { Found::Missing("no IPv6".into()) } else { judge_io(within(&netns, || sysctl(name))) };
        row(name, "answers go back over lo", "3.16", if is_v6 { fallback_v6(v6) } else { required }, found);
    }
    let (four, six) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    row(
        "policy routing by mark",
        "outbound to lo",
        "2.6.19",
        required,
        judge_io(within(&netns, || net::setup(&[four]))),
    );
    let found = if v6 { judge_io(within(&netns, || net::setup(&[six]))) } else { Found::Missing("no IPv6".into()) };
    row("policy routing by mark, IPv6", "outbound to lo", "2.6.19", fallback_v6(v6), found);

    programs(&netns, &cgroup, &mut row);
    rows
}

fn fallback_v6(v6: bool) -> Need {
    if v6 { Need::Required } else { Need::Fallback("pods have IPv4 addresses only") }
}

type Push<'a> = &'a mut dyn FnMut(&'static str, &'static str, &'static str, Need, Found);

/// The real programs: does the verifier take them, and can they be attached?
fn programs(netns: &Netns, cgroup: &Result<&Path, CgroupError>, row: Push<'_>) {
    match load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node.o"))) {
        Ok(mut node) => {
            let place = Scratch::new(cgroup);
            let sock_addr = |node: &mut Ebpf, name: &str| {
                try_program(node, name, |p: &mut CgroupSockAddr| {
                    p.load()?;
                    p.attach(place.open()?, CgroupAttachMode::Single).map(drop)
                })
            };
            let found = sock_addr(&mut node, "mark_connect4");
            row("program mark_connect4", "marking of connections", "5.8", Need::Required, found);
            let found = sock_addr(&mut node, "mark_connect6");
            row("program mark_connect6", "marking of connections", "5.8", Need::Required, found);
            let found = try_program(&mut node, "note_probe", |p: &mut SockOps| {
                p.load()?;
                p.attach(place.open()?, CgroupAttachMode::Single).map(drop)
            });
            row("program note_probe", "the kubelet's probes", "5.15", Need::Required, found);
        }
        Err(e) => row("the node's programs", "redirection", "5.15", Need::Required, e),
    }
    let mut pod = match load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.o"))) {
        Ok(pod) => pod,
        Err(e) => return row("a pod's programs", "redirection", "5.17", Need::Required, e),
    };
    let found = listeners(&mut pod, netns);
    row("listening sockets in a sockmap", "steering to the listeners", "5.9", Need::Required, found);
    let found = try_program(&mut pod, "pod_lookup", |p: &mut SkLookup| {
        p.load()?;
        p.attach(netns).map(drop)
    });
    row("program pod_lookup", "steering to the listeners", "5.17", Need::Required, found);
    let found = try_program(&mut pod, guard::NAME, SchedClassifier::load);
    row("program pod_guard", "nothing leaves another way", "5.10", Need::Required, found);
    let found = try_program(&mut pod, guard::NAME, |p: &mut SchedClassifier| {
        in_scratch(netns, || guard::by_tcx(p, "lo").map(drop))
    });
    // One of the two must be here.
    let need = if found == Found::Here { Need::Fallback("tcx is here") } else { Need::Required };
    row("tcx", "place of the guard", "6.6", Need::Fallback("a clsact filter"), found);
    let found = try_program(&mut pod, guard::NAME, |p: &mut SchedClassifier| {
        in_scratch(netns, || guard::by_filter(p, "lo").and_then(|()| Ok(guard::remove_filter("lo")?)))
    });
    row("clsact and cls_bpf", "place of the guard", "4.5", need, found);
}

fn load(object: &[u8]) -> Result<Ebpf, Found> {
    EbpfLoader::new().load(object).map_err(|e| Found::Missing(chain(&e)))
}

fn try_program<P>(bpf: &mut Ebpf, name: &str, attempt: impl FnOnce(&mut P) -> Result<(), ProgramError>) -> Found
where
    for<'a> &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    match program::<P>(bpf, name) {
        Ok(p) => judge(attempt(p)),
        Err(e) => Found::Unknown(e.to_string()),
    }
}

/// Puts a TCP listener and a UDP socket into their slots, as enrolment does.
fn listeners(pod: &mut Ebpf, netns: &Netns) -> Found {
    let mut try_it = || -> Result<(), Box<dyn StdError>> {
        let (tcp, udp) = netns.run(|| {
            io::Result::Ok((TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?))
        })??;
        let mut map: SockMap<_> = pod.map_mut("LISTENERS").ok_or("the object has no map LISTENERS")?.try_into()?;
        map.set(slot::OUTBOUND, &tcp, 0)?;
        Ok(map.set(slot::DNS, &udp, 0)?)
    };
    try_it().map_or_else(|e| Found::Missing(chain(&*e)), |()| Found::Here)
}

/// A cgroup of its own, gone when dropped.
struct Scratch(Result<PathBuf, CgroupError>);

impl Scratch {
    fn new(root: &Result<&Path, CgroupError>) -> Self {
        Self(root.clone().and_then(|root| {
            let dir = root.join(format!("karst-check-{}", std::process::id()));
            match fs::create_dir(&dir) {
                Ok(()) => Ok(dir),
                Err(e) => Err(CgroupError::Create { dir, why: e.to_string() }),
            }
        }))
    }
    fn open(&self) -> io::Result<File> {
        self.0.as_ref().map_err(|e| io::Error::other(e.to_string())).and_then(File::open)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Ok(dir) = &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A network namespace of its own, with `lo` up; gone with its descriptor.
pub(crate) fn scratch() -> io::Result<Netns> {
    let made = std::thread::spawn(|| {
        sys::unshare_netns()?;
        let mut message = LinkMessage::default();
        message.header.index = 1;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        net::request(&Socket::new(NETLINK_ROUTE)?, RouteNetlinkMessage::SetLink(message), 0)?;
        Netns::current()
    });
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that creates a namespace has failed")))
}

fn within<T>(netns: &Netns, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    netns.run(run)?
}

fn in_scratch(netns: &Netns, run: impl FnOnce() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    netns.run(run)?
}

fn sysctl(name: &str) -> io::Result<()> {
    fs::write(proc_root().join("sys/net").join(name), "1")
}

fn cgroup2(root: &Result<&Path, CgroupError>) -> Found {
    match root {
        Ok(p) if is_cgroup2(p) => Found::Here,
        Ok(p) => Found::Missing(format!("{} is not a cgroup2 (set --cgroup)", p.display())),
        Err(e) => Found::Missing(e.to_string()),
    }
}

fn bpffs(dir: &Path) -> Found {
    let there = dir.ancestors().find(|d| d.exists());
    match there {
        Some(d) if is_bpffs(d) => Found::Here,
        _ => Found::Missing(format!("{} is not on one: mount -t bpf bpf /sys/fs/bpf", dir.display())),
    }
}

fn path(at: &str) -> Found {
    if Path::new(at).exists() { Found::Here } else { Found::Missing(format!("no {at}")) }
}

fn map(kind: MapType) -> Found {
    match is_map_supported(kind) {
        Ok(true) => Found::Here,
        Ok(false) => Found::Missing("the kernel does not know the map type".into()),
        Err(e) => Found::Unknown(chain(&e)),
    }
}

fn helper(kind: ProgramType, helper: BpfHelper) -> Found {
    match is_helper_supported(kind, helper) {
        Ok(true) => Found::Here,
        Ok(false) => Found::Missing("the kernel does not let programs of this type call it".into()),
        Err(e) => Found::Unknown(chain(&e)),
    }
}

/// BPF_PROG_TYPE_SK_LOOKUP and its attach type.
const SK_LOOKUP: (u32, u32) = (30, 36);
/// r0 = *(u32 *)(r1 + offsetof(struct bpf_sk_lookup, ingress_ifindex))
const INGRESS: u64 = instruction(0x61, 0x10, 64, 0);
/// r0 = 1
const ONE: u64 = instruction(0xb7, 0, 0, 1);
const EXIT: u64 = instruction(0x95, 0, 0, 0);

/// A struct bpf_insn: opcode, registers (source, destination), offset, constant.
const fn instruction(code: u8, registers: u8, offset: u16, constant: u32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u64) << 16 | (constant as u64) << 32
}

fn small((kind, attach): (u32, u32), instructions: &[u64]) -> Found {
    match judge_io(sys::program_load(kind, attach, instructions)) {
        Found::Missing(why) => Found::Missing(format!("the verifier refuses it: {why}")),
        found => found,
    }
}

fn judge(result: Result<(), ProgramError>) -> Found {
    let Err(e) = result else { return Found::Here };
    let text = match &e {
        ProgramError::LoadError { io_error, verifier_log } => {
            format!("{io_error}: {}", verdict(&verifier_log.to_string()))
        }
        e => chain(e),
    };
    match errno(&e) {
        Some(libc::EPERM) => Found::Unknown(format!("{text} (it takes root)")),
        _ => Found::Missing(text),
    }
}

fn judge_io(result: io::Result<()>) -> Found {
    match result {
        Ok(()) => Found::Here,
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Found::Unknown(format!("{e} (it takes root)")),
        Err(e) => Found::Missing(e.to_string()),
    }
}

fn errno(e: &ProgramError) -> Option<i32> {
    match e {
        ProgramError::LoadError { io_error, .. } | ProgramError::IOError(io_error) => io_error.raw_os_error(),
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        ProgramError::TcError(TcError::NetlinkError(e)) => e.raw_os_error(),
        _ => None,
    }
}

/// The last thing that the verifier said, but for its statistics.
fn verdict(log: &str) -> &str {
    const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
    let said = |l: &&str| !l.is_empty() && STATISTICS.iter().all(|s| !l.starts_with(s));
    log.lines().map(str::trim).rfind(said).unwrap_or("the verifier gave no reason")
}

/// An error with what is behind it, in one line.
fn chain(e: &dyn StdError) -> String {
    let mut text = e.to_string();
    let mut at = e.source();
    while let Some(e) = at {
        let cause = e.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        at = e.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(need: Need, found: Found) -> Row {
        Row { feature: "f", purpose: "p", since: "1", need, found }
    }

    #[test]
    fn what_cannot_be_found_out_counts_as_missing() {
        assert!(!row(Need::Required, Found::Here).is_lacking());
        assert!(row(Need::Required, Found::Missing("no".into())).is_lacking());
        assert!(row(Need::Required, Found::Unknown("who knows".into())).is_lacking());
    }

    #[test]
    fn what_has_a_fallback_is_not_lacking() {
        for found in [Found::Here, Found::Missing("no".into()), Found::Unknown("who knows".into())] {
            assert!(!row(Need::Fallback("something else"), found).is_lacking());
        }
    }

    #[test]
    fn the_verifiers_last_word_is_shown_without_its_statistics() {
        let log = "0: R1=ctx()\n0: (61) r0 = *(u32 *)(r1 +64)\ninvalid bpf_context access off=64 size=4\nprocessed 1 insns\nstack depth 0\n";
        assert_eq!(verdict(log), "invalid bpf_context access off=64 size=4");
        assert_eq!(verdict(""), "the verifier gave no reason");
    }

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        assert_eq!(INGRESS.to_le_bytes(), [0x61, 0x10, 64, 0, 0, 0, 0, 0]);
        assert_eq!(ONE.to_le_bytes(), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
    }
}
