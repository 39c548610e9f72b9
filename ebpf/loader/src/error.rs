//! What can go wrong, with the kernel feature that is missing and since when kernels have it.

use std::{io, path::PathBuf};

/// An error of loading, attaching or pinning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No bpffs.
    #[error(
        "{0} is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or choose another directory with --bpf-dir"
    )]
    NoBpffs(PathBuf),
    /// The kernel refused a program or attachment.
    #[error("{what}: {source}; needs {feature} (Linux {since} or later) and CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN")]
    Kernel {
        /// What was attempted.
        what: String,
        /// The feature.
        feature: &'static str,
        /// First kernel version with it.
        since: &'static str,
        /// The kernel's or the loader's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pod that cannot be enrolled as it is.
    #[error("{0}")]
    Pod(String),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
    pub(crate) fn kernel<E: std::error::Error + Send + Sync + 'static>(
        what: impl Into<String>,
        feature: &'static str,
        since: &'static str,
    ) -> impl FnOnce(E) -> Error {
        let what = what.into();
        // The loader's outer message hides the cause; show the whole chain.
        move |e| {
            let mut text = e.to_string();
            let mut cause = e.source();
            while let Some(c) = cause {
                text = format!("{text}: {c}");
                cause = c.source();
            }
            Error::Kernel { what, feature, since, source: text.into() }
        }
    }
}
