//! `karst-cni --status`: reads what is pinned, so it works whether or not the agent runs.

use crate::{
    config::Config,
    records::{Record, Records},
    unmeshed,
};
use anyhow::Context;
use karst_rt::netns::Netns;
use std::{collections::BTreeSet, io};

/// Prints a table of pods and counters.
pub fn print(config: &Config) -> anyhow::Result<()> {
    let dir = config.bpf_dir.display();
    if let Err(e) = std::fs::metadata(&config.bpf_dir) {
        let nothing = || format!("nothing is redirected on this node ({dir} does not exist)");
        anyhow::ensure!(e.kind() != io::ErrorKind::NotFound, nothing());
        return Err(anyhow::Error::new(e).context(format!("cannot read {dir}{}", missing_right())));
    }
    let pinned = karst_ebpf::pinned_pods(&config.bpf_dir);
    let mut pods = pinned.with_context(|| format!("cannot list the pods in {dir}{}", missing_right()))?;
    pods.sort();
    let records = Records::within(&config.run_dir);
    let (mut head, mut unread) = (false, 0);
    for uid in pods {
        let record = records.one(&uid);
        let name = record.as_ref().map_or_else(|| uid.clone(), |r| format!("{}/{}", r.namespace, r.name));
        if let Some(why) = record.as_ref().and_then(|r| r.closed.as_ref()) {
            println!("{name:<40} closed: {why}");
            continue;
        }
        let state = match karst_ebpf::pod_state(&config.bpf_dir, &uid) {
            Ok(state) => state,
            Err(e) => {
                unread += 1;
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
    anyhow::ensure!(unread == 0 || missing_right().is_empty(), "{unread} pods cannot be read{}", missing_right());
    Ok(())
}

/// What to say where something cannot be read, if this process lacks the rights for it.
fn missing_right() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if may_read_maps(&status) {
        return "";
    }
    ": CAP_BPF or CAP_SYS_ADMIN is needed, and access to the bpffs: run it as root, or in the agent's pod (kubectl -n \
     istio-system exec ds/istio-cni-node -- karst-cni --status)"
}

/// Whether a process with this `/proc/PID/status` has one of the capabilities by which maps can be opened.
fn may_read_maps(status: &str) -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_BPF: u32 = 39;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or_default();
    [CAP_SYS_ADMIN, CAP_BPF].iter().any(|bit| bits & (1 << bit) != 0)
}

/// Connections from before the pod was redirected that are still open.
fn unmeshed_of(record: &Record) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_from_the_effective_capabilities() {
        let with = |bits: &str| may_read_maps(&format!("Name:\tkarst-cni\nCapPrm:\tffff\nCapEff:\t{bits}\n"));
        assert!(with("000001ffffffffff") && with("0000008000000000") && with("0000000000200000"));
        assert!(!with("0000000000000000") && !with("00000000a80425fb") && !may_read_maps(""));
    }
}
