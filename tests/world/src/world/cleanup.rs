//! What worlds leave when they end: nothing, and if they were killed, no more than the next one finds.

use super::{World, disk, process::kill};
use crate::net::ip;
use std::{fs, path::Path};

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the world's logs, last lines of each ({}):", self.dir.join("logs").display());
            for f in fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(f.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}", f.file_name().to_string_lossy());
                for l in &lines[lines.len().saturating_sub(15)..] {
                    eprintln!("{l}");
                }
            }
        }
        for n in &mut self.nodes {
            Self::end(&mut n.agent, libc::SIGKILL);
            Self::end(&mut n.ztunnel, libc::SIGKILL);
        }
        for (_, c) in std::mem::take(&mut self.waypoints) {
            Self::end(&mut Some(c), libc::SIGKILL);
        }
        Self::end(&mut self.controller, libc::SIGKILL);
        for i in 0..self.nodes.len() {
            let _ = fs::remove_dir_all(self.bpf_dir(i));
        }
        remove_namespaces(&self.prefix);
        if !std::thread::panicking() {
            disk::unmount(&self.dir);
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

pub(super) fn remove_namespaces(prefix: &str) {
    for f in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = f.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{prefix}-")) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Removes what worlds of processes that are gone have left: their processes, namespaces, pins and directories.
pub(super) fn sweep() {
    for f in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = f.file_name().to_string_lossy().into_owned();
        let Some(prefix) = name.strip_prefix("karst-world-") else { continue };
        let Some(pid) = prefix.strip_prefix("kw").and_then(|p| p.split('x').next()) else { continue };
        if Path::new("/proc").join(pid).exists() || f.path().join("keep").exists() {
            continue;
        }
        for p in fs::read_to_string(f.path().join("pids")).unwrap_or_default().lines() {
            let exe = fs::read_link(format!("/proc/{p}/exe")).unwrap_or_default();
            let ours = ["ztunnel", "karst-cni", "karst-controller", "karst-waypoint"].iter().any(|b| exe.ends_with(b));
            if let (true, Ok(p)) = (ours, p.parse()) {
                kill(p, libc::SIGKILL);
            }
        }
        remove_namespaces(prefix);
        for d in fs::read_dir("/sys/fs/bpf/karst-test").into_iter().flatten().flatten() {
            if d.file_name().to_string_lossy().starts_with(&format!("{prefix}-")) {
                let _ = fs::remove_dir_all(d.path());
            }
        }
        disk::unmount(&f.path());
        let _ = fs::remove_dir_all(f.path());
    }
}
