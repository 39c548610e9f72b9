//! `version`: of client, control plane and data plane.

use crate::{
    cluster::{Cluster, PodName, is_ready},
    known::{CLIENT, MONITORING},
    output::Format,
    problem::Problem,
    session::Session,
    syncz::Proxy,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Options of `version`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  karst version\n  karst version --remote=false\n  karst version -o json")]
pub struct Version {
    /// Ask the cluster, too
    #[arg(
        long,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    remote: bool,
    /// Print the numbers only; --short=false names each pod of the control plane and each proxy
    #[arg(
        short,
        long,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    short: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The versions, with istioctl's names.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client_version: Build,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh_version: Option<Vec<Component>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_plane_version: Option<Vec<DataPlane>>,
}
#[derive(Debug, Default, Serialize)]
struct Build {
    version: String,
}
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    component: String,
    id: String,
    info: Build,
}
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DataPlane {
    #[serde(rename = "ID")]
    id: String,
    istio_version: String,
    r#type: String,
}

impl Version {
    /// Prints them.
    ///
    /// # Errors
    /// If the answer cannot be written. A cluster that cannot be asked is a note: the client's version is known.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let mut versions = Versions { client_version: Build { version: CLIENT.into() }, ..Versions::default() };
        if self.remote
            && let Err(problem) = remote(session, &mut versions).await
        {
            session.note(problem.to_string());
        }
        match self.output.encode(&versions)? {
            Some(text) => session.text(&text),
            None => session.text(&text(&versions, self.short)),
        }
    }
}

async fn remote(session: &Session<'_>, versions: &mut Versions) -> Result<(), Problem> {
    let cluster = session.cluster().await?;
    let pods = cluster.control_plane().await?;
    let (mut mesh, mut data) = (vec![], vec![]);
    for pod in pods.iter().filter(|pod| is_ready(pod)) {
        let name = PodName::from(pod);
        let version = control_plane(&cluster.get(&name, MONITORING, "/version").await?);
        mesh.push(Component { component: "pilot".into(), id: name.name.clone(), info: Build { version } });
        data.extend(proxies(&cluster, &name).await?);
    }
    data.sort_by(|a, b| a.id.cmp(&b.id));
    versions.mesh_version = Some(mesh);
    versions.data_plane_version = Some(data);
    Ok(())
}

async fn proxies(cluster: &Cluster, pod: &PodName) -> Result<Vec<DataPlane>, Problem> {
    let page: Value = cluster.page(pod, MONITORING, "/debug/syncz").await?;
    let of =
        |proxy: Proxy| DataPlane { id: proxy.name(), istio_version: proxy.istio_version, r#type: proxy.proxy_type };
    Ok(Proxy::list(page)?.into_iter().map(of).collect())
}

/// The number in the control plane's answer: Istio's is JSON, or `version-sha-status`; ours is the number.
fn control_plane(page: &str) -> String {
    let parsed: Value = serde_json::from_str(page).unwrap_or_default();
    let pointed = parsed.pointer("/clientVersion/version").or_else(|| parsed.get("version")).and_then(Value::as_str);
    pointed.unwrap_or(page.trim()).to_owned()
}

fn text(versions: &Versions, short: bool) -> String {
    let mut out = format!("client version: {}\n", versions.client_version.version);
    let Some(mesh) = &versions.mesh_version else { return out };
    if short {
        let mut all: Vec<&str> = mesh.iter().map(|component| component.info.version.as_str()).collect();
        all.sort_unstable();
        all.dedup();
        out += &format!("control plane version: {}\n", if all.is_empty() { "none".into() } else { all.join(", ") });
    } else {
        for component in mesh {
            out += &format!("{} version: {} ({})\n", component.component, component.info.version, component.id);
        }
    }
    let data = versions.data_plane_version.as_deref().unwrap_or_default();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for proxy in data {
        *counts.entry(&proxy.istio_version).or_default() += 1;
    }
    let counted: Vec<String> = counts.iter().map(|(version, count)| format!("{version} ({count} proxies)")).collect();
    out += &format!("data plane version: {}\n", if counted.is_empty() { "none".into() } else { counted.join(", ") });
    if !short {
        for proxy in data {
            out += &format!("  {} {} ({})\n", proxy.istio_version, proxy.id, proxy.r#type);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_may_answer_in_json_or_in_text() {
        assert_eq!(control_plane("{\"clientVersion\":{\"version\":\"1.2\"}}"), "1.2");
        assert_eq!(control_plane("0.1.0\n"), "0.1.0");
    }

    #[test]
    fn proxies_are_counted_by_version() {
        let proxy =
            |version: &str| DataPlane { id: "a.b".into(), istio_version: version.into(), r#type: "ztunnel".into() };
        let versions = Versions {
            client_version: Build { version: "1".into() },
            mesh_version: Some(vec![]),
            data_plane_version: Some(vec![proxy("1"), proxy("2"), proxy("1")]),
        };
        let expected =
            "client version: 1\ncontrol plane version: none\ndata plane version: 1 (2 proxies), 2 (1 proxies)\n";
        assert_eq!(text(&versions, true), expected);
    }
}
