//! What is asked for: files of manifests, and waiting until they are in force.

use super::{
    World,
    wait::{PATIENCE, wait_for},
};
use crate::http;
use anyhow::{Context, Result};
use karst_rt::netns::Netns;
use std::{fs, net::SocketAddr, time::Duration};

impl World {
    fn subscribers(&self) -> Result<serde_json::Value> {
        let ns = Netns::open(format!("/run/netns/{}", self.ns("control")))?;
        let s = ns.run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], 15014))))??;
        Ok(serde_json::from_str(&http::get(s, "/debug/karst")?.1)?)
    }

    /// Waits until the controller has read the manifests of now and every proxy has taken them in.
    pub fn settle(&self) {
        self.settle_within(PATIENCE);
    }

    /// The same, with a time of one's own for manifests that are very many.
    pub fn settle_within(&self, limit: Duration) {
        self.settle_but(limit, 0);
    }

    /// The same, where so many of the proxies take nothing in: they stand still.
    pub fn settle_but(&self, limit: Duration, still: usize) {
        let dir = self.dir.join("manifests");
        wait_for("proxies acknowledge the manifests", limit, || {
            let want = format!("{:x}", karst_manifest::dir::digest(&dir));
            let z = self.subscribers().ok()?;
            let version = z["version"].as_u64()?;
            let proxies = z["proxies"].as_array()?;
            let live = self.nodes.iter().filter(|n| n.ztunnel.is_some()).count();
            let acked = proxies.iter().filter(|p| p["acked"].as_u64() >= Some(version)).count();
            let all = proxies.len() >= live && acked + still == proxies.len();
            (all && z["manifests"].as_str() == Some(&want)).then_some(())
        });
    }

    /// Writes a file of manifests without waiting.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        match &mut *self.held.lock().unwrap() {
            Some(held) => held.push((name.into(), Some(text.into()))),
            None => self.put(name, text)?,
        }
        Ok(())
    }

    fn put(&self, name: &str, text: &str) -> Result<()> {
        let dir = self.dir.join("manifests");
        let tmp = dir.join(format!(".{name}"));
        fs::write(&tmp, text)?;
        fs::rename(tmp, dir.join(format!("{name}.yaml")))?;
        Ok(())
    }

    /// Changes a text in a file of manifests, which must be there, and waits until it is in force.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.dir.join("manifests").join(format!("{name}.yaml"))).unwrap();
        assert!(text.contains(from), "{name}: {from}: {text}");
        self.apply(name, &text.replace(from, to));
    }

    /// Writes a file of manifests and waits until it is in force.
    pub fn apply(&self, name: &str, text: &str) {
        self.write(name, text).unwrap();
        self.settle();
    }

    /// Removes a file of manifests and waits until it is gone from the proxies.
    pub fn delete(&self, name: &str) {
        self.erase(name).unwrap();
        self.settle();
    }

    /// Removes a file of manifests without waiting.
    pub fn erase(&self, name: &str) -> Result<()> {
        match &mut *self.held.lock().unwrap() {
            Some(held) => held.push((name.into(), None)),
            None => self.remove(name)?,
        }
        Ok(())
    }

    /// The API server stalls, or goes on: what is written and erased meanwhile, nobody sees, and then all of it comes at once. (In a
    /// world, the directory of manifests is the API server.)
    ///
    /// # Errors
    /// What had been held back cannot be done.
    pub fn stall_api(&self, stalls: bool) -> Result<()> {
        let mut held = self.held.lock().unwrap();
        if stalls {
            held.get_or_insert_default();
            return Ok(());
        }
        for (name, text) in held.take().unwrap_or_default() {
            match text {
                Some(text) => self.put(&name, &text)?,
                None => self.remove(&name)?,
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.dir.join("manifests").join(format!("{name}.yaml"))).with_context(|| name.to_string())
    }

    /// A namespace, in the mesh or not.
    pub fn namespace(&self, name: &str, ambient: bool) {
        let label = if ambient { "istio.io/dataplane-mode: ambient" } else { "" };
        self.apply(
            &format!("ns-{name}"),
            &format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{{label}}}\n"),
        );
    }
}
