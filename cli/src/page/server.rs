//! HTTP/1.1 on loopback: the page's files, and what it shows as JSON. What is answered is decided by [`Server::answer`], without I/O
//! but for explanations.

use super::{Door, Reading, Shared, files};
use crate::problem::Problem;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    http::request::Parts,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_topology::{Edge, Graph};
use serde::Serialize;
use serde_json::{Value, json};
use std::{convert::Infallible, future::Future, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};

/// Connections at a time; others wait. A browser opens six.
const CONNECTIONS: usize = 32;
/// A head must be there within this time.
const HEAD: Duration = Duration::from_secs(10);
/// Nothing is loaded from elsewhere, and nothing of the page's text is run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// What every answer says, beside its type.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
];

/// A call to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Identity of the caller.
    pub from: String,
    /// Host of the service.
    pub to: String,
    /// Port of the service; none: its only one.
    pub port: Option<u16>,
    /// Method and path; none: a connection.
    pub request: Option<(String, String)>,
}

/// An answer that is waited for.
type Waited = Pin<Box<dyn Future<Output = Result<Value, Problem>>>>;
/// Says what becomes of a call, as `karst explain -o json`.
pub type Explainer = Rc<dyn Fn(Question) -> Waited>;

struct Server {
    door: Door,
    shared: Shared,
    explain: Option<Explainer>,
    /// One explanation at a time: each reads all objects.
    explains: Semaphore,
}

/// Serves until it is dropped. On the thread's local set.
pub async fn serve(listener: TcpListener, door: Door, shared: Shared, explain: Option<Explainer>) {
    let server = Rc::new(Server { door, shared, explain, explains: Semaphore::new(1) });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, _) = karst_rt::accept::accept(&listener).await;
        let server = server.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                // Nothing that is asked has a body.
                let (server, (head, _)) = (server.clone(), request.into_parts());
                async move { Ok::<_, Infallible>(server.answer(&head).await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
            // A browser may leave as it likes.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

/// What the page asks for every two seconds.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    graph: Graph,
    reading: &'a Reading,
    cluster: &'a str,
    start: Option<&'a str>,
}

type Answer = Response<Full<Bytes>>;

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn told(status: StatusCode, why: impl Into<String>) -> Answer {
    let why: String = why.into();
    reply(status, "application/json", json!({ "error": why }).to_string())
}

fn shown(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => reply(StatusCode::OK, "application/json", body),
        Err(e) => told(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// A parameter of the query; empty is none.
fn parameter(head: &Parts, name: &str) -> Option<String> {
    let mut all = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
    all.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
}

impl Server {
    async fn answer(&self, head: &Parts) -> Answer {
        if let Err((status, why)) = self.door.check(&head.headers) {
            return told(status, why);
        }
        let path = head.uri.path();
        if let Some(file) = files::find(path) {
            return match head.method {
                Method::GET | Method::HEAD => reply(StatusCode::OK, file.kind, file.content),
                _ => told(StatusCode::METHOD_NOT_ALLOWED, "GET only"),
            };
        }
        match (&head.method, path) {
            (&Method::POST, "/api/session") => match self.door.exchange(&head.headers) {
                Some(token) => shown(&json!({ "token": token })),
                None => {
                    told(StatusCode::UNAUTHORIZED, "this address was used before: open the one that karst has printed")
                }
            },
            (_, path) if !path.starts_with("/api/") => told(StatusCode::NOT_FOUND, "no such page"),
            _ if !self.door.admits(&head.headers) => {
                told(StatusCode::UNAUTHORIZED, "open the address that karst dashboard has printed")
            }
            (&Method::GET, "/api/explain") => self.explained(head).await,
            (&Method::GET, path) => self.page(path, head),
            _ => told(StatusCode::METHOD_NOT_ALLOWED, "GET only"),
        }
    }

    fn page(&self, path: &str, head: &Parts) -> Answer {
        let state = self.shared.borrow();
        let namespace = parameter(head, "namespace");
        let id = |name| parameter(head, name).and_then(|id| id.parse::<u32>().ok());
        match path {
            "/api/graph" => shown(&Shown {
                graph: state.topology.graph(namespace.as_deref()),
                reading: &state.reading,
                cluster: &state.cluster,
                start: state.namespace.as_deref(),
            }),
            "/api/edge" => match id("id").and_then(|id| Some((id, state.topology.edge_now(id)?))) {
                Some((id, edge)) => shown(&json!({ "edge": edge, "history": state.topology.history(id) })),
                None => told(StatusCode::NOT_FOUND, "no such edge: it may be forgotten"),
            },
            "/api/history" => match id("edge") {
                Some(id) => shown(&state.topology.history(id)),
                None => shown(&json!({
                    "total": state.topology.total(namespace.as_deref()),
                    "sparks": state.topology.sparks(),
                })),
            },
            _ => told(StatusCode::NOT_FOUND, "no such page"),
        }
    }

    async fn explained(&self, head: &Parts) -> Answer {
        let id = parameter(head, "edge").and_then(|id| id.parse::<u32>().ok());
        let edge = id.and_then(|id| self.shared.borrow().topology.edge_now(id));
        let Some(edge) = edge else { return told(StatusCode::NOT_FOUND, "no such edge: it may be forgotten") };
        let question = match question(&edge) {
            Ok(question) => question,
            Err(why) => return told(StatusCode::UNPROCESSABLE_ENTITY, why),
        };
        let Some(explain) = &self.explain else {
            return told(StatusCode::NOT_IMPLEMENTED, "there is no cluster to ask");
        };
        let Ok(_turn) = self.explains.try_acquire() else {
            return told(StatusCode::TOO_MANY_REQUESTS, "another call is being explained: try again");
        };
        match explain(question).await {
            Ok(value) => shown(&value),
            Err(problem) => told(StatusCode::BAD_GATEWAY, problem.to_string()),
        }
    }
}

/// What is to be explained of an edge: its last refusal if there is one.
fn question(edge: &Edge) -> Result<Question, &'static str> {
    if edge.source_principal.is_empty() {
        return Err("the caller has proven no identity: name it yourself with karst explain");
    }
    if edge.service.is_empty() {
        return Err("no service was called: name the pod yourself with karst explain");
    }
    // A ztunnel's port is the pod's, not the service's.
    let refusal = edge.refusals.first().filter(|refusal| !refusal.method.is_empty());
    let path = |path: &str| if path.contains(['{', '*']) || path.is_empty() { "/".into() } else { path.to_owned() };
    Ok(Question {
        from: edge.source_principal.clone(),
        to: edge.service.clone(),
        port: refusal.map(|refusal| refusal.port),
        request: match refusal {
            Some(refusal) => Some((refusal.method.clone(), path(&refusal.path))),
            None if edge.rate > 0.0 => Some(("GET".into(), "/".into())),
            None => None,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use http_body_util::BodyExt;

    const PORT: u16 = 8080;

    fn server() -> Server {
        let shared = Shared::default();
        shared.borrow_mut().cluster = "https://api:6443".into();
        Server { door: Door::new(PORT), shared, explain: None, explains: Semaphore::new(1) }
    }

    /// The secret or the code, as it is in an address.
    fn secret(address: &str) -> String {
        address.split_once('=').unwrap().1.to_owned()
    }

    async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header("host", format!("127.0.0.1:{PORT}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let answer = server.answer(&head).await;
        for (name, value) in HEADERS {
            assert_eq!(answer.headers()[name], value, "{path}");
        }
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store", "{path}");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn what_is_of_the_mesh_is_for_whoever_has_the_secret() {
        let server = server();
        let token = secret(&server.door.address());
        for path in ["/api/graph", "/api/history", "/api/edge?id=1", "/api/explain?edge=1", "/api/other"] {
            let (status, text) = ask(&server, "GET", path, &[]).await;
            assert!(status == 401 && !text.contains("api:6443"), "{path}: {status} {text}");
            let (status, _) = ask(&server, "GET", path, &[("x-karst-token", &"0".repeat(64))]).await;
            assert_eq!(status, 401, "{path}");
        }
        let own = [("x-karst-token", token.as_str())];
        let (status, text) = ask(&server, "GET", "/api/graph", &own).await;
        assert!(status == 200 && text.contains("api:6443"), "{status} {text}");
        for (path, wanted) in [("/api/history", 200), ("/api/edge?id=1", 404), ("/api/explain?edge=1", 404)] {
            assert_eq!(ask(&server, "GET", path, &own).await.0, wanted, "{path}");
        }
        assert_eq!(ask(&server, "POST", "/api/graph", &own).await.0, 405);
    }

    #[tokio::test]
    async fn the_page_itself_is_for_its_own_name_and_site() {
        let server = server();
        for path in ["/", "/app.js", "/app.css", "/icon.svg", "/licences.txt"] {
            assert_eq!(ask(&server, "GET", path, &[]).await.0, 200, "{path}");
            assert_eq!(ask(&server, "POST", path, &[]).await.0, 405, "{path}");
            assert_eq!(ask(&server, "GET", path, &[("origin", "http://evil.example")]).await.0, 403, "{path}");
        }
        let own = secret(&server.door.address());
        let foreign = [("sec-fetch-site", "cross-site"), ("x-karst-token", own.as_str())];
        assert_eq!(ask(&server, "GET", "/api/graph", &foreign).await.0, 403);
        assert_eq!(ask(&server, "GET", "/etc/passwd", &[]).await.0, 404);
    }

    #[tokio::test]
    async fn the_code_gives_the_secret_once_and_to_no_other_origin() {
        let server = server();
        let code = secret(&server.door.address_once());
        let given = ("x-karst-code", code.as_str());
        assert_eq!(ask(&server, "POST", "/api/session", &[given, ("origin", "http://evil.example")]).await.0, 403);
        assert_eq!(ask(&server, "GET", "/api/session", &[given]).await.0, 401, "not without the secret");
        let (status, text) = ask(&server, "POST", "/api/session", &[given]).await;
        assert!(status == 200 && text.contains(&secret(&server.door.address())), "{status} {text}");
        assert_eq!(ask(&server, "POST", "/api/session", &[given]).await.0, 401);
    }
}
