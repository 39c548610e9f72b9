//! One image for each component, from the static programs, without a container engine.

use crate::cluster::image::Image;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Name of the image and program in it.
const COMPONENTS: [(&str, &str); 4] = [
    ("pilot", "karst-controller"),
    ("install-cni", "karst-cni"),
    ("ztunnel", "ztunnel"),
    ("waypoint", "karst-waypoint"),
];
/// The charts' default.
const HUB: &str = "registry.local/karst";
const LIMIT: u64 = 40 << 20;

/// Writes the images of the programs that are built; gives their files.
pub fn write() -> Result<Vec<PathBuf>> {
    let out = std::path::absolute("target/images")?;
    fs::create_dir_all(&out)?;
    let tag = env!("CARGO_PKG_VERSION");
    let mut files = Vec::new();
    println!("{:<40} {:>9}", "image", "MB");
    for (name, program) in COMPONENTS {
        let stripped = strip(program, &out)?;
        let reference = format!("{HUB}/{name}:{tag}");
        let entry = format!("/usr/local/bin/{program}");
        let file = out.join(format!("{name}.tar"));
        Image::new(&reference, &[&entry]).file(&stripped, &entry).write(&file)?;
        let size = fs::metadata(&file)?.len();
        println!("{reference:<40} {:>9.1}", size as f64 / 1e6);
        ensure!(size < LIMIT, "{reference} has {size} bytes; the limit is {LIMIT}");
        files.push(file);
    }
    files.push(samples(&out)?);
    Ok(files)
}

/// The sample applications, for the tests on the cluster.
fn samples(out: &Path) -> Result<PathBuf> {
    let mut image = Image::new("registry.local/karst/samples:1", &[])
        .link("/bin/sh", "/bin/busybox")
        .file("/bin/busybox", "/bin/busybox");
    for p in ["sample-http", "sample-grpc", "sample-tcp", "sample-bookinfo", "sample-store"] {
        image = image.file(strip(p, out)?, &format!("/bin/{p}"));
    }
    let file = out.join("samples.tar");
    image.write(&file)?;
    Ok(file)
}

/// A copy without debug information; it must need no library.
pub fn strip(program: &str, out: &Path) -> Result<PathBuf> {
    let (from, to) = (crate::bin(program)?, out.join(program));
    let status =
        Command::new("strip").arg("-o").arg(&to).arg(&from).status().context("cannot start strip (binutils)")?;
    ensure!(status.success(), "strip {} failed", from.display());
    let elf = fs::read(&to)?;
    ensure!(
        !elf.windows(9).any(|w| w == b"/ld-linux"),
        "{} is not static: build it as .cargo/config.toml says",
        from.display()
    );
    Ok(to)
}
