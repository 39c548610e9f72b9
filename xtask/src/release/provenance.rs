//! Where a release comes from: an in-toto statement with SLSA's predicate about every file of the page. It is not signed:
//! it says what was done, and proves nothing to whoever does not trust where it was got from.

use super::{page::Page, source::Source};
use crate::oci::hex;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// Files that decide what is built.
const INPUTS: [&str; 3] = ["Cargo.lock", "ebpf/programs/Cargo.lock", "rust-toolchain.toml"];

/// The statement about all files that the page has by now.
pub(crate) fn statement(root: &Path, source: &Source, architectures: &[&str], page: &Page) -> Result<Value> {
    let subject: Vec<Value> =
        page.hashes().map(|(name, hash)| json!({ "name": name, "digest": { "sha256": hash } })).collect();
    let mut inputs = vec![];
    if let Some(commit) = &source.commit {
        inputs.push(json!({ "name": "source", "digest": { "gitCommit": commit } }));
    }
    for name in INPUTS {
        let bytes = fs::read(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        inputs.push(json!({ "name": name, "digest": { "sha256": hex(&bytes) } }));
    }
    let compiler = Command::new("rustc").args(["--version", "--verbose"]).output().context("cannot start rustc")?;
    Ok(json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:karst:cargo-xtask-release:v1",
                "externalParameters": {
                    "version": source.version, "architectures": architectures, "snapshot": source.snapshot,
                },
                "internalParameters": {
                    "sourceDateEpoch": source.time,
                    "compiler": String::from_utf8_lossy(&compiler.stdout).trim(),
                },
                "resolvedDependencies": inputs,
            },
            // Whoever ran the command, on a machine of their own: level 1 of SLSA at most.
            "runDetails": { "builder": { "id": "urn:karst:unattested-builder" } },
        },
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn the_statement_is_about_every_file_and_names_its_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let source = Source::read(&root, None, true).unwrap();
        let mut page = Page::default();
        page.put("a", b"a".to_vec());
        page.put("b", b"b".to_vec());
        let made = || statement(&root, &source, &["amd64"], &page).unwrap();
        let statement = made();
        assert_eq!(statement, made(), "there is no time of today in it");
        let subjects = statement["subject"].as_array().unwrap();
        assert_eq!(subjects.len(), 2);
        assert_eq!(subjects[0]["digest"]["sha256"], hex(b"a"));
        let definition = &statement["predicate"]["buildDefinition"];
        assert_eq!(definition["externalParameters"]["snapshot"], true);
        let inputs = definition["resolvedDependencies"].as_array().unwrap();
        let lock = inputs.iter().find(|input| input["name"] == "Cargo.lock").unwrap();
        assert_eq!(lock["digest"]["sha256"], hex(&fs::read(root.join("Cargo.lock")).unwrap()));
    }
}
