//! Our own page (`karst dashboard`) on the cluster, asked as the page's script asks.

use crate::{in_cluster, link, own};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

/// To an answer. *Explain this call* reads all objects of the cluster, and what proxies know.
const PATIENCE: Duration = Duration::from_secs(30);

/// It is served until this is dropped.
pub struct Dashboard {
    child: Child,
    /// Kept open: it may say more.
    _said: BufReader<ChildStdout>,
    address: SocketAddr,
    token: String,
}

impl Dashboard {
    /// Serves it for a namespace, and waits for its address.
    pub fn start(namespace: &str) -> Self {
        let mut command = in_cluster(&own("karst"));
        command.args(["dashboard", "mesh", "-n", namespace, "--browser=false"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let parts = line.trim().strip_prefix("http://").and_then(|rest| rest.split_once("/#token="));
        let (address, token) = parts.unwrap_or_else(|| panic!("karst dashboard: {line:?}"));
        let (address, token) = (address.parse().unwrap(), token.to_string());
        Self { child, _said: said, address, token }
    }

    /// What it answers, with the secret of its address.
    pub fn get(&self, path: &str) -> Value {
        let (status, text) = self.ask(path, &format!("x-karst-token: {}\r\n", self.token));
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }

    /// Status and body; `headers` are whole lines.
    pub fn ask(&self, path: &str, headers: &str) -> (u16, String) {
        let address = self.address;
        let connected = link().run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)));
        let mut stream = connected.unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default())
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name<'g>(graph: &'g Value, id: &Value) -> Option<&'g str> {
    graph["nodes"].as_array()?.iter().find(|node| node["id"] == *id)?["name"].as_str()
}

/// The edge between two nodes of what `/api/graph` has answered, by their names.
pub fn edge<'g>(graph: &'g Value, from: &str, to: &str) -> Option<&'g Value> {
    let is = |id: &Value, wanted: &str| name(graph, id) == Some(wanted);
    graph["edges"].as_array()?.iter().find(|edge| is(&edge["source"], from) && is(&edge["target"], to))
}
