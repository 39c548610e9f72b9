//! `cargo xtask bench`.

mod gateway;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What to measure.
#[derive(Subcommand)]
pub enum What {
    /// The L4 data path: bulk, request/response, new connections, CPU, memory.
    L4 {
        #[command(flatten)]
        how: How,
        /// Also measure another ztunnel binary, in a world of its own beside ours, as variant `other`.
        #[arg(long, value_name = "PATH")]
        ztunnel: Option<PathBuf>,
    },
    /// The layer 7 proxy beside Envoy, as a gateway and as a waypoint: requests, CPU, latency, look-up of routes.
    L7 {
        #[command(flatten)]
        how: How,
        /// Also measure another build of karst-waypoint, as variant `other`.
        #[arg(long, value_name = "PATH")]
        waypoint: Option<PathBuf>,
        /// All proxies write a line of their access log for each request.
        #[arg(long)]
        access_log: bool,
        /// In place of the usual cases, gateway and waypoint with 1, 16 and 512 connections and bodies of 0 and 4,096 bytes.
        #[arg(long)]
        wide: bool,
        /// In place of the usual cases, gateways by HTTP/2, by gRPC, and by TLS that ends there, with requests on kept connections and with a
        /// new connection and handshake for each (with --wide: besides its cases).
        #[arg(long)]
        protocols: bool,
    },
    /// The memory of a node's ztunnel in a large mesh, told of all of it (`all`) and on demand (`on demand`).
    Mesh {
        /// Services.
        #[arg(long, default_value_t = 10_000)]
        services: usize,
        /// Pods.
        #[arg(long, default_value_t = 100_000)]
        pods: usize,
        /// Nodes.
        #[arg(long, default_value_t = 5000)]
        nodes: usize,
        /// Services that the node's pod calls.
        #[arg(long, default_value_t = 20)]
        called: usize,
        /// Only these variants, with commas between.
        #[arg(long, default_value = "")]
        variants: String,
        /// Also write the rows as JSON.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// The controller: memory, time to be in sync, delay from a pod's change to its push.
    #[command(disable_help_flag = true)]
    Controller {
        /// What `karst-bench-controller --help` lists.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Gateways on the local cluster: the ten tests of gateway-api-bench (attached routes, propagation, changes, traffic, failover,
    /// ListenerSets, 5,000 routes), beside Envoy where the same test can be given to it. Most of an hour.
    GatewayApi(gateway::How),
}

/// What is measured on this machine, and what measures it.
pub const PROGRAMS: &[&str] = &[
    "karst-bench",
    "karst-bench-controller",
    "karst-cni",
    "karst-controller",
    "karst-waypoint",
    "meshbench",
    "ztunnel",
];

impl What {
    /// Is it measured on the local cluster?
    pub fn is_on_cluster(&self) -> bool {
        matches!(self, What::GatewayApi(_))
    }
}

/// How to measure.
#[derive(Args)]
pub struct How {
    /// Also write the rows as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Rounds; medians are taken over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Processes of each build of ours, which take turns by round: two processes of one build differ by several per cent.
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// Only these variants, with commas between, as the table names them. (Three are measured only if they are named: `one-thread`,
    /// with one worker; `bookless`, without the book of flows; and of `l7` `gone`, which exports the spans of every request to a
    /// collector that is not there.)
    #[arg(long, default_value = "")]
    variants: String,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

/// Runs it.
pub fn run(w: What) -> Result<()> {
    let args = match w {
        What::L4 { how, ztunnel } => {
            let mut a = how.args("l4")?;
            a.extend(ztunnel.map(|z| program("ztunnel", &z)).transpose()?);
            a
        }
        What::L7 { how, waypoint, access_log, wide, protocols } => {
            let mut a = how.args("l7")?;
            let asked = [("access-log", access_log), ("wide", wide), ("protocols", protocols)];
            a.extend(asked.map(|(name, is_asked)| format!("--{name}={is_asked}")));
            a.push(format!("--envoy={}", crate::setup::envoy()?.display()));
            a.extend(waypoint.map(|z| program("waypoint", &z)).transpose()?);
            a
        }
        What::Mesh { services, pods, nodes, called, variants, report } => {
            let mut a = vec!["mesh".into(), format!("--services={services}"), format!("--pods={pods}")];
            a.extend([format!("--nodes={nodes}"), format!("--called={called}"), format!("--variants={variants}")]);
            a.extend(report.map(|path| report_at(&path)).transpose()?);
            a
        }
        What::Controller { args } => return bench("karst-bench-controller", args),
        What::GatewayApi(how) => return gateway::run(&how),
    };
    bench("karst-bench", args)
}

fn bench(name: &str, args: Vec<String>) -> Result<()> {
    let status = Command::new(crate::tools::shipped()?.join(name)).args(args).status();
    ensure!(status.context("cannot start the benchmark")?.success(), "the benchmark failed");
    Ok(())
}

impl How {
    fn args(self, what: &str) -> Result<Vec<String>> {
        let Self { report, rounds, secs, processes, variants, only } = self;
        let mut a = vec![what.to_string()];
        a.extend([format!("--rounds={rounds}"), format!("--secs={secs}"), format!("--processes={processes}")]);
        a.extend([format!("--variants={variants}"), format!("--only={only}")]);
        a.extend(report.map(|path| report_at(&path)).transpose()?);
        Ok(a)
    }
}

fn report_at(path: &Path) -> Result<String> {
    Ok(format!("--report={}", std::path::absolute(path)?.display()))
}

fn program(option: &str, path: &Path) -> Result<String> {
    let path = std::path::absolute(path)?;
    ensure!(path.is_file(), "--{option}: {} is no file", path.display());
    Ok(format!("--{option}={}", path.display()))
}
