//! A file of configuration that is read at the start, and again when it changes. What cannot be read is told once,
//! and changes nothing: the last good content stays in force. A file that is not there at the start is an empty one
//! (its ConfigMap may come later); one that goes is a fault.

use std::{
    fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Largest file, bytes (a ConfigMap holds 1 MiB).
const LARGEST: u64 = 16 << 20;

/// What tells one content of the file from another. (A ConfigMap's volume changes by a link: then it is another file.)
type Stamp = (Option<SystemTime>, u64, u64);

/// What is wrong with the file. The text names the file and the option that gave it.
#[derive(Debug, thiserror::Error)]
#[error("{what} in {} ({option}): {fault}", .path.display())]
pub struct FileError<E: std::error::Error + 'static> {
    what: &'static str,
    option: &'static str,
    path: PathBuf,
    fault: Fault<E>,
}

#[derive(Debug, thiserror::Error)]
enum Fault<E: std::error::Error + 'static> {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("is larger than {LARGEST} bytes")]
    TooLarge,
    #[error(transparent)]
    Content(E),
}

/// The file as it was seen the last time.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    /// What it holds, in words, and the environment variable that names it.
    what: &'static str,
    option: &'static str,
    /// None before the first look.
    seen: Option<Seen>,
    /// What is wrong now; told once.
    fault: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Absent,
    Present(Stamp),
}

impl File {
    /// A file that nobody has looked at. `what` it holds, and the `option` that names it, are for errors.
    pub fn new(path: PathBuf, what: &'static str, option: &'static str) -> Self {
        Self { path, what, option, seen: None, fault: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is new, as `parse` reads it. None: nothing has changed since the last look.
    pub fn look<T, E: std::error::Error + 'static>(
        &mut self,
        parse: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Option<Result<T, FileError<E>>> {
        let now = match fs::metadata(&self.path) {
            Ok(m) => Seen::Present((m.modified().ok(), m.len(), m.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.seen {
                None | Some(Seen::Absent) => Seen::Absent,
                Some(Seen::Present(_)) => return self.fails(e.into()),
            },
            Err(e) => return self.fails(e.into()),
        };
        if self.seen == Some(now) && self.fault.is_none() {
            return None;
        }
        let bytes = match now {
            Seen::Absent => Ok(Vec::new()),
            Seen::Present(_) => read(&self.path),
        };
        self.seen = Some(now);
        match bytes.and_then(|bytes| parse(&bytes).map_err(Fault::Content)) {
            Ok(content) => {
                self.fault = None;
                Some(Ok(content))
            }
            Err(e) => self.fails(e),
        }
    }

    fn fails<T, E: std::error::Error + 'static>(&mut self, fault: Fault<E>) -> Option<Result<T, FileError<E>>> {
        let text = fault.to_string();
        if self.fault.as_ref() == Some(&text) {
            return None;
        }
        self.fault = Some(text);
        Some(Err(FileError { what: self.what, option: self.option, path: self.path.clone(), fault }))
    }
}

fn read<E: std::error::Error + 'static>(path: &Path) -> Result<Vec<u8>, Fault<E>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LARGEST {
        true => Err(Fault::TooLarge),
        false => Ok(bytes),
    }
}
