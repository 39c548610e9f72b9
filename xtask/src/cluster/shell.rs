//! Running programs, for what the cluster is made of.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path, process::Command};

/// `ip` with these words.
pub fn ip(args: &str) -> Result<()> {
    sh("ip", &args.split(' ').collect::<Vec<_>>())
}

/// Has a network namespace forward packets.
pub fn forward(ns: &str) -> Result<()> {
    let both = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
    sh("nsenter", &[&[&*format!("--net=/run/netns/{ns}"), "sysctl", "-qw"], &both[..]].concat())
}

/// Runs a program; its failure is an error with what it said.
pub fn sh(program: &str, args: &[&str]) -> Result<()> {
    said(program, args, Path::new(".")).map(drop)
}

/// What a program writes, started in this folder; its failure is an error with what it said.
pub fn said(program: &str, args: &[&str], folder: &Path) -> Result<String> {
    let out = Command::new(program).args(args).current_dir(folder).output();
    let out = out.with_context(|| format!("cannot start {program}"))?;
    ensure!(out.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Writes a file that others must be able to run.
pub fn write_script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
