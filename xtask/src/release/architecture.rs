//! What a release is built for. amd64 is what is tested; arm64 is cross-built with Debian's compiler where that is
//! installed, and nobody has run it on such a machine yet.

use crate::{cluster::image, setup, tools};
use anyhow::{Context, Result, ensure};
use std::{path::PathBuf, process::Command};

/// An architecture of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
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

    /// Is it this machine's?
    pub(crate) fn is_host(self) -> bool {
        self.name() == image::HOST
    }

    /// The program that takes debug information away.
    pub(crate) fn strip(self) -> String {
        format!("{}strip", self.prefix())
    }

    /// Where the programs are when they are built.
    pub(crate) fn programs(self) -> Result<PathBuf> {
        let own = tools::bin("")?;
        if self.is_host() {
            return Ok(own);
        }
        // TARGET-FOLDER/TRIPLE/PROFILE/.
        let folder = own.ancestors().nth(2).context("the target folder")?;
        Ok(folder.join(self.triple()).join("release"))
    }

    /// Builds the programs. Under `--workspace`, as all else, or cargo would choose other features for the cryptography; a snapshot's
    /// with what the tests switch on ([`tools::TESTED`]).
    pub(crate) fn build(self, snapshot: bool) -> Result<()> {
        setup::run()?;
        let mut args = vec!["build", "--release", "--workspace", "--locked"];
        PROGRAMS.iter().for_each(|program| args.extend(["--bin", program]));
        if snapshot {
            args.extend(tools::TESTED);
        }
        if self.is_host() {
            return tools::cargo(&args, &[]);
        }
        let compiler = format!("{}gcc", self.prefix());
        let found = Command::new(&compiler).arg("--version").output().is_ok_and(|out| out.status.success());
        let package = compiler.replace("x86_64", "x86-64").split("-gcc").next().unwrap_or_default().to_string();
        ensure!(
            found,
            "{} cannot be built here: there is no {compiler}. Install gcc-{package} and libc6-dev-{}-cross, and run rustup target add {}",
            self.name(),
            self.name(),
            self.triple()
        );
        args.extend(["--target", self.triple()]);
        let name = self.triple().replace('-', "_");
        let linker = format!("CARGO_TARGET_{}_LINKER", name.to_uppercase());
        tools::cargo(&args, &[(&linker, &compiler), (&format!("CC_{name}"), &compiler)])
    }
}
