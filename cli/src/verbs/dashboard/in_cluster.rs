//! `dashboard --in-cluster`: the page for all users of a cluster, in a pod. It reads proxies as Prometheus does, all the time, so that
//! there is an hour to look back at; it has no right but to list pods, and to ask whose tokens are and what their users may read.

use super::{
    api_server::ApiServer,
    read::{self, Way},
};
use crate::{
    page::{Guard, Site, State, Tls, TlsError},
    problem::Problem,
    session::Session,
};
use clap::Args;
use karst_rt::{admin, clock, log};
use karst_topology::Topology;
use std::{
    cell::RefCell,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    rc::Rc,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};

/// What a port-forward leads to.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// What the Service leads to.
const TLS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8443);

/// Where it is served, and to whom.
#[derive(Clone, Debug, Args)]
pub(super) struct InCluster {
    /// Serve in a pod, to all who log in with their own Kubernetes token (the chart istiod runs it: dashboard.enabled)
    #[arg(long)]
    in_cluster: bool,
    /// Address on loopback that --in-cluster serves on, for port-forwards
    #[arg(long, value_name = "ADDRESS", requires = "in_cluster", default_value_t = LISTEN, value_parser = loopback)]
    listen: SocketAddr,
    /// Directory with tls.crt and tls.key: --in-cluster serves HTTPS to others, too
    #[arg(long, value_name = "DIRECTORY", requires = "in_cluster")]
    tls: Option<PathBuf>,
    /// Address of HTTPS
    #[arg(long, value_name = "ADDRESS", requires = "tls", default_value_t = TLS_LISTEN)]
    tls_listen: SocketAddr,
    /// A name that --in-cluster is reached by, beside localhost; may be repeated
    #[arg(long = "host", value_name = "NAME", requires = "in_cluster", value_parser = host)]
    hosts: Vec<String>,
    /// Address of --in-cluster for the kubelet: /healthz/ready
    #[arg(long, value_name = "ADDRESS", requires = "in_cluster")]
    readiness: Option<SocketAddr>,
}

/// Why a text is no name of a host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("use a host without scheme, port and path, for example mesh.example.com")]
struct NotAHost;

/// Why an address is not served in plaintext.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error(transparent)]
    Address(#[from] std::net::AddrParseError),
    #[error("tokens would pass in plaintext: use an address of loopback, for port-forwards, and --tls for others")]
    NotLoopback,
}

fn loopback(text: &str) -> Result<SocketAddr, ListenError> {
    let address: SocketAddr = text.parse()?;
    if address.ip().is_loopback() { Ok(address) } else { Err(ListenError::NotLoopback) }
}

fn host(text: &str) -> Result<String, NotAHost> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_plain) { Err(NotAHost) } else { Ok(text.to_ascii_lowercase()) }
}

impl InCluster {
    /// Is it asked for?
    pub(super) fn is_set(&self) -> bool {
        self.in_cluster
    }
}

/// A line of the log.
fn say(line: &str) {
    // Nobody may be reading it: that ends nothing.
    let _ = writeln!(io::stderr(), "{} {line}", log::timestamp(clock::wall()));
}

/// A listener; the error names the option.
async fn bind(at: SocketAddr, option: &str) -> Result<TcpListener, Problem> {
    admin::bind(at, option).await.map_err(|e| Problem::new(e.to_string()))
}

/// HTTPS, if it is asked for.
async fn https(asked: &InCluster) -> Result<Option<(TcpListener, Tls)>, Problem> {
    let Some(directory) = &asked.tls else { return Ok(None) };
    let unusable = |e: TlsError| {
        Problem::new("--tls")
            .because(e)
            .next("mount a Secret of type kubernetes.io/tls there: the chart's dashboard.tlsSecret")
    };
    let tls = Tls::open(directory, Box::new(say)).map_err(unusable)?;
    Ok(Some((bind(asked.tls_listen, "--tls-listen").await?, tls)))
}

/// Serves until it is told to end.
pub(super) async fn run(session: &mut Session<'_>, asked: &InCluster) -> Result<(), Problem> {
    let cluster = session.cluster().await?;
    let listener = bind(asked.listen, "--listen").await?;
    let https = https(asked).await?;
    let ready = match asked.readiness {
        Some(at) => Some(bind(at, "--readiness").await?),
        None => None,
    };
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| Problem::new("cannot wait for SIGTERM").because(e))?;
    let state =
        State { topology: Topology::without_books(), cluster: "read in the cluster".into(), ..State::default() };
    let shared = Rc::new(RefCell::new(state));
    let guard = Guard::new(Rc::new(ApiServer::new(cluster.clone())), asked.hosts.clone(), Box::new(say));
    let site = Site::new(guard, shared.clone(), None);
    session.line(format!("the page is served on {}, to whoever logs in with a Kubernetes token", asked.listen))?;
    let encrypted = async {
        match https {
            Some((listener, tls)) => site.serve(listener, Some(tls)).await,
            None => std::future::pending().await,
        }
    };
    let pages = async {
        let Some(listener) = ready else { return std::future::pending().await };
        let pages = admin::pages(|_, path, _| match path {
            "/healthz/ready" => admin::text(200, "ready\n"),
            _ => admin::text(404, "page: /healthz/ready\n"),
        });
        admin::serve(listener, pages).await;
    };
    let local = LocalSet::new();
    let served = local.run_until(async {
        tokio::select! {
            () = site.serve(listener, None) => {}
            () = encrypted => {}
            () = read::run(Way::Direct, cluster.clone(), None, vec![], shared.clone()) => {}
            () = pages => {}
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    });
    served.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        asked: InCluster,
    }

    fn read(words: &[&str]) -> Result<InCluster, clap::Error> {
        Line::try_parse_from(["x"].iter().chain(words)).map(|line| line.asked)
    }

    /// Without a choice nobody reaches it but through a port-forward.
    #[test]
    fn it_serves_on_loopback_unless_told_otherwise() {
        assert!(!read(&[]).unwrap().is_set());
        let asked = read(&["--in-cluster"]).unwrap();
        assert!(asked.is_set() && asked.listen.ip().is_loopback() && asked.hosts.is_empty());
        let all = [
            "--in-cluster",
            "--listen",
            "[::1]:80",
            "--tls",
            "/tls",
            "--host",
            "Mesh.Example.com",
            "--host",
            "10.0.0.1",
        ];
        let asked = read(&all).unwrap();
        assert_eq!((asked.listen.to_string().as_str(), asked.tls_listen.port()), ("[::1]:80", 8443));
        assert_eq!(asked.hosts, ["mesh.example.com", "10.0.0.1"]);
        for open in ["0.0.0.0:8080", "[::]:8080", "10.0.0.1:8080"] {
            let said = read(&["--in-cluster", "--listen", open]).unwrap_err().to_string();
            assert!(said.contains("tokens would pass in plaintext"), "{open}: {said}");
        }
        for host in ["", "https://mesh.example.com", "mesh.example.com:443", "mesh.example.com/x", "*", "a b"] {
            let said = read(&["--in-cluster", "--host", host]).unwrap_err().to_string();
            assert!(said.contains("--host"), "{host:?}: {said}");
        }
        for other in
            [&["--listen", "127.0.0.1:1"][..], &["--host", "a"], &["--readiness", "127.0.0.1:1"], &["--tls", "/"]]
        {
            assert!(read(other).unwrap_err().to_string().contains("--in-cluster"), "{other:?}");
        }
    }
}
