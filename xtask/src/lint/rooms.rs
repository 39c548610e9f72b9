//! Modules of the waypoint that decide and wait for nothing: routes and load balancing. A crate of their own would keep a runtime
//! out of them; docs/architecture.md (Decisions, Layer 7) says why they have none, so the files are looked at.
//!
//! What is looked for are paths and imports of a runtime's crates; test code is passed over, which may have a runtime. `KNOWN` has
//! what is named all the same, with the reason; it must only become smaller.

use super::modules::{self, Read};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// The crate that they are in.
const CRATE: &str = "karst-waypoint";
/// Their directories.
const ROOMS: &[&str] = &["waypoint/src/route", "waypoint/src/cluster"];
/// Crates that wait, or carry bytes.
const RUNTIMES: &[&str] = &["tokio", "hyper", "h2", "tonic"];
/// What is named all the same: the file, the path, and why.
const KNOWN: &[Known] = &[(
    "waypoint/src/cluster/endpoint_set.rs",
    "tokio::sync::Semaphore",
    "a destination's connections are counted beside its requests; whoever sends a request waits (http/permits.rs)",
)];

type Known = (&'static str, &'static str, &'static str);

/// Files of the rooms, and the paths of a runtime's that they name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    files: BTreeSet<PathBuf>,
    named: BTreeSet<(PathBuf, String)>,
}

/// Checks the rooms.
pub fn check(meta: &Value) -> Result<()> {
    let workspace = Path::new(meta["workspace_root"].as_str().unwrap_or_default());
    let mut found = Found::default();
    for package in meta["packages"].as_array().into_iter().flatten() {
        if package["name"].as_str() == Some(CRATE) {
            for root in modules::roots(workspace, package) {
                read(root, &|f| std::fs::read_to_string(workspace.join(f)).ok(), &mut found)?;
            }
        }
    }
    let wrong = judge(KNOWN, &found);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Adds what is found in a crate, from its root file.
fn read(root: &Path, file: Read, found: &mut Found) -> Result<()> {
    let all = modules::read(root, file)?;
    for module in all.iter().filter(|module| ROOMS.iter().any(|room| module.file.starts_with(room))) {
        found.files.insert(module.file.clone());
        let imports = module.imports.values().flatten().chain(&module.globs);
        for words in module.paths.iter().map(|(words, _)| words).chain(imports) {
            if words.first().is_some_and(|word| RUNTIMES.contains(&word.as_str())) {
                found.named.insert((module.file.clone(), words.join("::")));
            }
        }
    }
    Ok(())
}

/// What is wrong, by what is known.
fn judge(known: &[Known], found: &Found) -> Vec<String> {
    let mut wrong = Vec::new();
    for room in ROOMS {
        if !found.files.iter().any(|file| file.starts_with(room)) {
            wrong.push(format!("{room} has no files: write in xtask/src/lint/rooms.rs where they are now"));
        }
    }
    for (file, path) in &found.named {
        if !known.iter().any(|(f, p, _)| file.as_path() == Path::new(f) && path == p) {
            let file = file.display();
            wrong.push(format!("{file}: names {path}: what waits or sends is in waypoint/src/http or upstream"));
        }
    }
    for (file, path, _) in known {
        if !found.named.contains(&(PathBuf::from(file), (*path).to_owned())) {
            wrong.push(format!("{file}: {path} is named no more: take it out of KNOWN in xtask/src/lint/rooms.rs"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// What is found in a crate whose `route/table.rs` is this.
    fn found(source: &str) -> Found {
        let tree = BTreeMap::from([
            (Path::new("waypoint/src/lib.rs"), "mod route;\nmod http;"),
            (Path::new("waypoint/src/route/mod.rs"), "mod table;"),
            (Path::new("waypoint/src/route/table.rs"), source),
            (Path::new("waypoint/src/http.rs"), "use tokio::time::sleep;"),
        ]);
        let mut found = Found::default();
        read(Path::new("waypoint/src/lib.rs"), &|f| tree.get(f).map(|&s| s.to_owned()), &mut found).unwrap();
        found
    }

    fn named(source: &str) -> Vec<String> {
        found(source).named.into_iter().map(|(_, path)| path).collect()
    }

    #[test]
    fn a_runtime_is_found_by_whatever_path_it_is_named() {
        for (source, path) in [
            ("use tokio::sync::Semaphore;", "tokio::sync::Semaphore"),
            ("use std::sync::Arc;\nuse hyper::{body::Incoming, Uri as U};", "hyper::body::Incoming hyper::Uri"),
            ("pub use tokio::time::Instant;", "tokio::time::Instant"),
            ("use h2::*;", "h2"),
            ("async fn f() { tokio::time::sleep(D).await; }", "tokio::time::sleep"),
            ("struct S(Option<tonic::Status>);", "tonic::Status"),
            ("mod inner { use tokio::spawn; }", "tokio::spawn"),
        ] {
            let mut all: Vec<&str> = path.split(' ').collect();
            all.sort_unstable();
            assert_eq!(named(source), all, "{source}");
        }
    }

    #[test]
    fn tests_other_crates_and_other_rooms_are_passed_over() {
        for source in [
            "",
            "use crate::clock;\nuse http::{HeaderMap, Uri};\nfn f() { clock::now(); }",
            "// tokio::spawn\nconst T: &str = \"hyper::Error\";",
            "#[cfg(test)] mod tests { use tokio::time; #[tokio::test] async fn t() { time::pause(); } }",
            "fn f(s: S) { s.tokio.h2(); }",
        ] {
            assert_eq!(named(source), [""; 0], "{source}");
        }
        let files: Vec<PathBuf> = found("").files.into_iter().collect();
        assert_eq!(files, ["waypoint/src/route/mod.rs", "waypoint/src/route/table.rs"].map(PathBuf::from));
    }

    #[test]
    fn what_is_known_only_becomes_smaller() {
        let file = |name: &str| PathBuf::from(name);
        let mut found = Found {
            files: BTreeSet::from(["waypoint/src/route/a.rs", "waypoint/src/cluster/b.rs"].map(file)),
            named: BTreeSet::from([(file("waypoint/src/cluster/b.rs"), "tokio::sync::Semaphore".to_owned())]),
        };
        let known: [Known; 1] = [("waypoint/src/cluster/b.rs", "tokio::sync::Semaphore", "it is counted there")];
        assert_eq!(judge(&known, &found), [""; 0]);
        assert!(judge(&[], &found)[0].starts_with("waypoint/src/cluster/b.rs: names tokio::sync::Semaphore: "));
        found.named = BTreeSet::from([(file("waypoint/src/route/a.rs"), "tokio::sync::Semaphore".to_owned())]);
        let wrong = judge(&known, &found);
        assert_eq!(wrong.len(), 2, "what another file names, and what is not named any more: {wrong:?}");
        assert!(wrong[1].contains("take it out of KNOWN"), "{wrong:?}");
        found.files.clear();
        assert_eq!(judge(&known, &found).len(), 4, "a room that was renamed is not passed over");
    }

    #[test]
    fn every_exception_has_a_reason() {
        assert!(KNOWN.iter().all(|(.., reason)| !reason.is_empty()));
    }
}
