//! The node agent: enrols the node's pods into the mesh, owns their redirected listeners, and serves ZDS to ztunnel.
//! Called by a container runtime (CNI_COMMAND is set), the same program is the CNI plugin.

mod agent;
mod check;
mod config;
mod events;
mod guards;
mod handover;
mod install;
mod kubelet;
mod local;
mod metrics;
mod namespaces;
mod plugin;
mod records;
mod replace;
mod sockets;
mod source;
mod status;
mod trace;
mod unmeshed;
mod zds;

use anyhow::Context;
use clap::Parser;

fn main() -> std::process::ExitCode {
    if plugin::is_called() {
        return plugin::run();
    }
    let config = config::Config::parse();
    match run(config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("karst-cni: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(config: config::Config) -> anyhow::Result<()> {
    if config.status {
        return status::print(&config);
    }
    if config.check || matches!(config.action, Some(config::Action::Check)) {
        return check::print(&config);
    }
    if let Some(config::Action::Trace(how)) = &config.action {
        return trace::run(&config.bpf_dir, &config.run_dir, how);
    }
    if config.cleanup {
        return agent::cleanup(&config);
    }
    karst_rt::log::start(config.log_format, &config.log_level).map_err(anyhow::Error::msg)?;
    karst_rt::process::raise_descriptor_limit().context("cannot raise the limit of open descriptors")?;
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&rt, agent::run(config))
}
