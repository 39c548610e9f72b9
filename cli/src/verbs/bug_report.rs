//! `bug-report`: an archive of logs, dumps and objects, without secrets.

use crate::{
    analysis,
    cluster::{Cluster, PodName},
    known::{ADMIN, CLIENT, MONITORING},
    problem::Problem,
    session::Session,
};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use karst_manifest::kinds::KINDS;
use karst_rt::clock;
use kube::{Api, api::LogParams};
use serde_json::Value;
use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
};

/// Lines of each log.
const LINES: i64 = 20_000;
/// Stands for what was taken out.
const REMOVED: &str = "(removed)";
/// Pods of a kind that are asked: enough to compare, and an archive that can be mailed.
const PODS: usize = 50;

/// Options of `bug-report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst bug-report
  karst bug-report --dir /tmp --since 3600

The archive has: versions; logs and pages of control plane, node agents, ztunnels, waypoints and gateways; the objects
that the mesh reads. It does not have: Secrets, keys, values of environment variables and of programs' arguments,
ConfigMaps of applications.
Access logs have addresses and paths of requests: look through the archive before you publish it.")]
pub struct BugReport {
    /// Directory that the archive is written to
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Only log lines of so many last seconds
    #[arg(long, value_name = "SECONDS")]
    since: Option<i64>,
    /// Without the access logs and others of proxies
    #[arg(long)]
    no_proxy_logs: bool,
}

/// The archive under construction.
struct Archive {
    tar: tar::Builder<File>,
    /// What could not be had.
    missing: Vec<String>,
}

impl Archive {
    fn add(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(clock::since_epoch().as_secs());
        self.tar.append_data(&mut header, format!("bug-report/{name}"), text.as_bytes())
    }
    /// Adds an answer, or notes why there is none: a report of a broken mesh lacks something.
    fn take(&mut self, name: &str, answer: Result<String, Problem>) -> io::Result<()> {
        match answer {
            Ok(text) => self.add(name, &text),
            Err(problem) => {
                self.missing.push(format!("{name}: {problem}"));
                Ok(())
            }
        }
    }
}

impl BugReport {
    /// Writes the archive.
    ///
    /// # Errors
    /// If the cluster cannot be reached at all, or the archive cannot be written.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        // Before a file is made: without a cluster there is nothing to report.
        let version = cluster.client().apiserver_version().await;
        let version = version.map_err(|e| crate::cluster::failed("cannot ask for Kubernetes' version", &e))?;
        let file = self.dir.join(format!("bug-report-{}.tar", clock::since_epoch().as_secs()));
        let failed = |e: io::Error| {
            Problem::new(format!("{}: cannot be written", file.display())).because(e).next("choose another --dir")
        };
        let mut archive = Archive { tar: tar::Builder::new(File::create(&file).map_err(failed)?), missing: vec![] };
        let versions = format!("client {CLIENT}\nKubernetes {}\n", version.git_version);
        archive.add("versions.txt", &versions).map_err(failed)?;
        session.note("collecting objects");
        self.objects(&cluster, &mut archive).await.map_err(failed)?;
        for (what, labels, place, pages) in self.parts(&cluster.istio_namespace) {
            session.note(format!("collecting {what}"));
            self.pods(&cluster, &mut archive, (what, labels), place, pages).await.map_err(failed)?;
        }
        let missing = archive.missing.join("\n");
        archive.add("missing.txt", &missing).map_err(failed)?;
        archive.tar.into_inner().and_then(|mut file| file.flush()).map_err(failed)?;
        session.line(format!("{} (look through it before you publish it)", file.display()))
    }

    /// What is collected of: name, labels, namespace (none: all), pages.
    fn parts<'a>(&self, place: &'a str) -> [(&'static str, &'static str, Option<&'a str>, Pages); 4] {
        [
            (
                "istiod",
                "app=istiod",
                Some(place),
                &[(MONITORING, "/version"), (MONITORING, "/debug/syncz"), (MONITORING, "/metrics")],
            ),
            ("node-agent", "k8s-app=istio-cni-node", Some(place), &[]),
            ("ztunnel", "app=ztunnel", Some(place), &[(ADMIN, "/config_dump"), (15020, "/metrics")]),
            (
                "gateway",
                "gateway.networking.k8s.io/gateway-name",
                None,
                &[
                    (ADMIN, "/config_dump?include_eds=true"),
                    (ADMIN, "/config_dump/karst"),
                    (ADMIN, "/stats/prometheus"),
                ],
            ),
        ]
    }

    async fn objects(&self, cluster: &Cluster, archive: &mut Archive) -> io::Result<()> {
        // CRDs are large, and everybody's.
        let taken = KINDS.iter().filter(|(kind, ..)| !matches!(*kind, "Secret" | "CustomResourceDefinition"));
        for (kind, group, _) in taken {
            let listed = analysis::stored(cluster, kind, group).await.map(|mut objects| {
                objects.retain(|object| *kind != "ConfigMap" || is_of_mesh(object, &cluster.istio_namespace));
                objects.iter_mut().for_each(redact);
                serde_yaml_ng::to_string(&objects).unwrap_or_default()
            });
            archive.take(&format!("objects/{kind}.yaml"), listed)?;
        }
        Ok(())
    }

    async fn pods(
        &self,
        cluster: &Cluster,
        archive: &mut Archive,
        (what, labels): (&str, &str),
        place: Option<&str>,
        pages: Pages,
    ) -> io::Result<()> {
        let pods = match cluster.pods_of(place, labels).await {
            Ok(pods) => pods,
            Err(problem) => {
                archive.missing.push(format!("{what}: {problem}"));
                return Ok(());
            }
        };
        if pods.len() > PODS {
            archive.missing.push(format!("{what}: {} of {} pods", PODS, pods.len()));
        }
        for pod in pods.iter().take(PODS).map(PodName::from) {
            let folder = format!("{what}/{pod}");
            if what == "istiod" || what == "node-agent" || !self.no_proxy_logs {
                archive.take(&format!("{folder}/log.txt"), self.log(cluster, &pod).await)?;
            }
            for (port, path) in pages {
                let name = path.trim_start_matches('/').replace(['/', '?', '='], "_");
                archive.take(&format!("{folder}/{name}"), cluster.get(&pod, *port, path).await)?;
            }
        }
        Ok(())
    }

    async fn log(&self, cluster: &Cluster, pod: &PodName) -> Result<String, Problem> {
        let api: Api<Pod> = Api::namespaced(cluster.client(), &pod.namespace);
        let params =
            LogParams { tail_lines: Some(LINES), timestamps: true, since_seconds: self.since, ..LogParams::default() };
        api.logs(&pod.name, &params).await.map_err(|e| crate::cluster::failed(format!("log of {pod}"), &e))
    }
}

/// Ports and paths.
type Pages = &'static [(u16, &'static str)];

fn is_of_mesh(object: &Value, place: &str) -> bool {
    let at = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    at("/metadata/namespace") == place && at("/metadata/name").starts_with("istio")
}

/// Takes out what may be secret, or is only bulk: values of environment variables and of programs' arguments, what was
/// last applied, managed fields.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("managedFields");
            fields.remove("kubectl.kubernetes.io/last-applied-configuration");
            for (name, inner) in fields.iter_mut() {
                if name == "env"
                    && let Value::Array(variables) = inner
                {
                    variables.iter_mut().filter_map(|one| one.get_mut("value")).for_each(|one| *one = REMOVED.into());
                }
                // The program itself stays.
                let kept = usize::from(name == "command");
                if (name == "args" || name == "command")
                    && let Value::Array(words) = inner
                {
                    words.iter_mut().skip(kept).for_each(argument);
                }
                redact(inner);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(redact),
        _ => {}
    }
}

/// Of an argument the name stays: `--password=x` becomes `--password=(removed)`, a word that is no option goes.
fn argument(word: &mut Value) {
    let Some(text) = word.as_str() else { return };
    let shown = match text.split_once('=') {
        Some((name, _)) => format!("{name}={REMOVED}"),
        None if text.starts_with("--") => return,
        None => REMOVED.to_owned(),
    };
    *word = shown.into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_arguments_are_taken_out() {
        let mut pod = json!({ "spec": { "containers": [{
            "command": ["/app", "--token", "secret"],
            "args": ["--password=secret", "-p", "secret", "serve", "user=secret=x", "--verbose"],
        }] } });
        redact(&mut pod);
        let at = |list: &str| pod.pointer(&format!("/spec/containers/0/{list}")).cloned();
        assert_eq!(at("command"), Some(json!(["/app", "--token", REMOVED])));
        let args = ["--password=(removed)", REMOVED, REMOVED, REMOVED, "user=(removed)", "--verbose"];
        assert_eq!(at("args"), Some(json!(args)));
    }

    #[test]
    fn values_of_variables_are_taken_out() {
        let mut pod = json!({
            "metadata": { "name": "a", "managedFields": [1], "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "secret", "k": "v" } },
            "spec": { "containers": [{ "env": [{ "name": "PASSWORD", "value": "secret" }, { "name": "X", "valueFrom": {} }] }] },
        });
        redact(&mut pod);
        assert!(!pod.to_string().contains("secret") && !pod.to_string().contains("managedFields"), "{pod}");
        assert_eq!(pod.pointer("/metadata/annotations"), Some(&json!({ "k": "v" })));
    }

    #[test]
    fn config_maps_are_the_meshs_own() {
        let map = |place: &str, name: &str| json!({ "metadata": { "namespace": place, "name": name } });
        assert!(is_of_mesh(&map("istio-system", "istio-ca-root-cert"), "istio-system"));
        assert!(!is_of_mesh(&map("shop", "istio-ca-root-cert"), "istio-system"));
        assert!(!is_of_mesh(&map("istio-system", "passwords"), "istio-system"));
    }
}
