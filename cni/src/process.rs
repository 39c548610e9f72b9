//! The network namespace of a pod that runs, found by its processes' cgroups: each names the pod's uid.

use karst_rt::{netns::Netns, process::proc_root};
use std::{fs, io};

/// Opens the namespace of the pod with this uid; none if no process of it runs (or all share the node's namespace).
///
/// # Errors
/// Those of opening the namespace of a process that was found (CAP_SYS_PTRACE is needed).
pub fn netns(uid: &str) -> io::Result<Option<Netns>> {
    let proc = proc_root();
    let own = Netns::current()?.id()?;
    // cgroupfs driver: .../pod<uid>/...; systemd driver: ...-pod<uid with underscores>.slice/...
    let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    for e in fs::read_dir(proc)?.flatten() {
        let pid = e.file_name();
        if !pid.to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // A process that ends meanwhile has no files any more.
        let Ok(groups) = fs::read_to_string(e.path().join("cgroup")) else { continue };
        if !names.iter().any(|n| groups.contains(n.as_str())) {
            continue;
        }
        match Netns::open(e.path().join("ns/net")) {
            Ok(n) if n.id()? != own => return Ok(Some(n)),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(e),
            _ => {}
        }
    }
    Ok(None)
}
