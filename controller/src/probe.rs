//! `karst-controller probe`, which `helm test` runs: does a controller answer, and with the certificate that it should have?

use crate::{
    client::{self, Client},
    reach::Reach,
};
use anyhow::{Context, Result};
use clap::Args;
use rustls::RootCertStore;
use std::{path::PathBuf, time::Duration};

/// For each of the steps.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which controller.
#[derive(Debug, Args)]
pub struct Probe {
    /// Host name of its Service.
    #[arg(long, default_value = "istiod.istio-system.svc")]
    pub host: String,
    /// The root certificate to verify it by.
    #[arg(long, default_value = "/var/run/secrets/istio/root-cert.pem")]
    pub root: PathBuf,
}

/// Asks the pages for readiness, and discovery and webhook for their certificates.
pub async fn run(probe: &Probe) -> Result<()> {
    let file = || format!("--root {}", probe.root.display());
    let pem = std::fs::read(&probe.root).with_context(file)?;
    let mut roots = RootCertStore::empty();
    client::trust(&mut roots, &pem).map_err(anyhow::Error::msg).with_context(file)?;
    // The operator says where to.
    let client = Client::new(Reach::anywhere(), roots, PATIENCE)?;
    let host = if probe.host.contains(':') { format!("[{}]", probe.host) } else { probe.host.clone() };
    let url =
        |at: String| client::check(&at).map_err(anyhow::Error::msg).with_context(|| format!("--host {:?}", probe.host));
    client.get(&url(format!("http://{host}:15014/ready"))?).await.with_context(|| format!("{host}:15014/ready"))?;
    println!("{host}:15014 is ready");
    for (port, what) in [(15012, "discovery"), (443, "webhook")] {
        let done = client.handshake(&url(format!("https://{host}:{port}/"))?).await;
        done.with_context(|| format!("{what} at {host}:{port} has no certificate signed by our root"))?;
        println!("{host}:{port} ({what}) has a certificate signed by our root");
    }
    Ok(())
}
