//! A directory in which a page's commands are run: a copy of samples/, with the files that the page says to write.

use super::{command::Simple, page::Page};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

/// It is removed at the end.
pub(crate) struct Place(PathBuf);

/// How a command ended.
pub(crate) struct Said {
    pub(crate) status: i32,
    /// Output and errors.
    pub(crate) text: String,
}

impl Place {
    pub(crate) fn new(root: &Path, page: &Page) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("karst-book-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        copy(&root.join("samples"), &directory.join("samples"));
        for (name, text) in page.files() {
            fs::write(directory.join(name), text).unwrap();
        }
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Runs a command of `karst`.
    pub(crate) fn run(&self, command: &Simple) -> Said {
        self.karst(&command.words[1..], command.input.as_deref().unwrap_or_default())
    }

    /// Checks a manifest as the webhook does.
    pub(crate) fn validate(&self, manifest: &str) -> Said {
        self.karst(&["validate", "-f", "-"].map(String::from), manifest)
    }

    fn karst(&self, words: &[String], input: &str) -> Said {
        let mut child = Command::new(env!("CARGO_BIN_EXE_karst"))
            .args(words)
            .env_clear()
            .env("HOME", "/nowhere")
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads nothing may have ended already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        Said { status: out.status.code().unwrap_or(-1), text: text.into_owned() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
