//! The arrows between crates, from cargo's metadata (docs/architecture.md has the picture), those between a crate's files, what
//! the product takes from `rt` alone, what its threads write together, which modules wait for nothing, that its errors are types, that
//! examples in documentation are run, and that pages of metrics are written in one place.

mod circles;
mod clocks;
mod errors;
mod examples;
mod heads;
mod lexer;
mod modules;
mod rooms;
mod shared;

use anyhow::{Result, ensure};
use serde_json::Value;
use std::{collections::BTreeMap, process::Command};

/// Layer of each crate; dependencies point to lower layers only.
const LAYERS: &[(&str, u8)] = &[
    ("karst-core", 0),
    ("karst-ebpf-common", 0),
    ("karst-policy", 1),
    ("karst-flows", 1),
    ("karst-topology", 2),
    ("karst-signals", 1),
    ("karst-manifest", 1),
    ("karst-rt", 2),
    ("karst-api", 2),
    ("karst-hbone", 3),
    ("karst-xds", 3),
    ("karst-kube", 3),
    ("karst-ebpf", 3),
    ("karst-proxy", 4),
    ("karst-install", 4),
    ("karst-cni", 5),
    ("karst-ztunnel", 5),
    ("karst-waypoint", 5),
    ("karst-controller", 5),
    ("karst-world", 5),
    ("karst-explain", 6),
    ("karst-cli", 7),
    ("karst-fuzz", 6),
    ("karst-differential", 7),
    ("karst-e2e", 6),
    ("hbone-conformance", 0),
    ("samples", 0),
    ("meshbench", 4),
    ("karst-controlbench", 6),
    ("xtask", 4),
];
/// The pure crates, and what they must never depend on.
const PURE: &[&str] = &["karst-core", "karst-policy", "karst-flows", "karst-signals", "karst-topology"];
const IMPURE: &[&str] = &["tokio", "tonic", "kube", "hyper", "aya"];

/// The eBPF programs, which are no part of the workspace (another target): format and clippy, by the same rules. Built as
/// ebpf/loader/build.rs builds them, without linking.
pub fn programs() -> Result<()> {
    let manifest = ["--manifest-path", "ebpf/programs/Cargo.toml"];
    crate::cargo(&[&["fmt"], &manifest[..], &["--check"]].concat(), &[])?;
    let target = ["-Zbuild-std=core", "--target", "bpfel-unknown-none", "--target-dir", "target/programs"];
    let clippy = [&["clippy", "--release", "--locked"], &manifest[..], &target, &["--", "-D", "warnings"]].concat();
    crate::cargo(
        &clippy,
        &[
            ("RUSTC_BOOTSTRAP", "1"), // build-std on the pinned stable toolchain
            ("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\""),
        ],
    )
}

/// Checks every arrow.
pub fn arrows() -> Result<()> {
    let out = Command::new("cargo").args(["metadata", "--format-version=1", "--no-deps", "--locked"]).output()?;
    let meta: Value = serde_json::from_slice(&out.stdout)?;
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for p in meta["packages"].as_array().into_iter().flatten() {
        let name = p["name"].as_str().unwrap_or_default();
        let Some(layer) = layers.get(name) else {
            wrong.push(format!("{name} has no layer: add it to xtask/src/lint.rs"));
            continue;
        };
        for d in p["dependencies"].as_array().into_iter().flatten().filter(|d| d["kind"].is_null()) {
            let dep = d["name"].as_str().unwrap_or_default();
            if layers.get(dep).is_some_and(|l| l >= layer) {
                wrong.push(format!("{name} (layer {layer}) depends on {dep}, which is not below it"));
            }
            if PURE.contains(&name) && IMPURE.contains(&dep) {
                wrong.push(format!("{name} is pure and depends on {dep}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    circles::check(&meta)?;
    clocks::check(&meta)?;
    errors::check(&meta)?;
    examples::check(&meta)?;
    rooms::check(&meta)?;
    heads::check(&meta)?;
    shared::check(&meta)
}
