//! `explain`: what becomes of a call from A to B, step by step, and which object decided.

use crate::{
    analysis,
    cluster::{Cluster, Resource},
    input,
    output::Format,
    problem::{Exit, Problem},
    session::Session,
};
use clap::Args;
use karst_explain::{Call, Difference, Enrolment, Explanation, Head, Verdict, World, differences, explain, text};
use karst_manifest::State;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// What the control plane's options say that changes an answer, and what they say by default.
const OPTIONS: [(&str, &str); 5] = [
    ("ROOT_NAMESPACE", "istio-system"),
    ("TRUST_DOMAIN", "cluster.local"),
    ("CLUSTER_DOMAIN", "cluster.local"),
    ("DEFAULT_VIRTUAL_SERVICE_EXPORT_TO", "*"),
    ("DEFAULT_DESTINATION_RULE_EXPORT_TO", "*"),
];

/// Objects are read here as the control plane reads them, so its options must be ours: they are taken from the environment.
///
/// # Errors
/// If they differ, or the control plane's cannot be read: then nothing can be said.
pub(super) async fn as_the_control_plane(cluster: &Cluster, verb: &str) -> Result<(), Problem> {
    let place = Some(cluster.istio_namespace.as_str());
    let found = cluster.list(Resource::DEPLOYMENT, place, "app=istiod").await?.unwrap_or_default();
    let Some(controller) = found.first() else {
        let what = format!("{verb}: no control plane is in namespace {}", cluster.istio_namespace);
        return Err(Problem::new(what).next("name its namespace with -i, or name files in place of the cluster"));
    };
    let containers = controller.data.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let theirs = |name: &str| {
        let variables = containers?.iter().filter_map(|container| container["env"].as_array()).flatten();
        variables.into_iter().find(|variable| variable["name"] == name)?["value"].as_str().map(String::from)
    };
    let mut other = vec![];
    for (name, default) in OPTIONS {
        let wanted = theirs(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.into());
        if std::env::var(name).unwrap_or_else(|_| default.into()) != wanted {
            other.push(format!("{name}={wanted}"));
        }
    }
    if other.is_empty() {
        return Ok(());
    }
    let next = format!("run it with the control plane's options: env {} karst {verb} …", other.join(" "));
    Err(Problem::new(format!("{verb}: the control plane has other options than are set here")).next(next))
}

/// Options of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst explain deploy/web.shop reviews.shop --port 9080 --path /reviews/1
  karst explain sa/batch.jobs ledger.bank --method POST --header x-tenant:a
  karst explain 203.0.113.9 web.shop                       from outside of the mesh
  karst explain pod/web-1.shop 10.0.3.7 --port 5432 --tcp
  karst explain pod/web-1.shop reviews.shop -f manifests/  without a cluster
  karst explain pod/web-1.shop reviews.shop -o json

Ends with 0 if the call gets through (to some endpoints at least), with 1 if it is refused, with 2 if that cannot be
said. Pods without a cluster are those of the files; what the mesh would enroll counts as enrolled.")]
pub struct Explain {
    /// Who calls: [KIND/]NAME[.NAMESPACE] (pod, deploy, sa), a SPIFFE identity, or an address
    from: String,
    /// What is called: a service as NAME[.NAMESPACE] or by its host, pod/NAME[.NAMESPACE], or an address
    to: String,
    /// Port [default: the only one of the service]
    #[arg(long)]
    port: Option<u16>,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: String,
    /// Path and query of the request
    #[arg(long, default_value = "/")]
    path: String,
    /// Host of the request [default: the service's]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// A header of the request, as NAME:VALUE
    #[arg(short = 'H', long, value_name = "NAME:VALUE")]
    header: Vec<String>,
    /// Claims of a token that its issuer has signed, as JSON: {"iss": ..., "sub": ...}
    #[arg(long, value_name = "JSON")]
    token_claims: Option<String>,
    /// Not a request: bytes of which nothing is known
    #[arg(long, conflicts_with_all = ["method", "path", "host", "header", "token_claims"])]
    tcp: bool,
    /// The name in the TLS hello that the connection begins with
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Files or directories instead of the cluster; - is standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A dump of a ztunnel (/config_dump): say where it knows otherwise than the objects are
    #[arg(long, value_name = "FILE")]
    ztunnel_dump: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The answer, and what proxies know otherwise.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    explanation: Explanation,
    /// By file.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    differences: BTreeMap<String, Vec<Difference>>,
}

impl Explain {
    /// Prints the way of the call.
    ///
    /// # Errors
    /// If it is refused, or it cannot be said what becomes of it.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let call = self.call()?;
        let world = self.world(session).await?;
        let unknown = |what: String| Problem::new(what).exit(Exit::Unknown);
        let answer = explain(&world, &call).map_err(|e| unknown(e.to_string()))?;
        let answer = Answer { differences: self.differences(&world, &answer)?, explanation: answer };
        match self.output.encode(&answer)? {
            Some(encoded) => session.text(&encoded)?,
            None => {
                session.text(&text::render(&answer.explanation))?;
                for (file, all) in &answer.differences {
                    session.text(&different(file, all))?;
                }
            }
        }
        match answer.explanation.verdict {
            Verdict::Allowed | Verdict::Partly => Ok(()),
            Verdict::Refused => Err(Problem::new("explain: the call is refused")),
            Verdict::Unknown => Err(unknown("explain: it cannot be said what becomes of the call".into())),
        }
    }

    async fn world(&self, session: &Session<'_>) -> Result<World, Problem> {
        let failed = |e: karst_explain::WorldError| Problem::new("explain").because(e).exit(Exit::Unknown);
        if self.files.is_empty() {
            let cluster = session.cluster().await.map_err(|e| e.exit(Exit::Unknown))?;
            as_the_control_plane(&cluster, "explain").await.map_err(|e| e.exit(Exit::Unknown))?;
            let (objects, notes) = analysis::from_cluster(&cluster).await.map_err(|e| e.exit(Exit::Unknown))?;
            notes.iter().for_each(|note| session.note(note));
            return World::new(State { objects, ..State::default() }, Enrolment::Reported).map_err(failed);
        }
        let namespace = session.global.namespace.clone().unwrap_or_else(|| "default".into());
        let paths = analysis::files(&self.files, true).map_err(|e| e.exit(Exit::Unknown))?;
        let input = analysis::read(&paths, &namespace).map_err(|e| e.exit(Exit::Unknown))?;
        input.problems.iter().for_each(|problem| session.note(format!("note: {problem}")));
        World::new(input.over(vec![]), Enrolment::Expected).map_err(failed)
    }

    fn differences(&self, world: &World, answer: &Explanation) -> Result<BTreeMap<String, Vec<Difference>>, Problem> {
        let mut all = BTreeMap::new();
        for file in &self.ztunnel_dump {
            let dump = serde_json::from_str(&input::read(file)?).map_err(|e| {
                let what = Problem::new(format!("{}: not a dump of ztunnel", file.display())).because(e);
                what.next("save one from ztunnel's /config_dump").exit(Exit::Unknown)
            })?;
            all.insert(file.display().to_string(), differences(world, answer, &dump));
        }
        Ok(all)
    }

    fn call(&self) -> Result<Call, Problem> {
        let usage = |what: String, next: &str| Problem::usage(what, next).exit(Exit::Unknown);
        let header = |text: &String| {
            let (name, value) = text.split_once(':').ok_or_else(|| {
                usage(format!("--header {text}: no colon"), "write NAME:VALUE, as --header x-tenant:a")
            })?;
            Ok((name.trim().to_string(), value.trim().to_string()))
        };
        let claims = self.token_claims.as_ref().map(|json| {
            serde_json::from_str(json).map_err(|e| {
                usage(
                    format!("--token-claims: {e}"),
                    r#"write a JSON object, as '{"iss": "https://issuer", "sub": "me"}'"#,
                )
            })
        });
        let request = Head {
            method: self.method.clone(),
            path: self.path.clone(),
            host: self.host.clone(),
            headers: self.header.iter().map(header).collect::<Result<_, Problem>>()?,
            claims: claims.transpose()?,
        };
        Ok(Call {
            from: self.from.clone(),
            to: self.to.clone(),
            port: self.port,
            request: (!self.tcp).then_some(request),
            server_name: self.server_name.clone(),
        })
    }
}

/// What a ztunnel knows otherwise, in lines.
fn different(file: &str, all: &[Difference]) -> String {
    let or = |text: &str| if text.is_empty() { "nothing".to_string() } else { text.to_string() };
    let line = |d: &Difference| {
        let field = if d.field.is_empty() { String::new() } else { format!(" {}", d.field) };
        format!("  {}{field}: {} by the objects, {} in the proxy\n", d.subject, or(&d.compiled), or(&d.proxy))
    };
    match all {
        [] => format!("\n{file}: this ztunnel knows the same.\n"),
        all => format!("\n{file}: this ztunnel knows otherwise:\n{}", all.iter().map(line).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::options::Global;
    use std::{fs, process};

    const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
";

    /// The answer, and how the process would end.
    fn run(words: &[&str]) -> (String, Option<Exit>) {
        let file = std::env::temp_dir().join(format!("karst-explain-{}.yaml", process::id()));
        fs::write(&file, OBJECTS).unwrap();
        let file = file.to_string_lossy().into_owned();
        let line = ["karst", "explain"].iter().chain(words).copied().chain(["-f", &file]);
        let words: Vec<_> = line.map(Into::into).collect();
        let cli = crate::parse(&words, "karst").unwrap();
        let crate::verbs::Verb::Explain(verb) = cli.verb else { unreachable!() };
        let (global, mut out) = (Global::default(), vec![]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = {
            let mut session = Session::to(&global, "karst", &mut out);
            runtime.block_on(verb.run(&mut session))
        };
        (String::from_utf8(out).unwrap(), ended.err().map(|e| e.status()))
    }

    #[test]
    fn the_exit_status_says_what_becomes_of_the_call() {
        let (out, exit) = run(&["pod/web-1.shop", "web.shop"]);
        assert!(out.starts_with("refused: no ALLOW policy matches: "), "{out}");
        assert_eq!(exit, Some(Exit::Failed));
        let (out, exit) = run(&["pod/web-1.shop", "web.shop", "-o", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (answer["verdict"].as_str(), answer["cause"].as_str()),
            (Some("refused"), Some("notAllowedByAnyPolicy"))
        );
        assert_eq!((answer["fix"]["verified"].as_bool(), exit), (Some(true), Some(Exit::Failed)));
        assert_eq!(run(&["pod/web-1.shop", "203.0.113.1", "--port", "443", "--tcp"]).1, None);
        assert_eq!(run(&["pod/none.shop", "web.shop"]).1, Some(Exit::Unknown));
        assert_eq!(run(&["pod/web-1.shop", "web.shop", "--header", "x"]).1, Some(Exit::Unknown));
    }
}
