//! Circles of files inside a crate: files of which each needs all the others, so that none can be read or changed
//! alone.
//!
//! An arrow goes from the file whose code names an item to the file that defines it, however the name came there:
//! through an import, a glob, or the `pub use` of a parent. So a mod.rs or lib.rs that only declares and re-exports has
//! no arrow to it and is in no circle; one that defines what its children use, and uses them, is. `mod x;`, `pub use` by
//! itself, the path to a module and test code make no arrow. What has no path is not seen: methods (the arrow is the
//! type's), derive macros, names inside of texts.
//!
//! `CIRCLES` has the circles that there are; it must only become smaller.

use super::modules::{self, Module, Read};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::{Path, PathBuf},
};

/// Of each crate that has circles: how many files are in each, the largest first.
const CIRCLES: &[(&str, &[usize])] = &[];

/// From a file to another: the first line that needs it, and the path there.
type Arrows = BTreeMap<PathBuf, BTreeMap<PathBuf, String>>;

/// Checks every crate of the workspace.
pub fn check(meta: &Value) -> Result<()> {
    let workspace = Path::new(meta["workspace_root"].as_str().unwrap_or_default());
    let mut wrong = Vec::new();
    for p in meta["packages"].as_array().into_iter().flatten() {
        let name = p["name"].as_str().unwrap_or_default();
        let mut arrows = Arrows::new();
        for root in modules::roots(workspace, p) {
            for (from, to) in read(root, &|f| std::fs::read_to_string(workspace.join(f)).ok())? {
                arrows.entry(from).or_default().extend(to);
            }
        }
        let known = CIRCLES.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, c)| c);
        wrong.extend(judge(name, known, &circles(&arrows), &arrows));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What is wrong with a crate's circles, by what the table says of it.
fn judge(name: &str, known: &[usize], found: &[BTreeSet<&Path>], arrows: &Arrows) -> Option<String> {
    let sizes: Vec<usize> = found.iter().map(BTreeSet::len).collect();
    if sizes == known {
        return None;
    }
    let total = |s: &[usize]| (s.iter().sum::<usize>(), s.iter().max().copied().unwrap_or(0));
    if total(&sizes).0 <= total(known).0 && total(&sizes).1 <= total(known).1 {
        return Some(match sizes.is_empty() {
            true => {
                format!("{name} has no circle of files any more: take it out of CIRCLES in xtask/src/lint/circles.rs")
            }
            false => format!(
                "{name}: its circles became smaller: write {sizes:?} for {known:?} in xtask/src/lint/circles.rs"
            ),
        });
    }
    let mut text = format!(
        "{name}: circles of {sizes:?} files, where {known:?} are known: move what one of these files needs of another \
         to where it belongs"
    );
    for c in found {
        let _ = write!(text, "\n  a circle of {}:", c.len());
        for (from, to) in arrows.iter().filter(|(f, _)| c.contains(f.as_path())) {
            for (to, why) in to.iter().filter(|(t, _)| c.contains(t.as_path())) {
                let _ = write!(text, "\n    {} -> {} (line {why})", from.display(), to.display());
            }
        }
    }
    Some(text)
}

/// The arrows of a crate, from its root file.
fn read(root: &Path, file: Read) -> Result<Arrows> {
    let all = modules::read(root, file)?;
    let mut arrows = Arrows::new();
    for (i, m) in all.iter().enumerate() {
        for (words, line) in &m.paths {
            let Some(Named::Item(to)) = follow(&all, i, words, &mut Seen::new()) else { continue };
            let Some(to) = all.get(to).map(|m| &m.file).filter(|f| **f != m.file) else { continue };
            let why = || format!("{line}: {}", words.join("::"));
            arrows.entry(m.file.clone()).or_default().entry(to.clone()).or_insert_with(why);
        }
    }
    Ok(arrows)
}

/// What a path leads to.
enum Named {
    Module(usize),
    /// Something in this module.
    Item(usize),
}

/// Names looked up on the way of one path: globs can lead back to where they came from.
type Seen = BTreeSet<(usize, String, bool)>;

fn follow(all: &[Module], from: usize, words: &[String], seen: &mut Seen) -> Option<Named> {
    let mut at = from;
    let mut rest = words;
    while let Some((first, behind)) = rest.split_first() {
        at = match first.as_str() {
            "crate" => 0,
            "self" => at,
            "super" => all.get(at)?.parent?,
            _ => break,
        };
        rest = behind;
    }
    let anchored = rest.len() < words.len();
    for (n, word) in rest.iter().enumerate() {
        match lookup(all, at, word, n + 1 == rest.len(), seen) {
            Some(Named::Module(m)) => at = m,
            Some(item) => return Some(item),
            None if anchored => return foreign(all, at, word).then_some(Named::Item(at)),
            None => return None,
        }
    }
    Some(Named::Module(at))
}

/// Whether a name that is not found in a module can be what a macro defines there; an import from another crate is not.
fn foreign(all: &[Module], m: usize, name: &str) -> bool {
    all.get(m).is_some_and(|m| !m.imports.contains_key(name))
}

/// A name in a module. A module and an item can have the same: before `::` it is the module.
fn lookup(all: &[Module], at: usize, name: &str, last: bool, seen: &mut Seen) -> Option<Named> {
    let m = all.get(at).filter(|_| seen.insert((at, name.to_owned(), last)))?;
    let child = m.children.get(name).map(|c| Named::Module(*c));
    let item = m.items.contains(name).then_some(Named::Item(at));
    if let Some(found) = if last { item } else { child.or(item) } {
        return Some(found);
    }
    for words in m.imports.get(name).into_iter().flatten() {
        let module = words.split_last().filter(|(_, before)| !last && !before.is_empty()).and_then(|(end, before)| {
            let Named::Module(m) = follow(all, at, before, seen)? else { return None };
            lookup(all, m, end, false, seen)
        });
        if let Some(found) = module.or_else(|| follow(all, at, words, seen)) {
            return Some(found);
        }
    }
    if let Some(child) = m.children.get(name) {
        return Some(Named::Module(*child));
    }
    m.globs.iter().find_map(|words| match follow(all, at, words, seen)? {
        Named::Module(g) if g != at => lookup(all, g, name, last, seen),
        _ => None,
    })
}

/// The circles, the largest first.
fn circles(arrows: &Arrows) -> Vec<BTreeSet<&Path>> {
    let reached: BTreeMap<&Path, BTreeSet<&Path>> = arrows.keys().map(|f| (f.as_path(), reach(arrows, f))).collect();
    let mut found: Vec<BTreeSet<&Path>> = Vec::new();
    for (from, all) in reached.iter().filter(|(from, all)| all.contains(*from)) {
        if !found.iter().any(|c| c.contains(from)) {
            found.push(all.iter().filter(|to| reached.get(*to).is_some_and(|r| r.contains(from))).copied().collect());
        }
    }
    found.sort_by_key(|c| std::cmp::Reverse(c.len()));
    found
}

fn reach<'a>(arrows: &'a Arrows, from: &Path) -> BTreeSet<&'a Path> {
    let (mut found, mut waiting) = (BTreeSet::new(), vec![from]);
    while let Some(f) = waiting.pop() {
        for to in arrows.get(f).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(to.as_path()) {
                waiting.push(to);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows_of(files: &[(&str, &str)]) -> Arrows {
        let tree: BTreeMap<&Path, &str> = files.iter().map(|(f, s)| (Path::new(*f), *s)).collect();
        read(Path::new("lib.rs"), &|f| tree.get(f).map(|s| (*s).to_owned())).unwrap()
    }

    /// The files of each circle.
    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let arrows = arrows_of(files);
        circles(&arrows).iter().map(|c| c.iter().map(|f| f.display().to_string()).collect()).collect()
    }

    #[test]
    fn two_files_that_need_each_other_are_a_circle() {
        let lib = ("lib.rs", "mod a; mod b; mod c;");
        let a = ("a.rs", "use crate::b::{self, C as D};\npub struct A; fn f(_: D) { b::g() }");
        let c = ("c.rs", "use super::a::A; fn h() -> A { crate::b::g(); A }");
        let back = ("b.rs", "pub struct C; pub fn g() -> super::a::A { super::a::A }");
        assert_eq!(found(&[lib, a, c, back]), [["a.rs", "b.rs"]]);
        let arrows = arrows_of(&[lib, a, c, back]);
        assert_eq!(arrows[Path::new("a.rs")][Path::new("b.rs")], "1: crate::b::C");
        assert_eq!(found(&[lib, a, c, ("b.rs", "pub struct C; pub fn g() {}")]), [[""; 0]; 0]);
    }

    #[test]
    fn a_parent_that_only_declares_and_re_exports_is_in_no_circle() {
        let lib = ("lib.rs", "mod p; pub use p::A;");
        let re_exports = ("p/mod.rs", "mod a; mod b; pub use a::A; pub(crate) use b::*;");
        let a = ("p/a.rs", "use super::B; pub struct A(B);");
        assert_eq!(found(&[lib, re_exports, a, ("p/b.rs", "pub struct B;")]), [[""; 0]; 0]);
        // Names through the parent still make the children's circle.
        let b = ("p/b.rs", "pub struct B; fn f(_: crate::A) {}");
        assert_eq!(found(&[lib, re_exports, a, b]), [["p/a.rs", "p/b.rs"]]);
        // A parent that defines what a child needs, and needs the child.
        let defines = ("p/mod.rs", "mod a; mod b; pub use a::A; pub struct B; fn f() { b::g() } ");
        assert_eq!(
            found(&[lib, defines, a, ("p/b.rs", "pub fn g(_: super::A) {}")]),
            [["p/a.rs", "p/b.rs", "p/mod.rs"]]
        );
    }

    #[test]
    fn test_code_comments_and_texts_make_no_arrow() {
        let a = "pub struct A; // crate::b::B\n#[cfg(test)]\nmod tests { use crate::b::B; }\n
            #[test] fn t() { crate::b::B; } #[cfg(any(test, feature = \"testing\"))] use crate::b::{B, C};
            struct S { #[cfg(test)] b: crate::b::B, c: &'static str }
            #[cfg(test)] impl S { fn f(&self) { crate::b::g() } } const T: &str = \"crate::b::B\";";
        let b = "pub struct B(crate::a::A);";
        assert_eq!(found(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b)]), [[""; 0]; 0]);
        let not = format!("{a}\n#[cfg(not(test))] fn p() {{ crate::b::B; }}");
        assert_eq!(found(&[("lib.rs", "mod a; mod b;"), ("a.rs", &not), ("b.rs", b)]), [["a.rs", "b.rs"]]);
    }

    #[test]
    fn globs_blocks_and_macros_lead_to_the_file_that_defines() {
        let lib = ("lib.rs", "mod a; mod b; pub mod names { pub use crate::b::B as Other; }");
        let a = ("a.rs", "use crate::names::*; pub struct A(Other);");
        assert_eq!(found(&[lib, a, ("b.rs", "use crate::a::A; pub struct B;")]), [["a.rs", "b.rs"]]);
        let made = ("a.rs", "include!(\"made.rs\");");
        assert_eq!(found(&[lib, made, ("b.rs", "pub struct B(crate::a::Made);")]), [[""; 0]; 0]);
        let made = ("a.rs", "include!(\"made.rs\"); fn f() { crate::names::Other; }");
        assert_eq!(found(&[lib, made, ("b.rs", "pub struct B(crate::a::Made);")]), [["a.rs", "b.rs"]]);
    }

    #[test]
    fn the_table_only_becomes_smaller() {
        let tree = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "use crate::a::A; pub struct B;"),
        ];
        let arrows = arrows_of(&tree);
        let found = circles(&arrows);
        let said = |known: &[usize]| judge("k", known, &found, &arrows);
        assert_eq!(said(&[2]), None);
        let bigger = said(&[]).unwrap();
        assert!(bigger.contains("a.rs -> b.rs (line 1: crate::b::B)") && bigger.contains("b.rs -> a.rs"), "{bigger}");
        assert!(said(&[3]).unwrap().contains("write [2] for [3]"));
        assert!(said(&[2, 2]).unwrap().contains("write [2] for [2, 2]"));
        assert!(judge("k", &[2], &[], &arrows).unwrap().contains("take it out"));
    }
}
