//! Puts the CNI plugin on the node: the program into the runtime's directory, an entry into the first configuration list.
//! Other software may write that list at any time, so it is looked after.

use crate::replace::replace;
use anyhow::{Context, Result};
use notify::{RecursiveMode, Watcher};
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

/// Istio's name of the program and of the entry's type.
const NAME: &str = "istio-cni";
/// The program that runs.
const OWN: &str = "/proc/self/exe";

/// What could not be written is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// Where things go.
#[derive(Clone, Debug)]
pub struct Install {
    /// The runtime's directory of programs.
    pub bin_dir: PathBuf,
    /// The runtime's directory of configurations.
    pub conf_dir: PathBuf,
    /// Namespaces whose pods start without the agent.
    pub exclude: Vec<String>,
}

impl Install {
    /// Copies the program, which is this one, unless it is there.
    pub fn program(&self) -> Result<()> {
        let (file, temporary) = (self.bin_dir.join(NAME), self.bin_dir.join(format!(".{NAME}.tmp")));
        if is_this_program(&file) {
            return Ok(());
        }
        replace(&file, &temporary, |to| fs::copy(OWN, to).map(drop))
            .with_context(|| format!("cannot install the CNI plugin at {}", file.display()))
    }

    /// The same at the start of an agent. One of another version serves as well until there is room (false): its agent's pods must
    /// not stay without an agent for that.
    pub fn program_or_older(&self) -> Result<bool> {
        match self.program() {
            Err(e) if self.bin_dir.join(NAME).exists() => {
                tracing::warn!(
                    error = format!("{e:#}"),
                    "the CNI plugin stays that of another version, and this is tried again"
                );
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }

    /// Keeps the entry in the list, for as long as the agent runs, and writes the program if it is not there yet.
    pub async fn look_after(self, mut has_program: bool) -> Result<()> {
        let (tx, mut changed) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |e: notify::Result<notify::Event>| {
            if !e.is_ok_and(|e| e.kind.is_access()) {
                let _ = tx.try_send(());
            }
        })?;
        watcher
            .watch(&self.conf_dir, RecursiveMode::NonRecursive)
            .with_context(|| format!("cannot watch {}", self.conf_dir.display()))?;
        let mut told = false;
        loop {
            match self.entry() {
                Ok(Some(f)) => tracing::info!(file = %f.display(), "the CNI plugin is chained"),
                Ok(None) => told = false,
                Err(e) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(
                        error = format!("{e:#}"),
                        "the CNI plugin is not chained yet; new pods of the mesh are redirected shortly after they start"
                    );
                }
                Err(_) => {}
            }
            has_program = has_program || self.program().is_ok();
            let changed_again = async {
                match has_program && !told {
                    true => changed.recv().await,
                    // Room may be made without anything happening here.
                    false => tokio::time::timeout(RETRY, changed.recv()).await.unwrap_or(Some(())),
                }
            };
            if changed_again.await.is_none() {
                return Ok(());
            }
            // A writer may still be at it.
            tokio::time::sleep(Duration::from_millis(20)).await;
            while changed.try_recv().is_ok() {}
        }
    }

    fn list(&self) -> Result<PathBuf> {
        let entries =
            fs::read_dir(&self.conf_dir).with_context(|| format!("cannot list {}", self.conf_dir.display()))?;
        let mut lists: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "conflist")).collect();
        lists.sort();
        let none = || {
            format!("{} holds no configuration list (*.conflist): install a CNI network first", self.conf_dir.display())
        };
        lists.into_iter().next().with_context(none)
    }

    /// Adds the entry, if it is not there as it should be. Gives the file, if it was changed.
    fn entry(&self) -> Result<Option<PathBuf>> {
        let file = self.list()?;
        let text = fs::read(&file)?;
        let mut list: Value =
            serde_json::from_slice(&text).with_context(|| format!("{}: not valid JSON", file.display()))?;
        let wanted = json!({ "type": NAME, "socket": crate::events::SOCKET, "excludeNamespaces": self.exclude });
        let plugins = plugins(&mut list, &file)?;
        if plugins.iter().filter(|p| p["type"] == NAME).eq([&wanted]) && plugins.last() == Some(&wanted) {
            return Ok(None);
        }
        plugins.retain(|p| p["type"] != NAME);
        plugins.push(wanted);
        write(&file, &list)?;
        Ok(Some(file))
    }

    /// Whether the entry is the last of the list that the runtime reads.
    pub fn is_chained(&self) -> bool {
        let read = || serde_json::from_slice::<Value>(&fs::read(self.list().ok()?).ok()?).ok();
        let last = read().and_then(|list| list["plugins"].as_array()?.last().cloned());
        last.is_some_and(|plugin| plugin["type"] == NAME)
    }

    /// Takes entry and program away.
    pub fn remove(&self) -> Result<()> {
        for entry in fs::read_dir(&self.conf_dir)?.flatten() {
            let file = entry.path();
            if file.extension().is_none_or(|x| x != "conflist") {
                continue;
            }
            let Ok(mut list) = serde_json::from_slice::<Value>(&fs::read(&file)?) else { continue };
            let Ok(plugins) = plugins(&mut list, &file) else { continue };
            let before = plugins.len();
            plugins.retain(|p| p["type"] != NAME);
            if plugins.len() != before {
                write(&file, &list)?;
            }
        }
        match fs::remove_file(self.bin_dir.join(NAME)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }
}

fn plugins<'a>(list: &'a mut Value, file: &Path) -> Result<&'a mut Vec<Value>> {
    list.get_mut("plugins")
        .and_then(Value::as_array_mut)
        .with_context(|| format!("{}: plugins: is missing", file.display()))
}

fn write(file: &Path, list: &Value) -> Result<()> {
    // Not *.conflist, so that the runtime does not read it half written.
    let text = serde_json::to_vec_pretty(list)?;
    replace(file, &file.with_extension("karst-tmp"), |to| fs::write(to, text))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Is this file the program that runs?
fn is_this_program(file: &Path) -> bool {
    let read = || -> io::Result<bool> {
        Ok(fs::metadata(OWN)?.len() == fs::metadata(file)?.len() && fs::read(OWN)? == fs::read(file)?)
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_added_once_mended_and_removed() {
        let d = std::env::temp_dir().join(format!("karst-install-{}", std::process::id()));
        fs::create_dir_all(&d).unwrap();
        let i = Install { bin_dir: d.clone(), conf_dir: d.clone(), exclude: vec!["kube-system".into()] };
        assert!(i.entry().unwrap_err().to_string().contains("no configuration list"));
        let original =
            json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [{ "type": "bridge" }, { "type": "portmap" }] });
        let file = d.join("10-x.conflist");
        fs::write(&file, original.to_string()).unwrap();
        fs::write(d.join("99-other.conflist"), original.to_string()).unwrap();
        assert!(!i.is_chained());
        assert_eq!(i.entry().unwrap(), Some(file.clone()));
        assert_eq!(i.entry().unwrap(), None);
        assert!(i.is_chained());
        let read = || serde_json::from_slice::<Value>(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(read()["plugins"].as_array().unwrap().len(), 3);
        assert_eq!(read()["plugins"][2]["type"], NAME);
        // Somebody else puts a plugin after it: it must be the last again.
        let mut v = read();
        v["plugins"].as_array_mut().unwrap().push(json!({ "type": "other" }));
        fs::write(&file, v.to_string()).unwrap();
        assert!(!i.is_chained());
        assert!(i.entry().unwrap().is_some());
        assert_eq!(read()["plugins"][3]["type"], NAME);
        i.program().unwrap();
        i.remove().unwrap();
        assert!(!d.join(NAME).exists());
        assert_eq!(read()["plugins"].as_array().unwrap().len(), 3);
        let untouched: Value = serde_json::from_slice(&fs::read(d.join("99-other.conflist")).unwrap()).unwrap();
        assert_eq!(untouched, original);
        fs::remove_dir_all(d).unwrap();
    }
}
