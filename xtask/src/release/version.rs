//! The version number: it stands in `Cargo.toml`, and in each chart, which helm wants; they change together.

use crate::tools::cargo;
use anyhow::{Context, Result, ensure};
use std::{fs, path::Path, process::Command};

/// The next version.
#[derive(clap::Args)]
pub(crate) struct Bump {
    /// The new version, such as 0.2.0 or 0.2.0-rc.1.
    version: String,
}

/// All charts.
pub(crate) const CHARTS: [&str; 6] = ["ambient", "base", "cni", "gateway", "istiod", "ztunnel"];
/// The eBPF programs, which are no member of the workspace.
const PROGRAMS: &str = "ebpf/programs/Cargo.toml";

/// The version of the workspace.
pub(crate) fn of_workspace(manifest: &str) -> Result<String> {
    let below = manifest.lines().skip_while(|line| line.trim() != "[workspace.package]").skip(1);
    let mut fields = below.take_while(|line| !line.starts_with('['));
    let version = fields.find_map(|line| Some(line.strip_prefix("version = \"")?.split('"').next()?.to_string()));
    version.context("Cargo.toml has no field workspace.package.version")
}

/// Refuses charts and programs of another version.
pub(crate) fn agree(root: &Path, version: &str) -> Result<()> {
    for (file, _, wanted) in places(version, version) {
        let text = fs::read_to_string(root.join(&file)).with_context(|| format!("cannot read {file}"))?;
        let named = text.lines().filter(|line| is_version(line));
        for line in named {
            ensure!(
                wanted.iter().any(|wanted| line.contains(wanted.as_str())),
                "{file}: {:?} is not the workspace's version {version}; `cargo xtask version` changes all of them together",
                line.trim()
            );
        }
    }
    Ok(())
}

/// A line that names our own version: a field at the front of it, or a dependency on a chart beside it.
fn is_version(line: &str) -> bool {
    line.starts_with("version") || line.starts_with("appVersion:") || line.contains("repository: \"file://")
}

/// Files that name the version, and what is replaced there by what.
fn places(old: &str, new: &str) -> Vec<(String, Vec<String>, Vec<String>)> {
    let chart = |version: &str| vec![format!("version: {version}"), format!("appVersion: {version}")];
    let mut places: Vec<_> =
        CHARTS.iter().map(|name| (format!("charts/{name}/Chart.yaml"), chart(old), chart(new))).collect();
    let manifest = |version: &str| vec![format!("version = \"{version}\"")];
    places.push((PROGRAMS.into(), manifest(old), manifest(new)));
    places
}

/// Writes the version everywhere, and gives what is unreleased in the changelog its name. The version may be the one that the
/// workspace has, if that was never released.
pub(crate) fn bump(what: &Bump) -> Result<()> {
    let new = &what.version;
    ensure!(is_semantic(new), "{new:?}: MAJOR.MINOR.PATCH is wanted, with -PRERELEASE behind it or nothing");
    let manifest = fs::read_to_string("Cargo.toml").context("cannot read Cargo.toml")?;
    let old = of_workspace(&manifest)?;
    let changelog = fs::read_to_string("CHANGELOG.md").context("cannot read CHANGELOG.md")?;
    let today = Command::new("date").args(["-u", "+%Y-%m-%d"]).output().context("date")?;
    let changelog = titled(&changelog, new, String::from_utf8_lossy(&today.stdout).trim())?;
    let write = |file: &str, text: String| {
        println!("{file}");
        fs::write(file, text).with_context(|| format!("cannot write {file}"))
    };
    write("Cargo.toml", manifest.replacen(&format!("version = \"{old}\""), &format!("version = \"{new}\""), 1))?;
    for (file, from, to) in places(&old, new) {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        write(&file, replaced(&text, &from, &to))?;
    }
    write("CHANGELOG.md", changelog)?;
    cargo(&["update", "--workspace", "--offline", "--quiet"], &[])?;
    cargo(&["update", "--workspace", "--offline", "--quiet", "--manifest-path", PROGRAMS], &[])?;
    agree(Path::new("."), new)
}

/// In lines that name our version.
fn replaced(text: &str, from: &[String], to: &[String]) -> String {
    let line = |line: &str| {
        if !is_version(line) {
            return line.to_string();
        }
        from.iter().zip(to).fold(line.to_string(), |line, (from, to)| line.replace(from, to))
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

/// The changelog, in which what is unreleased is of this version.
fn titled(changelog: &str, version: &str, date: &str) -> Result<String> {
    const OPEN: &str = "## Unreleased\n";
    let (before, after) =
        changelog.split_once(OPEN).context("CHANGELOG.md has no line `## Unreleased`: add it above the changes")?;
    let changes = after.split("\n## ").next().unwrap_or_default();
    ensure!(!changes.trim().is_empty(), "CHANGELOG.md has nothing below `## Unreleased`: say what has changed");
    ensure!(
        !changelog.lines().any(|line| line.split_whitespace().take(2).eq(["##", version])),
        "CHANGELOG.md has a section of {version} already"
    );
    Ok(format!("{before}{OPEN}\n## {version} ({date})\n{after}"))
}

/// As Semantic Versioning has it, without build metadata (a tag of an image has no `+`).
fn is_semantic(version: &str) -> bool {
    let (core, pre) = version.split_once('-').map_or((version, None), |(core, pre)| (core, Some(pre)));
    let number = |text: &str| text.parse::<u32>().is_ok_and(|number| number.to_string() == text);
    let identifier = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    core.split('.').count() == 3 && core.split('.').all(number) && pre.is_none_or(|pre| pre.split('.').all(identifier))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const CHART: &str = "apiVersion: v2\nname: ambient\nversion: 0.1.0\nappVersion: 0.1.0\nkubeVersion: \">=0.1.0-0\"\ndependencies:\n- {name: base, version: 0.1.0, repository: \"file://../base\"}\n";

    #[test]
    fn all_places_that_name_the_version_agree_here() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let version = of_workspace(&fs::read_to_string(root.join("Cargo.toml")).unwrap()).unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        agree(&root, &version).unwrap();
        let refused = agree(&root, "9.9.9").unwrap_err().to_string();
        assert!(refused.contains("charts/ambient/Chart.yaml") && refused.contains("cargo xtask version"), "{refused}");
    }

    #[test]
    fn a_chart_and_what_it_depends_on_change_together() {
        let (_, from, to) = places("0.1.0", "0.2.0-rc.1").remove(0);
        let text = replaced(CHART, &from, &to);
        assert_eq!(text.matches("0.2.0-rc.1").count(), 3, "{text}");
        assert!(text.contains("kubeVersion: \">=0.1.0-0\"") && text.contains("apiVersion: v2\n"), "{text}");
    }

    #[test]
    fn what_is_unreleased_gets_its_title() {
        let text = titled("# Changes\n\n## Unreleased\n- a\n\n## 0.1.0\n- old\n", "0.2.0", "2026-01-02").unwrap();
        assert_eq!(text, "# Changes\n\n## Unreleased\n\n## 0.2.0 (2026-01-02)\n- a\n\n## 0.1.0\n- old\n");
        let refused = |text: &str| titled(text, "0.1.0", "d").unwrap_err().to_string();
        assert!(refused("# Changes\n").contains("no line `## Unreleased`"));
        assert!(refused("## Unreleased\n\n## 0.0.9\n- a\n").contains("nothing below"));
        assert!(refused("## Unreleased\n- a\n\n## 0.1.0 (d)\n- old\n").contains("0.1.0 already"));
    }

    #[test]
    fn versions_are_semantic() {
        for good in ["0.1.0", "1.20.3", "1.0.0-rc.1", "1.0.0-alpha-2"] {
            assert!(is_semantic(good), "{good}");
        }
        for bad in ["1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-a..b", "1.0.0+b", "1.0.0 "] {
            assert!(!is_semantic(bad), "{bad}");
        }
    }
}
