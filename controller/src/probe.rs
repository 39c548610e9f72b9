//! `karst-controller probe`, which `helm test` runs: does a controller answer, and with the certificate that it should have?

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

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
pub async fn run(p: &Probe) -> Result<()> {
    let pem = std::fs::read(&p.root).with_context(|| format!("--root {}", p.root.display()))?;
    let mut roots = RootCertStore::empty();
    for c in CertificateDer::pem_slice_iter(&pem) {
        roots.add(c.with_context(|| format!("--root {}", p.root.display()))?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(p.host.clone()).with_context(|| format!("--host {:?}", p.host))?;
    let connect = |port: u16| async move {
        match timeout(PATIENCE, TcpStream::connect((p.host.as_str(), port))).await {
            Ok(r) => r.with_context(|| format!("{}:{port} does not answer", p.host)),
            Err(_) => bail!("{}:{port} does not answer within {} s", p.host, PATIENCE.as_secs()),
        }
    };
    let mut s = connect(15014).await?;
    let ask = format!("GET /ready HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", p.host);
    s.write_all(ask.as_bytes()).await?;
    let mut answer = String::new();
    timeout(PATIENCE, s.read_to_string(&mut answer)).await.context("/ready: no answer")??;
    let line = answer.lines().next().unwrap_or_default();
    ensure!(line.contains(" 200 "), "{}:15014/ready: {line}", p.host);
    println!("{}:15014 is ready", p.host);
    for (port, what) in [(15012, "discovery"), (443, "webhook")] {
        let s = connect(port).await?;
        let done = timeout(PATIENCE, tls.connect(name.clone(), s)).await.context("no TLS handshake in time")?;
        done.with_context(|| format!("{what} at {}:{port}: its certificate is not from our root", p.host))?;
        println!("{}:{port} ({what}) has a certificate of our root", p.host);
    }
    Ok(())
}
