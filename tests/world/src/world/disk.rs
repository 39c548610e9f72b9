//! A small disk for what processes write, so that it can be full.

use super::World;
use crate::net;
use anyhow::{Context, Result};
use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::symlink,
    path::Path,
};

/// Where it is, in a world's directory.
const DISK: &str = "disk";

impl World {
    /// Mounts it, with the directories of the logs and of the agents' state on it.
    pub(super) fn mount_disk(&self, mib: u32) -> Result<()> {
        let disk = self.dir.join(DISK);
        fs::create_dir_all(&disk)?;
        let at = disk.display().to_string();
        net::run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", &at]).context("the small disk")?;
        fs::remove_dir(self.dir.join("logs"))?;
        let agents = (0..self.options.nodes).map(|node| format!("run{node}"));
        for name in agents.chain(["logs".into()]) {
            fs::create_dir(disk.join(&name))?;
            symlink(disk.join(&name), self.dir.join(&name))?;
        }
        Ok(())
    }

    /// Nothing more can be written to the small disk: what room there is, or is again, is used up.
    ///
    /// # Errors
    /// There is none ([`super::Options::disk_mib`]), or it fails otherwise.
    pub fn fill_disk(&self) -> Result<()> {
        let path = self.dir.join(DISK).join("ballast");
        let ballast = fs::OpenOptions::new().create(true).append(true).open(path);
        let mut ballast = ballast.context("the small disk")?;
        // Down to the last byte.
        for piece in [1 << 20, 4096, 1] {
            loop {
                match ballast.write(&vec![0; piece]) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => return Err(e).context("the small disk"),
                }
            }
        }
        Ok(())
    }

    /// There is room again.
    ///
    /// # Errors
    /// It was not filled.
    pub fn empty_disk(&self) -> Result<()> {
        fs::remove_file(self.dir.join(DISK).join("ballast")).context("the small disk")
    }

    /// Logs that have become longer than this begin again; `last` gets the text of each before that.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn shorten_logs(&self, longest: u64, mut last: impl FnMut(&str)) -> Result<()> {
        for file in fs::read_dir(self.dir.join("logs"))? {
            let file = file?;
            if file.metadata()?.len() > longest {
                last(&String::from_utf8_lossy(&fs::read(file.path())?));
                // Its writers append.
                fs::OpenOptions::new().write(true).open(file.path())?.set_len(0)?;
            }
        }
        Ok(())
    }
}

/// Takes the small disk of a world's directory away, if there is one.
pub(super) fn unmount(dir: &Path) {
    let disk = dir.join(DISK);
    if disk.exists() {
        let _ = net::run("umount", &["-l", &disk.display().to_string()]);
    }
}
