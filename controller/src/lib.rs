//! The control plane: objects in, workload discovery and certificates out.

pub mod analysis;
mod authn;
mod ca;
mod client;
mod config;
mod convert;
mod debug;
mod finder;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gate;
pub mod history;
mod intake;
mod jwks;
mod key_set;
mod kubernetes;
mod local_tokens;
mod metrics;
mod model;
pub mod offline;
mod pem;
mod private_file;
mod probe;
mod push;
mod reach;
mod scope_group;
mod serve;
mod session_keys;
mod teller;
mod tls;
mod token_review;
mod webhook;

use clap::Parser;

/// The process: reads its options, serves until it is told to stop.
pub fn main() -> std::process::ExitCode {
    if debug::request::called(std::env::args_os().next().as_deref()) {
        return match debug::request::run() {
            Ok(()) => std::process::ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("pilot-discovery: {e}");
                std::process::ExitCode::FAILURE
            }
        };
    }
    let config = config::Cli::parse();
    match run(config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("karst-controller: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(cli: config::Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(config::Command::Token(t)) => local_tokens::command(&cli.config, &t),
        Some(config::Command::Check(config::Check { cluster: false })) => serve::check(&cli.config),
        Some(config::Command::Check(config::Check { cluster: true })) => {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            rt.block_on(serve::check_cluster(&cli.config))
        }
        Some(config::Command::Probe(p)) => {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            rt.block_on(probe::run(&p))
        }
        None => {
            karst_rt::log::start(cli.config.log_format, &cli.config.log_level).map_err(anyhow::Error::msg)?;
            if let Err(e) = karst_rt::process::raise_descriptor_limit() {
                tracing::warn!(error = %e, "cannot raise the limit of open descriptors");
            }
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&rt, serve::run(cli.config))
        }
    }
}
