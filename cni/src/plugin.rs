//! The chained CNI plugin (CNI specification 1.0): called by the container runtime for each new pod, after the pod has its
//! network and before its first container starts. It hands the pod to the agent and waits until redirection is in force;
//! while the agent or ztunnel is missing the pod does not start, so nothing of it is ever sent in plaintext.

use crate::events::{Answer, Request};
use karst_rt::{netns::Netns, seqpacket::Packets};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::HashMap, io::Read, net::IpAddr, os::fd::AsFd, path::PathBuf, time::Duration};

/// The agent has this long; the runtime tries again later.
const LIMIT: Duration = Duration::from_secs(20);
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
    if let (Some(o), false) = (result.as_object_mut(), version.is_empty()) {
        o.insert("cniVersion".into(), version.into());
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
    let asked = rt.block_on(async { tokio::time::timeout(LIMIT, ask(conf, &request, &ns)).await });
    let pod = format!("pod {}/{}", request.namespace, request.name);
    // 11: try again later.
    match asked {
        Ok(Ok(Answer { error: None })) => Ok(()),
        Ok(Ok(Answer { error: Some(e) })) => Err(Failure(11, format!("{pod}: {e}"))),
        Ok(Err(e)) => Err(Failure(
            11,
            format!(
                "{pod} is held: the node agent does not answer at {} ({e}); it starts once the agent does",
                conf.socket.display()
            ),
        )),
        Err(_) => {
            Err(Failure(11, format!("{pod} is held: the node agent has not answered within {} s", LIMIT.as_secs())))
        }
    }
}

async fn ask(conf: &Conf, request: &Request, ns: &Netns) -> std::io::Result<Answer> {
    let c = Packets::connect(&conf.socket)?;
    c.send(&serde_json::to_vec(request)?, &[ns.as_fd()]).await?;
    let (bytes, _) = c.recv(64 << 10).await?;
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
        ip.parse().map_err(|_| Failure(7, format!("prevResult.ips[].address: {text:?} is no address")))
    };
    list.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
