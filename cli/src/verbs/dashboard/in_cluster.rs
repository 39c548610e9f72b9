//! `dashboard --in-cluster`: the page for all users of a cluster, in a pod. It reads proxies as Prometheus does, all the time, so that
//! there is an hour to look back at; it has no right but to list pods, and to ask whose tokens are and what their users may read.

use super::{
    api_server::ApiServer,
    read::{self, Way},
};
use crate::{
    page::{Guard, State, serve},
    problem::Problem,
    session::Session,
};
use clap::Args;
use karst_rt::{admin, clock, log};
use karst_topology::Topology;
use std::{
    cell::RefCell,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};

/// What a port-forward leads to.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Where it is served, and to whom.
#[derive(Clone, Debug, Args)]
pub(super) struct InCluster {
    /// Serve in a pod, to all who log in with their own Kubernetes token (the chart istiod runs it: dashboard.enabled)
    #[arg(long)]
    in_cluster: bool,
    /// Address that --in-cluster serves on
    #[arg(long, value_name = "ADDRESS", requires = "in_cluster", default_value_t = LISTEN)]
    listen: SocketAddr,
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

async fn readiness(at: Option<SocketAddr>) -> Result<Option<TcpListener>, Problem> {
    let Some(at) = at else { return Ok(None) };
    let bound = admin::bind(at, "--readiness").await;
    Ok(Some(bound.map_err(|e| Problem::new(e.to_string()))?))
}

/// Serves until it is told to end.
pub(super) async fn run(session: &mut Session<'_>, asked: &InCluster) -> Result<(), Problem> {
    let cluster = session.cluster().await?;
    let failed = |e: io::Error| {
        Problem::new(format!("cannot listen on {}", asked.listen)).because(e).next("choose another --listen")
    };
    let listener = TcpListener::bind(asked.listen).await.map_err(failed)?;
    let ready = readiness(asked.readiness).await?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| Problem::new("cannot wait for SIGTERM").because(e))?;
    let state =
        State { topology: Topology::without_books(), cluster: "read in the cluster".into(), ..State::default() };
    let shared = Rc::new(RefCell::new(state));
    let guard = Guard::new(Rc::new(ApiServer::new(cluster.clone())), asked.hosts.clone(), Box::new(say));
    session.line(format!("the page is served on {}, to whoever logs in with a Kubernetes token", asked.listen))?;
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
            () = serve(listener, guard, shared.clone(), None) => {}
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
        let all = ["--in-cluster", "--listen", "[::]:8080", "--host", "Mesh.Example.com", "--host", "10.0.0.1"];
        let asked = read(&all).unwrap();
        assert_eq!((asked.listen.to_string().as_str(), asked.hosts.len()), ("[::]:8080", 2));
        assert_eq!(asked.hosts[0], "mesh.example.com");
        for host in ["", "https://mesh.example.com", "mesh.example.com:443", "mesh.example.com/x", "*", "a b"] {
            let said = read(&["--in-cluster", "--host", host]).unwrap_err().to_string();
            assert!(said.contains("--host"), "{host:?}: {said}");
        }
        for other in [&["--listen", "127.0.0.1:1"][..], &["--host", "a"], &["--readiness", "127.0.0.1:1"]] {
            assert!(read(other).unwrap_err().to_string().contains("--in-cluster"), "{other:?}");
        }
    }
}
