//! Envoy beside the gateway, for tests that need no control plane: in a pod of its own on the gateway's node, out of a file, with two
//! workers and an access log, as the gateway has.

use crate::{
    usage::Process,
    world::{Ended, PATIENCE, World},
};
use anyhow::{Context, Result, ensure};
use karst_e2e::link;
use serde_json::{Value, json};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// An Envoy that serves; it ends with this.
pub struct Envoy {
    child: Ended,
    /// Where it listens.
    pub at: SocketAddr,
    files: [PathBuf; 2],
}

impl Envoy {
    /// In a pod of this name, with these virtual hosts and clusters.
    pub fn start(world: &World, program: &Path, name: &str, hosts: &[Value], clusters: &[Value]) -> Result<Self> {
        let pod = world.run_pod(name, name, &world.home)?;
        let file = |end: &str| std::env::temp_dir().join(format!("karst-bench-{name}-{}.{end}", std::process::id()));
        let files = [file("json"), file("log")];
        fs::write(&files[0], config(hosts, clusters, &files[1]).to_string()).context("Envoy's configuration")?;
        let args = ["--concurrency", "2", "--disable-hot-restart", "--log-level", "error", "-c"];
        let spawn = || Command::new(program).args(args).arg(&files[0]).stdout(Stdio::null()).spawn();
        let envoy = Self { child: Ended(pod.netns().run(spawn)?.context("Envoy")?), at: pod.at(80), files };
        let end = Instant::now() + PATIENCE;
        while link().run(|| TcpStream::connect_timeout(&envoy.at, Duration::from_secs(1)))?.is_err() {
            ensure!(Instant::now() < end, "Envoy does not listen at {} after {} s", envoy.at, PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(envoy)
    }

    /// Its process.
    pub fn process(&self) -> Process {
        Process::by_id(self.child.0.id())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// A virtual host.
pub fn host(domain: &str, routes: &[Value]) -> Value {
    json!({ "name": domain, "domains": [domain], "routes": routes })
}

/// A route, as Istio and Envoy's own gateway write Gateway API's PathPrefix.
pub fn route(prefix: &str, cluster: &str) -> Value {
    let key = if prefix == "/" { "prefix" } else { "path_separated_prefix" };
    json!({ "match": { key: prefix }, "route": { "cluster": cluster } })
}

/// A service with these endpoints.
pub fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoint = |at: &SocketAddr| json!({ "endpoint": { "address": address(*at) } });
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
    })
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

/// Envoy's `typed_config`.
fn typed(kind: &str, mut body: Value) -> Value {
    body["@type"] = json!(format!("type.googleapis.com/{kind}"));
    body
}

fn config(hosts: &[Value], clusters: &[Value], log: &Path) -> Value {
    let log = typed("envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({ "path": log }));
    let router = typed("envoy.extensions.filters.http.router.v3.Router", json!({}));
    let manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "gateway",
            "route_config": { "virtual_hosts": hosts },
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": router }],
            "access_log": [{ "name": "file", "typed_config": log }],
        }),
    );
    let listener = json!({
        "name": "web", "address": address(([0, 0, 0, 0], 80).into()),
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
    });
    json!({ "static_resources": { "listeners": [listener], "clusters": clusters } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoy_is_told_of_hosts_prefixes_and_endpoints() {
        let at: SocketAddr = ([10, 0, 0, 1], 8080).into();
        let config = config(
            &[host("a.example.com", &[route("/", "s"), route("/x", "s")])],
            &[cluster("s", &[at])],
            Path::new("/l"),
        );
        let resources = &config["static_resources"];
        let manager = &resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
        let host = &manager["route_config"]["virtual_hosts"][0];
        assert_eq!(
            (&host["domains"][0], &host["routes"][0]["match"]),
            (&json!("a.example.com"), &json!({ "prefix": "/" }))
        );
        assert_eq!(
            host["routes"][1],
            json!({ "match": { "path_separated_prefix": "/x" }, "route": { "cluster": "s" } })
        );
        let endpoint = &resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        assert_eq!(endpoint["address"]["socket_address"], json!({ "address": "10.0.0.1", "port_value": 8080 }));
        assert_eq!(manager["access_log"][0]["typed_config"]["path"], "/l");
    }
}
