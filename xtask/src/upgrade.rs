//! `cargo xtask upgrade --from COMMIT`: from an older release to this one and back, under load, on a fresh local cluster.
//!
//! The older release is built once, in a git worktree of its own outside of this one; its images (with a tag of their own,
//! `from-COMMIT`) and its charts are kept under `target/upgrade/COMMIT`. What is then done to the cluster, and what must be seen, is
//! tests/e2e/tests/upgrade.rs.

use crate::{
    cluster::{Cluster, image::Image, shell::said},
    tools::cargo,
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What to upgrade from.
#[derive(Args)]
pub struct What {
    /// The older release: a commit, a tag or a branch.
    #[arg(long, value_name = "COMMIT")]
    from: String,
    /// Leave the cluster running.
    #[arg(long)]
    keep: bool,
}

/// A component of a release: image, program, and other names of the program.
const COMPONENTS: [(&str, &str, &[&str]); 4] = [
    ("pilot", "karst-controller", &["/usr/local/bin/pilot-discovery"]),
    ("install-cni", "karst-cni", &[]),
    ("ztunnel", "ztunnel", &[]),
    ("waypoint", "karst-waypoint", &[]),
];
/// The charts' default.
const HUB: &str = "registry.local/karst";

/// An older release, as it lies under `target/upgrade`.
struct Release {
    /// The whole hash.
    commit: String,
    /// Images and charts.
    directory: PathBuf,
}

/// Runs it.
pub fn run(what: &What) -> Result<()> {
    let release = Release::of(&what.from)?;
    release.build()?;
    crate::build()?;
    let cluster = Cluster::new()?;
    cluster.down()?;
    cluster.up(2)?;
    cluster.load(&release.images())?;
    let crds = cluster.bin.join("gateway-api.yaml").display().to_string();
    cluster.kubectl(&["apply", "--server-side", "-f", &crds])?;
    let charts = release.charts().display().to_string();
    let test = ["test", "--release", "--workspace", "--locked", "--test", "upgrade", "--", "--ignored", "--nocapture"];
    let result = cargo(&test, &[("KARST_UPGRADE_CHARTS", &charts), ("KARST_UPGRADE_TAG", &release.tag())]);
    cluster.end(result, what.keep)
}

impl Release {
    fn of(from: &str) -> Result<Self> {
        let commit = git(&["rev-parse", "--verify", "--end-of-options", &format!("{from}^{{commit}}")])
            .with_context(|| format!("--from {from}: not a commit of this repository"))?;
        let directory = std::path::absolute("target/upgrade")?.join(short(&commit));
        Ok(Self { commit, directory })
    }

    /// The tag of its images.
    fn tag(&self) -> String {
        format!("from-{}", short(&self.commit))
    }

    fn charts(&self) -> PathBuf {
        self.directory.join("charts")
    }

    /// Where it is checked out while it is built. Not below this checkout: cargo would take this one's `.cargo/config.toml` for its own,
    /// too, which has other flags, and names that the older one has otherwise.
    fn tree(&self) -> PathBuf {
        std::env::temp_dir().join(format!("karst-{}", self.tag()))
    }

    fn images(&self) -> Vec<PathBuf> {
        COMPONENTS.iter().map(|(image, ..)| self.directory.join(format!("{image}.tar"))).collect()
    }

    /// Builds it, if it is not there whole.
    fn build(&self) -> Result<()> {
        let whole = self.directory.join("whole");
        if whole.is_file() {
            println!("{}: built before", self.tag());
            return Ok(());
        }
        crate::setup::run()?;
        let tree = self.tree();
        fs::create_dir_all(&self.directory)?;
        // One that an earlier run was interrupted in.
        remove_tree(&tree)?;
        git(&["worktree", "add", "--detach", "--force", &tree.display().to_string(), &self.commit])?;
        let built = self.build_in(&tree);
        remove_tree(&tree)?;
        built?;
        Ok(fs::write(whole, "")?)
    }

    fn build_in(&self, tree: &Path) -> Result<()> {
        println!("building {} of {}: as long as a build from cold", self.tag(), self.commit);
        // One target directory for all older releases: they share most of what they depend on.
        let target = std::path::absolute("target/upgrade/build")?;
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        build.current_dir(tree).env("CARGO_TARGET_DIR", &target);
        // The toolchain is the one that the older release names. The linker of its eBPF programs is this checkout's: it looks for its
        // own below itself, where nothing is, and then on the path.
        build.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO_MANIFEST_DIR").env("PATH", with_tools()?);
        // What CI asks of this checkout's code is not the older one's.
        build.env_remove("RUSTC_WORKSPACE_WRAPPER");
        build.args(["build", "--release", "--workspace", "--locked"]);
        build.args(COMPONENTS.iter().flat_map(|(_, program, _)| ["--bin", program]));
        let status = build.status().context("cannot start cargo")?;
        ensure!(status.success(), "{} does not build", self.commit);
        for (image, program, names) in COMPONENTS {
            let built = find(&target, program)?;
            let stripped = self.directory.join(program);
            let status = Command::new("strip").arg("-o").arg(&stripped).arg(&built).status();
            ensure!(status.context("cannot start strip (binutils)")?.success(), "strip {} failed", built.display());
            let entry = format!("/usr/local/bin/{program}");
            let named = Image::new(&format!("{HUB}/{image}:{}", self.tag()), &[&entry]).file(&stripped, &entry);
            let whole = names.iter().fold(named, |image, name| image.link(name, &entry));
            whole.write(&self.directory.join(format!("{image}.tar")))?;
        }
        copy(&tree.join("charts"), &self.charts())
    }
}

/// The path, and before it the tools that `cargo xtask setup` has built.
fn with_tools() -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::path::absolute("target/tools/bin")?;
    Ok(std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)))?)
}

/// A program where cargo puts it: with a target in the build's configuration, in a directory of that name.
fn find(target: &Path, program: &str) -> Result<PathBuf> {
    let named = fs::read_dir(target)?.flatten().map(|entry| entry.path().join("release").join(program));
    let places = named.chain([target.join("release").join(program)]);
    let found = places.filter(|path| path.is_file());
    // An older release with another configuration may have left one.
    let newest = found.max_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok());
    newest.with_context(|| format!("{program} is not in {}", target.display()))
}

fn remove_tree(tree: &Path) -> Result<()> {
    // Git knows none whose directory somebody has removed and another has made; what is left of it goes all the same.
    if tree.exists() && git(&["worktree", "remove", "--force", &tree.display().to_string()]).is_err() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    git(&["worktree", "prune"]).map(drop)
}

fn git(args: &[&str]) -> Result<String> {
    Ok(said("git", args, Path::new("."))?.trim().to_string())
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("{} cannot be copied", source.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn programs_are_found_with_and_without_a_target() {
        let target = std::env::temp_dir().join(format!("karst-upgrade-{}", std::process::id()));
        let _ = fs::remove_dir_all(&target);
        for place in ["release", "x86_64-unknown-linux-musl/release"] {
            fs::create_dir_all(target.join(place)).unwrap();
        }
        fs::write(target.join("release/one"), "").unwrap();
        fs::write(target.join("x86_64-unknown-linux-musl/release/two"), "").unwrap();
        assert!(find(&target, "one").unwrap().ends_with("release/one"));
        assert!(find(&target, "two").unwrap().ends_with("release/two"));
        assert!(find(&target, "three").is_err());
        copy(&target, &target.with_extension("copy")).unwrap();
        assert!(target.with_extension("copy").join("release/one").is_file());
        for directory in [target.clone(), target.with_extension("copy")] {
            fs::remove_dir_all(directory).unwrap();
        }
    }

    /// Seen: the alias `xtask` was a text in the one and a list in the other, and nothing was built.
    #[test]
    fn an_older_release_is_built_where_no_configuration_but_its_own_is_read() {
        let release =
            Release { commit: "450f8a0090d3ff".into(), directory: PathBuf::from("target/upgrade/450f8a0090d3") };
        let tree = release.tree();
        assert!(tree.is_absolute() && tree.ends_with("karst-from-450f8a0090d3"), "{}", tree.display());
        let configured = tree.ancestors().skip(1).find(|above| above.join(".cargo/config.toml").is_file());
        assert_eq!(configured, None);
    }

    #[test]
    fn the_tools_come_first_on_the_path() {
        let path = with_tools().unwrap();
        let first = std::env::split_paths(&path).next().unwrap();
        assert!(first.is_absolute() && first.ends_with("target/tools/bin"), "{path:?}");
        assert!(std::env::split_paths(&path).count() > 1);
    }

    #[test]
    fn images_have_a_tag_of_their_own() {
        let commit = "0123456789abcdef0123456789abcdef01234567".to_string();
        let release = Release { commit, directory: "/x".into() };
        assert_eq!(release.tag(), "from-0123456789ab");
        assert_eq!(release.images()[0], PathBuf::from("/x/pilot.tar"));
    }
}
