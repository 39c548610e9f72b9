//! Programs and signals.

use super::wait::wait_for;
use anyhow::{Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The path of one of our binaries.
pub fn bin(name: &str) -> PathBuf {
    let target = std::env::var_os("KARST_BIN_DIR").map(PathBuf::from);
    // Beside this program; tests are one level down, in deps.
    let own = || {
        let dir = std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_path_buf)).unwrap_or_default();
        if dir.ends_with("deps") { dir.join("..") } else { dir }
    };
    let p = target.unwrap_or_else(own).join(name);
    p.canonicalize().unwrap_or(p)
}

/// Builds the statically linked client of `programs/`, once, and makes sure that it is static.
pub fn static_client() -> Result<PathBuf> {
    let dir = bin("static-client");
    let out = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .arg(&dir)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/static_client.rs"))
        .output()?;
    ensure!(out.status.success(), "static client: {}", String::from_utf8_lossy(&out.stderr));
    let elf = fs::read(&dir)?;
    ensure!(!elf.windows(9).any(|w| w == b"/ld-linux"), "the client is not statically linked");
    Ok(dir)
}

/// A program in a network namespace.
pub(super) fn in_netns(ns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut c = Command::new("nsenter");
    c.arg(format!("--net=/run/netns/{ns}")).arg("--").arg(program);
    c
}

#[allow(unsafe_code, reason = "kill(2) and geteuid(2)")]
/// Sends a signal to a process that the caller started.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: a child of ours that has not been waited for.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Stops a process of the test's own and waits until each of its threads stands: kill(2) returns before that, and a thread that
/// still runs may take another connection from a listener.
pub fn stop(pid: u32) {
    kill(pid, libc::SIGSTOP);
    wait_for("all threads stopped", Duration::from_secs(5), || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let stopped = |t: fs::DirEntry| {
            let stat = fs::read_to_string(t.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
        };
        tasks.flatten().all(stopped).then_some(())
    });
}
