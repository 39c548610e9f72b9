//! `explain`: what becomes of a call from A to B, step by step, and which object decided.

mod observed;
mod past;

use crate::{
    analysis,
    cluster::{Cluster, Resource},
    output::Format,
    problem::{Exit, Problem},
    session::Session,
};
use clap::Args;
use karst_explain::{
    Call, Comparison, Enrolment, Explanation, Head, NetworkPolicy, Verdict, World, compare, explain, text,
};
use karst_manifest::State;
use observed::Saved;
use past::Told;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// How often proxies are asked, as each answer may lead to others.
const ROUNDS: usize = 4;
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

/// The NetworkPolicies of the Kubernetes cluster; none, and a note, if they may not be read.
async fn network_policies(session: &Session<'_>, cluster: &Cluster) -> Vec<NetworkPolicy> {
    let resource = Resource::new("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies");
    match cluster.list(resource, None, "").await {
        Ok(found) => {
            let values = found.into_iter().flatten().filter_map(|one| serde_json::to_value(one).ok());
            values.filter_map(|value| NetworkPolicy::read(&value, None, 0)).collect()
        }
        Err(problem) => {
            session.note(format!("note: NetworkPolicies are not looked at: {problem}"));
            vec![]
        }
    }
}

/// Options of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst explain deploy/web.shop reviews.shop --port 9080 --path /reviews/1
  karst explain sa/batch.jobs ledger.bank --method POST --header x-tenant:a
  karst explain 203.0.113.9 web.shop                       from outside of the mesh
  karst explain outside shop.example.com --path /cart      through a gateway
  karst explain pod/web-1.shop 10.0.3.7 --port 5432 --tcp
  karst explain pod/web-1.shop reviews.shop -f manifests/  without a cluster
  karst explain pod/web-1.shop reviews.shop -o json
  karst explain pod/web-1.shop reviews.shop --at 15m       by what proxies were told 15 minutes ago

Ends with 0 if the call gets through (to some endpoints at least), with 1 if it is refused, with 2 if that cannot be
said. Pods without a cluster are those of the files; what the mesh would enroll counts as enrolled. On a cluster the
proxies on the way are asked what they know, and it is told where that is not what the objects say.")]
pub struct Explain {
    /// Who calls: [KIND/]NAME[.NAMESPACE] (pod, deploy, sa), a SPIFFE identity, an address, or outside; NAMESPACE is -n's if
    /// it is not written, as it is for what is called
    from: String,
    /// What is called: a service as NAME[.NAMESPACE] or by its host, a gateway's host, pod/NAME[.NAMESPACE], or an address
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
    /// A saved page /config_dump of the ztunnel of a node (of all nodes, without a name): it decides in place of what the
    /// objects say, and where it differs is told
    #[arg(long, value_name = "[NODE=]FILE")]
    ztunnel_dump: Vec<Saved>,
    /// A saved page /config_dump/karst?resources of a waypoint or gateway
    #[arg(long, value_name = "[NAMESPACE/POD=]FILE")]
    waypoint_dump: Vec<Saved>,
    /// Do not ask the cluster's proxies: answer by the objects alone
    #[arg(long, conflicts_with = "files")]
    by_objects: bool,
    /// Answer by what the controller told proxies at this time (RFC 3339, as 2026-10-02T14:03:00Z) or so long ago (15m, 2h);
    /// not by what they had taken in, which is not known. A day of versions is kept
    #[arg(
        long,
        value_name = "TIME",
        conflicts_with_all = ["files", "ztunnel_dump", "waypoint_dump", "by_objects"]
    )]
    at: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The answer, and what proxies know otherwise.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    explanation: Explanation,
    /// What it is by, if not by what proxies are told now.
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
    /// What it would be if all proxies knew what the objects say, if that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_objects: Option<Verdict>,
    /// Of each proxy that was looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Comparison>,
}

impl Explain {
    /// Prints the way of the call.
    ///
    /// # Errors
    /// If it is refused, or it cannot be said what becomes of it.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let mut call = self.call()?;
        let when = self.at.as_deref().map(past::when).transpose()?;
        let (mut world, cluster) = self.world(session).await?;
        call.namespace = match &cluster {
            Some(cluster) => cluster.namespace.clone(),
            None => session.global.namespace.clone().unwrap_or_default(),
        };
        let mut told = None;
        if let (Some(when), Some(cluster)) = (when, &cluster) {
            let mut found = past::ask(session, cluster, when).await?;
            world = world.with_told(std::mem::take(&mut found.resources));
            call.now = found.at.seconds();
            told = Some(found);
        }
        let unknown = |what: String| Problem::new(what).exit(Exit::Unknown);
        let asked = |world: &World| explain(world, &call).map_err(|e| unknown(e.to_string()));
        let mut answer = asked(&world)?;
        let by_objects = answer.verdict;
        observed::read(&mut world, &self.ztunnel_dump, &self.waypoint_dump)?;
        if !self.ztunnel_dump.is_empty() || !self.waypoint_dump.is_empty() {
            answer = asked(&world)?;
        }
        if let Some(cluster) = cluster.filter(|_| !self.by_objects && when.is_none()) {
            // By what the first ones know it may go by others.
            for _ in 0..ROUNDS {
                if !observed::ask(session, &cluster, &mut world, &answer).await {
                    break;
                }
                answer = asked(&world)?;
            }
        }
        let by_objects = Some(by_objects).filter(|verdict| *verdict != answer.verdict);
        let answer = Answer { differences: compare(&world, &answer), by_objects, told, explanation: answer };
        match self.output.encode(&answer)? {
            Some(encoded) => session.text(&encoded)?,
            None => {
                session.text(&answer.told.as_ref().map(Told::text).unwrap_or_default())?;
                session.text(&text::render(&answer.explanation))?;
                session.text(&text::compared(&answer.differences, answer.by_objects))?;
            }
        }
        match answer.explanation.verdict {
            Verdict::Allowed | Verdict::Partly => Ok(()),
            Verdict::Refused => Err(Problem::new("explain: the call is refused")),
            Verdict::Unknown => Err(unknown("explain: it cannot be said what becomes of the call".into())),
        }
    }

    /// The objects, and the cluster if they are from there.
    async fn world(&self, session: &Session<'_>) -> Result<(World, Option<Cluster>), Problem> {
        let failed = |e: karst_explain::WorldError| Problem::new("explain").because(e).exit(Exit::Unknown);
        if self.files.is_empty() {
            let cluster = session.cluster().await.map_err(|e| e.exit(Exit::Unknown))?;
            as_the_control_plane(&cluster, "explain").await.map_err(|e| e.exit(Exit::Unknown))?;
            let (objects, notes) = analysis::from_cluster(&cluster).await.map_err(|e| e.exit(Exit::Unknown))?;
            notes.iter().for_each(|note| session.note(note));
            let world = World::new(State { objects, ..State::default() }, Enrolment::Reported).map_err(failed)?;
            let world = world.with_network_policies(network_policies(session, &cluster).await);
            return Ok((world, Some(cluster)));
        }
        let namespace = session.global.namespace.clone().unwrap_or_else(|| "default".into());
        let paths = analysis::files(&self.files, true).map_err(|e| e.exit(Exit::Unknown))?;
        let input = analysis::read(&paths, &namespace).map_err(|e| e.exit(Exit::Unknown))?;
        input.problems.iter().for_each(|problem| session.note(format!("note: {problem}")));
        let network = input.documents.iter();
        let network = network.filter_map(|(file, line, v)| NetworkPolicy::read(v, Some(file.clone()), *line)).collect();
        let world = World::new(input.over(vec![]), Enrolment::Expected).map_err(failed)?;
        Ok((world.with_network_policies(network), None))
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
            namespace: String::new(),
            port: self.port,
            request: (!self.tcp).then_some(request),
            server_name: self.server_name.clone(),
            now: karst_rt::clock::since_epoch().as_secs(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
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
        // One for each test: they run side by side.
        let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
        let file = std::env::temp_dir().join(format!("karst-explain-{}-{thread}.yaml", process::id()));
        fs::write(&file, OBJECTS).unwrap();
        let file = file.to_string_lossy().into_owned();
        let line = ["karst", "explain"].iter().chain(words).copied().chain(["-f", &file]);
        let words: Vec<_> = line.map(Into::into).collect();
        let cli = crate::parse(&words, "karst").unwrap();
        let crate::verbs::Verb::Explain(verb) = cli.verb else { unreachable!() };
        let (global, mut out) = (cli.global, vec![]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = {
            let mut session = Session::to(&global, "karst", &mut out);
            runtime.block_on(verb.run(&mut session))
        };
        (String::from_utf8(out).unwrap(), ended.err().map(|e| e.status()))
    }

    #[test]
    fn a_saved_page_decides_and_what_is_none_is_refused() {
        let page = std::env::temp_dir().join(format!("karst-explain-{}.json", process::id()));
        let asked = |text: &str| {
            fs::write(&page, text).unwrap();
            run(&["pod/web-1.shop", "web.shop", "--ztunnel-dump", &page.to_string_lossy()])
        };
        assert_eq!(asked("{}").1, Some(Exit::Unknown));
        // It knows of nothing: neither the service nor the policy.
        let (out, exit) = asked(r#"{"workloads": [], "services": [], "policies": []}"#);
        assert_eq!(exit, None, "{out}");
        assert!(out.contains("By the objects alone it is refused"), "{out}");
        assert!(out.contains("it has not yet taken policy shop/nobody"), "{out}");
        fs::remove_file(&page).unwrap();
    }

    #[test]
    fn names_without_a_namespace_are_of_the_one_that_is_named() {
        let answer = |words: &[&str]| run(words).0.lines().next().unwrap_or_default().to_string();
        let whole = answer(&["pod/web-1.shop", "web.shop"]);
        assert!(whole.starts_with("refused"), "{whole}");
        assert_eq!(answer(&["pod/web-1", "web", "-n", "shop"]), whole);
        let outside = answer(&["outside", "web.shop"]);
        assert_eq!(answer(&["outside", "web", "-n", "shop"]), outside);
        assert_eq!(run(&["pod/web-1", "web"]).1, Some(Exit::Unknown), "there is none in namespace default");
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
