//! The archive that a user unpacks: the command line (also by the name `istioctl`), the charts, the profiles, the samples.

use super::{images::Built, page::Page, source::Source, version::CHARTS};
use crate::{
    archive::{Tree, gzip},
    images::HUB,
    sbom::{Content, Subject},
};
use anyhow::{Context, Result, ensure};
use std::{fs, path::Path};

/// What is in the folder of samples and for no cluster.
const SOURCES: [&str; 4] = ["src", "proto", "Cargo.toml", "build.rs"];
/// How the samples name their image in a checkout.
const SAMPLE_IMAGE: &str = "registry.local/karst/samples:1";

/// Adds the archive, and what its program is made of, to the page.
pub(crate) fn publish(root: &Path, source: &Source, built: &Built, page: &mut Page) -> Result<()> {
    let version = &source.version;
    let karst = built.stripped("karst")?;
    let program = fs::read(&karst).with_context(|| format!("cannot read {}", karst.display()))?;
    let name = format!("karst-{version}-linux-{}", built.architecture.name());
    let content = Content {
        subject: Subject::Program("karst"),
        version,
        package: "karst-cli",
        program: Some(&program),
        debian: &[],
    };
    page.put_json(&format!("{name}.cdx.json"), &built.sources.document(&content).context("what is in karst")?)?;
    let tree = tree(root, source, program)?;
    page.put(&format!("{name}.tar.gz"), gzip(&tree.tar()?)?);
    Ok(())
}

fn tree(root: &Path, source: &Source, program: Vec<u8>) -> Result<Tree> {
    let top = format!("karst-{}", source.version);
    let mut tree = Tree::new(source.time);
    tree.file(&format!("{top}/bin/karst"), program, true);
    tree.link(&format!("{top}/bin/istioctl"), "karst");
    for chart in CHARTS {
        tree.folder(&format!("{top}/manifests/charts/{chart}"), &root.join("charts").join(chart))?;
    }
    tree.folder(&format!("{top}/manifests/profiles"), &root.join("crates/install/profiles"))?;
    let image = format!("{HUB}/samples:{}", source.version);
    samples(&mut tree, &format!("{top}/samples"), &root.join("samples"), &image)?;
    for file in ["README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md"] {
        tree.copy(&format!("{top}/{file}"), &root.join(file))?;
    }
    // Of the packages that the page of `karst dashboard` is bundled from.
    tree.copy(&format!("{top}/licences/dashboard.txt"), &root.join("cli/page/dist/licences.txt"))?;
    Ok(tree)
}

/// Adds a folder of samples, which name the image of this release.
fn samples(tree: &mut Tree, at: &str, from: &Path, image: &str) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a sample without a name in UTF-8")?;
        let at = format!("{at}/{name}");
        if SOURCES.contains(&name) {
            continue;
        }
        if path.is_dir() {
            samples(tree, &at, &path, image)?;
            continue;
        }
        if !name.ends_with(".yaml") {
            tree.copy(&at, &path)?;
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = text.replace(SAMPLE_IMAGE, image);
        let mut local = text.lines().filter(|line| line.contains("image:") && line.contains("registry.local"));
        ensure!(
            local.all(|line| line.contains(image)),
            "{}: an image of registry.local that is not {SAMPLE_IMAGE}: no release has it",
            path.display()
        );
        tree.file(&at, text.into_bytes(), false);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::{collections::BTreeMap, io::Read, path::PathBuf};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
    }

    #[test]
    fn the_archive_has_what_the_tutorials_unpack() {
        let source = Source::read(&root(), None, true).unwrap();
        let made = || tree(&root(), &source, b"program".to_vec()).unwrap().tar().unwrap();
        let bytes = made();
        assert!(bytes == made(), "two runs give equal bytes");
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), source.time);
            let mut text = vec![];
            entry.read_to_end(&mut text).unwrap();
            let link = entry.link_name().unwrap().map(|target| target.display().to_string());
            let mode = entry.header().mode().unwrap();
            files.insert(entry.path().unwrap().display().to_string(), (text, mode, link));
        }
        let top = format!("karst-{}", source.version);
        let at = |path: &str| files.get(&format!("{top}/{path}")).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!((&at("bin/karst").0[..], at("bin/karst").1), (&b"program"[..], 0o755));
        assert_eq!(at("bin/istioctl").2.as_deref(), Some("karst"));
        for path in [
            "README.md",
            "LICENSE",
            "licences/dashboard.txt",
            "manifests/charts/istiod/Chart.yaml",
            "manifests/charts/ambient/charts/base/Chart.yaml",
            "manifests/profiles/ambient.yaml",
            "samples/exercises/reviews-90-10.yaml",
        ] {
            at(path);
        }
        assert_eq!(at("samples/store/canary.sh").1, 0o755);
        let sources: Vec<&String> =
            files.keys().filter(|path| path.ends_with(".rs") || path.contains("Cargo")).collect();
        assert!(sources.is_empty(), "{sources:?}");
        let shop = String::from_utf8(at("samples/manifests/bookinfo.yaml").0.clone()).unwrap();
        let image = format!("image: {HUB}/samples:{}", source.version);
        assert!(shop.contains(&image) && !shop.contains(&format!("{SAMPLE_IMAGE}\n")));
    }
}
