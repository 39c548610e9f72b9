//! `karst-cni trace`: shows live what the programs of this node's pods drop or pass by, and why. Reads what is pinned, so it works
//! whether or not the agent runs. What ztunnel refuses is in its access log.

mod explain;
mod line;
mod pods;

use crate::records::Records;
use explain::is_wanted;
use karst_ebpf::{Counter, trace::Tracer};
use karst_rt::clock::Instant;
use line::{json, row, text};
use pods::Pods;
use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

/// The programs tell for this long after each time that they are asked: all that a trace that was killed leaves behind.
const ASK_FOR: Duration = Duration::from_secs(3);
/// They are asked again, and the pods' names are read again, after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The ring buffer is looked at this often.
const LOOK: Duration = Duration::from_millis(50);

/// What to show, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct How {
    /// Show only this pod: NAMESPACE/NAME, or NAME alone. Default: all pods of this node.
    pub pod: Option<String>,
    /// Show only dropped and refused packets, not those that bypass ztunnel.
    #[arg(long)]
    pub drops: bool,
    /// Output format: a table, or one JSON object per line.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
    /// Seconds after which it ends. Where `kubectl exec` is cut off, the command goes on without it, and only one can run on a node.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Shows events until it is interrupted, its time is over, or nobody reads its output any more. `bpf_dir` has what is pinned, `run_dir`
/// what is known of the pods.
pub fn run(bpf_dir: &Path, run_dir: &Path, how: &How) -> anyhow::Result<()> {
    anyhow::ensure!(bpf_dir.exists(), "nothing is redirected on this node ({} does not exist)", bpf_dir.display());
    match show(bpf_dir, run_dir, how) {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => Ok(()),
        ended => ended,
    }
}

fn show(bpf_dir: &Path, run_dir: &Path, how: &How) -> anyhow::Result<()> {
    let read_pods = || Pods(Records::within(run_dir).load());
    let mut pods = read_pods();
    let mut of = how.pod.as_deref().map(|p| pods.find(p)).transpose()?;
    let what: Vec<Counter> = Counter::ALL.into_iter().filter(|c| is_wanted(*c, how.drops)).collect();
    let mut tracer = Tracer::open(bpf_dir)?;
    let mut withheld = tracer.totals()?.withheld;
    tracer.ask(of, &what, ASK_FOR)?;
    let mut out = io::stdout().lock();
    let whose = how.pod.as_deref().unwrap_or("all pods of this node");
    eprintln!("dropped and bypassing connections of {whose} from now on, for {} s; press Ctrl-C to stop", how.seconds);
    if how.output == Output::Table {
        writeln!(out, "{}", row(["TIME (UTC)", "POD", "WHAT", "PROTOCOL", "SOURCE -> DESTINATION", "REASON"]))?;
        out.flush()?;
    }
    let (begun, length) = (Instant::now(), Duration::from_secs(how.seconds));
    let mut asked = begun;
    loop {
        while let Some(event) = tracer.read()? {
            let name = event.pod.map_or_else(|| "?".into(), |ip| pods.name(ip));
            let closed = event.pod.and_then(|ip| pods.closed(ip));
            let line = match how.output {
                Output::Table => text(&event, &name, closed),
                Output::Json => json(&event, &name, closed).to_string(),
            };
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        if begun.elapsed() >= length {
            return Ok(());
        }
        std::thread::sleep(LOOK);
        if asked.elapsed() < ASK_AGAIN {
            continue;
        }
        asked = Instant::now();
        pods = read_pods();
        // A pod that was made again has another address; one that is gone may still be heard of.
        if let Some(found) = how.pod.as_deref().and_then(|p| pods.find(p).ok()) {
            of = Some(found);
        }
        tracer.ask(of, &what, ASK_FOR)?;
        let now = tracer.totals()?.withheld;
        if now > withheld {
            eprintln!(
                "{} more were left out, because there were too many; specify a pod, or use --drops, to see fewer",
                now - withheld
            );
        }
        withheld = now;
    }
}
