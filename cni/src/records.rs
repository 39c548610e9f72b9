//! What the agent must know of a pod after its own restart, when the pod may have left the manifests.

use crate::replace::replace;
use karst_ebpf::PodConfig;
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// One enrolled pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the pin directory.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Path of its network namespace.
    pub netns: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Connections that were open when it was redirected, by the kernel's cookies; none: it has not been yet.
    #[serde(default)]
    pub unmeshed: Option<Vec<u64>>,
    /// Why it cannot be redirected and is closed.
    #[serde(default)]
    pub closed: Option<String>,
}

impl Record {
    /// Enough of the configuration to take the pod out.
    pub fn config(&self) -> PodConfig {
        PodConfig {
            uid: self.uid.clone(),
            closed: self.closed.is_some(),
            ips: self.ips.clone(),
            bypass_inbound: false,
            bypass_dns: false,
            trust_mark: false,
            all_devices: false,
            other_protocols: false,
            inner_devices: vec![],
        }
    }
}

/// The records of a node's pods.
///
/// They are for the agent after this one. A disk that is full or broken must not keep a pod out of the mesh, let alone take one out
/// that is redirected: what cannot be written is kept here, and [`Self::retry`] writes it.
pub struct Records {
    dir: PathBuf,
    unwritten: RefCell<BTreeMap<String, Record>>,
}

impl Records {
    /// Those in `pods` of the agent's directory.
    pub fn within(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("pods"), unwritten: RefCell::default() }
    }

    /// Reads all records.
    pub fn load(&self) -> Vec<Record> {
        let unwritten = self.unwritten.borrow();
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let whole = files.filter(|f| !f.file_name().as_encoded_bytes().starts_with(b"."));
        let read = whole.filter_map(|f| serde_json::from_slice::<Record>(&fs::read(f.path()).ok()?).ok());
        read.filter(|r| !unwritten.contains_key(&r.uid)).chain(unwritten.values().cloned()).collect()
    }

    /// Reads one.
    pub fn one(&self, uid: &str) -> Option<Record> {
        if let Some(record) = self.unwritten.borrow().get(uid) {
            return Some(record.clone());
        }
        serde_json::from_slice(&fs::read(self.dir.join(uid)).ok()?).ok()
    }

    /// Writes one, atomically, now or later.
    pub fn save(&self, record: &Record) {
        match self.write(record) {
            Ok(()) => drop(self.unwritten.borrow_mut().remove(&record.uid)),
            Err(e) => {
                let is_first = self.unwritten.borrow().is_empty();
                self.unwritten.borrow_mut().insert(record.uid.clone(), record.clone());
                if is_first {
                    tracing::warn!(
                        error = %e,
                        "cannot write to {} (--run-dir): pods are redirected all the same, and this is tried again; make room, or the next agent will know less of them",
                        self.dir.display()
                    );
                }
            }
        }
    }

    /// Writes what could not be written.
    pub fn retry(&self) {
        let mut unwritten = self.unwritten.borrow_mut();
        if unwritten.is_empty() {
            return;
        }
        unwritten.retain(|_, record| self.write(record).is_err());
        if unwritten.is_empty() {
            tracing::info!("the pods' records in {} are complete again", self.dir.display());
        }
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let (file, temporary) = (self.dir.join(&record.uid), self.dir.join(format!(".{}", record.uid)));
        let text = serde_json::to_vec(record)?;
        replace(&file, &temporary, |to| fs::write(to, text))
    }

    /// Removes one.
    pub fn remove(&self, uid: &str) {
        self.unwritten.borrow_mut().remove(uid);
        let _ = fs::remove_file(self.dir.join(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str, netns: &str) -> Record {
        let (uid, netns) = (uid.into(), netns.into());
        let (namespace, name) = ("a".into(), "p".into());
        Record { uid, namespace, name, netns, ips: vec![], unmeshed: None, closed: None }
    }

    #[test]
    fn what_cannot_be_written_is_known_and_written_later() {
        let dir = std::env::temp_dir().join(format!("karst-records-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (records, next_agent) = (Records::within(&dir), Records::within(&dir));
        records.save(&record("u", "/first"));
        assert_eq!(next_agent.load(), [record("u", "/first")]);
        // Nothing can be written where a directory should be and is none.
        let (pods, aside) = (dir.join("pods"), dir.join("aside"));
        fs::rename(&pods, &aside).unwrap();
        fs::write(&pods, "").unwrap();
        records.save(&record("u", "/second"));
        records.save(&record("v", "/x"));
        records.save(&record("w", "/x"));
        records.remove("w");
        records.retry();
        let all = [record("u", "/second"), record("v", "/x")];
        assert_eq!((records.load(), records.one("u")), (all.to_vec(), Some(all[0].clone())));
        assert!(next_agent.load().is_empty());
        fs::remove_file(&pods).unwrap();
        fs::rename(&aside, &pods).unwrap();
        // The old record is still there, and only the new one counts.
        assert_eq!(records.load(), all);
        records.retry();
        let mut written = next_agent.load();
        written.sort_by(|x, y| x.uid.cmp(&y.uid));
        assert_eq!(written, all);
        assert!(records.unwritten.borrow().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
