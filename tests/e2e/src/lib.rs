//! The local cluster (`cargo xtask cluster up`) as tests see it: kubectl and helm, the pods' network namespaces to make
//! connections from, and the link between the nodes to listen on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod addon;
pub mod dashboard;
pub mod exercise;
mod files;
mod following;
mod held;
mod jaeger;
pub mod panels;
mod prometheus;
mod shell;
pub mod tasks;
pub mod traces;
pub mod visits;

pub use files::Files;
pub use following::Following;
pub use held::Held;
pub use jaeger::Jaeger;
pub use karst_world::Load;
pub use prometheus::{Prometheus, Rule, Target};
pub use shell::{Istioctl, Said, Shell};
pub use visits::Visits;

use karst_rt::netns::Netns;
use karst_world::wait_for;
use serde_json::Value;
use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

const NETNS: &str = "/run/netns/karst-cp";
/// Patience for what takes a few seconds on this machine.
pub const LONG: Duration = Duration::from_secs(60);
/// Between two questions of [`ask_until`].
const PAUSE: Duration = Duration::from_millis(100);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A program where the API server is, with the administrator's kubeconfig.
fn in_cluster(program: &Path) -> Command {
    let run = root().join("target/cluster/run");
    assert!(run.join("nodes").exists(), "no cluster runs: cargo xtask cluster up (cargo xtask test starts one)");
    let mut c = Command::new("nsenter");
    c.arg(format!("--net={NETNS}")).arg(program).current_dir(root());
    // kubectl, helm and istioctl end before it is worth while to collect garbage.
    c.env("KUBECONFIG", run.join("pki/admin.kubeconfig")).envs([("GOGC", "off"), ("GOMEMLIMIT", "512MiB")]);
    c
}

fn tool(name: &str) -> Command {
    in_cluster(&root().join("target/cluster/bin").join(name))
}

/// One of our own programs, as it was built with these tests.
fn own(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name)
}

/// Runs it; gives its output, or all that it says when it fails.
fn all_said(mut c: Command) -> Result<String, String> {
    let out = c.output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stdout) + &text(&out.stderr)) }
}

/// Runs our own `cargo xtask`, as it was built with these tests; it must succeed.
pub fn xtask(args: &[&str]) {
    let out = Command::new(own("xtask")).args(args).current_dir(root()).output().unwrap();
    assert!(out.status.success(), "xtask {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
}

/// How kubectl is called, for scripts.
pub fn kubectl_line() -> String {
    let c = tool("kubectl");
    let word = |w: &std::ffi::OsStr| w.to_string_lossy().into_owned();
    let env = c.get_envs().filter_map(|(k, v)| Some(format!("{}={}", word(k), word(v?))));
    let line = ["env".to_string()].into_iter().chain(env).chain([word(c.get_program())]).chain(c.get_args().map(word));
    line.collect::<Vec<_>>().join(" ")
}

/// The bridge between the nodes.
pub fn link() -> Netns {
    Netns::open(NETNS).unwrap()
}

/// Runs kubectl; gives its output, or what it complains about.
pub fn try_kubectl(args: &[&str]) -> Result<String, String> {
    let out = tool("kubectl").args(args).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// Runs kubectl, which must succeed.
pub fn kubectl(args: &[&str]) -> String {
    try_kubectl(args).unwrap_or_else(|e| panic!("kubectl {}: {e}", args.join(" ")))
}

/// Runs kubectl with a bearer token and nothing else; gives its output, or what it complains about.
pub fn kubectl_with(token: &str, args: &[&str]) -> Result<String, String> {
    let server = kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let ca = root().join("target/cluster/run/pki/ca.crt");
    let own = [
        "--kubeconfig=/dev/null".to_string(),
        format!("--server={}", server.trim()),
        format!("--certificate-authority={}", ca.display()),
        format!("--token={token}"),
    ];
    try_kubectl(&own.iter().map(String::as_str).chain(args.iter().copied()).collect::<Vec<_>>())
}

/// Runs Istio's istioctl; gives its output, or what it complains about (with its output).
pub fn try_istioctl(args: &[&str]) -> Result<String, String> {
    let mut c = tool("istioctl");
    c.args(args);
    all_said(c)
}

/// Runs istioctl, which must succeed.
pub fn istioctl(args: &[&str]) -> String {
    try_istioctl(args).unwrap_or_else(|e| panic!("istioctl {}: {e}", args.join(" ")))
}

/// Runs our own command line, as it was built with these tests; gives its output, or all that it says when it fails.
pub fn try_karst(args: &[&str]) -> Result<String, String> {
    let mut c = in_cluster(&own("karst"));
    c.args(args);
    all_said(c)
}

/// Runs our own command line, which must succeed.
pub fn karst(args: &[&str]) -> String {
    try_karst(args).unwrap_or_else(|e| panic!("karst {}: {e}", args.join(" ")))
}

/// Runs helm; gives its output, or what it complains about.
pub fn try_helm(args: &[&str]) -> Result<String, String> {
    let mut c = tool("helm");
    c.args(args);
    all_said(c)
}

/// Runs helm, which must succeed.
pub fn helm(args: &[&str]) -> String {
    try_helm(args).unwrap_or_else(|e| panic!("helm {}: {e}", args.join(" ")))
}

/// Applies documents; gives what the API server says.
pub fn try_apply(yaml: &str) -> Result<String, String> {
    pipe(&["apply", "-f", "-"], yaml).map(|(out, _)| out)
}

/// Asks the API server what it would say, warnings included; nothing is stored.
pub fn dry_apply(yaml: &str) -> Result<String, String> {
    pipe(&["apply", "--dry-run=server", "-f", "-"], yaml).map(|(out, err)| err + &out)
}

fn pipe(args: &[&str], input: &str) -> Result<(String, String), String> {
    let mut c =
        tool("kubectl").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    c.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = c.wait_with_output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { Ok((text(&out.stdout), text(&out.stderr))) } else { Err(text(&out.stderr)) }
}

/// Applies documents, which must be accepted.
pub fn apply(yaml: &str) {
    try_apply(yaml).unwrap_or_else(|e| panic!("kubectl apply: {e}"));
}

/// An object as JSON.
pub fn get(args: &[&str]) -> Value {
    let all = [&["get"], args, &["-o", "json"]].concat();
    serde_json::from_str(&kubectl(&all)).unwrap()
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
    /// Address.
    pub ip: IpAddr,
}

impl Pod {
    /// A running pod by name.
    pub fn get(namespace: &str, name: &str) -> Self {
        let p = get(&["pod", "-n", namespace, name]);
        Self {
            namespace: namespace.into(),
            name: name.into(),
            uid: p["metadata"]["uid"].as_str().unwrap().into(),
            ip: p["status"]["podIP"].as_str().unwrap_or_default().parse().unwrap(),
        }
    }
    /// The first pod with a label.
    pub fn by_label(namespace: &str, label: &str) -> Self {
        let list = get(&["pods", "-n", namespace, "-l", label, "--field-selector=status.phase=Running"]);
        let alive = |p: &&Value| p["metadata"]["deletionTimestamp"].is_null();
        let p = list["items"].as_array().unwrap().iter().find(alive).unwrap_or_else(|| panic!("no pod {label}"));
        Self::get(namespace, p["metadata"]["name"].as_str().unwrap())
    }
    /// Where it listens.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }
    /// Its network namespace, found by its processes.
    pub fn netns(&self) -> Netns {
        let found = Netns::of_pod(&self.uid, &[self.ip]).unwrap();
        found.unwrap_or_else(|| panic!("no process of pod {}/{}", self.namespace, self.name))
    }
    /// How the system calls of its processes are filtered, by name of the program (2: by a profile). The sandbox's own is left out.
    pub fn seccomp(&self) -> Vec<(String, String)> {
        let group = format!("pod{}", self.uid);
        let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
        let of_pod = processes.filter(|p| std::fs::read_to_string(p.join("cgroup")).is_ok_and(|g| g.contains(&group)));
        let said = of_pod.filter_map(|p| {
            let status = std::fs::read_to_string(p.join("status")).ok()?;
            let field = |key: &str| Some(status.lines().find_map(|l| l.strip_prefix(key))?.trim().to_string());
            Some((field("Name:")?, field("Seccomp:")?))
        });
        said.filter(|(name, _)| name != "pause").collect()
    }
    /// Is it annotated as redirected?
    pub fn redirected(&self) -> bool {
        let p = get(&["pod", "-n", &self.namespace, &self.name]);
        p["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled"
    }
}

/// Address of a service.
pub fn vip(namespace: &str, name: &str) -> IpAddr {
    get(&["service", "-n", namespace, name])["spec"]["clusterIP"].as_str().unwrap().parse().unwrap()
}

/// As [`wait_for`], for at most [`LONG`], where each question starts a program: with pauses, as what is waited for wants the cores, too.
pub fn ask_until<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    wait_for(what, LONG, || {
        let answer = question();
        if answer.is_none() {
            std::thread::sleep(PAUSE);
        }
        answer
    })
}

/// Waits until all pods of a namespace are ready; those that are going do not count (kubectl's own wait would wait for them).
pub fn ready(namespace: &str) {
    let is_ready = |p: &Value| {
        let conditions = p["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    ask_until(&format!("pods of {namespace} ready"), || {
        let pods = get(&["pods", "-n", namespace]);
        let mut staying = pods["items"].as_array()?.iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null());
        staying.all(is_ready).then_some(())
    });
}

/// Restarts a workload and waits for the end.
pub fn rollout(namespace: &str, what: &str) {
    kubectl(&["-n", namespace, "rollout", "restart", what]);
    kubectl(&["-n", namespace, "rollout", "status", what, "--timeout=120s"]);
}

/// Waits until pods are annotated as redirected, or are not.
pub fn wait_redirected(pods: &[&Pod], wanted: bool) {
    for p in pods {
        ask_until(&format!("{} redirected: {wanted}", p.name), || (p.redirected() == wanted).then_some(()));
    }
}
