//! `waypoint apply` and `generate`.

use super::gateway::{self, GATEWAY, Traffic, USE, duration, manifest};
use crate::{
    cluster::{Cluster, Resource},
    output::Format,
    problem::Problem,
    session::Session,
};
use clap::Args;
use kube::ResourceExt;
use serde_json::json;
use std::time::Duration;

/// What the Gateway shall be.
#[derive(Debug, Args)]
struct Wanted {
    /// Name of the waypoint
    #[arg(long, default_value = "waypoint")]
    name: String,
    /// The traffic that it is for [default: service]
    #[arg(long = "for", value_enum, value_name = "TRAFFIC")]
    traffic: Option<Traffic>,
    /// Revision of the control plane that it belongs to
    #[arg(short, long, value_name = "NAME")]
    revision: Option<String>,
}

/// Options of `waypoint apply`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst waypoint apply                                   in the context's namespace
  karst waypoint apply -n shop --enroll-namespace --wait
  karst waypoint apply -n shop --name for-pods --for workload")]
pub struct Apply {
    #[command(flatten)]
    wanted: Wanted,
    /// Have all services of the namespace use it
    #[arg(long)]
    enroll_namespace: bool,
    /// Replace the waypoint that the namespace uses
    #[arg(long, requires = "enroll_namespace")]
    overwrite: bool,
    /// Wait until it is ready
    #[arg(short, long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "90s", value_parser = duration, value_name = "DURATION")]
    waypoint_timeout: Duration,
}

/// Options of `waypoint generate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst waypoint generate -n shop | kubectl apply -f -
  karst waypoint generate --for all -o json")]
pub struct Generate {
    #[command(flatten)]
    wanted: Wanted,
    /// Output format (table is YAML, too)
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
}

impl Generate {
    /// Prints the Gateway; no cluster is asked.
    pub fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let (wanted, namespace) = (&self.wanted, session.global.namespace.as_deref());
        let object = manifest(&wanted.name, namespace, wanted.traffic, wanted.revision.as_deref());
        let format = if self.output == Format::Json { Format::Json } else { Format::Yaml };
        session.text(&format.encode(&object)?.unwrap_or_default())
    }
}

impl Apply {
    /// Applies the Gateway, then labels the namespace.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let (name, namespace) = (&self.wanted.name, cluster.namespace.clone());
        if cluster.list(GATEWAY, Some(&namespace), "").await?.is_none() {
            return Err(gateway::no_crds());
        }
        if self.enroll_namespace && !self.may_enroll(session, &cluster).await? {
            return Ok(());
        }
        if cluster.object(GATEWAY, Some(&namespace), name).await?.is_some_and(|there| !gateway::is_waypoint(&there)) {
            let next = "choose another name with --name, or delete that Gateway first";
            return Err(Problem::new(format!("Gateway {namespace}/{name} is there and is no waypoint")).next(next));
        }
        let object = manifest(name, Some(&namespace), self.wanted.traffic, self.wanted.revision.as_deref());
        cluster.apply(GATEWAY, Some(&namespace), name, &object).await?;
        session.line(format!("\u{2705} waypoint {namespace}/{name} applied"))?;
        if self.wait {
            session.note(format!("waiting until waypoint {namespace}/{name} is programmed"));
            gateway::wait(&cluster, &namespace, name, self.waypoint_timeout).await?;
            session.line(format!("\u{2705} waypoint {namespace}/{name} is ready!"))?;
        }
        if self.enroll_namespace {
            let labels = json!({ "metadata": { "labels": { USE: name } } });
            cluster.merge(Resource::NAMESPACE, None, &namespace, &labels).await?;
            session.line(format!("\u{2705} namespace {namespace} labeled with \"{USE}: {name}\""))?;
        }
        Ok(())
    }

    /// Whether the namespace can use it. Says what speaks against it.
    async fn may_enroll(&self, session: &mut Session<'_>, cluster: &Cluster) -> Result<bool, Problem> {
        let name = &cluster.namespace;
        let Some(namespace) = cluster.object(Resource::NAMESPACE, None, name).await? else {
            return Err(Problem::new(format!("namespace {name} does not exist"))
                .next(format!("create it: `kubectl create namespace {name}`, or name another with -n")));
        };
        if namespace.labels().get("istio.io/dataplane-mode").map(String::as_str) != Some("ambient") {
            session.note(format!(
                "warning: namespace {name} is not part of the mesh: add it with \
                 `kubectl label namespace {name} istio.io/dataplane-mode=ambient`"
            ));
        }
        match namespace.labels().get(USE) {
            Some(used) if *used != self.wanted.name && !self.overwrite => {
                session.line(format!(
                    "namespace {name} already uses waypoint {used}: nothing was changed; --overwrite replaces it"
                ))?;
                Ok(false)
            }
            _ => Ok(true),
        }
    }
}
