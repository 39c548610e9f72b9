//! What is in an image, as CycloneDX 1.6 in JSON (`target/images/NAME.cdx.json`): the crates that its program is linked from,
//! with the checksums of Cargo.lock, what was only at work while it was built (scope `excluded`), and what the toolchain adds.
//!
//! From `cargo tree`: it has the features that the build has. (`cargo metadata` also names crates that no build takes, such as
//! ring.) The same sources and toolchain give the same bytes: no time, and a serial number from the content.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

/// Built with its own target and lock file, and held by this crate as bytes.
const PROGRAMS: (&str, &str) = ("karst-ebpf", "karst-ebpf-programs");

/// What an image is, and what runs in it.
pub struct Subject<'a> {
    /// Its name with the registry, without a tag.
    pub image: &'a str,
    /// Its tag.
    pub tag: &'a str,
    /// Its digest, as `sha256:…`.
    pub digest: &'a str,
    /// The package whose program it is.
    pub package: &'a str,
    /// The program's bytes.
    pub program: &'a [u8],
}

/// A crate in a graph, known as NAME@VERSION.
#[derive(Clone, Debug, Default, PartialEq)]
struct Crate {
    license: String,
    local: bool,
    needs: BTreeSet<String>,
}

type Graph = BTreeMap<String, Crate>;

/// What is not a crate but in every program.
struct Part {
    name: &'static str,
    version: String,
    license: &'static str,
    purl: Option<String>,
}

/// What all documents are made from.
pub struct Sources {
    /// What is linked.
    linked: Graph,
    /// The same with what builds it.
    all: Graph,
    checksums: BTreeMap<String, String>,
    parts: Vec<Part>,
}

impl Sources {
    /// Reads the workspace at `root`, and asks for the versions of the toolchain.
    pub fn read(root: &Path) -> Result<Self> {
        let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let graph = |edges: &str| -> Result<Graph> {
            let mut g = parse(&tree(&root.join("Cargo.toml"), &host, edges)?)?;
            let programs = tree(&root.join("ebpf/programs/Cargo.toml"), "bpfel-unknown-none", edges)?;
            embed(&mut g, parse(&programs)?)?;
            Ok(g)
        };
        let mut checksums = BTreeMap::new();
        for lock in ["Cargo.lock", "ebpf/programs/Cargo.lock"] {
            let file = root.join(lock);
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            checksums.extend(locked(&text));
        }
        Ok(Self { linked: graph("normal,no-proc-macro")?, all: graph("normal,build")?, checksums, parts: parts()? })
    }

    /// The document of one image.
    pub fn document(&self, s: &Subject<'_>) -> Result<Value> {
        let root = find(&self.linked, s.package)?;
        let linked = closure(&self.linked, &root);
        let all = closure(&self.all, &root);
        let mut components = vec![];
        let mut dependencies = vec![];
        let parts: Vec<String> = self.parts.iter().map(|p| format!("{}@{}", p.name, p.version)).collect();
        let first: Vec<&str> = std::iter::once(root.as_str()).chain(parts.iter().map(String::as_str)).collect();
        dependencies.push(json!({ "ref": "image", "dependsOn": first }));
        for id in &all {
            let Some(c) = self.all.get(id) else { continue };
            let (name, version) = id.split_once('@').with_context(|| format!("{id} has no version"))?;
            let scope = if linked.contains(id) { "required" } else { "excluded" };
            let mut o = json!({ "bom-ref": id, "type": "library", "name": name, "version": version, "scope": scope });
            if *id == root {
                o["type"] = json!("application");
                o["hashes"] = json!([{ "alg": "SHA-256", "content": hex(s.program) }]);
            }
            if !c.license.is_empty() {
                o["licenses"] = json!([{ "expression": expression(&c.license) }]);
            }
            if !c.local {
                let sum = self.checksums.get(id).with_context(|| format!("Cargo.lock has no checksum of {id}"))?;
                o["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
                o["purl"] = json!(format!("pkg:cargo/{}", id.replace('+', "%2B")));
            }
            components.push(o);
            dependencies.push(json!({ "ref": id, "dependsOn": c.needs }));
        }
        for (p, id) in self.parts.iter().zip(&parts) {
            let mut o =
                json!({ "bom-ref": id, "type": "library", "name": p.name, "version": p.version, "scope": "required" });
            o["licenses"] = json!([{ "expression": p.license }]);
            if let Some(purl) = &p.purl {
                o["purl"] = json!(purl);
            }
            components.push(o);
            dependencies.push(json!({ "ref": id, "dependsOn": [] }));
        }
        let digest = s.digest.strip_prefix("sha256:").context("the image's digest is no sha256")?;
        let short = s.image.rsplit('/').next().unwrap_or(s.image);
        let purl =
            format!("pkg:oci/{short}@sha256%3A{digest}?repository_url={}&tag={}", s.image.replace('/', "%2F"), s.tag);
        let mut document = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "lifecycles": [{ "phase": "build" }],
                "component": {
                    "bom-ref": "image", "type": "container", "name": s.image, "version": s.tag, "purl": purl,
                    "hashes": [{ "alg": "SHA-256", "content": digest }],
                },
            },
            "components": components,
            "dependencies": dependencies,
        });
        document["serialNumber"] = json!(serial(&document.to_string()));
        Ok(document)
    }
}

/// Runs `cargo tree`, one line for each crate: depth, name with version, licence.
fn tree(manifest: &Path, target: &str, edges: &str) -> Result<String> {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["tree", "--workspace", "--locked", "--prefix=depth", "--format=\t{p}\t{l}"])
        .args(["--target", target, "--edges", edges, "--manifest-path"])
        .arg(manifest)
        .output()
        .context("cannot start cargo")?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "cargo tree of {}: {}", manifest.display(), said.trim());
    Ok(String::from_utf8(out.stdout)?)
}

/// The graph of such lines. A crate that was there before has `(*)` in place of what is below it.
fn parse(text: &str) -> Result<Graph> {
    let mut graph = Graph::new();
    let mut above: Vec<String> = vec![];
    for line in text.lines().filter(|l| !l.is_empty()) {
        let bad = || format!("cargo tree says {line:?}: DEPTH, NAME vVERSION and LICENCE were expected, with tabs");
        let (depth, rest) = line.split_once('\t').with_context(bad)?;
        let (package, license) = rest.split_once('\t').with_context(bad)?;
        let depth: usize = depth.parse().ok().with_context(bad)?;
        let (name, more) = package.split_once(" v").with_context(bad)?;
        let version = more.split(' ').next().unwrap_or(more);
        let id = format!("{name}@{version}");
        let c = graph.entry(id.clone()).or_default();
        c.license = license.trim_end_matches(" (*)").trim().into();
        c.local = package.contains(" (/");
        ensure!(depth <= above.len(), bad());
        above.truncate(depth);
        if let Some(parent) = above.last() {
            graph.entry(parent.clone()).or_default().needs.insert(id.clone());
        }
        above.push(id);
    }
    Ok(graph)
}

/// Adds the kernel's side, below the crate that holds it.
fn embed(graph: &mut Graph, programs: Graph) -> Result<()> {
    let (holder, held) = (find(graph, PROGRAMS.0)?, find(&programs, PROGRAMS.1)?);
    for (id, c) in programs {
        let known = graph.entry(id).or_insert_with(|| Crate { needs: BTreeSet::new(), ..c.clone() });
        known.needs.extend(c.needs);
    }
    graph.entry(holder).or_default().needs.insert(held);
    Ok(())
}

/// A crate of ours, by its name.
fn find(graph: &Graph, name: &str) -> Result<String> {
    let is = |id: &&String| id.split_once('@').is_some_and(|(n, _)| n == name);
    graph.keys().find(is).cloned().with_context(|| format!("cargo tree knows no package {name}"))
}

/// A crate and all below it.
fn closure(graph: &Graph, root: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut todo = vec![root.to_string()];
    while let Some(id) = todo.pop() {
        if out.insert(id.clone()) {
            todo.extend(graph.get(&id).into_iter().flat_map(|c| c.needs.iter().cloned()));
        }
    }
    out
}

/// The checksums of a Cargo.lock.
fn locked(text: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for package in text.split("[[package]]") {
        let field = |key: &str| {
            let line = package.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
            line.map(String::from)
        };
        if let (Some(name), Some(version), Some(sum)) = (field("name"), field("version"), field("checksum")) {
            out.insert(format!("{name}@{version}"), sum);
        }
    }
    out
}

/// An SPDX expression: older crates have `/` for OR.
fn expression(license: &str) -> String {
    license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

/// What the toolchain links into every static program.
fn parts() -> Result<Vec<Part>> {
    let say = |program: &str, args: &[&str]| -> Option<String> {
        let out = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(out.stdout).ok()?.trim().to_string()).filter(|t| !t.is_empty())
    };
    let rust = say("rustc", &["--version"]).context("rustc does not say its version")?;
    let rust = rust.split(' ').nth(1).unwrap_or(&rust).to_string();
    let package = say("dpkg-query", &["-W", "-f=${Version}", "libc6-dev"]);
    let glibc = package.clone().or_else(|| Some(say("getconf", &["GNU_LIBC_VERSION"])?.replace("glibc ", "")));
    let gcc = say("gcc", &["-dumpfullversion"]).context("gcc does not say its version")?;
    let part = |name, version, license, purl| Part { name, version, license, purl };
    Ok(vec![
        part("rust-std", rust, "MIT OR Apache-2.0", None),
        part(
            "glibc",
            glibc.context("neither dpkg-query nor getconf says the version of glibc")?,
            "LGPL-2.1-or-later",
            package.map(|v| format!("pkg:deb/debian/libc6-dev@{}", v.replace('+', "%2B"))),
        ),
        part("libgcc", gcc, "GPL-3.0-or-later WITH GCC-exception-3.1", None),
    ])
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A UUID (version 8) of the content.
fn serial(content: &str) -> String {
    let h = hex(content.as_bytes());
    let part = |from: usize, to: usize| h.get(from..to).unwrap_or_default();
    format!("urn:uuid:{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const LINKED: &str = "0\tapp v0.1.0 (/w/app)\tApache-2.0\n1\tcodec v1.2.0\tMIT/Apache-2.0\n2\tbytes v1.0.0\tMIT\n1\tbytes v1.0.0\tMIT\n1\tkarst-ebpf v0.1.0 (/w/ebpf)\tApache-2.0\n\n0\tother v0.1.0 (/w/other)\tApache-2.0\n1\tcodec v1.2.0\tMIT/Apache-2.0 (*)\n1\tbytes v2.0.0+spec-1\tMIT\n";
    const PROGRAMS_TREE: &str =
        "0\tkarst-ebpf-programs v0.1.0 (/w/programs)\tApache-2.0\n1\taya-ebpf v0.2.1\tMIT OR Apache-2.0\n";
    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\ndependencies = [\n \"bytes 1.0.0\",\n]\n\n[[package]]\nname = \"bytes\"\nversion = \"1.0.0\"\nsource = \"registry+x\"\nchecksum = \"b1\"\n\n[[package]]\nname = \"bytes\"\nversion = \"2.0.0+spec-1\"\nsource = \"registry+x\"\nchecksum = \"b2\"\n\n[[package]]\nname = \"codec\"\nversion = \"1.2.0\"\nchecksum = \"c\"\n\n[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\nchecksum = \"a\"\n\n[[package]]\nname = \"cc\"\nversion = \"1.0.0\"\nchecksum = \"cc\"\n";

    fn sources() -> Sources {
        let graph = |more: &str| {
            let mut g = parse(&(LINKED.to_string() + more)).unwrap();
            embed(&mut g, parse(PROGRAMS_TREE).unwrap()).unwrap();
            g
        };
        let build = "\n0\tcodec v1.2.0\tMIT/Apache-2.0\n1\tcc v1.0.0\tMIT\n";
        let glibc = Part { name: "glibc", version: "2.41".into(), license: "LGPL-2.1-or-later", purl: None };
        Sources { linked: graph(""), all: graph(build), checksums: locked(LOCK), parts: vec![glibc] }
    }

    fn subject<'a>(package: &'a str, digest: &'a str) -> Subject<'a> {
        Subject { image: "hub/x/app", tag: "1", digest, package, program: b"program" }
    }

    /// Each component, with its scope.
    fn scopes(d: &Value) -> Vec<String> {
        let one = |c: &Value| format!("{} {}", c["bom-ref"].as_str().unwrap(), c["scope"].as_str().unwrap());
        d["components"].as_array().unwrap().iter().map(one).collect()
    }

    #[test]
    fn a_document_has_the_programs_own_closure_and_nobody_elses() {
        let d = sources().document(&subject("app", "sha256:00")).unwrap();
        assert_eq!(
            scopes(&d),
            [
                "app@0.1.0 required",
                "aya-ebpf@0.2.1 required",
                "bytes@1.0.0 required",
                "cc@1.0.0 excluded",
                "codec@1.2.0 required",
                "karst-ebpf-programs@0.1.0 required",
                "karst-ebpf@0.1.0 required",
                "glibc@2.41 required"
            ]
        );
        let other = sources().document(&subject("other", "sha256:00")).unwrap();
        assert_eq!(
            scopes(&other),
            [
                "bytes@1.0.0 required",
                "bytes@2.0.0+spec-1 required",
                "cc@1.0.0 excluded",
                "codec@1.2.0 required",
                "other@0.1.0 required",
                "glibc@2.41 required"
            ]
        );
        assert!(sources().document(&subject("nobody", "sha256:00")).is_err());
    }

    #[test]
    fn components_have_checksums_licences_and_package_urls() {
        let d = sources().document(&subject("other", "sha256:0f")).unwrap();
        let of = |id: &str| d["components"].as_array().unwrap().iter().find(|c| c["bom-ref"] == id).unwrap().clone();
        let bytes = of("bytes@2.0.0+spec-1");
        assert_eq!(bytes["hashes"][0], json!({ "alg": "SHA-256", "content": "b2" }));
        assert_eq!(bytes["purl"], "pkg:cargo/bytes@2.0.0%2Bspec-1");
        assert_eq!(of("codec@1.2.0")["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let own = of("other@0.1.0");
        assert_eq!((&own["type"], &own["purl"]), (&json!("application"), &Value::Null));
        assert_eq!(own["hashes"][0]["content"], hex(b"program"));
        let image = &d["metadata"]["component"];
        assert_eq!((&image["hashes"][0]["content"], &image["type"]), (&json!("0f"), &json!("container")));
        assert_eq!(image["purl"], "pkg:oci/app@sha256%3A0f?repository_url=hub%2Fx%2Fapp&tag=1");
        // What Cargo.lock does not vouch for is not written down.
        let mut s = sources();
        s.checksums.remove("codec@1.2.0");
        let e = s.document(&subject("other", "sha256:0f")).unwrap_err();
        assert_eq!(e.to_string(), "Cargo.lock has no checksum of codec@1.2.0");
    }

    #[test]
    fn the_same_sources_give_the_same_document_and_others_another_serial() {
        let d = |digest: &str| sources().document(&subject("app", digest)).unwrap();
        assert_eq!(d("sha256:00").to_string(), d("sha256:00").to_string());
        let (a, b) = (d("sha256:00")["serialNumber"].clone(), d("sha256:01")["serialNumber"].clone());
        assert!(a != b, "{a}");
        let groups: Vec<usize> = a.as_str().unwrap().trim_start_matches("urn:uuid:").split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
    }

    /// This workspace: every reference is to a component, every crate of a registry has its checksum, and each program has what
    /// it is known to be made of.
    #[test]
    fn the_programs_of_this_workspace_have_documents() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let s = Sources::read(&root).unwrap();
        for (package, has, lacks) in [
            ("karst-ztunnel", vec!["rustls", "aws-lc-sys", "hickory-proto"], vec!["kube-client", "aya-ebpf"]),
            ("karst-cni", vec!["aya", "aya-ebpf", "karst-ebpf-programs", "kube-client"], vec!["hickory-proto"]),
            ("karst-controller", vec!["kube-client", "rcgen", "cel"], vec!["aya-ebpf"]),
            ("karst-waypoint", vec!["rustls", "cel", "jsonwebtoken"], vec!["kube-client", "aya-ebpf"]),
        ] {
            let d = s.document(&subject(package, "sha256:00")).unwrap();
            let components = d["components"].as_array().unwrap();
            let required: BTreeSet<&str> =
                components.iter().filter(|c| c["scope"] == "required").map(|c| c["name"].as_str().unwrap()).collect();
            for name in has.iter().chain(&["rust-std", "glibc", "libgcc"]) {
                assert!(required.contains(name), "{package} has no {name}");
            }
            for name in lacks.iter().chain(&["karst-world", "karst-e2e", "ring", "prost-build", "xtask"]) {
                assert!(!required.contains(name), "{package} has {name}");
            }
            assert!(components.iter().any(|c| c["name"] == "prost-build" && c["scope"] == "excluded"), "{package}");
            let refs: BTreeSet<&str> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
            assert_eq!(refs.len(), components.len(), "{package}");
            for link in d["dependencies"].as_array().unwrap() {
                for to in link["dependsOn"].as_array().unwrap() {
                    assert!(refs.contains(to.as_str().unwrap()), "{package}: {} needs {to}", link["ref"]);
                }
            }
        }
    }
}
