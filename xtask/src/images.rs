//! One image for each component, from the static programs, without a container engine.

use crate::{cluster::image::Image, sbom};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

struct Component {
    image: &'static str,
    package: &'static str,
    program: &'static str,
    /// Other names of the program.
    other_names: &'static [&'static str],
    /// Where its digest goes, in the values of the chart `ambient`.
    value: &'static str,
}

const COMPONENTS: [Component; 4] = [
    Component {
        image: "pilot",
        package: "karst-controller",
        program: "karst-controller",
        other_names: &["/usr/local/bin/pilot-discovery"],
        value: "istiod",
    },
    Component { image: "install-cni", package: "karst-cni", program: "karst-cni", other_names: &[], value: "cni" },
    Component { image: "ztunnel", package: "karst-ztunnel", program: "ztunnel", other_names: &[], value: "ztunnel" },
    Component {
        image: "waypoint",
        package: "karst-waypoint",
        program: "karst-waypoint",
        other_names: &[],
        value: "global.waypoint",
    },
];
/// The charts' default.
const HUB: &str = "registry.local/karst";
const LIMIT: u64 = 40 << 20;

/// Writes the images of the programs that are built, beside each what is in it (`NAME.cdx.json`), and their digests as values of
/// the chart `ambient` (`digests.yaml`); gives the images' files.
pub fn write() -> Result<Vec<PathBuf>> {
    let out = std::path::absolute("target/images")?;
    fs::create_dir_all(&out)?;
    let tag = env!("CARGO_PKG_VERSION");
    let mut files = Vec::new();
    let mut digests = Vec::new();
    let sources = sbom::Sources::read(&std::path::absolute(".")?)?;
    println!("{:<40} {:>9}  digest", "image", "MB");
    for c in COMPONENTS {
        let stripped = strip(c.program, &out)?;
        let (name, entry) = (format!("{HUB}/{}", c.image), format!("/usr/local/bin/{}", c.program));
        let reference = format!("{name}:{tag}");
        let file = out.join(format!("{}.tar", c.image));
        let mut image = Image::new(&reference, &[&entry]).file(&stripped, &entry);
        for other in c.other_names {
            image = image.link(other, &entry);
        }
        let digest = image.write(&file)?;
        let size = fs::metadata(&file)?.len();
        println!("{reference:<40} {:>9.1}  {digest}", size as f64 / 1e6);
        ensure!(size < LIMIT, "{reference} has {size} bytes; the limit is {LIMIT}");
        let program = fs::read(&stripped)?;
        let what = sbom::Subject { image: &name, tag, digest: &digest, package: c.package, program: &program };
        let document = sources.document(&what).with_context(|| format!("what is in {reference}"))?;
        fs::write(out.join(format!("{}.cdx.json", c.image)), serde_json::to_string_pretty(&document)? + "\n")?;
        files.push(file);
        digests.push((c.value, digest));
    }
    fs::write(out.join("digests.yaml"), values(&digests))?;
    files.push(samples(&out)?);
    Ok(files)
}

/// The digests as values of the chart `ambient`.
fn values(digests: &[(&str, String)]) -> String {
    let mut text =
        "# Written by `cargo xtask images`: helm install ambient charts/ambient -f target/images/digests.yaml\n"
            .to_string();
    for (at, digest) in digests {
        let names: Vec<&str> = at.split('.').collect();
        let (open, close) = (names.join(": {"), "}".repeat(names.len()));
        text += &format!("{open}: {{digest: \"{digest}\"{close}\n");
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_values_of_the_chart() {
        let text = values(&[("istiod", "sha256:0a".into()), ("global.waypoint", "sha256:0b".into())]);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["istiod: {digest: \"sha256:0a\"}", "global: {waypoint: {digest: \"sha256:0b\"}}"]);
    }
}
