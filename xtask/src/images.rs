//! One image for each component, from the static programs, without a container engine.

use crate::{
    cluster::image::Image,
    sbom::{self, Content, DebianPackage, Subject},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A component that runs in the cluster.
pub(crate) struct Component {
    /// Name of its image.
    pub(crate) image: &'static str,
    /// The package that has its program.
    pub(crate) package: &'static str,
    /// The program.
    pub(crate) program: &'static str,
    /// Other names of the program.
    other_names: &'static [&'static str],
    /// Who runs it where a pod does not say so ([`Image::user`]): those of Istio's that need no root have this one, too.
    user: &'static str,
    /// Where its digest goes, in the values of the chart `ambient`.
    pub(crate) value: &'static str,
}

impl Component {
    /// Its image, with this stripped program.
    pub(crate) fn image(&self, reference: &str, stripped: &Path) -> Image {
        let entry = format!("/usr/local/bin/{}", self.program);
        let image = Image::new(reference, &[&entry]).user(self.user).file(stripped, &entry);
        self.other_names.iter().fold(image, |image, other| image.link(other, &entry))
    }
}

/// The user of Istio's images: one that is nobody on a node.
pub(crate) const NOBODY: &str = "1337:1337";

/// All of them.
pub(crate) const COMPONENTS: [Component; 5] = [
    Component {
        image: "pilot",
        package: "karst-controller",
        program: "karst-controller",
        other_names: &["/usr/local/bin/pilot-discovery"],
        user: NOBODY,
        value: "istiod",
    },
    Component {
        image: "install-cni",
        package: "karst-cni",
        program: "karst-cni",
        other_names: &[],
        user: "",
        value: "cni",
    },
    Component {
        image: "ztunnel",
        package: "karst-ztunnel",
        program: "ztunnel",
        other_names: &[],
        user: "",
        value: "ztunnel",
    },
    Component {
        image: "waypoint",
        package: "karst-waypoint",
        program: "karst-waypoint",
        other_names: &[],
        user: NOBODY,
        value: "global.waypoint",
    },
    Component {
        image: "dashboard",
        package: "karst-cli",
        program: "karst",
        other_names: &[],
        user: NOBODY,
        value: "istiod.dashboard",
    },
];
/// The programs of the image `samples`.
pub(crate) const SAMPLES: [&str; 5] = ["sample-http", "sample-grpc", "sample-tcp", "sample-bookinfo", "sample-store"];
/// A shell for that image: Debian's.
pub(crate) const BUSYBOX: DebianPackage = DebianPackage { name: "busybox-static", license: "GPL-2.0-only" };
/// The charts' default.
pub(crate) const HUB: &str = "registry.local/karst";
/// Bytes of an image. (The programs of CI, which are optimized little, are twice as large as those of a release.)
const LIMIT: u64 = 56 << 20;

/// All that the images hold.
pub(crate) fn programs() -> Vec<&'static str> {
    COMPONENTS.iter().map(|component| component.program).chain(SAMPLES).collect()
}

/// Writes the images of the programs in `from`, beside each what is in it (`NAME.cdx.json`), and their digests as values of
/// the chart `ambient` (`digests.yaml`); gives the images' files.
pub fn write(from: &Path) -> Result<Vec<PathBuf>> {
    let out = std::path::absolute("target/images")?;
    fs::create_dir_all(&out)?;
    let tag = env!("CARGO_PKG_VERSION");
    let mut files = Vec::new();
    let mut digests = Vec::new();
    let sources = sbom::Sources::read(&std::path::absolute(".")?, &target())?;
    println!("{:<40} {:>9}  digest", "image", "MB");
    for c in COMPONENTS {
        let stripped = strip(&from.join(c.program), &out)?;
        let name = format!("{HUB}/{}", c.image);
        let reference = format!("{name}:{tag}");
        let file = out.join(format!("{}.tar", c.image));
        let digest = c.image(&reference, &stripped).write(&file)?;
        let size = fs::metadata(&file)?.len();
        println!("{reference:<40} {:>9.1}  {digest}", size as f64 / 1e6);
        ensure!(size < LIMIT, "{reference} has {size} bytes; the limit is {LIMIT}");
        let program = fs::read(&stripped)?;
        let subject = Subject::Image { name: &name, digest: &digest };
        let content = Content { subject, version: tag, package: c.package, program: Some(&program), debian: &[] };
        let document = sources.document(&content).with_context(|| format!("what is in {reference}"))?;
        fs::write(out.join(format!("{}.cdx.json", c.image)), serde_json::to_string_pretty(&document)? + "\n")?;
        files.push(file);
        digests.push((c.value, digest));
    }
    let comment = "Written by `cargo xtask images`: helm install ambient charts/ambient -f target/images/digests.yaml";
    fs::write(out.join("digests.yaml"), values(comment, &digests))?;
    let programs = SAMPLES.iter().map(|program| strip(&from.join(program), &out)).collect::<Result<Vec<_>>>()?;
    let file = out.join("samples.tar");
    samples("registry.local/karst/samples:1", &programs).write(&file)?;
    files.push(file);
    Ok(files)
}

/// This machine's target, by Rust's name.
fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// The digests as values of the chart `ambient`.
pub(crate) fn values(comment: &str, digests: &[(&str, String)]) -> String {
    let mut text = format!("# {comment}\n");
    let mut done: Vec<&str> = vec![];
    for (at, _) in digests {
        let top = top(at);
        if done.contains(&top) {
            continue;
        }
        done.push(top);
        // A key is there once, whatever is below it.
        let below: Vec<String> =
            digests.iter().filter(|(at, _)| self::top(at) == top).map(|(at, digest)| below(at, digest)).collect();
        text += &format!("{top}: {{{}}}\n", below.join(", "));
    }
    text
}

fn top(at: &str) -> &str {
    at.split('.').next().unwrap_or(at)
}

fn below(at: &str, digest: &str) -> String {
    let names: Vec<&str> = at.split('.').skip(1).collect();
    let open: String = names.iter().map(|name| format!("{name}: {{")).collect();
    format!("{open}digest: \"{digest}\"{}", "}".repeat(names.len()))
}

/// The sample applications.
pub(crate) fn samples(reference: &str, stripped: &[PathBuf]) -> Image {
    let image = Image::new(reference, &[]).link("/bin/sh", "/bin/busybox").file("/bin/busybox", "/bin/busybox");
    stripped
        .iter()
        .filter_map(|program| Some((program, program.file_name()?.to_str()?)))
        .fold(image, |image, (program, name)| image.file(program, &format!("/bin/{name}")))
}

/// A copy without debug information; it must need no library.
pub fn strip(program: &Path, out: &Path) -> Result<PathBuf> {
    strip_with("strip", program, out)
}

/// The same with the strip of another architecture.
pub(crate) fn strip_with(tool: &str, from: &Path, out: &Path) -> Result<PathBuf> {
    let to = out.join(from.file_name().with_context(|| format!("{} is no program", from.display()))?);
    let status = Command::new(tool)
        .arg("-o")
        .arg(&to)
        .arg(from)
        .status()
        .with_context(|| format!("cannot start {tool} (binutils)"))?;
    ensure!(status.success(), "{tool} {} failed", from.display());
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
        let all = [("istiod", "0a"), ("global.waypoint", "0b"), ("istiod.dashboard", "0c")];
        let text = values("of a test", &all.map(|(at, hash)| (at, format!("sha256:{hash}"))));
        let lines: Vec<&str> = text.lines().skip(1).collect();
        let wanted = [
            "istiod: {digest: \"sha256:0a\", dashboard: {digest: \"sha256:0c\"}}",
            "global: {waypoint: {digest: \"sha256:0b\"}}",
        ];
        assert_eq!(lines, wanted);
    }
}
