//! A whole release, of programs that stand for ours: static ones, as ours are.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

use super::{architecture::PROGRAMS, version::CHARTS, *};
use crate::oci::hex;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    process::Command,
};

/// Static programs by all names, and a folder for stripped ones.
fn stand_ins(root: &Path, name: &str) -> Built {
    let folder = std::env::temp_dir().join(format!("karst-release-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("stripped")).unwrap();
    for program in PROGRAMS {
        let mut compile = Command::new("gcc");
        compile.args(["-static", "-Os", "-o"]).arg(folder.join(program)).arg(root.join("xtask/cluster/pause.c"));
        assert!(compile.status().unwrap().success(), "gcc");
    }
    let sources = Sources::read(root, Architecture::HOST.triple()).unwrap();
    let stripped = folder.join("stripped");
    Built { architecture: Architecture::HOST, programs: folder, folder: stripped, sources, samples: false }
}

/// The files in a tar.
fn files(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = vec![];
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), content);
    }
    files
}

#[test]
fn a_release_is_whole_and_two_runs_give_equal_bytes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let source = Source::read(&root, None, true).unwrap();
    let made = |name: &str| {
        let built = stand_ins(&root, name);
        let page = compose(&root, &source, std::slice::from_ref(&built), "").unwrap();
        page.write(&built.programs.join("out")).unwrap();
        (page, built.programs)
    };
    let (one, two) = (made("one"), made("two"));
    assert!(one.0 == two.0, "built in other folders, the bytes differ");
    let out = one.1.join("out");
    let checked =
        Command::new("sha256sum").args(["-c", "--strict", "--quiet", "SHA256SUMS"]).current_dir(&out).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let (version, arch) = (&source.version, Architecture::HOST.name());
    let names: BTreeSet<String> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let mut wanted: BTreeSet<String> =
        ["install.sh", "index.yaml", "NOTES.md", "SHA256SUMS"].map(String::from).into_iter().collect();
    for suffix in [
        &format!("-linux-{arch}.tar.gz"),
        &format!("-linux-{arch}.cdx.json"),
        "-images.tar",
        "-charts.tar",
        "-digests.yaml",
    ] {
        wanted.insert(format!("karst-{version}{suffix}"));
    }
    wanted.insert(format!("karst-{version}.intoto.json"));
    wanted.extend(CHARTS.map(|name| format!("{name}-{version}.tgz")));
    wanted.extend(
        ["pilot", "install-cni", "ztunnel", "waypoint", "dashboard"]
            .map(|i| format!("{i}-{version}-linux-{arch}.cdx.json")),
    );
    assert_eq!(names, wanted);

    // The statement has each other file with its hash, and no more.
    let read = |name: &str| fs::read(out.join(name)).unwrap();
    let statement: Value = serde_json::from_slice(&read(&format!("karst-{version}.intoto.json"))).unwrap();
    let subjects = statement["subject"].as_array().unwrap();
    assert_eq!(subjects.len(), names.len() - 2);
    for subject in subjects {
        assert_eq!(subject["digest"]["sha256"], hex(&read(subject["name"].as_str().unwrap())), "{subject}");
    }
    let pinned = String::from_utf8(read(&format!("karst-{version}-digests.yaml"))).unwrap();
    images_are_whole(&Read::new(&read(&format!("karst-{version}-images.tar"))), version, &pinned);
    charts_are_whole(&Read::new(&read(&format!("karst-{version}-charts.tar"))), version);
    for folder in [one.1, two.1] {
        fs::remove_dir_all(folder).unwrap();
    }
}

/// A layout, read.
struct Read(BTreeMap<String, Vec<u8>>);

impl Read {
    fn new(bytes: &[u8]) -> Self {
        Self(files(bytes))
    }

    /// What a descriptor is of: the bytes have its digest and size.
    fn blob(&self, descriptor: &Value) -> &[u8] {
        let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = &self.0[&format!("blobs/sha256/{hash}")];
        assert_eq!((hex(bytes).as_str(), Some(bytes.len() as u64)), (hash, descriptor["size"].as_u64()));
        bytes
    }

    fn json(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(self.blob(descriptor)).unwrap()
    }

    /// What has a name.
    fn named(&self) -> BTreeMap<String, Value> {
        let index: Value = serde_json::from_slice(&self.0["index.json"]).unwrap();
        let name =
            |entry: &Value| entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_string();
        index["manifests"].as_array().unwrap().iter().map(|entry| (name(entry), entry.clone())).collect()
    }
}

/// Every image is a list with what it is for this machine, by the digest that the values pin, and has its program.
fn images_are_whole(layout: &Read, version: &str, pinned: &str) {
    let named = layout.named();
    let wanted = ["dashboard", "install-cni", "pilot", "waypoint", "ztunnel"].map(|name| format!("{name}:{version}"));
    assert_eq!(named.keys().collect::<Vec<_>>(), wanted.iter().collect::<Vec<_>>());
    for (name, entry) in named {
        assert!(pinned.contains(entry["digest"].as_str().unwrap()), "{name} is not in {pinned}");
        let platform = &layout.json(&entry)["manifests"][0];
        let manifest = layout.json(platform);
        let config = layout.json(&manifest["config"]);
        assert_eq!(config["architecture"], platform["platform"]["architecture"]);
        let mut layer = vec![];
        flate2::read::GzDecoder::new(layout.blob(&manifest["layers"][0])).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&layer)), "{name}");
        let program = config["config"]["Entrypoint"][0].as_str().unwrap().trim_start_matches('/');
        assert!(files(&layer).contains_key(program), "{name} has no {program}");
    }
}

/// Every chart is there, with the media types that helm knows.
fn charts_are_whole(layout: &Read, version: &str) {
    let named = layout.named();
    let wanted = CHARTS.map(|name| format!("charts/{name}:{version}"));
    assert_eq!(named.keys().collect::<Vec<_>>(), wanted.iter().collect::<Vec<_>>());
    for entry in named.values() {
        let manifest = layout.json(entry);
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.cncf.helm.config.v1+json");
        assert_eq!(layout.json(&manifest["config"])["version"], version);
        let package = &manifest["layers"][0];
        assert_eq!(package["mediaType"], "application/vnd.cncf.helm.chart.content.v1.tar+gzip");
        layout.blob(package);
    }
}
