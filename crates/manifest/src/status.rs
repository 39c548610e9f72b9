//! What agents report back in directory mode, in place of the annotation `ambient.istio.io/redirection` that they write
//! on Kubernetes: an empty file `.status/<node>/<namespace>.<pod>` for each pod whose redirection is in force. (A
//! namespace has no dot in its name, so the first one separates.)

use std::{collections::BTreeSet, fs, io, path::Path};

const DIR: &str = ".status";

/// The pods (`namespace/name`) reported as redirected.
pub fn read(dir: &Path) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for node in fs::read_dir(dir.join(DIR)).into_iter().flatten().flatten() {
        for pod in fs::read_dir(node.path()).into_iter().flatten().flatten() {
            if let Some((ns, name)) = pod.file_name().to_string_lossy().split_once('.') {
                out.insert(format!("{ns}/{name}"));
            }
        }
    }
    out
}

/// Reports one pod.
///
/// # Errors
/// Those of the file system.
pub fn write(dir: &Path, node: &str, namespace: &str, pod: &str, enrolled: bool) -> io::Result<()> {
    let reports = dir.join(DIR).join(node);
    let report = reports.join(format!("{namespace}.{pod}"));
    if !enrolled {
        return match fs::remove_file(report) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    if report.exists() {
        return Ok(());
    }
    fs::create_dir_all(reports)?;
    fs::write(report, "")
}

/// Drops the reports of a node's pods that are not in `keep` (`namespace/name`).
///
/// # Errors
/// Those of the file system.
pub fn retain(dir: &Path, node: &str, keep: &BTreeSet<String>) -> io::Result<()> {
    for report in fs::read_dir(dir.join(DIR).join(node)).into_iter().flatten().flatten() {
        if let Some((ns, name)) = report.file_name().to_string_lossy().split_once('.')
            && !keep.contains(&format!("{ns}/{name}"))
        {
            fs::remove_file(report.path())?;
        }
    }
    Ok(())
}
