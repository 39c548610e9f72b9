//! Where objects come from: the API server, or a directory of the same objects in YAML.

use crate::{ChangedObjects, WatchCounts, Watched};
use karst_manifest::{Dir, State, parse::Located};
use std::{path::PathBuf, sync::Arc};

/// Where objects come from, as `--source` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSource {
    /// A directory of manifests.
    Dir(PathBuf),
    /// The API server.
    Kubernetes,
}

impl std::str::FromStr for ObjectSource {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.strip_prefix("dir:") {
            Some(p) if !p.is_empty() => Ok(ObjectSource::Dir(p.into())),
            None if text == "kubernetes" => Ok(ObjectSource::Kubernetes),
            _ => anyhow::bail!("--source {text:?}: use kubernetes, or dir:PATH, the directory of manifests"),
        }
    }
}

/// The objects.
pub enum Source {
    /// A directory of manifests.
    Dir(Dir),
    /// The API server.
    Kubernetes(Box<Watched>),
}

impl Source {
    /// What has happened to the API server's objects; none of a directory's.
    pub fn counts(&self) -> Option<Arc<WatchCounts>> {
        match self {
            Source::Dir(_) => None,
            Source::Kubernetes(k) => Some(k.counts()),
        }
    }
    /// Waits for a change.
    pub async fn changed(&mut self) {
        match self {
            Source::Dir(d) => d.changed().await,
            Source::Kubernetes(k) => k.changed().await,
        }
    }
    /// What has changed since the state was read, if it is only objects that are meant. None: the state is to be read.
    pub fn changes(&mut self, are_meant: impl Fn(&Located) -> bool) -> Option<ChangedObjects> {
        match self {
            Source::Dir(_) => None,
            Source::Kubernetes(k) => k.changes(are_meant),
        }
    }
    /// The state now.
    pub fn read(&mut self) -> State {
        match self {
            Source::Dir(d) => d.read(),
            Source::Kubernetes(k) => k.state(),
        }
    }
}
