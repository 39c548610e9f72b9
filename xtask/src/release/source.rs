//! What is released: a version, a commit, its time, and what the changelog says of it. The version stands in `Cargo.toml`,
//! and everything else that names it must agree.

use super::version;
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path, process::Command};

/// What is released.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The workspace's version.
    pub(crate) version: String,
    /// The commit's hash; none where there is no git.
    pub(crate) commit: Option<String>,
    /// Seconds since 1970 when it was committed, or SOURCE_DATE_EPOCH.
    pub(crate) time: u64,
    /// Not a release.
    pub(crate) snapshot: bool,
    /// What the changelog says; none where it has no section of this version.
    changes: Option<String>,
    /// Files that are not as they were committed.
    dirty: bool,
}

impl Source {
    /// Reads the checkout at `root`. `wanted`: the version that is meant.
    pub(crate) fn read(root: &Path, wanted: Option<&str>, snapshot: bool) -> Result<Self> {
        let read = |name: &str| {
            let path = root.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let version = version::of_workspace(&read("Cargo.toml")?)?;
        version::agree(root, &version)?;
        let commit = git(root, &["rev-parse", "HEAD"]);
        let dirty = git(root, &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
        let source = Self {
            time: time(root)?,
            changes: section(&read("CHANGELOG.md")?, &version),
            version,
            commit,
            snapshot,
            dirty,
        };
        source.may_be_released(wanted)?;
        Ok(source)
    }

    fn may_be_released(&self, wanted: Option<&str>) -> Result<()> {
        let version = &self.version;
        if let Some(wanted) = wanted {
            let wanted = wanted.strip_prefix('v').unwrap_or(wanted);
            ensure!(
                wanted == version,
                "--version {wanted}: Cargo.toml, field workspace.package.version, says {version}; run `cargo xtask version {wanted}` and commit what it changes"
            );
        }
        if self.snapshot {
            return Ok(());
        }
        ensure!(
            self.changes.is_some(),
            "CHANGELOG.md has no section `## {version}` with something in it: run `cargo xtask version VERSION`, which makes one of `## Unreleased`, or try with --snapshot"
        );
        ensure!(
            !self.dirty,
            "there are uncommitted changes (git status): commit them, so that the release can be traced to a commit, or try with --snapshot"
        );
        ensure!(self.commit.is_some(), "git knows no commit here: release from a clone, or try with --snapshot");
        Ok(())
    }

    /// Why a snapshot is one.
    pub(crate) fn why_no_release(&self) -> String {
        let mut reasons = vec!["--snapshot was given"];
        if self.changes.is_none() {
            reasons.push("CHANGELOG.md has no section of this version");
        }
        if self.dirty {
            reasons.push("there are uncommitted changes");
        }
        reasons.join(", ")
    }

    /// The text for the page.
    pub(crate) fn notes(&self) -> String {
        let commit = self.commit.as_deref().unwrap_or("unknown");
        let kind = if self.snapshot {
            format!("A snapshot, not a release: {}. ", self.why_no_release())
        } else {
            String::new()
        };
        let changes =
            self.changes.as_deref().unwrap_or("Changes: see `## Unreleased` in CHANGELOG.md of that commit.\n");
        format!("# Karst {}\n\n{kind}Commit {commit}.\n\n{changes}", self.version)
    }

    /// The time, as RFC 3339 writes it.
    pub(crate) fn date(&self) -> Result<String> {
        let at = format!("@{}", self.time);
        let out = Command::new("date").args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%SZ"]).output().context("date")?;
        ensure!(out.status.success(), "date -d {at}: {}", String::from_utf8_lossy(&out.stderr).trim());
        Ok(String::from_utf8(out.stdout)?.trim().to_string())
    }
}

/// What git prints; none if it fails.
fn git(root: &Path, args: &[&str]) -> Option<String> {
    let out = Command::new("git").arg("-C").arg(root).args(args).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_string())
}

/// SOURCE_DATE_EPOCH, or when the commit was made.
fn time(root: &Path) -> Result<u64> {
    if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") {
        return text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text:?}: seconds since 1970 are wanted"));
    }
    let Some(text) = git(root, &["log", "-1", "--format=%ct"]) else {
        bail!("git knows no commit here: set SOURCE_DATE_EPOCH to the seconds since 1970 that the files are to bear")
    };
    text.parse().with_context(|| format!("git says {text:?} for the commit's time"))
}

/// What a changelog says below `## VERSION`, with whatever follows on that line; none if that is nothing.
fn section(changelog: &str, version: &str) -> Option<String> {
    let is = |line: &str| {
        line.strip_prefix("## ").and_then(|title| title.split_whitespace().next()).is_some_and(|word| word == version)
    };
    let mut lines = changelog.lines().skip_while(|line| !is(line));
    lines.next()?;
    let text: Vec<&str> = lines.take_while(|line| !line.starts_with("## ")).collect();
    let text = text.join("\n").trim().to_string();
    (!text.is_empty()).then(|| text + "\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const CHANGELOG: &str = "# Changes\n\n## Unreleased\n- b\n\n## 1.1.0 (2026-01-02)\n\n## 1.0.0 (2026-01-01)\n- a\n  - more\n\n## 0.9.0\n- old\n";

    fn source() -> Source {
        let changes = section(CHANGELOG, "1.0.0");
        Source { version: "1.0.0".into(), commit: Some("c0".into()), time: 0, snapshot: false, changes, dirty: false }
    }

    #[test]
    fn a_section_ends_where_the_next_begins() {
        assert_eq!(section(CHANGELOG, "1.0.0").unwrap(), "- a\n  - more\n");
        assert_eq!(section(CHANGELOG, "0.9.0").unwrap(), "- old\n");
        assert_eq!(section(CHANGELOG, "1.1.0"), None, "there is nothing in it");
        assert_eq!(section(CHANGELOG, "1.0"), None);
    }

    #[test]
    fn what_cannot_be_released_is_refused_with_the_fix() {
        let refused = |source: &Source, wanted| source.may_be_released(wanted).unwrap_err().to_string();
        source().may_be_released(None).unwrap();
        source().may_be_released(Some("v1.0.0")).unwrap();
        assert!(refused(&source(), Some("1.0.1")).contains("cargo xtask version 1.0.1"));
        let unlisted = Source { changes: None, ..source() };
        assert!(refused(&unlisted, None).contains("no section `## 1.0.0`"));
        let dirty = Source { dirty: true, ..source() };
        assert!(refused(&dirty, None).contains("uncommitted changes"));
        assert!(refused(&Source { commit: None, ..source() }, None).contains("from a clone"));
        // A snapshot may be made of all this, and says so; but never under another version.
        let snapshot = Source { snapshot: true, changes: None, ..dirty };
        snapshot.may_be_released(None).unwrap();
        let notes = snapshot.notes();
        assert!(notes.contains("A snapshot, not a release") && notes.contains("no section of this version"), "{notes}");
        assert!(refused(&snapshot, Some("2.0.0")).contains("cargo xtask version 2.0.0"));
        assert!(source().notes().ends_with("Commit c0.\n\n- a\n  - more\n"));
    }

    #[test]
    fn a_time_is_written_as_a_date() {
        let source = Source { time: 1_795_946_068, ..source() };
        assert_eq!(source.date().unwrap(), "2026-11-29T09:54:28Z");
    }
}
