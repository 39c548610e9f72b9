//! `ztunnel-config`: what the ztunnel of a node knows, from its admin page.

mod certificates;
mod connections;
mod dump;
mod tables;

use crate::{
    cluster::{Cluster, PodName, node_of},
    known::ADMIN,
    output::Format,
    problem::Problem,
    session::Session,
};
use clap::{Args, Subcommand};
use dump::Dump;
use serde_json::{Value, json};
use std::path::PathBuf;

/// The verbs of `ztunnel-config`.
#[derive(Debug, Subcommand)]
pub enum ZtunnelConfig {
    /// Print workloads, services, policies and certificates
    All(From),
    /// Print the workloads that ztunnel knows
    #[command(alias = "workloads", alias = "w")]
    Workload(Workload),
    /// Print the services that ztunnel knows
    #[command(alias = "services", alias = "s", alias = "svc")]
    Service(Service),
    /// Print the policies that ztunnel enforces
    #[command(alias = "policies", alias = "p", alias = "pol")]
    Policy(Policy),
    /// Print the certificates that ztunnel holds for the pods of its node
    #[command(alias = "certificates", alias = "certs", alias = "cert")]
    Certificate(From),
    /// Print the open connections of the pods of a node
    #[command(alias = "connection", alias = "conn", alias = "cons")]
    Connections(Connections),
    /// Print or set the log level of ztunnel
    #[command(alias = "o")]
    Log(Log),
}

/// Which ztunnel is asked.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst ztunnel-config workload                       of any ztunnel: all know the same mesh
  karst ztunnel-config workload ztunnel-abcde.istio-system
  karst ztunnel-config certificate web-0.shop         of the ztunnel of that pod's node
  karst ztunnel-config service --node worker-1 -o json
  karst ztunnel-config all -f dump.json               offline, from a saved /config_dump")]
pub struct From {
    /// A ztunnel, or a pod whose node's ztunnel is asked: POD or POD.NAMESPACE
    pod: Option<String>,
    /// Ask the ztunnel of this node
    #[arg(long, value_name = "NAME", conflicts_with = "pod")]
    node: Option<String>,
    /// Read a saved /config_dump instead; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["pod", "node"])]
    file: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Options of `workload`.
#[derive(Debug, Args)]
pub struct Workload {
    #[command(flatten)]
    from: From,
    /// Only workloads with this address
    #[arg(long, value_name = "IP")]
    address: Option<String>,
    /// Only workloads of this namespace
    #[arg(long, value_name = "NAME")]
    workload_namespace: Option<String>,
    /// Only workloads on this node
    #[arg(long, value_name = "NAME")]
    workload_node: Option<String>,
}

/// Options of `service`.
#[derive(Debug, Args)]
pub struct Service {
    #[command(flatten)]
    from: From,
    /// Only services of this namespace
    #[arg(long, value_name = "NAME")]
    service_namespace: Option<String>,
}

/// Options of `policy`.
#[derive(Debug, Args)]
pub struct Policy {
    #[command(flatten)]
    from: From,
    /// Only policies of this namespace
    #[arg(long, value_name = "NAME")]
    policy_namespace: Option<String>,
}

/// Options of `connections`.
#[derive(Debug, Args)]
pub struct Connections {
    #[command(flatten)]
    from: From,
    /// Only connections of pods of this namespace
    #[arg(long, value_name = "NAME")]
    workload_namespace: Option<String>,
    /// Only this direction
    #[arg(long, value_parser = ["inbound", "outbound"])]
    direction: Option<String>,
    /// Addresses as they are, without names
    #[arg(long)]
    raw: bool,
}

/// Options of `log`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst ztunnel-config log                                 the levels of all ztunnels
  karst ztunnel-config log --level debug                   set, on all nodes
  karst ztunnel-config log --level access:warn,info --node worker-1
  karst ztunnel-config log -r                              back to the level at start")]
pub struct Log {
    /// A ztunnel, or a pod whose node's ztunnel is meant
    pod: Option<String>,
    /// The ztunnel of this node
    #[arg(long, value_name = "NAME", conflicts_with = "pod")]
    node: Option<String>,
    /// LEVEL or SCOPE:LEVEL, several separated by commas; levels: trace, debug, info, warn, error, off
    #[arg(long, value_name = "LEVELS")]
    level: Option<String>,
    /// Back to the level that it was started with
    #[arg(short, long, conflicts_with = "level")]
    reset: bool,
}

impl ZtunnelConfig {
    /// Prints what is asked for.
    ///
    /// # Errors
    /// If there is no such ztunnel, or its page is not what was expected.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::All(from) => all(session, &from).await,
            Self::Workload(asked) => {
                let dump = dump(session, &asked.from).await?;
                let wanted = |address: &Option<String>, field: &str, object: &serde_json::Value| {
                    address.as_deref().is_none_or(|value| dump::text(object, field) == value)
                };
                let chosen = dump.workloads.iter().filter(|object| {
                    wanted(&asked.workload_namespace, "namespace", object)
                        && wanted(&asked.workload_node, "node", object)
                        && asked.address.as_deref().is_none_or(|ip| dump::list(object, "workloadIps").contains(&ip))
                });
                let chosen: Vec<_> = chosen.collect();
                session.show(asked.from.output, &tables::workloads(&chosen, &dump), &chosen)
            }
            Self::Service(asked) => {
                let dump = dump(session, &asked.from).await?;
                let chosen = dump::of_namespace(&dump.services, asked.service_namespace.as_deref());
                session.show(asked.from.output, &tables::services(&chosen, &dump), &chosen)
            }
            Self::Policy(asked) => {
                let dump = dump(session, &asked.from).await?;
                let chosen = dump::of_namespace(&dump.policies, asked.policy_namespace.as_deref());
                session.show(asked.from.output, &tables::policies(&chosen), &chosen)
            }
            Self::Certificate(from) => {
                let dump = dump(session, &from).await?;
                session.show(from.output, &certificates::table(&dump.certificates), &dump.certificates)
            }
            Self::Connections(asked) => {
                let dump = dump(session, &asked.from).await?;
                let only = connections::Only {
                    namespace: asked.workload_namespace.as_deref(),
                    direction: asked.direction.as_deref(),
                };
                let chosen = connections::states(&dump, &only);
                session.show(asked.from.output, &connections::table(&chosen, &dump, asked.raw), &chosen)
            }
            Self::Log(asked) => log(session, &asked).await,
        }
    }
}

/// The policies that the ztunnel of a pod's node enforces for it: action, `name.namespace`, rules.
///
/// # Errors
/// If there is no such pod, or its ztunnel cannot be asked or does not know it.
pub async fn policies_of(session: &Session<'_>, pod: &str) -> Result<Vec<(String, String, Vec<Value>)>, Problem> {
    let from = From { pod: Some(pod.into()), node: None, file: None, output: Format::Table };
    let (name, dump) = (session.cluster().await?.pod_name(pod), dump(session, &from).await?);
    tables::policies_of(&dump, &name.namespace, &name.name).ok_or_else(|| {
        Problem::new(format!("pod {name} is not known to the ztunnel of its node"))
            .next(format!("`{} x describe pod {name}` says whether it is part of the mesh", session.program))
    })
}

async fn all(session: &mut Session<'_>, from: &From) -> Result<(), Problem> {
    let dump = dump(session, from).await?;
    let (workloads, services, policies) =
        (dump.workloads.iter().collect::<Vec<_>>(), dump.services.iter().collect::<Vec<_>>(), dump.policies.iter());
    let whole = json!({
        "workloads": dump.workloads, "services": dump.services, "policies": dump.policies,
        "certificates": dump.certificates,
    });
    if let Some(text) = from.output.encode(&whole)? {
        return session.text(&text);
    }
    session.table(&tables::workloads(&workloads, &dump))?;
    session.line("")?;
    session.table(&tables::services(&services, &dump))?;
    session.line("")?;
    session.table(&tables::policies(&policies.collect::<Vec<_>>()))?;
    session.line("")?;
    session.table(&certificates::table(&dump.certificates))
}

async fn dump(session: &Session<'_>, from: &From) -> Result<Dump, Problem> {
    if let Some(file) = &from.file {
        return Dump::parse(&crate::input::read(file)?, &file.display().to_string());
    }
    let cluster = session.cluster().await?;
    let ztunnel = match find(&cluster, from.pod.as_deref(), from.node.as_deref()).await?.into_iter().next() {
        Some(name) => name,
        None => return Err(Problem::new("no ztunnel is running").next("install the mesh's ztunnel")),
    };
    let text = cluster.get(&ztunnel, ADMIN, "/config_dump").await?;
    Dump::parse(&text, &format!("/config_dump of {ztunnel}"))
}

/// The ztunnels that are meant: that pod, or that of its node, or of the named node, or all.
async fn find(cluster: &Cluster, pod: Option<&str>, node: Option<&str>) -> Result<Vec<PodName>, Problem> {
    let all = cluster.ztunnels().await?;
    let mut node = node.map(str::to_owned);
    if let Some(named) = pod {
        let bare = cluster.pod_name(named);
        if let Some(ztunnel) = all.iter().map(PodName::from).find(|ztunnel| {
            ztunnel.name == bare.name && (!named.contains(['.', '/']) || ztunnel.namespace == bare.namespace)
        }) {
            return Ok(vec![ztunnel]);
        }
        let pod = cluster.pod(named).await?;
        node = Some(node_of(&pod).to_owned());
    }
    let Some(node) = node else { return Ok(all.iter().map(PodName::from).collect()) };
    match all.iter().find(|ztunnel| node_of(ztunnel) == node) {
        Some(ztunnel) => Ok(vec![PodName::from(ztunnel)]),
        None => Err(Problem::new(format!("no ztunnel is running on node {node:?}"))
            .because(format!("ztunnel runs on: {}", all.iter().map(node_of).collect::<Vec<_>>().join(", ")))
            .next("check the node's name, and the DaemonSet ztunnel")),
    }
}

async fn log(session: &mut Session<'_>, asked: &Log) -> Result<(), Problem> {
    let path = match (&asked.level, asked.reset) {
        (Some(level), _) => format!("/logging?level={}", crate::level::checked(level)?),
        (None, true) => "/logging?reset".into(),
        (None, false) => "/logging".into(),
    };
    let cluster = session.cluster().await?;
    for ztunnel in find(&cluster, asked.pod.as_deref(), asked.node.as_deref()).await? {
        let answer = cluster.post(&ztunnel, ADMIN, &path).await?;
        session.line(format!("{ztunnel}:\n{}", answer.trim_end()))?;
    }
    Ok(())
}
