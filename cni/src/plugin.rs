//! The chained CNI plugin (CNI specification 1.0): called by the container runtime for each new pod, after the pod has its
//! network and before its first container starts. It hands the pod to the agent and waits until redirection is in force;
//! while the agent or ztunnel is missing the pod does not start, so nothing of it is ever sent in plaintext. Pods of namespaces
//! that the agent has named as outside the mesh ([`crate::namespaces`]) start without it. Proven by tests/world (agent).

use crate::{
    events::{Answer, Request},
    namespaces::{self, Verdict},
};
use karst_rt::{netns::Netns, seqpacket::Packets};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::Read,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// The agent has this long; the runtime tries again later.
const LIMIT: Duration = Duration::from_secs(20);
/// If nobody listens, a pod is held this long in one call (an agent that is being replaced is back sooner); then the call fails,
/// which Kubernetes shows as an event of the pod, and the runtime makes the pod anew.
const ABSENCE: Duration = Duration::from_secs(10);
/// Meanwhile the agent is looked for this often.
const LOOK: Duration = Duration::from_millis(250);
/// Versions of the specification that the plugin speaks.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conf {
    #[serde(default)]
    cni_version: String,
    #[serde(default = "socket")]
    socket: PathBuf,
    #[serde(default)]
    exclude_namespaces: Vec<String>,
    prev_result: Option<Value>,
}

fn socket() -> PathBuf {
    crate::events::SOCKET.into()
}

/// An error as the runtime wants it.
struct Failure(u32, String);

/// Is this process started as a plugin?
pub fn is_called() -> bool {
    std::env::var_os("CNI_COMMAND").is_some()
}

/// Runs one command of the specification.
pub fn run() -> std::process::ExitCode {
    match command() {
        Ok(v) => {
            if !v.is_null() {
                println!("{v}");
            }
            std::process::ExitCode::SUCCESS
        }
        Err(Failure(code, msg)) => {
            println!("{}", json!({ "cniVersion": "1.0.0", "code": code, "msg": format!("karst: {msg}") }));
            std::process::ExitCode::FAILURE
        }
    }
}

fn command() -> Result<Value, Failure> {
    let env = |k: &str| std::env::var(k).unwrap_or_default();
    if env("CNI_COMMAND") == "VERSION" {
        return Ok(json!({ "cniVersion": "1.0.0", "supportedVersions": VERSIONS }));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| Failure(5, format!("standard input: {e}")))?;
    let conf: Conf = serde_json::from_str(&text).map_err(|e| Failure(6, format!("configuration: {e}")))?;
    match env("CNI_COMMAND").as_str() {
        "ADD" => {
            let previous = conf.prev_result.clone();
            let previous = previous.ok_or(Failure(
                7,
                "no prevResult: the plugin must come after one that makes the pod's network".into(),
            ))?;
            add(&conf, &previous, &env("CNI_ARGS"), &env("CNI_NETNS"))?;
            Ok(with_version(previous, &conf.cni_version))
        }
        // The agent notices by itself that a pod is gone.
        "DEL" | "CHECK" | "GC" | "STATUS" => Ok(Value::Null),
        other => Err(Failure(4, format!("CNI_COMMAND {other:?} is not known"))),
    }
}

fn with_version(mut result: Value, version: &str) -> Value {
    if let (Some(object), false) = (result.as_object_mut(), version.is_empty()) {
        object.insert("cniVersion".into(), version.into());
    }
    result
}

fn add(conf: &Conf, previous: &Value, args: &str, netns: &str) -> Result<(), Failure> {
    let args: HashMap<&str, &str> = args.split(';').filter_map(|a| a.split_once('=')).collect();
    let arg = |k: &str| args.get(k).map(|s| s.to_string()).unwrap_or_default();
    let request = Request {
        namespace: arg("K8S_POD_NAMESPACE"),
        name: arg("K8S_POD_NAME"),
        uid: arg("K8S_POD_UID"),
        ips: ips(previous)?,
    };
    if request.name.is_empty() || conf.exclude_namespaces.contains(&request.namespace) {
        return Ok(());
    }
    let ns = Netns::open(netns).map_err(|e| Failure(4, format!("CNI_NETNS {netns:?}: {e}")))?;
    let rt =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Failure(5, e.to_string()))?;
    let asked = rt.block_on(hold(conf, &request, &ns));
    decide(&request, asked, namespaces::verdict(&conf.socket, &request.namespace), &conf.socket)
}

/// What the agent says of a pod.
enum AgentReply {
    /// This.
    Answered(Answer),
    /// Nobody listens.
    Absent(std::io::Error),
    /// Nothing, for as long as it may take.
    Silent,
}

/// Asks the agent, and waits for one that is not there, unless the pod may start without it.
async fn hold(conf: &Conf, request: &Request, ns: &Netns) -> AgentReply {
    let begun = Instant::now();
    loop {
        match tokio::time::timeout_at(begun + LIMIT, ask(conf, request, ns)).await {
            Ok(Ok(a)) => return AgentReply::Answered(a),
            Err(_) => return AgentReply::Silent,
            Ok(Err(e)) => {
                let starts = namespaces::verdict(&conf.socket, &request.namespace) == Verdict::Starts;
                if starts || begun.elapsed() >= ABSENCE {
                    return AgentReply::Absent(e);
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// May the pod start?
fn decide(request: &Request, asked: AgentReply, verdict: Verdict, socket: &Path) -> Result<(), Failure> {
    let pod = format!("pod {}/{}", request.namespace, request.name);
    // 11: try again later.
    let agent = match asked {
        AgentReply::Answered(Answer { error: None }) => return Ok(()),
        AgentReply::Answered(Answer { error: Some(e) }) => return Err(Failure(11, format!("{pod}: {e}"))),
        AgentReply::Absent(e) => format!("the node agent does not answer at {} ({e})", socket.display()),
        AgentReply::Silent => format!("the node agent has not answered within {} s", LIMIT.as_secs()),
    };
    let why = match verdict {
        Verdict::Starts => return Ok(()),
        Verdict::NotNamed => {
            format!("namespace {} belongs to the mesh, or is not known to be outside it", request.namespace)
        }
        Verdict::TooOld => "what the agent knew of namespaces is a day old".to_string(),
        Verdict::Unknown => "nothing is known of this node's namespaces".to_string(),
    };
    Err(Failure(
        11,
        format!(
            "{pod} is held: {agent}, and {why}; it starts once the agent runs on this node: to see why it does not, run kubectl describe pod -A -l k8s-app=istio-cni-node"
        ),
    ))
}

async fn ask(conf: &Conf, request: &Request, ns: &Netns) -> std::io::Result<Answer> {
    let connection = Packets::connect(&conf.socket).await?;
    connection.send(&serde_json::to_vec(request)?, &[ns.as_fd()]).await?;
    let (bytes, _) = connection.recv(64 << 10).await?;
    if bytes.is_empty() {
        return Err(std::io::Error::other("it closed the connection"));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Addresses of a result: `10.0.0.1/24` in `ips[].address`.
fn ips(result: &Value) -> Result<Vec<IpAddr>, Failure> {
    let list = result["ips"].as_array().ok_or(Failure(7, "prevResult.ips: is missing".into()))?;
    let one = |v: &Value| {
        let text = v["address"].as_str().unwrap_or_default();
        let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
        ip.parse().map_err(|_| Failure(7, format!("prevResult.ips[].address: {text:?} is not an address")))
    };
    list.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_known_to_be_outside_starts_without_the_agent() {
        let r = Request { namespace: "app".into(), name: "p".into(), uid: String::new(), ips: vec![] };
        let socket = Path::new("/run/x.sock");
        let kinds: [fn() -> AgentReply; 2] =
            [|| AgentReply::Absent(std::io::ErrorKind::ConnectionRefused.into()), || AgentReply::Silent];
        for asked in kinds {
            assert!(decide(&r, asked(), Verdict::Starts, socket).is_ok());
            for v in [Verdict::NotNamed, Verdict::TooOld, Verdict::Unknown] {
                let Err(Failure(code, text)) = decide(&r, asked(), v, socket) else { panic!("{v:?} starts") };
                assert_eq!(code, 11);
                assert!(
                    text.starts_with("pod app/p is held: the node agent ") && text.contains("kubectl describe"),
                    "{text}"
                );
            }
        }
        // An agent that answers decides, whatever the file says.
        let answer = |error: Option<&str>| AgentReply::Answered(Answer { error: error.map(String::from) });
        assert!(decide(&r, answer(None), Verdict::Unknown, socket).is_ok());
        assert_eq!(
            decide(&r, answer(Some("no")), Verdict::Starts, socket).err().map(|f| f.1),
            Some("pod app/p: no".into())
        );
    }

    #[test]
    fn results_are_read_and_passed_on() {
        let r = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.244.0.5/24" }, { "address": "fd00::5/64" }], "dns": {} });
        let found = ips(&r).ok().unwrap();
        assert_eq!(found, ["10.244.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert_eq!(with_version(r, "0.4.0")["cniVersion"], "0.4.0");
        for bad in [json!({}), json!({ "ips": [{ "address": "x" }] })] {
            assert_eq!(ips(&bad).err().unwrap().0, 7);
        }
    }
}
