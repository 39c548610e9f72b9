//! What is in a program or image besides crates: what the toolchain links, and files of Debian's packages.

use anyhow::{Context, Result};
use std::process::Command;

/// What is not a crate but in every program.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) license: &'static str,
    pub(super) purl: Option<String>,
}

/// A package of Debian whose files are copied into an image.
pub struct DebianPackage {
    /// Its name.
    pub name: &'static str,
    /// An SPDX expression.
    pub license: &'static str,
}

/// What the toolchain links into every static program for a target.
pub(super) fn parts(target: &str) -> Result<Vec<Part>> {
    let (library, compiler) = match target.split('-').next() {
        Some(machine) if machine == std::env::consts::ARCH => ("libc6-dev", "gcc"),
        Some("aarch64") => ("libc6-dev-arm64-cross", "aarch64-linux-gnu-gcc"),
        _ => ("libc6-dev-amd64-cross", "x86_64-linux-gnu-gcc"),
    };
    let rust = say("rustc", &["--version"]).context("rustc does not say its version")?;
    let rust = rust.split(' ').nth(1).unwrap_or(&rust).to_string();
    let package = say("dpkg-query", &["-W", "-f=${Version}", library]);
    let glibc = package.clone().or_else(|| Some(say("getconf", &["GNU_LIBC_VERSION"])?.replace("glibc ", "")));
    let gcc = say(compiler, &["-dumpfullversion"]).with_context(|| format!("{compiler} does not say its version"))?;
    let part = |name, version, license, purl| Part { name, version, license, purl };
    Ok(vec![
        part("rust-std", rust, "MIT OR Apache-2.0", None),
        part(
            "glibc",
            glibc.context("neither dpkg-query nor getconf says the version of glibc")?,
            "LGPL-2.1-or-later",
            package.map(|v| format!("pkg:deb/debian/{library}@{}", v.replace('+', "%2B"))),
        ),
        part("libgcc", gcc, "GPL-3.0-or-later WITH GCC-exception-3.1", None),
    ])
}

/// A package of Debian, in the version that is installed here.
pub(super) fn debian(package: &DebianPackage) -> Result<Part> {
    let (name, license) = (package.name, package.license);
    let version = say("dpkg-query", &["-W", "-f=${Version}", name])
        .with_context(|| format!("dpkg-query does not know the version of {name}, which is copied into an image"))?;
    let purl = Some(format!("pkg:deb/debian/{name}@{}", version.replace('+', "%2B")));
    Ok(Part { name, version, license, purl })
}

/// What a program prints; none if it fails or says nothing.
fn say(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
}
