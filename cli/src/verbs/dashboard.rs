//! `dashboard`: the mesh's own page, or a port of a pod on this machine; and a browser on it.

mod api_server;
mod browser;
mod explained;
mod in_cluster;
mod mesh;
mod read;
mod scrape;

use crate::{
    cluster::{Cluster, PodName},
    known::{ADMIN, MONITORING},
    problem::Problem,
    session::Session,
};
use browser::browse;
use clap::{Args, Subcommand};
use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
};
use tokio::net::{TcpListener, TcpStream};

/// The page of the mesh, or another.
#[derive(Debug, Args)]
pub struct Dashboard {
    #[command(subcommand)]
    page: Option<Page>,
    #[command(flatten)]
    mesh: mesh::Mesh,
}

/// What there are dashboards of.
#[derive(Debug, Subcommand)]
enum Page {
    /// The mesh: who talks to whom, how fast, how often it fails and why (as without a name)
    #[command(after_help = mesh::EXAMPLES)]
    Mesh(mesh::Mesh),
    /// Kiali: the graph of the mesh
    Kiali(AddOn),
    /// Grafana: Istio's dashboards
    Grafana(AddOn),
    /// Prometheus
    Prometheus(AddOn),
    /// Jaeger: traces
    Jaeger(AddOn),
    /// SkyWalking: traces and topology
    Skywalking(AddOn),
    /// Zipkin: traces
    Zipkin(AddOn),
    /// Admin page of a waypoint, gateway or ztunnel
    #[command(visible_alias = "proxy")]
    Envoy(OfPod),
    /// ControlZ of the control plane
    Controlz(OfControlPlane),
    /// Debug pages of the control plane
    #[command(name = "istiod-debug")]
    IstiodDebug(OfControlPlane),
}

/// Where it is served, and whether a browser is opened.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  karst dashboard kiali
  karst dashboard grafana -n monitoring --port 8080 --browser=false
  karst dashboard envoy waypoint-6d5f-abcde.shop

It serves until it is interrupted (Ctrl+C).")]
pub struct Serve {
    /// Port on this machine [default: that of the pod if it is free, else any]
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Address on this machine
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
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
}

/// Options of an add-on's dashboard.
#[derive(Debug, Args)]
pub struct AddOn {
    #[command(flatten)]
    serve: Serve,
    /// Port of the pod, where it is not the usual one
    #[arg(long, value_name = "PORT")]
    ui_port: Option<u16>,
}

/// Options of a proxy's dashboard.
#[derive(Debug, Args)]
pub struct OfPod {
    /// POD or POD.NAMESPACE
    pod: String,
    #[command(flatten)]
    serve: Serve,
}

/// Options of the control plane's dashboards.
#[derive(Debug, Args)]
pub struct OfControlPlane {
    /// Pod of the control plane [default: the first]
    pod: Option<String>,
    #[command(flatten)]
    serve: Serve,
}

/// An add-on: how its pod is found, and where its pages are.
struct Known {
    name: &'static str,
    labels: &'static str,
    port: u16,
    path: &'static str,
}

const KIALI: Known = Known { name: "kiali", labels: "app=kiali", port: 20001, path: "/kiali" };
const GRAFANA: Known = Known { name: "grafana", labels: "app.kubernetes.io/name=grafana", port: 3000, path: "" };
const PROMETHEUS: Known =
    Known { name: "prometheus", labels: "app.kubernetes.io/name=prometheus", port: 9090, path: "" };
const JAEGER: Known = Known { name: "jaeger", labels: "app=jaeger", port: 16686, path: "" };
const SKYWALKING: Known = Known { name: "skywalking", labels: "app=skywalking-ui", port: 8080, path: "" };
const ZIPKIN: Known = Known { name: "zipkin", labels: "app=zipkin", port: 9411, path: "" };
/// ControlZ's port.
const CONTROLZ: u16 = 9876;

impl Dashboard {
    /// Serves until it is interrupted.
    ///
    /// # Errors
    /// If there is no such pod, or the port cannot be listened on.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        if self.page.is_some() && self.mesh.is_set() {
            return Err(Problem::usage("dashboard: options of a page are before its name", "write them after it"));
        }
        let page = self.page.unwrap_or(Page::Mesh(self.mesh));
        match page {
            Page::Mesh(asked) => mesh::run(session, &asked).await,
            Page::Kiali(asked) => add_on(session, &asked, &KIALI).await,
            Page::Grafana(asked) => add_on(session, &asked, &GRAFANA).await,
            Page::Prometheus(asked) => add_on(session, &asked, &PROMETHEUS).await,
            Page::Jaeger(asked) => add_on(session, &asked, &JAEGER).await,
            Page::Skywalking(asked) => add_on(session, &asked, &SKYWALKING).await,
            Page::Zipkin(asked) => add_on(session, &asked, &ZIPKIN).await,
            Page::Envoy(asked) => {
                let cluster = session.cluster().await?;
                let pod = PodName::from(&cluster.pod(&asked.pod).await?);
                serve(session, &cluster, &pod, ADMIN, "", &asked.serve).await
            }
            Page::Controlz(asked) => of_control_plane(session, &asked, CONTROLZ, "").await,
            Page::IstiodDebug(asked) => of_control_plane(session, &asked, MONITORING, "/debug").await,
        }
    }
}

async fn add_on(session: &mut Session<'_>, asked: &AddOn, known: &Known) -> Result<(), Problem> {
    let cluster = session.cluster().await?;
    let place = session.global.namespace.clone().unwrap_or_else(|| cluster.istio_namespace.clone());
    let pods = cluster.pods(&place, known.labels).await?;
    let Some(pod) = pods.first().map(PodName::from) else {
        return Err(Problem::new(format!("no {} is running in namespace {place}", known.name))
            .because(format!("there is no running pod with the label {}", known.labels))
            .next(format!(
                "install the add-on, for example Istio's samples/addons/{}.yaml, or name its namespace with -n",
                known.name
            )));
    };
    serve(session, &cluster, &pod, asked.ui_port.unwrap_or(known.port), known.path, &asked.serve).await
}

async fn of_control_plane(
    session: &mut Session<'_>,
    asked: &OfControlPlane,
    port: u16,
    path: &str,
) -> Result<(), Problem> {
    let cluster = session.cluster().await?;
    let all: Vec<PodName> = cluster.control_plane().await?.iter().map(PodName::from).collect();
    let wanted = |pod: &&PodName| asked.pod.as_deref().is_none_or(|name| name.split('.').next() == Some(&pod.name));
    let Some(pod) = all.iter().find(wanted) else {
        let names: Vec<&str> = all.iter().map(|pod| pod.name.as_str()).collect();
        return Err(Problem::new(format!(
            "{} is no pod of the control plane",
            asked.pod.as_deref().unwrap_or_default()
        ))
        .next(format!("name one of: {}", names.join(", "))));
    };
    serve(session, &cluster, pod, port, path, &asked.serve).await
}

async fn serve(
    session: &mut Session<'_>,
    cluster: &Cluster,
    pod: &PodName,
    port: u16,
    path: &str,
    how: &Serve,
) -> Result<(), Problem> {
    let listener = listen(how, port).await?;
    let local = listener.local_addr().map_err(|e| Problem::new("cannot listen").because(e))?;
    let shown = if local.ip().is_loopback() { format!("localhost:{}", local.port()) } else { local.to_string() };
    let address = format!("http://{shown}{path}");
    session.line(&address)?;
    if how.browser && !browse(&address) {
        session.note(format!("no browser could be started: open {address} yourself"));
    }
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(carry(cluster.clone(), pod.clone(), port, stream));
                }
                Err(e) => session.note(format!("cannot accept a connection: {e}")),
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// The wanted port; without one that of the pod, and any if that is taken.
async fn listen(how: &Serve, port: u16) -> Result<TcpListener, Problem> {
    let wanted = if how.port == 0 { port } else { how.port };
    match TcpListener::bind((how.address, wanted)).await {
        Ok(listener) => Ok(listener),
        Err(e) if how.port != 0 => Err(Problem::new(format!("cannot listen on {}:{wanted}", how.address))
            .because(e)
            .next("choose another --port, or leave it out")),
        Err(_) => TcpListener::bind((how.address, 0)).await.map_err(|e| {
            Problem::new(format!("cannot listen on {}", how.address)).because(e).next("choose another --address")
        }),
    }
}

async fn carry(cluster: Cluster, pod: PodName, port: u16, mut stream: TcpStream) {
    match cluster.dial(&pod, port).await {
        Ok(mut far) => {
            // Either side may end as it likes: browsers reset connections that they need no more.
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
        }
        Err(problem) => drop(writeln!(std::io::stderr(), "{problem}")),
    }
}
