//! What is in an image, or in a program that is handed out by itself, as CycloneDX 1.6 in JSON (`target/images/NAME.cdx.json`,
//! and beside a release's archives): the crates that it is linked from, with the checksums of Cargo.lock,
//! what was only at work while it was built (scope `excluded`), and what the toolchain adds.
//!
//! From `cargo tree`: it has the features that the build has. (`cargo metadata` also names crates that no build takes, such as
//! ring.) The same sources and toolchain give the same bytes: no time, and a serial number from the content.

mod graph;
mod parts;
#[cfg(test)]
mod tests;

pub use parts::DebianPackage;

use crate::oci::hex;
use anyhow::{Context, Result};
use graph::{Graph, closure, embed, find, locked, parse, tree};
use parts::{Part, debian, parts};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

/// What is handed out.
pub enum Subject<'a> {
    /// An image.
    Image {
        /// Its name with the registry, without a tag.
        name: &'a str,
        /// Its digest, as `sha256:…`.
        digest: &'a str,
    },
    /// A program, by its name.
    Program(&'a str),
}

/// What a document is about.
pub struct Content<'a> {
    /// What is handed out.
    pub subject: Subject<'a>,
    /// The image's tag, or the program's version.
    pub version: &'a str,
    /// The package whose program it is.
    pub package: &'a str,
    /// The program's bytes; none where the package has several programs.
    pub program: Option<&'a [u8]>,
    /// Names of the Debian packages whose files it holds besides.
    pub debian: &'a [DebianPackage],
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
    /// Reads the workspace at `root` as it is built for a target, and asks for the versions of the toolchain.
    pub fn read(root: &Path, target: &str) -> Result<Self> {
        let graph = |edges: &str| -> Result<Graph> {
            let mut g = parse(&tree(&root.join("Cargo.toml"), target, edges)?)?;
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
        Ok(Self {
            linked: graph("normal,no-proc-macro")?,
            all: graph("normal,build")?,
            checksums,
            parts: parts(target)?,
        })
    }

    /// The document of one image or program.
    pub fn document(&self, content: &Content<'_>) -> Result<Value> {
        let root = find(&self.linked, content.package)?;
        let linked = closure(&self.linked, &root);
        let all = closure(&self.all, &root);
        let mut components = vec![];
        let mut dependencies = vec![];
        let debian = content.debian.iter().map(debian).collect::<Result<Vec<_>>>()?;
        let parts = || self.parts.iter().chain(&debian).map(|part| (part, format!("{}@{}", part.name, part.version)));
        let (reference, component) = component(content)?;
        let first: Vec<String> = std::iter::once(root.clone()).chain(parts().map(|(_, id)| id)).collect();
        dependencies.push(json!({ "ref": reference, "dependsOn": first }));
        for id in &all {
            let Some(c) = self.all.get(id) else { continue };
            let (name, version) = id.split_once('@').with_context(|| format!("{id} has no version"))?;
            let scope = if linked.contains(id) { "required" } else { "excluded" };
            let mut o = json!({ "bom-ref": id, "type": "library", "name": name, "version": version, "scope": scope });
            if *id == root {
                o["type"] = json!("application");
                if let Some(program) = content.program {
                    o["hashes"] = json!([{ "alg": "SHA-256", "content": hex(program) }]);
                }
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
        for (part, id) in parts() {
            let (name, version) = (part.name, &part.version);
            let mut o =
                json!({ "bom-ref": id, "type": "library", "name": name, "version": version, "scope": "required" });
            o["licenses"] = json!([{ "expression": part.license }]);
            if let Some(purl) = &part.purl {
                o["purl"] = json!(purl);
            }
            components.push(o);
            dependencies.push(json!({ "ref": id, "dependsOn": [] }));
        }
        let mut document = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "lifecycles": [{ "phase": "build" }],
                "component": component,
            },
            "components": components,
            "dependencies": dependencies,
        });
        document["serialNumber"] = json!(serial(&document.to_string()));
        Ok(document)
    }
}

/// What a document is of: how it refers to it, and the component.
fn component(content: &Content<'_>) -> Result<(&'static str, Value)> {
    let version = content.version;
    match content.subject {
        Subject::Image { name, digest } => {
            let digest = digest.strip_prefix("sha256:").context("the image's digest is no sha256")?;
            let short = name.rsplit('/').next().unwrap_or(name);
            let repository = name.replace('/', "%2F");
            let purl = format!("pkg:oci/{short}@sha256%3A{digest}?repository_url={repository}&tag={version}");
            let hashes = json!([{ "alg": "SHA-256", "content": digest }]);
            let component = json!({
                "bom-ref": "image", "type": "container", "name": name, "version": version, "purl": purl, "hashes": hashes,
            });
            Ok(("image", component))
        }
        Subject::Program(name) => {
            let mut component =
                json!({ "bom-ref": "program", "type": "application", "name": name, "version": version });
            if let Some(program) = content.program {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": hex(program) }]);
            }
            Ok(("program", component))
        }
    }
}

/// An SPDX expression: older crates have `/` for OR.
fn expression(license: &str) -> String {
    license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

/// A UUID (version 8) of the content.
fn serial(content: &str) -> String {
    let h = hex(content.as_bytes());
    let part = |from: usize, to: usize| h.get(from..to).unwrap_or_default();
    format!("urn:uuid:{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}
