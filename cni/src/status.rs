//! `karst-cni --status`: reads what is pinned, so it works whether or not the agent runs.

use crate::{config::Config, records, unmeshed};
use karst_rt::netns::Netns;
use std::collections::BTreeSet;

/// Prints a table of pods and counters.
pub fn print(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        config.bpf_dir.exists(),
        "nothing is redirected on this node ({} does not exist)",
        config.bpf_dir.display()
    );
    let mut pods = karst_ebpf::pinned_pods(&config.bpf_dir)?;
    pods.sort();
    let mut head = false;
    for uid in pods {
        let record = records::one(&config.run_dir.join("pods"), &uid);
        let name = record.as_ref().map_or_else(|| uid.clone(), |r| format!("{}/{}", r.namespace, r.name));
        if let Some(why) = record.as_ref().and_then(|r| r.closed.as_ref()) {
            println!("{name:<40} closed: {why}");
            continue;
        }
        let s = match karst_ebpf::pod_state(&config.bpf_dir, &uid) {
            Ok(s) => s,
            Err(e) => {
                println!("{name}: {e}");
                continue;
            }
        };
        if !std::mem::replace(&mut head, true) {
            print!("{:<40} {:>11} {:>9}", "POD", "NETNS", "UNMESHED");
            for (c, _) in &s.counters {
                print!(" {:>16}", c.name().to_uppercase());
            }
            println!();
        }
        let netns = if s.netns_ino == 0 { "gone".to_string() } else { s.netns_ino.to_string() };
        let unmeshed = record.map_or_else(|| "?".into(), |r| unmeshed_of(&r));
        print!("{name:<40} {netns:>11} {unmeshed:>9}");
        for (_, n) in &s.counters {
            print!(" {n:>16}");
        }
        println!();
    }
    Ok(())
}

/// Connections from before the pod was redirected that are still open.
fn unmeshed_of(r: &records::Record) -> String {
    let cookies: BTreeSet<u64> = match &r.unmeshed {
        None => return "?".into(),
        Some(c) if c.is_empty() => return "0".into(),
        Some(c) => c.iter().copied().collect(),
    };
    let netns =
        if r.netns.is_empty() { Netns::of_pod(&r.uid, &r.ips).ok().flatten() } else { Netns::open(&r.netns).ok() };
    // Without its namespace nothing of it is open.
    netns.map_or_else(
        || "0".into(),
        |n| unmeshed::open(&n, &cookies).map_or_else(|_| "?".into(), |c| c.len().to_string()),
    )
}
