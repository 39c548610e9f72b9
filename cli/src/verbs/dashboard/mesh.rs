//! `dashboard mesh`: the page of the mesh, by the user's own rights: pods are listed, and proxies are read, as the kubeconfig's user may.

use super::{
    browser::browse,
    explained,
    in_cluster::{self, InCluster},
    read::{self, Way},
};
use crate::{
    page::{Door, State, serve},
    problem::Problem,
    session::Session,
};
use clap::Args;
use std::{cell::RefCell, net::Ipv4Addr, rc::Rc};
use tokio::{net::TcpListener, task::LocalSet};

/// Help.
pub(super) const EXAMPLES: &str = "Examples:
  karst dashboard                          of all namespaces
  karst dashboard mesh -n shop             begin with one
  karst dashboard mesh --port 8080 --browser=false

The page is for this machine's 127.0.0.1, and for who has the address that is printed: it has a secret. It reads the proxies' own
metrics every 2 seconds by a port-forward, with your rights: list pods, create pods/portforward. The last hour is from when this
began; nothing is kept when it ends (Ctrl+C).

With --in-cluster it is the page of a whole cluster: in a pod, which reads the proxies as Prometheus does. Whoever logs in sees the
namespaces whose pods they may list.";

/// Where it is served, and whether a browser is opened.
#[derive(Clone, Debug, Args)]
pub(super) struct Mesh {
    /// Port on this machine, on 127.0.0.1 [default: any]
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Open a browser
    #[arg(
        long,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    browser: bool,
    #[command(flatten)]
    in_cluster: InCluster,
}

impl Mesh {
    /// Is any option given?
    pub(super) fn is_set(&self) -> bool {
        self.port != 0 || !self.browser || self.in_cluster.is_set()
    }
}

/// Serves until it is interrupted.
pub(super) async fn run(session: &mut Session<'_>, asked: &Mesh) -> Result<(), Problem> {
    if asked.in_cluster.is_set() {
        return in_cluster::run(session, &asked.in_cluster).await;
    }
    let cluster = session.cluster().await?;
    let failed = |e: std::io::Error| {
        Problem::new(format!("cannot listen on 127.0.0.1:{}", asked.port))
            .because(e)
            .next("choose another --port, or leave it out")
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, asked.port)).await.map_err(failed)?;
    let state =
        State { namespace: session.global.namespace.clone(), cluster: cluster.server.clone(), ..State::default() };
    let shared = Rc::new(RefCell::new(state));
    // Whoever may read nothing is told so at once, and not by an empty page.
    let proxies = read::proxies(&cluster, session.global.namespace.as_deref()).await?;
    let door = Door::new(listener.local_addr().map_err(failed)?.port());
    session.line(door.address())?;
    if asked.browser && !browse(&door.address_once()) {
        session.note("no browser could be started: open the address yourself");
    }
    let explainer = explained::explainer(session.global.clone());
    let namespace = session.global.namespace.clone();
    let local = LocalSet::new();
    let served = local.run_until(async {
        tokio::select! {
            () = serve(listener, door, shared.clone(), Some(explainer)) => {}
            () = read::run(Way::Forwarded, cluster.clone(), namespace, proxies, shared.clone()) => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    });
    served.await;
    Ok(())
}
