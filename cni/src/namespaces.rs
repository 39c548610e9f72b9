//! What the CNI plugin may know without the agent: the namespaces whose pods start unheld while the agent is down. The agent
//! keeps the file; the plugin reads it. Who is not named in it, or named too long ago, is held.
//!
//! A pod can opt in by its own label, which the plugin does not see. So a namespace is named only if its label brings nobody
//! in *and* no pod that opts in has been seen in it on this node for a day. What remains is the first pod of its kind that
//! starts on a node without an agent: it is redirected when the agent is back, and its connections from before are counted as
//! such (`karst_unmeshed_connections`). Who wants no remainder sets `--hold-all`: then nobody is named.

use crate::replace::replace;
use karst_manifest::{Object, State, enrol};
use karst_rt::clock;
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// Name of the file, beside the plugin's socket.
const FILE: &str = "namespaces.json";
/// Of the file's form; others are not read.
const VERSION: u32 = 1;
/// The file is believed this long after it was written: a node whose agent does not come back closes again.
const TRUSTED: u64 = 24 * 3600;
/// A namespace is remembered this long as one in which pods opt in by themselves.
const REMEMBERED: u64 = 24 * 3600;
/// What is written this far in the future (by a clock that was wrong) is not believed.
const SKEW: u64 = 300;
/// How often the file is written while nothing changes: its time says when the agent was last there.
const RENEWED: Duration = Duration::from_secs(60);
/// A larger file is not ours.
const MAX: u64 = 8 << 20;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespaces {
    version: u32,
    /// When the agent knew this, in seconds since 1970.
    written: u64,
    /// Whose pods need not wait for the agent.
    not_enrolled: BTreeSet<String>,
    /// Where pods opt in by themselves, and when one was last seen.
    opted_in: BTreeMap<String, u64>,
}

/// May a pod start without the agent?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its namespace was outside the mesh when the agent was last there.
    Starts,
    /// Its namespace belongs to the mesh, or nobody knows that it does not.
    NotNamed,
    /// The agent has been away for too long for what it wrote to be believed.
    TooOld,
    /// There is no file that can be read.
    Unknown,
}

impl Namespaces {
    /// What is to be written now, given what was known before.
    fn next(before: &Self, state: &State, hold_all: bool, now: u64) -> Self {
        let mut opted_in = before.opted_in.clone();
        opted_in.retain(|_, seen| now.saturating_sub(*seen) < REMEMBERED);
        let mut outside = BTreeSet::new();
        for located in &state.objects {
            match &located.object {
                Object::Pod(p) if enrol::opts_in(p) => {
                    opted_in.insert(p.metadata.namespace.clone(), now);
                }
                Object::Namespace(n) if !enrol::enrols(n) && !hold_all => {
                    outside.insert(n.metadata.name.clone());
                }
                _ => {}
            }
        }
        outside.retain(|n| !opted_in.contains_key(n));
        Self { version: VERSION, written: now, not_enrolled: outside, opted_in }
    }

    /// May a pod of this namespace start without the agent?
    fn verdict(&self, namespace: &str, now: u64) -> Verdict {
        if self.version != VERSION {
            return Verdict::Unknown;
        }
        if self.written > now + SKEW || now.saturating_sub(self.written) > TRUSTED {
            return Verdict::TooOld;
        }
        match self.not_enrolled.contains(namespace) {
            true => Verdict::Starts,
            false => Verdict::NotNamed,
        }
    }

    fn read(file: &Path) -> Option<Self> {
        (fs::metadata(file).ok()?.len() <= MAX)
            .then(|| fs::read(file).ok())?
            .and_then(|b| serde_json::from_slice(&b).ok())
    }

    fn write(&self, file: &Path) -> io::Result<()> {
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        let text = serde_json::to_vec(self)?;
        replace(file, &file.with_extension("tmp"), |to| fs::write(to, text))
    }
}

/// Beside the plugin's socket.
fn beside(socket: &Path) -> PathBuf {
    socket.with_file_name(FILE)
}

fn now() -> u64 {
    clock::since_epoch().as_secs()
}

/// May a pod start without the agent that listens at this socket?
pub fn verdict(socket: &Path, namespace: &str) -> Verdict {
    Namespaces::read(&beside(socket)).map_or(Verdict::Unknown, |n| n.verdict(namespace, now()))
}

/// Takes the file away: with the agent goes the plugin that reads it.
pub fn remove(socket: &Path) {
    let _ = fs::remove_file(beside(socket));
}

/// The file, as the agent keeps it.
pub struct Kept {
    file: PathBuf,
    hold_all: bool,
    known: RefCell<Namespaces>,
}

impl Kept {
    /// Begins with what an earlier agent wrote, and renews the file for as long as this one runs.
    pub fn start(socket: &Path, hold_all: bool) -> Rc<Self> {
        let file = beside(socket);
        let known = Namespaces::read(&file).filter(|n| n.version == VERSION).unwrap_or_default();
        let kept = Rc::new(Self { file, hold_all, known: RefCell::new(known) });
        let renewed = kept.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(RENEWED).await;
                // Before the first update nothing of this agent's is known.
                if renewed.known.borrow().version == VERSION {
                    renewed.known.borrow_mut().written = now();
                    renewed.save();
                }
            }
        });
        kept
    }

    /// Writes what has changed.
    pub fn update(&self, state: &State) {
        let next = Namespaces::next(&self.known.borrow(), state, self.hold_all, now());
        let same = {
            let known = self.known.borrow();
            let names = |n: &BTreeMap<String, u64>| n.keys().cloned().collect::<Vec<_>>();
            known.version == next.version
                && known.not_enrolled == next.not_enrolled
                && names(&known.opted_in) == names(&next.opted_in)
        };
        self.known.replace(next);
        if !same {
            self.save();
        }
    }

    fn save(&self) {
        if let Err(e) = self.known.borrow().write(&self.file) {
            // What stands there is not so any more: a pod that belongs to the mesh now might start without the agent.
            let _ = fs::remove_file(&self.file);
            let file = self.file.display();
            tracing::warn!(error = %e, "cannot write {file}: while the agent is away, new pods of all namespaces will wait for it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(text: &str) -> State {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("karst-namespaces-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("x.yaml"), text).unwrap();
        let s = karst_manifest::Dir::watch(&dir).unwrap().read();
        fs::remove_dir_all(dir).unwrap();
        s
    }

    const OBJECTS: &str = "apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: opted}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: opted, labels: {istio.io/dataplane-mode: ambient}}
";

    #[test]
    fn only_namespaces_outside_the_mesh_start_without_the_agent() {
        let n = Namespaces::next(&Namespaces::default(), &state(OBJECTS), false, 1000);
        assert_eq!(n.verdict("plain", 1000), Verdict::Starts);
        assert_eq!(n.verdict("mesh", 1000), Verdict::NotNamed);
        assert_eq!(n.verdict("opted", 1000), Verdict::NotNamed, "its pods opt in by themselves");
        assert_eq!(n.verdict("never-seen", 1000), Verdict::NotNamed);
        let all = Namespaces::next(&Namespaces::default(), &state(OBJECTS), true, 1000);
        assert_eq!(all.verdict("plain", 1000), Verdict::NotNamed, "--hold-all");
    }

    #[test]
    fn what_opted_in_is_remembered_for_a_day() {
        let with = Namespaces::next(&Namespaces::default(), &state(OBJECTS), false, 1000);
        let gone = state("apiVersion: v1\nkind: Namespace\nmetadata: {name: opted}\n");
        let soon = Namespaces::next(&with, &gone, false, 1000 + REMEMBERED - 1);
        assert_eq!(soon.verdict("opted", soon.written), Verdict::NotNamed);
        let later = Namespaces::next(&soon, &gone, false, 1000 + REMEMBERED);
        assert_eq!(later.verdict("opted", later.written), Verdict::Starts);
    }

    #[test]
    fn old_files_and_other_forms_hold() {
        let n = Namespaces::next(&Namespaces::default(), &state(OBJECTS), false, 100_000);
        assert_eq!(n.verdict("plain", 100_000 + TRUSTED), Verdict::Starts);
        assert_eq!(n.verdict("plain", 100_001 + TRUSTED), Verdict::TooOld);
        assert_eq!(n.verdict("plain", 100_000 - SKEW), Verdict::Starts);
        assert_eq!(n.verdict("plain", 99_999 - SKEW), Verdict::TooOld, "written in the future");
        assert_eq!(Namespaces { version: 2, ..n }.verdict("plain", 100_000), Verdict::Unknown);
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let dir = std::env::temp_dir().join(format!("karst-namespaces-file-{}", std::process::id()));
        let socket = dir.join("pluginevent.sock");
        assert_eq!(verdict(&socket, "plain"), Verdict::Unknown, "no file");
        let n = Namespaces::next(&Namespaces::default(), &state(OBJECTS), false, now());
        n.write(&beside(&socket)).unwrap();
        assert_eq!(Namespaces::read(&beside(&socket)), Some(n));
        assert_eq!(verdict(&socket, "plain"), Verdict::Starts);
        fs::write(beside(&socket), "{\"version\": 1").unwrap();
        assert_eq!(verdict(&socket, "plain"), Verdict::Unknown, "cut");
        remove(&socket);
        assert!(!beside(&socket).exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
