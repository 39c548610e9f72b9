//! The API server, by `kubectl proxy`: as many objects a second as it takes. (kubectl itself needs a tenth of a second of CPU for each.)

use crate::http::{Client, Lines};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Objects are written by so many at a time.
const WRITERS: usize = 6;
/// Where kinds of Gateway API are.
pub const GATEWAY_API: &str = "/apis/gateway.networking.k8s.io/v1";

/// The way to the API server; it ends with this.
pub struct Proxy {
    child: Child,
    at: SocketAddr,
}

impl Proxy {
    /// Starts it.
    pub fn start() -> Result<Self> {
        // By exec, so that the process is kubectl itself.
        let line = format!("exec {} proxy --port=0", karst_e2e::kubectl_line());
        let mut child =
            Command::new("sh").args(["-c", &line]).stdout(Stdio::piped()).spawn().context("kubectl proxy")?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("kubectl proxy")?).read_line(&mut said)?;
        let at = said.trim().rsplit(' ').next().and_then(|at| at.parse().ok());
        Ok(Self { child, at: at.with_context(|| format!("kubectl proxy says {said:?}"))? })
    }

    /// A connection of one's own.
    pub fn api(&self) -> Api {
        Api(Client::new(&karst_e2e::link(), self.at))
    }

    /// Does something for each number below `count`, by several connections at a time.
    ///
    /// # Errors
    /// The first of each writer's; what is left is not done by that one.
    pub fn each(&self, count: usize, what: impl Fn(&mut Api, usize) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let write = || -> Result<()> {
                let mut api = self.api();
                loop {
                    match next.fetch_add(1, Relaxed) {
                        number if number < count => what(&mut api, number)?,
                        _ => return Ok(()),
                    }
                }
            };
            let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
            let ends = writers.into_iter().map(|w| w.join().unwrap_or_else(|_| bail!("a writer has panicked")));
            ends.collect::<Result<Vec<()>>>().map(drop)
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection to it.
pub struct Api(Client);

impl Api {
    fn ask(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<(u16, Value)> {
        // A connection that was kept may have ended meanwhile.
        let answer = match self.0.ask(method, "localhost", path, kind, body) {
            Err(_) if method == "GET" => self.0.ask(method, "localhost", path, kind, body),
            other => other,
        };
        let answer = answer.with_context(|| format!("{method} {path}"))?;
        Ok((answer.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null)))
    }

    fn must(&mut self, method: &str, path: &str, kind: &str, body: &Value) -> Result<Value> {
        let (status, said) = self.ask(method, path, kind, body.to_string().as_bytes())?;
        ensure!((200..300).contains(&status), "{method} {path}: {status}: {}", said["message"]);
        Ok(said)
    }

    /// An object, or a list of them. None: it is not there.
    pub fn get(&mut self, path: &str) -> Result<Option<Value>> {
        match self.ask("GET", path, "", &[])? {
            (200, object) => Ok(Some(object)),
            (404, _) => Ok(None),
            (status, said) => bail!("GET {path}: {status}: {}", said["message"]),
        }
    }

    /// Creates an object in the list at this path.
    pub fn create(&mut self, list: &str, object: &Value) -> Result<Value> {
        self.must("POST", list, "application/json", object)
    }

    /// Changes an object by a merge patch.
    pub fn patch(&mut self, path: &str, change: &Value) -> Result<Value> {
        self.must("PATCH", path, "application/merge-patch+json", change)
    }

    /// Deletes an object, or all of a list, at once.
    pub fn delete(&mut self, path: &str) -> Result<()> {
        let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
        self.must("DELETE", path, "application/json", &options).map(drop)
    }

    /// The events of a list from now on, one to a line, and what ends them.
    pub fn watch(self, list: &str) -> Result<(Lines, TcpStream)> {
        let between = if list.contains('?') { '&' } else { '?' };
        self.0.lines("localhost", &format!("{list}{between}watch=1"))
    }
}
