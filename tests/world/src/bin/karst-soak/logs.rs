//! The logs of a run that fails: a copy soon after each failure, as they are short, and what they complain of at the end.

use crate::{shared::Shared, site::Site};
use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Copies of one run, at most, beside that of its end.
const COPIES: usize = 5;
/// What belongs to a failure is written within this time.
const WRITTEN: Duration = Duration::from_secs(2);
/// So many complaints of each log are shown.
const SHOWN: usize = 10;

/// Where copies are, and for which failures.
pub struct Logs {
    directory: PathBuf,
    copies: usize,
    /// Failures that have their copy.
    failures: u64,
    /// When the next copy is made.
    due: Option<Duration>,
}

impl Logs {
    /// In a directory of the run's own. Another run's of the same name is removed.
    ///
    /// # Errors
    /// It cannot be.
    pub fn new(directory: PathBuf) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        Ok(Self { directory, copies: 0, failures: 0, due: None })
    }

    /// Copies the logs if something has failed since it was looked last.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn look(&mut self, site: &Site, shared: &Shared, broken: usize) -> Result<()> {
        let (now, failures) = (shared.now(), shared.counts().1 + broken as u64);
        if failures > self.failures && self.due.is_none() && self.copies < COPIES {
            self.due = Some(now + WRITTEN);
        }
        if self.due.is_some_and(|due| due <= now) {
            self.copies += 1;
            (self.failures, self.due) = (failures, None);
            site.world.copy_logs(&self.directory.join(format!("at-{}-s", now.as_secs())))?;
        }
        Ok(())
    }

    /// The last copy, and what the logs complain of.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn end(&self, site: &Site) -> Result<()> {
        let last = self.directory.join("at-the-end");
        site.world.copy_logs(&last)?;
        println!("\nlogs: {}; their last warnings and errors:", self.directory.display());
        let mut files: Vec<PathBuf> = fs::read_dir(&last)?.flatten().map(|file| file.path()).collect();
        files.sort();
        files.iter().for_each(|file| show(file));
        Ok(())
    }
}

fn show(file: &Path) {
    let text = fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().filter(|line| is_complaint(line)).collect();
    if !all.is_empty() {
        println!("--- {}", file.file_name().unwrap_or_default().to_string_lossy());
        all[all.len().saturating_sub(SHOWN)..].iter().for_each(|line| println!("{line}"));
    }
}

/// A line of at least a warning, or of no form of ours. What the intruder does is refused, as it must be.
fn is_complaint(line: &str) -> bool {
    let is_ours = matches!(line.split('\t').nth(1), Some("debug" | "info"));
    !is_ours && !line.contains("intruder")
}
