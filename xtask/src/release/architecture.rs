//! What a release is built for. amd64 is what is tested; arm64 is cross-built with Debian's compiler, and nobody has run it on such
//! a machine yet.

use crate::{cluster::image, setup, tools};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::{path::PathBuf, process::Command};

/// An architecture of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

/// The programs of a release.
pub(crate) const PROGRAMS: [&str; 10] = [
    "karst",
    "karst-controller",
    "karst-cni",
    "ztunnel",
    "karst-waypoint",
    "sample-http",
    "sample-grpc",
    "sample-tcp",
    "sample-bookinfo",
    "sample-store",
];

impl Architecture {
    /// This machine's.
    pub(crate) const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// The name that images and archives give it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's name.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// What the tools of Debian's cross compiler begin with; nothing for this machine's own.
    fn prefix(self) -> &'static str {
        match self {
            _ if self.is_host() => "",
            Self::Amd64 => "x86_64-linux-gnu-",
            Self::Arm64 => "aarch64-linux-gnu-",
        }
    }

    /// Debian's packages by which another machine builds for it, and what for.
    fn packages(self) -> [(&'static str, &'static str); 2] {
        let [compiler, library] = match self {
            Self::Amd64 => ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            Self::Arm64 => ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        };
        [(compiler, "compiling and linking for another architecture"), (library, "linking it statically")]
    }

    /// Of another machine's architecture: its C compiler.
    fn compiler(self) -> String {
        format!("{}gcc", self.prefix())
    }

    /// Those that a release is built for where nothing is said: this machine's, and others whose compilers and libraries are there. A
    /// snapshot is for this machine. What is left out, and why, goes to `note`.
    pub(crate) fn possible(snapshot: bool, mut note: impl FnMut(String)) -> Vec<Self> {
        let mut all = vec![Self::HOST];
        for other in Self::value_variants().iter().copied().filter(|one| !one.is_host() && !snapshot) {
            match other.obstacle() {
                None => all.push(other),
                Some(why) => note(format!(
                    "not for {}: {why} (--architecture {} --architecture {} installs it)",
                    other.name(),
                    Self::HOST.name(),
                    other.name()
                )),
            }
        }
        all
    }

    /// Why another machine's architecture cannot be built for at the moment.
    fn obstacle(self) -> Option<String> {
        let compiler = self.compiler();
        let is_there = Command::new(&compiler).arg("--version").output().is_ok_and(|out| out.status.success());
        if !is_there {
            return Some(format!("there is no {compiler}"));
        }
        (!setup::has_target(self.triple())).then(|| format!("Rust's library for {} is not there", self.triple()))
    }

    /// Is it this machine's?
    pub(crate) fn is_host(self) -> bool {
        self.name() == image::HOST
    }

    /// The program that takes debug information away.
    pub(crate) fn strip(self) -> String {
        format!("{}strip", self.prefix())
    }

    /// Where the programs are when they are built.
    pub(crate) fn programs(self, snapshot: bool) -> Result<PathBuf> {
        if snapshot && self.is_host() {
            return tools::bin("");
        }
        // TARGET-FOLDER/TRIPLE/PROFILE.
        let shipped = tools::shipped()?;
        let folder = shipped.ancestors().nth(2).context("the target folder")?;
        let profile = if snapshot { "release" } else { tools::SHIPPED };
        Ok(if self.is_host() { shipped } else { folder.join(self.triple()).join(profile) })
    }

    /// Builds the programs. Under `--workspace`, as all else, or cargo would choose other features for the cryptography. A snapshot's
    /// are those of the tests, and optimized as they are ([`tools::TESTED`]).
    pub(crate) fn build(self, snapshot: bool) -> Result<()> {
        setup::run()?;
        let mut args = vec!["build", "--workspace", "--locked"];
        PROGRAMS.iter().for_each(|program| args.extend(["--bin", program]));
        if snapshot {
            args.push("--release");
            args.extend(tools::TESTED);
        } else {
            args.extend(["--profile", tools::SHIPPED]);
        }
        if self.is_host() {
            return tools::cargo(&args, &[]);
        }
        setup::cross(self.triple(), &self.packages())?;
        if let Some(why) = self.obstacle() {
            let [(compiler, _), (library, _)] = self.packages();
            let (name, triple) = (self.name(), self.triple());
            bail!(
                "{name} cannot be built here: {why}. Install {compiler} and {library}, and run rustup target add {triple}"
            );
        }
        let compiler = self.compiler();
        args.extend(["--target", self.triple()]);
        let name = self.triple().replace('-', "_");
        let linker = format!("CARGO_TARGET_{}_LINKER", name.to_uppercase());
        tools::cargo(&args, &[(&linker, &compiler), (&format!("CC_{name}"), &compiler)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said_and_a_snapshot_is_for_this_machine() {
        let (mut notes, mut none) = (vec![], vec![]);
        let all = Architecture::possible(false, |note| notes.push(note));
        assert_eq!(all.len() + notes.len(), Architecture::value_variants().len(), "{all:?} {notes:?}");
        assert_eq!(all.first(), Some(&Architecture::HOST));
        assert_eq!(Architecture::possible(true, |note| none.push(note)), [Architecture::HOST]);
        assert_eq!(none, [""; 0]);
    }
}
