//! Examples in documentation are compiled and run, but for those of libraries whose manifests say `doctest = false`: so none may have
//! any. (rustdoc reads a crate and all that it stands on to find out that there is nothing to run.)

use super::modules;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::path::Path;

/// Checks every library of the workspace.
pub fn check(meta: &Value) -> Result<()> {
    let workspace = Path::new(meta["workspace_root"].as_str().unwrap_or_default());
    let read = |file: &Path| std::fs::read_to_string(workspace.join(file)).ok();
    let mut wrong = Vec::new();
    for root in meta["packages"].as_array().into_iter().flatten().flat_map(without_examples) {
        for module in modules::read(root.strip_prefix(workspace).unwrap_or(root), &read)? {
            let lines = examples(&read(&module.file).unwrap_or_default());
            wrong.extend(lines.iter().map(|line| {
                format!(
                    "{}:{line}: an example that is not run: take `doctest = false` out of the crate's Cargo.toml",
                    module.file.display()
                )
            }));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The root file of a package's library, if examples in it are not run.
fn without_examples(package: &Value) -> impl Iterator<Item = &Path> {
    let targets = package["targets"].as_array().into_iter().flatten();
    let libraries =
        targets.filter(|target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "lib")));
    let silent = libraries.filter(|target| target["doctest"] == false);
    silent.filter_map(|target| target["src_path"].as_str().map(Path::new))
}

/// Lines with the fence of a block of code in documentation.
fn examples(source: &str) -> Vec<usize> {
    let is_fence = |line: &str| {
        let line = line.trim_start();
        let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        text.is_some_and(|text| text.trim_start().starts_with("```"))
    };
    source.lines().zip(1..).filter(|(line, _)| is_fence(line)).map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples_are_found_in_documentation_alone() {
        let source = "//! ```\n//! a();\n//! ```\nfn a() {}\n    /// ```text\n// ```\nlet s = \"/// ```\";\n";
        assert_eq!(examples(source), [1, 3, 5]);
    }

    #[test]
    fn libraries_are_looked_at_whose_examples_are_not_run() {
        let target =
            |kind: &str, runs: bool| json!({"kind": [kind], "doctest": runs, "src_path": format!("/{kind}.rs")});
        let package = json!({ "targets": [target("lib", false), target("bin", false)] });
        assert_eq!(without_examples(&package).collect::<Vec<_>>(), [Path::new("/lib.rs")]);
        let package = json!({ "targets": [target("lib", true)] });
        assert_eq!(without_examples(&package).count(), 0);
    }
}
