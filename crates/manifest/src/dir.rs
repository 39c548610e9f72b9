//! Reading a directory, again whenever something in it changes.

use crate::{MeshConfig, parse, parse::Located, parse::Problem, security::KeySource, status};
use notify::{RecursiveMode, Watcher};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// After a change, more changes are awaited for this long, so that a burst is read once.
const SETTLE: Duration = Duration::from_millis(2);

/// Why a set of keys is not there, in the words of who tried to fetch it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotFetched(pub String);

/// Sets of keys by where they were fetched from, or why there are none.
pub type Keys = BTreeMap<KeySource, Result<String, NotFetched>>;

/// A key that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey(pub [u8; 32]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

/// The state of the directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// All objects, by file and place in it.
    pub objects: Vec<Arc<Located>>,
    /// Objects that another control plane reads, or none (label `istio.io/rev`): nothing is made of them.
    pub elsewhere: Vec<Arc<Located>>,
    /// What is wrong at the moment; of these files the last good state is in `objects`.
    pub problems: Vec<Problem>,
    /// Hash of the files' names and texts: tells which state of the directory this is.
    pub digest: u64,
    /// Pods (`namespace/name`) that an agent reports as redirected.
    pub enrolled: BTreeSet<String>,
    /// Kinds that the API server does not know.
    pub absent: BTreeSet<&'static str>,
    /// Keys of issuers, from elsewhere.
    pub keys: Arc<Keys>,
    /// What the keys are made of that gateways seal sessions with, in the order of their use.
    pub session_keys: Arc<Vec<SessionKey>>,
    /// The mesh configuration in force.
    pub mesh_config: Arc<MeshConfig>,
}

/// A watched directory.
pub struct Dir {
    path: PathBuf,
    good: BTreeMap<PathBuf, (String, Vec<Arc<Located>>)>,
    changes: mpsc::Receiver<()>,
    /// Something has changed since it was read.
    is_changed: bool,
    _watcher: notify::RecommendedWatcher,
}

impl Dir {
    /// Starts watching a directory, with its sub-directories.
    ///
    /// # Errors
    /// If it does not exist or cannot be watched.
    pub fn watch(path: &Path) -> io::Result<Self> {
        let named =
            |e: String| io::Error::other(format!("cannot watch the manifests in {}: {e} [KARST-0006]", path.display()));
        if !path.is_dir() {
            return Err(named("no such directory".into()));
        }
        let (tx, changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |e: notify::Result<notify::Event>| {
            let quiet = e.is_ok_and(|e| e.kind.is_access());
            if !quiet {
                // Full: a change is pending already.
                let _ = tx.try_send(());
            }
        })
        .map_err(|e| named(e.to_string()))?;
        watcher.watch(path, RecursiveMode::Recursive).map_err(|e| named(e.to_string()))?;
        Ok(Self { path: path.into(), good: BTreeMap::new(), changes, is_changed: false, _watcher: watcher })
    }

    /// Waits until something has changed since it was read. Who stops waiting misses nothing: a change is there until it is read.
    pub async fn changed(&mut self) {
        if !self.is_changed {
            if self.changes.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            self.is_changed = true;
        }
        tokio::time::sleep(SETTLE).await;
        while self.changes.try_recv().is_ok() {}
    }

    /// Reads everything.
    pub fn read(&mut self) -> State {
        self.is_changed = false;
        // The digest first: what is read after it is at least as new.
        let mut state = State { digest: digest(&self.path), enrolled: status::read(&self.path), ..State::default() };
        let mut files = Vec::new();
        list(&self.path, &mut files);
        let mut good = BTreeMap::new();
        for file in files {
            let before = self.good.remove(&file);
            let text = match fs::read_to_string(&file) {
                Ok(t) => t,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    state.problems.push(Problem {
                        file: file.clone(),
                        line: 1,
                        object: String::new(),
                        field: String::new(),
                        message: format!("cannot be read: {e} [KARST-0006]"),
                    });
                    good.extend(before.map(|before| (file, before)));
                    continue;
                }
            };
            if let Some(before) = before.as_ref().filter(|before| before.0 == text) {
                good.insert(file, before.clone());
                continue;
            }
            match parse::file(&file, &text) {
                Ok(objects) => {
                    good.insert(file, (text, objects.into_iter().map(Arc::new).collect()));
                }
                Err(problems) => {
                    state.problems.extend(problems);
                    good.extend(before.map(|before| (file, before)));
                }
            }
        }
        self.good = good;
        let mut seen: BTreeMap<(&str, String), &Arc<Located>> = BTreeMap::new();
        for located in self.good.values().flat_map(|(_, located)| located) {
            let meta = located.object.meta();
            let key = (located.object.kind(), format!("{}/{}", meta.namespace, meta.name));
            if let Some(first) = seen.get(&key) {
                let message = format!(
                    "is already defined in {}:{}; this definition is ignored [KARST-0005]",
                    first.file.display(),
                    first.line
                );
                state.problems.push(Problem {
                    file: located.file.clone(),
                    line: located.line,
                    object: format!("{} {}", key.0, key.1),
                    field: String::new(),
                    message,
                });
                continue;
            }
            seen.insert(key, located);
            state.objects.push(located.clone());
        }
        state
    }
}

/// The digest of a directory, as [`State::digest`].
pub fn digest(dir: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut files = Vec::new();
    list(dir, &mut files);
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(dir).unwrap_or(&file).hash(&mut hasher);
        fs::read(&file).unwrap_or_default().hash(&mut hasher);
    }
    status::read(dir).hash(&mut hasher);
    hasher.finish()
}

/// The files of a directory that are read.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = vec![];
    list(dir, &mut out);
    out
}

fn list(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            list(&path, out);
        } else if [".yaml", ".yml", ".json"].iter().any(|s| name.ends_with(s)) {
            out.push(path);
        }
    }
    out.sort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn last_good_state_stays_while_a_file_is_bad() {
        let d = std::env::temp_dir().join(format!("karst-dir-{}", std::process::id()));
        fs::create_dir_all(&d).unwrap();
        let ns = |n: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {n}}}\n");
        fs::write(d.join("a.yaml"), ns("a")).unwrap();
        let mut w = Dir::watch(&d).unwrap();
        assert_eq!(w.read().objects.len(), 1);
        fs::write(d.join("a.yaml"), ns("BAD")).unwrap();
        fs::write(d.join("b.yaml"), ns("b")).unwrap();
        tokio::time::timeout(Duration::from_secs(5), w.changed()).await.unwrap();
        let s = w.read();
        assert_eq!((s.objects.len(), s.problems.len()), (2, 1), "{s:?}");
        fs::remove_file(d.join("a.yaml")).unwrap();
        let s = w.read();
        assert_eq!((s.objects.len(), s.problems.len()), (1, 0));
        fs::write(d.join("c.yaml"), ns("b")).unwrap();
        let s = w.read();
        assert_eq!((s.objects.len(), s.problems.len()), (1, 1), "a second definition is a problem");
        // Who stops waiting in the midst of a change is told of it the next time.
        fs::write(d.join("d.yaml"), ns("d")).unwrap();
        let second = Duration::from_secs(1);
        while !w.is_changed {
            let _ = tokio::time::timeout(Duration::ZERO, w.changed()).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::timeout(second, w.changed()).await.unwrap();
        assert_eq!(w.read().objects.len(), 2);
        fs::remove_dir_all(&d).unwrap();
    }
}
