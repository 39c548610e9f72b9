//! Clocks and locks of `std` in the product, outside `rt`.
//!
//! Time comes from `karst_rt::clock` (or tokio's own `Instant`), so that a test can have all of it. State is a snapshot
//! that one task writes; where a lock is the better way, it is one that was decided on, and so is in the table.
//! clippy's `disallowed_methods` and `disallowed_types` cannot tell tests from product; here test code is passed over,
//! as are the crates of tests, samples and developers' tools.
//!
//! What is counted is each place that reads a clock or names a lock; an import by itself is none, so that code can move
//! between files. `KNOWN` has those that there are; it must only become smaller.

use super::modules::{self, Module, Read};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// What is not to be named, which kind it is of, and what is to be used.
const BANNED: &[(&[&str], Kind, &str)] = &[
    (&["std", "time", "Instant", "now"], Kind::Clock, "karst_rt::clock::Instant"),
    (&["std", "time", "SystemTime", "now"], Kind::Clock, "karst_rt::clock::wall"),
    (&["std", "sync", "Mutex"], Kind::Lock, "a snapshot, or a task that owns the state"),
    (&["std", "sync", "RwLock"], Kind::Lock, "a snapshot, or a task that owns the state"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Clock,
    Lock,
}

/// Where tests, samples and developers' tools are.
const NOT_PRODUCT: &[&str] = &["tests", "samples", "xtask"];

/// The crate that the clocks come from.
const SOURCE: &str = "karst-rt";

/// Of each crate that has some: in how many places it reads a clock, and in how many it names a lock.
const KNOWN: &[(&str, Count)] = &[
    // The names that thousands of streams follow, each of which changes them itself.
    ("karst-xds", Count { clocks: 0, locks: 1 }),
    ("karst-proxy", Count { clocks: 0, locks: 5 }),
    ("karst-ztunnel", Count { clocks: 3, locks: 3 }),
    ("karst-waypoint", Count { clocks: 2, locks: 9 }),
    ("karst-controller", Count { clocks: 2, locks: 4 }),
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    clocks: usize,
    locks: usize,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: PathBuf,
    line: usize,
    kind: Kind,
    named: String,
    instead: &'static str,
}

/// Checks every crate of the product.
pub fn check(meta: &Value) -> Result<()> {
    let workspace = Path::new(meta["workspace_root"].as_str().unwrap_or_default());
    let mut wrong = Vec::new();
    for package in meta["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let mut found = Vec::new();
        for root in modules::roots(workspace, package).filter(|root| is_product(name, root)) {
            found.extend(read(root, &|f| std::fs::read_to_string(workspace.join(f)).ok())?);
        }
        let known = KNOWN.iter().find(|(n, _)| *n == name).map_or_else(Count::default, |(_, count)| *count);
        wrong.extend(judge(name, known, &found));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn is_product(name: &str, root: &Path) -> bool {
    name != SOURCE && !NOT_PRODUCT.iter().any(|dir| root.starts_with(dir))
}

/// What is wrong with a crate, by what the table says of it.
fn judge(name: &str, known: Count, found: &[Place]) -> Option<String> {
    let of = |kind: Kind| found.iter().filter(|place| place.kind == kind).count();
    let count = Count { clocks: of(Kind::Clock), locks: of(Kind::Lock) };
    if count == known {
        return None;
    }
    if count == Count::default() {
        return Some(format!(
            "{name} has no clock or lock of std any more: take it out of KNOWN in xtask/src/lint/clocks.rs"
        ));
    }
    if count.clocks <= known.clocks && count.locks <= known.locks {
        return Some(format!("{name}: write {count:?} for {known:?} in xtask/src/lint/clocks.rs"));
    }
    let mut text = format!("{name}: clocks and locks of std: {count:?}, where {known:?} are known");
    for place in found {
        let (file, line) = (place.file.display(), place.line);
        let _ = write!(text, "\n    {file}:{line}: {}: use {}", place.named, place.instead);
    }
    Some(text)
}

/// The places of a crate, from its root file.
fn read(root: &Path, file: Read) -> Result<Vec<Place>> {
    let all = modules::read(root, file)?;
    let mut places = Vec::new();
    for (at, module) in all.iter().enumerate() {
        for (words, line) in &module.paths {
            if module.imports.values().flatten().any(|import| import == words) {
                continue;
            }
            let meant = meanings(&all, at, words);
            let banned = BANNED.iter().find(|(path, ..)| meant.iter().any(|words| starts(words, path)));
            if let Some((path, kind, instead)) = banned {
                let (file, named) = (module.file.clone(), path.join("::"));
                places.push(Place { file, line: *line, kind: *kind, named, instead });
            }
        }
    }
    places.sort();
    Ok(places)
}

fn starts(words: &[String], path: &[&str]) -> bool {
    words.len() >= path.len() && words.iter().zip(path).all(|(word, part)| word == part)
}

/// What a path may stand for: itself, and what its first word was imported as, in its module or in one whose names it
/// has by a glob.
fn meanings(all: &[Module], at: usize, words: &[String]) -> Vec<Vec<String>> {
    let mut meant = vec![words.to_vec()];
    let Some((first, rest)) = words.split_first() else { return meant };
    let mut seen = Vec::new();
    let mut waiting = vec![at];
    while let Some(at) = waiting.pop() {
        let Some(module) = all.get(at).filter(|_| !seen.contains(&at)) else { continue };
        seen.push(at);
        let mut add = |prefix: &[String]| meant.push([prefix, rest].concat());
        module.imports.get(first).into_iter().flatten().for_each(|import| add(import));
        for glob in &module.globs {
            match glob.first().map(String::as_str) {
                Some("std") => add(&[&glob[..], std::slice::from_ref(first)].concat()),
                Some("super") if glob.len() == 1 => waiting.extend(module.parent),
                _ => (),
            }
        }
    }
    meant
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Lines and names of what is found in the one file of a crate.
    fn found(source: &str) -> Vec<(usize, String)> {
        let tree = BTreeMap::from([(Path::new("lib.rs"), source.to_owned())]);
        let places = read(Path::new("lib.rs"), &|f| tree.get(f).cloned()).unwrap();
        places.into_iter().map(|place| (place.line, place.named)).collect()
    }

    fn lines(source: &str) -> Vec<usize> {
        found(source).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn a_clock_is_known_by_whatever_path_it_is_read() {
        assert_eq!(found("fn f() { std::time::Instant::now(); }"), [(1, "std::time::Instant::now".to_owned())]);
        assert_eq!(lines("use std::time::{Duration, Instant};\nfn f() -> Instant {\n    Instant::now()\n}"), [3]);
        assert_eq!(lines("use std::time;\nfn f() { time::SystemTime::now(); }"), [2]);
        assert_eq!(lines("use std::time::*;\nfn f() { SystemTime::now(); }"), [2]);
        assert_eq!(lines("use std::time::SystemTime as Clock;\nfn f() { Clock::now(); }"), [2]);
        assert_eq!(lines("use std::time::Instant;\nmod m {\n use super::*;\n fn f() { Instant::now(); } }"), [4]);
        assert_eq!(lines("use std::time::Instant;\nstatic S: L<Instant> = L::new(Instant::now);"), [2], "as a value");
        assert_eq!(lines("fn f() {\n    use std::time::Instant;\n    Instant::now();\n}"), [3]);
    }

    #[test]
    fn a_lock_is_counted_wherever_it_is_named() {
        let source = "use std::sync::{Arc, Mutex};\nstruct S(Arc<Mutex<u8>>);\nfn f() { Mutex::new(1); std::sync::RwLock::new(2); }";
        assert_eq!(lines(source), [2, 3, 3], "but for the import");
    }

    #[test]
    fn other_clocks_locks_and_test_code_are_not_counted() {
        for source in [
            "use tokio::time::Instant; fn f() { Instant::now(); tokio::time::Instant::now(); }",
            "use karst_rt::clock::{self, Instant}; fn f() { Instant::now(); clock::wall(); }",
            "use tokio::sync::{Mutex, RwLock}; struct S(Mutex<u8>, RwLock<u8>);",
            "use std::time::{Duration, Instant, SystemTime}; fn f(at: Instant) { SystemTime::UNIX_EPOCH; at.elapsed(); }",
            "use std::sync::{Arc, OnceLock, atomic::AtomicU8}; struct S(Arc<OnceLock<AtomicU8>>);",
            "// std::time::Instant::now()\nconst T: &str = \"std::sync::Mutex\";",
            "#[cfg(test)] mod tests { use std::{sync::Mutex, time::Instant}; fn f(_: Mutex<u8>) { Instant::now(); } }",
            "#[test] fn t() { std::time::Instant::now(); }",
        ] {
            assert_eq!(found(source), [], "{source}");
        }
    }

    #[test]
    fn tests_samples_tools_and_the_source_itself_are_no_product() {
        assert!(is_product("karst-cni", Path::new("cni/src/main.rs")));
        assert!(is_product("karst-xds", Path::new("crates/xds/src/lib.rs")));
        for root in ["tests/world/src/lib.rs", "samples/src/lib.rs", "xtask/src/main.rs"] {
            assert!(!is_product("x", Path::new(root)), "{root}");
        }
        assert!(!is_product(SOURCE, Path::new("crates/rt/src/lib.rs")));
    }

    #[test]
    fn the_table_only_becomes_smaller() {
        let place = |kind, named: &str| Place {
            file: "a.rs".into(),
            line: 7,
            kind,
            named: named.into(),
            instead: "a snapshot",
        };
        let two = [place(Kind::Clock, "std::time::Instant::now"), place(Kind::Lock, "std::sync::Mutex")];
        let said = |clocks, locks, found: &[Place]| judge("k", Count { clocks, locks }, found);
        assert_eq!((said(0, 0, &[]), said(1, 1, &two)), (None, None));
        let bigger = said(1, 0, &two).unwrap();
        assert!(bigger.contains("a.rs:7: std::sync::Mutex: use a snapshot"), "{bigger}");
        let other = said(2, 0, &two).unwrap();
        assert!(other.contains("where Count { clocks: 2, locks: 0 } are known"), "a lock for a clock: {other}");
        assert!(said(2, 1, &two).unwrap().contains("write Count { clocks: 1, locks: 1 } for"));
        assert!(said(1, 0, &[]).unwrap().contains("take it out"));
    }
}
