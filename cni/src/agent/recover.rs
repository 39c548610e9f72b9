//! What earlier agents have left: the redirection of pods that nobody asks for any more, and all of it at the end.

use super::{desired::Desired, state::Agent};
use crate::{
    config::Config,
    records::{Record, Records},
};
use anyhow::Context;
use karst_ebpf::Node;
use karst_kube::Kube;
use karst_manifest::State;
use karst_rt::netns::Netns;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Is the agent being uninstalled, rather than restarted or upgraded? Then its DaemonSet is gone, or even its right to
/// ask.
pub(super) async fn removed_for_good(kube: &Kube, config: &Config) -> bool {
    if config.daemon_set.is_empty() {
        return false;
    }
    match kube.daemon_set_remains(&config.namespace, &config.daemon_set).await {
        Ok(remains) => !remains,
        Err(e) => {
            tracing::warn!(
                error = format!("{e:#}"),
                "cannot tell whether the agent is being uninstalled; redirection stays in force"
            );
            false
        }
    }
}

/// Removes all redirection of the node.
pub fn cleanup(config: &Config) -> anyhow::Result<()> {
    let recorded = Records::within(&config.run_dir);
    let records = recorded.load();
    Node::remove_all(&config.bpf_dir)?;
    for record in &records {
        let netns = match record.netns.as_str() {
            "" => Netns::of_pod(&record.uid, &record.ips)?,
            path => Netns::open(path).ok(),
        };
        if let Some(netns) = netns {
            netns
                .run(|| karst_ebpf::remove_from_netns(&record.ips))
                .and_then(|removed| removed)
                .with_context(|| format!("routing of pod {}/{}", record.namespace, record.name))?;
        }
        recorded.remove(&record.uid);
    }
    println!("removed the redirection of {} pods and all programs under {}", records.len(), config.bpf_dir.display());
    Ok(())
}

impl Agent {
    /// Takes out what an earlier agent enrolled and nobody asks for any more.
    pub(super) async fn forget_strangers(&self, desired: &BTreeMap<String, Desired>, state: &State) {
        let keep: BTreeSet<String> = desired.keys().cloned().collect();
        let wanted: BTreeSet<&str> = desired.values().map(|d| d.config.uid.as_str()).collect();
        let ours: BTreeSet<String> = self.active.borrow().values().map(|a| a.desired.config.uid.clone()).collect();
        let active: BTreeSet<String> = self.active.borrow().keys().cloned().collect();
        let all: BTreeSet<String> = keep.union(&active).cloned().collect();
        self.report.retain(&self.config.node, state, &all).await;
        let records: HashMap<String, Record> = self.records.load().into_iter().map(|r| (r.uid.clone(), r)).collect();
        let pinned = self.node.borrow().pinned_pods().unwrap_or_default();
        for uid in pinned.iter().filter(|u| !wanted.contains(u.as_str()) && !ours.contains(*u)) {
            let record = records.get(uid);
            let ips = record.map_or(&[][..], |r| &r.ips);
            let netns = match record {
                Some(record) if !record.netns.is_empty() => Netns::open(&record.netns).ok(),
                _ => Netns::of_pod(uid, ips).ok().flatten(),
            };
            let done = match (record, netns) {
                (Some(record), Some(netns)) => self.node.borrow_mut().release(&netns, &record.config()),
                _ => self.node.borrow_mut().forget(uid, ips),
            };
            match done {
                Ok(()) => tracing::info!(pod = uid, "removed the redirection left behind by an earlier agent"),
                Err(e) => {
                    tracing::warn!(pod = uid, error = %e, "cannot remove the redirection left behind by an earlier agent")
                }
            }
            self.records.remove(uid);
        }
    }
}
