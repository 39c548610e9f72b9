//! `proxy-config`: what a waypoint or gateway works by, from its admin page in Envoy's form.

mod envoy;
mod listeners;
mod secrets;
mod tables;

use crate::{
    cluster::PodName,
    input,
    known::ADMIN,
    output::{Format, Table},
    problem::{Exit, Problem},
    session::Session,
};
use clap::{Args, Subcommand};
pub use envoy::Dump;
pub use listeners::{Enforced, rules};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The verbs of `proxy-config`.
#[derive(Debug, Subcommand)]
pub enum ProxyConfig {
    /// Print clusters, listeners, routes and endpoints
    #[command(alias = "a")]
    All(From),
    /// Print who the proxy is, and its version
    #[command(visible_alias = "b")]
    Bootstrap(From),
    /// Print what the proxy sends to
    #[command(visible_alias = "c", alias = "clusters")]
    Cluster(Clusters),
    /// Print extensions (EnvoyFilter, WasmPlugin): proxies of this mesh have none
    #[command(alias = "ec")]
    Ecds(From),
    /// Print the endpoints with their localities
    Eds(From),
    /// Print the endpoints of the clusters, and their health
    #[command(visible_alias = "ep", alias = "endpoints")]
    Endpoint(Endpoints),
    /// Print what the proxy listens on
    #[command(visible_alias = "l", alias = "listeners")]
    Listener(From),
    /// Print the routes
    #[command(visible_alias = "r", alias = "routes")]
    Route(Routes),
    /// Print certificates, without keys
    #[command(visible_alias = "s", alias = "secrets")]
    Secret(From),
    /// Print the authorization policies that the proxy enforces
    #[command(visible_alias = "policies")]
    Policy(From),
    /// Compare the root certificates of two proxies
    #[command(name = "rootca-compare", alias = "rc")]
    RootCompare(RootCompare),
    /// Set the log level
    #[command(alias = "o")]
    Log(Log),
}

/// Which proxy is asked.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst proxy-config routes waypoint-6d5f-abcde.shop
  karst proxy-config clusters deploy/waypoint -n shop
  karst proxy-config secret istio-ingressgateway-abcde.istio-system -o json
  karst proxy-config listener -f dump.json              offline, from a saved /config_dump")]
pub struct From {
    /// POD, POD.NAMESPACE, or deploy/NAME
    #[arg(required_unless_present = "file")]
    pod: Option<String>,
    /// Read a saved /config_dump instead; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "pod")]
    file: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Options of `cluster`.
#[derive(Debug, Args)]
pub struct Clusters {
    #[command(flatten)]
    from: From,
    /// Only of this host
    #[arg(long, value_name = "HOST")]
    fqdn: Option<String>,
    /// Only of this port
    #[arg(long)]
    port: Option<u16>,
    /// Only of this subset
    #[arg(long, value_name = "NAME")]
    subset: Option<String>,
    /// Only of this direction
    #[arg(long, value_name = "NAME")]
    direction: Option<String>,
}

/// Options of `endpoint`.
#[derive(Debug, Args)]
pub struct Endpoints {
    #[command(flatten)]
    from: From,
    /// Only of this cluster (its whole name)
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Only with this address
    #[arg(long, value_name = "IP")]
    address: Option<String>,
    /// Only of this port
    #[arg(long)]
    port: Option<u16>,
    /// Only with this health
    #[arg(long, value_name = "healthy|unhealthy|draining")]
    status: Option<String>,
}

/// Options of `route`.
#[derive(Debug, Args)]
pub struct Routes {
    #[command(flatten)]
    from: From,
    /// Only this route configuration
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Options of `rootca-compare`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  karst proxy-config rootca-compare waypoint-1.shop waypoint-2.bank")]
pub struct RootCompare {
    /// POD, POD.NAMESPACE, or deploy/NAME
    first: String,
    /// Another one
    second: String,
}

/// Options of `log`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  karst proxy-config log waypoint-6d5f-abcde.shop --level debug")]
pub struct Log {
    /// POD, POD.NAMESPACE, or deploy/NAME
    pod: String,
    /// LEVEL or SCOPE:LEVEL, several separated by commas
    #[arg(long, value_name = "LEVELS")]
    level: Option<String>,
    /// Back to the level that it was started with
    #[arg(short, long, conflicts_with = "level")]
    reset: bool,
}

impl ProxyConfig {
    /// Prints what is asked for.
    ///
    /// # Errors
    /// If there is no such proxy, or its page is not what was expected.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::All(from) => {
                let dump = dump(session, &from).await?;
                if let Some(text) = from.output.encode(dump.whole())? {
                    return session.text(&text);
                }
                let none = tables::Only::default();
                for table in [
                    tables::clusters(&dump, &none),
                    listeners::table(&dump),
                    tables::routes(&dump, None),
                    tables::endpoints(&dump, &none),
                ] {
                    session.table(&table)?;
                    session.line("")?;
                }
                Ok(())
            }
            Self::Bootstrap(from) => {
                let dump = dump(session, &from).await?;
                show(session, from.output, &tables::bootstrap(&dump), dump.section("BootstrapConfigDump"))
            }
            Self::Ecds(from) => {
                dump(session, &from).await?;
                if from.output == Format::Table {
                    session.note(
                        "note: proxies of this mesh take no extensions; EnvoyFilter and WasmPlugin are refused when \
                         they are applied (KARST-0007)",
                    );
                }
                session.show(from.output, &Table::new(&["ECDS NAME", "TYPE"]), &Vec::<Value>::new())
            }
            Self::Eds(from) => {
                let dump = dump(session, &from).await?;
                show(session, from.output, &tables::localities(&dump), dump.section("EndpointsConfigDump"))
            }
            Self::RootCompare(asked) => compare_roots(session, &asked).await,
            Self::Cluster(asked) => {
                let dump = dump(session, &asked.from).await?;
                let Clusters { fqdn, subset, direction, port, .. } = &asked;
                let only = tables::Only {
                    host: fqdn.as_deref(),
                    port: *port,
                    subset: subset.as_deref(),
                    direction: direction.as_deref(),
                    ..tables::Only::default()
                };
                let value: Vec<&Value> = dump.clusters().filter(|cluster| only.has_cluster(cluster)).collect();
                show(session, asked.from.output, &tables::clusters(&dump, &only), Some(&json!(value)))
            }
            Self::Endpoint(asked) => {
                let dump = dump(session, &asked.from).await?;
                let Endpoints { cluster, address, port, status, .. } = &asked;
                let only = tables::Only {
                    cluster: cluster.as_deref(),
                    address: address.as_deref(),
                    port: *port,
                    status: status.as_deref(),
                    ..tables::Only::default()
                };
                show(session, asked.from.output, &tables::endpoints(&dump, &only), dump.section("EndpointsConfigDump"))
            }
            Self::Listener(from) => {
                let dump = dump(session, &from).await?;
                let value: Vec<&Value> = dump.listeners().collect();
                show(session, from.output, &listeners::table(&dump), Some(&json!(value)))
            }
            Self::Route(asked) => {
                let dump = dump(session, &asked.from).await?;
                let wanted =
                    |route: &&Value| asked.name.as_deref().is_none_or(|name| envoy::text(route, "/name") == name);
                let value: Vec<&Value> = dump.routes().filter(wanted).collect();
                show(session, asked.from.output, &tables::routes(&dump, asked.name.as_deref()), Some(&json!(value)))
            }
            Self::Secret(from) => {
                let dump = dump(session, &from).await?;
                let value: Vec<&Value> = dump.secrets().collect();
                show(session, from.output, &secrets::table(&dump), Some(&json!(value)))
            }
            Self::Policy(from) => {
                let dump = dump(session, &from).await?;
                show(session, from.output, &listeners::policies(&dump), Some(&json!(rules(&dump))))
            }
            Self::Log(asked) => log(session, &asked).await,
        }
    }
}

/// Whether two proxies trust the same roots.
///
/// # Errors
/// If they do not, or one cannot be asked.
async fn compare_roots(session: &mut Session<'_>, asked: &RootCompare) -> Result<(), Problem> {
    let (first, second) = (of_pod(session, &asked.first).await?, of_pod(session, &asked.second).await?);
    let (one, other) = (secrets::root(&first), secrets::root(&second));
    for (name, root) in [(&asked.first, &one), (&asked.second, &other)] {
        if root.is_none() {
            return Err(Problem::new(format!("{name} has no root certificate yet"))
                .next(format!("`{} proxy-config secret {name}` shows what it has", session.program)));
        }
    }
    if one == other {
        return session.line(format!("{} and {} trust the same root certificate.", asked.first, asked.second));
    }
    Err(Problem::new(format!("{} and {} trust different root certificates", asked.first, asked.second))
        .because("they cannot call each other, unless each trusts the other's, too")
        .next("both must be of one trust domain: look at Secret cacerts or istio-ca-secret of their control planes"))
}

fn show(session: &mut Session<'_>, format: Format, table: &Table, value: Option<&Value>) -> Result<(), Problem> {
    session.show(format, table, value.unwrap_or(&Value::Null))
}

async fn log(session: &mut Session<'_>, asked: &Log) -> Result<(), Problem> {
    let path = match (&asked.level, asked.reset) {
        (Some(level), _) => format!("/logging?level={}", crate::level::checked(level)?),
        (None, true) => "/logging?reset".into(),
        (None, false) => "/logging".into(),
    };
    let (cluster, pod) = find(session, &asked.pod).await?;
    let answer = cluster.post(&pod, ADMIN, &path).await?;
    session.line(format!("{pod}:\n{}", answer.trim_end()))
}

/// The dump of a proxy.
///
/// # Errors
/// If it cannot be reached, or its page is not Envoy's form.
pub async fn of_pod(session: &Session<'_>, pod: &str) -> Result<Dump, Problem> {
    let (cluster, pod) = find(session, pod).await?;
    let text = cluster.get(&pod, ADMIN, "/config_dump?include_eds=true").await?;
    Dump::parse(&text, &format!("/config_dump of {pod}"))
}

async fn dump(session: &Session<'_>, from: &From) -> Result<Dump, Problem> {
    match (&from.file, &from.pod) {
        (Some(file), _) => Dump::parse(&input::read(file)?, &file.display().to_string()),
        (None, Some(pod)) => of_pod(session, pod).await,
        (None, None) => {
            Err(Problem::usage("proxy-config: no proxy is named", "name a pod, or a saved dump with -f")
                .exit(Exit::Usage))
        }
    }
}

async fn find(session: &Session<'_>, named: &str) -> Result<(crate::cluster::Cluster, PodName), Problem> {
    let cluster = session.cluster().await?;
    let deployment = ["deploy/", "deployment/"].iter().find_map(|prefix| named.strip_prefix(prefix));
    let pod = match deployment {
        Some(name) => {
            let (name, namespace) = name.split_once('.').unwrap_or((name, &cluster.namespace));
            let pods = cluster.pods_of_deployment(namespace, name).await?;
            pods.first().map(PodName::from).ok_or_else(|| {
                Problem::new(format!("deployment {name} has no running pod in namespace {namespace}"))
                    .next(format!("look at it: `kubectl -n {namespace} get pods`"))
            })?
        }
        None => PodName::from(&cluster.pod(named).await?),
    };
    if pod.name.starts_with("ztunnel-") && pod.namespace == cluster.istio_namespace {
        return Err(Problem::new(format!("{pod} is a ztunnel, and has no routes or clusters"))
            .next(format!("ask it with `{} ztunnel-config`", session.program)));
    }
    Ok((cluster, pod))
}
