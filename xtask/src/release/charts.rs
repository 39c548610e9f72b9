//! The charts as helm packages them: one archive each with what they depend on inside, an index for a Helm repository, and
//! the same archives as OCI artifacts.

use super::{page::Page, source::Source, version::CHARTS};
use crate::{
    archive::{Tree, gzip},
    images::HUB,
    oci::{Layout, MANIFEST, hex},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// A chart, packaged.
pub(crate) struct Chart {
    name: &'static str,
    /// Chart.yaml.
    metadata: Value,
    package: Vec<u8>,
}

impl Chart {
    fn read(root: &Path, name: &'static str, time: u64) -> Result<Self> {
        let folder = root.join("charts").join(name);
        let file = folder.join("Chart.yaml");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let metadata = serde_yaml_ng::from_str(&text).with_context(|| format!("{} is no YAML", file.display()))?;
        // What is a link to another chart here is that chart there.
        let mut tree = Tree::new(time);
        tree.folder(name, &folder)?;
        Ok(Self { name, metadata, package: gzip(&tree.tar()?)? })
    }

    fn file(&self, version: &str) -> String {
        format!("{}-{version}.tgz", self.name)
    }

    /// Adds the artifact that `helm install oci://…` reads.
    fn artifact(&self, source: &Source, date: &str, layout: &mut Layout) -> Result<()> {
        let config = layout.document("application/vnd.cncf.helm.config.v1+json", &self.metadata)?;
        let package = layout.blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", self.package.clone());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [package],
            "annotations": {
                "org.opencontainers.image.title": self.name,
                "org.opencontainers.image.version": source.version,
                "org.opencontainers.image.description": self.metadata["description"],
                "org.opencontainers.image.created": date,
            },
        });
        let descriptor = layout.document(MANIFEST, &manifest)?;
        let name = format!("charts/{}:{}", self.name, source.version);
        layout.name(descriptor, &name, &format!("{HUB}/{name}"));
        Ok(())
    }
}

/// Packages all of them.
pub(crate) fn all(root: &Path, source: &Source) -> Result<Vec<Chart>> {
    CHARTS
        .into_iter()
        .map(|name| Chart::read(root, name, source.time).with_context(|| format!("chart {name}")))
        .collect()
}

/// Adds the archives and their index to the page, and the artifacts to the layout.
pub(crate) fn publish(charts: &[Chart], source: &Source, page: &mut Page, layout: &mut Layout) -> Result<()> {
    let date = source.date()?;
    for chart in charts {
        chart.artifact(source, &date, layout)?;
        page.put(&chart.file(&source.version), chart.package.clone());
    }
    let index = serde_yaml_ng::to_string(&index(charts, source, &date))?;
    page.put("index.yaml", index.into_bytes());
    Ok(())
}

/// What `helm repo index` writes. Addresses are relative to the index.
fn index(charts: &[Chart], source: &Source, date: &str) -> Value {
    let mut entries = json!({});
    for chart in charts {
        let mut entry = chart.metadata.clone();
        entry["created"] = json!(date);
        entry["digest"] = json!(hex(&chart.package));
        entry["urls"] = json!([chart.file(&source.version)]);
        entries[chart.name] = json!([entry]);
    }
    json!({ "apiVersion": "v1", "entries": entries, "generated": date })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::collections::BTreeSet;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
    }

    fn source() -> Source {
        Source::read(&root(), None, true).unwrap()
    }

    fn files(chart: &Chart) -> BTreeSet<String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&chart.package[..]));
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_package_has_the_chart_and_what_it_depends_on() {
        let charts = all(&root(), &source()).unwrap();
        let of = |name: &str| files(charts.iter().find(|chart| chart.name == name).unwrap());
        let ambient = of("ambient");
        for path in ["ambient/Chart.yaml", "ambient/values.yaml", "ambient/values.schema.json"] {
            assert!(ambient.contains(path), "{path}");
        }
        for part in ["base", "istiod", "cni", "ztunnel"] {
            for path in of(part).iter().filter(|path| !path.ends_with('/')) {
                assert!(ambient.contains(&format!("ambient/charts/{path}")), "{path}");
            }
        }
        let folders = fs::read_dir(root().join("charts")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
        assert_eq!(folders.count(), CHARTS.len(), "a new chart is released, too");
    }

    #[test]
    fn the_index_leads_to_each_package_with_its_hash() {
        let (source, mut page, mut layout) = (source(), Page::default(), Layout::default());
        let charts = all(&root(), &source).unwrap();
        publish(&charts, &source, &mut page, &mut layout).unwrap();
        let index: Value =
            serde_yaml_ng::from_str(&serde_yaml_ng::to_string(&index(&charts, &source, "d")).unwrap()).unwrap();
        let hashes: std::collections::BTreeMap<&str, String> = page.hashes().collect();
        for name in CHARTS {
            let entry = &index["entries"][name][0];
            let url = entry["urls"][0].as_str().unwrap();
            assert_eq!(entry["digest"].as_str(), Some(hashes[url].as_str()), "{name}");
            assert_eq!((&entry["version"], &entry["appVersion"]), (&json!(source.version), &json!(source.version)));
            assert_eq!((&entry["name"], &entry["apiVersion"]), (&json!(name), &json!("v2")));
        }
        assert_eq!(index["entries"]["ambient"][0]["dependencies"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn two_runs_give_equal_bytes() {
        let made = || {
            let (source, mut page, mut layout) = (source(), Page::default(), Layout::default());
            publish(&all(&root(), &source).unwrap(), &source, &mut page, &mut layout).unwrap();
            (page, layout.tar().unwrap())
        };
        let (one, two) = (made(), made());
        assert!(one.0 == two.0 && one.1 == two.1);
    }
}
