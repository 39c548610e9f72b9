//! The crates of a program, and what each needs: as `cargo tree` says it, with the checksums of Cargo.lock.

use anyhow::{Context, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

/// Built with its own target and lock file, and held by this crate as bytes.
const PROGRAMS: (&str, &str) = ("karst-ebpf", "karst-ebpf-programs");

/// A crate in a graph, known as NAME@VERSION.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Crate {
    pub(super) license: String,
    pub(super) local: bool,
    pub(super) needs: BTreeSet<String>,
}

pub(super) type Graph = BTreeMap<String, Crate>;

/// Runs `cargo tree`, one line for each crate: depth, name with version, licence.
pub(super) fn tree(manifest: &Path, target: &str, edges: &str) -> Result<String> {
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
pub(super) fn parse(text: &str) -> Result<Graph> {
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
pub(super) fn embed(graph: &mut Graph, programs: Graph) -> Result<()> {
    let (holder, held) = (find(graph, PROGRAMS.0)?, find(&programs, PROGRAMS.1)?);
    for (id, c) in programs {
        let known = graph.entry(id).or_insert_with(|| Crate { needs: BTreeSet::new(), ..c.clone() });
        known.needs.extend(c.needs);
    }
    graph.entry(holder).or_default().needs.insert(held);
    Ok(())
}

/// A crate of ours, by its name.
pub(super) fn find(graph: &Graph, name: &str) -> Result<String> {
    let is = |id: &&String| id.split_once('@').is_some_and(|(n, _)| n == name);
    graph.keys().find(is).cloned().with_context(|| format!("cargo tree knows no package {name}"))
}

/// A crate and all below it.
pub(super) fn closure(graph: &Graph, root: &str) -> BTreeSet<String> {
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
pub(super) fn locked(text: &str) -> BTreeMap<String, String> {
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
