//! `karst-cni --status`: reads what is pinned, so it works whether or not the agent runs.

use crate::{agent, config::Config};

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
        let s = match karst_ebpf::pod_state(&config.bpf_dir, &uid) {
            Ok(s) => s,
            Err(e) => {
                println!("{uid}: {e}");
                continue;
            }
        };
        if !std::mem::replace(&mut head, true) {
            print!("{:<40} {:>11}", "POD", "NETNS");
            for (c, _) in &s.counters {
                print!(" {:>16}", c.name().to_uppercase());
            }
            println!();
        }
        let netns = if s.netns_ino == 0 { "gone".to_string() } else { s.netns_ino.to_string() };
        print!("{:<40} {netns:>11}", agent::name_of(&config.run_dir, &uid));
        for (_, n) in &s.counters {
            print!(" {n:>16}");
        }
        println!();
    }
    Ok(())
}
