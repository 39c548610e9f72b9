//! `check` and `x precheck`: can the mesh be installed here, or, where it is, is everything healthy.

mod after;
mod before;
mod looked;
mod nodes;

use crate::{
    cluster::{Cluster, failed},
    output::{Cell, Format, Table, Tone},
    problem::{Exit, Problem},
    session::Session,
};
use clap::Args;
use kube::ResourceExt;
use serde_json::Value;

use looked::{CRD, Looked, Status};

/// Oldest minor version of Kubernetes 1.x that the charts take (kubeVersion).
const OLDEST: u32 = 30;

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst check                before an installation: what would be in its way
                             after it: is every component healthy
  karst check -o json

Ends with 79 if something must be repaired. Before an installation nodes are judged by the version of their kernels;
after it each node agent tries what its kernel can do, and looks for a bpffs.")]
pub struct Check {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Check {
    /// Looks, and prints.
    ///
    /// # Errors
    /// If something must be repaired, or the cluster cannot be asked.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let place = cluster.istio_namespace.clone();
        let mut all = vec![version(&cluster).await?, gateway_api(&cluster).await?];
        all.extend(nodes::look(&cluster).await);
        let is_installed = after::is_installed(&cluster, &place).await?;
        if is_installed {
            all.extend(after::look(&cluster, &place).await?);
        } else {
            all.push(before::rights(&cluster, &place).await?);
            all.extend(before::leftovers(&cluster, &place).await?);
        }
        let mut table = Table::new(&["CHECK", "STATUS", "MESSAGE"]);
        for looked in &all {
            let (text, tone) = match looked.status {
                Status::Ok => ("ok", Tone::Good),
                Status::Warning => ("warning", Tone::Warning),
                Status::Error => ("error", Tone::Bad),
            };
            table.row([looked.what.clone().into(), Cell::new(text, tone), looked.message.clone().into()]);
        }
        session.show(self.output, &table, &all)?;
        let errors = all.iter().filter(|looked| looked.status == Status::Error).count();
        if errors > 0 {
            return Err(Problem::new(format!("check: {errors} errors"))
                .next("each names the fix")
                .exit(Exit::Findings));
        }
        if self.output == Format::Table {
            session.line(if is_installed {
                "\u{2714} The mesh is healthy."
            } else {
                "\u{2714} No issues found. The mesh can be installed or upgraded here."
            })?;
        }
        Ok(())
    }
}

async fn version(cluster: &Cluster) -> Result<Looked, Problem> {
    let info =
        cluster.client().apiserver_version().await.map_err(|e| failed("cannot ask for Kubernetes' version", &e))?;
    Ok(judge_version(&info.major, &info.minor))
}

fn judge_version(major: &str, minor: &str) -> Looked {
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    let (what, number) = ("Kubernetes version", digits.parse::<u32>().ok());
    match (major, number) {
        ("1", Some(number)) if number >= OLDEST => Looked::new(what, Status::Ok, format!("1.{number}")),
        _ => {
            let message = format!("{major}.{minor} is older than 1.{OLDEST}: upgrade Kubernetes first");
            Looked::new(what, Status::Error, message)
        }
    }
}

/// What to say of a version (`v1.27.3`) that the charts do not take.
pub fn too_old(version: &str) -> Option<Problem> {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let is_old = judge_version(major, minor).status == Status::Error;
    let what = || Problem::new(format!("Kubernetes {version} is older than 1.{OLDEST}, the oldest that works"));
    is_old.then(|| what().next("upgrade Kubernetes first; `karst check` looks at the rest of the cluster"))
}

async fn gateway_api(cluster: &Cluster) -> Result<Looked, Problem> {
    let what = "Gateway API CRDs";
    let Some(crd) = cluster.object(CRD, None, "gateways.gateway.networking.k8s.io").await? else {
        let message = "not installed: waypoints and Gateways need them; \
                       install release v1.4.0 or newer of kubernetes-sigs/gateway-api (standard channel)";
        return Ok(Looked::new(what, Status::Warning, message));
    };
    let version = crd.annotations().get("gateway.networking.k8s.io/bundle-version").cloned().unwrap_or_default();
    let served = crd.data.pointer("/spec/versions").and_then(Value::as_array);
    let has_v1 = served.into_iter().flatten().any(|version| {
        version.get("name").and_then(Value::as_str) == Some("v1") && version.get("served") == Some(&Value::Bool(true))
    });
    Ok(match has_v1 {
        true => Looked::new(what, Status::Ok, version),
        false => Looked::new(what, Status::Error, format!("{version} does not serve v1: install v1.4.0 or newer")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_may_have_a_plus() {
        let status = |major, minor| judge_version(major, minor).status;
        assert_eq!([status("1", "30"), status("1", "34+")], [Status::Ok, Status::Ok]);
        assert_eq!([status("1", "29"), status("1", "x"), status("2", "0")], [Status::Error; 3]);
        assert!(too_old("v1.29.9-gke.100").is_some() && too_old("v1.30.0+k3s1").is_none());
    }
}
