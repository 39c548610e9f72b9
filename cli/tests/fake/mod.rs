//! An API server that is not there: HTTP on loopback, one request for each connection, its answers from a function. What
//! the function does not answer is an empty list, or an object that is not there.

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
};

/// A request, its path taken apart.
#[derive(Debug, Default)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub body: Value,
    pub group: String,
    /// Lower case, plural; empty for a path that is not of objects.
    pub resource: String,
    /// Empty for a list.
    pub name: String,
    /// `log`, `portforward`, ...
    pub part: String,
}

/// Status and body.
pub type Answer = (u16, Value);
/// What answers; none: as an empty cluster does.
pub type Answers = Box<dyn FnMut(&Request) -> Option<Answer> + Send>;

/// Serves until the process ends; gives the address.
pub fn serve(mut answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who goes away before the answer does not want it.
            let _ = one(stream, &mut answers);
        }
    });
    format!("http://{address}")
}

fn one(mut stream: TcpStream, answers: &mut Answers) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let request = Request {
        method: method.into(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        ..taken_apart(target)
    };
    let (status, body) = answers(&request).unwrap_or_else(|| empty(&request));
    let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    write!(
        stream,
        "HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

fn taken_apart(target: &str) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request { path: path.into(), query: query.into(), ..Request::default() };
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = match words.as_slice() {
        ["api", "v1", rest @ ..] => rest,
        ["apis", group, _, rest @ ..] => {
            request.group = (*group).into();
            rest
        }
        _ => return request,
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let word = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
    (request.resource, request.name, request.part) = (word(0), word(1), word(2));
    request
}

/// As an empty cluster of a version that fits answers.
fn empty(request: &Request) -> Answer {
    match (request.path.as_str(), request.name.as_str()) {
        ("/version", _) => (200, version("34")),
        (_, "") if request.method == "POST" => (201, request.body.clone()),
        (_, "") => (200, list(&[])),
        (_, name) => {
            let kind = if request.group.is_empty() {
                request.resource.clone()
            } else {
                format!("{}.{}", request.resource, request.group)
            };
            status(404, &format!("{kind} \"{name}\" not found"))
        }
    }
}

/// The answer of `/version`.
pub fn version(minor: &str) -> Value {
    json!({
        "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "", "goVersion": "", "compiler": "gc", "platform": "linux/amd64",
    })
}

/// A refusal.
pub fn status(code: u16, message: &str) -> Answer {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code,
        "reason": reason,
    });
    (code, status)
}

/// A list.
pub fn list(items: &[Value]) -> Value {
    json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items })
}

/// A pod that runs.
pub fn pod(namespace: &str, name: &str, labels: Value, is_ready: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels, "uid": name },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }],
        },
    })
}
