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
        let state = match karst_ebpf::pod_state(&config.bpf_dir, &uid) {
            Ok(state) => state,
            Err(e) => {
                println!("{name}: {e}");
                continue;
            }
        };
        if !std::mem::replace(&mut head, true) {
            print!("{:<40} {:>11} {:>9}", "POD", "NETNS", "UNMESHED");
            for (counter, _) in &state.counters {
                print!(" {:>16}", counter.name().to_uppercase());
            }
            println!();
        }
        let netns = if state.netns_ino == 0 { "gone".to_string() } else { state.netns_ino.to_string() };
        let unmeshed = record.map_or_else(|| "?".into(), |r| unmeshed_of(&r));
        print!("{name:<40} {netns:>11} {unmeshed:>9}");
        for (_, count) in &state.counters {
            print!(" {count:>16}");
        }
        println!();
    }
    Ok(())
}

/// Connections from before the pod was redirected that are still open.
fn unmeshed_of(record: &records::Record) -> String {
    let cookies: BTreeSet<u64> = match &record.unmeshed {
        None => return "?".into(),
        Some(c) if c.is_empty() => return "0".into(),
        Some(c) => c.iter().copied().collect(),
    };
    let netns = if record.netns.is_empty() {
        Netns::of_pod(&record.uid, &record.ips).ok().flatten()
    } else {
        Netns::open(&record.netns).ok()
    };
    // Without its namespace nothing of it is open.
    netns.map_or_else(
        || "0".into(),
        |n| unmeshed::open(&n, &cookies).map_or_else(|_| "?".into(), |c| c.len().to_string()),
    )
}
