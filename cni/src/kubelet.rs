//! Who on the node may probe its pods. The kubelet's probes come from the node's own network, have no identity, and must pass
//! STRICT and every policy; other processes of that network (pods with `hostNetwork`, whatever runs on the node) must not. They are
//! told apart by cgroup: the kubelet runs in one of its own on every usual node. Proven by tests/world (agent).

use anyhow::Context;
use karst_ebpf::Probers;
use karst_rt::process::{proc_root, with_node_cgroups};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// Where the kubelet usually runs, below the root of cgroup2: systemd; k3s, RKE2; Talos; kind.
const USUAL: [&str; 9] = [
    "system.slice/kubelet.service",
    "podruntime.slice/kubelet.service",
    "runtime.slice/kubelet.service",
    "kubelet.slice/kubelet.service",
    "system.slice/k3s.service",
    "system.slice/k3s-agent.service",
    "system.slice/rke2-server.service",
    "system.slice/rke2-agent.service",
    "podruntime/kubelet",
];
/// What the process that is, or holds, a kubelet is called.
const NAMES: [&str; 5] = ["kubelet", "kubelite", "k3s-server", "k3s-agent", "k3s"];
/// A kubelet that restarts gets another cgroup; it is looked for this often. (One look is one stat(2), while nothing changes.)
const LOOK: Duration = Duration::from_secs(1);
/// All processes of a node are looked through at most this often.
const SEARCH: u32 = 10;

/// Whose connections from the node's own network to its pods pass as probes, as the operator says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probes {
    /// The kubelet's, if its cgroup can be found; else everybody's.
    Auto,
    /// Everybody's.
    All,
    /// Nobody's.
    None,
    /// Those of the processes of this cgroup, below the root of cgroup2.
    Cgroup(PathBuf),
}

/// A value of `--probes` that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?}: use auto, all, none, or the path of a cgroup below the root of cgroup2, such as /system.slice/kubelet.service"
)]
pub struct InvalidProbes(String);

impl FromStr for Probes {
    type Err = InvalidProbes;
    fn from_str(value: &str) -> Result<Self, InvalidProbes> {
        match value {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            _ => match below(value) {
                Some(p) if value.starts_with('/') => Ok(Self::Cgroup(p)),
                _ => Err(InvalidProbes(value.into())),
            },
        }
    }
}

/// A path without its leading `/`; none for the root itself and for what leaves it.
fn below(path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    (plain && !relative.as_os_str().is_empty()).then(|| relative.into())
}

/// The cgroup2 of a process, from its /proc/PID/cgroup, below the root; none if it is the root, or seen from a cgroup namespace that
/// does not have it inside.
fn cgroup2(text: &str) -> Option<PathBuf> {
    below(text.lines().find_map(|l| l.strip_prefix("0::"))?)
}

/// A process, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    name: String,
    root: bool,
    cgroup: Option<PathBuf>,
}

/// Is it the kubelet? Its network is the node's own. A pod can call a process of its own so, but not take it out of its cgroup.
fn is_kubelet(process: &Process) -> bool {
    let of_pod = |c: &Path| c.components().any(|c| c.as_os_str().to_string_lossy().starts_with("kubepods"));
    process.root && NAMES.contains(&process.name.as_str()) && process.cgroup.as_deref().is_some_and(|c| !of_pod(c))
}

/// The name of each process whose network is ours, which is the node's.
fn processes() -> io::Result<Vec<Process>> {
    let id = |path: PathBuf| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let own = id("/proc/thread-self/ns/net".into());
    let mut all = Vec::new();
    for entry in fs::read_dir(proc_root())?.flatten() {
        let process = entry.path();
        // The name first: it sorts out nearly all.
        let Ok(name) = fs::read_to_string(process.join("comm")) else { continue };
        let name = name.trim_end().to_string();
        if !NAMES.contains(&name.as_str()) || own.is_none() || id(process.join("ns/net")) != own {
            continue;
        }
        let Ok(groups) = fs::read_to_string(process.join("cgroup")) else { continue };
        all.push(Process { name, root: fs::metadata(&process).is_ok_and(|m| m.uid() == 0), cgroup: cgroup2(&groups) });
    }
    Ok(all)
}

/// The id of a cgroup in which a process runs; none if there is no such cgroup, or it is empty.
fn id(root: &Path, cgroup: &Path) -> Option<u64> {
    let dir = root.join(cgroup);
    let lives = fs::read_to_string(dir.join("cgroup.events")).ok()?.lines().any(|l| l == "populated 1");
    if lives { fs::metadata(dir).ok().map(|m| m.ino()) } else { None }
}

/// The kubelet's cgroup, with its id.
fn find(root: &Path) -> Option<(PathBuf, u64)> {
    let running = with_node_cgroups(processes).and_then(|p| p).unwrap_or_else(|e| {
        tracing::debug!(error = %e, "cgroup paths are those of this process's own cgroup namespace");
        processes().unwrap_or_default()
    });
    let by_process = running.iter().filter(|p| is_kubelet(p)).filter_map(|p| p.cgroup.clone());
    by_process.chain(USUAL.map(PathBuf::from)).find_map(|c| id(root, &c).map(|i| (c, i)))
}

/// Looks for who may probe, and again whenever that one may have changed.
pub struct Kubelet {
    probes: Probes,
    root: PathBuf,
    /// Where the kubelet is, or was.
    found: Option<(PathBuf, u64)>,
    looks: u32,
}

impl Kubelet {
    /// Looks for the first time. `root` is the root of cgroup2.
    pub fn new(probes: Probes, root: PathBuf) -> (Self, Probers) {
        let mut kubelet = Self { probes, root, found: None, looks: 0 };
        let now = match &kubelet.probes {
            Probes::All => Probers::All,
            Probes::None => Probers::None,
            Probes::Cgroup(c) => {
                kubelet.found = id(&kubelet.root, c).map(|i| (c.clone(), i));
                if kubelet.found.is_none() {
                    let (path, root) = (c.display(), kubelet.root.display());
                    tracing::warn!(
                        "no process runs in cgroup /{path} (--probes; below {root}): until one does, no connection from the node is treated as a probe"
                    );
                }
                kubelet.found.as_ref().map_or(Probers::None, |(_, i)| Probers::Cgroup(*i))
            }
            Probes::Auto => {
                kubelet.found = find(&kubelet.root);
                match &kubelet.found {
                    Some((c, i)) => {
                        tracing::info!(cgroup = %c.display(), "the kubelet's probes are allowed; connections from other processes of the node are subject to policies");
                        Probers::Cgroup(*i)
                    }
                    None => {
                        tracing::warn!(
                            "the kubelet has no cgroup of its own that could be found: connections of every process in the node's network to its pods are treated as probes, exempt from policies; set the kubelet's cgroup with --probes (KARST_PROBES), for example /system.slice/kubelet.service"
                        );
                        Probers::All
                    }
                }
            }
        };
        (kubelet, now)
    }

    /// Who may probe from now on; none: as before. Once found, a kubelet that is away is waited for: nobody takes its place.
    fn look(&mut self) -> Option<Probers> {
        let now = match &self.probes {
            Probes::All | Probes::None => return None,
            Probes::Cgroup(c) => id(&self.root, c).map(|i| (c.clone(), i)),
            Probes::Auto => match &self.found {
                Some((c, i)) if id(&self.root, c) == Some(*i) => return None,
                _ => {
                    self.looks = self.looks.wrapping_add(1);
                    let here = self.found.as_ref().and_then(|(c, _)| id(&self.root, c).map(|i| (c.clone(), i)));
                    here.or_else(|| if self.looks.is_multiple_of(SEARCH) { find(&self.root) } else { None })
                }
            },
        };
        let now = now.filter(|n| self.found.as_ref() != Some(n))?;
        tracing::info!(cgroup = %now.0.display(), "the kubelet was found: its probes are allowed");
        let id = now.1;
        self.found = Some(now);
        Some(Probers::Cgroup(id))
    }
}

/// Follows the kubelet for as long as the agent runs; `set` tells the programs who may probe.
pub async fn look_after(mut kubelet: Kubelet, set: impl Fn(Probers) -> anyhow::Result<()>) {
    if matches!(kubelet.probes, Probes::All | Probes::None) {
        return;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        if let Some(probers) = kubelet.look()
            && let Err(e) = set(probers).context("setting the cgroup of probes")
        {
            tracing::warn!(error = format!("{e:#}"), "the kubelet's probes may be rejected");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_read() {
        let read = |s: &str| s.parse::<Probes>();
        assert_eq!((read("auto"), read("all"), read("none")), (Ok(Probes::Auto), Ok(Probes::All), Ok(Probes::None)));
        assert_eq!(read("/system.slice/kubelet.service"), Ok(Probes::Cgroup("system.slice/kubelet.service".into())));
        for bad in ["", "/", "kubelet", "/a/../b", "/../a"] {
            assert!(read(bad).unwrap_err().to_string().contains("kubelet.service"), "{bad}");
        }
    }

    #[test]
    fn only_a_cgroup_of_its_own_counts() {
        assert_eq!(cgroup2("0::/system.slice/kubelet.service\n"), Some("system.slice/kubelet.service".into()));
        assert_eq!(cgroup2("4:memory:/x\n1:cpu:/y\n0::/n1/kubelet\n"), Some("n1/kubelet".into()), "cgroup1 beside it");
        // At the root is everybody.
        assert_eq!(cgroup2("4:memory:/x\n0::/\n"), None);
        assert_eq!(cgroup2("4:memory:/x\n"), None);
        assert_eq!(cgroup2("0::/../../system.slice/kubelet.service\n"), None, "relative to somebody's own");
    }

    #[test]
    fn a_pods_process_of_that_name_is_not_the_kubelet() {
        let p = |name: &str, root: bool, cgroup: Option<&str>| {
            is_kubelet(&Process { name: name.into(), root, cgroup: cgroup.map(PathBuf::from) })
        };
        assert!(p("kubelet", true, Some("system.slice/kubelet.service")));
        assert!(p("k3s-server", true, Some("system.slice/k3s.service")));
        assert!(!p("kubelet", true, Some("kubepods.slice/kubepods-pod1.slice/cri-containerd-2.scope")));
        assert!(!p("kubelet", true, Some("kubelet/kubepods/besteffort/pod1/2")), "kind");
        assert!(!p("kubelet", false, Some("user.slice/x")));
        assert!(!p("kubelet", true, None));
        assert!(!p("kubectl", true, Some("system.slice/kubelet.service")));
    }

    #[test]
    fn a_kubelet_that_restarts_is_followed_and_nobody_takes_its_place() {
        let root = std::env::temp_dir().join(format!("karst-kubelet-{}", std::process::id()));
        let dir = root.join("x/kubelet");
        let start = |text: &str| {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.events"), text).unwrap();
        };
        let (mut k, first) = Kubelet::new(Probes::Cgroup("x/kubelet".into()), root.clone());
        assert_eq!((first, k.look()), (Probers::None, None), "not there yet");
        start("populated 0\nfrozen 0\n");
        assert_eq!(k.look(), None, "empty");
        start("populated 1\nfrozen 0\n");
        let ino = |p: &Path| fs::metadata(p).unwrap().ino();
        assert_eq!(k.look(), Some(Probers::Cgroup(ino(&dir))));
        assert_eq!(k.look(), None);
        // The directory that takes its place has another number: the old one still exists while it is made.
        fs::rename(&dir, root.join("x/old")).unwrap();
        assert_eq!(k.look(), None, "away");
        start("populated 1\n");
        assert_eq!(k.look(), Some(Probers::Cgroup(ino(&dir))));
        fs::remove_dir_all(root).unwrap();
    }
}
