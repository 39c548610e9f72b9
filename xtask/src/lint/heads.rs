//! Heads of metrics (`# HELP`, `# TYPE`) in the product: one file writes them for all pages, and escapes what is in them. A page that
//! is put together by hand elsewhere forgets the one or the other, and docs/metrics.md misses its names.
//!
//! What is looked for is text, in product code: without comments, and without tests at the end of a file.

use super::{modules, shared};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::{collections::BTreeSet, path::Path};

/// The file that may.
const WRITER: &str = "crates/rt/src/exposition.rs";
/// How heads begin.
const HEADS: &[&str] = &["# HELP", "# TYPE"];
/// Where tests, samples and developers' tools are.
const NOT_PRODUCT: &[&str] = &["tests", "samples", "xtask"];

/// Checks every crate of the product.
pub fn check(meta: &Value) -> Result<()> {
    let workspace = Path::new(meta["workspace_root"].as_str().unwrap_or_default());
    let read = |file: &Path| std::fs::read_to_string(workspace.join(file)).ok();
    let mut files = BTreeSet::new();
    let packages = meta["packages"].as_array().into_iter().flatten();
    for root in packages.flat_map(|package| modules::roots(workspace, package)) {
        if !NOT_PRODUCT.iter().any(|dir| root.starts_with(dir)) {
            files.extend(modules::read(root, &read)?.into_iter().map(|module| module.file));
        }
    }
    ensure!(files.remove(Path::new(WRITER)), "{WRITER} is no file of the product any more: name the new one here");
    let mut wrong = vec![];
    for file in files {
        let lines = heads(&read(&file).unwrap_or_default());
        wrong.extend(lines.iter().map(|line| {
            format!("{}:{line}: a head of a metric by hand: use karst_rt::exposition ({WRITER})", file.display())
        }));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The lines that have one.
fn heads(text: &str) -> Vec<usize> {
    let has_head = |line: &str| HEADS.iter().any(|head| line.contains(head));
    shared::code(text).zip(1..).filter(|(line, _)| has_head(line)).map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_by_hand_are_found() {
        let source = "fn f() {\n    out += \"# HELP a A.\";\n    writeln!(out, \"\\n# TYPE {name} gauge\");\n}\n";
        assert_eq!(heads(source), [2, 3]);
    }

    #[test]
    fn comments_tests_and_the_writers_users_have_none() {
        for source in [
            "// # HELP a A.\nfn f() {} // # TYPE a gauge\n",
            "fn f() { page.family(\"a\", Kind::Gauge, \"A.\"); }\n",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    const PAGE: &str = \"# TYPE a gauge\";\n}\n",
        ] {
            assert_eq!(heads(source), [0; 0], "{source}");
        }
    }

    #[test]
    fn the_writer_is_the_file_that_has_them() -> Result<()> {
        let text = std::fs::read_to_string(crate::root().join(WRITER))?;
        assert!(!heads(&text).is_empty());
        Ok(())
    }
}
