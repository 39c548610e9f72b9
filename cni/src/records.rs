//! What the agent must know of a pod after its own restart, when the pod may have left the manifests.

use karst_ebpf::PodConfig;
use serde::{Deserialize, Serialize};
use std::{fs, io, net::IpAddr, path::Path};

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

/// Reads all records.
pub fn load(dir: &Path) -> Vec<Record> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|f| serde_json::from_slice(&fs::read(f.path()).ok()?).ok()).collect()
}

/// Reads one.
pub fn one(dir: &Path, uid: &str) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(uid)).ok()?).ok()
}

/// Writes one, atomically.
pub fn save(dir: &Path, record: &Record) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let tmp = dir.join(format!(".{}", record.uid));
    fs::write(&tmp, serde_json::to_vec(record)?)?;
    fs::rename(tmp, dir.join(&record.uid))
}

/// Removes one.
pub fn remove(dir: &Path, uid: &str) {
    let _ = fs::remove_file(dir.join(uid));
}
