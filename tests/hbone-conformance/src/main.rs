//! Checks an HBONE endpoint against docs/hbone.md, from outside: as a client against a server, and as a server for a client.
//! Certificates, good ones and bad ones, are made on the spot with the authority that the endpoint trusts.

mod against_client;
mod against_server;
mod certs;
mod continuation;
mod hello;
mod leaving;
mod options;
mod report;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use options::{Client, Server};
use report::Report;
use std::process::ExitCode;

/// Checks any HBONE endpoint against Karst's specification (docs/hbone.md).
#[derive(Parser)]
#[command(name = "hbone-conformance", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Act as a client, against a server endpoint.
    Server(Server),
    /// Act as a server, for a client endpoint. Let an application connect through that client again and again, send a line, end
    /// its direction and read to the end: `while sleep 0.2; do echo hello | nc -N ADDRESS PORT; done`.
    Client(Client),
}

fn main() -> ExitCode {
    match run(Cli::parse().role) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(role: Role) -> Result<bool> {
    let common = match &role {
        Role::Server(s) => &s.common,
        Role::Client(c) => &c.common,
    };
    let ca = certs::Ca::open(&common.ca_cert, &common.ca_key)?;
    let file = common.report.clone();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let mut report = Report::default();
    rt.block_on(async {
        match role {
            Role::Server(s) => {
                against_server::run(&s, &ca, &mut report).await?;
                continuation::run(&s, &ca, &mut report).await
            }
            Role::Client(c) => against_client::run(&c, &ca, &mut report).await,
        }
    })?;
    if let Some(f) = file {
        std::fs::write(&f, report.json()).with_context(|| format!("cannot write {}", f.display()))?;
    }
    Ok(report.end())
}
