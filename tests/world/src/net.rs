//! Namespaces and links, by iproute2.

use anyhow::{Context, Result, bail};
use std::process::Command;

/// Runs a program and gives its output; its failure is an error with what it said.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {program} (cargo xtask setup installs it)"))?;
    if !out.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// `ip` with these words.
pub fn ip(words: &str) -> Result<String> {
    run("ip", &words.split_whitespace().collect::<Vec<_>>())
}

/// `ip` in a namespace.
pub fn ip_in(ns: &str, words: &str) -> Result<String> {
    ip(&format!("-n {ns} {words}"))
}

/// Sets a sysctl in a namespace.
pub fn sysctl(ns: &str, key: &str, value: &str) -> Result<()> {
    run("ip", &["netns", "exec", ns, "sysctl", "-qw", &format!("{key}={value}")]).map(|_| ())
}

/// Makes a namespace with `lo` up.
pub fn namespace(ns: &str) -> Result<()> {
    ip(&format!("netns add {ns}"))?;
    ip_in(ns, "link set lo up").map(|_| ())
}

/// A veth pair between two namespaces.
pub fn veth(ns_a: &str, dev_a: &str, ns_b: &str, dev_b: &str) -> Result<()> {
    ip_in(ns_a, &format!("link add {dev_a} type veth peer name {dev_b} netns {ns_b}"))?;
    ip_in(ns_a, &format!("link set {dev_a} up"))?;
    ip_in(ns_b, &format!("link set {dev_b} up")).map(|_| ())
}
